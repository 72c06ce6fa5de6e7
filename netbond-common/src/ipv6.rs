//! The outer IPv6 header (RFC 8200).

use crate::inner::Inner;

/// Bytes of the header without extension headers.
pub const HEADER_LEN: usize = 40;
/// Bytes of it before the addresses.
pub const HEAD_LEN: usize = 8;
/// Bytes of the addresses behind them: source, then destination.
pub const ADDRESSES_LEN: usize = 32;
const _: () = assert!(HEAD_LEN + ADDRESSES_LEN == HEADER_LEN);

/// Next header that says: a fragment (RFC 8200, 4.5).
pub const FRAGMENT: u8 = 44;

/// Bits of a flow label.
const LABEL_BITS: u32 = 20;

/// What an outer header says, apart from its addresses. It has no checksum and no identification, and
/// who is on the way may not fragment the packet.
pub struct Outward {
    pub inner: Inner,
    /// Outer hop limit; 0: the inner packet's TTL or hop limit.
    pub hop_limit: u8,
    /// Bytes of the inner packet.
    pub payload_len: u32,
    /// [`flow_label`].
    pub label: u32,
}

impl Outward {
    /// The header up to its addresses, before a GRE header of so many bytes.
    #[inline(always)]
    #[must_use]
    pub const fn head(&self, gre_len: usize) -> [u8; HEAD_LEN] {
        // A GSO packet may be longer than the field holds; its segments get lengths of their own.
        let len = self.payload_len.wrapping_add(gre_len as u32) as u16;
        let hop_limit = if self.hop_limit == 0 {
            self.inner.ttl
        } else {
            self.hop_limit
        };
        let first = 6 << 28 | (self.inner.tos as u32) << LABEL_BITS | self.label;
        let [a, b, c, d] = first.to_be_bytes();
        let [e, f] = len.to_be_bytes();
        [a, b, c, d, e, f, crate::gre::IP_PROTOCOL, hop_limit]
    }
}

/// The outer flow label for packets that share this hash, by which routers on the way may choose among
/// equal routes (RFC 6438). 0, which says that there is none, comes as rarely as any other.
#[inline(always)]
#[must_use]
pub const fn flow_label(hash: u32) -> u32 {
    // Neither neighbouring numbers nor those that share the low bits, by which paths are chosen, shall
    // have labels alike.
    hash.wrapping_add(1).wrapping_mul(0x9e37_79b1) >> (u32::BITS - LABEL_BITS)
}

/// Whether an address stands for one of IPv4, `::ffff:a.b.c.d` ([`crate::ipv4::mapped`]).
#[inline(always)]
#[must_use]
pub const fn is_mapped(address: &[u8; 16]) -> bool {
    u128::from_be_bytes(*address) >> 32 == 0xffff
}

/// The traffic class of a header, given its first bytes: DSCP and ECN.
#[inline(always)]
#[must_use]
pub const fn traffic_class(first: u8, second: u8) -> u8 {
    first << 4 | second >> 4
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use etherparse::Ipv6HeaderSlice;
    use proptest::prelude::*;

    use super::*;
    use crate::gre;

    proptest! {
        /// An independent library reads back what was asked for.
        #[test]
        fn headers_decode(
            local: [u8; 16], remote: [u8; 16], tos: u8, ttl in 1..=255_u8, hop_limit: u8, hash: u32,
            payload_len in 20..65_000_u32, gre_len in prop_oneof![Just(4_usize), Just(8), Just(12)],
        ) {
            let inner = Inner { protocol: gre::IPV4, tos, ttl, dont_fragment: false };
            let label = flow_label(hash);
            let head = Outward { inner, hop_limit, payload_len, label }.head(gre_len);
            let bytes = [&head[..], &local, &remote].concat();
            let ip = Ipv6HeaderSlice::from_slice(&bytes).unwrap();
            prop_assert_eq!(ip.slice().len(), HEADER_LEN);
            prop_assert_eq!(ip.source(), local);
            prop_assert_eq!(ip.destination(), remote);
            prop_assert_eq!(ip.next_header().0, 47);
            prop_assert_eq!(ip.traffic_class(), tos);
            prop_assert_eq!(ip.flow_label().value(), label);
            prop_assert_eq!(ip.hop_limit(), if hop_limit == 0 { ttl } else { hop_limit });
            prop_assert_eq!(u32::from(ip.payload_length()), payload_len + gre_len as u32);
            prop_assert_eq!(traffic_class(bytes[0], bytes[1]), tos);
        }
    }

    /// The kernel gives its segments lengths of their own.
    #[test]
    fn a_super_packet_may_be_longer_than_the_field() {
        let outward = Outward {
            inner: Inner::OPAQUE,
            hop_limit: 64,
            payload_len: 0x1_2340,
            label: 0,
        };
        assert_eq!(outward.head(4)[4..6], [0x23, 0x44]);
    }

    #[test]
    fn mapped_addresses() {
        assert!(is_mapped(&crate::ipv4::mapped([10, 65, 0, 6])));
        assert!(is_mapped(&crate::ipv4::mapped([0; 4])));
        let mut other = crate::ipv4::mapped([10, 65, 0, 6]);
        other[0] = 0xfd;
        assert!(!is_mapped(&other) && !is_mapped(&[0; 16]) && !is_mapped(&[0xff; 16]));
    }

    #[test]
    fn labels_tell_flows_apart() {
        let distinct = |hashes: &mut dyn Iterator<Item = u32>| {
            let labels: BTreeSet<u32> = hashes.map(flow_label).collect();
            assert!(labels.iter().all(|label| *label < 1 << LABEL_BITS));
            labels.len()
        };
        assert_eq!(distinct(&mut (0..16)), 16, "strands");
        assert_eq!(
            distinct(&mut (0..4096).map(|n| n << 8 | 0x5a)),
            4096,
            "flows of one bucket"
        );
    }
}
