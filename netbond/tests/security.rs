//! `docs/security.md` beside what it speaks of.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const DOCUMENT: &str = include_str!("../../docs/security.md");
const UNIT: &str = include_str!("../../packaging/debian/netbond.service");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The rows of the table under a heading, cell by cell.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, section) = DOCUMENT.split_once(heading).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|'));
    let cells = |row: &'static str| row.trim_matches('|').split('|').map(str::trim).collect();
    rows.skip(2).map(cells).collect()
}

/// Uses of `unsafe` in a source: blocks, functions and implementations; no attributes, comments or names.
fn uses(source: &str) -> usize {
    const WORD: &str = "unsafe";
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let code = source.lines().filter_map(|line| line.split("//").next());
    let in_line = |line: &str| {
        let stands_alone = |&(at, _): &(usize, &str)| {
            let after = &line[at + WORD.len()..];
            !line[..at].ends_with(is_part) && !after.starts_with(is_part) && !after.starts_with('(')
        };
        line.match_indices(WORD).filter(stands_alone).count()
    };
    code.map(in_line).sum()
}

/// Sources below a directory that use it, and how often.
fn find(directory: &Path, found: &mut BTreeMap<String, usize>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") {
                find(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            // This file has the word in its text.
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            let count = uses(&fs::read_to_string(&path).unwrap());
            if count > 0 && name != "netbond/tests/security.rs" {
                found.insert(name, count);
            }
        }
    }
}

#[test]
fn unsafe_code_is_where_the_document_says() {
    let mut found = BTreeMap::new();
    for member in [
        "netbond",
        "netbond-common",
        "netbond-ebpf",
        "netbond-lab",
        "xtask",
        "fuzz",
    ] {
        find(&root().join(member), &mut found);
    }
    let told: BTreeMap<String, usize> = table("## Unsafe code")
        .into_iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), row[1].parse().unwrap()))
        .collect();
    assert_eq!(
        found, told,
        "docs/security.md, \"Unsafe code\": correct the table, or the code"
    );
}

#[test]
fn capabilities_are_those_of_the_unit() {
    let bounding = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let given: BTreeSet<&str> = bounding.unwrap().split_whitespace().collect();
    let told: BTreeSet<&str> = table("## Privileges")
        .into_iter()
        .map(|row| row[0])
        .collect();
    assert_eq!(told, given);
}

/// Each file that it names is there.
#[test]
fn every_file_it_names_exists() {
    let named = DOCUMENT.split('`').skip(1).step_by(2);
    let files: Vec<&str> = named
        .filter(|name| {
            name.starts_with("netbond") && name.contains('/') && !name.contains(['{', ' '])
        })
        .collect();
    assert!(files.len() > 20, "{files:?}");
    for file in files {
        assert!(root().join(file).exists(), "{file}");
    }
}

#[test]
fn every_fuzz_target_is_told() {
    for entry in fs::read_dir(root().join("fuzz/fuzz_targets")).unwrap() {
        let path = entry.unwrap().path();
        let target = path.file_stem().unwrap().to_str().unwrap();
        let told = table("## Input of others")
            .iter()
            .any(|row| row[2].contains(target));
        assert!(told, "{target}");
    }
}

#[test]
fn uses_are_told_from_words() {
    let source =
        "// unsafe\n#[unsafe(no_mangle)]\nunsafe fn a() {} let unsafe_too = unsafe { b() };";
    assert_eq!(uses(source), 2);
}
