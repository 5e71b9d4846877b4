//! Bad samples, bad files and dead threads: the same answer at the same step for any number of workers.

use super::*;
use crate::data::ShardId;
use std::collections::HashSet;

/// Keeps the first reject of each key, as a run does.
pub(super) fn once(batches: &mut [Seen]) {
    let mut known = HashSet::new();
    for batch in batches {
        batch.rejects.retain(|reject| known.insert(reject.key));
    }
}

#[test]
fn bad_samples_are_replaced_and_reported_once_in_batch_order() {
    for tenths in [1, 3, 8] {
        let images = images(UNEVEN, |i| (i * 7 + 9) % 10 < tenths);
        // At eight tenths a small window may be all bad.
        let all = bytes_of(&images.dataset);
        for window_bytes in [all, if tenths < 8 { all / 2 } else { all }] {
            let plan = plan(SHUFFLED, 8, window_bytes);
            let mut expected: Vec<Seen> = (0..15)
                .map(|step| specification(&images.dataset, &plan, step))
                .collect();
            once(&mut expected);
            assert!(expected.iter().any(|batch| !batch.rejects.is_empty()));
            for workers in [1, 2, 7] {
                let seen = run(&images.dataset, &plan, &options(workers, 3), 0, 15);
                assert!(seen == expected, "{tenths} tenths, {workers} workers");
            }
        }
    }
}

#[test]
fn a_resume_goes_on_with_the_quarantine() {
    let images = images(UNEVEN, |i| i % 4 == 1);
    let plan = plan(SHUFFLED, 8, bytes_of(&images.dataset));
    let whole = run(&images.dataset, &plan, &options(2, 3), 0, 12);
    let mut feed = Feed::start(images.dataset.clone(), plan.clone(), &options(2, 3), 0).unwrap();
    for _ in 0..5 {
        feed.next().unwrap().unwrap();
    }
    // The trainer has fetched step 4 ahead and saves after step 3.
    let state = feed.quarantine_state_after(3).unwrap();
    drop(feed);
    let mut feed = Feed::start(images.dataset.clone(), plan, &options(3, 4), 4).unwrap();
    feed.restore_quarantine(state);
    let rest: Vec<Seen> = (4..12).map(|_| feed.next().unwrap().unwrap().into()).collect();
    assert!(rest == whole[4..]);
    assert_eq!(
        feed.quarantine_state().bad.len(),
        whole.iter().map(|batch| batch.rejects.len()).sum::<usize>()
    );
}

#[test]
fn a_sequential_pass_leaves_bad_places_absent() {
    let images = images(UNEVEN, |i| i % 3 == 0);
    let plan = FeedPlan {
        views: centre(),
        ..plan(Passes::Sequential, 8, 0)
    };
    let expected: Vec<Seen> = (0..8).map(|step| specification(&images.dataset, &plan, step)).collect();
    for workers in [1, 3] {
        assert!(run(&images.dataset, &plan, &options(workers, 2), 0, 99) == expected);
    }
    let present: Vec<bool> = expected.iter().flat_map(|batch| batch.present.clone()).collect();
    assert_eq!(present, (0..61).map(|i| i % 3 != 0).collect::<Vec<_>>());
}

/// Good batches first, then the error: where it comes is a matter of the order only.
fn until_error(images: &Images, plan: &FeedPlan, options: &FeedOptions) -> (usize, FeedError) {
    let mut feed = Feed::start(images.dataset.clone(), plan.clone(), options, 0).unwrap();
    let mut batches = 0;
    loop {
        match feed.next() {
            Ok(Some(_)) => batches += 1,
            Ok(None) => panic!("the pass ended without the error"),
            Err(error) => {
                assert!(matches!(feed.next(), Err(FeedError::Ended)), "an error ends the feed");
                return (batches, error);
            }
        }
    }
}

#[test]
fn an_all_bad_window_is_an_error_not_a_loop() {
    // Shard 1 is bad as a whole; windows of one row group.
    let images = images(UNEVEN, |i| (18..42).contains(&i));
    let plan = plan(SHUFFLED, 8, 0);
    let order = Order::new(images.dataset.shards(), SHUFFLED, 0);
    let epoch = order.epoch(0);
    let first = (0..61)
        .position(|k| epoch.sample(k, 0).unwrap().shard == ShardId(1))
        .unwrap();
    for workers in [1, 2, 3, 7] {
        let (batches, error) = until_error(&images, &plan, &options(workers, 3));
        assert_eq!(batches, first / 8);
        assert!(matches!(error, FeedError::AllBad { epoch: 0, .. }), "{error}");
        assert!(error.to_string().contains("s1.parquet"), "{error}");
    }
    let images = super::images(&[&[30]], |_| true);
    let (batches, error) = until_error(&images, &plan, &options(4, 2));
    assert!(
        batches == 0 && matches!(error, FeedError::AllBad { samples: 30, .. }),
        "{error}"
    );
}

#[test]
fn the_budget_trips_at_the_same_step() {
    let images = images(UNEVEN, |i| i % 5 == 2);
    let plan = plan(SHUFFLED, 4, bytes_of(&images.dataset) / 2);
    let mut all = run(&images.dataset, &plan, &options(1, 2), 0, 30);
    once(&mut all);
    let count = |step: usize| all[..=step].iter().map(|batch| batch.rejects.len()).sum::<usize>();
    let step = (0..30).find(|&step| count(step) > 4).unwrap();
    for workers in [1, 2, 7] {
        let limit = FeedOptions {
            max_bad: Some(4),
            ..options(workers, 4)
        };
        let (batches, error) = until_error(&images, &plan, &limit);
        assert_eq!(batches, step);
        let FeedError::TooManyBad {
            step: at, bad, rejects, ..
        } = error
        else {
            panic!("{error}")
        };
        assert_eq!((at, bad as usize), (step as u64, count(step)));
        assert_eq!(rejects, all[step].rejects, "the rejects that no batch carries");
    }
    // One sample in five is bad: a limit of a tenth trips once 61 (all) have been tried, of three tenths never.
    let rate = |max_bad_fraction| FeedOptions {
        max_bad_fraction,
        ..options(2, 3)
    };
    let (_, error) = until_error(&images, &plan, &rate(0.1));
    assert!(matches!(error, FeedError::TooManyBad { tried: 61, .. }), "{error}");
    assert_eq!(run(&images.dataset, &plan, &rate(0.3), 0, 40).len(), 40);
}

#[test]
fn a_broken_file_is_an_error_at_its_batch() {
    let images = images(UNEVEN, |_| false);
    let plan = plan(Passes::Sequential, 6, 0);
    // Cut shard 2 after it was opened: samples 42 and up are gone.
    let path = images.folder.path().join("s2.parquet");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 10]).unwrap();
    for workers in [1, 5] {
        let (batches, error) = until_error(&images, &plan, &options(workers, 3));
        assert_eq!(batches, 42 / 6);
        assert!(
            matches!(error, FeedError::Read { ref shard, row_group: 0, .. } if shard == "s2.parquet"),
            "{error}"
        );
    }
}

#[test]
fn a_workers_panic_reaches_the_consumer() {
    let images = images(UNEVEN, |_| false);
    let plan = plan(SHUFFLED, 8, 0);
    let _chaos = chaos::Chaos::install(0, Some((0, 19)), Box::new(|_, _, _| ()));
    for workers in [1, 2, 7] {
        let (batches, error) = until_error(&images, &plan, &options(workers, 3));
        assert_eq!(batches, 2, "position 19 is in batch 2");
        let FeedError::Panicked { thread, message } = error else {
            panic!("{error}")
        };
        assert!(
            thread.starts_with("feed-worker-") && message == "a panic in a view",
            "{thread}: {message}"
        );
    }
}

/// None, one, thirty and all in a hundred: full batches, and a quarantine that says the same, in the same order, for any
/// number of workers.
#[test]
fn any_share_of_bad_rows_gives_full_batches_and_one_quarantine() {
    const SHARDS: &[&[usize]] = &[&[40, 30], &[50], &[20, 60]];
    for percent in [0, 1, 30] {
        let is_bad = |i: u64| (i * 37 + 11) % 100 < percent;
        let images = images(SHARDS, is_bad);
        let all = bytes_of(&images.dataset);
        for window_bytes in [all / 2, all] {
            // Two epochs: a bad row is met again, and told of once.
            let plan = plan(SHUFFLED, 20, window_bytes);
            let first = run(&images.dataset, &plan, &options(1, 2), 0, 20);
            for batch in &first {
                assert!(batch.keys.len() == 20 && batch.present.iter().all(|&present| present));
                assert!(
                    batch.labels.iter().all(|&label| !is_bad(label as u64)),
                    "a substitute is good"
                );
            }
            let rejects: Vec<&Reject> = first.iter().flat_map(|batch| &batch.rejects).collect();
            let mut labels: Vec<u64> = rejects.iter().map(|reject| named(reject, SHARDS)).collect();
            labels.sort_unstable();
            assert_eq!(
                labels,
                (0..200).filter(|&i| is_bad(i)).collect::<Vec<_>>(),
                "each bad row once"
            );
            for workers in WORKERS {
                let seen = run(&images.dataset, &plan, &options(workers, 4), 0, 20);
                assert!(seen == first, "{percent} %, {workers} workers");
            }
        }
    }
    let images = images(SHARDS, |_| true);
    for window_bytes in [0, bytes_of(&images.dataset)] {
        let plan = plan(SHUFFLED, 20, window_bytes);
        for workers in WORKERS {
            let (batches, error) = until_error(&images, &plan, &options(workers, 3));
            assert!(
                batches == 0 && matches!(error, FeedError::AllBad { epoch: 0, .. }),
                "{error}"
            );
            assert!(
                error.to_string().contains("can be decoded") && !error.hints().is_empty(),
                "{error}"
            );
        }
    }
}

/// The sample's number, from its key; its name and reason must be that sample's.
fn named(reject: &Reject, shards: &[&[usize]]) -> u64 {
    let shard = reject.key.shard.0 as usize;
    let before: usize = shards[..shard].iter().flat_map(|groups| *groups).sum();
    let groups: usize = shards[shard][..reject.key.row_group as usize].iter().sum();
    let number = (before + groups) as u64 + u64::from(reject.key.row);
    assert_eq!(reject.shard, format!("s{shard}.parquet"));
    assert_eq!(reject.path, Some(format!("image-{number}.jpg")));
    let (code, words) = if number.is_multiple_of(5) {
        ("null", "no image")
    } else {
        ("truncated", "truncated JPEG")
    };
    assert!(reject.code == code && reject.reason.contains(words), "{reject:?}");
    number
}

/// A rate that is broken ends the run at the step at which the plain loop's count breaks it, for any number of workers.
#[test]
fn the_rate_ends_the_run_at_the_same_step() {
    let images = images(&[&[300], &[500], &[400]], |i| (i * 37 + 11) % 100 < 30 && i > 200);
    let plan = plan(SHUFFLED, 40, bytes_of(&images.dataset) / 2);
    // 1200 samples: judged from the thousandth try on.
    let limit = |workers| FeedOptions {
        max_bad_fraction: 0.2,
        ..options(workers, 3)
    };
    let mut steps = Vec::new();
    for workers in WORKERS {
        let (batches, error) = until_error(&images, &plan, &limit(workers));
        let text = error.to_string();
        let FeedError::TooManyBad { step, bad, tried, .. } = error else {
            panic!("{error}")
        };
        assert!(
            batches as u64 == step && tried >= 1000 && bad as f64 > 0.2 * tried as f64,
            "{text}"
        );
        assert!(
            text.contains("cannot be decoded") && text.contains("feed.max_bad_fraction = 0.2"),
            "{text}"
        );
        steps.push((step, bad, tried, text));
    }
    steps.dedup();
    assert_eq!(steps.len(), 1, "{steps:?}");
}
