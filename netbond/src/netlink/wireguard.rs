//! The kernel's WireGuard devices: the generic netlink family `wireguard` (linux/wireguard.h). Reading
//! needs CAP_NET_ADMIN.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::socket::{GENLMSGHDR, RequestSocket, address, attributes, u16_at, u32_at};
use crate::config::Prefix;
use crate::wireguard::{Device, Peer};

const WG_CMD_GET_DEVICE: u8 = 0;
const WG_VERSION: u8 = 1;
const WGDEVICE_A_IFNAME: u16 = 2;
const WGDEVICE_A_FWMARK: u16 = 7;
const WGDEVICE_A_PEERS: u16 = 8;
const WGPEER_A_PUBLIC_KEY: u16 = 1;
const WGPEER_A_ENDPOINT: u16 = 4;
const WGPEER_A_KEEPALIVE: u16 = 5;
const WGPEER_A_LAST_HANDSHAKE_TIME: u16 = 6;
const WGPEER_A_ALLOWEDIPS: u16 = 9;
const WGALLOWEDIP_A_IPADDR: u16 = 2;
const WGALLOWEDIP_A_CIDR_MASK: u16 = 3;

/// What one of the kernel's WireGuard devices is set to.
///
/// # Errors
/// The kernel has no WireGuard (`NotFound`), the device is none of its, or it refuses.
pub fn read(name: &str) -> io::Result<Device> {
    let mut socket = RequestSocket::open_generic()?;
    let family = socket.family("wireguard")?;
    let name = [name.as_bytes(), &[0]].concat();
    let fixed = [WG_CMD_GET_DEVICE, WG_VERSION, 0, 0];
    let bodies = socket.dump_matching(family, &fixed, &[(WGDEVICE_A_IFNAME, &name)])?;
    let mut device = Device::default();
    for body in &bodies {
        decode(body, &mut device);
    }
    Ok(device)
}

/// Adds what a message says. A long list of peers, or of one peer's AllowedIPs, goes on in the next,
/// which names that peer again.
pub fn decode(body: &[u8], device: &mut Device) {
    for (attribute, value) in attributes(body.get(GENLMSGHDR..).unwrap_or_default()) {
        match attribute {
            WGDEVICE_A_FWMARK => device.mark = u32_at(value, 0).unwrap_or(0),
            WGDEVICE_A_PEERS => {
                for peer in attributes(value).filter_map(|(_, value)| decode_peer(value)) {
                    match device.peers.last_mut() {
                        Some(last) if last.public_key == peer.public_key => {
                            last.allowed.extend(peer.allowed);
                        }
                        Some(_) | None => device.peers.push(peer),
                    }
                }
            }
            _ => {}
        }
    }
}

fn decode_peer(bytes: &[u8]) -> Option<Peer> {
    let mut key = None;
    let mut peer = Peer::new([0; 32]);
    for (attribute, value) in attributes(bytes) {
        match attribute {
            WGPEER_A_PUBLIC_KEY => key = <[u8; 32]>::try_from(value).ok(),
            WGPEER_A_ENDPOINT => peer.endpoint = socket_address(value),
            WGPEER_A_KEEPALIVE => {
                let seconds = u16_at(value, 0).unwrap_or(0);
                peer.keepalive = (seconds != 0).then_some(seconds);
            }
            WGPEER_A_LAST_HANDSHAKE_TIME => peer.last_handshake = time(value),
            WGPEER_A_ALLOWEDIPS => {
                let allowed = attributes(value).filter_map(|(_, value)| decode_allowed(value));
                peer.allowed.extend(allowed);
            }
            _ => {}
        }
    }
    peer.public_key = key?;
    Some(peer)
}

fn decode_allowed(bytes: &[u8]) -> Option<Prefix> {
    let (mut ip, mut length) = (None, None);
    for (attribute, value) in attributes(bytes) {
        match attribute {
            WGALLOWEDIP_A_IPADDR => ip = address(value),
            WGALLOWEDIP_A_CIDR_MASK => length = value.first().copied(),
            _ => {}
        }
    }
    let address = ip?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = length.filter(|length| *length <= most)?;
    Some(Prefix { address, length })
}

/// struct sockaddr_in or sockaddr_in6: family (2, host byte order), port (2, big-endian), then the
/// address, in IPv6 behind the flow information (4).
fn socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be(u16_at(bytes, 2)?);
    let ip: IpAddr = match i32::from(u16_at(bytes, 0)?) {
        libc::AF_INET => address(bytes.get(4..8)?)?,
        libc::AF_INET6 => address(bytes.get(8..24)?)?,
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// struct __kernel_timespec: seconds and nanoseconds, 8 bytes each; 0 for never.
fn time(bytes: &[u8]) -> Option<SystemTime> {
    let seconds = i64::from_ne_bytes(*bytes.first_chunk()?);
    let seconds = u64::try_from(seconds)
        .ok()
        .filter(|&seconds| seconds != 0)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;
    use crate::netlink::link::tests::body;

    fn nested(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        body(&[], attributes)
    }

    fn allowed(address: &[u8], length: u8) -> Vec<u8> {
        nested(&[
            (1, &(libc::AF_INET as u16).to_ne_bytes()),
            (WGALLOWEDIP_A_IPADDR, address),
            (WGALLOWEDIP_A_CIDR_MASK, &[length]),
        ])
    }

    /// A device's message with one peer of these AllowedIPs.
    fn message(lists: &[Vec<u8>]) -> Vec<u8> {
        let lists: Vec<(u16, &[u8])> = lists.iter().map(|list| (0, &list[..])).collect();
        let mut endpoint = (libc::AF_INET as u16).to_ne_bytes().to_vec();
        endpoint.extend(51820_u16.to_be_bytes());
        endpoint.extend([192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut time = 1000_i64.to_ne_bytes().to_vec();
        time.extend([0; 8]);
        let peer = nested(&[
            (WGPEER_A_PUBLIC_KEY, &[7; 32]),
            (WGPEER_A_ENDPOINT, &endpoint),
            (WGPEER_A_KEEPALIVE, &10_u16.to_ne_bytes()),
            (WGPEER_A_LAST_HANDSHAKE_TIME, &time),
            (WGPEER_A_ALLOWEDIPS, &nested(&lists)),
        ]);
        body(
            &[WG_CMD_GET_DEVICE, WG_VERSION, 0, 0],
            &[
                (WGDEVICE_A_FWMARK, &51820_u32.to_ne_bytes()),
                (WGDEVICE_A_PEERS, &nested(&[(0, &peer)])),
            ],
        )
    }

    #[test]
    fn a_device_is_read() {
        let mut device = Device::default();
        decode(&message(&[allowed(&[10, 65, 0, 0], 30)]), &mut device);
        // The same peer goes on.
        decode(&message(&[allowed(&[0; 4], 0)]), &mut device);
        let expected = Peer {
            endpoint: Some(([192, 0, 2, 2], 51820).into()),
            keepalive: Some(10),
            last_handshake: Some(UNIX_EPOCH + Duration::from_secs(1000)),
            allowed: ["10.65.0.0/30", "0.0.0.0/0"]
                .map(|prefix| prefix.parse().unwrap())
                .into(),
            ..Peer::new([7; 32])
        };
        assert_eq!(device.mark, 51820);
        assert_eq!(device.peers, [expected]);
    }

    proptest! {
        #[test]
        fn mutated_messages_never_panic(bytes in mutated::bytes(message(&[allowed(&[0; 4], 0), allowed(&[0; 16], 64)]))) {
            decode(&bytes, &mut Device::default());
        }
    }
}
