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
pub const STALL_BY_SCANS: Duration = Duration::from_millis(8_500);
/// A pause between two accepts that is usual may be this long before it is called a stall again.
const LONGEST_PAUSE: Duration = Duration::from_secs(90);
/// How long every client must wait before the queue is called standing. The first and the last scan that agree come a
/// little early or late.
const STANDING: Duration = Duration::from_millis(28_500);
/// How long one socket of a reuseport group must be full: hashing is uneven for moments.
pub const LASTING: Duration = Duration::from_secs(1);
/// For how long a listener must have been sampled before shares of time say anything.
pub const WATCHED: Duration = Duration::from_secs(10);
/// The share of time spent full from which on a server is slow, and below which a burst met a short queue.
const SLOW_SHARE: f64 = 0.2;
/// A queue of which more than half is in use for so much of the time since it overflowed was met by no burst: the server
/// is becoming slow.
const LOADED_SHARE: f64 = 0.5;
/// How long after an overflow it can be told whether the queue drains.
const SETTLED: Duration = Duration::from_secs(3);
/// The share of a queue without clients from which on it is called abandoned.
const ABANDONED_SHARE: f64 = 0.25;
/// At least so many, too: one client may always leave.
const ABANDONED_LEAST: u64 = 2;
/// Clients leave queues that make them wait; a half-closed client of a fast server is no trouble.
const ABANDONED_WAIT: Duration = Duration::from_millis(500);
/// So many half-open connections at least are a flood where no cookies show it.
const FLOOD_LEAST: u64 = 8;
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
    /// How much of that time samples cover: late ones leave gaps.
    pub sampled: Duration,
    /// How much of that it was full.
    pub full: Duration,
    /// Overflows attributed to it in that time.
    pub overflows: u64,
    /// Those of them that were no repetition by a client that was refused before.
    pub first_refusals: u64,
    /// How much sampled time has passed since the first of the overflows.
    pub since_overflow: Duration,
    /// How much of that more than half of a queue was in use.
    pub loaded: Duration,
    /// Whether more than half of a queue is in use now.
    pub is_loaded: bool,
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
    /// Whether its overflows are counted: otherwise being full is all that shows that clients are turned away.
    pub counts_overflows: bool,
    /// How many may be half open; `None` where that is not known.
    pub half_open_cap: Option<u64>,
    /// The `somaxconn` that it was opened under and that was raised since, where that is its limit.
    pub earlier_somaxconn: Option<u32>,
    /// Whether every handshake gets a cookie (`tcp_syncookies=2`), and no other listener can have received them.
    pub gets_all_cookies: bool,
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
    /// Those in whose queue somebody waits.
    pub waiting: u32,
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
    /// For how long no sample saw the queue become shorter.
    pub unmoved: Duration,
    /// Connections whose client is there.
    pub alive: u64,
    /// For how long each scan found a client at the head that had waited for `--standing-wait` or longer.
    pub standing: Duration,
    /// The longest pause between two accepts that was seen within the last ten minutes while clients waited.
    pub pause: Duration,
    /// Accepted connections that are open; `None` where they were not read.
    pub open: Option<u64>,
    /// The most accepted connections that were open at once within the last hour.
    pub most_open: u64,
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

    /// Whether the evidence is what happened within the window, and not what the sockets hold now.
    pub const fn outlasts_a_restart(self) -> bool {
        matches!(self, Self::SlowAccept | Self::ShortQueue)
    }

    /// The diagnosis of the same listener that `self` follows from, if any of `held` is one: that one says what to do.
    pub fn follows_from(self, held: Diagnoses) -> Option<Self> {
        let causes: &[Self] = match self {
            Self::Abandoned => {
                &[Self::Imbalance, Self::Stalled, Self::SlowAccept, Self::StandingQueue]
            }
            Self::SlowAccept | Self::StandingQueue | Self::ShortQueue => {
                &[Self::Imbalance, Self::Stalled]
            }
            _ => &[],
        };
        causes.iter().copied().find(|cause| held.contains(*cause))
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

/// The diagnoses about which the evidence says nothing at all, neither that they hold nor that they do not: samples came
/// too late, or no scan did.
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

/// What the evidence speaks for.
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

    /// Of a group; the oldest connection shows that a short queue is stuck and not just steady.
    fn is_imbalanced(&self) -> bool {
        let Sockets { all, brimming, stuck, below_half, .. } = self.sockets;
        let is_stuck = stuck > 0 && self.scan.is_some_and(|scan| scan.oldest >= STALL);
        all > 1 && below_half > 0 && (brimming > 0 || is_stuck)
    }

    /// A server whose handlers take long pauses for as long again and again: such a pause is no stall.
    fn is_stalled(&self) -> bool {
        let Some(scan) = self.scan else { return false };
        let usual = (scan.pause * 2).min(LONGEST_PAUSE);
        let has_victim = scan.alive > 0 || self.turns_away();
        self.is_untaken(STALL_BY_SCANS.max(usual)) && has_victim && !self.serves_one()
    }

    /// Whether nothing was taken from any of its sockets for `time`.
    fn is_untaken(&self, time: Duration) -> bool {
        let Sockets { all, stuck, .. } = self.sockets;
        all > 0 && stuck == all && self.scan.is_some_and(|scan| scan.untaken >= time)
    }

    /// Whether clients were turned away.
    fn turns_away(&self) -> bool {
        match self.counts_overflows {
            true => self.overflows > 0,
            false => !self.full.is_zero(),
        }
    }

    /// A tool that was never seen to serve two clients at once, with one more in line.
    fn serves_one(&self) -> bool {
        let serves_one =
            |scan: ScanEvidence| scan.open == Some(1) && scan.most_open <= 1 && scan.length <= 1;
        self.scan.is_some_and(serves_one) && !self.turns_away()
    }

    /// Whether it may not be meant to accept: it was never seen to, and turns nobody away.
    fn is_unproven(&self) -> bool {
        !self.has_accepted && !self.turns_away()
    }

    /// Where every client has reset there is no row to tell an age by: only that the queue does not become shorter.
    fn is_abandoned(&self) -> bool {
        self.scan.is_some_and(|scan| {
            let waits = scan.oldest.max(scan.untaken).max(scan.unmoved) >= ABANDONED_WAIT;
            waits
                && scan.abandoned >= ABANDONED_LEAST
                && scan.abandoned as f64 >= scan.length as f64 * ABANDONED_SHARE
        })
    }

    /// Before the window is sampled whole, a share of what was sampled is enough where the queue does not drain.
    fn is_slow(&self) -> bool {
        let is_so_far = self.sampled >= WATCHED && self.full_share() >= SLOW_SHARE;
        self.full >= WINDOW.mul_f64(SLOW_SHARE) || (is_so_far && self.stays_loaded())
    }

    /// A burst is over soon: a queue that does not drain after it overflowed is that of a server that becomes slow, and one
    /// at its limit just now may be.
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

    /// The queue has room, and yet each client waits: slow servers with a high limit look like that.
    fn is_standing(&self) -> bool {
        let Some(scan) = self.scan else { return false };
        let is_long = scan.standing >= STANDING && scan.alive > 0;
        let is_only_that = !self.is_slow() && !self.is_stalled() && !self.is_imbalanced();
        is_long && is_only_that && !self.serves_one()
    }

    /// Not ready yet, a port that is only held, or a tool that serves one client.
    fn is_not_accepting(&self) -> bool {
        self.is_untaken(STALL_BY_SCANS) && (self.is_unproven() || self.serves_one())
    }

    /// Handshakes are begun and left open although the accept queue has room. Where it is full, handshakes of real
    /// clients stay open, and each of them has overflowed.
    fn is_flooded(&self) -> bool {
        let has_room = self.brimming.is_zero() && self.full < LASTING && !self.was_slow;
        has_room && (self.is_flooded_by_cookies() || self.is_left_half_open())
    }

    /// Cookies alone are no flood: real clients that come within one round trip make them too, and send them back. They
    /// are decisive only where no handshake is kept half open.
    fn is_flooded_by_cookies(&self) -> bool {
        self.gets_all_cookies && self.cookies_stay_out()
    }

    fn is_left_half_open(&self) -> bool {
        let Some(scan) = self.scan else { return false };
        let is_at_cap =
            self.half_open_cap.is_some_and(|cap| scan.half_open > 0 && scan.half_open >= cap);
        // The few that a short SYN queue holds may be clients of a bad line.
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

#[cfg(test)]
mod tests {
    use super::*;
    use Diagnosis::*;

    const SECOND: Duration = seconds(1);

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// One socket, watched for long, idle.
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
    fn what_follows_from_another_diagnosis_is_known() {
        let follows =
            |word: Diagnosis, held: &[Diagnosis]| word.follows_from(held.iter().copied().collect());
        assert_eq!(follows(Abandoned, &[Abandoned, SlowAccept]), Some(SlowAccept));
        assert_eq!(follows(Abandoned, &[Stalled, Abandoned, SlowAccept]), Some(Stalled));
        assert_eq!(follows(SlowAccept, &[Abandoned, SlowAccept]), None);
        assert_eq!(follows(SlowAccept, &[Stalled, SlowAccept]), Some(Stalled));
        assert_eq!(follows(StandingQueue, &[Imbalance, StandingQueue]), Some(Imbalance));
        assert_eq!(follows(Abandoned, &[Abandoned]), None);
        assert_eq!(follows(StaleLimit, &[SlowAccept, StaleLimit]), None);
    }

    #[test]
    fn calm_is_no_trouble() {
        assert_eq!(said(calm()), []);
    }

    #[test]
    fn a_queue_from_which_nothing_is_taken_is_stalled() {
        let all = |stuck| Sockets { all: 2, stuck, ..Sockets::default() };
        let untaken = |untaken| scanned(|scan| (scan.untaken, scan.alive) = (untaken, 1));
        assert_eq!(said(Evidence { sockets: all(2), ..untaken(seconds(10)) }), [Stalled]);
        assert_eq!(said(Evidence { sockets: all(2), ..untaken(seconds(5)) }), []);
        assert_eq!(said(Evidence { sockets: all(1), ..untaken(seconds(10)) }), []);
        assert_eq!(said(Evidence { sockets: all(2), scan: None, ..calm() }), []);
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
    fn clients_that_reset_leave_no_age_behind() {
        let gone = scanned(|scan| (scan.length, scan.abandoned, scan.unmoved) = (9, 9, seconds(2)));
        assert_eq!(said(gone), [Abandoned]);
    }

    /// It overflowed 20 s ago and drained since.
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
    fn a_server_that_becomes_slow_is_never_called_short() {
        // Second by second: the queue was more than half full all the time before it was full for 6 s.
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
        // It takes four seconds to drain, and that is known after eight.
        assert_eq!(said(after(seconds(7), seconds(4))), []);
        assert_eq!(said(after(seconds(9), seconds(4))), [ShortQueue]);
    }

    #[test]
    fn repetitions_of_a_burst_are_no_burst() {
        assert_eq!(said(Evidence { overflows: 1_489, first_refusals: 0, ..burst() }), []);
    }

    #[test]
    fn a_burst_under_way_and_the_tail_of_a_slow_time_are_not_called_short() {
        assert_eq!(said(Evidence { brimming: seconds(3), ..burst() }), []);
        assert_eq!(said(Evidence { was_slow: true, ..burst() }), []);
    }

    #[test]
    fn soon_after_the_start_a_share_of_what_was_sampled_is_enough() {
        let slow = Evidence { loaded: seconds(19), full: seconds(3), ..burst() };
        assert_eq!(said(Evidence { sampled: seconds(10), ..slow }), [SlowAccept]);
        assert_eq!(said(Evidence { sampled: seconds(9), ..slow }), []);
        assert_eq!(said(Evidence { sampled: seconds(6), full: seconds(6), ..slow }), [SlowAccept]);
        // A burst right after the start is none.
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
        // A queue that is seen to be short is not slow any more, however late that is seen.
        assert_eq!(of(Evidence { sampled: seconds(3), is_loaded: false, ..waiting }), []);
        assert_eq!(
            of(Evidence { scan: None, ..waiting }),
            [Imbalance, Stalled, Abandoned, StandingQueue, SynFlood, NotAccepting]
        );
        assert_eq!(of(Evidence { scan: None, ..calm() }), [SynFlood]);
    }

    #[test]
    fn an_earlier_cap_matters_only_near_the_limit() {
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
        // Each handshake that stays open has overflowed.
        assert_eq!(said(Evidence { overflows: 65, ..flood }), []);
        assert_eq!(said(Evidence { overflows: 20, ..flood }), [SynFlood]);
        // The queue is full at this moment, was so for a second, or made the server slow.
        assert_eq!(said(Evidence { brimming: Duration::from_millis(1), ..flood }), []);
        assert_eq!(said(Evidence { full: seconds(1), ..flood }), []);
        assert_eq!(said(Evidence { was_slow: true, ..flood }), []);
    }

    #[test]
    fn a_syn_queue_of_8_is_flooded_and_two_bad_lines_flood_nothing() {
        let of = |cap, open| Evidence { half_open_cap: Some(cap), ..half_open(open, open) };
        // A kernel before 6.6 holds the limit, a later one one more.
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
