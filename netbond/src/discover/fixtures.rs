//! The recorded network that the tests of this module share: tests/fixtures/ospf/README.md.

use std::net::{IpAddr, Ipv4Addr};

use super::graph::Hop;
use super::network::{Host, Network};
use super::route::{Next, Routes, Target};
use super::select::{KernelRoute, KernelRoutes, addresses_of};
use crate::config::Prefix;
use crate::control::event::{OspfInterface, OspfNeighbour};
use crate::ospf::{bird, frr, lsdb::Database};

/// Who tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Bird,
    Frr,
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
    };
    parsed.unwrap().unwrap()
}

/// What the host of router A tells.
pub(super) fn host() -> Host {
    let address = |(device, address): (&str, &str)| (device.to_owned(), address.parse().unwrap());
    let interface = |(device, cost, id, far): (&str, u32, u8, [u8; 4])| OspfInterface {
        device: device.to_owned(),
        cost: Some(cost),
        neighbours: vec![OspfNeighbour {
            router_id: [10, 65, 1, id].into(),
            address: far.into(),
            state: "Full".to_owned(),
        }],
    };
    Host {
        addresses: [
            ("lo", "10.65.2.2/32"),
            ("wg-a-u", "10.65.0.1/30"),
            ("wg-a-v", "10.65.0.13/30"),
            ("wg-a-w", "10.65.8.1/32"),
            ("wg-a-w2", "10.65.0.25/30"),
        ]
        .map(address)
        .into(),
        ethernet: Vec::new(),
        interfaces: [
            ("wg-a-u", 10, 1, [10, 65, 0, 2]),
            ("wg-a-v", 40, 2, [10, 65, 0, 14]),
            ("wg-a-w", 30, 3, [10, 65, 8, 2]),
            ("wg-a-w2", 30, 3, [10, 65, 0, 26]),
        ]
        .map(interface)
        .into(),
        bonds: Vec::new(),
    }
}

pub(super) fn network(source: Source) -> Network {
    let database = database(source);
    Network::new(&database.areas[0], database.own, &host()).unwrap()
}

/// The addresses of [`host`].
pub(super) fn own_addresses() -> Vec<Ipv4Addr> {
    let addresses = host().addresses.into_iter();
    let address = |(_, prefix): (String, Prefix)| match prefix.address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    addresses.filter_map(address).collect()
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
