//! Which sample comes when: a pure function of (seed, epoch, position).
//!
//! In: sizes of row groups, from the footers. Out: position k of epoch e -> [`SampleKey`], windows to load,
//! substitutes. Row groups are permuted by a keyed bijection, cut into windows, and permuted inside the window by
//! another one:
//!
//! ```text
//! row groups   3 0 4 | 1 5 | 2 ...      cut where the next one would not fit
//! positions    0 ........ k ........ M  position -> window -> entry -> row group and row
//! ```
//!
//! Invariant: nothing that was read, decoded or drawn before matters, so a resume is one number. Kept per epoch: prefix
//! sums over row groups.

use super::options::Passes;
use super::permute::Bijection;
use crate::data::dataset::Shard;
use crate::data::rng::{Domain, Philox};
use crate::data::{SampleKey, ShardId};

/// Windows held at once: one that is being used up, one under way, one being read.
pub(crate) const WINDOW_PLACES: usize = 3;

/// The order of a data set over all epochs.
#[derive(Clone, Debug)]
pub struct Order {
    passes: Passes,
    groups: Vec<Group>,
    samples: u64,
    /// Bytes at which a window is full.
    cut: u64,
}

/// A row group, and the entries of its window that come before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub shard: ShardId,
    pub row_group: u32,
    pub rows: u32,
    pub bytes: u64,
    /// Rows in the window before this row group.
    pub before: u64,
}

/// The windows of one epoch.
#[derive(Clone, Debug)]
pub struct EpochPlan {
    windows: Vec<WindowPlan>,
}

/// Row groups that are in memory together, and the order of their rows.
#[derive(Clone, Debug)]
pub(crate) struct WindowPlan {
    pub epoch: u32,
    /// Index in the epoch.
    pub index: u32,
    /// Position of its first entry in the epoch.
    pub first: u64,
    /// Entries.
    pub rows: u64,
    pub bytes: u64,
    pub groups: Vec<Group>,
    /// Shuffle and cycle of substitutes; none in a sequential pass.
    keyed: Option<(Bijection, Bijection)>,
}

/// Where an entry of a window lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub key: SampleKey,
    /// Index of its row group in the window.
    pub group: usize,
}

impl Order {
    /// The order of these shards. `window_bytes` is the shuffle budget: a data set that fits is one window (a full
    /// shuffle); otherwise windows take a third of it, since three of them are held. A row group above that is a window
    /// of its own.
    pub fn new(shards: &[Shard], passes: Passes, window_bytes: u64) -> Self {
        let groups: Vec<Group> = shards
            .iter()
            .enumerate()
            .flat_map(|(shard, file)| {
                file.row_groups.iter().enumerate().map(move |(row_group, size)| Group {
                    shard: ShardId(shard as u32),
                    row_group: row_group as u32,
                    rows: size.rows,
                    bytes: size.bytes,
                    before: 0,
                })
            })
            .filter(|group| group.rows > 0)
            .collect();
        let bytes: u64 = groups.iter().map(|group| group.bytes).sum();
        Self {
            passes,
            samples: groups.iter().map(|group| u64::from(group.rows)).sum(),
            cut: if bytes <= window_bytes {
                bytes
            } else {
                window_bytes / WINDOW_PLACES as u64
            },
            groups,
        }
    }

    /// Samples in the data set.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// How the samples come.
    pub fn passes(&self) -> Passes {
        self.passes
    }

    /// Bytes of a full window.
    pub fn window_bytes(&self) -> u64 {
        self.cut
    }

    /// Row groups larger than `bytes`: each makes the feed hold more than its budget.
    pub(crate) fn row_groups_above(&self, bytes: u64) -> u32 {
        self.groups.iter().filter(|group| group.bytes > bytes).count() as u32
    }

    /// The plan of one epoch, in time and memory linear in the number of row groups.
    pub fn epoch(&self, epoch: u32) -> EpochPlan {
        let draws = |domain, position| match self.passes {
            Passes::Shuffled { seed } => Some(Philox::new(seed, domain, epoch, position, 0)),
            Passes::Sequential => None,
        };
        let count = self.groups.len() as u64;
        // Position 0 of the order's draws permutes the row groups; window w has position w + 1.
        let shuffle = draws(Domain::Order, 0).map(|mut rng| Bijection::new(count, &mut rng));
        let mut windows: Vec<WindowPlan> = Vec::new();
        let mut first = 0;
        for index in 0..count {
            let source = shuffle.as_ref().map_or(index, |shuffle| shuffle.apply(index));
            let mut group = self.groups[source as usize];
            let fits = windows
                .last()
                .is_some_and(|window| window.bytes + group.bytes <= self.cut);
            if !fits {
                windows.push(WindowPlan {
                    epoch,
                    index: windows.len() as u32,
                    first,
                    rows: 0,
                    bytes: 0,
                    groups: Vec::new(),
                    keyed: None,
                });
            }
            let window = windows.last_mut().expect("pushed above");
            group.before = window.rows;
            window.rows += u64::from(group.rows);
            window.bytes += group.bytes;
            window.groups.push(group);
            first += u64::from(group.rows);
        }
        for window in &mut windows {
            let position = u64::from(window.index) + 1;
            window.keyed = draws(Domain::Order, position)
                .zip(draws(Domain::Substitute, position))
                .map(|(mut order, mut cycle)| {
                    (
                        Bijection::new(window.rows, &mut order),
                        Bijection::new(window.rows, &mut cycle),
                    )
                });
        }
        EpochPlan { windows }
    }
}

impl EpochPlan {
    pub(crate) fn into_windows(self) -> impl Iterator<Item = WindowPlan> {
        self.windows.into_iter()
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// The sample at `position`, or the one that replaces it after `attempt` bad ones; `None` when the window has no
    /// more. Panics when `position` is not below the number of samples.
    pub fn sample(&self, position: u64, attempt: u64) -> Option<SampleKey> {
        let after = self.windows.partition_point(|window| window.first <= position);
        let window = &self.windows[after - 1];
        window.entry(position - window.first, attempt).map(|entry| entry.key)
    }
}

impl WindowPlan {
    /// Whether bad samples leave their place absent, for want of substitutes.
    pub fn is_sequential(&self) -> bool {
        self.keyed.is_none()
    }

    /// Tries that a position has: each sample of the window once, or only its own in a sequential pass.
    pub fn tries(&self) -> u64 {
        if self.keyed.is_some() { self.rows } else { 1 }
    }

    /// Entry `index` of the window in this epoch's order; attempt a is the a-th one after it in the window's keyed
    /// cycle, which visits every sample once.
    pub fn entry(&self, index: u64, attempt: u64) -> Option<Entry> {
        if attempt >= self.tries() {
            return None;
        }
        let row = match &self.keyed {
            None => index,
            Some((shuffle, cycle)) => {
                let row = shuffle.apply(index);
                match attempt {
                    0 => row,
                    _ => cycle.invert((cycle.apply(row) + attempt) % self.rows),
                }
            }
        };
        let group = self.groups.partition_point(|group| group.before <= row) - 1;
        let Group {
            shard,
            row_group,
            before,
            ..
        } = self.groups[group];
        Some(Entry {
            key: SampleKey {
                shard,
                row_group,
                row: (row - before) as u32,
            },
            group,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::data::dataset::RowGroupInfo;
    use std::collections::HashSet;

    /// Shards with the given rows in each row group; a row weighs 100 bytes.
    fn shards(rows: &[&[u32]]) -> Vec<Shard> {
        let size = |&rows: &u32| RowGroupInfo {
            rows,
            bytes: 100 * u64::from(rows),
        };
        rows.iter()
            .enumerate()
            .map(|(i, groups)| Shard {
                name: format!("{i}.parquet"),
                bytes: 0,
                row_groups: groups.iter().map(size).collect(),
            })
            .collect()
    }

    pub fn uneven() -> Vec<Shard> {
        shards(&[&[7, 3, 0, 11], &[1], &[], &[5, 5, 5, 5, 20], &[2, 40, 8]])
    }

    pub const ROWS: u64 = 112;

    #[test]
    fn each_sample_comes_once_an_epoch_in_an_order_of_the_epochs_own() {
        for budget in [0, 900, 3_000, 6_000, 11_200, 1 << 30] {
            let order = Order::new(&uneven(), Passes::Shuffled { seed: 5 }, budget);
            assert_eq!(order.samples(), ROWS);
            let keys = |epoch| -> Vec<SampleKey> {
                let plan = order.epoch(epoch);
                (0..ROWS).map(|k| plan.sample(k, 0).unwrap()).collect()
            };
            let (first, second) = (keys(0), keys(1));
            assert_eq!(first.iter().collect::<HashSet<_>>().len(), ROWS as usize);
            assert_eq!(
                first.iter().collect::<HashSet<_>>(),
                second.iter().collect::<HashSet<_>>()
            );
            assert_ne!(first, second, "budget {budget}");
            assert_eq!(first, keys(0));
        }
    }

    #[test]
    fn windows_fit_a_third_of_the_budget_or_are_one_row_group() {
        let order = Order::new(&uneven(), Passes::Shuffled { seed: 1 }, 6_000);
        for epoch in 0..20 {
            let plan = order.epoch(epoch);
            assert!(plan.windows() >= 4);
            for window in &plan.windows {
                assert!(window.bytes <= 2_000 || window.groups.len() == 1);
            }
        }
        let whole = Order::new(&uneven(), Passes::Shuffled { seed: 1 }, 100 * ROWS);
        assert_eq!(whole.epoch(0).windows(), 1);
        assert_eq!(whole.row_groups_above(3_999), 1);
    }

    #[test]
    fn substitutes_try_each_sample_of_the_window_once() {
        let order = Order::new(&uneven(), Passes::Shuffled { seed: 9 }, 6_000);
        for window in order.epoch(3).into_windows() {
            for index in 0..window.rows {
                let tried: HashSet<SampleKey> = (0..window.rows).map(|a| window.entry(index, a).unwrap().key).collect();
                assert_eq!(tried.len() as u64, window.rows);
                assert_eq!(window.entry(index, window.rows), None);
            }
        }
    }

    /// All positions follow one cycle: the substitute's substitute is the position's second substitute.
    #[test]
    fn substitutes_follow_one_cycle() {
        let order = Order::new(&uneven(), Passes::Shuffled { seed: 9 }, 1 << 20);
        let plan = order.epoch(0);
        let next: std::collections::HashMap<SampleKey, SampleKey> = (0..ROWS)
            .map(|k| (plan.sample(k, 0).unwrap(), plan.sample(k, 1).unwrap()))
            .collect();
        for k in 0..ROWS {
            assert_eq!(next[&plan.sample(k, 1).unwrap()], plan.sample(k, 2).unwrap());
        }
    }

    #[test]
    fn a_sequential_pass_is_in_key_order() {
        let order = Order::new(&uneven(), Passes::Sequential, 900);
        let plan = order.epoch(0);
        let keys: Vec<SampleKey> = (0..ROWS).map(|k| plan.sample(k, 0).unwrap()).collect();
        assert!(keys.is_sorted() && keys.len() as u64 == ROWS);
        assert_eq!(plan.sample(3, 1), None);
    }

    /// The order is part of what a seed means: these keys must never change. (They show change, not truth.)
    #[test]
    fn the_order_of_a_seed_is_frozen() {
        let order = Order::new(&shards(&[&[4, 4], &[4]]), Passes::Shuffled { seed: 1 }, 1 << 20);
        let plan = order.epoch(0);
        let rows: Vec<(u32, u32, u32)> = (0..12)
            .map(|k| plan.sample(k, 0).unwrap())
            .map(|key| (key.shard.0, key.row_group, key.row))
            .collect();
        assert_eq!(rows, FROZEN);
    }

    const FROZEN: [(u32, u32, u32); 12] = [
        (0, 0, 0),
        (0, 1, 0),
        (0, 1, 3),
        (1, 0, 0),
        (1, 0, 2),
        (0, 1, 1),
        (1, 0, 3),
        (0, 0, 1),
        (0, 0, 3),
        (1, 0, 1),
        (0, 1, 2),
        (0, 0, 2),
    ];
}
