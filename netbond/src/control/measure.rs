//! What a path's probes measure: round trips, losses each way, reordering.

use netbond_common::abi::Sample;

/// Seconds over which losses are counted.
const WINDOW: usize = 10;
const MARKS: usize = WINDOW + 1;
const SECOND: u64 = 1_000_000_000;

/// Where the counts stood when an answer came: what was sent after its request may be under way.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    /// The sequence number of the latest request answered.
    sent: u32,
    /// As the peer counts them.
    arrived: u32,
    answered: u32,
}

/// Probes lost, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Of those sent, on the way there.
    pub there: u32,
    /// Of those that arrived, on the way back.
    pub back: u32,
}

impl Loss {
    /// The worse of the two ways.
    #[must_use]
    pub fn worst(self) -> u32 {
        self.there.max(self.back)
    }
}

/// A path's measurements. Times are CLOCK_MONOTONIC, ns; round trips ns.
#[derive(Clone, Debug)]
pub struct Measure {
    /// Smoothed, with its mean deviation (RFC 6298, 2); 0 before the first answer.
    pub rtt: u64,
    pub deviation: u64,
    /// The least so far.
    pub least: u64,
    /// The longest lately: it halves in about 1400 answers.
    pub peak: u64,
    /// What one differs from the next by, smoothed (as RFC 3550, 6.4.1, does for one way).
    pub jitter: u64,
    /// Answers that came later than that to a later request.
    pub reordered: u32,
    last_rtt: u64,
    now: Mark,
    /// One a second and one more, the oldest first to be overwritten.
    marks: [Mark; MARKS],
    oldest: usize,
    next_mark: u64,
    /// Seconds since the counting began anew.
    age: usize,
}

impl Measure {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(now: u64) -> Self {
        Self {
            rtt: 0,
            deviation: 0,
            least: 0,
            peak: 0,
            jitter: 0,
            reordered: 0,
            last_rtt: 0,
            now: Mark::default(),
            marks: [Mark::default(); MARKS],
            oldest: 0,
            next_mark: now + SECOND,
            age: 0,
        }
    }

    /// The latest request that was answered, by its sequence number.
    #[must_use]
    pub const fn last_answered(&self) -> u32 {
        self.now.sent
    }

    /// Takes in an answer.
    pub fn answered(&mut self, sample: &Sample) {
        let rtt = sample.rtt_ns;
        let first = self.least == 0;
        if first {
            (self.rtt, self.deviation, self.least) = (rtt, rtt / 2, rtt);
        } else {
            self.deviation = (3 * self.deviation + self.rtt.abs_diff(rtt)) / 4;
            self.rtt = (7 * self.rtt + rtt) / 8;
            self.least = self.least.min(rtt);
            self.jitter = (15 * self.jitter + self.last_rtt.abs_diff(rtt)) / 16;
        }
        self.peak = rtt.max(self.peak - self.peak / 2048);
        self.last_rtt = rtt;
        self.now.answered = self.now.answered.wrapping_add(1);
        // Sequence numbers wrap: later is what is less than half the range ahead.
        if first || sample.sequence.wrapping_sub(self.now.sent) < u32::MAX / 2 {
            self.now.sent = sample.sequence;
            self.now.arrived = sample.requests_seen;
        } else {
            self.reordered = self.reordered.wrapping_add(1);
        }
        if first {
            // The counts go on over restarts: the first are only where to start from.
            self.forget_losses();
        }
    }

    /// Looks at the clock; returns whether another second is over.
    pub fn tick(&mut self, now: u64) -> bool {
        if now < self.next_mark {
            return false;
        }
        self.marks[self.oldest] = self.now;
        self.oldest = (self.oldest + 1) % MARKS;
        self.age = self.age.saturating_add(1);
        self.next_mark = now + SECOND;
        true
    }

    /// Counts losses from now on: what was lost while the path was dead says nothing of it since.
    pub fn forget_losses(&mut self) {
        self.marks = [self.now; MARKS];
        self.age = 0;
    }

    /// Of the last ten seconds, or of those since the counting began.
    #[must_use]
    pub fn loss(&self) -> Loss {
        self.loss_since(self.marks[self.oldest])
    }

    /// Of the last `seconds` (ten at the most); `None` where the counting began later.
    #[must_use]
    pub fn recent_loss(&self, seconds: usize) -> Option<Loss> {
        let seconds = seconds.min(WINDOW);
        if self.age < seconds {
            return None;
        }
        // The newest is the one before the oldest.
        Some(self.loss_since(self.marks[(self.oldest + WINDOW - seconds) % MARKS]))
    }

    fn loss_since(&self, then: Mark) -> Loss {
        let sent = self.now.sent.wrapping_sub(then.sent);
        let answered = self.now.answered.wrapping_sub(then.answered).min(sent);
        let arrived = self.now.arrived.wrapping_sub(then.arrived);
        // The peer may have started anew, and counts from 0.
        let arrived = arrived.clamp(answered, sent);
        let share = |lost: u32, of: u32| {
            let lost = u64::from(lost) * 1_000_000;
            lost.checked_div(u64::from(of)).unwrap_or(0) as u32
        };
        Loss {
            there: share(sent - arrived, sent),
            back: share(arrived - answered, arrived),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    fn sample(sequence: u32, requests_seen: u32, rtt_ns: u64) -> Sample {
        Sample {
            sequence,
            requests_seen,
            rtt_ns,
            ..Sample::zeroed()
        }
    }

    /// Ten probes a second: of ten, `there` are lost on the way there and `back` on the way back.
    fn run(measure: &mut Measure, from_second: u64, seconds: u64, there: u32, back: u32) {
        for second in from_second..from_second + seconds {
            for turn in 0..10 {
                let number = second as u32 * 10 + turn + 1;
                if turn >= there + back {
                    // Those whose answers were lost arrived before.
                    let others = if turn == there + back { back } else { 0 };
                    let arrived = measure.now.arrived + 1 + others;
                    measure.answered(&sample(number, arrived, 1000));
                }
            }
            measure.tick((second + 1) * SECOND);
        }
    }

    #[test]
    fn losses_are_told_apart_by_direction() {
        let mut measure = Measure::new(0);
        run(&mut measure, 0, 20, 3, 0);
        let there = 300_000;
        assert_eq!(measure.loss(), Loss { there, back: 0 });
        run(&mut measure, 20, 20, 0, 4);
        let back = 400_000;
        assert_eq!(measure.loss(), Loss { there: 0, back });
    }

    /// A queue that grows keeps answers back: what is under way is not lost.
    #[test]
    fn what_is_under_way_is_not_lost() {
        let mut measure = Measure::new(0);
        run(&mut measure, 0, 20, 0, 0);
        // A second's requests were sent, and none of them answered yet.
        measure.tick(21 * SECOND);
        assert_eq!(measure.loss(), Loss::default());
    }

    #[test]
    fn what_was_lost_before_is_forgotten() {
        let mut measure = Measure::new(0);
        run(&mut measure, 0, 20, 9, 0);
        assert!(measure.loss().there >= 900_000);
        measure.forget_losses();
        assert_eq!(measure.recent_loss(3), None);
        run(&mut measure, 20, 3, 0, 0);
        assert_eq!(measure.recent_loss(3), Some(Loss::default()));
    }

    #[test]
    fn recent_losses_are_of_the_last_seconds_alone() {
        let mut measure = Measure::new(0);
        run(&mut measure, 0, 10, 0, 0);
        run(&mut measure, 10, 2, 5, 0);
        run(&mut measure, 12, 1, 0, 0);
        let there = |loss: Option<Loss>| loss.map(|loss| loss.there);
        assert_eq!(there(measure.recent_loss(3)), Some(333_333));
        assert_eq!(there(measure.recent_loss(2)), Some(250_000));
        assert_eq!(measure.loss().there, 100_000);
    }

    #[test]
    fn jitter_is_the_change_from_one_to_the_next() {
        let mut measure = Measure::new(0);
        for number in 1..=200 {
            measure.answered(&sample(
                number,
                number,
                if number % 2 == 0 { 5000 } else { 1000 },
            ));
        }
        assert!(
            (3900..=4000).contains(&measure.jitter),
            "{}",
            measure.jitter
        );
        assert_eq!((measure.least, measure.peak), (1000, 5000));
        measure.answered(&sample(50, 50, 1000));
        assert_eq!(measure.reordered, 1);
    }
}
