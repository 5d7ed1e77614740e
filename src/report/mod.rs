//! The report for people and scripts: every open listener with its numbers, owner, settings and
//! diagnoses. The report is the JSON of `/api/v1/listeners` and the only input of the table, the
//! explanation and the page.
//!
//! * [`evidence`] writes the evidence of a diagnosis, [`advice`] the steps to take;
//! * [`runbook`] links a diagnosis to its runbook;
//! * [`limit`] determines which cap binds a limit, [`servers`] how to set the limit of each server;
//! * [`recovery`] determines whether the trouble of a diagnosis is over;
//! * [`command_scope`] writes commands for the listener's namespace, [`words`] formats numbers for
//!   people.

pub mod advice;
pub mod because;
pub mod command_scope;
pub mod evidence;
pub mod limit;
pub mod recovery;
pub mod runbook;
pub mod servers;
pub mod words;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::diagnosis::{Diagnosis, Evidence, Sockets, WATCHED};
use crate::onset::{Beginning, Onset};
use crate::report::advice::Advice;
use crate::report::because::{Because, OwnerState};
use crate::self_stats::{Feature, SelfStats};
use crate::snapshot::owner::Owner;
use crate::snapshot::printable;
use crate::snapshot::{Setting, Settings};
use crate::view::{self, Case, ListenerView, NetnsView, Protocol, QueueView, View};

/// Seconds that a listener is watched before listenq makes a diagnosis.
pub const DIAGNOSIS_TAKES: u64 = WATCHED.as_secs();
/// The number of client addresses in a sentence.
const SHOWN_CLIENTS: usize = 3;

/// The whole report. Unknown values are `null`, unknown names are empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of the listenq that made the report.
    pub version: String,
    /// The time of the last sample, in seconds since 1970; `null` before the first sample.
    pub sampled_at: Option<f64>,
    /// Recent mean time between samples.
    pub sample_interval_seconds: Option<f64>,
    /// How long a client waits before it gives up (`--client-patience`).
    pub client_patience_seconds: f64,
    /// Sampled network namespaces.
    pub namespaces: usize,
    /// Network namespaces that exist and could not be entered; `null` before the first look for
    /// namespaces.
    pub namespaces_inaccessible: Option<usize>,
    /// Network namespaces that were found and are not entered yet; `null` before the first look for
    /// namespaces.
    pub namespaces_waiting: Option<usize>,
    /// Listeners omitted because of `--listener.max`.
    pub listeners_omitted: usize,
    /// Features that are unavailable because a privilege or a kernel module is missing.
    pub missing_features: Vec<MissingFeature>,
    /// The open listeners: first listeners in trouble, then the fullest.
    pub listeners: Vec<Listener>,
}

/// A feature that is not available.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingFeature {
    /// The `feature` label of `listenq_feature_available`.
    pub feature: String,
    /// What does not work without the feature.
    pub cost: String,
}

/// One listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    pub netns: String,
    pub protocol: Protocol,
    /// IP literal, path, or `@` and an abstract name.
    pub address: String,
    /// The port in digits; empty for Unix sockets.
    pub port: String,
    /// The owner of the listener.
    #[serde(flatten)]
    pub owner: Owner,
    /// Listen sockets of the listener.
    pub sockets: u32,
    /// Connections waiting.
    pub length: u64,
    /// The queue limit.
    pub limit: Option<u64>,
    /// Length / (limit + 1) of the fullest socket: a value of 1 or more means a full queue.
    pub fullest_ratio: Option<f64>,
    /// Largest length within the peak window.
    pub peak_length: u64,
    /// How long the oldest connection has waited.
    pub oldest_seconds: Option<f64>,
    /// Waiting connections whose client has left.
    pub abandoned: Option<u64>,
    /// Connections accepted per second while the queue was full throughout.
    pub drain_rate: Option<f64>,
    /// Drain rate x client patience: connections beyond this limit wait longer than clients do.
    pub useful_limit: Option<f64>,
    /// The median time after which clients left the queue within the last five minutes.
    pub patience_seconds: Option<f64>,
    /// The number of clients in that median.
    #[serde(default)]
    pub patience_clients: Option<u64>,
    /// Clients that left the queue, as seen by scans.
    pub abandoned_total: Option<u64>,
    /// The share of clients that left, of the clients that scans saw waiting within the last
    /// minute.
    pub abandoned_ratio: Option<f64>,
    /// The clients of the waiting and half-open connections; `null` without such connections,
    /// before a scan, and for users that may not see addresses.
    #[serde(default)]
    pub clients: Option<Clients>,
    /// Accepted connections that are still open.
    pub open_connections: Option<u64>,
    /// The largest number of open connections within the last hour; 0 if they were not read.
    pub most_open_connections: u64,
    /// Accepted connections; `null` if other listeners of the namespace may accept as well.
    pub accepts: Option<Accepts>,
    /// Half-open connections.
    pub syn_queue_length: Option<u64>,
    /// Segments dropped since the sockets were created, for any reason.
    pub drops: Option<u64>,
    /// Overflows attributed to the listener since listenq began to watch it.
    pub overflows: Option<u64>,
    /// Seconds during which the queue was full since listenq began to watch the listener.
    pub full_seconds: Option<f64>,
    /// The settings of the listener's namespace.
    pub settings: Caps,
    /// The diagnoses in order of precedence; empty if there is none, or if the listener is not
    /// watched long enough.
    pub diagnoses: Vec<Diagnosed>,
    /// Why the owner does not accept; empty if no cause is certain.
    #[serde(default)]
    pub causes: Vec<Because>,
    /// The state of the owner at the last read; `null` while there is no diagnosis.
    #[serde(default)]
    pub owner_state: Option<OwnerState>,
    /// The evidence of the diagnoses; `null` until the first trouble.
    pub recent: Option<Recent>,
    /// The largest length in each 5 s of the last five minutes, oldest first; empty if no
    /// connection waited in that time.
    pub history: Vec<u32>,
}

/// The clients of a queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Clients {
    /// Waiting and half-open connections of all clients.
    pub connections: u64,
    /// The number of client addresses; `null` if there are more than 1,024: then the counts of the
    /// addresses are lower bounds.
    pub addresses: Option<u64>,
    /// At most ten addresses, those with the most connections first.
    pub most: Vec<Client>,
}

/// The connections of one client address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    pub address: IpAddr,
    /// Connections that wait to be accepted.
    pub waiting: u64,
    /// Connections whose handshake is not complete.
    pub half_open: u64,
}

/// The connections that a listener accepted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Accepts {
    /// Connections accepted since listenq watches the listener and it is the only listener of its
    /// namespace.
    pub total: u64,
    /// Connections accepted per second, as the mean of the last 30 s.
    pub per_second: f64,
    /// Mean time that a connection waited to be accepted, within the last 30 s.
    pub mean_wait_seconds: Option<f64>,
    /// Connections accepted in each 5 s of the last five minutes, oldest first.
    pub history: Vec<u32>,
    /// Whether the present trouble began with more arrivals or with a slower server; `null` if that
    /// is not known.
    #[serde(default)]
    pub began: Option<Began>,
}

/// The change with which trouble began: more arrivals or a slower server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Began {
    pub with: Beginning,
    pub seconds_ago: f64,
    /// Connections that arrived per second before the trouble.
    pub before: f64,
    /// Connections per second since: those that at least arrived, or those that a slower server
    /// accepted.
    pub after: f64,
    /// The evidence as one sentence.
    pub evidence: String,
}

/// The settings of a namespace that affect its queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caps {
    /// `net.core.somaxconn`.
    pub somaxconn: Option<i64>,
    /// `net.ipv4.tcp_max_syn_backlog`.
    pub tcp_max_syn_backlog: Option<i64>,
    /// `net.ipv4.tcp_syncookies`.
    pub tcp_syncookies: Option<i64>,
    /// `net.ipv4.tcp_abort_on_overflow`.
    pub tcp_abort_on_overflow: Option<i64>,
}

/// A diagnosis that currently holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diagnosed {
    pub diagnosis: Diagnosis,
    /// Seconds for which the diagnosis has held.
    pub for_seconds: f64,
    /// The meaning of the diagnosis.
    pub meaning: String,
    /// Why listenq makes the diagnosis of this listener: one sentence with the numbers.
    pub evidence: String,
    /// The steps, in order.
    pub advice: Vec<String>,
    /// Actions that do not help or make the trouble worse.
    pub avoid: Vec<String>,
    /// The address of the runbook; `null` for information.
    #[serde(default)]
    pub runbook: Option<String>,
}

/// The evidence: recent events at a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recent {
    /// How long the listener has been watched, up to 30 s; the next two fields cover that time.
    pub watched_seconds: f64,
    /// Seconds of that time during which the queue was full.
    pub full_seconds: f64,
    /// Overflows attributed to the listener. Each retry of a client counts.
    pub overflows: u64,
    /// The largest number of connections that arrived within one second, each refused client
    /// counted once; `null` if unknown.
    #[serde(default)]
    pub largest_burst: Option<u64>,
    /// Seconds since a connection was last taken from the queue; `null` without scans.
    pub untaken_seconds: Option<f64>,
    /// Seconds for which the queue was never empty and every client waited.
    pub standing_seconds: f64,
    /// Sockets at their limit.
    pub sockets_brimming: u32,
    /// Sockets whose queue did not become shorter within 10 s.
    pub sockets_stuck: u32,
    /// Sockets less than half full.
    pub sockets_below_half: u32,
    /// The `somaxconn` at the time of `listen(2)`, if it is the current limit and `somaxconn` was
    /// raised later.
    pub earlier_somaxconn: Option<u32>,
    /// Half-open connections that have been open for 3 s or longer.
    pub old_half_open: Option<u64>,
    /// The maximum number of half-open connections.
    pub half_open_cap: Option<u64>,
    /// SYN cookies sent in the namespace within the last 30 s.
    pub cookies_sent: u64,
    /// Handshakes completed by a cookie in the namespace within the last 30 s.
    pub cookies_received: u64,
}

// === impl Report ===

impl Report {
    /// Creates the report of `view`, `age` after the view was made, without the addresses of
    /// clients.
    pub fn new(view: &View, age: Duration) -> Self {
        let mut report = Self::with_clients(view, age);
        report.listeners.iter_mut().for_each(|listener| listener.clients = None);
        report
    }

    /// Creates the report of `view` with the addresses of clients: for users of this machine, and
    /// for authenticated users.
    pub fn with_clients(view: &View, age: Duration) -> Self {
        let now = view.now + age;
        let mut listeners: Vec<Listener> = view
            .namespaces
            .iter()
            .flat_map(|netns| netns.listeners.iter().map(move |listener| (netns, listener)))
            .filter(|(netns, listener)| netns.is_fresh(listener.name.protocol, now))
            .filter_map(|(netns, listener)| Listener::new(view, netns, listener))
            .collect();
        listeners.sort_by(|a, b| a.trouble().cmp(&b.trouble()).then_with(|| a.fullest_first(b)));
        let sampled_at = view.namespaces.iter().filter_map(|netns| netns.sampled_unix_time);
        Self {
            version: crate::VERSION.into(),
            sampled_at: sampled_at.reduce(f64::max),
            sample_interval_seconds: view.stats.interval.map(|interval| interval.as_secs_f64()),
            client_patience_seconds: view.client_patience.as_secs_f64(),
            namespaces: view.stats.sampled_namespaces,
            namespaces_inaccessible: view.stats.inaccessible_namespaces,
            namespaces_waiting: view.stats.waiting_namespaces,
            listeners_omitted: view.stats.omissions.listeners,
            missing_features: missing(&view.stats),
            listeners,
        }
    }
}

impl Report {
    /// Parses a report that another process sent. All sentences are generated again from its
    /// numbers and names, and unprintable characters are escaped: a forged report cannot inject
    /// advice or escape sequences.
    pub fn received(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let mut value: serde_json::Value = serde_json::from_slice(bytes)?;
        make_printable(&mut value);
        let mut report: Self = serde_json::from_value(value)?;
        report.missing_features = known_features(&report.missing_features);
        report.listeners.iter_mut().for_each(Listener::write_texts);
        Ok(report)
    }
}

/// Replaces control characters in every string.
fn make_printable(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => *text = printable(text),
        serde_json::Value::Array(all) => all.iter_mut().for_each(make_printable),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(make_printable),
        _ => {}
    }
}

/// The features known to this version, with the texts of this version.
fn known_features(received: &[MissingFeature]) -> Vec<MissingFeature> {
    let is_named = |feature: &Feature| received.iter().any(|one| one.feature == feature.label());
    let known = Feature::ALL.into_iter().filter(is_named);
    known
        .map(|feature| MissingFeature {
            feature: feature.label().into(),
            cost: feature.cost().into(),
        })
        .collect()
}

fn missing(stats: &SelfStats) -> Vec<MissingFeature> {
    let is_missing = |feature: &Feature| stats.features[*feature as usize] == Some(false);
    let missing = Feature::ALL.into_iter().filter(is_missing);
    missing
        .map(|feature| MissingFeature {
            feature: feature.label().into(),
            cost: feature.cost().into(),
        })
        .collect()
}

// === impl Listener ===

impl Listener {
    /// Returns `None` for a closed listener that the view still remembers.
    fn new(view: &View, netns: &NetnsView, listener: &ListenerView) -> Option<Self> {
        let mut made = Self::unexplained(view, netns, listener, listener.queue?);
        for held in listener.causes() {
            let Some(since) = held.since else { continue };
            let for_seconds = view.now.saturating_sub(since).as_secs_f64();
            made.causes.push(Because::new(&made, held.cause, for_seconds));
        }
        // The advice of each diagnosis depends on the other diagnoses that hold.
        for held in listener.diagnoses() {
            let Some(since) = held.since else { continue };
            let for_seconds = view.now.saturating_sub(since).as_secs_f64();
            made.diagnoses.push(Diagnosed::bare(held.diagnosis, for_seconds));
        }
        made.explain();
        Some(made)
    }

    /// Returns the listener without causes and diagnoses.
    fn unexplained(
        view: &View,
        netns: &NetnsView,
        listener: &ListenerView,
        queue: QueueView,
    ) -> Self {
        let QueueView { length, limit, peak_length, fullest_ratio, socket_drops } = queue;
        let (name, case) = (&listener.name, listener.case.as_ref());
        Self {
            netns: netns.name.to_string(),
            protocol: name.protocol,
            address: name.address.clone(),
            port: name.port.clone(),
            owner: Owner::clone(&listener.owner),
            sockets: listener.sockets,
            length,
            limit,
            fullest_ratio,
            peak_length,
            oldest_seconds: listener.oldest().map(|oldest| oldest.as_secs_f64()),
            abandoned: listener.abandoned(),
            drain_rate: listener.drain_rate(),
            useful_limit: listener.useful_limit(view.client_patience),
            patience_seconds: listener.patience.map(|patience| patience.median.as_secs_f64()),
            patience_clients: listener.patience.map(|patience| patience.clients as u64),
            abandoned_total: listener.abandoned_total,
            abandoned_ratio: listener.abandoned_ratio,
            clients: listener.scan.and(listener.clients.as_deref()).map(Clients::new),
            open_connections: listener.open_connections(),
            most_open_connections: listener.most_open,
            accepts: listener.accepts.as_deref().map(|accepts| Accepts::new(accepts, view.now)),
            syn_queue_length: listener.scan.and_then(|scan| scan.syn_queue),
            drops: socket_drops,
            overflows: listener.overflows,
            full_seconds: listener.full_seconds,
            settings: Caps::new(&netns.settings),
            diagnoses: Vec::new(),
            causes: Vec::new(),
            owner_state: case.and_then(|case| OwnerState::new(&case.causes)),
            recent: case.map(|case| Recent::new(&case.evidence)),
            history: case.map_or_else(Vec::new, |case| history(case)),
        }
    }

    /// Writes every sentence about the listener again.
    fn write_texts(&mut self) {
        let causes = std::mem::take(&mut self.causes);
        self.causes =
            causes.iter().map(|one| Because::new(self, one.cause, one.for_seconds)).collect();
        let began = self.accepts.as_mut().and_then(|accepts| accepts.began.as_mut());
        if let Some(began) = began {
            began.evidence = began.sentence();
        }
        self.explain();
    }

    /// The change with which the trouble began; `None` without a diagnosis.
    pub fn began(&self) -> Option<&Began> {
        let began = self.accepts.as_ref()?.began.as_ref();
        began.filter(|_| self.diagnoses.iter().any(|held| !held.diagnosis.is_information()))
    }

    /// `clients leave after 3.0 s (median of 114)`; `None` if no patience was measured.
    pub fn patience(&self) -> Option<String> {
        let median = words::time(self.patience_seconds?);
        let of = self
            .patience_clients
            .map_or(String::new(), |clients| format!(" (median of {})", words::count(clients)));
        Some(format!("clients leave after {median}{of}"))
    }

    /// The useful limit, unless the patience that it is based on is wrong: an assumed patience that
    /// contradicts the clients that left the queue, or a patience measured while the queue
    /// overflowed. Scans do not see the time that a client spends half open, so such a patience is
    /// too short.
    pub fn credible_useful_limit(&self) -> Option<f64> {
        let overflows = self.recent.is_some_and(|recent| recent.overflows > 0);
        let is_credible = match self.patience_seconds {
            Some(_) => !overflows,
            None => !self.holds(Diagnosis::Abandoned),
        };
        self.useful_limit.filter(|_| is_credible)
    }

    /// The patience on which the useful limit is based, if it is assumed and not measured.
    pub fn assumed_patience(&self) -> Option<f64> {
        let is_assumed = self.patience_seconds.is_none();
        let (useful, rate) = (self.useful_limit?, self.drain_rate?);
        (is_assumed && rate > 0.0).then(|| useful / rate)
    }

    /// Fills in the text of each diagnosis, and moves each diagnosis that follows from another
    /// diagnosis to the end.
    fn explain(&mut self) {
        let held = self.diagnoses.iter();
        let mut explained: Vec<Diagnosed> =
            held.map(|held| Diagnosed::new(self, held.diagnosis, held.for_seconds)).collect();
        explained.sort_by_key(|held| self.cause_of(held.diagnosis).is_some());
        self.diagnoses = explained;
    }

    /// Whether `diagnosis` holds.
    pub fn holds(&self, diagnosis: Diagnosis) -> bool {
        self.diagnoses.iter().any(|held| held.diagnosis == diagnosis)
    }

    /// Whether a queue of the listener is full.
    pub fn is_full(&self) -> bool {
        self.fullest_ratio.is_some_and(|ratio| ratio >= 1.0)
    }

    /// Whole seconds for which a listener that shows trouble has been watched, if this time is too
    /// short for a diagnosis; 0 if the time is unknown.
    pub fn watched_too_briefly(&self) -> Option<u64> {
        let watched = self.recent.map(|recent| recent.watched_seconds as u64);
        let has_overflows =
            watched.is_some() && self.overflows.is_some_and(|overflows| overflows > 0);
        let waits = self.length > 0 && self.oldest_seconds.is_some_and(|oldest| oldest > 1.0);
        let shows_trouble = self.is_full() || has_overflows || waits;
        let watched = watched.unwrap_or(0);
        (shows_trouble && self.diagnoses.is_empty() && watched < DIAGNOSIS_TAKES).then_some(watched)
    }

    /// The diagnosis shown for the listener, if there is one.
    pub fn diagnosis(&self) -> Option<Diagnosis> {
        self.diagnoses.first().map(|diagnosed| diagnosed.diagnosis)
    }

    /// The diagnosis that `diagnosis` follows from, if one holds.
    pub fn cause_of(&self, diagnosis: Diagnosis) -> Option<Diagnosis> {
        let causes: &[Diagnosis] = match diagnosis {
            Diagnosis::SlowAccept | Diagnosis::ShortQueue | Diagnosis::StandingQueue => {
                &[Diagnosis::Imbalance, Diagnosis::Stalled]
            }
            Diagnosis::Abandoned => &[
                Diagnosis::Imbalance,
                Diagnosis::Stalled,
                Diagnosis::SlowAccept,
                Diagnosis::StandingQueue,
            ],
            _ => &[],
        };
        causes.iter().copied().find(|cause| self.holds(*cause))
    }

    /// The names of all diagnoses of the listener, in order of precedence; empty if there is none.
    pub fn words(&self, separator: &str) -> String {
        let words = self.diagnoses.iter().map(|held| held.diagnosis.label());
        words.collect::<Vec<_>>().join(separator)
    }

    /// The causes of the diagnoses as their suffix: ` because its cgroup is CPU-throttled`; empty if
    /// no cause is certain.
    pub fn because(&self) -> String {
        let explains = |because: &&Because| {
            let mut diagnoses = self.diagnoses.iter().map(|held| held.diagnosis);
            let explains_one =
                diagnoses.any(|diagnosis| advice::explains(because.cause, diagnosis));
            explains_one && !recovery::is_cause_over(self, because.cause)
        };
        let causes = self.causes.iter().filter(explains);
        let causes: Vec<&str> = causes.map(|because| because.cause.because()).collect();
        match causes.is_empty() {
            true => String::new(),
            false => format!(" because {}", causes.join(" and ")),
        }
    }

    /// `address:port` with brackets around IPv6, or the unchanged path.
    pub fn endpoint(&self) -> String {
        view::endpoint(&self.address, &self.port)
    }

    /// `netns/protocol/address:port` with brackets around IPv6, for people.
    pub fn named(&self) -> String {
        format!("{}/{}/{}", self.netns, self.protocol.label(), self.endpoint())
    }

    /// `netns/protocol/address:port`, as matched by the filters; a Unix socket has no port.
    pub fn described(&self) -> String {
        let Self { netns, protocol, address, port, .. } = self;
        view::described(netns, *protocol, address, port)
    }

    /// The sort key by precedence; listeners without a diagnosis come last.
    fn trouble(&self) -> usize {
        self.diagnosis().map_or(usize::MAX, |diagnosis| diagnosis as usize)
    }

    /// Orders by fullness; by length if no limit is known.
    fn fullest_first(&self, other: &Self) -> std::cmp::Ordering {
        let weight = |one: &Self| one.fullest_ratio.unwrap_or(one.length as f64);
        weight(other).total_cmp(&weight(self)).then_with(|| self.name().cmp(&other.name()))
    }

    fn name(&self) -> (&str, Protocol, &str, u32) {
        (&self.netns, self.protocol, &self.address, self.port.parse().unwrap_or(0))
    }
}

fn history(case: &Case) -> Vec<u32> {
    match case.history.iter().all(|length| *length == 0) {
        true => Vec::new(),
        false => case.history.clone(),
    }
}

// === impl Diagnosed ===

impl Diagnosed {
    /// Creates the entry for `diagnosis` of `listener`, which has held for `for_seconds`.
    pub fn new(listener: &Listener, diagnosis: Diagnosis, for_seconds: f64) -> Self {
        let Advice { meaning, evidence, steps, avoid } = advice::for_listener(listener, diagnosis);
        let runbook = runbook::url(diagnosis);
        Self { diagnosis, for_seconds, meaning, evidence, advice: steps, avoid, runbook }
    }

    fn bare(diagnosis: Diagnosis, for_seconds: f64) -> Self {
        let (meaning, evidence, advice, avoid, runbook) = Default::default();
        Self { diagnosis, for_seconds, meaning, evidence, advice, avoid, runbook }
    }
}

// === impl Clients ===

impl Clients {
    fn new(clients: &view::Clients) -> Self {
        let view::Clients { all, addresses, most } = clients;
        let client = |one: &view::Client| {
            let view::Client { address, waiting, half_open } = *one;
            Client { address, waiting, half_open }
        };
        Self {
            connections: *all,
            addresses: addresses.map(|addresses| addresses as u64),
            most: most.iter().map(client).collect(),
        }
    }

    /// `96 of 129 from 10.2.3.4 (6 half-open), 20 from 10.2.3.5, the rest from 7 others`.
    pub fn sentence(&self) -> String {
        let bound = if self.addresses.is_none() { "at least " } else { "" };
        let shown = self.most.iter().take(SHOWN_CLIENTS).enumerate();
        let mut parts: Vec<String> = shown
            .map(|(nth, client)| {
                let of = match nth {
                    0 => format!(" of {}", words::count(self.connections)),
                    _ => String::new(),
                };
                format!("{bound}{}{of} from {client}", words::count(client.all()))
            })
            .collect();
        match self.addresses.map(|addresses| addresses.saturating_sub(parts.len() as u64)) {
            Some(0) => {}
            Some(others) => {
                parts.push(format!("the rest from {}", words::many(others, "other")));
            }
            None => parts.push("the rest from more than 1,000 other addresses".into()),
        }
        parts.join(", ")
    }
}

// === impl Client ===

impl Client {
    fn all(&self) -> u64 {
        self.waiting + self.half_open
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        match self.half_open {
            0 => Ok(()),
            half_open => write!(f, " ({} half-open)", words::count(half_open)),
        }
    }
}

// === impl Accepts ===

impl Accepts {
    fn new(accepts: &view::Accepts, now: Duration) -> Self {
        let view::Accepts { total, per_second, mean_wait, history, began } = accepts;
        Self {
            total: *total,
            per_second: *per_second,
            mean_wait_seconds: mean_wait.map(|wait| wait.as_secs_f64()),
            history: history.clone(),
            began: began.as_ref().map(|began| Began::new(began, now)),
        }
    }

    /// `950 per second, mean wait 25 ms`.
    pub fn sentence(&self) -> String {
        let wait = self
            .mean_wait_seconds
            .map_or(String::new(), |wait| format!(", mean wait {}", words::time(wait)));
        format!("{}{wait}", words::rate(self.per_second))
    }
}

// === impl Began ===

impl Began {
    fn new(began: &view::Began, now: Duration) -> Self {
        let view::Began { at, onset: Onset { beginning, before, after } } = *began;
        let seconds_ago = now.saturating_sub(at).as_secs_f64();
        let mut made =
            Self { with: beginning, seconds_ago, before, after, evidence: String::new() };
        made.evidence = made.sentence();
        made
    }

    fn sentence(&self) -> String {
        let Self { with, seconds_ago, before, after, .. } = self;
        let (ago, before, after) =
            (words::time(*seconds_ago), words::rate(*before), words::rate(*after));
        let numbers = match with {
            Beginning::MoreArrivals => format!("at least {after} arrived, {before} before"),
            Beginning::SlowerServer => {
                format!("it accepted {after} while clients waited, {before} before")
            }
        };
        format!("{} {ago} ago: {numbers}.", with.words())
    }
}

// === impl Caps ===

impl Caps {
    fn new(settings: &Settings) -> Self {
        Self {
            somaxconn: settings.get(Setting::Somaxconn),
            tcp_max_syn_backlog: settings.get(Setting::TcpMaxSynBacklog),
            tcp_syncookies: settings.get(Setting::TcpSyncookies),
            tcp_abort_on_overflow: settings.get(Setting::TcpAbortOnOverflow),
        }
    }
}

// === impl Recent ===

impl Recent {
    /// Refusals per second; `None` without refusals.
    pub fn refusal_rate(&self) -> Option<f64> {
        let is_known = self.overflows > 0 && self.watched_seconds >= 1.0;
        is_known.then(|| self.overflows as f64 / self.watched_seconds)
    }

    fn new(evidence: &Evidence) -> Self {
        let Sockets { brimming, stuck, below_half, .. } = evidence.sockets;
        let scan = evidence.scan.as_ref();
        Self {
            watched_seconds: evidence.watched.as_secs_f64(),
            full_seconds: evidence.full.min(evidence.watched).as_secs_f64(),
            overflows: evidence.overflows,
            largest_burst: Some(evidence.largest_burst).filter(|burst| *burst > 0),
            untaken_seconds: scan.map(|scan| scan.untaken.as_secs_f64()),
            standing_seconds: scan.map_or(0.0, |scan| scan.standing.as_secs_f64()),
            sockets_brimming: brimming,
            sockets_stuck: stuck,
            sockets_below_half: below_half,
            earlier_somaxconn: evidence.earlier_somaxconn,
            old_half_open: scan.map(|scan| scan.old_half_open),
            half_open_cap: scan.and(evidence.half_open_cap),
            cookies_sent: evidence.cookies_sent,
            cookies_received: evidence.cookies_received,
        }
    }
}
