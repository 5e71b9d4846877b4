//! Delays and panics at chosen or random points of the feed's threads, and a count of those that live.
//!
//! In: [`Chaos`], which a test installs in its own thread; the threads of a feed inherit it from the thread that starts
//! the feed, so tests that run side by side do not meet. Out: what the hooks `at`, `inherit` and `rendering` do.
//! Invariant: a hook gives threads no order that they would not have without it: everything here is one thread's own
//! or Relaxed, so that ThreadSanitizer still sees a race.

use super::super::share;
use super::super::sync::Point;
use super::{Domain, Philox};
use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What a thread does at a point: given its number (0: the consumer, 1: the reader, then workers) and its dice.
type Act = dyn Fn(usize, Point, &mut Philox) + Send + Sync;

/// What a test does to the threads of its feeds.
pub(crate) struct Chaos {
    /// Of the dice.
    seed: u64,
    act: Box<Act>,
    /// The epoch and position at which a view panics.
    panic_at: Option<(u32, u64)>,
    /// Threads made so far, and those of them that have not ended.
    started: AtomicUsize,
    live: AtomicUsize,
    /// Their names for Linux, `<process>/task/<thread>`.
    tasks: Mutex<Vec<std::path::PathBuf>>,
}

struct Local {
    chaos: Arc<Chaos>,
    number: usize,
    dice: Philox,
}

thread_local! {
    static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
}

/// Removes the chaos from the test's thread.
pub(crate) struct Installed(pub Arc<Chaos>);

impl Chaos {
    /// Hooks that call `act`, installed in this thread and in those that feeds will start from here.
    pub fn install(seed: u64, panic_at: Option<(u32, u64)>, act: Box<Act>) -> Installed {
        let chaos = Arc::new(Self {
            seed,
            act,
            panic_at,
            started: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            tasks: Mutex::default(),
        });
        enter(chaos.clone(), 0);
        Installed(chaos)
    }

    /// Random yields and short sleeps everywhere.
    pub fn delays(seed: u64, panic_at: Option<(u32, u64)>) -> Installed {
        Self::install(seed, panic_at, Box::new(|_, _, dice| pause(dice)))
    }

    /// Threads of feeds that have not ended.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Threads that feeds have started.
    pub fn started(&self) -> usize {
        self.started.load(Ordering::Relaxed)
    }

    /// The threads' folders under `/proc`; empty where there is none.
    pub fn tasks(&self) -> Vec<std::path::PathBuf> {
        self.tasks.lock().unwrap().clone()
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        leave();
    }
}

/// Mostly nothing, often a few yields, now and then a sleep.
pub(crate) fn pause(dice: &mut Philox) {
    match dice.below(64) {
        0..16 => (0..dice.below(4)).for_each(|_| std::thread::yield_now()),
        16..18 => std::thread::sleep(std::time::Duration::from_micros(u64::from(dice.below(300)))),
        _ => {}
    }
}

fn enter(chaos: Arc<Chaos>, number: usize) {
    let dice = Philox::new(chaos.seed, Domain::Shapes, 0, number as u64, 0);
    LOCAL.set(Some(Local { chaos, number, dice }));
}

fn leave() {
    LOCAL.set(None);
}

/// The hook of `sync`.
pub(crate) fn at(point: Point) {
    LOCAL.with_borrow_mut(|local| {
        if let Some(Local { chaos, number, dice }) = local {
            (chaos.act)(*number, point, dice);
        }
    });
}

/// The hook of `Feed::spawn`.
pub(crate) fn inherit(body: impl FnOnce() + Send + 'static) -> impl FnOnce() + Send + 'static {
    let chaos = LOCAL.with_borrow(|local| Some(local.as_ref()?.chaos.clone()));
    let number = chaos.as_ref().map_or(0, |chaos| {
        chaos.live.fetch_add(1, Ordering::Relaxed);
        1 + chaos.started.fetch_add(1, Ordering::Relaxed)
    });
    move || {
        let Some(chaos) = chaos else { return body() };
        if let Ok(task) = std::fs::read_link("/proc/thread-self") {
            chaos
                .tasks
                .lock()
                .unwrap()
                .push(std::path::Path::new("/proc").join(task));
        }
        enter(chaos.clone(), number);
        body();
        leave();
        // Late enough for a drop that does not wait to be seen.
        std::thread::sleep(std::time::Duration::from_micros(500));
        chaos.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The hook of `Workshop::render`.
pub(crate) fn rendering(at: share::Place) {
    let panic_at = LOCAL.with_borrow(|local| local.as_ref()?.chaos.panic_at);
    assert!(panic_at != Some((at.epoch, at.position)), "a panic in a view");
}
