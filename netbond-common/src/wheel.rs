//! The wheel: a dense slot table, slot -> path, built from weights.

use crate::abi::{MAX_BOND_PATHS, WHEEL_SLOTS};

const PATHS: usize = MAX_BOND_PATHS as usize;

/// Fills `slots` so that each path with a weight appears in that share, spread as evenly as can be
/// (smooth weighted round robin), and returns how many slots are in use.
///
/// `weights[i]` is that of path `i`, 0 where it takes no part. Weights are reduced by their greatest
/// common divisor; where they still ask for more slots than there are, shares are rounded down, but
/// each path keeps at least one slot.
pub fn build(weights: &[u32; PATHS], slots: &mut [u8; WHEEL_SLOTS]) -> usize {
    slots.fill(0);
    let shares = shares(weights);
    let total: i64 = shares.iter().map(|&share| i64::from(share)).sum();
    let mut credit = [0_i64; PATHS];
    let length = usize::try_from(total).unwrap_or(0).min(WHEEL_SLOTS);
    for slot in &mut slots[..length] {
        let mut best = 0;
        for path in 0..PATHS {
            credit[path] += i64::from(shares[path]);
            if credit[path] > credit[best] {
                best = path;
            }
        }
        credit[best] -= total;
        *slot = best as u8;
    }
    length
}

/// Slots for each path: at most `WHEEL_SLOTS` in all.
fn shares(weights: &[u32; PATHS]) -> [u32; PATHS] {
    let divisor = weights.iter().fold(0, |a, &b| gcd(a, b)).max(1);
    let mut shares = weights.map(|weight| weight / divisor);
    let total: u64 = shares.iter().map(|&share| u64::from(share)).sum();
    if total > WHEEL_SLOTS as u64 {
        // Slots set aside so that rounding up to one never asks for more than there are.
        let room = (WHEEL_SLOTS - PATHS) as u64;
        shares = shares.map(|share| {
            let scaled = u64::from(share) * room / total;
            if share == 0 { 0 } else { scaled.max(1) as u32 }
        });
    }
    shares
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wheel(weights: &[u32]) -> Vec<u8> {
        let mut all = [0; PATHS];
        all[..weights.len()].copy_from_slice(weights);
        let mut slots = [0; WHEEL_SLOTS];
        let length = build(&all, &mut slots);
        slots[..length].to_vec()
    }

    #[test]
    fn equal_weights_alternate() {
        assert_eq!(wheel(&[1, 1]), [0, 1]);
        assert_eq!(wheel(&[7, 7, 7]), [0, 1, 2]);
        assert_eq!(wheel(&[0, 3, 0, 3]), [1, 3]);
        assert_eq!(wheel(&[5]), [0]);
        assert_eq!(wheel(&[]), [0_u8; 0]);
    }

    #[test]
    fn unequal_weights_are_spread() {
        assert_eq!(wheel(&[4, 1]), [0, 0, 1, 0, 0]);
        assert_eq!(wheel(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
    }

    proptest! {
        /// Each path's count is its share, and no stretch of the wheel strays from it by more than
        /// one packet for each path that competes.
        #[test]
        fn fair_and_smooth(weights in proptest::collection::vec(0..=16_u32, 1..=8)) {
            let slots = wheel(&weights);
            let total: u32 = weights.iter().sum();
            prop_assert_eq!(slots.is_empty(), total == 0);
            let mut seen = [0_u32; PATHS];
            for (turn, &path) in slots.iter().enumerate() {
                seen[path as usize] += 1;
                for (path, &weight) in weights.iter().enumerate() {
                    let due = weight as f64 * (turn + 1) as f64 / total as f64;
                    let off = (seen[path] as f64 - due).abs();
                    prop_assert!(off < weights.len() as f64 / 2.0 + 1.0, "path {} off {}", path, off);
                }
            }
            for (path, &weight) in weights.iter().enumerate() {
                prop_assert_eq!(seen[path] * total, weight * slots.len() as u32);
            }
        }

        /// Whatever the weights, the wheel fits and forgets no path.
        #[test]
        fn any_weights_fit(weights: [u32; PATHS]) {
            let slots = wheel(&weights);
            for (path, &weight) in weights.iter().enumerate() {
                prop_assert_eq!(slots.contains(&(path as u8)), weight != 0);
            }
        }
    }
}
