//! What a host has of a bond made by hand: devices, addresses, neighbours and routes as the kernel
//! tells them, not yet interpreted.

use std::net::IpAddr;

use crate::config::Prefix;

/// All that is read of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    pub devices: Vec<Device>,
    pub addresses: Vec<Address>,
    pub neighbours: Vec<Neighbour>,
    /// Routes over the devices that were asked about, but for those the kernel makes itself.
    pub routes: Vec<Route>,
    /// How packets to the tunnels' far ends leave.
    pub ways: Vec<Way>,
}

impl Host {
    pub(crate) fn by_name(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.name == name)
    }

    pub(crate) fn by_index(&self, ifindex: u32) -> Option<&Device> {
        self.devices.iter().find(|device| device.ifindex == ifindex)
    }

    /// The name of a device, or its index where it is not in this network namespace.
    pub(crate) fn name_of(&self, ifindex: u32) -> String {
        self.by_index(ifindex)
            .map_or_else(|| format!("#{ifindex}"), |device| device.name.clone())
    }

    pub(super) fn way_to(&self, remote: IpAddr) -> Option<&Way> {
        self.ways.iter().find(|way| way.remote == remote)
    }
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub ifindex: u32,
    pub name: String,
    /// Bytes.
    pub mtu: u32,
    pub kind: Kind,
    /// The ifindex of the bond, team or bridge that it is a port of.
    pub master: Option<u32>,
    /// The ifindex of the device below it (IFLA_LINK), where that is in the same namespace.
    pub lower: Option<u32>,
    /// As a port of a kernel bond: whether the bond has taken it out, by its monitor.
    pub down_in_bond: bool,
}

/// What a device is, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Bond(KernelBond),
    Team,
    /// `gre` and `gretap`, `ip6gre` and `ip6gretap`.
    Gre(Gre),
    Vlan {
        id: u16,
    },
    /// IFLA_INFO_KIND; empty for hardware and the loopback device.
    Other(String),
}

/// The settings of a kernel bond.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelBond {
    /// `BOND_MODE_*` of linux/if_bonding.h.
    pub mode: u8,
    /// Between two looks at the carrier, ms; 0: none.
    pub miimon: u32,
    /// Between two ARP requests, ms; 0: none.
    pub arp_interval: u32,
    pub arp_targets: Vec<IpAddr>,
    /// The ifindex of the active port, in modes that have one.
    pub active: Option<u32>,
    /// Whether packets that come in on a port out of use are taken all the same.
    pub all_slaves_active: bool,
}

/// The settings of a GRE tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gre {
    /// `gretap` or `ip6gretap`: it carries Ethernet frames.
    pub ethernet: bool,
    /// Unspecified: any.
    pub local: IpAddr,
    pub remote: IpAddr,
    pub input: GreOptions,
    pub output: GreOptions,
    /// The ifindex of the device that it is bound to.
    pub link: Option<u32>,
    /// Hops; 0: that of the inner packet.
    pub ttl: u8,
    /// 1: that of the inner packet.
    pub tos: u8,
    /// DF set on every outer packet, over IPv4.
    pub pmtudisc: bool,
    /// Addresses and keys come with each packet (`external`).
    pub external: bool,
    /// Wrapped into UDP (FOU, GUE).
    pub wrapped: bool,
    /// Firewall mark of the outer packets; 0: none.
    pub fwmark: u32,
    /// Over IPv6: a tunnel encapsulation limit (RFC 2473, 4.1.1) between the outer header and GRE's.
    pub encap_limit: bool,
}

/// Optional fields of the GRE header in one direction (RFC 2784, RFC 2890).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GreOptions {
    pub key: Option<u32>,
    pub checksum: bool,
    pub sequence: bool,
}

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub ifindex: u32,
    pub own: Prefix,
    /// The far end's, where the device is point-to-point.
    pub far: Option<IpAddr>,
}

/// A neighbour whose link-layer address is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub ifindex: u32,
    pub address: IpAddr,
}

/// A route, with what is needed to make it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub to: Prefix,
    pub table: u32,
    /// rtm_protocol: who made it.
    pub protocol: u8,
    /// 0: none given.
    pub metric: u32,
    pub source: Option<IpAddr>,
    pub hops: Vec<Hop>,
}

/// One way that a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    pub ifindex: u32,
    pub gateway: Option<IpAddr>,
}

/// How packets to a tunnel's far end leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub remote: IpAddr,
    /// The source address that the kernel takes unless told otherwise.
    pub source: Option<IpAddr>,
    /// Ifindexes.
    pub devices: Vec<u32>,
    /// rtm_protocol of the route.
    pub protocol: u8,
}
