//! An area of OSPF as a network: routers, and links whose two ends belong together.
//!
//! A router LSA tells one end of each link. Ends are matched as OSPF does (both must name each other), and those
//! of several links between the same two routers by the prefix that both announce.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::graph::{Edge, Graph, Hop};
use crate::config::Prefix;
use crate::control::event::OspfInterface;
use crate::ospf::lsdb::{Area, PointToPoint, RouterLsa, Stub};

/// What this host knows of its own ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Devices' addresses, with their prefix lengths.
    pub addresses: Vec<(String, Prefix)>,
    /// Devices whose frames begin with an Ethernet header.
    pub ethernet: Vec<String>,
    /// Interfaces and neighbours of the OSPF instance that is looked at.
    pub interfaces: Vec<OspfInterface>,
    /// Bonds that are there already.
    pub bonds: Vec<OwnBond>,
}

/// A bond of this host's, as far as its file tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnBond {
    /// Its name, which is that of its device.
    pub name: String,
    /// Its paths' names and remote addresses.
    pub paths: Vec<(String, IpAddr)>,
}

impl Host {
    fn device_of(&self, address: IpAddr) -> Option<&str> {
        let own = |(_, own): &&(String, Prefix)| own.address == address;
        Some(&self.addresses.iter().find(own)?.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) routers: Vec<Router>,
    pub(super) links: Vec<Link>,
    /// This router's number; that of the first one where it is not in the area.
    pub(super) own: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Router {
    pub(super) id: Ipv4Addr,
    pub(super) stubs: Vec<Stub>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// `None` of an unnumbered link.
    pub(super) prefix: Option<Prefix>,
    /// Whether it is a segment with several routers.
    pub(super) segment: bool,
    /// Two, or more of a segment.
    pub(super) ends: Vec<End>,
    /// This router's device there.
    pub(super) device: Option<String>,
    /// Whether that needs a next hop to send to, which only a route names.
    pub(super) ethernet: bool,
    /// Whether that is a bond: no path leads over it, as its packets take the paths.
    pub(super) bond: bool,
}

impl Link {
    /// Whether a packet can be sent over it whatever the route to its destination says.
    pub(super) const fn is_tunnel(&self) -> bool {
        !self.segment && !self.ethernet
    }

    /// Its ends of unknown address, one of which an address on it has to be: on a segment it may be a host's.
    fn open_ends(&self, address: IpAddr) -> impl Iterator<Item = &End> {
        let inside = self.prefix.is_some_and(|prefix| prefix.holds(address));
        let ends = self.ends.iter().filter(move |_| !self.segment && inside);
        ends.filter(|end| end.address == Address::Unknown)
    }

    pub(super) fn end_of(&self, router: usize) -> Option<&End> {
        self.ends.iter().find(|end| end.router == router)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) router: usize,
    pub(super) cost: u32,
    pub(super) address: Address,
}

/// A router's address on a link, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Address {
    Known(IpAddr),
    /// One of the link's two; the other one is that of the other end.
    OneOf([IpAddr; 2]),
    Unknown,
}

impl From<Option<Ipv4Addr>> for Address {
    fn from(told: Option<Ipv4Addr>) -> Self {
        told.map_or(Self::Unknown, |address| Self::Known(address.into()))
    }
}

impl Address {
    /// Those that it may be.
    pub(super) fn possible(&self) -> &[IpAddr] {
        match self {
            Self::Known(address) => std::slice::from_ref(address),
            Self::OneOf(both) => both,
            Self::Unknown => &[],
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(address) => write!(f, "{address}"),
            Self::OneOf([one, other]) => write!(f, "{one} or {other}"),
            Self::Unknown => f.write_str("-"),
        }
    }
}

impl Network {
    /// The network of an area, seen from the router with id `own`; `None` where that is not in it.
    pub(super) fn new(area: &Area, own: Ipv4Addr, host: &Host) -> Option<Self> {
        let routers = area.routers.iter().map(|lsa| Router {
            id: lsa.id,
            stubs: lsa.stubs.clone(),
        });
        let own = area.routers.iter().position(|lsa| lsa.id == own)?;
        let mut network = Self {
            routers: routers.collect(),
            links: Vec::new(),
            own,
        };
        for (number, one) in area.routers.iter().enumerate() {
            for (other_number, other) in area.routers.iter().enumerate().skip(number + 1) {
                network.join((number, one), (other_number, other));
            }
        }
        for segment in &area.segments {
            let mut ends: Vec<End> = Vec::new();
            for (router, lsa) in area.routers.iter().enumerate() {
                let transit = lsa.transit.iter().find(|link| link.segment == segment.id);
                if let Some(transit) = transit.filter(|_| segment.routers.contains(&lsa.id)) {
                    ends.push(End {
                        router,
                        cost: transit.cost,
                        address: transit.address.into(),
                    });
                }
            }
            if ends.len() >= 2 {
                network.links.push(Link {
                    prefix: segment.prefix,
                    segment: true,
                    ends,
                    device: None,
                    ethernet: false,
                    bond: false,
                });
            }
        }
        network.learn_of_host(host);
        network.tell_ends_apart();
        Some(network)
    }

    /// Adds the point-to-point links between two routers.
    fn join(&mut self, one: (usize, &RouterLsa), other: (usize, &RouterLsa)) {
        if one
            .1
            .point_to_point
            .iter()
            .all(|link| link.neighbour != other.1.id)
        {
            return;
        }
        let (near, mut far) = (ends_at(one.1, other.1), ends_at(other.1, one.1));
        let mut add = |prefix, near: PointToPoint, far: PointToPoint| {
            let end = |router, end: PointToPoint| End {
                router,
                cost: end.cost,
                address: end.address.into(),
            };
            self.links.push(Link {
                prefix,
                segment: false,
                ends: vec![end(one.0, near), end(other.0, far)],
                device: None,
                ethernet: false,
                bond: false,
            });
        };
        // Those with the same prefix; of what is left any two.
        let mut left = Vec::new();
        for (prefix, end) in near {
            let mate = far
                .iter()
                .position(|(of_far, _)| of_far.is_some() && *of_far == prefix);
            match mate {
                Some(mate) => add(prefix, end, far.remove(mate).1),
                None => left.push(end),
            }
        }
        for (near, (_, far)) in left.into_iter().zip(far) {
            add(None, near, far);
        }
    }

    /// Fills in this router's devices, and the addresses that the host knows.
    fn learn_of_host(&mut self, host: &Host) {
        let own = self.own;
        for link in &mut self.links {
            let Some(end) = link.ends.iter_mut().find(|end| end.router == own) else {
                continue;
            };
            match (end.address, link.prefix) {
                (Address::Known(address), _) => {
                    link.device = host.device_of(address).map(str::to_owned);
                }
                (_, Some(prefix)) => {
                    let inside = |(_, own): &&(String, Prefix)| own.network() == prefix;
                    if let Some((device, own)) = host.addresses.iter().find(inside) {
                        link.device = Some(device.clone());
                        end.address = Address::Known(own.address);
                    }
                }
                (_, None) => {}
            }
        }
        let used: Vec<String> = self
            .links
            .iter()
            .filter_map(|link| link.device.clone())
            .collect();
        let mut left: Vec<&OspfInterface> = host
            .interfaces
            .iter()
            .filter(|interface| !used.contains(&interface.device))
            .collect();
        for link in &mut self.links {
            if link.end_of(own).is_none() {
                continue;
            }
            let with = |interface: &OspfInterface, router: usize| {
                let id = self.routers[router].id;
                let neighbour = interface
                    .neighbours
                    .iter()
                    .find(|other| other.router_id == id)?;
                Some(neighbour.address)
            };
            if link.device.is_none() && !link.segment {
                let far = link.ends.iter().find(|end| end.router != own);
                let found = far.and_then(|far| {
                    left.iter()
                        .position(|interface| with(interface, far.router).is_some())
                });
                link.device = found.map(|found| left.remove(found).device.clone());
            }
            let interface = host
                .interfaces
                .iter()
                .find(|interface| Some(&interface.device) == link.device.as_ref());
            let mut bonds = host.bonds.iter();
            link.bond = bonds.any(|bond| Some(&bond.name) == link.device.as_ref());
            link.ethernet = interface.is_some_and(|one| host.ethernet.contains(&one.device));
            for end in &mut link.ends {
                let address = interface.and_then(|interface| with(interface, end.router));
                // OSPFv3's are link-local.
                if let (Address::Unknown, Some(address @ IpAddr::V4(_))) = (end.address, address) {
                    end.address = Address::Known(address);
                }
            }
        }
    }

    /// Where a link has two addresses, what one end has the other one has not.
    fn tell_ends_apart(&mut self) {
        for link in &mut self.links {
            let (Some(prefix), [one, other]) = (link.prefix, &mut link.ends[..]) else {
                continue;
            };
            let Some(both) = hosts(prefix) else {
                continue;
            };
            // Of a /126 an end may have the last as well: then nothing is known of the other one.
            let rest = |known| {
                let mut others = both.into_iter().filter(|_| both.contains(&known));
                others.find(|&address| address != known)
            };
            match (one.address, other.address) {
                (Address::Unknown, Address::Unknown) => {
                    one.address = Address::OneOf(both);
                    other.address = Address::OneOf(both);
                }
                (Address::Known(known), Address::Unknown) => {
                    other.address = rest(known).map_or(Address::Unknown, Address::Known);
                }
                (Address::Unknown, Address::Known(known)) => {
                    one.address = rest(known).map_or(Address::Unknown, Address::Known);
                }
                (Address::Known(_) | Address::OneOf(_) | Address::Unknown, _) => {}
            }
        }
    }

    /// Settles that an address of a link is that router's, and the other one the other end's; whether it was open.
    pub(super) fn settle(&mut self, router: Ipv4Addr, address: IpAddr) -> bool {
        let routers = &self.routers;
        let is_its = |end: &End| {
            let open = matches!(end.address, Address::OneOf(both) if both.contains(&address));
            open && routers[end.router].id == router
        };
        let Some(link) = self
            .links
            .iter_mut()
            .find(|link| link.ends.iter().any(is_its))
        else {
            return false;
        };
        for end in &mut link.ends {
            let Address::OneOf([one, other]) = end.address else {
                continue;
            };
            let rest = if address == one { other } else { one };
            let is_its = routers[end.router].id == router;
            end.address = Address::Known(if is_its { address } else { rest });
        }
        true
    }

    /// The links that paths may take.
    pub(super) fn graph(&self) -> Graph {
        let edges = |link: &Link| {
            if link.bond {
                return Vec::new();
            }
            let edge = |end: &End| Edge {
                router: end.router,
                cost: end.cost,
            };
            link.ends.iter().map(edge).collect()
        };
        Graph {
            routers: self.routers.len(),
            links: self.links.iter().map(edges).collect(),
        }
    }

    /// The hops that lead away from a router.
    pub(super) fn hops_from(&self, router: usize) -> impl Iterator<Item = Hop> + '_ {
        self.links
            .iter()
            .enumerate()
            .flat_map(move |(number, link)| {
                let others = link.ends.iter().filter(move |end| end.router != router);
                let here = link.end_of(router).is_some();
                others.filter(move |_| here).map(move |end| Hop {
                    link: number,
                    router: end.router,
                })
            })
    }

    /// The number of the router with that id.
    #[cfg(test)]
    pub(super) fn number(&self, id: Ipv4Addr) -> usize {
        let mut routers = self.routers.iter();
        routers.position(|router| router.id == id).unwrap()
    }

    pub(super) fn id(&self, router: usize) -> Ipv4Addr {
        self.routers[router].id
    }

    /// The routers that may have an address: its own, as far as the database tells; else those on whose link it is.
    pub(super) fn owners(&self, address: IpAddr) -> Vec<usize> {
        let of_hosts = self.routers.iter().enumerate().filter(|(_, router)| {
            let host = |stub: &Stub| stub.prefix.is_host() && stub.prefix.address == address;
            router.stubs.iter().any(host)
        });
        let of_hosts = of_hosts.map(|(number, _)| number);
        let ends = self.links.iter().flat_map(|link| &link.ends);
        let known = ends.filter(|end| end.address.possible().contains(&address));
        let mut owners: Vec<usize> = of_hosts.chain(known.map(|end| end.router)).collect();
        if owners.is_empty() {
            let open = self.links.iter().flat_map(|link| link.open_ends(address));
            owners.extend(open.map(|end| end.router));
        }
        owners.sort_unstable();
        owners.dedup();
        owners
    }
}

/// A router's ends of its links to another router, with the links' prefixes where they have one.
fn ends_at(router: &RouterLsa, other: &RouterLsa) -> Vec<(Option<Prefix>, PointToPoint)> {
    // Both ends of a numbered link announce its prefix.
    let mut common: Vec<&Stub> = router
        .stubs
        .iter()
        .filter(|stub| !stub.prefix.is_host())
        .filter(|stub| other.stubs.iter().any(|far| far.prefix == stub.prefix))
        .collect();
    let links = router.point_to_point.iter();
    let mut ends: Vec<(Option<Prefix>, PointToPoint)> = links
        .filter(|link| link.neighbour == other.id)
        .map(|&link| (None, link))
        .collect();
    for (prefix, link) in &mut ends {
        let holds = |stub: &&Stub| {
            link.address
                .is_some_and(|address| stub.prefix.holds(address.into()))
        };
        if let Some(found) = common.iter().position(holds) {
            *prefix = Some(common.remove(found).prefix);
        }
    }
    // Where the daemon does not tell the address: a link and its prefix have the same cost ...
    for (prefix, link) in &mut ends {
        let found = common.iter().position(|stub| stub.cost == link.cost);
        if let (None, None, Some(found)) = (*prefix, link.address, found) {
            *prefix = Some(common.remove(found).prefix);
        }
    }
    // ... unless the router wants no traffic through it (RFC 6987).
    for (prefix, link) in &mut ends {
        if prefix.is_none() && link.address.is_none() && !common.is_empty() {
            *prefix = Some(common.remove(0).prefix);
        }
    }
    ends
}

/// The addresses of a point-to-point link, where its prefix has room for two: a /31 or a /127 (RFC 3021, RFC 6164),
/// or a /30 or a /126 without its first and last.
fn hosts(prefix: Prefix) -> Option<[IpAddr; 2]> {
    let host = |number: u8| match prefix.address {
        IpAddr::V4(network) => {
            IpAddr::V4(Ipv4Addr::from_bits(network.to_bits() | u32::from(number)))
        }
        IpAddr::V6(network) => {
            IpAddr::V6(Ipv6Addr::from_bits(network.to_bits() | u128::from(number)))
        }
    };
    match (prefix.address, prefix.length) {
        (IpAddr::V4(_), 30) | (IpAddr::V6(_), 126) => Some([host(1), host(2)]),
        (IpAddr::V4(_), 31) | (IpAddr::V6(_), 127) => Some([host(0), host(1)]),
        (IpAddr::V4(_) | IpAddr::V6(_), _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::event::OspfNeighbour;
    use crate::discover::fixtures::{self, Source};

    fn link<'a>(network: &'a Network, prefix: &str) -> &'a Link {
        let prefix = Some(prefix.parse().unwrap());
        network
            .links
            .iter()
            .find(|link| link.prefix == prefix)
            .unwrap()
    }

    fn addresses(link: &Link) -> Vec<String> {
        link.ends
            .iter()
            .map(|end| end.address.to_string())
            .collect()
    }

    /// Two routers with a link between them, of cost 5, that has this prefix.
    fn two_routers(prefix: &str) -> Area {
        let router = |id: u8, neighbour: u8| {
            let mut lsa = RouterLsa::new([1, 1, 1, id].into());
            lsa.point_to_point.push(PointToPoint {
                neighbour: [1, 1, 1, neighbour].into(),
                address: None,
                cost: 5,
            });
            let prefix = prefix.parse().unwrap();
            lsa.stubs.push(Stub { prefix, cost: 5 });
            lsa
        };
        Area {
            id: Ipv4Addr::UNSPECIFIED,
            routers: vec![router(1, 2), router(2, 1)],
            segments: Vec::new(),
        }
    }

    #[test]
    fn both_daemons_tell_the_same_links() {
        for source in [Source::Bird, Source::Frr] {
            let network = fixtures::network(source);
            assert_eq!(network.id(network.own), Ipv4Addr::new(10, 65, 2, 2));
            // Five numbered, two to W, the segment.
            assert_eq!(network.links.len(), 8, "{network:#?}");
            for (prefix, device) in [
                ("10.65.0.0/30", Some("wg-a-u")),
                ("10.65.0.12/30", Some("wg-a-v")),
                ("10.65.0.24/30", Some("wg-a-w2")),
                ("10.65.0.4/30", None),
            ] {
                let link = link(&network, prefix);
                assert_eq!(link.device.as_deref(), device, "{prefix}");
                assert_eq!(link.ends.len(), 2);
            }
            let unnumbered = network
                .links
                .iter()
                .find(|link| link.prefix.is_none())
                .unwrap();
            assert_eq!(unnumbered.device.as_deref(), Some("wg-a-w"));
            let segment = link(&network, "10.65.9.0/24");
            assert!(segment.segment && segment.ends.len() == 3);
        }
    }

    #[test]
    fn addresses_are_known_as_far_as_the_daemon_and_the_host_tell() {
        let bird = fixtures::network(Source::Bird);
        // The far end is what the near one is not.
        assert_eq!(
            addresses(link(&bird, "10.65.0.0/30")),
            ["10.65.0.2", "10.65.0.1"]
        );
        let both = "10.65.0.9 or 10.65.0.10";
        assert_eq!(addresses(link(&bird, "10.65.0.8/30")), [both, both]);
        assert_eq!(addresses(link(&bird, "10.65.9.0/24")), ["-", "-", "-"]);
        let frr = fixtures::network(Source::Frr);
        assert_eq!(
            addresses(link(&frr, "10.65.0.8/30")),
            ["10.65.0.9", "10.65.0.10"]
        );
        assert_eq!(
            addresses(link(&frr, "10.65.9.0/24")),
            ["10.65.9.2", "10.65.9.3", "10.65.9.1"]
        );
        let owner = |network: &Network, address: [u8; 4]| network.owners(address.into()).len();
        assert_eq!(owner(&bird, [10, 65, 0, 9]), 2);
        assert_eq!(owner(&frr, [10, 65, 0, 9]), 1);
        assert_eq!(owner(&bird, [10, 65, 1, 1]), 1);
        assert_eq!(owner(&bird, [10, 65, 0, 99]), 0);
    }

    #[test]
    fn only_of_two_addresses_the_other_one_is_known() {
        let area = two_routers("fd00::/126");
        for (own, far) in [("::1", "fd00::2"), ("::2", "fd00::1"), ("::3", "-")] {
            let host = Host {
                addresses: vec![("wg0".to_owned(), format!("fd00{own}/126").parse().unwrap())],
                ..Host::default()
            };
            let network = Network::new(&area, [1, 1, 1, 1].into(), &host).unwrap();
            assert_eq!(
                addresses(&network.links[0]),
                [format!("fd00{own}"), far.to_owned()]
            );
            // Whoever answers from there is the far router.
            let owners = network.owners("fd00::2".parse().unwrap());
            let own_is_two = own == "::2";
            assert_eq!(owners, [usize::from(!own_is_two)], "{own}");
        }
    }

    #[test]
    fn an_address_settles_both_ends() {
        let mut network = fixtures::network(Source::Bird);
        let [one, far] = ["10.65.0.9", "10.65.0.10"].map(|address| address.parse().unwrap());
        assert!(network.settle(fixtures::B, far));
        assert_eq!(
            addresses(link(&network, "10.65.0.8/30")),
            ["10.65.0.9", "10.65.0.10"]
        );
        assert!(!network.settle(fixtures::B, one), "it is settled");
    }

    #[test]
    fn a_link_that_one_end_denies_is_none() {
        let mut area = fixtures::database(Source::Frr).areas.remove(0);
        let whole = fixtures::network(Source::Frr).links.len();
        area.routers[0].point_to_point.clear();
        let own = Ipv4Addr::new(10, 65, 2, 2);
        let network = Network::new(&area, own, &Host::default()).unwrap();
        assert_eq!(network.links.len(), whole - 3);
        assert_eq!(
            Network::new(&area, [1, 1, 1, 1].into(), &Host::default()),
            None
        );
    }

    #[test]
    fn a_far_end_is_known_as_neighbour_where_the_prefix_has_room_for_more() {
        let area = two_routers("10.0.0.0/24");
        let host = Host {
            addresses: vec![("wg0".to_owned(), "10.0.0.7/24".parse().unwrap())],
            ethernet: Vec::new(),
            interfaces: vec![OspfInterface {
                device: "wg0".to_owned(),
                cost: Some(5),
                neighbours: vec![OspfNeighbour {
                    router_id: [1, 1, 1, 2].into(),
                    address: [10, 0, 0, 9].into(),
                    state: "Full".to_owned(),
                }],
            }],
            bonds: Vec::new(),
        };
        let network = Network::new(&area, [1, 1, 1, 1].into(), &host).unwrap();
        assert_eq!(addresses(&network.links[0]), ["10.0.0.7", "10.0.0.9"]);
    }
}
