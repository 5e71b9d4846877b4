//! The training operations on `flex`, burn's CPU backend: its tensors as slices, in and out of the kernels.

use super::{
    ConvArgs, TrainOps,
    conv::{self, ConvShape},
};
use burn::tensor::{TensorData, ops::FloatTensor};
use burn_flex::{Flex, FlexTensor};

/// The values of a contiguous f32 tensor.
fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.storage::<f32>()
}

fn from_vec(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
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
}
