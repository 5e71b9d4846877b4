//! The entropy-coded data of a scan as bits: stuffed zeros taken out once, restart segments apart, refilled without a branch.
//!
//! In: the bytes after a scan's header. Out: [`Stream`], and [`Bits`] over one of its segments. Invariant: a read past the end of a
//! segment gives bits that do not belong to it, and [`Bits::left`] says so; nothing is decoded from padding unseen.
//! Reference for the refill: F. Giesen, "Reading bits in far too many ways", variant 4.

use super::Fault;

/// Bytes after the data that may be loaded, though they are never part of it: a refill looks 8 bytes ahead of a full window.
const PADDING: usize = 16;

/// The data of one scan without markers and stuffing.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    bytes: Vec<u8>,
    /// Where each restart segment ends.
    ends: Vec<usize>,
}

/// What closed a scan's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// This marker; not a restart.
    Marker(u8),
    /// The file ended.
    Nothing,
    /// A restart marker out of its order.
    Disorder,
}

impl Stream {
    /// Takes the data in from `bytes`, up to the first marker that is not a restart.
    #[inline(always)]
    pub fn fill(&mut self, bytes: &[u8]) -> Close {
        self.bytes.clear();
        self.ends.clear();
        let close = self.unstuff(bytes);
        self.ends.push(self.bytes.len());
        self.bytes.extend_from_slice(&[0; PADDING]);
        close
    }

    #[inline(always)]
    fn unstuff(&mut self, bytes: &[u8]) -> Close {
        let mut from = 0;
        while let Some(ff) = find_ff(bytes, from) {
            match bytes.get(ff + 1) {
                // The ff is data.
                Some(0) => self.bytes.extend_from_slice(&bytes[from..=ff]),
                Some(&restart @ 0xd0..=0xd7) => {
                    self.bytes.extend_from_slice(&bytes[from..ff]);
                    if usize::from(restart & 7) != self.ends.len() & 7 {
                        return Close::Disorder;
                    }
                    self.ends.push(self.bytes.len());
                }
                Some(&marker) => {
                    self.bytes.extend_from_slice(&bytes[from..ff]);
                    return Close::Marker(marker);
                }
                None => return Close::Nothing,
            }
            from = ff + 2;
        }
        Close::Nothing
    }

    /// Number of restart segments; at least 1.
    pub fn segments(&self) -> usize {
        self.ends.len()
    }

    /// How many whole bytes follow the ones that `bits` has read, those of later segments included.
    pub fn left(&self, bits: Bits) -> usize {
        (bits.rest.len() + bits.valid() as usize / 8).saturating_sub(PADDING)
    }

    /// The bits of segment `n`.
    pub fn segment(&self, n: usize) -> Bits<'_> {
        let start = if n == 0 { 0 } else { self.ends[n - 1] };
        Bits {
            rest: &self.bytes[start..],
            beyond: self.bytes.len() - self.ends[n],
            window: 0,
            count: 0,
        }
    }
}

/// A reader. The highest `count` bits of `window` are the next bits of the data.
#[derive(Clone, Copy)]
pub struct Bits<'a> {
    /// The bytes that are not counted in `count`, to the end of the stream.
    rest: &'a [u8],
    /// How many of them are behind the segment.
    beyond: usize,
    window: u64,
    /// Modulo 64.
    count: u32,
}

impl Bits<'_> {
    /// Makes at least 56 bits valid; a fault well past the end of the data.
    #[inline(always)]
    pub fn refill(&mut self) -> Result<(), Fault> {
        let bytes = self.rest.first_chunk().ok_or(Fault::Truncated)?;
        self.window |= u64::from_be_bytes(*bytes) >> (self.count & 63);
        self.rest = &self.rest[(!self.count >> 3 & 7) as usize..];
        self.count |= 56;
        Ok(())
    }

    /// The next bits, highest first.
    #[inline(always)]
    pub fn peek(&self) -> u64 {
        self.window
    }

    /// How many bits are valid.
    #[inline(always)]
    pub fn valid(&self) -> u32 {
        self.count & 63
    }

    /// Goes on by the lowest six bits of `length`, not more than are valid. What is above them may be anything: each
    /// shift would mask them in any case, and one more step here would be one for every look-up.
    #[inline(always)]
    pub fn skip(&mut self, length: u32) {
        self.window <<= length & 63;
        self.count = self.count.wrapping_sub(length);
    }

    /// How many whole bytes of the segment were not read; `None` if bits were read that are not the segment's.
    pub fn left(&self) -> Option<usize> {
        let bits = (self.rest.len() * 8) as i64 - (self.beyond * 8) as i64 + i64::from(self.valid());
        usize::try_from(bits).ok().map(|bits| bits / 8)
    }

    /// What to call a fault: beyond the data anything may look wrong, and is not what is wrong.
    #[cold]
    pub fn blame(&self, fault: Fault) -> Fault {
        if self.left().is_none() { Fault::Truncated } else { fault }
    }
}

/// Position of the next 0xff. Whole blocks first: compilers turn the block test into vector code.
#[inline(always)]
pub fn find_ff(bytes: &[u8], mut at: usize) -> Option<usize> {
    while let Some(block) = bytes.get(at..at + 32) {
        if block.iter().fold(false, |found, &b| found | (b == 0xff)) {
            break;
        }
        at += 32;
    }
    bytes.get(at..)?.iter().position(|&b| b == 0xff).map(|found| at + found)
}
