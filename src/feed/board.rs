//! What the feed's threads tell each other: stop, failed, wake up.
//!
//! In: failures with the batch that they spoil. Out: the error that the consumer meets at that batch and not before.
//! Invariant: a failure is found at the same batch for any number of workers, and nobody sleeps through it.

use super::error::FeedError;
use super::sync::{AtomicBool, AtomicU64, Mutex, Ordering, Sleeper, lock};
use crossbeam::utils::CachePadded;

/// Shared by all threads of a feed.
pub(crate) struct Board {
    /// The feed is being dropped. Relaxed: it carries no data, and every wait looks at it after the sleepers' fence.
    stop: AtomicBool,
    /// Earliest batch that cannot be made; `u64::MAX` for none. Release after `failure` is written.
    failed: AtomicU64,
    failure: Mutex<Option<(u64, FeedError)>>,
    /// Waits for a full slot.
    pub consumer: Sleeper,
    /// Waits for a window place.
    pub reader: Sleeper,
    /// Wait for windows and for free slots.
    workers: Box<[CachePadded<Sleeper>]>,
}

/// The feed is being dropped: go home.
#[derive(Debug)]
pub(crate) struct Stopped;

impl Board {
    pub fn new(workers: usize) -> Self {
        Self {
            stop: AtomicBool::new(false),
            failed: AtomicU64::new(u64::MAX),
            failure: Mutex::new(None),
            consumer: Sleeper::default(),
            reader: Sleeper::default(),
            workers: (0..workers).map(|_| CachePadded::default()).collect(),
        }
    }

    /// Worker `index` sleeps until `ready` gives a value, or the feed stops.
    pub fn worker_wait<T>(&self, index: usize, ready: impl FnMut() -> Option<T>) -> Result<T, Stopped> {
        self.wait(&self.workers[index], ready)
    }

    /// The reader sleeps until `ready` gives a value, or the feed stops.
    pub fn reader_wait<T>(&self, ready: impl FnMut() -> Option<T>) -> Result<T, Stopped> {
        self.wait(&self.reader, ready)
    }

    fn wait<T>(&self, sleeper: &Sleeper, mut ready: impl FnMut() -> Option<T>) -> Result<T, Stopped> {
        sleeper.wait(|| match self.stopped() {
            true => Some(Err(Stopped)),
            false => ready().map(Ok),
        })
    }

    pub fn wake_workers(&self) {
        Sleeper::wake_all(self.workers.iter().map(|sleeper| &**sleeper));
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sends every thread home.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake_workers();
        self.reader.wake();
        self.consumer.wake();
    }

    /// `batch` cannot be made. Of several failures the earliest batch's is kept, and of one batch's the first that says
    /// why.
    pub fn fail(&self, batch: u64, error: FeedError) {
        let mut failure = lock(&self.failure);
        let keep = failure
            .as_ref()
            .is_some_and(|(old, known)| *old < batch || (*old == batch && !matches!(known, FeedError::Abandoned)));
        if !keep {
            *failure = Some((batch, error));
            self.failed.fetch_min(batch, Ordering::Release);
        }
        drop(failure);
        self.consumer.wake();
    }

    /// A place of `batch` was dropped unfinished.
    pub fn abandoned(&self, batch: u64) {
        self.fail(batch, FeedError::Abandoned);
    }

    /// Why `batch` will never come, once; after that, that the feed has ended.
    pub fn failure(&self, batch: u64) -> Option<FeedError> {
        // Acquire: pairs with `fail`; a look at the mutex only when there is something in it.
        if self.failed.load(Ordering::Acquire) > batch {
            return None;
        }
        Some(lock(&self.failure).take().map_or(FeedError::Ended, |(_, error)| error))
    }
}

#[cfg(all(test, not(vicreg_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_failure_is_met_at_its_batch() {
        let board = Board::new(1);
        board.abandoned(7);
        assert!(board.failure(6).is_none());
        let panicked = |thread: &str| FeedError::Panicked {
            thread: thread.into(),
            message: String::new(),
        };
        board.fail(5, FeedError::Abandoned);
        board.fail(5, panicked("why"));
        board.fail(5, panicked("later"));
        board.fail(6, panicked("after"));
        assert!(board.failure(4).is_none());
        assert!(matches!(board.failure(5), Some(FeedError::Panicked { thread, .. }) if thread == "why"));
        assert!(matches!(board.failure(5), Some(FeedError::Ended)));
    }
}
