//! A packet comes in on an Ethernet device, in its driver. On a path's: if it is the bond's and there is nothing
//! about it that takes the kernel, decapsulate it and hand it to the bond device, or straight to the driver of the
//! LAN to which the kernel would route it. On a LAN's: see [`send`].
//!
//! This is a fast way before the programs at tc's hooks, which do all of it: whatever is left here is
//! untouched and uncounted, and goes there.

mod onward;
mod send;

use aya_ebpf::{
    bindings::{
        xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT},
        xdp_md,
    },
    programs::XdpContext,
};
use netbond_common::{
    abi::{
        BOND_ETHERNET, BOND_NUMBERED, BOND_XDP_ONWARD, Bond, DRIVER_LAN, DRIVER_UNDERLAY, Driver,
        PathStats,
    },
    fate::Fate,
    frame, gre, ipv4,
    names::feature,
    route::Way,
};
use network_types::eth::EthHdr;

use crate::{
    clamp::is_clamped,
    end::End,
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

impl From<End> for Left {
    #[inline(always)]
    fn from(_: End) -> Self {
        Self
    }
}

/// Takes a packet from a driver; returns the kernel's action.
#[inline(always)]
pub(crate) fn take_up(packet: &Packet<XdpContext>) -> Result<u32, Left> {
    let driver = maps::driver(packet.ifindex()).ok_or(Left)?;
    let len = packet.len();
    if !is_for(packet, driver) || !packet.is_linear(len) {
        return Err(Left);
    }
    let mut action = XDP_PASS;
    if driver.roles & DRIVER_UNDERLAY != 0 {
        action = netbond_xdp_in(packet.raw(), len);
    }
    if driver.roles & DRIVER_LAN != 0 && action == XDP_PASS {
        action = send::send(packet, len)?;
    }
    Ok(action)
}

/// Receives the packet in `context`, in a frame of `len` bytes.
///
/// A function with a symbol of its own, as those of the other way are: each has the stack almost to itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_xdp_in(context: *mut xdp_md, len: u32) -> u32 {
    receive(&Packet::new(XdpContext::new(context)), len).unwrap_or(XDP_PASS)
}

/// Receives a packet in a frame of `len` bytes.
#[inline(always)]
fn receive(packet: &Packet<XdpContext>, len: u32) -> Result<u32, Left> {
    let outer = outer(packet)?;
    let path_id = maps::path_id(&outer.key).ok_or(Left)?;
    let id = maps::bond_of(path_id);
    let bond = maps::bond(id).ok_or(Left)?;
    // What has a number may be a copy, or have to wait for its turn.
    let numbered =
        Modes::has(feature::NUMBERED) && outer.stamped && bond.flags & BOND_NUMBERED != 0;
    if bond.xdp_mtu == 0 || numbered {
        return Err(Left);
    }
    let stats = maps::path_stats(path_id).ok_or(Left)?;
    if bond.flags & BOND_ETHERNET != 0 {
        take_frame(packet, len, id, &outer, bond, stats)
    } else {
        take(packet, len, id, &outer, bond, stats)
    }
}

/// An IP packet in what was received.
#[derive(Clone, Copy)]
struct Inside {
    /// Where it begins.
    start: usize,
    /// Its EtherType, big-endian.
    protocol: [u8; 2],
    /// Bytes from there on.
    room: u32,
    /// Bytes of its own frame's header, where the bond carries frames: they count as well.
    header: u32,
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
    if len > bond.xdp_mtu || is_clamped(packet, start, bond, outer.protocol) {
        return Err(Left);
    }
    let inside = Inside {
        start,
        protocol: outer.protocol,
        room: len,
        header: 0,
    };
    if let Ok(way) = find_way(packet, inside, bond) {
        return pass_on(packet, inside, id, mark, way, stats);
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
    let (header, mark) = in_frame(packet, start, outer.tos)?;
    let inside = Inside {
        start: start + frame::HEADER_LEN,
        protocol: frame::protocol(&header),
        room: len - HEADER,
        header: HEADER,
    };
    if is_clamped(packet, inside.start, bond, inside.protocol) {
        return Err(Left);
    }
    if frame::is_to(&header, bond.mac)
        && let Ok(way) = find_way(packet, inside, bond)
    {
        return pass_on(packet, inside, id, mark, way, stats);
    }
    packet.cut(start)?;
    Ok(deliver(mark.apply(packet), id, len, stats))
}

/// The way of a received packet to the driver of a LAN, and the packet's bytes.
#[inline(always)]
fn find_way(
    packet: &Packet<XdpContext>,
    inside: Inside,
    bond: &Bond,
) -> Result<(&'static Way, u32), Left> {
    if bond.xdp & BOND_XDP_ONWARD == 0 {
        return Err(Left);
    }
    let Inside {
        start,
        protocol,
        room,
        ..
    } = inside;
    let notes = maps::notes().ok_or(Left)?;
    onward::read(packet, start, protocol, room, bond.ifindex, notes)?;
    let way = onward::find(packet, &mut notes.route)?;
    let driver = maps::driver(way.ifindex).ok_or(Left)?;
    if driver.roles & DRIVER_LAN == 0 || maps::is_kernels_turn(way.neighbour()) {
        return Err(Left);
    }
    Ok((way, notes.onward.len))
}

/// Takes a packet out of all that is in front of it and has a LAN's driver send it.
#[inline(always)]
fn pass_on(
    packet: &Packet<XdpContext>,
    inside: Inside,
    id: u32,
    mark: Mark,
    (way, len): (&Way, u32),
    stats: &mut PathStats,
) -> Result<u32, Left> {
    let protocol = inside.protocol;
    packet.cut(inside.start - EthHdr::LEN)?;
    let done = packet
        .trim(inside.room - len)
        .and_then(|()| packet.write(0, &way.header(protocol)))
        .and_then(|()| mark.apply(packet))
        .and_then(|()| onward::hop(packet, EthHdr::LEN, protocol));
    if done.is_err() || maps::redirect_to_port(way.ifindex) != XDP_REDIRECT {
        maps::count_fate(id, Fate::RxNoDecap, 1);
        return Ok(XDP_DROP);
    }
    stats.rx_packets += 1;
    stats.rx_bytes += u64::from(inside.room + inside.header);
    stats.rx_onward += 1;
    Ok(XDP_REDIRECT)
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
fn is_for(packet: &Packet<XdpContext>, driver: &Driver) -> bool {
    let (there, destination): (bool, [u8; 6]) = packet.try_read(0);
    there && destination == driver.address
}

#[inline(always)]
fn outer(packet: &Packet<XdpContext>) -> Result<Outer, Fate> {
    match packet.protocol() {
        gre::IPV4 => outer_v4::<{ EthHdr::LEN }, _>(packet),
        gre::IPV6 if Modes::has(feature::IPV6) => outer_v6::<{ EthHdr::LEN }, _>(packet),
        _ => Err(Fate::RxForeign),
    }
}
