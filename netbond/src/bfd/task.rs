//! Sockets and timers of the sessions (RFC 5881, RFC 5883).
//!
//! Each local address (on its device) has a task with a receiving socket, and one more for sessions
//! over several hops; each session has a sending socket, for its source port is its own (RFC 5881,
//! 4).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::future::pending;
use std::io::{self, IoSlice, IoSliceMut, Read};
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
    /// Starts the sessions, in the network namespace of the runtime's threads.
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
            "BFD session {}",
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
        let mut seed = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut seed)?;
        Ok(Self(u64::from_ne_bytes(seed)))
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
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use tokio::time::{Instant, interval, timeout};

    use super::super::packet::tests::packet;
    use super::*;
    use crate::netlink::netns::{Process, in_netns, ip};

    /// What may pass until something awaited: a daemon that starts, three slow packets.
    const SOON: Duration = Duration::from_secs(20);
    const INTERVAL: Duration = Duration::from_millis(50);
    /// Of a session with `INTERVAL` three times.
    const DETECTION: Duration = Duration::from_millis(150);

    fn config(local: &str, remote: &str, device: Option<&str>) -> SessionConfig {
        SessionConfig {
            id: 7,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            hops: Hops::Single,
            device: device.map(str::to_owned),
            tx_interval: INTERVAL,
            rx_interval: INTERVAL,
            multiplier: 3,
        }
    }

    /// Over several hops.
    fn multi_hop(local: &str, remote: &str, device: Option<&str>) -> SessionConfig {
        SessionConfig {
            hops: Hops::Multi,
            ..config(local, remote, device)
        }
    }

    fn refused(sessions: &[SessionConfig]) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let _runtime = runtime.enter();
        let (sender, _reports) = mpsc::channel(1);
        match Speaker::spawn(sessions.to_vec(), sender) {
            Ok(_) => panic!("accepted: {sessions:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn sessions_that_make_no_sense_are_refused() {
        let good = config("10.65.0.2", "10.65.0.1", None);
        let other = |change: fn(&mut SessionConfig)| {
            let mut session = good.clone();
            change(&mut session);
            session
        };
        let cases = [
            (other(|s| s.remote = [0; 16].into()), "one family"),
            (other(|s| s.multiplier = 0), "multiplier 0"),
            (
                other(|s| s.tx_interval = Duration::from_micros(999)),
                "transmit interval of 999µs",
            ),
            (
                other(|s| s.rx_interval = Duration::from_secs(4295)),
                "receive interval of 4295s",
            ),
            (config("fd00::1", "fe80::1", None), "needs a device"),
            (
                multi_hop("fe80::2", "fe80::1", Some("near")),
                "use a single hop",
            ),
        ];
        for (session, says) in cases {
            let error = refused(&[session]);
            assert!(error.contains(says), "{error}");
        }
        let error = refused(&[good.clone(), good.clone()]);
        assert!(error.contains("the id 7"), "{error}");
        let error = refused(&[good.clone(), other(|s| s.id = 8)]);
        assert!(error.contains("two BFD sessions go from"), "{error}");
        // Over several hops nothing but the addresses tells whose packets arrive.
        let error = refused(&[
            multi_hop("10.65.0.2", "10.65.9.1", Some("near")),
            SessionConfig {
                id: 8,
                ..multi_hop("10.65.0.2", "10.65.9.1", Some("near2"))
            },
        ]);
        assert!(error.contains("two BFD sessions go from"), "{error}");
    }

    #[test]
    fn a_packet_from_several_hops_away_is_taken_only_by_a_session_over_several() {
        let single = config("10.65.0.2", "10.65.0.1", Some("near"));
        let sessions = vec![
            single.clone(),
            SessionConfig {
                id: 8,
                hops: Hops::Multi,
                ..single.clone()
            },
            SessionConfig {
                id: 9,
                ..multi_hop("10.65.0.2", "10.65.9.1", Some("near2"))
            },
        ];
        let mut tasks = tasks(sessions, &Arc::default()).unwrap();
        tasks.sort_by_key(|task| task.local.hops);
        let [single_hop, several] = &mut tasks[..] else {
            panic!("not two tasks: {}", tasks.len());
        };
        assert_eq!((single_hop.peers.len(), several.peers.len()), (1, 2));
        let hello = Packet {
            your_discriminator: 0,
            ..packet(State::Down)
        }
        .encode();
        let from = |source: &str, ttl| Datagram {
            length: hello.len(),
            source: Some(source.parse().unwrap()),
            ttl,
        };
        let states = |task: &Task| -> Vec<State> {
            let peers = task.peers.iter();
            peers.map(|peer| peer.session.state()).collect()
        };

        for ttl in [None, Some(0), Some(254)] {
            let got = single_hop.accept(&from("10.65.0.1", ttl), &hello);
            assert_eq!(got, Err(Reject::Ttl));
        }
        assert_eq!(states(single_hop), [State::Down]);
        let got = single_hop.accept(&from("10.65.0.1", Some(255)), &hello);
        assert_eq!((got, states(single_hop)), (Ok(()), vec![State::Init]));

        let got = several.accept(&from("10.65.9.2", Some(254)), &hello);
        assert_eq!(got, Err(Reject::UnknownSource));
        assert_eq!(states(several), [State::Down, State::Down]);
        let got = several.accept(&from("10.65.9.1", Some(1)), &hello);
        let expected = vec![State::Down, State::Init];
        assert_eq!((got, states(several)), (Ok(()), expected));
        let got = several.accept(&from("10.65.0.1", Some(254)), &hello);
        let expected = vec![State::Init, State::Init];
        assert_eq!((got, states(several)), (Ok(()), expected));
    }

    #[test]
    fn source_ports_are_those_of_the_rfc() {
        let mut random = Random(1);
        for _ in 0..100_000 {
            assert!(random.source_port() >= 49152);
        }
    }

    /// A speaker and what it reports.
    struct Heard {
        speaker: Speaker,
        reports: mpsc::Receiver<Report>,
    }

    impl Heard {
        fn start(session: SessionConfig) -> Self {
            let (sender, reports) = mpsc::channel(8);
            let speaker = Speaker::spawn(vec![session], sender).unwrap();
            Self { speaker, reports }
        }

        async fn next(&mut self) -> Report {
            let report = timeout(SOON, self.reports.recv());
            let report = report.await.expect("no report").expect("the speaker ended");
            assert_eq!(report.id, 7);
            report
        }

        /// Waits until the session is up, whatever was reported before.
        async fn up(&mut self) {
            while !self.next().await.up || !self.reports.is_empty() {}
        }

        /// Waits until a session that was up is down; how long it took, and why it went.
        async fn down(&mut self) -> (Duration, Diagnostic) {
            let start = Instant::now();
            let report = self.next().await;
            assert!(!report.up, "{report:?}");
            (start.elapsed(), report.diag)
        }

        async fn rejected(&self, reason: Reject) {
            until(reason.label(), async || self.speaker.rejected(reason) > 0).await;
        }
    }

    async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let wait = async {
            let mut ticks = interval(Duration::from_millis(20));
            while !holds().await {
                ticks.tick().await;
            }
        };
        timeout(SOON, wait)
            .await
            .unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"));
    }

    /// Runs a command while sessions go on; what it prints.
    async fn output(command: &str) -> String {
        let mut words = command.split_whitespace();
        let mut process = tokio::process::Command::new(words.next().unwrap());
        let output = process.args(words).kill_on_drop(true).output();
        String::from_utf8(output.await.unwrap().stdout).unwrap()
    }

    /// Another network namespace, in which daemons live and die.
    struct Far(Process);

    impl Far {
        fn new() -> Self {
            Self(Process::in_other_netns("true"))
        }

        /// Another namespace, behind this one, which forwards. It has 10.65.9.1, to which the
        /// routes of this thread's namespace lead over the link `net`, by the device `near`.
        async fn new_behind(&self, near: &str, net: u8) -> Self {
            let far = Self::new();
            far.join_to(|arguments| self.0.ip(arguments), "behind", "far", 9);
            ip(&format!(
                "route add 10.65.9.0/30 via 10.65.{net}.1 dev {near}"
            ));
            ip(&format!(
                "route add fd65:9::/64 via fd65:{net}::1 dev {near}"
            ));
            far.0.ip("route add default via 10.65.9.2");
            far.0.ip("route add default via fd65:9::2");
            self.forward(true).await;
            far
        }

        /// Joins `near` here and `far` there: 10.65.`net`.2 and 10.65.`net`.1.
        fn join(&self, near: &str, far: &str, net: u8) {
            self.join_to(ip, near, far, net);
        }

        /// [`Self::join`] with another namespace, in which `ip` runs.
        fn join_to(&self, ip: impl Fn(&str), near: &str, far: &str, net: u8) {
            ip(&format!(
                "link add {near} type veth peer name {far} netns {}",
                self.0.id()
            ));
            ip(&format!("addr add 10.65.{net}.2/30 dev {near}"));
            ip(&format!("addr add fd65:{net}::2/64 dev {near} nodad"));
            ip(&format!("link set {near} up"));
            self.0.ip(&format!("addr add 10.65.{net}.1/30 dev {far}"));
            self.0
                .ip(&format!("addr add fd65:{net}::1/64 dev {far} nodad"));
            self.0.ip(&format!("link set {far} up"));
        }

        fn enter(&self, command: &str) -> String {
            format!("nsenter -t {} -n {command}", self.0.id())
        }

        fn spawn(&self, command: &str) -> Process {
            spawn(&self.enter(command))
        }

        /// Lets everything that `device` sends vanish, or no more.
        async fn black_hole(&self, device: &str, on: bool) {
            let command = if on {
                format!("tc qdisc add dev {device} root blackhole")
            } else {
                format!("tc qdisc del dev {device} root")
            };
            output(&self.enter(&command)).await;
        }

        /// Forwards packets, or no more.
        async fn forward(&self, on: bool) {
            let on = u8::from(on);
            self.sysctl(&format!("net.ipv4.ip_forward={on}")).await;
            self.sysctl(&format!("net.ipv6.conf.all.forwarding={on}"))
                .await;
        }

        async fn sysctl(&self, setting: &str) {
            output(&self.enter(&format!("sysctl -w {setting}"))).await;
        }
    }

    fn spawn(command: &str) -> Process {
        let mut words = command.split_whitespace();
        Process::spawn(Command::new(words.next().unwrap()).args(words))
    }

    /// The command that starts BIRD with BFD to these neighbours, and its control socket.
    fn bird(directory: &Path, name: &str, neighbours: &[&str]) -> (String, PathBuf) {
        let neighbours: String = neighbours
            .iter()
            .map(|neighbour| format!("neighbor {neighbour};"))
            .collect();
        let config = format!(
            "router id 10.65.0.1;
             protocol device {{}}
             protocol bfd {{
               interface \"*\" {{ interval 50 ms; multiplier 3; }};
               multihop {{ interval 50 ms; multiplier 3; }};
               {neighbours}
             }}"
        );
        let file = directory.join(format!("{name}.conf"));
        std::fs::write(&file, config).unwrap();
        let socket = directory.join(format!("{name}.ctl"));
        let command = format!("bird -f -c {} -s {}", file.display(), socket.display());
        (command, socket)
    }

    /// Waits until BIRD has the session up and at full pace.
    async fn bird_is_up(socket: &Path, neighbour: &str) {
        let command = format!("birdc -s {} show bfd sessions", socket.display());
        until("BIRD has the session up", async || {
            let sessions = output(&command).await;
            sessions.lines().any(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                words.first() == Some(&neighbour)
                    && words.contains(&"Up")
                    && words.ends_with(&["0.050", "0.150"])
            })
        })
        .await;
    }

    /// What a session must stand with a peer that can be started again and again, on a way that can
    /// be cut off (`true`) and mended (`false`).
    async fn outages<Peer>(
        here: &mut Heard,
        cut: impl AsyncFn(bool),
        start: impl Fn() -> Peer,
        is_up: impl AsyncFn(),
    ) {
        let peer = start();
        here.up().await;
        is_up().await;
        while here.reports.try_recv().is_ok() {}

        drop(peer);
        let (took, why) = here.down().await;
        assert!(took < 3 * DETECTION, "killed: {took:?}");
        assert_eq!(why, Diagnostic::DetectionTimeExpired);
        let _peer = start();
        here.up().await;
        is_up().await;

        cut(true).await;
        let (took, why) = here.down().await;
        assert!(took < 3 * DETECTION, "cut off: {took:?}");
        assert_eq!(why, Diagnostic::DetectionTimeExpired);
        cut(false).await;
        here.up().await;
        is_up().await;
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn bird_is_a_peer() {
        in_netns(async || {
            let directory = tempfile::tempdir().unwrap();
            let far = Far::new();
            let mut here = Heard::start(config("10.65.0.2", "10.65.0.1", Some("near")));
            // The device and its address come later.
            far.join("near", "far", 0);
            let neighbour = "10.65.0.2 dev \"far\" local 10.65.0.1";
            let (command, socket) = bird(directory.path(), "far", &[neighbour]);
            let cut = async |on| far.black_hole("far", on).await;
            let start = || far.spawn(&command);
            outages(&mut here, cut, start, async || {
                bird_is_up(&socket, "10.65.0.2").await;
            })
            .await;
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn bird_is_a_peer_over_several_hops() {
        in_netns(async || {
            let directory = tempfile::tempdir().unwrap();
            let middle = Far::new();
            middle.join("near", "near", 0);
            let far = middle.new_behind("near", 0).await;
            let mut here = Heard::start(multi_hop("10.65.0.2", "10.65.9.1", Some("near")));
            let neighbour = "10.65.0.2 local 10.65.9.1 multihop yes";
            let (command, socket) = bird(directory.path(), "far", &[neighbour]);
            let cut = async |on: bool| middle.forward(!on).await;
            let start = || far.spawn(&command);
            outages(&mut here, cut, start, async || {
                bird_is_up(&socket, "10.65.0.2").await;
            })
            .await;
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn bird_is_a_peer_over_several_hops_of_ipv6() {
        in_netns(async || {
            let directory = tempfile::tempdir().unwrap();
            let middle = Far::new();
            middle.join("near", "near", 0);
            let far = middle.new_behind("near", 0).await;
            let mut here = Heard::start(multi_hop("fd65:0::2", "fd65:9::1", Some("near")));
            let neighbour = "fd65:0::2 local fd65:9::1 multihop yes";
            let (command, socket) = bird(directory.path(), "far", &[neighbour]);
            let _peer = far.spawn(&command);
            here.up().await;
            bird_is_up(&socket, "fd65::2").await;
            middle.forward(false).await;
            let (_, why) = here.down().await;
            assert_eq!(why, Diagnostic::DetectionTimeExpired);
        });
    }

    /// As with the packets of a path: they leave by its device wherever the route leads, and come
    /// in by whichever the peer's route leads to.
    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn over_several_hops_packets_leave_by_the_device_and_come_in_on_any() {
        in_netns(async || {
            let directory = tempfile::tempdir().unwrap();
            let middle = Far::new();
            middle.join("near", "near", 0);
            middle.join("near2", "near2", 1);
            // The route leads over `near2`, there and back, but nothing gets there that way.
            let far = middle.new_behind("near2", 1).await;
            middle.0.ip("route add 10.65.0.2/32 via 10.65.1.2");
            middle.0.ip("rule add iif near2 blackhole");
            for device in ["all", "near"] {
                let setting = format!("net.ipv4.conf.{device}.rp_filter=0");
                middle.sysctl(&setting).await;
            }
            ip("route add 10.65.9.0/30 via 10.65.0.1 dev near metric 100");
            let neighbour = "10.65.0.2 local 10.65.9.1 multihop yes";
            let (command, socket) = bird(directory.path(), "far", &[neighbour]);
            let _peer = far.spawn(&command);
            let mut here = Heard::start(multi_hop("10.65.0.2", "10.65.9.1", Some("near")));
            here.up().await;
            bird_is_up(&socket, "10.65.0.2").await;
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn a_speaker_has_sessions_over_one_hop_and_over_several() {
        in_netns(async || {
            let directory = tempfile::tempdir().unwrap();
            let middle = Far::new();
            middle.join("near", "near", 0);
            let far = middle.new_behind("near", 0).await;
            let neighbour = "10.65.0.2 dev \"near\" local 10.65.0.1";
            let (command, _) = bird(directory.path(), "middle", &[neighbour]);
            let _middle_bird = middle.spawn(&command);
            let neighbour = "10.65.0.2 local 10.65.9.1 multihop yes";
            let (command, socket) = bird(directory.path(), "far", &[neighbour]);
            let _far_bird = far.spawn(&command);
            let sessions = vec![
                config("10.65.0.2", "10.65.0.1", Some("near")),
                SessionConfig {
                    id: 8,
                    ..multi_hop("10.65.0.2", "10.65.9.1", Some("near"))
                },
            ];
            let (sender, mut reports) = mpsc::channel(8);
            let _speaker = Speaker::spawn(sessions, sender).unwrap();
            let mut next = async || timeout(SOON, reports.recv()).await.unwrap().unwrap();
            let mut up = BTreeMap::new();
            while up != BTreeMap::from([(7, true), (8, true)]) {
                let report = next().await;
                up.insert(report.id, report.up);
            }
            bird_is_up(&socket, "10.65.0.2").await;
            middle.forward(false).await;
            let report = next().await;
            let down = (8, false, Diagnostic::DetectionTimeExpired);
            assert_eq!((report.id, report.up, report.diag), down);
            middle.forward(true).await;
            let report = next().await;
            assert_eq!((report.id, report.up), (8, true));
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn bird_is_a_peer_over_ipv6() {
        in_netns(async || {
            let directory = tempfile::tempdir().unwrap();
            let far = Far::new();
            far.join("near", "far", 0);
            let mut here = Heard::start(config("fd65:0::2", "fd65:0::1", Some("near")));
            let neighbour = "fd65:0::2 dev \"far\" local fd65:0::1";
            let (command, socket) = bird(directory.path(), "far", &[neighbour]);
            let peer = far.spawn(&command);
            here.up().await;
            bird_is_up(&socket, "fd65::2").await;
            drop(peer);
            here.down().await;
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn a_device_that_is_made_anew_is_bound_again() {
        in_netns(async || {
            let directory = tempfile::tempdir().unwrap();
            let far = Far::new();
            far.join("near", "far", 0);
            let mut here = Heard::start(config("10.65.0.2", "10.65.0.1", Some("near")));
            let neighbour = "10.65.0.2 dev \"far\" local 10.65.0.1";
            let (command, _) = bird(directory.path(), "far", &[neighbour]);
            let _peer = far.spawn(&command);
            here.up().await;
            ip("link del near");
            here.down().await;
            far.join("near", "far", 0);
            here.up().await;
        });
    }

    /// [`outages`] with bfdd as the peer, which has `peer` in its configuration.
    async fn outages_of_frr(here: &mut Heard, far: &Far, peer: &str, cut: impl AsyncFn(bool)) {
        // zebra and bfdd run as user frr.
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().display();
        let file = directory.path().join("bfdd.conf");
        let config_of_bfdd = format!(
            "bfd\n peer {peer}\n  detect-multiplier 3\n  receive-interval 50\n  \
             transmit-interval 50\n exit\nexit\n"
        );
        std::fs::write(&file, config_of_bfdd).unwrap();
        output(&format!("chown -R frr:frr {place}")).await;
        let daemon = |name: &str, more: String| {
            far.spawn(&format!(
                "/usr/lib/frr/{name} -A 127.0.0.1 -P 0 -z {place}/zserv.api \
                 --vty_socket {place} -i {place}/{name}.pid {more}"
            ))
        };
        let _zebra = daemon("zebra", "-f /dev/null".into());
        // Without it bfdd tries again only after 10 s.
        let zserv = directory.path().join("zserv.api");
        until("zebra listens", async || zserv.exists()).await;
        let start = || {
            let more = format!("-f {} --bfdctl {place}/bfdd.sock", file.display());
            daemon("bfdd", more)
        };
        let show = "show bfd peers json";
        let is_up = async || {
            until("bfdd has the session up", async || {
                let mut vtysh = tokio::process::Command::new("vtysh");
                vtysh.args(["--vty_socket", &place.to_string(), "-c", show]);
                let output = vtysh.kill_on_drop(true).output().await.unwrap().stdout;
                let peers: serde_json::Value = serde_json::from_slice(&output).unwrap_or_default();
                let peer = &peers[0];
                peer["status"] == "up"
                    && peer["transmit-interval"] == 50
                    && peer["remote-transmit-interval"] == 50
            })
            .await;
        };
        outages(here, cut, start, is_up).await;
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn frr_is_a_peer() {
        in_netns(async || {
            let far = Far::new();
            far.join("near", "far", 0);
            let mut here = Heard::start(config("10.65.0.2", "10.65.0.1", Some("near")));
            let peer = "10.65.0.2 local-address 10.65.0.1 interface far";
            let cut = async |on| far.black_hole("far", on).await;
            outages_of_frr(&mut here, &far, peer, cut).await;
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn frr_is_a_peer_over_several_hops() {
        in_netns(async || {
            let middle = Far::new();
            middle.join("near", "near", 0);
            let far = middle.new_behind("near", 0).await;
            let mut here = Heard::start(multi_hop("10.65.0.2", "10.65.9.1", Some("near")));
            let peer = "10.65.0.2 multihop local-address 10.65.9.1";
            let cut = async |on: bool| middle.forward(!on).await;
            outages_of_frr(&mut here, &far, peer, cut).await;
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn bird_on_the_same_host_keeps_its_own_addresses() {
        in_netns(async || {
            let directory = tempfile::tempdir().unwrap();
            let far = Far::new();
            far.join("near", "far", 0);
            far.join("near2", "far2", 1);
            let (command, far_socket) = bird(
                directory.path(),
                "far",
                &[
                    "10.65.0.2 dev \"far\" local 10.65.0.1",
                    "10.65.1.2 dev \"far2\" local 10.65.1.1",
                ],
            );
            let _far_bird = far.spawn(&command);
            let neighbour = "10.65.1.1 dev \"near2\" local 10.65.1.2";
            let (command, near_socket) = bird(directory.path(), "near", &[neighbour]);
            // Whoever comes first.
            let mut first = Heard::start(config("10.65.0.2", "10.65.0.1", Some("near")));
            first.up().await;
            let _near_bird = spawn(&command);
            bird_is_up(&near_socket, "10.65.1.1").await;
            drop(first);
            let mut second = Heard::start(config("10.65.0.2", "10.65.0.1", Some("near")));
            second.up().await;
            bird_is_up(&far_socket, "10.65.0.2").await;
            bird_is_up(&far_socket, "10.65.1.2").await;
        });
    }

    /// Two addresses of one host.
    fn two_addresses() -> [SessionConfig; 2] {
        ip("addr add 10.65.0.1/32 dev lo");
        ip("addr add 10.65.0.2/32 dev lo");
        [
            config("10.65.0.1", "10.65.0.2", None),
            config("10.65.0.2", "10.65.0.1", None),
        ]
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn a_speaker_that_is_dropped_says_so() {
        in_netns(async || {
            let [mut one, two] = two_addresses().map(Heard::start);
            one.up().await;
            drop(two);
            let (took, why) = one.down().await;
            assert!(took < DETECTION, "{took:?}");
            assert_eq!(why, Diagnostic::NeighborSignaledDown);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn a_slow_receiver_delays_no_session_and_gets_the_newest_report() {
        in_netns(async || {
            let [one, two] = two_addresses();
            let (sender, mut reports) = mpsc::channel(1);
            let speaker = Speaker::spawn(vec![one], sender.clone()).unwrap();
            let full = Report {
                id: 0,
                up: false,
                ended: false,
                diag: Diagnostic::None,
                at: 0,
            };
            sender.try_send(full).unwrap();
            // Twice up and once down, as seen from the other end.
            let mut other = Heard::start(two.clone());
            other.up().await;
            drop(other);
            let restarted = now_ns();
            let mut other = Heard::start(two);
            other.up().await;
            assert_eq!(reports.recv().await, Some(full));
            // That end may be up a little earlier; its first time up is not told any more.
            let up = loop {
                let report = timeout(SOON, reports.recv()).await.unwrap().unwrap();
                if report.up {
                    break report;
                }
            };
            assert!(up.at >= restarted, "{up:?} {restarted}");
            drop(speaker);
            let (_, why) = other.down().await;
            assert_eq!(why, Diagnostic::NeighborSignaledDown);
            assert!(reports.is_empty());
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn packets_are_marked_and_checked_as_the_rfc_says() {
        in_netns(async || {
            let [session, _] = two_addresses();
            let peer = Local {
                address: session.remote,
                device: None,
                hops: session.hops,
            };
            let (to, remote) = (
                socket_address(session.local, session.hops.port(), 0),
                session.remote,
            );
            let listener = tokio::net::UdpSocket::from_std(peer.listen(0).unwrap()).unwrap();
            let here = Heard::start(session);
            let mut bytes = [0; PAYLOAD];
            let got = listener.async_io(Interest::READABLE, || receive(&listener, &mut bytes));
            let got = timeout(SOON, got).await.unwrap().unwrap();
            assert_eq!((got.length, got.ttl), (24, Some(255)));
            assert!(Packet::decode(&bytes[..got.length]).is_ok());
            let (_, from) = timeout(SOON, listener.recv_from(&mut bytes))
                .await
                .unwrap()
                .unwrap();
            assert!(from.port() >= 49152, "{from}");

            let hello = Packet {
                your_discriminator: 0,
                ..packet(State::Down)
            };
            let sender = UdpSocket::bind((remote, 0)).unwrap();
            let send = |packet: Packet| sender.send_to(&packet.encode(), to).unwrap();
            sender.set_ttl(254).unwrap();
            send(hello);
            here.rejected(Reject::Ttl).await;
            sender.set_ttl(255).unwrap();
            send(Packet {
                multiplier: 0,
                ..hello
            });
            here.rejected(Reject::MultiplierZero).await;
            send(Packet {
                your_discriminator: 1,
                ..hello
            });
            here.rejected(Reject::UnknownDiscriminator).await;
            let stranger = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
            stranger.set_ttl(255).unwrap();
            stranger.send_to(&hello.encode(), to).unwrap();
            here.rejected(Reject::UnknownSource).await;

            // The same packet from the peer is welcome: it is answered at once.
            send(hello);
            until("an answer", async || {
                let (length, _) = listener.recv_from(&mut bytes).await.unwrap();
                let answer = Packet::decode(&bytes[..length]).unwrap();
                (answer.state, answer.your_discriminator) == (State::Init, hello.my_discriminator)
            })
            .await;
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn a_port_that_is_taken_is_named_and_waited_for() {
        in_netns(async || {
            let sessions = two_addresses();
            let taken = UdpSocket::bind(("0.0.0.0", sessions[0].hops.port())).unwrap();
            let local = Local {
                address: sessions[0].local,
                device: None,
                hops: sessions[0].hops,
            };
            let error = local.listen(0).unwrap_err();
            let error = local.explain(&error).to_string();
            assert!(error.contains("10.65.0.1 (UDP port 3784)"), "{error}");
            assert!(
                error.contains("another program has the port to itself"),
                "{error}"
            );

            let [mut one, _two] = sessions.map(Heard::start);
            // They have tried by the time another task of this thread comes to its turn.
            tokio::task::yield_now().await;
            drop(taken);
            one.up().await;
        });
    }
}
