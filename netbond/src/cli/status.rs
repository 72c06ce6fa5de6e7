//! `netbond status`.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::Result;
use netbond_common::{
    fate::Fate,
    names::{Encap, Mode, PathState, Weights},
};

use super::{format::since, table::Table};
use crate::{
    pins::Pins,
    status::{self, Bond, Numbered, Path, Probe, Status},
    tables::Tables,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, pins: &Pins) -> Result<()> {
    let tables = Tables::open(pins)?;
    let status = status::collect(&tables, pins)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &status)?;
        writeln!(out)?;
        return Ok(());
    }
    print(&status, &mut out)
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
        if bond.encap != Encap::Gre.label() {
            write!(out, ", {}", bond.encap)?;
        }
        if bond.mode != Mode::RoundRobin.label() {
            write!(out, ", {}", bond.mode)?;
        }
        if bond.weights == Weights::Ospf.label() {
            write!(out, ", weights by OSPF cost")?;
        }
        if bond.weights == Weights::Measured.label() {
            write!(out, ", weights as measured")?;
        }
        if let Some(gap) = bond.flowlet_gap_ms {
            write!(out, ", flowlet gap {gap:.1} ms")?;
        }
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
        for disagreement in &bond.disagreements {
            write!(out, ", {disagreement}")?;
        }
        writeln!(out)?;
        write!(out, "{}\n{}", paths(bond), traffic(bond))?;
        if let Some(numbered) = &bond.numbered {
            let Numbered {
                received,
                lost,
                copies,
                ..
            } = numbered;
            writeln!(
                out,
                "  numbered: {received} packets received, {lost} lost; {copies} copies dropped"
            )?;
        }
        if let Some(order) = &bond.in_order {
            writeln!(
                out,
                "  in order: packets held {:.1} ms (at most {:.0}); {} held so far, {} late, {} lost",
                order.hold_ms, order.longest_hold_ms, order.held, order.late, order.lost
            )?;
        }
        if !bond.classes.is_empty() {
            write!(out, "\n{}", classes(bond))?;
        }
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
            if path.standby { "standby" } else { path.state }.to_owned(),
            reason(path),
            since(path.changed),
            device.to_owned(),
            path.remote.to_string(),
            route,
            ospf,
        ]);
    }
    table
}

/// The reason, and for how long yet it holds where that is known.
fn reason(path: &Path) -> String {
    match path.hold_down_ms {
        Some(ms) if path.state == PathState::Dead.label() => {
            format!("{}, {:.0} s left", path.reason, (ms / 1000.0).ceil())
        }
        Some(_) | None => path.reason.to_owned(),
    }
}

/// What each path carried, and what probes measured of it.
fn traffic(bond: &Bond) -> Table {
    let by_priority = bond.mode == Mode::ActiveBackup.label();
    let copies = |path: &Path| path.tx_copies + path.rx_copies != 0;
    let copies = bond.mode == Mode::Duplicate.label() || bond.paths.iter().any(copies);
    let mut titles = vec![
        "PATH",
        if by_priority { "PRIORITY" } else { "WEIGHT" },
        "RTT ms",
        "JITTER",
        "LOST %",
        "BACK %",
        "DATA LOST %",
        "BEHIND ms",
        "Mbit/s",
        "TX PACKETS",
        "TX BYTES",
        "TX %",
        "RX PACKETS",
        "RX BYTES",
        "RX %",
    ];
    if copies {
        titles.push("TX COPIES");
        titles.push("RX COPIES");
    }
    let mut table = Table::new(&titles);
    let number = |number: Option<f64>, digits: usize| {
        number.map_or_else(|| DASH.to_owned(), |number| format!("{number:.digits$}"))
    };
    let percent = |share: Option<f64>| number(share.map(|share| share * 100.0), 1);
    for path in &bond.paths {
        let probe = path.probe.as_ref();
        let mut row = vec![
            path.name.clone(),
            if by_priority {
                path.priority.to_string()
            } else {
                path.effective_weight.to_string()
            },
            number(probe.map(|probe| probe.rtt_ms), 2),
            number(probe.map(|probe| probe.jitter_ms), 2),
            percent(probe.map(|probe| probe.loss_there)),
            percent(probe.map(|probe| probe.loss_back)),
            percent(probe.and_then(|probe| probe.data_loss)),
            number(probe.and_then(|probe| probe.behind_ms), 2),
            number(probe.map(mbits), 2),
            path.tx_packets.to_string(),
            path.tx_bytes.to_string(),
            percent(path.tx_share),
            path.rx_packets.to_string(),
            path.rx_bytes.to_string(),
            percent(path.rx_share),
        ];
        if copies {
            row.push(path.tx_copies.to_string());
            row.push(path.rx_copies.to_string());
        }
        table.row(row);
    }
    table
}

/// What arrives at the peer, Mbit/s.
fn mbits(probe: &Probe) -> f64 {
    probe.delivered_bytes_per_second as f64 * 8.0 / 1e6
}

/// What each class carried.
fn classes(bond: &Bond) -> Table {
    let mut table = Table::new(&["CLASS", "MODE", "TX PACKETS", "TX BYTES", "TAKES"]);
    for class in &bond.classes {
        table.row([
            class.name.clone(),
            class.mode.to_owned(),
            class.tx_packets.to_string(),
            class.tx_bytes.to_string(),
            class.rule.clone(),
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
