//! The layout of the pinned maps: the contract between the programs in the kernel, the controller
//! and the CLI, each of which may be of another build.
//!
//! Integers are in the host's byte order unless a field says otherwise. No struct has padding
//! (`bytemuck::Pod` refuses it), and each size is asserted: a change of layout that forgets
//! [`ABI_VERSION`] does not go unnoticed.

use core::net::IpAddr;

use bytemuck::{Pod, Zeroable};

use crate::{class::Rule, fate::Fate, ipv6};

/// The version of every layout in this module; [`Meta`] carries it.
pub const ABI_VERSION: u32 = 13;

/// How many bonds the maps hold.
pub const MAX_BONDS: u32 = 1024;
/// How many paths a bond has at the most.
pub const MAX_BOND_PATHS: u32 = 16;
/// How many paths the maps hold: bond `b` owns the path ids from `b * MAX_BOND_PATHS`.
pub const MAX_PATHS: u32 = MAX_BONDS * MAX_BOND_PATHS;
/// How many classes of traffic a bond has at the most.
pub const MAX_BOND_CLASSES: u32 = 16;
/// How many classes the maps hold: bond `b` owns those from `b * MAX_BOND_CLASSES`.
pub const MAX_CLASSES: u32 = MAX_BONDS * MAX_BOND_CLASSES;
/// How many lanes the maps hold: one for each bond, by its id, then one for each class.
pub const MAX_LANES: u32 = MAX_BONDS + MAX_CLASSES;
/// In how many buckets the flows of a bond fall: bond `b` owns those from `b * FLOW_BUCKETS`.
pub const FLOW_BUCKETS: u32 = 256;
/// The index in `BOND_STATS` for packets whose bond is not known.
pub const NO_BOND: u32 = MAX_BONDS;
/// Slots of a wheel.
pub const WHEEL_SLOTS: usize = 256;

/// What the whole instance is: the one entry of `META`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Meta {
    /// [`ABI_VERSION`] of whoever made the maps.
    pub abi: u32,
    /// The controller's process id; stays when it dies.
    pub pid: u32,
    /// When the controller last wrote its heartbeat, CLOCK_BOOTTIME, ns.
    pub heartbeat_ns: u64,
}
const _: () = assert!(size_of::<Meta>() == 16);

/// The bond carries Ethernet frames ([`crate::names::Encap::Gretap`]), and nothing else.
pub const BOND_ETHERNET: u8 = 1 << 0;
/// The bond's packets carry sequence numbers, and of those received each is released once.
pub const BOND_NUMBERED: u8 = 1 << 1;
/// They are released in the order of their numbers, too.
pub const BOND_IN_ORDER: u8 = 1 << 2;
/// Those of `BOND_*` that must be alike at both ends: probes tell the peer's. What the receiver makes of
/// numbers is its own matter.
pub const BOND_AGREED: u8 = BOND_ETHERNET | BOND_NUMBERED;

/// How a bond sends: an entry of `BONDS`, by bond id. Written by the controller.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Bond {
    /// Path slots in use: paths have the ids `id * MAX_BOND_PATHS ..+ paths`. 0: no such bond.
    pub paths: u32,
    /// Slots of the wheel in use; 0: no path is in the rotation.
    pub wheel_len: u32,
    /// ifindex of the bond device, to which decapsulated packets go.
    pub ifindex: u32,
    /// Outer TTL; 0: copied from the inner packet.
    pub ttl: u8,
    /// Hardware address of the bond device: where received IP packets go. Frames have their own.
    pub mac: [u8; 6],
    /// `BOND_*`.
    pub flags: u8,
    /// ifindex of the other end of its veth pair, by whose egress packets are released in order.
    pub release_ifindex: u32,
    /// For how long a packet is held at the most, ns.
    pub longest_hold_ns: u32,
    /// Classes in use: they have the ids `id * MAX_BOND_CLASSES ..+ classes`.
    pub classes: u32,
    /// MTU to which the maximum segment size in TCP's SYNs is clamped, bytes; 0: it is not.
    pub clamp_mtu: u32,
    /// The longest packet, bytes without an Ethernet header, that the program in a driver hands to the bond
    /// device, which takes none that exceeds its MTU; 0: none.
    pub xdp_mtu: u32,
    /// `BOND_XDP_*`.
    pub xdp: u32,
    /// slot -> path, counted from 0 within the bond.
    pub wheel: [u8; WHEEL_SLOTS],
}
const _: () = assert!(size_of::<Bond>() == 300);

/// Packets of a bond that drivers take out of their outer headers are sent on by them, where the kernel's route
/// leads to a device of [`DRIVER_LAN`].
pub const BOND_XDP_ONWARD: u32 = 1 << 0;
/// Packets that drivers of such devices receive are encapsulated there, where the route leads to the bond.
pub const BOND_XDP_SEND: u32 = 1 << 1;

/// Packets of paths come in on the device.
pub const DRIVER_UNDERLAY: u16 = 1 << 0;
/// Packets from and to the bonds are forwarded past the kernel here.
pub const DRIVER_LAN: u16 = 1 << 1;

/// An Ethernet device in whose driver a program is: an entry of `DRIVERS`, by ifindex. Written by the
/// controller.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Driver {
    /// Its address: frames to others are not for this host.
    pub address: [u8; 6],
    /// `DRIVER_*`.
    pub roles: u16,
}
const _: () = assert!(size_of::<Driver>() == 8);

/// Devices out of which drivers may send each other's frames: the most entries of `PORTS`, by ifindex.
pub const MAX_PORTS: u32 = 1024;

/// How packets are spread over a bond's paths: an entry of `LANES`. A bond has a lane of its own (by
/// bond id), and one for each of its classes (`MAX_BONDS` + class id). Written by the controller.
///
/// The program for bonds that do with a wheel reads [`Bond`] instead.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Lane {
    /// [`crate::names::Mode`].
    pub mode: u32,
    /// By which of its bond's shares turns are taken: `SHARES_*`.
    pub shares: u32,
    /// The paths in order of preference, see [`crate::order`].
    pub order: u64,
    /// On how many paths a packet is sent at the most, where the mode is to send copies.
    pub copies: u32,
    pub reserved: u32,
}
const _: () = assert!(size_of::<Lane>() == 24);

/// The same for every path.
pub const SHARES_EQUAL: u32 = 0;
/// By the paths' weights.
pub const SHARES_WEIGHTED: u32 = 1;
/// By what the paths were measured to carry.
pub const SHARES_MEASURED: u32 = 2;
/// Shares of a bond: bond `b` owns those from `b * BOND_SHARES`.
pub const BOND_SHARES: u32 = 3;
/// See [`Shares::settled_until`].
pub const SETTLED_UNIT: u32 = 30;
/// How many shares the maps hold.
pub const MAX_SHARES: u32 = MAX_BONDS * BOND_SHARES;

/// How the bytes of a bond are to be divided over its paths, see [`crate::turns`]: an entry of `SHARES`,
/// by bond id and `SHARES_*`. Written by the controller, the measured ones by the prober.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Shares {
    /// The paths that take part are the first so many of this order, see [`crate::order`].
    pub order: u64,
    pub count: u32,
    /// Until when each flow keeps its path and its packets have no numbers, in a bond that is put in order:
    /// CLOCK_MONOTONIC, in units of 2^[`SETTLED_UNIT`] ns; 0 where it does not. The controller says so
    /// again and again, so that this ends with it.
    pub settled_until: u32,
    /// By path of the bond: what a byte costs there.
    pub cost: [u32; MAX_BOND_PATHS as usize],
}
const _: () = assert!(size_of::<Shares>() == 80);

/// How far the paths of a bond are in their turns, on one CPU: an entry of `TURNS`, as [`Shares`]. Only
/// programs write it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Turns {
    /// By path of the bond: when it is its turn, in units of [`Shares::cost`].
    pub clocks: [u64; MAX_BOND_PATHS as usize],
    /// The clock of the path whose turn it was last.
    pub now: u64,
}
const _: () = assert!(size_of::<Turns>() == 136);

/// Which packets are of a class: an entry of `CLASSES`, by class id. Written by the controller.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Class {
    pub rule: Rule,
    /// Where its packets are counted: the index in `CLASS_STATS` and `CLASS_INFO`. It is the class's as
    /// long as that keeps its name, whatever its place among the others.
    pub counter: u32,
    pub reserved: u32,
}
const _: () = assert!(size_of::<Class>() == 112);

/// Where the flows of a bucket went last: an entry of `FLOWLETS`, by bond and bucket. Only programs
/// write it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Flowlet {
    /// When the last packet came, CLOCK_MONOTONIC, ns.
    pub at_ns: u64,
    /// The path that it took, counted from 0 within the bond.
    pub path: u32,
    pub reserved: u32,
}
const _: () = assert!(size_of::<Flowlet>() == 16);

/// The path may be chosen for any packet.
pub const PATH_USABLE: u32 = 1 << 0;
/// The path may be chosen where no path of the bond is usable.
pub const PATH_LAST_RESORT: u32 = 1 << 1;
/// Packets carry [`Path::key`] (RFC 2890).
pub const PATH_KEY: u32 = 1 << 2;
/// The device is Ethernet: the kernel finds the address of the next hop (`bpf_redirect_neigh`).
pub const PATH_NEIGHBOUR: u32 = 1 << 3;
/// It is not in use, for no policy of the user's: with a fresh proof of life it has copies that would have no
/// path else.
pub const PATH_SPARE: u32 = 1 << 4;
/// The outer addresses are IPv6. Set only where programs know [`crate::names::feature::IPV6`].
pub const PATH_IPV6: u32 = 1 << 5;
/// Never in the map: the data plane finds that the path's proof of life is too old.
pub const PATH_STALE: u32 = 1 << 31;
/// Nor is this: and that only just, as the controller has the path in use.
pub const PATH_LAPSED: u32 = 1 << 30;

/// Where a path leads: an entry of `PATHS`, by path id. Written by the controller.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Path {
    /// `PATH_*`; 0: no such path, or out of use.
    pub flags: u32,
    /// ifindex of the device that packets leave by.
    pub ifindex: u32,
    /// Sum of the 16-bit words of the outer IPv4 header that never change, see
    /// [`crate::ipv4::constant_sum`]; 0 of IPv6, which has no checksum.
    pub sum: u32,
    /// GRE key, big-endian.
    pub key: [u8; 4],
    /// Of a path that is [`PATH_NEIGHBOUR`].
    pub next_hop: NextHop,
    /// Outer source, big-endian; IPv4 as an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2).
    pub local: [u8; 16],
    /// Outer destination, likewise.
    pub remote: [u8; 16],
}
const _: () = assert!(size_of::<Path>() == 68);

/// `AF_INET` of `socket(2)`.
pub const AF_INET: u8 = 2;
/// `AF_INET6`.
pub const AF_INET6: u8 = 10;

/// To whom packets of a path over Ethernet are sent: struct bpf_redir_neigh of linux/bpf.h. It outlives the route
/// that told it, as long as packets pass.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct NextHop {
    /// [`AF_INET`] or [`AF_INET6`]; 0: none was told, and the kernel's route to the remote address decides.
    pub family: u32,
    /// Big-endian; IPv4's four bytes come first.
    pub address: [u8; 16],
}
const _: () = assert!(size_of::<NextHop>() == 20);

impl From<IpAddr> for NextHop {
    fn from(address: IpAddr) -> Self {
        let mut bytes = [0; 16];
        let family = match address {
            IpAddr::V4(address) => {
                bytes[..4].copy_from_slice(&address.octets());
                AF_INET
            }
            IpAddr::V6(address) => {
                bytes = address.octets();
                AF_INET6
            }
        };
        Self {
            family: family.into(),
            address: bytes,
        }
    }
}

impl NextHop {
    /// Its address, where it was told.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        const IPV4: u32 = AF_INET as u32;
        const IPV6: u32 = AF_INET6 as u32;
        let [a, b, c, d, ..] = self.address;
        match self.family {
            IPV4 => Some([a, b, c, d].into()),
            IPV6 => Some(self.address.into()),
            _ => None,
        }
    }
}

impl Path {
    /// Outer source and destination, as they lie behind each other in an IPv6 header. No copy: the
    /// kernel's programs would make it byte by byte.
    #[inline(always)]
    #[must_use]
    pub fn addresses(&self) -> &[u8; ipv6::ADDRESSES_LEN] {
        const {
            assert!(core::mem::offset_of!(Self, local) + 16 == core::mem::offset_of!(Self, remote));
            assert!(core::mem::offset_of!(Self, remote) + 16 == size_of::<Self>());
        }
        const NONE: &[u8; ipv6::ADDRESSES_LEN] = &[0; ipv6::ADDRESSES_LEN];
        // The last bytes there are, as asserted.
        bytemuck::bytes_of(self).last_chunk().unwrap_or(NONE)
    }
}

/// What names the path of a received packet: a key of `TUNNELS`, whose values are path ids.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TunnelKey {
    /// Outer source as received (the path's remote address), as in [`Path::local`].
    pub source: [u8; 16],
    /// Outer destination as received (the path's local address).
    pub destination: [u8; 16],
    /// GRE key, big-endian; 0 where there is none.
    pub key: [u8; 4],
    /// 1 where the packet has a key: no key and key 0 are different tunnels.
    pub has_key: u32,
}
const _: () = assert!(size_of::<TunnelKey>() == 40);

/// A CPU's place on the wheel of a bond: an entry of `TICKETS`, by bond id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Ticket {
    /// The next slot of the wheel.
    pub slot: u32,
    /// The path from which the search for a stand-in begins.
    pub stand_in: u32,
}
const _: () = assert!(size_of::<Ticket>() == 8);

/// What one CPU sent and received on a path: an entry of `PATH_STATS`, by path id.
///
/// Packets are those on the wire (a GSO super-packet counts its segments); bytes are those of the
/// inner packets, without any encapsulation: IP packets, or Ethernet frames (without their checksum).
/// A packet that is sent on several paths is counted by each, and so at the receiver.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PathStats {
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    /// Of `tx_packets`: sent here because the wheel's choice was not usable.
    pub tx_stand_in: u64,
    /// Of `tx_packets`: sent here though the path was not usable, as no path was, or as a copy as it returned.
    pub tx_last_resort: u64,
    /// Of `tx_packets`: copies of packets that another path was sent first.
    pub tx_copies: u64,
    /// Of `rx_packets`: copies of packets that were received before. They ended here.
    pub rx_copies: u64,
    /// Of `rx_packets`: another CPU was at work on their strand for too long. They were released at once,
    /// neither put in order nor told from copies.
    pub rx_contended: u64,
    /// Of `tx_packets`: taken from a LAN's driver, past the kernel.
    pub tx_onward: u64,
    /// Of `rx_packets`: given to a LAN's driver, past the kernel.
    pub rx_onward: u64,
}
const _: () = assert!(size_of::<PathStats>() == 88);

/// Requests of a path whose answers are still awaited, and nonces that may still return: a power of
/// two. Times the interval it is the longest round trip that can be measured: 1.9 s by default.
pub const PROBES_IN_FLIGHT: usize = 64;

/// What the data plane knows of a path's liveness: an entry of `LIVE`, by path id. Only programs
/// write it. Times are CLOCK_MONOTONIC, ns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Live {
    /// When it was last proven that packets pass both ways.
    pub proof_ns: u64,
    /// The nonce of the last answer, to be returned by the next request; 0: none.
    pub echo: u64,
    /// The number under which the peer gave it.
    pub echo_grant: u32,
    /// The last request sent; the first has 1.
    pub sequence: u32,
    /// Answers accepted.
    pub answers_seen: u32,
    /// Requests received that returned a nonce of ours.
    pub requests_seen: u32,
    /// Nonces given to those.
    pub grants: u32,
    /// The number of the last nonce that returned, of those given to other requests.
    pub stranger_grant: u32,
    /// The nonce that last returned: a peer that gets no new one returns it again.
    pub returned: u64,
    /// The highest request received that returned a nonce.
    pub newest: u32,
    /// Answers given to such requests in the current span, see [`crate::probe::RATE_WINDOW_NS`].
    pub answered: u32,
    /// Of the 64 requests up to `newest`, those that came: bit 0 is `newest` itself.
    pub seen: u64,
    /// When that span began.
    pub window_ns: u64,
    /// Answers given to other requests in it.
    pub strangers: u32,
    pub reserved: u32,
    /// Requests by the low bits of their sequence.
    pub sent: [Sent; PROBES_IN_FLIGHT],
    /// Nonces given away, by the low bits of their number; 0 once returned.
    pub nonces: [u64; PROBES_IN_FLIGHT],
}
const _: () = assert!(size_of::<Live>() == 1616);

/// A request that was sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Sent {
    /// 0: no request.
    pub cookie: u64,
    /// 0 once its answer is here.
    pub at_ns: u64,
}

/// An answer that came in: a record of the ring buffer `SAMPLES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Sample {
    /// Path id.
    pub path: u32,
    /// Of the request.
    pub sequence: u32,
    /// When the answer came, CLOCK_MONOTONIC, ns.
    pub at_ns: u64,
    /// Round trip, ns: from the program that sent to the program that received.
    pub rtt_ns: u64,
    /// Requests that the peer had received by then.
    pub requests_seen: u32,
    /// Bytes of the outer packet.
    pub len: u32,
    /// What this end had sent on the path when it asked, counted as in [`PathStats`].
    pub sent_packets: u64,
    pub sent_bytes: u64,
    /// What the peer had received on it when the request came, likewise.
    pub received_packets: u64,
    pub received_bytes: u64,
    /// When that was, CLOCK_MONOTONIC of the peer, ns.
    pub peer_ns: u64,
    /// The peer's `BOND_*` of [`BOND_AGREED`], and whatever a later version tells.
    pub peer_options: u32,
    pub reserved: u32,
}
const _: () = assert!(size_of::<Sample>() == 80);

/// In [`ProbeInfo::data_loss`]: no packet was sent.
pub const NO_LOSS_KNOWN: u32 = u32::MAX;
/// In [`ProbeInfo::behind_ns`]: nothing to compare with.
pub const NOT_COMPARED: u64 = u64::MAX;

/// What the controller made of a path's probes, for people: an entry of `PROBE_INFO`, by path id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ProbeInfo {
    /// Round trip, ns: smoothed, its mean deviation (RFC 6298, 2), and the least so far; 0: none yet.
    pub rtt_ns: u64,
    pub deviation_ns: u64,
    pub least_ns: u64,
    /// How much one round trip differs from the next, ns, smoothed (as RFC 3550, 6.4.1).
    pub jitter_ns: u64,
    /// When the last answer came, CLOCK_MONOTONIC, ns; 0: never.
    pub answered_ns: u64,
    /// Until when the path is held down, CLOCK_MONOTONIC, ns; 0: it is not.
    pub hold_until_ns: u64,
    /// Of the last seconds' requests, lost on the way there, in millionths.
    pub loss_there: u32,
    /// Of the requests that arrived, answers lost on the way back, in millionths.
    pub loss_back: u32,
    /// Answers that came later than that to a later request, since the controller started.
    pub reordered: u32,
    /// How the path is watched: [`crate::names::Watch`].
    pub watch: u32,
    /// How often it failed within a minute of its return, in a row.
    pub flaps: u32,
    /// Requests since the last answer.
    pub missed: u32,
    /// Bytes of the longest packet of the bond that the path is asked to carry, without outer headers; 0:
    /// not known yet.
    pub full_len: u32,
    /// What came of probes of that size: [`crate::names::FullSize`].
    pub full: u32,
    /// Bytes of the longest packet that the path carries, outer headers included; 0: not known, or less
    /// than the bond needs.
    pub path_mtu: u32,
    pub reserved: u32,
    /// Of the packets that the bond sent on the path in the last seconds, lost on the way there, in
    /// millionths; [`NO_LOSS_KNOWN`] where there were none.
    pub data_loss: u32,
    /// The peer's options, as in [`Sample::peer_options`].
    pub peer_options: u32,
    /// Inner packets sent, and received by the peer, in the last second, bytes/s.
    pub offered: u64,
    pub delivered: u64,
    /// How long the queues on the way there hold a packet, ns, smoothed.
    pub queue_ns: u64,
    /// How much longer the way there is than that of the bond's fastest path, ns; [`NOT_COMPARED`]
    /// where that cannot be told.
    pub behind_ns: u64,
}
const _: () = assert!(size_of::<ProbeInfo>() == 128);

/// Bytes of the text of an [`EventRecord`].
pub const EVENT_TEXT_LEN: usize = 168;
/// How many events are kept.
pub const EVENTS_KEPT: u32 = 2048;
/// In [`EventRecord::from`] and [`EventRecord::to`]: no state.
pub const NO_STATE: u32 = u32::MAX;

/// What the controller saw or did, for people: an entry of `EVENTS`, by the remainder of its sequence
/// number. Oldest entries are overwritten.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct EventRecord {
    /// Counted from 1 over all controllers that wrote to this map; 0: none.
    pub sequence: u64,
    /// CLOCK_REALTIME, ns since 1970.
    pub at_ns: u64,
    /// [`crate::names::EventKind`].
    pub kind: u32,
    /// A path's [`crate::names::PathState`] before and after, or [`NO_STATE`].
    pub from: u32,
    pub to: u32,
    /// [`crate::names::StateReason`] of the state after.
    pub reason: u32,
    /// Name of the bond; empty: of none.
    pub bond: [u8; 16],
    /// Name of the path; empty: of none.
    pub path: [u8; NAME_LEN],
    /// What happened, UTF-8, filled up with zeros.
    pub text: [u8; EVENT_TEXT_LEN],
    /// `sequence` again: differs where a reader meets a half-written entry.
    pub end: u64,
}
const _: () = assert!(size_of::<EventRecord>() == 256);

/// Bytes of the ring buffer `SAMPLES`.
pub const SAMPLES_LEN: u32 = 1 << 20;

/// What became of the packets that took no path: an entry of `BOND_STATS`, by bond id or
/// [`NO_BOND`]. One counter for each [`Fate`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct BondStats {
    pub fates: [u64; Fate::COUNT],
}
const _: () = assert!(size_of::<BondStats>() == 8 * Fate::COUNT);

/// What one CPU sent of a class: an entry of `CLASS_STATS`, by [`Class::counter`]. Counted as in
/// [`PathStats`], and once more there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ClassStats {
    pub tx_packets: u64,
    pub tx_bytes: u64,
}
const _: () = assert!(size_of::<ClassStats>() == 16);

/// Bytes of a name in [`BondInfo`] and [`PathInfo`], filled up with zeros.
pub const NAME_LEN: usize = 32;

/// What the controller knows of a bond, for people: an entry of `BOND_INFO`, by bond id. The data
/// plane never reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BondInfo {
    /// Name of the bond device; empty: no such bond.
    pub name: [u8; NAME_LEN],
    pub ifindex: u32,
    /// ifindex of the other end of the veth pair.
    pub peer_ifindex: u32,
    /// MTU of the bond device, bytes.
    pub mtu: u32,
    /// What it would be if all paths carried what their devices take, bytes; 0: not known yet.
    pub mtu_ceiling: u32,
    /// 1 where the bond has a key.
    pub has_key: u32,
    /// GRE key, host order.
    pub key: u32,
    /// 1 where the peer's own prefix is tracked.
    pub has_peer: u32,
    /// Its address, IPv4-mapped where IPv4.
    pub peer: [u8; 16],
    /// Its length in bits, of 32 or 128.
    pub peer_length: u32,
    /// 1 where a route to it exists.
    pub peer_reachable: u32,
    /// [`crate::names::Encap`].
    pub encap: u32,
    /// For how long a packet is held at the most to be put in order, ns; 0: the bond keeps no order.
    pub longest_hold_ns: u32,
    /// [`crate::names::Mode`].
    pub mode: u32,
    /// Where the paths' weights come from: [`crate::names::Weights`].
    pub weights: u32,
    /// Whether packets from the LANs are encapsulated in the drivers there, or why not: [`crate::names::Xdp`].
    pub xdp_send: u32,
}
const _: () = assert!(size_of::<BondInfo>() == 104);

/// How many LAN devices there are at the most: entries of `LAN_INFO`.
pub const MAX_LANS: u32 = 64;

/// What the controller knows of a LAN device, for people: an entry of `LAN_INFO`, in the order of the
/// configuration. The data plane never reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct LanInfo {
    /// Name of the device; empty: no such device.
    pub name: [u8; NAME_LEN],
    /// Whether packets are forwarded in its driver, or why not: [`crate::names::Xdp`].
    pub xdp: u32,
    pub reserved: u32,
}
const _: () = assert!(size_of::<LanInfo>() == 40);

/// Bytes of the text of a [`ClassInfo`].
pub const CLASS_TEXT_LEN: usize = 216;

/// What the controller knows of a class, for people: an entry of `CLASS_INFO`, by [`Class::counter`].
/// The data plane never reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ClassInfo {
    /// Name of the class; empty: no such class.
    pub name: [u8; NAME_LEN],
    /// [`crate::names::Mode`].
    pub mode: u32,
    /// Its place among the bond's classes, counted from 0.
    pub place: u32,
    /// Which packets it takes, as people write it.
    pub text: [u8; CLASS_TEXT_LEN],
}
const _: () = assert!(size_of::<ClassInfo>() == 256);

/// What the controller knows of a path, for people: an entry of `PATH_INFO`, by path id. The data
/// plane never reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct PathInfo {
    /// Name of the path; empty: no such path.
    pub name: [u8; NAME_LEN],
    /// Name of the device that packets leave by; empty where none is known.
    pub device: [u8; NAME_LEN],
    /// When the state or its reason last changed, CLOCK_REALTIME, ns since 1970.
    pub changed_ns: u64,
    /// [`crate::names::PathState`].
    pub state: u32,
    /// [`crate::names::StateReason`].
    pub reason: u32,
    pub weight: u32,
    /// rtm_protocol of the route to the remote address; 0 where there is none.
    pub route_protocol: u32,
    /// Metric of that route.
    pub route_metric: u32,
    /// ifindex of that route's next hop: the path's own device where that is among them.
    pub route_ifindex: u32,
    /// Its gateway, IPv4-mapped where IPv4; zero where directly connected.
    pub route_gateway: [u8; 16],
    /// OSPF cost of the path's device; 0 where not known.
    pub ospf_cost: u32,
    /// Router id of the OSPF neighbour on the path's device, big-endian; 0 where not known.
    pub neighbour: [u8; 4],
    /// That neighbour's state as the daemon names it.
    pub neighbour_state: [u8; 16],
    /// Prefix of the route, IPv4-mapped where IPv4.
    pub route_prefix: [u8; 16],
    /// Its length, of 32 or 128.
    pub route_length: u32,
    /// The weight on the wheel, in quarters of the unit of `weight`: less than four times that where
    /// a policy reduces it, and of the inverse of OSPF's cost where that counts.
    pub quarters: u32,
    /// Among the paths in order of preference, the lowest first.
    pub priority: u32,
    /// Whether the program in its device's driver receives its packets, or why not:
    /// [`crate::names::Xdp`].
    pub xdp: u32,
}
const _: () = assert!(size_of::<PathInfo>() == 168);

/// The value of `ADMIN_DOWN`, by path id, that takes a path out; 0 leaves it in. Written by the CLI.
pub const ADMIN_DOWN: u32 = 1;
