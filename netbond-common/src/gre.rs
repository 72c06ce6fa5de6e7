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

/// 32-bit words of the longest header to send.
const MOST: usize = 3;

/// The first word of a header with these flags.
#[inline(always)]
const fn word(flags: u16, [a, b]: [u8; 2]) -> u32 {
    u32::from_ne_bytes([(flags >> 8) as u8, 0, a, b])
}

/// A header to send, by its number of optional fields: words as they are in memory. Each holds the same
/// number of them, with zeros at the end: the compiler may copy what a shorter one would not hold, and
/// the verifier refuses that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    Plain([u32; MOST]),
    One([u32; MOST]),
    Two([u32; MOST]),
}

impl Header {
    /// A header with the fields that the layout has (big-endian). No `Option`s, for the same reason.
    #[inline(always)]
    #[must_use]
    pub const fn new(
        protocol: [u8; 2],
        layout: Layout,
        key: [u8; FIELD_LEN],
        sequence: [u8; FIELD_LEN],
    ) -> Self {
        let (key, sequence) = (u32::from_ne_bytes(key), u32::from_ne_bytes(sequence));
        match (layout.key, layout.sequence) {
            (false, false) => Self::Plain([word(0, protocol), 0, 0]),
            (true, false) => Self::One([word(KEY, protocol), key, 0]),
            (false, true) => Self::One([word(SEQUENCE, protocol), sequence, 0]),
            (true, true) => Self::Two([word(KEY | SEQUENCE, protocol), key, sequence]),
        }
    }

    /// The first `N` bytes.
    #[inline(always)]
    #[must_use]
    pub fn bytes<const N: usize>(words: [u32; MOST]) -> [u8; N] {
        core::array::from_fn(|at| words[at / 4].to_ne_bytes()[at % 4])
    }

    /// Bytes of it.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no header is empty")]
    pub const fn len(&self) -> usize {
        match self {
            Self::Plain(_) => BASE_LEN,
            Self::One(_) => BASE_LEN + FIELD_LEN,
            Self::Two(_) => BASE_LEN + 2 * FIELD_LEN,
        }
    }
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
    fn headers_are_read_back() {
        for (key, sequence) in [(false, false), (false, true), (true, false), (true, true)] {
            let layout = Layout { key, sequence };
            let header = Header::new(IPV6, layout, [1, 2, 3, 4], [5, 6, 7, 8]);
            let bytes = match header {
                Header::Plain(words) | Header::One(words) | Header::Two(words) => {
                    let bytes: [u8; 12] = Header::bytes(words);
                    assert!(bytes[header.len()..].iter().all(|&byte| byte == 0));
                    bytes[..header.len()].to_vec()
                }
            };
            let base = Base {
                flags: [bytes[0], bytes[1]],
                protocol: [bytes[2], bytes[3]],
            };
            assert_eq!(base.protocol, IPV6);
            assert_eq!(base.layout(), Some(layout));
            assert_eq!(bytes.len(), header.len());
            assert_eq!(base.layout().map(Layout::header_len), Some(header.len()));
            let fields = [(key, [1, 2, 3, 4]), (sequence, [5, 6, 7, 8])];
            let written = fields.iter().filter(|(there, _)| *there);
            let written: Vec<u8> = written.flat_map(|(_, field)| *field).collect();
            assert_eq!(bytes[BASE_LEN..], written);
        }
    }
}
