//! What is known of every bond and path, read from the pinned maps: the answer of `netbond status`,
//! whether or not a controller runs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::Result;
use netbond_common::{
    abi::{
        ADMIN_DOWN, BOND_SHARES, BondStats, ClassInfo, MAX_BOND_PATHS, NO_BOND, NO_LOSS_KNOWN,
        NOT_COMPARED, PATH_USABLE, PathInfo, PathStats, ProbeInfo, SHARES_MEASURED,
    },
    fate::Fate,
    names::{Encap, FullSize, Mode, PathState, StateReason, Watch, Weights},
    order,
    sequence::Counts,
    turns,
};
use nix::net::if_::if_indextoname;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::{
    control::{agreement, state::protocol_name},
    lock::Lock,
    pins::Pins,
    tables::{Tables, text, value},
};

/// Everything that is told; in JSON as it stands.
#[derive(Serialize)]
pub struct Status {
    /// Of this format.
    pub version: u32,
    pub controller: Controller,
    pub bonds: Vec<Bond>,
    /// Packets on the paths' devices that are no bond's, by fate.
    pub outside: BTreeMap<&'static str, u64>,
}

/// The process that keeps the maps true.
#[derive(Serialize)]
pub struct Controller {
    pub running: bool,
    pub pid: u32,
}

/// A bond.
#[derive(Serialize)]
pub struct Bond {
    pub name: String,
    pub ifindex: u32,
    pub mtu: u32,
    /// `gre` or `gretap`.
    pub encap: &'static str,
    /// How the path of a packet is chosen that is of no class.
    pub mode: &'static str,
    /// Where the paths' weights come from: `static` or `ospf`.
    pub weights: &'static str,
    /// After what pause a flow may move in mode flowlet, ms; `null` where none does.
    pub flowlet_gap_ms: Option<f64>,
    pub key: Option<u32>,
    pub peer: Option<Peer>,
    /// In what the peer's settings differ that must be alike, and what to do.
    pub disagreements: Vec<&'static str>,
    /// `null` where the bond numbers no packets.
    pub numbered: Option<Numbered>,
    /// `null` where the bond keeps no order.
    pub in_order: Option<Order>,
    pub paths: Vec<Path>,
    /// In the order in which they are asked.
    pub classes: Vec<Class>,
    /// Packets of the bond that took no path, by fate.
    pub fates: BTreeMap<&'static str, u64>,
}

/// What became of the peer's numbered packets.
#[derive(Serialize)]
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
#[derive(Serialize)]
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
#[derive(Serialize)]
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
#[derive(Serialize)]
pub struct Peer {
    pub prefix: String,
    pub reachable: bool,
}

/// A path.
#[derive(Serialize)]
pub struct Path {
    pub name: String,
    pub state: &'static str,
    pub reason: &'static str,
    /// Whether packets are sent on it now.
    pub in_use: bool,
    /// Whether it only waits for a better path to fail.
    pub standby: bool,
    pub device: String,
    pub local: IpAddr,
    pub remote: IpAddr,
    pub weight: u32,
    /// What counts in modes that go by weight: `weight`, or the inverse of the OSPF cost in a unit that
    /// all paths of the bond share; less where a policy reduces it. Where the weights are measured, what
    /// the path is thought to carry, of what the best one does.
    pub effective_weight: f64,
    /// In mode active-backup: the path with the lowest is the best.
    pub priority: u32,
    /// Of the bond's packets, 0 to 1; `null` where there are none.
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
    pub route: Option<Route>,
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

/// The last proof that packets pass both ways, as the data plane has it now.
#[derive(Serialize)]
pub struct Proof {
    /// Its age, ms; `null` where there was none yet.
    pub age_ms: Option<f64>,
    /// How old it may be, ms.
    pub limit_ms: f64,
    pub fresh: bool,
}

/// What probes measured, by the controller's last word.
#[derive(Serialize)]
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
    pub reordered: u32,
    /// Requests since the last answer.
    pub missed: u32,
    /// Bytes of the longest packet of the bond, and what became of probes of that size: `unknown`,
    /// `passes` or `black hole`.
    pub full_size: u32,
    pub full_size_result: &'static str,
}

/// The route to a path's remote address.
#[derive(Serialize)]
pub struct Route {
    pub prefix: String,
    pub protocol: String,
    pub metric: u32,
    pub device: String,
    pub via: Option<IpAddr>,
}

/// An OSPF neighbour.
#[derive(Serialize)]
pub struct Neighbour {
    pub router_id: Ipv4Addr,
    pub state: String,
}

impl Status {
    /// The bond and path of this name.
    #[must_use]
    pub fn path(&self, name: &str) -> Option<(&Bond, &Path)> {
        let paths = |bond: &Bond| bond.paths.iter().position(|path| path.name == name);
        self.bonds
            .iter()
            .find_map(|bond| Some((bond, &bond.paths[paths(bond)?])))
    }
}

/// Reads everything.
///
/// # Errors
///
/// Where a map cannot be read.
pub fn collect(tables: &Tables, pins: &Pins) -> Result<Status> {
    let mut bonds = Vec::new();
    for id in tables.bond_ids() {
        let Some(info) = tables.bond_info(id) else {
            continue;
        };
        let ids: Vec<u32> = tables.path_ids(id).collect();
        let stats = ids
            .iter()
            .map(|&id| tables.path_stats(id))
            .collect::<Result<Vec<_>>>()?;
        let total = stats.iter().fold((0, 0), |sum, stats| {
            (sum.0 + stats.tx_packets, sum.1 + stats.rx_packets)
        });
        let mut paths: Vec<Path> = ids
            .iter()
            .zip(&stats)
            .filter_map(|(&id, stats)| path(tables, id, stats, total))
            .collect();
        let measured = id * BOND_SHARES + SHARES_MEASURED;
        if info.weights == Weights::Measured as u32
            && let Some(shares) = value(&tables.shares, measured)
        {
            let weights: BTreeMap<u32, f64> = turns::weights(&shares);
            for (id, path) in ids.iter().zip(&mut paths) {
                let weight = weights.get(&(id % MAX_BOND_PATHS)).copied();
                path.effective_weight = (weight.unwrap_or(0.0) * 100.0).round() / 100.0;
            }
        }
        let classes = tables.class_infos(id);
        let modes: Vec<Option<Mode>> = std::iter::once(info.mode)
            .chain(classes.iter().map(|(_, class)| class.mode))
            .map(Mode::from_number)
            .collect();
        if modes.iter().all(|mode| *mode == Some(Mode::ActiveBackup)) {
            let best = value(&tables.lanes, id).map_or(0, |lane| lane.order);
            stand_by(&ids, &mut paths, best);
        }
        let counts = tables.order(id);
        bonds.push(Bond {
            name: text(&info.name),
            ifindex: info.ifindex,
            mtu: info.mtu,
            encap: Encap::from_number(info.encap).map_or("unknown", Encap::label),
            mode: label(info.mode),
            weights: Weights::from_number(info.weights).map_or("unknown", Weights::label),
            flowlet_gap_ms: modes
                .contains(&Some(Mode::Flowlet))
                .then(|| tables.gaps.get(&id, 0).ok())
                .flatten()
                .map(ms),
            key: (info.has_key != 0).then_some(info.key),
            peer: (info.has_peer != 0).then(|| Peer {
                prefix: format!("{}/{}", address(info.peer), info.peer_length),
                reachable: info.peer_reachable != 0,
            }),
            disagreements: disagreements(tables, id),
            numbered: counts.map(|counts| Numbered {
                received: counts.came,
                lost: counts.lost(),
                copies: counts.copies,
                begun: counts.begun,
            }),
            in_order: counts.and_then(|counts| order(tables, id, &counts, info.longest_hold_ns)),
            paths,
            classes: classes
                .iter()
                .map(|(counter, info)| class(tables, *counter, info))
                .collect::<Result<_>>()?,
            fates: fates(&tables.bond_stats(id)?),
        });
    }
    Ok(Status {
        version: 1,
        controller: Controller {
            running: Lock::is_taken(pins),
            pid: value(&tables.meta, 0).map_or(0, |meta| meta.pid),
        },
        bonds,
        outside: fates(&tables.bond_stats(NO_BOND)?),
    })
}

/// By the path that last had an answer.
fn disagreements(tables: &Tables, bond: u32) -> Vec<&'static str> {
    let Some(here) = value(&tables.bonds, bond) else {
        return Vec::new();
    };
    let probed = |path| value(&tables.probe_info, path).filter(|info| info.answered_ns != 0);
    let newest = tables
        .path_ids(bond)
        .filter_map(probed)
        .max_by_key(|info| info.answered_ns);
    newest.map_or_else(Vec::new, |info| {
        let difference = agreement::difference(here.flags, info.peer_options);
        agreement::complaints(difference, info.peer_options)
    })
}

fn order(tables: &Tables, bond: u32, counts: &Counts, longest_hold_ns: u32) -> Option<Order> {
    if longest_hold_ns == 0 {
        return None;
    }
    let skew = value(&tables.skews, bond)?;
    Some(Order {
        hold_ms: ms(skew.hold_ns),
        longest_hold_ms: ms(u64::from(longest_hold_ns)),
        held: counts.held,
        late: counts.late,
        lost: counts.lost(),
        copies: counts.copies,
        begun: counts.begun,
    })
}

fn label(mode: u32) -> &'static str {
    Mode::from_number(mode).map_or("unknown", Mode::label)
}

fn class(tables: &Tables, counter: u32, info: &ClassInfo) -> Result<Class> {
    let stats = tables.class_stats(counter)?;
    Ok(Class {
        name: text(&info.name),
        mode: label(info.mode),
        rule: text(&info.text),
        tx_packets: stats.tx_packets,
        tx_bytes: stats.tx_bytes,
    })
}

/// Of a bond whose packets all take the best path: leaves that one in use. `ids` are those of `paths`.
fn stand_by(ids: &[u32], paths: &mut [Path], order: u64) {
    let at = |slot| ids.iter().position(|id| id % MAX_BOND_PATHS == slot);
    let ordered = (0..MAX_BOND_PATHS).map(|place| order::first(order >> (4 * place)));
    let mut usable = ordered.filter_map(at);
    let Some(best) = usable.find(|&at| paths.get(at).is_some_and(|path| path.in_use)) else {
        return;
    };
    for (at, path) in paths.iter_mut().enumerate() {
        path.standby = path.in_use && at != best;
        path.in_use &= at == best;
    }
}

fn path(tables: &Tables, id: u32, stats: &PathStats, total: (u64, u64)) -> Option<Path> {
    let info = tables.path_info(id)?;
    let record = value(&tables.paths, id)?;
    let admin_down = matches!(tables.admin.get(&id, 0), Ok(ADMIN_DOWN));
    // The data plane obeys the user's flag before the controller has seen it.
    let (state, reason) = if admin_down {
        (PathState::Down.label(), StateReason::Admin.label())
    } else {
        (
            PathState::from_number(info.state).map_or("unknown", PathState::label),
            StateReason::from_number(info.reason).map_or("unknown", StateReason::label),
        )
    };
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| Duration::from(now).as_nanos() as u64);
    let proof = proof(tables, id, now);
    let probed = value(&tables.probe_info, id)?;
    let watch = Watch::from_number(probed.watch).map_or("unknown", Watch::label);
    let share = |part: u64, total: u64| (total != 0).then(|| part as f64 / total as f64);
    Some(Path {
        name: text(&info.name),
        state,
        reason,
        in_use: !admin_down
            && record.flags & PATH_USABLE != 0
            && proof.as_ref().is_none_or(|proof| proof.fresh),
        standby: false,
        device: text(&info.device),
        local: address(record.local),
        remote: address(record.remote),
        weight: info.weight,
        effective_weight: f64::from(info.quarters) / 4.0,
        priority: info.priority,
        tx_share: share(stats.tx_packets, total.0),
        rx_share: share(stats.rx_packets, total.1),
        tx_packets: stats.tx_packets,
        tx_bytes: stats.tx_bytes,
        rx_packets: stats.rx_packets,
        rx_bytes: stats.rx_bytes,
        tx_stand_in: stats.tx_stand_in,
        tx_last_resort: stats.tx_last_resort,
        tx_copies: stats.tx_copies,
        rx_copies: stats.rx_copies,
        route: route(&info),
        ospf_cost: (info.ospf_cost != 0).then_some(info.ospf_cost),
        neighbour: (info.neighbour != [0; 4]).then(|| Neighbour {
            router_id: info.neighbour.into(),
            state: text(&info.neighbour_state),
        }),
        changed: info.changed_ns as f64 / 1e9,
        watch,
        hold_down_ms: (probed.hold_until_ns > now).then(|| ms(probed.hold_until_ns - now)),
        flaps: probed.flaps,
        proof,
        probe: (probed.answered_ns != 0).then(|| probe(&probed)),
    })
}

fn route(info: &PathInfo) -> Option<Route> {
    if info.route_ifindex == 0 {
        return None;
    }
    Some(Route {
        prefix: format!("{}/{}", address(info.route_prefix), info.route_length),
        protocol: u8::try_from(info.route_protocol).map_or_else(|_| "?".to_owned(), protocol_name),
        metric: info.route_metric,
        device: device_name(info.route_ifindex),
        via: (info.route_gateway != [0; 16]).then(|| address(info.route_gateway)),
    })
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn proof(tables: &Tables, id: u32, now: u64) -> Option<Proof> {
    let limit = tables.limits.get(&id, 0).ok().filter(|&limit| limit != 0)?;
    let proof_ns = value(&tables.live, id)?.proof_ns;
    let age = now.saturating_sub(proof_ns);
    Some(Proof {
        age_ms: (proof_ns != 0).then(|| ms(age)),
        limit_ms: ms(limit),
        fresh: age <= limit,
    })
}

fn probe(info: &ProbeInfo) -> Probe {
    Probe {
        rtt_ms: ms(info.rtt_ns),
        deviation_ms: ms(info.deviation_ns),
        least_ms: ms(info.least_ns),
        jitter_ms: ms(info.jitter_ns),
        loss_there: f64::from(info.loss_there) / 1e6,
        loss_back: f64::from(info.loss_back) / 1e6,
        data_loss: (info.data_loss != NO_LOSS_KNOWN).then(|| f64::from(info.data_loss) / 1e6),
        offered_bytes_per_second: info.offered,
        delivered_bytes_per_second: info.delivered,
        queue_ms: ms(info.queue_ns),
        behind_ms: (info.behind_ns != NOT_COMPARED).then(|| ms(info.behind_ns)),
        reordered: info.reordered,
        missed: info.missed,
        full_size: info.full_len,
        full_size_result: FullSize::from_number(info.full).map_or("unknown", FullSize::label),
    }
}

/// Only the fates that came about.
fn fates(stats: &BondStats) -> BTreeMap<&'static str, u64> {
    Fate::ALL
        .iter()
        .map(|&fate| (fate.label(), stats.fates[fate as usize]))
        .filter(|&(_, count)| count != 0)
        .collect()
}

/// An address of the maps.
fn address(mapped: [u8; 16]) -> IpAddr {
    let address = Ipv6Addr::from(mapped);
    address
        .to_ipv4_mapped()
        .map_or(IpAddr::V6(address), IpAddr::V4)
}

fn device_name(ifindex: u32) -> String {
    if_indextoname(ifindex).map_or_else(
        |_| format!("#{ifindex}"),
        |name| name.to_string_lossy().into_owned(),
    )
}
