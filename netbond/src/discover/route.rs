//! Where OSPF's routes lead a packet, router by router (RFC 2328, 16.1).
//!
//! A packet goes by the longest prefix that holds its destination. Routers on a link whose prefix that is hand it
//! over there; all others send it towards the cheapest router that announces the prefix.

use std::cell::OnceCell;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::net::IpAddr;

use super::graph::Hop;
use super::network::Network;
use crate::config::Prefix;

/// The routes of all routers of a network.
pub(super) struct Routes<'n> {
    network: &'n Network,
    prefixes: Vec<Announced>,
    /// By router, when it was asked for.
    trees: Vec<OnceCell<Tree>>,
}

/// A prefix, and who announces it.
struct Announced {
    prefix: Prefix,
    /// Router and cost.
    by: Vec<(usize, u64)>,
}

/// The shortest paths from a router.
struct Tree {
    /// By router; `None`: not reached.
    distances: Vec<Option<u64>>,
    /// By router, the hops that a shortest path may begin with.
    first: Vec<BTreeSet<Hop>>,
}

/// An address of a router, as a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// One that the router may have: of a link's two both are routed alike.
    pub(super) address: IpAddr,
    pub(super) owner: usize,
}

/// What a router does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It is for the router itself.
    Arrived,
    /// The destination is on a link of the router's own.
    OnLink(Hop),
    /// OSPF's route; several hops of equal cost are used side by side.
    Via(BTreeSet<Hop>),
    Nowhere,
}

/// Why a packet's way cannot be told, or does not lead to its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stray {
    /// The router spreads packets over these hops.
    Tie(usize, BTreeSet<Hop>),
    /// It comes to the router a second time.
    Loop(usize),
    /// The router has no route.
    Nowhere(usize),
}

impl<'n> Routes<'n> {
    pub(super) fn new(network: &'n Network) -> Self {
        let mut prefixes: Vec<Announced> = Vec::new();
        let mut announce = |prefix: Prefix, router: usize, cost: u32| {
            let by = (router, u64::from(cost));
            match prefixes.iter_mut().find(|known| known.prefix == prefix) {
                Some(known) => known.by.push(by),
                None => prefixes.push(Announced {
                    prefix,
                    by: vec![by],
                }),
            }
        };
        for (number, router) in network.routers.iter().enumerate() {
            for stub in &router.stubs {
                announce(stub.prefix, number, stub.cost);
            }
        }
        for link in network.links.iter().filter(|link| link.segment) {
            for (prefix, end) in link.ends.iter().filter_map(|end| Some((link.prefix?, end))) {
                announce(prefix, end.router, end.cost);
            }
        }
        // The longest first.
        prefixes.sort_by_key(|announced| Reverse(announced.prefix.length));
        Self {
            network,
            prefixes,
            trees: network.routers.iter().map(|_| OnceCell::new()).collect(),
        }
    }

    /// The cost of the shortest path between two routers.
    pub(super) fn distance(&self, from: usize, to: usize) -> Option<u64> {
        self.tree(from).distances[to]
    }

    /// What the router `at` does with a packet.
    pub(super) fn next(&self, at: usize, target: Target) -> Next {
        if at == target.owner {
            return Next::Arrived;
        }
        let longest = self
            .prefixes
            .iter()
            .find(|announced| announced.prefix.holds(target.address));
        let Some(Announced { prefix, by }) = longest else {
            return Next::Nowhere;
        };
        let own = self
            .network
            .links
            .iter()
            .enumerate()
            .find(|(_, link)| link.prefix == Some(*prefix) && link.end_of(at).is_some());
        if let Some((link, ends)) = own {
            return match ends.end_of(target.owner) {
                Some(end) => Next::OnLink(Hop {
                    link,
                    router: end.router,
                }),
                None => Next::Nowhere,
            };
        }
        let tree = self.tree(at);
        let total = |(router, cost): (usize, u64)| Some(tree.distances[router]? + cost);
        let Some(least) = by.iter().filter_map(|&by| total(by)).min() else {
            return Next::Nowhere;
        };
        let hops: BTreeSet<Hop> = by
            .iter()
            .filter(|&&by| total(by) == Some(least))
            .flat_map(|&(router, _)| tree.first[router].iter().copied())
            .collect();
        // Announced by this router, and on no link that is known.
        if hops.is_empty() {
            return Next::Nowhere;
        }
        Next::Via(hops)
    }

    /// The way of a packet that the router `from` sends by `first`, whatever its own route says.
    pub(super) fn trace(&self, from: usize, first: Hop, target: Target) -> Result<Vec<Hop>, Stray> {
        let mut way = vec![first];
        let mut at = first.router;
        loop {
            let hop = match self.next(at, target) {
                Next::Arrived => return Ok(way),
                Next::OnLink(hop) => hop,
                Next::Via(hops) => match hops.first() {
                    Some(&hop) if hops.len() == 1 => hop,
                    Some(_) => return Err(Stray::Tie(at, hops)),
                    None => return Err(Stray::Nowhere(at)),
                },
                Next::Nowhere => return Err(Stray::Nowhere(at)),
            };
            let known = hop.router == from || way.iter().any(|before| before.router == hop.router);
            if known {
                return Err(Stray::Loop(hop.router));
            }
            way.push(hop);
            at = hop.router;
        }
    }

    fn tree(&self, root: usize) -> &Tree {
        self.trees[root].get_or_init(|| self.shortest_paths(root))
    }

    /// Dijkstra's algorithm, with all first hops of equal cost.
    fn shortest_paths(&self, root: usize) -> Tree {
        let routers = self.network.routers.len();
        let mut hops: Vec<Vec<(u64, Hop)>> = vec![Vec::new(); routers];
        for (router, hops) in hops.iter_mut().enumerate() {
            let cost = |hop: Hop| {
                self.network.links[hop.link]
                    .end_of(router)
                    .map(|end| end.cost)
            };
            let from = self.network.hops_from(router);
            hops.extend(from.filter_map(|hop| Some((u64::from(cost(hop)?), hop))));
        }
        let mut tree = Tree {
            distances: vec![None; routers],
            first: vec![BTreeSet::new(); routers],
        };
        tree.distances[root] = Some(0);
        let mut queue = BinaryHeap::from([Reverse((0, root))]);
        let mut done = vec![false; routers];
        while let Some(Reverse((distance, at))) = queue.pop() {
            if std::mem::replace(&mut done[at], true) {
                continue;
            }
            for &(cost, hop) in &hops[at] {
                let total = distance + cost;
                let known = tree.distances[hop.router];
                if hop.router == root || known.is_some_and(|known| known < total) {
                    continue;
                }
                let first = if at == root {
                    BTreeSet::from([hop])
                } else {
                    tree.first[at].clone()
                };
                if known == Some(total) {
                    tree.first[hop.router].extend(first);
                } else {
                    tree.distances[hop.router] = Some(total);
                    tree.first[hop.router] = first;
                    queue.push(Reverse((total, hop.router)));
                }
            }
        }
        tree
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::discover::fixtures::{self, A, B, Source, U, V};

    /// The ids of the routers on the way; where there is none, why.
    fn way(
        network: &Network,
        first: Ipv4Addr,
        address: [u8; 4],
        owner: Ipv4Addr,
    ) -> Result<Vec<Ipv4Addr>, Stray> {
        let routes = Routes::new(network);
        let first = network.number(first);
        let target = Target {
            address: address.into(),
            owner: network.number(owner),
        };
        let hop = network
            .hops_from(network.own)
            .find(|hop| hop.router == first)
            .unwrap();
        let way = routes.trace(network.own, hop, target)?;
        Ok(way.iter().map(|hop| network.id(hop.router)).collect())
    }

    #[test]
    fn packets_go_where_the_costs_lead() {
        for source in [Source::Bird, Source::Frr] {
            let network = fixtures::network(source);
            let way = |first, address| way(&network, first, address, B).unwrap();
            // B's address towards U, towards V, on its loopback.
            assert_eq!(way(U, [10, 65, 0, 18]), [U, B]);
            assert_eq!(way(U, [10, 65, 0, 10]), [U, V, B]);
            assert_eq!(way(V, [10, 65, 0, 10]), [V, B]);
            assert_eq!(way(U, [10, 65, 2, 1]), [U, V, B]);
            assert_eq!(way(V, [10, 65, 2, 1]), [V, B]);
        }
    }

    #[test]
    fn the_first_hop_is_the_kernels() {
        // What `ip route` says in A.
        let network = fixtures::network(Source::Bird);
        let routes = Routes::new(&network);
        let (b, w) = (network.number(B), network.number([10, 65, 1, 3].into()));
        let next = |address: [u8; 4], owner| {
            let target = Target {
                address: address.into(),
                owner,
            };
            let Next::Via(hops) = routes.next(network.own, target) else {
                panic!("no route")
            };
            let device = |hop: &Hop| network.links[hop.link].device.clone().unwrap();
            hops.iter().map(device).collect::<BTreeSet<String>>()
        };
        for address in [
            [10, 65, 0, 18],
            [10, 65, 0, 10],
            [10, 65, 2, 1],
            [10, 65, 9, 1],
        ] {
            assert_eq!(next(address, b), BTreeSet::from(["wg-a-u".to_owned()]));
        }
        let both = ["wg-a-w", "wg-a-w2"].map(str::to_owned);
        assert_eq!(next([10, 65, 1, 3], w), BTreeSet::from(both));
        let own = Target {
            address: [10, 65, 0, 26].into(),
            owner: w,
        };
        assert!(matches!(routes.next(network.own, own), Next::OnLink(_)));
        let unknown = Target {
            address: [10, 66, 0, 1].into(),
            owner: w,
        };
        assert_eq!(routes.next(network.own, unknown), Next::Nowhere);
        assert_eq!(routes.distance(network.own, b), Some(30));
        assert_eq!(routes.distance(network.own, w), Some(30));
    }

    /// To a segment by the cheapest of those who are on it.
    #[test]
    fn all_on_a_segment_lead_to_it() {
        let mut network = fixtures::network(Source::Frr);
        let segment = network.links.iter_mut().find(|link| link.segment).unwrap();
        for (end, cost) in segment.ends.iter_mut().zip([1000, 1000, 10]) {
            end.cost = cost;
        }
        let cheapest = segment.ends[2].router;
        let owner = segment.ends[0].router;
        let routes = Routes::new(&network);
        let target = Target {
            address: [10, 65, 9, 1].into(),
            owner,
        };
        let by = routes
            .prefixes
            .iter()
            .find(|one| one.prefix.holds(target.address));
        let by = &by.unwrap().by;
        assert_eq!(by.len(), 3);
        assert!(by.contains(&(cheapest, 10)), "{by:?}");
    }

    #[test]
    fn ties_and_loops_are_told() {
        let network = fixtures::network(Source::Frr);
        let [a, b, u, v] = [A, B, U, V].map(|id| network.number(id));
        let w = Ipv4Addr::new(10, 65, 1, 3);
        // W's way to B is by A, over both of its links.
        let from_w = network.hops_from(network.number(w));
        let back = from_w.filter(|hop| hop.router == a).collect();
        let stray = way(&network, w, [10, 65, 0, 10], B).unwrap_err();
        assert_eq!(stray, Stray::Tie(network.number(w), back));
        // V's way to the link of U and B is as long by either.
        let both = network
            .hops_from(v)
            .filter(|hop| !network.links[hop.link].segment);
        let both = both
            .filter(|hop| hop.router == u || hop.router == b)
            .collect();
        let stray = way(&network, V, [10, 65, 0, 18], B).unwrap_err();
        assert_eq!(stray, Stray::Tie(v, both));
        // A's way to V is by U.
        let routes = Routes::new(&network);
        let first = network.hops_from(u).find(|hop| hop.router == a).unwrap();
        let target = Target {
            address: V.into(),
            owner: v,
        };
        assert_eq!(routes.trace(u, first, target), Err(Stray::Loop(u)));
        let unknown = Target {
            address: [10, 66, 0, 1].into(),
            owner: b,
        };
        assert_eq!(routes.trace(u, first, unknown), Err(Stray::Nowhere(a)));
    }
}
