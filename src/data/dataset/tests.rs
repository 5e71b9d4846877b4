//! Data sets written by pyarrow and by ourselves, whole and broken.
