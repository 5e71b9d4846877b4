//! The recipes that we ship: they parse, they mean what the references publish, and their reference page is true.

mod common;

use common::World;

fn shipped(name: &str) -> String {
    format!("{}/pipelines/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_recipe_is_valid() {
    let world = World::new();
    for recipe in ["smoke.toml", "cifar10.toml", "cifar10-cpu.toml", "imagenet-100ep.toml"] {
        let resolved = world.ok(&["recipe", "show", &shipped(recipe)]);
        std::fs::write(world.path("again.toml"), &resolved).unwrap();
        // What was resolved is a recipe itself, and means the same.
        let strip = |text: &str| text.replace(" # default", "");
        assert_eq!(strip(&world.ok(&["recipe", "show", "again.toml"])), strip(&resolved), "{recipe}");
    }
}

#[test]
fn the_reference_page_is_true() {
    let page = World::new().ok(&["recipe", "reference"]);
    let path = shipped("REFERENCE.md");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(committed == page, "pipelines/REFERENCE.md is stale: run `UPDATE_REFERENCE=1 cargo test --test pipelines`");
}

#[test]
fn every_key_has_a_meaning() {
    for line in World::new().ok(&["recipe", "reference"]).lines().filter(|line| line.starts_with("| `")) {
        let meaning = line.split(" | ").nth(2).unwrap_or_default();
        assert!(meaning.trim_end_matches(" |").len() > 10, "no meaning: {line}");
    }
}
