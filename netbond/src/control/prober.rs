//! Asks every path again and again whether it lives, and keeps the verdicts on all of them.
//!
//! A thread of its own, ahead of others in the scheduler's eyes: what the controller waits for must
//! not delay a probe. The programs in the kernel make, answer and check the probes; this thread only
//! says when, and draws the conclusions. What BFD sessions say of other paths comes here too, to be
//! damped in the same way.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::IoSlice;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytemuck::Zeroable as _;
use netbond_common::{
    abi::{
        BOND_SHARES, MAX_BOND_PATHS, NO_LOSS_KNOWN, NOT_COMPARED, PATH_USABLE, ProbeInfo,
        SETTLED_UNIT, SHARES_MEASURED, Sample, Shares,
    },
    names::Mode,
    probe, turns,
};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, sendmsg, socket,
    },
};

use super::{
    agreement,
    event::Event,
    gap::{self, Gap},
    liveness::{Bfd, BfdLiveness, Liveness, Verdict},
    plan::LEAST_MTU,
    processors::Processors,
    rates::{Candidate, Rates},
    tally::{self, Observation, Tally},
};
use crate::{
    clock::monotonic,
    config::{self, HoldDown, Policies, Probing},
    pins::Pins,
    priority,
    tables::{Raw, Tables, value},
};

/// The longest nap: an answer waits no longer to be seen.
const NAP: Duration = Duration::from_millis(10);
/// The shortest: probes due within it go together.
const LEAST_NAP: Duration = Duration::from_millis(1);
/// A nap that took longer than it should by this, ns, was the machine's doing.
const ABSENCE: u64 = 30_000_000;
/// Between two searches for bond devices that are gone or down, ns.
const LOOK: u64 = 500_000_000;
/// How often what people see is written, ns.
const TELL: u64 = 500_000_000;
/// For so many units of [`SETTLED_UNIT`] the programs take it that flows are settled: a controller that lives
/// says so several times meanwhile.
const SETTLED_FOR: u32 = 4;
/// The least time between two words about a path's share, ns.
const TELL_SHARE: u64 = 10_000_000_000;
/// What the peer says is older than what it said by another path by less than this, ns by its clock; where
/// it seems to be by more, it is another clock.
const OVERTAKEN: u64 = 10_000_000_000;
/// Bytes of an Ethernet header.
const HEADER: usize = 14;
/// Bytes of the longest packet that is asked for, without outer headers: larger MTUs are beyond what underlays
/// have.
const MAX_MTU: u32 = 9216;
/// One in so many of the packets sent is lost, if not all, where they are too long: few are sent then, as TCP
/// waits longer and longer.
const DATA_LOST_OF: u64 = 2;

/// A path to be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Path id.
    pub path: u32,
    /// Name of the bond device.
    pub bond: String,
    /// What the path is: where that changes, nothing that is known of it holds.
    pub identity: Identity,
    pub how: How,
    pub hold_down: HoldDown,
    pub policies: Policies,
    /// Which the peer's must be like, see [`agreement::options`].
    pub options: u8,
    pub sizes: Sizes,
    /// Where the bond goes by what its paths are measured to carry: what is thought of this one.
    pub expected: Option<Expected>,
}

/// What makes packets of the bond long on a path, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Outer headers around a packet of the bond, and around a probe.
    pub headers: u32,
    pub probe_headers: u32,
    /// Whether the path MTU is looked for, or only said whether the bond's longest packets pass.
    pub path_mtu: config::PathMtu,
}

/// What is thought of a path before anything is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Relative to the other paths.
    pub weight: u32,
    /// It counts for no more than this, bytes/s.
    pub cap: Option<u64>,
}

/// What makes a path that path and no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub local: IpAddr,
    pub remote: IpAddr,
    pub device: Option<String>,
}

/// How a path's liveness is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Probes(Probing),
    /// By [`Prober::bfd`].
    Bfd,
}

/// What the thread is told.
enum Order {
    Watch {
        paths: Vec<Watched>,
        failed: BTreeSet<u32>,
        gaps: BTreeMap<u32, Gap>,
    },
    Bfd {
        path: u32,
        session: Bfd,
    },
    LookAtMtu {
        paths: BTreeSet<u32>,
    },
}

/// The running thread; it ends when this is dropped.
pub struct Prober {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Starts it, with no paths yet, in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// Where the maps cannot be opened or the kernel refuses the socket (CAP_NET_RAW).
    pub fn spawn(pins: &Pins, events: tokio::sync::mpsc::Sender<Event>) -> Result<Self> {
        let (sender, orders) = channel();
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
            looked: 0,
            best_rtt: HashMap::new(),
            fastest: HashMap::new(),
            differences: HashMap::new(),
            heard: HashMap::new(),
            gaps: BTreeMap::new(),
            rates: BTreeMap::new(),
            settled: BTreeMap::new(),
            processors: Processors::default(),
            events,
            unsaid: VecDeque::new(),
            random: RandomState::new().build_hasher().finish() | 1,
            told: 0,
            began: false,
        };
        let thread = thread::Builder::new()
            .name("prober".to_owned())
            .spawn(move || {
                priority::favour("probes");
                worker.run(&orders);
            })?;
        Ok(Self {
            orders: Some(sender),
            thread: Some(thread),
        })
    }

    /// Replaces the paths that are watched; those that stay keep what is known of them. `failed` are
    /// those whose BFD sessions an earlier controller saw fail; `gaps` are those of the bonds, by id,
    /// whose flows may move after a pause.
    pub fn watch(&self, paths: Vec<Watched>, failed: BTreeSet<u32>, gaps: BTreeMap<u32, Gap>) {
        self.order(Order::Watch {
            paths,
            failed,
            gaps,
        });
    }

    /// A path's BFD session came up, or went down.
    pub fn bfd(&self, path: u32, session: Bfd) {
        self.order(Order::Bfd { path, session });
    }

    /// What is below these paths changed: other sizes may pass.
    pub fn look_at_mtu(&self, paths: BTreeSet<u32>) {
        self.order(Order::LookAtMtu { paths });
    }

    /// Whether the thread ended, which it does by a fault alone.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn order(&self, order: Order) {
        if let Some(sender) = &self.orders {
            // Fails only where the thread is gone.
            let _ = sender.send(order);
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Target {
    watched: Watched,
    life: Life,
    tally: Tally,
    /// As the peer last told them.
    peer_options: Option<u32>,
    /// As the data plane knows it, ns.
    limit: u64,
    /// What was last told of its share, where that is measured.
    share: Told,
    /// The path MTU as it was last told.
    path_mtu: Option<u32>,
    /// When it began to be watched.
    since: u64,
}

/// A path's share as it was last told, per mille.
#[derive(Clone, Copy, Default)]
struct Told {
    share: u32,
    at_ns: u64,
}

impl Told {
    /// Whether a share is so much another that people may want to know; notes that they do then.
    fn is_news(&mut self, share: u32, now: u64) -> bool {
        let difference = share.abs_diff(self.share);
        let news = difference > (self.share / 4).max(20) && now >= self.at_ns + TELL_SHARE;
        if news {
            *self = Self { share, at_ns: now };
        }
        news
    }
}

enum Life {
    Probed(Box<Liveness>),
    Bfd(BfdLiveness),
}

impl Target {
    fn new(watched: Watched, failed: bool, now: u64) -> Self {
        let hold_down = watched.hold_down;
        let life = match watched.how {
            How::Probes(probing) => {
                let liveness = Liveness::new(probing, hold_down, watched.policies, now);
                Life::Probed(Box::new(liveness))
            }
            How::Bfd => Life::Bfd(BfdLiveness::new(hold_down, failed)),
        };
        Self {
            watched,
            life,
            tally: Tally::default(),
            peer_options: None,
            limit: 0,
            share: Told::default(),
            path_mtu: None,
            since: now,
        }
    }

    /// The same path with other settings; `None` where it is another, or watched in another way.
    fn with(mut self, watched: &Watched) -> Option<Self> {
        let same = self.watched.bond == watched.bond && self.watched.identity == watched.identity;
        match (&mut self.life, watched.how) {
            (Life::Probed(liveness), How::Probes(probing)) if same => {
                liveness.set(probing, watched.hold_down, watched.policies);
            }
            (Life::Bfd(liveness), How::Bfd) if same => liveness.set(watched.hold_down),
            (Life::Probed(_) | Life::Bfd(_), How::Probes(_) | How::Bfd) => return None,
        }
        self.watched = watched.clone();
        Some(self)
    }

    fn probed(&mut self) -> Option<&mut Liveness> {
        match &mut self.life {
            Life::Probed(liveness) => Some(liveness),
            Life::Bfd(_) => None,
        }
    }

    /// Begins with the path MTU that an earlier controller knew; 0: none.
    fn remember(&mut self, path_mtu: u32) {
        if path_mtu != 0
            && self.searches()
            && let Life::Probed(liveness) = &mut self.life
        {
            liveness.remember_path_mtu(path_mtu);
            self.path_mtu = Some(path_mtu);
        }
    }

    fn searches(&self) -> bool {
        self.watched.sizes.path_mtu == config::PathMtu::Probe
    }

    /// The path MTU, if it is not the one that was told: told from now on.
    fn news_of_mtu(&mut self) -> Option<Event> {
        let path_mtu = match &self.life {
            Life::Probed(liveness) if self.searches() => liveness.path_mtu(),
            Life::Probed(_) | Life::Bfd(_) => None,
        };
        let news = std::mem::replace(&mut self.path_mtu, path_mtu) != path_mtu;
        news.then_some(Event::PathMtu {
            path: self.watched.path,
            bytes: path_mtu,
        })
    }

    fn tick(&mut self, now: u64, best_rtt: Option<u64>) -> Option<Verdict> {
        match &mut self.life {
            Life::Probed(liveness) => liveness.tick(now, best_rtt),
            Life::Bfd(liveness) => liveness.tick(now),
        }
    }

    /// The way there, to compare others of the bond with, ns; `None` where the path is no measure.
    fn delay(&self) -> Option<i64> {
        match &self.life {
            Life::Probed(liveness) => liveness.rtt().and(self.tally.delay_ns()),
            Life::Bfd(_) => None,
        }
    }

    /// The same without queues.
    fn least_delay(&self) -> Option<i64> {
        self.delay().and(self.tally.least_delay_ns())
    }

    /// `fastest` is the shortest [`Target::delay`] of the bond's paths.
    fn info(&self, now: u64, fastest: Option<i64>) -> ProbeInfo {
        let info = match &self.life {
            Life::Probed(liveness) => liveness.info(now),
            Life::Bfd(liveness) => liveness.info(now),
        };
        let (offered, delivered) = self.tally.rates(now);
        ProbeInfo {
            data_loss: self.tally.loss().unwrap_or(NO_LOSS_KNOWN),
            peer_options: self.peer_options.unwrap_or(self.watched.options.into()),
            offered,
            delivered,
            queue_ns: self.tally.queue_ns(),
            behind_ns: tally::behind(self.delay(), fastest).unwrap_or(NOT_COMPARED),
            ..info
        }
    }
}

struct Worker {
    tables: Tables,
    frames: OwnedFd,
    paths: BTreeMap<u32, Target>,
    /// Where frames into a bond go.
    bonds: HashMap<String, LinkAddr>,
    /// When that was found out.
    looked: u64,
    /// The shortest round trip among the paths of a bond, ns, by bond id.
    best_rtt: HashMap<u32, u64>,
    /// The shortest way there among them, likewise.
    fastest: HashMap<u32, i64>,
    /// In what the peers of bonds differ from them, as the controller was told, by bond id.
    differences: HashMap<u32, u8>,
    /// When, by its own clock, the peer of a bond last told its options, ns, by bond id.
    heard: HashMap<u32, u64>,
    /// What the bonds ask for whose flows may move after a pause, by id.
    gaps: BTreeMap<u32, Gap>,
    /// What the paths carry of the bonds that go by it, by id.
    rates: BTreeMap<u32, Rates>,
    /// Whether flows keep their paths, by bond, as it was last told: all of them or none.
    settled: BTreeMap<u32, Told>,
    processors: Processors,
    events: tokio::sync::mpsc::Sender<Event>,
    /// What the controller had no room for yet, each of a path.
    unsaid: VecDeque<(u32, Event)>,
    random: u64,
    told: u64,
    /// Whether it was told what to watch.
    began: bool,
}

impl Worker {
    fn run(&mut self, orders: &Receiver<Order>) {
        let (mut slept, mut nap) = (monotonic(), Duration::ZERO);
        loop {
            loop {
                match orders.try_recv() {
                    Ok(Order::Watch {
                        paths,
                        failed,
                        gaps,
                    }) => {
                        self.take_over(paths, &failed);
                        self.gaps = gaps;
                    }
                    Ok(Order::Bfd { path, session }) => self.hear_bfd(path, session),
                    Ok(Order::LookAtMtu { paths }) => self.look_at_mtu(&paths),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let woke = monotonic();
            let absent = woke.saturating_sub(slept + nap.as_nanos() as u64);
            if absent > ABSENCE {
                self.paths
                    .values_mut()
                    .filter_map(Target::probed)
                    .for_each(|liveness| liveness.excuse(absent));
            }
            self.read_answers();
            let next = self.look_at_clock(woke);
            self.say();
            let now = monotonic();
            if now >= self.told + TELL {
                self.told = now;
                self.tell(now);
            }
            nap = next.map_or(NAP, |next| Duration::from_nanos(next.saturating_sub(now)));
            nap = nap.clamp(LEAST_NAP, NAP);
            slept = monotonic();
            thread::sleep(nap);
        }
    }

    /// Tells the controller; never waits for it, as it may be waiting for this thread to end.
    fn say(&mut self) {
        while let Some((path, event)) = self.unsaid.front().cloned() {
            // First what people will look up when they hear of it.
            if let Some(target) = self.paths.get(&path) {
                let fastest = self.fastest.get(&(path / MAX_BOND_PATHS)).copied();
                let info = target.info(monotonic(), fastest);
                let _ = self.tables.probe_info.set(path, Raw(info), 0);
            }
            if self.events.try_send(event).is_err() {
                return;
            }
            self.unsaid.pop_front();
        }
    }

    fn take_over(&mut self, paths: Vec<Watched>, failed: &BTreeSet<u32>) {
        let now = monotonic();
        let mut before = std::mem::take(&mut self.paths);
        let first = !std::mem::replace(&mut self.began, true);
        // At first also those of a controller before this one.
        let stale: Vec<u32> = if first {
            (0..self.tables.limits.len()).collect()
        } else {
            before.keys().copied().collect()
        };
        for watched in paths {
            let path = watched.path;
            let mut kept = before.remove(&path).and_then(|kept| kept.with(&watched));
            // A reload is a word of the user's to look again.
            if let Some(liveness) = kept.as_mut().and_then(Target::probed) {
                liveness.look_at_mtu_again(now);
            }
            let target = kept.unwrap_or_else(|| {
                let mut target = Target::new(watched, failed.contains(&path), now);
                if first && let Some(info) = value(&self.tables.probe_info, path) {
                    target.remember(info.path_mtu);
                }
                target
            });
            self.paths.insert(path, target);
        }
        for path in stale {
            self.clear(path);
        }
        self.unsaid.retain(|(path, _)| {
            self.paths
                .get(path)
                .is_some_and(|target| target.since < now)
        });
        let bonds: BTreeSet<u32> = self.paths.keys().map(|id| id / MAX_BOND_PATHS).collect();
        self.differences.retain(|bond, _| bonds.contains(bond));
        self.heard.retain(|bond, _| bonds.contains(bond));
        self.settled.retain(|bond, _| bonds.contains(bond));
        self.expect(first, now);
        self.find_bonds();
        self.told = 0;
    }

    fn conclude(&mut self, path: u32, verdict: Option<Verdict>) {
        self.unsaid.extend(news(path, verdict));
    }

    /// Takes back what the maps say of a path that is no longer watched, or in another way.
    fn clear(&mut self, path: u32) {
        let how = self.paths.get(&path).map(|target| target.watched.how);
        let limited = matches!(self.tables.limits.get(&path, 0), Ok(limit) if limit != 0);
        if limited && !matches!(how, Some(How::Probes(_))) {
            let _ = self.tables.limits.set(path, 0, 0);
        }
        let told = value(&self.tables.probe_info, path);
        if how.is_none() && told.is_some_and(|info| info != ProbeInfo::zeroed()) {
            let none = Raw(ProbeInfo::zeroed());
            let _ = self.tables.probe_info.set(path, none, 0);
        }
    }

    /// Bond devices may be made anew: their index changes.
    fn find_bonds(&mut self) {
        self.looked = monotonic();
        self.bonds.clear();
        for interface in getifaddrs().into_iter().flatten() {
            if let Some(address) = interface.address.as_ref().and_then(|a| a.as_link_addr()) {
                self.bonds.insert(interface.interface_name, *address);
            }
        }
    }

    fn hear_bfd(&mut self, path: u32, session: Bfd) {
        if let Some(target) = self.paths.get_mut(&path)
            && let Life::Bfd(liveness) = &mut target.life
        {
            let verdict = liveness.report(monotonic(), session);
            self.conclude(path, verdict);
        }
    }

    fn look_at_mtu(&mut self, paths: &BTreeSet<u32>) {
        let now = monotonic();
        let targets = paths.iter();
        for path in targets {
            let target = self.paths.get_mut(path);
            if let Some(liveness) = target.and_then(Target::probed) {
                liveness.look_at_mtu_again(now);
            }
        }
    }

    fn next_answer(&mut self) -> Option<Sample> {
        loop {
            let item = self.tables.samples.next()?;
            if let Ok(sample) = bytemuck::try_pod_read_unaligned(&item) {
                return Some(sample);
            }
        }
    }

    fn read_answers(&mut self) {
        while let Some(sample) = self.next_answer() {
            // What an earlier controller asked, or an earlier path of this id, says nothing.
            let Some(target) = self
                .paths
                .get_mut(&sample.path)
                .filter(|target| sample.at_ns.saturating_sub(sample.rtt_ns) >= target.since)
            else {
                continue;
            };
            let Some(liveness) = target.probed() else {
                continue;
            };
            let verdict = liveness.answer(&sample);
            let observation = target.tally.take(&sample);
            if observation.as_ref().is_some_and(is_as_of_too_long)
                && let Some(liveness) = target.probed()
            {
                liveness.data_is_lost(sample.at_ns);
            }
            target.peer_options = Some(sample.peer_options);
            let difference = agreement::difference(target.watched.options, sample.peer_options);
            let mtu = target.news_of_mtu();
            self.unsaid.extend(mtu.map(|event| (sample.path, event)));
            self.conclude(sample.path, verdict);
            self.compare(&sample, difference);
            if let Some(observation) = observation {
                self.learn(sample.path, &observation);
            }
        }
    }

    /// Tells the controller of a change in what the peer has otherwise.
    fn compare(&mut self, sample: &Sample, difference: u8) {
        let &Sample {
            path,
            peer_options,
            peer_ns,
            ..
        } = sample;
        // What a slower path tells may be older than what is known.
        let heard = self.heard.entry(path / MAX_BOND_PATHS).or_default();
        if heard.wrapping_sub(peer_ns) < OVERTAKEN {
            return;
        }
        *heard = peer_ns;
        let told = self.differences.entry(path / MAX_BOND_PATHS).or_default();
        if std::mem::replace(told, difference) != difference {
            let event = Event::Options {
                path,
                peer: peer_options,
                difference,
            };
            self.unsaid.push_back((path, event));
        }
    }

    /// Sends what is due and draws conclusions; returns when the next is due.
    fn look_at_clock(&mut self, now: u64) -> Option<u64> {
        let mut lost = false;
        let mut next = None;
        for (&path, target) in &mut self.paths {
            let best_rtt = self.best_rtt.get(&(path / MAX_BOND_PATHS)).copied();
            if let Life::Probed(liveness) = &mut target.life {
                if now >= liveness.next() {
                    // Xorshift: probes must not march in step, nothing more.
                    self.random ^= self.random << 13;
                    self.random ^= self.random >> 7;
                    self.random ^= self.random << 17;
                    let long = liveness.sent(now, self.random as u32);
                    let bond = self.bonds.get(&target.watched.bond);
                    let sent = ask(&self.frames, bond, path, 0);
                    lost |= matches!(sent, Err(Errno::ENXIO | Errno::ENODEV | Errno::ENETDOWN));
                    let headers = target.watched.sizes.probe_headers;
                    if let Some(bytes) = long
                        && ask(&self.frames, bond, path, bytes.saturating_sub(headers)).is_err()
                    {
                        liveness.long_one_not_sent(now);
                    }
                }
                let due = liveness.next();
                next = Some(next.map_or(due, |next: u64| next.min(due)));
                let limit = liveness.limit_ns();
                // Not for every little change: the data plane reads it for each packet.
                if liveness.is_known() && limit.abs_diff(target.limit) > limit / 16 {
                    target.limit = limit;
                    let _ = self.tables.limits.set(path, limit, 0);
                }
            }
            let verdict = target.tick(now, best_rtt);
            let mtu = target.news_of_mtu();
            self.unsaid.extend(mtu.map(|event| (path, event)));
            self.unsaid.extend(news(path, verdict));
        }
        if lost && now >= self.looked + LOOK {
            self.find_bonds();
        }
        next
    }

    /// Writes what people may know, and looks at what changes slowly.
    fn tell(&mut self, now: u64) {
        self.best_rtt.clear();
        self.fastest.clear();
        for (&path, target) in &mut self.paths {
            let bond = path / MAX_BOND_PATHS;
            let Sizes {
                headers, path_mtu, ..
            } = target.watched.sizes;
            if let Some(liveness) = target.probed() {
                let info = self.tables.bond_info(bond);
                let bounds = info.and_then(|info| match path_mtu {
                    config::PathMtu::Probe => {
                        let most = info.mtu_ceiling.min(MAX_MTU);
                        (most != 0).then_some((LEAST_MTU, most))
                    }
                    config::PathMtu::Fixed => Some((info.mtu, info.mtu)),
                });
                if let Some((least, most)) = bounds {
                    liveness.set_mtu_bounds(least, most, headers, now);
                }
                if let Some(rtt) = liveness.rtt() {
                    let best = self.best_rtt.entry(bond).or_insert(rtt);
                    *best = rtt.min(*best);
                }
            }
            if let Some(delay) = target.delay() {
                let fastest = self.fastest.entry(bond).or_insert(delay);
                *fastest = delay.min(*fastest);
            }
            if let Some(rates) = self.rates.get_mut(&bond) {
                rates.set_delay(path % MAX_BOND_PATHS, target.least_delay());
            }
        }
        for (&path, target) in &self.paths {
            let fastest = self.fastest.get(&(path / MAX_BOND_PATHS)).copied();
            let info = Raw(target.info(now, fastest));
            let _ = self.tables.probe_info.set(path, info, 0);
        }
        self.set_gaps();
        let saturated = !self.rates.is_empty() && self.processors.is_saturated();
        for (&bond, rates) in &mut self.rates {
            let lane = value(&self.tables.lanes, bond);
            let in_order = lane.is_some_and(|lane| lane.mode == Mode::Adaptive as u32);
            rates.set_host(in_order, saturated);
        }
        // Paths come into use, and go out of it.
        let bonds: Vec<u32> = self.rates.keys().copied().collect();
        bonds.into_iter().for_each(|bond| self.set_shares(bond));
    }

    /// Begins, goes on or ends to measure what the paths of each bond carry.
    fn expect(&mut self, first: bool, now: u64) {
        let mut before = std::mem::take(&mut self.rates);
        let mut expected: BTreeMap<u32, Vec<(u32, Expected)>> = BTreeMap::new();
        for (&path, target) in &self.paths {
            if let Some(what) = target.watched.expected {
                let paths = expected.entry(path / MAX_BOND_PATHS).or_default();
                paths.push((path % MAX_BOND_PATHS, what));
            }
        }
        for (bond, paths) in expected {
            let mut rates = before.remove(&bond).unwrap_or_default();
            // A controller before this one knew more than the configuration does.
            let mut known: BTreeMap<u32, f64> = BTreeMap::new();
            if first
                && let Some(shares) =
                    value(&self.tables.shares, bond * BOND_SHARES + SHARES_MEASURED)
            {
                known = turns::weights(&shares);
            }
            let candidate = |(path, expected): (u32, Expected)| Candidate {
                path,
                weight: expected.weight.into(),
                taken_over: known.get(&path).copied(),
                cap: expected.cap.map(|cap| cap as f64),
            };
            for &(path, _) in &paths {
                let target = self.paths.get(&(bond * MAX_BOND_PATHS + path));
                if target.is_some_and(|target| target.since == now) {
                    rates.forget(path);
                }
            }
            let candidates: Vec<Candidate> = paths.into_iter().map(candidate).collect();
            rates.set(&candidates);
            self.rates.insert(bond, rates);
        }
    }

    /// Takes in what was measured on a path, and tells the programs where that changes the shares.
    fn learn(&mut self, path: u32, observation: &Observation) {
        let bond = path / MAX_BOND_PATHS;
        if let Some(rates) = self.rates.get_mut(&bond)
            && rates.observe(path % MAX_BOND_PATHS, observation)
        {
            self.set_shares(bond);
        }
    }

    /// Writes how the bytes of a bond are to be divided, if that is not what is written.
    fn set_shares(&mut self, bond: u32) {
        let Some(rates) = self.rates.get_mut(&bond) else {
            return;
        };
        let usable = |path: u32| {
            let path = value(&self.tables.paths, bond * MAX_BOND_PATHS + path);
            path.is_some_and(|path| path.flags & PATH_USABLE != 0)
        };
        let mut wanted = rates.weights(usable);
        // A policy may give a path less than it carries.
        for (path, weight) in &mut wanted {
            let info = self.tables.path_info(bond * MAX_BOND_PATHS + path);
            if info.is_some_and(|info| info.quarters < 4 * info.weight) {
                *weight = weight.div_ceil(4);
            }
        }
        let mut weights = [0; MAX_BOND_PATHS as usize];
        for (&path, &weight) in &wanted {
            if let Some(slot) = weights.get_mut(path as usize) {
                *slot = weight;
            }
        }
        let (now, all) = (monotonic(), wanted.values().sum::<u32>().max(1));
        for (path, weight) in wanted {
            let per_mille = (u64::from(weight) * 1000 / u64::from(all)) as u32;
            let id = bond * MAX_BOND_PATHS + path;
            let Some(target) = self.paths.get_mut(&id) else {
                continue;
            };
            if target.share.is_news(per_mille, now) {
                let carries = rates.known(path).map(|rate| rate as u64);
                let event = Event::Share {
                    path: id,
                    per_mille,
                    carries,
                };
                self.unsaid.push_back((id, event));
            }
        }
        let settled = rates.is_settled();
        let told = self.settled.entry(bond).or_default();
        let has_settled = rates.has_settled();
        if told.is_news(if has_settled { 1000 } else { 0 }, now) {
            let of_bond = bond * MAX_BOND_PATHS..(bond + 1) * MAX_BOND_PATHS;
            if let Some((&path, _)) = self.paths.range(of_bond).next() {
                self.unsaid.push_back((
                    path,
                    Event::Settled {
                        path,
                        striped: (!has_settled).then(|| rates.stripe_cause()),
                    },
                ));
            }
        }
        let settled_until = if settled {
            (now >> SETTLED_UNIT) as u32 + SETTLED_FOR
        } else {
            0
        };
        let (index, shares) = (
            bond * BOND_SHARES + SHARES_MEASURED,
            Shares {
                settled_until,
                ..turns::shares(&weights)
            },
        );
        // Where no path is usable, the last word stands.
        if shares.count != 0 && value(&self.tables.shares, index) != Some(shares) {
            let _ = self.tables.shares.set(index, Raw(shares), 0);
        }
    }

    /// Tells the programs after what pause flows may move.
    fn set_gaps(&mut self) {
        for (&bond, gap) in &self.gaps {
            let first = bond * MAX_BOND_PATHS;
            let paths = self.paths.range_mut(first..first + MAX_BOND_PATHS);
            let gap = match gap {
                Gap::Fixed(gap) => gap.as_nanos() as u64,
                Gap::Measured => {
                    let measures = paths.filter_map(|(_, target)| target.probed());
                    let measures: Vec<_> = measures
                        .filter_map(|liveness| liveness.rtt_and_deviation())
                        .collect();
                    gap::measured(&measures)
                }
            };
            // As with limits: not for every little change.
            let known = self.tables.gaps.get(&bond, 0).unwrap_or_default();
            if gap.abs_diff(known) > gap / 16 {
                let _ = self.tables.gaps.set(bond, gap, 0);
            }
        }
    }
}

/// Whether packets are lost as where they are too long: of what is lost in a queue that is full much arrives.
fn is_as_of_too_long(observation: &Observation) -> bool {
    observation.lost_packets != 0
        && observation.lost_packets * DATA_LOST_OF >= observation.sent_packets
        && observation.delivered_bytes < LEAST_MTU.into()
}

/// What the controller is told of a verdict, with its path.
fn news(path: u32, verdict: Option<Verdict>) -> Option<(u32, Event)> {
    Some((
        path,
        Event::Liveness {
            path,
            verdict: verdict?,
        },
    ))
}

/// Has the program send a probe of `bytes`, or of the least that one has.
fn ask(frames: &OwnedFd, bond: Option<&LinkAddr>, path: u32, bytes: u32) -> nix::Result<()> {
    let bond = bond.ok_or(Errno::ENODEV)?;
    let mut frame = [0; HEADER + probe::LEN];
    frame[12] = 0x08;
    frame[HEADER] = probe::TRIGGER | (path % MAX_BOND_PATHS) as u8;
    frame[HEADER + 1..HEADER + 3].copy_from_slice(&(bytes as u16).to_be_bytes());
    let parts = [IoSlice::new(&frame)];
    let flags = MsgFlags::MSG_DONTWAIT;
    sendmsg(frames.as_raw_fd(), &parts, &[], flags, Some(bond)).map(|_| ())
}
