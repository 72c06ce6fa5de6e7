//! In-order release: when a received packet may leave the bond, so that packets of a flow leave in the
//! order in which they entered it at the other end.
//!
//! Packets carry sequence numbers (RFC 2890). One that comes while earlier ones are still under way is
//! held until they can be expected to be here: for as long as packets of the slower paths were late in
//! the last second. Whoever holds it (fq, by departure times) cannot be told to let it go sooner, so
//! its release time is fixed when it comes. Release times never decrease along the sequence.
//!
//! A packet waits for nothing where every path in use has passed what is missing: paths keep the order,
//! so that is lost (the idea of RFC 1990, 4.1).
//!
//! Numbers also tell copies: a packet may be sent on several paths, and the first to come is released. What
//! came is known for the last [`KNOWN`] numbers. A copy from further behind is none the wiser, and is
//! dropped: the sender says which packets have copies, so that no other is ([`Strand::is_old`]).
//!
//! A bond has several [`Strand`]s, each with a sequence of its own, and a flow one of them by its hash: a
//! flow's loss holds up no other strand. How late the paths are is learned by all strands together
//! ([`Skew`]).

use bytemuck::{Pod, Zeroable};

use crate::abi::MAX_BOND_PATHS;

/// Strands of a bond, a power of two.
pub const STRANDS: u32 = 1 << STRAND_BITS;
const STRAND_BITS: u32 = 4;
/// Bits of a sequence number. Above them in GRE's field are two flags, and the strand.
const SEQUENCE_BITS: u32 = 26;
const SEQUENCE_MASK: u32 = (1 << SEQUENCE_BITS) - 1;
const STRAND_SHIFT: u32 = u32::BITS - STRAND_BITS;
/// The packet was one of several in a super-packet, all of which bear the same field.
const SEVERAL: u32 = 1 << SEQUENCE_BITS;
/// The packet was sent on other paths too.
const COPIED: u32 = 1 << (SEQUENCE_BITS + 1);
const _: () = assert!(COPIED << 1 == 1 << STRAND_SHIFT);

/// Packets of a strand that are remembered, a power of two.
pub const SLOTS: usize = 4096;
const WORDS: usize = SLOTS / 64;
/// How far behind the newest a packet is known again, and what is due is waited for. Less than there is room
/// for: the words of [`Strand::came`] in which the next packets will be noted are clear already. And how far
/// ahead of it one may come: further, and nothing that is remembered is of use.
pub const KNOWN: i32 = SLOTS as i32 - 128;
/// How far behind the newest a copy may come on a path whose queue is long.
const OLD: i32 = 1 << 20;
/// By how much a path's numbers may jump ahead there, as it loses what does not fit.
const JUMP: i32 = 1 << 15;
/// For so long after the last packet that was none such do copies from far behind on a path that goes on
/// where it was count as old, ns; and those on any path.
const DRAINS: u64 = 10_000_000_000;
const OVERTAKEN: u64 = 1_000_000_000;
/// So many packets in a row from far behind, and not old: the peer counts anew.
const STRAYS: u32 = 8;
/// Gaps that a packet closes at the most, because what is behind them is released by now. Each opens
/// one at the most, so that none is left for long.
const GAPS: u32 = 3;

/// So many later packets are asked how late one is.
const NEIGHBOURS: u32 = 4;

/// A path is in use as long as its last packet is no older, ns.
const IN_USE: u64 = 250_000_000;
/// Span in which the greatest lateness is sought, ns; that of the last and of the present one counts.
const WINDOW: u64 = 500_000_000;
/// What is added to it, ns: queues grow, and timers are late.
const MARGIN: u64 = 2_000_000;
/// No packet is held for longer, whatever is configured, ns: times in slots are 32 bits of ns.
pub const LONGEST_HOLD: u64 = 1_000_000_000;

/// In [`Strand::newest`], [`Strand::trail`] and [`Strand::last`]: there was one.
const PRESENT: u32 = 1 << 31;
/// In [`Strand::repeats`]: segments of this super-packet have identifications of their own.
const TOLD: u32 = 1 << 31;

/// What GRE's sequence number field says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// 0 to [`STRANDS`] - 1.
    pub strand: u32,
    /// Of the first packet of a super-packet, all of whose segments bear the same field.
    pub sequence: u32,
    /// [`SEVERAL`] where it is of a super-packet, and [`COPIED`] where it was sent on several paths.
    pub flags: u32,
}

impl Stamp {
    /// Of a packet that has none.
    pub const NONE: Self = Self {
        strand: 0,
        sequence: 0,
        flags: 0,
    };

    /// The stamp of a packet that stands for so many, whose strand has counted `count` before it.
    #[inline(always)]
    #[must_use]
    pub const fn new(strand: u32, count: u64, packets: u32) -> Self {
        Self {
            strand: strand & (STRANDS - 1),
            sequence: count as u32 & SEQUENCE_MASK,
            flags: (packets > 1) as u32 * SEVERAL,
        }
    }

    /// The same of a packet that is sent on several paths, if it is.
    #[inline(always)]
    #[must_use]
    pub const fn copied(self, copied: bool) -> Self {
        Self {
            flags: self.flags | (copied as u32 * COPIED),
            ..self
        }
    }

    /// Whether it was sent on other paths too.
    #[inline(always)]
    #[must_use]
    pub const fn is_copied(self) -> bool {
        self.flags & COPIED != 0
    }

    /// As GRE carries it, big-endian.
    #[inline(always)]
    #[must_use]
    pub const fn to_field(self) -> [u8; 4] {
        (self.strand << STRAND_SHIFT | self.flags | self.sequence).to_be_bytes()
    }

    /// From a GRE header.
    #[inline(always)]
    #[must_use]
    pub const fn from_field(field: [u8; 4]) -> Self {
        let field = u32::from_be_bytes(field);
        Self {
            strand: field >> STRAND_SHIFT,
            sequence: field & SEQUENCE_MASK,
            flags: field & (SEVERAL | COPIED),
        }
    }

    /// The outer header's identification: the kernel counts it up over the segments of a super-packet
    /// (`inet_gso_segment`), so that each of them can be told.
    ///
    /// IPv6 has none, and nothing else of its header that differs between segments (`ipv6_gso_segment`). Its
    /// flow label could say something of the super-packet, but must not: routers may choose among equal
    /// routes by it, and a path's packets would overtake each other. So the receiver takes this number for
    /// the identification of each, as if the kernel had left it as it was.
    #[inline(always)]
    #[must_use]
    pub const fn identification(self) -> u16 {
        // Strands apart: where packets may be fragmented no two at a time shall have the same.
        (self.sequence ^ self.strand << 12) as u16
    }

    /// Which segment of its super-packet has this identification; 0 where the kernel left it as it was
    /// (super-packets of senders that never change theirs).
    #[inline(always)]
    #[must_use]
    pub const fn segment(self, identification: u16) -> u32 {
        const MOST: u16 = 1024;
        let segment = identification.wrapping_sub(self.identification());
        if segment < MOST { segment as u32 } else { 0 }
    }
}

/// When a packet came and when it is released: low 32 bits of CLOCK_MONOTONIC, ns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Slot {
    came: u32,
    release: u32,
}

/// A sequence as its receiver sees it: an entry of `STRANDS`, by bond id * [`STRANDS`] + strand. Programs
/// write it, under `lock`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Strand {
    /// 1 while a program is at work on it.
    pub lock: u64,
    /// 0: nothing came yet.
    begun: u32,
    /// Number of the first packet that is still waited for.
    next: u32,
    /// One more than the highest number that came.
    end: u32,
    /// Packets in a row from far behind, and not old.
    strays: u32,
    /// When the last packet came that was not from far behind, ns.
    fresh_ns: u64,
    /// When the packet before `end` is released, ns.
    release_ns: u64,
    pub counts: Counts,
    /// By path of the bond: the highest number that came on it, with [`PRESENT`].
    newest: [u32; MAX_BOND_PATHS as usize],
    /// By path: the last number that came on it, with [`PRESENT`], whether or not the sequence began anew
    /// since.
    trail: [u32; MAX_BOND_PATHS as usize],
    /// By path: the sequence of the last stamp, with [`PRESENT`], and how often it was repeated by
    /// segments that cannot be told otherwise, or [`TOLD`].
    last: [u32; MAX_BOND_PATHS as usize],
    repeats: [u32; MAX_BOND_PATHS as usize],
    /// A bit for each of the last numbers: it came. Those from `end` on are 0.
    came: [u64; WORDS],
    /// By the low bits of the number.
    slots: [Slot; SLOTS],
}

/// What became of a strand's packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counts {
    /// Came while an earlier one was under way, and were held.
    pub held: u64,
    /// Came after later ones had been released: out of order all the same.
    pub late: u64,
    /// Numbers that were given out, and those of them that came: the others are lost, or under way.
    pub expected: u64,
    pub came: u64,
    /// Came more than once, or were copies from too far behind to tell.
    pub copies: u64,
    /// Times that the sequence began anew.
    pub begun: u64,
}

/// How late paths are behind each other: an entry of `SKEWS`, by bond id. Programs write it, with no
/// lock: what a race loses is learned again from the next packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Skew {
    /// For how long packets are held now, ns.
    pub hold_ns: u64,
    /// When the present window began.
    began_ns: u64,
    /// The greatest lateness in it and in the one before, ns.
    worst_ns: u64,
    before_ns: u64,
    /// By path of the bond: when its last packet came.
    seen_ns: [u64; MAX_BOND_PATHS as usize],
}

/// What becomes of a packet that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It leaves at this time, ns; at once where that is now.
    Release(u64),
    /// It was here before, or is a copy of one that was, for all that can be known.
    Copy,
}

/// By how much `a` is ahead of `b`, modulo the sequence's length.
#[inline(always)]
const fn ahead(a: u32, b: u32) -> i32 {
    const UNUSED: u32 = u32::BITS - SEQUENCE_BITS;
    (a.wrapping_sub(b) << UNUSED) as i32 >> UNUSED
}

#[inline(always)]
const fn plus(a: u32, b: u32) -> u32 {
    a.wrapping_add(b) & SEQUENCE_MASK
}

/// How long from `now` until a time of which 32 bits are known, ns; 0 where it is past.
#[inline(always)]
const fn until(low: u32, now: u64) -> u64 {
    let left = low.wrapping_sub(now as u32) as u64;
    // Beyond that it is one of a turn of the clock before.
    if left > LONGEST_HOLD { 0 } else { left }
}

impl Counts {
    /// Packets that never came; a few may still be under way.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.came)
    }
}

impl Skew {
    #[inline(always)]
    fn roll(&mut self, now: u64, longest: u64) {
        let age = now.saturating_sub(self.began_ns);
        if age < WINDOW {
            return;
        }
        self.before_ns = if age < 3 * WINDOW { self.worst_ns } else { 0 };
        self.worst_ns = 0;
        self.began_ns = now;
        self.hold_ns = hold(self.before_ns, longest);
    }

    #[inline(always)]
    fn learn(&mut self, lateness: u64, now: u64, longest: u64) {
        self.roll(now, longest);
        if lateness > self.worst_ns {
            self.worst_ns = lateness;
        }
        let hold = hold(lateness, longest);
        if hold > self.hold_ns {
            self.hold_ns = hold;
        }
    }
}

#[inline(always)]
const fn hold(lateness: u64, longest: u64) -> u64 {
    let hold = lateness + MARGIN;
    if lateness == 0 {
        0
    } else if hold > longest {
        longest
    } else {
        hold
    }
}

impl Strand {
    /// The number of the packet with this stamp that came on `path` in a packet of this identification.
    ///
    /// Segments of a super-packet are told by it. Where the kernel left it as it was, all of them seem to be
    /// the first one, and are counted: so what a path loses of them is taken for the last ones.
    #[inline(always)]
    pub fn number(&mut self, path: u32, stamp: Stamp, identification: u16) -> u32 {
        if stamp.flags & SEVERAL == 0 {
            return stamp.sequence;
        }
        let path = path as usize & (MAX_BOND_PATHS as usize - 1);
        let segment = stamp.segment(identification);
        let tag = PRESENT | stamp.sequence;
        let same = self.last[path] == tag;
        self.last[path] = tag;
        if segment != 0 {
            self.repeats[path] = TOLD;
            return plus(stamp.sequence, segment);
        }
        if !same {
            self.repeats[path] = 0;
            return stamp.sequence;
        }
        if self.repeats[path] & TOLD != 0 {
            return stamp.sequence;
        }
        self.repeats[path] += 1;
        plus(stamp.sequence, self.repeats[path])
    }

    /// Notes the packet with this number that came on `path` (counted from 0 within the bond) at `now`
    /// (CLOCK_MONOTONIC, ns), and says when it leaves. No packet is held for more than `longest` ns.
    /// `copied`: it was sent on other paths too.
    #[inline(always)]
    pub fn arrive(
        &mut self,
        skew: &mut Skew,
        path: u32,
        number: u32,
        copied: bool,
        now: u64,
        longest: u64,
    ) -> Arrival {
        let path = path as usize & (MAX_BOND_PATHS as usize - 1);
        skew.seen_ns[path] = now;
        let distance = ahead(number, self.end);
        if distance < -KNOWN && self.begun != 0 {
            if copied && self.is_old(path, number, now) {
                // Nothing else makes a trail: a peer that counts anew is followed after a second.
                if self.goes_on(path, number) {
                    self.trail[path] = PRESENT | number;
                }
                self.counts.copies += 1;
                return Arrival::Copy;
            }
            self.strays += 1;
            if self.strays < STRAYS {
                self.counts.late += 1;
                return Arrival::Release(now);
            }
        }
        if self.begun == 0 || !(-KNOWN..KNOWN).contains(&distance) {
            self.begin(number);
        } else if ahead(number, self.next) >= KNOWN {
            // What is further back is not remembered.
            self.next = plus(number, SEQUENCE_MASK - KNOWN as u32 + 2);
        }
        self.trail[path] = PRESENT | number;
        self.strays = 0;
        self.fresh_ns = now;

        let newest = self.newest[path];
        if newest & PRESENT == 0 || ahead(number, newest) > 0 {
            self.newest[path] = PRESENT | number;
        }
        let newer = ahead(number, self.end) >= 0;
        if !newer && self.has(number) {
            self.counts.copies += 1;
            return Arrival::Copy;
        }
        self.counts.came += 1;
        self.advance(skew, number, now);
        let release = if newer {
            self.release_newest(skew, number, now, longest)
        } else {
            self.release_late(skew, number, now, longest)
        };
        if release > now && longest != 0 {
            self.counts.held += 1;
        }
        self.came[word(number)] |= 1 << (number & 63);
        self.slots[number as usize & (SLOTS - 1)] = Slot {
            came: now as u32,
            release: release as u32,
        };
        Arrival::Release(release)
    }

    /// Whether a copy from further behind than is known is of the present sequence, and not of a peer that
    /// counts anew. It is where others left it behind just now; and where its path goes on from its trail, as
    /// one does that empties its queue after the others failed.
    ///
    /// A peer that counts anew begins at any number. So it is not taken for that but by a rare chance, and
    /// then not for longer than [`DRAINS`].
    #[inline(always)]
    fn is_old(&self, path: usize, number: u32, now: u64) -> bool {
        let silence = now.saturating_sub(self.fresh_ns);
        let drains = self.goes_on(path, number) && silence < DRAINS;
        ahead(self.end, number) < OLD && (silence < OVERTAKEN || drains)
    }

    /// Whether a path's numbers go on from the last one.
    #[inline(always)]
    fn goes_on(&self, path: usize, number: u32) -> bool {
        let trail = self.trail[path];
        trail & PRESENT != 0 && (-KNOWN..JUMP).contains(&ahead(number, trail))
    }

    /// Begins anew: what was before this number is not waited for. Release times go on.
    #[inline(always)]
    fn begin(&mut self, number: u32) {
        self.counts.begun += self.begun as u64;
        self.begun = 1;
        self.next = number;
        self.end = number;
        for newest in &mut self.newest {
            *newest = 0;
        }
        for came in &mut self.came {
            *came = 0;
        }
    }

    /// Whether this number came: one of those that are remembered, and less than `end`.
    #[inline(always)]
    fn has(&self, number: u32) -> bool {
        self.came[word(number)] >> (number & 63) & 1 != 0
    }

    /// The first number from `from` on that came, or did not, as `wanted` says; of the next 65 to 128.
    /// True where it is that, false where all of these are otherwise: then the number after them.
    #[inline(always)]
    fn first(&self, from: u32, wanted: bool) -> (bool, u32) {
        let flip = if wanted { 0 } else { u64::MAX };
        let here = (self.came[word(from)] ^ flip) >> (from & 63);
        if here != 0 {
            return (true, plus(from, here.trailing_zeros()));
        }
        let from = plus(from | 63, 1);
        let there = self.came[word(from)] ^ flip;
        if there != 0 {
            return (true, plus(from, there.trailing_zeros()));
        }
        (false, plus(from, 64))
    }

    /// Moves `next` over what has come before this number, and over what is given up: because it was
    /// passed on every path in use, or because a later packet is released by now.
    #[inline(always)]
    fn advance(&mut self, skew: &Skew, number: u32, now: u64) {
        let bound = if ahead(number, self.end) > 0 {
            number
        } else {
            self.end
        };
        let mut next = self.next;
        if next == bound {
            return;
        }
        next = self.passed(skew, bound, now);
        for _ in 0..GAPS {
            (_, next) = self.first(next, false);
            if ahead(next, bound) >= 0 {
                break;
            }
            let (found, later) = self.first(next, true);
            if !found || until(self.slots[later as usize & (SLOTS - 1)].release, now) != 0 {
                break;
            }
            next = later;
        }
        self.next = if ahead(next, bound) > 0 { bound } else { next };
    }

    /// The number up to which every path in use has passed: what is before it comes no more. `next`
    /// where there is nothing of that kind; `bound` at the most.
    #[inline(always)]
    fn passed(&self, skew: &Skew, bound: u32, now: u64) -> u32 {
        let mut least = ahead(bound, self.next);
        for path in 0..MAX_BOND_PATHS as usize {
            if now.saturating_sub(skew.seen_ns[path]) > IN_USE {
                continue;
            }
            let newest = self.newest[path];
            let passed = if newest & PRESENT == 0 {
                0
            } else {
                ahead(newest, self.next) + 1
            };
            if passed < least {
                least = passed;
            }
        }
        if least > 0 {
            plus(self.next, least as u32)
        } else {
            self.next
        }
    }

    /// The release of a packet beyond all that came before.
    #[inline(always)]
    fn release_newest(&mut self, skew: &mut Skew, number: u32, now: u64, longest: u64) -> u64 {
        let beyond = ahead(number, self.end) as u32;
        // Room for those between, which will be released before it.
        let mut release = if self.release_ns > now {
            self.release_ns + u64::from(beyond) + 1
        } else {
            now
        };
        if number != self.next {
            skew.roll(now, longest);
            let wait = now + skew.hold_ns;
            if wait > release {
                release = wait;
            }
        }
        // The bits from the end on were those of numbers long past. Those of the next word too, which is
        // looked at where nothing is found in this one.
        let fresh = ((self.end & 63) + beyond + 1) / 64;
        for step in 1..=WORDS as u32 {
            if step > fresh {
                break;
            }
            self.came[word(self.end + (step + 1) * 64)] = 0;
        }
        self.counts.expected += u64::from(beyond) + 1;
        self.end = plus(number, 1);
        self.release_ns = release;
        release
    }

    /// The release of a packet that comes after later ones.
    #[inline(always)]
    fn release_late(&mut self, skew: &mut Skew, number: u32, now: u64, longest: u64) -> u64 {
        let (found, later) = self.first(plus(number, 1), true);
        if !found {
            self.counts.late += 1;
            return now;
        }
        let room = ahead(later, number) as u64;
        let lateness = self.lateness(later, now);
        let later = self.slots[later as usize & (SLOTS - 1)];
        // To wait for what is later than that would hold everything up and help nothing.
        if lateness <= longest {
            skew.learn(lateness, now, longest);
        }
        let later = until(later.release, now);
        if later == 0 {
            self.counts.late += 1;
            return now;
        }
        let earlier = plus(number, SEQUENCE_MASK);
        if ahead(number, self.next) <= 0 && self.has(earlier) {
            // All before it are released, or will be at this time.
            let earlier = until(self.slots[earlier as usize & (SLOTS - 1)].release, now);
            return if earlier == 0 { now } else { now + earlier + 1 };
        }
        now + later.saturating_sub(room)
    }
}

impl Strand {
    /// How long ago the first of the next numbers came, from `later` on, which did; ns. The very next one
    /// may be of a slow path, too.
    #[inline(always)]
    fn lateness(&self, later: u32, now: u64) -> u64 {
        let mut number = later;
        let mut longest = 0;
        for _ in 0..NEIGHBOURS {
            let came = self.slots[number as usize & (SLOTS - 1)].came;
            let ago = (now as u32).wrapping_sub(came);
            if ago > longest {
                longest = ago;
            }
            let (found, next) = self.first(plus(number, 1), true);
            if !found {
                break;
            }
            number = next;
        }
        u64::from(longest)
    }
}

/// Where a number's bit is.
#[inline(always)]
const fn word(number: u32) -> usize {
    (number as usize / 64) & (WORDS - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wheel;

    const MS: u64 = 1_000_000;
    const LONGEST: u64 = 100 * MS;

    /// A receiver, and what it released: (number, release).
    struct Receiver {
        strand: Box<Strand>,
        skew: Skew,
        released: Vec<(u64, u64)>,
        copied: bool,
        longest: u64,
    }

    impl Receiver {
        fn new() -> Self {
            Self {
                strand: Box::new(Strand::zeroed()),
                skew: Skew::zeroed(),
                released: Vec::new(),
                copied: false,
                longest: LONGEST,
            }
        }

        /// Of a peer that sends each packet on several paths.
        fn of_copies(longest: u64) -> Self {
            Self {
                copied: true,
                longest,
                ..Self::new()
            }
        }

        /// How often each number was released.
        fn times(&self) -> std::collections::BTreeMap<u64, u32> {
            let mut times = std::collections::BTreeMap::new();
            for &(number, _) in &self.released {
                *times.entry(number).or_default() += 1;
            }
            times
        }

        fn arrive(&mut self, path: u32, number: u64, now: u64) -> Arrival {
            let wire = number as u32 & SEQUENCE_MASK;
            let (copied, longest) = (self.copied, self.longest);
            let arrival = self
                .strand
                .arrive(&mut self.skew, path, wire, copied, now, longest);
            if let Arrival::Release(at) = arrival {
                assert!((now..=now + longest + SLOTS as u64).contains(&at));
                self.released.push((number, at));
            }
            arrival
        }

        /// Packets that are released after one with a higher number.
        fn out_of_order(&self) -> usize {
            let mut order = self.released.clone();
            order.sort_by_key(|&(_, at)| at);
            let mut highest = 0;
            order
                .iter()
                .filter(|&&(number, _)| {
                    let late = number < highest;
                    highest = highest.max(number);
                    late
                })
                .count()
        }
    }

    /// Packets sent at (time, path), as they come: (time, path, number). A path keeps its order.
    fn carried(
        sent: &[(u64, u32)],
        first: u64,
        delay: impl Fn(u64, u32) -> Option<u64>,
    ) -> Vec<(u64, u32, u64)> {
        let mut free = [0; 16];
        let mut came: Vec<_> = sent
            .iter()
            .enumerate()
            .filter_map(|(i, &(at, path))| {
                let number = first + i as u64;
                let at = (at + delay(number, path)?).max(free[path as usize]);
                free[path as usize] = at + 1;
                Some((at, path, number))
            })
            .collect();
        came.sort_unstable();
        came
    }

    /// `n` packets, one each `gap` ns, over `paths` in turn.
    fn in_turn(n: u64, gap: u64, paths: u32) -> Vec<(u64, u32)> {
        (0..n)
            .map(|i| (1_000 * MS + i * gap, (i % u64::from(paths)) as u32))
            .collect()
    }

    fn receive(came: &[(u64, u32, u64)]) -> Receiver {
        let mut receiver = Receiver::new();
        for &(at, path, number) in came {
            receiver.arrive(path, number, at);
        }
        receiver
    }

    #[test]
    fn a_stamp_is_read_back_and_names_its_segments() {
        for (packets, copied) in [(1, false), (1, true), (2, false), (43, true)] {
            let stamp = Stamp::new(9, u64::MAX, packets).copied(copied);
            assert_eq!((stamp.strand, stamp.sequence), (9, SEQUENCE_MASK));
            assert_eq!(Stamp::from_field(stamp.to_field()), stamp);
            assert_eq!(stamp.is_copied(), copied);
        }
        let stamp = Stamp::new(9, u64::MAX, 43);
        let id = stamp.identification();
        assert_eq!(stamp.segment(id), 0);
        assert_eq!(stamp.segment(id.wrapping_add(43)), 43);
        assert_eq!(stamp.segment(id.wrapping_sub(1)), 0, "somebody else's");
    }

    #[test]
    fn segments_count_whether_they_can_be_told_or_not() {
        let mut strand: Box<Strand> = Box::new(Strand::zeroed());
        let stamp = Stamp::new(1, 70, 4);
        let id = stamp.identification();
        let told: Vec<u32> = [0, 1, 3].map(|n| strand.number(0, stamp, id + n)).to_vec();
        assert_eq!(told, [70, 71, 73]);
        // In any order, and more than once.
        let told: Vec<u32> = [2, 0, 0, 2]
            .map(|n| strand.number(0, stamp, id + n))
            .to_vec();
        assert_eq!(told, [72, 70, 70, 72]);
        // Path 1 has not seen it; these all have the first's.
        let repeated: Vec<u32> = (0..3).map(|_| strand.number(1, stamp, id)).collect();
        assert_eq!(repeated, [70, 71, 72]);
    }

    /// A packet by itself is what it says, however often it comes and whatever became of its
    /// identification on the way.
    #[test]
    fn a_packet_by_itself_has_one_number() {
        let mut strand: Box<Strand> = Box::new(Strand::zeroed());
        let stamp = Stamp::new(1, 70, 1);
        let id = stamp.identification();
        for other in [0, 0, 1, 500] {
            assert_eq!(strand.number(0, stamp, id + other), 70);
        }
    }

    #[test]
    fn what_comes_in_order_is_never_held() {
        let receiver = receive(&carried(&in_turn(1_000, MS, 2), 7, |_, _| Some(10 * MS)));
        let counts = receiver.strand.counts;
        assert_eq!((counts.held, counts.late, counts.lost()), (0, 0, 0));
        assert_eq!(receiver.out_of_order(), 0);
    }

    /// A slot is used again and again: what was in it before is forgotten in time.
    #[test]
    fn long_sequences_have_no_copies() {
        for (lost, slow) in [(0, 10 * MS), (7, 25 * MS), (90, 60 * MS)] {
            let sent = in_turn(30_000, MS / 4, 2);
            let came = carried(&sent, 77, |number, path| {
                let gone = lost != 0 && number % 100 < lost;
                (!gone).then_some(if path == 0 { 10 * MS } else { slow })
            });
            let receiver = receive(&came);
            assert_eq!(receiver.released.len(), came.len());
            assert_eq!(receiver.strand.counts.copies, 0);
        }
    }

    /// Also over the end of the numbers, and whatever the difference.
    #[test]
    fn unlike_delays_are_ordered_after_the_first_packets() {
        for (slow, gap) in [(25 * MS, MS), (6 * MS, MS / 20), (80 * MS, 2 * MS)] {
            for paths in [2, 3] {
                let first = (1 << SEQUENCE_BITS) - 300;
                let came = carried(&in_turn(4_000, gap, paths), first, |_, path| {
                    Some(if path == 1 { slow } else { 5 * MS })
                });
                let receiver = receive(&came);
                let counts = receiver.strand.counts;
                let skew = slow - 5 * MS;
                assert!(receiver.skew.hold_ns.abs_diff(skew + MARGIN) <= gap * 3);
                assert!(counts.late <= 2 * skew / gap, "{counts:?}");
                assert_eq!(counts.lost(), 0);
                assert_eq!(receiver.out_of_order() as u64, counts.late);
                let tail = Receiver {
                    released: receiver.released[2_500..].to_vec(),
                    ..receiver
                };
                assert_eq!(tail.out_of_order(), 0);
            }
        }
    }

    /// Paths of unlike rates, each by its share: what a slow one takes for a packet is waited for.
    #[test]
    fn unlike_rates_are_ordered() {
        let (mut weights, mut slots) = ([0; 16], [0; 256]);
        weights[..3].copy_from_slice(&[10, 5, 1]);
        let turns = wheel::build(&weights, &mut slots);
        // What a packet takes on each path, 16 of them in all where 14.4 are sent.
        let service = [MS, 2 * MS, 10 * MS];
        let mut free = [0; 3];
        let mut came = Vec::new();
        for number in 0..8_000_u64 {
            let (at, path) = (
                1_000 * MS + number * MS * 10 / 144,
                slots[number as usize % turns],
            );
            let free = &mut free[path as usize];
            *free = (*free).max(at) + service[path as usize] / 10;
            came.push((*free, u32::from(path), number));
        }
        came.sort_unstable();
        let receiver = receive(&came);
        let late = receiver.strand.counts.late;
        assert!(late < 40, "{late} of {}", came.len());
    }

    /// A loss on the fast path is known when the slow one has passed it, one on the slow path costs
    /// the packets behind it what the slow path would have cost them.
    #[test]
    fn losses_are_counted_and_cost_no_more_than_the_slow_path() {
        let delay = |path| if path == 1 { 25 * MS } else { 5 * MS };
        let lost = |number: u64| number % 50 == 20 || number % 50 == 31;
        let sent = in_turn(4_000, MS, 2);
        let came = carried(&sent, 0, |number, path| {
            (!lost(number)).then(|| delay(path))
        });
        let receiver = receive(&came);
        assert_eq!(receiver.strand.counts.lost(), 160);
        for &(number, at) in &receiver.released[1_000..] {
            let sent = sent[number as usize].0;
            assert!(
                at <= sent + 25 * MS + MARGIN + MS,
                "{number}: {}",
                at - sent
            );
        }
        let tail = Receiver {
            released: receiver.released[1_000..].to_vec(),
            ..receiver
        };
        assert_eq!(tail.out_of_order(), 0);
    }

    /// From the moment when the other path is known to be silent, nothing waits for it.
    #[test]
    fn a_dead_path_is_not_waited_for() {
        let sent = in_turn(4_000, MS, 2);
        let died = 2_000;
        let came = carried(&sent, 0, |number, path| match path {
            1 if number >= died => None,
            1 => Some(25 * MS),
            _ => Some(5 * MS),
        });
        let receiver = receive(&came);
        let held = |&&(number, at): &&(u64, u64)| at > sent[number as usize].0 + 5 * MS;
        let last = receiver
            .released
            .iter()
            .filter(held)
            .map(|&(number, _)| number);
        let last = last.max().unwrap();
        assert!(last < died + IN_USE / MS + 40, "{last}");
        assert!(receiver.strand.counts.late <= 10, "more than of the start");
    }

    #[test]
    fn copies_are_known() {
        let mut receiver = Receiver::new();
        for number in 0..100 {
            let now = 1_000 * MS + number * MS;
            assert_ne!(receiver.arrive(0, number, now), Arrival::Copy);
            assert_eq!(receiver.arrive(1, number, now + MS / 2), Arrival::Copy);
        }
        assert_eq!(receiver.arrive(1, 3, 1_200 * MS), Arrival::Copy);
        assert_eq!(receiver.strand.counts.copies, 101);
        assert_eq!(receiver.out_of_order(), 0);
    }

    /// Packets that are sent on all paths at once, one each `gap` ns, as they come: (time, path, number).
    /// `delay` says for how long each path holds one, `None` where it is lost; a path keeps its order.
    fn copied(
        n: u64,
        first: u64,
        gap: u64,
        paths: u32,
        delay: impl Fn(u64, u32) -> Option<u64>,
    ) -> Vec<(u64, u32, u64)> {
        let mut came = Vec::new();
        for path in 0..paths {
            let mut free = 0;
            for i in 0..n {
                let sent = 20_000 * MS + i * gap;
                if let Some(delay) = delay(i, path) {
                    free = (sent + delay).max(free + 1);
                    came.push((free, path, first + i));
                }
            }
        }
        came.sort_unstable();
        came
    }

    /// Copies on a slow path, further behind than anything is remembered: also at the beginning, after the
    /// path was idle, and as its queue runs empty when the fast one has failed.
    #[test]
    fn copies_from_far_behind_are_old() {
        for longest in [0, LONGEST] {
            let first = (1 << SEQUENCE_BITS) - 7_000;
            let came = copied(60_000, first, MS / 20, 2, |number, path| {
                match (path, number) {
                    // 2,000 packets a second pass, and 400 ms of them wait.
                    (1, 20_000..50_000) if number % 10 == 0 => Some(400 * MS),
                    (1, 20_000..50_000) => None,
                    // 10,000 packets behind.
                    (1, _) => Some(500 * MS),
                    (_, 30_000..31_500) => None,
                    (_, 58_000..) => None,
                    _ => Some(5 * MS),
                }
            });
            let mut receiver = Receiver::of_copies(longest);
            for (at, path, number) in came {
                receiver.arrive(path, number, at);
            }
            assert_eq!(receiver.strand.counts.begun, 0);
            let times = receiver.times();
            assert!(times.values().all(|&times| times == 1));
            let on_fast = |i| !(30_000..31_500).contains(&i) && i < 58_000;
            for i in (0..60_000).filter(|&i| on_fast(i)) {
                assert!(times.contains_key(&(first + i)), "{i}");
            }
            // What the slow path alone had is there as soon as it is no longer behind the rest.
            assert!((58_000..60_000).all(|i| times.contains_key(&(first + i))));
        }
    }

    /// No path is told from another by a peer that counts anew; all that it sends is released but once.
    #[test]
    fn copies_of_a_peer_that_counts_anew() {
        for (next, silence) in [
            (5_000_000, MS),
            (50_000_000, MS),
            (29_990_000, 2_000 * MS),
            (29_990_000, 11_000 * MS),
        ] {
            let mut receiver = Receiver::of_copies(0);
            let slow = |_, path: u32| Some(if path == 1 { 30 * MS } else { 5 * MS });
            let before = copied(10_000, 30_000_000, MS / 10, 2, slow);
            let end = before.last().unwrap().0;
            for (at, path, number) in before {
                receiver.arrive(path, number, at);
            }
            for (at, path, number) in copied(10_000, next, MS / 10, 2, slow) {
                receiver.arrive(path, number, at + end + silence);
            }
            let times = receiver.times();
            assert!((0..10_000).all(|i| times.contains_key(&(next + i))));
            let twice = times.values().filter(|&&times| times > 1).count();
            assert!(twice <= STRAYS as usize, "{next}: {twice}");
        }
    }

    #[test]
    fn a_peer_that_counts_anew_is_followed() {
        for next in [5_000_000, 200_000_000] {
            let mut receiver = Receiver::new();
            let mut now = 1_000 * MS;
            for number in (100_000_000..100_001_000).chain(next..next + 1_000) {
                now += MS;
                assert_eq!(receiver.arrive(0, number, now), Arrival::Release(now));
            }
            assert_eq!(receiver.strand.counts.begun, 1);
            assert!(receiver.strand.counts.late < u64::from(STRAYS));
        }
    }

    proptest! {
        /// Whatever paths lose and delay: what comes on any of them is released once.
        #[test]
        fn copies_are_released_once(
            first in 0..1_u64 << SEQUENCE_BITS,
            gap in MS / 20..MS,
            paths in proptest::collection::vec((0..80 * MS, 0..40 * MS, 0..=100_u64), 1..=5),
            bursts in proptest::collection::vec((0..5_u32, 0..6_000_u64, 1..5_000_u64), 0..6),
            ordered: bool,
            seed: u64,
        ) {
            let random = |number: u64, path: u32, what: u64| {
                let mixed = number << 8 | u64::from(path) << 4 | what;
                (mixed ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
                    .wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33
            };
            let came = copied(6_000, first, gap, paths.len() as u32, |number, path| {
                let (delay, jitter, loss) = paths[path as usize];
                let burst = |&(of, from, len): &(u32, u64, u64)| {
                    of == path && (from..from + len).contains(&number)
                };
                let lost = random(number, path, 0) % 100 < loss || bursts.iter().any(burst);
                (!lost).then(|| delay + random(number, path, 1) % (jitter + 1))
            });
            let mut receiver = Receiver::of_copies(if ordered { LONGEST } else { 0 });
            let mut all = std::collections::BTreeSet::new();
            for (at, path, number) in came {
                receiver.arrive(path, number, at);
                all.insert(number);
            }
            let times = receiver.times();
            prop_assert!(times.values().all(|&times| times == 1));
            prop_assert!(all.iter().eq(times.keys()));
            prop_assert_eq!(receiver.strand.counts.came, all.len() as u64);
        }

        /// The same of super-packets, whichever of their segments are lost, and in whatever order a path
        /// delivers them.
        #[test]
        fn segments_are_released_once(
            lens in proptest::collection::vec(1..=44_u32, 1..200),
            order in proptest::collection::vec((0..3_u32, 0..6_u64, 0..4_u32), 1..400),
        ) {
            let mut came = Vec::new();
            let mut number = 77_777_u32;
            for (i, &len) in lens.iter().enumerate() {
                let stamp = Stamp::new(3, number.into(), len).copied(true);
                for segment in 0..len {
                    for path in 0..3 {
                        let (of, shift, lost) = order[(i * 50 + segment as usize) % order.len()];
                        if of == path && lost != 0 {
                            continue;
                        }
                        let id = stamp.identification().wrapping_add(segment as u16);
                        let at = u64::from(number + segment) * 4 + shift * u64::from(path);
                        came.push((at, path, stamp, id, number + segment));
                    }
                }
                number += len;
            }
            came.sort_by_key(|&(at, path, ..)| (at, path));
            let mut receiver = Receiver::of_copies(0);
            let mut all = std::collections::BTreeSet::new();
            for (at, path, stamp, id, number) in came {
                let told = receiver.strand.number(path, stamp, id);
                prop_assert_eq!(told, number);
                receiver.arrive(path, told.into(), 20_000 * MS + at);
                all.insert(u64::from(number));
            }
            let times = receiver.times();
            prop_assert!(times.values().all(|&times| times == 1));
            prop_assert!(all.iter().eq(times.keys()));
        }

        /// Whatever comes whenever: no packet leaves after a later one that it could have preceded,
        /// but those counted, and nothing is held longer than allowed (`arrive` above asserts it).
        #[test]
        fn release_times_follow_the_sequence(
            packets in proptest::collection::vec((0..4_u32, 0..40_u64, 0..30 * MS), 1..600),
        ) {
            let mut now = 10_000 * MS;
            let mut receiver = Receiver::new();
            let mut number = 1_000_000;
            for (path, back, wait) in packets {
                now += wait / 8;
                number += 7;
                receiver.arrive(path, number - back, now);
            }
            let late = receiver.strand.counts.late as usize;
            prop_assert!(receiver.out_of_order() <= late, "{} {}", receiver.out_of_order(), late);
        }
    }
}
