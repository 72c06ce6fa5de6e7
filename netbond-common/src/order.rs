//! Orders of preference: which of a bond's paths comes before which.
//!
//! An order is a number of 64 bits, four for each path, those of the first path lowest. So it is read
//! and written in one piece, and its paths need no check of bounds. Every order names each of the 16
//! path slots once.

use crate::abi::MAX_BOND_PATHS;

const PATHS: usize = MAX_BOND_PATHS as usize;
const _: () = assert!(PATHS == 16);

/// The first path of an order.
#[inline(always)]
#[must_use]
pub const fn first(order: u64) -> u32 {
    order as u32 & (MAX_BOND_PATHS - 1)
}

/// The order without its first path; what follows the sixteenth is of no meaning.
#[inline(always)]
#[must_use]
pub const fn rest(order: u64) -> u64 {
    order >> 4
}

/// The order in which the paths at two places, counted from 0, have changed them.
#[inline(always)]
#[must_use]
pub const fn exchange(order: u64, one: u32, other: u32) -> u64 {
    const LAST: u32 = MAX_BOND_PATHS - 1;
    let (one, other) = (4 * (one & LAST), 4 * (other & LAST));
    let difference = ((order >> one) ^ (order >> other)) & LAST as u64;
    order ^ (difference << one) ^ (difference << other)
}

/// The order that begins with these paths; the others follow, by their numbers.
pub fn pack(paths: impl IntoIterator<Item = u32>) -> u64 {
    let (mut order, mut taken, mut place) = (0, 0_u32, 0);
    for path in paths.into_iter().chain(0..MAX_BOND_PATHS) {
        let path = path & (MAX_BOND_PATHS - 1);
        if taken & 1 << path == 0 {
            taken |= 1 << path;
            order |= u64::from(path) << (4 * place);
            place += 1;
        }
    }
    order
}

/// The order in which the flows of a bucket prefer the paths: by weighted rendezvous hashing.
///
/// Each path has a place of its own choosing in each bucket, the better the greater its weight, and
/// whatever the others do: where a path is lost, added, or changes its weight, no flow moves but to or
/// from that path. Over the buckets, each path is first as often as its weight asks, but for chance.
/// A path of weight 0 comes last. Before all that paths go by `rank`, the lowest first.
#[must_use]
pub fn of_bucket(bucket: u32, weights: &[u32; PATHS], rank: impl Fn(u32) -> u8) -> u64 {
    let mut paths = [0_u32; PATHS];
    for (path, slot) in (0..).zip(&mut paths) {
        *slot = path;
    }
    let weight = |path: u32| u64::from(weights[path as usize]);
    // Divided by their weights: a/b < c/d where ad < cb.
    let score = |path: u32, other: u32| u64::from(exponential(bucket, path)) * weight(other);
    paths.sort_unstable_by(|&a, &b| {
        (rank(a), weight(a) == 0)
            .cmp(&(rank(b), weight(b) == 0))
            .then(score(a, b).cmp(&score(b, a)))
            .then(a.cmp(&b))
    });
    pack(paths)
}

/// A number for a bucket and a path, exponentially distributed: the least of several, each divided by
/// its path's weight, is that path's with the probability of its share.
fn exponential(bucket: u32, path: u32) -> u32 {
    let mut mixed = u64::from(bucket << 4 | path).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    minus_log2((mixed ^ mixed >> 31) as u32)
}

/// Bits of a logarithm behind the point.
const FRACTION: u32 = 24;

/// -log2(n / 2^32), with [`FRACTION`] bits behind the point; of 0 as of 1.
const fn minus_log2(n: u32) -> u32 {
    let n = if n == 0 { 1 } else { n };
    let zeros = n.leading_zeros();
    // Between 1 and 2, with 31 bits behind the point.
    let mut mantissa = (n as u64) << zeros;
    let mut log = (31 - zeros) << FRACTION;
    let mut bit = FRACTION;
    while bit > 0 {
        bit -= 1;
        mantissa = (mantissa * mantissa) >> 31;
        if mantissa >> 32 != 0 {
            mantissa >>= 1;
            log |= 1 << bit;
        }
    }
    (32 << FRACTION) - log
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_paths_change_places() {
        let order = pack([3, 1, 2, 0]);
        assert_eq!(exchange(order, 0, 2), pack([2, 1, 3, 0]));
        assert_eq!(exchange(order, 3, 1), pack([3, 0, 2, 1]));
        assert_eq!(exchange(order, 15, 0), order ^ 12 ^ 12 << 60);
        assert_eq!(exchange(order, 5, 5), order);
    }
    use crate::abi::FLOW_BUCKETS;

    fn unpack(order: u64) -> Vec<u32> {
        (0..16).map(|place| first(order >> (4 * place))).collect()
    }

    fn weights(some: &[u32]) -> [u32; PATHS] {
        let mut all = [0; PATHS];
        all[..some.len()].copy_from_slice(some);
        all
    }

    fn table(some: &[u32]) -> Vec<Vec<u32>> {
        let all = weights(some);
        (0..FLOW_BUCKETS)
            .map(|bucket| unpack(of_bucket(bucket, &all, |_| 0)))
            .collect()
    }

    #[test]
    fn packed_and_unpacked() {
        let order = pack([3, 1, 3]);
        assert_eq!(unpack(order)[..5], [3, 1, 0, 2, 4]);
        assert_eq!(first(rest(order)), 1);
    }

    #[test]
    fn logarithms() {
        for n in [1, 2, 3, 1 << 16, 0x8000_0001, u32::MAX - 1, u32::MAX] {
            let want = 32.0 - f64::from(n).log2();
            let got = f64::from(minus_log2(n)) / f64::from(1 << FRACTION);
            assert!((got - want).abs() < 1e-4, "{n}: {got} {want}");
        }
    }

    /// With a rank, the order among paths of the same one stays.
    #[test]
    fn ranks_come_first() {
        let all = weights(&[1, 2, 3, 4]);
        for bucket in 0..FLOW_BUCKETS {
            let plain = unpack(of_bucket(bucket, &all, |_| 0));
            let ranked = unpack(of_bucket(bucket, &all, |path| u8::from(path == 2)));
            let (mut want, lost): (Vec<u32>, Vec<u32>) =
                plain.into_iter().partition(|&path| path != 2);
            want.extend(lost);
            assert_eq!(ranked, want);
        }
    }

    proptest! {
        #[test]
        fn every_order_has_every_path(some in proptest::collection::vec(0..256_u32, 1..=16)) {
            for order in table(&some) {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..16).collect::<Vec<u32>>());
                let real = some.iter().filter(|&&weight| weight != 0).count();
                prop_assert!(order[..real].iter().all(|&path| some[path as usize] != 0));
            }
        }

        /// Each path gets its share of the buckets, but for chance (five times its deviation).
        #[test]
        fn shares_are_as_weights(some in proptest::collection::vec(1..=64_u32, 2..=8)) {
            let total: u32 = some.iter().sum();
            let table = table(&some);
            for (path, &weight) in (0..).zip(&some) {
                let share = f64::from(weight) / f64::from(total);
                let due = share * f64::from(FLOW_BUCKETS);
                let deviation = (due * (1.0 - share)).sqrt();
                let found = table.iter().filter(|order| order[0] == path).count() as f64;
                prop_assert!(
                    (found - due).abs() <= 5.0 * deviation + 1.0,
                    "path {} of {:?}: {} for {}", path, some, found, due
                );
            }
        }

        /// Whichever paths are lost, the flows of the others stay; and when one comes back, nothing
        /// moves but back to it.
        #[test]
        fn only_flows_of_a_lost_path_move(
            some in proptest::collection::vec(1..=64_u32, 2..=16),
            lost: u16,
        ) {
            let up = |path: u32, lost: u16| lost & 1 << path == 0;
            let choice = |order: &[u32], lost: u16| {
                let mut real = order.iter().copied().filter(|&path| (path as usize) < some.len());
                real.find(|&path| up(path, lost))
            };
            for order in table(&some) {
                let before = choice(&order, 0);
                let after = choice(&order, lost);
                if before.is_some_and(|path| up(path, lost)) {
                    prop_assert_eq!(after, before);
                }
                for back in 0..16 {
                    let fewer = lost & !(1 << back);
                    let now = choice(&order, fewer);
                    prop_assert!(now == after || now == Some(back));
                }
            }
        }

        /// A changed weight moves flows to the path that gains, or away from the one that loses, and
        /// none among the others; so does a path that is added or removed.
        #[test]
        fn a_weight_moves_only_flows_of_its_path(
            some in proptest::collection::vec(0..=64_u32, 2..=16),
            at: proptest::sample::Index,
            weight in 0..=64_u32,
        ) {
            let changed = at.index(some.len());
            let mut others = some.clone();
            others[changed] = weight;
            prop_assume!(some.iter().any(|&weight| weight != 0));
            prop_assume!(others.iter().any(|&weight| weight != 0));
            for (before, after) in table(&some).iter().zip(table(&others)) {
                if before[0] == after[0] {
                    continue;
                }
                let moved = if weight > some[changed] { after[0] } else { before[0] };
                prop_assert_eq!(moved as usize, changed);
            }
        }
    }
}
