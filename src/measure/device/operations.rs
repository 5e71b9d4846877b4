//! Every operation of a training step on a device, held to the CPU's: which one is wrong where a loss is.
//!
//! In: a device. Out: a [`Finding`] that names what is off. A GPU's kernels are chosen by what was fastest on it, so what one
//! machine computes rightly another may not.

use super::Finding;
use crate::learn::backend::CpuAd;
use crate::learn::norm::EPSILON;
use crate::learn::ops::{ConvArgs, NormSaved, TrainAd, TrainOps, primitive, tensor};
use crate::learn::vicreg::{LossOptions, vicreg_loss};
use crate::learn::weights::probe::{difference, hashed};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData, ops::FloatTensor};

/// Off by more than so much of the largest value, an operation is wrong. A GPU's matrix units take f32 as tf32, of 11 bits.
const TOLERANCE: f32 = 2e-3;

const IMAGES: usize = 16;

/// Side, channels in and out, kernel, stride, padding: a small residual network's convolutions, ImageNet's stem with odd sides,
/// and a kernel that leaves gaps.
const CONVOLUTIONS: [[usize; 6]; 11] = [
    [16, 3, 4, 3, 1, 1],
    [16, 4, 4, 3, 1, 1],
    [16, 4, 8, 3, 2, 1],
    [16, 4, 8, 1, 2, 0],
    [8, 8, 8, 3, 1, 1],
    [8, 8, 16, 3, 2, 1],
    [8, 8, 16, 1, 2, 0],
    [4, 16, 16, 3, 1, 1],
    [4, 16, 32, 1, 1, 0],
    [31, 3, 16, 7, 2, 3],
    [7, 3, 4, 3, 4, 1],
];

/// Side and channels of maps.
const MAPS: [[usize; 2]; 3] = [[16, 4], [8, 8], [4, 16]];

/// Rows' widths, in and out, of linear layers.
const LINEAR: [[usize; 2]; 3] = [[16, 32], [32, 32], [64, 256]];

/// Runs all operations on both and tells which differ.
pub(super) fn operations<B: TrainAd>(device: &B::Device) -> Finding {
    let (on, cpu) = (Results::of::<B>(device), Results::of::<CpuAd>(&Default::default()));
    let off =
        on.0.iter()
            .zip(&cpu.0)
            .map(|((name, on), (_, cpu))| (name, difference(on, cpu)));
    let mut off: Vec<_> = off.collect();
    off.sort_by(|a, b| b.1.total_cmp(&a.1));
    let wrong: Vec<String> = off
        .iter()
        .filter(|(_, off)| off.is_nan() || *off > TOLERANCE)
        .map(|(name, off)| format!("{name} by {off:.1e}"))
        .collect();
    Finding {
        check: "operations",
        found: match wrong.len() {
            0 => format!("{} off by {:.1e} at most", off.len(), off[0].1),
            n => format!("{n} of {} off: {}", off.len(), wrong.join(", ")),
        },
        wanted: format!("{TOLERANCE:.0e} of the largest"),
        passed: wrong.is_empty(),
    }
}

/// What each operation gave, in one order on all backends.
struct Results(Vec<(String, Vec<f32>)>);

/// Values in -1..1, the same on every backend, as an operation of the network leaves them: a kernel may depend on how they lie.
fn values<B: TrainOps, const D: usize>(shape: [usize; D], salt: u32, device: &B::Device) -> FloatTensor<B> {
    let x: Tensor<B, D> = constant(shape, salt, device);
    let c = shape[D - 1];
    let one = primitive(Tensor::<B, 1>::ones([c], device));
    let none = primitive(Tensor::<B, 1>::zeros([c], device));
    B::affine(primitive(x), one, none, None, false)
}

/// The same as they come from the host.
fn constant<B: Backend, const D: usize>(shape: [usize; D], salt: u32, device: &B::Device) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(hashed(shape.iter().product(), salt), shape), device)
}

impl Results {
    fn of<B: TrainAd>(device: &B::Device) -> Self {
        let mut results = Self(Vec::new());
        for of in CONVOLUTIONS {
            results.convolution::<B::InnerBackend>(of, device);
        }
        for of in MAPS {
            for (relu, residual) in [(false, false), (true, false), (true, true)] {
                results.norm::<B::InnerBackend>(of, relu, residual, device);
            }
            results.pools::<B::InnerBackend>(of, device);
        }
        for of in LINEAR {
            results.linear::<B::InnerBackend>(of, device);
        }
        results.loss::<B>(device);
        results
    }

    fn add<B: Backend, const D: usize>(&mut self, name: String, result: FloatTensor<B>) {
        let values = tensor::<B, D>(result).into_data();
        self.0.push((name, values.iter::<f32>().collect()));
    }

    fn convolution<B: TrainOps>(&mut self, [side, cin, cout, kernel, stride, padding]: [usize; 6], device: &B::Device) {
        let args = ConvArgs { stride, padding };
        let after = args.output(side, kernel);
        let x = values::<B, 4>([IMAGES, side, side, cin], 1, device);
        let weight = primitive(constant::<B, 4>([cout, cin, kernel, kernel], 2, device));
        let grad = values::<B, 4>([IMAGES, after, after, cout], 3, device);
        let name =
            |what| format!("convolution {kernel}x{kernel} stride {stride}, {cin} to {cout} on {side}x{side}, {what}");
        self.add::<B, 4>(name("output"), B::conv(x.clone(), weight.clone(), args));
        let dx = B::conv_input_grad(x.clone(), weight.clone(), grad.clone(), args);
        self.add::<B, 4>(name("input gradient"), dx);
        self.add::<B, 4>(name("kernel gradient"), B::conv_weight_grad(x, weight, grad, args));
    }

    fn norm<B: TrainOps>(&mut self, [side, c]: [usize; 2], relu: bool, residual: bool, device: &B::Device) {
        let maps = |salt| values::<B, 4>([IMAGES, side, side, c], salt, device);
        let of_channel = |salt| primitive(constant::<B, 1>([c], salt, device));
        let (x, gamma) = (maps(1), of_channel(2));
        let added = residual.then(|| maps(3));
        let name = |what| {
            let [relu, residual] =
                [(relu, " relu"), (residual, " residual")].map(|(on, name)| if on { name } else { "" });
            format!("batch norm{residual}{relu}, {c} on {side}x{side}, {what}")
        };
        let normed = B::norm(x.clone(), gamma.clone(), of_channel(4), added.clone(), relu, EPSILON);
        self.add::<B, 4>(name("output"), normed.output.clone());
        self.add::<B, 1>(name("mean"), normed.mean.clone());
        self.add::<B, 1>(name("variance"), normed.variance.clone());
        let affine = B::affine(x.clone(), gamma.clone(), of_channel(4), added, relu);
        self.add::<B, 4>(name("at evaluation"), affine);
        let saved = NormSaved {
            input: x,
            rectified: relu.then_some(normed.output),
            gamma,
            mean: normed.mean,
            variance: normed.variance,
            epsilon: EPSILON,
            residual,
        };
        let grads = B::norm_grad(saved, maps(5));
        self.add::<B, 4>(name("input gradient"), grads.input);
        self.add::<B, 1>(name("scale's gradient"), grads.gamma);
        self.add::<B, 1>(name("shift's gradient"), grads.beta);
        if let Some(grad) = grads.residual {
            self.add::<B, 4>(name("residual's gradient"), grad);
        }
    }

    fn pools<B: TrainOps>(&mut self, [side, c]: [usize; 2], device: &B::Device) {
        let maps = |side, salt| values::<B, 4>([IMAGES, side, side, c], salt, device);
        let name = |what| format!("{what}, {c} on {side}x{side}");
        self.add::<B, 2>(name("average"), B::average(maps(side, 1)));
        let grad = values::<B, 2>([IMAGES, c], 2, device);
        self.add::<B, 4>(name("average's gradient"), B::average_grad(grad, [side; 2]));
        let args = ConvArgs { stride: 2, padding: 1 };
        let y = B::max_pool(maps(side, 1), 3, args);
        self.add::<B, 4>(name("max-pool"), y.clone());
        let grad = B::max_pool_grad(maps(side, 1), y, maps(side / 2, 3), 3, args);
        self.add::<B, 4>(name("max-pool's gradient"), grad);
        self.add::<B, 4>(name("sum of gradients"), B::accumulate(maps(side, 1), maps(side, 2)));
    }

    fn linear<B: TrainOps>(&mut self, [inputs, outputs]: [usize; 2], device: &B::Device) {
        let x = values::<B, 2>([IMAGES, inputs], 1, device);
        let weight = primitive(constant::<B, 2>([outputs, inputs], 2, device));
        let grad = values::<B, 2>([IMAGES, outputs], 3, device);
        let name = |what| format!("linear {inputs} to {outputs}, {what}");
        self.add::<B, 2>(name("output"), B::dense(x.clone(), weight.clone()));
        // Where a backend fuses, this is another kernel than the product alone.
        let [gamma, beta] = [4, 5].map(|salt| primitive(constant::<B, 1>([outputs], salt, device)));
        let y = B::dense(x.clone(), weight.clone());
        let normed = B::norm(y, gamma.clone(), beta.clone(), None, true, EPSILON);
        self.add::<B, 2>(name("normalised and rectified"), normed.output);
        let scaled = B::affine(B::dense(x.clone(), weight.clone()), gamma, beta, None, true);
        self.add::<B, 2>(name("scaled and rectified"), scaled);
        self.add::<B, 2>(name("input gradient"), B::dense_input_grad(weight, grad.clone()));
        self.add::<B, 2>(name("weight gradient"), B::dense_weight_grad(x, grad));
    }

    /// More samples than dimensions, and fewer: the covariance has two forms.
    fn loss<B: TrainAd>(&mut self, device: &B::Device) {
        for d in [8, 32] {
            let [z, z_prime] = [1, 2].map(|salt| constant::<B, 2>([IMAGES, d], salt, device).require_grad());
            let terms = vicreg_loss(z.clone(), z_prime.clone(), &LossOptions::default());
            let grads = terms.loss.backward();
            let named = [
                ("loss", terms.loss.inner()),
                ("invariance", terms.invariance.inner()),
                ("variance", terms.variance.inner()),
                ("covariance", terms.covariance.inner()),
            ];
            for (what, term) in named {
                self.add::<B::InnerBackend, 1>(format!("loss of {d}, {what}"), primitive(term));
            }
            for (view, z) in [("first", z), ("second", z_prime)] {
                let grad = z.grad(&grads).expect("a gradient was asked for");
                self.add::<B::InnerBackend, 2>(format!("loss of {d}, gradient of the {view} view"), primitive(grad));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself() {
        let found = operations::<CpuAd>(&Default::default());
        assert!(found.passed && found.found.ends_with("off by 0.0e0 at most"), "{found}");
    }

    /// Which kernel computes depends on what was fastest: whatever autotune may take has to be right.
    #[cfg(feature = "wgpu")]
    #[test]
    fn a_gpu_computes_what_the_cpu_does() {
        use burn::backend::Autodiff;
        let found = operations::<Autodiff<burn_wgpu::Wgpu<f32, i32, u8>>>(&Default::default());
        assert!(found.passed, "{found}");
    }
}
