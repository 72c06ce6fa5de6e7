//! What is known of the system.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::event::{Link, OspfInterface, Route};
use super::liveness::Verdict;

/// What is known of the system.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    links: BTreeMap<u32, Link>,
    by_name: BTreeMap<String, u32>,
    /// Devices that have an address, and the other way round.
    holders: BTreeMap<IpAddr, BTreeSet<u32>>,
    held: BTreeMap<u32, BTreeSet<IpAddr>>,
    /// Routes to the addresses that matter; a missing key is one not heard of yet.
    routes: BTreeMap<IpAddr, Option<Route>>,
    /// Addresses by the devices of their routes' next hops.
    over: BTreeMap<u32, BTreeSet<IpAddr>>,
    pub(super) ospf: Vec<OspfInterface>,
    /// What probes or BFD sessions say, by path id.
    pub(super) liveness: BTreeMap<u32, Verdict>,
    /// The longest packets that paths carry, outer headers included, bytes, by path id; of those that
    /// are not here it is not known, or less than the bond needs.
    pub(super) path_mtu: BTreeMap<u32, u32>,
    /// To whom packets of paths over Ethernet are sent, by path id, as a route told last.
    pub(super) neighbours: BTreeMap<u32, Neighbour>,
    /// Ids of the paths that the user took out.
    pub(super) admin_down: BTreeSet<u32>,
}

/// The next hop of a path. It is that of this device and this remote address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) ifindex: u32,
    pub(super) remote: IpAddr,
    pub(super) address: IpAddr,
}

impl World {
    pub(super) fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&ifindex)
    }

    pub(super) fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.get(self.by_name.get(name)?)
    }

    /// One of the devices that have an address.
    pub(super) fn link_with(&self, address: IpAddr) -> Option<&Link> {
        self.holders
            .get(&address)?
            .iter()
            .find_map(|ifindex| self.links.get(ifindex))
    }

    /// A device's name, or its index where it is not known.
    pub(super) fn device_name(&self, ifindex: u32) -> String {
        let link = self.links.get(&ifindex);
        link.map_or_else(|| format!("#{ifindex}"), |link| link.name.clone())
    }

    /// The route to an address; `None` where there is none, or none is known.
    pub(super) fn route(&self, to: IpAddr) -> Option<&Route> {
        self.routes.get(&to)?.as_ref()
    }

    /// Whether it is known how the kernel reaches an address, or that it does not.
    pub(super) fn knows_route(&self, to: IpAddr) -> bool {
        self.routes.contains_key(&to)
    }

    /// The addresses that a device has.
    pub(super) fn addresses_on(&self, ifindex: u32) -> impl Iterator<Item = IpAddr> + '_ {
        self.held.get(&ifindex).into_iter().flatten().copied()
    }

    /// The addresses whose routes lead over a device.
    pub(super) fn reached_over(&self, ifindex: u32) -> impl Iterator<Item = IpAddr> + '_ {
        self.over.get(&ifindex).into_iter().flatten().copied()
    }

    /// Takes in a device; what was known of it before.
    pub(super) fn set_link(&mut self, link: &Link) -> Option<Link> {
        let before = self.links.insert(link.ifindex, link.clone());
        if before.as_ref() == Some(link) {
            return before;
        }
        if let Some(before) = &before {
            self.forget_name(before);
        }
        self.by_name.insert(link.name.clone(), link.ifindex);
        before
    }

    /// Forgets a device with its addresses; what was known of it.
    pub(super) fn remove_link(&mut self, ifindex: u32) -> Option<Link> {
        let link = self.links.remove(&ifindex)?;
        self.forget_name(&link);
        for address in self.held.remove(&ifindex).unwrap_or_default() {
            remove(&mut self.holders, &address, &ifindex);
        }
        Some(link)
    }

    /// A device of the same name may be there again already.
    fn forget_name(&mut self, link: &Link) {
        if self.by_name.get(&link.name) == Some(&link.ifindex) {
            self.by_name.remove(&link.name);
        }
    }

    /// Whether it is news that a device has an address.
    pub(super) fn add_address(&mut self, ifindex: u32, address: IpAddr) -> bool {
        self.held.entry(ifindex).or_default().insert(address);
        self.holders.entry(address).or_default().insert(ifindex)
    }

    /// Whether it is news that a device has lost an address.
    pub(super) fn remove_address(&mut self, ifindex: u32, address: IpAddr) -> bool {
        remove(&mut self.held, &ifindex, &address);
        remove(&mut self.holders, &address, &ifindex)
    }

    /// Takes in the route to an address; what was known of it before.
    pub(super) fn set_route(&mut self, to: IpAddr, route: Option<Route>) -> Option<Option<Route>> {
        for next_hop in route.iter().flat_map(|route| &route.next_hops) {
            self.over.entry(next_hop.ifindex).or_default().insert(to);
        }
        let devices = |route: &Option<Route>| -> BTreeSet<u32> {
            let hops = route.iter().flat_map(|route| &route.next_hops);
            hops.map(|hop| hop.ifindex).collect()
        };
        let now = devices(&route);
        let before = self.routes.insert(to, route);
        for ifindex in before.iter().flat_map(devices) {
            if !now.contains(&ifindex) {
                remove(&mut self.over, &ifindex, &to);
            }
        }
        before
    }

    /// Forgets all routes but those to these addresses.
    pub(super) fn keep_routes(&mut self, mut matters: impl FnMut(IpAddr) -> bool) {
        self.routes.retain(|&to, _| matters(to));
        let routes = &self.routes;
        self.over.retain(|_, reached| {
            reached.retain(|to| routes.contains_key(to));
            !reached.is_empty()
        });
    }
}

/// Takes a value from one of many sets; whether it was there.
fn remove<K: Ord, V: Ord>(sets: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) -> bool {
    let Some(set) = sets.get_mut(key) else {
        return false;
    };
    let was_there = set.remove(value);
    if set.is_empty() {
        sets.remove(key);
    }
    was_there
}
