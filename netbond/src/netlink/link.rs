//! Links and addresses as messages carry them: struct ifinfomsg and struct ifaddrmsg with their
//! attributes (linux/if_link.h, linux/if_addr.h), and looking them up.

use std::io;
use std::net::IpAddr;

use super::socket::{Answer, RequestSocket, address, attributes, string, u16_at, u32_at};
use crate::control::event::Link;

/// Bytes of struct ifinfomsg: family (1), padding (1), type (2), index (4), flags (4), change (4).
pub(super) const IFINFOMSG: usize = 16;
/// Bytes of struct ifaddrmsg: family (1), prefix length (1), flags (1), scope (1), index (4).
pub(super) const IFADDRMSG: usize = 8;

/// A link with what tells a veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkDetails {
    pub(super) link: Link,
    /// IFLA_INFO_KIND: `veth`, `wireguard`, ...; empty for hardware and the loopback device.
    pub(super) kind: String,
    /// IFLA_INFO_SLAVE_KIND: of what kind of device it is a port, `bridge`, `bond`, `vrf`, ...; empty where of none.
    pub(super) port_of: String,
    /// IFLA_LINK: of a veth, the ifindex of its peer, where that is in this network namespace; of a VLAN
    /// device, that of the device below.
    pub(super) peer: Option<u32>,
    /// Whether it resolves neighbours: no IFF_NOARP.
    pub(super) arp: bool,
}

impl LinkDetails {
    /// Whether what it receives is another device's. A VRF is a matter of routes.
    pub(super) fn is_port(&self) -> bool {
        !self.port_of.is_empty() && self.port_of != "vrf"
    }
}

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DeviceAddress {
    pub(super) ifindex: u32,
    pub(super) address: IpAddr,
    /// Bits.
    pub(super) prefix: u8,
}

/// The ifindex of an RTM_NEWLINK or RTM_DELLINK, where it is about a device as such: a bridge sends
/// RTM_DELLINK of family AF_BRIDGE when a port leaves it, and the device lives on.
pub(super) fn ifindex(body: &[u8]) -> Option<u32> {
    (*body.first()? == libc::AF_UNSPEC as u8).then(|| u32_at(body, 4))?
}

/// Reads an RTM_NEWLINK; `None` where it tells nothing of a device as such.
pub(super) fn decode(body: &[u8]) -> Option<LinkDetails> {
    let ifindex = ifindex(body)?;
    let ethernet = u16_at(body, 2)? == libc::ARPHRD_ETHER;
    let running = (libc::IFF_UP | libc::IFF_RUNNING) as u32;
    let flags = u32_at(body, 8)?;
    let up = flags & running == running;

    let (mut name, mut mtu, mut mac, mut peer) = (None, None, None, None);
    let (mut kind, mut port_of) = (String::new(), String::new());
    let mut peer_elsewhere = false;
    for (attribute, value) in attributes(body.get(IFINFOMSG..)?) {
        match attribute {
            libc::IFLA_IFNAME => name = Some(string(value)),
            libc::IFLA_MTU => mtu = u32_at(value, 0),
            libc::IFLA_ADDRESS => mac = <[u8; 6]>::try_from(value).ok(),
            libc::IFLA_LINK => peer = u32_at(value, 0),
            libc::IFLA_LINK_NETNSID => peer_elsewhere = true,
            libc::IFLA_LINKINFO => {
                for (attribute, value) in attributes(value) {
                    match attribute {
                        libc::IFLA_INFO_KIND => kind = string(value),
                        libc::IFLA_INFO_SLAVE_KIND => port_of = string(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(LinkDetails {
        link: Link {
            ifindex,
            name: name?,
            up,
            mtu: mtu?,
            mac: mac.filter(|_| ethernet),
        },
        kind,
        port_of,
        peer: peer.filter(|_| !peer_elsewhere),
        arp: flags & libc::IFF_NOARP as u32 == 0,
    })
}

/// Reads an RTM_NEWADDR or RTM_DELADDR.
pub(super) fn decode_address(body: &[u8]) -> Option<DeviceAddress> {
    let (mut local, mut other) = (None, None);
    for (attribute, value) in attributes(body.get(IFADDRMSG..)?) {
        match attribute {
            libc::IFA_LOCAL => local = address(value),
            libc::IFA_ADDRESS => other = address(value),
            _ => {}
        }
    }
    // IFA_ADDRESS is the far end's where the device is point-to-point: IFA_LOCAL goes first.
    Some(DeviceAddress {
        ifindex: u32_at(body, 4)?,
        address: local.or(other)?,
        prefix: *body.get(1)?,
    })
}

/// All links of the namespace.
pub(super) fn dump(socket: &mut RequestSocket) -> io::Result<Vec<LinkDetails>> {
    let bodies = socket.dump(libc::RTM_GETLINK, &[0; IFINFOMSG])?;
    Ok(bodies.iter().filter_map(|body| decode(body)).collect())
}

/// All addresses of the namespace.
pub(super) fn dump_addresses(socket: &mut RequestSocket) -> io::Result<Vec<DeviceAddress>> {
    let bodies = socket.dump(libc::RTM_GETADDR, &[0; IFADDRMSG])?;
    Ok(bodies
        .iter()
        .filter_map(|body| decode_address(body))
        .collect())
}

pub(super) fn by_name(socket: &mut RequestSocket, name: &str) -> io::Result<Option<LinkDetails>> {
    let mut terminated = name.as_bytes().to_vec();
    terminated.push(0);
    let attributes = [(libc::IFLA_IFNAME, &terminated[..])];
    one(socket.ask(libc::RTM_GETLINK, 0, &[0; IFINFOMSG], &attributes)?)
}

pub(super) fn by_index(socket: &mut RequestSocket, index: u32) -> io::Result<Option<LinkDetails>> {
    let mut fixed = [0; IFINFOMSG];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    one(socket.ask(libc::RTM_GETLINK, 0, &fixed, &[])?)
}

fn one(answer: Answer) -> io::Result<Option<LinkDetails>> {
    match answer {
        Answer::Body(body) => decode(&body)
            .map(Some)
            .ok_or_else(|| io::Error::other("the kernel's RTM_NEWLINK lacks a name or an MTU")),
        Answer::Errno(libc::ENODEV) => Ok(None),
        Answer::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
        Answer::Lost => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;
    use crate::netlink::socket::{messages, push_request};

    /// An RTM_NEWLINK body of an Ethernet-type device.
    pub(in crate::netlink) fn link_body(family: u8, index: u32, name: &str, flags: i32) -> Vec<u8> {
        let mut fixed = vec![family, 0];
        fixed.extend(libc::ARPHRD_ETHER.to_ne_bytes());
        fixed.extend(index.to_ne_bytes());
        fixed.extend((flags as u32).to_ne_bytes());
        fixed.extend([0; 4]);
        let mut terminated = name.as_bytes().to_vec();
        terminated.push(0);
        body(
            &fixed,
            &[
                (libc::IFLA_IFNAME, &terminated),
                (libc::IFLA_MTU, &1420_u32.to_ne_bytes()),
                (libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 9]),
                // As a veth in a bridge has it: kinds inside IFLA_LINKINFO.
                (
                    libc::IFLA_LINKINFO,
                    b"\x09\0\x01\0veth\0\0\0\0\x0b\0\x04\0bridge\0\0",
                ),
                (libc::IFLA_LINK, &3_u32.to_ne_bytes()),
            ],
        )
    }

    /// A message's body: `fixed` and the attributes.
    pub(in crate::netlink) fn body(fixed: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        push_request(&mut out, 0, 0, 0, fixed, attributes);
        messages(&out).next().unwrap().body.to_vec()
    }

    #[test]
    fn a_link_is_read() {
        let flags = libc::IFF_UP | libc::IFF_RUNNING | libc::IFF_NOARP;
        let details = decode(&link_body(0, 9, "bond0", flags)).unwrap();
        let link = Link {
            ifindex: 9,
            name: "bond0".into(),
            up: true,
            mtu: 1420,
            mac: Some([2, 0, 0, 0, 0, 9]),
        };
        assert_eq!(
            details,
            LinkDetails {
                link,
                kind: "veth".into(),
                port_of: "bridge".into(),
                peer: Some(3),
                arp: false,
            }
        );
        assert!(decode(&link_body(0, 9, "bond0", 0)).unwrap().arp);
        // Up without a carrier.
        assert!(
            !decode(&link_body(0, 9, "bond0", libc::IFF_UP))
                .unwrap()
                .link
                .up
        );
    }

    #[test]
    fn a_bridge_port_message_is_not_about_the_device() {
        let body = link_body(libc::AF_BRIDGE as u8, 9, "bond0", libc::IFF_UP);
        assert_eq!(ifindex(&body), None);
        assert_eq!(decode(&body), None);
    }

    #[test]
    fn the_local_address_of_a_point_to_point_device_is_read() {
        let mut fixed = [libc::AF_INET as u8, 32, 0, 0, 0, 0, 0, 0];
        fixed[4..].copy_from_slice(&7_u32.to_ne_bytes());
        let both: [(u16, &[u8]); 2] = [
            (libc::IFA_ADDRESS, &[10, 0, 0, 2]),
            (libc::IFA_LOCAL, &[10, 0, 0, 1]),
        ];
        let read = decode_address(&body(&fixed, &both)).unwrap();
        let address = IpAddr::from([10, 0, 0, 1]);
        assert_eq!(
            read,
            DeviceAddress {
                ifindex: 7,
                address,
                prefix: 32
            }
        );
    }

    proptest! {
        #[test]
        fn mutated_messages_never_panic(bytes in mutated::bytes(link_body(0, 9, "bond0", libc::IFF_UP))) {
            let _ = (decode(&bytes), decode_address(&bytes), ifindex(&bytes));
        }
    }
}
