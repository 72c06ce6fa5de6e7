//! Paths with IPv6 outer addresses, by the programs in this kernel.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::collections::BTreeSet;

use bytemuck::Zeroable as _;
use common::{
    BOND, Kernel, MAC, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, frame_over_ipv6, ipv4_frame,
    ipv6_frame, outer_v6, path_id,
};
use etherparse::{Ipv4HeaderSlice, Ipv6Slice};
use netbond::tables::Raw;
use netbond_common::{
    abi::{BOND_ETHERNET, BOND_IN_ORDER, BOND_NUMBERED, Bond, NO_BOND, Sample, TunnelKey},
    fate::{Fate, Verdict},
    ipv4,
    ipv6::flow_label,
    names::{feature, program},
    probe::{LEN, TRIGGER},
    sequence::Stamp,
};

/// GRE payload types: a frame, a probe.
const ETHERNET: u16 = 0x6558;
const PROBE: u16 = 0x88b5;
/// Next headers.
const GRE: u8 = 47;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// How a bond of two paths over IPv6 is configured.
#[derive(Clone, Copy, Debug)]
struct Setup {
    key: Option<u32>,
    /// `BOND_*`.
    flags: u8,
}

impl Setup {
    const PLAIN: Self = Self {
        key: None,
        flags: 0,
    };

    /// Every encap, with a key and without, numbered or not.
    fn all() -> impl Iterator<Item = Self> {
        let flags = [
            0,
            BOND_ETHERNET,
            BOND_NUMBERED | BOND_IN_ORDER,
            BOND_ETHERNET | BOND_NUMBERED | BOND_IN_ORDER,
        ];
        let with = |flags| [None, Some(0xdead_beef)].map(|key| Self { key, flags });
        flags.into_iter().flat_map(with)
    }

    const fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn kernel(self) -> Kernel {
        let mut kernel = self.kernel_over_ipv4();
        kernel.over_ipv6(0);
        kernel.over_ipv6(1);
        kernel
    }

    fn kernel_over_ipv4(self) -> Kernel {
        let numbered = if self.has(BOND_NUMBERED) {
            feature::NUMBERED
        } else {
            0
        };
        let mut kernel = Kernel::with_features(&[1, 1], self.key, feature::IPV6 | numbered);
        kernel.set_order(self.flags, 2);
        kernel
    }

    const fn ingress(self) -> &'static str {
        netbond::loader::ingress_program(
            if self.has(BOND_NUMBERED) {
                feature::NUMBERED
            } else {
                0
            },
            true,
        )
    }

    /// Bytes of the GRE header of a packet.
    fn gre_len(self) -> usize {
        4 + if self.key.is_some() { 4 } else { 0 } + if self.has(BOND_NUMBERED) { 4 } else { 0 }
    }
}

/// The outer packet in a frame that left.
fn outer(frame: &[u8]) -> Ipv6Slice<'_> {
    Ipv6Slice::from_slice(&frame[14..]).unwrap()
}

fn label(frame: &[u8]) -> u32 {
    outer(frame).header().flow_label().value()
}

/// What one end sent over IPv6, as the other receives it: its paths have the addresses the other way
/// round.
fn crossed(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let addresses = &mut frame[22..54];
    addresses.rotate_left(16);
    frame[..6].fill(0);
    // The device that sends writes its own Ethernet header.
    frame[12..14].copy_from_slice(&[0x86, 0xdd]);
    frame
}

/// A GRE header with these fields, and what it carries.
fn gre(flags: u16, protocol: u16, fields: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = [flags.to_be_bytes(), protocol.to_be_bytes()].concat();
    [&header, fields, payload].concat()
}

/// A frame without IP in it.
fn arp() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0xbb, 0, 0, 0, 2, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.resize(42, 7);
    frame
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn egress_headers_decode() {
    for setup in Setup::all() {
        let mut kernel = setup.kernel();
        let bond = kernel.bond();
        let mut four = ipv4_frame(576);
        four[15] = 0x2e << 2 | 0b01;
        let cases = [
            (ipv4_frame(28), 0x0800_u16, 0, 61),
            (four, 0x0800, 0x2e << 2 | 0b01_u8, 61),
            (ipv6_frame(1280), 0x86dd, 0x2a << 2 | 0b10, 33),
        ];
        for (frame, protocol, traffic_class, ttl) in cases {
            for fixed in [0, 64] {
                kernel.set_bond(&Bond { ttl: fixed, ..bond });
                let ran = kernel.egress(&frame);
                assert_eq!(
                    ran.action,
                    TC_ACT_REDIRECT,
                    "{setup:?}: {:?}",
                    kernel.fates()
                );
                let ip = outer(&ran.frame);
                let header = ip.header();
                let path = u32::from(header.source_addr().segments()[2]);
                assert_eq!(
                    (header.source_addr(), header.destination_addr()),
                    outer_v6(path)
                );
                assert_eq!(header.next_header().0, GRE);
                assert_eq!(usize::from(header.payload_length()), ran.frame.len() - 54);
                assert_eq!(header.traffic_class(), traffic_class);
                assert_eq!(header.hop_limit(), if fixed == 0 { ttl } else { fixed });
                let flags = if setup.key.is_some() { 0x20 } else { 0 }
                    | if setup.has(BOND_NUMBERED) { 0x10 } else { 0 };
                let carried = ip.payload().payload;
                assert_eq!(carried[..2], [flags, 0]);
                if let Some(key) = setup.key {
                    assert_eq!(carried[4..8], key.to_be_bytes());
                }
                let (due, inside) = if setup.has(BOND_ETHERNET) {
                    (ETHERNET, &frame[..])
                } else {
                    (protocol, &frame[14..])
                };
                assert_eq!(carried[2..4], due.to_be_bytes());
                assert_eq!(carried[setup.gre_len()..], *inside, "{setup:?}");
            }
        }
        assert_eq!(kernel.fates(), []);
    }
}

/// The label is one for a flow, and tells flows apart; with numbers it is one for a strand.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn labels_follow_flows_or_strands() {
    let flow = |port: u16| {
        let mut frame = ipv4_frame(100);
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        frame
    };
    let mut kernel = Setup::PLAIN.kernel();
    let mut labels = BTreeSet::new();
    for port in 0..100 {
        let [one, two] = [0; 2].map(|_| label(&kernel.egress(&flow(port)).frame));
        assert_eq!(one, two);
        labels.insert(one);
    }
    assert_eq!(labels.len(), 100);
    let setup = Setup {
        key: None,
        flags: BOND_NUMBERED | BOND_IN_ORDER,
    };
    let mut kernel = setup.kernel();
    for port in 0..100 {
        let frame = kernel.egress(&flow(port)).frame;
        let stamp = Stamp::from_field(frame[58..62].try_into().unwrap());
        assert_eq!(label(&frame), flow_label(stamp.strand));
    }
}

/// What goes out of one end comes in at the other as it was, and is counted alike: short packets and
/// frames as well.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn out_and_in_again() {
    for setup in Setup::all() {
        let (mut here, mut there) = (setup.kernel(), setup.kernel());
        let mut packets = vec![
            ipv4_frame(28),
            ipv4_frame(39),
            ipv4_frame(40),
            ipv4_frame(1300),
            ipv6_frame(48),
            ipv6_frame(1300),
        ];
        // A packet that is all header.
        packets.push(ipv4_frame(28)[..34].to_vec());
        if setup.has(BOND_ETHERNET) {
            packets.push(arp());
            packets.push([&[2; 12][..], &[0x88, 0xb6]].concat());
            packets.push([&[2; 12][..], &[0x88, 0xb6, 1]].concat());
        }
        for packet in &packets {
            for _ in 0..2 {
                let sent = here.egress(packet);
                assert_eq!(sent.action, TC_ACT_REDIRECT, "{setup:?} {packet:02x?}");
                let ran = there.run(setup.ingress(), &crossed(&sent.frame), None);
                let fates = there.fates();
                assert_eq!(
                    ran.action, TC_ACT_REDIRECT,
                    "{setup:?} {packet:02x?} {fates:?}"
                );
                let start = if setup.has(BOND_ETHERNET) { 0 } else { 14 };
                assert_eq!(ran.frame[start..packet.len()], packet[start..]);
                assert_eq!(ran.frame[12..14], packet[12..14]);
                // Some kernels leave no less than an IPv6 header behind one of Ethernet.
                let filled = &ran.frame[packet.len()..];
                assert!(
                    filled.is_empty() || ran.frame.len() <= 54,
                    "{}",
                    ran.frame.len()
                );
                assert!(filled.iter().all(|&byte| byte == 0));
            }
        }
        for slot in 0..2 {
            let (sent, received) = (
                here.tables.path_stats(path_id(slot)).unwrap(),
                there.tables.path_stats(path_id(slot)).unwrap(),
            );
            assert!(sent.tx_packets > 0);
            assert_eq!(
                (sent.tx_packets, sent.tx_bytes),
                (received.rx_packets, received.rx_bytes),
                "{setup:?}"
            );
        }
        assert_eq!((here.fates(), there.fates()), (vec![], vec![]));
    }
}

/// A bond may have paths of both families.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn families_are_mixed() {
    for setup in Setup::all() {
        let mut kernel = setup.kernel_over_ipv4();
        kernel.over_ipv6(1);
        let packet = ipv4_frame(100);
        let mut versions = [0; 2];
        for _ in 0..10 {
            let ran = kernel.egress(&packet);
            assert_eq!(ran.action, TC_ACT_REDIRECT);
            let mut frame = ran.frame;
            if frame[14] >> 4 == 6 {
                frame = crossed(&frame);
                versions[1] += 1;
            } else {
                let header = Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap();
                assert_eq!(
                    header.header_checksum(),
                    header.to_header().calc_header_checksum()
                );
                for byte in 26..30 {
                    frame.swap(byte, byte + 4);
                }
                frame[..6].fill(0);
                frame[12..14].copy_from_slice(&[8, 0]);
                versions[0] += 1;
            }
            let ran = kernel.run(setup.ingress(), &frame, None);
            assert_eq!(ran.action, TC_ACT_REDIRECT);
            assert_eq!(ran.frame[14..114], packet[14..]);
        }
        assert_eq!(versions, [5, 5]);
        for slot in 0..2 {
            let stats = kernel.tables.path_stats(path_id(slot)).unwrap();
            assert_eq!((stats.tx_packets, stats.rx_packets), (5, 5));
            assert_eq!(stats.tx_bytes, stats.rx_bytes);
        }
    }
}

/// Frames that end in the ingress hook, each with its reason; what is passed is passed untouched.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn ingress_fates() {
    let inner = &ipv4_frame(200)[14..];
    let plain = gre(0, 0x0800, &[], inner);
    let in_gre =
        |flags, fields: &[u8]| frame_over_ipv6(0, 0, GRE, &gre(flags, 0x0800, fields, inner));
    let good = frame_over_ipv6(0, 0, GRE, &plain);
    let mut stranger = good.clone();
    stranger[14 + 23] = 99;
    let mut reversed = good.clone();
    reversed[22..54].rotate_left(16);
    let mut overheard = good.clone();
    overheard[0] = 2;
    // As an IPv4 path of the same host is known.
    let [far, own] = [[10, 65, 0, 6], [10, 65, 0, 2]].map(ipv4::mapped);
    let mapped_path = TunnelKey {
        source: far,
        destination: own,
        ..TunnelKey::zeroed()
    };
    let mut mapped = good.clone();
    mapped[22..54].copy_from_slice(&[far, own].concat());
    let mut version = good.clone();
    version[14] = 0x40;
    // Next header, reserved, offset and more, identification.
    let fragment = |next, offset: u16| {
        let [a, b] = offset.to_be_bytes();
        frame_over_ipv6(
            0,
            0,
            FRAGMENT,
            &[&[next, 0, a, b, 0, 0, 0, 7], &plain[..]].concat(),
        )
    };
    // A tunnel encapsulation limit (RFC 2473, 4.1.1), as the kernel's ip6gre sends unless told otherwise.
    let limit = [&[GRE, 0, 4, 1, 4, 1, 0, 0], &plain[..]].concat();
    let foreign = [
        ("not GRE", frame_over_ipv6(0, 0, UDP, &plain)),
        ("another source", stranger),
        ("our own addresses reversed", reversed),
        ("an IPv4 path's addresses, mapped", mapped),
        ("overheard", overheard),
        ("version 4 as IPv6", version),
        ("key 0 where no key is", in_gre(0x2000, &[0; 4])),
        ("cut before GRE", good[..54].to_vec()),
        ("cut in the GRE header", good[..56].to_vec()),
        ("cut in the key", in_gre(0x2000, &[0; 4])[..60].to_vec()),
        ("cut in the number", in_gre(0x1000, &[0; 4])[..60].to_vec()),
        ("fragment of UDP", fragment(UDP, 1)),
        (
            "cut in the fragment header",
            fragment(GRE, 1)[..54].to_vec(),
        ),
        (
            "destination options",
            frame_over_ipv6(0, 0, DESTINATION_OPTIONS, &limit),
        ),
        ("hop-by-hop options", frame_over_ipv6(0, 0, 0, &limit)),
        ("routing header", frame_over_ipv6(0, 0, 43, &limit)),
    ];
    let foreign = foreign.map(|(what, frame)| (what, NO_BOND, Fate::RxForeign, frame));
    let others = [
        (
            "first fragment",
            NO_BOND,
            Fate::RxFragment,
            fragment(GRE, 1),
        ),
        (
            "last fragment",
            NO_BOND,
            Fate::RxFragment,
            fragment(GRE, 0x10),
        ),
        (
            "a fragment alone",
            NO_BOND,
            Fate::RxFragment,
            fragment(GRE, 0),
        ),
        (
            "checksum",
            NO_BOND,
            Fate::RxGreFlags,
            in_gre(0x8000, &[0; 4]),
        ),
        (
            "routing",
            NO_BOND,
            Fate::RxGreFlags,
            in_gre(0x4000, &[0; 4]),
        ),
        ("PPTP", NO_BOND, Fate::RxGreFlags, in_gre(0x3001, &[0; 8])),
        (
            "gretap",
            BOND,
            Fate::RxProtocol,
            frame_over_ipv6(0, 0, GRE, &gre(0, ETHERNET, &[], inner)),
        ),
        (
            "nothing inside",
            BOND,
            Fate::RxMalformed,
            good[..58].to_vec(),
        ),
        (
            "cut inside",
            BOND,
            Fate::RxMalformed,
            good[..58 + 19].to_vec(),
        ),
        (
            "version 4 as IPv6 inside",
            BOND,
            Fate::RxMalformed,
            frame_over_ipv6(0, 0, GRE, &gre(0, 0x86dd, &[], inner)),
        ),
        (
            "CE on not ECN-capable",
            BOND,
            Fate::RxEcn,
            frame_over_ipv6(0, 3, GRE, &plain),
        ),
    ];
    for (what, bond, fate, frame) in foreign.into_iter().chain(others) {
        for name in [program::INGRESS_L2, program::INGRESS_L2_ORDER] {
            let mut kernel = Kernel::with_features(
                &[1],
                None,
                if name == program::INGRESS_L2 {
                    0
                } else {
                    feature::NUMBERED
                } | feature::IPV6,
            );
            kernel.over_ipv6(0);
            let tunnels = &mut kernel.tables.tunnels;
            tunnels.insert(Raw(mapped_path), path_id(1), 0).unwrap();
            let ran = kernel.run(name, &frame, None);
            let action = match fate.verdict() {
                Verdict::Pass => TC_ACT_UNSPEC,
                Verdict::Drop => TC_ACT_SHOT,
            };
            assert_eq!(kernel.fates(), [(bond, fate, 1)], "{what}");
            assert_eq!(ran.action, action, "{what}");
            assert_eq!(ran.frame, frame, "{what}: left as it was");
            let stats = kernel.tables.path_stats(path_id(0)).unwrap();
            assert_eq!(stats.rx_packets, 0, "{what}");
        }
    }
}

/// Programs that were loaded for IPv4 alone leave all IPv6 to the kernel.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn without_the_feature_ipv6_is_foreign() {
    let frame = frame_over_ipv6(0, 0, GRE, &gre(0, 0x0800, &[], &ipv4_frame(200)[14..]));
    for features in [0, feature::ALL & !feature::IPV6] {
        let mut kernel = Kernel::with_features(&[1], None, features);
        kernel.over_ipv6(0);
        let name = netbond::loader::ingress_program(features, true);
        assert_eq!(kernel.run(name, &frame, None).action, TC_ACT_UNSPEC);
        assert_eq!(kernel.fates(), [(NO_BOND, Fate::RxForeign, 1)]);
    }
}

/// From a device without an Ethernet header. (A test run takes the first 14 bytes for one, and leaves them
/// there: what comes out is no use.)
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn devices_without_ethernet_are_received_from() {
    let frame = frame_over_ipv6(0, 0, GRE, &gre(0, 0x0800, &[], &ipv4_frame(200)[14..]));
    let mut kernel = Setup::PLAIN.kernel();
    let ran = kernel.run(program::INGRESS_L3, &frame[14..], None);
    assert_eq!((ran.action, kernel.fates()), (TC_ACT_REDIRECT, vec![]));
    assert_eq!(ran.frame[..6], MAC);
    let stats = kernel.tables.path_stats(path_id(0)).unwrap();
    assert_eq!((stats.rx_packets, stats.rx_bytes), (1, 200));
}

/// Congestion marked on the way reaches the inner packet (RFC 6040).
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn congestion_reaches_the_inner_packet() {
    let mut four = ipv4_frame(100);
    four[15] = 0b10;
    let check = Ipv4HeaderSlice::from_slice(&four[14..]).unwrap();
    let check = check.to_header().calc_header_checksum();
    four[24..26].copy_from_slice(&check.to_be_bytes());
    let six = ipv6_frame(100);
    let mut kernel = Setup::PLAIN.kernel();
    let ran = kernel.ingress(&frame_over_ipv6(
        0,
        3,
        GRE,
        &gre(0, 0x0800, &[], &four[14..]),
    ));
    let header = Ipv4HeaderSlice::from_slice(&ran.frame[14..]).unwrap();
    assert_eq!(header.ecn().value(), 0b11);
    assert_eq!(
        header.header_checksum(),
        header.to_header().calc_header_checksum()
    );
    let ran = kernel.ingress(&frame_over_ipv6(
        0,
        3,
        GRE,
        &gre(0, 0x86dd, &[], &six[14..]),
    ));
    assert_eq!(ran.frame[15], six[15] | 0b11 << 4);
    assert_eq!(ran.frame[16..], six[16..]);
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_probe_goes_there_and_back() {
    for setup in Setup::all() {
        let (mut here, mut there) = (setup.kernel(), setup.kernel());
        for (turn, len) in [(1, LEN), (2, LEN), (3, 1300)] {
            let mut trigger = vec![0; 12];
            trigger.extend([0x08, 0x00, TRIGGER | 1]);
            trigger.extend((len as u16).to_be_bytes());
            trigger.resize(14 + LEN, 0);
            let asked = here.egress(&trigger);
            assert_eq!(asked.action, TC_ACT_REDIRECT);
            let outer_len = 40 + 4 + if setup.key.is_some() { 4 } else { 0 };
            assert_eq!(asked.frame.len(), 14 + outer_len + len, "{setup:?}");
            let ip = outer(&asked.frame);
            assert_eq!(ip.payload().payload[2..4], PROBE.to_be_bytes());
            let answer = there.run(setup.ingress(), &crossed(&asked.frame), None);
            assert_eq!(answer.action, TC_ACT_REDIRECT, "{:?}", there.fates());
            assert_eq!(answer.frame.len(), asked.frame.len(), "no amplification");
            let header = outer(&answer.frame).header().to_header();
            assert_eq!((header.hop_limit, header.traffic_class), (64, 48 << 2));
            assert_eq!(usize::from(header.payload_length), answer.frame.len() - 54);
            assert_eq!(
                (header.source_addr(), header.destination_addr()),
                outer_v6(1)
            );
            let accepted = here.run(setup.ingress(), &crossed(&answer.frame), None);
            assert_eq!(accepted.action, TC_ACT_SHOT, "taken in, and gone");
            let live = here.tables.live.get(&path_id(1), 0).unwrap().0;
            assert_eq!(live.answers_seen, turn, "{:?}", here.fates());
            let item = here.tables.samples.next().unwrap().to_vec();
            let sample: Sample = bytemuck::pod_read_unaligned(&item);
            assert_eq!((sample.path, sample.sequence), (path_id(1), turn));
            assert_eq!(sample.len as usize, outer_len + len);
        }
    }
}

/// A probe of the other family's length is none of the path's.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_request_with_options_is_malformed() {
    let mut kernel = Setup::PLAIN.kernel();
    let request = gre(
        0x1000,
        PROBE,
        &[0; 4],
        &[b"nb\x03\x01", &[0; LEN][4..]].concat(),
    );
    assert_eq!(
        kernel.ingress(&frame_over_ipv6(0, 0, GRE, &request)).action,
        TC_ACT_SHOT
    );
    assert_eq!(kernel.fates(), [(BOND, Fate::RxProbeMalformed, 1)]);
}

/// Segments of a super-packet are counted in the order in which they come on a path: nothing in an IPv6
/// header tells them apart.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn segments_are_counted() {
    let setup = Setup {
        key: None,
        flags: BOND_NUMBERED | BOND_IN_ORDER,
    };
    let mut kernel = setup.kernel();
    let inner = &ipv4_frame(100)[14..];
    let stamp = Stamp::new(3, 70, 4);
    let segment = frame_over_ipv6(0, 0, GRE, &gre(0x1000, 0x0800, &stamp.to_field(), inner));
    for count in 1..=4 {
        let ran = kernel.run(setup.ingress(), &segment, None);
        assert_eq!(ran.action, TC_ACT_REDIRECT);
        assert_eq!(kernel.tables.order(BOND).unwrap().came, count);
    }
    let next = Stamp::new(3, 74, 1).to_field();
    kernel.run(
        setup.ingress(),
        &frame_over_ipv6(0, 0, GRE, &gre(0x1000, 0x0800, &next, inner)),
        None,
    );
    let counts = kernel.tables.order(BOND).unwrap();
    assert_eq!((counts.came, counts.expected, counts.copies), (5, 5, 0));
    // Once more: it was here.
    let again = kernel.run(
        setup.ingress(),
        &frame_over_ipv6(0, 0, GRE, &gre(0x1000, 0x0800, &next, inner)),
        None,
    );
    assert_eq!(again.action, TC_ACT_SHOT);
}
