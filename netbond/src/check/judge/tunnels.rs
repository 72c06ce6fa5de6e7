//! WireGuard: what its peers admit, whether they answer, and how their packets leave.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::some;
use crate::check::{
    Finding, Kind, Severity,
    facts::{Facts, paths},
    plural,
};
use crate::config::{Bond, Config, Path, Prefix};
use crate::wireguard::{Device, Peer};

/// AllSPFRouters, to which OSPF's hellos go (RFC 2328, A.1).
const ALL_SPF_ROUTERS: IpAddr = IpAddr::V4(Ipv4Addr::new(224, 0, 0, 5));
/// The same of OSPFv3 (RFC 5340, A.1).
const ALL_SPF_ROUTERS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 5));

/// A session without a new handshake ends after 180 s (REJECT_AFTER_TIME of the WireGuard paper, 6.1),
/// and the next one may take some seconds.
const SESSION: Duration = Duration::from_secs(180 + 15);

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (bond, path) in paths(config) {
        let Some(name) = facts.device(path) else {
            continue;
        };
        let Some(device) = facts.wireguard.get(name) else {
            continue;
        };
        let of_path = |finding: Finding| finding.of_path(bond, path).of_device(name);
        findings.extend(allowed(config, facts, path, name, device).map(of_path));
        findings.extend(handshake(facts, bond, path, name).map(of_path));
        findings.extend(in_tunnel(config, facts, bond, path, name).map(of_path));
    }
    let mut seen = BTreeSet::new();
    for (bond, path) in paths(config) {
        if let Some(name) = facts.device(path)
            && seen.insert((&bond.name, name))
            && let Some(device) = facts.wireguard.get(name)
        {
            let finding = routed(config, facts, name, device);
            findings.extend(finding.map(|finding| finding.of_bond(bond).of_device(name)));
        }
    }
    findings
}

/// Whether the peers admit what the path and OSPF need.
fn allowed(
    config: &Config,
    facts: &Facts,
    path: &Path,
    name: &str,
    device: &Device,
) -> Option<Finding> {
    let mut needed = vec![(path.remote, "the path's remote")];
    if runs_ospf(config, facts, name) {
        let neighbours = neighbours(facts, name);
        let groups = groups(facts, path, name, &neighbours).into_iter();
        let groups = groups.map(|group| (group, "OSPF's hellos"));
        let neighbours = neighbours.into_iter();
        needed.extend(neighbours.map(|address| (address, "the OSPF neighbour")));
        needed.extend(groups);
    }
    let left_out: Vec<String> = needed
        .into_iter()
        .filter(|(address, _)| device.peer_for(*address).is_none())
        .map(|(address, why)| format!("{address} ({why})"))
        .collect();
    if left_out.is_empty() {
        return None;
    }
    let list = left_out.join(", ");
    let (what, remedy) = match &device.peers[..] {
        [] => (
            format!("{name} has no peer: WireGuard drops every packet"),
            format!(
                "give it one: `wg set {name} peer KEY endpoint ADDRESS:PORT allowed-ips 0.0.0.0/0,::/0`"
            ),
        ),
        [peer] => (
            format!(
                "AllowedIPs of {name} leave out {list}: WireGuard drops packets to and from there"
            ),
            format!(
                "OSPF routes over {name}, so let it admit all: AllowedIPs = 0.0.0.0/0, ::/0 with Table = off \
                 in its file, and now `wg set {name} peer {} allowed-ips 0.0.0.0/0,::/0`",
                peer.key()
            ),
        ),
        [..] => (
            format!(
                "AllowedIPs of no peer of {name} hold {list}: WireGuard drops packets to and from there"
            ),
            format!(
                "add them to AllowedIPs of the peer behind which they are; better, give each peer a device \
                 of its own, with AllowedIPs = 0.0.0.0/0, ::/0 and Table = off, as OSPF then decides alone \
                 (`wg show {name} allowed-ips`)"
            ),
        ),
    };
    Some(Finding::problem(Kind::AllowedIps, what, remedy))
}

/// Whether the peers admit what else OSPF routes over the device.
fn routed(config: &Config, facts: &Facts, name: &str, device: &Device) -> Option<Finding> {
    let ifindex = facts.host.by_name(name)?.ifindex;
    let over = facts.host.routes.iter().filter(|route| {
        config.route_protocols.contains(&route.protocol)
            && route.hops.iter().any(|hop| hop.ifindex == ifindex)
    });
    let left_out: BTreeSet<String> = over
        .filter(|route| !device.admits(route.to))
        .map(|route| route.to.to_string())
        .collect();
    if left_out.is_empty() || device.peers.is_empty() {
        return None;
    }
    Some(Finding::warning(
        Kind::AllowedIps,
        format!(
            "OSPF routes {} over {name}, but AllowedIPs of its peers leave them out: WireGuard drops these \
             packets",
            some(&Vec::from_iter(left_out))
        ),
        format!("let it admit all: AllowedIPs = 0.0.0.0/0, ::/0 with Table = off for {name}"),
    ))
}

/// Whether the daemons run OSPF on a device, as far as they tell; else whether there is one.
fn runs_ospf(config: &Config, facts: &Facts, device: &str) -> bool {
    match &facts.ospf {
        Some(interfaces) => interfaces.iter().any(|one| one.device == device),
        None => config.bird.is_some() || config.frr.is_some(),
    }
}

/// Addresses of the routers at the other end of a device: as OSPF hears them, or as its own addresses
/// tell.
fn neighbours(facts: &Facts, device: &str) -> BTreeSet<IpAddr> {
    let interfaces = facts.ospf.iter().flatten();
    let heard: BTreeSet<IpAddr> = interfaces
        .filter(|one| one.device == device)
        .flat_map(|one| one.neighbours.iter().map(|neighbour| neighbour.address))
        .collect();
    if !heard.is_empty() {
        return heard;
    }
    let Some(ifindex) = facts.host.by_name(device).map(|found| found.ifindex) else {
        return heard;
    };
    let addresses = facts.host.addresses.iter();
    addresses
        .filter(|address| address.ifindex == ifindex)
        .filter_map(|address| address.far.or_else(|| other_end(address.own)))
        .collect()
}

/// The groups to which hellos go; none where they evidently arrive, as those do that go to each neighbour
/// (nbma, ptmp).
fn groups(
    facts: &Facts,
    path: &Path,
    device: &str,
    neighbours: &BTreeSet<IpAddr>,
) -> BTreeSet<IpAddr> {
    let mut heard = facts
        .ospf
        .iter()
        .flatten()
        .filter(|one| one.device == device)
        .flat_map(|one| &one.neighbours);
    if heard.any(|neighbour| neighbour.state.eq_ignore_ascii_case("Full")) {
        return BTreeSet::new();
    }
    let group = |address: &IpAddr| match address {
        IpAddr::V4(_) => ALL_SPF_ROUTERS,
        IpAddr::V6(_) => ALL_SPF_ROUTERS_V6,
    };
    if neighbours.is_empty() {
        return BTreeSet::from([group(&path.remote)]);
    }
    neighbours.iter().map(group).collect()
}

/// The other address of an IPv4 subnet that has two.
fn other_end(own: Prefix) -> Option<IpAddr> {
    let (IpAddr::V4(address), IpAddr::V4(network)) = (own.address, own.network().address) else {
        return None;
    };
    let (own_bits, network) = (address.to_bits(), network.to_bits());
    let other = match own.length {
        31 => own_bits ^ 1,
        30 if own_bits == network + 1 => network + 2,
        30 if own_bits == network + 2 => network + 1,
        _ => return None,
    };
    Some(IpAddr::V4(Ipv4Addr::from_bits(other)))
}

/// Whether the WireGuard peer of a path answers, where it must.
fn handshake(facts: &Facts, bond: &Bond, path: &Path, name: &str) -> Option<Finding> {
    let (_, peer) = facts.peer(path)?;
    // Else the tunnel may only be idle.
    let busy = peer.keepalive.is_some() || bond.probing.is_some() && facts.readings(bond).is_some();
    let age = age(facts, peer);
    let recent = age.is_some_and(|age| age <= SESSION);
    if !busy || recent || facts.is_proven(bond, path) {
        return None;
    }
    let since = match age {
        Some(age) => format!("since {}", plural(age.as_secs(), "second")),
        None => "yet".to_owned(),
    };
    let (whom, remedy) = match peer.endpoint {
        Some(endpoint) => (
            endpoint.to_string(),
            format!(
                "is {endpoint} right, does a firewall pass its UDP, and has each end the other's public \
                 key? (`wg show {name}`; here the peer is {})",
                peer.key()
            ),
        ),
        None => (
            format!("peer {}", peer.key()),
            "no endpoint is set, and the peer has not called: set Endpoint at one end at least"
                .to_owned(),
        ),
    };
    Some(Finding::problem(
        Kind::Handshake,
        format!("no WireGuard handshake with {whom} on {name} {since}: nothing passes"),
        remedy,
    ))
}

/// How long ago the last handshake was.
fn age(facts: &Facts, peer: &Peer) -> Option<Duration> {
    let last = peer.last_handshake?;
    // The clock may have been set back.
    Some(facts.now.duration_since(last).unwrap_or_default())
}

/// Whether the encrypted packets of a path's tunnel go into a tunnel. As far as this network namespace
/// tells: those of a device that was moved here leave by that in which it was created.
fn in_tunnel(
    config: &Config,
    facts: &Facts,
    bond: &Bond,
    path: &Path,
    name: &str,
) -> Option<Finding> {
    let (device, peer) = facts.peer(path)?;
    let route = facts.underlay(device, peer)?;
    let tunnels = |name: &String| {
        facts.wireguard.contains_key(name) || config.bonds.iter().any(|bond| bond.name == *name)
    };
    let hops = route.next_hops.iter();
    let over = hops
        .map(|hop| facts.host.name_of(hop.ifindex))
        .find(tunnels)?;
    let endpoint = peer.endpoint?.ip();
    let (address, length) = route.prefix;
    let prefix = Prefix { address, length };
    let passes = facts.is_proven(bond, path) || age(facts, peer).is_some_and(|age| age <= SESSION);
    let severity = if passes {
        Severity::Warning
    } else {
        Severity::Problem
    };
    Some(Finding::new(
        Kind::EndpointInTunnel,
        severity,
        format!(
            "the encrypted packets of {name}, to {endpoint}, are routed over {over} (by {prefix}): a tunnel \
             in a tunnel"
        ),
        format!(
            "keep {prefix} out of OSPF on the tunnels, or give {endpoint} a more specific route over the \
             underlay; with wg-quick set Table = off"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::sample;
    use crate::control::event::NextHop;
    use crate::status::Proof;

    fn found(facts: &Facts) -> Vec<Finding> {
        judge(&sample::config(), facts)
    }

    fn admit(facts: &mut Facts, allowed: &[&str]) {
        let device = facts.wireguard.get_mut("wg-a-m1").unwrap();
        device.peers[0].allowed = allowed.iter().map(|text| text.parse().unwrap()).collect();
    }

    fn set_state(facts: &mut Facts, state: &str) {
        let interface = &mut facts.ospf.as_mut().unwrap()[0];
        state.clone_into(&mut interface.neighbours[0].state);
    }

    /// via-m1 as its probes prove it, or not.
    fn prove(facts: &mut Facts, fresh: bool) {
        let crate::check::facts::Controller::Runs(readings) = &mut facts.controller else {
            panic!("it runs");
        };
        readings.1.bonds[0].paths[0].proof = Some(Proof {
            age_ms: None,
            limit_ms: 30.0,
            fresh,
        });
    }

    #[test]
    fn hellos_go_to_the_group_of_the_neighbours_family() {
        let mut facts = sample::facts();
        admit(&mut facts, &["10.65.0.0/16"]);
        // Full: as hellos arrive, they go to no group.
        assert_eq!(found(&facts), []);
        set_state(&mut facts, "Init");
        let left_out = |facts: &Facts| found(facts).remove(0).what;
        assert!(left_out(&facts).contains("leave out 224.0.0.5 ("));
        let neighbour = &mut facts.ospf.as_mut().unwrap()[0].neighbours[0];
        neighbour.address = "fe80::1".parse().unwrap();
        let what = left_out(&facts);
        assert!(
            what.contains("fe80::1 (") && what.contains("ff02::5 ("),
            "{what}"
        );
        assert!(!what.contains("224.0.0.5"), "{what}");
    }

    #[test]
    fn what_allowed_ips_leave_out() {
        let mut facts = sample::facts();
        admit(
            &mut facts,
            &["10.65.0.0/30", "224.0.0.5/32", "10.65.0.4/30"],
        );
        let findings = found(&facts);
        // What OSPF routes beyond the path.
        let [routed] = &findings[..] else {
            panic!("{findings:#?}");
        };
        assert_eq!(routed.severity, Severity::Warning);
        assert!(routed.what.contains("10.65.2.1/32"), "{routed:#?}");

        admit(&mut facts, &["10.65.0.0/30", "10.65.2.1/32"]);
        set_state(&mut facts, "Init");
        let findings = found(&facts);
        let [path, routed] = &findings[..] else {
            panic!("{findings:#?}");
        };
        assert_eq!(path.path.as_deref(), Some("via-m1"));
        assert_eq!(path.severity, Severity::Problem);
        for part in ["10.65.0.6 (", "224.0.0.5"] {
            assert!(path.what.contains(part), "{path:#?}");
        }
        assert!(!path.what.contains("10.65.0.1 "), "{path:#?}");
        assert!(path.remedy.contains("wg set wg-a-m1 peer "), "{path:#?}");
        assert!(routed.what.contains("10.65.0.4/30"), "{routed:#?}");

        // Nobody is heard then: the device's own address tells.
        facts.ospf.as_mut().unwrap()[0].neighbours.clear();
        admit(&mut facts, &["10.65.0.4/30", "10.65.2.1/32"]);
        let [path, ..] = &found(&facts)[..] else {
            panic!("a finding");
        };
        assert!(path.what.contains("10.65.0.1 "), "{path:#?}");

        facts.wireguard.get_mut("wg-a-m1").unwrap().peers.clear();
        let [none] = &found(&facts)[..] else {
            panic!("a finding");
        };
        assert!(none.what.contains("no peer"), "{none:#?}");
    }

    #[test]
    fn a_peer_that_does_not_answer() {
        let mut facts = sample::facts();
        let peer = |facts: &mut Facts, age: Option<u64>, keepalive| {
            let last = age.map(|age| facts.now - Duration::from_secs(age));
            let peer = &mut facts.wireguard.get_mut("wg-a-m1").unwrap().peers[0];
            (peer.last_handshake, peer.keepalive) = (last, keepalive);
        };
        for (age, wrong) in [(Some(120), false), (Some(600), true), (None, true)] {
            peer(&mut facts, age, None);
            prove(&mut facts, false);
            assert_eq!(found(&facts).len(), usize::from(wrong), "{age:?}");
            prove(&mut facts, true);
            assert_eq!(found(&facts), [], "{age:?}");
        }
        // Without probes it may be idle.
        facts.controller = crate::check::facts::Controller::None;
        assert_eq!(found(&facts), []);
        peer(&mut facts, Some(600), Some(25));
        assert_eq!(found(&facts)[0].kind, Kind::Handshake);
    }

    #[test]
    fn an_endpoint_behind_a_tunnel() {
        let mut facts = sample::facts();
        let endpoint = IpAddr::from([192, 0, 2, 2]);
        let over = facts.host.by_name("wg-a-m2").unwrap().ifindex;
        let route = facts.ways.get_mut(&(endpoint, 0)).unwrap();
        route.as_mut().unwrap().next_hops = vec![NextHop {
            ifindex: over,
            gateway: None,
        }];
        let findings = found(&facts);
        assert_eq!(findings.len(), 1, "{findings:#?}");
        assert_eq!(findings[0].kind, Kind::EndpointInTunnel);
        assert_eq!(findings[0].path.as_deref(), Some("via-m1"));
        assert!(findings[0].what.contains("over wg-a-m2"), "{findings:#?}");
        // It passes, so perhaps by another network namespace.
        assert_eq!(findings[0].severity, Severity::Warning);
        prove(&mut facts, false);
        assert_eq!(found(&facts)[0].severity, Severity::Warning);
        let peer = &mut facts.wireguard.get_mut("wg-a-m1").unwrap().peers[0];
        peer.last_handshake = None;
        let findings = found(&facts);
        let nested = |finding: &&Finding| finding.kind == Kind::EndpointInTunnel;
        let nested = findings.iter().find(nested).unwrap();
        assert_eq!(nested.severity, Severity::Problem);
    }

    #[test]
    fn the_other_end_of_small_subnets() {
        for (own, other) in [
            ("10.65.0.2/30", Some([10, 65, 0, 1])),
            ("10.65.0.1/30", Some([10, 65, 0, 2])),
            ("10.65.0.2/31", Some([10, 65, 0, 3])),
            ("10.65.0.3/30", None),
            ("10.65.0.1/24", None),
            ("fd00::1/127", None),
        ] {
            assert_eq!(
                other_end(own.parse().unwrap()),
                other.map(IpAddr::from),
                "{own}"
            );
        }
    }
}
