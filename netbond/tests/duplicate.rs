//! Packets that are sent on several paths, by the programs in this kernel: copies are really sent, out of
//! the loopback device of a network namespace of ours.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;

use bytemuck::Zeroable as _;
use common::{BOND, Kernel, TC_ACT_REDIRECT, TC_ACT_SHOT, ipv4_frame, ipv6_frame, path_id};
use etherparse::{Ipv4HeaderSlice, Ipv6Slice};
use netbond::tables::Raw;
use netbond_common::{
    abi::{
        BOND_ETHERNET, BOND_NUMBERED, Bond, Class, Lane, MAX_BOND_CLASSES, MAX_BONDS, PATH_KEY,
        PATH_LAST_RESORT, PATH_NEIGHBOUR, PATH_SPARE, PATH_USABLE, Path, PathStats,
    },
    class::Rule,
    fate::Fate,
    ipv6::flow_label,
    names::{Mode, feature, program},
    order,
    sequence::Stamp,
};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

const USABLE: u32 = PATH_USABLE | PATH_LAST_RESORT;

/// A bond of three paths in mode duplicate, preferred from the last to the first, and what its copies are
/// seen by.
struct Bench {
    kernel: Kernel,
    capture: OwnedFd,
    key: Option<u32>,
}

/// A packet that was sent.
struct Sent {
    path: u32,
    stamp: Stamp,
    frame: Vec<u8>,
}

impl Bench {
    fn new(key: Option<u32>, flags: u8, copies: u32) -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        let capture = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK,
            SockProtocol::EthAll,
        );
        let features = feature::NUMBERED | feature::DUPLICATE | feature::CLASSES | feature::IPV6;
        let mut kernel = Kernel::with_features(&[1, 1, 1], key, features);
        let bond = kernel.bond();
        kernel.set_bond(&Bond {
            flags: BOND_NUMBERED | flags,
            ..bond
        });
        kernel.begin_strands();
        let mut bench = Self {
            kernel,
            capture: capture.unwrap(),
            key,
        };
        bench.set_lane(BOND, copies);
        bench
    }

    fn set_lane(&mut self, id: u32, copies: u32) {
        let lane = Lane {
            mode: Mode::Duplicate as u32,
            order: order::pack([2, 1, 0]),
            copies,
            ..Lane::zeroed()
        };
        self.kernel.tables.lanes.set(id, Raw(lane), 0).unwrap();
    }

    fn set_flags(&mut self, flags: [u32; 3]) {
        let key = if self.key.is_some() { PATH_KEY } else { 0 };
        for (slot, flags) in (0..).zip(flags) {
            self.kernel.set_flags(slot, flags | key);
        }
    }

    fn sent(&self, frame: &[u8]) -> Sent {
        let key_len = if self.key.is_some() { 4 } else { 0 };
        if frame[14] >> 4 == 6 {
            let ip = Ipv6Slice::from_slice(&frame[14..]).unwrap();
            let header = ip.header();
            assert_eq!(usize::from(header.payload_length()), frame.len() - 54);
            let path = u32::from(header.source_addr().segments()[2]);
            let addresses = (header.source_addr(), header.destination_addr());
            assert_eq!(addresses, common::outer_v6(path));
            let at = 58 + key_len;
            let stamp = Stamp::from_field(frame[at..at + 4].try_into().unwrap());
            assert_eq!(header.flow_label().value(), flow_label(stamp.strand));
            return Sent {
                path,
                stamp,
                frame: frame.to_vec(),
            };
        }
        let ip = Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap();
        let header = ip.to_header();
        assert_eq!(header.calc_header_checksum(), ip.header_checksum());
        assert_eq!(usize::from(ip.total_len()), frame.len() - 14);
        let path = u32::from(ip.source()[2]);
        let (local, remote) = common::outer(path);
        assert_eq!((ip.source_addr(), ip.destination_addr()), (local, remote));
        let at = 38 + key_len;
        Sent {
            path,
            stamp: Stamp::from_field(frame[at..at + 4].try_into().unwrap()),
            frame: frame.to_vec(),
        }
    }

    /// Sends a packet; on which paths it went, the last one being the packet itself.
    fn send(&mut self, frame: &[u8]) -> Vec<Sent> {
        while self.capture(&mut [0; 4096]).is_some() {}
        let ran = self.kernel.egress(frame);
        assert_eq!(ran.action, TC_ACT_REDIRECT, "{:?}", self.kernel.fates());
        let mut buffer = [0; 4096];
        let mut all: Vec<Sent> = Vec::new();
        // Each is seen twice, going out and coming in.
        let mut seen = BTreeSet::new();
        while let Some(len) = self.capture(&mut buffer) {
            let copy = &buffer[..len];
            let is_gre = match copy[14] >> 4 {
                4 => copy[23] == 47,
                _ => copy[20] == 47,
            };
            if is_gre && seen.insert(copy.to_vec()) {
                all.push(self.sent(copy));
            }
        }
        all.push(self.sent(&ran.frame));
        for copy in &all {
            assert_eq!(copy.stamp, all[0].stamp);
            assert_eq!(copy.stamp.is_copied(), all.len() > 1);
            // Nothing else differs.
            let (copy, first) = (&copy.frame, &all[0].frame);
            let [at, first_at] = [copy, first].map(|frame| behind_ip(frame));
            assert_eq!(copy[at..], first[first_at..]);
            match (copy[14] >> 4, first[14] >> 4) {
                (4, 4) => assert_eq!(copy[14..24], first[14..24]),
                (6, 6) => assert_eq!(copy[14..22], first[14..22]),
                (4, _) => assert_eq!(
                    (copy[15], copy[22]),
                    (first[14] << 4 | first[15] >> 4, first[21])
                ),
                _ => assert_eq!(
                    (copy[14] << 4 | copy[15] >> 4, copy[21]),
                    (first[15], first[22])
                ),
            }
        }
        all
    }

    fn capture(&self, buffer: &mut [u8]) -> Option<usize> {
        recv(self.capture.as_raw_fd(), buffer, MsgFlags::empty()).ok()
    }

    /// The paths that a packet takes.
    fn paths(&mut self) -> Vec<u32> {
        let sent = self.send(&ipv4_frame(100));
        sent.iter().map(|copy| copy.path).collect()
    }

    fn stats(&self) -> [PathStats; 3] {
        [0, 1, 2].map(|slot| self.kernel.tables.path_stats(path_id(slot)).unwrap())
    }
}

/// Where the GRE header of a frame begins.
fn behind_ip(frame: &[u8]) -> usize {
    if frame[14] >> 4 == 6 { 54 } else { 34 }
}

/// What one end sent, as the other receives it: addresses turned round, the checksum is the same.
fn crossed(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    // A path's device makes a header of its own.
    if frame[14] >> 4 == 6 {
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[22..54].rotate_left(16);
    } else {
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[26..34].rotate_left(4);
    }
    frame
}

#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn each_path_gets_a_copy_and_the_first_that_comes_is_taken() {
    // Which paths are over IPv6: copies are sent on the last one first.
    const OVER_IPV6: [&[u32]; 5] = [&[], &[0, 1, 2], &[0], &[2], &[1]];
    let setups = OVER_IPV6.into_iter().flat_map(|over_ipv6| {
        [
            (None, 0),
            (Some(7), 0),
            (None, BOND_ETHERNET),
            (Some(7), BOND_ETHERNET),
        ]
        .map(|(key, flags)| (key, flags, over_ipv6))
    });
    for (key, flags, over_ipv6) in setups {
        let mut bench = Bench::new(key, flags, 16);
        for &slot in over_ipv6 {
            bench.kernel.over_ipv6(slot);
        }
        let frames = [
            ipv4_frame(100),
            ipv6_frame(100),
            ipv4_frame(1300),
            ipv4_frame(28),
        ];
        for (count, frame) in (1..).zip(frames) {
            let sent = bench.send(&frame);
            let paths: Vec<u32> = sent.iter().map(|copy| copy.path).collect();
            assert_eq!(paths, [2, 1, 0]);
            let stats = bench.stats();
            assert!(stats.iter().all(|stats| stats.tx_packets == count));
            assert_eq!(stats.map(|stats| stats.tx_copies), [count, count, 0]);
            assert_eq!(stats.map(|stats| stats.tx_bytes), [stats[0].tx_bytes; 3]);
            for (at, copy) in sent.iter().enumerate() {
                let frame = crossed(&copy.frame);
                let ran = bench.kernel.run(program::INGRESS_L2_ORDER, &frame, None);
                let due = if at == 0 {
                    TC_ACT_REDIRECT
                } else {
                    TC_ACT_SHOT
                };
                assert_eq!(ran.action, due);
            }
            let stats = bench.stats();
            assert!(stats.iter().all(|stats| stats.rx_packets == count));
            assert_eq!(stats.map(|stats| stats.rx_copies), [count, count, 0]);
            let (tx, rx) = (stats.map(|s| s.tx_bytes), stats.map(|s| s.rx_bytes));
            assert_eq!(tx, rx);
        }
        assert_eq!(bench.kernel.fates(), []);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn copies_take_the_paths_that_are_best() {
    let mut bench = Bench::new(None, 0, 2);
    assert_eq!(bench.paths(), [2, 1]);
    bench.set_flags([USABLE, USABLE, 0]);
    assert_eq!(bench.paths(), [1, 0]);
    let stand_ins = bench.stats().map(|stats| stats.tx_stand_in);
    assert_eq!(stand_ins, [1, 0, 0], "it was not to be one of two");
    // Alone: a packet as any other.
    bench.set_flags([0, USABLE, 0]);
    assert_eq!(bench.paths(), [1]);
    bench.set_flags([PATH_LAST_RESORT, USABLE, 0]);
    assert_eq!(bench.paths(), [1], "a policy may avoid it");
    bench.set_flags([PATH_LAST_RESORT, 0, PATH_LAST_RESORT]);
    assert_eq!(bench.paths(), [2, 0]);
    let last_resort = bench.stats().map(|stats| stats.tx_last_resort);
    assert_eq!(last_resort, [1, 0, 1]);
    // One whose last proof is too old is a last resort after the others.
    bench.set_flags([USABLE; 3]);
    for slot in [1, 2] {
        let written = bench.kernel.tables.limits.set(path_id(slot), 1, 0);
        written.unwrap();
    }
    assert_eq!(bench.paths(), [0]);
    bench.set_flags([PATH_LAST_RESORT, USABLE, USABLE]);
    assert_eq!(bench.paths(), [0], "whatever answers is better");
    bench.set_flags([0, USABLE, USABLE]);
    assert_eq!(bench.paths(), [2, 1]);
    bench.set_flags([0; 3]);
    assert_eq!(bench.kernel.egress(&ipv4_frame(100)).action, TC_ACT_SHOT);
    assert_eq!(bench.kernel.fates(), [(BOND, Fate::TxNoPath, 1)]);
}

/// One that answers again though it is not up yet has the copies that would have no path else.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn a_path_that_returns_has_copies() {
    const SPARE: u32 = PATH_LAST_RESORT | PATH_SPARE;
    let mut bench = Bench::new(None, 0, 2);
    bench.set_flags([SPARE, USABLE, 0]);
    assert_eq!(
        bench.paths(),
        [1],
        "without probes nothing says that it returns"
    );
    let set_limit = |bench: &mut Bench, limit| {
        let written = bench.kernel.tables.limits.set(path_id(0), limit, 0);
        written.unwrap();
    };
    set_limit(&mut bench, 1);
    assert_eq!(bench.paths(), [1], "its last proof is old");
    set_limit(&mut bench, u64::MAX);
    assert_eq!(bench.paths(), [1, 0]);
    let last_resort = bench.stats().map(|stats| stats.tx_last_resort);
    assert_eq!(last_resort, [1, 0, 0]);
    bench.set_flags([SPARE, USABLE, USABLE]);
    assert_eq!(bench.paths(), [2, 1], "there are enough");
}

/// Copies on Ethernet are addressed to their paths' next hops, of either family. Where nobody is known to answer the
/// packet itself goes, as the kernel asks for the address then; where that is so of several, to the first of them alone.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn copies_on_ethernet_go_to_next_hops() {
    const ONE: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    let set_up = |line: &str| {
        let set = Command::new("ip").args(line.split(' ')).status();
        assert!(set.unwrap().success(), "{line}");
    };
    let mut bench = Bench::new(None, 0, 16);
    for line in [
        "link add wan type veth peer name far",
        "link set far up",
        "link set wan up",
        "addr add 198.51.100.1/24 dev wan",
        "neigh add 198.51.100.9 lladdr 02:00:00:00:00:01 nud permanent dev wan",
        "neigh add fe80::9 lladdr 02:00:00:00:00:02 nud permanent dev wan",
    ] {
        set_up(line);
    }
    // The kernel names next hops to what forwards.
    for family in ["ipv4", "ipv6"] {
        std::fs::write(format!("/proc/sys/net/{family}/conf/wan/forwarding"), "1").unwrap();
    }
    let wan = nix::net::if_::if_nametoindex("wan").unwrap();
    let lead = |bench: &mut Bench, slot: u32, next_hop: &str| {
        let kernel = &mut bench.kernel;
        let Raw(path) = kernel.tables.paths.get(&path_id(slot), 0).unwrap();
        let path = Path {
            ifindex: wan,
            next_hop: next_hop.parse::<IpAddr>().unwrap().into(),
            ..path
        };
        kernel.set_path(slot, &path);
    };
    lead(&mut bench, 2, "198.51.100.9");
    lead(&mut bench, 1, "fe80::9");
    lead(&mut bench, 0, "198.51.100.9");
    bench.set_flags([USABLE | PATH_NEIGHBOUR; 3]);
    bench.kernel.over_ipv6(1);
    let (_, remote) = common::outer_v6(1);
    set_up(&format!("-6 route add {remote} via fe80::9 dev wan"));
    for (frame, addresses) in [
        (ipv4_frame(100), [ONE, OTHER]),
        (ipv6_frame(100), [ONE, OTHER]),
    ] {
        let sent = bench.send(&frame);
        let to: Vec<_> = sent
            .iter()
            .map(|copy| (copy.path, &copy.frame[..6]))
            .collect();
        assert_eq!(to[..2], [(2, &addresses[0][..]), (1, &addresses[1][..])]);
        assert_eq!(to[2].0, 0);
        let types: Vec<_> = sent.iter().map(|copy| &copy.frame[12..14]).collect();
        assert_eq!(types[..2], [&[0x08, 0x00][..], &[0x86, 0xdd]]);
    }
    let counts = |bench: &Bench| {
        bench
            .stats()
            .map(|stats| (stats.tx_packets, stats.tx_copies))
    };
    assert_eq!(counts(&bench), [(2, 2), (2, 2), (2, 0)]);
    // The first of all may be missing as well.
    lead(&mut bench, 2, "198.51.100.77");
    assert_eq!(bench.paths(), [0, 1, 2], "the kernel asks who that is");
    assert_eq!(counts(&bench), [(3, 2), (3, 3), (3, 1)]);
    lead(&mut bench, 0, "198.51.100.78");
    assert_eq!(bench.paths(), [1, 2], "for one at a time");
    assert_eq!(counts(&bench), [(3, 2), (4, 3), (4, 2)]);
    // The route leads to somebody else by now.
    let (_, remote) = common::outer_v6(1);
    set_up(&format!("-6 route replace {remote} via fe80::8 dev wan"));
    set_up("neigh add fe80::8 lladdr 02:00:00:00:00:08 nud permanent dev wan");
    lead(&mut bench, 0, "198.51.100.9");
    assert_eq!(bench.paths(), [0, 2]);
}

/// The rest of the bond goes by its own mode, numbered all the same.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn a_class_may_have_copies() {
    let mut bench = Bench::new(None, 0, 16);
    let lane = Lane {
        mode: Mode::RoundRobin as u32,
        ..Lane::zeroed()
    };
    let kernel = &mut bench.kernel;
    kernel.tables.lanes.set(BOND, Raw(lane), 0).unwrap();
    let class = Class {
        rule: Rule {
            mark: 5,
            mark_mask: u32::MAX,
            ..Rule::ANY
        },
        counter: BOND * MAX_BOND_CLASSES,
        reserved: 0,
    };
    let id = BOND * MAX_BOND_CLASSES;
    kernel.tables.classes.set(id, Raw(class), 0).unwrap();
    let bond = kernel.bond();
    kernel.set_bond(&Bond { classes: 1, ..bond });
    bench.set_lane(MAX_BONDS + id, 16);
    assert_eq!(bench.paths().len(), 1);
    bench.kernel.mark = 5;
    assert_eq!(bench.paths(), [2, 1, 0]);
    let stats = bench.kernel.tables.class_stats(id).unwrap();
    assert_eq!((stats.tx_packets, stats.tx_bytes), (1, 100));
}

/// A super-packet has a number for each of its segments. (A test run cannot say of which type one is, so the
/// kernel refuses to encapsulate it; lab tests carry real ones.)
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn a_super_packet_has_a_number_for_each_segment() {
    let mut bench = Bench::new(None, 0, 16);
    let first = bench.send(&ipv4_frame(100)).remove(0).stamp;
    let egress = program::EGRESS_MODES;
    let ran = bench.kernel.run(egress, &ipv4_frame(3028), Some((3, 1000)));
    assert_eq!(ran.action, TC_ACT_SHOT);
    assert_eq!(bench.kernel.fates(), [(BOND, Fate::TxNoRoom, 3)]);
    let next = bench.send(&ipv4_frame(100)).remove(0).stamp;
    let due = Stamp {
        sequence: first.sequence + 4,
        ..first
    };
    assert_eq!(next, due);
    assert!(bench.stats().iter().all(|stats| stats.tx_packets == 2));
}
