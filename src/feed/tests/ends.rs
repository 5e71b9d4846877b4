//! The end of a feed, at any moment: every thread joined, all memory back, kept batches whole; and sleep, not spinning.

use super::chaos::{Chaos, Installed};
use super::slot::CountedMemory;
use super::stress::nothing_is_left;
use super::sync::Point;
use super::*;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::time::Duration;

const MOMENT: Duration = Duration::from_millis(1);

/// Dropped after every number of batches, the last ones kept, while the threads are somewhere.
#[test]
fn dropping_after_any_batch_joins_all_threads() {
    watched("dropping after any batch joins all threads", || {
        let images = images(UNEVEN, |i| i % 11 == 0);
        let plan = plan(SHUFFLED, 8, bytes_of(&images.dataset) / 2);
        let expected: Vec<Seen> = (0..12)
            .map(|step| specification(&images.dataset, &plan, step))
            .collect();
        for (batches, workers, kept) in (0..12).flat_map(|batches| [(batches, 1, 0), (batches, 3, 2), (batches, 5, 1)])
        {
            let chaos = Chaos::delays(batches as u64, None);
            let mut memory = CountedMemory::default();
            let mut feed = Feed::start_with(
                images.dataset.clone(),
                plan.clone(),
                &options(workers, 3),
                0,
                &mut memory,
            )
            .unwrap();
            let mut held = std::collections::VecDeque::new();
            for _ in 0..batches {
                held.push_back(feed.next().unwrap().unwrap());
                held.drain(..held.len().saturating_sub(kept));
            }
            drop(feed);
            assert_eq!(chaos.0.started(), 1 + workers as usize);
            assert_eq!(chaos.0.live(), 0, "a thread was not joined");
            let first = batches - held.len();
            let seen = std::thread::spawn(move || {
                held.into_iter()
                    .map(|batch| batch.pixels().to_vec())
                    .collect::<Vec<_>>()
            });
            for (pixels, expected) in seen.join().unwrap().iter().zip(&expected[first..]) {
                assert!(*pixels == expected.pixels, "a kept batch has changed");
            }
            nothing_is_left(&chaos.0, &memory, &images.dataset);
        }
    });
}

#[test]
fn dropping_after_an_error_joins_all_threads() {
    watched("dropping after an error joins all threads", || {
        let images = images(UNEVEN, |_| false);
        let plan = plan(SHUFFLED, 8, bytes_of(&images.dataset) / 2);
        for position in 0..56 {
            let chaos = Chaos::delays(position, Some((0, position)));
            let mut memory = CountedMemory::default();
            let workers = 1 + position as u32 % 4;
            let mut feed = Feed::start_with(
                images.dataset.clone(),
                plan.clone(),
                &options(workers, 2),
                0,
                &mut memory,
            )
            .unwrap();
            for _ in 0..position / 8 {
                feed.next().unwrap().unwrap();
            }
            assert!(matches!(feed.next(), Err(FeedError::Panicked { .. })));
            drop(feed);
            nothing_is_left(&chaos.0, &memory, &images.dataset);
        }
    });
}

/// A feed whose threads can be seen: where each was last.
struct Observed {
    feed: Feed,
    memory: CountedMemory,
    chaos: Installed,
    last: Arc<[AtomicU8; 8]>,
    board: Arc<OnceLock<Arc<Board>>>,
    gate: Arc<AtomicBool>,
}

const ASLEEP: u8 = 1;
const AWAKE: u8 = 2;

/// Starts a feed of three workers and two slots. At the `held` point a thread of the given kind (reader or not) waits
/// until the gate opens or the feed is stopped.
fn observe(images: &Images, held: Option<(bool, Point)>) -> Observed {
    let last: Arc<[AtomicU8; 8]> = Arc::default();
    let (board, gate) = (
        Arc::new(OnceLock::<Arc<Board>>::new()),
        Arc::new(AtomicBool::new(false)),
    );
    let (seen, stopped, open) = (last.clone(), board.clone(), gate.clone());
    let chaos = Chaos::install(
        0,
        None,
        Box::new(move |number, point, _| {
            seen[number].store(if point == Point::Sleep { ASLEEP } else { AWAKE }, Ordering::Relaxed);
            if held == Some((number == 1, point)) && number > 0 {
                while !open.load(Ordering::Relaxed) && !stopped.get().is_some_and(|board| board.stopped()) {
                    std::thread::sleep(MOMENT);
                }
            }
        }),
    );
    let mut memory = CountedMemory::default();
    let plan = plan(SHUFFLED, 8, 0);
    let feed = Feed::start_with(images.dataset.clone(), plan, &options(3, 2), 0, &mut memory).unwrap();
    let _ = board.set(feed.board.clone());
    Observed {
        feed,
        memory,
        chaos,
        last,
        board,
        gate,
    }
}

impl Observed {
    /// Waits until these threads (1: the reader, then workers) have gone to bed and stay there.
    fn settle(&self, threads: std::ops::Range<usize>) {
        let mut quiet = 0;
        while quiet < 20 {
            std::thread::sleep(MOMENT);
            let asleep = |number: usize| self.last[number].load(Ordering::Relaxed) == ASLEEP;
            quiet = if threads.clone().all(asleep) { quiet + 1 } else { 0 };
        }
    }

    fn drop_feed(self, images: &Images) {
        let Self {
            feed,
            memory,
            chaos,
            board,
            ..
        } = self;
        drop(feed);
        drop(board);
        nothing_is_left(&chaos.0, &memory, &images.dataset);
    }
}

/// Ring and windows are full: workers wait for a slot, the reader for a window's place.
#[test]
fn dropping_a_full_feed_joins_all_threads() {
    watched("dropping a full feed joins all threads", || {
        let images = images(UNEVEN, |_| false);
        let observed = observe(&images, None);
        observed.settle(1..5);
        let snapshot = observed.feed.gauges();
        assert_eq!(snapshot.images, 16, "two slots of eight, and no more");
        observed.drop_feed(&images);
    });
}

/// Ring all in flight, workers parked: bytes that another thread drops wake them, and the feed goes on.
#[test]
fn bytes_dropped_elsewhere_wake_parked_workers() {
    watched("bytes dropped elsewhere wake parked workers", || {
        let images = images(UNEVEN, |_| false);
        let mut observed = observe(&images, None);
        for step in [2, 5] {
            let mut bytes = || observed.feed.next().unwrap().unwrap().into_bytes();
            let both = [bytes(), bytes()];
            observed.settle(2..5);
            let in_flight = SlotPhases {
                in_flight: 2,
                ..Default::default()
            };
            assert_eq!(observed.feed.slots(), in_flight);
            std::thread::spawn(move || drop(both)).join().unwrap();
            let batch = observed.feed.next().unwrap().unwrap();
            let expected = specification(&images.dataset, &plan(SHUFFLED, 8, 0), step);
            assert!(batch.step == step && batch.pixels() == expected.pixels);
        }
        observed.drop_feed(&images);
    });
}

/// The disk is slow: workers wait for their window.
#[test]
fn dropping_an_empty_feed_joins_all_threads() {
    watched("dropping an empty feed joins all threads", || {
        let images = images(UNEVEN, |_| false);
        let observed = observe(&images, Some((true, Point::Publish)));
        observed.settle(2..5);
        observed.drop_feed(&images);
    });
}

/// A worker that never has to wait looks whether the feed is stopped, too: a drop does not fill the ring first.
#[test]
fn a_stop_ends_work_at_the_next_sample() {
    watched("a stop ends work at the next sample", || {
        let images = images(UNEVEN, |_| false);
        let observed = observe(&images, Some((false, Point::Claim)));
        let gauges = observed.feed.gauges_handle();
        while gauges.snapshot().windows == 0 {
            std::thread::sleep(MOMENT);
        }
        observed.drop_feed(&images);
        assert_eq!(gauges.snapshot().images, 0, "samples were made for nobody");
    });
}

/// Nanoseconds on a processor, of a thread's folder under `/proc`.
fn processor_time(task: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
    text.split(' ').next()?.parse().ok()
}

/// Share of `wall` that the threads were running: a spinning thread is 1, a parked one 0.
fn running(tasks: &[std::path::PathBuf], wall: Duration) -> Option<f64> {
    let sum = || tasks.iter().map(|task| processor_time(task)).sum::<Option<u64>>();
    let before = sum().filter(|_| !tasks.is_empty())?;
    std::thread::sleep(wall);
    Some((sum()? - before) as f64 / wall.as_nanos() as f64)
}

/// Whether this kernel counts what a thread runs: some count nothing, and then every thread seems to sleep. A thread spins
/// until it shows, read in the same way as the feed's, or for ten seconds.
fn running_shows() -> bool {
    let enough = Arc::new(AtomicBool::new(false));
    let (send, receive) = std::sync::mpsc::channel();
    let end = enough.clone();
    let spinner = std::thread::spawn(move || {
        let task = std::fs::read_link("/proc/thread-self").map(|task| Path::new("/proc").join(task));
        send.send(task.ok()).unwrap();
        while !end.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    });
    let task = receive.recv().unwrap();
    let shows = task.is_some_and(|task| {
        let spun = || processor_time(&task).unwrap_or(0);
        let before = spun();
        (0..1_000).any(|_| {
            std::thread::sleep(10 * MOMENT);
            spun() > before + 5_000_000
        })
    });
    enough.store(true, Ordering::Relaxed);
    spinner.join().unwrap();
    shows
}

/// A bound on spinning, far above the cost of sleeping, far below that of one thread that looks again and again.
#[test]
fn idle_threads_sleep() {
    if !running_shows() {
        eprintln!("skipped: /proc/<process>/task/<thread>/schedstat does not show here that a thread runs");
        return;
    }
    watched("idle threads sleep", || {
        let images = images(UNEVEN, |_| false);
        let wall = Duration::from_millis(300);
        let full = observe(&images, None);
        full.settle(1..5);
        let tasks = full.chaos.0.tasks();
        let share = running(&tasks, wall).expect("it was shown for another thread");
        println!("a full feed of 4 threads runs {share:.5} of the time");
        assert_eq!(tasks.len(), 4);
        assert!(share < 0.1, "a full feed runs {share:.3} of the time");
        full.drop_feed(&images);

        // A consumer that waits for its first batch, with a reader that is held up.
        let empty = observe(&images, Some((true, Point::Publish)));
        empty.settle(2..5);
        let Observed { mut feed, gate, .. } = empty;
        let (send, receive) = std::sync::mpsc::channel();
        let consumer = std::thread::spawn(move || {
            send.send(Path::new("/proc").join(std::fs::read_link("/proc/thread-self").unwrap()))
                .unwrap();
            feed.next().unwrap().unwrap();
        });
        let consumer_task = receive.recv().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let mut tasks = empty.chaos.0.tasks();
        // The reader is in the test's own gate.
        tasks.retain(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() != "feed-reader"));
        tasks.push(consumer_task);
        assert_eq!(tasks.len(), 4);
        let share = running(&tasks, wall).unwrap();
        println!("a waiting consumer and 3 idle workers run {share:.5} of the time");
        assert!(
            share < 0.1,
            "a waiting consumer and idle workers run {share:.3} of the time"
        );
        gate.store(true, Ordering::Relaxed);
        consumer.join().unwrap();
    });
}
