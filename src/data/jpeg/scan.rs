//! The scan: MCU by MCU from the bits to the strips, those outside the region only passed over.
//!
//! In: frame, data, and which MCUs are needed. Out: strips that are complete row by row, and with them the pixels. Invariant: every
//! bit that is used belongs to its restart segment; after the last row that is needed nothing is read.

use super::Fault;
use super::bits::{Bits, Stream};
use super::block::{self, ROOM};
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
    // What is below goes unseen, unless the data that are left have no room for it: then it is read for what is wrong there, so that
    // a part has the whole's fault.
    if stream.left(scan.bits) * 8 + 7 < frame.least_bits(need.rows[1]) {
        for _ in need.rows[1]..frame.mcus()[1] {
            scan.pass(across)?;
            scan.bits.left().ok_or(Fault::Truncated)?;
        }
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
    /// The largest DC value.
    most: u32,
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
    /// Blocks in a MCU.
    blocks: usize,
    /// Coefficients that are read and not transformed yet.
    batch: [i16; 64 * BATCH + ROOM],
    last: [u8; BATCH],
}

/// Blocks that are read before they are transformed.
const BATCH: usize = 24;

impl<'a> Scan<'a> {
    #[inline(always)]
    fn new(cpu: Option<Avx2>, frame: &'a Frame, stream: &'a Stream) -> Self {
        let component = |n: usize| Component {
            dc: &frame.huffman[0][frame.tables[n][0]],
            ac: &frame.huffman[1][frame.tables[n][1]],
            steps: &frame.quantisation[n],
            blocks: frame.blocks(n),
            // Of 16 bits, and so that the two ways to transform a flat block agree in 32.
            most: 32767.min(65535 / frame.quantisation[n][0].max(1) as u32),
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
            blocks: frame.mcu_blocks(),
            batch: [0; _],
            last: [0; _],
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
                        self.check(n, &bits)?;
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
        let group = BATCH / self.blocks;
        let mut done = 0;
        while done < mcus {
            let stretch = self.stretch(mcus - done)?;
            let end = done + stretch;
            while done < end {
                let next = end.min(done + group);
                self.read(next - done)?;
                self.transform(done, next, strips);
                done = next;
            }
        }
        Ok(())
    }

    /// Reads the coefficients of `mcus` MCUs.
    #[inline(always)]
    fn read(&mut self, mcus: usize) -> Result<(), Fault> {
        let mut bits = self.bits;
        let mut index = 0;
        for _ in 0..mcus {
            for n in 0..self.count {
                let Component { dc, ac, blocks, .. } = self.components[n];
                for _ in 0..blocks[0] * blocks[1] {
                    let room = self.batch[64 * index..].first_chunk_mut().expect("room for a batch");
                    let last = block::read(&mut bits, dc, ac, &mut self.dc[n], room);
                    let last = last.map_err(|fault| bits.blame(fault))?;
                    self.check(n, &bits)?;
                    self.last[index] = last as u8;
                    index += 1;
                }
            }
        }
        self.bits = bits;
        Ok(())
    }

    /// Holds component `n`'s DC value, read up to `bits`, to what an encoder can mean; beyond, decoders part ways.
    #[inline(always)]
    fn check(&self, n: usize, bits: &Bits) -> Result<(), Fault> {
        if self.dc[n].unsigned_abs() > self.components[n].most {
            return Err(bits.blame(Fault::Unusual));
        }
        Ok(())
    }

    /// Turns the batch into samples: MCUs `from..to` of the strips.
    #[inline(always)]
    fn transform(&mut self, from: usize, to: usize, strips: &mut Strips) {
        let mut index = 0;
        for mcu in from..to {
            for n in 0..self.count {
                let Component {
                    steps, blocks: [h, v], ..
                } = self.components[n];
                for y in 0..v {
                    for x in 0..h {
                        let coefficients = self.batch[64 * index..].first_chunk().expect("a batch");
                        let samples = self.samples(coefficients, self.last[index], steps);
                        strips.put(n, mcu, [x, y], &samples);
                        index += 1;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn samples(&self, coefficients: &[i16; 64], last: u8, steps: &[i32; 64]) -> [[u8; 8]; 8] {
        if last == 0 {
            return [[idct::flat(coefficients[0].into(), steps[0]); 8]; 8];
        }
        match self.cpu {
            // The first ten positions lie in the first four rows and columns.
            #[cfg(target_arch = "x86_64")]
            Some(cpu) if last < 10 => idct_avx2::corner(cpu, coefficients, steps),
            #[cfg(target_arch = "x86_64")]
            Some(cpu) => idct_avx2::block(cpu, coefficients, steps),
            _ => idct::block(coefficients, steps),
        }
    }
}
