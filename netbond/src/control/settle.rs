//! When each flow is to keep its path, in a bond that is put in order: pure, with no clock of its own.
//!
//! Striping is for paths that are full. Where a processor is the limit it gains nothing, and its price is
//! what runs short: packets with numbers are not merged (GRO) before they are put in order. Then flows
//! settle, on a path each, and their packets have no numbers.
//!
//! A saturated processor makes queues in which probes wait as in those of a full path. So it is tried: if as
//! much comes out with flows settled, they stay so for a while. Then striping is tried for a moment, and only
//! if more comes out so it stays.

use serde::{Deserialize, Serialize};

/// So many packets a second are worth it.
const BUSY: f64 = 1000.0;
/// Paths are at their limit, or the processor, as long as the last sign of a queue is no older, ns.
const RECENT: u64 = 1_000_000_000;
/// What comes out is measured over so long, ns: before the trial,
const WINDOW: u64 = 1_000_000_000;
/// and in it, once senders have had so long to find out, ns.
const SETTLING: u64 = 400_000_000;
/// The trial succeeds with this share of what came out before: as much, but for what windows vary.
const KEPT: f64 = 0.97;
/// Less than this share of it is worse for sure, and seen
const WORSE: f64 = 0.85;
/// after so long, ns.
const EARLY: u64 = 250_000_000;
/// For so long that stands, ns, and each time that striping is found to bring no more for twice as long,
const STANDS: u64 = 30_000_000_000;
/// up to this.
const LONGEST_STANDS: u64 = 240_000_000_000;
/// After the first trial that fails there is none for so long, ns; then for twice as long each time,
const PAUSE: u64 = 30_000_000_000;
/// up to this.
const LONGEST_PAUSE: u64 = 960_000_000_000;

/// What is known of a bond's load at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// ns.
    pub now: u64,
    /// When packets waited last, ns.
    pub pressed: u64,
    /// Packets sent a second, on all paths.
    pub packets: f64,
    /// Whether the ways of all paths in use are next to as short as each other: a flow may come to any.
    pub alike: bool,
    /// Bytes that came out of all paths since the beginning; wraps around.
    pub delivered: u64,
}

/// Why flows that were settled are striped again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// There is little to send.
    #[default]
    LightLoad,
    /// No processor of this host is saturated, or the bond is not put in order any more.
    ProcessorFree,
    /// The paths' ways are not alike any more.
    UnlikePaths,
    /// Less came out while they were.
    CarriesLess,
    /// More came out while flows were striped for a moment.
    StripingCarriesMore,
    /// Nothing waited while flows were striped for a moment.
    NoQueue,
}

/// Whether the flows of a bond are settled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settle {
    /// Whether the bond is put in order: else its packets have no numbers anyway.
    in_order: bool,
    /// Whether a processor of this host is saturated.
    saturated: bool,
    state: State,
    /// Why they were striped last.
    cause: Cause,
    /// The beginning of what is being measured, ns, and [`Seen::delivered`] then.
    from: Option<(u64, u64)>,
    /// The length of the last pause, ns, 0 where no trial failed lately; and until when it is.
    pause: u64,
    not_before: u64,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// All paths share the load.
    #[default]
    Striped,
    /// Settled since so long, ns, to find out; so many bytes a second came out before.
    Trial { since: u64, before: f64 },
    /// Settled since so long, ns, as no less comes out: the processor is the limit. So many bytes a second come
    /// out, smoothed; for so long it stands, ns; and whether packets were lost in the present window.
    Proven {
        since: u64,
        rate: f64,
        stands: u64,
        lost: bool,
    },
    /// Striped since so long, ns, to see whether that brings more than those bytes a second.
    Check { since: u64, rate: f64, stood: u64 },
}

impl Settle {
    /// Takes in whether the bond is put in order, and whether a processor of this host is saturated.
    pub const fn set_host(&mut self, in_order: bool, saturated: bool) {
        (self.in_order, self.saturated) = (in_order, saturated);
    }

    /// Whether they are; then queues are taken for the processor's.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        match self.state {
            State::Striped | State::Check { .. } => false,
            State::Trial { .. } | State::Proven { .. } => true,
        }
    }

    /// The same, but for the moments in which it is looked whether striping brings more.
    #[must_use]
    pub const fn has_settled(&self) -> bool {
        self.is_settled() || matches!(self.state, State::Check { .. })
    }

    /// Why flows were striped last.
    #[must_use]
    pub const fn cause(&self) -> Cause {
        self.cause
    }

    /// Packets are lost. Senders do that who begin, or a path that is full, on which flows should not stay: that
    /// has less come out, too. What was sent before flows settled does not count.
    pub fn lose(&mut self, now: u64) {
        if let State::Proven {
            since: then, lost, ..
        } = &mut self.state
        {
            *lost = since(now, *then) > SETTLING;
        }
    }

    /// Concludes.
    pub fn look(&mut self, seen: &Seen) {
        let prevented = if !self.in_order || !self.saturated {
            Some(Cause::ProcessorFree)
        } else if !seen.alike {
            Some(Cause::UnlikePaths)
        } else {
            None
        };
        let is_pressed = since(seen.now, seen.pressed) <= RECENT;
        match self.state {
            State::Striped => {
                if prevented.is_some()
                    || !is_pressed
                    || seen.packets < BUSY
                    || seen.now < self.not_before
                {
                    self.from = None;
                } else if let Some(before) = self.measure(seen, 0) {
                    let since = seen.now;
                    self.state = State::Trial { since, before };
                }
            }
            State::Trial { since, before } => {
                if let Some(cause) = prevented {
                    return self.fail(seen.now, cause);
                }
                match self.measure(seen, since.saturating_add(SETTLING)) {
                    None => {}
                    Some(after) if after >= KEPT * before => {
                        self.prove(seen.now, after, STANDS);
                        self.pause = 0;
                    }
                    Some(_) => self.fail(seen.now, Cause::CarriesLess),
                }
            }
            State::Proven { .. } | State::Check { .. }
                if prevented.is_some() || seen.packets < BUSY / 2.0 =>
            {
                self.stripe(prevented.unwrap_or(Cause::LightLoad));
            }
            State::Proven {
                since: then,
                rate,
                stands,
                lost,
            } => {
                let window = self.measure(seen, then);
                let is_doubtful = lost && window.is_some_and(|window| window < WORSE * rate);
                // One window may be a pause of the senders.
                let rate = window.map_or(rate, |window| (rate + window) / 2.0);
                self.state = if is_doubtful || since(seen.now, then) >= stands {
                    self.from = None;
                    State::Check {
                        since: seen.now,
                        rate,
                        stood: if is_doubtful { stands / 2 } else { stands },
                    }
                } else {
                    State::Proven {
                        since: then,
                        rate,
                        stands,
                        lost: lost && window.is_none(),
                    }
                };
            }
            State::Check { since, rate, stood } => {
                let early = self.so_far(seen, EARLY);
                let is_worse = early.is_some_and(|striped| striped < WORSE * rate);
                match self.measure(seen, since.saturating_add(SETTLING)) {
                    None if is_worse => self.prove_again(seen.now, rate, stood),
                    None => {}
                    Some(striped) if KEPT * striped > rate => {
                        self.fail(seen.now, Cause::StripingCarriesMore);
                    }
                    Some(_) if !is_pressed => self.stripe(Cause::NoQueue),
                    Some(_) => self.prove_again(seen.now, rate, stood),
                }
            }
        }
    }

    /// Has flows settle for twice as long as before.
    fn prove_again(&mut self, now: u64, rate: f64, stood: u64) {
        self.from = None;
        self.prove(now, rate, (2 * stood).min(LONGEST_STANDS));
    }

    /// Has flows settle for so long, ns, as so many bytes a second come out then.
    fn prove(&mut self, now: u64, rate: f64, stands: u64) {
        self.state = State::Proven {
            since: now,
            rate,
            stands,
            lost: false,
        };
    }

    /// Ends it, and lets it be for a while.
    fn fail(&mut self, now: u64, cause: Cause) {
        self.pause = (2 * self.pause).clamp(PAUSE, LONGEST_PAUSE);
        self.not_before = now.saturating_add(self.pause);
        self.stripe(cause);
    }

    fn stripe(&mut self, cause: Cause) {
        (self.state, self.cause, self.from) = (State::Striped, cause, None);
    }

    /// Bytes a second that came out in a [`WINDOW`], once there was one; it begins with the first call that
    /// is not before `begin`.
    fn measure(&mut self, seen: &Seen, begin: u64) -> Option<f64> {
        if seen.now < begin {
            return None;
        }
        self.from.get_or_insert((seen.now, seen.delivered));
        let rate = self.so_far(seen, WINDOW)?;
        self.from = None;
        Some(rate)
    }

    /// Bytes a second that came out since what is being measured began, if that is so long ago, ns.
    fn so_far(&self, seen: &Seen, enough: u64) -> Option<f64> {
        let (then, bytes) = self.from?;
        let span = since(seen.now, then);
        (span >= enough).then(|| seen.delivered.wrapping_sub(bytes) as f64 / span as f64 * 1e9)
    }
}

const fn since(now: u64, then: u64) -> u64 {
    now.saturating_sub(then)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A bond whose paths deliver so much a second, striped and settled.
    struct Bond {
        settle: Settle,
        seen: Seen,
        striped: u64,
        settled: u64,
        /// Whether packets wait while flows are striped, too.
        waits: bool,
    }

    impl Bond {
        fn new(striped: u64, settled: u64) -> Self {
            let mut settle = Settle::default();
            settle.set_host(true, true);
            let seen = Seen {
                now: 5_000 * MS,
                pressed: 5_000 * MS,
                packets: 4000.0,
                alike: true,
                delivered: u64::MAX - 70_000,
            };
            Self {
                settle,
                seen,
                striped,
                settled,
                waits: true,
            }
        }

        /// Lets so many ms go by, looking each `step` ms; returns for how many flows were settled.
        fn run(&mut self, ms: u64, step: u64) -> u64 {
            let mut settled = 0;
            for _ in 0..ms / step {
                let rate = if self.settle.is_settled() {
                    settled += step;
                    self.settled
                } else {
                    self.striped
                };
                self.seen.now += step * MS;
                if self.waits || self.settle.is_settled() {
                    self.seen.pressed = self.seen.now;
                }
                self.seen.delivered = self.seen.delivered.wrapping_add(rate * step / 1000);
                self.settle.look(&self.seen);
            }
            settled
        }
    }

    /// However often somebody looks.
    const STEPS: [u64; 5] = [30, 50, 105, 210, 500];

    #[test]
    fn a_trial_that_loses_nothing_lasts() {
        for (step, settled) in STEPS
            .into_iter()
            .zip([5_000_000, 6_000_000, 5_000_000, 4_900_000, 5_500_000])
        {
            let mut bond = Bond::new(5_000_000, settled);
            bond.run(2_000, step);
            let minutes = bond.run(300_000, step);
            assert!(minutes > 280_000, "{minutes} ms, each {step}");
            bond.settle.set_host(true, false);
            assert!(
                bond.run(2_000, step) <= step,
                "the processor has time again"
            );
        }
    }

    #[test]
    fn a_trial_that_loses_is_not_repeated_soon() {
        for step in STEPS {
            let mut bond = Bond::new(5_000_000, 4_750_000);
            let first = bond.run(30_000, step);
            assert!((1_000..3_000).contains(&first), "{first} ms, each {step}");
            let hour = bond.run(3_600_000, step);
            assert!(hour < 60_000, "{hour} ms of trials, each {step}");
            // Another limit now.
            bond.settled = 5_000_000;
            bond.run(1_000_000, step);
            assert!(bond.run(10_000, step) > 8_000);
        }
    }

    /// The load grows, or the path on which it settled is slower now: within half a minute all share it, or
    /// four minutes where it stood for long.
    #[test]
    fn what_was_proven_is_tried_again() {
        for (stood, longest) in [(10_000, 30_000), (3_600_000, 240_000)] {
            let mut bond = Bond::new(5_000_000, 5_000_000);
            bond.run(stood, 100);
            (bond.striped, bond.settled) = (9_000_000, 5_000_000);
            bond.run(longest + 2_000, 100);
            let settled = bond.run(600_000, 100);
            assert!(settled < 20_000, "{settled} ms of ten minutes");
        }
    }

    /// Striping is tried for a moment, seldom, though packets are lost then, as a processor has no time to take
    /// them in; what was lost is told a little later.
    #[test]
    fn looking_again_costs_little() {
        for step in STEPS {
            let mut bond = Bond::new(3_000_000, 5_000_000);
            bond.run(5_000, step);
            let (mut striped, mut until) = (0, 0);
            while bond.seen.now < 3_600_000 * MS {
                if bond.run(step, step) == 0 {
                    striped += step;
                    until = bond.seen.now + 300 * MS;
                }
                if bond.seen.now <= until {
                    bond.settle.lose(bond.seen.now);
                }
            }
            assert!(striped < 18_000, "{striped} ms of an hour, each {step}");
        }
    }

    /// Where no packet waits once they are striped it was a path: senders find the room.
    #[test]
    fn room_is_left_to_senders() {
        let mut bond = Bond::new(5_000_000, 5_000_000);
        bond.run(10_000, 100);
        bond.waits = false;
        let settled = bond.run(600_000, 100);
        assert!((15_000..30_000).contains(&settled), "{settled} ms");
    }

    /// Senders that begin lose packets, and less comes out for a second: it is looked at, and they stay settled.
    #[test]
    fn losses_of_senders_end_nothing() {
        for step in STEPS {
            let mut bond = Bond::new(4_000_000, 5_000_000);
            bond.run(5_000, step);
            bond.settled = 3_500_000;
            let mut settled = 0;
            for _ in 0..1_000 / step {
                bond.settle.lose(bond.seen.now);
                settled += bond.run(step, step);
            }
            bond.settled = 5_000_000;
            for _ in 0..20_000 / step {
                bond.settle.lose(bond.seen.now);
                settled += bond.run(step, step);
            }
            assert!(settled > 18_000, "{settled} ms, each {step}");
        }
    }

    #[test]
    fn a_path_that_is_full_ends_it() {
        for step in STEPS {
            let mut bond = Bond::new(5_000_000, 5_000_000);
            bond.run(5_000, step);
            assert!(bond.settle.is_settled());
            (bond.striped, bond.settled) = (4_000_000, 2_000_000);
            let mut settled = 0;
            for _ in 0..25_000 / step {
                bond.settle.lose(bond.seen.now);
                settled += bond.run(step, step);
            }
            assert!(settled < 8_000, "{settled} ms, each {step}");
            assert_eq!(bond.settle.cause(), Cause::StripingCarriesMore);
        }
    }

    #[test]
    fn why_flows_are_striped_again_is_told() {
        let after = |change: fn(&mut Bond)| {
            let mut bond = Bond::new(5_000_000, 5_000_000);
            bond.run(10_000, 100);
            assert!(bond.settle.is_settled());
            change(&mut bond);
            bond.run(28_000, 100);
            assert!(!bond.settle.is_settled());
            bond.settle.cause()
        };
        assert_eq!(after(|bond| bond.seen.packets = 100.0), Cause::LightLoad);
        assert_eq!(after(|bond| bond.seen.alike = false), Cause::UnlikePaths);
        let idle = after(|bond| bond.settle.set_host(true, false));
        assert_eq!(idle, Cause::ProcessorFree);
        let more = after(|bond| bond.striped = 9_000_000);
        assert_eq!(more, Cause::StripingCarriesMore);
        assert_eq!(after(|bond| bond.waits = false), Cause::NoQueue);
        let mut bond = Bond::new(5_000_000, 4_000_000);
        bond.run(10_000, 100);
        assert_eq!(bond.settle.cause(), Cause::CarriesLess);
    }

    #[test]
    fn only_for_many_packets_that_wait_in_a_bond_in_order_of_paths_alike() {
        let never = |change: fn(&mut Bond)| {
            let mut bond = Bond::new(5_000_000, 5_000_000);
            change(&mut bond);
            assert_eq!(bond.run(20_000, 100), 0);
        };
        never(|bond| bond.seen.packets = 900.0);
        never(|bond| bond.seen.alike = false);
        never(|bond| bond.settle.set_host(false, true));
        never(|bond| bond.settle.set_host(true, false));
        let mut relaxed = Bond::new(5_000_000, 5_000_000);
        for _ in 0..200 {
            relaxed.seen.now += 100 * MS;
            relaxed.settle.look(&relaxed.seen);
        }
        assert!(!relaxed.settle.is_settled(), "no packet waits");
    }
}
