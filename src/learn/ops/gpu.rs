//! Bytes to a GPU and numbers back, without burn's host copies and without waiting: for CUDA, Vulkan and Metal alike.
//!
//! Computing is left to burn (the default bodies, fused and autotuned). Its own way up copies a batch into pageable memory
//! first and its way down waits for the device, so both go one level deeper here, to cubecl's client.
//! Invariant: everything is put on the calling thread's stream, in order, so no event is needed between copy and kernels.

use super::{LateRead, TrainOps};
use crate::learn::input::Pixels;
use burn::tensor::{DType, TensorMetadata, ops::FloatTensor, ops::IntTensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement, tensor::CubeTensor};
use burn_fusion::{Fusion, NoOp, get_client, stream::OperationStreams};
use burn_ir::{BackendIr, InitOperationIr, OperationIr};
use bytes::Bytes;
use cubecl::bytes::AllocationProperty;
use cubecl::device::Device;
use cubecl::device_handle::DeviceHandle;
use cubecl::future::block_on;
use cubecl::server::{ComputeServer, CopyDescriptor, Handle};
use cubecl::stream_id::StreamId;

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
    use crate::learn::ops::tests::{difference, hash};
    use crate::learn::ops::{ConvArgs, primitive, tensor};
    use burn::backend::Flex;
    use burn::tensor::{Tensor, TensorData};
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

    /// Which kernel computes depends on what was fastest: whatever autotune may take has to be right.
    #[test]
    fn convolutions_and_their_gradients_equal_the_cpus() {
        // (N, Cin, H, W, Cout, kernel, stride, padding): a residual network's, and a kernel between gaps.
        let shapes = [
            [4, 3, 15, 15, 8, 7, 2, 3],
            [4, 8, 8, 8, 8, 3, 1, 1],
            [4, 8, 9, 8, 16, 3, 2, 1],
            [4, 8, 9, 8, 16, 1, 2, 0],
            [4, 16, 8, 8, 8, 1, 1, 0],
            [2, 3, 6, 7, 4, 3, 4, 1],
        ];
        for [n, cin, h, w, cout, kernel, stride, padding] in shapes {
            let args = ConvArgs { stride, padding };
            let [rows, columns] = [h, w].map(|side| args.output(side, kernel));
            let given = [
                ([n, h, w, cin], 1),
                ([cout, cin, kernel, kernel], 2),
                ([n, rows, columns, cout], 3),
            ];
            let given = given.map(|(shape, salt)| TensorData::new(hash(shape.iter().product(), salt), shape));
            for (which, (gpu, cpu)) in all_three::<Gpu>(&given, args)
                .iter()
                .zip(all_three::<Flex>(&given, args))
                .enumerate()
            {
                assert!(difference(gpu, &cpu) < 1e-5, "{which}: a kernel of {kernel}, {args:?}");
            }
        }
    }

    /// Output, input gradient and weight gradient of a convolution of `[x, weight, grad]`.
    fn all_three<B: TrainOps>([x, weight, grad]: &[TensorData; 3], args: ConvArgs) -> [Vec<f32>; 3] {
        let [x, weight, grad] =
            [x, weight, grad].map(|data| primitive(Tensor::<B, 4>::from_data(data.clone(), &Default::default())));
        [
            B::conv(x.clone(), weight.clone(), args),
            B::conv_input_grad(x.clone(), weight.clone(), grad.clone(), args),
            B::conv_weight_grad(x, weight, grad, args),
        ]
        .map(|result| tensor::<B, 4>(result).into_data().to_vec().unwrap())
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
