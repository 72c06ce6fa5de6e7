//! The programs on packets of ours, in this kernel.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::process::{Command, Stdio};
use std::time::Duration;

use bytemuck::Zeroable as _;
use common::{
    BOND, IFINDEX, Kernel, MAC, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, Wrap, ipv4_frame,
    ipv6_frame, outer, path_id,
};
use etherparse::{Ipv4HeaderSlice, Ipv4Slice};
use netbond::tables::Raw;
use netbond_common::{
    abi::{ADMIN_DOWN, Bond, Lane, NO_BOND, PATH_LAST_RESORT, PATH_USABLE, SHARES_EQUAL},
    fate::{Fate, Verdict},
    names::{Mode, feature, program},
    order,
};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

/// The outer header of a frame that left.
fn outer_header(frame: &[u8]) -> Ipv4HeaderSlice<'_> {
    Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap()
}

/// The path that a frame left by.
fn path_of(frame: &[u8]) -> u32 {
    u32::from(outer_header(frame).source()[2])
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn round_robin_is_exact() {
    let mut kernel = Kernel::with_bond(&[1, 1], None);
    let frame = ipv4_frame(100);
    let paths: Vec<u32> = (0..6)
        .map(|_| path_of(&kernel.egress(&frame).frame))
        .collect();
    assert_eq!(paths, [0, 1, 0, 1, 0, 1]);
    assert_eq!(kernel.sent(2), [3, 3]);
    assert_eq!(kernel.fates(), []);
}

/// The kernel allows a million instructions; the next one's verifier may walk further.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn the_verifier_has_room() {
    for (features, most) in [(0, 400_000), (feature::ALL, 800_000)] {
        let walked = Kernel::with_features(&[1, 1], None, features).verified();
        assert!(walked < most, "{walked} instructions with {features:#x}");
    }
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn weights_are_shares() {
    let mut kernel = Kernel::with_bond(&[3, 1], None);
    let frame = ipv4_frame(100);
    for _ in 0..400 {
        kernel.egress(&frame);
    }
    assert_eq!(kernel.sent(2), [300, 100]);
}

/// An independent parser reads what was sent: addresses, lengths, checksum, what is copied from the
/// inner packet, and the inner packet untouched behind it.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn egress_headers_decode() {
    for key in [None, Some(0), Some(0xdead_beef_u32)] {
        let mut kernel = Kernel::with_bond(&[1], key);
        let mut four = ipv4_frame(576);
        four[15] = 0x2e << 2 | 0b01;
        four[20] |= 0x40;
        let mut fragmentable = ipv4_frame(1400);
        fragmentable[20] &= !0x40;
        let six = ipv6_frame(1280);
        let cases = [
            (&four, 0x0800_u16, 0x2e << 2 | 0b01_u8, 61, true),
            (&fragmentable, 0x0800, 0, 61, false),
            (&six, 0x86dd, 0x2a << 2 | 0b10, 33, true),
        ];
        for (frame, protocol, tos, ttl, dont_fragment) in cases {
            let ran = kernel.egress(frame);
            assert_eq!(ran.action, TC_ACT_REDIRECT);
            let overhead = if key.is_some() { 28 } else { 24 };
            assert_eq!(ran.frame.len(), frame.len() + overhead);
            let ip = Ipv4Slice::from_slice(&ran.frame[14..]).unwrap();
            let header = ip.header();
            let (local, remote) = outer(0);
            assert_eq!(header.source_addr(), local);
            assert_eq!(header.destination_addr(), remote);
            assert_eq!(header.protocol().0, 47);
            assert_eq!(usize::from(header.total_len()), ran.frame.len() - 14);
            assert_eq!(header.dcp().value() << 2 | header.ecn().value(), tos);
            assert_eq!(header.ttl(), ttl);
            assert_eq!(header.dont_fragment(), dont_fragment);
            assert_eq!(
                header.header_checksum(),
                header.to_header().calc_header_checksum()
            );
            let gre = ip.payload().payload;
            assert_eq!(gre[2..4], protocol.to_be_bytes());
            match key {
                None => assert_eq!(gre[..2], [0, 0]),
                Some(key) => {
                    assert_eq!(gre[..2], [0x20, 0]);
                    assert_eq!(gre[4..8], key.to_be_bytes());
                }
            }
            assert_eq!(ran.frame[14 + overhead..], frame[14..], "the inner packet");
        }
    }
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn fixed_ttl() {
    let mut kernel = Kernel::with_bond(&[1], None);
    let bond = kernel.bond();
    kernel.set_bond(&Bond { ttl: 200, ..bond });
    assert_eq!(
        outer_header(&kernel.egress(&ipv4_frame(60)).frame).ttl(),
        200
    );
}

/// A super-packet counts as its segments, here in its end: a test run cannot say of which type it is,
/// so the kernel refuses to encapsulate it. (Lab tests carry real ones.)
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn gso_counts_segments() {
    let mut kernel = Kernel::with_bond(&[1, 1], None);
    let ran = kernel.run(program::EGRESS, &ipv4_frame(3000), Some((3, 1000)));
    assert_eq!(ran.action, TC_ACT_SHOT);
    assert_eq!(kernel.fates(), [(BOND, Fate::TxNoRoom, 3)]);
    assert_eq!(kernel.sent(2), [0, 0]);
}

/// A host that was held up has no fresh proof of any path: then one that was in use until then is better than
/// one that died long ago.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_lapsed_path_is_better_than_a_dead_one() {
    let features = [0, feature::FLOW, feature::ACTIVE_BACKUP];
    for (features, mode) in
        features
            .into_iter()
            .zip([Mode::RoundRobin, Mode::RoundRobin, Mode::ActiveBackup])
    {
        let mut kernel = Kernel::with_features(&[1, 1, 1], None, features);
        kernel.set_order(0, 3);
        let lane = Lane {
            mode: mode as u32,
            shares: SHARES_EQUAL,
            order: order::pack(0..3),
            ..Lane::zeroed()
        };
        kernel.tables.lanes.set(BOND, Raw(lane), 0).unwrap();
        for slot in 0..3 {
            // No proof at all: the oldest there is.
            kernel.tables.limits.set(path_id(slot), 1, 0).unwrap();
            kernel.set_flags(slot, PATH_LAST_RESORT);
        }
        kernel.set_flags(1, PATH_USABLE | PATH_LAST_RESORT);
        for _ in 0..12 {
            assert_eq!(kernel.egress(&ipv4_frame(100)).action, TC_ACT_REDIRECT);
        }
        assert_eq!(kernel.sent(3), [0, 12, 0], "{mode:?}, {features}");
        let stats = kernel.tables.path_stats(path_id(1)).unwrap();
        assert_eq!(stats.tx_last_resort, 12);
    }
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn unusable_paths_are_skipped() {
    let mut kernel = Kernel::with_bond(&[1, 1, 1], None);
    let frame = ipv4_frame(100);
    // The user's word counts at once, whatever the wheel says.
    kernel.tables.admin.set(path_id(1), ADMIN_DOWN, 0).unwrap();
    for _ in 0..30 {
        assert_eq!(kernel.egress(&frame).action, TC_ACT_REDIRECT);
    }
    let sent = kernel.sent(3);
    assert_eq!((sent[1], sent.iter().sum::<u64>()), (0, 30), "{sent:?}");
    assert_eq!(
        sent[0], sent[2],
        "the share of the lost path is spread evenly"
    );
    let stand_in: u64 = (0..3)
        .map(|slot| kernel.tables.path_stats(path_id(slot)).unwrap().tx_stand_in)
        .sum();
    assert_eq!(stand_in, 10);

    kernel.set_flags(0, PATH_LAST_RESORT);
    for _ in 0..10 {
        assert_eq!(path_of(&kernel.egress(&frame).frame), 2);
    }
    kernel.set_flags(2, 0);
    for _ in 0..10 {
        assert_eq!(path_of(&kernel.egress(&frame).frame), 0, "the last resort");
    }
    assert_eq!(
        kernel.tables.path_stats(path_id(0)).unwrap().tx_last_resort,
        10
    );
    kernel.set_flags(0, 0);
    assert_eq!(kernel.egress(&frame).action, TC_ACT_SHOT);
    assert_eq!(kernel.fates(), [(BOND, Fate::TxNoPath, 1)]);
    kernel.set_flags(0, PATH_USABLE);
    assert_eq!(path_of(&kernel.egress(&frame).frame), 0);
}

/// Frames that end in the egress hook, each with its reason.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn egress_fates() {
    let mut arp = vec![0xff; 12];
    arp.extend([0x08, 0x06]);
    arp.resize(60, 0);
    let mut wrong_version = ipv4_frame(100);
    wrong_version[14] = 0x65;
    let mut short_header = ipv4_frame(100);
    short_header[14] = 0x44;
    let mut six_with_4 = ipv6_frame(100);
    six_with_4[14] = 0x45;
    let cases = [
        ("ARP", arp, Fate::TxNotIp),
        ("version 6 as IPv4", wrong_version, Fate::TxMalformed),
        ("header length 16", short_header, Fate::TxMalformed),
        ("version 4 as IPv6", six_with_4, Fate::TxMalformed),
    ];
    for (what, frame, fate) in cases {
        let mut kernel = Kernel::with_bond(&[1, 1], None);
        let ran = kernel.egress(&frame);
        assert_eq!(
            (ran.action, fate.verdict()),
            (TC_ACT_SHOT, Verdict::Drop),
            "{what}"
        );
        assert_eq!(kernel.fates(), [(BOND, fate, 1)], "{what}");
        assert_eq!(kernel.sent(2), [0, 0], "{what}");
    }
    let mut kernel = Kernel::with_bond(&[1], None);
    kernel.tables.bond_by_ifindex.remove(&IFINDEX).unwrap();
    assert_eq!(kernel.egress(&ipv4_frame(60)).action, TC_ACT_SHOT);
    assert_eq!(kernel.fates(), [(NO_BOND, Fate::TxNoBond, 1)]);
}

/// Inner packets with IP options, and fragments, are carried like any other.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn odd_inner_packets_are_carried() {
    let mut kernel = Kernel::with_bond(&[1], None);
    let mut options = ipv4_frame(120);
    options[14] = 0x47;
    let mut fragment = ipv4_frame(120);
    fragment[20..22].copy_from_slice(&0x2000_u16.to_be_bytes());
    for inner in [options, fragment] {
        let ran = kernel.egress(&inner);
        assert_eq!(ran.action, TC_ACT_REDIRECT);
        assert_eq!(ran.frame[38..], inner[14..]);
        assert!(!outer_header(&ran.frame).is_fragmenting_payload());
        let back = kernel.ingress(&Wrap::on(0).frame(&inner));
        assert_eq!(back.action, TC_ACT_REDIRECT);
        assert_eq!(back.frame[14..], inner[14..]);
    }
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn ingress_decapsulates() {
    let key = 0x0102_0304_u32;
    let key_bytes = key.to_be_bytes().to_vec();
    let sequence = [key_bytes.as_slice(), &[0, 0, 0, 9]].concat();
    let plain = || Wrap::on(1);
    let cases = [
        ("plain", None, plain()),
        (
            "outer options",
            None,
            Wrap {
                options: 8,
                ..plain()
            },
        ),
        (
            "sequence",
            None,
            Wrap {
                gre_flags: 0x1000,
                gre_fields: vec![0, 0, 0, 1],
                ..plain()
            },
        ),
        (
            "don't fragment",
            None,
            Wrap {
                frags: 0x4000,
                ..plain()
            },
        ),
        (
            "key",
            Some(key),
            Wrap {
                gre_flags: 0x2000,
                gre_fields: key_bytes,
                ..plain()
            },
        ),
        (
            "key and sequence",
            Some(key),
            Wrap {
                gre_flags: 0x3000,
                gre_fields: sequence,
                ..plain()
            },
        ),
    ];
    for (what, key, wrap) in cases {
        for (inner, protocol) in [(ipv4_frame(300), 0x0800_u16), (ipv6_frame(300), 0x86dd)] {
            let mut kernel = Kernel::with_bond(&[1, 1], key);
            let wrap = Wrap {
                gre_protocol: protocol,
                gre_fields: wrap.gre_fields.clone(),
                ..wrap
            };
            let ran = kernel.ingress(&wrap.frame(&inner));
            assert_eq!(ran.action, TC_ACT_REDIRECT, "{what}");
            assert_eq!(ran.frame[..6], MAC, "{what}: to the bond device");
            assert_eq!(ran.frame[12..14], protocol.to_be_bytes(), "{what}");
            assert_eq!(ran.frame[14..], inner[14..], "{what}");
            let stats = kernel.tables.path_stats(path_id(1)).unwrap();
            assert_eq!((stats.rx_packets, stats.rx_bytes), (1, 300), "{what}");
            assert_eq!(kernel.fates(), [], "{what}");
        }
    }
}

/// Frames that end in the ingress hook, each with its reason; what is passed is passed untouched.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn ingress_fates() {
    let inner = ipv4_frame(200);
    let plain = || Wrap::on(0);
    let keyed = |flags, fields: &[u8]| Wrap {
        gre_flags: flags,
        gre_fields: fields.to_vec(),
        ..plain()
    };
    let mut stranger = plain().frame(&inner);
    stranger[14 + 15] = 99;
    let mut reversed = plain().frame(&inner);
    let (source, destination) = (reversed[26..30].to_vec(), reversed[30..34].to_vec());
    reversed[26..30].copy_from_slice(&destination);
    reversed[30..34].copy_from_slice(&source);
    let mut for_another_host = plain().frame(&inner);
    for_another_host[0] = 2;
    let mut not_gre = plain().frame(&inner);
    not_gre[14 + 9] = 17;
    let mut wrong_inner = inner.clone();
    wrong_inner[14] = 0x65;
    let mut short_inner = inner.clone();
    short_inner[14] = 0x44;
    let four_as_six = Wrap {
        gre_protocol: 0x86dd,
        ..plain()
    }
    .frame(&inner);
    let cases = [
        ("not GRE", NO_BOND, Fate::RxForeign, not_gre),
        ("another source", NO_BOND, Fate::RxForeign, stranger),
        (
            "our own addresses reversed",
            NO_BOND,
            Fate::RxForeign,
            reversed,
        ),
        ("overheard", NO_BOND, Fate::RxForeign, for_another_host),
        (
            "key 0 where no key is",
            NO_BOND,
            Fate::RxForeign,
            keyed(0x2000, &[0; 4]).frame(&inner),
        ),
        (
            "cut in the GRE header",
            NO_BOND,
            Fate::RxForeign,
            plain().frame(&inner)[..36].to_vec(),
        ),
        (
            "cut in the key",
            NO_BOND,
            Fate::RxForeign,
            keyed(0x2000, &[0; 4]).frame(&inner)[..40].to_vec(),
        ),
        ("IPv6", NO_BOND, Fate::RxForeign, ipv6_frame(100)),
        (
            "first fragment",
            NO_BOND,
            Fate::RxFragment,
            Wrap {
                frags: 0x2000,
                ..plain()
            }
            .frame(&inner),
        ),
        (
            "last fragment",
            NO_BOND,
            Fate::RxFragment,
            Wrap {
                frags: 0x0010,
                ..plain()
            }
            .frame(&inner),
        ),
        (
            "checksum",
            NO_BOND,
            Fate::RxGreFlags,
            keyed(0x8000, &[0; 4]).frame(&inner),
        ),
        (
            "routing",
            NO_BOND,
            Fate::RxGreFlags,
            keyed(0x4000, &[0; 4]).frame(&inner),
        ),
        (
            "PPTP",
            NO_BOND,
            Fate::RxGreFlags,
            keyed(0x3001, &[0; 8]).frame(&inner),
        ),
        (
            "gretap",
            BOND,
            Fate::RxProtocol,
            Wrap {
                gre_protocol: 0x6558,
                ..plain()
            }
            .frame(&inner),
        ),
        (
            "nothing inside",
            BOND,
            Fate::RxMalformed,
            plain().frame(&inner)[..38].to_vec(),
        ),
        (
            "cut inside",
            BOND,
            Fate::RxMalformed,
            plain().frame(&inner)[..38 + 19].to_vec(),
        ),
        (
            "version 6 inside",
            BOND,
            Fate::RxMalformed,
            plain().frame(&wrong_inner),
        ),
        (
            "short header inside",
            BOND,
            Fate::RxMalformed,
            plain().frame(&short_inner),
        ),
        ("version 4 as IPv6", BOND, Fate::RxMalformed, four_as_six),
        (
            "CE on not ECN-capable",
            BOND,
            Fate::RxEcn,
            Wrap { tos: 3, ..plain() }.frame(&inner),
        ),
    ];
    for (what, bond, fate, frame) in cases {
        let mut kernel = Kernel::with_bond(&[1, 1], None);
        let ran = kernel.ingress(&frame);
        let action = match fate.verdict() {
            Verdict::Pass => TC_ACT_UNSPEC,
            Verdict::Drop => TC_ACT_SHOT,
        };
        assert_eq!(ran.action, action, "{what}");
        assert_eq!(kernel.fates(), [(bond, fate, 1)], "{what}");
        assert_eq!(ran.frame, frame, "{what}: left as it was");
        assert_eq!(
            kernel.tables.path_stats(path_id(0)).unwrap().rx_packets,
            0,
            "{what}"
        );
    }
}

/// With a key, only that key is ours.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn another_key_is_foreign() {
    let inner = ipv4_frame(200);
    for (flags, fields) in [
        (0, vec![]),
        (0x2000, vec![0, 0, 0, 8]),
        (0x2000, vec![7, 0, 0, 0]),
    ] {
        let mut kernel = Kernel::with_bond(&[1], Some(7));
        let wrap = Wrap {
            gre_flags: flags,
            gre_fields: fields,
            ..Wrap::on(0)
        };
        assert_eq!(kernel.ingress(&wrap.frame(&inner)).action, TC_ACT_UNSPEC);
        assert_eq!(kernel.fates(), [(NO_BOND, Fate::RxForeign, 1)]);
    }
}

/// Congestion marked on the way reaches the inner packet, whose checksum stays right (RFC 6040).
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn congestion_reaches_the_inner_packet() {
    for inner_ecn in [0b01_u8, 0b10, 0b11] {
        let mut four = ipv4_frame(100);
        four[15] = 0x2e << 2 | inner_ecn;
        let check = Ipv4HeaderSlice::from_slice(&four[14..])
            .unwrap()
            .to_header()
            .calc_header_checksum();
        four[24..26].copy_from_slice(&check.to_be_bytes());
        let mut kernel = Kernel::with_bond(&[1], None);
        let ran = kernel.ingress(
            &Wrap {
                tos: 3,
                ..Wrap::on(0)
            }
            .frame(&four),
        );
        let header = Ipv4HeaderSlice::from_slice(&ran.frame[14..]).unwrap();
        assert_eq!((header.ecn().value(), header.dcp().value()), (0b11, 0x2e));
        assert_eq!(
            header.header_checksum(),
            header.to_header().calc_header_checksum()
        );
        assert_eq!(ran.frame[34..], four[34..]);

        let mut six = ipv6_frame(100);
        six[15] = six[15] & 0xcf | inner_ecn << 4;
        let wrap = Wrap {
            tos: 3,
            gre_protocol: 0x86dd,
            ..Wrap::on(0)
        };
        let ran = kernel.ingress(&wrap.frame(&six));
        let mut want = six.clone();
        want[15] |= 0b11 << 4;
        assert_eq!(ran.frame[14..], want[14..]);
    }
}

/// What goes out of one end comes in at the other as it was.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn out_and_in_again() {
    for key in [None, Some(5)] {
        let mut here = Kernel::with_bond(&[1, 1], key);
        let mut there = Kernel::with_bond(&[1, 1], key);
        for inner in [
            ipv4_frame(28),
            ipv4_frame(1400),
            ipv6_frame(48),
            ipv6_frame(1400),
        ] {
            for _ in 0..2 {
                let mut frame = here.egress(&inner).frame;
                // The peer's paths have the addresses the other way round.
                let (source, destination) = (frame[26..30].to_vec(), frame[30..34].to_vec());
                frame[26..30].copy_from_slice(&destination);
                frame[30..34].copy_from_slice(&source);
                // The device that sends writes its own Ethernet header.
                frame[..6].fill(0);
                frame[12..14].copy_from_slice(&[0x08, 0x00]);
                let ran = there.ingress(&frame);
                assert_eq!(ran.action, TC_ACT_REDIRECT);
                assert_eq!(ran.frame[14..], inner[14..]);
            }
        }
        for slot in 0..2 {
            let (sent, received) = (
                here.tables.path_stats(path_id(slot)).unwrap(),
                there.tables.path_stats(path_id(slot)).unwrap(),
            );
            assert_eq!(sent.tx_packets, 4);
            assert_eq!(
                (sent.tx_packets, sent.tx_bytes),
                (received.rx_packets, received.rx_bytes)
            );
        }
    }
}

/// A signal ends the verifier's work, such as that of a second `systemctl reload`; here of a stop.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn signals_do_not_keep_the_programs_from_being_loaded() {
    const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../netbond.example.toml");
    let check = Command::new(env!("CARGO_BIN_EXE_netbond"))
        .args(["check", "-c", EXAMPLE])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(check.id().cast_signed());
    // Fewer than a program is tried, and until it is done: how long that takes is the machine's matter.
    let how = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(30));
        kill(pid, Signal::SIGSTOP).unwrap();
        let WaitStatus::Stopped(..) = waitid(Id::Pid(pid), how).unwrap() else {
            break;
        };
        kill(pid, Signal::SIGCONT).unwrap();
    }
    let output = check.wait_with_output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("accepted by the kernel's verifier"), "{told}");
}
