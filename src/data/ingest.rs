//! Sources -> global shuffle -> shards, resumable.
//!
//! In: folder trees of images, Parquet data sets, `synthetic:shapes`. Out: a folder of shards with a manifest. Encoded bytes pass
//! through untouched; images whose headers do not hold are left out and listed with the reason.
//! How: (1) list every image of every source (about 60 bytes and its path each, no pixels); (2) shuffle the list with a keyed
//! Fisher-Yates and cut it into shards; (3) load each image from its place when its shard is written.
//! Memory is the list, one row group and a copy of it: it does not grow with the images.
//! Invariants: the output depends on sources and options only. Until all is done, everything lies in the hidden folder `.ingest`
//! inside the output: shards move out and the manifest is written at the end, so that no reader takes a part for the whole.

mod journal;
mod list;
mod shards;

use super::codec::DecodeOptions;
use super::dataset::Split;
use super::error::DataError;
use super::manifest::{Manifest, RejectRecord};
use super::shard::{Labels, ShardRecord};
use super::sources::{self, Source, SourceRecord};
use journal::State;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Hidden folder inside the output that holds an ingest on its way; where it exists the data set is not complete.
pub const JOURNAL_FOLDER: &str = ".ingest";

/// How an ingest works. All of it decides what is written, so a resumed ingest must be asked for the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngestOptions {
    /// Seed of the global shuffle. Default 0.
    pub seed: u64,
    /// A shard is closed when its images reach this size, MiB. Default 256.
    pub shard_mb: u32,
    /// Images in a row group. Default 128.
    pub row_group: u32,
    /// Where labels come from. Default auto.
    pub labels: LabelsFrom,
    /// Decode every image in full instead of checking its header. Default false.
    pub verify: bool,
    /// Image column of Parquet sources. Default `image`.
    pub image_column: String,
    /// Label column of Parquet sources. Default `label`.
    pub label_column: String,
    /// Which shards of a Parquet source with several splits. Default train: held-out images stay held out.
    pub split: Split,
    /// Limits that an image must hold.
    pub decode: DecodeOptions,
}

impl Default for IngestOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            shard_mb: 256,
            row_group: 128,
            labels: LabelsFrom::Auto,
            verify: false,
            image_column: "image".to_owned(),
            label_column: "label".to_owned(),
            split: Split::Train,
            decode: DecodeOptions::default(),
        }
    }
}

/// Where labels come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelsFrom {
    /// The label column of Parquet; the folders of a tree where every image lies in `class/file`.
    Auto,
    /// The label column of Parquet; the first folder of every image in a tree.
    Folders,
    /// No labels.
    None,
}

/// What an ingest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IngestStage {
    /// Listing the images of the sources.
    Listing,
    /// Checking the shards that an interrupted ingest has finished.
    Resuming,
    /// Writing shards.
    Writing,
}

/// How far an ingest is.
#[derive(Clone, Copy, Debug)]
pub struct IngestProgress {
    /// What it is doing.
    pub stage: IngestStage,
    /// Images done in this stage.
    pub done: u64,
    /// Images in all.
    pub total: u64,
    /// Encoded bytes written.
    pub bytes: u64,
    /// Images left out so far.
    pub rejected: u64,
}

/// What an ingest has done.
#[derive(Clone, Debug, Serialize)]
pub struct IngestSummary {
    /// The data set's folder.
    pub out: PathBuf,
    /// Images written.
    pub samples: u64,
    /// Images left out.
    pub rejected: u64,
    /// Images left out, by code.
    pub rejected_by_code: BTreeMap<String, u64>,
    /// Every image left out.
    pub rejects: Vec<RejectRecord>,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Encoded bytes of all images.
    pub image_bytes: u64,
    /// Shards in the folder.
    pub shards: u64,
    /// Shards that an interrupted ingest had finished and this one kept.
    pub shards_kept: u64,
    /// Class names, where there are any.
    pub label_names: Option<Vec<String>>,
    /// Whether the folder was complete already and nothing was written.
    pub already_complete: bool,
}

/// Why an ingest failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IngestError {
    /// A source or the output failed.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Nothing to read.
    #[error("no source was given")]
    NoSources,
    /// An option that cannot work.
    #[error("`{option}` must be at least 1")]
    ZeroOption {
        /// The option.
        option: &'static str,
    },
    /// The output is a file.
    #[error("the output `{}` is a file", path.display())]
    OutIsFile {
        /// The output.
        path: PathBuf,
    },
    /// The output lies inside a source, which would then contain itself.
    #[error("the output `{}` lies inside the source `{source_name}`", path.display())]
    OutInsideSource {
        /// The output.
        path: PathBuf,
        /// The source.
        source_name: String,
    },
    /// The output folder holds something else.
    #[error("the output `{}` is not empty (it holds `{found}`) and no ingest began there", path.display())]
    OutNotEmpty {
        /// The output.
        path: PathBuf,
        /// One name in it.
        found: String,
    },
    /// The output folder belongs to an ingest with other arguments.
    #[error(
        "the output `{}` holds {} ingest with other arguments: {}",
        path.display(), if *complete { "a complete" } else { "an unfinished" }, differences.join("; ")
    )]
    OtherArguments {
        /// The output.
        path: PathBuf,
        /// Whether that ingest has come to its end.
        complete: bool,
        /// What differs: `name: there -> now`.
        differences: Vec<String>,
    },
    /// Another process is at work there.
    #[error("another process is ingesting into `{}`", path.display())]
    Busy {
        /// The output.
        path: PathBuf,
    },
    /// Labels that mean different things.
    #[error("`{first}` has named classes and `{second}` has labels without names: they cannot share a column")]
    LabelsMixed {
        /// A source with class names.
        first: String,
        /// A source with bare integers.
        second: String,
    },
    /// Not one image is fit to be written.
    #[error("none of the {listed} images could be read{}", first.as_ref().map(|r| format!(" (the first: {r})")).unwrap_or_default())]
    NoImages {
        /// Images listed.
        listed: u64,
        /// Why the first was left out.
        first: Option<String>,
    },
}

impl IngestError {
    /// Remedies, one a line.
    pub fn hints(&self) -> Vec<String> {
        let one = |text: &str| vec![text.to_owned()];
        match self {
            Self::Data(error) => error.hints(),
            Self::NoSources => one("give a folder of images, a folder of Parquet, or `synthetic:shapes`"),
            Self::OutIsFile { .. } | Self::OutNotEmpty { .. } | Self::OutInsideSource { .. } => {
                one("give a new or empty folder with `--out`")
            }
            Self::OtherArguments { complete: true, .. } => one("give another folder with `--out`, or remove this one"),
            Self::OtherArguments { .. } => one(
                "repeat the arguments of the unfinished ingest to finish it, give another folder with `--out`, or remove this one",
            ),
            Self::Busy { .. } => one("wait for it, or give another folder with `--out`"),
            Self::LabelsMixed { .. } => one("ingest them apart, or go without labels: `--labels none`"),
            Self::NoImages { .. } => one("the sources hold no JPEG, PNG or WebP within the limits"),
            Self::ZeroOption { .. } => Vec::new(),
        }
    }
}

/// Ingests `sources` into the folder `out`.
///
/// A complete ingest of the same arguments is left as it is; an unfinished one is finished, keeping the shards whose checksums
/// match; the result is byte for byte that of an uninterrupted run. Anything else in `out` is refused.
pub fn ingest(
    sources: &[String],
    out: &Path,
    options: &IngestOptions,
    progress: &mut dyn FnMut(IngestProgress),
) -> Result<IngestSummary, IngestError> {
    check_arguments(sources, out, options)?;
    let mut opened = Vec::with_capacity(sources.len());
    for name in sources {
        opened.push(sources::open(name, options)?);
    }
    let labels = merge_labels(&opened)?;
    let records: Vec<SourceRecord> = opened.iter().map(|s| s.record().clone()).collect();
    let journal = match journal::open(out, options, &records)? {
        State::Complete(manifest) => return Ok(summary(out, *manifest, 0, true)),
        State::Open(journal) => journal,
    };

    let list = list::list(&mut opened, &labels, &journal, progress)?;
    let plan = list::plan(&list, options);
    let labels = labels.column;
    let work = shards::Work {
        sources: &opened,
        list: &list,
        labels: &labels,
        options,
        journal: &journal,
    };
    let (finished, kept) = shards::write_all(&work, &plan, progress)?;
    let (shards, rejects): (Vec<ShardRecord>, Vec<Vec<RejectRecord>>) =
        finished.into_iter().map(|f| (f.shard, f.rejects)).unzip();
    let rejects: Vec<RejectRecord> = rejects.into_iter().flatten().collect();
    if shards.iter().all(|s| s.samples == 0) {
        journal.abandon()?;
        let first = rejects.first().map(|r| format!("`{}`: {}", r.file, r.reason));
        return Err(IngestError::NoImages {
            listed: list.len() as u64,
            first,
        });
    }
    let names = labels.names().map(<[String]>::to_vec);
    let manifest = Manifest::new(shards, names, options.clone(), records, rejects);
    journal.finish(&manifest)?;
    Ok(summary(out, manifest, kept, false))
}

fn check_arguments(sources: &[String], out: &Path, options: &IngestOptions) -> Result<(), IngestError> {
    if sources.is_empty() {
        return Err(IngestError::NoSources);
    }
    for (value, option) in [(options.shard_mb, "shard-mb"), (options.row_group, "row-group")] {
        if value == 0 {
            return Err(IngestError::ZeroOption { option });
        }
    }
    for name in sources.iter().filter(|n| !n.starts_with(sources::SYNTHETIC)) {
        // The output may not exist yet: then its nearest existing parent decides.
        let Ok(source) = std::fs::canonicalize(name) else {
            continue;
        };
        let absolute = std::path::absolute(out).map_err(|e| DataError::io("resolve", out, e))?;
        let existing = absolute
            .ancestors()
            .find_map(|p| std::fs::canonicalize(p).ok().map(|real| (p, real)));
        let Some((shown, real)) = existing else { continue };
        let rest = absolute.strip_prefix(shown).unwrap_or(Path::new(""));
        if real.join(rest).starts_with(&source) {
            return Err(IngestError::OutInsideSource {
                path: out.to_path_buf(),
                source_name: name.clone(),
            });
        }
    }
    Ok(())
}

/// The label column of all sources together, and each source's way into it.
struct MergedLabels {
    column: Labels,
    /// For each source with named classes: its label -> the column's.
    maps: Vec<Option<Vec<i64>>>,
}

/// Joins the sources' labels: class names are united by name, in the order in which they are met.
fn merge_labels(sources: &[Box<dyn Source>]) -> Result<MergedLabels, IngestError> {
    let with = |wanted: fn(&Labels) -> bool| {
        sources
            .iter()
            .find(|s| wanted(s.labels()))
            .map(|s| s.record().name.clone())
    };
    let named = with(|l| matches!(l, Labels::Classes(_)));
    let bare = with(|l| matches!(l, Labels::Integers));
    let mut names: Vec<String> = Vec::new();
    let column = match (named, bare) {
        (Some(first), Some(second)) => return Err(IngestError::LabelsMixed { first, second }),
        (None, None) => Labels::None,
        (None, Some(_)) => Labels::Integers,
        (Some(_), None) => {
            let mut known = std::collections::HashSet::new();
            let all = sources.iter().filter_map(|s| s.labels().names()).flatten();
            names.extend(all.filter(|name| known.insert(*name)).cloned());
            Labels::Classes(names.clone())
        }
    };
    let index: std::collections::HashMap<&str, i64> = names.iter().map(String::as_str).zip(0..).collect();
    let map = |labels: &Labels| Some(labels.names()?.iter().map(|n| index[n.as_str()]).collect());
    Ok(MergedLabels {
        column,
        maps: sources.iter().map(|s| map(s.labels())).collect(),
    })
}

fn summary(out: &Path, manifest: Manifest, kept: u64, already_complete: bool) -> IngestSummary {
    let mut rejected_by_code = BTreeMap::new();
    for reject in &manifest.rejects {
        *rejected_by_code.entry(reject.code.clone()).or_default() += 1;
    }
    IngestSummary {
        out: out.to_path_buf(),
        samples: manifest.samples,
        rejected: manifest.rejects.len() as u64,
        rejected_by_code,
        rejects: manifest.rejects,
        bytes: manifest.bytes,
        image_bytes: manifest.image_bytes,
        shards: manifest.shards.len() as u64,
        shards_kept: kept,
        label_names: manifest.label_names,
        already_complete,
    }
}

#[cfg(test)]
mod tests;
