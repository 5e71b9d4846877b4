//! Bad samples: what is said of one, and how many a run may have.
//!
//! In: rejects in batch order, duplicates included. Out: those that are new to the run, and an error once the budget is spent.
//! Invariant: evaluated by the consumer in batch order, so the same step trips for any number of workers; the state is
//! data, so a checkpoint carries it.

use super::error::FeedError;
use super::options::FeedOptions;
use crate::data::{SampleKey, ShardId};
use serde::{Deserialize, Serialize};
use std::collections::{HashSet, VecDeque};

/// A sample that could not be used: one line of `quarantine.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Which.
    pub key: SampleKey,
    /// Name of its shard.
    pub shard: String,
    /// Its `path` column, where there is one.
    pub path: Option<String>,
    /// What is wrong with it, in the codec's words.
    pub reason: String,
    /// Kind of the reason: [`CodecError::code`](crate::data::CodecError::code), or `null` for a row without an image.
    pub code: &'static str,
}

/// What a checkpoint keeps of the quarantine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineState {
    /// Samples tried: places filled, and every reject on the way.
    pub tried: u64,
    /// Keys (shard, row group, row) of bad samples, in the order in which they were met.
    pub bad: Vec<[u32; 3]>,
}

/// Batches whose state is remembered: more than a trainer can have in flight.
const HISTORY: usize = 256;

/// The consumer's book of bad samples.
pub(crate) struct Quarantine {
    samples: u64,
    max_bad: u64,
    max_fraction: f64,
    known: HashSet<SampleKey>,
    state: QuarantineState,
    /// (step, tried, number of bad) after each of the last batches.
    history: VecDeque<(u64, u64, usize)>,
}

/// Tries before a rate means something (or the whole data set).
const ENOUGH: u64 = 1000;

impl Quarantine {
    pub fn new(samples: u64, options: &FeedOptions) -> Self {
        Self {
            samples,
            max_bad: options.max_bad.unwrap_or(u64::MAX),
            max_fraction: options.max_bad_fraction,
            known: HashSet::new(),
            state: QuarantineState::default(),
            history: VecDeque::with_capacity(HISTORY),
        }
    }

    /// Continues from a checkpoint's state.
    pub fn restore(&mut self, state: QuarantineState) {
        self.known = state.bad.iter().copied().map(key).collect();
        self.state = state;
        self.history.clear();
    }

    /// The state after the last batch, or after the batch of an earlier step that is still remembered.
    pub fn state(&self, step: Option<u64>) -> Option<QuarantineState> {
        let Some(step) = step else {
            return Some(self.state.clone());
        };
        let &(_, tried, bad) = self.history.iter().find(|(known, ..)| *known == step)?;
        Some(QuarantineState {
            tried,
            bad: self.state.bad[..bad].to_vec(),
        })
    }

    /// Enters a batch in which `present` places are filled: keeps the rejects that are new in `rejects`. Errors when the budget
    /// is spent.
    pub fn enter(&mut self, step: u64, present: usize, rejects: &mut Vec<Reject>) -> Result<(), FeedError> {
        self.state.tried += (present + rejects.len()) as u64;
        rejects.retain(|reject| self.known.insert(reject.key));
        let keys = rejects.iter().map(|reject| reject.key);
        self.state
            .bad
            .extend(keys.map(|key| [key.shard.0, key.row_group, key.row]));
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back((step, self.state.tried, self.state.bad.len()));
        match self.broken_limit() {
            None => Ok(()),
            Some(limit) => Err(FeedError::TooManyBad {
                step,
                bad: self.state.bad.len() as u64,
                tried: self.tried(),
                limit,
                rejects: std::mem::take(rejects),
            }),
        }
    }

    fn tried(&self) -> u64 {
        self.state.tried.min(self.samples)
    }

    fn broken_limit(&self) -> Option<String> {
        let (bad, tried) = (self.state.bad.len() as u64, self.tried());
        if bad > self.max_bad {
            return Some(format!("feed.max_bad = {}", self.max_bad));
        }
        let enough = tried >= ENOUGH.min(self.samples);
        (enough && bad as f64 > self.max_fraction * tried as f64)
            .then(|| format!("feed.max_bad_fraction = {}", self.max_fraction))
    }
}

fn key([shard, row_group, row]: [u32; 3]) -> SampleKey {
    SampleKey {
        shard: ShardId(shard),
        row_group,
        row,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(row: u32) -> Reject {
        Reject {
            key: key([0, 0, row]),
            shard: "a".into(),
            path: None,
            reason: "no".into(),
            code: "damaged",
        }
    }

    fn book(max_bad: Option<u64>, max_bad_fraction: f64) -> Quarantine {
        Quarantine::new(
            10_000,
            &FeedOptions {
                max_bad,
                max_bad_fraction,
                ..Default::default()
            },
        )
    }

    #[test]
    fn a_key_is_reported_once_and_a_resume_remembers_it() {
        let mut book = book(None, 1.0);
        let mut rejects = vec![bad(1), bad(2), bad(1)];
        book.enter(0, 8, &mut rejects).unwrap();
        assert_eq!(rejects, [bad(1), bad(2)]);
        let mut rejects = vec![bad(3), bad(2)];
        book.enter(1, 8, &mut rejects).unwrap();
        assert_eq!(rejects, [bad(3)]);
        assert_eq!(
            book.state(None).unwrap(),
            QuarantineState {
                tried: 21,
                bad: vec![[0, 0, 1], [0, 0, 2], [0, 0, 3]]
            }
        );
        // A trainer that has fetched one batch ahead saves the state of the step it has finished.
        let earlier = book.state(Some(0)).unwrap();
        assert_eq!(
            earlier,
            QuarantineState {
                tried: 11,
                bad: vec![[0, 0, 1], [0, 0, 2]]
            }
        );
        book.restore(serde_json::from_str(&serde_json::to_string(&earlier).unwrap()).unwrap());
        let mut rejects = vec![bad(3), bad(2)];
        book.enter(1, 8, &mut rejects).unwrap();
        assert_eq!(rejects, [bad(3)]);
        assert_eq!(book.state(None).unwrap().tried, 21);
    }

    #[test]
    fn the_count_trips_at_once_and_the_rate_after_enough_tries() {
        let mut count = book(Some(1), 1.0);
        count.enter(0, 8, &mut vec![bad(1)]).unwrap();
        let error = count.enter(1, 8, &mut vec![bad(1), bad(2)]).unwrap_err();
        assert!(matches!(error, FeedError::TooManyBad { step: 1, bad: 2, ref rejects, .. } if rejects == &[bad(2)]));
        let mut rate = book(None, 0.5);
        for step in 0..2 {
            rate.enter(step, 1, &mut (0..400).map(|i| bad(1000 * step as u32 + i)).collect())
                .unwrap();
        }
        let error = rate.enter(2, 200, &mut vec![]).unwrap_err();
        assert!(matches!(
            error,
            FeedError::TooManyBad {
                step: 2,
                bad: 800,
                tried: 1002,
                ..
            }
        ));
    }
}
