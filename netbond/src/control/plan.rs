//! What the maps shall say of a bond: the outcome of every decision, and how it is made from what is
//! known of the system.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use netbond_common::{
    gre, ipv4, ipv6,
    names::{PathState, StateReason},
};
use serde::Serialize;

use super::event::{Link, OspfInterface, Route};
use super::liveness::Verdict;
use super::quality::Shortcoming;
use super::world::{Neighbour, World};
use crate::config::{self, Encap, Remedy, Weights};

/// Bytes that a bond takes from the MTU of the device of a path with this outer address: IP, GRE with
/// its key and sequence number, and the frame's header.
pub(crate) const fn overhead(encap: Encap, key: Option<u32>, numbered: bool, outer: IpAddr) -> u32 {
    let ip = match outer {
        IpAddr::V4(_) => ipv4::HEADER_LEN,
        IpAddr::V6(_) => ipv6::HEADER_LEN,
    };
    let layout = gre::Layout {
        key: key.is_some(),
        sequence: numbered,
    };
    (ip + layout.header_len()) as u32 + encap.header_len()
}

/// The same for the packets of a bond on one of its paths.
pub(crate) fn headers(bond: &config::Bond, path: &config::Path) -> u32 {
    overhead(bond.encap, bond.key, bond.is_numbered(), path.remote)
}

/// The same for probes: they have no number and are in no frame.
pub(crate) fn probe_headers(bond: &config::Bond, path: &config::Path) -> u32 {
    overhead(Encap::Gre, bond.key, false, path.remote)
}

/// The least MTU that IPv6 runs on (RFC 8200, 5), and so a bond's.
pub(crate) const LEAST_MTU: u32 = 1280;

/// What part a path takes in the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// On the wheel.
    Usable,
    /// Only where no path is usable.
    LastResort,
    /// Not at all.
    Out,
}

/// What the maps shall say of a bond.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BondPlan {
    pub id: u32,
    pub name: String,
    /// MTU of the bond device, bytes; `None` where no path's device tells.
    pub mtu: Option<u32>,
    /// What it would be if all paths carried what their devices take.
    pub mtu_ceiling: Option<u32>,
    pub mtu_bound: MtuBound,
    /// Whether a route leads to the peer's own prefix; `None` where none is named.
    pub peer_reachable: Option<bool>,
    pub weighing: Weighing,
    pub paths: Vec<PathPlan>,
}

/// What a bond's MTU is not larger for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MtuBound {
    /// The MTUs of the paths' devices, or the configured one.
    Ceiling,
    /// The path MTU, outer headers included, bytes, of this path.
    Path { name: String, path_mtu: u32 },
}

/// Where the weights of a bond's paths come from at present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighing {
    /// The configuration.
    Static,
    /// OSPF costs.
    Ospf,
    /// What the paths are measured to carry.
    Measured,
    /// The configuration, though OSPF costs are wanted: that of this path is not known.
    NoCost(String),
}

/// What the maps shall say of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PathPlan {
    pub id: u32,
    pub name: String,
    pub local: IpAddr,
    pub remote: IpAddr,
    /// As configured.
    pub weight: u32,
    /// Its weight in modes that go by weight, in quarters of the unit of `weight`, or of one that all
    /// paths of the bond share where OSPF costs count.
    pub quarters: u32,
    /// Whether a policy leaves it a quarter of what it would have.
    pub reduced: bool,
    pub priority: u32,
    /// The device that packets leave by.
    pub device: Option<Device>,
    #[serde(serialize_with = "label_of_state")]
    pub state: PathState,
    #[serde(serialize_with = "label_of_reason")]
    pub reason: StateReason,
    pub standing: Standing,
    /// Where its packets go on an Ethernet device; `None` on others, or where no route ever told: then the kernel's
    /// decides.
    pub next_hop: Option<KnownHop>,
    /// Whether packets pass though no route of OSPF leads there: probes say so, or BFD. Such a path still is better
    /// than none.
    pub passes: bool,
    pub route: Option<RouteSummary>,
    pub ospf: Option<OspfSummary>,
}

impl PathPlan {
    /// Whether something took it out: not the user alone.
    pub(super) fn is_failed(&self) -> bool {
        match self.state {
            PathState::Down => self.reason != StateReason::Admin,
            PathState::Detour | PathState::Suspect | PathState::Dead | PathState::Degraded => true,
            PathState::Up => false,
        }
    }

    /// Whether it is out of use for what OSPF or probes said, which may be wrong by now, and for no policy of
    /// the user's: as long as it is proven that packets pass, copies may take it that would have no path
    /// else.
    #[must_use]
    pub fn is_spare(&self) -> bool {
        self.standing == Standing::LastResort
            && match self.reason {
                StateReason::Silent | StateReason::HeldDown | StateReason::PeerElsewhere => true,
                // Packets leave over its own device, whatever the route says.
                StateReason::Elsewhere => self.needs_no_route(),
                StateReason::NoRoute | StateReason::NotOspf | StateReason::Unreachable => {
                    self.passes
                }
                StateReason::Starting
                | StateReason::Route
                | StateReason::Admin
                | StateReason::NoDevice
                | StateReason::DeviceDown
                | StateReason::NoAddress
                | StateReason::Mtu
                | StateReason::Lossy
                | StateReason::Slow
                | StateReason::Bfd => false,
            }
    }

    /// Whether packets leave on it without a route over its device.
    fn needs_no_route(&self) -> bool {
        let device = self.device.as_ref();
        device.is_some_and(|device| !device.ethernet || self.next_hop.is_some())
    }

    /// To whom its packets are sent, to be remembered.
    pub(super) fn neighbour(&self) -> Option<Neighbour> {
        Some(Neighbour {
            ifindex: self.device.as_ref()?.ifindex,
            remote: self.remote,
            address: self.next_hop?.address,
        })
    }

    /// Its weight in modes that give all paths the same, in quarters.
    pub(super) const fn equal_quarters(&self) -> u32 {
        if self.reduced { 1 } else { 4 }
    }

    /// Whether the route to its remote address leads over its own device.
    pub(super) fn is_on_route(&self) -> bool {
        let devices = (self.route.as_ref(), self.device.as_ref());
        matches!(devices, (Some(route), Some(device)) if route.ifindex == device.ifindex)
    }
}

/// The next hop of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KnownHop {
    pub address: IpAddr,
    /// Whether OSPF's route over the path's device tells it now; else the last one did.
    pub told: bool,
}

/// A path's device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    pub ifindex: u32,
    pub name: String,
    /// Whether its frames start with an Ethernet header.
    pub ethernet: bool,
}

/// The route to a path's remote address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteSummary {
    pub prefix: (IpAddr, u8),
    pub protocol: u8,
    pub metric: u32,
    /// The next hop: that over the path's own device where there is one.
    pub ifindex: u32,
    pub gateway: Option<IpAddr>,
}

/// What OSPF says of a path's device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OspfSummary {
    pub cost: Option<u32>,
    /// Router id and state of the neighbour.
    pub neighbour: Option<(Ipv4Addr, String)>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn label_of_state<S: serde::Serializer>(
    state: &PathState,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(state.label())
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn label_of_reason<S: serde::Serializer>(
    reason: &StateReason,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reason.label())
}

/// A bond as configured, with the ids that it and its paths have in the maps, and what must be
/// remembered of it.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) id: u32,
    pub(super) config: config::Bond,
    /// By path: its id, and whether OSPF used to reach the peer's prefix over its device and another
    /// of the bond's side by side.
    pub(super) paths: Vec<(u32, bool)>,
    /// The one device of the bond over which the peer was last reached, where it was one.
    pub(super) peer_over: Option<u32>,
}

impl Member {
    /// Addresses whose routes must be known before anything can be said of this bond.
    pub(super) fn targets(&self) -> impl Iterator<Item = IpAddr> {
        let remotes = self.config.paths.iter().map(|path| path.remote);
        remotes.chain(self.config.peer.map(|peer| peer.address))
    }

    /// Decides; `None` as long as a route is not known.
    pub(super) fn plan(&mut self, world: &World, route_protocols: &[u8]) -> Option<BondPlan> {
        if !self.targets().all(|target| world.knows_route(target)) {
            return None;
        }
        let peer = self.config.peer.map(|peer| {
            let route = world.route(peer.address);
            // A shorter one, such as a default route, says nothing of the peer itself.
            route.filter(|route| {
                route.usable
                    && route_protocols.contains(&route.protocol)
                    && route.prefix.1 >= peer.length
            })
        });
        if let Some(Some(route)) = peer {
            self.learn_of_peer(world, route);
        }
        let mut paths: Vec<PathPlan> = Vec::with_capacity(self.paths.len());
        for (path, &(id, peer_seen)) in self.config.paths.iter().zip(&self.paths) {
            let peer = peer.filter(|_| peer_seen);
            paths.push(plan_path(world, route_protocols, path, id, peer));
        }
        settle_standings(&mut paths, &self.config);
        let weighing = weigh(&mut paths, self.config.weights);
        let ceiling = paths
            .iter()
            .zip(&self.config.paths)
            .filter_map(|(plan, path)| {
                let link = world.link(plan.device.as_ref()?.ifindex)?;
                Some(link.mtu.saturating_sub(headers(&self.config, path)))
            })
            .chain(self.config.mtu)
            .min()
            .map(|mtu| mtu.max(LEAST_MTU))
            // A configured MTU alone is a cap, not yet a measure.
            .filter(|_| paths.iter().any(|path| path.device.is_some()));
        let narrowest = self.narrowest(world, &paths);
        let narrowest = narrowest.filter(|(mtu, _)| ceiling.is_some_and(|ceiling| *mtu < ceiling));
        Some(BondPlan {
            id: self.id,
            name: self.config.name.clone(),
            mtu: narrowest.as_ref().map(|(mtu, _)| *mtu).or(ceiling),
            mtu_ceiling: ceiling,
            mtu_bound: narrowest.map_or(MtuBound::Ceiling, |(_, bound)| bound),
            peer_reachable: peer.map(|route| route.is_some()),
            weighing,
            paths,
        })
    }

    /// How long packets may be to pass the path that carries the least, bytes, and what says so. One that carries
    /// less than the bond needs is out of use, and does not count.
    fn narrowest(&self, world: &World, paths: &[PathPlan]) -> Option<(u32, MtuBound)> {
        if self.config.path_mtu == config::PathMtu::Fixed {
            return None;
        }
        let known = paths.iter().zip(&self.config.paths);
        let carried = known.filter_map(|(plan, path)| {
            let path_mtu = *world.path_mtu.get(&plan.id)?;
            let mtu = path_mtu.saturating_sub(headers(&self.config, path));
            let name = plan.name.clone();
            Some((mtu.max(LEAST_MTU), MtuBound::Path { name, path_mtu }))
        });
        carried.min_by_key(|(mtu, _)| *mtu)
    }

    /// Notes over which of the bond's devices the peer is reached. A device is trusted to be one of
    /// them for good only once several were side by side (equal costs): with unequal costs OSPF
    /// leaves the better one only while it must, and back is no failure.
    fn learn_of_peer(&mut self, world: &World, route: &Route) {
        let reached = |path| device(world, path).filter(|link| over(route, link));
        let reached: Vec<Option<u32>> = self
            .config
            .paths
            .iter()
            .map(|path| reached(path).map(|link| link.ifindex))
            .collect();
        let devices: BTreeSet<u32> = reached.iter().flatten().copied().collect();
        match (devices.first(), devices.len()) {
            (None, _) => {}
            (Some(&one), 1) => {
                if self.peer_over.is_some_and(|before| before != one) {
                    self.paths.iter_mut().for_each(|(_, seen)| *seen = false);
                }
                self.peer_over = Some(one);
            }
            (Some(_), _) => {
                self.peer_over = None;
                for ((_, seen), reached) in self.paths.iter_mut().zip(reached) {
                    *seen |= reached.is_some();
                }
            }
        }
    }
}

/// The device of a path.
fn device<'a>(world: &'a World, path: &config::Path) -> Option<&'a Link> {
    match &path.device {
        Some(name) => world.link_named(name),
        // A loopback address says nothing of the way: then the route does.
        None => match world.link_with(path.local) {
            Some(link) if link.name == "lo" => {
                let route = world.route(path.remote)?;
                world.link(route.next_hops.first()?.ifindex)
            }
            found => found,
        },
    }
}

/// Whether a route leads over a device, alone or among others.
fn over(route: &Route, link: &Link) -> bool {
    let mut devices = route.next_hops.iter().map(|next_hop| next_hop.ifindex);
    devices.any(|ifindex| ifindex == link.ifindex)
}

/// `peer` is the route to the peer's own prefix, where that must lead over the path's device.
fn plan_path(
    world: &World,
    route_protocols: &[u8],
    path: &config::Path,
    id: u32,
    peer: Option<Option<&Route>>,
) -> PathPlan {
    let route = world.route(path.remote);
    let link = device(world, path);

    let (state, reason) = if world.admin_down.contains(&id) {
        (PathState::Down, StateReason::Admin)
    } else if link.is_none() && path.device.is_some() {
        (PathState::Down, StateReason::NoDevice)
    } else if world.link_with(path.local).is_none() {
        (PathState::Down, StateReason::NoAddress)
    } else if let Some(link) = link {
        let verdict = world.liveness.get(&id);
        match route {
            _ if !link.up => (PathState::Down, StateReason::DeviceDown),
            None => (PathState::Down, StateReason::NoRoute),
            Some(route) if !route.usable || route.next_hops.is_empty() => {
                (PathState::Down, StateReason::Unreachable)
            }
            Some(route) if !route_protocols.contains(&route.protocol) => {
                (PathState::Down, StateReason::NotOspf)
            }
            Some(route) => match verdict.and_then(judged) {
                Some((PathState::Dead, reason)) => (PathState::Dead, reason),
                _ if !over(route, link) => (PathState::Detour, StateReason::Elsewhere),
                // What passes both ways is no matter of suspicion.
                Some(judged) => judged,
                None => match peer {
                    Some(Some(peer)) if !over(peer, link) => {
                        (PathState::Suspect, StateReason::PeerElsewhere)
                    }
                    Some(_) | None => (PathState::Up, StateReason::Route),
                },
            },
        }
    } else {
        // The local address is on lo, and no route leads away.
        (PathState::Down, StateReason::NoRoute)
    };

    let mut plan = PathPlan {
        id,
        name: path.name.clone(),
        local: path.local,
        remote: path.remote,
        weight: path.weight,
        quarters: 4 * path.weight,
        reduced: false,
        priority: path.priority,
        device: link.map(|link| Device {
            ifindex: link.ifindex,
            name: link.name.clone(),
            ethernet: link.mac.is_some(),
        }),
        state,
        reason,
        standing: Standing::Out,
        next_hop: link.and_then(|link| next_hop(world, route_protocols, path, id, link)),
        passes: false,
        route: route.and_then(|route| summary(route, link)),
        ospf: link.and_then(|link| ospf(world, &link.name, path.remote)),
    };
    // Where OSPF's route is gone another may match: the default route.
    plan.passes = matches!(
        reason,
        StateReason::NoRoute | StateReason::NotOspf | StateReason::Unreachable
    ) && plan.needs_no_route()
        && world.liveness.get(&id).is_some_and(passes);
    plan
}

/// The next hop on a path's Ethernet device, by the route, or by the last that led over it.
fn next_hop(
    world: &World,
    route_protocols: &[u8],
    path: &config::Path,
    id: u32,
    link: &Link,
) -> Option<KnownHop> {
    link.mac.as_ref()?;
    let route = world.route(path.remote);
    let trusted = route.filter(|route| route.usable && route_protocols.contains(&route.protocol));
    let told = trusted.and_then(|route| {
        let mut here = route.next_hops.iter();
        let here = here.find(|next_hop| next_hop.ifindex == link.ifindex)?;
        // Without a gateway it is the remote address itself.
        Some(KnownHop {
            address: here.gateway.unwrap_or(path.remote),
            told: true,
        })
    });
    told.or_else(|| {
        let known = world.neighbours.get(&id)?;
        let same = (known.ifindex, known.remote) == (link.ifindex, path.remote);
        same.then_some(KnownHop {
            address: known.address,
            told: false,
        })
    })
}

/// How a path stands that has a route over its own device, by a verdict; `None` where that says
/// nothing.
fn judged(verdict: &Verdict) -> Option<(PathState, StateReason)> {
    Some(match verdict {
        Verdict::Alive => (PathState::Up, StateReason::Route),
        Verdict::Dead { .. } => (PathState::Dead, StateReason::Silent),
        Verdict::HeldDown { .. } => (PathState::Dead, StateReason::HeldDown),
        Verdict::Mtu { .. } => (PathState::Dead, StateReason::Mtu),
        Verdict::BfdDown { .. } => (PathState::Dead, StateReason::Bfd),
        Verdict::Short(Shortcoming::Lossy { .. }) => (PathState::Degraded, StateReason::Lossy),
        Verdict::Short(Shortcoming::Slow { .. }) => (PathState::Degraded, StateReason::Slow),
        Verdict::Unwatched => return None,
    })
}

/// Whether packets pass, if not all or not of any size.
const fn passes(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Alive | Verdict::Short(_) | Verdict::HeldDown { .. } | Verdict::Mtu { .. } => true,
        Verdict::Dead { .. } | Verdict::BfdDown { .. } | Verdict::Unwatched => false,
    }
}

/// Who takes part: the best that there are. The others that have a route of OSPF, or pass without, wait for
/// the moment when the data plane finds none of those usable.
fn settle_standings(paths: &mut [PathPlan], bond: &config::Bond) {
    let best = paths.iter().filter_map(|path| rank(path, bond)).min();
    for path in paths {
        let rank = rank(path, bond);
        path.standing = match rank {
            None => Standing::Out,
            Some(_) if rank == best => Standing::Usable,
            Some(_) => Standing::LastResort,
        };
        path.reduced = remedy(path.reason, bond) == Some(Remedy::Less);
    }
}

/// Gives each path its weight. The inverse of OSPF's cost where that is wanted, and known of all paths
/// that take part: a mixture would compare what has no common measure.
fn weigh(paths: &mut [PathPlan], weights: Weights) -> Weighing {
    let cost = |path: &PathPlan| {
        let cost = path.ospf.as_ref()?.cost;
        cost.filter(|&cost| cost != 0)
    };
    let unknown = |path: &&PathPlan| path.standing == Standing::Usable && cost(path).is_none();
    let weighing = match (weights, paths.iter().find(unknown)) {
        (Weights::Static, _) => Weighing::Static,
        // The prober's business; the configured ones are where it begins.
        (Weights::Measured, _) => Weighing::Measured,
        (Weights::Ospf, None) => Weighing::Ospf,
        (Weights::Ospf, Some(path)) => Weighing::NoCost(path.name.clone()),
    };
    let common = common_multiple(paths.iter().filter_map(cost));
    for path in paths {
        let weight = match (&weighing, cost(path)) {
            (Weighing::Ospf, Some(cost)) => (common / cost).max(1),
            // No packet is to take it at present.
            (Weighing::Ospf, None) => 1,
            (Weighing::Static | Weighing::Measured | Weighing::NoCost(_), _) => path.weight,
        };
        path.quarters = if path.reduced { weight } else { 4 * weight };
    }
    weighing
}

/// The least number that all of these divide, so that their inverses are exact as shares of it; where
/// that is too large, one that is large enough for shares.
fn common_multiple(numbers: impl Iterator<Item = u32>) -> u32 {
    const ENOUGH: u64 = 1 << 28;
    let gcd = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let common = numbers.map(u64::from).try_fold(1, |common, number| {
        Some(common / gcd(common, number) * number).filter(|&common| common < ENOUGH)
    });
    common.unwrap_or(ENOUGH) as u32
}

/// How willingly a path is used, the best first; `None`: not at all.
fn rank(path: &PathPlan, bond: &config::Bond) -> Option<u8> {
    const FIRST_CHOICE: u8 = 0;
    /// Packets pass, but not as they should.
    const WORKS: u8 = 1;
    /// Packets pass, or some do, or they did until now.
    const DOUBTFUL: u8 = 2;
    const DEAD: u8 = 3;
    match path.state {
        PathState::Up => Some(FIRST_CHOICE),
        PathState::Detour => Some(match bond.detour {
            config::DetourPolicy::Use => FIRST_CHOICE,
            config::DetourPolicy::Avoid => WORKS,
        }),
        PathState::Degraded => Some(match remedy(path.reason, bond) {
            Some(Remedy::Less) | None => FIRST_CHOICE,
            Some(Remedy::Avoid) => WORKS,
        }),
        PathState::Suspect => Some(DOUBTFUL),
        PathState::Dead if matches!(path.reason, StateReason::HeldDown | StateReason::Mtu) => {
            Some(DOUBTFUL)
        }
        PathState::Dead => Some(DEAD),
        // OSPF may be wrong for a while: it is restarted, or learns of a router that was.
        PathState::Down if path.passes => Some(DOUBTFUL),
        PathState::Down => None,
    }
}

/// What the policies say to a path that falls short.
fn remedy(reason: StateReason, bond: &config::Bond) -> Option<Remedy> {
    let policies = &bond.policies;
    if reason == StateReason::Lossy {
        policies.lossy.map(|lossy| lossy.remedy)
    } else if reason == StateReason::Slow {
        policies.slow.map(|slow| slow.remedy)
    } else {
        None
    }
}

fn summary(route: &Route, link: Option<&Link>) -> Option<RouteSummary> {
    let own = |ifindex| link.is_some_and(|link| link.ifindex == ifindex);
    let next_hop = route
        .next_hops
        .iter()
        .find(|next_hop| own(next_hop.ifindex))
        .or_else(|| route.next_hops.first())?;
    Some(RouteSummary {
        prefix: route.prefix,
        protocol: route.protocol,
        metric: route.metric,
        ifindex: next_hop.ifindex,
        gateway: next_hop.gateway,
    })
}

/// What OSPF says of the device of a path with this outer address. Versions 2 and 3 may run side by side on
/// it: their neighbours have addresses of IPv4 and of IPv6.
fn ospf(world: &World, device: &str, outer: IpAddr) -> Option<OspfSummary> {
    let of_family = |interface: &&OspfInterface| {
        let mut neighbours = interface.neighbours.iter();
        neighbours.any(|neighbour| neighbour.address.is_ipv4() == outer.is_ipv4())
    };
    let mut here = world
        .ospf
        .iter()
        .filter(|interface| interface.device == device);
    // One that has lost its neighbours may be of either version; one that has some of the other family is
    // of the other version.
    let alone = |interface: &&OspfInterface| interface.neighbours.is_empty();
    let interface = here.clone().find(of_family).or_else(|| here.find(alone))?;
    let neighbour = interface.neighbours.first();
    Some(OspfSummary {
        cost: interface.cost,
        neighbour: neighbour.map(|neighbour| (neighbour.router_id, neighbour.state.clone())),
    })
}
