//! The state machine: events in, plans and reasons out. No clock and no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use netbond_common::names::{Mode, PathState, StateReason};

use super::agreement;
use super::concern::Concerns;
use super::event::{Event, OspfInterface, OspfNeighbour, Route};
use super::gap::Gap;
use super::liveness::Verdict;
use super::plan::{BondPlan, Member, PathPlan, headers, probe_headers};
use super::prober::{Expected, How, Identity, Sizes, Watched};
use super::quality::Shortcoming;
use super::settle::Cause;
use super::world::{Neighbour, World};
use crate::{bfd::SessionConfig, config};

/// All that an event led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    /// Bond by bond.
    pub outcomes: Vec<Outcome>,
    /// What concerns a path and did not change it.
    pub notes: Vec<Note>,
    /// Ids of the paths below which something changed: packets of other sizes may pass.
    pub look_at_mtu: BTreeSet<u32>,
}

/// What an event led to in a bond.
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

/// Something that was seen and changed no state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub bond: String,
    /// `None` where it concerns the bond as a whole.
    pub path: Option<String>,
    /// What happened.
    pub text: String,
    /// Whether it is another sign of what took the path out before.
    pub confirms: bool,
}

/// A piece of news, and what it is about.
struct News {
    text: String,
    about: About,
    /// Whether it tells of a failure; of a route each path tells by itself.
    bad: bool,
}

enum About {
    Path(u32),
    /// The bond as a whole.
    Bond,
    /// By name.
    Device(String),
    Local(IpAddr),
    /// The route to an address.
    Target(IpAddr),
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
    concerns: Concerns,
}

impl Controller {
    /// Takes over a configuration: `ids` are those of its bonds, in its order. What is known of the
    /// system stays known.
    pub fn configure(&mut self, config: &config::Config, ids: &[Ids]) -> Vec<Outcome> {
        let watched_before = self.watched();
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
        self.concerns = Concerns::of(&self.members);
        let concerns = &self.concerns;
        self.world.keep_routes(|to| concerns.is_target(to));
        // What is known of a path holds for that path, watched in that way.
        let by_id = |watched: Vec<Watched>| -> BTreeMap<u32, _> {
            let what = |watched: Watched| {
                let how = std::mem::discriminant(&watched.how);
                (watched.path, (watched.bond, watched.identity, how))
            };
            watched.into_iter().map(what).collect()
        };
        let (watched_before, watched) = (by_id(watched_before), by_id(self.watched()));
        let same = |id: &u32| {
            let now = watched.get(id);
            now.is_some() && now == watched_before.get(id)
        };
        self.world.liveness.retain(|id, _| same(id));
        self.world.path_mtu.retain(|id, _| same(id));
        let paths: BTreeSet<u32> = self.path_ids().collect();
        self.world.neighbours.retain(|id, _| paths.contains(id));
        let ids: BTreeSet<u32> = self.members.iter().map(|member| member.id).collect();
        self.plans.retain(|id, _| ids.contains(id));
        // Said of every bond, changed or not: what a plan leaves out (a key) may have changed.
        self.plans_of(0..self.members.len(), "configuration", true)
    }

    /// The addresses whose routes matter.
    #[must_use]
    pub fn targets(&self) -> Vec<IpAddr> {
        self.concerns.targets().collect()
    }

    /// The paths to be watched.
    #[must_use]
    pub fn watched(&self) -> Vec<Watched> {
        let mut watched = Vec::new();
        for member in &self.members {
            let bond = &member.config;
            let probes = bond.probing.map(How::Probes);
            let Some(how) = probes.or(bond.bfd.map(|_| How::Bfd)) else {
                continue;
            };
            let paths = bond.paths.iter().zip(&member.paths);
            watched.extend(paths.map(|(path, &(id, _))| Watched {
                path: id,
                bond: bond.name.clone(),
                identity: Identity {
                    name: path.name.clone(),
                    local: path.local,
                    remote: path.remote,
                    device: path.device.clone(),
                },
                how,
                hold_down: bond.hold_down,
                policies: bond.policies,
                options: agreement::options(bond),
                sizes: Sizes {
                    headers: headers(bond, path),
                    probe_headers: probe_headers(bond, path),
                    path_mtu: bond.path_mtu,
                },
                expected: bond.measures().then(|| Expected {
                    weight: path.weight,
                    cap: path.rate_cap_mbit.map(|mbit| u64::from(mbit) * 125_000),
                }),
            }));
        }
        watched
    }

    /// After what pause the flows of each bond may move, by bond id; of those where any may.
    #[must_use]
    pub fn gaps(&self) -> BTreeMap<u32, Gap> {
        let moves = |mode| matches!(mode, Mode::Flowlet | Mode::Adaptive);
        let moving = |member: &&Member| member.config.modes().any(moves);
        let gap = |member: &Member| match member.config.flowlet_gap_ms {
            Some(ms) => Gap::Fixed(Duration::from_millis(ms.into())),
            None => Gap::Measured,
        };
        let members = self.members.iter().filter(moving);
        members.map(|member| (member.id, gap(member))).collect()
    }

    /// The BFD sessions to keep, by path id.
    #[must_use]
    pub fn bfd_sessions(&self) -> Vec<SessionConfig> {
        let mut sessions = Vec::new();
        for member in &self.members {
            let Some(bfd) = member.config.bfd else {
                continue;
            };
            let interval = Duration::from_millis(u64::from(bfd.interval_ms));
            for (path, &(id, _)) in member.config.paths.iter().zip(&member.paths) {
                sessions.push(SessionConfig {
                    id,
                    local: path.local,
                    remote: path.remote,
                    device: path.device.clone(),
                    hops: bfd.hops,
                    tx_interval: interval,
                    rx_interval: interval,
                    multiplier: bfd.misses,
                });
            }
        }
        sessions
    }

    /// Ids of all paths.
    pub fn path_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.members
            .iter()
            .flat_map(|member| member.paths.iter().map(|(id, _)| *id))
    }

    /// Takes in an event; returns what it changed, and what it tells beyond that.
    pub fn handle(&mut self, event: Event) -> Handled {
        let mut affected = self.concerns.concerned(&event, &self.world);
        let look_at_mtu = self.other_sizes(&event, &affected);
        let news = self.absorb(&event);
        // A cost that is known for the first time is no news, but may be a weight.
        if news.is_empty() && !matches!(event, Event::Ospf(_)) {
            return Handled::default();
        }
        affected.append(&mut self.concerns.concerned(&event, &self.world));
        let texts: Vec<&str> = news.iter().map(|news| news.text.as_str()).collect();
        let cause = texts.join("; ");
        let outcomes = self.replan(affected.iter().copied(), &cause);
        let notes = news
            .iter()
            .flat_map(|news| self.notes(news, &affected, &outcomes))
            .collect();
        Handled {
            outcomes,
            notes,
            look_at_mtu,
        }
    }

    /// The paths on which packets of other sizes may pass after an event, which concerns the bonds of these indexes:
    /// routes lead elsewhere, or some device has another MTU. It may be that below a path's own.
    fn other_sizes(&self, event: &Event, concerned: &BTreeSet<usize>) -> BTreeSet<u32> {
        match event {
            Event::Link(link) => {
                let before = self.world.link(link.ifindex);
                let other = before.is_some_and(|before| before.mtu != link.mtu);
                // Those of bonds follow; nothing follows from them.
                let own = |member: &Member| {
                    let bond = &member.config;
                    link.name == bond.name || link.name == bond.peer_device()
                };
                if other && !self.members.iter().any(own) {
                    self.path_ids().collect()
                } else {
                    BTreeSet::new()
                }
            }
            Event::Route { to, route } => {
                if self.world.route(*to) == route.as_ref() {
                    return BTreeSet::new();
                }
                let members = concerned.iter().map(|&index| &self.members[index]);
                let paths = members.flat_map(|member| {
                    let paths = member.config.paths.iter().zip(&member.paths);
                    paths.filter(|(path, _)| path.remote == *to)
                });
                paths.map(|(_, &(id, _))| id).collect()
            }
            Event::LinkGone { .. }
            | Event::Address { .. }
            | Event::AddressGone { .. }
            | Event::Ospf(_)
            | Event::Liveness { .. }
            | Event::PathMtu { .. }
            | Event::Neighbour { .. }
            | Event::Options { .. }
            | Event::Share { .. }
            | Event::Settled { .. }
            | Event::Admin { .. } => BTreeSet::new(),
        }
    }

    /// What is to be said of the paths that a piece of news is about and did not change; `affected` are
    /// the indexes of their bonds.
    fn notes(&self, news: &News, affected: &BTreeSet<usize>, outcomes: &[Outcome]) -> Vec<Note> {
        let mut notes = Vec::new();
        for member in affected.iter().map(|&index| &self.members[index]) {
            let Some(plan) = self.plans.get(&member.id) else {
                continue;
            };
            let note = |path: Option<&PathPlan>, confirms| Note {
                bond: plan.name.clone(),
                path: path.map(|path| path.name.clone()),
                text: news.text.clone(),
                confirms,
            };
            let outcome = outcomes.iter().find(|outcome| outcome.plan.id == plan.id);
            for path in plan.paths.iter().filter(|path| news.is_about(path)) {
                let mut changed = outcome.iter().flat_map(|outcome| &outcome.transitions);
                if !changed.any(|changed| changed.path == path.name) {
                    notes.push(note(Some(path), news.is_bad_for(path) && path.is_failed()));
                }
            }
            let of_bond = match &news.about {
                About::Target(to) => member.config.peer.is_some_and(|peer| *to == peer.address),
                About::Bond => true,
                About::Path(_) | About::Device(_) | About::Local(_) => false,
            };
            if of_bond {
                notes.push(note(None, false));
            }
        }
        notes
    }

    /// Brings the world up to date; returns the event in words, nothing where it is no news.
    fn absorb(&mut self, event: &Event) -> Vec<News> {
        let world = &mut self.world;
        match event {
            Event::Link(link) => {
                let before = world.set_link(link);
                if before.as_ref() == Some(link) {
                    return Vec::new();
                }
                let name = &link.name;
                let text = match before {
                    None => format!("device {name} appeared"),
                    Some(before) if before.up != link.up => {
                        format!("device {name} {}", if link.up { "up" } else { "down" })
                    }
                    Some(before) if before.mtu != link.mtu => {
                        format!("device {name} has MTU {}, had {}", link.mtu, before.mtu)
                    }
                    Some(_) => format!("device {name} changed"),
                };
                News::one(text, About::Device(name.clone()), !link.up)
            }
            Event::LinkGone { ifindex } => {
                let Some(link) = world.remove_link(*ifindex) else {
                    return Vec::new();
                };
                let text = format!("device {} deleted", link.name);
                News::one(text, About::Device(link.name), true)
            }
            Event::Address { ifindex, address } => {
                if !world.add_address(*ifindex, *address) {
                    return Vec::new();
                }
                let text = format!("address {address} on {}", world.device_name(*ifindex));
                News::one(text, About::Local(*address), false)
            }
            Event::AddressGone { ifindex, address } => {
                if !world.remove_address(*ifindex, *address) {
                    return Vec::new();
                }
                let device = world.device_name(*ifindex);
                let text = format!("address {address} removed from {device}");
                News::one(text, About::Local(*address), true)
            }
            Event::Route { to, route } => {
                if !self.concerns.is_target(*to) {
                    return Vec::new();
                }
                let before = world.set_route(*to, route.clone());
                if before.as_ref() == Some(route) {
                    return Vec::new();
                }
                let text = route_news(world, *to, before.flatten().as_ref(), route.as_ref());
                News::one(text, About::Target(*to), false)
            }
            Event::Ospf(interfaces) => {
                let before = std::mem::replace(&mut world.ospf, interfaces.clone());
                ospf_news(&before, interfaces)
            }
            Event::Liveness { path, verdict } => {
                let watched = |index: &usize| {
                    let bond = &self.members[*index].config;
                    bond.probing.is_some() || bond.bfd.is_some()
                };
                let Some(index) = self.concerns.bond_of(*path).filter(watched) else {
                    // Said of a path that is gone, or is no longer watched.
                    return Vec::new();
                };
                let before = self.world.liveness.insert(*path, verdict.clone());
                if before.as_ref() == Some(verdict) {
                    return Vec::new();
                }
                let bad = match verdict {
                    Verdict::Alive | Verdict::Unwatched | Verdict::HeldDown { .. } => false,
                    Verdict::Dead { .. }
                    | Verdict::Mtu { .. }
                    | Verdict::Short(_)
                    | Verdict::BfdDown { .. } => true,
                };
                let by_bfd = self.members[index].config.bfd.is_some();
                News::one(verdict_news(verdict, by_bfd), About::Path(*path), bad)
            }
            Event::Neighbour {
                path,
                ifindex,
                remote,
                address,
            } => {
                let neighbour = Neighbour {
                    ifindex: *ifindex,
                    remote: *remote,
                    address: *address,
                };
                // What a route says counts more. Said before there is any plan: no news.
                world.neighbours.entry(*path).or_insert(neighbour);
                Vec::new()
            }
            Event::PathMtu { path, bytes } => {
                let probed = |index: &usize| self.members[*index].config.probing.is_some();
                let Some(index) = self.concerns.bond_of(*path).filter(probed) else {
                    return Vec::new();
                };
                let before = match bytes {
                    Some(bytes) => world.path_mtu.insert(*path, *bytes),
                    None => world.path_mtu.remove(path),
                };
                if before == *bytes {
                    return Vec::new();
                }
                let expected = self.expected_mtu(index, *path);
                let Some(text) = path_mtu_news(before, *bytes, expected) else {
                    return Vec::new();
                };
                News::one(text, About::Path(*path), *bytes < before)
            }
            Event::Options {
                path,
                peer,
                difference,
            } => {
                if self.concerns.bond_of(*path).is_none() {
                    return Vec::new();
                }
                let complaints = agreement::complaints(*difference, *peer);
                if complaints.is_empty() {
                    let text = "the peer's settings agree again".to_owned();
                    return News::one(text, About::Bond, false);
                }
                let news = |text: &str| News::one(text.to_owned(), About::Bond, false);
                complaints.into_iter().flat_map(news).collect()
            }
            Event::Share {
                path,
                per_mille,
                carries,
            } => {
                if self.concerns.bond_of(*path).is_none() {
                    return Vec::new();
                }
                let share = f64::from(*per_mille) / 10.0;
                let text = match carries {
                    _ if *per_mille == 0 => {
                        "share 0 %: quicker paths carry the light load alone".to_owned()
                    }
                    Some(bytes) => {
                        let mbit = *bytes as f64 * 8e-6;
                        format!("share {share:.1} %: measured to carry {mbit:.1} Mbit/s")
                    }
                    None => format!("share {share:.1} %: what it carries is not known yet"),
                };
                News::one(text, About::Path(*path), false)
            }
            Event::Settled { path, striped } => {
                if self.concerns.bond_of(*path).is_none() {
                    return Vec::new();
                }
                let text = match striped {
                    None => "a processor is saturated: each flow keeps its path",
                    Some(Cause::LightLoad) => "flows are striped again: there is little to send",
                    Some(Cause::ProcessorFree) => {
                        "flows are striped again: no processor is saturated"
                    }
                    Some(Cause::UnlikePaths) => {
                        "flows are striped again: the paths' ways are not alike any more"
                    }
                    Some(Cause::CarriesLess) => {
                        "flows are striped again: less came out with each on a path of its own"
                    }
                    Some(Cause::StripingCarriesMore) => {
                        "flows are striped again: that brings more by now"
                    }
                    Some(Cause::NoQueue) => "flows are striped again: nothing waits then",
                };
                News::one(text.to_owned(), About::Bond, false)
            }
            Event::Admin { path, up } => {
                let news = if *up {
                    world.admin_down.remove(path)
                } else {
                    world.admin_down.insert(*path)
                };
                if !news {
                    return Vec::new();
                }
                let text = format!("admin: taken {}", if *up { "back in" } else { "out" });
                News::one(text, About::Path(*path), !up)
            }
        }
    }

    /// How long a packet may be on a path, outer headers included, bytes, as far as devices and the
    /// configuration tell; `None` where the bond is not planned yet.
    fn expected_mtu(&self, index: usize, path: u32) -> Option<u32> {
        let member = &self.members[index];
        let ceiling = self.plans.get(&member.id)?.mtu_ceiling?;
        let place = member.paths.iter().position(|&(id, _)| id == path)?;
        Some(ceiling + headers(&member.config, &member.config.paths[place]))
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
            let neighbours = plan.paths.iter();
            let neighbours = neighbours.filter_map(|path| Some((path.id, path.neighbour()?)));
            self.world.neighbours.extend(neighbours);
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

impl News {
    fn one(text: String, about: About, bad: bool) -> Vec<Self> {
        vec![Self { text, about, bad }]
    }

    fn is_about(&self, path: &PathPlan) -> bool {
        match &self.about {
            About::Path(id) => path.id == *id,
            About::Device(name) => {
                let device = path.device.as_ref();
                device.is_some_and(|device| device.name == *name)
            }
            About::Local(address) => path.local == *address,
            About::Target(address) => path.remote == *address,
            About::Bond => false,
        }
    }

    fn is_bad_for(&self, path: &PathPlan) -> bool {
        match self.about {
            About::Target(_) => !path.is_on_route(),
            About::Path(_) | About::Device(_) | About::Local(_) => self.bad,
            About::Bond => false,
        }
    }
}

fn route_news(world: &World, to: IpAddr, before: Option<&Route>, after: Option<&Route>) -> String {
    let way = |route: &Route| {
        let hops = route.next_hops.iter();
        let devices: Vec<String> = hops.map(|hop| world.device_name(hop.ifindex)).collect();
        let way = if !route.usable {
            "unreachable".to_owned()
        } else if devices.is_empty() {
            "without a next hop".to_owned()
        } else {
            format!("over {}", devices.join(" and "))
        };
        (protocol_name(route.protocol), way)
    };
    match (before.map(way), after.map(way)) {
        (None, None) => format!("no route to {to}"),
        (Some((protocol, _)), None) => format!("route to {to} withdrawn by {protocol}"),
        (None, Some((protocol, way))) => format!("route to {to} {way} by {protocol}"),
        (Some((_, before)), Some((protocol, way))) if before != way => {
            format!("route to {to} {way} by {protocol}, was {before}")
        }
        (Some((before, _)), Some((protocol, way))) if before != protocol => {
            format!("route to {to} {way} by {protocol}, was by {before}")
        }
        (Some(_), Some((protocol, way))) => format!("route to {to} {way} by {protocol}, changed"),
    }
}

/// What became different of neighbours and costs, device by device.
fn ospf_news(before: &[OspfInterface], after: &[OspfInterface]) -> Vec<News> {
    let empty = |device: &str| OspfInterface {
        device: device.to_owned(),
        cost: None,
        neighbours: Vec::new(),
    };
    let devices: BTreeSet<&str> = before
        .iter()
        .chain(after)
        .map(|interface| interface.device.as_str())
        .collect();
    let mut news = Vec::new();
    for device in devices {
        // Those of all instances that run on it.
        let find = |interfaces: &[OspfInterface]| {
            let mut found = empty(device);
            for interface in interfaces.iter().filter(|one| one.device == device) {
                found.cost = found.cost.or(interface.cost);
                found
                    .neighbours
                    .extend(interface.neighbours.iter().cloned());
            }
            found
        };
        let same = |one: &OspfNeighbour, other: &OspfNeighbour| {
            let version = |neighbour: &OspfNeighbour| neighbour.address.is_ipv4();
            (one.router_id, version(one)) == (other.router_id, version(other))
        };
        let kind = |neighbour: &OspfNeighbour| match neighbour.address {
            IpAddr::V4(_) => "neighbour",
            IpAddr::V6(_) => "OSPFv3 neighbour",
        };
        let (before, after) = (find(before), find(after));
        let mut say = |text, bad| {
            let about = About::Device(device.to_owned());
            news.extend(News::one(text, about, bad));
        };
        for neighbour in &after.neighbours {
            let known = |known: &&OspfNeighbour| same(known, neighbour);
            let (id, state, kind) = (neighbour.router_id, &neighbour.state, kind(neighbour));
            match before.neighbours.iter().find(known) {
                None => say(format!("{kind} {id} on {device} is {state}"), false),
                Some(known) if known.state != *state => {
                    let text = format!("{kind} {id} on {device} is {state}, was {}", known.state);
                    say(text, known.state == FULL);
                }
                Some(_) => {}
            }
        }
        for lost in &before.neighbours {
            if !after.neighbours.iter().any(|other| same(other, lost)) {
                say(
                    format!("{} {} on {device} lost", kind(lost), lost.router_id),
                    true,
                );
            }
        }
        if let (Some(before), Some(after)) = (before.cost, after.cost)
            && before != after
        {
            say(
                format!("OSPF cost of {device} is {after}, was {before}"),
                false,
            );
        }
    }
    news
}

/// An adjacency that works (RFC 2328, 10.1), as the daemons' readers name it.
const FULL: &str = "Full";

/// What became different of a path's MTU, in words; `None` where it is what was `expected` of it before it was
/// known.
fn path_mtu_news(before: Option<u32>, now: Option<u32>, expected: Option<u32>) -> Option<String> {
    Some(match (before, now) {
        (None, Some(now)) if expected.is_none_or(|expected| now >= expected) => return None,
        (None, Some(now)) => {
            format!("path MTU {now}: longer probes are not answered, smaller ones are")
        }
        (Some(before), Some(now)) if now < before => {
            format!(
                "path MTU {now}, was {before}: longer probes are not answered, smaller ones are"
            )
        }
        (Some(before), Some(now)) => {
            format!("path MTU {now}, was {before}: probes of that size are answered")
        }
        (Some(before), None) => {
            format!("path MTU less than the bond needs, was {before}")
        }
        (None, None) => return None,
    })
}

/// A verdict in words.
fn verdict_news(verdict: &Verdict, by_bfd: bool) -> String {
    match verdict {
        Verdict::Alive if by_bfd => "bfd: session up".to_owned(),
        Verdict::Alive => "probe: answered, all is well".to_owned(),
        Verdict::Dead { missed } => format!("probe: {missed} missed"),
        Verdict::HeldDown { flaps, ms } => format!(
            "{}: well again, but it failed soon after its return ({flaps} in a row): held down for \
             {}.{} s",
            if by_bfd { "bfd" } else { "probe" },
            ms / 1000,
            ms % 1000 / 100
        ),
        Verdict::Mtu { bytes } => {
            format!("probe: those of {bytes} bytes unanswered, small ones answered")
        }
        Verdict::Short(Shortcoming::Lossy { there, back }) => {
            format!("probe: {there} % lost there, {back} % back")
        }
        Verdict::Short(Shortcoming::Slow { rtt_us, limit_us }) => format!(
            "probe: round trip {} ms, above {} ms",
            rtt_us / 1000,
            limit_us / 1000
        ),
        Verdict::BfdDown { diagnostic } => format!("bfd: session down ({diagnostic})"),
        Verdict::Unwatched => "bfd: session ended on purpose, the routes decide".to_owned(),
    }
}

/// A routing protocol's name as `ip route` writes it.
#[must_use]
pub fn protocol_name(number: u8) -> String {
    config::ROUTE_PROTOCOLS
        .iter()
        .find(|(_, known)| *known == number)
        .map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}
