//! A packet comes in on an Ethernet device of a path, in its driver: if it is the bond's and there is
//! nothing about it that takes the kernel, decapsulate it and hand it to the bond device.
//!
//! This is a fast way before the program at the device's tc ingress, which does all of it: whatever is left
//! here is untouched and uncounted, and goes there.

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_REDIRECT},
    programs::XdpContext,
};
use netbond_common::{
    abi::{BOND_ETHERNET, Bond, PathStats},
    fate::Fate,
    frame, gre, ipv4,
    names::feature,
};
use network_types::eth::EthHdr;

use crate::{
    features::{Features as _, Modes},
    ingress::{Mark, Outer, congestion, frame_header, in_frame, outer_v4, outer_v6},
    maps,
    packet::{Packet, Refused},
};

/// The packet is left to the kernel, as it is.
pub(crate) struct Left;

impl From<Fate> for Left {
    #[inline(always)]
    fn from(_: Fate) -> Self {
        Self
    }
}

impl From<Refused> for Left {
    #[inline(always)]
    fn from(_: Refused) -> Self {
        Self
    }
}

/// Receives a packet; returns the kernel's action.
#[inline(always)]
pub(crate) fn receive(packet: &Packet<XdpContext>) -> Result<u32, Left> {
    let outer = outer(packet)?;
    let path_id = maps::path_id(&outer.key).ok_or(Left)?;
    let id = maps::bond_of(path_id);
    let bond = maps::bond(id).ok_or(Left)?;
    let len = packet.len();
    if bond.xdp_mtu == 0 || !is_ours(packet) || !packet.is_linear(len) {
        return Err(Left);
    }
    let stats = maps::path_stats(path_id).ok_or(Left)?;
    if bond.flags & BOND_ETHERNET != 0 {
        take_frame(packet, len, id, &outer, bond, stats)
    } else {
        take(packet, len, id, &outer, bond, stats)
    }
}

/// Takes an IP packet out of its outer headers, in a frame of `len` bytes.
#[inline(always)]
fn take(
    packet: &Packet<XdpContext>,
    len: u32,
    id: u32,
    outer: &Outer,
    bond: &Bond,
    stats: &mut PathStats,
) -> Result<u32, Left> {
    let start = EthHdr::LEN + outer.len;
    let mark = congestion(packet, start, outer.protocol, outer.tos)?;
    let len = len - start as u32;
    if len > bond.xdp_mtu {
        return Err(Left);
    }
    packet.cut(outer.len)?;
    let header = frame_header(bond.mac, outer.protocol);
    let done = packet.write(0, &header).and_then(|()| mark.apply(packet));
    Ok(deliver(done, id, len, stats))
}

/// Takes out a whole frame.
#[inline(always)]
fn take_frame(
    packet: &Packet<XdpContext>,
    len: u32,
    id: u32,
    outer: &Outer,
    bond: &Bond,
    stats: &mut PathStats,
) -> Result<u32, Left> {
    const HEADER: u32 = frame::HEADER_LEN as u32;
    // One that is too short for an IPv4 header has to be filled up.
    const LEAST: u32 = HEADER + ipv4::HEADER_LEN as u32;
    let start = EthHdr::LEN + outer.len;
    let len = len - start as u32;
    if outer.protocol != gre::ETHERNET || len < LEAST || len > bond.xdp_mtu + HEADER {
        return Err(Left);
    }
    let (_, mark): (_, Mark) = in_frame(packet, start, outer.tos)?;
    packet.cut(start)?;
    Ok(deliver(mark.apply(packet), id, len, stats))
}

/// Counts a packet of `len` bytes and hands it to its bond's device. It is not what came any more: what
/// was not `done` ends here.
#[inline(always)]
fn deliver(done: Result<(), Refused>, id: u32, len: u32, stats: &mut PathStats) -> u32 {
    if done.is_err() || maps::redirect_to_bond(id) != XDP_REDIRECT {
        maps::count_fate(id, Fate::RxNoDecap, 1);
        return XDP_DROP;
    }
    stats.rx_packets += 1;
    stats.rx_bytes += u64::from(len);
    XDP_REDIRECT
}

/// Whether the frame is addressed to the device that it came in on.
#[inline(always)]
fn is_ours(packet: &Packet<XdpContext>) -> bool {
    match (maps::address_of(packet.ifindex()), packet.read(0)) {
        (Some(address), Some(destination)) => {
            let destination: [u8; 6] = destination;
            *address == destination
        }
        _ => false,
    }
}

#[inline(always)]
fn outer(packet: &Packet<XdpContext>) -> Result<Outer, Fate> {
    match packet.protocol() {
        gre::IPV4 => outer_v4::<{ EthHdr::LEN }, _>(packet),
        gre::IPV6 if Modes::has(feature::IPV6) => outer_v6::<{ EthHdr::LEN }, _>(packet),
        _ => Err(Fate::RxForeign),
    }
}
