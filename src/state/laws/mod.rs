//! Tests of the laws of the product contract that concern the fold. Each test has the name of its
//! law and runs a short series of snapshots. Property tests run random series.

mod scans;
mod unix;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::exposure::PROBATION;
use super::*;
use crate::snapshot::{
    AcceptQueue, Cookie, Counter, Counters, Dump, ListenAddress, ListenSocket, NetnsId,
    NetnsSample, Origin,
};
use crate::view::{ListenerView, NetnsView, Protocol};

const INTERVAL: Duration = Duration::from_millis(100);
const TICK: f64 = 0.1;

/// A state and the snapshots applied to it.
struct Story {
    state: State,
    snapshot: Snapshot,
    overflows: u64,
    last: Vec<ListenSocket>,
}

fn socket(cookie: u64, port: u16) -> ListenSocket {
    ListenSocket {
        cookie: Cookie(cookie),
        address: ListenAddress { ip: "127.0.0.1".parse().unwrap(), port, device: None },
        queue: AcceptQueue { length: 0, limit: Some(4) },
        drops: Some(0),
        origin: Origin::default(),
    }
}

fn waiting(length: u32, socket: ListenSocket) -> ListenSocket {
    ListenSocket { queue: AcceptQueue { length, ..socket.queue }, ..socket }
}

fn dropped(drops: u32, socket: ListenSocket) -> ListenSocket {
    ListenSocket { drops: Some(drops), ..socket }
}

// === impl Story ===

impl Story {
    fn new() -> Self {
        Self::capped(1000)
    }

    fn capped(max: usize) -> Self {
        let namespaces = vec![NetnsSample::new(NetnsId(1), "host".into(), false)];
        let snapshot = Snapshot { unix_time: 1.7e9, namespaces, ..Snapshot::default() };
        Self {
            state: State::new(Config { max_listeners: max, ..Config::default() }),
            snapshot,
            overflows: 1_000,
            last: Vec::new(),
        }
    }

    /// A story in which `sockets` existed before listenq started.
    fn begun_with(sockets: &[ListenSocket]) -> Self {
        let mut story = Self::new();
        for _ in 0..3 {
            story.tick(sockets, 0);
        }
        story
    }

    /// Applies a sample one tick later, with these sockets and this number of overflows.
    fn tick(&mut self, sockets: &[ListenSocket], overflows: u64) -> &mut Self {
        self.tick_after(INTERVAL, sockets, overflows)
    }

    fn tick_after(
        &mut self,
        elapsed: Duration,
        sockets: &[ListenSocket],
        overflows: u64,
    ) -> &mut Self {
        self.overflows += overflows;
        let mut counters = Counters::default();
        counters.set(Counter::ListenOverflows, self.overflows);
        let sample = &mut self.snapshot.namespaces[0];
        let is_same = self.last == sockets;
        self.last = sockets.to_vec();
        sample.tcp =
            Some(Dump { interval: INTERVAL, is_same, part: None, sockets: sockets.to_vec() });
        sample.netstat = Some(counters);
        self.state.fold(&self.snapshot, elapsed);
        self
    }

    /// Applies a sample one tick later that read only `read` in place of a dump.
    fn part(&mut self, read: &[ListenSocket]) -> &mut Self {
        let place = |one: &ListenSocket| {
            self.last.iter().position(|known| known.cookie == one.cookie).expect("it is known")
        };
        let places: Vec<usize> = read.iter().map(place).collect();
        for (place, one) in places.iter().zip(read) {
            self.last[*place] = *one;
        }
        let sample = &mut self.snapshot.namespaces[0];
        let (part, sockets) = (Some(places.into()), self.last.clone());
        sample.tcp = Some(Dump { interval: INTERVAL, is_same: false, part, sockets });
        sample.netstat = None;
        self.state.fold(&self.snapshot, INTERVAL);
        self
    }

    /// Applies a sample one tick later, with a failed dump.
    fn failed_tick(&mut self) -> &mut Self {
        let sample = &mut self.snapshot.namespaces[0];
        (sample.tcp, sample.netstat) = (None, None);
        self.state.fold(&self.snapshot, INTERVAL);
        self
    }

    fn netns(&self) -> NetnsView {
        let mut view = View::default();
        self.state.show(&SelfStats::default(), &mut view);
        view.namespaces.remove(0)
    }

    fn find(&self, port: u16) -> Option<ListenerView> {
        let port = port.to_string();
        self.netns().listeners.into_iter().find(|listener| listener.name.port == port)
    }

    fn listener(&self, port: u16) -> ListenerView {
        self.find(port).expect("the listener is shown")
    }

    fn drops(&self, port: u16) -> u64 {
        self.listener(port).drops.expect("drops are known")
    }

    fn overflows(&self, port: u16) -> u64 {
        self.listener(port).overflows.expect("overflows are known")
    }

    fn peak(&self, port: u16) -> u64 {
        self.listener(port).queue.expect("the listener is open").peak_length
    }
}

#[test]
fn law_1_values_at_startup_are_a_baseline() {
    let old = dropped(50, socket(1, 80));
    let mut story = Story::begun_with(&[old]);
    assert_eq!(story.drops(80), 0);
    story.tick(&[dropped(53, old)], 0);
    assert_eq!(story.drops(80), 3);
}

#[test]
fn law_12_neighbours_add_no_samples_to_the_lengths_of_a_listener() {
    let idle = [socket(1, 80), socket(2, 81), socket(3, 82)];
    let busy = [waiting(2, idle[0]), idle[1], idle[2]];
    let mut story = Story::begun_with(&idle);
    for _ in 0..10 {
        story.tick(&busy, 0).tick(&idle, 0);
    }
    for _ in 0..20 {
        story.tick(&idle, 0);
    }
    let lengths = story.listener(80).lengths.expect("it held a queue");
    assert_eq!((lengths.count, lengths.empty(story.netns().tcp_samples)), (10, 30));
}

#[test]
fn law_1_a_socket_that_the_first_dump_missed_is_not_new() {
    let (one, other) = (socket(1, 80), dropped(70, socket(2, 80)));
    let mut story = Story::new();
    story.tick(&[one], 0).tick(&[one, other], 0).tick(&[one, other], 0);
    assert_eq!(story.drops(80), 0);
}

#[test]
fn law_1_a_socket_opened_while_listenq_runs_counts_in_full() {
    let mut story = Story::begun_with(&[]);
    story.tick(&[dropped(6, waiting(5, socket(9, 80)))], 3);
    assert_eq!((story.drops(80), story.overflows(80)), (6, 3));
}

#[test]
fn law_2_a_restarted_server_keeps_its_counter() {
    let mut story = Story::begun_with(&[socket(1, 80)]);
    story.tick(&[dropped(5, socket(1, 80))], 0);
    story.tick(&[dropped(2, socket(2, 80))], 0).tick(&[dropped(2, socket(2, 80))], 0);
    assert_eq!((story.drops(80), story.listener(80).sockets), (7, 1));
}

#[test]
fn law_2_a_closed_group_member_does_not_lower_the_counter() {
    let (one, other) = (socket(1, 80), socket(2, 80));
    let mut story = Story::begun_with(&[one, other]);
    story.tick(&[dropped(5, one), dropped(7, other)], 0);
    for _ in 0..3 {
        story.tick(&[dropped(5, one)], 0);
    }
    assert_eq!((story.drops(80), story.listener(80).sockets), (12, 1));
}

#[test]
fn law_2_drops_may_wrap() {
    let mut story = Story::begun_with(&[dropped(u32::MAX, socket(1, 80))]);
    story.tick(&[dropped(9, socket(1, 80))], 0);
    assert_eq!(story.drops(80), 10);
}

#[test]
fn law_2_shutdown_then_listen_continues_the_counter() {
    let before = dropped(5, socket(1, 80));
    let mut story = Story::begun_with(&[before]);
    for _ in 0..20 {
        story.tick(&[], 0);
    }
    assert_eq!(story.listener(80).sockets, 0);
    story.tick(&[dropped(6, before)], 0);
    assert_eq!((story.drops(80), story.listener(80).sockets), (1, 1));
}

#[test]
fn law_2_a_socket_may_move_to_another_port() {
    let mut story = Story::begun_with(&[dropped(5, socket(1, 80))]);
    let moved = dropped(7, socket(1, 81));
    story.tick(&[moved], 0);
    assert_eq!(story.drops(80), 0);
    story.tick_after(PROBATION - INTERVAL, &[moved], 0);
    assert_eq!(story.find(81), None);
    story.tick_after(Duration::from_secs(1), &[moved], 0);
    assert_eq!(story.drops(81), 2);
    assert_eq!((story.find(80), story.listener(81).sockets), (None, 1));
}

#[test]
fn law_3_a_closed_listener_is_remembered_for_five_minutes() {
    let mut story = Story::begun_with(&[socket(1, 80)]);
    story.tick(&[dropped(6, waiting(5, socket(1, 80)))], 3).tick(&[], 0).tick(&[], 0);
    let closed = story.listener(80);
    assert_eq!((closed.sockets, closed.queue), (0, None));
    assert_eq!((closed.drops, closed.overflows), (Some(6), Some(3)));
    story.tick_after(GRACE - INTERVAL, &[], 0);
    assert!(story.find(80).is_some());
    story.tick(&[], 0);
    assert_eq!(story.find(80), None);
    assert_eq!(story.netns().unexposed_overflows, Some(3));
}

#[test]
fn law_4_a_failed_dump_changes_nothing() {
    let mut story = Story::begun_with(&[waiting(3, socket(1, 80))]);
    let before = story.netns();
    story.failed_tick();
    assert_eq!(story.netns(), before);
}

#[test]
fn law_4_a_socket_missing_from_one_dump_is_alive() {
    let (one, other) = (waiting(2, socket(1, 80)), waiting(3, socket(2, 80)));
    let mut story = Story::begun_with(&[one, other]);
    story.tick(&[one], 0);
    let torn = story.listener(80);
    assert_eq!((torn.sockets, torn.queue.unwrap().length), (2, 5));
    story.tick(&[one], 0);
    assert_eq!(story.listener(80).sockets, 1);
}

#[test]
fn law_4_a_doubled_row_counts_once() {
    let one = waiting(2, socket(1, 80));
    let mut story = Story::begun_with(&[one]);
    story.tick(&[one, dropped(4, waiting(3, one))], 0);
    let listener = story.listener(80);
    assert_eq!((listener.sockets, listener.queue.unwrap().length, listener.drops), (1, 3, Some(4)));
}

#[test]
fn law_4_a_socket_lost_by_torn_dumps_returns_with_its_old_drops() {
    let (one, other) = (socket(1, 80), dropped(40, socket(2, 80)));
    let mut story = Story::begun_with(&[one, other]);
    story.tick(&[one], 0).tick(&[one], 0).tick(&[one], 0).tick(&[one, other], 0);
    assert_eq!((story.drops(80), story.listener(80).sockets), (0, 2));
}

#[test]
fn law_11_readings_between_two_dumps_credit_the_sockets_they_read() {
    let (one, idle) = (socket(1, 80), socket(2, 81));
    let mut story = Story::begun_with(&[one, idle]);
    story.tick(&[waiting(2, one), idle], 0);
    for length in [2, 5, 5, 0, 0] {
        story.part(&[waiting(length, one)]);
    }
    story.tick(&[one, idle], 0);
    let busy = story.listener(80);
    assert!((busy.connection_seconds - 14.0 * TICK).abs() < 1e-9, "{}", busy.connection_seconds);
    assert!((busy.full_seconds.unwrap() - 2.0 * TICK).abs() < 1e-9);
    assert_eq!((busy.queue.unwrap().length, story.peak(80)), (0, 5));
    assert_eq!(story.listener(81).connection_seconds, 0.0);
}

#[test]
fn drops_between_two_dumps_are_evidence_for_the_overflows_of_the_next_dump() {
    let (one, other) = (socket(1, 80), socket(2, 81));
    let mut story = Story::begun_with(&[one, other]);
    story.tick(&[waiting(5, one), other], 0);
    for drops in 1..=20 {
        story.part(&[dropped(drops, waiting(5, one))]);
    }
    assert_eq!((story.drops(80), story.overflows(80)), (20, 0));
    // The neighbour drops without overflows, as with deferred accept.
    story.tick(&[dropped(20, one), dropped(30, other)], 20);
    (0..4).for_each(|_| _ = story.tick(&[dropped(20, one), dropped(30, other)], 0));
    assert_eq!((story.overflows(80), story.overflows(81)), (20, 0));
}

#[test]
fn a_socket_that_is_not_read_between_two_dumps_is_unchanged() {
    let (one, group) = (waiting(1, socket(1, 80)), waiting(2, socket(2, 81)));
    let mut story = Story::begun_with(&[one, group]);
    story.part(&[waiting(3, one)]).part(&[waiting(3, one)]);
    let [read, left_out] = [80, 81].map(|port| story.listener(port));
    assert_eq!((read.sockets, read.queue.unwrap().length), (1, 3));
    assert_eq!((left_out.sockets, left_out.queue.unwrap().length), (1, 2));
    let before = left_out.connection_seconds;
    story.part(&[waiting(3, one)]);
    assert!((story.listener(81).connection_seconds - before - 2.0 * TICK).abs() < 1e-9);
}

#[test]
fn law_5_full_means_more_than_the_limit() {
    let mut story = Story::begun_with(&[socket(1, 80)]);
    let at_limit = waiting(4, socket(1, 80));
    story.tick(&[at_limit], 0).tick(&[at_limit], 0);
    assert_eq!(story.listener(80).full_seconds, Some(0.0));
    let over = waiting(5, socket(1, 80));
    story.tick(&[over], 0).tick(&[over], 0);
    assert!((story.listener(80).full_seconds.unwrap() - TICK).abs() < 1e-9);
    assert_eq!(story.listener(80).queue.unwrap().fullest_ratio, Some(1.0));
}

#[test]
fn law_11_time_is_credited_to_the_earlier_sample() {
    let mut story = Story::begun_with(&[socket(1, 80)]);
    let before = story.netns().sampled_seconds;
    story.tick(&[waiting(3, socket(1, 80))], 0);
    assert_eq!(story.listener(80).connection_seconds, 0.0);
    story.tick(&[], 0);
    assert!((story.listener(80).connection_seconds - 3.0 * TICK).abs() < 1e-9);
    assert!((story.netns().sampled_seconds - before - 2.0 * TICK).abs() < 1e-9);
}

#[test]
fn law_11_a_long_gap_credits_nothing() {
    let full = waiting(5, socket(1, 80));
    let mut story = Story::begun_with(&[full]);
    let before = (story.netns().sampled_seconds, story.listener(80).connection_seconds);
    story.tick_after(INTERVAL * 11, &[full], 0);
    assert_eq!((story.netns().sampled_seconds, story.listener(80).connection_seconds), before);
}

#[test]
fn law_10_a_value_that_the_source_lacks_is_absent() {
    let bare = ListenSocket {
        queue: AcceptQueue { length: 2, limit: None },
        drops: None,
        ..socket(1, 80)
    };
    let mut story = Story::begun_with(&[bare]);
    story.tick(&[bare], 5);
    let listener = story.listener(80);
    let queue = listener.queue.unwrap();
    assert_eq!((queue.length, queue.limit, queue.fullest_ratio), (2, None, None));
    assert_eq!((listener.full_seconds, listener.drops, listener.overflows), (None, None, None));
    assert_eq!(story.netns().unattributed_overflows, None);
}

#[test]
fn group_values_are_sums_and_the_ratio_is_that_of_the_fullest_member() {
    let (one, other) = (waiting(5, socket(1, 80)), waiting(1, socket(2, 80)));
    let story = Story::begun_with(&[one, other]);
    let queue = story.listener(80).queue.unwrap();
    assert_eq!((queue.length, queue.limit, queue.fullest_ratio), (6, Some(8), Some(1.0)));
}

#[test]
fn a_burst_between_two_samples_is_attributed_and_raises_the_peak() {
    let fast = socket(1, 80);
    let mut story = Story::begun_with(&[fast, socket(2, 81)]);
    story
        .tick(&[dropped(20, fast), socket(2, 81)], 10)
        .tick(&[dropped(20, fast), socket(2, 81)], 0);
    assert_eq!((story.overflows(80), story.peak(80)), (10, 5));
    assert_eq!((story.overflows(81), story.peak(81)), (0, 0));
}

#[test]
fn an_overflow_that_two_listeners_may_have_had_raises_no_peak() {
    let (one, other) = (socket(1, 80), socket(2, 81));
    let mut story = Story::begun_with(&[one, other]);
    story.tick(&[dropped(20, one), dropped(20, other)], 10);
    story.tick(&[dropped(20, one), dropped(20, other)], 0);
    assert_eq!((story.overflows(80), story.overflows(81)), (5, 5));
    assert_eq!((story.peak(80), story.peak(81)), (0, 0));
}

#[test]
fn the_last_overflows_of_a_closed_listener_are_attributed_to_it() {
    let full = waiting(5, socket(1, 80));
    let mut story = Story::begun_with(&[full, socket(2, 81)]);
    story.tick(&[socket(2, 81)], 7).tick(&[socket(2, 81)], 0);
    assert_eq!((story.overflows(80), story.overflows(81)), (7, 0));
}

#[test]
fn overflows_without_evidence_are_unattributed_after_three_ticks() {
    let mut story = Story::begun_with(&[socket(1, 80)]);
    story.tick(&[socket(1, 80)], 7);
    for _ in 0..3 {
        story.tick(&[socket(1, 80)], 0);
    }
    assert_eq!((story.overflows(80), story.netns().unattributed_overflows), (0, Some(7)));
}

#[test]
fn overflows_before_any_listener_was_seen_are_accounted_for() {
    let mut story = Story::begun_with(&[]);
    story.tick(&[], 7);
    for _ in 0..3 {
        story.tick(&[], 0);
    }
    assert_eq!(story.netns().unattributed_overflows, Some(7));
}

#[test]
fn above_the_listener_limit_trouble_has_series_and_all_overflows_count() {
    let mut story = Story::capped(1);
    let (idle, busy) = (socket(1, 80), waiting(5, socket(2, 81)));
    story.tick(&[idle, busy], 0);
    assert_eq!((story.find(80), story.listener(81).sockets), (None, 1));
    story.tick(&[dropped(3, idle), busy], 3).tick(&[dropped(3, idle), busy], 0);
    assert_eq!((story.overflows(80), story.find(81)), (3, None));
    assert_eq!(
        (story.netns().unexposed_overflows, story.state.omissions().listeners),
        (Some(0), 1)
    );
    // Both are in trouble, and neither source has fewer places than the other.
    story.tick(&[dropped(3, idle), dropped(4, busy)], 4);
    assert_eq!((story.overflows(80), story.netns().unexposed_overflows), (3, Some(4)));
    assert_eq!(story.state.omissions().unexposed_overflows, 4);
}

#[test]
fn a_closed_listener_without_series_is_soon_forgotten() {
    let mut story = Story::capped(1);
    let (shown, omitted) = (socket(1, 80), dropped(2, socket(2, 81)));
    story.tick(&[shown], 0).tick(&[shown, omitted], 0).tick(&[shown], 0).tick(&[shown], 0);
    assert_eq!(story.state.omissions().listeners, 1);
    story.tick_after(Duration::from_secs(1), &[shown], 0);
    assert_eq!(story.state.omissions().listeners, 0);
}

#[test]
fn a_namespace_that_reuses_an_inode_is_a_new_namespace() {
    let mut story = Story::begun_with(&[socket(1, 80)]);
    story.tick(&[dropped(3, waiting(5, socket(1, 80)))], 3);
    let sample = story.snapshot.namespaces.remove(0);
    story.state.fold(&story.snapshot, INTERVAL);
    story.snapshot.namespaces.push(NetnsSample { is_newborn: true, ..sample });
    story.overflows = 0;
    story.tick(&[dropped(2, waiting(5, socket(7, 80)))], 2);
    assert_eq!((story.drops(80), story.overflows(80)), (2, 2));
    story.tick_after(GRACE, &[dropped(2, waiting(5, socket(7, 80)))], 0);
    assert_eq!((story.drops(80), story.state.omissions().listeners), (2, 0));
}

#[test]
fn a_namespace_found_again_with_its_history_is_not_new() {
    let mut story = Story::begun_with(&[socket(1, 80)]);
    story.tick(&[dropped(3, waiting(5, socket(1, 80)))], 3);
    let sample = story.snapshot.namespaces.remove(0);
    story.state.fold(&story.snapshot, INTERVAL);
    story.snapshot.namespaces.push(NetnsSample { is_newborn: true, ..sample });
    for _ in 0..3 {
        story.tick(&[dropped(4, waiting(5, socket(1, 80)))], 0);
    }
    assert_eq!((story.drops(80), story.overflows(80)), (0, 0));
    story.tick(&[dropped(6, waiting(5, socket(1, 80)))], 2);
    assert_eq!((story.drops(80), story.overflows(80)), (2, 2));
}

#[test]
fn a_forgotten_namespace_that_is_found_again_counts_no_old_overflows() {
    let old = dropped(60, socket(1, 80));
    let mut story = Story::begun_with(&[old]);
    let sample = story.snapshot.namespaces.remove(0);
    for elapsed in [INTERVAL, PROBATION] {
        story.state.fold(&story.snapshot, elapsed);
    }
    assert_eq!((story.state.namespaces.len(), story.state.traces.len()), (0, 1));
    story.snapshot.namespaces.push(NetnsSample { is_newborn: true, ..sample });
    for _ in 0..5 {
        story.tick(&[old], 0);
    }
    assert_eq!((story.overflows(80), story.netns().unattributed_overflows), (0, Some(0)));
    story.tick(&[dropped(62, waiting(5, old))], 2);
    assert_eq!((story.drops(80), story.overflows(80)), (2, 2));
}

#[test]
fn a_namespace_may_return_with_a_listener_without_series() {
    let mut story = Story::capped(1);
    let sockets = [socket(1, 80), socket(2, 81)];
    story.tick(&sockets, 0);
    let sample = story.snapshot.namespaces.remove(0);
    story.state.fold(&story.snapshot, INTERVAL);
    story.state.fold(&story.snapshot, Duration::from_secs(2));
    story.snapshot.owners.insert(0, Arc::default());
    story.state.fold(&story.snapshot, INTERVAL);
    story.snapshot.namespaces.push(sample);
    story.tick(&sockets, 0);
    assert_eq!((story.netns().listeners.len(), story.state.omissions().listeners), (1, 1));
}

/// Applies owners to all sockets, whose inode is 0, and samples for this number of seconds.
fn owned_for(story: &mut Story, process: &str, sockets: &[ListenSocket], seconds: u32) {
    let owner = Owner { process: process.into(), ..Owner::default() };
    story.snapshot.owners.insert(0, Arc::new(owner));
    for _ in 0..10 * seconds {
        story.tick(sockets, 0);
    }
}

#[test]
fn the_owner_that_alerts_name_stays_for_the_length_of_an_incident() {
    let idle = socket(1, 80);
    let mut story = Story::begun_with(&[idle]);
    let named =
        |story: &Story| story.listener(80).alert_owner.map(|owner| owner.process.to_string());
    owned_for(&mut story, "nginx", &[idle], 2);
    assert_eq!(named(&story), None);
    let sockets = [dropped(2, idle)];
    story.tick(&sockets, 2);
    owned_for(&mut story, "nginx", &sockets, 2);
    assert_eq!(named(&story).as_deref(), Some("nginx"));
    // Another process takes the socket over: the alert keeps its labels.
    owned_for(&mut story, "haproxy", &sockets, 340);
    assert_eq!(story.listener(80).owner.process, "haproxy".into());
    assert_eq!(named(&story).as_deref(), Some("nginx"));
    // The peak is forgotten after 150 s, and six minutes later the incident is over.
    owned_for(&mut story, "haproxy", &sockets, 200);
    assert_eq!(named(&story), None);
}

#[test]
fn unchanged_listeners_are_skipped_and_their_time_is_credited() {
    let idle = socket(1, 80);
    let mut story = Story::begun_with(&[idle]);
    let before = story.netns();
    for _ in 0..10 {
        story.tick(&[idle], 0);
    }
    let after = story.netns();
    assert_eq!((after.revision, &after.listeners), (before.revision, &before.listeners));
    assert!((after.sampled_seconds - before.sampled_seconds - 10.0 * TICK).abs() < 1e-9);
    story.tick(&[idle, dropped(4, waiting(1, socket(2, 81)))], 0);
    assert_eq!((story.drops(81), story.listener(81).sockets), (4, 1));
    story.tick(&[idle], 0).tick(&[idle], 0);
    assert_eq!((story.listener(81).sockets, story.listener(80).sockets), (0, 1));
}

#[test]
fn a_namespace_created_while_listenq_runs_counts_in_full() {
    let mut story = Story::new();
    story.snapshot.namespaces[0].is_newborn = true;
    story.overflows = 0;
    story.tick(&[dropped(6, waiting(5, socket(1, 80)))], 3);
    assert_eq!((story.drops(80), story.overflows(80)), (6, 3));
}

#[test]
fn a_namespace_that_ended_keeps_its_counters_for_the_grace_time() {
    let mut story = Story::begun_with(&[waiting(5, socket(1, 80))]);
    story.tick(&[dropped(3, waiting(5, socket(1, 80)))], 3);
    story.snapshot.namespaces.clear();
    story.state.fold(&story.snapshot, INTERVAL);
    let closed = story.listener(80);
    assert_eq!((closed.overflows, closed.sockets, closed.queue), (Some(3), 0, None));
    assert_eq!(story.netns().sampled_unix_time, None);
    assert!(!story.netns().is_fresh(Protocol::Tcp, Duration::ZERO));
    story.state.fold(&story.snapshot, GRACE);
    let mut view = View::default();
    story.state.show(&SelfStats::default(), &mut view);
    assert_eq!(view.namespaces, []);
}

/// The counters are read after the dump: the last overflows never appear in the drops.
#[test]
fn pending_overflows_are_accounted_for_when_a_namespace_ends() {
    let full = |cookie, port| waiting(5, socket(cookie, port));
    let mut story = Story::begun_with(&[full(1, 80), socket(2, 81)]);
    story.tick(&[dropped(30, full(1, 80)), socket(2, 81)], 48);
    assert_eq!(story.overflows(80), 30);
    story.snapshot.namespaces.clear();
    story.state.fold(&story.snapshot, INTERVAL);
    assert_eq!((story.overflows(80), story.overflows(81)), (48, 0));
    assert_eq!(story.netns().unattributed_overflows, Some(0));
}

#[test]
fn a_listener_forgotten_after_its_namespace_ended_has_no_series() {
    let mut story = Story::begun_with(&[socket(1, 80), socket(2, 81)]);
    story.tick(&[dropped(3, waiting(5, socket(1, 80))), socket(2, 81)], 3);
    for _ in 0..3 {
        story.tick(&[socket(2, 81)], 0);
    }
    story.snapshot.namespaces.clear();
    let mut view = View::default();
    let shown = [INTERVAL, GRACE - 2 * INTERVAL].map(|elapsed| {
        story.state.fold(&story.snapshot, elapsed);
        story.state.show(&SelfStats::default(), &mut view);
        let netns = &view.namespaces[0];
        let ports: Vec<&str> = netns.listeners.iter().map(|one| &*one.name.port).collect();
        (ports.join(" "), netns.unexposed_overflows)
    });
    assert_eq!(shown, [("80 81".into(), Some(0)), ("".into(), Some(3))]);
}

#[test]
fn a_namespace_that_reuses_a_name_starts_at_0() {
    let mut story = Story::begun_with(&[socket(1, 80)]);
    story.tick(&[dropped(3, socket(1, 80))], 3).tick(&[dropped(3, socket(1, 80))], 0);
    story.snapshot.namespaces[0].id = NetnsId(2);
    story.tick(&[socket(1, 80)], 0);
    assert_eq!((story.drops(80), story.overflows(80)), (0, 0));
}

/// One tick of a random story: the rows of up to eight sockets with queue lengths and new drops,
/// and the overflows that the kernel counts.
#[derive(Clone, Debug)]
struct Chapter {
    rows: Vec<(u64, u32, u32)>,
    overflows: u64,
    failed: bool,
    slow: bool,
}

fn chapter() -> impl Strategy<Value = Chapter> {
    let rows = prop::collection::vec((1..9u64, 0..8u32, 0..5u32), 0..12);
    (rows, 0..6u64, prop::bool::weighted(0.1), prop::bool::weighted(0.02))
        .prop_map(|(rows, overflows, failed, slow)| Chapter { rows, overflows, failed, slow })
}

/// Drops, overflows, connection seconds and full seconds.
type Totals = (Option<u64>, Option<u64>, f64, Option<f64>);

/// The counters of each listener by name.
fn counters(netns: &NetnsView) -> BTreeMap<String, Totals> {
    let entry = |listener: &ListenerView| {
        let ListenerView { drops, overflows, connection_seconds, full_seconds, .. } = *listener;
        (listener.name.port.clone(), (drops, overflows, connection_seconds, full_seconds))
    };
    netns.listeners.iter().map(entry).collect()
}

fn play(story: &mut Story, drops: &mut [u32; 9], chapter: &Chapter) {
    if chapter.failed {
        story.failed_tick();
        return;
    }
    let mut rows = Vec::new();
    for (cookie, length, more) in &chapter.rows {
        let total = &mut drops[*cookie as usize];
        *total = total.wrapping_add(*more);
        // Two sockets share each port.
        rows.push(dropped(*total, waiting(*length, socket(*cookie, 80 + (*cookie / 2) as u16))));
    }
    let elapsed = if chapter.slow { GRACE } else { INTERVAL };
    story.tick_after(elapsed, &rows, chapter.overflows);
}

proptest! {
    #[test]
    fn every_overflow_is_accounted_for_and_no_counter_decreases(
        chapters in prop::collection::vec(chapter(), 1..120),
        max in 1..6usize,
    ) {
        let (mut story, mut drops) = (Story::capped(max), [u32::MAX - 20; 9]);
        story.tick(&[socket(1, 80)], 0);
        let (first, mut growths) = (story.overflows, vec![story.overflows]);
        let mut before = counters(&story.netns());
        for chapter in &chapters {
            play(&mut story, &mut drops, chapter);
            let netns = story.netns();
            let after = counters(&netns);
            prop_assert_eq!(after.len(), netns.listeners.len(), "a name is shown twice");
            for (name, was) in &before {
                if let Some(is) = after.get(name) {
                    prop_assert!(is.0 >= was.0 && is.1 >= was.1 && is.2 >= was.2 && is.3 >= was.3);
                }
            }
            if !chapter.failed {
                growths.push(story.overflows);
            }
            let attributed: u64 = netns.listeners.iter().filter_map(|listener| listener.overflows).sum();
            let sum = attributed + netns.unattributed_overflows.unwrap() + netns.unexposed_overflows.unwrap();
            // At most three ticks behind the kernel's counter, and never ahead of it.
            let due = growths[growths.len().saturating_sub(4)] - first;
            prop_assert!(due <= sum && sum <= story.overflows - first, "{due} <= {sum}");
            before = after;
        }
    }
}
