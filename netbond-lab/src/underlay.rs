//! What the paths of a lab run over, where the environment asks for something else than WireGuard: one set of
//! tests for every underlay.

use std::collections::BTreeSet;
use std::env;
use std::net::IpAddr;

use anyhow::{Result, bail};

use crate::topology::{BondSpec, LinkSpec, Topology};

/// What the paths run over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Underlay {
    /// WireGuard, with IPv6 inside and outside of its tunnels.
    WireGuardIpv6,
    /// Ethernet.
    Ethernet,
    /// Ethernet, whose packets netbond receives in the devices' drivers.
    EthernetXdp,
    /// The first path over WireGuard and IPv4, the others over Ethernet and IPv6, received in the driver.
    Mixed,
}

impl Underlay {
    /// What `NETBOND_LAB_UNDERLAY` asks for: `wireguard-ipv6`, `ethernet`, `ethernet-xdp` or `mixed`. `None`
    /// leaves topologies as they are.
    pub(crate) fn from_environment() -> Result<Option<Self>> {
        Ok(Some(
            match env::var("NETBOND_LAB_UNDERLAY").ok().as_deref() {
                None | Some("") => return Ok(None),
                Some("wireguard-ipv6") => Self::WireGuardIpv6,
                Some("ethernet") => Self::Ethernet,
                Some("ethernet-xdp") => Self::EthernetXdp,
                Some("mixed") => Self::Mixed,
                Some(other) => bail!(
                    "NETBOND_LAB_UNDERLAY is {other:?}: use \"wireguard-ipv6\", \"ethernet\", \
                     \"ethernet-xdp\" or \"mixed\""
                ),
            },
        ))
    }

    /// The topology over this underlay, where its bonds have the same MTU. One that has Ethernet or IPv6 already
    /// keeps it.
    pub(crate) fn apply(self, topology: Topology) -> Topology {
        let paths = topology.bonds.iter().map(|bond| bond.paths.len()).min();
        let all: Vec<usize> = (0..paths.unwrap_or(0)).collect();
        match self {
            Self::WireGuardIpv6 => {
                let topology = over_ipv6(topology, &all).with_ipv6_underlay();
                // WireGuard's own packets are longer by as much.
                widened(topology, |link| &mut link.underlay_mtu)
            }
            Self::Ethernet => topology.over_ethernet(&all),
            Self::EthernetXdp => in_drivers(topology, &all),
            Self::Mixed => {
                let others = all.get(1..).unwrap_or_default();
                in_drivers(over_ipv6(topology, others), others)
            }
        }
    }
}

/// Bytes by which an IPv6 header is longer than one of IPv4.
const LONGER: u16 = 20;

/// These paths, and the links in the middle.
fn over_ipv6(topology: Topology, paths: &[usize]) -> Topology {
    let mut topology = topology.over_ipv6(paths);
    let bonds = topology.bonds.iter().flat_map(|bond| &bond.paths);
    let others: BTreeSet<IpAddr> = bonds.flat_map(|path| [path.local, path.remote]).collect();
    for link in &mut topology.links {
        link.ipv6 |= !link
            .ends
            .iter()
            .any(|end| others.contains(&end.overlay.into()));
    }
    widened(topology, |link| &mut link.mtu)
}

/// Links with IPv6 have that much more room.
fn widened(mut topology: Topology, mtu: impl Fn(&mut LinkSpec) -> &mut u16) -> Topology {
    for link in topology.links.iter_mut().filter(|link| link.ipv6) {
        *mtu(link) += LONGER;
    }
    topology
}

/// Over Ethernet, received in drivers: but by bonds whose packets are copied, which would refuse it.
fn in_drivers(topology: Topology, paths: &[usize]) -> Topology {
    let mut topology = topology.over_ethernet(paths);
    let copied = |bond: &&mut BondSpec| bond.mode == "duplicate";
    for bond in topology.bonds.iter_mut().filter(|bond| !copied(bond)) {
        for &path in paths {
            bond.paths[path].lines.push("xdp = \"native\"".to_owned());
        }
    }
    topology
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_underlay_can_be_built() {
        for underlay in [
            Underlay::WireGuardIpv6,
            Underlay::Ethernet,
            Underlay::EthernetXdp,
            Underlay::Mixed,
        ] {
            for topology in [
                Topology::reference(),
                Topology::parallel(3).over_ipv6(&[1]),
                Topology::reference().without_bonds(),
            ] {
                let topology = underlay.apply(topology);
                topology.validate().unwrap();
            }
        }
    }
}
