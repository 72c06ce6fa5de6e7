//! What the kernel is asked for the way of a packet, and answers: `bpf_fib_lookup`.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    abi::{AF_INET, AF_INET6, Path},
    flow::has_ports,
    frame::{self, Header},
    gre, ipv4,
    onward::Onward,
};

/// struct bpf_fib_lookup of linux/bpf.h: a question, and in the same place the answer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    family: u8,
    transport: u8,
    /// Source and destination port, big-endian: rules, and routes with several next hops, may go by them.
    ports: [[u8; 2]; 2],
    /// Bytes of the packet, which is not to exceed the route's MTU; then that.
    len: u16,
    /// ifindex of the device that the packet came in on, or is to leave by; then of that which it leaves by.
    pub ifindex: u32,
    /// Of IPv4 the TOS and zeros, of IPv6 traffic class and flow label.
    class: [u8; 4],
    /// Big-endian; IPv4's in the first half of the first word.
    source: [u64; 2],
    destination: [u64; 2],
    tag: u32,
    /// Source and destination of the frame.
    addresses: [[u8; 6]; 2],
}
const _: () = assert!(size_of::<Route>() == 64);

impl Route {
    /// Asks for the way of an IPv4 packet that came in on this device; `ports` are the four bytes behind its
    /// header.
    #[inline(always)]
    pub fn ask_ipv4(&mut self, ifindex: u32, header: &Ipv4Hdr, onward: &Onward, ports: [u8; 4]) {
        self.begin(AF_INET, ifindex, onward.len, onward.transport);
        self.class = [header.tos, 0, 0, 0];
        self.source = [word(header.src_addr), 0];
        self.destination = [word(header.dst_addr), 0];
        self.set_ports(onward, ports);
    }

    /// The same of an IPv6 packet with these addresses, source and destination, as they lie in memory.
    #[inline(always)]
    pub fn ask_ipv6(
        &mut self,
        ifindex: u32,
        header: &[u8; Ipv6Hdr::LEN],
        [a, b, c, d]: [u64; 4],
        onward: &Onward,
        ports: [u8; 4],
    ) {
        self.begin(AF_INET6, ifindex, onward.len, onward.transport);
        self.class = [header[0] & 0x0f, header[1], header[2], header[3]];
        self.source = [a, b];
        self.destination = [c, d];
        self.set_ports(onward, ports);
    }

    /// Asks for the next hop of a path's packet of so many bytes, outer headers included, out of this device; with no
    /// TOS, as the answer is for all of its packets.
    #[inline(always)]
    pub fn ask_path(&mut self, path: &Path, ifindex: u32, over_ipv6: bool, len: u32) {
        if over_ipv6 {
            self.begin(AF_INET6, ifindex, len, gre::IP_PROTOCOL);
            self.source = words(&path.local);
            self.destination = words(&path.remote);
        } else {
            self.begin(AF_INET, ifindex, len, gre::IP_PROTOCOL);
            self.source = [word(ipv4::unmapped(&path.local)), 0];
            self.destination = [word(ipv4::unmapped(&path.remote)), 0];
        }
    }

    /// Asks for the address of a path's next hop on its device: of that itself where it is IPv4, so that no route to
    /// the remote address is needed. One of IPv6 is link-local as a rule, and of those the kernel tells nothing
    /// (`rt6_need_strict` in `bpf_ipv6_fib_lookup`). See [`Self::is_of`].
    #[inline(always)]
    pub fn ask_neighbour(&mut self, path: &Path, over_ipv6: bool) {
        self.ask_path(path, path.ifindex, over_ipv6, 0);
        if !over_ipv6 && path.next_hop.family == u32::from(AF_INET) {
            // Behind the address there are zeros, as here.
            self.destination = words(&path.next_hop.address);
        }
    }

    #[inline(always)]
    fn begin(&mut self, family: u8, ifindex: u32, len: u32, transport: u8) {
        self.family = family;
        self.transport = transport;
        self.ports = [[0; 2]; 2];
        self.len = len as u16;
        self.ifindex = ifindex;
        self.class = [0; 4];
        self.tag = 0;
    }

    #[inline(always)]
    fn set_ports(&mut self, onward: &Onward, [a, b, c, d]: [u8; 4]) {
        if onward.whole && has_ports(onward.transport) {
            self.ports = [[a, b], [c, d]];
        }
    }

    /// Whether the way that was found leads out of the path's device by its next hop, where one is known: the kernel puts
    /// it in the place of the destination. Without a branch: the ways through a program multiply.
    #[inline(always)]
    #[must_use]
    pub const fn is_of(&self, path: &Path) -> bool {
        let family = path.next_hop.family;
        let is_known = (family | family.wrapping_neg()) >> 31;
        let ([a, b], [c, d]) = (self.destination, words(&path.next_hop.address));
        let elsewhere = ((a ^ c) | (b ^ d)) & 0_u64.wrapping_sub(is_known as u64);
        (self.ifindex ^ path.ifindex) as u64 | elsewhere == 0
    }

    /// The route's MTU, of an answer.
    #[inline(always)]
    #[must_use]
    pub const fn mtu(&self) -> u32 {
        self.len as u32
    }

    /// The frame's header on the way that was found; `protocol` is its EtherType, big-endian.
    #[inline(always)]
    #[must_use]
    pub const fn header(&self, protocol: [u8; 2]) -> Header {
        header(self.addresses, protocol)
    }

    /// The last byte of the address of the neighbour that was found.
    #[inline(always)]
    #[must_use]
    pub const fn neighbour(&self) -> u8 {
        self.addresses[1][5]
    }
}

/// For how long a [`Hop`] holds, ns, by a clock whose ticks are up to 10 ms.
const HOP_HOLDS: u64 = 5_000_000;
/// How many a CPU knows: a power of two.
pub const HOPS: u32 = 256;

/// The next hop of a path, as a CPU last found it: an entry of `HOPS`, by the path's id modulo [`HOPS`]. Of
/// programs alone: to ask the kernel for each packet takes several hundred instructions.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Until when it holds, CLOCK_MONOTONIC, ns.
    until_ns: u64,
    /// The path's remote address: another one has another next hop.
    remote: [u64; 2],
    path: u32,
    /// ifindex of the device.
    pub ifindex: u32,
    /// What the route takes, bytes.
    mtu: u32,
    /// Source and destination of the frame.
    addresses: [[u8; 6]; 2],
}
const _: () = assert!(size_of::<Hop>() == 48);

impl Hop {
    /// Whether it is that of this path, which leaves by this device.
    #[inline(always)]
    #[must_use]
    pub fn holds(&self, id: u32, path: &Path, ifindex: u32, now: u64) -> bool {
        self.path == id
            && self.ifindex == ifindex
            && is_alike(self.remote, words(&path.remote))
            && now < self.until_ns
    }

    /// Whether it takes a packet of so many bytes, outer headers included.
    #[inline(always)]
    #[must_use]
    pub const fn takes(&self, len: u32) -> bool {
        len <= self.mtu
    }

    /// Notes what was found for a path.
    #[inline(always)]
    pub fn note(&mut self, id: u32, path: &Path, route: &Route, now: u64) {
        self.until_ns = now + HOP_HOLDS;
        self.remote = words(&path.remote);
        self.path = id;
        self.ifindex = route.ifindex;
        self.mtu = route.mtu();
        self.addresses = route.addresses;
    }

    /// The header of a frame to it; `protocol` is its EtherType, big-endian.
    #[inline(always)]
    #[must_use]
    pub const fn header(&self, protocol: [u8; 2]) -> Header {
        header(self.addresses, protocol)
    }
}

#[inline(always)]
const fn header([from, to]: [[u8; 6]; 2], protocol: [u8; 2]) -> Header {
    frame::header(to, from, protocol)
}

/// An IPv4 address where an IPv6 one has room.
#[inline(always)]
const fn word([a, b, c, d]: [u8; 4]) -> u64 {
    u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0])
}

/// Whether two addresses are the same: comparing arrays would be a call.
#[inline(always)]
const fn is_alike([a, b]: [u64; 2], [c, d]: [u64; 2]) -> bool {
    (a ^ c) | (b ^ d) == 0
}

/// An address in two words as they lie in memory.
#[inline(always)]
const fn words(address: &[u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    ]
}
