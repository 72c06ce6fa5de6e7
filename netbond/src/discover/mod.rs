//! From OSPF's database to a bond: the largest set of link-disjoint paths to a peer, each with a pair of addresses
//! between which OSPF leads packets over it.
//!
//! A [`View`] is one area as the daemon knows it. What is pure is here: [`graph`] says how many paths there are,
//! [`route`] where packets go, [`select`] which of the paths packets take, [`file`] writes it down.
//! [`host`] asks the kernel, [`trace`] sees with packets whether they do go there.

mod file;
#[cfg(test)]
mod fixtures;
mod graph;
pub mod host;
mod network;
mod route;
mod select;
#[cfg(test)]
mod tests;
pub mod trace;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use netbond_common::abi::MAX_BOND_PATHS;
use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use self::graph::Hop;
use self::network::{Address, Network};
use self::route::Routes;
use self::select::{Candidate, Obstacle, Outer};
use self::trace::{Answer, Question, Reply};
use crate::config::{Prefix, text::unique};
use crate::ospf::{Daemon, lsdb::Instance};

pub use self::file::{Request, of_peer, of_this_end};
pub use self::network::{Host, OwnBond};
pub use self::select::{KernelRoute, KernelRoutes};

/// A bond takes no more.
const MAX_PATHS: usize = MAX_BOND_PATHS as usize;

/// An area, as one daemon knows it.
pub struct View {
    pub daemon: Daemon,
    pub area: Ipv4Addr,
    pub family: Family,
    network: Network,
    bonds: Vec<OwnBond>,
    /// Paths that packets were seen not to take.
    refuted: Vec<Vec<Hop>>,
}

/// Of the addresses and prefixes of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// A router that may be a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouterSummary {
    pub id: Ipv4Addr,
    /// Of OSPF's shortest path.
    pub cost: u64,
    /// Link-disjoint paths to it, whether or not there are addresses for them.
    pub paths: usize,
    /// Of its own, besides those on links.
    pub addresses: Vec<IpAddr>,
}

/// What names a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The number of a router.
    Router(usize),
    /// This router itself.
    Own,
    /// An address of a link one of whose ends it is.
    OneOf([Ipv4Addr; 2]),
}

/// What is proposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// Router ids.
    pub own: Ipv4Addr,
    pub peer: Ipv4Addr,
    pub area: Ipv4Addr,
    pub family: Family,
    /// Prefixes of their own that OSPF knows, that of the router id if there is such.
    #[serde(serialize_with = "shown_if_any")]
    pub own_prefix: Option<Prefix>,
    #[serde(serialize_with = "shown_if_any")]
    pub peer_prefix: Option<Prefix>,
    /// How many link-disjoint paths there are; at most as many as a bond takes.
    pub possible: usize,
    /// The cheapest first.
    pub paths: Vec<ProposedPath>,
    /// Paths of the largest set that has no addresses.
    pub missing: Vec<MissingPath>,
    /// Links of which each further path would take one; empty where a bond takes no more paths.
    pub bottleneck: Vec<LinkName>,
    /// Links that every path takes.
    pub bridges: Vec<LinkName>,
    /// Middle routers of several paths.
    pub shared_routers: Vec<SharedRouter>,
    /// Paths that packets were seen not to take, though the database says so.
    pub refuted: Vec<Vec<HopName>>,
    /// Own devices in OSPF that no path may take, as they are bonds.
    pub bonds: Vec<String>,
}

/// A path with its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProposedPath {
    pub name: String,
    pub local: IpAddr,
    pub remote: IpAddr,
    /// Where neither the daemon nor packets tell which of a link's two addresses is the peer's: the other one.
    pub remote_or: Option<IpAddr>,
    /// This router's, and the middle routers between, the peer at last.
    pub device: String,
    pub hops: Vec<HopName>,
    /// Whether the addresses are those on the path's first and last link.
    pub local_on_link: bool,
    pub remote_on_link: bool,
    pub cost_there: u64,
    pub cost_back: u64,
    /// Whether this router's route to the remote address begins with another device.
    pub detour: bool,
    /// Whether the peer's route to the local address does.
    pub peer_detour: bool,
    #[serde(flatten)]
    pub seen: Seen,
}

/// A hop of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HopName {
    pub router: Ipv4Addr,
    /// Of the link that leads there.
    #[serde(serialize_with = "shown_if_any")]
    pub prefix: Option<Prefix>,
}

/// A link, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkName {
    /// Router ids.
    pub routers: Vec<Ipv4Addr>,
    #[serde(serialize_with = "shown_if_any")]
    pub prefix: Option<Prefix>,
}

/// A path that exists, and that packets do not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingPath {
    pub hops: Vec<HopName>,
    /// What is wrong and what to do, there and back.
    pub reasons: Vec<String>,
}

/// A middle router of several paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SharedRouter {
    pub router: Ipv4Addr,
    /// Names.
    pub paths: Vec<String>,
}

/// What packets told of a path. In JSON two fields, `seen` and `unanswered`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// None were sent.
    NotTried,
    /// Each router on it answered.
    Whole,
    /// These did not, or from an address that the database has not.
    Except(Vec<Ipv4Addr>),
}

/// What an answer tells of a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// The packet was at the router that the database says.
    There,
    /// It was at another one.
    Elsewhere,
    Nothing,
}

impl OwnBond {
    fn leads_to(&self, addresses: &[IpAddr]) -> bool {
        let mut remotes = self.paths.iter().map(|(_, remote)| remote);
        remotes.any(|remote| addresses.contains(remote))
    }
}

impl Serialize for Seen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (seen, unanswered): (_, &[Ipv4Addr]) = match self {
            Self::NotTried => ("not_tried", &[]),
            Self::Whole => ("whole", &[]),
            Self::Except(routers) => ("except", routers),
        };
        let mut fields = serializer.serialize_struct("Seen", 2)?;
        fields.serialize_field("seen", seen)?;
        fields.serialize_field("unanswered", unanswered)?;
        fields.end()
    }
}

fn shown_if_any<S: Serializer>(prefix: &Option<Prefix>, serializer: S) -> Result<S::Ok, S::Error> {
    prefix
        .map(|prefix| prefix.to_string())
        .serialize(serializer)
}

impl ProposedPath {
    /// The routers on it but for its two ends.
    pub fn middle(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let middle = self.hops.split_last().map_or(&[][..], |(_, middle)| middle);
        middle.iter().map(|hop| hop.router)
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, router) in self.routers.iter().enumerate() {
            let separator = if i == 0 { "" } else { " - " };
            write!(f, "{separator}{router}")?;
        }
        match self.prefix {
            Some(prefix) => write!(f, " ({prefix})"),
            None => Ok(()),
        }
    }
}

impl View {
    /// The areas that this router is in.
    #[must_use]
    pub fn all(daemon: &Daemon, instances: Vec<Instance>, host: &Host) -> Vec<Self> {
        let mut views = Vec::new();
        for Instance {
            database,
            interfaces,
        } in instances
        {
            let host = Host {
                interfaces,
                ..host.clone()
            };
            for area in &database.areas {
                views.extend(Network::new(area, database.own, &host).map(|network| Self {
                    daemon: daemon.clone(),
                    area: area.id,
                    family: if area.is_ipv6() {
                        Family::Ipv6
                    } else {
                        Family::Ipv4
                    },
                    network,
                    bonds: host.bonds.clone(),
                    refuted: Vec::new(),
                }));
            }
        }
        views
    }

    /// The other routers that can be reached, those with the most paths first.
    #[must_use]
    pub fn routers(&self) -> Vec<RouterSummary> {
        let (graph, routes) = (self.network.graph(), Routes::new(&self.network));
        let own = self.network.own;
        let mut routers: Vec<RouterSummary> = (0..self.network.routers.len())
            .filter(|&router| router != own)
            .filter_map(|router| {
                let addresses = select::addresses_of(&self.network, router).into_iter();
                let host = |(address, link)| match (address, link) {
                    (Address::Known(address), None) => Some(address),
                    _ => None,
                };
                Some(RouterSummary {
                    id: self.network.id(router),
                    cost: routes.distance(own, router)?,
                    paths: graph.disjoint_paths(own, router, MAX_PATHS).paths.len(),
                    addresses: addresses.filter_map(host).collect(),
                })
            })
            .collect();
        routers.sort_by_key(|router| (usize::MAX - router.paths, router.cost, router.id));
        routers
    }

    /// The router with that id, or else that address.
    #[must_use]
    pub fn find(&self, peer: IpAddr) -> Option<Found> {
        let mut routers = self.network.routers.iter();
        let owners = match routers.position(|router| IpAddr::V4(router.id) == peer) {
            Some(router) => vec![router],
            None => self.network.owners(peer),
        };
        match owners[..] {
            [router] if router == self.network.own => Some(Found::Own),
            [router] => Some(Found::Router(router)),
            [one, other, ..] => Some(Found::OneOf([one, other].map(|it| self.network.id(it)))),
            [] => None,
        }
    }

    /// The addresses to which a path may lead: of these [`View::propose`] wants to know the kernel's routes.
    #[must_use]
    pub fn addresses_of(&self, peer: usize) -> Vec<IpAddr> {
        let addresses = select::addresses_of(&self.network, peer);
        let possible: BTreeSet<IpAddr> = addresses
            .iter()
            .flat_map(|(address, _)| address.possible().iter().copied())
            .collect();
        possible.into_iter().collect()
    }

    /// What to call a bond to a peer: as the one that is there, else the first name that is free.
    #[must_use]
    pub fn bond_name(&self, peer: usize) -> String {
        let addresses = self.addresses_of(peer);
        if let Some(bond) = self.bonds.iter().find(|bond| bond.leads_to(&addresses)) {
            return bond.name.clone();
        }
        let taken = |name: &String| self.bonds.iter().any(|bond| bond.name == *name);
        let mut names = (0..=self.bonds.len()).map(|number| format!("nb{number}"));
        names.find(|name| !taken(name)).unwrap_or_default()
    }

    /// Names of paths of bonds to others.
    fn names_of_others(&self, peer: usize) -> Vec<&str> {
        let addresses = self.addresses_of(peer);
        let others = self.bonds.iter().filter(|bond| !bond.leads_to(&addresses));
        let paths = others.flat_map(|bond| &bond.paths);
        paths.map(|(name, _)| name.as_str()).collect()
    }

    /// The best bond to a peer; `own` are this host's addresses.
    #[must_use]
    pub fn propose(&self, peer: usize, own: &[IpAddr], kernel: &KernelRoutes) -> Proposal {
        let network = &self.network;
        let (graph, routes) = (network.graph(), Routes::new(network));
        let here = network.own;
        let disjoint = graph.disjoint_paths(here, peer, MAX_PATHS);
        let mut candidates = select::candidates(network, &routes, peer, own, kernel);
        candidates.retain(|candidate| !self.refuted.contains(&candidate.hops));
        let pairs = select::pairs(&select::best(&candidates, MAX_PATHS));

        let of_others = self.names_of_others(peer);
        let mut paths: Vec<ProposedPath> = Vec::new();
        for (candidate, local, remote) in &pairs {
            let so_far = paths.iter().map(|path| path.name.as_str());
            let taken: Vec<&str> = so_far.chain(of_others.iter().copied()).collect();
            let name = self.path_name(&candidate.hops, &taken);
            paths.extend(self.proposed(name, candidate, *local, *remote));
        }
        let mut missing = Vec::new();
        if paths.len() < disjoint.paths.len() {
            for path in &disjoint.paths {
                let chosen = pairs.iter().any(|(candidate, ..)| candidate.hops == *path);
                if !chosen && !self.refuted.contains(path) {
                    missing.push(MissingPath {
                        hops: self.hop_names(path),
                        reasons: self.reasons(&routes, peer, path),
                    });
                }
            }
        }
        let links =
            |links: Vec<usize>| links.into_iter().map(|link| self.link_name(link)).collect();
        Proposal {
            own: network.id(here),
            peer: network.id(peer),
            area: self.area,
            family: self.family,
            own_prefix: self.own_prefix(here),
            peer_prefix: self.own_prefix(peer),
            possible: disjoint.paths.len(),
            missing,
            bottleneck: links(disjoint.cut),
            bridges: links(graph.bridges(here, peer)),
            shared_routers: shared_routers(&paths),
            refuted: self
                .refuted
                .iter()
                .map(|path| self.hop_names(path))
                .collect(),
            bonds: network
                .links
                .iter()
                .filter(|link| link.bond)
                .filter_map(|link| link.device.clone())
                .collect(),
            paths,
        }
    }

    /// What to ask of packets about a proposal: each path's way, once for each address that may be the peer's.
    #[must_use]
    pub fn questions(proposal: &Proposal) -> Vec<Question> {
        let of_path = |path: &ProposedPath| {
            let question = |remote| Question {
                local: path.local,
                remote,
                device: path.device.clone(),
                hops: path.hops.len(),
            };
            [Some(path.remote), path.remote_or]
                .into_iter()
                .flatten()
                .map(question)
                .collect::<Vec<_>>()
        };
        proposal.paths.iter().flat_map(of_path).collect()
    }

    /// Takes in what packets told of a proposal. Whether it must be made anew: they took another way than the
    /// database says, or told which of two addresses is the peer's.
    pub fn learn(&mut self, proposal: &mut Proposal, answers: &[(Question, Answer)]) -> bool {
        let answer = |path: &ProposedPath, remote| {
            let about = |(question, _): &&(Question, Answer)| {
                (question.local, question.remote, &question.device)
                    == (path.local, remote, &path.device)
            };
            answers.iter().find(about).map(|(_, answer)| answer)
        };
        let mut anew = false;
        for path in &mut proposal.paths {
            let Some(seen) = answer(path, path.remote) else {
                continue;
            };
            if let Some(other) = path.remote_or {
                let far = answer(path, other).and_then(|of_other| trace::is_far(seen, of_other));
                let address = far.map(|first| if first { path.remote } else { other });
                if let Some(address) = address {
                    anew |= self.network.settle(proposal.peer, address);
                }
                continue;
            }
            let mut silent = Vec::new();
            let (hops, replies) = (path.hops.iter(), seen.0.iter());
            for (number, (hop, reply)) in hops.zip(replies).enumerate() {
                let last = number + 1 == path.hops.len();
                match reply.map_or(Told::Nothing, |reply| self.told(hop, last, reply)) {
                    Told::There => {}
                    Told::Nothing => silent.push(hop.router),
                    Told::Elsewhere => {
                        // Once: of two unnumbered links side by side it may be the other one's.
                        if let Some(hops) = self.numbered(&path.hops)
                            && !self.refuted.contains(&hops)
                        {
                            self.refuted.push(hops);
                            anew = true;
                            break;
                        }
                        silent.push(hop.router);
                    }
                }
            }
            path.seen = if silent.is_empty() {
                Seen::Whole
            } else {
                Seen::Except(silent)
            };
        }
        anew
    }

    /// What an answer tells of a hop.
    fn told(&self, hop: &HopName, last: bool, reply: Reply) -> Told {
        if reply.arrived && !last {
            return Told::Elsewhere;
        }
        let owners = self.network.owners(reply.from);
        let mut ids = owners.iter().map(|&owner| self.network.id(owner));
        if owners.is_empty() {
            Told::Nothing
        } else if !ids.any(|id| id == hop.router) {
            Told::Elsewhere
        } else if reply.arrived == last {
            Told::There
        } else {
            Told::Nothing
        }
    }

    fn proposed(
        &self,
        name: String,
        candidate: &Candidate,
        local: Outer,
        remote: Outer,
    ) -> Option<ProposedPath> {
        let (first, last) = (candidate.hops.first()?, candidate.hops.last()?);
        let (&local_address, _) = local.address.possible().split_first()?;
        let (&remote_address, others) = remote.address.possible().split_first()?;
        Some(ProposedPath {
            name,
            local: local_address,
            remote: remote_address,
            remote_or: others.first().copied(),
            device: self.network.links[first.link].device.clone()?,
            hops: self.hop_names(&candidate.hops),
            local_on_link: local.link == Some(first.link),
            remote_on_link: remote.link == Some(last.link),
            cost_there: self.cost(self.network.own, &candidate.hops),
            cost_back: self.cost(
                last.router,
                &select::reversed(self.network.own, &candidate.hops),
            ),
            detour: !remote.on_route,
            peer_detour: !local.on_route,
            seen: Seen::NotTried,
        })
    }

    /// What a packet costs on a path, by its routers' own costs.
    fn cost(&self, from: usize, path: &[Hop]) -> u64 {
        let before = std::iter::once(from).chain(path.iter().map(|hop| hop.router));
        let ends = path
            .iter()
            .zip(before)
            .filter_map(|(hop, router)| self.network.links[hop.link].end_of(router));
        ends.map(|end| u64::from(end.cost)).sum()
    }

    /// A name made of the first middle router's id; at most 31 bytes.
    fn path_name(&self, path: &[Hop], taken: &[&str]) -> String {
        let name = match path {
            [] | [_] => "direct".to_owned(),
            [first, ..] => format!("via-{}", self.network.id(first.router)),
        };
        unique(name, taken)
    }

    fn hop_names(&self, path: &[Hop]) -> Vec<HopName> {
        let name = |hop: &Hop| HopName {
            router: self.network.id(hop.router),
            prefix: self.network.links[hop.link].prefix,
        };
        path.iter().map(name).collect()
    }

    /// The hops that have these names.
    fn numbered(&self, names: &[HopName]) -> Option<Vec<Hop>> {
        let mut at = self.network.own;
        let mut hops = Vec::new();
        for name in names {
            let hop = self.network.hops_from(at).find(|hop| {
                self.network.id(hop.router) == name.router
                    && self.network.links[hop.link].prefix == name.prefix
            })?;
            at = hop.router;
            hops.push(hop);
        }
        Some(hops)
    }

    fn link_name(&self, number: usize) -> LinkName {
        let link = &self.network.links[number];
        LinkName {
            routers: link
                .ends
                .iter()
                .map(|end| self.network.id(end.router))
                .collect(),
            prefix: link.prefix,
        }
    }

    /// A host's prefix that the router announces: that of its id, or the first.
    fn own_prefix(&self, router: usize) -> Option<Prefix> {
        let router = &self.network.routers[router];
        let stubs = router.stubs.iter().map(|stub| stub.prefix);
        let mut hosts: Vec<Prefix> = stubs.filter(|prefix| prefix.is_host()).collect();
        hosts.sort_by_key(|prefix| prefix.address != IpAddr::V4(router.id));
        hosts.first().copied()
    }

    /// Why a path has no addresses, and what to do.
    fn reasons(&self, routes: &Routes<'_>, peer: usize, path: &[Hop]) -> Vec<String> {
        let here = self.network.own;
        let (_, host) = self.lengths();
        let back = select::reversed(here, path);
        let mut reasons = Vec::new();
        for (from, path) in [(here, path), (peer, &back[..])] {
            reasons.extend(
                select::obstacle(&self.network, routes, from, path)
                    .map(|obstacle| self.reason(path, &obstacle)),
            );
        }
        if reasons.is_empty() {
            reasons.push(format!(
                "packets would take it, but no pair of addresses is left that is no other path's: give both \
                 routers one more address (a {host} on lo) that OSPF announces"
            ));
        }
        reasons
    }

    /// Prefix lengths for a point-to-point link, and for a single address.
    const fn lengths(&self) -> (&'static str, &'static str) {
        match self.family {
            Family::Ipv4 => ("/31", "/32"),
            Family::Ipv6 => ("/127", "/128"),
        }
    }

    fn reason(&self, path: &[Hop], obstacle: &Obstacle) -> String {
        let (link, host) = self.lengths();
        let end = path
            .last()
            .map_or(Ipv4Addr::UNSPECIFIED, |hop| self.network.id(hop.router));
        match obstacle {
            Obstacle::NoAddress => format!(
                "{end} has no address there that OSPF tells: number the link (a {link} does), or give {end} an \
                 address of its own (a {host} on lo) that OSPF announces"
            ),
            Obstacle::OnLink(address) => format!(
                "{address} of {end} is on a link with no router between, so that no route of OSPF leads there: \
                 give {end} an address of its own (a {host} on lo) that OSPF announces"
            ),
            Obstacle::Astray {
                address,
                router,
                wanted,
                instead,
            } => {
                let router = self.network.id(*router);
                let wanted = self.network.id(wanted.router);
                let led: BTreeSet<Ipv4Addr> = instead
                    .iter()
                    .map(|hop| self.network.id(hop.router))
                    .collect();
                let led: Vec<String> = led.iter().map(Ipv4Addr::to_string).collect();
                let leads = match (&led[..], instead.len()) {
                    ([], _) => format!("has no route to {address}"),
                    ([one], 1) => format!("leads what is for {address} by {one}"),
                    ([one], _) => {
                        format!("spreads what is for {address} over its links with {one}")
                    }
                    (several, _) => format!(
                        "spreads what is for {address} over {}",
                        several.join(" and ")
                    ),
                };
                format!(
                    "{router} {leads}: make its way by {wanted} cheaper, or give it a static route by \
                     {wanted} for this address ({host})"
                )
            }
        }
    }
}

fn shared_routers(paths: &[ProposedPath]) -> Vec<SharedRouter> {
    let all: BTreeSet<Ipv4Addr> = paths.iter().flat_map(ProposedPath::middle).collect();
    let mut shared = Vec::new();
    for router in all {
        let with = paths
            .iter()
            .filter(|path| path.middle().any(|other| other == router));
        let names: Vec<String> = with.map(|path| path.name.clone()).collect();
        if names.len() > 1 {
            shared.push(SharedRouter {
                router,
                paths: names,
            });
        }
    }
    shared
}
