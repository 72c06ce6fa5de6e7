//! What happens to the controller: every input of its state machine.
//!
//! Tasks (netlink, OSPF daemons, signals) only send these; the state machine reads no clock and does
//! no I/O, so a recorded stream of events replays exactly.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::liveness::Verdict;
use super::settle::Cause;

/// One input of the state machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A device appeared or changed (RTM_NEWLINK).
    Link(Link),
    /// A device is gone (RTM_DELLINK).
    LinkGone { ifindex: u32 },
    /// A device has an address (RTM_NEWADDR).
    Address { ifindex: u32, address: IpAddr },
    /// A device lost an address (RTM_DELADDR).
    AddressGone { ifindex: u32, address: IpAddr },
    /// What the kernel does now with a packet to `to`: the answer to RTM_GETROUTE with
    /// RTM_F_FIB_MATCH, or `None` where no route matches.
    Route { to: IpAddr, route: Option<Route> },
    /// What the OSPF daemons say of their neighbours and costs; replaces what they said before.
    Ospf(Vec<OspfInterface>),
    /// Probes say that a path lives, or that it does not.
    Liveness { path: u32, verdict: Verdict },
    /// The longest packet that a path carries is another, by probes: its bytes, outer headers included;
    /// `None` where it carries less than the bond needs.
    PathMtu { path: u32, bytes: Option<u32> },
    /// To whom packets of a path over this Ethernet device and to this remote address were sent until now, by an
    /// earlier controller's word.
    Neighbour {
        path: u32,
        ifindex: u32,
        remote: IpAddr,
        address: IpAddr,
    },
    /// The peer's options, which it tells by this path, differ from the bond's (`BOND_*`) in these; 0
    /// where they no longer do.
    Options {
        path: u32,
        peer: u32,
        difference: u8,
    },
    /// Where paths get what they were measured to carry: this one's share of the bond's bytes, per mille,
    /// 0 where quicker paths carry a light load alone; and what it carries, bytes/s, where it was ever
    /// full.
    Share {
        path: u32,
        per_mille: u32,
        carries: Option<u64>,
    },
    /// Each flow of this path's bond keeps its path, as a processor is the limit; or why that is not so any more.
    Settled { path: u32, striped: Option<Cause> },
    /// The user took a path out or back (`netbond path down|up`).
    Admin { path: u32, up: bool },
}

/// A network device, as far as a path cares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    /// IFF_UP and IFF_RUNNING. A tunnel device is always running: this says little of its underlay.
    pub up: bool,
    /// Bytes of network-layer packet.
    pub mtu: u32,
    /// The hardware address where frames start with an Ethernet header (ARPHRD_ETHER), `None` where
    /// they start with IP.
    pub mac: Option<[u8; 6]>,
}

/// A route of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The matching prefix: address and length.
    pub prefix: (IpAddr, u8),
    /// Who installed it (rtm_protocol): kernel 2, boot 3, static 4, zebra 11, bird 12, ospf 188, ...
    pub protocol: u8,
    /// RTA_PRIORITY; 0 where absent.
    pub metric: u32,
    /// RTN_UNICAST or RTN_LOCAL; false for blackhole, unreachable, prohibit, throw.
    pub usable: bool,
    /// One for a plain route, several for a multipath route or nexthop group.
    pub next_hops: Vec<NextHop>,
}

/// One way a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    pub ifindex: u32,
    /// `None` for a directly connected prefix.
    pub gateway: Option<IpAddr>,
}

/// An interface on which an OSPF daemon runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OspfInterface {
    /// Device name.
    pub device: String,
    /// The interface's OSPF output cost, where the daemon tells.
    pub cost: Option<u32>,
    pub neighbours: Vec<OspfNeighbour>,
}

/// A router heard on an OSPF interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OspfNeighbour {
    /// Router id, written as an IPv4 address (RFC 2328, 1.2).
    pub router_id: std::net::Ipv4Addr,
    pub address: IpAddr,
    /// The neighbour state machine's state (RFC 2328, 10.1) as the daemon names it: `Full`, `Init`, ...
    pub state: String,
}
