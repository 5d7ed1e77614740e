//! Tests that a tick at rest allocates nothing: not while receiving, decoding, folding or
//! publishing.
//!
//! Only allocations of the thread that ticks are counted, because other tests may run at the same
//! time.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "test code: a panic is its report, and the counts it prints are for a person"
)]

#[path = "../benches/dump/mod.rs"]
mod dump;

use std::hint::black_box;
use std::iter::repeat_with;
use std::net::TcpListener;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use listenq::kernel::inet_diag::{both_families, decode_row};
use listenq::kernel::listen::{ListenReader, Scratch};
use listenq::kernel::netstat::Netstat;
use listenq::kernel::socket_queries::Answers;
use listenq::sampler::netns::{NetnsReader, SampleTime};
use listenq::sampler::{Config, Sampler};
use listenq::self_stats::SelfStats;
use listenq::snapshot::{ListenSocket, NetnsId, NetnsSample, Origin, Snapshot};
use listenq::state::{self, State};
use listenq::view::View;
use listenq_lab::listener::Listen;
use listenq_lab::netns::Netns;
use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use procfs::FromRead;

use dump::{INTERVAL, Listener};

/// The number of ticks after which all buffers have their final size.
const WARM_UP: usize = 5;
const TICKS: usize = 50;
/// The tick after the second look for traffic, from which all that is kept exists.
const SECOND_LOOK: u32 = 21;
/// Readings that are due once per second happen in the first tick, and again after this time.
const SECOND: Duration = Duration::from_secs(1);

fn allocations(work: impl FnOnce()) -> u64 {
    allocation_counter::measure(work).count_total
}

#[test]
fn an_allocation_is_counted() {
    assert_eq!(allocations(|| drop(black_box(Box::new(1)))), 1);
    let mut full = vec![1u8];
    assert_eq!(allocations(|| full.extend([1; 100])), 1);
}

#[test]
fn decode_fold_and_show_allocate_nothing_at_rest() {
    let listeners = dump::listeners(1_000);
    let datagrams = dump::datagrams(&listeners);
    let mut snapshot = dump::snapshot(&listeners);
    // The counters are read once, as at startup; from then on overflows are settled.
    snapshot.namespaces[0].netstat = Some(Netstat::from_file("/proc/net/netstat").unwrap().0);
    let (mut state, own, mut view) =
        (State::new(state::Config::default()), SelfStats::default(), View::default());
    state.fold(&snapshot, INTERVAL);
    snapshot.namespaces[0].netstat = None;
    let mut tick = || {
        snapshot.namespaces[0]
            .tcp
            .iter_mut()
            .for_each(|dump| dump::decode(&datagrams, &mut dump.sockets));
        state.fold(&snapshot, INTERVAL);
        state.show(&own, &mut view);
    };
    (0..WARM_UP).for_each(|_| tick());
    assert_eq!(allocations(|| (0..TICKS).for_each(|_| tick())), 0);
    assert_eq!(view.namespaces[0].listeners.len(), 1_000);
}

/// Other programs open and close listeners in this namespace. A tick is at rest when nothing
/// changed for several dumps and all listeners that can be queried one by one were queried. The
/// settings are read every four seconds, at rest too; that allocates.
#[test]
fn a_reading_of_this_namespace_allocates_nothing_at_rest() {
    let mut reader = NetnsReader::open_own(Path::new("/proc")).unwrap();
    let (mut own, mut state, mut view) =
        (SelfStats::default(), State::new(state::Config::default()), View::default());
    let namespaces = vec![NetnsSample::new(NetnsId(1), "host".into(), false)];
    let mut snapshot = Snapshot { namespaces, ..Snapshot::default() };
    let mut scratch = Scratch::default();
    let (mut calm, mut at_rest) = (0, Vec::new());
    for tick in 0..200 {
        let count = allocations(|| {
            let tick = SampleTime { now: INTERVAL * tick, ..SampleTime::every(INTERVAL) };
            reader.read(tick, &mut snapshot.namespaces[0], &mut own, &mut scratch);
            state.fold(&snapshot, INTERVAL);
            state.show(&own, &mut view);
        });
        let sample = &snapshot.namespaces[0];
        let is_same = sample.tcp.as_ref().is_none_or(|dump| dump.is_same)
            && sample.unix.as_ref().is_none_or(|dump| dump.is_same);
        calm = if is_same && sample.netstat.is_none() { calm + 1 } else { 0 };
        if sample.settings.is_some() {
            println!("a tick that reads the settings: {count} allocations");
        } else if calm >= 5 && tick >= SECOND_LOOK {
            at_rest.push(count);
        }
    }
    assert!(at_rest.len() > 10, "this namespace never came to rest");
    assert!(at_rest.iter().all(|count| *count == 0), "{at_rest:?}");
}

#[test]
fn a_whole_sample_of_a_thousand_listeners_allocates_nothing_at_rest() {
    if !Netns::require_root() {
        return;
    }
    let netns = Netns::new("alloc");
    netns.run(|| {
        let ports = 10_000..11_000;
        let _listeners: Vec<_> =
            ports.map(|port| Listen::tcp(format!("127.0.0.1:{port}")).open()).collect();
        let start = Instant::now();
        let mut sampler = sampler();
        (0..WARM_UP).for_each(|_| sampler.sample());
        let at_rest = allocations(|| (0..TICKS).for_each(|_| sampler.sample()));
        let took = start.elapsed();
        sleep(SECOND);
        let slow = allocations(|| sampler.sample());
        println!("a sample with the once-a-second readings: {slow} allocations");
        // On a machine that does not finish within one second, some ticks include the readings that
        // are due once per second.
        let slow_ones = if took < SECOND { 0 } else { took.as_secs() + 1 };
        assert!(at_rest <= slow_ones * slow, "{at_rest} allocations in {TICKS} ticks, {took:?}");
    });
}

#[test]
fn a_few_listeners_are_queried_without_an_allocation() {
    if !Netns::require_root() {
        return;
    }
    Netns::new("asked").run(|| {
        let open = || Listen::tcp("127.0.0.1:0").open();
        // More listeners than fit into one batch of requests.
        let _listeners: Vec<_> = repeat_with(open).take(40).collect();
        let (mut scratch, mut sockets) = (Scratch::default(), Vec::new());
        let net = Path::new("/proc/thread-self/net");
        let mut reader = ListenReader::open(net, &mut scratch).unwrap();
        reader.read_tcp(&mut scratch, &mut sockets).unwrap();
        reader.select(&sockets, 0..sockets.len());
        let same = Some(Answers { is_same: true, is_complete: true });
        let mut ask = || assert_eq!(reader.ask_tcp(&mut scratch, &mut sockets), same);
        // The answers are kept for comparison with the next answers.
        ask();
        assert_eq!(allocations(|| (0..TICKS).for_each(|_| ask())), 0);
    });
}

fn sampler() -> Sampler {
    let config = Config { all_namespaces: false, ..Config::default() };
    Sampler::new(&config).unwrap()
}

/// The fields of a row, without the fields that differ between two sockets at one address.
#[derive(Debug, PartialEq)]
struct Layout {
    kind: u16,
    flags: u16,
    length: usize,
    socket: ListenSocket,
    attributes: Vec<(u16, usize)>,
}

#[test]
fn synthetic_dumps_have_the_layout_of_this_kernel() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let layouts = this_kernels_dump();
        let real = layouts.iter().find(|real| real.socket.address.port == address.port()).unwrap();
        let socket = real.socket;
        let made_up = dump::message(&Listener {
            address,
            cookie: socket.cookie.0,
            inode: 1,
            length: socket.queue.length,
            limit: socket.queue.limit.unwrap(),
            drops: socket.drops.unwrap(),
        });
        assert_eq!(&layout(&made_up), real);
    }
}

fn this_kernels_dump() -> Vec<Layout> {
    let socket = Socket::new(NETLINK_SOCK_DIAG).unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    socket.send(&both_families(), 0).unwrap();
    let (mut layouts, mut buffer) = (Vec::new(), vec![0; 32 * 1024]);
    loop {
        let length = socket.recv(&mut buffer.as_mut_slice(), 0).unwrap();
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            if u16::from_ne_bytes([rest[4], rest[5]]) == dump::NLMSG_DONE {
                return layouts;
            }
            layouts.push(layout(rest));
            rest = &rest[NetlinkBuffer::new(rest).length() as usize..];
        }
    }
}

fn layout(message: &[u8]) -> Layout {
    /// The kernel sends this attribute only to processes with `CAP_NET_ADMIN`.
    const MARK: (u16, usize) = (15, 4);
    let message = NetlinkBuffer::new_checked(message).unwrap();
    let payload = message.payload();
    let attributes = NlasIterator::new(&payload[72..]).map(|attribute| attribute.unwrap());
    let attributes: Vec<_> =
        attributes.map(|attribute| (attribute.kind(), attribute.value().len())).collect();
    let marked = attributes.contains(&MARK);
    let socket = decode_row(payload).unwrap().unwrap().socket;
    Layout {
        kind: message.message_type(),
        flags: message.flags(),
        length: payload.len() - if marked { 8 } else { 0 },
        // The inode and the cgroup are not compared.
        socket: ListenSocket { origin: Origin::default(), ..socket },
        attributes: attributes.into_iter().filter(|attribute| *attribute != MARK).collect(),
    }
}
