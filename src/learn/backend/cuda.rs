//! CUDA: is everything there that burn takes for granted, which GPUs there are, and page-locked memory for the slots.
//!
//! Source of what is looked for: cudarc 0.19 (names of the driver's and the compiler's library), cubecl-cuda 0.10 (folders of
//! the headers). Both panic over what they do not find.
#![allow(unsafe_code)]

use super::{BackendError, BackendKind};
use crate::feed::{SlotBytes, SlotMemory};
use burn::backend::Autodiff;
use burn_cuda::{Cuda, CudaDevice};
use cudarc::driver::{CudaContext, DriverError, PinnedHostSlice};
use cudarc::{driver, nvrtc};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;

/// CUDA, with gradients.
pub(super) type CudaAd = Autodiff<Cuda<f32, i32>>;

/// A header without which no kernel compiles.
const HEADER: &str = "cuda_fp16.h";

/// A GPU that is there.
#[derive(Clone, Debug)]
pub(super) struct Found {
    index: usize,
    pub(super) name: String,
    context: Arc<CudaContext>,
}

impl Found {
    pub(super) fn device(&self) -> CudaDevice {
        CudaDevice::new(self.index)
    }

    pub(super) fn pinned_memory(&self) -> PinnedMemory {
        PinnedMemory(self.context.clone())
    }
}

/// The GPU of that number, once driver, compiler and headers are found.
pub(super) fn find(index: u32) -> Result<Found, BackendError> {
    check_libraries()?;
    let started = |error: DriverError| BackendError::Driver {
        kind: BackendKind::Cuda,
        reason: error.to_string(),
    };
    let count = CudaContext::device_count().map_err(started)? as usize;
    if index as usize >= count {
        return Err(BackendError::NoDevice {
            kind: BackendKind::Cuda,
            index,
            count,
            names: (0..count)
                .filter_map(|at| CudaContext::new(at).ok()?.name().ok())
                .collect(),
        });
    }
    // The primary context, which cubecl retains as well: memory locked in it is page-locked for its copies.
    let context = CudaContext::new(index as usize).map_err(started)?;
    let name = context.name().map_err(started)?;
    Ok(Found {
        index: index as usize,
        name,
        context,
    })
}

fn check_libraries() -> Result<(), BackendError> {
    let missing = |what, looked_for, install| {
        Err(BackendError::Missing {
            kind: BackendKind::Cuda,
            what,
            looked_for,
            install,
        })
    };
    // SAFETY: loads a library of the system by its name and unloads it; NVIDIA's run no code that relies on us.
    let (driver, compiler) = unsafe { (driver::sys::is_culib_present(), nvrtc::sys::is_culib_present()) };
    if !driver {
        return missing(
            "NVIDIA's driver",
            library_names("cuda"),
            "install NVIDIA's driver for the GPU; in a container, start it with `--gpus all`",
        );
    }
    if !compiler {
        return missing(
            "NVRTC, CUDA's run-time compiler",
            library_names("nvrtc"),
            "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc-cu12` and put the folder of its libnvrtc.so.12 into LD_LIBRARY_PATH",
        );
    }
    let folders = header_folders();
    if !folders.iter().any(|folder| folder.join(HEADER).is_file()) {
        return missing(
            "CUDA's headers",
            folders
                .iter()
                .map(|folder| folder.join(HEADER).display().to_string())
                .collect(),
            "install the CUDA toolkit, or `pip install nvidia-cuda-runtime-cu12` and set CUDA_PATH to its folder nvidia/cuda_runtime",
        );
    }
    Ok(())
}

/// The names that cudarc tries, without those of Windows.
fn library_names(stem: &str) -> Vec<String> {
    let names = cudarc::get_lib_name_candidates(stem);
    names.into_iter().filter(|name| !name.contains("64")).collect()
}

/// Where cubecl has the compiler look for headers.
fn header_folders() -> Vec<PathBuf> {
    match cubecl::cuda::install::cuda_path() {
        Some(path) => vec![path.join("include")],
        None => ["/usr/local/cuda", "/opt/cuda"]
            .map(|path| PathBuf::from(path).join("include"))
            .to_vec(),
    }
}

/// Page-locked memory: the GPU copies from it without the driver's own copy, and while the host goes on.
pub(super) struct PinnedMemory(Arc<CudaContext>);

struct PinnedBytes {
    /// Owns the allocation.
    _slice: PinnedHostSlice<u8>,
    start: NonNull<u8>,
    len: usize,
}

impl SlotMemory for PinnedMemory {
    fn allocate(&mut self, len: usize) -> Result<Box<dyn SlotBytes>, Box<dyn std::error::Error + Send + Sync>> {
        // No flags: write-combined memory would be slow to read back, and workers read while they write.
        // SAFETY: the bytes are not read before they are zeroed, just below.
        let mut slice = unsafe { self.0.alloc_pinned_with_flags::<u8>(len, 0) }?;
        let start = slice.as_mut_ptr()?;
        // SAFETY: `start` is the first of `len` bytes that were allocated just now and nobody else knows.
        unsafe { start.write_bytes(0, len) };
        Ok(Box::new(PinnedBytes {
            _slice: slice,
            start: NonNull::new(start).ok_or("the driver gave no memory")?,
            len,
        }))
    }
}

// SAFETY: a plain owner of bytes; the bytes are reached only through `as_ptr`, by the rules of `SlotBytes`. The slice is Send
// and Sync itself.
unsafe impl Send for PinnedBytes {}
// SAFETY: as above.
unsafe impl Sync for PinnedBytes {}

// SAFETY: the allocation is the driver's and stays where it is until the slice drops; `len` bytes, zeroed at allocation;
// `PinnedBytes` never touches them, and the device reads them only between `fly` and the drop of the bytes in flight.
unsafe impl SlotBytes for PinnedBytes {
    fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }
    fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_the_error_names_the_files_and_what_to_install() {
        match find(0) {
            Ok(found) => assert!(!found.name.is_empty()),
            Err(BackendError::Missing {
                looked_for, install, ..
            }) => {
                assert!(
                    looked_for
                        .iter()
                        .any(|name| name.contains(".so") || name.contains(HEADER)),
                    "{looked_for:?}"
                );
                assert!(install.starts_with("install"));
            }
            Err(other) => assert!(
                matches!(other, BackendError::Driver { .. } | BackendError::NoDevice { .. }),
                "{other}"
            ),
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        assert!(find(999).is_err());
    }
}
