//! An IP address with a prefix length.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address and a prefix length: that of a device (host bits set) or of a network (none set).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    pub address: IpAddr,
    /// Bits, at most 32 or 128.
    pub length: u8,
}

impl Prefix {
    /// The network that the address is in: the same prefix without host bits.
    #[must_use]
    pub fn network(self) -> Self {
        let host_bits = u32::from(bits(self.address).saturating_sub(self.length));
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        };
        Self { address, ..self }
    }

    /// Whether an address is in it; one of the other family never is.
    #[must_use]
    pub fn holds(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && Self { address, ..self }.network() == self.network()
    }

    /// Whether it has room for one address only.
    #[must_use]
    pub fn is_host(self) -> bool {
        self.length == bits(self.address)
    }

    /// Its two halves; `None` of a single address.
    #[must_use]
    pub fn halves(self) -> Option<[Self; 2]> {
        let length = self.length.checked_add(1)?;
        let low = self.network().address;
        let place = u32::from(bits(low).checked_sub(length)?);
        let high = match low {
            IpAddr::V4(low) => IpAddr::V4(Ipv4Addr::from_bits(low.to_bits() | 1 << place)),
            IpAddr::V6(low) => IpAddr::V6(Ipv6Addr::from_bits(low.to_bits() | 1 << place)),
        };
        Some([low, high].map(|address| Self { address, length }))
    }

    /// The broadcast address of an IPv4 network that has one: RFC 3021 leaves a /31 without.
    #[must_use]
    pub fn broadcast(self) -> Option<Ipv4Addr> {
        match self.network().address {
            IpAddr::V4(network) if self.length < 31 => Some(Ipv4Addr::from_bits(
                network.to_bits() | (u32::MAX >> self.length),
            )),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }
}

/// The number of bits of an address.
fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Why a text is no [`Prefix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParsePrefixError {
    /// What stands before the slash, or the whole text, is no IP address.
    Address,
    /// An address, but no slash.
    NoLength,
    /// What stands behind the slash is no length of at most so many bits.
    Length(u8),
}

impl fmt::Display for ParsePrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => write!(f, "no valid IP address"),
            Self::NoLength => write!(f, "no prefix length"),
            Self::Length(max) => write!(f, "no prefix length from 0 to {max}"),
        }
    }
}

impl std::error::Error for ParsePrefixError {}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Self, ParsePrefixError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| ParsePrefixError::Address)?;
        let length = length.ok_or(ParsePrefixError::NoLength)?;
        let max = bits(address);
        // u8::from_str would take a plus sign.
        let length = Some(length)
            .filter(|length| length.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|length| length.parse().ok())
            .filter(|&length| length <= max)
            .ok_or(ParsePrefixError::Length(max))?;
        Ok(Self { address, length })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn parses() {
        let address = IpAddr::from([10, 67, 0, 1]);
        assert_eq!(
            prefix("10.67.0.1/24"),
            Prefix {
                address,
                length: 24
            }
        );

        use ParsePrefixError::{Address, Length, NoLength};
        for (text, error) in [
            ("", Address),
            ("/24", Address),
            ("10.67.0/24", Address),
            ("10.67.0.1", NoLength),
            ("10.67.0.1/", Length(32)),
            ("10.67.0.1/33", Length(32)),
            ("10.67.0.1/+24", Length(32)),
            ("10.67.0.1/24/24", Length(32)),
            ("fd67::1/129", Length(128)),
            ("fd67::1/256", Length(128)),
        ] {
            assert_eq!(text.parse::<Prefix>(), Err(error), "{text}");
        }
    }

    #[test]
    fn masks() {
        for (inside, network, broadcast) in [
            ("10.67.3.1/22", "10.67.0.0/22", Some([10, 67, 3, 255])),
            ("10.67.3.1/30", "10.67.3.0/30", Some([10, 67, 3, 3])),
            ("10.67.3.1/31", "10.67.3.0/31", None),
            ("10.67.3.1/32", "10.67.3.1/32", None),
            ("10.67.3.1/0", "0.0.0.0/0", Some([255; 4])),
            ("fd67::ffff:1/112", "fd67::ffff:0/112", None),
            ("fd67::1/128", "fd67::1/128", None),
            ("fd67::1/0", "::/0", None),
        ] {
            assert_eq!(prefix(inside).network(), prefix(network));
            assert_eq!(prefix(inside).broadcast(), broadcast.map(Ipv4Addr::from));
        }
    }

    #[test]
    fn holds_and_halves() {
        assert!(prefix("10.67.0.1/24").holds([10, 67, 0, 9].into()));
        assert!(!prefix("10.67.0.1/24").holds([10, 67, 1, 9].into()));
        assert!(!prefix("0.0.0.0/0").holds(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(
            prefix("10.67.0.1/24").halves(),
            Some(["10.67.0.0/25", "10.67.0.128/25"].map(prefix))
        );
        assert_eq!(prefix("fd67::1/128").halves(), None);
    }

    proptest! {
        #[test]
        fn text_round_trip(address: IpAddr, length in 0..=32_u8) {
            let prefix = Prefix { address, length };
            prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
        }

        /// The fields are public: nonsense in them must not panic.
        #[test]
        fn any_length(address: IpAddr, length: u8) {
            let prefix = Prefix { address, length };
            prop_assert_eq!(prefix.network().network(), prefix.network());
            let _ = prefix.broadcast();
            let _ = (prefix.halves(), prefix.holds(address));
        }
    }
}
