//! Decides which kinds of trouble a listener has: a pure function from the evidence in its history
//! to the diagnosis names that metric, table, page, alert and runbook share.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The window over which overflows, full time and cookies are added up.
pub const WINDOW: Duration = Duration::from_secs(30);
/// The minimum time that a diagnosis holds.
pub const HOLD: Duration = Duration::from_secs(10);
/// The time without an accept after which a queue is stalled.
pub const STALL: Duration = Duration::from_secs(10);
/// The part of [`STALL`] that must lie between the first and the last scan that agree. Scans run
/// slightly early or late.
pub const STALL_BY_SCANS: Duration = Duration::from_millis(8_500);
/// The longest time without an accept that earlier pauses can excuse. A longer time is a stall.
const LONGEST_PAUSE: Duration = Duration::from_secs(90);
/// The time every client must wait before the queue is standing. The first and the last scan that
/// agree run slightly early or late.
const STANDING: Duration = Duration::from_millis(28_500);
/// How long one socket of a reuseport group must be full. Hashing is uneven for short times.
pub const LASTING: Duration = Duration::from_secs(1);
/// How long a listener must have been sampled before shares of time are meaningful.
pub const WATCHED: Duration = Duration::from_secs(10);
/// The share of time spent full. From this share on the server is slow; below it a burst met a
/// short queue.
const SLOW_SHARE: f64 = 0.2;
/// The share of time since an overflow with more than half of a queue in use. From this share on no
/// burst was the cause: the server is becoming slow.
const LOADED_SHARE: f64 = 0.5;
/// The time after an overflow that is needed to see whether the queue drains.
const SETTLED: Duration = Duration::from_secs(3);
/// The share of a queue without clients from which on the queue is abandoned.
const ABANDONED_SHARE: f64 = 0.25;
/// The minimum number of abandoned connections: one client may always leave.
const ABANDONED_LEAST: u64 = 2;
/// The minimum wait for abandoned connections. A half-closed client of a fast server is no trouble.
const ABANDONED_WAIT: Duration = Duration::from_millis(500);
/// The minimum number of half-open connections of a flood where no cookies prove it.
const FLOOD_LEAST: u64 = 8;
/// The share of the queue from which on a peak is near the limit.
pub const NEARLY_FULL: f64 = 0.8;

/// A kind of trouble, in order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Diagnosis {
    /// One socket of a reuseport group is full or stalled while a sibling is below half.
    Imbalance,
    /// No connection is accepted from the queue.
    Stalled,
    /// Many connections in the queue no longer have a client.
    Abandoned,
    /// Connections come faster than they are accepted.
    SlowAccept,
    /// The queue has room, but every client waits in it.
    StandingQueue,
    /// A burst met a queue that was too short for it.
    ShortQueue,
    /// The limit comes from an earlier `somaxconn`.
    StaleLimit,
    /// Handshakes begin and stay half open.
    SynFlood,
    /// Connections wait at a listener that was never seen to accept. Information, not trouble.
    NotAccepting,
}

/// The facts known about one listener, added up for the diagnosis. No field depends on another
/// field.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evidence {
    /// How long the listener has been watched, up to [`WINDOW`].
    pub watched: Duration,
    /// The part of that time that samples cover. Late samples leave gaps.
    pub sampled: Duration,
    /// The part of the sampled time during which the queue was full.
    pub full: Duration,
    /// Overflows attributed to the listener in that time.
    pub overflows: u64,
    /// Overflows that are not a repetition by a client that was refused before.
    pub first_refusals: u64,
    /// Sampled time since the first of the overflows.
    pub since_overflow: Duration,
    /// The part of `since_overflow` during which more than half of a queue was in use.
    pub loaded: Duration,
    /// Whether more than half of a queue is in use now.
    pub is_loaded: bool,
    /// The largest number of connections that came within one second in that time: waiting and
    /// refused ones, each client counted once. A limit that holds all of them refuses no client.
    pub largest_burst: u64,
    /// How long the listener has been at its limit without a break.
    pub brimming: Duration,
    /// Whether the listener was slow within [`WINDOW`], which explains the overflows.
    pub was_slow: bool,
    /// The largest share of the queue in use within the peak window.
    pub peak_ratio: f64,
    pub sockets: Sockets,
    /// The results of the last scan; `None` without a recent scan.
    pub scan: Option<ScanEvidence>,
    /// Whether the listener was seen to accept since its sockets were opened, or has open accepted
    /// connections.
    pub has_accepted: bool,
    /// Whether the listener's overflows are counted. If not, only a full queue shows that clients
    /// are refused.
    pub counts_overflows: bool,
    /// The largest number of half-open connections; `None` where unknown.
    pub half_open_cap: Option<u64>,
    /// The `somaxconn` under which the listener was opened, where it is the listener's limit and
    /// was raised since.
    pub earlier_somaxconn: Option<u32>,
    /// Whether every handshake gets a cookie (`tcp_syncookies=2`) and no other listener can have
    /// received the cookies.
    pub gets_all_cookies: bool,
    /// SYN cookies sent in its namespace within [`WINDOW`].
    pub cookies_sent: u64,
    /// Handshakes finished by a cookie in its namespace within [`WINDOW`].
    pub cookies_received: u64,
}

/// The sockets of a listener, counted by condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// All sockets.
    pub all: u32,
    /// Sockets at their limit for [`LASTING`] or longer.
    pub brimming: u32,
    /// Sockets with a queue that did not become shorter for [`STALL`].
    pub stuck: u32,
    /// Sockets less than half full.
    pub below_half: u32,
    /// Sockets with a waiting connection.
    pub waiting: u32,
}

/// The results of the last two scans for a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScanEvidence {
    /// The queue length at the scan.
    pub length: u64,
    /// How long the connection at the head has waited.
    pub oldest: Duration,
    /// The time for which scans have found that no connection was accepted from the queue.
    pub untaken: Duration,
    /// Connections without a client, confirmed by two scans.
    pub abandoned: u64,
    /// The time for which no sample has seen the queue become shorter.
    pub unmoved: Duration,
    /// Connections whose client has not left.
    pub alive: u64,
    /// Whether a client waited when the queue was first found stalled. The queue stays stalled after
    /// that client has left.
    pub had_victim: bool,
    /// The time for which each scan has found a client at the head of the queue that had waited for
    /// `--standing-wait` or longer.
    pub standing: Duration,
    /// The longest pause between two accepts within the last ten minutes while clients waited.
    pub pause: Duration,
    /// Accepted connections that are open; `None` where they were not read.
    pub open: Option<u64>,
    /// The most accepted connections that were open at once within the last hour.
    pub most_open: u64,
    /// Half-open connections.
    pub half_open: u64,
    /// Half-open connections that are open for 3 s or longer: their SYN-ACK was repeated twice.
    pub old_half_open: u64,
}

/// A set of diagnoses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Diagnoses(u16);

// === impl Diagnosis ===

impl Diagnosis {
    /// Every diagnosis, in order of precedence.
    pub const ALL: [Self; 9] = [
        Self::Imbalance,
        Self::Stalled,
        Self::Abandoned,
        Self::SlowAccept,
        Self::StandingQueue,
        Self::ShortQueue,
        Self::StaleLimit,
        Self::SynFlood,
        Self::NotAccepting,
    ];

    /// The label value of the diagnosis.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Imbalance => "imbalance",
            Self::Stalled => "stalled",
            Self::Abandoned => "abandoned",
            Self::SlowAccept => "slow_accept",
            Self::StandingQueue => "standing_queue",
            Self::ShortQueue => "short_queue",
            Self::StaleLimit => "stale_limit",
            Self::SynFlood => "syn_flood",
            Self::NotAccepting => "not_accepting",
        }
    }

    /// Whether the evidence is events within the window and not the present state of the sockets.
    pub const fn outlasts_a_restart(self) -> bool {
        matches!(self, Self::SlowAccept | Self::ShortQueue)
    }

    /// The diagnosis in `held` of the same listener that causes `self`, if any. The cause
    /// determines what to do.
    pub fn follows_from(self, held: Diagnoses) -> Option<Self> {
        let causes: &[Self] = match self {
            Self::Abandoned => {
                &[Self::Imbalance, Self::Stalled, Self::SlowAccept, Self::StandingQueue]
            }
            Self::StandingQueue => &[Self::Imbalance, Self::Stalled, Self::SlowAccept],
            Self::SlowAccept | Self::ShortQueue => &[Self::Imbalance, Self::Stalled],
            _ => &[],
        };
        causes.iter().copied().find(|cause| held.contains(*cause))
    }

    /// Whether the diagnosis is only information: no client is refused, and no alert is needed.
    pub const fn is_information(self) -> bool {
        matches!(self, Self::NotAccepting)
    }
}

// === impl Diagnoses ===

impl Diagnoses {
    /// Adds one diagnosis.
    pub fn insert(&mut self, diagnosis: Diagnosis) {
        self.0 |= 1 << diagnosis as u16;
    }

    /// Whether the set contains the diagnosis.
    pub fn contains(self, diagnosis: Diagnosis) -> bool {
        self.0 & 1 << diagnosis as u16 != 0
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// All diagnoses of the set, in order of precedence.
    pub fn iter(self) -> impl Iterator<Item = Diagnosis> {
        Diagnosis::ALL.into_iter().filter(move |diagnosis| self.contains(*diagnosis))
    }
}

impl FromIterator<Diagnosis> for Diagnoses {
    fn from_iter<I: IntoIterator<Item = Diagnosis>>(diagnoses: I) -> Self {
        let mut all = Self::default();
        diagnoses.into_iter().for_each(|diagnosis| all.insert(diagnosis));
        all
    }
}

/// The diagnoses that the evidence neither confirms nor refutes, because samples came too late or
/// no scan ran.
pub fn undecided(evidence: &Evidence) -> Diagnoses {
    let waits = evidence.sockets.waiting > 0;
    let lacks_scan = waits && evidence.scan.is_none();
    let lacks_samples = evidence.sampled < WATCHED && evidence.is_loaded;
    let is_undecided = |diagnosis: &Diagnosis| match diagnosis {
        Diagnosis::SlowAccept | Diagnosis::ShortQueue => lacks_samples,
        Diagnosis::StaleLimit => false,
        Diagnosis::SynFlood => evidence.scan.is_none() && !evidence.gets_all_cookies,
        _ => lacks_scan,
    };
    Diagnosis::ALL.into_iter().filter(is_undecided).collect()
}

/// The diagnoses that the evidence confirms.
pub fn diagnose(evidence: &Evidence) -> Diagnoses {
    let needs_proof = |diagnosis: &Diagnosis| {
        use Diagnosis::{Abandoned, SlowAccept, Stalled, StandingQueue};
        matches!(diagnosis, Stalled | Abandoned | SlowAccept | StandingQueue)
    };
    let speaks_for = |diagnosis: &Diagnosis| match diagnosis {
        accepts if needs_proof(accepts) && evidence.is_unproven() => false,
        Diagnosis::Imbalance => evidence.is_imbalanced(),
        Diagnosis::Stalled => evidence.is_stalled(),
        Diagnosis::Abandoned => evidence.is_abandoned(),
        Diagnosis::SlowAccept => evidence.is_slow(),
        Diagnosis::StandingQueue => evidence.is_standing(),
        Diagnosis::ShortQueue => evidence.is_short(),
        Diagnosis::StaleLimit => evidence.is_stale(),
        Diagnosis::SynFlood => evidence.is_flooded(),
        Diagnosis::NotAccepting => evidence.is_not_accepting(),
    };
    Diagnosis::ALL.into_iter().filter(speaks_for).collect()
}

// === impl Evidence ===

impl Evidence {
    fn full_share(&self) -> f64 {
        share(self.full, self.sampled)
    }

    /// Whether the queue stays more than half full after it overflowed.
    fn stays_loaded(&self) -> bool {
        share(self.loaded, self.since_overflow) >= LOADED_SHARE
    }

    /// Whether one socket of a reuseport group is full or stuck while another is below half. The
    /// age of the oldest connection shows that a short queue is stuck and not just steady.
    fn is_imbalanced(&self) -> bool {
        let Sockets { all, brimming, stuck, below_half, .. } = self.sockets;
        let is_stuck = stuck > 0 && self.scan.is_some_and(|scan| scan.oldest >= STALL);
        all > 1 && below_half > 0 && (brimming > 0 || is_stuck)
    }

    /// Whether the queue is stalled. A server whose handlers regularly take long pauses is not
    /// stalled by a pause of that length.
    fn is_stalled(&self) -> bool {
        let Some(scan) = self.scan else { return false };
        let has_victim = scan.alive > 0 || scan.had_victim || self.turns_away();
        self.is_untaken(stalls_after(scan.pause)) && has_victim && !self.serves_one()
    }

    /// Whether no connection was accepted from any socket of the listener for `time`.
    fn is_untaken(&self, time: Duration) -> bool {
        let Sockets { all, stuck, .. } = self.sockets;
        all > 0 && stuck == all && self.scan.is_some_and(|scan| scan.untaken >= time)
    }

    /// Whether clients were refused.
    fn turns_away(&self) -> bool {
        match self.counts_overflows {
            true => self.overflows > 0,
            false => !self.full.is_zero(),
        }
    }

    /// Whether the listener was never seen to serve two clients at once and has at most one more
    /// client waiting.
    fn serves_one(&self) -> bool {
        let serves_one =
            |scan: ScanEvidence| scan.open == Some(1) && scan.most_open <= 1 && scan.length <= 1;
        self.scan.is_some_and(serves_one) && !self.turns_away()
    }

    /// Whether the listener may not be meant to accept: it was never seen to accept, and it refuses
    /// no client.
    fn is_unproven(&self) -> bool {
        !self.has_accepted && !self.turns_away()
    }

    /// Whether many waiting connections have no client. If every client has sent a reset, no row
    /// shows an age: only `unmoved` shows that the queue does not become shorter.
    fn is_abandoned(&self) -> bool {
        self.scan.is_some_and(|scan| {
            let waits = scan.oldest.max(scan.untaken).max(scan.unmoved) >= ABANDONED_WAIT;
            waits
                && scan.abandoned >= ABANDONED_LEAST
                && scan.abandoned as f64 >= scan.length as f64 * ABANDONED_SHARE
        })
    }

    /// Whether the server is slow. Before samples cover the whole window, a share of the sampled
    /// time is enough if the queue does not drain.
    fn is_slow(&self) -> bool {
        let is_so_far = self.sampled >= WATCHED && self.full_share() >= SLOW_SHARE;
        self.full >= WINDOW.mul_f64(SLOW_SHARE) || (is_so_far && self.stays_loaded())
    }

    /// Whether a burst met a queue that was too short. A burst ends soon: a queue that does not
    /// drain after an overflow belongs to a server that is becoming slow, and a queue at its limit
    /// right now may belong to such a server.
    fn is_short(&self) -> bool {
        self.first_refusals > 0
            && self.since_overflow >= SETTLED
            && !self.stays_loaded()
            && self.brimming < LASTING
            && !self.is_slow()
            && !self.was_slow
    }

    fn is_stale(&self) -> bool {
        self.earlier_somaxconn.is_some() && (self.overflows > 0 || self.peak_ratio > NEARLY_FULL)
    }

    /// Whether the queue has room, but each client waits: a slow server with a high limit.
    fn is_standing(&self) -> bool {
        let Some(scan) = self.scan else { return false };
        let is_long = scan.standing >= STANDING && scan.alive > 0;
        let is_only_that = !self.is_slow() && !self.is_stalled() && !self.is_imbalanced();
        is_long && is_only_that && !self.serves_one()
    }

    /// Whether the listener is a server that is not ready yet, a port that is only reserved, or a
    /// tool that serves one client.
    fn is_not_accepting(&self) -> bool {
        self.is_untaken(STALL_BY_SCANS) && (self.is_unproven() || self.serves_one())
    }

    /// Whether handshakes stay half open although the accept queue has room. If the queue is full,
    /// the handshakes of real clients stay half open too, and each of them causes overflows.
    fn is_flooded(&self) -> bool {
        let has_room = self.brimming.is_zero() && self.full < LASTING && !self.was_slow;
        has_room && (self.is_flooded_by_cookies() || self.is_left_half_open())
    }

    /// Whether cookies show a flood. Cookies alone do not: real clients that connect within one
    /// round trip also cause cookies, and return them. Cookies are decisive only if no handshake is
    /// kept half open.
    fn is_flooded_by_cookies(&self) -> bool {
        self.gets_all_cookies && self.cookies_stay_out()
    }

    fn is_left_half_open(&self) -> bool {
        let Some(scan) = self.scan else { return false };
        let is_at_cap =
            self.half_open_cap.is_some_and(|cap| scan.half_open > 0 && scan.half_open >= cap);
        // The few half-open connections of a short SYN queue may be clients with a bad network
        // path.
        let are_old = scan.half_open >= FLOOD_LEAST && scan.old_half_open * 2 > scan.half_open;
        is_at_cap && (are_old || self.cookies_stay_out()) && self.overflows < scan.half_open
    }

    fn cookies_stay_out(&self) -> bool {
        self.cookies_sent > self.cookies_received.saturating_mul(4).saturating_add(100)
    }
}

fn share(part: Duration, all: Duration) -> f64 {
    if all.is_zero() { 0.0 } else { part.as_secs_f64() / all.as_secs_f64() }
}

/// Returns the time without an accept after which a queue is stalled, for a server whose longest
/// earlier pause between two accepts was `pause`.
pub fn stalls_after(pause: Duration) -> Duration {
    STALL_BY_SCANS.max((pause * 2).min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Diagnosis::*;

    const SECOND: Duration = seconds(1);

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The evidence of one idle socket that was watched for the whole window.
    fn calm() -> Evidence {
        Evidence {
            watched: WINDOW,
            sampled: WINDOW,
            sockets: Sockets { all: 1, below_half: 1, ..Sockets::default() },
            scan: Some(ScanEvidence::default()),
            half_open_cap: Some(128),
            has_accepted: true,
            counts_overflows: true,
            ..Evidence::default()
        }
    }

    fn scanned(change: impl FnOnce(&mut ScanEvidence)) -> Evidence {
        let mut evidence = calm();
        change(evidence.scan.as_mut().unwrap());
        evidence
    }

    fn said(evidence: Evidence) -> Vec<Diagnosis> {
        diagnose(&evidence).iter().collect()
    }

    #[test]
    fn all_lists_diagnoses_in_the_order_of_their_discriminants() {
        for (place, diagnosis) in Diagnosis::ALL.into_iter().enumerate() {
            assert_eq!(diagnosis as usize, place);
        }
        assert_eq!(
            Diagnoses::from_iter([SynFlood, Stalled]).iter().collect::<Vec<_>>(),
            [Stalled, SynFlood]
        );
    }

    #[test]
    fn some_diagnoses_follow_from_other_diagnoses() {
        let follows =
            |word: Diagnosis, held: &[Diagnosis]| word.follows_from(held.iter().copied().collect());
        assert_eq!(follows(Abandoned, &[Abandoned, SlowAccept]), Some(SlowAccept));
        assert_eq!(follows(Abandoned, &[Stalled, Abandoned, SlowAccept]), Some(Stalled));
        assert_eq!(follows(SlowAccept, &[Abandoned, SlowAccept]), None);
        assert_eq!(follows(SlowAccept, &[Stalled, SlowAccept]), Some(Stalled));
        assert_eq!(follows(StandingQueue, &[Imbalance, StandingQueue]), Some(Imbalance));
        assert_eq!(follows(StandingQueue, &[SlowAccept, StandingQueue]), Some(SlowAccept));
        assert_eq!(follows(Abandoned, &[Abandoned]), None);
        assert_eq!(follows(StaleLimit, &[SlowAccept, StaleLimit]), None);
    }

    #[test]
    fn an_idle_listener_has_no_diagnosis() {
        assert_eq!(said(calm()), []);
    }

    #[test]
    fn a_queue_from_which_no_connection_is_taken_is_stalled() {
        let all = |stuck| Sockets { all: 2, stuck, ..Sockets::default() };
        let untaken = |untaken| scanned(|scan| (scan.untaken, scan.alive) = (untaken, 1));
        assert_eq!(said(Evidence { sockets: all(2), ..untaken(seconds(10)) }), [Stalled]);
        assert_eq!(said(Evidence { sockets: all(2), ..untaken(seconds(5)) }), []);
        assert_eq!(said(Evidence { sockets: all(1), ..untaken(seconds(10)) }), []);
        assert_eq!(said(Evidence { sockets: all(2), scan: None, ..calm() }), []);
        let left = |had_victim| {
            scanned(|scan| {
                (scan.untaken, scan.alive, scan.had_victim) = (seconds(10), 0, had_victim);
            })
        };
        assert_eq!(said(Evidence { sockets: all(2), ..left(true) }), [Stalled]);
        assert_eq!(said(Evidence { sockets: all(2), ..left(false) }), []);
    }

    #[test]
    fn one_full_socket_beside_an_idle_one_is_an_imbalance() {
        let sockets =
            Sockets { all: 4, brimming: 1, stuck: 1, below_half: 3, ..Sockets::default() };
        assert_eq!(said(Evidence { sockets, ..calm() }), [Imbalance]);
        let all_full = Sockets { all: 4, brimming: 4, ..Sockets::default() };
        assert_eq!(said(Evidence { sockets: all_full, ..calm() }), []);
        let alone = Sockets { all: 1, brimming: 1, ..Sockets::default() };
        assert_eq!(said(Evidence { sockets: alone, ..calm() }), []);
    }

    #[test]
    fn one_stuck_socket_of_a_group_needs_an_old_connection() {
        let sockets = Sockets { all: 4, stuck: 1, below_half: 4, ..Sockets::default() };
        let with = |oldest| Evidence { sockets, ..scanned(|scan| scan.oldest = oldest) };
        assert_eq!(said(with(seconds(12))), [Imbalance]);
        assert_eq!(said(with(seconds(1))), []);
    }

    #[test]
    fn a_quarter_of_the_queue_without_clients_is_abandoned() {
        let with = |abandoned, oldest| {
            scanned(|scan| {
                (scan.length, scan.abandoned, scan.oldest) = (20, abandoned, oldest);
            })
        };
        assert_eq!(said(with(5, seconds(2))), [Abandoned]);
        assert_eq!(said(with(4, seconds(2))), []);
        // Half-closing clients of a fast server look the same, but do not wait.
        assert_eq!(said(with(20, Duration::from_millis(3))), []);
    }

    #[test]
    fn a_queue_of_reset_connections_is_abandoned_without_an_age() {
        let gone = scanned(|scan| (scan.length, scan.abandoned, scan.unmoved) = (9, 9, seconds(2)));
        assert_eq!(said(gone), [Abandoned]);
    }

    /// The queue overflowed 20 s ago and has drained since.
    fn burst() -> Evidence {
        let (overflows, first_refusals) = (9, 9);
        let (since_overflow, loaded) = (seconds(20), seconds(1));
        Evidence { overflows, first_refusals, since_overflow, loaded, ..calm() }
    }

    #[test]
    fn full_for_a_fifth_of_the_time_is_slow_and_less_is_short() {
        let full = |full| Evidence { full, ..burst() };
        assert_eq!(said(full(seconds(6))), [SlowAccept]);
        assert_eq!(said(full(seconds(5))), [ShortQueue]);
        assert_eq!(said(Evidence { full: seconds(5), ..calm() }), []);
    }

    #[test]
    fn a_server_that_becomes_slow_never_has_a_short_queue() {
        // Each second: the queue was more than half full all the time before it was full for 6 s.
        let becoming = |second| Evidence {
            full: Duration::from_millis(100) * second,
            since_overflow: SECOND * second,
            loaded: SECOND * second,
            is_loaded: true,
            ..burst()
        };
        let words: Vec<_> = (0..=60).flat_map(|second| said(becoming(second))).collect();
        assert_eq!(words, [SlowAccept]);
    }

    #[test]
    fn a_burst_is_short_once_it_is_seen_to_drain() {
        let after = |since_overflow, loaded| Evidence { since_overflow, loaded, ..burst() };
        assert_eq!(said(after(seconds(1), Duration::ZERO)), []);
        assert_eq!(said(after(seconds(3), seconds(1))), [ShortQueue]);
        // The queue takes four seconds to drain, which is known after eight seconds.
        assert_eq!(said(after(seconds(7), seconds(4))), []);
        assert_eq!(said(after(seconds(9), seconds(4))), [ShortQueue]);
    }

    #[test]
    fn retries_of_refused_clients_are_no_burst() {
        assert_eq!(said(Evidence { overflows: 1_489, first_refusals: 0, ..burst() }), []);
    }

    #[test]
    fn a_burst_in_progress_and_the_end_of_a_slow_time_are_no_short_queue() {
        assert_eq!(said(Evidence { brimming: seconds(3), ..burst() }), []);
        assert_eq!(said(Evidence { was_slow: true, ..burst() }), []);
    }

    #[test]
    fn soon_after_the_start_a_share_of_the_sampled_time_is_enough() {
        let slow = Evidence { loaded: seconds(19), full: seconds(3), ..burst() };
        assert_eq!(said(Evidence { sampled: seconds(10), ..slow }), [SlowAccept]);
        assert_eq!(said(Evidence { sampled: seconds(9), ..slow }), []);
        assert_eq!(said(Evidence { sampled: seconds(6), full: seconds(6), ..slow }), [SlowAccept]);
        // A burst right after the start does not make the server slow.
        assert_eq!(
            said(Evidence { sampled: seconds(10), full: seconds(3), ..burst() }),
            [ShortQueue]
        );
    }

    #[test]
    fn late_samples_and_scans_decide_nothing() {
        let waiting = Evidence {
            sockets: Sockets { all: 1, waiting: 1, ..Sockets::default() },
            is_loaded: true,
            ..calm()
        };
        let of = |evidence: Evidence| undecided(&evidence).iter().collect::<Vec<_>>();
        assert_eq!(of(waiting), []);
        assert_eq!(of(Evidence { sampled: seconds(3), ..waiting }), [SlowAccept, ShortQueue]);
        // A queue that is seen short is no longer slow, even when the sample comes late.
        assert_eq!(of(Evidence { sampled: seconds(3), is_loaded: false, ..waiting }), []);
        assert_eq!(
            of(Evidence { scan: None, ..waiting }),
            [Imbalance, Stalled, Abandoned, StandingQueue, SynFlood, NotAccepting]
        );
        assert_eq!(of(Evidence { scan: None, ..calm() }), [SynFlood]);
    }

    #[test]
    fn an_earlier_somaxconn_matters_only_near_the_limit() {
        let stale = Evidence { earlier_somaxconn: Some(128), ..calm() };
        assert_eq!(said(stale), []);
        assert_eq!(said(Evidence { peak_ratio: 0.9, ..stale }), [StaleLimit]);
        let overflowing = Evidence { earlier_somaxconn: Some(128), ..burst() };
        assert_eq!(said(overflowing), [ShortQueue, StaleLimit]);
    }

    fn half_open(half_open: u64, old_half_open: u64) -> Evidence {
        scanned(|scan| (scan.half_open, scan.old_half_open) = (half_open, old_half_open))
    }

    #[test]
    fn handshakes_left_open_at_the_cap_are_a_flood_and_cookies_alone_are_not() {
        assert_eq!(said(half_open(128, 100)), [SynFlood]);
        assert_eq!(said(half_open(128, 10)), []);
        assert_eq!(said(half_open(20, 20)), []);
        let cookies = |cookies_sent, cookies_received| Evidence {
            cookies_sent,
            cookies_received,
            ..half_open(129, 0)
        };
        assert_eq!(said(cookies(5_000, 10)), [SynFlood]);
        assert_eq!(said(cookies(43, 43)), []);
    }

    #[test]
    fn an_overloaded_server_with_real_clients_is_not_flooded() {
        let flood = half_open(65, 60);
        let flood = Evidence { half_open_cap: Some(64), ..flood };
        assert_eq!(said(flood), [SynFlood]);
        // Each handshake that stays half open has overflowed.
        assert_eq!(said(Evidence { overflows: 65, ..flood }), []);
        assert_eq!(said(Evidence { overflows: 20, ..flood }), [SynFlood]);
        // The queue is full now, was full for a second, or the server was slow.
        assert_eq!(said(Evidence { brimming: Duration::from_millis(1), ..flood }), []);
        assert_eq!(said(Evidence { full: seconds(1), ..flood }), []);
        assert_eq!(said(Evidence { was_slow: true, ..flood }), []);
    }

    #[test]
    fn a_full_syn_queue_of_8_is_a_flood_and_one_of_2_is_not() {
        let of = |cap, open| Evidence { half_open_cap: Some(cap), ..half_open(open, open) };
        // Kernels before 6.6 hold at most the limit, later kernels one more.
        assert_eq!([said(of(8, 8)), said(of(8, 9))], [[SynFlood], [SynFlood]]);
        assert_eq!(said(of(2, 2)), []);
        let cookies = Evidence { cookies_sent: 500, cookies_received: 20, ..of(2, 2) };
        assert_eq!(said(cookies), [SynFlood]);
    }

    #[test]
    fn cookies_are_decisive_where_every_handshake_gets_one() {
        let cookies = |cookies_sent, cookies_received, gets_all_cookies| Evidence {
            cookies_sent,
            cookies_received,
            gets_all_cookies,
            scan: None,
            ..calm()
        };
        assert_eq!(said(cookies(5_000, 10, true)), [SynFlood]);
        assert_eq!(said(cookies(5_000, 10, false)), []);
        // A busy server, also one whose clients send some SYNs twice.
        assert_eq!(said(cookies(5_000, 4_000, true)), []);
        assert_eq!(said(cookies(90, 0, true)), []);
        assert_eq!(said(Evidence { full: seconds(3), ..cookies(5_000, 10, true) }), []);
    }
}
