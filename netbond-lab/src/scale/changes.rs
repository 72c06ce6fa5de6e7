//! Routes that come and go by the thousand.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::router::Router;

/// Between two lots of a storm's changes.
const TICK: Duration = Duration::from_millis(10);

/// Host routes that no path takes.
#[derive(Clone, Copy)]
pub(super) struct Foreign {
    /// The first one that stays.
    stays: u32,
    /// The first one that comes and goes.
    comes: u32,
}

/// Those of the benchmark.
pub(super) const FOREIGN: Foreign = Foreign {
    stays: 44 << 24,
    comes: 45 << 24,
};

impl Foreign {
    /// Commands that make so many that stay.
    pub(super) fn all(self, count: u32) -> String {
        let mut text = String::new();
        for number in 0..count {
            line(&mut text, "add", self.stays + number);
        }
        text
    }

    /// Commands for so many changes, half of which undo the others.
    pub(super) fn come_and_go(self, changes: u32) -> String {
        let mut text = String::new();
        for verb in ["add", "del"] {
            for number in 0..changes / 2 {
                line(&mut text, verb, self.comes + number);
            }
        }
        text
    }
}

fn line(text: &mut String, verb: &str, address: u32) {
    let address = Ipv4Addr::from_bits(address);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "route {verb} {address}/32 dev u0 proto bird");
}

/// An `ip` that carries out commands as they are given.
pub(super) struct Changes {
    ip: Child,
    input: ChildStdin,
}

impl Changes {
    pub(super) fn open(router: &Router) -> Result<Self> {
        let mut ip = Command::new("ip")
            .args(["-n", router.netns(), "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run ip (iproute2)")?;
        let input = ip.stdin.take().context("ip has no input")?;
        Ok(Self { ip, input })
    }

    /// Gives it commands, one a line. Waits where it has many to do.
    pub(super) fn give(&mut self, commands: &str) -> Result<()> {
        let written = self.input.write_all(commands.as_bytes());
        written.context("ip ended: a command failed")
    }

    /// Waits until all of them are done.
    pub(super) fn finish(mut self) -> Result<()> {
        drop(self.input);
        let status = self.ip.wait()?;
        ensure!(status.success(), "ip failed ({status})");
        Ok(())
    }
}

/// Changes at a steady rate until it is stopped.
pub(super) struct Storm {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u32>>,
}

impl Storm {
    pub(super) fn start(router: &Router, per_second: u32) -> Result<Self> {
        let lot = FOREIGN.come_and_go(per_second / (1_000 / TICK.as_millis() as u32));
        let changes = lot.lines().count() as u32;
        ensure!(changes != 0, "a storm has 200 changes a second at least");
        let mut ip = Changes::open(router)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (begin, mut lots) = (Instant::now(), 0);
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep((TICK * lots).saturating_sub(begin.elapsed()));
                ip.give(&lot)?;
                lots += 1;
            }
            ip.finish()?;
            Ok(lots * changes)
        });
        Ok(Self { stop, thread })
    }

    /// How many changes were made.
    pub(super) fn stop(self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.join();
        joined.map_err(|_| anyhow!("the thread that changes routes failed"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_goes() {
        let text = FOREIGN.come_and_go(4);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0], "route add 45.0.0.0/32 dev u0 proto bird");
        assert_eq!(lines[3], "route del 45.0.0.1/32 dev u0 proto bird");
        assert_eq!(FOREIGN.all(3).lines().count(), 3);
    }
}
