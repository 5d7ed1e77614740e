//! The table of listeners that `listenq list` prints: for a person, or as JSON.

use std::io::{self, Write};

use serde::Serialize;

use crate::owner::Owner;
use crate::snapshot::escaped;
use crate::view::{ListenerView, NetnsView, QueueView, View};

const HEADINGS: [&str; 11] = [
    "NETNS", "PROTO", "ADDRESS", "PORT", "LENGTH", "LIMIT", "FULL", "SOCKETS", "DROPS", "PROCESS",
    "OWNER",
];
/// Columns of numbers, and the port: aligned to the right.
const RIGHT: [bool; 11] = [false, false, false, true, true, true, true, true, true, false, false];
/// From here on a queue is worth a look.
const NEARLY_FULL: f64 = 0.8;

/// One listener, as `--json` prints it. What is not known is `null`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row<'a> {
    netns: &'a str,
    protocol: &'static str,
    address: &'a str,
    port: &'a str,
    /// Connections waiting.
    length: u64,
    /// What the queue may hold.
    limit: Option<u64>,
    /// Length / (limit + 1) of the fullest socket.
    fullest_ratio: Option<f64>,
    /// Listen sockets behind it.
    sockets: u32,
    /// Segments discarded since the sockets were made, for any reason.
    drops: Option<u64>,
    /// Who is behind it; empty where that is not known.
    #[serde(flatten)]
    owner: Names<'a>,
}

/// The labels of an owner.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Names<'a> {
    process: &'a str,
    unit: &'a str,
    container_id: &'a str,
    k8s_namespace: &'a str,
    k8s_pod: &'a str,
    k8s_container: &'a str,
}

/// The open listeners, the fullest first.
pub fn rows(view: &View) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = view
        .namespaces
        .iter()
        .flat_map(|netns| netns.listeners.iter().filter_map(move |listener| row(netns, listener)))
        .collect();
    rows.sort_by(|a, b| b.weight().total_cmp(&a.weight()).then_with(|| a.name().cmp(&b.name())));
    rows
}

fn row<'a>(netns: &'a NetnsView, listener: &'a ListenerView) -> Option<Row<'a>> {
    let QueueView { length, limit, peak_length: _, fullest_ratio, socket_drops } = listener.queue?;
    Some(Row {
        netns: &netns.name,
        protocol: listener.name.protocol.label(),
        address: &listener.name.address,
        port: &listener.name.port,
        length,
        limit,
        fullest_ratio,
        sockets: listener.sockets,
        drops: socket_drops,
        owner: names(&listener.owner),
    })
}

fn names(owner: &Owner) -> Names<'_> {
    let Owner { process, unit, container_id, k8s_namespace, k8s_pod, k8s_container } = owner;
    Names { process, unit, container_id, k8s_namespace, k8s_pod, k8s_container }
}

/// Writes the rows as one JSON array.
pub fn write_json(rows: &[Row<'_>], mut out: impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut out, rows)?;
    writeln!(out)
}

/// Writes the rows as an aligned table; full queues in red and nearly full ones in yellow if `colour`.
pub fn write_table(rows: &[Row<'_>], colour: bool, mut out: impl Write) -> io::Result<()> {
    let cells: Vec<[String; 11]> = rows.iter().map(Row::cells).collect();
    let mut widths = HEADINGS.map(str::len);
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    writeln!(out, "{}", line(&HEADINGS, &widths))?;
    for (row, cells) in rows.iter().zip(&cells) {
        let (start, end) = match colour {
            true => row.colour(),
            false => ("", ""),
        };
        writeln!(out, "{start}{}{end}", line(cells, &widths))?;
    }
    Ok(())
}

fn line(cells: &[impl AsRef<str>; 11], widths: &[usize; 11]) -> String {
    let mut line = String::new();
    for ((cell, width), right) in cells.iter().zip(widths).zip(RIGHT) {
        let padding = " ".repeat(width - cell.as_ref().chars().count());
        let (before, after) = if right { (&*padding, "") } else { ("", &*padding) };
        line.extend([before, cell.as_ref(), after, "  "]);
    }
    line.truncate(line.trim_end().len());
    line
}

// === impl Names ===

impl Names<'_> {
    /// Where it runs, the most telling name first: pod, container, unit.
    fn place(&self) -> String {
        let Names { process: _, unit, container_id, k8s_namespace, k8s_pod, k8s_container } = self;
        match (k8s_pod.is_empty(), container_id.is_empty()) {
            (false, _) => [*k8s_namespace, *k8s_pod, *k8s_container].join("/"),
            (true, false) => container_id.chars().take(12).collect(),
            (true, true) => escaped(unit.as_bytes()),
        }
    }
}

// === impl Row ===

impl Row<'_> {
    /// Full ones first; where no limit is known, the longer one.
    fn weight(&self) -> f64 {
        self.fullest_ratio.unwrap_or(self.length as f64)
    }

    fn name(&self) -> (&str, &str, &str, u32) {
        (self.netns, self.protocol, self.address, self.port.parse().unwrap_or(0))
    }

    fn cells(&self) -> [String; 11] {
        let known = |value: Option<u64>| value.map_or("-".into(), |value| value.to_string());
        [
            self.netns.into(),
            self.protocol.into(),
            self.address.into(),
            self.port.into(),
            self.length.to_string(),
            known(self.limit),
            self.fullest_ratio.map_or("-".into(), |ratio| format!("{:.0}%", ratio * 100.0)),
            self.sockets.to_string(),
            known(self.drops),
            escaped(self.owner.process.as_bytes()),
            self.owner.place(),
        ]
    }

    fn colour(&self) -> (&'static str, &'static str) {
        match self.fullest_ratio {
            Some(ratio) if ratio >= 1.0 => ("\u{1b}[31m", "\u{1b}[0m"),
            Some(ratio) if ratio >= NEARLY_FULL => ("\u{1b}[33m", "\u{1b}[0m"),
            _ => ("", ""),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::view::ListenerName;

    fn listener(address: &str, port: &str, length: u64, limit: Option<u64>) -> ListenerView {
        ListenerView {
            owner: Arc::default(),
            name: Arc::new(ListenerName {
                protocol: crate::view::Protocol::Tcp,
                address: address.into(),
                port: port.into(),
            }),
            sockets: 1,
            queue: Some(QueueView {
                length,
                limit,
                peak_length: length,
                fullest_ratio: limit.map(|limit| length as f64 / (limit as f64 + 1.0)),
                socket_drops: Some(3),
            }),
            connection_seconds: 0.0,
            full_seconds: None,
            drops: None,
            overflows: None,
            scan: None,
            case: None,
        }
    }

    fn view(listeners: Vec<ListenerView>) -> View {
        let netns = NetnsView { name: "host".into(), listeners, ..NetnsView::default() };
        View { namespaces: vec![netns], ..View::default() }
    }

    #[test]
    fn the_fullest_stand_on_top_and_closed_ones_are_left_out() {
        let closed = ListenerView { queue: None, ..listener("::", "9", 0, Some(1)) };
        let view = view(vec![
            listener("0.0.0.0", "443", 0, Some(511)),
            listener("0.0.0.0", "80", 0, Some(511)),
            listener("127.0.0.1", "9000", 129, Some(128)),
            closed,
        ]);
        let mut text = Vec::new();
        write_table(&rows(&view), false, &mut text).unwrap();
        let expected = "\
NETNS  PROTO  ADDRESS    PORT  LENGTH  LIMIT  FULL  SOCKETS  DROPS  PROCESS  OWNER
host   tcp    127.0.0.1  9000     129    128  100%        1      3
host   tcp    0.0.0.0      80       0    511    0%        1      3
host   tcp    0.0.0.0     443       0    511    0%        1      3
";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn what_is_not_known_is_null_and_a_dash() {
        let view = view(vec![listener("::1", "80", 2, None)]);
        let rows = rows(&view);
        let mut json = Vec::new();
        write_json(&rows, &mut json).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json[0]["limit"], serde_json::Value::Null);
        assert_eq!(json[0]["length"], 2);
        let mut text = Vec::new();
        write_table(&rows, true, &mut text).unwrap();
        assert!(String::from_utf8(text).unwrap().contains("       2      -     -        1"));
    }

    #[test]
    fn colour_marks_full_queues_only_when_asked() {
        let view = view(vec![listener("::1", "80", 6, Some(5)), listener("::1", "81", 5, Some(5))]);
        let mut text = Vec::new();
        write_table(&rows(&view), true, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("\u{1b}[31mhost") && text.contains("\u{1b}[33mhost"), "{text}");
    }
}
