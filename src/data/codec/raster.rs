//! PNG and WebP -> RGB through the `image` crate.
//!
//! Out: what Pillow's `convert("RGB")` gives: alpha dropped (not blended), palettes and low bit depths expanded, the high byte
//! of 16-bit colour. 16-bit grey is clipped at 255, not scaled, as Pillow does: such a file is mostly white in both.
//! Gamma and colour profiles are ignored, as there. Of an animation, the first frame.

use super::{CodecError, DecodeOptions, Format, Rgbx8, check_pixels, orient};
use image::codecs::{png::PngDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder, ImageError, Limits};
use std::io::Cursor;

/// Most that deflate expands: 1032 to 1 (zlib's documentation, "Maximum Compression Factor").
const DEFLATE_MOST: u64 = 1032;

/// Size from the header, within the limits.
pub fn probe(format: Format, bytes: &[u8], options: &DecodeOptions) -> Result<(u32, u32), CodecError> {
    match format {
        Format::Png => admit(format, bytes, &png(bytes, options)?, options),
        _ => admit(format, bytes, &webp(bytes)?, options),
    }
}

/// Decodes a PNG or WebP into `out`, all of it; `raw` is room for its samples.
pub fn decode(
    format: Format,
    bytes: &[u8],
    options: &DecodeOptions,
    raw: &mut Vec<u8>,
    out: &mut Rgbx8,
) -> Result<(), CodecError> {
    match format {
        Format::Png => read(format, bytes, png(bytes, options)?, options, raw, out),
        _ => read(format, bytes, webp(bytes)?, options, raw, out),
    }
}

fn png<'a>(bytes: &'a [u8], options: &DecodeOptions) -> Result<PngDecoder<Cursor<&'a [u8]>>, CodecError> {
    // IHDR is always first, so the size is known before the decoder reads anything else.
    if let Some(&[w3, w2, w1, w0, h3, h2, h1, h0]) = bytes.get(16..24) {
        let (width, height) = (
            u32::from_be_bytes([w3, w2, w1, w0]),
            u32::from_be_bytes([h3, h2, h1, h0]),
        );
        check_pixels(Format::Png, width, height, options)?;
    }
    let mut limits = Limits::no_limits();
    // Four channels of 16 bits, and as much again for the decoder's own needs.
    limits.max_alloc = Some(options.max_pixels.saturating_mul(16).max(1 << 20));
    PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(|e| translate(Format::Png, e))
}

fn webp(bytes: &[u8]) -> Result<WebPDecoder<Cursor<&[u8]>>, CodecError> {
    WebPDecoder::new(Cursor::new(bytes)).map_err(|e| translate(Format::Webp, e))
}

fn admit(
    format: Format,
    bytes: &[u8],
    decoder: &impl ImageDecoder,
    options: &DecodeOptions,
) -> Result<(u32, u32), CodecError> {
    let (width, height) = decoder.dimensions();
    check_pixels(format, width, height, options)?;
    let bits = u64::from(decoder.original_color_type().bits_per_pixel());
    let least = u64::from(height) * (u64::from(width) * bits / 8) / DEFLATE_MOST;
    if format == Format::Png && least > bytes.len() as u64 {
        let reason = format!("{width} x {height} pixels cannot fit into {} bytes", bytes.len());
        return Err(CodecError::Truncated { format, reason });
    }
    Ok((width, height))
}

fn read(
    format: Format,
    bytes: &[u8],
    mut decoder: impl ImageDecoder,
    options: &DecodeOptions,
    raw: &mut Vec<u8>,
    out: &mut Rgbx8,
) -> Result<(), CodecError> {
    let (width, height) = admit(format, bytes, &decoder, options)?;
    let turn = if options.apply_orientation {
        decoder.orientation().ok()
    } else {
        None
    };
    let kind = decoder.color_type();
    out.reset(width, height);
    // Zeros, as in the pixels' buffer: the image before must not show.
    raw.clear();
    raw.resize(
        width as usize * height as usize * usize::from(kind.bytes_per_pixel()),
        0,
    );
    decoder.read_image(raw).map_err(|e| translate(format, e))?;
    to_rgbx(format, kind, raw, &mut out.pixels)?;
    if let Some(turn) = turn {
        orient::apply(out, turn);
    }
    Ok(())
}

/// Any colour type -> RGB and a byte. `raw`: pixels of `kind`, 16-bit values in native byte order.
fn to_rgbx(format: Format, kind: ColorType, raw: &[u8], pixels: &mut [u8]) -> Result<(), CodecError> {
    let high = |s: &[u8], channel: usize| (u16::from_ne_bytes([s[channel * 2], s[channel * 2 + 1]]) >> 8) as u8;
    let pixel: &dyn Fn(&[u8]) -> [u8; 3] = match kind {
        ColorType::L8 | ColorType::La8 => &|s| [s[0]; 3],
        ColorType::Rgb8 | ColorType::Rgba8 => &|s| [s[0], s[1], s[2]],
        ColorType::L16 => &|s| [u16::from_ne_bytes([s[0], s[1]]).min(255) as u8; 3],
        ColorType::La16 => &|s| [high(s, 0); 3],
        ColorType::Rgb16 | ColorType::Rgba16 => &|s| [high(s, 0), high(s, 1), high(s, 2)],
        other => {
            return Err(CodecError::Unsupported {
                format,
                reason: format!("colours {other:?}"),
            });
        }
    };
    for (source, target) in raw
        .chunks_exact(kind.bytes_per_pixel().into())
        .zip(pixels.as_chunks_mut::<4>().0)
    {
        let [r, g, b] = pixel(source);
        *target = [r, g, b, 255];
    }
    Ok(())
}

fn translate(format: Format, error: ImageError) -> CodecError {
    let reason = error.to_string();
    match error {
        ImageError::Unsupported(_) => CodecError::Unsupported { format, reason },
        ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            CodecError::Truncated { format, reason }
        }
        _ => CodecError::Damaged { format, reason },
    }
}
