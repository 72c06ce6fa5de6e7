//! What the kernel is asked for the way of a packet, and answers: `bpf_fib_lookup`.

use bytemuck::{Pod, Zeroable};
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

    /// The way that was found.
    #[inline(always)]
    #[must_use]
    pub const fn way(&self) -> Way {
        Way {
            ifindex: self.ifindex,
            mtu: self.len as u32,
            addresses: self.addresses,
        }
    }

    /// What is asked, but for the length: the kernel answers alike what is alike in this.
    #[inline(always)]
    const fn question(&self) -> [u64; QUESTION] {
        let [[a, b], [c, d]] = self.ports;
        let [e, f, g, h] = self.class;
        let [i, j, k, l] = self.ifindex.to_ne_bytes();
        [
            u64::from_ne_bytes([self.family, self.transport, a, b, c, d, 0, 0]),
            u64::from_ne_bytes([i, j, k, l, e, f, g, h]),
            self.source[0],
            self.source[1],
            self.destination[0],
            self.destination[1],
        ]
    }

    /// The place of the question's [`Answer`].
    #[inline(always)]
    #[must_use]
    pub const fn place(&self) -> u32 {
        // Of the golden ratio, 64 bits: what differs in any bit differs in the upper ones.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let [a, b, c, d, e, f] = self.question();
        let mixed = (a ^ c.rotate_left(13) ^ e.rotate_left(29)).wrapping_mul(SPREAD)
            ^ b
            ^ d
            ^ f.rotate_left(17);
        (mixed.wrapping_mul(SPREAD) >> (u64::BITS - ANSWERS.ilog2())) as u32
    }
}

/// The way on that the kernel found.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Way {
    /// ifindex of the device.
    pub ifindex: u32,
    /// What the route takes, bytes.
    mtu: u32,
    /// Source and destination of the frame.
    addresses: [[u8; 6]; 2],
}

impl Way {
    /// Whether it takes a packet of so many bytes.
    #[inline(always)]
    #[must_use]
    pub const fn takes(&self, len: u32) -> bool {
        len <= self.mtu
    }

    /// The frame's header; `protocol` is its EtherType, big-endian.
    #[inline(always)]
    #[must_use]
    pub const fn header(&self, protocol: [u8; 2]) -> Header {
        let [from, to] = self.addresses;
        frame::header(to, from, protocol)
    }

    /// The last byte of the neighbour's address.
    #[inline(always)]
    #[must_use]
    pub const fn neighbour(&self) -> u8 {
        self.addresses[1][5]
    }
}

/// For how long a [`Hop`] or an [`Answer`] holds, ns, by a clock whose ticks are up to 10 ms.
const HOLDS: u64 = 5_000_000;
/// How many next hops a CPU knows: a power of two.
pub const HOPS: u32 = 256;
/// How many answers: likewise.
pub const ANSWERS: u32 = 1024;
/// Words of a question.
const QUESTION: usize = 6;

/// The next hop of a path, as a CPU last found it: an entry of `HOPS`, by the path's id modulo [`HOPS`]. Of
/// programs alone: to ask the kernel for each packet takes several hundred instructions.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Hop {
    /// Until when it holds, CLOCK_MONOTONIC, ns.
    until_ns: u64,
    /// The path's remote address: another one has another next hop.
    remote: [u64; 2],
    path: u32,
    /// With outer headers included in lengths.
    pub way: Way,
}
const _: () = assert!(size_of::<Hop>() == 48);

impl Hop {
    /// Whether it is that of this path, which leaves by this device.
    #[inline(always)]
    #[must_use]
    pub fn holds(&self, id: u32, path: &Path, ifindex: u32, now: u64) -> bool {
        self.path == id
            && self.way.ifindex == ifindex
            && is_alike(self.remote, words(&path.remote))
            && now < self.until_ns
    }

    /// Notes what was found for a path.
    #[inline(always)]
    pub fn note(&mut self, id: u32, path: &Path, route: &Route, now: u64) {
        self.until_ns = now + HOLDS;
        self.remote = words(&path.remote);
        self.path = id;
        self.way = route.way();
    }
}

/// Where packets go on that came in, as the kernel last told a CPU: an entry of `ANSWERS`, by [`Route::place`]. Of
/// programs alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Answer {
    /// Until when it holds, CLOCK_MONOTONIC, ns.
    until_ns: u64,
    question: [u64; QUESTION],
    /// 1 where the neighbour is known.
    known: u32,
    pub way: Way,
}
const _: () = assert!(size_of::<Answer>() == 80);

impl Answer {
    /// Whether it answers what is asked. The kernel tells an MTU only with a neighbour: without one it is the length of
    /// what was asked for.
    #[inline(always)]
    #[must_use]
    pub fn holds(&self, route: &Route, now: u64) -> bool {
        let [a, b, c, d, e, f] = route.question();
        let [u, v, w, x, y, z] = self.question;
        (a ^ u) | (b ^ v) | (c ^ w) | (d ^ x) | (e ^ y) | (f ^ z) == 0
            && now < self.until_ns
            && self.way.takes(u32::from(route.len))
    }

    /// Notes what is asked, which is not answered yet: the kernel answers in the question's place.
    #[inline(always)]
    pub fn ask(&mut self, route: &Route) {
        self.until_ns = 0;
        self.question = route.question();
    }

    /// Notes what it answered.
    #[inline(always)]
    pub fn note(&mut self, route: &Route, known: bool, now: u64) {
        self.until_ns = now + HOLDS;
        self.known = u32::from(known);
        self.way = route.way();
    }

    /// Whether the neighbour is known.
    #[inline(always)]
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.known != 0
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The question of a TCP packet between two hosts.
    fn question(source: u8, destination: u8, port: u16) -> Route {
        Route {
            family: AF_INET,
            transport: 6,
            ports: [port.to_be_bytes(), 443_u16.to_be_bytes()],
            len: 1000,
            ifindex: 7,
            class: [0; 4],
            source: [word([192, 0, 2, source]), 0],
            destination: [word([198, 51, 100, destination]), 0],
            tag: 0,
            addresses: [[2; 6]; 2],
        }
    }

    /// What lies side by side, ports or addresses, does not share places: half of all taken at random are 403.
    #[test]
    fn questions_are_spread() {
        let places = |question: &dyn Fn(u16) -> Route| {
            let places: BTreeSet<u32> = (0..512).map(|number| question(number).place()).collect();
            assert!(places.iter().all(|&place| place < ANSWERS));
            places.len()
        };
        let by_port = places(&|number| question(1, 1, 40_000 + number));
        let by_hosts = places(&|number| question((number / 32) as u8, (number % 32) as u8, 40_000));
        assert!(by_port > 350 && by_hosts > 350, "{by_port} {by_hosts}");
    }

    #[test]
    fn an_answer_holds_for_its_question() {
        let mut answer = Answer::zeroed();
        let asked = question(1, 2, 3);
        assert!(!answer.holds(&asked, 1), "nothing was asked");
        answer.ask(&asked);
        assert!(!answer.holds(&asked, 1), "nothing is answered");
        // As the kernel answers: in the question's place.
        let told = Route {
            len: 1300,
            ifindex: 9,
            class: [1; 4],
            destination: [word([192, 0, 2, 254]), 0],
            ..asked
        };
        answer.note(&told, true, 1);
        assert!(answer.holds(&asked, 1) && answer.is_known());
        assert!(answer.holds(&Route { len: 1300, ..asked }, HOLDS));
        assert!(!answer.holds(&Route { len: 1301, ..asked }, 1), "too long");
        assert!(!answer.holds(&asked, HOLDS + 1), "too old");
        for other in [
            question(2, 2, 3),
            question(1, 1, 3),
            question(1, 2, 4),
            Route {
                ifindex: 9,
                ..asked
            },
            Route {
                class: [8, 0, 0, 0],
                ..asked
            },
            Route {
                transport: 17,
                ..asked
            },
        ] {
            assert!(!answer.holds(&other, 1), "{other:?}");
        }
        assert_eq!(
            answer.way.header([8, 0]),
            frame::header([2; 6], [2; 6], [8, 0])
        );
    }
}
