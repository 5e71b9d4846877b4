//! The reader: row groups from disk into windows, ahead of the workers and within a budget of bytes.
//!
//! In: windows in the order's order. Out: [`Window`]s in the table's places.
//! Invariant: bytes held never exceed the budget, but for a single window that is larger by itself; a row group that
//! two held windows share (a small data set, from one epoch to the next) is held and read once. Row groups are read,
//! not mapped: a file cut short under a map would be a SIGBUS.

use super::board::{Board, Stopped};
use super::error::{FeedError, panic_message};
use super::gauges::{Doing, Gauges};
use super::options::Passes;
use super::order::{Group, Order, WindowPlan};
use super::share::Share;
use super::slot::WindowWriter;
use super::sync::Ordering;
use crate::data::{Dataset, RowGroup, ShardId};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::Weak;

/// A window with its row groups in memory.
pub(crate) struct Window {
    pub plan: WindowPlan,
    /// One for each of the plan's groups.
    pub groups: Vec<Arc<RowGroup>>,
}

/// The reader thread's state.
pub(crate) struct Reader {
    pub dataset: Arc<Dataset>,
    pub order: Order,
    pub share: Share,
    /// Most bytes of row groups held at once.
    pub budget: u64,
    pub writer: WindowWriter<Window>,
    pub board: Arc<Board>,
    pub gauges: Arc<Gauges>,
    /// Row groups in held windows, and their bytes. Windows alone own them, and only this thread frees windows.
    pub held: HashMap<(ShardId, u32), (Weak<RowGroup>, u64)>,
}

impl Reader {
    /// Reads until the order ends, a row group fails or the feed stops.
    pub fn run(mut self) {
        // First local position not yet published: a panic spoils its batch.
        let mut next = 0;
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.read_all(&mut next))) {
            let error = FeedError::Panicked {
                thread: std::thread::current().name().unwrap_or("reader").into(),
                message: panic_message(&*payload),
            };
            self.board.fail(next / self.share.share, error);
        }
        self.gauges.turn(&self.gauges.reader, Doing::Done);
    }

    fn read_all(&mut self, next: &mut u64) -> Result<(), Stopped> {
        let last = match self.order.passes() {
            Passes::Shuffled { .. } => u32::MAX,
            Passes::Sequential => 0,
        };
        // A window's buffers go from the one that is freed to the one that is read.
        self.dataset.keep_idle_buffers(self.order.window_bytes());
        for epoch in self.share.first_epoch()..=last {
            for plan in self.order.epoch(epoch).into_windows() {
                let claims = self.share.range(&plan);
                if claims.is_empty() {
                    continue;
                }
                // To the end of the loading: a window that is freed here may have what the next one shares with it.
                let _shared = self.make_room(&plan)?;
                match self.load(plan)? {
                    Ok(window) => self.writer.publish(window, claims.end),
                    Err(error) => {
                        self.board.fail(claims.start / self.share.share, error);
                        return Ok(());
                    }
                }
                *next = claims.end;
                self.gauges.windows.fetch_add(1, Ordering::Relaxed);
                self.board.wake_workers();
            }
        }
        Ok(())
    }

    /// Waits until the window has a place and fits what is held, or nothing is held. Returns the row groups of the window that are
    /// held already, so that they stay.
    fn make_room(&mut self, plan: &WindowPlan) -> Result<Vec<Arc<RowGroup>>, Stopped> {
        self.gauges.turn(&self.gauges.reader, Doing::WaitingForRoom);
        let shared = plan.groups.iter().filter_map(|group| self.held.get(&name(group)));
        let shared = shared.filter_map(|(rows, _)| rows.upgrade()).collect();
        let (writer, held, budget) = (&mut self.writer, &mut self.held, self.budget);
        let room = self.board.reader_wait(|| {
            writer.retire().for_each(drop);
            held.retain(|_, (group, _)| group.strong_count() > 0);
            let holding: u64 = held.values().map(|(_, bytes)| bytes).sum();
            let new = plan.groups.iter().filter(|group| !held.contains_key(&name(group)));
            let fits = holding + new.map(|group| group.bytes).sum::<u64>() <= budget;
            (writer.has_place() && (fits || writer.is_idle())).then_some(())
        });
        self.gauges.turn(&self.gauges.reader, Doing::Busy);
        room.map(|()| shared)
    }

    fn load(&mut self, plan: WindowPlan) -> Result<Result<Window, FeedError>, Stopped> {
        let mut groups = Vec::with_capacity(plan.groups.len());
        for group in &plan.groups {
            if self.board.stopped() {
                return Err(Stopped);
            }
            match self.group(group) {
                Ok(rows) => groups.push(rows),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(Window { plan, groups }))
    }

    /// One row group, from the held ones or from disk.
    fn group(&mut self, group: &Group) -> Result<Arc<RowGroup>, FeedError> {
        if let Some(rows) = self.held.get(&name(group)).and_then(|(rows, _)| rows.upgrade()) {
            return Ok(rows);
        }
        let Group {
            shard,
            row_group,
            rows: expected,
            bytes,
            ..
        } = *group;
        let shard_name = || self.dataset.shards()[shard.0 as usize].name.clone();
        let rows = self
            .dataset
            .read_row_group(shard, row_group)
            .map_err(|source| FeedError::Read {
                shard: shard_name(),
                row_group,
                source,
            })?;
        if rows.len() as u64 != u64::from(expected) {
            let (found, expected) = (rows.len() as u64, u64::from(expected));
            return Err(FeedError::Rows {
                shard: shard_name(),
                row_group,
                found,
                expected,
            });
        }
        self.gauges.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        let rows = Arc::new(rows);
        self.held.insert(name(group), (Arc::downgrade(&rows), bytes));
        Ok(rows)
    }
}

fn name(group: &Group) -> (ShardId, u32) {
    (group.shard, group.row_group)
}
