//! A JPEG's markers, walked without decoding: size, kind, number of scans, and whether the end is there.
//!
//! In: the whole file. Out: a [`JpegHeader`] within the limits. The walk is what bounds the work before a decoder runs, and what
//! sees a truncation that leaves only the last rows or refinement scans missing. Source: ITU-T T.81, annex B.

use super::{CodecError, DecodeOptions, Format, Policy, check_pixels};
use crate::data::jpeg::find_ff;

/// What the markers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JpegHeader<'a> {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Colour components: 1, 3 or 4.
    pub components: u8,
    /// Start-of-scan markers.
    pub scans: u32,
    /// Whether an end-of-image marker closes the file.
    pub complete: bool,
    /// What EXIF has to say, from its TIFF header on.
    pub exif: Option<&'a [u8]>,
    /// Least number of entropy-coded bits that an image of this size has.
    least_bits: u64,
}

/// Walks the markers and holds the result against the limits.
pub fn check<'a>(bytes: &'a [u8], options: &DecodeOptions) -> Result<JpegHeader<'a>, CodecError> {
    let header = walk(bytes, options.max_scans)?;
    check_pixels(Format::Jpeg, header.width, header.height, options)?;
    if header.scans == 0 {
        return Err(truncated("no scan"));
    }
    // In lenient mode too: a file of a few bytes must not claim hundreds of megabytes of grey.
    if header.least_bits > bytes.len() as u64 * 8 {
        let JpegHeader { width, height, .. } = header;
        return Err(truncated(&format!(
            "{width} x {height} pixels cannot fit into {} bytes",
            bytes.len()
        )));
    }
    if !header.complete && options.policy == Policy::Strict {
        return Err(truncated("no end-of-image marker"));
    }
    Ok(header)
}

fn walk(bytes: &[u8], max_scans: u32) -> Result<JpegHeader<'_>, CodecError> {
    let mut header: Option<JpegHeader> = None;
    let mut scans = 0;
    let mut complete = false;
    let mut exif = None;
    let mut at = 2;
    while let Some((marker, body)) = next_marker(bytes, at) {
        at = body;
        match marker {
            0xd9 => {
                complete = true;
                break;
            }
            // Stand-alone markers, without a length: TEM, RSTn, SOI.
            0x01 | 0xd0..=0xd8 => continue,
            _ => {}
        }
        let Some(segment) = segment(bytes, at)? else { break };
        match marker {
            0xc0..=0xc2 if header.is_some() => return Err(damaged("two frame headers")),
            0xc0..=0xc2 => header = Some(frame(segment, marker == 0xc2)?),
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => return Err(unsupported(sof_kind(marker))),
            // The last before the image counts, as in zune-jpeg.
            0xe1 if scans == 0 => {
                exif = segment
                    .strip_prefix(b"Exif\0\0")
                    .filter(|exif| !exif.is_empty())
                    .or(exif)
            }
            0xda => {
                scans += 1;
                if scans > max_scans {
                    return Err(CodecError::TooManyScans { limit: max_scans });
                }
            }
            _ => {}
        }
        at += 2 + segment.len();
    }
    match header {
        Some(header) => Ok(JpegHeader {
            scans,
            complete,
            exif,
            ..header
        }),
        None if complete => Err(damaged("no frame header")),
        None => Err(truncated("no frame header")),
    }
}

/// The next marker's code and where its body starts. Skips stuffed and stray bytes, as libjpeg does.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at = find_ff(bytes, at)?;
        while *bytes.get(at)? == 0xff {
            at += 1;
        }
        match bytes[at] {
            // A stuffed zero or a restart inside a scan: entropy-coded data goes on.
            0x00 | 0xd0..=0xd7 => at += 1,
            marker => return Some((marker, at + 1)),
        }
    }
}

/// The payload of the segment whose length field is at `at`; `None` where the file ends before it does.
fn segment(bytes: &[u8], at: usize) -> Result<Option<&[u8]>, CodecError> {
    let Some(&[high, low]) = bytes.get(at..at + 2) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length < 2 {
        return Err(damaged("a segment of length below 2"));
    }
    Ok(bytes.get(at + 2..at + length))
}

/// Frame header, T.81 B.2.2: precision, height, width, then (id, sampling, table) for each component.
fn frame(segment: &[u8], progressive: bool) -> Result<JpegHeader<'static>, CodecError> {
    let &[precision, h1, h0, w1, w0, components, ref rest @ ..] = segment else {
        return Err(damaged("a short frame header"));
    };
    if precision != 8 {
        return Err(unsupported(&format!("{precision} bits a sample")));
    }
    if !matches!(components, 1 | 3 | 4) {
        return Err(unsupported(&format!("{components} colour components")));
    }
    let (width, height) = (
        u32::from(u16::from_be_bytes([w1, w0])),
        u32::from(u16::from_be_bytes([h1, h0])),
    );
    let sampling = rest.as_chunks::<3>().0.iter().take(components.into());
    let sampling = sampling.map(|c| (u64::from(c[1] >> 4), u64::from(c[1] & 15)));
    if sampling.len() != usize::from(components)
        || !sampling
            .clone()
            .all(|(h, v)| (1..=4).contains(&h) && (1..=4).contains(&v))
    {
        return Err(damaged("bad sampling factors"));
    }
    let h_max = sampling.clone().map(|s| s.0).max().unwrap_or(1);
    let v_max = sampling.clone().map(|s| s.1).max().unwrap_or(1);
    let blocks: u64 = sampling
        .map(|(h, v)| (u64::from(width) * h).div_ceil(8 * h_max) * (u64::from(height) * v).div_ceil(8 * v_max))
        .sum();
    // A block costs at least a one-bit DC code and, in a sequential scan, a one-bit end of block.
    let least_bits = blocks * if progressive { 1 } else { 2 };
    Ok(JpegHeader {
        width,
        height,
        components,
        scans: 0,
        complete: false,
        exif: None,
        least_bits,
    })
}

fn sof_kind(marker: u8) -> &'static str {
    match marker {
        0xc3 => "lossless coding",
        0xc5..=0xc7 => "hierarchical coding",
        _ => "arithmetic coding",
    }
}

pub(super) fn damaged(reason: &str) -> CodecError {
    CodecError::Damaged {
        format: Format::Jpeg,
        reason: reason.to_owned(),
    }
}

pub(super) fn truncated(reason: &str) -> CodecError {
    CodecError::Truncated {
        format: Format::Jpeg,
        reason: reason.to_owned(),
    }
}

pub(super) fn unsupported(reason: &str) -> CodecError {
    CodecError::Unsupported {
        format: Format::Jpeg,
        reason: reason.to_owned(),
    }
}
