//! What XDP asks of devices: of those in whose driver the program is, and of the bond devices that get frames
//! from there.

use std::net::IpAddr;

use anyhow::Context as _;

use super::device::Netlink;
use super::{ethtool, link};
use crate::control::event::Link;

impl Netlink {
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

    /// Whether a bond device still does that: without GRO it would lose them.
    #[must_use]
    pub fn takes_frames(&self, name: &str) -> bool {
        ethtool::has_gro(name).unwrap_or(false)
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
