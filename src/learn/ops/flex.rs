//! The training operations on `flex`, burn's CPU backend: its tensors as slices, in and out of the kernels.
//!
//! The kernels compute in f32. A bf16 tensor is widened, and the result rounded: what a GPU's matrix units do, at no gain in
//! speed. It is there so that a recipe in bf16 can be tried, and tested, anywhere.

use super::{
    ConvArgs, NormGrads, NormSaved, Normed, TrainOps,
    batch_norm::{self, After, Planes, Saved},
    cast_primitive,
    conv::{self, ConvShape},
    conv_weight, primitive,
};
use crate::learn::input::{self, Normalize, Pixels};
use burn::tensor::{DType, TensorData, ops::FloatTensor, ops::IntTensor};
use burn_flex::{Flex, FlexTensor};
use bytes::Bytes;
use pulp::Arch;
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
        rounded(from_vec(y, &[shape.n, c, h, w]), dtype)
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
        rounded(from_vec(dx, dims(&x)), dtype)
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
        rounded(from_vec(dw, dims(&weight)), dtype)
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
        let (mean, variance) = batch_norm::statistics(values(&x), Planes::of(dims(&x)));
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
        let planes = Planes::of(&shape);
        // The gradient's own buffer where nobody else holds it: no fresh pages, no copy.
        let mut grad = into_vec(cast_primitive::<Self>(grad, DType::F32));
        if let Some(output) = saved.rectified {
            batch_norm::mask(&mut grad, planes, values(&widened(output)));
        }
        let residual = saved.residual.then(|| rounded(from_vec(grad.clone(), &shape), dtype));
        let [x, gamma, mean, variance] = [saved.input, saved.gamma, saved.mean, saved.variance].map(widened);
        let saved = Saved {
            x: values(&x),
            gamma: values(&gamma),
            mean: values(&mean),
            variance: values(&variance),
            epsilon: saved.epsilon,
        };
        let grads = batch_norm::gradients(grad, planes, &saved);
        let channels = [grads.gamma.len()];
        NormGrads {
            input: rounded(from_vec(grads.input, &shape), dtype),
            gamma: from_vec(grads.gamma, &channels),
            beta: from_vec(grads.beta, &channels),
            residual,
        }
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

    // flex pools f32, not bf16.
    fn pooled_type(_dtype: DType) -> DType {
        DType::F32
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
                let shape = [range.len() / (h * w * 3), 3, h, w];
                from_vec(input::on_cpu(&bytes[range], [h, w], by), &shape)
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
    from_vec(
        batch_norm::affine(values(&x), Planes::of(dims(&x)), scale, shift, after),
        dims(&x),
    )
}
