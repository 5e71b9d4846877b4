//! Threads, atomics and cells of the feed, and the bed in which an idle thread sleeps.
//!
//! The one file that chooses between std and loom (`--cfg vicreg_loom`), so that a model drives the shipped code.
//! Invariant: a thread that has nothing to do is parked, never spinning, and no wake-up is lost (see [`Sleeper`]).
//! A data race cannot hide here: sleeping orders nothing, the pixels are ordered by the atomics of `slot`.

use std::time::Duration;

#[cfg(vicreg_loom)]
pub(crate) use loom::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
    sync::{Arc, Mutex},
    thread,
};
#[cfg(not(vicreg_loom))]
pub(crate) use std::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
    sync::{Arc, Mutex},
    thread,
};

#[cfg(vicreg_loom)]
pub(crate) use loom::cell::UnsafeCell;

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

/// Where one thread sleeps until a condition that others make true.
///
/// Waiter: `asleep = true`, fence, look again, park. Waker: make it true, fence, look at `asleep`. Of two SeqCst fences
/// one comes first, so either the waiter sees the condition or the waker sees the sleeper; `unpark` before `park` is
/// remembered by the thread's token. Only a thread that sleeps, and the one that wakes it, touch the mutex.
#[derive(Debug, Default)]
pub(crate) struct Sleeper {
    /// True from before the last look at the condition until someone wakes the thread.
    asleep: AtomicBool,
    /// Who sleeps here: set by the sleeper on its way to bed, since a consumer may move between threads.
    thread: Mutex<Option<thread::Thread>>,
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
        let mut since = std::time::Instant::now();
        loop {
            *lock(&self.thread) = Some(thread::current());
            self.asleep.store(true, Ordering::Release);
            // Pairs with the fence in `wake`.
            fence(Ordering::SeqCst);
            if let Some(value) = ready() {
                self.asleep.store(false, Ordering::Relaxed);
                return value;
            }
            match patience {
                Some(limit) => {
                    park_timeout(limit.saturating_sub(since.elapsed()));
                    if since.elapsed() >= limit {
                        late();
                        since = std::time::Instant::now();
                    }
                }
                None => thread::park(),
            }
            if let Some(value) = ready() {
                self.asleep.store(false, Ordering::Relaxed);
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
        if self.asleep.load(Ordering::Acquire)
            && self.asleep.swap(false, Ordering::AcqRel)
            && let Some(thread) = lock(&self.thread).as_ref()
        {
            thread.unpark();
        }
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

#[cfg(not(vicreg_loom))]
fn park_timeout(limit: Duration) {
    thread::park_timeout(limit);
}

/// loom knows no clock: patience never runs out there.
#[cfg(vicreg_loom)]
fn park_timeout(_: Duration) {
    thread::park();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two threads pass a ball ten thousand times; a lost wake-up would hang the test.
    #[test]
    fn no_wake_up_is_lost() {
        let beds = Arc::new([Sleeper::default(), Sleeper::default()]);
        let ball = Arc::new(AtomicU64::new(0));
        let player = |me: u64| {
            let (beds, ball) = (beds.clone(), ball.clone());
            thread::spawn(move || {
                for round in 0..10_000 {
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
        assert_eq!(ball.load(Ordering::Relaxed), 20_000);
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
