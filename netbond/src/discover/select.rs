//! Pairs of addresses between which OSPF leads packets, and the largest set of them that has no link in common.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::graph::{self, Hop};
use super::network::{Address, Network};
use super::route::{Next, Routes, Target};

/// Steps of the search for the best set. What larger ones would need is more than people read.
const SEARCH_LIMIT: usize = 500_000;

/// An address of one of the two routers, as the outer address of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outer {
    pub(super) address: Address,
    /// The link that it is on; `None` of an address of its own, such as that of a loopback device.
    pub(super) link: Option<usize>,
    /// Whether the route to it begins with the path's own first hop. Where not, netbond still sends by the path's
    /// own device, and calls that a detour.
    pub(super) on_route: bool,
}

/// A path that packets really take, both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) hops: Vec<Hop>,
    /// There and back.
    pub(super) cost: u64,
    /// Own addresses that it comes back to, the best first.
    pub(super) locals: Vec<Outer>,
    /// The peer's addresses that it leads to, the best first.
    pub(super) remotes: Vec<Outer>,
}

/// What the kernel does with a packet to an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelRoute {
    /// Names.
    pub devices: Vec<String>,
    /// Whether the route is one of those that netbond takes for OSPF's.
    pub of_ospf: bool,
}

/// By address; those without a route are missing.
pub type KernelRoutes = BTreeMap<IpAddr, KernelRoute>;

/// The addresses by which a router may be reached.
pub(super) fn addresses_of(network: &Network, router: usize) -> Vec<(Address, Option<usize>)> {
    let links = network.links.iter().enumerate();
    let links = links.filter(|(_, link)| !link.bond);
    let on_links = links.filter_map(|(number, link)| {
        let address = link.end_of(router)?.address;
        (address != Address::Unknown).then_some((address, Some(number)))
    });
    let known: Vec<_> = on_links.collect();
    let hosts = network.routers[router].stubs.iter().filter_map(|stub| {
        let address = stub.prefix.address;
        let is_new = known
            .iter()
            .all(|(known, _)| *known != Address::Known(address));
        (stub.prefix.is_host() && is_new).then_some((Address::Known(address), None))
    });
    let hosts: Vec<_> = hosts.collect();
    known.into_iter().chain(hosts).collect()
}

/// Every path from this router to `peer` that has addresses. `own` are this host's own addresses.
pub(super) fn candidates(
    network: &Network,
    routes: &Routes<'_>,
    peer: usize,
    own: &[IpAddr],
    kernel: &KernelRoutes,
) -> Vec<Candidate> {
    let graph = network.graph();
    let here = network.own;
    let mut there: BTreeMap<Vec<Hop>, Vec<Outer>> = BTreeMap::new();
    for (address, link) in addresses_of(network, peer) {
        let Some(route) = route_of(kernel, address) else {
            continue;
        };
        for (first, way) in ways(network, routes, here, peer, address) {
            let device = network.links[first.link].device.as_ref();
            let on_route = device.is_some_and(|device| route.devices.contains(device));
            if device.is_some() && (on_route || network.links[first.link].is_tunnel()) {
                there.entry(way).or_default().push(Outer {
                    address,
                    link,
                    on_route,
                });
            }
        }
    }
    let mut back: BTreeMap<Vec<Hop>, Vec<Outer>> = BTreeMap::new();
    for (address, link) in addresses_of(network, here) {
        let is_own = matches!(address, Address::Known(address) if own.contains(&address));
        let (true, Some(target)) = (is_own, target(address, here)) else {
            continue;
        };
        // To what is on its own link the peer has no route of OSPF.
        let Next::Via(hops) = routes.next(peer, target) else {
            continue;
        };
        for (first, way) in ways(network, routes, peer, here, address) {
            let on_route = hops.contains(&first);
            if on_route || network.links[first.link].is_tunnel() {
                back.entry(reversed(peer, &way)).or_default().push(Outer {
                    address,
                    link,
                    on_route,
                });
            }
        }
    }
    let mut all = Vec::new();
    for (hops, mut remotes) in there {
        let Some(mut locals) = back.remove(&hops) else {
            continue;
        };
        let (first, last) = (hops.first(), hops.last());
        let rank = |outer: &Outer, hop: Option<&Hop>| {
            let elsewhere = outer.link != hop.map(|hop| hop.link);
            (
                !outer.on_route,
                elsewhere,
                outer.link.is_some(),
                outer.address,
            )
        };
        remotes.sort_by_key(|outer| rank(outer, last));
        locals.sort_by_key(|outer| rank(outer, first));
        all.push(Candidate {
            cost: graph.cost(here, &hops),
            hops,
            locals,
            remotes,
        });
    }
    all
}

/// The kernel's route to an address, where netbond takes it for one of OSPF.
fn route_of(kernel: &KernelRoutes, address: Address) -> Option<&KernelRoute> {
    let routes: Option<Vec<&KernelRoute>> = address
        .possible()
        .iter()
        .map(|address| kernel.get(address))
        .collect();
    let routes = routes?;
    let of_ospf = routes.iter().all(|route| route.of_ospf);
    routes.first().copied().filter(|_| of_ospf)
}

fn target(address: Address, owner: usize) -> Option<Target> {
    let &address = address.possible().first()?;
    Some(Target { address, owner })
}

/// By each hop away from `from`, the way of a packet to an address of `to`, where there is one.
fn ways(
    network: &Network,
    routes: &Routes<'_>,
    from: usize,
    to: usize,
    address: Address,
) -> Vec<(Hop, Vec<Hop>)> {
    let Some(target) = target(address, to) else {
        return Vec::new();
    };
    let by = |first: Hop| Some((first, routes.trace(from, first, target).ok()?));
    let hops = network.hops_from(from);
    let hops = hops.filter(|hop| !network.links[hop.link].bond);
    hops.filter_map(by).collect()
}

/// A way from `from`, as it is from its other end.
pub(super) fn reversed(from: usize, way: &[Hop]) -> Vec<Hop> {
    let before = std::iter::once(from).chain(way.iter().map(|hop| hop.router));
    let back = way.iter().zip(before).map(|(hop, router)| Hop {
        link: hop.link,
        router,
    });
    let mut back: Vec<Hop> = back.collect();
    back.reverse();
    back
}

/// How good a set is, the less the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Counted down.
    missing: usize,
    /// Middle routers used again.
    shared: usize,
    /// Ends at which the route begins otherwise.
    detours: usize,
    cost: u64,
}

/// The best set of candidates without a link in common: as many as there are, of these with the fewest middle
/// routers in common, then with the fewest detours, then the cheapest. At most `limit`, the cheapest first.
pub(super) fn best(candidates: &[Candidate], limit: usize) -> Vec<&Candidate> {
    // By first link: a set has one of each at the most.
    let mut groups: BTreeMap<usize, Vec<&Candidate>> = BTreeMap::new();
    for candidate in candidates {
        if let Some(first) = candidate.hops.first() {
            groups.entry(first.link).or_default().push(candidate);
        }
    }
    let mut groups: Vec<Vec<&Candidate>> = groups.into_values().collect();
    for group in &mut groups {
        group.sort_by_key(|candidate| (detours(candidate), candidate.cost));
    }
    let mut search = Search {
        groups,
        limit,
        steps: 0,
        best: (rank(&[], limit), Vec::new()),
    };
    search.extend(0, &mut Vec::new(), &mut BTreeSet::new());
    let mut chosen = search.best.1;
    chosen.sort_by_key(|candidate| (candidate.cost, &candidate.hops));
    chosen
}

/// The ends at which a path's route begins otherwise.
fn detours(candidate: &Candidate) -> usize {
    let off_route = |outers: &[Outer]| usize::from(!outers.iter().any(|outer| outer.on_route));
    off_route(&candidate.locals) + off_route(&candidate.remotes)
}

fn rank(chosen: &[&Candidate], limit: usize) -> Rank {
    let paths: Vec<&[Hop]> = chosen.iter().map(|candidate| &candidate.hops[..]).collect();
    Rank {
        missing: limit.saturating_sub(chosen.len()),
        shared: graph::shared(&paths),
        detours: chosen.iter().map(|candidate| detours(candidate)).sum(),
        cost: chosen.iter().map(|candidate| candidate.cost).sum(),
    }
}

/// Branch and bound over the groups.
struct Search<'c> {
    groups: Vec<Vec<&'c Candidate>>,
    limit: usize,
    steps: usize,
    best: (Rank, Vec<&'c Candidate>),
}

impl<'c> Search<'c> {
    fn extend(
        &mut self,
        group: usize,
        chosen: &mut Vec<&'c Candidate>,
        taken: &mut BTreeSet<usize>,
    ) {
        self.steps += 1;
        let now = rank(chosen, self.limit);
        if now < self.best.0 {
            self.best = (now, chosen.clone());
        }
        // Whatever is added, the rest of the rank only grows.
        let bound = Rank {
            missing: now.missing.saturating_sub(self.groups.len() - group),
            ..now
        };
        let done = group == self.groups.len() || chosen.len() == self.limit;
        if done || bound >= self.best.0 || self.steps > SEARCH_LIMIT {
            return;
        }
        for i in 0..self.groups[group].len() {
            let candidate = self.groups[group][i];
            let links = || candidate.hops.iter().map(|hop| hop.link);
            if links().any(|link| taken.contains(&link)) {
                continue;
            }
            taken.extend(links());
            chosen.push(candidate);
            self.extend(group + 1, chosen, taken);
            chosen.pop();
            for link in links() {
                taken.remove(&link);
            }
        }
        self.extend(group + 1, chosen, taken);
    }
}

/// The addresses of each chosen path: the best ones, but no pair twice. A path without one of its own is left out.
pub(super) fn pairs<'c>(chosen: &[&'c Candidate]) -> Vec<(&'c Candidate, Outer, Outer)> {
    let mut used: Vec<(Address, Address)> = Vec::new();
    let mut found = Vec::new();
    for &candidate in chosen {
        let all = candidate
            .remotes
            .iter()
            .flat_map(|&remote| candidate.locals.iter().map(move |&local| (local, remote)));
        let free = all
            .into_iter()
            .find(|(local, remote)| !used.contains(&(local.address, remote.address)));
        if let Some((local, remote)) = free {
            used.push((local.address, remote.address));
            found.push((candidate, local, remote));
        }
    }
    found
}

/// Why packets do not take a path that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The router at the path's end has no address that is known.
    NoAddress,
    /// All that is known of it is this address on a link that both routers share: no route of OSPF leads there.
    OnLink(Address),
    /// A router leads them elsewhere.
    Astray {
        address: Address,
        router: usize,
        /// Where it should lead them.
        wanted: Hop,
        /// Where it does: several spread them, none drops them.
        instead: BTreeSet<Hop>,
    },
}

/// Why packets of `from` to the end of `path` do not take it, whichever of that router's addresses they are for;
/// `None` where they do. Of several addresses it is that which comes the farthest.
pub(super) fn obstacle(
    network: &Network,
    routes: &Routes<'_>,
    from: usize,
    path: &[Hop],
) -> Option<Obstacle> {
    let (Some(first), Some(last)) = (path.first(), path.last()) else {
        return None;
    };
    let mut addresses = addresses_of(network, last.router);
    // First the one on the path itself: of two that come as far it is told.
    addresses.sort_by_key(|(_, link)| *link != Some(last.link));
    let mut farthest: (usize, Obstacle) = (0, Obstacle::NoAddress);
    for (address, _) in addresses {
        let Some(target) = target(address, last.router) else {
            continue;
        };
        let next = routes.next(from, target);
        let outright = match &next {
            Next::OnLink(_) => Some(Obstacle::OnLink(address)),
            Next::Nowhere => Some(Obstacle::Astray {
                address,
                router: from,
                wanted: *first,
                instead: BTreeSet::new(),
            }),
            Next::Via(_) | Next::Arrived => None,
        };
        if let Some(outright) = outright {
            if farthest.1 == Obstacle::NoAddress {
                farthest.1 = outright;
            }
            continue;
        }
        // A tunnel is sent into whatever the route says; all other links only where that leads there.
        let begin = match next {
            Next::Via(hops) if !hops.contains(first) && !network.links[first.link].is_tunnel() => {
                Some((1, from, *first, hops))
            }
            Next::Via(_) | Next::OnLink(_) | Next::Arrived | Next::Nowhere => None,
        };
        let astray = begin.or_else(|| {
            let mut at = first.router;
            path.iter()
                .enumerate()
                .skip(1)
                .find_map(|(followed, &wanted)| {
                    let hops = match routes.next(at, target) {
                        Next::Via(hops) => hops,
                        Next::OnLink(hop) => BTreeSet::from([hop]),
                        Next::Arrived | Next::Nowhere => BTreeSet::new(),
                    };
                    let router = std::mem::replace(&mut at, wanted.router);
                    (hops != BTreeSet::from([wanted])).then_some((
                        followed + 1,
                        router,
                        wanted,
                        hops,
                    ))
                })
        });
        let (followed, router, wanted, instead) = astray?;
        if followed > farthest.0 {
            let astray = Obstacle::Astray {
                address,
                router,
                wanted,
                instead,
            };
            farthest = (followed, astray);
        }
    }
    Some(farthest.1)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::discover::fixtures::{self, A, B, Source, U, V};

    fn found(source: Source) -> (Network, Vec<Candidate>) {
        let network = fixtures::network(source);
        let peer = network.number(B);
        let routes = Routes::new(&network);
        let own = fixtures::own_addresses();
        let all = candidates(
            &network,
            &routes,
            peer,
            &own,
            &fixtures::kernel(&network, peer),
        );
        (network, all)
    }

    fn way(network: &Network, candidate: &Candidate) -> Vec<Ipv4Addr> {
        candidate
            .hops
            .iter()
            .map(|hop| network.id(hop.router))
            .collect()
    }

    #[test]
    fn the_shortest_path_is_given_up_for_two_others() {
        for source in [Source::Bird, Source::Frr] {
            let (network, all) = found(source);
            let best = best(&all, 16);
            let ways: Vec<_> = best.iter().map(|&one| way(&network, one)).collect();
            assert_eq!(ways, [[U, B], [V, B]]);
            let pairs = pairs(&best);
            let shown: Vec<_> = pairs
                .iter()
                .map(|(_, local, remote)| {
                    let one =
                        |outer: &Outer| (outer.address.possible()[0].to_string(), outer.on_route);
                    (one(local), one(remote))
                })
                .collect();
            // To U's link with B packets go by U anyway; to V's link with B A's own route is by U. And back likewise.
            let pair = |local: &str, here, remote: &str, there| {
                ((local.to_owned(), here), (remote.to_owned(), there))
            };
            let ends = if source == Source::Bird {
                ["10.65.0.17", "10.65.0.9"]
            } else {
                ["10.65.0.18", "10.65.0.10"]
            };
            assert_eq!(
                shown,
                [
                    pair("10.65.0.1", false, ends[0], true),
                    pair("10.65.0.13", true, ends[1], false)
                ]
            );
        }
    }

    #[test]
    fn a_way_is_the_same_from_its_other_end() {
        let (network, all) = found(Source::Frr);
        let peer = network.number(B);
        for candidate in &all {
            let back = reversed(network.own, &candidate.hops);
            assert_eq!(back.last().map(|hop| hop.router), Some(network.own));
            assert_eq!(reversed(peer, &back), candidate.hops);
        }
    }

    #[test]
    fn what_the_kernel_does_not_take_for_ospf_is_no_outer_address() {
        let network = fixtures::network(Source::Frr);
        let peer = network.number(B);
        let routes = Routes::new(&network);
        let mut kernel = fixtures::kernel(&network, peer);
        for route in kernel.values_mut() {
            route.of_ospf = false;
        }
        let own = fixtures::own_addresses();
        assert_eq!(candidates(&network, &routes, peer, &own, &kernel), []);
        // Nor what no device of this host has.
        let kernel = fixtures::kernel(&network, peer);
        assert_eq!(candidates(&network, &routes, peer, &[], &kernel), []);
    }

    #[test]
    fn only_a_tunnel_is_sent_into_against_the_route() {
        let mut network = fixtures::network(Source::Frr);
        for link in &mut network.links {
            link.ethernet = true;
        }
        let peer = network.number(B);
        let routes = Routes::new(&network);
        let own = fixtures::own_addresses();
        let kernel = fixtures::kernel(&network, peer);
        let all = candidates(&network, &routes, peer, &own, &kernel);
        let remotes = all.iter().flat_map(|candidate| &candidate.remotes);
        assert!(remotes.into_iter().all(|remote| remote.on_route), "{all:?}");
    }

    #[test]
    fn to_a_neighbour_the_shared_link_has_no_route() {
        let network = fixtures::network(Source::Frr);
        let w = network.number([10, 65, 1, 3].into());
        let routes = Routes::new(&network);
        let own = fixtures::own_addresses();
        let all = candidates(&network, &routes, w, &own, &fixtures::kernel(&network, w));
        assert!(!all.is_empty());
        let link = Some(IpAddr::from([10, 65, 0, 26]));
        for remote in all.iter().flat_map(|candidate| &candidate.remotes) {
            assert_ne!(remote.address.possible().first().copied(), link);
        }
        // Both links, by the loopback address of W and two of A's: a pair for each.
        let chosen = best(&all, 16);
        let direct = chosen.iter().filter(|candidate| candidate.hops.len() == 1);
        assert_eq!(direct.count(), 2);
        let pairs = pairs(&chosen);
        assert_eq!(pairs.len(), chosen.len());
        assert_ne!(pairs[0].1.address, pairs[1].1.address);
    }

    #[test]
    fn what_is_in_the_way_is_told() {
        let mut network = fixtures::network(Source::Frr);
        let [a, b, u, v] = [A, B, U, V].map(|id| network.number(id));
        let routes = Routes::new(&network);
        let hop = |from, to| {
            network
                .hops_from(from)
                .find(|hop| hop.router == to)
                .unwrap()
        };
        for way in [
            vec![hop(a, u), hop(u, b)],
            vec![hop(a, u), hop(u, v), hop(v, b)],
        ] {
            assert_eq!(obstacle(&network, &routes, a, &way), None);
        }
        // V spreads what is for B's address on its link with U over both of its ways there.
        let way = [hop(a, v), hop(v, u), hop(u, b)];
        let instead = [hop(v, u), hop(v, b)].into();
        assert_eq!(
            obstacle(&network, &routes, a, &way),
            Some(Obstacle::Astray {
                address: Address::Known([10, 65, 0, 18].into()),
                router: v,
                wanted: hop(v, u),
                instead,
            })
        );
        // By W, which is on a segment with B: B's own way to A is by V, and on a segment it counts.
        let w = network.number([10, 65, 1, 3].into());
        assert_eq!(
            obstacle(&network, &routes, a, &[hop(a, w), hop(w, b)]),
            None
        );
        let back = [hop(b, w), hop(w, a)];
        let Some(Obstacle::Astray { router, wanted, .. }) = obstacle(&network, &routes, b, &back)
        else {
            panic!("not told")
        };
        assert_eq!((router, wanted), (b, hop(b, w)));
        // On the link of both routers no route of OSPF leads to its addresses; W's own is another matter.
        network.routers[w]
            .stubs
            .retain(|stub| !stub.prefix.is_host());
        for link in &mut network.links {
            link.ends
                .iter_mut()
                .filter(|end| link.segment && end.router == w)
                .for_each(|end| {
                    end.address = Address::Unknown;
                });
        }
        let routes = Routes::new(&network);
        let numbered = network
            .links
            .iter()
            .position(|link| link.prefix == "10.65.0.24/30".parse().ok());
        let direct = [Hop {
            link: numbered.unwrap(),
            router: w,
        }];
        let on_link = Obstacle::OnLink(Address::Known([10, 65, 0, 26].into()));
        assert_eq!(obstacle(&network, &routes, a, &direct), Some(on_link));
    }

    #[test]
    fn no_pair_is_used_twice() {
        let outer = |last| Outer {
            address: Address::Known([10, 0, 0, last].into()),
            link: None,
            on_route: true,
        };
        let candidate = |link, locals: &[u8]| Candidate {
            hops: vec![Hop { link, router: 1 }],
            cost: 1,
            locals: locals.iter().map(|&last| outer(last)).collect(),
            remotes: vec![outer(9)],
        };
        let all = [
            candidate(0, &[1]),
            candidate(1, &[1, 2]),
            candidate(2, &[1]),
        ];
        let chosen: Vec<&Candidate> = all.iter().collect();
        let used: Vec<Outer> = pairs(&chosen).iter().map(|(_, local, _)| *local).collect();
        assert_eq!(used, [outer(1), outer(2)]);
    }
}
