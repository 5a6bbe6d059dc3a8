//! What a run computes on, and what follows from it.

use super::plan::available_memory;
use crate::config::{Config, Precision};
use crate::device::{Card, Device, built_without_kernels, cards, driver_version};
use crate::error::{Error, Result};
use crate::tensor::DType;

/// Where a run is planned for.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// This many threads.
    Cpu { threads: usize },
    /// Kernels, on a GPU of these figures.
    Gpu(Card),
}

impl Target {
    /// Bytes that the run may take: `max_memory`, or what there is.
    pub fn limit(&self, config: &Config) -> Option<u64> {
        match self {
            _ if config.model.max_memory.is_some() => config.model.max_memory,
            Target::Cpu { .. } => available_memory(),
            Target::Gpu(card) => Some(card.memory),
        }
    }

    /// dtype of activations: kernels compute in bf16 whatever the config says.
    pub fn dtype(&self, config: &Config) -> DType {
        match (self, config.train.precision) {
            (Target::Cpu { .. }, Precision::F32) => DType::F32,
            (Target::Gpu(_), _) | (_, Precision::Bf16) => DType::Bf16,
        }
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        match self {
            Target::Cpu { threads } => *threads,
            Target::Gpu(_) => std::thread::available_parallelism().map_or(1, |n| n.get()),
        }
    }

    /// A device that plans for it.
    pub(super) fn planner(&self) -> Device {
        match self {
            Target::Cpu { .. } => Device::plan(),
            Target::Gpu(card) => Device::plan_on(card.chip),
        }
    }
}

/// Threads of a run: `threads`, or all cores.
pub fn threads(config: &Config) -> usize {
    config.train.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
}

/// The device that this config trains on, here: the first GPU, or the CPU if there is none, if this program has no kernels
/// or if `use_cpu` says so.
///
/// # Errors
/// [`Error::Gpu`] for a GPU or a driver that is there but cannot be used.
pub fn pick(config: &Config) -> Result<(Device, Target)> {
    let threads = threads(config);
    let cpu = || Ok((Device::cpu(threads), Target::Cpu { threads }));
    if config.model.use_cpu {
        return cpu();
    }
    match first_gpu() {
        Ok(Some(found)) => Ok(found),
        Ok(None) => cpu(),
        Err(Error::Gpu(why)) => Err(Error::Gpu(format!("{why}; `use_cpu: true` runs on the CPU"))),
        Err(e) => Err(e),
    }
}

/// The first GPU; None without a driver, a GPU or kernels for it.
fn first_gpu() -> Result<Option<(Device, Target)>> {
    #[cfg(feature = "host-kernels")]
    if std::env::var_os(HOST_KERNELS).is_some() {
        let (name, chip) = ("kernels on the CPU".into(), crate::device::Chip::STAND_IN);
        let card = Card { name, memory: 8 << 30, flops: 1e12, bandwidth: 1e11, chip };
        return Ok(Some((Device::host_kernels(2, false)?, Target::Gpu(card))));
    }
    if driver_version()?.is_none() || built_without_kernels().is_some() || cards()?.is_empty() {
        return Ok(None);
    }
    let device = Device::cuda(0)?;
    let card = card_of(&device)?;
    Ok(Some((device, Target::Gpu(card))))
}

/// The figures of the GPU behind a device, its memory being what is free now.
///
/// # Errors
/// [`Error::Gpu`] if there is none, or if it does not tell.
pub fn card_of(device: &Device) -> Result<Card> {
    let (Some(gpu), Some((free, _))) = (device.gpu(), device.gpu_memory()?) else {
        return Err(Error::Gpu("the device is no GPU".into()));
    };
    Ok(Card {
        name: gpu.name.clone(),
        memory: (free as u64).saturating_sub(RESERVE),
        flops: gpu.flops(),
        bandwidth: gpu.bandwidth().unwrap_or(0.0),
        chip: gpu.chip(),
    })
}

/// Set, in a program built for tests: commands run on host-run kernels as they would on a GPU.
#[cfg(feature = "host-kernels")]
const HOST_KERNELS: &str = "QLORA_HOST_KERNELS";

/// Bytes that are left to the driver: its own buffers grow while kernels are loaded.
const RESERVE: u64 = 256 << 20;
