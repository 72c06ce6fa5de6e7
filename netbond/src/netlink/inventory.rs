//! What the kernel tells of a bond made by hand: struct ifinfomsg with IFLA_LINKINFO
//! (linux/if_link.h, linux/if_tunnel.h), addresses, neighbours and routes. Reading needs no
//! privilege.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};

use super::link::{self, IFADDRMSG, IFINFOMSG};
use super::route::{self, RTMSG, RouteQuery};
use super::socket::{
    Answer, Message, RequestSocket, address, attributes, family_and_bytes, messages, string,
    u16_at, u32_at,
};
use crate::config::Prefix;
use crate::migrate::{
    Address, Device, Gre, GreOptions, Hop, Host, KernelBond, Kind, Neighbour, Route, Way,
};

/// Bytes of struct ndmsg: family (1), padding (3), index (4), state (2), flags (1), type (1).
const NDMSG: usize = 12;

// linux/if_link.h, linux/if_tunnel.h and linux/if_vlan.h, where libc has no name.
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BOND_MODE: u16 = 1;
const IFLA_BOND_ACTIVE_SLAVE: u16 = 2;
const IFLA_BOND_MIIMON: u16 = 3;
const IFLA_BOND_ARP_INTERVAL: u16 = 7;
const IFLA_BOND_ARP_IP_TARGET: u16 = 8;
const IFLA_BOND_ALL_SLAVES_ACTIVE: u16 = 17;
const IFLA_BOND_NS_IP6_TARGET: u16 = 31;
const IFLA_BOND_SLAVE_MII_STATUS: u16 = 2;
const IFLA_GRE_LINK: u16 = 1;
const IFLA_GRE_IFLAGS: u16 = 2;
const IFLA_GRE_OFLAGS: u16 = 3;
const IFLA_GRE_IKEY: u16 = 4;
const IFLA_GRE_OKEY: u16 = 5;
const IFLA_GRE_LOCAL: u16 = 6;
const IFLA_GRE_REMOTE: u16 = 7;
const IFLA_GRE_TTL: u16 = 8;
const IFLA_GRE_TOS: u16 = 9;
const IFLA_GRE_PMTUDISC: u16 = 10;
const IFLA_GRE_FLOWINFO: u16 = 12;
const IFLA_GRE_FLAGS: u16 = 13;
const IFLA_GRE_ENCAP_TYPE: u16 = 14;
const IFLA_GRE_COLLECT_METADATA: u16 = 18;
const IFLA_GRE_FWMARK: u16 = 20;
const IFLA_VLAN_ID: u16 = 1;

// GRE_* of linux/if_tunnel.h, in host byte order.
const GRE_CSUM: u16 = 0x8000;
const GRE_KEY: u16 = 0x2000;
const GRE_SEQ: u16 = 0x1000;

// IP6_TNL_F_* of linux/ip6_tunnel.h.
const IP6_TNL_IGN_ENCAP_LIMIT: u32 = 0x1;
const IP6_TNL_USE_ORIG_TCLASS: u32 = 0x2;

/// Reads what a migration needs to know; routes are those over the devices called `names`.
///
/// # Errors
/// The kernel refuses a socket or a dump.
pub fn read(names: &[String]) -> Result<Host> {
    let mut socket = RequestSocket::open().context("cannot open a netlink socket")?;
    let mut host = Host {
        neighbours: dump(&mut socket, libc::RTM_GETNEIGH, NDMSG, decode_neighbour)
            .context("cannot list the neighbours")?,
        ..devices_and_addresses()?
    };
    let named = host
        .devices
        .iter()
        .filter(|device| names.contains(&device.name));
    for ifindex in named.map(|device| device.ifindex) {
        for route in routes_over(ifindex).context("cannot list the routes")? {
            // A route with several next hops is seen once for each of them.
            if !host.routes.contains(&route) {
                host.routes.push(route);
            }
        }
    }
    let mut query = RouteQuery::open().context("cannot open a netlink socket")?;
    for device in &host.devices {
        let Kind::Gre(gre) = &device.kind else {
            continue;
        };
        // The module's own gre0 and gretap0 have no far end.
        let one_end = !gre.remote.is_unspecified() && !gre.remote.is_multicast();
        if one_end && host.ways.iter().all(|way| way.remote != gre.remote) {
            host.ways.extend(
                way(&mut socket, &mut query, gre.remote).context("cannot look up a route")?,
            );
        }
    }
    Ok(host)
}

/// Reads the devices and their addresses, and nothing else.
///
/// # Errors
/// The kernel refuses a socket or a dump.
pub fn devices_and_addresses() -> Result<Host> {
    let mut socket = RequestSocket::open().context("cannot open a netlink socket")?;
    Ok(Host {
        devices: dump(&mut socket, libc::RTM_GETLINK, IFINFOMSG, decode_device)
            .context("cannot list the devices")?,
        addresses: dump(&mut socket, libc::RTM_GETADDR, IFADDRMSG, decode_address)
            .context("cannot list the addresses")?,
        ..Host::default()
    })
}

/// What the messages of a datagram tell, as [`read`] takes them from the kernel: one that was kept, say.
/// Routes are those over any device, and ways are never among it.
#[must_use]
pub fn decode(datagram: &[u8]) -> Host {
    let mut host = Host::default();
    for Message { kind, body, .. } in messages(datagram) {
        match kind {
            libc::RTM_NEWLINK => host.devices.extend(decode_device(body)),
            libc::RTM_NEWADDR => host.addresses.extend(decode_address(body)),
            libc::RTM_NEWNEIGH => host.neighbours.extend(decode_neighbour(body)),
            libc::RTM_NEWROUTE => host.routes.extend(decode_route(body)),
            _ => {}
        }
    }
    host
}

fn dump<T>(
    socket: &mut RequestSocket,
    kind: u16,
    fixed: usize,
    decode: fn(&[u8]) -> Option<T>,
) -> io::Result<Vec<T>> {
    let bodies = socket.dump(kind, &vec![0; fixed])?;
    Ok(bodies.iter().filter_map(|body| decode(body)).collect())
}

/// The routes over a device, but for those the kernel makes itself; one with several next hops comes once
/// for each of them. The kernel picks them out, since a router may have a million others.
///
/// # Errors
/// The kernel refuses a socket or a dump.
pub fn routes_over(ifindex: u32) -> io::Result<Vec<Route>> {
    let mut socket = RequestSocket::open()?;
    socket.check_strictly()?;
    let mut routes = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut fixed = [0; RTMSG];
        fixed[0] = family as u8;
        let device = ifindex.to_ne_bytes();
        let bodies =
            socket.dump_matching(libc::RTM_GETROUTE, &fixed, &[(libc::RTA_OIF, &device)])?;
        routes.extend(bodies.iter().filter_map(|body| decode_route(body)));
    }
    Ok(routes)
}

fn way(
    socket: &mut RequestSocket,
    query: &mut RouteQuery,
    remote: IpAddr,
) -> io::Result<Option<Way>> {
    let found = query.lookup(&[remote])?.into_iter().next();
    let Some(found) = found.transpose()?.flatten().filter(|route| route.usable) else {
        return Ok(None);
    };
    let (family, bytes) = family_and_bytes(remote);
    let mut fixed = [0; RTMSG];
    fixed[0] = family;
    fixed[1] = 8 * bytes.len() as u8;
    let answer = socket.ask(libc::RTM_GETROUTE, 0, &fixed, &[(libc::RTA_DST, &bytes)])?;
    let source = match answer {
        Answer::Body(body) => attributes(body.get(RTMSG..).unwrap_or_default())
            .find(|(attribute, _)| *attribute == libc::RTA_PREFSRC)
            .and_then(|(_, value)| address(value)),
        // Withdrawn since.
        Answer::Errno(_) | Answer::Lost => None,
    };
    Ok(Some(Way {
        remote,
        source,
        devices: found.next_hops.iter().map(|hop| hop.ifindex).collect(),
        protocol: found.protocol,
    }))
}

/// Reads an RTM_NEWLINK.
fn decode_device(body: &[u8]) -> Option<Device> {
    let details = link::decode(body)?;
    let mut device = Device {
        ifindex: details.link.ifindex,
        name: details.link.name,
        mtu: details.link.mtu,
        kind: Kind::Other(details.kind.clone()),
        master: None,
        lower: details.peer.filter(|&index| index != 0),
        down_in_bond: false,
    };
    for (attribute, value) in attributes(body.get(IFINFOMSG..)?) {
        match attribute {
            libc::IFLA_MASTER => device.master = u32_at(value, 0),
            libc::IFLA_LINKINFO => {
                let (mut data, mut slave_kind, mut slave_data) = (&[][..], String::new(), &[][..]);
                for (attribute, value) in attributes(value) {
                    match attribute {
                        libc::IFLA_INFO_DATA => data = value,
                        libc::IFLA_INFO_SLAVE_KIND => slave_kind = string(value),
                        IFLA_INFO_SLAVE_DATA => slave_data = value,
                        _ => {}
                    }
                }
                device.kind = kind(&details.kind, data);
                device.down_in_bond = slave_kind == "bond" && port_is_down(slave_data);
            }
            _ => {}
        }
    }
    Some(device)
}

/// What IFLA_INFO_DATA says of a device of that IFLA_INFO_KIND.
fn kind(kind: &str, data: &[u8]) -> Kind {
    match kind {
        "bond" => Kind::Bond(decode_bond(data)),
        "team" => Kind::Team,
        "gre" | "gretap" => {
            let any = Ipv4Addr::UNSPECIFIED.into();
            Kind::Gre(decode_gre(data, kind == "gretap", any))
        }
        "ip6gre" | "ip6gretap" => {
            let any = Ipv6Addr::UNSPECIFIED.into();
            Kind::Gre(decode_gre(data, kind == "ip6gretap", any))
        }
        "vlan" => Kind::Vlan {
            id: attributes(data)
                .find(|(attribute, _)| *attribute == IFLA_VLAN_ID)
                .and_then(|(_, value)| u16_at(value, 0))
                .unwrap_or(0),
        },
        _ => Kind::Other(kind.to_owned()),
    }
}

fn decode_bond(data: &[u8]) -> KernelBond {
    let mut bond = KernelBond::default();
    for (attribute, value) in attributes(data) {
        match attribute {
            IFLA_BOND_MODE => bond.mode = byte(value),
            IFLA_BOND_ACTIVE_SLAVE => bond.active = u32_at(value, 0),
            IFLA_BOND_MIIMON => bond.miimon = u32_at(value, 0).unwrap_or(0),
            IFLA_BOND_ARP_INTERVAL => bond.arp_interval = u32_at(value, 0).unwrap_or(0),
            // Attributes in a row, each of which is numbered and holds an address.
            IFLA_BOND_ARP_IP_TARGET | IFLA_BOND_NS_IP6_TARGET => bond
                .arp_targets
                .extend(attributes(value).filter_map(|(_, value)| address(value))),
            IFLA_BOND_ALL_SLAVES_ACTIVE => bond.all_slaves_active = byte(value) != 0,
            _ => {}
        }
    }
    bond
}

/// Flags, keys, addresses and the flow information are big-endian, what else there is in host byte order
/// (ipgre_fill_info in net/ipv4/ip_gre.c, ip6gre_fill_info in net/ipv6/ip6_gre.c). `any` is the outer
/// family's unspecified address.
fn decode_gre(data: &[u8], ethernet: bool, any: IpAddr) -> Gre {
    let mut gre = Gre {
        ethernet,
        local: any,
        remote: any,
        input: GreOptions::default(),
        output: GreOptions::default(),
        link: None,
        ttl: 0,
        tos: 0,
        pmtudisc: false,
        external: false,
        wrapped: false,
        fwmark: 0,
        encap_limit: any.is_ipv6(),
    };
    let (mut input, mut output) = ((0, 0), (0, 0));
    for (attribute, value) in attributes(data) {
        match attribute {
            IFLA_GRE_LINK => gre.link = u32_at(value, 0).filter(|&index| index != 0),
            IFLA_GRE_IFLAGS => input.0 = u16_at(value, 0).map_or(0, u16::from_be),
            IFLA_GRE_OFLAGS => output.0 = u16_at(value, 0).map_or(0, u16::from_be),
            IFLA_GRE_IKEY => input.1 = u32_at(value, 0).map_or(0, u32::from_be),
            IFLA_GRE_OKEY => output.1 = u32_at(value, 0).map_or(0, u32::from_be),
            IFLA_GRE_LOCAL => gre.local = address(value).unwrap_or(gre.local),
            IFLA_GRE_REMOTE => gre.remote = address(value).unwrap_or(gre.remote),
            IFLA_GRE_TTL => gre.ttl = byte(value),
            IFLA_GRE_TOS => gre.tos = byte(value),
            // Version, traffic class, flow label: as in the header. The flags come behind it.
            IFLA_GRE_FLOWINFO if any.is_ipv6() => {
                let info = u32_at(value, 0).map_or(0, u32::from_be);
                gre.tos = (info >> 20) as u8;
            }
            IFLA_GRE_FLAGS if any.is_ipv6() => {
                let flags = u32_at(value, 0).unwrap_or(0);
                gre.encap_limit = flags & IP6_TNL_IGN_ENCAP_LIMIT == 0;
                if flags & IP6_TNL_USE_ORIG_TCLASS != 0 {
                    gre.tos = 1;
                }
            }
            IFLA_GRE_PMTUDISC => gre.pmtudisc = byte(value) != 0,
            // TUNNEL_ENCAP_NONE is 0.
            IFLA_GRE_ENCAP_TYPE => gre.wrapped = u16_at(value, 0) != Some(0),
            IFLA_GRE_COLLECT_METADATA => gre.external = true,
            IFLA_GRE_FWMARK => gre.fwmark = u32_at(value, 0).unwrap_or(0),
            _ => {}
        }
    }
    (gre.input, gre.output) = (options(input), options(output));
    gre
}

/// A key without its flag is not on the wire.
fn options((flags, key): (u16, u32)) -> GreOptions {
    GreOptions {
        key: (flags & GRE_KEY != 0).then_some(key),
        checksum: flags & GRE_CSUM != 0,
        sequence: flags & GRE_SEQ != 0,
    }
}

/// Whether a bond's monitor has found this port down: BOND_LINK_UP is 0 (linux/if_bonding.h).
fn port_is_down(data: &[u8]) -> bool {
    attributes(data)
        .any(|(attribute, value)| attribute == IFLA_BOND_SLAVE_MII_STATUS && byte(value) != 0)
}

fn byte(value: &[u8]) -> u8 {
    value.first().copied().unwrap_or(0)
}

/// Reads an RTM_NEWADDR.
fn decode_address(body: &[u8]) -> Option<Address> {
    let own = link::decode_address(body)?;
    // IFA_ADDRESS is the far end's where it differs from IFA_LOCAL; IPv6 leaves the latter out where
    // there is no far end.
    let far = attributes(body.get(IFADDRMSG..)?)
        .find(|(attribute, _)| *attribute == libc::IFA_ADDRESS)
        .and_then(|(_, value)| address(value))
        .filter(|&far| far != own.address);
    Some(Address {
        ifindex: own.ifindex,
        own: Prefix {
            address: own.address,
            length: own.prefix,
        },
        far,
    })
}

/// Reads an RTM_NEWNEIGH; `None` where the neighbour was never heard.
fn decode_neighbour(body: &[u8]) -> Option<Neighbour> {
    let heard = libc::NUD_REACHABLE
        | libc::NUD_STALE
        | libc::NUD_DELAY
        | libc::NUD_PROBE
        | libc::NUD_PERMANENT;
    if u16_at(body, 8)? & heard == 0 {
        return None;
    }
    let (_, value) =
        attributes(body.get(NDMSG..)?).find(|(attribute, _)| *attribute == libc::NDA_DST)?;
    Some(Neighbour {
        ifindex: u32_at(body, 4)?,
        address: address(value)?,
    })
}

/// Reads an RTM_NEWROUTE; `None` where the kernel made the route or it does not forward.
fn decode_route(body: &[u8]) -> Option<Route> {
    let decoded = route::decode(body)?.route;
    let made_by_kernel = [libc::RTPROT_KERNEL, libc::RTPROT_REDIRECT].contains(&decoded.protocol);
    if made_by_kernel || *body.get(7)? != libc::RTN_UNICAST {
        return None;
    }
    let unspecified: IpAddr = match i32::from(*body.first()?) {
        libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut table = u32::from(*body.get(4)?);
    let mut source = None;
    for (attribute, value) in attributes(body.get(RTMSG..)?) {
        match attribute {
            libc::RTA_TABLE => table = u32_at(value, 0)?,
            libc::RTA_PREFSRC => source = address(value).filter(|&ip| ip != unspecified),
            _ => {}
        }
    }
    let (address, length) = decoded.prefix;
    Some(Route {
        to: Prefix { address, length },
        table,
        protocol: decoded.protocol,
        metric: decoded.metric,
        source,
        hops: decoded
            .next_hops
            .into_iter()
            .map(|hop| Hop {
                ifindex: hop.ifindex,
                gateway: hop.gateway,
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;
    use crate::netlink::link::tests::body;
    use crate::netlink::netns::{in_netns, ip};

    /// A row of attributes, as nested in another.
    fn nested(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        body(&[], attributes)
    }

    /// An RTM_NEWLINK body with that IFLA_LINKINFO.
    fn device(index: u32, name: &str, master: Option<u32>, info: &[(u16, &[u8])]) -> Vec<u8> {
        let mut fixed = vec![0; IFINFOMSG];
        fixed[2..4].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        let (name, info) = ([name.as_bytes(), &[0]].concat(), nested(info));
        let (mtu, link, master) = (
            1382_u32.to_ne_bytes(),
            0_u32.to_ne_bytes(),
            master.map(u32::to_ne_bytes),
        );
        let mut attributes: Vec<(u16, &[u8])> = vec![
            (libc::IFLA_IFNAME, &name),
            (libc::IFLA_MTU, &mtu),
            (libc::IFLA_LINK, &link),
            (libc::IFLA_LINKINFO, &info),
        ];
        if let Some(master) = &master {
            attributes.push((libc::IFLA_MASTER, master));
        }
        body(&fixed, &attributes)
    }

    /// IFLA_INFO_DATA of `ip link add gt1 type gretap local 10.65.0.2 remote 10.65.0.6 ikey 7 okey 8
    /// iseq ocsum ttl 64 tos inherit dev #3`, byte for byte as ipgre_fill_info writes it.
    fn gre_data() -> Vec<u8> {
        nested(&[
            (1, &3_u32.to_ne_bytes()),
            (2, &[0x30, 0x00]),
            (3, &[0xa0, 0x00]),
            (4, &[0, 0, 0, 7]),
            (5, &[0, 0, 0, 8]),
            (6, &[10, 65, 0, 2]),
            (7, &[10, 65, 0, 6]),
            (8, &[64]),
            (9, &[1]),
            (10, &[1]),
            (20, &0_u32.to_ne_bytes()),
            (14, &0_u16.to_ne_bytes()),
            (16, &[0, 0]),
            (17, &[0, 0]),
            (15, &0_u16.to_ne_bytes()),
            (19, &[0]),
        ])
    }

    /// A port of bond #9 that its monitor has found down.
    fn gretap() -> Vec<u8> {
        let slave = nested(&[(1, &[0]), (2, &[2]), (3, &5_u32.to_ne_bytes())]);
        device(
            5,
            "gt1",
            Some(9),
            &[
                (libc::IFLA_INFO_KIND, b"gretap\0"),
                (libc::IFLA_INFO_DATA, &gre_data()),
                (libc::IFLA_INFO_SLAVE_KIND, b"bond\0"),
                (IFLA_INFO_SLAVE_DATA, &slave),
            ],
        )
    }

    fn bond() -> Vec<u8> {
        let targets = nested(&[(0, &[10, 67, 0, 2]), (1, &[10, 67, 0, 3])]);
        let data = nested(&[
            (1, &[1]),
            (2, &5_u32.to_ne_bytes()),
            (3, &100_u32.to_ne_bytes()),
            (7, &250_u32.to_ne_bytes()),
            (8, &targets),
            (17, &[1]),
        ]);
        device(
            9,
            "bond0",
            None,
            &[
                (libc::IFLA_INFO_KIND, b"bond\0"),
                (libc::IFLA_INFO_DATA, &data),
            ],
        )
    }

    #[test]
    fn a_gretap_port_is_read() {
        let gre = Gre {
            ethernet: true,
            local: IpAddr::from([10, 65, 0, 2]),
            remote: IpAddr::from([10, 65, 0, 6]),
            input: GreOptions {
                key: Some(7),
                checksum: false,
                sequence: true,
            },
            output: GreOptions {
                key: Some(8),
                checksum: true,
                sequence: false,
            },
            link: Some(3),
            ttl: 64,
            tos: 1,
            pmtudisc: true,
            external: false,
            wrapped: false,
            fwmark: 0,
            encap_limit: false,
        };
        assert_eq!(
            decode_device(&gretap()),
            Some(Device {
                ifindex: 5,
                name: "gt1".to_owned(),
                mtu: 1382,
                kind: Kind::Gre(gre),
                master: Some(9),
                lower: None,
                down_in_bond: true,
            })
        );
    }

    /// The kernel sends the key attributes in any case: 0, where there is none.
    #[test]
    fn a_key_without_its_flag_is_none() {
        let data = nested(&[(2, &[0, 0]), (4, &[0; 4]), (3, &[0x20, 0]), (5, &[0; 4])]);
        let gre = decode_gre(&data, false, Ipv4Addr::UNSPECIFIED.into());
        assert_eq!((gre.input.key, gre.output.key), (None, Some(0)));
    }

    /// As iproute2 makes one: with a limit, unless told `encaplimit none`.
    #[test]
    fn tunnels_over_ipv6_are_read() {
        let address = |last| Ipv6Addr::new(0xfd65, 0, 0, 1, 0, 0, 0, last);
        let (local, remote) = (address(1), address(2));
        let read = |kind_name: &str, flow: u32, flags: u32| {
            let data = nested(&[
                (IFLA_GRE_LOCAL, &local.octets()),
                (IFLA_GRE_REMOTE, &remote.octets()),
                (IFLA_GRE_TTL, &[64]),
                (11, &[4]),
                (IFLA_GRE_FLOWINFO, &flow.to_be_bytes()),
                (IFLA_GRE_FLAGS, &flags.to_ne_bytes()),
            ]);
            let Kind::Gre(gre) = kind(kind_name, &data) else {
                panic!("{kind_name} is no tunnel");
            };
            gre
        };
        let tap = read("ip6gretap", 0x0b81_2345, 0);
        assert_eq!((tap.local, tap.remote), (local.into(), remote.into()));
        assert_eq!((tap.ethernet, tap.encap_limit, tap.tos), (true, true, 0xb8));
        let plain = read(
            "ip6gre",
            0,
            IP6_TNL_IGN_ENCAP_LIMIT | IP6_TNL_USE_ORIG_TCLASS,
        );
        assert_eq!(
            (plain.ethernet, plain.encap_limit, plain.tos),
            (false, false, 1)
        );
        assert_eq!(plain.ttl, 64);
    }

    #[test]
    fn what_netbond_cannot_do_is_seen() {
        let gre = decode_gre(
            &nested(&[
                (18, &[]),
                (14, &1_u16.to_ne_bytes()),
                (20, &9_u32.to_ne_bytes()),
            ]),
            false,
            Ipv4Addr::UNSPECIFIED.into(),
        );
        assert_eq!((gre.external, gre.wrapped, gre.fwmark), (true, true, 9));
    }

    #[test]
    fn a_bond_is_read() {
        let read = decode_device(&bond()).unwrap();
        assert_eq!((read.name.as_str(), read.master), ("bond0", None));
        assert_eq!(
            read.kind,
            Kind::Bond(KernelBond {
                mode: 1,
                miimon: 100,
                arp_interval: 250,
                arp_targets: vec![[10, 67, 0, 2].into(), [10, 67, 0, 3].into()],
                active: Some(5),
                all_slaves_active: true,
            })
        );
    }

    #[test]
    fn other_kinds_are_told_apart() {
        for (name, data, wanted) in [
            ("team", vec![], Kind::Team),
            (
                "vlan",
                nested(&[(1, &10_u16.to_ne_bytes())]),
                Kind::Vlan { id: 10 },
            ),
            ("erspan", gre_data(), Kind::Other("erspan".to_owned())),
        ] {
            assert_eq!(kind(name, &data), wanted);
        }
    }

    #[test]
    fn the_far_end_of_a_point_to_point_address_is_read() {
        let mut fixed = [libc::AF_INET as u8, 32, 0, 0, 0, 0, 0, 0];
        fixed[4..].copy_from_slice(&7_u32.to_ne_bytes());
        let read = |far: [u8; 4]| {
            let both: [(u16, &[u8]); 2] =
                [(libc::IFA_ADDRESS, &far), (libc::IFA_LOCAL, &[10, 0, 0, 1])];
            decode_address(&body(&fixed, &both)).unwrap()
        };
        let address = read([10, 0, 0, 2]);
        assert_eq!(address.own, "10.0.0.1/32".parse().unwrap());
        assert_eq!(address.far, Some([10, 0, 0, 2].into()));
        assert_eq!(read([10, 0, 0, 1]).far, None);
    }

    #[test]
    fn a_neighbour_that_never_answered_is_none() {
        let read = |state: u16| {
            let mut fixed = vec![0; NDMSG];
            fixed[0] = libc::AF_INET as u8;
            fixed[4..8].copy_from_slice(&9_u32.to_ne_bytes());
            fixed[8..10].copy_from_slice(&state.to_ne_bytes());
            decode_neighbour(&body(&fixed, &[(libc::NDA_DST, &[10, 67, 0, 2])]))
        };
        let heard = Neighbour {
            ifindex: 9,
            address: [10, 67, 0, 2].into(),
        };
        assert_eq!(read(libc::NUD_STALE), Some(heard));
        assert_eq!(read(libc::NUD_FAILED), None);
        assert_eq!(read(libc::NUD_NOARP), None);
    }

    proptest! {
        #[test]
        fn mutated_messages_never_panic(
            bytes in prop_oneof![mutated::bytes(gretap()), mutated::bytes(bond())],
        ) {
            let _ = (decode_device(&bytes), decode_address(&bytes));
            let _ = (decode_neighbour(&bytes), decode_route(&bytes));
        }
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn addresses_neighbours_and_routes_over_a_device_are_read_from_the_kernel() {
        in_netns(async || {
            ip("link add b0 type veth peer name b1");
            ip("link add c0 type veth peer name c1");
            for name in ["b0", "b1", "c0", "c1"] {
                ip(&format!("link set {name} up"));
            }
            ip("address add 10.67.0.1/24 dev b0");
            ip("address add 10.68.0.1 peer 10.68.0.2/32 dev c0");
            ip("neighbour add 10.67.0.2 lladdr 02:00:00:00:00:02 dev b0 nud reachable");
            ip("neighbour add 10.67.0.3 dev b0 nud failed");
            ip("route add 10.70.0.0/16 via 10.67.0.2 dev b0 src 10.67.0.1 metric 7 proto static");
            ip("route add 10.71.0.0/16 nexthop via 10.67.0.2 dev b0 nexthop dev c0");
            ip("route add 10.72.0.0/16 dev c0");
            ip("-6 route add fd70::/64 dev b0 table 100");
            let host = read(&["b0".to_owned()]).unwrap();
            let index = |name: &str| {
                let device = host.devices.iter().find(|device| device.name == name);
                device.unwrap().ifindex
            };
            let (b0, c0) = (index("b0"), index("c0"));
            let b = host
                .devices
                .iter()
                .find(|device| device.ifindex == b0)
                .unwrap();
            assert_eq!(b.kind, Kind::Other("veth".to_owned()));
            let own = |ifindex: u32| -> Vec<_> {
                host.addresses
                    .iter()
                    .filter(|address| address.ifindex == ifindex && address.own.address.is_ipv4())
                    .map(|address| (address.own.to_string(), address.far))
                    .collect()
            };
            assert_eq!(own(b0), [("10.67.0.1/24".to_owned(), None)]);
            let far = Some(IpAddr::from([10, 68, 0, 2]));
            assert_eq!(own(c0), [("10.68.0.1/32".to_owned(), far)]);
            let heard: Vec<_> = host
                .neighbours
                .iter()
                .filter(|neighbour| neighbour.ifindex == b0 && neighbour.address.is_ipv4())
                .collect();
            assert_eq!(heard.len(), 1, "{heard:?}");
            let gateway = Some(IpAddr::from([10, 67, 0, 2]));
            let mut routes = host.routes.clone();
            // The kernel routes ff00::/8 over each device by itself.
            routes.retain(|route| !route.to.address.is_multicast());
            assert_eq!(
                routes,
                [
                    Route {
                        to: "10.70.0.0/16".parse().unwrap(),
                        table: 254,
                        protocol: 4,
                        metric: 7,
                        source: Some([10, 67, 0, 1].into()),
                        hops: vec![Hop {
                            ifindex: b0,
                            gateway
                        }],
                    },
                    Route {
                        to: "10.71.0.0/16".parse().unwrap(),
                        table: 254,
                        protocol: 3,
                        metric: 0,
                        source: None,
                        hops: vec![
                            Hop {
                                ifindex: b0,
                                gateway
                            },
                            Hop {
                                ifindex: c0,
                                gateway: None
                            },
                        ],
                    },
                    Route {
                        to: "fd70::/64".parse().unwrap(),
                        table: 100,
                        protocol: 3,
                        metric: 1024,
                        source: None,
                        hops: vec![Hop {
                            ifindex: b0,
                            gateway: None
                        }],
                    },
                ]
            );
            let way = way(
                &mut RequestSocket::open().unwrap(),
                &mut RouteQuery::open().unwrap(),
                IpAddr::from([10, 70, 0, 9]),
            );
            assert_eq!(
                way.unwrap(),
                Some(Way {
                    remote: IpAddr::from([10, 70, 0, 9]),
                    source: Some(IpAddr::from([10, 67, 0, 1])),
                    devices: vec![b0],
                    protocol: 4,
                })
            );
        });
    }
}
