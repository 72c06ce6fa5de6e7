//! What a program notes of the packet at hand, in a map: the stack is short, and of what stands in a map
//! the verifier knows nothing. It need not walk through all that follows once for each way in which a
//! value may have come about.

use crate::{
    abi::{Flowlet, Turns},
    class::Subject,
    frame::Header,
    onward::Onward,
    route::Route,
    select::Copies,
    turns::Keys,
};

/// A CPU's notes: the one entry of `NOTES`. Nobody else reads them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Notes {
    pub subject: Subject,
    pub keys: Keys,
    /// Hash of the packet's flow, where some feature needs one.
    pub flow: u32,
    /// Where packets of its class are counted.
    pub class: u32,
    /// The lane that it takes.
    pub lane: u32,
    /// 1 where it needs no number: its flow keeps its path.
    pub settled: u32,
    /// Where it is to be sent, if on several paths.
    pub copies: Copies,
    /// And then what all of its copies have in common.
    pub copied: Copied,
    /// Of a received packet: what is to be known of its outer headers to take them away.
    pub cover: u32,
    /// 1 where it has a sequence field, and what that is.
    pub stamped: u32,
    pub field: u32,
    pub identification: u32,
    /// Of a packet that is of no path: the kernel's action.
    pub action: i32,
    /// Of a packet that a driver may forward: what it is, and its way.
    pub onward: Onward,
    pub route: Route,
    /// And of a bond that carries frames, the header of that in which it goes to the bond's neighbour.
    pub frame: Header,
    /// 1 where there is one.
    pub framed: u16,
    /// And the turns of its lane as they were before it: if it is left to the kernel after all, it has taken none.
    pub turns: Turns,
    /// Likewise where its flow went last.
    pub flowlet: Flowlet,
}

// The size of a map's values: another one is another `ABI_VERSION`.
const _: () = assert!(size_of::<Notes>() == 656);

/// What the outer headers say of a packet that is sent on several paths, whichever that is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// Packets on the wire that it stands for.
    pub packets: u32,
    /// Bytes of it, without any encapsulation.
    pub len: u32,
    /// Bytes of the GRE header.
    pub gre_len: u32,
    /// IPv4's.
    pub identification: u32,
    /// IPv6's flow label.
    pub label: u32,
    pub tos: u8,
    pub ttl: u8,
    /// 1 where IPv4's routers may not fragment it.
    pub dont_fragment: u8,
    /// 1 where the header that was made is IPv6's. The path's record may say otherwise by now.
    pub over_ipv6: u8,
}
