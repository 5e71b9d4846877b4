//! Images into representations: networks, loss, optimisers, the loop, checkpoints. The only room that computes gradients.

pub mod expander;
pub mod input;
pub mod model;
pub mod norm;
pub mod ops;
pub mod optim;
pub mod resnet;
pub mod schedule;
pub mod vicreg;
pub mod weights;
