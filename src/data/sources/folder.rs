//! A folder tree of images as a source: jpg, jpeg, png, webp, in byte order of their relative names.
//!
//! The first folder of a name is its class when that is asked for, or when every image lies exactly one folder deep
//! (`class/file`) under at least two folders. Hidden files and folders are passed over; links are followed.

use super::{Listed, Place, Source, SourceRecord, is_image_name};
use crate::data::DataError;
use crate::data::ingest::LabelsFrom;
use crate::data::shard::Labels;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// The folder tree.
pub struct FolderTree {
    root: PathBuf,
    record: SourceRecord,
    labels: Labels,
    files: Vec<(String, u64)>,
}

impl FolderTree {
    /// Lists the tree under `root`; images are not read.
    pub fn open(name: &str, root: &Path, choice: LabelsFrom) -> Result<Self, DataError> {
        let mut files = Vec::new();
        walk(root, "", 0, &mut files)?;
        files.sort_unstable();
        let mut hash = Xxh3::new();
        for (file, bytes) in &files {
            hash.update(file.as_bytes());
            hash.update(&[0]);
            hash.update(&bytes.to_le_bytes());
        }
        let record = SourceRecord {
            name: name.to_owned(),
            kind: "folder".to_owned(),
            images: files.len() as u64,
            fingerprint: format!("{:016x}", hash.digest()),
        };
        let labels = classes(&files, choice);
        Ok(Self {
            root: root.to_path_buf(),
            record,
            labels,
            files,
        })
    }

    fn label(&self, file: &str) -> Option<i64> {
        let (class, _) = file.split_once('/')?;
        let names = self.labels.names()?;
        names.binary_search_by(|n| n.as_str().cmp(class)).ok().map(|i| i as i64)
    }
}

/// Class names in byte order, which is how torchvision's `ImageFolder` numbers them too.
fn classes(files: &[(String, u64)], choice: LabelsFrom) -> Labels {
    let names: BTreeSet<&str> = files
        .iter()
        .filter_map(|(f, _)| f.split_once('/'))
        .map(|(class, _)| class)
        .collect();
    let plain = names.len() >= 2 && files.iter().all(|(f, _)| f.matches('/').count() == 1);
    let asked = choice == LabelsFrom::Folders && !names.is_empty();
    if asked || (choice == LabelsFrom::Auto && plain) {
        Labels::Classes(names.into_iter().map(str::to_owned).collect())
    } else {
        Labels::None
    }
}

fn walk(folder: &Path, prefix: &str, depth: u32, files: &mut Vec<(String, u64)>) -> Result<(), DataError> {
    // Links may make a circle; no tree of images is this deep.
    if depth > 64 {
        return Err(DataError::io(
            "list",
            folder,
            std::io::Error::other("more than 64 folders deep"),
        ));
    }
    for entry in std::fs::read_dir(folder).map_err(|e| DataError::io("list", folder, e))? {
        let path = entry.map_err(|e| DataError::io("list", folder, e))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
            return Err(DataError::NameNotUtf8 { path });
        };
        if name.starts_with('.') {
            continue;
        }
        let meta = std::fs::metadata(&path).map_err(|e| DataError::io("open", &path, e))?;
        if meta.is_dir() {
            walk(&path, &format!("{prefix}{name}/"), depth + 1, files)?;
        } else if is_image_name(name) {
            files.push((format!("{prefix}{name}"), meta.len()));
        }
    }
    Ok(())
}

impl Source for FolderTree {
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
        for (index, (file, bytes)) in self.files.iter().enumerate() {
            visit(Listed {
                // A file above 4 GiB is above every limit on encoded size: its length need not be exact to be rejected.
                place: Place {
                    file: index as u32,
                    row: 0,
                    offset: 0,
                    bytes: u32::try_from(*bytes).unwrap_or(u32::MAX),
                    spilled: false,
                },
                present: true,
                path: Some(file),
                label: self.label(file),
                size: *bytes,
            })?;
        }
        Ok(())
    }

    fn load(&self, place: Place, buffer: &mut Vec<u8>) -> Result<(), DataError> {
        let path = self.root.join(&self.files[place.file as usize].0);
        let mut file = File::open(&path).map_err(|e| DataError::io("open", &path, e))?;
        buffer.clear();
        let read = file.by_ref().take(u64::from(place.bytes) + 1).read_to_end(buffer);
        let read = read.map_err(|e| DataError::io("read", &path, e))?;
        if read as u64 != u64::from(place.bytes) {
            let changed = std::io::Error::other(format!("it had {} bytes when it was listed", place.bytes));
            return Err(DataError::io("read", &path, changed));
        }
        Ok(())
    }

    fn file_name(&self, file: u32) -> String {
        self.files[file as usize].0.clone()
    }
}
