//! A packet enters the bond: choose a path, encapsulate, send.

use netbond_common::{
    abi::{
        BOND_ETHERNET, BOND_IN_ORDER, Bond, PATH_KEY, PATH_NEIGHBOUR, PATH_USABLE, Path, PathStats,
    },
    class::{Subject, classify},
    fate::Fate,
    flow::Flow,
    frame::{self, Header},
    gre::{self, Layout},
    inner::Inner,
    ipv4::Outward,
    names::{Mode, feature},
    select::{self, Choice, select},
    sequence::Stamp,
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    end::End,
    features::Features,
    maps,
    packet::{Packet, Tags, monotonic, random, redirect, redirect_to_neighbour},
    probe,
};

/// Sends a packet down a path of the bond; returns the kernel's action.
#[inline(always)]
pub(crate) fn send<F: Features>(packet: &Packet) -> Result<i32, End> {
    let id = maps::bond_id(packet.ifindex()).ok_or(End::outside(Fate::TxNoBond))?;
    let bond = maps::bond(id).ok_or(End::new(id, Fate::TxNoBond))?;
    if bond.flags & BOND_ETHERNET == 0 {
        send_packet::<F>(packet, id, bond)
    } else {
        send_frame::<F>(packet, id, bond)
    }
}

/// Sends the IP packet in a frame.
#[inline(always)]
fn send_packet<F: Features>(packet: &Packet, id: u32, bond: &Bond) -> Result<i32, End> {
    let end = |fate| End::new(id, fate);
    if packet.has_vlan() || !matches!(packet.protocol(), gre::IPV4 | gre::IPV6) {
        return Err(end(Fate::TxNotIp));
    }
    let Some(inner) = inner(packet) else {
        // What is no IP packet may be the controller asking for a probe.
        let path = probe::asked(packet, id).ok_or(end(Fate::TxMalformed))?;
        return probe::ask(packet, path, 0);
    };
    let way = choose::<F>(packet, id, bond)?;
    let (packets, len) = (packet.wire_packets(), packet.len() - EthHdr::LEN as u32);
    let (stamped, stamp) = stamp::<F>(way.flow, id, bond, packets);
    let identification = if stamped {
        stamp.identification()
    } else if inner.dont_fragment {
        0
    } else {
        random() as u16
    };
    let outward = outward(way.path, bond, inner, len, identification);
    packet
        .encapsulate(&outward, gre_header(way.path, inner, stamped, stamp), 0)
        .map_err(|_| end(Fate::TxNoRoom))?;
    way.leave(packet, id, packets, len)
}

/// Sends a whole frame, whatever is in it.
#[inline(always)]
fn send_frame<F: Features>(packet: &Packet, id: u32, bond: &Bond) -> Result<i32, End> {
    let end = |fate| End::new(id, fate);
    if let Some(path) = probe::asked(packet, id) {
        // A frame may be longer than the kernel lets the controller send.
        return probe::ask(packet, path, frame::HEADER_LEN as u32);
    }
    // First of all: the verifier walks through this once for each way that leads here.
    let way = choose::<F>(packet, id, bond)?;
    let tags = packet.take_tags().map_err(|_| end(Fate::TxTags))?;
    let header: Header = packet.read(0).ok_or(end(Fate::TxMalformed))?;
    let inner = match inner(packet) {
        Some(inner) => inner.in_frame(tags.count()),
        None => Inner::OPAQUE,
    };
    let len = packet.len() + (tags.count() * frame::TAG_LEN) as u32;
    let packets = packet.wire_packets();
    let (stamped, stamp) = stamp::<F>(way.flow, id, bond, packets);
    let identification = if stamped { stamp.identification() } else { 0 };
    let outward = outward(way.path, bond, inner, len, identification);
    let gre = gre_header(way.path, inner, stamped, stamp);
    match tags {
        Tags::None => packet.encapsulate_frame(&outward, gre, header),
        Tags::One(tags) => {
            packet.encapsulate_frame::<18>(&outward, gre, frame::tagged(header, tags))
        }
        Tags::Two(tags) => {
            packet.encapsulate_frame::<22>(&outward, gre, frame::tagged(header, tags))
        }
    }
    .map_err(|_| end(Fate::TxNoRoom))?;
    way.leave(packet, id, packets, len)
}

/// The place in its flow's strand of a packet that stands for so many; false where the bond keeps no
/// order.
#[inline(always)]
fn stamp<F: Features>(flow: u32, id: u32, bond: &Bond, packets: u32) -> (bool, Stamp) {
    if !F::has(feature::IN_ORDER) || bond.flags & BOND_IN_ORDER == 0 {
        return (false, Stamp::NONE);
    }
    match maps::stamp(id, flow, packets) {
        Some(stamp) => (true, stamp),
        None => (false, Stamp::NONE),
    }
}

/// The GRE header of a packet.
#[inline(always)]
fn gre_header(path: &Path, inner: Inner, stamped: bool, stamp: Stamp) -> gre::Header {
    let layout = Layout {
        key: path.flags & PATH_KEY != 0,
        sequence: stamped,
    };
    gre::Header::new(inner.protocol, layout, path.key, stamp.to_field())
}

/// The outer headers of a packet of `len` bytes.
#[inline(always)]
const fn outward<'a>(
    path: &'a Path,
    bond: &Bond,
    inner: Inner,
    len: u32,
    identification: u16,
) -> Outward<'a> {
    Outward {
        local: &path.local,
        remote: &path.remote,
        sum: path.sum,
        inner,
        ttl: bond.ttl,
        payload_len: len,
        identification,
    }
}

/// The IP packet in the frame; `None` where there is none, or not a well-formed one.
#[inline(always)]
fn inner(packet: &Packet) -> Option<Inner> {
    match packet.protocol() {
        gre::IPV4 => Inner::from_ipv4(&packet.read::<Ipv4Hdr>(EthHdr::LEN)?),
        gre::IPV6 => Inner::from_ipv6(&packet.read::<[u8; Ipv6Hdr::LEN]>(EthHdr::LEN)?),
        _ => None,
    }
}

/// The path that a packet takes, and why.
struct Way {
    path: &'static Path,
    stats: &'static mut PathStats,
    choice: Choice,
    /// Where packets of its class are counted, if it is of any.
    class: Option<u32>,
    /// Hash of its flow, where some feature needs one.
    flow: u32,
}

/// Chooses the path of the next packet.
#[inline(always)]
fn choose<F: Features>(packet: &Packet, id: u32, bond: &Bond) -> Result<Way, End> {
    let end = |fate| End::new(id, fate);
    const FLOWS: u32 = feature::CLASSES | feature::FLOW | feature::FLOWLET | feature::IN_ORDER;
    let subject = if F::has(FLOWS) {
        subject(packet)
    } else {
        Subject::new(Flow::NONE, 0, 0)
    };
    let flow = subject.flow.hash();
    let (slot, choice, class) = if F::has(feature::ALL) {
        by_mode::<F>(&subject, flow, id, bond)?
    } else {
        let ticket = maps::ticket(id).ok_or(end(Fate::TxNoBond))?;
        let flags = |path| maps::path_flags(maps::path_of(id, path));
        let (slot, choice) = select(bond, ticket, flags).ok_or(end(Fate::TxNoPath))?;
        (slot, choice, None)
    };
    let path_id = maps::path_of(id, slot);
    Ok(Way {
        path: maps::path(path_id).ok_or(end(Fate::TxNoPath))?,
        stats: maps::path_stats(path_id).ok_or(end(Fate::TxNoPath))?,
        choice,
        class,
        flow,
    })
}

/// Chooses it as the packet's class says, or the bond; returns the class's counter too.
#[inline(always)]
fn by_mode<F: Features>(
    subject: &Subject,
    flow: u32,
    id: u32,
    bond: &Bond,
) -> Result<(u32, Choice, Option<u32>), End> {
    let end = |fate| End::new(id, fate);
    let (mut lane_id, mut counter) = (id, None);
    if F::has(feature::CLASSES) {
        let rule = |class| Some(&maps::class(id, class)?.rule);
        if let Some(place) = classify(subject, bond.classes, rule) {
            lane_id = maps::lane_of(id, place);
            counter = maps::class(id, place).map(|class| class.counter);
        }
    }
    let lane = maps::lane(lane_id).ok_or(end(Fate::TxNoBond))?;
    let ticket = maps::ticket(lane_id).ok_or(end(Fate::TxNoBond))?;
    let flags = |path| maps::path_flags(maps::path_of(id, path));
    let mut preferred = None;
    let mut flowlet = None;
    if F::has(feature::FLOWLET) && lane.mode == Mode::Flowlet as u32 {
        let last = maps::flowlet(id, flow).ok_or(end(Fate::TxNoBond))?;
        let now = monotonic();
        if let Some(path) = last.held(now, maps::gap(id))
            && flags(path) & PATH_USABLE != 0
        {
            last.at_ns = now;
            return Ok((path, Choice::Wheel, counter));
        }
        flowlet = Some((last, now));
    } else if F::has(feature::FLOW) && lane.mode == Mode::Flow as u32 {
        preferred = maps::flow_order(id, flow);
    } else if F::has(feature::ACTIVE_BACKUP) && lane.mode == Mode::ActiveBackup as u32 {
        preferred = Some(lane.order);
    }
    let (path, choice) =
        select::choose(lane, ticket, preferred, flags).ok_or(end(Fate::TxNoPath))?;
    if let Some((last, now)) = flowlet {
        (last.at_ns, last.path) = (now, path);
    }
    Ok((path, choice, counter))
}

/// What rules and flows are made of: the IP packet in the frame, behind tags where there are any.
#[inline(always)]
fn subject(packet: &Packet) -> Subject {
    let (mut start, mut protocol) = (EthHdr::LEN, packet.protocol());
    // Those that are not beside the frame: at most two are sent on.
    for _ in 0..2 {
        if frame::is_tag(protocol) {
            protocol = packet.read(start + 2).unwrap_or_default();
            start += frame::TAG_LEN;
        }
    }
    let read = |at| packet.try_read(start + at);
    let (flow, tos) = match protocol {
        gre::IPV4 => match packet.try_read::<Ipv4Hdr>(start) {
            (true, header) => (Flow::from_ipv4(&header, read), header.tos),
            (false, _) => (Flow::NONE, 0),
        },
        gre::IPV6 => match packet.try_read::<[u8; Ipv6Hdr::LEN]>(start) {
            (true, header) => (
                Flow::from_ipv6(&header, read),
                header[0] << 4 | header[1] >> 4,
            ),
            (false, _) => (Flow::NONE, 0),
        },
        _ => (Flow::NONE, 0),
    };
    Subject::new(flow, tos, packet.mark())
}

impl Way {
    /// Counts an encapsulated packet that was `len` bytes before, and sends it.
    #[inline(always)]
    fn leave(self, packet: &Packet, id: u32, packets: u32, len: u32) -> Result<i32, End> {
        if self.path.flags & PATH_NEIGHBOUR != 0 {
            packet.to_one().map_err(|_| End::new(id, Fate::TxNoRoom))?;
        }
        let (stats, packets) = (self.stats, u64::from(packets));
        stats.tx_packets += packets;
        stats.tx_bytes += u64::from(len);
        match self.choice {
            Choice::Wheel => {}
            Choice::StandIn => stats.tx_stand_in += packets,
            Choice::LastResort => stats.tx_last_resort += packets,
        }
        if let Some(counter) = self.class {
            maps::count_class(counter, packets, u64::from(len));
        }
        Ok(leave(packet, self.path))
    }
}

/// Sends an encapsulated packet out of its path's device.
#[inline(always)]
pub(crate) fn leave(packet: &Packet, path: &Path) -> i32 {
    packet.forget_route();
    if path.flags & PATH_NEIGHBOUR != 0 {
        redirect_to_neighbour(path.ifindex)
    } else {
        redirect(path.ifindex)
    }
}
