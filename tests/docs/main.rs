//! Tests the documentation: its links lead to existing targets, its commands run and print what the
//! pages show, its queries have results, and the programs that read its configurations accept them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

#[path = "../dashboards/asking.rs"]
mod asking;
mod page;
#[path = "../dashboards/prometheus.rs"]
mod prometheus;
#[path = "../dashboards/queries.rs"]
mod queries;
mod questions;
mod sandbox;
mod shape;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use clap::CommandFactory;
use listenq::cli::Cli;
use listenq_lab::certificate::{Authority, Subject};
use listenq_lab::client::fill;
use listenq_lab::flood::Flood;
use listenq_lab::hammer::{Load, Manner, visit};
use listenq_lab::listener::Listen;
use listenq_lab::listenq::{Daemon, Launch};
use listenq_lab::netns::Netns;
use listenq_lab::rootfs::Rootfs;
use listenq_lab::running::Running;
use listenq_lab::tool::{feed, require_tool};
use listenq_lab::wait::{eventually, within};
use listenq_lab::web::{PHP, Pool, Site, Web};
use serde_json::Value;

use page::{Block, Page, root};
use prometheus::Prometheus;
use queries::metrics_of;
use sandbox::{Ran, Sandbox};
use shape::missing;

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const SECOND: Duration = Duration::from_secs(1);
/// Timeout for the diagnoses: two of them need half a minute of evidence on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The address of node_exporter.
const NODE_EXPORTER: &str = "127.0.0.1:9100";

/// The duration of two scrapes and one sample of all counters.
const REST: Duration = Duration::from_secs(4);

/// Blocks that are not run, by their first line, each with its reason.
const NOT_RUN: [(&str, &str); 16] = [
    ("  kernel                 sampler thread", "a drawing of the data flow"),
    ("deploy/build.sh packages", "tests/release/packages.sh builds and installs the packages"),
    ("apt install ./dist", "tests/release/packages.sh installs the packages"),
    (
        "tar -xzf listenq-VERSION",
        "deploy/build.sh makes the archive, tests/release/ansible.sh unpacks it",
    ),
    ("ansible-playbook", "tests/release/ansible.sh runs the role"),
    ("mkdir -p /etc/systemd/system/listenq.service.d", "it links to files of a package"),
    (
        "mkdir -p /etc/systemd/system/listenq.socket.d",
        "the sandbox has no systemd to open a socket",
    ),
    ("ln -s /usr/share/listenq/systemd/without-socket.conf", "it links to files of a package"),
    ("systemctl disable --now listenq.socket", "the sandbox has no installation to remove"),
    ("docker run --network host --read-only", "tests/release/image.sh runs it as Docker would"),
    ("docker run --network host --pid host", "the same"),
    ("local mixin = (import", "tests/mixin.sh evaluates it"),
    ("# pagerduty", "tests/recipes.sh receives it"),
    ("# slack", "the same"),
    ("# mail", "the same"),
    ("prometheus.scrape \"listenq\"", "Grafana Alloy cannot be installed here"),
];

/// Commands that a test cannot run unchanged: the command, its replacement, and the reason.
const INSTEAD: [(&str, &str, &str); 6] = [
    ("cargo run --release", "listenq --version", "the scene has started the daemon"),
    (
        "cargo build --release",
        "test -x target/release/listenq",
        "cargo has built the program under test",
    ),
    (
        "systemctl enable --now listenq",
        "systemctl enable listenq",
        "the sandbox has no systemd to start it",
    ),
    ("systemctl daemon-reload", "systemd-analyze verify listenq.service", "nor to reload the unit"),
    ("systemctl restart listenq", "systemctl is-enabled listenq", "nor to restart it"),
    ("journalctl -u listenq -n 20", "journalctl --version", "nor to keep the log"),
];

/// The program that checks a configuration, selected by a key of the configuration. Grafana is too
/// large to install. tests/recipes.sh checks the configurations of Alertmanager, the collector and
/// the Prometheus adapter.
const READERS: [(&str, &[&str]); 7] = [
    ("tls_server_config", &[BIN, "check-web-config"]),
    ("rule_files", &["promtool", "check", "config"]),
    ("scrape_configs", &["promtool", "check", "config"]),
    ("apiVersion", &[]),
    ("groups", &["promtool", "check", "rules"]),
    ("receivers", &[]),
    ("rules", &[]),
];

/// Programs whose calls in code spans are also run.
const PROGRAMS: [&str; 4] = ["listenq ", "ss ", "nstat ", "htpasswd "];

/// Flags of other programs.
const FOREIGN_FLAGS: [&str; 8] = [
    "--collector.netstat.fields",
    "--enable-feature",
    "--extra-vars",
    "--ignored",
    "--inventory",
    "--security-opt",
    "--target",
    "--user",
];

/// The site of the README and the tour: nginx in front of a php-fpm pool, which has a capped limit
/// and is too slow for its visitors.
struct Scene {
    sandbox: Sandbox,
    _visitors: JoinHandle<()>,
    _site: Site,
}

// === impl Scene ===

impl Scene {
    /// Starts the site; `None` without root or if a program is missing.
    fn start(hint: &str, lasting: Duration) -> Option<Self> {
        let tools = ["nginx", PHP, "htpasswd"];
        if !Netns::require_root() || !tools.iter().all(|tool| require_tool(tool)) {
            return None;
        }
        let ns = Netns::new(hint);
        ns.sysctl("net.core.somaxconn", 128);
        let web = Web::new(Pool::Tcp).backlog(511).workers(2).takes(SECOND / 2);
        let site = web.read_timeout(2 * SECOND).start(&ns);
        let nginx = site.address();
        let load = Load { rate: 100.0, lasting, patience: 25 * SECOND, at_once: 2_000 };
        let visitors = ns.spawn(move || drop(visit(nginx, load, &Manner::http_get("/"))));
        Some(Self { sandbox: Sandbox::new(ns), _visitors: visitors, _site: site })
    }

    /// Starts the daemon at the default address, and waits until it reports both diagnoses.
    fn daemon(&self) -> Daemon {
        let address = ["--web.listen-address=:19511"];
        let launch = Launch::new(BIN).env("LISTENQ_CONTROL_SOCKET", &self.sandbox.control_socket());
        let daemon = launch.args(&address).inside(&self.sandbox.ns).start();
        let held = |diagnosis| {
            let labels = [("port", "9000"), ("diagnosis", diagnosis)];
            daemon.scrape().value("listenq_listener_diagnosis", &labels) == Some(1.0)
        };
        eventually("a pool that is abandoned and slow", TIMEOUT, || {
            (held("abandoned") && held("slow_accept")).then_some(())
        });
        daemon
    }
}

/// The blocks of one kind on every page.
fn blocks(kind: &str) -> Vec<Block> {
    let all = Page::read_all().into_iter().flat_map(|page| page.blocks());
    all.filter(|block| block.kind == kind).collect()
}

/// The commands of a console block, each with the output that the page shows.
fn session(block: &Block) -> Vec<(&str, &str)> {
    let parts = block.text.strip_prefix("$ ").expect(&block.place).split("\n$ ");
    parts.map(|part| part.split_once('\n').unwrap_or((part, ""))).collect()
}

fn runnable(script: &str) -> String {
    let line = |line: &str| match INSTEAD.iter().find(|(written, ..)| *written == line) {
        Some((_, instead, _)) => format!("{instead}\n"),
        None => format!("{line}\n"),
    };
    script.lines().map(line).collect()
}

fn is_run(block: &Block) -> bool {
    !NOT_RUN.iter().any(|(line, _)| block.text.starts_with(line))
}

#[test]
fn every_block_is_run_or_there_is_a_reason() {
    let pages = Page::read_all();
    let all: Vec<Block> = pages.iter().flat_map(Page::blocks).collect();
    let checked = ["sh", "console", "promql", "yaml"];
    let begins = |block: &Block, line: &str| block.text.starts_with(line);
    for block in all.iter().filter(|block| !checked.contains(&&*block.kind)) {
        assert!(!is_run(block), "{}: nothing runs this block", block.place);
    }
    for (line, _) in NOT_RUN {
        assert!(all.iter().any(|block| begins(block, line)), "{line} is no longer on a page");
    }
    for (line, ..) in INSTEAD {
        let is_there = |block: &&Block| block.text.lines().any(|other| other == line);
        assert!(all.iter().any(|block| is_there(&block)), "{line} is no longer on a page");
    }
}

#[test]
fn every_link_has_an_existing_target() {
    let mut pages = Page::read_all();
    pages.push(Page::read("CONTRIBUTING.md"));
    for page in &pages {
        for link in page.links().iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path.is_empty() {
                true => root(&page.path),
                false => root(&page.path).parent().unwrap().join(path),
            };
            let place = page.path.display();
            assert!(target.exists(), "{place}: the target of {link} does not exist");
            let is_there = || Page::read(target).anchors().iter().any(|other| other == anchor);
            assert!(anchor.is_empty() || is_there(), "{place}: no heading for {link}");
        }
    }
}

#[test]
fn every_path_of_the_repository_that_is_named_exists() {
    let tops = ["src/", "tests/", "deploy/", "dashboards/", "docs/", "benches/"];
    let mut pages = Page::read_all();
    pages.push(Page::read("CONTRIBUTING.md"));
    for page in &pages {
        for path in page.code().iter().filter(|code| tops.iter().any(|top| code.starts_with(top))) {
            // `tests/*.rs` stands for several files.
            let path = path.split('*').next().unwrap();
            assert!(root(path).exists(), "{}: {path} does not exist", page.path.display());
        }
    }
}

/// A page names a test after its file; `...` stands for the beginning of the test's name.
#[test]
fn every_test_that_the_security_page_names_exists() {
    let is_test = |code: &str| code.matches('_').count() > 2 && code == code.to_lowercase();
    let (mut source, mut count) = (String::new(), 0);
    for code in Page::read("docs/security.md").code() {
        if ["tests/", "src/"].iter().any(|top| code.starts_with(top)) {
            source = rust(&root(&code));
        } else if is_test(&code) {
            let name = code.strip_prefix("...").unwrap_or(&code);
            assert!(source.contains(&format!("{name}(")), "{code} does not exist");
            count += 1;
        }
    }
    assert!(count > 30, "too few: {count}");
}

/// The text of a file, or of all files of a directory.
fn rust(path: &Path) -> String {
    if path.is_file() {
        return fs::read_to_string(path).unwrap();
    }
    let files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|file| file.is_file()).map(|file| rust(&file)).collect()
}

#[test]
fn every_flag_is_documented_with_its_default_and_no_other_is_named() {
    let command = Cli::command();
    let with_subcommands = command.get_subcommands().chain([&command]);
    let mut flags = BTreeMap::new();
    for arg in with_subcommands.flat_map(|command| command.get_arguments()) {
        let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy());
        let takes_value = arg.get_action().takes_values();
        let default = defaults.filter(|_| takes_value).collect::<Vec<_>>().join(" ");
        flags.extend(arg.get_long().map(|long| (format!("--{long}"), default)));
    }
    let text = fs::read_to_string(root("docs/flags.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `--"));
    let cells = rows.map(|row| row.split('|').map(|cell| cell.trim().trim_matches('`')));
    let documented: BTreeMap<String, String> = cells
        .map(|cells| cells.skip(1).take(2).map(str::to_owned).collect::<Vec<_>>())
        .map(|cells| (cells[0].clone(), cells[1].clone()))
        .collect();
    let own = ["--help", "--version", "--json", "--watch"];
    let expected = flags.iter().filter(|(name, _)| !own.contains(&&***name));
    assert_eq!(documented, expected.map(|(k, v)| (k.clone(), v.clone())).collect());
    for page in Page::read_all() {
        for code in page.code().iter().filter(|code| code.starts_with("--")) {
            let name = code.split(['=', ' ']).next().unwrap();
            let is_known = flags.contains_key(name) || FOREIGN_FLAGS.contains(&name);
            assert!(is_known || name == "--help", "{}: {code}", page.path.display());
        }
    }
}

#[test]
fn every_command_runs_and_prints_what_the_page_shows() {
    let Some(scene) = Scene::start("docs", 300 * SECOND) else { return };
    // Output on a machine without a daemon.
    let is_alone = |shown: &str| shown.starts_with("no daemon at ");
    let consoles = blocks("console");
    let sessions =
        || consoles.iter().flat_map(|block| session(block).into_iter().map(move |s| (block, s)));
    let check = |(block, (command, shown)): (&Block, (&str, &str))| {
        let mut last = (None, String::new());
        // Queues change: the words may appear only after some time.
        let found = within(TIMEOUT, || {
            let Ran { printed, .. } = scene.sandbox.run(command);
            last = (missing(shown, &printed), printed);
            last.0.is_none().then_some(())
        });
        let (missing, printed) = last;
        let place = &block.place;
        assert!(found.is_some(), "{place}: no {missing:?} where {command} prints\n{printed}");
    };
    sessions().filter(|(_, (_, shown))| is_alone(shown)).for_each(check);
    let _daemon = scene.daemon();
    sessions().filter(|(_, (_, shown))| !is_alone(shown)).for_each(check);
    calls(&scene.sandbox);
    scripts(&scene.sandbox);
}

/// Runs the shell blocks of each page, one after the other.
fn scripts(sandbox: &Sandbox) {
    for page in Page::read_all() {
        let shell = page.blocks().into_iter().filter(|block| block.kind == "sh" && is_run(block));
        let script: String = shell.map(|block| runnable(&block.text)).collect();
        let ran = sandbox.run(&script);
        assert!(ran.is_success, "{}:\n{script}\nprints\n{}", page.path.display(), ran.printed);
    }
}

/// Runs the calls in code spans, with placeholders filled in.
fn calls(sandbox: &Sandbox) {
    let directory = sandbox.directory();
    sign(directory);
    let config = blocks("yaml").into_iter().find(|block| block.text.contains("tls_server_config"));
    fs::write(directory.join("FILE"), config.unwrap().text).unwrap();
    let code: BTreeSet<String> = Page::read_all().iter().flat_map(Page::code).collect();
    let calls = code.iter().filter(|code| PROGRAMS.iter().any(|program| code.starts_with(program)));
    for call in calls.clone() {
        // Brackets contain optional arguments.
        let least = call.split(" [").next().unwrap();
        let filled = least.replace("NAME", sandbox.ns.name()).replace("COMMAND", "explain");
        let Ran { is_success, printed } = sandbox.run(&filled);
        // The exit status of `listenq check` reports the trouble of the scene.
        let is_well = is_success || (least == "listenq check" && printed.contains("CRITICAL"));
        assert!(is_well && !printed.is_empty(), "{filled} prints\n{printed}");
    }
    assert!(calls.count() > 10, "too few");
}

#[test]
fn every_path_that_is_documented_is_answered() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("docs-paths");
    let daemon = Launch::new(BIN).inside(&ns).start();
    let text = fs::read_to_string(root("docs/flags.md")).unwrap();
    let (_, table) = text.split_once("\n| path | ").unwrap();
    let paths: Vec<_> =
        table.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next()).collect();
    for path in &paths {
        assert_eq!(daemon.get(path, &[]).status, 200, "{path}");
    }
    assert_eq!(paths.len(), 6);
}

#[test]
fn every_configuration_is_accepted_by_its_program() {
    if !require_tool("promtool") {
        return;
    }
    let files = Rootfs::new();
    sign(files.path());
    files.file("listenq-password", "a password");
    for rules in ["alerts.yml", "recording.yml"] {
        let shipped = fs::read(root("deploy/prometheus").join(rules)).unwrap();
        files.file(&format!("listenq/{rules}"), shipped);
    }
    let mut keys = BTreeSet::new();
    for Block { place, text, .. } in blocks("yaml") {
        let read: Value = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{place}: {e}"));
        let reader = READERS.iter().find(|(key, _)| read.get(key).is_some());
        let (key, words) = reader.unwrap_or_else(|| panic!("{place}: no program reads this"));
        keys.insert(*key);
        // No program checks this configuration here: it must be valid YAML at least.
        let Some((program, words)) = words.split_first() else { continue };
        let path = files.file("written.yml", &text).display().to_string();
        let (_, output) = feed(program, &[words, &[&path]].concat(), b"");
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(output.status.success(), "{place}: {said}");
        assert!(*key != "rule_files" || said.contains("rules found"), "{place}: {said}");
    }
    assert_eq!(keys, READERS.iter().map(|(key, _)| *key).collect());
}

/// Creates the certificates of the documented web configuration, for listenq and for Prometheus.
fn sign(directory: &Path) {
    for (authority, name) in [("prometheus-ca", "prometheus"), ("listenq-ca", "listenq")] {
        let subject = Subject { names: &["localhost"], until: 2100 };
        Authority::new(directory, authority).sign(name, subject);
    }
}

#[test]
fn the_scrape_configuration_of_the_readme_is_the_one_in_the_repository() {
    let read = |text: &str| serde_saphyr::from_str::<Value>(text).unwrap();
    let shipped = fs::read_to_string(root("deploy/prometheus/scrape.yml")).unwrap();
    let shown = blocks("yaml").into_iter().find(|block| block.text.contains("scrape_configs:"));
    assert_eq!(read(&shown.unwrap().text), read(&shipped));
}

/// Whether a query is for node_exporter.
fn is_foreign(query: &str) -> bool {
    query.contains("node_")
}

#[test]
fn every_query_names_metrics_and_labels_that_exist() {
    let queries = blocks("promql");
    let own: Vec<_> = queries.iter().filter(|block| !is_foreign(&block.text)).collect();
    for block in &own {
        assert!(!metrics_of(&block.place, &block.text).is_empty(), "{}", block.place);
    }
    assert!(own.len() > 5, "too few");
}

/// Prometheus scrapes both exporters in a namespace where every event occurs that a query needs.
#[test]
fn every_query_has_a_result_where_its_events_occur() {
    let tools = ["prometheus", "prometheus-node-exporter"];
    if !Netns::require_root() || !tools.iter().all(|tool| require_tool(tool)) {
        return;
    }
    let ns = Netns::new("docs-queries");
    let daemon = Launch::new(BIN).inside(&ns).start();
    let mut command = ns.command("prometheus-node-exporter");
    command.arg(format!("--web.listen-address={NODE_EXPORTER}"));
    command.args(["--collector.tcpstat", "--log.level=error"]);
    let _foreign = Running::start(&mut command);
    let prometheus = Prometheus::start(&ns, &[daemon.address(), NODE_EXPORTER.parse().unwrap()]);
    let full = ns.run(|| Listen::tcp("127.0.0.1:8080").backlog(4).open());
    let flooded = ns.run(|| Listen::tcp("127.0.0.1:8081").backlog(16).open());
    let target = full.target();
    let _served = ns.run(|| TcpStream::connect(daemon.address()).unwrap());
    let _flood = Flood::start(&ns, flooded.target(), 4_000, 200.0);
    let _clients = ns.spawn(move || fill(target, 20));
    let shown = blocks("promql").into_iter().map(|block| block.text);
    let named = Page::read("docs/migration.md").code().into_iter();
    let named = named.filter(|code| is_foreign(code) && code != "node_exporter");
    for query in shown.chain(named) {
        eventually(&query, TIMEOUT, || (prometheus.series(&query, false) > 0).then_some(()));
    }
    let same = same_numbers().into_iter();
    let mut differ: Vec<_> =
        same.map(|(before, after)| format!("sum({before}) == sum({after})")).collect();
    let deadline = Instant::now() + TIMEOUT;
    while !differ.is_empty() {
        assert!(Instant::now() < deadline, "{differ:#?}");
        // The two exporters are scraped at different times, and the connection of every query is
        // counted: compare while nothing else happens.
        thread::sleep(REST);
        let rested = SystemTime::now();
        differ.retain(|query| prometheus.series_at(query, false, rested) == 0);
    }
}

/// The pairs of queries that docs/migration.md lists as equal.
fn same_numbers() -> Vec<(String, String)> {
    let text = fs::read_to_string(root("docs/migration.md")).unwrap();
    let rows = text.lines().filter(|row| row.contains("| the same number"));
    let cells = rows.map(|row| row.split(" | ").map(|cell| cell.trim_matches(['|', ' ', '`'])));
    let pairs = cells.map(|mut cells| (cells.next().unwrap().into(), cells.next().unwrap().into()));
    let pairs: Vec<_> = pairs.collect();
    assert!(pairs.len() > 5, "{pairs:?}");
    pairs
}
