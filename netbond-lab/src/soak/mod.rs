//! `cargo xtask soak`: random faults, one turn after the other, under traffic. What must hold is checked
//! all the time.
//!
//! Two bonds over three paths between A and B. In each turn one path is spared, and is known to work when
//! the turn begins; the others may fail in any way, and the controllers may be killed while no path fails.
//! So a path lives all the time, and traffic must flow.

mod fault;
mod ledger;

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use fastrand::Rng;
use nix::sys::signal::Signal;
use serde::Serialize;

use self::fault::{ENDS, Fault};
use self::ledger::{Ledger, Usage};
use crate::daemon::last_lines;
use crate::lab::Lab;
use crate::machine::Machine;
use crate::topology::Topology;
use crate::traffic::{Numbered, PingLog};
use crate::wait::check_interrupt;

/// Middle routers, and so paths.
const PATHS: u8 = 3;
/// Between two packets of a stream.
const PACE: Duration = Duration::from_millis(5);
/// In which all that failed must be back: OSPF has to find its neighbours again, and to replace what routers said
/// before they failed.
const RECOVERY: Duration = Duration::from_secs(120);
/// Longest time without any packet of a stream, while a path lives. Several times what it takes to find out
/// that a path is dead.
const SILENCE: Duration = Duration::from_secs(2);
/// After that a fault that just ended was noticed, if it is to be: what is up then is so.
const NOTICED: Duration = Duration::from_millis(500);
/// Faults and pauses last so long, ms.
const LASTS: std::ops::Range<u64> = 50..3000;
/// Modes that a reload may choose. Not `duplicate`: until both ends know of it, copies are two packets. And
/// `adaptive` without its order: not every kernel has fq.
const MODES: [&str; 6] = [
    "round-robin",
    "weighted",
    "flow",
    "flowlet",
    "adaptive",
    "active-backup",
];
/// The second bond's device.
const SECOND: &str = "nb1";

/// What happened, and what did not hold.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it was run.
    #[serde(flatten)]
    pub machine: Machine,
    /// The same seed makes the same faults in the same order.
    pub seed: u64,
    /// How long it lasted, s.
    pub seconds: f64,
    /// How often each fault came about.
    pub faults: BTreeMap<&'static str, u32>,
    /// The slowest recovery after faults had ended, s.
    pub slowest_recovery_s: f64,
    /// Of all streams: packets sent, and lost.
    pub sent: u64,
    /// See `sent`.
    pub lost: u64,
    /// The longest time without any packet, ms.
    pub longest_silence_ms: f64,
    /// What each end uses before and after.
    pub usage: BTreeMap<&'static str, [Usage; 2]>,
    /// What did not hold; empty if all is well.
    pub violations: Vec<String>,
}

impl Report {
    fn new(seed: u64) -> Self {
        Self {
            machine: Machine::this(),
            seed,
            seconds: 0.0,
            faults: BTreeMap::new(),
            slowest_recovery_s: 0.0,
            sent: 0,
            lost: 0,
            longest_silence_ms: 0.0,
            usage: BTreeMap::new(),
            violations: Vec::new(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: u32 = self.faults.values().sum();
        writeln!(
            f,
            "seed {}, {:.0} s, {faults} faults: {} of {} packets lost, no packet for {:.0} ms at the most, \
             recovered in {:.1} s at the most",
            self.seed,
            self.seconds,
            self.lost,
            self.sent,
            self.longest_silence_ms,
            self.slowest_recovery_s
        )?;
        for (fault, count) in &self.faults {
            writeln!(f, "  {fault:<16} {count:>5}")?;
        }
        for (end, [before, after]) in &self.usage {
            writeln!(f, "  {end}: {before} before, {after} after")?;
        }
        for violation in &self.violations {
            writeln!(f, "  does not hold: {violation}")?;
        }
        Ok(())
    }
}

/// Runs faults for `time` in lab `name`; says on standard error what it does. Without a seed it takes any.
///
/// # Errors
///
/// Where something fails that is not netbond's: a fault that cannot be made. What does not hold is in the
/// report.
pub fn run(name: &str, time: Duration, seed: Option<u64>) -> Result<Report> {
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("seed {seed}: building lab {name} ...");
    let mut lab = Lab::up(name, &topology())?;
    lab.wait_netbond(RECOVERY)?;
    let mut soak = Soak {
        random: Rng::with_seed(seed),
        start: Instant::now(),
        ledger: Ledger::open(&lab)?,
        report: Report::new(seed),
    };
    let streams = STREAMS
        .iter()
        .map(|stream| stream.start(&lab))
        .collect::<Result<Vec<_>>>()?;
    let before = usage(&lab)?;
    let start = SystemTime::now();
    while soak.start.elapsed() < time && soak.report.violations.is_empty() {
        check_interrupt()?;
        soak.turn(&mut lab)?;
    }
    soak.report.seconds = soak.start.elapsed().as_secs_f64();
    let end = SystemTime::now();
    let mut logs = Vec::new();
    for stream in streams {
        logs.push(stream.stop_after(end)?);
    }
    soak.check_streams(&lab, start, &logs)?;
    match usage(&lab) {
        Ok(after) => {
            for (end, (before, after)) in ENDS.into_iter().zip(before.into_iter().zip(after)) {
                let beyond = after.beyond(&before).map(|what| format!("{end}: {what}"));
                soak.report.violations.extend(beyond);
                soak.report.usage.insert(end, [before, after]);
            }
        }
        // Of a controller that ended by itself nothing is to be known.
        Err(error) => soak.report.violations.push(format!("{error:#}")),
    }
    if !soak.report.violations.is_empty() {
        for end in ENDS {
            let log = lab.router(end).netbond_log();
            eprintln!("netbond in router {end}:\n{}", last_lines(&log, 100));
        }
    }
    lab.down()?;
    Ok(soak.report)
}

/// A stream of numbered packets, which are sent back.
struct Stream {
    from: &'static str,
    to: &'static str,
    bond: &'static str,
    address: &'static str,
}

const STREAMS: [Stream; 3] = [
    Stream {
        from: "A",
        to: "B",
        bond: "nb0",
        address: "10.67.0.2",
    },
    Stream {
        from: "B",
        to: "A",
        bond: "nb0",
        address: "10.67.0.1",
    },
    Stream {
        from: "A",
        to: "B",
        bond: SECOND,
        address: "10.68.0.2",
    },
];

impl Stream {
    fn start(&self, lab: &Lab) -> Result<Numbered> {
        let [from, to] = [self.from, self.to].map(|name| lab.router(name));
        Numbered::start(from, to, self.address, PACE)
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} over {}", self.from, self.to, self.bond)
    }
}

/// Three paths and two bonds over each, told apart by a key. What failed may come back at once: a held-down
/// path would only make turns longer.
fn topology() -> Topology {
    let mut topology = Topology::parallel(PATHS).with_bond_line("hold_down = 0");
    let seconds: Vec<_> = topology
        .bonds
        .iter()
        .map(|bond| {
            let mut second = bond.clone();
            second.name = SECOND.to_owned();
            for address in &mut second.addresses {
                *address = address.replace("67", "68");
            }
            for path in &mut second.paths {
                path.name = path.name.replace("via", "second");
            }
            second.lines.push("key = 7".to_owned());
            second
        })
        .collect();
    topology.bonds.extend(seconds);
    topology
}

fn usage(lab: &Lab) -> Result<Vec<Usage>> {
    ENDS.iter().map(|end| Usage::of(lab.router(end))).collect()
}

/// A soak under way.
struct Soak {
    random: Rng,
    start: Instant,
    ledger: Ledger,
    report: Report,
}

impl Soak {
    /// Paths fail and come back, or controllers do, and all is well again.
    fn turn(&mut self, lab: &mut Lab) -> Result<()> {
        match self.random.u8(..8) {
            0 => self.restart(lab)?,
            1 => self.reload(lab)?,
            _ => self.fail(lab)?,
        }
        self.recover(lab)?;
        let wrong = self.ledger.check(lab)?;
        self.report.violations.extend(wrong);
        Ok(())
    }

    /// One or two paths fail, each once or several times.
    fn fail(&mut self, lab: &mut Lab) -> Result<()> {
        let mut middles: Vec<String> = (1..=PATHS).map(|number| format!("M{number}")).collect();
        self.random.shuffle(&mut middles);
        middles.truncate(self.random.usize(1..usize::from(PATHS)));
        let faults: Vec<Fault> = middles
            .into_iter()
            .map(|middle| Fault::of(middle, &mut self.random))
            .collect();
        for _ in 0..self.random.u8(1..4) {
            for fault in &faults {
                self.happens(fault.label(), &fault.to_string());
                fault
                    .begin(lab)
                    .with_context(|| format!("cannot make: {fault}"))?;
                self.pause();
            }
            for fault in &faults {
                fault
                    .end(lab)
                    .with_context(|| format!("cannot end: {fault}"))?;
                self.pause();
            }
        }
        Ok(())
    }

    /// A controller dies, or is stopped, and is started again.
    fn restart(&mut self, lab: &Lab) -> Result<()> {
        let end = ENDS[self.random.usize(..ENDS.len())];
        let (label, signal) = if self.random.bool() {
            ("netbond killed", Signal::SIGKILL)
        } else {
            ("netbond stopped", Signal::SIGTERM)
        };
        self.happens(label, &format!("{label}: {end}"));
        lab.router(end).kill_netbond(signal)?;
        self.pause();
        lab.router(end).start_netbond()
    }

    /// Both ends get another mode.
    fn reload(&mut self, lab: &Lab) -> Result<()> {
        let mode = MODES[self.random.usize(..MODES.len())];
        self.happens("reload", &format!("reload: {mode}"));
        for end in ENDS {
            let router = lab.router(end);
            let plain = router.default_config().context("an end has bonds")?;
            let mut line = format!("{mode:?}");
            if mode == "adaptive" {
                line += "\nin_order = false";
            }
            router.write_config(&plain.replace("\"round-robin\"", &line))?;
            router.run(&["netbond", "reload"])?;
        }
        Ok(())
    }

    fn happens(&mut self, label: &'static str, what: &str) {
        eprintln!("{:7.1} s  {what}", self.start.elapsed().as_secs_f64());
        *self.report.faults.entry(label).or_default() += 1;
    }

    /// Part of what happens is how long it lasts.
    fn pause(&mut self) {
        thread::sleep(Duration::from_millis(self.random.u64(LASTS)));
    }

    /// Waits until packets pass all paths again at both ends. OSPF may lead elsewhere: BIRD 2.0.12 leaves a link
    /// out of its own LSA, though its neighbour is Full, where the device went and came within seconds.
    fn recover(&mut self, lab: &Lab) -> Result<()> {
        thread::sleep(NOTICED);
        let begin = Instant::now();
        let recovered = ENDS
            .iter()
            .try_for_each(|end| lab.router(end).wait_paths(RECOVERY, &["up", "detour"]));
        check_interrupt()?;
        let took = begin.elapsed().as_secs_f64();
        self.report.slowest_recovery_s = self.report.slowest_recovery_s.max(took);
        if let Err(error) = recovered {
            self.report.violations.push(format!("{error:#}"));
            // Whether it is OSPF that has not recovered.
            for router in lab.routers() {
                for question in ["show ospf neighbors", "show route"] {
                    let answer = router.birdc(question);
                    let answer = answer.unwrap_or_else(|error| format!("{error:#}"));
                    eprintln!("{}: {question}\n{answer}", router.name());
                }
            }
        }
        Ok(())
    }

    /// What became of the streams, which began at `start`.
    fn check_streams(&mut self, lab: &Lab, start: SystemTime, logs: &[PingLog]) -> Result<()> {
        let report = &mut self.report;
        // With what was sent back of the stream that comes the other way.
        let sent = STREAMS.iter().zip(logs).map(|(stream, log)| {
            let back = STREAMS
                .iter()
                .zip(logs)
                .filter(|(other, _)| (other.bond, other.to) == (stream.bond, stream.from));
            log.requests() + back.map(|(_, log)| log.arrivals()).sum::<u64>()
        });
        let sent: Vec<u64> = sent.collect();
        let contended = self.ledger.contended(lab)?;
        for (stream, log) in STREAMS.iter().zip(logs) {
            let counts = log.counts();
            report.sent += counts.sent;
            report.lost += counts.lost;
            for (at, silence) in log.silences_after(start) {
                report.longest_silence_ms =
                    report.longest_silence_ms.max(silence.as_secs_f64() * 1e3);
                if silence > SILENCE {
                    let at = at.duration_since(start).unwrap_or_default();
                    report.violations.push(format!(
                        "{stream}: no packet for {silence:.1?}, {at:.1?} after the beginning"
                    ));
                }
            }
            if log.repeated() > contended {
                report.violations.push(format!(
                    "{stream}: {} packets delivered twice, {contended} were not compared",
                    log.repeated()
                ));
            }
        }
        let unaccounted = self.ledger.unaccounted(lab, &sent)?;
        self.report.violations.extend(unaccounted);
        Ok(())
    }
}
