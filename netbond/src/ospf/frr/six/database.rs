//! FRR's OSPFv3 LSAs (ospf6d/ospf6_lsdb.c, ospf6d/ospf6_intra.c; FRR 8.4 and later). Who is linked to whom is in
//! router and network LSAs, which have no addresses; prefixes are in LSAs that refer to those.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::{Context as _, anyhow};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::config::Prefix;
use crate::ospf::frr::database::MAX_AGE;
use crate::ospf::lsdb::{
    Area, Database, NetworkLsa, PointToPoint, RouterLsa, SegmentId, Stub, Transit,
};

pub(super) const COMMANDS: [&str; 4] = [
    "show ipv6 ospf6 json",
    "show ipv6 ospf6 database router detail json",
    "show ipv6 ospf6 database network detail json",
    "show ipv6 ospf6 database intra-prefix detail json",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Own {
    router_id: Ipv4Addr,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Areas<Lsa> {
    #[serde(default = "Vec::new")]
    area_scoped_link_state_db: Vec<OfArea<Lsa>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfArea<Lsa> {
    /// As it was typed: an address, or a number.
    area_id: String,
    #[serde(default = "Vec::new")]
    lsa: Vec<Lsa>,
}

/// A router may have several, each with some of its links (RFC 5340, 4.4.3.2).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Router {
    age: u32,
    advertising_router: Ipv4Addr,
    #[serde(default)]
    lsa_description: Vec<Link>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    r#type: String,
    metric: u32,
    /// A number, written as an address.
    neighbor_interface_id: Ipv4Addr,
    neighbor_router_id: Ipv4Addr,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Network {
    age: u32,
    /// The number of the designated router's interface, written as an address.
    link_state_id: Ipv4Addr,
    advertising_router: Ipv4Addr,
    #[serde(default)]
    attached_router: Vec<Ipv4Addr>,
}

/// Prefixes of a router's, or of a segment's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Prefixes {
    age: u32,
    reference: String,
    reference_id: Ipv4Addr,
    reference_adv: Ipv4Addr,
    #[serde(default)]
    prefix: Vec<Announced>,
}

#[derive(Deserialize)]
struct Announced {
    prefix: String,
    metric: u32,
}

/// Reads the outputs of all [`COMMANDS`], one after the other; `None` where OSPFv3 is not configured, of which FRR
/// prints nothing.
///
/// # Errors
/// What is no JSON, or not of such a database.
pub fn parse(output: &str) -> anyhow::Result<Option<Database>> {
    if output.trim().is_empty() {
        return Ok(None);
    }
    let [own, routers, networks, prefixes] = COMMANDS;
    // vtysh exits with 0 also where ospf6d does not know a command and answers with a line of text.
    let mut documents = serde_json::Deserializer::from_str(output);
    let cannot = |command: &str| format!("'{command}' cannot be read");
    let own = Own::deserialize(&mut documents).with_context(|| cannot(own))?;
    let mut lsas = ByArea::default();
    for (id, routers) in areas(&mut documents).with_context(|| cannot(routers))? {
        lsas.of(id).routers = routers;
    }
    for (id, networks) in areas(&mut documents).with_context(|| cannot(networks))? {
        lsas.of(id).networks = networks;
    }
    for (id, prefixes) in areas(&mut documents).with_context(|| cannot(prefixes))? {
        lsas.of(id).prefixes = prefixes;
    }
    documents
        .end()
        .with_context(|| format!("text after '{prefixes}'"))?;
    let areas = lsas.0.into_iter().map(|(id, lsas)| area(id, lsas));
    Ok(Some(Database {
        own: own.router_id,
        areas: areas.collect::<Result<_, _>>()?,
    }))
}

/// The LSAs of one command, by area.
fn areas<Lsa: DeserializeOwned>(
    documents: &mut serde_json::Deserializer<serde_json::de::StrRead<'_>>,
) -> anyhow::Result<Vec<(Ipv4Addr, Vec<Lsa>)>> {
    let all = Areas::<Lsa>::deserialize(documents)?.area_scoped_link_state_db;
    let of_area = |of: OfArea<Lsa>| {
        let number = of.area_id.parse().map(Ipv4Addr::from_bits);
        let id = of.area_id.parse().ok().or(number.ok());
        let id = id.with_context(|| format!("{:?} is no area", of.area_id))?;
        Ok((id, of.lsa))
    };
    all.into_iter().map(of_area).collect()
}

#[derive(Default)]
struct ByArea(BTreeMap<Ipv4Addr, Lsas>);

/// Those of one area.
#[derive(Default)]
struct Lsas {
    routers: Vec<Router>,
    networks: Vec<Network>,
    prefixes: Vec<Prefixes>,
}

impl ByArea {
    fn of(&mut self, area: Ipv4Addr) -> &mut Lsas {
        self.0.entry(area).or_default()
    }
}

fn area(id: Ipv4Addr, lsas: Lsas) -> anyhow::Result<Area> {
    let mut routers: BTreeMap<Ipv4Addr, RouterLsa> = BTreeMap::new();
    for router in lsas.routers.into_iter().filter(|lsa| lsa.age < MAX_AGE) {
        let id = router.advertising_router;
        let lsa = routers.entry(id).or_insert_with(|| RouterLsa::new(id));
        for link in router.lsa_description {
            add_link(lsa, &link);
        }
    }
    let networks = lsas.networks.into_iter().filter(|lsa| lsa.age < MAX_AGE);
    let segment = |network: Network| NetworkLsa {
        id: segment_id(network.advertising_router, network.link_state_id),
        prefix: None,
        routers: network.attached_router,
    };
    let mut segments: Vec<NetworkLsa> = networks.map(segment).collect();
    for lsa in lsas.prefixes.into_iter().filter(|lsa| lsa.age < MAX_AGE) {
        let stubs: Vec<Stub> = lsa.prefix.iter().map(stub).collect::<Result<_, _>>()?;
        match lsa.reference.as_str() {
            "Router" => {
                if let Some(router) = routers.get_mut(&lsa.reference_adv) {
                    router.stubs.extend(stubs);
                }
            }
            "Network" => {
                let id = segment_id(lsa.reference_adv, lsa.reference_id);
                if let Some(segment) = segments.iter_mut().find(|segment| segment.id == id) {
                    // Of several the first will do.
                    segment.prefix = segment.prefix.or(stubs.first().map(|stub| stub.prefix));
                }
            }
            _ => {}
        }
    }
    Ok(Area {
        id,
        routers: routers.into_values().collect(),
        segments,
    })
}

fn add_link(lsa: &mut RouterLsa, link: &Link) {
    match link.r#type.as_str() {
        "Point-To-Point" => lsa.point_to_point.push(PointToPoint {
            neighbour: link.neighbor_router_id,
            address: None,
            cost: link.metric,
        }),
        "Transit-Network" => lsa.transit.push(Transit {
            segment: segment_id(link.neighbor_router_id, link.neighbor_interface_id),
            address: None,
            cost: link.metric,
        }),
        // Virtual links.
        _ => {}
    }
}

const fn segment_id(router: Ipv4Addr, interface: Ipv4Addr) -> SegmentId {
    SegmentId::Designated {
        router,
        interface: interface.to_bits(),
    }
}

fn stub(announced: &Announced) -> anyhow::Result<Stub> {
    let prefix: Prefix = announced
        .prefix
        .parse()
        .map_err(|error| anyhow!("{:?}: {error}", announced.prefix))?;
    Ok(Stub {
        prefix: prefix.network(),
        cost: announced.metric,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    const DATABASE_OF_A: &str = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/ospf/frr-six-database.txt"
    ));

    #[test]
    fn routers_links_and_prefixes_are_read() {
        let database = parse(DATABASE_OF_A).unwrap().unwrap();
        assert_eq!(database.own, Ipv4Addr::new(10, 65, 2, 2));
        let [area] = &database.areas[..] else {
            panic!("one area")
        };
        assert!(area.is_ipv6());
        assert_eq!(area.id, Ipv4Addr::UNSPECIFIED);
        let own = &area.routers[4];
        assert_eq!((area.routers.len(), own.id), (5, database.own));
        let links: Vec<_> = own
            .point_to_point
            .iter()
            .map(|link| (link.neighbour.octets()[3], link.address, link.cost))
            .collect();
        let wanted = [(1, None, 10), (2, None, 40), (3, None, 30), (3, None, 30)];
        assert_eq!(links, wanted);
        let prefixes = |router: &RouterLsa| -> Vec<String> {
            let stubs = router.stubs.iter();
            stubs.map(|stub| stub.prefix.to_string()).collect()
        };
        assert_eq!(
            prefixes(own),
            [
                "fd65:0:0:1::/126",
                "fd65:0:0:4::/64",
                "fd65:0:0:6::/126",
                "fd65:ffff::22/128"
            ]
        );
        let v = &area.routers[1];
        let segment = SegmentId::Designated {
            router: [10, 65, 2, 1].into(),
            interface: 4,
        };
        assert_eq!(
            v.transit,
            [Transit {
                segment,
                address: None,
                cost: 100
            }]
        );
        let routers = [[10, 65, 2, 1], [10, 65, 1, 2], [10, 65, 1, 3]].map(Ipv4Addr::from);
        assert_eq!(
            area.segments,
            [NetworkLsa {
                id: segment,
                prefix: "fd65:0:0:9::/64".parse().ok(),
                routers: routers.into(),
            }]
        );
    }

    #[test]
    fn an_area_may_be_named_by_a_number() {
        let output = DATABASE_OF_A.replace("\"areaId\":\"0.0.0.0\"", "\"areaId\":\"7\"");
        let database = parse(&output).unwrap().unwrap();
        assert_eq!(database.areas[0].id, Ipv4Addr::new(0, 0, 0, 7));
    }

    #[test]
    fn what_is_withdrawn_does_not_count() {
        let output = DATABASE_OF_A.replace("\"age\":", "\"age\":3600, \"was\":");
        let database = parse(&output).unwrap().unwrap();
        assert_eq!(database.areas[0].routers, []);
        assert_eq!(database.areas[0].segments, []);
    }

    #[test]
    fn without_ospf_there_is_no_database() {
        assert_eq!(parse("\n").unwrap(), None);
        let half = &DATABASE_OF_A[..DATABASE_OF_A.len() / 2];
        let more = format!("{DATABASE_OF_A}x");
        let area = DATABASE_OF_A.replace("\"areaId\":\"0.0.0.0\"", "\"areaId\":\"x\"");
        let prefix = DATABASE_OF_A.replace("fd65:0:0:9::/64", "fd65:0:0:9::/640");
        for output in ["{}", "% Unknown command", half, &more, &area, &prefix] {
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
