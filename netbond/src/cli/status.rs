//! `netbond status`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use netbond_common::{
    abi::{ADMIN_DOWN, BondStats, NO_BOND, PATH_USABLE, PathInfo, PathStats},
    fate::Fate,
    names::{PathState, StateReason},
};
use nix::net::if_::if_indextoname;
use serde::Serialize;

use super::table::Table;
use crate::{
    control::state::protocol_name,
    lock::Lock,
    pins::Pins,
    tables::{Tables, text, value},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Everything that is told, in JSON as it stands.
#[derive(Serialize)]
struct Status {
    /// Of this format.
    version: u32,
    controller: Controller,
    bonds: Vec<Bond>,
    /// Packets on the paths' devices that are no bond's, by fate.
    outside: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Controller {
    running: bool,
    pid: u32,
}

#[derive(Serialize)]
struct Bond {
    name: String,
    ifindex: u32,
    mtu: u32,
    key: Option<u32>,
    peer: Option<Peer>,
    paths: Vec<Path>,
    /// Packets of the bond that took no path, by fate.
    fates: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Peer {
    prefix: String,
    reachable: bool,
}

#[derive(Serialize)]
struct Path {
    name: String,
    state: &'static str,
    reason: &'static str,
    /// Whether packets are sent on it now.
    in_use: bool,
    device: String,
    local: IpAddr,
    remote: IpAddr,
    weight: u32,
    /// Of the bond's packets, 0 to 1; `null` where there are none.
    tx_share: Option<f64>,
    rx_share: Option<f64>,
    tx_packets: u64,
    tx_bytes: u64,
    rx_packets: u64,
    rx_bytes: u64,
    tx_stand_in: u64,
    tx_last_resort: u64,
    route: Option<Route>,
    ospf_cost: Option<u32>,
    neighbour: Option<Neighbour>,
    /// When state or reason last changed, seconds since 1970.
    changed: f64,
    /// `null` where the path is not probed, or never answered.
    probe: Option<Probe>,
}

/// What probes measured, by the controller's last word.
#[derive(Serialize)]
struct Probe {
    /// Round trip, ms: smoothed, its mean deviation, and the least.
    rtt_ms: f64,
    deviation_ms: f64,
    least_ms: f64,
    /// Of the last ten seconds' probes, 0 to 1: lost on the way there, and on the way back.
    loss_there: f64,
    loss_back: f64,
    reordered: u32,
}

#[derive(Serialize)]
struct Route {
    prefix: String,
    protocol: String,
    metric: u32,
    device: String,
    via: Option<IpAddr>,
}

#[derive(Serialize)]
struct Neighbour {
    router_id: Ipv4Addr,
    state: String,
}

pub(super) fn run(args: &Args, pins: &Pins) -> Result<()> {
    let tables = Tables::open(pins)?;
    let status = collect(&tables, pins)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &status)?;
        writeln!(out)?;
        return Ok(());
    }
    print(&status, &mut out)
}

fn collect(tables: &Tables, pins: &Pins) -> Result<Status> {
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
        bonds.push(Bond {
            name: text(&info.name),
            ifindex: info.ifindex,
            mtu: info.mtu,
            key: (info.has_key != 0).then_some(info.key),
            peer: (info.has_peer != 0).then(|| Peer {
                prefix: format!("{}/{}", address(info.peer), info.peer_length),
                reachable: info.peer_reachable != 0,
            }),
            paths: ids
                .iter()
                .zip(&stats)
                .filter_map(|(&id, stats)| path(tables, id, stats, total))
                .collect(),
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
    let share = |part: u64, total: u64| (total != 0).then(|| part as f64 / total as f64);
    Some(Path {
        name: text(&info.name),
        state,
        reason,
        in_use: !admin_down && record.flags & PATH_USABLE != 0,
        device: text(&info.device),
        local: address(record.local),
        remote: address(record.remote),
        weight: info.weight,
        tx_share: share(stats.tx_packets, total.0),
        rx_share: share(stats.rx_packets, total.1),
        tx_packets: stats.tx_packets,
        tx_bytes: stats.tx_bytes,
        rx_packets: stats.rx_packets,
        rx_bytes: stats.rx_bytes,
        tx_stand_in: stats.tx_stand_in,
        tx_last_resort: stats.tx_last_resort,
        route: route(&info),
        ospf_cost: (info.ospf_cost != 0).then_some(info.ospf_cost),
        neighbour: (info.neighbour != [0; 4]).then(|| Neighbour {
            router_id: info.neighbour.into(),
            state: text(&info.neighbour_state),
        }),
        changed: info.changed_ns as f64 / 1e9,
        probe: probe(tables, id),
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

fn probe(tables: &Tables, id: u32) -> Option<Probe> {
    let info = value(&tables.probe_info, id).filter(|info| info.answered_ns != 0)?;
    let ms = |ns: u64| ns as f64 / 1e6;
    Some(Probe {
        rtt_ms: ms(info.rtt_ns),
        deviation_ms: ms(info.deviation_ns),
        least_ms: ms(info.least_ns),
        loss_there: f64::from(info.loss_there) / 1e6,
        loss_back: f64::from(info.loss_back) / 1e6,
        reordered: info.reordered,
    })
}

/// Only the fates that came about.
fn fates(stats: &BondStats) -> BTreeMap<&'static str, u64> {
    Fate::ALL
        .iter()
        .map(|&fate| (fate.label(), stats.fates[fate as usize]))
        .filter(|&(_, count)| count != 0)
        .collect()
}

fn print(status: &Status, out: &mut impl std::io::Write) -> Result<()> {
    let controller = match (status.controller.running, status.controller.pid) {
        (true, pid) => format!("running, pid {pid}"),
        (false, _) => "NOT RUNNING: packets pass by the last word of the last one".to_owned(),
    };
    writeln!(out, "controller: {controller}")?;
    for bond in &status.bonds {
        let used = bond.paths.iter().filter(|path| path.in_use).count();
        write!(
            out,
            "\n{}: {used} of {} paths in use, mtu {}",
            bond.name,
            bond.paths.len(),
            bond.mtu
        )?;
        if let Some(key) = bond.key {
            write!(out, ", key {key}")?;
        }
        if let Some(peer) = &bond.peer {
            let reachable = if peer.reachable {
                "reachable"
            } else {
                "UNREACHABLE"
            };
            write!(out, ", peer {} {reachable}", peer.prefix)?;
        }
        writeln!(out)?;
        write!(out, "{}\n{}", paths(bond), traffic(bond))?;
        for path in bond.paths.iter().filter(|path| path.tx_last_resort != 0) {
            writeln!(
                out,
                "  {}: {} packets sent as a last resort, while no path was up",
                path.name, path.tx_last_resort
            )?;
        }
        print_fates(&bond.fates, out)?;
    }
    if !status.outside.is_empty() {
        writeln!(out, "\nnot of any bond:")?;
        print_fates(&status.outside, out)?;
    }
    Ok(())
}

const DASH: &str = "-";

/// How each path stands.
fn paths(bond: &Bond) -> Table {
    let mut table = Table::new(&[
        "PATH", "STATE", "REASON", "FOR", "DEVICE", "REMOTE", "ROUTE", "OSPF",
    ]);
    for path in &bond.paths {
        let route = path.route.as_ref().map_or_else(
            || DASH.to_owned(),
            |route| {
                let via = route
                    .via
                    .map(|via| format!(" via {via}"))
                    .unwrap_or_default();
                format!("{}{via} dev {}", route.protocol, route.device)
            },
        );
        let ospf = path.neighbour.as_ref().map_or_else(
            || DASH.to_owned(),
            |neighbour| {
                let cost = path
                    .ospf_cost
                    .map(|cost| format!(" cost {cost}"))
                    .unwrap_or_default();
                format!("{} {}{cost}", neighbour.router_id, neighbour.state)
            },
        );
        let device = if path.device.is_empty() {
            DASH
        } else {
            &path.device
        };
        table.row([
            path.name.clone(),
            path.state.to_owned(),
            path.reason.to_owned(),
            since(path.changed),
            device.to_owned(),
            path.remote.to_string(),
            route,
            ospf,
        ]);
    }
    table
}

/// What each path carried, and what probes measured of it.
fn traffic(bond: &Bond) -> Table {
    let mut table = Table::new(&[
        "PATH",
        "WEIGHT",
        "RTT ms",
        "LOST %",
        "BACK %",
        "TX PACKETS",
        "TX BYTES",
        "TX %",
        "RX PACKETS",
        "RX BYTES",
        "RX %",
    ]);
    let number = |number: Option<f64>, digits: usize| {
        number.map_or_else(|| DASH.to_owned(), |number| format!("{number:.digits$}"))
    };
    let percent = |share: Option<f64>| number(share.map(|share| share * 100.0), 1);
    for path in &bond.paths {
        let probe = path.probe.as_ref();
        table.row([
            path.name.clone(),
            path.weight.to_string(),
            number(probe.map(|probe| probe.rtt_ms), 2),
            percent(probe.map(|probe| probe.loss_there)),
            percent(probe.map(|probe| probe.loss_back)),
            path.tx_packets.to_string(),
            path.tx_bytes.to_string(),
            percent(path.tx_share),
            path.rx_packets.to_string(),
            path.rx_bytes.to_string(),
            percent(path.rx_share),
        ]);
    }
    table
}

fn print_fates(fates: &BTreeMap<&'static str, u64>, out: &mut impl std::io::Write) -> Result<()> {
    for &fate in Fate::ALL {
        if let Some(count) = fates.get(fate.label()) {
            writeln!(out, "  {}: {count} ({})", fate.label(), fate.description())?;
        }
    }
    Ok(())
}

/// How long ago, in the two largest units.
fn since(changed: f64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = now.map_or(0.0, |now| now.as_secs_f64() - changed).max(0.0) as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
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
