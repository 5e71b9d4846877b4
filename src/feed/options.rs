//! What the user may set about order and feed, and the plan that the recipe resolves it to.
//!
//! In: `[order]` and `[feed]` as written. Out: [`FeedPlan`], pure data without I/O.
//! Invariant: what changes a pixel or its place is in [`FeedPlan`] (identity); [`FeedOptions`] never changes either.

use super::view::View;
use crate::data::DecodeOptions;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[order]`: in which order the samples come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OrderOptions {
    /// Shuffle budget, MiB: encoded images held at once. A data set that fits is shuffled as a whole; a larger one in
    /// windows of a third of it, since three are held. Default 256.
    pub window_mb: u32,
}

impl Default for OrderOptions {
    fn default() -> Self {
        Self { window_mb: 256 }
    }
}

impl OrderOptions {
    /// The shuffle budget in bytes, as [`FeedPlan::window_bytes`] wants it.
    pub fn window_bytes(&self) -> u64 {
        u64::from(self.window_mb) << 20
    }
}

/// `[feed]`: how the images are brought to the trainer. Nothing here changes a pixel, nor its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FeedOptions {
    /// Threads that decode and augment; 0 takes one a core, where the trainer computes on the cores as well: fewer would load them
    /// unevenly, and all wait for the slowest.
    #[schemars(extend("x-kind" = "operational"))]
    pub workers: u32,
    /// Batches under way, in slots; at least 2. A slot is views x batch x side x side x 3 bytes. Default 4.
    #[schemars(extend("x-kind" = "operational"))]
    pub ring: u32,
    /// Largest share of undecodable images among those tried, 0 to 1; it is judged once 1000 images (or the whole data
    /// set, if smaller) have been tried. Default 0.01.
    #[schemars(extend("x-kind" = "operational"))]
    pub max_bad_fraction: f64,
    /// Largest number of different undecodable images in a run. Default: no limit.
    #[schemars(extend("x-kind" = "operational"))]
    pub max_bad: Option<u64>,
}

impl Default for FeedOptions {
    fn default() -> Self {
        Self {
            workers: 0,
            ring: 4,
            max_bad_fraction: 0.01,
            max_bad: None,
        }
    }
}

/// How often and in which order the samples of the data set come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Epoch after epoch without end, each in an order of its own; full batches only; bad samples are replaced.
    Shuffled {
        /// Key of the order.
        seed: u64,
    },
    /// Every sample once, in key order; the last batch is short and a bad sample leaves its place absent.
    Sequential,
}

/// What the feed shall make: a pure function of it and of the data set gives every byte of every batch.
#[derive(Clone, Debug)]
pub struct FeedPlan {
    /// Order of the samples.
    pub passes: Passes,
    /// Samples in a global batch, over all ranks.
    pub batch_size: u32,
    /// This process among `world`: it gets the rank-th slice of each global batch.
    pub rank: u32,
    /// Number of processes; it divides `batch_size`.
    pub world: u32,
    /// What is made of each image: 1 to 255 views of one size.
    pub views: Vec<View>,
    /// What may be decoded.
    pub decode: DecodeOptions,
    /// Shuffle budget in bytes ([`OrderOptions::window_bytes`]).
    pub window_bytes: u64,
    /// Key of the views' draws.
    pub seed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_and_kinds_are_in_the_schema() {
        assert!(toml::from_str::<FeedOptions>("worker = 3").is_err());
        assert_eq!(toml::from_str::<FeedOptions>("workers = 3").unwrap().workers, 3);
        let schema = serde_json::to_value(schemars::schema_for!(FeedOptions)).unwrap();
        for (name, field) in schema["properties"].as_object().unwrap() {
            assert_eq!(field["x-kind"], "operational", "{name}");
        }
        let schema = serde_json::to_value(schemars::schema_for!(OrderOptions)).unwrap();
        assert!(schema["properties"]["window_mb"]["x-kind"].is_null());
    }
}
