//! Whether a processor of this host has no time left.

use std::fs;

/// A processor is saturated when it was idle for less than this share of the time,
const SATURATED: f64 = 0.10;
/// until it is idle for more than this.
const RELIEVED: f64 = 0.25;
/// Clock ticks (USER_HZ) that have to pass to say so: half a second.
const ENOUGH: u64 = 50;

/// What the processors did until the last look.
#[derive(Debug, Default)]
pub(super) struct Processors {
    /// By line of /proc/stat.
    before: Vec<Ticks>,
    saturated: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ticks {
    idle: u64,
    all: u64,
}

impl Processors {
    /// Whether one of them is saturated, since the last call that was half a second ago or more.
    ///
    /// One is enough: a flow's packets are one processor's work at each end.
    pub(super) fn is_saturated(&mut self) -> bool {
        // Where it cannot be read none is: nothing depends on it but speed.
        self.look(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn look(&mut self, stat: &str) -> bool {
        let now: Vec<Ticks> = stat.lines().filter_map(ticks).collect();
        if now.len() != self.before.len() {
            (self.before, self.saturated) = (now, false);
            return false;
        }
        let spent = |(now, before): (&Ticks, &Ticks)| Ticks {
            idle: now.idle.saturating_sub(before.idle),
            all: now.all.saturating_sub(before.all),
        };
        let spent: Vec<Ticks> = now.iter().zip(&self.before).map(spent).collect();
        if spent.iter().any(|spent| spent.all < ENOUGH) {
            return self.saturated;
        }
        self.before = now;
        let limit = if self.saturated { RELIEVED } else { SATURATED };
        let idle = |spent: &Ticks| spent.idle as f64 / spent.all as f64;
        self.saturated = spent.iter().any(|spent| idle(spent) < limit);
        self.saturated
    }
}

/// A processor's line of /proc/stat (proc_stat(5)): user, nice, system, idle, iowait, irq, softirq, steal;
/// guests' times are in the first two.
fn ticks(line: &str) -> Option<Ticks> {
    let (name, rest) = line.split_once(' ')?;
    name.strip_prefix("cpu")?.parse::<u32>().ok()?;
    let fields = rest.split_whitespace().take(8).map(str::parse);
    let fields: Vec<u64> = fields.collect::<Result<_, _>>().ok()?;
    let idle = fields.get(3)?.saturating_add(*fields.get(4)?);
    let all = fields
        .iter()
        .fold(0, |sum: u64, field| sum.saturating_add(*field));
    Some(Ticks { idle, all })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(cpus: &[(u64, u64)]) -> String {
        let mut text = "cpu  9 9 9 9 9 9 9 9 0 0\n".to_owned();
        for (cpu, (busy, idle)) in cpus.iter().enumerate() {
            text += &format!("cpu{cpu} {busy} 0 0 {idle} 0 0 0 0 0 0\n");
        }
        text + "intr 1 2 3\nctxt 5\n"
    }

    #[test]
    fn one_that_is_never_idle_is_enough() {
        let mut processors = Processors::default();
        assert!(
            !processors.look(&stat(&[(0, 0), (0, 0)])),
            "nothing to compare"
        );
        assert!(!processors.look(&stat(&[(50, 50), (90, 10)])));
        assert!(processors.look(&stat(&[(60, 140), (188, 12)])));
        assert!(
            processors.look(&stat(&[(60, 150), (198, 12)])),
            "too soon to say"
        );
        assert!(
            processors.look(&stat(&[(60, 240), (282, 18)])),
            "idle, but hardly"
        );
        assert!(!processors.look(&stat(&[(60, 340), (360, 50)])));
        assert!(
            !processors.look(&stat(&[(60, 440)])),
            "one was switched off"
        );
    }

    #[test]
    fn this_host_can_be_read() {
        let mut processors = Processors::default();
        processors.is_saturated();
        assert!(!processors.before.is_empty());
        assert!(
            !Processors::default().look("cpu0 1 2\ncpuX 1 2 3 4 5 6 7 8\ncpu1 a b c d e f g h")
        );
    }
}
