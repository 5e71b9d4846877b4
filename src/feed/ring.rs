//! The ring of slots: where finished views wait for the trainer.
//!
//! In: tickets of the cursor. Out: full slots, in batch order. Free slots are the only back-pressure.
//! Local position p belongs to batch p / N, and batch b to slot b mod R: no dispatcher and no queue, every thread knows
//! where it has to be, and `life` says when. Knows nothing of images, augmentation or burn.

use super::batch::Leaf;
use super::board::Board;
use super::cursor::{Cursor, SlotTicket};
use super::gauges::SlotPhases;
use super::life::Phase;
use super::share::Share;
use super::slot::{Flying, Place, Shape, Slot, SlotBytes, Taken};
use super::sync::ArrayQueue;
use std::sync::Arc;

/// Shared by workers, consumer, batches and bytes in flight; the slots' memory lives as long as one of them.
pub(crate) struct Ring {
    pub cursor: Cursor,
    pub board: Arc<Board>,
    pub shape: Shape,
    share: Share,
    slots: Box<[Arc<Slot>]>,
    /// Keys, labels and rejects of batches that have come back: reused, so that the steady state allocates nothing.
    pub leaves: ArrayQueue<Box<Leaf>>,
}

impl Ring {
    /// A ring of as many slots as there are `memory`s, open for the first batches.
    pub fn new(share: Share, shape: Shape, memory: Vec<Box<dyn SlotBytes>>, board: Arc<Board>) -> Self {
        let cursor = Cursor::new(share.total);
        let slots: Box<[Arc<Slot>]> = (0..)
            .zip(memory)
            .map(|(batch, bytes)| Arc::new(Slot::new(&cursor, shape, bytes, batch, share.len(batch))))
            .collect();
        Self {
            cursor,
            board,
            shape,
            share,
            leaves: ArrayQueue::new(slots.len()),
            slots,
        }
    }

    /// The place of local position `position`, or its ticket back while the slot is not free.
    pub fn place(&self, position: u64, ticket: SlotTicket) -> Result<Place<'_>, SlotTicket> {
        self.slot(position / self.share.share).place(ticket, &self.board)
    }

    /// The full slot of `batch`, once.
    pub fn take(&self, batch: u64) -> Option<Taken> {
        self.slot(batch).take(batch)
    }

    /// Gives a slot that held `batch` to the batch that is next in line for it.
    pub fn give_back(&self, batch: u64, taken: Taken) {
        let (next, len) = self.next_in_line(batch);
        taken.free(next, len);
        self.board.wake_workers();
    }

    /// As `give_back`, for a slot whose pixels were read in flight.
    pub fn land(&self, batch: u64, flying: Flying) {
        let (next, len) = self.next_in_line(batch);
        flying.free(next, len);
        self.board.wake_workers();
    }

    /// Keeps the leaf of a batch that has come back for a later one.
    pub fn keep(&self, leaf: Box<Leaf>) {
        // As many leaves as slots: there is room. If not, the leaf is simply freed.
        let _ = self.leaves.push(leaf);
    }

    /// The phase of the slot that `batch` is or will be in.
    pub fn phase(&self, batch: u64) -> Phase {
        self.slot(batch).phase()
    }

    /// How many slots are where.
    pub fn phases(&self) -> SlotPhases {
        self.slots.iter().map(|slot| slot.phase()).collect()
    }

    /// The batch after `batch` in its slot, and its samples.
    fn next_in_line(&self, batch: u64) -> (u64, u32) {
        let next = batch + self.slots.len() as u64;
        (next, self.share.len(next))
    }

    fn slot(&self, batch: u64) -> &Arc<Slot> {
        &self.slots[(batch % self.slots.len() as u64) as usize]
    }
}
