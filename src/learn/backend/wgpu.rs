//! Vulkan (Linux, Windows) or Metal (macOS): which adapters there are.

use super::{BackendError, BackendKind};
use burn::backend::Autodiff;
use burn_wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
use burn_wgpu::{Wgpu, WgpuDevice};
use wgpu::{DeviceType, Instance, InstanceDescriptor};

/// wgpu, with gradients. Booleans are bytes, as SPIR-V and Metal have them.
pub(super) type WgpuAd = Autodiff<Wgpu<f32, i32, u8>>;

/// An adapter.
#[derive(Clone, Debug)]
pub(super) struct Found {
    device: WgpuDevice,
    pub(super) name: String,
}

impl Found {
    pub(super) fn device(&self) -> WgpuDevice {
        self.device.clone()
    }

    /// A CPU that computes as a GPU would, such as Mesa's lavapipe.
    pub(super) fn is_software(&self) -> bool {
        self.device == WgpuDevice::Cpu
    }
}

/// The adapter of that number: discrete GPUs first, then integrated and virtual ones, software last.
pub(super) fn find(index: u32) -> Result<Found, BackendError> {
    let adapters = adapters();
    let count = adapters.len();
    let names = adapters.iter().map(|found| found.name.clone()).collect();
    adapters.into_iter().nth(index as usize).ok_or(BackendError::NoDevice {
        kind: BackendKind::Wgpu,
        index,
        count,
        names,
    })
}

/// All adapters of the graphics interface that burn uses here.
fn adapters() -> Vec<Found> {
    let backends = AutoGraphicsApi::backend().into();
    let instance = Instance::new(InstanceDescriptor {
        backends,
        ..InstanceDescriptor::new_without_display_handle()
    });
    let infos: Vec<_> = cubecl::future::block_on(instance.enumerate_adapters(backends))
        .iter()
        .map(wgpu::Adapter::get_info)
        .collect();
    // burn numbers the adapters of each type by themselves.
    let of_type = |kind: DeviceType, device: fn(usize) -> WgpuDevice| {
        let same = infos.iter().filter(move |info| info.device_type == kind);
        same.enumerate().map(move |(at, info)| Found {
            device: device(at),
            name: format!("{}, {}", info.name, info.backend),
        })
    };
    of_type(DeviceType::DiscreteGpu, WgpuDevice::DiscreteGpu)
        .chain(of_type(DeviceType::IntegratedGpu, WgpuDevice::IntegratedGpu))
        .chain(of_type(DeviceType::VirtualGpu, WgpuDevice::VirtualGpu))
        .chain(of_type(DeviceType::Cpu, |_| WgpuDevice::Cpu).take(1))
        .collect()
}
