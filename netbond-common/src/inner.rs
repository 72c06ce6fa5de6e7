//! What the outer header takes over from the packet inside.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{ecn, gre, ipv6};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;

/// What an inner packet says of its treatment on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// GRE payload type, big-endian.
    pub protocol: [u8; 2],
    /// DSCP and ECN.
    pub tos: u8,
    pub ttl: u8,
    /// Whether it may not be fragmented; always so for IPv6.
    pub dont_fragment: bool,
}

impl Inner {
    /// Of a frame without an IP packet in it. The TTL is what the kernel's gretap takes then, unless
    /// net.ipv4.ip_default_ttl says otherwise.
    pub const OPAQUE: Self = Self {
        protocol: gre::ETHERNET,
        tos: 0,
        ttl: 64,
        dont_fragment: true,
    };

    /// Of the frame around this packet, with `tags` VLAN tags. It may not be fragmented whatever the
    /// packet says, as with the kernel's gretap (pmtudisc). The other end takes no congestion mark
    /// through a tag: then none may be made on the way (RFC 6040, 4.3).
    #[inline(always)]
    #[must_use]
    pub const fn in_frame(self, tags: usize) -> Self {
        Self {
            protocol: gre::ETHERNET,
            tos: if tags == 0 {
                self.tos
            } else {
                self.tos & !ecn::MASK
            },
            ttl: self.ttl,
            dont_fragment: true,
        }
    }

    /// Reads an IPv4 header; `None` where it is of another version or its length field is short.
    #[inline(always)]
    #[must_use]
    pub fn from_ipv4(header: &Ipv4Hdr) -> Option<Self> {
        if header.version() != 4 || header.ihl() < Ipv4Hdr::LEN as u8 {
            return None;
        }
        Some(Self {
            protocol: gre::IPV4,
            tos: header.tos,
            ttl: header.ttl,
            dont_fragment: header.frags[0] & 0x40 != 0,
        })
    }

    /// Reads the first bytes of an IPv6 header; `None` where it is of another version.
    #[inline(always)]
    #[must_use]
    pub const fn from_ipv6(header: &[u8; Ipv6Hdr::LEN]) -> Option<Self> {
        if header[0] >> 4 != 6 {
            return None;
        }
        Some(Self {
            protocol: gre::IPV6,
            tos: ipv6::traffic_class(header[0], header[1]),
            ttl: header[7],
            dont_fragment: true,
        })
    }
}

/// Packets on the wire that a socket buffer stands for.
///
/// `gso_segs` is 0 where the kernel has not counted (packets from a tap or forwarded after
/// generic receive offload); then they are told from `len`, the frame's bytes, and `gso_size`, the
/// payload's bytes per segment, as if the headers were those of TCP over IPv4.
#[inline(always)]
#[must_use]
pub const fn wire_packets(gso_segs: u32, gso_size: u32, len: u32) -> u32 {
    if gso_segs != 0 {
        return gso_segs;
    }
    const HEADERS: u32 = 14 + 20 + 20;
    let payload = len.saturating_sub(HEADERS);
    match (payload.saturating_add(gso_size).saturating_sub(1)).checked_div(gso_size) {
        None | Some(0) => 1,
        Some(packets) => packets,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn ipv4(tos: u8, ttl: u8, dont_fragment: bool) -> Ipv4Hdr {
        let mut header = etherparse::Ipv4Header::new(
            8,
            ttl,
            etherparse::IpNumber::UDP,
            [10, 0, 0, 1],
            [10, 0, 0, 2],
        )
        .unwrap();
        header.dscp = (tos >> 2).try_into().unwrap();
        header.ecn = (tos & 3).try_into().unwrap();
        header.dont_fragment = dont_fragment;
        crate::ipv4::tests::header(header.to_bytes().first_chunk().unwrap())
    }

    #[test]
    fn ipv4_fields() {
        for dont_fragment in [false, true] {
            let inner = Inner::from_ipv4(&ipv4(0xb9, 17, dont_fragment)).unwrap();
            assert_eq!(
                inner,
                Inner {
                    protocol: gre::IPV4,
                    tos: 0xb9,
                    ttl: 17,
                    dont_fragment
                }
            );
        }
        let mut short = ipv4(0, 64, false);
        short.vihl = 0x44;
        assert_eq!(Inner::from_ipv4(&short), None);
        short.vihl = 0x65;
        assert_eq!(Inner::from_ipv4(&short), None);
    }

    #[test]
    fn ipv6_fields() {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ip(etherparse::IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                traffic_class: 0xb9,
                flow_label: 0xabcde.try_into().unwrap(),
                hop_limit: 17,
                ..Default::default()
            },
            Default::default(),
        ));
        builder.udp(1, 2).write(&mut bytes, &[]).unwrap();
        let header: [u8; 40] = bytes[..40].try_into().unwrap();
        let want = Inner {
            protocol: gre::IPV6,
            tos: 0xb9,
            ttl: 17,
            dont_fragment: true,
        };
        assert_eq!(Inner::from_ipv6(&header), Some(want));
        let mut four = header;
        four[0] = 0x45;
        assert_eq!(Inner::from_ipv6(&four), None);
    }

    #[test]
    fn a_frame_inherits_from_its_packet() {
        let packet = Inner::from_ipv4(&ipv4(0xb9, 17, false)).unwrap();
        let frame = packet.in_frame(0);
        assert_eq!(
            (frame.protocol, frame.tos, frame.ttl),
            ([0x65, 0x58], 0xb9, 17)
        );
        assert!(frame.dont_fragment);
        assert_eq!(packet.in_frame(1).tos, 0xb8, "not ECN-capable");
    }

    #[test]
    fn wire_packets_of_gso() {
        assert_eq!(wire_packets(0, 0, 1500), 1);
        assert_eq!(wire_packets(3, 1400, 4000), 3);
        assert_eq!(wire_packets(0, 1400, 54 + 2900), 3);
        assert_eq!(wire_packets(0, 1400, 54 + 2800), 2);
        assert_eq!(wire_packets(0, 1400, 900), 1);
    }
}
