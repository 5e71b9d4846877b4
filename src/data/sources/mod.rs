//! Where images come from: one small file for each kind of source.
//!
//! A source is listed once, in its own order, without keeping any image; later each image is loaded from its place, in whatever
//! order the shuffle wants it. So the memory an ingest needs does not grow with the images, only with their number.

pub mod folder;
pub mod huggingface;
pub mod shapes;

use super::DataError;
use super::ingest::{IngestOptions, LabelsFrom};
use super::shard::Labels;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Prefix of the embedded data set's name.
pub const SYNTHETIC: &str = "synthetic:";

/// What a source is, for the manifest and for telling whether a resumed ingest still reads the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// As it was given on the command line.
    pub name: String,
    /// `folder`, `parquet` or `synthetic`.
    pub kind: String,
    /// Images listed.
    pub images: u64,
    /// Changes when the source's files change (names and lengths of files; footers of shards).
    pub fingerprint: String,
}

/// Where an image of a source lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the file, or of the rendered image.
    pub file: u32,
    /// Row in a Parquet file, counted over its row groups; 0 elsewhere.
    pub row: u32,
    /// Byte at which the image starts, in the file or (`spilled`) in the source's spill file.
    pub offset: u64,
    /// Its length in bytes; 0 where it is known only once rendered.
    pub bytes: u32,
    /// Whether it was copied out of a compressed page.
    pub spilled: bool,
}

/// One image as a source lists it.
#[derive(Clone, Debug)]
pub struct Listed<'a> {
    /// Where it lies; `None` for a null in the image column.
    pub place: Place,
    /// Whether there is an image at all (a row may be null).
    pub present: bool,
    /// The `path` to store; `None`: none.
    pub path: Option<&'a str>,
    /// Its label, in the source's own numbering.
    pub label: Option<i64>,
    /// Encoded size, or an estimate, for planning shards.
    pub size: u64,
}

/// An image source.
pub trait Source: Send + Sync {
    /// What it is.
    fn record(&self) -> &SourceRecord;

    /// What its labels are.
    fn labels(&self) -> &Labels;

    /// Lists every image once, in the source's order. `spill` is a file that the source may fill for itself.
    fn list(
        &mut self,
        spill: &Path,
        visit: &mut dyn FnMut(Listed<'_>) -> Result<(), DataError>,
    ) -> Result<(), DataError>;

    /// Loads the encoded image at `place` into `buffer`.
    fn load(&self, place: Place, buffer: &mut Vec<u8>) -> Result<(), DataError>;

    /// The file's name within the source.
    fn file_name(&self, file: u32) -> String;
}

/// Opens a source by what the user wrote: `synthetic:shapes...`, a folder of Parquet shards, or a folder tree of images.
pub fn open(name: &str, options: &IngestOptions) -> Result<Box<dyn Source>, DataError> {
    if name.starts_with(SYNTHETIC) {
        return Ok(Box::new(shapes::ShapesSource::open(name, options.labels)?));
    }
    let root = Path::new(name);
    match huggingface::HuggingFace::open(name, root, options) {
        // No Parquet, but images: a folder tree.
        Err(DataError::NoParquet { images, .. }) if images > 0 => {
            Ok(Box::new(folder::FolderTree::open(name, root, options.labels)?))
        }
        Err(error) => Err(error),
        Ok(source) => Ok(Box::new(source)),
    }
}

/// Whether a file name ends like an image that we decode: jpg, jpeg, png, webp, in any case.
pub fn is_image_name(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, e)| e.to_ascii_lowercase());
    matches!(extension.as_deref(), Some("jpg" | "jpeg" | "png" | "webp"))
}

/// The labels that remain under the user's choice.
fn wanted(labels: Labels, choice: LabelsFrom) -> Labels {
    if choice == LabelsFrom::None {
        Labels::None
    } else {
        labels
    }
}
