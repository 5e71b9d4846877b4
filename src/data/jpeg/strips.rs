//! The samples of one row of MCUs, and the pixels that they complete.
//!
//! In: blocks of samples. Out: rows of pixels, as soon as the chroma rows above and below them are there. Invariant: memory is a
//! row of MCUs across the region, whatever the image's height; a row of pixels is written once.

use super::color;
#[cfg(target_arch = "x86_64")]
use super::color_avx2;
use super::frame::Frame;
use crate::data::region::Region;
use crate::data::simd::Avx2;

/// Samples of one component in a row of MCUs.
#[derive(Debug, Default)]
struct Strip {
    /// Block by block: each is one line of the cache, and written at once.
    blocks: Vec<[[u8; 8]; 8]>,
    /// Blocks in a row, and rows of them.
    stride: usize,
    height: usize,
    /// The last row of samples of the row of MCUs before.
    above: Vec<u8>,
}

impl Strip {
    /// Row `y` of the component, while row `mcu` of the MCUs is in. Not inlined: with the instructions of the caller the loop would
    /// become gathers, which are slower than eight bytes at a time.
    #[inline(never)]
    fn row(&self, y: usize, mcu: usize, out: &mut [u8]) {
        // Counted from the row above.
        match (1 + y - 8 * self.height * mcu).checked_sub(1) {
            None => out.copy_from_slice(&self.above),
            Some(y) => {
                let blocks = &self.blocks[y / 8 * self.stride..][..self.stride];
                for (unit, block) in out.as_chunks_mut().0.iter_mut().zip(blocks) {
                    *unit = block[y % 8];
                }
            }
        }
    }
}

/// Which MCUs hold what a region needs: columns and rows, half open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Need {
    /// Columns of MCUs.
    pub columns: [usize; 2],
    /// Rows of MCUs.
    pub rows: [usize; 2],
}

impl Need {
    /// What `region` needs.
    pub fn of(region: Region, frame: &Frame) -> Self {
        let mcus = frame.mcus();
        let axis = |from: u32, to: u32, n: usize| {
            // Chroma between two samples takes from both: a pixel more on either side holds them.
            let margin = frame.luma[n] - 1;
            let (from, to) = ((from as usize).saturating_sub(margin), to as usize + margin);
            let side = 8 * frame.luma[n];
            [from / side, to.div_ceil(side).min(mcus[n])]
        };
        Self {
            columns: axis(region.left, region.right(), 0),
            rows: axis(region.top, region.bottom(), 1),
        }
    }
}

/// The strips of all components and the buffers between them and the pixels.
#[derive(Debug, Default)]
pub struct Strips {
    components: [Strip; 3],
    count: usize,
    /// Luma blocks in a MCU, across and down.
    luma: [usize; 2],
    /// Rows of MCUs in the image.
    mcu_rows: usize,
    need: Need,
    region: Region,
    /// A row of each component at luma's resolution.
    rows: [Vec<u8>; 3],
    /// Chroma rows before they are wide: one, its nearest, and both in one.
    narrow: [Vec<u8>; 3],
    /// Room for one of them and a sample on either side.
    padded: Vec<u8>,
}

impl Strips {
    /// Makes room for a region of a frame.
    pub fn reset(&mut self, frame: &Frame, need: Need, region: Region) {
        (self.count, self.luma, self.mcu_rows) = (frame.components, frame.luma, frame.mcus()[1]);
        (self.need, self.region) = (need, region);
        let mcus = need.columns[1] - need.columns[0];
        for (n, strip) in self.components.iter_mut().enumerate() {
            let [h, v] = frame.blocks(n);
            (strip.stride, strip.height) = (h * mcus, v);
            strip.blocks.resize(strip.stride * v, [[0; 8]; 8]);
            strip.above.resize(8 * strip.stride, 0);
        }
        self.rows
            .iter_mut()
            .for_each(|row| row.resize(8 * frame.luma[0] * mcus, 0));
        self.narrow.iter_mut().for_each(|row| row.resize(8 * mcus, 0));
        self.padded.resize(8 * mcus + 2, 0);
    }

    /// Puts a block in: component `n`, column `mcu` of the strip, block `[x, y]` of the MCU.
    #[inline(always)]
    pub fn put(&mut self, n: usize, mcu: usize, [x, y]: [usize; 2], block: &[[u8; 8]; 8]) {
        let strip = &mut self.components[n];
        let h = if n == 0 { self.luma[0] } else { 1 };
        strip.blocks[y * strip.stride + h * mcu + x] = *block;
    }

    /// Writes the rows of pixels that row `mcu` of the MCUs completes, and keeps what the next one needs.
    #[inline(always)]
    pub fn emit(&mut self, cpu: Option<Avx2>, mcu: usize, out: &mut [u8]) {
        let side = 8 * self.luma[1];
        // The lowest row waits for the chroma below it, unless nothing follows.
        let lag = self.luma[1] - 1;
        let first = (mcu * side).saturating_sub(lag).max(self.region.top as usize);
        let end = if mcu + 1 == self.mcu_rows { side } else { side - lag } + mcu * side;
        let width = self.region.width as usize * 4;
        for y in first..end.min(self.region.bottom() as usize) {
            let start = (y - self.region.top as usize) * width;
            self.row(cpu, mcu, y, &mut out[start..][..width]);
        }
        if lag == 1 {
            for strip in &mut self.components[..self.count] {
                let blocks = &strip.blocks[(strip.height - 1) * strip.stride..];
                for (unit, block) in strip.above.as_chunks_mut().0.iter_mut().zip(blocks) {
                    *unit = block[7];
                }
            }
        }
    }

    /// Row `y` of the image, which row `mcu` of the MCUs completes.
    #[inline(always)]
    fn row(&mut self, cpu: Option<Avx2>, mcu: usize, y: usize, out: &mut [u8]) {
        let left = self.region.left as usize - self.need.columns[0] * 8 * self.luma[0];
        let part = left..left + self.region.width as usize;
        let Self { components, rows, .. } = self;
        let full = if self.luma == [1, 1] { self.count } else { 1 };
        for (strip, row) in components.iter().zip(rows).take(full) {
            strip.row(y, mcu, row);
        }
        if full < self.count {
            self.upsample(mcu, y);
        }
        let [luma, cb, cr] = &self.rows;
        let luma = &luma[part.clone()];
        if self.count == 1 {
            return color::grey_to_rgbx(luma, out);
        }
        let (cb, cr) = (&cb[part.clone()], &cr[part]);
        match cpu {
            #[cfg(target_arch = "x86_64")]
            Some(cpu) if luma.len() >= 16 => color_avx2::to_rgbx(cpu, luma, cb, cr, out),
            _ => color::to_rgbx(luma, cb, cr, out),
        }
    }

    /// The chroma rows for row `y` of the image.
    #[inline(always)]
    fn upsample(&mut self, mcu: usize, y: usize) {
        let [h, v] = self.luma;
        // The nearest row but its own; at the edges its own.
        let last = 8 * self.mcu_rows - 1;
        let near = if y.is_multiple_of(2) {
            (y / 2).saturating_sub(1)
        } else {
            (y / 2 + 1).min(last)
        };
        let Self {
            components,
            rows,
            narrow: [row, other, blend],
            padded,
            ..
        } = self;
        for (strip, wide) in components[1..].iter().zip(&mut rows[1..]) {
            strip.row(y / v, mcu, row);
            if v == 2 {
                strip.row(near, mcu, other);
            }
            match (h, v) {
                (1, _) => color::blend_rows(row, other, wide),
                (_, 1) => color::widen(row, padded, wide),
                _ => {
                    // Vertical first, and rounded.
                    color::blend_rows(row, other, blend);
                    color::widen(blend, padded, wide);
                }
            }
        }
    }
}
