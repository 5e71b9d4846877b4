//! Buffers that a thread keeps from one operation to the next, and so from step to step: in steady state a step's maps, gradients
//! and scratch cost no allocation, and none of the fresh pages that the system has to clear.
//!
//! What [`take`] gives holds old values: write before reading. A thread that waits inside an operation may be given another task
//! of it; buffers are taken out while they are used, so that it then finds others.

use std::cell::RefCell;

/// Shorter ones are left to the allocator.
const SHORTEST: usize = 1024;
/// A buffer that was of no use for so many calls is given up when a new one is needed: the shapes have changed.
const FORGOTTEN: u64 = 4096;

#[derive(Default)]
struct Free {
    /// Calls of [`take`] so far.
    calls: u64,
    /// Each with the number of calls when it came.
    buffers: Vec<(u64, Vec<f32>)>,
}

thread_local! {
    static FREE: RefCell<Free> = RefCell::default();
}

/// A buffer of that length, with any values.
pub(super) fn take(length: usize) -> Vec<f32> {
    let found = FREE.with_borrow_mut(|free| {
        free.calls += 1;
        if let Some(at) = free.buffers.iter().rposition(|(_, buffer)| buffer.len() == length) {
            return Some(free.buffers.swap_remove(at).1);
        }
        let calls = free.calls;
        free.buffers.retain(|(came, _)| calls - came < FORGOTTEN);
        None
    });
    found.unwrap_or_else(|| vec![0.0; length])
}

/// [`take`], with zeros.
pub(super) fn zeros(length: usize) -> Vec<f32> {
    let mut buffer = take(length);
    buffer.fill(0.0);
    buffer
}

/// Keeps a buffer for later.
pub(super) fn give(buffer: Vec<f32>) {
    if buffer.len() >= SHORTEST {
        FREE.with_borrow_mut(|free| free.buffers.push((free.calls, buffer)));
    }
}

/// Calls `work` with buffers of the given lengths, with any values.
pub(super) fn with<R, const N: usize>(lengths: [usize; N], work: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    let mut buffers = lengths.map(take);
    let result = work(buffers.each_mut().map(|buffer| &mut buffer[..]));
    buffers.into_iter().for_each(give);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_is_forgotten_when_shapes_change() {
        let first = take(5000);
        let place = first.as_ptr();
        give(first);
        let other = take(5001);
        assert_ne!(other.as_ptr(), place, "another length");
        let again = take(5000);
        assert_eq!(again.as_ptr(), place);
        give(again);
        assert_eq!(with([5000, 5000], |[a, b]| [a.len(), b.len()]), [5000, 5000]);
        (0..FORGOTTEN).for_each(|_| drop(take(7000)));
        FREE.with_borrow(|free| assert!(free.buffers.iter().all(|(_, buffer)| buffer.len() != 5000)));
        assert!(zeros(7000).iter().all(|&v| v == 0.0));
    }
}
