//! L-BFGS: the minimum of a smooth convex function from its values and gradients.
//!
//! Two-loop recursion of Nocedal and Wright, Numerical Optimization (2nd ed.), algorithms 7.4 and 7.5, with backtracking from step 1
//! (algorithm 3.1): on a convex function a step's curvature is never negative, so it needs no search for the Wolfe conditions.
//! Where the decrease drowns in rounding, the slopes decide (Hager and Zhang 2005, approximate Wolfe conditions).
//! Sums run in index order in f64: the path is a function of the function alone.

use std::collections::VecDeque;

/// Steps that the curvature is estimated from; Nocedal and Wright find 3 to 20 enough.
const HISTORY: usize = 10;
/// Share of the decrease that the slope promises which a step must keep.
const ARMIJO: f64 = 1e-4;
/// Share of the value by which rounding may let it seem to rise.
const ROUNDING: f64 = 1e-6;
/// Halvings after which a direction leads nowhere.
const HALVINGS: u32 = 20;

/// A step and the change of the gradient along it.
struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    /// step . change, above 0.
    curvature: f64,
}

/// Minimises `function` (point, place for the gradient -> value) from `point` on, which moves to the minimum. Ends when no partial
/// derivative is larger than `tolerance`, when no step descends any more, or after `iterations` steps. Returns the steps taken.
pub fn minimise(
    point: &mut [f64],
    iterations: u32,
    tolerance: f64,
    mut function: impl FnMut(&[f64], &mut [f64]) -> f64,
) -> u32 {
    let mut gradient = vec![0.0; point.len()];
    let mut value = function(point, &mut gradient);
    let mut history: VecDeque<Pair> = VecDeque::with_capacity(HISTORY);
    let (mut next, mut next_gradient) = (point.to_vec(), gradient.clone());
    let mut taken = 0;
    while taken < iterations {
        if gradient.iter().all(|g| g.abs() <= tolerance) {
            break;
        }
        let direction = direction(&gradient, &history);
        let slope = dot(&direction, &gradient);
        // No scale is known before the first step: one of length 1 at most.
        let mut length = match history.is_empty() {
            true => (1.0 / dot(&gradient, &gradient).sqrt()).min(1.0),
            false => 1.0,
        };
        let found = (0..=HALVINGS).find_map(|_| {
            for ((next, x), d) in next.iter_mut().zip(&*point).zip(&direction) {
                *next = x + length * d;
            }
            length /= 2.0;
            let value_there = function(&next, &mut next_gradient);
            let falls = value_there <= value + ARMIJO * 2.0 * length * slope;
            let level = value_there <= value + ROUNDING * value.abs()
                && dot(&direction, &next_gradient) <= (2.0 * ARMIJO - 1.0) * slope;
            (falls || level).then_some(value_there)
        });
        let Some(next_value) = found else {
            if history.is_empty() {
                break; // Not even downhill.
            }
            history.clear(); // The curvature that it remembers is another place's.
            continue;
        };
        remember(&mut history, point, &gradient, &next, &next_gradient);
        point.copy_from_slice(&next);
        std::mem::swap(&mut gradient, &mut next_gradient);
        value = next_value;
        taken += 1;
    }
    taken
}

/// Keeps the newest step, unless its curvature is lost in rounding.
fn remember(history: &mut VecDeque<Pair>, point: &[f64], gradient: &[f64], next: &[f64], next_gradient: &[f64]) {
    let difference = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>();
    let (step, change) = (difference(next, point), difference(next_gradient, gradient));
    let curvature = dot(&step, &change);
    if curvature <= f64::EPSILON * dot(&change, &change) {
        return;
    }
    if history.len() == HISTORY {
        history.pop_front();
    }
    history.push_back(Pair {
        step,
        change,
        curvature,
    });
}

/// Minus the estimated inverse Hessian times the gradient.
fn direction(gradient: &[f64], history: &VecDeque<Pair>) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut weights = Vec::with_capacity(history.len());
    for pair in history.iter().rev() {
        let weight = dot(&pair.step, &q) / pair.curvature;
        add(&mut q, -weight, &pair.change);
        weights.push(weight);
    }
    if let Some(newest) = history.back() {
        let scale = newest.curvature / dot(&newest.change, &newest.change);
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for (pair, weight) in history.iter().zip(weights.into_iter().rev()) {
        let correction = weight - dot(&pair.change, &q) / pair.curvature;
        add(&mut q, correction, &pair.step);
    }
    q
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(a: &mut [f64], factor: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += factor * b);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sum of c_i (x_i - t_i)^2 / 2 and a coupling of neighbours; condition number 100.
    #[test]
    fn an_ill_conditioned_quadratic_is_solved() {
        let n = 40;
        let weight = |i: usize| 100f64.powf(i as f64 / (n - 1) as f64);
        let mut x = vec![0.0; n];
        let steps = minimise(&mut x, 200, 1e-9, |x, gradient| {
            let mut value = 0.0;
            for i in 0..n {
                let off = x[i] - i as f64;
                value += weight(i) * off * off / 2.0;
                gradient[i] = weight(i) * off;
            }
            for i in 1..n {
                let off = x[i] - x[i - 1] - 1.0; // Also zero at the minimum.
                value += off * off / 2.0;
                gradient[i] += off;
                gradient[i - 1] -= off;
            }
            value
        });
        assert!(steps < 200, "{steps}");
        for (i, x) in x.iter().enumerate() {
            assert!((x - i as f64).abs() < 1e-8, "{i}: {x}");
        }
    }

    /// log(1 + exp(x)) - x / 4: the minimum is at logit(1/4) = -ln 3, and far away the curvature vanishes.
    #[test]
    fn a_flat_start_is_left() {
        let mut x = [30.0];
        minimise(&mut x, 100, 1e-12, |x, gradient| {
            gradient[0] = 1.0 / (1.0 + (-x[0]).exp()) - 0.25;
            x[0].max(0.0) + (-x[0].abs()).exp().ln_1p() - x[0] / 4.0
        });
        assert!((x[0] + 3f64.ln()).abs() < 1e-10, "{x:?}");
    }

    #[test]
    fn the_minimum_itself_takes_no_step_and_a_limit_holds() {
        let square = |x: &[f64], gradient: &mut [f64]| {
            gradient.copy_from_slice(x);
            dot(x, x) / 2.0
        };
        assert_eq!(minimise(&mut [0.0; 3], 10, 1e-6, square), 0);
        let mut x = [100.0, 0.0];
        assert_eq!(minimise(&mut x, 1, 1e-6, square), 1);
        assert_eq!(x, [99.0, 0.0], "the first step has length 1");
    }
}
