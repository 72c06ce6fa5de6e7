//! The command line: one verb, one file.

mod check;
mod detach;
mod discover;
mod events;
mod format;
mod generate;
mod init;
mod maps;
mod merit;
mod output;
mod path;
mod reload;
mod run;
mod status;
mod table;
mod top;
mod why;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::pins::Pins;

/// Bonds several WireGuard paths between two routers into one link.
#[derive(Debug, Parser)]
#[command(name = "netbond", version, about, max_term_width = 100)]
struct Cli {
    /// Where maps and programs are pinned
    #[arg(long, global = true, env = "NETBOND_PIN_ROOT", default_value = netbond_common::names::PIN_ROOT)]
    pin_root: PathBuf,
    #[command(subcommand)]
    command: Command,
}

/// The configuration file that is read where none is named.
const CONFIG_FILE: &str = "/etc/netbond/netbond.toml";

/// The configuration file, as each verb that reads it takes it.
#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// Configuration file
    #[arg(
        short = 'c',
        long = "config",
        value_name = "FILE",
        default_value = CONFIG_FILE
    )]
    path: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller until it is told to stop; packets pass on after it
    Run(run::Args),
    /// Write the configuration that takes the place of a bond made by hand, and say what changes
    Init(init::Args),
    /// Find the link-disjoint paths to a peer in OSPF's database, and write the configuration
    Discover(discover::Args),
    /// Have the controller read its configuration file: all of it is taken over, or nothing
    Reload,
    /// Find what is wrong with a configuration file, this host and its bonds, and say what to do
    Check(check::Args),
    /// Show every bond and path
    Status(status::Args),
    /// Show live what the paths carry; take paths out and back, change weights and modes
    Top,
    /// Say why a path is as it is
    Why(why::Args),
    /// Show what the controller saw and did
    Events(events::Args),
    /// Look into the pinned maps
    #[command(subcommand)]
    Maps(maps::Command),
    /// List paths, take one out, take it back in
    #[command(subcommand)]
    Path(path::Command),
    /// Remove programs, maps and bond devices: the bonds are gone
    Detach,
    /// Write the manual pages and the shells' completions
    #[command(hide = true)]
    Generate(generate::Args),
}

/// Runs the command line; exit codes are 0 for success, 1 for a failure, 2 for wrong usage.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.run() {
        Ok(code) => code,
        // The reader of our output went away, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netbond: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn run(self) -> Result<ExitCode> {
        let pins = Pins::new(self.pin_root);
        match self.command {
            Command::Run(args) => run::run(args, pins),
            Command::Reload => reload::run(&pins, controllers_file),
            Command::Init(args) => init::run(&args),
            Command::Discover(args) => discover::run(&args, &pins),
            Command::Check(args) => check::run(&args, &pins),
            Command::Status(args) => status::run(&args, &pins),
            Command::Top => top::run(pins, controllers_file),
            Command::Why(args) => why::run(&args, &pins),
            Command::Events(args) => events::run(&args, &pins),
            Command::Maps(command) => maps::run(&command, &pins),
            Command::Path(command) => path::run(&command, &pins),
            Command::Detach => detach::run(&pins),
            Command::Generate(args) => generate::run(&args, Cli::command()),
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

/// The configuration file of a controller with these words on its command line; `None` where they run
/// none.
fn controllers_file(words: Vec<OsString>) -> Option<PathBuf> {
    let cli = Cli::try_parse_from(words).ok()?;
    if let Command::Run(args) = cli.command {
        Some(args.config.path)
    } else {
        None
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controllers_file_is_told_from_its_words() {
        let file = |words: &str| controllers_file(words.split(' ').map(Into::into).collect());
        let [own, usual] = ["x.toml", "/etc/netbond/netbond.toml"].map(PathBuf::from);
        assert_eq!(file("netbond run -c x.toml"), Some(own.clone()));
        assert_eq!(file("/opt/nb --pin-root /p run --config=x.toml"), Some(own));
        assert_eq!(file("netbond run"), Some(usual));
        for other in ["netbond check -c x.toml", "sleep 1000", ""] {
            assert_eq!(file(other), None, "{other}");
        }
    }
}
