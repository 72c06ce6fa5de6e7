//! When each flow is to keep its path, in a bond that is put in order: pure, with no clock of its own.
//!
//! Striping is for paths that are full. Where a processor is the limit it gains nothing, and its price is
//! what runs short: packets with numbers are not merged (GRO) before they are put in order. Then flows
//! settle, on a path each, and their packets have no numbers.
//!
//! A saturated processor makes queues in which probes wait as in those of a full path. So it is tried: if as
//! much comes out with flows settled, they stay so for a while, and then it is tried again.

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
/// For so long that stands, ns.
const STANDS: u64 = 30_000_000_000;
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

/// Whether the flows of a bond are settled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settle {
    /// Whether the bond is put in order: else its packets have no numbers anyway.
    in_order: bool,
    /// Whether a processor of this host is saturated.
    saturated: bool,
    state: State,
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
    /// Settled since so long, ns, as no less comes out: the processor is the limit.
    Proven { since: u64 },
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
            State::Striped => false,
            State::Trial { .. } | State::Proven { .. } => true,
        }
    }

    /// Packets are lost: it is a path that is full.
    pub fn lose(&mut self, now: u64) {
        if self.is_settled() {
            self.fail(now);
        }
    }

    /// Concludes.
    pub fn look(&mut self, seen: &Seen) {
        let may = self.in_order && self.saturated && seen.alike;
        match self.state {
            State::Striped => {
                let pressed = since(seen.now, seen.pressed) <= RECENT;
                if !may || !pressed || seen.packets < BUSY || seen.now < self.not_before {
                    self.from = None;
                } else if let Some(before) = self.measure(seen, 0) {
                    let since = seen.now;
                    self.state = State::Trial { since, before };
                }
            }
            State::Trial { .. } if !may => self.fail(seen.now),
            State::Trial { since, before } => {
                match self.measure(seen, since.saturating_add(SETTLING)) {
                    None => {}
                    Some(after) if after >= KEPT * before => {
                        self.state = State::Proven { since: seen.now };
                        self.pause = 0;
                    }
                    Some(_) => self.fail(seen.now),
                }
            }
            State::Proven { since: then } => {
                if !may || since(seen.now, then) >= STANDS || seen.packets < BUSY / 2.0 {
                    (self.state, self.from) = (State::Striped, None);
                }
            }
        }
    }

    /// Ends it, and lets it be for a while.
    fn fail(&mut self, now: u64) {
        self.pause = (2 * self.pause).clamp(PAUSE, LONGEST_PAUSE);
        self.not_before = now.saturating_add(self.pause);
        (self.state, self.from) = (State::Striped, None);
    }

    /// Bytes a second that came out in a [`WINDOW`], once there was one; it begins with the first call that
    /// is not before `begin`.
    fn measure(&mut self, seen: &Seen, begin: u64) -> Option<f64> {
        if seen.now < begin {
            return None;
        }
        let (then, bytes) = *self.from.get_or_insert((seen.now, seen.delivered));
        let span = since(seen.now, then);
        if span < WINDOW {
            return None;
        }
        self.from = None;
        Some(seen.delivered.wrapping_sub(bytes) as f64 / span as f64 * 1e9)
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
            }
        }

        /// Lets so many ms go by, looking each `step` ms, in all of which packets wait; returns for how
        /// many flows were settled.
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
                self.seen.pressed = self.seen.now;
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

    /// The load grows, or the path on which it settled is slower now: within half a minute all share it.
    #[test]
    fn what_was_proven_is_tried_again() {
        let mut bond = Bond::new(5_000_000, 5_000_000);
        bond.run(10_000, 100);
        (bond.striped, bond.settled) = (9_000_000, 5_000_000);
        bond.run(30_000, 100);
        let settled = bond.run(600_000, 100);
        assert!(settled < 20_000, "{settled} ms of ten minutes");
    }

    #[test]
    fn losses_end_it() {
        let mut bond = Bond::new(5_000_000, 5_000_000);
        bond.run(10_000, 100);
        assert!(bond.settle.is_settled());
        bond.settle.lose(bond.seen.now);
        assert_eq!(bond.run(25_000, 100), 0);
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
