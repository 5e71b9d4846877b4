//! Sources -> global shuffle -> shards, resumable.

/// Hidden folder inside the output that holds an ingest on its way; where it exists the data set is not complete.
pub const JOURNAL_FOLDER: &str = ".ingest";
