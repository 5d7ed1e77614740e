//! Tests queries of single listeners: every kind of listener answers with the values of a dump, a
//! listener that cannot be queried is dumped, and the overflows of listeners that open between two
//! dumps are attributed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use listenq::kernel::listen::{ListenReader, Scratch};
use listenq::sampler::netns::{NetnsReader, SampleTime};
use listenq::sampler::plan::selected;
use listenq::self_stats::SelfStats;
use listenq::snapshot::{ListenSocket, NetnsId, NetnsSample};
use listenq_lab::client::{fill, reset};
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use listenq_lab::wait::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
/// More listeners than fit into one batch of requests.
const MANY: usize = 100;
/// More listeners than are queried one by one.
const CROWD: u16 = 150;

/// A reader with the sockets that it has read.
struct Known {
    reader: ListenReader,
    scratch: Scratch,
    sockets: Vec<ListenSocket>,
}

// === impl Known ===

impl Known {
    /// Reads the listeners of the calling thread's namespace.
    fn here() -> Self {
        let mut scratch = Scratch::default();
        let reader = ListenReader::open(Path::new("/proc/thread-self/net"), &mut scratch).unwrap();
        let mut known = Self { reader, scratch, sockets: Vec::new() };
        known.dump();
        known
    }

    /// Reads by a dump. Returns whether nothing changed.
    fn dump(&mut self) -> bool {
        let is_same = self.reader.read_tcp(&mut self.scratch, &mut self.sockets).unwrap();
        if !is_same {
            self.reader.select(&self.sockets, selected(&self.sockets).0.into_iter());
        }
        is_same
    }

    /// Queries every known listener. Returns whether nothing changed; `None` if a listener was not
    /// queried or did not answer.
    fn ask(&mut self) -> Option<bool> {
        let (_, are_all) = selected(&self.sockets);
        let answers = self.reader.ask_tcp(&mut self.scratch, &mut self.sockets);
        match answers {
            Some(answers) => (are_all && answers.is_complete).then_some(answers.is_same),
            // There is nothing to query.
            None => self.sockets.is_empty().then_some(true),
        }
    }

    /// Dumps until this number of sockets is left: a program that another test starts may inherit a
    /// closed socket for a short time.
    fn dump_until(&mut self, sockets: usize) {
        eventually(&format!("{sockets} sockets"), TIMEOUT, || {
            self.dump();
            (self.sockets.len() == sockets).then_some(())
        });
    }

    fn port(&self, nth: usize) -> u16 {
        self.sockets[nth].address.port
    }
}

/// The sockets that another reader finds by a dump.
fn dumped() -> Vec<ListenSocket> {
    Known::here().sockets
}

fn tcp(address: &str) -> Listen {
    Listen::tcp(address).backlog(4)
}

/// Sets of listeners in which a lookup could return the wrong listener.
fn sets() -> Vec<Vec<Listen>> {
    let v6 = |v6only| tcp("[::]:8080").v6only(v6only);
    vec![
        vec![],
        vec![tcp("127.0.0.1:8080"), tcp("[::1]:8080"), tcp("127.0.0.1:8081")],
        vec![tcp("0.0.0.0:8080"), v6(true), tcp("[::1]:8081")],
        vec![v6(false)],
        vec![v6(false).reuseport(), tcp("0.0.0.0:8080").reuseport()],
        vec![tcp("0.0.0.0:8080").reuseport(), tcp("127.0.0.1:8080").reuseport()],
        vec![
            v6(false).reuseport(),
            tcp("127.0.0.1:8080").reuseport(),
            tcp("[::1]:8080").reuseport(),
        ],
        vec![tcp("0.0.0.0:8080").device("lo"), v6(true).device("lo")],
        vec![tcp("0.0.0.0:8080").device("lo"), tcp("0.0.0.0:8080").device("lq0")],
        vec![tcp("[::ffff:127.0.0.1]:8080"), tcp("127.0.0.1:8081")],
        vec![tcp("127.0.0.1:8080").mptcp(), tcp("[::]:8081").mptcp()],
        (0..MANY).map(|n| tcp(&format!("127.0.0.1:{}", 8080 + n))).collect(),
    ]
}

#[test]
fn a_query_returns_the_row_of_a_dump_for_every_kind_of_listener() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("kinds");
    let _link = ns.add_link("lq0");
    ns.run(|| {
        for set in sets() {
            eventually("the last set to be gone", TIMEOUT, || dumped().is_empty().then_some(()));
            let listeners: Vec<Listener> = set.iter().map(Listen::open).collect();
            let mut known = Known::here();
            assert_eq!(known.sockets.len(), set.len());
            assert_eq!(known.ask(), Some(true), "{set:?}");
            let mut clients = Vec::new();
            for listener in &listeners {
                let target = listener.target();
                let target = SocketAddr::new(target.ip().to_canonical(), target.port());
                clients.extend(fill(target, 2));
                assert_eq!(known.ask(), Some(false), "{set:?}");
                assert_eq!(known.ask(), Some(true), "{set:?}");
                assert_eq!(known.sockets, dumped(), "{set:?}");
                assert!(known.dump(), "{set:?}");
                assert_eq!(known.ask(), Some(true), "{set:?}");
            }
        }
    });
}

#[test]
fn drops_and_a_full_queue_are_in_an_answer() {
    if !Netns::require_root() {
        return;
    }
    Netns::new("drops").run(|| {
        let listeners = [tcp("127.0.0.1:8080").open(), tcp("[::]:8081").open()];
        let mut known = Known::here();
        drop(fill(listeners[1].target(), 25));
        assert_eq!(known.ask(), Some(false));
        let full = known.sockets.iter().find(|socket| socket.address.port == 8081).unwrap();
        assert!(full.queue.is_full() && full.drops >= Some(20), "{full:?}");
        assert_eq!(known.sockets, dumped());
    });
}

/// With `SO_REUSEPORT` on both sockets, the kernel's lookup returns the first socket that fits,
/// even if the other one fits better.
#[test]
fn a_socket_that_a_query_never_finds_is_dumped_afterwards() {
    if !Netns::require_root() {
        return;
    }
    Netns::new("never").run(|| {
        let member = tcp("0.0.0.0:8080").reuseport();
        let _both = [member.clone().device("lo").open(), member.open()];
        let mut known = Known::here();
        let before = known.sockets.clone();
        for _ in 0..3 {
            assert_eq!((known.ask(), &known.sockets), (None, &before));
            assert!(known.dump());
        }
    });
}

#[test]
fn a_socket_that_hides_another_is_dumped() {
    if !Netns::require_root() {
        return;
    }
    Netns::new("hidden").run(|| {
        let member = tcp("127.0.0.1:8080").reuseport();
        let one = member.open();
        let mut known = Known::here();
        assert_eq!(known.ask(), Some(true));
        let other = member.open();
        // Whichever of the two sockets the kernel finds, no answer is wrong.
        assert_ne!(known.ask(), Some(false));
        assert!(!known.dump());
        assert_eq!(known.ask(), None);
        assert!(known.dump());
        assert_eq!(known.ask(), None);
        drop(other);
        known.dump_until(1);
        assert_eq!(known.ask(), Some(true));
        let crowd: Vec<Listener> =
            (0..CROWD).map(|n| tcp(&format!("127.0.0.1:{}", 9000 + n)).open()).collect();
        assert!(!known.dump());
        assert_eq!(known.ask(), None);
        drop(crowd);
        known.dump_until(1);
        assert_eq!((known.ask(), known.port(0)), (Some(true), one.port()));
    });
}

#[test]
fn a_socket_that_is_gone_moved_or_replaced_is_dumped() {
    if !Netns::require_root() {
        return;
    }
    Netns::new("gone").run(|| {
        let stays = tcp("127.0.0.1:8080").open();
        for instead in [None, Some("127.0.0.1:8081"), Some("0.0.0.0:8081")] {
            let goes = tcp("127.0.0.1:8081").open();
            let mut known = Known::here();
            assert_eq!(known.ask(), Some(true));
            let before = known.sockets.clone();
            drop(goes);
            let instead = instead.map(|address| tcp(address).open());
            eventually("an answer to be missing", TIMEOUT, || known.ask().is_none().then_some(()));
            assert_eq!(known.sockets, before);
            assert!(!known.dump());
            assert_eq!(known.sockets.len(), 1 + instead.iter().len());
            assert_eq!(known.ask(), Some(true));
            drop(instead);
            known.dump_until(1);
        }
        let moves = tcp("0.0.0.0:8082").open();
        let mut known = Known::here();
        moves.socket().bind_device(Some(b"lo")).unwrap();
        assert_eq!(known.ask(), None);
        assert!(!known.dump());
        assert_eq!(known.ask(), Some(true));
        moves.socket().bind_device(None).unwrap();
        assert_eq!(known.ask(), None);
        assert!(!known.dump());
        assert_eq!(known.ask(), Some(true));
        moves.shutdown_then_listen(9);
        assert_eq!(known.ask(), Some(false));
        assert_eq!(known.sockets, dumped());
        drop(stays);
    });
}

/// Without connections, only the number of sockets is read. A waiting connection is a socket, even
/// after its client has reset.
#[test]
fn a_queue_is_seen_at_once_in_a_namespace_without_connections() {
    if !Netns::require_root() {
        return;
    }
    Netns::new("calm").run(|| {
        let listeners = [tcp("127.0.0.1:8080").open(), tcp("[::]:8081").open()];
        let (mut own, mut scratch) = (SelfStats::default(), Scratch::default());
        let mut reader = NetnsReader::open_here(Path::new("/proc"), &mut scratch).unwrap();
        let mut sample = NetnsSample::new(NetnsId(1), "calm".into(), false);
        let mut tick = SampleTime::every(Duration::from_millis(1));
        let mut lengths = |gap| {
            tick.now += gap;
            reader.read(tick, &mut sample, &mut own, &mut scratch);
            let sockets = &sample.tcp.as_ref().unwrap().sockets;
            let length = |port| sockets.iter().find(|socket| socket.address.port == port);
            [8080, 8081].map(|port| length(port).unwrap().queue.length)
        };
        // Before the next full second, only the listeners are due.
        let (second, soon) = (Duration::from_secs(1), Duration::from_millis(1));
        for (listener, queued) in listeners.iter().zip([[2, 0], [0, 2]]) {
            assert_eq!(lengths(second), [0, 0]);
            for _ in 0..20 {
                assert_eq!(lengths(soon), [0, 0]);
            }
            let clients = fill(listener.target(), 2);
            assert_eq!(lengths(soon), queued);
            reset(clients);
            for _ in 0..5 {
                assert_eq!(lengths(soon), queued);
            }
            assert_eq!(listener.accept_all(), 2);
            assert_eq!(lengths(soon), [0, 0]);
        }
    });
}

/// Each listener stays open for more than a second, which is the longest time until listenq sees
/// it.
#[test]
fn a_listener_that_opens_between_two_dumps_gets_all_its_overflows() {
    if !Netns::require_root() {
        return;
    }
    let ns = Netns::new("between");
    let old = ns.run(|| tcp("127.0.0.1:8080").open());
    let daemon = Launch::new(BIN).inside(&ns).start();
    // Later than the dumps whose sockets count as open before listenq started.
    std::thread::sleep(Duration::from_secs(1));
    let mut listeners = vec![old];
    for n in 1..=6u16 {
        let listener = ns.run(|| tcp(&format!("127.0.0.1:{}", 8080 + n)).open());
        // Every second listener accepts its queue at once: only the drops of the burst remain.
        drop(ns.run(|| fill(listener.target(), 5 + 3 * usize::from(n))));
        if n % 2 == 0 {
            assert!(listener.accept_all() >= 5);
        }
        listeners.push(listener);
        // Until the namespace is at rest again, with an offset to the full seconds.
        std::thread::sleep(Duration::from_millis(1300 + 170 * u64::from(n)));
    }
    let scrape = eventually("every overflow of nstat to be accounted for", TIMEOUT, || {
        let scrape = daemon.scrape();
        let sums = scrape.overflows();
        let nstat = ns.nstat()["TcpExtListenOverflows"] as f64;
        (sums.kernel == nstat && sums.accounted() == nstat).then_some(scrape)
    });
    assert_eq!((scrape.overflows().unattributed, scrape.overflows().unexposed), (0.0, 0.0));
    let attributed: Vec<Option<f64>> =
        (8080..=8086).map(|port| scrape.listener("127.0.0.1", port).overflows).collect();
    let refused = std::iter::once(0.0).chain((1..=6).map(|n| 3.0 * f64::from(n)));
    assert_eq!(attributed, refused.map(Some).collect::<Vec<_>>());
}
