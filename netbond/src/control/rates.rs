//! What the paths of a bond carry, learned from what they carried: pure, with no clock of its own.
//!
//! A path shows what it can carry only while it is full: then packets wait in front of its bottleneck, or
//! are lost there, and what comes out at the far end is its rate. So where every path in use is full,
//! the rates are known. Where only some are, the others have room that nobody knows: their estimates
//! grow until they are full too. Where none is, the load is less than the bond carries and any division
//! will do: what is known does not change. Small packets (acknowledgements, calls, shells) want no rate but
//! a short way: the quickest paths carry them alone if they do so with ease.
//!
//! The limit may be a processor: then flows settle on a path each ([`super::settle`]), and as long as they
//! do nothing is learned from queues.
//!
//! Rates are learned, not the weights that follow from them: a path that was away comes back with what
//! was known of it.

use std::collections::BTreeMap;

use super::{
    settle::{self, Settle},
    tally::Observation,
};

/// Observations are summed for so long before anything is concluded, ns: several bursts of a sender.
const EPOCH: u64 = 200_000_000;
/// An observation of more than this, ns, is of a path that was away: what was sent meanwhile says nothing.
const AWAY: u64 = 1_000_000_000;
/// A path whose packets wait at least so long throughout an epoch is full, ns, if
const FULL_QUEUE: f64 = 4e6;
/// so many bytes of ours are among them.
const WAITING: f64 = 3000.0;
/// So is one that loses more than this share of its packets, and not fewer than so many.
const FULL_LOSS: f64 = 0.05;
const ENOUGH: u64 = 5;
/// No estimate falls by more in one step.
const MOST_FALL: f64 = 0.25;
/// A path whose estimate is to grow carried this much of it,
const USED: f64 = 0.85;
/// or this much where it never was full: the estimate is a guess then, and a sender that waits for what takes
/// the full path keeps it from proving more.
const USED_UNKNOWN: f64 = 0.5;
/// By how much the estimate of a path with room grows in an epoch: little at first, as it may be nearly
/// right, then twice as much each time,
const FIRST_STEP: f64 = 0.03;
/// up to this.
const MOST_STEP: f64 = 0.25;
/// The same until the path was full for the first time.
const UNKNOWN_STEP: f64 = 0.5;
/// How much of the last epoch's rate goes into the estimate of a full path, where it is not far off.
const BLEND: f64 = 0.5;
/// Rates this much below the estimate are another rate, not noise.
const STEP: f64 = 0.75;
/// In this time the queues of full paths are to be as long as those of the others, ns.
const BALANCE: f64 = 500e6;
/// By how much a path's share may differ from its rate for that.
const MOST_BALANCE: f64 = 0.5;
/// Paths whose way is longer than the shortest by no more than this, ns, are as quick as that.
const AS_QUICK: i64 = 5_000_000;
/// The quickest paths carry a light load alone: one of packets of no more than so many bytes on average,
const SMALL: f64 = 300.0;
/// up to this share of what they are known to carry,
const LIGHT: f64 = 0.6;
/// after no path was full, and the load was light, for so long, ns.
const CALM: u64 = 1_000_000_000;
/// No path gets less than this share of what the best one gets: it could not show what it can do.
const LEAST: f64 = 1.0 / 64.0;
/// Bytes per second that an estimate may not exceed: 10 Tbit/s.
const MOST: f64 = 1.25e12;

/// A path, as [`Rates::set`] wants to know of it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Its slot in the bond.
    pub path: u32,
    /// Its weight before anything is known.
    pub weight: f64,
    /// Its share as a controller before this one left it, relative to the best path.
    pub taken_over: Option<f64>,
    /// Not to be exceeded, bytes per second.
    pub cap: Option<f64>,
}

/// The rates of a bond's paths.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    paths: BTreeMap<u32, Rate>,
    load: Load,
}

/// What all paths have to carry; times are ns.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    /// When the last observation was made.
    now: u64,
    /// When packets waited last, whatever for.
    pressed: u64,
    /// When the load was not light last, or a path was full.
    strained: u64,
    /// Bytes that came out of all paths since the beginning; wraps around.
    delivered: u64,
    settle: Settle,
}

#[derive(Clone, Debug)]
struct Rate {
    /// Bytes per second; of no unit until the path was full once, but comparable.
    estimate: f64,
    /// Whether the path was ever full.
    known: bool,
    /// Whether the estimate is an earlier controller's, and no mere guess.
    taken_over: bool,
    /// By how much the estimate grew in the last epoch, 0 where it did not.
    step: f64,
    /// Not to be exceeded, bytes per second.
    cap: Option<f64>,
    /// The way there with empty queues, ns; only differences between paths mean anything.
    delay: Option<i64>,
    epoch: Epoch,
    /// What was concluded from the last epoch.
    last: Option<Conclusion>,
}

/// Sums of observations.
#[derive(Clone, Copy, Debug, Default)]
struct Epoch {
    span: u64,
    delivered: u64,
    offered: u64,
    offered_span: u64,
    sent: u64,
    lost: u64,
    /// The shortest wait, ns.
    shortest: Option<u64>,
    ended: u64,
}

#[derive(Clone, Copy, Debug)]
struct Conclusion {
    /// Packets of ours waited all the time.
    waiting: bool,
    /// More were lost than chance loses.
    losing: bool,
    /// The path was full, by the one or the other.
    full: bool,
    /// Bytes per second.
    delivered: f64,
    offered: f64,
    /// Packets per second.
    packets: f64,
    /// The shortest wait, ns.
    queue: f64,
    at: u64,
}

impl Conclusion {
    const fn is_fresh(&self, now: u64) -> bool {
        now.saturating_sub(self.at) < 2 * EPOCH
    }
}

/// Whether packets of ours wait that long, ns, where so many bytes per second come out: others' packets may
/// wait there, too, and then few of ours do.
fn is_waiting(queue: f64, delivered: f64) -> bool {
    queue >= FULL_QUEUE && delivered * queue / 1e9 >= WAITING
}

impl Epoch {
    fn add(&mut self, seen: &Observation) {
        self.span = self.span.saturating_add(seen.delivered_span_ns);
        self.delivered = self.delivered.saturating_add(seen.delivered_bytes);
        self.offered = self.offered.saturating_add(seen.offered_bytes);
        self.offered_span = self.offered_span.saturating_add(seen.offered_span_ns);
        self.sent = self.sent.saturating_add(seen.sent_packets);
        self.lost = self.lost.saturating_add(seen.lost_packets);
        self.shortest = Some(
            self.shortest
                .map_or(seen.queue_ns, |q| q.min(seen.queue_ns)),
        );
        self.ended = seen.at_ns;
    }

    fn conclude(&self) -> Conclusion {
        let rate = |count: u64, span: u64| count as f64 / span.max(1) as f64 * 1e9;
        let delivered = rate(self.delivered, self.span);
        let queue = self.shortest.unwrap_or(0) as f64;
        let loss = self.lost as f64 / self.sent.max(1) as f64;
        Conclusion {
            waiting: is_waiting(queue, delivered),
            losing: self.lost >= ENOUGH && loss > FULL_LOSS,
            full: false,
            delivered,
            offered: rate(self.offered, self.offered_span),
            packets: rate(self.sent, self.offered_span),
            queue,
            at: self.ended,
        }
    }
}

impl Rates {
    /// Makes the paths of the bond these. What is known of those that stay, stays.
    pub fn set(&mut self, paths: &[Candidate]) {
        let mut before = std::mem::take(&mut self.paths);
        let mut ratios = Vec::new();
        for candidate in paths {
            let estimate = match (before.get(&candidate.path), candidate.taken_over) {
                (Some(rate), _) => rate.estimate,
                (None, Some(weight)) => weight,
                (None, None) => continue,
            };
            ratios.push(estimate / candidate.weight.max(LEAST));
        }
        // In the unit of what is known.
        let unit = if ratios.is_empty() {
            1.0
        } else {
            ratios.iter().sum::<f64>() / ratios.len() as f64
        };
        for candidate in paths {
            let new = || Rate {
                estimate: candidate
                    .taken_over
                    .unwrap_or(candidate.weight * unit)
                    .clamp(LEAST, MOST),
                known: false,
                taken_over: candidate.taken_over.is_some(),
                step: 0.0,
                cap: None,
                delay: None,
                epoch: Epoch::default(),
                last: None,
            };
            let mut rate = before.remove(&candidate.path).unwrap_or_else(new);
            rate.cap = candidate.cap;
            self.paths.insert(candidate.path, rate);
        }
    }

    /// Forgets a path: another one has its place.
    pub fn forget(&mut self, path: u32) {
        self.paths.remove(&path);
    }

    /// Takes in how long the way there is without queues, ns; `None` where that is not known. Only
    /// differences between paths mean anything.
    pub fn set_delay(&mut self, path: u32, delay: Option<i64>) {
        if let Some(rate) = self.paths.get_mut(&path) {
            rate.delay = delay;
        }
    }

    /// Takes in what was measured on a path. True where the shares may have changed.
    pub fn observe(&mut self, path: u32, seen: &Observation) -> bool {
        let was_calm = self.load.is_calm();
        let Some(rate) = self.paths.get_mut(&path) else {
            return false;
        };
        if seen.delivered_span_ns > AWAY || seen.offered_span_ns > AWAY {
            (rate.epoch, rate.last) = (Epoch::default(), None);
            return false;
        }
        if self.load.now == 0 {
            self.load.strained = seen.at_ns;
        }
        self.load.now = self.load.now.max(seen.at_ns);
        self.load.delivered = self.load.delivered.wrapping_add(seen.delivered_bytes);
        let settled = self.load.settle.is_settled();
        // Not only when an epoch ends: a load that has become heavy is to be divided at once.
        if is_waiting(seen.queue_ns as f64, seen.delivered() as f64) {
            (self.load.pressed, self.load.strained) = (self.load.now, self.load.now);
        }
        rate.epoch.add(seen);
        if rate.epoch.span < EPOCH {
            return was_calm && !self.load.is_calm();
        }
        let epoch = std::mem::take(&mut rate.epoch);
        let (mut conclusion, before) = (epoch.conclude(), rate.last);
        // That little came may be chance, once.
        let by_loss = conclusion.losing
            && (conclusion.delivered >= rate.estimate / 2.0
                || before.is_some_and(|last| last.losing));
        conclusion.full = !settled && conclusion.delivered > 0.0 && (conclusion.waiting || by_loss);
        if conclusion.losing {
            self.load.settle.lose(self.load.now);
        }
        rate.last = Some(conclusion);
        if conclusion.full {
            rate.step = 0.0;
            rate.learn(conclusion.delivered);
            self.load.strained = self.load.now;
            self.scale(path);
        } else {
            self.grow(path, conclusion.at);
        }
        // Less would change no share, and take all the longer to grow again.
        let best = self
            .paths
            .values()
            .fold(0.0, |best: f64, rate| best.max(rate.estimate));
        for rate in self.paths.values_mut() {
            rate.estimate = rate.estimate.max(best * LEAST);
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
        let full = |last: Conclusion| last.full && last.is_fresh(now);
        let others_full = self
            .paths
            .iter()
            .any(|(&other, rate)| other != path && rate.last.is_some_and(full));
        let Some(rate) = self.paths.get_mut(&path) else {
            return;
        };
        let is_guess = !rate.known && !rate.taken_over;
        let enough = if is_guess { USED_UNKNOWN } else { USED };
        let is_used = |last: Conclusion| last.delivered >= enough * rate.estimate;
        if others_full && rate.last.is_some_and(is_used) {
            rate.step = if rate.known {
                (2.0 * rate.step).clamp(FIRST_STEP, MOST_STEP)
            } else {
                UNKNOWN_STEP
            };
            rate.estimate = (rate.estimate * (1.0 + rate.step)).clamp(LEAST, MOST);
        } else {
            rate.step = 0.0;
        }
    }

    /// How much each of these paths is to get, as a weight: at most `u16::MAX`; 0 for those that the load
    /// does not need.
    #[must_use]
    pub fn weights(&mut self, usable: impl Fn(u32) -> bool) -> BTreeMap<u32, u32> {
        self.look_at_load(&usable);
        let shortest = self.shortest(&usable);
        let paths = || self.paths.iter().filter(|(path, _)| usable(**path));
        let full = |rate: &Rate| rate.last.filter(|last| last.full);
        // That of a path with room is next to nothing.
        let queues = || paths().map(|(_, rate)| rate.last.map_or(0.0, |last| last.queue));
        let mean = queues().sum::<f64>() / queues().count().max(1) as f64;
        let wanted: BTreeMap<u32, Option<f64>> = paths()
            .map(|(&path, rate)| {
                let bias = full(rate).map_or(0.0, |last| (mean - last.queue) / BALANCE);
                let wanted = rate.estimate * (1.0 + bias.clamp(-MOST_BALANCE, MOST_BALANCE));
                let wanted = rate.cap.map_or(wanted, |cap| wanted.min(cap));
                let takes_part = !self.load.is_calm() || rate.is_as_quick_as(shortest);
                (path, takes_part.then_some(wanted))
            })
            .collect();
        let rates = wanted.values().flatten();
        let best = rates.fold(0.0, |best: f64, &rate| best.max(rate));
        let weight = |rate: f64| {
            let share = (rate / best).clamp(LEAST, 1.0);
            (share * f64::from(u16::MAX)).round() as u32
        };
        wanted
            .into_iter()
            .map(|(path, rate)| (path, rate.map_or(0, weight)))
            .collect()
    }

    /// Whether each flow is to keep its path, as of the last [`Self::weights`].
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.load.settle.is_settled()
    }

    /// The same, for people: not each look whether striping brings more.
    #[must_use]
    pub const fn has_settled(&self) -> bool {
        self.load.settle.has_settled()
    }

    /// Why they were striped last.
    #[must_use]
    pub const fn stripe_cause(&self) -> settle::Cause {
        self.load.settle.cause()
    }

    /// Takes in whether the bond is put in order, and whether a processor of this host is saturated.
    pub const fn set_host(&mut self, in_order: bool, saturated: bool) {
        self.load.settle.set_host(in_order, saturated);
    }

    /// The load is not light where its packets are large, or where the quickest of these paths cannot carry
    /// it with ease. While what they carry is not known their queues tell.
    ///
    /// Large packets are a transfer's, and it soon wants all paths: it begins on all of them.
    fn look_at_load(&mut self, usable: impl Fn(u32) -> bool) {
        let shortest = self.shortest(&usable);
        let last = |rate: &Rate| rate.last.filter(|last| last.is_fresh(self.load.now));
        let (offered, packets) = self
            .paths
            .values()
            .filter_map(last)
            .fold((0.0, 0.0), |(offered, packets), last| {
                (offered + last.offered, packets + last.packets)
            });
        let carried: Option<f64> = self
            .paths
            .iter()
            .filter(|(path, rate)| usable(**path) && rate.is_as_quick_as(shortest))
            .map(|(_, rate)| rate.carries())
            .sum();
        let is_heavy = carried.is_some_and(|carried| offered > LIGHT * carried);
        let mut usable = self.paths.iter().filter(|(path, _)| usable(**path));
        let was_settled = self.is_settled();
        self.load.settle.look(&settle::Seen {
            now: self.load.now,
            pressed: self.load.pressed,
            packets,
            alike: usable.all(|(_, rate)| rate.is_as_quick_as(shortest)),
            delivered: self.load.delivered,
        });
        if self.is_settled() != was_settled {
            // What came out of a path before says nothing of it now.
            let rates = self.paths.values_mut();
            rates.for_each(|rate| rate.epoch = Epoch::default());
        }
        if is_heavy || offered > SMALL * packets {
            self.load.strained = self.load.now;
        }
    }

    /// The shortest way of these paths.
    fn shortest(&self, usable: impl Fn(u32) -> bool) -> Option<i64> {
        let usable = self.paths.iter().filter(|(path, _)| usable(**path));
        usable.filter_map(|(_, rate)| rate.delay).min()
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

impl Load {
    /// Whether the quickest paths are to carry it alone.
    const fn is_calm(&self) -> bool {
        self.now.saturating_sub(self.strained) >= CALM
    }
}

impl Rate {
    /// Whether its way is next to as short as this one; so is one that is not known.
    fn is_as_quick_as(&self, shortest: Option<i64>) -> bool {
        let longer = self.delay.zip(shortest);
        longer.is_none_or(|(delay, shortest)| delay.saturating_sub(shortest) <= AS_QUICK)
    }

    /// Bytes per second, where that is known.
    fn carries(&self) -> Option<f64> {
        let known = self.known.then_some(self.estimate);
        known.into_iter().chain(self.cap).reduce(f64::min)
    }

    /// Takes in what came out of the full path.
    fn learn(&mut self, delivered: f64) {
        if !self.known {
            return;
        }
        let far = delivered < self.estimate * STEP;
        let estimate = if far {
            delivered.max(self.estimate * MOST_FALL)
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

    fn candidate(path: u32, weight: f64) -> Candidate {
        Candidate {
            path,
            weight,
            taken_over: None,
            cap: None,
        }
    }

    fn rates(weights: &[f64]) -> Rates {
        let mut rates = Rates::default();
        let paths = (0..).zip(weights);
        rates.set(
            &paths
                .map(|(path, &weight)| candidate(path, weight))
                .collect::<Vec<_>>(),
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

    /// A sender that waits for what takes the full path proves little of what the others carry: what is a
    /// guess grows all the same; what is known, or was to an earlier controller, does not.
    #[test]
    fn a_guess_grows_while_the_sender_waits() {
        let mut now = 0;
        let mut epoch = |rates: &mut Rates, mbits: [f64; 3], queues: [u64; 3]| {
            now += EPOCH;
            for (path, (mbit, queue_ms)) in (0..).zip(mbits.into_iter().zip(queues).rev()) {
                let bytes = (mbit * 125_000.0 * EPOCH as f64 / 1e9) as u64;
                let seen = Observation {
                    at_ns: now,
                    delivered_span_ns: EPOCH,
                    offered_span_ns: EPOCH,
                    delivered_bytes: bytes,
                    offered_bytes: bytes,
                    sent_packets: bytes / 1400,
                    lost_packets: 0,
                    queue_ns: queue_ms * MS,
                };
                rates.observe(2 - path, &seen);
            }
            let weights = rates.weights(|_| true);
            f64::from(weights[&0]) / f64::from(weights[&2])
        };
        let mut waits = |taken_over| {
            let mut rates = Rates::default();
            rates.set(&[0, 1, 2].map(|path| Candidate {
                taken_over,
                ..candidate(path, 1.0)
            }));
            epoch(&mut rates, [1.2, 1.2, 0.9], [0, 0, 100]);
            let before = epoch(&mut rates, [0.9, 0.9, 0.9], [0, 0, 30]);
            let after = epoch(&mut rates, [1.1, 1.1, 0.9], [0, 0, 30]);
            (rates, before, after)
        };
        let (_, before, after) = waits(Some(1.0));
        assert_eq!(after, before);
        let (mut rates, before, after) = waits(None);
        assert!(after > 1.3 * before, "{before}, then {after}");
        // Now the first path is full as well: 8 Mbit/s are known.
        epoch(&mut rates, [8.0, 4.0, 0.9], [30, 0, 30]);
        let known = rates.known(0);
        assert!(known.is_some());
        epoch(&mut rates, [5.0, 4.0, 0.9], [0, 0, 30]);
        assert_eq!(rates.known(0), known);
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

    /// A load of so many bytes each 30 ms, in packets of this size, for so many ms.
    fn run_load(
        rates: &mut Rates,
        links: &mut [Link; 2],
        from: u64,
        (bytes, size): (f64, f64),
        ms: u64,
    ) -> u64 {
        let steps = ms / 30;
        for step in 1..=steps {
            let weights = rates.weights(|_| true);
            let all: u32 = weights.values().sum();
            for (path, link) in (0..).zip(links.iter_mut()) {
                let share = f64::from(weights[&path]) / f64::from(all);
                let mut seen = link.carry(bytes * share, from + step * 30 * MS, 30 * MS);
                seen.sent_packets = (bytes * share / size) as u64;
                rates.observe(path, &seen);
            }
        }
        from + steps * 30 * MS
    }

    #[test]
    fn small_packets_take_the_quickest_path_and_transfers_all() {
        const ALL: u32 = u16::MAX as u32;
        const CALLS: (f64, f64) = (6_000.0, 200.0);
        let mut rates = rates(&[1.0, 1.0]);
        let mut links = [Link::new(16.0), Link::new(16.0)];
        rates.set_delay(0, Some(-5_000_000));
        rates.set_delay(1, Some(15_000_000));
        let shares = |rates: &mut Rates| {
            let weights = rates.weights(|_| true);
            (weights[&0], weights[&1])
        };
        // At first nothing is known.
        assert_eq!(shares(&mut rates), (ALL, ALL));
        let now = run_load(&mut rates, &mut links, 0, CALLS, 1500);
        assert_eq!(shares(&mut rates), (ALL, 0));
        let alone = rates.weights(|path| path == 1);
        assert_eq!(alone[&1], ALL, "the quickest of those there are");
        // More than the quick one carries: all within a tenth of a second.
        let now = run_load(&mut rates, &mut links, now, (90_000.0, 200.0), 90);
        assert_eq!(shares(&mut rates), (ALL, ALL));
        let now = run_load(&mut rates, &mut links, now, CALLS, 2000);
        assert_eq!(shares(&mut rates), (ALL, 0));
        // A transfer, however slow it is yet.
        let now = run_load(&mut rates, &mut links, now, (6_000.0, 1400.0), 450);
        assert_eq!(shares(&mut rates), (ALL, ALL));
        // Small packets, but more than the quick path is known to carry with ease.
        let now = run_load(&mut rates, &mut links, now, (130_000.0, 1400.0), 2000);
        assert!(rates.known(0).is_some());
        let now = run_load(&mut rates, &mut links, now, (45_000.0, 200.0), 3000);
        assert!(shares(&mut rates).1 > ALL / 2);
        let now = run_load(&mut rates, &mut links, now, CALLS, 1500);
        assert_eq!(shares(&mut rates).1, 0);
        // A way that is next to as short.
        rates.set_delay(1, Some(-1_000_000));
        run_load(&mut rates, &mut links, now, CALLS, 1500);
        assert!(shares(&mut rates).1 > ALL / 2);
    }

    /// Sends `offered` bytes each 30 ms, all of it by one path where flows are settled, over paths that
    /// carry `able` each and a processor that carries `most`; returns in how many of the steps they were.
    fn run_settling(
        rates: &mut Rates,
        from: &mut u64,
        steps: u64,
        offered: f64,
        able: f64,
        most: f64,
    ) -> u64 {
        let mut settled = 0;
        for _ in 0..steps {
            *from += 30 * MS;
            let weights = rates.weights(|_| true);
            let all = f64::from(weights.values().sum::<u32>());
            let is_settled = rates.is_settled();
            settled += u64::from(is_settled);
            for path in 0..2 {
                let share = match (is_settled, path) {
                    (false, _) => f64::from(weights[&path]) / all,
                    (true, 0) => 1.0,
                    (true, _) => 0.0,
                };
                let delivered = (offered.min(most) * share).min(able);
                let seen = Observation {
                    at_ns: *from,
                    delivered_span_ns: 30 * MS,
                    offered_span_ns: 30 * MS,
                    delivered_bytes: delivered as u64,
                    offered_bytes: delivered as u64,
                    sent_packets: (delivered / 1400.0) as u64,
                    lost_packets: 0,
                    queue_ns: 8 * MS,
                };
                rates.observe(path, &seen);
            }
        }
        settled
    }

    #[test]
    fn flows_settle_where_the_processor_is_the_limit_and_only_there() {
        let (mut rates, mut now) = (rates(&[1.0, 1.0]), 0);
        rates.set_host(true, true);
        // The processor carries 170,000 bytes each 30 ms, and either path all of them.
        let settled = run_settling(&mut rates, &mut now, 1000, 1e9, 1e9, 170_000.0);
        assert!(settled > 850, "{settled} of 1000");
        // Either path carries half of what the processor does: within half a minute they are striped.
        run_settling(&mut rates, &mut now, 1000, 1e9, 90_000.0, 180_000.0);
        let settled = run_settling(&mut rates, &mut now, 10_000, 1e9, 90_000.0, 180_000.0);
        assert!(settled < 500, "{settled} of 10000");
        // One has a longer way.
        rates.set_delay(0, Some(0));
        rates.set_delay(1, Some(20_000_000));
        let settled = run_settling(&mut rates, &mut now, 40_000, 1e9, 1e9, 170_000.0);
        assert_eq!(settled, 0);
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
        let capped = Candidate {
            cap: Some(known),
            ..candidate(0, 1.0)
        };
        rates.set(&[capped, candidate(1, 1.0), candidate(5, 1.0)]);
        // In the unit of those that are known: the mean of their rates.
        let all = rates.weights(|_| true);
        assert!(all[&5] > all[&1], "{all:?}");
        let weights = rates.weights(|path| path < 2);
        assert!(weights[&0].abs_diff(weights[&1]) < 20_000, "{weights:?}");
    }

    #[test]
    fn an_absence_says_nothing() {
        let mut rates = rates(&[1.0, 1.0]);
        let mut links = [Link::new(16.0), Link::new(4.0)];
        let mut sender = Sender { rate: 1e6, now: 0 };
        sender.run(&mut rates, &mut links, 6_000);
        let before = rates.weights(|_| true);
        // It died under load, and is back after a minute.
        let seen = Observation {
            at_ns: sender.now + 60_000 * MS,
            delivered_span_ns: 60_000 * MS,
            offered_span_ns: 60_000 * MS,
            delivered_bytes: 60_000,
            offered_bytes: 240_000,
            sent_packets: 170,
            lost_packets: 130,
            queue_ns: 0,
        };
        assert!(!rates.observe(0, &seen));
        assert_eq!(rates.weights(|path| path == 0).len(), 1);
        let after = rates.weights(|_| true);
        assert!(
            after[&0].abs_diff(before[&0]) < 8_000,
            "{before:?} {after:?}"
        );
        assert!(
            after[&1].abs_diff(before[&1]) < 8_000,
            "{before:?} {after:?}"
        );
    }

    /// Whose packets wait is not known; but a path that carries next to nothing is not full of them.
    #[test]
    fn a_thin_stream_says_nothing() {
        let mut rates = rates(&[1.0, 1.0]);
        let mut links = [Link::new(16.0), Link::new(4.0)];
        let mut sender = Sender { rate: 1e6, now: 0 };
        sender.run(&mut rates, &mut links, 6_000);
        let mut known = None;
        for step in 0..100 {
            sender.now += 30 * MS;
            let seen = Observation {
                at_ns: sender.now,
                delivered_span_ns: 30 * MS,
                offered_span_ns: 30 * MS,
                delivered_bytes: 200,
                offered_bytes: 250,
                sent_packets: 3,
                lost_packets: u64::from(sender.now.is_multiple_of(120 * MS)),
                queue_ns: 12 * MS,
            };
            rates.observe(0, &seen);
            // The first epoch has some of the stream before.
            if step == 10 {
                known = rates.known(0);
            }
        }
        assert!(known.is_some());
        assert_eq!(rates.known(0), known);
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
        /// Whatever a peer reports: a path has a share worth the name or is left out, one has the most, and
        /// no estimate leaves its bounds.
        #[test]
        fn shares_stay_within_bounds(
            seen in proptest::collection::vec((0..5_u32, observations()), 0..300),
            weights in proptest::collection::vec(1..=64_u32, 1..=5),
            delays in proptest::collection::vec(any::<Option<i64>>(), 5),
        ) {
            let weights: Vec<f64> = weights.into_iter().map(f64::from).collect();
            let mut rates = rates(&weights);
            for (path, delay) in (0..).zip(delays) {
                rates.set_delay(path, delay);
            }
            for (path, seen) in seen {
                rates.observe(path, &seen);
                let shares = rates.weights(|_| true);
                prop_assert_eq!(shares.len(), weights.len());
                prop_assert_eq!(shares.values().copied().max(), Some(u32::from(u16::MAX)));
                let least = u32::from(u16::MAX) / 64;
                prop_assert!(shares.values().all(|&share| share == 0 || share >= least));
                for path in 0..5 {
                    let known = rates.known(path);
                    prop_assert!(known.is_none_or(|rate| (LEAST..=MOST).contains(&rate)));
                }
            }
        }
    }
}
