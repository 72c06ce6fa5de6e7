//! Asks every path again and again whether it lives.
//!
//! A thread of its own, ahead of others in the scheduler's eyes: what the controller waits for must
//! not delay a probe. The programs in the kernel make, answer and check the probes; this thread only
//! says when, and draws the conclusions.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytemuck::Zeroable as _;
use netbond_common::{
    abi::{MAX_BOND_PATHS, ProbeInfo, Sample},
    probe,
};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, sendmsg, socket,
    },
    time::{ClockId, clock_gettime},
};
use tracing::warn;

use super::{
    event::Event,
    liveness::{Liveness, Verdict},
};
use crate::{
    config::Probing,
    pins::Pins,
    tables::{Raw, Tables},
};

/// The longest nap: an answer waits no longer to be seen.
const NAP: Duration = Duration::from_millis(10);
/// The shortest: probes due within it go together.
const LEAST_NAP: Duration = Duration::from_millis(1);
/// A nap that took longer than this, ns, was the machine's doing.
const ABSENCE: u64 = 30_000_000;
/// How often what people see is written, ns.
const TELL: u64 = 500_000_000;
/// The scheduler's favour.
const NICE: i32 = -15;

/// A path to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Path id.
    pub path: u32,
    /// Name of the bond device.
    pub bond: String,
    pub probing: Probing,
}

/// The running thread; it ends when this is dropped.
pub struct Prober {
    paths: Option<Sender<Vec<Probed>>>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Starts it, with no paths yet, in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// Where the maps cannot be opened or the kernel refuses the socket (CAP_NET_RAW).
    pub fn spawn(pins: &Pins, events: tokio::sync::mpsc::Sender<Event>) -> Result<Self> {
        let (paths, changes) = channel();
        let frames = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None::<SockProtocol>,
        )
        .context("opening the packet socket that probes go through (CAP_NET_RAW needed)")?;
        let mut worker = Worker {
            tables: Tables::open(pins)?,
            frames,
            paths: BTreeMap::new(),
            bonds: HashMap::new(),
            events,
            unsaid: VecDeque::new(),
            random: RandomState::new().build_hasher().finish() | 1,
            told: 0,
        };
        let thread = thread::Builder::new()
            .name("prober".to_owned())
            .spawn(move || {
                favour();
                worker.run(&changes);
            })?;
        Ok(Self {
            paths: Some(paths),
            thread: Some(thread),
        })
    }

    /// Replaces the paths that are probed; those that stay keep what is known of them.
    pub fn probe(&self, paths: Vec<Probed>) {
        if let Some(sender) = &self.paths {
            // Fails only where the thread is gone.
            let _ = sender.send(paths);
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.paths = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Puts the calling thread ahead of others; without the right to it all goes on as well.
fn favour() {
    // SAFETY: a plain system call on this thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    if result != 0 {
        warn!("probes may be late on a busy machine: no right to priority (CAP_SYS_NICE)");
    }
}

struct Target {
    probed: Probed,
    liveness: Liveness,
    /// As the data plane knows it, ns.
    limit: u64,
}

struct Worker {
    tables: Tables,
    frames: OwnedFd,
    paths: BTreeMap<u32, Target>,
    /// Where frames into a bond go.
    bonds: HashMap<String, LinkAddr>,
    events: tokio::sync::mpsc::Sender<Event>,
    /// Verdicts that the controller had no room for yet.
    unsaid: VecDeque<(u32, Verdict)>,
    random: u64,
    told: u64,
}

impl Worker {
    fn run(&mut self, changes: &Receiver<Vec<Probed>>) {
        let mut slept = monotonic();
        loop {
            match changes.try_recv() {
                Ok(paths) => self.take_over(paths),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            let woke = monotonic();
            let absent = woke.saturating_sub(slept);
            if absent > ABSENCE {
                for target in self.paths.values_mut() {
                    target.liveness.excuse(absent);
                }
            }
            self.send_due(woke);
            let answers = self.read_answers();
            let now = monotonic();
            let late = self.look_at_clock(now);
            self.say(answers.into_iter().chain(late));
            if now >= self.told + TELL {
                self.told = now;
                self.tell();
            }
            let next = self
                .paths
                .values()
                .map(|target| target.liveness.next())
                .min();
            let nap = next.map_or(NAP, |next| Duration::from_nanos(next.saturating_sub(now)));
            slept = monotonic();
            thread::sleep(nap.clamp(LEAST_NAP, NAP));
        }
    }

    /// Tells the controller; never waits for it, as it may be waiting for this thread to end.
    fn say(&mut self, verdicts: impl Iterator<Item = (u32, Verdict)>) {
        self.unsaid.extend(verdicts);
        while let Some((path, verdict)) = self.unsaid.front().copied() {
            if self
                .events
                .try_send(Event::Liveness { path, verdict })
                .is_err()
            {
                return;
            }
            self.unsaid.pop_front();
        }
    }

    fn take_over(&mut self, paths: Vec<Probed>) {
        let now = monotonic();
        let mut before = std::mem::take(&mut self.paths);
        for probed in paths {
            let kept = before
                .remove(&probed.path)
                .filter(|target| target.probed == probed);
            let target = kept.unwrap_or_else(|| Target {
                liveness: Liveness::new(probed.probing, now),
                probed,
                limit: 0,
            });
            self.paths.insert(target.probed.path, target);
        }
        // Also of a controller before this one.
        for path in 0..self.tables.limits.len() {
            let limited = matches!(self.tables.limits.get(&path, 0), Ok(limit) if limit != 0);
            if limited && !self.paths.contains_key(&path) {
                let _ = self.tables.limits.set(path, 0, 0);
                let _ = self
                    .tables
                    .probe_info
                    .set(path, Raw(ProbeInfo::zeroed()), 0);
            }
        }
        self.find_bonds();
    }

    /// Bond devices may be made anew: their index changes.
    fn find_bonds(&mut self) {
        self.bonds.clear();
        for interface in getifaddrs().into_iter().flatten() {
            if let Some(address) = interface.address.as_ref().and_then(|a| a.as_link_addr()) {
                self.bonds.insert(interface.interface_name, *address);
            }
        }
    }

    fn send_due(&mut self, now: u64) {
        let mut lost = false;
        for (path, target) in &mut self.paths {
            if now < target.liveness.next() {
                continue;
            }
            // Xorshift: probes must not march in step, nothing more.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            target.liveness.sent(now, self.random as u32);
            let Some(bond) = self.bonds.get(&target.probed.bond) else {
                lost = true;
                continue;
            };
            let frame = frame(path % MAX_BOND_PATHS);
            let parts = [IoSlice::new(&frame)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let sent = sendmsg(self.frames.as_raw_fd(), &parts, &[], flags, Some(bond));
            // The device is gone, or down.
            lost |= matches!(sent, Err(Errno::ENXIO | Errno::ENODEV | Errno::ENETDOWN));
        }
        if lost {
            self.find_bonds();
        }
    }

    fn read_answers(&mut self) -> Vec<(u32, Verdict)> {
        let mut verdicts = Vec::new();
        while let Some(item) = self.tables.samples.next() {
            let Ok(sample) = bytemuck::try_pod_read_unaligned::<Sample>(&item) else {
                continue;
            };
            let target = self.paths.get_mut(&sample.path);
            let verdict = target.and_then(|target| target.liveness.answer(&sample));
            verdicts.extend(verdict.map(|verdict| (sample.path, verdict)));
        }
        verdicts
    }

    fn look_at_clock(&mut self, now: u64) -> Vec<(u32, Verdict)> {
        let mut verdicts = Vec::new();
        for (path, target) in &mut self.paths {
            let verdict = target.liveness.tick(now);
            verdicts.extend(verdict.map(|verdict| (*path, verdict)));
            let limit = target.liveness.limit_ns();
            // Not for every little change: the data plane reads it for each packet.
            if limit.abs_diff(target.limit) > limit / 16 {
                target.limit = limit;
                let _ = self.tables.limits.set(*path, limit, 0);
            }
        }
        verdicts
    }

    fn tell(&mut self) {
        for (path, target) in &self.paths {
            let _ = self
                .tables
                .probe_info
                .set(*path, Raw(target.liveness.info()), 0);
        }
    }
}

/// The frame that asks for a probe on a slot of its bond.
fn frame(slot: u32) -> [u8; 14 + probe::LEN] {
    let mut frame = [0; 14 + probe::LEN];
    frame[12] = 0x08;
    frame[14] = probe::TRIGGER | slot as u8;
    frame
}

/// CLOCK_MONOTONIC, ns: the clock of the programs.
fn monotonic() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| Duration::from(now).as_nanos() as u64)
}
