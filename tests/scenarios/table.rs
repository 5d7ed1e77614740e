//! The table: the alerts that each scene must cause, the alerts that it may cause, and the
//! comparison with the alerts of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The scene for alerts that belong to no other scene.
pub(crate) const ITSELF: &str = "listenq-itself";
const COMMON: &str = "ListenQueue";

/// The table of expected alerts in the repository.
pub(crate) struct Table {
    pub(crate) rows: BTreeMap<&'static str, Row>,
    /// Alerts that no scene causes.
    pub(crate) promtool_alone: BTreeSet<&'static str>,
}

#[derive(Default)]
pub(crate) struct Row {
    pub(crate) expected: BTreeSet<&'static str>,
    pub(crate) in_passing: BTreeSet<&'static str>,
}

/// The time from the beginning of the trouble to the first notification, by scene and alert.
pub(crate) type Fired = BTreeMap<(String, String), Duration>;

/// The verdict on one alert of one scene.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    scene: String,
    alert: String,
    word: Word,
    after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Expected,
    InPassing,
    Forbidden,
    Missing,
}

// === impl Table ===

impl Table {
    pub(crate) fn read() -> Self {
        let text = include_str!("table.txt");
        let (scenes, alone) = text.split_once("promtool-alone\n").unwrap();
        let lines = |text: &'static str| {
            text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
        };
        let rows = lines(scenes).skip(1).map(|line| {
            let [scene, expected, in_passing] =
                line.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
            (scene, Row { expected: alerts(expected), in_passing: alerts(in_passing) })
        });
        Self { rows: rows.collect(), promtool_alone: lines(alone).collect() }
    }

    /// Every alert that the table names.
    pub(crate) fn alerts(&self) -> BTreeSet<&'static str> {
        let in_rows = self.rows.values().flat_map(|row| row.expected.iter().chain(&row.in_passing));
        in_rows.chain(&self.promtool_alone).copied().collect()
    }

    /// The verdicts on the alerts that came and on those that did not, row by row.
    pub(crate) fn judge(&self, fired: &Fired) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for ((scene, alert), after) in fired {
            let word = self.rows.get(scene.as_str()).map_or(Word::Forbidden, |row| row.word(alert));
            verdicts.push(Verdict {
                scene: scene.clone(),
                alert: alert.clone(),
                word,
                after: Some(*after),
            });
        }
        for (scene, row) in &self.rows {
            let silent = row.expected.iter().filter(|alert| !has(fired, scene, alert));
            verdicts
                .extend(silent.map(|alert| Verdict::without_notice(scene, alert, Word::Missing)));
            if row.expected.is_empty() && !fired.keys().any(|(of, _)| of == scene) {
                verdicts.push(Verdict::without_notice(scene, "none", Word::Expected));
            }
        }
        verdicts.sort_by(|a, b| (&a.scene, a.after).cmp(&(&b.scene, b.after)));
        verdicts
    }

    /// Prints the verdicts, precision and recall.
    pub(crate) fn print(&self, verdicts: &[Verdict]) {
        println!("{:<22} {:<24} {:>6}", "scene", "alert", "after");
        for Verdict { scene, alert, word, after } in verdicts {
            let after = after.map_or("-".into(), |after| format!("{:.0} s", after.as_secs_f64()));
            println!("{scene:<22} {alert:<24} {after:>6}  {}", word.label());
        }
        let count = |wanted| {
            verdicts
                .iter()
                .filter(|verdict| verdict.word == wanted && verdict.alert != "none")
                .count()
        };
        let right = count(Word::Expected);
        println!("precision {}", share(right, right + count(Word::Forbidden)));
        println!("recall    {}", share(right, right + count(Word::Missing)));
        let alone: Vec<_> = self.promtool_alone.iter().copied().collect();
        println!("by promtool alone: {}", alone.join(", "));
    }
}

// === impl Verdict ===

impl Verdict {
    fn without_notice(scene: &str, alert: &str, word: Word) -> Self {
        Self { scene: scene.to_owned(), alert: alert.to_owned(), word, after: None }
    }

    /// A description of what is wrong; `None` if nothing is.
    pub(crate) fn complaint(&self) -> Option<String> {
        matches!(self.word, Word::Forbidden | Word::Missing)
            .then(|| format!("{}: {} {}", self.scene, self.alert, self.word.label()))
    }
}

// === impl Word ===

impl Word {
    fn label(self) -> &'static str {
        match self {
            Self::Expected => "as expected",
            Self::InPassing => "in passing",
            Self::Forbidden => "FORBIDDEN",
            Self::Missing => "MISSING",
        }
    }
}

// === impl Row ===

impl Row {
    fn word(&self, alert: &str) -> Word {
        match (self.expected.contains(alert), self.in_passing.contains(alert)) {
            (true, _) => Word::Expected,
            (_, true) => Word::InPassing,
            _ => Word::Forbidden,
        }
    }
}

/// The name of an alert without the prefix that all alerts have.
pub(crate) fn short(alert: &str) -> &str {
    alert.strip_prefix(COMMON).unwrap_or(alert)
}

fn has(fired: &Fired, scene: &str, alert: &str) -> bool {
    fired.contains_key(&(scene.to_owned(), alert.to_owned()))
}

fn share(part: usize, whole: usize) -> String {
    format!("{part} of {whole} ({:.0} %)", 100.0 * part as f64 / whole.max(1) as f64)
}

fn alerts(cell: &'static str) -> BTreeSet<&'static str> {
    cell.split(',').filter(|name| *name != "-").collect()
}
