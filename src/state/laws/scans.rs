//! Tests of how the fold uses connection scans: when scan numbers count, and what follows from
//! them.

use super::*;
use crate::diagnosis::Diagnosis;
use crate::snapshot::owner_reading::{OwnerReading, ProcessReading, ThreadReading, Wait};
use crate::snapshot::scan::{HalfOpen, Local, Scan, ScannedSocket, TcpScan, UnixQueue, Waiting};
use crate::snapshot::{Setting, Settings, UnixAddress};

const SECOND: Duration = Duration::from_secs(1);

/// A scan of one socket whose connections have these cookies and ages in seconds.
fn scan(socket: ListenSocket, rows: &[(u64, u64)]) -> Scan {
    let ListenAddress { ip, port, .. } = socket.address;
    let local = Local { ip, port, interface: 0 };
    let (address, length) = (socket.address, socket.queue.length);
    let waiting = rows.iter().map(|(cookie, age)| Waiting {
        cookie: Cookie(*cookie),
        local,
        client: ip,
        age: Some(SECOND * *age as u32),
        is_closed: false,
        patience: None,
    });
    let socket = ScannedSocket {
        cookie: socket.cookie,
        address,
        local,
        is_v6_only: false,
        length,
        longest: length,
        is_read: length > 0,
        accepted_ago: Some(Duration::ZERO),
    };
    let tcp = TcpScan { sockets: vec![socket], waiting: waiting.collect(), ..TcpScan::default() };
    Scan { tcp: Some(tcp), ..Scan::default() }
}

// === impl Story ===

impl Story {
    /// Applies a sample one tick later, with a scan that found these connections.
    fn scanned(&mut self, after: Duration, socket: ListenSocket, rows: &[(u64, u64)]) -> &mut Self {
        self.snapshot.namespaces[0].scan = Some(scan(socket, rows));
        self.tick_after(after, &[socket], 0);
        self.snapshot.namespaces[0].scan = None;
        self
    }

    fn oldest(&self, port: u16) -> Option<u64> {
        self.listener(port).oldest().map(|oldest| oldest.as_secs())
    }

    fn diagnoses(&self, port: u16) -> Vec<Diagnosis> {
        self.listener(port).diagnoses().map(|held| held.diagnosis).collect()
    }
}

#[test]
fn scan_values_are_absent_without_a_scan_and_0_for_an_empty_queue() {
    let mut story = Story::begun_with(&[waiting(2, socket(1, 80)), socket(2, 81)]);
    story.tick(&[waiting(2, socket(1, 80)), socket(2, 81)], 0);
    assert_eq!((story.oldest(80), story.oldest(81)), (None, Some(0)));
    let listener = story.listener(80);
    assert_eq!((listener.abandoned(), listener.drain_rate(), listener.scan), (None, None, None));
}

#[test]
fn scan_values_end_when_the_queue_is_seen_empty() {
    let queue = waiting(2, socket(1, 80));
    let mut story = Story::begun_with(&[queue]);
    story.scanned(INTERVAL, queue, &[(7, 4), (8, 1)]);
    assert_eq!(story.oldest(80), Some(4));
    story.tick(&[queue], 0);
    assert_eq!(story.oldest(80), Some(4));
    story.tick(&[socket(1, 80)], 0).tick(&[queue], 0);
    assert_eq!(story.oldest(80), None);
}

#[test]
fn values_of_a_stale_scan_are_absent() {
    let queue = waiting(2, socket(1, 80));
    let mut story = Story::begun_with(&[queue]);
    story.scanned(INTERVAL, queue, &[(7, 4)]);
    for _ in 0..14 {
        story.tick_after(SECOND, &[queue], 0);
    }
    assert_eq!(story.oldest(80), Some(4));
    story.tick_after(SECOND * 2, &[queue], 0);
    assert_eq!((story.oldest(80), story.listener(80).scan), (None, None));
    assert!(story.netns().scan.is_some());
}

#[test]
fn scan_values_of_a_unix_queue_end_when_it_is_too_long_to_scan() {
    let (cookie, address) = (Cookie(5), UnixAddress::new(b"/run/php.sock").unwrap());
    let queue = AcceptQueue { length: 2, limit: Some(4) };
    let socket = ListenSocket { cookie, address, queue, drops: None, origin: Origin::default() };
    let mut story = Story::begun_with(&[]);
    let sample = &mut story.snapshot.namespaces[0];
    sample.unix =
        Some(Dump { interval: INTERVAL, is_same: false, part: None, sockets: vec![socket] });
    for second in [1, 2] {
        let unix = Some(vec![UnixQueue { cookie, address, clients: vec![7, 8], open: 0 }]);
        story.snapshot.namespaces[0].scan = Some(Scan { unix, ..scan(super::socket(1, 80), &[]) });
        story.tick_after(SECOND, &[], 0);
        assert_eq!(story.netns().listeners[0].abandoned(), Some(0), "second {second}");
    }
    story.snapshot.namespaces[0].scan =
        Some(Scan { unix: None, ..scan(super::socket(1, 80), &[]) });
    story.tick_after(SECOND, &[], 0);
    assert_eq!(story.netns().listeners[0].abandoned(), None);
}

#[test]
fn a_member_at_its_limit_is_stuck_only_while_dumps_show_it() {
    let members = [waiting(4, socket(1, 80)), socket(2, 80)];
    let mut story = Story::begun_with(&[socket(1, 80), socket(2, 80)]);
    story.tick(&members, 0);
    for _ in 0..50 {
        story.failed_tick();
    }
    assert_eq!(story.diagnoses(80), []);
    for _ in 0..20 {
        story.tick(&members, 0);
    }
    assert_eq!(story.diagnoses(80), [Diagnosis::Imbalance]);
}

#[test]
fn a_server_that_restarts_with_a_full_queue_is_no_group() {
    // The evidence is evaluated once a second, at a different sample of each story.
    for before in 20..32 {
        let mut story = Story::begun_with(&[socket(1, 80)]);
        for _ in 0..before {
            story.tick(&[waiting(5, socket(1, 80))], 0);
        }
        for _ in 0..20 {
            story.tick(&[socket(2, 80)], 0);
            assert_eq!(story.diagnoses(80), [], "restarted after {before} samples");
        }
    }
}

#[test]
fn no_accept_for_ten_seconds_is_a_stall_and_its_end_is_reported() {
    let queue = waiting(2, socket(1, 80));
    let mut story = Story::begun_with(&[socket(1, 80)]);
    for second in 0..12 {
        story.scanned(SECOND, queue, &[(7, second + 1), (8, second)]);
    }
    assert_eq!(story.diagnoses(80), [Diagnosis::Stalled]);
    story.tick_after(SECOND, &[], 0).tick_after(SECOND, &[], 0);
    assert_eq!((story.diagnoses(80), story.listener(80).case), (vec![], None));
    story.tick_after(SECOND, &[], 0);
    let told: Vec<IncidentEvent> =
        story.state.take_incidents().map(|incident| incident.event).collect();
    assert!(
        matches!(told[..], [IncidentEvent::Started(_), IncidentEvent::Ended(span)] if span.peak == 2),
        "{told:?}"
    );
}

/// The diagnosis of a server that starts to listen at 5 s and stops accepting at 10 s. Its last
/// client left `ago` before the first scan of its port.
fn diagnosis_of_a_server_whose_last_client_left(ago: Duration) -> Vec<Diagnosis> {
    let queue = waiting(2, socket(1, 80));
    let mut story = Story::begun_with(&[]);
    for second in 0..10 {
        let rows: &[ListenSocket] = if second < 5 { &[] } else { &[socket(1, 80)] };
        story.tick_after(SECOND, rows, 0);
    }
    for second in 0..12 {
        let mut found = scan(queue, &[(7, second + 1), (8, second)]);
        for socket in found.tcp.iter_mut().flat_map(|tcp| &mut tcp.sockets) {
            socket.accepted_ago = Some(ago + SECOND * second as u32);
        }
        story.snapshot.namespaces[0].scan = Some(found);
        story.tick_after(SECOND, &[queue], 0);
        story.snapshot.namespaces[0].scan = None;
    }
    story.diagnoses(80)
}

#[test]
fn a_client_that_left_before_the_first_scan_proves_that_the_server_accepted() {
    let of = diagnosis_of_a_server_whose_last_client_left;
    assert_eq!(of(SECOND * 4), [Diagnosis::Stalled]);
    // A client that left before the server listened was the client of an earlier server.
    assert_eq!(of(SECOND * 8), [Diagnosis::NotAccepting]);
}

#[test]
fn a_long_queue_that_drains_is_standing_and_not_stalled() {
    let queue = waiting(2, socket(1, 80));
    let mut story = Story::begun_with(&[socket(1, 80)]);
    for second in 0..60 {
        story.scanned(SECOND, queue, &[(second, 12), (second + 1, 11)]);
    }
    assert_eq!(story.diagnoses(80), [Diagnosis::StandingQueue]);
}

#[test]
fn the_drain_rate_is_known_if_the_queue_was_full_since_its_head_arrived() {
    let full = waiting(5, socket(1, 80));
    let mut story = Story::begun_with(&[socket(1, 80)]);
    story.scanned(SECOND, full, &[(1, 2), (2, 2), (3, 2), (4, 2), (5, 2)]);
    story.scanned(SECOND, full, &[(3, 2), (4, 1), (5, 1), (6, 0), (7, 0)]);
    // The connection at the head arrived two seconds ago, before any sample saw the queue full.
    assert_eq!(story.listener(80).drain_rate(), None);
    story.scanned(SECOND, full, &[(5, 2), (6, 1), (7, 1), (8, 0), (9, 0)]);
    assert_eq!(story.listener(80).drain_rate(), Some(2.5));
    story.scanned(SECOND, full, &[(5, 3), (6, 2), (7, 2), (8, 1), (9, 1)]);
    assert_eq!(story.listener(80).drain_rate(), None);
}

#[test]
fn only_a_socket_opened_under_the_earlier_somaxconn_has_a_stale_limit() {
    let near = |cookie, port| {
        let queue = AcceptQueue { length: 120, limit: Some(128) };
        ListenSocket { queue, ..socket(cookie, port) }
    };
    let mut story = Story::begun_with(&[near(1, 80)]);
    for somaxconn in [128, 4096] {
        let mut settings = Settings::default();
        settings.set(Setting::Somaxconn, somaxconn);
        story.snapshot.namespaces[0].settings = Some(settings);
        story.tick_after(SECOND, &[near(1, 80)], 0);
    }
    story.snapshot.namespaces[0].settings = None;
    let both = [near(1, 80), near(2, 81)];
    story.tick_after(SECOND, &both, 0).tick_after(SECOND, &both, 0);
    assert_eq!((story.diagnoses(80), story.diagnoses(81)), (vec![Diagnosis::StaleLimit], vec![]));
}

#[test]
fn a_server_that_restarts_every_8_s_under_load_is_slow_in_one_incident() {
    let mut story = Story::begun_with(&[socket(1, 80)]);
    let mut words = Vec::new();
    for tick in 0..700 {
        // The server listens for seven of eight seconds, and its queue is full after the first
        // second.
        let (life, phase) = (tick / 80, tick % 80);
        let full = dropped(phase, waiting(5, socket(1 + u64::from(life), 80)));
        match phase {
            0..10 => story.tick(&[], 0),
            10..20 => story.tick(&[socket(1 + u64::from(life), 80)], 0),
            _ => story.tick(&[full], 1),
        };
        words.extend(story.diagnoses(80));
    }
    words.dedup();
    assert_eq!(words, [Diagnosis::SlowAccept]);
    assert_eq!(story.state.take_incidents().count(), 1);
}

#[test]
fn a_listener_closed_for_longer_than_the_window_has_no_history() {
    let mut story = Story::begun_with(&[socket(1, 80)]);
    let full = waiting(5, socket(1, 80));
    // The listener has accepted before.
    story.tick(&[full], 0).tick(&[socket(1, 80)], 0);
    for _ in 0..100 {
        story.tick(&[full], 0);
    }
    assert_eq!(story.diagnoses(80), [Diagnosis::SlowAccept]);
    for _ in 0..310 {
        story.tick(&[], 0);
    }
    assert_eq!((story.diagnoses(80), story.listener(80).case), (vec![], None));
    assert_eq!(story.state.take_incidents().count(), 2);
    story.tick(&[socket(2, 80)], 0);
    assert_eq!(story.listener(80).case, None);
}

#[test]
fn a_limit_is_stale_only_if_its_socket_is_older_than_the_raise() {
    let somaxconn = |value| {
        let mut settings = Settings::default();
        settings.set(Setting::Somaxconn, value);
        Some(settings)
    };
    let stale = |old_server: bool| {
        let mut story = Story::begun_with(&[socket(1, 80)]);
        story.snapshot.namespaces[0].settings = somaxconn(4);
        story.tick(&[socket(1, 80)], 0);
        story.snapshot.namespaces[0].settings = None;
        // Settings are read every four seconds: within one interval the limit was raised and then
        // the server restarted.
        let full = waiting(5, socket(if old_server { 1 } else { 2 }, 80));
        for _ in 0..20 {
            story.tick(&[full], 0);
        }
        story.snapshot.namespaces[0].settings = somaxconn(4_096);
        for _ in 0..20 {
            story.tick(&[full], 0);
        }
        story.diagnoses(80).contains(&Diagnosis::StaleLimit)
    };
    assert_eq!([stale(true), stale(false)], [true, false]);
}

/// The diagnoses of a listener that was never seen to accept, beside another listener. Its process
/// is in `state` and `polls` the socket or not.
fn diagnoses_of_a_process(state: char, polls: bool) -> Vec<Diagnosis> {
    let origin = Origin { inode: 7, ..Origin::default() };
    let (idle, other) = (ListenSocket { origin, ..socket(1, 80) }, socket(2, 81));
    let queue = waiting(2, idle);
    let thread = ThreadReading {
        tid: 9,
        state,
        on_cpu: Duration::ZERO,
        runnable: Duration::ZERO,
        wait: Wait::Events,
    };
    let process = ProcessReading {
        polls: Some(polls),
        threads: vec![thread],
        thread_count: 1,
        ..ProcessReading::default()
    };
    let reading = Arc::new(OwnerReading { processes: vec![process], ..OwnerReading::default() });
    let mut story = Story::begun_with(&[idle, other]);
    for second in 0..30 {
        let mut found = scan(queue, &[(7, second + 1), (8, second)]);
        found.tcp.iter_mut().flat_map(|tcp| &mut tcp.sockets).for_each(|s| s.accepted_ago = None);
        story.snapshot.namespaces[0].scan = Some(found);
        story.snapshot.owner_readings = vec![(7, reading.clone())];
        story.tick_after(SECOND, &[queue, other], 0);
    }
    let held = story.listener(80);
    held.diagnoses().filter(|one| one.since.is_some()).map(|one| one.diagnosis).collect()
}

#[test]
fn a_stopped_process_that_watches_the_socket_is_meant_to_accept() {
    assert_eq!(diagnoses_of_a_process('T', true), [Diagnosis::Stalled]);
    // A server that is not ready yet, and a stopped process that only holds the port.
    assert_eq!(diagnoses_of_a_process('S', true), [Diagnosis::NotAccepting]);
    assert_eq!(diagnoses_of_a_process('T', false), [Diagnosis::NotAccepting]);
}

/// Applies one second, with this total of SYN cookies sent, and a scan that found this number of
/// half-open connections at each socket.
fn flood(story: &mut Story, cookies: u64, half_open: &[(ListenSocket, u64)]) {
    let mut tcp = TcpScan::default();
    for (socket, count) in half_open {
        let mut found = scan(*socket, &[]).tcp.unwrap();
        let local = found.sockets[0].local;
        tcp.sockets.append(&mut found.sockets);
        let open = HalfOpen { local, client: local.ip, repeats: 0 };
        tcp.half_open.extend(std::iter::repeat_n(open, *count as usize));
    }
    let sockets: Vec<ListenSocket> = half_open.iter().map(|(socket, _)| *socket).collect();
    let mut counters = Counters::default();
    counters.set(Counter::ListenOverflows, story.overflows);
    counters.set(Counter::SyncookiesSent, cookies);
    counters.set(Counter::SyncookiesRecv, 0);
    let sample = &mut story.snapshot.namespaces[0];
    sample.tcp = Some(Dump { interval: INTERVAL, is_same: false, part: None, sockets });
    (sample.netstat, sample.scan) =
        (Some(counters), Some(Scan { tcp: Some(tcp), ..Scan::default() }));
    story.state.fold(&story.snapshot, SECOND);
}

/// The listeners that are called flooded at some time, where each second has half-open connections
/// at ports 80 (limit 4) and 81 (limit 1). The kernel sends 300 cookies a second while port 80 is
/// flooded, and in the second before a scan sees it.
fn flooded(seconds: &[[u64; 2]]) -> Vec<u16> {
    let limited = |cookie, port, limit| {
        let queue = AcceptQueue { length: 0, limit: Some(limit) };
        ListenSocket { queue, ..socket(cookie, port) }
    };
    let sockets = [limited(1, 80, 4), limited(2, 81, 1)];
    let mut story = Story::begun_with(&sockets);
    let mut called = Vec::new();
    let mut cookies = 0;
    for (second, half_open) in (1..).zip(seconds) {
        let is_flooded = |[at_80, _]: &[u64; 2]| *at_80 > 4;
        let soon = seconds.get(second).is_some_and(is_flooded);
        cookies += if soon || is_flooded(half_open) { 300 } else { 0 };
        flood(&mut story, cookies, &[(sockets[0], half_open[0]), (sockets[1], half_open[1])]);
        called.extend([80, 81].into_iter().filter(|port| !story.diagnoses(*port).is_empty()));
    }
    called.sort_unstable();
    called.dedup();
    called
}

#[test]
fn a_flood_is_never_called_by_the_name_of_an_innocent_listener() {
    assert_eq!(flooded(&[[5, 0]; 20]), [80]);
    // A slow client of the other listener fills its short SYN queue: before, during and after.
    assert!(flooded(&[[5, 1]; 20]).is_empty());
    let begins = [[0, 1], [0, 1], [0, 1], [5, 1], [5, 1], [5, 1], [5, 1], [5, 1]];
    assert!(flooded(&begins).is_empty());
    let ends = [[5, 0], [5, 0], [5, 0], [5, 0], [5, 1], [5, 1], [0, 1], [0, 1], [0, 1], [0, 1]];
    assert_eq!(flooded(&ends), [80]);
}
