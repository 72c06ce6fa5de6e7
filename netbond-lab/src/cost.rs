//! `cargo xtask bench cost`: what the controller costs, by the number of paths it probes.
//!
//! Two routers, joined by up to sixteen plain Ethernet links (WireGuard in user space would be the
//! only thing measured), with a netbond at each that answers the other's probes. Both share the
//! machine. The kernel delivers a probe over a veth pair, and has the other end's program answer it,
//! within the system call that sends it: a part of that work, which on a network is done elsewhere,
//! is in the sender's system time.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::daemon::{PathStatus, Status};
use crate::lab::{Lab, Options};
use crate::machine::{Machine, Used, resident, used};
use crate::plain;
use crate::router::Router;
use crate::wait::{check_interrupt, wait_for};

/// Paths of a bond, and links between the routers, at the most.
const SIZE: u16 = 16;

/// The thread of netbond that probes.
const PROBER: &str = "prober";

/// How long all paths may take to come up.
const START: Duration = Duration::from_secs(120);

/// Between two looks at the paths while they come up: each costs a core some milliseconds.
const LOOK: Duration = Duration::from_millis(250);

/// From when all paths are up until measuring begins.
const SETTLE: Duration = Duration::from_secs(3);

/// All figures.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where they were measured.
    #[serde(flatten)]
    pub machine: Machine,
    /// For how long each.
    pub seconds: f64,
    /// For each number of paths, each of the two routers.
    pub rows: Vec<Row>,
}

/// What one controller did and cost.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Paths that it probes.
    pub paths: u16,
    /// The router it is in.
    pub router: String,
    /// From the start of the program until the last path was up first, seconds.
    pub start_s: f64,
    /// Share of one core, the whole process.
    pub cpu: f64,
    /// Of it: the thread that probes, outside and inside the kernel.
    pub prober_user: f64,
    /// See `prober_user`.
    pub prober_system: f64,
    /// Of `cpu`: all other threads.
    pub rest: f64,
    /// Share of the time in which the probing thread was ready to run and had no core.
    pub prober_waited: f64,
    /// Memory, bytes.
    pub resident: u64,
    /// Requests sent, a second.
    pub probes_per_s: f64,
    /// Share of the requests without an answer.
    pub unanswered: f64,
    /// Paths that left `up`, while measuring or between their start and that.
    pub left_up: usize,
}

/// Measures each of these numbers of paths for `time`, in a lab called `name`. Says on standard
/// error what it is doing.
pub fn run(name: &str, paths: &[u16], time: Duration) -> Result<Report> {
    let mut rows = Vec::new();
    for &paths in paths {
        rows.extend(measure(name, paths, time).with_context(|| format!("with {paths} paths"))?);
    }
    Ok(Report {
        machine: Machine::this(),
        seconds: time.as_secs_f64(),
        rows,
    })
}

fn measure(name: &str, paths: u16, time: Duration) -> Result<Vec<Row>> {
    eprintln!("{paths} paths: building two routers ...");
    let options = Options {
        bird: false,
        netbond: false,
        ..Options::default()
    };
    let lab = Lab::up_with(name, &plain::topology(), options)?;
    let (a, b) = (lab.router("A"), lab.router("B"));
    plain::lay_links(a, b, paths, SIZE)?;
    a.write_config(&plain::config(paths, SIZE, false, ""))?;
    b.write_config(&plain::config(paths, SIZE, true, ""))?;

    eprintln!("{paths} paths: starting netbond, waiting for all paths ...");
    let mut ends = Vec::new();
    for router in [a, b] {
        ends.push((router, SystemTime::now()));
        router.start_netbond()?;
    }
    let mut starts = Vec::new();
    for (router, started) in ends {
        let up = wait_up(router, paths)?;
        let last = up.values().copied().fold(0.0, f64::max);
        let start = last - started.duration_since(UNIX_EPOCH)?.as_secs_f64();
        starts.push((router, start, up));
    }
    pause(SETTLE)?;

    eprintln!("{paths} paths: measuring for {} s ...", time.as_secs());
    let before: Vec<Sample> = starts
        .iter()
        .map(|(router, ..)| Sample::take(router))
        .collect::<Result<_>>()?;
    pause(time)?;
    let after: Vec<Sample> = starts
        .iter()
        .map(|(router, ..)| Sample::take(router))
        .collect::<Result<_>>()?;
    let mut rows = Vec::new();
    for ((router, start_s, up), (before, after)) in
        starts.into_iter().zip(before.iter().zip(&after))
    {
        let still: Vec<PathStatus> = paths_of(router.netbond_status()?);
        let stayed = |path: &&PathStatus| {
            path.state == "up"
                && up
                    .get(&path.name)
                    .is_some_and(|since| *since == path.changed)
        };
        let row = Row {
            paths,
            router: router.name().to_owned(),
            start_s,
            left_up: up.len() - still.iter().filter(stayed).count(),
            ..before.until(after)
        };
        rows.push(row);
    }
    lab.down()?;
    Ok(rows)
}

/// Waits until all paths are up; since when each is, in seconds since 1970.
fn wait_up(router: &Router, paths: u16) -> Result<BTreeMap<String, f64>> {
    let what = format!("{paths} paths up in router {}", router.name());
    wait_for(&what, START, || {
        std::thread::sleep(LOOK);
        let up: BTreeMap<String, f64> = paths_of(router.netbond_status()?)
            .into_iter()
            .filter(|path| path.state == "up")
            .map(|path| (path.name, path.changed))
            .collect();
        ensure!(up.len() == usize::from(paths), "{} are up", up.len());
        Ok(Some(up))
    })
    .with_context(|| crate::daemon::last_lines(&router.netbond_log(), 5))
}

fn paths_of(status: Status) -> Vec<PathStatus> {
    let bonds = status.bonds.into_iter();
    bonds.flat_map(|bond| bond.paths).collect()
}

fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        check_interrupt()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Where the counters of a controller stood.
struct Sample {
    at: Instant,
    prober: Used,
    rest: Used,
    resident: u64,
    sent: u64,
    answered: u64,
}

impl Sample {
    fn take(router: &Router) -> Result<Self> {
        let (sent, answered) = probes(router)?;
        let pid: Pid = router.netbond_pid().context("netbond was not started")?;
        let (prober, rest) = used(pid, PROBER)?;
        Ok(Self {
            at: Instant::now(),
            prober,
            rest,
            resident: resident(pid)?,
            sent,
            answered,
        })
    }

    /// What was done and used from here to `later`.
    fn until(&self, later: &Self) -> Row {
        let seconds = (later.at - self.at).as_secs_f64();
        let (prober, rest) = (later.prober - self.prober, later.rest - self.rest);
        let sent = later.sent - self.sent;
        // Those under way at the start and at the end are about as many.
        let unanswered = sent as f64 - (later.answered - self.answered) as f64;
        Row {
            paths: 0,
            router: String::new(),
            start_s: 0.0,
            cpu: (prober.user + prober.system + rest.user + rest.system) / seconds,
            prober_user: prober.user / seconds,
            prober_system: prober.system / seconds,
            rest: (rest.user + rest.system) / seconds,
            prober_waited: prober.waited / seconds,
            resident: later.resident,
            probes_per_s: sent as f64 / seconds,
            unanswered: (unanswered / sent as f64).max(0.0),
            left_up: 0,
        }
    }
}

/// Requests sent and answers accepted so far, all paths together.
fn probes(router: &Router) -> Result<(u64, u64)> {
    #[derive(Deserialize)]
    struct Dump {
        #[serde(rename = "LIVE")]
        live: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        value: Live,
    }
    #[derive(Deserialize)]
    struct Live {
        sequence: u64,
        answers_seen: u64,
    }

    let text = router.run(&["netbond", "maps", "dump", "LIVE", "--json"])?;
    let dump: Dump = serde_json::from_str(&text)
        .with_context(|| format!("cannot read the counters of router {}", router.name()))?;
    Ok(dump
        .live
        .iter()
        .map(|entry| (entry.value.sequence, entry.value.answers_seen))
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { kernel, cpu, cores } = &self.machine;
        writeln!(
            f,
            "Linux {kernel}, {cpu}, {cores} cores shared by both routers; {:.0} s each\n",
            self.seconds
        )?;
        writeln!(
            f,
            "{:>5}  {:<6}{:>9}{:>8}{:>14}{:>13}{:>8}{:>10}{:>10}{:>10}{:>12}{:>9}",
            "PATHS",
            "ROUTER",
            "START s",
            "CPU %",
            "PROBER USER",
            "PROBER SYS",
            "REST",
            "WAITED %",
            "MiB",
            "PROBES/s",
            "UNANSWERED",
            "LEFT UP",
        )?;
        let percent = |share: f64| format!("{:.1}", share * 100.0);
        for row in &self.rows {
            writeln!(
                f,
                "{:>5}  {:<6}{:>9.2}{:>8}{:>14}{:>13}{:>8}{:>10}{:>10.1}{:>10.0}{:>10.3} %{:>9}",
                row.paths,
                row.router,
                row.start_s,
                percent(row.cpu),
                percent(row.prober_user),
                percent(row.prober_system),
                percent(row.rest),
                percent(row.prober_waited),
                row.resident as f64 / f64::from(1 << 20),
                row.probes_per_s,
                row.unanswered * 100.0,
                row.left_up,
            )?;
        }
        Ok(())
    }
}
