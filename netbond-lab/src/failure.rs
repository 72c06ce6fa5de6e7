//! Making links and routers fail, and mending them.

use anyhow::{Context as _, Result};

use crate::impair::Impairment;
use crate::lab::Lab;
use crate::namespace::iproute2;
use crate::topology::link_device;

/// Packets that netem may hold back at a time.
const NETEM_LIMIT: u32 = 100_000;

impl Lab {
    /// Silently drops everything that router `from` sends to its neighbour `to`; what `to` sends
    /// still arrives. No device changes its state.
    pub fn blackhole(&self, from: &str, to: &str) -> Result<()> {
        cut(self.router(from).netns(), &self.underlay(from, to)?)
    }

    /// Ends [`Lab::blackhole`] from `from` to `to`. Nothing to end is no error.
    pub fn heal(&self, from: &str, to: &str) -> Result<()> {
        mend(self.router(from).netns(), &self.underlay(from, to)?)
    }

    /// Black-holes every link of a router in both directions, as if it had silently died.
    pub fn fail_router(&self, name: &str) -> Result<()> {
        for peer in self.neighbours(name) {
            self.blackhole(name, &peer)?;
            self.blackhole(&peer, name)?;
        }
        Ok(())
    }

    /// Ends [`Lab::fail_router`].
    pub fn restore_router(&self, name: &str) -> Result<()> {
        for peer in self.neighbours(name) {
            self.heal(name, &peer)?;
            self.heal(&peer, name)?;
        }
        Ok(())
    }

    /// Deletes every link's device of a router, as if its WireGuard had crashed.
    pub fn delete_devices(&self, name: &str) -> Result<()> {
        let router = self.router(name);
        self.topology()
            .ends_of(name)
            .try_for_each(|end| router.delete_device(&end.device))
    }

    /// Ends [`Lab::delete_devices`]: every device is there again.
    pub fn restore_devices(&self, name: &str) -> Result<()> {
        let router = self.router(name);
        self.topology()
            .ends_of(name)
            .try_for_each(|end| router.create_device(&end.device))
    }

    /// Switches a router off: its processes die, its namespace goes, and with it the underlay of its
    /// links, at both ends.
    pub fn kill_router(&self, name: &str) -> Result<()> {
        self.switch_off(name)
    }

    /// Ends [`Lab::kill_router`]: WireGuard has its devices and keys again, and BIRD runs. For routers
    /// without a bond.
    pub fn revive_router(&mut self, name: &str) -> Result<()> {
        self.switch_on(name)?;
        self.router(name).bird_start()
    }

    /// Takes the peer's key from router `at`'s WireGuard device that leads to `peer`: whatever arrives
    /// from there is dropped, nothing is sent there.
    pub fn remove_key(&self, at: &str, peer: &str) -> Result<()> {
        self.router(at).remove_peer(&link_device(at, peer))
    }

    /// Ends [`Lab::remove_key`].
    pub fn restore_key(&self, at: &str, peer: &str) -> Result<()> {
        self.router(at).restore_peer(&link_device(at, peer))
    }

    /// From now on loses and delays what router `from` sends to its neighbour `to`; the default
    /// [`Impairment`] ends it. Except under WireGuard in user space this takes netem.
    pub fn impair(&self, from: &str, to: &str, impairment: Impairment) -> Result<()> {
        self.router(from)
            .impair_device(&link_device(from, to), impairment)
    }

    fn neighbours(&self, name: &str) -> Vec<String> {
        self.topology().ends_of(name).map(|end| end.peer).collect()
    }

    fn underlay(&self, from: &str, to: &str) -> Result<String> {
        let mut ends = self.topology().ends_of(from);
        ends.find(|end| end.peer == to)
            .map(|end| end.underlay_device)
            .with_context(|| format!("there is no link from {from} to {to}"))
    }
}

/// Drops everything sent by `device`. Replaces its root queueing discipline.
pub(crate) fn cut(netns: &str, device: &str) -> Result<()> {
    iproute2(
        "tc",
        &[
            "-n",
            netns,
            "qdisc",
            "replace",
            "dev",
            device,
            "root",
            "blackhole",
        ],
    )?;
    Ok(())
}

/// Gives `device` its default queueing discipline back, if it was [`cut`].
pub(crate) fn mend(netns: &str, device: &str) -> Result<()> {
    let root = iproute2("tc", &["-n", netns, "qdisc", "show", "dev", device, "root"])?;
    if root.starts_with("qdisc blackhole ") {
        iproute2("tc", &["-n", netns, "qdisc", "del", "dev", device, "root"])?;
    }
    Ok(())
}

/// Loses and delays what `device` sends. Replaces its root queueing discipline.
pub(crate) fn impair(netns: &str, device: &str, impairment: Impairment) -> Result<()> {
    // tc-netem(8); deleting first, so that nothing of an earlier one stays.
    let root = iproute2("tc", &["-n", netns, "qdisc", "show", "dev", device, "root"])?;
    if root.starts_with("qdisc netem ") {
        iproute2("tc", &["-n", netns, "qdisc", "del", "dev", device, "root"])?;
    }
    if impairment == Impairment::default() {
        return Ok(());
    }
    let words = format!(
        "-n {netns} qdisc replace dev {device} root netem limit {NETEM_LIMIT} loss {}% delay {}us",
        impairment.loss * 100.0,
        impairment.delay.as_micros()
    );
    iproute2("tc", &words.split_whitespace().collect::<Vec<_>>())?;
    Ok(())
}
