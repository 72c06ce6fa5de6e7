//! The program in the drivers of Ethernet devices, those of paths and of LANs: a fast way before the ones at tc's
//! hooks, put there and taken away without a packet being lost.

mod lan;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use netbond_common::{
    abi::{self, Bond, DRIVER_LAN, DRIVER_UNDERLAY, MAX_BOND_PATHS},
    names::{Mode, Xdp},
};
use nix::net::if_::if_indextoname;

use self::lan::Lans;
pub(super) use self::lan::allowed;
use super::{Applier, Live, PathPlan, set_if_new};
use crate::{
    config::{self, XdpMode},
    journal::About,
    loader::NoXdp,
    tables::{Raw, value},
};

/// How often what a driver refused is tried again, and what no event tells of is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// A device in whose driver packets of some path or LAN are to be handled.
#[derive(Clone, Debug)]
pub(super) struct Driver {
    name: String,
    /// Whether they are, or why not.
    state: Xdp,
    /// The device's, as far as the program was told.
    address: [u8; 6],
    /// Whether packets of paths come in on it.
    underlay: bool,
    /// Whether it sends what others received, or why not, where that was asked.
    sends: Option<Xdp>,
}

/// What paths and LANs want of a device's driver.
#[derive(Clone, Debug)]
struct Wanted {
    /// The device's name.
    name: String,
    /// Of the paths that leave by it, or the LAN that it is, the one that wants it most, and how much.
    by: String,
    mode: XdpMode,
    /// Whether a path does.
    underlay: bool,
}

/// What is known of drivers.
#[derive(Default)]
pub(super) struct Drivers {
    /// By ifindex.
    devices: BTreeMap<u32, Driver>,
    lans: Lans,
    /// What an earlier controller left: taken away where no path asks for it any more.
    left: BTreeSet<u32>,
    /// Bond devices on which somebody switched GRO off, by bond id.
    without_gro: BTreeSet<u32>,
    looked: Option<Instant>,
}

impl Drivers {
    pub(super) fn new(left: BTreeSet<u32>) -> Self {
        Self {
            left,
            ..Self::default()
        }
    }

    pub(super) fn forget(&mut self, ifindex: u32) -> bool {
        self.lans.forget(ifindex);
        self.left.remove(&ifindex) | self.devices.remove(&ifindex).is_some()
    }

    /// Takes note that a bond has a new device.
    pub(super) fn know_anew(&mut self, bond: u32) {
        self.without_gro.remove(&bond);
    }

    /// Why what comes on a path is tc's, whatever its driver could do.
    fn leaves_to_tc(&self, bond: &config::Bond, path: &config::Path) -> Option<Xdp> {
        match path.xdp {
            XdpMode::Off => Some(Xdp::Off),
            // Nothing would be taken there, nor be sent for a LAN.
            XdpMode::Auto if is_all_numbered(bond) && !self.lans.asks() => {
                Some(needs_tc(bond).unwrap_or(Xdp::Numbered))
            }
            XdpMode::Auto | XdpMode::Native => needs_tc(bond),
        }
    }

    /// The devices that have the program, and those that an earlier controller may have left it: ifindex.
    pub(super) fn with_program(&self) -> impl Iterator<Item = u32> {
        let native = self
            .devices
            .iter()
            .filter(|(_, driver)| driver.state == Xdp::Native);
        native
            .map(|(&ifindex, _)| ifindex)
            .chain(self.left.iter().copied())
    }
}

impl Applier {
    /// Whether a path's packets are received in its device's driver, or why not.
    pub(super) fn xdp_of(&self, plan: &PathPlan) -> Xdp {
        let id = plan.id / MAX_BOND_PATHS;
        let Some(bond) = self.live.get(&id).map(|live| &live.config) else {
            return Xdp::Off;
        };
        let Some(path) = bond.paths.iter().find(|path| path.name == plan.name) else {
            return Xdp::Off;
        };
        if let Some(reason) = self.drivers.leaves_to_tc(bond, path) {
            return reason;
        }
        let Some(device) = &plan.device else {
            return Xdp::NoDevice;
        };
        if !device.ethernet {
            return Xdp::NotEthernet;
        }
        match self.drivers.devices.get(&device.ifindex) {
            Some(driver) if driver.state != Xdp::Native => driver.state,
            Some(_) if self.drivers.without_gro.contains(&id) => Xdp::NoGro,
            Some(_) => Xdp::Native,
            None => Xdp::NoDevice,
        }
    }

    /// Puts the program into the drivers of the devices of a bond's paths that insist on it.
    pub(super) fn insist_on_xdp(&mut self, bond: &config::Bond) -> Result<()> {
        for path in bond.paths.iter().filter(|path| path.xdp == XdpMode::Native) {
            let device = self
                .netlink
                .path_device(path.device.as_deref(), path.local)?;
            // It may come later: then the status says what became of it.
            let Some(device) = device else {
                continue;
            };
            let done = if device.mac.is_none() {
                Err(anyhow!(
                    "{} is not Ethernet: packets come out of a tunnel such as WireGuard above any driver",
                    device.name
                ))
            } else {
                let wants = Wanted {
                    name: device.name.clone(),
                    by: by_path(path),
                    mode: path.xdp,
                    underlay: true,
                };
                self.enter_driver(device.ifindex, &wants)
                    .map_err(|no| no.error)
            };
            done.with_context(|| {
                format!(
                    "path \"{}\" has xdp = \"native\" (write \"auto\" to do without it where it cannot be, or \
                     \"off\")",
                    path.name
                )
            })?;
        }
        Ok(())
    }

    /// Has drivers receive what paths want them to, and nothing else.
    ///
    /// # Errors
    ///
    /// Where a map cannot be written.
    pub(super) fn follow_xdp(&mut self) -> Result<()> {
        if self.drivers.devices.is_empty()
            && self.drivers.left.is_empty()
            && self.drivers.lans.is_empty()
            && !self.live.values().any(|live| live.config.asks_for_xdp())
        {
            return Ok(());
        }
        let again = self.drivers.looked.is_none_or(|at| at.elapsed() >= LOOK);
        if again {
            self.drivers.looked = Some(Instant::now());
            self.find_lans();
        }
        let mut wanted = self.drivers.lans.wanted();
        for live in self.live.values() {
            for (path, plan) in planned(live) {
                let device = plan.device.as_ref().filter(|device| device.ethernet);
                let Some(device) = device else {
                    continue;
                };
                if self.drivers.leaves_to_tc(&live.config, path).is_some() {
                    continue;
                }
                let wants = Wanted {
                    name: device.name.clone(),
                    by: by_path(path),
                    mode: path.xdp,
                    underlay: true,
                };
                let most = wanted
                    .entry(device.ifindex)
                    .or_insert_with(|| wants.clone());
                most.underlay = true;
                if most.mode < wants.mode {
                    *most = wants;
                }
            }
        }
        for (&ifindex, wants) in &wanted {
            let known = self.drivers.devices.get(&ifindex);
            let same =
                |driver: &Driver| driver.name == wants.name && driver.underlay == wants.underlay;
            if again || !known.is_some_and(same) {
                self.look_at_driver(ifindex, wants);
            }
        }
        self.follow_lans(again)?;
        self.leave_drivers(&wanted)?;
        let bonds: Vec<u32> = self.live.keys().copied().collect();
        for id in bonds {
            self.follow_bond_xdp(id)?;
        }
        Ok(())
    }

    /// Puts the program into a driver or takes it out, as it can be now, and tells what is news.
    fn look_at_driver(&mut self, ifindex: u32, wants: &Wanted) {
        let name = &wants.name;
        let before = self
            .drivers
            .devices
            .get(&ifindex)
            .map(|driver| driver.state);
        let entered = match wants.mode {
            XdpMode::Native => self.enter_driver(ifindex, wants),
            XdpMode::Auto | XdpMode::Off => self
                .refuse_veth(ifindex, name)
                .and_then(|()| self.enter_driver(ifindex, wants)),
        };
        match entered {
            Ok(()) => {}
            Err(NoXdp { reason, error }) => {
                self.leave_driver(ifindex);
                self.drivers.left.remove(&ifindex);
                let driver = Driver {
                    name: name.to_owned(),
                    state: reason,
                    address: [0; 6],
                    underlay: wants.underlay,
                    sends: None,
                };
                self.drivers.devices.insert(ifindex, driver);
                // Tried again and again: said once.
                if before != Some(reason) {
                    let text = format!("no XDP on {name}, but the kernel and tc: {error:#}");
                    self.journal.failed(About::ALL, &text);
                }
            }
        }
    }

    /// Refuses a veth: packets of a host's own, or another namespace's, cross it without the checksums that a
    /// wire would show, and their receiver drops them once they were a driver's frame.
    fn refuse_veth(&mut self, ifindex: u32, name: &str) -> Result<(), NoXdp> {
        match self.netlink.is_veth(ifindex) {
            Ok(false) => Ok(()),
            Ok(true) => Err(NoXdp {
                reason: Xdp::Veth,
                error: anyhow!(
                    "it is a veth, whose other end leaves out checksums unless `ethtool -K DEVICE tx off` was \
                     said there: then write xdp = \"native\""
                ),
            }),
            Err(error) => Err(NoXdp {
                reason: Xdp::Refused,
                error: error.context(format!("cannot tell what {name} is")),
            }),
        }
    }

    /// Puts the program into a driver, or the one of this build, as somebody asks for it.
    fn enter_driver(&mut self, ifindex: u32, wants: &Wanted) -> Result<(), NoXdp> {
        let refused = |error| NoXdp {
            reason: Xdp::Refused,
            error,
        };
        let name = &wants.name;
        let link = self.netlink.link_by_index(ifindex).map_err(refused)?;
        let Some(address) = link
            .filter(|link| link.name == *name)
            .and_then(|link| link.mac)
        else {
            return Err(NoXdp {
                reason: Xdp::NoDevice,
                error: anyhow!("it is gone, or is not Ethernet any more"),
            });
        };
        if let Some(kind) = self.netlink.port_of(ifindex).map_err(refused)? {
            return Err(NoXdp {
                reason: Xdp::Port,
                error: anyhow!(
                    "it is a port of a {kind}, whose packets are those that it receives"
                ),
            });
        }
        if self.netlink.has_ports(ifindex).map_err(refused)? {
            return Err(NoXdp {
                reason: Xdp::NoDriver,
                error: anyhow!(
                    "it is made of other devices, and a program would run in their drivers"
                ),
            });
        }
        if self.netlink.hides_tags(ifindex, name).map_err(refused)? {
            return Err(NoXdp {
                reason: Xdp::Vlans,
                error: anyhow!(
                    "there are VLAN devices over it, and with rx-vlan-offload no program in the driver can \
                     tell their packets from its own: `ethtool -K {name} rxvlan off`"
                ),
            });
        }
        let known = self.drivers.devices.get(&ifindex);
        let known = known.filter(|known| known.state == Xdp::Native && known.name == *name);
        let driver = Driver {
            name: name.to_owned(),
            state: Xdp::Native,
            address,
            underlay: wants.underlay,
            sends: known.and_then(|known| known.sends),
        };
        let is_there = known.is_some();
        self.tell_roles(ifindex, &driver).map_err(refused)?;
        let was_gone = match self.programs.attach_xdp(name, ifindex) {
            Ok(was_gone) => was_gone,
            Err(no) => {
                let _ = self.tables.drivers.remove(&ifindex);
                return Err(no);
            }
        };
        if is_there && was_gone {
            let text =
                format!("somebody took netbond's program out of the driver of {name}: it is back");
            self.journal.failed(About::ALL, &text);
        }
        if !is_there {
            // One that was there already is no news.
            if !self.drivers.left.remove(&ifindex) {
                let by = &wants.by;
                let text =
                    format!("in the driver of {name} from now on (XDP), as {by} asks for it");
                self.journal.did(About::ALL, &text);
            }
        }
        self.drivers.devices.insert(ifindex, driver);
        Ok(())
    }

    /// Tells the program what a device is.
    fn tell_roles(&mut self, ifindex: u32, driver: &Driver) -> Result<()> {
        let role = |is: bool, role: u16| if is { role } else { 0 };
        let record = abi::Driver {
            address: driver.address,
            roles: role(driver.underlay, DRIVER_UNDERLAY)
                | role(self.drivers.lans.is_open(ifindex), DRIVER_LAN),
        };
        let drivers = &mut self.tables.drivers;
        if drivers
            .get(&ifindex, 0)
            .is_ok_and(|Raw(known)| known == record)
        {
            return Ok(());
        }
        let written = drivers.insert(ifindex, Raw(record), 0);
        written.context("writing DRIVERS")
    }

    fn leave_driver(&mut self, ifindex: u32) {
        // Some drivers send only as long as they have a program of their own.
        self.close_ports(&[ifindex]);
        // Gone with a device, or never there.
        let _ = self.tables.drivers.remove(&ifindex);
        if let Err(error) = self.programs.detach_xdp(ifindex) {
            self.journal.failed(About::ALL, &format!("{error:#}"));
        }
    }

    /// Takes the program out of all drivers but the `wanted` ones.
    fn leave_drivers(&mut self, wanted: &BTreeMap<u32, Wanted>) -> Result<()> {
        // As long as not all is known of a bond it may want one that an earlier controller left.
        if self.live.values().any(|live| live.plan.is_none()) {
            return Ok(());
        }
        let known = self.drivers.devices.keys().chain(&self.drivers.left);
        let stale: BTreeSet<u32> = known
            .copied()
            .filter(|it| !wanted.contains_key(it))
            .collect();
        for ifindex in stale {
            let driver = self.drivers.devices.remove(&ifindex);
            let left = self.drivers.left.remove(&ifindex);
            self.leave_driver(ifindex);
            let native = driver.filter(|driver| driver.state == Xdp::Native);
            if native.is_some() || left {
                let unknown = || match if_indextoname(ifindex) {
                    Ok(name) => name.to_string_lossy().into_owned(),
                    Err(_) => format!("#{ifindex}"),
                };
                let name = native.map_or_else(unknown, |driver| driver.name);
                let text = format!("no longer in the driver of {name}: nobody asks for it");
                self.journal.did(About::ALL, &text);
            }
        }
        Ok(())
    }

    /// Has a bond's packets taken in drivers, or no longer, and says of its paths how it is.
    fn follow_bond_xdp(&mut self, id: u32) -> Result<()> {
        let Some(live) = self.live.get(&id) else {
            return Ok(());
        };
        let Some(Bond { xdp_mtu, .. }) = value(&self.tables.bonds, id) else {
            return Ok(());
        };
        if xdp_mtu == 0 && !live.config.asks_for_xdp() {
            return self.follow_bond_lans(id);
        }
        let (device, mtu, name) = (live.device, live.mtu, live.config.name.clone());
        let wants = |path: &config::Path| self.drivers.leaves_to_tc(&live.config, path).is_none();
        // What is not known yet stays as an earlier controller left it.
        if live.plan.is_none() && live.config.paths.iter().any(wants) {
            return Ok(());
        }
        let native = |plan: &PathPlan| {
            let device = plan.device.as_ref();
            let driver = device.and_then(|device| self.drivers.devices.get(&device.ifindex));
            driver.is_some_and(|driver| driver.state == Xdp::Native)
        };
        let wants = planned(live).any(|(path, plan)| wants(path) && native(plan));
        let link = self.netlink.link_by_index(device.ifindex)?;
        if !wants {
            self.drivers.without_gro.remove(&id);
            self.limit_xdp(id, 0)?;
        } else if link.is_none() {
            // It is made again before anything else.
            return Ok(());
        } else if xdp_mtu != 0 && !self.netlink.takes_frames(&name) {
            self.limit_xdp(id, 0)?;
            self.drivers.without_gro.insert(id);
            self.journal.failed(
                About::bond(&name),
                "somebody switched GRO off on the bond device: no longer receiving in drivers, but by tc \
                 (switch it on and reload to change that)",
            );
        } else if !self.drivers.without_gro.contains(&id) {
            if xdp_mtu == 0
                && let Err(error) = self.netlink.take_frames(&name)
            {
                self.drivers.without_gro.insert(id);
                self.journal
                    .failed(About::bond(&name), &format!("{error:#}"));
            } else {
                // Frames first find their way, then they take it.
                let peer = self.tables.bond_peers.get(id, 0).ok();
                if peer.is_none_or(|peer| peer.if_index != device.peer_ifindex)
                    && let Err(error) = self.tables.bond_peers.set(id, device.peer_ifindex, None, 0)
                {
                    // Gone since.
                    let error = anyhow!(error).context("writing BOND_PEERS");
                    self.journal
                        .failed(About::bond(&name), &format!("{error:#}"));
                    return Ok(());
                }
                // The user may have made the device's smaller.
                self.set_xdp(id, link.map_or(mtu, |link| link.mtu.min(mtu)))?;
            }
        }
        let plans: Vec<PathPlan> = self
            .live
            .get(&id)
            .and_then(|live| live.plan.as_ref())
            .map_or_else(Vec::new, |plan| plan.paths.clone());
        for plan in &plans {
            let told = self.tables.path_info(plan.id).map(|info| info.xdp);
            if told.is_some_and(|told| told != self.xdp_of(plan) as u32) {
                self.write_path_info(plan)?;
            }
        }
        self.follow_bond_lans(id)
    }

    /// Has drivers hand a bond's device no packets longer than this, where they hand it any.
    pub(super) fn limit_xdp(&mut self, id: u32, mtu: u32) -> Result<()> {
        let known = value(&self.tables.bonds, id).map_or(0, |bond| bond.xdp_mtu);
        self.set_xdp(id, known.min(mtu))
    }

    fn set_xdp(&mut self, id: u32, xdp_mtu: u32) -> Result<()> {
        if let Some(bond) = value(&self.tables.bonds, id) {
            let bond = Bond { xdp_mtu, ..bond };
            set_if_new(&mut self.tables.bonds, id, bond).context("writing BONDS")?;
        }
        Ok(())
    }

    /// Tries GRO again, as a reload asks for it.
    pub(super) fn forgive_xdp(&mut self) {
        self.drivers.without_gro.clear();
        self.drivers.looked = None;
    }
}

/// Why all of a bond's packets are tc's, whatever drivers could do.
fn needs_tc(bond: &config::Bond) -> Option<Xdp> {
    (bond.mode == Mode::Duplicate).then_some(Xdp::Copies)
}

/// Whether all packets have numbers, which tc goes by; those of settled flows in mode "adaptive" have none.
fn is_all_numbered(bond: &config::Bond) -> bool {
    bond.is_numbered() && bond.modes().all(|mode| mode != Mode::Adaptive)
}

/// Who asks for XDP.
fn by_path(path: &config::Path) -> String {
    format!("path {}", path.name)
}

/// The paths of a bond, with what is planned for each.
fn planned(live: &Live) -> impl Iterator<Item = (&config::Path, &PathPlan)> {
    let plans = live.plan.iter().flat_map(|plan| &plan.paths);
    plans.filter_map(|plan| {
        let mut paths = live.config.paths.iter();
        Some((paths.find(|path| path.name == plan.name)?, plan))
    })
}
