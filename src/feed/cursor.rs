//! The cursor: hands out each local position once, with the tickets that are its rights.
//!
//! In: nothing but the number of positions. Out: [`SlotTicket`] and [`WindowTicket`].
//! Invariant: a ticket exists once: made here only, neither `Clone` nor `Copy`, spent by value. The safety of `slot`
//! rests on it.

use super::sync::{AtomicU64, Ordering, Point, at};
use crossbeam::utils::CachePadded;

/// Hands out each local position once.
pub(crate) struct Cursor {
    /// Told apart from other cursors, since a ticket is good for one feed only.
    id: u64,
    /// Next position. Relaxed: only uniqueness matters, the tickets carry no data.
    next: CachePadded<AtomicU64>,
    /// First position that will never be.
    end: u64,
}

/// A position's right to one place in a slot.
#[derive(Debug)]
pub(crate) struct SlotTicket(Claim);

/// A position's right to read its window.
#[derive(Debug)]
pub(crate) struct WindowTicket(Claim);

#[derive(Debug)]
struct Claim {
    cursor: u64,
    position: u64,
}

impl Cursor {
    /// A cursor over `0..end`.
    pub fn new(end: u64) -> Self {
        // std's atomic also under loom, which has no statics.
        static IDS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        Self {
            id: IDS.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            next: CachePadded::new(AtomicU64::new(0)),
            end,
        }
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    /// The next position, and its tickets; `None` at the end.
    pub fn claim(&self) -> Option<(u64, WindowTicket, SlotTicket)> {
        at(Point::Claim);
        let position = self.next.fetch_add(1, Ordering::Relaxed);
        let claim = || Claim {
            cursor: self.id,
            position,
        };
        (position < self.end).then(|| (position, WindowTicket(claim()), SlotTicket(claim())))
    }
}

impl SlotTicket {
    pub fn cursor(&self) -> u64 {
        self.0.cursor
    }

    pub fn position(&self) -> u64 {
        self.0.position
    }
}

impl WindowTicket {
    pub fn cursor(&self) -> u64 {
        self.0.cursor
    }

    pub fn position(&self) -> u64 {
        self.0.position
    }
}
