//! What the kernel tells of this host: its addresses, and its routes to the peer.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_indextoname;

use super::network::Host;
use super::select::{KernelRoute, KernelRoutes};
use crate::netlink::{RouteQuery, inventory};

/// This host's addresses and devices; OSPF's interfaces are not the kernel's to tell.
///
/// # Errors
/// The kernel does not tell them.
pub fn read() -> Result<Host> {
    let known = inventory::devices_and_addresses()?;
    let links = getifaddrs().context("cannot list this host's devices")?;
    let ethernet = links.filter(|one| {
        let link = one
            .address
            .as_ref()
            .and_then(|address| address.as_link_addr());
        link.is_some_and(|link| link.hatype() == libc::ARPHRD_ETHER)
    });
    Ok(Host {
        // By number: getifaddrs(3) tells an address's label, such as eth0:1.
        addresses: known
            .addresses
            .iter()
            .filter(|one| !is_link_local(one.own.address))
            .map(|one| (known.name_of(one.ifindex), one.own))
            .collect(),
        ethernet: ethernet.map(|one| one.interface_name).collect(),
        ..Host::default()
    })
}

/// Such an address is no outer address of a path's: it says nothing without a device.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// The routes to some addresses; `protocols` (rtm_protocol) are those that count as OSPF's.
///
/// # Errors
/// The kernel does not tell them.
pub fn routes(targets: &[IpAddr], protocols: &[u8]) -> Result<KernelRoutes> {
    let mut query = RouteQuery::open().context("cannot open a netlink socket")?;
    let answers = query.lookup(targets).context("cannot look up routes")?;
    let mut routes = KernelRoutes::new();
    for (&target, answer) in targets.iter().zip(answers) {
        let answer = answer.with_context(|| format!("cannot look up the route to {target}"))?;
        let Some(route) = answer.filter(|route| route.usable) else {
            continue;
        };
        let device =
            |ifindex: u32| Some(if_indextoname(ifindex).ok()?.to_string_lossy().into_owned());
        let devices = route.next_hops.iter().filter_map(|hop| device(hop.ifindex));
        routes.insert(
            target,
            KernelRoute {
                devices: devices.collect(),
                of_ospf: protocols.contains(&route.protocol),
            },
        );
    }
    Ok(routes)
}
