//! Files of other programs, made by tools/fixtures/weights.py with PyTorch: read, refused, and computed with.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::PathBuf;

use serde_json::Value;

use super::file::{Entry, Kind, WeightsFile};
use super::foreign::{ImportOptions, Imported, Padding, import_file, renamed};
use super::layout::{Layout, Scheme};
use super::probe::Probe;
use super::{WeightsError, to_safetensors};
use crate::learn::resnet::Stem;

fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("{}/tests/fixtures/weights/{name}", env!("CARGO_MANIFEST_DIR")))
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(path("expected.json")).unwrap()).unwrap()
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap()
}

fn read(bytes: Vec<u8>) -> Result<WeightsFile, WeightsError> {
    WeightsFile::read(Cursor::new(bytes))
}

fn file(name: &str) -> WeightsFile {
    read(bytes(name)).unwrap()
}

/// An error and all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn refused(name: &str) -> (String, Vec<String>) {
    let error = read(bytes(name)).unwrap_err();
    (chain(&error), error.hints())
}

const DROP: ImportOptions = ImportOptions {
    layout: None,
    drop_head: true,
    stem_padding: None,
};

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f64, |largest, v| largest.max(v.abs()));
    for (a, b) in found.iter().zip(expected) {
        let difference = (f64::from(*a) - b).abs() / largest;
        assert!(
            difference < 1e-5,
            "{what}: {a} is not PyTorch's {b} ({difference:e} of the largest)"
        );
    }
}

#[test]
fn every_layout_is_read_whole_and_computes_what_pytorch_does() {
    let networks = expected()["networks"].clone();
    let networks = networks.as_object().unwrap();
    assert_eq!(networks.len(), 7);
    for (name, line) in networks {
        let found = import_file(file(name), &DROP).unwrap();
        let Imported { network, scheme, .. } = &found;
        assert_eq!(scheme.layout.to_string(), line["layout"].as_str().unwrap(), "{name}");
        assert_eq!(u64::from(network.encoder.depth), line["depth"], "{name}");
        assert_eq!(network.encoder.width, line["width"].as_f64().unwrap(), "{name}");
        let padding = network.encoder.stem_convolution().2.padding;
        assert_eq!(padding as u64, line["padding"], "{name}");
        let stem = if line["stem"] == "cifar" {
            Stem::Cifar
        } else {
            Stem::Imagenet
        };
        assert_eq!(network.encoder.stem, stem, "{name}");
        assert!(
            found
                .counts
                .values()
                .all(|&count| count == line["tracked"].as_i64().unwrap())
        );
        let norms = found
            .tensors
            .iter()
            .filter(|t| t.name.ends_with("running_mean"))
            .count();
        assert_eq!(found.counts.len(), norms, "{name}");
        if let Some(expander) = &network.expander {
            let dims: Vec<f64> = expander.dims.iter().map(|&d| d as f64).collect();
            assert_eq!(dims, numbers(&line["dims"]), "{name}");
            assert_eq!(line["hidden_bias"], expander.hidden_bias, "{name}");
            assert_eq!(line["last_bias"], expander.last_bias, "{name}");
        }
        let probe = Probe::run(network, &found.tensors, line["size"].as_u64().unwrap() as usize).unwrap();
        assert_close(&probe.representation, &numbers(&line["representation"]), name);
        assert_eq!(probe.embedding.is_some(), line["embedding"].is_array(), "{name}");
        if let Some(embedding) = &probe.embedding {
            assert_close(embedding, &numbers(&line["embedding"]), name);
        }
    }
}

#[test]
fn what_is_no_weight_is_named() {
    let found = file("official-full.pth");
    assert_eq!(found.under.as_deref(), Some("model"));
    let expected = [("epoch", "1000"), ("optimizer", "dictionary of 2")];
    assert_eq!(
        found.not_read,
        expected.map(|(key, what)| (key.to_owned(), what.to_owned()))
    );
    let found = file("solo-learn.ckpt");
    assert_eq!(found.under.as_deref(), Some("state_dict"));
    let object = found
        .not_read
        .iter()
        .find(|(key, _)| key == "hyper_parameters")
        .unwrap();
    assert_eq!(object.1, "object of __main__.AttributeDict");
    assert_eq!(found.not_read.len(), 7);
}

#[test]
fn the_padding_of_a_small_stem_is_told_by_the_layout_the_user_or_nobody() {
    let with = |name: &str, options: ImportOptions| {
        let found = import_file(file(name), &options).unwrap();
        (found.padding, found.network.encoder.stem_convolution().2.padding)
    };
    assert_eq!(with("solo-learn.ckpt", DROP), (Padding::SoloLearn, 2));
    assert_eq!(with("lightly-cifar.ckpt", DROP), (Padding::Assumed, 1));
    assert_eq!(with("torchvision.pth", DROP), (Padding::Usual, 3));
    let said = |padding| ImportOptions {
        stem_padding: Some(padding),
        ..DROP
    };
    assert_eq!(with("lightly-cifar.ckpt", said(2)), (Padding::Given, 2));
    assert_eq!(with("solo-learn.ckpt", said(1)), (Padding::Given, 1));
    let error = import_file(file("lightly-cifar.ckpt"), &said(3)).unwrap_err();
    assert!(chain(&error).contains("encoder.stem_padding"), "{}", chain(&error));
}

#[test]
fn a_head_is_refused_by_name_or_dropped_by_name() {
    for (name, keys) in [
        ("torchvision.pth", ["fc.weight", "fc.bias"]),
        ("timm.safetensors", ["fc.bias", "fc.weight"]),
        ("solo-learn.ckpt", ["classifier.weight", "classifier.bias"]),
    ] {
        let error = import_file(file(name), &ImportOptions::default()).unwrap_err();
        assert!(
            keys.iter().all(|key| error.to_string().contains(&format!("`{key}`"))),
            "{error}"
        );
        assert!(error.hints()[0].contains("--drop-head"));
        assert_eq!(import_file(file(name), &DROP).unwrap().dropped, keys);
    }
}

/// The error of a file after a change.
fn error_of(name: &str, change: impl FnOnce(&mut Vec<Entry>)) -> String {
    let mut file = file(name);
    change(&mut file.entries);
    chain(&import_file(file, &DROP).unwrap_err())
}

fn entry(name: &str) -> Entry {
    Entry {
        name: name.to_owned(),
        shape: vec![1],
        kind: Kind::F32,
        bytes: vec![0; 4],
    }
}

fn named<'a>(entries: &'a mut [Entry], name: &str) -> &'a mut Entry {
    entries.iter_mut().find(|entry| entry.name == name).unwrap()
}

#[test]
fn every_key_is_used_or_named_as_the_file_names_it() {
    let error = error_of("lightly.ckpt", |entries| entries.push(entry("backbone.9.weight")));
    assert_eq!(error, "the network has no place for `backbone.9.weight`");
    let error = error_of("official-full.pth", |entries| {
        let strangers = (0..9).map(|i| entry(&format!("module.momentum.{i}")));
        entries.extend(strangers.collect::<Vec<_>>());
    });
    assert!(
        (0..9).all(|i| error.contains(&format!("`module.momentum.{i}`"))),
        "{error}"
    );

    let lack = |name: &'static str| move |entries: &mut Vec<Entry>| entries.retain(|entry| entry.name != name);
    let error = error_of("lightly.ckpt", lack("backbone.5.0.downsample.1.running_var"));
    assert_eq!(error, "the weights lack `backbone.5.0.downsample.1.running_var`");
    let error = error_of("official-full.pth", lack("module.projector.4.bias"));
    assert_eq!(error, "the weights lack `module.projector.4.bias`");
    let error = error_of("torchvision.pth", lack("bn1.num_batches_tracked"));
    assert_eq!(error, "the weights lack `bn1.num_batches_tracked`");
    let error = error_of("lightly-cifar.ckpt", |entries| {
        lack("backbone.3.0.shortcut.0.weight")(entries);
        entries.push(entry("backbone.3.0.shortcut.0.bias"));
    });
    assert!(
        error.contains("lack `backbone.3.0.shortcut.0.weight`")
            && error.contains("no place for `backbone.3.0.shortcut.0.bias`"),
        "{error}"
    );
    // A bias in the first hidden layer alone: the second has none.
    let error = error_of("lightly.ckpt", |entries| {
        entries.push(Entry {
            shape: vec![5],
            bytes: vec![0; 20],
            ..entry("projection_head.layers.0.bias")
        });
    });
    assert_eq!(error, "the weights lack `projection_head.layers.3.bias`");
}

#[test]
fn shapes_and_types_that_differ_are_named() {
    let error = error_of("torchvision.pth", |entries| {
        named(entries, "layer3.1.conv2.weight").shape = vec![4, 4, 9, 1];
        named(entries, "layer4.1.bn2.bias").shape = vec![2, 4];
    });
    assert_eq!(
        error,
        "the shape of `layer3.1.conv2.weight` is [4, 4, 9, 1] in the weights, [4, 4, 3, 3] in the network and 1 more"
    );
    let error = error_of("official-full.pth", |entries| {
        named(entries, "module.backbone.bn1.bias").kind = Kind::Other("IntStorage".into());
    });
    assert_eq!(error, "`module.backbone.bn1.bias` holds IntStorage, not floats");
    let error = error_of("solo-learn.ckpt", |entries| {
        named(entries, "backbone.bn1.num_batches_tracked").kind = Kind::F32;
    });
    assert_eq!(
        error,
        "`backbone.bn1.num_batches_tracked` holds F32, not one integer of 64 bits"
    );
}

#[test]
fn other_networks_and_layouts_are_described() {
    let error = error_of("torchvision.pth", |entries| {
        entries.retain(|entry| !entry.name.starts_with("layer4.1."));
    });
    assert!(error.contains("[2, 2, 2, 1] basic blocks"), "{error}");
    let error = error_of("torchvision.pth", |entries| {
        named(entries, "conv1.weight").shape = vec![1, 3, 5, 5];
    });
    assert!(error.contains("[1, 3, 5, 5]"), "{error}");
    let forced = ImportOptions {
        layout: Some(Layout::Lightly),
        ..DROP
    };
    let error = import_file(file("torchvision.pth"), &forced).unwrap_err().to_string();
    assert!(
        error.contains("not the keys of lightly") && error.contains("`conv1.weight`"),
        "{error}"
    );
    let forced = ImportOptions {
        layout: Some(Layout::Timm),
        ..DROP
    };
    assert_eq!(
        import_file(file("timm.safetensors"), &forced).unwrap().scheme.layout,
        Layout::Timm
    );
}

#[test]
fn a_file_without_counts_is_read_and_has_none() {
    let mut older = file("official-full.pth");
    older
        .entries
        .retain(|entry| !entry.name.ends_with("num_batches_tracked"));
    assert!(import_file(older, &DROP).unwrap().counts.is_empty());
}

#[test]
fn all_types_and_strides_are_read_as_pytorch_reads_them() {
    let kinds = expected()["kinds"].clone();
    for name in ["kinds.pth", "kinds-protocol4.pth"] {
        let entries: BTreeMap<String, Entry> = file(name).entries.into_iter().map(|e| (e.name.clone(), e)).collect();
        assert_eq!(entries.len(), kinds.as_object().unwrap().len());
        for (key, line) in kinds.as_object().unwrap() {
            let entry = entries[key].clone();
            let shape: Vec<f64> = entry.shape.iter().map(|&n| n as f64).collect();
            assert_eq!(shape, numbers(&line["shape"]), "{key}");
            if key == "count" {
                assert_eq!(entry.count().unwrap(), 7);
                continue;
            }
            let values = entry.into_tensor(key.clone()).unwrap().values;
            let rounded: Vec<f32> = numbers(&line["values"]).iter().map(|&v| v as f32).collect();
            assert_eq!(values, rounded, "{name}: {key}");
        }
    }
}

#[test]
fn files_that_are_something_else_are_refused_with_a_remedy() {
    let (error, hints) = refused("malicious.pth");
    assert!(
        error.contains("`posix.system`") && hints[0].contains("do not load"),
        "{error} {hints:?}"
    );
    let (error, hints) = refused("legacy.pth");
    assert!(
        error.contains("before version 1.6") && hints[0].contains("torch.save(torch.load(f), f)"),
        "{error} {hints:?}"
    );
    let (error, hints) = refused("module.pth");
    assert!(
        error.contains("object of torch.nn.modules.linear.Linear") && hints[0].contains("model.state_dict()"),
        "{error} {hints:?}"
    );
    let (error, _) = refused("list.pth");
    assert!(error.contains("list of 1"), "{error}");
    let (error, _) = refused("no-tensors.pth");
    assert!(error.contains("`epoch` (3)") && error.contains("`lr` (0.1)"), "{error}");
    let (error, _) = refused("two-dictionaries.pth");
    assert!(
        error.contains("`a` (dictionary of 1), `b` (dictionary of 1)"),
        "{error}"
    );
    let (error, _) = refused("expanded.pth");
    assert!(
        error.contains("`expanded` does not fit its storage of 1 elements"),
        "{error}"
    );
    let kind = file("bool.pth").entries.remove(0);
    assert!(
        kind.into_tensor("flag".into())
            .unwrap_err()
            .to_string()
            .contains("BoolStorage")
    );
    for bytes in [&b""[..], b"<html>404</html>", &[0; 300]] {
        assert!(
            matches!(read(bytes.to_vec()), Err(WeightsError::NoWeights)),
            "{bytes:?}"
        );
    }
}

#[test]
fn a_file_that_is_cut_short_or_damaged_is_refused() {
    let whole = bytes("lightly.ckpt");
    for length in [3, 100, whole.len() / 2, whole.len() - 1] {
        let error = read(whole[..length].to_vec()).unwrap_err();
        assert!(
            chain(&error).contains("cut short or damaged"),
            "{length}: {}",
            chain(&error)
        );
        assert!(error.hints()[0].contains("again"));
    }
    // One bit of an element: the archive's checksum sees it. The last weights stand before the counts of batches.
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    let error = read(damaged).unwrap_err();
    assert!(chain(&error).contains("hecksum"), "{}", chain(&error));
    let cut = bytes("timm.safetensors");
    let error = read(cut[..cut.len() - 1].to_vec()).unwrap_err();
    assert!(matches!(error, WeightsError::Format(_)), "{error}");
}

#[test]
fn any_damage_to_a_file_is_an_answer_and_no_panic() {
    let whole = bytes("kinds.pth");
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        let _ = read(damaged);
    }
}

#[test]
fn an_export_reads_back_as_what_it_was() {
    let official = import_file(file("official-full.pth"), &DROP).unwrap();
    for layout in [Layout::Torchvision, Layout::Timm, Layout::Official] {
        for projector in [true, false] {
            let scheme = Scheme::for_export(layout, projector);
            let (tensors, counts) = renamed(&scheme, &official.tensors, &official.counts);
            let bytes = to_safetensors(&tensors, &BTreeMap::new(), &counts).unwrap();
            let again = import_file(read(bytes).unwrap(), &ImportOptions::default()).unwrap();
            let whole = layout == Layout::Official && projector;
            let kept = |name: &str| whole || name.starts_with("backbone.");
            let mut tensors = official.tensors.clone();
            tensors.retain(|tensor| kept(&tensor.name));
            assert_eq!(again.tensors, tensors, "{layout}");
            let mut counts = official.counts.clone();
            counts.retain(|norm, _| kept(norm));
            assert_eq!(again.counts, counts, "{layout}");
            assert_eq!(again.network.expander.is_some(), whole);
        }
    }
}
