//! Which part of a worker's work takes how long: for `bench feed`, off otherwise.
//!
//! In: a call at the end of each part. Out: nanoseconds by part. Invariant: off, a lap is one predictable branch; on, one
//! reading of the clock (some 25 ns), a dozen an image.

use serde::Serialize;
use std::time::Instant;

/// A part of a worker's work on one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Encoded bytes -> RGB; the views' parameters are drawn on the way.
    Decode,
    /// Crop and resize of all views.
    Crop,
    /// To planes and back, flip included.
    Planes,
    /// Jitter, grey, solarise.
    Color,
    /// Blur.
    Blur,
}

impl Part {
    pub(crate) const COUNT: usize = 5;
}

/// A worker's stopwatch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Laps {
    /// End of the last part; `None` while off.
    last: Option<Instant>,
    spent: [u64; Part::COUNT],
}

impl Laps {
    /// A sample begins.
    pub fn begin(&mut self, on: bool) {
        self.last = on.then(Instant::now);
    }

    /// The part ends here; it began where the one before ended.
    #[inline]
    pub fn lap(&mut self, part: Part) {
        if let Some(last) = &mut self.last {
            let now = Instant::now();
            self.spent[part as usize] += (now - *last).as_nanos() as u64;
            *last = now;
        }
    }

    /// Nanoseconds by part since the last call, if on.
    pub fn take(&mut self) -> Option<[u64; Part::COUNT]> {
        self.last.is_some().then(|| std::mem::take(&mut self.spent))
    }
}

/// Time of the workers by part, summed over threads; all 0 unless the feed was asked to measure it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PartTimes {
    /// Encoded bytes -> RGB, s.
    pub decode_s: f64,
    /// Crop and resize, s.
    pub crop_s: f64,
    /// To planes and back, flip included, s.
    pub planes_s: f64,
    /// Jitter, grey, solarise, s.
    pub color_s: f64,
    /// Blur, s.
    pub blur_s: f64,
}

impl From<[f64; Part::COUNT]> for PartTimes {
    fn from([decode_s, crop_s, planes_s, color_s, blur_s]: [f64; Part::COUNT]) -> Self {
        Self {
            decode_s,
            crop_s,
            planes_s,
            color_s,
            blur_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lap_counts_for_its_part_and_only_while_on() {
        let mut laps = Laps::default();
        laps.begin(false);
        laps.lap(Part::Decode);
        assert_eq!(laps.take(), None);
        laps.begin(true);
        laps.lap(Part::Decode);
        std::thread::sleep(std::time::Duration::from_micros(200));
        laps.lap(Part::Blur);
        let spent = laps.take().expect("on");
        assert!(spent[Part::Blur as usize] >= 200_000, "{spent:?}");
        assert_eq!(spent[Part::Crop as usize], 0);
        assert_eq!(laps.take(), Some([0; Part::COUNT]));
    }
}
