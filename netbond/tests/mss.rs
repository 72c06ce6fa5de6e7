//! The maximum segment size that TCP announces through a bond, in this kernel's programs.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use common::{Kernel, TC_ACT_REDIRECT, Wrap};
use etherparse::{PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
use netbond_common::{
    abi::{BOND_ETHERNET, BOND_NUMBERED, Bond},
    names::feature,
};

const MTU: u32 = 1316;
/// What TCP has room for then, over IPv4 and over IPv6.
const ROOM: [u16; 2] = [MTU as u16 - 40, MTU as u16 - 60];

fn kernel(features: u32, flags: u8, clamp_mtu: u32) -> Kernel {
    let mut kernel = Kernel::with_features(&[1, 1], None, features);
    kernel.set_order(flags, 2);
    let bond = kernel.bond();
    kernel.set_bond(&Bond { clamp_mtu, ..bond });
    kernel
}

/// A segment with these options; one that begins a connection, or one in the middle of it.
fn segment(ipv6: bool, syn: bool, options: &[TcpOptionElement]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip = if ipv6 {
        ethernet.ipv6([1; 16], [2; 16], 64)
    } else {
        ethernet.ipv4([192, 0, 2, 1], [198, 51, 100, 1], 64)
    };
    let mut tcp = ip.tcp(40_000, 80, 1, 65_000);
    if syn {
        tcp = tcp.syn();
    }
    let mut frame = Vec::new();
    let tcp = tcp.options(options).unwrap();
    tcp.write(&mut frame, b"odd").unwrap();
    frame
}

/// What a frame's segment announces, behind so many bytes; its checksum is right.
fn announced(frame: &[u8], before: usize, ipv6: bool) -> Option<u16> {
    let packet = if ipv6 {
        [&[0; 12], &[0x86, 0xdd][..], &frame[before..]].concat()
    } else {
        [&[0; 12], &[0x08, 0x00][..], &frame[before..]].concat()
    };
    let packet = SlicedPacket::from_ethernet(&packet).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        panic!("no TCP in {packet:?}");
    };
    let sum = match &packet.net {
        Some(etherparse::NetSlice::Ipv4(ip)) => {
            tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
        }
        Some(etherparse::NetSlice::Ipv6(ip)) => {
            tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
        }
        other => panic!("no IP: {other:?}"),
    };
    assert_eq!(tcp.checksum(), sum.unwrap());
    let mut options = tcp.options_iterator().map(Result::unwrap);
    options.find_map(|option| {
        let TcpOptionElement::MaximumSegmentSize(mss) = option else {
            return None;
        };
        Some(mss)
    })
}

/// The option in all places that it may have, odd ones too; with what it becomes.
fn cases(room: u16) -> Vec<(bool, Vec<TcpOptionElement>, Option<u16>)> {
    use TcpOptionElement::{
        MaximumSegmentSize as Mss, Noop, SelectiveAcknowledgementPermitted as Sack, Timestamp,
        WindowScale,
    };
    vec![
        (true, vec![Mss(1460)], Some(room)),
        (
            true,
            vec![Mss(8960), Sack, Timestamp(7, 9), Noop, WindowScale(7)],
            Some(room),
        ),
        (true, vec![Noop, Mss(1460)], Some(room)),
        (true, vec![Noop, Noop, Noop, Mss(0xfffe)], Some(room)),
        (true, vec![WindowScale(7), Mss(1461)], Some(room)),
        (
            true,
            vec![Timestamp(7, 9), WindowScale(7), Sack, Mss(1460)],
            Some(room),
        ),
        (true, vec![Mss(room + 1)], Some(room)),
        (true, vec![Mss(room)], Some(room)),
        (true, vec![Mss(536)], Some(536)),
        (true, vec![], None),
        (true, vec![Timestamp(7, 9)], None),
        (false, vec![Mss(1460)], Some(1460)),
    ]
}

fn encaps() -> [(u32, u8); 4] {
    [
        (0, 0),
        (feature::NUMBERED, BOND_NUMBERED),
        (0, BOND_ETHERNET),
        (feature::NUMBERED, BOND_NUMBERED | BOND_ETHERNET),
    ]
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn what_tcp_announces_is_clamped_on_the_way_out() {
    for (features, flags) in encaps() {
        let mut kernel = kernel(features | feature::MSS_CLAMP, flags, MTU);
        for ipv6 in [false, true] {
            for (syn, options, becomes) in cases(ROOM[usize::from(ipv6)]) {
                let frame = segment(ipv6, syn, &options);
                let ran = kernel.egress(&frame);
                assert_eq!(ran.action, TC_ACT_REDIRECT, "{:?}", kernel.fates());
                let before = ran.frame.len() - (frame.len() - 14);
                let found = announced(&ran.frame, before, ipv6);
                assert_eq!(found, becomes, "{options:?} {flags:#x} IPv6: {ipv6}");
            }
        }
    }
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn what_tcp_announces_is_clamped_on_the_way_in() {
    for (features, flags) in encaps() {
        let features = features | feature::MSS_CLAMP;
        let mut kernel = kernel(features, flags, MTU);
        let program = netbond::loader::ingress_program(features, true);
        for ipv6 in [false, true] {
            for (syn, options, becomes) in cases(ROOM[usize::from(ipv6)]) {
                let frame = segment(ipv6, syn, &options);
                let (inner, gre_protocol) = if flags & BOND_ETHERNET != 0 {
                    // The header that is not wrapped is nobody's.
                    ([vec![0; 14], frame.clone()].concat(), 0x6558)
                } else if ipv6 {
                    (frame.clone(), 0x86dd)
                } else {
                    (frame.clone(), 0x0800)
                };
                let wrap = Wrap {
                    gre_protocol,
                    ..Wrap::on(0)
                };
                let ran = kernel.run(program, &wrap.frame(&inner), None);
                assert_eq!(ran.action, TC_ACT_REDIRECT, "{:?}", kernel.fates());
                assert_eq!(ran.frame.len(), frame.len());
                let found = announced(&ran.frame, 14, ipv6);
                assert_eq!(found, becomes, "{options:?} {flags:#x} IPv6: {ipv6}");
            }
        }
    }
}

/// A bond that does not ask for it beside one that does, and a host where none does.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn nothing_is_clamped_that_is_not_asked_for() {
    for (features, mtu) in [(feature::MSS_CLAMP, 0), (feature::ACTIVE_BACKUP, MTU)] {
        let mut kernel = kernel(features, 0, mtu);
        let frame = segment(false, true, &[TcpOptionElement::MaximumSegmentSize(1460)]);
        let ran = kernel.egress(&frame);
        assert_eq!(
            ran.frame[ran.frame.len() - (frame.len() - 14)..],
            frame[14..]
        );
    }
}

/// Of fragments and other protocols nothing is read; options that are cut short, or never end, are no reason
/// to stop.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn what_only_looks_like_it_passes_as_it_is() {
    let mut kernel = kernel(feature::MSS_CLAMP, 0, MTU);
    let syn = segment(false, true, &[TcpOptionElement::MaximumSegmentSize(1460)]);
    let with = |changes: &[(usize, u8)]| {
        let mut frame = syn.clone();
        for &(at, byte) in changes {
            frame[at] = byte;
        }
        frame
    };
    let tcp = 34;
    for frame in [
        // A later fragment, the first one, UDP, a TCP header that is longer than the packet, options of length
        // 0 and 1, one that is longer than the header.
        with(&[(21, 1)]),
        with(&[(20, 0x20)]),
        with(&[(23, 17)]),
        with(&[(tcp + 12, 0xf0), (tcp + 20, 3)]),
        with(&[(tcp + 20, 8), (tcp + 21, 0)]),
        with(&[(tcp + 20, 8), (tcp + 21, 1)]),
        with(&[(tcp + 20, 8), (tcp + 21, 40)]),
        with(&[(tcp + 21, 3)]),
        // One that is so long that where it ends, counted anew, there is what looks like one: the sequence number.
        with(&[
            (tcp + 4, 2),
            (tcp + 5, 4),
            (tcp + 6, 0xff),
            (tcp + 20, 8),
            (tcp + 21, 48),
        ]),
        with(&[(tcp + 12, 0x50)]),
        syn[..tcp + 22].to_vec(),
    ] {
        let ran = kernel.egress(&frame);
        assert_eq!(ran.action, TC_ACT_REDIRECT, "{:?}", kernel.fates());
        let before = ran.frame.len() - (frame.len() - 14);
        assert_eq!(ran.frame[before..], frame[14..]);
    }
}
