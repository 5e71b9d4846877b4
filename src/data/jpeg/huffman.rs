//! Huffman tables of one file, built for decoding: one look-up gives up to two coefficients, with runs and values.
//!
//! In: a table's counts and symbols as DHT has them (ITU-T T.81, B.2.4.2). Out: [`Symbol`] or [`Pair`] for the next bits of a stream.
//! Invariant: a table that has no prefix code, or uses the code of all ones, is refused (as zune-jpeg does); every entry
//! is defined, so a look-up cannot fail: codes that are too long or not in the table lead to [`Table::long`].

/// Bits that are looked up at once for a pair. A coefficient of a photograph takes 5.7 on average: two often fit. With 12 the two
/// AC tables would fill a level-1 cache of 32 KiB.
pub const LOOKUP: u32 = 11;

/// Bits that are looked up at once for a single symbol. DC codes are hardly ever longer, and the cache is short.
const SHORT: u32 = 9;

/// An advance past any position of a block: its end, or something that needs a longer look.
const PAST: u32 = 63;

/// One code and its value: `advance << 10 | size << 6 | length`.
///
/// `length` (6 bits) is the code's length and the value's together; `size` is the number of bits of the value; `advance` is
/// the run of zeros and the value itself: how far the position in the block moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Symbol(u16);

impl Symbol {
    /// A code longer than [`SHORT`] bits, or none.
    const LONG: Self = Self(0);

    fn of(symbol: u8, code_length: u32, dc: bool) -> Self {
        let (run, size) = (u16::from(symbol >> 4), u16::from(symbol & 15));
        let advance = match (dc, run, size) {
            (true, ..) => 0,
            // All runs but 15 without a value end the block: baseline has only run 0, and decoders do not look.
            (false, 0..=14, 0) => PAST as u16,
            (false, ..) => run + 1,
        };
        Self(advance << 10 | size << 6 | (code_length as u16 + size))
    }

    /// All of it, with the length in the lowest six bits.
    #[inline(always)]
    pub fn raw(self) -> u32 {
        self.0.into()
    }

    /// Bits of the code and of the value, 1..=31; 0 if the code is long.
    #[inline(always)]
    pub fn length(self) -> u32 {
        u32::from(self.0 & 63)
    }

    /// Bits of the value, 0..=15.
    #[inline(always)]
    pub fn size(self) -> u32 {
        u32::from(self.0 >> 6 & 15)
    }

    /// Positions to move on.
    #[inline(always)]
    pub fn advance(self) -> usize {
        usize::from(self.0 >> 10)
    }

    /// Nothing more in this block.
    #[inline(always)]
    pub fn is_end(self) -> bool {
        u32::from(self.0 >> 10) == PAST
    }

    /// Look in [`Table::long`] instead.
    #[inline(always)]
    pub fn is_long(self) -> bool {
        self == Self::LONG
    }

    /// The value, where the code is at the start of `bits`; 0 where there is none.
    #[inline(always)]
    pub fn value(self, bits: u64) -> i32 {
        extend(bits, self.length(), self.size())
    }
}

/// Two AC codes with their values, or one: `value << 25 | second advance << 19 | advance << 13 | second value << 6 | length`.
///
/// Without a second, its advance and value are 0: written before the first, it does no harm. A value that is not in the table
/// (outside -63..=63, or with bits beyond those that are looked up) is marked by -64, with its size in place of the second
/// value. The end of a block is a second with an advance of [`PAST`]; behind no first it has a value of [`Pair::ALONE`]. A long code has
/// length 0 and is past the block too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair(u32);

impl Pair {
    const LONG: Self = Self(PAST << 13);
    const OUTSIDE: i32 = -64;
    const ALONE: u32 = 64;

    /// A symbol alone, whose value is `value` if that is there.
    #[inline(always)]
    fn single(symbol: Symbol, value: Option<i32>) -> Self {
        if symbol.is_end() {
            return Self(PAST << 19 | Self::ALONE << 6 | symbol.length());
        }
        let advance = symbol.advance() as u32;
        let (value, size) = match value {
            Some(value @ -63..=63) => (value, 0),
            _ => (Self::OUTSIDE, symbol.size()),
        };
        Self((value as u32) << 25 | advance << 13 | size << 6 | symbol.length())
    }

    /// All of its bits were looked up, and the value is in the table.
    #[inline(always)]
    fn is_whole(self) -> bool {
        !self.is_long() && !self.is_outside()
    }

    /// This one and `second` behind it.
    #[inline(always)]
    fn and(self, second: Self) -> Self {
        let (advance, value) = if second.ends() {
            (PAST, 0)
        } else {
            (second.first() as u32, second.0 >> 25)
        };
        Self(self.0 + (advance << 19) + (value << 6) + second.length())
    }

    #[inline(always)]
    fn is_long(self) -> bool {
        self.length() == 0
    }

    /// All of it, with the length in the lowest six bits.
    #[inline(always)]
    pub fn raw(self) -> u32 {
        self.0
    }

    /// Bits of all; 0 for a long code.
    #[inline(always)]
    pub fn length(self) -> u32 {
        self.0 & 63
    }

    /// Positions to the first coefficient.
    #[inline(always)]
    pub fn first(self) -> usize {
        (self.0 >> 13 & 63) as usize
    }

    /// Positions from the first to the second.
    #[inline(always)]
    pub fn second(self) -> usize {
        (self.0 >> 19 & 63) as usize
    }

    /// The value, of one symbol, is not in the table.
    #[inline(always)]
    pub fn is_outside(self) -> bool {
        self.0 as i32 >> 25 == Self::OUTSIDE
    }

    /// That value, where the code is at the start of `bits`.
    #[inline(always)]
    pub fn outside_value(self, bits: u64) -> i16 {
        extend(bits, self.length(), self.0 >> 6 & 15) as i16
    }

    /// Value of the first, if it is not outside.
    #[inline(always)]
    pub fn value(self) -> i16 {
        (self.0 as i32 >> 25) as i16
    }

    /// Value of the second.
    #[inline(always)]
    pub fn second_value(self) -> i16 {
        ((self.0 << 19) as i32 >> 25) as i16
    }

    /// The block ends here, perhaps after the first.
    #[inline(always)]
    pub fn ends(self) -> bool {
        self.second() == PAST as usize
    }

    /// Of one that ends the block: 0, or 64 if there is no first. The place `first` further on is then past the block.
    #[inline(always)]
    pub fn alone(self) -> usize {
        (self.0 >> 6 & 127) as usize
    }
}

/// Fills the entries of one code, which all begin with it: a stretch for each value that the bits behind it may have.
#[inline(always)]
fn singles(symbol: Symbol, length: u32, entries: &mut [Pair]) {
    let size = symbol.size();
    if length + size > LOOKUP {
        return entries.fill(Pair::single(symbol, None));
    }
    let half = 1i32 << size >> 1;
    for (raw, entries) in entries.chunks_exact_mut(1 << (LOOKUP - length - size)).enumerate() {
        let raw = raw as i32;
        // EXTEND, as below.
        let value = if raw < half { raw + 1 - 2 * half } else { raw };
        entries.fill(Pair::single(symbol, Some(value)));
    }
}

/// The value of `size` bits at the end of the first `length` of `bits` (T.81 F.12, EXTEND); 0 for no bits.
#[inline(always)]
fn extend(bits: u64, length: u32, size: u32) -> i32 {
    let mask = (1u32 << size) - 1;
    let raw = (bits >> (length.wrapping_neg() & 63)) as u32 & mask;
    // A value that begins with a 0 is negative: less than half of the range, and off by the mask.
    let positive = ((bits << ((length - size) & 63)) as i64 >> 63) as u32;
    raw.wrapping_sub(mask & !positive) as i32
}

/// One table, for DC or AC values.
#[derive(Clone, Debug)]
pub struct Table {
    symbols: [Symbol; 1 << SHORT],
    /// For AC only.
    pairs: [Pair; 1 << LOOKUP],
    /// A code of `l` bits, left-aligned in 16, is below `limit[l]`.
    limit: [u32; 17],
    /// Index of the first value of a length, less its first code.
    offset: [i32; 17],
    /// The definition: number of codes by length, what they stand for, and whether for DC.
    counts: [u8; 16],
    values: [u8; 256],
    total: usize,
    dc: bool,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            symbols: [Symbol::LONG; 1 << SHORT],
            pairs: [Pair::LONG; 1 << LOOKUP],
            limit: [0; 17],
            offset: [0; 17],
            counts: [0; 16],
            values: [0; 256],
            total: 0,
            dc: false,
        }
    }
}

impl Table {
    /// Builds the table from the number of codes of each length, 1..=16, and what they stand for in order; `None` where they make
    /// no code, or a DC code stands for more than 15 bits. A table that is here already is not built again: small images share them.
    #[inline(always)]
    pub fn build(&mut self, counts: &[u8; 16], values: &[u8], dc: bool) -> Option<()> {
        if self.total == values.len() && &self.counts == counts && &self.values[..self.total] == values && self.dc == dc
        {
            return Some(());
        }
        // Nothing is here until all is.
        self.total = usize::MAX;
        let total: usize = counts.iter().map(|&n| usize::from(n)).sum();
        if total != values.len() || total > 256 || dc && values.iter().any(|&s| s > 15) {
            return None;
        }
        self.values[..total].copy_from_slice(values);
        (self.counts, self.dc) = (*counts, dc);
        self.fill()?;
        if !dc {
            self.pair();
        }
        self.total = total;
        Some(())
    }

    /// Gives every value its code (T.81, annex C), in the look-up tables or behind them.
    #[inline(always)]
    fn fill(&mut self) -> Option<()> {
        self.symbols.fill(Symbol::LONG);
        self.pairs.fill(Pair::LONG);
        let (mut code, mut at) = (0usize, 0usize);
        for length in 1..=16u32 {
            let count = usize::from(self.counts[length as usize - 1]);
            self.offset[length as usize] = at as i32 - code as i32;
            // The code of all ones is reserved (T.81, C.2); more codes than there are run into it.
            if count > 0 && code + count >= 1 << length {
                return None;
            }
            for _ in 0..count {
                let symbol = Symbol::of(self.values[at], length, self.dc);
                if length <= SHORT {
                    let span = 1 << (SHORT - length);
                    self.symbols[code * span..][..span].fill(symbol);
                }
                if length <= LOOKUP && !self.dc {
                    let span = 1 << (LOOKUP - length);
                    singles(symbol, length, &mut self.pairs[code * span..][..span]);
                }
                (code, at) = (code + 1, at + 1);
            }
            self.limit[length as usize] = (code as u32) << (16 - length);
            code <<= 1;
        }
        Some(())
    }

    /// Makes pairs of the singles.
    #[inline(always)]
    fn pair(&mut self) {
        let singles = self.pairs;
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            let second = singles[index << pair.length() & ((1 << LOOKUP) - 1)];
            let both = pair.is_whole() && !pair.ends() && second.is_whole();
            if both && pair.length() + second.length() <= LOOKUP {
                *pair = pair.and(second);
            }
        }
    }

    /// The symbol at the start of `bits`.
    #[inline(always)]
    pub fn symbol(&self, bits: u64) -> Option<Symbol> {
        let symbol = self.symbols[(bits >> (64 - SHORT)) as usize];
        if symbol.is_long() {
            self.long(bits)
        } else {
            Some(symbol)
        }
    }

    /// The symbols at the start of `bits`, by one look-up; of an AC table.
    #[inline(always)]
    pub fn pair_at(&self, bits: u64) -> Pair {
        self.pairs[(bits >> (64 - LOOKUP)) as usize]
    }

    /// A symbol whose code is longer than [`SHORT`]; `None` if no code begins like this.
    #[cold]
    #[inline(never)]
    fn long(&self, bits: u64) -> Option<Symbol> {
        let next = (bits >> 48) as u32;
        let length = (SHORT + 1..=16).find(|&l| next < self.limit[l as usize])?;
        let index = (next >> (16 - length)) as i32 + self.offset[length as usize];
        let value = *self.values.get(usize::try_from(index).ok()?)?;
        Some(Symbol::of(value, length, self.dc))
    }
}
