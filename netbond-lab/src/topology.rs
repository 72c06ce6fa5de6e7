//! What a lab consists of: routers, the links between them, and the bonds on top.
//!
//! A [`Topology`] is a plain value. Every test and benchmark builds one, usually from
//! [`Topology::reference`], and changes what it wants to be different.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The longest interface name the kernel takes, in bytes.
const MAX_DEVICE_NAME: usize = 15;

/// First UDP port of the WireGuard devices; link number `i` uses `FIRST_PORT + i` at both ends.
const FIRST_PORT: u16 = 51820;

/// A whole lab: which routers exist, how they are linked and which bonds run over the links.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Topology {
    /// The routers; each becomes a network namespace.
    pub routers: Vec<RouterSpec>,
    /// The links; each becomes a veth underlay with one WireGuard device per end, or is a veth pair itself.
    pub links: Vec<LinkSpec>,
    /// The bonds; a router with at least one runs netbond.
    pub bonds: Vec<BondSpec>,
    /// OSPF timers and options, the same in every router.
    pub ospf: Ospf,
}

/// One router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterSpec {
    /// Letters and digits, such as `A` or `M1`. Device names are made of it.
    pub name: String,
    /// OSPF router id; also the /32 on the router's loopback.
    pub router_id: Ipv4Addr,
}

/// What a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// A WireGuard device at each end, over a veth pair.
    WireGuard,
    /// A veth pair: its ends are named and addressed as the WireGuard devices would be.
    Ethernet,
}

/// A link between two routers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSpec {
    /// What its devices are.
    pub kind: LinkKind,
    /// The two ends, in no particular order.
    pub ends: [LinkEnd; 2],
    /// Whether its devices have IPv6 addresses too, and OSPFv3 runs over them.
    pub ipv6: bool,
    /// OSPF cost, the same in both directions.
    pub cost: u16,
    /// MTU of the link's two devices, in bytes.
    pub mtu: u16,
    /// MTU of the veth underlay, in bytes; an Ethernet link has none.
    pub underlay_mtu: u16,
}

/// One end of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkEnd {
    /// The router's name.
    pub router: String,
    /// Address on the link's device, in a /30 shared with the other end.
    pub overlay: Ipv4Addr,
    /// Address on the veth underlay, in a /30 shared with the other end, or a /64.
    pub underlay: IpAddr,
}

/// One end of a bond: what one router's netbond is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BondSpec {
    /// The router this end belongs to.
    pub router: String,
    /// Name of the bond device.
    pub name: String,
    /// Addresses of the bond device with prefix length, IPv4 or IPv6.
    pub addresses: Vec<String>,
    /// `gre` or `gretap`.
    pub encap: String,
    /// How a packet's path is chosen, such as `round-robin`.
    pub mode: String,
    /// The peer's own prefix, whose route netbond tracks.
    pub peer: String,
    /// The paths of the bond.
    pub paths: Vec<PathSpec>,
    /// Further lines of the bond's table in netbond's configuration, such as `probe_interval = 0`.
    pub lines: Vec<String>,
}

/// One path of a bond.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathSpec {
    /// Name as `netbond status` shows it.
    pub name: String,
    /// Own outer address.
    pub local: IpAddr,
    /// The peer's outer address, of the same family.
    pub remote: IpAddr,
    /// The device the path leaves by.
    pub device: String,
    /// Further lines of the path's table in netbond's configuration, such as `xdp = "native"`.
    pub lines: Vec<String>,
}

/// OSPF settings, the same on every link.
///
/// The lab's default is hello 1 s and dead 4 s, so that a lab is up within seconds. Routers in the
/// field use 10 s and 40 s: choose [`Ospf::field`] to see what an operator sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ospf {
    /// Hello interval in seconds.
    pub hello: u32,
    /// Dead interval in seconds.
    pub dead: u32,
    /// Whether equal routes are used side by side.
    pub ecmp: bool,
    /// Whether BFD watches every neighbour, three packets 50 ms apart.
    pub bfd: bool,
}

impl Default for Ospf {
    fn default() -> Self {
        Self {
            hello: 1,
            dead: 4,
            ecmp: true,
            bfd: false,
        }
    }
}

impl Ospf {
    /// The timers routers have unless told otherwise: hello 10 s, dead 40 s.
    pub fn field() -> Self {
        Self {
            hello: 10,
            dead: 40,
            ..Self::default()
        }
    }
}

impl Topology {
    /// Two routers, A and B, joined through two middle routers, M1 and M2.
    pub fn reference() -> Self {
        Self::parallel(2)
    }

    /// A and B joined through `paths` middle routers M1, M2, ... with one bond over all of them.
    ///
    /// Link addresses go round the ring: A-M1, M1-B, B-M2, M2-A, and so on in blocks of eight, so
    /// that two paths give exactly the reference topology.
    ///
    /// # Panics
    ///
    /// If `paths` is 0 or above 31: the address blocks hold no more.
    pub fn parallel(paths: u8) -> Self {
        assert!((1..=31).contains(&paths), "1 to 31 paths, not {paths}");
        let mut routers = vec![
            RouterSpec::new("A", Ipv4Addr::new(10, 65, 2, 2)),
            RouterSpec::new("B", Ipv4Addr::new(10, 65, 2, 1)),
        ];
        let mut links = Vec::new();
        let (mut a_paths, mut b_paths) = (Vec::new(), Vec::new());
        for i in 1..=paths {
            let middle = format!("M{i}");
            routers.push(RouterSpec::new(&middle, Ipv4Addr::new(10, 65, 1, i)));
            // Odd middle routers meet A first, even ones B first.
            let (near, far) = if i % 2 == 1 { ("A", "B") } else { ("B", "A") };
            let block = 8 * (i - 1);
            let end = |router: &str, overlay: u8, underlay: u8| LinkEnd {
                router: router.to_owned(),
                overlay: Ipv4Addr::new(10, 65, 0, block + overlay),
                underlay: Ipv4Addr::new(192, 0, 2, block + underlay).into(),
            };
            links.push(LinkSpec::new(end(near, 2, 1), end(&middle, 1, 2)));
            links.push(LinkSpec::new(end(&middle, 5, 5), end(far, 6, 6)));
            let (near_address, far_address) = (
                Ipv4Addr::new(10, 65, 0, block + 2),
                Ipv4Addr::new(10, 65, 0, block + 6),
            );
            let (a, b) = if near == "A" {
                (near_address, far_address)
            } else {
                (far_address, near_address)
            };
            let name = format!("via-{}", middle.to_lowercase());
            a_paths.push(PathSpec {
                name: name.clone(),
                local: a.into(),
                remote: b.into(),
                device: link_device("A", &middle),
                lines: Vec::new(),
            });
            b_paths.push(PathSpec {
                name,
                local: b.into(),
                remote: a.into(),
                device: link_device("B", &middle),
                lines: Vec::new(),
            });
        }
        let bond = |router: &str, host: u8, peer: &str, paths| BondSpec {
            router: router.to_owned(),
            name: "nb0".to_owned(),
            addresses: vec![format!("10.67.0.{host}/24"), format!("fd67::{host}/64")],
            encap: "gre".to_owned(),
            mode: "round-robin".to_owned(),
            peer: peer.to_owned(),
            paths,
            lines: Vec::new(),
        };
        let bonds = vec![
            bond("A", 1, "10.65.2.1/32", a_paths),
            bond("B", 2, "10.65.2.2/32", b_paths),
        ];
        Self {
            routers,
            links,
            bonds,
            ospf: Ospf::default(),
        }
    }

    /// The same topology with IPv6 outer addresses for these paths of every bond, counted from 0: the links
    /// that they begin and end on have IPv6 addresses then, and OSPFv3.
    ///
    /// # Panics
    ///
    /// If a bond has no such path, or its device and its remote address are of no link.
    #[must_use]
    pub fn over_ipv6(mut self, paths: &[usize]) -> Self {
        for bond in 0..self.bonds.len() {
            for &path in paths {
                let PathSpec { local, remote, .. } = self.bonds[bond].paths[path].clone();
                let [local, remote] = [local, remote].map(|address| self.give_ipv6(address));
                let path = &mut self.bonds[bond].paths[path];
                (path.local, path.remote) = (local.into(), remote.into());
            }
        }
        self
    }

    /// The IPv6 address of the link end that has this address, which it is given where it has none.
    fn give_ipv6(&mut self, address: IpAddr) -> Ipv6Addr {
        let (index, place) = self.find_end(address);
        self.links[index].ipv6 = true;
        overlay_v6(index, place)
    }

    /// The same topology with Ethernet instead of WireGuard for these paths of every bond, counted from 0: the
    /// links that they begin and end on.
    ///
    /// # Panics
    ///
    /// If a bond has no such path, or its addresses are of no link.
    #[must_use]
    pub fn over_ethernet(mut self, paths: &[usize]) -> Self {
        for bond in 0..self.bonds.len() {
            for &path in paths {
                let PathSpec { local, remote, .. } = self.bonds[bond].paths[path];
                for address in [local, remote] {
                    let (index, _) = self.find_end(address);
                    self.links[index].kind = LinkKind::Ethernet;
                }
            }
        }
        self
    }

    /// The number of the link that has this address, and which of its ends.
    fn find_end(&self, address: IpAddr) -> (usize, usize) {
        for (index, link) in self.links.iter().enumerate() {
            for (place, end) in link.ends.iter().enumerate() {
                if address == end.overlay || address == overlay_v6(index, place) {
                    return (index, place);
                }
            }
        }
        panic!("no link has the address {address}");
    }

    /// The same topology with WireGuard's own packets over IPv6.
    #[must_use]
    pub fn with_ipv6_underlay(mut self) -> Self {
        for (link, number) in self.links.iter_mut().zip(0..) {
            for (end, place) in link.ends.iter_mut().zip(1..) {
                end.underlay = Ipv6Addr::new(0x2001, 0xdb8, 0, number, 0, 0, 0, place).into();
            }
        }
        self
    }

    /// Whether OSPFv3 runs anywhere.
    pub fn has_ipv6(&self) -> bool {
        self.links.iter().any(|link| link.ipv6)
    }

    /// The same topology with other OSPF settings.
    #[must_use]
    pub fn with_ospf(mut self, ospf: Ospf) -> Self {
        self.ospf = ospf;
        self
    }

    /// The same topology with a further line in netbond's configuration of every bond.
    #[must_use]
    pub fn with_bond_line(mut self, line: &str) -> Self {
        for bond in &mut self.bonds {
            bond.lines.push(line.to_owned());
        }
        self
    }

    /// The same topology with another encap, `gre` or `gretap`, of every bond.
    #[must_use]
    pub fn with_encap(mut self, encap: &str) -> Self {
        for bond in &mut self.bonds {
            encap.clone_into(&mut bond.encap);
        }
        self
    }

    /// The same topology without bonds: no netbond is started.
    #[must_use]
    pub fn without_bonds(mut self) -> Self {
        self.bonds.clear();
        self
    }

    /// Checks that names are usable and that everything referred to exists.
    pub fn validate(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        for router in &self.routers {
            let name = &router.name;
            ensure!(
                !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric()),
                "router name {name:?}: use ASCII letters and digits only"
            );
            ensure!(
                names.insert(name.to_lowercase()),
                "router {name} exists twice (names differ in more than case)"
            );
        }
        let known = |name: &str| self.routers.iter().any(|r| r.name == name);
        let mut pairs = BTreeSet::new();
        for link in &self.links {
            let [a, b] = &link.ends;
            for end in [a, b] {
                ensure!(
                    known(&end.router),
                    "a link ends at router {}, which is none",
                    end.router
                );
            }
            ensure!(a.router != b.router, "a link from {} to itself", a.router);
            let mut pair = [&a.router, &b.router];
            pair.sort();
            ensure!(
                pairs.insert(pair),
                "{} and {} are linked twice: their device names would clash",
                a.router,
                b.router
            );
            for device in [
                link_device(&a.router, &b.router),
                link_device(&b.router, &a.router),
            ] {
                ensure!(
                    device.len() <= MAX_DEVICE_NAME,
                    "device {device} is longer than {MAX_DEVICE_NAME} bytes: shorten the router names"
                );
            }
            for (x, y) in [
                (a.overlay.into(), b.overlay.into()),
                (a.underlay, b.underlay),
            ] {
                ensure!(
                    x != y && network(x) == network(y),
                    "{x} ({}) and {y} ({}) must be two addresses of one /30, or of one /64",
                    a.router,
                    b.router
                );
            }
        }
        for bond in &self.bonds {
            ensure!(
                known(&bond.router),
                "bond {} belongs to router {}, which is none",
                bond.name,
                bond.router
            );
            for path in &bond.paths {
                if !self.ends_of(&bond.router).any(|e| e.device == path.device) {
                    bail!(
                        "path {} of bond {} in {} uses device {}, which that router has not",
                        path.name,
                        bond.name,
                        bond.router,
                        path.device
                    );
                }
            }
        }
        Ok(())
    }

    /// The address of `router`'s first bond in the family of `like`, without prefix length.
    pub fn bond_address(&self, router: &str, v6: bool) -> Option<IpAddr> {
        self.bonds
            .iter()
            .filter(|bond| bond.router == router)
            .flat_map(|bond| &bond.addresses)
            .filter_map(|address| address.split('/').next()?.parse::<IpAddr>().ok())
            .find(|address| address.is_ipv6() == v6)
    }

    /// Every link end that `router` has, seen from that router.
    pub fn ends_of<'a>(&'a self, router: &'a str) -> impl Iterator<Item = LocalEnd> + 'a {
        self.links
            .iter()
            .enumerate()
            .flat_map(move |(index, link)| {
                let [a, b] = &link.ends;
                [(0, a, b), (1, b, a)]
                    .into_iter()
                    .filter(move |(_, own, _)| own.router == router)
                    .map(move |(place, own, peer)| LocalEnd::new((index, place), link, own, peer))
            })
    }
}

/// The network that both ends of a link are in.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !3).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// Bits of the prefix that both ends of a link share.
pub fn link_prefix(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 30,
        IpAddr::V6(_) => 64,
    }
}

/// The IPv6 address of one of the two ends of a link.
fn overlay_v6(link: usize, place: usize) -> Ipv6Addr {
    let number = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
    Ipv6Addr::new(0xfd65, 0, 0, number(link), 0, 0, 0, number(place + 1))
}

impl RouterSpec {
    /// A router called `name` with OSPF router id `router_id`.
    pub fn new(name: &str, router_id: Ipv4Addr) -> Self {
        Self {
            name: name.to_owned(),
            router_id,
        }
    }

    /// The /128 on the router's loopback, where OSPFv3 runs: it ends like the router id.
    pub fn loopback_v6(&self) -> Ipv6Addr {
        let [a, b, c, d] = self.router_id.octets();
        let words = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
        Ipv6Addr::new(0xfd65, 2, 0, 0, 0, 0, words[0], words[1])
    }
}

impl LinkSpec {
    /// A WireGuard link with OSPF cost 10, MTU 1420 and underlay MTU 1500.
    pub fn new(one: LinkEnd, other: LinkEnd) -> Self {
        Self {
            kind: LinkKind::WireGuard,
            ends: [one, other],
            ipv6: false,
            cost: 10,
            mtu: 1420,
            underlay_mtu: 1500,
        }
    }
}

/// A link as one of its routers sees it, with the names of that router's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEnd {
    /// What the link is.
    pub kind: LinkKind,
    /// The router at the other end.
    pub peer: String,
    /// The link's device, such as `wg-a-m1`.
    pub device: String,
    /// The device of the wire: the veth device below WireGuard, such as `u-a-m1`, or the link's own.
    pub underlay_device: String,
    /// Own overlay address (a /30).
    pub overlay: Ipv4Addr,
    /// Own IPv6 overlay address (a /126), where there is one.
    pub overlay_v6: Option<Ipv6Addr>,
    /// Own underlay address (a /30 or a /64).
    pub underlay: IpAddr,
    /// The other end's underlay address.
    pub peer_underlay: IpAddr,
    /// UDP port of both WireGuard devices.
    pub port: u16,
    /// OSPF cost.
    pub cost: u16,
    /// MTU of the link's device, in bytes.
    pub mtu: u16,
    /// MTU of the veth device, in bytes.
    pub underlay_mtu: u16,
}

impl LocalEnd {
    fn new((index, place): (usize, usize), link: &LinkSpec, own: &LinkEnd, peer: &LinkEnd) -> Self {
        let device = link_device(&own.router, &peer.router);
        Self {
            kind: link.kind,
            peer: peer.router.clone(),
            underlay_device: match link.kind {
                LinkKind::WireGuard => underlay_device(&own.router, &peer.router),
                LinkKind::Ethernet => device.clone(),
            },
            device,
            overlay: own.overlay,
            overlay_v6: link.ipv6.then(|| overlay_v6(index, place)),
            underlay: own.underlay,
            peer_underlay: peer.underlay,
            port: FIRST_PORT.saturating_add(u16::try_from(index).unwrap_or(u16::MAX)),
            cost: link.cost,
            mtu: link.mtu,
            underlay_mtu: link.underlay_mtu,
        }
    }

    /// The device's link-local address, where OSPFv3 runs: none has one by itself.
    pub fn link_local(&self) -> Option<Ipv6Addr> {
        let [.., link, _, _, _, end] = self.overlay_v6?.segments();
        Some(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, link, end))
    }
}

/// Name of the link's device in `router` that leads to `peer`, whatever it is.
pub fn link_device(router: &str, peer: &str) -> String {
    format!("wg-{}-{}", router.to_lowercase(), peer.to_lowercase())
}

/// Name of the veth device below a WireGuard device in `router` that leads to `peer`.
pub fn underlay_device(router: &str, peer: &str) -> String {
    format!("u-{}-{}", router.to_lowercase(), peer.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_topology_has_the_documented_addresses() {
        let topology = Topology::reference();
        topology.validate().unwrap();
        let a: Vec<_> = topology
            .ends_of("A")
            .map(|e| (e.device, e.overlay.to_string(), e.port))
            .collect();
        assert_eq!(
            a,
            [
                ("wg-a-m1".to_owned(), "10.65.0.2".to_owned(), 51820),
                ("wg-a-m2".to_owned(), "10.65.0.14".to_owned(), 51823),
            ]
        );
        let paths: Vec<_> = topology.bonds[1]
            .paths
            .iter()
            .map(|p| (p.name.as_str(), p.local.to_string(), p.remote.to_string()))
            .collect();
        assert_eq!(
            paths,
            [
                ("via-m1", "10.65.0.6".to_owned(), "10.65.0.2".to_owned()),
                ("via-m2", "10.65.0.10".to_owned(), "10.65.0.14".to_owned()),
            ]
        );
        assert_eq!(
            topology.bond_address("B", true).unwrap().to_string(),
            "fd67::2"
        );
    }

    #[test]
    fn every_number_of_parallel_paths_is_valid() {
        for paths in 1..=31 {
            Topology::parallel(paths).validate().unwrap();
        }
    }

    #[test]
    fn paths_may_be_over_ipv6() {
        let topology = Topology::reference().over_ipv6(&[1]);
        topology.validate().unwrap();
        let path = |bond: usize| {
            let PathSpec { local, remote, .. } = &topology.bonds[bond].paths[1];
            [local.to_string(), remote.to_string()]
        };
        // B-M2 is the third link, M2-A the fourth.
        assert_eq!(path(0), ["fd65:0:0:3::2", "fd65:0:0:2::1"]);
        assert_eq!(path(1), ["fd65:0:0:2::1", "fd65:0:0:3::2"]);
        assert!(topology.bonds[0].paths[0].local.is_ipv4());
        let ends: Vec<_> = topology.ends_of("A").map(|end| end.overlay_v6).collect();
        assert_eq!(ends, [None, Some("fd65:0:0:3::2".parse().unwrap())]);
        let local = topology.ends_of("A").last().unwrap().link_local();
        assert_eq!(local, Some("fe80::3:2".parse().unwrap()));
        let loopback = topology.routers[0].loopback_v6().to_string();
        assert_eq!(loopback, "fd65:2::a41:202");
    }

    #[test]
    fn paths_may_be_over_ethernet() {
        let topology = Topology::reference().over_ipv6(&[1]).over_ethernet(&[1]);
        topology.validate().unwrap();
        let ends: Vec<_> = topology.ends_of("A").collect();
        let wires: Vec<_> = ends
            .iter()
            .map(|end| end.underlay_device.as_str())
            .collect();
        assert_eq!(wires, ["u-a-m1", "wg-a-m2"]);
        let kinds: Vec<_> = topology.links.iter().map(|link| link.kind).collect();
        let (tunnel, wire) = (LinkKind::WireGuard, LinkKind::Ethernet);
        assert_eq!(kinds, [tunnel, tunnel, wire, wire]);
    }

    #[test]
    fn validation_names_the_culprit() {
        let mut topology = Topology::reference();
        topology.links[0].ends[0].overlay = Ipv4Addr::new(10, 65, 0, 9);
        let error = topology.validate().unwrap_err().to_string();
        assert!(
            error.contains("10.65.0.9") && error.contains("/30"),
            "{error}"
        );

        let mut topology = Topology::reference();
        topology.bonds[0].paths[0].device = "wg-a-m7".to_owned();
        let error = topology.validate().unwrap_err().to_string();
        assert!(error.contains("wg-a-m7"), "{error}");

        let mut topology = Topology::reference();
        topology.routers[2].name = "Switzerland".to_owned();
        assert!(topology.validate().is_err());
    }
}
