//! BIRD's `show ospf state` (proto/ospf/ospf.c, ospf_sh_state): the reachable part of the database. It tells no
//! router's address on a link, only the link's prefix.

use std::net::{IpAddr, Ipv4Addr};

use super::{lines, malformed};
use crate::config::Prefix;
use crate::ospf::lsdb::{Area, Database, NetworkLsa, PointToPoint, RouterLsa, Stub, Transit};

/// The lines of `show ospf state`.
const STATE: u16 = 1016;

/// What the lines at present are about.
enum Subject {
    Nothing,
    Router,
    Segment,
}

/// Reads a reply; `None` where it is not of OSPFv2, or of an instance without areas.
///
/// # Errors
/// A code other than that of the state's lines, or a line of them that cannot be read.
pub fn parse(reply: &str) -> anyhow::Result<Option<Database>> {
    let mut own = None;
    let mut areas: Vec<Area> = Vec::new();
    let mut subject = Subject::Nothing;
    let mut has_ipv6 = false;
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
                subject = Subject::Nothing;
                match prefix(value) {
                    Some(prefix) if prefix.address.is_ipv4() => {
                        area.segments.push(NetworkLsa {
                            prefix,
                            routers: Vec::new(),
                        });
                        subject = Subject::Segment;
                    }
                    Some(_) => has_ipv6 = true,
                    // `[id-number]`, of OSPFv3.
                    None => {}
                }
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
                match prefix(value) {
                    Some(prefix) if prefix.address.is_ipv6() => has_ipv6 = true,
                    Some(prefix) if word == "network" => router.transit.push(Transit {
                        prefix,
                        address: None,
                        cost,
                    }),
                    Some(prefix) => router.stubs.push(Stub { prefix, cost }),
                    // `[id]`: a segment whose own LSA is missing.
                    None if word == "network" => {}
                    None => return Err(fail()),
                }
            }
            // Virtual links, what comes from other areas and from outside.
            _ => {}
        }
    }
    Ok(own.filter(|_| !has_ipv6).map(|own| Database { own, areas }))
}

fn prefix(text: Option<&str>) -> Option<Prefix> {
    let prefix: Prefix = text?.parse().ok()?;
    // Of OSPFv3's link-local ones nothing can be made.
    Some(prefix.network()).filter(|prefix| match prefix.address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
                prefix,
                address: None,
                cost: 100
            }]
        );
        let routers = [[10, 65, 2, 1], [10, 65, 1, 2], [10, 65, 1, 3]].map(Ipv4Addr::from);
        assert_eq!(
            area.segments,
            [NetworkLsa {
                prefix,
                routers: routers.into()
            }]
        );
    }

    #[test]
    fn what_is_no_ospf_v2_has_no_database() {
        for reply in [
            "0000 \n",
            "1016-\n area 0.0.0.0\n0000 \n",
            "1016-\n area 0.0.0.0\n \trouter 1.1.1.1\n \t\tdistance 0\n \tnetwork fd00::/64\n0000 \n",
            "1016-\n area 0.0.0.0\n \trouter 1.1.1.1\n \t\tdistance 0\n \
             \t\tstubnet fd00::/64 metric 1\n0000 \n",
        ] {
            assert_eq!(parse(reply).unwrap(), None, "{reply}");
        }
        for reply in [
            "1016-\n area x\n0000 \n",
            "1016-\n area 0.0.0.0\n \trouter\n0000 \n",
            "1016-\n area 0.0.0.0\n \trouter 1.1.1.1\n \t\trouter 1.1.1.2 metric x\n0000 \n",
            "1016-\n area 0.0.0.0\n \trouter 1.1.1.1\n \t\tstubnet x metric 1\n0000 \n",
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
        fn mutated_replies_never_panic(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = STATE_OF_A.as_bytes().to_vec();
            for (at, value) in edits {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let _ = parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
