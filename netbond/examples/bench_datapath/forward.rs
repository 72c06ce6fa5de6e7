//! What a router takes to forward a packet between a LAN and the bond, on veths: a generator's frames come out of
//! the far end of one, and leave by another one, whose far end drops them.
//!
//! The generator is a program of XDP, run by BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES, that hands frames to
//! the far end's driver. Into the bond by XDP: program, redirect. By tc: GRO, a packet made of the frame, the IP
//! stack's forwarding, the program at the bond device's egress, redirect. By the kernel, where it has the modules: the
//! same with bonding's balance-rr over two gretap devices. Out of the bond: likewise. All of it on one CPU, in turn.
//! The far end is the same for all: it polls (GRO), makes a packet of what comes, or takes it, and drops it as another
//! host's. What generator, drivers and far end take is in each figure; the column FLOOR is that and a program of
//! four instructions that redirects, changing nothing.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use netbond::tables::Raw;
use netbond_common::{
    abi::{
        BOND_XDP_ONWARD, BOND_XDP_SEND, Bond, DRIVER_LAN, DRIVER_UNDERLAY, Driver, PATH_NEIGHBOUR,
        PATH_USABLE, Path, TunnelKey,
    },
    ipv4,
};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use super::common::{BOND, Kernel, MAC, Wrap, ipv4_frame, live_context, path_id};
use super::small::Program;

/// Packets of a round, and rounds.
const PACKETS: u32 = 100_000;
const ROUNDS: usize = 15;
/// The same where the clock counts instructions.
const PACKETS_COUNTED: u32 = 3_200;
const ROUNDS_COUNTED: usize = 3;

/// A pair of veths: the router's end and its address.
struct Port {
    name: &'static str,
    mac: [u8; 6],
}

const fn port(name: &'static str, number: u8) -> Port {
    Port {
        name,
        mac: [2, 0, 0, 0, 0, number],
    }
}

/// Those between which netbond's program forwards, netbond and the stack, the kernel alone, and the small program.
const XDP: [Port; 2] = [port("lan-x", 1), port("wan-x", 2)];
const TC: [Port; 2] = [port("lan-t", 3), port("wan-t", 4)];
const RECIPE: [Port; 2] = [port("lan-k", 5), port("wan-k", 6)];
const FLOOR: [Port; 2] = [port("lan-f", 7), port("wan-f", 8)];
/// Whoever is behind a far end: not the far end itself.
const BEHIND: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// The address of bond0.
const BONDING: [u8; 6] = [2, 0, 0, 0, 2, 1];

impl Port {
    fn far(&self) -> String {
        format!("{}-far", self.name)
    }

    fn ifindex(&self) -> Result<u32> {
        Ok(if_nametoindex(self.name)?)
    }

    fn up(&self) -> Result<()> {
        let (name, far, mac) = (self.name, self.far(), text(self.mac));
        ip(&format!(
            "link add {name} address {mac} type veth peer name {far}"
        ))?;
        for end in [name, &far] {
            ip(&format!("link set {end} up"))?;
        }
        for end in [name, &far] {
            // It polls, and so takes what drivers send.
            run("ethtool", &format!("-K {end} gro on"))?;
        }
        Ok(())
    }

    /// Packets that came out at the far end.
    fn came(&self) -> Result<u64> {
        let devices = std::fs::read_to_string("/proc/thread-self/net/dev")?;
        let start = format!("{}:", self.far());
        let line = devices
            .lines()
            .find_map(|line| line.trim().strip_prefix(&start));
        // Bytes, packets ... of what was received.
        let packets = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        packets.with_context(|| format!("no {}", self.far()))
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn ip(words: &str) -> Result<()> {
    run("ip", words)
}

fn run(program: &str, words: &str) -> Result<()> {
    let done = Command::new(program)
        .args(words.split_whitespace())
        .status();
    let done = done.with_context(|| format!("running {program}"))?;
    ensure!(done.success(), "{program} {words}");
    Ok(())
}

/// A way through the router.
struct Way {
    system: &'static str,
    generator: Program,
    /// What comes in, and out of which device.
    frame: Vec<u8>,
    from: u32,
    to: &'static Port,
}

impl Way {
    /// From one port to another; the first bytes of a frame, so many, are changed on the way.
    fn new(
        system: &'static str,
        [from, to]: [&'static Port; 2],
        frame: Vec<u8>,
        changed: usize,
    ) -> Result<Self> {
        let far = if_nametoindex(from.far().as_str())?;
        Ok(Self {
            system,
            generator: Program::generating(&frame[..changed], far)?,
            frame,
            from: far,
            to,
        })
    }

    /// Has so many packets forwarded; returns what that took.
    fn run(&self, packets: u32) -> Result<u64> {
        let before = self.to.came()?;
        let context = live_context(&self.frame, self.from);
        let total = self.generator.run_live(&self.frame, &context, packets)?;
        let came = self.to.came()? - before;
        ensure!(
            came >= u64::from(packets),
            "{}: of {packets} packets {came} came",
            self.system
        );
        Ok(total)
    }
}

/// Measures all ways and prints what a packet takes, in what the kernel's clock counts.
pub(crate) fn measure(unit: &str, json: bool) -> Result<()> {
    let (packets, rounds) = if unit == "ns" {
        (PACKETS, ROUNDS)
    } else {
        (PACKETS_COUNTED, ROUNDS_COUNTED)
    };
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace (root needed)")?;
    std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").ok();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let mut by_xdp = netbond_router(&XDP, "nb0", 10)?;
    by_xdp.never_the_kernels_turn();
    for port in &XDP {
        by_xdp.attach_xdp(port.ifindex()?);
    }
    let mut by_tc = netbond_router(&TC, "nb1", 11)?;
    by_tc.attach_egress("nb1");
    by_tc.attach_ingress(TC[1].name);
    let recipe = kernel_router();
    if let Err(error) = &recipe {
        eprintln!("without bonding over gretap: {error:#}");
    }
    let _redirecting: [(Program, OwnedFd); 2] = small_router()?;
    let mut rows = Vec::new();
    for (direction, bytes) in [("in", 64), ("in", 1400), ("out", 64), ("out", 1400)] {
        let ways = if direction == "in" {
            into_bond(bytes, recipe.is_ok())?
        } else {
            out_of_bond(bytes, recipe.is_ok())?
        };
        let mut costs: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
        // In turn, so that a busy moment of the machine falls on all alike. The first round warms up.
        for round in 0..=rounds {
            for (way, costs) in ways.iter().zip(&mut costs) {
                let total = way.run(packets)?;
                if round != 0 {
                    costs.push(total as f64 / f64::from(packets));
                }
            }
        }
        for costs in &mut costs {
            costs.sort_by(f64::total_cmp);
        }
        let of = |system: &str| {
            let at = ways.iter().position(|way| way.system == system)?;
            Some(costs[at][costs[at].len() / 2])
        };
        let xdp = of("xdp").context("no way by XDP")?;
        let floor = of("floor").context("no floor")?;
        // Of what the router itself takes.
        let own = |system: &str| Some((of(system)? - floor) / (xdp - floor));
        rows.push(json!({
            "way": direction, "bytes": bytes, "packets": packets, "rounds": rounds, "unit": unit,
            "floor": floor, "xdp": xdp, "tc": of("tc"), "kernel": of("kernel"),
            "tc_to_xdp": of("tc").map(|tc| tc / xdp),
            "kernel_to_xdp": of("kernel").map(|kernel| kernel / xdp),
            "tc_to_xdp_above_floor": own("tc"), "kernel_to_xdp_above_floor": own("kernel"),
        }));
    }
    print(&rows, unit, json)
}

fn print(rows: &[serde_json::Value], unit: &str, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, rows)?;
        writeln!(out)?;
        return Ok(());
    }
    let host = nix::sys::utsname::uname()?;
    writeln!(
        out,
        "Linux {}, {}; {unit} a packet, median of {} rounds of {} packets\n",
        host.release().to_string_lossy(),
        super::cpu(),
        rows[0]["rounds"],
        rows[0]["packets"],
    )?;
    writeln!(
        out,
        "{:<5}{:>7}{:>9}{:>9}{:>9}{:>9}{:>9}{:>13}{:>13}{:>17}",
        "BOND",
        "BYTES",
        "FLOOR",
        "XDP",
        "TC",
        "KERNEL",
        "TC/XDP",
        "ABOVE FLOOR",
        "KERNEL/XDP",
        "ABOVE FLOOR"
    )?;
    for row in rows {
        let number = |key: &str, digits: usize| {
            row[key]
                .as_f64()
                .map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
        };
        writeln!(
            out,
            "{:<5}{:>7}{:>9}{:>9}{:>9}{:>9}{:>9}{:>13}{:>13}{:>17}",
            row["way"].as_str().unwrap_or_default(),
            row["bytes"].to_string(),
            number("floor", 0),
            number("xdp", 0),
            number("tc", 0),
            number("kernel", 0),
            number("tc_to_xdp", 2),
            number("tc_to_xdp_above_floor", 2),
            number("kernel_to_xdp", 2),
            number("kernel_to_xdp_above_floor", 2),
        )?;
    }
    Ok(())
}

/// A bond of one path between a LAN and an underlay, whose networks have this number.
fn netbond_router(ports: &[Port; 2], bond: &str, number: u8) -> Result<Kernel> {
    let [lan, wan] = ports;
    for port in ports {
        port.up()?;
    }
    let (mac, behind) = (text(MAC), text(BEHIND));
    for line in [
        format!("link add {bond} address {mac} type veth peer name {bond}x"),
        format!("link set {bond} arp off"),
        format!("link set {bond}x up"),
        format!("link set {bond} up"),
        format!("addr add 192.0.{number}.254/24 dev {}", lan.name),
        format!(
            "neigh add 192.0.{number}.1 lladdr {behind} dev {} nud permanent",
            lan.name
        ),
        format!("addr add 10.66.{number}.2/24 dev {}", wan.name),
        format!(
            "neigh add 10.66.{number}.6 lladdr {behind} dev {} nud permanent",
            wan.name
        ),
        format!("route add 198.51.{number}.0/24 dev {bond}"),
    ] {
        ip(&line)?;
    }
    let (underlay, bond) = (wan.ifindex()?, if_nametoindex(bond)?);
    let mut kernel = Kernel::with_bond(&[1], None).with_xdp(1500);
    let record = kernel.bond();
    kernel.set_bond(&Bond {
        ifindex: bond,
        xdp: BOND_XDP_ONWARD | BOND_XDP_SEND,
        ..record
    });
    let (local, remote) = ([10, 66, number, 2], [10, 66, number, 6]);
    let path = Path {
        flags: PATH_USABLE | PATH_NEIGHBOUR,
        ifindex: underlay,
        sum: ipv4::constant_sum(local, remote),
        key: [0; 4],
        next_hop: IpAddr::from(remote).into(),
        local: ipv4::mapped(local),
        remote: ipv4::mapped(remote),
    };
    kernel.set_path(0, &path);
    let tunnel = TunnelKey {
        source: path.remote,
        destination: path.local,
        key: [0; 4],
        has_key: 0,
    };
    let tables = &mut kernel.tables;
    tables.tunnels.insert(Raw(tunnel), path_id(0), 0)?;
    tables.bond_by_ifindex.insert(bond, BOND, 0)?;
    for (port, roles) in [(lan, DRIVER_LAN), (wan, DRIVER_UNDERLAY)] {
        let (ifindex, address) = (port.ifindex()?, port.mac);
        let driver = Raw(Driver { address, roles });
        tables.drivers.insert(ifindex, driver, 0)?;
        tables.ports.insert(ifindex, ifindex, None, 0)?;
    }
    Ok(kernel)
}

/// Two programs that redirect, each to the other one's device.
fn small_router() -> Result<[(Program, OwnedFd); 2]> {
    for port in &FLOOR {
        port.up()?;
    }
    let [a, b] = [FLOOR[0].ifindex()?, FLOOR[1].ifindex()?];
    let attach = |from, to| -> Result<(Program, OwnedFd)> {
        let program = Program::redirecting(to)?;
        let link = program.attach(from)?;
        Ok((program, link))
    };
    Ok([attach(a, b)?, attach(b, a)?])
}

/// The recipe: bonding's balance-rr over two gretap devices.
fn kernel_router() -> Result<()> {
    let quietly = |words: &str| -> Result<()> {
        let done = Command::new("ip")
            .args(words.split_whitespace())
            .stderr(Stdio::null())
            .status()?;
        ensure!(done.success(), "the kernel does not know `ip {words}`");
        Ok(())
    };
    quietly("link add g0 type gretap local 10.66.12.2 remote 10.66.12.6")?;
    quietly("link add g1 type gretap local 10.66.12.2 remote 10.66.12.10")?;
    quietly("link add bond0 type bond mode balance-rr")?;
    for port in &RECIPE {
        port.up()?;
    }
    let (behind, bonding) = (text(BEHIND), text(BONDING));
    for line in [
        "addr add 192.0.12.254/24 dev lan-k".to_owned(),
        format!("neigh add 192.0.12.1 lladdr {behind} dev lan-k nud permanent"),
        "addr add 10.66.12.2/24 dev wan-k".to_owned(),
        format!("neigh add 10.66.12.6 lladdr {behind} dev wan-k nud permanent"),
        format!("neigh add 10.66.12.10 lladdr {behind} dev wan-k nud permanent"),
        "link set g0 master bond0".to_owned(),
        "link set g1 master bond0".to_owned(),
        format!("link set bond0 address {bonding}"),
        "link set g0 up".to_owned(),
        "link set g1 up".to_owned(),
        "link set bond0 up".to_owned(),
        "addr add 10.71.0.1/24 dev bond0".to_owned(),
        format!("neigh add 10.71.0.2 lladdr {behind} dev bond0 nud permanent"),
        "route add 198.51.12.0/24 via 10.71.0.2".to_owned(),
    ] {
        ip(&line)?;
    }
    Ok(())
}

/// A frame to the router; the inner packet is from `source` to `destination`.
fn frame(to: [u8; 6], bytes: usize, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut frame = ipv4_frame(bytes);
    frame[..6].copy_from_slice(&to);
    frame[26..30].copy_from_slice(&source);
    frame[30..34].copy_from_slice(&destination);
    sum_up(&mut frame);
    frame
}

/// Of a frame to the bond, an Ethernet and an IPv4 header are changed; so many bytes are whole words.
const OF_PLAIN: usize = 36;
/// Of one from the bond, those around the packet as well.
const OF_WRAPPED: usize = 72;

fn into_bond(bytes: usize, recipe: bool) -> Result<Vec<Way>> {
    let mut ways = Vec::new();
    for (system, [lan, wan], number) in
        [("xdp", &XDP, 10), ("tc", &TC, 11), ("kernel", &RECIPE, 12)]
    {
        if system != "kernel" || recipe {
            let sent = frame(lan.mac, bytes, [192, 0, number, 1], [198, 51, number, 1]);
            ways.push(Way::new(system, [lan, wan], sent, OF_PLAIN)?);
        }
    }
    let [lan, wan] = &FLOOR;
    let sent = frame(lan.mac, bytes, [192, 0, 13, 1], [198, 51, 13, 1]);
    ways.push(Way::new("floor", [lan, wan], sent, OF_PLAIN)?);
    Ok(ways)
}

fn out_of_bond(bytes: usize, recipe: bool) -> Result<Vec<Way>> {
    let mut ways = Vec::new();
    for (system, [lan, wan], number) in [("xdp", &XDP, 10), ("tc", &TC, 11), ("floor", &FLOOR, 13)]
    {
        let inner = frame([0; 6], bytes, [198, 51, number, 1], [192, 0, number, 1]);
        let received = from_peer(wan.mac, number, 0x0800, &inner);
        ways.push(Way::new(system, [wan, lan], received, OF_WRAPPED)?);
    }
    if recipe {
        let [lan, wan] = &RECIPE;
        let inner = frame(BONDING, bytes, [198, 51, 12, 1], [192, 0, 12, 1]);
        // A frame within: the wrapper leaves out what comes before 14 bytes.
        let framed = [&[0; 14], inner.as_slice()].concat();
        let received = from_peer(wan.mac, 12, 0x6558, &framed);
        ways.push(Way::new("kernel", [wan, lan], received, OF_WRAPPED)?);
    }
    Ok(ways)
}

/// What the peer sends to the underlay with this number.
fn from_peer(to: [u8; 6], number: u8, gre_protocol: u16, inner: &[u8]) -> Vec<u8> {
    let wrap = Wrap {
        gre_protocol,
        ..Wrap::on(0)
    };
    let mut received = wrap.frame(inner);
    received[..6].copy_from_slice(&to);
    received[26..34].copy_from_slice(&[10, 66, number, 6, 10, 66, number, 2]);
    sum_up(&mut received);
    received
}

/// Writes the checksum of the IPv4 header behind the Ethernet header.
fn sum_up(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let check = etherparse::checksum::Sum16BitWords::new()
        .add_slice(&frame[14..34])
        .ones_complement();
    frame[24..26].copy_from_slice(&check.to_ne_bytes());
}
