//! Counter-based randomness: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//!
//! A draw is a pure function of (seed, domain, epoch, position, view, draw): any thread may make any sample, and a
//! resume needs no state. It lives in `data`, the lowest room that draws (shapes, ingest's shuffle).

/// What a stream of draws is for; streams of different domains never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Domain {
    /// Order of samples in an epoch.
    Order = 1,
    /// Parameters of a view.
    View = 2,
    /// Initial weights.
    Init = 3,
    /// The embedded data set.
    Shapes = 4,
    /// The global shuffle of `ingest`.
    Ingest = 5,
    /// Substitutes for bad samples.
    Substitute = 6,
}

/// A stream of draws. 16,384 blocks of four words are its length: far above what a sample needs.
#[derive(Clone, Debug)]
pub struct Philox {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Philox {
    /// The stream of one (domain, epoch, position, view).
    pub fn new(seed: u64, domain: Domain, epoch: u32, position: u64, view: u8) -> Self {
        // Word 0 holds domain, view and the running draw; a carry out of the draw's 16 bits would be a bug in the caller.
        let head = (u32::from(domain as u8) << 24) | (u32::from(view) << 16);
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            counter: [head, epoch, position as u32, (position >> 32) as u32],
            block: [0; 4],
            used: 4,
        }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox4x32(self.counter, self.key);
            debug_assert!(self.counter[0] & 0xffff != 0xffff, "a stream of draws is exhausted");
            self.counter[0] += 1;
            self.used = 0;
        }
        let word = self.block[self.used];
        self.used += 1;
        word
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | (u64::from(self.next_u32()) << 32)
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub fn uniform_in(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform integer in [0, n), by Lemire's unbiased multiplication. `n` must not be 0.
    pub fn below(&mut self, n: u32) -> u32 {
        let threshold = n.wrapping_neg() % n;
        loop {
            let wide = u64::from(self.next_u32()) * u64::from(n);
            if wide as u32 >= threshold {
                return (wide >> 32) as u32;
            }
        }
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard normal (Box-Muller, the cosine branch: two draws a value, no state between calls).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// Ten rounds of Philox4x32 on one counter.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        let low = u64::from(c[0]) * 0xD251_1F53;
        let high = u64::from(c[2]) * 0xCD9E_8D57;
        c = [
            (high >> 32) as u32 ^ c[1] ^ k[0],
            high as u32,
            (low >> 32) as u32 ^ c[3] ^ k[1],
            low as u32,
        ];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the authors' Random123 library (kat_vectors, philox4x32 10 rounds).
    #[test]
    fn known_answers_of_random123() {
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics: slow there")]
    fn uniform_and_normal_have_their_moments() {
        let mut rng = Philox::new(7, Domain::View, 0, 0, 0);
        let n = 20_000;
        let mean = (0..n).map(|_| rng.uniform()).sum::<f64>() / f64::from(n);
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        let mut rng = Philox::new(7, Domain::Shapes, 0, 1, 0);
        let squares = (0..n).map(|_| rng.normal().powi(2)).sum::<f64>() / f64::from(n);
        assert!((squares - 1.0).abs() < 0.05, "{squares}");
    }

    #[test]
    fn streams_differ_in_every_part_of_the_counter() {
        let first = |seed, domain, epoch, position, view| Philox::new(seed, domain, epoch, position, view).next_u64();
        let base = first(1, Domain::View, 2, 3, 0);
        for other in [
            first(2, Domain::View, 2, 3, 0),
            first(1, Domain::Order, 2, 3, 0),
            first(1, Domain::View, 3, 3, 0),
            first(1, Domain::View, 2, 4, 0),
            first(1, Domain::View, 2, 3, 1),
        ] {
            assert_ne!(base, other);
        }
    }
}
