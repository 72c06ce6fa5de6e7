//! TCP through a bond: what its SYNs announce as the maximum segment size is clamped to the bond's MTU.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use netbond_common::{
    abi::Bond,
    gre, inner, ipv4,
    mss::{self, CHECK_AT, LENGTH_AT, MAX_OPTIONS, OPTION_LEN, TCP_LEN},
    names::feature,
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    features::{Features as _, Modes},
    packet::{Context, Packet},
};

/// Clamps what the packet of this EtherType behind its frame's header announces, where the bond asks for it.
/// What cannot be read or written passes as it is.
#[inline(always)]
pub(crate) fn clamp(packet: &Packet, bond: &Bond, protocol: [u8; 2]) {
    if Modes::has(feature::MSS_CLAMP) && bond.clamp_mtu != 0 {
        let protocol = u32::from(u16::from_be_bytes(protocol));
        netbond_clamp(packet.raw(), bond.clamp_mtu, protocol);
    }
}

/// A function of its own and with a symbol: the verifier walks through the options once, for whoever calls.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_clamp(context: *mut __sk_buff, mtu: u32, protocol: u32) -> u32 {
    let packet = Packet::new(TcContext::new(context));
    let protocol = (protocol as u16).to_be_bytes();
    u32::from(clamp_to(&packet, mtu, protocol).is_some())
}

/// Whether [`clamp`] would look at what the packet of this EtherType at `start` announces.
#[inline(always)]
pub(crate) fn is_clamped<C: Context>(
    packet: &Packet<C>,
    start: usize,
    bond: &Bond,
    protocol: [u8; 2],
) -> bool {
    Modes::has(feature::MSS_CLAMP)
        && bond.clamp_mtu != 0
        && find_syn(packet, start, protocol).is_some()
}

/// Where TCP's header is and how long, if the packet of this EtherType at `start` begins a connection.
#[inline(always)]
fn find_syn<C: Context>(
    packet: &Packet<C>,
    start: usize,
    protocol: [u8; 2],
) -> Option<(usize, usize)> {
    let ip_len = match protocol {
        gre::IPV4 => {
            let (true, ip): (_, Ipv4Hdr) = packet.load(start) else {
                return None;
            };
            if ip.proto != inner::TCP || ipv4::is_fragment(ip.frags) {
                return None;
            }
            usize::from(ip.ihl())
        }
        // Behind extension headers nothing is looked for.
        gre::IPV6 => {
            let (true, inner::TCP) = packet.load(start + 6) else {
                return None;
            };
            Ipv6Hdr::LEN
        }
        _ => return None,
    };
    let tcp = start + ip_len;
    let (true, length) = packet.load(tcp + LENGTH_AT) else {
        return None;
    };
    Some((tcp, mss::of_syn(length)?))
}

#[inline(always)]
fn clamp_to(packet: &Packet, mtu: u32, protocol: [u8; 2]) -> Option<()> {
    let (tcp, header_len) = find_syn(packet, EthHdr::LEN, protocol)?;
    let wanted = mss::of_mtu(mtu, protocol == gre::IPV6);
    let mut at = TCP_LEN;
    for _ in 0..MAX_OPTIONS {
        if at + OPTION_LEN > header_len {
            return None;
        }
        let (true, option) = packet.load(tcp + at) else {
            return None;
        };
        let announced = mss::announced(option);
        if announced != 0 {
            if announced <= wanted {
                return None;
            }
            let (old, new) = (announced.to_be_bytes(), wanted.to_be_bytes());
            // Two words of the checksum have a byte of it each where it begins in the middle of one.
            let odd = !at.is_multiple_of(2);
            return packet
                .replace(tcp + at + 2, old, new, tcp + CHECK_AT, odd)
                .ok();
        }
        let len = mss::len(option);
        if len == 0 || at + len > header_len {
            return None;
        }
        // Nothing is cut off. But all ways that lead here are alike to the verifier so, and it goes on with one.
        at = (at + len) & LONGEST_HEADER;
    }
    None
}

/// At least the length of the longest TCP header; a mask.
const LONGEST_HEADER: usize = 63;
