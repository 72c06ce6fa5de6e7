//! A packet enters the bond: choose a path, encapsulate, send.

use netbond_common::{
    abi::{PATH_KEY, PATH_NEIGHBOUR, PathStats},
    fate::Fate,
    gre,
    inner::Inner,
    ipv4::Outward,
    select::{Choice, select},
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    end::End,
    maps,
    packet::{Packet, random, redirect, redirect_to_neighbour},
    probe,
};

/// Sends a packet down a path of the bond; returns the kernel's action.
#[inline(always)]
pub(crate) fn send(packet: &Packet) -> Result<i32, End> {
    let id = maps::bond_id(packet.ifindex()).ok_or(End::outside(Fate::TxNoBond))?;
    let end = |fate| End::new(id, fate);
    let bond = maps::bond(id).ok_or(end(Fate::TxNoBond))?;
    let inner = match inner(packet) {
        Ok(inner) => inner,
        // What is no IP packet may be the controller asking for a probe.
        Err(Fate::TxMalformed) => return probe::ask(packet, id),
        Err(fate) => return Err(end(fate)),
    };

    let ticket = maps::ticket(id).ok_or(end(Fate::TxNoBond))?;
    let flags = |path| maps::path_flags(maps::path_of(id, path));
    let (slot, choice) = select(bond, ticket, flags).ok_or(end(Fate::TxNoPath))?;
    let path_id = maps::path_of(id, slot);
    let path = maps::path(path_id).ok_or(end(Fate::TxNoPath))?;
    let stats = maps::path_stats(path_id).ok_or(end(Fate::TxNoPath))?;

    let (packets, payload_len) = (packet.wire_packets(), packet.len() - EthHdr::LEN as u32);
    let outward = Outward {
        local: &path.local,
        remote: &path.remote,
        sum: path.sum,
        inner,
        ttl: bond.ttl,
        payload_len,
        identification: if inner.dont_fragment {
            0
        } else {
            random() as u16
        },
    };
    if path.flags & PATH_KEY != 0 {
        packet.encapsulate(&outward.headers_with_key(path.key))
    } else {
        packet.encapsulate(&outward.headers())
    }
    .map_err(|_| end(Fate::TxNoRoom))?;

    count(stats, choice, u64::from(packets), u64::from(payload_len));
    if path.flags & PATH_NEIGHBOUR != 0 {
        Ok(redirect_to_neighbour(path.ifindex))
    } else {
        Ok(redirect(path.ifindex))
    }
}

/// What the packet is.
#[inline(always)]
fn inner(packet: &Packet) -> Result<Inner, Fate> {
    if packet.has_vlan() {
        return Err(Fate::TxNotIp);
    }
    match packet.protocol() {
        gre::IPV4 => packet
            .read::<Ipv4Hdr>(EthHdr::LEN)
            .and_then(|header| Inner::from_ipv4(&header)),
        gre::IPV6 => packet
            .read::<[u8; Ipv6Hdr::LEN]>(EthHdr::LEN)
            .and_then(|header| Inner::from_ipv6(&header)),
        _ => return Err(Fate::TxNotIp),
    }
    .ok_or(Fate::TxMalformed)
}

#[inline(always)]
fn count(stats: &mut PathStats, choice: Choice, packets: u64, bytes: u64) {
    stats.tx_packets += packets;
    stats.tx_bytes += bytes;
    match choice {
        Choice::Wheel => {}
        Choice::StandIn => stats.tx_stand_in += packets,
        Choice::LastResort => stats.tx_last_resort += packets,
    }
}
