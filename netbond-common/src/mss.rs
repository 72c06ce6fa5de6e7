//! The maximum segment size that TCP announces in its SYN (RFC 9293, 3.7.1): what is clamped to a bond's MTU.

/// Bytes of the TCP header without options.
pub const TCP_LEN: usize = 20;
/// Where its checksum is.
pub const CHECK_AT: usize = 16;
/// Where its length (4 bits, in words) and flags are.
pub const LENGTH_AT: usize = 12;
/// Options that are looked at, those that only fill up included.
pub const MAX_OPTIONS: usize = 10;

const SYN: u8 = 1 << 1;

/// Kinds of options.
const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;

/// Bytes of the option.
pub const OPTION_LEN: usize = 4;

/// The largest segment that a packet of `mtu` bytes has room for, as it is announced: without options of IP and
/// TCP, which the sender leaves room for.
#[inline(always)]
#[must_use]
pub const fn of_mtu(mtu: u32, ipv6: bool) -> u16 {
    let headers = TCP_LEN as u32 + if ipv6 { 40 } else { 20 };
    let mss = mtu.saturating_sub(headers);
    if mss > u16::MAX as u32 {
        u16::MAX
    } else {
        mss as u16
    }
}

/// Bytes of the header, by what it says at [`LENGTH_AT`]; `None` where it begins no connection.
#[inline(always)]
#[must_use]
pub const fn of_syn([length, flags]: [u8; 2]) -> Option<usize> {
    if flags & SYN == 0 {
        return None;
    }
    Some((length >> 4) as usize * 4)
}

/// The size that an option announces, 0 where it is another one.
#[inline(always)]
#[must_use]
pub const fn announced(option: [u8; OPTION_LEN]) -> u16 {
    if option[0] == MSS && option[1] as usize == OPTION_LEN {
        u16::from_be_bytes([option[2], option[3]])
    } else {
        0
    }
}

/// Bytes until the option behind this one, 0 where there is none.
#[inline(always)]
#[must_use]
pub const fn len(option: [u8; OPTION_LEN]) -> usize {
    match option[0] {
        END => 0,
        NOTHING => 1,
        _ if option[1] < 2 => 0,
        _ => option[1] as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_left_for_headers() {
        assert_eq!((of_mtu(1500, false), of_mtu(1500, true)), (1460, 1440));
        assert_eq!((of_mtu(30, false), of_mtu(70_000, false)), (0, u16::MAX));
    }

    #[test]
    fn a_syn_and_its_answer_begin_a_connection() {
        assert_eq!(of_syn([0x60, 0x02]), Some(24));
        assert_eq!(of_syn([0xf0, 0x12]), Some(60));
        assert_eq!(of_syn([0x50, 0x10]), None);
    }

    #[test]
    fn options_are_told_apart() {
        assert_eq!(announced([2, 4, 0x05, 0xb4]), 1460);
        for other in [[3, 3, 7, 1], [2, 3, 5, 0xb4], [1, 1, 2, 4], [0; 4]] {
            assert_eq!(announced(other), 0);
        }
        assert_eq!(len([0, 9, 9, 9]), 0);
        assert_eq!(len([1, 9, 9, 9]), 1);
        assert_eq!(len([8, 10, 9, 9]), 10);
        assert_eq!(len([8, 1, 9, 9]), 0, "it would never end");
    }
}
