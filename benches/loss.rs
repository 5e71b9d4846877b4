//! The VICReg loss in closed form beside the same formulas left to autodiff: time and peak memory, as ratios.
//!
//! `cargo bench -p vicreg-stream-benches --bench loss [-- SECONDS]`. Each pair of (N, D) runs both in turn, forward and backward, on the CPU
//! backend; the fastest time of each counts. Peak memory is what the resident set grows by (Linux only). Every line also says how far
//! the two losses and gradients are apart.

use std::time::{Duration, Instant};

use burn::backend::{Autodiff, Flex};
use burn::tensor::{Tensor, TensorData, activation::relu};
use vicreg_stream::data::rng::{Domain, Philox};
use vicreg_stream::learn::vicreg::{EPS, GAMMA, LossOptions, vicreg_loss};
use vicreg_stream::measure::cpu;

type Ad = Autodiff<Flex>;
type Embeddings = Tensor<Ad, 2>;

/// The formulas of the paper, eqs. (1)-(6), in burn's operations (loss kind official).
fn plain(z: Embeddings, other: Embeddings) -> Tensor<Ad, 1> {
    let [n, d] = z.dims();
    let options = LossOptions::default();
    let s = (z.clone() - other.clone()).square().mean();
    let branch = |z: Embeddings| {
        let centred = z.clone() - z.mean_dim(0);
        let var = centred.clone().square().sum_dim(0) / (n - 1) as f64;
        let v = relu(-(var + EPS).sqrt() + GAMMA).mean();
        let cov = centred.clone().transpose().matmul(centred) / (n - 1) as f64; // [D, D]
        let off = -Tensor::<Ad, 2>::eye(d, &cov.device()) + 1.0;
        (v, (cov * off).square().sum() / d as f64)
    };
    let ((va, ca), (vb, cb)) = (branch(z), branch(other));
    s * options.invariance + (va + vb) * (options.variance / 2.0) + (ca + cb) * options.covariance
}

fn closed(z: Embeddings, other: Embeddings) -> Tensor<Ad, 1> {
    vicreg_loss(z, other, &LossOptions::default()).loss
}

fn embeddings(n: usize, d: usize, stream: u64) -> TensorData {
    let row = |row: usize| {
        let mut rng = Philox::new(7, Domain::Init, row as u32, stream, 0);
        std::iter::repeat_with(move || rng.uniform_in(-1.5, 1.5) as f32).take(d)
    };
    TensorData::new((0..n).flat_map(row).collect::<Vec<f32>>(), [n, d])
}

/// One forward and backward pass: seconds, growth of the resident set in MiB, loss, gradient of the first embedding.
fn pass(
    loss: fn(Embeddings, Embeddings) -> Tensor<Ad, 1>,
    [z, other]: [&TensorData; 2],
) -> (Duration, f64, f32, Vec<f32>) {
    let tensor = |data: &TensorData| Embeddings::from_data(data.clone(), &Default::default()).require_grad();
    let (z, other) = (tensor(z), tensor(other));
    // Linux: the peak starts anew at what is resident now.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let before = cpu::peak_rss_mb().unwrap_or(f64::NAN);
    let start = Instant::now();
    let loss = loss(z.clone(), other.clone());
    let mut grads = loss.backward();
    let gradients = [z, other].map(|z| z.grad_remove(&mut grads).expect("both are differentiated"));
    let time = start.elapsed();
    let grown = cpu::peak_rss_mb().unwrap_or(f64::NAN) - before;
    let value = loss.into_data().to_vec::<f32>().expect("f32")[0];
    let [gradient, _] = gradients;
    (time, grown, value, gradient.into_data().to_vec().expect("f32"))
}

fn main() {
    let seconds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(3.0);
    println!(
        "{:>5} {:>5}  {:>10} {:>10} {:>6}  {:>10} {:>10} {:>6}  {:>9} {:>9}",
        "N", "D", "plain ms", "closed ms", "ratio", "plain MiB", "closed MiB", "ratio", "loss off", "grad off"
    );
    for d in [2048, 8192] {
        for n in [256, 1024, 2048] {
            let data = [embeddings(n, d, 0), embeddings(n, d, 1)];
            let both = [&data[0], &data[1]];
            let (mut best, mut peak) = ([f64::INFINITY; 2], [0.0f64; 2]);
            let mut last = [None, None];
            let (start, mut rounds) = (Instant::now(), 0);
            while rounds < 3 || start.elapsed().as_secs_f64() < seconds {
                for (at, loss) in [plain, closed].into_iter().enumerate() {
                    let (time, grown, value, gradient) = pass(loss, both);
                    best[at] = best[at].min(1e3 * time.as_secs_f64());
                    peak[at] = peak[at].max(grown);
                    last[at] = Some((value, gradient));
                }
                rounds += 1;
            }
            let [Some((loss_a, grad_a)), Some((loss_b, grad_b))] = last else {
                continue;
            };
            let scale = grad_a.iter().fold(0.0f32, |m, g| m.max(g.abs()));
            let off = grad_a
                .iter()
                .zip(&grad_b)
                .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()))
                / scale;
            println!(
                "{n:>5} {d:>5}  {:>10.1} {:>10.1} {:>6.3}  {:>10.1} {:>10.1} {:>6.3}  {:>9.1e} {off:>9.1e}",
                best[0],
                best[1],
                best[1] / best[0],
                peak[0],
                peak[1],
                peak[1] / peak[0],
                (loss_b / loss_a - 1.0).abs()
            );
        }
    }
}
