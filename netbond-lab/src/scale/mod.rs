//! `cargo xtask bench scale`: how a controller bears many bonds, many routes, and storms of changes.
//!
//! Two routers, joined by plain Ethernet links, with a controller in the first only, which does not probe:
//! what is measured is how it follows the kernel. `bench cost` tells what probing costs.

mod changes;

use std::thread;
use std::time::{Duration, Instant, SystemTime};
use std::{fmt, fs};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::daemon::Event;
use crate::lab::{Lab, Options};
use crate::machine::{Machine, resident, used};
use crate::plain;
use crate::router::Router;
use crate::wait::{check_interrupt, wait_for};
use changes::{Changes, FOREIGN, Storm};

/// Paths of a bond.
const SIZE: u16 = 8;

/// How long a controller may take to start, or to notice something.
const LONGEST: Duration = Duration::from_secs(120);

/// See [`Report::expedited`].
const EXPEDITED: &str = "/sys/kernel/rcu_expedited";

/// A name that no thread has: all of a process counts alike.
const NO_THREAD: &str = "";

/// How often the kernel is made to drop messages.
const OVERRUNS: u32 = 5;

/// Changes while a controller stands still: several times what the kernel keeps for it.
const FLOOD: u32 = 40_000;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Numbers of bonds, of eight paths each.
    pub bonds: Vec<u16>,
    /// Routes in the kernel that are no path's.
    pub routes: u32,
    /// How many of those change each second of the storm.
    pub per_second: u32,
    /// How long the storm lasts.
    pub storm: Duration,
    /// For how long a controller is watched that has nothing to do.
    pub idle: Duration,
}

/// All figures.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where they were measured.
    #[serde(flatten)]
    pub machine: Machine,
    /// Whether the kernel was told to hurry where it waits for all CPUs (/sys/kernel/rcu_expedited), as it does
    /// for each program that it puts on a device.
    pub expedited: bool,
    /// Starts, in the order of the numbers of bonds.
    pub starts: Vec<Start>,
    /// With the last number of bonds.
    pub storm: StormFigures,
    /// Likewise.
    pub overruns: Overruns,
}

/// A start of a controller.
#[derive(Clone, Debug, Serialize)]
pub struct Start {
    /// Bonds.
    pub bonds: u16,
    /// Routes in the kernel that are no path's.
    pub routes: u32,
    /// Whether the bonds were there already, left by a controller before.
    pub again: bool,
    /// Until it was ready, seconds.
    pub ready_s: f64,
    /// Until all paths were up, seconds; known of first starts.
    pub up_s: Option<f64>,
    /// Time of a core it took until then, seconds.
    pub cpu_s: f64,
    /// Share of a core it takes when nothing happens.
    pub idle: f64,
    /// Memory, bytes.
    pub resident: u64,
}

/// What a storm of route changes did.
#[derive(Clone, Debug, Serialize)]
pub struct StormFigures {
    /// How long it lasted, seconds.
    pub seconds: f64,
    /// Changes made a second.
    pub per_second: f64,
    /// Share of a core that the controller took.
    pub cpu: f64,
    /// How often the kernel dropped messages.
    pub overruns: usize,
    /// From when the command to take away or to bring back a path's route was given until the path was
    /// taken out or back, ms, in ascending order.
    pub reactions_ms: Vec<f64>,
    /// Memory afterwards, bytes.
    pub resident: u64,
}

/// What came of messages that the kernel dropped.
#[derive(Clone, Debug, Serialize)]
pub struct Overruns {
    /// Changes made each time while the controller stood still.
    pub changes: u32,
    /// From when it went on until a path was out whose route had gone meanwhile, ms, in ascending order.
    pub reactions_ms: Vec<f64>,
    /// Memory afterwards, bytes.
    pub resident: u64,
}

/// Measures, in a lab called `name`. Says on standard error what it is doing.
///
/// # Errors
///
/// Where the lab cannot be built, or the controller misses a change.
pub fn run(name: &str, plan: &Plan) -> Result<Report> {
    let (&last, _) = plan
        .bonds
        .split_last()
        .context("no number of bonds given")?;
    let options = Options {
        bird: false,
        netbond: false,
        ..Options::default()
    };
    let mut starts = Vec::new();
    for &bonds in &plan.bonds {
        let lab = Lab::up_with(name, &plain::topology(), options)?;
        let (a, b) = (lab.router("A"), lab.router("B"));
        let paths = bonds.checked_mul(SIZE).context("too many bonds")?;
        plain::lay_links(a, b, paths, SIZE)?;
        a.write_config(&plain::config(paths, SIZE, false, "probe_interval = 0\n"))?;
        eprintln!("{bonds} bonds: starting, with no other routes ...");
        starts.push(start(a, bonds, 0, false, plan.idle)?);
        a.kill_netbond(Signal::SIGTERM)?;
        starts.push(start(a, bonds, 0, true, plan.idle)?);
        a.kill_netbond(Signal::SIGTERM)?;
        eprintln!(
            "{bonds} bonds: starting, with {} other routes ...",
            plan.routes
        );
        a.ip(&FOREIGN.all(plan.routes))?;
        starts.push(start(a, bonds, plan.routes, true, plan.idle)?);
        if bonds == last {
            let storm = storm(a, plan)?;
            let overruns = overruns(a)?;
            lab.down()?;
            return Ok(Report {
                machine: Machine::this(),
                expedited: fs::read_to_string(EXPEDITED).is_ok_and(|text| text.trim() == "1"),
                starts,
                storm,
                overruns,
            });
        }
        lab.down()?;
    }
    bail!("no number of bonds given")
}

fn start(router: &Router, bonds: u16, routes: u32, again: bool, idle: Duration) -> Result<Start> {
    let begin = SystemTime::now();
    router.start_netbond()?;
    let pid = pid(router)?;
    let started = format!(", pid {pid}, bonds: ");
    wait_for("a started controller", LONGEST, || {
        check_interrupt()?;
        thread::sleep(Duration::from_millis(1));
        Ok(router.netbond_log().contains(&started).then_some(()))
    })
    .with_context(|| crate::daemon::last_lines(&router.netbond_log(), 5))?;
    let ready_s = begin.elapsed()?.as_secs_f64();
    let changed = wait_for("all paths up", LONGEST, || {
        check_interrupt()?;
        let bonds = router.netbond_status()?.bonds.into_iter();
        let paths: Vec<_> = bonds.flat_map(|bond| bond.paths).collect();
        let up = paths.iter().filter(|path| path.state == "up").count();
        ensure!(
            up == paths.len() && up != 0,
            "{up} of {} are up",
            paths.len()
        );
        Ok(Some(
            paths.iter().map(|path| path.changed).fold(0.0, f64::max),
        ))
    })?;
    let since = begin.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
    let cpu_s = cpu(pid)?;
    let idle_from = Instant::now();
    thread::sleep(idle);
    let idle = (cpu(pid)? - cpu_s) / idle_from.elapsed().as_secs_f64();
    Ok(Start {
        bonds,
        routes,
        again,
        ready_s,
        up_s: (!again).then_some(changed - since),
        cpu_s,
        idle,
        resident: resident(pid)?,
    })
}

/// A path's route goes and comes while thousands of others do.
fn storm(router: &Router, plan: &Plan) -> Result<StormFigures> {
    eprintln!(
        "{} route changes a second for {} s ...",
        plan.per_second,
        plan.storm.as_secs()
    );
    let pid = pid(router)?;
    let (cpu_before, overruns_before) = (cpu(pid)?, overruns_told(router));
    let mut victim = Victim::new(router)?;
    let begin = Instant::now();
    let storm = Storm::start(router, plan.per_second)?;
    let mut reactions_ms = Vec::new();
    while begin.elapsed() < plan.storm {
        check_interrupt()?;
        let told = victim.toggle()?;
        reactions_ms.push(victim.noticed(told)?);
        thread::sleep(Duration::from_millis(fastrand::u64(50..150)));
    }
    let changes = storm.stop()?;
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = (cpu(pid)? - cpu_before) / seconds;
    victim.stop()?;
    reactions_ms.sort_by(f64::total_cmp);
    Ok(StormFigures {
        seconds,
        per_second: f64::from(changes) / seconds,
        cpu,
        overruns: overruns_told(router) - overruns_before,
        reactions_ms,
        resident: resident(pid)?,
    })
}

/// A path's route goes while the controller stands still, and the kernel keeps none of what it says.
fn overruns(router: &Router) -> Result<Overruns> {
    eprintln!("{OVERRUNS} times {FLOOD} changes while the controller stands still ...");
    let pid = pid(router)?;
    let mut victim = Victim::new(router)?;
    let mut reactions_ms = Vec::new();
    for number in 0..2 * OVERRUNS {
        let before = overruns_told(router);
        kill(pid, Signal::SIGSTOP)?;
        let mut flood = Changes::open(router)?;
        flood.give(&FOREIGN.come_and_go(FLOOD))?;
        flood.finish()?;
        victim.toggle()?;
        victim.flush()?;
        let goes_on = SystemTime::now();
        kill(pid, Signal::SIGCONT)?;
        let reaction = victim.noticed(goes_on)?;
        ensure!(
            overruns_told(router) > before,
            "the kernel dropped nothing of {FLOOD} changes"
        );
        // A route that comes back is noticed alike; one figure an outage.
        if number % 2 == 0 {
            reactions_ms.push(reaction);
        }
    }
    victim.stop()?;
    reactions_ms.sort_by(f64::total_cmp);
    Ok(Overruns {
        changes: FLOOD,
        reactions_ms,
        resident: resident(pid)?,
    })
}

/// How often the controller said that the kernel dropped messages.
fn overruns_told(router: &Router) -> usize {
    router.netbond_log().matches("(ENOBUFS)").count()
}

fn pid(router: &Router) -> Result<Pid> {
    router.netbond_pid().context("netbond was not started")
}

/// Seconds of a core that a process used so far.
fn cpu(pid: Pid) -> Result<f64> {
    let (_, all) = used(pid, NO_THREAD)?;
    Ok(all.user + all.system)
}

/// A path whose route goes and comes.
struct Victim<'a> {
    router: &'a Router,
    commands: Changes,
    there: bool,
    /// The last event that is known.
    seen: u64,
}

impl<'a> Victim<'a> {
    /// The first path of all.
    const PATH: u16 = 0;

    fn new(router: &'a Router) -> Result<Self> {
        let events = router.netbond_events()?;
        Ok(Self {
            router,
            commands: Changes::open(router)?,
            there: true,
            seen: events.last().map_or(0, |event| event.sequence),
        })
    }

    /// Takes its route away, or brings it back; when the command was given.
    fn toggle(&mut self) -> Result<SystemTime> {
        let verb = if self.there { "del" } else { "add" };
        self.there = !self.there;
        let route = plain::route(Self::PATH, SIZE, false);
        let now = SystemTime::now();
        self.commands.give(&format!("route {verb} {route}\n"))?;
        Ok(now)
    }

    /// Waits until all commands are done.
    fn flush(&mut self) -> Result<()> {
        let commands = std::mem::replace(&mut self.commands, Changes::open(self.router)?);
        commands.finish()
    }

    /// How long after a moment the controller took the path out, or back in, ms.
    fn noticed(&mut self, after: SystemTime) -> Result<f64> {
        let name = format!("p{}", Self::PATH);
        let to = if self.there { "up" } else { "down" };
        let is_it = |event: &Event| {
            let path = event.path.as_deref() == Some(name.as_str());
            path && event.kind == "changed" && event.to.as_deref() == Some(to)
        };
        let event = wait_for(&format!("path {name} {to}"), LONGEST, || {
            check_interrupt()?;
            let events = self.router.netbond_events()?;
            let mut new = events
                .into_iter()
                .filter(|event| event.sequence > self.seen);
            Ok(new.find(is_it))
        })?;
        self.seen = event.sequence;
        let at: jiff::Timestamp = event.at.parse().context("reading an event's time")?;
        let after: jiff::Timestamp = after.try_into()?;
        Ok(at.duration_since(after).as_secs_f64() * 1e3)
    }

    /// Leaves the route as it was.
    fn stop(mut self) -> Result<()> {
        if !self.there {
            let told = self.toggle()?;
            self.noticed(told)?;
        }
        self.commands.finish()
    }
}

/// The value below which a share of ascending values lie.
fn at(values: &[f64], share: f64) -> f64 {
    let place = (values.len().saturating_sub(1)) as f64 * share;
    values
        .get(place.ceil() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = (1 << 20) as f64;
        let Machine { kernel, cpu, cores } = &self.machine;
        let expedited = u8::from(self.expedited);
        writeln!(
            f,
            "Linux {kernel}, {cpu}, {cores} cores, rcu_expedited {expedited}\n"
        )?;
        writeln!(
            f,
            "{:>5} {:>6} {:>12}  {:<6}{:>9}{:>10}{:>8}{:>8}{:>8}",
            "BONDS",
            "PATHS",
            "OTHER ROUTES",
            "START",
            "READY s",
            "ALL UP s",
            "CPU s",
            "IDLE %",
            "MiB",
        )?;
        for start in &self.starts {
            let up = start
                .up_s
                .map_or_else(|| "-".to_owned(), |up| format!("{up:.2}"));
            writeln!(
                f,
                "{:>5} {:>6} {:>12}  {:<6}{:>9.2}{:>10}{:>8.2}{:>8.1}{:>8.1}",
                start.bonds,
                start.bonds * SIZE,
                start.routes,
                if start.again { "again" } else { "first" },
                start.ready_s,
                up,
                start.cpu_s,
                start.idle * 100.0,
                start.resident as f64 / MIB,
            )?;
        }
        let storm = &self.storm;
        let share = |share| at(&storm.reactions_ms, share);
        writeln!(
            f,
            "\n{:.0} route changes a second for {:.0} s: {:.0} % of a core, messages dropped {} times, {:.1} MiB\n\
             a path follows its route after {:.2} / {:.2} / {:.2} ms (median / 99 % / longest of {})",
            storm.per_second,
            storm.seconds,
            storm.cpu * 100.0,
            storm.overruns,
            storm.resident as f64 / MIB,
            share(0.5),
            share(0.99),
            share(1.0),
            storm.reactions_ms.len(),
        )?;
        let overruns = &self.overruns;
        writeln!(
            f,
            "{} changes while it stood still, messages dropped: a path follows {:.0} / {:.0} ms after it went on \
             (median / longest of {}), {:.1} MiB",
            overruns.changes,
            at(&overruns.reactions_ms, 0.5),
            at(&overruns.reactions_ms, 1.0),
            overruns.reactions_ms.len(),
            overruns.resident as f64 / MIB,
        )
    }
}
