//! Sets the revision of the build: `LISTENQ_REVISION` if set, else the commit in `.git`, else
//! `unknown`.

use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=LISTENQ_REVISION");
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/logs/HEAD");
    let revision = env::var("LISTENQ_REVISION").ok().or_else(|| head(Path::new(".git")));
    let revision = revision.unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=LISTENQ_REVISION={revision}");
}

fn head(git: &Path) -> Option<String> {
    let head = fs::read_to_string(git.join("HEAD")).ok()?;
    let commit = match head.trim().strip_prefix("ref: ") {
        Some(reference) => commit_of(git, reference)?,
        None => head.trim().into(),
    };
    commit.get(..12).map(Into::into)
}

fn commit_of(git: &Path, reference: &str) -> Option<String> {
    if let Ok(commit) = fs::read_to_string(git.join(reference)) {
        return Some(commit.trim().into());
    }
    let packed = fs::read_to_string(git.join("packed-refs")).ok()?;
    let line = packed.lines().find(|line| line.ends_with(reference))?;
    line.split(' ').next().map(Into::into)
}
