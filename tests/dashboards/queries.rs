//! Checks the names in a query: its metrics and labels must be those of listenq or of the shipped
//! recording rules.

use std::collections::BTreeSet;

use listenq::exposition::table::{Kind, METRICS};
use promql_parser::label::Labels;
use promql_parser::parser::{Expr, LabelModifier, VectorMatchCardinality, VectorSelector, parse};
use promql_parser::util::{ExprVisitor, walk_expr};

/// The labels that Prometheus adds to every series that it scrapes. Many configurations add no
/// `cluster`.
const SCRAPED: [&str; 3] = ["job", "instance", "cluster"];
/// The series that Prometheus itself makes, and their labels in addition to the scraped ones.
const FOREIGN: [(&str, &[&str]); 3] = [
    ("up", &[]),
    ("ALERTS", &["alertname", "alertstate", "severity", "service"]),
    ("ALERTS_FOR_STATE", &["alertname", "severity", "service"]),
];
/// Labels that a metric does not have although queries match them: only the value "All" matches it.
const ABSENT: [(&str, &[&str]); 1] = [("listenq_build_info", &["service", "unit"])];
/// The rules that are shipped.
const RULES: [&str; 2] = [
    include_str!("../../deploy/prometheus/alerts.yml"),
    include_str!("../../deploy/prometheus/recording.yml"),
];

/// The metrics of the table of metrics that a query names.
///
/// # Panics
///
/// When the query does not parse, or names a metric or a label that does not exist.
pub(crate) fn metrics_of(place: &str, expr: &str) -> BTreeSet<&'static str> {
    let parsed = parse(expr).unwrap_or_else(|e| panic!("{place}: {e}: {expr}"));
    let mut reader = Reader { place, named: BTreeSet::new() };
    walk_expr(&mut reader, &parsed).unwrap_or_else(|wrong| panic!("{place}: {wrong}: {expr}"));
    reader.named
}

struct Reader<'a> {
    place: &'a str,
    named: BTreeSet<&'static str>,
}

// === impl Reader ===

impl ExprVisitor for Reader<'_> {
    type Error = String;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, String> {
        match expr {
            Expr::VectorSelector(selector) => self.select(selector)?,
            Expr::MatrixSelector(selector) => self.select(&selector.vs)?,
            Expr::Aggregate(aggregate) => check_modifier(aggregate.modifier.as_ref())?,
            Expr::Binary(binary) => {
                if let Some(modifier) = &binary.modifier {
                    check_modifier(modifier.matching.as_ref())?;
                    check_card(&modifier.card)?;
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

impl Reader<'_> {
    fn select(&mut self, selector: &VectorSelector) -> Result<(), String> {
        let name = selector.name.as_deref().ok_or("a selector without a metric")?;
        let labels = self.labels_of(name)?;
        for matcher in &selector.matchers.matchers {
            let label = matcher.name.as_str();
            let is_absent = ABSENT.iter().any(|(m, absent)| *m == name && absent.contains(&label));
            if !SCRAPED.contains(&label) && !labels.contains(&label) && !is_absent {
                return Err(format!("{name} has no label {label}"));
            }
        }
        match selector.matchers.matchers.iter().any(|matcher| matcher.name == "job") {
            true => Ok(()),
            false if self.place.contains("| $job |") => Ok(()),
            false => Err(format!("{name} of every job")),
        }
    }

    fn labels_of(&mut self, name: &str) -> Result<Vec<&'static str>, String> {
        if name.contains(':') {
            return recorded_labels(name);
        }
        if let Some((_, labels)) = FOREIGN.iter().find(|(foreign, _)| *foreign == name) {
            return Ok([labels, &["netns", "protocol", "address", "port"][..]].concat());
        }
        let is_named = |metric: &str, kind| match kind {
            Kind::Histogram => name.strip_suffix("_bucket") == Some(metric),
            Kind::Gauge | Kind::Counter => name == metric,
        };
        let metric = METRICS.iter().find(|metric| is_named(metric.name, metric.kind));
        let metric = metric.ok_or_else(|| format!("there is no metric {name}"))?;
        self.named.insert(metric.name);
        Ok(metric.labels.to_vec())
    }
}

/// The labels of a recorded series: those labels of its metric that its aggregation level keeps.
fn recorded_labels(name: &str) -> Result<Vec<&'static str>, String> {
    let record = format!("- record: {name}\n");
    if !RULES.iter().any(|rules| rules.contains(&record)) {
        return Err(format!("no rule records {name}"));
    }
    let [level, metric, _] = name.split(':').collect::<Vec<_>>()[..] else {
        return Err(format!("{name} is not level:metric:operations"));
    };
    let is_of = |found: &str| found.strip_suffix("_total").unwrap_or(found) == metric;
    let metric = METRICS.iter().find(|found| found.name == metric || is_of(found.name));
    let metric = metric.ok_or_else(|| format!("{name} is of no metric"))?;
    match level {
        "listener" => Ok(metric.labels.to_vec()),
        "netns" => Ok(vec!["netns"]),
        "instance" => Ok(Vec::new()),
        _ => Err(format!("{name} has another level")),
    }
}

fn check_modifier(modifier: Option<&LabelModifier>) -> Result<(), String> {
    modifier.map_or(Ok(()), |modifier| check_labels(modifier.labels()))
}

fn check_card(card: &VectorMatchCardinality) -> Result<(), String> {
    card.labels().map_or(Ok(()), check_labels)
}

/// Checks that every label is a label of some metric.
fn check_labels(labels: &Labels) -> Result<(), String> {
    let ours = METRICS.iter().flat_map(|metric| metric.labels).copied();
    let foreign = FOREIGN.iter().flat_map(|(_, labels)| *labels).copied();
    let known: BTreeSet<&str> = ours.chain(foreign).chain(SCRAPED).chain(["le"]).collect();
    match labels.labels.iter().find(|label| !known.contains(label.as_str())) {
        Some(label) => Err(format!("no metric has a label {label}")),
        None => Ok(()),
    }
}
