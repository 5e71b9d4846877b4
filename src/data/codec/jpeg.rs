//! JPEG -> RGB through zune-jpeg, the decoder of record.
//!
//! In: bytes whose markers [`super::jpeg_header`] has found within the limits. Out: pixels written straight into the reused buffer.
//! Grey is repeated; CMYK and YCCK become RGB as Pillow does it (inverted values: R = C K / 255, rounded).

use super::jpeg_header::{self, damaged, truncated, unsupported};
use super::{CodecError, DecodeOptions, Format, Policy, Rgbx8, check_pixels, orient};
use image::metadata::Orientation;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

/// Decodes a JPEG into `out`.
pub fn decode(bytes: &[u8], options: &DecodeOptions, out: &mut Rgbx8) -> Result<(), CodecError> {
    let header = jpeg_header::check(bytes, options)?;
    // Only lenient mode gets here without an end. zune gives a progressive image up where the bytes run out, but fills up to
    // a marker: so it gets one.
    let mended = if header.complete {
        None
    } else {
        Some([bytes, &[0xff, 0xd9]].concat())
    };
    let bytes = mended.as_deref().unwrap_or(bytes);
    let zune = DecoderOptions::default()
        .set_strict_mode(options.policy == Policy::Strict)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_max_scans(options.max_scans as usize)
        .jpeg_set_out_colorspace(ColorSpace::RGBA);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), zune);
    decoder.decode_headers().map_err(translate)?;
    let (width, height) = decoder.dimensions().ok_or_else(|| damaged("no size"))?;
    let (width, height) = (width as u32, height as u32);
    // Once more on what zune itself read: odd markers must not smuggle a second size past the walk.
    check_pixels(Format::Jpeg, width, height, options)?;
    out.reset(width, height);
    // zune 0.5.15 cannot make 4 bytes a pixel of CMYK or YCCK, so it leaves them as they are.
    let four = match decoder.input_colorspace() {
        Some(space @ (ColorSpace::CMYK | ColorSpace::YCCK)) => Some(space),
        _ => None,
    };
    if let Some(space) = four {
        decoder.set_options(zune.jpeg_set_out_colorspace(space));
    }
    if decoder.output_buffer_size() != Some(out.pixels.len()) {
        return Err(unsupported("colours that cannot become RGB"));
    }
    decoder.decode_into(&mut out.pixels).map_err(translate)?;
    if let Some(space) = four {
        inks_to_rgb(space, &mut out.pixels);
    }
    if options.apply_orientation {
        let turn = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
        orient::apply(out, turn.unwrap_or(Orientation::NoTransforms));
    }
    Ok(())
}

/// Four inks -> RGB, in place: the values are inverted inks, as Adobe writes them, so a colour is ink times black over 255.
fn inks_to_rgb(space: ColorSpace, pixels: &mut [u8]) {
    let over_255 = |a: u8, b: u8| {
        let product = u32::from(a) * u32::from(b) + 128;
        ((product + (product >> 8)) >> 8) as u8
    };
    for point in pixels.as_chunks_mut::<4>().0 {
        let [a, b, c, black] = *point;
        let inks = match space {
            // YCbCr of what the inks leave: libjpeg's and Adobe's YCCK.
            ColorSpace::YCCK => ycc_to_rgb(a, b, c).map(|value| 255 - value),
            _ => [a, b, c],
        };
        let [r, g, b] = inks.map(|ink| over_255(ink, black));
        *point = [r, g, b, 255];
    }
}

/// JFIF's YCbCr -> RGB (full range BT.601) in 14-bit fixed point.
fn ycc_to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y) << 14, i32::from(cb) - 128, i32::from(cr) - 128);
    let rounded = |value: i32| ((value + (1 << 13)) >> 14).clamp(0, 255) as u8;
    [
        rounded(y + 22970 * cr),
        rounded(y - 11700 * cr - 5638 * cb),
        rounded(y + 29032 * cb),
    ]
}

/// zune's errors as ours; its kinds do not tell a truncation from a defect, except for these.
fn translate(error: DecodeErrors) -> CodecError {
    match error {
        DecodeErrors::ExhaustedData | DecodeErrors::IoErrors(_) => truncated("the data ends too early"),
        DecodeErrors::FormatStatic("Premature end of buffer") => truncated("the data ends too early"),
        DecodeErrors::Unsupported(_) => unsupported(&format!("{error:?}")),
        other => damaged(&format!("{other:?}")),
    }
}
