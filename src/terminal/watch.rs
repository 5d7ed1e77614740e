//! `listenq list --watch`: the table again every two seconds, until Ctrl-C or until the reader of
//! the pipe is gone.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use rustix::termios::tcgetwinsize;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;

use crate::report::Listener;
use crate::terminal::has_colours;
use crate::terminal::list;
use crate::terminal::source::{Feed, Known};
use crate::terminal::target::narrow;

/// The time between two tables.
const INTERVAL: Duration = Duration::from_secs(2);
/// The shortest time between two changes of the order.
const ORDER: Duration = Duration::from_secs(10);
/// The size of a terminal that does not report its size.
const USUAL_SIZE: Size = Size { columns: 120, rows: 40 };
/// Moves the cursor to the first line, and disables line wrapping while the table is written.
const BEGIN: &str = "\u{1b}[H\u{1b}[?7l";
/// Clears the rest of the line.
const END_OF_LINE: &str = "\u{1b}[K\n";
/// Clears the rest of the screen, and enables line wrapping.
const END: &str = "\u{1b}[J\u{1b}[?7h";
/// Clears the screen.
const CLEAR: &str = "\u{1b}[2J";

/// The size of the terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    columns: usize,
    rows: usize,
}

/// The state between two tables.
struct Watch {
    feed: Feed,
    target: Option<String>,
    order: StableOrder,
    begun: Instant,
    is_terminal: bool,
    last: Option<Known>,
}

/// Keeps the order of listeners for [`ORDER`]. New listeners come last.
#[derive(Clone, Debug, Default)]
struct StableOrder {
    names: Vec<String>,
    sorted_at: Option<Duration>,
}

/// Writes tables until a signal, or until standard output is closed.
pub fn run(feed: Feed, target: Option<String>) -> Result<()> {
    let is_terminal = io::stdout().is_terminal();
    if is_terminal {
        io::stdout().write_all(CLEAR.as_bytes()).context("writing")?;
    }
    let (order, begun) = (StableOrder::default(), Instant::now());
    let watch = Watch { feed, target, order, begun, is_terminal, last: None };
    let runtime = Builder::new_current_thread().enable_all().build().context("starting")?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = watch.repeat() => result,
            result = stop_signal() => result,
        }
    });
    // A request or a full pipe must not delay the end.
    runtime.shutdown_background();
    result
}

async fn stop_signal() -> Result<()> {
    let stop = |kind| signal(kind).context("catching a signal");
    let (mut interrupt, mut terminate, mut hangup) = (
        stop(SignalKind::interrupt())?,
        stop(SignalKind::terminate())?,
        stop(SignalKind::hangup())?,
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

// === impl Watch ===

impl Watch {
    async fn repeat(mut self) -> Result<()> {
        loop {
            self = spawn_blocking(move || self.turn())
                .await
                .context("requesting the next report")??;
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Writes one table. The first answer must succeed; later failures are shown above the last
    /// table.
    fn turn(mut self) -> Result<Self> {
        let asked = self.feed.current().and_then(|known| narrow(known, self.target.as_deref()));
        let failure = match (asked, &self.last) {
            (Ok(known), _) => {
                self.last = Some(known);
                None
            }
            (Err(error), None) => return Err(error),
            (Err(error), Some(_)) => Some(format!("{error:#}")),
        };
        let Some(known) = &mut self.last else { return Ok(self) };
        self.order.apply(self.begun.elapsed(), &mut known.report.listeners);
        let time = humantime::format_rfc3339_seconds(SystemTime::now());
        let head = match failure {
            None => format!("{time}  {}", known.origin),
            Some(failure) => format!("{time}  no answer, the table is older: {failure}"),
        };
        let text = match self.is_terminal {
            true => frame(&head, &known.report.listeners, has_colours(), size()),
            false => plain(&head, &known.report.listeners)?,
        };
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing")?;
        Ok(self)
    }
}

/// The table for a pipe or a file.
fn plain(head: &str, listeners: &[Listener]) -> Result<String> {
    let mut table = Vec::new();
    list::write_table(listeners, false, &mut table)?;
    Ok(format!("{head}\n{}\n", String::from_utf8_lossy(&table)))
}

/// The table for a terminal of this size: what does not fit is counted.
fn frame(head: &str, listeners: &[Listener], colour: bool, size: Size) -> String {
    let lines = list::lines(listeners, colour, size.columns);
    let room = size.rows.saturating_sub(2).max(2);
    let shown = if lines.len() > room { room - 1 } else { lines.len() };
    let head: String = head.chars().take(size.columns).collect();
    let mut text = format!("{BEGIN}{head}{END_OF_LINE}");
    for line in &lines[..shown] {
        let _ = write!(text, "{line}{END_OF_LINE}");
    }
    if shown < lines.len() {
        let _ = write!(text, "and {} more{END_OF_LINE}", lines.len() - shown);
    }
    text + END
}

fn size() -> Size {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
        }
        _ => USUAL_SIZE,
    }
}

// === impl StableOrder ===

impl StableOrder {
    fn apply(&mut self, now: Duration, listeners: &mut [Listener]) {
        let is_due = self.sorted_at.is_none_or(|at| now.saturating_sub(at) >= ORDER);
        if is_due {
            self.sorted_at = Some(now);
        } else {
            let place = |one: &Listener| self.names.iter().position(|name| *name == one.named());
            listeners.sort_by_cached_key(|one| place(one).unwrap_or(usize::MAX));
        }
        self.names = listeners.iter().map(Listener::named).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listeners(ports: &str) -> Vec<Listener> {
        let listener = |port: char| Listener { port: port.into(), ..Listener::default() };
        ports.chars().map(listener).collect()
    }

    #[test]
    fn the_order_is_kept_for_ten_seconds_and_new_listeners_come_last() {
        let mut order = StableOrder::default();
        let mut shown = |second, ports| {
            let mut all = listeners(ports);
            order.apply(Duration::from_secs(second), &mut all);
            all.iter().map(|one| one.port.as_str()).collect::<String>()
        };
        assert_eq!(shown(0, "123"), "123");
        assert_eq!(shown(2, "4321"), "1234");
        assert_eq!(shown(8, "421"), "124");
        assert_eq!(shown(10, "421"), "421");
        assert_eq!(shown(12, "124"), "421");
    }

    #[test]
    fn a_frame_fits_the_terminal() {
        let size = Size { columns: 40, rows: 6 };
        let text = frame(&"x".repeat(80), &listeners("123456789"), true, size);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() <= size.rows, "{text:?}");
        assert!(text.contains("and 7 more"), "{text:?}");
        for line in lines {
            let line: String = strip(line);
            assert!(line.chars().count() <= size.columns, "{line:?}");
        }
        let all = frame("head", &listeners("123"), true, size);
        assert!(!all.contains("more") && all.ends_with(END), "{all:?}");
    }

    /// The text without escape sequences.
    fn strip(line: &str) -> String {
        let sequence = regex::Regex::new("\u{1b}\\[[?0-9;]*[A-Za-z]").unwrap();
        sequence.replace_all(line, "").into_owned()
    }
}
