//! In-order release, whatever numbers come on whatever path at whatever time.

#![no_main]

use std::collections::BTreeSet;

use arbitrary::Arbitrary;
use bytemuck::Zeroable as _;
use libfuzzer_sys::fuzz_target;
use netbond_common::{
    abi::MAX_BOND_PATHS,
    sequence::{Arrival, LONGEST_HOLD, STRANDS, Skew, Stamp, Strand},
};

#[derive(Arbitrary, Debug)]
struct Packet {
    /// Since the last one, in units of 2 to the power of `unit` ns.
    wait: u8,
    unit: u8,
    path: u32,
    number: Number,
    identification: u16,
}

#[derive(Arbitrary, Debug)]
enum Number {
    /// As far behind the last one, or ahead of it.
    Near(i8, bool),
    Far(i32, bool),
    /// A whole field of GRE.
    Field(u32),
}

/// Bits of a number.
const BITS: u32 = 26;

fuzz_target!(|input: (u32, Vec<Packet>)| {
    let (longest, packets) = input;
    let longest = u64::from(longest) % (LONGEST_HOLD + 1);
    let (mut strand, mut skew) = (Strand::zeroed(), Skew::zeroed());
    let mut seen = BTreeSet::new();
    let (mut now, mut last) = (1_u64 << 40, 0_u32);
    for (count, packet) in (1_u64..).zip(packets) {
        now += u64::from(packet.wait) << (packet.unit % 32);
        let stamp = match packet.number {
            Number::Near(step, copied) => {
                last = last.wrapping_add_signed(i32::from(step));
                Stamp::new(0, u64::from(last), 1).copied(copied)
            }
            Number::Far(step, copied) => {
                last = last.wrapping_add_signed(step);
                Stamp::new(0, u64::from(last), 1).copied(copied)
            }
            Number::Field(field) => Stamp::from_field(field.to_be_bytes()),
        };
        assert_eq!(Stamp::from_field(stamp.to_field()), stamp);
        assert!(stamp.strand < STRANDS);
        let number = strand.number(packet.path, stamp, packet.identification);
        assert!(number < 1 << BITS);
        let path = packet.path % MAX_BOND_PATHS;
        let arrival = strand.arrive(&mut skew, path, number, stamp.is_copied(), now, longest);
        match arrival {
            Arrival::Release(time) => {
                assert!(time >= now, "released in the past");
                assert!(time - now <= longest, "held for {} ns", time - now);
                seen.insert(number);
            }
            Arrival::Copy => assert!(
                stamp.is_copied() || seen.contains(&number),
                "{number} was never here, and has no copies"
            ),
        }
        assert!(skew.hold_ns <= longest);
        let counts = strand.counts;
        assert!(counts.came + counts.copies <= count);
        assert!(counts.came + counts.copies + counts.late >= count);
        assert!(counts.held <= counts.came);
        assert!(counts.lost() <= counts.expected);
    }
});
