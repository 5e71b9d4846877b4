//! Training operations of our own: convolution, batch norm fused with what follows it, and the loss.
//!
//! In and out: burn's float primitives; maps have their channels last, as the fast kernels of every device want them. Default bodies are stock burn operations, so that any backend trains; `flex` (the
//! CPU) overrides them with kernels, because stock batch norm and weight gradients would cost three quarters of a step
//! there. `Autodiff<B>` joins forward and backward in `autodiff`; `gpu` takes bytes to a device and numbers back.
//! Maps and weights may be bf16, their results are then bf16 as well; scales, shifts, statistics and their gradients are f32.
//! Invariant: a result depends on its inputs alone, never on the number of threads.

mod autodiff;
mod batch_norm;
mod buffers;
mod conv;
mod conv_weight;
mod defaults;
mod flex;
mod gather;
#[cfg(feature = "gpu")]
mod gpu;
mod pool;
mod strips;
mod transform;
mod winograd;

pub(crate) use conv::workspace;

use super::input::{self, Normalize, Pixels};
use super::vicreg::{LossOptions, LossTerms, closed_form};
use burn::tensor::{
    DType, FloatDType, Tensor, TensorMetadata, TensorPrimitive,
    backend::{AutodiffBackend, Backend},
    ops::{FloatTensor, IntTensor},
};
use bytes::Bytes;
use std::ops::Range;

/// Stride and zero padding of a square-strided convolution, both axes alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvArgs {
    /// Step between neighbouring outputs, at least 1.
    pub stride: usize,
    /// Zeros added on each side.
    pub padding: usize,
}

impl ConvArgs {
    /// Outputs along an axis of `input` samples under a kernel of `kernel` taps.
    ///
    /// # Panics
    /// When the padded input is shorter than the kernel: the caller's network does not fit its images.
    pub fn output(&self, input: usize, kernel: usize) -> usize {
        let padded = input + 2 * self.padding;
        assert!(
            padded >= kernel,
            "a kernel of {kernel} does not fit {input} samples with padding {}",
            self.padding
        );
        (padded - kernel) / self.stride + 1
    }
}

/// What batch norm in training gives.
#[derive(Clone, Debug)]
pub struct Normed<B: Backend> {
    /// Normalised, scaled and shifted (then with the residual added, then rectified), shaped as the input.
    pub output: FloatTensor<B>,
    /// Mean by channel, `[C]`; carries no gradient.
    pub mean: FloatTensor<B>,
    /// Biased variance by channel, `[C]`; carries no gradient.
    pub variance: FloatTensor<B>,
}

/// What batch norm's backward pass needs.
#[derive(Clone, Debug)]
pub struct NormSaved<B: Backend> {
    /// The input, `[N, C]` or `[N, H, W, C]`.
    pub input: FloatTensor<B>,
    /// The output where it was rectified: its sign is the mask.
    pub rectified: Option<FloatTensor<B>>,
    /// Scale by channel, `[C]`.
    pub gamma: FloatTensor<B>,
    /// Mean by channel, `[C]`.
    pub mean: FloatTensor<B>,
    /// Biased variance by channel, `[C]`.
    pub variance: FloatTensor<B>,
    /// Added to the variance.
    pub epsilon: f64,
    /// Whether a residual was added, whose gradient is wanted.
    pub residual: bool,
}

/// Gradients of batch norm's inputs.
#[derive(Clone, Debug)]
pub struct NormGrads<B: Backend> {
    /// Of the input, shaped as it.
    pub input: FloatTensor<B>,
    /// Of the scale, `[C]`.
    pub gamma: FloatTensor<B>,
    /// Of the shift, `[C]`.
    pub beta: FloatTensor<B>,
    /// Of the residual, if there was one: the gradient behind the rectifier.
    pub residual: Option<FloatTensor<B>>,
}

/// A backend that trains our networks. `x` is `[N, H, W, Cin]`, a kernel `[Cout, Cin, Kh, Kw]` as in PyTorch, an output
/// `[N, Ho, Wo, Cout]`; batch norm takes `[N, C]` as well.
pub trait TrainOps: Backend {
    /// Convolution (cross-correlation, as the field calls it), without bias, one group.
    fn conv(x: FloatTensor<Self>, weight: FloatTensor<Self>, args: ConvArgs) -> FloatTensor<Self> {
        defaults::conv::<Self>(x, weight, args)
    }

    /// Gradient of the convolution's input. Of `x` only the shape matters.
    fn conv_input_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        args: ConvArgs,
    ) -> FloatTensor<Self> {
        defaults::conv_input_grad::<Self>(x, weight, grad, args)
    }

    /// Gradient of the convolution's kernel. Of `weight` only the shape matters.
    fn conv_weight_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        args: ConvArgs,
    ) -> FloatTensor<Self> {
        defaults::conv_weight_grad::<Self>(x, weight, grad, args)
    }

    /// Matrix product of `[M, K]` and `[K, N]`.
    fn matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(lhs, rhs)
    }

    /// A linear layer: `x weight^T`, rows `[N, in]` and a weight `[out, in]`, as in PyTorch, to `[N, out]`.
    fn dense(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        defaults::dense::<Self>(x, weight)
    }

    /// Gradient of a linear layer's input, `[N, in]`.
    fn dense_input_grad(weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::matmul(grad, weight)
    }

    /// Gradient of a linear layer's weight, `[out, in]`, laid out as the weight: the optimiser would pay for a transposed one.
    fn dense_weight_grad(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::matmul(Self::float_transpose(grad), x)
    }

    /// Averages of maps `[N, H, W, C]`, `[N, C]`, taken in f32.
    fn average(x: FloatTensor<Self>) -> FloatTensor<Self> {
        defaults::average::<Self>(x)
    }

    /// Gradient of the maps of which [`TrainOps::average`] was taken, of `side` (height, width) pixels.
    fn average_grad(grad: FloatTensor<Self>, side: [usize; 2]) -> FloatTensor<Self> {
        defaults::average_grad::<Self>(grad, side)
    }

    /// Batch norm with the batch's own statistics, taken in f32 whatever the type of `x` (Ioffe and Szegedy 2015, algorithm 1): the biased variance normalises, then
    /// `y = gamma (x - mean) / sqrt(var + epsilon) + beta`, then `+ residual` if given, then `max(0, .)` if `relu`.
    fn norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
        relu: bool,
        epsilon: f64,
    ) -> Normed<Self> {
        defaults::norm::<Self>(x, gamma, beta, residual, relu, epsilon)
    }

    /// Gradients of [`TrainOps::norm`], in closed form:
    /// `dx = gamma / sqrt(var + eps) (g - mean(g) - xhat mean(g xhat))`, `dgamma = sum(g xhat)`, `dbeta = sum(g)`.
    fn norm_grad(saved: NormSaved<Self>, grad: FloatTensor<Self>) -> NormGrads<Self> {
        defaults::norm_grad::<Self>(saved, grad)
    }

    /// Sum of two gradients of one map: where a residual block begins.
    fn accumulate(sum: FloatTensor<Self>, other: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(sum, other)
    }

    /// `x scale + shift` by channel, then the residual, then the rectifier: batch norm with running statistics.
    fn affine(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
        relu: bool,
    ) -> FloatTensor<Self> {
        defaults::affine::<Self>(x, scale, shift, residual, relu)
    }

    /// The VICReg loss of embeddings `[N, D]`, in closed form; see [`crate::learn::vicreg`].
    fn vicreg(z: FloatTensor<Self>, z_prime: FloatTensor<Self>, options: &LossOptions) -> LossTerms<Self> {
        closed_form::<Self>(tensor(z), tensor(z_prime), options, false).0
    }

    /// Max-pool by a square kernel.
    fn max_pool(x: FloatTensor<Self>, kernel: usize, args: ConvArgs) -> FloatTensor<Self> {
        defaults::max_pool::<Self>(x, kernel, args)
    }

    /// Gradient of the pool's input; `y` is what [`TrainOps::max_pool`] made of `x`.
    fn max_pool_grad(
        x: FloatTensor<Self>,
        _y: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kernel: usize,
        args: ConvArgs,
    ) -> FloatTensor<Self> {
        defaults::max_pool_grad::<Self>(x, grad, kernel, args)
    }

    /// How many steps the host may be ahead of the device when it reads a step's metrics: none where it computes itself.
    const RUN_AHEAD: usize = 0;

    /// Takes a batch's bytes to where the kernels run. The bytes are dropped as soon as nobody needs them, perhaps later than
    /// this call returns and on another thread.
    fn upload(bytes: Bytes, device: &Self::Device) -> Pixels<IntTensor<Self>> {
        Pixels::Device(input::copied::<Self>(&bytes, device))
    }

    /// The images `[N, H, W, 3]` that lie in `range` of the batch's bytes, as normalised maps; see [`crate::learn::input`].
    fn images(
        pixels: &Pixels<IntTensor<Self>>,
        range: Range<usize>,
        size: [usize; 2],
        by: Normalize,
        device: &Self::Device,
    ) -> FloatTensor<Self> {
        primitive(input::on_device::<Self>(pixels, range, size, by, device))
    }

    /// Begins to read a small tensor. The values are asked for later, when the device has long computed them: nobody waits.
    fn read_late(values: FloatTensor<Self>) -> LateRead {
        let values: Tensor<Self, 1> = tensor(values);
        LateRead(Box::new(move || values.into_data().iter::<f64>().collect()))
    }
}

/// A backend that the loop can train on: with gradients, around one that computes.
pub trait TrainAd: TrainOps + AutodiffBackend<InnerBackend: TrainOps> {}
impl<B: TrainOps + AutodiffBackend<InnerBackend: TrainOps>> TrainAd for B {}

/// Values on their way from the device.
pub struct LateRead(Box<dyn FnOnce() -> Vec<f64>>);

impl LateRead {
    /// The values; waits for what is not there yet.
    pub fn wait(self) -> Vec<f64> {
        (self.0)()
    }
}

/// Weights in the type in which `x` is computed: the masters are f32. The gradient comes back as f32.
pub(crate) fn as_computed<B: Backend, const D: usize, const E: usize>(
    weight: Tensor<B, D>,
    x: &Tensor<B, E>,
) -> Tensor<B, D> {
    cast(weight, x.dtype())
}

/// The same values in another type; nothing where it is the same.
pub(crate) fn cast<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    x.cast(FloatDType::from(dtype))
}

/// [`cast`] of a primitive, without gradient.
pub(crate) fn cast_primitive<B: Backend>(x: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if x.dtype() == dtype {
        x
    } else {
        B::float_cast(x, dtype.into())
    }
}

/// [`TrainOps::conv`] on tensors.
pub fn conv2d<B: TrainOps>(x: Tensor<B, 4>, weight: Tensor<B, 4>, args: ConvArgs) -> Tensor<B, 4> {
    tensor(B::conv(primitive(x), primitive(weight), args))
}

/// [`TrainOps::max_pool`] on tensors.
pub(crate) fn max_pool<B: TrainOps>(x: Tensor<B, 4>, kernel: usize, args: ConvArgs) -> Tensor<B, 4> {
    tensor(B::max_pool(primitive(x), kernel, args))
}

/// [`TrainOps::dense`] on tensors.
pub(crate) fn linear<B: TrainOps>(x: Tensor<B, 2>, weight: Tensor<B, 2>) -> Tensor<B, 2> {
    tensor(B::dense(primitive(x), primitive(weight)))
}

/// [`TrainOps::matmul`] on tensors.
pub(crate) fn matmul<B: TrainOps>(lhs: Tensor<B, 2>, rhs: Tensor<B, 2>) -> Tensor<B, 2> {
    tensor(B::matmul(primitive(lhs), primitive(rhs)))
}

/// [`TrainOps::average`] on tensors.
pub(crate) fn average<B: TrainOps>(x: Tensor<B, 4>) -> Tensor<B, 2> {
    tensor(B::average(primitive(x)))
}

/// A tensor's float primitive.
pub(crate) fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// A tensor around a float primitive of rank `D`.
pub(crate) fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

#[cfg(test)]
pub(crate) mod tests;
