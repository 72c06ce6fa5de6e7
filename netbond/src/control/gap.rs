//! After what pause a flow may go on by another path without overtaking itself.

use std::time::Duration;

/// What a bond in mode flowlet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// What the user says.
    Fixed(Duration),
    /// What the paths' round trips say.
    Measured,
}

/// As long as fewer than two paths of a bond have been measured, ns: longer than most differ.
pub const UNMEASURED: u64 = 100_000_000;
/// The least, ns: below it the machines' own delays count.
const LEAST: u64 = 3_000_000;
/// The most, ns.
const MOST: u64 = 1_000_000_000;

/// The pause after which what goes by the fastest of the paths arrives behind what went by the slowest,
/// ns; `paths` are the round trips of those in use and their mean deviations.
///
/// Half the difference of the round trips, as if both ways were alike, and as much as those stray at
/// the most (four deviations, as RFC 6298 takes for a timeout).
#[must_use]
pub fn measured(paths: &[(u64, u64)]) -> u64 {
    let fastest = paths.iter().min();
    let slowest = paths.iter().max();
    let (Some(fastest), Some(slowest)) = (fastest, slowest) else {
        return UNMEASURED;
    };
    if paths.len() < 2 {
        return UNMEASURED;
    }
    let stray = 4 * (fastest.1 + slowest.1);
    ((slowest.0 - fastest.0 + stray) / 2).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn as_long_as_latencies_differ() {
        assert_eq!(measured(&[]), UNMEASURED);
        assert_eq!(measured(&[(5 * MS, 0)]), UNMEASURED);
        assert_eq!(measured(&[(5 * MS, 0), (5 * MS, 0)]), LEAST);
        assert_eq!(measured(&[(50 * MS, 0), (10 * MS, 0)]), 20 * MS);
        let strays = [(50 * MS, 2 * MS), (10 * MS, MS), (30 * MS, 9 * MS)];
        assert_eq!(measured(&strays), 26 * MS);
        assert_eq!(measured(&[(9000 * MS, 0), (10 * MS, 0)]), MOST);
    }
}
