//! The shared bytes of the feed: slots, where views are written, and window places, where encoded images are read.
//!
//! In: tickets, one of each kind for every local position. Out: `Place` (one writer of one sample's bytes), `Taken`
//! (the consumer's whole slot), `Flying` (the same, its pixels read by a device), `Pin` (a reader of a window). All
//! sharing that the compiler cannot check is here.
//!
//! ```text
//! slot    u8 [V, N, H, W, 3]   view 0: sample 0 | 1 | .. N-1   view 1: sample 0 | 1 | ..   (N of this batch)
//! life    filling --N places finished--> ready --take--> Taken --fly--> Flying --free--> filling    (`life`: the atomics)
//!                                                          +------------free------------^
//! window  empty --publish--> open(w), unfinished = claims in it --last pin dropped--> finished --retire--> empty
//! ```
//!
//! Invariant: a byte of a slot has one writer, and no reader until all places are finished; a window is not touched by its
//! owner until `unfinished` is zero. Both follow from a ticket's being unique, neither `Clone` nor `Copy`, and spent by
//! value.
#![allow(unsafe_code)]

use super::board::Board;
use super::cursor::{Cursor, SlotTicket, WindowTicket};
use super::life::{Life, Phase};
use super::order::WINDOW_PLACES;
use super::quarantine::Reject;
use super::sync::{AtomicU8, AtomicU64, Ordering, Point, UnsafeCell, at};
use crate::data::SampleKey;
use crossbeam::utils::CachePadded;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

/// Memory for slots: ordinary, or page-locked for a device.
pub trait SlotMemory {
    /// `len` bytes. Errors when there are none to be had.
    fn allocate(&mut self, len: usize) -> Result<Box<dyn SlotBytes>, Box<dyn std::error::Error + Send + Sync>>;
}

/// The bytes of one slot; dropped when neither feed nor batch needs them.
///
/// # Safety
/// `as_ptr` gives the same pointer as long as the value lives, whichever way it is moved; it is good for reads and
/// writes of `len` initialised bytes from any thread, and nothing else reads or writes them.
pub unsafe trait SlotBytes: Send + Sync {
    /// The first byte.
    fn as_ptr(&self) -> NonNull<u8>;
    /// Number of bytes.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// [`SlotMemory`] from the allocator, zeroed.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapMemory;

/// A boxed slice that is only reached through its pointer.
struct HeapBytes(Box<[std::cell::UnsafeCell<u8>]>);

impl SlotMemory for HeapMemory {
    fn allocate(&mut self, len: usize) -> Result<Box<dyn SlotBytes>, Box<dyn std::error::Error + Send + Sync>> {
        let mut bytes: Vec<u8> = Vec::new();
        bytes.try_reserve_exact(len)?;
        bytes.resize(len, 0);
        let raw = Box::into_raw(bytes.into_boxed_slice()) as *mut [std::cell::UnsafeCell<u8>];
        // SAFETY: `raw` came from `into_raw` just above, and `UnsafeCell<u8>` has the layout of `u8`.
        Ok(Box::new(HeapBytes(unsafe { Box::from_raw(raw) })))
    }
}

// SAFETY: a plain owner of bytes; the bytes are reached only through `as_ptr`, by the rules of `SlotBytes`.
unsafe impl Sync for HeapBytes {}

// SAFETY: the slice lies on the heap and does not move with the box; `UnsafeCell` permits writes behind `&self`; zeroed
// at allocation; `HeapBytes` itself never touches the bytes.
unsafe impl SlotBytes for HeapBytes {
    fn as_ptr(&self) -> NonNull<u8> {
        NonNull::from(&*self.0).cast()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Tests: memory that knows how many of its buffers live.
#[cfg(all(test, not(vicreg_loom)))]
#[derive(Clone, Default)]
pub(crate) struct CountedMemory(pub Arc<std::sync::atomic::AtomicUsize>);

#[cfg(all(test, not(vicreg_loom)))]
struct CountedBytes(Box<dyn SlotBytes>, CountedMemory);

#[cfg(all(test, not(vicreg_loom)))]
impl SlotMemory for CountedMemory {
    fn allocate(&mut self, len: usize) -> Result<Box<dyn SlotBytes>, Box<dyn std::error::Error + Send + Sync>> {
        let bytes = HeapMemory.allocate(len)?;
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(CountedBytes(bytes, self.clone())))
    }
}

// SAFETY: the inner bytes as they are.
#[cfg(all(test, not(vicreg_loom)))]
unsafe impl SlotBytes for CountedBytes {
    fn as_ptr(&self) -> NonNull<u8> {
        self.0.as_ptr()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(all(test, not(vicreg_loom)))]
impl Drop for CountedBytes {
    fn drop(&mut self) {
        self.1.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sizes of a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Views of a sample.
    pub views: usize,
    /// Samples in a full batch.
    pub samples: usize,
    /// Bytes of a view: side x side x 3.
    pub view_bytes: usize,
}

/// What a place holds beside its pixels.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// The sample that fills the place: the position's own or its substitute.
    pub key: SampleKey,
    /// Its label, -1 without one.
    pub label: i64,
    /// False when a sequential pass met a bad sample here.
    pub present: bool,
    /// Bad samples met on the way, in the order of attempts.
    pub rejects: Vec<Reject>,
}

/// One buffer of the ring.
pub(crate) struct Slot {
    cursor: u64,
    shape: Shape,
    bytes: Box<dyn SlotBytes>,
    records: Box<[UnsafeCell<Record>]>,
    life: Life,
    /// Debug: what happened to each place since the slot was opened (UNTOUCHED, LEASED, FINISHED).
    leases: Box<[AtomicU8]>,
}

const UNTOUCHED: u8 = 0;
const LEASED: u8 = 1;
const FINISHED: u8 = 2;

// SAFETY: `bytes` are Sync by contract; a record is reached by the one `Place` of its index while the slot is open, and
// by the one `Taken` afterwards, and `Record` is Send. `life` orders the two.
unsafe impl Sync for Slot {}

impl Slot {
    /// A slot that is open for `batch` of `len` samples. Panics if `bytes` are too few.
    pub fn new(cursor: &Cursor, shape: Shape, bytes: Box<dyn SlotBytes>, batch: u64, len: u32) -> Self {
        assert!(
            bytes.len() >= shape.views * shape.samples * shape.view_bytes,
            "slot memory is too small"
        );
        assert!(len as usize <= shape.samples, "a batch is larger than its slot");
        let leases = if cfg!(debug_assertions) { shape.samples } else { 0 };
        Self {
            cursor: cursor.id(),
            shape,
            bytes,
            records: (0..shape.samples).map(|_| UnsafeCell::new(Record::default())).collect(),
            life: Life::new(batch, len),
            leases: (0..leases).map(|_| AtomicU8::new(UNTOUCHED)).collect(),
        }
    }

    /// The ticket's place, or the ticket back while the slot belongs to an earlier batch.
    pub fn place<'a>(&'a self, ticket: SlotTicket, board: &'a Board) -> Result<Place<'a>, SlotTicket> {
        assert_eq!(ticket.cursor(), self.cursor, "a ticket of another feed");
        let batch = ticket.position() / self.shape.samples as u64;
        let index = (ticket.position() % self.shape.samples as u64) as usize;
        at(Point::Place);
        if !self.life.open_for(batch) {
            return Err(ticket);
        }
        let len = self.life.len() as usize;
        assert!(index < len, "place {index} of a batch of {len}");
        self.mark(index, UNTOUCHED, LEASED);
        Ok(Place {
            slot: self,
            board,
            batch,
            index,
            len,
            finished: false,
        })
    }

    /// The whole slot, once, when every place of `batch` is finished.
    pub fn take(self: &Arc<Self>, batch: u64) -> Option<Taken> {
        at(Point::Take);
        self.life.take(batch).then(|| Taken {
            slot: self.clone(),
            batch,
        })
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.life.phase()
    }

    /// Debug builds record each place's life and panic on a second writer or a missing one.
    fn mark(&self, index: usize, from: u8, to: u8) {
        if cfg!(debug_assertions) {
            let found = self.leases[index].swap(to, Ordering::Relaxed);
            assert_eq!(found, from, "place {index}: its life is out of order");
        }
    }
}

/// The right to write one sample of a slot, once. Dropped unfinished it poisons the ring.
pub(crate) struct Place<'a> {
    slot: &'a Slot,
    board: &'a Board,
    batch: u64,
    index: usize,
    len: usize,
    finished: bool,
}

impl Place<'_> {
    /// The pixels of view `view`: side x side x 3 bytes, row-major RGB, with the bytes of an earlier batch in them.
    pub fn view(&mut self, view: usize) -> &mut [u8] {
        let Shape { views, view_bytes, .. } = self.slot.shape;
        assert!(view < views, "view {view} of {views}");
        let start = (view * self.len + self.index) * view_bytes;
        // SAFETY: in bounds, as view < views and index < len <= samples (`place`), and the buffer holds their product
        // (`Slot::new`). Ranges of different (view, index) are disjoint; this index has one `Place`, because its ticket
        // was spent, and `&mut self` keeps the slice unique. Nobody reads before `Life::take`, which needs this
        // place's `finish`.
        unsafe { std::slice::from_raw_parts_mut(self.slot.bytes.as_ptr().as_ptr().add(start), view_bytes) }
    }

    /// What goes with the pixels.
    pub fn record(&mut self) -> &mut Record {
        // SAFETY: as in `view`: one `Place` per index, `&mut self`, and no reader before `finish`.
        self.slot.records[self.index].with_mut(|record| unsafe { &mut *record })
    }

    /// The batch, counted from the start of the feed.
    pub fn batch(&self) -> u64 {
        self.batch
    }

    /// All written: the last place of a slot wakes the consumer.
    pub fn finish(mut self) {
        at(Point::Finish);
        self.finished = true;
        self.slot.mark(self.index, LEASED, FINISHED);
        if self.slot.life.finish() {
            self.board.consumer.wake();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.board.abandoned(self.batch);
        }
    }
}

/// A full slot in the consumer's hand.
pub(crate) struct Taken {
    slot: Arc<Slot>,
    batch: u64,
}

impl Taken {
    /// Samples in it.
    pub fn len(&self) -> usize {
        self.slot.life.len() as usize
    }

    /// u8 `[V, len, H, W, 3]`.
    pub fn pixels(&self) -> &[u8] {
        let len = self.slot.shape.views * self.len() * self.slot.shape.view_bytes;
        // loom does not see the bytes; a record goes through the same hands.
        #[cfg(vicreg_loom)]
        self.slot.records[..self.len()]
            .iter()
            .for_each(|cell| cell.with(|_| ()));
        // SAFETY: in bounds as in `Place::view`. Every place is finished and its `Place` gone (`Life::take`), new ones
        // need `Life::free`, which only `free` calls, by value; `Taken` is unique. So nobody writes while `&self` lives.
        unsafe { std::slice::from_raw_parts(self.slot.bytes.as_ptr().as_ptr(), len) }
    }

    /// The records, in the order of places.
    pub fn records(&mut self) -> impl Iterator<Item = &mut Record> {
        let len = self.len();
        // SAFETY: as for `pixels`; `&mut self` makes these the only references, one a cell.
        self.slot.records[..len]
            .iter()
            .map(|cell| cell.with_mut(|record| unsafe { &mut *record }))
    }

    /// From here on the pixels are read by a device, on its own time.
    pub fn fly(self) -> Flying {
        self.slot.life.fly(self.batch);
        Flying(self)
    }

    /// Gives the slot back to the workers, for a later batch of `len` samples.
    pub fn free(self, batch: u64, len: u32) {
        at(Point::Free);
        let samples = self.slot.shape.samples;
        assert!(len as usize <= samples, "a batch is larger than its slot");
        for index in 0..if cfg!(debug_assertions) { self.len() } else { 0 } {
            self.slot.mark(index, FINISHED, UNTOUCHED);
        }
        self.slot.life.free(self.batch, batch, len);
    }
}

/// A full slot under way to a device: pixels to read, from any thread, and nothing else.
pub(crate) struct Flying(Taken);

impl Flying {
    /// u8 `[V, len, H, W, 3]`, at one address as long as this lives.
    pub fn pixels(&self) -> &[u8] {
        self.0.pixels()
    }

    /// All reading is over: as [`Taken::free`].
    pub fn free(self, batch: u64, len: u32) {
        self.0.free(batch, len);
    }
}

/// The window places: windows are published in order, each into the place after the last one's.
pub(crate) struct WindowTable<T> {
    cursor: u64,
    cells: [WindowCell<T>; WINDOW_PLACES],
}

struct WindowCell<T> {
    /// 2w + 1 while window w is open, 2w + 2 once it is retired; never falls. The Release store of `open` publishes the
    /// window.
    tag: AtomicU64,
    /// First local position of the window, and the first after it: Release after the retiring store of `tag`.
    first: AtomicU64,
    end: AtomicU64,
    /// Claims in the window whose pin has not been dropped. Release on each decrement; the owner's Acquire load of 0
    /// ends all reading.
    unfinished: CachePadded<AtomicU64>,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: `value` is written by the one `WindowWriter` while no pin can exist, and read by pins in between, on many
// threads.
unsafe impl<T: Send + Sync> Sync for WindowTable<T> {}

/// The reader's end of the table: one a table, not `Clone`.
pub(crate) struct WindowWriter<T> {
    table: Arc<WindowTable<T>>,
    /// Ordinal of the next window.
    next: u64,
    /// Its first local position.
    first: u64,
}

impl<T> WindowTable<T> {
    /// A table for this cursor's tickets, and its writer.
    pub fn new(cursor: &Cursor) -> (Arc<Self>, WindowWriter<T>) {
        let cell = |_| WindowCell {
            tag: AtomicU64::new(0),
            first: AtomicU64::new(0),
            end: AtomicU64::new(0),
            unfinished: CachePadded::new(AtomicU64::new(0)),
            value: UnsafeCell::new(None),
        };
        let table = Arc::new(Self {
            cursor: cursor.id(),
            cells: std::array::from_fn(cell),
        });
        let writer = WindowWriter {
            table: table.clone(),
            next: 0,
            first: 0,
        };
        (table, writer)
    }

    /// The window of the ticket's position, or the ticket back while it is not published. `hint` is a window that is
    /// not after it (0, or where this thread's last, smaller position was), and is moved on.
    pub fn pin(&self, ticket: WindowTicket, hint: &mut u64) -> Result<Pin<'_, T>, WindowTicket> {
        assert_eq!(ticket.cursor(), self.cursor, "a ticket of another feed");
        loop {
            let cell = &self.cells[(*hint % WINDOW_PLACES as u64) as usize];
            let open = 2 * *hint + 1;
            // Acquire: pairs with `publish`; the window's contents and bounds are visible.
            let tag = cell.tag.load(Ordering::Acquire);
            if tag < open {
                return Err(ticket);
            }
            if tag > open {
                // Retired: all its positions are finished, so ours, which is not, lies further on.
                *hint += 1;
                continue;
            }
            at(Point::Pin);
            // Acquire: a bound that belongs to a later window brings the retiring store of `tag` with it, which the
            // second look then sees.
            let (first, end) = (cell.first.load(Ordering::Acquire), cell.end.load(Ordering::Acquire));
            if cell.tag.load(Ordering::Relaxed) != open || ticket.position() >= end {
                *hint += 1;
                continue;
            }
            assert!(ticket.position() >= first, "the hint is past the ticket's window");
            // SAFETY: window `hint` is open and contains the ticket's position, whose share of `unfinished` only the
            // `Pin` made of this unique ticket gives up. Until then `unfinished` > 0 and the writer does not touch the
            // value.
            let value = cell.value.with(|value| unsafe { (*value).as_ref() });
            return Ok(Pin {
                value: NonNull::from(value.expect("an open place is full")),
                unfinished: &cell.unfinished,
                table: PhantomData,
            });
        }
    }
}

/// A window that cannot go away. Dropping the last one of a window wakes nobody: ask [`Pin::release`] whether it was.
pub(crate) struct Pin<'a, T> {
    /// Not a reference: the window may be taken away while `release` is still returning.
    value: NonNull<T>,
    unfinished: &'a AtomicU64,
    table: PhantomData<&'a WindowTable<T>>,
}

impl<T> std::ops::Deref for Pin<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the window is open and full, and stays so until this pin gives up its share of `unfinished` (see
        // `pin`), which consumes it and so ends the borrow of `&self`.
        unsafe { self.value.as_ref() }
    }
}

impl<T> Pin<'_, T> {
    /// Lets go. True if it was the window's last: its owner then wants to be woken.
    pub fn release(self) -> bool {
        at(Point::Release);
        let unfinished = self.unfinished;
        std::mem::forget(self);
        // Release: this thread's reading is over. Pairs with the Acquire load in `retire`.
        unfinished.fetch_sub(1, Ordering::Release) == 1
    }
}

impl<T> Drop for Pin<'_, T> {
    fn drop(&mut self) {
        // Release: as in `release`.
        self.unfinished.fetch_sub(1, Ordering::Release);
    }
}

impl<T> WindowWriter<T> {
    /// Takes finished windows out of the table, oldest first.
    pub fn retire(&mut self) -> impl Iterator<Item = T> {
        let this: &Self = self;
        let oldest = this.next.saturating_sub(WINDOW_PLACES as u64);
        (oldest..this.next).filter_map(move |ordinal| {
            let cell = this.cell(ordinal);
            // Acquire: pairs with the decrements of the pins; all reading is over.
            let open = cell.tag.load(Ordering::Relaxed) == 2 * ordinal + 1;
            if !open || cell.unfinished.load(Ordering::Acquire) != 0 {
                return None;
            }
            at(Point::Retire);
            // Relaxed: it gives nothing to read. Who must see it meets the bounds that `publish` stores after it.
            cell.tag.store(2 * ordinal + 2, Ordering::Relaxed);
            // SAFETY: no pin exists (`unfinished` is 0) and none can be made: every position of the window has had its
            // own. This writer is the only one, borrowed by `&mut self`.
            cell.value.with_mut(|value| unsafe { (*value).take() })
        })
    }

    /// Whether the next window's place is empty.
    pub fn has_place(&self) -> bool {
        // Windows retire in any order, but the place of the next is that of the oldest.
        match self.next.checked_sub(WINDOW_PLACES as u64) {
            None => true,
            Some(oldest) => self.cell(oldest).tag.load(Ordering::Relaxed) == 2 * oldest + 2,
        }
    }

    /// Whether every place is empty.
    pub fn is_idle(&self) -> bool {
        let oldest = self.next.saturating_sub(WINDOW_PLACES as u64);
        (oldest..self.next).all(|ordinal| self.cell(ordinal).tag.load(Ordering::Relaxed) == 2 * ordinal + 2)
    }

    /// Opens the next window: the claims from the last window's end to `end` are in it. Panics if it is empty or has no
    /// place.
    pub fn publish(&mut self, value: T, end: u64) {
        assert!(
            self.has_place() && end > self.first,
            "a window needs a place and claims"
        );
        let cell = self.cell(self.next);
        // SAFETY: the place is empty, so no pin exists, and none is made before the tag is stored; one writer, `&mut
        // self`.
        cell.value.with_mut(|place| unsafe { *place = Some(value) });
        cell.unfinished.store(end - self.first, Ordering::Relaxed);
        // Release: see `pin`; a thread that still looks at the old window must not take these bounds for its own.
        cell.first.store(self.first, Ordering::Release);
        cell.end.store(end, Ordering::Release);
        at(Point::Publish);
        // Release: publishes all of the above to `pin`.
        cell.tag.store(2 * self.next + 1, Ordering::Release);
        self.next += 1;
        self.first = end;
    }

    fn cell(&self, ordinal: u64) -> &WindowCell<T> {
        &self.table.cells[(ordinal % WINDOW_PLACES as u64) as usize]
    }
}
