//! Both passes, on every path of this CPU, against fast_image_resize: equal to the byte.

use super::*;
use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use proptest::prelude::*;

const FILTERS: [(Interpolation, FilterType); 2] = [
    (Interpolation::Bilinear, FilterType::Bilinear),
    (Interpolation::Bicubic, FilterType::CatmullRom),
];

/// Noise with many bytes at the ends of the range, where sums are clipped.
fn noise(bytes: u32, seed: u32) -> Vec<u8> {
    let hash = |i: u32| {
        (i.wrapping_mul(2_654_435_761) ^ seed)
            .wrapping_mul(40_503)
            .to_le_bytes()
    };
    let value = |[_, a, b, _]: [u8; 4]| match a % 4 {
        0 => 0,
        1 => 255,
        _ => b,
    };
    (0..bytes).map(|i| value(hash(i))).collect()
}

/// A part of an image of `size`.
#[derive(Clone, Copy, Debug)]
struct Case {
    size: [u32; 2],
    /// Left, top, width, height.
    part: [u32; 4],
    seed: u32,
}

impl Case {
    fn pixels<'a>(&self, bytes: &'a [u8]) -> Pixels<'a> {
        let [width, height] = self.size.map(|side| side as usize);
        let stride = 4 * width;
        let whole = Pixels {
            bytes,
            stride,
            width,
            height,
        };
        let [left, top, width, height] = self.part;
        whole.part(left, top, width, height)
    }

    /// fast_image_resize, one axis, the other left alone.
    fn expected(&self, bytes: &[u8], filter: FilterType, span: Span, columns: bool) -> Vec<u8> {
        let whole = ImageRef::new(self.size[0], self.size[1], bytes, PixelType::U8x4).unwrap();
        let [left, top, width, height] = self.part;
        let part = CroppedImage::new(&whole, left, top, width, height).unwrap();
        let still = |len| Span::all(len, len);
        let (x, y) = if columns {
            (span, still(height))
        } else {
            (still(width), span)
        };
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(filter))
            .crop(x.from, y.from, x.len, y.len)
            .use_alpha(false);
        let mut target = Image::new(x.to, y.to, PixelType::U8x4);
        Resizer::new().resize(&part, &mut target, &options).unwrap();
        target.into_vec()
    }

    /// The span of one axis with all filters on all paths. What is no change at all is a copy, and not filtered.
    fn check(&self, span: Span, columns: bool) {
        if span.is_copy() {
            return;
        }
        let [.., width, height] = self.part;
        let bytes = noise(self.size[0] * self.size[1] * 4, self.seed);
        let from = self.pixels(&bytes);
        for (filter, theirs) in FILTERS {
            let expected = self.expected(&bytes, theirs, span, columns);
            for (name, lanes) in Lanes::all() {
                let (mut axis, mut out) = (Axis::default(), vec![77; expected.len()]);
                // What an earlier plan left must not show.
                axis.plan(lanes, filter, 50, Span::all(50, 333), 4);
                if columns {
                    axis.plan(lanes, filter, width, span, COLUMNS_LEAST);
                    super::columns(lanes, from, &axis, &mut out);
                } else {
                    axis.plan(lanes, filter, height, span, ROWS_LEAST);
                    super::rows(lanes, from, &axis, &mut out);
                }
                assert!(
                    out == expected,
                    "{name}, {filter:?}, columns {columns}, {span:?}, {self:?}"
                );
            }
        }
    }
}

/// `cut` as a share of 256 of what `side` leaves: offset and length of a part.
fn part(side: u32, cut: [u8; 2]) -> (u32, u32) {
    let share = |side: u32, cut: u8| u32::from(cut) * side / 256;
    let from = share(side, cut[0]);
    (from, 1 + share(side - from, cut[1]).min(side - from - 1))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whole_sides_become_any_number_of_pixels(
        size in [1u32..=300, 1u32..=300], x: [u8; 2], y: [u8; 2], whole: bool, to in [1u32..=300, 1u32..=300], seed: u32,
    ) {
        let ((left, width), (top, height)) = (part(size[0], x), part(size[1], y));
        let part = if whole { [0, 0, size[0], size[1]] } else { [left, top, width, height] };
        let case = Case { size, part, seed };
        case.check(Span::all(part[2], to[0]), true);
        case.check(Span::all(part[3], to[1]), false);
    }

    /// As a centre crop has them: the filter reads pixels outside the span.
    #[test]
    fn spans_begin_and_end_between_pixels(
        size in [1u32..=300, 1u32..=300], from in 0.0..0.9f64, len in 0.01..1.0f64, to in 1u32..=300, seed: u32,
    ) {
        let case = Case { size, part: [0, 0, size[0], size[1]], seed };
        for (side, columns) in [(size[0], true), (size[1], false)] {
            let from = from * f64::from(side);
            let len = (f64::from(side) - from) * len;
            case.check(Span { from, len, to }, columns);
        }
    }
}

/// The sizes of the feed, and one whose windows are longer than any that is written out.
#[test]
fn common_sides() {
    for (from, to) in [
        (120, 224),
        (224, 225),
        (300, 224),
        (400, 224),
        (480, 224),
        (2000, 224),
        (5000, 3),
        (32, 33),
    ] {
        let row = Case {
            size: [from, 3],
            part: [0, 0, from, 3],
            seed: from,
        };
        row.check(Span::all(from, to), true);
        let column = Case {
            size: [17, from],
            part: [0, 0, 17, from],
            seed: from,
        };
        column.check(Span::all(from, to), false);
    }
}

/// Windows that the first pass can leave out are left out: the second finds the rest where it was.
#[test]
fn what_no_window_covers_is_not_taken() {
    let lanes = Lanes::default();
    let mut axis = Axis::default();
    let middle = Span {
        from: 40.0,
        len: 20.0,
        to: 10,
    };
    axis.plan(lanes, Interpolation::Bilinear, 100, middle, 1);
    let before = axis.starts.clone();
    let (first, len) = axis.take_reach(100);
    // By hand: output pixel 0 lies at 41 and the triangle is 2 wide on either side: pixels 39 to 42 have weights; pixel 9, at 59,
    // ends with 60.
    assert_eq!((first, len), (39, 22));
    assert!(axis.starts.iter().zip(before).all(|(&now, before)| now + 39 == before));
}
