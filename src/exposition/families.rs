//! Converts metrics to metric families of the prometheus crate, whose encoder writes them.

use std::time::Duration;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric as Sample, MetricFamily, MetricType,
};

use crate::self_stats::Durations;
use crate::view::View;

use super::table::{Kind, Metric, Value};

/// The metric with all its samples in `view`, `age` after the creation of the view; `None` without
/// samples.
pub(super) fn of(metric: &Metric, view: &View, age: Duration) -> Option<MetricFamily> {
    let samples = samples(metric, view, age);
    let mut family = MetricFamily::default();
    family.set_name(metric.name.into());
    family.set_help(metric.help.into());
    family.set_field_type(match metric.kind {
        Kind::Gauge => MetricType::GAUGE,
        Kind::Counter => MetricType::COUNTER,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    let is_empty = samples.is_empty();
    family.set_metric(samples);
    (!is_empty).then_some(family)
}

fn samples(metric: &Metric, view: &View, age: Duration) -> Vec<Sample> {
    if let Value::Durations(durations) = metric.value {
        return vec![histogram(durations(&view.stats))];
    }
    let mut samples = Vec::new();
    metric.each(view, age, &mut |subject, more, value| {
        let values = subject.labels().chain(more.iter().copied());
        let pairs = metric.labels.iter().zip(values).map(|(name, value)| pair(name, value));
        samples.push(sample(metric.kind, pairs.collect(), value));
    });
    samples
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.into());
    pair.set_value(value.into());
    pair
}

fn sample(kind: Kind, labels: Vec<LabelPair>, value: f64) -> Sample {
    let mut sample = Sample::from_label(labels);
    if kind == Kind::Counter {
        let mut counter = Counter::default();
        counter.set_value(value);
        sample.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        sample.set_gauge(gauge);
    }
    sample
}

/// The encoder adds the `+Inf` bucket.
fn histogram(durations: &Durations) -> Sample {
    let mut count = 0;
    let buckets = Durations::BOUNDS.iter().zip(durations.counts).map(|(bound, within)| {
        count += within;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(count);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(durations.counts.iter().sum());
    histogram.set_sample_sum(durations.sum);
    let mut sample = Sample::default();
    sample.set_histogram(histogram);
    sample
}
