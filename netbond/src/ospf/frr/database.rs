//! FRR's router and network LSAs (ospfd/ospf_vty.c, show_ip_ospf_database).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::Context as _;
use serde::Deserialize;

use crate::config::Prefix;
use crate::ospf::lsdb::{
    Area, Database, NetworkLsa, PointToPoint, RouterLsa, SegmentId, Stub, Transit,
};

pub(super) const COMMANDS: [&str; 2] = [
    "show ip ospf database router json",
    "show ip ospf database network json",
];

/// LSAs of this age are being withdrawn (RFC 2328, B), s.
pub(super) const MAX_AGE: u32 = 3600;

/// `show ip ospf database router json`; empty where OSPF is not configured.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Routers {
    router_id: Option<Ipv4Addr>,
    router_link_states: Option<Areas<Router>>,
}

/// `show ip ospf database network json`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Networks {
    network_link_states: Option<Areas<Network>>,
}

#[derive(Deserialize)]
struct Areas<Lsa> {
    #[serde(default = "BTreeMap::new")]
    areas: BTreeMap<Ipv4Addr, Vec<Lsa>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Router {
    #[serde(default)]
    lsa_age: u32,
    advertising_router: Ipv4Addr,
    /// `link0`, `link1`, ...
    #[serde(default)]
    router_links: BTreeMap<String, Link>,
}

/// Which fields there are depends on the type.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    link_type: String,
    neighbor_router_id: Option<Ipv4Addr>,
    /// Of an unnumbered link an interface index written as an address: `0.0.0.4`.
    router_interface_address: Option<Ipv4Addr>,
    designated_router_address: Option<Ipv4Addr>,
    network_address: Option<Ipv4Addr>,
    network_mask: Option<Ipv4Addr>,
    #[serde(default)]
    tos0_metric: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Network {
    #[serde(default)]
    lsa_age: u32,
    /// The designated router's address.
    link_state_id: Ipv4Addr,
    network_mask: u8,
    /// FRR 8.4 misspells it.
    #[serde(default, alias = "attchedRouters")]
    attached_routers: BTreeMap<Ipv4Addr, serde::de::IgnoredAny>,
}

/// Reads the outputs of both [`COMMANDS`], one after the other; `None` where OSPF is not configured.
///
/// # Errors
/// What is no JSON, or not of such a database.
pub fn parse(output: &str) -> anyhow::Result<Option<Database>> {
    let [first, second] = COMMANDS;
    // vtysh exits with 0 also where ospfd does not know a command and answers with a line of text.
    let mut documents = serde_json::Deserializer::from_str(output);
    let routers = Routers::deserialize(&mut documents)
        .with_context(|| format!("'{first}' cannot be read"))?;
    let networks = Networks::deserialize(&mut documents)
        .with_context(|| format!("'{second}' cannot be read"))?;
    documents
        .end()
        .with_context(|| format!("text after '{second}'"))?;
    let (Some(own), Some(routers)) = (routers.router_id, routers.router_link_states) else {
        return Ok(None);
    };
    let mut networks = networks
        .network_link_states
        .map_or_else(BTreeMap::new, |n| n.areas);
    let areas = routers.areas.into_iter().map(|(id, routers)| {
        let networks = networks.remove(&id).unwrap_or_default();
        area(id, routers, networks)
    });
    Ok(Some(Database {
        own,
        areas: areas.collect(),
    }))
}

fn area(id: Ipv4Addr, routers: Vec<Router>, networks: Vec<Network>) -> Area {
    // By the designated router's address: what a transit link names its segment by.
    let segments: BTreeMap<Ipv4Addr, NetworkLsa> = networks
        .into_iter()
        .filter(|network| network.lsa_age < MAX_AGE && network.network_mask <= 32)
        .map(|network| {
            let prefix = Prefix {
                address: network.link_state_id.into(),
                length: network.network_mask,
            };
            let segment = NetworkLsa {
                id: SegmentId::Prefix(prefix.network()),
                prefix: Some(prefix.network()),
                routers: network.attached_routers.into_keys().collect(),
            };
            (network.link_state_id, segment)
        })
        .collect();
    let routers = routers
        .into_iter()
        .filter(|router| router.lsa_age < MAX_AGE)
        .map(|router| router_lsa(router, &segments));
    Area {
        id,
        routers: routers.collect(),
        segments: segments.values().cloned().collect(),
    }
}

fn router_lsa(router: Router, segments: &BTreeMap<Ipv4Addr, NetworkLsa>) -> RouterLsa {
    let mut lsa = RouterLsa::new(router.advertising_router);
    for link in router.router_links.into_values() {
        let cost = link.tos0_metric;
        let address = link
            .router_interface_address
            .filter(|address| address.octets()[0] != 0);
        // As linkType begins: "another Router (point-to-point)", "a Transit Network", "Stub Network",
        // "a Virtual Link".
        if link.link_type.starts_with("another Router") {
            lsa.point_to_point
                .extend(link.neighbor_router_id.map(|neighbour| PointToPoint {
                    neighbour,
                    address,
                    cost,
                }));
        } else if link.link_type.starts_with("a Transit") {
            let segment = link
                .designated_router_address
                .and_then(|address| segments.get(&address));
            lsa.transit.extend(segment.map(|segment| Transit {
                segment: segment.id,
                address,
                cost,
            }));
        } else if link.link_type.starts_with("Stub")
            && let (Some(address), Some(mask)) = (link.network_address, link.network_mask)
        {
            let prefix = Prefix {
                address: address.into(),
                length: mask.to_bits().leading_ones() as u8,
            };
            lsa.stubs.push(Stub {
                prefix: prefix.network(),
                cost,
            });
        }
    }
    lsa
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    const DATABASE_OF_A: &str = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/ospf/frr-database.txt"
    ));

    #[test]
    fn routers_links_and_prefixes_are_read() {
        let database = parse(DATABASE_OF_A).unwrap().unwrap();
        assert_eq!(database.own, Ipv4Addr::new(10, 65, 2, 2));
        let [area] = &database.areas[..] else {
            panic!("one area")
        };
        let ids: Vec<Ipv4Addr> = area.routers.iter().map(|router| router.id).collect();
        assert_eq!(ids.len(), 5);
        let own = &area.routers[4];
        assert_eq!(own.id, database.own);
        let links: Vec<_> = own
            .point_to_point
            .iter()
            .map(|link| (link.neighbour.octets()[3], link.address, link.cost))
            .collect();
        let numbered = |last| Some(Ipv4Addr::new(10, 65, 0, last));
        assert_eq!(
            links,
            [
                (1, numbered(1), 10),
                (2, numbered(13), 40),
                // Unnumbered: its addresses are /32 with a peer's.
                (3, None, 30),
                (3, numbered(25), 30)
            ]
        );
        let prefix = "10.65.9.0/24".parse().unwrap();
        let v = &area.routers[1];
        assert_eq!(
            v.transit,
            [Transit {
                segment: SegmentId::Prefix(prefix),
                address: Some(Ipv4Addr::new(10, 65, 9, 2)),
                cost: 100
            }]
        );
        assert_eq!(v.stubs.len(), 4);
        assert!(v.stubs.contains(&Stub {
            prefix: "10.65.0.8/30".parse().unwrap(),
            cost: 10
        }));
        let [segment] = &area.segments[..] else {
            panic!("one segment")
        };
        assert_eq!((segment.prefix, segment.routers.len()), (Some(prefix), 3));
    }

    #[test]
    fn without_ospf_there_is_no_database() {
        assert_eq!(parse("{}\n{}\n").unwrap(), None);
        let half = &DATABASE_OF_A[..DATABASE_OF_A.len() / 2];
        for output in ["", "{}", "% Unknown command", "{}{}x", half] {
            assert!(parse(output).is_err(), "{output:?}");
        }
    }

    proptest! {
        #[test]
        fn mutated_output_never_panics(text in mutated::text(DATABASE_OF_A)) {
            let _ = parse(&text);
        }
    }
}
