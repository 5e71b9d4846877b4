//! The scan: MCU by MCU from the bits to the strips, those outside the region only passed over.
//!
//! In: frame, data, and which MCUs are needed. Out: strips that are complete row by row, and with them the pixels. Invariant: every
//! bit that is used belongs to its restart segment; after the last row that is needed nothing is read.

use super::Fault;
use super::bits::{Bits, Stream};
use super::block::{self, Room};
use super::frame::Frame;
use super::huffman::Table;
use super::idct;
#[cfg(target_arch = "x86_64")]
use super::idct_avx2;
use super::strips::{Need, Strips};
use crate::data::simd::Avx2;

/// Reads the rows of MCUs down to the last that is needed.
#[inline(always)]
pub fn read(
    cpu: Option<Avx2>,
    frame: &Frame,
    stream: &Stream,
    need: Need,
    strips: &mut Strips,
    out: &mut [u8],
) -> Result<(), Fault> {
    let across = frame.mcus()[0];
    let mut scan = Scan::new(cpu, frame, stream);
    for row in 0..need.rows[1] {
        let [from, to] = if row < need.rows[0] {
            [across, across]
        } else {
            need.columns
        };
        scan.pass(from)?;
        scan.keep(to - from, strips)?;
        scan.pass(across - to)?;
        // Within a row the data may have ended; what follows them is padding or the next segment.
        scan.bits.left().ok_or(Fault::Truncated)?;
        if row >= need.rows[0] {
            strips.emit(cpu, row, out);
        }
    }
    // Without reading them: the data that are left must at least have room for the blocks that are left.
    if stream.left(scan.bits) * 8 + 7 < frame.least_bits(need.rows[1]) {
        return Err(Fault::Truncated);
    }
    Ok(())
}

/// What a component's blocks are read with.
#[derive(Clone, Copy)]
struct Component<'a> {
    dc: &'a Table,
    ac: &'a Table,
    steps: &'a [i32; 64],
    /// Blocks in a MCU, across and down.
    blocks: [usize; 2],
}

/// The state of entropy decoding.
struct Scan<'a> {
    cpu: Option<Avx2>,
    stream: &'a Stream,
    bits: Bits<'a>,
    segment: usize,
    /// MCUs in a restart segment, and how many are to come in this one.
    interval: usize,
    todo: usize,
    components: [Component<'a>; 3],
    count: usize,
    /// The last DC value of each component.
    dc: [i32; 3],
    room: Room,
}

impl<'a> Scan<'a> {
    #[inline(always)]
    fn new(cpu: Option<Avx2>, frame: &'a Frame, stream: &'a Stream) -> Self {
        let component = |n: usize| Component {
            dc: &frame.huffman[0][frame.tables[n][0]],
            ac: &frame.huffman[1][frame.tables[n][1]],
            steps: &frame.quantisation[n],
            blocks: frame.blocks(n),
        };
        let interval = if frame.restart == 0 { usize::MAX } else { frame.restart };
        Self {
            cpu,
            stream,
            bits: stream.segment(0),
            segment: 0,
            interval,
            todo: interval,
            components: [component(0), component(1), component(2)],
            count: frame.components,
            dc: [0; 3],
            room: [0; _],
        }
    }

    /// How many of the next `left` MCUs lie in one restart segment: the one that is under way, or the next.
    #[inline(always)]
    fn stretch(&mut self, left: usize) -> Result<usize, Fault> {
        if self.todo == 0 {
            match self.bits.left() {
                None => return Err(Fault::Truncated),
                Some(0) => {}
                // Data that no MCU needed.
                Some(_) => return Err(Fault::Unusual),
            }
            self.segment += 1;
            (self.bits, self.todo) = (self.stream.segment(self.segment), self.interval);
            self.dc = [0; 3];
        }
        let stretch = left.min(self.todo);
        self.todo -= stretch;
        Ok(stretch)
    }

    /// Goes over `mcus` MCUs without keeping them.
    #[inline(always)]
    fn pass(&mut self, mcus: usize) -> Result<(), Fault> {
        let mut done = 0;
        while done < mcus {
            let stretch = self.stretch(mcus - done)?;
            // A copy: its few words stay in registers, as those of a field would not.
            let mut bits = self.bits;
            for _ in 0..stretch {
                for n in 0..self.count {
                    let Component { dc, ac, blocks, .. } = self.components[n];
                    for _ in 0..blocks[0] * blocks[1] {
                        block::pass(&mut bits, dc, ac, &mut self.dc[n]).map_err(|fault| bits.blame(fault))?;
                    }
                }
            }
            self.bits = bits;
            done += stretch;
        }
        Ok(())
    }

    /// Reads `mcus` MCUs into the strips.
    #[inline(always)]
    fn keep(&mut self, mcus: usize, strips: &mut Strips) -> Result<(), Fault> {
        let mut done = 0;
        while done < mcus {
            let stretch = self.stretch(mcus - done)?;
            let mut bits = self.bits;
            for mcu in done..done + stretch {
                for n in 0..self.count {
                    let [h, v] = self.components[n].blocks;
                    for y in 0..v {
                        for x in 0..h {
                            let samples = self.block(&mut bits, n)?;
                            strips.put(n, mcu, [x, y], &samples);
                        }
                    }
                }
            }
            self.bits = bits;
            done += stretch;
        }
        Ok(())
    }

    /// The samples of the next block, of component `n`.
    #[inline(always)]
    fn block(&mut self, bits: &mut Bits, n: usize) -> Result<[[u8; 8]; 8], Fault> {
        let Component { dc, ac, steps, .. } = self.components[n];
        let last = block::read(bits, dc, ac, &mut self.dc[n], &mut self.room).map_err(|fault| bits.blame(fault))?;
        let dc = self.dc[n];
        // Beyond this no encoder goes, and decoders part ways.
        if dc.unsigned_abs() > 32767 || (dc * steps[0]).unsigned_abs() > 65535 {
            return Err(Fault::Unusual);
        }
        if last == 0 {
            return Ok([[idct::flat(dc, steps[0]); 8]; 8]);
        }
        let coefficients = self.room.first_chunk().expect("64 of 256");
        Ok(match self.cpu {
            // The first ten positions lie in the first four rows and columns.
            #[cfg(target_arch = "x86_64")]
            Some(cpu) if last < 10 => idct_avx2::corner(cpu, coefficients, steps),
            #[cfg(target_arch = "x86_64")]
            Some(cpu) => idct_avx2::block(cpu, coefficients, steps),
            _ => idct::block(coefficients, steps),
        })
    }
}
