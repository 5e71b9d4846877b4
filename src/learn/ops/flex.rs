//! The training operations on `flex`, burn's CPU backend: its tensors as slices, in and out of the kernels.
//!
//! The kernels compute in f32. A bf16 tensor is widened, and the result rounded: what a GPU's matrix units do, at no gain in
//! speed. It is there so that a recipe in bf16 can be tried, and tested, anywhere.

use super::{
    ConvArgs, NormGrads, NormSaved, Normed, TrainOps,
    batch_norm::{self, After, Rows, Saved},
    buffers, cast_primitive,
    conv::{self, ConvShape},
    conv_weight,
    pool::{self, PoolShape},
    primitive,
};
use crate::learn::input::{self, Normalize, Pixels};
use burn::tensor::{DType, TensorData, ops::FloatTensor, ops::FloatTensorOps, ops::IntTensor};
use burn_flex::{Flex, FlexTensor};
use bytes::Bytes;
use pulp::Arch;
use rayon::prelude::*;
use std::ops::Range;

/// The values of a contiguous f32 tensor.
fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.storage::<f32>()
}

/// Contiguous, and f32.
fn widened(tensor: FlexTensor) -> FlexTensor {
    cast_primitive::<Flex>(tensor, DType::F32).to_contiguous()
}

/// A result in the type of what it was computed from.
fn rounded(tensor: FlexTensor, dtype: DType) -> FlexTensor {
    cast_primitive::<Flex>(tensor, dtype)
}

fn from_vec(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
}

fn into_vec(tensor: FlexTensor) -> Vec<f32> {
    tensor.into_data().into_vec().expect("the trainer's tensors are f32")
}

/// Keeps the buffer of a tensor that nobody else holds: the next operation's result may take it.
fn recycle(tensor: FlexTensor) {
    let whole = tensor.is_contiguous() && tensor.bytes().len() == 4 * tensor.layout().num_elements();
    if tensor.dtype() == DType::F32 && tensor.is_unique() && whole {
        buffers::give(into_vec(tensor));
    }
}

fn dims(tensor: &FlexTensor) -> &[usize] {
    tensor.layout().shape().as_slice()
}

impl TrainOps for Flex {
    fn conv(x: FloatTensor<Self>, weight: FloatTensor<Self>, args: ConvArgs) -> FloatTensor<Self> {
        let dtype = x.dtype();
        let (x, weight) = (widened(x), widened(weight));
        let shape = ConvShape::new(dims(&x), dims(&weight), args);
        let [c, h, w] = shape.output;
        let y = conv::forward(Arch::new(), values(&x), values(&weight), shape);
        recycle(x);
        rounded(from_vec(y, &[shape.n, h, w, c]), dtype)
    }

    fn conv_input_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        args: ConvArgs,
    ) -> FloatTensor<Self> {
        let dtype = grad.dtype();
        let (weight, grad) = (widened(weight), widened(grad));
        let shape = ConvShape::new(dims(&x), dims(&weight), args);
        let dx = conv::input_grad(Arch::new(), values(&grad), values(&weight), shape);
        let dx = from_vec(dx, dims(&x));
        [x, grad].into_iter().for_each(recycle);
        rounded(dx, dtype)
    }

    fn conv_weight_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        args: ConvArgs,
    ) -> FloatTensor<Self> {
        let dtype = grad.dtype();
        let (x, grad) = (widened(x), widened(grad));
        let shape = ConvShape::new(dims(&x), dims(&weight), args);
        let dw = conv_weight::weight_grad(Arch::new(), values(&x), values(&grad), shape);
        [x, grad].into_iter().for_each(recycle);
        rounded(from_vec(dw, dims(&weight)), dtype)
    }

    fn average(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let (dtype, x) = (x.dtype(), widened(x));
        let &[n, h, w, c] = dims(&x) else {
            panic!("an average of a map of rank {}", dims(&x).len())
        };
        let means = pool::average(values(&x), h * w, c);
        recycle(x);
        rounded(from_vec(means, &[n, c]), dtype)
    }

    fn average_grad(grad: FloatTensor<Self>, [h, w]: [usize; 2]) -> FloatTensor<Self> {
        let (dtype, grad) = (grad.dtype(), widened(grad));
        let (n, c) = (dims(&grad)[0], dims(&grad)[1]);
        let dx = pool::average_grad(values(&grad), h * w, c);
        rounded(from_vec(dx, &[n, h, w, c]), dtype)
    }

    fn norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
        relu: bool,
        epsilon: f64,
    ) -> Normed<Self> {
        let dtype = x.dtype();
        let [x, gamma, beta] = [x, gamma, beta].map(widened);
        let (mean, variance) = batch_norm::statistics(values(&x), Rows::of(dims(&x)));
        let (scale, shift) = batch_norm::scale_shift(values(&gamma), values(&beta), &mean, &variance, epsilon);
        let channels = [mean.len()];
        Normed {
            output: rounded(affine(x, &scale, &shift, residual, relu), dtype),
            mean: from_vec(mean, &channels),
            variance: from_vec(variance, &channels),
        }
    }

    fn norm_grad(saved: NormSaved<Self>, grad: FloatTensor<Self>) -> NormGrads<Self> {
        let (shape, dtype) = (dims(&grad).to_vec(), grad.dtype());
        // The gradient's own buffer where nobody else holds it: no fresh pages, no copy.
        let grad = into_vec(cast_primitive::<Self>(grad, DType::F32));
        let rectified = saved.rectified.map(widened);
        let [x, gamma, mean, variance] = [saved.input, saved.gamma, saved.mean, saved.variance].map(widened);
        let passed = Saved {
            x: values(&x),
            rectified: rectified.as_ref().map(values),
            gamma: values(&gamma),
            mean: values(&mean),
            variance: values(&variance),
            epsilon: saved.epsilon,
            residual: saved.residual,
        };
        let grads = batch_norm::gradients(grad, Rows::of(&shape), &passed);
        [Some(x), rectified].into_iter().flatten().for_each(recycle);
        let residual = grads.residual.map(|grad| rounded(from_vec(grad, &shape), dtype));
        let channels = [grads.gamma.len()];
        NormGrads {
            input: rounded(from_vec(grads.input, &shape), dtype),
            gamma: from_vec(grads.gamma, &channels),
            beta: from_vec(grads.beta, &channels),
            residual,
        }
    }

    fn accumulate(sum: FloatTensor<Self>, other: FloatTensor<Self>) -> FloatTensor<Self> {
        if sum.dtype() != DType::F32 {
            return Self::float_add(sum, other);
        }
        const CHUNK: usize = 1 << 15;
        let other = other.to_contiguous();
        let shape = dims(&sum).to_vec();
        // Its own buffer where nobody else holds it.
        let mut values_of = into_vec(sum);
        values_of
            .par_chunks_mut(CHUNK)
            .zip(values(&other).par_chunks(CHUNK))
            .for_each(|(sum, other)| sum.iter_mut().zip(other).for_each(|(a, b)| *a += b));
        recycle(other);
        from_vec(values_of, &shape)
    }

    fn affine(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
        relu: bool,
    ) -> FloatTensor<Self> {
        let dtype = x.dtype();
        let [x, scale, shift] = [x, scale, shift].map(widened);
        rounded(affine(x, values(&scale), values(&shift), residual, relu), dtype)
    }

    fn max_pool(x: FloatTensor<Self>, kernel: usize, args: ConvArgs) -> FloatTensor<Self> {
        let (dtype, n) = (x.dtype(), dims(&x)[0]);
        let shape = PoolShape::new(dims(&x), kernel, args);
        let [c, h, w] = shape.output;
        let y = pool::max_pool(values(&widened(x)), shape);
        rounded(from_vec(y, &[n, h, w, c]), dtype)
    }

    fn max_pool_grad(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kernel: usize,
        args: ConvArgs,
    ) -> FloatTensor<Self> {
        let dtype = grad.dtype();
        let [x, y, grad] = [x, y, grad].map(widened);
        let shape = PoolShape::new(dims(&x), kernel, args);
        let dx = pool::max_pool_grad(values(&x), values(&y), values(&grad), shape);
        let dx = from_vec(dx, dims(&x));
        [x, y, grad].into_iter().for_each(recycle);
        rounded(dx, dtype)
    }

    // They are where they are computed.
    fn upload(bytes: Bytes, _device: &Self::Device) -> Pixels<IntTensor<Self>> {
        Pixels::Host(bytes)
    }

    fn images(
        pixels: &Pixels<IntTensor<Self>>,
        range: Range<usize>,
        [h, w]: [usize; 2],
        by: Normalize,
        device: &Self::Device,
    ) -> FloatTensor<Self> {
        match pixels {
            Pixels::Host(bytes) => {
                let shape = [range.len() / (h * w * 3), h, w, 3];
                let mut maps = buffers::take(range.len());
                input::on_cpu(&bytes[range], by, &mut maps);
                from_vec(maps, &shape)
            }
            Pixels::Device(_) => primitive(input::on_device::<Self>(pixels, range, [h, w], by, device)),
        }
    }
}

fn affine(x: FlexTensor, scale: &[f32], shift: &[f32], residual: Option<FlexTensor>, relu: bool) -> FlexTensor {
    let residual = residual.map(widened);
    let after = After {
        residual: residual.as_ref().map(values),
        relu,
    };
    let y = batch_norm::affine(values(&x), Rows::of(dims(&x)), scale, shift, after);
    let y = from_vec(y, dims(&x));
    [Some(x), residual].into_iter().flatten().for_each(recycle);
    y
}
