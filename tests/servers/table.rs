//! Reads the tables: which words each program must get in each situation.

use std::collections::BTreeMap;

/// The situations of `table.txt`, in the order of the columns.
pub(crate) const SITUATIONS: [Situation; 6] = [
    Situation::Busy,
    Situation::Slow,
    Situation::Full,
    Situation::Stopped,
    Situation::Short,
    Situation::Restarting,
];

/// The situations of `causes.txt`, in the order of the columns.
pub(crate) const CAUSES: [Situation; 10] = [
    Situation::Frozen,
    Situation::Throttled,
    Situation::Starved,
    Situation::Loop,
    Situation::Lock,
    Situation::Waits,
    Situation::Disk,
    Situation::Held,
    Situation::Descriptors,
    Situation::Inherited,
];

/// The diagnoses that the word `slow` in a table stands for.
const SLOW: [&str; 4] = ["slow_accept", "standing_queue", "stalled", "abandoned"];

/// What the test does to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Situation {
    /// Four fifths of the load that the server can serve.
    Busy,
    /// Five times the load that the server can serve, from clients that wait, below the limit.
    Slow,
    /// Five times the load that the server can serve, with a limit of 16 and clients that leave.
    Full,
    /// SIGSTOP to all processes, or to one worker of a reuseport group.
    Stopped,
    /// Bursts of 40 at a limit of 4, while the server pauses for a tenth of a second.
    Short,
    /// A stop and a start every eight seconds.
    Restarting,
    /// A frozen cgroup.
    Frozen,
    /// A CPU quota of 1 %.
    Throttled,
    /// Idle priority on a CPU that another process uses.
    Starved,
    /// Requests that compute forever.
    Loop,
    /// Requests that wait for a lock that nothing releases.
    Lock,
    /// Requests that wait for an upstream that does not answer.
    Waits,
    /// Requests that write to a suspended file system.
    Disk,
    /// More clients without a complete request than the server has connections or workers.
    Held,
    /// A descriptor limit that clients use up.
    Descriptors,
    /// A process that inherited the socket and does not accept.
    Inherited,
}

/// A table in the repository.
pub(crate) struct Table<const COLUMNS: usize> {
    pub(crate) rows: BTreeMap<&'static str, Row<COLUMNS>>,
}

/// The row of one program.
pub(crate) struct Row<const COLUMNS: usize> {
    gate: &'static str,
    /// The words for each situation; `None` where the test does not run the situation.
    pub(crate) expected: [Option<Expected>; COLUMNS],
}

/// The diagnoses and causes that a cell must get.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    /// The diagnosis that must come first, and diagnoses that may follow.
    pub(crate) diagnoses: Vec<&'static str>,
    /// Whether each of `diagnoses` may come first.
    pub(crate) any_first: bool,
    /// The cause that must come, and causes that may come.
    pub(crate) causes: Vec<&'static str>,
    /// Whether the cell may have no cause.
    pub(crate) is_cause_optional: bool,
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
            Self::Frozen => "frozen",
            Self::Throttled => "throttled",
            Self::Starved => "starved",
            Self::Loop => "loop",
            Self::Lock => "lock",
            Self::Waits => "waits",
            Self::Disk => "disk",
            Self::Held => "held",
            Self::Descriptors => "descriptors",
            Self::Inherited => "inherited",
        }
    }
}

// === impl Table ===

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// Parses a table with these columns.
    pub(crate) fn parse(text: &'static str, columns: [Situation; COLUMNS]) -> Self {
        let mut lines =
            text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let heading: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(heading[..2], ["server", "gate"]);
        assert_eq!(heading[2..], columns.map(Situation::label));
        Self { rows: lines.map(row).collect() }
    }
}

// === impl Row ===

impl<const COLUMNS: usize> Row<COLUMNS> {
    /// Whether tests/all.sh runs this cell: all cells of the row, or the named situations.
    pub(crate) fn is_in_gate(&self, situation: Situation) -> bool {
        self.gate == "yes" || self.gate.split(',').any(|name| name == situation.label())
    }
}

fn row<const COLUMNS: usize>(line: &'static str) -> (&'static str, Row<COLUMNS>) {
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(cells.len(), 2 + COLUMNS, "{line}");
    let expected = std::array::from_fn(|place| expected(cells[2 + place]));
    (cells[0], Row { gate: cells[1], expected })
}

fn expected(cell: &'static str) -> Option<Expected> {
    let (diagnoses, causes) = cell.split_once('+').unwrap_or((cell, ""));
    let (causes, is_cause_optional) = match causes.strip_prefix('?') {
        Some(causes) => (words(causes), true),
        None => (words(causes), causes.is_empty()),
    };
    let (diagnoses, any_first) = match diagnoses {
        "-" => return None,
        "none" => (Vec::new(), false),
        "slow" => (SLOW.to_vec(), true),
        _ => (words(diagnoses), false),
    };
    Some(Expected { diagnoses, any_first, causes, is_cause_optional })
}

fn words(text: &'static str) -> Vec<&'static str> {
    text.split(',').filter(|word| !word.is_empty()).collect()
}
