//! Which path a packet takes.

use core::sync::atomic::{Ordering, compiler_fence};

use crate::{
    abi::{Bond, Flowlet, MAX_BOND_PATHS, PATH_SPARE, PATH_USABLE, Ticket, WHEEL_SLOTS},
    order,
    turns::{self, NO_RANK, min},
};

/// How a path came to be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The mode's own: the wheel's, whose turn it is, or the first in the order of preference.
    Wheel,
    /// Another one, as that was not usable.
    StandIn,
    /// One that is not usable but has a route, as none was usable: with a fresh proof of life where one has, else one
    /// whose proof is only just too old, as where this host was held up; or as there were not enough for all copies,
    /// see [`Copies::find`].
    LastResort,
}

/// Turns the wheel and returns the path (counted from 0 within the bond) that the packet takes,
/// `None` where no path can take it.
///
/// `flags` gives a path's `PATH_*` flags, 0 for one taken out. The wheel holds usable paths only, but
/// a path may have become unusable since it was built; then its packets are spread over the other
/// usable paths in turn, so that no single one gets a double share.
#[inline(always)]
pub fn select(
    bond: &Bond,
    ticket: &mut Ticket,
    mut flags: impl FnMut(u32) -> u32,
) -> Option<(u32, Choice)> {
    if bond.wheel_len != 0 {
        let slot = if ticket.slot < bond.wheel_len {
            ticket.slot
        } else {
            0
        };
        ticket.slot = slot + 1;
        let path = u32::from(bond.wheel[slot as usize & (WHEEL_SLOTS - 1)]);
        if path < MAX_BOND_PATHS && flags(path) & PATH_USABLE != 0 {
            return Some((path, Choice::Wheel));
        }
    }
    // No `Option`: the compiler may copy what one does not hold, and the verifier refuses that.
    let (mut best, mut resort) = (NO_RANK, 0);
    let first = ticket.stand_in;
    let mut path = first;
    for _ in 0..MAX_BOND_PATHS {
        if path >= bond.paths || path >= MAX_BOND_PATHS {
            path = 0;
        }
        let found = flags(path);
        if found & PATH_USABLE != 0 {
            return Some((settle(ticket, path), Choice::StandIn));
        }
        let rank = turns::rank(found);
        if rank < best {
            (best, resort) = (rank, path);
        }
        path += 1;
    }
    if best == NO_RANK {
        return None;
    }
    Some((settle(ticket, resort), Choice::LastResort))
}

/// Notes where the next search begins, and returns the path as it stands there: so the verifier does
/// not walk through all that follows once for each path that may have been found.
#[inline(always)]
fn settle(ticket: &mut Ticket, path: u32) -> u32 {
    ticket.stand_in = path + 1;
    compiler_fence(Ordering::SeqCst);
    ticket.stand_in.wrapping_sub(1)
}

/// The first path of an order that can take the packet; `None` where none can. `flags` as for
/// [`select`].
///
/// A path that is not usable is passed over here, by no one's leave: no controller needs to live.
#[inline(always)]
pub fn by_order(order: u64, mut flags: impl FnMut(u32) -> u32) -> Option<(u32, Choice)> {
    let mut rest = order;
    // No `Option`, as in `select`.
    let (mut best, mut resort) = (NO_RANK, 0);
    for place in 0..MAX_BOND_PATHS {
        let path = order::first(rest);
        rest = order::rest(rest);
        let found = flags(path);
        if found & PATH_USABLE != 0 {
            let choice = if place == 0 {
                Choice::Wheel
            } else {
                Choice::StandIn
            };
            return Some((path, choice));
        }
        let rank = turns::rank(found);
        if rank < best {
            (best, resort) = (rank, path);
        }
    }
    (best != NO_RANK).then_some((resort, Choice::LastResort))
}

/// The paths on which a packet is sent at once, and how they are found: in the map of notes, see there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copies {
    /// They are the first so many of this order. Beyond them it says nothing.
    pub order: u64,
    pub count: u32,
    /// A bit for each path: if it is one of them, another one was passed over.
    pub stand_ins: u32,
    /// A bit for each path: it is a last resort.
    pub last_resorts: u32,
    /// The kind that is looked at: read back from here, as before 6.2 the verifier does not know how great a
    /// number is that was put together of bits.
    kind: u32,
    /// By rank; [`Self::SPARE`] further on spare ones.
    kinds: [Kind; 8],
}

/// Paths of a kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    /// They are the first so many of this order.
    order: u64,
    count: u64,
}

impl Kind {
    const NONE: Self = Self { order: 0, count: 0 };
}

impl Copies {
    const USABLE: usize = 0;
    const FRESH: usize = 1;
    const STALE: usize = 2;
    const RANKS: usize = 4;
    const SPARE: usize = 4;
    const KINDS: usize = 8;

    /// On no path.
    pub const NONE: Self = Self {
        order: 0,
        count: 0,
        stand_ins: 0,
        last_resorts: 0,
        kind: 0,
        kinds: [Kind::NONE; Self::KINDS],
    };

    /// Finds the paths for a packet that is to be sent on so many: the first of an order that are usable,
    /// and where these are too few, of the spare ones (`PATH_SPARE`) with a fresh proof of life. Where
    /// none is usable, other last resorts as well, the stale ones only if there is nothing else. `flags` as
    /// for [`select`]. None where `count` is 0 then.
    #[inline(always)]
    pub fn find(&mut self, order: u64, most: u32, mut flags: impl FnMut(u32) -> u32) {
        *self = Self::NONE;
        let mut rest = order;
        // Without a branch: the ways through a loop multiply.
        for place in 0..MAX_BOND_PATHS {
            let path = order::first(rest);
            rest = order::rest(rest);
            let found = flags(path);
            let rank = turns::rank(found);
            // Those that are stale are alike: all of them have copies.
            let rank = (rank - ((rank + 5) >> 3)) & (Self::RANKS as u64 - 1);
            let spare = u64::from((found / PATH_SPARE) & 1) * Self::SPARE as u64;
            self.kind = (rank + spare) as u32;
            compiler_fence(Ordering::SeqCst);
            let kind = &mut self.kinds[self.kind as usize & (Self::KINDS - 1)];
            let at = 4 * (kind.count & u64::from(MAX_BOND_PATHS - 1));
            kind.order |= u64::from(path) << at;
            kind.count += 1;
            self.last_resorts |= ((rank as u32 + 3) >> 2) << path;
            let passed = (u64::from(most).wrapping_sub(1 + u64::from(place)) >> 63) as u32;
            self.stand_ins |= passed << path;
            // What the verifier knows of these it would carry on into the next turn.
            compiler_fence(Ordering::SeqCst);
        }
        self.add(Self::USABLE, most);
        let none = self.count == 0;
        self.add(Self::FRESH + Self::SPARE, most);
        if none {
            self.add(Self::FRESH, most);
        }
        if self.count == 0 {
            self.add(Self::STALE + Self::SPARE, most);
            self.add(Self::STALE, most);
        }
    }

    /// Adds those of a kind, up to so many in all.
    #[inline(always)]
    fn add(&mut self, kind: usize, most: u32) {
        compiler_fence(Ordering::SeqCst);
        let of_kind = self.kinds[kind];
        let room = i64::from(most) - i64::from(self.count);
        let count = min(of_kind.count as i64, room);
        if count > 0 {
            let at = 4 * (self.count & (MAX_BOND_PATHS - 1));
            self.order |= of_kind.order << at;
            self.count += count as u32;
        }
        compiler_fence(Ordering::SeqCst);
    }

    /// How one of them came to be chosen, by [`Self::last_resorts`] and [`Self::stand_ins`].
    #[inline(always)]
    #[must_use]
    pub const fn choice(last_resorts: u32, stand_ins: u32, path: u32) -> Choice {
        let bit = 1 << (path & (MAX_BOND_PATHS - 1));
        if last_resorts & bit != 0 {
            Choice::LastResort
        } else if stand_ins & bit != 0 {
            Choice::StandIn
        } else {
            Choice::Wheel
        }
    }
}

impl Flowlet {
    /// The path on which flows of this bucket must stay at `now`: their last packet is not `gap` old,
    /// all ns.
    #[inline(always)]
    #[must_use]
    pub const fn held(&self, now: u64, gap: u64) -> Option<u32> {
        // Another CPU's packet may be of a moment later.
        if now.saturating_sub(self.at_ns) < gap {
            Some(self.path & (MAX_BOND_PATHS - 1))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        abi::{PATH_LAPSED, PATH_LAST_RESORT, PATH_STALE},
        wheel,
    };

    fn bond(weights: &[u32]) -> Bond {
        let mut all = [0; MAX_BOND_PATHS as usize];
        all[..weights.len()].copy_from_slice(weights);
        let mut bond = Bond {
            paths: weights.len() as u32,
            ..Bond::zeroed()
        };
        bond.wheel_len = wheel::build(&all, &mut bond.wheel) as u32;
        bond
    }

    /// The paths of the next `n` packets.
    fn run(
        bond: &Bond,
        ticket: &mut Ticket,
        flags: &[u32],
        n: usize,
    ) -> Vec<Option<(u32, Choice)>> {
        let flags = |path: u32| flags.get(path as usize).copied().unwrap_or(0);
        (0..n).map(|_| select(bond, ticket, flags)).collect()
    }

    const USABLE: u32 = PATH_USABLE | PATH_LAST_RESORT;

    #[test]
    fn round_robin() {
        let paths = run(&bond(&[1, 1]), &mut Ticket::default(), &[USABLE; 2], 4);
        let want = [0, 1, 0, 1].map(|path| Some((path, Choice::Wheel)));
        assert_eq!(paths, want);
    }

    #[test]
    fn share_of_an_unusable_path_is_spread_evenly() {
        let flags = [USABLE, 0, USABLE, USABLE];
        let paths = run(&bond(&[1; 4]), &mut Ticket::default(), &flags, 12_000);
        for path in 0..4 {
            let count = paths.iter().flatten().filter(|(p, _)| *p == path).count();
            assert_eq!(count, if path == 1 { 0 } else { 4_000 }, "path {path}");
        }
    }

    #[test]
    fn last_resort_only_when_nothing_is_usable() {
        let bond = bond(&[1, 1, 1]);
        let mut ticket = Ticket::default();
        let some = run(&bond, &mut ticket, &[PATH_LAST_RESORT, 0, USABLE], 6);
        assert!(
            some.iter().all(|choice| matches!(choice, Some((2, _)))),
            "{some:?}"
        );
        let none = run(
            &bond,
            &mut ticket,
            &[PATH_LAST_RESORT, 0, PATH_LAST_RESORT],
            4,
        );
        let mut paths: Vec<_> = none.iter().flatten().collect();
        assert!(
            paths
                .iter()
                .all(|(_, choice)| *choice == Choice::LastResort)
        );
        paths.sort_by_key(|(path, _)| *path);
        assert_eq!(
            paths.iter().map(|(path, _)| *path).collect::<Vec<_>>(),
            [0, 0, 2, 2]
        );
        assert_eq!(run(&bond, &mut ticket, &[0; 3], 2), [None, None]);
    }

    #[test]
    fn a_fresh_last_resort_is_better_than_a_stale_one() {
        let stale = PATH_LAST_RESORT | PATH_STALE;
        let flags = [stale, PATH_LAST_RESORT, stale];
        let got = run(&bond(&[1, 1, 1]), &mut Ticket::default(), &flags, 4);
        assert_eq!(got, [Some((1, Choice::LastResort)); 4]);
        // One that the controller has in use is better than one that it gave up.
        let lapsed = stale | PATH_LAPSED;
        let got = run(
            &bond(&[1, 1, 1]),
            &mut Ticket::default(),
            &[stale, lapsed, stale],
            4,
        );
        assert_eq!(got, [Some((1, Choice::LastResort)); 4]);
        let got = run(&bond(&[1, 1]), &mut Ticket::default(), &[stale; 2], 4);
        let paths: Vec<_> = got.iter().flatten().map(|(path, _)| *path).collect();
        assert_eq!(paths, [0, 1, 0, 1]);
    }

    #[test]
    fn a_shrunk_wheel_is_not_overrun() {
        let mut ticket = Ticket {
            slot: 200,
            stand_in: 99,
        };
        let got = run(&bond(&[1, 1]), &mut ticket, &[USABLE; 2], 2);
        assert_eq!(got, [Some((0, Choice::Wheel)), Some((1, Choice::Wheel))]);
        let mut ticket = Ticket {
            slot: 0,
            stand_in: 99,
        };
        assert_eq!(
            run(&bond(&[0, 0]), &mut ticket, &[0, USABLE], 1),
            [Some((1, Choice::StandIn))]
        );
    }

    fn flags() -> impl Strategy<Value = u32> {
        proptest::sample::select(
            &[
                0,
                USABLE,
                PATH_LAST_RESORT,
                PATH_LAST_RESORT | PATH_STALE,
                PATH_LAST_RESORT | PATH_STALE | PATH_LAPSED,
                PATH_LAST_RESORT | PATH_SPARE,
                PATH_LAST_RESORT | PATH_SPARE | PATH_STALE,
                PATH_STALE,
            ][..],
        )
    }

    /// Flags of all sixteen paths; those that a bond does not have have none.
    fn flags_of(paths: usize) -> impl Strategy<Value = [u32; 16]> {
        proptest::collection::vec(flags(), paths).prop_map(|some| {
            let mut all = [0; 16];
            all[..some.len()].copy_from_slice(&some);
            all
        })
    }

    proptest! {
        /// By an order, the best path is the first of the best kind.
        #[test]
        fn by_an_order_the_first_of_the_best_kind(
            order in Just((0..16).collect::<Vec<u32>>()).prop_shuffle(),
            flags in flags_of(16),
        ) {
            let kind = |path: u32| match flags[path as usize] {
                f if f & PATH_USABLE != 0 => 0,
                f if f & PATH_LAST_RESORT == 0 => 4,
                f if f & PATH_STALE == 0 => 1,
                f if f & PATH_LAPSED != 0 => 2,
                _ => 3,
            };
            let want = order.iter().copied().min_by_key(|&path| kind(path));
            let want = want.filter(|&path| kind(path) != 4).map(|path| {
                let choice = match kind(path) {
                    0 if path == order[0] => Choice::Wheel,
                    0 => Choice::StandIn,
                    _ => Choice::LastResort,
                };
                (path, choice)
            });
            let packed = order::pack(order.iter().copied());
            let by_order = by_order(packed, |path| flags[path as usize]);
            prop_assert_eq!(by_order, want);
        }

        /// Copies take the first of the usable paths, then of spare ones with a fresh proof, and only
        /// where none is usable others; whatever was noted before.
        #[test]
        fn copies_take_the_best_paths(
            order in Just((0..16).collect::<Vec<u32>>()).prop_shuffle(),
            flags in flags_of(16),
            most in 0..=17_u32,
            noted: u32,
        ) {
            let flags = |path: u32| flags[path as usize];
            let mut copies = Copies {
                order: u64::from(noted) << 7,
                count: noted,
                stand_ins: noted,
                last_resorts: noted,
                kind: noted,
                kinds: [Kind {
                    order: u64::from(noted),
                    count: noted.into(),
                }; Copies::KINDS],
            };
            copies.find(order::pack(order.iter().copied()), most, flags);
            let kind = |path: u32| {
                let spare = flags(path) & PATH_SPARE != 0;
                match (turns::rank(flags(path)), spare) {
                    (0, _) => 0,
                    (1, true) => 1,
                    (1, false) => 2,
                    (2 | 3, true) => 3,
                    (2 | 3, false) => 4,
                    _ => 5,
                }
            };
            let best = order.iter().map(|&path| kind(path)).min().unwrap();
            let kinds: &[u32] = match best {
                0 => &[0, 1],
                1 | 2 => &[1, 2],
                3 | 4 => &[3, 4],
                _ => &[],
            };
            let of_kind = |&due| order.iter().copied().filter(move |&path| kind(path) == due);
            let best: Vec<u32> = kinds.iter().flat_map(of_kind).take(most as usize).collect();
            let found: Vec<u32> = (0..copies.count)
                .map(|place| order::first(copies.order >> (4 * place)))
                .collect();
            prop_assert_eq!(&found, &best);
            for path in found {
                let place = order.iter().position(|&other| other == path).unwrap();
                let due = match kind(path) {
                    0 if place < most as usize => Choice::Wheel,
                    0 => Choice::StandIn,
                    _ => Choice::LastResort,
                };
                let choice = Copies::choice(copies.last_resorts, copies.stand_ins, path);
                prop_assert_eq!(choice, due);
            }
        }
    }

    #[test]
    fn a_flow_is_held_until_the_gap() {
        let flowlet = Flowlet {
            at_ns: 1_000,
            path: 3,
            reserved: 0,
        };
        assert_eq!(flowlet.held(1_000, 50), Some(3));
        assert_eq!(flowlet.held(1_049, 50), Some(3));
        assert_eq!(flowlet.held(1_050, 50), None);
        assert_eq!(flowlet.held(990, 50), Some(3), "another CPU was ahead");
        assert_eq!(Flowlet::default().held(1 << 40, 50), None);
    }
}
