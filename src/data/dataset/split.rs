//! Splits by file name, as Hugging Face `datasets` infers them: `train-00000-of-00004.parquet`, `test/part-0.parquet`.
//!
//! A folder with several splits gives the training its `train` shards and the evaluation its held-out ones; a folder
//! whose names say nothing is one split.

use serde::{Deserialize, Serialize};

/// Which shards of a folder are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// All of them.
    #[default]
    All,
    /// Those to train on: all that are not held out.
    Train,
    /// The held-out ones (`test`, else `validation`), where the folder has any beside others; else all.
    HeldOut,
}

const TEST: [&str; 2] = ["test", "testing"];
const VALIDATION: [&str; 5] = ["validation", "valid", "val", "dev", "eval"];

impl Split {
    /// The names of this split, in their order.
    pub(super) fn select(self, names: Vec<String>) -> Vec<String> {
        let test = |name: &String| says(name, &TEST);
        let validation = |name: &String| says(name, &VALIDATION);
        let held_out = |name: &String| test(name) || validation(name);
        let mixed = names.iter().any(held_out) && !names.iter().all(held_out);
        match self {
            Self::All => names,
            Self::Train if mixed => names.into_iter().filter(|name| !held_out(name)).collect(),
            Self::HeldOut if names.iter().any(test) => names.into_iter().filter(test).collect(),
            Self::HeldOut if mixed => names.into_iter().filter(validation).collect(),
            Self::Train | Self::HeldOut => names,
        }
    }
}

/// Whether a word of the name is one of `words`; words end where letters do.
fn says(name: &str, words: &[&str]) -> bool {
    name.split(|c: char| !c.is_ascii_alphabetic())
        .any(|part| words.iter().any(|word| part.eq_ignore_ascii_case(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(split: Split, names: &[&str]) -> Vec<String> {
        split.select(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_folder_with_splits_is_divided() {
        let names = [
            "test-00000-of-00001.parquet",
            "train-00000-of-00002.parquet",
            "train-00001-of-00002.parquet",
        ];
        assert_eq!(select(Split::Train, &names), &names[1..]);
        assert_eq!(select(Split::HeldOut, &names), &names[..1]);
        assert_eq!(select(Split::All, &names), &names);
        let folders = ["data/train/a.parquet", "data/val/a.parquet"];
        assert_eq!(select(Split::Train, &folders), &folders[..1]);
        assert_eq!(select(Split::HeldOut, &folders), &folders[1..]);
    }

    #[test]
    fn a_folder_of_one_split_or_of_none_is_whole() {
        for names in [
            ["train-0.parquet", "train-1.parquet"],
            ["a.parquet", "contest.parquet"],
            ["test-0.parquet", "test-1.parquet"],
        ] {
            assert_eq!(select(Split::Train, &names), &names);
            assert_eq!(select(Split::HeldOut, &names), &names);
        }
    }
}
