//! The pinned maps, typed: what the controller writes and every command reads.

use std::path::Path as FsPath;

use anyhow::{Context as _, Result, bail};
use aya::{
    Pod,
    maps::{
        Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf,
        xdp::{DevMap, DevMapHash},
    },
};
use netbond_common::{
    abi::{
        ABI_VERSION, ADMIN_DOWN, Bond, BondInfo, BondStats, Class, ClassInfo, ClassStats, Driver,
        EventRecord, Flowlet, LanInfo, Lane, Live, MAX_BOND_CLASSES, MAX_BOND_PATHS, MAX_BONDS,
        MAX_LANS, Meta, Path, PathInfo, PathStats, ProbeInfo, Shares, Ticket, TunnelKey, Turns,
    },
    names::map,
    sequence::{Counts, STRANDS, Skew, Strand},
    siphash::Key,
};

use crate::pins::Pins;

/// A map's key or value, as aya wants it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Raw<T>(pub T);

// SAFETY: bytemuck's Pod promises what aya's asks for: any bit pattern is valid, and no padding.
unsafe impl<T: bytemuck::Pod> Pod for Raw<T> {}

/// An array of values.
pub type Values<T> = Array<MapData, Raw<T>>;
/// An array with a value for each CPU.
pub type CpuValues<T> = PerCpuArray<MapData, Raw<T>>;

/// All maps.
pub struct Tables {
    pub meta: Values<Meta>,
    pub bond_by_ifindex: HashMap<MapData, u32, u32>,
    pub bonds: Values<Bond>,
    pub paths: Values<Path>,
    pub tunnels: HashMap<MapData, Raw<TunnelKey>, u32>,
    pub lanes: Values<Lane>,
    pub classes: Values<Class>,
    pub flow_table: Array<MapData, u64>,
    pub flowlets: Values<Flowlet>,
    pub gaps: Array<MapData, u64>,
    pub admin: Array<MapData, u32>,
    pub limits: Array<MapData, u64>,
    pub live: Values<Live>,
    pub samples: RingBuf<MapData>,
    pub secret: Values<Key>,
    pub tickets: CpuValues<Ticket>,
    pub shares: Values<Shares>,
    pub turns: CpuValues<Turns>,
    pub path_stats: CpuValues<PathStats>,
    pub bond_stats: CpuValues<BondStats>,
    pub class_stats: CpuValues<ClassStats>,
    pub bond_info: Values<BondInfo>,
    pub class_info: Values<ClassInfo>,
    pub path_info: Values<PathInfo>,
    pub lan_info: Values<LanInfo>,
    pub probe_info: Values<ProbeInfo>,
    pub events: Values<EventRecord>,
    pub sequences: Array<MapData, u64>,
    pub strands: HashMap<MapData, u32, Raw<Strand>>,
    pub skews: Values<Skew>,
    pub drivers: HashMap<MapData, u32, Raw<Driver>>,
    pub bond_peers: DevMap<MapData>,
    pub ports: DevMapHash<MapData>,
}

impl Tables {
    /// Takes the maps out of wherever `take` finds them by name.
    ///
    /// # Errors
    ///
    /// Where a map is missing, or of another type or size than this build's.
    pub fn new(mut take: impl FnMut(&'static str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            meta: typed(map::META, &mut take)?,
            bond_by_ifindex: typed(map::BOND_BY_IFINDEX, &mut take)?,
            bonds: typed(map::BONDS, &mut take)?,
            paths: typed(map::PATHS, &mut take)?,
            tunnels: typed(map::TUNNELS, &mut take)?,
            lanes: typed(map::LANES, &mut take)?,
            classes: typed(map::CLASSES, &mut take)?,
            flow_table: typed(map::FLOW_TABLE, &mut take)?,
            flowlets: typed(map::FLOWLETS, &mut take)?,
            gaps: typed(map::GAPS, &mut take)?,
            admin: typed(map::ADMIN, &mut take)?,
            limits: typed(map::LIMITS, &mut take)?,
            live: typed(map::LIVE, &mut take)?,
            samples: typed(map::SAMPLES, &mut take)?,
            secret: typed(map::SECRET, &mut take)?,
            tickets: typed(map::TICKETS, &mut take)?,
            shares: typed(map::SHARES, &mut take)?,
            turns: typed(map::TURNS, &mut take)?,
            path_stats: typed(map::PATH_STATS, &mut take)?,
            bond_stats: typed(map::BOND_STATS, &mut take)?,
            class_stats: typed(map::CLASS_STATS, &mut take)?,
            bond_info: typed(map::BOND_INFO, &mut take)?,
            class_info: typed(map::CLASS_INFO, &mut take)?,
            path_info: typed(map::PATH_INFO, &mut take)?,
            lan_info: typed(map::LAN_INFO, &mut take)?,
            probe_info: typed(map::PROBE_INFO, &mut take)?,
            events: typed(map::EVENTS, &mut take)?,
            sequences: typed(map::SEQUENCES, &mut take)?,
            strands: typed(map::STRANDS, &mut take)?,
            skews: typed(map::SKEWS, &mut take)?,
            drivers: typed(map::DRIVERS, &mut take)?,
            bond_peers: typed(map::BOND_PEERS, &mut take)?,
            ports: typed(map::PORTS, &mut take)?,
        })
    }

    /// Opens the pinned maps.
    ///
    /// # Errors
    ///
    /// Where netbond never ran here, where the user may not open them, or where they are of another
    /// ABI version.
    pub fn open(pins: &Pins) -> Result<Self> {
        let there = pins.try_exist();
        if !there.with_context(|| format!("cannot look below {}", pins.root().display()))? {
            bail!(
                "no netbond here: nothing is pinned below {}; start it with `netbond run -c FILE`",
                pins.root().display()
            );
        }
        check_abi(pins)?;
        Self::new(|name| pinned(&pins.map(name)))
    }

    /// The last proof that packets pass both ways on a path; `None` where none is asked for.
    #[must_use]
    pub fn proof(&self, path: u32) -> Option<LastProof> {
        let limit_ns = self.limits.get(&path, 0).ok().filter(|&limit| limit != 0)?;
        let at_ns = value(&self.live, path)?.proof_ns;
        Some(LastProof { at_ns, limit_ns })
    }

    /// Ids of the bonds that exist.
    pub fn bond_ids(&self) -> impl Iterator<Item = u32> + '_ {
        (0..MAX_BONDS).filter(|&id| self.bond_info(id).is_some())
    }

    /// What is told of a bond; `None` where there is none of this id.
    #[must_use]
    pub fn bond_info(&self, id: u32) -> Option<BondInfo> {
        value(&self.bond_info, id).filter(|info| info.name[0] != 0)
    }

    /// Ids of a bond's paths.
    pub fn path_ids(&self, bond: u32) -> impl Iterator<Item = u32> + '_ {
        (bond * MAX_BOND_PATHS..)
            .take(MAX_BOND_PATHS as usize)
            .filter(|&id| self.path_info(id).is_some())
    }

    /// What is told of a path; `None` where there is none of this id.
    #[must_use]
    pub fn path_info(&self, id: u32) -> Option<PathInfo> {
        value(&self.path_info, id).filter(|info| info.name[0] != 0)
    }

    /// What is told of the LAN devices, in the order of the configuration.
    pub fn lan_infos(&self) -> impl Iterator<Item = LanInfo> + '_ {
        let infos = (0..MAX_LANS).filter_map(|at| value(&self.lan_info, at));
        infos.take_while(|info| info.name[0] != 0)
    }

    /// A path's counters, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// Where the map cannot be read.
    pub fn path_stats(&self, id: u32) -> Result<PathStats> {
        let values = self.path_stats.get(&id, 0).context("reading PATH_STATS")?;
        Ok(values
            .iter()
            .fold(PathStats::default(), |sum, Raw(one)| PathStats {
                tx_packets: sum.tx_packets + one.tx_packets,
                tx_bytes: sum.tx_bytes + one.tx_bytes,
                rx_packets: sum.rx_packets + one.rx_packets,
                rx_bytes: sum.rx_bytes + one.rx_bytes,
                tx_stand_in: sum.tx_stand_in + one.tx_stand_in,
                tx_last_resort: sum.tx_last_resort + one.tx_last_resort,
                tx_copies: sum.tx_copies + one.tx_copies,
                rx_copies: sum.rx_copies + one.rx_copies,
                rx_contended: sum.rx_contended + one.rx_contended,
                tx_onward: sum.tx_onward + one.tx_onward,
                rx_onward: sum.rx_onward + one.rx_onward,
            }))
    }

    /// What is told of a bond's classes, in their order, each with its counter.
    #[must_use]
    pub fn class_infos(&self, bond: u32) -> Vec<(u32, ClassInfo)> {
        let mut classes: Vec<(u32, ClassInfo)> = (bond * MAX_BOND_CLASSES..)
            .take(MAX_BOND_CLASSES as usize)
            .filter_map(|counter| Some((counter, value(&self.class_info, counter)?)))
            .filter(|(_, info)| info.name[0] != 0)
            .collect();
        classes.sort_by_key(|(_, info)| info.place);
        classes
    }

    /// The counters of a class, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// Where the map cannot be read.
    pub fn class_stats(&self, counter: u32) -> Result<ClassStats> {
        let values = self.class_stats.get(&counter, 0);
        let values = values.context("reading CLASS_STATS")?;
        let mut sum = ClassStats::default();
        for Raw(one) in values.iter() {
            sum.tx_packets += one.tx_packets;
            sum.tx_bytes += one.tx_bytes;
        }
        Ok(sum)
    }

    /// The counters of packets that took no path, summed over the CPUs; `id` is a bond's or
    /// [`netbond_common::abi::NO_BOND`].
    ///
    /// # Errors
    ///
    /// Where the map cannot be read.
    pub fn bond_stats(&self, id: u32) -> Result<BondStats> {
        let values = self.bond_stats.get(&id, 0).context("reading BOND_STATS")?;
        let mut sum = BondStats::default();
        for Raw(one) in values.iter() {
            for (sum, one) in sum.fates.iter_mut().zip(one.fates) {
                *sum += one;
            }
        }
        Ok(sum)
    }

    /// Keys of a bond's strands in `SEQUENCES` and `STRANDS`.
    pub fn strand_ids(bond: u32) -> std::ops::Range<u32> {
        bond * STRANDS..(bond + 1) * STRANDS
    }

    /// What became of the numbered packets that a bond received; `None` where it numbers none.
    #[must_use]
    pub fn order(&self, bond: u32) -> Option<Counts> {
        let mut sum: Option<Counts> = None;
        for id in Self::strand_ids(bond) {
            let Ok(Raw(Strand { counts, .. })) = self.strands.get(&id, 0) else {
                continue;
            };
            let sum = sum.get_or_insert_default();
            sum.held += counts.held;
            sum.late += counts.late;
            sum.expected += counts.expected;
            sum.came += counts.came;
            sum.copies += counts.copies;
            sum.begun += counts.begun;
        }
        sum
    }

    /// Takes a path out (`netbond path down`), or back in. The data plane obeys at once, the controller
    /// when it looks.
    ///
    /// # Errors
    ///
    /// Where no bond has a path of this name, or where the map cannot be written.
    pub fn take_out(&mut self, name: &str, out: bool) -> Result<()> {
        let Some(id) = self.path_named(name) else {
            let known: Vec<String> = self
                .bond_ids()
                .flat_map(|bond| self.path_ids(bond))
                .filter_map(|id| Some(text(&self.path_info(id)?.name)))
                .collect();
            bail!("no path \"{name}\"; there are: {}", known.join(", "));
        };
        let value = if out { ADMIN_DOWN } else { 0 };
        self.admin.set(id, value, 0).context("writing ADMIN")
    }

    /// The id of the path with this name, within any bond.
    #[must_use]
    pub fn path_named(&self, name: &str) -> Option<u32> {
        self.bond_ids()
            .flat_map(|bond| self.path_ids(bond))
            .find(|&id| {
                self.path_info(id)
                    .is_some_and(|info| text(&info.name) == name)
            })
    }
}

/// Refuses pinned maps whose layout is not this build's.
///
/// # Errors
///
/// Where the version differs or cannot be read.
pub fn check_abi(pins: &Pins) -> Result<()> {
    let meta: Values<Meta> = typed(map::META, &mut |name| pinned(&pins.map(name)))?;
    match value(&meta, 0).map_or(0, |meta| meta.abi) {
        // 0: a start that was cut short before it wrote the version; sizes are checked all the same.
        0 | ABI_VERSION => Ok(()),
        other => bail!(
            "the maps pinned below {} are of ABI version {other}, this netbond speaks {ABI_VERSION}: \
             use the netbond that made them, or `netbond detach` with it first (traffic stops until \
             the new one runs)",
            pins.root().display()
        ),
    }
}

fn pinned(path: &FsPath) -> Result<Map> {
    let data = MapData::from_pin(path)
        .with_context(|| format!("opening {} (root or CAP_BPF needed)", path.display()))?;
    Map::from_map_data(data).with_context(|| format!("reading {}", path.display()))
}

fn typed<T: TryFrom<Map, Error = MapError>>(
    name: &'static str,
    take: &mut impl FnMut(&'static str) -> Result<Map>,
) -> Result<T> {
    T::try_from(take(name)?).with_context(|| format!("map {name} is not of this netbond's layout"))
}

/// When packets last were proven to pass both ways on a path, and how old that may be.
#[derive(Clone, Copy, Debug)]
pub struct LastProof {
    /// CLOCK_MONOTONIC, ns; 0: never.
    pub at_ns: u64,
    /// ns.
    pub limit_ns: u64,
}

impl LastProof {
    /// Whether it holds, as the programs see it (`maps::path_flags`).
    #[must_use]
    pub const fn is_fresh(self, now: u64) -> bool {
        now.saturating_sub(self.at_ns) <= self.limit_ns
    }
}

/// An array's value; `None` where the index is out of range or the map cannot be read.
#[must_use]
pub fn value<T: bytemuck::Pod>(values: &Values<T>, index: u32) -> Option<T> {
    values.get(&index, 0).ok().map(|Raw(value)| value)
}

/// A name field as text.
#[must_use]
pub fn text(field: &[u8]) -> String {
    let end = field
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Text as a name field: cut where it does not fit, filled up with zeros.
#[must_use]
pub fn field<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    field
}
