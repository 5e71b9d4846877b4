//! The training operations on `flex`, burn's CPU backend: its tensors as slices, in and out of the kernels.

use super::{
    ConvArgs, NormGrads, NormSaved, Normed, TrainOps,
    batch_norm::{self, After, Planes, Saved},
    conv::{self, ConvShape},
};
use crate::learn::input::{self, Normalize};
use burn::tensor::{TensorData, ops::FloatTensor};
use burn_flex::{Flex, FlexTensor};

/// The values of a contiguous f32 tensor.
fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.storage::<f32>()
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
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let shape = ConvShape::new(dims(&x), dims(&weight), args);
        let [c, h, w] = shape.output;
        from_vec(conv::forward(values(&x), values(&weight), shape), &[shape.n, c, h, w])
    }

    fn conv_input_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        args: ConvArgs,
    ) -> FloatTensor<Self> {
        let (weight, grad) = (weight.to_contiguous(), grad.to_contiguous());
        let shape = ConvShape::new(dims(&x), dims(&weight), args);
        from_vec(conv::input_grad(values(&grad), values(&weight), shape), dims(&x))
    }

    fn conv_weight_grad(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        args: ConvArgs,
    ) -> FloatTensor<Self> {
        let (x, grad) = (x.to_contiguous(), grad.to_contiguous());
        let shape = ConvShape::new(dims(&x), dims(&weight), args);
        from_vec(conv::weight_grad(values(&x), values(&grad), shape), dims(&weight))
    }

    fn norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
        relu: bool,
        epsilon: f64,
    ) -> Normed<Self> {
        let [x, gamma, beta] = [x, gamma, beta].map(|t| t.to_contiguous());
        let (mean, variance) = batch_norm::statistics(values(&x), Planes::of(dims(&x)));
        let (scale, shift) = batch_norm::scale_shift(values(&gamma), values(&beta), &mean, &variance, epsilon);
        let channels = [mean.len()];
        Normed {
            output: affine(x, &scale, &shift, residual, relu),
            mean: from_vec(mean, &channels),
            variance: from_vec(variance, &channels),
        }
    }

    fn norm_grad(saved: NormSaved<Self>, grad: FloatTensor<Self>) -> NormGrads<Self> {
        let shape = dims(&grad).to_vec();
        let planes = Planes::of(&shape);
        // The gradient's own buffer where nobody else holds it: no fresh pages, no copy.
        let mut grad = into_vec(grad);
        if let Some(output) = saved.rectified {
            batch_norm::mask(&mut grad, planes, values(&output.to_contiguous()));
        }
        let residual = saved.residual.then(|| from_vec(grad.clone(), &shape));
        let [x, gamma, mean, variance] =
            [saved.input, saved.gamma, saved.mean, saved.variance].map(|t| t.to_contiguous());
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
            input: from_vec(grads.input, &shape),
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
        let [x, scale, shift] = [x, scale, shift].map(|t| t.to_contiguous());
        affine(x, values(&scale), values(&shift), residual, relu)
    }

    fn images(pixels: &[u8], [h, w]: [usize; 2], by: Normalize, _device: &Self::Device) -> FloatTensor<Self> {
        from_vec(
            input::on_cpu(pixels, [h, w], by),
            &[pixels.len() / (h * w * 3), 3, h, w],
        )
    }
}

fn affine(x: FlexTensor, scale: &[f32], shift: &[f32], residual: Option<FlexTensor>, relu: bool) -> FlexTensor {
    let residual = residual.map(|r| r.to_contiguous());
    let after = After {
        residual: residual.as_ref().map(values),
        relu,
    };
    from_vec(
        batch_norm::affine(values(&x), Planes::of(dims(&x)), scale, shift, after),
        dims(&x),
    )
}
