//! Reads what is told of every bond and path out of the pinned maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use netbond_common::{
    abi::{
        ADMIN_DOWN, BOND_SHARES, BondStats, ClassInfo, MAX_BOND_PATHS, NO_BOND, NO_LOSS_KNOWN,
        NOT_COMPARED, PATH_LAST_RESORT, PATH_USABLE, PathInfo, PathStats, ProbeInfo, SETTLED_UNIT,
        SHARES_MEASURED,
    },
    fate::Fate,
    names::{Encap, FullSize, Mode, PathState, StateReason, Watch, Weights, Xdp},
    order,
    sequence::Counts,
    turns,
};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_indextoname};

use super::{
    Bond, Class, Controller, Lan, Neighbour, Numbered, Order, Path, Peer, Probe, Proof, Route,
    Status, VERSION,
};
use crate::{
    clock::monotonic,
    control::{agreement, state::protocol_name},
    lock::Lock,
    pins::Pins,
    tables::{Tables, text, value},
};

/// Reads everything.
///
/// # Errors
///
/// Where a map cannot be read.
pub fn collect(tables: &Tables, pins: &Pins) -> Result<Status> {
    let at = SystemTime::now().duration_since(UNIX_EPOCH);
    let devices_up = devices_up()?;
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
        share_out(Mode::from_number(info.mode), &mut paths);
        let device_up = devices_up.contains(&text(&info.name));
        let last_resort = |&id: &u32| {
            let taken_out = matches!(tables.admin.get(&id, 0), Ok(ADMIN_DOWN));
            let flags = value(&tables.paths, id).map_or(0, |path| path.flags);
            !taken_out && flags & (PATH_USABLE | PATH_LAST_RESORT) != 0
        };
        let counts = tables.order(id);
        bonds.push(Bond {
            name: text(&info.name),
            state: if !device_up {
                "down"
            } else if paths.iter().any(|path| path.in_use) {
                "up"
            } else if ids.iter().any(last_resort) {
                "last resort"
            } else {
                "down"
            },
            device_up,
            ifindex: info.ifindex,
            mtu: info.mtu,
            mtu_ceiling: (info.mtu_ceiling != 0).then_some(info.mtu_ceiling),
            encap: Encap::from_number(info.encap).map_or("unknown", Encap::label),
            mode: label(info.mode),
            weights: Weights::from_number(info.weights).map_or("unknown", Weights::label),
            flowlet_gap_ms: modes
                .contains(&Some(Mode::Flowlet))
                .then(|| tables.gaps.get(&id, 0).ok())
                .flatten()
                .map(ms),
            settled: settled(tables, id),
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
            xdp_send: xdp(info.xdp_send),
            paths,
            classes: classes
                .iter()
                .map(|(counter, info)| class(tables, *counter, info))
                .collect::<Result<_>>()?,
            fates: fates(&tables.bond_stats(id)?),
        });
    }
    Ok(Status {
        version: VERSION,
        at: at.map_or(0.0, |at| at.as_secs_f64()),
        read_ns: monotonic(),
        rates_over_s: None,
        controller: Controller {
            running: Lock::is_taken(pins),
            pid: value(&tables.meta, 0).map_or(0, |meta| meta.pid),
        },
        bonds,
        lans: tables
            .lan_infos()
            .map(|info| Lan {
                name: text(&info.name),
                xdp: xdp(info.xdp),
            })
            .collect(),
        outside: fates(&tables.bond_stats(NO_BOND)?),
    })
}

/// Names of the devices that are set up.
fn devices_up() -> Result<BTreeSet<String>> {
    let interfaces = getifaddrs().context("reading the host's devices")?;
    let up = interfaces.filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP));
    Ok(up.map(|interface| interface.interface_name).collect())
}

/// What each path is to get of what the bond sends in its own mode.
fn share_out(mode: Option<Mode>, paths: &mut [Path]) {
    let weight = |path: &Path| {
        // A policy leaves a path a quarter of what the others have.
        let reduced = path.effective_weight < f64::from(path.weight);
        match mode {
            _ if !path.in_use => Some(0.0),
            Some(Mode::RoundRobin) => Some(if reduced { 0.25 } else { 1.0 }),
            Some(Mode::Weighted | Mode::Flow | Mode::Flowlet | Mode::Adaptive) => {
                Some(path.effective_weight)
            }
            Some(Mode::ActiveBackup) => Some(1.0),
            Some(Mode::Duplicate) | None => None,
        }
    };
    let weights: Option<Vec<f64>> = paths.iter().map(weight).collect();
    let Some(weights) = weights else {
        return;
    };
    let total: f64 = weights.iter().sum();
    for (path, weight) in paths.iter_mut().zip(weights) {
        path.due_share = Some(if total > 0.0 { weight / total } else { 0.0 });
    }
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

fn settled(tables: &Tables, bond: u32) -> Option<bool> {
    let lane = value(&tables.lanes, bond)?;
    let shares = value(&tables.shares, bond * BOND_SHARES + SHARES_MEASURED)?;
    let in_order = lane.mode == Mode::Adaptive as u32;
    let now = (monotonic() >> SETTLED_UNIT) as u32;
    in_order.then_some(now < shares.settled_until)
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
    let now = monotonic();
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
        xdp: xdp(info.xdp),
        local: address(record.local),
        remote: address(record.remote),
        weight: info.weight,
        effective_weight: f64::from(info.quarters) / 4.0,
        priority: info.priority,
        due_share: None,
        rate: None,
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
        rx_contended: stats.rx_contended,
        tx_onward: stats.tx_onward,
        rx_onward: stats.rx_onward,
        route: route(&info),
        next_hop: record.next_hop.address(),
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

fn xdp(number: u32) -> &'static str {
    Xdp::from_number(number).map_or("unknown", Xdp::label)
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
    let proof = tables.proof(id)?;
    let age = now.saturating_sub(proof.at_ns);
    Some(Proof {
        age_ms: (proof.at_ns != 0).then(|| ms(age)),
        limit_ms: ms(proof.limit_ns),
        fresh: proof.is_fresh(now),
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
        // What was known before says nothing while another size is looked for.
        path_mtu: (info.path_mtu != 0 && info.full != FullSize::BlackHole as u32)
            .then_some(info.path_mtu),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    /// What is due to four paths: heavy, light, reduced to a quarter by a policy, and out of use.
    fn due(mode: Mode) -> Vec<Option<f64>> {
        let weights = [
            (3, 3.0, true),
            (1, 1.0, true),
            (1, 0.25, true),
            (1, 1.0, false),
        ];
        let mut paths: Vec<Path> = weights
            .into_iter()
            .map(|(weight, effective_weight, in_use)| Path {
                weight,
                effective_weight,
                in_use,
                ..sample::path("a", PathState::Up, StateReason::Route)
            })
            .collect();
        for path in &mut paths {
            path.due_share = None;
        }
        share_out(Some(mode), &mut paths);
        paths.into_iter().map(|path| path.due_share).collect()
    }

    #[test]
    fn what_is_due_goes_by_mode_weight_and_state() {
        let by_weight = [3.0, 1.0, 0.25, 0.0].map(|weight| Some(weight / 4.25));
        for mode in [Mode::Weighted, Mode::Flow, Mode::Flowlet, Mode::Adaptive] {
            assert_eq!(due(mode), by_weight, "{mode:?}");
        }
        let alike = [1.0, 1.0, 0.25, 0.0].map(|weight| Some(weight / 2.25));
        assert_eq!(due(Mode::RoundRobin), alike);
        assert_eq!(due(Mode::Duplicate), [None; 4]);
    }
}
