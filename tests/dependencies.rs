//! Tests the tables of dependencies in CONTRIBUTING.md: they contain each crate of the manifests
//! with a reason, and no other crate.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The names under one heading of a manifest.
fn named(manifest: &str, heading: &str) -> BTreeSet<String> {
    let text = read(manifest);
    let below = text.lines().skip_while(|line| *line != heading).skip(1);
    let entries = below.take_while(|line| !line.starts_with('['));
    let names = entries.filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()));
    let names: BTreeSet<String> = names.collect();
    assert!(names.len() > 3, "{manifest} has no {heading}");
    names
}

/// The crates of each table below the heading "Dependencies". Checks that each row has a reason.
fn tables() -> Vec<BTreeSet<String>> {
    let text = read("CONTRIBUTING.md");
    let (_, below) = text.split_once("\n## Dependencies\n").unwrap();
    let mut tables = Vec::new();
    for line in below.lines().filter(|line| line.starts_with("| ")) {
        let [crates, reason] =
            line.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>()[..]
        else {
            panic!("{line}");
        };
        if crates == "crate" {
            tables.push(BTreeSet::new());
            continue;
        }
        assert!(!reason.is_empty(), "{line}");
        for name in crates.split(", ") {
            let is_new = tables.last_mut().unwrap().insert(name.to_owned());
            assert!(is_new, "{name} is listed twice");
        }
    }
    tables
}

#[test]
fn every_dependency_has_its_reason() {
    let shipped = named("Cargo.toml", "[dependencies]");
    let mut tested = named("Cargo.toml", "[dev-dependencies]");
    tested.extend(named("tests/lab/Cargo.toml", "[dependencies]"));
    let only_tested = &tested - &shipped;
    assert_eq!(tables(), [shipped, only_tested]);
}
