//! Packets that nobody should send, by the programs in this kernel: valid ones of every kind, mutated,
//! and what the programs make of each compared with a reference that is written after the documents
//! alone and reads headers with a library of others.
//!
//! `NETBOND_SEED` repeats a run, `NETBOND_PACKETS` says how many packets each setup gets, and
//! `NETBOND_BATCH=1` compares the counters after each packet instead of after many.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use common::random::Random;
use common::{
    BOND, Kernel, MAC, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, Wrap, ipv4_frame, ipv6_frame,
    outer, outer_v6, path_id,
};
use etherparse::{
    IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv6HeaderSlice, PacketBuilder, checksum::Sum16BitWords,
};
use netbond::{loader::ingress_program, tables::Raw};
use netbond_common::{
    abi::{BOND_ETHERNET, BOND_IN_ORDER, BOND_NUMBERED, NO_BOND, PathStats, TunnelKey},
    fate::{Fate, Verdict},
    ipv4,
    names::feature,
    probe::{LEN, RATE_WINDOW_NS, STRANGER_LIMIT, TRIGGER},
    sequence::Stamp,
};

const PATHS: u32 = 2;
const ETHERNET: usize = 14;
/// The longest probe that the controller asks for, bytes. The kernel makes no packet of 64 kB.
const LONGEST_PROBE: u16 = 9216;
const GRE: u8 = 47;
/// GRE payload types: a frame, a probe.
const BRIDGED: u16 = 0x6558;
const PROBE: u16 = 0x88b5;
/// Source address of the frames that a bond device receives.
const FROM: [u8; 6] = *b"\x02bond0";
/// Longer frames tell nothing new.
const LONGEST: usize = 1600;

/// How the bond under test is configured.
#[derive(Clone, Copy, Debug)]
struct Setup {
    key: Option<u32>,
    /// `BOND_*`.
    flags: u8,
    /// Its second path is over IPv6.
    mixed: bool,
}

impl Setup {
    fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn is_over_ipv6(self, slot: u32) -> bool {
        self.mixed && slot == 1
    }

    /// Bytes of a path's outer IP header.
    fn ip_len(self, slot: u32) -> usize {
        if self.is_over_ipv6(slot) { 40 } else { 20 }
    }

    /// Bytes of the outer headers of a packet that is not numbered.
    fn overhead(self, slot: u32) -> usize {
        self.ip_len(slot) + 4 + if self.key.is_some() { 4 } else { 0 }
    }

    /// `feature` bits.
    fn features(self) -> u32 {
        let with = |has: bool, feature| if has { feature } else { 0 };
        with(self.has(BOND_NUMBERED), feature::NUMBERED) | with(self.mixed, feature::IPV6)
    }

    fn kernel(self) -> Kernel {
        let mut kernel = Kernel::with_features(&[1; PATHS as usize], self.key, self.features());
        kernel.set_order(self.flags, PATHS);
        for slot in 0..PATHS {
            let (local, remote) = outer(slot);
            let tunnel = |source: [u8; 4]| TunnelKey {
                source: ipv4::mapped(source),
                destination: ipv4::mapped(local.octets()),
                key: self.key.unwrap_or(0).to_be_bytes(),
                has_key: u32::from(self.key.is_some()),
            };
            if self.is_over_ipv6(slot) {
                kernel.over_ipv6(slot);
                let tunnels = &mut kernel.tables.tunnels;
                tunnels.remove(&Raw(tunnel(remote.octets()))).unwrap();
            } else {
                let from = Raw(tunnel(l3_remote(slot)));
                let tunnels = &mut kernel.tables.tunnels;
                tunnels.insert(from, path_id(slot), 0).unwrap();
            }
        }
        kernel
    }
}

/// The far end of an IPv4 path for the programs of devices without an Ethernet header. A test run takes
/// bytes 12 and 13 for an EtherType all the same: there is the source address, which has to begin like IPv4's.
fn l3_remote(slot: u32) -> [u8; 4] {
    [8, 0, slot as u8, 6]
}

/// What the reference says of a received packet.
enum Due {
    /// It takes no path.
    Ends(u32, Fate),
    /// It is handed to the bond as this frame.
    Leaves(Vec<u8>),
    /// It is a probe whose outer headers have this length.
    Probe { outer_len: usize },
}

/// What the reference knows of a received packet's outer headers.
struct Outer {
    slot: u32,
    /// From the start of the frame to the end of the GRE header.
    end: usize,
    protocol: u16,
    ecn: u8,
    numbered: bool,
}

/// What the reference knows of an outer IP header around GRE.
struct OuterIp {
    /// The paths between its addresses.
    slots: Vec<u32>,
    /// From the start of the frame to the end of the IP header.
    end: usize,
    ecn: u8,
}

/// RFC 791.
fn read_outer_v4(setup: Setup, l3: usize, frame: &[u8]) -> Result<OuterIp, Fate> {
    // Options may be cut: whatever is not GRE's first fragment, or not GRE, is told without them.
    let mut longest = [0; 60];
    let there = frame.len().min(l3 + longest.len()) - l3;
    longest[..there].copy_from_slice(&frame[l3..l3 + there]);
    if there < 20 {
        return Err(Fate::RxForeign);
    }
    let ip = Ipv4HeaderSlice::from_slice(&longest).map_err(|_| Fate::RxForeign)?;
    if ip.protocol() != IpNumber(GRE) {
        return Err(Fate::RxForeign);
    }
    if ip.is_fragmenting_payload() {
        return Err(Fate::RxFragment);
    }
    let between = |slot: &u32| {
        let (local, remote) = outer(*slot);
        let remotes = [remote.octets(), l3_remote(*slot)];
        remotes.contains(&ip.source()) && ip.destination() == local.octets()
    };
    let slots = (0..PATHS).filter(|&slot| !setup.is_over_ipv6(slot));
    Ok(OuterIp {
        slots: slots.filter(between).collect(),
        end: l3 + ip.slice().len(),
        ecn: ip.ecn().value(),
    })
}

/// RFC 8200. No extension header but a fragment's is told from what is not GRE.
fn read_outer_v6(setup: Setup, l3: usize, frame: &[u8]) -> Result<OuterIp, Fate> {
    let ip = Ipv6HeaderSlice::from_slice(&frame[l3..]).map_err(|_| Fate::RxForeign)?;
    let end = l3 + ip.slice().len();
    match ip.next_header() {
        IpNumber(GRE) => {}
        IpNumber::IPV6_FRAGMENTATION_HEADER if frame.get(end) == Some(&GRE) => {
            return Err(Fate::RxFragment);
        }
        _ => return Err(Fate::RxForeign),
    }
    // No path is between addresses that stand for IPv4's, whatever follows.
    if ip.source_addr().to_ipv4_mapped().is_some() {
        return Err(Fate::RxForeign);
    }
    let between = |slot: &u32| {
        let (local, remote) = outer_v6(*slot);
        (ip.source_addr(), ip.destination_addr()) == (remote, local)
    };
    let slots = (0..PATHS).filter(|&slot| setup.is_over_ipv6(slot));
    Ok(OuterIp {
        slots: slots.filter(between).collect(),
        end,
        ecn: ip.traffic_class() & 3,
    })
}

/// Finds the path of a received frame whose IP header is at `l3`: RFC 2784, RFC 2890.
fn read_outer(setup: Setup, l3: usize, frame: &[u8]) -> Result<Outer, Fate> {
    // A test run's device has the address 0.
    if l3 != 0 && frame[..6] != [0; 6] {
        return Err(Fate::RxForeign);
    }
    let ip = match frame[12..14] {
        [0x08, 0x00] => read_outer_v4(setup, l3, frame),
        [0x86, 0xdd] if setup.mixed => read_outer_v6(setup, l3, frame),
        _ => Err(Fate::RxForeign),
    }?;
    let word = |at: usize| -> Result<[u8; 4], Fate> {
        let bytes = frame.get(at..at + 4).ok_or(Fate::RxForeign)?;
        Ok(bytes.try_into().unwrap())
    };
    let [flags, more, a, b] = word(ip.end)?;
    let (checksum, routing) = (flags & 0x80 != 0, flags & 0x40 != 0);
    let (has_key, has_sequence) = (flags & 0x20 != 0, flags & 0x10 != 0);
    if checksum || routing || flags & 0x0f != 0 || more != 0 {
        return Err(Fate::RxGreFlags);
    }
    let mut end = ip.end + 4;
    let mut key = None;
    if has_key {
        key = Some(u32::from_be_bytes(word(end)?));
        end += 4;
    }
    if has_sequence {
        word(end)?;
        end += 4;
    }
    match ip.slots[..] {
        [slot] if key == setup.key => Ok(Outer {
            slot,
            end,
            protocol: u16::from_be_bytes([a, b]),
            ecn: ip.ecn,
            numbered: has_sequence && setup.has(BOND_NUMBERED),
        }),
        _ => Err(Fate::RxForeign),
    }
}

/// The inner ECN field after decapsulation, `None` where the packet is dropped: figure 4 of RFC 6040, by
/// the inner and the outer field.
fn figure_4(inner: u8, outer: u8) -> Option<u8> {
    const NOT_ECT: u8 = 0b00;
    const ECT_1: u8 = 0b01;
    const ECT_0: u8 = 0b10;
    const CE: u8 = 0b11;
    match (inner, outer) {
        (NOT_ECT, CE) => None,
        (_, CE) | (CE, _) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// How the inner packet at the start of `packet` is changed: bytes at offsets from its start.
fn congestion(packet: &[u8], protocol: u16, outer: u8) -> Result<Vec<(usize, u8)>, Fate> {
    match protocol {
        0x0800 => {
            let first = packet.get(..20).ok_or(Fate::RxMalformed)?;
            if first[0] >> 4 != 4 || first[0] & 0x0f < 5 {
                return Err(Fate::RxMalformed);
            }
            let tos = first[1];
            let ecn = figure_4(tos & 3, outer).ok_or(Fate::RxEcn)?;
            if ecn == tos & 3 {
                return Ok(Vec::new());
            }
            let new = tos & !3 | ecn;
            // RFC 1624: HC' = ~(~HC + ~m + m').
            let not = |high: u8, low: u8| [!high, !low];
            let [high, low] = Sum16BitWords::new()
                .add_2bytes(not(first[10], first[11]))
                .add_2bytes(not(first[0], tos))
                .add_2bytes([first[0], new])
                .ones_complement()
                .to_ne_bytes();
            Ok(vec![(1, new), (10, high), (11, low)])
        }
        0x86dd => {
            let header = Ipv6HeaderSlice::from_slice(packet).map_err(|_| Fate::RxMalformed)?;
            let inner = header.traffic_class() & 3;
            let ecn = figure_4(inner, outer).ok_or(Fate::RxEcn)?;
            if ecn == inner {
                return Ok(Vec::new());
            }
            Ok(vec![(0, packet[0]), (1, packet[1] & !0x30 | ecn << 4)])
        }
        _ => Err(Fate::RxProtocol),
    }
}

/// What is to become of a received frame.
fn due(setup: Setup, l3: usize, frame: &[u8], outer: &Outer) -> Due {
    let ends = |fate| Due::Ends(BOND, fate);
    if outer.protocol == PROBE {
        return Due::Probe {
            outer_len: outer.end - l3,
        };
    }
    let ethernet = setup.has(BOND_ETHERNET);
    if ethernet && outer.protocol != BRIDGED {
        return ends(Fate::RxProtocol);
    }
    let inner = &frame[outer.end..];
    let (header, packet, marks);
    if ethernet {
        let Some(found) = inner.get(..ETHERNET) else {
            return ends(Fate::RxMalformed);
        };
        header = found.to_vec();
        packet = &inner[ETHERNET..];
        let protocol = u16::from_be_bytes([found[12], found[13]]);
        // What is no IP packet is carried as a bridge would.
        marks = match congestion(packet, protocol, outer.ecn) {
            Err(Fate::RxEcn) => return ends(Fate::RxEcn),
            found => found.unwrap_or_default(),
        };
    } else {
        marks = match congestion(inner, outer.protocol, outer.ecn) {
            Err(fate) => return ends(fate),
            Ok(marks) => marks,
        };
        header = [&MAC[..], &FROM, &outer.protocol.to_be_bytes()].concat();
        packet = inner;
    }
    let mut left = packet.to_vec();
    if ethernet && left.len() < 20 {
        left.resize(20, 0);
    }
    // The kernel takes nothing away that leaves less than an IP header: of a packet that stays IPv6, and of
    // frames that it takes for such, IPv6's.
    let stays_ipv6 = setup.is_over_ipv6(outer.slot) && header[12..14] == [0x86, 0xdd];
    let shortest = if stays_ipv6 { 40 } else { 20 };
    // A test run of a device without Ethernet takes the first 14 bytes for its header: they stay, in place of
    // as many behind them.
    let kept = ETHERNET - l3;
    if left.len() < kept + shortest {
        return ends(Fate::RxNoDecap);
    }
    left[..kept].copy_from_slice(&frame[..kept]);
    for (at, byte) in marks {
        left[at] = byte;
    }
    Due::Leaves([header, left].concat())
}

/// Valid packets of every kind.
struct Source {
    random: Random,
    setup: Setup,
    /// Sequence numbers, in order but for those that a mutation changes.
    count: u64,
}

impl Source {
    /// An IP packet in a frame.
    fn packet(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let len = 48 + random.one_of(&[0, 1, 4, 20, 92, 500, 1200]);
        match random.below(7) {
            0 => ipv4_frame(len),
            1 => ipv6_frame(len),
            2 => {
                let mut frame = Vec::new();
                let (source, to) = ([192, 0, 2, random.byte()], [198, 51, 100, 1]);
                let flags = random.next();
                PacketBuilder::ethernet2([2; 6], [0; 6])
                    .ipv4(source, to, random.byte())
                    .tcp(4000, 5000, flags as u32, 1000)
                    .write(&mut frame, &vec![7; len])
                    .unwrap();
                frame
            }
            // Options, all ECN codepoints, a fragment, and nothing behind the header.
            3 => {
                let mut header =
                    Ipv4Header::new(len as u16, 9, IpNumber::ICMP, [10, 1, 2, 3], [10, 4, 5, 6])
                        .unwrap();
                header.ecn = random.one_of(&[0_u8, 1, 2, 3]).try_into().unwrap();
                let options = vec![1; 4 * random.below(11)];
                header.options = options.as_slice().try_into().unwrap();
                header.more_fragments = random.one_in(2);
                header.header_checksum = header.calc_header_checksum();
                let mut frame = vec![2; 12];
                frame.extend([8, 0]);
                frame.extend(header.to_bytes());
                if random.one_in(2) {
                    frame.resize(frame.len() + len, 3);
                }
                frame
            }
            4 => {
                let mut frame = ipv6_frame(len);
                frame[15] = random.byte();
                // Hop-by-hop options, routing, fragment, ESP, nothing.
                frame[20] = random.one_of(&[0, 43, 44, 50, 59]);
                frame
            }
            // One of our own tunnels again, and a bare IP-in-IP.
            5 => self.wrapped(0),
            _ => {
                let mut frame = ipv4_frame(len);
                frame[23] = random.one_of(&[4, 41, 47]);
                frame
            }
        }
    }

    /// An Ethernet frame of a LAN.
    fn frame(&mut self) -> Vec<u8> {
        let mut frame = match self.random.below(3) {
            0 => {
                let mut frame = vec![0xff; 12];
                frame.extend(
                    self.random
                        .one_of(&[0x0806_u16, 0x88cc, 38, 0x8847])
                        .to_be_bytes(),
                );
                let len = frame.len() + self.random.one_of(&[1, 4, 28, 46]);
                frame.resize(len, 0x42);
                frame
            }
            _ => self.packet(),
        };
        for _ in 0..self.random.one_of(&[0, 0, 0, 1, 2, 3]) {
            let tag = self
                .random
                .one_of(&[[0x81, 0, 0x20, 5], [0x88, 0xa8, 0, 9]]);
            frame.splice(12..12, tag);
        }
        frame
    }

    /// What the controller writes into the bond to ask for a probe.
    fn trigger(&mut self) -> Vec<u8> {
        let mut frame = vec![0; 12];
        let slot = self.random.one_of(&[0, 1, 7]);
        frame.extend([8, 0, TRIGGER | slot]);
        let wanted: u16 = self.random.one_of(&[0, 0, 1396, LONGEST_PROBE]);
        frame.extend(wanted.to_be_bytes());
        let len = ETHERNET + LEN + self.random.one_of(&[0, 0, 1, 700]);
        frame.resize(len, 0);
        frame
    }

    /// A probe's bytes behind an Ethernet header, as [`Wrap`] takes them.
    fn probe(&mut self) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET];
        frame.extend(*b"nb\x03");
        frame.push(self.random.one_of(&[1, 1, 2]));
        while frame.len() < ETHERNET + 32 {
            frame.push(self.random.byte());
        }
        if self.random.one_in(2) {
            // It returns no nonce.
            frame[ETHERNET + 24..].fill(0);
        }
        let len = ETHERNET + LEN + self.random.one_of(&[0, 0, 600]);
        frame.resize(len, 0);
        frame
    }

    /// A packet as the peer sends it on some path.
    fn wrapped(&mut self, depth: usize) -> Vec<u8> {
        let path = self.random.below(PATHS as usize) as u32;
        let mut wrap = Wrap::on(path);
        let inner = if self.random.one_in(6) {
            wrap.gre_protocol = PROBE;
            self.probe()
        } else if self.setup.has(BOND_ETHERNET) {
            wrap.gre_protocol = BRIDGED;
            let frame = if depth == 0 {
                ipv4_frame(90)
            } else {
                self.frame()
            };
            [&[0; ETHERNET], frame.as_slice()].concat()
        } else {
            let frame = if depth == 0 {
                ipv6_frame(90)
            } else {
                self.packet()
            };
            wrap.gre_protocol = u16::from_be_bytes([frame[12], frame[13]]);
            frame
        };
        wrap.ipv6 = self.setup.is_over_ipv6(path);
        wrap.tos = self.random.one_of(&[0, 1, 2, 3, 0xb8]);
        wrap.frags = self.random.one_of(&[0, 0x4000]);
        if self.random.one_in(4) {
            wrap.options = 4 * self.random.below(11);
        }
        if let Some(key) = self.setup.key {
            wrap.gre_flags |= 0x2000;
            wrap.gre_fields.extend(key.to_be_bytes());
        }
        let numbered = self.setup.has(BOND_NUMBERED) && wrap.gre_protocol != PROBE;
        if numbered || self.random.one_in(16) {
            let stamp = Stamp::new(self.random.below(3) as u32, self.count, 1);
            let stamp = stamp.copied(self.random.one_in(2));
            self.count += self.random.one_of(&[0, 1, 1, 1, 2]);
            wrap.gre_flags |= 0x1000;
            wrap.gre_fields.extend(stamp.to_field());
        }
        wrap.frame(&inner)
    }

    /// The same without the frame's header, as a device without one receives it: between addresses that
    /// a test run takes for an EtherType.
    fn without_header(&mut self) -> Vec<u8> {
        let mut frame = self.wrapped(1);
        frame.drain(..ETHERNET);
        if frame[0] >> 4 == 4 {
            let slot = u32::from(frame[14]);
            frame[12..16].copy_from_slice(&l3_remote(slot));
        }
        frame
    }

    /// Changes a frame in up to five ways, or none.
    fn mutate(&mut self, frame: &mut Vec<u8>, l3: usize) {
        let random = &mut self.random;
        for _ in 0..random.one_of(&[0, 1, 1, 1, 2, 3, 5]) {
            let len = frame.len();
            let six = frame.get(l3).is_some_and(|first| first >> 4 == 6);
            // Most of what is read stands in front.
            let front = if random.one_in(4) { len } else { len.min(100) };
            let at = random.below(front);
            match random.below(14) {
                0..=2 => frame[at] ^= 1 << random.below(8),
                3 => frame[at] = random.one_of(&[0, 1, 0x7f, 0x80, 0xff]),
                4 => frame[at] = random.byte(),
                5 => frame.truncate(at),
                6 => {
                    let more = random.below(200);
                    frame.resize(len + more, random.byte());
                }
                // A copy of some of it, put in elsewhere.
                7 => {
                    let part = frame[at..len.min(at + random.below(60))].to_vec();
                    let to = random.below(len.min(100));
                    frame.splice(to..to, part);
                }
                8 => {
                    let gone = random.below(40);
                    frame.drain(at..len.min(at + gone));
                }
                // Fields of the outer headers: length, fragment, version and header length, GRE's flags.
                9 => set(
                    frame,
                    l3 + if six { 4 } else { 2 },
                    random.one_of(&[[0, 0], [0, 20], [0xff, 0xff]]),
                ),
                10 if six => set(frame, l3 + 6, [random.one_of(&[0, 4, 43, 44, 47, 60])]),
                10 => set(
                    frame,
                    l3 + 6,
                    random.one_of(&[[0x20, 0], [0, 1], [0x80, 0], [0x40, 0]]),
                ),
                11 => set(
                    frame,
                    l3,
                    [random.one_of(&[0x40, 0x60]) | random.byte() & 0x0f],
                ),
                12 => set(
                    frame,
                    l3 + if six { 40 } else { 20 },
                    [1 << random.below(8), 0],
                ),
                // An address.
                _ if six => {
                    let (local, remote) = outer_v6(random.below(3) as u32);
                    let mapped = Ipv4Addr::new(10, 65, 0, 6).to_ipv6_mapped();
                    let part = random.one_of(&[local, remote, mapped]).octets();
                    set(frame, l3 + random.one_of(&[8, 24]), part);
                }
                _ => {
                    let to = l3 + random.one_of(&[12, 16]);
                    let part = [10, 65, random.byte() % 3, random.one_of(&[2, 6])];
                    set(frame, to, part);
                }
            }
            if frame.is_empty() {
                frame.push(0);
            }
        }
        // The kernel runs no frame without a byte behind its header, nor one that is too short for the IP
        // header that it promises.
        let len = frame.len();
        frame.resize(len.max(ETHERNET + 1), 0);
        let shortest = match frame[12..14] {
            [0x08, 0x00] => ETHERNET + 20,
            [0x86, 0xdd] => ETHERNET + 40,
            _ => ETHERNET,
        };
        let len = frame.len();
        frame.resize(len.max(shortest), 0);
        frame.truncate(LONGEST);
    }
}

/// Overwrites bytes where the frame is long enough.
fn set<const N: usize>(frame: &mut [u8], at: usize, bytes: [u8; N]) {
    if let Some(place) = frame.get_mut(at..at + N) {
        place.copy_from_slice(&bytes);
    }
}

/// What the counters of a bond are to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    /// By bond and label.
    fates: BTreeMap<(u32, &'static str), u64>,
    /// By path: packets, bytes sent; packets, bytes, copies received.
    paths: [[u64; 5]; PATHS as usize],
}

impl Tally {
    fn of(kernel: &Kernel) -> Self {
        let fates = kernel.fates().into_iter();
        let paths = [0, 1].map(|slot| {
            let PathStats {
                tx_packets,
                tx_bytes,
                rx_packets,
                rx_bytes,
                rx_copies,
                tx_stand_in: 0,
                tx_last_resort: 0,
                tx_copies: 0,
                rx_contended: 0,
                tx_onward: 0,
                rx_onward: 0,
            } = kernel.tables.path_stats(path_id(slot)).unwrap()
            else {
                panic!(
                    "no path is out of use, no packet is sent twice, and no other CPU is at work"
                );
            };
            [tx_packets, tx_bytes, rx_packets, rx_bytes, rx_copies]
        });
        Self {
            fates: fates
                .map(|(bond, fate, count)| ((bond, fate.label()), count))
                .collect(),
            paths,
        }
    }

    fn ends(&mut self, bond: u32, fate: Fate) {
        *self.fates.entry((bond, fate.label())).or_default() += 1;
    }

    fn sent(&mut self, slot: u32, bytes: usize) {
        self.paths[slot as usize][0] += 1;
        self.paths[slot as usize][1] += bytes as u64;
    }

    fn received(&mut self, slot: u32, bytes: usize) {
        self.paths[slot as usize][2] += 1;
        self.paths[slot as usize][3] += bytes as u64;
    }
}

/// A bond, what is sent to it, and what its counters must say by now.
struct Bench {
    kernel: Kernel,
    setup: Setup,
    source: Source,
    tally: Tally,
    /// Packets sent and received so far.
    packets: u64,
    /// Requests that were answered.
    answered: u64,
    start: Instant,
}

impl Bench {
    fn new(setup: Setup, seed: u64) -> Self {
        let source = Source {
            random: Random(seed),
            setup,
            count: 0,
        };
        Self {
            kernel: setup.kernel(),
            setup,
            source,
            tally: Tally::default(),
            packets: 0,
            answered: 0,
            start: Instant::now(),
        }
    }

    /// Receives a frame whose IP header is at `l3`.
    fn receive(&mut self, l3: usize, frame: &[u8]) {
        let name = ingress_program(self.setup.features(), l3 != 0);
        let ran = self.kernel.run(name, frame, None);
        let outer = match read_outer(self.setup, l3, frame) {
            Ok(outer) => outer,
            Err(fate) => return self.ended(NO_BOND, fate, &ran, frame),
        };
        let bytes = frame.len() - outer.end;
        let due = due(self.setup, l3, frame, &outer);
        let ours = (outer.protocol == BRIDGED) == self.setup.has(BOND_ETHERNET);
        if outer.numbered && ours && ran.action == TC_ACT_SHOT && !matches!(due, Due::Probe { .. })
        {
            let before = self.tally.paths[outer.slot as usize][4];
            let stats = self.kernel.tables.path_stats(path_id(outer.slot)).unwrap();
            if stats.rx_copies != before {
                assert_eq!(ran.frame, frame);
                self.tally.paths[outer.slot as usize][4] += 1;
                return self.tally.received(outer.slot, bytes);
            }
        }
        match due {
            Due::Ends(bond, fate) => self.ended(bond, fate, &ran, frame),
            Due::Leaves(due) => {
                assert_eq!(ran.action, TC_ACT_REDIRECT);
                assert_eq!(ran.frame, due, "what was in the packet, and no more");
                self.tally.received(outer.slot, bytes);
            }
            Due::Probe { outer_len } => self.probed(l3, frame, &ran, outer_len, outer.slot),
        }
    }

    fn ended(&mut self, bond: u32, fate: Fate, ran: &common::Ran, frame: &[u8]) {
        let action = match fate.verdict() {
            Verdict::Pass => TC_ACT_UNSPEC,
            Verdict::Drop => TC_ACT_SHOT,
        };
        assert_eq!(ran.action, action, "{}", fate.label());
        // What the kernel refused half-way may be changed.
        if fate != Fate::RxNoDecap {
            assert_eq!(ran.frame, frame, "{}: left as it was", fate.label());
        }
        self.tally.ends(bond, fate);
    }

    /// A probe proves nothing here: nobody sees our answers, so that none can be returned.
    fn probed(&mut self, l3: usize, frame: &[u8], ran: &common::Ran, outer_len: usize, slot: u32) {
        let probe = &frame[l3 + outer_len..];
        let known = probe.len() >= LEN && probe[..3] == *b"nb\x03";
        match probe.get(3) {
            Some(1) if known && outer_len == self.setup.overhead(slot) => {
                if ran.action == TC_ACT_SHOT {
                    // More than the path answers.
                    return self.ended(BOND, Fate::RxProbeRate, ran, frame);
                }
                assert_eq!(ran.action, TC_ACT_REDIRECT);
                self.answered += 1;
                assert_eq!(ran.frame.len(), frame.len(), "no amplification");
                let ip_len = self.setup.ip_len(slot);
                if self.setup.is_over_ipv6(slot) {
                    let ip = Ipv6HeaderSlice::from_slice(&ran.frame[l3..]).unwrap();
                    let addresses = (ip.source_addr(), ip.destination_addr());
                    assert_eq!(addresses, outer_v6(slot));
                    let payload = usize::from(ip.payload_length());
                    assert_eq!(payload, frame.len() - l3 - ip_len);
                    assert_eq!((ip.next_header(), ip.hop_limit()), (IpNumber(GRE), 64));
                } else {
                    let ip = Ipv4HeaderSlice::from_slice(&ran.frame[l3..]).unwrap();
                    assert_eq!((ip.source_addr(), ip.destination_addr()), outer(slot));
                    assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
                    assert_eq!(usize::from(ip.total_len()), frame.len() - l3);
                    assert_eq!((ip.ttl(), ip.dont_fragment()), (64, true));
                }
                let gre = l3 + ip_len..l3 + outer_len;
                assert_eq!(ran.frame[gre.clone()], frame[gre]);
                let answer = &ran.frame[l3 + outer_len..];
                assert_eq!(answer[..4], *b"nb\x03\x02");
                assert_eq!(answer[4..16], probe[4..16], "number and cookie");
                assert_eq!(answer[32..52], probe[32..52], "the asker's account");
                assert_eq!(answer[LEN..], probe[LEN..]);
                assert_eq!(ran.frame[..l3], frame[..l3]);
                self.tally.ends(BOND, Fate::RxProbeStranger);
            }
            // No request was sent.
            Some(2) if known => self.ended(BOND, Fate::RxProbeCookie, ran, frame),
            _ => self.ended(BOND, Fate::RxProbeMalformed, ran, frame),
        }
    }

    /// Sends a frame into the bond.
    fn send(&mut self, frame: &mut [u8]) {
        let ethernet = self.setup.has(BOND_ETHERNET);
        let protocol = u16::from_be_bytes([frame[12], frame[13]]);
        let packet = &frame[ETHERNET..];
        let asks = protocol == 0x0800
            && packet[0] >= TRIGGER
            && packet.len() >= LEN
            && frame[..12] == [0; 12];
        if asks && wanted(frame) > LONGEST_PROBE {
            frame[ETHERNET + 1..ETHERNET + 3].copy_from_slice(&LONGEST_PROBE.to_be_bytes());
        }
        let frame = &*frame;
        let ran = self.kernel.egress(frame);
        let packet = &frame[ETHERNET..];
        let ip = match protocol {
            0x0800 => packet
                .get(..20)
                .filter(|ip| ip[0] >> 4 == 4 && ip[0] & 0x0f >= 5),
            0x86dd => packet.get(..40).filter(|ip| ip[0] >> 4 == 6),
            _ => None,
        };
        if asks {
            return self.asked(frame, &ran);
        }
        if !ethernet && ip.is_none() {
            let fate = match protocol {
                0x0800 | 0x86dd => Fate::TxMalformed,
                _ => Fate::TxNotIp,
            };
            return self.ended(BOND, fate, &ran, frame);
        }
        let tags = tags(frame);
        if ethernet && tags.is_none() {
            assert_eq!(ran.action, TC_ACT_SHOT);
            return self.tally.ends(BOND, Fate::TxTags);
        }
        assert_eq!(ran.action, TC_ACT_REDIRECT, "{:?}", self.kernel.fates());
        let carried = if ethernet { frame } else { packet };
        let (slot, stamped) = self.outer_of(&ran.frame, carried.len());
        let number = if stamped { 4 } else { 0 };
        let end = ETHERNET + self.setup.overhead(slot) + number;
        assert_eq!(
            ran.frame[end..],
            *carried,
            "the inner packet, byte for byte"
        );
        let ip_len = self.setup.ip_len(slot);
        let gre = &ran.frame[ETHERNET + ip_len..];
        let inner_protocol = if ethernet { BRIDGED } else { protocol };
        assert_eq!(gre[2..4], inner_protocol.to_be_bytes());
        if let Some(ip) = ip {
            let (tos, ttl, fixed) = match protocol {
                0x0800 => (ip[1], ip[8], ip[6] & 0x40 != 0),
                _ => (ip[0] << 4 | ip[1] >> 4, ip[7], true),
            };
            let outer = &ran.frame[ETHERNET..ETHERNET + ip_len];
            if self.setup.is_over_ipv6(slot) {
                let outer = Ipv6HeaderSlice::from_slice(outer).unwrap();
                assert_eq!((outer.traffic_class(), outer.hop_limit()), (tos, ttl));
            } else {
                let outer = Ipv4HeaderSlice::from_slice(outer).unwrap();
                assert_eq!(outer.dcp().value() << 2 | outer.ecn().value(), tos);
                assert_eq!(outer.ttl(), ttl);
                assert_eq!(outer.dont_fragment(), fixed || ethernet);
            }
        }
        self.tally.sent(slot, carried.len());
    }

    /// What a sent packet's outer headers say: path, and whether it is numbered.
    fn outer_of(&self, sent: &[u8], carried: usize) -> (u32, bool) {
        let packet = &sent[ETHERNET..];
        let slot = if packet[0] >> 4 == 6 {
            let ip = Ipv6HeaderSlice::from_slice(packet).unwrap();
            assert_eq!(ip.next_header(), IpNumber(GRE));
            assert_eq!(usize::from(ip.payload_length()), packet.len() - 40);
            let of_path = |slot: &u32| outer_v6(*slot) == (ip.source_addr(), ip.destination_addr());
            (0..PATHS).find(of_path)
        } else {
            let ip = Ipv4HeaderSlice::from_slice(packet).unwrap();
            assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
            assert_eq!(ip.protocol(), IpNumber(GRE));
            assert!(!ip.is_fragmenting_payload());
            assert_eq!(usize::from(ip.total_len()), packet.len());
            let of_path = |slot: &u32| outer(*slot) == (ip.source_addr(), ip.destination_addr());
            (0..PATHS).find(of_path)
        };
        let slot = slot.expect("addresses of one path");
        assert_eq!(self.setup.is_over_ipv6(slot), packet[0] >> 4 == 6);
        let gre = &packet[self.setup.ip_len(slot)..];
        let probe = gre[2..4] == PROBE.to_be_bytes();
        let stamped = self.setup.has(BOND_NUMBERED) && !probe;
        let key = if self.setup.key.is_some() { 0x20 } else { 0 };
        assert_eq!(gre[..2], [key | if stamped { 0x10 } else { 0 }, 0]);
        if let Some(key) = self.setup.key {
            assert_eq!(gre[4..8], key.to_be_bytes());
        }
        let number = if stamped { 4 } else { 0 };
        let len = ETHERNET + self.setup.overhead(slot) + number + carried;
        assert_eq!(sent.len(), len);
        (slot, stamped)
    }

    /// The controller's frame becomes a request on the path that it names.
    fn asked(&mut self, frame: &[u8], ran: &common::Ran) {
        let slot = u32::from(frame[ETHERNET] & 0x0f);
        if slot >= PATHS {
            assert_eq!(ran.action, TC_ACT_SHOT);
            return self.tally.ends(BOND, Fate::TxNoPath);
        }
        assert_eq!(ran.action, TC_ACT_REDIRECT);
        let len = usize::from(wanted(frame)).max(frame.len() - ETHERNET);
        let (path, _) = self.outer_of(&ran.frame, len);
        assert_eq!(path, slot);
        let probe = &ran.frame[ETHERNET + self.setup.overhead(slot)..];
        assert_eq!(probe[..4], *b"nb\x03\x01");
    }

    /// Compares the counters: each packet raised one of them.
    fn compare(&self) {
        assert_eq!(Tally::of(&self.kernel), self.tally);
    }

    /// What holds whatever came.
    fn finish(&self) {
        self.compare();
        // Not all of them were refused.
        for [sent, _, received, ..] in self.tally.paths {
            let least = self.packets / 50;
            assert!(sent > least && received > least, "{:?}", self.tally);
        }
        let windows = self.start.elapsed().as_nanos() as u64 / RATE_WINDOW_NS + 2;
        let most = windows * u64::from(PATHS * STRANGER_LIMIT);
        assert!(self.answered <= most, "{} answers", self.answered);
        for slot in 0..PATHS {
            let Raw(live) = self.kernel.tables.live.get(&path_id(slot), 0).unwrap();
            let proven = (live.proof_ns, live.answers_seen, live.requests_seen);
            assert_eq!(
                proven,
                (0, 0, 0),
                "nobody who sees no answers proves a path"
            );
        }
    }
}

/// How long a probe the controller's frame asks for, bytes.
fn wanted(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[ETHERNET + 1], frame[ETHERNET + 2]])
}

/// How many VLAN tags a frame begins with, `None` where it cannot be carried with them: more than two, or
/// cut in one of them.
fn tags(frame: &[u8]) -> Option<usize> {
    let mut count = 0;
    while matches!(frame[12 + 4 * count..], [0x81, 0, ..] | [0x88, 0xa8, ..]) {
        count += 1;
        if count > 2 || frame.len() < ETHERNET + 4 * count {
            return None;
        }
    }
    Some(count)
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text}: not a number")),
    )
}

/// Sends and receives on a processor of its own, for each setup in turn.
fn run(cpu: usize, setups: &[Setup]) {
    let seed = number("NETBOND_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_nanos() as u64
    });
    let packets = number("NETBOND_PACKETS").unwrap_or(100_000);
    let batch = number("NETBOND_BATCH").unwrap_or(256).max(1);
    for &setup in setups {
        println!("NETBOND_SEED={seed} NETBOND_PACKETS={packets} NETBOND_BATCH={batch} {setup:?}");
        let mut bench = Bench::new(setup, seed);
        let mut cpus = nix::sched::CpuSet::new();
        cpus.set(cpu % aya::util::nr_cpus().unwrap()).unwrap();
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).unwrap();
        for done in 1..=packets {
            let mut frame;
            match bench.source.random.below(3) {
                0 => {
                    frame = match bench.source.random.below(8) {
                        0 => bench.source.trigger(),
                        _ if setup.has(BOND_ETHERNET) => bench.source.frame(),
                        _ => bench.source.packet(),
                    };
                    bench.source.mutate(&mut frame, ETHERNET);
                    bench.send(&mut frame);
                }
                1 => {
                    frame = bench.source.wrapped(1);
                    bench.source.mutate(&mut frame, ETHERNET);
                    bench.receive(ETHERNET, &frame);
                }
                _ => {
                    frame = bench.source.without_header();
                    bench.source.mutate(&mut frame, 0);
                    bench.receive(0, &frame);
                }
            }
            bench.packets = done;
            if done % batch == 0 {
                bench.compare();
            }
        }
        bench.finish();
        let (ns, rate) = (
            bench.start.elapsed(),
            packets as f64 / bench.start.elapsed().as_secs_f64(),
        );
        println!(
            "{packets} packets in {:.1} s, {rate:.0}/s: {:?}",
            ns.as_secs_f64(),
            bench.tally
        );
    }
}

const KEY: Option<u32> = Some(0x0102_0304);

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn hostile_packets() {
    let setup = |key, flags| Setup {
        key,
        flags,
        mixed: false,
    };
    run(
        0,
        &[
            setup(None, 0),
            setup(KEY, BOND_NUMBERED | BOND_IN_ORDER),
            setup(None, BOND_NUMBERED),
        ],
    );
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn hostile_frames() {
    let setup = |key, flags| Setup {
        key,
        flags: BOND_ETHERNET | flags,
        mixed: false,
    };
    run(
        1,
        &[setup(KEY, 0), setup(None, BOND_NUMBERED | BOND_IN_ORDER)],
    );
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn hostile_packets_over_ipv4_and_ipv6() {
    let setup = |key, flags| Setup {
        key,
        flags,
        mixed: true,
    };
    run(
        0,
        &[
            setup(KEY, 0),
            setup(None, BOND_NUMBERED | BOND_IN_ORDER),
            setup(None, BOND_ETHERNET),
            setup(KEY, BOND_ETHERNET | BOND_NUMBERED | BOND_IN_ORDER),
        ],
    );
}
