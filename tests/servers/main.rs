//! Runs the matrix of real servers: each program in each situation, in its own namespace with its
//! own daemon. The daemon must report the right diagnosis and cause and no other, and `explain`
//! must give the right advice.
//!
//! `table.txt` and `causes.txt` contain the expected words; `programs.rs` starts each server.
//! `LISTENQ_SERVERS` selects the cells: `gate` (the default), `all`, or names separated by commas:
//! `node` selects every cell of a program, `node/slow` one cell. With `LISTENQ_SERVERS_OUT` the
//! test writes the tables to this directory.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::disallowed_types, reason = "starting programs is what a test may do")]
#![allow(clippy::print_stdout, reason = "the matrix is for the reader of --nocapture")]

mod cell;
mod programs;
mod table;
mod trouble;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use listenq_lab::netns::Netns;

use cell::{Played, play};
use programs::{PROGRAMS, Program, is_installed};
use table::{CAUSES, Expected, Row, SITUATIONS, Situation, Table};

/// The number of cells that run at the same time. A cell mostly waits, so the cells of the gate fit
/// into one round.
const AT_ONCE: usize = 24;

/// Causes that the machine of the test may itself have.
const OF_THE_MACHINE: [&str; 2] = ["cpu_starved", "cpu_steal"];
/// The beginnings of the advice for these causes, which replaces the advice for the server.
const ADVICE_OF_THE_MACHINE: [&str; 2] = ["See what uses the CPUs", "Move the virtual machine"];

/// One program in one situation, and the expected words.
struct Cell {
    program: &'static Program,
    situation: Situation,
    expected: Expected,
}

#[test]
fn real_servers_get_the_right_diagnosis_and_the_right_advice() {
    run("servers", include_str!("table.txt"), SITUATIONS);
}

#[test]
fn every_cause_of_a_real_server_is_reported() {
    run("causes", include_str!("causes.txt"), CAUSES);
}

#[test]
fn the_tables_have_every_program_once() {
    let table = Table::parse(include_str!("table.txt"), SITUATIONS);
    let causes = Table::parse(include_str!("causes.txt"), CAUSES);
    let programs: BTreeSet<&str> = PROGRAMS.iter().map(|program| program.name).collect();
    assert_eq!(programs.len(), PROGRAMS.len());
    let rows = table.rows.keys().chain(causes.rows.keys());
    assert_eq!(rows.copied().collect::<BTreeSet<_>>(), programs);
}

/// Runs the cells of a table that `LISTENQ_SERVERS` selects.
fn run<const COLUMNS: usize>(name: &str, text: &'static str, columns: [Situation; COLUMNS]) {
    if !Netns::require_root() {
        return;
    }
    let table = Table::parse(text, columns);
    let cells = cells(&table, columns, &std::env::var("LISTENQ_SERVERS").unwrap_or("gate".into()));
    let queue = Mutex::new(cells.iter());
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(cells.len()) {
            scope.spawn(|| {
                while let Some(cell) = take(&queue) {
                    let played = catch_unwind(|| play(cell.program, cell.situation));
                    let played = played.unwrap_or_else(|_| Played::failed("a panic, see above"));
                    results.lock().unwrap().push((cell, played));
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    print(name, &results, &columns);
    let wrong: Vec<String> =
        results.iter().flat_map(|(cell, played)| complaints(cell, played)).collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn take<'a>(queue: &Mutex<std::slice::Iter<'a, Cell>>) -> Option<&'a Cell> {
    queue.lock().unwrap().next()
}

/// The cells to run. A missing program is an error.
fn cells<const COLUMNS: usize>(
    table: &Table<COLUMNS>,
    columns: [Situation; COLUMNS],
    which: &str,
) -> Vec<Cell> {
    let is_chosen = |program: &Program, row: &Row<COLUMNS>, situation| match which {
        "all" => true,
        "gate" => row.is_in_gate(situation),
        names => names.split(',').any(|name| is_named(name, program, situation)),
    };
    let mut cells = Vec::new();
    for program in PROGRAMS {
        let Some(row) = table.rows.get(program.name) else { continue };
        for (situation, expected) in columns.into_iter().zip(&row.expected) {
            if is_chosen(program, row, situation)
                && let Some(expected) = expected.clone()
            {
                cells.push(Cell { program, situation, expected });
            }
        }
    }
    for Cell { program, .. } in &cells {
        assert!(is_installed(program), "{} is not installed ({})", program.tool, program.name);
    }
    cells
}

/// Whether `name` selects this cell: `node` or `node/slow`.
fn is_named(name: &str, program: &Program, situation: Situation) -> bool {
    let (name, label) = name.split_once('/').unwrap_or((name, situation.label()));
    name == program.name && label == situation.label()
}

/// The differences between the expected and the observed result of a cell.
fn complaints(cell: &Cell, played: &Played) -> Vec<String> {
    let name = format!("{} {}", cell.program.name, cell.situation.label());
    let mut wrong = wrong_diagnoses(&cell.expected, played);
    let is_right = wrong.is_empty();
    wrong.extend(wrong_causes(&cell.expected, played));
    for advice in cell.program.advice(cell.situation) {
        if is_right && !played.words.is_empty() && !is_advised(played, advice) {
            wrong.push(format!("no {advice:?} in:\n{}", played.explained));
        }
    }
    wrong.extend(played.problem.clone());
    wrong.into_iter().map(|problem| format!("{name}: {problem}")).collect()
}

/// Whether `explain` gave the advice for the server, or the advice for a cause of the machine.
fn is_advised(played: &Played, advice: &str) -> bool {
    let has_cause = |(cause, text): (&str, &str)| {
        let is_found = played.causes.iter().any(|(word, _)| word == cause);
        is_found && played.explained.contains(text)
    };
    let mut causes = OF_THE_MACHINE.into_iter().zip(ADVICE_OF_THE_MACHINE);
    played.explained.contains(advice) || causes.any(has_cause)
}

/// Checks that the first expected diagnosis comes first; the others may follow.
fn wrong_diagnoses(expected: &Expected, played: &Played) -> Vec<String> {
    let mut words: Vec<&str> = played.words.iter().map(|(word, _)| &**word).collect();
    // `not_accepting` is information until a process is found stopped. A listener whose connections
    // end with RST gives no other proof that it accepts.
    if words.len() > 1 && words[0] == "not_accepting" {
        words.remove(0);
    }
    let (first, main) = (words.first(), expected.diagnoses.first());
    let is_first = match expected.any_first {
        true => first.is_some_and(|first| expected.diagnoses.contains(first)),
        false => first == main,
    };
    if !is_first {
        return vec![format!("expected {main:?} first, found {:?}", played.words)];
    }
    let strange = words.iter().find(|word| !expected.diagnoses.contains(word));
    strange.map(|word| format!("{word} besides, of {:?}", played.words)).into_iter().collect()
}

/// Checks that one of the expected causes comes, and no other cause.
fn wrong_causes(expected: &Expected, played: &Played) -> Option<String> {
    let words = || played.causes.iter().map(|(word, _)| &**word);
    let is_expected = |word: &&str| expected.causes.contains(word);
    let is_strange = |word: &&str| !is_expected(word) && !OF_THE_MACHINE.contains(word);
    let found = &played.causes;
    if let Some(word) = words().find(is_strange) {
        return Some(format!("cause {word}, found {found:?} in:\n{}", played.explained));
    }
    let is_missing = !expected.is_cause_optional && !words().any(|word| is_expected(&word));
    let causes = expected.causes.join(" or ");
    is_missing.then(|| format!("no cause {causes}, found {found:?} in:\n{}", played.explained))
}

/// Prints the table in Markdown, and writes it to the directory `LISTENQ_SERVERS_OUT`.
fn print(name: &str, results: &[(&Cell, Played)], columns: &[Situation]) {
    let mut text = String::from("| server |");
    columns.iter().for_each(|column| _ = write!(text, " {} |", column.label()));
    _ = writeln!(text, "\n|---|{}", "---|".repeat(columns.len()));
    for program in PROGRAMS {
        let find = |situation: &Situation| {
            results
                .iter()
                .find(|(cell, _)| cell.program.name == program.name && cell.situation == *situation)
        };
        if columns.iter().any(|column| find(column).is_some()) {
            let cells = columns.iter().map(|column| find(column).map_or("".into(), written));
            _ = writeln!(text, "| {} | {} |", program.name, cells.collect::<Vec<_>>().join(" | "));
        }
    }
    println!("{text}");
    if let Ok(out) = std::env::var("LISTENQ_SERVERS_OUT") {
        std::fs::write(Path::new(&out).join(format!("{name}.md")), text).unwrap();
    }
}

/// The first diagnosis and the causes, with the seconds to each, and a mark where the cell is
/// wrong.
fn written((cell, played): &(&Cell, Played)) -> String {
    let mark = if complaints(cell, played).is_empty() { "" } else { " **wrong**" };
    let Some((word, after)) = played.words.first() else { return format!("none{mark}") };
    let mut text = format!("`{word}` {after:.0} s");
    for (cause, after) in &played.causes {
        _ = write!(text, ", `{cause}` {after:.0} s");
    }
    text + mark
}
