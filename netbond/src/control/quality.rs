//! Whether a path that lives is good enough: the policies for lossy and slow paths.
//!
//! A path falls short when it is beyond the limit; it is good again only when it stays well within it,
//! so that one at the limit does not come and go.

use serde::{Deserialize, Serialize};

use super::measure::Measure;
use crate::config::Policies;

/// Seconds that must be beyond the limit.
const NOTICE: usize = 3;
/// Seconds in a row that must be within three quarters of it.
const RETURN: u32 = 10;
/// Round trips that differ by less, ns, are alike: two paths of half a millisecond and of two are both
/// fast.
const ALIKE: u64 = 2_000_000;

/// What a living path lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortcoming {
    /// It loses this much of what is sent and of what returns, percent.
    Lossy { there: u32, back: u32 },
    /// Its round trip takes this long, and may take that long, µs.
    Slow { rtt_us: u64, limit_us: u64 },
}

impl Shortcoming {
    /// Whether it is of the same kind, whatever the figures.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// A limit, and on which side of it the path has been.
#[derive(Clone, Copy, Debug, Default)]
struct Gate {
    short: bool,
    /// Seconds in a row beyond the limit, or where short, well within it.
    seconds: u32,
}

impl Gate {
    /// Another second: `value` against `limit`. Short after `notice` seconds.
    fn pass(&mut self, value: u64, limit: u64, notice: u32) {
        let (counts, enough) = if self.short {
            (value < limit / 4 * 3, RETURN)
        } else {
            (value > limit, notice)
        };
        self.seconds = if counts { self.seconds + 1 } else { 0 };
        if self.seconds >= enough {
            *self = Self {
                short: !self.short,
                seconds: 0,
            };
        }
    }
}

/// A path's quality against its bond's policies.
#[derive(Clone, Debug)]
pub struct Quality {
    policies: Policies,
    loss: Gate,
    rtt: Gate,
    /// By the last judgement.
    shortcoming: Option<Shortcoming>,
}

impl Quality {
    /// Nothing to complain of yet.
    #[must_use]
    pub fn new(policies: Policies) -> Self {
        Self {
            policies,
            loss: Gate::default(),
            rtt: Gate::default(),
            shortcoming: None,
        }
    }

    /// Takes over other policies; where one is gone, so is its complaint.
    pub fn set(&mut self, policies: Policies) {
        self.policies = policies;
        if policies.lossy.is_none() {
            self.loss = Gate::default();
        }
        if policies.slow.is_none() {
            self.rtt = Gate::default();
        }
        self.shortcoming = self.shortcoming.take().filter(|short| match short {
            Shortcoming::Lossy { .. } => policies.lossy.is_some(),
            Shortcoming::Slow { .. } => policies.slow.is_some(),
        });
    }

    /// The path was dead: its losses and delays of before say nothing.
    pub fn start_over(&mut self) {
        self.loss.seconds = 0;
        self.rtt.seconds = 0;
    }

    /// What the path lacks, the worst first.
    #[must_use]
    pub fn shortcoming(&self) -> Option<Shortcoming> {
        self.shortcoming.clone()
    }

    /// Judges, once a second. `best_rtt` is the shortest round trip of the bond's paths, ns.
    pub fn judge(&mut self, measure: &Measure, best_rtt: Option<u64>) {
        let former = self.shortcoming.take();
        if let Some(slow) = &self.policies.slow {
            let relative = slow.factor.zip(best_rtt).map(|(factor, best)| {
                let limit = best.saturating_mul(u64::from(factor));
                limit.max(best + ALIKE)
            });
            let absolute = slow.above_ms.map(|ms| u64::from(ms) * 1_000_000);
            if let Some(limit) = [relative, absolute].into_iter().flatten().min() {
                self.rtt.pass(measure.rtt, limit, NOTICE as u32);
                if self.rtt.short {
                    self.shortcoming = Some(Shortcoming::Slow {
                        rtt_us: measure.rtt / 1000,
                        limit_us: limit / 1000,
                    });
                }
            }
        }
        let Some(lossy) = &self.policies.lossy else {
            return;
        };
        let Some(loss) = measure.recent_loss(NOTICE) else {
            // It was dead meanwhile, and has not shown yet that it is better.
            self.shortcoming = former
                .filter(|_| self.loss.short)
                .or(self.shortcoming.take());
            return;
        };
        // The window is as long as the notice: once is enough.
        let limit = u64::from(lossy.above_percent) * 10_000;
        self.loss.pass(u64::from(loss.worst()), limit, 1);
        if self.loss.short {
            let percent = |millionths: u32| (millionths + 5_000) / 10_000;
            self.shortcoming = Some(Shortcoming::Lossy {
                there: percent(loss.there),
                back: percent(loss.back),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_has_two_sides() {
        let mut gate = Gate::default();
        let mut story = Vec::new();
        for value in [99, 101, 101, 99, 101, 101, 101, 80, 74, 74] {
            gate.pass(value, 100, 3);
            story.push(gate.short);
        }
        assert_eq!(story, [&[false; 6][..], &[true; 4][..]].concat());
        for second in 2..RETURN {
            gate.pass(74, 100, 3);
            assert_eq!(gate.short, second + 1 != RETURN, "{second}");
        }
    }
}
