//! Encoded image -> RGB, under limits on work (never on the clock, which would make pixels depend on load).
//!
//! In: the bytes of a JPEG, PNG or WebP, found by its magic bytes, and which part of it is wanted. Out: row-major pixels of at
//! least that part in a reused buffer, or a [`CodecError`] with a short code. Invariants: limits are checked on the header, before
//! anything is allocated or decoded; a panic inside a decoder is an error like any other; pixels depend on the bytes and options only,
//! never on what the buffer held before nor on the part that was asked for.
//! Reference: Pillow's `convert("RGB")`: alpha dropped, palettes expanded, the high byte of 16-bit colour, 16-bit grey
//! clipped at 255, CMYK through the inverted (Adobe) convention, colour profiles (ICC) and gamma ignored. The JPEG decoder of
//! record is zune-jpeg, pinned; the own one ([`super::jpeg`]) gives its pixels or none.

mod jpeg;
mod jpeg_header;
mod orient;
mod raster;

use super::region::Region;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// `[decode]`: what may be decoded, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeOptions {
    /// Largest number of pixels in an image; a larger one is rejected before it is decoded. Default 178956970 (Pillow's bomb error limit).
    pub max_pixels: u64,
    /// Most scans in a progressive JPEG. Default 100.
    pub max_scans: u32,
    /// Largest encoded size, bytes. Default 67108864.
    pub max_bytes: u64,
    /// `strict` rejects a JPEG that is truncated or damaged where its views need it, `lenient` keeps what could be decoded. Default strict.
    pub policy: Policy,
    /// Apply the EXIF orientation. Default false, as all published numbers were made.
    pub apply_orientation: bool,
}

impl DecodeOptions {
    /// What is out of range, one sentence each.
    pub fn validate(&self) -> Vec<String> {
        let limits = [
            ("max_pixels", self.max_pixels),
            ("max_scans", self.max_scans.into()),
            ("max_bytes", self.max_bytes),
        ];
        let zero = limits.into_iter().filter(|(_, value)| *value == 0);
        zero.map(|(key, _)| format!("decode.{key} is 0: every image would be rejected"))
            .collect()
    }
}

/// What to do with a damaged JPEG. (A damaged PNG or WebP is always rejected.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Reject it.
    Strict,
    /// Keep what could be decoded.
    Lenient,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            max_pixels: 178_956_970,
            max_scans: 100,
            max_bytes: 64 << 20,
            policy: Policy::Strict,
            apply_orientation: false,
        }
    }
}

/// A decoded image, or a part of one: row-major, 4 bytes a pixel: red, green, blue, and one that means nothing. Reused from
/// sample to sample.
///
/// Four bytes, because the resize of 4 channels takes three quarters of the time of the resize of 3, and the decoder writes
/// either as fast.
#[derive(Clone, Debug, Default)]
pub struct Rgbx8 {
    /// Width of the whole image, pixels.
    pub width: u32,
    /// Height of the whole image, pixels.
    pub height: u32,
    /// What is held of it. Inside the image, and empty only where the image is.
    pub part: Region,
    /// The part's pixels, `part.width * part.height * 4` bytes.
    pub pixels: Vec<u8>,
}

impl Rgbx8 {
    /// A whole image from row-major RGB, `width * height * 3` bytes.
    pub fn from_rgb(width: u32, height: u32, rgb: &[u8]) -> Self {
        assert_eq!(rgb.len(), width as usize * height as usize * 3);
        let pixels = rgb.as_chunks::<3>().0.iter().flat_map(|&[r, g, b]| [r, g, b, 255]);
        Self {
            width,
            height,
            part: Region::all(width, height),
            pixels: pixels.collect(),
        }
    }

    /// Row-major RGB of what is held, `part.width * part.height * 3` bytes.
    pub fn to_rgb(&self) -> Vec<u8> {
        let points = self.pixels.as_chunks::<4>().0.iter();
        points.flat_map(|&[r, g, b, _]| [r, g, b]).collect()
    }

    /// Sets the size, all of it to be held, and a buffer of zeros to match; memory is kept from image to image.
    fn reset(&mut self, width: u32, height: u32) {
        (self.width, self.height) = (width, height);
        self.part = Region::all(width, height);
        // Zeros, because a decoder may leave parts of a damaged image unwritten, and the previous image must not show there.
        self.pixels.clear();
        self.pixels.resize(width as usize * height as usize * 4, 0);
    }
}

/// The formats that are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// JPEG: baseline or progressive, Huffman coded, 8 bits.
    Jpeg,
    /// PNG.
    Png,
    /// WebP: lossy, lossless, or the first frame of an animation.
    Webp,
}

impl Format {
    /// The format that the magic bytes name.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => Some(Self::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::Webp),
            _ => None,
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Webp => "WebP",
        })
    }
}

/// What an image's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format.
    pub format: Format,
    /// Width in pixels, before any orientation.
    pub width: u32,
    /// Height in pixels, before any orientation.
    pub height: u32,
}

/// Why an image was rejected: data, not sentences.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// No bytes at all.
    #[error("the image is empty")]
    Empty,
    /// Neither JPEG nor PNG nor WebP.
    #[error("neither JPEG nor PNG nor WebP (first bytes {magic:02x?})")]
    UnknownFormat {
        /// The first bytes, at most eight.
        magic: Vec<u8>,
    },
    /// Larger than `max-bytes`.
    #[error("{bytes} encoded bytes, the limit is {limit}")]
    TooManyBytes {
        /// Encoded size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// More pixels than `max-pixels`.
    #[error("{width} x {height} pixels, the limit is {limit} in all")]
    TooManyPixels {
        /// Claimed width.
        width: u32,
        /// Claimed height.
        height: u32,
        /// The limit on their product.
        limit: u64,
    },
    /// More scans than `max-scans`.
    #[error("more than {limit} scans")]
    TooManyScans {
        /// The limit.
        limit: u32,
    },
    /// Cut off: the end is missing, or the size claimed cannot fit into the bytes that there are.
    #[error("truncated {format}: {reason}")]
    Truncated {
        /// The format.
        format: Format,
        /// What is missing.
        reason: String,
    },
    /// Valid perhaps, but not decoded here (arithmetic coding, lossless JPEG, 12 bits...).
    #[error("unsupported {format}: {reason}")]
    Unsupported {
        /// The format.
        format: Format,
        /// What is not supported.
        reason: String,
    },
    /// Damaged or contradictory.
    #[error("damaged {format}: {reason}")]
    Damaged {
        /// The format.
        format: Format,
        /// What the decoder said.
        reason: String,
    },
    /// The decoder panicked: its defect, met on this image.
    #[error("the {format} decoder failed: {reason}")]
    Panicked {
        /// The format.
        format: Format,
        /// The panic's message.
        reason: String,
    },
}

impl CodecError {
    /// A short stable code, for `quarantine.jsonl`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::UnknownFormat { .. } => "unknown-format",
            Self::TooManyBytes { .. } => "too-many-bytes",
            Self::TooManyPixels { .. } => "too-many-pixels",
            Self::TooManyScans { .. } => "too-many-scans",
            Self::Truncated { .. } => "truncated",
            Self::Unsupported { .. } => "unsupported",
            Self::Damaged { .. } => "damaged",
            Self::Panicked { .. } => "decoder-panic",
        }
    }
}

/// Decodes images; what it needs besides the pixels is kept from image to image.
#[derive(Debug, Default)]
pub struct Decoder {
    jpeg: super::jpeg::Decoder,
    /// A PNG's or WebP's samples before they are RGB.
    raw: Vec<u8>,
}

impl Decoder {
    /// Decodes JPEG, PNG or WebP (found by its magic bytes) into `out`, whose buffer is reused.
    ///
    /// On an error `out` is empty. Orientation is applied only when the options ask for it.
    pub fn decode(&mut self, bytes: &[u8], options: &DecodeOptions, out: &mut Rgbx8) -> Result<(), CodecError> {
        self.decode_part(bytes, options, Region::all, out)
    }

    /// As [`Decoder::decode`], but only what `choose` asks for need be decoded: `out.part` contains it, and may be larger.
    ///
    /// `choose` gets the image's size, width first and after any orientation, once the header has passed its checks; of a JPEG
    /// before any pixel is decoded. It is called
    /// once; not at all if the header fails. Pixels do not depend on it. Panics if the region does not lie in the image.
    pub fn decode_part(
        &mut self,
        bytes: &[u8],
        options: &DecodeOptions,
        mut choose: impl FnMut(u32, u32) -> Region,
        out: &mut Rgbx8,
    ) -> Result<(), CodecError> {
        let mut choose = |width, height| {
            let part = choose(width, height);
            assert!(
                part.width > 0 && part.height > 0 && Region::all(width, height).contains(part),
                "{part:?} was asked of an image of {width} x {height} pixels"
            );
            part
        };
        let result = admit(bytes, options).and_then(|format| match format {
            Format::Jpeg => jpeg::decode(&mut self.jpeg, bytes, options, choose, out),
            Format::Png | Format::Webp => {
                guarded(format, || raster::decode(format, bytes, options, &mut self.raw, out))?;
                choose(out.width, out.height);
                Ok(())
            }
        });
        if result.is_err() {
            out.reset(0, 0);
        }
        result
    }
}

/// [`Decoder::decode`] for those who decode now and then.
pub fn decode(bytes: &[u8], options: &DecodeOptions, out: &mut Rgbx8) -> Result<(), CodecError> {
    Decoder::default().decode(bytes, options, out)
}

/// Reads an image's header and holds it against the limits, without decoding; what `ingest` checks of every image.
pub fn probe(bytes: &[u8], options: &DecodeOptions) -> Result<Header, CodecError> {
    let format = admit(bytes, options)?;
    guarded(format, || {
        let (width, height) = match format {
            Format::Jpeg => jpeg_header::check(bytes, options).map(|h| (h.width, h.height)),
            Format::Png | Format::Webp => raster::probe(format, bytes, options),
        }?;
        Ok(Header { format, width, height })
    })
}

/// The checks that need no parsing.
fn admit(bytes: &[u8], options: &DecodeOptions) -> Result<Format, CodecError> {
    if bytes.is_empty() {
        return Err(CodecError::Empty);
    }
    if bytes.len() as u64 > options.max_bytes {
        return Err(CodecError::TooManyBytes {
            bytes: bytes.len() as u64,
            limit: options.max_bytes,
        });
    }
    Format::of(bytes).ok_or_else(|| CodecError::UnknownFormat {
        magic: bytes[..bytes.len().min(8)].to_vec(),
    })
}

/// Fails where the claimed size is zero or above the limit.
fn check_pixels(format: Format, width: u32, height: u32, options: &DecodeOptions) -> Result<(), CodecError> {
    if width == 0 || height == 0 {
        return Err(CodecError::Damaged {
            format,
            reason: format!("its size is {width} x {height}"),
        });
    }
    if u64::from(width) * u64::from(height) > options.max_pixels {
        return Err(CodecError::TooManyPixels {
            width,
            height,
            limit: options.max_pixels,
        });
    }
    Ok(())
}

/// Runs a decoder, and nothing of the caller's; a panic becomes an error. The buffers it leaves behind are plain bytes, so
/// nothing can be left torn.
fn guarded<T>(format: Format, run: impl FnOnce() -> Result<T, CodecError>) -> Result<T, CodecError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "no message".to_owned());
        Err(CodecError::Panicked { format, reason })
    })
}

#[cfg(test)]
pub(super) mod tests;
