//! What a packet costs the processor.
//!
//! In the VM that counts, the clock tells the instructions executed. The same thread sends a burst
//! and receives all of it before it sends the next: the one processor is never idle, so the time that
//! passed, by packets, is the instructions of a packet's whole way. The same way without a bond, over
//! the plain WireGuard paths, with datagrams longer by what the encapsulation adds, costs all of that
//! but bonding and encapsulation themselves.

use std::hint::black_box;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::sockopt::{TcpMaxSeg, UdpGsoSegment};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, setsockopt, socket,
};

use super::counters::Counters;
use super::hosts::{self, HOSTS, address_by};
use super::system::{RECEIVER, Running, SENDER, System};
use super::traffic::{PORT, open};
use crate::lab::Lab;
use crate::machine::Cores;
use crate::namespace::{self, netns_name};
use crate::wait::check_interrupt;

/// Flows that take turns, so that systems that choose by hash use every path.
const FLOWS: usize = 16;

/// Packets under way at a time.
const BURST: usize = 32;

/// Datagrams in a super-packet.
const SEGMENTS: usize = 40;

/// Silence after which a packet is lost.
const SILENCE: Duration = Duration::from_millis(500);

/// Bursts before the measurement: caches, neighbours, handshakes.
const WARM_UP: usize = 30;

/// Steps of a loop between two looks at the clock: some tenths of a millisecond.
const TURN: u32 = 100_000;

/// Share of packets that may be lost before the figure means nothing: none should be. Bursts with a
/// loss do not count.
const LOSS: f64 = 0.01;

/// Which way the packets come into the bond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// One by one, forwarded by A from a host behind it to one behind B.
    Forward,
    /// As super-packets of A's own, UDP (UDP_SEGMENT).
    Udp,
    /// As super-packets of A's own, TCP. Its acknowledgements go back over the bond.
    Tcp,
}

impl Way {
    pub(super) const ALL: [Self; 3] = [Self::Forward, Self::Udp, Self::Tcp];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Udp => "gso-udp",
            Self::Tcp => "gso-tcp",
        }
    }
}

/// What became of packets on the way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Nanoseconds, or instructions, of a packet from end to end.
    pub(super) packet: f64,
    /// Fragments that A sent, by packet.
    pub(super) fragments: f64,
}

/// Packets from end to end over a system.
pub(super) fn over(
    lab: &Lab,
    running: &Running<'_>,
    system: System,
    way: Way,
    payload: u32,
    packets: usize,
) -> Result<Sample> {
    let target = match way {
        Way::Forward => {
            hosts::lead(running)?;
            HOSTS[1].3.to_owned()
        }
        Way::Udp | Way::Tcp => system.target(lab)?,
    };
    measure(lab, way, &[target], payload, packets)
}

/// The same over the plain paths in turn, with datagrams longer by `extra` bytes.
pub(super) fn plain(
    lab: &Lab,
    way: Way,
    payload: u32,
    extra: u32,
    packets: usize,
) -> Result<Sample> {
    let paths = lab.router(SENDER).paths()?;
    let targets: Vec<String> = match way {
        Way::Forward => (0..paths.len()).map(address_by).collect(),
        Way::Udp | Way::Tcp => paths.iter().map(|path| path.remote.to_string()).collect(),
    };
    measure(lab, way, &targets, payload + extra, packets)
}

fn measure(
    lab: &Lab,
    way: Way,
    targets: &[String],
    payload: u32,
    packets: usize,
) -> Result<Sample> {
    let (from, to) = match way {
        Way::Forward => (
            netns_name(lab.name(), HOSTS[0].0),
            netns_name(lab.name(), HOSTS[1].0),
        ),
        Way::Udp | Way::Tcp => (
            lab.router(SENDER).netns().to_owned(),
            lab.router(RECEIVER).netns().to_owned(),
        ),
    };
    let mut flows = match way {
        Way::Forward | Way::Udp => Flows::udp(&from, &to, targets)?,
        Way::Tcp => Flows::tcp(&from, &to, targets, payload)?,
    };
    let (sends, segments) = match way {
        Way::Forward => (BURST, 1),
        Way::Udp | Way::Tcp => (1, SEGMENTS),
    };
    if let (Way::Udp, Flows::Udp { senders, .. }) = (way, &flows) {
        for sender in senders {
            setsockopt(sender, UdpGsoSegment, &i32::try_from(payload)?)
                .context("the kernel has no UDP_SEGMENT")?;
        }
    }
    let data = vec![0; payload as usize * segments];
    for turn in 0..WARM_UP {
        flows.burst(turn, sends, segments, &data)?;
    }
    let turns = packets.div_ceil(sends * segments);
    let fragments = || Ok::<_, anyhow::Error>(Counters::of(lab.router(SENDER).netns())?.fragments);
    let before = fragments()?;
    let (mut time, mut whole, mut lost) = (Duration::ZERO, 0, 0);
    for turn in 0..turns {
        let start = Instant::now();
        match flows.burst(turn, sends, segments, &data)? {
            0 => {
                time += start.elapsed();
                whole += sends * segments;
            }
            // The wait for them was idle.
            some => lost += some,
        }
    }
    check_interrupt()?;
    if lost > 0 {
        eprintln!("  {}: {lost} packets were lost", way.name());
    }
    let sent = turns * sends * segments;
    ensure!(
        lost as f64 <= LOSS * sent as f64,
        "{}: {lost} of {sent} packets were lost",
        way.name()
    );
    Ok(Sample {
        packet: time.as_nanos() as f64 / whole as f64,
        fragments: (fragments()? - before) as f64 / sent as f64,
    })
}

/// Sockets of the sender, and where what they send comes out.
enum Flows {
    Udp {
        senders: Vec<UdpSocket>,
        receiver: UdpSocket,
    },
    Tcp(Vec<(TcpStream, TcpStream)>),
}

impl Flows {
    fn udp(from: &str, to: &str, targets: &[String]) -> Result<Self> {
        let receiver = open(to, "0.0.0.0", None)?;
        receiver.set_read_timeout(Some(SILENCE))?;
        let senders = (0..FLOWS)
            .map(|flow| open(from, "0.0.0.0", Some(&targets[flow % targets.len()])))
            .collect::<Result<_>>()?;
        Ok(Self::Udp { senders, receiver })
    }

    /// Connections whose segments carry `payload` bytes.
    fn tcp(from: &str, to: &str, targets: &[String], payload: u32) -> Result<Self> {
        let listener = namespace::within(to, || {
            TcpListener::bind(("0.0.0.0", PORT)).context("cannot listen for TCP")
        })?;
        let connect = |flow: usize| -> Result<(TcpStream, TcpStream)> {
            let target: Ipv4Addr = targets[flow % targets.len()].parse()?;
            let sender = namespace::within(from, || {
                let tcp = socket(
                    AddressFamily::Inet,
                    SockType::Stream,
                    SockFlag::SOCK_CLOEXEC,
                    SockProtocol::Tcp,
                )?;
                // As it is announced: without the timestamps' 12 bytes, which every segment carries.
                setsockopt(&tcp, TcpMaxSeg, &(payload + 12))?;
                let to = SockaddrIn::from(SocketAddrV4::new(target, PORT));
                nix::sys::socket::connect(tcp.as_raw_fd(), &to)
                    .with_context(|| format!("cannot connect to {target}"))?;
                Ok(TcpStream::from(tcp))
            })?;
            sender.set_nodelay(true)?;
            let (receiver, _) = listener.accept().context("cannot accept a connection")?;
            receiver.set_read_timeout(Some(10 * SILENCE))?;
            Ok((sender, receiver))
        };
        (0..FLOWS)
            .map(connect)
            .collect::<Result<_>>()
            .map(Self::Tcp)
    }

    /// Sends `data` so many times, the flows taking turns, and waits for all of it, which are so many
    /// packets each time; the number of packets lost.
    fn burst(&mut self, turn: usize, sends: usize, segments: usize, data: &[u8]) -> Result<usize> {
        match self {
            Self::Udp { senders, receiver } => {
                for send in 0..sends {
                    let sender = &senders[(turn * sends + send) % FLOWS];
                    sender.send(data).context("cannot send")?;
                }
                let mut datagram = [0; 2048];
                for received in 0..sends * segments {
                    match receiver.recv(&mut datagram) {
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            return Ok(sends * segments - received);
                        }
                        Err(error) => return Err(error).context("cannot receive"),
                    }
                }
            }
            Self::Tcp(pairs) => {
                let (sender, receiver) = &mut pairs[turn % FLOWS];
                let mut buffer = vec![0; data.len()];
                sender.write_all(data).context("cannot send")?;
                receiver.read_exact(&mut buffer).context("cannot receive")?;
            }
        }
        Ok(0)
    }
}

/// Share of one core's time that is used while there is no traffic.
pub(super) fn background(time: Duration) -> Result<f64> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if cores == 1 {
        return Ok(taken_from_a_loop(time));
    }
    let begin = (Instant::now(), Cores::now()?);
    thread::sleep(time);
    let idle = Cores::now()?.idle_since(begin.1);
    Ok((cores as f64 - idle.as_secs_f64() / begin.0.elapsed().as_secs_f64()).max(0.0))
}

/// Share of the time that everything else takes from a loop on the one core there is. (What the kernel
/// says of idle time leaves out all that is shorter than a tick, from Linux 7 on.)
fn taken_from_a_loop(time: Duration) -> f64 {
    let begin = Instant::now();
    let (mut turns, mut shortest) = (0_u32, Duration::MAX);
    while begin.elapsed() < time {
        let turn = Instant::now();
        for step in 0..TURN {
            black_box(step);
        }
        shortest = shortest.min(turn.elapsed());
        turns += 1;
    }
    let own = shortest.as_secs_f64() * f64::from(turns);
    (1.0 - own / begin.elapsed().as_secs_f64()).max(0.0)
}
