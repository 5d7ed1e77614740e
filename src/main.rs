//! The program: parses the command line, runs one command, reports an error in one line.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

use listenq::cli::{Ask, Cli, Command};
use listenq::sampler::Config;
use listenq::terminal::source::{self, Feed, Known, Sampling};
use listenq::terminal::target::narrow;
use listenq::terminal::{check, explain, has_colours, list, watch};
use listenq::{exposition, log, remote, serve, web_config};

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;
/// The context of an error of standard output.
const WRITING: &str = "writing standard output";

fn main() -> ExitCode {
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches)?;
        Ok((cli, matches.value_source("level") == Some(ValueSource::DefaultValue)))
    });
    let (cli, is_default_level) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error),
    };
    match run(&cli, is_default_level) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}"), ExitCode::FAILURE),
    }
}

/// Reports an error. A plugin writes "unknown" to standard output and ends with its own exit
/// status.
fn fail(line: &str, code: ExitCode) -> ExitCode {
    if !is_plugin() {
        say(line);
        return code;
    }
    // If standard output is closed, there is nowhere left to write the error.
    let _ = check::write_unknown(line, &mut io::stdout());
    ExitCode::from(check::Level::Unknown as u8)
}

/// Whether the first command on the command line is `check`, even if the command line is invalid.
fn is_plugin() -> bool {
    let command = Cli::command();
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.find(|argument| {
        argument.to_str().is_some_and(|argument| command.find_subcommand(argument).is_some())
    });
    first.is_some_and(|name| name == "check")
}

/// Runs the command. Commands whose text is for people print no log lines unless a level is given.
fn run(cli: &Cli, is_default_level: bool) -> Result<ExitCode> {
    raise_capabilities();
    let Some(command) = &cli.command else { return serve(cli) };
    if !(is_for_people(command) && is_default_level) {
        log::start_plainly(cli.log)?;
    }
    raise_descriptor_limit();
    let (config, control) = (without_caps(cli.sampling.config()), cli.control.path());
    let report = |ask: &Ask, sampling| source::report(ask, control, &config, sampling);
    match command {
        Command::Metrics => metrics(&config)?,
        Command::List { target, watch: true, ask, .. } => {
            watch::run(Feed::new(ask, control, &config), target.clone())?;
        }
        Command::List { target, json, ask, .. } => {
            let known = report(ask, Sampling::Once)?;
            list(&narrow(known, target.as_deref())?, *json)?;
        }
        Command::Explain { target, json, watch } => {
            let known = report(&watch.ask, Sampling::For(watch.duration))?;
            explain(&known, target.as_deref(), *json)?;
        }
        Command::Check { target, watch } => {
            let known = report(&watch.ask, Sampling::For(watch.duration))?;
            return check(&narrow(known, target.as_deref())?);
        }
        Command::CheckWebConfig { file } => check_web_config(file)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the command writes text for people.
fn is_for_people(command: &Command) -> bool {
    matches!(command, Command::List { .. } | Command::Explain { .. } | Command::Check { .. })
}

/// Removes the caps from the configuration: they limit the series that a daemon keeps, and a
/// command shows all listeners.
fn without_caps(mut config: Config) -> Config {
    config.state.max_listeners = usize::MAX;
    config.state.max_namespaces = usize::MAX;
    config.state.max_sockets = usize::MAX;
    config
}

/// Serves until a signal. The last messages go through the log: a pipe without a reader must not
/// block the exit.
fn serve(cli: &Cli) -> Result<ExitCode> {
    let outlet = log::start(cli.log)?;
    raise_descriptor_limit();
    let served = serve::run(&cli.sampling.config(), &cli.web, cli.control.path());
    if let Err(error) = &served {
        let line = format!("listenq: {error:#}\n");
        (&*outlet).write_all(line.as_bytes()).context("writing the error to the log")?;
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
    let listeners = &known.report.listeners;
    let written = match json {
        true => list::write_json(listeners, out),
        false => list::write_table(listeners, has_colours(), out),
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

/// Writes the result as a Nagios plugin does, and returns the exit status.
fn check(known: &Known) -> Result<ExitCode> {
    let level = check::write(known, &mut io::stdout().lock()).context(WRITING)?;
    Ok(ExitCode::from(level as u8))
}

fn check_web_config(file: &Path) -> Result<()> {
    web_config::check(file)?;
    writeln!(io::stdout(), "{} is good", file.display()).context(WRITING)
}

/// Raises the soft descriptor limit: each namespace takes eleven descriptors. The soft limit is low
/// for the sake of `select(2)`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the soft descriptor limit could not be raised");
    }
}

/// Raises the permitted capabilities to effective. The program file of the image only permits
/// capabilities: with effective ones it would not start in a container that may not have them. Must
/// run while there is only one thread. On failure, the features report what is missing.
fn raise_capabilities() {
    if let Ok(sets) = capabilities(None) {
        let _ = set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets });
    }
}

/// Ends with the message of clap: help and version are not errors; anything else is one line and
/// exit status 64, or 3 for a plugin.
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

/// Formats the error in one line with argument and value, without a password.
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

/// The environment variable of a bad value, if the value is not from the command line.
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

/// Writes a line to standard error. If standard error is closed, there is nowhere left to write.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "listenq: {line}");
}

/// Whether the reader closed the pipe early, as in `listenq list | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
