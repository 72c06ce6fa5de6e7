//! The path MTU: how long a packet may be that a path carries, found by probes alone (as RFC 8899 does
//! for a transport; its terms are used here). Nothing is believed of ICMP, which may be forged and
//! mostly does not come.
//!
//! Sizes are of whole packets, outer headers included, bytes. Times are CLOCK_MONOTONIC, ns.
//!
//! ```text
//!             a size that passed no longer does           the least does not pass
//!   Confirm ------------------------------------> Search ------------------------> TooSmall
//!    ^   |                                       ^  |  ^                              |
//!    |   +-- every ten minutes, or when told ----+  |  +-------- it passes -----------+
//!    |                                              v
//!    +------------- passed three times ---------- Prove
//! ```
//!
//! An answer is as long as its request, so both ends find the lesser of the two directions.

const SECOND: u64 = 1_000_000_000;

/// Between two probes of the path MTU while they are answered: so soon it is noticed that it fell.
const CONFIRMATION_TIMER: u64 = 10 * SECOND;
/// Until larger sizes are tried again (RFC 8899, 5.1.1).
const PMTU_RAISE_TIMER: u64 = 600 * SECOND;
/// After it fell, no larger size is tried before.
const CALM: u64 = 5 * SECOND;
/// From one probe without an answer to the next of a size that used to pass: long enough that a burst in
/// a queue is over.
const AGAIN: u64 = SECOND / 2;
/// Likewise of a size that is not known to pass.
const SOON: u64 = SECOND / 5;
/// Between two where not even the least size passes.
const SELDOM: u64 = SECOND;
/// Probes of a size that used to pass without an answer until it is taken not to. More than of others:
/// here a mistake takes a path out.
const MAX_MISSES: u32 = 5;
/// Likewise of a size that is not known to pass.
const MAX_PROBES: u32 = 3;
/// Answers in a row that a new path MTU must have.
const PROOFS: u32 = 3;
/// How likely it may be that probes were merely lost of which is concluded that they do not pass.
const CHANCE: f64 = 1e-3;

/// What is asked of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Whether the path MTU still passes.
    Confirm,
    /// What passes: `low` does, if it is not 0, `high` does not.
    Search {
        low: u32,
        high: u32,
        /// To be tried before the middle.
        first: Option<u32>,
    },
    /// Whether what the search found passes again and again.
    Prove { size: u32, good: u32 },
    /// Whether the least passes, which did not.
    TooSmall,
}

/// The probes of one size.
#[derive(Clone, Copy, Debug, Default)]
struct Series {
    /// When the first was sent; answers to earlier ones say nothing.
    began: u64,
    /// When the next is due.
    next: u64,
    /// When the one was sent that waits for its answer.
    awaited: Option<u64>,
    sent: u32,
    answered: u32,
    missed: u32,
    /// Small probes sent and answered when the first was missed.
    small: (u32, u32),
}

impl Series {
    fn at(next: u64) -> Self {
        Self {
            next,
            ..Self::default()
        }
    }
}

/// A path's MTU.
#[derive(Clone, Debug)]
pub struct PathMtu {
    /// Less is of no use, and more is not asked for; 0: not known yet, nothing is probed.
    least: u32,
    most: u32,
    /// What passes, or is expected to.
    mtu: u32,
    /// What passes, by the last finding.
    found: Option<u32>,
    /// Since the path was last silent `mtu` was answered.
    confirmed: bool,
    /// The size that no longer passes, until a smaller one is found.
    lost: Option<u32>,
    phase: Phase,
    series: Series,
    /// When larger sizes are tried again.
    raise_at: u64,
    /// Not before that, as it fell.
    calm_until: u64,
    /// When `mtu` was last answered.
    confirmed_at: u64,
}

impl PathMtu {
    /// Begins with what was known earlier.
    #[must_use]
    pub fn new(remembered: Option<u32>) -> Self {
        Self {
            least: 0,
            most: 0,
            mtu: 0,
            found: remembered,
            confirmed: false,
            lost: None,
            phase: Phase::Confirm,
            series: Series::default(),
            raise_at: 0,
            calm_until: 0,
            confirmed_at: 0,
        }
    }

    /// Sets between which sizes the path MTU is looked for: the least that is of use, and the most that is
    /// wanted. Where they are one, it is a question of yes or no.
    pub fn set_bounds(&mut self, least: u32, most: u32, now: u64) {
        let most = most.max(least);
        if (self.least, self.most) == (least, most) {
            return;
        }
        (self.least, self.most) = (least, most);
        // One that is too small for what it is needed for is looked for anew.
        self.found = self.found.filter(|found| *found >= least);
        self.found = self.found.map(|found| found.min(most));
        self.start_over(now);
    }

    /// The path died, or has just come back, by another way perhaps: what is under way says nothing, and the
    /// next probe is due at once.
    pub fn start_over(&mut self, now: u64) {
        let known = self.found.filter(|_| self.lost.is_none());
        self.mtu = known.unwrap_or(self.most);
        self.phase = Phase::Confirm;
        self.series = Series::default();
        self.confirmed = false;
        self.raise_at = now.max(self.calm_until);
    }

    /// What is below the path changed, or may have: what is known is confirmed and larger sizes are tried at
    /// once.
    pub fn look_again(&mut self, now: u64) {
        match self.phase {
            Phase::Confirm | Phase::TooSmall => self.series.next = self.series.next.min(now),
            Phase::Search { .. } | Phase::Prove { .. } => {}
        }
        self.raise_at = self.raise_at.min(now.max(self.calm_until));
    }

    /// Packets are lost on the path, perhaps as they are too long: what is known is confirmed at once.
    pub fn data_is_lost(&mut self, now: u64) {
        if self.phase == Phase::Confirm {
            let soon = now.max(self.confirmed_at + SECOND);
            self.series.next = self.series.next.min(soon);
        }
    }

    /// The size of the probes that the phase asks for.
    fn size(&self) -> u32 {
        match self.phase {
            Phase::Confirm => self.mtu,
            Phase::Search { low, high, first } => first.unwrap_or(low + (high - low) / 2),
            Phase::Prove { size, .. } => size,
            Phase::TooSmall => self.least,
        }
    }

    /// The size of a probe to be sent now, which [`Self::sent`] is to be told of; `None` where none is due.
    #[must_use]
    pub fn due(&mut self, now: u64) -> Option<u32> {
        if self.most == 0 || self.series.awaited.is_some() {
            return None;
        }
        let calm = self.phase == Phase::Confirm && self.confirmed && self.series.sent == 0;
        if calm && self.mtu < self.most && now >= self.raise_at {
            self.go(self.raise(self.mtu), now);
        }
        (now >= self.series.next).then(|| self.size())
    }

    /// Notes that it was sent.
    pub fn sent(&mut self, now: u64) {
        if self.series.sent == 0 {
            self.series.began = now;
        }
        self.series.sent += 1;
        self.series.awaited = Some(now);
    }

    /// It could not be sent after all: that says nothing of the path.
    pub fn not_sent(&mut self, now: u64) {
        self.series = Series::at(now + SECOND);
    }

    /// Takes in an answer of this size to a request of that time.
    pub fn answered(&mut self, size: u32, sent_at: u64, now: u64) {
        let series = &mut self.series;
        // None of this size is under way, or that one was answered: it is late, or comes again.
        if series.sent <= series.answered || sent_at < series.began {
            return;
        }
        if size != self.size() {
            return;
        }
        self.series.answered += 1;
        match self.phase {
            Phase::Confirm if self.lost.is_some() => {
                self.go(Phase::Prove { size, good: 1 }, now + SOON);
            }
            Phase::Confirm => {
                self.found = Some(size);
                (self.confirmed, self.confirmed_at) = (true, now);
                self.series = Series::at(now + CONFIRMATION_TIMER);
            }
            Phase::Search { high, .. } => self.narrow(size, high, now),
            Phase::Prove { good, .. } if good + 1 < PROOFS => {
                let good = good + 1;
                self.go(Phase::Prove { size, good }, now + SOON);
            }
            Phase::Prove { .. } => self.settle(size, now),
            Phase::TooSmall => self.go(self.raise(self.least), now),
        }
    }

    /// Looks at the clock. An answer may take `limit`; `small_answered` is when the last small probe's
    /// came, `small` how many were sent and answered.
    pub fn tick(&mut self, now: u64, limit: u64, small_answered: u64, small: (u32, u32)) {
        let awaited = self.series.awaited;
        let Some(sent) = awaited.filter(|sent| now.saturating_sub(*sent) > limit) else {
            return;
        };
        self.series.awaited = None;
        self.series.next = sent
            + match self.phase {
                Phase::Confirm if self.confirmed => AGAIN,
                Phase::TooSmall => SELDOM,
                Phase::Confirm | Phase::Search { .. } | Phase::Prove { .. } => SOON,
            };
        if small_answered <= sent {
            // Nothing passes, large or small.
            return;
        }
        if self.series.missed == 0 {
            self.series.small = small;
        }
        self.series.missed += 1;
        if self.is_too_long(small) {
            self.failed(now);
        }
    }

    /// Whether probes of this size vanish and not just probes: plain losses must not look like it.
    fn is_too_long(&self, small: (u32, u32)) -> bool {
        let Series {
            missed,
            small: then,
            ..
        } = self.series;
        let asked = small.0.wrapping_sub(then.0);
        let lost = asked.saturating_sub(small.1.wrapping_sub(then.1));
        let enough = if self.phase == Phase::Confirm {
            let lossy = lost > 1 + asked / 4;
            let misses = if self.confirmed {
                MAX_MISSES
            } else {
                MAX_PROBES
            };
            !lossy && missed >= misses
        } else {
            missed >= MAX_PROBES
        };
        // How likely a small one is lost (the rule of succession); if large ones were as likely lost.
        let loss = (f64::from(lost) + 1.0) / (f64::from(asked) + 2.0);
        enough && loss.powi(missed.min(1000) as i32) <= CHANCE
    }

    /// Probes of the size asked for do not pass.
    fn failed(&mut self, now: u64) {
        let size = self.size();
        match self.phase {
            Phase::Confirm => {
                self.lost = self.lost.or(Some(size));
                self.fall_below(size, now);
            }
            Phase::Search { low: 0, .. } => self.fall_below(self.least, now),
            Phase::Search { low, .. } => self.narrow(low, size, now),
            Phase::Prove { .. } if self.lost.is_some() => self.fall_below(size, now),
            // What was known still holds.
            Phase::Prove { .. } => self.stay(now),
            Phase::TooSmall => {
                self.series = Series {
                    next: self.series.next,
                    ..Series::default()
                };
            }
        }
    }

    /// Looks for a smaller size than one that does not pass.
    fn fall_below(&mut self, size: u32, now: u64) {
        if size > self.least {
            let search = Phase::Search {
                low: 0,
                high: size,
                first: Some(self.least),
            };
            self.go(search, now);
        } else {
            self.found = None;
            self.go(Phase::TooSmall, now + SELDOM);
        }
    }

    /// The search for more than what passes: all of it at first, as most often an obstacle is gone for good.
    fn raise(&self, passes: u32) -> Phase {
        Phase::Search {
            low: passes,
            high: self.most + 1,
            first: Some(self.most),
        }
    }

    /// Goes on with the search: `low` passes, `high` does not.
    fn narrow(&mut self, low: u32, high: u32, now: u64) {
        if high - low > 1 {
            let first = None;
            self.go(Phase::Search { low, high, first }, now);
        } else if self.lost.is_none() && low == self.mtu {
            self.stay(now);
        } else {
            self.go(Phase::Prove { size: low, good: 0 }, now);
        }
    }

    /// The path MTU is what it was; larger sizes are tried again later.
    fn stay(&mut self, now: u64) {
        self.raise_at = now + PMTU_RAISE_TIMER;
        self.go(Phase::Confirm, now);
    }

    /// A path MTU is found.
    fn settle(&mut self, size: u32, now: u64) {
        if self.lost.take().is_some() {
            self.calm_until = now + CALM;
        }
        (self.mtu, self.found) = (size, Some(size));
        (self.confirmed, self.confirmed_at) = (true, now);
        self.raise_at = now + PMTU_RAISE_TIMER;
        self.go(Phase::Confirm, now + CONFIRMATION_TIMER);
    }

    /// Asks something else from a time on.
    fn go(&mut self, phase: Phase, next: u64) {
        self.phase = phase;
        self.series = Series::at(next);
    }

    /// The path MTU by the last finding. `None` as long as there is none, and where it is less than what is
    /// of use.
    #[must_use]
    pub const fn found(&self) -> Option<u32> {
        self.found
    }

    /// The size that does not pass, while it is not known which does: the path is a black hole for it.
    #[must_use]
    pub const fn lost(&self) -> Option<u32> {
        self.lost
    }

    /// The size that packets may have at the most as far as is known; 0 where nothing is.
    #[must_use]
    pub const fn mtu(&self) -> u32 {
        self.mtu
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;
    /// How long an answer may take.
    const LIMIT: u64 = 90 * MS;
    const LEAST: u32 = 1304;
    const MOST: u32 = 1420;

    /// What becomes of a probe.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Answer {
        /// It comes after so many ms, so many times.
        After(u64, u32),
        Lost,
    }

    const PROMPT: Answer = Answer::After(2, 1);

    /// A path and its clock: small probes all 30 ms, long ones as they are due.
    struct Bench {
        path: PathMtu,
        now: u64,
        small: (u32, u32),
        small_answered: u64,
        /// Long answers under way, by when they come: size, and when its request was sent.
        coming: BTreeMap<u64, Vec<(u32, u64)>>,
        /// Long probes sent: when, which size.
        sent: Vec<(u64, u32)>,
        /// Each path MTU that was found, and when.
        story: Vec<(u64, Option<u32>)>,
    }

    impl Bench {
        fn new(remembered: Option<u32>) -> Self {
            Self {
                path: PathMtu::new(remembered),
                now: SECOND,
                small: (0, 0),
                small_answered: 0,
                coming: BTreeMap::new(),
                sent: Vec::new(),
                story: vec![(0, remembered)],
            }
        }

        fn of(least: u32, most: u32) -> Self {
            let mut bench = Self::new(None);
            bench.path.set_bounds(least, most, bench.now);
            bench
        }

        /// Lets time pass in steps of a millisecond on a path that takes packets of `limit` bytes; the others say
        /// what becomes of long probes that pass, and of small ones.
        fn run_with(
            &mut self,
            ms: u64,
            limit: u32,
            mut long: impl FnMut() -> Answer,
            mut small: impl FnMut() -> bool,
        ) {
            for _ in 0..ms {
                self.now += MS;
                if (self.now / MS).is_multiple_of(30) {
                    self.small.0 += 1;
                    if small() {
                        self.small.1 += 1;
                        self.small_answered = self.now;
                    }
                    if let Some(size) = self.path.due(self.now) {
                        self.path.sent(self.now);
                        self.sent.push((self.now, size));
                        if let (true, Answer::After(ms, times)) = (size <= limit, long()) {
                            let at = self.coming.entry(self.now + ms * MS).or_default();
                            at.extend((0..times).map(|_| (size, self.now)));
                        }
                    }
                }
                let later = self.coming.split_off(&(self.now + 1));
                for (size, sent_at) in std::mem::replace(&mut self.coming, later)
                    .into_values()
                    .flatten()
                {
                    self.path.answered(size, sent_at, self.now);
                }
                self.path
                    .tick(self.now, LIMIT, self.small_answered, self.small);
                if self
                    .story
                    .last()
                    .is_none_or(|last| last.1 != self.path.found())
                {
                    self.story.push((self.now, self.path.found()));
                }
            }
        }

        fn run(&mut self, ms: u64, limit: u32) {
            self.run_with(ms, limit, || PROMPT, || true);
        }

        fn found(&self) -> Vec<Option<u32>> {
            self.story.iter().map(|(_, found)| *found).collect()
        }
    }

    #[test]
    fn what_passes_is_confirmed_now_and_then() {
        let mut bench = Bench::of(LEAST, MOST);
        bench.run(60_000, 9000);
        assert_eq!(bench.found(), [None, Some(MOST)]);
        assert!((6..=7).contains(&bench.sent.len()), "{:?}", bench.sent);
    }

    /// To the byte, whatever it is, at once at the start and within seconds later.
    #[test]
    fn the_limit_is_found() {
        for limit in LEAST..MOST {
            let mut bench = Bench::of(LEAST, MOST);
            bench.run(8_000, limit);
            assert_eq!(bench.found(), [None, Some(limit)]);
            let mut bench = Bench::of(LEAST, MOST);
            bench.run(1_000, MOST);
            bench.run(CONFIRMATION_TIMER / MS + 10_000, limit);
            assert_eq!(bench.found(), [None, Some(MOST), Some(limit)]);
            assert_eq!(bench.path.lost(), None);
        }
    }

    #[test]
    fn the_limit_of_a_jumbo_path_is_found() {
        let mut bench = Bench::of(LEAST, 9000);
        bench.run(15_000, 4321);
        assert_eq!(bench.path.found(), Some(4321));
        assert!(bench.sent.len() < 50, "{}", bench.sent.len());
    }

    /// While it is looked for nothing is said to pass; what was known stays what was last known.
    #[test]
    fn a_path_that_shrinks_is_a_black_hole_until_it_is_known_what_passes() {
        let mut bench = Bench::of(LEAST, MOST);
        bench.run(1_000, MOST);
        let mut noticed = 0;
        while bench.path.lost().is_none() {
            bench.run(1, 1350);
            noticed = bench.now;
        }
        assert!(
            noticed < CONFIRMATION_TIMER + 5 * SECOND,
            "{} ms",
            noticed / MS
        );
        assert_eq!(
            (bench.path.lost(), bench.path.found()),
            (Some(MOST), Some(MOST))
        );
        while bench.path.lost().is_some() {
            bench.run(1, 1350);
        }
        assert_eq!(bench.path.found(), Some(1350));
        assert!(
            bench.now - noticed < 5 * SECOND,
            "{} ms",
            (bench.now - noticed) / MS
        );
    }

    #[test]
    fn a_path_that_is_too_small_is_out_until_it_is_not() {
        let mut bench = Bench::of(LEAST, MOST);
        bench.run(1_000, MOST);
        bench.run(20_000, LEAST - 1);
        assert_eq!(bench.found(), [None, Some(MOST), None]);
        assert_eq!(bench.path.lost(), Some(MOST));
        let before = bench.sent.len();
        bench.run(10_000, LEAST - 1);
        assert!(
            (8..=11).contains(&(bench.sent.len() - before)),
            "one a second"
        );
        bench.run(6_000, 1350);
        assert_eq!((bench.path.lost(), bench.path.found()), (None, Some(1350)));
    }

    /// Where one size alone is wanted it is a question of yes or no.
    #[test]
    fn one_size_passes_or_does_not() {
        let mut bench = Bench::of(MOST, MOST);
        bench.run(1_000, MOST);
        bench.run(20_000, MOST - 1);
        assert_eq!(bench.path.lost(), Some(MOST));
        assert!(bench.sent.iter().all(|(_, size)| *size == MOST));
        bench.run(3_000, MOST);
        assert_eq!(bench.found(), [None, Some(MOST), None, Some(MOST)]);
        assert_eq!(bench.path.lost(), None);
    }

    #[test]
    fn larger_sizes_are_tried_every_ten_minutes() {
        let mut bench = Bench::of(LEAST, MOST);
        bench.run(10_000, 1350);
        let found_at = bench.story.last().unwrap().0;
        bench.run(1_300_000, 1350);
        assert_eq!(bench.found(), [None, Some(1350)]);
        let tried: Vec<u64> = bench
            .sent
            .iter()
            .filter(|(at, size)| *at > found_at && *size == MOST)
            .map(|(at, _)| (at - found_at) / SECOND)
            .collect();
        assert_eq!(tried.len(), 2 * MAX_PROBES as usize, "{tried:?}");
        assert!(
            tried[0].abs_diff(600) < 5 && tried[3].abs_diff(1205) < 10,
            "{tried:?}"
        );
        bench.run(600_000, 1400);
        assert_eq!(
            bench.found(),
            [None, Some(1350), Some(1400)],
            "all at once, to the byte"
        );
    }

    /// A device or a route changed, or the user said so.
    #[test]
    fn larger_sizes_are_tried_when_told() {
        let mut bench = Bench::of(LEAST, MOST);
        bench.run(20_000, 1350);
        bench.path.look_again(bench.now);
        bench.run(1_000, MOST);
        assert_eq!(bench.found(), [None, Some(1350), Some(MOST)]);
        // Not while it has just fallen, however often it is said.
        let mut bench = Bench::of(LEAST, MOST);
        while bench.path.found().is_none() {
            bench.run(1, 1350);
        }
        let fell = bench.now;
        for _ in 0..100 {
            bench.path.look_again(bench.now);
            bench.run(30, MOST);
        }
        assert_eq!(bench.path.found(), Some(1350));
        bench.run(5_000, MOST);
        assert_eq!(bench.path.found(), Some(MOST));
        assert!(bench.story.last().unwrap().0 - fell >= CALM);
    }

    /// A smaller way that the path is led over now is noticed at once.
    #[test]
    fn what_passed_is_confirmed_when_told() {
        for tell in [PathMtu::look_again, PathMtu::data_is_lost] {
            let mut bench = Bench::of(LEAST, MOST);
            bench.run(2_000, MOST);
            tell(&mut bench.path, bench.now);
            bench.run(6_000, 1350);
            assert_eq!(bench.found(), [None, Some(MOST), Some(1350)]);
        }
    }

    #[test]
    fn losses_are_told_once_a_second() {
        let mut bench = Bench::of(LEAST, MOST);
        for _ in 0..1_000 {
            bench.path.data_is_lost(bench.now);
            bench.run(10, MOST);
        }
        assert!((9..=12).contains(&bench.sent.len()), "{}", bench.sent.len());
    }

    /// A controller that starts anew raises nothing before it is proven.
    #[test]
    fn what_an_earlier_controller_knew_holds() {
        let mut bench = Bench::new(Some(1350));
        bench.path.set_bounds(LEAST, MOST, bench.now);
        bench.run(20_000, 1350);
        assert_eq!(bench.found(), [Some(1350)]);
        assert_eq!(bench.sent[0].1, 1350);
        assert!(
            bench.sent.iter().any(|(_, size)| *size == MOST),
            "tried at once"
        );
        let mut bench = Bench::new(Some(1350));
        bench.path.set_bounds(LEAST, MOST, bench.now);
        bench.run(2_000, MOST);
        assert_eq!(bench.found(), [Some(1350), Some(MOST)]);
        // Something else by now, less than is needed.
        let mut bench = Bench::new(Some(1200));
        bench.path.set_bounds(LEAST, MOST, bench.now);
        assert_eq!(bench.path.found(), None);
    }

    #[test]
    fn other_bounds_are_looked_into_at_once() {
        let mut bench = Bench::of(LEAST, MOST);
        bench.run(2_000, 1450);
        bench.path.set_bounds(LEAST, 1500, bench.now);
        assert_eq!(bench.path.found(), Some(MOST), "no more than was proven");
        bench.run(8_000, 1450);
        assert_eq!(bench.path.found(), Some(1450));
        bench.path.set_bounds(LEAST, 1400, bench.now);
        assert_eq!(bench.path.found(), Some(1400));
        bench.run(1_000, 1450);
        assert_eq!(bench.path.lost(), None);
        // In the middle of a search too.
        bench.path.start_over(bench.now);
        while bench.path.lost().is_none() {
            bench.run(1, 1350);
        }
        bench.path.set_bounds(LEAST, MOST, bench.now);
        assert!(bench.path.lost().is_some(), "until it is known to pass");
        bench.run(8_000, 1350);
        assert_eq!((bench.path.lost(), bench.path.found()), (None, Some(1350)));
    }

    /// Neither where small ones are lost as well, nor where all are.
    #[test]
    fn plain_losses_are_no_limit() {
        let mut bench = Bench::of(LEAST, MOST);
        bench.run(1_000, MOST);
        let mut turn = 0;
        let half = || {
            turn += 1;
            turn % 2 == 0
        };
        bench.run_with(20_000, MOST, || Answer::Lost, half);
        bench.run_with(20_000, MOST, || Answer::Lost, || false);
        assert_eq!((bench.path.lost(), bench.path.found()), (None, Some(MOST)));
    }

    /// Four of five large ones are lost, and half of the small ones: the search takes longer, and finds the same.
    #[test]
    fn a_lossy_path_has_its_limit_found() {
        let (mut long, mut small) = (0, 0);
        let mut bench = Bench::of(LEAST, MOST);
        let answer = |turn: &mut u32, of: u32| {
            *turn += 1;
            turn.is_multiple_of(of)
        };
        bench.run(1_000, MOST);
        bench.run(15_000, 1350);
        assert_eq!(bench.path.found(), Some(1350));
        bench.path.look_again(bench.now);
        bench.run_with(
            120_000,
            MOST,
            || {
                if answer(&mut long, 5) {
                    PROMPT
                } else {
                    Answer::Lost
                }
            },
            || answer(&mut small, 2),
        );
        assert_eq!((bench.path.lost(), bench.path.found()), (None, Some(MOST)));
    }

    /// A larger size counts when it was answered again and again, however often one answer comes.
    #[test]
    fn a_larger_size_is_proven_more_than_once() {
        let mut bench = Bench::of(LEAST, MOST);
        bench.run(20_000, 1350);
        let before = bench.sent.len();
        bench.path.look_again(bench.now);
        while bench.path.found() != Some(MOST) {
            bench.run_with(1, MOST, || Answer::After(2, 5), || true);
        }
        let asked = bench.sent[before..]
            .iter()
            .filter(|(_, size)| *size == MOST);
        assert_eq!(asked.count(), 4, "once to find it, three times to prove it");
    }

    /// A way that comes and goes: what was known holds.
    #[test]
    fn a_larger_size_that_vanishes_again_counts_for_nothing() {
        let mut bench = Bench::of(LEAST, MOST);
        bench.run(20_000, 1350);
        bench.path.look_again(bench.now);
        while !matches!(bench.path.phase, Phase::Prove { .. }) {
            bench.run(1, MOST);
        }
        bench.run(60_000, 1350);
        assert_eq!(bench.found(), [None, Some(1350)]);
        assert_eq!(bench.path.lost(), None);
    }

    /// As in a queue that is full for a moment.
    #[test]
    fn four_in_a_row_may_be_lost() {
        let mut bench = Bench::of(LEAST, MOST);
        bench.run(1_000, MOST);
        let mut turn = 0;
        let four_of_five = || {
            turn += 1;
            if turn % 5 == 0 { PROMPT } else { Answer::Lost }
        };
        bench.run_with(120_000, MOST, four_of_five, || true);
        assert!(turn > 40, "{turn}");
        assert_eq!(bench.found(), [None, Some(MOST)]);
        assert_eq!(bench.path.lost(), None);
    }

    /// An answer to a request of before the path died says nothing of the way it takes now.
    #[test]
    fn an_answer_of_before_says_nothing() {
        let mut bench = Bench::of(LEAST, MOST);
        let sent_at = bench.now;
        assert_eq!(bench.path.due(sent_at), Some(MOST));
        bench.path.sent(sent_at);
        bench.path.start_over(sent_at + MS);
        assert_eq!(bench.path.due(sent_at + 2 * MS), Some(MOST));
        bench.path.sent(sent_at + 2 * MS);
        bench.path.answered(MOST, sent_at, sent_at + 3 * MS);
        assert_eq!(bench.path.found(), None);
        bench
            .path
            .answered(MOST, sent_at + 2 * MS, sent_at + 4 * MS);
        assert_eq!(bench.path.found(), Some(MOST));
    }

    fn any_answer() -> impl Strategy<Value = Answer> {
        prop_oneof![
            6 => (0..80_u64, 1..3_u32).prop_map(|(ms, times)| Answer::After(ms, times)),
            // Too late, and perhaps again later.
            1 => (90..1_900_u64, 1..4_u32).prop_map(|(ms, times)| Answer::After(ms, times)),
            1 => Just(Answer::Lost),
        ]
    }

    proptest! {
        /// Whatever the limit does, and whichever answers are lost, late or come again: what is said to pass passed
        /// lately, a path that shrank is noticed, and where all is calm the limit is found to the byte.
        #[test]
        fn any_answers(
            limits in prop::collection::vec((1_200..1_500_u32, 100..30_000_u64), 1..6),
            answers in prop::collection::vec(any_answer(), 1..40),
            told in any::<bool>(),
        ) {
            let mut bench = Bench::of(LEAST, MOST);
            let (mut answers, mut greatest) = (answers.into_iter().cycle(), Vec::new());
            for (limit, ms) in limits {
                greatest.push((bench.now, limit));
                bench.run_with(ms, limit, || answers.next().unwrap_or(PROMPT), || true);
                if told {
                    bench.path.look_again(bench.now);
                }
            }
            // One that was found passed some time before: answers are no older than two seconds, a search
            // with losses takes some.
            for (at, found) in &bench.story {
                let Some(found) = found else { continue };
                let since = at.saturating_sub(60 * SECOND);
                let ended = |place: usize| greatest.get(place + 1).map_or(u64::MAX, |next| next.0);
                let lately = greatest.iter().enumerate().filter(|(place, _)| ended(*place) >= since);
                let most = lately.map(|(_, (_, limit))| *limit).max().unwrap();
                prop_assert!(*found <= most && (LEAST..=MOST).contains(found), "{found} of {most}");
            }
            let last = greatest.last().unwrap().1;
            bench.run(1_300_000, last);
            if last < LEAST {
                prop_assert_eq!(bench.path.found(), None);
                prop_assert!(bench.path.lost().is_some());
            } else {
                prop_assert_eq!(bench.path.found(), Some(last.min(MOST)));
                prop_assert_eq!(bench.path.lost(), None);
            }
            // And stays so.
            let changes = bench.story.len();
            bench.run(1_300_000, last);
            prop_assert_eq!(bench.story.len(), changes);
        }
    }
}
