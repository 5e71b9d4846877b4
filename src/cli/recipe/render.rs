//! Recipes as text: the resolved `recipe.toml` of a run folder, and the reference page of all keys.

use std::fmt::Write as _;

use serde_json::Value;

use super::LoadedRecipe;
use super::keys::{is_operational, resolve, schema};

/// The resolved recipe as TOML; every key that the user did not write is marked `# default`.
pub fn resolved_toml(loaded: &LoadedRecipe) -> String {
    let resolved = toml::Table::try_from(&loaded.recipe).unwrap_or_default();
    let mut text = String::from("# Resolved by vicreg-stream: every key with the value that was used.\n");
    table_lines(&mut text, &resolved, Some(&loaded.written), "");
    text
}

/// Plain values first, then sub-tables, as TOML wants them.
fn table_lines(text: &mut String, resolved: &toml::Table, written: Option<&toml::Table>, path: &str) {
    for (key, value) in resolved.iter().filter(|(_, value)| !is_tables(value)) {
        let mark = if written.is_some_and(|table| table.contains_key(key)) {
            ""
        } else {
            " # default"
        };
        let _ = writeln!(text, "{key} = {value}{mark}");
    }
    for (key, value) in resolved.iter().filter(|(_, value)| is_tables(value)) {
        let full = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        let inner = written.and_then(|table| table.get(key));
        match value {
            toml::Value::Table(table) => {
                let _ = writeln!(text, "\n[{full}]");
                table_lines(text, table, inner.and_then(toml::Value::as_table), &full);
            }
            toml::Value::Array(items) => {
                for (index, item) in items.iter().filter_map(toml::Value::as_table).enumerate() {
                    let _ = writeln!(text, "\n[[{full}]]");
                    let written = inner.and_then(toml::Value::as_array).and_then(|all| all.get(index));
                    table_lines(text, item, written.and_then(toml::Value::as_table), &full);
                }
            }
            _ => {}
        }
    }
}

fn is_tables(value: &toml::Value) -> bool {
    match value {
        toml::Value::Table(_) => true,
        toml::Value::Array(items) => items.first().is_some_and(toml::Value::is_table),
        _ => false,
    }
}

/// The reference page (Markdown), made from the options' doc comments and defaults.
pub fn reference_page() -> String {
    let root = schema();
    let mut page = String::from(
        "# Recipe reference\n\nGenerated from the doc comments of the options by `vicreg-stream recipe reference`; a test \
         holds it true.\nUnknown keys are refused. Every key can be changed on the command line with `--set table.key=value`.\n\
         Keys marked **op** are operational: they may change between a run and its resume. All others are the run's identity.\n",
    );
    let tables = root.get("properties").and_then(Value::as_object).into_iter().flatten();
    for (name, node) in tables {
        section(&mut page, &root, name, node, false);
    }
    page
}

fn section(page: &mut String, root: &Value, name: &str, node: &Value, array: bool) {
    let inner = resolve(root, node);
    let heading = if array {
        format!("[[{name}]]")
    } else {
        format!("[{name}]")
    };
    let _ = writeln!(page, "\n## `{heading}`\n");
    let about = node
        .get("description")
        .or_else(|| inner.get("description"))
        .and_then(Value::as_str);
    let _ = writeln!(page, "{}\n", one_line(about.unwrap_or_default()));
    let _ = writeln!(page, "| key | default | meaning |\n|---|---|---|");
    let Some(properties) = inner.get("properties").and_then(Value::as_object) else {
        return;
    };
    let mut nested = Vec::new();
    for (key, property) in properties {
        let items = property.get("items").map(|items| resolve(root, items));
        if items.is_some_and(|items| items.get("properties").is_some()) {
            nested.push((format!("{name}.{key}"), property.get("items").unwrap_or(property)));
        }
        let meaning = property.get("description").and_then(Value::as_str).unwrap_or_default();
        let choices = choices(root, property);
        let mark = if is_operational(root, property) || is_operational(root, node) {
            "**op** "
        } else {
            ""
        };
        let _ = writeln!(
            page,
            "| `{key}` | {} | {mark}{}{choices} |",
            default_of(property),
            one_line(meaning)
        );
    }
    for (full, items) in nested {
        section(page, root, &full, items, true);
    }
}

fn default_of(property: &Value) -> String {
    match property.get("default") {
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_object) => "below".to_owned(),
        Some(value) => format!("`{value}`"),
    }
}

/// The names of an enumeration, where a key has one, with their meanings.
fn choices(root: &Value, property: &Value) -> String {
    let candidates = [Some(property), property.get("items"), property.pointer("/anyOf/0")];
    let variants = candidates
        .into_iter()
        .flatten()
        .find_map(|node| resolve(root, node).get("oneOf")?.as_array());
    let Some(variants) = variants else { return String::new() };
    let names: Vec<String> = variants
        .iter()
        .filter_map(|variant| {
            let name = variant.get("const").and_then(Value::as_str)?;
            let about = variant.get("description").and_then(Value::as_str).unwrap_or_default();
            Some(format!("`{name}`: {}", one_line(about).trim_end_matches('.')))
        })
        .collect();
    if names.is_empty() {
        String::new()
    } else {
        format!(" Choices: {}.", names.join("; "))
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}
