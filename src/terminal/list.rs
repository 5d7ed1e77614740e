//! `listenq list`: the table of listeners for a person, or JSON.

use std::io::{self, Write};

use crate::diagnosis::NEARLY_FULL;
use crate::report::Listener;
use crate::report::words::time;
use crate::terminal;

/// The target width of the table, in columns.
const WIDTH: usize = 120;
const COLUMNS: usize = 11;
const HEADINGS: [&str; COLUMNS] = [
    "NETNS",
    "PROTO",
    "ADDRESS",
    "PORT",
    "LENGTH",
    "LIMIT",
    "FULL",
    "WAIT",
    "ABANDONED",
    "DIAGNOSIS",
    "OWNER",
];
/// The numeric columns, from the port to the abandoned connections: right-aligned.
const NUMBERS: std::ops::RangeInclusive<usize> = 3..=8;
/// Columns that are cut if the table is too wide, and the minimum width of each.
const NETNS: (usize, usize) = (0, 9);
const ADDRESS: (usize, usize) = (2, 16);
const DIAGNOSIS: (usize, usize) = (9, 14);
const OWNER: (usize, usize) = (10, 16);
/// Marks a cut cell.
const CUT: char = '…';

/// Writes the listeners as one JSON array.
pub fn write_json(listeners: &[Listener], mut out: impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut out, listeners)?;
    writeln!(out)
}

/// Writes the listeners as an aligned table. If `colour`, full listeners and listeners in trouble
/// are red and nearly full listeners are yellow.
pub fn write_table(listeners: &[Listener], colour: bool, mut out: impl Write) -> io::Result<()> {
    table(listeners, colour, WIDTH, usize::MAX).iter().try_for_each(|line| writeln!(out, "{line}"))
}

/// The lines of the table, none longer than `width`.
pub(super) fn lines(listeners: &[Listener], colour: bool, width: usize) -> Vec<String> {
    table(listeners, colour, width, width)
}

/// The lines of the table, which fits `width` if possible; longer lines are cut at `longest`.
fn table(listeners: &[Listener], colour: bool, width: usize, longest: usize) -> Vec<String> {
    let mut rows: Vec<[String; COLUMNS]> = listeners.iter().map(cells).collect();
    let widths = fitted(&rows, width);
    rows.iter_mut().for_each(|row| cut(row, &widths));
    let line = |cells: String| cells.chars().take(longest).collect::<String>();
    let mut lines = vec![line(joined(&HEADINGS, &widths))];
    lines.extend(listeners.iter().zip(&rows).map(|(listener, row)| {
        let (start, end) = match colour {
            true => colours(listener),
            false => ("", ""),
        };
        format!("{start}{}{end}", line(joined(row, &widths)))
    }));
    lines
}

/// The width of each column; the table fits `width` if possible.
fn fitted(rows: &[[String; COLUMNS]], width: usize) -> [usize; COLUMNS] {
    let mut widths = HEADINGS.map(str::len);
    for row in rows {
        for (column, cell) in widths.iter_mut().zip(row) {
            *column = (*column).max(cell.chars().count());
        }
    }
    let gaps = 2 * (COLUMNS - 1);
    let mut excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(width);
    for (column, least) in [OWNER, ADDRESS, NETNS, DIAGNOSIS] {
        let taken = excess.min(widths[column].saturating_sub(least));
        widths[column] -= taken;
        excess -= taken;
    }
    widths
}

/// Cuts each cell to the width of its column. Of an address the end is kept, because the ends of
/// paths differ.
fn cut(row: &mut [String; COLUMNS], widths: &[usize; COLUMNS]) {
    for (column, (cell, width)) in row.iter_mut().zip(widths).enumerate() {
        let excess = cell.chars().count().saturating_sub(*width);
        if excess == 0 {
            continue;
        }
        *cell = match column == ADDRESS.0 {
            true => std::iter::once(CUT).chain(cell.chars().skip(excess + 1)).collect(),
            false => cell.chars().take(width - 1).chain([CUT]).collect(),
        };
    }
}

fn joined(cells: &[impl AsRef<str>; COLUMNS], widths: &[usize; COLUMNS]) -> String {
    let mut line = String::new();
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let padding = " ".repeat(width - cell.as_ref().chars().count());
        let is_number = NUMBERS.contains(&column);
        let (before, after) = if is_number { (&*padding, "") } else { ("", &*padding) };
        line.extend([before, cell.as_ref(), after, "  "]);
    }
    line.truncate(line.trim_end().len());
    line
}

fn cells(listener: &Listener) -> [String; COLUMNS] {
    let known = |value: Option<u64>| value.map_or("-".into(), |value| value.to_string());
    let Listener { netns, protocol, address, port, owner, .. } = listener;
    let words = listener.words(",");
    [
        netns.clone(),
        protocol.label().into(),
        address.clone(),
        port.clone(),
        listener.length.to_string(),
        known(listener.limit),
        listener.fullest_ratio.map_or("-".into(), |ratio| format!("{:.0}%", ratio * 100.0)),
        listener.oldest_seconds.map_or("-".into(), time),
        known(listener.abandoned),
        if words.is_empty() { "-".into() } else { words + &causes(listener) },
        terminal::owner(owner).unwrap_or("-".into()),
    ]
}

/// The causes as a suffix of the diagnoses: `:cpu_throttled`.
fn causes(listener: &Listener) -> String {
    let labels = listener.causes.iter().map(|because| because.cause.label());
    labels.flat_map(|label| [":", label]).collect()
}

fn colours(listener: &Listener) -> (&'static str, &'static str) {
    const RED: (&str, &str) = ("\u{1b}[31m", "\u{1b}[0m");
    const YELLOW: (&str, &str) = ("\u{1b}[33m", "\u{1b}[0m");
    match listener.fullest_ratio {
        _ if !listener.diagnoses.is_empty() => RED,
        Some(ratio) if ratio >= 1.0 => RED,
        Some(ratio) if ratio >= NEARLY_FULL => YELLOW,
        _ => ("", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::Diagnosis;
    use crate::report::Diagnosed;
    use crate::view::Protocol;

    fn listener(address: &str, port: &str, length: u64, limit: Option<u64>) -> Listener {
        Listener {
            netns: "host".into(),
            protocol: Protocol::Tcp,
            address: address.into(),
            port: port.into(),
            sockets: 1,
            length,
            limit,
            peak_length: length,
            fullest_ratio: limit.map(|limit| length as f64 / (limit as f64 + 1.0)),
            drops: Some(3),
            ..Listener::default()
        }
    }

    fn table(listeners: &[Listener], colour: bool) -> String {
        let mut text = Vec::new();
        write_table(listeners, colour, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_table_has_a_line_for_each_listener() {
        let mut full = Listener {
            oldest_seconds: Some(8.284),
            abandoned: Some(119),
            ..listener("127.0.0.1", "9000", 129, Some(128))
        };
        full.owner.process = "php-fpm8.2".into();
        full.owner.unit = "php8.2-fpm.service".into();
        full.diagnoses = vec![Diagnosed::new(&full, Diagnosis::SlowAccept, 1.0)];
        let expected = "\
NETNS  PROTO  ADDRESS    PORT  LENGTH  LIMIT  FULL   WAIT  ABANDONED  DIAGNOSIS    OWNER
host   tcp    127.0.0.1  9000     129    128  100%  8.3 s        119  slow_accept  php-fpm8.2 (php8.2-fpm.service)
host   tcp    0.0.0.0      80       0    511    0%      -          -  -            -
";
        assert_eq!(table(&[full, listener("0.0.0.0", "80", 0, Some(511))], false), expected);
    }

    #[test]
    fn long_names_are_cut_to_120_columns() {
        let mut long =
            listener("/run/containers/storage/overlay/php/www.sock", "", 1_900, Some(4_096));
        long.netns = "lq-123456-container".into();
        long.owner.process = "php-fpm8.2".into();
        long.owner.unit = "a-unit-with-a-rather-long-name-of-some-kind.service".into();
        long.diagnoses = [Diagnosis::Stalled, Diagnosis::SlowAccept, Diagnosis::Abandoned]
            .map(|diagnosis| Diagnosed::new(&long, diagnosis, 1.0))
            .into();
        let text = table(&[long, listener("0.0.0.0", "80", 0, Some(511))], false);
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        for words in ["…ay/php/www.sock ", "lq-12345…", " php-fpm8.2 (a-u…", " stalled,"] {
            assert!(text.contains(words), "no {words:?} in {text}");
        }
    }

    #[test]
    fn unknown_values_are_null_in_json_and_a_dash_in_the_table() {
        let listeners = [listener("::1", "80", 2, None)];
        let mut json = Vec::new();
        write_json(&listeners, &mut json).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json[0]["limit"], serde_json::Value::Null);
        assert_eq!(json[0]["length"], 2);
        let text = table(&listeners, true);
        assert!(text.contains("       2      -     -     -          -  -"), "{text}");
    }

    #[test]
    fn colour_marks_full_queues_and_trouble_only_when_asked() {
        let mut stuck = listener("::1", "82", 1, Some(5));
        stuck.diagnoses = vec![Diagnosed::new(&stuck, Diagnosis::Stalled, 1.0)];
        let all = [listener("::1", "80", 6, Some(5)), listener("::1", "81", 5, Some(5)), stuck];
        let text = table(&all, true);
        assert_eq!(text.matches("\u{1b}[31mhost").count(), 2, "{text:?}");
        assert_eq!(text.matches("\u{1b}[33mhost").count(), 1, "{text:?}");
        assert!(!table(&all, false).contains('\u{1b}'));
    }
}
