//! Where compiled kernels, and the choices that were timed among them, are kept from run to run.
//!
//! cubecl would put them into a folder `target` above the working directory. A second run on the same GPU then chooses the
//! same kernels without timing them, which also keeps its rounding the same.

use crate::data::sources::shapes::default_cache_dir;
use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use std::sync::Once;

/// Points cubecl to the user's cache folder, once, before it is first used. What a `cubecl.toml` says goes first.
pub(super) fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if CubeClRuntimeConfig::storage().lock().is_some() {
            return; // In use already, with its own settings.
        }
        let folder = || CacheConfig::File(default_cache_dir().join("kernels"));
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        if matches!(config.autotune.cache, CacheConfig::Target) {
            config.autotune.cache = folder();
        }
        config.compilation.cache.get_or_insert_with(folder);
        CubeClRuntimeConfig::set(config);
    });
}
