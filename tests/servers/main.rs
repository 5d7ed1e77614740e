//! Owns the matrix of real servers: each program in each situation, in a namespace of its own with a daemon beside it. The
//! daemon must use the right word and no other, and `explain` must give the right advice.
//!
//! `table.txt` has the expected words, `programs.rs` how each server is started. `LISTENQ_SERVERS` selects what is played:
//! `gate` (the default), `all`, or names of programs separated by commas.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::disallowed_types, reason = "starting programs is what a test may do")]
#![allow(clippy::print_stdout, reason = "the matrix is for the reader of --nocapture")]

mod cell;
mod programs;
mod table;

use std::collections::BTreeSet;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::thread;

use listenq_lab::netns::Netns;

use cell::{Played, play};
use programs::{PROGRAMS, Program, is_installed};
use table::{Row, SITUATIONS, Situation, Table};

/// Cells that are played at the same time. Most of each is waiting: those of the gate fit into one round.
const AT_ONCE: usize = 24;

/// One program in one situation, and what is expected of it.
struct Cell {
    program: &'static Program,
    situation: Situation,
    expected: Vec<&'static str>,
}

#[test]
fn real_servers_get_the_right_word_and_the_right_advice() {
    if !Netns::require_root() {
        return;
    }
    let table = Table::read();
    let cells = cells(&table, &std::env::var("LISTENQ_SERVERS").unwrap_or("gate".into()));
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
    print(&results);
    let wrong: Vec<String> =
        results.iter().flat_map(|(cell, played)| complaints(cell, played)).collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_table_has_every_program_once() {
    let table = Table::read();
    let programs: BTreeSet<&str> = PROGRAMS.iter().map(|program| program.name).collect();
    assert_eq!(programs.len(), PROGRAMS.len());
    assert_eq!(table.rows.keys().copied().collect::<BTreeSet<_>>(), programs);
}

fn take<'a>(queue: &Mutex<std::slice::Iter<'a, Cell>>) -> Option<&'a Cell> {
    queue.lock().unwrap().next()
}

/// What is to be played. A program that is missing is an error: nothing is skipped in silence.
fn cells(table: &Table, which: &str) -> Vec<Cell> {
    let is_chosen = |program: &Program, row: &Row| match which {
        "all" => true,
        "gate" => row.is_in_gate,
        names => names.split(',').any(|name| name == program.name),
    };
    let mut cells = Vec::new();
    for program in PROGRAMS {
        let row = &table.rows[program.name];
        if !is_chosen(program, row) {
            continue;
        }
        assert!(is_installed(program), "{} is not installed ({})", program.tool, program.name);
        for (situation, expected) in SITUATIONS.into_iter().zip(&row.expected) {
            if let Some(expected) = expected.clone() {
                cells.push(Cell { program, situation, expected });
            }
        }
    }
    assert!(!cells.is_empty(), "no program is called {which}");
    cells
}

/// What is wrong with a cell. The first expected word must come, and come first; the others may follow.
fn complaints(cell: &Cell, played: &Played) -> Vec<String> {
    let name = format!("{} {}", cell.program.name, cell.situation.label());
    let mut wrong = Vec::new();
    let words: Vec<&str> = played.words.iter().map(|(word, _)| &**word).collect();
    let main = cell.expected.first().copied();
    if words.first().copied() != main {
        wrong.push(format!("{name}: expected {main:?} first, found {:?}", played.words));
    }
    let strange: Vec<&&str> = words.iter().filter(|word| !cell.expected.contains(word)).collect();
    if !strange.is_empty() && words.first().copied() == main {
        wrong.push(format!("{name}: {strange:?} besides, of {:?}", played.words));
    }
    for advice in cell.program.advice(cell.situation) {
        if main.is_some() && words.first().copied() == main && !played.explained.contains(advice) {
            wrong.push(format!("{name}: no {advice:?} in:\n{}", played.explained));
        }
    }
    wrong.extend(played.problem.iter().map(|problem| format!("{name}: {problem}")));
    wrong
}

fn print(results: &[(&Cell, Played)]) {
    let heading = SITUATIONS.map(|situation| format!("{:<22}", situation.label())).concat();
    println!("{:<18}{heading}", "server");
    for program in PROGRAMS {
        let of = |situation| {
            let is_it = |(cell, _): &&(&Cell, Played)| {
                cell.program.name == program.name && cell.situation == situation
            };
            results.iter().find(is_it).map(|(cell, played)| (*cell, played))
        };
        if SITUATIONS.into_iter().all(|situation| of(situation).is_none()) {
            continue;
        }
        let row = SITUATIONS.map(|situation| match of(situation) {
            None => format!("{:<22}", "-"),
            Some((cell, played)) => format!("{:<22}", written(cell, played)),
        });
        println!("{:<18}{}", program.name, row.concat().trim_end());
    }
}

/// The first word and the seconds to it, and a mark where the cell is wrong.
fn written(cell: &Cell, played: &Played) -> String {
    let mark = if complaints(cell, played).is_empty() { "" } else { " WRONG" };
    match played.words.first() {
        None => format!("none{mark}"),
        Some((word, after)) => format!("{word} {after:.0}s{mark}"),
    }
}
