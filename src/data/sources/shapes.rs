//! `synthetic:shapes`: the embedded data set, so that a machine without data can run everything.
//!
//! In: `synthetic:shapes[?train=N&test=N&seed=S&split=train|test]` (4000, 1000, 0; `split` matters to `ingest` only). Out: labelled
//! JPEGs, class = index mod 10, as a source for `ingest` or as two data sets in a cache folder. Image i is a pure function of
//! (seed, i); test images have indices of their own, whatever the number of training images. Drawn in [`draw`].
//! Bit-identical on one kind of machine; the system's `cos` and `ln` may round differently on another.

pub mod draw;

use super::{Listed, Place, SYNTHETIC, Source, SourceRecord, wanted};
use crate::data::DataError;
use crate::data::ingest::{IngestOptions, LabelsFrom};
use crate::data::manifest::Manifest;
use crate::data::shard::{Labels, ShardWriter};
use crate::data::store::{PendingFolder, remove_stale};
use std::path::{Path, PathBuf};

/// Raised whenever the images of a given seed change, so that caches are made anew.
const GENERATOR: u32 = 1;

/// First index of the test images: far above any number of training images, and a multiple of the number of classes.
const FIRST_TEST: u64 = 1_000_000_000;

/// Rows of a row group: small images, small groups, so that windows and shuffles have something to do.
const ROW_GROUP: u32 = 128;

/// Which images of a spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For training.
    Train,
    /// For testing.
    Test,
}

/// A parsed `synthetic:shapes` name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapesSpec {
    /// Training images.
    pub train: u32,
    /// Test images.
    pub test: u32,
    /// Seed of all images.
    pub seed: u64,
    /// Which images an ingest takes.
    pub split: Split,
}

impl Default for ShapesSpec {
    fn default() -> Self {
        Self {
            train: 4000,
            test: 1000,
            seed: 0,
            split: Split::Train,
        }
    }
}

impl ShapesSpec {
    /// Parses the name; the error says what is wrong with it.
    pub fn parse(name: &str) -> Result<Self, DataError> {
        let bad = |problem: String| DataError::Synthetic {
            name: name.to_owned(),
            problem,
        };
        let rest = name.strip_prefix(SYNTHETIC).unwrap_or(name);
        let (kind, query) = rest.split_once('?').unwrap_or((rest, ""));
        if kind != "shapes" {
            return Err(bad(format!("there is no synthetic data set `{kind}`, only `shapes`")));
        }
        let mut spec = Self::default();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| bad(format!("`{pair}` is not `key=value`")))?;
            let number = || {
                value
                    .parse::<u64>()
                    .map_err(|_| bad(format!("`{value}` is not a number (key `{key}`)")))
            };
            let count = || {
                number()?
                    .try_into()
                    .ok()
                    .filter(|n| (1..=100_000_000).contains(n))
                    .ok_or_else(|| bad(format!("`{key}` must be between 1 and 100000000")))
            };
            match key {
                "train" => spec.train = count()?,
                "test" => spec.test = count()?,
                "seed" => spec.seed = number()?,
                "split" => {
                    spec.split = match value {
                        "train" => Split::Train,
                        "test" => Split::Test,
                        _ => return Err(bad(format!("`split` is `train` or `test`, not `{value}`"))),
                    }
                }
                _ => return Err(bad(format!("unknown key `{key}` (known: train, test, seed, split)"))),
            }
        }
        Ok(spec)
    }

    fn count(&self, split: Split) -> u32 {
        match split {
            Split::Train => self.train,
            Split::Test => self.test,
        }
    }

    /// The encoded image `i` of a split.
    fn image(&self, split: Split, i: u32) -> Vec<u8> {
        draw::jpeg(self.seed, index(split, i))
    }
}

fn index(split: Split, i: u32) -> u64 {
    match split {
        Split::Train => u64::from(i),
        Split::Test => FIRST_TEST + u64::from(i),
    }
}

fn class_labels() -> Labels {
    Labels::Classes(draw::CLASSES.iter().map(|&n| n.to_owned()).collect())
}

fn record(name: &str, spec: &ShapesSpec, split: Split) -> SourceRecord {
    SourceRecord {
        name: name.to_owned(),
        kind: "synthetic".to_owned(),
        images: spec.count(split).into(),
        fingerprint: format!("shapes-{GENERATOR}-{split:?}-{}", spec.seed).to_ascii_lowercase(),
    }
}

/// The two data sets of a spec, in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntheticPaths {
    /// Folder of the training images.
    pub train: PathBuf,
    /// Folder of the test images.
    pub test: PathBuf,
}

/// Makes the data sets of `spec` (a `synthetic:shapes...` name) in `cache_dir`, unless they are there.
///
/// Atomic: a folder in the cache is whole. Two processes may race: the first to finish wins, the other uses its folder.
pub fn ensure_synthetic(cache_dir: &Path, spec: &str) -> Result<SyntheticPaths, DataError> {
    let parsed = ShapesSpec::parse(spec)?;
    let ShapesSpec { train, test, seed, .. } = parsed;
    let folder = cache_dir.join(format!("shapes-{GENERATOR}-train-{train}-test-{test}-seed-{seed}"));
    let paths = SyntheticPaths {
        train: folder.join("train"),
        test: folder.join("test"),
    };
    if folder.is_dir() {
        return Ok(paths);
    }
    let pending = PendingFolder::create(&folder)?;
    // What killed processes left behind would otherwise stay for ever.
    remove_stale(cache_dir)?;
    for (split, name) in [(Split::Train, "train"), (Split::Test, "test")] {
        write_split(&pending.path().join(name), name, &parsed, split)?;
    }
    match pending.commit() {
        Err(_) if folder.is_dir() => Ok(paths),
        Err(error) => Err(error),
        Ok(()) => Ok(paths),
    }
}

/// Writes one split: in index order, since classes alternate there, so that every row group is a fair draw.
fn write_split(folder: &Path, name: &str, spec: &ShapesSpec, split: Split) -> Result<(), DataError> {
    let path = folder.join(format!("{name}-00000-of-00001.parquet"));
    let mut shard = ShardWriter::create(&path, &class_labels(), ROW_GROUP)?;
    let count = spec.count(split);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u32;
    let block = 64;
    for start in (0..count).step_by((block * threads) as usize) {
        // Each image is a pure function of its index, so threads change nothing but the time.
        let images: Vec<Vec<Vec<u8>>> = std::thread::scope(|scope| {
            let draw = |t: u32| {
                let from = start + t * block;
                scope.spawn(move || (from..count.min(from + block)).map(|i| spec.image(split, i)).collect())
            };
            let running: Vec<_> = (0..threads).map(draw).collect();
            running
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        for (i, image) in (start..).zip(images.iter().flatten()) {
            shard.push(image, Some(&file_name(i)), Some((index(split, i) % 10) as i64))?;
        }
    }
    let shard = shard.finish()?;
    let options = IngestOptions {
        row_group: ROW_GROUP,
        ..IngestOptions::default()
    };
    let names = class_labels().names().map(<[String]>::to_vec);
    let source = record(
        &format!(
            "{SYNTHETIC}shapes?train={}&test={}&seed={}",
            spec.train, spec.test, spec.seed
        ),
        spec,
        split,
    );
    Manifest::new(vec![shard], names, options, vec![source], Vec::new()).write(folder)
}

fn file_name(i: u32) -> String {
    format!("{i:06}.jpg")
}

/// Where data sets made once are kept: `VICREG_STREAM_CACHE`, else `vicreg-stream` in `XDG_CACHE_HOME` or `~/.cache`, else in the
/// folder for temporary files.
pub fn default_cache_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(folder) = set("VICREG_STREAM_CACHE") {
        return folder;
    }
    let base = set("XDG_CACHE_HOME").or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("vicreg-stream")
}

/// One split as a source for `ingest`; nothing is kept: images are drawn when they are loaded.
pub struct ShapesSource {
    spec: ShapesSpec,
    record: SourceRecord,
    labels: Labels,
}

impl ShapesSource {
    /// Parses the name.
    pub fn open(name: &str, choice: LabelsFrom) -> Result<Self, DataError> {
        let spec = ShapesSpec::parse(name)?;
        let record = record(name, &spec, spec.split);
        Ok(Self {
            spec,
            record,
            labels: wanted(class_labels(), choice),
        })
    }
}

impl Source for ShapesSource {
    fn record(&self) -> &SourceRecord {
        &self.record
    }

    fn labels(&self) -> &Labels {
        &self.labels
    }

    fn list(
        &mut self,
        _spill: &Path,
        visit: &mut dyn FnMut(Listed<'_>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        for i in 0..self.spec.count(self.spec.split) {
            let label = (self.labels != Labels::None).then_some((index(self.spec.split, i) % 10) as i64);
            let place = Place {
                file: i,
                row: 0,
                offset: 0,
                bytes: 0,
                spilled: false,
            };
            // About what such an image has; the length is not known before it is drawn.
            visit(Listed {
                place,
                present: true,
                path: Some(&file_name(i)),
                label,
                size: 2048,
            })?;
        }
        Ok(())
    }

    fn load(&self, place: Place, buffer: &mut Vec<u8>) -> Result<(), DataError> {
        *buffer = self.spec.image(self.spec.split, place.file);
        Ok(())
    }

    fn file_name(&self, file: u32) -> String {
        file_name(file)
    }
}

#[cfg(test)]
mod tests;
