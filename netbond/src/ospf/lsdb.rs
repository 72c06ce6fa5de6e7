//! OSPFv2's link-state database (RFC 2328, 12.4), as far as the daemons tell it: which routers there are, which
//! links join them, which prefixes they announce.

use std::net::Ipv4Addr;

use crate::config::Prefix;

/// What one OSPF instance knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// This router's id.
    pub own: Ipv4Addr,
    pub areas: Vec<Area>,
}

/// What is known of one area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// Written as an address: `0.0.0.0` is the backbone.
    pub id: Ipv4Addr,
    pub routers: Vec<RouterLsa>,
    pub segments: Vec<NetworkLsa>,
}

/// What a router says of itself (RFC 2328, 12.4.1), in the order in which it says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterLsa {
    /// Its router id.
    pub id: Ipv4Addr,
    pub point_to_point: Vec<PointToPoint>,
    pub transit: Vec<Transit>,
    pub stubs: Vec<Stub>,
}

impl RouterLsa {
    /// A router that has said nothing yet.
    #[must_use]
    pub const fn new(id: Ipv4Addr) -> Self {
        Self {
            id,
            point_to_point: Vec::new(),
            transit: Vec::new(),
            stubs: Vec::new(),
        }
    }
}

/// A link to one other router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointToPoint {
    /// Its router id.
    pub neighbour: Ipv4Addr,
    /// The router's own address there; `None` where the link has none, or the daemon does not tell: BIRD never
    /// does.
    pub address: Option<Ipv4Addr>,
    pub cost: u32,
}

/// A link to a segment with several routers, such as an Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transit {
    /// The segment's.
    pub prefix: Prefix,
    /// The router's own address there, where the daemon tells.
    pub address: Option<Ipv4Addr>,
    pub cost: u32,
}

/// A prefix that the router announces: a host's, that of a point-to-point link, or of a segment without other
/// routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stub {
    /// Without host bits.
    pub prefix: Prefix,
    pub cost: u32,
}

/// A segment with several routers (RFC 2328, 12.4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkLsa {
    /// Without host bits.
    pub prefix: Prefix,
    /// Ids of those who are on it.
    pub routers: Vec<Ipv4Addr>,
}
