//! Terminal output for people and scripts: `list`, `explain`, `check`.
//!
//! * [`source`] asks a daemon, or samples; [`target`] finds the listeners that a user names;
//! * [`watch`] prints the list every two seconds;
//! * [`list`], [`explain`] and [`check`] each write the report in their format.

pub mod check;
pub mod explain;
pub mod list;
pub mod source;
pub mod target;
pub mod watch;

use std::env;
use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};

use crate::report::Listener;
use crate::snapshot::owner::Owner;
use crate::snapshot::printable;

/// The line width; longer lines are hard to read.
const WIDTH: usize = 100;

/// Whether standard output may be coloured: it is a terminal, `TERM` is not `dumb`, and `NO_COLOR`
/// is not set.
pub fn has_colours() -> bool {
    let [term, no_color] = ["TERM", "NO_COLOR"].map(env::var_os);
    io::stdout().is_terminal() && may_colour(term.as_deref(), no_color.as_deref())
}

fn may_colour(term: Option<&OsStr>, no_color: Option<&OsStr>) -> bool {
    term.is_none_or(|term| term != "dumb") && no_color.is_none_or(OsStr::is_empty)
}

/// The known names of the owner: `php-fpm8.2 (php8.2-fpm.service)`.
fn owner(names: &Owner) -> Option<String> {
    let [process, place] = [&*names.process, &names.place()].map(printable);
    match (process.is_empty(), place.is_empty()) {
        (true, true) => None,
        (true, false) => Some(place),
        (false, true) => Some(process),
        (false, false) => Some(format!("{process} ({place})")),
    }
}

/// The title of a listener: `127.0.0.1:9000 (tcp, netns host)`.
fn title(listener: &Listener) -> String {
    let Listener { protocol, netns, .. } = listener;
    let protocol = protocol.label();
    format!("{} ({protocol}, netns {netns})", listener.endpoint())
}

/// Writes `text` in lines of at most [`WIDTH`] characters: `first` precedes the first line, and the
/// other lines are indented by its width.
fn write_filled(out: &mut impl Write, first: &str, text: &str) -> io::Result<()> {
    let indent = " ".repeat(first.chars().count());
    let mut line = first.to_owned();
    let mut is_begun = false;
    for word in text.split(' ') {
        if is_begun && line.chars().count() + 1 + word.chars().count() > WIDTH {
            writeln!(out, "{line}")?;
            line = indent.clone();
            is_begun = false;
        }
        if is_begun {
            line.push(' ');
        }
        line.push_str(word);
        is_begun = true;
    }
    writeln!(out, "{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_broken_between_words_and_indented() {
        let mut out = Vec::new();
        write_filled(&mut out, "  1. ", &"word ".repeat(30)).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("  1. word") && lines[0].len() <= WIDTH, "{text}");
        assert!(lines[1].starts_with("     word word"), "{text}");
    }

    #[test]
    fn an_owner_is_named_as_far_as_known() {
        let names = |process: &str, unit: &str| Owner {
            process: process.into(),
            unit: unit.into(),
            ..Owner::default()
        };
        assert_eq!(owner(&names("nginx", "nginx.service")).unwrap(), "nginx (nginx.service)");
        assert_eq!(owner(&names("\u{1b}[2J", "")).unwrap(), "\\x1B[2J");
        assert_eq!(owner(&names("", "")), None);
    }

    #[test]
    fn neither_a_dumb_terminal_nor_one_with_no_color_has_colours() {
        let may_colour = |term: Option<&str>, no_color: Option<&str>| {
            may_colour(term.map(OsStr::new), no_color.map(OsStr::new))
        };
        assert!(may_colour(None, None) && may_colour(Some("xterm"), Some("")));
        assert!(!may_colour(Some("dumb"), None) && !may_colour(Some("xterm"), Some("1")));
    }
}
