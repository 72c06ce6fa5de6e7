//! A packet comes in on a device of a LAN, in its driver: if it is routed into a bond and there is nothing about
//! it that takes the kernel, encapsulate it and have the driver of a path's device send it.
//!
//! As with what is received, all else is left untouched and uncounted, and goes by the kernel and the program at
//! the bond device's egress.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_REDIRECT},
    programs::XdpContext,
};
use netbond_common::{
    abi::{BOND_XDP_SEND, Bond},
    fate::Fate,
    gre, ipv4, ipv6,
    notes::Notes,
    onward::Onward,
    sequence::Stamp,
};
use network_types::eth::EthHdr;

use super::{Left, onward};
use crate::{
    egress::{Way, flow, gre_header, outward, outward_v6, way},
    features::{Modes, Plain, is_over_ipv6},
    maps,
    packet::{Packet, Refused, random},
};

/// Sends a packet that is routed into a bond, in a frame of `len` bytes; returns the kernel's action.
#[inline(always)]
pub(super) fn send(packet: &Packet<XdpContext>, len: u32) -> Result<u32, Left> {
    let room = len - EthHdr::LEN as u32;
    let (protocol, device) = (packet.protocol(), packet.ifindex());
    let notes = maps::notes().ok_or(Left)?;
    onward::read(packet, EthHdr::LEN, protocol, room, device, notes)?;
    let device = onward::find_device(packet, &mut notes.route)?;
    let id = maps::bond_id(device).ok_or(Left)?;
    let bond = maps::bond(id).ok_or(Left)?;
    if bond.xdp & BOND_XDP_SEND == 0 {
        return Err(Left);
    }
    let before = *maps::ticket(id).ok_or(Left)?;
    let sent = encapsulate(packet, room, id, bond, notes);
    if sent.is_err()
        && let Some(ticket) = maps::ticket(id)
    {
        // The kernel's program takes this turn.
        *ticket = before;
    }
    sent
}

/// Sends a packet, which has so many bytes of room in its frame, down a path of the bond, the wheel's next.
#[inline(always)]
fn encapsulate(
    packet: &Packet<XdpContext>,
    room: u32,
    id: u32,
    bond: &Bond,
    notes: &mut Notes,
) -> Result<u32, Left> {
    let mut way = way::<Plain>(id, bond, 0)?;
    let Onward { inner, len, .. } = notes.onward;
    let gre = gre_header(way.path, inner, false, Stamp::NONE);
    let over_ipv6 = is_over_ipv6::<Modes>(way.path);
    let outer_len = gre.len()
        + if over_ipv6 {
            ipv6::HEADER_LEN
        } else {
            ipv4::HEADER_LEN
        };
    let whole = len + outer_len as u32;
    let route = &mut notes.route;
    let hop = onward::next_hop(packet, way.path_id, way.path, over_ipv6, whole, route)?;
    if over_ipv6 {
        (notes.subject.flow, _) = flow(packet, EthHdr::LEN, inner.protocol);
        compiler_fence(Ordering::SeqCst);
        way.flow = notes.subject.flow.hash();
    }
    packet.make_room(outer_len)?;
    // It is not what came any more: what is not done ends here.
    let protocol = if over_ipv6 { gre::IPV6 } else { gre::IPV4 };
    let done = packet
        .trim(room - len)
        .and_then(|()| packet.write(0, &hop.header(protocol)))
        .and_then(|()| put_outer(packet, bond, &way, notes.onward, over_ipv6, gre))
        .and_then(|()| onward::hop(packet, EthHdr::LEN + outer_len, inner.protocol));
    if done.is_err() || maps::redirect_to_port(hop.ifindex) != XDP_REDIRECT {
        maps::count_fate(id, Fate::TxNoRoom, 1);
        return Ok(XDP_DROP);
    }
    way.stats.tx_onward += 1;
    way.count(1, len);
    Ok(XDP_REDIRECT)
}

/// Writes the outer headers.
#[inline(always)]
fn put_outer(
    packet: &Packet<XdpContext>,
    bond: &Bond,
    way: &Way,
    Onward { inner, len, .. }: Onward,
    over_ipv6: bool,
    gre: gre::Header,
) -> Result<(), Refused> {
    if over_ipv6 {
        let outward = outward_v6(way, bond, inner, len, false, Stamp::NONE);
        return packet.write_v6(&outward, way.path, gre);
    }
    let identification = if inner.dont_fragment {
        0
    } else {
        random() as u16
    };
    let outward = outward(way.path, bond, inner, len, identification);
    packet.overwrite(EthHdr::LEN, &outward, gre)
}
