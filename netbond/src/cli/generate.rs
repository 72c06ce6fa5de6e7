//! `netbond generate`: what a package ships beside the program, from the definitions behind `--help`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap_complete::Shell;
use clap_mangen::Man;

/// For administrators: man-pages(7).
const SECTION: &str = "8";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to: made if it is not there
    dir: PathBuf,
}

pub(super) fn run(args: &Args, command: clap::Command) -> Result<()> {
    let dir = &args.dir;
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let mut command = command.disable_help_subcommand(true);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "netbond", dir)
            .with_context(|| format!("writing the completions for {shell}"))?;
    }
    // Arguments that all verbs take, and whole names of verbs.
    command.build();
    write_pages(&command, dir)
}

/// A page for the command and for each of its verbs.
fn write_pages(command: &clap::Command, dir: &Path) -> Result<()> {
    let page = Man::new(command.clone()).section(SECTION);
    page.generate_to(dir)
        .with_context(|| format!("writing the manual page of {}", command.get_name()))?;
    let verbs = command.get_subcommands();
    verbs
        .filter(|verb| !verb.is_hide_set())
        .try_for_each(|verb| write_pages(verb, dir))
}
