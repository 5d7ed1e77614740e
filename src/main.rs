//! The program: reads the command line, runs one command, says in one line what went wrong.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use listenq::cli::{Cli, Command};
use listenq::sampler::publish::Published;
use listenq::sampler::{Config, Sampler};
use listenq::{exposition, list, log, serve};

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    log::init(cli.log).context("starting the log")?;
    raise_descriptor_limit();
    let mut config = cli.sampling.config();
    if cli.command.is_some() {
        // The cap is for series that are kept: whoever looks once sees all.
        config.state.max_listeners = usize::MAX;
    }
    match cli.command {
        None => serve::run(&config, &cli.web),
        Some(Command::Metrics) => {
            let sample = sample_once(&config)?;
            let text = exposition::render(&sample.view, sample.age())?;
            Ok(io::stdout().write_all(text.as_bytes())?)
        }
        Some(Command::List { json }) => {
            let sample = sample_once(&config)?;
            let rows = list::rows(&sample.view);
            let out = io::stdout().lock();
            let is_terminal = out.is_terminal();
            let written = match json {
                true => list::write_json(&rows, out),
                false => list::write_table(&rows, is_terminal, out),
            };
            Ok(written?)
        }
    }
}

/// Each namespace takes eight descriptors: the soft limit, kept low for `select(2)`, is not meant for that.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the soft limit on descriptors stays as it is");
    }
}

fn sample_once(config: &Config) -> Result<Arc<Published>> {
    let mut sampler = Sampler::new(config).context("is --path.procfs right?")?;
    sampler.sample_all();
    match sampler.reader().read() {
        Some(published) if published.view.is_ready(published.age()) => Ok(published),
        _ => bail!("the kernel gave no listeners; the reason is in the log line above"),
    }
}

/// Help and version are no errors; anything else is one line and exit status 64.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let from = variable_of(error).map(|name| format!(" from {name}")).unwrap_or_default();
    let allowed = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => format!(": not {}", values.join(" or ")),
        _ => String::new(),
    };
    say(&format!("{first}{allowed}{from} (see listenq --help)"));
    ExitCode::from(USAGE)
}

/// The environment variable that a bad value came from, if it did not stand on the command line.
fn variable_of(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let flag = argument.split_whitespace().next()?;
    let stands_there = |given: OsString| {
        let given = given.to_string_lossy();
        given == flag || given.starts_with(&format!("{flag}="))
    };
    if std::env::args_os().any(stands_there) {
        return None;
    }
    let command = Cli::command();
    let mut arguments = command.get_arguments();
    let argument = arguments.find(|argument| argument.get_long() == flag.strip_prefix("--"))?;
    argument.get_env().map(|name| name.to_string_lossy().into_owned())
}

/// Where standard error is gone there is nobody left to tell.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "listenq: {line}");
}

/// Somebody read as much as they wanted: `listenq list | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
