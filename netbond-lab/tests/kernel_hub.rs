//! What comes out of one bond and goes into another, as in the middle of a star, over the kernel's
//! WireGuard. Its receive offload (GRO) makes super-packets of tunnelled TCP, which say of themselves
//! that they are inside a tunnel long after they left it.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use common::{SOON, reconfigure, second_bond, status};
use netbond_lab::{Lab, Topology, wait_for};
use serde_json::Value;

/// TCP between two hosts behind A by way of B, which forwards what comes out of nb0 into nb1. Each bond may
/// have paths over IPv6.
fn a_stream_passes_two_bonds(encap: &str, over_ipv6: &[usize]) {
    let name = format!("hub-{encap}-{}", over_ipv6.len());
    let lab = Lab::up(&name, &Topology::reference().over_ipv6(over_ipv6)).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    // A second bond between them.
    for router in [a, b] {
        let config = router.default_config().unwrap();
        let second = second_bond(&config).replace("\"gre\"", &format!("{encap:?}"));
        reconfigure(router, &format!("{config}\n{second}"));
        router.wait_netbond(SOON).unwrap();
    }
    // Hosts of their own behind A, so that nothing is A's own.
    for (host, network) in [("server", 1), ("client", 2)] {
        let commands = format!(
            "ip netns add {host} && ip link add {host} type veth peer name e netns {host} && \
             ip addr add 10.70.{network}.1/24 dev {host} && ip link set {host} up && \
             ip -n {host} addr add 10.70.{network}.2/24 dev e && ip -n {host} link set e up && \
             ip -n {host} route add default via 10.70.{network}.1"
        );
        a.run(&["bash", "-c", &commands]).unwrap();
    }
    // To the server by way of B, which sends it back over the other bond.
    let way = "ip rule add iif client to 10.70.1.0/24 lookup 7 pref 1 && \
               ip route add 10.70.1.0/24 via 10.67.0.2 table 7";
    a.run(&["bash", "-c", way]).unwrap();
    // The client must hear of the second bond's smaller MTU.
    for (network, via) in [("10.70.1.0/24", "10.68.0.1"), ("10.70.2.0/24", "10.67.0.1")] {
        b.run(&["ip", "route", "add", network, "via", via]).unwrap();
    }
    let forwarded = |path: usize| {
        let status = status(b);
        let read = |bond: usize, counter: &str| {
            status["bonds"][bond]["paths"][path][counter]
                .as_u64()
                .unwrap()
        };
        (read(0, "rx_packets"), read(1, "tx_packets"))
    };
    let serve = ["ip", "netns", "exec", "server", "iperf3", "-s", "-1", "-D"];
    a.run(&serve).unwrap();
    wait_for("iperf3's socket", SOON, || {
        let sockets = [
            "ip",
            "netns",
            "exec",
            "server",
            "ss",
            "-Hltn",
            "sport = :5201",
        ];
        Ok((!a.run(&sockets)?.is_empty()).then_some(()))
    })
    .unwrap();
    let client = [
        "ip",
        "netns",
        "exec",
        "client",
        "iperf3",
        "-c",
        "10.70.1.2",
        "-n",
        "4M",
        "--json",
    ];
    let report: Value = serde_json::from_str(&a.run(&client).unwrap()).unwrap();
    let received = report["end"]["sum_received"]["bits_per_second"].as_f64();
    assert!(received.unwrap() > 1e6, "{}", report["end"]);
    for path in 0..2 {
        let (into, out) = forwarded(path);
        assert!(into > 500 && out > 500, "{into} and {out} packets");
    }
    let fates = status(b)["bonds"][1]["fates"].clone();
    assert_eq!(fates.get("tx_no_room"), None, "{fates}");
}

#[test]
#[ignore = "needs the kernel's WireGuard: cargo xtask test vm"]
fn a_stream_passes_from_gre_to_gre() {
    a_stream_passes_two_bonds("gre", &[]);
}

#[test]
#[ignore = "needs the kernel's WireGuard: cargo xtask test vm"]
fn a_stream_passes_from_gre_to_gretap() {
    a_stream_passes_two_bonds("gretap", &[]);
}

/// From IPv4 and from IPv6 to both.
#[test]
#[ignore = "needs the kernel's WireGuard: cargo xtask test vm"]
fn a_stream_passes_from_gre_to_gre_over_both_families() {
    a_stream_passes_two_bonds("gre", &[1]);
}

#[test]
#[ignore = "needs the kernel's WireGuard: cargo xtask test vm"]
fn a_stream_passes_from_gre_to_gretap_over_ipv6() {
    a_stream_passes_two_bonds("gretap", &[0, 1]);
}
