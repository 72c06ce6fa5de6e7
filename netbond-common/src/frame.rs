//! The header of an Ethernet frame, and the VLAN tags in it (IEEE 802.1Q).

/// Bytes of the header without tags: destination, source, EtherType.
pub const HEADER_LEN: usize = 14;
/// Bytes of a tag.
pub const TAG_LEN: usize = 4;

/// Where the EtherType is, or the first tag.
pub const TYPE_AT: usize = 12;

/// A header without tags.
pub type Header = [u8; HEADER_LEN];
/// A tag: its EtherType and what it says, both big-endian.
pub type Tag = [u8; TAG_LEN];

/// EtherTypes of tags: 802.1Q and 802.1ad.
const CUSTOMER: [u8; 2] = 0x8100_u16.to_be_bytes();
const SERVICE: [u8; 2] = 0x88a8_u16.to_be_bytes();

/// Whether an EtherType (big-endian) is that of a tag.
#[inline(always)]
#[must_use]
pub const fn is_tag(ethertype: [u8; 2]) -> bool {
    matches!(ethertype, CUSTOMER | SERVICE)
}

/// A header without tags; `protocol` is the EtherType, big-endian.
#[inline(always)]
#[must_use]
pub const fn header(to: [u8; 6], from: [u8; 6], protocol: [u8; 2]) -> Header {
    [
        to[0],
        to[1],
        to[2],
        to[3],
        to[4],
        to[5], //
        from[0],
        from[1],
        from[2],
        from[3],
        from[4],
        from[5], //
        protocol[0],
        protocol[1],
    ]
}

/// What follows a header, a tag or the EtherType, big-endian.
#[inline(always)]
#[must_use]
pub const fn protocol(header: &Header) -> [u8; 2] {
    [header[TYPE_AT], header[TYPE_AT + 1]]
}

/// Whether a header is that of a frame to this address.
#[inline(always)]
#[must_use]
pub const fn is_to(header: &Header, address: [u8; 6]) -> bool {
    let [a, b, c, d, e, f, ..] = *header;
    let [u, v, w, x, y, z] = address;
    (a ^ u) | (b ^ v) | (c ^ w) | (d ^ x) | (e ^ y) | (f ^ z) == 0
}

/// A header with tags put in, the outermost first; `N` is the length of the whole.
#[inline(always)]
#[must_use]
pub const fn tagged<const TAGS: usize, const N: usize>(
    header: Header,
    tags: [Tag; TAGS],
) -> [u8; N] {
    const { assert!(N == HEADER_LEN + TAGS * TAG_LEN) };
    let mut bytes = [0; N];
    let mut at = 0;
    while at < TYPE_AT {
        bytes[at] = header[at];
        at += 1;
    }
    let mut tag = 0;
    while tag < TAGS {
        let mut byte = 0;
        while byte < TAG_LEN {
            bytes[at] = tags[tag][byte];
            byte += 1;
            at += 1;
        }
        tag += 1;
    }
    bytes[at] = header[TYPE_AT];
    bytes[at + 1] = header[TYPE_AT + 1];
    bytes
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, VlanSlice};

    use super::*;

    #[test]
    fn tags_decode() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([1; 6], [2; 6])
            .ipv4([192, 0, 2, 1], [192, 0, 2, 2], 9)
            .udp(1, 2)
            .write(&mut frame, &[])
            .unwrap();
        let header: Header = frame[..HEADER_LEN].try_into().unwrap();
        let plain: Header = tagged(header, []);
        assert_eq!(plain, header);
        let two: [u8; 22] = tagged(header, [[0x88, 0xa8, 0x60, 7], [0x81, 0, 0, 5]]);
        let frame = [&two[..], &frame[HEADER_LEN..]].concat();
        let sliced = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(VlanSlice::DoubleVlan(tags)) = sliced.vlan() else {
            panic!("{sliced:?}");
        };
        let outer = tags.outer;
        assert_eq!(
            (
                outer.vlan_identifier().value(),
                outer.priority_code_point().value()
            ),
            (7, 3)
        );
        assert_eq!(tags.inner.vlan_identifier().value(), 5);
        assert!(sliced.transport.is_some(), "behind them is what was");
    }

    #[test]
    fn each_byte_of_an_address_counts() {
        let own = [2, 0, 0, 0, 0, 1];
        assert!(is_to(&header(own, [7; 6], [8, 0]), own));
        for at in 0..6 {
            let mut other = own;
            other[at] ^= 0x10;
            assert!(!is_to(&header(other, own, [8, 0]), own), "{at}");
        }
    }

    #[test]
    fn types_of_tags() {
        assert!(is_tag([0x81, 0]) && is_tag([0x88, 0xa8]));
        assert!(!is_tag([0x08, 0]) && !is_tag([0x88, 0xcc]));
    }
}
