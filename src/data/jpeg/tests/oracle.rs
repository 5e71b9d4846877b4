//! What the decoder is held to: zune-jpeg's pixels, and parts of them. The fuzzer (`tools/fuzz`) takes this file in as well.

use super::Region;
use std::panic::{AssertUnwindSafe, catch_unwind};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

/// A whole image, 4 bytes a pixel.
pub struct Image {
    pub width: u32,
    pub height: u32,
    pub pixels: Vec<u8>,
}

impl Image {
    pub fn part(&self, part: Region) -> Vec<u8> {
        cut(&self.pixels, self.width, part)
    }
}

/// A part of the pixels of an image of that width.
pub fn cut(pixels: &[u8], width: u32, part: Region) -> Vec<u8> {
    let rows = pixels.chunks_exact(width as usize * 4);
    let rows = rows.skip(part.top as usize).take(part.height as usize);
    rows.flat_map(|row| &row[part.left as usize * 4..part.right() as usize * 4])
        .copied()
        .collect()
}

/// zune-jpeg's pixels; none where it fails or, on an absurd file, panics.
pub fn oracle(file: &[u8], strict: bool) -> Option<Image> {
    let options = DecoderOptions::default()
        .set_strict_mode(strict)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGBA);
    let decode = || {
        let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(file), options);
        let pixels = decoder.decode().ok()?;
        let (width, height) = decoder.dimensions()?;
        Some(Image {
            width: width as u32,
            height: height as u32,
            pixels,
        })
    };
    catch_unwind(AssertUnwindSafe(decode)).ok().flatten()
}
