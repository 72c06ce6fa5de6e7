//! Sockets and timers of the sessions (RFC 5881, RFC 5883).
//!
//! Each local address (on its device) has a task with a receiving socket, and one more for sessions
//! over several hops; each session has a sending socket, for its source port is its own (RFC 5881,
//! 4).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::pending;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    SockaddrStorage, bind, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use nix::time::{ClockId, clock_gettime};
use tokio::io::Interest;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::packet::{Diagnostic, Packet, Reject, State};
use super::session::{Actions, Config, Event, Session};
use crate::random;

/// Source ports of control packets: 49152 to 65535 (RFC 5881, 4).
const SOURCE_PORTS: (u16, u16) = (49152, 16384);

/// Source ports tried for one socket; another program holds few of them.
const PORT_ATTEMPTS: usize = 64;

/// TTL or hop limit sent, and demanded of a single hop: nobody further away can send it (RFC 5881,
/// 5; RFC 5082).
const TTL: i32 = 255;

/// DSCP CS6, network control, as the octet of the IP header.
const TRAFFIC_CLASS: i32 = 0xc0;

/// Bytes of a payload that are looked at; the Length field says at most 255.
const PAYLOAD: usize = 512;

/// Datagrams read before timers are looked after again.
const DATAGRAMS: usize = 64;

/// Between attempts to open the sockets; twice as long after each.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Between looks at whether the device is still the one that the sockets are bound to.
const CHECK: Duration = Duration::from_secs(1);

/// Packets of a peer for a session unknown here, without one for ours between them, until somebody
/// else must be meant. After a restart of ours the peer sends a few, by the old multiplier.
const STRANGERS: u32 = 20;

/// The shortest interval that timers here can keep.
const SHORTEST: Duration = Duration::from_millis(1);

/// A session to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// Names it in reports; unique.
    pub id: u32,
    /// An address of this host; packets come from it and must go to it.
    pub local: IpAddr,
    /// The peer's address.
    pub remote: IpAddr,
    pub hops: Hops,
    /// The only device that packets may leave by and, over a single hop, come in on; a link-local
    /// address needs one.
    pub device: Option<String>,
    /// Between the packets to send, at least; the peer may want them slower.
    pub tx_interval: Duration,
    /// Between packets that can be received; the peer may send them slower.
    pub rx_interval: Duration,
    /// How many packets may be missed before the session is down.
    pub multiplier: u8,
}

/// How far away the peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hops {
    /// On the same link (RFC 5881).
    Single,
    /// Behind other routers (RFC 5883). Packets may come in on any device, and from anybody who can
    /// send in the peer's name.
    Multi,
}

impl Hops {
    /// UDP port of control packets (RFC 5881, 4; RFC 5883, 5).
    const fn port(self) -> u16 {
        match self {
            Self::Single => 3784,
            Self::Multi => 4784,
        }
    }
}

/// A session came up, or is no longer up. A session that nothing was reported of is not up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// [`SessionConfig::id`].
    pub id: u32,
    pub up: bool,
    /// Whether the peer took it down on purpose: no sign of a failure.
    pub ended: bool,
    /// Why it is down.
    pub diag: Diagnostic,
    /// When it happened: nanoseconds of `CLOCK_BOOTTIME`.
    pub at: u64,
}

/// Running sessions; they end when this is dropped, and the peers are told that they were ended and
/// did not fail.
pub struct Speaker {
    tasks: JoinSet<()>,
    rejected: Arc<Rejected>,
}

impl Speaker {
    /// Starts the sessions on the runtime at hand ([`super::Thread::enter`]), in the network namespace of its
    /// threads.
    ///
    /// An address, device or port that cannot be had yet is tried again until it can. A receiver
    /// that is slow gets only the newest report of each session, and delays none.
    ///
    /// # Errors
    /// A session makes no sense, or there are no random numbers.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(
        sessions: Vec<SessionConfig>,
        sender: mpsc::Sender<Report>,
    ) -> anyhow::Result<Self> {
        let rejected = Arc::new(Rejected::default());
        let mut tasks = JoinSet::new();
        for task in self::tasks(sessions, &rejected)? {
            tasks.spawn(task.run(sender.clone()));
        }
        Ok(Self { tasks, rejected })
    }

    /// How many packets were discarded for this reason.
    #[must_use]
    pub fn rejected(&self, reason: Reject) -> u64 {
        self.rejected.0[reason as usize].load(Ordering::Relaxed)
    }

    /// Waits until some sessions end: nobody receives reports any more, or their task failed.
    ///
    /// # Errors
    /// The task failed.
    pub async fn finished(&mut self) -> anyhow::Result<()> {
        match self.tasks.join_next().await {
            Some(ended) => ended.context("the BFD speaker died"),
            None => pending().await,
        }
    }
}

/// A task for each place where packets arrive.
fn tasks(sessions: Vec<SessionConfig>, rejected: &Arc<Rejected>) -> anyhow::Result<Vec<Task>> {
    let mut random = Random::new().context("cannot read /dev/urandom")?;
    let (mut ids, mut ends, mut discriminators) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::from([0]));
    let mut peers: BTreeMap<Local, Vec<Peer>> = BTreeMap::new();
    for session in sessions {
        let config = session.checked()?;
        let SessionConfig {
            id,
            local,
            remote,
            hops,
            device,
            ..
        } = session;
        let local = Local {
            address: local,
            device: device.clone().filter(|_| hops == Hops::Single),
            hops,
        };
        ensure!(
            ids.insert(id),
            "two BFD sessions have the id {id}: number them apart"
        );
        ensure!(
            ends.insert((local.clone(), remote)),
            "two BFD sessions go from {local} to {remote}: remove one"
        );
        let discriminator = loop {
            let discriminator = random.next();
            if discriminators.insert(discriminator) {
                break discriminator;
            }
        };
        peers.entry(local).or_default().push(Peer {
            id,
            remote,
            device,
            session: Session::new(config, discriminator),
            source_port: random.source_port(),
            send_fails: false,
            strangers: 0,
        });
    }
    let task = |(local, peers)| {
        Ok(Task {
            local,
            peers,
            sockets: None,
            check_at: 0,
            retry: RETRY.0,
            complaint: None,
            pending: BTreeMap::new(),
            rejected: Arc::clone(rejected),
            random: Random::new().context("cannot read /dev/urandom")?,
        })
    };
    peers.into_iter().map(task).collect()
}

impl SessionConfig {
    fn checked(&self) -> anyhow::Result<Config> {
        let Self {
            id, local, remote, ..
        } = self;
        ensure!(
            local.is_ipv4() == remote.is_ipv4(),
            "BFD session {id} goes from {local} to {remote}: use addresses of one family"
        );
        let link_local = |address: &IpAddr| match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if link_local(local) || link_local(remote) {
            ensure!(
                self.device.is_some(),
                "BFD session {id} goes from {local} to {remote}: a link-local address needs a \
                 device"
            );
            ensure!(
                self.hops == Hops::Single,
                "BFD session {id} goes from {local} to {remote}: no router forwards to or from a \
                 link-local address, use a single hop"
            );
        }
        ensure!(
            self.multiplier > 0,
            "BFD session {id} has the multiplier 0: give 1 or more"
        );
        let micros = |what, interval: Duration| {
            u32::try_from(interval.as_micros())
                .ok()
                .filter(|_| interval >= SHORTEST)
                .with_context(|| {
                    format!(
                        "BFD session {id} has a {what} interval of {interval:?}: give 1 ms to 1 h"
                    )
                })
        };
        Ok(Config {
            desired_min_tx: micros("transmit", self.tx_interval)?,
            required_min_rx: micros("receive", self.rx_interval)?,
            multiplier: self.multiplier,
        })
    }
}

/// Counters, by the value of [`Reject`].
#[derive(Default)]
struct Rejected([AtomicU64; Reject::ALL.len()]);

/// Where the sockets of a task are bound.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Local {
    address: IpAddr,
    /// `None` over several hops: packets may come back another way than they went (RFC 5883).
    device: Option<String>,
    hops: Hops,
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.device {
            Some(device) => write!(f, "{} on {device}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

struct Peer {
    id: u32,
    remote: IpAddr,
    /// The device that packets leave by.
    device: Option<String>,
    session: Session,
    /// The same for all packets of the session (RFC 5881, 4).
    source_port: u16,
    /// Whether the last packet could not be sent.
    send_fails: bool,
    /// Packets in a row that were for a session unknown here.
    strangers: u32,
}

struct Sockets {
    /// The device when they were bound to it; 0 where they are bound to none.
    ifindex: u32,
    receiver: tokio::net::UdpSocket,
    /// In the order of the peers.
    senders: Vec<UdpSocket>,
}

/// The sessions of a local address.
struct Task {
    local: Local,
    peers: Vec<Peer>,
    sockets: Option<Sockets>,
    /// When to look after the sockets.
    check_at: u64,
    retry: Duration,
    /// What was last said of sockets that cannot be opened: it is said once.
    complaint: Option<String>,
    /// Reports that wait for their receiver, by session.
    pending: BTreeMap<u32, Report>,
    rejected: Arc<Rejected>,
    random: Random,
}

impl Task {
    async fn run(mut self, reports: mpsc::Sender<Report>) {
        loop {
            self.check();
            // Packets first: they are no reason to expire only because this task was late.
            self.receive_all();
            self.tick();
            let deadlines = self
                .peers
                .iter()
                .filter_map(|peer| peer.session.next_deadline());
            let wake = deadlines.fold(self.check_at, u64::min);
            tokio::select! {
                () = readable(self.sockets.as_ref()) => {}
                () = sleep(Duration::from_nanos(wake.saturating_sub(now_ns()))) => {}
                permit = reports.reserve(), if !self.pending.is_empty() => {
                    let Ok(permit) = permit else {
                        return;
                    };
                    if let Some((_, report)) = self.pending.pop_first() {
                        permit.send(report);
                    }
                }
                () = reports.closed() => return,
            }
        }
    }

    /// Opens the sockets where they are missing, or bound to a device that is gone.
    fn check(&mut self) {
        let now = now_ns();
        if now < self.check_at {
            return;
        }
        if let (Some(sockets), Some(device)) = (&self.sockets, &self.local.device) {
            // A device that was made anew has another index.
            if if_nametoindex(device.as_str()) != Ok(sockets.ifindex) {
                self.sockets = None;
            }
        }
        let wait = if self.sockets.is_some() {
            CHECK
        } else {
            match self.open() {
                Ok(sockets) => {
                    if self.complaint.take().is_some() {
                        info!("BFD listens at {}", self.local);
                    }
                    self.sockets = Some(sockets);
                    self.retry = RETRY.0;
                    CHECK
                }
                Err(error) => {
                    let complaint = error.to_string();
                    if self.complaint.as_ref() != Some(&complaint) {
                        warn!("{complaint}");
                        self.complaint = Some(complaint);
                    }
                    let next = (self.retry * 2).min(RETRY.1);
                    std::mem::replace(&mut self.retry, next)
                }
            }
        };
        self.check_at = now.saturating_add(nanos(wait));
    }

    fn open(&mut self) -> anyhow::Result<Sockets> {
        let ifindex = match &self.local.device {
            Some(device) => if_nametoindex(device.as_str()).map_err(|errno| {
                anyhow!("no BFD at {} yet: {errno}; create the device", self.local)
            })?,
            None => 0,
        };
        let receiver = self
            .local
            .listen(ifindex)
            .and_then(tokio::net::UdpSocket::from_std)
            .map_err(|error| self.local.explain(&error))?;
        let mut senders = Vec::new();
        for peer in &mut self.peers {
            let sender = self
                .local
                .sender(ifindex, &mut peer.source_port, &mut self.random)
                .map_err(|error| self.local.explain(&error))?;
            senders.push(sender);
        }
        Ok(Sockets {
            ifindex,
            receiver,
            senders,
        })
    }

    fn receive_all(&mut self) {
        for _ in 0..DATAGRAMS {
            let Some(sockets) = &self.sockets else {
                return;
            };
            let mut payload = [0; PAYLOAD];
            let received = sockets.receiver.try_io(Interest::READABLE, || {
                receive(&sockets.receiver, &mut payload)
            });
            match received {
                Ok(datagram) => {
                    let payload = &payload[..datagram.length];
                    if let Err(reject) = self.accept(&datagram, payload) {
                        self.rejected.0[reject as usize].fetch_add(1, Ordering::Relaxed);
                        debug!(source = ?datagram.source, %reject, "BFD packet discarded");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    debug!(%error, "BFD at {} cannot receive: opening again", self.local);
                    self.sockets = None;
                    self.check_at = now_ns().saturating_add(nanos(self.retry));
                }
            }
        }
    }

    /// Hands a packet to its session (RFC 5880, 6.3 and 6.8.6).
    fn accept(&mut self, datagram: &Datagram, payload: &[u8]) -> Result<(), Reject> {
        if self.local.hops == Hops::Single && datagram.ttl != Some(TTL) {
            return Err(Reject::Ttl);
        }
        let packet = Packet::decode(payload)?;
        let from = |peer: &Peer| Some(peer.remote) == datagram.source;
        let index = if packet.your_discriminator == 0 {
            self.peers
                .iter()
                .position(from)
                .ok_or(Reject::UnknownSource)?
        } else {
            let named = |peer: &Peer| peer.session.discriminator() == packet.your_discriminator;
            let Some(index) = self.peers.iter().position(named) else {
                if let Some(peer) = self.peers.iter_mut().find(|peer| from(peer)) {
                    peer.is_strange(&self.local);
                }
                return Err(Reject::UnknownDiscriminator);
            };
            index
        };
        let now = now_ns();
        let peer = &mut self.peers[index];
        peer.strangers = 0;
        let actions = peer.session.on_packet(now, &packet, self.random.next())?;
        self.act(index, actions, now);
        Ok(())
    }

    fn tick(&mut self) {
        for index in 0..self.peers.len() {
            let now = now_ns();
            let actions = self.peers[index].session.on_tick(now, self.random.next());
            self.act(index, actions, now);
        }
    }

    fn act(&mut self, index: usize, actions: Actions, now: u64) {
        let peer = &mut self.peers[index];
        if let (Some(packet), Some(sockets)) = (actions.send, &self.sockets) {
            peer.send(&self.local, &sockets.senders[index], &packet);
        }
        let Some(event) = actions.event else {
            return;
        };
        let (up, ended, diag) = match event {
            Event::Up => (true, false, Diagnostic::None),
            Event::Down { diagnostic, ended } => (false, ended, diagnostic),
        };
        let (id, at) = (peer.id, now);
        info!(
            session = id,
            remote = %peer.remote,
            diagnostic = %diag,
            "BFD session with {} {}",
            peer.remote,
            if up { "up" } else { "down" }
        );
        self.pending.insert(
            id,
            Report {
                id,
                up,
                ended,
                diag,
                at,
            },
        );
    }
}

impl Drop for Task {
    /// The peers learn that nothing failed (RFC 5880, 6.8.16; RFC 5882, 3.2).
    fn drop(&mut self) {
        let now = now_ns();
        let Some(sockets) = &self.sockets else {
            return;
        };
        for (peer, sender) in self.peers.iter_mut().zip(&sockets.senders) {
            if peer.session.state() == State::Up
                && let Some(packet) = peer.session.disable(now, 0).send
            {
                peer.send(&self.local, sender, &packet);
            }
        }
    }
}

impl Peer {
    fn send(&mut self, local: &Local, sender: &UdpSocket, packet: &Packet) {
        match self.try_send(local, sender, packet) {
            Ok(()) => self.send_fails = false,
            Err(error) => {
                if !std::mem::replace(&mut self.send_fails, true) {
                    let remote = self.remote;
                    warn!(session = self.id, "cannot send BFD to {remote}: {error}");
                }
            }
        }
    }

    /// Names the device with each packet: where packets may come in on any, the socket is bound to
    /// none.
    fn try_send(&self, local: &Local, sender: &UdpSocket, packet: &Packet) -> nix::Result<()> {
        let ifindex = match &self.device {
            Some(device) => if_nametoindex(device.as_str())?,
            None => 0,
        };
        let (v4, v6);
        let source = match local.address {
            IpAddr::V4(address) => {
                v4 = libc::in_pktinfo {
                    ipi_ifindex: ifindex.cast_signed(),
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(address.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                ControlMessage::Ipv4PacketInfo(&v4)
            }
            IpAddr::V6(address) => {
                v6 = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: address.octets(),
                    },
                    ipi6_ifindex: ifindex,
                };
                ControlMessage::Ipv6PacketInfo(&v6)
            }
        };
        let to = SockaddrStorage::from(socket_address(self.remote, local.hops.port(), ifindex));
        let bytes = packet.encode();
        sendmsg(
            sender.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            &[source],
            MsgFlags::empty(),
            Some(&to),
        )?;
        Ok(())
    }

    /// Its packets are for another session than ours.
    fn is_strange(&mut self, local: &Local) {
        self.strangers = self.strangers.saturating_add(1);
        if self.strangers == STRANGERS {
            warn!(
                "{} speaks BFD to {local}, but not with netbond: if BIRD or FRR on this host has a \
                 session with it as well, remove one of the two",
                self.remote
            );
        }
    }
}

impl Local {
    /// The receiving socket. Shares the port with speakers on other addresses, or on all of them,
    /// that allow it as well (BIRD and bfdd do); the packets to this address come here.
    fn listen(&self, ifindex: u32) -> io::Result<UdpSocket> {
        let socket = self.socket()?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        match self.address {
            IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?,
            IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?,
        }
        self.bind(&socket, self.hops.port(), ifindex)?;
        Ok(socket)
    }

    /// A sending socket at `port`, or at another one if that is taken.
    fn sender(&self, ifindex: u32, port: &mut u16, random: &mut Random) -> io::Result<UdpSocket> {
        let socket = self.socket()?;
        match self.address {
            IpAddr::V4(_) => {
                setsockopt(&socket, sockopt::Ipv4Ttl, &TTL)?;
                setsockopt(&socket, sockopt::Ipv4Tos, &TRAFFIC_CLASS)?;
            }
            IpAddr::V6(_) => {
                setsockopt(&socket, sockopt::Ipv6Ttl, &TTL)?;
                setsockopt(&socket, sockopt::Ipv6TClass, &TRAFFIC_CLASS)?;
            }
        }
        // Nobody reads it.
        setsockopt(&socket, sockopt::RcvBuf, &0)?;
        let mut attempts = 1;
        loop {
            match self.bind(&socket, *port, ifindex) {
                Ok(()) => return Ok(socket),
                Err(Errno::EADDRINUSE) if attempts < PORT_ATTEMPTS => {
                    *port = random.source_port();
                    attempts += 1;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn socket(&self) -> nix::Result<UdpSocket> {
        let family = match self.address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Datagram, flags, None)?;
        if family == AddressFamily::Inet6 {
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        }
        if let Some(device) = &self.device {
            setsockopt(&socket, sockopt::BindToDevice, &device.into())?;
        }
        Ok(UdpSocket::from(socket))
    }

    fn bind(&self, socket: &UdpSocket, port: u16, ifindex: u32) -> nix::Result<()> {
        let address = SockaddrStorage::from(socket_address(self.address, port, ifindex));
        bind(socket.as_raw_fd(), &address)
    }

    /// Why the sockets cannot be opened, and what to do.
    fn explain(&self, error: &io::Error) -> anyhow::Error {
        let advice = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EADDRINUSE) => {
                "another program has the port to itself: stop it, or leave BFD with this peer to it"
            }
            Some(Errno::EADDRNOTAVAIL) => "give this host the address",
            Some(Errno::ENODEV) => "create the device",
            Some(Errno::EPERM | Errno::EACCES) => "give netbond CAP_NET_RAW",
            _ => "it is tried again",
        };
        let port = self.hops.port();
        anyhow!("no BFD at {self} (UDP port {port}): {error}; {advice}")
    }
}

/// With the device as the scope of a link-local address.
fn socket_address(address: IpAddr, port: u16, ifindex: u32) -> SocketAddr {
    match address {
        IpAddr::V4(v4) => (v4, port).into(),
        IpAddr::V6(v6) => {
            let scope = if v6.is_unicast_link_local() {
                ifindex
            } else {
                0
            };
            SocketAddrV6::new(v6, port, 0, scope).into()
        }
    }
}

async fn readable(sockets: Option<&Sockets>) {
    match sockets {
        // An error is met when reading.
        Some(sockets) => drop(sockets.receiver.readable().await),
        None => pending().await,
    }
}

/// What arrived, besides its payload.
struct Datagram {
    length: usize,
    source: Option<IpAddr>,
    /// TTL or hop limit.
    ttl: Option<i32>,
}

fn receive(socket: &impl AsRawFd, payload: &mut [u8]) -> io::Result<Datagram> {
    let mut control = nix::cmsg_space!(libc::c_int);
    let mut parts = [IoSliceMut::new(payload)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let source = message.address.as_ref().and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())))
    });
    let mut ttl = None;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::Ipv4Ttl(value) | ControlMessageOwned::Ipv6HopLimit(value) = part
        {
            ttl = Some(value);
        }
    }
    Ok(Datagram {
        length: message.bytes,
        source,
        ttl,
    })
}

/// Nanoseconds of `CLOCK_BOOTTIME`: time asleep counts, the peer did not wait for us.
fn now_ns() -> u64 {
    // Fails only for a clock that the kernel does not have; this one came with 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| nanos(now.into()))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Random numbers for discriminators, jitter and source ports (SplitMix64).
struct Random(u64);

impl Random {
    fn new() -> io::Result<Self> {
        Ok(Self(u64::from_ne_bytes(random::bytes()?)))
    }

    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 32) as u32
    }

    fn source_port(&mut self) -> u16 {
        let (first, count) = SOURCE_PORTS;
        first + (self.next() % u32::from(count)) as u16
    }
}

#[cfg(test)]
mod tests;
