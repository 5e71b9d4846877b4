//! Every dependency's licence is one that MIT OR Apache-2.0 programs may ship with. Needs no network.

use std::process::Command;

const ALLOWED: [&str; 16] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "BSL-1.0",
    "CC0-1.0",
    "Unicode-3.0",
    "Unlicense",
    "CDLA-Permissive-2.0",
    "IJG",
    "MPL-2.0", // copyleft by file: it binds changes to its own files only
];

/// Whether an SPDX expression can be satisfied by allowed licences: each `AND` part needs one allowed `OR` alternative.
fn allowed(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], "").replace('/', " OR ");
    plain
        .split(" AND ")
        .all(|part| part.split(" OR ").any(|licence| ALLOWED.contains(&licence.trim())))
}

/// Packages that the default build links, with their licences.
fn linked() -> Vec<(String, String)> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}|{l}",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        line.trim_end_matches(" (*)")
            .split_once('|')
            .map(|(p, l)| (p.to_owned(), l.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

#[test]
fn what_is_linked_has_allowed_licences() {
    let packages = linked();
    assert!(packages.len() > 100);
    for (package, licence) in packages {
        assert!(allowed(&licence), "{package} has licence `{licence}`");
    }
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    assert!(allowed("MIT OR Apache-2.0") && allowed("MIT/Apache-2.0") && allowed("GPL-3.0 OR MIT"));
    assert!(allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
    assert!(!allowed("GPL-3.0") && !allowed("MIT AND GPL-3.0") && !allowed("none"));
}
