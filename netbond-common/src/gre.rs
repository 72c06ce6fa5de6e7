//! The GRE header (RFC 2784, RFC 2890).

/// Bytes of the header without optional fields.
pub const BASE_LEN: usize = 4;
/// Bytes of each optional field: key, sequence number.
pub const FIELD_LEN: usize = 4;
/// IP protocol number of GRE.
pub const IP_PROTOCOL: u8 = 47;

/// Payload types (EtherTypes), big-endian.
pub const IPV4: [u8; 2] = 0x0800_u16.to_be_bytes();
pub const IPV6: [u8; 2] = 0x86dd_u16.to_be_bytes();
/// Of an Ethernet frame: "transparent Ethernet bridging" (RFC 1701).
pub const ETHERNET: [u8; 2] = 0x6558_u16.to_be_bytes();

const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;

/// A received header's first four bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Flags and version, big-endian.
    pub flags: [u8; 2],
    /// EtherType of the payload, big-endian.
    pub protocol: [u8; 2],
}

impl Base {
    /// The header's layout, or `None` where a flag is set that netbond does not speak: checksum,
    /// routing, or a version other than 0 (PPTP's).
    #[inline(always)]
    #[must_use]
    pub const fn layout(self) -> Option<Layout> {
        let flags = u16::from_be_bytes(self.flags);
        if flags & !(KEY | SEQUENCE) != 0 {
            return None;
        }
        Some(Layout {
            key: flags & KEY != 0,
            sequence: flags & SEQUENCE != 0,
        })
    }
}

/// Which optional fields a header has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub key: bool,
    pub sequence: bool,
}

impl Layout {
    /// Bytes of the whole header.
    #[inline(always)]
    #[must_use]
    pub const fn header_len(self) -> usize {
        BASE_LEN + self.key as usize * FIELD_LEN + self.sequence as usize * FIELD_LEN
    }
}

/// The first four bytes of a header to send.
#[inline(always)]
#[must_use]
pub const fn base(protocol: [u8; 2], key: bool) -> [u8; BASE_LEN] {
    let flags = if key { KEY } else { 0 }.to_be_bytes();
    [flags[0], flags[1], protocol[0], protocol[1]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_key_and_sequence_are_spoken() {
        let layout = |flags: u16| {
            Base {
                flags: flags.to_be_bytes(),
                protocol: IPV4,
            }
            .layout()
        };
        assert_eq!(layout(0).map(Layout::header_len), Some(4));
        assert_eq!(layout(KEY).map(Layout::header_len), Some(8));
        assert_eq!(layout(SEQUENCE).map(Layout::header_len), Some(8));
        assert_eq!(layout(KEY | SEQUENCE).map(Layout::header_len), Some(12));
        for bit in 0..16 {
            let flag = 1_u16 << bit;
            assert_eq!(
                layout(flag).is_some(),
                flag == KEY || flag == SEQUENCE,
                "{flag:#06x}"
            );
        }
    }

    #[test]
    fn base_is_read_back() {
        for key in [false, true] {
            let bytes = base(IPV6, key);
            let base = Base {
                flags: [bytes[0], bytes[1]],
                protocol: [bytes[2], bytes[3]],
            };
            assert_eq!(base.protocol, IPV6);
            assert_eq!(
                base.layout(),
                Some(Layout {
                    key,
                    sequence: false
                })
            );
        }
    }
}
