//! A recipe: TOML as the user wrote it -> every room's options, checked together.
//!
//! In: a file and `--set key=value` changes. Out: a [`Recipe`] that passed every check, or all complaints at once.
//! Each room owns its options; this file only joins them. No I/O on data happens here.

mod keys;
mod render;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::{DataOptions, DecodeOptions};
use crate::feed::view::ViewsOptions;
use crate::feed::{FeedOptions, OrderOptions};
use crate::learn::backend::DeviceOptions;
use crate::learn::expander::ExpanderOptions;
use crate::learn::optim::OptimizerOptions;
use crate::learn::options::TrainOptions;
use crate::learn::resnet::ResNetOptions;
use crate::learn::schedule::ScheduleOptions;
use crate::learn::vicreg::LossOptions;
use crate::measure::options::EvalOptions;

pub use keys::{Change, identity_changes};
pub use render::{reference_page, resolved_toml};

/// All options of a run. `vicreg-stream recipe reference` prints each with its default and meaning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Which images.
    pub data: DataOptions,
    /// What may be decoded, and how.
    pub decode: DecodeOptions,
    /// How samples are shuffled.
    pub order: OrderOptions,
    /// Threads and buffers of the pipeline; free to change between a run and its resume.
    pub feed: FeedOptions,
    /// What the network sees of an image.
    pub views: ViewsOptions,
    /// The network whose representation is kept.
    pub encoder: ResNetOptions,
    /// The network on top of it that is thrown away after training (the paper's expander).
    pub expander: ExpanderOptions,
    /// The three terms.
    pub loss: LossOptions,
    /// How parameters move.
    pub optimizer: OptimizerOptions,
    /// Learning rate by step.
    pub schedule: ScheduleOptions,
    /// Length, seed, checkpoints, logging.
    pub train: TrainOptions,
    /// Where the network computes; free to change between a run and its resume.
    pub device: DeviceOptions,
    /// How representations are judged.
    pub eval: EvalOptions,
}

/// A recipe together with what the user wrote of it, for the comments in `recipe.toml`.
#[derive(Clone, Debug)]
pub struct LoadedRecipe {
    /// Resolved options.
    pub recipe: Recipe,
    /// The table as written, `--set` applied.
    pub written: toml::Table,
    /// File stem, for the default run folder.
    pub name: String,
    /// Things worth knowing that stop nothing.
    pub warnings: Vec<String>,
}

/// Why a recipe was refused.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file could not be read.
    #[error("cannot read the recipe `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It is not TOML, or a value has the wrong type.
    #[error("cannot understand the recipe `{}`", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: toml::de::Error,
    },
    /// A key that no room knows.
    #[error("unknown key `{key}` in the recipe")]
    UnknownKey {
        /// The full dotted key.
        key: String,
        /// The known key that is nearest, if one is near.
        nearest: Option<String>,
    },
    /// `--set` without `=`, or through something that is not a table.
    #[error("cannot apply `--set {text}`: {reason}")]
    Set {
        /// What was given.
        text: String,
        /// Why it cannot be applied.
        reason: &'static str,
    },
    /// Values that are out of range or contradict each other; all of them.
    #[error("the recipe contradicts itself or is out of range:\n  {}", problems.join("\n  "))]
    Invalid {
        /// One sentence each, with the key's name.
        problems: Vec<String>,
    },
}

impl RecipeError {
    /// What the user can do about it.
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::UnknownKey {
                nearest: Some(nearest), ..
            } => vec![format!("did you mean `{nearest}`?")],
            Self::UnknownKey { nearest: None, .. } => {
                vec!["`vicreg-stream recipe reference` lists every key".to_owned()]
            }
            Self::Set { .. } => vec!["write for example `--set train.batch_size=64`".to_owned()],
            Self::Read { .. } => vec!["recipes to run and copy are in `pipelines/`".to_owned()],
            _ => Vec::new(),
        }
    }
}

impl LoadedRecipe {
    /// Reads a recipe, puts `data` in place of its data (the held-out ones too: they belong together), applies `--set`
    /// changes and checks everything.
    pub fn load(path: &Path, data: Option<&str>, sets: &[String]) -> Result<Self, RecipeError> {
        let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Read {
            path: path.to_owned(),
            source,
        })?;
        let name = path
            .file_stem()
            .map_or_else(|| "run".to_owned(), |stem| stem.to_string_lossy().into_owned());
        Self::parse(&text, path, name, data, sets)
    }

    fn parse(text: &str, path: &Path, name: String, data: Option<&str>, sets: &[String]) -> Result<Self, RecipeError> {
        let parse_error = |source| RecipeError::Parse {
            path: path.to_owned(),
            source,
        };
        let mut written: toml::Table = text.parse().map_err(parse_error)?;
        if let Some(data) = data {
            keys::replace_data(&mut written, data);
        }
        for set in sets {
            keys::apply_set(&mut written, set)?;
        }
        keys::refuse_unknown(&written)?;
        let recipe: Recipe = if sets.is_empty() && data.is_none() {
            toml::from_str(text).map_err(parse_error)? // Errors keep line and column this way.
        } else {
            toml::Value::Table(written.clone()).try_into().map_err(parse_error)?
        };
        let warnings = recipe.check()?;
        Ok(Self {
            recipe,
            written,
            name,
            warnings,
        })
    }
}

impl Recipe {
    /// Every room's checks, then those between rooms. Returns warnings.
    fn check(&self) -> Result<Vec<String>, RecipeError> {
        fn text(problem: impl std::fmt::Display) -> String {
            problem.to_string()
        }
        let mut problems = Vec::new();
        problems.extend(self.decode.validate());
        problems.extend(self.feed.check().err().map(text));
        problems.extend(self.views.validate().into_iter().map(text));
        problems.extend(self.encoder.validate().err().map(text));
        problems.extend(self.expander.validate().err().map(text));
        problems.extend(self.loss.validate(self.train.batch_size as usize).err().map(text));
        problems.extend(self.optimizer.validate().err().map(text));
        problems.extend(self.schedule.validate().err().map(text));
        problems.extend(self.train.validate());
        problems.extend(self.eval.validate());
        if problems.is_empty() {
            Ok(self.warnings())
        } else {
            Err(RecipeError::Invalid { problems })
        }
    }
}

impl Recipe {
    /// What differs from the published method although it was asked for.
    fn warnings(&self) -> Vec<String> {
        let micro = self.train.micro_batch().map(|rows| {
            format!(
                "train.micro_batch = {rows}: the encoder's batch norms take their statistics from {rows} images, not from all {}: \
                 a deviation from the published method (loss and expander see the whole batch)",
                self.train.batch_size
            )
        });
        micro.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, sets: &[&str]) -> Result<LoadedRecipe, RecipeError> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        LoadedRecipe::parse(text, Path::new("test.toml"), "test".to_owned(), None, &sets)
    }

    #[test]
    fn an_empty_recipe_is_the_official_one() {
        let loaded = parse("", &[]).unwrap();
        assert_eq!(loaded.recipe, Recipe::default());
        assert_eq!(loaded.recipe.encoder.depth, 50);
        assert_eq!(loaded.recipe.expander.dims, vec![8192, 8192, 8192]);
    }

    #[test]
    fn set_reaches_into_tables_and_arrays() {
        let loaded = parse(
            "[train]\nbatch_size = 4\n[[views.view]]\nflip = 0.5",
            &[
                "train.batch_size=32",
                "feed.workers=3",
                "views.view.0.flip=0.25",
                "data.path=some folder",
            ],
        )
        .unwrap();
        assert_eq!(loaded.recipe.train.batch_size, 32);
        assert_eq!(loaded.recipe.feed.workers, 3);
        assert_eq!(loaded.recipe.views.view[0].flip, 0.25);
        assert_eq!(loaded.recipe.data.path, "some folder");
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        for (text, set, key, expected) in [
            ("[train]\nbatchsize = 4", None, "train.batchsize", "train.batch_size"),
            (
                "[[views.view]]\nflop = 1.0",
                None,
                "views.view.0.flop",
                "views.view.flip",
            ),
            ("", Some("trian.seed=1"), "trian", "train"),
            (
                "",
                Some("batch_size=1"),
                "batch_size",
                "eval.batch_size` or `train.batch_size",
            ),
            (
                "[optimizer]\nbase_lr = 1.0",
                None,
                "optimizer.base_lr",
                "schedule.base_lr",
            ),
        ] {
            let sets: Vec<&str> = set.into_iter().collect();
            match parse(text, &sets).unwrap_err() {
                RecipeError::UnknownKey {
                    key: found,
                    nearest: Some(nearest),
                } => {
                    assert_eq!((found.as_str(), nearest.as_str()), (key, expected));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn problems_are_listed_together() {
        let error = parse("[train]\nbatch_size = 1\n[[views.view]]\nflip = 1.5", &[]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("train.batch_size") && text.contains("flip"), "{text}");
    }

    #[test]
    fn a_wrong_type_is_a_parse_error_with_its_line() {
        let error = parse("[train]\nbatch_size = \"many\"", &[]).unwrap_err();
        let RecipeError::Parse { source, .. } = error else {
            panic!("{error:?}")
        };
        assert!(source.to_string().contains("line 2"), "{source}");
    }

    #[test]
    fn only_identity_keys_count_as_another_run() {
        let old = parse("", &[]).unwrap().recipe;
        let new = parse("", &["feed.workers=9", "train.seed=5", "train.checkpoint_every=7"])
            .unwrap()
            .recipe;
        let changes = identity_changes(&serde_json::to_value(&old).unwrap(), &new);
        assert_eq!(changes.len(), 1, "{changes:?}");
        assert_eq!(changes[0].key, "train.seed");
    }

    #[test]
    fn a_recipe_survives_its_json() {
        // 0.11 as f32, read with one rounding too many, would be another number.
        let recipe = parse("", &["views.mean=[0.11, 0.12, 0.49]", "views.std=[0.242, 0.23, 0.46]"])
            .unwrap()
            .recipe;
        let json = serde_json::to_string(&serde_json::to_value(&recipe).unwrap()).unwrap();
        assert_eq!(identity_changes(&serde_json::from_str(&json).unwrap(), &recipe), []);
    }

    #[test]
    fn the_resolved_recipe_reads_back_as_itself_and_marks_defaults() {
        let loaded = parse("[train]\nbatch_size = 32", &["views.size=32"]).unwrap();
        let text = resolved_toml(&loaded);
        assert!(text.contains("batch_size = 32\n"), "{text}");
        assert!(text.contains("seed = 0 # default"), "{text}");
        let again = parse(&text, &[]).unwrap();
        assert_eq!(again.recipe, loaded.recipe);
    }
}
