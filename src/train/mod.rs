//! The training loop and all that goes with it: steps, learning rates, state, logs, checkpoints.

pub mod card;
pub mod checkpoint_dir;
pub mod json;
pub mod log;
pub mod log_files;
pub mod plot;
pub mod progress;
pub mod schedule;
pub mod state;
pub mod tensorboard;
