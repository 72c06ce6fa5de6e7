//! What a router checks of an IP packet before it passes it on, and what it changes then (RFC 1812, 5.2 and
//! 5.3; RFC 8200, 3): for packets that are forwarded past the kernel. The sum of IPv4's header is not among it: a wrong
//! one stays wrong, and the next router or host drops the packet.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{inner::Inner, ipv4, ipv6};

/// Version and header length of an IPv4 header without options.
const PLAIN_IPV4: u8 = 0x45;
/// Next header of IPv6 that every router has to look at (RFC 8200, 4.3).
const HOP_BY_HOP: u8 = 0;

/// An IP packet that takes no more of a router than a route.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Onward {
    /// As it is passed on: with one hop less to go.
    pub inner: Inner,
    /// Bytes of the packet, by its own header: what follows fills up a short frame.
    pub len: u32,
    /// Protocol of what follows the header.
    pub transport: u8,
    /// Whether it has a transport header: no fragment but the first has.
    pub whole: bool,
}

impl Onward {
    /// Reads an IPv4 header, in a frame that has so many bytes of room for the packet. `None` where the packet is
    /// the kernel's: malformed, with options, at the end of its hops, or with an address that is no host's of
    /// another network.
    #[inline(always)]
    #[must_use]
    pub fn from_ipv4(header: &Ipv4Hdr, room: u32) -> Option<Self> {
        let len = u32::from(u16::from_be_bytes(header.tot_len));
        if header.vihl != PLAIN_IPV4
            || header.ttl <= 1
            || len < ipv4::HEADER_LEN as u32
            || len > room
            || !is_host_v4(header.src_addr)
            || !is_host_v4(header.dst_addr)
        {
            return None;
        }
        let inner = Inner::from_ipv4(header)?;
        Some(Self {
            inner: Inner {
                ttl: inner.ttl - 1,
                ..inner
            },
            len,
            transport: header.proto,
            whole: !ipv4::is_fragment(header.frags),
        })
    }

    /// The same of an IPv6 header: `source` and `destination` are the first 64 bits of its addresses.
    #[inline(always)]
    #[must_use]
    pub fn from_ipv6(
        header: &[u8; Ipv6Hdr::LEN],
        [source, destination]: [[u8; 8]; 2],
        room: u32,
    ) -> Option<Self> {
        let inner = Inner::from_ipv6(header)?;
        let payload = u16::from_be_bytes([header[4], header[5]]);
        let len = u32::from(payload) + ipv6::HEADER_LEN as u32;
        let transport = header[6];
        // Without a length it is a jumbogram (RFC 2675).
        if payload == 0
            || inner.ttl <= 1
            || len > room
            || transport == HOP_BY_HOP
            || !is_host_v6(source)
            || !is_host_v6(destination)
        {
            return None;
        }
        Some(Self {
            inner: Inner {
                ttl: inner.ttl - 1,
                ..inner
            },
            len,
            transport,
            whole: transport != ipv6::FRAGMENT,
        })
    }
}

/// Whether an address may be that of a host elsewhere: neither this network's (0/8), nor this host's (127/8), nor a
/// group or what is beyond (224/3).
#[inline(always)]
const fn is_host_v4(address: [u8; 4]) -> bool {
    !matches!(address[0], 0 | 127 | 224..)
}

/// The same of the first 64 bits of an IPv6 address: not a group (ff00::/8), nor of one link only (fe80::/10), nor
/// this host, none, or IPv4's (::/64).
#[inline(always)]
const fn is_host_v6(start: [u8; 8]) -> bool {
    let start = u64::from_be_bytes(start);
    start >> 56 != 0xff && start >> 54 != 0xfe80 >> 6 && start != 0
}

/// The checksum (big-endian) of an IPv4 header whose TTL became one less (RFC 1624, eqn. 3).
#[inline(always)]
#[must_use]
pub const fn checksum_after_hop(check: [u8; 2]) -> [u8; 2] {
    // The word of TTL and protocol became 0x0100 less.
    const LESS: u32 = !0x0100_u16 as u32;
    let sum = !u16::from_be_bytes(check) as u32 + LESS;
    ipv4::fold(sum).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv4Header, Ipv6Header};
    use proptest::prelude::*;

    use super::*;
    use crate::gre;

    fn v4(change: impl FnOnce(&mut Ipv4Header)) -> Ipv4Hdr {
        let mut header = Ipv4Header::new(
            80,
            64,
            etherparse::IpNumber::UDP,
            [192, 0, 2, 1],
            [198, 51, 100, 1],
        )
        .unwrap();
        change(&mut header);
        header.header_checksum = header.calc_header_checksum();
        ipv4::tests::header(header.to_bytes().first_chunk().unwrap())
    }

    fn v6(change: impl FnOnce(&mut Ipv6Header)) -> [u8; 40] {
        let mut header = Ipv6Header {
            payload_length: 60,
            hop_limit: 64,
            next_header: etherparse::IpNumber::UDP,
            source: "2001:db8::1"
                .parse::<core::net::Ipv6Addr>()
                .unwrap()
                .octets(),
            destination: "2001:db8:1::1"
                .parse::<core::net::Ipv6Addr>()
                .unwrap()
                .octets(),
            ..Default::default()
        };
        change(&mut header);
        header.to_bytes()
    }

    fn read_v6(header: &[u8; 40], room: u32) -> Option<Onward> {
        let start = |at: usize| header[at..at + 8].try_into().unwrap();
        Onward::from_ipv6(header, [start(8), start(24)], room)
    }

    #[test]
    fn a_packet_has_one_hop_less_to_go() {
        let four = Onward::from_ipv4(&v4(|_| {}), 106).unwrap();
        let want = Onward {
            inner: Inner {
                protocol: gre::IPV4,
                tos: 0,
                ttl: 63,
                dont_fragment: true,
            },
            len: 100,
            transport: 17,
            whole: true,
        };
        assert_eq!(four, want);
        let six = read_v6(&v6(|_| {}), 100).unwrap();
        let inner = Inner {
            protocol: gre::IPV6,
            ..want.inner
        };
        assert_eq!(six, Onward { inner, ..want });
        let fragment = v4(|header| header.more_fragments = true);
        assert!(!Onward::from_ipv4(&fragment, 100).unwrap().whole);
        let fragment = v6(|header| header.next_header = etherparse::IpNumber(44));
        assert!(!read_v6(&fragment, 100).unwrap().whole);
    }

    #[test]
    fn what_takes_a_router_is_the_kernels() {
        let left = |what: &str, change: &dyn Fn(&mut Ipv4Header)| {
            assert_eq!(Onward::from_ipv4(&v4(change), 100), None, "{what}");
        };
        left("the last hop", &|header| header.time_to_live = 1);
        left("no hop", &|header| header.time_to_live = 0);
        left("options", &|header| {
            header.options = [1; 4].into();
        });
        left("longer than the frame", &|header| header.total_len = 101);
        left("shorter than its header", &|header| header.total_len = 19);
        for address in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 5], [255; 4]] {
            left("a source", &|header| header.source = address);
            left("a destination", &|header| header.destination = address);
        }
        let mut six = v4(|_| {});
        six.vihl = 0x65;
        assert_eq!(Onward::from_ipv4(&six, 100), None);
    }

    #[test]
    fn so_with_ipv6() {
        let left = |what: &str, change: &dyn Fn(&mut Ipv6Header)| {
            assert_eq!(read_v6(&v6(change), 100), None, "{what}");
        };
        left("the last hop", &|header| header.hop_limit = 1);
        left("no hop", &|header| header.hop_limit = 0);
        left("hop by hop", &|header| {
            header.next_header = etherparse::IpNumber(0);
        });
        left("a jumbogram", &|header| header.payload_length = 0);
        left("longer than the frame", &|header| {
            header.payload_length = 61;
        });
        for address in [
            "::",
            "::1",
            "::ffff:192.0.2.1",
            "fe80::1",
            "febf::1",
            "ff02::1",
        ] {
            let octets = address.parse::<core::net::Ipv6Addr>().unwrap().octets();
            left(address, &|header| header.source = octets);
            left(address, &|header| header.destination = octets);
        }
        for address in ["fec0::1", "fd00::1", "64:ff9b::1"] {
            let octets = address.parse::<core::net::Ipv6Addr>().unwrap().octets();
            assert!(read_v6(&v6(|header| header.source = octets), 100).is_some());
        }
        let mut four = v6(|_| {});
        four[0] = 0x45;
        assert_eq!(read_v6(&four, 100), None);
    }

    proptest! {
        #[test]
        fn the_checksum_follows_the_ttl(source: [u8; 4], id: u16, ttl in 1..=255_u8, protocol: u8) {
            let with = |ttl| {
                v4(|header| {
                    header.source = source;
                    header.identification = id;
                    header.time_to_live = ttl;
                    header.protocol = etherparse::IpNumber(protocol);
                })
                .check
            };
            prop_assert_eq!(checksum_after_hop(with(ttl)), with(ttl - 1));
        }
    }
}
