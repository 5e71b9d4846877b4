//! Many short feeds under random delays and panics: the same bytes, the error at its batch, nothing left behind.

use super::chaos::{Chaos, pause};
use super::slot::CountedMemory;
use super::*;
use std::sync::mpsc::channel;

/// After a feed and its batches: every thread has been joined, all memory is back.
pub(super) fn nothing_is_left(chaos: &Chaos, memory: &CountedMemory, dataset: &Arc<Dataset>) {
    assert_eq!(memory.0.load(Ordering::Relaxed), 0, "slot memory is lost");
    assert_eq!(chaos.live(), 0, "a thread was not joined");
    assert_eq!(Arc::strong_count(dataset), 1, "something still holds the data set");
}

const BATCH: u64 = 8;
/// 61 samples.
const STEPS_PER_EPOCH: u64 = 7;
const STEPS: u64 = 16;

/// One feed, shaped by `dice`; `expected` are the batches of a run without panics.
fn feed_under_stress(dataset: &Arc<Dataset>, plan: &FeedPlan, expected: &[Seen], seed: u64) {
    let mut dice = Philox::new(seed, Domain::Shapes, 0, 0, 1);
    let panic_at = (dice.below(2) == 0).then(|| (dice.below(2), u64::from(dice.below(56))));
    let bad_step = panic_at.map(|(epoch, position)| u64::from(epoch) * STEPS_PER_EPOCH + position / BATCH);
    let options = options(1 + dice.below(5), 2 + dice.below(3));
    let slots = u64::from(options.ring);
    let chaos = Chaos::delays(seed, panic_at);
    let mut memory = CountedMemory::default();
    let mut feed = Feed::start_with(dataset.clone(), plan.clone(), &options, 0, &mut memory).unwrap();
    let (send, receive) = channel::<Batch>();
    let giver = std::thread::spawn(move || {
        let mut dice = Philox::new(seed, Domain::Shapes, 0, 0, 2);
        let mut held: Option<Batch> = None;
        for batch in receive {
            pause(&mut dice);
            // Batches come back late and out of order, but none holds up the one that needs its slot.
            let old = held.as_ref().map_or(batch.step, |old| old.step);
            match dice.below(2) {
                0 if batch.step - old < slots - 1 => drop(batch),
                _ => drop(held.replace(batch)),
            }
        }
        // With the channel gone the feed may be, too.
        drop(held);
    });
    let last = u64::from(dice.below(STEPS as u32 + 1));
    for step in 0..last {
        pause(&mut dice);
        match feed.next() {
            Ok(batch) => {
                let batch = batch.expect("an endless pass");
                assert!(bad_step != Some(step), "seed {seed}: no error at step {step}");
                assert!(
                    Seen::from(&batch) == expected[step as usize],
                    "seed {seed}, step {step}"
                );
                send.send(batch).unwrap();
            }
            Err(error) => {
                assert_eq!(bad_step, Some(step), "seed {seed}: {error}");
                assert!(matches!(error, FeedError::Panicked { .. }), "seed {seed}: {error}");
                break;
            }
        }
    }
    // The feed goes before its last batches, or after them.
    if dice.below(2) == 0 {
        drop(feed);
        assert_eq!(chaos.0.live(), 0, "seed {seed}: a thread was not joined");
        drop(send);
        giver.join().unwrap();
    } else {
        drop(send);
        giver.join().unwrap();
        drop(feed);
    }
    nothing_is_left(&chaos.0, &memory, dataset);
}

#[test]
fn random_delays_and_panics_change_no_byte() {
    watched("random delays and panics", || {
        let images = images(UNEVEN, |i| i % 9 == 4);
        let all = bytes_of(&images.dataset);
        for (number, window_bytes) in [0, all / 3, all].into_iter().enumerate() {
            let plan = plan(SHUFFLED, BATCH as u32, window_bytes);
            let mut expected: Vec<Seen> = (0..STEPS)
                .map(|step| specification(&images.dataset, &plan, step))
                .collect();
            bad::once(&mut expected);
            for seed in 0..FEEDS {
                feed_under_stress(&images.dataset, &plan, &expected, 1000 * number as u64 + seed);
            }
        }
    });
}

/// Of each window size.
const FEEDS: u64 = 60;
