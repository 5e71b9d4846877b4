//! A part of an image: what is asked of the decoder, what a view is cut from.
//!
//! In: sides and places, pixels. Out: rectangles and what they have in common. Invariant: a region is a half-open range in both
//! directions; whose image it lies in, its user knows.

/// A rectangle of pixels, inside its image and not empty; the default is all of the image that has no pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Region {
    /// All of an image.
    pub fn all(width: u32, height: u32) -> Self {
        Self {
            left: 0,
            top: 0,
            width,
            height,
        }
    }

    /// The column behind the last one.
    pub fn right(&self) -> u32 {
        self.left + self.width
    }

    /// The row below the last one.
    pub fn bottom(&self) -> u32 {
        self.top + self.height
    }

    /// The smallest region around both.
    pub fn union(self, other: Self) -> Self {
        let (left, top) = (self.left.min(other.left), self.top.min(other.top));
        Self {
            left,
            top,
            width: self.right().max(other.right()) - left,
            height: self.bottom().max(other.bottom()) - top,
        }
    }

    /// Whether every pixel of `other` is one of its own.
    pub fn contains(&self, other: Self) -> bool {
        self.left <= other.left
            && self.top <= other.top
            && other.right() <= self.right()
            && other.bottom() <= self.bottom()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn region(left: u32, top: u32, width: u32, height: u32) -> Region {
        Region {
            left,
            top,
            width,
            height,
        }
    }

    #[test]
    fn a_union_is_the_box_around_both() {
        // Apart, overlapping, one inside the other.
        let a = region(2, 3, 4, 5);
        assert_eq!((a.right(), a.bottom()), (6, 8));
        assert_eq!(a.union(region(10, 1, 1, 2)), region(2, 1, 9, 7));
        assert_eq!(a.union(region(0, 4, 3, 9)), region(0, 3, 6, 10));
        assert_eq!(a.union(region(3, 3, 1, 1)), a);
    }

    #[test]
    fn what_sticks_out_on_any_side_is_not_contained() {
        let image = Region::all(7, 9);
        assert!(image.contains(image) && image.contains(region(6, 8, 1, 1)));
        let middle = region(2, 2, 3, 4);
        assert!(image.contains(middle) && !middle.contains(image));
        for out in [(1, 2, 3, 4), (2, 1, 3, 4), (2, 2, 4, 4), (2, 2, 3, 5)] {
            assert!(!middle.contains(region(out.0, out.1, out.2, out.3)), "{out:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Pixel by pixel: a union has all pixels of both, and none of its four borders can be left out.
        #[test]
        fn a_union_is_the_smallest(a in any::<[u8; 4]>(), b in any::<[u8; 4]>()) {
            let [a, b] = [a, b].map(|s| region(s[0].into(), s[1].into(), 1 + u32::from(s[2]), 1 + u32::from(s[3])));
            let both = a.union(b);
            prop_assert_eq!(both, b.union(a));
            prop_assert!(both.contains(a) && both.contains(b));
            let Region { left, top, width, height } = both;
            for smaller in [
                region(left + 1, top, width - 1, height), region(left, top + 1, width, height - 1),
                region(left, top, width - 1, height), region(left, top, width, height - 1),
            ] {
                prop_assert!(!(smaller.contains(a) && smaller.contains(b)));
            }
        }
    }
}
