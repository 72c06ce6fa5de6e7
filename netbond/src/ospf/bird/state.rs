//! BIRD's `show ospf state` (proto/ospf/ospf.c, ospf_sh_state): the reachable part of the database. It tells no
//! router's address on a link, only the link's prefix. What OSPFv3 has in LSAs of their own is put together there.

use std::net::{IpAddr, Ipv4Addr};

use super::{lines, malformed};
use crate::config::Prefix;
use crate::ospf::lsdb::{
    Area, Database, NetworkLsa, PointToPoint, RouterLsa, SegmentId, Stub, Transit,
};

/// The lines of `show ospf state`.
const STATE: u16 = 1016;

/// What the lines at present are about.
enum Subject {
    Nothing,
    Router,
    Segment,
}

/// Reads a reply; `None` of an instance without areas.
///
/// # Errors
/// A code other than that of the state's lines, or a line of them that cannot be read.
pub fn parse(reply: &str) -> anyhow::Result<Option<Database>> {
    let mut own = None;
    let mut areas: Vec<Area> = Vec::new();
    let mut subject = Subject::Nothing;
    for line in lines(reply)? {
        if line.code != STATE {
            continue;
        }
        let text = line.text.trim_start_matches('\t');
        let depth = line.text.len() - text.len();
        let mut words = text.split_whitespace();
        let (Some(word), value, what, metric) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let fail = || malformed(line.text);
        let id = || {
            value
                .and_then(|value| value.parse::<Ipv4Addr>().ok())
                .ok_or_else(fail)
        };
        let cost = || {
            let metric = metric.filter(|_| what == Some("metric"));
            metric
                .and_then(|metric| metric.parse().ok())
                .ok_or_else(fail)
        };
        if (depth, word) == (0, "area") {
            areas.push(Area {
                id: id()?,
                routers: Vec::new(),
                segments: Vec::new(),
            });
            subject = Subject::Nothing;
            continue;
        }
        let Some(area) = areas.last_mut() else {
            continue;
        };
        match (depth, word, &subject) {
            (1, "router", _) => {
                area.routers.push(RouterLsa::new(id()?));
                subject = Subject::Router;
            }
            (1, "network", _) => {
                let id = segment_id(value).ok_or_else(fail)?;
                area.segments.push(NetworkLsa {
                    id,
                    prefix: match id {
                        SegmentId::Prefix(prefix) => Some(prefix),
                        SegmentId::Designated { .. } => None,
                    },
                    routers: Vec::new(),
                });
                subject = Subject::Segment;
            }
            (1, _, _) => subject = Subject::Nothing,
            (2, "distance", Subject::Router) if value == Some("0") => {
                own = area.routers.last().map(|router| router.id).or(own);
            }
            (2, "router", Subject::Segment) => {
                let id = id()?;
                let segment = area.segments.last_mut().ok_or_else(fail)?;
                segment.routers.push(id);
            }
            (2, "address", Subject::Segment) => {
                let prefix = prefix(value).ok_or_else(fail)?;
                let segment = area.segments.last_mut().ok_or_else(fail)?;
                // Of several the first will do.
                segment.prefix = segment.prefix.or_else(|| global(prefix));
            }
            (2, "router" | "network" | "stubnet", Subject::Router) => {
                let router = area.routers.last_mut().ok_or_else(fail)?;
                let cost = cost()?;
                if word == "router" {
                    router.point_to_point.push(PointToPoint {
                        neighbour: id()?,
                        address: None,
                        cost,
                    });
                    continue;
                }
                if word == "network" {
                    // Not `[id]`: a segment whose own LSA is missing.
                    router
                        .transit
                        .extend(segment_id(value).map(|segment| Transit {
                            segment,
                            address: None,
                            cost,
                        }));
                    continue;
                }
                let prefix = prefix(value).ok_or_else(fail)?;
                router
                    .stubs
                    .extend(global(prefix).map(|prefix| Stub { prefix, cost }));
            }
            // Virtual links, what comes from other areas and from outside.
            _ => {}
        }
    }
    Ok(own.map(|own| Database { own, areas }))
}

fn prefix(text: Option<&str>) -> Option<Prefix> {
    text?.parse().ok().map(Prefix::network)
}

/// Of link-local prefixes nothing can be made: on another link they are others.
fn global(prefix: Prefix) -> Option<Prefix> {
    Some(prefix).filter(|prefix| match prefix.address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    })
}

/// `10.65.9.0/24`, or in OSPFv3 `[10.65.2.1-4]`.
fn segment_id(text: Option<&str>) -> Option<SegmentId> {
    if let Some(prefix) = prefix(text) {
        return Some(SegmentId::Prefix(prefix));
    }
    let designated = text?.strip_prefix('[')?.strip_suffix(']')?;
    let (router, interface) = designated.split_once('-')?;
    Some(SegmentId::Designated {
        router: router.parse().ok()?,
        interface: interface.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    const STATE_OF_A: &str = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/ospf/bird-state.txt"
    ));

    #[test]
    fn routers_links_and_prefixes_are_read() {
        let database = parse(STATE_OF_A).unwrap().unwrap();
        assert_eq!(database.own, Ipv4Addr::new(10, 65, 2, 2));
        let [area] = &database.areas[..] else {
            panic!("one area")
        };
        assert_eq!(area.id, Ipv4Addr::UNSPECIFIED);
        let ids: Vec<u8> = area.routers.iter().map(|r| r.id.octets()[3]).collect();
        assert_eq!(ids, [1, 2, 3, 1, 2]);
        let link = |neighbour: [u8; 4], cost| PointToPoint {
            neighbour: neighbour.into(),
            address: None,
            cost,
        };
        let v = &area.routers[1];
        assert_eq!(
            v.point_to_point,
            [
                link([10, 65, 1, 1], 10),
                link([10, 65, 2, 1], 10),
                link([10, 65, 2, 2], 40)
            ]
        );
        let stub = |prefix: &str, cost| Stub {
            prefix: prefix.parse().unwrap(),
            cost,
        };
        assert_eq!(
            v.stubs,
            [
                stub("10.65.1.2/32", 0),
                stub("10.65.0.4/30", 10),
                stub("10.65.0.8/30", 10),
                stub("10.65.0.12/30", 40)
            ]
        );
        let prefix = "10.65.9.0/24".parse().unwrap();
        assert_eq!(
            v.transit,
            [Transit {
                segment: SegmentId::Prefix(prefix),
                address: None,
                cost: 100
            }]
        );
        let routers = [[10, 65, 2, 1], [10, 65, 1, 2], [10, 65, 1, 3]].map(Ipv4Addr::from);
        assert_eq!(
            area.segments,
            [NetworkLsa {
                id: SegmentId::Prefix(prefix),
                prefix: Some(prefix),
                routers: routers.into()
            }]
        );
    }

    #[test]
    fn of_ospf_v3_as_well() {
        let state = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/ospf/bird-six-state.txt"
        ));
        let database = parse(state).unwrap().unwrap();
        assert_eq!(database.own, Ipv4Addr::new(10, 65, 2, 2));
        let area = &database.areas[0];
        assert!(area.is_ipv6() && area.routers.len() == 5);
        let id = SegmentId::Designated {
            router: [10, 65, 2, 1].into(),
            interface: 4,
        };
        let [segment] = &area.segments[..] else {
            panic!("one segment")
        };
        assert_eq!((segment.id, segment.routers.len()), (id, 3));
        assert_eq!(segment.prefix, "fd65:0:0:9::/64".parse().ok());
        let v = &area.routers[1];
        assert_eq!((v.transit[0].segment, v.transit[0].cost), (id, 100));
        assert_eq!(v.point_to_point.len(), 3);
        assert_eq!(
            v.stubs.last().unwrap().prefix,
            "fd65:ffff::12/128".parse().unwrap()
        );
        // Link-local prefixes are passed over.
        let state = state.replace("fd65:0:0:9::/64", "fe80::/64");
        let state = state.replace("fd65:0:0:4::/64", "fe80::/64");
        let area = parse(&state).unwrap().unwrap().areas.remove(0);
        assert_eq!(area.segments[0].prefix, None);
        assert_eq!(area.routers[1].stubs.len(), v.stubs.len() - 1);
    }

    #[test]
    fn without_ospf_there_is_no_database() {
        for reply in ["0000 \n", "1016-\n area 0.0.0.0\n0000 \n"] {
            assert_eq!(parse(reply).unwrap(), None, "{reply}");
        }
        for reply in [
            "1016-\n area x\n0000 \n",
            "1016-\n area 0.0.0.0\n \trouter\n0000 \n",
            "1016-\n area 0.0.0.0\n \trouter 1.1.1.1\n \t\trouter 1.1.1.2 metric x\n0000 \n",
            "1016-\n area 0.0.0.0\n \trouter 1.1.1.1\n \t\tstubnet x metric 1\n0000 \n",
            "1016-\n area 0.0.0.0\n \tnetwork [1.1.1.1]\n0000 \n",
            "1016-\n area 0.0.0.0\n \tnetwork [1.1.1.1-2]\n \t\taddress x\n0000 \n",
        ] {
            assert!(
                parse(reply)
                    .unwrap_err()
                    .to_string()
                    .contains("cannot be read")
            );
        }
        assert!(parse("8003 No protocols match\n").is_err());
    }

    proptest! {
        #[test]
        fn mutated_replies_never_panic(text in mutated::text(STATE_OF_A)) {
            let _ = parse(&text);
        }
    }
}
