//! What figures depend on, what a process costs, and where figures are kept.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::unistd::Pid;
use serde::Serialize;

/// Clock ticks a second in `/proc` (USER_HZ): the same on every architecture that netbond runs on.
const TICKS: f64 = 100.0;

/// The machine that figures were measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Name of the processor.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: usize,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpus
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| Some(line.split_once(':')?.1.trim()));
        Self {
            kernel: kernel.trim().to_owned(),
            cpu: cpu.unwrap_or("unknown processor").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Writes figures to a file, if one is given; the JSON.
pub fn save(figures: &impl Serialize, path: Option<&Path>) -> Result<String> {
    let json = serde_json::to_string(figures)?;
    if let Some(path) = path {
        path.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(path, format!("{json}\n")))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(json)
}

/// How the time of all cores was spent so far, in clock ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    all: u64,
    idle: u64,
    stolen: u64,
}

impl Cores {
    pub(crate) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&text).context("/proc/stat has another format")
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        // user nice system idle iowait irq softirq steal; guests' time behind it is in user's.
        let fields: Vec<u64> = line
            .split_whitespace()
            .take(8)
            .map(|field| field.parse().ok())
            .collect::<Option<_>>()?;
        Some(Self {
            all: fields.iter().sum(),
            idle: fields.get(3)? + fields.get(4)?,
            stolen: *fields.get(7)?,
        })
    }

    /// Shares of the time since `earlier`: not idle, and taken away by a hypervisor.
    pub(crate) fn since(self, earlier: Self) -> (f64, f64) {
        let all = (self.all - earlier.all).max(1) as f64;
        let share = |part: u64| part as f64 / all;
        (
            1.0 - share(self.idle.saturating_sub(earlier.idle)),
            share(self.stolen.saturating_sub(earlier.stolen)),
        )
    }

    /// How long cores were idle since `earlier`, all together; to one tick.
    pub(crate) fn idle_since(self, earlier: Self) -> Duration {
        Duration::from_secs_f64(self.idle.saturating_sub(earlier.idle) as f64 / TICKS)
    }
}

/// Seconds of a core that something used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) user: f64,
    pub(crate) system: f64,
    /// Ready to run, and waiting for a core.
    pub(crate) waited: f64,
}

impl std::ops::Sub for Used {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            user: self.user - earlier.user,
            system: self.system - earlier.system,
            waited: self.waited - earlier.waited,
        }
    }
}

impl std::ops::Add for Used {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            user: self.user + other.user,
            system: self.system + other.system,
            waited: self.waited + other.waited,
        }
    }
}

/// What a process used so far: its threads called `name`, and all others together.
pub(crate) fn used(pid: Pid, name: &str) -> Result<(Used, Used)> {
    let (mut named, mut rest) = (Used::default(), Used::default());
    let tasks = format!("/proc/{pid}/task");
    for task in fs::read_dir(&tasks).with_context(|| format!("process {pid} is gone"))? {
        let task = task?.path();
        let read = |file: &str| fs::read_to_string(task.join(file));
        // A thread may end meanwhile; it takes its time with it.
        let (Ok(comm), Ok(stat)) = (read("comm"), read("stat")) else {
            continue;
        };
        let (user, system) = ticks(&stat).context("/proc/PID/stat has another format")?;
        // "ns on a core, ns ready to run, slices"; not on every kernel.
        let waited = read("schedstat")
            .ok()
            .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
        let used = Used {
            user: user as f64 / TICKS,
            system: system as f64 / TICKS,
            waited: waited.unwrap_or(0) as f64 / 1e9,
        };
        if comm.trim() == name {
            named = named + used;
        } else {
            rest = rest + used;
        }
    }
    Ok((named, rest))
}

/// utime and stime of a `/proc/PID/stat`.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    // The second field, the name, may hold anything; the last parenthesis ends it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Bytes of memory that a process has resident.
pub(crate) fn resident(pid: Pid) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .context("/proc/PID/status has no VmRSS")?;
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_blanks_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 321 123 0 0 20";
        assert_eq!(ticks(stat), Some((321, 123)));
    }

    #[test]
    fn shares_of_the_cores_are_those_of_the_time_in_between() {
        let at = |line: &str| Cores::parse(line).unwrap();
        let (busy, stolen) =
            at("cpu  30 0 30 30 10 0 0 10 5 0\n").since(at("cpu  0 0 0 0 0 0 0 0"));
        assert!((busy - 7.0 / 11.0).abs() < 1e-9, "{busy}");
        assert!((stolen - 1.0 / 11.0).abs() < 1e-9, "{stolen}");
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(resident(nix::unistd::getpid()).unwrap() > 100_000);
        assert!(used(nix::unistd::getpid(), "no such thread").is_ok());
    }
}
