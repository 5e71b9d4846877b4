//! Threads, atomics and cells of the feed, and the bed in which an idle thread sleeps.
//!
//! The one file that chooses between std and loom (`--cfg vicreg_loom`), so that a model drives the shipped code.
//! Invariant: a thread that has nothing to do is parked, never spinning, and no wake-up is lost (see [`Sleeper`]).
//! A data race cannot hide here: sleeping orders nothing, the pixels are ordered by the atomics of `slot`.

use std::time::{Duration, Instant};

#[cfg(not(vicreg_loom))]
pub(crate) use crossbeam::queue::ArrayQueue;
#[cfg(vicreg_loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::Mutex,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
    thread,
};
#[cfg(not(vicreg_loom))]
pub(crate) use std::{
    sync::Mutex,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
    thread,
};

/// `std::cell::UnsafeCell` with loom's interface: a pointer is handed to a closure, so that loom can watch its life.
#[cfg(not(vicreg_loom))]
#[derive(Debug, Default)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(vicreg_loom))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// A place in the protocol where a test may hold a thread up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// Before a position is claimed.
    Claim,
    /// Before a slot's state is looked at.
    Place,
    /// Before a place counts as finished.
    Finish,
    /// Before a full slot is looked for.
    Take,
    /// Before a slot is given back.
    Free,
    /// Between the looks at a window's tag.
    Pin,
    /// Before a pin is given up.
    Release,
    /// Before a window is opened.
    Publish,
    /// Before a window is closed.
    Retire,
    /// Before a thread parks.
    Sleep,
    /// Between a change and the look for sleepers.
    Wake,
}

#[cfg(all(test, not(vicreg_loom)))]
pub(crate) use super::tests::chaos::{at, inherit};

/// Nothing, but in tests (`tests/chaos.rs`).
#[cfg(not(all(test, not(vicreg_loom))))]
#[inline(always)]
pub(crate) fn at(_: Point) {}

/// A thread's body as it is, but in tests.
#[cfg(not(all(test, not(vicreg_loom))))]
#[inline(always)]
pub(crate) fn inherit(body: impl FnOnce() + Send + 'static) -> impl FnOnce() + Send + 'static {
    body
}

/// Where one thread sleeps until a condition that others make true.
///
/// Waiter: `asleep = true`, fence, look again, park. Waker: make it true, fence, look at `asleep`. Of two SeqCst fences
/// one comes first, so either the waiter sees the condition or the waker sees the sleeper; `unpark` before `park` is
/// remembered by the thread's token. Only a thread that sleeps, and the one that wakes it, touch the mutex.
#[derive(Debug, Default)]
pub(crate) struct Sleeper {
    /// True from before the last look at the condition until someone wakes the thread. Changed by swaps only: loom does
    /// not know a swap's place among plain stores, and a thread on its way to bed is in no hurry.
    asleep: AtomicBool,
    bed: Bed,
}

impl Sleeper {
    /// Returns the first value that `ready` gives; parks in between. `ready` may be called any number of times.
    pub(crate) fn wait<T>(&self, ready: impl FnMut() -> Option<T>) -> T {
        self.wait_or(ready, None, || ())
    }

    /// As [`Sleeper::wait`], but calls `late` each time `patience` has passed in vain.
    pub(crate) fn wait_or<T>(
        &self,
        mut ready: impl FnMut() -> Option<T>,
        patience: Option<Duration>,
        mut late: impl FnMut(),
    ) -> T {
        if let Some(value) = ready() {
            return value;
        }
        let mut since = Instant::now();
        loop {
            self.bed.lie_down();
            // Release: who finds the flag finds the bed made. The fence orders the flag and the condition.
            self.asleep.swap(true, Ordering::Release);
            // Pairs with the fence in `wake`.
            fence(Ordering::SeqCst);
            if let Some(value) = ready() {
                self.asleep.swap(false, Ordering::Relaxed);
                return value;
            }
            at(Point::Sleep);
            match patience {
                Some(limit) => {
                    self.bed.sleep(Some(limit.saturating_sub(since.elapsed())));
                    if since.elapsed() >= limit {
                        late();
                        since = Instant::now();
                    }
                }
                None => self.bed.sleep(None),
            }
            if let Some(value) = ready() {
                self.asleep.swap(false, Ordering::Relaxed);
                return value;
            }
        }
    }

    /// Wakes the sleeper, if any. Call it after the store that makes its condition true.
    pub(crate) fn wake(&self) {
        // Pairs with the fence in `wait_or`.
        fence(Ordering::SeqCst);
        self.wake_after_fence();
    }

    /// Wakes all sleepers behind one fence.
    pub(crate) fn wake_all<'a>(sleepers: impl IntoIterator<Item = &'a Sleeper>) {
        fence(Ordering::SeqCst);
        for sleeper in sleepers {
            sleeper.wake_after_fence();
        }
    }

    fn wake_after_fence(&self) {
        at(Point::Wake);
        // Acquire: pairs with the Release in `wait_or`.
        if self.asleep.load(Ordering::Acquire) && self.asleep.swap(false, Ordering::AcqRel) {
            self.bed.rouse();
        }
    }
}

/// The thread that sleeps: set by itself on its way to bed, since a consumer may move between threads.
#[cfg(not(vicreg_loom))]
#[derive(Debug, Default)]
struct Bed(Mutex<Option<thread::Thread>>);

#[cfg(not(vicreg_loom))]
impl Bed {
    fn lie_down(&self) {
        *lock(&self.0) = Some(thread::current());
    }

    /// Sleeps until roused, now and then without; returns at once if `rouse` came first.
    fn sleep(&self, limit: Option<Duration>) {
        match limit {
            Some(limit) => thread::park_timeout(limit),
            None => thread::park(),
        }
    }

    fn rouse(&self) {
        if let Some(thread) = lock(&self.0).as_ref() {
            thread.unpark();
        }
    }
}

/// The same with loom's own token, which also wakes without cause. Not loom's `park`: there an `unpark` is lost if the
/// thread meets a contended mutex before it parks, and it orders more than std's does.
#[cfg(vicreg_loom)]
#[derive(Debug, Default)]
struct Bed(loom::sync::Notify);

#[cfg(vicreg_loom)]
impl Bed {
    fn lie_down(&self) {}

    /// loom knows no clock: patience never runs out there.
    fn sleep(&self, _: Option<Duration>) {
        self.0.wait();
    }

    fn rouse(&self) {
        self.0.notify();
    }
}

/// What models have in the place of crossbeam's queue, into which loom cannot see.
#[cfg(vicreg_loom)]
pub(crate) struct ArrayQueue<T>(usize, Mutex<std::collections::VecDeque<T>>);

#[cfg(vicreg_loom)]
impl<T> ArrayQueue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self(capacity, Mutex::default())
    }

    pub(crate) fn push(&self, value: T) -> Result<(), T> {
        let mut queue = lock(&self.1);
        match queue.len() < self.0 {
            true => Ok(queue.push_back(value)),
            false => Err(value),
        }
    }

    pub(crate) fn pop(&self) -> Option<T> {
        lock(&self.1).pop_front()
    }
}

/// Locks; a panic elsewhere does not matter, as no code that can panic runs under our locks.
#[cfg(not(vicreg_loom))]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(vicreg_loom)]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> loom::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no code under the lock panics")
}

#[cfg(all(test, not(vicreg_loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Two threads pass a ball many times; a lost wake-up would hang the test.
    #[test]
    fn no_wake_up_is_lost() {
        let rounds = if cfg!(miri) { 100 } else { 10_000 };
        let beds = Arc::new([Sleeper::default(), Sleeper::default()]);
        let ball = Arc::new(AtomicU64::new(0));
        let player = |me: u64| {
            let (beds, ball) = (beds.clone(), ball.clone());
            thread::spawn(move || {
                for round in 0..rounds {
                    let mine = 2 * round + me;
                    beds[me as usize].wait(|| (ball.load(Ordering::Acquire) == mine).then_some(()));
                    ball.store(mine + 1, Ordering::Release);
                    beds[1 - me as usize].wake();
                }
            })
        };
        let (first, second) = (player(0), player(1));
        first.join().unwrap();
        second.join().unwrap();
        assert_eq!(ball.load(Ordering::Relaxed), 2 * rounds);
    }

    #[test]
    fn patience_runs_out_again_and_again() {
        let bed = Sleeper::default();
        let late = std::cell::Cell::new(0);
        bed.wait_or(
            || (late.get() == 3).then_some(()),
            Some(Duration::from_millis(1)),
            || late.set(late.get() + 1),
        );
        assert_eq!(late.get(), 3);
    }
}
