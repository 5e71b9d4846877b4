//! EXIF orientation: turns and mirrors an image in the way `PIL.ImageOps.exif_transpose` does.
//!
//! Off by default, as all published numbers were made. Costs one more buffer and one pass, for turned images only.

use super::{Region, Rgbx8};
use image::metadata::Orientation;

/// How the upright image reads the stored one: width and height change places; mirrored in x; mirrored in y.
fn turns(orientation: Orientation) -> (bool, bool, bool) {
    match orientation {
        Orientation::NoTransforms => (false, false, false),
        Orientation::FlipHorizontal => (false, true, false),
        Orientation::Rotate180 => (false, true, true),
        Orientation::FlipVertical => (false, false, true),
        Orientation::Rotate90FlipH => (true, false, false),
        Orientation::Rotate90 => (true, false, true),
        Orientation::Rotate270FlipH => (true, true, true),
        Orientation::Rotate270 => (true, true, false),
    }
}

/// Width and height of the upright image, from those of the stored one.
pub fn size(width: u32, height: u32, orientation: Orientation) -> (u32, u32) {
    if turns(orientation).0 {
        (height, width)
    } else {
        (width, height)
    }
}

/// Turns `image`, which is held whole unless there is nothing to turn, so that it stands upright.
pub fn apply(image: &mut Rgbx8, orientation: Orientation) {
    if orientation == Orientation::NoTransforms {
        return;
    }
    let (transposed, flip_x, flip_y) = turns(orientation);
    let (width, height) = (image.width as usize, image.height as usize);
    let (out_width, out_height) = if transposed { (height, width) } else { (width, height) };
    let mut turned = Vec::with_capacity(image.pixels.len());
    for y in 0..out_height {
        for x in 0..out_width {
            let (u, v) = if transposed { (y, x) } else { (x, y) };
            let u = if flip_x { width - 1 - u } else { u };
            let v = if flip_y { height - 1 - v } else { v };
            let at = (v * width + u) * 4;
            turned.extend_from_slice(&image.pixels[at..at + 4]);
        }
    }
    *image = Rgbx8 {
        width: out_width as u32,
        height: out_height as u32,
        part: Region::all(out_width as u32, out_height as u32),
        pixels: turned,
    };
}
