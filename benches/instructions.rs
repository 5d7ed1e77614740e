//! Instruction counts (callgrind) of the work on a dump of 100, 1,000 and 10,000 listeners. Two
//! runs with one toolchain have the same counts, so the run fails if a count exceeds its limit.
//!
//! `cargo bench --bench instructions` needs valgrind and `gungraun-runner` in the version in
//! `Cargo.lock`. It exits with status 3 if a limit is exceeded. The counts do not include `recv`
//! and the lookup of interface names, which are calls into the kernel.
#![allow(clippy::unwrap_used, reason = "a panic is the report of a bench")]
#![allow(missing_docs, reason = "the macros make public items without")]

mod dump;

use std::hint::black_box;
use std::time::Duration;

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};
use listenq::exposition::{self, protobuf};
use listenq::self_stats::SelfStats;
use listenq::snapshot::{Counter, Counters, ListenSocket, Snapshot};
use listenq::state::{Config, State};
use listenq::view::View;

use dump::INTERVAL;

// Allowed instructions per listener: a quarter more than with rustc 1.95. Lower the limits when the
// code improves.

/// Instructions that do not depend on the number of listeners: one namespace, listenq itself,
/// growth of a buffer.
const FIXED: u64 = 5_000;
/// Measured: 415. `inet_diag_msg` takes 125, the attributes up to SKMEMINFO, which comes last, 158,
/// and framing and the push 100.
const DECODE: u64 = 520;
/// At rest no listener is visited, whatever their number.
const FOLD: u64 = 0;
/// The worst case: in one sample every listener is full, overflows, and has twice as many drops.
/// Measured: 1,766. The size of the burst takes 730 (each overflow is checked against the
/// retransmissions of 16 slots), finding the socket, comparing its address and adding it to the
/// sums 520, comparing drops with noise and room 210, and the history of half a minute the rest.
const FOLD_MOVED: u64 = 1_900;
/// Measured: 618 for any number. A view that already contains these listeners copies none of them.
const PUBLISH: u64 = 0;
/// Measured: 6,330 for thirteen or fourteen series with four labels each and one with ten. A series
/// takes 430, to copy the name and the labels and to write a number. The series of listenq itself
/// take 132,000 more, which are included at 100 listeners.
const RENDER: u64 = 7_500;
/// Measured: 5,900, less than the 6,330 of text: the labels and the start timestamp of a listener
/// are encoded once for all its series. The limit stays below the measured cost of text.
const RENDER_PROTOBUF: u64 = 6_320;

/// After this number of dumps all sockets that existed before count as known.
const SETTLED: u32 = 5;

fn gate(per_listener: u64, listeners: u64) -> LibraryBenchmarkConfig {
    let limit = FIXED + per_listener * listeners;
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, limit)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

fn recorded(listeners: usize) -> (Vec<Vec<u8>>, Vec<ListenSocket>) {
    (dump::datagrams(&dump::listeners(listeners)), Vec::with_capacity(listeners))
}

fn folded(listeners: usize) -> (State, Snapshot) {
    let mut snapshot = dump::snapshot(&dump::listeners(listeners));
    let mut state = State::new(Config { max_listeners: listeners, ..Config::default() });
    snapshot.namespaces[0].netstat = Some(overflows(0));
    for _ in 0..SETTLED {
        state.fold(&snapshot, INTERVAL);
    }
    snapshot.namespaces[0].netstat = None;
    // At rest the kernel sends the same bytes again, and the reader reports this.
    snapshot.namespaces[0].tcp.as_mut().unwrap().is_same = true;
    (state, snapshot)
}

/// Every listener overflows again. The first queue of a listener allocates memory for its peak;
/// this happens once and is not measured.
fn moved(listeners: usize) -> (State, Snapshot) {
    let (mut state, _) = folded(listeners);
    state.fold(&overflowing(listeners, 1), INTERVAL);
    (state, overflowing(listeners, 2))
}

/// Every listener has a queue above its limit and new drops, and the counters were read.
fn overflowing(listeners: usize, times: u32) -> Snapshot {
    let mut moved = dump::listeners(listeners);
    for listener in &mut moved {
        (listener.length, listener.drops) = (listener.limit + 1, 2 * times);
    }
    let mut snapshot = dump::snapshot(&moved);
    snapshot.namespaces[0].netstat = Some(overflows(listeners as u64 * u64::from(times)));
    snapshot
}

fn overflows(value: u64) -> Counters {
    let mut counters = Counters::default();
    counters.set(Counter::ListenOverflows, value);
    counters
}

fn shown(listeners: usize) -> (State, SelfStats, View) {
    let (state, _) = folded(listeners);
    let (own, mut view) = (SelfStats::default(), View::default());
    state.show(&own, &mut view);
    (state, own, view)
}

fn view(listeners: usize) -> View {
    shown(listeners).2
}

#[library_benchmark(setup = recorded)]
#[bench::listeners_100(args = (100), config = gate(DECODE, 100))]
#[bench::listeners_1000(args = (1_000), config = gate(DECODE, 1_000))]
#[bench::listeners_10000(args = (10_000), config = gate(DECODE, 10_000))]
fn decode(
    (datagrams, mut sockets): (Vec<Vec<u8>>, Vec<ListenSocket>),
) -> (Vec<Vec<u8>>, Vec<ListenSocket>) {
    dump::decode(black_box(&datagrams), &mut sockets);
    (datagrams, sockets)
}

#[library_benchmark]
#[bench::rest_100(args = (100), setup = folded, config = gate(FOLD, 100))]
#[bench::rest_1000(args = (1_000), setup = folded, config = gate(FOLD, 1_000))]
#[bench::rest_10000(args = (10_000), setup = folded, config = gate(FOLD, 10_000))]
#[bench::moved_100(args = (100), setup = moved, config = gate(FOLD_MOVED, 100))]
#[bench::moved_1000(args = (1_000), setup = moved, config = gate(FOLD_MOVED, 1_000))]
#[bench::moved_10000(args = (10_000), setup = moved, config = gate(FOLD_MOVED, 10_000))]
fn fold((mut state, snapshot): (State, Snapshot)) -> (State, Snapshot) {
    state.fold(black_box(&snapshot), INTERVAL);
    (state, snapshot)
}

#[library_benchmark(setup = shown)]
#[bench::listeners_100(args = (100), config = gate(PUBLISH, 100))]
#[bench::listeners_1000(args = (1_000), config = gate(PUBLISH, 1_000))]
#[bench::listeners_10000(args = (10_000), config = gate(PUBLISH, 10_000))]
fn publish((state, own, mut view): (State, SelfStats, View)) -> (State, SelfStats, View) {
    state.show(black_box(&own), &mut view);
    (state, own, view)
}

#[library_benchmark(setup = view)]
#[bench::listeners_100(args = (100), config = gate(RENDER, 100))]
#[bench::listeners_1000(args = (1_000), config = gate(RENDER, 1_000))]
#[bench::listeners_10000(args = (10_000), config = gate(RENDER, 10_000))]
fn render(view: View) -> (View, String) {
    let text = exposition::render(black_box(&view), Duration::ZERO).unwrap();
    (view, text)
}

#[library_benchmark(setup = view)]
#[bench::listeners_100(args = (100), config = gate(RENDER_PROTOBUF, 100))]
#[bench::listeners_1000(args = (1_000), config = gate(RENDER_PROTOBUF, 1_000))]
#[bench::listeners_10000(args = (10_000), config = gate(RENDER_PROTOBUF, 10_000))]
fn render_protobuf(view: View) -> (View, Vec<u8>) {
    let bytes = protobuf::render(black_box(&view), Duration::ZERO);
    (view, bytes)
}

library_benchmark_group!(name = tick, benchmarks = [decode, fold, publish]);
library_benchmark_group!(name = scrape, benchmarks = [render, render_protobuf]);
main!(library_benchmark_groups = [tick, scrape]);
