//! Tests the language of the repository: retired words and constructions must not return.
//!
//! A line that needs one of the words with another meaning is listed as an exception, with its
//! reason.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// Retired words as regular expressions, a line that contains the word, and what to write instead.
const RETIRED: &[(&str, &str, &str)] = &[
    (r"(?i)\bblam(e|es|ed|ing)\b", "overflows blamed on it", "attribute"),
    (r"(?i)\bcharg(e|es|ed|ing)\b", "it is charged with drops", "attribute"),
    (r"(?i)\btells?\b", "the metric tells", "reports, shows, contains"),
    (r"(?i)\b(is|are|was|were|be|been|unless) told\b", "it is told of it", "is given, receives"),
    (r"(?i)\btakes? (all privileges|away)\b", "takes all privileges", "drops, disables"),
    (r"(?i)\bwhoever\b", "whoever scrapes", "anyone who, clients, users"),
    (r"(?i)\b(and|by|for|of|to|from|than|when|where|whether) who\b", "by who", "a noun"),
    (r"(?i)\b(nobody|somebody)\b", "nobody waits", "no client, no process, a user"),
    (r"(?i)\banew\b", "starts anew", "again"),
    (r"(?i)\bonce more\b", "asks once more", "again"),
    (r"(?i)\bany ?more\b", "not any more", "no longer"),
    (r"(?i)\bso many\b", "after so many", "the number"),
    (r"(?i), of these\b", "6,900, of these 12", "the noun"),
    (r"(?i)\bturns? the handle\b", "turns the handle", "runs"),
    (r"(?i)\b(hears?|heard)\b", "hears nothing", "receives, gets"),
    (r"(?i)\bwants?\b", "wants a password", "needs, requires"),
    (r"\bPATIENCE\b", "within(PATIENCE)", "TIMEOUT: patience is the wait of a client"),
    (r"\bMOST\b", "const MOST", "a name with MAX"),
    (r"(?i)\b(lately|of late|by then)\b", "at most 130 lately", "within the last N s"),
    (r"(?i)\btime-outs?\b", "a time-out", "timeout"),
    (r"(?i)\bin force\b", "the limit in force", "effective, current"),
    (r"(?i)\btaken over\b", "the file is taken over", "applied"),
    (r"\bGONE\b", "WAIT GONE", "ABANDONED"),
];

/// Lines that may contain a retired word: the path, a part of the line, and the reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("LICENSE", "charge", "the text of the licence"),
    ("deploy/systemd/listenq.service", "Wants=", "a setting of systemd"),
    ("tests/language.rs", "\"", "the list of retired words"),
    ("tests/agreement.rs", "`nobody`", "the user account"),
    ("tests/lab/src/web.rs", "user = nobody", "the user account"),
    ("tests/lab/tests/programs.rs", "`nobody`", "the user account"),
    ("tests/owners.rs", "`nobody`", "the user account"),
    ("tests/owners.rs", "user = nobody", "the user account"),
    ("tests/release/packages.sh", "wants", "systemd enables units in directories named .wants"),
    ("tests/servers/programs.rs", "-u nobody", "the user account"),
    ("tests/servers/programs.rs", "user = nobody", "the user account"),
];

/// Directories without text written for this project.
const FOREIGN: [&str; 6] = [".git", "build", "dist", "node_modules", "seeds", "target"];

/// Extensions of generated files.
const GENERATED: [&str; 5] = ["json", "lock", "png", "svg", "log"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a directory, relative to the root of the repository.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(directory)).unwrap().map(|entry| entry.unwrap());
    let inside = entries.flat_map(|entry| {
        let path = directory.join(entry.file_name());
        let is_foreign = FOREIGN.iter().any(|name| entry.file_name() == *name);
        match entry.file_type().unwrap() {
            kind if kind.is_dir() && is_foreign => Vec::new(),
            kind if kind.is_dir() => files(&path),
            kind if kind.is_file() => vec![path],
            _ => Vec::new(),
        }
    });
    inside.collect()
}

/// The lines of every text file, with their paths and line numbers.
fn lines() -> Vec<(String, usize, String)> {
    let is_written =
        |path: &PathBuf| !GENERATED.iter().any(|end| path.extension().is_some_and(|e| e == *end));
    let paths = files(Path::new("")).into_iter().filter(is_written);
    let texts = paths.filter_map(|path| {
        let text = fs::read_to_string(root().join(&path)).ok()?;
        Some((path.display().to_string(), text))
    });
    let numbered = texts.flat_map(|(path, text)| {
        let lines = text.lines().map(str::to_owned).collect::<Vec<_>>().into_iter().enumerate();
        lines.map(move |(number, line)| (path.clone(), number + 1, line))
    });
    numbered.collect()
}

fn retired() -> Vec<(Regex, &'static str)> {
    RETIRED.iter().map(|(word, _, instead)| (Regex::new(word).unwrap(), *instead)).collect()
}

/// The index of the exception that allows a line.
fn exception(path: &str, line: &str) -> Option<usize> {
    EXCEPTIONS.iter().position(|(place, part, _)| path == *place && line.contains(part))
}

#[test]
fn every_retired_word_is_found_in_its_example() {
    for (word, example, _) in RETIRED {
        assert!(Regex::new(word).unwrap().is_match(example), "{word}: {example}");
    }
}

#[test]
fn no_retired_word_is_used() {
    let retired = retired();
    let mut found = Vec::new();
    let mut used = BTreeSet::new();
    for (path, number, line) in lines() {
        for (word, instead) in retired.iter().filter(|(word, _)| word.is_match(&line)) {
            match exception(&path, &line) {
                Some(place) => used.extend([place]),
                None => found.push(format!("{path}:{number}: {word} -> {instead}: {line}")),
            }
        }
    }
    assert!(found.is_empty(), "{}\n{} lines", found.join("\n"), found.len());
    assert_eq!(used, (0..EXCEPTIONS.len()).collect(), "an exception is not needed");
}
