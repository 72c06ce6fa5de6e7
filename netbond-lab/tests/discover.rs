//! `netbond discover` on live OSPF: what it proposes, and that its files carry traffic over every path.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::net::Ipv4Addr;

use common::doctor::check;
use common::{A, B, SOON, ping, status};
use netbond_lab::daemon::CONFIG;
use netbond_lab::topology::{LinkEnd, LinkSpec, RouterSpec};
use netbond_lab::{Lab, Router, Topology, traffic, wait_for};
use serde_json::Value;

const ROUTER_A: &str = "10.65.2.2";
const ROUTER_B: &str = "10.65.2.1";

fn up(name: &str, topology: Topology) -> Lab {
    Lab::up(name, &topology.without_bonds()).unwrap()
}

/// The cheapest way from A to B, by U and V, takes a link of each of the two link-disjoint ones.
fn trap() -> Topology {
    let id = |third, last| Ipv4Addr::new(10, 65, third, last);
    let link = |number: u8, near: &str, far: &str, cost| {
        let end = |router: &str, host: u8| LinkEnd {
            router: router.to_owned(),
            overlay: Ipv4Addr::new(10, 65, 0, 4 * number + host),
            underlay: Ipv4Addr::new(192, 0, 2, 4 * number + host).into(),
        };
        let mut link = LinkSpec::new(end(near, 1), end(far, 2));
        link.cost = cost;
        link
    };
    Topology {
        routers: vec![
            RouterSpec::new("A", id(2, 2)),
            RouterSpec::new("B", id(2, 1)),
            RouterSpec::new("U", id(1, 1)),
            RouterSpec::new("V", id(1, 2)),
        ],
        links: vec![
            link(0, "A", "U", 10),
            link(1, "U", "V", 10),
            link(2, "V", "B", 10),
            link(3, "A", "V", 40),
            link(4, "U", "B", 40),
        ],
        bonds: Vec::new(),
        ospf: Topology::reference().ospf,
    }
}

fn discover(router: &Router, words: &[&str]) -> String {
    let words: Vec<&str> = ["netbond", "discover"]
        .iter()
        .chain(words)
        .copied()
        .collect();
    router.run(&words).unwrap()
}

fn proposal(router: &Router, words: &[&str]) -> Value {
    let words: Vec<&str> = words.iter().chain(&["--json"]).copied().collect();
    serde_json::from_str(&discover(router, &words)).unwrap()
}

/// Name, device, local and remote address of each path.
fn paths(proposal: &Value) -> Vec<[&str; 4]> {
    let paths = proposal["paths"].as_array().unwrap().iter();
    let path = |path| ["name", "device", "local", "remote"].map(|key| text(path, key));
    paths.map(path).collect()
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap()
}

/// All that is not known is said, and here everything is.
fn assert_whole(proposal: &Value) {
    assert_eq!(
        proposal["possible"],
        proposal["paths"].as_array().unwrap().len()
    );
    for list in ["missing", "bridges", "shared_routers", "refuted"] {
        assert_eq!(proposal[list], Value::Array(Vec::new()), "{list}");
    }
    for path in proposal["paths"].as_array().unwrap() {
        assert_eq!(path["seen"], "whole", "{path}");
    }
}

/// Writes the files of both ends from one of them, and starts netbond with them. `peer`: what it is called, and
/// options.
fn start_both(from: &Router, to: &Router, peer: &[&str]) {
    let addresses = [
        "--address",
        "10.67.0.1/24",
        "--peer-address",
        "10.67.0.2/24",
    ];
    discover(from, &[peer, &["-o", CONFIG], &addresses].concat());
    let other = discover(from, &[peer, &["--peer"], &addresses].concat());
    to.write_config(&other).unwrap();
    for router in [from, to] {
        router.start_netbond().unwrap();
    }
}

/// Waits until every path of the bond is in use, and probed.
fn wait_in_use(router: &Router, count: usize) {
    wait_for(&format!("{count} paths in {}", router.name()), SOON, || {
        let status: Value = serde_json::from_str(&router.run(&["netbond", "status", "--json"])?)?;
        let paths = status["bonds"][0]["paths"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let used = |path: &&Value| path["in_use"] == true && path["proof"]["fresh"] == true;
        anyhow::ensure!(paths.iter().filter(used).count() == count, "{paths:?}");
        Ok(Some(()))
    })
    .unwrap();
}

fn tx_packets(router: &Router) -> Vec<u64> {
    let status = status(router);
    let paths = status["bonds"][0]["paths"].as_array().unwrap().iter();
    paths
        .map(|path| path["tx_packets"].as_u64().unwrap())
        .collect()
}

/// Traffic passes both ways over every path.
fn assert_traffic_on_all(a: &Router, b: &Router, count: usize) {
    for router in [a, b] {
        wait_in_use(router, count);
    }
    let before = [a, b].map(tx_packets);
    ping(a, B);
    ping(b, A);
    for (router, before) in [a, b].into_iter().zip(before) {
        let after = tx_packets(router);
        assert_eq!(after.len(), count);
        for (before, after) in before.iter().zip(&after) {
            assert!(after - before >= 10, "{}: {before} {after}", router.name());
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn two_paths_are_found_and_carry_traffic_when_a_middle_router_dies() {
    let lab = up("disc-two", Topology::reference());
    let (a, b) = (lab.router("A"), lab.router("B"));
    let listed = discover(a, &[]);
    let line = listed
        .lines()
        .find(|line| line.starts_with(ROUTER_B))
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words, [ROUTER_B, "2", "20", ROUTER_B], "{listed}");

    let found = proposal(a, &[ROUTER_B]);
    assert_whole(&found);
    assert_eq!(
        paths(&found),
        [
            ["via-10.65.1.1", "wg-a-m1", "10.65.0.2", "10.65.0.6"],
            ["via-10.65.1.2", "wg-a-m2", "10.65.0.14", "10.65.0.10"]
        ]
    );
    // An address of the peer is as good as its id, but for one that may be either end's.
    assert!(a.run(&["netbond", "discover", "10.65.0.6"]).is_err());
    let neighbour = proposal(a, &["10.65.0.1"]);
    assert_eq!(neighbour["peer"], "10.65.1.1");
    // The other end proposes the same.
    let back = proposal(b, &[ROUTER_A]);
    assert_eq!(
        paths(&back),
        [
            ["via-10.65.1.1", "wg-b-m1", "10.65.0.6", "10.65.0.2"],
            ["via-10.65.1.2", "wg-b-m2", "10.65.0.10", "10.65.0.14"]
        ]
    );

    start_both(a, b, &[ROUTER_B]);
    // What is there is not overwritten by mistake.
    let again = a.run(&["netbond", "discover", ROUTER_B, "-o", CONFIG]);
    assert!(format!("{:#}", again.unwrap_err()).contains("exists and is left as it is"));
    assert_traffic_on_all(a, b, 2);

    lab.fail_router("M1").unwrap();
    wait_in_use(a, 1);
    wait_in_use(b, 1);
    ping(a, B);
    ping(b, A);
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn three_paths_are_found_through_frr() {
    let lab = up("disc-three", Topology::parallel(3));
    let (a, b) = (lab.router("A"), lab.router("B"));
    a.bird_stop().unwrap();
    a.frr_start().unwrap();
    for (remote, device) in [
        ("10.65.0.6", "wg-a-m1"),
        ("10.65.0.10", "wg-a-m2"),
        ("10.65.0.22", "wg-a-m3"),
    ] {
        a.wait_route(remote, Some(device), SOON).unwrap();
        b.wait_route(ROUTER_A, None, SOON).unwrap();
    }
    // Both daemons are tried; their sockets are where they usually are. Routes are there before the middle
    // routers' new links are in the database of all.
    let found = wait_for("three paths", SOON, || {
        let found = proposal(a, &[ROUTER_B]);
        Ok((found["possible"] == 3).then_some(found))
    })
    .unwrap();
    assert_eq!(found["daemon"], "FRR by 'vtysh'");
    assert_whole(&found);
    assert_eq!(
        paths(&found),
        [
            ["via-10.65.1.1", "wg-a-m1", "10.65.0.2", "10.65.0.6"],
            ["via-10.65.1.2", "wg-a-m2", "10.65.0.14", "10.65.0.10"],
            ["via-10.65.1.3", "wg-a-m3", "10.65.0.18", "10.65.0.22"]
        ]
    );
    // FRR tells which address is whose.
    let passive = proposal(a, &["10.65.0.22", "--passive"]);
    assert_eq!(paths(&passive), paths(&found));
    start_both(a, b, &[ROUTER_B]);
    assert_traffic_on_all(a, b, 3);
}

/// By OSPFv3, which tells no router's address on a link: packets do.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn paths_over_ipv6_are_found_through_bird_and_frr() {
    let lab = up("disc-six", Topology::reference().over_ipv6(&[0, 1]));
    let (a, b) = (lab.router("A"), lab.router("B"));
    let wanted = Topology::reference().over_ipv6(&[0, 1]).bonds[0].clone();
    let wanted: Vec<[String; 2]> = wanted
        .paths
        .iter()
        .map(|path| [path.local.to_string(), path.remote.to_string()])
        .collect();
    let listed = discover(a, &["-6"]);
    let line = listed.lines().find(|line| line.starts_with(ROUTER_B));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    assert_eq!(words[..3], [ROUTER_B, "2", "20"], "{listed}");
    assert!(listed.contains("area 0.0.0.0 over IPv6, BIRD"), "{listed}");

    let assert_found = |found: &Value| {
        assert_whole(found);
        assert_eq!(found["family"], "ipv6");
        let paths = paths(found).into_iter();
        let addresses: Vec<[&str; 2]> = paths.map(|[.., local, remote]| [local, remote]).collect();
        assert_eq!(addresses, wanted);
    };
    let of_bird = proposal(a, &[ROUTER_B, "-6"]);
    assert_found(&of_bird);
    // The peer is known by its address as well, and the other end proposes the same.
    let of_address = proposal(a, &[text(&of_bird, "peer_prefix").trim_end_matches("/128")]);
    assert_eq!(paths(&of_address), paths(&of_bird));
    let back = proposal(b, &[ROUTER_A, "-6"]);
    for ([_, _, local, remote], wanted) in paths(&back).into_iter().zip(&wanted) {
        assert_eq!([remote, local], [&wanted[0], &wanted[1]]);
    }
    // Unasked it is of as many paths over IPv4.
    assert_eq!(proposal(a, &[ROUTER_B])["family"], "ipv4");

    a.bird_stop().unwrap();
    a.frr_start().unwrap();
    let of_frr = wait_for("the same from ospf6d", SOON, || {
        let mut command = a.command("netbond");
        let output = command
            .args(["discover", ROUTER_B, "-6", "--json"])
            .output()?;
        let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let paths = found["paths"].as_array().map_or(0, Vec::len);
        Ok((paths == 2).then_some(found))
    })
    .unwrap();
    assert_eq!(of_frr["daemon"], "FRR's ospf6d by 'vtysh'");
    assert_found(&of_frr);
    start_both(a, b, &[ROUTER_B, "-6"]);
    assert_traffic_on_all(a, b, 2);
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn five_paths_are_found_and_a_cut_is_told() {
    let lab = up("disc-five", Topology::parallel(5));
    let a = lab.router("A");
    let found = proposal(a, &[ROUTER_B]);
    assert_whole(&found);
    assert_eq!(paths(&found).len(), 5);
    for (number, path) in paths(&found).into_iter().enumerate() {
        let wanted = &Topology::parallel(5).bonds[0].paths[number];
        let addresses = [wanted.local.to_string(), wanted.remote.to_string()];
        assert_eq!(path[1..], [&wanted.device, &addresses[0], &addresses[1]]);
    }
    // M1 is beside A: one link of its own, and a way round by B.
    let near = a
        .run(&["netbond", "discover", "10.65.1.1", "--json"])
        .unwrap();
    let near: Value = serde_json::from_str(&near).unwrap();
    assert_eq!(near["possible"], 2);

    // Only the links of M1 are left.
    for router in ["M2", "M3", "M4", "M5"] {
        lab.router(router).bird_stop().unwrap();
    }
    wait_for("one path", SOON, || {
        let found = a.run(&["netbond", "discover", ROUTER_B, "--json"])?;
        let found: Value = serde_json::from_str(&found)?;
        Ok((found["possible"] == 1).then_some(()))
    })
    .unwrap();
    let output = a
        .command("netbond")
        .args(["discover", ROUTER_B, "--passive"])
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("warning: every path takes the links"),
        "{told}"
    );
    assert!(
        told.contains("10.65.0.0/30") && told.contains("10.65.0.4/30"),
        "{told}"
    );
}

/// The way that shortest paths alone would begin with leaves no second one.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn the_cheapest_path_is_given_up_for_two_that_carry_traffic() {
    let lab = up("disc-trap", trap());
    let (a, b) = (lab.router("A"), lab.router("B"));
    let routes = a.run(&["ip", "route", "get", ROUTER_B]).unwrap();
    assert!(routes.contains("dev wg-a-u"), "{routes}");
    let found = proposal(a, &[ROUTER_B]);
    assert_whole(&found);
    assert_eq!(
        paths(&found),
        [
            ["via-10.65.1.1", "wg-a-u", "10.65.0.1", "10.65.0.18"],
            ["via-10.65.1.2", "wg-a-v", "10.65.0.13", "10.65.0.10"]
        ]
    );
    start_both(a, b, &[ROUTER_B]);
    assert_traffic_on_all(a, b, 2);
    // The detours are meant.
    for router in [a, b] {
        let report = check(router);
        let mut findings = report.findings.iter();
        assert!(findings.all(|one| one.severity == "note"), "{report:#?}");
        let detours = report.findings.iter().filter(|one| one.kind == "detour");
        assert_eq!(detours.count(), 1, "{report:#?}");
    }
    // Each by its own links only.
    for (dead, alive) in [("U", "via-10.65.1.2"), ("V", "via-10.65.1.1")] {
        lab.fail_router(dead).unwrap();
        wait_in_use(a, 1);
        let bond = &status(a)["bonds"][0];
        let paths = bond["paths"].as_array().unwrap();
        let used: Vec<&str> = paths
            .iter()
            .filter(|path| path["in_use"] == true)
            .map(|path| text(path, "name"))
            .collect();
        assert_eq!(used, [alive]);
        assert_eq!(
            traffic::ping(a, B, 20, std::time::Duration::from_millis(10))
                .unwrap()
                .lost,
            0
        );
        lab.restore_router(dead).unwrap();
        wait_in_use(a, 2);
    }
}
