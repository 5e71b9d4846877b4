//! Baseline JPEG -> RGB, only the part that is asked for, bit for bit as zune-jpeg decodes it.
//!
//! In: a file and a region. Out: the region's pixels, or a [`Fault`]. Invariant: what is decoded here has the pixels of zune-jpeg
//! 0.5.15, the decoder of record, which decides wherever this one finds something unusual; nothing is made up for data that are not
//! there. Only rows down to the region's last are read: damage below them goes unseen, and does not matter to it. The
//! buffers are kept from image to image.

mod bits;
mod block;
mod color;
#[cfg(target_arch = "x86_64")]
mod color_avx2;
mod frame;
mod huffman;
mod idct;
#[cfg(target_arch = "x86_64")]
mod idct_avx2;
mod scan;
mod strips;
#[cfg(test)]
mod tests;

use super::region::Region;
use super::simd::{Avx2, Lanes};
pub use bits::find_ff;
use bits::{Close, Stream};
use frame::Frame;
use strips::{Need, Strips};

/// Why nothing was decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not the common case, or damaged: for another decoder to decide.
    Unusual,
    /// The scan's data end before the image does, though markers enclose them.
    Truncated,
}

/// A decoder with its buffers.
#[derive(Debug, Default)]
pub struct Decoder {
    frame: Frame,
    stream: Stream,
    strips: Strips,
    lanes: Lanes,
}

impl Decoder {
    /// A decoder for certain instructions; the default takes the best that the CPU has.
    pub fn new(lanes: Lanes) -> Self {
        Self {
            lanes,
            ..Self::default()
        }
    }

    /// Decodes `region` of the image in `bytes` into `out`, 4 bytes a pixel (red, green, blue, 255), row by row.
    ///
    /// The region must lie in the image that the header announces; a file with another is unusual.
    pub fn decode(&mut self, bytes: &[u8], region: Region, out: &mut Vec<u8>) -> Result<(), Fault> {
        let lanes = self.lanes;
        lanes.run_with(
            #[inline(always)]
            |cpu| self.decode_with(cpu, bytes, region, out),
        )
    }

    #[inline(always)]
    fn decode_with(&mut self, cpu: Option<Avx2>, bytes: &[u8], region: Region, out: &mut Vec<u8>) -> Result<(), Fault> {
        let data = self.frame.read(bytes).ok_or(Fault::Unusual)?;
        let frame = &self.frame;
        let inside = region.right() as usize <= frame.width && region.bottom() as usize <= frame.height;
        // Another marker than the end's means more scans, or something stranger.
        if !inside || self.stream.fill(data) != Close::Marker(0xd9) || self.stream.segments() != frame.segments() {
            return Err(Fault::Unusual);
        }
        let need = Need::of(region, frame);
        self.strips.reset(frame, need, region);
        out.resize(region.width as usize * region.height as usize * 4, 0);
        scan::read(cpu, frame, &self.stream, need, &mut self.strips, out)
    }
}
