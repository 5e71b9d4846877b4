//! How well the order mixes, held to what probability says of a fair shuffle; and the bijection that does it.
//!
//! Seeds are fixed, so nothing here is left to chance: bounds are several standard deviations wide.

use super::permute::Bijection;
use super::*;
use crate::data::dataset::{RowGroupInfo, Shard};

const ROWS: u64 = 128;
const GROUPS: u64 = 100;
const CLASSES: u64 = 10;
const SAMPLES: u64 = ROWS * GROUPS;
const BATCH: u64 = 128;
/// Row groups in a window of the windowed order.
const IN_WINDOW: u64 = 8;

/// A data set sorted by class: ten row groups a class, in four shards; a row group weighs 1000 bytes.
fn sorted() -> Vec<Shard> {
    let group = RowGroupInfo {
        rows: ROWS as u32,
        bytes: 1000,
    };
    let shard = |number| Shard {
        name: format!("{number}.parquet"),
        bytes: 1,
        row_groups: vec![group; GROUPS as usize / 4],
    };
    (0..4).map(shard).collect()
}

fn order(window_bytes: u64) -> Order {
    Order::new(&sorted(), Passes::Shuffled { seed: 3 }, window_bytes)
}

fn full() -> Order {
    order(u64::MAX)
}

fn windowed() -> Order {
    order(3 * 1000 * IN_WINDOW)
}

/// Samples of an epoch, as indices into the data set as it lies on disk.
fn indices(order: &Order, epoch: u32) -> Vec<u64> {
    let plan = order.epoch(epoch);
    let index = |key: SampleKey| {
        let group = u64::from(key.shard.0) * GROUPS / 4 + u64::from(key.row_group);
        group * ROWS + u64::from(key.row)
    };
    (0..SAMPLES)
        .map(|position| index(plan.sample(position, 0).unwrap()))
        .collect()
}

fn class(index: u64) -> usize {
    (index * CLASSES / SAMPLES) as usize
}

fn counts(indices: &[u64]) -> [u64; CLASSES as usize] {
    let mut counts = [0; CLASSES as usize];
    indices.iter().for_each(|&index| counts[class(index)] += 1);
    counts
}

/// Mean square of the standardised class counts of all batches of `drawn`, which are draws without replacement from it:
/// hypergeometric counts give 1.
fn spread(drawn: &[u64]) -> (f64, u32) {
    let (all, population) = (counts(drawn), drawn.len() as f64);
    let (mut sum, mut values) = (0.0, 0);
    for batch in drawn.chunks_exact(BATCH as usize) {
        for (count, total) in counts(batch).into_iter().zip(all) {
            let share = total as f64 / population;
            let mean = BATCH as f64 * share;
            let variance = mean * (1.0 - share) * (population - BATCH as f64) / (population - 1.0);
            if variance > 0.0 {
                sum += (count as f64 - mean).powi(2) / variance;
                values += 1;
            }
        }
    }
    (sum, values)
}

fn mean(values: Vec<u64>) -> f64 {
    values.iter().sum::<u64>() as f64 / values.len() as f64
}

#[test]
fn an_epoch_is_a_permutation_whatever_the_window() {
    for order in [order(0), windowed(), full()] {
        for epoch in 0..3 {
            let mut seen = vec![false; SAMPLES as usize];
            for index in indices(&order, epoch) {
                assert!(
                    !std::mem::replace(&mut seen[index as usize], true),
                    "{index} comes twice"
                );
            }
            assert!(seen.into_iter().all(|seen| seen));
        }
    }
}

/// A full shuffle of a data set sorted by class: a batch's class counts are those of draws without replacement.
#[test]
fn batches_of_a_full_shuffle_are_fair_draws_of_the_classes() {
    let (mut sum, mut values) = (0.0, 0);
    for epoch in 0..4 {
        let (s, n) = spread(&indices(&full(), epoch));
        (sum, values) = (sum + s, values + n);
    }
    let ratio = sum / f64::from(values);
    eprintln!("full: {ratio:.4} over {values} counts");
    // Standard deviation of the mean: sqrt(2 / 4000), about 0.022.
    assert!(values == 4000 && (ratio - 1.0).abs() < 0.09, "{ratio} over {values}");
}

/// A windowed one: inside a window batches are fair draws of what is in it, and what is in it is a fair draw of the row
/// groups.
#[test]
fn batches_of_a_window_are_fair_draws_of_the_window() {
    let in_window = (IN_WINDOW * ROWS) as usize;
    let (mut sum, mut values, mut classes, mut windows) = (0.0, 0, 0, 0);
    for epoch in 0..12 {
        assert_eq!(windowed().epoch(epoch).windows() as u64, GROUPS.div_ceil(IN_WINDOW));
        for window in indices(&windowed(), epoch).chunks_exact(in_window) {
            let (s, n) = spread(window);
            (sum, values) = (sum + s, values + n);
            classes += counts(window).into_iter().filter(|&n| n > 0).count();
            windows += 1;
        }
    }
    let (ratio, classes) = (sum / f64::from(values), classes as f64 / f64::from(windows));
    // A class is missed by 8 of 100 groups when all come from the 90 others.
    let missed: f64 = (0..IN_WINDOW).map(|i| (90 - i) as f64 / (100 - i) as f64).product();
    let expected = CLASSES as f64 * (1.0 - missed);
    eprintln!("windowed: {ratio:.4} over {values}; {classes:.3} classes a window, expected {expected:.3}");
    assert!(values > 5000 && (ratio - 1.0).abs() < 0.09, "{ratio} over {values}");
    // Standard deviation of a window's number is about 1, of the mean of 144 about 0.08.
    assert!(
        windows == 144 && (classes - expected).abs() < 0.35,
        "{classes}, expected {expected}"
    );
}

/// What comes one after the other lies far apart on disk, and neighbours on disk come far apart.
#[test]
fn neighbours_part_as_far_as_their_window_goes() {
    let window = IN_WINDOW * ROWS;
    const EPOCHS: u32 = 10;
    for (name, order, reach) in [("full", full(), SAMPLES), ("windowed", windowed(), window)] {
        let (mut apart, mut parted, mut touching, mut same_group) = (0.0, 0.0, 0, 0);
        for epoch in 0..EPOCHS {
            let indices = indices(&order, epoch);
            let pairs = || indices.windows(2).map(|pair| (pair[0], pair[1]));
            apart += mean(pairs().map(|(a, b)| a.abs_diff(b)).collect()) / f64::from(EPOCHS);
            touching += pairs().filter(|(a, b)| a.abs_diff(*b) == 1).count();
            same_group += pairs().filter(|(a, b)| a / ROWS == b / ROWS).count();
            let mut position = vec![0u64; SAMPLES as usize];
            (0..)
                .zip(&indices)
                .for_each(|(at, &index)| position[index as usize] = at);
            // Neighbours of one row group, which are in one window.
            let neighbours = (1..SAMPLES as usize).filter(|i| i % ROWS as usize != 0);
            let distances = neighbours.map(|i| position[i].abs_diff(position[i - 1]));
            parted += mean(distances.collect()) / f64::from(EPOCHS);
        }
        // Two draws of n consecutive places are (n + 1) / 3 apart on average.
        let third = |n: u64| (n + 1) as f64 / 3.0;
        // A share of a window's pairs is of one row group; groups lie anywhere on disk.
        let inside = (ROWS - 1) as f64 / (reach - 1) as f64;
        let wanted_apart = inside * third(ROWS) + (1.0 - inside) * third(GROUPS) * ROWS as f64;
        let pairs = f64::from(EPOCHS) * (SAMPLES - 1) as f64;
        let wanted_touching = pairs * 2.0 / reach as f64;
        eprintln!(
            "{name}: {apart:.0} on disk (expected {wanted_apart:.0}), {parted:.0} in the epoch (expected {:.0}), \
             {touching} touch (expected {wanted_touching:.0}), {same_group} share a row group (expected {:.0})",
            third(reach),
            pairs * inside
        );
        let near = |found: f64, expected: f64, part: f64| (found / expected - 1.0).abs() < part;
        assert!(near(apart, wanted_apart, 0.05), "{name}: {apart}");
        assert!(near(parted, third(reach), 0.03), "{name}: {parted}");
        assert!(
            (touching as f64 - wanted_touching).abs() < 6.0 * wanted_touching.sqrt(),
            "{name}: {touching}"
        );
        assert!(near(same_group as f64, pairs * inside, 0.1), "{name}: {same_group}");
    }
}

/// Row groups that share a window in one epoch share one in the next as seldom as any two do.
#[test]
fn windows_are_made_anew_each_epoch() {
    let of = |epoch| -> Vec<usize> {
        let mut window = vec![0; GROUPS as usize];
        for (at, index) in indices(&windowed(), epoch).into_iter().enumerate() {
            window[(index / ROWS) as usize] = at / (IN_WINDOW * ROWS) as usize;
        }
        window
    };
    let (mut together, mut again) = (0, 0);
    for epoch in 0..10 {
        let (now, next) = (of(epoch), of(epoch + 1));
        for (a, b) in (0..GROUPS as usize).flat_map(|a| (0..a).map(move |b| (a, b))) {
            together += u32::from(now[a] == now[b]);
            again += u32::from(now[a] == now[b] && next[a] == next[b]);
        }
    }
    // Of 99 others 7 share a group's window.
    let (share, expected) = (f64::from(again) / f64::from(together), 7.0 / 99.0);
    eprintln!("{again} of {together} pairs meet again: {share:.4}, expected {expected:.4}");
    assert!((share - expected).abs() < 0.02, "{share}");
}

/// Each length a bijection, checked value by value: the smallest, primes, powers of two and their neighbours.
#[test]
fn the_bijection_is_one_at_every_kind_of_length() {
    let powers = (1..18).flat_map(|bits| [(1u64 << bits) - 1, 1 << bits, (1 << bits) + 1]);
    let primes = [2, 3, 5, 7, 31, 127, 509, 1009, 8191, 10_007, 65_521, 104_729];
    for len in [1, 2].into_iter().chain(primes).chain(powers) {
        let bijection = Bijection::new(len, &mut Philox::new(len, Domain::Order, 1, 2, 0));
        let mut seen = vec![false; len as usize];
        for index in 0..len {
            let value = bijection.apply(index);
            assert!(
                !std::mem::replace(&mut seen[value as usize], true),
                "{len}: {value} twice"
            );
            assert_eq!(bijection.invert(value), index, "{len}");
        }
    }
    // Too long to list: there and back from both ends and from places in between.
    for bits in [31, 32, 33, 47, 62] {
        for len in [(1u64 << bits) - 1, 1 << bits, (1 << bits) + 1] {
            let bijection = Bijection::new(len, &mut Philox::new(len, Domain::Order, 1, 2, 0));
            for index in (0..64).flat_map(|i| [i, len - 1 - i, len / 64 * i]) {
                let value = bijection.apply(index);
                assert!(value < len && bijection.invert(value) == index, "{len}: {index}");
            }
        }
    }
}

/// One, two, four and eight ranks: their slices side by side are the global batch, over the end of an epoch.
#[test]
fn ranks_divide_the_global_batch_among_them() {
    let order = windowed();
    let steps = SAMPLES / BATCH;
    for world in [1u64, 2, 4, 8] {
        for step in [0, 1, steps - 1, steps, 2 * steps + 7] {
            let epoch = order.epoch((step / steps) as u32);
            let first = step % steps * BATCH;
            let global: Vec<SampleKey> = (first..first + BATCH).map(|k| epoch.sample(k, 0).unwrap()).collect();
            let mut side_by_side = Vec::new();
            for rank in 0..world {
                let share = super::share::Share::new(&order, BATCH as u32, rank as u32, world as u32, step);
                let places = (0..u64::from(share.len(0))).map(|local| share.place(local));
                side_by_side.extend(places.map(|at| order.epoch(at.epoch).sample(at.position, 0).unwrap()));
            }
            assert!(side_by_side == global, "{world} ranks, step {step}");
        }
    }
}
