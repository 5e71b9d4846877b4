//! JPEG -> RGB through zune-jpeg, the decoder of record.
//!
//! In: bytes whose markers [`super::jpeg_header`] finds within the limits. Out: all pixels, whatever part is asked for, written
//! straight into the reused buffer.
//! Grey is repeated; CMYK and YCCK become RGB as Pillow does it (inverted values: R = C K / 255, rounded).

use super::jpeg_header::{self, JpegHeader, damaged, truncated, unsupported};
use super::{CodecError, DecodeOptions, Format, Policy, Region, Rgbx8, guarded, orient};
use image::metadata::Orientation;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

/// Decodes a JPEG into `out`. A panic of the decoder is an error, one of `choose` goes through.
pub fn decode(
    bytes: &[u8],
    options: &DecodeOptions,
    mut choose: impl FnMut(u32, u32) -> Region,
    out: &mut Rgbx8,
) -> Result<(), CodecError> {
    let header = guarded(Format::Jpeg, || jpeg_header::check(bytes, options))?;
    // A turned image's size is known only behind zune, which is who reads EXIF.
    if !options.apply_orientation {
        choose(header.width, header.height);
    }
    guarded(Format::Jpeg, || all(bytes, &header, options, out))?;
    if options.apply_orientation {
        choose(out.width, out.height);
    }
    Ok(())
}

/// Decodes the whole image.
fn all(bytes: &[u8], header: &JpegHeader, options: &DecodeOptions, out: &mut Rgbx8) -> Result<(), CodecError> {
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
    if options.apply_orientation {
        let turn = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
        orient::apply(out, turn.unwrap_or(Orientation::NoTransforms));
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
