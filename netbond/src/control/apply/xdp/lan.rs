//! Devices of LANs, between whose drivers and those of the paths packets are forwarded past the kernel.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytemuck::Zeroable as _;
use netbond_common::{
    abi::{BOND_XDP_ONWARD, BOND_XDP_SEND, Bond, BondInfo, LanInfo, MAX_LANS},
    names::{Mode, Xdp},
};

use super::{Applier, Wanted, needs_tc, planned};
use crate::{
    config::{self, Encap, XdpMode},
    control::apply::set_if_new,
    journal::About,
    tables::{field, value},
};

/// The LANs of the configuration.
#[derive(Default)]
pub(super) struct Lans {
    all: Vec<Lan>,
    /// Devices whose drivers send what others received, by ifindex.
    ports: BTreeSet<u32>,
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
    fn asks(&self) -> bool {
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
            let done = self
                .enter_driver(link.ifindex, &lan.wants())
                .map_err(|no| no.error)
                .and_then(|()| {
                    let sends = self.sends(link.ifindex);
                    ensure!(sends == Xdp::Native, "{}", sends.label());
                    Ok(())
                });
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
        for lan in &mut self.drivers.lans.all {
            match self.netlink.link_by_name(&lan.config.name) {
                Ok(Some(link)) if link.mac.is_some() => lan.device = Ok(link.ifindex),
                Ok(Some(_)) => lan.device = Err(Xdp::NotEthernet),
                Ok(None) => lan.device = Err(Xdp::NoDevice),
                Err(error) => self.journal.failed(About::ALL, &format!("{error:#}")),
            }
        }
    }

    /// Has packets forwarded in the drivers of the LANs, or no longer, as it can be now.
    pub(super) fn follow_lans(&mut self, again: bool) -> Result<()> {
        let mut told = Vec::new();
        for at in 0..self.drivers.lans.all.len() {
            let lan = &self.drivers.lans.all[at];
            let (config, before) = (lan.config.clone(), lan.state);
            let driver = lan.device.and_then(|ifindex| {
                let driver = self.drivers.devices.get(&ifindex);
                let driver = driver.ok_or(Xdp::NoDevice)?;
                Ok((ifindex, driver.clone()))
            });
            let state = match &driver {
                _ if config.xdp == XdpMode::Off => Xdp::Off,
                Err(reason) => *reason,
                Ok((_, driver)) if driver.state != Xdp::Native => driver.state,
                Ok(_) if before == Xdp::Native && !again => before,
                Ok((ifindex, _)) => self.sends(*ifindex),
            };
            // Frames first find their way, then they take it; and the other way round.
            if let Ok((ifindex, driver)) = driver {
                if state == Xdp::Native {
                    self.open_port(ifindex)?;
                }
                self.drivers.lans.all[at].state = state;
                if driver.state == Xdp::Native {
                    self.tell_roles(ifindex, &driver)?;
                }
                if state != Xdp::Native {
                    self.close_port(ifindex);
                }
            }
            self.drivers.lans.all[at].state = state;
            if state != before {
                told.push((config.name.clone(), state));
            }
        }
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
        self.follow_ports(again)?;
        self.write_lan_infos()
    }

    /// Has the drivers of the paths' devices send what those of LANs received, where they can.
    fn follow_ports(&mut self, again: bool) -> Result<()> {
        let open = self.drivers.lans.any_is_open();
        let native = |ifindex: &u32| {
            let driver = self.drivers.devices.get(ifindex);
            driver.is_some_and(|driver| driver.underlay && driver.state == Xdp::Native)
        };
        let underlays: Vec<u32> = self
            .drivers
            .devices
            .keys()
            .copied()
            .filter(native)
            .collect();
        for ifindex in underlays {
            if self.drivers.lans.is_open(ifindex) {
                continue;
            }
            let known = self.drivers.lans.ports.contains(&ifindex);
            if open && (!known || again) && self.sends(ifindex) == Xdp::Native {
                self.open_port(ifindex)?;
            } else if !open || again {
                self.close_port(ifindex);
            }
        }
        Ok(())
    }

    /// Whether a device's driver sends what others received, or why not.
    fn sends(&mut self, ifindex: u32) -> Xdp {
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

    fn open_port(&mut self, ifindex: u32) -> Result<()> {
        if self.drivers.lans.ports.insert(ifindex) {
            let written = self.tables.ports.insert(ifindex, ifindex, None, 0);
            written.context("writing PORTS")?;
        }
        Ok(())
    }

    pub(super) fn close_port(&mut self, ifindex: u32) {
        self.drivers.lans.ports.remove(&ifindex);
        // Gone with a device, or never there.
        let _ = self.tables.ports.remove(ifindex);
    }

    /// Has a bond's packets forwarded past the kernel, or no longer.
    pub(super) fn follow_bond_lans(&mut self, id: u32) -> Result<()> {
        let Some(record) = value(&self.tables.bonds, id) else {
            return Ok(());
        };
        let open = self.drivers.lans.any_is_open();
        let state = self.xdp_send_of(id);
        let mut xdp = 0;
        if open && record.xdp_mtu != 0 {
            xdp |= BOND_XDP_ONWARD;
        }
        if open && state == Xdp::Native {
            xdp |= BOND_XDP_SEND;
        }
        let allowed = self.live.get(&id).map_or(0, |live| allowed(&live.config));
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
        if live.config.encap == Encap::Gretap {
            return Xdp::Frames;
        }
        if !is_by_wheel(&live.config) {
            return Xdp::ByMode;
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
    if needs_tc(bond).is_some() || bond.encap == Encap::Gretap {
        0
    } else if is_by_wheel(bond) {
        BOND_XDP_ONWARD | BOND_XDP_SEND
    } else {
        BOND_XDP_ONWARD
    }
}

/// Whether the wheel is all that a bond's packets go by.
fn is_by_wheel(bond: &config::Bond) -> bool {
    bond.classes.is_empty() && matches!(bond.mode, Mode::RoundRobin | Mode::Weighted)
}
