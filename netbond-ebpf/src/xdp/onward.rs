//! Where a packet goes on, by the kernel's routes and neighbours.

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT},
    programs::XdpContext,
};
use netbond_common::{
    abi::Path,
    gre,
    notes::Notes,
    onward::{Onward, checksum_after_hop},
    route::{self, Answer, Route},
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::Left;
use crate::{
    maps,
    packet::{Packet, Refused, monotonic_coarse},
};

/// Reads the IP packet of this EtherType at `start`, which has so many bytes of room in its frame; notes what it
/// is, and what is to be asked of its way on from the device with this ifindex.
#[inline(always)]
pub(super) fn read(
    packet: &Packet<XdpContext>,
    start: usize,
    protocol: [u8; 2],
    room: u32,
    ifindex: u32,
    notes: &mut Notes,
) -> Result<(), Left> {
    if protocol == gre::IPV4 {
        let header: Ipv4Hdr = packet.read(start).ok_or(Left)?;
        notes.onward = Onward::from_ipv4(&header, room).ok_or(Left)?;
        let (_, ports) = packet.try_read(start + Ipv4Hdr::LEN);
        notes.route.ask_ipv4(ifindex, &header, &notes.onward, ports);
        return Ok(());
    }
    if protocol == gre::IPV6 {
        let header: [u8; Ipv6Hdr::LEN] = packet.read(start).ok_or(Left)?;
        let addresses: [u64; 4] = packet.read(start + 8).ok_or(Left)?;
        let starts = [addresses[0].to_ne_bytes(), addresses[2].to_ne_bytes()];
        notes.onward = Onward::from_ipv6(&header, starts, room).ok_or(Left)?;
        let (_, ports) = packet.try_read(start + Ipv6Hdr::LEN);
        let route = &mut notes.route;
        route.ask_ipv6(ifindex, &header, addresses, &notes.onward, ports);
        return Ok(());
    }
    Err(Left)
}

/// Finds the way on of a packet that came in; maybe without its neighbour.
#[inline(always)]
pub(super) fn find_device(
    packet: &Packet<XdpContext>,
    route: &mut Route,
) -> Result<&'static Answer, Left> {
    let answer = maps::answer(route.place()).ok_or(Left)?;
    let now = monotonic_coarse();
    if !answer.holds(route, now) {
        answer.ask(route);
        let known = match packet.find_route(route, 0) {
            SUCCESS => true,
            // The device is told all the same (since Linux 5.12).
            NO_NEIGHBOUR => false,
            _ => return Err(Left),
        };
        answer.note(route, known, now);
    }
    Ok(answer)
}

const SUCCESS: i64 = BPF_FIB_LKUP_RET_SUCCESS as i64;
const NO_NEIGHBOUR: i64 = BPF_FIB_LKUP_RET_NO_NEIGH as i64;

/// Finds the way on of a packet that came in, to a neighbour that is known.
#[inline(always)]
pub(super) fn find(
    packet: &Packet<XdpContext>,
    route: &mut Route,
) -> Result<&'static route::Way, Left> {
    let answer = find_device(packet, route)?;
    if answer.is_known() {
        Ok(&answer.way)
    } else {
        Err(Left)
    }
}

/// The next hop of a path's packet of `len` bytes, outer headers included.
#[inline(always)]
pub(super) fn next_hop(
    packet: &Packet<XdpContext>,
    path_id: u32,
    path: &Path,
    over_ipv6: bool,
    len: u32,
    route: &mut Route,
) -> Result<&'static route::Way, Left> {
    let hop = maps::hop(path_id).ok_or(Left)?;
    let (now, device) = (monotonic_coarse(), path.ifindex);
    if !hop.holds(path_id, path, device, now) {
        if !maps::is_port(device) {
            return Err(Left);
        }
        route.ask_path(path, device, over_ipv6, len);
        // With IPv6 another device may be the answer, whatever was asked; and where OSPF's route is gone, another
        // router.
        let found = packet.find_route(route, BPF_FIB_LOOKUP_OUTPUT) == SUCCESS;
        if !found || !route.is_of(path) || maps::is_kernels_turn(route.way().neighbour()) {
            return Err(Left);
        }
        hop.note(path_id, path, route, now);
    }
    if hop.way.takes(len) {
        Ok(&hop.way)
    } else {
        Err(Left)
    }
}

/// Takes one hop off the packet of this EtherType at `start`.
#[inline(always)]
pub(super) fn hop(
    packet: &Packet<XdpContext>,
    start: usize,
    protocol: [u8; 2],
) -> Result<(), Refused> {
    if protocol == gre::IPV4 {
        // TTL, protocol and checksum.
        let [ttl, transport, high, low]: [u8; 4] = packet.read(start + 8).ok_or(Refused)?;
        let [high, low] = checksum_after_hop([high, low]);
        return packet.write(start + 8, &[ttl.wrapping_sub(1), transport, high, low]);
    }
    let hops: u8 = packet.read(start + 7).ok_or(Refused)?;
    packet.write(start + 7, &hops.wrapping_sub(1))
}
