//! Bytes to a GPU and numbers back, without burn's host copies and without waiting, and products that are not fused: for CUDA,
//! Vulkan and Metal alike.
//!
//! All other computing is left to burn (the default bodies, fused and autotuned). Its own way up copies a batch into pageable memory
//! first and its way down waits for the device, so both go one level deeper here, to cubecl's client.
//! Invariant: everything is put on the calling thread's stream, in order, so no event is needed between copy and kernels.

use super::{LateRead, TrainOps};
use crate::learn::input::Pixels;
use burn::tensor::{DType, TensorMetadata, ops::FloatTensor, ops::IntTensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement, tensor::CubeTensor};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, NoOp, get_client};
use burn_ir::{BackendIr, CustomOpIr, HandleContainer, InitOperationIr, OperationIr, OperationOutput, TensorIr};
use bytes::Bytes;
use cubecl::bytes::AllocationProperty;
use cubecl::device::Device;
use cubecl::device_handle::DeviceHandle;
use cubecl::future::block_on;
use cubecl::server::{ComputeServer, CopyDescriptor, Handle};
use cubecl::stream_id::StreamId;
use std::marker::PhantomData;

impl<R, F, I, T> TrainOps for Fusion<CubeBackend<R, F, I, T>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    /// The step that is computed, the one that waits behind it, and the host prepares the next.
    const RUN_AHEAD: usize = 2;

    fn upload(bytes: Bytes, device: &Self::Device) -> Pixels<IntTensor<Self>> {
        type Inner<R, F, I, T> = CubeBackend<R, F, I, T>;
        let shape = [bytes.len()];
        let cube = write::<R>(bytes, device);
        // As burn-fusion takes a tensor in that it did not make.
        let client = get_client::<Inner<R, F, I, T>>(device);
        let handle = <Inner<R, F, I, T> as BackendIr>::int_tensor_handle(cube);
        let made = InitOperationIr::create(shape.into(), DType::U8, || client.register_tensor_handle(handle));
        let mut tensors = client.register(
            OperationStreams::default(),
            OperationIr::Init(made),
            NoOp::<Inner<R, F, I, T>>::new(),
        );
        Pixels::Device(tensors.pop().expect("an Init gives one tensor"))
    }

    /// burn would fuse it with what follows, and one of the kernels among which autotune then chooses is wrong (CUDA, burn-cubecl-fusion
    /// 0.21, f32 `[16, 32] [32, 32]`: `fused_simple_multirows_Mma` or `fused_double_buffering_Cmma`). A foreign operation is not fused.
    fn matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        let client = lhs.client.clone();
        let streams = OperationStreams::with_inputs([&lhs, &rhs]);
        let shape = [lhs.shape()[0], rhs.shape()[1]];
        let out = TensorIr::uninit(client.create_empty_handle(), shape.into(), lhs.dtype());
        let desc = CustomOpIr::new("matmul", &[lhs.into_ir(), rhs.into_ir()], &[out]);
        let product = Product::<CubeBackend<R, F, I, T>>::new(desc.clone());
        client.register(streams, OperationIr::Custom(desc), product).output()
    }

    fn read_late(values: FloatTensor<Self>) -> LateRead {
        debug_assert_eq!(values.dtype(), DType::F32);
        let client = values.client.clone();
        let cube = client.resolve_tensor_float::<CubeBackend<R, F, I, T>>(values);
        let n = cube.meta.shape().num_elements();
        let (stream, server) = (StreamId::current(), DeviceHandle::<R::Server>::new(cube.device.to_id()));
        let from = CopyDescriptor::new(cube.handle.binding(), [n].into(), [1].into(), size_of::<f32>());
        // The copy is put on the stream here; what it gives only waits for it.
        let copied = server
            .submit_blocking(move |server| server.read(vec![from], stream))
            .unwrap_or_else(|error| panic!("the device failed: {error:?}"));
        LateRead(Box::new(move || {
            let bytes = block_on(copied).unwrap_or_else(|error| panic!("the device failed: {error}"));
            let values = bytes.iter().flat_map(|bytes| bytes.as_chunks::<4>().0);
            values.map(|&value| f64::from(f32::from_ne_bytes(value))).collect()
        }))
    }
}

/// A matrix product by itself.
#[derive(Debug)]
struct Product<B>(CustomOpIr, PhantomData<B>);

impl<B: FusionBackend> Product<B> {
    fn new(desc: CustomOpIr) -> Self {
        Self(desc, PhantomData)
    }
}

impl<B: FusionBackend> Operation<B::FusionRuntime> for Product<B> {
    fn execute(&self, handles: &mut HandleContainer<B::Handle>) {
        let ([lhs, rhs], [out]) = self.0.as_fixed();
        let [lhs, rhs] = [lhs, rhs].map(|of| handles.get_float_tensor::<B>(of));
        handles.register_float_tensor::<B>(&out.id, B::float_matmul(lhs, rhs));
    }
}

/// Puts the bytes on the device as a flat tensor of u8 (rows of three would be padded to sixteen). The device reads them
/// where they lie; they are dropped at the flush of the next upload at the latest, when they have been read.
fn write<R: CubeRuntime>(bytes: Bytes, device: &R::Device) -> CubeTensor<R> {
    let client = R::client(device);
    let (stream, n) = (StreamId::current(), bytes.len());
    let handle = Handle::new(stream, n as u64);
    let (memory, to) = (
        handle.memory.clone(),
        CopyDescriptor::new(handle.clone().binding(), [n].into(), [1].into(), 1),
    );
    let bytes = cubecl::bytes::Bytes::from_shared(bytes, AllocationProperty::Other);
    DeviceHandle::<R::Server>::new(device.to_id()).submit(move |server| {
        server.initialize_memory(memory, n as u64, stream);
        server.write(vec![(to, bytes)], stream);
    });
    // cubecl keeps uploads for two flushes, and flushes by itself every 64 MiB: a ring of small slots would run dry. The
    // flush waits for the copy before this one, which lies behind the step before the last: the device has work meanwhile.
    client
        .flush()
        .unwrap_or_else(|error| panic!("the device failed: {error}"));
    CubeTensor::new_contiguous(client, device.clone(), [n].into(), handle, DType::U8)
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use super::*;
    use crate::learn::input::{Normalize, Uploaded};
    use crate::learn::ops::primitive;
    use burn::backend::Flex;
    use burn::tensor::Tensor;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    type Gpu = burn_wgpu::Wgpu<f32, i32, u8>;

    const BY: Normalize = Normalize {
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    };

    /// Bytes that tell when they are dropped.
    struct Told(Vec<u8>, Arc<AtomicUsize>);

    impl AsRef<[u8]> for Told {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Told {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn uploads_arrive_bit_for_bit_and_their_bytes_come_back() {
        let (side, dropped) = (13, Arc::new(AtomicUsize::new(0)));
        for upload in 0..8 {
            let values: Vec<u8> = (0..2 * 3 * side * side * 3)
                .map(|i: usize| (((i + 1) * (2 * upload + 7)) >> 2) as u8)
                .collect();
            let host = Uploaded::<Flex>::new(Bytes::from(values.clone()), 2, side, &Default::default());
            let told = Bytes::from_owner(Told(values, dropped.clone()));
            let device = Uploaded::<Gpu>::new(told, 2, side, &Default::default());
            // The next upload's flush at the latest gives these bytes back: two slots are enough for a ring.
            assert!(dropped.load(Ordering::Relaxed) >= upload, "upload {upload}");
            for view in [1, 0, 1] {
                assert_eq!(device.view(view, BY).into_data(), host.view(view, BY).into_data());
            }
        }
    }

    #[test]
    fn a_late_read_sees_its_own_step_whatever_comes_after() {
        let device = Default::default();
        let mut x = Tensor::<Gpu, 1>::from_floats([1.0, -2.5, 1e30], &device);
        let mut reads = Vec::new();
        for _ in 0..5 {
            reads.push(Gpu::read_late(primitive(x.clone())));
            x = x * 2.0;
        }
        for (step, read) in reads.into_iter().enumerate() {
            let factor = f64::from(1 << step);
            let expected = [1.0, -2.5, f64::from(1e30_f32)].map(|value| value * factor);
            assert_eq!(read.wait(), expected);
        }
    }
}
