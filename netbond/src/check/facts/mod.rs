//! What is so: of the host, of what runs on it, and of the peer as far as it is heard.

mod hooks;
mod interfaces;
mod settings;
mod strays;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use futures::future::join_all;
use netbond_common::names::{PathState, StateReason};
use nix::net::if_::if_indextoname;

pub(super) use self::hooks::Hook;
#[cfg(test)]
pub(super) use self::hooks::Program;
#[cfg(test)]
pub(super) use self::interfaces::Interface;
pub(super) use self::interfaces::Interfaces;
pub(super) use self::settings::{Family, Settings};
pub(super) use self::strays::Stray;
use super::{
    Unchecked,
    abilities::{self, Ability},
};
use crate::{
    config::{self, Config},
    control::event::{OspfInterface, Route},
    migrate::{Host, Kind},
    netlink::{
        RouteQuery,
        filter::Side,
        inventory,
        rule::{self, Rule},
    },
    ospf::Daemon,
    pins::Pins,
    status::{self, Status},
    tables::Tables,
    wireguard,
};

/// Between two readings of counters: enough for several probes, and for GRE of another key to be heard.
const LISTEN: Duration = Duration::from_millis(300);
/// The same where probes are far apart.
const LISTEN_LONGEST: Duration = Duration::from_secs(2);

/// All that is known. What could not be found out is missing, and in [`Facts::unchecked`].
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) now: SystemTime,
    pub(super) interfaces: Interfaces,
    /// The device of each path, by the path's name; of those that have one.
    pub(super) path_devices: BTreeMap<String, String>,
    /// Devices, addresses, and the routes over the paths' devices.
    pub(super) host: Host,
    /// The paths' devices that are WireGuard's, by name.
    pub(super) wireguard: BTreeMap<String, wireguard::Device>,
    /// What the kernel does with a packet to an address that has this firewall mark: to the paths' remote
    /// addresses, the peers' prefixes (no mark), and the WireGuard endpoints (that of the device).
    pub(super) ways: BTreeMap<(IpAddr, u32), Option<Route>>,
    pub(super) rules: Vec<Rule>,
    pub(super) settings: Settings,
    /// `None` where some daemon does not tell, or there is none to ask.
    pub(super) ospf: Option<Vec<OspfInterface>>,
    /// What OSPF daemons did not answer, and what to do.
    pub(super) ospf_silent: Vec<(String, &'static str)>,
    pub(super) hooks: Vec<Hook>,
    pub(super) controller: Controller,
    /// Heard where a path is dead.
    pub(super) strays: BTreeSet<Stray>,
    pub(super) abilities: Vec<Ability>,
    pub(super) unchecked: Vec<Unchecked>,
}

/// What is known of the controller.
#[derive(Clone, Debug)]
pub(super) enum Controller {
    /// None ever ran, or what it left is gone.
    None,
    /// What it left cannot be read.
    Unknown,
    /// It ended, and left its bonds.
    Ended,
    /// It runs: two readings of what it tells, some time apart.
    Runs(Box<(Status, Status)>),
}

impl Facts {
    /// Reads everything.
    ///
    /// # Errors
    ///
    /// Where the host's devices cannot be read.
    pub(super) fn gather(config: &Config, pins: &Pins) -> Result<Self> {
        let mut unchecked = Vec::new();
        let controller = controller(pins, &mut unchecked);
        let host = inventory::devices_and_addresses()?;
        let interfaces = Interfaces::read(&host)?;
        let mut facts = Self {
            now: SystemTime::now(),
            interfaces,
            path_devices: BTreeMap::new(),
            host,
            wireguard: BTreeMap::new(),
            ways: BTreeMap::new(),
            rules: Vec::new(),
            settings: Settings::default(),
            ospf: None,
            ospf_silent: Vec::new(),
            hooks: Vec::new(),
            controller,
            strays: BTreeSet::new(),
            abilities: abilities::abilities(pins, config),
            unchecked,
        };
        let has_programs = |ability: &Ability| ability.kind == super::Kind::Programs;
        if !facts.abilities.iter().any(has_programs) {
            facts.skip(
                "whether the kernel takes netbond's programs",
                "capabilities are missing",
            );
        }
        facts.routes(config);
        facts.wireguard();
        facts.endpoints();
        facts.settings(config);
        facts.hooks(config);
        facts.ospf(config);
        facts.later(config, pins);
        Ok(facts)
    }

    /// The device of a path.
    pub(super) fn device(&self, path: &config::Path) -> Option<&str> {
        self.path_devices.get(&path.name).map(String::as_str)
    }

    /// The route to a path's remote address: `None` where that is not known, or none leads there.
    pub(super) fn way(&self, path: &config::Path) -> Option<&Route> {
        self.ways.get(&(path.remote, 0))?.as_ref()
    }

    /// The WireGuard peer that a path's packets go to, with its device.
    pub(super) fn peer(
        &self,
        path: &config::Path,
    ) -> Option<(&wireguard::Device, &wireguard::Peer)> {
        let device = self.wireguard.get(self.device(path)?)?;
        Some((device, device.peer_for(path.remote)?))
    }

    /// How encrypted packets to a peer leave.
    pub(super) fn underlay(
        &self,
        device: &wireguard::Device,
        peer: &wireguard::Peer,
    ) -> Option<&Route> {
        let key = (peer.endpoint?.ip(), device.mark);
        self.ways.get(&key)?.as_ref()
    }

    /// What a controller that runs tells of a bond, earlier and now.
    pub(super) fn readings(&self, bond: &config::Bond) -> Option<(&status::Bond, &status::Bond)> {
        let Controller::Runs(readings) = &self.controller else {
            return None;
        };
        let (before, after) = &**readings;
        Some((before.bond(&bond.name).ok()?, after.bond(&bond.name).ok()?))
    }

    /// Whether a controller that runs tells that the peer answers on a path.
    pub(super) fn is_proven(&self, bond: &config::Bond, path: &config::Path) -> bool {
        let now = self.readings(bond).map(|(_, now)| now);
        let mut known = now.into_iter().flat_map(|now| &now.paths);
        let known = known.find(|known| known.name == path.name);
        known.is_some_and(|known| known.proof.as_ref().is_some_and(|proof| proof.fresh))
    }

    fn skip(&mut self, what: impl Into<String>, why: impl Display) {
        self.unchecked.push(Unchecked {
            what: what.into(),
            why: why.to_string(),
        });
    }

    fn lookup(&mut self, targets: &[IpAddr], mark: u32) {
        let found = RouteQuery::open().and_then(|mut query| query.lookup_marked(targets, mark));
        match found {
            Ok(found) => {
                for (&target, route) in targets.iter().zip(found) {
                    match route {
                        Ok(route) => {
                            self.ways.insert((target, mark), route);
                        }
                        Err(error) => self.skip(format!("the route to {target}"), error),
                    }
                }
            }
            Err(error) => self.skip("routes", error),
        }
    }

    fn routes(&mut self, config: &Config) {
        let remotes = paths(config).map(|(_, path)| path.remote);
        let peers = config.bonds.iter().filter_map(|bond| bond.peer);
        let targets: BTreeSet<IpAddr> = remotes.chain(peers.map(|peer| peer.address)).collect();
        self.lookup(&Vec::from_iter(targets), 0);
        for (_, path) in paths(config) {
            let device = match (&path.device, self.interfaces.with(path.local)) {
                (Some(name), _) => Some(name.clone()),
                // A loopback address says nothing of the way: then the route does.
                (None, Some("lo")) => self
                    .way(path)
                    .and_then(|route| if_indextoname(route.next_hops.first()?.ifindex).ok())
                    .map(|name| name.to_string_lossy().into_owned()),
                (None, found) => found.map(str::to_owned),
            };
            if let Some(device) = device
                && self.interfaces.is_up(&device).is_some()
            {
                self.path_devices.insert(path.name.clone(), device);
            }
        }
        for name in BTreeSet::from_iter(self.path_devices.values().cloned()) {
            let ifindex = self.host.by_name(&name).map(|device| device.ifindex);
            match ifindex.map_or(Ok(Vec::new()), inventory::routes_over) {
                Ok(routes) => self.host.routes.extend(routes),
                Err(error) => self.skip(format!("the routes over {name}"), error),
            }
        }
        match rule::rules() {
            Ok(rules) => self.rules = rules,
            Err(error) => self.skip("policy rules", error),
        }
    }

    fn wireguard(&mut self) {
        for name in BTreeSet::from_iter(self.path_devices.values().cloned()) {
            let kind = match self.host.by_name(&name).map(|device| &device.kind) {
                Some(Kind::Other(kind)) => kind.as_str(),
                Some(Kind::Bond(_) | Kind::Team | Kind::Gre(_) | Kind::Vlan { .. }) | None => "",
            };
            match wireguard::read(&name, kind) {
                Ok(Some(device)) => {
                    self.wireguard.insert(name, device);
                }
                Ok(None) => {}
                Err(error) => self.skip(format!("AllowedIPs and endpoints of {name}"), error),
            }
        }
    }

    fn endpoints(&mut self) {
        let mut by_mark: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
        for device in self.wireguard.values() {
            let endpoints = device.peers.iter().filter_map(|peer| peer.endpoint);
            let known = by_mark.entry(device.mark).or_default();
            known.extend(endpoints.map(|endpoint| endpoint.ip()));
        }
        for (mark, endpoints) in by_mark {
            self.lookup(&endpoints, mark);
        }
    }

    fn settings(&mut self, config: &Config) {
        let bonds = config.bonds.iter().map(|bond| bond.name.clone());
        let devices = bonds.chain(self.path_devices.values().cloned());
        self.settings = Settings::read(&Vec::from_iter(devices));
    }

    fn hooks(&mut self, config: &Config) {
        let mut wanted = Vec::new();
        for bond in &config.bonds {
            let own = std::iter::once(bond.name.clone());
            let release = bond.in_order.map(|_| bond.peer_device());
            let own = own.chain(release).map(|name| (name, Side::Egress));
            let paths = bond.paths.iter().filter_map(|path| self.device(path));
            let paths = BTreeSet::from_iter(paths.map(str::to_owned));
            let paths = paths.into_iter().map(|name| (name, Side::Ingress));
            wanted.extend(own.chain(paths).map(|hook| (bond, hook)));
        }
        for (bond, (device, side)) in wanted {
            if self.interfaces.is_up(&device).is_none() {
                continue;
            }
            match Hook::read(&bond.name, &device, side) {
                Ok(hook) => self.hooks.push(hook),
                Err(error) => self.skip(format!("programs on {device}"), format!("{error:#}")),
            }
        }
    }

    fn ospf(&mut self, config: &Config) {
        let daemons = Daemon::of(config);
        if daemons.is_empty() {
            let why = "the file has neither [bird] nor [frr]";
            self.skip("OSPF neighbours", why);
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let answers = match runtime {
            Ok(runtime) => runtime.block_on(join_all(daemons.iter().map(Daemon::interfaces))),
            Err(error) => {
                self.skip("OSPF neighbours", error);
                return;
            }
        };
        let mut all = Vec::new();
        for (daemon, answer) in daemons.iter().zip(answers) {
            match answer {
                Ok(interfaces) => all.extend(interfaces),
                Err(error) => {
                    let what = format!("{daemon} does not tell its OSPF neighbours: {error:#}");
                    self.ospf_silent.push((what, daemon.advice()));
                }
            }
        }
        // A part would make the rest look as if OSPF were not there.
        self.ospf = self.ospf_silent.is_empty().then_some(all);
    }

    /// Reads once more what the controller tells, after a while in which a dead path is listened to.
    fn later(&mut self, config: &Config, pins: &Pins) {
        let Controller::Runs(readings) = &self.controller else {
            return;
        };
        let before = readings.0.clone();
        let probing = config.bonds.iter().filter_map(|bond| bond.probing);
        let interval = probing
            .map(|probing| probing.interval_ms)
            .max()
            .unwrap_or(0);
        let pause = Duration::from_millis(3 * u64::from(interval)).clamp(LISTEN, LISTEN_LONGEST);
        let silent = before
            .bonds
            .iter()
            .flat_map(|bond| &bond.paths)
            .any(|path| {
                path.state == PathState::Dead.label() && path.reason == StateReason::Silent.label()
            });
        let end = Instant::now() + pause;
        if silent {
            match strays::listen(pause) {
                Ok(strays) => self.strays = strays,
                Err(error) => self.skip("GRE that is of no path", error),
            }
        }
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        // It may have ended meanwhile.
        self.controller = match controller(pins, &mut self.unchecked) {
            Controller::Runs(readings) => Controller::Runs(Box::new((before, readings.1))),
            ended @ (Controller::None | Controller::Unknown | Controller::Ended) => ended,
        };
        for bond in &config.bonds {
            if bond.probing.is_none() {
                let what = format!(
                    "whether full-size packets pass {}, and whether its two ends agree",
                    bond.name
                );
                self.skip(what, "it is not probed (probe_interval = 0)");
            }
        }
    }
}

/// Every path with its bond.
pub(super) fn paths(config: &Config) -> impl Iterator<Item = (&config::Bond, &config::Path)> {
    let bonds = config.bonds.iter();
    bonds.flat_map(|bond| bond.paths.iter().map(move |path| (bond, path)))
}

fn controller(pins: &Pins, unchecked: &mut Vec<Unchecked>) -> Controller {
    let mut skip = |why: String| {
        let what =
            "how paths stand, black holes, whether both ends agree, lost programs".to_owned();
        unchecked.push(Unchecked { what, why });
    };
    match pins.try_exist() {
        Ok(true) => {}
        Ok(false) => {
            skip("no controller runs".to_owned());
            return Controller::None;
        }
        Err(error) => {
            skip(format!("{}: {error}", pins.root().display()));
            return Controller::Unknown;
        }
    }
    match Tables::open(pins).and_then(|tables| status::collect(&tables, pins)) {
        Ok(status) if status.controller.running => {
            Controller::Runs(Box::new((status.clone(), status)))
        }
        Ok(_) => {
            skip("no controller runs".to_owned());
            Controller::Ended
        }
        Err(error) => {
            skip(format!("{error:#}"));
            Controller::Unknown
        }
    }
}
