//! Sequence numbers and in-order release, by the programs in this kernel.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use bytemuck::Zeroable as _;
use common::{
    BOND, Kernel, Ran, TC_ACT_REDIRECT, TC_ACT_SHOT, Wrap, ipv4_frame, ipv6_frame, path_id,
};
use netbond::tables::{Raw, Tables};
use netbond_common::{
    abi::{BOND_IN_ORDER, BOND_NUMBERED, BOND_SHARES, Bond, Lane, SHARES_EQUAL},
    names::{Mode, feature, program},
    sequence::{Counts, STRANDS, Stamp, Strand},
    turns,
};

/// A kernel with a bond of two paths that keeps the order.
fn kernel(key: Option<u32>) -> Kernel {
    let mut kernel = Kernel::with_features(&[1, 1], key, feature::NUMBERED);
    let bond = kernel.bond();
    kernel.set_bond(&Bond {
        flags: BOND_NUMBERED | BOND_IN_ORDER,
        release_ifindex: bond.ifindex,
        longest_hold_ns: 100_000_000,
        ..bond
    });
    let lane = Lane {
        mode: Mode::RoundRobin as u32,
        shares: SHARES_EQUAL,
        ..Lane::zeroed()
    };
    kernel.tables.lanes.set(BOND, Raw(lane), 0).unwrap();
    let mut weights = [0; 16];
    weights[..2].fill(1);
    let (index, shares) = (BOND * BOND_SHARES + SHARES_EQUAL, turns::shares(&weights));
    kernel.tables.shares.set(index, Raw(shares), 0).unwrap();
    for strand in Tables::strand_ids(BOND) {
        let empty = Raw(Strand::zeroed());
        kernel.tables.strands.insert(strand, empty, 0).unwrap();
    }
    kernel
}

/// The stamp of a frame that left.
fn stamp(frame: &[u8], key: Option<u32>) -> Stamp {
    let gre = &frame[34..];
    let (flags, at) = match key {
        None => (0x10, 4),
        Some(_) => (0x30, 8),
    };
    assert_eq!(gre[..2], [flags, 0]);
    Stamp::from_field(gre[at..at + 4].try_into().unwrap())
}

/// Receives a packet with a stamp on a path.
fn receive(kernel: &mut Kernel, path: u32, stamp: Stamp) -> Ran {
    let mut wrap = Wrap::on(path);
    wrap.gre_flags = 0x1000;
    wrap.gre_fields = stamp.to_field().to_vec();
    let mut frame = wrap.frame(&ipv4_frame(100));
    // The checksum of the outer header is the kernel's matter, and was checked.
    frame[18..20].copy_from_slice(&stamp.identification().to_be_bytes());
    kernel.run(program::INGRESS_L2_ORDER, &frame, None)
}

fn counts(kernel: &Kernel) -> Counts {
    kernel.tables.order(BOND).unwrap()
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn packets_of_a_flow_are_numbered() {
    for key in [None, Some(7)] {
        let mut kernel = kernel(key);
        let first = stamp(&kernel.egress(&ipv4_frame(100)).frame, key);
        assert!(first.strand < STRANDS);
        for step in 1..5 {
            // Another flow between them takes no number of this one's, unless it shares the strand.
            let other = stamp(&kernel.egress(&ipv6_frame(100)).frame, key);
            assert_ne!(other.strand, first.strand, "choose other test packets");
            let ran = kernel.egress(&ipv4_frame(100));
            assert_eq!(ran.action, TC_ACT_REDIRECT);
            let next = stamp(&ran.frame, key);
            assert_eq!(next.strand, first.strand);
            assert_eq!(next.sequence, first.sequence + step);
            assert_eq!(ran.frame[18..20], next.identification().to_be_bytes());
        }
        assert_eq!(kernel.sent(2), [5, 4]);
    }
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_number_is_received_once() {
    let mut kernel = kernel(None);
    for number in 0..3 {
        let stamp = Stamp::new(5, number, 1);
        assert_eq!(receive(&mut kernel, 0, stamp).action, TC_ACT_REDIRECT);
        assert_eq!(receive(&mut kernel, 1, stamp).action, TC_ACT_SHOT);
    }
    // The path carried them: the peer must not take them for lost.
    assert_eq!(kernel.fates(), []);
    let stats = [0, 1].map(|slot| kernel.tables.path_stats(path_id(slot)).unwrap());
    assert_eq!(stats[1].rx_copies, 3);
    assert_eq!(stats[0].rx_copies, 0);
    let received = stats.map(|stats| (stats.rx_packets, stats.rx_bytes));
    assert_eq!(received, [(3, 300); 2]);
    let Counts {
        came, copies, held, ..
    } = counts(&kernel);
    assert_eq!((came, copies, held), (3, 3, 0));
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn what_comes_early_is_held_once_the_lateness_is_known() {
    let mut kernel = kernel(None);
    let stamp = |number| Stamp::new(5, number, 1);
    // 1 is late on the other path: how much, is known from then on.
    for (path, number) in [(0, 0), (0, 2), (1, 1)] {
        receive(&mut kernel, path, stamp(number));
    }
    assert_eq!((counts(&kernel).held, counts(&kernel).late), (0, 1));
    receive(&mut kernel, 0, stamp(4));
    assert_eq!(counts(&kernel).held, 1, "3 may still come");
    // Another strand waits for nothing.
    receive(&mut kernel, 0, Stamp::new(6, 70, 1));
    assert_eq!(counts(&kernel).held, 1);
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn without_numbers_nothing_is_put_in_order() {
    let mut kernel = kernel(None);
    let frame = Wrap::on(0).frame(&ipv4_frame(100));
    let ran = kernel.run(program::INGRESS_L2_ORDER, &frame, None);
    assert_eq!(ran.action, TC_ACT_REDIRECT);
    assert_eq!(counts(&kernel), Counts::default());
}
