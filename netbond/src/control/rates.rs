//! What the paths of a bond carry, learned from what they carried: pure, with no clock of its own.
//!
//! A path shows what it can carry only while it is full: then packets wait in front of its bottleneck, or
//! are lost there, and what comes out at the far end is its rate. So where every path in use is full,
//! the rates are known. Where only some are, the others have room that nobody knows: their estimates
//! grow until they are full too. Where none is, the load is less than the bond carries and any division
//! will do: nothing changes.
//!
//! Rates are learned, not the weights that follow from them: a path that was away comes back with what
//! was known of it.

use std::collections::BTreeMap;

use super::tally::Observation;

/// Observations are summed for so long before anything is concluded, ns: several bursts of a sender.
const EPOCH: u64 = 200_000_000;
/// A path whose packets wait at least so long throughout an epoch is full, ns.
const FULL_QUEUE: u64 = 4_000_000;
/// So is one that loses more than this share of its packets: what random loss does not do.
const FULL_LOSS: f64 = 0.05;
/// Packets in an epoch without which its losses say nothing.
const ENOUGH: u64 = 20;
/// A path whose estimate is to grow carried this much of it.
const USED: f64 = 0.85;
/// By how much the estimate of a path with room grows in an epoch.
const GROWTH: f64 = 1.25;
/// The same until the path was full for the first time.
const FIRST_GROWTH: f64 = 1.5;
/// How much of the last epoch's rate goes into the estimate of a full path, where it is not far off.
const BLEND: f64 = 0.5;
/// Rates this much below the estimate are another rate, not noise.
const STEP: f64 = 0.75;
/// In this time the queues of full paths are to be as long as those of the others, ns.
const BALANCE: f64 = 500e6;
/// By how much a path's share may differ from its rate for that.
const MOST_BALANCE: f64 = 0.5;
/// No path gets less than this share of what the best one gets: it could not show what it can do.
const LEAST: f64 = 1.0 / 64.0;
/// Bytes per second that an estimate may not exceed: 10 Tbit/s.
const MOST: f64 = 1.25e12;

/// The rates of a bond's paths.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    paths: BTreeMap<u32, Rate>,
}

#[derive(Clone, Debug)]
struct Rate {
    /// Bytes per second; of no unit until the path was full once, but comparable.
    estimate: f64,
    /// Whether the path was ever full.
    known: bool,
    /// Not to be exceeded, bytes per second.
    cap: Option<f64>,
    epoch: Epoch,
    /// What was concluded from the last epoch.
    last: Option<Conclusion>,
}

/// Sums of observations.
#[derive(Clone, Copy, Debug, Default)]
struct Epoch {
    span: u64,
    delivered: u64,
    sent: u64,
    lost: u64,
    /// The shortest wait, ns.
    shortest: Option<u64>,
    ended: u64,
}

#[derive(Clone, Copy, Debug)]
struct Conclusion {
    full: bool,
    /// Bytes per second.
    delivered: f64,
    /// The shortest wait, ns.
    queue: f64,
    at: u64,
}

impl Epoch {
    fn add(&mut self, seen: &Observation) {
        self.span = self.span.saturating_add(seen.delivered_span_ns);
        self.delivered = self.delivered.saturating_add(seen.delivered_bytes);
        self.sent = self.sent.saturating_add(seen.sent_packets);
        self.lost = self.lost.saturating_add(seen.lost_packets);
        self.shortest = Some(
            self.shortest
                .map_or(seen.queue_ns, |q| q.min(seen.queue_ns)),
        );
        self.ended = seen.at_ns;
    }

    fn conclude(&self) -> Conclusion {
        let delivered = self.delivered as f64 / self.span.max(1) as f64 * 1e9;
        let loss = self.lost as f64 / self.sent.max(1) as f64;
        let queue = self.shortest.unwrap_or(0);
        let losing = self.sent >= ENOUGH && loss > FULL_LOSS;
        Conclusion {
            full: self.delivered != 0 && (queue >= FULL_QUEUE || losing),
            delivered,
            queue: queue as f64,
            at: self.ended,
        }
    }
}

impl Rates {
    /// Makes the paths of the bond these: (slot, weight before anything is known, cap in bytes per
    /// second). What is known of those that stay, stays.
    pub fn set(&mut self, paths: impl IntoIterator<Item = (u32, f64, Option<f64>)>) {
        let mut before = std::mem::take(&mut self.paths);
        for (path, weight, cap) in paths {
            let mut rate = before.remove(&path).unwrap_or_else(|| Rate {
                estimate: weight.clamp(LEAST, MOST),
                known: false,
                cap: None,
                epoch: Epoch::default(),
                last: None,
            });
            rate.cap = cap;
            self.paths.insert(path, rate);
        }
    }

    /// Takes in what was measured on a path. True where the rates may have changed.
    pub fn observe(&mut self, path: u32, seen: &Observation) -> bool {
        let Some(rate) = self.paths.get_mut(&path) else {
            return false;
        };
        rate.epoch.add(seen);
        if rate.epoch.span < EPOCH {
            return false;
        }
        let epoch = std::mem::take(&mut rate.epoch);
        let conclusion = epoch.conclude();
        rate.last = Some(conclusion);
        if conclusion.full {
            rate.learn(conclusion.delivered);
            self.scale(path);
        } else {
            self.grow(path, conclusion.at);
        }
        true
    }

    /// The first path that is full gives all others their unit: until then their estimates are mere
    /// weights.
    fn scale(&mut self, path: u32) {
        let Some(rate) = self.paths.get_mut(&path) else {
            return;
        };
        if rate.known {
            return;
        }
        rate.known = true;
        let (estimate, measured) = (rate.estimate, rate.last.map_or(0.0, |last| last.delivered));
        rate.estimate = measured.clamp(LEAST, MOST);
        let known_before = self
            .paths
            .iter()
            .any(|(&other, rate)| other != path && rate.known);
        if !known_before {
            let factor = measured.max(LEAST) / estimate;
            for (_, other) in self.paths.iter_mut().filter(|(other, _)| **other != path) {
                other.estimate = (other.estimate * factor).clamp(LEAST, MOST);
            }
        }
    }

    /// A path that is not full while another is gets more, if it carried what it was thought to carry: else
    /// the sender has just slowed down, and the division may be right.
    fn grow(&mut self, path: u32, now: u64) {
        let recent = |last: &Conclusion| now.saturating_sub(last.at) < 2 * EPOCH;
        let others_full = self.paths.iter().any(|(&other, rate)| {
            other != path && rate.last.is_some_and(|last| last.full && recent(&last))
        });
        if let Some(rate) = self.paths.get_mut(&path)
            && others_full
            && rate
                .last
                .is_some_and(|last| last.delivered >= USED * rate.estimate)
        {
            let growth = if rate.known { GROWTH } else { FIRST_GROWTH };
            rate.estimate = (rate.estimate * growth).clamp(LEAST, MOST);
        }
    }

    /// How much each of these paths is to get, as a weight: at most `u16::MAX`, never 0.
    #[must_use]
    pub fn weights(&self, usable: impl Fn(u32) -> bool) -> BTreeMap<u32, u32> {
        let paths = || self.paths.iter().filter(|(path, _)| usable(**path));
        let full = |rate: &Rate| rate.last.filter(|last| last.full);
        // That of a path with room is next to nothing.
        let queues = || paths().map(|(_, rate)| rate.last.map_or(0.0, |last| last.queue));
        let mean = queues().sum::<f64>() / queues().count().max(1) as f64;
        let wanted: BTreeMap<u32, f64> = paths()
            .map(|(&path, rate)| {
                let bias = full(rate).map_or(0.0, |last| (mean - last.queue) / BALANCE);
                let wanted = rate.estimate * (1.0 + bias.clamp(-MOST_BALANCE, MOST_BALANCE));
                (path, rate.cap.map_or(wanted, |cap| wanted.min(cap)))
            })
            .collect();
        let best = wanted.values().fold(0.0, |best: f64, &rate| best.max(rate));
        wanted
            .into_iter()
            .map(|(path, rate)| {
                let share = (rate / best).clamp(LEAST, 1.0);
                (path, (share * f64::from(u16::MAX)).round() as u32)
            })
            .collect()
    }

    /// What a path is known to carry, bytes per second; `None` where it was never full.
    #[must_use]
    pub fn known(&self, path: u32) -> Option<f64> {
        self.paths
            .get(&path)
            .filter(|rate| rate.known)
            .map(|rate| rate.estimate)
    }
}

impl Rate {
    /// Takes in what came out of the full path.
    fn learn(&mut self, delivered: f64) {
        if !self.known {
            return;
        }
        let far = delivered < self.estimate * STEP;
        let estimate = if far {
            delivered
        } else {
            self.estimate + BLEND * (delivered - self.estimate)
        };
        self.estimate = estimate.clamp(LEAST, MOST);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    /// A link of this rate with a queue, as a model: what is offered, waits, is delivered or lost.
    struct Link {
        /// Bytes per second.
        rate: f64,
        queue: f64,
        /// Bytes that fit.
        room: f64,
    }

    impl Link {
        fn new(mbit: f64) -> Self {
            let rate = mbit * 125_000.0;
            Self {
                rate,
                queue: 0.0,
                room: 150_000.0,
            }
        }

        /// What happens to so many bytes in `span` ns.
        fn carry(&mut self, offered: f64, at: u64, span: u64) -> Observation {
            let able = self.rate * span as f64 / 1e9;
            let all = self.queue + offered;
            let delivered = all.min(able);
            let left = all - delivered;
            self.queue = left.min(self.room);
            let lost = left - self.queue;
            Observation {
                at_ns: at,
                delivered_span_ns: span,
                offered_span_ns: span,
                delivered_bytes: delivered as u64,
                offered_bytes: offered as u64,
                sent_packets: (offered / 1400.0) as u64,
                lost_packets: (lost / 1400.0) as u64,
                queue_ns: (self.queue / self.rate * 1e9) as u64,
            }
        }
    }

    /// A sender that takes what it gets, and less after a loss.
    struct Sender {
        rate: f64,
        now: u64,
    }

    impl Sender {
        /// Sends for so long; returns what was delivered of what the links could, in the last half.
        fn run(&mut self, rates: &mut Rates, links: &mut [Link], ms: u64) -> f64 {
            const STEP_NS: u64 = 30 * MS;
            let able: f64 = links.iter().map(|link| link.rate).sum();
            let (mut delivered, mut time) = (0.0, 0.0);
            let steps = ms * MS / STEP_NS;
            for step in 0..steps {
                self.now += STEP_NS;
                let weights = rates.weights(|_| true);
                let all: u32 = weights.values().sum();
                let mut lost = false;
                for (path, link) in (0..).zip(links.iter_mut()) {
                    let share = f64::from(weights[&path]) / f64::from(all);
                    let offered = self.rate * share * STEP_NS as f64 / 1e9;
                    let seen = link.carry(offered, self.now, STEP_NS);
                    lost |= seen.lost_packets > 0;
                    if step >= steps / 2 {
                        delivered += seen.delivered_bytes as f64;
                    }
                    rates.observe(path, &seen);
                }
                if step >= steps / 2 {
                    time += STEP_NS as f64 / 1e9;
                }
                self.rate *= if lost { 0.7 } else { 1.03 };
            }
            delivered / time / able
        }
    }

    fn rates(weights: &[f64]) -> Rates {
        let mut rates = Rates::default();
        rates.set(
            (0..)
                .zip(weights)
                .map(|(path, &weight)| (path, weight, None)),
        );
        rates
    }

    #[test]
    fn shares_follow_the_rates_within_seconds() {
        for mbits in [
            &[16.0, 4.0][..],
            &[10.0, 5.0, 1.0],
            &[10.0, 10.0],
            &[1000.0, 30.0],
        ] {
            let mut rates = rates(&vec![1.0; mbits.len()]);
            let mut links: Vec<Link> = mbits.iter().map(|&mbit| Link::new(mbit)).collect();
            for link in &mut links {
                link.room = link.rate * 0.1;
            }
            let mut sender = Sender {
                rate: 100_000.0,
                now: 0,
            };
            sender.run(&mut rates, &mut links, 12_000);
            let got = sender.run(&mut rates, &mut links, 6_000);
            assert!(got > 0.93, "{mbits:?}: {got}");
        }
    }

    #[test]
    fn a_change_of_rate_is_followed_within_two_seconds() {
        let mut rates = rates(&[1.0, 1.0]);
        let mut links = [Link::new(10.0), Link::new(10.0)];
        let mut sender = Sender { rate: 1e6, now: 0 };
        sender.run(&mut rates, &mut links, 6_000);
        links[0].rate /= 4.0;
        sender.run(&mut rates, &mut links, 2_000);
        let weights = rates.weights(|_| true);
        let ratio = f64::from(weights[&1]) / f64::from(weights[&0]);
        assert!((3.0..5.5).contains(&ratio), "{ratio}");
        links[0].rate *= 4.0;
        sender.run(&mut rates, &mut links, 4_000);
        let weights = rates.weights(|_| true);
        let ratio = f64::from(weights[&1]) / f64::from(weights[&0]);
        assert!((0.75..1.35).contains(&ratio), "{ratio}");
    }

    #[test]
    fn without_full_paths_nothing_changes() {
        let mut rates = rates(&[3.0, 1.0]);
        let mut links = [Link::new(100.0), Link::new(100.0)];
        let before = rates.weights(|_| true);
        for step in 1..500 {
            for (path, link) in (0..).zip(&mut links) {
                let seen = link.carry(10_000.0, step * 30 * MS, 30 * MS);
                rates.observe(path, &seen);
            }
        }
        assert_eq!(rates.weights(|_| true), before);
        assert_eq!(rates.known(0), None);
    }

    #[test]
    fn a_cap_is_kept_and_a_path_that_returns_is_known() {
        let mut rates = rates(&[1.0, 1.0]);
        let mut links = [Link::new(16.0), Link::new(4.0)];
        let mut sender = Sender { rate: 1e6, now: 0 };
        sender.run(&mut rates, &mut links, 6_000);
        assert_eq!(rates.weights(|path| path == 1).len(), 1);
        let weights = rates.weights(|_| true);
        assert!(weights[&0] > 3 * weights[&1], "{weights:?}");
        let known = rates.known(1).unwrap();
        rates.set([(0, 1.0, Some(known)), (1, 1.0, None), (5, 1.0, None)]);
        let weights = rates.weights(|path| path < 2);
        assert!(weights[&0].abs_diff(weights[&1]) < 20_000, "{weights:?}");
    }

    fn observations() -> impl Strategy<Value = Observation> {
        let any = || prop_oneof![any::<u64>(), 0..100_000_u64, Just(0), Just(u64::MAX)];
        let span = prop_oneof![Just(30 * MS), any()];
        ((any(), span, any(), any()), (any(), any(), any())).prop_map(
            |((at_ns, span_ns, delivered_bytes, offered_bytes), (sent, lost, queue_ns))| {
                Observation {
                    at_ns,
                    delivered_span_ns: span_ns,
                    offered_span_ns: span_ns,
                    delivered_bytes,
                    offered_bytes,
                    sent_packets: sent,
                    lost_packets: lost,
                    queue_ns,
                }
            },
        )
    }

    proptest! {
        /// Whatever a peer reports: every path keeps a share, none more than the most, and no estimate
        /// leaves its bounds.
        #[test]
        fn shares_stay_within_bounds(
            seen in proptest::collection::vec((0..5_u32, observations()), 0..300),
            weights in proptest::collection::vec(1..=64_u32, 1..=5),
        ) {
            let weights: Vec<f64> = weights.into_iter().map(f64::from).collect();
            let mut rates = rates(&weights);
            for (path, seen) in seen {
                rates.observe(path, &seen);
                let shares = rates.weights(|_| true);
                prop_assert_eq!(shares.len(), weights.len());
                prop_assert_eq!(shares.values().copied().max(), Some(u32::from(u16::MAX)));
                prop_assert!(shares.values().all(|&share| share >= u32::from(u16::MAX) / 64));
                for path in 0..5 {
                    let known = rates.known(path);
                    prop_assert!(known.is_none_or(|rate| (LEAST..=MOST).contains(&rate)));
                }
            }
        }
    }
}
