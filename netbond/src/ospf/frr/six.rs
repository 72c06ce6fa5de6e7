//! FRR's OSPFv3 (ospf6d/ospf6_neighbor.c, ospf6d/ospf6_interface.c; FRR 8.4 and later).

pub mod database;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, anyhow};
use serde::Deserialize;

use crate::control::event::{OspfInterface, OspfNeighbour};
use crate::ospf::lsdb::Instance;
use crate::ospf::{entry, state};

/// Without `detail` neighbours have no address.
const NEIGHBOURS_AND_INTERFACES: [&str; 2] = [
    "show ipv6 ospf6 neighbor detail json",
    "show ipv6 ospf6 interface json",
];

/// All OSPFv3 interfaces of the default VRF.
///
/// # Errors
/// The command fails, or its output cannot be read.
pub(in crate::ospf) async fn interfaces(vtysh: &[String]) -> anyhow::Result<Vec<OspfInterface>> {
    parse(&super::run(vtysh, &NEIGHBOURS_AND_INTERFACES).await?)
}

/// OSPFv3 of the default VRF, with its link-state database; `None` where it is not configured.
///
/// # Errors
/// The command fails, or its output cannot be read.
pub(in crate::ospf) async fn instance(vtysh: &[String]) -> anyhow::Result<Option<Instance>> {
    let output = super::run(vtysh, &database::COMMANDS).await?;
    let Some(database) = database::parse(&output)? else {
        return Ok(None);
    };
    let interfaces = interfaces(vtysh).await?;
    Ok(Some(Instance {
        database,
        interfaces,
    }))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Neighbour {
    interface: String,
    link_local_address: IpAddr,
    neighbor_state: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    /// Whether OSPFv3 runs on it: devices are listed on which it does not.
    #[serde(default)]
    attached_to_area: bool,
    cost: Option<u32>,
}

/// Reads the outputs of both commands, one after the other.
///
/// # Errors
/// What is no JSON, or not of OSPFv3's neighbours and interfaces.
pub fn parse(output: &str) -> anyhow::Result<Vec<OspfInterface>> {
    // vtysh exits with 0 also where ospf6d does not know a command and answers with a line of text.
    let mut documents = serde_json::Deserializer::from_str(output);
    let [first, second] = NEIGHBOURS_AND_INTERFACES;
    // By router id and device: `10.65.1.1%wg-a-m1`.
    let neighbours = BTreeMap::<String, Neighbour>::deserialize(&mut documents)
        .with_context(|| format!("'{first}' cannot be read"))?;
    let interfaces = BTreeMap::<String, Interface>::deserialize(&mut documents)
        .with_context(|| format!("'{second}' cannot be read"))?;
    documents
        .end()
        .with_context(|| format!("text after '{second}'"))?;

    let mut all: Vec<OspfInterface> = interfaces
        .into_iter()
        .filter(|(_, interface)| interface.attached_to_area)
        .map(|(device, interface)| OspfInterface {
            device,
            cost: interface.cost,
            neighbours: Vec::new(),
        })
        .collect();
    for (name, neighbour) in neighbours {
        let router_id: Ipv4Addr = name
            .split('%')
            .next()
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| anyhow!("'{first}' cannot be read: {name:?} has no router id"))?;
        entry(&mut all, &neighbour.interface)
            .neighbours
            .push(OspfNeighbour {
                router_id,
                address: neighbour.link_local_address,
                state: state(&neighbour.neighbor_state),
            });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    macro_rules! fixture {
        ($name:literal) => {
            include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/fixtures/ospf/frr-six-",
                $name
            ))
        };
    }

    #[test]
    fn adjacencies_are_read() {
        let [lo, device] = &parse(fixture!("full.txt")).unwrap()[..] else {
            panic!("two interfaces");
        };
        assert_eq!((lo.device.as_str(), lo.neighbours.len()), ("lo", 0));
        assert_eq!((device.device.as_str(), device.cost), ("v6fa", Some(25)));
        let [neighbour] = &device.neighbours[..] else {
            panic!("{device:?}");
        };
        assert_eq!(neighbour.router_id, Ipv4Addr::new(10, 65, 2, 2));
        assert!(neighbour.address.is_ipv6());
        assert_eq!(neighbour.state, "Full");
        let lost = &parse(fixture!("lost.txt")).unwrap()[1];
        assert_eq!(lost.neighbours, []);
        assert_eq!(parse("{}\n{}\n").unwrap(), []);
    }

    #[test]
    fn other_output_is_an_error() {
        let full = fixture!("full.txt");
        let half = &full[..full.len() / 2];
        let nameless = full.replacen("10.65.2.2%", "x%", 1);
        for output in ["", "{}", "% Unknown command", "{}{}x", half, &nameless] {
            assert!(parse(output).is_err(), "{output:?}");
        }
    }

    proptest! {
        #[test]
        fn mutated_output_never_panics(text in mutated::text(fixture!("full.txt"))) {
            let _ = parse(&text);
        }
    }
}
