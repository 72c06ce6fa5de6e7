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

use std::net::IpAddr;

use common::{A, B, SOON, status};
use netbond_lab::{Lab, Router, Topology, WireGuard, traffic, wait_for};

const A6: &str = "fd67::1";
const B6: &str = "fd67::2";

fn up(name: &str, mut topology: Topology) -> Lab {
    for link in &mut topology.links {
        // The largest MTU of a WireGuard device on 1500 bytes: IP, 8 UDP, 32 WireGuard.
        let ip = match link.ends[0].underlay {
            IpAddr::V4(_) => 20,
            IpAddr::V6(_) => 40,
        };
        link.mtu = 1500 - ip - 40;
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
    let six = router.run(&["cat", "/proc/net/snmp6"]).unwrap();
    let six = six.lines().filter_map(|line| line.split_once(' '));
    let six = six
        .filter(|(name, _)| ["Ip6FragCreates", "Ip6ReasmReqds"].contains(name))
        .map(|(_, value)| value.trim().parse::<u64>().unwrap())
        .sum::<u64>();
    let text = router.run(&["cat", "/proc/net/snmp"]).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Ip: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    names
        .split_whitespace()
        .zip(values.split_whitespace())
        .filter(|(name, _)| ["FragCreates", "ReasmReqds"].contains(name))
        .map(|(_, value)| value.parse::<u64>().unwrap())
        .sum::<u64>()
        + six
}

/// Pings with packets of just `size` bytes, which must not be fragmented.
fn ping_full(from: &Router, to: &str, size: u32) -> bool {
    let headers = if to.contains(':') { 48 } else { 28 };
    let payload = (size - headers).to_string();
    let ping = [
        "ping", "-n", "-q", "-M", "do", "-c", "10", "-i", "0.05", "-W", "1", "-s", &payload, to,
    ];
    from.run(&ping)
        .is_ok_and(|text| text.contains(" 0% packet loss"))
}

fn full_size_packets_fit(name: &str, topology: Topology, mtu: u32) {
    let lab = up(name, topology);
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
    // Less than an IPv6 header, which older kernels leave behind one.
    for (from, to) in [(a, B), (b, A)] {
        assert!(ping_full(from, to, 28), "28 bytes to {to}");
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
    full_size_packets_fit("mtu-gre", Topology::reference(), 1416);
}

#[test]
#[ignore = "needs the kernel's WireGuard: cargo xtask test vm"]
fn gretap_carries_1402_bytes_without_fragments() {
    let topology = Topology::reference().with_encap("gretap");
    full_size_packets_fit("mtu-gretap", topology, 1402);
}

#[test]
#[ignore = "needs the kernel's WireGuard: cargo xtask test vm"]
fn gre_over_ipv6_carries_1396_bytes_without_fragments() {
    let topology = Topology::reference().over_ipv6(&[0, 1]);
    full_size_packets_fit("mtu-gre-v6", topology, 1396);
}

/// And beside it a path over IPv4.
#[test]
#[ignore = "needs the kernel's WireGuard: cargo xtask test vm"]
fn gretap_over_ipv6_carries_1382_bytes_without_fragments() {
    let topology = Topology::reference().with_encap("gretap").over_ipv6(&[1]);
    full_size_packets_fit("mtu-gretap-v6", topology, 1382);
}

/// WireGuard's own packets over IPv6, too.
#[test]
#[ignore = "needs the kernel's WireGuard: cargo xtask test vm"]
fn gre_in_wireguard_all_over_ipv6_carries_1376_bytes_without_fragments() {
    let topology = Topology::reference().over_ipv6(&[0, 1]);
    full_size_packets_fit("mtu-all-v6", topology.with_ipv6_underlay(), 1376);
}
