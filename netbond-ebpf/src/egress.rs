//! A packet enters the bond: choose a path, encapsulate, send.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    programs::TcContext,
};
use netbond_common::{
    abi::{
        BOND_ETHERNET, BOND_NUMBERED, Bond, Lane, MAX_BOND_PATHS, PATH_KEY, PATH_NEIGHBOUR,
        PATH_USABLE, Path, PathStats, SETTLED_UNIT,
    },
    class::{Subject, classify},
    fate::Fate,
    flow::Flow,
    frame::{self, Header},
    gre::{self, Layout},
    inner::Inner,
    ipv4::{self, Outward},
    ipv6,
    names::{Mode, feature},
    notes::{Copied, Notes},
    order,
    select::{self, Choice, Copies, select},
    sequence::Stamp,
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    clamp::clamp,
    end::End,
    features::{Features, Modes, Plain, is_over_ipv6},
    maps,
    packet::{
        Context, Packet, Refused, monotonic, monotonic_coarse, random, redirect,
        redirect_to_neighbour, wire_len,
    },
    probe,
};

/// Sends a packet down a path of the bond, the wheel's next; returns the kernel's action.
#[inline(always)]
pub(crate) fn send(packet: &Packet) -> Result<i32, End> {
    let id = maps::bond_id(packet.ifindex()).ok_or(End::outside(Fate::TxNoBond))?;
    let bond = maps::bond(id).ok_or(End::new(id, Fate::TxNoBond))?;
    if bond.flags & BOND_ETHERNET == 0 {
        send_packet::<Plain>(packet, id, bond, 0)
    } else {
        send_frame::<Plain>(packet, id, bond, 0)
    }
}

/// The same in any mode.
///
/// It is four functions with symbols of their own: the verifier walks through each once, knowing
/// nothing of the others, instead of through the sending once for each way in which a path may be found.
#[inline(always)]
pub(crate) fn send_by_mode(packet: &Packet) -> Result<i32, End> {
    let id = maps::bond_id(packet.ifindex()).ok_or(End::outside(Fate::TxNoBond))?;
    let bond = maps::bond(id).ok_or(End::new(id, Fate::TxNoBond))?;
    let ethernet = bond.flags & BOND_ETHERNET != 0;
    if let Some(path) = probe::asked(packet, id) {
        return Ok(netbond_ask(packet.raw(), path));
    }
    clamp(packet, bond, packet.protocol());
    let chosen = netbond_choose(packet.raw(), id);
    let action = if ethernet {
        netbond_send_l2(packet.raw(), id, chosen)
    } else {
        netbond_send_l3(packet.raw(), id, chosen)
    };
    Ok(if Modes::has(feature::DUPLICATE) && action == COPIES {
        netbond_copy(packet.raw(), id)
    } else {
        action
    })
}

/// Turns the frame in `context` into a probe, as [`probe::ask`] does.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_ask(context: *mut __sk_buff, path: u32) -> i32 {
    let packet = Packet::new(TcContext::new(context));
    probe::ask::<Modes>(&packet, path).unwrap_or_else(|end| end.settle(&packet))
}

/// No action of the kernel's: the packet is encapsulated, and to be sent on several paths.
const COPIES: i32 = 0x6e62;

/// Sends the encapsulated packet in `context` on the paths that [`netbond_choose`] noted: copies, and on the
/// last one the packet itself.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_copy(context: *mut __sk_buff, id: u32) -> i32 {
    let packet = Packet::new(TcContext::new(context));
    let sent = copy(&packet, id);
    sent.unwrap_or_else(|end| end.settle(&packet))
}

#[inline(always)]
fn copy(packet: &Packet, id: u32) -> Result<i32, End> {
    let notes = maps::notes().ok_or(End::new(id, Fate::TxNoBond))?;
    // All that is needed of them: a copy may be sent by a device whose program takes notes of its own.
    let copied = notes.copied;
    let (packets, len) = (u64::from(copied.packets), u64::from(copied.len));
    let (mut rest, count) = (notes.copies.order, notes.copies.count);
    let (last_resorts, stand_ins) = (notes.copies.last_resorts, notes.copies.stand_ins);
    let mut over_ipv6 = copied.over_ipv6 != 0;
    let mut sent = 0;
    packet.forget_route();
    for place in 0..MAX_BOND_PATHS {
        let slot = order::first(rest);
        rest = order::rest(rest);
        let path_id = maps::path_of(id, slot);
        let (Some(path), Some(stats)) = (maps::path(path_id), maps::path_stats(path_id)) else {
            break;
        };
        // The first one's headers are there.
        if place != 0 {
            let to_ipv6 = is_over_ipv6::<Modes>(path);
            if readdress(packet, path, &copied, over_ipv6, to_ipv6).is_err() {
                break;
            }
            over_ipv6 = to_ipv6;
        }
        let last = place + 1 >= count;
        if !last && path.flags & PATH_NEIGHBOUR != 0 {
            let addressed = packet.address(path, over_ipv6, &mut notes.route);
            if addressed.is_err() {
                continue;
            }
        }
        // The first is none.
        stats.tx_copies += sent;
        sent = packets;
        stats.tx_packets += packets;
        stats.tx_bytes += len;
        match Copies::choice(last_resorts, stand_ins, slot) {
            Choice::Wheel => {}
            Choice::StandIn => stats.tx_stand_in += packets,
            Choice::LastResort => stats.tx_last_resort += packets,
        }
        if last {
            if path.flags & PATH_NEIGHBOUR == 0 {
                return Ok(redirect(path.ifindex));
            }
            if packet.to_one().is_err() {
                break;
            }
            return Ok(redirect_to_neighbour(path));
        }
        packet.send_copy(path.ifindex);
    }
    if sent == 0 {
        return Err(End::new(id, Fate::TxNoRoom));
    }
    // It was counted where it was sent.
    Ok(TC_ACT_SHOT)
}

/// The place of the first path, of those that are noted for copies, whose next hop's address is not known; of the last
/// one if it is of all.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_first_unknown(context: *mut __sk_buff, id: u32) -> u32 {
    let packet = Packet::new(TcContext::new(context));
    let Some(notes) = maps::notes() else {
        return 0;
    };
    let (mut rest, last) = (notes.copies.order, notes.copies.count.wrapping_sub(1));
    for place in 0..MAX_BOND_PATHS - 1 {
        if place >= last {
            break;
        }
        let Some(path) = maps::path(maps::path_of(id, order::first(rest))) else {
            break;
        };
        rest = order::rest(rest);
        let over_ipv6 = is_over_ipv6::<Modes>(path);
        if path.flags & PATH_NEIGHBOUR != 0
            && !packet.knows_neighbour(path, over_ipv6, &mut notes.route)
        {
            return place;
        }
    }
    last
}

/// Makes of an encapsulated packet one for another path of its bond, whose key is the same: its GRE
/// header stays. `over_ipv6` tells the header that is there, `to_ipv6` the one that it is to have.
#[inline(always)]
fn readdress(
    packet: &Packet,
    path: &Path,
    copied: &Copied,
    over_ipv6: bool,
    to_ipv6: bool,
) -> Result<(), Refused> {
    if Modes::has(feature::IPV6) && over_ipv6 != to_ipv6 {
        packet.change_outer(to_ipv6)?;
    }
    let inner = Inner {
        // The GRE header's matter.
        protocol: gre::IPV4,
        tos: copied.tos,
        ttl: copied.ttl,
        dont_fragment: copied.dont_fragment != 0,
    };
    let (payload_len, gre_len) = (copied.len, copied.gre_len as usize);
    if to_ipv6 {
        let outward = ipv6::Outward {
            inner,
            hop_limit: 0,
            payload_len,
            label: copied.label,
        };
        return packet.write_v6_header(EthHdr::LEN, &outward.head(gre_len), path);
    }
    let outward = Outward {
        local: &path.local,
        remote: &path.remote,
        sum: path.sum,
        inner,
        ttl: 0,
        payload_len,
        identification: copied.identification as u16,
    };
    packet.write(EthHdr::LEN, &outward.header(gre_len))
}

/// Sends the packet in `context` on the path that [`netbond_choose`] chose.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_send_l3(context: *mut __sk_buff, id: u32, chosen: u32) -> i32 {
    let packet = Packet::new(TcContext::new(context));
    let sent = match maps::bond(id) {
        Some(bond) => send_packet::<Modes>(&packet, id, bond, chosen),
        None => Err(End::new(id, Fate::TxNoBond)),
    };
    sent.unwrap_or_else(|end| end.settle(&packet))
}

/// The same for a frame.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_send_l2(context: *mut __sk_buff, id: u32, chosen: u32) -> i32 {
    let packet = Packet::new(TcContext::new(context));
    let sent = match maps::bond(id) {
        Some(bond) => send_frame::<Modes>(&packet, id, bond, chosen),
        None => Err(End::new(id, Fate::TxNoBond)),
    };
    sent.unwrap_or_else(|end| end.settle(&packet))
}

/// Sends the IP packet in a frame.
#[inline(always)]
fn send_packet<F: Features>(
    packet: &Packet,
    id: u32,
    bond: &Bond,
    chosen: u32,
) -> Result<i32, End> {
    let end = |fate| End::new(id, fate);
    if packet.has_vlan() || !matches!(packet.protocol(), gre::IPV4 | gre::IPV6) {
        return Err(end(Fate::TxNotIp));
    }
    let Some(inner) = inner(packet) else {
        // What is no IP packet may be the controller asking for a probe.
        let path = probe::asked(packet, id).ok_or(end(Fate::TxMalformed))?;
        return probe::ask::<F>(packet, path);
    };
    let way = way::<F>(id, bond, chosen)?;
    let (packets, len) = (packet.wire_packets(), packet.len() - EthHdr::LEN as u32);
    let (stamped, stamp) = stamp::<F>(&way, id, bond, packets);
    let gre = gre_header(way.path, inner, gre_layout(way.path, stamped), stamp);
    let outward = outward(way.path, bond, inner, len, stamped, stamp);
    let made = if is_over_ipv6::<F>(way.path) {
        let outward = outward_v6(&way, bond, inner, len, stamped, stamp);
        packet.encapsulate_v6(&outward, way.path, gre)
    } else {
        packet.encapsulate(&outward, gre)
    };
    made.map_err(|_| end(Fate::TxNoRoom))?;
    way.note_copied::<F>(id, &outward, gre.len(), stamp)?;
    way.leave::<F>(packet, id, packets, len)
}

/// Sends a whole frame, whatever is in it.
#[inline(always)]
fn send_frame<F: Features>(packet: &Packet, id: u32, bond: &Bond, chosen: u32) -> Result<i32, End> {
    let end = |fate| End::new(id, fate);
    if let Some(path) = probe::asked(packet, id) {
        return probe::ask::<F>(packet, path);
    }
    // First of all: the verifier walks through this once for each way that leads here.
    let way = way::<F>(id, bond, chosen)?;
    let tags = packet.take_tags().map_err(|_| end(Fate::TxTags))?;
    let header: Header = packet.read(0).ok_or(end(Fate::TxMalformed))?;
    let inner = match inner(packet) {
        Some(inner) => inner.in_frame(tags.count),
        None => Inner::OPAQUE,
    };
    let len = packet.len() + (tags.count * frame::TAG_LEN) as u32;
    let packets = packet.wire_packets();
    let (stamped, stamp) = stamp::<F>(&way, id, bond, packets);
    let outward = outward(way.path, bond, inner, len, stamped, stamp);
    let gre = gre_header(way.path, inner, gre_layout(way.path, stamped), stamp);
    let frame = frame::HEADER_LEN + tags.count * frame::TAG_LEN;
    let (made, at) = if is_over_ipv6::<F>(way.path) {
        let outward = outward_v6(&way, bond, inner, len, stamped, stamp);
        let made = packet.encapsulate_frame_v6(&outward, way.path, gre, frame);
        (made, EthHdr::LEN + ipv6::HEADER_LEN + gre.len())
    } else {
        let made = packet.encapsulate_frame(&outward, gre, frame);
        (made, EthHdr::LEN + ipv4::HEADER_LEN + gre.len())
    };
    made.and_then(|()| match tags.count {
        0 => packet.write(at, &header),
        1 => packet.write::<[u8; 18]>(at, &frame::tagged(header, [tags.tags[0]])),
        _ => packet.write::<[u8; 22]>(at, &frame::tagged(header, tags.tags)),
    })
    .map_err(|_| end(Fate::TxNoRoom))?;
    way.note_copied::<F>(id, &outward, gre.len(), stamp)?;
    way.leave::<F>(packet, id, packets, len)
}

/// Whether a packet is to have a number.
#[inline(always)]
pub(crate) fn is_numbered<F: Features>(way: &Way, bond: &Bond) -> bool {
    F::has(feature::NUMBERED) && bond.flags & BOND_NUMBERED != 0 && !way.settled
}

/// The place in its flow's strand of a packet that stands for so many; false where it has none.
#[inline(always)]
fn stamp<F: Features>(way: &Way, id: u32, bond: &Bond, packets: u32) -> (bool, Stamp) {
    if !is_numbered::<F>(way, bond) {
        return (false, Stamp::NONE);
    }
    match number(way, id, packets) {
        Some(stamp) => (true, stamp),
        None => (false, Stamp::NONE),
    }
}

/// The next place in its flow's strand, for a packet that stands for so many.
#[inline(always)]
pub(crate) fn number(way: &Way, id: u32, packets: u32) -> Option<Stamp> {
    Some(maps::stamp(id, way.flow, packets)?.copied(way.copied))
}

/// The GRE header of a packet.
#[inline(always)]
pub(crate) fn gre_header(path: &Path, inner: Inner, layout: Layout, stamp: Stamp) -> gre::Header {
    gre::Header::new(inner.protocol, layout, path.key, stamp.to_field())
}

/// What is in the GRE header of a path's packet.
#[inline(always)]
pub(crate) const fn gre_layout(path: &Path, stamped: bool) -> Layout {
    Layout {
        key: path.flags & PATH_KEY != 0,
        sequence: stamped,
    }
}

/// The outer headers of a packet of `len` bytes.
#[inline(always)]
pub(crate) fn outward<'a>(
    path: &'a Path,
    bond: &Bond,
    inner: Inner,
    len: u32,
    stamped: bool,
    stamp: Stamp,
) -> Outward<'a> {
    let identification = if stamped {
        stamp.identification()
    } else if inner.dont_fragment {
        0
    } else {
        random() as u16
    };
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

/// The same over IPv6.
#[inline(always)]
pub(crate) const fn outward_v6(
    way: &Way,
    bond: &Bond,
    inner: Inner,
    len: u32,
    stamped: bool,
    stamp: Stamp,
) -> ipv6::Outward {
    ipv6::Outward {
        inner,
        hop_limit: bond.ttl,
        payload_len: len,
        label: if stamped {
            numbered_label(stamp)
        } else {
            ipv6::flow_label(way.flow)
        },
    }
}

/// The flow label of a packet that has a number: its strand's, whose packets must keep their order on
/// the path.
#[inline(always)]
const fn numbered_label(stamp: Stamp) -> u32 {
    ipv6::flow_label(stamp.strand)
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
pub(crate) struct Way {
    pub(crate) path_id: u32,
    pub(crate) path: &'static Path,
    pub(crate) stats: &'static mut PathStats,
    choice: Choice,
    /// Where packets of its class are counted, or [`NO_CLASS`].
    class: u32,
    /// Hash of its flow, where some feature needs one.
    pub(crate) flow: u32,
    /// Whether it takes others as well.
    copied: bool,
    /// Whether all of its flow takes it, so that no number is needed.
    settled: bool,
}

/// In [`Way::class`]: it is of none.
const NO_CLASS: u32 = u32::MAX;

/// The path that [`netbond_choose`] chose, or the wheel's next.
#[inline(always)]
fn way<F: Features>(id: u32, bond: &Bond, chosen: u32) -> Result<Way, End> {
    if !F::has(feature::ALL) {
        let ticket = maps::ticket(id).ok_or(End::new(id, Fate::TxNoBond))?;
        let flags = |path| maps::path_flags(maps::path_of(id, path));
        let (path, choice) = select(bond, ticket, flags).ok_or(End::new(id, Fate::TxNoPath))?;
        return Way::new(id, path, choice);
    }
    let way = Way::chosen(id, chosen)?;
    let notes = maps::notes().ok_or(End::new(id, Fate::TxNoBond))?;
    Ok(Way {
        copied: F::has(feature::DUPLICATE) && notes.copies.count > 1,
        ..way.noted::<F>(notes)
    })
}

/// Chooses the path of the packet in `context` as its class says, or the bond. Returns the path, and
/// from bit [`CHOICE`] on why it is that, or that there is none; the rest is in this CPU's notes.
///
/// A function of its own and with a symbol: the verifier walks through it once, knowing nothing of its
/// caller, and through what follows not once for each way in which a path may be found.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netbond_choose(context: *mut __sk_buff, id: u32) -> u32 {
    let packet = Packet::new(TcContext::new(context));
    match by_mode::<Modes>(&packet, id) {
        Some(found) => chosen(found),
        None => u32::from(NO_BOND) << CHOICE,
    }
}

/// What a function tells its caller of a path that was found: see [`Way::chosen`].
#[inline(always)]
pub(crate) const fn chosen(found: Option<(u32, Choice)>) -> u32 {
    match found {
        Some((path, choice)) => path | (choice as u32) << CHOICE,
        None => (NO_PATH as u32) << CHOICE,
    }
}

const CHOICE: u32 = 8;
const WHEEL: u8 = Choice::Wheel as u8;
const STAND_IN: u8 = Choice::StandIn as u8;
const LAST_RESORT: u8 = Choice::LastResort as u8;
const NO_PATH: u8 = 16;
const NO_BOND: u8 = 17;

/// The path and why it is that, `None` where none can take the packet; `None` where there is no such
/// bond.
#[inline(always)]
fn by_mode<F: Features>(packet: &Packet, id: u32) -> Option<Option<(u32, Choice)>> {
    let bond = maps::bond(id)?;
    let notes = maps::notes()?;
    if F::has(feature::DUPLICATE) {
        notes.copies.count = 0;
    }
    let lane = find_lane::<F, _>(packet, id, bond, packet.mark(), notes)?;
    if F::has(feature::DUPLICATE) && lane.mode == Mode::Duplicate as u32 {
        let flags = |path| maps::path_flags(maps::path_of(id, path));
        let copies = &mut notes.copies;
        copies.find(lane.order, lane.copies, flags);
        // The last one has the packet itself, which the kernel sends whether or not anybody is known to answer.
        let itself = netbond_first_unknown(packet.raw(), id);
        copies.order = order::exchange(copies.order, itself, copies.count.wrapping_sub(1));
        let first = order::first(copies.order);
        let choice = Copies::choice(copies.last_resorts, copies.stand_ins, first);
        return Some((copies.count != 0).then_some((first, choice)));
    }
    let len = wire_len(packet.len(), packet.wire_packets());
    in_lane::<F>(id, bond, lane, len, notes)
}

/// The lane of a packet with this mark: of its class, or of the bond. Notes both, and its flow.
#[inline(always)]
pub(crate) fn find_lane<F: Features, C: Context>(
    packet: &Packet<C>,
    id: u32,
    bond: &Bond,
    mark: u32,
    notes: &mut Notes,
) -> Option<&'static Lane> {
    const FLOWS: u32 =
        feature::CLASSES | feature::FLOW | feature::FLOWLET | feature::NUMBERED | feature::IPV6;
    (notes.class, notes.flow, notes.settled) = (NO_CLASS, 0, 0);
    if F::has(FLOWS) {
        notes.subject = subject(packet, mark);
        compiler_fence(Ordering::SeqCst);
        notes.flow = notes.subject.flow.hash();
    }
    notes.lane = id;
    if F::has(feature::CLASSES) {
        let rule = |class| Some(&maps::class(id, class)?.rule);
        if let Some(place) = classify(&notes.subject, bond.classes, rule) {
            notes.lane = maps::lane_of(id, place);
            notes.class = maps::class(id, place)?.counter;
        }
    }
    compiler_fence(Ordering::SeqCst);
    maps::lane(notes.lane)
}

/// The path that a lane's mode chooses for a packet that takes so many bytes of a path's, as above.
#[inline(always)]
pub(crate) fn in_lane<F: Features>(
    id: u32,
    bond: &Bond,
    lane: &Lane,
    len: u32,
    notes: &mut Notes,
) -> Option<Option<(u32, Choice)>> {
    let flags = |path| maps::path_flags(maps::path_of(id, path));
    let preferred = if F::has(feature::FLOW) && lane.mode == Mode::Flow as u32 {
        maps::flow_order(id, notes.flow)
    } else if F::has(feature::ACTIVE_BACKUP) && lane.mode == Mode::ActiveBackup as u32 {
        Some(lane.order)
    } else {
        None
    };
    if let Some(order) = preferred {
        return Some(select::by_order(order, flags));
    }
    let (shares, turns) = maps::turns(id, lane.shares)?;
    let mut flowlet = None;
    let settled = F::has(feature::MEASURED)
        && lane.mode == Mode::Adaptive as u32
        && shares.settled_until != 0
        && monotonic_coarse() >> SETTLED_UNIT < u64::from(shares.settled_until);
    notes.settled = u32::from(settled);
    if F::has(feature::FLOWLET) && (lane.mode == Mode::Flowlet as u32 || settled) {
        let last = maps::flowlet(id, notes.flow)?;
        let now = monotonic();
        let gap = if settled { SETTLED_GAP } else { maps::gap(id) };
        let held = last.held(now, gap);
        last.at_ns = now;
        if let Some(path) = held
            && flags(path) & PATH_USABLE != 0
        {
            turns.took(shares, path, len);
            return Some(Some((path, Choice::Wheel)));
        }
        flowlet = Some(last);
    }
    let taken = turns.take(shares, &mut notes.keys, bond.paths, len, flags);
    if let (Some(last), Some((path, _))) = (flowlet, taken) {
        last.path = path;
    }
    Some(taken)
}

/// A flow that keeps its path may leave it after such a pause, ns: longer than any path is.
const SETTLED_GAP: u64 = 1_000_000_000;

/// What rules and flows are made of: the IP packet in the frame, behind tags where there are any.
#[inline(always)]
fn subject<C: Context>(packet: &Packet<C>, mark: u32) -> Subject {
    let (mut start, mut protocol) = (EthHdr::LEN, packet.protocol());
    // Those that are not beside the frame: at most two are sent on.
    for _ in 0..2 {
        if frame::is_tag(protocol) {
            protocol = packet.read(start + 2).unwrap_or_default();
            start += frame::TAG_LEN;
        }
    }
    let (flow, tos) = flow(packet, start, protocol);
    Subject::new(flow, tos, mark)
}

/// The flow of the packet of this EtherType at `start`, and its TOS.
#[inline(always)]
pub(crate) fn flow<C: Context>(packet: &Packet<C>, start: usize, protocol: [u8; 2]) -> (Flow, u8) {
    let read = |at| packet.try_read(start + at);
    match protocol {
        gre::IPV4 => match packet.try_read::<Ipv4Hdr>(start) {
            (true, header) => (Flow::from_ipv4(&header, read), header.tos),
            (false, _) => (Flow::NONE, 0),
        },
        gre::IPV6 => match packet.try_read::<[u8; Ipv6Hdr::LEN]>(start) {
            (true, header) => (
                Flow::from_ipv6(&header, read),
                ipv6::traffic_class(header[0], header[1]),
            ),
            (false, _) => (Flow::NONE, 0),
        },
        _ => (Flow::NONE, 0),
    }
}

impl Way {
    /// What [`chosen`] tells, for a packet of no class.
    #[inline(always)]
    pub(crate) fn chosen(id: u32, chosen: u32) -> Result<Self, End> {
        let choice = match (chosen >> CHOICE) as u8 {
            WHEEL => Choice::Wheel,
            STAND_IN => Choice::StandIn,
            LAST_RESORT => Choice::LastResort,
            NO_PATH => return Err(End::new(id, Fate::TxNoPath)),
            _ => return Err(End::new(id, Fate::TxNoBond)),
        };
        Self::new(id, chosen & (MAX_BOND_PATHS - 1), choice)
    }

    /// That of the packet of which [`find_lane`] and [`in_lane`] took notes.
    #[inline(always)]
    pub(crate) fn noted<F: Features>(self, notes: &Notes) -> Self {
        Self {
            class: notes.class,
            flow: notes.flow,
            settled: F::has(feature::MEASURED) && notes.settled != 0,
            ..self
        }
    }

    /// That of a packet of no class.
    #[inline(always)]
    fn new(id: u32, path: u32, choice: Choice) -> Result<Self, End> {
        let no_path = || End::new(id, Fate::TxNoPath);
        let path_id = maps::path_of(id, path);
        Ok(Self {
            path_id,
            path: maps::path(path_id).ok_or_else(no_path)?,
            stats: maps::path_stats(path_id).ok_or_else(no_path)?,
            choice,
            class: NO_CLASS,
            flow: 0,
            copied: false,
            settled: false,
        })
    }

    /// Where the packet is to have copies, notes what they have in common. The headers are those of one
    /// over IPv4, whatever its path's are, before a GRE header of so many bytes.
    #[inline(always)]
    fn note_copied<F: Features>(
        &self,
        id: u32,
        outward: &Outward<'_>,
        gre_len: usize,
        stamp: Stamp,
    ) -> Result<(), End> {
        if !F::has(feature::DUPLICATE) || !self.copied {
            return Ok(());
        }
        let notes = maps::notes().ok_or(End::new(id, Fate::TxNoBond))?;
        let copied = &mut notes.copied;
        copied.gre_len = gre_len as u32;
        copied.identification = u32::from(outward.identification);
        copied.label = numbered_label(stamp);
        copied.tos = outward.inner.tos;
        copied.ttl = outward.ttl();
        copied.dont_fragment = u8::from(outward.inner.dont_fragment);
        copied.over_ipv6 = u8::from(is_over_ipv6::<F>(self.path));
        Ok(())
    }

    /// Counts an encapsulated packet that was `len` bytes before, and sends it.
    #[inline(always)]
    fn leave<F: Features>(
        self,
        packet: &Packet,
        id: u32,
        packets: u32,
        len: u32,
    ) -> Result<i32, End> {
        self.count_class(packets, len);
        if F::has(feature::DUPLICATE) && self.copied {
            let notes = maps::notes().ok_or(End::new(id, Fate::TxNoBond))?;
            (notes.copied.packets, notes.copied.len) = (packets, len);
            return Ok(COPIES);
        }
        if self.path.flags & PATH_NEIGHBOUR != 0 {
            packet.to_one().map_err(|_| End::new(id, Fate::TxNoRoom))?;
        }
        let path = self.path;
        self.count(packets, len);
        Ok(leave(packet, path))
    }

    /// Counts packets that were `len` bytes in all before, as those of their class.
    #[inline(always)]
    pub(crate) fn count_class(&self, packets: u32, len: u32) {
        if self.class != NO_CLASS {
            maps::count_class(self.class, u64::from(packets), u64::from(len));
        }
    }

    /// Counts packets that were `len` bytes in all before, as sent on the path.
    #[inline(always)]
    pub(crate) fn count(self, packets: u32, len: u32) {
        let (stats, packets) = (self.stats, u64::from(packets));
        stats.tx_packets += packets;
        stats.tx_bytes += u64::from(len);
        match self.choice {
            Choice::Wheel => {}
            Choice::StandIn => stats.tx_stand_in += packets,
            Choice::LastResort => stats.tx_last_resort += packets,
        }
    }
}

/// Sends an encapsulated packet out of its path's device.
#[inline(always)]
pub(crate) fn leave(packet: &Packet, path: &Path) -> i32 {
    packet.forget_route();
    if path.flags & PATH_NEIGHBOUR != 0 {
        redirect_to_neighbour(path)
    } else {
        redirect(path.ifindex)
    }
}
