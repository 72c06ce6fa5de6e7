//! A packet comes in on a device of a LAN, in its driver: if it is routed into a bond and there is nothing about
//! it that takes the kernel, encapsulate it and have the driver of a path's device send it.
//!
//! As with what is received, all else is left untouched and uncounted, and goes by the kernel and the program at
//! the bond device's egress.

use aya_ebpf::{
    bindings::{
        xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT},
        xdp_md,
    },
    programs::XdpContext,
};
use netbond_common::{
    abi::{BOND_ETHERNET, BOND_XDP_SEND, Bond},
    fate::Fate,
    frame,
    gre::{self, Layout},
    inner::Inner,
    ipv4, ipv6,
    names::{Mode, feature},
    onward::Onward,
    select::{Choice, select},
    sequence::Stamp,
};
use network_types::eth::EthHdr;

use super::{Left, onward};
use crate::{
    clamp::is_clamped,
    egress::{
        Way, chosen, find_lane, gre_header, gre_layout, in_lane, is_numbered, number, outward,
        outward_v6,
    },
    features::{Features as _, Modes, is_over_ipv6},
    maps,
    packet::{Packet, Refused, wire_len},
};

/// Sends a packet that is routed into a bond, in a frame of `len` bytes; returns the kernel's action.
///
/// Functions with symbols of their own, as the verifier walks through each once; and each has the stack almost to itself.
#[inline(always)]
pub(super) fn send(packet: &Packet<XdpContext>, len: u32) -> Result<u32, Left> {
    let id = netbond_xdp_bond(packet.raw(), len);
    let before = *maps::ticket(id).ok_or(Left)?;
    let chosen = netbond_xdp_choose(packet.raw(), id);
    let action = netbond_xdp_send(packet.raw(), len, id, chosen);
    if action == XDP_PASS {
        // The kernel's program takes this turn.
        if Modes::has(feature::ALL) {
            netbond_xdp_give_back(id);
        } else if let Some(ticket) = maps::ticket(id) {
            *ticket = before;
        }
    }
    Ok(action)
}

/// The bond that the packet in `context` is routed into, in a frame of `len` bytes; [`NO_BOND`] where it is to be left
/// to the kernel. What it is, and its way, is in this CPU's notes.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_xdp_bond(context: *mut xdp_md, len: u32) -> u32 {
    find_bond(&Packet::new(XdpContext::new(context)), len).unwrap_or(NO_BOND)
}

/// More than any bond's id.
const NO_BOND: u32 = u32::MAX;

#[inline(always)]
fn find_bond(packet: &Packet<XdpContext>, len: u32) -> Result<u32, Left> {
    let room = len - EthHdr::LEN as u32;
    let (protocol, device) = (packet.protocol(), packet.ifindex());
    let notes = maps::notes().ok_or(Left)?;
    onward::read(packet, EthHdr::LEN, protocol, room, device, notes)?;
    let answer = onward::find_device(packet, &mut notes.route)?;
    let id = maps::bond_id(answer.way.ifindex).ok_or(Left)?;
    let bond = maps::bond(id).ok_or(Left)?;
    if bond.xdp & BOND_XDP_SEND == 0 || is_clamped(packet, EthHdr::LEN, bond, protocol) {
        return Err(Left);
    }
    notes.framed = 0;
    // IP packets need no neighbour.
    if bond.flags & BOND_ETHERNET != 0 {
        if !answer.is_known() || maps::is_kernels_turn(answer.way.neighbour()) {
            return Err(Left);
        }
        notes.frame = answer.way.header(protocol);
        notes.framed = 1;
    }
    Ok(id)
}

/// Chooses the path of the packet in `context`, as the kernel's program would: for [`Way::chosen`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_xdp_choose(context: *mut xdp_md, id: u32) -> u32 {
    let packet = Packet::new(XdpContext::new(context));
    chosen(choose(&packet, id).flatten())
}

#[inline(always)]
fn choose(packet: &Packet<XdpContext>, id: u32) -> Option<Option<(u32, Choice)>> {
    let bond = maps::bond(id)?;
    if !Modes::has(feature::ALL) {
        let flags = |path| maps::path_flags(maps::path_of(id, path));
        return Some(select(bond, maps::ticket(id)?, flags));
    }
    let notes = maps::notes()?;
    // A frame in a driver has no mark.
    let lane = find_lane::<Modes, _>(packet, id, bond, 0, notes)?;
    let (_, turns) = maps::turns(id, lane.shares)?;
    notes.turns = *turns;
    if Modes::has(feature::FLOWLET) {
        notes.flowlet = *maps::flowlet(id, notes.flow)?;
    }
    // Copies are made by tc.
    if Modes::has(feature::DUPLICATE) && lane.mode == Mode::Duplicate as u32 {
        return None;
    }
    let len = wire_len(EthHdr::LEN as u32 + notes.onward.len, 1);
    in_lane::<Modes>(id, bond, lane, len, notes)
}

/// Has the turns of a bond's lane, and where the flow went last, be as they were before this CPU's packet.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_xdp_give_back(id: u32) -> u32 {
    if let Some(notes) = maps::notes()
        && let Some(lane) = maps::lane(notes.lane)
        && let Some((_, turns)) = maps::turns(id, lane.shares)
    {
        *turns = notes.turns;
        if Modes::has(feature::FLOWLET)
            && let Some(flowlet) = maps::flowlet(id, notes.flow)
        {
            *flowlet = notes.flowlet;
        }
    }
    0
}

/// Sends the packet in `context` down the path that was chosen.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_xdp_send(context: *mut xdp_md, len: u32, id: u32, chosen: u32) -> u32 {
    let packet = Packet::new(XdpContext::new(context));
    encapsulate(&packet, len - EthHdr::LEN as u32, id, chosen).unwrap_or(XDP_PASS)
}

/// Sends a packet, which has so many bytes of room in its frame, down a path of the bond.
#[inline(always)]
fn encapsulate(packet: &Packet<XdpContext>, room: u32, id: u32, chosen: u32) -> Result<u32, Left> {
    let notes = maps::notes().ok_or(Left)?;
    let bond = maps::bond(id).ok_or(Left)?;
    let way = Way::chosen(id, chosen)?;
    let way = if Modes::has(feature::ALL) {
        way.noted::<Modes>(notes)
    } else {
        way
    };
    let Onward { inner, len, .. } = notes.onward;
    let framed = notes.framed != 0;
    // Of the packet's own frame.
    let header_len = if framed { frame::HEADER_LEN } else { 0 };
    // Read once: the controller may change what the records say.
    let load = Load {
        inner: if framed { inner.in_frame(0) } else { inner },
        len: len + header_len as u32,
        over_ipv6: is_over_ipv6::<Modes>(way.path),
        layout: gre_layout(way.path, is_numbered::<Modes>(&way, bond)),
    };
    let outer_len = load.outer_len();
    let whole = load.len + outer_len as u32;
    let route = &mut notes.route;
    let hop = onward::next_hop(packet, way.path_id, way.path, load.over_ipv6, whole, route)?;
    packet.make_room(outer_len + header_len)?;
    // It is not what came any more: what is not done ends here. Nor is there a way back for its number.
    let at = EthHdr::LEN + outer_len;
    let done = packet
        .trim(room - len)
        .and_then(|()| packet.write(0, &hop.header(load.outer_protocol())))
        .and_then(|()| load.put_outer(packet, id, bond, &way))
        .and_then(|()| match framed {
            true => packet.write(at, &notes.frame),
            false => Ok(()),
        })
        .and_then(|()| onward::hop(packet, at + header_len, inner.protocol));
    if done.is_err() || maps::redirect_to_port(hop.ifindex) != XDP_REDIRECT {
        maps::count_fate(id, Fate::TxNoRoom, 1);
        return Ok(XDP_DROP);
    }
    way.stats.tx_onward += 1;
    way.count_class(1, load.len);
    way.count(1, load.len);
    Ok(XDP_REDIRECT)
}

/// What a path carries: an IP packet, or a frame around it.
struct Load {
    inner: Inner,
    /// Bytes of it.
    len: u32,
    /// Whether the path's outer addresses are IPv6.
    over_ipv6: bool,
    /// What is in its GRE header.
    layout: Layout,
}

impl Load {
    /// Bytes of the outer headers.
    #[inline(always)]
    const fn outer_len(&self) -> usize {
        self.layout.header_len()
            + if self.over_ipv6 {
                ipv6::HEADER_LEN
            } else {
                ipv4::HEADER_LEN
            }
    }

    /// EtherType of the outer headers, big-endian.
    #[inline(always)]
    const fn outer_protocol(&self) -> [u8; 2] {
        if self.over_ipv6 { gre::IPV6 } else { gre::IPV4 }
    }

    /// Writes the outer headers, with the packet's number where it is to have one.
    #[inline(always)]
    fn put_outer(
        &self,
        packet: &Packet<XdpContext>,
        id: u32,
        bond: &Bond,
        way: &Way,
    ) -> Result<(), Refused> {
        let Self { inner, len, .. } = *self;
        let stamped = self.layout.sequence;
        let stamp = if stamped {
            number(way, id, 1).ok_or(Refused)?
        } else {
            Stamp::NONE
        };
        let gre = gre_header(way.path, inner, self.layout, stamp);
        if self.over_ipv6 {
            let outward = outward_v6(way, bond, inner, len, stamped, stamp);
            return packet.write_v6(&outward, way.path, gre);
        }
        let outward = outward(way.path, bond, inner, len, stamped, stamp);
        packet.overwrite(EthHdr::LEN, &outward, gre)
    }
}
