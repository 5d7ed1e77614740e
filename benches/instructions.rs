//! Instruction counts (callgrind) of what listenq does with a dump of 100, 1,000 and 10,000 listeners:
//! the same twice on one toolchain, so each has a limit that fails the run.
//!
//! `cargo bench --bench instructions` needs valgrind and `gungraun-runner` of the version in `Cargo.lock`. It ends
//! with status 3 when a limit is exceeded. Not in it, because they are calls into the kernel: `recv`, and
//! the names of interfaces.
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

// Instructions allowed per listener: a quarter above what rustc 1.95 made of it. Lower them when the code gets better.

/// What does not depend on the number of listeners: one namespace, listenq itself, growth of a buffer.
const FIXED: u64 = 5_000;
/// Took 415: `inet_diag_msg` 125, the attributes up to SKMEMINFO 158, which comes last, framing and the push 100.
const DECODE: u64 = 520;
/// At rest no listener is looked at, however many there are.
const FOLD: u64 = 0;
/// The worst case: every listener is full, overflows and drops twice as much, in one sample. Took 1,766: 730 of it weighs each
/// overflow for the size of the burst (the retransmissions of 16 slots are removed), 520 finds the socket, compares its
/// address and adds it up, 210 weighs drops against noise and room, and the rest is the half minute of history.
const FOLD_MOVED: u64 = 1_900;
/// Took 618 for any number: a view that has these listeners already copies none of them.
const PUBLISH: u64 = 0;
/// Took 6,150: thirteen or fourteen series of four labels each, one of ten: 430 per series, to copy name and labels and to
/// write a number. The series of listenq itself take 132,000 more, which is in it at 100 listeners.
const RENDER: u64 = 7_500;
/// Took 8,200, a third more than text: eight of the thirteen series have a start timestamp of 14 bytes.
const RENDER_PROTOBUF: u64 = 9_000;

/// Past the dumps that may still miss what was there before.
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
    // At rest the kernel sends the same bytes again, and the reader says so.
    snapshot.namespaces[0].tcp.as_mut().unwrap().is_same = true;
    (state, snapshot)
}

/// Every listener goes on overflowing. The first queue of a listener takes memory for its peak: once, and not here.
fn moved(listeners: usize) -> (State, Snapshot) {
    let (mut state, _) = folded(listeners);
    state.fold(&overflowing(listeners, 1), INTERVAL);
    (state, overflowing(listeners, 2))
}

/// A queue over its limit and new drops at every listener, and the counters were read.
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
