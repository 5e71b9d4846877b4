//! A file's headers, for the common case: everything that decoding needs, or nothing.
//!
//! In: the whole file. Out: a [`Frame`] whose values are all in range. Invariant: whatever is unusual, contradictory or ambiguous gives
//! `None`, so that what is taken here is read in the same way by every decoder. Source: ITU-T T.81, annex B.

use super::block::NATURAL;
use super::huffman::Table;

/// What the headers before the scan say.
#[derive(Debug)]
pub struct Frame {
    /// Width, pixels.
    pub width: usize,
    /// Height, pixels.
    pub height: usize,
    /// Number of components: 1 or 3.
    pub components: usize,
    /// Luma blocks in a MCU, horizontally and vertically: 1 or 2 each. Chroma has one.
    pub luma: [usize; 2],
    /// Quantisation table of each component, natural order.
    pub quantisation: [[i32; 64]; 3],
    /// DC and AC table of each component.
    pub tables: [[usize; 2]; 3],
    /// MCUs between restart markers; 0 without.
    pub restart: usize,
    /// DC tables, then AC tables.
    pub huffman: [[Table; 4]; 2],
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            width: 0,
            height: 0,
            components: 0,
            luma: [0; 2],
            quantisation: [[0; 64]; 3],
            tables: [[0; 2]; 3],
            restart: 0,
            huffman: Default::default(),
        }
    }
}

/// Which tables and headers were seen.
#[derive(Default)]
struct Seen {
    quantisation: [Option<[i32; 64]>; 4],
    huffman: [[bool; 4]; 2],
    frame: Option<[Component; 3]>,
}

#[derive(Clone, Copy, Default)]
struct Component {
    id: u8,
    quantisation: usize,
}

impl Frame {
    /// Reads the headers up to the scan; gives what follows them.
    #[inline(always)]
    pub fn read<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        if !bytes.starts_with(&[0xff, 0xd8]) {
            return None;
        }
        let mut seen = Seen::default();
        self.restart = 0;
        let mut at = 2;
        loop {
            // No fill bytes, nothing between the segments.
            let &[0xff, marker, high, low] = bytes.get(at..at + 4)?.first_chunk::<4>()? else {
                return None;
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            let segment = bytes.get(at + 4..at + 2 + length)?;
            at += 2 + length;
            match marker {
                0xc0 | 0xc1 if seen.frame.is_none() => seen.frame = Some(self.frame(segment)?),
                0xc4 => self.huffman(segment, &mut seen)?,
                0xda => {
                    self.scan(segment, &seen)?;
                    return bytes.get(at..);
                }
                0xdb => quantisation(segment, &mut seen)?,
                0xdd => self.restart = usize::from(u16::from_be_bytes(segment.try_into().ok()?)),
                // A Motion-JPEG frame may lack tables; of four bytes zune-jpeg reads five.
                0xe0 if segment.len() != 4 && !segment.starts_with(b"AVI1") => {}
                // Extended XMP has a structure of its own that can be broken.
                0xe1 if !segment.starts_with(b"http://ns.adobe.com/xmp/extension/") => {}
                0xee => adobe(segment, &seen)?,
                0xe2..=0xed | 0xef | 0xfe => {}
                _ => return None,
            }
        }
    }

    /// Frame header, B.2.2.
    fn frame(&mut self, segment: &[u8]) -> Option<[Component; 3]> {
        let &[8, h1, h0, w1, w0, count @ (1 | 3), ref rest @ ..] = segment else {
            return None;
        };
        self.width = usize::from(u16::from_be_bytes([w1, w0]));
        self.height = usize::from(u16::from_be_bytes([h1, h0]));
        self.components = usize::from(count);
        if self.width == 0 || self.height == 0 || rest.len() != 3 * self.components {
            return None;
        }
        let mut components = [Component::default(); 3];
        for (n, &[id, sampling, table]) in rest.as_chunks::<3>().0.iter().enumerate() {
            let factors = [usize::from(sampling >> 4), usize::from(sampling & 15)];
            match (n, factors) {
                // A single component has blocks in rows, whatever its factors; only plain ones are taken.
                (0, [1, 1]) => self.luma = factors,
                (0, [1 | 2, 1 | 2]) if count == 3 => self.luma = factors,
                (1 | 2, [1, 1]) => {}
                _ => return None,
            }
            components[n] = Component {
                id,
                quantisation: usize::from(table),
            };
        }
        let ids = components.map(|c| c.id);
        let distinct = count == 1 || ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2];
        // Components of these names are not YCbCr.
        (distinct && ids != *b"RGB").then_some(components)
    }

    /// Huffman tables, B.2.4.2.
    #[inline(always)]
    fn huffman(&mut self, mut segment: &[u8], seen: &mut Seen) -> Option<()> {
        while let Some((&class, rest)) = segment.split_first() {
            let (kind, index) = (usize::from(class >> 4), usize::from(class & 15));
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let total = counts.iter().map(|&n| usize::from(n)).sum();
            let (symbols, rest) = rest.split_at_checked(total)?;
            let table = self.huffman.get_mut(kind)?.get_mut(index)?;
            table.build(counts, symbols, kind == 0)?;
            seen.huffman[kind][index] = true;
            segment = rest;
        }
        Some(())
    }

    /// Scan header, B.2.3: one scan with all components in order.
    fn scan(&mut self, segment: &[u8], seen: &Seen) -> Option<()> {
        let components = seen.frame.as_ref()?;
        let (&count, rest) = segment.split_first()?;
        let (pairs, spectrum) = rest.split_at_checked(2 * self.components)?;
        if usize::from(count) != self.components || spectrum != [0, 63, 0] {
            return None;
        }
        for (n, &[id, tables]) in pairs.as_chunks::<2>().0.iter().enumerate() {
            let component = components[n];
            let [dc, ac] = [usize::from(tables >> 4), usize::from(tables & 15)];
            if id != component.id || !*seen.huffman[0].get(dc)? || !*seen.huffman[1].get(ac)? {
                return None;
            }
            self.tables[n] = [dc, ac];
            self.quantisation[n] = (*seen.quantisation.get(component.quantisation)?)?;
        }
        Some(())
    }

    /// Blocks of component `n` in a MCU, across and down.
    pub fn blocks(&self, n: usize) -> [usize; 2] {
        if n == 0 { self.luma } else { [1, 1] }
    }

    /// Restart segments in the scan.
    pub fn segments(&self) -> usize {
        let [across, down] = self.mcus();
        if self.restart == 0 {
            1
        } else {
            (across * down).div_ceil(self.restart)
        }
    }

    /// Fewest bits that the MCUs below row `row` of them can have: a code for DC and one for the end in each block.
    pub fn least_bits(&self, row: usize) -> usize {
        let [across, down] = self.mcus();
        2 * self.mcu_blocks() * across * (down - row)
    }

    /// Blocks in a MCU, of all components.
    pub fn mcu_blocks(&self) -> usize {
        (0..self.components)
            .map(|n| self.blocks(n)[0] * self.blocks(n)[1])
            .sum()
    }

    /// MCUs in a row, and rows of them.
    pub fn mcus(&self) -> [usize; 2] {
        [
            self.width.div_ceil(8 * self.luma[0]),
            self.height.div_ceil(8 * self.luma[1]),
        ]
    }
}

/// Quantisation tables, B.2.4.1; those of 8 bits only.
fn quantisation(mut segment: &[u8], seen: &mut Seen) -> Option<()> {
    while let Some((&index, rest)) = segment.split_first() {
        let (steps, rest) = rest.split_first_chunk::<64>()?;
        let table = seen.quantisation.get_mut(usize::from(index))?;
        let natural = table.insert([0; 64]);
        for (&at, &step) in NATURAL.iter().zip(steps) {
            natural[usize::from(at)] = i32::from(step);
        }
        segment = rest;
    }
    Some(())
}

/// Adobe's segment: only the transform YCbCr, and before the frame, where it cannot turn a grey image into another.
fn adobe(segment: &[u8], seen: &Seen) -> Option<()> {
    match segment {
        [b'A', b'd', b'o', b'b', b'e', rest @ ..] => (seen.frame.is_none() && rest.get(6) == Some(&1)).then_some(()),
        _ => Some(()),
    }
}
