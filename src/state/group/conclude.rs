//! Updates the diagnoses of each listener from its record, its sockets and its namespace.

use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::diagnosis::{Evidence, LASTING, STALL};
use crate::snapshot::{Setting, Settings};
use crate::state::IncidentNotice;
use crate::state::exposure::{Admission, Exposure};
use crate::state::listener::Address;
use crate::state::record::IncidentEvent;
use crate::state::socket::Socket;

use super::Group;

/// The evidence from a namespace that applies to each of its listeners.
#[derive(Clone, Debug)]
pub(in crate::state) struct Context {
    /// The time on the clock of the fold.
    pub(in crate::state) now: Duration,
    pub(in crate::state) settings: Settings,
    /// Earlier values of `somaxconn`, each with the time at which it was last read before
    /// `somaxconn` was raised.
    pub(in crate::state) raised: Vec<(u32, Duration)>,
    /// SYN cookies sent within the window.
    pub(in crate::state) cookies_sent: u64,
    /// Handshakes completed with a cookie within the window.
    pub(in crate::state) cookies_received: u64,
    /// The share of the last overflows that repeat a cookie.
    pub(in crate::state) repeated_cookies: f64,
}

// === impl Group ===

impl<A: Address> Group<A> {
    /// Updates every listener that has a record, and adds the incidents that started or ended to
    /// `incidents`.
    pub(in crate::state) fn conclude(
        &mut self,
        context: &Context,
        admission: &mut Admission,
        incidents: &mut Vec<IncidentNotice>,
    ) {
        let cookie_target = self.cookie_target(context);
        if let Some(target) = cookie_target {
            self.listeners[target].record.get_or_insert_default();
            self.at_rest = false;
        }
        if self.at_rest {
            return;
        }
        let mut evidence = self.evidence(context, cookie_target);
        self.revision += u64::from(!evidence.is_empty());
        for (key, listener) in &mut self.listeners {
            let ended = listener.take_event();
            let concluded = evidence
                .remove(&key)
                .and_then(|of| listener.conclude(context.now, of, context.repeated_cookies));
            self.revision += u64::from(listener.name_alert_owner(context.now));
            if listener.exposure == Exposure::Excluded {
                continue;
            }
            let has_started = matches!(concluded, Some(IncidentEvent::Started(_)));
            if has_started && !listener.exposure.is_exposed() {
                admission.hurry();
            }
            let events = ended.into_iter().chain(concluded);
            incidents.extend(events.map(|event| IncidentNotice {
                netns: self.scope.name.clone(),
                source: listener.source,
                name: listener.shown.name.clone(),
                owner: listener.shown.owner.clone(),
                event,
                at: context.now,
            }));
        }
    }

    /// The listener that receives all SYN cookies of its namespace, if only one listener can.
    ///
    /// With `tcp_syncookies=2` no socket shows for which listener the cookies are sent.
    fn cookie_target(&self, context: &Context) -> Option<usize> {
        if !A::HAS_HANDSHAKE || !context.sends_only_cookies() {
            return None;
        }
        let open = || self.listeners.iter().filter(|(_, listener)| listener.is_open());
        let has_outer = open().any(|(_, listener)| !listener.address.is_local());
        let mut targets = open().filter(|(_, listener)| !has_outer || !listener.address.is_local());
        let target = targets.next().map(|(key, _)| key);
        target.filter(|_| targets.next().is_none())
    }

    /// The evidence from sockets and namespace for each listener that has a record. The listener
    /// `cookie_target` receives all SYN cookies.
    fn evidence(
        &self,
        context: &Context,
        cookie_target: Option<usize>,
    ) -> FxHashMap<usize, Evidence> {
        let with_record = self.listeners.iter().filter(|(_, listener)| listener.record.is_some());
        let mut all: FxHashMap<usize, Evidence> =
            with_record.map(|(key, _)| (key, context.evidence())).collect();
        if all.is_empty() {
            return all;
        }
        if let Some(evidence) = cookie_target.and_then(|target| all.get_mut(&target)) {
            evidence.gets_all_cookies = true;
        }
        // A socket's state is known only up to the time of the last dump.
        let seen_at = self.sampled_at.unwrap_or(context.now);
        for socket in self.sockets.living() {
            if let Some(evidence) = all.get_mut(&socket.listener) {
                context.add(socket, self.sockets.is_current(socket), seen_at, evidence);
            }
        }
        all
    }
}

// === impl Context ===

impl Context {
    fn evidence(&self) -> Evidence {
        let (cookies_sent, cookies_received) = (self.cookies_sent, self.cookies_received);
        Evidence { cookies_sent, cookies_received, ..Evidence::default() }
    }

    fn add(&self, socket: &Socket, is_current: bool, seen_at: Duration, evidence: &mut Evidence) {
        let lasts = |since: Duration, time| seen_at.saturating_sub(since) >= time;
        evidence.has_accepted |= socket.has_accepted;
        // A server that restarts is no group: its old socket is not in the dump of the new one.
        if !is_current {
            return;
        }
        let sockets = &mut evidence.sockets;
        sockets.all += 1;
        sockets.brimming +=
            u32::from(socket.brimming_since.is_some_and(|since| lasts(since, LASTING)));
        sockets.waiting += u32::from(socket.queue.length > 0);
        sockets.stuck += u32::from(socket.queue.length > 0 && lasts(socket.fell_at, STALL));
        sockets.below_half +=
            u32::from(socket.queue.fullness().is_some_and(|fullness| fullness < 0.5));
        let Some(limit) = socket.queue.limit else { return };
        // The server, not `somaxconn`, may have set the limit of a socket that was opened after the
        // raise.
        let earlier = |(value, in_force_at): &&(u32, Duration)| {
            *value == limit && socket.first_seen <= *in_force_at
        };
        if self.raised.iter().any(|raise| earlier(&raise)) {
            evidence.earlier_somaxconn = Some(limit);
        }
        *evidence.half_open_cap.get_or_insert(0) += half_open_cap(&self.settings, limit);
    }

    fn sends_only_cookies(&self) -> bool {
        self.settings.get(Setting::TcpSyncookies) == Some(2) && self.cookies_sent > 0
    }
}

/// The capacity of the SYN queue of a socket with this limit. With cookies the SYN queue may hold
/// as many connections as the accept queue. Without cookies it holds at most three quarters of
/// `tcp_max_syn_backlog`.
pub(super) fn half_open_cap(settings: &Settings, limit: u32) -> u64 {
    let limit = u64::from(limit);
    let backlog = settings.get(Setting::TcpMaxSynBacklog).and_then(|cap| u64::try_from(cap).ok());
    match (settings.get(Setting::TcpSyncookies), backlog) {
        (Some(0), Some(backlog)) => limit.min(backlog - backlog / 4),
        _ => limit,
    }
}
