//! Paths with IPv6 outer addresses on the reference topology, with OSPFv3 beside OSPFv2.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::time::{Duration, SystemTime};

use common::doctor::{assert_healthy, check};
use common::{
    A, B, LATEST, SOON, assert_no_loss, assert_told_apart, changed, contended, counters, path,
    ping, reconfigure, status, wait_proven, wait_state, wait_unused,
};
use netbond_lab::{Lab, Ospf, Router, Signal, Topology, traffic, wait_for};

const PACE: Duration = Duration::from_millis(2);
/// Inside the bond, and the far end of via-m1 beside it.
const A6: &str = "fd67::1";
const B6: &str = "fd67::2";
const FAR: &str = "fd65:0:0:1::2";

/// IPv6, GRE.
const HEADERS: u64 = 40 + 4;

fn up(name: &str, topology: &Topology) -> Lab {
    let lab = Lab::up(name, topology).unwrap();
    for router in ["A", "B"] {
        wait_proven(lab.router(router));
    }
    lab
}

/// Packets of both families, of every kind, in both directions, and over both paths.
fn assert_carries(lab: &Lab) {
    let (a, b) = (lab.router("A"), lab.router("B"));
    let before = counters(b, "rx_packets");
    for (from, to, address) in [(a, b, B), (b, a, A), (a, b, B6), (b, a, A6)] {
        ping(from, address);
        let tcp = traffic::tcp_megabyte(from, to, address, 1).unwrap();
        assert!(
            tcp.mbit_per_s > 1.0,
            "{} -> {address}: {tcp:?}",
            from.name()
        );
        let stream = traffic::Numbered::start(from, to, address, PACE).unwrap();
        let start: u64 = counters(to, "rx_packets").iter().sum();
        wait_for("500 UDP packets", SOON, || {
            let arrived: u64 = counters(to, "rx_packets").iter().sum();
            Ok((arrived >= start + 500).then_some(()))
        })
        .unwrap();
        assert_no_loss(&stream.stop_after(SystemTime::now()).unwrap());
    }
    // Less than an IPv6 header: 28 bytes.
    for (from, address) in [(a, B), (b, A)] {
        let words = ["ping", "-n", "-c", "20", "-i", "0.02", "-s", "0", address];
        let text = from.run(&words).unwrap_or_else(|error| {
            let fates = [a, b].map(|router| status(router)["bonds"][0]["fates"].clone());
            panic!("{error:#}: {fates:?}")
        });
        assert!(text.contains(" 20 received"), "{text}");
    }
    let after = counters(b, "rx_packets");
    assert!(
        after[0] > before[0] && after[1] > before[1],
        "{before:?} {after:?}"
    );
}

/// Packets of full size pass, by the MTU that the bond has; longer ones it refuses.
fn assert_full_size(from: &Router, mtu: u64) {
    assert_eq!(status(from)["bonds"][0]["mtu"], mtu);
    let ping = |size: u64, address: &str| {
        let size = size.to_string();
        from.run(&[
            "ping", "-n", "-c", "4", "-i", "0.1", "-W", "2", "-M", "do", "-s", &size, address,
        ])
    };
    for (headers, address) in [(28, B), (48, B6)] {
        let text = ping(mtu - headers, address).unwrap();
        assert!(text.contains(" 4 received"), "{text}");
        assert!(ping(mtu - headers + 1, address).is_err(), "{address}");
    }
    // Probes of that size say so too.
    for name in ["via-m1", "via-m2"] {
        wait_for("a full-size probe", SOON, || {
            let probe = path(from, name)["probe"].clone();
            let passes = probe["full_size_result"] == "passes" && probe["full_size"] == mtu;
            Ok(passes.then_some(()))
        })
        .unwrap();
    }
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn carries_both_families() {
    // WireGuard's own packets as well.
    let topology = Topology::reference().over_ipv6(&[0, 1]);
    let lab = up("v6-carries", &topology.with_ipv6_underlay());
    let (a, b) = (lab.router("A"), lab.router("B"));
    assert_carries(&lab);
    assert_full_size(a, 1420 - HEADERS);
    for router in [a, b] {
        assert_healthy(router);
    }
    let route = &path(a, "via-m1")["route"];
    assert_eq!(
        (route["device"].as_str(), route["protocol"].as_str()),
        (Some("wg-a-m1"), Some("bird"))
    );
    let neighbour = &path(a, "via-m1")["neighbour"];
    assert_eq!(neighbour["state"], "Full");
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn families_are_mixed() {
    let lab = up("v6-mixed", &Topology::reference().over_ipv6(&[1]));
    let a = lab.router("A");
    assert_carries(&lab);
    assert_full_size(a, 1420 - HEADERS);
    assert_healthy(a);
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn frames_are_carried() {
    let topology = Topology::reference()
        .with_encap("gretap")
        .over_ipv6(&[0, 1]);
    let lab = up("v6-gretap", &topology);
    assert_carries(&lab);
    assert_full_size(lab.router("A"), 1420 - HEADERS - 14);
}

/// Copies over paths of both families.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn copies_are_sent_over_both_families() {
    let mut topology = Topology::reference()
        .over_ipv6(&[0])
        .with_bond_line("key = 9");
    for bond in &mut topology.bonds {
        bond.mode = "duplicate".to_owned();
    }
    let lab = up("v6-copies", &topology);
    let (a, b) = (lab.router("A"), lab.router("B"));
    assert_carries(&lab);
    assert_full_size(a, 1420 - HEADERS - 8);
    // A path that dies costs no packet: the other one has them all.
    let streams = [
        traffic::Numbered::start(a, b, B, PACE).unwrap(),
        traffic::Numbered::start(b, a, A6, PACE).unwrap(),
    ];
    for middle in ["M1", "M2"] {
        let name = format!("via-{}", middle.to_lowercase());
        lab.fail_router(middle).unwrap();
        wait_state(a, &name, "dead");
        wait_state(b, &name, "dead");
        lab.restore_router(middle).unwrap();
        wait_state(a, &name, "up");
        wait_state(b, &name, "up");
    }
    let end = SystemTime::now();
    let logs = streams.map(|stream| stream.stop_after(end).unwrap());
    let contended = contended([a, b]);
    for log in logs {
        assert_no_loss(&log);
        assert_told_apart(&log, contended);
    }
}

/// With OSPF none the wiser: its dead interval is 40 s.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_silent_death_is_noticed_at_both_ends() {
    let topology = Topology::reference().over_ipv6(&[0, 1]);
    let lab = up("v6-silent", &topology.with_ospf(Ospf::field()));
    let (a, b) = (lab.router("A"), lab.router("B"));
    for (from, to) in [("A", "M1"), ("M1", "A"), ("M1", "B")] {
        let failed = SystemTime::now();
        lab.blackhole(from, to).unwrap();
        for router in [a, b] {
            let noticed = changed(&wait_state(router, "via-m1", "dead"));
            let after = noticed.duration_since(failed).unwrap();
            assert!(after < LATEST, "noticed after {after:?}");
        }
        ping(a, B6);
        lab.heal(from, to).unwrap();
        for router in [a, b] {
            wait_state(router, "via-m1", "up");
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_withdrawn_route_takes_the_path_out() {
    let topology = Topology::reference().over_ipv6(&[0, 1]);
    let lab = up("v6-withdrawn", &topology);
    let a = lab.router("A");
    // M1 stops speaking OSPF without a word: its neighbours wait for the dead interval.
    lab.router("M1").bird_stop().unwrap();
    wait_unused(a, "via-m1");
    let before = counters(a, "tx_packets");
    ping(a, B);
    ping(lab.router("B"), A6);
    let after = counters(a, "tx_packets");
    assert_eq!(
        after[0], before[0],
        "nothing goes down the path without a route"
    );
    let log = a.netbond_log();
    assert!(
        log.contains(&format!("route to {FAR}")),
        "the cause is in the log: {log}"
    );
    lab.router("M1").bird_start().unwrap();
    wait_state(a, "via-m1", "up");
    ping(a, B);
}

/// The outer addresses of a bond that carries packets change their family, and back.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_reload_changes_the_family() {
    let lab = up("v6-reload", &Topology::reference().over_ipv6(&[0]));
    let (a, b) = (lab.router("A"), lab.router("B"));
    let over_ipv4 = |router: &Router| {
        let text = router.default_config().unwrap();
        // A-M1 is the first link, M1-B the second.
        let text = text.replace("fd65::1", "10.65.0.2");
        text.replace("fd65:0:0:1::2", "10.65.0.6")
    };
    // What was sent on via-m1 and did not arrive, each way.
    let missing = || {
        [(a, b), (b, a)].map(|(from, to)| {
            let sent = counters(from, "tx_packets")[0] as i64;
            sent - counters(to, "rx_packets")[0] as i64
        })
    };
    for turn in 0..2 {
        let before = missing();
        let streams = [
            traffic::Numbered::start(a, b, B, PACE).unwrap(),
            traffic::Numbered::start(b, a, A6, PACE).unwrap(),
        ];
        for router in [a, b] {
            // A peer that hears no longer on a path would be sent to in vain.
            router.run(&["netbond", "path", "down", "via-m1"]).unwrap();
        }
        wait_for("what is under way on via-m1", SOON, || {
            Ok((missing() == before).then_some(()))
        })
        .unwrap();
        for router in [a, b] {
            let text = if turn == 0 {
                over_ipv4(router)
            } else {
                router.default_config().unwrap()
            };
            reconfigure(router, &text);
        }
        for router in [a, b] {
            router.run(&["netbond", "path", "up", "via-m1"]).unwrap();
        }
        for router in [a, b] {
            wait_state(router, "via-m1", "up");
            let remote = path(router, "via-m1")["remote"].clone();
            assert_eq!(remote.as_str().unwrap().contains(':'), turn == 1);
        }
        let end = SystemTime::now();
        for stream in streams {
            assert_no_loss(&stream.stop_after(end).unwrap());
        }
        let mtu = if turn == 0 { 1396 } else { 1376 };
        for router in [a, b] {
            // A larger one is proven first.
            wait_for(&format!("MTU {mtu}"), SOON, || {
                Ok((status(router)["bonds"][0]["mtu"] == mtu).then_some(()))
            })
            .unwrap();
        }
        assert_carries(&lab);
    }
    // A controller that starts anew finds in the maps what its file no longer has.
    for router in [a, b] {
        router.kill_netbond(Signal::SIGKILL).unwrap();
        router.write_config(&over_ipv4(router)).unwrap();
        router.start_netbond().unwrap();
    }
    for router in [a, b] {
        router.wait_netbond(SOON).unwrap();
        wait_proven(router);
        assert_eq!(path(router, "via-m1")["state"], "up");
    }
    assert_carries(&lab);
}

/// A path over IPv6 is taken out of the file under traffic: until the maps say so, the programs have to know
/// what it is.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_reload_without_the_last_path_over_ipv6() {
    let lab = up("v6-last", &Topology::reference().over_ipv6(&[0]));
    let (a, b) = (lab.router("A"), lab.router("B"));
    let whole = a.default_config().unwrap();
    let begin = whole.find("\n[[bond.path]]\nname = \"via-m1\"").unwrap();
    let end = whole.find("\n[[bond.path]]\nname = \"via-m2\"").unwrap();
    let without = format!("{}{}", &whole[..begin], &whole[end..]);
    // B, which keeps it, goes on to send on it in vain: only what A sends is counted.
    let stream = traffic::Numbered::start(a, b, B, PACE).unwrap();
    for _ in 0..4 {
        reconfigure(a, &without);
        reconfigure(a, &whole);
        wait_state(a, "via-m1", "up");
    }
    // With nothing left that asks for it, programs are back that know nothing of IPv6.
    let swapped = || {
        let events = a.netbond_events().unwrap().into_iter();
        let mut swaps = events.filter(|event| event.text.starts_with("programs swapped"));
        swaps.next_back().map(|event| event.sequence)
    };
    let before = swapped();
    reconfigure(a, &without);
    wait_for("the programs to be swapped", 3 * SOON, || {
        Ok((swapped() > before).then_some(()))
    })
    .unwrap();
    let start: u64 = counters(b, "rx_packets").iter().sum();
    wait_for("packets by the programs that are back", SOON, || {
        let arrived: u64 = counters(b, "rx_packets").iter().sum();
        Ok((arrived >= start + 200).then_some(()))
    })
    .unwrap();
    let log = stream.stop_after(SystemTime::now()).unwrap();
    assert!(log.requests() > 100, "{}", log.requests());
    assert_eq!(log.arrivals(), log.requests());
}

/// Paths straight over Ethernet: the kernel finds the neighbour. Packets that never leave this host still
/// say that they are in a tunnel, short ones too.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn neighbours_are_found_on_ethernet() {
    let options = netbond_lab::Options {
        netbond: false,
        ..Default::default()
    };
    let lab = Lab::up_with("v6-ethernet", &Topology::reference(), options).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    let mut near = String::new();
    for link in 1..=2 {
        near += &format!(
            "link add e{link} type veth peer name e{link} netns {}\n",
            b.netns()
        );
    }
    a.ip(&near).unwrap();
    for (router, own, far) in [(a, 1, 2), (b, 2, 1)] {
        let mut commands = String::new();
        let mut text = format!(
            "route_protocols = [\"kernel\"]\n[[bond]]\nname = \"nb0\"\n\
             address = [\"10.67.0.{own}/24\", \"fd67::{own}/64\"]\n"
        );
        for link in 1..=2 {
            commands +=
                &format!("addr add fd66:{link}::{own}/64 dev e{link} nodad\nlink set e{link} up\n");
            text += &format!(
                "[[bond.path]]\nname = \"via-m{link}\"\nlocal = \"fd66:{link}::{own}\"\n\
                 remote = \"fd66:{link}::{far}\"\n"
            );
        }
        router.ip(&commands).unwrap();
        router.write_config(&text).unwrap();
        router.start_netbond().unwrap();
    }
    for router in [a, b] {
        router.wait_netbond(SOON).unwrap();
        wait_proven(router);
    }
    assert_carries(&lab);
    assert_full_size(a, 1500 - HEADERS);
    for router in [a, b] {
        let fates = status(router)["bonds"][0]["fates"].clone();
        assert_eq!(fates["rx_no_decap"].as_u64().unwrap_or(0), 0, "{fates}");
    }
}

/// FRR in place of BIRD at one end: its ospf6d tells of the neighbours.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn frr_tells_of_ospfv3() {
    let options = netbond_lab::Options {
        netbond: false,
        ..Default::default()
    };
    let topology = Topology::reference().over_ipv6(&[0]);
    let lab = Lab::up_with("v6-frr", &topology, options).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    a.bird_stop().unwrap();
    a.frr_start().unwrap();
    a.wait_route(FAR, Some("wg-a-m1"), SOON).unwrap();
    let text = a.default_config().unwrap();
    let text = text.replacen("[bird]\nsocket = \"/run/bird/bird.ctl\"", "[frr]", 1);
    a.write_config(&text).unwrap();
    for router in [a, b] {
        router.start_netbond().unwrap();
    }
    for router in [a, b] {
        router.wait_netbond(SOON).unwrap();
        wait_proven(router);
    }
    ping(a, B);
    for name in ["via-m1", "via-m2"] {
        let found = wait_for("neighbours by FRR", SOON, || {
            let found = path(a, name);
            Ok((found["neighbour"]["state"] == "Full").then_some(found))
        })
        .unwrap();
        assert_eq!(found["ospf_cost"], 10, "{found}");
        assert_eq!(found["route"]["protocol"], "ospf", "{found}");
    }
    let report = check(a);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}
