//! Buffers that a thread keeps from one operation to the next, and so from step to step: in steady state a step's maps, gradients
//! and scratch cost no allocation, and none of the fresh pages that the system has to clear.
//!
//! What [`take`] gives holds old values: write before reading. A thread that waits inside an operation may be given another task
//! of it; buffers are taken out while they are used, so that it then finds others.
//! Invariant: a thread keeps no more than it once took, and a new buffer takes the place of old ones that nobody asks for.

use std::cell::RefCell;
use std::collections::HashMap;

/// Shorter ones are left to the allocator.
const SHORTEST: usize = 1024;
/// A buffer that was not wanted during so many calls of [`take`] makes room where a new one is needed: the shapes have changed.
const IDLE: u64 = 256;

/// Buffers of one length.
#[derive(Default)]
struct Class {
    /// Taken and not given back. Those that something else frees stay in the count.
    taken: usize,
    /// Each with the number of calls when it came, the newest last.
    free: Vec<(u64, Vec<f32>)>,
}

#[derive(Default)]
struct Buffers {
    /// Calls of [`take`] so far.
    calls: u64,
    classes: HashMap<usize, Class>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl Buffers {
    fn take(&mut self, length: usize) -> Option<Vec<f32>> {
        self.calls += 1;
        let class = self.classes.entry(length).or_default();
        class.taken += 1;
        let found = class.free.pop();
        if found.is_none() {
            self.make_room(length);
        }
        found.map(|(_, buffer)| buffer)
    }

    /// Frees idle buffers, the longest idle first, until as much is free as a new one needs.
    fn make_room(&mut self, length: usize) {
        let mut freed = 0;
        while freed < length {
            let oldest = |(_, class): &(&usize, &mut Class)| class.free.first().map_or(u64::MAX, |(came, _)| *came);
            let Some((&of, class)) = self.classes.iter_mut().min_by_key(oldest) else {
                return;
            };
            match class.free.first() {
                Some((came, _)) if self.calls - came > IDLE => class.free.remove(0),
                _ => return,
            };
            freed += of;
        }
    }

    fn give(&mut self, buffer: Vec<f32>) {
        let calls = self.calls;
        // One that did not come from here is one too many.
        if let Some(class) = self.classes.get_mut(&buffer.len())
            && class.taken > 0
        {
            class.taken -= 1;
            class.free.push((calls, buffer));
        }
    }
}

/// A buffer of that length, with any values.
pub(super) fn take(length: usize) -> Vec<f32> {
    if length < SHORTEST {
        return vec![0.0; length];
    }
    let found = BUFFERS.with_borrow_mut(|buffers| buffers.take(length));
    found.unwrap_or_else(|| vec![0.0; length])
}

/// [`take`], with zeros.
pub(super) fn zeros(length: usize) -> Vec<f32> {
    let mut buffer = take(length);
    buffer.fill(0.0);
    buffer
}

/// Keeps a buffer for later.
pub(super) fn give(buffer: Vec<f32>) {
    if buffer.len() >= SHORTEST {
        BUFFERS.with_borrow_mut(|buffers| buffers.give(buffer));
    }
}

/// Calls `work` with buffers of the given lengths, with any values.
pub(super) fn with<R, const N: usize>(lengths: [usize; N], work: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    let mut buffers = lengths.map(take);
    let result = work(buffers.each_mut().map(|buffer| &mut buffer[..]));
    buffers.into_iter().for_each(give);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> usize {
        BUFFERS.with_borrow(|buffers| {
            let lengths = buffers.classes.iter().map(|(length, class)| length * class.free.len());
            lengths.sum()
        })
    }

    #[test]
    fn a_buffer_comes_back_and_makes_room_when_shapes_change() {
        let (first, other) = (take(5000), take(5001));
        let place = first.as_ptr();
        [first, other].into_iter().for_each(give);
        let again = take(5000);
        assert_eq!(again.as_ptr(), place);
        give(again);
        give(vec![0.0; 5000]); // A stranger's.
        assert_eq!(kept(), 10_001);
        for _ in 0..IDLE {
            with([6000, 900], |[a, b]| assert_eq!([a.len(), b.len()], [6000, 900]));
        }
        // Both old ones are idle; the one that is so for longer is enough to make room.
        let new = take(4000);
        assert_eq!(kept(), 5000 + 6000);
        give(new);
        assert!(zeros(6000).iter().all(|&v| v == 0.0));
    }
}
