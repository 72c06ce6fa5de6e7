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
use netbond::tables::Raw;
use netbond_common::{
    abi::{BOND_IN_ORDER, BOND_NUMBERED, Lane, SHARES_EQUAL},
    names::{Mode, feature, program},
    sequence::{Counts, STRANDS, Stamp},
};

/// A kernel with a bond of two paths that keeps the order.
fn kernel(key: Option<u32>) -> Kernel {
    kernel_of(key, feature::NUMBERED)
}

fn kernel_of(key: Option<u32>, features: u32) -> Kernel {
    let mut kernel = Kernel::with_features(&[1, 1], key, features);
    kernel.set_order(BOND_NUMBERED | BOND_IN_ORDER, 2);
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
    kernel.run(program::INGRESS_L2_ORDER, &received(path, stamp), None)
}

/// A packet with a stamp as it comes on a path.
fn received(path: u32, stamp: Stamp) -> Vec<u8> {
    let mut wrap = Wrap::on(path);
    wrap.gre_flags = 0x1000;
    wrap.gre_fields = stamp.to_field().to_vec();
    let mut frame = wrap.frame(&ipv4_frame(100));
    // The checksum of the outer header is the kernel's matter, and was checked.
    frame[18..20].copy_from_slice(&stamp.identification().to_be_bytes());
    frame
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

/// As long as the controller says so: numbers are for what goes by several paths.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_settled_flow_keeps_its_path_and_has_no_numbers() {
    let mut kernel = kernel_of(None, feature::of(Mode::Adaptive) | feature::NUMBERED);
    let lane = Lane {
        mode: Mode::Adaptive as u32,
        shares: SHARES_EQUAL,
        ..Lane::zeroed()
    };
    kernel.tables.lanes.set(BOND, Raw(lane), 0).unwrap();
    let packet = ipv4_frame(100);
    let striped = [0; 2].map(|_| stamp(&kernel.egress(&packet).frame, None).sequence);
    assert_eq!(kernel.sent(2), [1, 1]);
    kernel.set_equal_shares(2, u32::MAX);
    for _ in 0..6 {
        let ran = kernel.egress(&packet);
        assert_eq!(ran.action, TC_ACT_REDIRECT);
        assert_eq!(ran.frame[34..36], [0, 0], "no sequence field");
    }
    let mut sent = kernel.sent(2);
    sent.sort_unstable();
    assert_eq!(sent, [1, 7]);
    // The controller has not said so for a while.
    kernel.set_equal_shares(2, 1);
    let next = stamp(&kernel.egress(&packet).frame, None).sequence;
    assert_eq!(next, striped[1] + 1);
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

/// A hypervisor may take its processor away from a program that has the lock.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn what_cannot_be_compared_is_released_and_counted() {
    let mut kernel = kernel(None);
    let stamp = |number| Stamp::new(5, number, 1).copied(true);
    receive(&mut kernel, 0, stamp(0));
    let id = BOND * STRANDS + 5;
    let Raw(mut strand) = kernel.tables.strands.get(&id, 0).unwrap();
    strand.lock = 1;
    kernel.tables.strands.insert(id, Raw(strand), 0).unwrap();
    for path in [0, 1] {
        let ran = receive(&mut kernel, path, stamp(1));
        assert_eq!(ran.action, TC_ACT_REDIRECT);
        let stats = kernel.tables.path_stats(path_id(path)).unwrap();
        assert_eq!((stats.rx_contended, stats.rx_copies), (1, 0));
    }
    assert_eq!(kernel.fates(), []);
    strand.lock = 0;
    kernel.tables.strands.insert(id, Raw(strand), 0).unwrap();
    assert_eq!(
        receive(&mut kernel, 1, stamp(0)).action,
        TC_ACT_SHOT,
        "a copy"
    );
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn of_copies_that_come_at_once_one_is_released() {
    let mut kernel = kernel(None);
    let pairs: Vec<[Vec<u8>; 2]> = (0..20_000)
        .map(|number| Stamp::new(5, number, 1).copied(true))
        .map(|stamp| [0, 1].map(|path| received(path, stamp)))
        .collect();
    let actions = kernel.run_pairs(program::INGRESS_L2_ORDER, &pairs);
    let twice = actions
        .iter()
        .filter(|pair| **pair == [TC_ACT_REDIRECT; 2])
        .count() as u64;
    let dropped = actions
        .iter()
        .filter(|pair| pair.contains(&TC_ACT_SHOT))
        .count() as u64;
    assert!(
        actions.iter().all(|pair| pair.contains(&TC_ACT_REDIRECT)),
        "one of each is released"
    );
    let stats = [0, 1].map(|slot| kernel.tables.path_stats(path_id(slot)).unwrap());
    let contended = stats[0].rx_contended + stats[1].rx_contended;
    assert_eq!(stats[0].rx_copies + stats[1].rx_copies, dropped);
    assert!(
        twice <= contended,
        "{twice} released twice, {contended} contended"
    );
    // Not for want of patience, but where a processor was away.
    assert!(contended < 200, "{contended} of {}", 2 * pairs.len());
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
