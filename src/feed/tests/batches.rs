//! Batches are a function of (plan, data set, step): for any number of workers, slots and ranks, from any step on.

use super::*;
use std::collections::HashSet;

/// The specification loop against the feed, for budgets from one row group a window to a full shuffle, over epoch ends.
#[test]
fn batches_are_those_of_the_plain_loop() {
    let images = images(UNEVEN, |_| false);
    let all = bytes_of(&images.dataset);
    for window_bytes in [0, all / 2, all] {
        let plan = plan(SHUFFLED, 8, window_bytes);
        let expected: Vec<Seen> = (0..16)
            .map(|step| specification(&images.dataset, &plan, step))
            .collect();
        assert_eq!(expected[15].epoch, 2);
        for (workers, ring) in [(1, 2), (2, 5), (3, 3), (7, 4)] {
            assert!(
                run(&images.dataset, &plan, &options(workers, ring), 0, 16) == expected,
                "{workers} workers"
            );
        }
    }
}

/// What `inspect batches` prints: step, pixels, keys.
fn digests(
    dataset: &Arc<Dataset>,
    plan: &FeedPlan,
    options: &FeedOptions,
    start: u64,
    steps: usize,
) -> Vec<(u64, u64, u64)> {
    let mut feed = Feed::start(dataset.clone(), plan.clone(), options, start).unwrap();
    (0..steps)
        .map(|_| feed.next().unwrap().unwrap())
        .map(|batch| (batch.step, batch.pixels_digest(), batch.keys_digest()))
        .collect()
}

/// Budgets from nothing (a row group a window) over parts of the data set to more than all of it.
fn budgets(all: u64) -> [u64; 7] {
    [0, all / 6, all / 2, all - 1, all, 2 * all, u64::MAX]
}

#[test]
fn workers_and_slots_change_nothing_under_any_window() {
    let images = images(UNEVEN, |i| i % 13 == 3);
    let mut first = None;
    for window_bytes in budgets(bytes_of(&images.dataset)) {
        let plan = plan(SHUFFLED, 8, window_bytes);
        let expected = digests(&images.dataset, &plan, &options(1, 2), 0, 15);
        let distinct: HashSet<u64> = expected.iter().map(|digest| digest.1).collect();
        assert_eq!(distinct.len(), 15);
        for workers in WORKERS {
            for ring in 2..=8 {
                assert_eq!(
                    digests(&images.dataset, &plan, &options(workers, ring), 0, 15),
                    expected,
                    "{workers} workers, {ring} slots, a budget of {window_bytes} bytes"
                );
            }
        }
        // The window is part of the order, until it holds everything.
        let whole = window_bytes >= bytes_of(&images.dataset);
        let full = if whole {
            first.get_or_insert(expected.clone())
        } else {
            &expected
        };
        assert_eq!(*full, expected, "a full shuffle is one, whatever the budget beyond it");
    }
}

/// Every step of two epochs as a start, so across both their ends, for windows below and above the data set.
#[test]
fn any_start_step_gives_the_rest_of_the_same_run() {
    let images = images(UNEVEN, |i| i % 7 == 3);
    let all = bytes_of(&images.dataset);
    for window_bytes in [0, all / 3, all / 2, all] {
        let plan = plan(SHUFFLED, 8, window_bytes);
        let whole: Vec<Seen> = (0..18)
            .map(|step| specification(&images.dataset, &plan, step))
            .collect();
        for start in 0..16 {
            let workers = WORKERS[start as usize % WORKERS.len()];
            let rest = run(
                &images.dataset,
                &plan,
                &options(workers, 2 + start as u32 % 7),
                start,
                3,
            );
            assert_eq!(rest.len(), 3.min(18 - start as usize));
            for (seen, expected) in rest.iter().zip(&whole[start as usize..]) {
                // Rejects depend on what the run has met before; everything else does not.
                let bare = |seen: &Seen| Seen {
                    rejects: vec![],
                    ..seen.clone()
                };
                assert!(bare(seen) == bare(expected), "start {start}, step {}", seen.step);
            }
        }
    }
}

/// A run that is stopped and continued again and again, each time with other workers and slots, and with a batch or two
/// fetched ahead that are lost, is the run that never stopped; the quarantine too.
#[test]
fn a_resume_of_a_resume_is_the_same_run() {
    let images = images(UNEVEN, |i| i % 5 == 3);
    let all = bytes_of(&images.dataset);
    for window_bytes in [all / 3, all] {
        let plan = plan(SHUFFLED, 8, window_bytes);
        let whole = run(&images.dataset, &plan, &options(2, 4), 0, 30);
        let (mut seen, mut state) = (Vec::new(), QuarantineState::default());
        for (turn, steps) in [1, 5, 2, 7, 1, 6, 8].into_iter().enumerate() {
            let options = options(WORKERS[turn % WORKERS.len()], 2 + turn as u32);
            let start = seen.len() as u64;
            let mut feed = Feed::start(images.dataset.clone(), plan.clone(), &options, start).unwrap();
            feed.restore_quarantine(state);
            for _ in 0..steps {
                seen.push(Seen::from(feed.next().unwrap().unwrap()));
            }
            for _ in 0..turn % 3 {
                feed.next().unwrap().unwrap();
            }
            state = feed.quarantine_state_after(seen.len() as u64 - 1).unwrap();
        }
        assert!(seen == whole);
    }
}

#[test]
fn an_epoch_has_each_sample_once_but_for_the_dropped_tail() {
    let images = images(UNEVEN, |_| false);
    let plan = plan(SHUFFLED, 8, bytes_of(&images.dataset) / 2);
    let shape = plan.shape(&images.dataset).unwrap();
    assert_eq!((shape.samples, shape.steps_per_epoch, shape.dropped), (61, 7, 5));
    for epoch in run(&images.dataset, &plan, &options(3, 4), 0, 21).chunks(7) {
        let keys: HashSet<SampleKey> = epoch.iter().flat_map(|batch| batch.keys.clone()).collect();
        assert_eq!(keys.len(), 56);
        assert!(epoch.iter().all(|batch| batch.epoch == epoch[0].epoch));
    }
}

#[test]
fn ranks_side_by_side_give_the_same_global_batches() {
    let images = images(UNEVEN, |i| i % 9 == 0);
    for passes in [SHUFFLED, Passes::Sequential] {
        let alone = plan(passes, 8, bytes_of(&images.dataset) / 3);
        let expected = run(&images.dataset, &alone, &options(2, 3), 1, 10);
        assert!(expected.len() >= 7);
        for world in [1, 2, 4, 8] {
            let share = (8 / world) as usize;
            for rank in 0..world {
                let mine = FeedPlan {
                    rank,
                    world,
                    ..alone.clone()
                };
                let seen = run(&images.dataset, &mine, &options(3, 2), 1, 10);
                // A rank beyond the end of a short last batch gets none.
                assert!(seen.len() + 1 >= expected.len());
                for (seen, global) in seen.iter().zip(&expected) {
                    let first = rank as usize * share;
                    let slice = first..(first + share).min(global.keys.len());
                    assert_eq!(seen.keys, global.keys[slice.clone()]);
                    assert_eq!(seen.labels, global.labels[slice.clone()]);
                    for view in 0..2 {
                        let of = |seen: &Seen, range: std::ops::Range<usize>| {
                            let (view_bytes, len) = ((SIDE * SIDE * 3) as usize, seen.keys.len());
                            let at = |i| (view * len + i) * view_bytes;
                            seen.pixels[at(range.start)..at(range.end)].to_vec()
                        };
                        assert!(of(seen, 0..slice.len()) == of(global, slice.clone()));
                    }
                }
            }
        }
    }
}

#[test]
fn a_sequential_pass_ends_with_a_short_batch_and_then_none() {
    let images = images(UNEVEN, |_| false);
    let plan = FeedPlan {
        views: centre(),
        ..plan(Passes::Sequential, 8, 0)
    };
    let expected: Vec<Seen> = (0..8).map(|step| specification(&images.dataset, &plan, step)).collect();
    for workers in [1, 2, 7] {
        assert!(run(&images.dataset, &plan, &options(workers, 3), 0, 99) == expected);
    }
    assert_eq!(expected[7].keys.len(), 5);
    assert_eq!(
        expected
            .iter()
            .flat_map(|batch| batch.labels.clone())
            .collect::<Vec<_>>(),
        (0..61).collect::<Vec<_>>()
    );
    let mut feed = Feed::start(images.dataset.clone(), plan.clone(), &options(2, 2), 7).unwrap();
    assert!(feed.next().unwrap().is_some());
    assert!(feed.next().unwrap().is_none() && feed.next().unwrap().is_none());
    let mut beyond = Feed::start(images.dataset.clone(), plan, &options(2, 2), 8).unwrap();
    assert!(beyond.next().unwrap().is_none());
}

/// A data set of one window is read once, however many epochs go by; a windowed one is read once an epoch, less the
/// tail.
#[test]
fn a_small_data_set_is_read_once() {
    let images = images(UNEVEN, |_| false);
    let all = bytes_of(&images.dataset);
    let read = |window_bytes| {
        let mut feed = Feed::start(
            images.dataset.clone(),
            plan(SHUFFLED, 8, window_bytes),
            &options(2, 3),
            0,
        )
        .unwrap();
        for _ in 0..21 {
            feed.next().unwrap().unwrap();
        }
        let gauges = feed.gauges();
        assert_eq!(gauges.batches, 21);
        assert!(gauges.images >= 21 * 8 && gauges.time_to_first_batch_s.unwrap() > 0.0);
        gauges.bytes_read
    };
    assert_eq!(read(all), all);
    assert!(read(all / 2) > 2 * all);
}

/// Batches may be given back late, out of order and on another thread, as a device does.
#[test]
fn batches_come_back_in_any_order() {
    let images = images(UNEVEN, |_| false);
    let plan = plan(SHUFFLED, 8, bytes_of(&images.dataset) / 2);
    let expected: Vec<Seen> = (0..30)
        .map(|step| specification(&images.dataset, &plan, step))
        .collect();
    let (send, receive) = std::sync::mpsc::sync_channel::<Batch>(1);
    let device = std::thread::spawn(move || {
        let mut held = Vec::new();
        for batch in receive {
            held.push(batch);
            if held.len() == 2 {
                held.swap_remove(0);
            }
        }
    });
    let mut feed = Feed::start(images.dataset.clone(), plan, &options(3, 5), 0).unwrap();
    for expected in &expected {
        let batch = feed.next().unwrap().unwrap();
        assert!(batch.pixels() == expected.pixels && batch.keys() == expected.keys);
        send.send(batch).unwrap();
    }
    drop(send);
    device.join().unwrap();
}

#[test]
fn slot_memory_is_the_givers_and_may_run_out() {
    struct Two(u32);
    impl SlotMemory for Two {
        fn allocate(&mut self, len: usize) -> Result<Box<dyn SlotBytes>, Box<dyn std::error::Error + Send + Sync>> {
            if self.0 == 0 {
                return Err("no more page-locked memory".into());
            }
            self.0 -= 1;
            HeapMemory.allocate(len)
        }
    }
    let images = images(UNEVEN, |_| false);
    let plan = plan(SHUFFLED, 8, 0);
    let start = |slots| Feed::start_with(images.dataset.clone(), plan.clone(), &options(2, 3), 0, &mut Two(slots));
    let Err(FeedError::Memory {
        slots: 3,
        bytes,
        source: Some(source),
    }) = start(2).map(|_| ())
    else {
        panic!("memory ran out unseen");
    };
    assert_eq!(
        (bytes, source.to_string().as_str()),
        (2 * 8 * 12 * 12 * 3, "no more page-locked memory")
    );
    let mut feed = start(3).unwrap();
    feed.next().unwrap().unwrap();
}

#[test]
fn plans_that_cannot_be_are_refused() {
    let images = images(UNEVEN, |_| false);
    let good = plan(SHUFFLED, 8, 0);
    let refused = |plan: FeedPlan, options: FeedOptions, step| {
        Feed::start(images.dataset.clone(), plan, &options, step)
            .map(|_| ())
            .unwrap_err()
    };
    let usual = || options(1, 2);
    assert!(matches!(
        refused(
            FeedPlan {
                batch_size: 62,
                ..good.clone()
            },
            usual(),
            0
        ),
        FeedError::SmallerThanBatch { samples: 61, batch: 62 }
    ));
    for (batch_size, rank, world) in [(0, 0, 1), (8, 1, 1), (8, 0, 3), (8, 0, 0)] {
        let plan = FeedPlan {
            batch_size,
            rank,
            world,
            ..good.clone()
        };
        assert!(matches!(refused(plan, usual(), 0), FeedError::Ranks { .. }));
    }
    assert!(matches!(
        refused(
            FeedPlan {
                views: vec![],
                ..good.clone()
            },
            usual(),
            0
        ),
        FeedError::Views { .. }
    ));
    let mut sizes = FeedPlan {
        views: centre(),
        ..good.clone()
    };
    sizes.views.push(View::Center {
        resize: 9,
        size: 9,
        interpolation: view::Interpolation::Bilinear,
    });
    assert!(matches!(refused(sizes, usual(), 0), FeedError::Views { sizes } if sizes == [SIDE, 9]));
    assert!(matches!(
        refused(good.clone(), options(1, 1), 0),
        FeedError::Option { name: "feed.ring", .. }
    ));
    let rate = FeedOptions {
        max_bad_fraction: f64::NAN,
        ..usual()
    };
    assert!(matches!(refused(good.clone(), rate, 0), FeedError::Option { .. }));
    assert!(matches!(refused(good, usual(), u64::MAX), FeedError::StartStep { .. }));
}

/// Real photographs and CIFAR-10, where they are at hand: two workers against seven, at 224 and at 32 pixels.
#[test]
fn real_images_too() {
    for (name, size, start) in [("photos", 64, 1), ("cifar10", 32, 900)] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name);
        if !folder.is_dir() {
            eprintln!("skipped: no {}", folder.display());
            continue;
        }
        let dataset = open(&folder);
        let views = ViewsOptions {
            size,
            ..Default::default()
        }
        .views()
        .to_vec();
        let plan = FeedPlan {
            views,
            ..plan(SHUFFLED, 32, 16 << 20)
        };
        let digests = |workers| -> Vec<(u64, u64)> {
            let mut feed = Feed::start(dataset.clone(), plan.clone(), &options(workers, 3), start).unwrap();
            (0..3)
                .map(|_| feed.next().unwrap().unwrap())
                .map(|batch| (batch.pixels_digest(), batch.keys_digest()))
                .collect()
        };
        assert_eq!(digests(2), digests(7));
    }
}
