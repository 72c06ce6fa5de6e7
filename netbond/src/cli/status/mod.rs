//! `netbond status`.

mod text;
mod watch;

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::{
    pins::Pins,
    status::{self, Status},
    tables::Tables,
};

/// Over how long rates are taken where they are printed for people, once.
const ONCE: Duration = Duration::from_millis(500);
/// The same, again and again.
const WATCH: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// All of this bond; without it, all of the one that there is, or of several the most important
    bond: Option<String>,
    /// All of every bond
    #[arg(long, conflicts_with = "bond")]
    all: bool,
    /// Print JSON (docs/status.md tells of each field); with --watch an object a line
    #[arg(long)]
    json: bool,
    /// Repeat, in place on a terminal, until interrupted
    #[arg(short, long)]
    watch: bool,
    /// Over how many seconds to take the rates [default: 0.5; with --watch 1; with --json alone they are
    /// not taken]
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    interval: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) | Err(_) => bail!("write a number from 0.05 to 3600"),
    }
}

impl Args {
    /// Over how long rates are taken; `None`: not at all.
    fn interval(&self) -> Option<Duration> {
        self.interval.or(match (self.watch, self.json) {
            (true, _) => Some(WATCH),
            (false, false) => Some(ONCE),
            (false, true) => None,
        })
    }
}

pub(super) fn run(args: &Args, pins: &Pins) -> Result<()> {
    let mut out = anstream::stdout().lock();
    if args.watch {
        return watch::run(args, pins, &mut out);
    }
    let mut status = read(args, pins)?;
    if let Some(interval) = args.interval() {
        std::thread::sleep(interval);
        let before = status;
        status = read(args, pins)?;
        status::rates(&before, &mut status);
    }
    if args.json {
        serde_json::to_writer_pretty(&mut out, &status)?;
        writeln!(out)?;
        return Ok(());
    }
    Ok(write!(out, "{}", text::render(&status, args.all))?)
}

/// What is asked for. The maps are opened each time: they may be others by then.
fn read(args: &Args, pins: &Pins) -> Result<Status> {
    let mut status = status::collect(&Tables::open(pins)?, pins)?;
    if let Some(name) = &args.bond {
        status.bond(name)?;
        status.bonds.retain(|bond| bond.name == *name);
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_seconds() {
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
        for wrong in ["0", "-1", "1e9", "NaN", "1s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
