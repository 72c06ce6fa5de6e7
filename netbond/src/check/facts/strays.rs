//! GRE packets that netbond's programs leave to the kernel, as they are of no path: what a raw socket
//! hears.

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut, Read as _};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use netbond_common::gre;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// IPPROTO_GRE.
const GRE: i32 = 47;

/// No time at all would be for ever.
const LEAST: Duration = Duration::from_millis(1);

/// How many kinds are told apart: more tell nothing new.
const MOST: usize = 256;

/// The flags that netbond does not speak: checksum and routing (RFC 1701), and the version.
const UNKNOWN_FLAGS: u16 = 0xc007;
const KEY_FLAG: u16 = 0x2000;
const CHECKSUM_FLAG: u16 = 0x8000;

/// What GRE packets of one kind have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::check) struct Stray {
    pub(in crate::check) from: IpAddr,
    pub(in crate::check) to: IpAddr,
    pub(in crate::check) key: Option<u32>,
    /// Whether it has a checksum, routing or another version: what netbond does not speak.
    pub(in crate::check) odd: bool,
    /// EtherType of what is inside.
    pub(in crate::check) protocol: u16,
}

impl Stray {
    /// Whether it carries Ethernet frames.
    pub(in crate::check) const fn is_ethernet(&self) -> bool {
        self.protocol == u16::from_be_bytes(gre::ETHERNET)
    }
}

/// Listens for so long, or until there are [`MOST`] kinds of a family.
///
/// # Errors
///
/// Where the kernel refuses a socket (CAP_NET_RAW).
pub(in crate::check) fn listen(duration: Duration) -> io::Result<BTreeSet<Stray>> {
    let end = Instant::now() + duration;
    std::thread::scope(|scope| {
        let v6 = scope.spawn(|| listen_v6(end));
        let v4 = listen_v4(end);
        let v6 = v6
            .join()
            .map_err(|_| io::Error::other("a thread panicked"))?;
        let mut strays = v4?;
        match v6 {
            Ok(more) => strays.extend(more),
            // A kernel without IPv6.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            Err(error) => return Err(error),
        }
        Ok(strays)
    })
}

fn listen_v4(end: Instant) -> io::Result<BTreeSet<Stray>> {
    let mut socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(GRE)))?;
    let mut packet = [0; 128];
    until(end, || {
        socket.set_read_timeout(Some(
            end.saturating_duration_since(Instant::now()).max(LEAST),
        ))?;
        let length = socket.read(&mut packet)?;
        Ok(packet.get(..length).and_then(decode_v4))
    })
}

/// Of IPv6 the kernel hands over what is behind the headers, and tells the addresses beside it.
fn listen_v6(end: Instant) -> io::Result<BTreeSet<Stray>> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(GRE)))?;
    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    let mut packet = [0; 128];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    until(end, || {
        socket.set_read_timeout(Some(
            end.saturating_duration_since(Instant::now()).max(LEAST),
        ))?;
        let mut parts = [IoSliceMut::new(&mut packet)];
        let message = recvmsg::<SockaddrIn6>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        let mut to = None;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::Ipv6PacketInfo(info) = part {
                to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
            }
        }
        let from = message.address.map(|address| address.ip());
        let length = message.bytes;
        let (Some(from), Some(to)) = (from, to) else {
            return Ok(None);
        };
        let content = packet.get(..length);
        Ok(content.and_then(|content| decode(from.into(), to.into(), content)))
    })
}

/// What one packet after the other tells until that time.
fn until(
    end: Instant,
    mut next: impl FnMut() -> io::Result<Option<Stray>>,
) -> io::Result<BTreeSet<Stray>> {
    let mut strays = BTreeSet::new();
    while strays.len() < MOST && Instant::now() < end {
        match next() {
            Ok(stray) => strays.extend(stray),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(strays)
}

/// Reads an IPv4 packet (RFC 791, 3.1) with GRE in it.
fn decode_v4(packet: &[u8]) -> Option<Stray> {
    let header = 4 * usize::from(packet.first()? & 0x0f);
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(bytes.into())
    };
    decode(address(12)?, address(16)?, packet.get(header..)?)
}

/// Reads GRE (RFC 2784, RFC 2890).
fn decode(from: IpAddr, to: IpAddr, packet: &[u8]) -> Option<Stray> {
    let half = |at: usize| Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?));
    let flags = half(0)?;
    let checksum = if flags & CHECKSUM_FLAG != 0 { 4 } else { 0 };
    let key = if flags & KEY_FLAG != 0 {
        let bytes = packet.get(4 + checksum..)?.first_chunk()?;
        Some(u32::from_be_bytes(*bytes))
    } else {
        None
    };
    Some(Stray {
        from,
        to,
        key,
        odd: flags & UNKNOWN_FLAGS != 0,
        protocol: half(2)?,
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::netlink::netns::in_netns;

    fn packet(gre: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 47, 0, 0];
        packet.extend([10, 65, 0, 6, 10, 65, 0, 2]);
        packet.extend(gre);
        packet
    }

    #[test]
    fn a_key_is_read_with_and_without_a_checksum() {
        let stray = |gre: &[u8]| decode_v4(&packet(gre)).unwrap();
        let plain = stray(&[0, 0, 8, 0]);
        assert_eq!((plain.key, plain.odd, plain.protocol), (None, false, 0x800));
        assert_eq!(plain.from, IpAddr::from([10, 65, 0, 6]));
        assert_eq!(plain.to, IpAddr::from([10, 65, 0, 2]));
        let keyed = stray(&[0x20, 0, 0x65, 0x58, 0, 0, 0, 7]);
        assert_eq!((keyed.key, keyed.is_ethernet()), (Some(7), true));
        let summed = stray(&[0xa0, 0, 8, 0, 1, 2, 0, 0, 0, 0, 0, 7]);
        assert_eq!((summed.key, summed.odd), (Some(7), true));
    }

    /// Both families at once, from the kernel.
    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn strays_of_both_families_are_heard() {
        in_netns(async || {
            let send = |domain, to: &str, gre: &[u8]| {
                let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(GRE))).unwrap();
                let to: IpAddr = to.parse().unwrap();
                socket.send_to(gre, &SocketAddr::new(to, 0).into()).unwrap();
            };
            let heard = std::thread::scope(|scope| {
                let heard = scope.spawn(|| listen(Duration::from_secs(1)).unwrap());
                // Not before both listen: what is sent until then nobody hears.
                while !heard.is_finished() {
                    send(Domain::IPV4, "127.0.0.1", &[0x20, 0, 8, 0, 0, 0, 0, 7]);
                    send(Domain::IPV6, "::1", &[0x20, 0, 0x65, 0x58, 0, 0, 0, 9]);
                    std::thread::yield_now();
                }
                heard.join().unwrap()
            });
            let stray = |address: &str, key, protocol| Stray {
                from: address.parse().unwrap(),
                to: address.parse().unwrap(),
                key: Some(key),
                odd: false,
                protocol,
            };
            let due = [stray("127.0.0.1", 7, 0x800), stray("::1", 9, 0x6558)];
            assert_eq!(heard, BTreeSet::from(due));
        });
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_v4(&bytes);
        }
    }
}
