//! The source of a report: a running daemon, which knows the history, or samples taken by this
//! process.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cli::{Ask, Daemon};
use crate::control::{self, ControlError};
use crate::remote::{self, Access};
use crate::report::{Listener, Report};
use crate::sampler::{Config, Sampler};
use crate::self_stats::Feature;
use crate::snapshot::OWN_NETNS;
use crate::view::publish::{Published, Reader};

/// Timeout of a request to a daemon given by URL.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);
/// How often this process looks for the first sample of its own sampler: 2 s in total.
const FIRST_SAMPLE_TRIES: u32 = 100;
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// A report and its source.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub report: Report,
    /// `asked the daemon at …`, or why not and what listenq did instead.
    pub origin: String,
    /// How long this process sampled; `None` if a daemon answered.
    pub sampled_for: Option<Duration>,
    /// Whether listener filters are set.
    pub is_filtered: bool,
}

/// How to sample if no daemon answers.
#[derive(Clone, Copy, Debug)]
pub enum Sampling {
    /// Take one sample.
    Once,
    /// Sample on the timer for this duration.
    For(Duration),
}

/// The result of asking a daemon.
enum Asked {
    Answered(Box<Known>),
    /// No daemon runs (with the error), or the command must not ask one.
    NoDaemon(Option<ControlError>),
}

/// A sequence of reports: from a daemon, or from samples that this process takes in the background.
pub struct Feed {
    ask: Ask,
    control: Option<PathBuf>,
    config: Config,
    own: Option<OwnSampler>,
    /// Whether a daemon has answered. From then on listenq does not sample.
    was_answered: bool,
}

/// A sampler on a separate thread. The thread ends when this value is dropped.
struct OwnSampler {
    reader: Reader,
    origin: String,
    _stop: mpsc::Sender<()>,
}

// === impl Feed ===

impl Feed {
    pub fn new(ask: &Ask, control: Option<&Path>, config: &Config) -> Self {
        let (ask, control) = (ask.clone(), control.map(Path::to_owned));
        Self { ask, control, config: config.clone(), own: None, was_answered: false }
    }

    /// The current report.
    pub fn current(&mut self) -> Result<Known> {
        if let Some(own) = &self.own {
            return own.known(&self.config);
        }
        match ask_daemon(&self.ask, self.control.as_deref(), &self.config)? {
            Asked::Answered(known) => {
                self.was_answered = true;
                Ok(*known)
            }
            Asked::NoDaemon(Some(failure)) if self.was_answered => Err(failure.into()),
            Asked::NoDaemon(failure) => {
                let own = OwnSampler::start(&self.config, &why(failure))?;
                self.own.insert(own).known(&self.config)
            }
        }
    }
}

// === impl OwnSampler ===

impl OwnSampler {
    fn start(config: &Config, why: &str) -> Result<Self> {
        let sampler = open(config)?;
        let reader = sampler.reader();
        let (stop, stopped) = mpsc::channel();
        thread::spawn(move || sampler.run(&stopped));
        for _ in 0..FIRST_SAMPLE_TRIES {
            if reader.read().is_some() {
                break;
            }
            thread::sleep(TRY_AGAIN);
        }
        Ok(Self { reader, origin: format!("{why}sampling"), _stop: stop })
    }

    fn known(&self, config: &Config) -> Result<Known> {
        let published = last_of(&self.reader)?;
        let report = Report::with_clients(&published.view, published.age());
        let (origin, is_filtered) = (self.origin.clone(), is_filtered(config));
        Ok(Known { report, origin, sampled_for: None, is_filtered })
    }
}

// === impl Known ===

impl Known {
    /// A text about the listeners that listenq cannot see on this machine, and how to change that;
    /// `None` if it sees all listeners.
    pub fn blindness(&self) -> Option<&'static str> {
        let lacks = |feature: Feature| {
            self.report.missing_features.iter().any(|missing| missing.feature == feature.label())
        };
        match (lacks(Feature::SockDiag), lacks(Feature::UnixDiag)) {
            (true, _) => Some(
                "the limits, drops and overflows of TCP accept queues cannot be seen: load the kernel \
                 module (modprobe tcp_diag), or allow listenq netlink sockets",
            ),
            (false, true) => Some(
                "Unix listeners cannot be seen: load the kernel module (modprobe unix_diag), or allow \
                 listenq netlink sockets",
            ),
            (false, false) => None,
        }
    }

    /// Whether a TCP listener in trouble could be invisible to listenq.
    pub fn is_blind(&self) -> bool {
        let sock_diag = Feature::SockDiag.label();
        self.report.missing_features.iter().any(|missing| missing.feature == sock_diag)
    }

    /// Why the report has no listener, if it has none.
    pub fn nothing(&self) -> Option<&'static str> {
        match (self.report.listeners.is_empty(), self.is_filtered) {
            (false, _) => None,
            (true, false) => Some("no listener here"),
            (true, true) => Some("no listener matches the filters"),
        }
    }
}

/// Asks the daemon, or samples.
pub fn report(
    ask: &Ask,
    control: Option<&Path>,
    config: &Config,
    sampling: Sampling,
) -> Result<Known> {
    match ask_daemon(ask, control, config)? {
        Asked::Answered(known) => Ok(*known),
        Asked::NoDaemon(failure) => sampled(config, sampling, &why(failure)),
    }
}

/// Asks the daemon of `--url`, or the daemon of this machine over the control socket.
fn ask_daemon(ask: &Ask, control: Option<&Path>, config: &Config) -> Result<Asked> {
    let (report, daemon) = match (&ask.url, control) {
        (Some(Daemon::Never), _) | (None, None) => return Ok(Asked::NoDaemon(None)),
        (Some(Daemon::At(url)), _) => {
            let access = Access { timeout: REQUEST_TIMEOUT, ca_file: ask.ca_file.clone() };
            let report = remote::fetch(url, &access).context("asking the daemon of --url")?;
            (report, url.to_string())
        }
        (None, Some(path)) => match control::fetch(path) {
            Err(failure @ ControlError::Absent { .. }) => {
                return Ok(Asked::NoDaemon(Some(failure)));
            }
            report => (report?, path.display().to_string()),
        },
    };
    let report = Report { listeners: admitted(report.listeners, config), ..report };
    let origin = format!("asked the daemon at {daemon}");
    let is_filtered = is_filtered(config);
    Ok(Asked::Answered(Known { report, origin, sampled_for: None, is_filtered }.into()))
}

/// The reason why the command samples itself, as the start of [`Known::origin`]; empty if it asked
/// no daemon.
fn why(failure: Option<ControlError>) -> String {
    failure.map_or_else(String::new, |failure| format!("{failure}: "))
}

fn is_filtered(config: &Config) -> bool {
    let filter = &config.state.filter;
    filter.include.is_some() || filter.exclude.is_some()
}

/// Applies the filters and `--netns own` to the listeners of a daemon's report.
fn admitted(listeners: Vec<Listener>, config: &Config) -> Vec<Listener> {
    let admits = |listener: &Listener| {
        (config.all_namespaces || listener.netns == OWN_NETNS)
            && config.state.filter.admits_text(&listener.described())
    };
    listeners.into_iter().filter(admits).collect()
}

fn sampled(config: &Config, sampling: Sampling, why: &str) -> Result<Known> {
    let (published, did, sampled_for) = match sampling {
        Sampling::Once => {
            let did = "took one sample, which makes no diagnosis".into();
            (sample_once(config)?, did, Duration::ZERO)
        }
        Sampling::For(duration) => {
            let duration_text = humantime::format_duration(duration);
            say_on_terminal(&format!("{why}watching for {duration_text}"));
            (watch(config, duration)?, format!("watched for {duration_text}"), duration)
        }
    };
    let report = Report::with_clients(&published.view, published.age());
    let (origin, is_filtered) = (format!("{why}{did}"), is_filtered(config));
    Ok(Known { report, origin, sampled_for: Some(sampled_for), is_filtered })
}

/// Takes one sample, with owners and waiting clients.
pub fn sample_once(config: &Config) -> Result<Arc<Published>> {
    let mut sampler = open(config)?;
    sampler.sample_all();
    last_of(&sampler.reader())
}

fn watch(config: &Config, duration: Duration) -> Result<Arc<Published>> {
    let sampler = open(config)?;
    let reader = sampler.reader();
    let (stop, stopped) = mpsc::channel();
    thread::spawn(move || {
        thread::sleep(duration);
        drop(stop);
    });
    sampler.run(&stopped);
    last_of(&reader)
}

fn open(config: &Config) -> Result<Sampler> {
    Sampler::new(config).context("is --path.procfs right?")
}

fn last_of(reader: &Reader) -> Result<Arc<Published>> {
    match reader.read() {
        Some(published) if published.view.is_ready(published.age()) => Ok(published),
        _ => bail!("the listeners could not be read; the reason is in the log line above"),
    }
}

/// Writes `line` if standard error is a terminal, because a person is waiting.
fn say_on_terminal(line: &str) {
    let mut stderr = io::stderr();
    if stderr.is_terminal() {
        let _ = writeln!(stderr, "listenq: {line} …");
    }
}
