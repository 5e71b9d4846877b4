//! Rows of samples -> rows of pixels: chroma upsampled, YCbCr to RGB.
//!
//! In: samples of 0..=255. Out: pixels of 4 bytes, or samples at luma's resolution. Invariant: the integer arithmetic of zune-jpeg
//! 0.5.15 (`upsampler/scalar.rs`, `color_convert/scalar.rs`): a triangle filter, vertical first, each axis rounded to 8 bits; BT.601
//! full range with 14-bit constants.

/// Blends a chroma row with its nearest neighbour, three to one, into `out`.
#[inline(always)]
pub fn blend_rows(row: &[u8], near: &[u8], out: &mut [u8]) {
    for ((&a, &b), out) in row.iter().zip(near).zip(out) {
        *out = ((3 * u16::from(a) + u16::from(b) + 2) >> 2) as u8;
    }
}

/// Doubles a row, each sample blended with the nearest of its neighbours, those at the ends with themselves. `padded` is room for the
/// row and one more sample on either side.
#[inline(always)]
pub fn widen(row: &[u8], padded: &mut [u8], out: &mut [u8]) {
    let n = row.len();
    padded[1..=n].copy_from_slice(row);
    (padded[0], padded[n + 1]) = (row[0], row[n - 1]);
    let (left, right) = (&padded[..n], &padded[2..n + 2]);
    for (((pair, &b), &a), &c) in out.as_chunks_mut::<2>().0.iter_mut().zip(row).zip(left).zip(right) {
        let b = 3 * u16::from(b) + 2;
        *pair = [((b + u16::from(a)) >> 2) as u8, ((b + u16::from(c)) >> 2) as u8];
    }
}

/// YCbCr -> red, green, blue, 255.
#[inline(always)]
pub fn to_rgbx(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    let pixels = out.as_chunks_mut::<4>().0.iter_mut();
    for (((pixel, &y), &cb), &cr) in pixels.zip(y).zip(cb).zip(cr) {
        let (y, cb, cr) = (i32::from(y) << 14, i32::from(cb) - 128, i32::from(cr) - 128);
        let y = y + 8191;
        let r = (y + 22970 * cr) >> 14;
        let g = (y - 11700 * cr - 5638 * cb) >> 14;
        let b = (y + 29032 * cb) >> 14;
        let byte = |v: i32| v.clamp(0, 255) as u32;
        *pixel = (byte(r) | byte(g) << 8 | byte(b) << 16 | 255 << 24).to_le_bytes();
    }
}

/// Grey -> red, green, blue, 255.
#[inline(always)]
pub fn grey_to_rgbx(y: &[u8], out: &mut [u8]) {
    for (pixel, &y) in out.as_chunks_mut::<4>().0.iter_mut().zip(y) {
        *pixel = [y, y, y, 255];
    }
}
