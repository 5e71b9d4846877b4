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

/// Samples of one component: a row of MCUs, and above it the last row of the one before.
#[derive(Debug, Default)]
struct Strip {
    /// In units of eight, the width of a block: each is found with one check.
    units: Vec<[u8; 8]>,
    /// Units in a row.
    stride: usize,
    /// Rows in a row of MCUs.
    rows: usize,
}

impl Strip {
    /// Row `y` of the component, while row `mcu` of the MCUs is in.
    #[inline(always)]
    fn row(&self, y: usize, mcu: usize) -> &[u8] {
        let start = (1 + y - mcu * self.rows) * self.stride;
        self.units[start..][..self.stride].as_flattened()
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
    /// Chroma rows at luma's resolution.
    wide: [Vec<u8>; 2],
    /// A chroma row between the two axes of upsampling, padded by a sample on either side.
    blended: Vec<u8>,
}

impl Strips {
    /// Makes room for a region of a frame.
    pub fn reset(&mut self, frame: &Frame, need: Need, region: Region) {
        (self.count, self.luma, self.mcu_rows) = (frame.components, frame.luma, frame.mcus()[1]);
        (self.need, self.region) = (need, region);
        let mcus = need.columns[1] - need.columns[0];
        for (n, strip) in self.components.iter_mut().enumerate() {
            let [h, v] = frame.blocks(n);
            (strip.stride, strip.rows) = (h * mcus, 8 * v);
            strip.units.resize(strip.stride * (strip.rows + 1), [0; 8]);
        }
        self.blended.resize(8 * mcus + 2, 0);
        self.wide.iter_mut().for_each(|row| row.resize(16 * mcus, 0));
    }

    /// Puts a block in: component `n`, column `mcu` of the strip, block `[x, y]` of the MCU.
    #[inline(always)]
    pub fn put(&mut self, n: usize, mcu: usize, [x, y]: [usize; 2], block: &[[u8; 8]; 8]) {
        let strip = &mut self.components[n];
        let h = if n == 0 { self.luma[0] } else { 1 };
        let units = &mut strip.units[(1 + 8 * y) * strip.stride + h * mcu + x..];
        let mut at = 0;
        for row in block {
            units[at] = *row;
            at += strip.stride;
        }
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
                strip.units.copy_within(strip.rows * strip.stride.., 0);
            }
        }
    }

    /// Row `y` of the image, which row `mcu` of the MCUs completes.
    #[inline(always)]
    fn row(&mut self, cpu: Option<Avx2>, mcu: usize, y: usize, out: &mut [u8]) {
        let left = self.region.left as usize - self.need.columns[0] * 8 * self.luma[0];
        let part = left..left + self.region.width as usize;
        let Self {
            components,
            wide,
            blended,
            ..
        } = self;
        let [luma, chroma @ ..] = components;
        let luma = &luma.row(y, mcu)[part.clone()];
        if self.count == 1 {
            return color::grey_to_rgbx(luma, out);
        }
        let [h, v] = self.luma;
        for (strip, wide) in chroma.iter().zip(wide.iter_mut()) {
            let row = strip.row(y / v, mcu);
            // The nearest row but its own; at the edges its own.
            let last = 8 * self.mcu_rows - 1;
            let near = if y % 2 == 0 {
                (y / 2).saturating_sub(1)
            } else {
                (y / 2 + 1).min(last)
            };
            match [h, v] {
                [1, 2] => color::blend_rows(row, strip.row(near, mcu), wide),
                [2, _] => {
                    let [first, inner @ .., end] = &mut blended[..] else {
                        continue;
                    };
                    match v {
                        2 => color::blend_rows(row, strip.row(near, mcu), inner),
                        _ => inner.copy_from_slice(row),
                    }
                    (*first, *end) = (inner[0], inner[inner.len() - 1]);
                    color::widen(blended, wide);
                }
                _ => {}
            }
        }
        let (cb, cr) = match [h, v] {
            [1, 1] => (chroma[0].row(y, mcu), chroma[1].row(y, mcu)),
            _ => (&wide[0][..], &wide[1][..]),
        };
        let (cb, cr) = (&cb[part.clone()], &cr[part]);
        match cpu {
            #[cfg(target_arch = "x86_64")]
            Some(cpu) if luma.len() >= 16 => color_avx2::to_rgbx(cpu, luma, cb, cr, out),
            _ => color::to_rgbx(luma, cb, cr, out),
        }
    }
}
