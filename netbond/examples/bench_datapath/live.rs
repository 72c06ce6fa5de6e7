//! What it takes from a driver's frame to the bond device, by XDP and by tc: frames as a driver has them
//! (BPF_F_TEST_XDP_LIVE_FRAMES) come in on a device e0, as those of a bond in `gretap` encap, and the IP stack
//! drops them as soon as they were received on nb0, as they are addressed to another host.
//!
//! By XDP: program, redirect, the veth pair, its NAPI, a packet made of the frame. By tc: a packet made of the
//! frame (in the driver an XDP program of two instructions passes it on), the program at ingress, redirect. All
//! of it on one CPU, in turn. The frames are UDP, of which GRO merges none. `gretap`, as the kernel hands the same
//! memory out again, and there both ways leave in it what was there.

use std::io::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use netbond::{netlink::Netlink, tables::Raw};
use netbond_common::abi::{BOND_ETHERNET, Bond, DRIVER_UNDERLAY, Driver};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use super::common::{BOND, Kernel, Wrap, ipv4_frame, live_context, path_id};
use super::small::Program;

/// Packets of a round, and rounds.
const PACKETS: u32 = 200_000;
const ROUNDS: usize = 21;
/// The same where the clock counts instructions.
const PACKETS_COUNTED: u32 = 6_400;
const ROUNDS_COUNTED: usize = 3;

/// The address of e0.
const UNDERLAY: [u8; 6] = [2, 0, 0, 0, 0, 0xe0];

/// Measures both ways and prints what a packet takes, in what the kernel's clock counts.
pub(crate) fn measure(unit: &str, json: bool) -> Result<()> {
    let counted = unit != "ns";
    let (packets, rounds) = if counted {
        (PACKETS_COUNTED, ROUNDS_COUNTED)
    } else {
        (PACKETS, ROUNDS)
    };
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace (root needed)")?;
    std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").ok();
    for line in [
        "link add e0 address 02:00:00:00:00:e0 type veth peer name e1",
        "link add nb0 type veth peer name nb0x",
        "link set e1 up",
        "link set e0 up",
        "link set nb0x up",
        "link set nb0 up",
    ] {
        let done = Command::new("ip").args(line.split_whitespace()).status();
        ensure!(done.context("running ip")?.success(), "ip {line}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { Netlink::open()?.take_frames("nb0") })?;
    let [device, bond, peer] = ["e0", "nb0", "nb0x"].map(if_nametoindex);
    let (device, bond, peer) = (device?, bond?, peer?);

    let mut kernel = Kernel::with_bond(&[1], None).with_xdp(1500);
    let record = kernel.bond();
    kernel.set_bond(&Bond {
        flags: BOND_ETHERNET,
        ifindex: bond,
        ..record
    });
    kernel.tables.bond_peers.set(BOND, peer, None, 0)?;
    let driver = Raw(Driver {
        address: UNDERLAY,
        roles: DRIVER_UNDERLAY,
    });
    kernel.tables.drivers.insert(device, driver, 0)?;
    kernel.attach_ingress("e0");
    let pass = Program::passing()?;

    let mut rows = Vec::new();
    for bytes in [64, 1400] {
        let mut inner = ipv4_frame(bytes);
        // Another host's.
        inner[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x77]);
        let wrap = Wrap {
            gre_protocol: 0x6558,
            ..Wrap::on(0)
        };
        let mut frame = wrap.frame(&[&[0; 14], inner.as_slice()].concat());
        frame[..6].copy_from_slice(&UNDERLAY);
        let mut costs = [Vec::new(), Vec::new()];
        // In turn, so that a busy moment of the machine falls on both alike. The first round warms up.
        for round in 0..=rounds {
            for (by, costs) in costs.iter_mut().enumerate() {
                let before = counted_on(&kernel)?;
                let total = if by == 0 {
                    kernel.run_live(&frame, device, packets)
                } else {
                    pass.run_live(&frame, &live_context(&frame, device), packets)?
                };
                let after = counted_on(&kernel)?;
                let came = (after.0 - before.0, after.1 - before.1);
                let all = u64::from(packets);
                // nb0 itself counts those of a driver alone.
                let expected = (all, if by == 0 { all } else { 0 });
                ensure!(came == expected, "of {all} packets {came:?} came");
                if round != 0 {
                    costs.push(total as f64 / f64::from(packets));
                }
            }
        }
        for costs in &mut costs {
            costs.sort_by(f64::total_cmp);
        }
        let median = |costs: &[f64]| costs[costs.len() / 2];
        let [xdp, tc] = [&costs[0], &costs[1]].map(|costs| median(costs));
        rows.push(json!({
            "bytes": bytes, "packets": packets, "rounds": rounds, "unit": unit,
            "xdp": xdp, "tc": tc, "xdp_min": costs[0][0], "tc_min": costs[1][0], "ratio": tc / xdp,
        }));
    }
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &rows)?;
        writeln!(out)?;
        return Ok(());
    }
    let host = nix::sys::utsname::uname()?;
    writeln!(
        out,
        "Linux {}, {}; {unit} a packet, median (least) of {rounds} rounds of {packets} packets\n",
        host.release().to_string_lossy(),
        super::cpu(),
    )?;
    writeln!(out, "{:>7}{:>16}{:>16}{:>8}", "BYTES", "XDP", "TC", "RATIO")?;
    for row in &rows {
        let cost = |way: &str| {
            let least = format!("{way}_min");
            let number = |key: &str| row[key].as_f64().unwrap_or_default();
            format!("{:.0} ({:.0})", number(way), number(&least))
        };
        writeln!(
            out,
            "{:>7}{:>16}{:>16}{:>8.2}",
            row["bytes"].to_string(),
            cost("xdp"),
            cost("tc"),
            row["ratio"].as_f64().unwrap_or_default(),
        )?;
    }
    Ok(())
}

/// Packets that the path counted, and that were received on nb0.
fn counted_on(kernel: &Kernel) -> Result<(u64, u64)> {
    let devices = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix("nb0:"));
    // Bytes, packets, errors, dropped ... of what was received.
    let packets = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    let path = kernel.tables.path_stats(path_id(0))?;
    Ok((path.rx_packets, packets.context("no nb0")?))
}
