//! Routes: whether OSPF leads to each path's remote address over its device, and what overrides it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::some;
use crate::check::{
    Finding, Kind,
    facts::{Facts, paths},
};
use crate::config::{Bond, Config, DetourPolicy, Path, Prefix};
use crate::control::{event::Route, state::protocol_name};
use crate::migrate;

const MAIN: u32 = libc::RT_TABLE_MAIN as u32;

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (bond, path) in paths(config) {
        let finding = remote(config, facts, bond, path);
        findings.extend(finding.map(|finding| finding.of_path(bond, path)));
    }
    for bond in &config.bonds {
        findings.extend(peer(config, facts, bond).map(|finding| finding.of_bond(bond)));
    }
    findings.extend(rules(config, facts));
    findings.extend(shadows(config, facts));
    findings
}

/// The route to a path's remote address.
fn remote(config: &Config, facts: &Facts, bond: &Bond, path: &Path) -> Option<Finding> {
    let Path { remote, .. } = path;
    let found = facts.ways.get(&(*remote, 0))?;
    let advice = "does the peer announce it in OSPF, and are the neighbours Full? (`birdc show route for \
                  ADDRESS`, `vtysh -c 'show ip route ADDRESS'`)";
    let advice = advice.replace("ADDRESS", &remote.to_string());
    let Some(route) = found else {
        let what = format!("no route leads to remote {remote}");
        return Some(Finding::problem(Kind::NoRoute, what, advice));
    };
    let prefix = prefix(route);
    if !route.usable || route.next_hops.is_empty() {
        let what =
            format!("the route {prefix} to remote {remote} drops packets, or its device is down");
        return Some(Finding::problem(Kind::NoRoute, what, advice));
    }
    let devices: Vec<String> = route
        .next_hops
        .iter()
        .map(|hop| facts.host.name_of(hop.ifindex))
        .collect();
    let over = devices.join(", ");
    if !config.route_protocols.contains(&route.protocol) {
        let protocol = protocol_name(route.protocol);
        let gateway = route.next_hops.iter().any(|hop| hop.gateway.is_some());
        let wireguard = devices
            .iter()
            .any(|name| facts.wireguard.contains_key(name));
        if by_hand(route.protocol) && !gateway && wireguard {
            return Some(
                Finding::problem(
                    Kind::TableOff,
                    format!(
                        "the route {prefix} dev {over} by {protocol} stands before OSPF's to remote \
                         {remote}: wg-quick makes such routes of AllowedIPs"
                    ),
                    format!(
                        "set Table = off (systemd-networkd: RouteTable=off) for {over}, and now `ip route del \
                         {prefix} dev {over}`"
                    ),
                )
                .of_device(&devices[0]),
            );
        }
        let wanted = config.route_protocols.iter();
        let wanted: Vec<String> = wanted.map(|&number| protocol_name(number)).collect();
        return Some(Finding::problem(
            Kind::RouteNotOspf,
            format!(
                "remote {remote} is not learned by OSPF: the route is {prefix} dev {over} by {protocol}, and \
                 those of {} count",
                wanted.join(", ")
            ),
            format!("{advice}; where the route is meant so, add \"{protocol}\" to route_protocols"),
        ));
    }
    let own = off_route(facts, path)?;
    let what = format!("OSPF leads to remote {remote} over {over}, and not over {own}");
    let remedy = format!(
        "is the OSPF neighbour on {own} Full, and its cost not higher than that of the way round?"
    );
    let finding = match bond.detour {
        DetourPolicy::Use => Finding::note(
            Kind::Detour,
            format!("{what}; it is used all the same (detour = \"use\")"),
            format!("nothing, where that is meant; else: {remedy}"),
        ),
        DetourPolicy::Avoid => Finding::warning(Kind::Detour, what, remedy),
    };
    Some(finding.of_device(own))
}

/// The device of a path, where the route to its remote address leads over others only.
pub(super) fn off_route<'f>(facts: &'f Facts, path: &Path) -> Option<&'f str> {
    let own = facts.device(path)?;
    let mut hops = facts.way(path)?.next_hops.iter();
    hops.all(|hop| facts.host.name_of(hop.ifindex) != own)
        .then_some(own)
}

/// Whether who made a route is a script or a person, and no routing protocol.
fn by_hand(protocol: u8) -> bool {
    [libc::RTPROT_BOOT, libc::RTPROT_STATIC].contains(&protocol)
}

fn prefix(route: &Route) -> Prefix {
    let (address, length) = route.prefix;
    Prefix { address, length }
}

/// The route to the peer's own prefix, as the controller wants it.
fn peer(config: &Config, facts: &Facts, bond: &Bond) -> Option<Finding> {
    let peer = bond.peer?;
    let found = facts.ways.get(&(peer.address, 0))?;
    let good = found.as_ref().is_some_and(|route| {
        route.usable
            && config.route_protocols.contains(&route.protocol)
            && route.prefix.1 >= peer.length
    });
    if good {
        return None;
    }
    let found = found.as_ref().map_or_else(
        || "no route leads there".to_owned(),
        |route| {
            let protocol = protocol_name(route.protocol);
            format!("the route there is {} by {protocol}", prefix(route))
        },
    );
    Some(Finding::problem(
        Kind::PeerRoute,
        format!("the peer's own prefix {peer} is not learned by OSPF: {found}"),
        "announce it in OSPF at the peer, such as by a stub interface lo with this address, or correct `peer`",
    ))
}

/// Rules by which everything without WireGuard's mark goes into a tunnel, as wg-quick makes them of
/// AllowedIPs = 0.0.0.0/0.
fn rules(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = BTreeMap::new();
    for rule in &facts.rules {
        let Some(mark) = rule.mark.filter(|_| rule.inverted && !rule.selective) else {
            continue;
        };
        // All that is not taken elsewhere looks into the main table anyhow.
        if rule.table == MAIN {
            continue;
        }
        let family = |to: Prefix| match to.address {
            IpAddr::V4(_) => libc::AF_INET,
            IpAddr::V6(_) => libc::AF_INET6,
        };
        let by_wg_quick = |route: &&migrate::Route| {
            route.table == rule.table
                && i32::from(rule.family) == family(route.to)
                && by_hand(route.protocol)
                && route.hops.iter().all(|hop| hop.gateway.is_none())
        };
        for (bond, path) in paths(config) {
            let Some(device) = facts.device(path) else {
                continue;
            };
            let Some(route) = over(facts, device).find(by_wg_quick) else {
                continue;
            };
            let (table, to) = (rule.table, route.to);
            let ip = if to.address.is_ipv6() { "ip -6" } else { "ip" };
            let finding = Finding::problem(
                Kind::TableOff,
                format!(
                    "rule {}: whatever has not mark {mark:#x} looks into table {table}, where {to} leads over \
                     {device}, encrypted packets of other tunnels too: wg-quick makes such rules of AllowedIPs",
                    rule.priority
                ),
                format!(
                    "set Table = off in the file of {device} and take it down and up; by hand: `{ip} rule \
                     del not fwmark {mark:#x} table {table}` and `{ip} route del {to} dev {device} table {table}`"
                ),
            );
            findings
                .entry((rule.family, table, device))
                .or_insert_with(|| finding.of_bond(bond).of_device(device));
        }
    }
    findings.into_values().collect()
}

/// The routes over a device.
fn over<'a>(facts: &'a Facts, device: &str) -> impl Iterator<Item = &'a migrate::Route> {
    let ifindex = facts.host.by_name(device).map(|found| found.ifindex);
    facts.host.routes.iter().filter(move |route| {
        let mut hops = route.hops.iter();
        hops.any(|hop| Some(hop.ifindex) == ifindex)
    })
}

/// Routes like wg-quick's that stand before others of OSPF's than those to the paths' remote addresses.
fn shadows(config: &Config, facts: &Facts) -> Vec<Finding> {
    let ospf: Vec<Prefix> = facts
        .host
        .routes
        .iter()
        .filter(|route| route.table == MAIN && config.route_protocols.contains(&route.protocol))
        .map(|route| route.to)
        .collect();
    let to_remote = |to: Prefix| {
        paths(config).any(|(_, path)| {
            let best = facts.way(path).map(prefix);
            best == Some(to)
        })
    };
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for (bond, path) in paths(config) {
        let Some(device) = facts.device(path) else {
            continue;
        };
        if !facts.wireguard.contains_key(device) || !seen.insert(device) {
            continue;
        }
        let shadows: Vec<String> = over(facts, device)
            .filter(|route| route.table == MAIN && route.protocol == libc::RTPROT_BOOT)
            .filter(|route| !config.route_protocols.contains(&route.protocol))
            .filter(|route| route.hops.iter().all(|hop| hop.gateway.is_none()))
            .map(|route| route.to)
            .filter(|&to| !to_remote(to))
            .filter(|to| {
                let mut ospf = ospf.iter();
                ospf.any(|known| known.length <= to.length && known.holds(to.address))
            })
            .map(|to| to.to_string())
            .collect();
        if shadows.is_empty() {
            continue;
        }
        let finding = Finding::warning(
            Kind::TableOff,
            format!(
                "routes made by hand or by wg-quick stand before OSPF's: {} dev {device}",
                some(&shadows)
            ),
            format!(
                "set Table = off for {device}, and now `ip route del {} dev {device}`",
                shadows[0]
            ),
        );
        findings.push(finding.of_bond(bond).of_device(device));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Severity, sample};
    use crate::control::event::NextHop;
    use crate::netlink::rule::Rule;

    fn found(facts: &Facts) -> Vec<Finding> {
        judge(&sample::config(), facts)
    }

    fn only(facts: &Facts) -> Finding {
        sample::only(&found(facts))
    }

    /// Changes the route to the remote address of via-m1.
    fn with_way(change: impl FnOnce(&mut Option<Route>)) -> Facts {
        let mut facts = sample::facts();
        let remote = sample::config().bonds[0].paths[0].remote;
        change(facts.ways.get_mut(&(remote, 0)).unwrap());
        facts
    }

    #[test]
    fn a_remote_that_ospf_does_not_lead_to() {
        let none = only(&with_way(|way| *way = None));
        assert_eq!(
            (none.kind, none.path.as_deref()),
            (Kind::NoRoute, Some("via-m1"))
        );
        assert!(none.remedy.contains("birdc show route for 10.65.0.6"));
        let dropped = only(&with_way(|way| way.as_mut().unwrap().usable = false));
        assert_eq!(dropped.kind, Kind::NoRoute);
        let default = only(&with_way(|way| {
            let way = way.as_mut().unwrap();
            way.protocol = 16;
            way.prefix = ([0, 0, 0, 0].into(), 0);
        }));
        assert_eq!(default.kind, Kind::RouteNotOspf);
        assert!(
            default.what.contains("0.0.0.0/0") && default.what.contains("dhcp"),
            "{default:#?}"
        );
        let elsewhere = only(&with_way(|way| {
            way.as_mut().unwrap().next_hops[0].ifindex = 4
        }));
        assert_eq!(
            (elsewhere.kind, elsewhere.severity),
            (Kind::Detour, Severity::Warning)
        );
        assert!(elsewhere.what.contains("over wg-a-m2"), "{elsewhere:#?}");
    }

    #[test]
    fn a_detour_that_is_meant_is_a_note() {
        let text = sample::CONFIG.replace("peer =", "detour = \"use\"\npeer =");
        let config = Config::parse(&text, "f").unwrap();
        let facts = with_way(|way| way.as_mut().unwrap().next_hops[0].ifindex = 4);
        let findings = judge(&config, &facts);
        let [meant] = &findings[..] else {
            panic!("{findings:#?}");
        };
        assert_eq!((meant.kind, meant.severity), (Kind::Detour, Severity::Note));
    }

    #[test]
    fn a_route_of_wg_quick_stands_before_ospf() {
        let by = |protocol, gateway| {
            only(&with_way(|way| {
                let way = way.as_mut().unwrap();
                way.protocol = protocol;
                way.next_hops = vec![NextHop {
                    ifindex: 3,
                    gateway,
                }];
            }))
        };
        let shadow = by(libc::RTPROT_BOOT, None);
        assert_eq!(
            (shadow.kind, shadow.device.as_deref()),
            (Kind::TableOff, Some("wg-a-m1"))
        );
        // One with a gateway is nobody's but the user's.
        let own = by(libc::RTPROT_STATIC, Some([10, 65, 0, 1].into()));
        assert_eq!(own.kind, Kind::RouteNotOspf);
        assert!(own.remedy.contains("\"static\""), "{own:#?}");
    }

    #[test]
    fn other_routes_of_wg_quick() {
        let mut facts = sample::facts();
        facts.host.routes.push(sample::route(
            "10.65.2.1/32",
            254,
            libc::RTPROT_BOOT,
            3,
            None,
        ));
        let shadow = only(&facts);
        assert_eq!(
            (shadow.kind, shadow.severity),
            (Kind::TableOff, Severity::Warning)
        );
        assert!(
            shadow.what.contains("10.65.2.1/32 dev wg-a-m1"),
            "{shadow:#?}"
        );
        // What OSPF knows nothing of is nobody's business.
        facts.host.routes.last_mut().unwrap().to = "10.99.0.0/24".parse().unwrap();
        assert_eq!(found(&facts), []);
    }

    #[test]
    fn rules_of_wg_quick() {
        let mut facts = sample::facts();
        let rule = |mark, inverted| Rule {
            family: 2,
            priority: 32764,
            mark,
            inverted,
            selective: false,
            table: 51820,
        };
        facts.rules = vec![rule(Some(51820), true)];
        // Nothing in that table leads over a path's device.
        assert_eq!(found(&facts), []);
        facts.host.routes.push(sample::route(
            "0.0.0.0/0",
            51820,
            libc::RTPROT_BOOT,
            3,
            None,
        ));
        let finding = only(&facts);
        assert_eq!(finding.kind, Kind::TableOff);
        assert_eq!(finding.device.as_deref(), Some("wg-a-m1"));
        assert!(finding.what.contains("0xca6c"), "{finding:#?}");
        for part in [
            "`ip rule del not fwmark 0xca6c table 51820`",
            "`ip route del 0.0.0.0/0 dev wg-a-m1 table 51820`",
        ] {
            assert!(finding.remedy.contains(part), "{finding:#?}");
        }
        // The user's own policy.
        let selective = Rule {
            selective: true,
            ..rule(Some(51820), true)
        };
        facts.rules = vec![rule(Some(51820), false), rule(None, false), selective];
        assert_eq!(found(&facts), []);
        // Of the other family.
        facts.rules = vec![Rule {
            family: 10,
            ..rule(Some(51820), true)
        }];
        assert_eq!(found(&facts), []);
        facts
            .host
            .routes
            .push(sample::route("::/0", 51820, libc::RTPROT_BOOT, 3, None));
        assert!(
            only(&facts).remedy.contains("`ip -6 route del ::/0 dev "),
            "{:#?}",
            only(&facts)
        );
    }

    /// Such as BIRD's own: whoever does as a remedy says would lose OSPF's routes.
    #[test]
    fn routes_that_wg_quick_does_not_make_are_left_alone() {
        for (table, protocol, gateway) in [
            (100, 12, None),
            (100, 12, Some([10, 65, 0, 1])),
            (100, libc::RTPROT_STATIC, Some([10, 65, 0, 1])),
            (254, libc::RTPROT_BOOT, None),
        ] {
            let mut facts = sample::facts();
            facts.rules = vec![Rule {
                family: 2,
                priority: 100,
                mark: Some(7),
                inverted: true,
                selective: false,
                table,
            }];
            let route = sample::route("10.99.0.0/16", table, protocol, 3, gateway);
            facts.host.routes.push(route);
            assert_eq!(found(&facts), [], "{table} {protocol}");
        }
    }

    #[test]
    fn a_peer_whose_prefix_is_not_learned() {
        let mut facts = sample::facts();
        let peer = sample::config().bonds[0].peer.unwrap();
        let way = facts.ways.get_mut(&(peer.address, 0)).unwrap();
        way.as_mut().unwrap().prefix = ([10, 65, 0, 0].into(), 16);
        assert_eq!(only(&facts).kind, Kind::PeerRoute);
        facts.ways.insert((peer.address, 0), None);
        assert_eq!(only(&facts).kind, Kind::PeerRoute);
        facts.ways.remove(&(peer.address, 0));
        assert_eq!(found(&facts), []);
    }
}
