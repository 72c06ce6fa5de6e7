//! Whether a path lives, from its probes: one path's state machine, without clock or I/O.
//!
//! Times are CLOCK_MONOTONIC, ns. The data plane stops using a path by itself when its proof of life
//! is older than [`Liveness::limit_ns`]; this machine notices the same, tells it, and decides when the
//! path may come back.

use netbond_common::abi::{ProbeInfo, Sample};
use serde::{Deserialize, Serialize};

use crate::config::Probing;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// A path that lived this long before it died did not flap.
const STEADY: u64 = 60 * SECOND;
/// The first hold-down of a path that flaps; each further one is twice as long.
const FIRST_HOLD: u64 = SECOND;
const LONGEST_HOLD: u64 = 60 * SECOND;
/// Between two requests on a path that has been dead for a while.
const SLOWEST: u64 = SECOND;
/// Round trips longer than one interval widen the limit by this at the most.
const MOST_MARGIN: u64 = SECOND;
/// Seconds over which losses are counted.
const LOSS_WINDOW: usize = 10;

/// What is thought of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Packets pass both ways.
    Alive,
    /// Probes go unanswered.
    Dead,
    /// Answers return, but the path died too often lately.
    HeldDown,
}

/// Where the counts stood at some time.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    sent: u32,
    /// As the peer counts them; 0: not told yet.
    arrived: u32,
    answered: u32,
}

/// A path's liveness.
#[derive(Clone, Debug)]
pub struct Liveness {
    probing: Probing,
    /// `None` until the first answer, or until there should have been one.
    verdict: Option<Verdict>,
    /// When the last answer came; at first, when probing began.
    answered: u64,
    ever_answered: bool,
    /// Requests sent since the last answer.
    unanswered: u32,
    alive_since: u64,
    dead_since: u64,
    /// Answers in a row since it died.
    good: u32,
    /// Deaths in a row of a life that was not steady.
    flaps: u32,
    hold_until: u64,
    next: u64,
    rtt: u64,
    deviation: u64,
    least: u64,
    reordered: u32,
    last_sequence: u32,
    now: Mark,
    marks: [Mark; LOSS_WINDOW],
    oldest_mark: usize,
    next_mark: u64,
}

impl Liveness {
    /// A path that is probed from `now` on.
    #[must_use]
    pub fn new(probing: Probing, now: u64) -> Self {
        Self {
            probing,
            verdict: None,
            answered: now,
            ever_answered: false,
            unanswered: 0,
            alive_since: now,
            dead_since: now,
            good: 0,
            flaps: 0,
            hold_until: 0,
            next: now,
            rtt: 0,
            deviation: 0,
            least: 0,
            reordered: 0,
            last_sequence: 0,
            now: Mark::default(),
            marks: [Mark::default(); LOSS_WINDOW],
            oldest_mark: 0,
            next_mark: now + SECOND,
        }
    }

    fn interval(&self) -> u64 {
        u64::from(self.probing.interval_ms) * MS
    }

    /// How old a proof of life may be: the missed probes' intervals, and what round trips exceed one
    /// interval by (as RFC 6298 measures them), so that a full queue is not taken for a dead path.
    #[must_use]
    pub fn limit_ns(&self) -> u64 {
        let expected = self.rtt + 4 * self.deviation;
        let margin = expected.saturating_sub(self.interval()).min(MOST_MARGIN);
        u64::from(self.probing.misses) * self.interval() + margin
    }

    /// When the next request is due.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Notes that a request was sent; `random` spreads the next one by a tenth of the interval either
    /// way.
    pub fn sent(&mut self, now: u64, random: u32) {
        self.now.sent = self.now.sent.wrapping_add(1);
        self.unanswered = self.unanswered.saturating_add(1);
        let interval = if self.verdict == Some(Verdict::Dead) && self.good == 0 {
            // The longer it is dead, the less often it is asked.
            let asleep = now.saturating_sub(self.dead_since) / 10;
            asleep.clamp(self.interval(), SLOWEST.max(self.interval()))
        } else {
            self.interval()
        };
        let offset = u64::from(random).checked_rem(interval / 5).unwrap_or(0);
        self.next = now + interval - interval / 10 + offset;
    }

    /// Leaves time out of account in which nothing was sent or heard because we did not run: our own
    /// absence is no silence of the peer's.
    pub fn excuse(&mut self, absent: u64) {
        self.answered += absent;
    }

    /// Takes in an answer; returns the verdict where it changed.
    pub fn answer(&mut self, sample: &Sample) -> Option<Verdict> {
        let now = sample.at_ns;
        self.measure(sample);
        self.answered = self.answered.max(now);
        self.ever_answered = true;
        self.unanswered = 0;
        match self.verdict {
            None => {
                self.alive_since = now;
                self.set(Verdict::Alive)
            }
            Some(Verdict::Alive) => None,
            Some(Verdict::Dead | Verdict::HeldDown) => {
                self.good += 1;
                // Asked at full pace again from now on.
                self.next = self.next.min(now + self.interval());
                self.recover(now)
            }
        }
    }

    /// Looks at the clock; returns the verdict where it changed.
    pub fn tick(&mut self, now: u64) -> Option<Verdict> {
        if now >= self.next_mark {
            self.marks[self.oldest_mark] = self.now;
            self.oldest_mark = (self.oldest_mark + 1) % LOSS_WINDOW;
            self.next_mark = now + SECOND;
        }
        let silent = self.unanswered >= self.probing.misses
            && now.saturating_sub(self.answered) > self.limit_ns();
        match self.verdict {
            Some(Verdict::Dead) => {
                if silent {
                    self.good = 0;
                }
                None
            }
            Some(Verdict::HeldDown) if silent => {
                self.good = 0;
                self.dead_since = now;
                self.set(Verdict::Dead)
            }
            Some(Verdict::HeldDown) => self.recover(now),
            Some(Verdict::Alive) | None if silent => {
                self.die(now);
                self.set(Verdict::Dead)
            }
            Some(Verdict::Alive) | None => None,
        }
    }

    fn die(&mut self, now: u64) {
        self.dead_since = now;
        self.good = 0;
        if !self.ever_answered || now.saturating_sub(self.alive_since) >= STEADY {
            self.flaps = 0;
            return;
        }
        let hold = FIRST_HOLD << self.flaps.min(10);
        self.hold_until = now + hold.min(LONGEST_HOLD);
        self.flaps += 1;
    }

    fn recover(&mut self, now: u64) -> Option<Verdict> {
        if self.good < self.probing.recover {
            return None;
        }
        if now < self.hold_until {
            return self.set(Verdict::HeldDown);
        }
        self.alive_since = now;
        self.set(Verdict::Alive)
    }

    fn set(&mut self, verdict: Verdict) -> Option<Verdict> {
        let changed = self.verdict != Some(verdict);
        self.verdict = Some(verdict);
        changed.then_some(verdict)
    }

    fn measure(&mut self, sample: &Sample) {
        let rtt = sample.rtt_ns;
        if self.least == 0 {
            (self.rtt, self.deviation, self.least) = (rtt, rtt / 2, rtt);
        } else {
            self.deviation = (3 * self.deviation + self.rtt.abs_diff(rtt)) / 4;
            self.rtt = (7 * self.rtt + rtt) / 8;
            self.least = self.least.min(rtt);
        }
        self.now.answered = self.now.answered.wrapping_add(1);
        // Sequence numbers wrap: later is what is less than half the range ahead.
        if sample.sequence.wrapping_sub(self.last_sequence) < u32::MAX / 2 {
            self.last_sequence = sample.sequence;
            self.now.arrived = sample.requests_seen;
        } else {
            self.reordered = self.reordered.wrapping_add(1);
        }
    }

    /// What people may know.
    #[must_use]
    pub fn info(&self) -> ProbeInfo {
        let then = self.marks[self.oldest_mark];
        let sent = self.now.sent.wrapping_sub(then.sent);
        let answered = self.now.answered.wrapping_sub(then.answered).min(sent);
        // The peer counts on over our restarts: its first count is only where to start from.
        let arrived = if then.arrived == 0 {
            answered
        } else {
            self.now
                .arrived
                .wrapping_sub(then.arrived)
                .clamp(answered, sent)
        };
        let share = |lost: u32, of: u32| {
            // The last request may still be under way.
            let lost = u64::from(lost.saturating_sub(1)) * 1_000_000;
            lost.checked_div(u64::from(of)).unwrap_or(0) as u32
        };
        ProbeInfo {
            rtt_ns: self.rtt,
            deviation_ns: self.deviation,
            least_ns: self.least,
            answered_ns: if self.ever_answered { self.answered } else { 0 },
            loss_there: share(sent - arrived, sent),
            loss_back: share(arrived - answered, arrived),
            reordered: self.reordered,
            probed: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use proptest::prelude::*;

    use super::Verdict::{Alive, Dead, HeldDown};
    use super::*;

    /// A path, its clock, and the verdicts so far.
    struct Bench {
        liveness: Liveness,
        now: u64,
        sequence: u32,
        seen: u32,
        story: Vec<(u64, Verdict)>,
    }

    impl Bench {
        fn new() -> Self {
            let liveness = Liveness::new(Probing::default(), SECOND);
            Self {
                liveness,
                now: SECOND,
                sequence: 0,
                seen: 0,
                story: Vec::new(),
            }
        }

        /// Lets time pass in steps of a millisecond; `answers` says which requests find an answer.
        fn run(&mut self, ms: u64, mut answers: impl FnMut(u64) -> bool) {
            for _ in 0..ms {
                self.now += MS;
                if self.now >= self.liveness.next() {
                    self.liveness.sent(self.now, 7);
                    self.sequence += 1;
                    if answers(self.now) {
                        self.seen += 1;
                        let sample = Sample {
                            sequence: self.sequence,
                            at_ns: self.now,
                            rtt_ns: MS,
                            requests_seen: self.seen,
                            ..Sample::zeroed()
                        };
                        self.note(|liveness, _| liveness.answer(&sample));
                    }
                }
                self.note(Liveness::tick);
            }
        }

        fn note(&mut self, step: impl FnOnce(&mut Liveness, u64) -> Option<Verdict>) {
            if let Some(verdict) = step(&mut self.liveness, self.now) {
                self.story.push((self.now, verdict));
            }
        }

        fn verdicts(&self) -> Vec<Verdict> {
            self.story.iter().map(|(_, verdict)| *verdict).collect()
        }
    }

    #[test]
    fn death_is_noticed_within_the_limit_and_return_is_damped() {
        let mut bench = Bench::new();
        bench.run(100_000, |_| true);
        assert_eq!(bench.verdicts(), [Alive]);
        let died = bench.now;
        bench.run(1_000, |_| false);
        assert_eq!(bench.verdicts(), [Alive, Dead]);
        let noticed = bench.story[1].0 - died;
        assert!(
            noticed <= bench.liveness.limit_ns() + 2 * MS,
            "{} ms",
            noticed / MS
        );
        let back = bench.now;
        bench.run(2_000, |_| true);
        assert_eq!(bench.verdicts(), [Alive, Dead, Alive]);
        let returned = bench.story[2].0 - back;
        assert!(
            returned >= 4 * 27 * MS,
            "five good answers: {} ms",
            returned / MS
        );
    }

    #[test]
    fn one_lost_probe_or_two_are_no_death() {
        let mut bench = Bench::new();
        let mut turn = 0;
        bench.run(60_000, |_| {
            turn += 1;
            turn % 5 > 1
        });
        assert_eq!(bench.verdicts(), [Alive]);
        let info = bench.liveness.info();
        assert!((350_000..450_000).contains(&info.loss_there), "{info:?}");
        assert_eq!(info.loss_back, 0);
    }

    #[test]
    fn a_flapping_path_is_held_down_longer_and_longer() {
        let mut bench = Bench::new();
        bench.run(100_000, |_| true);
        bench.run(30_000, |now| (now / (200 * MS)).is_multiple_of(2));
        let returns = bench
            .verdicts()
            .iter()
            .filter(|verdict| **verdict == Alive)
            .count();
        assert!(returns <= 6, "{:?}", bench.verdicts());
        bench.run(2 * LONGEST_HOLD / MS, |_| true);
        assert_eq!(bench.verdicts().last(), Some(&Alive));
        assert!(bench.verdicts().contains(&HeldDown));
    }

    #[test]
    fn a_path_that_never_answers_is_dead() {
        let mut bench = Bench::new();
        bench.run(10_000, |_| false);
        assert_eq!(bench.verdicts(), [Dead]);
        assert!(
            bench.sequence < 120,
            "asked less and less often: {}",
            bench.sequence
        );
        bench.run(3_000, |_| true);
        assert_eq!(bench.verdicts(), [Dead, Alive], "no hold-down at first");
    }

    #[test]
    fn our_own_absence_is_no_silence() {
        let mut bench = Bench::new();
        bench.run(10_000, |_| true);
        bench.now += SECOND;
        bench.liveness.excuse(SECOND);
        bench.run(10_000, |_| true);
        assert_eq!(bench.verdicts(), [Alive]);
    }

    #[test]
    fn a_full_queue_widens_the_limit() {
        let mut liveness = Liveness::new(Probing::default(), 0);
        let sample = |rtt_ns| Sample {
            rtt_ns,
            ..Sample::zeroed()
        };
        liveness.answer(&sample(MS));
        assert_eq!(liveness.limit_ns(), 90 * MS);
        for _ in 0..100 {
            liveness.answer(&sample(80 * MS));
        }
        let limit = liveness.limit_ns() / MS;
        assert!((135..145).contains(&limit), "{limit} ms");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Whatever is lost, a path is never thought alive longer than its limit after the last
        /// answer, and always comes back in the end.
        #[test]
        fn never_alive_without_answers(
            phases in prop::collection::vec((1..400_u64, 0..4_u8), 1..20),
        ) {
            let mut bench = Bench::new();
            for (ms, kind) in phases {
                for _ in 0..ms {
                    bench.run(1, |now| match kind {
                        0 => false,
                        1 => true,
                        2 => (now / MS).is_multiple_of(3),
                        _ => (now / (200 * MS)).is_multiple_of(2),
                    });
                    let alive = bench.verdicts().last() == Some(&Alive);
                    let age = bench.now.saturating_sub(bench.liveness.answered);
                    // One more interval, where jitter put the last request late.
                    prop_assert!(!alive || age <= bench.liveness.limit_ns() + 40 * MS);
                }
            }
            bench.run((2 * LONGEST_HOLD + 10 * SECOND) / MS, |_| true);
            prop_assert_eq!(bench.verdicts().last().copied(), Some(Alive));
        }
    }
}
