//! Whether the longest packets fit: of the bond into the paths' devices, of those into the underlay, and
//! of all into whatever is on the way.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netbond_common::names::FullSize;

use crate::check::{
    Finding, Kind,
    facts::{Facts, paths},
};
use crate::config::{Bond, Config, Path};
use crate::control::plan::{LEAST_MTU, headers};
use crate::status::Probe;

/// What WireGuard puts before and behind a packet, with UDP and IP (4 type, 4 receiver, 8 counter, 16
/// authentication tag, 8 UDP).
const WIREGUARD: u32 = 40;

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for (bond, path) in paths(config) {
        let of_path = |finding: Finding| finding.of_path(bond, path);
        findings.extend(device(facts, bond, path).map(of_path));
        findings.extend(on_the_way(facts, bond, path).map(of_path));
        if seen.insert((&bond.name, facts.device(path))) {
            findings.extend(underlay(facts, path).map(of_path));
        }
    }
    findings
}

/// Whether the bond's packets fit into the path's device.
fn device(facts: &Facts, bond: &Bond, path: &Path) -> Option<Finding> {
    let device = facts.host.by_name(facts.device(path)?)?;
    let headers = headers(bond, path);
    // Without a bond device: what it will have at the least.
    let mtu = facts
        .host
        .by_name(&bond.name)
        .map_or(LEAST_MTU, |own| own.mtu);
    let needed = mtu + headers;
    if needed <= device.mtu {
        return None;
    }
    let name = &device.name;
    let remedy = if mtu <= LEAST_MTU {
        format!(
            "a bond has {LEAST_MTU} at the least: `ip link set {name} mtu {needed}` or more, at both ends"
        )
    } else {
        format!(
            "`ip link set {} mtu {}`, or give {name} {needed} at both ends",
            bond.name,
            device.mtu.saturating_sub(headers).max(LEAST_MTU)
        )
    };
    let finding = Finding::problem(
        Kind::Mtu,
        format!(
            "packets of {mtu} bytes, the MTU of {}, with {headers} of headers do not fit into {name}, whose \
             MTU is {}",
            bond.name, device.mtu
        ),
        remedy,
    );
    Some(finding.of_device(name))
}

/// Whether what fits into a path's device passes the way, as probes say.
fn on_the_way(facts: &Facts, bond: &Bond, path: &Path) -> Option<Finding> {
    let (_, now) = facts.readings(bond)?;
    let found = now.paths.iter().find(|found| found.name == path.name)?;
    let probe = found.probe.as_ref()?;
    if probe.full_size_result == FullSize::BlackHole.label() {
        return Some(black_hole(facts, path, probe));
    }
    let (path_mtu, ceiling) = now.narrowed_by(probe)?;
    let device = facts.device(path)?;
    let finding = Finding::warning(
        Kind::PathMtu,
        format!(
            "the path carries packets of {path_mtu} bytes by probes, {} of them the bond's, where {ceiling} are \
             wanted: so {} has MTU {}",
            probe.full_size, bond.name, now.mtu
        ),
        format!(
            "mend the MTU of what lies below {device}; where it is to stay so, `ip link set {device} mtu {path_mtu}` \
             at both ends says it to everybody"
        ),
    );
    Some(finding.of_device(device))
}

/// Packets of full size vanish on the way.
fn black_hole(facts: &Facts, path: &Path, probe: &Probe) -> Finding {
    let device = facts.device(path).unwrap_or("the path's device");
    Finding::problem(
        Kind::BlackHole,
        format!(
            "packets of {} bytes vanish on the way, while small ones pass: somewhere the MTU is smaller, and \
             nobody says so",
            probe.full_size
        ),
        format!(
            "lower the MTU of {device} at both ends until they pass (`ip link set {device} mtu ...`), or that \
             of the tunnels behind it; `ping -M do -s SIZE` to the WireGuard endpoint finds the size"
        ),
    )
}

/// Whether encrypted packets fit into the underlay.
fn underlay(facts: &Facts, path: &Path) -> Option<Finding> {
    let (device, peer) = facts.peer(path)?;
    let own = facts.host.by_name(facts.device(path)?)?;
    let hop = facts.underlay(device, peer)?.next_hops.first()?;
    let below = facts.host.by_index(hop.ifindex)?;
    let headers = WIREGUARD
        + match peer.endpoint?.ip() {
            IpAddr::V4(_) => 20,
            IpAddr::V6(_) => 40,
        };
    // Of packets to ourselves nothing is learned.
    if own.mtu + headers <= below.mtu || facts.wireguard.contains_key(&below.name) {
        return None;
    }
    let fits = below.mtu.saturating_sub(headers);
    let finding = Finding::warning(
        Kind::Fragments,
        format!(
            "{} has MTU {}, with {headers} bytes of WireGuard more than the {} of {}: full-size packets leave \
             in fragments",
            own.name, own.mtu, below.mtu, below.name
        ),
        format!("`ip link set {} mtu {fits}`, at both ends", own.name),
    );
    Some(finding.of_device(&own.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{facts::Controller, sample};

    fn only(change: impl FnOnce(&mut Facts)) -> Finding {
        sample::only(&sample::found(judge, change))
    }

    fn set_mtu(facts: &mut Facts, name: &str, mtu: u32) {
        let mut devices = facts.host.devices.iter_mut();
        devices.find(|device| device.name == name).unwrap().mtu = mtu;
    }

    #[test]
    fn a_device_that_is_too_small() {
        let small = only(|facts| set_mtu(facts, "wg-a-m1", 1400));
        assert_eq!(
            (small.kind, small.path.as_deref()),
            (Kind::Mtu, Some("via-m1"))
        );
        assert!(
            small.remedy.contains("ip link set nb0 mtu 1376"),
            "{small:#?}"
        );
        // The bond goes no lower.
        let tiny = only(|facts| {
            set_mtu(facts, "wg-a-m1", 1200);
            set_mtu(facts, "nb0", 1280);
        });
        assert!(
            tiny.remedy.contains("ip link set wg-a-m1 mtu 1304"),
            "{tiny:#?}"
        );
        let before = only(|facts| {
            set_mtu(facts, "wg-a-m1", 1303);
            facts.host.devices.retain(|device| device.name != "nb0");
        });
        assert_eq!(before.kind, Kind::Mtu);
    }

    #[test]
    fn an_underlay_that_is_too_small() {
        let fragments = only(|facts| set_mtu(facts, "u-a-m1", 1479));
        assert_eq!(fragments.kind, Kind::Fragments);
        assert!(
            fragments.remedy.contains("wg-a-m1 mtu 1419"),
            "{fragments:#?}"
        );
        let mut facts = sample::facts();
        set_mtu(&mut facts, "u-a-m1", 1480);
        assert_eq!(judge(&sample::config(), &facts), []);
    }

    #[test]
    fn a_path_mtu_below_the_device_s() {
        let one = only(|facts| {
            let Controller::Runs(readings) = &mut facts.controller else {
                panic!("it runs");
            };
            let bond = &mut readings.1.bonds[0];
            bond.mtu = 1316;
            let probe = bond.paths[1].probe.as_mut().unwrap();
            (probe.path_mtu, probe.full_size) = (Some(1340), 1316);
        });
        assert_eq!(
            (one.kind, one.path.as_deref()),
            (Kind::PathMtu, Some("via-m2"))
        );
        let part = "1340 bytes by probes, 1316 of them the bond's, where 1396";
        assert!(one.what.contains(part), "{one:#?}");
        assert!(one.what.contains("nb0 has MTU 1316"), "{one:#?}");
    }

    #[test]
    fn a_black_hole_as_probes_find_it() {
        let one = only(|facts| {
            let Controller::Runs(readings) = &mut facts.controller else {
                panic!("it runs");
            };
            let probe = readings.1.bonds[0].paths[1].probe.as_mut().unwrap();
            probe.full_size_result = FullSize::BlackHole.label();
        });
        assert_eq!(
            (one.kind, one.path.as_deref()),
            (Kind::BlackHole, Some("via-m2"))
        );
    }
}
