//! Settings of the kernel's IP stack: source validation and forwarding.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::check::{
    Finding, Kind,
    facts::{Facts, Family},
    plural,
};
use crate::config::{Bond, Config};

/// rp_filter: the route back to the source must lead over the device itself.
const STRICT: u8 = 1;

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for bond in &config.bonds {
        findings.extend(rp_filter(config, facts, bond).map(|finding| finding.of_bond(bond)));
        let forwarding = Family::ALL.map(|family| forwarding(facts, bond, family));
        let forwarding = forwarding.into_iter().flatten();
        findings.extend(forwarding.map(|finding| finding.of_bond(bond)));
    }
    findings
}

fn is_strict(facts: &Facts, device: &str) -> bool {
    facts.settings.rp_filter.get(device) == Some(&STRICT)
}

/// Whether rp_filter drops, or may drop, packets of the bond: those of a path are no longer there when
/// the kernel looks, but for BFD's.
fn rp_filter(config: &Config, facts: &Facts, bond: &Bond) -> Option<Finding> {
    let paths = bond.paths.iter();
    let detoured: Vec<&str> = paths
        .filter(|path| bond.bfd.is_some() && facts.way(path).is_some())
        .filter_map(|path| {
            let (device, way) = (facts.device(path)?, facts.way(path)?);
            let own = facts.host.by_name(device)?.ifindex;
            let over = way.next_hops.iter().any(|hop| hop.ifindex == own);
            (!over && is_strict(facts, device)).then_some(device)
        })
        .collect();
    if let Some(device) = detoured.first() {
        let finding = Finding::problem(
            Kind::RpFilter,
            format!(
                "rp_filter is strict on {device}, and OSPF leads to the peer over another device: BFD's \
                 packets from there are dropped"
            ),
            remedy(device),
        );
        return Some(finding.of_device(device));
    }
    if !is_strict(facts, &bond.name) {
        return None;
    }
    let name = &bond.name;
    let what = format!(
        "rp_filter is strict on {name}: packets whose sender is not routed over {name}{} are dropped",
        bond.peer
            .map(|peer| format!(", such as the peer's own {},", peer.address))
            .unwrap_or_default()
    );
    let drops = facts.settings.rp_filter_drops;
    if drops == 0 {
        let finding = Finding::warning(Kind::RpFilter, what, remedy(name));
        return Some(finding.of_device(name));
    }
    let ours: BTreeSet<&str> = config.bonds.iter().map(|bond| bond.name.as_str()).collect();
    // The counter is the host's: with others strict as well, the drops may be theirs.
    let others: Vec<String> = facts
        .settings
        .rp_filter
        .iter()
        .filter(|(device, value)| **value == STRICT && !ours.contains(device.as_str()))
        .map(|(device, _)| device.clone())
        .collect();
    let dropped = plural(drops, "packet");
    let finding = if others.is_empty() {
        let what = format!("{what}; {dropped} so far");
        Finding::problem(Kind::RpFilter, what, remedy(name))
    } else {
        let others = super::some(&others);
        let what = format!("{what}; {dropped} so far there or on {others}");
        Finding::warning(Kind::RpFilter, what, remedy(name))
    };
    Some(finding.of_device(name))
}

fn remedy(device: &str) -> String {
    format!(
        "loose is enough: `sysctl -w net.ipv4.conf.{}.rp_filter=2`",
        sysctl_name(device)
    )
}

/// How sysctl(8) wants a device's name: with its dots as slashes.
fn sysctl_name(device: &str) -> String {
    device.replace('.', "/")
}

/// Whether what comes over the bond goes on.
fn forwarding(facts: &Facts, bond: &Bond, family: Family) -> Option<Finding> {
    let name = &bond.name;
    let on = facts.settings.forwarding.get(&(family, name.clone()))?;
    let routable = |address: IpAddr| match address {
        IpAddr::V4(_) => family == Family::V4,
        IpAddr::V6(v6) => family == Family::V6 && !v6.is_unicast_link_local(),
    };
    // A bond without addresses is a port of a bridge, which forwards without it.
    let mut addresses = bond.addresses.iter();
    if *on || !addresses.any(|prefix| routable(prefix.address)) {
        return None;
    }
    let (version, keys) = match family {
        // That of all sets each device's where it changes.
        Family::V4 => (
            "IPv4",
            format!(
                "net.ipv4.ip_forward=1 net.ipv4.conf.{}.forwarding=1",
                sysctl_name(name)
            ),
        ),
        Family::V6 => ("IPv6", "net.ipv6.conf.all.forwarding=1".to_owned()),
    };
    let finding = Finding::note(
        Kind::Forwarding,
        format!(
            "{version} forwarding is off on {name}: what comes over it for other hosts is dropped"
        ),
        format!("on a router: `sysctl -w {keys}`, and the same in /etc/sysctl.d"),
    );
    Some(finding.of_device(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Severity, sample};

    fn found(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        sample::found(judge, change)
    }

    fn only(change: impl FnOnce(&mut Facts)) -> Finding {
        sample::only(&found(change))
    }

    fn strict(facts: &mut Facts, devices: &[&str], drops: u64) {
        for device in devices {
            facts
                .settings
                .rp_filter
                .insert((*device).to_owned(), STRICT);
        }
        facts.settings.rp_filter_drops = drops;
    }

    #[test]
    fn strict_source_validation_of_the_bond() {
        let quiet = only(|facts| strict(facts, &["nb0"], 0));
        assert_eq!(
            (quiet.kind, quiet.severity),
            (Kind::RpFilter, Severity::Warning)
        );
        assert!(quiet.what.contains("10.65.2.1"), "{quiet:#?}");
        let dropping = only(|facts| strict(facts, &["nb0"], 7));
        assert_eq!(dropping.severity, Severity::Problem);
        assert!(dropping.what.contains("7 packets"), "{dropping:#?}");
        let perhaps = only(|facts| strict(facts, &["nb0", "eth0"], 7));
        assert_eq!(perhaps.severity, Severity::Warning);
        assert!(perhaps.what.contains("eth0"), "{perhaps:#?}");
        // The programs take a path's packets before.
        assert_eq!(found(|facts| strict(facts, &["wg-a-m1", "eth0"], 7)), []);
        assert_eq!(sysctl_name("nb0.7"), "nb0/7");
    }

    #[test]
    fn strict_source_validation_and_bfd() {
        let text =
            sample::CONFIG.replace("peer =", "probe_interval = 0\nbfd = \"multi-hop\"\npeer =");
        let config = Config::parse(&text, "f").unwrap();
        let mut facts = sample::facts();
        strict(&mut facts, &["wg-a-m1"], 0);
        assert_eq!(judge(&config, &facts), []);
        let remote = config.bonds[0].paths[0].remote;
        let way = facts.ways.get_mut(&(remote, 0)).unwrap();
        way.as_mut().unwrap().next_hops[0].ifindex = 4;
        assert_eq!(judge(&config, &facts)[0].severity, Severity::Problem);
    }

    #[test]
    fn forwarding_that_is_off() {
        let off = |family| {
            move |facts: &mut Facts| {
                facts
                    .settings
                    .forwarding
                    .insert((family, "nb0".to_owned()), false);
            }
        };
        for (family, part) in [(Family::V4, "ip_forward"), (Family::V6, "ipv6")] {
            let one = only(off(family));
            assert_eq!((one.kind, one.severity), (Kind::Forwarding, Severity::Note));
            assert!(one.remedy.contains(part), "{one:#?}");
        }
        let bridged = Config::parse(&sample::CONFIG.replace("address =", "# "), "f").unwrap();
        let mut facts = sample::facts();
        off(Family::V4)(&mut facts);
        assert_eq!(judge(&bridged, &facts), []);
    }
}
