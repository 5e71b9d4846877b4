//! Windows in odd places: what is read is what will be claimed, and nothing waits for ever.
//!
//! Expectations are counted position by position from the order, not from the feed's own arithmetic.

use super::order::{Group, WINDOW_PLACES};
use super::*;

/// A window, and how many places of this rank's batches it fills.
struct Claimed {
    bytes: u64,
    claims: u64,
    groups: Vec<Group>,
}

/// The windows of `epochs` epochs from the start step's on that someone claims, in order.
fn claimed(dataset: &Dataset, plan: &FeedPlan, start: u64, epochs: u32) -> Vec<Claimed> {
    let order = Order::new(dataset.shards(), plan.passes, plan.window_bytes);
    let (batch, world, rank) = (u64::from(plan.batch_size), u64::from(plan.world), u64::from(plan.rank));
    let shuffled = plan.passes != Passes::Sequential;
    let steps = if shuffled {
        order.samples() / batch
    } else {
        order.samples().div_ceil(batch)
    };
    let used = if shuffled { steps * batch } else { order.samples() };
    let first = (start / steps) as u32;
    let last = if shuffled { first + epochs } else { 1 };
    let mut found = Vec::new();
    for epoch in first..last {
        for window in order.epoch(epoch).into_windows() {
            let mine = |position: &u64| {
                let step = u64::from(epoch) * steps + position / batch;
                *position < used && step >= start && position % batch / (batch / world) == rank
            };
            let claims = (window.first..window.first + window.rows).filter(mine).count() as u64;
            if claims > 0 {
                found.push(Claimed {
                    bytes: window.bytes,
                    claims,
                    groups: window.groups,
                });
            }
        }
    }
    found
}

/// Bytes that must be read for these windows. A row group that was in a window just before, the one that makes room included, may
/// still be held, at the end of an epoch and the start of the next, and then it is not read again.
fn at_least(windows: &[Claimed]) -> u64 {
    let mut bytes = 0;
    for (number, window) in windows.iter().enumerate() {
        let before = &windows[number.saturating_sub(WINDOW_PLACES)..number];
        let held = before.iter().flat_map(|window| &window.groups);
        let fresh = |group: &&Group| {
            !held
                .clone()
                .any(|held| (held.shard, held.row_group) == (group.shard, group.row_group))
        };
        bytes += window.groups.iter().filter(fresh).map(|group| group.bytes).sum::<u64>();
    }
    bytes
}

/// Waits until the workers have filled the ring and the reader its places; then the gauges stand still.
fn settled(feed: &Feed, images: u64, windows: u64) -> GaugesSnapshot {
    while feed.gauges().images < images || feed.gauges().windows < windows {
        thread::yield_now();
    }
    // Time for what must not happen: one window more.
    std::thread::sleep(std::time::Duration::from_millis(5));
    feed.gauges()
}

/// Endless passes: the reader is three windows ahead of what is unfinished, and has passed over those nobody claims.
#[test]
fn the_reader_reads_what_is_claimed_and_three_windows_ahead() {
    watched("reading ahead", || {
        let images = images(UNEVEN, |_| false);
        let all = bytes_of(&images.dataset);
        let largest = images.dataset.shards().iter().flat_map(|shard| &shard.row_groups);
        // No window is larger than a third of this, so that three fit.
        let budget = 3 * largest.map(|group| group.bytes).max().unwrap();
        let (mut one_number, mut cases) = (0, 0);
        for window_bytes in [budget.min(all - 1), all] {
            for (rank, world) in [(0, 1), (3, 4)] {
                for start in 0..15 {
                    let plan = FeedPlan {
                        rank,
                        world,
                        ..plan(SHUFFLED, 8, window_bytes)
                    };
                    let (ring, taken) = (3, start % 4);
                    let mut feed = Feed::start(images.dataset.clone(), plan.clone(), &options(3, ring), start).unwrap();
                    (0..taken).for_each(|_| drop(feed.next().unwrap().unwrap()));
                    let made = (taken + u64::from(ring)) * u64::from(8 / world);
                    let windows = claimed(&images.dataset, &plan, start, 4);
                    let mut past = 0;
                    let unfinished = windows.iter().position(|window| {
                        past += window.claims;
                        past > made
                    });
                    let wanted = unfinished.unwrap() as u64 + 3;
                    let gauges = settled(&feed, made, wanted);
                    assert_eq!(
                        (gauges.images, gauges.windows),
                        (made, wanted),
                        "start {start}, rank {rank} of {world}, budget {window_bytes}"
                    );
                    let windows = &windows[..wanted as usize];
                    let (least, most) = (at_least(windows), windows.iter().map(|window| window.bytes).sum());
                    // One number where no row group comes again while it is held.
                    cases += 1;
                    one_number += u32::from(least == most);
                    assert!(
                        (least..=most).contains(&gauges.bytes_read),
                        "{} bytes read of {least} to {most}",
                        gauges.bytes_read
                    );
                    if window_bytes == all {
                        assert_eq!(gauges.bytes_read, all, "read once");
                    }
                }
            }
        }
        println!("bytes: one number in {one_number} of {cases} cases");
        assert!(one_number > 0);
    });
}

/// The dropped tail: a window that lies in it as a whole is not read.
#[test]
fn a_window_in_the_dropped_tail_is_never_read() {
    watched("the dropped tail", || {
        let images = images(UNEVEN, |_| false);
        let plan = plan(SHUFFLED, 8, 0);
        let order = Order::new(images.dataset.shards(), SHUFFLED, 0);
        let groups = order.epoch(0).windows();
        // 56 of 61 samples are used; a last window of one or three rows is in the tail.
        let in_tail = |epoch: u32| order.epoch(epoch).into_windows().any(|window| window.first >= 56);
        let epoch = (0..100)
            .find(|&epoch| in_tail(epoch))
            .expect("some epoch ends with a small row group");
        let start = u64::from(epoch) * 7;
        assert!(claimed(&images.dataset, &plan, start, 1).len() < groups);
        let mut feed = Feed::start(images.dataset.clone(), plan.clone(), &options(2, 2), start).unwrap();
        for step in start..start + 9 {
            assert!(Seen::from(feed.next().unwrap().unwrap()) == specification(&images.dataset, &plan, step));
        }
    });
}

/// Finite passes from any step: as many windows and bytes as the claims need, to the byte.
#[test]
fn a_pass_reads_exactly_the_windows_it_claims() {
    watched("sequential passes", || {
        let images = images(UNEVEN, |_| false);
        let all = bytes_of(&images.dataset);
        for window_bytes in [0, all / 2, all] {
            for (rank, world) in [(0, 1), (1, 2), (7, 8)] {
                for start in 0..9 {
                    let plan = FeedPlan {
                        rank,
                        world,
                        ..plan(Passes::Sequential, 8, window_bytes)
                    };
                    let windows = claimed(&images.dataset, &plan, start, 1);
                    let mut feed = Feed::start(images.dataset.clone(), plan, &options(2, 2), start).unwrap();
                    while feed.next().unwrap().is_some() {}
                    let gauges = feed.gauges();
                    assert_eq!(
                        (gauges.images, gauges.windows, gauges.bytes_read),
                        (
                            windows.iter().map(|window| window.claims).sum(),
                            windows.len() as u64,
                            windows.iter().map(|window| window.bytes).sum()
                        ),
                        "start {start}, rank {rank} of {world}, budget {window_bytes}"
                    );
                }
            }
        }
    });
}

/// Budgets of nothing, of one row group, and of less than one, from every step: the same batches, and an end.
#[test]
fn tight_budgets_from_any_step_come_to_an_end() {
    watched("tight budgets", || {
        let images = images(UNEVEN, |i| i % 6 == 5);
        let mut sizes: Vec<u64> = images
            .dataset
            .shards()
            .iter()
            .flat_map(|shard| shard.row_groups.iter().map(|group| group.bytes))
            .collect();
        sizes.sort_unstable();
        let budgets = [0, 1, sizes[0], sizes[3], sizes[6] - 1, sizes[6], sizes[6] + 1];
        for window_bytes in budgets {
            let plan = plan(SHUFFLED, 8, window_bytes);
            let shape = plan.shape(&images.dataset).unwrap();
            let above = sizes.iter().filter(|&&bytes| bytes > window_bytes).count();
            assert_eq!(shape.oversized_row_groups as usize, above);
            let whole: Vec<Seen> = (0..17)
                .map(|step| specification(&images.dataset, &plan, step))
                .collect();
            for start in 0..14 {
                let options = options(WORKERS[start % 5], 2 + start as u32 % 3);
                for seen in run(&images.dataset, &plan, &options, start as u64, 3) {
                    let expected = &whole[seen.step as usize];
                    assert!(
                        seen.pixels == expected.pixels && seen.keys == expected.keys,
                        "start {start}"
                    );
                }
            }
        }
    });
}

/// Bad as a whole, from the first window, in the middle, and for every number of workers: an error, and the threads end.
#[test]
fn an_all_bad_window_ends_the_feed_wherever_it_comes() {
    watched("bad windows", || {
        // The 20 rows of the largest group, which is above the budget.
        let images = images(UNEVEN, |i| (22..42).contains(&i));
        let plan = plan(SHUFFLED, 8, 1);
        for start in 0..21 {
            let mut told = None;
            for workers in WORKERS {
                let mut feed = Feed::start(images.dataset.clone(), plan.clone(), &options(workers, 2), start).unwrap();
                let (mut taken, mut error) = (0, None);
                while error.is_none() && taken < 20 {
                    error = feed.next().err();
                    taken += 1;
                }
                let error = error.unwrap();
                let text = error.to_string();
                let FeedError::AllBad { samples: 20, first, .. } = error else {
                    panic!("start {start}, {workers} workers: {error:?}")
                };
                assert_eq!(
                    (first.shard.as_str(), first.key.row_group, first.key.row),
                    ("s1.parquet", 2, 0)
                );
                assert_eq!(told.get_or_insert(text.clone()), &text, "{workers} workers");
            }
        }
    });
}

/// The stall report's sample: the one that the worker turned to last.
#[test]
fn a_worker_says_which_sample_it_is_at() {
    watched("one worker", || {
        let images = images(UNEVEN, |_| false);
        let plan = plan(SHUFFLED, 8, 1 << 20);
        let mut feed = Feed::start(images.dataset.clone(), plan.clone(), &options(1, 2), 0).unwrap();
        for step in 0..9 {
            // The ring is full, so the last place of its last batch was the last sample.
            settled(&feed, (step + 2) * 8, 0);
            let last = *specification(&images.dataset, &plan, step + 1).keys.last().unwrap();
            assert_eq!(feed.gauges.workers[0].sample(), Some(last));
            feed.next().unwrap().unwrap();
        }
    });
}
