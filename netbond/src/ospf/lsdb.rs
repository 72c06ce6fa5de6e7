//! OSPF's link-state database (RFC 2328, 12.4; of OSPFv3 RFC 5340, 4.4), as far as the daemons tell it: which
//! routers there are, which links join them, which prefixes they announce.

use std::net::Ipv4Addr;

use crate::config::Prefix;
use crate::control::event::OspfInterface;

/// What one OSPF instance tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub database: Database,
    /// Its own interfaces, with neighbours.
    pub interfaces: Vec<OspfInterface>,
}

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

impl Area {
    /// Whether its prefixes are IPv6: all are of one family (RFC 5838, 2.1).
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        let stubs = self.routers.iter().flat_map(|router| &router.stubs);
        let stubs = stubs.map(|stub| stub.prefix);
        let segments = self.segments.iter().filter_map(|segment| segment.prefix);
        let mut prefixes = stubs.chain(segments);
        prefixes.any(|prefix| prefix.address.is_ipv6())
    }
}

/// What a router says of itself (RFC 2328, 12.4.1), in the order in which it says it. In OSPFv3 its prefixes are in
/// LSAs of their own (RFC 5340, 4.4.3.9).
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
    /// The router's own address there; `None` where the link has none, or nobody tells: OSPFv3 and BIRD never do.
    pub address: Option<Ipv4Addr>,
    pub cost: u32,
}

/// A link to a segment with several routers, such as an Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transit {
    pub segment: SegmentId,
    /// The router's own address there, where the daemon tells.
    pub address: Option<Ipv4Addr>,
    pub cost: u32,
}

/// What a segment is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentId {
    /// Its prefix, without host bits, in OSPFv2.
    Prefix(Prefix),
    /// The designated router, and the number of that one's interface, in OSPFv3.
    Designated { router: Ipv4Addr, interface: u32 },
}

/// A prefix that the router announces: a host's, that of a point-to-point link, or of a segment without other
/// routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stub {
    /// Without host bits.
    pub prefix: Prefix,
    pub cost: u32,
}

/// A segment with several routers (RFC 2328, 12.4.2; RFC 5340, 4.4.3.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkLsa {
    pub id: SegmentId,
    /// Without host bits; `None` where it has none but link-local ones.
    pub prefix: Option<Prefix>,
    /// Ids of those who are on it.
    pub routers: Vec<Ipv4Addr>,
}
