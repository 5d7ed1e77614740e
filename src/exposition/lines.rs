//! Writes metrics of listeners and namespaces as text lines. The labels of each listener are
//! formatted once for all its series.

use std::fmt::Write;
use std::time::Duration;

use crate::view::View;

use super::per_subject::PerSubject;
use super::table::{Kind, Metric};

/// Bytes reserved per line for the name, the separators and the number, in addition to the labels.
const LINE: usize = 64;
/// Bytes reserved for names and HELP texts of the whole table.
const HEADS: usize = 32 * 1024;
/// The number of series that most listeners have.
const SERIES: usize = 13;
/// The bound below which every integer is exact as a float.
const WHOLE: f64 = (1u64 << 53) as f64;

/// The text so far, and the formatted labels for reuse: each from the opening brace on, without the
/// closing brace.
pub(super) struct Lines {
    text: String,
    labels: PerSubject<String>,
}

// === impl Lines ===

impl Lines {
    /// Starts without a line, with the formatted labels of everything in `view`.
    pub(super) fn new(view: &View) -> Self {
        let labels = PerSubject::new(view, |text: &mut String, names, subject| {
            write_labels(text, '{', names, subject.labels());
        });
        let (listeners, bytes) = labels.of_listeners();
        let room = SERIES * (bytes + LINE * listeners);
        Self { text: String::with_capacity(HEADS + room), labels }
    }

    /// The text so far, for other writers to append to.
    pub(super) fn text(&mut self) -> &mut String {
        &mut self.text
    }

    /// Returns the whole text.
    pub(super) fn finish(self) -> String {
        self.text
    }

    /// Writes every series of `metric` in `view`, `age` after the creation of the view.
    pub(super) fn write(&mut self, metric: &Metric, view: &View, age: Duration) {
        let Self { text, labels } = self;
        let mut is_first = true;
        metric.each(view, age, &mut |subject, more, value| {
            if std::mem::take(&mut is_first) {
                write_head(text, metric);
            }
            let (labels, own) = labels.of(subject);
            text.push_str(metric.name);
            text.push_str(labels.unwrap_or_default());
            if !more.is_empty() {
                write_labels(text, ',', &metric.labels[own..], more.iter().copied());
            }
            text.push_str("} ");
            write_number(text, value);
            text.push('\n');
        });
    }
}

fn write_head(text: &mut String, metric: &Metric) {
    let Metric { name, help, .. } = metric;
    let kind = match metric.kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
        Kind::Histogram => "histogram",
    };
    for part in ["# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind, "\n"] {
        text.push_str(part);
    }
}

fn write_labels<'a>(
    text: &mut String,
    mut separator: char,
    names: &[&str],
    values: impl Iterator<Item = &'a str>,
) {
    for (name, value) in names.iter().zip(values) {
        text.push(std::mem::replace(&mut separator, ','));
        text.push_str(name);
        text.push_str("=\"");
        write_escaped(text, value);
        text.push('"');
    }
}

fn write_escaped(text: &mut String, value: &str) {
    let mut rest = value;
    while let Some(at) = rest.find(['\\', '"', '\n']) {
        let (plain, special) = rest.split_at(at);
        text.push_str(plain);
        text.push_str(match special.as_bytes()[0] {
            b'\\' => "\\\\",
            b'"' => "\\\"",
            _ => "\\n",
        });
        rest = &special[1..];
    }
    text.push_str(rest);
}

/// Writes a value as the shortest text that parses to the same float. This is slow for floats; most
/// values are small integers.
fn write_number(text: &mut String, value: f64) {
    let whole = value as u64;
    // Writing to a string cannot fail.
    let _ = match value {
        _ if value == 0.0 && value.is_sign_positive() => text.write_char('0'),
        _ if whole > 0 && value < WHOLE && whole as f64 == value => write!(text, "{whole}"),
        _ => write!(text, "{value}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: f64) -> String {
        let mut text = String::new();
        write_number(&mut text, value);
        text
    }

    #[test]
    fn a_number_is_written_as_by_the_standard_library() {
        let values = [0.0, -0.0, 1.0, -1.0, 0.1, 129.0, 1.5e9, WHOLE - 1.0, WHOLE, 1e300, 5e-324];
        for value in values.into_iter().chain([f64::INFINITY, f64::NEG_INFINITY, f64::NAN]) {
            assert_eq!(number(value), value.to_string());
        }
    }
}
