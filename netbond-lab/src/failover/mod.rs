//! `netbond-lab failover`: how long a path's failure hurts the traffic over the bond, for netbond and
//! for what is there without it.

mod case;
mod measure;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::ValueEnum as _;

pub use case::{Failure, System};
pub use report::{Report, Row, Spread};

use crate::lab::Lab;
use crate::machine::save;
use crate::wait::check_interrupt;
use report::name;

/// TCP streams measured for each failure.
const TCP_RUNS: u32 = 3;

/// A failure that took the lab longer to make is made again: the machine was busy with other things,
/// and what the system did meanwhile cannot be told from it.
const SUDDEN: Duration = Duration::from_millis(50);

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's name.
    pub name: String,
    /// Only these systems; all where none is named.
    pub systems: Vec<System>,
    /// Only these failures; all where none is named.
    pub failures: Vec<Failure>,
    /// Outages for each.
    pub runs: Option<u32>,
    /// netbond alone, few runs.
    pub quick: bool,
    /// Where to keep what there is so far, as JSON.
    pub save: Option<PathBuf>,
}

impl Options {
    fn systems(&self) -> Vec<System> {
        match (self.systems.as_slice(), self.quick) {
            ([], true) => vec![System::Netbond],
            ([], false) => System::value_variants().to_vec(),
            (chosen, _) => chosen.to_vec(),
        }
    }

    fn failures(&self) -> Vec<Failure> {
        match self.failures.as_slice() {
            [] => Failure::value_variants().to_vec(),
            chosen => chosen.to_vec(),
        }
    }

    fn runs(&self, system: System, failure: Failure) -> u32 {
        match (self.runs, self.quick) {
            (Some(runs), _) => runs,
            (None, false) => system.runs(failure),
            (None, true) => system.runs(failure).div_ceil(10),
        }
    }
}

/// Measures, and says on standard error how far it is. What went wrong is the second of the results:
/// the others are still worth having.
pub fn run(options: &Options) -> Result<(Report, Vec<anyhow::Error>)> {
    let mut report = Report::new();
    let mut problems = Vec::new();
    for system in options.systems() {
        let mut lab = None;
        for failure in options.failures() {
            let runs = options.runs(system, failure);
            let result = case(&options.name, &mut lab, system, failure, runs);
            check_interrupt()?;
            report.wireguard = lab.as_ref().map(Lab::wireguard).or(report.wireguard);
            match result {
                Ok(row) => report.results.push(row),
                Err(error) => {
                    let error = error.context(format!("{}, {}", name(&system), name(&failure)));
                    eprintln!("{error:#}");
                    problems.push(error);
                    // Whatever state it is in.
                    lab = None;
                }
            }
            save(&report, options.save.as_deref())?;
        }
    }
    Ok((report, problems))
}

/// One system and one failure; the lab stays for the next.
fn case(
    lab_name: &str,
    lab: &mut Option<Lab>,
    system: System,
    failure: Failure,
    runs: u32,
) -> Result<Row> {
    let lab = match lab {
        Some(lab) => lab,
        None => {
            eprintln!("{}: building lab {lab_name} ...", name(&system));
            lab.insert(Lab::up(lab_name, &system.topology())?)
        }
    };
    let title = format!("{} {}", name(&system), name(&failure));
    measure::prepare(lab, failure)?;
    let mut samples = Vec::new();
    let mut discarded = 0;
    while samples.len() < runs as usize {
        let turn = samples.len() as u32;
        if failure.is_damped() && turn > 0 {
            measure::prepare(lab, failure)?;
        }
        let sample = measure::outage(lab, system, failure, turn)?;
        if failure.is_sudden() && sample.applied.is_some_and(|time| time > SUDDEN) {
            ensure!(discarded <= runs, "this machine is too busy to measure");
            discarded += 1;
            eprintln!(
                "{title}: the lab took {} ms to make the failure, which tells nothing; again",
                sample.applied.unwrap_or_default().as_millis()
            );
            continue;
        }
        let back = sample.returned.map_or_else(String::new, |time| {
            format!(", back after {} ms", time.as_millis())
        });
        eprintln!(
            "{title} {}/{runs}: {} ms{}, {} of {} lost{back}",
            turn + 1,
            sample.last.as_millis(),
            if sample.ended { "" } else { " and no end" },
            sample.window.lost,
            sample.window.sent,
        );
        samples.push(sample);
    }
    let mut shares = Vec::new();
    // With no path left there is nothing to compare with.
    if failure != Failure::Both {
        let baseline = measure::baseline(lab)?;
        for turn in 0..runs.min(TCP_RUNS) {
            if failure.is_damped() {
                measure::prepare(lab, failure)?;
            }
            let rate = measure::goodput(lab, failure, turn)?;
            eprintln!(
                "{title}: {rate:.0} Mbit/s in the second after it, {baseline:.0} on one path alone"
            );
            ensure!(baseline > 0.0, "one path alone carries nothing");
            shares.push(rate / baseline);
        }
    }
    Ok(Row::new(system, failure, &samples, discarded, &shares))
}

/// Lets time pass while traffic runs.
fn pause(time: Duration) -> Result<()> {
    pause_until(Instant::now() + time)
}

fn pause_until(end: Instant) -> Result<()> {
    /// How soon an interrupt is seen.
    const NAP: Duration = Duration::from_millis(20);
    loop {
        check_interrupt()?;
        match end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return Ok(()),
            rest => std::thread::sleep(rest.min(NAP)),
        }
    }
}
