//! Runs a real Prometheus that scrapes the daemon under test, evaluates the shipped rules and
//! answers queries.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use listenq_lab::http::get;
use listenq_lab::netns::Netns;
use listenq_lab::running::Running;
use listenq_lab::wait::eventually;
use serde_json::Value;

use crate::asking::path;

const START: Duration = Duration::from_secs(20);
const ADDRESS: &str = "127.0.0.1:9090";

/// A Prometheus in a namespace, with a data directory. Dropping it ends the process and removes the
/// directory.
pub(crate) struct Prometheus {
    netns: PathBuf,
    address: SocketAddr,
    directory: PathBuf,
    _running: Running,
}

// === impl Prometheus ===

impl Prometheus {
    /// Starts Prometheus and waits until it is ready. Prometheus scrapes the targets once a second
    /// under the job `listenq`.
    pub(crate) fn start(ns: &Netns, targets: &[SocketAddr]) -> Self {
        let targets: Vec<_> = targets.iter().map(SocketAddr::to_string).collect();
        Self::start_with(ns, &format!("{{targets: {targets:?}}}"))
    }

    /// Like [`Self::start`], with targets and labels in YAML.
    pub(crate) fn start_with(ns: &Netns, targets: &str) -> Self {
        let directory = std::env::temp_dir().join(ns.name());
        fs::create_dir_all(&directory).unwrap();
        let config = directory.join("prometheus.yml");
        let rules = ["alerts.yml", "recording.yml"].map(|name| rules(&directory, name));
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: {rules:?}\n\
             scrape_configs: [{{job_name: listenq, static_configs: [{targets}]}}]\n"
        );
        fs::write(&config, text).unwrap();
        let mut command = ns.command("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .arg("--log.level=error");
        let running = Running::start_as(&mut command, "prometheus");
        let address = ADDRESS.parse().unwrap();
        let prometheus = Self { netns: ns.path(), address, directory, _running: running };
        eventually("prometheus", START, || prometheus.is_ready().then_some(()));
        prometheus
    }

    /// The number of series that a query returns now, or within the last half minute.
    ///
    /// # Panics
    ///
    /// When Prometheus rejects the query; the message contains its error.
    pub(crate) fn series(&self, expr: &str, is_range: bool) -> usize {
        self.series_at(expr, is_range, SystemTime::now())
    }

    /// Like [`Self::series`], at the time `end`.
    pub(crate) fn series_at(&self, expr: &str, is_range: bool, end: SystemTime) -> usize {
        self.ask(expr, is_range.then_some(30), end).len()
    }

    /// The series that a query returns at `end`, or within the `seconds` before `end`.
    pub(crate) fn ask(&self, expr: &str, seconds: Option<u64>, end: SystemTime) -> Vec<Value> {
        let path = path(expr, seconds, end);
        let answer = get(Some(&self.netns), self.address, &path, &[]).unwrap();
        assert_eq!(answer.status, 200, "{expr}: {}", answer.text());
        let answer: Value = serde_json::from_str(answer.text()).unwrap();
        answer["data"]["result"].as_array().unwrap().clone()
    }

    fn is_ready(&self) -> bool {
        get(Some(&self.netns), self.address, "/-/ready", &[]).is_ok_and(|a| a.status == 200)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A copy of the shipped rules in which every group is evaluated every second.
fn rules(directory: &Path, name: &str) -> PathBuf {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus").join(name);
    let lines = fs::read_to_string(shipped).unwrap();
    let lines: Vec<_> = lines.lines().filter(|line| !line.starts_with("    interval: ")).collect();
    let copy = directory.join(name);
    fs::write(&copy, lines.join("\n")).unwrap();
    copy
}
