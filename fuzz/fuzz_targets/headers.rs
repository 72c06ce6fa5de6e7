//! Headers of packets, by the functions that the kernel's programs are made of, beside a library of others.

#![no_main]

use std::net::Ipv6Addr;

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};
use libfuzzer_sys::fuzz_target;
use netbond_common::{
    ecn::{self, Decapsulated},
    flow::{Flow, NO_PORT, has_ports},
    frame, gre,
    inner::{Inner, wire_packets},
    ipv4, ipv6,
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

fuzz_target!(|data: &[u8]| {
    read_gre(data);
    read_ipv4(data);
    read_ipv6(data);
    read_frame(data);
    if let Some((words, _)) = data.split_first_chunk::<12>() {
        let word = |at: usize| u32::from_le_bytes(words[at..at + 4].try_into().unwrap_or_default());
        assert!(wire_packets(word(0), word(4), word(8)) >= 1);
    }
});

/// What is read of a GRE header is written back alike.
fn read_gre(data: &[u8]) {
    let Some((&[a, b, c, d], fields)) = data.split_first_chunk::<4>() else {
        return;
    };
    let base = gre::Base {
        flags: [a, b],
        protocol: [c, d],
    };
    let Some(layout) = base.layout() else {
        // Checksum, routing, or what nobody defined.
        assert!(a & !0x30 != 0 || b != 0);
        return;
    };
    let Some(fields) = fields.get(..layout.header_len() - gre::BASE_LEN) else {
        return;
    };
    let mut fields = fields.chunks_exact(gre::FIELD_LEN);
    let mut next = |there: bool| -> [u8; 4] {
        let field = if there { fields.next() } else { None };
        field
            .and_then(|field| field.try_into().ok())
            .unwrap_or_default()
    };
    let (key, sequence) = (next(layout.key), next(layout.sequence));
    let header = gre::Header::new(base.protocol, layout, key, sequence);
    let (gre::Header::Plain(words) | gre::Header::One(words) | gre::Header::Two(words)) = header;
    let bytes: [u8; 12] = gre::Header::bytes(words);
    assert_eq!(header.len(), layout.header_len());
    assert_eq!(bytes[..header.len()], data[..header.len()]);
}

fn read_ipv4(data: &[u8]) {
    let Some((&bytes, _)) = data.split_first_chunk::<20>() else {
        return;
    };
    let pair = |at: usize| [bytes[at], bytes[at + 1]];
    let four = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    let header = Ipv4Hdr {
        vihl: bytes[0],
        tos: bytes[1],
        tot_len: pair(2),
        id: pair(4),
        frags: pair(6),
        ttl: bytes[8],
        proto: bytes[9],
        check: pair(10),
        src_addr: four(12),
        dst_addr: four(16),
    };
    let mut asked = None;
    let flow = Flow::from_ipv4(&header, |at| {
        asked = Some(at);
        data.get(at..)
            .and_then(<[u8]>::first_chunk)
            .map_or((false, [0; 4]), |&four| (true, four))
    });
    assert!(asked.is_none_or(|at| at <= 60), "within the longest header");
    // Options are not looked at: they may be cut.
    let mut whole = [0; 60];
    let there = data.len().min(whole.len());
    whole[..there].copy_from_slice(&data[..there]);
    let read = Ipv4HeaderSlice::from_slice(&whole).ok();
    let inner = Inner::from_ipv4(&header);
    assert_eq!(inner.is_some(), read.is_some());
    let (Some(inner), Some(read)) = (inner, read) else {
        return;
    };
    assert_eq!(inner.tos, read.dcp().value() << 2 | read.ecn().value());
    assert_eq!(
        (inner.ttl, inner.dont_fragment),
        (read.ttl(), read.dont_fragment())
    );
    let fragment = read.is_fragmenting_payload();
    assert_eq!(ipv4::is_fragment(header.frags), fragment);
    let ports = data
        .get(read.slice().len()..)
        .and_then(<[u8]>::first_chunk::<4>);
    let want = match ports {
        Some(&[a, b, c, d]) if !fragment && has_ports(header.proto) => {
            let port = |high, low| u32::from(u16::from_be_bytes([high, low]));
            (port(a, b), port(c, d))
        }
        _ => (NO_PORT, NO_PORT),
    };
    assert_eq!((flow.source_port, flow.destination_port), want);
    turn(flow);
    wrap(
        inner,
        header.src_addr,
        header.dst_addr,
        u16::from_be_bytes(header.id),
    );
    for new in [0, 1, 2, 3].map(|ecn| inner.tos & !ecn::MASK | ecn) {
        let mut changed = bytes;
        let right = read.to_header().calc_header_checksum();
        // Of a header without options the library tells the whole sum.
        if bytes[0] == 0x45 {
            changed[1] = new;
            let again = Ipv4HeaderSlice::from_slice(&changed).map(|read| read.to_header());
            let got = ipv4::checksum_after_tos(right.to_be_bytes(), inner.tos, new);
            assert_eq!(
                again.map(|again| again.calc_header_checksum()),
                Ok(u16::from_be_bytes(got))
            );
        }
    }
}

fn read_ipv6(data: &[u8]) {
    let Some((bytes, _)) = data.split_first_chunk::<{ Ipv6Hdr::LEN }>() else {
        return;
    };
    let flow = Flow::from_ipv6(bytes, |at| {
        assert_eq!(at, Ipv6Hdr::LEN);
        data.get(at..)
            .and_then(<[u8]>::first_chunk)
            .map_or((false, [0; 4]), |&four| (true, four))
    });
    turn(flow);
    let read = Ipv6HeaderSlice::from_slice(data).ok();
    let inner = Inner::from_ipv6(bytes);
    assert_eq!(inner.is_some(), read.is_some());
    if let (Some(inner), Some(read)) = (inner, read) {
        assert_eq!(
            (inner.tos, inner.ttl),
            (read.traffic_class(), read.hop_limit())
        );
        assert!(inner.dont_fragment);
        assert_eq!(
            ipv6::traffic_class(bytes[0], bytes[1]),
            read.traffic_class()
        );
        let mapped = |address: Ipv6Addr| address.to_ipv4_mapped().is_some();
        let (source, destination) = (read.source_addr(), read.destination_addr());
        assert_eq!(ipv6::is_mapped(&read.source()), mapped(source));
        wrap_in_ipv6(
            inner,
            source,
            destination,
            flow.hash(),
            read.payload_length(),
        );
    }
}

/// Both directions of a flow are alike.
fn turn(flow: Flow) {
    let back = Flow {
        source: flow.destination,
        destination: flow.source,
        source_port: flow.destination_port,
        destination_port: flow.source_port,
        ..flow
    };
    assert_eq!(flow.hash(), back.hash());
}

/// The outer header says what was asked for, with the right checksum.
fn wrap(inner: Inner, local: [u8; 4], remote: [u8; 4], identification: u16) {
    let outward = ipv4::Outward {
        local: &ipv4::mapped(local),
        remote: &ipv4::mapped(remote),
        sum: ipv4::constant_sum(local, remote),
        inner,
        ttl: 0,
        payload_len: u32::from(identification),
        identification,
    };
    let bytes = outward.header(8);
    let read = Ipv4HeaderSlice::from_slice(&bytes).expect("a header of ours");
    assert_eq!((read.source(), read.destination()), (local, remote));
    assert_eq!(
        (read.ttl(), read.identification()),
        (inner.ttl, identification)
    );
    assert_eq!(read.total_len(), identification.wrapping_add(28));
    assert_eq!(
        read.header_checksum(),
        read.to_header().calc_header_checksum()
    );
    kept(inner.tos, read.dcp().value() << 2 | read.ecn().value());
}

/// The same of IPv6, which has no checksum, and whose flow label is the flow's.
fn wrap_in_ipv6(inner: Inner, local: Ipv6Addr, remote: Ipv6Addr, hash: u32, payload_len: u16) {
    let outward = ipv6::Outward {
        inner,
        hop_limit: 0,
        payload_len: u32::from(payload_len),
        label: ipv6::flow_label(hash),
    };
    let bytes = [&outward.head(8)[..], &local.octets(), &remote.octets()].concat();
    let read = Ipv6HeaderSlice::from_slice(&bytes).expect("a header of ours");
    assert_eq!(
        (read.source_addr(), read.destination_addr()),
        (local, remote)
    );
    assert_eq!((read.hop_limit(), read.next_header().0), (inner.ttl, 47));
    assert_eq!(read.payload_length(), payload_len.wrapping_add(8));
    assert_eq!(read.flow_label().value(), ipv6::flow_label(hash));
    kept(inner.tos, read.traffic_class());
}

/// A packet that no one marked on the way leaves as it came.
fn kept(inner: u8, outer: u8) {
    match ecn::decapsulate(inner, outer) {
        Decapsulated::Keep => {}
        other => panic!("not marked on the way: {other:?}"),
    }
}

fn read_frame(data: &[u8]) {
    let Some((&header, rest)) = data.split_first_chunk::<{ frame::HEADER_LEN }>() else {
        return;
    };
    let Some((&tag, _)) = rest.split_first_chunk::<{ frame::TAG_LEN }>() else {
        return;
    };
    let one: [u8; 18] = frame::tagged(header, [tag]);
    assert_eq!(one[..12], header[..12]);
    assert_eq!(one[12..16], tag);
    assert_eq!(one[16..], header[12..]);
    let tagged = frame::is_tag([one[12], one[13]]);
    assert_eq!(tagged, matches!(tag[..2], [0x81, 0] | [0x88, 0xa8]));
}
