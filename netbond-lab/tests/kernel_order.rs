//! Packets over paths of unlike latency come out of the bond in the order in which they went in.
//!
//! That takes fq, which not every machine's kernel has.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::time::Duration;

use common::{A, B, reconfigure, status};
use netbond_lab::{Impairment, Lab, Router, Topology, traffic};

/// Of 200 pings, one each 5 ms, how many of the last 150 were answered after a later one.
fn out_of_order(router: &Router) -> usize {
    let ping = ["ping", "-n", "-c", "200", "-i", "0.005", "-W", "2", B];
    let text = router.run(&ping).unwrap();
    let number = |line: &str| -> Option<u32> {
        let (_, rest) = line.split_once("icmp_seq=")?;
        rest.split_once(' ')?.0.parse().ok()
    };
    let numbers: Vec<u32> = text.lines().filter_map(number).collect();
    assert_eq!(numbers.len(), 200, "{text}");
    let mut highest = 0;
    numbers[50..]
        .iter()
        .filter(|&&number| {
            let late = number < highest;
            highest = highest.max(number);
            late
        })
        .count()
}

#[test]
#[ignore = "needs fq, netem and the kernel's WireGuard: cargo xtask test vm"]
fn unlike_paths_keep_the_order_where_the_bond_is_to() {
    keeps_the_order("order", &Topology::reference());
}

/// The numbers of packets over IPv6 are in GRE alone, and copies come over both families.
#[test]
#[ignore = "needs fq, netem and the kernel's WireGuard: cargo xtask test vm"]
fn so_do_paths_of_unlike_families() {
    let lab = keeps_the_order("order6", &Topology::reference().over_ipv6(&[0]));
    let (a, b) = (lab.router("A"), lab.router("B"));
    for router in [a, b] {
        let config = router.default_config().unwrap();
        let config = config.replace(
            "mode = \"round-robin\"",
            "in_order = true\nmode = \"duplicate\"",
        );
        reconfigure(router, &config);
    }
    for (from, to, address) in [(a, b, B), (b, a, A)] {
        let tcp = traffic::tcp_megabyte(from, to, address, 2).unwrap();
        assert!(tcp.mbit_per_s > 1.0, "{tcp:?}");
    }
    let order = &status(b)["bonds"][0]["in_order"];
    assert!(order["copies"].as_u64().unwrap() > 50, "{order}");
}

fn keeps_the_order(name: &str, topology: &Topology) -> Lab {
    let lab = Lab::up(name, topology).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    let slow = Impairment {
        delay: Duration::from_millis(20),
        ..Impairment::default()
    };
    lab.impair("A", "M1", slow).unwrap();
    let as_they_come = out_of_order(a);
    assert!(as_they_come > 50, "only {as_they_come}: is nothing slow?");

    for router in [a, b] {
        let config = router.default_config().unwrap();
        let config = config.replace("encap = ", "in_order = true\nencap = ");
        reconfigure(router, &config);
        assert_eq!(status(router)["bonds"][0]["in_order"]["held"], 0);
    }
    let in_order = out_of_order(a);
    assert!(in_order < 5, "{in_order} of 150");
    let order = &status(b)["bonds"][0]["in_order"];
    assert!(order["held"].as_u64().unwrap() > 50, "{order}");
    assert_eq!((&order["lost"], &order["copies"]), (&0.into(), &0.into()));

    // And back: nothing is left of it.
    for router in [a, b] {
        reconfigure(router, &router.default_config().unwrap());
        assert!(status(router)["bonds"][0]["in_order"].is_null());
    }
    let again = out_of_order(a);
    assert!(again > 50, "only {again}");
    lab
}
