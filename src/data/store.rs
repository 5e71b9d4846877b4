//! Files that are either whole or absent: write beside the target, fsync, rename, fsync the folder.
//!
//! In: a path and something to write. Out: the file (or folder) under its name, complete and on disk, or an error and no trace.
//! Invariant: a reader never sees a half-written file, whatever is killed when. Temporaries are hidden, in the same folder (a
//! rename does not cross file systems), and named `.NAME.PID-COUNT.tmp`: data sets pass over them.

use super::DataError;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes the file `path` whole or not at all, replacing what was there. Folders above it are made.
pub fn write_atomic<T>(path: &Path, write: impl FnOnce(&mut PendingFile) -> io::Result<T>) -> Result<T, DataError> {
    let mut file = PendingFile::create(path)?;
    let value = write(&mut file).map_err(|e| DataError::io("write", path, e))?;
    file.commit()?;
    Ok(value)
}

/// Writes `bytes`, whole or not at all.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    write_atomic(path, |file| file.write_all(bytes))
}

/// Writes `value` as indented JSON with a final newline, whole or not at all.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), DataError> {
    write_atomic(path, |file| {
        serde_json::to_writer_pretty(&mut *file, value)?;
        file.write_all(b"\n")
    })
}

/// A file being written under a temporary name. Dropped without [`commit`](Self::commit), it leaves no trace.
#[derive(Debug)]
pub struct PendingFile {
    // `None` only once committed or dropped.
    file: Option<BufWriter<File>>,
    temporary: PathBuf,
    target: PathBuf,
}

impl PendingFile {
    /// Opens a temporary beside `target`. Folders above it are made.
    pub fn create(target: &Path) -> Result<Self, DataError> {
        let temporary = temporary_for(target)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|e| DataError::io("create", &temporary, e))?;
        Ok(Self {
            file: Some(BufWriter::with_capacity(1 << 20, file)),
            temporary,
            target: target.to_path_buf(),
        })
    }

    /// Flushes, fsyncs, renames to the target and fsyncs its folder.
    pub fn commit(mut self) -> Result<(), DataError> {
        let Some(buffered) = self.file.take() else {
            return Ok(());
        };
        let file = buffered
            .into_inner()
            .map_err(|e| DataError::io("write", &self.target, e.into_error()))?;
        file.sync_all().map_err(|e| DataError::io("sync", &self.target, e))?;
        drop(file);
        std::fs::rename(&self.temporary, &self.target).map_err(|e| DataError::io("rename", &self.target, e))?;
        sync_folder(parent(&self.target))
    }
}

impl Write for PendingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), BufWriter::flush)
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        // After a commit the temporary is gone and this fails, as it should; on an error nothing better can be done.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// A folder being filled under a temporary name; how checkpoints and caches are made.
/// Dropped without [`commit`](Self::commit), it leaves no trace.
#[derive(Debug)]
pub struct PendingFolder {
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl PendingFolder {
    /// Makes a temporary folder beside `target`. Folders above it are made.
    pub fn create(target: &Path) -> Result<Self, DataError> {
        let temporary = temporary_for(target)?;
        std::fs::create_dir(&temporary).map_err(|e| DataError::io("create", &temporary, e))?;
        Ok(Self {
            temporary,
            target: target.to_path_buf(),
            committed: false,
        })
    }

    /// Where to put the files.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Fsyncs all files and folders inside, renames to the target and fsyncs its parent.
    ///
    /// Fails with `AlreadyExists` or `DirectoryNotEmpty` where the target exists and is not empty: a folder cannot be replaced
    /// in one step.
    pub fn commit(mut self) -> Result<(), DataError> {
        sync_tree(&self.temporary)?;
        std::fs::rename(&self.temporary, &self.target).map_err(|e| DataError::io("rename", &self.target, e))?;
        self.committed = true;
        sync_folder(parent(&self.target))
    }
}

impl Drop for PendingFolder {
    fn drop(&mut self) {
        if !self.committed {
            let _ = std::fs::remove_dir_all(&self.temporary);
        }
    }
}

/// One name in a folder; `None` where it is empty or not there.
pub fn first_name(folder: &Path) -> Option<String> {
    let entry = std::fs::read_dir(folder).ok()?.flatten().next()?;
    Some(entry.file_name().to_string_lossy().into_owned())
}

/// Removes from `folder` the temporaries of processes that no longer run. Does nothing where `/proc` cannot tell.
pub fn remove_stale(folder: &Path) -> Result<(), DataError> {
    if !Path::new("/proc/self").exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).map_err(|e| DataError::io("list", folder, e))? {
        let path = entry.map_err(|e| DataError::io("list", folder, e))?.path();
        let Some(process) = path.file_name().and_then(|n| n.to_str()).and_then(process_of) else {
            continue;
        };
        if Path::new(&format!("/proc/{process}")).exists() {
            continue;
        }
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(|e| DataError::io("remove", &path, e))?;
    }
    Ok(())
}

/// Makes the names in `folder` durable: a rename is on disk only after this.
pub fn sync_folder(folder: &Path) -> Result<(), DataError> {
    // Only Unix opens folders as files; elsewhere the rename is as durable as the system makes it.
    if cfg!(unix) {
        File::open(folder)
            .and_then(|f| f.sync_all())
            .map_err(|e| DataError::io("sync", folder, e))?;
    }
    Ok(())
}

fn sync_tree(folder: &Path) -> Result<(), DataError> {
    for entry in std::fs::read_dir(folder).map_err(|e| DataError::io("list", folder, e))? {
        let path = entry.map_err(|e| DataError::io("list", folder, e))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)
                .and_then(|f| f.sync_all())
                .map_err(|e| DataError::io("sync", &path, e))?;
        }
    }
    sync_folder(folder)
}

fn temporary_for(target: &Path) -> Result<PathBuf, DataError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let invalid = || DataError::io("write", target, io::ErrorKind::InvalidInput.into());
    let name = target.file_name().ok_or_else(invalid)?;
    let folder = parent(target);
    std::fs::create_dir_all(folder).map_err(|e| DataError::io("create", folder, e))?;
    // Relaxed: the count only has to differ between calls.
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}-{count}.tmp", std::process::id()));
    Ok(folder.join(temporary))
}

/// The process in a temporary's name `.NAME.PID-COUNT.tmp`.
fn process_of(name: &str) -> Option<u32> {
    let (_, tail) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    let (process, count) = tail.split_once('-')?;
    count.parse::<u64>().ok()?;
    process.parse().ok()
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_whole_or_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/file.txt");
        write_atomic(&path, |f| f.write_all(b"first")).unwrap();
        let failed = write_atomic(&path, |f| {
            f.write_all(b"half of the sec")?;
            // The target must not have changed while the new content is on its way.
            assert_eq!(std::fs::read(&path)?, b"first");
            Err::<(), _>(io::ErrorKind::StorageFull.into())
        });
        assert!(matches!(failed, Err(DataError::Io { action: "write", .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        write_atomic(&path, |f| f.write_all(b"second")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(names(path.parent().unwrap()), ["file.txt"]);
    }

    #[test]
    fn a_folder_is_whole_or_absent() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("step-00000001");
        let pending = PendingFolder::create(&target).unwrap();
        std::fs::write(pending.path().join("model"), b"weights").unwrap();
        drop(pending);
        assert!(names(folder.path()).is_empty());
        let pending = PendingFolder::create(&target).unwrap();
        std::fs::write(pending.path().join("model"), b"weights").unwrap();
        assert!(!target.exists());
        pending.commit().unwrap();
        assert_eq!(std::fs::read(target.join("model")).unwrap(), b"weights");
        let second = PendingFolder::create(&target).unwrap();
        assert!(second.commit().is_err(), "a full folder must not be replaced");
        assert_eq!(names(folder.path()), ["step-00000001"]);
    }

    #[test]
    fn only_temporaries_of_dead_processes_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let own = format!(".a.{}-0.tmp", std::process::id());
        // Linux has no process above 2^22, so this one is dead.
        for name in [own.as_str(), ".b.4194305-3.tmp", "c.4194305-3.tmp", ".d.tmp", "e"] {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        remove_stale(folder.path()).unwrap();
        let left = names(folder.path());
        if Path::new("/proc/self").exists() {
            assert!(!left.iter().any(|n| n == ".b.4194305-3.tmp"));
        }
        assert!(left.contains(&own) && left.len() >= 4);
    }
}
