//! A view in the Prometheus text format 0.0.4. Metric families are made anew from the view each time, so that
//! a series whose value is not known, or whose listener is gone, is simply not there.

pub mod table;

use std::time::Duration;

use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric as Sample, MetricFamily, MetricType,
};

use crate::own::Durations;
use crate::view::View;

use table::{Kind, METRICS, Metric, Value};

/// The Content-Type of what [`render`] gives.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The one collector: every metric of the table, out of one view.
pub struct Collector<'a> {
    view: &'a View,
    age: Duration,
}

/// Writes down `view`, `age` after it was made.
pub fn render(view: &View, age: Duration) -> Result<String, prometheus::Error> {
    TextEncoder::new().encode_to_string(&Collector::new(view, age).collect())
}

// === impl Collector ===

impl<'a> Collector<'a> {
    /// A collector of `view`, `age` after it was made.
    pub fn new(view: &'a View, age: Duration) -> Self {
        Self { view, age }
    }

    /// The families that have a sample: the encoder refuses empty ones.
    pub fn collect(&self) -> Vec<MetricFamily> {
        let families = METRICS.iter().map(|metric| self.family(metric));
        families.filter(|family| !family.get_metric().is_empty()).collect()
    }

    fn family(&self, metric: &Metric) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(metric.name.into());
        family.set_help(metric.help.into());
        family.set_field_type(match metric.kind {
            Kind::Gauge => MetricType::GAUGE,
            Kind::Counter => MetricType::COUNTER,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        family.set_metric(self.samples(metric));
        family
    }

    fn samples(&self, metric: &Metric) -> Vec<Sample> {
        if let Value::Durations(durations) = metric.value {
            return vec![histogram(durations(&self.view.own))];
        }
        let mut samples = Vec::new();
        metric.each(self.view, self.age, &mut |labels, value| {
            let pairs = metric.labels.iter().zip(labels).map(|(name, value)| pair(name, value));
            samples.push(sample(metric.kind, pairs.collect(), value));
        });
        samples
    }
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

/// The encoder adds the bucket of everything.
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
