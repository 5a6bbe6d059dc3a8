//! Quantised storage of frozen weights.

mod device_ggml;
mod device_nf4;
pub mod dynamic8;
pub mod ggml;
pub mod nf4;
mod quantiser;

pub use device_ggml::DeviceGgml;
pub use device_nf4::{Code2, DeviceNf4};
pub use nf4::{Absmax, Nf4, Nf4Builder};
pub use quantiser::Quantiser;
