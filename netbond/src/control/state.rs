//! The state machine: events in, plans and reasons out. No clock and no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netbond_common::names::{PathState, StateReason};

use super::event::Event;
use super::liveness::Verdict;
use super::plan::{BondPlan, Member, World};
use super::prober::Probed;
use crate::config;

/// What an event led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The bond's new plan.
    pub plan: BondPlan,
    /// What became different of its paths.
    pub transitions: Vec<Transition>,
}

/// A path changed its state or the reason for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    pub bond: String,
    pub path: String,
    /// Before; `None` for a path not seen before.
    pub from: Option<(PathState, StateReason)>,
    /// After.
    pub to: (PathState, StateReason),
    /// What happened.
    pub cause: String,
}

/// The ids that a bond and its paths (in the order of the file) have in the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    pub bond: u32,
    pub paths: Vec<u32>,
}

/// The controller's state.
#[derive(Debug, Default)]
pub struct Controller {
    route_protocols: Vec<u8>,
    world: World,
    members: Vec<Member>,
    /// The last plan of each bond, by id.
    plans: BTreeMap<u32, BondPlan>,
    /// Indexes of the bonds that an address matters to.
    by_target: BTreeMap<IpAddr, Vec<usize>>,
}

impl Controller {
    /// Takes over a configuration: `ids` are those of its bonds, in its order. What is known of the
    /// system stays known.
    pub fn configure(&mut self, config: &config::Config, ids: &[Ids]) -> Vec<Outcome> {
        let before = std::mem::take(&mut self.members);
        self.route_protocols.clone_from(&config.route_protocols);
        self.members = config
            .bonds
            .iter()
            .zip(ids)
            .map(|(bond, ids)| {
                let earlier = before.iter().find(|member| member.id == ids.bond);
                let earlier = earlier.filter(|earlier| earlier.config.peer == bond.peer);
                let seen = |id: u32| {
                    earlier
                        .and_then(|earlier| earlier.paths.iter().find(|(path, _)| *path == id))
                        .is_some_and(|(_, seen)| *seen)
                };
                Member {
                    id: ids.bond,
                    config: bond.clone(),
                    paths: ids.paths.iter().map(|&id| (id, seen(id))).collect(),
                    peer_over: earlier.and_then(|earlier| earlier.peer_over),
                }
            })
            .collect();
        self.by_target.clear();
        for (index, member) in self.members.iter().enumerate() {
            for target in member.targets() {
                let indexes = self.by_target.entry(target).or_default();
                if indexes.last() != Some(&index) {
                    indexes.push(index);
                }
            }
        }
        let by_target = &self.by_target;
        self.world
            .routes
            .retain(|target, _| by_target.contains_key(target));
        let probed: BTreeSet<u32> = self
            .probed()
            .into_iter()
            .map(|probed| probed.path)
            .collect();
        self.world.liveness.retain(|path, _| probed.contains(path));
        let ids: BTreeSet<u32> = self.members.iter().map(|member| member.id).collect();
        self.plans.retain(|id, _| ids.contains(id));
        // Said of every bond, changed or not: what a plan leaves out (a key) may have changed.
        self.plans_of(0..self.members.len(), "configuration", true)
    }

    /// The addresses whose routes matter.
    #[must_use]
    pub fn targets(&self) -> Vec<IpAddr> {
        self.by_target.keys().copied().collect()
    }

    /// The paths to be probed.
    #[must_use]
    pub fn probed(&self) -> Vec<Probed> {
        let mut probed = Vec::new();
        for member in &self.members {
            if let Some(probing) = member.config.probing {
                probed.extend(member.paths.iter().map(|&(path, _)| Probed {
                    path,
                    bond: member.config.name.clone(),
                    probing,
                }));
            }
        }
        probed
    }

    /// Ids of all paths.
    pub fn path_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.members
            .iter()
            .flat_map(|member| member.paths.iter().map(|(id, _)| *id))
    }

    /// Takes in an event; returns what it changed, bond by bond.
    pub fn handle(&mut self, event: Event) -> Vec<Outcome> {
        let Some(cause) = self.absorb(&event) else {
            return Vec::new();
        };
        match event {
            Event::Route { to, .. } => {
                let affected = self.by_target.get(&to).cloned().unwrap_or_default();
                self.replan(affected, &cause)
            }
            Event::Link(_)
            | Event::LinkGone { .. }
            | Event::Address { .. }
            | Event::AddressGone { .. }
            | Event::Ospf(_)
            | Event::Liveness { .. }
            | Event::Admin { .. } => self.replan(0..self.members.len(), &cause),
        }
    }

    /// Brings the world up to date; returns the event in words, `None` where it is no news.
    fn absorb(&mut self, event: &Event) -> Option<String> {
        let world = &mut self.world;
        let name = |world: &World, ifindex: u32| {
            world
                .links
                .get(&ifindex)
                .map_or_else(|| format!("#{ifindex}"), |link| link.name.clone())
        };
        match event {
            Event::Link(link) => {
                let before = world.links.insert(link.ifindex, link.clone());
                if before.as_ref() == Some(link) {
                    return None;
                }
                if let Some(before) = &before
                    && world.by_name.get(&before.name) == Some(&before.ifindex)
                {
                    world.by_name.remove(&before.name);
                }
                world.by_name.insert(link.name.clone(), link.ifindex);
                Some(match before {
                    None => format!("device {} appeared", link.name),
                    Some(before) if before.up != link.up => {
                        format!(
                            "device {} {}",
                            link.name,
                            if link.up { "up" } else { "down" }
                        )
                    }
                    Some(before) if before.mtu != link.mtu => {
                        format!("device {} has MTU {}", link.name, link.mtu)
                    }
                    Some(_) => format!("device {} changed", link.name),
                })
            }
            Event::LinkGone { ifindex } => {
                let link = world.links.remove(ifindex)?;
                // A device of the same name may be there again already.
                if world.by_name.get(&link.name) == Some(ifindex) {
                    world.by_name.remove(&link.name);
                }
                for holders in world.addresses.values_mut() {
                    holders.remove(ifindex);
                }
                world.addresses.retain(|_, holders| !holders.is_empty());
                Some(format!("device {} deleted", link.name))
            }
            Event::Address { ifindex, address } => {
                let new = world
                    .addresses
                    .entry(*address)
                    .or_default()
                    .insert(*ifindex);
                new.then(|| format!("address {address} on {}", name(world, *ifindex)))
            }
            Event::AddressGone { ifindex, address } => {
                let holders = world.addresses.get_mut(address)?;
                let gone = holders.remove(ifindex);
                if holders.is_empty() {
                    world.addresses.remove(address);
                }
                gone.then(|| format!("address {address} removed from {}", name(world, *ifindex)))
            }
            Event::Route { to, route } => {
                if !self.by_target.contains_key(to) {
                    return None;
                }
                if world.routes.insert(*to, route.clone()).as_ref() == Some(route) {
                    return None;
                }
                Some(match route {
                    None => format!("route to {to} withdrawn"),
                    Some(route) => {
                        let devices: Vec<String> = route
                            .next_hops
                            .iter()
                            .map(|hop| name(world, hop.ifindex))
                            .collect();
                        format!(
                            "route to {to} by {} dev {}",
                            protocol_name(route.protocol),
                            devices.join(", ")
                        )
                    }
                })
            }
            Event::Ospf(interfaces) => {
                if world.ospf == *interfaces {
                    return None;
                }
                world.ospf.clone_from(interfaces);
                Some("OSPF neighbours changed".to_owned())
            }
            Event::Liveness { path, verdict } => {
                if world.liveness.insert(*path, *verdict) == Some(*verdict) {
                    return None;
                }
                Some(match verdict {
                    Verdict::Alive => "probes answered".to_owned(),
                    Verdict::Dead => "probes unanswered".to_owned(),
                    Verdict::HeldDown => "probes answered, but not for long enough".to_owned(),
                })
            }
            Event::Admin { path, up } => {
                let news = if *up {
                    world.admin_down.remove(path)
                } else {
                    world.admin_down.insert(*path)
                };
                news.then(|| format!("user took the path {}", if *up { "back in" } else { "out" }))
            }
        }
    }

    fn replan(&mut self, indexes: impl IntoIterator<Item = usize>, cause: &str) -> Vec<Outcome> {
        self.plans_of(indexes, cause, false)
    }

    fn plans_of(
        &mut self,
        indexes: impl IntoIterator<Item = usize>,
        cause: &str,
        unchanged_too: bool,
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for index in indexes {
            let Some(plan) = self.members[index].plan(&self.world, &self.route_protocols) else {
                continue;
            };
            let before = self.plans.get(&plan.id);
            if before == Some(&plan) && !unchanged_too {
                continue;
            }
            let transitions = transitions(before, &plan, cause);
            self.plans.insert(plan.id, plan.clone());
            outcomes.push(Outcome { plan, transitions });
        }
        outcomes
    }
}

fn transitions(before: Option<&BondPlan>, after: &BondPlan, cause: &str) -> Vec<Transition> {
    after
        .paths
        .iter()
        .filter_map(|path| {
            let from = before
                .and_then(|plan| plan.paths.iter().find(|earlier| earlier.id == path.id))
                .map(|earlier| (earlier.state, earlier.reason));
            let to = (path.state, path.reason);
            (from != Some(to)).then(|| Transition {
                bond: after.name.clone(),
                path: path.name.clone(),
                from,
                to,
                cause: cause.to_owned(),
            })
        })
        .collect()
}

/// A routing protocol's name as `ip route` writes it.
#[must_use]
pub fn protocol_name(number: u8) -> String {
    config::ROUTE_PROTOCOLS
        .iter()
        .find(|(_, known)| *known == number)
        .map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}
