//! The status for people: tables that fit into 80 to 100 columns.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use netbond_common::{
    fate::Fate,
    names::{Encap, Mode, PathState, Weights, Xdp},
};

use crate::{
    cli::{
        format::{DASH, count, number, percent, since},
        merit::{self, Merit},
        table::{Cell, Table},
    },
    status::{Bond, Numbered, Path, Status},
};

const GOOD: Style = AnsiColor::Green.on_default();
const DOUBTFUL: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

const fn style(merit: Merit) -> Style {
    match merit {
        Merit::Good => GOOD,
        Merit::Plain => Style::new(),
        Merit::Doubtful => DOUBTFUL,
        Merit::Bad => BAD,
    }
}

/// All of every bond, or, where there are several and not `all` is wanted, the most important.
pub(super) fn render(status: &Status, all: bool) -> String {
    let in_full = all || status.bonds.len() == 1;
    let mut text = match (status.controller.running, status.controller.pid) {
        (true, pid) => format!("controller: running, pid {pid}\n"),
        (false, _) => format!(
            "controller: {BAD}NOT RUNNING{BAD:#}: packets pass by the last word of the last one\n"
        ),
    };
    for bond in &status.bonds {
        text += &heading(bond);
        text += &now(bond).to_string();
        if in_full {
            text += &format!("\n{}\n{}", routes(bond), totals(bond));
            if bond.paths.iter().any(|path| path.probe.is_some()) {
                text += &format!("\n{}", probes(bond));
            }
        }
        text += &notes(bond);
        if in_full && !bond.classes.is_empty() {
            text += &format!("\n{}", classes(bond));
        }
        if in_full {
            text += &fates(&bond.fates);
        }
    }
    if !status.lans.is_empty() {
        text += "\n";
    }
    for lan in &status.lans {
        text += &match lan.xdp {
            xdp if xdp == Xdp::Native.label() => {
                format!("LAN {}: forwarded past the kernel (XDP)\n", lan.name)
            }
            xdp if xdp == Xdp::Off.label() => {
                format!("LAN {}: forwarded by the kernel\n", lan.name)
            }
            xdp => format!(
                "LAN {}: {DOUBTFUL}forwarded by the kernel{DOUBTFUL:#}, not by XDP: {xdp}\n",
                lan.name
            ),
        };
    }
    if !status.outside.is_empty() && in_full {
        text += "\nnot of any bond:\n";
        text += &fates(&status.outside);
    }
    if !in_full && !status.bonds.is_empty() {
        text += "\nmore of one: netbond status BOND; of every one: netbond status --all\n";
    }
    text
}

/// A line of the bond itself.
fn heading(bond: &Bond) -> String {
    let used = bond.paths.iter().filter(|path| path.in_use).count();
    let (state, merit) = merit::of_bond(bond);
    let style = style(merit);
    let mut line = format!(
        "\n{}: {style}{state}{style:#}, {used} of {} paths in use, mtu {}",
        bond.name,
        bond.paths.len(),
        bond.mtu
    );
    if let Some(ceiling) = bond.mtu_ceiling.filter(|&ceiling| bond.mtu < ceiling) {
        line += &format!(" of {ceiling}");
    }
    if !bond.device_up {
        line += ", device not up";
    }
    if bond.encap != Encap::Gre.label() {
        line += &format!(", {}", bond.encap);
    }
    if bond.mode != Mode::RoundRobin.label() {
        line += &format!(", {}", bond.mode);
    }
    if bond.weights == Weights::Ospf.label() {
        line += ", weights by OSPF cost";
    }
    if bond.weights == Weights::Measured.label() {
        line += ", weights as measured";
    }
    if let Some(gap) = bond.flowlet_gap_ms {
        line += &format!(", flowlet gap {gap:.1} ms");
    }
    if bond.settled == Some(true) {
        line += ", flows settled";
    }
    if let Some(key) = bond.key {
        line += &format!(", key {key}");
    }
    if let Some(peer) = &bond.peer {
        line += &format!(", peer {} ", peer.prefix);
        line += &if peer.reachable {
            "reachable".to_owned()
        } else {
            format!("{BAD}UNREACHABLE{BAD:#}")
        };
    }
    line + "\n"
}

/// How each path stands, and what it carries now.
fn now(bond: &Bond) -> Table {
    let mut table = Table::new(&[
        "PATH", "STATE", "FOR", "TX bit/s", "TX %", "DUE %", "RX bit/s", "RTT ms", "LOST %",
    ]);
    for path in &bond.paths {
        let rate = path.rate.as_ref();
        let bits = |bytes: Option<u64>| bytes.map_or_else(|| DASH.to_owned(), |b| count(8 * b));
        let probe = path.probe_now();
        table.row([
            Cell::from(path.name.clone()),
            state(path),
            since(path.changed).into(),
            bits(rate.map(|rate| rate.tx_bytes_per_second)).into(),
            percent(rate.and_then(|rate| rate.tx_share)).into(),
            percent(path.due_share).into(),
            bits(rate.map(|rate| rate.rx_bytes_per_second)).into(),
            number(probe.map(|probe| probe.rtt_ms), 2).into(),
            percent(probe.map(|probe| probe.loss_there)).into(),
        ]);
    }
    table
}

fn state(path: &Path) -> Cell {
    match merit::of_path(path) {
        (state, Merit::Plain) => state.into(),
        (state, merit) => Cell::styled(state, style(merit)),
    }
}

/// Why each path stands as it does, and where OSPF leads.
fn routes(bond: &Bond) -> Table {
    let mut table = Table::new(&["PATH", "REASON", "DEVICE", "REMOTE", "ROUTE", "OSPF"]);
    for path in &bond.paths {
        let route = path.route.as_ref().map_or_else(
            || DASH.to_owned(),
            |route| {
                let via = route
                    .via
                    .map(|via| format!(" via {via}"))
                    .unwrap_or_default();
                let device = if route.device == path.device {
                    String::new()
                } else {
                    format!(" dev {}", route.device)
                };
                format!("{}{via}{device}", route.protocol)
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
            reason(path),
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

/// What each path carried in all, and by what weight.
fn totals(bond: &Bond) -> Table {
    let by_priority = bond.mode == Mode::ActiveBackup.label();
    let copies = |path: &Path| path.tx_copies + path.rx_copies != 0;
    let copies = bond.mode == Mode::Duplicate.label() || bond.paths.iter().any(copies);
    let mut titles = vec![
        "PATH",
        if by_priority { "PRIORITY" } else { "WEIGHT" },
        "TX PACKETS",
        "TX BYTES",
        "TX %",
        "RX PACKETS",
        "RX BYTES",
        "RX %",
    ];
    if copies {
        titles.extend(["TX COPIES", "RX COPIES"]);
    }
    let mut table = Table::new(&titles);
    for path in &bond.paths {
        let mut row = vec![
            path.name.clone(),
            if by_priority {
                path.priority.to_string()
            } else {
                path.effective_weight.to_string()
            },
            count(path.tx_packets),
            count(path.tx_bytes),
            percent(path.tx_share),
            count(path.rx_packets),
            count(path.rx_bytes),
            percent(path.rx_share),
        ];
        if copies {
            row.extend([count(path.tx_copies), count(path.rx_copies)]);
        }
        table.row(row);
    }
    table
}

/// What else probes measured.
fn probes(bond: &Bond) -> Table {
    let mut table = Table::new(&[
        "PATH",
        "LEAST ms",
        "JITTER",
        "BACK %",
        "DATA LOST %",
        "BEHIND ms",
        "QUEUE ms",
        "REORDERED",
    ]);
    for path in &bond.paths {
        let probe = path.probe.as_ref();
        table.row([
            path.name.clone(),
            number(probe.map(|probe| probe.least_ms), 2),
            number(probe.map(|probe| probe.jitter_ms), 2),
            percent(path.probe_now().map(|probe| probe.loss_back)),
            percent(probe.and_then(|probe| probe.data_loss)),
            number(probe.and_then(|probe| probe.behind_ms), 2),
            number(probe.map(|probe| probe.queue_ms), 2),
            probe.map_or_else(|| DASH.to_owned(), |probe| count(probe.reordered.into())),
        ]);
    }
    table
}

/// What is to be said of a bond in words.
fn notes(bond: &Bond) -> String {
    let mut notes = String::new();
    for disagreement in &bond.disagreements {
        notes += &format!("  {BAD}{disagreement}{BAD:#}\n");
    }
    if let Some(numbered) = &bond.numbered {
        let Numbered {
            received,
            lost,
            copies,
            ..
        } = numbered;
        notes += &format!(
            "  numbered: {received} packets received, {lost} lost; {copies} copies dropped\n"
        );
    }
    if let Some(order) = &bond.in_order {
        // Writing to a string cannot fail.
        let _ = writeln!(
            notes,
            "  in order: packets held {:.1} ms (at most {:.0}); {} held so far, {} late, {} lost",
            order.hold_ms, order.longest_hold_ms, order.held, order.late, order.lost
        );
    }
    for path in &bond.paths {
        if let Some(probe) = &path.probe
            && let Some((path_mtu, _)) = bond.narrowed_by(probe)
        {
            let _ = writeln!(
                notes,
                "  {}: path MTU {path_mtu}, for packets of {} bytes",
                path.name, probe.full_size
            );
        }
    }
    for path in bond
        .paths
        .iter()
        .filter(|path| path.xdp != Xdp::Off.label())
    {
        let how = if path.xdp == Xdp::Native.label() {
            "received in the device's driver (XDP)".to_owned()
        } else {
            format!("received by tc, not by XDP: {}", path.xdp)
        };
        let _ = writeln!(notes, "  {}: {how}", path.name);
        if path.tx_onward + path.rx_onward != 0 {
            let _ = writeln!(
                notes,
                "  {}: past the kernel, {} packets sent and {} received",
                path.name,
                count(path.tx_onward),
                count(path.rx_onward)
            );
        }
    }
    if bond.xdp_send != Xdp::Off.label() && bond.xdp_send != Xdp::Native.label() {
        let _ = writeln!(
            notes,
            "  what LANs send is encapsulated by tc, not by XDP: {}",
            bond.xdp_send
        );
    }
    for path in bond.paths.iter().filter(|path| path.rx_contended != 0) {
        let _ = writeln!(
            notes,
            "  {}: {} packets neither put in order nor told from copies: another CPU had their strand",
            path.name, path.rx_contended
        );
    }
    for path in bond.paths.iter().filter(|path| path.tx_last_resort != 0) {
        let _ = writeln!(
            notes,
            "  {}: {} packets sent as a last resort, while it was not in use",
            path.name, path.tx_last_resort
        );
    }
    notes
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

fn fates(fates: &BTreeMap<&'static str, u64>) -> String {
    let told = |&fate: &Fate| {
        let count = fates.get(fate.label())?;
        Some(format!(
            "  {}: {count} ({})\n",
            fate.label(),
            fate.description()
        ))
    };
    Fate::ALL.iter().filter_map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{self, sample};

    fn plain(status: &Status, all: bool) -> String {
        anstream::adapter::strip_str(&render(status, all)).to_string()
    }

    /// The number that a table says of a path under a title.
    fn under<'t>(text: &'t str, path: &str, title: &str) -> &'t str {
        let mut lines = text.lines();
        let heading = lines
            .by_ref()
            .find(|line| line.starts_with("PATH") && line.contains(title))
            .unwrap();
        // Titles have single spaces inside, and two at least between.
        let titles: Vec<&str> = heading
            .split("  ")
            .map(str::trim)
            .filter(|t| !t.is_empty())
            .collect();
        let row = lines.find(|line| line.starts_with(path)).unwrap();
        let cells: Vec<&str> = row
            .split("  ")
            .map(str::trim)
            .filter(|c| !c.is_empty())
            .collect();
        cells[titles.iter().position(|&one| one == title).unwrap()]
    }

    fn of_two_seconds() -> Status {
        let before = sample::status();
        let mut now = before.clone();
        now.read_ns += 2_000_000_000;
        for (path, tx) in now.bonds[0].paths.iter_mut().zip([0, 2_500_000]) {
            path.tx_bytes += tx;
            path.rx_bytes += 250;
        }
        status::rates(&before, &mut now);
        now
    }

    #[test]
    fn everything_that_is_asked_of_a_status() {
        let text = plain(&of_two_seconds(), false);
        assert!(text.starts_with("controller: running, pid 25865\n\nnb0: up, 1 of 2 paths in use"));
        for (path, title, said) in [
            ("via-m2", "STATE", "up"),
            ("via-m2", "TX bit/s", "10.0M"),
            ("via-m2", "RX bit/s", "1.00k"),
            ("via-m2", "TX %", "100.0"),
            ("via-m2", "DUE %", "100.0"),
            ("via-m2", "RTT ms", "1.50"),
            ("via-m2", "LOST %", "50.0"),
            ("via-m2", "BACK %", "0.0"),
            ("via-m2", "REORDERED", "3"),
            ("via-m2", "TX BYTES", "1.33G"),
            ("via-m1", "STATE", "dead"),
            ("via-m1", "REASON", "probes unanswered"),
            ("via-m1", "TX bit/s", "0"),
            ("via-m1", "ROUTE", "bird"),
            ("via-m1", "OSPF", "10.65.1.1 Full cost 10"),
        ] {
            assert_eq!(
                under(&text, path, title),
                said,
                "{path} {title} in:\n{text}"
            );
        }
    }

    /// A dead path's last round trip is none of now.
    #[test]
    fn what_is_not_known_now_is_not_told() {
        let text = plain(&sample::status(), false);
        for title in ["RTT ms", "LOST %", "BACK %", "TX bit/s"] {
            assert_eq!(under(&text, "via-m1", title), "-", "{title} in:\n{text}");
        }
    }

    /// What is as wanted takes no room.
    #[test]
    fn a_path_that_carries_less_is_named() {
        let mut status = of_two_seconds();
        assert!(!plain(&status, false).contains("path MTU"));
        let bond = &mut status.bonds[0];
        bond.mtu = 1320;
        let probe = bond.paths[1].probe.as_mut().unwrap();
        (probe.path_mtu, probe.full_size) = (Some(1344), 1320);
        let text = plain(&status, false);
        assert!(text.contains("mtu 1320 of 1396"), "{text}");
        let said = "  via-m2: path MTU 1344, for packets of 1320 bytes\n";
        assert!(text.contains(said), "{text}");
        assert_eq!(text.matches("path MTU").count(), 1, "{text}");
    }

    /// With what takes most room: names of many letters, copies, large numbers.
    #[test]
    fn tables_fit_into_a_hundred_columns() {
        let mut status = of_two_seconds();
        let bond = &mut status.bonds[0];
        bond.paths[0].name = "frankfurt-1".to_owned();
        bond.paths[1].tx_copies = u64::MAX;
        bond.paths[1].rx_bytes = u64::MAX;
        bond.paths[1].neighbour.as_mut().unwrap().router_id = [110, 165, 101, 101].into();
        for line in plain(&status, false).lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }

    #[test]
    fn of_several_bonds_the_most_important() {
        let mut status = sample::status();
        status.bonds.push(sample::bond());
        status.bonds[1].name = "nb1".to_owned();
        let short = plain(&status, false);
        assert!(
            short.contains("\nnb1: up") && short.contains("DUE %"),
            "{short}"
        );
        assert!(!short.contains("OSPF"), "{short}");
        assert_eq!(plain(&status, true).matches("OSPF").count(), 2);
    }

    #[test]
    fn what_needs_attention_is_said() {
        let mut status = sample::status();
        status.controller.running = false;
        let bond = &mut status.bonds[0];
        bond.state = "last resort";
        bond.peer.as_mut().unwrap().reachable = false;
        bond.disagreements = vec!["the peer's encap is gretap"];
        let text = plain(&status, false);
        for part in [
            "controller: NOT RUNNING",
            "nb0: LAST RESORT, ",
            "UNREACHABLE",
            "the peer's encap is gretap",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }
}
