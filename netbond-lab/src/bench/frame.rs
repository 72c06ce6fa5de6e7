//! What a packet weighs on the wire, and what of a link's rate can be payload.
//!
//! netem counts Ethernet frames as they leave the middle router:
//! 14 (Ethernet) + 20 (IPv4) + 8 (UDP) + 32 (WireGuard: header 16, tag 16) + the packet inside,
//! padded to 16 bytes.

/// MTU of the WireGuard devices, in bytes: what fits an underlay of 1500 in one frame, and a multiple
/// of 16.
pub(super) const MTU: u16 = 1440;

const ETHERNET: u32 = 14;
const IPV4: u32 = 20;
const UDP: u32 = 8;
const WIREGUARD: u32 = 32;
const GRE: u32 = 4;
/// GRE's sequence number.
const SEQUENCE: u32 = 4;

/// TCP's header with the timestamps that every segment of Linux carries.
const TCP: u32 = 20 + 12;

/// The data sequence signal of MPTCP as Linux puts it into each segment: kind, length and flags 4,
/// acknowledgement 4, mapping without checksum 14, and padding to words (RFC 8684, 3.3).
const MPTCP: u32 = 24;

/// Payload of the longest TCP segment that every encapsulation leaves room for, in bytes.
pub(super) const SEGMENT: u32 = MTU as u32 - (IPV4 + GRE + ETHERNET) - IPV4 - TCP;

/// How a packet is put onto a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encap {
    /// As it is.
    None,
    /// In GRE: outer IPv4, GRE.
    Gre,
    /// In GRE with a sequence number.
    GreInOrder,
    /// With its Ethernet header in GRE.
    Gretap,
}

impl Encap {
    /// As netbond's configuration calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gre | Self::GreInOrder => "gre",
            Self::Gretap => "gretap",
        }
    }

    /// Bytes around the inner IP packet.
    pub(super) fn bytes(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Gre => IPV4 + GRE,
            Self::GreInOrder => IPV4 + GRE + SEQUENCE,
            Self::Gretap => IPV4 + GRE + ETHERNET,
        }
    }

    /// The longest inner IP packet.
    pub(super) fn mtu(self) -> u32 {
        u32::from(MTU) - self.bytes()
    }

    /// The longest UDP payload in one packet.
    pub(super) fn datagram(self) -> u32 {
        self.mtu() - IPV4 - UDP
    }

    /// Share of a rate that full UDP datagrams can have as payload.
    pub(super) fn udp_share(self) -> f64 {
        f64::from(self.datagram()) / f64::from(frame(u32::from(MTU)))
    }

    /// Share of a rate that full TCP segments can have as payload.
    pub(super) fn tcp_share(self) -> f64 {
        f64::from(self.mtu() - IPV4 - TCP) / f64::from(frame(u32::from(MTU)))
    }
}

/// Share of a rate that full segments of MPTCP can have as payload, on paths without encapsulation.
pub(super) fn mptcp_share() -> f64 {
    f64::from(u32::from(MTU) - IPV4 - TCP - MPTCP) / f64::from(frame(u32::from(MTU)))
}

/// Length of the frame around an IP packet of so many bytes that WireGuard encrypts.
fn frame(packet: u32) -> u32 {
    ETHERNET + IPV4 + UDP + WIREGUARD + packet.next_multiple_of(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_packet_fills_the_underlay() {
        assert_eq!(frame(u32::from(MTU)), ETHERNET + 1500);
        assert_eq!(frame(84), 14 + 20 + 8 + 32 + 96);
    }

    #[test]
    fn encapsulations_leave_what_is_known_of_them() {
        assert_eq!(Encap::None.mtu(), 1440);
        assert_eq!(Encap::Gre.mtu(), 1416);
        assert_eq!(Encap::GreInOrder.mtu(), 1412);
        assert_eq!(Encap::Gretap.mtu(), 1402);
        assert_eq!(SEGMENT, 1350);
    }

    #[test]
    fn shares_are_payload_by_frame() {
        assert!((Encap::None.tcp_share() - 1388.0 / 1514.0).abs() < 1e-9);
        assert!((Encap::Gre.tcp_share() - 1364.0 / 1514.0).abs() < 1e-9);
        assert!((Encap::Gretap.tcp_share() - 1350.0 / 1514.0).abs() < 1e-9);
        assert!((Encap::Gre.udp_share() - 1388.0 / 1514.0).abs() < 1e-9);
        assert!((mptcp_share() - 1364.0 / 1514.0).abs() < 1e-9);
    }
}
