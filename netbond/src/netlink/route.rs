//! What the kernel does with a packet to an address: RTM_GETROUTE with RTM_F_FIB_MATCH (Linux 4.13),
//! which names the matching route itself and not only its outcome.
//!
//! The lookup has a destination, and a mark where one is given: policy rules that look at a source or
//! a device do not match it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tracing::debug;

use super::Netlink;
use super::socket::{
    Answer, RequestSocket, address, align, attributes, family_and_bytes, push_request, u16_at,
    u32_at,
};
use crate::control::event::{NextHop, Route};

/// Bytes of struct rtmsg: family, destination length, source length, TOS, table, protocol, scope,
/// type (1 each), flags (4).
pub(super) const RTMSG: usize = 12;
/// Bytes of struct nhmsg: family, scope, protocol, reserved (1 each), flags (4).
const NHMSG: usize = 8;
/// Bytes of struct rtnexthop: length (2), flags (1), hops (1), ifindex (4).
const RTNEXTHOP: usize = 8;
/// Bytes of struct nexthop_grp: id (4), weight (1), more (3).
const NEXTHOP_GRP: usize = 8;

// linux/rtnetlink.h and linux/nexthop.h, where libc has no name.
const RTA_NH_ID: u16 = 30;
const RTA_VIA: u16 = 18;
const RTM_F_FIB_MATCH: u32 = 0x2000;
const RTNH_F_DEAD: u32 = 1;
const RTNH_F_LINKDOWN: u32 = 16;
const RTM_F_CLONED: u32 = 0x200;
pub(super) const RTM_NEWNEXTHOP: u16 = 104;
pub(super) const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

/// Targets asked about in one datagram: the answers fit in a default receive buffer too.
pub(super) const BATCH: usize = 32;

/// Asks the kernel for routes.
pub struct RouteQuery {
    socket: RequestSocket,
}

impl RouteQuery {
    /// Opens its socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel refuses a socket.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            socket: RequestSocket::open()?,
        })
    }

    /// The route to each of `targets`, in the same order; `None` where the kernel drops a packet to
    /// it: for want of a route, or by a blackhole, unreachable, prohibit or throw route.
    ///
    /// # Errors
    /// The outer one: the socket failed. An inner one: the kernel could not tell now; ask again.
    pub fn lookup(&mut self, targets: &[IpAddr]) -> io::Result<Vec<io::Result<Option<Route>>>> {
        self.lookup_marked(targets, 0)
    }

    /// The same for packets with this firewall mark; 0 is none.
    ///
    /// # Errors
    /// As [`RouteQuery::lookup`].
    pub fn lookup_marked(
        &mut self,
        targets: &[IpAddr],
        mark: u32,
    ) -> io::Result<Vec<io::Result<Option<Route>>>> {
        let mark_bytes = mark.to_ne_bytes();
        let mut routes = Vec::with_capacity(targets.len());
        for batch in targets.chunks(BATCH) {
            let answers = self.socket.ask_all(batch.len(), |out, n, sequence| {
                let (family, bytes) = family_and_bytes(batch[n]);
                let mut rtmsg = [0; RTMSG];
                rtmsg[0] = family;
                rtmsg[1] = 8 * bytes.len() as u8;
                rtmsg[8..].copy_from_slice(&RTM_F_FIB_MATCH.to_ne_bytes());
                let selectors = [
                    (libc::RTA_DST, &bytes[..]),
                    (libc::RTA_MARK, &mark_bytes[..]),
                ];
                push_request(
                    out,
                    libc::RTM_GETROUTE,
                    libc::NLM_F_REQUEST,
                    sequence,
                    &rtmsg,
                    if mark == 0 {
                        &selectors[..1]
                    } else {
                        &selectors
                    },
                );
            })?;
            // A nexthop object is asked for once a batch: routes share them.
            let mut nexthops = HashMap::new();
            for (&target, answer) in batch.iter().zip(answers) {
                routes.push(self.route(target, answer, &mut nexthops));
            }
        }
        Ok(routes)
    }

    fn route(
        &mut self,
        target: IpAddr,
        answer: Answer,
        nexthops: &mut HashMap<u32, Vec<NextHop>>,
    ) -> io::Result<Option<Route>> {
        let body = match answer {
            Answer::Body(body) => body,
            // What routes that drop answer (fib_props in net/ipv4/fib_semantics.c and in
            // net/ipv6/route.c), and a family that the kernel was built or booted without.
            Answer::Errno(
                libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ESRCH
                | libc::EACCES
                | libc::EINVAL
                | libc::EAFNOSUPPORT
                | libc::EOPNOTSUPP,
            ) => return Ok(None),
            Answer::Errno(errno) => return Err(io::Error::from_raw_os_error(errno)),
            Answer::Lost => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
        };
        let Some(decoded) = decode(&body) else {
            debug!(%target, ?body, "RTM_GETROUTE answered with something that is no route");
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        };
        let mut route = decoded.route;
        // With net.ipv4.nexthop_compat_mode=0 a route over a nexthop object carries its id only.
        if let Some(id) = decoded.unresolved_nexthop {
            route.next_hops = match nexthops.get(&id) {
                Some(known) => known.clone(),
                None => {
                    let resolved = self.nexthop(id)?;
                    nexthops.insert(id, resolved.clone());
                    resolved
                }
            };
        }
        Ok(Some(route))
    }

    /// The ways that nexthop object `id` leads; those of its members if it is a group.
    fn nexthop(&mut self, id: u32) -> io::Result<Vec<NextHop>> {
        let mut next_hops = Vec::new();
        match self.nexthop_object(id)? {
            NexthopObject::Unusable => {}
            NexthopObject::Single(next_hop) => next_hops.push(next_hop),
            NexthopObject::Group(members) => {
                for member in members {
                    // No group is a member of a group.
                    if let NexthopObject::Single(next_hop) = self.nexthop_object(member)? {
                        next_hops.push(next_hop);
                    }
                }
            }
        }
        Ok(next_hops)
    }

    fn nexthop_object(&mut self, id: u32) -> io::Result<NexthopObject> {
        let by_id = [(NHA_ID, &id.to_ne_bytes()[..])];
        match self.socket.ask(RTM_GETNEXTHOP, 0, &[0; NHMSG], &by_id)? {
            Answer::Body(body) => {
                decode_nexthop(&body).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
            }
            // Deleted since: the kernel's RTM_DELNEXTHOP is under way to the monitor.
            Answer::Errno(libc::ENOENT) => Ok(NexthopObject::Unusable),
            Answer::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
            Answer::Lost => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
        }
    }
}

impl Netlink {
    /// The route to an address; `None` where there is none, or the kernel does not tell.
    pub fn route(&mut self, to: IpAddr) -> Option<Route> {
        self.routes.lookup(&[to]).ok()?.pop()?.ok()?
    }

    /// To whom the kernel sends a packet from one address to another out of a device, by its rules and routes;
    /// `None` where it does not. The address is `to` itself where that is on the link.
    pub fn next_hop(&mut self, from: IpAddr, to: IpAddr, ifindex: u32) -> Option<IpAddr> {
        let ((family, from), (_, bytes)) = (family_and_bytes(from), family_and_bytes(to));
        let mut rtmsg = [0; RTMSG];
        rtmsg[0] = family;
        rtmsg[1] = 8 * bytes.len() as u8;
        rtmsg[2] = 8 * from.len() as u8;
        let selectors = [
            (libc::RTA_DST, &bytes[..]),
            (libc::RTA_SRC, &from[..]),
            (libc::RTA_OIF, &ifindex.to_ne_bytes()[..]),
        ];
        let answer = self.requests.ask(libc::RTM_GETROUTE, 0, &rtmsg, &selectors);
        let Ok(Answer::Body(body)) = answer else {
            return None;
        };
        let route = decode(&body)?.route;
        let mut here = route.next_hops.iter();
        let here = here.find(|next_hop| next_hop.ifindex == ifindex)?;
        route.usable.then(|| here.gateway.unwrap_or(to))
    }
}

/// What a route message says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DecodedRoute {
    pub(super) route: Route,
    /// RTA_NH_ID, where neither RTA_OIF nor RTA_MULTIPATH tells where it leads.
    unresolved_nexthop: Option<u32>,
}

/// What a nexthop object says.
#[derive(Debug, PartialEq, Eq)]
enum NexthopObject {
    /// A blackhole, a bridge's FDB entry, or a dead one.
    Unusable,
    Single(NextHop),
    /// Ids.
    Group(Vec<u32>),
}

/// Which targets a route message may concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Nothing,
    /// Those inside: address and length.
    Prefix(IpAddr, u8),
    /// The message could not be read.
    Everything,
}

/// Which targets an RTM_NEWROUTE or RTM_DELROUTE may concern.
pub(super) fn scope(body: &[u8]) -> Scope {
    let (Some(&family), Some(flags)) = (body.first(), u32_at(body, 8)) else {
        return Scope::Everything;
    };
    // Multicast and MPLS routes carry no path; a cloned route is a cache entry.
    let routed = [libc::AF_INET, libc::AF_INET6].contains(&i32::from(family));
    if !routed || flags & RTM_F_CLONED != 0 {
        return Scope::Nothing;
    }
    match prefix(body) {
        Some((address, length)) => Scope::Prefix(address, length),
        None => Scope::Everything,
    }
}

/// The prefix of a route message: without RTA_DST it is the default route.
fn prefix(body: &[u8]) -> Option<(IpAddr, u8)> {
    let unspecified = match i32::from(*body.first()?) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let length = *body.get(1)?;
    let destination =
        attributes(body.get(RTMSG..)?).find(|(attribute, _)| *attribute == libc::RTA_DST);
    let base = match destination {
        Some((_, value)) => address(value)?,
        None if length == 0 => unspecified,
        None => return None,
    };
    let bits = if base.is_ipv4() { 32 } else { 128 };
    (base.is_ipv4() == unspecified.is_ipv4() && length <= bits).then_some((base, length))
}

pub(super) fn decode(body: &[u8]) -> Option<DecodedRoute> {
    let prefix = prefix(body)?;
    let protocol = *body.get(5)?;
    let usable = [libc::RTN_UNICAST, libc::RTN_LOCAL].contains(body.get(7)?);
    let flags = u32_at(body, 8)?;

    let mut metric = 0;
    let (mut oif, mut gateway, mut multipath, mut id) = (None, None, None, None);
    for (attribute, value) in attributes(body.get(RTMSG..)?) {
        match attribute {
            libc::RTA_PRIORITY => metric = u32_at(value, 0)?,
            libc::RTA_OIF => oif = Some(u32_at(value, 0)?),
            libc::RTA_GATEWAY => gateway = address(value),
            RTA_VIA => gateway = via(value),
            libc::RTA_MULTIPATH => multipath = Some(decode_multipath(value)?),
            RTA_NH_ID => id = Some(u32_at(value, 0)?),
            _ => {}
        }
    }
    let unresolved_nexthop = id.filter(|_| usable && oif.is_none() && multipath.is_none());
    let next_hops = multipath.unwrap_or_else(|| {
        oif.filter(|_| alive(flags))
            .map(|ifindex| NextHop { ifindex, gateway })
            .into_iter()
            .collect()
    });
    let route = Route {
        prefix,
        protocol,
        metric,
        usable,
        next_hops,
    };
    Some(DecodedRoute {
        route,
        unresolved_nexthop,
    })
}

/// RTA_MULTIPATH: struct rtnexthop, each with attributes. Without those that carry nothing.
fn decode_multipath(mut bytes: &[u8]) -> Option<Vec<NextHop>> {
    let mut next_hops = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(u16_at(bytes, 0)?);
        let flags = u32::from(*bytes.get(2)?);
        let ifindex = u32_at(bytes, 4)?;
        let mut gateway = None;
        for (attribute, value) in attributes(bytes.get(RTNEXTHOP..length)?) {
            match attribute {
                libc::RTA_GATEWAY => gateway = address(value),
                RTA_VIA => gateway = via(value),
                _ => {}
            }
        }
        if alive(flags) {
            next_hops.push(NextHop { ifindex, gateway });
        }
        bytes = bytes.get(align(length)..).unwrap_or_default();
    }
    Some(next_hops)
}

fn decode_nexthop(body: &[u8]) -> Option<NexthopObject> {
    let flags = u32_at(body, 4)?;
    let (mut oif, mut gateway) = (None, None);
    for (attribute, value) in attributes(body.get(NHMSG..)?) {
        match attribute {
            NHA_GROUP => {
                let members = value
                    .chunks_exact(NEXTHOP_GRP)
                    .filter_map(|grp| u32_at(grp, 0));
                return Some(NexthopObject::Group(members.collect()));
            }
            NHA_OIF => oif = Some(u32_at(value, 0)?),
            NHA_GATEWAY => gateway = address(value),
            _ => {}
        }
    }
    Some(match oif {
        Some(ifindex) if alive(flags) => NexthopObject::Single(NextHop { ifindex, gateway }),
        _ => NexthopObject::Unusable,
    })
}

/// RTA_VIA, a gateway of the other family: struct rtvia, family (2) and address.
fn via(value: &[u8]) -> Option<IpAddr> {
    address(value.get(2..)?)
}

/// Whether a next hop carries packets: its device is up and has a carrier. The kernel may still
/// choose one without a carrier (net.ipv4.conf.*.ignore_routes_with_linkdown=0), and loses the
/// packet.
fn alive(flags: u32) -> bool {
    flags & (RTNH_F_DEAD | RTNH_F_LINKDOWN) == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;
    use crate::netlink::link::tests::body;
    use crate::netlink::netns::{in_netns, ip};

    fn rtmsg(family: i32, length: u8, protocol: u8, kind: u8, flags: u32) -> Vec<u8> {
        let mut fixed = vec![family as u8, length, 0, 0, 254, protocol, 0, kind];
        fixed.extend(flags.to_ne_bytes());
        fixed
    }

    fn rtnexthop(flags: u8, ifindex: u32, attribute: u16, value: &[u8]) -> Vec<u8> {
        let mut attributes = Vec::new();
        attributes.extend((4 + value.len() as u16).to_ne_bytes());
        attributes.extend(attribute.to_ne_bytes());
        attributes.extend(value);
        attributes.resize(align(attributes.len()), 0);
        let mut out = Vec::new();
        out.extend((RTNEXTHOP as u16 + attributes.len() as u16).to_ne_bytes());
        out.extend([flags, 0]);
        out.extend(ifindex.to_ne_bytes());
        out.extend(attributes);
        out
    }

    /// As BIRD installs it: protocol 12, metric 32, two next hops and a dead third.
    fn ecmp() -> Vec<u8> {
        let mut hops = rtnexthop(0, 3, libc::RTA_GATEWAY, &[10, 65, 0, 1]);
        hops.extend(rtnexthop(
            RTNH_F_DEAD as u8,
            9,
            libc::RTA_GATEWAY,
            &[10, 65, 9, 1],
        ));
        let mut via = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
        via.extend(Ipv6Addr::LOCALHOST.octets());
        hops.extend(rtnexthop(0, 4, RTA_VIA, &via));
        body(
            &rtmsg(libc::AF_INET, 30, 12, libc::RTN_UNICAST, 0),
            &[
                (libc::RTA_DST, &[10, 65, 0, 4]),
                (libc::RTA_PRIORITY, &32_u32.to_ne_bytes()),
                (libc::RTA_MULTIPATH, &hops),
            ],
        )
    }

    #[test]
    fn a_multipath_route_is_read_without_its_dead_next_hop() {
        let decoded = decode(&ecmp()).unwrap();
        let route = Route {
            prefix: ([10, 65, 0, 4].into(), 30),
            protocol: 12,
            metric: 32,
            usable: true,
            next_hops: vec![
                NextHop {
                    ifindex: 3,
                    gateway: Some([10, 65, 0, 1].into()),
                },
                NextHop {
                    ifindex: 4,
                    gateway: Some(Ipv6Addr::LOCALHOST.into()),
                },
            ],
        };
        assert_eq!(
            decoded,
            DecodedRoute {
                route,
                unresolved_nexthop: None
            }
        );
    }

    #[test]
    fn a_route_over_a_nexthop_object_is_resolved_only_when_nothing_else_tells() {
        let fixed = rtmsg(libc::AF_INET, 0, 188, libc::RTN_UNICAST, 0);
        let id = 7_u32.to_ne_bytes();
        let bare = body(&fixed, &[(RTA_NH_ID, &id)]);
        assert_eq!(decode(&bare).unwrap().unresolved_nexthop, Some(7));
        let compat = body(
            &fixed,
            &[(RTA_NH_ID, &id), (libc::RTA_OIF, &3_u32.to_ne_bytes())],
        );
        let decoded = decode(&compat).unwrap();
        assert_eq!(decoded.unresolved_nexthop, None);
        assert_eq!(
            decoded.route.next_hops,
            [NextHop {
                ifindex: 3,
                gateway: None
            }]
        );
    }

    #[test]
    fn a_single_next_hop_without_carrier_is_left_out() {
        let fixed = rtmsg(libc::AF_INET, 0, 4, libc::RTN_UNICAST, RTNH_F_LINKDOWN);
        let decoded = decode(&body(&fixed, &[(libc::RTA_OIF, &3_u32.to_ne_bytes())])).unwrap();
        assert!(decoded.route.usable);
        assert_eq!(decoded.route.next_hops, []);
    }

    #[test]
    fn a_change_concerns_its_prefix() {
        assert_eq!(scope(&ecmp()), Scope::Prefix([10, 65, 0, 4].into(), 30));
        let default = body(&rtmsg(libc::AF_INET6, 0, 2, libc::RTN_UNICAST, 0), &[]);
        assert_eq!(
            scope(&default),
            Scope::Prefix(Ipv6Addr::UNSPECIFIED.into(), 0)
        );
        let cached = body(
            &rtmsg(libc::AF_INET6, 0, 2, libc::RTN_UNICAST, RTM_F_CLONED),
            &[],
        );
        assert_eq!(scope(&cached), Scope::Nothing);
        let mpls = body(&rtmsg(28, 20, 2, libc::RTN_UNICAST, 0), &[]);
        assert_eq!(scope(&mpls), Scope::Nothing);
        // No destination though there should be one; a destination of another family; too long.
        for (length, destination) in [(24, &[][..]), (24, &[0; 16]), (33, &[10, 0, 0, 0])] {
            let fixed = rtmsg(libc::AF_INET, length, 2, libc::RTN_UNICAST, 0);
            assert_eq!(
                scope(&body(&fixed, &[(libc::RTA_DST, destination)])),
                Scope::Everything
            );
        }
        assert_eq!(scope(&[]), Scope::Everything);
    }

    #[test]
    fn nexthop_objects_are_read() {
        let single = body(
            &[0; NHMSG],
            &[
                (NHA_OIF, &3_u32.to_ne_bytes()),
                (NHA_GATEWAY, &[10, 65, 0, 1]),
            ],
        );
        let next_hop = NextHop {
            ifindex: 3,
            gateway: Some([10, 65, 0, 1].into()),
        };
        assert_eq!(
            decode_nexthop(&single),
            Some(NexthopObject::Single(next_hop))
        );
        let mut members = 1_u32.to_ne_bytes().to_vec();
        members.extend([0; 4]);
        members.extend(2_u32.to_ne_bytes());
        members.extend([0; 4]);
        let group = body(&[0; NHMSG], &[(NHA_GROUP, &members)]);
        assert_eq!(
            decode_nexthop(&group),
            Some(NexthopObject::Group(vec![1, 2]))
        );
        let blackhole = body(&[0; NHMSG], &[(4, &[])]);
        assert_eq!(decode_nexthop(&blackhole), Some(NexthopObject::Unusable));
    }

    proptest! {
        #[test]
        fn mutated_messages_never_panic(bytes in mutated::bytes(ecmp())) {
            let _ = (decode(&bytes), decode_nexthop(&bytes), scope(&bytes));
        }
    }

    /// Two addresses on one device whose packets leave by different routers, as rules by source address say.
    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn a_next_hop_is_that_of_the_rules() {
        in_netns(async || {
            for line in [
                "link add wan type veth peer name far",
                "link set far up",
                "link set wan up",
                "addr add 198.51.100.1/24 dev wan",
                "addr add 198.51.100.2/24 dev wan",
                "addr add 2001:db8::1/64 dev wan nodad",
                "route add 203.0.113.0/24 via 198.51.100.8 dev wan",
                "route add default via 198.51.100.9 dev wan table 7",
                "rule add from 198.51.100.2 lookup 7",
                "-6 route add 2001:db8:9::/64 via fe80::9 dev wan",
            ] {
                ip(line);
            }
            let wan = nix::net::if_::if_nametoindex("wan").unwrap();
            let mut netlink = Netlink::open().unwrap();
            let mut found = |from: &str, to: &str| {
                let next_hop = netlink.next_hop(from.parse().unwrap(), to.parse().unwrap(), wan);
                next_hop.map(|address| address.to_string())
            };
            for (from, to, next_hop) in [
                ("198.51.100.1", "203.0.113.6", Some("198.51.100.8")),
                ("198.51.100.2", "203.0.113.6", Some("198.51.100.9")),
                ("198.51.100.1", "198.51.100.77", Some("198.51.100.77")),
                // Where no route leads there, one of IPv4 is taken for on the link.
                ("198.51.100.1", "192.0.2.1", Some("192.0.2.1")),
                ("2001:db8::1", "2001:db8:9::6", Some("fe80::9")),
                ("2001:db8::1", "2001:db8:8::6", None),
            ] {
                assert_eq!(found(from, to).as_deref(), next_hop, "{from} -> {to}");
            }
            let route = netlink.route("203.0.113.6".parse().unwrap()).unwrap();
            assert_eq!(route.prefix, ("203.0.113.0".parse().unwrap(), 24));
        });
    }
}
