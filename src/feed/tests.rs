//! Tests
pub(crate) const PANIC_SEED: u64 = 0x0BAD_5EED;
