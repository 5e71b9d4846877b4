//! Which device trains: the CPU, CUDA, or Vulkan and Metal through wgpu.
//!
//! In: `[device]` as written. Out: an [`Opened`] device, which runs a [`Task`] on burn's backend for it. Which backends there
//! are is decided when the program is built (`--features cuda`, `--features wgpu`); the CPU is always there.
//! Invariant: whatever a driver or library may lack is found here and named, before burn would panic over it.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "gpu")]
mod kernels;
#[cfg(feature = "wgpu")]
mod wgpu;

use super::ops::TrainAd;
use super::options::Precision;
use crate::feed::{HeapMemory, SlotMemory};
use burn::backend::{Autodiff, Flex};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The CPU, without gradients: evaluation.
pub type Cpu = Flex;
/// The CPU, with gradients: training.
pub type CpuAd = Autodiff<Flex>;

/// `[device]`: where the network computes. Free to change between a run and its resume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceOptions {
    /// `auto` (a GPU where this build and this machine have one, else the CPU), `cpu`, `cuda` or `wgpu` (Vulkan, Metal). Default
    /// auto.
    #[schemars(extend("x-kind" = "operational"))]
    pub backend: BackendKind,
    /// Which of several GPUs, from 0: of those that CUDA_VISIBLE_DEVICES leaves, or in the order of the system. Default 0.
    #[schemars(extend("x-kind" = "operational"))]
    pub index: u32,
}

/// The backends by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum BackendKind {
    /// A GPU where there is one, else the CPU
    #[default]
    Auto,
    /// burn's CPU backend, flex
    Cpu,
    /// NVIDIA GPUs
    Cuda,
    /// Vulkan or Metal
    Wgpu,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
        })
    }
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The program was built without it.
    #[error("this program was built without the backend `{kind}`")]
    NotBuilt {
        /// Which.
        kind: BackendKind,
    },
    /// A library is not installed, or not found by the system's loader.
    #[error("the backend `{kind}` needs {what}; none of these was found: {}", looked_for.join(", "))]
    Missing {
        /// Which backend.
        kind: BackendKind,
        /// What it is, for a reader.
        what: &'static str,
        /// Files and folders that were looked for.
        looked_for: Vec<String>,
        /// What to install.
        install: &'static str,
    },
    /// The driver is there and does not work.
    #[error("the driver of the backend `{kind}` does not start: {reason}")]
    Driver {
        /// Which backend.
        kind: BackendKind,
        /// The driver's words.
        reason: String,
    },
    /// There are not so many devices.
    #[error("there is no device {index} for the backend `{kind}`: it has {count}{}", names.iter().map(|name| format!("\n  {name}")).collect::<String>())]
    NoDevice {
        /// Which backend.
        kind: BackendKind,
        /// The number asked for.
        index: u32,
        /// How many there are.
        count: usize,
        /// Their names, where they have any.
        names: Vec<String>,
    },
    /// The device cannot compute in the recipe's type.
    #[error("{device} cannot compute in bf16")]
    Precision {
        /// The device.
        device: String,
    },
}

impl BackendError {
    /// What the user can do about it.
    pub fn hints(&self) -> Vec<String> {
        let mut hints = match self {
            Self::NotBuilt { kind } => vec![format!("build it with `--features {kind}`")],
            Self::Missing { install, .. } => vec![(*install).to_owned()],
            Self::Driver { .. } => vec!["`nvidia-smi` says more; driver and kernel module must have one version".to_owned()],
            Self::NoDevice {
                kind: BackendKind::Cuda, ..
            } => vec!["CUDA_VISIBLE_DEVICES hides the devices that it does not list; `--device` counts the others from 0".to_owned()],
            Self::NoDevice { .. } => vec!["install the GPU's Vulkan driver; for software Vulkan, Mesa's lavapipe (Debian package mesa-vulkan-drivers)".to_owned()],
            Self::Precision { .. } => vec!["`--set train.precision=f32`".to_owned()],
        };
        if !matches!(self, Self::Precision { .. }) {
            hints.push("`--backend cpu` trains without a GPU".to_owned());
        }
        hints
    }
}

/// A device that was found to work.
#[derive(Clone, Debug)]
pub struct Opened {
    device: Device,
    /// `cpu`, `cuda:0 (NVIDIA H100)`, ...
    pub name: String,
}

#[derive(Clone, Debug)]
enum Device {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(cuda::Found),
    #[cfg(feature = "wgpu")]
    Wgpu(wgpu::Found),
}

/// Work that any backend can do.
pub trait Task {
    /// What it gives.
    type Output;
    /// Does it on `B`.
    fn run<B: TrainAd>(self, device: B::Device) -> Self::Output;
}

/// Finds the device that the options mean; `say` hears why `auto` passes over a GPU.
pub fn open(options: &DeviceOptions, mut say: impl FnMut(&str)) -> Result<Opened, BackendError> {
    match options.backend {
        BackendKind::Cpu => Ok(Opened::cpu()),
        BackendKind::Cuda => open_cuda(options.index),
        BackendKind::Wgpu => open_wgpu(options.index),
        BackendKind::Auto => {
            for open in [open_cuda, open_gpu_of_wgpu] {
                match open(options.index) {
                    Ok(opened) => return Ok(opened),
                    Err(BackendError::NotBuilt { .. }) => {}
                    Err(error) => say(&error.to_string()),
                }
            }
            Ok(Opened::cpu())
        }
    }
}

#[cfg(feature = "cuda")]
fn open_cuda(index: u32) -> Result<Opened, BackendError> {
    let found = cuda::find(index)?;
    kernels::keep();
    let name = format!("cuda:{index} ({})", found.name);
    let device = Device::Cuda(found);
    Ok(Opened { device, name })
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_index: u32) -> Result<Opened, BackendError> {
    Err(BackendError::NotBuilt {
        kind: BackendKind::Cuda,
    })
}

#[cfg(feature = "wgpu")]
fn open_wgpu(index: u32) -> Result<Opened, BackendError> {
    let found = wgpu::find(index)?;
    kernels::keep();
    let name = format!("wgpu:{index} ({})", found.name);
    let device = Device::Wgpu(found);
    Ok(Opened { device, name })
}

/// [`open_wgpu`], unless it would be a CPU's emulation of a GPU: burn's own CPU backend is many times faster than that.
#[cfg(feature = "wgpu")]
fn open_gpu_of_wgpu(index: u32) -> Result<Opened, BackendError> {
    match open_wgpu(index)? {
        Opened {
            device: Device::Wgpu(found),
            ..
        } if found.is_software() => Err(BackendError::NoDevice {
            kind: BackendKind::Wgpu,
            index,
            count: 0,
            names: Vec::new(),
        }),
        opened => Ok(opened),
    }
}

#[cfg(not(feature = "wgpu"))]
fn open_wgpu(_index: u32) -> Result<Opened, BackendError> {
    Err(BackendError::NotBuilt {
        kind: BackendKind::Wgpu,
    })
}

#[cfg(not(feature = "wgpu"))]
use open_wgpu as open_gpu_of_wgpu;

impl Opened {
    /// The CPU.
    pub fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            name: "cpu".to_owned(),
        }
    }

    /// Runs a task on burn's backend for the device.
    pub fn run<T: Task>(&self, task: T) -> T::Output {
        match &self.device {
            Device::Cpu => task.run::<CpuAd>(Default::default()),
            #[cfg(feature = "cuda")]
            Device::Cuda(found) => task.run::<cuda::CudaAd>(found.device()),
            #[cfg(feature = "wgpu")]
            Device::Wgpu(found) => task.run::<wgpu::WgpuAd>(found.device()),
        }
    }

    /// Memory for the feed's slots from which the device copies fastest.
    pub fn slot_memory(&self) -> Box<dyn SlotMemory> {
        match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(found) => Box::new(found.pinned_memory()),
            _ => Box::new(HeapMemory),
        }
    }

    /// Whether the network computes on the cores that the feed's workers need.
    pub fn shares_cores(&self) -> bool {
        matches!(self.device, Device::Cpu)
    }

    /// Refuses a precision that the device does not have.
    pub fn check(&self, precision: Precision) -> Result<(), BackendError> {
        struct Supports(Precision);
        impl Task for Supports {
            type Output = bool;
            fn run<B: TrainAd>(self, device: B::Device) -> bool {
                B::supports_dtype(&device, self.0.dtype())
            }
        }
        // Every backend has f32; asking a GPU would start it.
        if precision == Precision::F32 || self.run(Supports(precision)) {
            return Ok(());
        }
        Err(BackendError::Precision {
            device: self.name.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_always_finds_a_device_and_cpu_is_the_cpu() {
        let mut said = Vec::new();
        let opened = open(&DeviceOptions::default(), |text| said.push(text.to_owned())).unwrap();
        assert!(opened.shares_cores() == (opened.name == "cpu"), "{}", opened.name);
        // A GPU that is built in and not there is named, not passed over in silence.
        let built = usize::from(cfg!(feature = "cuda")) + usize::from(cfg!(feature = "wgpu"));
        assert!(!opened.shares_cores() || said.len() == built, "{said:?}");
        let options = DeviceOptions {
            backend: BackendKind::Cpu,
            index: 3,
        };
        assert_eq!(open(&options, |_| panic!("nothing to say")).unwrap().name, "cpu");
    }

    #[test]
    fn a_backend_that_was_not_built_is_named_with_its_feature() {
        for (kind, built) in [
            (BackendKind::Cuda, cfg!(feature = "cuda")),
            (BackendKind::Wgpu, cfg!(feature = "wgpu")),
        ] {
            let options = DeviceOptions {
                backend: kind,
                index: 0,
            };
            if !built {
                let error = open(&options, |_| {}).unwrap_err();
                assert_eq!(error, BackendError::NotBuilt { kind });
                assert!(error.hints()[0].contains(&format!("--features {kind}")));
            }
        }
    }
}
