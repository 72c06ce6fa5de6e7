//! OSPF neighbours on the paths' devices.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::check::{
    Finding, Kind,
    facts::{Facts, paths},
};
use crate::config::{Config, default_route_protocols};
use crate::control::event::{OspfInterface, OspfNeighbour};

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let silent = facts.ospf_silent.iter();
    let mut findings: Vec<Finding> = silent
        .map(|(what, advice)| Finding::warning(Kind::OspfDaemon, what.as_str(), *advice))
        .collect();
    let Some(interfaces) = &facts.ospf else {
        return findings;
    };
    let mut seen = BTreeSet::new();
    for (bond, path) in paths(config) {
        let is_ospf = |protocol: u8| default_route_protocols().any(|known| known == protocol);
        let way = facts.way(path);
        // A route that the user lets count, and that no OSPF makes, needs no neighbour.
        let by_other = way.is_some_and(|route| {
            config.route_protocols.contains(&route.protocol) && !is_ospf(route.protocol)
        });
        let routed = way.is_some_and(|route| is_ospf(route.protocol));
        if let Some(device) = facts.device(path)
            && !by_other
            && seen.insert((&bond.name, device, path.remote.is_ipv6()))
            && let Some((what, remedy)) = neighbour(interfaces, device, path.remote, routed)
        {
            let finding = Finding::problem(Kind::OspfNeighbour, what, remedy);
            findings.push(finding.of_path(bond, path).of_device(device));
        }
    }
    findings
}

/// What is wrong with OSPF on the device of a path with this outer address, and what to do; `routed` where OSPF makes
/// the route there.
fn neighbour(
    interfaces: &[OspfInterface],
    device: &str,
    outer: IpAddr,
    routed: bool,
) -> Option<(String, String)> {
    let version = if outer.is_ipv6() { "OSPFv3" } else { "OSPF" };
    // Of several instances on a device one does.
    let on_device: Vec<&OspfInterface> = interfaces
        .iter()
        .filter(|interface| interface.device == device)
        .collect();
    if on_device.is_empty() {
        return Some((
            format!("{version} does not run on {device}"),
            format!("name {device} in the daemon's OSPF area, type ptp"),
        ));
    }
    let all = || on_device.iter().flat_map(|one| &one.neighbours);
    // Those of version 2 have addresses of IPv4, of version 3 of IPv6. That may make routes of IPv4 as well (RFC 5838).
    let of_version = |neighbour: &&OspfNeighbour| neighbour.address.is_ipv6() == outer.is_ipv6();
    let by_other_version = routed && !all().any(|neighbour| of_version(&neighbour));
    let neighbours = || all().filter(|neighbour| by_other_version || of_version(neighbour));
    let Some(first) = neighbours().next() else {
        return Some((
            format!("no {version} neighbour on {device}"),
            format!(
                "does the other end run OSPF with the same area, hello and dead interval, authentication and \
                 subnet, and do its packets arrive? (`tcpdump -ni {device} proto 89`; AllowedIPs must hold \
                 224.0.0.5, of OSPFv3 ff02::5, and its address)"
            ),
        ));
    };
    if neighbours().any(|neighbour| neighbour.state.eq_ignore_ascii_case("Full")) {
        return None;
    }
    let remedy = match first.state.to_ascii_lowercase().as_str() {
        "init" => {
            "it is heard and does not hear us: look at AllowedIPs and the firewall at the other end"
        }
        "2-way" => "take type ptp at both ends: a tunnel has no designated router",
        "exstart" | "exchange" | "loading" => {
            "where it stays so, the MTU of the two ends differs, or large packets are lost: give both \
             WireGuard devices the same"
        }
        _ => "look at it again in some seconds, then at the daemons' logs at both ends",
    };
    let (id, state) = (first.router_id, &first.state);
    Some((
        format!("{version} neighbour {id} on {device} is {state}, not Full"),
        remedy.to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::sample;

    fn only(change: impl FnOnce(&mut Facts)) -> Finding {
        sample::only(&sample::found(judge, change))
    }

    #[test]
    fn neighbours_that_are_not_full() {
        fn interfaces(facts: &mut Facts) -> &mut Vec<OspfInterface> {
            facts.ospf.as_mut().unwrap()
        }
        for (state, remedy) in [
            ("Init", "does not hear us"),
            ("ExStart", "MTU"),
            ("2-Way", "ptp"),
            ("Down", "again"),
        ] {
            let one = only(|facts| state.clone_into(&mut interfaces(facts)[0].neighbours[0].state));
            assert_eq!(one.path.as_deref(), Some("via-m1"));
            assert!(
                one.what.contains(state) && one.remedy.contains(remedy),
                "{one:#?}"
            );
        }
        let none = only(|facts| interfaces(facts)[1].neighbours.clear());
        assert_eq!(none.path.as_deref(), Some("via-m2"));
        assert!(
            none.what.contains("no OSPF neighbour on wg-a-m2"),
            "{none:#?}"
        );
        let absent = only(|facts| {
            interfaces(facts).remove(0);
        });
        assert!(
            absent.what.contains("does not run on wg-a-m1"),
            "{absent:#?}"
        );
    }

    /// A path over IPv6 has no use for a neighbour of version 2.
    #[test]
    fn each_version_has_its_own_neighbours() {
        let neighbour = |address: &str, state: &str| OspfNeighbour {
            router_id: [10, 65, 1, 1].into(),
            address: address.parse().unwrap(),
            state: state.to_owned(),
        };
        let interface = |neighbours| OspfInterface {
            device: "e0".to_owned(),
            cost: None,
            neighbours,
        };
        let (four, six) = ("10.65.0.1".parse().unwrap(), "fd65::1".parse().unwrap());
        let full = interface(vec![neighbour("10.65.0.1", "Full")]);
        let says = |interfaces: &[OspfInterface], outer, routed| {
            super::neighbour(interfaces, "e0", outer, routed).map(|(what, _)| what)
        };
        let both = [full.clone(), interface(vec![neighbour("fe80::1", "Init")])];
        assert_eq!(says(&both, four, false), None);
        let init = "OSPFv3 neighbour 10.65.1.1 on e0 is Init, not Full";
        assert_eq!(says(&both, six, true).as_deref(), Some(init));
        let alone = [full, interface(Vec::new())];
        assert_eq!(
            says(&alone, six, false).as_deref(),
            Some("no OSPFv3 neighbour on e0")
        );
        // Version 3 makes the routes of IPv4, too.
        let three = [interface(vec![neighbour("fe80::1", "Full")])];
        assert_eq!(says(&three, four, true), None);
        assert_eq!(
            says(&three, four, false).as_deref(),
            Some("no OSPF neighbour on e0")
        );
    }

    #[test]
    fn what_the_user_routes_needs_no_neighbour() {
        let text = format!(
            "route_protocols = [\"bird\", \"static\"]\n{}",
            sample::CONFIG
        );
        let config = Config::parse(&text, "f").unwrap();
        let mut facts = sample::facts();
        facts.ospf.as_mut().unwrap().remove(0);
        assert_eq!(judge(&config, &facts).len(), 1);
        let remote = config.bonds[0].paths[0].remote;
        let way = facts.ways.get_mut(&(remote, 0)).unwrap();
        way.as_mut().unwrap().protocol = libc::RTPROT_STATIC;
        assert_eq!(judge(&config, &facts), []);
    }

    #[test]
    fn a_daemon_that_does_not_answer() {
        let one = only(|facts| {
            facts.ospf = None;
            facts.ospf_silent = vec![("BIRD at x does not tell".to_owned(), "start it")];
        });
        assert_eq!((one.kind, one.bond), (Kind::OspfDaemon, None));
    }
}
