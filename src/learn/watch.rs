//! What a step says of itself: its terms, and on logged steps how healthy embeddings, gradients and updates are.
//!
//! In: tensors on the device. Out: numbers on the host, a few steps later ([`LateTerms`]): nobody waits for the device. The rank is
//! worked out on the host from a sample's Gram matrix.
//! Sources: RankMe, Garrido, Balestriero, Najman, LeCun, arXiv 2210.02885, eq. (1); trust ratios: `optim::lars`.

use burn::tensor::{Tensor, backend::Backend};
use nalgebra::DMatrix;

use super::ops::{LateRead, TrainAd, TrainOps, matmul, primitive};
use super::optim::UpdateWatch;
use super::vicreg::LossTerms;

/// Most embeddings whose rank is worked out, and most dimensions whose correlation is: the cost grows with the cube, and the square.
const SAMPLE: usize = 256;

/// The terms of one step, on the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTerms {
    /// Steps done, this one included.
    pub step: u64,
    /// Learning rate of the step.
    pub lr: f64,
    /// lambda s + mu v + nu c.
    pub loss: f64,
    /// s.
    pub invariance: f64,
    /// v.
    pub variance: f64,
    /// c.
    pub covariance: f64,
    /// Standard deviation of an embedding dimension, mean over dimensions and branches.
    pub embedding_std: f64,
    /// The smallest one.
    pub embedding_std_min: f64,
    /// What only a watched step measures.
    pub watched: Option<Watched>,
}

/// What is measured on logged steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Watched {
    /// Norm of the gradient of all parameters together, before decay and scaling.
    pub grad_norm: f64,
    /// Effective rank of up to 256 embeddings of view 1 (RankMe): from 1 to the smaller of their number and D.
    pub effective_rank: f64,
    /// Mean of |correlation| of two different dimensions, over up to 256 dimensions of view 1.
    pub correlation: f64,
    /// LARS: smallest, median and largest factor of a scaled parameter's gradient.
    pub trust: Option<[f64; 3]>,
}

/// What one step computed, on its way from the device.
pub struct LateTerms {
    step: u64,
    lr: f64,
    read: LateRead,
    watched: Option<Layout>,
}

/// How many values of each kind a watched step sends.
#[derive(Clone, Copy, Debug)]
struct Layout {
    squares: usize,
    ratios: usize,
    /// Side of the Gram matrix.
    sample: usize,
}

/// What is taken from a watched step: view 1's embeddings `[N, D]`, and the update.
pub struct StepWatch<B: Backend> {
    /// `[N, D]`.
    pub embeddings: Tensor<B, 2>,
    /// Norms and ratios.
    pub update: UpdateWatch<B>,
}

impl LateTerms {
    /// Puts the reading of a step's terms behind it on the device: one small tensor, one copy.
    pub fn begin<B: TrainAd>(
        step: u64,
        lr: f64,
        terms: LossTerms<B>,
        watch: Option<StepWatch<B::InnerBackend>>,
    ) -> Self {
        let LossTerms {
            loss,
            invariance,
            variance,
            covariance,
            embedding_std,
            embedding_std_min,
        } = terms;
        let mut all = [loss, invariance, variance, covariance, embedding_std, embedding_std_min]
            .map(Tensor::inner)
            .to_vec();
        let watched = watch.map(|watch| {
            let gram = gram(watch.embeddings.clone());
            let layout = Layout {
                squares: watch.update.squares.len(),
                ratios: watch.update.ratios.len(),
                sample: gram.dims()[0],
            };
            all.push(correlation(watch.embeddings));
            all.extend(watch.update.squares);
            all.extend(watch.update.ratios);
            all.push(gram.reshape([layout.sample * layout.sample]));
            layout
        });
        let read = B::InnerBackend::read_late(primitive(Tensor::cat(all, 0)));
        Self {
            step,
            lr,
            read,
            watched,
        }
    }

    /// The terms on the host; waits for the step if it is not done yet.
    pub fn wait(self) -> StepTerms {
        let values = self.read.wait();
        let (terms, rest) = values.split_at(6);
        let [loss, invariance, variance, covariance, embedding_std, embedding_std_min] =
            terms.try_into().expect("split there");
        StepTerms {
            step: self.step,
            lr: self.lr,
            loss,
            invariance,
            variance,
            covariance,
            embedding_std,
            embedding_std_min,
            watched: self.watched.map(|layout| layout.watched(rest)),
        }
    }
}

impl Layout {
    fn watched(self, values: &[f64]) -> Watched {
        let (correlation, values) = (values[0], &values[1..]);
        let (squares, values) = values.split_at(self.squares);
        let (ratios, gram) = values.split_at(self.ratios);
        Watched {
            grad_norm: squares.iter().sum::<f64>().sqrt(),
            effective_rank: effective_rank(gram, self.sample),
            correlation,
            trust: spread(ratios),
        }
    }
}

/// Z Z^T of the first embeddings, not centred, `[S, S]`: the squares of its eigenvalues' roots are Z's singular values.
fn gram<B: TrainOps>(z: Tensor<B, 2>) -> Tensor<B, 2> {
    let sample = z.dims()[0].min(SAMPLE);
    let z = z.narrow(0, 0, sample); // [S, D]
    matmul(z.clone(), z.transpose())
}

/// exp of the entropy of the singular values' shares, from the Gram matrix `[n, n]`. NaN stays NaN; no embedding but 0 has rank 0.
fn effective_rank(gram: &[f64], n: usize) -> f64 {
    /// Keeps the logarithm finite, as in the source.
    const EPS: f64 = 1e-7;
    if gram.iter().any(|value| !value.is_finite()) {
        return f64::NAN;
    }
    let eigenvalues = DMatrix::from_row_slice(n, n, gram).symmetric_eigenvalues();
    let singular: Vec<f64> = eigenvalues.iter().map(|&value| value.max(0.0).sqrt()).collect();
    let sum: f64 = singular.iter().sum();
    if sum == 0.0 {
        return 0.0;
    }
    let shares = singular.iter().map(|value| value / sum + EPS);
    (-shares.map(|p| p * p.ln()).sum::<f64>()).exp()
}

/// Mean of |correlation| over pairs of different dimensions, `[1]`. A dead dimension correlates with none.
fn correlation<B: TrainOps>(z: Tensor<B, 2>) -> Tensor<B, 1> {
    let [n, d] = z.dims();
    let dims = d.min(SAMPLE);
    let z = z.narrow(1, 0, dims); // [N, S]
    let centred = z.clone() - z.mean_dim(0);
    let norm = centred
        .clone()
        .square()
        .sum_dim(0)
        .sqrt()
        .clamp_min(f64::from(f32::MIN_POSITIVE));
    let unit = centred / norm; // [N, S], columns of length 1 or 0
    let matrix = matmul(unit.clone().transpose(), unit.clone()).abs(); // [S, S]
    let diagonal = unit.square().sum();
    debug_assert!(n > 0);
    (matrix.sum_dim(1).sum() - diagonal) / (dims * (dims - 1)).max(1) as f64
}

/// Smallest, median and largest.
fn spread(values: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (first, last) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    };
    Some([first, median, last])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Flex;
    use burn::tensor::TensorData;

    fn embeddings(n: usize, d: usize, value: impl Fn(usize, usize) -> f32) -> Tensor<Flex, 2> {
        let values: Vec<f32> = (0..n * d).map(|at| value(at / d, at % d)).collect();
        Tensor::from_data(TensorData::new(values, [n, d]), &Default::default())
    }

    fn rank(z: &Tensor<Flex, 2>) -> f64 {
        let gram = gram(z.clone());
        let n = gram.dims()[0];
        effective_rank(&gram.into_data().iter::<f64>().collect::<Vec<_>>(), n)
    }

    fn off_diagonal(z: &Tensor<Flex, 2>) -> f64 {
        correlation(z.clone()).into_data().iter::<f64>().next().unwrap()
    }

    #[test]
    fn rank_counts_directions_and_weighs_them() {
        assert!((rank(&embeddings(8, 5, |i, j| f32::from(u8::from(i % 5 == j)))) - 5.0).abs() < 0.2);
        assert!((rank(&embeddings(8, 8, |i, j| f32::from(u8::from(i == j)))) - 8.0).abs() < 1e-3);
        // One direction, however long its vectors are.
        assert!((rank(&embeddings(6, 7, |i, j| (1 + i) as f32 * (j as f32 - 2.0))) - 1.0).abs() < 1e-2);
        // Singular values 3 and 1: exp of the entropy of (3/4, 1/4).
        let expected = (0.75f64 * (4.0f64 / 3.0).ln() + 0.25 * 4.0f64.ln()).exp();
        let two = embeddings(2, 3, |i, j| match (i, j) {
            (0, 0) => 3.0,
            (1, 1) => 1.0,
            _ => 0.0,
        });
        assert!((rank(&two) - expected).abs() < 1e-5, "{} {expected}", rank(&two));
        assert_eq!(rank(&embeddings(4, 4, |_, _| 0.0)), 0.0);
        assert!(rank(&embeddings(4, 4, |_, _| f32::NAN)).is_nan());
    }

    #[test]
    fn correlation_is_one_for_copies_and_nothing_for_dead_dimensions() {
        let copies = embeddings(16, 4, |i, j| if j % 2 == 0 { i as f32 } else { 3.0 - 2.0 * i as f32 });
        assert!((off_diagonal(&copies) - 1.0).abs() < 1e-5);
        let apart = embeddings(4, 2, |i, j| if (i >> j) % 2 == 0 { 1.0 } else { -1.0 });
        assert!(off_diagonal(&apart).abs() < 1e-6);
        let dead = embeddings(16, 3, |i, j| if j == 0 { i as f32 } else { 2.5 });
        assert!(off_diagonal(&dead).abs() < 1e-6);
        assert!(off_diagonal(&embeddings(16, 1, |i, _| i as f32)).abs() < 1e-6);
    }

    #[test]
    fn spread_is_ordered() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some([1.0, 2.0, 3.0]));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some([1.0, 2.5, 4.0]));
    }
}
