//! The links of a router: its devices come and go, whatever they are.

use std::net::Ipv6Addr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::impair::Impairment;
use crate::namespace::{self, ip_batch};
use crate::router::Router;
use crate::topology::{LinkKind, LocalEnd};
use crate::wireguard::WireGuard;
use crate::{anchor, failure};

impl Router {
    /// Creates one of the router's devices, with address, MTU and, for WireGuard, keys and peer, and sets it
    /// up: as at the start of the lab, or after [`Router::delete_device`]. Ethernet has its other end with it.
    pub fn create_device(&self, device: &str) -> Result<()> {
        self.create_devices(vec![self.end(device)?])
    }

    /// Creates several devices, as [`Router::create_device`] does.
    pub(crate) fn create_devices(&self, ends: Vec<LocalEnd>) -> Result<()> {
        let (tunnels, wires): (Vec<_>, Vec<_>) = ends
            .into_iter()
            .partition(|end| end.kind == LinkKind::WireGuard);
        wires.iter().try_for_each(|end| self.lay_wire(end))?;
        if tunnels.is_empty() {
            return Ok(());
        }
        self.create_tunnels(&tunnels)
    }

    /// Deletes one of the router's devices: the interface disappears, and of Ethernet the other end as well.
    pub fn delete_device(&self, device: &str) -> Result<()> {
        match self.end(device)?.kind {
            LinkKind::WireGuard => self.delete_tunnel(device),
            LinkKind::Ethernet => self.ip(&format!("link del {device}\n")),
        }
        .with_context(|| format!("cannot delete {device} in router {}", self.name()))
    }

    /// Has this end of a veth pair, which is none of the topology's, behave as one of a wire.
    pub fn make_wire(&self, device: &str) -> Result<()> {
        make_wire(self.netns(), device)
    }

    /// Makes what a device sends suffer.
    pub(crate) fn impair_device(&self, device: &str, impairment: Impairment) -> Result<()> {
        let end = self.end(device)?;
        match (end.kind, self.wireguard()) {
            (LinkKind::WireGuard, WireGuard::Embedded) => {
                let request = format!("impair {device} {}", impairment.words());
                anchor::request(self.socket(), &request)
            }
            (LinkKind::WireGuard, WireGuard::Kernel) | (LinkKind::Ethernet, _) => {
                failure::impair(self.netns(), &end.underlay_device, impairment)
            }
        }
        .with_context(|| format!("cannot impair {device} in router {}", self.name()))
    }

    /// Joins the router to its neighbour by a veth pair, unless the neighbour has done so.
    fn lay_wire(&self, end: &LocalEnd) -> Result<()> {
        let path = format!("/sys/class/net/{}", end.device);
        if self.host_path(&path).exists() {
            return Ok(());
        }
        let mut ends = self.topology().ends_of(&end.peer);
        let far = ends
            .find(|far| far.peer == self.name())
            .with_context(|| format!("{} has no other end", end.device))?;
        let far_netns = namespace::netns_name(self.lab(), &end.peer);
        self.ip(&format!(
            "link add {} mtu {} type veth peer name {} mtu {} netns {far_netns}\n",
            end.device, end.mtu, far.device, far.mtu
        ))?;
        for (netns, end) in [(self.netns(), end), (far_netns.as_str(), &far)] {
            set_up(netns, end).with_context(|| format!("cannot set {} up", end.device))?;
        }
        Ok(())
    }

    pub(crate) fn end(&self, device: &str) -> Result<LocalEnd> {
        let mut ends = self.topology().ends_of(self.name());
        ends.find(|end| end.device == device).with_context(|| {
            let known: Vec<_> = self
                .topology()
                .ends_of(self.name())
                .map(|end| end.device)
                .collect();
            format!(
                "router {} has no device {device}; it has {}",
                self.name(),
                known.join(", ")
            )
        })
    }
}

impl LocalEnd {
    /// Commands of ip(8) that give a device its IPv6 addresses. The kernel takes them away from one that goes
    /// down, and has none while it is: they come after it is up.
    pub(crate) fn addresses_v6(&self) -> String {
        // A prefix with room for two: OSPFv3 tells nobody else the addresses on a link.
        let addresses = [(self.overlay_v6, 126), (self.link_local(), 64)];
        let add = |(address, length): (Option<Ipv6Addr>, u8)| {
            let address = address?;
            Some(format!(
                "addr add {address}/{length} dev {} nodad\n",
                self.device
            ))
        };
        addresses.into_iter().filter_map(add).collect()
    }
}

/// Has an end of a veth pair behave as one of a wire: none has packets without checksums, as a veth hands them
/// over. And with GRO on veth keeps its queue when an XDP program comes or goes, where it would throw away
/// what is in it.
fn make_wire(netns: &str, device: &str) -> Result<()> {
    namespace::within(netns, || {
        let words = ["-K", device, "tx", "off", "gro", "on"];
        let output = Command::new("ethtool")
            .args(words)
            .output()
            .context("cannot run ethtool")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ethtool: {}", said.trim());
        Ok(())
    })
}

/// Sets an end of a wire up, with its addresses.
fn set_up(netns: &str, end: &LocalEnd) -> Result<()> {
    let LocalEnd {
        device, overlay, ..
    } = end;
    make_wire(netns, device)?;
    let up = format!(
        "link set {device} addrgenmode none\naddr add {overlay}/30 dev {device}\n\
         link set {device} up\n"
    );
    ip_batch(netns, &(up + &end.addresses_v6()))
}
