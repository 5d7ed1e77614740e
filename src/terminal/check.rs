//! `listenq check`: a plugin for Nagios-compatible monitors. It prints one line per listener in
//! trouble and ends with an exit code.

use std::cmp::Reverse;
use std::fmt;
use std::io::{self, Write};

use crate::diagnosis::Diagnosis;
use crate::report::words::many;
use crate::report::{DIAGNOSIS_TAKES, Diagnosed, Listener, Report, evidence, recovery};
use crate::terminal::owner;
use crate::terminal::source::Known;

/// The maximum number of lines: people do not read longer notifications.
const MOST_LINES: usize = 20;

/// The severity; the discriminant is the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No listener is in trouble.
    Ok = 0,
    /// An operator should look at the listener.
    Warning = 1,
    /// Clients are refused, or no client is served.
    Critical = 2,
    /// The state could not be determined.
    Unknown = 3,
}

/// A listener in trouble; diagnoses that are only informational do not count.
struct Trouble<'a> {
    level: Level,
    listener: &'a Listener,
    /// The worst diagnosis, whose evidence is shown.
    worst: &'a Diagnosed,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        })
    }
}

/// Writes the listeners in trouble, the worst first, and returns the severity.
pub fn write(known: &Known, out: &mut impl Write) -> io::Result<Level> {
    let Known { report, origin, .. } = known;
    if let Some(why) = known.nothing() {
        write_unknown(&format!("{why} ({origin})"), out)?;
        return Ok(Level::Unknown);
    }
    let all = many(report.listeners.len() as u64, "listener");
    let troubles = troubles(report);
    let level = troubles.first().map_or_else(|| level_of_calm(known), |worst| worst.level);
    let summary = match troubles.first() {
        Some(worst) => format!("{worst}; {} of {all} in trouble", troubles.len()),
        None => format!("{all}, none in trouble"),
    };
    let summary = without_pipe(&format!("{summary}{} ({origin})", unclear(report)));
    let summary = match known.blindness() {
        Some(blindness) => format!("{summary}; {blindness}"),
        None => summary,
    };
    writeln!(out, "LISTENQ {level} - {summary} | {}", performance(known, troubles.len()))?;
    let rest = troubles.iter().skip(1);
    for trouble in rest.clone().take(MOST_LINES) {
        writeln!(out, "{}: {}", trouble.level, without_pipe(&trouble.to_string()))?;
    }
    match rest.len() {
        0..=MOST_LINES => {}
        rest => writeln!(out, "and {} more: listenq list", rest - MOST_LINES)?,
    }
    Ok(level)
}

/// Writes why the state is unknown.
pub fn write_unknown(why: &str, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "LISTENQ {} - {}", Level::Unknown, without_pipe(why))
}

/// The level without any diagnosis. Without limits no trouble is visible, and a full queue that was
/// sampled too briefly is not known to be fine.
fn level_of_calm(known: &Known) -> Level {
    if known.is_blind() {
        return Level::Unknown;
    }
    let is_short = known.sampled_for.is_some_and(|time| time.as_secs() < DIAGNOSIS_TAKES);
    match is_short && known.report.listeners.iter().any(Listener::is_full) {
        true => Level::Unknown,
        false => Level::Ok,
    }
}

/// The first listener that shows trouble and is not watched long enough for a diagnosis.
fn unclear(report: &Report) -> String {
    let unclear = report.listeners.iter().find_map(|l| Some((l, l.watched_too_briefly()?)));
    let Some((listener, watched)) = unclear else { return String::new() };
    let (name, waiting) = (listener.named(), evidence::waiting(listener));
    format!("; {name}: {waiting} (watched for only {watched} s)")
}

fn troubles(report: &Report) -> Vec<Trouble<'_>> {
    let mut troubles: Vec<Trouble<'_>> = report.listeners.iter().filter_map(Trouble::of).collect();
    // The sort is stable: equal levels keep the order of the report, by precedence.
    troubles.sort_by_key(|trouble| Reverse(trouble.level));
    troubles
}

fn performance(known: &Known, unhealthy: usize) -> String {
    let listeners = &known.report.listeners;
    let all = listeners.len();
    let numbers = format!("listeners={all};;;0 unhealthy={unhealthy};;;0;{all}");
    // If listenq cannot see the listeners there is no number, and not 0.
    if known.is_blind() {
        return numbers;
    }
    let overflows: u64 = listeners.iter().filter_map(|listener| listener.overflows).sum();
    format!("{numbers} overflows={overflows}c;;;0")
}

/// Replaces `|`: Nagios parses the text after a pipe as performance data.
fn without_pipe(text: &str) -> String {
    text.replace('|', "\\x7C")
}

// === impl Trouble ===

impl<'a> Trouble<'a> {
    fn of(listener: &'a Listener) -> Option<Self> {
        let held = listener.diagnoses.iter().filter(|held| !held.diagnosis.is_information());
        let levels = held.map(|held| (level(listener, held.diagnosis), held));
        // Of several diagnoses with the same level, the first is shown.
        let (level, worst) = levels.min_by_key(|(level, _)| Reverse(*level))?;
        Some(Self { level, listener, worst })
    }
}

impl fmt::Display for Trouble<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listener, worst: Diagnosed { evidence, .. }, .. } = self;
        write!(f, "{} at {}", listener.words(", "), listener.named())?;
        f.write_str(&listener.because())?;
        if let Some(owner) = owner(&listener.owner) {
            write!(f, ", {owner}")?;
        }
        write!(f, ": {}", evidence.trim_end_matches('.'))
    }
}

/// The level of a diagnosis: critical if clients are refused and the trouble continues.
fn level(listener: &Listener, diagnosis: Diagnosis) -> Level {
    match diagnosis {
        _ if recovery::is_over(listener, diagnosis) => Level::Warning,
        Diagnosis::Stalled => Level::Critical,
        Diagnosis::SlowAccept if turns_away(listener) => Level::Critical,
        _ => Level::Warning,
    }
}

/// Whether the listener refuses clients. A Unix socket has no overflow counter: a full queue
/// counts.
fn turns_away(listener: &Listener) -> bool {
    match listener.overflows {
        Some(_) => listener.recent.is_some_and(|recent| recent.overflows > 0),
        None => listener.is_full(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::{MissingFeature, Recent};
    use crate::snapshot::owner::Owner;
    use crate::view::Protocol;

    fn listener(port: &str, diagnoses: &[Diagnosis], overflows: u64) -> Listener {
        let mut listener = Listener {
            netns: "host".into(),
            protocol: Protocol::Tcp,
            address: "::".into(),
            port: port.into(),
            owner: Owner { process: "a|b".into(), ..Owner::default() },
            length: 9,
            limit: Some(8),
            fullest_ratio: Some(1.0),
            overflows: Some(overflows),
            recent: Some(Recent {
                overflows,
                watched_seconds: 30.0,
                sockets_brimming: 1,
                ..Recent::default()
            }),
            ..Listener::default()
        };
        listener.diagnoses =
            diagnoses.iter().map(|diagnosis| Diagnosed::new(&listener, *diagnosis, 60.0)).collect();
        listener
    }

    fn written(listeners: Vec<Listener>) -> (Level, String) {
        written_after(listeners, None)
    }

    fn written_after(listeners: Vec<Listener>, sampled_for: Option<Duration>) -> (Level, String) {
        let report = Report { listeners, ..Report::default() };
        let origin = "took one sample".into();
        let known = Known { report, origin, sampled_for, ..Known::default() };
        let mut out = Vec::new();
        let level = write(&known, &mut out).unwrap();
        (level, String::from_utf8(out).unwrap())
    }

    #[test]
    fn without_trouble_the_output_is_one_line() {
        let calm = vec![listener("80", &[], 0), listener("81", &[], 3)];
        let line = "LISTENQ OK - 2 listeners, none in trouble (took one sample) | listeners=2;;;0 \
                    unhealthy=0;;;0;2 overflows=3c;;;0\n";
        assert_eq!(written(calm), (Level::Ok, line.into()));
    }

    #[test]
    fn the_worst_is_the_summary_and_the_rest_follows() {
        let listeners = vec![
            listener("80", &[Diagnosis::Imbalance], 5),
            listener("81", &[Diagnosis::Abandoned, Diagnosis::SlowAccept], 41),
            listener("82", &[], 0),
        ];
        let expected = "\
LISTENQ CRITICAL - abandoned, slow_accept at host/tcp/[::]:81, a\\x7Cb: Full for 0 s of the last 30 s, 41 refusals; \
queue full: 9 of 8; 2 of 3 listeners in trouble (took one sample) | listeners=3;;;0 unhealthy=2;;;0;3 overflows=46c;;;0
WARNING: imbalance at host/tcp/[::]:80, a\\x7Cb: 1 of 0 sockets is full, 0 are less than half full; \
queue full: 9 of 8
";
        assert_eq!(written(listeners), (Level::Critical, expected.into()));
    }

    #[test]
    fn trouble_that_refuses_clients_is_critical() {
        let level = |diagnosis, overflows| written(vec![listener("80", &[diagnosis], overflows)]).0;
        assert_eq!(level(Diagnosis::Stalled, 0), Level::Critical);
        assert_eq!(level(Diagnosis::SlowAccept, 1), Level::Critical);
        assert_eq!(level(Diagnosis::SlowAccept, 0), Level::Warning);
        assert_eq!(level(Diagnosis::ShortQueue, 9), Level::Warning);
        let unix = Listener { overflows: None, ..listener("", &[Diagnosis::SlowAccept], 0) };
        assert_eq!(written(vec![unix]).0, Level::Critical);
    }

    #[test]
    fn trouble_that_is_over_is_a_warning() {
        let mut over = Listener { length: 0, ..listener("80", &[], 41) };
        over.diagnoses = vec![Diagnosed::new(&over, Diagnosis::Stalled, 14.0)];
        let (level, text) = written(vec![over]);
        assert_eq!(level, Level::Warning);
        assert!(text.contains("stalled at host/tcp/[::]:80, a\\x7Cb: It is over: queue"), "{text}");
    }

    #[test]
    fn a_listener_that_does_not_accept_yet_is_no_trouble() {
        let (level, text) = written(vec![listener("80", &[Diagnosis::NotAccepting], 0)]);
        assert_eq!(level, Level::Ok);
        assert!(text.starts_with("LISTENQ OK - 1 listener, none in trouble"), "{text}");
    }

    #[test]
    fn no_listener_at_all_is_unknown() {
        let (level, text) = written(vec![]);
        assert_eq!((level, level as u8), (Level::Unknown, 3));
        assert_eq!(text, "LISTENQ UNKNOWN - no listener here (took one sample)\n");
        let known = Known { is_filtered: true, ..Known::default() };
        assert_eq!(known.nothing(), Some("no listener matches the filters"));
    }

    #[test]
    fn without_limits_calm_is_unknown_and_trouble_is_reported() {
        let blind = |listeners| {
            let missing = MissingFeature { feature: "sock_diag".into(), cost: String::new() };
            let report = Report { listeners, missing_features: vec![missing], ..Report::default() };
            let mut out = Vec::new();
            let known = Known { report, origin: "here".into(), ..Known::default() };
            let level = write(&known, &mut out).unwrap();
            (level, String::from_utf8(out).unwrap())
        };
        let (level, text) = blind(vec![listener("80", &[], 0)]);
        assert_eq!(level, Level::Unknown);
        assert!(text.contains("modprobe tcp_diag") && !text.contains("overflows="), "{text}");
        assert_eq!(blind(vec![listener("80", &[Diagnosis::Stalled], 0)]).0, Level::Critical);
    }

    #[test]
    fn a_briefly_watched_full_queue_is_unknown() {
        let young = || {
            let recent = Recent { watched_seconds: 3.7, ..Recent::default() };
            Listener { recent: Some(recent), ..listener("80", &[], 0) }
        };
        let words = "1 listener, none in trouble; host/tcp/[::]:80: queue full: 9 of 8 \
                     (watched for only 3 s) (took one sample) | ";
        for (sampled_for, level) in [
            (None, Level::Ok),
            (Some(Duration::from_secs(4)), Level::Unknown),
            (Some(Duration::from_secs(12)), Level::Ok),
        ] {
            let (got, text) = written_after(vec![young()], sampled_for);
            assert_eq!(got, level);
            assert!(text.starts_with(&format!("LISTENQ {level} - {words}")), "{text}");
        }
    }

    #[test]
    fn twenty_lines_and_a_count_of_the_rest_are_printed() {
        let many = (0..50).map(|_| listener("80", &[Diagnosis::Stalled], 0)).collect();
        let (_, text) = written(many);
        assert_eq!(text.lines().count(), 22);
        assert!(text.ends_with("and 29 more: listenq list\n"), "{text}");
    }
}
