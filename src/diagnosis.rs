//! What kind of trouble a listener is in: a pure function from the numbers that its history adds up to, to the words
//! that metric, table, page, alert and runbook share.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How far back overflows, full time and cookies are added up.
pub const WINDOW: Duration = Duration::from_secs(30);
/// How long a diagnosis holds at least.
pub const HOLD: Duration = Duration::from_secs(10);
/// How long nothing may be taken from a queue before it is called stalled.
pub const STALL: Duration = Duration::from_secs(10);
/// Scans come a little early or late: so much of [`STALL`] must lie between the first and the last that agree.
const STALL_BY_SCANS: Duration = Duration::from_millis(8_500);
/// How long one socket of a reuseport group must be full: hashing is uneven for moments.
pub const LASTING: Duration = Duration::from_secs(1);
/// For how long a listener must have been watched before shares of time say anything.
pub const WATCHED: Duration = Duration::from_secs(10);
/// The share of time spent full from which on a server is slow, and below which a burst met a short queue.
const SLOW_SHARE: f64 = 0.2;
/// The share of a queue without clients from which on it is called abandoned.
const ABANDONED_SHARE: f64 = 0.25;
/// At least so many, too: one client may always leave.
const ABANDONED_LEAST: u64 = 2;
/// Clients leave queues that make them wait; a half-closed client of a fast server is no trouble.
const ABANDONED_WAIT: Duration = Duration::from_millis(500);
/// The share of the queue at which a peak is near the limit.
pub const NEARLY_FULL: f64 = 0.8;

/// A kind of trouble, in order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Diagnosis {
    /// One socket of a reuseport group is full or stalled while a sibling is below half.
    Imbalance,
    /// Nothing is taken from the queue at all.
    Stalled,
    /// A good part of the queue has no client any more.
    Abandoned,
    /// Connections come faster than they are accepted.
    SlowAccept,
    /// The queue has room, but every client waits in it.
    StandingQueue,
    /// A burst met a queue that was too short for it.
    ShortQueue,
    /// The limit is that of an earlier `somaxconn`.
    StaleLimit,
    /// Handshakes are begun and left open.
    SynFlood,
    /// Connections wait at a listener that was never seen to accept: information, no trouble.
    NotAccepting,
}

/// What is known of one listener, added up for the diagnosis. Nothing in it depends on the others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evidence {
    /// For how long it has been watched, up to [`WINDOW`].
    pub watched: Duration,
    /// How much of that it was full.
    pub full: Duration,
    /// Overflows blamed on it in that time.
    pub overflows: u64,
    /// The largest number of connections that came within one second in that time, waiting and refused ones, each client
    /// counted once. A limit that holds them all refuses nobody.
    pub largest_burst: u64,
    /// For how long it has been at its limit without a break.
    pub brimming: Duration,
    /// Whether it was slow within [`WINDOW`]: then the overflows are explained.
    pub was_slow: bool,
    /// Largest share of the queue in use within the peak window.
    pub peak_ratio: f64,
    /// Its sockets.
    pub sockets: Sockets,
    /// What the last scan found; `None` when there is none young enough.
    pub scan: Option<ScanEvidence>,
    /// Whether it was seen to accept since its sockets were opened, or accepted connections of it are open.
    pub has_accepted: bool,
    /// For how long no scan and no sample found the queue empty or its head younger than `--standing-wait`.
    pub standing: Duration,
    /// How many may be half open; `None` where that is not known.
    pub half_open_cap: Option<u64>,
    /// The `somaxconn` that it was opened under and that was raised since, where that is its limit.
    pub earlier_somaxconn: Option<u32>,
    /// SYN cookies sent in its namespace within [`WINDOW`].
    pub cookies_sent: u64,
    /// Handshakes finished by a cookie in its namespace within [`WINDOW`].
    pub cookies_received: u64,
}

/// How the sockets of a listener differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// All of them.
    pub all: u32,
    /// Those at their limit for [`LASTING`] or longer.
    pub brimming: u32,
    /// Those that hold a queue which did not become shorter for [`STALL`].
    pub stuck: u32,
    /// Those less than half full.
    pub below_half: u32,
}

/// What the last scan, together with the one before, says of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScanEvidence {
    /// The length it was taken at.
    pub length: u64,
    /// How long the connection at the head has waited.
    pub oldest: Duration,
    /// For how long scans have found nothing taken from the queue.
    pub untaken: Duration,
    /// Connections without a client, agreed by two scans.
    pub abandoned: u64,
    /// Half-open connections.
    pub half_open: u64,
    /// Those of them that are open for 3 s or longer: their SYN-ACK was repeated twice.
    pub old_half_open: u64,
}

/// Several diagnoses.
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

    /// The word for it.
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

    /// Whether it is only information: nobody is turned away, and nobody is to be called.
    pub const fn is_information(self) -> bool {
        matches!(self, Self::NotAccepting)
    }
}

// === impl Diagnoses ===

impl Diagnoses {
    /// Adds one.
    pub fn insert(&mut self, diagnosis: Diagnosis) {
        self.0 |= 1 << diagnosis as u16;
    }

    /// Whether it is among them.
    pub fn contains(self, diagnosis: Diagnosis) -> bool {
        self.0 & 1 << diagnosis as u16 != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// All of them, in order of precedence.
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

/// What the evidence speaks for.
pub fn diagnose(evidence: &Evidence) -> Diagnoses {
    let speaks_for = |diagnosis: &Diagnosis| match diagnosis {
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
    /// The share of the watched time during which it was full.
    pub fn full_share(&self) -> f64 {
        let watched = self.watched.as_secs_f64();
        if watched > 0.0 { self.full.as_secs_f64() / watched } else { 0.0 }
    }

    /// Of a group; the oldest connection shows that a short queue is stuck and not just steady.
    fn is_imbalanced(&self) -> bool {
        let Sockets { all, brimming, stuck, below_half } = self.sockets;
        let is_stuck = stuck > 0 && self.scan.is_some_and(|scan| scan.oldest >= STALL);
        all > 1 && below_half > 0 && (brimming > 0 || is_stuck)
    }

    fn is_stalled(&self) -> bool {
        let Sockets { all, stuck, .. } = self.sockets;
        all > 0 && stuck == all && self.scan.is_some_and(|scan| scan.untaken >= STALL_BY_SCANS)
    }

    /// Where every client has reset there is no row to tell an age by, and nothing is taken either.
    fn is_abandoned(&self) -> bool {
        self.scan.is_some_and(|scan| {
            let waits = scan.oldest >= ABANDONED_WAIT || scan.untaken >= ABANDONED_WAIT;
            waits
                && scan.abandoned >= ABANDONED_LEAST
                && scan.abandoned as f64 >= scan.length as f64 * ABANDONED_SHARE
        })
    }

    fn is_slow(&self) -> bool {
        self.watched >= WATCHED && self.full_share() >= SLOW_SHARE
    }

    /// A queue that is at its limit just now may be the beginning of something longer.
    fn is_short(&self) -> bool {
        self.watched >= WATCHED
            && self.overflows > 0
            && !self.is_slow()
            && !self.was_slow
            && self.brimming < LASTING
    }

    fn is_stale(&self) -> bool {
        self.earlier_somaxconn.is_some() && (self.overflows > 0 || self.peak_ratio > NEARLY_FULL)
    }

    /// The queue has room, and yet each client waits: how slow servers look whose limit is high.
    fn is_standing(&self) -> bool {
        self.standing >= WINDOW && self.has_accepted && !self.is_slow() && !self.is_stalled()
    }

    /// Not ready yet, a lock port, or a tool that serves one client.
    fn is_not_accepting(&self) -> bool {
        let Sockets { all, stuck, .. } = self.sockets;
        let waits = self.scan.is_some_and(|scan| scan.untaken >= STALL_BY_SCANS);
        stuck == all && waits && !self.has_accepted && self.overflows == 0 && !self.is_stalled()
    }

    /// Cookies alone are no flood: real clients that come within one round trip make them too, and send them back.
    fn is_flooded(&self) -> bool {
        let Some(scan) = self.scan else { return false };
        let is_at_cap =
            self.half_open_cap.is_some_and(|cap| scan.half_open > 0 && scan.half_open >= cap);
        let is_left_open = scan.old_half_open * 2 > scan.half_open
            || self.cookies_sent > self.cookies_received.saturating_mul(4).saturating_add(100);
        is_at_cap && is_left_open && self.brimming.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Diagnosis::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// One socket, watched for long, idle.
    fn calm() -> Evidence {
        Evidence {
            watched: WINDOW,
            sockets: Sockets { all: 1, below_half: 1, ..Sockets::default() },
            scan: Some(ScanEvidence::default()),
            half_open_cap: Some(128),
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
    fn diagnoses_are_kept_where_all_says() {
        for (place, diagnosis) in Diagnosis::ALL.into_iter().enumerate() {
            assert_eq!(diagnosis as usize, place);
        }
        assert_eq!(
            Diagnoses::from_iter([SynFlood, Stalled]).iter().collect::<Vec<_>>(),
            [Stalled, SynFlood]
        );
    }

    #[test]
    fn calm_is_no_trouble() {
        assert_eq!(said(calm()), []);
    }

    #[test]
    fn a_queue_from_which_nothing_is_taken_is_stalled() {
        let all = |stuck| Sockets { all: 2, stuck, ..Sockets::default() };
        let untaken = |untaken| scanned(|scan| scan.untaken = untaken);
        assert_eq!(said(Evidence { sockets: all(2), ..untaken(seconds(10)) }), [Stalled]);
        assert_eq!(said(Evidence { sockets: all(2), ..untaken(seconds(5)) }), []);
        assert_eq!(said(Evidence { sockets: all(1), ..untaken(seconds(10)) }), []);
        assert_eq!(said(Evidence { sockets: all(2), scan: None, ..calm() }), []);
    }

    #[test]
    fn one_full_socket_beside_an_idle_one_is_an_imbalance() {
        let sockets = Sockets { all: 4, brimming: 1, stuck: 1, below_half: 3 };
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
    fn clients_that_reset_leave_no_age_behind() {
        let gone = scanned(|scan| (scan.length, scan.abandoned, scan.untaken) = (9, 9, seconds(2)));
        assert_eq!(said(gone), [Abandoned]);
    }

    #[test]
    fn full_for_a_fifth_of_the_time_is_slow_and_less_is_short() {
        let full = |full, overflows| Evidence { full, overflows, ..calm() };
        assert_eq!(said(full(seconds(6), 9)), [SlowAccept]);
        assert_eq!(said(full(seconds(5), 9)), [ShortQueue]);
        assert_eq!(said(full(seconds(5), 0)), []);
    }

    #[test]
    fn a_burst_under_way_and_the_tail_of_a_slow_time_are_not_called_short() {
        let overflowing = Evidence { overflows: 9, ..calm() };
        assert_eq!(said(Evidence { brimming: seconds(3), ..overflowing }), []);
        assert_eq!(said(Evidence { was_slow: true, ..overflowing }), []);
        assert_eq!(said(Evidence { watched: seconds(4), full: seconds(4), ..overflowing }), []);
    }

    #[test]
    fn an_earlier_cap_matters_only_near_the_limit() {
        let stale = Evidence { earlier_somaxconn: Some(128), ..calm() };
        assert_eq!(said(stale), []);
        assert_eq!(said(Evidence { peak_ratio: 0.9, ..stale }), [StaleLimit]);
        assert_eq!(said(Evidence { overflows: 1, ..stale }), [ShortQueue, StaleLimit]);
    }

    #[test]
    fn handshakes_left_open_at_the_cap_are_a_flood_and_cookies_alone_are_not() {
        let half_open = |half_open, old| {
            scanned(|scan| (scan.half_open, scan.old_half_open) = (half_open, old))
        };
        assert_eq!(said(half_open(128, 100)), [SynFlood]);
        assert_eq!(said(half_open(128, 10)), []);
        assert_eq!(said(half_open(20, 20)), []);
        let cookies = |sent, received| Evidence {
            cookies_sent: sent,
            cookies_received: received,
            ..half_open(129, 0)
        };
        assert_eq!(said(cookies(5_000, 10)), [SynFlood]);
        assert_eq!(said(cookies(43, 43)), []);
        // A full accept queue holds handshakes open too.
        assert_eq!(said(Evidence { brimming: seconds(1), ..half_open(128, 100) }), []);
    }
}
