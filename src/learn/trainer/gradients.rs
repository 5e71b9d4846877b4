//! One batch's loss and gradients, in the three phases of a step.
//!
//! Encode, then expander and loss on the whole batch, then back through the encoder. The phases are kept apart because two things
//! come between them: gradient caching, which encodes micro-batch by micro-batch, and a gather over several GPUs.
//! Invariant: nothing in the trainer changes; the batch norms' statistics are handed out.

use std::ops::Range;

use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{DType, Tensor};

use super::Trainer;
use crate::learn::input::Uploaded;
use crate::learn::model::VicReg;
use crate::learn::norm::{BatchStats, Mode};
use crate::learn::ops::{TrainAd, cast};
use crate::learn::vicreg::{LossTerms, vicreg_loss};

/// What a batch gives before anything is updated.
pub(super) struct Computed<B: TrainAd> {
    pub(super) terms: LossTerms<B>,
    /// View 1's, `[N, D]`.
    pub(super) embeddings: Tensor<B::InnerBackend, 2>,
    pub(super) gradients: GradientsParams,
    /// What each batch norm saw, view by view.
    pub(super) stats: [Vec<BatchStats<B>>; 2],
}

/// Representations of both views, and the way back to the encoder's weights.
struct Encoded<B: TrainAd> {
    /// h and h', `[N, C]` each, without a graph.
    h: [Tensor<B, 2>; 2],
    /// What each batch norm of the encoder saw, view by view.
    stats: [Vec<BatchStats<B>>; 2],
    way_back: WayBack<B>,
}

/// How gradients come back from representations to weights.
enum WayBack<B: TrainAd> {
    /// By the graph of the pass that made them.
    Graph([Tensor<B, 2>; 2]),
    /// By a second pass over the batch, so many images at a time: one graph of that size at a time.
    Again(Uploaded<B>, usize),
}

/// `0..n` in runs of `rows`.
fn groups_of(n: usize, rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(rows).map(move |first| first..(first + rows).min(n))
}

impl<B: TrainAd> Trainer<B> {
    /// Loss and gradients of a batch, phase by phase.
    pub(super) fn gradients(&self, batch: Uploaded<B>) -> Computed<B> {
        // Phase 1, encode: each view alone, since its batch norms must see that view's statistics alone.
        let Encoded { h, mut stats, way_back } = self.encode(batch); // h, h': [N, C]

        // Phase 2, on the whole batch: expander, loss in f32, and what the loss asks of h. A gather over ranks would come before it.
        let h = h.map(Tensor::require_grad);
        let [z, z_prime] = std::array::from_fn(|view| {
            let mode = &mut Mode::Train(&mut stats[view]);
            cast(self.model.projector.forward(h[view].clone(), mode), DType::F32) // [N, D]
        });
        let embeddings = z.clone().inner();
        let terms = vicreg_loss(z, z_prime, &self.method.loss);
        let mut grads = terms.loss.backward();
        let asked = h.map(|h| h.grad_remove(&mut grads).expect("the loss depends on both views")); // dL/dh: [N, C]
        let mut gradients = GradientsAccumulator::new();
        gradients.accumulate(&self.model, GradientsParams::from_grads(grads, &self.model));

        // Phase 3, back through the encoder.
        self.encoder_gradients(way_back, asked, &mut gradients);
        Computed {
            terms,
            embeddings,
            gradients: gradients.grads(),
            stats,
        }
    }

    /// Phase 1: the representations of both views, cut off from the graph that made them.
    fn encode(&self, batch: Uploaded<B>) -> Encoded<B> {
        let mut stats: [Vec<BatchStats<B>>; 2] = Default::default();
        let Some(rows) = self.method.micro_batch else {
            let maps = [0, 1].map(|view| self.view(&batch, view, 0..batch.len())); // [N, H, W, 3]
            drop(batch); // On the CPU, the slot goes back to the ring here.
            let h: [_; 2] = std::array::from_fn(|view| {
                let mode = &mut Mode::Train(&mut stats[view]);
                self.model.backbone.forward(maps[view].clone(), mode)
            });
            return Encoded {
                h: h.clone().map(Tensor::detach),
                stats,
                way_back: WayBack::Graph(h),
            };
        };
        // Gradient caching (Gao, Zhang, Han, Callan, arXiv 2101.06983): without a graph now, once more with one in phase 3.
        let encoder = self.model.backbone.valid();
        let h = [0, 1].map(|view| {
            let mut groups = Vec::new();
            let h = groups_of(batch.len(), rows).map(|range| {
                let mut stats = Vec::new();
                let h = encoder.forward(self.view(&batch, view, range).inner(), &mut Mode::Train(&mut stats));
                groups.push(stats);
                h
            });
            let h = Tensor::from_inner(Tensor::cat(h.collect(), 0));
            stats[view] = BatchStats::pool_layers(&groups)
                .into_iter()
                .map(BatchStats::from_inner)
                .collect();
            h
        });
        Encoded {
            h,
            stats,
            way_back: WayBack::Again(batch, rows),
        }
    }

    /// Phase 3: adds the encoder's gradients, given dL/dh of both views, `[N, C]` each: those of sum(h dL/dh), dL/dh fixed.
    fn encoder_gradients(
        &self,
        way_back: WayBack<B>,
        asked: [Tensor<B::InnerBackend, 2>; 2],
        gradients: &mut GradientsAccumulator<VicReg<B>>,
    ) {
        let asked = asked.map(Tensor::<B, 2>::from_inner);
        let mut add = |pull: Tensor<B, 1>| {
            gradients.accumulate(&self.model, GradientsParams::from_grads(pull.backward(), &self.model));
        };
        match way_back {
            WayBack::Graph(h) => {
                // One view after the other: the first one's graph is gone before the second one's gradients come.
                for (h, asked) in h.into_iter().zip(asked) {
                    add((h * asked).sum());
                }
            }
            WayBack::Again(batch, rows) => {
                for (view, asked) in asked.into_iter().enumerate() {
                    for range in groups_of(batch.len(), rows) {
                        let x = self.view(&batch, view, range.clone());
                        // These statistics were entered in phase 1.
                        let h = self.model.backbone.forward(x, &mut Mode::Train(&mut Vec::new()));
                        add((h * asked.clone().slice([range])).sum());
                    }
                }
            }
        }
    }

    /// Images `rows` of one view as the network takes them, `[rows, H, W, 3]`, in the type that it computes in.
    fn view(&self, batch: &Uploaded<B>, view: usize, rows: Range<usize>) -> Tensor<B, 4> {
        cast(batch.rows(view, rows, self.method.input), self.method.precision.dtype())
    }
}

#[cfg(test)]
mod tests;
