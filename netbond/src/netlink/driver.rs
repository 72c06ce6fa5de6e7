//! What XDP asks of devices: of those in whose driver the program is, of those whose drivers send what others
//! received, and of the bond devices that get frames from there.

use std::io;
use std::net::IpAddr;

use anyhow::Context as _;

use super::device::Netlink;
use super::socket::{GENLMSGHDR, RequestSocket, attributes};
use super::{ethtool, link};
use crate::control::event::Link;

// linux/netdev.h.
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

/// A device that packets are routed from and to: neither where there is none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Routed {
    /// Up, with a carrier.
    pub up: bool,
    /// Whether what it receives is another one's, a bridge's say.
    pub is_port: bool,
}

impl Netlink {
    /// Whether a device's driver sends frames that others received, as it is set up now; `None` where the kernel
    /// does not tell (before Linux 6.3).
    ///
    /// # Errors
    ///
    /// The device is gone, or the kernel refuses.
    pub fn sends_frames(&mut self, ifindex: u32) -> io::Result<Option<bool>> {
        let mut socket = RequestSocket::open_generic()?;
        let family = match socket.family("netdev") {
            Ok(family) => family,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let device = [(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes()[..])];
        let answer = socket.ask(family, 0, &[NETDEV_CMD_DEV_GET, 1, 0, 0], &device)?;
        let body = answer.into_body()?;
        let features = attributes(body.get(GENLMSGHDR..).unwrap_or_default())
            .find(|(attribute, _)| *attribute == NETDEV_A_DEV_XDP_FEATURES)
            .and_then(|(_, value)| value.first_chunk().copied().map(u64::from_ne_bytes));
        Ok(features.map(|features| features & NETDEV_XDP_ACT_NDO_XMIT != 0))
    }

    /// Has a bond device take the frames that drivers hand to the other end of its pair, on whatever CPU they
    /// come: with GRO on it polls (NAPI), with a queue for each CPU.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn take_frames(&self, name: &str) -> anyhow::Result<()> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        // An older kernel has one queue for all, which serves.
        let _ = ethtool::add_queues(name, u32::try_from(cpus).unwrap_or(1));
        ethtool::switch(name, ethtool::Offload::Gro, true)
            .with_context(|| format!("cannot switch GRO on, on {name}"))
    }

    /// Whether a bond device still does that: without GRO it would lose them. One that is gone loses none.
    #[must_use]
    pub fn takes_frames(&self, name: &str) -> bool {
        ethtool::has_gro(name).unwrap_or_else(|error| error.raw_os_error() == Some(libc::ENODEV))
    }

    /// Whether a device is an end of a veth pair.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn is_veth(&mut self, ifindex: u32) -> anyhow::Result<bool> {
        let details = link::by_index(&mut self.requests, ifindex);
        let details = details.context("cannot look up a device")?;
        Ok(details.is_some_and(|details| details.kind == "veth"))
    }

    /// Whether a device is made of others, in whose drivers its program would run, and as theirs.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn has_ports(&mut self, ifindex: u32) -> anyhow::Result<bool> {
        let details = link::by_index(&mut self.requests, ifindex);
        let details = details.context("cannot look up a device")?;
        Ok(details.is_some_and(|details| ["bond", "team"].contains(&details.kind.as_str())))
    }

    /// Of what kind of device another one is a port, so that what it receives is that one's: a bridge's, say.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn port_of(&mut self, ifindex: u32) -> anyhow::Result<Option<String>> {
        let details = link::by_index(&mut self.requests, ifindex);
        let port_of = details.context("cannot look up a device")?;
        Ok(port_of
            .filter(link::LinkDetails::is_port)
            .map(|details| details.port_of))
    }

    /// How a device stands that packets are routed from and to.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn routed(&mut self, ifindex: u32) -> anyhow::Result<Routed> {
        let details = link::by_index(&mut self.requests, ifindex);
        let details = details.context("cannot look up a device")?;
        Ok(details.map_or_else(Routed::default, |details| Routed {
            up: details.link.up,
            is_port: details.is_port(),
        }))
    }

    /// Whether tags of frames for VLAN devices over this one are not to be seen in its driver.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn hides_tags(&mut self, ifindex: u32, name: &str) -> anyhow::Result<bool> {
        // A driver that does not tell is taken for one that does.
        if !ethtool::takes_tags(name).unwrap_or(true) {
            return Ok(false);
        }
        let links = link::dump(&mut self.requests).context("cannot list devices")?;
        let over =
            |details: &link::LinkDetails| details.kind == "vlan" && details.peer == Some(ifindex);
        Ok(links.iter().any(over))
    }

    /// The device that a path leaves by: the one of this name, or with this address.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub fn path_device(
        &mut self,
        name: Option<&str>,
        local: IpAddr,
    ) -> anyhow::Result<Option<Link>> {
        if let Some(name) = name {
            return self.link_by_name(name);
        }
        let addresses =
            link::dump_addresses(&mut self.requests).context("cannot list addresses")?;
        match addresses.iter().find(|device| device.address == local) {
            Some(device) => self.link_by_index(device.ifindex),
            None => Ok(None),
        }
    }
}
