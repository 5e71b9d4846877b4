//! What keys there are: from the options' own schema, so that no list is kept by hand.
//!
//! The schema also says which keys are `operational` (free to change between a run and its resume); all others are
//! the run's identity.

use serde_json::Value;

use super::{Recipe, RecipeError};

/// A key that differs between a run and the recipe that wants to continue it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Dotted key.
    pub key: String,
    /// The run's value, as JSON.
    pub run: String,
    /// The recipe's value, as JSON.
    pub recipe: String,
}

/// The schema of all options, as JSON.
pub(super) fn schema() -> Value {
    schemars::schema_for!(Recipe).to_value()
}

/// Follows `$ref` into the schema's definitions.
pub(super) fn resolve<'a>(root: &'a Value, node: &'a Value) -> &'a Value {
    match node.get("$ref").and_then(Value::as_str) {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap_or(node),
        None => node,
    }
}

/// Refuses the first key of a written table that no options know.
pub(super) fn refuse_unknown(written: &toml::Table) -> Result<(), RecipeError> {
    let root = schema();
    walk(&root, &root, &toml::Value::Table(written.clone()), "", "")
}

/// `path` is the key as the user would write it, `plain` the same without array indices.
fn walk(root: &Value, node: &Value, value: &toml::Value, path: &str, plain: &str) -> Result<(), RecipeError> {
    let node = resolve(root, node);
    match value {
        toml::Value::Table(table) => {
            let Some(known) = node.get("properties").and_then(Value::as_object) else {
                return Ok(());
            };
            for (key, inner) in table {
                let (full, full_plain) = (join(path, key), join(plain, key));
                let Some(next) = known.get(key) else {
                    // The right name in the wrong table is a surer guess than a similar name in this one.
                    let nearest = elsewhere(root, key)
                        .or_else(|| nearest(known.keys().map(String::as_str), key).map(|near| join(plain, near)));
                    return Err(RecipeError::UnknownKey { key: full, nearest });
                };
                walk(root, next, inner, &full, &full_plain)?;
            }
            Ok(())
        }
        toml::Value::Array(items) => {
            let Some(item) = node.get("items") else { return Ok(()) };
            items
                .iter()
                .enumerate()
                .try_for_each(|(index, inner)| walk(root, item, inner, &join(path, &index.to_string()), plain))
        }
        _ => Ok(()),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// The dotted keys of all tables that have exactly this name.
fn elsewhere(root: &Value, key: &str) -> Option<String> {
    let tables = root.get("properties")?.as_object()?;
    let has = |table: &Value| {
        resolve(root, table)
            .get("properties")
            .is_some_and(|keys| keys.get(key).is_some())
    };
    let found: Vec<String> = tables
        .iter()
        .filter(|(_, table)| has(table))
        .map(|(name, _)| join(name, key))
        .collect();
    if found.is_empty() {
        None
    } else {
        Some(found.join("` or `"))
    }
}

/// The known name nearest to `key`, if it is near enough to be what was meant.
fn nearest<'a>(known: impl Iterator<Item = &'a str>, key: &str) -> Option<&'a str> {
    known
        .map(|name| (strsim::jaro_winkler(name, key), name))
        .filter(|(similarity, _)| *similarity > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Puts other data in place of the recipe's; its held-out data go with them.
pub(super) fn replace_data(table: &mut toml::Table, path: &str) {
    let data = table
        .entry("data")
        .or_insert_with(|| toml::Value::Table(toml::Table::new()));
    if let toml::Value::Table(data) = data {
        data.insert("path".to_owned(), path.into());
        data.remove("test");
    }
}

/// Applies one `key=value`. The value is read as TOML, and as a plain string where that fails.
pub(super) fn apply_set(table: &mut toml::Table, text: &str) -> Result<(), RecipeError> {
    let fail = |reason| RecipeError::Set {
        text: text.to_owned(),
        reason,
    };
    let (key, value) = text.split_once('=').ok_or_else(|| fail("there is no `=`"))?;
    let value = format!("x = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| if parsed.len() == 1 { parsed.remove("x") } else { None })
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut parts = key.trim().split('.').peekable();
    let first = parts
        .next()
        .filter(|part| !part.is_empty())
        .ok_or_else(|| fail("the key is empty"))?;
    let mut place = table
        .entry(first)
        .or_insert_with(|| toml::Value::Table(toml::Table::new()));
    for part in parts {
        if part.is_empty() {
            return Err(fail("a part of the key is empty"));
        }
        place = match place {
            toml::Value::Table(inner) => inner
                .entry(part)
                .or_insert_with(|| toml::Value::Table(toml::Table::new())),
            toml::Value::Array(items) => {
                let index: usize = part
                    .parse()
                    .map_err(|_| fail("an array needs an index, counted from 0"))?;
                items
                    .get_mut(index)
                    .ok_or_else(|| fail("the array has no such index"))?
            }
            _ => return Err(fail("the key goes through a value that is not a table")),
        };
    }
    *place = value;
    Ok(())
}

/// Identity keys in which `run` (a recipe as JSON, perhaps of an older version) and `recipe` differ.
pub fn identity_changes(run: &Value, recipe: &Recipe) -> Vec<Change> {
    let json = |recipe: &Recipe| serde_json::to_value(recipe).unwrap_or(Value::Null);
    let new = json(recipe);
    let root = schema();
    let mut changes = Vec::new();
    // A key that the older version did not have: it did what is the default now.
    let mut run = run.clone();
    complete(&mut run, &json(&Recipe::default()));
    compare(&root, &root, &run, &new, "", &mut changes);
    changes
}

/// Puts defaults where keys are missing.
fn complete(value: &mut Value, default: &Value) {
    if let (Some(value), Some(default)) = (value.as_object_mut(), default.as_object()) {
        for (key, default) in default {
            complete(value.entry(key).or_insert_with(|| default.clone()), default);
        }
    }
}

fn compare(root: &Value, node: &Value, run: &Value, new: &Value, path: &str, changes: &mut Vec<Change>) {
    let resolved = resolve(root, node);
    if let (Some(known), Some(run), Some(new)) = (
        resolved.get("properties").and_then(Value::as_object),
        run.as_object(),
        new.as_object(),
    ) {
        for (key, next) in known.iter().filter(|(_, next)| !is_operational(root, next)) {
            let get = |side: &serde_json::Map<String, Value>| side.get(key).cloned().unwrap_or(Value::Null);
            compare(root, next, &get(run), &get(new), &join(path, key), changes);
        }
    } else if run != new {
        changes.push(Change {
            key: path.to_owned(),
            run: run.to_string(),
            recipe: new.to_string(),
        });
    }
}

/// Whether a key may change between a run and its resume.
pub(super) fn is_operational(root: &Value, property: &Value) -> bool {
    let marked = |node: &Value| node.get("x-kind").and_then(Value::as_str) == Some("operational");
    marked(property) || marked(resolve(root, property))
}
