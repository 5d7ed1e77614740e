//! The program: reads the command line, runs one command, says in one line what went wrong.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

use listenq::cli::{Cli, Command};
use listenq::sampler::Config;
use listenq::terminal::source::{self, Known, Sampling};
use listenq::terminal::{check, explain, list};
use listenq::{exposition, log, remote, serve, web_config};

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;
/// What was under way when standard output failed.
const WRITING: &str = "writing standard output";

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(&cli) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}"), ExitCode::FAILURE),
    }
}

/// A plugin says on standard output that it does not know, and ends with its own status for that.
fn fail(line: &str, code: ExitCode) -> ExitCode {
    if !is_plugin() {
        say(line);
        return code;
    }
    // Where standard output is gone nobody is left to tell.
    let _ = check::write_unknown(line, &mut io::stdout());
    ExitCode::from(check::Level::Unknown as u8)
}

/// Whether the first command on the command line is `check`, though the line may be wrong.
fn is_plugin() -> bool {
    let command = Cli::command();
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.find(|argument| {
        argument.to_str().is_some_and(|argument| command.find_subcommand(argument).is_some())
    });
    first.is_some_and(|name| name == "check")
}

fn run(cli: &Cli) -> Result<ExitCode> {
    raise_capabilities();
    let Some(command) = &cli.command else { return serve(cli) };
    log::start_plainly(cli.log)?;
    raise_descriptor_limit();
    let mut config = cli.sampling.config();
    // The cap is for series that are kept: whoever looks once sees all.
    config.state.max_listeners = usize::MAX;
    config.state.max_namespaces = usize::MAX;
    config.state.max_sockets = usize::MAX;
    let control = cli.control.path();
    match command {
        Command::Metrics => metrics(&config)?,
        Command::List { json, ask } => {
            list(&source::report(ask, control, &config, Sampling::Once)?, *json)?;
        }
        Command::Explain { target, json, watch } => {
            let sampling = Sampling::For(watch.duration);
            explain(
                &source::report(&watch.ask, control, &config, sampling)?,
                target.as_deref(),
                *json,
            )?;
        }
        Command::Check { watch } => {
            let sampling = Sampling::For(watch.duration);
            let known = source::report(&watch.ask, control, &config, sampling)?;
            let level = check::write(&known, &mut io::stdout().lock()).context(WRITING)?;
            return Ok(ExitCode::from(level as u8));
        }
        Command::CheckWebConfig { file } => {
            web_config::check(file)?;
            writeln!(io::stdout(), "{} is good", file.display()).context(WRITING)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves until told to stop. What it says last goes the way of the log: a pipe that nobody reads must not keep it
/// from its end.
fn serve(cli: &Cli) -> Result<ExitCode> {
    let outlet = log::start(cli.log)?;
    raise_descriptor_limit();
    let served = serve::run(&cli.sampling.config(), &cli.web, cli.control.path());
    if let Err(error) = &served {
        let line = format!("listenq: {error:#}\n");
        (&*outlet).write_all(line.as_bytes()).context("saying what failed")?;
    }
    outlet.finish();
    Ok(if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn metrics(config: &Config) -> Result<()> {
    let sample = source::sample_once(config)?;
    let text = exposition::render(&sample.view, sample.age())?;
    io::stdout().write_all(text.as_bytes()).context(WRITING)
}

fn list(known: &Known, json: bool) -> Result<()> {
    say(&known.origin);
    let out = io::stdout().lock();
    let (listeners, is_terminal) = (&known.report.listeners, out.is_terminal());
    let written = match json {
        true => list::write_json(listeners, out),
        false => list::write_table(listeners, is_terminal, out),
    };
    written.context(WRITING)
}

fn explain(known: &Known, target: Option<&str>, json: bool) -> Result<()> {
    let chosen = explain::chosen(known, target)?;
    let out = io::stdout().lock();
    let written = match json {
        true => {
            say(&known.origin);
            explain::write_json(&chosen, out)
        }
        false => explain::write_text(known, &chosen, out),
    };
    written.context(WRITING)
}

/// Each namespace takes eleven descriptors: the soft limit, kept low for `select(2)`, is not meant for that.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the soft limit on descriptors stays as it is");
    }
}

/// The image's program file permits capabilities without putting them into force: otherwise it would not even start
/// where a container may not have them. This must run while there is only one thread. Where it fails, what is missing for it
/// is said of the features.
fn raise_capabilities() {
    if let Ok(sets) = capabilities(None) {
        let _ = set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets });
    }
}

/// Help and version are no errors; anything else is one line and exit status 64, or 3 for a plugin.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let from = variable_of(error).map(|name| format!("from {name}; ")).unwrap_or_default();
    let line = format!("{} ({from}see listenq --help)", what_is_wrong(error));
    fail(&line, ExitCode::from(USAGE))
}

/// The error in one line that names argument and value, and holds no password.
fn what_is_wrong(error: &clap::Error) -> String {
    let strings = |kind| match error.get(kind) {
        Some(ContextValue::Strings(values)) => values.clone(),
        Some(ContextValue::String(value)) => vec![value.clone()],
        _ => Vec::new(),
    };
    if error.kind() == ErrorKind::MissingRequiredArgument {
        return format!("{} is missing", strings(ContextKind::InvalidArg).join(", "));
    }
    let mut text = error.to_string();
    let values = strings(ContextKind::InvalidValue);
    for given in values.iter().chain(&strings(ContextKind::InvalidArg)) {
        if given.contains('@') {
            text = text.replace(given, &remote::masked(given));
        }
    }
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let allowed = strings(ContextKind::ValidValue).join(" or ");
    match (allowed.is_empty(), values.iter().all(String::is_empty)) {
        (true, _) => first.into(),
        (false, true) => format!("{first}: {allowed}"),
        (false, false) => format!("{first}: not {allowed}"),
    }
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
    let of_commands = command.get_subcommands().flat_map(|command| command.get_arguments());
    let mut arguments = command.get_arguments().chain(of_commands);
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
