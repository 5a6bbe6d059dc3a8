//! Training: what a run reads, its plan, the step, the loop, and the files it leaves.

mod batches;
pub mod card;
pub mod checkpoint_dir;
mod engine;
mod files;
pub mod fit;
mod graphs;
mod inputs;
pub mod json;
pub mod log;
pub mod log_files;
pub mod plan;
pub mod plot;
pub mod progress;
pub mod schedule;
pub mod state;
pub mod target;
pub mod tensorboard;
mod trainer;

pub use batches::{envelopes, steps};
pub use engine::{Engine, StepResult};
pub use inputs::{Inputs, TrainData};
pub use progress::{Control, Event, LogRow, Observer, RunInfo, StepReport};
pub use target::Target;
pub use trainer::{Outcome, prepare, train, train_on};
