//! `[data]`: which images a recipe trains on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Columns;

/// `[data]`: which images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataOptions {
    /// Folder of Parquet shards (or one shard) in the Hugging Face image layout, or `synthetic:shapes` (made once into a cache
    /// folder). `--data` overrides it. Free to move: a run is tied to its data by their fingerprint.
    #[schemars(extend("x-kind" = "operational"))]
    pub path: String,
    /// Folder (or shard) with held-out images for evaluation. Without it: the shards of `path` named `test` or `validation` (as Hugging
    /// Face names splits; training leaves them out), else one image in five, by a hash of the sample key.
    #[schemars(extend("x-kind" = "operational"))]
    pub test: Option<String>,
    /// Column with the image: struct<bytes, path> or plain binary.
    pub image_column: String,
    /// Column with the integer label; it is used for evaluation only and may be absent.
    pub label_column: String,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            path: "synthetic:shapes".to_owned(),
            test: None,
            image_column: "image".to_owned(),
            label_column: "label".to_owned(),
        }
    }
}

impl DataOptions {
    /// The columns to read.
    pub fn columns(&self) -> Columns {
        Columns {
            image: self.image_column.clone(),
            label: self.label_column.clone(),
        }
    }
}
