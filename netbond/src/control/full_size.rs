//! Whether packets of full size pass a path: an underlay with a smaller MTU swallows them, while
//! small ones pass.
//!
//! Now and then a probe is as long as the longest packet that the bond sends. One that gets no answer
//! is repeated soon; several in a row, while nearly all small ones are answered, are an MTU black
//! hole. The answer is as long as the request, so both ends find it, whichever way it swallows.
//! Times are CLOCK_MONOTONIC, ns.

const SECOND: u64 = 1_000_000_000;

/// Between two probes of full size where they pass.
const SELDOM: u64 = 10 * SECOND;
/// Between two where they do not.
const OFTEN: u64 = SECOND;
/// From one that got no answer to the next: long enough that a burst in a queue is over.
const AGAIN: u64 = SECOND / 2;
/// Without an answer in a row until it is a black hole. More than small ones have: plain losses must
/// not look like it.
const MISSES: u32 = 5;

/// A path's probes of full size.
#[derive(Clone, Debug, Default)]
pub struct FullSize {
    /// Bytes of the longest packet of the bond; 0: not known, none are sent.
    bytes: u32,
    next: u64,
    /// When the one that waits for its answer was sent.
    awaited: Option<u64>,
    missed: u32,
    /// Answered in a row, where it is a black hole.
    good: u32,
    black_hole: bool,
    passed: bool,
    /// Small probes sent and answered when the first was missed.
    small_then: (u32, u32),
}

impl FullSize {
    /// Sets the size, bytes without the outer headers (and without the header of a frame, which the
    /// program adds); a new one is tried at once.
    pub fn set_bytes(&mut self, bytes: u32) {
        if self.bytes != bytes {
            let black_hole = self.black_hole;
            *self = Self {
                bytes,
                black_hole,
                ..Self::default()
            };
        }
    }

    /// Bytes of a probe to be sent now; `None` where none is due.
    #[must_use]
    pub fn due(&self, now: u64) -> Option<u32> {
        (self.bytes != 0 && self.awaited.is_none() && now >= self.next).then_some(self.bytes)
    }

    /// Notes that one was sent.
    pub fn sent(&mut self, now: u64) {
        self.awaited = Some(now);
    }

    /// It could not be sent after all: that says nothing of the path.
    pub fn not_sent(&mut self, now: u64) {
        self.awaited = None;
        self.next = now + SELDOM;
    }

    /// The path died, or has just come back: the one under way says nothing, the next is due at once.
    pub fn start_over(&mut self) {
        self.awaited = None;
        self.missed = 0;
        self.good = 0;
        self.next = 0;
    }

    /// Takes in an answer of full size; `recover` in a row end a black hole, `interval` apart.
    pub fn answered(&mut self, now: u64, recover: u32, interval: u64) {
        self.awaited = None;
        self.missed = 0;
        self.passed = true;
        self.next = now + SELDOM;
        if self.black_hole {
            self.good += 1;
            self.next = now + interval;
            if self.good >= recover {
                self.black_hole = false;
                self.good = 0;
                self.next = now + SELDOM;
            }
        }
    }

    /// Looks at the clock. An answer may take `limit`; `small_answered` is when the last small probe's
    /// came, `small` how many were sent and answered.
    pub fn tick(&mut self, now: u64, limit: u64, small_answered: u64, small: (u32, u32)) {
        let Some(sent) = self
            .awaited
            .filter(|sent| now.saturating_sub(*sent) > limit)
        else {
            return;
        };
        self.awaited = None;
        self.next = sent + if self.black_hole { OFTEN } else { AGAIN };
        if small_answered <= sent {
            // Nothing passes, large or small.
            return;
        }
        if self.missed == 0 {
            self.small_then = small;
        }
        self.good = 0;
        self.missed = self.missed.saturating_add(1);
        let asked = small.0.wrapping_sub(self.small_then.0);
        let lost = asked.saturating_sub(small.1.wrapping_sub(self.small_then.1));
        if self.missed >= MISSES && lost <= 1 + asked / 4 {
            self.black_hole = true;
            self.passed = false;
            self.next = sent + OFTEN;
        }
    }

    /// Whether they vanish.
    #[must_use]
    pub const fn is_black_hole(&self) -> bool {
        self.black_hole
    }

    /// Whether the last one came back.
    #[must_use]
    pub const fn passes(&self) -> bool {
        self.passed && !self.black_hole
    }

    /// Bytes of the longest packet of the bond, 0 where not known.
    #[must_use]
    pub const fn bytes(&self) -> u32 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const LIMIT: u64 = 90 * MS;
    const INTERVAL: u64 = 30 * MS;

    /// Runs for a time in steps of 1 ms; small probes every 30 ms, answered where `small` says so, full
    /// ones where `full` does. Returns the full ones sent.
    fn run(
        full_size: &mut FullSize,
        clock: &mut u64,
        ms: u64,
        mut small: impl FnMut() -> bool,
        full: bool,
    ) -> u32 {
        let (mut counts, mut answered, mut sent) = ((0, 0), 0, 0);
        for _ in 0..ms {
            *clock += MS;
            if (*clock / MS).is_multiple_of(30) {
                counts.0 += 1;
                if small() {
                    counts.1 += 1;
                    answered = *clock;
                }
            }
            if full_size.due(*clock).is_some() {
                full_size.sent(*clock);
                sent += 1;
                if full {
                    full_size.answered(*clock, 5, INTERVAL);
                }
            }
            full_size.tick(*clock, LIMIT, answered, counts);
        }
        sent
    }

    fn sized() -> FullSize {
        let mut full_size = FullSize::default();
        full_size.set_bytes(1396);
        full_size
    }

    #[test]
    fn a_black_hole_is_found_soon_and_left_again() {
        let (mut path, mut clock) = (sized(), SECOND);
        assert!(run(&mut path, &mut clock, 60_000, || true, true) <= 7);
        assert!(path.passes());
        assert!(run(&mut path, &mut clock, 13_000, || true, false) >= MISSES);
        assert!(path.is_black_hole());
        let asked = run(&mut path, &mut clock, 10_000, || true, false);
        assert!((8..=12).contains(&asked), "{asked} in 10 s");
        run(&mut path, &mut clock, 2_000, || true, true);
        assert!(path.passes());
    }

    #[test]
    fn a_new_path_is_tried_at_once() {
        let (mut path, mut clock) = (sized(), SECOND);
        run(&mut path, &mut clock, 2_500, || true, false);
        assert!(path.is_black_hole());
    }

    #[test]
    fn plain_losses_are_no_black_hole() {
        let (mut path, mut clock) = (sized(), SECOND);
        let mut turn = 0;
        let half = || {
            turn += 1;
            turn % 2 == 0
        };
        run(&mut path, &mut clock, 20_000, half, false);
        assert!(!path.is_black_hole());
        run(&mut path, &mut clock, 20_000, || false, false);
        assert!(!path.is_black_hole(), "a dead path is not one either");
    }

    #[test]
    fn another_size_is_tried_at_once() {
        let (mut path, mut clock) = (sized(), SECOND);
        run(&mut path, &mut clock, 3_000, || true, false);
        path.set_bytes(1300);
        assert!(path.is_black_hole(), "until it is known to pass");
        run(&mut path, &mut clock, 1_000, || true, true);
        assert!(path.passes());
    }
}
