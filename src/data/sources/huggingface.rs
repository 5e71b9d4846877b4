//! Parquet in the Hugging Face image layout as a source; keeps labels, class names and paths.
//!
//! Listing reads every row group once and notes where each image lies in its file, so that later one read of just those bytes
//! loads it: no row group is ever loaded twice, whatever the shuffle asks for. Images inside compressed pages have no such place:
//! they are copied once, in order, into a spill file (as large as the images are encoded), and loaded from there.

use super::{Listed, Place, Source, SourceRecord, wanted};
use crate::data::ingest::IngestOptions;
use crate::data::shard::Labels;
use crate::data::{Columns, DataError, Dataset, ShardId};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A Parquet data set.
pub struct HuggingFace {
    data: Dataset,
    record: SourceRecord,
    labels: Labels,
    spill: PathBuf,
}

impl HuggingFace {
    /// Opens the shards under `root` by their footers.
    pub fn open(name: &str, root: &Path, options: &IngestOptions) -> Result<Self, DataError> {
        let columns = Columns {
            image: options.image_column.clone(),
            label: options.label_column.clone(),
        };
        let data = Dataset::open_split(root, &columns, options.split)?;
        let labels = match (data.has_labels(), data.label_names()) {
            (true, Some(names)) => Labels::Classes(names.to_vec()),
            (true, None) => Labels::Integers,
            (false, _) => Labels::None,
        };
        let record = SourceRecord {
            name: name.to_owned(),
            kind: "parquet".to_owned(),
            images: data.len(),
            fingerprint: format!("{:016x}", data.fingerprint()),
        };
        Ok(Self {
            data,
            record,
            labels: wanted(labels, options.labels),
            spill: PathBuf::new(),
        })
    }
}

/// The spill file, made when the first image needs it.
struct Spill<'a> {
    path: &'a Path,
    file: Option<BufWriter<File>>,
    end: u64,
}

impl Spill<'_> {
    fn push(&mut self, image: &[u8]) -> Result<u64, DataError> {
        let error = |e| DataError::io("write", self.path, e);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(BufWriter::with_capacity(
                1 << 20,
                File::create(self.path).map_err(error)?,
            )),
        };
        file.write_all(image).map_err(error)?;
        let start = self.end;
        self.end += image.len() as u64;
        Ok(start)
    }

    fn close(self) -> Result<(), DataError> {
        self.file
            .map_or(Ok(()), |mut f| f.flush())
            .map_err(|e| DataError::io("write", self.path, e))
    }
}

impl Source for HuggingFace {
    fn record(&self) -> &SourceRecord {
        &self.record
    }

    fn labels(&self) -> &Labels {
        &self.labels
    }

    fn list(
        &mut self,
        spill: &Path,
        visit: &mut dyn FnMut(Listed<'_>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        self.spill = spill.to_path_buf();
        let mut spill = Spill {
            path: spill,
            file: None,
            end: 0,
        };
        for (index, shard) in self.data.shards().iter().enumerate() {
            let mut first_row = 0;
            for (group_index, info) in shard.row_groups.iter().enumerate() {
                let group = self.data.read_row_group(ShardId(index as u32), group_index as u32)?;
                for row in 0..info.rows {
                    let image = group.image(row);
                    let mut place = Place {
                        file: index as u32,
                        row: first_row + row,
                        offset: 0,
                        bytes: 0,
                        spilled: false,
                    };
                    if let Some(image) = image {
                        place.bytes = image.len() as u32;
                        (place.offset, place.spilled) = match group.file_offset(image) {
                            Some(offset) => (offset, false),
                            None => (spill.push(image)?, true),
                        };
                    }
                    let label = if self.labels == Labels::None {
                        None
                    } else {
                        group.label(row)
                    };
                    let size = u64::from(place.bytes);
                    visit(Listed {
                        place,
                        present: image.is_some(),
                        path: group.path(row),
                        label,
                        size,
                    })?;
                }
                first_row += info.rows;
            }
        }
        spill.close()
    }

    fn load(&self, place: Place, buffer: &mut Vec<u8>) -> Result<(), DataError> {
        let path = if place.spilled {
            self.spill.clone()
        } else {
            self.data.root().join(self.file_name(place.file))
        };
        // Opened for each image: a few microseconds beside the read, and no limit on open files to respect.
        let mut file = File::open(&path).map_err(|e| DataError::io("open", &path, e))?;
        buffer.resize(place.bytes as usize, 0);
        file.seek(SeekFrom::Start(place.offset))
            .and_then(|_| file.read_exact(buffer))
            .map_err(|e| DataError::io("read", &path, e))
    }

    fn file_name(&self, file: u32) -> String {
        self.data.shards()[file as usize].name.clone()
    }
}
