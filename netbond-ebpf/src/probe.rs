//! Probes in the kernel: ask, answer, take answers in (netbond_common::probe says what they prove).

use netbond_common::{
    abi::{PATH_KEY, Path},
    fate::Fate,
    gre::{self, Layout},
    inner::Inner,
    ipv4::{self, Outward},
    ipv6,
    probe::{self, Account, Asker, Kind, Probe},
};
use network_types::eth::EthHdr;

use crate::{
    egress::leave,
    end::End,
    features::{Features, Modes, is_over_ipv6},
    maps,
    packet::{Packet, Refused, monotonic},
};

/// The path for which a frame of the controller's ([`probe::TRIGGER`]) asks for a probe: its id.
/// `None` where the frame is any other.
#[inline(always)]
pub(crate) fn asked(packet: &Packet, bond: u32) -> Option<u32> {
    let first: u8 = packet.read(EthHdr::LEN)?;
    let len = packet.len() - EthHdr::LEN as u32;
    // Only this host asks: not a frame that was bridged or routed into the bond.
    if packet.protocol() != gre::IPV4
        || first & probe::TRIGGER != probe::TRIGGER
        || !packet.is_ours()
        || (len as usize) < probe::LEN
    {
        return None;
    }
    // Nor anybody's who only shares the device.
    let [a, b, c]: [u32; 3] = packet.read(0)?;
    (a | b | c == 0).then(|| maps::path_of(bond, u32::from(first & !probe::TRIGGER)))
}

/// Turns such a frame into a request on the path, of the length that it asks for.
#[inline(always)]
pub(crate) fn ask<F: Features>(packet: &Packet, path_id: u32) -> Result<i32, End> {
    let end = |fate| End::new(maps::bond_of(path_id), fate);
    // First of all, and into the packet: the verifier walks through the sum once for each way that leads
    // here, and there is no room on the stack later.
    let account = account(path_id, maps::sent(path_id));
    packet
        .write(EthHdr::LEN + probe::ASKER_AT, &account)
        .map_err(|_| end(Fate::TxNoRoom))?;
    let wanted: [u8; 2] = packet.read(EthHdr::LEN + 1).ok_or(end(Fate::TxNoRoom))?;
    packet
        .pad(EthHdr::LEN + usize::from(u16::from_be_bytes(wanted)))
        .map_err(|_| end(Fate::TxNoRoom))?;
    let len = packet.len() - EthHdr::LEN as u32;
    let path = maps::path(path_id).ok_or(end(Fate::TxNoPath))?;
    let live = maps::live(path_id).ok_or(end(Fate::TxNoPath))?;
    if path.ifindex == 0 {
        return Err(end(Fate::TxNoPath));
    }
    let request = probe::request(live, path_id, monotonic(), maps::secret());
    wrap::<F>(packet, path, len)
        .and_then(|len| packet.write(EthHdr::LEN + len, &request))
        .map_err(|_| end(Fate::TxNoRoom))?;
    Ok(leave(packet, path))
}

/// Handles a probe received on a path.
#[inline(always)]
pub(crate) fn receive<const L3: usize>(
    packet: &Packet,
    path_id: u32,
    outer_len: usize,
) -> Result<i32, End> {
    let end = |fate| End::new(maps::bond_of(path_id), fate);
    let start = L3 + outer_len;
    let received: Probe = packet.read(start).ok_or(end(Fate::RxProbeMalformed))?;
    if (packet.len() as usize) < start + probe::LEN {
        return Err(end(Fate::RxProbeMalformed));
    }
    let path = maps::path(path_id).ok_or(end(Fate::RxForeign))?;
    let live = maps::live(path_id).ok_or(end(Fate::RxForeign))?;
    let kind = received.kind().ok_or(end(Fate::RxProbeMalformed))?;
    let now = monotonic();
    match kind {
        Kind::Request => {
            // Ours never has options: it would have to be lengthened or cut to be answered.
            if outer_len != header_len::<Modes>(path) || path.ifindex == 0 {
                return Err(end(Fate::RxProbeMalformed));
            }
            let (answer, asker) =
                probe::answer(live, path_id, &received, now, maps::secret()).map_err(end)?;
            let account = account(path_id, maps::received(path_id));
            let len = packet.len() - start as u32;
            turn_round::<L3>(packet, path, len, &answer)
                .and_then(|()| packet.write(start + probe::PEER_AT, &account))
                .and_then(|()| packet.write(start + probe::CLOCK_AT, &now.to_be_bytes()))
                .map_err(|_| end(Fate::RxNoDecap))?;
            let fate = match asker {
                Asker::Peer => Fate::RxProbe,
                Asker::Stranger => Fate::RxProbeStranger,
            };
            end(fate).settle(packet);
            Ok(leave(packet, path))
        }
        Kind::Answer => {
            let rtt_ns = probe::accept(live, &received, now).map_err(end)?;
            let (_, accounts) = packet.load(start + probe::ASKER_AT);
            let len = packet.len() - L3 as u32;
            let sample = probe::sample(path_id, &received, &accounts, now, rtt_ns, len);
            maps::report(sample);
            Err(end(Fate::RxProbe))
        }
    }
}

/// What this end says of itself, with what it counted on the path: packets, bytes.
#[inline(always)]
fn account(path_id: u32, (packets, bytes): (u64, u64)) -> Account {
    let flags = maps::bond(maps::bond_of(path_id)).map_or(0, |bond| bond.flags);
    Account::new(flags, packets, bytes)
}

/// Bytes of the outer headers that this end sends on a path.
#[inline(always)]
fn header_len<F: Features>(path: &Path) -> usize {
    let ip = if is_over_ipv6::<F>(path) {
        ipv6::HEADER_LEN
    } else {
        ipv4::HEADER_LEN
    };
    ip + gre_header(path).len()
}

/// The GRE header of a probe. Probes are no part of any sequence.
#[inline(always)]
const fn gre_header(path: &Path) -> gre::Header {
    let layout = Layout {
        key: path.flags & PATH_KEY != 0,
        sequence: false,
    };
    gre::Header::new(probe::PROTOCOL, layout, path.key, [0; gre::FIELD_LEN])
}

/// What the outer headers say of a probe.
const INNER: Inner = Inner {
    protocol: probe::PROTOCOL,
    tos: probe::TOS,
    ttl: probe::TTL,
    dont_fragment: true,
};

/// The outer headers of a probe of `len` bytes.
#[inline(always)]
const fn outward(path: &Path, len: u32) -> Outward<'_> {
    Outward {
        local: &path.local,
        remote: &path.remote,
        sum: path.sum,
        inner: INNER,
        ttl: 0,
        payload_len: len,
        identification: 0,
    }
}

/// The same over IPv6. All have one label, and so the same way.
#[inline(always)]
const fn outward_v6(len: u32) -> ipv6::Outward {
    ipv6::Outward {
        inner: INNER,
        hop_limit: 0,
        payload_len: len,
        label: ipv6::flow_label(0),
    }
}

/// Puts outer headers before a probe of `len` bytes; returns their length.
#[inline(always)]
fn wrap<F: Features>(packet: &Packet, path: &Path, len: u32) -> Result<usize, Refused> {
    if is_over_ipv6::<F>(path) {
        packet.encapsulate_v6(&outward_v6(len), path, gre_header(path))?;
    } else {
        packet.encapsulate(&outward(path, len), gre_header(path))?;
    }
    Ok(header_len::<F>(path))
}

/// Overwrites a received request with its answer.
#[inline(always)]
fn turn_round<const L3: usize>(
    packet: &Packet,
    path: &Path,
    len: u32,
    answer: &Probe,
) -> Result<(), Refused> {
    // Its GRE header stays: the same key or none, and nothing else.
    let gre_len = gre_header(path).len();
    if is_over_ipv6::<Modes>(path) {
        packet.write_v6_header(L3, &outward_v6(len).head(gre_len), path)?;
    } else {
        packet.write(L3, &outward(path, len).header(gre_len))?;
    }
    packet.write(L3 + header_len::<Modes>(path), answer)
}
