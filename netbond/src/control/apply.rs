//! Makes the system as planned: maps, programs on devices, the bond devices themselves.

mod xdp;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use bytemuck::Zeroable as _;
use netbond_common::{
    abi::{
        ABI_VERSION, ADMIN_DOWN, BOND_IN_ORDER, BOND_SHARES, Bond, BondInfo, BondStats, Class,
        ClassInfo, ClassStats, FLOW_BUCKETS, Lane, MAX_BOND_CLASSES, MAX_BOND_PATHS, MAX_BONDS,
        Meta, NextHop, PATH_IPV6, PATH_KEY, PATH_LAST_RESORT, PATH_NEIGHBOUR, PATH_SPARE,
        PATH_USABLE, Path, PathInfo, PathStats, SHARES_EQUAL, SHARES_MEASURED, SHARES_WEIGHTED,
        Shares, Ticket, TunnelKey, WHEEL_SLOTS,
    },
    ipv4,
    names::{Mode, StateReason, Weights, feature},
    order,
    sequence::Strand,
    turns, wheel,
};
use nix::net::if_::if_indextoname;

use self::xdp::Drivers;
use super::agreement;
use super::event::{Event, Link};
use super::plan::{BondPlan, MtuBound, PathPlan, Standing, Weighing, headers};
use super::state::{Ids, Outcome};
use crate::{
    clock::monotonic,
    config::{self, Config, Encap, Ttl},
    journal::{About, Change, Journal},
    loader::{Hook, Programs, egress_program},
    netlink::{BondDevice, BondSpec, Netlink},
    pins::Pins,
    random,
    tables::{CpuValues, Raw, Tables, Values, field, text, value},
};

/// MTU of WireGuard's devices by default, bytes: a bond's is what it leaves, as long as none of its
/// paths has a device.
const WIREGUARD_MTU: u32 = 1420;

const PATHS: usize = MAX_BOND_PATHS as usize;

/// How often it is seen to that programs are on their devices: no event tells that somebody took one off.
const LOOK: Duration = Duration::from_secs(5);

/// A bond that is there.
struct Live {
    config: config::Bond,
    device: BondDevice,
    mtu: u32,
    /// Where each of its classes is counted.
    counters: Vec<u32>,
    /// The last plan, to be written again when the device is made anew.
    plan: Option<BondPlan>,
    /// What `FLOW_TABLE` says of it; empty where that is not known.
    flow_table: Vec<u64>,
}

/// Writes what was decided.
pub struct Applier {
    tables: Tables,
    programs: Programs,
    netlink: Netlink,
    journal: Journal,
    live: BTreeMap<u32, Live>,
    /// By the bond's name the program at its egress, as last told.
    egress: BTreeMap<String, &'static str>,
    /// Devices with the ingress program: ifindex to name.
    ingress: BTreeMap<u32, (String, Hook)>,
    /// Devices on which the kernel refused it.
    refused: BTreeSet<u32>,
    /// Bond devices to be made again.
    lost: BTreeSet<u32>,
    tunnels: BTreeMap<u32, TunnelKey>,
    drivers: Drivers,
    /// What the configuration asks of the programs, `feature` bits.
    asked: u32,
    /// Whether programs that ask no more could not be loaded: not tried again before a reload.
    keeps_ipv6: bool,
    /// When it was last seen to that programs are on their devices.
    looked: Instant,
    /// What was told of devices without copies, by bond id.
    uncopied: BTreeMap<u32, Vec<String>>,
}

impl Applier {
    /// Loads the programs that a configuration asks for and opens the maps; takes over what is pinned.
    ///
    /// # Errors
    ///
    /// Where the kernel or the pins refuse.
    pub fn start(pins: &Pins, config: &Config) -> Result<Self> {
        let mut programs = Programs::load(pins, config.features())?;
        let mut tables = Tables::open(pins)?;
        programs.switch(features(config.features(), &tables))?;
        let mut meta = Meta {
            abi: ABI_VERSION,
            ..Meta::zeroed()
        };
        meta.pid = std::process::id();
        tables.meta.set(0, Raw(meta), 0).context("writing META")?;
        if value(&tables.secret, 0) == Some([0; 2]) {
            let key = random::bytes::<16>().context("reading /dev/urandom")?;
            let key = Raw(bytemuck::cast(key));
            tables.secret.set(0, key, 0).context("writing SECRET")?;
        }
        let mut tunnels = BTreeMap::new();
        for entry in tables.tunnels.iter() {
            let (Raw(key), path) = entry.context("reading TUNNELS")?;
            tunnels.insert(path, key);
        }
        let mut in_drivers = Programs::left_in_drivers(pins)?;
        for ifindex in tables.drivers.keys() {
            in_drivers.insert(ifindex.context("reading DRIVERS")?);
        }
        for ifindex in tables.ports.keys() {
            in_drivers.insert(ifindex.context("reading PORTS")?);
        }
        Ok(Self {
            tables,
            programs,
            netlink: Netlink::open()?,
            journal: Journal::open(pins)?,
            live: BTreeMap::new(),
            egress: BTreeMap::new(),
            refused: BTreeSet::new(),
            lost: BTreeSet::new(),
            // Those that an earlier controller left: pruned where they are no path's any more.
            ingress: Programs::left_behind(pins)?,
            tunnels,
            asked: config.features(),
            keeps_ipv6: false,
            drivers: Drivers::new(in_drivers),
            looked: Instant::now(),
            uncopied: BTreeMap::new(),
        })
    }

    /// Where all that happens is written.
    pub fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// Makes the bonds of a configuration: programs, devices, addresses. Bonds and paths keep the ids
    /// that their names have in the maps. Those that are not in it are taken away, last. Calls `done_one`
    /// whenever one is done: a thousand of them take the kernel many seconds, see [`Programs::attach`].
    ///
    /// # Errors
    ///
    /// Where the kernel refuses a device, a program or an address: then all is as it was. Where a map
    /// cannot be written, which is not to be expected, some bonds may be the new ones already.
    pub async fn configure(
        &mut self,
        config: &Config,
        done_one: &mut dyn FnMut(),
    ) -> Result<Vec<Ids>> {
        // Preparing a bond swaps the new program in, before the maps ask more of it.
        let asked = config.features();
        let before = self.programs.switch(features(asked, &self.tables))?;
        self.forgive_xdp();
        let done = self.make_bonds(config, done_one).await;
        if done.is_ok() {
            (self.asked, self.keeps_ipv6) = (asked, false);
        }
        match (&done, before) {
            (Err(_), Some(before)) => {
                self.programs.restore(before);
                self.put_programs();
                self.swap_in_drivers();
            }
            (Ok(_), Some(_)) => self.put_switched(),
            // Bonds have had what their modes and paths ask for before and after.
            (Ok(_) | Err(_), None) => self.put_programs(),
        }
        done
    }

    /// Puts programs that were just loaded in the place of those before.
    fn put_switched(&mut self) {
        self.put_programs();
        self.swap_in_drivers();
        let text = "programs swapped for those that the modes and paths need";
        self.journal.did(About::ALL, text);
    }

    /// Has programs that know IPv6 go once nothing asks for it: to IPv4 alone it is a cost.
    fn let_ipv6_go(&mut self) {
        let loaded = self.programs.features();
        if self.keeps_ipv6 || loaded == self.asked || features(self.asked, &self.tables) == loaded {
            return;
        }
        match self.programs.switch(self.asked) {
            Ok(_) => self.put_switched(),
            Err(error) => {
                self.journal.failed(About::ALL, &format!("{error:#}"));
                self.keeps_ipv6 = true;
            }
        }
    }

    /// Puts the loaded programs wherever one is, or somebody took it off.
    fn put_programs(&mut self) {
        let mut all: Vec<(u32, String, Hook)> = Vec::new();
        for (&id, live) in &self.live {
            let bond = &live.config;
            let features = bond_features(bond, id, &self.tables);
            let hook = Hook::Bond { features };
            all.push((live.device.ifindex, bond.name.clone(), hook));
            if bond.in_order.is_some() {
                let peer = bond.peer_device();
                all.push((live.device.peer_ifindex, peer, Hook::Release));
            }
        }
        all.extend(
            self.ingress
                .iter()
                // An earlier controller's, not looked at yet.
                .filter(|(_, (name, _))| !name.is_empty())
                .map(|(&ifindex, (name, hook))| (ifindex, name.clone(), *hook)),
        );
        for (ifindex, name, hook) in all {
            match self.programs.attach(&name, ifindex, hook) {
                Ok(false) => {
                    self.refused.remove(&ifindex);
                    if let Hook::Bond { features } = hook {
                        self.note_egress(&name, features);
                    }
                }
                Ok(true) => {
                    self.refused.remove(&ifindex);
                    let text = format!(
                        "somebody took netbond's program off {name} ({}): it is back",
                        hook.label()
                    );
                    self.journal.failed(About::ALL, &text);
                }
                // Of a device that is gone an event tells.
                Err(_) if if_indextoname(ifindex).is_err() => {}
                // Tried again and again: said once.
                Err(error) => {
                    if self.refused.insert(ifindex) {
                        self.journal.failed(About::ALL, &format!("{error:#}"));
                    }
                }
            }
        }
    }

    /// Says so where a bond has another program than before.
    fn note_egress(&mut self, bond: &str, features: u32) {
        let program = egress_program(features);
        let before = self.egress.insert(bond.to_owned(), program);
        if before.is_some_and(|before| before != program) {
            let text = format!("sent by {program} from now on, as its modes and paths ask");
            self.journal.did(About::bond(bond), &text);
        }
    }

    /// Swaps the loaded program into the drivers that have one, be it of an earlier controller.
    fn swap_in_drivers(&mut self) {
        for ifindex in self.drivers.with_program() {
            if let Err(error) = self.programs.swap_xdp(ifindex) {
                self.journal.failed(About::ALL, &format!("{error:#}"));
            }
        }
    }

    async fn make_bonds(
        &mut self,
        config: &Config,
        done_one: &mut dyn FnMut(),
    ) -> Result<Vec<Ids>> {
        let ids = self.allocate(config)?;
        if let Err(error) = self.insist_on_lans(&config.lans) {
            self.follow_xdp()?;
            return Err(error);
        }
        let mut prepared: Vec<(&config::Bond, u32, BondDevice)> = Vec::new();
        for (bond, ids) in config.bonds.iter().zip(&ids) {
            match self.prepare(bond, ids.bond).await {
                Ok(device) => prepared.push((bond, ids.bond, device)),
                Err(error) => {
                    for (bond, id, device) in prepared {
                        self.take_back(bond, id, device).await;
                        done_one();
                    }
                    self.follow_xdp()?;
                    return Err(error.context(format!("bond \"{}\"", bond.name)));
                }
            }
            done_one();
        }
        // As on the bond devices, before the maps ask more of it.
        self.swap_in_drivers();
        for ((bond, _, device), ids) in prepared.into_iter().zip(&ids) {
            self.enter(bond, ids, device).await?;
        }
        let kept: BTreeSet<u32> = ids.iter().map(|ids| ids.bond).collect();
        let stale: Vec<u32> = self
            .tables
            .bond_ids()
            .filter(|id| !kept.contains(id))
            .collect();
        for id in stale {
            self.remove_bond(id).await?;
            done_one();
        }
        self.prune_ingress(done_one)?;
        self.enter_lans(&config.lans)?;
        self.follow_xdp()?;
        Ok(ids)
    }

    /// Ids for bonds and paths: those that their names have, else free ones.
    fn allocate(&self, config: &Config) -> Result<Vec<Ids>> {
        let names: BTreeMap<String, u32> = self
            .tables
            .bond_ids()
            .filter_map(|id| Some((text(&self.tables.bond_info(id)?.name), id)))
            .collect();
        let mut taken: BTreeSet<u32> = names.values().copied().collect();
        let mut all = Vec::new();
        for bond in &config.bonds {
            let id = match names.get(&bond.name) {
                Some(&id) => id,
                None => (0..MAX_BONDS)
                    .find(|id| !taken.contains(id))
                    .ok_or_else(|| anyhow!("the maps hold {MAX_BONDS} bonds and are full"))?,
            };
            taken.insert(id);
            let paths: BTreeMap<String, u32> = self
                .tables
                .path_ids(id)
                .filter_map(|path| Some((text(&self.tables.path_info(path)?.name), path)))
                .collect();
            let mut used: BTreeSet<u32> = bond
                .paths
                .iter()
                .filter_map(|path| paths.get(&path.name).copied())
                .collect();
            let mut ids = Vec::new();
            for path in &bond.paths {
                let path = match paths.get(&path.name) {
                    Some(&path) => path,
                    None => (id * MAX_BOND_PATHS..)
                        .take(MAX_BOND_PATHS as usize)
                        .find(|path| !used.contains(path))
                        .ok_or_else(|| anyhow!("bond \"{}\" has too many paths", bond.name))?,
                };
                used.insert(path);
                ids.push(path);
            }
            all.push(Ids {
                bond: id,
                paths: ids,
            });
        }
        Ok(all)
    }

    /// Everything the kernel may refuse: device, program, MTU, new addresses. Nothing that carries
    /// packets changes; a failure leaves what was.
    async fn prepare(&mut self, bond: &config::Bond, id: u32) -> Result<BondDevice> {
        let spec = BondSpec {
            name: &bond.name,
            peer_name: &bond.peer_device(),
            arp: arp(bond),
        };
        let device = self.netlink.ensure_bond_device(spec).await?;
        let done = self.equip(bond, id, device).await;
        if done.is_err() {
            self.take_back(bond, id, device).await;
        }
        done.map(|()| device)
    }

    async fn equip(&mut self, bond: &config::Bond, id: u32, device: BondDevice) -> Result<()> {
        // The program goes first: a packet never finds a bond that is up without it.
        // It knows what the maps ask for until they are written, too.
        let before = self.live.get(&id).map_or(0, |live| live.config.features());
        let features = before | bond_features(bond, id, &self.tables);
        let hook = Hook::Bond { features };
        self.programs.attach(&bond.name, device.ifindex, hook)?;
        if bond.in_order.is_some() {
            self.netlink.set_release(device, true).await?;
            let peer = bond.peer_device();
            self.programs
                .attach(&peer, device.peer_ifindex, Hook::Release)?;
        }
        if bond.is_numbered() {
            self.add_strands(id)?;
        }
        if device.created {
            self.netlink.set_mtu(device, self.mtu(bond, id)).await?;
        }
        self.insist_on_xdp(bond)?;
        // Up goes before addresses: the kernel refuses some to a device that is down, and takes the
        // IPv6 ones away when it goes down.
        self.netlink.set_up(device).await?;
        self.netlink
            .set_addresses(device.ifindex, &addresses(bond), &[])
            .await
    }

    /// Undoes [`Self::prepare`], as far as the kernel lets it.
    async fn take_back(&mut self, bond: &config::Bond, id: u32, device: BondDevice) {
        let earlier = self
            .live
            .get(&id)
            .map(|live| addresses(&live.config))
            .unwrap_or_default();
        let undone = if device.created {
            self.netlink.delete_device(device.ifindex).await
        } else {
            let arp = self
                .live
                .get(&id)
                .map_or(device.arp, |live| arp(&live.config));
            let addresses = addresses(bond);
            let live = self.live.get(&id).map(|live| &live.config);
            let in_order = live.is_some_and(|live| live.in_order.is_some());
            let numbered = live.is_some_and(config::Bond::is_numbered);
            if !in_order {
                self.end_order(device).await;
            }
            if !numbered {
                self.remove_strands(id);
            }
            match self.netlink.set_arp(device, arp).await {
                Ok(device) => {
                    self.netlink
                        .set_addresses(device.ifindex, &earlier, &addresses)
                        .await
                }
                Err(error) => Err(error),
            }
        };
        if let Err(error) = undone {
            let about = About::bond(&bond.name);
            self.journal.failed(about, &format!("{error:#}"));
        }
    }

    /// Makes a bond's strands, unless they are there.
    fn add_strands(&mut self, id: u32) -> Result<()> {
        for strand in Tables::strand_ids(id) {
            if self.tables.strands.get(&strand, 0).is_err() {
                self.tables
                    .strands
                    .insert(strand, Raw(Strand::zeroed()), 0)
                    .context("no memory to note which of the peer's packets came")?;
            }
        }
        Ok(())
    }

    /// Takes a bond's strands away; what is not there is no matter.
    fn remove_strands(&mut self, id: u32) {
        for strand in Tables::strand_ids(id) {
            let _ = self.tables.strands.remove(&strand);
        }
    }

    /// Takes away what only in-order release needs; what is not there is no matter.
    async fn end_order(&mut self, device: BondDevice) {
        let peer = self.netlink.link_by_index(device.peer_ifindex);
        if let Ok(Some(peer)) = peer {
            let _ = self
                .programs
                .detach(&peer.name, device.peer_ifindex, Hook::Release);
            let _ = self.netlink.set_release(device, false).await;
        }
    }

    /// The bond's MTU as far as it is known.
    fn mtu(&self, bond: &config::Bond, id: u32) -> u32 {
        let known = self
            .tables
            .bond_info(id)
            .map(|info| info.mtu)
            .filter(|&mtu| mtu != 0);
        known.unwrap_or_else(|| {
            let most = bond.paths.iter().map(|path| headers(bond, path)).max();
            let first = WIREGUARD_MTU - most.unwrap_or(0);
            first.min(bond.mtu.unwrap_or(u32::MAX))
        })
    }

    /// Enters a bond whose device is ready into the maps.
    async fn enter(&mut self, bond: &config::Bond, ids: &Ids, device: BondDevice) -> Result<()> {
        let known = self.tables.bond_info(ids.bond);
        if known.is_none() {
            set_all(&mut self.tables.bond_stats, ids.bond, BondStats::default())?;
            set_all(&mut self.tables.tickets, ids.bond, Ticket::default())?;
            // What another bond of this id was measured to carry.
            let measured = ids.bond * BOND_SHARES + SHARES_MEASURED;
            let none = Raw(Shares::zeroed());
            let written = self.tables.shares.set(measured, none, 0);
            written.context("writing SHARES")?;
            // A peer that still knows the numbers of an earlier bond must not take these for those.
            for strand in Tables::strand_ids(ids.bond) {
                let first = random::bytes::<4>().context("reading /dev/urandom")?;
                self.tables
                    .sequences
                    .set(strand, u64::from(u32::from_ne_bytes(first)), 0)
                    .context("writing SEQUENCES")?;
            }
        }
        let counters = self.enter_classes(bond, ids.bond)?;
        let mtu = self.mtu(bond, ids.bond);
        self.retire_paths(ids)?;
        let slots = ids.paths.iter().map(|path| path % MAX_BOND_PATHS + 1);
        let before = value(&self.tables.bonds, ids.bond).unwrap_or(Bond::zeroed());
        let record = Bond {
            paths: slots.max().unwrap_or(0),
            ifindex: device.ifindex,
            ttl: match bond.ttl {
                Ttl::Inherit => 0,
                Ttl::Fixed(ttl) => ttl,
            },
            mac: device.mac,
            flags: agreement::options(bond),
            release_ifindex: device.peer_ifindex,
            longest_hold_ns: longest_hold_ns(bond),
            clamp_mtu: clamp_mtu(bond, mtu),
            // A new device takes no frames from drivers yet.
            xdp_mtu: if device.created { 0 } else { before.xdp_mtu },
            xdp: if device.created {
                0
            } else {
                before.xdp & xdp::allowed(bond)
            },
            ..before
        };
        set_if_new(&mut self.tables.bonds, ids.bond, record).context("writing BONDS")?;
        let by_ifindex = &mut self.tables.bond_by_ifindex;
        by_ifindex
            .insert(device.ifindex, ids.bond, 0)
            .context("writing BOND_BY_IFINDEX")?;
        if let Some(known) = known.filter(|known| known.ifindex != device.ifindex) {
            let _ = by_ifindex.remove(&known.ifindex);
        }
        for (path, &id) in bond.paths.iter().zip(&ids.paths) {
            self.register(bond, path, id)?;
        }
        let reachable = known.map(|known| known.peer_reachable != 0);
        let ceiling = known.map_or(0, |known| known.mtu_ceiling);
        self.write_bond_info(ids.bond, bond, device, (mtu, ceiling), reachable)?;
        if bond.in_order.is_none() && before.flags & BOND_IN_ORDER != 0 {
            // What is held comes out first.
            let longest = Duration::from_nanos(before.longest_hold_ns.into());
            tokio::time::sleep(longest + Duration::from_millis(10)).await;
            self.end_order(device).await;
        }
        if !bond.is_numbered() {
            self.remove_strands(ids.bond);
        }

        let earlier = self.live.remove(&ids.bond);
        let (before, plan, flow_table) =
            earlier.map_or((Vec::new(), None, Vec::new()), |earlier| {
                let before = addresses(&earlier.config);
                (before, earlier.plan, earlier.flow_table)
            });
        let live = Live {
            config: bond.clone(),
            device,
            mtu,
            counters,
            plan,
            flow_table,
        };
        self.live.insert(ids.bond, live);
        if let Err(error) = self
            .netlink
            .set_addresses(device.ifindex, &addresses(bond), &before)
            .await
        {
            let about = About::bond(&bond.name);
            self.journal.failed(about, &format!("{error:#}"));
        }
        if device.created {
            self.drivers.know_anew(ids.bond);
            let text = format!("bond device made, MTU {mtu}");
            self.journal.did(About::bond(&bond.name), &text);
        }
        Ok(())
    }

    /// Tells of a bond's classes, and returns where each is counted: where it was, as long as it keeps
    /// its name.
    fn enter_classes(&mut self, bond: &config::Bond, id: u32) -> Result<Vec<u32>> {
        let mut free: BTreeSet<u32> = (id * MAX_BOND_CLASSES..)
            .take(MAX_BOND_CLASSES as usize)
            .collect();
        let mut known = BTreeMap::new();
        for (counter, info) in self.tables.class_infos(id) {
            let name = text(&info.name);
            if bond.classes.iter().any(|class| class.name == name) {
                free.remove(&counter);
                known.insert(name, counter);
            } else {
                self.tables
                    .class_info
                    .set(counter, Raw(ClassInfo::zeroed()), 0)
                    .context("writing CLASS_INFO")?;
            }
        }
        let mut counters = Vec::new();
        for (place, class) in (0..).zip(&bond.classes) {
            let counter = match known.get(&class.name) {
                Some(&counter) => counter,
                None => {
                    let counter = free.pop_first();
                    let counter = counter.context("there are too many classes")?;
                    set_all(&mut self.tables.class_stats, counter, ClassStats::default())?;
                    counter
                }
            };
            let info = ClassInfo {
                name: field(&class.name),
                mode: class.mode as u32,
                place,
                text: field(&class.text),
            };
            set_if_new(&mut self.tables.class_info, counter, info).context("writing CLASS_INFO")?;
            counters.push(counter);
        }
        Ok(counters)
    }

    /// Clears the paths of a bond that are not among `ids`.
    fn retire_paths(&mut self, ids: &Ids) -> Result<()> {
        let all: Vec<u32> = self.tables.path_ids(ids.bond).collect();
        for id in all.into_iter().filter(|id| !ids.paths.contains(id)) {
            if let Some(info) = self.tables.path_info(id) {
                let bond = self.tables.bond_info(ids.bond);
                let bond = bond.map_or_else(String::new, |bond| text(&bond.name));
                self.journal.did(
                    About::path(&bond, &text(&info.name)),
                    "path removed: no longer configured",
                );
            }
            self.remove_path(id)?;
        }
        Ok(())
    }

    fn remove_path(&mut self, id: u32) -> Result<()> {
        // Unless another path took it over, as on the renaming of a bond.
        if let Some(key) = self.tunnels.remove(&id)
            && !self.tunnels.values().any(|other| *other == key)
        {
            let _ = self.tables.tunnels.remove(&Raw(key));
        }
        self.tables
            .paths
            .set(id, Raw(Path::zeroed()), 0)
            .context("writing PATHS")?;
        self.tables
            .path_info
            .set(id, Raw(PathInfo::zeroed()), 0)
            .context("writing PATH_INFO")?;
        self.tables.admin.set(id, 0, 0).context("writing ADMIN")
    }

    async fn remove_bond(&mut self, id: u32) -> Result<()> {
        let Some(info) = self.tables.bond_info(id) else {
            return Ok(());
        };
        let name = text(&info.name);
        self.retire_paths(&Ids {
            bond: id,
            paths: Vec::new(),
        })?;
        for (counter, _) in self.tables.class_infos(id) {
            self.tables
                .class_info
                .set(counter, Raw(ClassInfo::zeroed()), 0)
                .context("writing CLASS_INFO")?;
        }
        let _ = self.tables.bond_by_ifindex.remove(&info.ifindex);
        self.tables
            .bonds
            .set(id, Raw(Bond::zeroed()), 0)
            .context("writing BONDS")?;
        self.tables
            .bond_info
            .set(id, Raw(BondInfo::zeroed()), 0)
            .context("writing BOND_INFO")?;
        // Index 0 empties a place.
        let _ = self.tables.bond_peers.set(id, 0, None, 0);
        // Its program goes with it: to take that off first would have the kernel wait twice.
        delete_bond_device(&mut self.netlink, &name, info.ifindex).await?;
        let hook = Hook::Bond { features: 0 };
        self.programs.detach(&name, info.ifindex, hook)?;
        self.remove_strands(id);
        self.live.remove(&id);
        self.egress.remove(&name);
        self.uncopied.remove(&id);
        self.journal
            .did(About::bond(&name), "bond removed: no longer configured");
        Ok(())
    }

    /// A path's place in the maps: what it is, not yet how it stands.
    fn register(&mut self, bond: &config::Bond, path: &config::Path, id: u32) -> Result<()> {
        let known = self.tables.path_info(id);
        if known.is_none_or(|known| text(&known.name) != path.name) {
            set_all(&mut self.tables.path_stats, id, PathStats::default())?;
            self.tables.admin.set(id, 0, 0).context("writing ADMIN")?;
            // Out of use until it is planned: the slot may have been another path's.
            self.tables
                .paths
                .set(id, Raw(Path::zeroed()), 0)
                .context("writing PATHS")?;
            let info = PathInfo {
                name: field(&path.name),
                weight: path.weight,
                quarters: 4 * path.weight,
                priority: path.priority,
                changed_ns: now_ns(),
                ..PathInfo::zeroed()
            };
            self.tables
                .path_info
                .set(id, Raw(info), 0)
                .context("writing PATH_INFO")?;
        }
        let (local, remote) = (mapped(path.local), mapped(path.remote));
        let key = TunnelKey {
            source: remote,
            destination: local,
            key: bond.key.unwrap_or(0).to_be_bytes(),
            has_key: u32::from(bond.key.is_some()),
        };
        if self.tunnels.get(&id) != Some(&key) {
            self.tables
                .tunnels
                .insert(Raw(key), id, 0)
                .context("writing TUNNELS")?;
            if let Some(old) = self.tunnels.insert(id, key)
                && !self.tunnels.values().any(|key| *key == old)
            {
                let _ = self.tables.tunnels.remove(&Raw(old));
            }
        }
        Ok(())
    }

    /// Carries out what the state machine decided.
    ///
    /// # Errors
    ///
    /// Where a map cannot be written. A device that refuses its program or MTU (it may be gone again)
    /// is only reported: the next event tells more.
    pub async fn apply(&mut self, outcome: Outcome) -> Result<()> {
        let plan = outcome.plan;
        let Some(live) = self.live.get(&plan.id) else {
            return Ok(());
        };
        let (bond, device, mtu) = (live.config.clone(), live.device, live.mtu);
        let before = live.plan.clone();
        // Packets that are too long for a path must not be sent on it.
        let shrinks = plan.mtu.is_some_and(|wanted| wanted < mtu);
        let mut mtu = mtu;
        if shrinks {
            mtu = self.follow_mtu(&plan, device, mtu).await;
        }
        // What packets see goes first.
        for path in &plan.paths {
            self.write_path(&bond, path)?;
        }
        self.write_lanes(&bond, &plan)?;
        let weighing = before
            .as_ref()
            .map_or(&Weighing::Static, |plan| &plan.weighing);
        if *weighing != plan.weighing {
            self.tell_weighing(&plan);
        }
        self.tell_of_copies(&bond, &plan);
        for transition in &outcome.transitions {
            let (to, reason) = transition.to;
            // Taken over from an earlier controller as it was: no news.
            let as_before = transition.from.is_none() && {
                let same = |path: &&PathPlan| path.name == transition.path;
                let planned = plan.paths.iter().find(same);
                let known = planned.and_then(|path| self.tables.path_info(path.id));
                known.is_some_and(|info| (info.state, info.reason) == (to as u32, reason as u32))
            };
            if as_before {
                continue;
            }
            let change = Change {
                from: transition.from.map(|(state, _)| state),
                to,
                reason,
            };
            self.journal.changed(
                About::path(&transition.bond, &transition.path),
                change,
                &transition.cause,
            );
        }
        for path in &plan.paths {
            if let Some(device) = &path.device {
                self.attach_ingress(device.ifindex, &device.name, device.ethernet);
            }
        }
        if !shrinks {
            mtu = self.follow_mtu(&plan, device, mtu).await;
        }
        self.write_clamp(plan.id, &bond, mtu)?;
        let mtus = (mtu, plan.mtu_ceiling.unwrap_or(0));
        self.write_bond_info(plan.id, &bond, device, mtus, plan.peer_reachable)?;
        for path in &plan.paths {
            self.write_path_info(path)?;
        }
        if let Some(live) = self.live.get_mut(&plan.id) {
            live.mtu = mtu;
            live.plan = Some(plan);
        }
        self.prune_ingress(&mut || ())?;
        self.follow_xdp()
    }

    /// Tells on which devices a bond that sends copies has none.
    fn tell_of_copies(&mut self, bond: &config::Bond, plan: &BondPlan) {
        let settings = without_copies(bond, plan);
        let told = self.uncopied.insert(plan.id, settings.clone());
        if settings.is_empty() || told.as_ref() == Some(&settings) {
            return;
        }
        let text = format!(
            "mode duplicate: the kernel tells whom to send copies to only on devices that forward: of the paths over others \
             one has the packet itself. To mend it: sysctl -w {}",
            settings.join(" ")
        );
        self.journal.failed(About::bond(&plan.name), &text);
    }

    /// Gives a bond's device, which has this MTU, the one that its plan says; returns what it has then.
    async fn follow_mtu(&mut self, plan: &BondPlan, device: BondDevice, mtu: u32) -> u32 {
        let Some(wanted) = plan.mtu.filter(|wanted| *wanted != mtu) else {
            return mtu;
        };
        let about = About::bond(&plan.name);
        if let Err(error) = self.limit_xdp(plan.id, wanted) {
            self.journal.failed(about, &format!("{error:#}"));
        }
        match self.netlink.set_mtu(device, wanted).await {
            Ok(()) => {
                let text = match &plan.mtu_bound {
                    MtuBound::Ceiling => format!("MTU {wanted}, from the paths' devices"),
                    MtuBound::Path { name, path_mtu } => {
                        format!("MTU {wanted}, by the path MTU of {name}, {path_mtu}")
                    }
                };
                self.journal.did(about, &text);
                wanted
            }
            Err(error) => {
                self.journal.failed(about, &format!("{error:#}"));
                mtu
            }
        }
    }

    /// Has the programs clamp what TCP announces to the bond's MTU, where that is wanted.
    fn write_clamp(&mut self, id: u32, bond: &config::Bond, mtu: u32) -> Result<()> {
        let bonds = &mut self.tables.bonds;
        let Raw(record) = bonds.get(&id, 0).context("reading BONDS")?;
        let clamp_mtu = clamp_mtu(bond, mtu);
        set_if_new(
            bonds,
            id,
            Bond {
                clamp_mtu,
                ..record
            },
        )
        .context("writing BONDS")
    }

    /// Follows the Ethernet address of a bond's device, to which received packets go.
    ///
    /// # Errors
    ///
    /// Where a map cannot be written.
    pub fn readdress(&mut self, link: &Link) -> Result<()> {
        let mut live = self.live.iter_mut();
        let found = live.find(|(_, live)| live.device.ifindex == link.ifindex);
        let (Some((&id, live)), Some(mac)) = (found, link.mac) else {
            return Ok(());
        };
        if live.device.mac == mac {
            return Ok(());
        }
        live.device.mac = mac;
        let about = About::bond(&live.config.name);
        let written = mac.map(|byte| format!("{byte:02x}")).join(":");
        let text = format!("somebody gave the bond device another Ethernet address: {written}");
        self.journal.saw(about, &text);
        let bonds = &mut self.tables.bonds;
        let Raw(record) = bonds.get(&id, 0).context("reading BONDS")?;
        set_if_new(bonds, id, Bond { mac, ..record }).context("writing BONDS")
    }

    /// Takes note that a device is gone.
    pub fn link_gone(&mut self, ifindex: u32) {
        self.ingress.remove(&ifindex);
        self.refused.remove(&ifindex);
        if self.drivers.forget(ifindex) {
            let _ = self.tables.drivers.remove(&ifindex);
        }
        if let Some(live) = self
            .live
            .values()
            .find(|live| live.device.ifindex == ifindex)
        {
            self.journal.failed(
                About::bond(&live.config.name),
                "bond device was deleted by somebody: making it again",
            );
            self.lost.insert(ifindex);
        }
    }

    /// Tries again what the kernel refused, or what others undid: bond devices, and programs on the
    /// paths' devices.
    ///
    /// # Errors
    ///
    /// Where a map cannot be written.
    pub async fn mend(&mut self) -> Result<()> {
        let lost: Vec<u32> = self
            .live
            .iter()
            .filter(|(_, live)| self.lost.contains(&live.device.ifindex))
            .map(|(&id, _)| id)
            .collect();
        for id in lost {
            let Some(live) = self.live.get(&id) else {
                continue;
            };
            let (bond, ifindex) = (live.config.clone(), live.device.ifindex);
            let device = match self.prepare(&bond, id).await {
                Ok(device) => device,
                Err(error) => {
                    let about = About::bond(&bond.name);
                    self.journal.failed(about, &format!("{error:#}"));
                    continue;
                }
            };
            let ids: BTreeMap<String, u32> = self
                .tables
                .path_ids(id)
                .filter_map(|path| Some((text(&self.tables.path_info(path)?.name), path)))
                .collect();
            let paths = bond
                .paths
                .iter()
                .filter_map(|path| ids.get(&path.name).copied())
                .collect();
            self.enter(&bond, &Ids { bond: id, paths }, device).await?;
            self.lost.remove(&ifindex);
        }
        let missing: Vec<(u32, String, bool)> = self
            .live
            .values()
            .filter_map(|live| live.plan.as_ref())
            .flat_map(|plan| &plan.paths)
            .filter_map(|path| path.device.as_ref())
            .filter(|device| !self.ingress.contains_key(&device.ifindex))
            .map(|device| (device.ifindex, device.name.clone(), device.ethernet))
            .collect();
        for (ifindex, name, ethernet) in missing {
            self.attach_ingress(ifindex, &name, ethernet);
        }
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            self.let_ipv6_go();
            self.put_programs();
            self.follow_rules()?;
        }
        self.follow_xdp()
    }

    /// Has paths over Ethernet follow the kernel's rules: those by source address are no events.
    fn follow_rules(&mut self) -> Result<()> {
        let plans = self.live.values().filter_map(|live| {
            let plan = live.plan.as_ref()?;
            let mut hops = plan.paths.iter().filter_map(|path| path.next_hop);
            hops.any(|next_hop| next_hop.told)
                .then(|| (live.config.clone(), plan.paths.clone()))
        });
        for (bond, paths) in plans.collect::<Vec<_>>() {
            for path in &paths {
                self.write_path(&bond, path)?;
            }
        }
        Ok(())
    }

    /// Of those asked for, the paths whose BFD sessions were down by the last word on them.
    #[must_use]
    pub fn failed_by_bfd(&self, paths: impl Iterator<Item = u32>) -> BTreeSet<u32> {
        let failed = |info: PathInfo| info.reason == StateReason::Bfd as u32;
        paths
            .filter(|&id| self.tables.path_info(id).is_some_and(failed))
            .collect()
    }

    /// The path MTUs that an earlier controller knew, outer headers included, bytes, by path id; of those asked
    /// for.
    #[must_use]
    pub fn path_mtus(&self, paths: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
        let known = |id: u32| {
            let path_mtu = value(&self.tables.probe_info, id)?.path_mtu;
            (path_mtu != 0).then_some((id, path_mtu))
        };
        paths.filter_map(known).collect()
    }

    /// Of those asked for, the paths whose next hop on Ethernet an earlier controller knew, and which it is.
    #[must_use]
    pub fn neighbours(&self, paths: impl Iterator<Item = u32>) -> Vec<Event> {
        let known = |path: u32| {
            let record = value(&self.tables.paths, path)?;
            Some(Event::Neighbour {
                path,
                ifindex: record.ifindex,
                remote: IpAddr::V6(record.remote.into()).to_canonical(),
                address: record.next_hop.address()?,
            })
        };
        paths.filter_map(known).collect()
    }

    /// Of those asked for, the paths on which packets are proven to pass, by whoever asked last.
    #[must_use]
    pub fn proven(&self, paths: impl Iterator<Item = u32>) -> Vec<u32> {
        let now = monotonic();
        let fresh = |id: u32| {
            self.tables
                .proof(id)
                .is_some_and(|proof| proof.is_fresh(now))
        };
        paths.filter(|&id| fresh(id)).collect()
    }

    /// The paths that the user took out, of those asked for.
    #[must_use]
    pub fn admin_down(&self, paths: impl Iterator<Item = u32>) -> BTreeSet<u32> {
        paths
            .filter(|id| matches!(self.tables.admin.get(id, 0), Ok(ADMIN_DOWN)))
            .collect()
    }

    /// Tells that the controller is alive.
    ///
    /// # Errors
    ///
    /// Where the map cannot be written.
    pub fn heartbeat(&mut self) -> Result<()> {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
        let meta = Meta {
            abi: ABI_VERSION,
            pid: std::process::id(),
            heartbeat_ns: Duration::from(now).as_nanos() as u64,
        };
        self.tables
            .meta
            .set(0, Raw(meta), 0)
            .context("writing META")
    }

    fn attach_ingress(&mut self, ifindex: u32, name: &str, ethernet: bool) {
        let hook = Hook::Path { ethernet };
        if self
            .ingress
            .get(&ifindex)
            .is_some_and(|(known, current)| *current == hook && known == name)
        {
            return;
        }
        match self.programs.attach(name, ifindex, hook) {
            Ok(_) => {
                // One that was there already is no news.
                if !self.ingress.contains_key(&ifindex) {
                    let text = format!("receiving on device {name}");
                    self.journal.did(About::ALL, &text);
                }
                self.ingress.insert(ifindex, (name.to_owned(), hook));
                self.refused.remove(&ifindex);
            }
            // Tried again and again: said once.
            Err(error) => {
                if self.refused.insert(ifindex) {
                    self.journal.failed(About::ALL, &format!("{error:#}"));
                }
            }
        }
    }

    /// Takes the ingress program off devices that are no path's any more. Calls `done_one` whenever one is done: the
    /// kernel waits for each as it does where one is attached.
    fn prune_ingress(&mut self, done_one: &mut dyn FnMut()) -> Result<()> {
        let plans = || self.live.values().map(|live| live.plan.as_ref());
        if plans().any(|plan| plan.is_none()) {
            return Ok(());
        }
        let used: BTreeSet<u32> = plans()
            .flatten()
            .flat_map(|plan| &plan.paths)
            .filter_map(|path| Some(path.device.as_ref()?.ifindex))
            .collect();
        let stale: Vec<u32> = self
            .ingress
            .keys()
            .copied()
            .filter(|ifindex| !used.contains(ifindex))
            .collect();
        for ifindex in stale {
            if let Some((name, hook)) = self.ingress.remove(&ifindex) {
                self.programs.detach(&name, ifindex, hook)?;
                let text = format!("no longer receiving on device {name}");
                self.journal.did(About::ALL, &text);
                done_one();
            }
        }
        Ok(())
    }

    fn write_path(&mut self, bond: &config::Bond, path: &PathPlan) -> Result<()> {
        let mut flags = match path.standing {
            Standing::Usable => PATH_USABLE | PATH_LAST_RESORT,
            Standing::LastResort => PATH_LAST_RESORT,
            Standing::Out => 0,
        };
        if path.is_spare() {
            flags |= PATH_SPARE;
        }
        if bond.key.is_some() {
            flags |= PATH_KEY;
        }
        if path.device.as_ref().is_some_and(|device| device.ethernet) {
            flags |= PATH_NEIGHBOUR;
        }
        let sum = match (path.local, path.remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                ipv4::constant_sum(local.octets(), remote.octets())
            }
            // The configuration has none of different families.
            (IpAddr::V4(_) | IpAddr::V6(_), IpAddr::V4(_) | IpAddr::V6(_)) => {
                flags |= PATH_IPV6;
                0
            }
        };
        let record = Path {
            flags,
            ifindex: path.device.as_ref().map_or(0, |device| device.ifindex),
            sum,
            key: bond.key.unwrap_or(0).to_be_bytes(),
            next_hop: self.next_hop(path),
            local: mapped(path.local),
            remote: mapped(path.remote),
        };
        let addresses = |path: &Path| (path.local, path.remote);
        let known = value(&self.tables.paths, path.id).unwrap_or(Path::zeroed());
        if known.flags != 0 && addresses(&known) != addresses(&record) {
            // A packet sees any mix of what is there and what is written: the addresses of one family must
            // not meet the flags of the other.
            for out in [known, record] {
                let out = Raw(Path { flags: 0, ..out });
                let written = self.tables.paths.set(path.id, out, 0);
                written.context("writing PATHS")?;
            }
        }
        if known.next_hop != record.next_hop {
            // Nor the address of one next hop the family of another.
            let nobody = |next_hop| NextHop {
                family: 0,
                ..next_hop
            };
            for next_hop in [nobody(known.next_hop), nobody(record.next_hop)] {
                let between = Raw(Path { next_hop, ..record });
                let written = self.tables.paths.set(path.id, between, 0);
                written.context("writing PATHS")?;
            }
        }
        set_if_new(&mut self.tables.paths, path.id, record).context("writing PATHS")
    }

    /// To whom packets of a path over Ethernet go: as long as OSPF's route leads over its device, to whom the kernel
    /// sends them, by whatever rules it has; from then on to the same.
    fn next_hop(&mut self, path: &PathPlan) -> NextHop {
        let (Some(next_hop), Some(device)) = (path.next_hop, &path.device) else {
            return NextHop::zeroed();
        };
        if next_hop.told {
            let found = self
                .netlink
                .next_hop(path.local, path.remote, device.ifindex);
            // OSPF's route may be gone by now: then another one answered.
            let route = self.netlink.route(path.remote);
            let route = route.map(|route| (route.prefix, route.protocol));
            if route
                == path
                    .route
                    .as_ref()
                    .map(|route| (route.prefix, route.protocol))
            {
                // Where the kernel has no way, or none by this device, it is left to find one for each packet.
                return found.map_or(NextHop::zeroed(), NextHop::from);
            }
        }
        let known = value(&self.tables.paths, path.id).filter(|known| {
            let addresses =
                (known.local, known.remote) == (mapped(path.local), mapped(path.remote));
            addresses && known.ifindex == device.ifindex && known.next_hop.family != 0
        });
        known.map_or_else(|| next_hop.address.into(), |known| known.next_hop)
    }

    /// Writes how packets are spread. What a mode goes by is written before the mode.
    fn write_lanes(&mut self, bond: &config::Bond, plan: &BondPlan) -> Result<()> {
        let slot = |path: &PathPlan| path.id % MAX_BOND_PATHS;
        let mut ranks = [u8::MAX; PATHS];
        let mut weights = [0; PATHS];
        for path in &plan.paths {
            let slot = slot(path) as usize;
            weights[slot] = path.quarters;
            // Those that are not to be used come after those that are, so that what the data plane
            // passes over is what it finds by itself.
            ranks[slot] = match path.standing {
                Standing::Usable => 0,
                Standing::LastResort => 1,
                Standing::Out => 2,
            };
        }
        if bond.modes().any(|mode| mode == Mode::Flow) {
            self.write_flow_table(plan.id, &weights, &ranks)?;
        }
        let mut preferred: Vec<&PathPlan> = plan.paths.iter().collect();
        preferred.sort_by_key(|path| (ranks[slot(path) as usize], path.priority));
        let order = order::pack(preferred.into_iter().map(slot));
        let (mut equal, mut weighted) = ([0; PATHS], [0; PATHS]);
        let usable = |path: &&PathPlan| path.standing == Standing::Usable;
        for path in plan.paths.iter().filter(usable) {
            equal[slot(path) as usize] = path.equal_quarters();
            weighted[slot(path) as usize] = path.quarters;
        }
        self.write_shares(bond, plan.id, &equal, &weighted)?;
        let lane = |mode: Mode| Lane {
            // Packets that are not put in order must not leave their flow's path at any moment.
            mode: match mode {
                Mode::Adaptive if bond.in_order.is_none() => Mode::Flowlet,
                Mode::RoundRobin
                | Mode::Weighted
                | Mode::Flow
                | Mode::Flowlet
                | Mode::ActiveBackup
                | Mode::Adaptive
                | Mode::Duplicate => mode,
            } as u32,
            shares: match (mode, bond.weights) {
                (Mode::RoundRobin | Mode::ActiveBackup | Mode::Duplicate, _) => SHARES_EQUAL,
                (Mode::Adaptive, _)
                | (Mode::Weighted | Mode::Flow | Mode::Flowlet, Weights::Measured) => {
                    SHARES_MEASURED
                }
                (Mode::Weighted | Mode::Flow | Mode::Flowlet, Weights::Static | Weights::Ospf) => {
                    SHARES_WEIGHTED
                }
            },
            order,
            copies: bond.copies.unwrap_or(MAX_BOND_PATHS),
            reserved: 0,
        };
        let counters = self.live.get(&plan.id).map(|live| live.counters.clone());
        let counters = counters.unwrap_or_default();
        for (place, (class, counter)) in (0..).zip(bond.classes.iter().zip(counters)) {
            let id = plan.id * MAX_BOND_CLASSES + place;
            set_if_new(&mut self.tables.lanes, MAX_BONDS + id, lane(class.mode))
                .context("writing LANES")?;
            let record = Class {
                rule: class.rule,
                counter,
                reserved: 0,
            };
            set_if_new(&mut self.tables.classes, id, record).context("writing CLASSES")?;
        }
        set_if_new(&mut self.tables.lanes, plan.id, lane(bond.mode)).context("writing LANES")?;
        let mut wheel = [0; WHEEL_SLOTS];
        let by_weight = match bond.mode {
            Mode::RoundRobin | Mode::ActiveBackup | Mode::Duplicate => &equal,
            Mode::Weighted | Mode::Flow | Mode::Flowlet | Mode::Adaptive => &weighted,
        };
        let wheel_len = wheel::build(by_weight, &mut wheel) as u32;
        let Raw(record) = self
            .tables
            .bonds
            .get(&plan.id, 0)
            .context("reading BONDS")?;
        let record = Bond {
            classes: bond.classes.len() as u32,
            wheel_len,
            wheel,
            ..record
        };
        set_if_new(&mut self.tables.bonds, plan.id, record).context("writing BONDS")
    }

    /// Writes how many bytes each path gets where they take turns by bytes.
    fn write_shares(
        &mut self,
        bond: &config::Bond,
        id: u32,
        equal: &[u32; PATHS],
        weighted: &[u32; PATHS],
    ) -> Result<()> {
        let index = |shares: u32| id * BOND_SHARES + shares;
        for (kind, weights) in [(SHARES_EQUAL, equal), (SHARES_WEIGHTED, weighted)] {
            set_if_new(&mut self.tables.shares, index(kind), turns::shares(weights))
                .context("writing SHARES")?;
        }
        // The prober's from here on: it goes by what it finds there at first.
        let measured = index(SHARES_MEASURED);
        let begun = value(&self.tables.shares, measured).is_some_and(|shares| shares.count != 0);
        if bond.measures() && !begun {
            let shares = Raw(turns::shares(weighted));
            let written = self.tables.shares.set(measured, shares, 0);
            written.context("writing SHARES")?;
        }
        Ok(())
    }

    /// Writes the orders in which the flows of a bond prefer its paths, those that changed.
    fn write_flow_table(
        &mut self,
        id: u32,
        weights: &[u32; PATHS],
        ranks: &[u8; MAX_BOND_PATHS as usize],
    ) -> Result<()> {
        let Some(live) = self.live.get_mut(&id) else {
            return Ok(());
        };
        let rank = |path: u32| ranks[path as usize];
        let orders: Vec<u64> = (0..FLOW_BUCKETS)
            .map(|bucket| order::of_bucket(bucket, weights, rank))
            .collect();
        for (bucket, order) in (0..).zip(&orders) {
            if live.flow_table.get(bucket as usize) != Some(order) {
                let index = id * FLOW_BUCKETS + bucket;
                let written = self.tables.flow_table.set(index, order, 0);
                written.context("writing FLOW_TABLE")?;
            }
        }
        live.flow_table = orders;
        Ok(())
    }

    /// Says by what the paths are weighed from now on.
    fn tell_weighing(&mut self, plan: &BondPlan) {
        let text = match &plan.weighing {
            Weighing::Static => "weights: those configured".to_owned(),
            Weighing::Ospf => "weights: the inverse of the OSPF costs".to_owned(),
            Weighing::Measured => "weights: what the paths are measured to carry".to_owned(),
            Weighing::NoCost(path) => {
                format!("weights: those configured, as the OSPF cost of {path} is not known")
            }
        };
        self.journal.did(About::bond(&plan.name), &text);
    }

    fn write_bond_info(
        &mut self,
        id: u32,
        bond: &config::Bond,
        device: BondDevice,
        (mtu, mtu_ceiling): (u32, u32),
        peer_reachable: Option<bool>,
    ) -> Result<()> {
        let info = BondInfo {
            name: field(&bond.name),
            ifindex: device.ifindex,
            peer_ifindex: device.peer_ifindex,
            mtu,
            mtu_ceiling,
            has_key: u32::from(bond.key.is_some()),
            key: bond.key.unwrap_or(0),
            has_peer: u32::from(bond.peer.is_some()),
            peer: bond.peer.map_or([0; 16], |peer| mapped(peer.address)),
            peer_length: bond.peer.map_or(0, |peer| u32::from(peer.length)),
            peer_reachable: u32::from(peer_reachable.unwrap_or(false)),
            encap: bond.encap as u32,
            longest_hold_ns: longest_hold_ns(bond),
            mode: bond.mode as u32,
            weights: bond.weights as u32,
            xdp_send: self.xdp_send_of(id) as u32,
        };
        set_if_new(&mut self.tables.bond_info, id, info).context("writing BOND_INFO")
    }

    fn write_path_info(&mut self, path: &PathPlan) -> Result<()> {
        let (state, reason) = (path.state as u32, path.reason as u32);
        let changed_ns = value(&self.tables.path_info, path.id)
            .filter(|known| (known.state, known.reason) == (state, reason))
            .map_or_else(now_ns, |known| known.changed_ns);
        let mut info = PathInfo {
            name: field(&path.name),
            device: path
                .device
                .as_ref()
                .map_or([0; 32], |device| field(&device.name)),
            changed_ns,
            state,
            reason,
            weight: path.weight,
            quarters: path.quarters,
            priority: path.priority,
            xdp: self.xdp_of(path) as u32,
            ..PathInfo::zeroed()
        };
        if let Some(route) = &path.route {
            info.route_protocol = u32::from(route.protocol);
            info.route_metric = route.metric;
            info.route_ifindex = route.ifindex;
            info.route_gateway = route.gateway.map_or([0; 16], mapped);
            info.route_prefix = mapped(route.prefix.0);
            info.route_length = u32::from(route.prefix.1);
        }
        if let Some(ospf) = &path.ospf {
            info.ospf_cost = ospf.cost.unwrap_or(0);
            if let Some((router_id, state)) = &ospf.neighbour {
                info.neighbour = router_id.octets();
                info.neighbour_state = field(state);
            }
        }
        set_if_new(&mut self.tables.path_info, path.id, info).context("writing PATH_INFO")
    }
}

/// What the programs must know (`feature` bits): what a configuration asks for, and what the maps ask until they
/// are written. One that knows nothing of IPv6 would send to nobody what is for a path over it.
fn features(asked: u32, tables: &Tables) -> u32 {
    let known = tables.bond_ids().map(|bond| asked_by_maps(bond, tables));
    known.fold(asked, |all, features| all | features)
}

/// The same of one bond: the program at its egress is chosen by it.
fn bond_features(bond: &config::Bond, id: u32, tables: &Tables) -> u32 {
    bond.features() | asked_by_maps(id, tables)
}

/// What a bond's paths in the maps ask of the programs, `feature` bits.
fn asked_by_maps(bond: u32, tables: &Tables) -> u32 {
    let mut paths = tables.path_ids(bond);
    let over_ipv6 = paths
        .any(|path| value(&tables.paths, path).is_some_and(|record| record.flags & PATH_IPV6 != 0));
    if over_ipv6 { feature::IPV6 } else { 0 }
}

/// Deletes a bond's device, unless the index is another device's by now.
///
/// # Errors
///
/// Where the kernel refuses.
pub async fn delete_bond_device(netlink: &mut Netlink, name: &str, ifindex: u32) -> Result<bool> {
    let same = netlink
        .link_by_index(ifindex)?
        .is_some_and(|link| link.name == name);
    if same {
        netlink.delete_device(ifindex).await?;
    }
    Ok(same)
}

/// Whether the bond device resolves neighbours.
const fn arp(bond: &config::Bond) -> bool {
    match bond.encap {
        Encap::Gre => false,
        Encap::Gretap => true,
    }
}

/// To what TCP's segments are clamped in a bond of this MTU, bytes; 0: to nothing.
const fn clamp_mtu(bond: &config::Bond, mtu: u32) -> u32 {
    if bond.mss_clamp { mtu } else { 0 }
}

fn longest_hold_ns(bond: &config::Bond) -> u32 {
    bond.in_order
        .map_or(0, |order| order.longest_hold_ms * 1_000_000)
}

fn addresses(bond: &config::Bond) -> Vec<(IpAddr, u8)> {
    bond.addresses
        .iter()
        .map(|prefix| (prefix.address, prefix.length))
        .collect()
}

/// An address as the maps have it.
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => ipv4::mapped(address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}

fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// Writes an entry unless it says so already: the data plane's cache lines stay its own.
fn set_if_new<T: bytemuck::Pod + PartialEq>(
    values: &mut Values<T>,
    id: u32,
    record: T,
) -> Result<(), aya::maps::MapError> {
    if value(values, id) == Some(record) {
        return Ok(());
    }
    values.set(id, Raw(record), 0)
}

/// Writes the same value for every CPU.
fn set_all<T: bytemuck::Pod>(values: &mut CpuValues<T>, id: u32, one: T) -> Result<()> {
    let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow!("{what}: {error}"))?;
    let all = aya::maps::PerCpuValues::try_from(vec![Raw(one); cpus])?;
    values.set(id, all, 0).context("writing counters")
}

/// For each Ethernet device of a bond that sends copies on which there are none what sysctl(8) is to be told: those
/// that do not forward packets like the outer ones.
fn without_copies(bond: &config::Bond, plan: &BondPlan) -> Vec<String> {
    if bond.modes().all(|mode| mode != Mode::Duplicate) {
        return Vec::new();
    }
    let ethernet = plan.paths.iter().filter_map(|path| {
        let device = path.device.as_ref().filter(|device| device.ethernet)?;
        let family = if path.remote.is_ipv4() {
            "ipv4"
        } else {
            "ipv6"
        };
        Some(format!("net/{family}/conf/{}/forwarding", device.name))
    });
    let off = ethernet.filter(|setting| {
        let on = std::fs::read_to_string(format!("/proc/sys/{setting}"));
        // A device that is gone has no copies either, and that is told elsewhere.
        on.is_ok_and(|on| on.trim() == "0")
    });
    off.map(|setting| format!("{setting}=1")).collect()
}
