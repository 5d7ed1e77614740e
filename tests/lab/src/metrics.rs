//! A scrape: the Prometheus text format 0.0.4, parsed strictly and kept flat.
//!
//! Every sample is a name, labels and a value; `_bucket`, `_sum` and `_count` are ordinary names.
//! Label values are unescaped.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};

/// The labels of one series.
pub type Labels = BTreeMap<String, String>;

/// All samples of one scrape.
#[derive(Debug, Clone)]
pub struct Metrics {
    text: String,
    samples: Vec<Sample>,
}

/// One sample line.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: Labels,
    value: f64,
}

// === impl Metrics ===

impl Metrics {
    /// Parses an exposition.
    ///
    /// # Errors
    ///
    /// When a line is neither a comment nor a sample.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines
            .map(|line| parse_sample(line).with_context(|| format!("reading the sample {line:?}")));
        Ok(Self { text: text.to_owned(), samples: samples.collect::<Result<_>>()? })
    }

    /// The text of the exposition.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// All series with this name.
    #[must_use]
    pub fn series(&self, name: &str) -> Vec<(Labels, f64)> {
        self.matching(name, &[]).map(|sample| (sample.labels.clone(), sample.value)).collect()
    }

    /// The value of the only series of this name with (at least) these labels; `None` if there is
    /// none.
    ///
    /// # Panics
    ///
    /// When several series match: the labels must identify one series.
    #[must_use]
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut matching = self.matching(name, labels);
        let first = matching.next()?;
        let second = matching.next();
        assert!(
            second.is_none(),
            "{name} with {labels:?} is several series: {first:?} and {second:?}"
        );
        Some(first.value)
    }

    /// The sum over all series of this name with (at least) these labels; 0 if there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        // Not `sum()`: the sum of no `f64` is -0.
        self.matching(name, labels).fold(0.0, |sum, sample| sum + sample.value)
    }

    /// The samples of one namespace only.
    #[must_use]
    pub fn of_netns(&self, name: &str) -> Self {
        let mut samples = Vec::new();
        let (mut all, mut text) = (self.samples.iter(), String::new());
        for line in self.text.lines().filter(|line| !line.is_empty()) {
            let keep = line.starts_with('#')
                || all.next().filter(|sample| sample.label("netns") == Some(name)).is_some_and(
                    |sample| {
                        samples.push(sample.clone());
                        true
                    },
                );
            if keep {
                text.extend([line, "\n"]);
            }
        }
        Self { text, samples }
    }

    /// Checks over the raw lines that no label set is exposed twice.
    ///
    /// # Panics
    ///
    /// With the first two lines of the same series.
    #[track_caller]
    pub fn assert_unique(&self) {
        let lines = self.text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut seen = HashMap::new();
        for (sample, line) in self.samples.iter().zip(lines) {
            if let Some(before) = seen.insert((&sample.name, &sample.labels), line) {
                panic!("the same series twice:\n{before}\n{line}");
            }
        }
    }

    fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Sample> {
        let fits =
            move |s: &&Sample| s.name == name && labels.iter().all(|(n, v)| s.label(n) == Some(v));
        self.samples.iter().filter(fits)
    }
}

// === impl Sample ===

impl Sample {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }
}

fn parse_sample(line: &str) -> Result<Sample> {
    let end = line.find(['{', ' ']).context("no value")?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => parse_labels(rest)?,
        None => (Labels::new(), rest),
    };
    let value = rest.split_whitespace().next().context("no value")?;
    Ok(Sample { name: name.to_owned(), labels, value: value.parse()? })
}

/// Parses labels up to and including the closing brace; returns the labels and the rest.
fn parse_labels(mut rest: &str) -> Result<(Labels, &str)> {
    let mut labels = Labels::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, quoted) = rest.split_once("=\"").context("a label without a value")?;
        let (value, after) = parse_quoted(quoted)?;
        let twice = labels.insert(name.to_owned(), value);
        ensure!(twice.is_none(), "the label {name} twice");
        rest = after;
    }
}

/// Unescapes up to the closing quote; returns the value and the rest.
fn parse_quoted(quoted: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &quoted[at + 1..])),
            '\\' => match chars.next().context("an escape without a character")?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            _ => value.push(c),
        }
    }
    anyhow::bail!("a label value without its closing quote")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP q_length Connections that wait.
# TYPE q_length gauge
q_length{netns=\"host\",address=\"@a,b=}\",port=\"\"} 3
q_length{netns=\"host\",address=\"\\\\x80 \\\"x\\\"\\n\",port=\"80\"} 4 1700000000000
up 1
d_bucket{le=\"+Inf\"} 7
x NaN
y +Inf
";

    #[test]
    fn every_kind_of_sample_is_read() {
        let metrics = Metrics::parse(TEXT).unwrap();
        assert_eq!(metrics.value("up", &[]), Some(1.0));
        assert_eq!(metrics.value("q_length", &[("address", "@a,b=}")]), Some(3.0));
        assert_eq!(
            metrics.value("q_length", &[("address", "\\x80 \"x\"\n"), ("port", "80")]),
            Some(4.0)
        );
        assert_eq!(metrics.value("q_length", &[("port", "81")]), None);
        assert_eq!(metrics.sum("q_length", &[("netns", "host")]), 7.0);
        assert_eq!(metrics.sum("nothing", &[]).to_bits(), 0.0_f64.to_bits());
        assert_eq!(metrics.value("d_bucket", &[("le", "+Inf")]), Some(7.0));
        assert_eq!(metrics.series("q_length").len(), 2);
        assert!(
            metrics.value("x", &[]).unwrap().is_nan()
                && metrics.value("y", &[]).unwrap().is_infinite()
        );
        metrics.assert_unique();
    }

    #[test]
    fn a_scrape_can_be_limited_to_one_namespace() {
        let text = "# TYPE a counter\na{netns=\"x\"} 1\na{netns=\"y\"} 2\nb 3\n";
        let metrics = Metrics::parse(text).unwrap().of_netns("y");
        assert_eq!(metrics.text(), "# TYPE a counter\na{netns=\"y\"} 2\n");
        assert_eq!((metrics.value("a", &[]), metrics.value("b", &[])), (Some(2.0), None));
    }

    #[test]
    #[should_panic(expected = "the same series twice")]
    fn a_label_set_in_another_order_is_the_same() {
        Metrics::parse("a{x=\"1\",y=\"2\"} 1\na{y=\"2\",x=\"1\"} 1\n").unwrap().assert_unique();
    }

    #[test]
    fn a_broken_line_is_an_error() {
        for line in ["a", "a{", "a{x} 1", "a{x=\"1} 1", "a b", "a{x=\"1\",x=\"2\"} 1"] {
            assert!(Metrics::parse(line).is_err(), "{line}");
        }
    }
}
