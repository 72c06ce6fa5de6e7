//! TCP, UDP and ping through a system.

use std::io;
use std::net::UdpSocket;
use std::process::Command;
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
use crate::namespace::{self, iproute2};
use crate::traffic::{Running, wait_iperf3};
use crate::wait::{check_interrupt, wait_for};

/// The start of each stream that is not measured: slow start, and what a system learns of its paths.
pub(super) const WARM_UP: Duration = Duration::from_secs(8);

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

/// Where traffic comes from and goes to.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    /// Network namespaces.
    pub(super) from: String,
    pub(super) to: String,
    /// The receiver's address by which it takes the system.
    pub(super) target: String,
}

impl Ends {
    /// The routers with the two ends of a system.
    pub(super) fn of(lab: &Lab, system: System) -> Result<Self> {
        Ok(Self {
            from: lab.router(SENDER).netns().to_owned(),
            to: lab.router(RECEIVER).netns().to_owned(),
            target: system.target(lab)?,
        })
    }
}

/// A command in a network namespace. Its process id is that of the program.
fn command(netns: &str, words: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns]).args(words);
    command
}

/// What TCP achieved after the warm-up.
#[derive(Clone, Debug)]
pub(super) struct Tcp {
    /// Payload received, Mbit/s.
    pub(super) mbit: f64,
    /// Segments sent again.
    pub(super) retransmits: u64,
    /// Segments that came before an earlier one.
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

/// Runs TCP for `time` after its warm-up.
pub(super) fn tcp(ends: &Ends, system: System, kind: Kind, time: Duration) -> Result<Tcp> {
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

    let Ends { from, to, target } = ends;
    // What earlier streams to this address learnt is not for this one.
    iproute2("ip", &["-n", from, "tcp_metrics", "flush"])?;
    let start = |netns: &str, arguments: &[&str]| -> Result<Running<String>> {
        let words = words(system, &["iperf3"]);
        Running::start(command(netns, &words).args(arguments))
    };
    let counters = || Ok::<_, anyhow::Error>((Counters::of(from)?, Counters::of(to)?));
    let listen = listen(system, target);
    let server = start(to, &["--server", "--one-off", "--bind", listen])?;
    wait_iperf3(to, listen)?;
    let (seconds, omitted) = (time.as_secs().to_string(), WARM_UP.as_secs().to_string());
    let mut arguments = vec!["--client", target, "--json", "--interval", "0"];
    arguments.extend(["--connect-timeout", "5000", "--time", &seconds]);
    arguments.extend(["--omit", &omitted]);
    arguments.extend(kind.options());
    let client = start(from, &arguments)?;
    pause(WARM_UP)?;
    let before = counters()?;
    let ping = Ping::start(ends)?;
    let (success, text) = client.finish(time + GRACE)?;
    let round_trips = ping.stop()?;
    ensure!(success, "iperf3 to {target} failed: {}", text.trim());
    drop(server);
    let output: Output = serde_json::from_str(&text)
        .with_context(|| format!("cannot read iperf3's report: {text}"))?;
    let after = counters()?;
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
    fn start(ends: &Ends) -> Result<Self> {
        let words = ["ping", "-n", "-i", "0.05", &ends.target];
        Running::start(&mut command(&ends.from, &words)).map(Self)
    }

    fn stop(self) -> Result<Vec<f64>> {
        self.0.signal(Signal::SIGINT)?;
        // Its code is 1 where nothing was answered.
        let (_, text) = self.0.finish(GRACE)?;
        Ok(round_trips(&text))
    }
}

/// The round trips without other traffic, ms, from short to long.
pub(super) fn idle_round_trips(ends: &Ends) -> Result<Vec<f64>> {
    let ping = ["ping", "-n", "-c", "20", "-i", "0.05", &ends.target];
    let text = iproute2("ip", &[&["netns", "exec", &ends.from], &ping[..]].concat())?;
    Ok(round_trips(&text))
}

/// Waits, unless the process is told to stop.
pub(super) fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    wait_for("end of a pause", time + GRACE, || {
        Ok((Instant::now() >= end).then_some(()))
    })
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

/// Sends full datagrams with `mbit` Mbit/s of payload for `time` after the warm-up.
pub(super) fn udp(ends: &Ends, system: System, mbit: f64, time: Duration) -> Result<Udp> {
    let length = system.encap().datagram() as usize;
    let receiver = open(&ends.to, &ends.target, None)?;
    receiver.set_read_timeout(Some(SILENCE))?;
    let sender = open(&ends.from, "0.0.0.0", Some(&ends.target))?;
    let interval = Duration::from_secs_f64(length as f64 * 8.0 / (mbit * 1e6));
    let first = (WARM_UP.as_secs_f64() / interval.as_secs_f64()).ceil() as u64;
    let sent = AtomicBool::new(false);
    thread::scope(|scope| {
        let arrivals = scope.spawn(|| receive(&receiver, first, &sent));
        let start = Instant::now();
        let mut datagram = vec![0; length];
        let mut count = 0_u64;
        let outcome = loop {
            if let Err(error) = check_interrupt() {
                break Err(error);
            }
            let due = interval.mul_f64(count as f64);
            if due >= WARM_UP + time {
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
            lost: 1.0 - arrivals.count as f64 / (count - first) as f64,
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

/// Datagrams that arrived, of those that count.
#[derive(Debug)]
struct Arrivals {
    /// The number of the first one that counts.
    first: u64,
    count: u64,
    late: u64,
    highest: u64,
}

impl Arrivals {
    fn from(first: u64) -> Self {
        Self {
            first,
            count: 0,
            late: 0,
            highest: 0,
        }
    }

    fn add(&mut self, number: u64) {
        if number >= self.first {
            self.count += 1;
            self.late += u64::from(number < self.highest);
        }
        self.highest = self.highest.max(number);
    }
}

/// Receives until nothing was sent for a while.
fn receive(socket: &UdpSocket, first: u64, sent: &AtomicBool) -> Result<Arrivals> {
    let mut arrivals = Arrivals::from(first);
    let mut buffer = [0; 2048];
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) => {
                let number = buffer.first_chunk().copied().map(u64::from_be_bytes);
                arrivals.add(number.unwrap_or_default());
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
        let late_of = |first: u64| {
            let mut arrivals = Arrivals::from(first);
            for number in [0, 2, 1, 3, 5, 4] {
                arrivals.add(number);
            }
            (arrivals.late, arrivals.count)
        };
        assert_eq!(late_of(0), (2, 6));
        assert_eq!(late_of(2), (1, 4), "those of the warm-up do not count");
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
