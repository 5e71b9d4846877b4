//! What can go wrong with data at rest. Variants carry facts; the door prints causes, then [`DataError::hints`].

use std::path::{Path, PathBuf};

/// An error of another library, kept as the cause.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong with data at rest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Input or output failed on a file or folder.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried: `open`, `read`, `write`, `rename`...
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The data set's folder does not exist.
    #[error("no such folder: `{}`", path.display())]
    NoSuchFolder {
        /// The folder asked for.
        path: PathBuf,
    },
    /// A file was given where a folder of shards is needed.
    #[error("`{}` is a file, not a folder of Parquet shards", path.display())]
    NotAFolder {
        /// The path asked for.
        path: PathBuf,
    },
    /// A folder without any `*.parquet`.
    #[error("no Parquet file in `{}`{}", path.display(), images_note(*images))]
    NoParquet {
        /// The folder searched.
        path: PathBuf,
        /// Image files met on the way: the folder may be a source for `ingest`.
        images: u64,
    },
    /// The folder holds an ingest that has not come to its end.
    #[error("`{}` holds an unfinished ingest", path.display())]
    Unfinished {
        /// The folder with the ingest's journal.
        path: PathBuf,
    },
    /// A file's name is not UTF-8, so its place in the order cannot be written down.
    #[error("`{}` has a name that is not UTF-8", path.display())]
    NameNotUtf8 {
        /// The file.
        path: PathBuf,
    },
    /// The footer is broken: not Parquet, or cut off.
    #[error("`{}` ({bytes} bytes) is not a whole Parquet file", path.display())]
    Footer {
        /// The shard.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// What the footer lacks.
        source: Cause,
    },
    /// The image column is missing.
    #[error("`{}` has no column `{wanted}` (columns: {})", path.display(), list(columns))]
    NoImageColumn {
        /// The shard.
        path: PathBuf,
        /// The column asked for.
        wanted: String,
        /// The columns that exist.
        columns: Vec<String>,
    },
    /// A column exists, with a type that cannot serve.
    #[error("column `{column}` of `{}` is {found}, not {wanted}", path.display())]
    ColumnType {
        /// The shard.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type, in words.
        found: String,
        /// The type needed, in words.
        wanted: &'static str,
        /// Whether it is the label column (training can do without it).
        label: bool,
    },
    /// Two shards name their classes differently, so that a label means two things.
    #[error("`{second}` names its {second_classes} classes differently from `{first}` ({first_classes})")]
    LabelNames {
        /// The first shard with class names.
        first: String,
        /// Its number of classes.
        first_classes: usize,
        /// The shard that differs.
        second: String,
        /// Its number of classes.
        second_classes: usize,
    },
    /// Parquet files are there, rows are not.
    #[error("the data set `{}` is empty: {shards} Parquet file(s) without a row", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
        /// Shards seen.
        shards: usize,
    },
    /// A row group could not be read.
    #[error("cannot read row group {row_group} of `{}`", path.display())]
    ReadRowGroup {
        /// The shard.
        path: PathBuf,
        /// The row group.
        row_group: u32,
        /// Why.
        source: Cause,
    },
    /// A shard could not be written.
    #[error("cannot write the shard `{}`", path.display())]
    WriteShard {
        /// The shard.
        path: PathBuf,
        /// Why.
        source: Cause,
    },
    /// A `synthetic:` name that cannot be understood.
    #[error("cannot understand `{name}`: {problem}")]
    Synthetic {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The manifest contradicts the folder, or cannot be read.
    #[error("the manifest `{}` {problem}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl DataError {
    /// Wraps an I/O error with what was tried, and where.
    pub fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    /// Remedies, one a line, without the word `hint`.
    pub fn hints(&self) -> Vec<String> {
        let one = |text: &str| vec![text.to_owned()];
        match self {
            Self::NoSuchFolder { .. } => one("check the path; relative paths start at the current folder"),
            Self::NotAFolder { path } => match path.parent().filter(|p| !p.as_os_str().is_empty()) {
                Some(parent) => vec![format!("give the folder that holds it: `{}`", parent.display())],
                None => one("give the folder that holds it: `.`"),
            },
            Self::NoParquet { path, images } if *images > 0 => {
                vec![format!(
                    "make shards of the images first: `vicreg-stream ingest {} --out DIR`",
                    path.display()
                )]
            }
            Self::NoParquet { .. } => one("shards are files named `*.parquet`, at any depth below the folder"),
            Self::Unfinished { .. } => one("run the same `ingest` command again: it resumes and finishes the folder"),
            Self::Footer { .. } => one("the file was cut off or is not Parquet: download or write it again"),
            Self::NoImageColumn { columns, .. } => match columns.as_slice() {
                [] => Vec::new(),
                some => vec![format!(
                    "name the column with `--set data.image_column=NAME` (`--image-column NAME` in ingest), for example `{}`",
                    some[0]
                )],
            },
            Self::ColumnType { label: true, .. } => one(
                "name an integer column with `--set data.label_column=NAME` (`--label-column NAME` in ingest), or give an empty name to go without labels",
            ),
            Self::ColumnType { .. } => {
                one("name another column with `--set data.image_column=NAME` (`--image-column NAME` in ingest)")
            }
            Self::LabelNames { .. } => one("keep data sets with different classes in different folders"),
            Self::Empty { .. } => one("ingest or download the data again"),
            Self::ReadRowGroup { .. } => one("the shard is damaged or has changed: write or download it again"),
            Self::Manifest { .. } => one("files were lost or changed since the ingest: run it again into a new folder"),
            Self::Synthetic { .. } => one("for example `synthetic:shapes?train=4000&test=1000&seed=0`"),
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => one("free some disk space"),
            Self::Io { .. } | Self::NameNotUtf8 { .. } | Self::WriteShard { .. } => Vec::new(),
        }
    }
}

/// Names for a message, at most twenty.
fn list(names: &[String]) -> String {
    let mut shown: Vec<String> = names.iter().take(20).map(|n| format!("`{n}`")).collect();
    if names.len() > shown.len() {
        shown.push(format!("and {} more", names.len() - shown.len()));
    }
    if shown.is_empty() {
        "none".to_owned()
    } else {
        shown.join(", ")
    }
}

fn images_note(images: u64) -> String {
    if images == 0 {
        String::new()
    } else {
        format!(" (but {images} image file(s))")
    }
}
