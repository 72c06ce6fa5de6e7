//! `cargo xtask bench datapath`: what a packet costs in the programs, and what the verifier made of
//! them.
//!
//! Each figure is from BPF_PROG_TEST_RUN, one packet a run, as a program that lengthens a packet
//! cannot be repeated on it. So each includes two readings of the kernel's clock and starts from the
//! caches that a system call leaves: the `foreign` row, a program that returns after its first
//! comparison, shows how much that is. The `fresh` rows are `egress` with the freshness check: a path
//! that is probed, with a proof of life that is not too old. The `frame` rows are `gretap` encap. The last
//! rows are the first ones beside so many other bonds of eight paths each.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "bench_datapath/forward.rs"]
pub(crate) mod forward;
#[path = "bench_datapath/live.rs"]
pub(crate) mod live;
#[path = "bench_datapath/small.rs"]
mod small;

use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};
use common::{
    Kernel, TC_ACT_REDIRECT, TC_ACT_UNSPEC, Wrap, XDP_PASS, XDP_REDIRECT, ipv4_frame, ipv6_frame,
    path_id,
};
use netbond::loader::PROGRAMS;
use netbond_common::{
    abi, gre,
    names::{feature, program},
};
use serde_json::json;

/// Runs of each row.
const RUNS: usize = 20_000;
/// The same where the clock counts instructions: nothing disturbs, and all takes a hundred times as long.
const RUNS_COUNTED: usize = 200;

/// What is measured: a program on a frame.
struct Row {
    name: &'static str,
    program: &'static str,
    bytes: usize,
    frame: Vec<u8>,
    action: u32,
    bond: Bond,
}

/// What bond it is done on.
#[derive(Clone, Copy)]
enum Bond {
    Plain,
    /// The paths' proofs of life are looked at.
    Fresh,
    /// In `gretap` encap.
    Frames,
    /// Taking turns still, in the program of bonds that ask for all that there is.
    Modes,
    /// Beside so many others.
    Beside(u32),
}

/// Numbers of other bonds: the most are a thousand and some.
const OTHERS: [u32; 2] = [100, 1_000];

impl Bond {
    /// How many bonds there are besides.
    const fn others(self) -> u32 {
        match self {
            Self::Plain | Self::Fresh | Self::Frames | Self::Modes => 0,
            Self::Beside(others) => others,
        }
    }
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let foreign = ipv6_frame(64);
    rows.push(Row {
        name: "foreign",
        program: program::INGRESS_L2,
        bytes: 64,
        frame: foreign,
        action: TC_ACT_UNSPEC,
        bond: Bond::Plain,
    });
    for bytes in [64, 512, 1400] {
        let inner = ipv4_frame(bytes);
        let received = Wrap::on(0).frame(&inner);
        let framed = Wrap {
            gre_protocol: u16::from_be_bytes(gre::ETHERNET),
            ..Wrap::on(0)
        }
        .frame(&[&[0; 14], inner.as_slice()].concat());
        let row = |name, program, frame, bond| Row {
            name,
            program,
            bytes,
            frame,
            action: TC_ACT_REDIRECT,
            bond,
        };
        let (egress, ingress) = (program::EGRESS, program::INGRESS_L2);
        rows.push(row("egress", egress, inner.clone(), Bond::Plain));
        rows.push(row("fresh", egress, inner.clone(), Bond::Fresh));
        let modes = program::EGRESS_MODES;
        rows.push(row("modes", modes, inner.clone(), Bond::Modes));
        rows.push(row("ingress", ingress, received.clone(), Bond::Plain));
        rows.push(row("frame out", egress, inner, Bond::Frames));
        rows.push(row("frame in", ingress, framed.clone(), Bond::Frames));
        let by_xdp = |name, frame, action, bond| Row {
            action,
            ..row(name, program::XDP, frame, bond)
        };
        let mut left = received.clone();
        // The first fragment.
        left[20] = 0x20;
        rows.push(by_xdp("xdp", received, XDP_REDIRECT, Bond::Plain));
        rows.push(by_xdp("xdp frame", framed, XDP_REDIRECT, Bond::Frames));
        rows.push(by_xdp("xdp left", left, XDP_PASS, Bond::Plain));
    }
    for others in OTHERS {
        let bytes = 64;
        let inner = ipv4_frame(bytes);
        let received = Wrap::on(0).frame(&inner);
        for (name, program, frame) in [
            ("egress", program::EGRESS, inner),
            ("ingress", program::INGRESS_L2, received),
        ] {
            rows.push(Row {
                name,
                program,
                bytes,
                frame,
                action: TC_ACT_REDIRECT,
                bond: Bond::Beside(others),
            });
        }
    }
    rows
}

pub(crate) fn main() -> Result<()> {
    let asked = |option: &str| std::env::args().any(|arg| arg == option);
    let (runs, unit) = if asked("--counted") {
        (RUNS_COUNTED, "instructions")
    } else {
        (RUNS, "ns")
    };
    if asked("--live") {
        return live::measure(unit, asked("--json"));
    }
    if asked("--forward") {
        return forward::measure(unit, asked("--json"));
    }
    measure(runs, unit, asked("--json"))
}

/// Measures each row so often, in what the kernel's clock counts, and prints all of it.
fn measure(runs: usize, unit: &str, json: bool) -> Result<()> {
    let mut kernel = Kernel::with_bond(&[1, 1], None).with_xdp(1500);
    let mut probed = Kernel::with_bond(&[1, 1], None);
    for slot in 0..2 {
        // Any proof is fresh, and none is from before the clock began.
        probed.tables.limits.set(path_id(slot), u64::MAX, 0)?;
    }
    let mut framed = Kernel::with_bond(&[1, 1], None).with_xdp(1500);
    let bond = framed.bond();
    framed.set_bond(&abi::Bond {
        flags: abi::BOND_ETHERNET,
        ..bond
    });
    let mut all = Kernel::with_features(&[1, 1], None, feature::ALL).with_xdp(1500);
    let mut crowded = OTHERS.map(|others| {
        let mut kernel = Kernel::with_bond(&[1, 1], None);
        kernel.add_bonds(others);
        (others, kernel)
    });
    let rows = rows();
    let mut times = vec![Vec::with_capacity(runs); rows.len()];
    // In turn, so that a busy moment of the machine falls on all rows alike.
    for _ in 0..runs {
        for (row, times) in rows.iter().zip(&mut times) {
            let kernel = match row.bond {
                Bond::Plain => &mut kernel,
                Bond::Fresh => &mut probed,
                Bond::Frames => &mut framed,
                Bond::Modes => &mut all,
                Bond::Beside(others) => {
                    let found = crowded.iter_mut().find(|(count, _)| *count == others);
                    &mut found.context("no such bonds")?.1
                }
            };
            let ran = if row.program == program::XDP {
                kernel.xdp(&row.frame)
            } else {
                kernel.run(row.program, &row.frame, None)
            };
            ensure!(
                ran.action == row.action,
                "{}: action {}",
                row.name,
                ran.action
            );
            times.push(ran.ns);
        }
    }
    let mut datapath = Vec::new();
    for (row, times) in rows.iter().zip(&mut times) {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        datapath.push(json!({
            "row": row.name, "bytes": row.bytes, "other_bonds": row.bond.others(), "runs": times.len(),
            unit: {"min": at(0.0), "median": at(0.5), "p90": at(0.9), "p99": at(0.99)},
        }));
    }
    let mut verifier = Vec::new();
    for name in PROGRAMS {
        // What a bond of no special mode needs, and what takes all of them.
        let info = kernel.info(name).or_else(|_| all.info(name))?;
        verifier.push(json!({
            "program": name,
            "instructions_processed": info.verified_instruction_count(),
            "translated_bytes": info.size_translated(),
            "jited_bytes": info.size_jitted(),
        }));
    }
    let host = nix::sys::utsname::uname()?;
    let kernel = host.release().to_string_lossy().into_owned();
    let mut out = std::io::stdout().lock();
    if json {
        let all =
            json!({"kernel": kernel, "cpu": cpu(), "datapath": datapath, "verifier": verifier});
        serde_json::to_writer_pretty(&mut out, &all)?;
        writeln!(out)?;
        return Ok(());
    }
    writeln!(
        out,
        "Linux {kernel}, {}; {unit}, {runs} runs a row, one packet each\n",
        cpu()
    )?;
    writeln!(
        out,
        "{:<10}{:>7}{:>13}{:>10}{:>10}{:>10}{:>10}",
        "", "BYTES", "OTHER BONDS", "MIN", "MEDIAN", "P90", "P99"
    )?;
    for row in &datapath {
        let cost = &row[unit];
        writeln!(
            out,
            "{:<10}{:>7}{:>13}{:>10}{:>10}{:>10}{:>10}",
            row["row"].as_str().unwrap_or_default(),
            row["bytes"].to_string(),
            row["other_bonds"].to_string(),
            cost["min"].to_string(),
            cost["median"].to_string(),
            cost["p90"].to_string(),
            cost["p99"].to_string(),
        )?;
    }
    writeln!(
        out,
        "\n{:<16}{:>24}{:>14}{:>14}",
        "PROGRAM", "VERIFIER INSTRUCTIONS", "BPF BYTES", "JITED BYTES"
    )?;
    for row in &verifier {
        writeln!(
            out,
            "{:<16}{:>24}{:>14}{:>14}",
            row["program"].as_str().unwrap_or_default(),
            row["instructions_processed"].to_string(),
            row["translated_bytes"].to_string(),
            row["jited_bytes"].to_string(),
        )?;
    }
    Ok(())
}

/// The processor's name.
fn cpu() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| "unknown processor".to_owned())
}
