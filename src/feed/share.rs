//! One rank's share of the stream of positions: local position -> epoch and position, window -> local positions.
//!
//! In: the order, the batch, this rank, the start step. Out: arithmetic.
//! Invariant: the shares of all ranks, side by side, are the global batches of one; each local position lies in one
//! window.

use super::options::Passes;
use super::order::{Order, WindowPlan};

/// This rank's share of the stream of positions, from the start step on.
///
/// A local position q counts what this process makes: batch q / share of the run, place q % share in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// Samples in a global batch.
    batch: u64,
    /// Samples of it that are this rank's.
    pub share: u64,
    /// Places of the global batch before this rank's.
    offset: u64,
    /// Positions of an epoch that are used: a shuffled epoch drops its tail.
    used: u64,
    pub steps_per_epoch: u64,
    pub start_step: u64,
    /// Local positions there will ever be.
    pub total: u64,
}

/// What a local position means to all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub epoch: u32,
    /// Position in the epoch.
    pub position: u64,
}

impl Share {
    /// The share of `rank` of `world` (which divides `batch`) from `start_step` on.
    pub fn new(order: &Order, batch: u32, rank: u32, world: u32, start_step: u64) -> Self {
        let (batch, samples) = (u64::from(batch), order.samples());
        let share = batch / u64::from(world);
        let endless = matches!(order.passes(), Passes::Shuffled { .. });
        let steps_per_epoch = if endless {
            samples / batch
        } else {
            samples.div_ceil(batch)
        };
        let mut this = Self {
            batch,
            share,
            offset: u64::from(rank) * share,
            used: if endless { steps_per_epoch * batch } else { samples },
            steps_per_epoch,
            start_step,
            total: u64::MAX,
        };
        if !endless {
            this.total = this.below(samples).saturating_sub(start_step.saturating_mul(share));
        }
        this
    }

    /// Positions of this rank in an epoch that are below `position`.
    fn below(&self, position: u64) -> u64 {
        let position = position.min(self.used);
        position / self.batch * self.share + (position % self.batch).saturating_sub(self.offset).min(self.share)
    }

    /// Local positions that the window holds; empty when none will be claimed here, and then it is never read.
    pub fn range(&self, window: &WindowPlan) -> std::ops::Range<u64> {
        let epoch_start = u64::from(window.epoch) * self.steps_per_epoch * self.share;
        let skipped = self.start_step * self.share;
        let local = |position| (epoch_start + self.below(position)).saturating_sub(skipped);
        local(window.first)..local(window.first + window.rows)
    }

    /// The epoch and the position in it of local position `local`.
    pub fn place(&self, local: u64) -> Place {
        let step = self.start_step + local / self.share;
        Place {
            epoch: (step / self.steps_per_epoch) as u32,
            position: step % self.steps_per_epoch * self.batch + self.offset + local % self.share,
        }
    }

    /// Samples in batch `batch` of this run.
    pub fn len(&self, batch: u64) -> u32 {
        self.total
            .saturating_sub(batch.saturating_mul(self.share))
            .min(self.share) as u32
    }

    /// First epoch that is read.
    pub fn first_epoch(&self) -> u32 {
        (self.start_step / self.steps_per_epoch) as u32
    }
}

#[cfg(test)]
impl Share {
    /// One sequential pass over so many samples, for tests and models that need no images.
    pub(super) fn of_samples(samples: u32, batch: u32) -> Self {
        let group = crate::data::dataset::RowGroupInfo {
            rows: samples,
            bytes: 1,
        };
        let shard = crate::data::dataset::Shard {
            name: "a".into(),
            bytes: 1,
            row_groups: vec![group],
        };
        Self::new(&Order::new(&[shard], Passes::Sequential, 1), batch, 0, 1, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::order::tests::{ROWS, uneven};
    use super::*;

    /// Windows and shares tile the stream: each local position lies in one window, at the place that `place` says.
    #[test]
    fn windows_tile_the_local_positions() {
        for passes in [Passes::Shuffled { seed: 2 }, Passes::Sequential] {
            let order = Order::new(&uneven(), passes, 3_000);
            for (batch, world) in [(12, 1), (12, 3), (20, 4), (ROWS as u32, 2)] {
                for (rank, start) in [(0, 0), (world - 1, 0), (0, 1), (world - 1, 3), (0, 7)] {
                    let share = Share::new(&order, batch, rank, world, start);
                    let mut next = 0;
                    for epoch in share.first_epoch()..share.first_epoch() + 3 {
                        if passes == Passes::Sequential && epoch > 0 {
                            break;
                        }
                        for window in order.epoch(epoch).into_windows() {
                            let range = share.range(&window);
                            assert_eq!(range.start, next);
                            for local in range.clone() {
                                let place = share.place(local);
                                assert_eq!(place.epoch, epoch);
                                assert!((window.first..window.first + window.rows).contains(&place.position));
                            }
                            next = range.end;
                        }
                    }
                    if passes == Passes::Sequential {
                        assert_eq!(next, share.total, "batch {batch} rank {rank} start {start}");
                    }
                }
            }
        }
    }

    /// The slices of all ranks, side by side, are the global batch of one rank.
    #[test]
    fn ranks_share_the_global_batches() {
        for passes in [Passes::Shuffled { seed: 2 }, Passes::Sequential] {
            let order = Order::new(&uneven(), passes, 3_000);
            let alone = Share::new(&order, 20, 0, 1, 2);
            for world in [2, 4, 5] {
                let ranks: Vec<Share> = (0..world).map(|rank| Share::new(&order, 20, rank, world, 2)).collect();
                for step in 0..4 {
                    let places = |share: &Share| -> Vec<Place> {
                        (0..u64::from(share.len(step)))
                            .map(|i| share.place(step * share.share + i))
                            .collect()
                    };
                    assert_eq!(ranks.iter().flat_map(places).collect::<Vec<_>>(), places(&alone));
                }
            }
        }
    }
}
