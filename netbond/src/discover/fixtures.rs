//! The recorded network that the tests of this module share: tests/fixtures/ospf/README.md.

use std::net::{IpAddr, Ipv4Addr};

use super::graph::Hop;
use super::network::{Host, Network};
use super::route::{Next, Routes, Target};
use super::select::{KernelRoute, KernelRoutes, addresses_of};
use crate::control::event::{OspfInterface, OspfNeighbour};
use crate::ospf::lsdb::{Database, Instance};
use crate::ospf::{bird, frr};

/// Who tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Bird,
    Frr,
    /// By OSPFv3.
    BirdSix,
    FrrSix,
}

impl Source {
    pub(super) const fn is_ipv6(self) -> bool {
        match self {
            Self::Bird | Self::Frr => false,
            Self::BirdSix | Self::FrrSix => true,
        }
    }
}

pub(super) const A: Ipv4Addr = Ipv4Addr::new(10, 65, 2, 2);
pub(super) const B: Ipv4Addr = Ipv4Addr::new(10, 65, 2, 1);
pub(super) const U: Ipv4Addr = Ipv4Addr::new(10, 65, 1, 1);
pub(super) const V: Ipv4Addr = Ipv4Addr::new(10, 65, 1, 2);

pub(super) fn database(source: Source) -> Database {
    macro_rules! fixture {
        ($name:literal) => {
            include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/fixtures/ospf/",
                $name
            ))
        };
    }
    let parsed = match source {
        Source::Bird => bird::state::parse(fixture!("bird-state.txt")),
        Source::Frr => frr::database::parse(fixture!("frr-database.txt")),
        Source::BirdSix => bird::state::parse(fixture!("bird-six-state.txt")),
        Source::FrrSix => frr::six::database::parse(fixture!("frr-six-database.txt")),
    };
    parsed.unwrap().unwrap()
}

/// What the daemon in router A tells.
pub(super) fn instance(source: Source) -> Instance {
    let neighbours = [
        ("wg-a-u", 10, 1, ["10.65.0.2", "fe80::1"]),
        ("wg-a-v", 40, 2, ["10.65.0.14", "fe80::2"]),
        ("wg-a-w", 30, 3, ["10.65.8.2", "fe80::3"]),
        ("wg-a-w2", 30, 3, ["10.65.0.26", "fe80::4"]),
    ];
    let interfaces = neighbours.map(|(device, cost, id, far)| OspfInterface {
        device: device.to_owned(),
        cost: Some(cost),
        neighbours: vec![OspfNeighbour {
            router_id: [10, 65, 1, id].into(),
            address: far[usize::from(source.is_ipv6())].parse().unwrap(),
            state: "Full".to_owned(),
        }],
    });
    Instance {
        database: database(source),
        interfaces: interfaces.into(),
    }
}

/// What the host of router A tells.
pub(super) fn host() -> Host {
    let address = |(device, address): (&str, &str)| (device.to_owned(), address.parse().unwrap());
    Host {
        addresses: [
            ("lo", "10.65.2.2/32"),
            ("lo", "fd65:ffff::22/128"),
            ("wg-a-u", "10.65.0.1/30"),
            ("wg-a-u", "fd65:0:0:1::1/126"),
            ("wg-a-v", "10.65.0.13/30"),
            ("wg-a-v", "fd65:0:0:4::a/64"),
            ("wg-a-w", "10.65.8.1/32"),
            ("wg-a-w2", "10.65.0.25/30"),
            ("wg-a-w2", "fd65:0:0:6::1/126"),
        ]
        .map(address)
        .into(),
        ..Host::default()
    }
}

pub(super) fn network(source: Source) -> Network {
    let Instance {
        database,
        interfaces,
    } = instance(source);
    let host = Host {
        interfaces,
        ..host()
    };
    Network::new(&database.areas[0], database.own, &host).unwrap()
}

/// The addresses of [`host`].
pub(super) fn own_addresses() -> Vec<IpAddr> {
    let addresses = host().addresses.into_iter();
    addresses.map(|(_, prefix)| prefix.address).collect()
}

/// The routes of a kernel that does what the database says.
pub(super) fn kernel(network: &Network, peer: usize) -> KernelRoutes {
    let routes = Routes::new(network);
    let mut kernel = KernelRoutes::new();
    for (address, _) in addresses_of(network, peer) {
        for &address in address.possible() {
            let target = Target {
                address,
                owner: peer,
            };
            let (hops, of_ospf) = match routes.next(network.own, target) {
                Next::Via(hops) => (hops, true),
                Next::OnLink(hop) => ([hop].into(), false),
                Next::Arrived | Next::Nowhere => continue,
            };
            let device = |hop: &Hop| network.links[hop.link].device.clone();
            let route = KernelRoute {
                devices: hops.iter().filter_map(device).collect(),
                of_ospf,
            };
            kernel.insert(address, route);
        }
    }
    kernel
}
