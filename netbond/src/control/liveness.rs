//! What is thought of a path, from its probes or its BFD session: one path's state machine, without
//! clock or I/O.
//!
//! Times are CLOCK_MONOTONIC, ns. The data plane stops using a path by itself when its proof of life
//! is older than [`Liveness::limit_ns`], and uses it again with the next one. This machine concludes
//! that the path is dead, a little later where round trips have their moments, and decides when it may
//! come back.

use bytemuck::Zeroable as _;
use netbond_common::{
    abi::{ProbeInfo, Sample},
    ipv6,
    names::{FullSize, Watch},
    probe,
};
use serde::{Deserialize, Serialize};

use super::damper::Damper;
use super::measure::Measure;
use super::path_mtu::PathMtu;
use super::quality::{Quality, Shortcoming};
use crate::config::{HoldDown, Policies, Probing};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// Between two requests on a path that has been dead for a while.
const SLOWEST: u64 = SECOND;
/// Before a path that never answered is thought dead: the peer may be starting as well.
const FIRST_ANSWER: u64 = SECOND;
/// Round trips longer than one interval widen the limit by this at the most.
const MOST_MARGIN: u64 = SECOND;
/// Bytes of an outer packet with a small probe, at the most.
const SMALL: u32 = (ipv6::HEADER_LEN + 8 + probe::LEN) as u32;

/// What is thought of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Packets pass both ways.
    Alive,
    /// As many probes in a row as were missed found no answer.
    Dead { missed: u32 },
    /// All is well again, but the path failed too often lately; it is out for this long, ms.
    HeldDown { flaps: u32, ms: u64 },
    /// Packets of the bond of this size, bytes, vanish, while small ones pass, and no other size is known yet that
    /// does, or the bond can do with none that does.
    Mtu { bytes: u32 },
    /// Alive, but not good enough.
    Short(Shortcoming),
    /// The BFD session with the peer went down, for this reason.
    BfdDown { diagnostic: String },
    /// The BFD session was ended on purpose, by the peer or by a reload: nothing is known any more.
    Unwatched,
}

/// What a BFD session says of its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bfd {
    Up,
    /// It failed, for this reason.
    Down(String),
    /// It was ended on purpose: no failure (RFC 5882, 3.2).
    Ended,
}

impl Verdict {
    /// Whether another one is a different thing, and not the same with other figures.
    fn differs(&self, other: &Self) -> bool {
        let same = match (self, other) {
            (Self::Short(one), Self::Short(other)) => one.is_like(other),
            (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
        };
        !same
    }
}

/// A path that is probed.
#[derive(Clone, Debug)]
pub struct Liveness {
    probing: Probing,
    /// `None` until the first answer, or until there should have been one.
    verdict: Option<Verdict>,
    damper: Damper,
    path_mtu: PathMtu,
    /// Bytes of outer headers around a packet of the bond.
    headers: u32,
    measure: Measure,
    quality: Quality,
    /// Whether probes go unanswered.
    silent: bool,
    silent_since: u64,
    /// How it stood when they began to, which may turn out to have been nothing.
    before: Option<Before>,
    /// Small requests sent, and answered.
    asked: (u32, u32),
    /// When the last answer came; at first, when probing began.
    answered: u64,
    ever_answered: bool,
    /// Requests sent since the last answer.
    unanswered: u32,
    /// Answers in a row since it fell silent.
    good: u32,
    next: u64,
}

/// A path before a silence.
#[derive(Clone, Debug)]
struct Before {
    verdict: Option<Verdict>,
    damper: Damper,
    /// The last request that was answered.
    sequence: u32,
}

impl Liveness {
    /// A path that is probed from `now` on.
    #[must_use]
    pub fn new(probing: Probing, hold_down: HoldDown, policies: Policies, now: u64) -> Self {
        Self {
            probing,
            verdict: None,
            damper: Damper::new(hold_down),
            path_mtu: PathMtu::new(None),
            headers: 0,
            measure: Measure::new(now),
            quality: Quality::new(policies),
            silent: false,
            silent_since: now,
            before: None,
            asked: (0, 0),
            answered: now,
            ever_answered: false,
            unanswered: 0,
            good: 0,
            next: now,
        }
    }

    /// Takes over other settings; what is known of the path stays known.
    pub fn set(&mut self, probing: Probing, hold_down: HoldDown, policies: Policies) {
        self.probing = probing;
        self.damper.set(hold_down);
        self.quality.set(policies);
    }

    fn interval(&self) -> u64 {
        u64::from(self.probing.interval_ms) * MS
    }

    /// The missed probes' intervals, and what a round trip exceeds one interval by.
    fn time_for(&self, round_trip: u64) -> u64 {
        let margin = round_trip.saturating_sub(self.interval());
        u64::from(self.probing.misses) * self.interval() + margin.min(MOST_MARGIN)
    }

    /// How old a proof of life may be: time for a round trip as RFC 6298 expects it, so that a full
    /// queue is not taken for a dead path.
    #[must_use]
    pub fn limit_ns(&self) -> u64 {
        self.time_for(self.measure.rtt + 4 * self.measure.deviation)
    }

    /// How long without an answer a path may be before it is thought dead: the limit, or longer where
    /// an answer has taken longer lately, as behind a busy queue or processor. Until then the data
    /// plane passes the path over, which costs nothing when it lives; a verdict would take it out for
    /// longer.
    fn patience(&self) -> u64 {
        let patience = self.limit_ns().max(self.time_for(self.measure.peak));
        if self.ever_answered {
            patience
        } else {
            patience.max(FIRST_ANSWER)
        }
    }

    /// Whether enough is known of the path for the data plane to judge it.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.verdict.is_some()
    }

    /// When the next request is due.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The round trip to compare others of the bond with, ns; `None` where the path is no measure.
    #[must_use]
    pub fn rtt(&self) -> Option<u64> {
        (!self.silent && self.ever_answered).then_some(self.measure.rtt)
    }

    /// The same with its mean deviation.
    #[must_use]
    pub fn rtt_and_deviation(&self) -> Option<(u64, u64)> {
        Some((self.rtt()?, self.measure.deviation))
    }

    /// Begins with the path MTU that was known earlier, outer headers included, bytes.
    pub fn remember_path_mtu(&mut self, path_mtu: u32) {
        self.path_mtu = PathMtu::new(Some(path_mtu));
    }

    /// Sets how long the longest packets of the bond must be able to be, and how long they are wanted, without
    /// the `headers` that are put around them, bytes.
    pub fn set_mtu_bounds(&mut self, least: u32, most: u32, headers: u32, now: u64) {
        self.headers = headers;
        let (least, most) = (least + headers, most + headers);
        self.path_mtu.set_bounds(least, most, now);
    }

    /// What is below the path changed: other sizes may pass.
    pub fn look_at_mtu_again(&mut self, now: u64) {
        self.path_mtu.look_again(now);
    }

    /// Packets are lost on the path while probes pass: perhaps they are too long.
    pub fn data_is_lost(&mut self, now: u64) {
        self.path_mtu.data_is_lost(now);
    }

    /// The path MTU, outer headers included, bytes; `None` where it is not known, or less than the bond
    /// needs.
    #[must_use]
    pub const fn path_mtu(&self) -> Option<u32> {
        self.path_mtu.found()
    }

    /// Notes that a request was sent; `random` spreads the next one by a tenth of the interval either
    /// way. Returns the bytes of a long one, outer headers included, where that is to be sent as well.
    pub fn sent(&mut self, now: u64, random: u32) -> Option<u32> {
        self.asked.0 = self.asked.0.wrapping_add(1);
        self.unanswered = self.unanswered.saturating_add(1);
        let interval = if self.silent && self.good == 0 {
            // The longer it is dead, the less often it is asked.
            let asleep = now.saturating_sub(self.silent_since) / 10;
            asleep.clamp(self.interval(), SLOWEST.max(self.interval()))
        } else {
            self.interval()
        };
        let offset = u64::from(random).checked_rem(interval / 5).unwrap_or(0);
        self.next = now + interval - interval / 10 + offset;
        if self.silent || !self.ever_answered {
            return None;
        }
        let bytes = self.path_mtu.due(now)?;
        self.path_mtu.sent(now);
        Some(bytes)
    }

    /// The long request could not be sent.
    pub fn long_one_not_sent(&mut self, now: u64) {
        self.path_mtu.not_sent(now);
    }

    /// Leaves time out of account in which nothing was sent or heard because we did not run: our own
    /// absence is no silence of the peer's. Not when it was asked often enough all the same.
    pub fn excuse(&mut self, absent: u64) {
        if self.unanswered < 2 * self.probing.misses {
            self.answered += absent;
        }
    }

    /// Takes in an answer; returns the verdict where it changed.
    pub fn answer(&mut self, sample: &Sample) -> Option<Verdict> {
        let now = sample.at_ns;
        if sample.len > SMALL {
            let sent_at = now.saturating_sub(sample.rtt_ns);
            self.path_mtu.answered(sample.len, sent_at, now);
        } else {
            self.asked.1 = self.asked.1.wrapping_add(1);
        }
        self.measure.answered(sample);
        self.answered = self.answered.max(now);
        self.ever_answered = true;
        self.unanswered = 0;
        if !self.silent {
            return self.conclude(now);
        }
        self.good += 1;
        // Asked at full pace again from now on.
        self.next = self.next.min(now + self.interval());
        let late = self.before.take_if(|before| {
            // One of the first that were not answered in time; a long one may be among them.
            let after = sample.sequence.wrapping_sub(before.sequence);
            after <= self.probing.misses + 1 || after > u32::MAX / 2
        });
        if late.is_none() && self.good < self.probing.recover {
            return self.conclude(now);
        }
        self.silent = false;
        self.measure.forget_losses();
        self.quality.start_over();
        self.path_mtu.start_over(now);
        let Some(before) = late else {
            return self.conclude(now);
        };
        // Late, but never dead (as RFC 3522 finds that a segment was sent again in vain).
        self.damper = before.damper;
        self.verdict = before.verdict;
        let _ = self.conclude(now);
        self.verdict.clone()
    }

    /// Looks at the clock; returns the verdict where it changed. `best_rtt` is the shortest round trip
    /// of the bond's paths, ns.
    pub fn tick(&mut self, now: u64, best_rtt: Option<u64>) -> Option<Verdict> {
        if self.measure.tick(now) && !self.silent {
            self.quality.judge(&self.measure, best_rtt);
        }
        let patience = self.patience();
        self.path_mtu.tick(now, patience, self.answered, self.asked);
        let silence = now.saturating_sub(self.answered);
        if self.unanswered >= self.probing.misses && silence > patience {
            if !self.silent {
                self.silent_since = now;
                self.before = self.ever_answered.then(|| Before {
                    verdict: self.verdict.clone(),
                    damper: self.damper,
                    sequence: self.measure.last_answered(),
                });
                self.damper.stumbled(now);
            }
            self.silent = true;
            self.good = 0;
        }
        self.conclude(now)
    }

    /// What is wrong, the worst first.
    fn fault(&self) -> Option<Verdict> {
        if self.silent {
            return Some(Verdict::Dead {
                missed: self.unanswered,
            });
        }
        if let Some(bytes) = self.path_mtu.lost() {
            return Some(Verdict::Mtu {
                bytes: bytes.saturating_sub(self.headers),
            });
        }
        self.quality.shortcoming().map(Verdict::Short)
    }

    fn conclude(&mut self, now: u64) -> Option<Verdict> {
        let fault = self.fault();
        if fault.is_none() && !self.ever_answered {
            return None;
        }
        conclude(&mut self.verdict, &mut self.damper, fault, now)
    }

    /// What people may know, at `now`; of its data nothing.
    #[must_use]
    pub fn info(&self, now: u64) -> ProbeInfo {
        let loss = self.measure.loss();
        let (full_len, full) = match (self.path_mtu.lost(), self.path_mtu.found()) {
            (Some(lost), _) => (lost, FullSize::BlackHole),
            (None, Some(found)) => (found, FullSize::Passes),
            (None, None) => (self.path_mtu.mtu(), FullSize::Unknown),
        };
        ProbeInfo {
            rtt_ns: self.measure.rtt,
            deviation_ns: self.measure.deviation,
            least_ns: self.measure.least,
            jitter_ns: self.measure.jitter,
            answered_ns: if self.ever_answered { self.answered } else { 0 },
            hold_until_ns: self.damper.held_until(now),
            loss_there: loss.there,
            loss_back: loss.back,
            reordered: self.measure.reordered,
            watch: Watch::Probes as u32,
            flaps: self.damper.flaps(),
            missed: self.unanswered,
            full_len: full_len.saturating_sub(self.headers),
            full: full as u32,
            path_mtu: self.path_mtu.found().unwrap_or(0),
            ..ProbeInfo::zeroed()
        }
    }
}

/// A path that is watched by a BFD session.
#[derive(Clone, Debug)]
pub struct BfdLiveness {
    verdict: Option<Verdict>,
    damper: Damper,
    /// By the last report; `None` as long as the session has not been up (RFC 5882, 3.1: no failure).
    session: Option<Bfd>,
}

impl BfdLiveness {
    /// A path whose session has not been up yet; `was_down` where an earlier controller saw it fail.
    #[must_use]
    pub fn new(hold_down: HoldDown, was_down: bool) -> Self {
        Self {
            verdict: None,
            damper: Damper::new(hold_down),
            session: was_down.then(|| Bfd::Down("before the controller started".to_owned())),
        }
    }

    /// Takes over another setting; what is known of the path stays known.
    pub fn set(&mut self, hold_down: HoldDown) {
        self.damper.set(hold_down);
    }

    /// The session came up, or went down; returns the verdict where it changed.
    pub fn report(&mut self, now: u64, session: Bfd) -> Option<Verdict> {
        if self.session.is_none() && session != Bfd::Up {
            return None;
        }
        if matches!(session, Bfd::Down(_)) {
            self.damper.stumbled(now);
        }
        self.session = Some(session);
        self.tick(now)
    }

    /// Looks at the clock; returns the verdict where it changed.
    pub fn tick(&mut self, now: u64) -> Option<Verdict> {
        let fault = match self.session.as_ref()? {
            Bfd::Up => None,
            Bfd::Down(diagnostic) => Some(Verdict::BfdDown {
                diagnostic: diagnostic.clone(),
            }),
            Bfd::Ended => {
                let changed = self.verdict != Some(Verdict::Unwatched);
                self.verdict = Some(Verdict::Unwatched);
                return changed.then_some(Verdict::Unwatched);
            }
        };
        conclude(&mut self.verdict, &mut self.damper, fault, now)
    }

    /// What people may know, at `now`.
    #[must_use]
    pub fn info(&self, now: u64) -> ProbeInfo {
        ProbeInfo {
            hold_until_ns: self.damper.held_until(now),
            watch: Watch::Bfd as u32,
            flaps: self.damper.flaps(),
            ..ProbeInfo::zeroed()
        }
    }
}

/// Whether a path with this verdict carries packets, as far as that is up to it.
const fn carries(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Alive | Verdict::Short(_) | Verdict::Unwatched => true,
        Verdict::Dead { .. }
        | Verdict::HeldDown { .. }
        | Verdict::Mtu { .. }
        | Verdict::BfdDown { .. } => false,
    }
}

/// From what is wrong to a verdict: a failure counts at once, its end only when the path is not held
/// down. Returns the verdict where it changed.
fn conclude(
    verdict: &mut Option<Verdict>,
    damper: &mut Damper,
    fault: Option<Verdict>,
    now: u64,
) -> Option<Verdict> {
    let carried = verdict.as_ref().is_some_and(carries);
    let wanted = fault.unwrap_or(Verdict::Alive);
    let next = if carries(&wanted) {
        match damper.held_until(now) {
            0 => wanted,
            until => Verdict::HeldDown {
                flaps: damper.flaps(),
                ms: (until - now) / MS,
            },
        }
    } else {
        if carried {
            damper.fell(now);
        }
        wanted
    };
    if carries(&next) && !carried {
        damper.rose(now);
    }
    if verdict
        .as_ref()
        .is_some_and(|before| !before.differs(&next))
    {
        return None;
    }
    *verdict = Some(next.clone());
    Some(next)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A path, its clock, and the verdicts so far.
    struct Bench {
        liveness: Liveness,
        now: u64,
        sequence: u32,
        seen: u32,
        story: Vec<(u64, &'static str)>,
    }

    fn name(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Alive => "alive",
            Verdict::Dead { .. } => "dead",
            Verdict::HeldDown { .. } => "held",
            Verdict::Mtu { .. } => "mtu",
            Verdict::Short(Shortcoming::Lossy { .. }) => "lossy",
            Verdict::Short(Shortcoming::Slow { .. }) => "slow",
            Verdict::BfdDown { .. } => "bfd",
            Verdict::Unwatched => "unwatched",
        }
    }

    impl Bench {
        fn new() -> Self {
            Self::with(Policies::default())
        }

        fn with(policies: Policies) -> Self {
            let liveness = Liveness::new(Probing::default(), HoldDown::default(), policies, SECOND);
            Self {
                liveness,
                now: SECOND,
                sequence: 0,
                seen: 0,
                story: Vec::new(),
            }
        }

        /// Lets time pass in steps of a millisecond; `answers` says which requests find an answer, those
        /// of full size all do.
        fn run(&mut self, ms: u64, answers: impl FnMut(u64) -> bool) {
            self.run_with(ms, MS, answers, true);
        }

        fn run_with(
            &mut self,
            ms: u64,
            rtt_ns: u64,
            mut answers: impl FnMut(u64) -> bool,
            full: bool,
        ) {
            for _ in 0..ms {
                self.now += MS;
                if self.now >= self.liveness.next() {
                    let long = self.liveness.sent(self.now, 7);
                    self.sequence += 1;
                    if answers(self.now) {
                        self.answer(rtt_ns, 0);
                    }
                    if let Some(len) = long {
                        self.sequence += 1;
                        if full && answers(self.now) {
                            self.answer(rtt_ns, len);
                        }
                    }
                }
                self.note(|liveness, now| liveness.tick(now, Some(MS)));
            }
        }

        /// `len` is that of the answer, where it is a long one.
        fn answer(&mut self, rtt_ns: u64, len: u32) {
            self.seen += 1;
            let sample = Sample {
                sequence: self.sequence,
                at_ns: self.now,
                rtt_ns,
                requests_seen: self.seen,
                len,
                ..Sample::zeroed()
            };
            self.note(|liveness, _| liveness.answer(&sample));
        }

        fn note(&mut self, step: impl FnOnce(&mut Liveness, u64) -> Option<Verdict>) {
            if let Some(verdict) = step(&mut self.liveness, self.now) {
                self.story.push((self.now, name(&verdict)));
            }
        }

        fn verdicts(&self) -> Vec<&'static str> {
            self.story.iter().map(|(_, verdict)| *verdict).collect()
        }
    }

    #[test]
    fn death_is_noticed_within_the_limit_and_return_is_damped() {
        let mut bench = Bench::new();
        bench.run(100_000, |_| true);
        assert_eq!(bench.verdicts(), ["alive"]);
        let died = bench.now;
        bench.run(1_000, |_| false);
        assert_eq!(bench.verdicts(), ["alive", "dead"]);
        let noticed = bench.story[1].0 - died;
        assert!(
            noticed <= bench.liveness.limit_ns() + 2 * MS,
            "{} ms",
            noticed / MS
        );
        let back = bench.now;
        bench.run(2_000, |_| true);
        assert_eq!(bench.verdicts(), ["alive", "dead", "alive"]);
        let returned = bench.story[2].0 - back;
        assert!(
            returned >= 4 * 27 * MS,
            "five good answers: {} ms",
            returned / MS
        );
    }

    #[test]
    fn the_verdict_says_how_many_were_missed() {
        let mut bench = Bench::new();
        bench.run(1_000, |_| true);
        let mut told = None;
        for _ in 0..1_000 {
            bench.now += MS;
            if bench.now >= bench.liveness.next() {
                bench.liveness.sent(bench.now, 7);
            }
            told = told.or(bench.liveness.tick(bench.now, None));
        }
        assert!(
            matches!(told, Some(Verdict::Dead { missed: 3 | 4 })),
            "{told:?}"
        );
    }

    #[test]
    fn one_lost_probe_or_two_are_no_death() {
        let mut bench = Bench::new();
        let mut turn = 0;
        bench.run_with(
            60_000,
            MS,
            |_| {
                turn += 1;
                turn % 5 > 1
            },
            true,
        );
        assert_eq!(bench.verdicts(), ["alive"]);
        let info = bench.liveness.info(bench.now);
        assert!((350_000..450_000).contains(&info.loss_there), "{info:?}");
        assert_eq!(info.loss_back, 0);
    }

    /// While it flaps it stays out; each return that is followed by a failure doubles the time.
    #[test]
    fn a_flapping_path_is_held_down_longer_and_longer() {
        let mut bench = Bench::new();
        bench.run(100_000, |_| true);
        bench.run(30_000, |now| (now / (200 * MS)).is_multiple_of(2));
        let returns = |bench: &Bench| {
            let alive = |verdict: &&&str| **verdict == "alive";
            bench.verdicts().iter().filter(alive).count()
        };
        assert!(returns(&bench) <= 3, "{:?}", bench.verdicts());
        let info = bench.liveness.info(bench.now);
        assert!(
            info.hold_until_ns > bench.now && info.flaps >= 1,
            "{info:?}"
        );
        let before = returns(&bench);
        bench.run(30_000, |now| (now / (4_000 * MS)).is_multiple_of(2));
        assert!(returns(&bench) - before <= 3, "{:?}", bench.verdicts());
        bench.run(130_000, |_| true);
        assert_eq!(bench.verdicts().last(), Some(&"alive"));
        assert!(bench.verdicts().contains(&"held"));
    }

    #[test]
    fn a_path_that_never_answers_is_dead() {
        let mut bench = Bench::new();
        bench.run(900, |_| false);
        assert_eq!(bench.verdicts(), [""; 0], "the peer may be starting");
        bench.run(10_000, |_| false);
        assert_eq!(bench.verdicts(), ["dead"]);
        assert!(
            bench.sequence < 120,
            "asked less and less often: {}",
            bench.sequence
        );
        bench.run(3_000, |_| true);
        assert_eq!(bench.verdicts(), ["dead", "alive"], "no hold-down at first");
    }

    #[test]
    fn our_own_absence_is_no_silence() {
        let mut bench = Bench::new();
        bench.run(10_000, |_| true);
        bench.now += SECOND;
        bench.liveness.excuse(SECOND);
        bench.run(10_000, |_| true);
        assert_eq!(bench.verdicts(), ["alive"]);
    }

    #[test]
    fn a_full_queue_widens_the_limit() {
        let mut bench = Bench::new();
        bench.run(1_000, |_| true);
        assert_eq!(bench.liveness.limit_ns(), 90 * MS);
        bench.run_with(3_000, 80 * MS, |_| true, true);
        let limit = bench.liveness.limit_ns() / MS;
        assert!((135..145).contains(&limit), "{limit} ms");
    }

    /// One late answer is remembered: the next pause of its length is no death, though the data plane
    /// passes the path over meanwhile.
    #[test]
    fn a_path_with_its_moments_is_given_time() {
        let mut bench = Bench::new();
        bench.run(10_000, |_| true);
        bench.sequence += 1;
        bench.answer(150 * MS, 0);
        bench.run(10_000, |_| true);
        assert!(bench.liveness.limit_ns() < 100 * MS);
        bench.run(150, |_| false);
        bench.run(1_000, |_| true);
        assert_eq!(bench.verdicts(), ["alive"]);
        bench.run(300, |_| false);
        assert_eq!(bench.verdicts(), ["alive", "dead"]);
    }

    /// The first stall cannot be told from a failure; when it ends, nothing of it stays.
    #[test]
    fn a_path_that_was_only_late_comes_back_at_once() {
        let mut bench = Bench::new();
        bench.run(10_000, |_| true);
        let first = bench.sequence + 1;
        bench.run(200, |_| false);
        assert_eq!(bench.verdicts(), ["alive", "dead"]);
        let newest = std::mem::replace(&mut bench.sequence, first);
        bench.answer(190 * MS, 0);
        assert_eq!(bench.verdicts(), ["alive", "dead", "alive"]);
        let info = bench.liveness.info(bench.now);
        assert_eq!((info.flaps, info.hold_until_ns), (0, 0));
        // A real failure within a minute of that: the path has lived since it first rose.
        bench.sequence = newest;
        bench.run(52_000, |_| true);
        bench.run(2_000, |_| false);
        assert_eq!(bench.liveness.info(bench.now).flaps, 0);
    }

    /// With long round trips an answer to a request from before the verdict is nothing special: the
    /// first after a real outage is one.
    #[test]
    fn an_outage_on_a_long_path_is_not_undone() {
        let mut bench = Bench::new();
        bench.run_with(10_000, 200 * MS, |_| true, true);
        bench.run_with(500, 200 * MS, |_| false, true);
        assert_eq!(bench.verdicts(), ["alive", "dead"]);
        // Sent before the verdict, after the path had healed.
        bench.answer(200 * MS, 0);
        assert_eq!(bench.verdicts(), ["alive", "dead"]);
    }

    /// What one silence changed is undone, and no more.
    #[test]
    fn a_late_answer_undoes_its_own_silence_alone() {
        let mut bench = Bench::new();
        bench.run(10_000, |_| true);
        bench.run(400, |_| false);
        bench.run(300, |_| true);
        assert_eq!(bench.verdicts(), ["alive", "dead", "held"]);
        let first = bench.sequence + 1;
        bench.run(200, |_| false);
        bench.sequence = first;
        bench.answer(150 * MS, 0);
        assert_eq!(bench.verdicts(), ["alive", "dead", "held", "dead", "held"]);
        assert_eq!(bench.liveness.info(bench.now).flaps, 1);
    }

    /// Falling short is no failure: it is not damped, and a failure after it is.
    #[test]
    fn a_lossy_path_that_dies_is_held_down() {
        let mut turn = 0;
        let third = |_| {
            turn += 1;
            turn % 3 != 0
        };
        let mut bench = Bench::with(Policies::test(Some(20), None));
        bench.run(10_000, |_| true);
        bench.run(5_000, third);
        assert_eq!(bench.verdicts(), ["alive", "lossy"]);
        assert_eq!(bench.liveness.info(bench.now).flaps, 0);
        bench.run(500, |_| false);
        bench.run(500, |_| true);
        assert_eq!(bench.verdicts(), ["alive", "lossy", "dead", "held"]);
        bench.run(2_000, |_| true);
        assert_eq!(
            bench.verdicts().last(),
            Some(&"lossy"),
            "until it is better"
        );
    }

    /// Settings may change at any time; what is known stays known.
    #[test]
    fn other_settings_leave_what_is_known() {
        let mut bench = Bench::new();
        bench.run(10_000, |_| true);
        bench.run(400, |_| false);
        let hold_down = HoldDown {
            first_s: 5,
            longest_s: 5,
        };
        let policies = Policies::test(Some(20), None);
        bench.liveness.set(Probing::default(), hold_down, policies);
        bench.run(400, |_| true);
        assert_eq!(bench.verdicts(), ["alive", "dead", "held"]);
    }

    #[test]
    fn an_mtu_black_hole_is_named_and_left() {
        let mut bench = Bench::new();
        bench.liveness.set_mtu_bounds(1396, 1396, 24, bench.now);
        bench.run_with(3_000, MS, |_| true, false);
        assert_eq!(bench.verdicts(), ["alive", "mtu"]);
        let info = bench.liveness.info(bench.now);
        assert_eq!(
            (info.full_len, info.full),
            (1396, FullSize::BlackHole as u32)
        );
        bench.run(20_000, |_| true);
        assert_eq!(bench.verdicts(), ["alive", "mtu", "alive"]);
        let info = bench.liveness.info(bench.now);
        assert_eq!((info.path_mtu, info.full), (1420, FullSize::Passes as u32));
    }

    #[test]
    fn a_lossy_path_is_named_where_a_policy_asks() {
        let third = |turn: &mut u32| {
            *turn += 1;
            !turn.is_multiple_of(3)
        };
        let mut turn = 0;
        let mut bench = Bench::new();
        bench.run(30_000, |_| third(&mut turn));
        assert_eq!(bench.verdicts(), ["alive"], "no policy");
        let mut bench = Bench::with(Policies::test(Some(20), None));
        bench.run(10_000, |_| true);
        bench.run(5_000, |_| third(&mut turn));
        assert_eq!(bench.verdicts(), ["alive", "lossy"]);
        bench.run(8_000, |_| true);
        assert_eq!(bench.verdicts().len(), 2, "{:?}", bench.verdicts());
        bench.run(10_000, |_| true);
        assert_eq!(bench.verdicts().last(), Some(&"alive"));
    }

    /// What was lost while the path was dead does not count once it is back.
    #[test]
    fn an_outage_does_not_make_a_path_lossy() {
        let mut bench = Bench::with(Policies::test(Some(20), None));
        bench.run(100_000, |_| true);
        bench.run(3_000, |_| false);
        bench.run(20_000, |_| true);
        assert_eq!(bench.verdicts(), ["alive", "dead", "alive"]);
    }

    #[test]
    fn a_slow_path_is_named_where_a_policy_asks() {
        let mut bench = Bench::with(Policies::test(None, Some(3)));
        bench.run_with(10_000, 2 * MS, |_| true, true);
        bench.run_with(5_000, 20 * MS, |_| true, true);
        assert_eq!(bench.verdicts(), ["alive", "slow"]);
        bench.run_with(30_000, 2 * MS, |_| true, true);
        assert_eq!(bench.verdicts().last(), Some(&"alive"));
    }

    #[test]
    fn a_bfd_session_is_damped_as_well() {
        let mut path = BfdLiveness::new(HoldDown::default(), false);
        let down = || Bfd::Down("control detection time expired".to_owned());
        assert_eq!(path.report(SECOND, down()), None, "never was up");
        assert_eq!(path.report(2 * SECOND, Bfd::Up), Some(Verdict::Alive));
        let fell = path.report(3 * SECOND, down()).unwrap();
        assert_eq!(name(&fell), "bfd");
        let held = path.report(3 * SECOND + MS, Bfd::Up).unwrap();
        assert_eq!(name(&held), "held");
        assert_eq!(path.tick(4 * SECOND - MS), None);
        assert_eq!(path.tick(4 * SECOND + MS), Some(Verdict::Alive));
        let mut known = BfdLiveness::new(HoldDown::default(), true);
        assert_eq!(
            name(&known.tick(SECOND).unwrap()),
            "bfd",
            "as it was before"
        );
        let ended = path.report(5 * SECOND, Bfd::Ended);
        assert_eq!(ended, Some(Verdict::Unwatched));
        assert_eq!(path.report(6 * SECOND, Bfd::Up), Some(Verdict::Alive));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Whatever is lost, a path is never thought alive longer than its limit after the last
        /// answer, and always comes back in the end.
        #[test]
        fn never_alive_without_answers(
            phases in prop::collection::vec((1..400_u64, 0..4_u8), 1..20),
        ) {
            let mut bench = Bench::with(Policies::test(Some(20), Some(3)));
            bench.liveness.set_mtu_bounds(1280, 1396, 24, SECOND);
            for (ms, kind) in phases {
                for _ in 0..ms {
                    bench.run(1, |now| match kind {
                        0 => false,
                        1 => true,
                        2 => (now / MS).is_multiple_of(3),
                        _ => (now / (200 * MS)).is_multiple_of(2),
                    });
                    let alive = bench.liveness.verdict == Some(Verdict::Alive);
                    let age = bench.now.saturating_sub(bench.liveness.answered);
                    // One more interval, where jitter put the last request late.
                    prop_assert!(!alive || age <= bench.liveness.patience() + 40 * MS);
                }
            }
            bench.run(150_000, |_| true);
            prop_assert_eq!(bench.verdicts().last().copied(), Some("alive"));
        }
    }
}
