//! What paths of a bond have in common, so that they fail together.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::check::{Finding, Kind, facts::Facts};
use crate::config::{Bond, Config, Path};

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    config
        .bonds
        .iter()
        .flat_map(|bond| shared(facts, bond))
        .collect()
}

/// The first thing that paths have in common, on the way from here.
fn shared(facts: &Facts, bond: &Bond) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (by, names) in groups(bond, |path| router(facts, path)) {
        findings.push(Finding::warning(
            Kind::SharedNextHop,
            format!("{names} lead over the same router {by}: they fail together"),
            "give each path a WireGuard tunnel over a middle router of its own",
        ));
    }
    if findings.is_empty() {
        for (by, names) in groups(bond, |path| endpoint(facts, path)) {
            findings.push(Finding::warning(
                Kind::SharedEndpoint,
                format!("the tunnels of {names} end at the same address {by}: they fail together"),
                "give each path a WireGuard peer on a host of its own",
            ));
        }
    }
    if findings.is_empty() {
        for (by, names) in groups(bond, |path| uplink(facts, path)) {
            findings.push(Finding::note(
                Kind::SharedUnderlay,
                format!("the encrypted packets of {names} leave over the same {by}: they fail with it, and share its rate"),
                "where there is another uplink, route one of the WireGuard endpoints over it",
            ));
        }
    }
    findings
        .into_iter()
        .map(|finding| finding.of_bond(bond))
        .collect()
}

/// Paths with the same key, where there are several.
fn groups<K: Ord>(bond: &Bond, key: impl Fn(&Path) -> Option<K>) -> Vec<(K, String)> {
    let mut groups: BTreeMap<K, Vec<&str>> = BTreeMap::new();
    for path in &bond.paths {
        if let Some(key) = key(path) {
            groups.entry(key).or_default().push(&path.name);
        }
    }
    let several = groups.into_iter().filter(|(_, names)| names.len() > 1);
    several
        .map(|(key, names)| (key, names.join(" and ")))
        .collect()
}

/// The router behind a path's own device: its OSPF router id, or the next hop's address.
fn router(facts: &Facts, path: &Path) -> Option<IpAddr> {
    let device = facts.device(path)?;
    let ifindex = facts.host.by_name(device)?.ifindex;
    let hops = &facts.way(path)?.next_hops;
    let gateway = hops.iter().find(|hop| hop.ifindex == ifindex)?.gateway?;
    let interfaces = facts.ospf.iter().flatten();
    let mut neighbours = interfaces
        .filter(|interface| interface.device == device)
        .flat_map(|interface| &interface.neighbours);
    let neighbour = neighbours.find(|neighbour| neighbour.address == gateway);
    Some(neighbour.map_or(gateway, |neighbour| neighbour.router_id.into()))
}

/// Where a path's tunnel ends.
fn endpoint(facts: &Facts, path: &Path) -> Option<IpAddr> {
    let (_, peer) = facts.peer(path)?;
    Some(peer.endpoint?.ip())
}

/// The device that a path's encrypted packets leave by.
fn uplink(facts: &Facts, path: &Path) -> Option<String> {
    let (device, peer) = facts.peer(path)?;
    let hop = facts.underlay(device, peer)?.next_hops.first()?;
    let name = facts.host.name_of(hop.ifindex);
    // That has a finding of its own.
    (!facts.wireguard.contains_key(&name)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Severity, sample};

    fn only(change: impl FnOnce(&mut Facts)) -> Finding {
        let one = sample::only(&sample::found(judge, change));
        assert!(one.what.contains("via-m1 and via-m2"), "{one:#?}");
        one
    }

    fn to_m1(facts: &mut Facts) {
        let endpoint = facts.wireguard["wg-a-m1"].peers[0].endpoint;
        facts.wireguard.get_mut("wg-a-m2").unwrap().peers[0].endpoint = endpoint;
    }

    #[test]
    fn what_fails_together() {
        let router = only(|facts| {
            // With what follows from it.
            to_m1(facts);
            let interfaces = facts.ospf.as_mut().unwrap();
            interfaces[1].neighbours[0].router_id = [10, 65, 1, 1].into();
        });
        assert_eq!(
            (router.kind, router.severity),
            (Kind::SharedNextHop, Severity::Warning)
        );
        assert!(router.what.contains("10.65.1.1"), "{router:#?}");
        let endpoint = only(to_m1);
        assert_eq!(
            (endpoint.kind, endpoint.severity),
            (Kind::SharedEndpoint, Severity::Warning)
        );
        let uplink = only(|facts| {
            let way = facts.ways.get_mut(&([192, 0, 2, 14].into(), 0)).unwrap();
            way.as_mut().unwrap().next_hops[0].ifindex = 5;
        });
        assert_eq!(
            (uplink.kind, uplink.severity),
            (Kind::SharedUnderlay, Severity::Note)
        );
        assert!(uplink.what.contains("u-a-m1"), "{uplink:#?}");
    }
}
