//! The modes and classes of the programs, in this kernel, on packets of ours.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use aya::maps::PerCpuValues;
use bytemuck::Zeroable as _;
use common::{BOND, Kernel, TC_ACT_REDIRECT, TC_ACT_SHOT, path_id};
use etherparse::{Ipv4HeaderSlice, PacketBuilder};
use netbond::tables::Raw;
use netbond_common::{
    abi::{
        ADMIN_DOWN, BOND_ETHERNET, BOND_SHARES, Bond, Class, FLOW_BUCKETS, Lane, MAX_BOND_CLASSES,
        MAX_BONDS, PATH_LAST_RESORT, PATH_USABLE, SHARES_WEIGHTED, Turns,
    },
    class::Rule,
    fate::Fate,
    names::{Mode, feature, program},
    order, turns,
};

const WEIGHTS: [u32; 3] = [1, 1, 2];

/// A kernel with the programs of all modes, and a bond in one.
fn kernel(mode: Mode) -> Kernel {
    let mut kernel = Kernel::with_features(&WEIGHTS, None, feature::ALL);
    set_lane(&mut kernel, BOND, mode);
    set_flow_table(&mut kernel);
    kernel
}

fn weights() -> [u32; 16] {
    let mut all = [0; 16];
    all[..WEIGHTS.len()].copy_from_slice(&WEIGHTS);
    all
}

/// As the controller writes it; the paths are preferred from the last to the first.
fn set_lane(kernel: &mut Kernel, id: u32, mode: Mode) {
    let lane = Lane {
        mode: mode as u32,
        shares: SHARES_WEIGHTED,
        order: order::pack([2, 1, 0]),
        ..Lane::zeroed()
    };
    kernel.tables.lanes.set(id, Raw(lane), 0).unwrap();
    let shares = turns::shares(&weights());
    let index = BOND * BOND_SHARES + SHARES_WEIGHTED;
    kernel.tables.shares.set(index, Raw(shares), 0).unwrap();
}

fn set_flow_table(kernel: &mut Kernel) {
    for bucket in 0..FLOW_BUCKETS {
        let order = order::of_bucket(bucket, &weights(), |_| 0);
        let index = BOND * FLOW_BUCKETS + bucket;
        kernel.tables.flow_table.set(index, order, 0).unwrap();
    }
}

fn set_classes(kernel: &mut Kernel, classes: &[(Rule, Mode)]) {
    for (place, (rule, mode)) in (0..).zip(classes) {
        let id = BOND * MAX_BOND_CLASSES + place;
        // Counted elsewhere than they stand.
        let class = Class {
            rule: *rule,
            counter: BOND * MAX_BOND_CLASSES + 15 - place,
            reserved: 0,
        };
        kernel.tables.classes.set(id, Raw(class), 0).unwrap();
        set_lane(kernel, MAX_BONDS + id, *mode);
    }
    let bond = kernel.bond();
    kernel.set_bond(&Bond {
        classes: classes.len() as u32,
        ..bond
    });
}

/// Packets and bytes of a class.
fn counted(kernel: &Kernel, place: u32) -> (u64, u64) {
    let counter = BOND * MAX_BOND_CLASSES + 15 - place;
    let stats = kernel.tables.class_stats(counter).unwrap();
    (stats.tx_packets, stats.tx_bytes)
}

/// The path that a frame leaves by.
fn path_of(kernel: &mut Kernel, frame: &[u8]) -> u32 {
    let ran = kernel.egress(frame);
    assert_eq!(ran.action, TC_ACT_REDIRECT, "{:?}", kernel.fates());
    u32::from(
        Ipv4HeaderSlice::from_slice(&ran.frame[14..])
            .unwrap()
            .source()[2],
    )
}

fn stand_ins(kernel: &Kernel) -> u64 {
    let stats = (0..3).map(|slot| kernel.tables.path_stats(path_id(slot)).unwrap());
    stats.map(|stats| stats.tx_stand_in).sum()
}

const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

fn tcp(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), len: usize) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [0; 6])
        .ipv4(from.octets(), to.octets(), 64)
        .tcp(ports.0, ports.1, 1, 1000);
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![0; len]).unwrap();
    frame
}

fn udp6(ports: (u16, u16)) -> Vec<u8> {
    let address = |last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).octets();
    let builder = PacketBuilder::ethernet2([2; 6], [0; 6])
        .ipv6(address(1), address(2), 64)
        .udp(ports.0, ports.1);
    let mut frame = Vec::new();
    builder.write(&mut frame, &[0; 100]).unwrap();
    frame
}

/// The fragments of a UDP datagram over IPv4, options in each header.
fn fragments(ports: (u16, u16)) -> [Vec<u8>; 3] {
    [(0, true), (40, true), (80, false)].map(|(offset, more): (u16, bool)| {
        let mut ip = vec![0x47, 0, 0, 28 + 80];
        ip.extend([0, 7]);
        ip.extend(((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
        ip.extend([64, 17, 0, 0]);
        ip.extend(HERE.octets());
        ip.extend(THERE.octets());
        ip.extend([1; 8]);
        // Ports in the first one, data in the others.
        ip.extend(ports.0.to_be_bytes());
        ip.extend((ports.1 ^ offset).to_be_bytes());
        ip.resize(28 + 80, 0);
        let mut frame = vec![2; 6];
        frame.extend([0; 6]);
        frame.extend([8, 0]);
        frame.extend(ip);
        frame
    })
}

/// The same over IPv6.
fn fragments6(ports: (u16, u16)) -> [Vec<u8>; 2] {
    [(0_u16, 1_u16), (80, 0)].map(|(offset, more)| {
        let mut frame = udp6(ports);
        frame[20] = 44;
        let header = [
            17,
            0,
            (offset >> 8) as u8,
            (offset as u8 & !7) | more as u8,
            0,
            0,
            0,
            9,
        ];
        if offset != 0 {
            frame[54..58].fill(0xee);
        }
        frame.splice(54..54, header);
        frame
    })
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_flow_keeps_its_path() {
    let mut kernel = kernel(Mode::Flow);
    let mut by_path = BTreeMap::new();
    for port in 0..400 {
        let there = tcp(HERE, THERE, (20_000 + port, 443), 10);
        let back = tcp(THERE, HERE, (443, 20_000 + port), 1000);
        let path = path_of(&mut kernel, &there);
        for _ in 0..3 {
            assert_eq!(path_of(&mut kernel, &there), path);
            assert_eq!(path_of(&mut kernel, &back), path, "its other direction");
        }
        *by_path.entry(path).or_insert(0) += 1;
    }
    // 1 : 1 : 2, but for chance.
    for (path, due) in [(0, 100), (1, 100), (2, 200)] {
        let found: i32 = by_path[&path];
        assert!((found - due).abs() < 50, "{by_path:?}");
    }
    assert_eq!(stand_ins(&kernel), 0);
    assert_eq!(kernel.fates(), []);
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn fragments_go_together() {
    let mut kernel = kernel(Mode::Flow);
    let mut paths = BTreeSet::new();
    for port in 0..20 {
        let ports = (3000 + port, 4000);
        let fours: BTreeSet<u32> = fragments(ports)
            .iter()
            .map(|frame| path_of(&mut kernel, frame))
            .collect();
        let sixes: BTreeSet<u32> = fragments6(ports)
            .iter()
            .map(|frame| path_of(&mut kernel, frame))
            .collect();
        assert_eq!((fours.len(), sixes.len()), (1, 1), "{fours:?} {sixes:?}");
        paths.extend([(4, fours), (6, sixes)]);
    }
    assert_eq!(paths.len(), 2, "ports in a fragment say nothing: {paths:?}");
    let whole: BTreeSet<u32> = (0..20)
        .map(|port| path_of(&mut kernel, &udp6((3000 + port, 4000))))
        .collect();
    assert_eq!(whole.len(), 3, "whole packets are spread");
}

/// What the program alone does: no controller moves anything here.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn only_flows_of_a_lost_path_move_and_come_back() {
    let mut kernel = kernel(Mode::Flow);
    let frames: Vec<Vec<u8>> = (0..300)
        .map(|port| tcp(HERE, THERE, (20_000 + port, 443), 10))
        .collect();
    let go = |kernel: &mut Kernel| -> Vec<u32> {
        frames.iter().map(|frame| path_of(kernel, frame)).collect()
    };
    let before = go(&mut kernel);
    kernel.tables.admin.set(path_id(2), ADMIN_DOWN, 0).unwrap();
    let without = go(&mut kernel);
    let mut moved = 0;
    for (was, is) in before.iter().zip(&without) {
        if *was == 2 {
            assert_ne!(*is, 2);
            moved += 1;
        } else {
            assert_eq!(is, was);
        }
    }
    assert!(moved > 100, "{moved}");
    assert_eq!(stand_ins(&kernel), moved);
    kernel.tables.admin.set(path_id(2), 0, 0).unwrap();
    assert_eq!(go(&mut kernel), before);
    // With nothing usable, what has a route; with nothing at all, none.
    for slot in 0..3 {
        kernel.set_flags(slot, if slot == 1 { PATH_LAST_RESORT } else { 0 });
    }
    assert_eq!(go(&mut kernel), vec![1; frames.len()]);
    let stats = kernel.tables.path_stats(path_id(1)).unwrap();
    assert_eq!(stats.tx_last_resort, frames.len() as u64);
    kernel.set_flags(1, 0);
    assert_eq!(kernel.egress(&frames[0]).action, TC_ACT_SHOT);
    assert_eq!(kernel.fates(), [(BOND, Fate::TxNoPath, 1)]);
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_flowlet_moves_only_after_the_gap() {
    let mut kernel = kernel(Mode::Flowlet);
    let frame = tcp(HERE, THERE, (20_000, 443), 10);
    // Half a minute: nothing moves. No more than the machine is up, or new flows seem to be old ones.
    kernel.tables.gaps.set(BOND, 30_000_000_000, 0).unwrap();
    let path = path_of(&mut kernel, &frame);
    for _ in 0..20 {
        assert_eq!(path_of(&mut kernel, &frame), path);
    }
    let others: BTreeSet<u32> = (1..20)
        .map(|port| path_of(&mut kernel, &tcp(HERE, THERE, (20_000 + port, 443), 10)))
        .collect();
    let two = (0..3).filter(|other| *other != path).collect();
    assert_eq!(
        others, two,
        "where fewer bytes went than this flow has sent"
    );
    // A lost path is left at once, and what has moved stays.
    kernel
        .tables
        .admin
        .set(path_id(path), ADMIN_DOWN, 0)
        .unwrap();
    let other = path_of(&mut kernel, &frame);
    assert_ne!(other, path);
    kernel.tables.admin.set(path_id(path), 0, 0).unwrap();
    assert_eq!(path_of(&mut kernel, &frame), other);
    // After a pause it takes the path whose turn it is.
    let index = BOND * BOND_SHARES + SHARES_WEIGHTED;
    let cpus = kernel.tables.turns.get(&index, 0).unwrap();
    let none = PerCpuValues::try_from(vec![Raw(Turns::zeroed()); cpus.len()]).unwrap();
    kernel.tables.turns.set(index, none, 0).unwrap();
    kernel.tables.gaps.set(BOND, 5_000_000, 0).unwrap();
    let mut sent = BTreeMap::new();
    for _ in 0..8 {
        std::thread::sleep(std::time::Duration::from_millis(6));
        *sent.entry(path_of(&mut kernel, &frame)).or_insert(0) += 1;
    }
    assert_eq!(sent, [(0, 2), (1, 2), (2, 4)].into(), "by weight");
    assert_eq!(kernel.fates(), []);
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn all_on_the_best_path_that_there_is() {
    let mut kernel = kernel(Mode::ActiveBackup);
    let frames = [tcp(HERE, THERE, (1, 2), 10), udp6((1, 2))];
    let go = |kernel: &mut Kernel| {
        let paths: BTreeSet<u32> = (0..10).map(|n| path_of(kernel, &frames[n % 2])).collect();
        assert_eq!(paths.len(), 1, "{paths:?}");
        *paths.first().unwrap()
    };
    assert_eq!(go(&mut kernel), 2);
    assert_eq!(stand_ins(&kernel), 0);
    kernel.tables.admin.set(path_id(2), ADMIN_DOWN, 0).unwrap();
    assert_eq!(go(&mut kernel), 1);
    assert_eq!(stand_ins(&kernel), 10);
    kernel.set_flags(1, PATH_LAST_RESORT);
    assert_eq!(go(&mut kernel), 0);
    kernel.set_flags(0, PATH_LAST_RESORT);
    assert_eq!(go(&mut kernel), 1, "of the last resorts too the best");
    kernel.set_flags(0, PATH_USABLE);
    assert_eq!(go(&mut kernel), 0);
    kernel.tables.admin.set(path_id(2), 0, 0).unwrap();
    assert_eq!(go(&mut kernel), 2);
}

/// A bond with its own mode beside classes with theirs: each packet is counted by its path, and by
/// its class if it is of one.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn classes_have_their_own_modes() {
    let mut kernel = kernel(Mode::Weighted);
    let expedited = Rule {
        other_dscps: !(1 << 46),
        ..Rule::ANY
    };
    let web = Rule {
        kind: 6,
        kind_mask: 0xff,
        destination_ports: [443, 443],
        ..Rule::ANY
    };
    let marked = Rule {
        mark: 0x10,
        mark_mask: 0xf0,
        ..Rule::ANY
    };
    set_classes(
        &mut kernel,
        &[
            (expedited, Mode::ActiveBackup),
            (web, Mode::Flow),
            (marked, Mode::RoundRobin),
        ],
    );
    let mut voice = udp6((1, 2));
    voice[14] = 0x60 | (46 << 2) >> 4;
    voice[15] = (46 << 2 & 0xf) << 4;
    let stream = tcp(HERE, THERE, (20_000, 443), 10);
    let bulk = tcp(HERE, THERE, (20_000, 80), 60);
    for _ in 0..8 {
        assert_eq!(path_of(&mut kernel, &voice), 2);
    }
    let path = path_of(&mut kernel, &stream);
    for _ in 0..7 {
        assert_eq!(path_of(&mut kernel, &stream), path);
    }
    let bulks: Vec<u32> = (0..8).map(|_| path_of(&mut kernel, &bulk)).collect();
    assert_eq!(bulks, [0, 1, 2, 2, 0, 1, 2, 2], "in turn, by weight");
    // A super-packet of the class counts its segments where it is counted at all: not in its end.
    kernel.mark = 0x1f;
    for _ in 0..4 {
        path_of(&mut kernel, &bulk);
    }
    kernel.mark = 0x20;
    path_of(&mut kernel, &bulk);
    assert_eq!(counted(&kernel, 0), (8, 8 * (voice.len() as u64 - 14)));
    assert_eq!(counted(&kernel, 1), (8, 8 * 50));
    assert_eq!(counted(&kernel, 2), (4, 4 * 100));
    assert_eq!(kernel.sent(3).iter().sum::<u64>(), 29);
    assert_eq!(kernel.fates(), []);
    for slot in 0..3 {
        kernel.set_flags(slot, 0);
    }
    assert_eq!(kernel.egress(&voice).action, TC_ACT_SHOT);
    assert_eq!(counted(&kernel, 0).0, 8, "not carried");
    assert_eq!(kernel.fates(), [(BOND, Fate::TxNoPath, 1)]);
}

/// In frames too, behind tags, and for what is no IP packet at all.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn frames_have_flows_and_classes() {
    let mut kernel = kernel(Mode::Flow);
    let bond = kernel.bond();
    kernel.set_bond(&Bond {
        flags: BOND_ETHERNET,
        ..bond
    });
    let web = Rule {
        kind: 4 << 8 | 6,
        kind_mask: 0xffff,
        destination_ports: [443, 443],
        ..Rule::ANY
    };
    set_classes(&mut kernel, &[(web, Mode::ActiveBackup)]);
    let tagged = |frame: &[u8], tags: &[u8]| [&frame[..12], tags, &frame[12..]].concat();
    const ONE: [u8; 4] = [0x81, 0, 0, 5];
    const TWO: [u8; 8] = [0x88, 0xa8, 0, 9, 0x81, 0, 0, 5];
    let stream = tcp(HERE, THERE, (20_000, 443), 10);
    for frame in [stream.clone(), tagged(&stream, &ONE), tagged(&stream, &TWO)] {
        assert_eq!(path_of(&mut kernel, &frame), 2);
    }
    assert_eq!(counted(&kernel, 0).0, 3);
    let mut all = BTreeSet::new();
    for port in 0..20 {
        let frame = tcp(HERE, THERE, (20_000 + port, 80), 10);
        let path = path_of(&mut kernel, &frame);
        assert_eq!(path_of(&mut kernel, &tagged(&frame, &ONE)), path);
        assert_eq!(path_of(&mut kernel, &tagged(&frame, &TWO)), path);
        all.insert(path);
    }
    assert_eq!(all.len(), 3);
    let mut arp = vec![0xff; 12];
    arp.extend([0x08, 0x06]);
    arp.resize(60, 0);
    let path = path_of(&mut kernel, &arp);
    assert_eq!(path_of(&mut kernel, &arp), path);
    assert_eq!(counted(&kernel, 0).0, 3);
    assert_eq!(kernel.fates(), []);
}

/// The program for bonds that do with a wheel has nothing of all this, and each feature costs only
/// those that ask for it.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn what_is_not_asked_for_is_not_there() {
    let size = |features| {
        let mut kernel = Kernel::with_features(&WEIGHTS, None, features);
        let name = netbond::loader::egress_program(features);
        let info = kernel.info(name).unwrap();
        (
            info.size_translated().unwrap() / 8,
            info.size_jitted(),
            info.verified_instruction_count().unwrap(),
        )
    };
    let plain = size(0);
    let all = size(feature::ALL);
    println!("xlated instructions, jited bytes, verified: plain {plain:?}, all {all:?}");
    for one in [
        feature::CLASSES,
        feature::FLOW,
        feature::FLOWLET,
        feature::ACTIVE_BACKUP,
        feature::NUMBERED,
        feature::IPV6,
        feature::MSS_CLAMP,
    ] {
        let some = size(one);
        println!("feature {one:#x}: {some:?}");
        assert!(
            plain.0 < some.0 && some.0 < all.0,
            "{plain:?} {some:?} {all:?}"
        );
        assert!(
            plain.1 < some.1 && some.1 < all.1,
            "{plain:?} {some:?} {all:?}"
        );
    }
    assert_eq!(netbond::loader::egress_program(0), program::EGRESS);
    // The verifier gives up at a million. Older kernels need more than this one, and longer.
    assert!(all.2 < 500_000 && plain.2 < 500_000, "{plain:?} {all:?}");
}
