//! A packet comes in on a device of a path: if it is the bond's, decapsulate it and hand it to the
//! bond device.

use aya_ebpf::bindings::TC_ACT_SHOT;
use netbond_common::{
    abi::{
        BOND_ETHERNET, BOND_IN_ORDER, BOND_NUMBERED, Bond, MAX_BOND_PATHS, PathStats, TunnelKey,
    },
    ecn::{self, Decapsulated},
    fate::Fate,
    frame::Header,
    gre,
    ipv4::{self, checksum_after_tos, is_fragment},
    names::feature,
    probe,
    sequence::{Arrival, Stamp},
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    end::End,
    features::Features,
    maps,
    packet::{Packet, Refused, monotonic, redirect, redirect_inward},
};

/// Source address of the frames that a bond device receives: locally administered, so that it is
/// nobody's. Without zeros in a row, which a program sets one by one in a loop.
const FROM: [u8; 6] = *b"\x02bond0";

/// Receives a packet whose IP header starts at `L3` bytes; returns the kernel's action.
#[inline(always)]
pub(crate) fn receive<const L3: usize, F: Features>(packet: &Packet) -> Result<i32, End> {
    let outer = outer::<L3>(packet).map_err(End::outside)?;
    let path_id = maps::path_id(&outer.key).ok_or(End::outside(Fate::RxForeign))?;
    if outer.protocol == probe::PROTOCOL {
        return crate::probe::receive::<L3>(packet, path_id, &outer);
    }
    let id = maps::bond_of(path_id);
    let end = |fate| End::new(id, fate);
    let bond = maps::bond(id).ok_or(end(Fate::RxForeign))?;
    let stats = maps::path_stats(path_id).ok_or(end(Fate::RxForeign))?;
    if bond.flags & BOND_ETHERNET != 0 {
        return receive_frame::<L3, F>(packet, path_id, &outer, bond, stats).map_err(end);
    }
    let mark = congestion(packet, L3 + outer.len, outer.protocol, outer.tos).map_err(end)?;
    let leave = order::<F>(path_id, &outer, bond);

    let packets = packet.wire_packets();
    if leave.copy {
        let len = packet.len() - (L3 + outer.len) as u32;
        return Ok(drop_copy(stats, packets, len));
    }
    packet
        .decapsulate(outer.len)
        .map_err(|_| end(Fate::RxNoDecap))?;
    if L3 == 0 {
        packet
            .prepend_ethernet()
            .map_err(|_| end(Fate::RxNoDecap))?;
    }
    let ethernet = frame_header(bond.mac, outer.protocol);
    packet
        .write(0, &ethernet)
        .and_then(|()| mark.apply(packet))
        .map_err(|_| end(Fate::RxNoDecap))?;

    stats.rx_packets += u64::from(packets);
    stats.rx_bytes += u64::from(packet.len() - EthHdr::LEN as u32);
    Ok(leave.send(packet, bond))
}

/// Receives a whole frame. Where it goes is up to its own addresses.
#[inline(always)]
fn receive_frame<const L3: usize, F: Features>(
    packet: &Packet,
    path_id: u32,
    outer: &Outer,
    bond: &Bond,
    stats: &mut PathStats,
) -> Result<i32, Fate> {
    if outer.protocol != gre::ETHERNET {
        return Err(Fate::RxProtocol);
    }
    let start = L3 + outer.len;
    let header: Header = packet.read(start).ok_or(Fate::RxMalformed)?;
    let protocol = [header[12], header[13]];
    let mark = match congestion(packet, start + EthHdr::LEN, protocol, outer.tos) {
        Ok(mark) => mark,
        Err(Fate::RxEcn) => return Err(Fate::RxEcn),
        // No IP packet, or not a well-formed one: as a bridge would carry it.
        Err(_) => Mark::None,
    };
    let leave = order::<F>(path_id, outer, bond);

    let (packets, len) = (packet.wire_packets(), packet.len() - start as u32);
    if leave.copy {
        return Ok(drop_copy(stats, packets, len));
    }
    // The kernel takes nothing away that leaves less than an IPv4 header.
    packet
        .pad(start + EthHdr::LEN + Ipv4Hdr::LEN)
        .and_then(|()| packet.decapsulate(outer.len + EthHdr::LEN))
        .map_err(|_| Fate::RxNoDecap)?;
    if L3 == 0 {
        packet.prepend_ethernet().map_err(|_| Fate::RxNoDecap)?;
    }
    packet
        .write(0, &header)
        .and_then(|()| mark.apply(packet))
        .map_err(|_| Fate::RxNoDecap)?;

    stats.rx_packets += u64::from(packets);
    stats.rx_bytes += u64::from(len);
    Ok(leave.send(packet, bond))
}

/// Counts a copy of what was received before: the path did its work, and the peer is to know.
#[inline(always)]
fn drop_copy(stats: &mut PathStats, packets: u32, len: u32) -> i32 {
    stats.rx_packets += u64::from(packets);
    stats.rx_bytes += u64::from(len);
    stats.rx_copies += u64::from(packets);
    TC_ACT_SHOT
}

/// How a packet leaves the bond. No `enum`: the compiler may copy what one does not hold, and the verifier
/// refuses that.
struct Leave {
    /// Not at all: it was here before.
    copy: bool,
    /// In its turn: at `time`, ns. Else as it came.
    ordered: bool,
    time: u64,
    now: u64,
}

impl Leave {
    const AT_ONCE: Self = Self {
        copy: false,
        ordered: false,
        time: 0,
        now: 0,
    };

    #[inline(always)]
    fn send(self, packet: &Packet, bond: &Bond) -> i32 {
        if self.ordered {
            packet.hold_until(self.time, self.now);
            redirect(bond.release_ifindex)
        } else {
            redirect_inward(bond.ifindex)
        }
    }
}

/// Finds a packet's place among those that came, where the bond numbers them and this one has a number.
#[inline(always)]
fn order<F: Features>(path_id: u32, outer: &Outer, bond: &Bond) -> Leave {
    if !F::has(feature::NUMBERED) || bond.flags & BOND_NUMBERED == 0 {
        return Leave::AT_ONCE;
    }
    if !outer.stamped {
        return Leave::AT_ONCE;
    }
    let stamp = outer.stamp;
    let now = monotonic();
    let (id, path) = (maps::bond_of(path_id), path_id % MAX_BOND_PATHS);
    let longest = u64::from(bond.longest_hold_ns);
    let ordered = bond.flags & BOND_IN_ORDER != 0;
    let Some((strand, skew)) = maps::lock_strand(id, stamp.strand) else {
        return Leave {
            copy: false,
            ordered,
            time: now,
            now,
        };
    };
    let number = strand.number(path, stamp, outer.identification);
    let arrival = strand.arrive(skew, path, number, stamp.is_copied(), now, longest);
    maps::unlock(strand);
    let (copy, time) = match arrival {
        Arrival::Release(time) => (false, time),
        Arrival::Copy => (true, 0),
    };
    Leave {
        copy,
        ordered,
        time,
        now,
    }
}

/// What the outer headers say.
pub(crate) struct Outer {
    key: TunnelKey,
    /// Bytes of all outer headers.
    pub(crate) len: usize,
    /// GRE payload type, big-endian.
    protocol: [u8; 2],
    tos: u8,
    identification: u16,
    /// Whether it has a sequence number, and then which.
    stamped: bool,
    stamp: Stamp,
}

#[inline(always)]
fn outer<const L3: usize>(packet: &Packet) -> Result<Outer, Fate> {
    if packet.protocol() != gre::IPV4 || packet.has_vlan() || (L3 != 0 && !packet.is_for_us()) {
        return Err(Fate::RxForeign);
    }
    let ip: Ipv4Hdr = packet.read(L3).ok_or(Fate::RxForeign)?;
    let ip_len = usize::from(ip.ihl());
    if ip.version() != 4 || ip_len < Ipv4Hdr::LEN || ip.proto != gre::IP_PROTOCOL {
        return Err(Fate::RxForeign);
    }
    if is_fragment(ip.frags) {
        return Err(Fate::RxFragment);
    }
    let base: gre::Base = packet.read(L3 + ip_len).ok_or(Fate::RxForeign)?;
    let layout = base.layout().ok_or(Fate::RxGreFlags)?;
    let key = if layout.key {
        packet
            .read(L3 + ip_len + gre::BASE_LEN)
            .ok_or(Fate::RxForeign)?
    } else {
        [0; gre::FIELD_LEN]
    };
    let stamp = if layout.sequence {
        let at = L3 + ip_len + layout.header_len() - gre::FIELD_LEN;
        match packet.load(at) {
            (true, field) => Stamp::from_field(field),
            (false, _) => return Err(Fate::RxForeign),
        }
    } else {
        Stamp::NONE
    };
    Ok(Outer {
        key: TunnelKey {
            source: ipv4::mapped(ip.src_addr),
            destination: ipv4::mapped(ip.dst_addr),
            key,
            has_key: u32::from(layout.key),
        },
        len: ip_len + layout.header_len(),
        protocol: base.protocol,
        tos: ip.tos,
        identification: u16::from_be_bytes(ip.id),
        stamped: layout.sequence,
        stamp,
    })
}

/// How a congestion mark on the outer header changes the inner one.
enum Mark {
    None,
    Ipv4 { tos: u8, check: [u8; 2] },
    Ipv6 { first: [u8; 2] },
}

impl Mark {
    /// Writes the change behind the Ethernet header.
    #[inline(always)]
    fn apply(self, packet: &Packet) -> Result<(), Refused> {
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
fn congestion(
    packet: &Packet,
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
            let tos = inner[0] << 4 | inner[1] >> 4;
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

#[inline(always)]
const fn frame_header(to: [u8; 6], protocol: [u8; 2]) -> [u8; EthHdr::LEN] {
    [
        to[0],
        to[1],
        to[2],
        to[3],
        to[4],
        to[5], //
        FROM[0],
        FROM[1],
        FROM[2],
        FROM[3],
        FROM[4],
        FROM[5], //
        protocol[0],
        protocol[1],
    ]
}
