//! The ring of slots: where finished views wait for the trainer.
//!
//! In: tickets of the cursor. Out: full slots, in batch order. Free slots are the only back-pressure.
//! Local position p belongs to batch p / N, and batch b to slot b mod R: no dispatcher and no queue, every thread knows
//! where it has to be, and the states of `slot` say when. Knows nothing of images, augmentation or burn.

use super::batch::Leaf;
use super::board::Board;
use super::cursor::{Cursor, SlotTicket};
use super::share::Share;
use super::slot::{Place, Shape, Slot, SlotBytes, Taken};
use super::sync::ArrayQueue;
use std::sync::Arc;

/// Shared by workers, consumer and batches; the slots' memory lives as long as one of them.
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
        let next = batch + self.slots.len() as u64;
        taken.free(next, self.share.len(next));
        self.board.wake_workers();
    }

    fn slot(&self, batch: u64) -> &Arc<Slot> {
        &self.slots[(batch % self.slots.len() as u64) as usize]
    }
}
