//! A packet comes in on a device of a path: if it is the bond's, decapsulate it and hand it to the
//! bond device.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    programs::TcContext,
};
use netbond_common::{
    abi::{
        BOND_ETHERNET, BOND_IN_ORDER, BOND_NUMBERED, Bond, MAX_BOND_PATHS, PathStats, TunnelKey,
    },
    ecn::{self, Decapsulated},
    fate::Fate,
    frame::{self, Header},
    gre,
    ipv4::{self, checksum_after_tos, is_fragment},
    ipv6,
    names::feature,
    probe,
    sequence::{Arrival, Stamp},
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    clamp::clamp,
    end::End,
    features::{Features as _, Modes},
    maps,
    packet::{Context, Packet, Refused, monotonic, redirect, redirect_inward},
};

/// Source address of the frames that a bond device receives: locally administered, so that it is
/// nobody's. Without zeros in a row, which a program sets one by one in a loop.
const FROM: [u8; 6] = *b"\x02bond0";

/// Receives a packet whose IP header starts at `L3` bytes; returns the kernel's action.
#[inline(always)]
pub(crate) fn receive<const L3: usize>(packet: &Packet) -> Result<i32, End> {
    let outer = outer::<L3>(packet).map_err(End::outside)?;
    let path_id = maps::path_id(&outer.key).ok_or(End::outside(Fate::RxForeign))?;
    if outer.protocol == probe::PROTOCOL {
        return crate::probe::receive::<L3>(packet, path_id, outer.len);
    }
    take::<L3, false>(packet, path_id, outer.cover(), Leave::AtOnce)
}

/// The same for bonds that number their packets.
///
/// It is functions with symbols of their own: the verifier walks through each once, and each has the
/// stack almost to itself.
#[inline(always)]
pub(crate) fn receive_numbered<const L3: usize>(packet: &Packet) -> Result<i32, End> {
    let context = packet.raw();
    let path_id = if L3 == 0 {
        netbond_find_l3(context)
    } else {
        netbond_find_l2(context)
    };
    let id = maps::bond_of(path_id);
    let notes = maps::notes().ok_or(End::outside(Fate::RxForeign))?;
    if path_id == NO_PATH {
        return Ok(notes.action);
    }
    let cover = Cover::unpack(notes.cover);
    if cover.protocol == probe::PROTOCOL {
        let len = cover.len as u32;
        return Ok(if L3 == 0 {
            netbond_probed_l3(context, path_id, len)
        } else {
            netbond_probed_l2(context, path_id, len)
        });
    }
    let bond = maps::bond(id).ok_or(End::new(id, Fate::RxForeign))?;
    // What is not of the bond's encap is left to the kernel.
    let ours = (cover.protocol == gre::ETHERNET) == (bond.flags & BOND_ETHERNET != 0);
    let (mut time, now) = (0, monotonic());
    if notes.stamped != 0 && bond.flags & BOND_NUMBERED != 0 && ours {
        let (field, identification) = (notes.field, notes.identification);
        time = netbond_arrive(path_id, field, identification, bond.longest_hold_ns, now);
        if time == COPY {
            return drop_copy(packet, path_id, L3 + cover.len);
        }
        if bond.flags & BOND_IN_ORDER == 0 && time != CONTENDED {
            time = 0;
        }
    }
    Ok(if L3 == 0 {
        netbond_take_l3(context, path_id, cover.pack(), time, now)
    } else {
        netbond_take_l2(context, path_id, cover.pack(), time, now)
    })
}

/// Counts a copy, behind so many bytes of headers, of what was received before: the path did its work, and
/// the peer is to know.
#[inline(always)]
fn drop_copy(packet: &Packet, path_id: u32, start: usize) -> Result<i32, End> {
    let foreign = End::new(maps::bond_of(path_id), Fate::RxForeign);
    let stats = maps::path_stats(path_id).ok_or(foreign)?;
    let packets = u64::from(packet.wire_packets());
    stats.rx_packets += packets;
    stats.rx_bytes += u64::from(packet.len()) - start as u64;
    stats.rx_copies += packets;
    Ok(TC_ACT_SHOT)
}

/// In place of a path's id.
const NO_PATH: u32 = u32::MAX;

/// Finds the path on which the packet in `context` came, and notes what its outer headers say; of one
/// that is of no path, what becomes of it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_find_l3(context: *mut __sk_buff) -> u32 {
    find::<0>(&Packet::new(TcContext::new(context)))
}

/// The same behind an Ethernet header.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_find_l2(context: *mut __sk_buff) -> u32 {
    find::<{ EthHdr::LEN }>(&Packet::new(TcContext::new(context)))
}

#[inline(always)]
fn find<const L3: usize>(packet: &Packet) -> u32 {
    let Some(notes) = maps::notes() else {
        return NO_PATH;
    };
    let found = outer::<L3>(packet).and_then(|outer| {
        notes.cover = outer.cover().pack();
        notes.stamped = u32::from(outer.stamped);
        notes.field = u32::from_be_bytes(outer.stamp.to_field());
        notes.identification = u32::from(outer.identification);
        maps::path_id(&outer.key).ok_or(Fate::RxForeign)
    });
    match found {
        Ok(path_id) => path_id,
        Err(fate) => {
            notes.action = End::outside(fate).settle(packet);
            NO_PATH
        }
    }
}

/// Handles the probe in `context` behind so many bytes of outer headers.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_probed_l3(context: *mut __sk_buff, path_id: u32, len: u32) -> i32 {
    let packet = Packet::new(TcContext::new(context));
    let received = crate::probe::receive::<0>(&packet, path_id, len as usize & LONGEST_COVER);
    received.unwrap_or_else(|end| end.settle(&packet))
}

/// The same behind an Ethernet header.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_probed_l2(context: *mut __sk_buff, path_id: u32, len: u32) -> i32 {
    let packet = Packet::new(TcContext::new(context));
    let received =
        crate::probe::receive::<{ EthHdr::LEN }>(&packet, path_id, len as usize & LONGEST_COVER);
    received.unwrap_or_else(|end| end.settle(&packet))
}

/// Takes the packet in `context` out of its [`Cover`], to leave at this time (ns), or at once where that
/// is 0.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_take_l3(
    context: *mut __sk_buff,
    path_id: u32,
    cover: u32,
    time: u64,
    now: u64,
) -> i32 {
    let packet = Packet::new(TcContext::new(context));
    let taken = take::<0, true>(
        &packet,
        path_id,
        Cover::unpack(cover),
        Leave::new(time, now),
    );
    taken.unwrap_or_else(|end| end.settle(&packet))
}

/// The same behind an Ethernet header.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_take_l2(
    context: *mut __sk_buff,
    path_id: u32,
    cover: u32,
    time: u64,
    now: u64,
) -> i32 {
    let packet = Packet::new(TcContext::new(context));
    let (cover, leave) = (Cover::unpack(cover), Leave::new(time, now));
    let taken = take::<{ EthHdr::LEN }, true>(&packet, path_id, cover, leave);
    taken.unwrap_or_else(|end| end.settle(&packet))
}

/// What is to be known of the outer headers to take them away.
#[derive(Clone, Copy)]
struct Cover {
    /// Bytes of all outer headers.
    len: usize,
    /// GRE payload type, big-endian.
    protocol: [u8; 2],
    tos: u8,
}

/// At least the length of the longest outer headers; a mask.
const LONGEST_COVER: usize = 127;

impl Cover {
    /// As one argument.
    const fn pack(self) -> u32 {
        u32::from_be_bytes([self.len as u8, self.tos, self.protocol[0], self.protocol[1]])
    }

    const fn unpack(packed: u32) -> Self {
        let [len, tos, a, b] = packed.to_be_bytes();
        Self {
            len: len as usize & LONGEST_COVER,
            protocol: [a, b],
            tos,
        }
    }
}

/// Takes a packet out of its outer headers and hands it to the bond device. `CLAMPS`: whether there is room on the
/// stack to look into TCP.
#[inline(always)]
fn take<const L3: usize, const CLAMPS: bool>(
    packet: &Packet,
    path_id: u32,
    cover: Cover,
    leave: Leave,
) -> Result<i32, End> {
    let id = maps::bond_of(path_id);
    let end = |fate| End::new(id, fate);
    let bond = maps::bond(id).ok_or(end(Fate::RxForeign))?;
    let stats = maps::path_stats(path_id).ok_or(end(Fate::RxForeign))?;
    if bond.flags & BOND_ETHERNET != 0 {
        return take_frame::<L3, CLAMPS>(packet, cover, leave, bond, stats).map_err(end);
    }
    let mark = congestion(packet, L3 + cover.len, cover.protocol, cover.tos).map_err(end)?;

    let (packets, len) = (
        packet.wire_packets(),
        packet.len() - (L3 + cover.len) as u32,
    );
    packet
        .decapsulate(cover.len, cover.protocol)
        .map_err(|_| end(Fate::RxNoDecap))?;
    if L3 == 0 {
        packet
            .prepend_ethernet()
            .map_err(|_| end(Fate::RxNoDecap))?;
    }
    let ethernet = frame_header(bond.mac, cover.protocol);
    packet
        .write(0, &ethernet)
        .and_then(|()| mark.apply(packet))
        .map_err(|_| end(Fate::RxNoDecap))?;
    if CLAMPS {
        clamp(packet, bond, cover.protocol);
    }

    stats.rx_packets += u64::from(packets);
    stats.rx_bytes += u64::from(len);
    leave.count(packets, stats);
    Ok(leave.send(packet, bond))
}

/// Takes out a whole frame. Where it goes is up to its own addresses.
#[inline(always)]
fn take_frame<const L3: usize, const CLAMPS: bool>(
    packet: &Packet,
    cover: Cover,
    leave: Leave,
    bond: &Bond,
    stats: &mut PathStats,
) -> Result<i32, Fate> {
    if cover.protocol != gre::ETHERNET {
        return Err(Fate::RxProtocol);
    }
    let start = L3 + cover.len;
    let (header, mark) = in_frame(packet, start, cover.tos)?;
    let protocol = frame::protocol(&header);

    let (packets, len) = (packet.wire_packets(), packet.len() - start as u32);
    // The kernel takes nothing away that leaves less than an IPv4 header.
    packet
        .pad(start + EthHdr::LEN + Ipv4Hdr::LEN)
        .and_then(|()| packet.decapsulate(cover.len + EthHdr::LEN, protocol))
        .map_err(|_| Fate::RxNoDecap)?;
    if L3 == 0 {
        packet.prepend_ethernet().map_err(|_| Fate::RxNoDecap)?;
    }
    packet
        .write(0, &header)
        .and_then(|()| mark.apply(packet))
        .map_err(|_| Fate::RxNoDecap)?;
    if CLAMPS {
        clamp(packet, bond, protocol);
    }

    stats.rx_packets += u64::from(packets);
    stats.rx_bytes += u64::from(len);
    leave.count(packets, stats);
    Ok(leave.send(packet, bond))
}

/// The header of the frame at `start`, and what becomes of the ECN field of an IP packet in it.
#[inline(always)]
pub(crate) fn in_frame<C: Context>(
    packet: &Packet<C>,
    start: usize,
    outer_tos: u8,
) -> Result<(Header, Mark), Fate> {
    let header: Header = packet.read(start).ok_or(Fate::RxMalformed)?;
    let protocol = frame::protocol(&header);
    match congestion(packet, start + EthHdr::LEN, protocol, outer_tos) {
        Ok(mark) => Ok((header, mark)),
        Err(Fate::RxEcn) => Err(Fate::RxEcn),
        // No IP packet, or not a well-formed one: as a bridge would carry it.
        Err(_) => Ok((header, Mark::None)),
    }
}

/// How a packet leaves the bond.
enum Leave {
    /// As it came.
    AtOnce,
    /// In its turn: at this time, ns.
    At { time: u64, now: u64 },
    /// At once, as its turn is not known.
    Unordered,
}

impl Leave {
    const fn new(time: u64, now: u64) -> Self {
        match time {
            0 => Self::AtOnce,
            CONTENDED => Self::Unordered,
            time => Self::At { time, now },
        }
    }

    /// Counts a received packet whose turn is not known.
    #[inline(always)]
    fn count(&self, packets: u32, stats: &mut PathStats) {
        if let Self::Unordered = self {
            stats.rx_contended += u64::from(packets);
        }
    }

    #[inline(always)]
    fn send(self, packet: &Packet, bond: &Bond) -> i32 {
        match self {
            Self::AtOnce => redirect_inward(bond.ifindex),
            Self::At { time, now } => {
                packet.hold_until(time, now);
                redirect(bond.release_ifindex)
            }
            Self::Unordered if bond.flags & BOND_IN_ORDER == 0 => redirect_inward(bond.ifindex),
            Self::Unordered => {
                packet.hold_until(0, 0);
                redirect(bond.release_ifindex)
            }
        }
    }
}

/// In place of a time: the packet was here before.
const COPY: u64 = u64::MAX;
/// In place of a time: what was here before is not to be known, as another CPU is at work on it.
const CONTENDED: u64 = u64::MAX - 1;

/// When a packet may leave that came on this path with this sequence field and identification: a time,
/// [`COPY`] or [`CONTENDED`]. Times are CLOCK_MONOTONIC, ns.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_arrive(
    path_id: u32,
    field: u32,
    identification: u32,
    longest_ns: u32,
    now: u64,
) -> u64 {
    let stamp = Stamp::from_field(field.to_be_bytes());
    let (id, path) = (maps::bond_of(path_id), path_id % MAX_BOND_PATHS);
    let Some((strand, skew)) = maps::lock_strand(id, stamp.strand) else {
        return CONTENDED;
    };
    let number = strand.number(path, stamp, identification as u16);
    let longest = u64::from(longest_ns);
    let arrival = strand.arrive(skew, path, number, stamp.is_copied(), now, longest);
    maps::unlock(strand);
    match arrival {
        Arrival::Release(time) => time,
        Arrival::Copy => COPY,
    }
}

/// What the outer headers say.
pub(crate) struct Outer {
    pub(crate) key: TunnelKey,
    /// Bytes of all outer headers.
    pub(crate) len: usize,
    /// GRE payload type, big-endian.
    pub(crate) protocol: [u8; 2],
    pub(crate) tos: u8,
    identification: u16,
    /// Whether it has a sequence number, and then which.
    pub(crate) stamped: bool,
    stamp: Stamp,
}

impl Outer {
    #[inline(always)]
    const fn cover(&self) -> Cover {
        Cover {
            len: self.len,
            protocol: self.protocol,
            tos: self.tos,
        }
    }
}

#[inline(always)]
fn outer<const L3: usize>(packet: &Packet) -> Result<Outer, Fate> {
    let protocol = packet.protocol();
    if protocol == gre::IPV4 {
        if is_ours::<L3>(packet) {
            return outer_v4::<L3, _>(packet);
        }
    } else if protocol == gre::IPV6 && Modes::has(feature::IPV6) && is_ours::<L3>(packet) {
        return outer_v6::<L3, _>(packet);
    }
    Err(Fate::RxForeign)
}

/// Whether the frame may be for this host.
#[inline(always)]
fn is_ours<const L3: usize>(packet: &Packet) -> bool {
    !packet.has_vlan() && (L3 == 0 || packet.is_for_us())
}

#[inline(always)]
pub(crate) fn outer_v4<const L3: usize, C: Context>(packet: &Packet<C>) -> Result<Outer, Fate> {
    let ip: Ipv4Hdr = packet.read(L3).ok_or(Fate::RxForeign)?;
    let ip_len = usize::from(ip.ihl());
    if ip.version() != 4 || ip_len < Ipv4Hdr::LEN || ip.proto != gre::IP_PROTOCOL {
        return Err(Fate::RxForeign);
    }
    if is_fragment(ip.frags) {
        return Err(Fate::RxFragment);
    }
    let addresses = [ipv4::mapped(ip.src_addr), ipv4::mapped(ip.dst_addr)];
    let mut outer = behind_ip(packet, L3, ip_len, addresses)?;
    outer.tos = ip.tos;
    outer.identification = u16::from_be_bytes(ip.id);
    Ok(outer)
}

/// GRE behind extension headers is left to the kernel: nobody has reason to send what netbond takes so.
#[inline(always)]
pub(crate) fn outer_v6<const L3: usize, C: Context>(packet: &Packet<C>) -> Result<Outer, Fate> {
    let head: [u8; ipv6::HEAD_LEN] = packet.read(L3).ok_or(Fate::RxForeign)?;
    if head[0] >> 4 != 6 {
        return Err(Fate::RxForeign);
    }
    match head[6] {
        gre::IP_PROTOCOL => {}
        ipv6::FRAGMENT => {
            // It begins with the next header of what was cut.
            let next: u8 = packet.read(L3 + ipv6::HEADER_LEN).ok_or(Fate::RxForeign)?;
            return Err(if next == gre::IP_PROTOCOL {
                Fate::RxFragment
            } else {
                Fate::RxForeign
            });
        }
        _ => return Err(Fate::RxForeign),
    }
    let (true, addresses) = packet.load(L3 + ipv6::HEAD_LEN) else {
        return Err(Fate::RxForeign);
    };
    let addresses: [[u8; 16]; 2] = addresses;
    // In TUNNELS such addresses are those of IPv4 paths.
    if ipv6::is_mapped(&addresses[0]) {
        return Err(Fate::RxForeign);
    }
    let mut outer = behind_ip(packet, L3, ipv6::HEADER_LEN, addresses)?;
    outer.tos = ipv6::traffic_class(head[0], head[1]);
    outer.identification = outer.stamp.identification();
    Ok(outer)
}

/// What follows an outer IP header of `ip_len` bytes with these addresses, source and destination; of
/// that itself nothing is said.
#[inline(always)]
fn behind_ip<C: Context>(
    packet: &Packet<C>,
    start: usize,
    ip_len: usize,
    [source, destination]: [[u8; 16]; 2],
) -> Result<Outer, Fate> {
    let at = start + ip_len;
    let base: gre::Base = packet.read(at).ok_or(Fate::RxForeign)?;
    let layout = base.layout().ok_or(Fate::RxGreFlags)?;
    let key = if layout.key {
        packet.read(at + gre::BASE_LEN).ok_or(Fate::RxForeign)?
    } else {
        [0; gre::FIELD_LEN]
    };
    let stamp = if layout.sequence {
        match packet.load(at + layout.header_len() - gre::FIELD_LEN) {
            (true, field) => Stamp::from_field(field),
            (false, _) => return Err(Fate::RxForeign),
        }
    } else {
        Stamp::NONE
    };
    Ok(Outer {
        key: TunnelKey {
            source,
            destination,
            key,
            has_key: u32::from(layout.key),
        },
        len: ip_len + layout.header_len(),
        protocol: base.protocol,
        tos: 0,
        identification: 0,
        stamped: layout.sequence,
        stamp,
    })
}

/// How a congestion mark on the outer header changes the inner one.
pub(crate) enum Mark {
    None,
    Ipv4 { tos: u8, check: [u8; 2] },
    Ipv6 { first: [u8; 2] },
}

impl Mark {
    /// Writes the change behind the Ethernet header.
    #[inline(always)]
    pub(crate) fn apply<C: Context>(self, packet: &Packet<C>) -> Result<(), Refused> {
        match self {
            Self::None => Ok(()),
            Self::Ipv4 { tos, check } => {
                packet.write(EthHdr::LEN + 1, &tos)?;
                packet.write(EthHdr::LEN + 10, &check)
            }
            Self::Ipv6 { first } => packet.rewrite(EthHdr::LEN, &first),
        }
    }
}

/// Reads the inner header at `offset` and decides what becomes of its ECN field (RFC 6040).
#[inline(always)]
pub(crate) fn congestion<C: Context>(
    packet: &Packet<C>,
    offset: usize,
    protocol: [u8; 2],
    outer_tos: u8,
) -> Result<Mark, Fate> {
    match protocol {
        gre::IPV4 => {
            let inner: Ipv4Hdr = packet.read(offset).ok_or(Fate::RxMalformed)?;
            if inner.version() != 4 || usize::from(inner.ihl()) < Ipv4Hdr::LEN {
                return Err(Fate::RxMalformed);
            }
            match ecn::decapsulate(inner.tos, outer_tos) {
                Decapsulated::Keep => Ok(Mark::None),
                Decapsulated::Drop => Err(Fate::RxEcn),
                Decapsulated::Set(codepoint) => {
                    let tos = inner.tos & !ecn::MASK | codepoint;
                    let check = checksum_after_tos(inner.check, inner.tos, tos);
                    Ok(Mark::Ipv4 { tos, check })
                }
            }
        }
        gre::IPV6 => {
            let inner: [u8; Ipv6Hdr::LEN] = packet.read(offset).ok_or(Fate::RxMalformed)?;
            if inner[0] >> 4 != 6 {
                return Err(Fate::RxMalformed);
            }
            let tos = ipv6::traffic_class(inner[0], inner[1]);
            match ecn::decapsulate(tos, outer_tos) {
                Decapsulated::Keep => Ok(Mark::None),
                Decapsulated::Drop => Err(Fate::RxEcn),
                // The low ECN bits of the traffic class are bits 4 and 5 of the second byte.
                Decapsulated::Set(codepoint) => Ok(Mark::Ipv6 {
                    first: [inner[0], inner[1] & !(ecn::MASK << 4) | codepoint << 4],
                }),
            }
        }
        _ => Err(Fate::RxProtocol),
    }
}

/// The header of a received packet of this EtherType, on its way into a bond device of this address.
#[inline(always)]
pub(crate) const fn frame_header(to: [u8; 6], protocol: [u8; 2]) -> Header {
    frame::header(to, FROM, protocol)
}
