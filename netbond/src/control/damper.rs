//! Losing a path is immediate, its return is damped: how long a path that failed stays out.
//!
//! Times are CLOCK_MONOTONIC, ns.

use crate::config::HoldDown;

const SECOND: u64 = 1_000_000_000;

/// A path that lived this long before it failed did not flap.
const STEADY: u64 = 60 * SECOND;

/// A path's record of failures.
#[derive(Clone, Copy, Debug)]
pub struct Damper {
    hold_down: HoldDown,
    /// Failures in a row of a life that was not steady.
    flaps: u32,
    /// 0: not held down.
    until: u64,
    /// When it last came into use; `None` before it first did.
    rose: Option<u64>,
}

impl Damper {
    /// A path that has not failed yet.
    #[must_use]
    pub const fn new(hold_down: HoldDown) -> Self {
        Self {
            hold_down,
            flaps: 0,
            until: 0,
            rose: None,
        }
    }

    /// The path came into use.
    pub fn rose(&mut self, now: u64) {
        self.rose = Some(now);
        self.until = 0;
    }

    /// Takes over another setting; what has happened stays.
    pub fn set(&mut self, hold_down: HoldDown) {
        self.hold_down = hold_down;
    }

    /// The path failed while it was in use. One that had just come is held down, each time for twice
    /// as long.
    pub fn fell(&mut self, now: u64) {
        let Some(rose) = self.rose else {
            return;
        };
        if now.saturating_sub(rose) >= STEADY {
            self.flaps = 0;
            self.until = 0;
            return;
        }
        self.flaps = self.flaps.saturating_add(1);
        self.until = now + self.hold();
    }

    /// The path failed again while it was held down: it must be good for that long anew.
    pub fn stumbled(&mut self, now: u64) {
        if self.until != 0 {
            self.until = now + self.hold();
        }
    }

    /// Until when it is held down; 0 where it is not, at `now`.
    #[must_use]
    pub const fn held_until(&self, now: u64) -> u64 {
        if now < self.until { self.until } else { 0 }
    }

    /// Failures in a row, each soon after the path came into use.
    #[must_use]
    pub const fn flaps(&self) -> u32 {
        self.flaps
    }

    fn hold(&self) -> u64 {
        let HoldDown { first_s, longest_s } = self.hold_down;
        let doubled = u64::from(first_s) << self.flaps.saturating_sub(1).min(20);
        doubled.min(u64::from(longest_s)) * SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hold-downs, s, of a path that fails `lives` seconds after each return.
    fn holds(hold_down: HoldDown, lives: &[u64]) -> Vec<u64> {
        let mut damper = Damper::new(hold_down);
        let mut now = SECOND;
        let mut holds = Vec::new();
        for life in lives {
            damper.rose(now);
            now += life * SECOND;
            damper.fell(now);
            let until = damper.held_until(now);
            holds.push(until.saturating_sub(now) / SECOND);
            now = now.max(until);
        }
        holds
    }

    #[test]
    fn each_is_twice_as_long_up_to_the_longest() {
        let lives = [100, 1, 1, 1, 59, 1, 1, 1, 1, 60, 1];
        assert_eq!(
            holds(HoldDown::default(), &lives),
            [0, 1, 2, 4, 8, 16, 32, 60, 60, 0, 1]
        );
    }

    #[test]
    fn none_where_none_is_wanted() {
        let none = HoldDown {
            first_s: 0,
            longest_s: 60,
        };
        assert_eq!(holds(none, &[1; 40]), [0; 40]);
    }

    #[test]
    fn a_path_that_never_came_into_use_is_not_held_down() {
        let mut damper = Damper::new(HoldDown::default());
        damper.fell(SECOND);
        assert_eq!(damper.held_until(SECOND), 0);
    }

    #[test]
    fn it_must_be_good_throughout() {
        let mut damper = Damper::new(HoldDown::default());
        damper.rose(SECOND);
        damper.fell(2 * SECOND);
        damper.stumbled(5 * SECOND / 2);
        assert_eq!(damper.held_until(5 * SECOND / 2), 7 * SECOND / 2);
        assert_eq!(damper.flaps(), 1);
    }
}
