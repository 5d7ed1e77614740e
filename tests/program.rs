//! Tests listenq as a program: exit codes, the error in one line, environment, version, log.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use listenq_lab::Signal;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Launch, Output};
use listenq_lab::metrics::Metrics;
use listenq_lab::netns::Netns;
use listenq_lab::tool::{feed, require_tool};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const USAGE: i32 = 64;

/// Checks that the program ended with this code and printed exactly one line, which contains all
/// these words.
#[track_caller]
fn assert_one_line(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}", output.stderr);
    assert_eq!(output.stderr.trim_end().lines().count(), 1, "{}", output.stderr);
    for word in words {
        assert!(output.stderr.contains(word), "no {word:?} in {:?}", output.stderr);
    }
    assert_eq!(output.stdout, "");
}

fn run(args: &[&str]) -> Output {
    Launch::new(BIN).args(args).run()
}

#[test]
fn a_port_in_use_is_one_line_that_names_it() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("in-use");
    let taken = ns.run(|| Listen::tcp("127.0.0.1:0").open());
    let flag = format!("--web.listen-address={}", taken.addr());
    let output = Launch::new(BIN).args(&[&flag]).inside(&ns).run();
    assert_one_line(&output, 1, &[&taken.addr().to_string(), "in use"]);
}

#[test]
fn wrong_usage_is_one_line_that_names_flag_and_value() {
    for (args, words) in [
        (vec!["--sample.interval=fast"], vec!["--sample.interval", "fast"]),
        (vec!["--sample.interval=0s"], vec!["--sample.interval", "0s", "10ms"]),
        (vec!["--no-such-flag"], vec!["--no-such-flag"]),
        (vec!["--web.listen-address=localhost:80"], vec!["--web.listen-address", "localhost:80"]),
        (vec!["--log.format=xml"], vec!["--log.format", "xml"]),
        (vec!["no-such-command"], vec!["no-such-command"]),
        (vec!["list", "--no-such-flag"], vec!["--no-such-flag"]),
        (
            vec!["list", "--url=ftp://web1:19511"],
            vec!["--url", "web1", "does not begin with http:// or https://"],
        ),
        (vec!["list", "--url=http://web1:99999"], vec!["--url", "\"99999\" is not a port"]),
        (vec!["explain", "80", "443"], vec!["443"]),
        (vec!["check-web-config"], vec!["<FILE> is missing"]),
        (vec!["--netns"], vec!["--netns <WHICH>", "none was supplied: all or own"]),
        (vec!["--netns=some"], vec!["--netns <WHICH>", "'some'", ": not all or own"]),
        (vec!["--listener.max=x"], vec!["--listener.max", "'x'", "invalid digit"]),
        (vec!["explain", "--for=0s"], vec!["--for", "0s", "1s"]),
    ] {
        assert_one_line(&run(&args), USAGE, &words);
    }
}

#[test]
fn a_password_is_in_no_error() {
    for url in ["http://me:secret@web1:0", "http://me:sec/secret@web1", "me:secret@web1"] {
        let output = run(&["list", "--url", url]);
        assert_one_line(&output, USAGE, &["--url", "me:***@web1"]);
        assert!(!output.stderr.contains("sec"), "{}", output.stderr);
        let output = Launch::new(BIN).args(&["list"]).env("LISTENQ_URL", url).run();
        assert_one_line(
            &output,
            USAGE,
            &["me:***@web1", " (from LISTENQ_URL; see listenq --help)"],
        );
        assert!(!output.stderr.contains("sec"), "{}", output.stderr);
    }
}

#[test]
fn an_unreadable_procfs_is_one_line_that_names_it() {
    for args in [
        &["--web.listen-address=127.0.0.1:0"][..],
        &["list", "--url=none"],
        &["explain", "--url=none"],
        &["metrics"],
    ] {
        let args = [args, &["--path.procfs=/nowhere/proc"]].concat();
        assert_one_line(&run(&args), 1, &["/nowhere/proc", "--path.procfs"]);
    }
}

#[test]
fn the_environment_sets_what_flags_set_and_flags_win() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("env");
    let launch = Launch::new(BIN).env("LISTENQ_SAMPLE_INTERVAL", "500ms").inside(&ns);
    let target = |launch: Launch| {
        launch.start().scrape().value("listenq_sample_interval_target_seconds", &[])
    };
    assert_eq!(target(launch.clone()), Some(0.5));
    assert_eq!(target(launch.args(&["--sample.interval=250ms"])), Some(0.25));
}

#[test]
fn a_bad_value_in_the_environment_names_its_variable() {
    let output = Launch::new(BIN).env("LISTENQ_SAMPLE_INTERVAL", "fast").run();
    assert_one_line(&output, USAGE, &["LISTENQ_SAMPLE_INTERVAL", "fast"]);
    let output = Launch::new(BIN).args(&["explain"]).env("LISTENQ_URL", "web1").run();
    assert_one_line(&output, USAGE, &["LISTENQ_URL", "web1", "http://"]);
}

#[test]
fn check_prints_unknown_on_standard_output_and_exits_with_3() {
    let without_procfs = vec!["check", "--url=none", "--path.procfs=/nowhere/proc"];
    for (args, words) in [
        (vec!["check", "--no-such-flag"], vec!["--no-such-flag"]),
        (vec!["--netns=own", "check", "--for=soon"], vec!["--for", "soon"]),
        (vec!["check", "--url=web1:19511"], vec!["--url", "web1:19511"]),
        (without_procfs, vec!["/nowhere/proc", "--path.procfs"]),
    ] {
        let output = run(&args);
        assert_eq!((output.status.code(), output.stderr.as_str()), (Some(3), ""), "{args:?}");
        assert_eq!(output.stdout.lines().count(), 1, "{}", output.stdout);
        assert!(output.stdout.starts_with("LISTENQ UNKNOWN - "), "{}", output.stdout);
        for word in words {
            assert!(output.stdout.contains(word), "no {word:?} in {:?}", output.stdout);
        }
    }
}

#[test]
fn the_version_has_a_revision() {
    let output = run(&["--version"]);
    assert_eq!((output.status.code(), output.stderr.as_str()), (Some(0), ""));
    let (version, revision) = output.stdout.trim_end().split_once(" (revision ").unwrap();
    assert_eq!(version, format!("listenq {}", env!("CARGO_PKG_VERSION")));
    assert!(revision.ends_with(')') && revision.len() > 7, "{revision:?}");
}

#[test]
fn promtool_reports_no_problem() {
    if !Netns::require_root() || !require_tool("promtool") {
        return;
    }
    let ns = Netns::new("promtool");
    let listener = ns.run(|| Listen::tcp("[::1]:0").open());
    let once = Launch::new(BIN).args(&["metrics"]).inside(&ns).run();
    assert_eq!((once.status.code(), once.stderr.as_str()), (Some(0), ""));
    let daemon = Launch::new(BIN).inside(&ns).start();
    for text in [once.stdout.as_str(), daemon.scrape().text()] {
        let metrics = Metrics::parse(text).unwrap();
        metrics.assert_unique();
        assert_eq!(metrics.at(listener.addr()).limit, Some(128.0));
        let (_, said) = feed("promtool", &["check", "metrics"], text.as_bytes());
        assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("", ""));
        assert_eq!(said.status.code(), Some(0));
    }
}

#[test]
fn every_line_of_the_json_log_is_an_object() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("json");
    let args = ["--log.format=json", "--log.level=debug"];
    let mut daemon = Launch::new(BIN).args(&args).inside(&ns).start();
    let _ = daemon.scrape();
    daemon.stop(Signal::TERM);
    let log = daemon.log();
    let objects: Vec<serde_json::Value> =
        log.iter().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(objects.iter().all(|o| o["level"].is_string() && o["message"].is_string()), "{log:?}");
    let messages: Vec<_> = objects.iter().map(|o| o["message"].as_str().unwrap()).collect();
    assert!(messages.contains(&"listening") && messages.contains(&"stopping"), "{log:?}");
}
