//! Which files of a folder are shards: `*.parquet`, at any depth, in byte order of their relative `/` names.

use crate::data::DataError;
use crate::data::ingest::JOURNAL_FOLDER;
use std::path::Path;

/// Names of the shards under `root`. Fails on a missing folder, an unfinished ingest, and where there is no shard.
pub fn shards(root: &Path) -> Result<Vec<String>, DataError> {
    match std::fs::metadata(root) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => {
            return Err(DataError::NotAFolder {
                path: root.to_path_buf(),
            });
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(DataError::NoSuchFolder {
                path: root.to_path_buf(),
            });
        }
        Err(e) => return Err(DataError::io("open", root, e)),
    }
    let mut found = Found::default();
    walk(root, "", 0, &mut found)?;
    if found.shards.is_empty() {
        return Err(DataError::NoParquet {
            path: root.to_path_buf(),
            images: found.images,
        });
    }
    found.shards.sort_unstable();
    Ok(found.shards)
}

/// A path that is one shard itself: its folder and its name.
pub fn single_shard(path: &Path) -> Option<(&Path, String)> {
    let name = path.file_name()?.to_str()?;
    (name.ends_with(".parquet") && path.is_file()).then(|| (path.parent().unwrap_or(path), name.to_owned()))
}

#[derive(Default)]
struct Found {
    shards: Vec<String>,
    images: u64,
}

fn walk(folder: &Path, prefix: &str, depth: u32, found: &mut Found) -> Result<(), DataError> {
    // Links may make a circle; no data set is this deep.
    if depth > 64 {
        return Err(DataError::io(
            "list",
            folder,
            std::io::Error::other("more than 64 folders deep"),
        ));
    }
    if folder.join(JOURNAL_FOLDER).is_dir() {
        return Err(DataError::Unfinished {
            path: folder.to_path_buf(),
        });
    }
    for entry in std::fs::read_dir(folder).map_err(|e| DataError::io("list", folder, e))? {
        let entry = entry.map_err(|e| DataError::io("list", folder, e))?;
        let path = entry.path();
        let file_name = entry.file_name();
        if file_name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // metadata() follows links: caches of downloaded data sets are folders of links.
        let is_folder = match std::fs::metadata(&path) {
            Ok(meta) => meta.is_dir(),
            Err(e) => return Err(DataError::io("open", &path, e)),
        };
        let name = file_name.to_str();
        match (is_folder, name) {
            (true, Some(name)) => walk(&path, &format!("{prefix}{name}/"), depth + 1, found)?,
            (false, Some(name)) if name.ends_with(".parquet") => found.shards.push(format!("{prefix}{name}")),
            (false, Some(name)) => found.images += u64::from(crate::data::sources::is_image_name(name)),
            // An odd name matters only where a shard or a folder of shards bears it.
            (true, None) => return Err(DataError::NameNotUtf8 { path }),
            (false, None) if path.extension().is_some_and(|e| e == "parquet") => {
                return Err(DataError::NameNotUtf8 { path });
            }
            (false, None) => {}
        }
    }
    Ok(())
}
