//! Full-size packets over the kernel's WireGuard on an underlay of 1500 bytes: they fit, and nothing
//! outside is fragmented, in either direction.
//!
//! WireGuard pads by the MTU of the route that the packet came by (`calculate_skb_padding`). That of
//! the bond is less than its own, so a packet that kept it would be padded beyond the underlay's.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use common::{A, B, SOON, status};
use netbond_lab::{Lab, Router, Topology, WireGuard, traffic, wait_for};

const A6: &str = "fd67::1";
const B6: &str = "fd67::2";

/// The largest MTU of a WireGuard device over IPv4 on 1500 bytes: 20 IPv4, 8 UDP, 32 WireGuard.
const WIREGUARD_MTU: u16 = 1500 - 60;

fn up(name: &str, encap: &str) -> Lab {
    let mut topology = Topology::reference();
    for link in &mut topology.links {
        link.mtu = WIREGUARD_MTU;
    }
    for bond in &mut topology.bonds {
        encap.clone_into(&mut bond.encap);
    }
    let lab = Lab::up(name, &topology).unwrap();
    assert_eq!(
        lab.wireguard(),
        WireGuard::Kernel,
        "only the kernel's WireGuard pads so: cargo xtask test vm"
    );
    lab
}

/// Fragments that a router made or received so far.
fn fragments(router: &Router) -> u64 {
    let text = router.run(&["cat", "/proc/net/snmp"]).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Ip: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    names
        .split_whitespace()
        .zip(values.split_whitespace())
        .filter(|(name, _)| ["FragCreates", "ReasmReqds"].contains(name))
        .map(|(_, value)| value.parse::<u64>().unwrap())
        .sum()
}

/// Pings with packets of just `size` bytes, which must not be fragmented.
fn ping_full(from: &Router, to: &str, size: u32) -> bool {
    let headers = if to.contains(':') { 48 } else { 28 };
    let payload = (size - headers).to_string();
    let ping = [
        "ping", "-n", "-q", "-M", "do", "-c", "10", "-i", "0.05", "-s", &payload, to,
    ];
    from.run(&ping)
        .is_ok_and(|text| text.contains(" 0% packet loss"))
}

fn full_size_packets_fit(encap: &str, mtu: u32) {
    let lab = up(&format!("mtu-{encap}"), encap);
    let (a, b) = (lab.router("A"), lab.router("B"));
    for router in [a, b] {
        assert_eq!(status(router)["bonds"][0]["mtu"], mtu);
    }
    let count = || lab.routers().map(fragments).sum::<u64>();
    let before = count();
    for (from, to) in [(a, B), (b, A), (a, B6), (b, A6)] {
        // The neighbour's address may have to be learned first.
        wait_for(&format!("{mtu} bytes to {to}"), SOON, || {
            Ok(ping_full(from, to, mtu).then_some(()))
        })
        .unwrap();
        assert!(!ping_full(from, to, mtu + 1), "{} bytes to {to}", mtu + 1);
    }
    // Super-packets are cut by WireGuard, and padded there.
    for (from, to, address) in [(a, b, B), (b, a, A), (a, b, B6), (b, a, A6)] {
        let tcp = traffic::tcp_megabyte(from, to, address, 1).unwrap();
        assert!(tcp.mbit_per_s > 1.0, "{tcp:?}");
    }
    assert_eq!(count(), before, "fragments of outer packets");
}

#[test]
#[ignore = "needs the kernel's WireGuard: cargo xtask test vm"]
fn gre_carries_1416_bytes_without_fragments() {
    full_size_packets_fit("gre", 1416);
}

#[test]
#[ignore = "needs the kernel's WireGuard: cargo xtask test vm"]
fn gretap_carries_1402_bytes_without_fragments() {
    full_size_packets_fit("gretap", 1402);
}
