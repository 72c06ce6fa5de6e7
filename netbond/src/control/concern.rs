//! Which bonds an event may concern: a plan is made anew for those alone. With a thousand bonds, most
//! events are about the devices of others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::event::Event;
use super::plan::Member;
use super::world::World;

/// The bonds by what their plans are made of: see [`Member::plan`]. Bonds are named by their place among the
/// members.
#[derive(Debug, Default)]
pub(super) struct Concerns {
    all: usize,
    by_target: BTreeMap<IpAddr, BTreeSet<usize>>,
    by_local: BTreeMap<IpAddr, BTreeSet<usize>>,
    by_device: BTreeMap<String, BTreeSet<usize>>,
    by_path: BTreeMap<u32, usize>,
}

impl Concerns {
    pub(super) fn of(members: &[Member]) -> Self {
        let mut concerns = Self {
            all: members.len(),
            ..Self::default()
        };
        for (index, member) in members.iter().enumerate() {
            for target in member.targets() {
                concerns.by_target.entry(target).or_default().insert(index);
            }
            for (path, &(id, _)) in member.config.paths.iter().zip(&member.paths) {
                concerns.by_path.insert(id, index);
                let of_local = concerns.by_local.entry(path.local).or_default();
                of_local.insert(index);
                if let Some(device) = &path.device {
                    let of_device = concerns.by_device.entry(device.clone()).or_default();
                    of_device.insert(index);
                }
            }
        }
        concerns
    }

    /// The addresses whose routes matter.
    pub(super) fn targets(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.by_target.keys().copied()
    }

    /// Whether the route to an address matters.
    pub(super) fn is_target(&self, address: IpAddr) -> bool {
        self.by_target.contains_key(&address)
    }

    /// The bond that a path belongs to.
    pub(super) fn bond_of(&self, path: u32) -> Option<usize> {
        self.by_path.get(&path).copied()
    }

    /// The bonds that an event may concern, by what is known before it. After a change of devices or
    /// addresses others may be concerned by the same event: ask again.
    pub(super) fn concerned(&self, event: &Event, world: &World) -> BTreeSet<usize> {
        let some = |found: Option<&BTreeSet<usize>>| found.cloned().unwrap_or_default();
        match event {
            Event::Link(link) => {
                let mut found = self.by_device(link.ifindex, world);
                found.extend(some(self.by_device.get(&link.name)));
                found
            }
            Event::LinkGone { ifindex } => self.by_device(*ifindex, world),
            Event::Address { address, .. } | Event::AddressGone { address, .. } => {
                some(self.by_local.get(address))
            }
            Event::Route { to, .. } => some(self.by_target.get(to)),
            Event::Ospf(_) => (0..self.all).collect(),
            Event::Liveness { path, .. }
            | Event::PathMtu { path, .. }
            | Event::Neighbour { path, .. }
            | Event::Options { path, .. }
            | Event::Share { path, .. }
            | Event::Settled { path, .. }
            | Event::Admin { path, .. } => self.bond_of(*path).into_iter().collect(),
        }
    }

    /// The bonds with a path on a device: by its name, by an address on it, or by a route over it.
    fn by_device(&self, ifindex: u32, world: &World) -> BTreeSet<usize> {
        let name = world.link(ifindex).map(|link| &link.name);
        let named = name.and_then(|name| self.by_device.get(name));
        let locals = world.addresses_on(ifindex);
        let targets = world.reached_over(ifindex);
        named
            .into_iter()
            .chain(locals.filter_map(|address| self.by_local.get(&address)))
            .chain(targets.filter_map(|address| self.by_target.get(&address)))
            .flatten()
            .copied()
            .collect()
    }
}
