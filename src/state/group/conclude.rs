//! Draws the conclusions from what is remembered of each listener, with what its sockets and its namespace add.

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::diagnosis::{Evidence, LASTING, STALL};
use crate::snapshot::owner::Owner;
use crate::snapshot::{Setting, Settings};
use crate::state::listener::Address;
use crate::state::record::Turn;
use crate::state::socket::Socket;
use crate::view::ListenerName;

use super::Group;

/// What a namespace adds to the evidence at each of its listeners.
#[derive(Clone, Debug)]
pub(in crate::state) struct Context {
    /// On the fold's own clock.
    pub(in crate::state) now: Duration,
    /// Its settings.
    pub(in crate::state) settings: Settings,
    /// Earlier values of `somaxconn`, and when each was raised.
    pub(in crate::state) raised: Vec<(u32, Duration)>,
    /// SYN cookies sent lately.
    pub(in crate::state) cookies_sent: u64,
    /// Handshakes finished by a cookie lately.
    pub(in crate::state) cookies_received: u64,
}

// === impl Group ===

impl<A: Address> Group<A> {
    /// Looks at every listener of which something is remembered, and tells which incidents started or ended.
    pub(in crate::state) fn conclude(
        &mut self,
        context: &Context,
        told: &mut impl FnMut(&Arc<ListenerName>, &Arc<Owner>, Turn),
    ) {
        if self.at_rest {
            return;
        }
        let mut evidence = self.evidence(context);
        self.revision += u64::from(!evidence.is_empty());
        for (key, listener) in &mut self.listeners {
            let ended = listener.take_turn();
            let concluded = evidence.remove(&key).and_then(|of| listener.conclude(context.now, of));
            if listener.exposure.is_exposed() {
                for turn in ended.into_iter().chain(concluded) {
                    told(&listener.shown.name, &listener.shown.owner, turn);
                }
            }
        }
    }

    /// What sockets and namespace say of each listener of which something is remembered.
    fn evidence(&self, context: &Context) -> FxHashMap<usize, Evidence> {
        let with_record = self.listeners.iter().filter(|(_, listener)| listener.record.is_some());
        let mut all: FxHashMap<usize, Evidence> =
            with_record.map(|(key, _)| (key, context.evidence())).collect();
        if all.is_empty() {
            return all;
        }
        // How a socket was then is all that is known of it.
        let seen_at = self.sampled_at.unwrap_or(context.now);
        for socket in self.sockets.living() {
            if let Some(evidence) = all.get_mut(&socket.listener) {
                context.add(socket, seen_at, evidence);
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

    fn add(&self, socket: &Socket, seen_at: Duration, evidence: &mut Evidence) {
        let lasts = |since: Duration, time| seen_at.saturating_sub(since) >= time;
        let sockets = &mut evidence.sockets;
        sockets.all += 1;
        sockets.brimming +=
            u32::from(socket.brimming_since.is_some_and(|since| lasts(since, LASTING)));
        sockets.stuck += u32::from(socket.queue.length > 0 && lasts(socket.fell_at, STALL));
        sockets.below_half +=
            u32::from(socket.queue.fullness().is_some_and(|fullness| fullness < 0.5));
        let Some(limit) = socket.queue.limit else { return };
        let earlier = |(value, raised_at): &&(u32, Duration)| {
            *value == limit && socket.first_seen < *raised_at
        };
        if self.raised.iter().any(|raise| earlier(&raise)) {
            evidence.earlier_somaxconn = Some(limit);
        }
        *evidence.half_open_cap.get_or_insert(0) += self.half_open_cap(limit);
    }

    /// With cookies the SYN queue may hold as many as the accept queue; without, three quarters of its own cap at most.
    fn half_open_cap(&self, limit: u32) -> u64 {
        let limit = u64::from(limit);
        let backlog =
            self.settings.get(Setting::TcpMaxSynBacklog).and_then(|cap| u64::try_from(cap).ok());
        match (self.settings.get(Setting::TcpSyncookies), backlog) {
            (Some(0), Some(backlog)) => limit.min(backlog - backlog / 4),
            _ => limit,
        }
    }
}
