//! Streams of numbered packets on an exact schedule: the hidden commands `netbond-lab stream` and
//! `netbond-lab reflect`.
//!
//! `ping` sends more slowly while nothing returns, which makes an outage look smaller than it is.
//! This sender keeps its pace. It prints `sent NUMBER MICROSECONDS` (since the epoch) for each
//! packet and `back NUMBER` for each answer, until it is killed, or as many as it was told are answered or late. The
//! packets are echo requests, or UDP to a reflector, which sends each back once and prints `here NUMBER` whenever it comes: so it is known
//! on which way one was lost.

use std::collections::HashSet;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::process::id;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// UDP port of the reflector.
pub(crate) const PORT: u16 = 7007;

const REQUEST_V4: u8 = 8;
const ANSWER_V4: u8 = 0;
const REQUEST_V6: u8 = 128;
const ANSWER_V6: u8 = 129;

/// Answers that take longer count as lost: a busy machine stands still for a second now and then.
pub(crate) const LATE: Duration = Duration::from_secs(2);

/// Length of an ICMP echo header, in bytes.
const HEADER: usize = 8;

/// Length of a request: header, process id (4 bytes), number (8 bytes), and padding to the 64 bytes
/// of a common ping.
const LENGTH: usize = 64;

/// Sends echo requests to `address` (`fe80::1%nb0` where it needs its device), one every `interval`: so many, or for
/// ever.
pub fn send(address: &str, interval: Duration, count: Option<u64>) -> Result<()> {
    let mut found = (address, 0).to_socket_addrs()?;
    let to = found
        .next()
        .with_context(|| format!("no address {address}"))?;
    let (family, protocol) = match to {
        SocketAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        SocketAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
        .context("cannot open an ICMP socket")?;
    // Only its send and receive are used, which are the same for every connected socket.
    let socket = UdpSocket::from(raw);
    socket
        .connect(to)
        .with_context(|| format!("cannot reach {address}"))?;
    let v4 = to.is_ipv4();
    pace(
        &socket,
        (interval, count),
        |number| request(number, v4),
        move |packet| answered(packet, v4),
    )
}

/// Sends UDP packets to the reflector at `address`, one every `interval`, for ever.
pub fn send_udp(address: IpAddr, interval: Duration) -> Result<()> {
    let any = match address {
        IpAddr::V4(_) => "0.0.0.0:0",
        IpAddr::V6(_) => "[::]:0",
    };
    let socket = UdpSocket::bind(any)?;
    socket
        .connect(SocketAddr::new(address, PORT))
        .with_context(|| format!("cannot reach {address}"))?;
    let packet = |number: u64| {
        let mut packet = [0; LENGTH];
        packet[..8].copy_from_slice(&number.to_be_bytes());
        packet
    };
    pace(&socket, (interval, None), packet, number)
}

/// Sends back every numbered UDP packet that comes to `address`, for ever; one that comes again is not
/// answered again, or it would count for two at the sender.
pub fn reflect(address: IpAddr) -> Result<()> {
    let socket = UdpSocket::bind((address, PORT))
        .with_context(|| format!("cannot reflect at {address}, port {PORT}"))?;
    let mut buffer = [0; 2048];
    let mut answered = HashSet::new();
    loop {
        // An error is one of an answer before: its asker is gone.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Some(number) = number(&buffer[..length]) else {
            continue;
        };
        say(format_args!("here {number}"));
        if answered.insert(number) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

/// The number of a UDP packet.
fn number(packet: &[u8]) -> Option<u64> {
    let number = packet.get(..8)?;
    number.try_into().ok().map(u64::from_be_bytes)
}

/// Sends packet after packet on the schedule, and tells of what returns; ends once so many have.
fn pace(
    socket: &UdpSocket,
    (interval, count): (Duration, Option<u64>),
    packet: impl Fn(u64) -> [u8; LENGTH],
    answered: impl Fn(&[u8]) -> Option<u64> + Send + 'static,
) -> Result<()> {
    let receiver = socket.try_clone()?;
    thread::Builder::new()
        .name("answers".to_owned())
        .spawn(move || {
            let mut buffer = [0; 2048];
            let mut back = HashSet::new();
            loop {
                // An error (port or host unreachable) is not an answer.
                let Ok(length) = receiver.recv(&mut buffer) else {
                    continue;
                };
                let Some(number) = answered(&buffer[..length]) else {
                    continue;
                };
                say(format_args!("back {number}"));
                let Some(count) = count else {
                    continue;
                };
                back.insert(number);
                if back.len() as u64 == count {
                    std::process::exit(0);
                }
            }
        })?;
    let start = Instant::now();
    for number in 1..=count.unwrap_or(u64::MAX) {
        let due = start + interval.mul_f64(number as f64);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
        say(format_args!("sent {number} {now}"));
        // Without a route it counts as lost.
        let _ = socket.send(&packet(number));
    }
    thread::sleep(LATE);
    Ok(())
}

/// Prints a line at once: the reader may end this process at any moment.
fn say(line: std::fmt::Arguments<'_>) {
    let mut output = std::io::stdout().lock();
    if writeln!(output, "{line}")
        .and_then(|()| output.flush())
        .is_err()
    {
        std::process::exit(0);
    }
}

fn request(number: u64, v4: bool) -> [u8; LENGTH] {
    let mut packet = [0; LENGTH];
    packet[0] = if v4 { REQUEST_V4 } else { REQUEST_V6 };
    packet[HEADER..HEADER + 4].copy_from_slice(&id().to_be_bytes());
    packet[HEADER + 4..HEADER + 12].copy_from_slice(&number.to_be_bytes());
    // The kernel fills in the checksum for IPv6 only.
    if v4 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The number of the request that a received packet answers, if it is one of this process.
fn answered(packet: &[u8], v4: bool) -> Option<u64> {
    // Raw IPv4 sockets hand over the IP header as well.
    let (start, kind) = if v4 {
        (usize::from(packet.first()? & 15) * 4, ANSWER_V4)
    } else {
        (0, ANSWER_V6)
    };
    let packet = packet.get(start..)?;
    let payload = packet.get(HEADER..HEADER + 12)?;
    let (process, number) = payload.split_at(4);
    (packet[0] == kind && process == id().to_be_bytes())
        .then(|| number.try_into().ok().map(u64::from_be_bytes))?
}

/// The Internet checksum of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_its_number() {
        let mut packet = vec![0x45];
        packet.resize(20, 0);
        packet.extend(request(77, true));
        assert_eq!(answered(&packet, true), None, "a request is no answer");
        packet[20] = ANSWER_V4;
        assert_eq!(answered(&packet, true), Some(77));
        packet[20 + HEADER] ^= 1;
        assert_eq!(answered(&packet, true), None, "of another process");
        assert_eq!(answered(&packet[..25], true), None, "cut short");
    }

    #[test]
    fn a_request_sums_up_to_nothing() {
        assert_eq!(checksum(&request(123_456, true)), 0);
    }
}
