//! `netbond check`.

use std::io::Write as _;

use anyhow::{Result, bail};

use super::ConfigFile;
use crate::{check, config::Config, pins::Pins};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn run(args: &Args, pins: &Pins) -> Result<()> {
    let config = Config::load(&args.config.path)?;
    let mut out = std::io::stdout().lock();
    let mut problems = 0;
    for problem in check::host(&config)? {
        writeln!(
            out,
            "{}:{}: {}",
            args.config.path.display(),
            problem.line,
            problem.message
        )?;
        problems += 1;
    }
    for warning in check::warnings(&config) {
        writeln!(
            out,
            "{}:{}: warning: {}",
            args.config.path.display(),
            warning.line,
            warning.message
        )?;
    }
    for ability in check::abilities(pins) {
        match ability.result {
            Ok(found) => writeln!(out, "{}: {found}", ability.name)?,
            Err(missing) => {
                writeln!(out, "{}: MISSING: {missing}", ability.name)?;
                problems += 1;
            }
        }
    }
    if problems != 0 {
        bail!(
            "{problems} problem{} found",
            if problems == 1 { "" } else { "s" }
        );
    }
    let paths: usize = config.bonds.iter().map(|bond| bond.paths.len()).sum();
    writeln!(
        out,
        "{}: {} bonds, {paths} paths: good",
        args.config.path.display(),
        config.bonds.len()
    )?;
    Ok(())
}
