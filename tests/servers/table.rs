//! Owns the table: which word each program must get in each situation.

use std::collections::BTreeMap;

/// What is done to a server. In the order of the columns.
pub(crate) const SITUATIONS: [Situation; 6] = [
    Situation::Busy,
    Situation::Slow,
    Situation::Full,
    Situation::Stopped,
    Situation::Short,
    Situation::Restarting,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Situation {
    /// Four fifths of what it can serve.
    Busy,
    /// Five times what it can serve, by clients that wait, at a limit they do not reach.
    Slow,
    /// The same with a limit of 16 and clients that leave.
    Full,
    /// SIGSTOP, or one worker of a reuseport group.
    Stopped,
    /// Bursts of 40 at a limit of 4, while it pauses for a tenth of a second.
    Short,
    /// Stopped and started again every eight seconds.
    Restarting,
}

/// What is expected, as committed.
pub(crate) struct Table {
    pub(crate) rows: BTreeMap<&'static str, Row>,
}

/// Of one program.
pub(crate) struct Row {
    pub(crate) is_in_gate: bool,
    /// For each situation: `None` when it is not played; the word that must come first, and those that may follow.
    pub(crate) expected: [Option<Vec<&'static str>>; SITUATIONS.len()],
}

// === impl Situation ===

impl Situation {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Slow => "slow",
            Self::Full => "full",
            Self::Stopped => "stopped",
            Self::Short => "short",
            Self::Restarting => "restarting",
        }
    }
}

// === impl Table ===

impl Table {
    pub(crate) fn read() -> Self {
        let text = include_str!("table.txt");
        let mut lines =
            text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let heading: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(heading[..2], ["server", "gate"]);
        assert_eq!(heading[2..], SITUATIONS.map(Situation::label));
        Self { rows: lines.map(row).collect() }
    }
}

fn row(line: &'static str) -> (&'static str, Row) {
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(cells.len(), 2 + SITUATIONS.len(), "{line}");
    let expected = std::array::from_fn(|place| words(cells[2 + place]));
    (cells[0], Row { is_in_gate: cells[1] == "yes", expected })
}

fn words(cell: &'static str) -> Option<Vec<&'static str>> {
    match cell {
        "-" => None,
        "none" => Some(Vec::new()),
        words => Some(words.split(',').collect()),
    }
}
