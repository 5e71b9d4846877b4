//! Keyed bijections of 0..n: a shuffle whose every entry, and its inverse, costs O(1) and no memory.
//!
//! In: a Philox stream (the key) and n. Out: `apply` and `invert`.
//! Invariant: a function of the key and n only; `invert` undoes `apply`.
//! Source: a Feistel network over the next power of two (Luby and Rackoff 1988), walked along its cycle until it is
//! back below n (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Even number of rounds, uneven
//! halves.

use crate::data::rng::Philox;

/// Four rounds serve large domains, but ours may have two bits: over 400,000 keys, the images of 0 and 1 are 300 to 700
/// standard deviations off uniform (chi-square, n = 5 to 8) after 8 rounds, up to 10 after 16, and within noise after
/// 24.
const ROUNDS: usize = 24;

/// A keyed bijection of `0..len`.
#[derive(Clone, Debug)]
pub struct Bijection {
    len: u64,
    /// Bits of the left and the right half; they differ by one at most.
    halves: [u32; 2],
    keys: [u64; ROUNDS],
}

impl Bijection {
    /// The bijection of `0..len` that the next draws of `rng` choose.
    pub fn new(len: u64, rng: &mut Philox) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self {
            len,
            halves: [bits / 2, bits - bits / 2],
            keys: std::array::from_fn(|_| rng.next_u64()),
        }
    }

    /// Where `index` goes. Panics unless `index < len`.
    pub fn apply(&self, index: u64) -> u64 {
        assert!(index < self.len, "{index} is not below {}", self.len);
        // The network permutes the next power of two; following it from inside 0..len must come back inside, after
        // fewer than two steps on average.
        let mut value = self.forward(index);
        while value >= self.len {
            value = self.forward(value);
        }
        value
    }

    /// What `apply` sends to `value`. Panics unless `value < len`.
    pub fn invert(&self, value: u64) -> u64 {
        assert!(value < self.len, "{value} is not below {}", self.len);
        let mut index = self.backward(value);
        while index >= self.len {
            index = self.backward(index);
        }
        index
    }

    /// (left, right) -> (right, left ^ F(right)); the halves' sizes change places with them.
    fn forward(&self, value: u64) -> u64 {
        let [small, large] = self.halves;
        let (mut left, mut right) = (value >> large, value & mask(large));
        for (round, key) in self.keys.iter().enumerate() {
            let left_bits = if round % 2 == 0 { small } else { large };
            (left, right) = (right, left ^ (mix(right ^ key) & mask(left_bits)));
        }
        (left << large) | right
    }

    fn backward(&self, value: u64) -> u64 {
        let [small, large] = self.halves;
        let (mut left, mut right) = (value >> large, value & mask(large));
        for (round, key) in self.keys.iter().enumerate().rev() {
            let left_bits = if round % 2 == 0 { small } else { large };
            (left, right) = (right ^ (mix(left ^ key) & mask(left_bits)), left);
        }
        (left << large) | right
    }
}

fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// Finaliser of SplitMix64 (Steele, Lea and Flood 2014): each input bit moves about half of the output bits.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Domain;
    use proptest::prelude::*;

    fn keyed(len: u64, seed: u64) -> Bijection {
        Bijection::new(len, &mut Philox::new(seed, Domain::Order, 0, 0, 0))
    }

    #[test]
    fn every_small_length_is_a_bijection() {
        for len in 1..if cfg!(miri) { 20 } else { 300 } {
            let bijection = keyed(len, len);
            let mut seen = vec![false; len as usize];
            for index in 0..len {
                let value = bijection.apply(index);
                assert!(
                    !std::mem::replace(&mut seen[value as usize], true),
                    "{len}: {value} twice"
                );
                assert_eq!(bijection.invert(value), index);
            }
        }
    }

    proptest! {
        #[test]
        fn inverse_undoes(len in 1u64..1 << 40, seed: u64, index: u64) {
            let bijection = keyed(len, seed);
            let value = bijection.apply(index % len);
            prop_assert!(value < len);
            prop_assert_eq!(bijection.invert(value), index % len);
        }
    }

    /// Over many keys every ordered pair (image of 0, image of 1) is as frequent as any other: chi-square per length.
    #[test]
    #[cfg_attr(miri, ignore = "statistics: slow there")]
    fn pairs_of_images_are_uniform() {
        for len in [3u64, 4, 5, 6, 7, 9, 12] {
            let draws = 20_000u64;
            let mut counts = std::collections::HashMap::new();
            for seed in 0..draws {
                let bijection = keyed(len, seed);
                *counts.entry((bijection.apply(0), bijection.apply(1))).or_insert(0u64) += 1;
            }
            let cells = (len * (len - 1)) as f64;
            let expected = draws as f64 / cells;
            let missing = cells - counts.len() as f64;
            let chi: f64 = counts
                .values()
                .map(|&n| (n as f64 - expected).powi(2) / expected)
                .sum::<f64>()
                + missing * expected;
            let freedom = cells - 1.0;
            // Mean f, variance 2f: five standard deviations.
            assert!(
                chi < freedom + 5.0 * (2.0 * freedom).sqrt(),
                "length {len}: chi-square {chi} for {freedom}"
            );
        }
    }

    /// A shuffle leaves about one entry in its place and breaks neighbours up.
    #[test]
    #[cfg_attr(miri, ignore = "statistics: slow there")]
    fn neighbours_part() {
        let len = 10_000;
        let bijection = keyed(len, 3);
        let fixed = (0..len).filter(|&i| bijection.apply(i) == i).count();
        let neighbours = (1..len)
            .filter(|&i| bijection.apply(i).abs_diff(bijection.apply(i - 1)) == 1)
            .count();
        assert!(fixed < 8 && neighbours < 12, "{fixed} fixed, {neighbours} neighbours");
    }
}
