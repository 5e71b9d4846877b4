//! Our shard format, and the `huggingface` schema metadata that it shares with others.

use parquet::arrow::parquet_to_arrow_schema;
use parquet::file::metadata::ParquetMetaData;
use serde_json::Value;

/// Key of the schema metadata that the `datasets` library writes.
const HUGGINGFACE: &str = "huggingface";

/// Class names of column `label`, from the `huggingface` metadata; `None` where there are none.
pub fn hf_label_names(metadata: &ParquetMetaData, label: &str) -> Option<Vec<String>> {
    let file = metadata.file_metadata();
    let pairs = file.key_value_metadata()?;
    let plain = pairs
        .iter()
        .find(|pair| pair.key == HUGGINGFACE)
        .and_then(|pair| pair.value.clone());
    // Some writers keep it only inside the serialised Arrow schema.
    let text = plain.or_else(|| {
        let schema = parquet_to_arrow_schema(file.schema_descr(), Some(pairs)).ok()?;
        schema.metadata().get(HUGGINGFACE).cloned()
    })?;
    let info: Value = serde_json::from_str(&text).ok()?;
    match &info["info"]["features"][label]["names"] {
        Value::Array(names) => names.iter().map(|n| n.as_str().map(str::to_owned)).collect(),
        // The older form: an object from "0", "1", ... to names.
        Value::Object(names) => (0..names.len())
            .map(|i| names.get(&i.to_string())?.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    }
}
