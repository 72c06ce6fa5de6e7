//! TCP, UDP and ping through a system.

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use serde::Deserialize;

use super::counters::Counters;
use super::system::{RECEIVER, SENDER, System};
use crate::lab::Lab;
use crate::namespace;
use crate::router::Router;
use crate::traffic::{Running, wait_iperf3};
use crate::wait::check_interrupt;

/// The start of a TCP stream that is not measured.
pub(super) const SLOW_START: Duration = Duration::from_secs(2);

/// How long a program may take beyond what it was asked to: an emulated processor is slow.
const GRACE: Duration = Duration::from_secs(60);

/// UDP port of the receiver.
pub(super) const PORT: u16 = 7017;

/// Silence after which no further datagram is under way.
const SILENCE: Duration = Duration::from_millis(500);

/// A kind of TCP traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Cubic,
    Bbr,
    Eight,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Cubic, Self::Bbr, Self::Eight];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
            Self::Eight => "eight",
        }
    }

    fn options(self) -> [&'static str; 4] {
        let (control, streams) = match self {
            Self::Cubic => ("cubic", "1"),
            Self::Bbr => ("bbr", "1"),
            Self::Eight => ("cubic", "8"),
        };
        ["--congestion", control, "--parallel", streams]
    }
}

/// What TCP achieved.
#[derive(Clone, Debug)]
pub(super) struct Tcp {
    /// Payload received after the slow start, Mbit/s.
    pub(super) mbit: f64,
    /// Segments of the whole connection.
    pub(super) retransmits: u64,
    /// Segments of the whole connection that came before an earlier one.
    pub(super) out_of_order: u64,
    /// Fragments that the sender's packets left in.
    pub(super) fragments: u64,
    /// Round trips of pings beside it, ms, from short to long.
    pub(super) round_trips: Vec<f64>,
}

/// A program with its arguments, by way of what makes its sockets those of a system.
pub(super) fn words<'a>(system: System, program: &[&'a str]) -> Vec<&'a str> {
    let prefix: &[&str] = if system.is_mptcp() {
        &["mptcpize", "run"]
    } else {
        &[]
    };
    [prefix, program].concat()
}

/// The address where a server listens for connections to `target`.
pub(super) fn listen(system: System, target: &str) -> &str {
    // Further subflows come to the addresses of the other paths.
    if system.is_mptcp() { "0.0.0.0" } else { target }
}

/// Runs TCP from A to B for `time` after its slow start.
pub(super) fn tcp(lab: &Lab, system: System, kind: Kind, time: Duration) -> Result<Tcp> {
    #[derive(Deserialize)]
    struct Output {
        end: End,
    }
    #[derive(Deserialize)]
    struct End {
        sum_received: Sum,
    }
    #[derive(Deserialize)]
    struct Sum {
        bits_per_second: f64,
    }

    let (from, to) = (lab.router(SENDER), lab.router(RECEIVER));
    let target = system.target(lab)?;
    // What earlier streams to this address learnt is not for this one.
    from.run(&["ip", "tcp_metrics", "flush"])?;
    let before = (Counters::of(from)?, Counters::of(to)?);
    let start = |router: &Router, arguments: &[&str]| -> Result<Running<String>> {
        let words = words(system, &["iperf3"]);
        let mut command = router.command(words[0]);
        Running::start(command.args(&words[1..]).args(arguments))
    };
    let listen = listen(system, &target);
    let server = start(to, &["--server", "--one-off", "--bind", listen])?;
    wait_iperf3(to, listen)?;
    let (seconds, omitted) = (time.as_secs().to_string(), SLOW_START.as_secs().to_string());
    let mut arguments = vec!["--client", &target, "--json", "--interval", "0"];
    arguments.extend(["--connect-timeout", "5000", "--time", &seconds]);
    arguments.extend(["--omit", &omitted]);
    arguments.extend(kind.options());
    let client = start(from, &arguments)?;
    let ping = Ping::start(from, &target)?;
    let (success, text) = client.finish(time + SLOW_START + GRACE)?;
    let round_trips = ping.stop()?;
    ensure!(success, "iperf3 to {target} failed: {}", text.trim());
    drop(server);
    let output: Output = serde_json::from_str(&text)
        .with_context(|| format!("cannot read iperf3's report: {text}"))?;
    let after = (Counters::of(from)?, Counters::of(to)?);
    Ok(Tcp {
        mbit: output.end.sum_received.bits_per_second / 1e6,
        retransmits: after.0.retransmits - before.0.retransmits,
        out_of_order: after.1.out_of_order - before.1.out_of_order,
        fragments: after.0.fragments - before.0.fragments,
        round_trips,
    })
}

/// Pings, twenty a second: some 0.03 Mbit/s each way.
struct Ping(Running<String>);

impl Ping {
    fn start(router: &Router, target: &str) -> Result<Self> {
        let mut ping = router.command("ping");
        Running::start(ping.args(["-n", "-i", "0.05", target])).map(Self)
    }

    fn stop(self) -> Result<Vec<f64>> {
        self.0.signal(Signal::SIGINT)?;
        // Its code is 1 where nothing was answered.
        let (_, text) = self.0.finish(GRACE)?;
        Ok(round_trips(&text))
    }
}

/// The round trips without other traffic, ms, from short to long.
pub(super) fn idle_round_trips(lab: &Lab, system: System) -> Result<Vec<f64>> {
    let target = system.target(lab)?;
    let ping = ["ping", "-n", "-c", "20", "-i", "0.05", &target];
    Ok(round_trips(&lab.router(SENDER).run(&ping)?))
}

/// What ping says of each answer.
fn round_trips(text: &str) -> Vec<f64> {
    let time = |line: &str| -> Option<f64> {
        let (_, rest) = line.split_once(" time=")?;
        rest.strip_suffix(" ms")?.parse().ok()
    };
    let mut times: Vec<f64> = text.lines().filter_map(time).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// What became of a stream of UDP datagrams.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Udp {
    /// Payload received, Mbit/s.
    pub(super) mbit: f64,
    /// Share of those sent that did not arrive, 0 to 1.
    pub(super) lost: f64,
    /// Share of those received that came after a later one, 0 to 1.
    pub(super) late: f64,
}

/// Sends full datagrams with `mbit` Mbit/s of payload from A to B.
pub(super) fn udp(lab: &Lab, system: System, mbit: f64, time: Duration) -> Result<Udp> {
    let length = system.encap().datagram() as usize;
    let target = system.target(lab)?;
    let receiver = open(lab.router(RECEIVER).netns(), &target, None)?;
    receiver.set_read_timeout(Some(SILENCE))?;
    let sender = open(lab.router(SENDER).netns(), "0.0.0.0", Some(&target))?;
    let interval = Duration::from_secs_f64(length as f64 * 8.0 / (mbit * 1e6));
    let sent = AtomicBool::new(false);
    thread::scope(|scope| {
        let arrivals = scope.spawn(|| receive(&receiver, &sent));
        let start = Instant::now();
        let mut datagram = vec![0; length];
        let mut count = 0_u64;
        let outcome = loop {
            if let Err(error) = check_interrupt() {
                break Err(error);
            }
            let due = interval.mul_f64(count as f64);
            if due >= time {
                break Ok(());
            }
            thread::sleep((start + due).saturating_duration_since(Instant::now()));
            datagram[..8].copy_from_slice(&count.to_be_bytes());
            // A full queue on this host is a loss like any other.
            let _ = sender.send(&datagram);
            count += 1;
        };
        sent.store(true, Ordering::Relaxed);
        let arrivals = arrivals
            .join()
            .map_err(|_| anyhow::anyhow!("the receiver failed"))??;
        outcome?;
        ensure!(arrivals.count > 0, "no datagram arrived");
        Ok(Udp {
            mbit: arrivals.count as f64 * length as f64 * 8.0 / 1e6 / time.as_secs_f64(),
            lost: 1.0 - arrivals.count as f64 / count as f64,
            late: arrivals.late as f64 / arrivals.count as f64,
        })
    })
}

/// Room for any burst at the receiver, in bytes: systems differ in the memory that a packet takes, and
/// a full socket is no loss of theirs.
const ROOM: usize = 4 << 20;

/// A UDP socket in a namespace, bound to the receiver's address or connected to it.
pub(super) fn open(netns: &str, own: &str, target: Option<&str>) -> Result<UdpSocket> {
    namespace::within(netns, || {
        let socket = match target {
            None => UdpSocket::bind((own, PORT)),
            Some(target) => UdpSocket::bind((own, 0)).and_then(|socket| {
                socket.connect((target, PORT))?;
                Ok(socket)
            }),
        };
        let socket = socket.with_context(|| format!("cannot open a UDP socket in {netns}"))?;
        setsockopt(&socket, RcvBufForce, &ROOM).context("cannot make room at a socket")?;
        Ok(socket)
    })
}

#[derive(Debug, Default)]
struct Arrivals {
    count: u64,
    late: u64,
}

impl Arrivals {
    fn add(&mut self, number: u64, highest: &mut Option<u64>) {
        self.count += 1;
        if highest.is_some_and(|highest| number < highest) {
            self.late += 1;
        } else {
            *highest = Some(number);
        }
    }
}

/// Receives until nothing was sent for a while.
fn receive(socket: &UdpSocket, sent: &AtomicBool) -> Result<Arrivals> {
    let mut arrivals = Arrivals::default();
    let mut highest = None;
    let mut buffer = [0; 2048];
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) => {
                let number = buffer.first_chunk().copied().map(u64::from_be_bytes);
                arrivals.add(number.unwrap_or_default(), &mut highest);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if sent.load(Ordering::Relaxed) {
                    return Ok(arrivals);
                }
            }
            Err(error) => return Err(error).context("cannot receive"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_sorted() {
        let text = "PING 10.67.0.2 (10.67.0.2) 56(84) bytes of data.\n\
                    64 bytes from 10.67.0.2: icmp_seq=1 ttl=64 time=22.5 ms\n\
                    64 bytes from 10.67.0.2: icmp_seq=2 ttl=64 time=9.25 ms\n\
                    rtt min/avg/max/mdev = 9.250/1/22.5/0 ms\n";
        assert_eq!(round_trips(text), [9.25, 22.5]);
    }

    #[test]
    fn late_is_what_comes_after_a_later_one() {
        let mut arrivals = Arrivals::default();
        let mut highest = None;
        for number in [0, 2, 1, 3, 5, 4] {
            arrivals.add(number, &mut highest);
        }
        assert_eq!((arrivals.count, arrivals.late), (6, 2));
    }

    #[test]
    fn mptcp_comes_by_its_own_program() {
        assert_eq!(words(System::Netbond, &["iperf3"]), ["iperf3"]);
        assert_eq!(
            words(System::Mptcp, &["iperf3"]),
            ["mptcpize", "run", "iperf3"]
        );
    }
}
