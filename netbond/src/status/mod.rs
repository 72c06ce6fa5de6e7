//! What is known of every bond and path, read from the pinned maps: the answer of `netbond status`,
//! whether or not a controller runs.

mod collect;
mod rates;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, anyhow};
use netbond_common::names::FullSize;
use serde::Serialize;

pub use self::{collect::collect, rates::rates};

/// The version of the JSON. Fields are added to it; where one is removed, is renamed, or comes to mean
/// something else, the version is another. `docs/status.md` tells of each.
pub const VERSION: u32 = 1;

/// Everything that is told; in JSON as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// When it was read, seconds since 1970.
    pub at: f64,
    /// The same, CLOCK_MONOTONIC, ns.
    #[serde(skip)]
    pub read_ns: u64,
    /// Over how many seconds the paths' rates were taken; `null` where they were not.
    pub rates_over_s: Option<f64>,
    pub controller: Controller,
    pub bonds: Vec<Bond>,
    /// In the order of the configuration.
    pub lans: Vec<Lan>,
    /// Packets on the paths' devices that are no bond's, by fate.
    pub outside: BTreeMap<&'static str, u64>,
}

/// The process that keeps the maps true.
#[derive(Clone, Debug, Serialize)]
pub struct Controller {
    pub running: bool,
    pub pid: u32,
}

/// A device of a LAN.
#[derive(Clone, Debug, Serialize)]
pub struct Lan {
    pub name: String,
    /// Whether packets to and from the bonds are forwarded by XDP, in its driver (`native`), or why by the kernel;
    /// `off` where XDP is not asked for.
    pub xdp: &'static str,
}

/// A bond.
#[derive(Clone, Debug, Serialize)]
pub struct Bond {
    pub name: String,
    /// `up` where a path is in use, `last resort` where none is and packets are sent all the same,
    /// `down` where no packet leaves.
    pub state: &'static str,
    /// Whether the bond device exists and is set up.
    pub device_up: bool,
    pub ifindex: u32,
    pub mtu: u32,
    /// What `mtu` would be if all paths carried what their devices take; `null` where no device is known yet.
    pub mtu_ceiling: Option<u32>,
    /// `gre` or `gretap`.
    pub encap: &'static str,
    /// How the path of a packet is chosen that is of no class.
    pub mode: &'static str,
    /// Where the paths' weights come from: `static`, `ospf` or `measured`.
    pub weights: &'static str,
    /// After what pause a flow may move in mode flowlet, ms; `null` where none does.
    pub flowlet_gap_ms: Option<f64>,
    /// Whether each flow keeps its path, as a processor is the limit; `null` where the mode is not
    /// adaptive, or keeps no order.
    pub settled: Option<bool>,
    pub key: Option<u32>,
    pub peer: Option<Peer>,
    /// In what the peer's settings differ that must be alike, and what to do.
    pub disagreements: Vec<&'static str>,
    /// `null` where the bond numbers no packets.
    pub numbered: Option<Numbered>,
    /// `null` where the bond keeps no order.
    pub in_order: Option<Order>,
    /// Whether what comes from LANs is encapsulated by XDP, in their drivers (`native`), or why by tc; `off` where
    /// XDP is not asked for there and with a path.
    pub xdp_send: &'static str,
    pub paths: Vec<Path>,
    /// In the order in which they are asked.
    pub classes: Vec<Class>,
    /// Packets of the bond that took no path, by fate.
    pub fates: BTreeMap<&'static str, u64>,
}

/// What became of the peer's numbered packets.
#[derive(Clone, Debug, Serialize)]
pub struct Numbered {
    /// That were received, each once; that never came on any path; and of those that came again, which were
    /// dropped.
    pub received: u64,
    pub lost: u64,
    pub copies: u64,
    /// Times that the peer's numbers began anew.
    pub begun: u64,
}

/// How received packets were put in order.
#[derive(Clone, Debug, Serialize)]
pub struct Order {
    /// For how long packets are held now, and at the most, ms.
    pub hold_ms: f64,
    pub longest_hold_ms: f64,
    /// Packets that were held, that came after later ones had left, that never came, and that came
    /// more than once.
    pub held: u64,
    pub late: u64,
    pub lost: u64,
    pub copies: u64,
    /// Times that the peer's numbers began anew.
    pub begun: u64,
}

/// A class of traffic.
#[derive(Clone, Debug, Serialize)]
pub struct Class {
    pub name: String,
    pub mode: &'static str,
    /// Which packets it takes.
    pub rule: String,
    /// Packets that a path carried, counted there too.
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

/// The peer's own prefix.
#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    pub prefix: String,
    pub reachable: bool,
}

/// A path.
#[derive(Clone, Debug, Serialize)]
pub struct Path {
    pub name: String,
    pub state: &'static str,
    pub reason: &'static str,
    /// Whether packets are sent on it now.
    pub in_use: bool,
    /// Whether it only waits for a better path to fail.
    pub standby: bool,
    pub device: String,
    /// Whether its packets are received by XDP, in the device's driver (`native`), or why by tc alone; `off`
    /// where XDP is not asked for.
    pub xdp: &'static str,
    pub local: IpAddr,
    pub remote: IpAddr,
    pub weight: u32,
    /// What counts in modes that go by weight: `weight`, or the inverse of the OSPF cost in a unit that
    /// all paths of the bond share; less where a policy reduces it. Where the weights are measured, what
    /// the path is thought to carry, of what the best one does.
    pub effective_weight: f64,
    /// In mode active-backup: the path with the lowest is the best.
    pub priority: u32,
    /// What of the bond's traffic is to be sent on it now, 0 to 1; `null` where each packet is sent on
    /// several paths.
    pub due_share: Option<f64>,
    /// What it carries now; `null` where that was not measured.
    pub rate: Option<Rate>,
    /// Of the bond's packets so far, 0 to 1; `null` where there are none.
    pub tx_share: Option<f64>,
    pub rx_share: Option<f64>,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_stand_in: u64,
    pub tx_last_resort: u64,
    /// Of the packets sent: copies of what another path was sent first. Of those received: copies of what
    /// was here already, which were dropped.
    pub tx_copies: u64,
    pub rx_copies: u64,
    /// Of the packets received: released at once, neither put in order nor told from copies, as another
    /// CPU was at work on their strand for too long.
    pub rx_contended: u64,
    /// Of the packets sent: taken from a LAN's driver. Of those received: given to one. The kernel saw neither.
    pub tx_onward: u64,
    pub rx_onward: u64,
    pub route: Option<Route>,
    /// Over Ethernet: to whom packets are sent, as the kernel's rules and routes over `device` said last. `null` where it
    /// is no such path, or none said so yet.
    pub next_hop: Option<IpAddr>,
    pub ospf_cost: Option<u32>,
    pub neighbour: Option<Neighbour>,
    /// When state or reason last changed, seconds since 1970.
    pub changed: f64,
    /// How its liveness is watched: `none`, `probes` or `bfd`.
    pub watch: &'static str,
    /// For how long yet the path is held down, ms; `null` where it is not.
    pub hold_down_ms: Option<f64>,
    /// How often it failed soon after its return, in a row.
    pub flaps: u32,
    /// `null` where the data plane does not ask for a proof of life.
    pub proof: Option<Proof>,
    /// `null` where the path is not probed, or never answered.
    pub probe: Option<Probe>,
}

/// What a path carried between two readings of its counters, of inner packets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rate {
    pub tx_packets_per_second: u64,
    pub tx_bytes_per_second: u64,
    pub rx_packets_per_second: u64,
    pub rx_bytes_per_second: u64,
    /// Of the bond's bytes meanwhile, 0 to 1; `null` where there were none.
    pub tx_share: Option<f64>,
    pub rx_share: Option<f64>,
}

/// The last proof that packets pass both ways, as the data plane has it now.
#[derive(Clone, Debug, Serialize)]
pub struct Proof {
    /// Its age, ms; `null` where there was none yet.
    pub age_ms: Option<f64>,
    /// How old it may be, ms.
    pub limit_ms: f64,
    pub fresh: bool,
}

/// What probes measured, by the controller's last word.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// Round trip, ms: smoothed, its mean deviation, the least, and how one differs from the next.
    pub rtt_ms: f64,
    pub deviation_ms: f64,
    pub least_ms: f64,
    pub jitter_ms: f64,
    /// Of the last ten seconds' probes, 0 to 1: lost on the way there, and on the way back.
    pub loss_there: f64,
    pub loss_back: f64,
    /// Of the packets sent on the path in the last ten seconds, lost on the way there, 0 to 1; `null` where
    /// none was sent.
    pub data_loss: Option<f64>,
    /// Of inner packets in the last second: sent, and received by the peer.
    pub offered_bytes_per_second: u64,
    pub delivered_bytes_per_second: u64,
    /// How long the queues on the way there hold a packet, ms, smoothed.
    pub queue_ms: f64,
    /// How much longer the way there is than the bond's fastest, ms; `null` where that cannot be told.
    pub behind_ms: Option<f64>,
    /// Answers that came later than that to a later request, since the controller started.
    pub reordered: u32,
    /// Requests since the last answer.
    pub missed: u32,
    /// Bytes of the longest packet that the path carries, outer headers included; `null` where that is not known,
    /// or less than the bond needs.
    pub path_mtu: Option<u32>,
    /// Bytes of the longest packet of the bond that the path is to carry, and what became of probes of that
    /// size: `unknown`, `passes` or `black hole`.
    pub full_size: u32,
    pub full_size_result: &'static str,
}

/// The route to a path's remote address.
#[derive(Clone, Debug, Serialize)]
pub struct Route {
    pub prefix: String,
    pub protocol: String,
    pub metric: u32,
    pub device: String,
    pub via: Option<IpAddr>,
}

/// An OSPF neighbour.
#[derive(Clone, Debug, Serialize)]
pub struct Neighbour {
    pub router_id: Ipv4Addr,
    pub state: String,
}

impl Status {
    /// The bond of this name.
    ///
    /// # Errors
    ///
    /// Where there is none: it names those that there are.
    pub fn bond(&self, name: &str) -> Result<&Bond> {
        let bond = self.bonds.iter().find(|bond| bond.name == name);
        bond.ok_or_else(|| {
            let known: Vec<&str> = self.bonds.iter().map(|bond| bond.name.as_str()).collect();
            anyhow!("no bond \"{name}\"; there are: {}", known.join(", "))
        })
    }

    /// The bond and path of this name.
    #[must_use]
    pub fn path(&self, name: &str) -> Option<(&Bond, &Path)> {
        let paths = |bond: &Bond| bond.paths.iter().position(|path| path.name == name);
        self.bonds
            .iter()
            .find_map(|bond| Some((bond, &bond.paths[paths(bond)?])))
    }
}

impl Bond {
    /// Whether a path of it is known to carry less than the bond's packets could have, by the paths' devices and the
    /// file: its path MTU, of which [`Probe::full_size`] bytes are the bond's, and how many those could be.
    #[must_use]
    pub fn narrowed_by(&self, probe: &Probe) -> Option<(u32, u32)> {
        let (path_mtu, ceiling) = (probe.path_mtu?, self.mtu_ceiling?);
        let passes = probe.full_size_result == FullSize::Passes.label();
        (passes && probe.full_size < ceiling).then_some((path_mtu, ceiling))
    }
}

impl Path {
    /// What probes measure now: `None` where the last proof of life is too old for that.
    #[must_use]
    pub fn probe_now(&self) -> Option<&Probe> {
        let silent = self.proof.as_ref().is_some_and(|proof| !proof.fresh);
        self.probe.as_ref().filter(|_| !silent)
    }
}
