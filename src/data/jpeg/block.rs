//! One block of 8x8 coefficients from the bits: the innermost loop of decoding.
//!
//! In: bits and two tables. Out: quantised coefficients in natural order, as 16-bit integers, and the last position
//! that was touched. Invariant: a stream that a decoder might read in two ways (no such code, a position past 63, a value
//! outside 16 bits) is a [`Fault`], never a coefficient. Source: ITU-T T.81, F.2.2.

use super::Fault;
use super::bits::Bits;
use super::huffman::Table;

/// Position in the block, row by row, of the n-th coefficient of the stream (T.81, figure A.6).
#[rustfmt::skip]
pub const NATURAL: [u8; 64] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// Room for a block: 64 coefficients, and behind them places that any byte finds; only the first of them is written to.
pub type Room = [i16; ROOM];
/// Its length.
pub const ROOM: usize = 256;

/// [`NATURAL`], and behind it the place past the block.
const PLACES: [u8; 128] = {
    let mut places = [64; 128];
    let mut i = 0;
    while i < 64 {
        places[i] = NATURAL[i];
        i += 1;
    }
    places
};

/// Adds a DC difference to `dc`.
#[inline(always)]
fn difference(bits: &mut Bits, table: &Table, dc: &mut i32) -> Result<(), Fault> {
    bits.refill()?;
    let symbol = table.symbol(bits.peek()).ok_or(Fault::Unusual)?;
    *dc = dc.wrapping_add(symbol.value(bits.peek()));
    bits.skip(symbol.raw());
    Ok(())
}

/// Reads a block into `room`; gives the position of the last coefficient that was coded, 0..=63.
#[inline(always)]
pub fn read(
    bits: &mut Bits,
    dc_table: &Table,
    ac_table: &Table,
    dc: &mut i32,
    room: &mut Room,
) -> Result<usize, Fault> {
    difference(bits, dc_table, dc)?;
    room[..64].fill(0);
    room[0] = *dc as i16;
    walk::<true>(bits, ac_table, room)
}

/// Reads a block for its DC value and its end only.
#[inline(always)]
pub fn pass(bits: &mut Bits, dc_table: &Table, ac_table: &Table, dc: &mut i32) -> Result<(), Fault> {
    difference(bits, dc_table, dc)?;
    walk::<false>(bits, ac_table, &mut [0; _]).map(drop)
}

/// Goes through the AC coefficients of a block, and puts them into `room` if they are to be kept.
#[inline(always)]
fn walk<const KEEP: bool>(bits: &mut Bits, table: &Table, room: &mut Room) -> Result<usize, Fault> {
    let mut at = 0;
    'refill: loop {
        bits.refill()?;
        // A look-up takes 11 bits: five are sure. Where values that are not in the table are passed over unread it may take 26, so
        // that two are sure, and the third nearly always.
        for look in 0..if KEEP { 5 } else { 3 } {
            if !KEEP && look == 2 && bits.valid() < 26 {
                continue 'refill;
            }
            let pair = table.pair_at(bits.peek());
            let (first, second) = (at + pair.first(), at + pair.first() + pair.second());
            if second >= 63 {
                if pair.ends() && first < 63 {
                    if KEEP {
                        room[place(first + pair.alone())] = pair.value();
                    }
                    bits.skip(pair.raw());
                    return Ok(first);
                }
                match step::<KEEP>(bits, table, at, room)? {
                    Step::On(next) => at = next,
                    Step::End(last) => return Ok(last),
                }
                continue 'refill;
            }
            at = second;
            if KEEP {
                if pair.is_outside() {
                    bits.refill()?;
                    room[place(first)] = pair.outside_value(bits.peek());
                    bits.skip(pair.raw());
                    continue 'refill;
                }
                room[place(second)] = pair.second_value();
                room[place(first)] = pair.value();
            }
            bits.skip(pair.raw());
        }
    }
}

/// Where in a block a symbol leads.
enum Step {
    /// To this position, and more may follow.
    On(usize),
    /// The block ends with this position.
    End(usize),
}

/// One symbol alone: what a pair does not tell, or what would lead past the block.
#[inline(always)]
fn step<const KEEP: bool>(bits: &mut Bits, table: &Table, at: usize, room: &mut Room) -> Result<Step, Fault> {
    bits.refill()?;
    let here = bits.peek();
    let symbol = table.symbol(here).ok_or(Fault::Unusual)?;
    bits.skip(symbol.raw());
    if symbol.is_end() {
        return Ok(Step::End(at));
    }
    let at = at + symbol.advance();
    if at > 63 {
        return Err(Fault::Unusual);
    }
    if KEEP {
        room[place(at)] = symbol.value(here) as i16;
    }
    Ok(if at == 63 { Step::End(at) } else { Step::On(at) })
}

/// Where position `at` of the stream lies in a [`Room`].
#[inline(always)]
fn place(at: usize) -> usize {
    usize::from(PLACES[at & 127])
}
