//! Images in motion: from a data set at rest to full batches of augmented views, in plan order.
//!
//! Start at [`Feed::start`]. Knows no burn type: memory comes from `SlotMemory`.

pub mod blur;
pub mod color;
pub mod crop;
pub mod gauges;
pub mod order;
pub mod reader;
pub mod ring;
pub mod slot;
pub mod sync;
pub mod view;
pub mod worker;

// CONTRACT (kept by the feed's builder; refine names if there is a reason):
//
// pub struct FeedOptions   // `[feed]`, serde + schemars, all operational
//   { workers: u32 (0 = choose), ring: u32 (4), window_places: u32 (3)?, max_bad: BadBudget... }
// pub struct OrderOptions  // `[order]`, identity: { window_mb: u32 (shuffle budget, default 256) }
// pub enum Passes { Shuffled { seed }, Sequential } // Sequential: every sample once, in key order, last batch short, a bad
//                                                     sample leaves its place absent (evaluation); Shuffled: endless epochs.
// pub struct FeedPlan { passes, batch_size: u32, rank: u32, world: u32, views: Vec<view::View>, decode: DecodeOptions, window_bytes: u64, seed: u64 }
// pub struct Feed; impl Feed {
//   pub fn start(dataset: Arc<Dataset>, plan: FeedPlan, options: &FeedOptions, start_step: u64) -> Result<Feed, FeedError>;   // heap slots
//   pub fn start_with(..., memory: impl SlotMemory)
//   pub fn next(&mut self) -> Result<Option<Batch>, FeedError>;   // None only at the end of a Sequential pass
//   pub fn gauges(&self) -> GaugesSnapshot;
// }
// pub struct Batch { step, epoch; fn len(); fn pixels() -> &[u8] ([V, N, H, W, 3]); keys() -> &[SampleKey]; labels() -> &[i64] (-1 none);
//                    present() -> &[bool]; rejects() -> &[Reject] }  // Drop gives the slot back
// pub struct Reject { key: SampleKey, shard: String, path: Option<String>, reason: String, code? }
