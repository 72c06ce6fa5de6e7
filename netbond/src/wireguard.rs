//! What WireGuard devices are set to: the kernel's by netlink, those in user space by their sockets
//! (<https://www.wireguard.com/xplatform/#cross-platform-userspace-implementation>). Keys that are secret
//! are passed over.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::Prefix;
use crate::netlink;

/// Where devices in user space have their sockets.
const SOCKETS: &str = "/var/run/wireguard";

/// What a device in user space may take to answer.
const ANSWER: Duration = Duration::from_secs(3);

/// Bytes of an answer that are accepted: thousands of peers.
const ANSWER_LIMIT: u64 = 4 << 20;

/// A WireGuard device, as far as a path cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Firewall mark of the encrypted packets; 0: none.
    pub mark: u32,
    pub peers: Vec<Peer>,
}

/// A peer of a device.
#[derive(Clone, PartialEq, Eq)]
pub struct Peer {
    pub public_key: [u8; 32],
    /// Where its encrypted packets go; `None` where that is not known yet.
    pub endpoint: Option<SocketAddr>,
    /// Between two packets that keep the session alive, s; `None` where none are sent.
    pub keepalive: Option<u16>,
    /// `None`: there was none yet.
    pub last_handshake: Option<SystemTime>,
    /// Packets to these addresses go to it, packets from it are taken if they come from these.
    pub allowed: Vec<Prefix>,
}

impl Peer {
    /// One of which nothing else is known.
    pub(crate) fn new(public_key: [u8; 32]) -> Self {
        Self {
            public_key,
            endpoint: None,
            keepalive: None,
            last_handshake: None,
            allowed: Vec::new(),
        }
    }

    /// Its public key as people and wg(8) write it.
    #[must_use]
    pub fn key(&self) -> String {
        BASE64_STANDARD.encode(self.public_key)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("key", &self.key())
            .field("endpoint", &self.endpoint)
            .field("keepalive", &self.keepalive)
            .field("last_handshake", &self.last_handshake)
            .field("allowed", &self.allowed)
            .finish()
    }
}

impl Device {
    /// The peer that packets to this address go to, and that may send packets from it: that with the
    /// longest of the AllowedIPs that it is in.
    #[must_use]
    pub fn peer_for(&self, address: IpAddr) -> Option<&Peer> {
        let lengths = |peer: &Peer| {
            let inside = peer.allowed.iter().filter(|allowed| allowed.holds(address));
            inside.map(|allowed| allowed.length).max()
        };
        let peers = self
            .peers
            .iter()
            .filter_map(|peer| Some((lengths(peer)?, peer)));
        peers
            .max_by_key(|(length, _)| *length)
            .map(|(_, peer)| peer)
    }

    /// Whether each address of a prefix is in the AllowedIPs of some peer.
    #[must_use]
    pub fn admits(&self, prefix: Prefix) -> bool {
        let allowed: Vec<Prefix> = self
            .peers
            .iter()
            .flat_map(|peer| peer.allowed.iter().copied())
            .collect();
        covers(&allowed, prefix)
    }
}

/// Whether prefixes together hold all of one: some holds it whole, or they hold both halves.
fn covers(prefixes: &[Prefix], whole: Prefix) -> bool {
    if prefixes
        .iter()
        .any(|prefix| prefix.length <= whole.length && prefix.holds(whole.address))
    {
        return true;
    }
    let parts: Vec<Prefix> = prefixes
        .iter()
        .copied()
        .filter(|part| part.length > whole.length && whole.holds(part.address))
        .collect();
    match whole.halves() {
        Some(halves) if !parts.is_empty() => halves.into_iter().all(|half| covers(&parts, half)),
        Some(_) | None => false,
    }
}

/// Reads a device of the host: `None` where it is no WireGuard device. `kind` is what the kernel says
/// that it is (IFLA_INFO_KIND).
///
/// # Errors
/// The kernel, or the process in user space, does not tell.
pub fn read(name: &str, kind: &str) -> io::Result<Option<Device>> {
    if kind == "wireguard" {
        return netlink::wireguard::read(name).map(Some);
    }
    let socket = PathBuf::from(SOCKETS).join(format!("{name}.sock"));
    if !socket.exists() {
        return Ok(None);
    }
    let end = Instant::now() + ANSWER;
    let stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Holds for connect(2) as well, where nobody accepts (unix(7)).
    stream.set_write_timeout(Some(ANSWER))?;
    stream.connect(&SockAddr::unix(socket)?)?;
    let mut stream = UnixStream::from(OwnedFd::from(stream));
    stream.write_all(b"get=1\n\n")?;
    parse(&answer(&stream, end)?).map(Some)
}

/// Reads up to the empty line that ends an answer: some processes keep the connection. In all it waits
/// until `end`.
fn answer(socket: &UnixStream, end: Instant) -> io::Result<String> {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    let mut stream = socket.take(ANSWER_LIMIT);
    while !answer.ends_with(b"\n\n") {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        socket.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer)? {
            0 => break,
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
    String::from_utf8(answer).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Reads the answer to `get=1`: lines of `key=value`, those of a peer behind its `public_key`.
///
/// # Errors
/// A line that cannot be read, or an error number that it tells.
pub fn parse(answer: &str) -> io::Result<Device> {
    let wrong = |line: &str| {
        let message = format!("a line of its answer cannot be read: {line:?}");
        io::Error::new(io::ErrorKind::InvalidData, message)
    };
    let mut device = Device::default();
    let mut done = false;
    for line in answer.lines().take_while(|line| !line.is_empty()) {
        let (key, value) = line.split_once('=').ok_or_else(|| wrong(""))?;
        if key == "errno" {
            let errno: i32 = value.parse().map_err(|_| wrong(line))?;
            if errno != 0 {
                return Err(io::Error::from_raw_os_error(errno.wrapping_abs()));
            }
            done = true;
            continue;
        }
        if key == "fwmark" {
            device.mark = value.parse().map_err(|_| wrong(line))?;
        } else if key == "public_key" {
            let key = unhex(value).ok_or_else(|| wrong(line))?;
            device.peers.push(Peer::new(key));
        } else if let Some(peer) = device.peers.last_mut() {
            let number = || value.parse::<u64>().map_err(|_| wrong(line));
            match key {
                "endpoint" => peer.endpoint = value.parse().ok(),
                "persistent_keepalive_interval" => {
                    let seconds = u16::try_from(number()?).map_err(|_| wrong(line))?;
                    peer.keepalive = (seconds != 0).then_some(seconds);
                }
                "last_handshake_time_sec" => {
                    let seconds = Some(number()?).filter(|&seconds| seconds != 0);
                    peer.last_handshake = seconds
                        .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
                }
                "allowed_ip" => peer.allowed.push(value.parse().map_err(|_| wrong(line))?),
                _ => {}
            }
        }
    }
    if done {
        Ok(device)
    } else {
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "its answer ends too early",
        ))
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() || !text.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..text.len()).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn device(allowed: &[&[&str]]) -> Device {
        let peers = allowed.iter().enumerate().map(|(number, allowed)| Peer {
            allowed: allowed.iter().map(|text| prefix(text)).collect(),
            ..Peer::new([number as u8; 32])
        });
        Device {
            mark: 0,
            peers: peers.collect(),
        }
    }

    const ANSWER: &str = "private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a\n\
        listen_port=51820\nfwmark=51820\n\
        public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33\n\
        endpoint=[fd00::3]:51820\nlast_handshake_time_sec=1000\nlast_handshake_time_nsec=7\n\
        persistent_keepalive_interval=10\nallowed_ip=10.65.0.0/30\nallowed_ip=fd00::/64\n\
        public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376\n\
        last_handshake_time_sec=0\npersistent_keepalive_interval=0\nallowed_ip=0.0.0.0/0\nerrno=0\n\n";

    #[test]
    fn an_answer_of_a_device_in_user_space_is_read() {
        let device = parse(ANSWER).unwrap();
        assert_eq!(device.mark, 51820);
        let [one, other] = &device.peers[..] else {
            panic!("two peers");
        };
        assert_eq!(one.endpoint.unwrap().to_string(), "[fd00::3]:51820");
        assert_eq!(one.keepalive, Some(10));
        assert_eq!(
            one.last_handshake,
            Some(UNIX_EPOCH + Duration::from_secs(1000))
        );
        assert_eq!(one.allowed, [prefix("10.65.0.0/30"), prefix("fd00::/64")]);
        assert_eq!(one.key(), "uFmW/sycfx/G0lcqdu2hHVm80gvo5UOxXOS9hajnWjM=");
        assert_eq!((other.keepalive, other.last_handshake), (None, None));
        assert_eq!(device.peer_for([10, 65, 0, 2].into()), Some(one));
        assert_eq!(device.peer_for([10, 65, 0, 6].into()), Some(other));
    }

    #[test]
    fn what_is_wrong_with_an_answer_is_said() {
        for (text, said) in [
            ("errno=-2\n\n", "No such file"),
            ("fwmark=1\n\n", "too early"),
            ("public_key=zz\nerrno=0\n\n", "public_key"),
            ("public_key=\u{e9}\n\n", "public_key"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn an_answer_that_never_ends_is_given_up() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"fwmark=1\n").unwrap();
        let end = Instant::now() + Duration::from_millis(50);
        let kind = answer(&near, end).unwrap_err().kind();
        let late = [io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock];
        assert!(late.contains(&kind), "{kind}");
        far.write_all(b"errno=0\n\n").unwrap();
        let end = Instant::now() + super::ANSWER;
        assert_eq!(answer(&near, end).unwrap(), "errno=0\n\n");
    }

    #[test]
    fn prefixes_may_be_covered_by_parts() {
        let whole = prefix("10.65.0.0/24");
        assert!(device(&[&["10.65.0.0/16"]]).admits(whole));
        assert!(device(&[&["10.65.0.0/25"], &["10.65.0.128/26", "10.65.0.192/26"]]).admits(whole));
        assert!(!device(&[&["10.65.0.0/25", "10.65.0.192/26"]]).admits(whole));
        assert!(!device(&[&["::/0"]]).admits(whole));
        assert!(device(&[&["0.0.0.0/1", "128.0.0.0/1"]]).admits(prefix("0.0.0.0/0")));
    }

    proptest! {
        #[test]
        fn any_answer_never_panics(text in "([a-z_]{0,12}=[0-9a-f./:]{0,70}\n){0,9}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_a_prefix_holds_is_admitted(address: std::net::Ipv4Addr, length in 0..=32_u8) {
            let part = Prefix { address: address.into(), length }.network();
            let halves = part.halves().unwrap_or([part; 2]).map(|half| half.to_string());
            let [one, other] = [&halves[0][..], &halves[1][..]];
            prop_assert!(device(&[&[one], &[other]]).admits(part));
            prop_assert_eq!(device(&[&[one]]).admits(part), length == 32);
        }
    }
}
