//! BFD control packets (RFC 5880, 4.1) and the checks on reception (6.8.6).
//!
//! Integers are in network byte order, intervals in microseconds.

use std::fmt;

/// Bytes of a packet without authentication: all that is ever sent.
pub const LENGTH: usize = 24;

/// Bytes at least of a packet with an authentication section.
const LENGTH_AUTHENTICATED: usize = 26;

const VERSION: u8 = 1;

/// The flags, in the second byte below the state.
const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
const AUTHENTICATION_PRESENT: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

/// A session's state (RFC 5880, 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    AdminDown,
    Down,
    Init,
    Up,
}

impl State {
    fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::AdminDown => 0,
            Self::Down => 1,
            Self::Init => 2,
            Self::Up => 3,
        }
    }
}

/// Why a session left the state Up (RFC 5880, 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diagnostic {
    None,
    DetectionTimeExpired,
    EchoFailed,
    NeighborSignaledDown,
    ForwardingPlaneReset,
    PathDown,
    ConcatenatedPathDown,
    AdministrativelyDown,
    ReverseConcatenatedPathDown,
    /// A reserved value, 9 to 31.
    Reserved(u8),
}

impl Diagnostic {
    fn from_bits(bits: u8) -> Self {
        match bits & 0x1f {
            0 => Self::None,
            1 => Self::DetectionTimeExpired,
            2 => Self::EchoFailed,
            3 => Self::NeighborSignaledDown,
            4 => Self::ForwardingPlaneReset,
            5 => Self::PathDown,
            6 => Self::ConcatenatedPathDown,
            7 => Self::AdministrativelyDown,
            8 => Self::ReverseConcatenatedPathDown,
            reserved => Self::Reserved(reserved),
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::None => 0,
            Self::DetectionTimeExpired => 1,
            Self::EchoFailed => 2,
            Self::NeighborSignaledDown => 3,
            Self::ForwardingPlaneReset => 4,
            Self::PathDown => 5,
            Self::ConcatenatedPathDown => 6,
            Self::AdministrativelyDown => 7,
            Self::ReverseConcatenatedPathDown => 8,
            Self::Reserved(value) => value & 0x1f,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no diagnostic",
            Self::DetectionTimeExpired => "detection time expired",
            Self::EchoFailed => "echo function failed",
            Self::NeighborSignaledDown => "neighbor signaled session down",
            Self::ForwardingPlaneReset => "forwarding plane reset",
            Self::PathDown => "path down",
            Self::ConcatenatedPathDown => "concatenated path down",
            Self::AdministrativelyDown => "administratively down",
            Self::ReverseConcatenatedPathDown => "reverse concatenated path down",
            Self::Reserved(value) => return write!(f, "reserved diagnostic {value}"),
        })
    }
}

/// A control packet without authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub diagnostic: Diagnostic,
    pub state: State,
    /// Asks for a packet with `finish` at once.
    pub poll: bool,
    /// Answers a poll (the F bit).
    pub finish: bool,
    /// The sender's BFD outlives its control plane.
    pub control_plane_independent: bool,
    /// The sender wants no periodic packets while both ends are up (6.6).
    pub demand: bool,
    /// How many of the sender's packets may be missed.
    pub multiplier: u8,
    /// Names the session at the sender; never 0.
    pub my_discriminator: u32,
    /// Names the session at the receiver; 0 while unknown.
    pub your_discriminator: u32,
    /// Microseconds between packets that the sender wants to send, at least.
    pub desired_min_tx: u32,
    /// Microseconds between packets that the sender can take; 0: it wants none.
    pub required_min_rx: u32,
    /// Microseconds between echo packets that the sender can take; 0: it takes none.
    pub required_min_echo_rx: u32,
}

impl Packet {
    /// What goes over the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; LENGTH] {
        let flags = [
            (self.poll, POLL),
            (self.finish, FINAL),
            (self.control_plane_independent, CONTROL_PLANE_INDEPENDENT),
            (self.demand, DEMAND),
        ];
        let mut bytes = [0; LENGTH];
        bytes[0] = VERSION << 5 | self.diagnostic.bits();
        bytes[1] = self.state.bits() << 6;
        for (set, bit) in flags {
            if set {
                bytes[1] |= bit;
            }
        }
        bytes[2] = self.multiplier;
        bytes[3] = LENGTH as u8;
        let words = [
            self.my_discriminator,
            self.your_discriminator,
            self.desired_min_tx,
            self.required_min_rx,
            self.required_min_echo_rx,
        ];
        for (place, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// Reads a UDP payload and makes those checks of 6.8.6 that need no session.
    ///
    /// # Errors
    /// The check that failed.
    pub fn decode(payload: &[u8]) -> Result<Self, Reject> {
        let Some(bytes) = payload.first_chunk::<LENGTH>() else {
            return Err(Reject::Truncated);
        };
        let word = |offset: usize| {
            u32::from_be_bytes([
                bytes[offset],
                bytes[offset + 1],
                bytes[offset + 2],
                bytes[offset + 3],
            ])
        };
        let (flags, length) = (bytes[1], usize::from(bytes[3]));
        let authenticated = flags & AUTHENTICATION_PRESENT != 0;
        let packet = Self {
            diagnostic: Diagnostic::from_bits(bytes[0]),
            state: State::from_bits(flags >> 6),
            poll: flags & POLL != 0,
            finish: flags & FINAL != 0,
            control_plane_independent: flags & CONTROL_PLANE_INDEPENDENT != 0,
            demand: flags & DEMAND != 0,
            multiplier: bytes[2],
            my_discriminator: word(4),
            your_discriminator: word(8),
            desired_min_tx: word(12),
            required_min_rx: word(16),
            required_min_echo_rx: word(20),
        };
        let shortest = if authenticated {
            LENGTH_AUTHENTICATED
        } else {
            LENGTH
        };
        // The order of 6.8.6.
        if bytes[0] >> 5 != VERSION {
            Err(Reject::Version)
        } else if length < shortest {
            Err(Reject::LengthTooShort)
        } else if length > payload.len() {
            Err(Reject::LengthBeyondPayload)
        } else if packet.multiplier == 0 {
            Err(Reject::MultiplierZero)
        } else if flags & MULTIPOINT != 0 {
            Err(Reject::Multipoint)
        } else if packet.my_discriminator == 0 {
            Err(Reject::MyDiscriminatorZero)
        } else if packet.your_discriminator == 0 && matches!(packet.state, State::Init | State::Up)
        {
            Err(Reject::YourDiscriminatorZero)
        } else if authenticated {
            Err(Reject::Authenticated)
        } else {
            Ok(packet)
        }
    }
}

/// Why a received packet is discarded: the checks of RFC 5880, 6.8.6 and RFC 5881, 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reject {
    /// The TTL or hop limit is not 255: it comes from more than the single hop away (RFC 5881, 5).
    Ttl,
    /// The UDP payload is shorter than the mandatory section.
    Truncated,
    /// Not version 1.
    Version,
    /// The Length field is shorter than the mandatory sections.
    LengthTooShort,
    /// The Length field is longer than the UDP payload.
    LengthBeyondPayload,
    /// Detect Mult is 0.
    MultiplierZero,
    /// The M bit is set.
    Multipoint,
    /// My Discriminator is 0.
    MyDiscriminatorZero,
    /// Your Discriminator is 0 in a state that needs one.
    YourDiscriminatorZero,
    /// Your Discriminator names no session of this socket.
    UnknownDiscriminator,
    /// Your Discriminator is 0 and there is no session with this source.
    UnknownSource,
    /// The A bit is set, and no authentication is in use.
    Authenticated,
    /// The session is administratively down.
    AdminDown,
}

impl Reject {
    /// All of them; each at the index that is its value.
    pub const ALL: [Self; 13] = [
        Self::Ttl,
        Self::Truncated,
        Self::Version,
        Self::LengthTooShort,
        Self::LengthBeyondPayload,
        Self::MultiplierZero,
        Self::Multipoint,
        Self::MyDiscriminatorZero,
        Self::YourDiscriminatorZero,
        Self::UnknownDiscriminator,
        Self::UnknownSource,
        Self::Authenticated,
        Self::AdminDown,
    ];

    /// The counter's name.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ttl => "ttl",
            Self::Truncated => "truncated",
            Self::Version => "version",
            Self::LengthTooShort => "length_too_short",
            Self::LengthBeyondPayload => "length_beyond_payload",
            Self::MultiplierZero => "multiplier_zero",
            Self::Multipoint => "multipoint",
            Self::MyDiscriminatorZero => "my_discriminator_zero",
            Self::YourDiscriminatorZero => "your_discriminator_zero",
            Self::UnknownDiscriminator => "unknown_discriminator",
            Self::UnknownSource => "unknown_source",
            Self::Authenticated => "authenticated",
            Self::AdminDown => "admin_down",
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl std::error::Error for Reject {}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet that passes every check.
    pub(crate) fn packet(state: State) -> Packet {
        Packet {
            diagnostic: Diagnostic::None,
            state,
            poll: false,
            finish: false,
            control_plane_independent: false,
            demand: false,
            multiplier: 3,
            my_discriminator: 0x0102_0304,
            your_discriminator: 0x0a0b_0c0d,
            desired_min_tx: 50_000,
            required_min_rx: 60_000,
            required_min_echo_rx: 0,
        }
    }

    #[test]
    fn the_layout_is_that_of_the_rfc() {
        let sent = Packet {
            diagnostic: Diagnostic::NeighborSignaledDown,
            poll: true,
            ..packet(State::Init)
        };
        let bytes = [
            0x23, 0xa0, 3, 24, 1, 2, 3, 4, 0xa, 0xb, 0xc, 0xd, 0, 0, 0xc3, 0x50, 0, 0, 0xea, 0x60,
            0, 0, 0, 0,
        ];
        assert_eq!(sent.encode(), bytes);
        assert_eq!(Packet::decode(&bytes), Ok(sent));
        // RFC 5880, 4.1: the bits after the state are P, F, C, A, D, M.
        let of = |change: fn(&mut Packet)| {
            let mut packet = packet(State::Up);
            change(&mut packet);
            packet.encode()[1]
        };
        assert_eq!(of(|_| {}), 0xc0);
        assert_eq!(of(|packet| packet.finish = true), 0xd0);
        assert_eq!(of(|packet| packet.control_plane_independent = true), 0xc8);
        assert_eq!(of(|packet| packet.demand = true), 0xc2);
    }

    #[test]
    fn every_check_names_itself() {
        let good = packet(State::Up).encode();
        let with = |changes: &[(usize, u8)]| {
            let mut bytes = good.to_vec();
            for &(at, value) in changes {
                bytes[at] = value;
            }
            Packet::decode(&bytes)
        };
        assert!(with(&[]).is_ok());
        for length in 0..LENGTH {
            assert_eq!(Packet::decode(&good[..length]), Err(Reject::Truncated));
        }
        for version in [0, 2, 7] {
            assert_eq!(with(&[(0, version << 5)]), Err(Reject::Version));
        }
        assert_eq!(with(&[(3, 23)]), Err(Reject::LengthTooShort));
        assert_eq!(with(&[(1, 0xc4), (3, 25)]), Err(Reject::LengthTooShort));
        assert_eq!(with(&[(3, 25)]), Err(Reject::LengthBeyondPayload));
        assert_eq!(with(&[(2, 0)]), Err(Reject::MultiplierZero));
        assert_eq!(with(&[(1, 0xc1)]), Err(Reject::Multipoint));
        let zero = |at: usize| [(at, 0), (at + 1, 0), (at + 2, 0), (at + 3, 0)];
        assert_eq!(with(&zero(4)), Err(Reject::MyDiscriminatorZero));
        assert_eq!(with(&zero(8)), Err(Reject::YourDiscriminatorZero));
        let mut authenticated = [good.to_vec(), vec![1, 4, 1, b'x']].concat();
        // Padding behind the packet is no part of it.
        assert!(Packet::decode(&authenticated).is_ok());
        (authenticated[1], authenticated[3]) = (0xc4, 28);
        assert_eq!(Packet::decode(&authenticated), Err(Reject::Authenticated));
    }

    #[test]
    fn only_a_session_that_is_not_up_may_lack_your_discriminator() {
        for (state, accepted) in [
            (State::AdminDown, true),
            (State::Down, true),
            (State::Init, false),
            (State::Up, false),
        ] {
            let packet = Packet {
                your_discriminator: 0,
                ..packet(state)
            };
            assert_eq!(
                Packet::decode(&packet.encode()).is_ok(),
                accepted,
                "{state:?}"
            );
        }
    }

    #[test]
    fn each_reject_has_its_counter() {
        for (index, reject) in Reject::ALL.into_iter().enumerate() {
            assert_eq!(reject as usize, index);
            let same = Reject::ALL
                .iter()
                .filter(|other| other.label() == reject.label());
            assert_eq!(same.count(), 1);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Packet::decode(&bytes);
        }

        #[test]
        fn what_is_accepted_is_encoded_alike(
            mut bytes in any::<[u8; LENGTH]>(),
            hostile in any::<bool>(),
        ) {
            if !hostile {
                bytes[0] = VERSION << 5 | bytes[0] & 0x1f;
                bytes[1] &= !(AUTHENTICATION_PRESENT | MULTIPOINT);
                bytes[3] = LENGTH as u8;
            }
            if let Ok(packet) = Packet::decode(&bytes) {
                prop_assert_eq!(packet.encode(), bytes);
            } else if !hostile {
                let zero = |at: usize| bytes[at..at + 4] == [0; 4];
                prop_assert!(bytes[2] == 0 || zero(4) || zero(8));
            }
        }
    }
}
