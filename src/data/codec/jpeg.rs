//! JPEG -> RGB: the common case by [`crate::data::jpeg`], the rest by zune-jpeg, the decoder of record.
//!
//! In: bytes whose markers [`super::jpeg_header`] finds within the limits. Out: pixels, written straight into the reused buffer: of
//! the part that is asked for, or of all.
//! Grey is repeated; CMYK and YCCK become RGB as Pillow does it (inverted values: R = C K / 255, rounded).

use super::jpeg_header::{self, JpegHeader, damaged, truncated, unsupported};
use super::{CodecError, DecodeOptions, Format, Policy, Region, Rgbx8, guarded, orient};
use crate::data::jpeg::{Decoder, Fault};
use image::metadata::Orientation;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

/// Decodes a JPEG into `out`. A panic of a decoder is an error, one of `choose` goes through.
pub fn decode(
    decoder: &mut Decoder,
    bytes: &[u8],
    options: &DecodeOptions,
    mut choose: impl FnMut(u32, u32) -> Region,
    out: &mut Rgbx8,
) -> Result<(), CodecError> {
    let (header, turn) = guarded(Format::Jpeg, || {
        let header = jpeg_header::check(bytes, options)?;
        let exif = header.exif.filter(|_| options.apply_orientation);
        let turn = exif.and_then(Orientation::from_exif_chunk);
        Ok((header, turn.unwrap_or(Orientation::NoTransforms)))
    })?;
    let (width, height) = (header.width, header.height);
    let (upright_width, upright_height) = orient::size(width, height, turn);
    let mut part = choose(upright_width, upright_height);
    if turn != Orientation::NoTransforms {
        // It is turned as a whole.
        part = Region::all(width, height);
    }
    guarded(Format::Jpeg, || {
        match own(decoder, bytes, &header, part, out) {
            Ok(()) => {}
            Err(Fault::Truncated) if options.policy == Policy::Strict => {
                return Err(truncated("the scan ends before the image does"));
            }
            Err(_) => of_record(bytes, &header, options, out)?,
        }
        orient::apply(out, turn);
        Ok(())
    })
}

/// Decodes the part with the own decoder.
fn own(decoder: &mut Decoder, bytes: &[u8], header: &JpegHeader, part: Region, out: &mut Rgbx8) -> Result<(), Fault> {
    if !header.complete {
        return Err(Fault::Unusual);
    }
    (out.width, out.height, out.part) = (header.width, header.height, part);
    decoder.decode(bytes, part, &mut out.pixels)
}

/// Decodes all of the image with zune-jpeg.
fn of_record(bytes: &[u8], header: &JpegHeader, options: &DecodeOptions, out: &mut Rgbx8) -> Result<(), CodecError> {
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
        .jpeg_set_max_scans(options.max_scans as usize);
    let open = |colors| {
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), zune.jpeg_set_out_colorspace(colors));
        decoder.decode_headers().map_err(translate).map(|()| decoder)
    };
    let mut decoder = open(ColorSpace::RGBA)?;
    let (width, height) = decoder.dimensions().ok_or_else(|| damaged("no size"))?;
    let (width, height) = (width as u32, height as u32);
    // Odd markers must not smuggle a second size past the walk: the limits, and whoever chose a part, have seen the first.
    if (width, height) != (header.width, header.height) {
        let JpegHeader {
            width: w, height: h, ..
        } = header;
        return Err(damaged(&format!(
            "{w} x {h} pixels by its markers, {width} x {height} to the decoder"
        )));
    }
    out.reset(width, height);
    if let Some(ColorSpace::YCbCr | ColorSpace::Luma) = decoder.input_colorspace() {
        fill(&mut decoder, &mut out.pixels)?;
    } else {
        // zune 0.5.15 makes RGB right of the rare rest (RGB, CMYK, YCCK), but not RGBA.
        decoder = open(ColorSpace::RGB)?;
        let quarter = out.pixels.len() / 4;
        fill(&mut decoder, &mut out.pixels[quarter..])?;
        widen(&mut out.pixels);
    }
    Ok(())
}

fn fill(decoder: &mut JpegDecoder<ZCursor<&[u8]>>, pixels: &mut [u8]) -> Result<(), CodecError> {
    if decoder.output_buffer_size() != Some(pixels.len()) {
        return Err(unsupported("colours that cannot become RGB"));
    }
    decoder.decode_into(pixels).map_err(translate)
}

/// RGB in the last three quarters of the buffer -> 4 bytes a pixel, in place: a pixel is read before its bytes are written.
fn widen(pixels: &mut [u8]) {
    let count = pixels.len() / 4;
    for i in 0..count {
        let at = count + 3 * i;
        let wide = [pixels[at], pixels[at + 1], pixels[at + 2], 255];
        pixels[4 * i..][..4].copy_from_slice(&wide);
    }
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
