//! The program for drivers, beside the one at tc ingress: what it takes comes out as there, and is counted
//! as there; what it leaves, it leaves as it came.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use common::{
    BOND, IFINDEX, Kernel, Ran, TC_ACT_REDIRECT, Wrap, XDP_DROP, XDP_PASS, XDP_REDIRECT,
    frame_over_ipv6, ipv4_frame, ipv6_frame, path_id,
};
use netbond::tables::Raw;
use netbond_common::{
    abi::{BOND_ETHERNET, BOND_IN_ORDER, BOND_NUMBERED, Bond, DRIVER_UNDERLAY, Driver},
    fate::Fate,
    names::{feature, program},
    probe,
};

/// What the bond device of these tests takes, bytes.
const MTU: u32 = 1400;
const KEY: u32 = 0xdead_beef;

/// A bond as `change` makes it.
fn bond(change: impl FnOnce(&mut Bond), key: Option<u32>) -> Kernel {
    let mut kernel = Kernel::with_features(&[1], key, feature::IPV6).with_xdp(MTU);
    let mut bond = kernel.bond();
    change(&mut bond);
    kernel.set_bond(&bond);
    kernel.over_ipv6(0);
    kernel
}

fn frames() -> Kernel {
    bond(|bond| bond.flags = BOND_ETHERNET, None)
}

/// Packets and bytes that the path received so far.
fn received(kernel: &Kernel) -> (u64, u64) {
    let stats = kernel.tables.path_stats(path_id(0)).unwrap();
    (stats.rx_packets, stats.rx_bytes)
}

/// The program for drivers takes the frame, and does with it what the one at tc ingress does.
fn assert_taken(what: &str, frame: &[u8], kernel: &mut Kernel) -> Vec<u8> {
    let mut counted = |run: &mut dyn FnMut(&mut Kernel) -> Ran| {
        let before = received(kernel);
        let ran = run(kernel);
        let after = received(kernel);
        assert_eq!(kernel.fates(), [], "{what}");
        (ran, (after.0 - before.0, after.1 - before.1))
    };
    let (tc, by_tc) = counted(&mut |kernel| kernel.run(program::INGRESS_L2, frame, None));
    let (xdp, by_xdp) = counted(&mut |kernel| kernel.xdp(frame));
    assert_eq!(tc.action, TC_ACT_REDIRECT, "{what}");
    assert_eq!(xdp.action, XDP_REDIRECT, "{what}");
    assert_eq!(xdp.frame, tc.frame, "{what}");
    assert_eq!(by_xdp, by_tc, "{what}");
    assert_eq!(by_xdp.0, 1, "{what}");
    xdp.frame
}

/// It leaves the frame to the kernel, untouched and uncounted.
fn assert_left(what: &str, frame: &[u8], kernel: &mut Kernel) {
    let (before, fates) = (received(kernel), kernel.fates());
    let ran = kernel.xdp(frame);
    assert_eq!(ran.action, XDP_PASS, "{what}");
    assert_eq!(ran.frame, frame, "{what}");
    assert_eq!(received(kernel), before, "{what}");
    assert_eq!(kernel.fates(), fates, "{what}");
}

/// An inner packet with another TOS, or traffic class.
fn marked(mut inner: Vec<u8>, tos: u8) -> Vec<u8> {
    if inner[14] >> 4 == 4 {
        inner[15] = tos;
        inner[24..26].fill(0);
        let header = etherparse::Ipv4HeaderSlice::from_slice(&inner[14..]).unwrap();
        let check = header.to_header().calc_header_checksum();
        inner[24..26].copy_from_slice(&check.to_be_bytes());
    } else {
        inner[14] = 0x60 | tos >> 4;
        inner[15] = tos << 4;
    }
    inner
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn packets_come_out_as_at_tc_ingress() {
    let (mut kernel, mut with_key) = (bond(|_| {}, None), bond(|_| {}, Some(KEY)));
    for len in [60, 576, MTU as usize] {
        for inner in [ipv4_frame(len), ipv6_frame(len)] {
            let protocol = [inner[12], inner[13]];
            let wrap = || Wrap {
                gre_protocol: if inner[14] >> 4 == 4 { 0x0800 } else { 0x86dd },
                ..Wrap::on(0)
            };
            let protocol_name = format!("{protocol:02x?} of {len} bytes");
            let plain = wrap().frame(&inner);
            assert_taken(&protocol_name, &plain, &mut kernel);
            let keyed = Wrap {
                gre_flags: 0x2000,
                gre_fields: KEY.to_be_bytes().to_vec(),
                ..wrap()
            };
            let keyed = keyed.frame(&inner);
            assert_taken(&protocol_name, &keyed, &mut with_key);
            let options = Wrap {
                options: 8,
                ..wrap()
            };
            let options = options.frame(&inner);
            assert_taken(&protocol_name, &options, &mut kernel);
            // Numbered, though this bond makes nothing of it.
            let numbered = Wrap {
                gre_flags: 0x1000,
                gre_fields: vec![0, 0, 0, 7],
                ..wrap()
            };
            let numbered = numbered.frame(&inner);
            assert_taken(&protocol_name, &numbered, &mut kernel);
            let six = Wrap {
                ipv6: true,
                ..wrap()
            };
            let six = six.frame(&inner);
            assert_taken(&protocol_name, &six, &mut kernel);
        }
    }
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn frames_come_out_as_at_tc_ingress() {
    let mut kernel = frames();
    for inner in [
        ipv4_frame(576),
        ipv6_frame(576),
        ipv4_frame(MTU as usize),
        // No IP packet.
        [&[0xff; 6][..], &[2; 6], &[0x88, 0xb5], &[9; 60]].concat(),
        // Nor a well-formed one.
        [&[2; 12][..], &[0x08, 0], &[0x65; 60]].concat(),
        // Tagged.
        [&[2; 12][..], &[0x81, 0, 0, 5, 0x08, 0], &[0x45; 60]].concat(),
    ] {
        let frame = Wrap {
            gre_protocol: 0x6558,
            ..Wrap::on(0)
        }
        .frame(&[&[0; 14], inner.as_slice()].concat());
        let taken = assert_taken(&format!("{:02x?}", &inner[..16]), &frame, &mut kernel);
        assert_eq!(taken, inner, "the frame itself");
    }
}

/// RFC 6040: a mark on the way reaches the packet, with its checksum.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn congestion_marks_are_taken_over() {
    let (mut kernel, mut of_frames) = (bond(|_| {}, None), frames());
    for inner in [ipv4_frame(200), ipv6_frame(200)] {
        for (tos, outer) in [(0b10, 0b11), (0b01, 0b11), (0b10, 0b01), (0b11, 0b11)] {
            let inner = marked(inner.clone(), 0x2e << 2 | tos);
            let wrap = Wrap {
                tos: outer,
                gre_protocol: if inner[14] >> 4 == 4 { 0x0800 } else { 0x86dd },
                ..Wrap::on(0)
            };
            let what = format!("{tos:02b} in {outer:02b}");
            assert_taken(&what, &wrap.frame(&inner), &mut kernel);
            let framed = Wrap {
                gre_protocol: 0x6558,
                ..wrap
            }
            .frame(&[&[0; 14], inner.as_slice()].concat());
            assert_taken(&what, &framed, &mut of_frames);
        }
    }
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn what_takes_the_kernel_is_left_to_it() {
    let mut kernel = bond(|_| {}, None);
    let inner = ipv4_frame(200);
    let plain = || Wrap::on(0);
    let with = |flags, fields: &[u8]| {
        let wrap = Wrap {
            gre_flags: flags,
            gre_fields: fields.to_vec(),
            ..plain()
        };
        wrap.frame(&inner)
    };
    let carrying = |protocol| {
        let wrap = Wrap {
            gre_protocol: protocol,
            ..plain()
        };
        wrap.frame(&inner)
    };
    let fragment = |frags| Wrap { frags, ..plain() }.frame(&inner);
    let changed = |at: usize, byte| {
        let mut frame = plain().frame(&inner);
        frame[at] = byte;
        frame
    };
    let congested = Wrap {
        tos: 0b11,
        ..plain()
    };
    let tagged = [
        &plain().frame(&inner)[..12],
        &[0x81, 0, 0, 5],
        &plain().frame(&inner)[12..],
    ]
    .concat();
    let four_too_long = plain().frame(&ipv4_frame(MTU as usize + 1));
    for (what, frame) in [
        ("not GRE", changed(14 + 9, 17)),
        ("no IP", changed(12, 0x88)),
        ("for another host", changed(0, 2)),
        ("for all hosts", {
            let mut frame = plain().frame(&inner);
            frame[..6].fill(0xff);
            frame
        }),
        ("of a stranger", changed(14 + 15, 99)),
        ("a tag", tagged),
        ("the first fragment", fragment(0x2000)),
        ("the last fragment", fragment(0x0010)),
        ("a checksum", with(0x8000, &[0; 4])),
        ("a key where there is none", with(0x2000, &[0; 4])),
        ("another version of GRE", with(0x0001, &[])),
        ("a probe", carrying(u16::from_be_bytes(probe::PROTOCOL))),
        ("a frame in a bond of packets", carrying(0x6558)),
        ("IPv6 by its type alone", carrying(0x86dd)),
        ("cut short", plain().frame(&inner)[..14 + 24 + 19].to_vec()),
        ("a mark that must not be", congested.frame(&inner)),
        ("longer than the bond device takes", four_too_long),
        (
            "a fragment over IPv6",
            frame_over_ipv6(
                0,
                0,
                44,
                &[&[47, 0, 0, 1, 0, 0, 0, 1], &inner[14..]].concat(),
            ),
        ),
        (
            "a probe over IPv6",
            Wrap {
                ipv6: true,
                gre_protocol: u16::from_be_bytes(probe::PROTOCOL),
                ..plain()
            }
            .frame(&inner),
        ),
    ] {
        assert_left(what, &frame, &mut kernel);
    }
    let mut kernel = frames();
    let framed = |inner: &[u8]| {
        let wrap = Wrap {
            gre_protocol: 0x6558,
            ..plain()
        };
        wrap.frame(&[&[0; 14], inner].concat())
    };
    for (what, frame) in [
        ("a packet in a bond of frames", plain().frame(&inner)),
        ("a frame that has to be filled up", framed(&[2; 33])),
        ("too long a frame", framed(&ipv4_frame(MTU as usize + 1))),
    ] {
        assert_left(what, &frame, &mut kernel);
    }
}

/// What has a number has to wait for its turn, or may be a copy: tc finds out. The rest of the bond's need not.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn what_has_a_number_is_left() {
    let mut kernel = Kernel::with_features(&[1], None, feature::NUMBERED).with_xdp(MTU);
    kernel.set_order(BOND_NUMBERED | BOND_IN_ORDER, 1);
    let inner = ipv4_frame(200);
    let numbered = Wrap {
        gre_flags: 0x1000,
        gre_fields: vec![0, 0, 0, 7],
        ..Wrap::on(0)
    };
    assert_left("numbered", &numbered.frame(&inner), &mut kernel);
    let ran = kernel.xdp(&Wrap::on(0).frame(&inner));
    assert_eq!((ran.action, &ran.frame[14..]), (XDP_REDIRECT, &inner[14..]));
    assert_eq!(received(&kernel), (1, 200));
}

/// Nothing is taken where the controller did not say so.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn bonds_and_devices_that_do_without_are_left_alone() {
    let frame = Wrap::on(0).frame(&ipv4_frame(200));
    let mut kernel = bond(|_| {}, None);
    let with = kernel.bond();
    kernel.set_bond(&Bond { xdp_mtu: 0, ..with });
    assert_left("the bond", &frame, &mut kernel);
    kernel.set_bond(&with);
    kernel.tables.drivers.remove(&IFINDEX).unwrap();
    assert_left("the device", &frame, &mut kernel);
    for (what, address, roles) in [
        ("another address", [2; 6], DRIVER_UNDERLAY),
        ("of no path", [0; 6], 0),
    ] {
        let other = Raw(Driver { address, roles });
        kernel.tables.drivers.insert(IFINDEX, other, 0).unwrap();
        assert_left(what, &frame, &mut kernel);
    }
    let own = Raw(Driver {
        address: [0; 6],
        roles: DRIVER_UNDERLAY,
    });
    kernel.tables.drivers.insert(IFINDEX, own, 0).unwrap();
    assert_eq!(kernel.xdp(&frame).action, XDP_REDIRECT);
}

/// The bond's device went away between two words of the controller's.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_packet_that_no_device_takes_is_counted_once() {
    let mut kernel = bond(|_| {}, None);
    // Index 0 empties a place.
    kernel.tables.bond_peers.set(BOND, 0, None, 0).unwrap();
    let ran = kernel.xdp(&Wrap::on(0).frame(&ipv4_frame(200)));
    assert_eq!(ran.action, XDP_DROP);
    assert_eq!(kernel.fates(), [(BOND, Fate::RxNoDecap, 1)]);
    assert_eq!(received(&kernel), (0, 0));
}

/// The kernel allows a million instructions; older verifiers walk further.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn the_verifier_has_room() {
    for features in [0, feature::IPV6, feature::FLOW, feature::ALL] {
        let mut kernel = Kernel::with_features(&[1], None, features).with_xdp(MTU);
        let walked = kernel.verified_xdp();
        println!("{features:#x}: {walked} instructions");
        assert!(walked < 200_000, "{features:#x}: {walked} instructions");
    }
}
