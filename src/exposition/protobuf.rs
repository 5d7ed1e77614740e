//! Renders a view in the Prometheus protobuf format, the `io.prometheus.client.MetricFamily`
//! messages of `metrics.proto`, each after its length.
//!
//! The format has two features that the text format lacks. First, a counter that listenq starts at
//! 0 has a start timestamp, so that Prometheus does not lose the increase before the first scrape.
//! A counter of the kernel started before listenq and has no start timestamp: a later timestamp
//! would look like a burst at each restart of listenq. Second, a native histogram shows the sampled
//! lengths of each queue.
//!
//! The prometheus crate cannot write start timestamps and native histograms.

use std::time::Duration;

use crate::self_stats::Durations;
use crate::view::{ListenerView, NetnsView, Protocol, SampledLengths, View};

use super::per_subject::PerSubject;
use super::table::{self, Kind, LISTENER, METRICS, Metric, Subject, Value};

/// The Content-Type of the output of [`render`].
pub const CONTENT_TYPE: &str = "application/vnd.google.protobuf; \
                                proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// The native histogram, which the text format cannot show.
pub const LENGTHS: Metric = Metric {
    name: "listenq_accept_queue_sampled_length",
    kind: Kind::Histogram,
    help: "Accept queue lengths as sampled, as a native histogram; only for listeners that held a queue since they were \
           opened, and only in the protobuf format.",
    labels: LISTENER,
    value: Value::Queue(|_| None),
};

/// The number of bytes of a value.
const DOUBLE: usize = 8;
/// The number of series of a listener with a diagnosis.
const FAMILIES: usize = 24;
/// The bytes of the length of a family. The length is written as a padded varint, so that its place
/// can be reserved before the length is known. Five bytes are enough for 32 GiB.
const LENGTH: usize = 5;

/// Field numbers of `metrics.proto`.
mod field {
    pub(super) mod family {
        pub(in super::super) const NAME: u32 = 1;
        pub(in super::super) const HELP: u32 = 2;
        pub(in super::super) const TYPE: u32 = 3;
        pub(in super::super) const METRIC: u32 = 4;
    }
    pub(super) mod metric {
        pub(in super::super) const LABEL: u32 = 1;
        pub(in super::super) const GAUGE: u32 = 2;
        pub(in super::super) const COUNTER: u32 = 3;
        pub(in super::super) const HISTOGRAM: u32 = 7;
    }
    pub(super) mod label {
        pub(in super::super) const NAME: u32 = 1;
        pub(in super::super) const VALUE: u32 = 2;
    }
    pub(super) mod value {
        /// Of a `Counter` and of a `Gauge`.
        pub(in super::super) const VALUE: u32 = 1;
        /// Of a `Counter`.
        pub(in super::super) const START: u32 = 3;
    }
    pub(super) mod histogram {
        pub(in super::super) const COUNT: u32 = 1;
        pub(in super::super) const SUM: u32 = 2;
        pub(in super::super) const BUCKET: u32 = 3;
        pub(in super::super) const SCHEMA: u32 = 5;
        pub(in super::super) const ZERO_THRESHOLD: u32 = 6;
        pub(in super::super) const ZERO_COUNT: u32 = 7;
        pub(in super::super) const SPAN: u32 = 12;
        pub(in super::super) const DELTA: u32 = 13;
        pub(in super::super) const START: u32 = 15;
    }
    pub(super) mod bucket {
        pub(in super::super) const COUNT: u32 = 1;
        pub(in super::super) const BOUND: u32 = 2;
    }
    pub(super) mod span {
        pub(in super::super) const OFFSET: u32 = 1;
        pub(in super::super) const LENGTH: u32 = 2;
    }
    pub(super) mod timestamp {
        pub(in super::super) const SECONDS: u32 = 1;
        pub(in super::super) const NANOS: u32 = 2;
    }
}

/// Renders `view`, `age` after the creation of the view.
pub fn render(view: &View, age: Duration) -> Vec<u8> {
    let mut families = Families::new(view);
    for metric in METRICS {
        match metric.value {
            Value::Durations(durations) => families.durations(metric, durations(&view.stats), view),
            _ => families.write(metric, view, age),
        }
    }
    families.lengths(view, age);
    families.out
}

/// The output so far, and what is encoded once for reuse.
struct Families {
    out: Vec<u8>,
    labels: PerSubject<Vec<u8>>,
    /// The bytes of each series before its value: of gauges, and of counters that listenq starts at
    /// zero.
    gauges: PerSubject<Vec<u8>>,
    counters: PerSubject<Vec<u8>>,
}

/// A `google.protobuf.Timestamp`, truncated to milliseconds as in Prometheus.
#[derive(Clone, Copy)]
struct Timestamp {
    seconds: u64,
    nanos: u64,
}

/// The places in the output of a family that is being written.
struct Family {
    /// The place of its length.
    start: usize,
    /// The place of its first metric.
    metrics: usize,
}

// === impl Families ===

impl Families {
    fn new(view: &View) -> Self {
        let labels = PerSubject::new(view, |bytes: &mut Vec<u8>, names, subject| {
            write_labels(bytes, names, subject.labels());
        });
        let heads = |kind| {
            PerSubject::new(view, |bytes: &mut Vec<u8>, _, subject| {
                let start = if kind == Kind::Counter { start_of(subject, view) } else { None };
                write_head(bytes, [labels.of(subject).0.unwrap_or_default(), &[]], kind, start);
            })
        };
        let (gauges, counters) = (heads(Kind::Gauge), heads(Kind::Counter));
        let (listeners, bytes) = counters.of_listeners();
        let out = Vec::with_capacity(FAMILIES * (bytes + DOUBLE * listeners));
        Self { out, labels, gauges, counters }
    }

    /// Writes every series of `metric`.
    fn write(&mut self, metric: &Metric, view: &View, age: Duration) {
        let family = self.begin(metric);
        let Self { out, labels, gauges, counters } = self;
        // The kernel's own counters started before listenq.
        let has_start = metric.kind == Kind::Counter && !matches!(metric.value, Value::Counter(_));
        let heads = match metric.kind {
            Kind::Gauge => Some(&*gauges),
            _ => has_start.then_some(&*counters),
        };
        let mut more_labels = Vec::new();
        metric.each(view, age, &mut |subject, more, value| {
            match heads.and_then(|heads| heads.of(subject).0) {
                Some(head) if more.is_empty() => out.extend_from_slice(head),
                _ => {
                    let (labels, own) = labels.of(subject);
                    more_labels.clear();
                    write_labels(&mut more_labels, &metric.labels[own..], more.iter().copied());
                    let labels = [labels.unwrap_or_default(), &more_labels];
                    let start = if has_start { start_of(subject, view) } else { None };
                    write_head(out, labels, metric.kind, start);
                }
            }
            out.extend_from_slice(&value.to_le_bytes());
        });
        self.end(family);
    }

    /// Writes a histogram of listenq itself, with buckets as in the text format.
    fn durations(&mut self, metric: &Metric, durations: &Durations, view: &View) {
        let mut histogram = Vec::new();
        write_varint(&mut histogram, field::histogram::COUNT, durations.counts.iter().sum());
        write_double(&mut histogram, field::histogram::SUM, durations.sum);
        let mut count = 0;
        for (bound, within) in Durations::BOUNDS.iter().zip(durations.counts) {
            count += within;
            let mut bucket = Vec::new();
            write_varint(&mut bucket, field::bucket::COUNT, count);
            write_double(&mut bucket, field::bucket::BOUND, *bound);
            write_bytes(&mut histogram, field::histogram::BUCKET, &bucket);
        }
        write_start(&mut histogram, field::histogram::START, process_start(view));
        let family = self.begin(metric);
        self.histogram(Subject::SelfStats, &histogram);
        self.end(family);
    }

    /// Writes the native histogram of each listener that has one.
    fn lengths(&mut self, view: &View, age: Duration) {
        let family = self.begin(&LENGTHS);
        for (subject, listener) in table::listeners(view, Some(age)) {
            let Subject::Listener(_, netns, _) = subject else { continue };
            if let Some(lengths) = &listener.lengths {
                self.histogram(subject, &native(lengths, samples(netns, listener)));
            }
        }
        self.end(family);
    }

    fn histogram(&mut self, subject: Subject<'_>, histogram: &[u8]) {
        let labels = self.labels.of(subject).0.unwrap_or_default();
        let len = labels.len() + message_len(histogram.len());
        begin_message(&mut self.out, field::family::METRIC, len);
        self.out.extend_from_slice(labels);
        write_bytes(&mut self.out, field::metric::HISTOGRAM, histogram);
    }

    /// Begins a family: everything but its metrics.
    fn begin(&mut self, metric: &Metric) -> Family {
        let kind = match metric.kind {
            Kind::Counter => 0,
            Kind::Gauge => 1,
            Kind::Histogram => 4,
        };
        let start = self.out.len();
        self.out.extend_from_slice(&[0; LENGTH]);
        write_bytes(&mut self.out, field::family::NAME, metric.name.as_bytes());
        write_bytes(&mut self.out, field::family::HELP, metric.help.as_bytes());
        write_varint(&mut self.out, field::family::TYPE, kind);
        Family { start, metrics: self.out.len() }
    }

    /// Ends a family, and removes it if it has no metrics.
    fn end(&mut self, family: Family) {
        let Family { start, metrics } = family;
        if self.out.len() == metrics {
            self.out.truncate(start);
            return;
        }
        let len = self.out.len() - start - LENGTH;
        for (place, byte) in self.out[start..start + LENGTH].iter_mut().enumerate() {
            let more = if place + 1 < LENGTH { 0x80 } else { 0 };
            *byte = (len >> (7 * place)) as u8 & 0x7f | more;
        }
    }
}

// === impl Timestamp ===

impl Timestamp {
    fn new(unix_time: f64) -> Self {
        let millis = (unix_time.max(0.0) * 1_000.0) as u64;
        Self { seconds: millis / 1_000, nanos: millis % 1_000 * 1_000_000 }
    }

    /// The number of bytes of the message: two keys and two numbers.
    fn len(self) -> usize {
        2 + varint_len(self.seconds) + varint_len(self.nanos)
    }
}

/// The time at which listenq started to count for this subject.
fn start_of(subject: Subject<'_>, view: &View) -> Option<Timestamp> {
    match subject {
        Subject::SelfStats => process_start(view),
        Subject::Netns(_, netns) => Some(Timestamp::new(netns.started_unix_time)),
        Subject::Listener(.., listener) => Some(Timestamp::new(listener.started_unix_time)),
    }
}

/// The time at which the counters of listenq itself started.
fn process_start(view: &View) -> Option<Timestamp> {
    view.stats.process.as_ref()?.start_time_seconds.map(Timestamp::new)
}

/// The number of samples that may have shown the listener.
fn samples(netns: &NetnsView, listener: &ListenerView) -> u64 {
    match listener.name.protocol {
        Protocol::Tcp => netns.tcp_samples,
        Protocol::Unix => netns.unix_samples,
    }
}

/// A `Histogram` message with native buckets.
fn native(lengths: &SampledLengths, samples: u64) -> Vec<u8> {
    let mut histogram = Vec::new();
    let empty = lengths.empty(samples);
    write_varint(&mut histogram, field::histogram::COUNT, lengths.count + empty);
    write_double(&mut histogram, field::histogram::SUM, lengths.sum as f64);
    write_varint(&mut histogram, field::histogram::SCHEMA, zigzag(SampledLengths::SCHEMA.into()));
    // Lengths are whole numbers: only an empty queue is below 1/2.
    write_double(&mut histogram, field::histogram::ZERO_THRESHOLD, 0.5);
    write_varint(&mut histogram, field::histogram::ZERO_COUNT, empty);
    let mut next = 0;
    for run in lengths.buckets.chunk_by(|(one, _), (next, _)| one + 1 == *next) {
        let first = i64::from(run[0].0);
        let mut span = Vec::new();
        write_varint(&mut span, field::span::OFFSET, zigzag(first - next));
        write_varint(&mut span, field::span::LENGTH, run.len() as u64);
        write_bytes(&mut histogram, field::histogram::SPAN, &span);
        next = first + run.len() as i64;
    }
    let mut before = 0;
    for (_, count) in &lengths.buckets {
        let count = count.cast_signed();
        write_varint(&mut histogram, field::histogram::DELTA, zigzag(count - before));
        before = count;
    }
    let start = Timestamp::new(lengths.started_unix_time);
    write_start(&mut histogram, field::histogram::START, Some(start));
    histogram
}

/// Writes a series without its value, which follows the other bytes.
fn write_head(bytes: &mut Vec<u8>, labels: [&[u8]; 2], kind: Kind, start: Option<Timestamp>) {
    let start_len = start.map_or(0, |start| message_len(start.len()));
    let value_len = start_len + 1 + DOUBLE;
    let [labels, more_labels] = labels;
    let len = labels.len() + more_labels.len() + message_len(value_len);
    begin_message(bytes, field::family::METRIC, len);
    bytes.extend_from_slice(labels);
    bytes.extend_from_slice(more_labels);
    let is_counter = kind == Kind::Counter;
    let kind = if is_counter { field::metric::COUNTER } else { field::metric::GAUGE };
    begin_message(bytes, kind, value_len);
    write_start(bytes, field::value::START, start);
    bytes.push(key(field::value::VALUE, WireType::SixtyFourBit));
}

fn write_start(bytes: &mut Vec<u8>, field: u32, start: Option<Timestamp>) {
    if let Some(start) = start {
        begin_message(bytes, field, start.len());
        write_varint(bytes, field::timestamp::SECONDS, start.seconds);
        write_varint(bytes, field::timestamp::NANOS, start.nanos);
    }
}

fn write_labels<'a>(bytes: &mut Vec<u8>, names: &[&str], values: impl Iterator<Item = &'a str>) {
    for (name, value) in names.iter().zip(values) {
        begin_message(
            bytes,
            field::metric::LABEL,
            message_len(name.len()) + message_len(value.len()),
        );
        write_bytes(bytes, field::label::NAME, name.as_bytes());
        write_bytes(bytes, field::label::VALUE, value.as_bytes());
    }
}

/// The bytes of a field with `len` bytes of content, as all its field numbers are below 16.
fn message_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

#[inline]
fn begin_message(bytes: &mut Vec<u8>, field: u32, len: usize) {
    let key = key(field, WireType::LengthDelimited);
    match u8::try_from(len) {
        // Most messages are short: their length is one byte.
        Ok(len @ ..0x80) => bytes.extend_from_slice(&[key, len]),
        _ => {
            bytes.push(key);
            push_varint(bytes, len as u64);
        }
    }
}

fn write_bytes(bytes: &mut Vec<u8>, field: u32, content: &[u8]) {
    begin_message(bytes, field, content.len());
    bytes.extend_from_slice(content);
}

fn write_varint(bytes: &mut Vec<u8>, field: u32, value: u64) {
    bytes.push(key(field, WireType::Varint));
    push_varint(bytes, value);
}

fn write_double(bytes: &mut Vec<u8>, field: u32, value: f64) {
    bytes.push(key(field, WireType::SixtyFourBit));
    bytes.extend_from_slice(&value.to_le_bytes());
}

/// The encoding of a field.
#[derive(Clone, Copy)]
enum WireType {
    Varint = 0,
    SixtyFourBit = 1,
    LengthDelimited = 2,
}

/// All field numbers are below 16, so a key is one byte.
fn key(field: u32, kind: WireType) -> u8 {
    (field << 3) as u8 | kind as u8
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// The encoding of a signed number as a varint (`sint32`, `sint64`).
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message;

    use super::super::{families, tests::view};
    use super::*;

    // The messages of `metrics.proto`, as far as listenq writes them.

    #[derive(Clone, PartialEq, Message)]
    struct MetricFamily {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        help: String,
        #[prost(int32, tag = "3")]
        kind: i32,
        #[prost(message, repeated, tag = "4")]
        metrics: Vec<Sample>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Sample {
        #[prost(message, repeated, tag = "1")]
        labels: Vec<Label>,
        #[prost(message, optional, tag = "2")]
        gauge: Option<Number>,
        #[prost(message, optional, tag = "3")]
        counter: Option<Number>,
        #[prost(message, optional, tag = "7")]
        histogram: Option<Histogram>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Label {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        value: String,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Number {
        #[prost(double, tag = "1")]
        value: f64,
        #[prost(message, optional, tag = "3")]
        start: Option<Time>,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    struct Time {
        #[prost(int64, tag = "1")]
        seconds: i64,
        #[prost(int32, tag = "2")]
        nanos: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Histogram {
        #[prost(uint64, tag = "1")]
        count: u64,
        #[prost(double, tag = "2")]
        sum: f64,
        #[prost(message, repeated, tag = "3")]
        buckets: Vec<Bucket>,
        #[prost(sint32, tag = "5")]
        schema: i32,
        #[prost(double, tag = "6")]
        zero_threshold: f64,
        #[prost(uint64, tag = "7")]
        zero_count: u64,
        #[prost(message, repeated, tag = "12")]
        spans: Vec<Span>,
        #[prost(sint64, repeated, packed = "false", tag = "13")]
        deltas: Vec<i64>,
        #[prost(message, optional, tag = "15")]
        start: Option<Time>,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    struct Bucket {
        #[prost(uint64, tag = "1")]
        count: u64,
        #[prost(double, tag = "2")]
        bound: f64,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    struct Span {
        #[prost(sint32, tag = "1")]
        offset: i32,
        #[prost(uint32, tag = "2")]
        length: u32,
    }

    fn decoded(view: &View) -> Vec<MetricFamily> {
        let bytes = render(view, Duration::ZERO);
        let mut rest = &bytes[..];
        let mut families = Vec::new();
        while !rest.is_empty() {
            families.push(MetricFamily::decode_length_delimited(&mut rest).unwrap());
        }
        families
    }

    fn family(view: &View, name: &str) -> MetricFamily {
        decoded(view).into_iter().find(|family| family.name == name).unwrap()
    }

    /// The labels of a series, and the kind and number of its value.
    type Row = (Vec<(String, String)>, char, f64);

    fn series(family: &MetricFamily) -> Vec<Row> {
        let of = |sample: &Sample| {
            let labels = sample.labels.iter().cloned();
            let labels = labels.map(|Label { name, value }| (name, value)).collect();
            let (kind, value) = match (&sample.gauge, &sample.counter, &sample.histogram) {
                (Some(gauge), None, None) => ('g', gauge.value),
                (None, Some(counter), None) => ('c', counter.value),
                (None, None, Some(histogram)) => ('h', histogram.sum),
                other => panic!("{other:?}"),
            };
            (labels, kind, value)
        };
        family.metrics.iter().map(of).collect()
    }

    #[test]
    fn every_series_equals_the_series_of_the_text_format() {
        let view = view();
        let found = decoded(&view);
        let expected: Vec<_> = METRICS
            .iter()
            .filter_map(|metric| families::of(metric, &view, Duration::ZERO))
            .collect();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((&*found.name, &*found.help), (expected.name(), expected.help()));
            let rows = expected.get_metric().iter().map(|sample| {
                let pairs = sample.get_label().iter();
                let labels = pairs.map(|pair| (pair.name().into(), pair.value().into())).collect();
                let (kind, value) = match found.kind {
                    0 => ('c', sample.get_counter().get_value()),
                    1 => ('g', sample.get_gauge().get_value()),
                    _ => ('h', sample.get_histogram().get_sample_sum()),
                };
                (labels, kind, value)
            });
            assert_eq!(series(found), rows.collect::<Vec<Row>>(), "{}", found.name);
        }
    }

    #[test]
    fn counters_that_listenq_starts_have_a_start_and_those_of_the_kernel_have_none() {
        let starts = |name: &str| -> Vec<_> {
            let metrics = family(&view(), name).metrics;
            metrics.into_iter().map(|sample| sample.counter.unwrap().start).collect()
        };
        let start = Some(Time { seconds: 1_750_000_000, nanos: 250_000_000 });
        assert_eq!(starts("listenq_listener_drops_total")[0], start);
        assert_eq!(starts("listenq_netns_listen_overflows_total"), [None]);
        assert!(starts("listenq_netns_unattributed_overflows_total")[0].is_some());
    }

    #[test]
    fn a_queue_has_a_native_histogram_of_its_sampled_lengths() {
        let mut lengths = SampledLengths::new(10, 1_750_000_000.5);
        [1, 1, 2, 128, 129].iter().for_each(|length| lengths.record(*length));
        let mut view = view();
        view.namespaces[0].unix_samples = 100;
        view.namespaces[0].unix_sampled_at = view.namespaces[0].tcp_sampled_at;
        view.namespaces[0].listeners[0].lengths = Some(Arc::new(lengths));
        let [sample] = &family(&view, LENGTHS.name).metrics[..] else { panic!() };
        assert_eq!(sample.labels.len(), LISTENER.len());
        let spans = [(0, 1), (3, 1), (23, 2)].map(|(offset, length)| Span { offset, length });
        let expected = Histogram {
            count: 90,
            sum: 261.0,
            buckets: vec![],
            schema: 2,
            zero_threshold: 0.5,
            zero_count: 85,
            spans: spans.to_vec(),
            deltas: vec![2, -1, 0, 0],
            start: Some(Time { seconds: 1_750_000_000, nanos: 500_000_000 }),
        };
        assert_eq!(sample.histogram, Some(expected));
    }
}
