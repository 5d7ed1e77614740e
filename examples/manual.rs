//! Writes the man pages and the shell completions into a directory, from the definition of the
//! command line: `cargo run --example manual -- DIRECTORY`. Packages contain these files; the
//! daemon does not need the code that writes them.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use listenq::cli::Cli;

fn main() -> Result<()> {
    let directory: PathBuf = env::args_os().nth(1).context("which directory?")?.into();
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    // The revision would make every page a new one.
    let command = Cli::command().version(listenq::VERSION);
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command.clone(), "listenq", &directory)
            .with_context(|| format!("writing completions for {shell}"))?;
    }
    // `help` needs no pages of its own.
    clap_mangen::generate_to(command.disable_help_subcommand(true), &directory)
        .context("writing the man pages")
}
