//! How good are the representations, and how fast is the pipeline.

pub mod features;
pub mod probe;
