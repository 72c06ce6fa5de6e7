//! Paths over the other Ethernet devices that a router has: a VLAN, a bridge, bonding by the kernel; and a network
//! card, whose driver receives for XDP.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use common::{A, B, SOON, path, ping, reconfigure, reload, status, wait_proven};
use netbond_lab::{Lab, Options, Router, Topology, traffic, wait_for};

/// Name, device and networks of the paths; the last is over IPv6.
const PATHS: [(&str, &str, &str); 3] = [
    ("via-vlan", "e0.5", "10.66.1."),
    ("via-bridge", "br1", "10.66.2."),
    ("via-bonding", "bond1", "fd66::"),
];

/// Numbers of a router and of the other one.
fn numbers(router: &Router) -> (u8, u8) {
    if router.name() == "A" { (1, 2) } else { (2, 1) }
}

/// netbond's configuration over some of such paths, with a further line for each.
fn config(router: &Router, paths: &[(&str, &str, &str)], line: &str) -> String {
    let (own, far) = numbers(router);
    let mut text = format!(
        "route_protocols = [\"kernel\"]\n[[bond]]\nname = \"nb0\"\n\
         address = [\"10.67.0.{own}/24\", \"fd67::{own}/64\"]\n"
    );
    for (name, device, network) in paths {
        write!(
            text,
            "[[bond.path]]\nname = \"{name}\"\nlocal = \"{network}{own}\"\nremote = \"{network}{far}\"\n\
             device = \"{device}\"\n{line}\n"
        )
        .unwrap();
    }
    text
}

/// Routers without netbond, and without links of their own.
fn routers(name: &str) -> Lab {
    let options = Options {
        bird: false,
        netbond: false,
        ..Options::default()
    };
    Lab::up_with(name, &Topology::reference(), options).unwrap()
}

fn start(lab: &Lab, config: impl Fn(&Router) -> String) {
    let ends = [lab.router("A"), lab.router("B")];
    for router in ends {
        router.write_config(&config(router)).unwrap();
        router.start_netbond().unwrap();
    }
    for router in ends {
        router.wait_netbond(SOON).unwrap();
        wait_proven(router);
    }
}

/// The words of XDP of a router's paths.
fn words(router: &Router) -> Vec<String> {
    let status = status(router);
    let paths = status["bonds"][0]["paths"].as_array().unwrap();
    let word = |path: &serde_json::Value| path["xdp"].as_str().unwrap().to_owned();
    paths.iter().map(word).collect()
}

fn tcp_both_ways(lab: &Lab) {
    let (a, b) = (lab.router("A"), lab.router("B"));
    for (from, to, address) in [(a, b, B), (b, a, A)] {
        let tcp = traffic::tcp_megabyte(from, to, address, 1).unwrap();
        assert!(tcp.mbit_per_s > 0.0, "{tcp:?}");
    }
}

/// Each carries its share, of any size; and bonding's own failures stay below.
#[test]
#[ignore = "needs VLANs, bridges and bonding: cargo xtask test vm"]
fn vlans_bridges_and_bonding_are_underlays() {
    let lab = routers("underlays");
    let (a, b) = (lab.router("A"), lab.router("B"));
    let mut wires = String::new();
    for number in 0..4 {
        let netns = b.netns();
        writeln!(
            wires,
            "link add e{number} type veth peer name e{number} netns {netns}"
        )
        .unwrap();
    }
    a.ip(&wires).unwrap();
    for router in [a, b] {
        let (own, _) = numbers(router);
        let mut commands = "link add link e0 name e0.5 type vlan id 5\n\
             link add br1 type bridge\nlink set e1 master br1\n\
             link add bond1 type bond mode active-backup miimon 50\n\
             link set e2 master bond1\nlink set e3 master bond1\n"
            .to_owned();
        for device in ["e0", "e1", "e2", "e3"] {
            writeln!(commands, "link set {device} up").unwrap();
        }
        for (_, device, network) in PATHS {
            let (length, nodad) = if network.contains(':') {
                (64, " nodad")
            } else {
                (24, "")
            };
            writeln!(
                commands,
                "link set {device} up\naddr add {network}{own}/{length} dev {device}{nodad}"
            )
            .unwrap();
        }
        router.ip(&commands).unwrap();
    }
    start(&lab, |router| config(router, &PATHS, "xdp = \"auto\""));
    // IPv6's header is the longest.
    assert_eq!(status(a)["bonds"][0]["mtu"], 1500 - 40 - 4);
    for (from, address) in [(a, B), (b, A), (a, "fd67::2")] {
        ping(from, address);
    }
    let full = (1500 - 40 - 4 - 28).to_string();
    a.run(&["ping", "-c", "6", "-i", "0.05", "-M", "do", "-s", &full, B])
        .unwrap();
    tcp_both_ways(&lab);
    for (name, _, _) in PATHS {
        let path = path(b, name);
        assert!(path["rx_packets"].as_u64() > Some(100), "{path}");
    }
    // Nothing of it is for XDP by itself; what the user insists on is refused with the reason.
    assert_eq!(words(a), ["driver has no XDP"; 3]);
    reload(a, &config(a, &PATHS[..1], "xdp = \"native\""), "has no XDP");
    ping(a, B);

    // A wire below bonding is cut: the path goes on over the other one.
    let active = |router: &Router| {
        let active = "/sys/class/net/bond1/bonding/active_slave";
        router
            .run(&["cat", active])
            .map(|name| name.trim().to_owned())
    };
    let cut = active(a).unwrap();
    for router in [a, b] {
        router.run(&["ip", "link", "set", &cut, "down"]).unwrap();
    }
    wait_for("the other wire", SOON, || {
        Ok((active(a)? != cut && active(b)? != cut).then_some(()))
    })
    .unwrap();
    wait_for("packets over it", SOON, || {
        let counts = traffic::ping(a, "fd66::2", 5, Duration::from_millis(10))?;
        Ok((counts.lost == 0).then_some(()))
    })
    .unwrap();
    common::wait_state(a, "via-bonding", "up");
    ping(a, B);

    // The bridge loses its port: the path is silent, and the others carry on.
    a.run(&["ip", "link", "set", "e1", "nomaster"]).unwrap();
    common::wait_unused(a, "via-bridge");
    ping(a, B);
}

/// The machine's virtio network cards, which are on one wire.
fn cards() -> Vec<String> {
    let mut cards = Vec::new();
    for entry in fs::read_dir("/sys/class/net").unwrap() {
        let entry = entry.unwrap();
        let driver = fs::read_link(entry.path().join("device/driver")).unwrap_or_default();
        if driver.ends_with("virtio_net") {
            cards.push(entry.file_name().into_string().unwrap());
        }
    }
    cards
}

/// "auto" takes a card's driver, which hands packets to the bond, and gives it back.
#[test]
#[ignore = "needs two virtio network cards: cargo xtask test vm"]
fn a_network_cards_driver_receives() {
    let lab = routers("card");
    let (a, b) = (lab.router("A"), lab.router("B"));
    let cards = cards();
    assert_eq!(cards.len(), 2, "{cards:?}");
    for (router, card) in [a, b].into_iter().zip(&cards) {
        let (own, _) = numbers(router);
        // They come back when the router's namespace goes.
        let move_in = ["link", "set", card, "netns", router.netns(), "name", "card"];
        let moved = std::process::Command::new("ip").args(move_in).status();
        assert!(moved.unwrap().success());
        router
            .ip(&format!(
                "addr add 10.66.1.{own}/24 dev card\nlink set card up\n"
            ))
            .unwrap();
    }
    let one = [("via-card", "card", "10.66.1.")];
    start(&lab, |router| config(router, &one, "xdp = \"auto\""));
    let wait_word = |word: &str| {
        for router in [a, b] {
            wait_for(&format!("xdp: {word} in {}", router.name()), SOON, || {
                let now = words(router);
                anyhow::ensure!(now == [word], "{now:?}");
                Ok(Some(()))
            })
            .unwrap();
            wait_proven(router);
        }
    };
    let crossed = || {
        let shown = b.run(&["ip", "-s", "-j", "link", "show", "nb0x"]).unwrap();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
    };
    wait_word("native");
    let before = crossed();
    for (from, address) in [(a, B), (b, A), (a, "fd67::2")] {
        ping(from, address);
    }
    assert!(
        crossed() >= before + 40,
        "over the veth pair, as drivers' packets are"
    );
    tcp_both_ways(&lab);
    // Whether drivers may send what comes from a LAN: before Linux 6.3 nobody tells.
    let lan = format!(
        "{}[[lan]]\nname = \"card\"\n",
        config(a, &one, "xdp = \"auto\"")
    );
    reconfigure(a, &lan);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let word = if release.starts_with("6.1.") {
        "kernel does not tell what the driver sends"
    } else {
        "native"
    };
    wait_for(word, SOON, || {
        let now = status(a)["lans"][0]["xdp"].clone();
        anyhow::ensure!(now == word, "{now}");
        Ok(Some(()))
    })
    .unwrap();
    for router in [a, b] {
        reconfigure(router, &config(router, &one, ""));
    }
    wait_word("off");
    let before = crossed();
    ping(a, B);
    tcp_both_ways(&lab);
    assert_eq!(crossed(), before, "by tc, past it");
}
