//! `netbond maps`: the raw maps, decoded.

use std::io::Write as _;
use std::net::Ipv6Addr;

use anyhow::{Result, bail};
use netbond_common::{
    abi::{
        Bond, BondInfo, BondStats, Class, ClassInfo, ClassStats, EventRecord, FLOW_BUCKETS, Lane,
        Live, MAX_BONDS, NO_BOND, NO_LOSS_KNOWN, NOT_COMPARED, Path, PathInfo, PathStats,
        ProbeInfo, Shares, Ticket, TunnelKey, Turns,
    },
    fate::Fate,
    names::map,
    order,
    sequence::{Counts, STRANDS},
};
use serde_json::{Value, json};

use super::table::Table;
use crate::{
    loader::MAPS,
    pins::Pins,
    tables::{CpuValues, Raw, Tables, Values, text},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the maps
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the entries of a map, or of all, that are not all zeros
    Dump {
        /// Name of the map
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: &Command, pins: &Pins) -> Result<()> {
    let tables = Tables::open(pins)?;
    match command {
        Command::List { json } => list(pins, *json),
        Command::Dump { name, json } => dump(&tables, name.as_deref(), *json),
    }
}

fn list(pins: &Pins, json: bool) -> Result<()> {
    let mut table = Table::new(&[
        "NAME",
        "ID",
        "TYPE",
        "KEY BYTES",
        "VALUE BYTES",
        "MAX ENTRIES",
    ]);
    let mut all = Vec::new();
    for name in MAPS {
        let info = aya::maps::MapInfo::from_pin(pins.map(name))?;
        let kind = format!("{:?}", info.map_type()?);
        all.push(json!({
            "name": name, "id": info.id(), "type": kind, "key_bytes": info.key_size(),
            "value_bytes": info.value_size(), "max_entries": info.max_entries(),
        }));
        table.row([
            name.to_owned(),
            info.id().to_string(),
            kind,
            info.key_size().to_string(),
            info.value_size().to_string(),
            info.max_entries().to_string(),
        ]);
    }
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &all)?;
        writeln!(out)?;
    } else {
        write!(out, "{table}")?;
    }
    Ok(())
}

/// An entry: its key, then its value.
type Entry = (Value, Value);

fn dump(tables: &Tables, only: Option<&str>, json: bool) -> Result<()> {
    if let Some(only) = only
        && !MAPS.contains(&only)
    {
        bail!("no map \"{only}\"; there are: {}", MAPS.join(", "));
    }
    let mut out = std::io::stdout().lock();
    let mut all = serde_json::Map::new();
    for name in MAPS
        .into_iter()
        .filter(|name| only.is_none_or(|only| only == *name))
    {
        let entries = entries(tables, name)?;
        if json {
            let entries = entries
                .into_iter()
                .map(|(key, value)| json!({"key": key, "value": value}));
            all.insert(name.to_owned(), entries.collect());
        } else {
            writeln!(out, "{name}")?;
            for (key, value) in entries {
                writeln!(out, "  {key}: {value}")?;
            }
        }
    }
    if json {
        serde_json::to_writer_pretty(&mut out, &all)?;
        writeln!(out)?;
    }
    Ok(())
}

fn entries(tables: &Tables, name: &str) -> Result<Vec<Entry>> {
    Ok(match name {
        map::META => array(
            &tables.meta,
            |meta| json!({"abi": meta.abi, "pid": meta.pid, "heartbeat_ns": meta.heartbeat_ns}),
        ),
        map::BOND_BY_IFINDEX => tables
            .bond_by_ifindex
            .iter()
            .map(|entry| entry.map(|(ifindex, bond)| (json!(ifindex), json!(bond))))
            .collect::<Result<_, _>>()?,
        map::DRIVERS => tables
            .drivers
            .iter()
            .map(|entry| {
                entry.map(|(ifindex, Raw(driver))| {
                    let value = json!({"address": mac(driver.address), "roles": driver.roles});
                    (json!(ifindex), value)
                })
            })
            .collect::<Result<_, _>>()?,
        map::BOND_PEERS => (0..MAX_BONDS)
            .filter_map(|id| {
                Some((
                    json!(id),
                    json!(tables.bond_peers.get(id, 0).ok()?.if_index),
                ))
            })
            .collect(),
        map::PORTS => tables
            .ports
            .iter()
            .map(|entry| entry.map(|(ifindex, port)| (json!(ifindex), json!(port.if_index))))
            .collect::<Result<_, _>>()?,
        map::LAN_INFO => (0..)
            .zip(tables.lan_infos())
            .map(|(at, info): (u32, _)| {
                let value = json!({"name": text(&info.name), "xdp": info.xdp});
                (json!(at), value)
            })
            .collect(),
        map::BONDS => array(&tables.bonds, bond),
        map::PATHS => array(&tables.paths, path),
        map::TUNNELS => tables
            .tunnels
            .iter()
            .map(|entry| entry.map(|(Raw(key), path)| (tunnel(&key), json!(path))))
            .collect::<Result<_, _>>()?,
        map::LANES => array(&tables.lanes, lane),
        map::CLASSES => array(&tables.classes, class),
        map::FLOW_TABLE => {
            let set = (0..tables.flow_table.len()).filter_map(|index| {
                let order = tables.flow_table.get(&index, 0).ok()?;
                let key = json!({"bond": index / FLOW_BUCKETS, "bucket": index % FLOW_BUCKETS});
                (order != 0).then(|| (key, paths_of(order)))
            });
            set.collect()
        }
        map::FLOWLETS => array(
            &tables.flowlets,
            |flowlet| json!({"at_ns": flowlet.at_ns, "path": flowlet.path}),
        ),
        map::GAPS => {
            let set = (0..MAX_BONDS).filter_map(|id| {
                let gap = tables.gaps.get(&id, 0).ok()?;
                (gap != 0).then(|| (json!(id), json!({ "gap_ns": gap })))
            });
            set.collect()
        }
        map::CLASS_STATS => per_cpu(
            &tables.class_stats,
            |stats: &ClassStats| json!({"tx_packets": stats.tx_packets, "tx_bytes": stats.tx_bytes}),
        )?,
        map::CLASS_INFO => array(&tables.class_info, class_info),
        map::ADMIN => {
            let set = (0..tables.admin.len()).filter_map(|id| {
                let value = tables.admin.get(&id, 0).ok()?;
                (value != 0).then(|| (json!(id), json!(value)))
            });
            set.collect()
        }
        map::LIMITS => {
            let set = (0..tables.limits.len()).filter_map(|id| {
                let limit = tables.limits.get(&id, 0).ok()?;
                (limit != 0).then(|| (json!(id), json!({ "limit_ns": limit })))
            });
            set.collect()
        }
        map::LIVE => array(&tables.live, live),
        // A queue, of which a look would take the entries away; what nobody is to know; what programs
        // note of a packet.
        map::SAMPLES | map::SECRET | map::NOTES | map::HOPS | map::ANSWERS | map::LEFT => {
            Vec::new()
        }
        map::PROBE_INFO => array(&tables.probe_info, probe_info),
        map::EVENTS => array(&tables.events, event),
        map::TICKETS => per_cpu(
            &tables.tickets,
            |ticket: &Ticket| json!({"slot": ticket.slot, "stand_in": ticket.stand_in}),
        )?,
        map::SHARES => array(&tables.shares, shares),
        map::TURNS => per_cpu(
            &tables.turns,
            |turns: &Turns| json!({"now": turns.now, "clocks": turns.clocks}),
        )?,
        map::PATH_STATS => per_cpu(&tables.path_stats, path_stats)?,
        map::BOND_STATS => per_cpu(&tables.bond_stats, bond_stats)?
            .into_iter()
            .map(|(key, value)| {
                if key == NO_BOND {
                    (json!("no bond"), value)
                } else {
                    (key, value)
                }
            })
            .collect(),
        map::SEQUENCES => {
            let set = (0..tables.sequences.len()).filter_map(|id| {
                let count = tables.sequences.get(&id, 0).ok()?;
                (count != 0).then(|| (strand(id), json!({ "count": count })))
            });
            set.collect()
        }
        map::STRANDS => tables
            .strands
            .iter()
            .map(|entry| entry.map(|(id, Raw(it))| (strand(id), counts(&it.counts))))
            .collect::<Result<_, _>>()?,
        map::SKEWS => array(&tables.skews, |skew| json!({ "hold_ns": skew.hold_ns })),
        map::BOND_INFO => array(&tables.bond_info, bond_info),
        map::PATH_INFO => array(&tables.path_info, path_info),
        other => bail!("no map \"{other}\""),
    })
}

/// The key of a bond's strand.
fn strand(id: u32) -> Value {
    json!({"bond": id / STRANDS, "strand": id % STRANDS})
}

fn counts(counts: &Counts) -> Value {
    json!({
        "held": counts.held, "late": counts.late, "expected": counts.expected, "came": counts.came,
        "copies": counts.copies, "begun": counts.begun,
    })
}

fn array<T: bytemuck::Pod + PartialEq>(
    values: &Values<T>,
    show: impl Fn(&T) -> Value,
) -> Vec<Entry> {
    (0..values.len())
        .filter_map(|index| {
            let Raw(value) = values.get(&index, 0).ok()?;
            (value != T::zeroed()).then(|| (json!(index), show(&value)))
        })
        .collect()
}

fn per_cpu<T: bytemuck::Pod + PartialEq>(
    values: &CpuValues<T>,
    show: impl Fn(&T) -> Value,
) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for index in 0..values.len() {
        let cpus = values.get(&index, 0)?;
        if cpus.iter().any(|Raw(value)| *value != T::zeroed()) {
            entries.push((
                json!(index),
                cpus.iter().map(|Raw(value)| show(value)).collect(),
            ));
        }
    }
    Ok(entries)
}

fn ip(address: [u8; 16]) -> Value {
    json!(Ipv6Addr::from(address).to_canonical().to_string())
}

fn mac(address: [u8; 6]) -> Value {
    let bytes: Vec<String> = address.iter().map(|byte| format!("{byte:02x}")).collect();
    json!(bytes.join(":"))
}

fn bond(bond: &Bond) -> Value {
    let wheel = &bond.wheel[..(bond.wheel_len as usize).min(bond.wheel.len())];
    json!({
        "paths": bond.paths, "ifindex": bond.ifindex, "ttl": bond.ttl, "mac": mac(bond.mac),
        "flags": bond.flags, "classes": bond.classes, "xdp_mtu": bond.xdp_mtu, "xdp": bond.xdp,
        "wheel": wheel,
    })
}

fn lane(lane: &Lane) -> Value {
    json!({
        "mode": lane.mode, "order": paths_of(lane.order), "shares": lane.shares,
        "copies": lane.copies,
    })
}

fn shares(shares: &Shares) -> Value {
    let paths = (0..shares.count.min(16)).map(|place| order::first(shares.order >> (4 * place)));
    let costs = paths.map(|path| (path.to_string(), json!(shares.cost[path as usize])));
    json!({ "cost": costs.collect::<serde_json::Map<_, _>>() })
}

/// The paths of an order of preference.
fn paths_of(order: u64) -> Value {
    let paths = (0..16).map(|place| order::first(order >> (4 * place)));
    paths.collect()
}

fn class(class: &Class) -> Value {
    let rule = &class.rule;
    let ip = |[high, low]: [u64; 2]| ip(bytemuck::cast([high, low]));
    json!({
        "source": ip(rule.source), "source_mask": ip(rule.source_mask),
        "destination": ip(rule.destination), "destination_mask": ip(rule.destination_mask),
        "other_dscps": rule.other_dscps, "mark": rule.mark, "mark_mask": rule.mark_mask,
        "kind": rule.kind, "kind_mask": rule.kind_mask, "source_ports": rule.source_ports,
        "destination_ports": rule.destination_ports, "counter": class.counter,
    })
}

fn class_info(info: &ClassInfo) -> Value {
    json!({
        "name": text(&info.name), "mode": info.mode, "place": info.place,
        "text": text(&info.text),
    })
}

fn path(path: &Path) -> Value {
    json!({
        "flags": path.flags, "ifindex": path.ifindex, "sum": path.sum,
        "key": u32::from_be_bytes(path.key), "next_hop": path.next_hop.address(), "local": ip(path.local), "remote": ip(path.remote),
    })
}

fn tunnel(key: &TunnelKey) -> Value {
    json!({
        "source": ip(key.source), "destination": ip(key.destination),
        "key": (key.has_key != 0).then(|| u32::from_be_bytes(key.key)),
    })
}

fn live(live: &Live) -> Value {
    json!({
        "proof_ns": live.proof_ns, "sequence": live.sequence, "answers_seen": live.answers_seen,
        "requests_seen": live.requests_seen, "grants": live.grants,
        "stranger_grant": live.stranger_grant,
    })
}

fn probe_info(info: &ProbeInfo) -> Value {
    json!({
        "rtt_ns": info.rtt_ns, "deviation_ns": info.deviation_ns, "least_ns": info.least_ns,
        "jitter_ns": info.jitter_ns, "answered_ns": info.answered_ns,
        "hold_until_ns": info.hold_until_ns, "loss_there_ppm": info.loss_there,
        "loss_back_ppm": info.loss_back, "reordered": info.reordered, "watch": info.watch,
        "flaps": info.flaps, "missed": info.missed, "full_len": info.full_len, "full": info.full,
        "path_mtu": info.path_mtu,
        "data_loss_ppm": (info.data_loss != NO_LOSS_KNOWN).then_some(info.data_loss),
        "peer_options": info.peer_options, "offered": info.offered, "delivered": info.delivered,
        "queue_ns": info.queue_ns,
        "behind_ns": (info.behind_ns != NOT_COMPARED).then_some(info.behind_ns),
    })
}

fn event(event: &EventRecord) -> Value {
    json!({
        "sequence": event.sequence, "at_ns": event.at_ns, "kind": event.kind, "from": event.from,
        "to": event.to, "reason": event.reason, "bond": text(&event.bond),
        "path": text(&event.path), "text": text(&event.text),
    })
}

fn path_stats(stats: &PathStats) -> Value {
    json!({
        "tx_packets": stats.tx_packets, "tx_bytes": stats.tx_bytes,
        "rx_packets": stats.rx_packets, "rx_bytes": stats.rx_bytes,
        "tx_stand_in": stats.tx_stand_in, "tx_last_resort": stats.tx_last_resort,
        "tx_copies": stats.tx_copies, "rx_copies": stats.rx_copies,
        "rx_contended": stats.rx_contended,
        "tx_onward": stats.tx_onward, "rx_onward": stats.rx_onward,
    })
}

fn bond_stats(stats: &BondStats) -> Value {
    let counters = Fate::ALL
        .iter()
        .map(|&fate| (fate.label().to_owned(), json!(stats.fates[fate as usize])));
    Value::Object(counters.collect())
}

fn bond_info(info: &BondInfo) -> Value {
    json!({
        "name": text(&info.name), "ifindex": info.ifindex, "peer_ifindex": info.peer_ifindex,
        "mtu": info.mtu, "mtu_ceiling": info.mtu_ceiling, "key": (info.has_key != 0).then_some(info.key),
        "peer": (info.has_peer != 0).then(|| ip(info.peer)), "peer_length": info.peer_length,
        "peer_reachable": info.peer_reachable != 0, "encap": info.encap,
        "mode": info.mode, "weights": info.weights, "xdp_send": info.xdp_send,
    })
}

fn path_info(info: &PathInfo) -> Value {
    json!({
        "name": text(&info.name), "device": text(&info.device), "changed_ns": info.changed_ns,
        "state": info.state, "reason": info.reason, "weight": info.weight,
        "quarters": info.quarters, "priority": info.priority,
        "route_protocol": info.route_protocol, "route_metric": info.route_metric,
        "route_ifindex": info.route_ifindex, "route_gateway": ip(info.route_gateway),
        "route_prefix": ip(info.route_prefix), "route_length": info.route_length,
        "ospf_cost": info.ospf_cost, "neighbour": std::net::Ipv4Addr::from(info.neighbour),
        "neighbour_state": text(&info.neighbour_state), "xdp": info.xdp,
    })
}
