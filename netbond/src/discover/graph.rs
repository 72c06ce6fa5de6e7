//! The largest set of link-disjoint paths between two routers: a maximum flow of least cost (successive shortest
//! augmenting paths: Ahuja, Magnanti and Orlin, Network Flows, 9.7).
//!
//! The shortest path alone is no good beginning: it may take a link of each of two others. An augmenting path
//! takes such a link back.

use std::collections::{BTreeSet, VecDeque};

/// Routers and the links between them, numbered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Graph {
    pub(super) routers: usize,
    /// By link, its ends: two, or more of a segment. Who uses one uses all of it.
    pub(super) links: Vec<Vec<Edge>>,
}

/// An end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) router: usize,
    /// What a packet costs that the router sends there.
    pub(super) cost: u32,
}

/// A link, and the router at its other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Hop {
    pub(super) link: usize,
    pub(super) router: usize,
}

/// What is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Disjoint {
    /// Link-disjoint, the cheapest first. Of all sets as large the one with the fewest middle routers in common,
    /// and of these the cheapest, there and back.
    pub(super) paths: Vec<Vec<Hop>>,
    /// Links without which there is no way at all: as many as paths, which is why there are no more. Empty where
    /// `limit` is why.
    pub(super) cut: Vec<usize>,
}

impl Graph {
    /// At most `limit` paths from one router to another.
    pub(super) fn disjoint_paths(&self, from: usize, to: usize, limit: usize) -> Disjoint {
        if from == to {
            return Disjoint::default();
        }
        let mut flow = Flow::new(self, limit);
        let (source, sink) = (flow.leaving(from), flow.entering(to));
        let mut count = 0;
        while count < limit && flow.augment(source, sink) {
            count += 1;
        }
        let cut = if count < limit {
            flow.cut(source, self)
        } else {
            Vec::new()
        };
        let mut paths: Vec<Vec<Hop>> = (0..count).map(|_| flow.take_path(from, to)).collect();
        paths.sort_by_key(|path| (self.cost(from, path), path.clone()));
        Disjoint { paths, cut }
    }

    /// The links that every path takes.
    pub(super) fn bridges(&self, from: usize, to: usize) -> Vec<usize> {
        let one = self.disjoint_paths(from, to, 1);
        let taken = one.paths.into_iter().flatten().map(|hop| hop.link);
        taken
            .filter(|&link| !self.reaches(from, to, link))
            .collect()
    }

    /// What a path costs, there and back.
    pub(super) fn cost(&self, from: usize, path: &[Hop]) -> u64 {
        let mut at = from;
        let mut total = 0;
        for hop in path {
            for edge in &self.links[hop.link] {
                if edge.router == at || edge.router == hop.router {
                    total += u64::from(edge.cost);
                }
            }
            at = hop.router;
        }
        total
    }

    /// Whether there is a way without a link.
    fn reaches(&self, from: usize, to: usize, without: usize) -> bool {
        let mut seen = BTreeSet::from([from]);
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            for (number, ends) in self.links.iter().enumerate() {
                if number != without && ends.iter().any(|end| end.router == at) {
                    queue.extend(
                        ends.iter()
                            .map(|end| end.router)
                            .filter(|&next| seen.insert(next)),
                    );
                }
            }
        }
        seen.contains(&to)
    }
}

/// How often a middle router is used by a set of paths beyond the first time, in all.
pub(super) fn shared(paths: &[&[Hop]]) -> usize {
    let mut seen = BTreeSet::new();
    let middle = paths
        .iter()
        .flat_map(|path| path.split_last().map_or(&[][..], |(_, middle)| middle));
    middle.filter(|hop| !seen.insert(hop.router)).count()
}

/// A directed arc; the next one in the list, or the one before, is its reverse.
struct Arc {
    to: usize,
    capacity: usize,
    cost: i64,
}

/// A flow network: two nodes for each router and each link, packets in and packets out, with an arc between that
/// says how often it may be used.
struct Flow {
    routers: usize,
    arcs: Vec<Arc>,
    /// By node, the arcs that leave it.
    leaving: Vec<Vec<usize>>,
    /// By node, the arc by which the cheapest augmenting path enters it.
    entered: Vec<Option<usize>>,
}

impl Flow {
    fn new(graph: &Graph, limit: usize) -> Self {
        let nodes = 2 * (graph.routers + graph.links.len());
        let mut flow = Self {
            routers: graph.routers,
            arcs: Vec::new(),
            leaving: vec![Vec::new(); nodes],
            entered: vec![None; nodes],
        };
        let total: i64 = graph
            .links
            .iter()
            .flatten()
            .map(|end| i64::from(end.cost))
            .sum();
        // Dearer than any way round.
        let again = 2 * total + 1;
        for router in 0..graph.routers {
            let (enters, leaves) = (flow.entering(router), flow.leaving(router));
            flow.add(enters, leaves, 1, 0);
            flow.add(enters, leaves, limit.saturating_sub(1), again);
        }
        for (number, ends) in graph.links.iter().enumerate() {
            let enters = 2 * (graph.routers + number);
            flow.add(enters, enters + 1, 1, 0);
            for end in ends {
                let cost = i64::from(end.cost);
                let (enters_router, leaves_router) =
                    (flow.entering(end.router), flow.leaving(end.router));
                flow.add(leaves_router, enters, limit, cost);
                flow.add(enters + 1, enters_router, limit, cost);
            }
        }
        flow
    }

    const fn entering(&self, router: usize) -> usize {
        2 * router
    }

    const fn leaving(&self, router: usize) -> usize {
        2 * router + 1
    }

    fn add(&mut self, from: usize, to: usize, capacity: usize, cost: i64) {
        self.leaving[from].push(self.arcs.len());
        self.arcs.push(Arc { to, capacity, cost });
        self.leaving[to].push(self.arcs.len());
        self.arcs.push(Arc {
            to: from,
            capacity: 0,
            cost: -cost,
        });
    }

    /// Sends one more by the cheapest way that is left (Bellman and Ford: what is taken back has a negative cost);
    /// whether there was one.
    fn augment(&mut self, source: usize, sink: usize) -> bool {
        let mut cost = vec![i64::MAX; self.leaving.len()];
        let mut queued = vec![false; self.leaving.len()];
        self.entered.fill(None);
        cost[source] = 0;
        let mut queue = VecDeque::from([source]);
        while let Some(at) = queue.pop_front() {
            queued[at] = false;
            for &number in &self.leaving[at] {
                let arc = &self.arcs[number];
                let next = cost[at] + arc.cost;
                if arc.capacity > 0 && next < cost[arc.to] {
                    cost[arc.to] = next;
                    self.entered[arc.to] = Some(number);
                    if !queued[arc.to] {
                        queued[arc.to] = true;
                        queue.push_back(arc.to);
                    }
                }
            }
        }
        if cost[sink] == i64::MAX {
            return false;
        }
        let mut at = sink;
        while at != source {
            let Some(number) = self.entered[at] else {
                return false;
            };
            self.arcs[number].capacity -= 1;
            self.arcs[number ^ 1].capacity += 1;
            at = self.arcs[number ^ 1].to;
        }
        true
    }

    /// The links at which what could still leave the source ends.
    fn cut(&self, source: usize, graph: &Graph) -> Vec<usize> {
        let mut reached = vec![false; self.leaving.len()];
        reached[source] = true;
        let mut queue = VecDeque::from([source]);
        while let Some(at) = queue.pop_front() {
            for &number in &self.leaving[at] {
                let arc = &self.arcs[number];
                if arc.capacity > 0 && !reached[arc.to] {
                    reached[arc.to] = true;
                    queue.push_back(arc.to);
                }
            }
        }
        let enters = |link: usize| 2 * (graph.routers + link);
        (0..graph.links.len())
            .filter(|&link| reached[enters(link)] && !reached[enters(link) + 1])
            .collect()
    }

    /// Takes one path out of the flow.
    fn take_path(&mut self, from: usize, to: usize) -> Vec<Hop> {
        let mut path: Vec<Hop> = Vec::new();
        let mut at = from;
        while at != to {
            let Some(link) = self.follow(self.leaving(at)) else {
                break;
            };
            // Through the link, and into the router behind.
            let Some(router) = self.follow(link).and_then(|out| self.follow(out)) else {
                break;
            };
            at = router / 2;
            // Through the router; which of the two arcs is all the same.
            if at != to {
                self.follow(router);
            }
            path.push(Hop {
                link: link / 2 - self.routers,
                router: at,
            });
        }
        path
    }

    /// Takes one unit of flow off an arc that leaves the node; where it leads.
    fn follow(&mut self, node: usize) -> Option<usize> {
        let number = self.leaving[node]
            .iter()
            .copied()
            // Even ones are the network's own, and flow is what their reverse may take back.
            .find(|&number| number % 2 == 0 && self.arcs[number + 1].capacity > 0)?;
        self.arcs[number + 1].capacity -= 1;
        self.arcs[number].capacity += 1;
        Some(self.arcs[number].to)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn graph(routers: usize, links: &[(&[usize], u32)]) -> Graph {
        let ends = |(routers, cost): &(&[usize], u32)| {
            let end = |&router: &usize| Edge {
                router,
                cost: *cost,
            };
            routers.iter().map(end).collect()
        };
        Graph {
            routers,
            links: links.iter().map(ends).collect(),
        }
    }

    fn routers(paths: &[Vec<Hop>]) -> Vec<Vec<usize>> {
        let routers = |path: &Vec<Hop>| path.iter().map(|hop| hop.router).collect();
        paths.iter().map(routers).collect()
    }

    /// A 0, B 1, U 2, V 3: the shortest path A-U-V-B leaves no second one.
    #[test]
    fn the_shortest_path_is_given_up_for_two_others() {
        let trap = graph(
            4,
            &[
                (&[0, 2], 10),
                (&[2, 3], 10),
                (&[3, 1], 10),
                (&[0, 3], 40),
                (&[2, 1], 40),
            ],
        );
        assert_eq!(routers(&trap.disjoint_paths(0, 1, 1).paths), [[2, 3, 1]]);
        let found = trap.disjoint_paths(0, 1, 16);
        assert_eq!(routers(&found.paths), [[2, 1], [3, 1]]);
        assert_eq!(found.cut, [0, 3]);
    }

    #[test]
    fn middle_routers_are_shared_only_where_they_must() {
        // Two ways by router 2, and a dear one by router 3.
        let mut links: Vec<(&[usize], u32)> =
            vec![(&[0, 2], 1), (&[0, 2], 1), (&[2, 1], 1), (&[2, 1], 1)];
        let found = graph(4, &links).disjoint_paths(0, 1, 16);
        assert_eq!(routers(&found.paths), [[2, 1], [2, 1]]);
        let borrowed: Vec<&[Hop]> = found.paths.iter().map(Vec::as_slice).collect();
        assert_eq!(shared(&borrowed), 1);
        links.extend([(&[0, 3][..], 100), (&[3, 1], 100)]);
        let all = graph(4, &links).disjoint_paths(0, 1, 16);
        assert_eq!(routers(&all.paths), [&[2, 1][..], &[2, 1], &[3, 1]]);
        let two = graph(4, &links).disjoint_paths(0, 1, 2);
        assert_eq!(routers(&two.paths), [[2, 1], [3, 1]]);
        assert_eq!(two.cut, [0; 0], "the limit is why");
    }

    #[test]
    fn a_segment_carries_one_path() {
        let lan = graph(4, &[(&[0, 2], 1), (&[0, 3], 1), (&[2, 3, 1], 1)]);
        let found = lan.disjoint_paths(0, 1, 16);
        assert_eq!((found.paths.len(), found.cut), (1, vec![2]));
        assert_eq!(lan.bridges(0, 1), [2]);
    }

    #[test]
    fn bridges_are_named_and_no_way_is_no_path() {
        let chain = graph(4, &[(&[0, 2], 1), (&[2, 3], 1), (&[2, 3], 5), (&[3, 1], 1)]);
        assert_eq!(chain.bridges(0, 1), [0, 3]);
        let apart = graph(2, &[]).disjoint_paths(0, 1, 16);
        assert_eq!(apart, Disjoint::default());
        assert_eq!(graph(1, &[]).disjoint_paths(0, 0, 16), Disjoint::default());
    }

    /// All ways without a router twice.
    fn ways(graph: &Graph, at: usize, to: usize, path: &mut Vec<Hop>, all: &mut Vec<Vec<Hop>>) {
        if at == to {
            all.push(path.clone());
            return;
        }
        for (link, ends) in graph.links.iter().enumerate() {
            if !ends.iter().any(|end| end.router == at) {
                continue;
            }
            for end in ends {
                let router = end.router;
                let known = router == 0 || path.iter().any(|hop| hop.router == router);
                if router != at && !known {
                    path.push(Hop { link, router });
                    ways(graph, router, to, path, all);
                    path.pop();
                }
            }
        }
    }

    /// The best set of ways, by trying all: how many, shared routers, cost.
    fn best(graph: &Graph, ways: &[Vec<Hop>], chosen: &mut Vec<usize>) -> (usize, usize, u64) {
        let paths: Vec<&[Hop]> = chosen.iter().map(|&way| &ways[way][..]).collect();
        let cost = paths.iter().map(|path| graph.cost(0, path)).sum();
        let mut found = (paths.len(), shared(&paths), cost);
        let taken: BTreeSet<usize> = paths
            .iter()
            .copied()
            .flatten()
            .map(|hop| hop.link)
            .collect();
        for way in chosen.last().map_or(0, |last| last + 1)..ways.len() {
            if ways[way].iter().all(|hop| !taken.contains(&hop.link)) {
                chosen.push(way);
                let other = best(graph, ways, chosen);
                chosen.pop();
                let rank = |(count, shared, cost)| (usize::MAX - count, shared, cost);
                if rank(other) < rank(found) {
                    found = other;
                }
            }
        }
        found
    }

    proptest! {
        #[test]
        fn as_good_as_trying_all(
            links in prop::collection::vec(
                (prop::collection::btree_set(0..5_usize, 2..=3), 1..20_u32), 0..9,
            ),
        ) {
            let links: Vec<(Vec<usize>, u32)> = links
                .into_iter()
                .map(|(ends, cost)| (ends.into_iter().collect(), cost))
                .collect();
            let links: Vec<(&[usize], u32)> = links.iter().map(|(e, c)| (&e[..], *c)).collect();
            let graph = graph(5, &links);
            let mut all = Vec::new();
            ways(&graph, 0, 1, &mut Vec::new(), &mut all);
            let wanted = best(&graph, &all, &mut Vec::new());

            let found = graph.disjoint_paths(0, 1, 16);
            for path in &found.paths {
                prop_assert!(all.contains(path), "{path:?} is no way");
            }
            let paths: Vec<&[Hop]> = found.paths.iter().map(Vec::as_slice).collect();
            let taken: BTreeSet<usize> =
                paths.iter().copied().flatten().map(|hop| hop.link).collect();
            prop_assert_eq!(taken.len(), paths.iter().map(|path| path.len()).sum::<usize>());
            let cost = paths.iter().map(|path| graph.cost(0, path)).sum();
            prop_assert_eq!((paths.len(), shared(&paths), cost), wanted);
            // The cut is as large, and nothing passes without it.
            prop_assert_eq!(found.cut.len(), paths.len());
            let mut rest = graph.clone();
            for &link in &found.cut {
                rest.links[link].clear();
            }
            prop_assert!(rest.disjoint_paths(0, 1, 1).paths.is_empty());
        }
    }
}
