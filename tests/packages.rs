//! Checks the packages without a build: their files exist, and their manifests agree.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use listenq::cli::Cli;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::tool::feed;
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The directory of files that `deploy/build.sh` creates before it packs.
const MADE: &str = "target/package/";

/// Source and destination of each file in a package; a destination has no leading slash.
fn assets(kind: &str) -> Vec<(String, String)> {
    let args = ["metadata", "--no-deps", "--locked", "--format-version", "1"];
    let (metadata, _) = feed(env!("CARGO"), &args, b"");
    let metadata: Value = serde_json::from_slice(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let listenq = packages.iter().find(|package| package["name"] == "listenq").unwrap();
    let listed = listenq["metadata"][kind]["assets"].as_array().unwrap().iter();
    let pair = |source: &Value, to: &Value| {
        (source.as_str().unwrap().into(), to.as_str().unwrap().trim_start_matches('/').into())
    };
    let assets = listed.map(|asset| match asset.as_array() {
        Some(columns) => pair(&columns[0], &columns[1]),
        None => pair(&asset["source"], &asset["dest"]),
    });
    assets.collect()
}

/// The files that match a source with at most one `*` in its last component.
fn meant(source: &str) -> Vec<PathBuf> {
    let path = Path::new(ROOT).join(source);
    let Some((before, after)) = source.rsplit('/').next().unwrap().split_once('*') else {
        return vec![path].into_iter().filter(|path| path.is_file()).collect();
    };
    let entries = fs::read_dir(path.parent().unwrap()).into_iter().flatten().flatten();
    let fits = |name: &str| name.starts_with(before) && name.ends_with(after);
    let found = entries.filter(|entry| entry.file_name().to_str().is_some_and(fits));
    found.map(|entry| entry.path()).collect()
}

/// The environment variable and the long name of every flag, including flags of commands.
fn flags() -> (BTreeSet<String>, BTreeSet<String>) {
    let command = Cli::command();
    let of_commands = command.get_subcommands().flat_map(|command| command.get_arguments());
    let arguments: Vec<_> = command.get_arguments().chain(of_commands).collect();
    let names = |name: &dyn Fn(&clap::Arg) -> Option<String>| {
        arguments.iter().filter_map(|argument| name(argument)).collect()
    };
    (
        names(&|argument| argument.get_env().map(|name| name.to_string_lossy().into_owned())),
        names(&|argument| argument.get_long().map(|name| format!("--{name}"))),
    )
}

#[test]
fn every_file_that_a_package_takes_is_there() {
    for kind in ["deb", "generate-rpm"] {
        let sources = assets(kind).into_iter().map(|(source, _)| source);
        let lost = sources.filter(|source| !source.starts_with(MADE) && meant(source).is_empty());
        assert_eq!(lost.collect::<Vec<_>>(), Vec::<String>::new(), "{kind}");
    }
}

#[test]
fn both_packages_install_the_same_files_at_the_same_paths() {
    // Without documents, and without files that differ between the two kinds of systems.
    let shared = |kind| -> BTreeSet<_> {
        let differs =
            ["doc/", "licenses/", "lintian/", "zsh/"].map(|name| format!("usr/share/{name}"));
        let assets = assets(kind).into_iter();
        assets
            .filter(|(_, to)| !differs.iter().any(|prefix| to.starts_with(prefix.as_str())))
            .collect()
    };
    assert_eq!(shared("deb"), shared("generate-rpm"));
}

#[test]
fn manual_and_completions_contain_every_flag_and_command() {
    let folder = Rootfs::new();
    let to = folder.path().to_str().unwrap();
    let args = ["run", "--quiet", "--locked", "--example", "manual", "--", to];
    let (_, written) = feed(env!("CARGO"), &args, b"");
    assert!(written.status.success(), "{}", written.stderr);
    let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap().replace('\\', "");

    let command = Cli::command();
    let mut expected: BTreeSet<String> = command
        .get_subcommands()
        .map(|command| format!("listenq-{}.1", command.get_name()))
        .chain(["listenq.1".into()])
        .collect();
    let pages: String = expected.iter().map(|name| text(name)).collect();
    expected.extend(["_listenq", "listenq.bash", "listenq.fish"].map(String::from));
    let made = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(made.map(|name| name.into_string().unwrap()).collect::<BTreeSet<_>>(), expected);

    let (variables, flags) = flags();
    let missing = |names: &BTreeSet<String>, text: &str| -> Vec<String> {
        names.iter().filter(|name| !text.contains(name.as_str())).cloned().collect()
    };
    let none = Vec::<String>::new();
    assert_eq!(missing(&variables, &pages), none, "variables in the manual");
    assert_eq!(missing(&flags, &pages), none, "flags in the manual");
    assert_eq!(missing(&flags, &text("listenq.bash")), none, "flags in bash");
    assert_eq!(missing(&flags, &text("_listenq")), none, "flags in zsh");
}

#[test]
fn the_service_reads_the_default_file_with_valid_variables() {
    let path = "etc/default/listenq";
    let (source, _) = assets("deb").into_iter().find(|(_, to)| to == path).unwrap();
    let unit = fs::read_to_string(Path::new(ROOT).join("deploy/systemd/listenq.service")).unwrap();
    assert!(unit.lines().any(|line| line == format!("EnvironmentFile=-/{path}")), "{unit}");
    let default = fs::read_to_string(Path::new(ROOT).join(source)).unwrap();
    let named: BTreeSet<_> = default
        .lines()
        .filter_map(|line| line.trim_start_matches('#').split_once('='))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.starts_with("LISTENQ_"))
        .collect();
    let (variables, _) = flags();
    assert!(!named.is_empty());
    assert_eq!(named.difference(&variables).collect::<Vec<_>>(), Vec::<&String>::new());
}
