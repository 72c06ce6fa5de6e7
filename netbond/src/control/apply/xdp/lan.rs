//! Devices of LANs, between whose drivers and those of the paths packets are forwarded past the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bytemuck::Zeroable as _;
use netbond_common::{
    abi::{BOND_XDP_ONWARD, BOND_XDP_SEND, Bond, BondInfo, LanInfo, MAX_LANS},
    names::Xdp,
};

use super::{Applier, Driver, Wanted, needs_tc, planned};
use crate::{
    config::{self, XdpMode},
    control::apply::set_if_new,
    journal::About,
    netlink::Routed,
    tables::{field, value},
};

/// For how long a frame may be on its way to the driver that sends it, and a program may believe that it does
/// ([`netbond_common::route::Hop`], [`netbond_common::route::Answer`]), at the most.
const UNDER_WAY: Duration = Duration::from_millis(20);

/// The LANs of the configuration.
#[derive(Default)]
pub(super) struct Lans {
    all: Vec<Lan>,
    /// Devices whose drivers send what others received, by ifindex.
    ports: BTreeSet<u32>,
    /// Bonds whose devices are ports of bridges and the like.
    bridged: BTreeSet<u32>,
}

struct Lan {
    config: config::Lan,
    /// Its device's ifindex, or why there is none.
    device: Result<u32, Xdp>,
    /// Whether packets are forwarded in its driver, or why not.
    state: Xdp,
}

impl Lans {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn forget(&mut self, ifindex: u32) {
        self.ports.remove(&ifindex);
        for lan in &mut self.all {
            if lan.device == Ok(ifindex) {
                lan.device = Err(Xdp::NoDevice);
            }
        }
    }

    /// What they want of drivers, by ifindex.
    pub(super) fn wanted(&self) -> BTreeMap<u32, Wanted> {
        let wanting = self.all.iter().filter(|lan| lan.config.xdp != XdpMode::Off);
        let wanted = wanting.filter_map(|lan| Some((lan.device.ok()?, lan.config.wants())));
        wanted.collect()
    }

    /// Whether packets are forwarded in the driver of this LAN's device.
    pub(super) fn is_open(&self, ifindex: u32) -> bool {
        let mut all = self.all.iter();
        all.any(|lan| lan.device == Ok(ifindex) && lan.state == Xdp::Native)
    }

    /// Whether any of them is to be forwarded in its driver.
    pub(super) fn asks(&self) -> bool {
        self.all.iter().any(|lan| lan.config.xdp != XdpMode::Off)
    }

    fn any_is_open(&self) -> bool {
        self.all.iter().any(|lan| lan.state == Xdp::Native)
    }
}

impl config::Lan {
    fn wants(&self) -> Wanted {
        Wanted {
            name: self.name.clone(),
            by: format!("[[lan]] {}", self.name),
            mode: self.xdp,
            underlay: false,
        }
    }
}

impl Applier {
    /// Puts the program into the drivers of LANs that insist on it.
    pub(in crate::control::apply) fn insist_on_lans(&mut self, lans: &[config::Lan]) -> Result<()> {
        for lan in lans.iter().filter(|lan| lan.xdp == XdpMode::Native) {
            // It may come later: then the status says what became of it.
            let Some(link) = self.netlink.link_by_name(&lan.name)? else {
                continue;
            };
            let done = self.enter_lan(link.ifindex, lan);
            done.with_context(|| {
                format!(
                    "[[lan]] \"{}\" has xdp = \"native\" (write \"auto\" to do without it where it cannot be, or \
                     \"off\")",
                    lan.name
                )
            })?;
        }
        Ok(())
    }

    fn enter_lan(&mut self, ifindex: u32, lan: &config::Lan) -> Result<()> {
        let known = self.drivers.devices.get(&ifindex);
        let wants = Wanted {
            // Until the paths are looked at again.
            underlay: known.is_some_and(|known| known.underlay),
            ..lan.wants()
        };
        let sends = self.asked(ifindex);
        ensure!(sends != Xdp::Untold, "{}", sends.label());
        self.enter_driver(ifindex, &wants).map_err(|no| no.error)?;
        let sends = self.asked(ifindex);
        ensure!(sends == Xdp::Native, "{}", sends.label());
        Ok(())
    }

    /// Takes over the LANs of a configuration.
    pub(in crate::control::apply) fn enter_lans(&mut self, lans: &[config::Lan]) -> Result<()> {
        let known = std::mem::take(&mut self.drivers.lans.all);
        let enter = |config: &config::Lan| {
            let known = known.iter().find(|known| known.config.name == config.name);
            Lan {
                config: config.clone(),
                device: known.map_or(Err(Xdp::NoDevice), |known| known.device),
                state: known.map_or(Xdp::Off, |known| known.state),
            }
        };
        self.drivers.lans.all = lans.iter().map(enter).collect();
        self.write_lan_infos()
    }

    /// Looks up which devices the LANs' are.
    pub(super) fn find_lans(&mut self) {
        for at in 0..self.drivers.lans.all.len() {
            let name = self.drivers.lans.all[at].config.name.clone();
            let device = match self.netlink.link_by_name(&name) {
                Ok(Some(link)) if link.mac.is_none() => Err(Xdp::NotEthernet),
                // Then there is no sense in a program there.
                Ok(Some(link)) if self.asked(link.ifindex) == Xdp::Untold => Err(Xdp::Untold),
                Ok(Some(link)) => Ok(link.ifindex),
                Ok(None) => Err(Xdp::NoDevice),
                Err(error) => {
                    self.journal.failed(About::ALL, &format!("{error:#}"));
                    continue;
                }
            };
            self.drivers.lans.all[at].device = device;
        }
    }

    /// Has packets forwarded in the drivers of the LANs, or no longer, as it can be now.
    pub(super) fn follow_lans(&mut self, again: bool) -> Result<()> {
        let (mut told, mut closed) = (Vec::new(), Vec::new());
        for at in 0..self.drivers.lans.all.len() {
            let lan = &self.drivers.lans.all[at];
            let (config, before) = (lan.config.clone(), lan.state);
            let driver = lan.device.and_then(|ifindex| {
                let driver = self.drivers.devices.get(&ifindex);
                let driver = driver.ok_or(Xdp::NoDevice)?;
                Ok((ifindex, driver.clone()))
            });
            let mut state = match &driver {
                _ if config.xdp == XdpMode::Off => Xdp::Off,
                Err(reason) => *reason,
                Ok((_, driver)) if driver.state != Xdp::Native => driver.state,
                Ok((ifindex, _)) => self.sends(*ifindex, again),
            };
            // Frames first find their way, then they take it; and the other way round.
            if let Ok((ifindex, driver)) = driver {
                if state == Xdp::Native && !self.open_port(ifindex) {
                    state = Xdp::NoDevice;
                }
                self.drivers.lans.all[at].state = state;
                if driver.state == Xdp::Native {
                    self.tell_roles(ifindex, &driver)?;
                }
                if state != Xdp::Native {
                    closed.push(ifindex);
                }
            }
            self.drivers.lans.all[at].state = state;
            if state != before {
                told.push((config.name.clone(), state));
            }
        }
        self.close_ports(&closed);
        for (name, state) in told {
            if state == Xdp::Native {
                let text = format!("packets of LAN {name} forwarded past the kernel (XDP)");
                self.journal.did(About::ALL, &text);
            } else if state == Xdp::Off {
                let text = format!("packets of LAN {name} forwarded by the kernel, as configured");
                self.journal.did(About::ALL, &text);
            } else {
                let text = format!(
                    "packets of LAN {name} forwarded by the kernel, not by XDP: {}",
                    state.label()
                );
                self.journal.failed(About::ALL, &text);
            }
        }
        self.follow_ports(again);
        self.write_lan_infos()
    }

    /// Has the drivers of the paths' devices send what those of LANs received, where they can.
    fn follow_ports(&mut self, again: bool) {
        let open = self.drivers.lans.any_is_open();
        let native = |(ifindex, driver): (&u32, &Driver)| {
            let native = driver.underlay && driver.state == Xdp::Native;
            native.then_some(*ifindex)
        };
        let underlays: Vec<u32> = self.drivers.devices.iter().filter_map(native).collect();
        let mut closed = Vec::new();
        for ifindex in underlays {
            if self.drivers.lans.is_open(ifindex) {
                continue;
            }
            if open && self.sends(ifindex, again) == Xdp::Native {
                self.open_port(ifindex);
            } else {
                closed.push(ifindex);
            }
        }
        self.close_ports(&closed);
    }

    /// Whether a device's driver sends what others received, or why not, by what is known or was asked `again`.
    fn sends(&mut self, ifindex: u32, again: bool) -> Xdp {
        let known = self.drivers.devices.get(&ifindex);
        if let Some(sends) = known.and_then(|known| known.sends).filter(|_| !again) {
            return sends;
        }
        let sends = self.asked(ifindex);
        if let Some(known) = self.drivers.devices.get_mut(&ifindex) {
            known.sends = Some(sends);
        }
        sends
    }

    /// The same by the kernel's word.
    fn asked(&mut self, ifindex: u32) -> Xdp {
        match self.netlink.sends_frames(ifindex) {
            Ok(Some(true)) => Xdp::Native,
            Ok(Some(false)) => Xdp::NoSend,
            Ok(None) => Xdp::Untold,
            Err(error) => {
                let error = anyhow!(error).context("asking what a driver sends");
                self.journal.failed(About::ALL, &format!("{error:#}"));
                Xdp::NoSend
            }
        }
    }

    /// Has a device's driver send what others received; false where the device is gone.
    fn open_port(&mut self, ifindex: u32) -> bool {
        if self.drivers.lans.ports.contains(&ifindex) {
            return true;
        }
        match self.tables.ports.insert(ifindex, ifindex, None, 0) {
            Ok(()) => {
                self.drivers.lans.ports.insert(ifindex);
                true
            }
            Err(error) => {
                let error = anyhow!(error).context("writing PORTS");
                self.journal.failed(About::ALL, &format!("{error:#}"));
                false
            }
        }
    }

    /// Has the drivers of devices send no more of what others received, once what is on its way there is sent: which
    /// bonds' that is nobody asks, all of them stand back until [`Self::follow_bond_lans`].
    pub(super) fn close_ports(&mut self, devices: &[u32]) {
        let is_open = |ifindex: &u32| {
            self.drivers.lans.ports.contains(ifindex) || self.tables.ports.get(*ifindex, 0).is_ok()
        };
        let open: Vec<u32> = devices.iter().copied().filter(is_open).collect();
        if open.is_empty() {
            return;
        }
        let bonds: Vec<u32> = self.live.keys().copied().collect();
        for id in bonds {
            if let Some(record) = value(&self.tables.bonds, id) {
                let record = Bond { xdp: 0, ..record };
                if let Err(error) = set_if_new(&mut self.tables.bonds, id, record) {
                    let error = anyhow!(error).context("writing BONDS");
                    self.journal.failed(About::ALL, &format!("{error:#}"));
                }
            }
        }
        std::thread::sleep(UNDER_WAY);
        for ifindex in open {
            self.drivers.lans.ports.remove(&ifindex);
            // Gone with a device.
            let _ = self.tables.ports.remove(ifindex);
        }
    }

    /// Has a bond's packets forwarded past the kernel, or no longer.
    pub(super) fn follow_bond_lans(&mut self, id: u32) -> Result<()> {
        let Some(record) = value(&self.tables.bonds, id) else {
            return Ok(());
        };
        let allowed = self.live.get(&id).map_or(0, |live| allowed(&live.config));
        let mut open = self.drivers.lans.any_is_open() && allowed != 0;
        let mut is_bridged = false;
        if open {
            // What is down forwards nothing, whatever the routes say; and what a port receives is a bridge's.
            let Routed { up, is_port } = self.netlink.routed(record.ifindex)?;
            (open, is_bridged) = (up && !is_port, is_port);
        }
        let bridged = &mut self.drivers.lans.bridged;
        if is_bridged {
            bridged.insert(id);
        } else {
            bridged.remove(&id);
        }
        let state = self.xdp_send_of(id);
        let mut xdp = 0;
        if open && record.xdp_mtu != 0 {
            xdp |= BOND_XDP_ONWARD;
        }
        if open && state == Xdp::Native {
            xdp |= BOND_XDP_SEND;
        }
        let xdp = xdp & allowed;
        set_if_new(&mut self.tables.bonds, id, Bond { xdp, ..record }).context("writing BONDS")?;
        if let Some(info) = self.tables.bond_info(id) {
            let xdp_send = state as u32;
            let info = BondInfo { xdp_send, ..info };
            set_if_new(&mut self.tables.bond_info, id, info).context("writing BOND_INFO")?;
        }
        Ok(())
    }

    /// Whether drivers of LANs encapsulate what is for a bond, or why not.
    pub(in crate::control::apply) fn xdp_send_of(&self, id: u32) -> Xdp {
        let lans = &self.drivers.lans;
        let Some(live) = self
            .live
            .get(&id)
            .filter(|live| lans.asks() && live.config.asks_for_xdp())
        else {
            return Xdp::Off;
        };
        if let Some(reason) = needs_tc(&live.config) {
            return reason;
        }
        if lans.bridged.contains(&id) {
            return Xdp::Port;
        }
        if !is_chosen_in_drivers(&live.config) {
            return Xdp::ByMark;
        }
        if !lans.any_is_open() {
            return Xdp::NoLan;
        }
        let mut devices = planned(live).filter_map(|(_, plan)| plan.device.as_ref());
        if !devices.any(|device| lans.ports.contains(&device.ifindex)) {
            return Xdp::NoPort;
        }
        Xdp::Native
    }

    fn write_lan_infos(&mut self) -> Result<()> {
        for at in 0..MAX_LANS {
            let lan = self.drivers.lans.all.get(at as usize);
            let info = lan.map_or_else(LanInfo::zeroed, |lan| LanInfo {
                name: field(&lan.config.name),
                xdp: lan.state as u32,
                reserved: 0,
            });
            set_if_new(&mut self.tables.lan_info, at, info).context("writing LAN_INFO")?;
            if lan.is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// What drivers may do with a bond's packets, as far as the configuration goes: `BOND_XDP_*`.
pub(in crate::control::apply) fn allowed(bond: &config::Bond) -> u32 {
    if needs_tc(bond).is_some() {
        0
    } else if is_chosen_in_drivers(bond) {
        BOND_XDP_ONWARD | BOND_XDP_SEND
    } else {
        BOND_XDP_ONWARD
    }
}

/// Whether drivers know which path a bond's packets take: marks are made later (netfilter, tc).
fn is_chosen_in_drivers(bond: &config::Bond) -> bool {
    bond.classes.iter().all(|class| class.rule.mark_mask == 0)
}
