//! Damaged files: cut, padded, mutated. Ours gives the oracle's pixels or none.

use super::*;
use crate::data::codec::{self, DecodeOptions, Policy};
use crate::data::{CodecError, Rgbx8};
use proptest::prelude::*;
use std::sync::OnceLock;

/// A file of 4:2:0 with noise, so that every part of its scan holds some of the image.
fn sound(restart: u16) -> Vec<u8> {
    let (width, height) = (67, 93);
    let pixels = picture_of_noise(width, height);
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 80);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    if restart > 0 {
        encoder.set_restart_interval(restart);
    }
    encoder.encode(&pixels, width, height, ColorType::Rgb).unwrap();
    bytes
}

fn picture_of_noise(width: u16, height: u16) -> Vec<u8> {
    let mut rng = rng(11);
    (0..u32::from(width) * u32::from(height) * 3)
        .map(|_| rng.below(256) as u8)
        .collect()
}

/// Where the scan's data begin.
fn data(bytes: &[u8]) -> usize {
    let scan = bytes.windows(2).position(|w| w == [0xff, 0xda]).unwrap();
    scan + 2 + usize::from(u16::from_be_bytes([bytes[scan + 2], bytes[scan + 3]]))
}

/// The scan cut after `length` bytes, and an end-of-image marker, so that the file looks whole.
fn cut(bytes: &[u8], length: usize) -> Vec<u8> {
    let mut end = data(bytes) + length;
    // Not within a stuffed pair or a marker.
    while bytes[end - 1] == 0xff {
        end -= 1;
    }
    [&bytes[..end], &[0xff, 0xd9]].concat()
}

#[test]
fn a_scan_that_ends_early_is_truncated_not_grey() {
    let (mut decoder, mut out) = (Decoder::default(), Vec::new());
    for restart in [0, 4] {
        let bytes = sound(restart);
        let all = Region::all(67, 93);
        assert_eq!(decoder.decode(&bytes, all, &mut out), Ok(()));
        let length = bytes.len() - 2 - data(&bytes);
        for length in (1..length).step_by(if cfg!(miri) { 2999 } else { 1 }) {
            let cut = cut(&bytes, length);
            let result = decoder.decode(&cut, all, &mut out);
            // Without restarts nothing else can be wrong; with them whole segments may be missing.
            let expected: &[Fault] = match restart {
                0 => &[Fault::Truncated],
                _ => &[Fault::Truncated, Fault::Unusual],
            };
            assert!(
                result.is_err_and(|fault| expected.contains(&fault)),
                "{length}: {result:?}"
            );
        }
        // zune-jpeg pads with zeros and is content: the reason why this is seen here.
        assert!(restart > 0 || cfg!(miri) || oracle(&cut(&bytes, length / 2), true).is_some());
    }
}

#[test]
#[cfg_attr(miri, ignore = "decodes four times with zune-jpeg")]
fn a_truncated_scan_is_rejected_or_filled_as_the_policy_says() {
    let bytes = cut(&sound(0), 4000);
    let decode = |policy| {
        let options = DecodeOptions {
            policy,
            ..DecodeOptions::default()
        };
        let mut image = Rgbx8::default();
        codec::decode(&bytes, &options, &mut image).map(|()| image)
    };
    let error = decode(Policy::Strict).unwrap_err();
    assert!(matches!(error, CodecError::Truncated { .. }), "{error}");
    assert_eq!(error.to_string(), "truncated JPEG: the scan ends before the image does");
    let lenient = decode(Policy::Lenient).unwrap();
    assert!(lenient.pixels == oracle(&bytes, false).unwrap().pixels);
    // What was there is there, and nothing of the rest.
    let whole = oracle(&sound(0), true).unwrap();
    let rows = |image: &[u8], from: usize, to: usize| image[from * 67 * 4..to * 67 * 4].to_vec();
    assert!(rows(&lenient.pixels, 0, 15) == rows(&whole.pixels, 0, 15));
    assert!(rows(&lenient.pixels, 85, 93) != rows(&whole.pixels, 85, 93));
}

/// Only what is above the damage is decoded, and it is right.
#[test]
#[cfg_attr(miri, ignore = "decodes thousands of times")]
fn a_part_above_the_damage_is_sound() {
    let bytes = sound(0);
    let whole = oracle(&bytes, true).unwrap();
    let cut_at = |length| cut(&bytes, length);
    let cut = cut_at((bytes.len() - data(&bytes)) * 2 / 3);
    let (mut decoder, mut out) = (Decoder::default(), Vec::new());
    let part = Region {
        left: 5,
        top: 0,
        width: 40,
        height: 15,
    };
    assert_eq!(decoder.decode(&cut, part, &mut out), Ok(()));
    assert!(out == whole.part(part));
    let below = Region { top: 70, ..part };
    assert_eq!(decoder.decode(&cut, below, &mut out), Err(Fault::Truncated));
    // Where the data begin to suffice: for the part's rows, and for two bits of each block below, which are not read.
    let lengths = 1..bytes.len() - 2 - data(&bytes);
    let results = lengths.map(|length| decoder.decode(&cut_at(length), part, &mut out));
    let results: Vec<_> = results.collect();
    let enough = results.iter().position(|result| result.is_ok()).unwrap();
    assert!(results[..enough].iter().all(|&result| result == Err(Fault::Truncated)));
    assert!(results[enough..].iter().all(|&result| result == Ok(())));
}

/// Files to mutate: fixtures, and the hostile corpus where it is.
fn seeds() -> &'static [Vec<u8>] {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let mut seeds: Vec<_> = fixtures().into_iter().map(|file| file.1).collect();
        if let Some(hostile) = shared("hostile") {
            let jpegs = files(&hostile).into_iter().map(|file| file.1);
            seeds.extend(jpegs.filter(|b| b.starts_with(&[0xff, 0xd8]) && b.len() < 20_000));
        }
        seeds
    })
}

/// One change of a file.
#[derive(Clone, Debug)]
enum Change {
    Set(u16, u8),
    Flip(u16, u8),
    Insert(u16, u8),
    Remove(u16, u8),
    /// Copies a stretch from one place to another.
    Copy(u16, u16, u8),
    Cut(u16),
}

impl Change {
    /// Positions are shares of the file, so that shrinking keeps them where they are.
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.len() < 4 {
            return;
        }
        let place = |at: u16| usize::from(at) * (bytes.len() - 1) / 65535;
        match *self {
            Self::Set(at, value) => {
                let at = place(at);
                bytes[at] = value;
            }
            Self::Flip(at, bit) => {
                let at = place(at);
                bytes[at] ^= 1 << (bit & 7);
            }
            Self::Insert(at, value) => bytes.insert(place(at), value),
            Self::Remove(at, count) => {
                let at = place(at);
                let end = (at + usize::from(count % 8)).min(bytes.len());
                bytes.drain(at..end);
            }
            Self::Copy(from, to, count) => {
                let (from, to) = (place(from), place(to));
                let count = usize::from(count).min(bytes.len() - from.max(to));
                bytes.copy_within(from..from + count, to);
            }
            Self::Cut(at) => bytes.truncate(place(at)),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (any::<u16>(), any::<u8>()).prop_map(|(at, value)| Change::Set(at, value)),
        4 => (any::<u16>(), any::<u8>()).prop_map(|(at, bit)| Change::Flip(at, bit)),
        1 => (any::<u16>(), any::<u8>()).prop_map(|(at, value)| Change::Insert(at, value)),
        1 => (any::<u16>(), any::<u8>()).prop_map(|(at, count)| Change::Remove(at, count)),
        1 => (any::<u16>(), any::<u16>(), any::<u8>()).prop_map(|(from, to, count)| Change::Copy(from, to, count)),
        1 => any::<u16>().prop_map(Change::Cut),
    ]
}

/// 20,000, or as many as `PROPTEST_CASES` says.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20_000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    #[cfg_attr(miri, ignore = "reads many files")]
    fn a_mutated_file_has_the_oracles_pixels_or_none(
        seed in any::<prop::sample::Index>(),
        changes in prop::collection::vec(change(), 1..6),
        parts in any::<u64>(),
    ) {
        let mut bytes = seed.get(seeds()).clone();
        changes.iter().for_each(|change| change.apply(&mut bytes));
        // A claimed size of gigabytes is for the codec's limits.
        prop_assume!(size(&bytes).is_none_or(|[w, h]| w * h < 1 << 20));
        let _ = compare(&mut Decoder::default(), "mutated", &bytes, 3, &mut rng(parts));
    }
}

/// What the fuzzer found (tools/fuzz): data too short for the image, which go wrong in another way before they end.
#[test]
#[cfg_attr(miri, ignore = "reads many files")]
fn what_was_found_once_stays_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg_found");
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let _ = compare(
            &mut Decoder::default(),
            &path.display().to_string(),
            &bytes,
            300,
            &mut rng(5),
        );
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads many files")]
fn the_hostile_corpus_has_the_oracles_pixels_or_none() {
    let Some(hostile) = shared("hostile") else { return };
    let mut counts = std::collections::BTreeMap::<_, u32>::new();
    let (mut decoder, mut rng) = (Decoder::default(), rng(4));
    for (name, bytes) in files(&hostile).iter().filter(|(_, b)| b.starts_with(&[0xff, 0xd8])) {
        if size(bytes).is_none_or(|[w, h]| w * h < 1 << 24) {
            let result = compare(&mut decoder, name, bytes, 2, &mut rng);
            *counts.entry(format!("{result:?}")).or_default() += 1;
        }
    }
    eprintln!("{counts:?}");
}
