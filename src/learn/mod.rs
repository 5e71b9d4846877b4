//! Images into representations: networks, loss, optimisers, the loop, checkpoints. The only room that computes gradients.

pub mod backend;
pub mod checkpoint;
pub mod error;
pub mod expander;
pub mod health;
pub mod input;
pub mod memory;
pub mod model;
pub mod norm;
pub mod ops;
pub mod optim;
pub mod options;
pub mod resnet;
pub mod run;
pub mod schedule;
pub mod trainer;
pub mod vicreg;
pub mod watch;
pub mod weights;

pub use error::LearnError;
