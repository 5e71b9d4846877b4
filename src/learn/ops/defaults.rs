//! The training operations in stock burn operations: what a backend without kernels of its own computes.
//!
//! They are the specification that the kernels are tested against; a GPU takes them as they are.

use super::{ConvArgs, NormGrads, NormSaved, Normed, TrainOps, cast, matmul, primitive, tensor};
use burn::tensor::{DType, Slice, Tensor, TensorMetadata, backend::Backend, ops::ConvOptions, ops::FloatTensor, s};

fn options(args: ConvArgs) -> ConvOptions<2> {
    ConvOptions::new([args.stride; 2], [args.padding; 2], [1; 2], 1)
}

/// `[N, H, W, C]` as burn's `[N, C, H, W]`: the same values, seen otherwise.
fn channels_first<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_permute(x, &[0, 3, 1, 2])
}

fn channels_last<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_permute(x, &[0, 2, 3, 1])
}

pub(super) fn conv<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, args: ConvArgs) -> FloatTensor<B> {
    channels_last::<B>(B::conv2d(channels_first::<B>(x), weight, None, options(args)))
}

/// burn-cubecl 0.21 has a transposed convolution (`conv_transpose2d_direct`) that sums over nothing where the kernel is
/// smaller than the stride, and autotune takes it wherever it is fastest: the gradient behind a projection shortcut would be
/// zero. Such kernels go tap by tap.
pub(super) fn conv_input_grad<B: TrainOps>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    args: ConvArgs,
) -> FloatTensor<B> {
    let [.., kh, kw] = weight.shape().dims::<4>();
    if kh.min(kw) < args.stride {
        return primitive(conv_input_grad_by_taps::<B>(
            x.shape().dims(),
            tensor(weight),
            tensor(grad),
            args,
        ));
    }
    let [x, grad] = [x, grad].map(channels_first::<B>);
    channels_last::<B>(B::conv2d_x_backward(x, weight, grad, options(args)))
}

/// Each tap's share of the gradient `[N, H, W, C]` is a matrix product, added to every `stride`-th sample from the tap's place.
fn conv_input_grad_by_taps<B: TrainOps>(
    [n, h, w, c]: [usize; 4],
    weight: Tensor<B, 4>,
    grad: Tensor<B, 4>,
    ConvArgs { stride, padding }: ConvArgs,
) -> Tensor<B, 4> {
    let ([_, rows, columns, cout], [.., kh, kw]) = (grad.dims(), weight.dims());
    let reached = |tap, outputs| {
        Slice::new(
            tap as isize,
            Some((tap + (outputs - 1) * stride + 1) as isize),
            stride as isize,
        )
    };
    let grad = grad.reshape([n * rows * columns, cout]);
    let padded = [n, h + 2 * padding, w + 2 * padding, c];
    let mut sum = Tensor::zeros(padded, (&grad.device(), grad.dtype()));
    for (y, x) in (0..kh).flat_map(|y| (0..kw).map(move |x| (y, x))) {
        let tap = weight.clone().slice(s![.., .., y, x]).reshape([cout, c]);
        let share = matmul(grad.clone(), tap).reshape([n, rows, columns, c]);
        let at = s![.., reached(y, rows), reached(x, columns), ..];
        let so_far = sum.clone().slice(at);
        sum = sum.slice_assign(at, so_far + share);
    }
    sum.slice(s![.., padding..padding + h, padding..padding + w, ..])
}

pub(super) fn conv_weight_grad<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    args: ConvArgs,
) -> FloatTensor<B> {
    let [x, grad] = [x, grad].map(channels_first::<B>);
    B::conv2d_weight_backward(x, weight, grad, options(args))
}

pub(super) fn max_pool<B: Backend>(x: FloatTensor<B>, kernel: usize, args: ConvArgs) -> FloatTensor<B> {
    let ConvArgs { stride, padding } = args;
    let x = channels_first::<B>(x);
    channels_last::<B>(B::max_pool2d(x, [kernel; 2], [stride; 2], [padding; 2], [1; 2], false))
}

/// Finds anew where the largest values were.
pub(super) fn max_pool_grad<B: Backend>(
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
    kernel: usize,
    args: ConvArgs,
) -> FloatTensor<B> {
    let [x, grad] = [x, grad].map(channels_first::<B>);
    let [kernel, stride, padding] = [[kernel; 2], [args.stride; 2], [args.padding; 2]];
    let pooled = B::max_pool2d_with_indices(x.clone(), kernel, stride, padding, [1; 2], false);
    let back = B::max_pool2d_with_indices_backward(x, kernel, stride, padding, [1; 2], false, grad, pooled.indices);
    channels_last::<B>(back.x_grad)
}

pub(super) fn dense<B: TrainOps>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    B::matmul(x, B::float_transpose(weight))
}

pub(super) fn average<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = x.dtype();
    let [n, h, w, c] = x.shape().dims();
    let maps: Tensor<B, 3> = cast(tensor(B::float_reshape(x, [n, h * w, c].into())), DType::F32);
    primitive(cast(maps.mean_dim(1), dtype).reshape([n, c]))
}

pub(super) fn average_grad<B: Backend>(grad: FloatTensor<B>, [h, w]: [usize; 2]) -> FloatTensor<B> {
    let [n, c] = grad.shape().dims();
    let grad: Tensor<B, 2> = tensor(grad);
    let grad: Tensor<B, 4> = (grad / (h * w) as f64).reshape([n, 1, 1, c]);
    primitive(grad.expand([n, h, w, c]))
}

/// `[N, C]` or `[N, H, W, C]` as f32 `[rows, C]`.
fn rows<B: Backend>(x: FloatTensor<B>) -> Tensor<B, 2> {
    let shape = x.shape();
    let c = shape[shape.num_dims() - 1];
    let rows = shape.num_elements() / c.max(1);
    cast(tensor(B::float_reshape(x, [rows, c].into())), DType::F32)
}

/// `[rows, C]` in the given type and shape.
fn maps<B: Backend>(x: Tensor<B, 2>, dtype: DType, shape: burn::tensor::Shape) -> FloatTensor<B> {
    B::float_reshape(primitive(cast(x, dtype)), shape)
}

/// `[C]` as `[1, C]`.
fn channels<B: Backend>(x: FloatTensor<B>) -> Tensor<B, 2> {
    let c = x.shape()[0];
    tensor(B::float_reshape(x, [1, c].into()))
}

pub(super) fn norm<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    relu: bool,
    epsilon: f64,
) -> Normed<B> {
    let rows = rows::<B>(x.clone());
    let [_, c] = rows.dims();
    let mean = rows.clone().mean_dim(0);
    let centred = rows - mean.clone();
    let variance = (centred.clone() * centred).mean_dim(0);
    let scale = channels::<B>(gamma) / (variance.clone() + epsilon).sqrt();
    let shift = channels::<B>(beta) - mean.clone() * scale.clone();
    let flat = |t: Tensor<B, 2>| primitive(t.reshape([c]));
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
    let mut y = rows::<B>(x) * channels::<B>(scale) + channels::<B>(shift);
    if let Some(residual) = residual {
        y = y + rows::<B>(residual);
    }
    if relu {
        y = burn::tensor::activation::relu(y);
    }
    maps(y, dtype, shape)
}

pub(super) fn norm_grad<B: Backend>(saved: NormSaved<B>, grad: FloatTensor<B>) -> NormGrads<B> {
    let (shape, dtype) = (grad.shape(), grad.dtype());
    let mut grad = rows::<B>(grad);
    if let Some(output) = saved.rectified {
        let mask = rows::<B>(output).lower_equal_elem(0.0);
        grad = grad.mask_fill(mask, 0.0);
    }
    let [count, c] = grad.dims();
    let count = count as f64;
    let inverse = (channels::<B>(saved.variance) + saved.epsilon).sqrt().recip();
    let normalised = (rows::<B>(saved.input) - channels::<B>(saved.mean)) * inverse.clone();
    let beta = grad.clone().sum_dim(0);
    let gamma = (grad.clone() * normalised.clone()).sum_dim(0);
    let centred = grad.clone() - beta.clone() / count - normalised * (gamma.clone() / count);
    let input = centred * (channels::<B>(saved.gamma) * inverse);
    NormGrads {
        input: maps(input, dtype, shape.clone()),
        gamma: primitive(gamma.reshape([c])),
        beta: primitive(beta.reshape([c])),
        residual: saved.residual.then(|| maps(grad, dtype, shape)),
    }
}
