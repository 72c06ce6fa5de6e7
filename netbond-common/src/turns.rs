//! Turns by bytes: each path gets its share of them, however long packets are.
//!
//! Each path has a clock. A packet takes the path whose clock is behind all others, and puts it forward
//! by its length times what a byte costs there (stride scheduling: Waldspurger, Weihl, 1995). So no
//! path is ever further from its share than by the longest packet. The wheel counts packets instead,
//! which is cheaper; but super-packets are of all lengths, and what one path gets too much waits in its
//! queue.

use core::sync::atomic::{Ordering, compiler_fence};

use crate::abi::{
    MAX_BOND_PATHS, PATH_LAPSED, PATH_LAST_RESORT, PATH_STALE, PATH_USABLE, Shares, Turns,
};
use crate::order;
use crate::select::Choice;

const PATHS: usize = MAX_BOND_PATHS as usize;

/// What a byte costs on the path that gets the most of them.
pub const CHEAPEST: u32 = 1 << 10;
/// What it costs at the most: no path gets less than 1/256 of what the first gets.
const DEAREST: u32 = CHEAPEST << 8;
/// More than the longest packet has, with what is around its segments, bytes.
const LONGEST_LOG: u32 = 17;
/// More than any clock is ahead: 1 bit more than the longest packet at the highest cost.
const NEVER_LOG: u32 = 18 + LONGEST_LOG + 1;

/// Shares in proportion to weights; a path of weight 0 takes no part.
#[must_use]
pub fn shares(weights: &[u32; PATHS]) -> Shares {
    let most = u64::from(weights.iter().copied().max().unwrap_or(0));
    let cost = |weight: u32| {
        let weight = u64::from(weight).max(1);
        let cost = (u64::from(CHEAPEST) * most + weight / 2) / weight;
        cost.clamp(u64::from(CHEAPEST), u64::from(DEAREST)) as u32
    };
    let taking_part = || (0..MAX_BOND_PATHS).filter(|&path| weights[path as usize] != 0);
    Shares {
        order: order::pack(taking_part()),
        count: taking_part().count() as u32,
        settled_until: 0,
        cost: weights.map(cost),
    }
}

/// The weights behind shares, of the paths that take part: the greatest is 1.
#[cfg(not(target_arch = "bpf"))]
pub fn weights<T: FromIterator<(u32, f64)>>(shares: &Shares) -> T {
    let places = 0..shares.count.min(MAX_BOND_PATHS);
    let paths = places.map(|place| order::first(shares.order >> (4 * place)));
    let weight = |path: u32| f64::from(CHEAPEST) / f64::from(shares.cost[path as usize].max(1));
    paths.map(|path| (path, weight(path))).collect()
}

/// Where a program notes what it compares: the verifier would walk through each outcome otherwise.
pub type Keys = [u64; PATHS];

impl Turns {
    /// The path (counted from 0 of the bond's `paths`) that a packet of `len` bytes takes; `None` where
    /// none can take it. `flags` as for [`crate::select::select`].
    ///
    /// A path that is not usable keeps its turn, as on the wheel: what it would have got is spread over
    /// the others in turn, and it has nothing to make up for when it is back.
    #[inline(always)]
    pub fn take(
        &mut self,
        shares: &Shares,
        keys: &mut Keys,
        paths: u32,
        len: u32,
        mut flags: impl FnMut(u32) -> u32,
    ) -> Option<(u32, Choice)> {
        let mut rest = shares.order;
        let mut least = NONE;
        for place in 0..MAX_BOND_PATHS {
            if place >= shares.count {
                break;
            }
            let path = order::first(rest);
            rest = order::rest(rest);
            let lead = self.lead(shares, path);
            // None may be further ahead than by one packet, as it is when its share was less.
            self.clocks[path as usize & (PATHS - 1)] = self.now.wrapping_add(lead as u64);
            least = min(least, lead << PATH_BITS | i64::from(path));
        }
        let least = forget(keys, least);
        let turn = path_of(least);
        if least != NONE {
            self.now = self.now.wrapping_add((least >> PATH_BITS) as u64);
            if flags(turn) & PATH_USABLE != 0 {
                self.took(shares, turn, len);
                return Some((turn, Choice::Wheel));
            }
        }
        let (path, choice) = self.stand_in(shares, keys, paths, flags)?;
        if least == NONE {
            self.now = self.now.wrapping_add(self.lead(shares, path) as u64);
        } else if turn != path {
            self.took(shares, turn, len);
        }
        self.took(shares, path, len);
        Some((path, choice))
    }

    /// Counts a packet that took this path, whosever turn it was.
    #[inline(always)]
    pub const fn took(&mut self, shares: &Shares, path: u32, len: u32) {
        let start = self.now.wrapping_add(self.lead(shares, path) as u64);
        let path = path as usize & (PATHS - 1);
        self.clocks[path] = start.wrapping_add(shares.cost[path] as u64 * len as u64);
    }

    /// The best of those that can take the packet; among equals the one whose clock is behind.
    #[inline(always)]
    fn stand_in(
        &self,
        shares: &Shares,
        keys: &mut Keys,
        paths: u32,
        mut flags: impl FnMut(u32) -> u32,
    ) -> Option<(u32, Choice)> {
        let paths = if paths < MAX_BOND_PATHS {
            paths
        } else {
            MAX_BOND_PATHS
        };
        for path in 0..paths {
            let found = flags(path);
            let rank = rank(found) << (NEVER_LOG + PATH_BITS);
            keys[path as usize & (PATHS - 1)] =
                rank + (self.lead(shares, path) << PATH_BITS) as u64;
        }
        compiler_fence(Ordering::SeqCst);
        let mut least = NONE;
        for path in 0..paths {
            least = min(
                least,
                keys[path as usize & (PATHS - 1)] as i64 | i64::from(path),
            );
        }
        let choice = match least >> (NEVER_LOG + PATH_BITS) {
            0 => Choice::StandIn,
            1..=3 => Choice::LastResort,
            _ => return None,
        };
        Some((path_of(least), choice))
    }

    /// By how much a path's clock is ahead of the present; not more than one packet puts it forward. One
    /// that stood still is at the present: it has nothing to make up for.
    #[inline(always)]
    const fn lead(&self, shares: &Shares, path: u32) -> i64 {
        let path = path as usize & (PATHS - 1);
        let lead = self.clocks[path].wrapping_sub(self.now) as i64;
        min(
            lead & !(lead >> 63),
            (shares.cost[path] as i64) << LONGEST_LOG,
        )
    }
}

/// Bits of a key in which the path stands; above them is how far ahead its clock is, and its rank.
const PATH_BITS: u32 = 4;
/// More than any key.
const NONE: i64 = NO_RANK as i64 * (1 << (NEVER_LOG + PATH_BITS));

#[inline(always)]
const fn path_of(key: i64) -> u32 {
    key as u32 & (MAX_BOND_PATHS - 1)
}

/// The [`rank`] of a path that can take nothing; more than any other.
pub(crate) const NO_RANK: u64 = 4;

/// 0 for a usable path; 1 to 3 for a last resort: with a fresh proof of life, with one that is only just too old, with
/// none; [`NO_RANK`] for a path that can take nothing.
///
/// Without a branch, as all here that is done for each path: the ways through a loop multiply.
#[inline(always)]
pub(crate) const fn rank(flags: u32) -> u64 {
    const { assert!(PATH_USABLE == 1 && PATH_LAST_RESORT == 2) }
    const { assert!(PATH_STALE == 1 << 31 && PATH_LAPSED == 1 << 30) }
    let unusable = (flags & PATH_USABLE).wrapping_sub(1);
    let no_resort = (flags >> 1 & 1).wrapping_sub(1);
    let (stale, lapsed) = (flags >> 31, flags >> 30 & flags >> 31 & 1);
    let resort = 1 + 2 * stale - lapsed;
    (unusable & (no_resort & NO_RANK as u32 | !no_resort & resort)) as u64
}

/// The same number, of which the verifier knows nothing any more.
#[inline(always)]
fn forget(keys: &mut Keys, number: i64) -> i64 {
    keys[0] = number as u64;
    compiler_fence(Ordering::SeqCst);
    keys[0] as i64
}

/// The lesser of two numbers less than 2^62.
#[inline(always)]
pub(crate) const fn min(a: i64, b: i64) -> i64 {
    let difference = a.wrapping_sub(b);
    b.wrapping_add(difference & difference >> 63)
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use proptest::prelude::*;

    use super::*;

    fn weights(some: &[u32]) -> [u32; PATHS] {
        let mut all = [0; PATHS];
        all[..some.len()].copy_from_slice(some);
        all
    }

    const USABLE: u32 = PATH_USABLE | PATH_LAST_RESORT;

    /// The paths that packets of these lengths take.
    fn run(turns: &mut Turns, some: &[u32], lens: &[u32], flags: &[u32]) -> Vec<(u32, Choice)> {
        let shares = shares(&weights(some));
        let take = |&len| {
            let flags = |path: u32| flags[path as usize];
            let mut keys = [0; PATHS];
            turns
                .take(&shares, &mut keys, some.len() as u32, len, flags)
                .unwrap()
        };
        lens.iter().map(take).collect()
    }

    fn paths(chosen: &[(u32, Choice)]) -> Vec<u32> {
        chosen.iter().map(|(path, _)| *path).collect()
    }

    #[test]
    fn packets_of_one_length_take_turns() {
        let mut turns = Turns::zeroed();
        let chosen = run(&mut turns, &[1, 1], &[1400; 6], &[USABLE; 2]);
        assert_eq!(paths(&chosen), [0, 1, 0, 1, 0, 1]);
        let chosen = run(&mut Turns::zeroed(), &[2, 1], &[1400; 6], &[USABLE; 2]);
        assert_eq!(paths(&chosen), [0, 1, 0, 0, 1, 0]);
    }

    #[test]
    fn a_long_packet_is_made_up_for() {
        let lens = [3000, 1000, 1000, 1000, 1000, 1000];
        let chosen = run(&mut Turns::zeroed(), &[1, 1], &lens, &[USABLE; 2]);
        assert_eq!(paths(&chosen), [0, 1, 1, 1, 0, 1]);
    }

    /// Neither a path that was away nor one whose weight was low gets all packets when that changes.
    #[test]
    fn nothing_is_made_up_for_after_an_absence() {
        let mut turns = Turns::zeroed();
        let away = run(&mut turns, &[1, 1, 0], &[1400; 1000], &[USABLE; 3]);
        assert!(!paths(&away).contains(&2));
        let back = paths(&run(&mut turns, &[1, 1, 1], &[1400; 9], &[USABLE; 3]));
        for path in 0..3 {
            let count = back.iter().filter(|p| **p == path).count();
            assert_eq!(count, 3, "{back:?}");
        }
        let mut turns = Turns::zeroed();
        run(&mut turns, &[256, 1], &[65_000; 500], &[USABLE; 2]);
        let equal = paths(&run(&mut turns, &[1, 1], &[1400; 200], &[USABLE; 2]));
        let of_second = equal[100..].iter().filter(|path| **path == 1).count();
        assert_eq!(of_second, 50, "{equal:?}");
    }

    #[test]
    fn turns_of_an_unusable_path_are_spread_evenly() {
        let flags = [USABLE, 0, USABLE, USABLE];
        let chosen = run(&mut Turns::zeroed(), &[1; 4], &[1400; 12_000], &flags);
        for path in 0..4_u32 {
            let count = chosen.iter().filter(|(p, _)| *p == path).count();
            let due = if path == 1 { 0 } else { 4_000 };
            assert!(count.abs_diff(due) <= 1, "path {path}: {count}");
        }
        assert!(chosen.iter().any(|(_, choice)| *choice == Choice::StandIn));
        assert!(chosen.iter().any(|(_, choice)| *choice == Choice::Wheel));
    }

    #[test]
    fn last_resorts_in_turn_the_fresh_ones_first() {
        let fresh = PATH_LAST_RESORT;
        let stale = PATH_LAST_RESORT | PATH_STALE;
        let lapsed = stale | PATH_LAPSED;
        for (weights, [best, worse]) in [
            ([0, 0, 0], [fresh, stale]),
            ([1, 1, 1], [fresh, stale]),
            ([1, 1, 1], [fresh, lapsed]),
            ([0, 0, 0], [lapsed, stale]),
            ([1, 1, 1], [lapsed, stale]),
        ] {
            let mut turns = Turns::zeroed();
            let chosen = run(&mut turns, &weights, &[1400; 300], &[best, worse, best]);
            assert!(
                chosen
                    .iter()
                    .all(|(_, choice)| *choice == Choice::LastResort)
            );
            let count = |path: u32| chosen.iter().filter(|(p, _)| *p == path).count();
            assert_eq!(count(1), 0);
            assert!(count(0).abs_diff(count(2)) <= 2, "{weights:?} {}", count(0));
            let chosen = run(&mut turns, &weights, &[1400; 4], &[fresh, USABLE, fresh]);
            assert!(chosen.iter().all(|(path, _)| *path == 1));
        }
        let (shares, mut keys) = (shares(&weights(&[1, 1])), [0; PATHS]);
        assert_eq!(
            Turns::zeroed().take(&shares, &mut keys, 2, 1400, |_| 0),
            None
        );
    }

    proptest! {
        /// Whatever the lengths, at any moment each path is within its longest packet, for each path
        /// that competes, of its share of the bytes.
        #[test]
        fn fair_at_any_moment(
            some in proptest::collection::vec(1..=64_u32, 1..=8),
            lens in proptest::collection::vec(40..=65_535_u32, 1..400),
        ) {
            let chosen = run(&mut Turns::zeroed(), &some, &lens, &[USABLE; 8]);
            let total: u32 = some.iter().sum();
            let (mut sent, mut all) = ([0_f64; 8], 0.0);
            for ((path, choice), len) in chosen.into_iter().zip(lens) {
                prop_assert_eq!(choice, Choice::Wheel);
                sent[path as usize] += f64::from(len);
                all += f64::from(len);
                for (path, &weight) in some.iter().enumerate() {
                    let due = all * f64::from(weight) / f64::from(total);
                    let off = (sent[path] - due).abs();
                    // Costs are rounded: by 1/2048 at the most.
                    let bound = 65_536.0 * some.len() as f64 + all / 1000.0;
                    prop_assert!(off <= bound, "path {} off {}", path, off);
                }
            }
        }

        /// Whatever stands in the map: a path that exists and can take the packet, the best kind first.
        #[test]
        fn any_state_is_served(
            clocks: [u64; PATHS],
            now: u64,
            weights: [u32; PATHS],
            flags: [u32; PATHS],
            paths in 0..=16_u32,
            len in 1..=65_535_u32,
        ) {
            let mut turns = Turns { clocks, now };
            let mut shares = shares(&weights);
            shares.count = shares.count.min(paths);
            let flags_of = |path: u32| flags[path as usize];
            let got = turns.take(&shares, &mut [0; PATHS], paths, len, flags_of);
            let some = &flags[..paths as usize];
            match got {
                // What the shares name beyond the bond's paths has no flags in the map.
                Some((path, _)) if path >= paths => {}
                Some((path, Choice::Wheel | Choice::StandIn)) => {
                    prop_assert!(some[path as usize] & PATH_USABLE != 0);
                }
                Some((path, Choice::LastResort)) => {
                    prop_assert!(some[path as usize] & PATH_LAST_RESORT != 0);
                    prop_assert!(some.iter().all(|flags| flags & PATH_USABLE == 0));
                }
                None => prop_assert!(
                    some.iter().all(|flags| flags & (PATH_USABLE | PATH_LAST_RESORT) == 0)
                ),
            }
        }
    }
}
