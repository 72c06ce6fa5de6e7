//! The flow that a packet belongs to: which packets must not overtake one another.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{ipv4, ipv6::FRAGMENT};

/// Whether the header of an IP protocol begins with the source and the destination port: TCP, UDP,
/// DCCP, SCTP, UDP-Lite.
#[inline(always)]
#[must_use]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 33 | 132 | 136)
}

/// In place of a port: the packet has none, or none can be told. Larger than every port.
pub const NO_PORT: u32 = 1 << 16;

/// What an IP packet says of its flow.
///
/// A fragment has no ports, the first one neither: all fragments of a packet, and of a flow that is
/// all fragments, are alike. ESP and ICMP have none: what tells their flows apart (SPI, type) is not
/// the same in both directions. Of IPv6 extension headers only that of fragments is looked behind; a
/// packet with others counts as of that header's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Source address; IPv4 as an IPv4-mapped IPv6 address. Two words as they lie in memory.
    pub source: [u64; 2],
    pub destination: [u64; 2],
    /// In host order, or [`NO_PORT`].
    pub source_port: u32,
    pub destination_port: u32,
    /// IP version; 0 for a frame with no IP packet in it.
    pub version: u8,
    /// IP protocol.
    pub protocol: u8,
}

impl Flow {
    /// Of everything that is no IP packet.
    pub const NONE: Self = Self {
        source: [0; 2],
        destination: [0; 2],
        source_port: NO_PORT,
        destination_port: NO_PORT,
        version: 0,
        protocol: 0,
    };

    /// The flow of an IPv4 packet; `read` gives four bytes at an offset from the start of the header, or
    /// false where there are not as many.
    #[inline(always)]
    #[must_use]
    pub fn from_ipv4(header: &Ipv4Hdr, read: impl FnOnce(usize) -> (bool, [u8; 4])) -> Self {
        let ports = if ipv4::is_fragment(header.frags) || !has_ports(header.proto) {
            (false, [0; 4])
        } else {
            read(usize::from(header.ihl()))
        };
        Self::new(
            4,
            header.proto,
            ipv4::mapped(header.src_addr),
            ipv4::mapped(header.dst_addr),
            ports,
        )
    }

    /// The flow of an IPv6 packet; `read` as for IPv4.
    #[inline(always)]
    #[must_use]
    pub fn from_ipv6(
        header: &[u8; Ipv6Hdr::LEN],
        read: impl FnOnce(usize) -> (bool, [u8; 4]),
    ) -> Self {
        let next = header[6];
        let ported = has_ports(next);
        let (there, bytes) = if ported || next == FRAGMENT {
            read(Ipv6Hdr::LEN)
        } else {
            (false, [0; 4])
        };
        // The fragment header begins with the protocol of what was cut.
        let protocol = if there && !ported { bytes[0] } else { next };
        let ports = (there && ported, bytes);
        let address = |at: usize| {
            let mut address = [0; 16];
            address.copy_from_slice(&header[at..at + 16]);
            address
        };
        Self::new(6, protocol, address(8), address(24), ports)
    }

    #[inline(always)]
    fn new(
        version: u8,
        protocol: u8,
        source: [u8; 16],
        destination: [u8; 16],
        (ported, [a, b, c, d]): (bool, [u8; 4]),
    ) -> Self {
        let (source_port, destination_port) = if ported {
            (
                u32::from(u16::from_be_bytes([a, b])),
                u32::from(u16::from_be_bytes([c, d])),
            )
        } else {
            (NO_PORT, NO_PORT)
        };
        Self {
            source: words(source),
            destination: words(destination),
            source_port,
            destination_port,
            version,
            protocol,
        }
    }

    /// A number that both directions of the flow have, and other flows most likely have not. It means
    /// something on this host only.
    #[inline(always)]
    #[must_use]
    pub const fn hash(&self) -> u32 {
        let ends = end(self.source, self.source_port)
            .wrapping_add(end(self.destination, self.destination_port));
        let mixed = (ends ^ self.protocol as u64).wrapping_mul(0x9fb2_1c65_1e98_df25);
        ((mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
    }
}

/// An address as [`Flow`] has it.
#[inline(always)]
#[must_use]
pub const fn words(address: [u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
    [
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    ]
}

/// Mixes what is known of one end. The sum of two such numbers forgets which end is the source, and
/// nothing else: an exclusive or would cancel where both ends are alike.
#[inline(always)]
const fn end(address: [u64; 2], port: u32) -> u64 {
    let mut mixed = address[0].wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 32 ^ address[1]).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 29 ^ port as u64).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use etherparse::{IpFragOffset, Ipv4Header, Ipv6FragmentHeader, Ipv6Header};
    use proptest::prelude::*;

    use super::*;

    /// What a test packet is made of.
    #[derive(Clone, Copy, Debug)]
    struct Packet {
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        ports: [u16; 2],
        /// 32-bit words of IPv4 options.
        options: u8,
        /// Offset in units of eight bytes, and whether more follow.
        fragment: Option<(u16, bool)>,
    }

    impl Packet {
        fn reversed(self) -> Self {
            Self {
                source: self.destination,
                destination: self.source,
                ports: [self.ports[1], self.ports[0]],
                ..self
            }
        }

        fn bytes(self) -> Vec<u8> {
            let mut bytes = match (self.source, self.destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    let mut header = Ipv4Header::new(
                        8,
                        64,
                        self.protocol.into(),
                        source.octets(),
                        destination.octets(),
                    )
                    .unwrap();
                    let options = vec![1; usize::from(self.options) * 4];
                    header.options = options.as_slice().try_into().unwrap();
                    if let Some((offset, more)) = self.fragment {
                        header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
                        header.more_fragments = more;
                    }
                    header.to_bytes().to_vec()
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    let mut header = Ipv6Header {
                        next_header: self.protocol.into(),
                        source: source.octets(),
                        destination: destination.octets(),
                        ..Default::default()
                    };
                    let Some((offset, more)) = self.fragment else {
                        return [header.to_bytes().as_slice(), &self.payload()].concat();
                    };
                    header.next_header = FRAGMENT.into();
                    let fragment = Ipv6FragmentHeader::new(
                        self.protocol.into(),
                        IpFragOffset::try_new(offset).unwrap(),
                        more,
                        7,
                    );
                    [header.to_bytes().as_slice(), &fragment.to_bytes()].concat()
                }
                mixed => panic!("{mixed:?}"),
            };
            bytes.extend(self.payload());
            bytes
        }

        fn payload(self) -> Vec<u8> {
            [
                self.ports[0].to_be_bytes().as_slice(),
                &self.ports[1].to_be_bytes(),
                &[0; 4],
            ]
            .concat()
        }

        fn flow(self) -> Flow {
            flow(&self.bytes())
        }
    }

    fn flow(bytes: &[u8]) -> Flow {
        let read = |at: usize| match bytes.get(at..at + 4) {
            Some(bytes) => (true, bytes.try_into().unwrap()),
            None => (false, [0; 4]),
        };
        if bytes[0] >> 4 == 4 {
            let header = ipv4::tests::header(bytes.first_chunk().unwrap());
            Flow::from_ipv4(&header, read)
        } else {
            Flow::from_ipv6(&bytes[..40].try_into().unwrap(), read)
        }
    }

    fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        prop_oneof![
            any::<(Ipv4Addr, Ipv4Addr)>().prop_map(|(a, b)| (a.into(), b.into())),
            any::<(Ipv6Addr, Ipv6Addr)>().prop_map(|(a, b)| (a.into(), b.into())),
        ]
    }

    prop_compose! {
        fn packet()(
            addresses in addresses(),
            protocol in prop_oneof![proptest::sample::select(&[6, 17, 33, 132, 136][..]), any::<u8>()],
            ports: [u16; 2],
            options in 0..=10_u8,
        ) -> Packet {
            // An extension header is a protocol of its own.
            let protocol = if protocol == FRAGMENT { 6 } else { protocol };
            let (source, destination) = addresses;
            Packet { source, destination, protocol, ports, options, fragment: None }
        }
    }

    proptest! {
        #[test]
        fn both_directions_are_one_flow(packet in packet()) {
            prop_assert_eq!(packet.flow().hash(), packet.reversed().flow().hash());
        }

        #[test]
        fn every_field_is_read(packet in packet()) {
            let flow = packet.flow();
            let mapped = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            prop_assert_eq!(flow.source, words(mapped(packet.source)));
            prop_assert_eq!(flow.destination, words(mapped(packet.destination)));
            prop_assert_eq!(flow.protocol, packet.protocol);
            prop_assert_eq!(flow.version, if packet.source.is_ipv4() { 4 } else { 6 });
            let ports = if has_ports(packet.protocol) {
                packet.ports.map(u32::from)
            } else {
                [NO_PORT; 2]
            };
            prop_assert_eq!([flow.source_port, flow.destination_port], ports);
        }

        /// Whatever of a packet is in a fragment: its beginning, its middle, its end.
        #[test]
        fn fragments_stay_together(packet in packet(), offset in 1..8000_u16) {
            let fragments = [(0, true), (offset, true), (offset, false)].map(|fragment| Packet {
                fragment: Some(fragment),
                ports: [offset, 0],
                ..packet
            });
            let flows = fragments.map(Packet::flow);
            prop_assert_eq!(flows[0], flows[1]);
            prop_assert_eq!(flows[0], flows[2]);
            prop_assert_eq!(flows[0].protocol, packet.protocol);
            prop_assert_eq!(flows[0].source_port, NO_PORT);
            prop_assert_eq!(flows[0].hash(), fragments[0].reversed().flow().hash());
        }

        #[test]
        fn another_end_is_another_flow(packet in packet(), other in packet()) {
            let (a, b) = (packet.flow(), other.flow());
            let swapped = packet.reversed().flow();
            prop_assume!(a != b && swapped != b);
            prop_assert_ne!(a.hash(), b.hash());
        }

        /// Any bytes at all, cut anywhere behind the fixed header.
        #[test]
        fn cut_packets_have_no_ports(packet in packet(), keep in 0..4_usize) {
            let bytes = packet.bytes();
            let cut = &bytes[..bytes.len() - 8 + keep];
            prop_assert_eq!(flow(cut).source_port, NO_PORT);
        }
    }

    /// How unevenly flows fall into 256 buckets: the sum over all of (found - due)² / due, which is 255
    /// for chance, and within 60 of it nearly always.
    fn unevenness(flows: impl Iterator<Item = Flow>) -> f64 {
        let mut buckets = [0_u32; 256];
        let mut all = 0;
        for flow in flows {
            buckets[flow.hash() as usize % 256] += 1;
            all += 1;
        }
        let due = f64::from(all) / 256.0;
        buckets
            .iter()
            .map(|&found| (f64::from(found) - due).powi(2) / due)
            .sum()
    }

    fn v4(source: u32, destination: u32, ports: [u16; 2]) -> Flow {
        Packet {
            source: Ipv4Addr::from(source).into(),
            destination: Ipv4Addr::from(destination).into(),
            protocol: 6,
            ports,
            options: 0,
            fragment: None,
        }
        .flow()
    }

    /// What real traffic looks like: few addresses, ports in a row.
    #[test]
    fn flows_are_spread_evenly() {
        const HOST: u32 = 0x0a43_0001;
        let few = |n: u32| (n % 16, n / 16);
        let cases: [(&str, Box<dyn Iterator<Item = Flow>>); 4] = [
            (
                "source ports in a row",
                Box::new((0..25_600).map(|n| v4(HOST, HOST + 1, [n + 10_000, 443]))),
            ),
            (
                "even ports",
                Box::new((0..25_600).map(|n| v4(HOST, HOST + 1, [n * 2, 443]))),
            ),
            (
                "addresses in a row",
                Box::new((0..25_600).map(|n| v4(HOST + n, 0x0808_0808, [443, 443]))),
            ),
            (
                "a few hosts and ports",
                Box::new((0..25_600).map(|n| {
                    let (host, port) = few(n);
                    v4(HOST + host, HOST + 256 + host, [port as u16, 5201])
                })),
            ),
        ];
        for (what, flows) in cases {
            let unevenness = unevenness(flows);
            assert!(unevenness < 400.0, "{what}: {unevenness}");
        }
        let six = (0..25_600_u16).map(|n| {
            Packet {
                source: Ipv6Addr::new(0x2001, 0xdb8, 0, n % 64, 0, 0, 0, 1).into(),
                destination: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n / 64).into(),
                protocol: 17,
                ports: [5000, 5000],
                options: 0,
                fragment: None,
            }
            .flow()
        });
        let unevenness = unevenness(six);
        assert!(unevenness < 400.0, "IPv6: {unevenness}");
    }

    #[test]
    fn each_bit_of_a_port_turns_half_of_the_hash() {
        let mut turned = 0;
        let mut pairs = 0;
        for port in 0..1000_u16 {
            for bit in 0..16 {
                let flow = |port| v4(0x0a43_0001, 0x0a43_0002, [port, 80]).hash();
                turned += (flow(port) ^ flow(port ^ 1 << bit)).count_ones();
                pairs += 1;
            }
        }
        let mean = f64::from(turned) / f64::from(pairs);
        assert!((mean - 16.0).abs() < 0.2, "{mean}");
    }
}
