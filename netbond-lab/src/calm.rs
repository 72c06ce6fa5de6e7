//! `cargo xtask bench calm`: a saturated lab in which nothing fails. Each path that leaves the state
//! `up` was taken for dead wrongly.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::daemon::Event;
use crate::lab::Lab;
use crate::machine::{Cores, Machine};
use crate::router::Router;
use crate::topology::{Ospf, Topology};
use crate::traffic;
use crate::wait::check_interrupt;

/// TCP streams in each direction.
const STREAMS: u8 = 8;

/// How long streams last before new ones take their place.
const RUN: Duration = Duration::from_secs(60);

/// Between two looks at the paths.
const LOOK: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it was measured.
    #[serde(flatten)]
    pub machine: Machine,
    /// How long it lasted, minutes.
    pub minutes: f64,
    /// Share of all cores' time that was not idle.
    pub busy: f64,
    /// Share of all cores' time that the machine's own host took away.
    pub stolen: f64,
    /// How often a path left the state `up`.
    pub left_up: usize,
    /// Each change of a path's state or of the reason for it.
    pub changes: Vec<Change>,
    /// Payload received over the bond, Mbit/s.
    pub goodput: Goodput,
    /// Runs of iperf3 that ended with an error.
    pub failed_runs: u32,
    /// Looks at the paths, and those that failed.
    pub looks: u32,
    /// See `looks`.
    pub failed_looks: u32,
    /// The longest smoothed round trip of a probe, ms.
    pub worst_rtt_ms: f64,
    /// The largest share of ten seconds' probes that was lost, one way or the other.
    pub worst_loss: f64,
}

/// Mean payload by direction, Mbit/s.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Goodput {
    /// From A to B.
    pub there: f64,
    /// From B to A.
    pub back: f64,
}

/// A path's state or the reason for it changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// The router that saw it.
    pub router: String,
    /// What its journal says.
    #[serde(flatten)]
    pub event: Event,
}

impl Change {
    /// Whether the path left the state `up`.
    fn left_up(&self) -> bool {
        let state = |state: &Option<String>| state.as_deref() == Some("up");
        state(&self.event.from) && !state(&self.event.to)
    }
}

impl Report {
    /// Whether no path left the state `up`.
    pub fn is_calm(&self) -> bool {
        self.left_up == 0
    }
}

/// Saturates the reference topology, built as lab `name` with the field's OSPF timers, for `time`.
/// Says on standard error how it goes.
pub fn run(name: &str, time: Duration) -> Result<Report> {
    let topology = Topology::reference().with_ospf(Ospf::field());
    let address = |router: &str| {
        topology
            .bond_address(router, false)
            .map(|address| address.to_string())
            .with_context(|| format!("router {router} has no IPv4 bond address"))
    };
    let (address_a, address_b) = (address("A")?, address("B")?);
    eprintln!("building lab {name}: routers, WireGuard, OSPF, netbond ...");
    let lab = Lab::up(name, &topology)?;
    let (a, b) = (lab.router("A"), lab.router("B"));

    eprintln!(
        "{STREAMS} TCP streams each way for {} min ...",
        time.as_secs() / 60
    );
    let end = Instant::now() + time;
    let begin = Cores::now()?;
    let stop = AtomicBool::new(false);
    let (there, back) = (Mutex::default(), Mutex::default());
    let watched = thread::scope(|scope| {
        let stop = &stop;
        for (from, to, address, streams) in [(a, b, &address_b, &there), (b, a, &address_a, &back)]
        {
            scope.spawn(move || saturate(from, to, address, end, stop, streams));
        }
        let watched = watch([a, b], end, [&there, &back]);
        stop.store(true, Ordering::Relaxed);
        watched
    })?;
    let (busy, stolen) = Cores::now()?.since(begin);
    // A controller that died sees no path leave.
    lab.wait_netbond(Duration::from_secs(30))?;
    lab.down()?;
    let (there, back) = (stood(&there), stood(&back));
    Ok(Report {
        machine: Machine::this(),
        minutes: time.as_secs_f64() / 60.0,
        busy,
        stolen,
        left_up: watched
            .changes
            .iter()
            .filter(|change| change.left_up())
            .count(),
        changes: watched.changes,
        goodput: Goodput {
            there: there.mean(),
            back: back.mean(),
        },
        failed_runs: there.failed + back.failed,
        looks: watched.looks,
        failed_looks: watched.failed,
        worst_rtt_ms: watched.worst_rtt_ms,
        worst_loss: watched.worst_loss,
    })
}

/// What the streams of one direction achieved so far.
#[derive(Clone, Copy, Debug, Default)]
struct Streams {
    megabits: f64,
    seconds: f64,
    failed: u32,
}

impl Streams {
    fn mean(self) -> f64 {
        if self.seconds == 0.0 {
            0.0
        } else {
            self.megabits / self.seconds
        }
    }
}

fn stood(streams: &Mutex<Streams>) -> Streams {
    *streams
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Sends until the end, whatever becomes of a single run.
fn saturate(
    from: &Router,
    to: &Router,
    address: &str,
    end: Instant,
    stop: &AtomicBool,
    streams: &Mutex<Streams>,
) {
    while !stop.load(Ordering::Relaxed) {
        let left = end.saturating_duration_since(Instant::now());
        if left < Duration::from_secs(1) {
            return;
        }
        let time = Duration::from_secs(left.min(RUN).as_secs());
        let result = traffic::tcp_streams(from, to, address, STREAMS, time);
        if check_interrupt().is_err() {
            return;
        }
        let mut streams = streams
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match result {
            Ok(result) => {
                streams.megabits += result.mbit_per_s * time.as_secs_f64();
                streams.seconds += time.as_secs_f64();
            }
            Err(error) => {
                streams.failed += 1;
                drop(streams);
                eprintln!("{error:#}");
                thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

#[derive(Debug, Default)]
struct Watched {
    changes: Vec<Change>,
    looks: u32,
    failed: u32,
    worst_rtt_ms: f64,
    worst_loss: f64,
}

/// Looks at the paths until the end.
fn watch(routers: [&Router; 2], end: Instant, streams: [&Mutex<Streams>; 2]) -> Result<Watched> {
    let mut watched = Watched::default();
    let mut ends = routers.map(Paths::new);
    for paths in &mut ends {
        // What came before is no matter here.
        paths.changes()?;
    }
    let start = Instant::now();
    let mut minute = 1;
    while Instant::now() < end {
        check_interrupt()?;
        let next = Instant::now() + LOOK;
        for paths in &mut ends {
            watched.looks += 1;
            match paths.look(&mut watched) {
                Ok(changes) => {
                    for change in &changes {
                        eprintln!("{change}");
                    }
                    watched.changes.extend(changes);
                }
                // A later look sees what this one did not.
                Err(error) => {
                    watched.failed += 1;
                    eprintln!("{error:#}");
                }
            }
        }
        if start.elapsed() >= Duration::from_secs(60 * minute) {
            let [there, back] = streams.map(|streams| stood(streams).mean());
            let changes = watched.changes.len();
            eprintln!("minute {minute}: {changes} changes, {there:.0} and {back:.0} Mbit/s so far");
            minute += 1;
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(watched)
}

/// The paths of a router, and what of its journal is known.
struct Paths<'a> {
    router: &'a Router,
    known: u64,
}

impl<'a> Paths<'a> {
    fn new(router: &'a Router) -> Self {
        Self { router, known: 0 }
    }

    /// What changed since the last look.
    fn look(&mut self, watched: &mut Watched) -> Result<Vec<Change>> {
        let status = self.router.netbond_status()?;
        let paths = status.bonds.iter().flat_map(|bond| &bond.paths);
        for probe in paths.filter_map(|path| path.probe.as_ref()) {
            watched.worst_rtt_ms = watched.worst_rtt_ms.max(probe.rtt_ms);
            let loss = probe.loss_there.max(probe.loss_back);
            watched.worst_loss = watched.worst_loss.max(loss);
        }
        self.changes()
    }

    fn changes(&mut self) -> Result<Vec<Change>> {
        let mut events = self.router.netbond_events()?;
        events.retain(|event| event.sequence > self.known);
        self.known = events.last().map_or(self.known, |last| last.sequence);
        events.retain(|event| event.kind == "changed");
        let router = self.router.name();
        let change = |event| Change {
            router: router.to_owned(),
            event,
        };
        Ok(events.into_iter().map(change).collect())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event {
            at,
            path,
            from,
            to,
            text,
            ..
        } = &self.event;
        let or_new = |text: &Option<String>| text.clone().unwrap_or_else(|| "new".to_owned());
        write!(
            f,
            "{at}: path {} of router {}: {} to {}: {text}",
            or_new(path),
            self.router,
            or_new(from),
            or_new(to),
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { kernel, cpu, cores } = &self.machine;
        writeln!(f, "Linux {kernel}, {cpu}, {cores} cores")?;
        writeln!(
            f,
            "{:.0} min, {STREAMS} TCP streams each way, cores {:.1} % busy, {:.1} % stolen",
            self.minutes,
            self.busy * 100.0,
            self.stolen * 100.0,
        )?;
        let Goodput { there, back } = self.goodput;
        writeln!(
            f,
            "goodput A to B {there:.0} Mbit/s, B to A {back:.0} Mbit/s; {} runs failed",
            self.failed_runs
        )?;
        writeln!(
            f,
            "worst smoothed round trip of a probe {:.1} ms, worst loss in ten seconds {:.1} %",
            self.worst_rtt_ms,
            self.worst_loss * 100.0,
        )?;
        for change in &self.changes {
            writeln!(f, "{change}")?;
        }
        writeln!(
            f,
            "{} changes, {} times a path left up ({} looks, {} failed)",
            self.changes.len(),
            self.left_up,
            self.looks,
            self.failed_looks,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leaves_up_counts() {
        let left_up = |from: Option<&str>, to: &str| {
            let event = Event {
                sequence: 1,
                at: String::new(),
                kind: "changed".to_owned(),
                path: Some("via-m1".to_owned()),
                from: from.map(str::to_owned),
                to: Some(to.to_owned()),
                reason: None,
                text: String::new(),
            };
            let router = "A".to_owned();
            Change { router, event }.left_up()
        };
        assert!(left_up(Some("up"), "dead"));
        assert!(!left_up(Some("up"), "up"), "another reason");
        assert!(!left_up(Some("dead"), "up"));
        assert!(!left_up(None, "up"));
    }
}
