//! The program for drivers between the device of a LAN and that of the paths: what it forwards past the kernel is
//! what the kernel and the programs at tc's hooks would have made of it.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use bytemuck::Zeroable as _;
use common::random::Random;
use common::{
    BOND, Kernel, TC_ACT_REDIRECT, Wrap, XDP_DROP, XDP_PASS, XDP_REDIRECT, ipv4_frame, ipv6_frame,
    outer, outer_v6, path_id,
};
use netbond::tables::Raw;
use netbond_common::{
    abi::{
        BOND_ETHERNET, BOND_IN_ORDER, BOND_NUMBERED, BOND_XDP_ONWARD, BOND_XDP_SEND, Bond, Class,
        DRIVER_LAN, DRIVER_UNDERLAY, Driver, FLOW_BUCKETS, Lane, MAX_BOND_CLASSES, MAX_BONDS,
        PATH_IPV6, PATH_KEY, PATH_LAST_RESORT, PATH_USABLE, Path, PathStats, SHARES_EQUAL,
    },
    class::Rule,
    fate::Fate,
    names::{Mode, feature, program},
    order,
};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

const LAN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const WAN: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// A host of the LAN, and the next hop to the peer.
const HOST: [u8; 6] = [2, 0, 0, 0, 1, 1];
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// Who has packets of a bond that carries frames.
const FAR: [u8; 6] = [2, 0, 0, 0, 1, 4];
/// MTUs of the LAN and of the bond.
const LAN_MTU: usize = 1300;
const MTU: usize = 1400;

/// A router in a namespace of this thread's own: a LAN, a bond of an IPv4 and an IPv6 path, and their underlay.
struct Router {
    kernel: Kernel,
    lan: u32,
    wan: u32,
}

fn ip(arguments: &str) {
    let mut command = Command::new("ip");
    let done = command.args(arguments.split_whitespace()).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}

fn sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
}

impl Router {
    fn new(key: Option<u32>) -> Self {
        Self::with_features(key, feature::IPV6)
    }

    /// With the programs that these `feature` bits ask for.
    fn with_features(key: Option<u32>, features: u32) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for (name, address) in [("lan", LAN), ("wan", WAN)] {
            let address = written(address);
            ip(&format!(
                "link add {name} address {address} type veth peer name {name}-far"
            ));
            ip(&format!("link set {name}-far up"));
        }
        let address = written(common::MAC);
        ip(&format!(
            "link add nb0 address {address} type veth peer name nb0x"
        ));
        ip("link set nb0 arp off");
        ip("link set nb0x up");
        for name in ["lan", "wan", "nb0"] {
            sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0");
            ip(&format!("link set {name} up"));
        }
        ip(&format!("link set lan mtu {LAN_MTU}"));
        ip(&format!("link set nb0 mtu {MTU}"));
        sysctl("ipv4/ip_forward", "1");
        sysctl("ipv6/conf/all/forwarding", "1");
        let ((local, remote), (other_local, other_remote)) = (outer(0), outer(1));
        let (local_v6, remote_v6) = outer_v6(1);
        for line in [
            // The inner packets are from 192.0.2.1 to 198.51.100.1, or from 2001:db8::1 to 2001:db8::2.
            "addr add 192.0.2.254/24 dev lan".to_owned(),
            "-6 route add 2001:db8::1/128 dev lan".to_owned(),
            "route add 198.51.100.0/24 dev nb0".to_owned(),
            "-6 route add 2001:db8::2/128 dev nb0".to_owned(),
            format!("addr add {local}/24 dev wan"),
            format!("addr add {other_local}/24 dev wan"),
            format!("addr add {local_v6}/128 dev wan nodad"),
            format!("-6 route add {remote_v6}/128 dev wan src {local_v6}"),
            neighbour("wan", &remote.to_string(), GATEWAY),
            neighbour("wan", &other_remote.to_string(), GATEWAY),
            neighbour("wan", &remote_v6.to_string(), GATEWAY),
            neighbour("lan", "192.0.2.1", HOST),
            neighbour("lan", "2001:db8::1", HOST),
        ] {
            ip(&line);
        }
        let [lan, wan, bond] = ["lan", "wan", "nb0"].map(|name| if_nametoindex(name).unwrap());
        let mut kernel = Kernel::with_features(&[1, 1], key, features).with_xdp(MTU as u32);
        if features & feature::IPV6 != 0 {
            kernel.over_ipv6(1);
        }
        for slot in [0, 1] {
            let Raw(path) = kernel.tables.paths.get(&path_id(slot), 0).unwrap();
            kernel.set_path(
                slot,
                &Path {
                    ifindex: wan,
                    ..path
                },
            );
        }
        let record = kernel.bond();
        kernel.set_bond(&Bond {
            ifindex: bond,
            xdp: BOND_XDP_ONWARD | BOND_XDP_SEND,
            ..record
        });
        let tables = &mut kernel.tables;
        tables.bond_by_ifindex.insert(bond, BOND, 0).unwrap();
        for port in [lan, wan] {
            tables.ports.insert(port, port, None, 0).unwrap();
        }
        kernel.never_the_kernels_turn();
        // The turns of its paths; without other modes they go by the wheel.
        kernel.set_order(0, 2);
        let mut router = Self { kernel, lan, wan };
        router.set_roles(DRIVER_LAN, DRIVER_UNDERLAY);
        router
    }

    fn set_roles(&mut self, lan: u16, wan: u16) {
        for (ifindex, address, roles) in [(self.lan, LAN, lan), (self.wan, WAN, wan)] {
            let driver = Raw(Driver { address, roles });
            let drivers = &mut self.kernel.tables.drivers;
            drivers.insert(ifindex, driver, 0).unwrap();
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Bond)) {
        let mut bond = self.kernel.bond();
        change(&mut bond);
        self.kernel.set_bond(&bond);
    }

    fn stats(&self, slot: u32) -> PathStats {
        self.kernel.tables.path_stats(path_id(slot)).unwrap()
    }

    /// Has the bond carry frames, to a neighbour that is known where this says so.
    fn carry_frames(&mut self, neighbour_known: bool) {
        self.change(|bond| bond.flags |= BOND_ETHERNET);
        if neighbour_known {
            for address in ["198.51.100.1", "2001:db8::2"] {
                ip(&neighbour("nb0", address, FAR));
            }
        }
    }

    /// As the controller writes it; the second path is preferred to the first.
    fn choose_by(&mut self, way: &Way) {
        self.kernel.set_order(way.flags, 2);
        let settled_until = if way.settled { u32::MAX } else { 0 };
        self.kernel.set_equal_shares(2, settled_until);
        if way.is_framed() {
            self.carry_frames(true);
        }
        let lane = |mode: Mode| {
            Raw(Lane {
                mode: mode as u32,
                shares: SHARES_EQUAL,
                order: order::pack([1, 0]),
                ..Lane::zeroed()
            })
        };
        let mut weights = [0; 16];
        weights[..2].fill(1);
        let tables = &mut self.kernel.tables;
        tables.lanes.set(BOND, lane(way.mode), 0).unwrap();
        tables.gaps.set(BOND, u64::MAX, 0).unwrap();
        for bucket in 0..FLOW_BUCKETS {
            let order = order::of_bucket(bucket, &weights, |_| 0);
            let index = BOND * FLOW_BUCKETS + bucket;
            tables.flow_table.set(index, order, 0).unwrap();
        }
        if let Some(mode) = way.class {
            let class = Class {
                rule: Rule {
                    other_dscps: !(1 << 0x2a),
                    ..Rule::ANY
                },
                counter: CLASS,
                reserved: 0,
            };
            tables.classes.set(CLASS, Raw(class), 0).unwrap();
            tables.lanes.set(MAX_BONDS + CLASS, lane(mode), 0).unwrap();
            self.change(|bond| bond.classes = 1);
        }
    }

    /// The program leaves this frame to the kernel, untouched and uncounted, and takes no turn.
    fn assert_left(&mut self, what: &str, frame: &[u8], device: u32) {
        let state = |router: &Self| {
            (
                [router.stats(0), router.stats(1)],
                router.kernel.fates(),
                router.kernel.ticket(),
                router.kernel.turns(),
                router.kernel.tables.class_stats(CLASS).unwrap(),
            )
        };
        let before = state(self);
        let ran = self.kernel.xdp_on(frame, device);
        assert_eq!(ran.action, XDP_PASS, "{what}");
        assert_eq!(ran.frame, frame, "{what}");
        assert_eq!(state(self), before, "{what}");
    }
}

fn written(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

fn neighbour(device: &str, address: &str, mac: [u8; 6]) -> String {
    let mac = written(mac);
    format!("neigh add {address} lladdr {mac} dev {device} nud permanent")
}

/// A host's frame to the router.
fn sent(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&LAN);
    frame[6..12].copy_from_slice(&HOST);
    frame
}

/// The peer's frame to the router.
fn received(inner: &[u8], key: Option<u32>) -> Vec<u8> {
    let wrap = Wrap {
        gre_protocol: if inner[14] >> 4 == 4 { 0x0800 } else { 0x86dd },
        gre_flags: if key.is_some() { 0x2000 } else { 0 },
        gre_fields: key.map_or_else(Vec::new, |key| key.to_be_bytes().to_vec()),
        ..Wrap::on(0)
    };
    let mut frame = wrap.frame(inner);
    frame[..6].copy_from_slice(&WAN);
    frame
}

/// The same of a bond that carries frames.
fn received_frame(inner: &[u8]) -> Vec<u8> {
    let wrap = Wrap {
        gre_protocol: 0x6558,
        ..Wrap::on(0)
    };
    changed(wrap.frame(&[&[0; 14], inner].concat()), |frame| {
        frame[..6].copy_from_slice(&WAN);
    })
}

/// The packet as a router passes it on.
fn one_hop_less(mut inner: Vec<u8>) -> Vec<u8> {
    if inner[14] >> 4 == 4 {
        inner[22] -= 1;
        inner[24..26].fill(0);
        let header = etherparse::Ipv4HeaderSlice::from_slice(&inner[14..]).unwrap();
        let check = header.to_header().calc_header_checksum();
        inner[24..26].copy_from_slice(&check.to_be_bytes());
    } else {
        inner[21] -= 1;
    }
    inner
}

fn changed(mut frame: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut frame);
    frame
}

#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn packets_into_the_bond_leave_as_by_the_kernel_and_tc() {
    for key in [None, Some(7)] {
        let mut router = Router::new(key);
        let keyed = if key.is_some() { PATH_KEY } else { 0 };
        for (slot, outer) in [(0, [0x08, 0]), (1, [0x86, 0xdd])] {
            let over_ipv6 = if slot == 1 { PATH_IPV6 } else { 0 };
            let flags = PATH_USABLE | keyed | over_ipv6;
            router.kernel.set_flags(slot, flags);
            router.kernel.set_flags(1 - slot, 0);
            for len in [48, 576, MTU] {
                for inner in [ipv4_frame(len), ipv6_frame(len.max(60))] {
                    let tc = router.kernel.egress(&one_hop_less(inner.clone()));
                    assert_eq!(tc.action, TC_ACT_REDIRECT);
                    let before = router.stats(slot);
                    let ran = router.kernel.xdp_on(&sent(inner.clone()), router.lan);
                    assert_eq!(ran.action, XDP_REDIRECT, "{len} on {slot}");
                    assert_eq!(ran.frame[..6], GATEWAY);
                    assert_eq!(ran.frame[6..12], WAN);
                    assert_eq!(ran.frame[12..14], outer);
                    assert_eq!(ran.frame[14..], tc.frame[14..], "{len} on {slot}");
                    let after = router.stats(slot);
                    let (packets, bytes) = (
                        after.tx_packets - before.tx_packets,
                        after.tx_bytes - before.tx_bytes,
                    );
                    assert_eq!((packets, bytes), (1, inner.len() as u64 - 14));
                    assert_eq!(after.tx_onward, before.tx_onward + 1);
                }
            }
        }
        assert_eq!(router.kernel.fates(), []);
    }
}

/// Packet by packet, as by tc.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn the_wheel_goes_on() {
    let mut router = Router::with_features(None, 0);
    ip(&format!("link set wan mtu {LEAST_MTU}"));
    for _ in 0..10 {
        let ran = router.kernel.xdp_on(&sent(ipv4_frame(200)), router.lan);
        assert_eq!(ran.action, XDP_REDIRECT);
        // Whatever the kernel has to do has no turn.
        let left = changed(sent(ipv4_frame(200)), |frame| frame[22] = 1);
        router.assert_left("the last hop", &left, router.lan);
        let left = sent(ipv4_frame(LEAST_MTU));
        router.assert_left("too long for the path", &left, router.lan);
    }
    assert_eq!([0, 1].map(|slot| router.stats(slot).tx_packets), [5, 5]);
}

#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn received_packets_go_on_as_by_the_kernel() {
    for key in [None, Some(7)] {
        let mut router = Router::new(key);
        for len in [48, 576, LAN_MTU] {
            for (mut inner, swapped) in [
                (ipv4_frame(len), [26..30, 30..34]),
                (ipv6_frame(len.max(60)), [22..38, 38..54]),
            ] {
                // The other way round; the sum of the words stays.
                let addresses = swapped.clone().map(|range| inner[range].to_vec());
                inner[swapped[0].clone()].copy_from_slice(&addresses[1]);
                inner[swapped[1].clone()].copy_from_slice(&addresses[0]);
                let before = router.stats(0);
                let frame = received(&inner, key);
                let ran = router.kernel.xdp_on(&frame, router.wan);
                assert_eq!(ran.action, XDP_REDIRECT, "{len}");
                let want = changed(one_hop_less(inner.clone()), |frame| {
                    frame[..6].copy_from_slice(&HOST);
                    frame[6..12].copy_from_slice(&LAN);
                });
                assert_eq!(ran.frame, want, "{len}");
                let one = PathStats {
                    rx_packets: before.rx_packets + 1,
                    rx_bytes: before.rx_bytes + inner.len() as u64 - 14,
                    rx_onward: before.rx_onward + 1,
                    ..before
                };
                assert_eq!(router.stats(0), one);
            }
        }
        assert_eq!(router.kernel.fates(), []);
    }
}

/// The same out of frames, but those that are for somebody else behind a bond device.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn received_frames_go_on_as_by_the_kernel() {
    let mut router = Router::new(None);
    router.carry_frames(false);
    let framed = |to: [u8; 6]| changed(back(576), |frame| frame[..6].copy_from_slice(&to));
    let (inner, wan) = (framed(common::MAC), router.wan);
    let ran = router.kernel.xdp_on(&received_frame(&inner), wan);
    assert_eq!(ran.action, XDP_REDIRECT);
    let want = changed(one_hop_less(inner.clone()), |frame| {
        frame[..6].copy_from_slice(&HOST);
        frame[6..12].copy_from_slice(&LAN);
    });
    assert_eq!(ran.frame, want);
    let one = PathStats {
        rx_packets: 1,
        rx_bytes: inner.len() as u64,
        rx_onward: 1,
        ..PathStats::zeroed()
    };
    assert_eq!(router.stats(0), one);
    for (what, inner) in [
        ("for another host", framed(FAR)),
        ("for all", framed([0xff; 6])),
        ("a tag", {
            let (header, rest) = inner.split_at(12);
            [header, &[0x81, 0, 0, 5], rest].concat()
        }),
    ] {
        let ran = router.kernel.xdp_on(&received_frame(&inner), wan);
        assert_eq!((ran.action, ran.frame), (XDP_REDIRECT, inner), "{what}");
        assert_eq!(router.stats(0).rx_onward, 1, "{what}");
    }
    assert_eq!(router.kernel.fates(), []);
}

/// To the LAN: the inner packet of the tests the other way round.
fn back(len: usize) -> Vec<u8> {
    changed(ipv4_frame(len), |frame| {
        let (source, destination) = frame[26..34].split_at_mut(4);
        source.swap_with_slice(destination);
    })
}

/// RFC 6040: a mark on the way reaches the packet, whose checksum knows of both changes.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn a_congestion_mark_goes_on_with_the_packet() {
    let mut router = Router::new(None);
    let capable = changed(back(200), |frame| frame[15] |= 0b10);
    let capable = one_hop_less(changed(capable, |frame| frame[22] += 1));
    let frame = changed(received(&capable, None), |frame| frame[15] = 0b11);
    let ran = router.kernel.xdp_on(&frame, router.wan);
    assert_eq!(ran.action, XDP_REDIRECT);
    let marked = changed(capable, |frame| frame[15] |= 0b11);
    assert_eq!(ran.frame[14..], one_hop_less(marked)[14..]);
}

/// A frame is never shorter than 60 bytes: what fills it up is not the packet's.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn what_fills_up_a_frame_stays_behind() {
    let mut router = Router::new(None);
    let short = ipv4_frame(28);
    let padded = [sent(short.clone()), vec![0xee; 18]].concat();
    let ran = router.kernel.xdp_on(&padded, router.lan);
    assert_eq!(ran.action, XDP_REDIRECT);
    assert_eq!(ran.frame.len(), 14 + 20 + 4 + 28);
    assert_eq!(ran.frame[38..], one_hop_less(short)[14..]);
    let short = back(28);
    let padded = [received(&short, None), vec![0xee; 7]].concat();
    let ran = router.kernel.xdp_on(&padded, router.wan);
    assert_eq!(ran.action, XDP_REDIRECT);
    assert_eq!(ran.frame[14..], one_hop_less(short)[14..]);
}

#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn what_takes_a_router_is_left_to_the_kernel() {
    let mut router = Router::new(None);
    let lan = router.lan;
    let plain = || sent(ipv4_frame(200));
    for (what, frame) in [
        ("the last hop", changed(plain(), |frame| frame[22] = 1)),
        ("options", changed(plain(), |frame| frame[14] = 0x46)),
        ("longer than the bond takes", sent(ipv4_frame(MTU + 1))),
        (
            "for this router",
            changed(plain(), |frame| {
                frame[30..34].copy_from_slice(&[192, 0, 2, 254])
            }),
        ),
        (
            "for the LAN itself",
            changed(plain(), |frame| {
                frame[30..34].copy_from_slice(&[192, 0, 2, 7])
            }),
        ),
        (
            "for a group",
            changed(plain(), |frame| {
                frame[30..34].copy_from_slice(&[224, 0, 0, 5])
            }),
        ),
        ("to nowhere", changed(plain(), |frame| frame[30] = 203)),
        (
            "from nobody",
            changed(plain(), |frame| frame[26..30].fill(0)),
        ),
        ("for another router", changed(plain(), |frame| frame[5] = 9)),
        ("ARP", changed(plain(), |frame| frame[13] = 6)),
        (
            "a tag",
            changed(plain(), |frame| frame[12..14].copy_from_slice(&[0x81, 0])),
        ),
        ("cut short", plain()[..14 + 199].to_vec()),
        (
            "hop by hop",
            changed(sent(ipv6_frame(200)), |frame| frame[20] = 0),
        ),
        (
            "of one link",
            changed(sent(ipv6_frame(200)), |frame| {
                frame[22..24].copy_from_slice(&[0xfe, 0x80])
            }),
        ),
    ] {
        router.assert_left(what, &frame, lan);
    }
    // And it would have been forwarded.
    assert_eq!(router.kernel.xdp_on(&plain(), lan).action, XDP_REDIRECT);
}

/// What is received goes to the bond device, as without a LAN.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn what_is_for_no_lan_goes_to_the_bond_device() {
    let mut router = Router::new(None);
    let wan = router.wan;
    let to = |address: [u8; 4]| changed(back(200), |frame| frame[30..34].copy_from_slice(&address));
    for (what, inner) in [
        ("for this router", to([192, 0, 2, 254])),
        ("for a host whose address nobody knows", to([192, 0, 2, 7])),
        ("back into the bond", to([198, 51, 100, 1])),
        ("out of the underlay", to([10, 65, 0, 6])),
        ("longer than the LAN takes", back(LAN_MTU + 1)),
        ("the last hop", changed(back(200), |frame| frame[22] = 1)),
    ] {
        let before = router.stats(0);
        let frame = received(&inner, None);
        let ran = router.kernel.xdp_on(&frame, wan);
        assert_eq!(ran.action, XDP_REDIRECT, "{what}");
        // Whole, with all its hops.
        assert_eq!(ran.frame[..6], common::MAC, "{what}");
        assert_eq!(ran.frame[14..], inner[14..], "{what}");
        let after = router.stats(0);
        assert_eq!(after.rx_packets, before.rx_packets + 1, "{what}");
        assert_eq!(after.rx_onward, before.rx_onward, "{what}");
    }
}

/// Nothing is forwarded where the controller, or the administrator, did not say so.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn nothing_is_forwarded_unasked() {
    let mut router = Router::new(None);
    let (lan, wan) = (router.lan, router.wan);
    let out = sent(ipv4_frame(200));
    let onward = |router: &mut Router| {
        let before = router.stats(0).rx_onward;
        let ran = router.kernel.xdp_on(&received(&back(200), None), wan);
        assert_eq!(ran.action, XDP_REDIRECT);
        router.stats(0).rx_onward != before
    };
    router.change(|bond| bond.xdp = BOND_XDP_ONWARD);
    router.assert_left("the bond does not send so", &out, lan);
    assert!(onward(&mut router));
    router.change(|bond| bond.xdp = BOND_XDP_SEND);
    assert!(!onward(&mut router));
    router.change(|bond| bond.xdp = BOND_XDP_ONWARD | BOND_XDP_SEND);

    router.set_roles(0, DRIVER_UNDERLAY);
    router.assert_left("no LAN", &out, lan);
    assert!(!onward(&mut router));
    router.set_roles(DRIVER_LAN, DRIVER_UNDERLAY);

    router.kernel.tables.ports.remove(wan).unwrap();
    router.assert_left("a driver that does not send", &out, lan);
    router
        .kernel
        .tables
        .ports
        .insert(wan, wan, None, 0)
        .unwrap();

    for slot in [0, 1] {
        router.kernel.set_flags(slot, 0);
    }
    router.assert_left("no path", &out, lan);
    router.kernel.set_flags(0, PATH_USABLE);
    router.kernel.set_flags(1, 0);

    ip("neigh del 10.65.0.6 dev wan");
    router.kernel.forget_ways();
    router.assert_left("no neighbour", &out, lan);
    ip(&neighbour("wan", "10.65.0.6", GATEWAY));
    sysctl("ipv4/conf/lan/forwarding", "0");
    router.kernel.forget_ways();
    router.assert_left("no forwarding", &out, lan);
    sysctl("ipv4/conf/lan/forwarding", "1");
    sysctl("ipv4/conf/nb0/forwarding", "0");
    router.kernel.forget_ways();
    assert!(!onward(&mut router));
    sysctl("ipv4/conf/nb0/forwarding", "1");
    router.kernel.forget_ways();
    assert!(onward(&mut router));
    assert_eq!(router.kernel.xdp_on(&out, lan).action, XDP_REDIRECT);
    assert_eq!(router.kernel.fates(), []);
}

/// A path out of use has no packets of the LAN, as by tc.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn paths_out_of_use_are_left_out() {
    let mut router = Router::new(None);
    router.kernel.set_flags(0, 0);
    for _ in 0..4 {
        let ran = router.kernel.xdp_on(&sent(ipv4_frame(200)), router.lan);
        assert_eq!(ran.action, XDP_REDIRECT);
        assert_eq!(ran.frame[12..14], [0x86, 0xdd]);
    }
    let stats = router.stats(1);
    assert_eq!((stats.tx_packets, stats.tx_stand_in > 0), (4, true));
}

/// The first class of the bond, and where its packets are counted.
const CLASS: u32 = BOND * MAX_BOND_CLASSES;
/// Of an underlay, bytes.
const LEAST_MTU: usize = 1280;

/// How a bond chooses paths, and what it makes of packets.
struct Way {
    mode: Mode,
    /// Of packets with the DSCP of `ipv6_frame`, where there is a class of them.
    class: Option<Mode>,
    /// `BOND_*`.
    flags: u8,
    /// Whether flows keep their paths, so that their packets have no numbers.
    settled: bool,
}

impl Way {
    const fn by(mode: Mode) -> Self {
        Self {
            mode,
            class: None,
            flags: 0,
            settled: false,
        }
    }

    const fn flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }

    const fn is_framed(&self) -> bool {
        self.flags & BOND_ETHERNET != 0
    }

    /// The `feature` bits that it needs, besides paths over IPv6.
    fn features(&self) -> u32 {
        let modes = [Some(self.mode), self.class].into_iter().flatten();
        let modes = modes.fold(feature::IPV6, |all, mode| all | feature::of(mode));
        let numbered = self.flags & BOND_NUMBERED != 0;
        let only_if = |is: bool, feature| if is { feature } else { 0 };
        modes
            | only_if(self.class.is_some(), feature::CLASSES)
            | only_if(numbered, feature::NUMBERED)
    }
}

/// Whatever chooses the path: a driver finds the one that tc finds, calls it the same, and counts the same.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn packets_take_the_path_that_they_take_by_tc() {
    let plain = [
        Mode::RoundRobin,
        Mode::Weighted,
        Mode::Flow,
        Mode::Flowlet,
        Mode::ActiveBackup,
        Mode::Adaptive,
    ];
    for mode in plain {
        takes_the_same(&Way::by(mode));
    }
    for class in [Mode::ActiveBackup, Mode::Flow] {
        takes_the_same(&Way {
            class: Some(class),
            ..Way::by(Mode::RoundRobin)
        });
    }
}

/// What leaves has the numbers that it would have by tc, and packets that are left to that take none.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn packets_are_numbered_as_by_tc() {
    let ordered = BOND_NUMBERED | BOND_IN_ORDER;
    for mode in [Mode::RoundRobin, Mode::Flow, Mode::Adaptive] {
        takes_the_same(&Way::by(mode).flags(ordered));
    }
    takes_the_same(&Way {
        settled: true,
        ..Way::by(Mode::Adaptive).flags(ordered)
    });
}

/// A bond that carries frames has its packets in those that the kernel would make for it.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn packets_leave_in_frames_as_by_the_kernel_and_tc() {
    for mode in [Mode::RoundRobin, Mode::Flow] {
        takes_the_same(&Way::by(mode).flags(BOND_ETHERNET));
    }
    takes_the_same(&Way::by(Mode::Adaptive).flags(BOND_ETHERNET | BOND_NUMBERED));
}

/// Sends the same packets by tc and by a driver, each in a router of its own, and compares.
fn takes_the_same(way: &Way) {
    // Drivers' frames are of the namespace at hand, which is the second one's.
    let mut routers = [0, 1].map(|_| {
        let mut router = Router::with_features(None, way.features());
        router.choose_by(way);
        router
    });
    ip(&format!("link set wan mtu {LEAST_MTU}"));
    let what = format!("{:?} {:?} {:#x}", way.mode, way.class, way.flags);
    let mut taken = [0, 0];
    for usable in [[true, true], [false, true], [true, false], [false, false]] {
        for (slot, usable) in (0..).zip(usable) {
            let over_ipv6 = if slot == 1 { PATH_IPV6 } else { 0 };
            let state = if usable {
                PATH_USABLE
            } else {
                PATH_LAST_RESORT
            };
            for router in &mut routers {
                router.kernel.set_flags(slot, state | over_ipv6);
            }
        }
        for port in 0..40_u16 {
            // Of several lengths, as turns go by bytes.
            let len = 200 + 21 * usize::from(port);
            for (frame, at) in [(ipv4_frame as fn(usize) -> Vec<u8>, 34), (ipv6_frame, 54)] {
                let of_flow = |len| {
                    changed(frame(len), |frame| {
                        frame[at..at + 2].copy_from_slice(&(port % 20).to_be_bytes());
                    })
                };
                let inner = of_flow(len);
                let [by_tc, by_driver] = &mut routers;
                // One that is too long for the path is the kernel's, and so is its turn.
                let long = sent(of_flow(LEAST_MTU));
                by_driver.assert_left(&what, &long, by_driver.lan);
                let tc = by_tc.kernel.egress(&into_bond(inner.clone(), way));
                assert_eq!(tc.action, TC_ACT_REDIRECT, "{what}");
                let ran = by_driver.kernel.xdp_on(&sent(inner), by_driver.lan);
                assert_eq!(ran.action, XDP_REDIRECT, "{what}");
                assert_eq!(ran.frame[14..], tc.frame[14..], "{what} {usable:?} {port}");
            }
        }
        for slot in [0, 1] {
            let [by_tc, by_driver] = [0, 1].map(|router| PathStats {
                tx_onward: 0,
                ..routers[router].stats(slot)
            });
            assert_eq!(by_driver, by_tc, "{what} {usable:?}");
            taken[slot as usize] = by_tc.tx_packets;
        }
        let classes = |router: usize| routers[router].kernel.tables.class_stats(CLASS).unwrap();
        let [by_tc, by_driver] = [0, 1].map(classes);
        assert_eq!(by_driver, by_tc, "{what}");
        assert_eq!(by_tc.tx_packets != 0, way.class.is_some(), "{what}");
    }
    assert!(
        taken.iter().all(|&packets| packets > 50),
        "{what}: {taken:?}"
    );
    assert_eq!(routers[1].kernel.fates(), [], "{what}");
}

/// The frame in which the kernel hands a packet to the bond device.
fn into_bond(inner: Vec<u8>, way: &Way) -> Vec<u8> {
    let mut frame = one_hop_less(inner);
    if way.is_framed() {
        frame[..6].copy_from_slice(&FAR);
        frame[6..12].copy_from_slice(&common::MAC);
    }
    frame
}

/// Who has a packet of a bond that carries frames is the kernel's to find out, and to look for now and then.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn frames_go_to_a_neighbour_that_is_known() {
    let mut router = Router::new(None);
    router.carry_frames(false);
    let (lan, frame) = (router.lan, sent(ipv4_frame(200)));
    router.assert_left("nobody knows", &frame, lan);
    router.carry_frames(true);
    router.kernel.forget_ways();
    let ran = router.kernel.xdp_on(&frame, lan);
    assert_eq!(ran.action, XDP_REDIRECT);
    let inside = 14 + if ran.frame[12] == 0x08 { 24 } else { 44 };
    assert_eq!(ran.frame[inside..inside + 6], FAR);
    assert_eq!(ran.frame[inside + 6..inside + 12], common::MAC);
    router.kernel.at_the_kernels_turn();
    router.assert_left("the kernel's turn", &frame, lan);
    router.kernel.never_the_kernels_turn();
    ip("neigh del 198.51.100.1 dev nb0");
    router.kernel.forget_ways();
    router.assert_left("nobody knows any more", &frame, lan);
}

/// Copies are tc's, and take no turn of what drivers send.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn copies_are_left() {
    let way = Way {
        class: Some(Mode::Duplicate),
        ..Way::by(Mode::RoundRobin).flags(BOND_NUMBERED)
    };
    let mut router = Router::with_features(None, way.features());
    router.choose_by(&way);
    let lan = router.lan;
    router.assert_left("a class of copies", &sent(ipv6_frame(200)), lan);
    let ran = router.kernel.xdp_on(&sent(ipv4_frame(200)), lan);
    assert_eq!(ran.action, XDP_REDIRECT);
}

/// What announces TCP's segments is clamped by tc, both ways; the rest of the connection is not held up.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn what_begins_a_connection_is_left_where_it_is_clamped() {
    let mut router = Router::with_features(None, feature::MSS_CLAMP);
    let (lan, wan) = (router.lan, router.wan);
    for clamp_mtu in [0, 1300] {
        router.change(|bond| bond.clamp_mtu = clamp_mtu);
        for ipv6 in [false, true] {
            let syn = tcp_frame(ipv6, true);
            let frames = [(sent(syn.clone()), lan), (received(&syn, None), wan)];
            for (frame, device) in frames {
                if clamp_mtu == 0 {
                    assert_eq!(router.kernel.xdp_on(&frame, device).action, XDP_REDIRECT);
                } else {
                    router.assert_left("SYN", &frame, device);
                }
            }
            let data = tcp_frame(ipv6, false);
            for (frame, device) in [(sent(data.clone()), lan), (received(&data, None), wan)] {
                assert_eq!(router.kernel.xdp_on(&frame, device).action, XDP_REDIRECT);
            }
        }
    }
}

/// TCP between the addresses of `ipv4_frame` and `ipv6_frame`.
fn tcp_frame(ipv6: bool, syn: bool) -> Vec<u8> {
    let frame = if ipv6 {
        ipv6_frame(100)
    } else {
        ipv4_frame(100)
    };
    let (protocol, tcp) = if ipv6 { (20, 54) } else { (23, 34) };
    changed(frame, |frame| {
        frame[protocol] = 6;
        // Of 20 bytes, and its flags.
        frame[tcp + 12..tcp + 14].copy_from_slice(&[0x50, if syn { 0x02 } else { 0x10 }]);
    })
}

/// How many mutated packets are tried, each way: `NETBOND_PACKETS` says otherwise.
const MUTATED: usize = 20_000;

/// A packet whose headers have other bytes here and there, in a frame that may be cut or filled up.
fn mutated(random: &mut Random, mut inner: Vec<u8>) -> Vec<u8> {
    for _ in 0..random.one_of(&[0, 1, 1, 2, 3]) {
        let at = 14 + random.below(48);
        inner[at] = match random.below(3) {
            0 => random.byte(),
            1 => random.one_of(&[0, 1, 2, 0x45, 0x46, 0x60, 0x7f, 0xe0, 0xfe, 0xff]),
            _ => inner[at] ^ 1 << random.below(8),
        };
    }
    let len = inner.len();
    match random.below(8) {
        0 => inner.truncate(15 + random.below(len - 15)),
        1 => inner.resize(len + random.below(40), 0xee),
        _ => {}
    }
    inner
}

/// The packet in a frame as its own header has it, with one hop less to go.
fn passed_on(frame: &[u8]) -> Vec<u8> {
    let len = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let whole = if frame[14] >> 4 == 4 {
        len(16)
    } else {
        40 + len(18)
    };
    let mut packet = frame[14..14 + whole].to_vec();
    if packet[0] >> 4 == 4 {
        packet[8] -= 1;
        // RFC 1071, of what was there: a wrong sum stays wrong.
        let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x0100;
        let sum = (sum & 0xffff) + (sum >> 16);
        packet[10..12].copy_from_slice(&(sum as u16).to_be_bytes());
    } else {
        packet[7] -= 1;
    }
    packet
}

/// Sums are equal where they mean the same: 0 and ffff do.
fn alike(mut a: Vec<u8>, mut b: Vec<u8>) -> bool {
    for packet in [&mut a, &mut b] {
        if packet[0] >> 4 == 4 && packet[10..12] == [0xff; 2] {
            packet[10..12].fill(0);
        }
    }
    a == b
}

/// Whatever a LAN or a peer sends leaves whole, with one hop less, or is left as it came; and is counted once.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn mutated_packets_are_forwarded_whole_or_left() {
    mutated_are_forwarded_whole_or_left(&mut Router::new(None), received);
}

/// The same in frames, of a bond that looks for TCP to clamp.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn mutated_packets_in_frames_are_forwarded_whole_or_left() {
    let mut router = Router::with_features(None, feature::IPV6 | feature::MSS_CLAMP);
    router.carry_frames(true);
    router.change(|bond| bond.clamp_mtu = MTU as u32);
    mutated_are_forwarded_whole_or_left(&mut router, |inner, _| {
        let mut inner = inner.to_vec();
        inner[..6].copy_from_slice(&common::MAC);
        received_frame(&inner)
    });
}

fn mutated_are_forwarded_whole_or_left(
    router: &mut Router,
    received: impl Fn(&[u8], Option<u32>) -> Vec<u8>,
) {
    let wanted = std::env::var("NETBOND_PACKETS").ok();
    let packets = wanted.map_or(MUTATED, |wanted| wanted.parse().unwrap());
    let mut random = Random(7);
    let (lan, wan) = (router.lan, router.wan);
    let is_framed = router.kernel.bond().flags & BOND_ETHERNET != 0;
    let header_len = if is_framed { 14 } else { 0 };
    let mut taken = [0; 2];
    for _ in 0..packets {
        let len = 62 + random.below(300);
        let inner = if random.one_in(2) {
            ipv4_frame(len)
        } else {
            ipv6_frame(len)
        };
        let frame = sent(mutated(&mut random, inner));
        let before = [0, 1].map(|slot| router.stats(slot));
        let ran = router.kernel.xdp_on(&frame, lan);
        let after = [0, 1].map(|slot| router.stats(slot));
        let sum = |stats: [PathStats; 2]| stats[0].tx_packets + stats[1].tx_packets;
        let counted = sum(after) - sum(before);
        if ran.action == XDP_PASS {
            assert_eq!((ran.frame, counted), (frame, 0));
            continue;
        }
        assert_eq!((ran.action, counted), (XDP_REDIRECT, 1), "{frame:02x?}");
        let outer_len = if ran.frame[12] == 0x08 { 24 } else { 44 };
        let left = ran.frame[14 + outer_len + header_len..].to_vec();
        assert!(alike(left, passed_on(&frame)), "{frame:02x?}");
        taken[0] += 1;
    }
    for _ in 0..packets {
        let packet = back(62 + random.below(300));
        let inner = mutated(&mut random, packet);
        let frame = received(&inner, None);
        let before = router.stats(0);
        let ran = router.kernel.xdp_on(&frame, wan);
        let after = router.stats(0);
        let counted = after.rx_packets - before.rx_packets;
        if ran.action == XDP_PASS {
            assert_eq!((ran.frame, counted), (frame, 0));
            continue;
        }
        assert_eq!((ran.action, counted), (XDP_REDIRECT, 1), "{frame:02x?}");
        if after.rx_onward == before.rx_onward {
            assert_eq!(ran.frame[14..], inner[14..], "to the bond device, as it is");
        } else {
            let left = ran.frame[14..].to_vec();
            assert!(alike(left, passed_on(&inner)), "{frame:02x?}");
            taken[1] += 1;
        }
    }
    assert_eq!(router.kernel.fates(), []);
    println!("forwarded {taken:?} of {packets} each");
    assert!(taken.iter().all(|&taken| taken > packets / 10), "{taken:?}");
}

/// IPv6 may lead elsewhere, whatever device was asked for: the neighbour that it finds there is none here.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn a_next_hop_on_another_device_is_left() {
    let mut router = Router::new(None);
    router.kernel.set_flags(0, 0);
    let frame = sent(ipv4_frame(200));
    let (_, remote) = outer_v6(1);
    ip(&format!("-6 route add {remote}/128 dev lan metric 10"));
    ip(&neighbour("lan", &remote.to_string(), HOST));
    let lan = router.lan;
    router.assert_left("better by another device", &frame, lan);
    ip(&format!("-6 route del {remote}/128 dev lan"));
    let ran = router.kernel.xdp_on(&frame, lan);
    assert_eq!((ran.action, &ran.frame[..6]), (XDP_REDIRECT, &GATEWAY[..]));
}

/// What a CPU found of a path is that of its addresses.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn another_remote_has_another_next_hop() {
    const OTHER: [u8; 6] = [2, 0, 0, 0, 1, 3];
    let mut router = Router::new(None);
    ip(&neighbour("wan", "10.65.0.7", OTHER));
    router.kernel.set_flags(1, 0);
    let frame = sent(ipv4_frame(200));
    let lan = router.lan;
    let ran = router.kernel.xdp_on(&frame, lan);
    assert_eq!((ran.action, &ran.frame[..6]), (XDP_REDIRECT, &GATEWAY[..]));
    let Raw(path) = router.kernel.tables.paths.get(&path_id(0), 0).unwrap();
    let remote = netbond_common::ipv4::mapped([10, 65, 0, 7]);
    router.kernel.set_path(0, &Path { remote, ..path });
    let ran = router.kernel.xdp_on(&frame, lan);
    assert_eq!((ran.action, &ran.frame[..6]), (XDP_REDIRECT, &OTHER[..]));
}

/// What the kernel told of one packet is for those of which it would have been asked the same, and no longer ones than it
/// takes; and not for long.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn an_answer_is_for_the_same_question() {
    const OTHER: [u8; 6] = [2, 0, 0, 0, 1, 3];
    let mut router = Router::new(None);
    ip("route add 192.0.2.128/25 dev lan mtu lock 1000");
    ip(&neighbour("lan", "192.0.2.129", OTHER));
    let to = |last: u8, len: usize| {
        let inner = changed(back(len), |frame| frame[33] = last);
        received(&inner, None)
    };
    let wan = router.wan;
    for round in 0..3 {
        for (last, mac) in [(1, HOST), (129, OTHER)] {
            let ran = router.kernel.xdp_on(&to(last, 500), wan);
            assert_eq!(ran.action, XDP_REDIRECT, "{round} {last}");
            assert_eq!(ran.frame[..6], mac, "{round} {last}");
        }
    }
    let before = router.stats(0).rx_onward;
    let ran = router.kernel.xdp_on(&to(129, 1001), wan);
    assert_eq!(ran.frame[..6], common::MAC, "too long: to the bond device");
    assert_eq!(router.stats(0).rx_onward, before);
    // Somebody else has the address from now on: it is believed for as long as it holds, and then asked again.
    let ran = router.kernel.xdp_on(&to(129, 500), wan);
    assert_eq!(ran.frame[..6], OTHER);
    router.kernel.believe_ways();
    ip(&neighbour("lan", "192.0.2.129", HOST).replacen("add", "replace", 1));
    let ran = router.kernel.xdp_on(&to(129, 500), wan);
    assert_eq!(ran.frame[..6], OTHER, "as it was told");
    router.kernel.forget_ways();
    let ran = router.kernel.xdp_on(&to(129, 500), wan);
    assert_eq!(ran.frame[..6], HOST, "asked again");
    ip(&neighbour("lan", "192.0.2.129", OTHER).replacen("add", "replace", 1));
    let end = Instant::now() + Duration::from_secs(10);
    while router.kernel.xdp_on(&to(129, 500), wan).frame[..6] != OTHER {
        assert!(Instant::now() < end, "never asked again by itself");
    }
}

/// Now and then the kernel forwards a packet itself, so that it finds out where its neighbours are.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn the_kernel_has_its_turn() {
    let mut router = Router::new(None);
    router.kernel.at_the_kernels_turn();
    let frame = received(&back(200), None);
    let by_kernel = router.kernel.xdp_on(&frame, router.wan);
    assert_eq!(by_kernel.action, XDP_REDIRECT);
    assert_eq!(by_kernel.frame[..6], common::MAC, "into the bond device");
    assert_eq!(router.stats(0).rx_onward, 0);
    // Once: the next ones are not, for a while.
    router.kernel.never_the_kernels_turn();
    assert_eq!(router.kernel.xdp_on(&frame, router.wan).frame[..6], HOST);
    // So with the next hop of a path.
    router.kernel.at_the_kernels_turn();
    let lan = router.lan;
    router.assert_left("the kernel's turn", &sent(ipv4_frame(200)), lan);
    router.kernel.never_the_kernels_turn();
    let ran = router.kernel.xdp_on(&sent(ipv4_frame(200)), lan);
    assert_eq!(ran.action, XDP_REDIRECT);
}

/// The device went away between two words of the controller's.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn a_packet_that_no_driver_takes_is_counted_once() {
    let mut router = Router::new(None);
    router.kernel.tables.ports.remove(router.lan).unwrap();
    let ran = router
        .kernel
        .xdp_on(&received(&back(200), None), router.wan);
    assert_eq!(ran.action, XDP_DROP);
    assert_eq!(router.kernel.fates(), [(BOND, Fate::RxNoDecap, 1)]);
    assert_eq!(router.stats(0).rx_packets, 0);
}

/// The programs at tc's hooks know nothing of it.
#[test]
#[ignore = "needs root: cargo xtask test test-run"]
fn tc_counts_nothing_as_past_the_kernel() {
    let mut router = Router::new(None);
    router.kernel.set_order(0, 2);
    let ran = router.kernel.egress(&ipv4_frame(200));
    assert_eq!(ran.action, TC_ACT_REDIRECT);
    // To this device of test runs, whose address is zeros.
    let frame = changed(received(&back(200), None), |frame| frame[..6].fill(0));
    let ran = router.kernel.run(program::INGRESS_L2, &frame, None);
    assert_eq!(ran.action, TC_ACT_REDIRECT);
    let stats = [router.stats(0), router.stats(1)];
    assert!(
        stats
            .iter()
            .all(|stats| stats.tx_onward + stats.rx_onward == 0)
    );
}
