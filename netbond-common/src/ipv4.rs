//! The outer IPv4 header.

use crate::{gre, inner::Inner};

/// Bytes of the header without options.
pub const HEADER_LEN: usize = 20;
/// Don't fragment, in the flags and fragment offset word.
const DONT_FRAGMENT: u16 = 0x4000;
/// More fragments, or a fragment offset.
const FRAGMENT: u16 = 0x3fff;

/// An IPv4 address within an IPv6 one: `::ffff:a.b.c.d`.
#[must_use]
pub const fn mapped(address: [u8; 4]) -> [u8; 16] {
    // As one number: the kernel's programs set arrays byte by byte.
    (0xffff_0000_0000 | u32::from_be_bytes(address) as u128).to_be_bytes()
}

/// The IPv4 address in such a one.
#[inline(always)]
#[must_use]
pub const fn unmapped(address: &[u8; 16]) -> [u8; 4] {
    [address[12], address[13], address[14], address[15]]
}

#[inline(always)]
const fn word(high: u8, low: u8) -> u32 {
    u16::from_be_bytes([high, low]) as u32
}

/// The part of the header's checksum that is the same for all packets of a path: the sum of the
/// addresses' 16-bit words, version and header length, and protocol. It does not wrap: seven words.
#[must_use]
pub const fn constant_sum(local: [u8; 4], remote: [u8; 4]) -> u32 {
    word(local[0], local[1])
        + word(local[2], local[3])
        + word(remote[0], remote[1])
        + word(remote[2], remote[3])
        + word(0x45, 0)
        + word(0, gre::IP_PROTOCOL)
}

/// The Internet checksum (RFC 1071) of words whose sum is `sum`.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Where a packet's outer header comes from.
pub struct Outward<'a> {
    /// IPv4-mapped addresses of the path.
    pub local: &'a [u8; 16],
    pub remote: &'a [u8; 16],
    /// [`constant_sum`] of them.
    pub sum: u32,
    pub inner: Inner,
    /// Outer TTL; 0: the inner packet's.
    pub ttl: u8,
    /// Bytes of the inner packet.
    pub payload_len: u32,
    /// Identification: means nothing where the packet may not be fragmented (RFC 6864, 4.1).
    pub identification: u16,
}

impl Outward<'_> {
    /// The header's TTL.
    #[inline(always)]
    #[must_use]
    pub const fn ttl(&self) -> u8 {
        if self.ttl == 0 {
            self.inner.ttl
        } else {
            self.ttl
        }
    }

    /// The IPv4 header before a GRE header of so many bytes.
    #[inline(always)]
    #[must_use]
    pub fn header(&self, gre_len: usize) -> [u8; HEADER_LEN] {
        // A GSO packet may be longer than the field holds; its segments get lengths of their own.
        let total = self.payload_len.wrapping_add((HEADER_LEN + gre_len) as u32) as u16;
        let id = self.identification;
        let flags = if self.inner.dont_fragment {
            DONT_FRAGMENT
        } else {
            0
        };
        let ttl = self.ttl();
        let sum = self.sum
            + self.inner.tos as u32
            + total as u32
            + id as u32
            + flags as u32
            + word(ttl, 0);
        let (total, id) = (total.to_be_bytes(), id.to_be_bytes());
        let (flags, check) = (flags.to_be_bytes(), fold(sum).to_be_bytes());
        let (local, remote) = (unmapped(self.local), unmapped(self.remote));
        let mut bytes = [0; HEADER_LEN];
        [bytes[0], bytes[1], bytes[2], bytes[3]] = [0x45, self.inner.tos, total[0], total[1]];
        [bytes[4], bytes[5], bytes[6], bytes[7]] = [id[0], id[1], flags[0], flags[1]];
        [bytes[8], bytes[9], bytes[10], bytes[11]] = [ttl, gre::IP_PROTOCOL, check[0], check[1]];
        [bytes[12], bytes[13], bytes[14], bytes[15]] = local;
        [bytes[16], bytes[17], bytes[18], bytes[19]] = remote;
        bytes
    }
}

/// Whether the flags and fragment offset word (big-endian) is that of a fragment.
#[inline(always)]
#[must_use]
pub const fn is_fragment(frags: [u8; 2]) -> bool {
    u16::from_be_bytes(frags) & FRAGMENT != 0
}

/// The checksum of a header (big-endian) after its TOS byte changed (RFC 1624, eqn. 3).
#[inline(always)]
#[must_use]
pub const fn checksum_after_tos(check: [u8; 2], old_tos: u8, new_tos: u8) -> [u8; 2] {
    let check = u16::from_be_bytes(check);
    // The word that changes is version, header length and TOS: its first half cancels out.
    let sum = (!check) as u32 + (!(old_tos as u16)) as u32 + new_tos as u32;
    fold(sum).to_be_bytes()
}

#[cfg(test)]
pub(crate) mod tests {
    use etherparse::{IpFragOffset, Ipv4HeaderSlice};
    use network_types::ip::Ipv4Hdr;
    use proptest::prelude::*;

    use super::*;

    /// A header as the programs read it.
    pub(crate) fn header(b: &[u8; HEADER_LEN]) -> Ipv4Hdr {
        Ipv4Hdr {
            vihl: b[0],
            tos: b[1],
            tot_len: [b[2], b[3]],
            id: [b[4], b[5]],
            frags: [b[6], b[7]],
            ttl: b[8],
            proto: b[9],
            check: [b[10], b[11]],
            src_addr: [b[12], b[13], b[14], b[15]],
            dst_addr: [b[16], b[17], b[18], b[19]],
        }
    }

    proptest! {
        /// An independent library reads back what was asked for, with the right checksum.
        #[test]
        fn headers_decode(
            local: [u8; 4], remote: [u8; 4], tos: u8, inner_ttl in 1..=255_u8, ttl: u8,
            dont_fragment: bool, ipv6: bool, identification: u16, payload_len in 20..65_000_u32,
            gre_len in prop_oneof![Just(4_usize), Just(8), Just(12)],
        ) {
            let protocol = if ipv6 { gre::IPV6 } else { gre::IPV4 };
            let outward = Outward {
                local: &mapped(local),
                remote: &mapped(remote),
                sum: constant_sum(local, remote),
                inner: Inner { protocol, tos, ttl: inner_ttl, dont_fragment },
                ttl,
                payload_len,
                identification,
            };
            let bytes = outward.header(gre_len);
            let ip = Ipv4HeaderSlice::from_slice(&bytes).unwrap();
            prop_assert_eq!(ip.source(), local);
            prop_assert_eq!(ip.destination(), remote);
            prop_assert_eq!(ip.protocol().0, 47);
            prop_assert_eq!(ip.dcp().value() << 2 | ip.ecn().value(), tos);
            prop_assert_eq!(ip.ttl(), if ttl == 0 { inner_ttl } else { ttl });
            prop_assert_eq!(ip.total_len() as u32, payload_len + (20 + gre_len) as u32);
            prop_assert_eq!(ip.dont_fragment(), dont_fragment);
            prop_assert!(!ip.more_fragments());
            prop_assert_eq!(ip.fragments_offset(), IpFragOffset::ZERO);
            prop_assert_eq!(ip.identification(), identification);
            prop_assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
        }

        #[test]
        fn checksum_follows_tos(local: [u8; 4], remote: [u8; 4], id: u16, old: u8, new: u8) {
            let mut header =
                etherparse::Ipv4Header::new(100, 9, etherparse::IpNumber::UDP, local, remote).unwrap();
            header.identification = id;
            let with_tos = |header: &etherparse::Ipv4Header, tos: u8| {
                let mut header = header.clone();
                header.dscp = (tos >> 2).try_into().unwrap();
                header.ecn = (tos & 3).try_into().unwrap();
                header.calc_header_checksum()
            };
            let got = checksum_after_tos(with_tos(&header, old).to_be_bytes(), old, new);
            prop_assert_eq!(u16::from_be_bytes(got), with_tos(&header, new));
        }
    }

    #[test]
    fn fragments() {
        assert!(!is_fragment([0, 0]));
        assert!(!is_fragment([0x40, 0]), "don't fragment is no fragment");
        assert!(is_fragment([0x20, 0]));
        assert!(is_fragment([0, 1]));
    }
}
