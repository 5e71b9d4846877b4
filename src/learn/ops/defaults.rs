//! The training operations in stock burn operations: what a backend without kernels of its own computes.
//!
//! They are the specification that the kernels are tested against; a GPU takes them as they are.

use super::{ConvArgs, NormGrads, NormSaved, Normed, cast, primitive, tensor};
use burn::tensor::{DType, Tensor, TensorMetadata, backend::Backend, ops::ConvOptions, ops::FloatTensor};

fn options(args: ConvArgs) -> ConvOptions<2> {
    ConvOptions::new([args.stride; 2], [args.padding; 2], [1; 2], 1)
}

pub(super) fn conv<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, args: ConvArgs) -> FloatTensor<B> {
    B::conv2d(x, weight, None, options(args))
}

pub(super) fn conv_input_grad<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    args: ConvArgs,
) -> FloatTensor<B> {
    B::conv2d_x_backward(x, weight, grad, options(args))
}

pub(super) fn conv_weight_grad<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    args: ConvArgs,
) -> FloatTensor<B> {
    B::conv2d_weight_backward(x, weight, grad, options(args))
}

/// `[N, C]` or `[N, C, H, W]` as f32 `[N, C, P]`, P pixels.
fn planes<B: Backend>(x: FloatTensor<B>) -> Tensor<B, 3> {
    let shape = x.shape();
    let (n, c) = (shape[0], shape[1]);
    let pixels = shape.num_elements() / (n * c).max(1);
    cast(tensor(B::float_reshape(x, [n, c, pixels].into())), DType::F32)
}

/// `[N, C, P]` in the given type and shape.
fn maps<B: Backend>(x: Tensor<B, 3>, dtype: DType, shape: burn::tensor::Shape) -> FloatTensor<B> {
    B::float_reshape(primitive(cast(x, dtype)), shape)
}

/// `[C]` as `[1, C, 1]`.
fn channels<B: Backend>(x: FloatTensor<B>) -> Tensor<B, 3> {
    let c = x.shape()[0];
    tensor(B::float_reshape(x, [1, c, 1].into()))
}

/// Sum over samples and pixels: `[N, C, P]` to `[1, C, 1]`.
fn sum_channels<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    x.sum_dim(2).sum_dim(0)
}

pub(super) fn norm<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    relu: bool,
    epsilon: f64,
) -> Normed<B> {
    let planes = planes::<B>(x.clone());
    let [n, c, pixels] = planes.dims();
    let count = (n * pixels) as f64;
    let mean = sum_channels(planes.clone()) / count;
    let centred = planes - mean.clone();
    let variance = sum_channels(centred.clone() * centred) / count;
    let scale = channels::<B>(gamma) / (variance.clone() + epsilon).sqrt();
    let shift = channels::<B>(beta) - mean.clone() * scale.clone();
    let flat = |t: Tensor<B, 3>| primitive(t.reshape([c]));
    Normed {
        output: affine::<B>(x, flat(scale), flat(shift), residual, relu),
        mean: flat(mean.detach()),
        variance: flat(variance.detach()),
    }
}

pub(super) fn affine<B: Backend>(
    x: FloatTensor<B>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    relu: bool,
) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let mut y = planes::<B>(x) * channels::<B>(scale) + channels::<B>(shift);
    if let Some(residual) = residual {
        y = y + planes::<B>(residual);
    }
    if relu {
        y = burn::tensor::activation::relu(y);
    }
    maps(y, dtype, shape)
}

pub(super) fn norm_grad<B: Backend>(saved: NormSaved<B>, grad: FloatTensor<B>) -> NormGrads<B> {
    let (shape, dtype) = (grad.shape(), grad.dtype());
    let mut grad = planes::<B>(grad);
    if let Some(output) = saved.rectified {
        let mask = planes::<B>(output).lower_equal_elem(0.0);
        grad = grad.mask_fill(mask, 0.0);
    }
    let [n, c, pixels] = grad.dims();
    let count = (n * pixels) as f64;
    let inverse = (channels::<B>(saved.variance) + saved.epsilon).sqrt().recip();
    let normalised = (planes::<B>(saved.input) - channels::<B>(saved.mean)) * inverse.clone();
    let beta = sum_channels(grad.clone());
    let gamma = sum_channels(grad.clone() * normalised.clone());
    let centred = grad.clone() - beta.clone() / count - normalised * (gamma.clone() / count);
    let input = centred * (channels::<B>(saved.gamma) * inverse);
    NormGrads {
        input: maps(input, dtype, shape.clone()),
        gamma: primitive(gamma.reshape([c])),
        beta: primitive(beta.reshape([c])),
        residual: saved.residual.then(|| maps(grad, dtype, shape)),
    }
}
