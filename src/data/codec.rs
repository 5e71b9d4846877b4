//! Encoded image -> RGB8, under limits on work (never on the clock, which would make pixels depend on load).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// `strict` rejects a truncated or damaged JPEG, `lenient` keeps what could be decoded. Default strict.
    pub policy: Policy,
    /// Apply the EXIF orientation. Default false, as all published numbers were made.
    pub apply_orientation: bool,
}

/// What to do with a damaged file.
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

/// A decoded image: row-major RGB, 3 bytes a pixel. Reused from sample to sample.
#[derive(Clone, Debug, Default)]
pub struct Rgb8 {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// `width * height * 3` bytes.
    pub pixels: Vec<u8>,
}

/// Why an image was rejected: data, not sentences.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {/* variants */}

/// Decodes JPEG, PNG or WebP (found by its magic bytes) into `out`, whose buffer is reused.
pub fn decode(bytes: &[u8], options: &DecodeOptions, out: &mut Rgb8) -> Result<(), CodecError> {
    todo!()
}
