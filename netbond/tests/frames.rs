//! The programs of a bond in `gretap` encap, on frames of ours.

mod common;

use common::{
    BOND, Kernel, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, Wrap, ipv4_frame, ipv6_frame, outer,
    path_id,
};
use etherparse::{Ipv4HeaderSlice, Ipv4Slice};
use netbond_common::{
    abi::{BOND_ETHERNET, Bond, PATH_LAST_RESORT, PATH_NEIGHBOUR, PATH_USABLE, Sample},
    fate::{Fate, Verdict},
    names::program,
    probe::{LEN, TRIGGER},
};

/// GRE payload types: a frame, a probe.
const ETHERNET: u16 = 0x6558;
const PROBE: u16 = 0x88b5;

fn kernel(key: Option<u32>) -> Kernel {
    let mut kernel = Kernel::with_bond(&[1, 1], key);
    let bond = kernel.bond();
    kernel.set_bond(&Bond {
        flags: BOND_ETHERNET,
        ..bond
    });
    kernel
}

/// A frame between two stations of a LAN.
fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0xaa, 0, 0, 0, 1, 2, 0xbb, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An ARP request, as the kernel sends it: not filled up.
fn arp() -> Vec<u8> {
    let mut frame = frame(0x0806, &[0, 1, 8, 0, 6, 4, 0, 1]);
    frame[..6].fill(0xff);
    frame.extend([
        2, 0xbb, 0, 0, 0, 2, 10, 67, 0, 2, 0, 0, 0, 0, 0, 0, 10, 67, 0, 1,
    ]);
    frame
}

/// The same frame with VLAN tags, the outermost first.
fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&frame[..12], tags.concat().as_slice(), &frame[12..]].concat()
}

const CUSTOMER: [u8; 4] = [0x81, 0, 0x20, 5];
const SERVICE: [u8; 4] = [0x88, 0xa8, 0, 9];

/// A frame as the peer sends it.
fn wrapped(frame: &[u8], wrap: &Wrap) -> Vec<u8> {
    wrap.frame(&[&[0; 14], frame].concat())
}

fn on(path: u32) -> Wrap {
    Wrap {
        gre_protocol: ETHERNET,
        ..Wrap::on(path)
    }
}

/// What one end sent, as the other receives it: its paths have the addresses the other way round.
fn crossed(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (source, destination) = (frame[26..30].to_vec(), frame[30..34].to_vec());
    frame[26..30].copy_from_slice(&destination);
    frame[30..34].copy_from_slice(&source);
    frame[..6].fill(0);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame
}

/// Every kind of frame that a LAN may bring, with what its outer header inherits: TOS, TTL.
fn frames() -> Vec<(&'static str, Vec<u8>, u8, u8)> {
    let mut marked = ipv4_frame(576);
    marked[15] = 0x2e << 2 | 0b01;
    marked[20] &= !0x40;
    let mut nonsense = ipv4_frame(100);
    nonsense[14] = 0x65;
    let marked_tos = 0x2e << 2 | 0b01;
    let six = 0x2a << 2;
    let mut lldp = frame(0x88cc, &[7; 40]);
    lldp[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, 0x0e]);
    vec![
        ("IPv4", ipv4_frame(1402), 0, 61),
        ("IPv4 with TOS", marked.clone(), marked_tos, 61),
        ("IPv6", ipv6_frame(1402), six | 0b10, 33),
        ("ARP", arp(), 0, 64),
        ("LLDP", lldp, 0, 64),
        (
            "a spanning tree's 802.3 frame",
            frame(38, &[0x42; 38]),
            0,
            64,
        ),
        ("four bytes", frame(0x888e, &[1, 1, 0, 0]), 0, 64),
        ("version 6 as IPv4", nonsense, 0, 64),
        (
            "IPv4 in a VLAN",
            tagged(&marked, &[CUSTOMER]),
            0x2e << 2,
            61,
        ),
        (
            "IPv6 in two",
            tagged(&ipv6_frame(200), &[SERVICE, CUSTOMER]),
            six,
            33,
        ),
        ("ARP in a VLAN", tagged(&arp(), &[CUSTOMER]), 0, 64),
        ("ARP in two", tagged(&arp(), &[SERVICE, CUSTOMER]), 0, 64),
        ("MPLS", frame(0x8847, &[0x42; 60]), 0, 64),
        ("one of a tunnel", frame(0x6558, &[0x42; 60]), 0, 64),
    ]
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn every_frame_goes_out_whole() {
    for key in [None, Some(0), Some(0xdead_beef_u32)] {
        for (what, frame, tos, ttl) in frames() {
            let mut kernel = kernel(key);
            let ran = kernel.egress(&frame);
            assert_eq!(ran.action, TC_ACT_REDIRECT, "{what}: {:?}", kernel.fates());
            let overhead = if key.is_some() { 28 } else { 24 };
            let ip = Ipv4Slice::from_slice(&ran.frame[14..]).unwrap();
            let header = ip.header();
            let (local, remote) = outer(0);
            assert_eq!(header.source_addr(), local, "{what}");
            assert_eq!(header.destination_addr(), remote, "{what}");
            assert_eq!(header.protocol().0, 47, "{what}");
            assert_eq!(
                usize::from(header.total_len()),
                overhead + frame.len(),
                "{what}"
            );
            assert_eq!(
                header.dcp().value() << 2 | header.ecn().value(),
                tos,
                "{what}"
            );
            assert_eq!(header.ttl(), ttl, "{what}");
            assert!(header.dont_fragment(), "{what}");
            let checksum = header.to_header().calc_header_checksum();
            assert_eq!(header.header_checksum(), checksum, "{what}");
            let gre = ip.payload().payload;
            assert_eq!(gre[2..4], ETHERNET.to_be_bytes(), "{what}");
            match key {
                None => assert_eq!(gre[..2], [0, 0], "{what}"),
                Some(key) => {
                    assert_eq!(gre[..2], [0x20, 0], "{what}");
                    assert_eq!(gre[4..8], key.to_be_bytes(), "{what}");
                }
            }
            assert_eq!(ran.frame[14 + overhead..], frame, "{what}");
            let stats = kernel.tables.path_stats(path_id(0)).unwrap();
            assert_eq!(
                (stats.tx_packets, stats.tx_bytes),
                (1, frame.len() as u64),
                "{what}"
            );
            assert_eq!(kernel.fates(), [], "{what}");
        }
    }
}

/// What goes out of one end comes in at the other as it was; what is very short is filled up.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn out_and_in_again() {
    for key in [None, Some(5)] {
        let (mut here, mut there) = (kernel(key), kernel(key));
        let mut bytes = 0;
        for (what, frame, _, _) in frames() {
            for _ in 0..2 {
                let ran = there.ingress(&crossed(&here.egress(&frame).frame));
                assert_eq!(ran.action, TC_ACT_REDIRECT, "{what}: {:?}", there.fates());
                let mut want = frame.clone();
                want.resize(frame.len().max(34), 0);
                assert_eq!(ran.frame, want, "{what}");
                bytes += frame.len() as u64;
            }
        }
        let sum = |kernel: &Kernel| {
            let stats = [0, 1].map(|slot| kernel.tables.path_stats(path_id(slot)).unwrap());
            assert_eq!(stats[0].tx_packets, stats[1].tx_packets);
            assert_eq!(stats[0].rx_packets, stats[1].rx_packets);
            stats.iter().fold((0, 0), |sum, stats| {
                (sum.0 + stats.tx_bytes, sum.1 + stats.rx_bytes)
            })
        };
        assert_eq!((sum(&here), sum(&there)), ((bytes, 0), (0, bytes)));
    }
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_fixed_ttl_is_that_of_every_frame() {
    let mut kernel = kernel(None);
    let bond = kernel.bond();
    kernel.set_bond(&Bond { ttl: 9, ..bond });
    for frame in [arp(), ipv4_frame(100)] {
        let sent = kernel.egress(&frame).frame;
        assert_eq!(Ipv4HeaderSlice::from_slice(&sent[14..]).unwrap().ttl(), 9);
    }
}

/// Frames that take no path, each with its reason.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn egress_fates() {
    let three = tagged(&ipv4_frame(100), &[SERVICE, CUSTOMER, CUSTOMER]);
    let mut one = kernel(None);
    assert_eq!(one.egress(&three).action, TC_ACT_SHOT);
    assert_eq!(one.fates(), [(BOND, Fate::TxTags, 1)]);

    // With nothing of IP in it a super-packet cannot be told how to be cut.
    let mut one = kernel(None);
    let ran = one.run(program::EGRESS, &frame(0x8847, &[0; 3000]), Some((3, 1000)));
    assert_eq!(ran.action, TC_ACT_SHOT);
    assert_eq!(one.fates(), [(BOND, Fate::TxNoRoom, 3)]);

    let mut one = kernel(None);
    one.set_flags(0, 0);
    one.set_flags(1, 0);
    assert_eq!(one.egress(&arp()).action, TC_ACT_SHOT);
    assert_eq!(one.fates(), [(BOND, Fate::TxNoPath, 1)]);
    assert_eq!(one.sent(2), [0, 0]);
}

/// Frames that do not come out of the bond, each with its reason; what is passed is passed untouched.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn ingress_fates() {
    let cut = |len: usize| wrapped(&ipv4_frame(100)[..len], &on(0));
    let congested = wrapped(&ipv4_frame(100), &Wrap { tos: 3, ..on(0) });
    let cases = [
        (
            "an IP packet",
            Fate::RxProtocol,
            Wrap::on(0).frame(&ipv4_frame(100)),
        ),
        ("nothing inside", Fate::RxMalformed, cut(0)),
        ("half a header", Fate::RxMalformed, cut(13)),
        ("CE on not ECN-capable", Fate::RxEcn, congested),
    ];
    for (what, fate, frame) in cases {
        let mut kernel = kernel(None);
        let ran = kernel.ingress(&frame);
        let action = match fate.verdict() {
            Verdict::Pass => TC_ACT_UNSPEC,
            Verdict::Drop => TC_ACT_SHOT,
        };
        assert_eq!(ran.action, action, "{what}");
        assert_eq!(kernel.fates(), [(BOND, fate, 1)], "{what}");
        assert_eq!(ran.frame, frame, "{what}: left as it was");
    }
    // Cut short inside, it is the receiver's matter, as it would be on a wire.
    for len in [14, 20, 33] {
        let mut kernel = kernel(None);
        let ran = kernel.ingress(&cut(len));
        assert_eq!(ran.action, TC_ACT_REDIRECT);
        assert_eq!(ran.frame[..len], ipv4_frame(100)[..len]);
    }
}

/// Congestion marked on the way reaches the packet in the frame, whose checksum stays right
/// (RFC 6040); where there is no packet, or behind a tag, the mark says nothing.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn congestion_reaches_the_inner_packet() {
    let mark = |frame: &[u8]| {
        let ran = kernel(None).ingress(&wrapped(frame, &Wrap { tos: 3, ..on(0) }));
        assert_eq!(ran.action, TC_ACT_REDIRECT);
        ran.frame
    };
    let mut four = ipv4_frame(100);
    four[15] = 0b10;
    let check = |frame: &[u8]| {
        let header = Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap();
        header.to_header().calc_header_checksum().to_be_bytes()
    };
    let sum = check(&four);
    four[24..26].copy_from_slice(&sum);
    let mut want = four.clone();
    want[15] = 0b11;
    let sum = check(&want);
    want[24..26].copy_from_slice(&sum);
    assert_eq!(mark(&four), want);

    let six = ipv6_frame(100);
    let mut want = six.clone();
    want[15] |= 0b11 << 4;
    assert_eq!(mark(&six), want);

    for untouched in [arp(), tagged(&four, &[CUSTOMER])] {
        assert_eq!(mark(&untouched), untouched);
    }
}

/// An Ethernet device's next hop is found whatever the frame is addressed to.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_broadcast_leaves_by_an_ethernet_device_too() {
    let mut kernel = kernel(None);
    for slot in 0..2 {
        kernel.set_flags(slot, PATH_USABLE | PATH_LAST_RESORT | PATH_NEIGHBOUR);
    }
    let ran = kernel.egress(&arp());
    assert_eq!(ran.action, TC_ACT_REDIRECT);
    assert_eq!(ran.frame[0] & 1, 0, "the kernel would drop it: for a group");
    assert_eq!(ran.frame[38..], arp(), "within, it is as it was");
}

/// The controller's frame that asks for a probe on a slot.
fn trigger(slot: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00, TRIGGER | slot]);
    frame.extend((len as u16).to_be_bytes());
    frame.resize(14 + LEN, 0);
    frame
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn probes_pass_and_prove() {
    for key in [None, Some(7)] {
        let header = if key.is_some() { 28 } else { 24 };
        let (mut here, mut there) = (kernel(key), kernel(key));
        // A long one is longer than what asks for it.
        for sent in [LEN, 1416] {
            let request = here.egress(&trigger(1, sent));
            assert_eq!(request.action, TC_ACT_REDIRECT);
            assert_eq!(request.frame.len(), 14 + header + sent);
            assert_eq!(request.frame[36..38], PROBE.to_be_bytes());
            let ip = Ipv4Slice::from_slice(&request.frame[14..]).unwrap();
            assert_eq!(usize::from(ip.header().total_len()), header + sent);
            assert!(
                request.frame[14 + header + LEN..]
                    .iter()
                    .all(|&byte| byte == 0)
            );
            let answer = there.ingress(&crossed(&request.frame));
            assert_eq!(answer.action, TC_ACT_REDIRECT);
            assert_eq!(here.ingress(&crossed(&answer.frame)).action, TC_ACT_SHOT);
            let item = here.tables.samples.next().unwrap().to_vec();
            let sample: Sample = bytemuck::pod_read_unaligned(&item);
            assert_eq!(sample.len as usize, header + sent);
        }
        assert_eq!(here.fates(), [(BOND, Fate::RxProbe, 2)]);
        assert_eq!(here.sent(2), [0, 0], "probes are no traffic");
    }
}

/// A frame of the LAN is never taken for the controller's.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_frame_between_stations_asks_for_nothing() {
    let mut kernel = kernel(None);
    for (at, byte) in [(0, 2), (5, 1), (6, 2), (11, 1)] {
        let mut frame = trigger(1, LEN);
        frame[at] = byte;
        let ran = kernel.egress(&frame);
        assert_eq!(ran.frame[36..38], ETHERNET.to_be_bytes());
        assert_eq!(ran.frame[38..], frame);
    }
    assert_eq!(kernel.sent(2), [2, 2]);
}
