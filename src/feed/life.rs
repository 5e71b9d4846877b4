//! The life of one slot: filling, ready, held, in flight, and filling again for a later batch.
//!
//! In: what the places, the one taker and the one holder of a slot do. Out: whose its bytes are. Has no bytes itself.
//!
//! ```text
//!             last finish           take             fly
//! filling(b) -------------> ready(b) ---> held(b) ---------> in flight(b)
//!      ^                                     | free             | free, on any thread
//!      +------------- for batch b + R -------+------------------+
//! ```
//!
//! Invariant: the state never falls, so neither does the batch; a step that is not in the picture is refused (`open_for`
//! and `take`: not yet, not again) or a panic (the others: only a bug can ask for it). No lock, no waiting.

use super::sync::{AtomicU32, AtomicU64, Ordering};
use crossbeam::utils::CachePadded;

/// Where a slot is in its life.
///
/// There is no `Free`: a slot that comes back is promised to one batch at once, and whether the first place of that
/// batch is finished says little; who waits for what is in the workers' gauges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Workers may write; also a slot for which no batch will come.
    Filling,
    /// Full, and waits for the consumer.
    Ready,
    /// The consumer has the batch.
    Held,
    /// A device reads the pixels on its own time.
    InFlight,
}

/// The atomics of one slot.
pub(crate) struct Life {
    /// `open(b)`, `held(b)` or `in_flight(b)`, never falling. The Release store of `open` publishes `len`, `missing` and
    /// the end of all reading; `open_for` and `take` load it with Acquire.
    state: AtomicU64,
    /// Samples of the batch it is open for: written before `state`'s Release.
    len: AtomicU32,
    /// Samples not yet written. Release on each decrement; the consumer's Acquire load of 0 makes all of them visible.
    missing: CachePadded<AtomicU32>,
}

const HELD: u64 = 1;
const IN_FLIGHT: u64 = 2;

const fn open(batch: u64) -> u64 {
    batch << 2
}

const fn held(batch: u64) -> u64 {
    open(batch) | HELD
}

const fn in_flight(batch: u64) -> u64 {
    open(batch) | IN_FLIGHT
}

impl Life {
    /// Filling for `batch` of `len` samples.
    pub fn new(batch: u64, len: u32) -> Self {
        Self {
            state: AtomicU64::new(open(batch)),
            len: AtomicU32::new(len),
            missing: CachePadded::new(AtomicU32::new(len)),
        }
    }

    /// Samples of the batch. For those who have a share in it: a place, or the holder.
    pub fn len(&self) -> u32 {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether the places of `batch` may write; then `len` is its number of samples.
    pub fn open_for(&self, batch: u64) -> bool {
        // Acquire: pairs with the Release in `free`; all reading of the earlier batch is over, `len` is this batch's.
        self.state.load(Ordering::Acquire) == open(batch)
    }

    /// A place is written. True if it was the last.
    pub fn finish(&self) -> bool {
        // Release: publishes this place's bytes to `take`, which reads the last decrement and with it all of them.
        let missing = self.missing.fetch_sub(1, Ordering::Release);
        assert!(missing != 0, "a place is finished twice");
        missing == 1
    }

    /// Ready -> held, once. False if the slot is not ready for `batch`, or no longer.
    pub fn take(&self, batch: u64) -> bool {
        // Acquire: pairs with the Release in `free`, so that `missing` is this batch's count and not an older zero.
        if self.state.load(Ordering::Acquire) != open(batch) {
            return false;
        }
        // Acquire: pairs with the decrements in `finish`; being read-modify-writes they form one release sequence.
        if self.missing.load(Ordering::Acquire) != 0 {
            return false;
        }
        // The exchange, not the caller, makes the holder unique. The loads above have ordered everything.
        self.exchange(open(batch), held(batch))
    }

    /// Held -> in flight, by the holder, once.
    pub fn fly(&self, batch: u64) {
        // Nobody acts on this state: whoever hands the bytes on brings their order with them.
        let flies = self.exchange(held(batch), in_flight(batch));
        assert!(flies, "batch {batch} flies and is not held");
    }

    /// Relaxed: publishes nothing.
    fn exchange(&self, from: u64, to: u64) -> bool {
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        self.state.compare_exchange(from, to, success, failure).is_ok()
    }

    /// Held or in flight -> filling for batch `next` of `len` samples, by the holder, once.
    pub fn free(&self, batch: u64, next: u64, len: u32) {
        // Relaxed: nobody but the holder changes the state, and it comes to the holder with the slot.
        let state = self.state.load(Ordering::Relaxed);
        let ours = state == held(batch) || state == in_flight(batch);
        assert!(ours, "batch {batch} is given back and is not held");
        assert!(next > batch, "a slot goes forward only");
        self.len.store(len, Ordering::Relaxed);
        self.missing.store(len, Ordering::Relaxed);
        // Release: the reading is done, wherever it was (the bytes' way to this thread brings it here), and both counts
        // are the new batch's. Pairs with `open_for` and `take`.
        self.state.store(open(next), Ordering::Release);
    }

    /// Where the slot is, or just was: for gauges, orders nothing.
    pub fn phase(&self) -> Phase {
        let state = self.state.load(Ordering::Relaxed);
        let full = || self.missing.load(Ordering::Relaxed) == 0 && self.len() > 0;
        match state & (HELD | IN_FLIGHT) {
            HELD => Phase::Held,
            IN_FLIGHT => Phase::InFlight,
            _ if full() => Phase::Ready,
            _ => Phase::Filling,
        }
    }
}

#[cfg(all(test, not(vicreg_loom)))]
mod tests {
    use super::*;
    use crate::data::rng::{Domain, Philox};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Batch 1 of two samples, in the given phase.
    fn life(phase: Phase) -> Life {
        let life = Life::new(1, 2);
        if phase != Phase::Filling {
            assert!(!life.finish() && life.finish(), "the second of two is the last");
        }
        if matches!(phase, Phase::Held | Phase::InFlight) {
            assert!(life.take(1));
        }
        if phase == Phase::InFlight {
            life.fly(1);
        }
        assert_eq!(life.phase(), phase);
        life
    }

    fn panics(step: impl FnOnce()) -> String {
        let payload = catch_unwind(AssertUnwindSafe(step)).expect_err("an illegal step is a panic");
        crate::feed::error::panic_message(&*payload)
    }

    const ALL: [Phase; 4] = [Phase::Filling, Phase::Ready, Phase::Held, Phase::InFlight];

    #[test]
    fn a_slot_is_filled_for_a_later_batch_after_either_way_back() {
        for from in [Phase::Held, Phase::InFlight] {
            let life = life(from);
            life.free(1, 4, 1);
            assert_eq!((life.phase(), life.len()), (Phase::Filling, 1));
            assert!(life.open_for(4) && !life.open_for(1) && !life.open_for(7));
            assert!(!life.take(4) && life.finish() && life.take(4));
        }
    }

    #[test]
    fn who_comes_too_early_or_too_late_is_refused() {
        for phase in ALL {
            let life = life(phase);
            let open = matches!(phase, Phase::Filling | Phase::Ready);
            assert_eq!([0, 1, 2].map(|batch| life.open_for(batch)), [false, open, false]);
            assert!(!life.take(0) && !life.take(2));
            assert_eq!(life.take(1), phase == Phase::Ready);
            assert!(!life.take(1), "a slot is taken once");
        }
    }

    #[test]
    fn what_is_not_held_neither_flies_nor_comes_back() {
        for phase in [Phase::Filling, Phase::Ready] {
            let life = life(phase);
            assert!(panics(|| life.fly(1)).contains("batch 1 flies and is not held"));
            assert!(panics(|| life.free(1, 4, 2)).contains("batch 1 is given back and is not held"));
            assert_eq!(life.phase(), phase);
        }
        for phase in [Phase::Held, Phase::InFlight] {
            let life = life(phase);
            assert!(panics(|| life.fly(0)).contains("batch 0 flies"));
            assert!(panics(|| life.free(0, 4, 2)).contains("batch 0 is given back"));
        }
        let life = life(Phase::InFlight);
        assert!(panics(|| life.fly(1)).contains("is not held"), "a second flight");
        life.free(1, 4, 2);
        assert!(panics(|| life.free(1, 4, 2)).contains("is not held"), "a second return");
    }

    #[test]
    fn a_place_too_many_is_a_panic() {
        let life = life(Phase::Ready);
        assert!(panics(|| assert!(!life.finish())).contains("a place is finished twice"));
    }

    #[test]
    fn a_batch_number_does_not_fall() {
        for phase in [Phase::Held, Phase::InFlight] {
            let life = life(phase);
            for next in [0, 1] {
                assert!(panics(|| life.free(1, next, 2)).contains("a slot goes forward only"));
                assert_eq!(life.phase(), phase, "a refused step changes nothing");
            }
        }
    }

    /// A slot without samples is for a batch that will not come.
    #[test]
    fn a_slot_after_the_end_is_not_ready() {
        let life = life(Phase::Held);
        life.free(1, 4, 0);
        assert_eq!(life.phase(), Phase::Filling);
    }

    /// Any steps in any order, against the picture in the header written down as a match.
    #[test]
    fn only_the_steps_of_the_picture_are_taken() {
        for seed in 0..if cfg!(miri) { 5 } else { 200 } {
            let mut dice = Philox::new(seed, Domain::Shapes, 0, 0, 0);
            let (mut batch, mut missing, mut phase) = (0, 2, Phase::Filling);
            let (life, mut last) = (Life::new(0, 2), 0);
            for _ in 0..60 {
                let asked = batch.max(1) - 1 + u64::from(dice.below(3));
                let holds = asked == batch && matches!(phase, Phase::Held | Phase::InFlight);
                match dice.below(4) {
                    0 if missing > 0 => {
                        missing -= 1;
                        assert_eq!(life.finish(), missing == 0);
                        phase = if missing == 0 { Phase::Ready } else { phase };
                    }
                    1 => {
                        let legal = asked == batch && phase == Phase::Ready;
                        assert_eq!(life.take(asked), legal);
                        phase = if legal { Phase::Held } else { phase };
                    }
                    2 if asked == batch && phase == Phase::Held => {
                        life.fly(asked);
                        phase = Phase::InFlight;
                    }
                    3 if holds => {
                        life.free(asked, asked + 3, 2);
                        (batch, missing, phase) = (asked + 3, 2, Phase::Filling);
                    }
                    _ => (),
                }
                assert_eq!(life.phase(), phase, "seed {seed}");
                assert_eq!(life.open_for(batch), matches!(phase, Phase::Filling | Phase::Ready));
                let state = life.state.load(Ordering::Relaxed);
                assert!(state >= last, "seed {seed}: the state fell");
                last = state;
            }
        }
    }
}
