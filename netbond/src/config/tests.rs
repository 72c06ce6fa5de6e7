//! Whole files: what they give, and what is reported of them.

use std::collections::HashSet;

use netbond_common::{
    abi::{MAX_BOND_PATHS, MAX_BONDS},
    flow::words,
    ipv4,
    names::feature,
};
use proptest::prelude::*;

use super::*;

const EXAMPLE: &str = include_str!("../../../netbond.example.toml");

/// A good file, whose lines tests replace.
const GOOD: &str = r#"[[bond]]
name = "nb0"
address = ["10.67.0.1/24"]
key = 7
[[bond.path]]
name = "via-m1"
local = "10.65.0.2"
remote = "10.65.0.6"
[[bond.path]]
name = "via-m2"
local = "10.65.0.14"
remote = "10.65.0.10"
"#;

/// [`GOOD`] with another text on one of its lines.
fn with(line: usize, text: &str) -> String {
    let mut lines: Vec<_> = GOOD.lines().collect();
    lines[line - 1] = text;
    lines.join("\n")
}

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, "f").map_err(|problems| problems.to_string())
}

/// Everything reported of a text, `LINE: MESSAGE` each.
fn problems(text: &str) -> Vec<String> {
    let Err(problems) = Config::parse(text, "f") else {
        return Vec::new();
    };
    let line = |Problem { line, message }| format!("{line}: {message}");
    problems.list.into_iter().map(line).collect()
}

#[track_caller]
fn assert_problems(text: &str, expected: &[&str]) {
    assert_eq!(problems(text), expected, "\n{text}\n");
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn path(name: &str, local: &str, remote: &str, line: usize) -> Path {
    Path {
        name: name.to_owned(),
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        device: None,
        weight: 1,
        priority: 0,
        xdp: XdpMode::Off,
        rate_cap_mbit: None,
        line,
    }
}

#[test]
fn empty() {
    let config = Config {
        route_protocols: vec![12, 188, 11],
        bird: None,
        frr: None,
        metrics: None,
        lans: Vec::new(),
        bonds: Vec::new(),
    };
    assert_eq!(parse(""), Ok(config));
}

#[test]
fn minimal() {
    let text = r#"
        [bird]
        [frr]
        [[bond]]
        name = "nb0"
        [[bond.path]]
        name = "p"
        local = "10.65.0.2"
        remote = "10.65.0.6"
        [metrics]
    "#;
    let bond = Bond {
        name: "nb0".to_owned(),
        addresses: Vec::new(),
        encap: Encap::Gre,
        in_order: None,
        copies: None,
        mode: Mode::RoundRobin,
        weights: Weights::Static,
        flowlet_gap_ms: None,
        classes: Vec::new(),
        key: None,
        mtu: None,
        path_mtu: PathMtu::Probe,
        mss_clamp: false,
        ttl: Ttl::Fixed(64),
        detour: DetourPolicy::Avoid,
        probing: Some(Probing::default()),
        bfd: None,
        hold_down: HoldDown::default(),
        policies: Policies::default(),
        peer: None,
        paths: vec![path("p", "10.65.0.2", "10.65.0.6", 6)],
        line: 4,
    };
    assert_eq!(bond.peer_device(), "nb0x");
    let config = Config {
        route_protocols: vec![12, 188, 11],
        bird: Some(Bird {
            socket: "/run/bird/bird.ctl".into(),
        }),
        frr: Some(Frr {
            vtysh: vec!["vtysh".to_owned()],
        }),
        metrics: Some(Metrics {
            listen: "127.0.0.1:9469".parse().unwrap(),
            line: 10,
        }),
        lans: Vec::new(),
        bonds: vec![bond],
    };
    assert_eq!(parse(text), Ok(config));
}

#[test]
fn full() {
    let text = r#"
        route_protocols = ["static", 188, 0xff, "ospf", 4]
        bird.socket = "/var/run/bird.ctl"
        frr = { vtysh = ["sudo", "vtysh"] }
        [[bond]]
        name = "fourteen-bytes"
        address = [
            "10.67.0.1/31",
            "10.67.1.1/32",
            "fd67::/64",
            "fe80::1/64",
        ]
        encap = "gre"
        mode = "weighted"
        key = 4_294_967_295
        mtu = 1280
        path_mtu = "fixed"
        mss_clamp = true
        ttl = 255
        detour = "use"
        peer = "fd00::/8"
        [[bond.path]]
        name = "A-path_with.31-characters-in-it"
        local = "10.65.0.2"
        remote = "10.65.0.6"
        device = "fifteen-bytes-x"
        weight = 64
        [[bond.path]]
        name = "b"
        local = "10.65.0.2"
        remote = "10.65.0.10"

        [[bond]]
        name = "nb1"
        # Shared with the first bond: no subnet, link-local.
        address = ["10.67.1.1/32", "fe80::1/64"]
        key = 0
        ttl = 1
        # The first bond's addresses, with another key.
        path = [{ name = "c", local = "10.65.0.2", remote = "10.65.0.6" }]

        [[bond]]
        name = "nb2"
        encap = "gretap"
        # No key is another tunnel than key 0.
        path = [{ name = "d", local = "10.65.0.2", remote = "10.65.0.6" }]
        [metrics]
        listen = "[fd00::1]:9999"
    "#;
    let first = Bond {
        name: "fourteen-bytes".to_owned(),
        addresses: vec![
            prefix("10.67.0.1/31"),
            prefix("10.67.1.1/32"),
            prefix("fd67::/64"),
            prefix("fe80::1/64"),
        ],
        encap: Encap::Gre,
        in_order: None,
        copies: None,
        mode: Mode::Weighted,
        weights: Weights::Static,
        flowlet_gap_ms: None,
        classes: Vec::new(),
        key: Some(u32::MAX),
        mtu: Some(1280),
        path_mtu: PathMtu::Fixed,
        mss_clamp: true,
        ttl: Ttl::Fixed(255),
        detour: DetourPolicy::Use,
        probing: Some(Probing::default()),
        bfd: None,
        hold_down: HoldDown::default(),
        policies: Policies::default(),
        peer: Some(prefix("fd00::/8")),
        paths: vec![
            Path {
                device: Some("fifteen-bytes-x".to_owned()),
                weight: 64,
                ..path(
                    "A-path_with.31-characters-in-it",
                    "10.65.0.2",
                    "10.65.0.6",
                    22,
                )
            },
            path("b", "10.65.0.2", "10.65.0.10", 28),
        ],
        line: 5,
    };
    let second = Bond {
        name: "nb1".to_owned(),
        addresses: vec![prefix("10.67.1.1/32"), prefix("fe80::1/64")],
        encap: Encap::Gre,
        in_order: None,
        copies: None,
        mode: Mode::RoundRobin,
        weights: Weights::Static,
        flowlet_gap_ms: None,
        classes: Vec::new(),
        key: Some(0),
        mtu: None,
        path_mtu: PathMtu::Probe,
        mss_clamp: false,
        ttl: Ttl::Fixed(1),
        detour: DetourPolicy::Avoid,
        probing: Some(Probing::default()),
        bfd: None,
        hold_down: HoldDown::default(),
        policies: Policies::default(),
        peer: None,
        paths: vec![path("c", "10.65.0.2", "10.65.0.6", 40)],
        line: 33,
    };
    let third = Bond {
        name: "nb2".to_owned(),
        addresses: Vec::new(),
        encap: Encap::Gretap,
        in_order: None,
        copies: None,
        key: None,
        ttl: Ttl::Fixed(64),
        paths: vec![path("d", "10.65.0.2", "10.65.0.6", 46)],
        line: 42,
        ..second.clone()
    };
    let config = Config {
        route_protocols: vec![4, 188, 255],
        bird: Some(Bird {
            socket: "/var/run/bird.ctl".into(),
        }),
        frr: Some(Frr {
            vtysh: vec!["sudo".to_owned(), "vtysh".to_owned()],
        }),
        metrics: Some(Metrics {
            listen: "[fd00::1]:9999".parse().unwrap(),
            line: 48,
        }),
        lans: Vec::new(),
        bonds: vec![first, second, third],
    };
    assert_eq!(parse(text), Ok(config));
}

/// A user with unlike paths writes one word.
#[test]
fn adaptive_measures_and_puts_in_order() {
    let text = |more: &str| GOOD.replace("key = 7\n", &format!("key = 7\n{more}"));
    let bond = |more: &str| parse(&text(more)).unwrap().bonds.remove(0);
    let adaptive = bond("mode = \"adaptive\"\n");
    let hold = |longest_hold_ms| Some(InOrder { longest_hold_ms });
    assert_eq!(
        (adaptive.in_order, adaptive.weights),
        (hold(250), Weights::Measured)
    );
    assert!(adaptive.measures());
    let hasty = bond("mode = \"adaptive\"\nin_order_hold = 40\n");
    assert_eq!(hasty.in_order, hold(40));
    let unordered = bond("mode = \"adaptive\"\nin_order = false\n");
    assert_eq!(unordered.in_order, None);
    let config = parse(&text("mode = \"adaptive\"\nin_order = false\n")).unwrap();
    assert_eq!(config.features(), feature::MEASURED | feature::FLOWLET);
    let by_weight = bond("mode = \"weighted\"\nweights = \"measured\"\n");
    assert!(by_weight.measures() && by_weight.in_order.is_none());
}

#[test]
fn example() {
    let line = |text: &str, nth: usize| {
        let mut lines = EXAMPLE
            .lines()
            .enumerate()
            .filter(|(_, line)| *line == text);
        lines.nth(nth).unwrap().0 + 1
    };
    let bond = Bond {
        name: "nb0".to_owned(),
        addresses: vec![prefix("10.67.0.1/24"), prefix("fd67::1/64")],
        encap: Encap::Gre,
        in_order: None,
        copies: None,
        mode: Mode::RoundRobin,
        weights: Weights::Static,
        flowlet_gap_ms: None,
        classes: Vec::new(),
        key: Some(7),
        mtu: Some(1380),
        path_mtu: PathMtu::Probe,
        mss_clamp: false,
        ttl: Ttl::Fixed(64),
        detour: DetourPolicy::Avoid,
        probing: Some(Probing::default()),
        bfd: None,
        hold_down: HoldDown::default(),
        policies: Policies::default(),
        peer: Some(prefix("10.65.2.1/32")),
        paths: vec![
            Path {
                device: Some("wg-a-m1".to_owned()),
                ..path("via-m1", "10.65.0.2", "10.65.0.6", line("[[bond.path]]", 0))
            },
            Path {
                device: Some("wg-a-m2".to_owned()),
                ..path(
                    "via-m2",
                    "10.65.0.14",
                    "10.65.0.10",
                    line("[[bond.path]]", 1),
                )
            },
        ],
        line: line("[[bond]]", 0),
    };
    let bird = Bird {
        socket: "/run/bird/bird.ctl".into(),
    };
    let config = Config {
        route_protocols: vec![12, 188, 11],
        bird: Some(bird),
        frr: None,
        metrics: None,
        lans: Vec::new(),
        bonds: vec![bond],
    };
    assert_eq!(parse(EXAMPLE), Ok(config.clone()));

    // What the example has in comments is right too.
    let uncommented = EXAMPLE
        .replace("# [frr]\n", "[frr]\n")
        .replace("# # The command", "# The command")
        .replace("# vtysh =", "vtysh =")
        .replace("# [metrics]\n", "[metrics]\n")
        .replace("# # A port", "# A port")
        .replace("# listen =", "listen =")
        .replace("# [[lan]]\n", "[[lan]]\n")
        .replace("# # The device's", "# The device's")
        .replace("# name = \"eth1\"", "name = \"eth1\"")
        .replace("# # \"auto\" (the", "# \"auto\" (the")
        .replace("probe_interval = 30", "probe_interval = 0")
        .replace("# bfd", "bfd")
        .replace("# path_mtu = \"probe\"", "path_mtu = \"fixed\"")
        .replace("# mss_clamp", "mss_clamp")
        .replace("mode = \"round-robin\"", "mode = \"flowlet\"")
        .replace("# weights =", "weights =")
        .replace("# flowlet_gap =", "flowlet_gap =")
        .replace("# weight =", "weight =")
        .replace("# priority =", "priority =")
        .replace("# xdp =", "xdp =")
        .lines()
        .scan(false, |in_class, line| {
            *in_class |= line == "# [[bond.class]]";
            let uncommented = line.strip_prefix("# ").filter(|_| *in_class);
            Some(format!("{}\n", uncommented.unwrap_or(line)))
        })
        .collect::<String>();
    let frr = Frr {
        vtysh: vec!["vtysh".to_owned()],
    };
    let mut config = Config {
        frr: Some(frr),
        metrics: Some(Metrics {
            listen: "127.0.0.1:9469".parse().unwrap(),
            line: line("# listen = 9469", 0),
        }),
        lans: vec![Lan {
            name: "eth1".to_owned(),
            xdp: XdpMode::Auto,
            line: line("# [[lan]]", 0),
        }],
        ..config
    };
    config.bonds[0].path_mtu = PathMtu::Fixed;
    config.bonds[0].mss_clamp = true;
    config.bonds[0].probing = None;
    config.bonds[0].bfd = Some(Bfd {
        hops: Hops::Multi,
        interval_ms: 50,
        misses: 3,
    });
    config.bonds[0].mode = Mode::Flowlet;
    config.bonds[0].weights = Weights::Ospf;
    config.bonds[0].flowlet_gap_ms = Some(20);
    config.bonds[0].paths[0].weight = 2;
    config.bonds[0].paths[0].priority = 1;
    config.bonds[0].paths[0].xdp = XdpMode::Auto;
    let found = parse(&uncommented).unwrap();
    // What a rule is made of, other tests look at.
    config.bonds[0].classes = vec![Class {
        name: "voice".to_owned(),
        mode: Mode::ActiveBackup,
        rule: found.bonds[0].classes[0].rule,
        text:
            "dscp ef/va, mark 0x10/0xf0, udp, from 10.1.0.0/16, to 10.2.0.0/16, source port 5060, \
               destination port 5000-5999"
                .to_owned(),
        line: line("# [[bond.class]]", 0),
    }];
    assert_eq!(found, config);
}

#[test]
fn lans() {
    let lans = |text: &str| parse(text).unwrap().lans;
    let lan = |name: &str, xdp, line| Lan {
        name: name.to_owned(),
        xdp,
        line,
    };
    assert_eq!(
        lans("[[lan]]\nname = \"eth1\"\n[[lan]]\nname = \"eth2\"\nxdp = \"native\"\n"),
        [
            lan("eth1", XdpMode::Auto, 1),
            lan("eth2", XdpMode::Native, 3)
        ]
    );
    assert_problems(
        "[[lan]]\nname = \"eth1\"\n[[lan]]\nname = \"eth1\"\n[[lan]]\nxdp = \"generic\"\n[[lan]]\nname = \"a/b\"\nport = 1\n",
        &[
            "4: lan \"eth1\": name \"eth1\" is that of the LAN on line 2 already: remove one",
            "5: lan: name is missing: add a device name of at most 15 bytes such as \"eth1\"",
            "6: lan: xdp \"generic\" does not exist: write \"off\", \"auto\" or \"native\"",
            "8: lan \"a/b\": name \"a/b\" has '/', which netbond takes in no device name: write a device name of at most 15 bytes such as \"eth1\"",
            "9: lan \"a/b\": unknown key \"port\": the keys here are name, xdp",
        ],
    );
    let many: String = (0..65)
        .map(|n| format!("[[lan]]\nname = \"eth{n}\"\n"))
        .collect();
    assert_problems(&many, &["129: there are 65 LANs: keep at most 64"]);
}

#[test]
fn xdp() {
    let of = |line: &str| parse(&with(8, &format!("remote = \"10.65.0.6\"\n{line}")));
    for (line, mode) in [
        ("", XdpMode::Off),
        ("xdp = \"off\"", XdpMode::Off),
        ("xdp = \"auto\"", XdpMode::Auto),
        ("xdp = \"native\"", XdpMode::Native),
    ] {
        let bond = &of(line).unwrap().bonds[0];
        assert_eq!(bond.paths[0].xdp, mode);
        assert_eq!(bond.asks_for_xdp(), mode != XdpMode::Off);
    }
    assert_problems(
        &with(8, "remote = \"10.65.0.6\"\nxdp = \"generic\""),
        &[
            "9: path \"via-m1\": xdp \"generic\" does not exist: write \"off\", \"auto\" or \"native\"",
        ],
    );
    // Copies are not for drivers: where all packets have some, nobody can insist.
    let insisting = |line| with(4, line).replacen("remote =", "xdp = \"native\"\nremote =", 1);
    let text = insisting("mode = \"duplicate\"");
    assert_problems(
        &text,
        &[
            "8: path \"via-m1\": xdp \"native\" is not for a bond of mode \"duplicate\", whose copies are made and \
             told apart by tc: write xdp = \"auto\" or \"off\", or change the mode",
        ],
    );
    parse(&text.replace("native", "auto")).unwrap();
    for line in ["in_order = true", "mode = \"adaptive\"", "mss_clamp = true"] {
        parse(&insisting(line)).unwrap();
    }
}

/// [`GOOD`] with a class that has these keys.
fn with_class(keys: &str) -> String {
    format!("{GOOD}[[bond.class]]\nname = \"c\"\nmode = \"flow\"\n{keys}\n")
}

#[test]
fn rules() {
    let rule = |keys: &str| {
        let config = parse(&with_class(keys)).unwrap();
        let class = config.bonds[0].classes[0].clone();
        (class.rule, class.text)
    };
    let v4 = |address: [u8; 4]| words(ipv4::mapped(address));
    let all_ones = u64::MAX;
    let low_mask = |mask: [u8; 4]| {
        let mut bytes = [0xff; 8];
        bytes[4..].copy_from_slice(&mask);
        u64::from_ne_bytes(bytes)
    };
    for (keys, rule_wanted, text) in [
        (
            "dscp = 46",
            Rule {
                other_dscps: !(1 << 46),
                ..Rule::ANY
            },
            "dscp ef",
        ),
        (
            "dscp = [\"cs0\", 63]",
            Rule {
                other_dscps: !(1 << 63 | 1),
                ..Rule::ANY
            },
            "dscp cs0/63",
        ),
        (
            "mark = 0x10",
            Rule {
                mark: 16,
                mark_mask: u32::MAX,
                ..Rule::ANY
            },
            "mark 0x10",
        ),
        (
            "mark = \"0x10/0xf0\"",
            Rule {
                mark: 16,
                mark_mask: 0xf0,
                ..Rule::ANY
            },
            "mark 0x10/0xf0",
        ),
        (
            "protocol = \"tcp\"\ndestination_port = \"80-443\"",
            Rule {
                kind: 6,
                kind_mask: 0xff,
                destination_ports: [80, 443],
                ..Rule::ANY
            },
            "tcp, destination port 80-443",
        ),
        (
            "protocol = 200",
            Rule {
                kind: 200,
                kind_mask: 0xff,
                ..Rule::ANY
            },
            "protocol 200",
        ),
        (
            "source = \"10.1.0.0/16\"\nsource_port = 53",
            Rule {
                source: v4([10, 1, 0, 0]),
                source_mask: [all_ones, low_mask([255, 255, 0, 0])],
                kind: 4 << 8,
                kind_mask: 0xff00,
                source_ports: [53, 53],
                ..Rule::ANY
            },
            "from 10.1.0.0/16, source port 53",
        ),
        (
            "destination = \"::/0\"",
            Rule {
                kind: 6 << 8,
                kind_mask: 0xff00,
                ..Rule::ANY
            },
            "to ::/0",
        ),
        (
            "destination = \"0.0.0.0/0\"",
            Rule {
                destination: v4([0; 4]),
                destination_mask: [all_ones, low_mask([0; 4])],
                kind: 4 << 8,
                kind_mask: 0xff00,
                ..Rule::ANY
            },
            "to 0.0.0.0/0",
        ),
    ] {
        assert_eq!(rule(keys), (rule_wanted, text.to_owned()), "{keys}");
    }
}

#[test]
fn bad_classes() {
    for (keys, problem) in [
        (
            "",
            "13: class \"c\": a class says which packets it takes: add dscp, mark, protocol, source, \
             destination, source_port or destination_port",
        ),
        (
            "dscp = \"fe\"",
            "16: class \"c\": dscp \"fe\" is no known DSCP: write \"le\", if that is meant, or a number",
        ),
        (
            "dscp = [46, 64]",
            "16: class \"c\": dscp 64 is out of range: write a number from 0 to 63 or a name such as \
             \"ef\", or a list of them",
        ),
        (
            "dscp = []",
            "16: class \"c\": dscp [] is empty: write a number from 0 to 63 or a name such as \"ef\", or \
             a list of them",
        ),
        (
            "mark = \"0x11/0xf0\"",
            "16: class \"c\": mark \"0x11/0xf0\" has bits outside of its mask: write \"0x10/0xf0\"",
        ),
        (
            "mark = \"all\"",
            "16: class \"c\": mark \"all\" is no mark of 32 bits: write a number, or \"VALUE/MASK\" such as \
             \"0x10/0xff\"",
        ),
        (
            "protocol = \"tpc\"",
            "16: class \"c\": protocol \"tpc\" is no known protocol: write \"tcp\", \"udp\", another name, \
             or a number from 1 to 255",
        ),
        (
            "source = \"10.1.2.3/16\"",
            "16: class \"c\": source \"10.1.2.3/16\" has host bits set: write \"10.1.0.0/16\"",
        ),
        (
            "source = \"10.1.0.0/16\"\ndestination = \"fd00::/8\"",
            "17: class \"c\": source 10.1.0.0/16 and destination fd00::/8 are of different families: no \
             packet has both, so write two of one family",
        ),
        (
            "source_port = \"90-80\"",
            "16: class \"c\": source_port \"90-80\" is the wrong way round: write \"80-90\"",
        ),
        (
            "destination_port = 65536",
            "16: class \"c\": destination_port 65536 is out of range: write a number from 0 to 65535, or \
             \"FIRST-LAST\" such as \"5000-5999\"",
        ),
        (
            "protocol = \"icmp\"\nsource_port = 1",
            "17: class \"c\": source_port: icmp has no ports: remove it, or write protocol = \"tcp\" or \
             \"udp\"",
        ),
        (
            "port = 1",
            "13: class \"c\": a class says which packets it takes: add dscp, mark, protocol, source, \
             destination, source_port or destination_port",
        ),
    ] {
        let found = problems(&with_class(keys));
        assert_eq!(found.first().map(String::as_str), Some(problem), "{keys}");
    }
    let twice = with_class("dscp = 46\n[[bond.class]]\nname = \"c\"\nmode = \"rr\"\ndscp = \"ef\"");
    assert_problems(
        &twice,
        &[
            "17: class \"c\": class \"c\" on line 13 takes the same packets, before this one does: remove \
             one",
            "18: class \"c\": name \"c\" is used on line 14 already: choose another",
            "19: class \"c\": mode \"rr\" does not exist: write \"round-robin\", \"weighted\", \"flow\", \
             \"flowlet\", \"active-backup\", \"adaptive\" or \"duplicate\"",
        ],
    );
    let mut many = GOOD.to_owned();
    for n in 0..18 {
        many += &format!("[[bond.class]]\nname = \"c{n}\"\nmode = \"flow\"\ndscp = {n}\n");
    }
    assert_problems(
        &many,
        &["77: bond \"nb0\": there are 18 classes: keep at most 16"],
    );
}

/// Weights and priorities are of use as soon as one mode goes by them.
#[test]
fn a_class_may_go_by_weight() {
    let text = with_class("dscp = 46").replace(
        "remote = \"10.65.0.6\"",
        "remote = \"10.65.0.6\"\nweight = 3",
    );
    let config = parse(&text).unwrap();
    assert_eq!(config.bonds[0].mode, Mode::RoundRobin);
    assert_eq!(config.bonds[0].paths[0].weight, 3);
    assert_eq!(config.features(), feature::CLASSES | feature::FLOW);
    assert_eq!(parse(GOOD).unwrap().features(), 0);
}

/// A bond may mix both families; the programs learn of IPv6 where there is some.
#[test]
fn outer_addresses_may_be_ipv6() {
    let text = GOOD.replacen("10.65.0.2", "fd65::2", 1);
    let text = text.replacen("10.65.0.6", "fd65:1::6", 1);
    let config = parse(&text).unwrap();
    let path = &config.bonds[0].paths[0];
    assert_eq!(path.local, "fd65::2".parse::<IpAddr>().unwrap());
    assert_eq!(path.remote, "fd65:1::6".parse::<IpAddr>().unwrap());
    assert_eq!(config.features(), feature::IPV6);
    // Of two bonds each asks for its own.
    let other = GOOD.replace("nb0", "nb1").replace("via-", "keyed-");
    let other = other.replace("10.67.", "10.68.");
    let config = parse(&format!("{text}{}", other.replace("key = 7", "key = 8"))).unwrap();
    let asked: Vec<u32> = config.bonds.iter().map(Bond::features).collect();
    assert_eq!(asked, [feature::IPV6, 0]);
    assert_eq!(config.features(), feature::IPV6);
}

#[test]
fn copies_are_numbered() {
    let bond = |keys: &str| {
        let config = parse(&with(4, keys)).unwrap();
        let features = config.features();
        (config.bonds.into_iter().next().unwrap(), features)
    };
    let (plain, features) = bond("");
    assert_eq!((plain.is_numbered(), features), (false, 0));
    let (all, features) = bond("mode = \"duplicate\"");
    assert_eq!((all.mode, all.copies), (Mode::Duplicate, None));
    assert_eq!((all.is_numbered(), all.in_order), (true, None));
    assert_eq!(features, feature::DUPLICATE | feature::NUMBERED);
    let (two, _) = bond("mode = \"duplicate\"\ncopies = 2\nin_order = true");
    assert_eq!(two.copies, Some(2));
    assert!(two.in_order.is_some());
    let (ordered, features) = bond("in_order = true");
    assert!(ordered.is_numbered());
    assert_eq!(features, feature::NUMBERED);

    let text = with_class("dscp = 46").replace("mode = \"flow\"", "mode = \"duplicate\"");
    let config = parse(&text).unwrap();
    let bond = &config.bonds[0];
    assert_eq!(bond.classes[0].mode, Mode::Duplicate);
    assert!(bond.is_numbered() && bond.mode == Mode::RoundRobin);
    assert_eq!(
        config.features(),
        feature::CLASSES | feature::DUPLICATE | feature::NUMBERED
    );
}

#[test]
fn bfd() {
    let bfd = |keys: &str| parse(&with(4, keys)).map(|config| config.bonds[0].bfd);
    let some = |hops, interval_ms, misses| {
        Ok(Some(Bfd {
            hops,
            interval_ms,
            misses,
        }))
    };
    for (keys, expected) in [
        ("", Ok(None)),
        ("bfd = \"off\"", Ok(None)),
        ("bfd = \"off\"\nprobe_interval = 0", Ok(None)),
        (
            "bfd = \"single-hop\"\nprobe_interval = 0",
            some(Hops::Single, 50, 3),
        ),
        (
            "probe_interval = 0\nbfd = \"multi-hop\"\nbfd_interval = 10\nbfd_misses = 1",
            some(Hops::Multi, 10, 1),
        ),
        (
            "probe_interval = 0\nbfd = \"multi-hop\"\nbfd_interval = 10_000\nbfd_misses = 255",
            some(Hops::Multi, 10_000, 255),
        ),
    ] {
        assert_eq!(bfd(keys), expected, "{keys}");
    }
}

#[test]
fn two_bonds_of_the_same_addresses_share_no_bfd_session() {
    let bond = |name: &str, key: u32| {
        format!(
            "[[bond]]\nname = \"{name}\"\nkey = {key}\nprobe_interval = 0\nbfd = \"multi-hop\"\n\
             [[bond.path]]\nname = \"{name}-p\"\nlocal = \"10.0.0.1\"\nremote = \"10.0.0.2\"\n"
        )
    };
    assert_problems(
        &(bond("nb0", 1) + &bond("nb1", 2)),
        &[
            "14: bond \"nb1\": bfd: there is a session from 10.0.0.1 to 10.0.0.2 already, for the path \
             on line 6: write bfd = \"off\" for one of the two bonds",
        ],
    );
}

#[test]
fn policies() {
    let policies = |keys: &str| parse(&with(4, keys)).map(|config| config.bonds[0].policies);
    let lossy = |above_percent, remedy| {
        Some(Lossy {
            above_percent,
            remedy,
        })
    };
    let slow = |above_ms, factor| {
        Some(Slow {
            above_ms,
            factor,
            remedy: Remedy::Less,
        })
    };
    for (keys, expected) in [
        ("", (None, None)),
        ("lossy = \"use\"\nlossy_above = 5", (None, None)),
        ("lossy = \"avoid\"", (lossy(20, Remedy::Avoid), None)),
        (
            "lossy = \"less\"\nlossy_above = 5",
            (lossy(5, Remedy::Less), None),
        ),
        (
            "slow = \"less\"\nslow_above = 200",
            (None, slow(Some(200), None)),
        ),
        (
            "slow = \"less\"\nslow_above = 200\nslow_factor = 3",
            (None, slow(Some(200), Some(3))),
        ),
    ] {
        let (lossy, slow) = expected;
        assert_eq!(policies(keys), Ok(Policies { lossy, slow }), "{keys}");
    }
}

/// Lines of [`GOOD`] with what replaces them (a pilcrow for each newline), and below each what is
/// reported then: nothing else than that.
const ONE_WRONG_LINE: &str = r#"
1: route_protocols = "bird"¶[[bond]]
    1: route_protocols "bird" is a string: write names of routing protocols or their numbers, 0 to 255, such as ["bird", 188]
1: route_protocols = []¶[[bond]]
    1: route_protocols [] is empty: write names of routing protocols or their numbers, 0 to 255, such as ["bird", 188]
1: route_protocols = ["zebra",¶"birt"]¶[[bond]]
    2: route_protocols "birt" is no known protocol: write "bird", if that is meant, or a number
1: route_protocols = ["frrouting"]¶[[bond]]
    1: route_protocols "frrouting" is no known protocol: write names of routing protocols or their numbers, 0 to 255, such as ["bird", 188]
1: route_protocols = [256]¶[[bond]]
    1: route_protocols 256 is out of range: write names of routing protocols or their numbers, 0 to 255, such as ["bird", 188]
1: route_protocols = [1.5]¶[[bond]]
    1: route_protocols 1.5 is a float: write names of routing protocols or their numbers, 0 to 255, such as ["bird", 188]
1: route-protocols = [12]¶[[bond]]
    1: unknown key "route-protocols": did you mean "route_protocols"?
1: logging = "debug"¶[[bond]]
    1: unknown key "logging": the keys here are route_protocols, bird, frr, metrics, lan, bond
1: bird = true¶[[bond]]
    1: bird true is a boolean: write a [bird] table
1: [bird]¶socket = "bird.ctl"¶[[bond]]
    2: bird: socket "bird.ctl" is not a full path: write the full path of BIRD's control socket, such as "/run/bird/bird.ctl"
1: [bird]¶socket = 5¶[[bond]]
    2: bird: socket 5 is an integer: write the full path of BIRD's control socket, such as "/run/bird/bird.ctl"
1: [bird]¶sock = "/b"¶[[bond]]
    2: bird: unknown key "sock": did you mean "socket"?
1: frr = 1979-05-27¶[[bond]]
    1: frr 1979-05-27 is a date or time: write a [frr] table
1: [frr]¶vtysh = "vtysh"¶[[bond]]
    2: frr: vtysh "vtysh" is a string: write a command and its arguments such as ["vtysh"]
1: [frr]¶vtysh = []¶[[bond]]
    2: frr: vtysh [] is empty: write a command and its arguments such as ["vtysh"]
1: [frr]¶vtysh = [""]¶[[bond]]
    2: frr: vtysh "" is empty: write a command and its arguments such as ["vtysh"]
1: [frr]¶vtish = [""]¶[[bond]]
    2: frr: unknown key "vtish": did you mean "vtysh"?
1: metrics = 9469¶[[bond]]
    1: metrics 9469 is an integer: write a [metrics] table
1: [metrics]¶listen = 65536¶[[bond]]
    2: metrics: listen 65536 is out of range: write a port, 1 to 65535, which is one of the loopback address, or an address with a port such as "127.0.0.1:9469"
1: [metrics]¶listen = 0¶[[bond]]
    2: metrics: listen 0 has no port: write a port, 1 to 65535, which is one of the loopback address, or an address with a port such as "127.0.0.1:9469"
1: [metrics]¶listen = "0.0.0.0:0"¶[[bond]]
    2: metrics: listen "0.0.0.0:0" has no port: write a port, 1 to 65535, which is one of the loopback address, or an address with a port such as "127.0.0.1:9469"
1: [metrics]¶listen = "127.0.0.1"¶[[bond]]
    2: metrics: listen "127.0.0.1" is no address with a port: write a port, 1 to 65535, which is one of the loopback address, or an address with a port such as "127.0.0.1:9469"
1: [metrics]¶listen = ":9469"¶[[bond]]
    2: metrics: listen ":9469" is no address with a port: write a port, 1 to 65535, which is one of the loopback address, or an address with a port such as "127.0.0.1:9469"
1: [metrics]¶listen = true¶[[bond]]
    2: metrics: listen true is a boolean: write a port, 1 to 65535, which is one of the loopback address, or an address with a port such as "127.0.0.1:9469"
1: [metrics]¶port = 9469¶[[bond]]
    2: metrics: unknown key "port": the keys here are listen

2:
    1: bond: name is missing: add a device name of at most 14 bytes such as "nb0"
2: name = 0
    2: bond: name 0 is an integer: write a device name of at most 14 bytes such as "nb0"
2: name = ""
    2: bond "": name "" is empty: write a device name of at most 14 bytes such as "nb0"
2: name = ".."
    2: bond "..": name ".." is reserved: write a device name of at most 14 bytes such as "nb0"
2: name = 'a/b'
    2: bond "a/b": name 'a/b' has '/', which netbond takes in no device name: write a device name of at most 14 bytes such as "nb0"
2: name = "nb 0"
    2: bond "nb 0": name "nb 0" has ' ', which netbond takes in no device name: write a device name of at most 14 bytes such as "nb0"
2: name = "nb%d"
    2: bond "nb%d": name "nb%d" has '%', which netbond takes in no device name: write a device name of at most 14 bytes such as "nb0"
2: name = "n\u0000"
    2: bond "n�": name "n\u0000" has '\0', which netbond takes in no device name: write a device name of at most 14 bytes such as "nb0"
2: name = "fifteen-bytes-x"
    2: bond "fifteen-bytes-x": name "fifteen-bytes-x" has 15 bytes: write a device name of at most 14 bytes such as "nb0"
3: adress = []
    3: bond "nb0": unknown key "adress": did you mean "address"?
3: in_order = 1
    3: bond "nb0": in_order 1 is an integer: write true or false
3: in_order = true¶in_order_hold = 1001
    4: bond "nb0": in_order_hold 1001 is out of range: write an integer from 1 to 1000, ms
3: in_order_hold = 50
    3: bond "nb0": in_order_hold is of no use without in_order: write in_order = true too, or remove it
3: colour = "red"
    3: bond "nb0": unknown key "colour": the keys here are name, address, encap, mode, class, in_order, in_order_hold, key, mtu, path_mtu, mss_clamp, ttl, detour, probe_interval, probe_misses, probe_return, bfd, bfd_interval, bfd_misses, hold_down, hold_down_max, lossy, slow, lossy_above, slow_above, slow_factor, peer, weights, flowlet_gap, copies, path
3: address = "10.67.0.1/24"
    3: bond "nb0": address "10.67.0.1/24" is a string: write addresses with their prefix lengths such as ["10.67.0.1/24"]
3: address = [¶10,¶]
    4: bond "nb0": address 10 is an integer: write addresses with their prefix lengths such as ["10.67.0.1/24"]
3: address = ["10.67.0.1"]
    3: bond "nb0": address "10.67.0.1" has no prefix length: write addresses with their prefix lengths such as ["10.67.0.1/24"]
3: address = ["10.67.1/24"]
    3: bond "nb0": address "10.67.1/24" has no valid IP address: write addresses with their prefix lengths such as ["10.67.0.1/24"]
3: address = ["10.67.0.1/33"]
    3: bond "nb0": address "10.67.0.1/33" has no prefix length from 0 to 32: write addresses with their prefix lengths such as ["10.67.0.1/24"]
3: address = ["10.67.0.0/24"]
    3: bond "nb0": address "10.67.0.0/24" is the address of the network, not of a host in it: write addresses with their prefix lengths such as ["10.67.0.1/24"]
3: address = ["10.67.0.255/24"]
    3: bond "nb0": address "10.67.0.255/24" is the broadcast address of its network: write addresses with their prefix lengths such as ["10.67.0.1/24"]
3: address = ["ff02::1/64"]
    3: bond "nb0": address "ff02::1/64" is a multicast address: write addresses with their prefix lengths such as ["10.67.0.1/24"]
3: address = ["10.67.0.1/24", "fd67::1/64",¶"10.67.0.1/16"]
    4: bond "nb0": address "10.67.0.1/16" is used on line 3 already: remove one, or choose another
3: address = ["10.67.0.1/32",¶"10.67.0.1/32"]
    4: bond "nb0": address "10.67.0.1/32" is used on line 3 already: remove one, or choose another
3: encap = "vxlan"
    3: bond "nb0": encap "vxlan" does not exist: write "gre" or "gretap"
3: encap = 6558
    3: bond "nb0": encap 6558 is an integer: write "gre" or "gretap"
3: mode = "balance-rr"
    3: bond "nb0": mode "balance-rr" does not exist: write "round-robin", "weighted", "flow", "flowlet", "active-backup", "adaptive" or "duplicate"
3: mode = []
    3: bond "nb0": mode [] is an array: write "round-robin", "weighted", "flow", "flowlet", "active-backup", "adaptive" or "duplicate"
3: weights = "ospf"
    3: bond "nb0": weights is of no use: no mode of the bond goes by it. Write mode = "weighted" in its [[bond]] (the default is "round-robin"), or remove it
3: mode = "flow"¶weights = "ospf"
    4: bond "nb0": weights "ospf" needs a daemon to ask for costs: add a [bird] or [frr] table, or write weights = "static"
3: mode = "weighted"¶weights = "cost"
    4: bond "nb0": weights "cost" does not exist: write "static", "ospf" or "measured"
3: mode = "adaptive"¶weights = "ospf"
    4: bond "nb0": mode "adaptive" measures the weights: remove weights = "ospf", or write mode = "weighted"
3: mode = "adaptive"¶flowlet_gap = 5¶probe_interval = 0
    5: bond "nb0": mode "adaptive" goes by what probes measure: give probe_interval a value from 5 to 100
3: mode = "weighted"¶weights = "measured"¶probe_interval = 500
    5: bond "nb0": weights "measured" go by what probes measure: give probe_interval a value from 5 to 100
3: mode = "flow"¶weights = "measured"
    4: bond "nb0": flows keep their paths in mode "flow", whatever those carry: write mode = "flowlet" or "adaptive", or other weights than "measured"
3: mode = "flow"¶flowlet_gap = 20
    4: bond "nb0": flowlet_gap is of no use: no mode of the bond goes by it. Write mode = "flowlet" in its [[bond]] (the default is "round-robin"), or remove it
3: mode = "flowlet"¶flowlet_gap = 0
    4: bond "nb0": flowlet_gap 0 is out of range: write an integer from 1 to 10000, ms
3: mode = "flowlet"¶probe_interval = 0
    4: bond "nb0": without probes nothing tells how the paths' latencies differ, which mode "flowlet" goes by: write flowlet_gap (ms) too, or give probe_interval another value than 0
3: copies = 2
    3: bond "nb0": copies is of no use: no mode of the bond goes by it. Write mode = "duplicate" in its [[bond]] (the default is "round-robin"), or remove it
3: mode = "duplicate"¶copies = 1
    4: bond "nb0": copies 1 is out of range: write an integer from 2 to 16, paths for each packet
3: mode = "duplicate"¶copies = 17
    4: bond "nb0": copies 17 is out of range: write an integer from 2 to 16, paths for each packet
3: mode = "duplicate"¶in_order_hold = 50
    4: bond "nb0": in_order_hold is of no use without in_order: write in_order = true too, or remove it
3: class = 1
    3: bond "nb0": class 1 is an integer: write [[bond.class]] before the keys of each class
4: key = -1
    4: bond "nb0": key -1 is out of range: write an integer from 0 to 4294967295
4: key = 0x1_0000_0000
    4: bond "nb0": key 0x1_0000_0000 is out of range: write an integer from 0 to 4294967295
4: key = -99999999999999999999
    4: bond "nb0": key -99999999999999999999 is out of range: write an integer from 0 to 4294967295
4: key = "7"
    4: bond "nb0": key "7" is a string: write an integer from 0 to 4294967295
4: mtu = 1279
    4: bond "nb0": mtu 1279 is out of range: write an integer from 1280 to 65535, bytes
4: mtu = 65536
    4: bond "nb0": mtu 65536 is out of range: write an integer from 1280 to 65535, bytes
4: ttl = 0
    4: bond "nb0": ttl 0 is out of range: write "inherit" or an integer from 1 to 255
4: ttl = 256
    4: bond "nb0": ttl 256 is out of range: write "inherit" or an integer from 1 to 255
4: ttl = "64"
    4: bond "nb0": ttl "64" does not exist: write "inherit" or an integer from 1 to 255
4: ttl = false
    4: bond "nb0": ttl false is a boolean: write "inherit" or an integer from 1 to 255
4: path_mtu = "icmp"
    4: bond "nb0": path_mtu "icmp" does not exist: write "probe" or "fixed"
4: mss_clamp = 1280
    4: bond "nb0": mss_clamp 1280 is an integer: write true or false
4: path_mtu = "probe"¶probe_interval = 0
    4: bond "nb0": path_mtu "probe" needs probes: give probe_interval a value from 5 to 10000, or write path_mtu = "fixed"
4: detour = "maybe"
    4: bond "nb0": detour "maybe" does not exist: write "avoid" or "use"
4: probe_interval = 4
    4: bond "nb0": probe_interval 4 is out of range: write 0 for no probes, or an integer from 5 to 10000, ms between probes
4: hold_down = 61
    4: bond "nb0": hold_down = 61 is longer than hold_down_max, 60: raise the latter
4: hold_down = -1
    4: bond "nb0": hold_down -1 is out of range: write an integer from 0 to 3600, s, 0 for none
4: lossy = "never"
    4: bond "nb0": lossy "never" does not exist: write "use", "less" or "avoid"
4: lossy_above = 100
    4: bond "nb0": lossy_above 100 is out of range: write an integer from 1 to 99, percent of the probes
4: slow = "avoid"
    4: bond "nb0": slow needs a limit: write slow_above (ms), slow_factor (times the best path's round trip) or both
4: slow = "less"¶slow_factor = 1
    5: bond "nb0": slow_factor 1 is out of range: write an integer from 2 to 1000, times the best path's
4: lossy = "avoid"¶probe_interval = 0
    4: bond "nb0": lossy needs probes: give probe_interval another value than 0, or write lossy = "use"
4: probe_interval = 0¶bfd = "multihop"
    5: bond "nb0": bfd "multihop" does not exist: write "off", "single-hop" or "multi-hop"
4: probe_interval = 0¶bfd = true
    5: bond "nb0": bfd true is a boolean: write "off", "single-hop" or "multi-hop"
4: probe_interval = 0¶bfd = "multi-hop"¶bfd_interval = 9
    6: bond "nb0": bfd_interval 9 is out of range: write an integer from 10 to 10000, ms between packets
4: probe_interval = 0¶bfd = "multi-hop"¶bfd_interval = 10001
    6: bond "nb0": bfd_interval 10001 is out of range: write an integer from 10 to 10000, ms between packets
4: probe_interval = 0¶bfd = "multi-hop"¶bfd_misses = 0
    6: bond "nb0": bfd_misses 0 is out of range: write an integer from 1 to 255, packets missed
4: probe_interval = 0¶bfd = "multi-hop"¶bfd_misses = 256
    6: bond "nb0": bfd_misses 256 is out of range: write an integer from 1 to 255, packets missed
4: key = 7¶bfd = "single-hop"
    5: bond "nb0": bfd is for a peer that is no netbond, which answers no probes: write probe_interval = 0 too, or bfd = "off"
4: bfd = "multi-hop"¶probe_interval = 30
    4: bond "nb0": bfd is for a peer that is no netbond, which answers no probes: write probe_interval = 0 too, or bfd = "off"
4: probe_interval = "0"¶bfd = "multi-hop"
    4: bond "nb0": probe_interval "0" is a string: write 0 for no probes, or an integer from 5 to 10000, ms between probes
4: key = 7¶bfd_interval = 50
    5: bond "nb0": bfd_interval is of no use while bfd is "off": write bfd = "single-hop" or "multi-hop" too, or remove it
4: bfd = "off"¶bfd_misses = 3
    5: bond "nb0": bfd_misses is of no use while bfd is "off": write bfd = "single-hop" or "multi-hop" too, or remove it
4: bfd = "of"¶bfd_misses = 3
    4: bond "nb0": bfd "of" does not exist: write "off", "single-hop" or "multi-hop"
4: peer = "10.65.2.1"
    4: bond "nb0": peer "10.65.2.1" has no prefix length: write a prefix of the peer such as "10.65.2.1/32"
4: peer = "10.65.2.1/24"
    4: bond "nb0": peer "10.65.2.1/24" has host bits set: write "10.65.2.0/24"
4: peer = "0.0.0.0/0"
    4: bond "nb0": peer "0.0.0.0/0" is the unspecified address: write a prefix of the peer such as "10.65.2.1/32"

6:
    5: path: name is missing: add a name of at most 31 letters, digits, "_", "." or "-", such as "via-m1"
6: name = ""
    6: path "": name "" is empty: write a name of at most 31 letters, digits, "_", "." or "-", such as "via-m1"
6: name = "via m1"
    6: path "via m1": name "via m1" has ' ': write a name of at most 31 letters, digits, "_", "." or "-", such as "via-m1"
6: name = "a-path-with-32-characters-in-it."
    6: path "a-path-with-32-characters-in-it.": name "a-path-with-32-characters-in-it." has 32 characters: write a name of at most 31 letters, digits, "_", "." or "-", such as "via-m1"
10: name = "via-m1"
    10: path "via-m1": name "via-m1" is used on line 6 already: choose another
7:
    5: path "via-m1": local is missing: add an IP address such as "10.65.0.2"
7: local = 10
    7: path "via-m1": local 10 is an integer: write an IP address such as "10.65.0.2"
7: local = "a.example"
    7: path "via-m1": local "a.example" is no IP address: write an IP address such as "10.65.0.2"
7: local = "10.65.0.2/30"
    7: path "via-m1": local "10.65.0.2/30" has a prefix length: write an IP address such as "10.65.0.2"
7: local = "fd65::2"
    8: path "via-m1": remote "10.65.0.6" is IPv4, and local "fd65::2" is IPv6: both ends of a path have addresses of one family
7: local = "fe80::2"
    7: path "via-m1": local "fe80::2" is a link-local address, which means nothing beyond its link and has no route of OSPF's: write an IP address such as "10.65.0.2"
7: local = "::ffff:10.65.0.2"
    7: path "via-m1": local "::ffff:10.65.0.2" is an IPv4 address within an IPv6 one: write "10.65.0.2"
7: local = "fe80::2%eth0"
    7: path "via-m1": local "fe80::2%eth0" is no IP address: write an IP address such as "10.65.0.2"
7: local = "0.0.0.0"
    7: path "via-m1": local "0.0.0.0" is the unspecified address: write an IP address such as "10.65.0.2"
8: remote = "255.255.255.255"
    8: path "via-m1": remote "255.255.255.255" is the broadcast address: write an IP address such as "10.65.0.6"
8: remote = "224.0.0.5"
    8: path "via-m1": remote "224.0.0.5" is a multicast address: write an IP address such as "10.65.0.6"
8: remote = "127.1.2.3"
    8: path "via-m1": remote "127.1.2.3" is a loopback address: write an IP address such as "10.65.0.6"
8: remote = "10.65.0.2"
    8: path "via-m1": remote "10.65.0.2" is local too: write the far router's address
8: remote = "10.65.0.6"¶device = "sixteen-bytes-xy"
    9: path "via-m1": device "sixteen-bytes-xy" has 16 bytes: write a device name of at most 15 bytes such as "wg-a-m1"
8: remote = "10.65.0.6"¶weight = 1
    9: path "via-m1": weight is of no use: no mode of the bond goes by it. Write mode = "weighted" in its [[bond]] (the default is "round-robin"), or remove it
8: remote = "10.65.0.6"¶priority = 1
    9: path "via-m1": priority is of no use: no mode of the bond goes by it. Write mode = "active-backup" in its [[bond]] (the default is "round-robin"), or remove it
8: remote = "10.65.0.6"¶priority = 256
    9: path "via-m1": priority 256 is out of range: write an integer from 0 to 255, the best path's the lowest
8: remote = "10.65.0.6"¶weight = 0
    9: path "via-m1": weight 0 is out of range: write an integer from 1 to 64
8: remote = "10.65.0.6"¶weight = 65
    9: path "via-m1": weight 65 is out of range: write an integer from 1 to 64
8: remote = "10.65.0.6"¶weight = "1"
    9: path "via-m1": weight "1" is a string: write an integer from 1 to 64
8: remote = "10.65.0.6"¶wieght = 1
    9: path "via-m1": unknown key "wieght": did you mean "weight"?

2: name = nb0
    2: not TOML: invalid float, expected `nan` (text needs quotes): name = nb0
2: name = /nb
    2: not TOML: string values must be quoted, expected literal string: name = /nb
2: name = "nb0
    2: not TOML: invalid basic string, expected `"`: name = "nb0
5: [[bond.path]
    5: not TOML: unclosed array table, expected `]`: [[bond.path]
4: key = 7¶key = 8
    5: duplicate key key: the same table has it above, remove one
"#;

#[test]
fn one_wrong_line() {
    let mut lines = ONE_WRONG_LINE.lines().filter(|line| !line.is_empty());
    while let (Some(case), Some(expected)) = (lines.next(), lines.next()) {
        let (line, text) = case.split_once(':').unwrap();
        let text = with(
            line.parse().unwrap(),
            &text.trim_start().replace('\u{b6}', "\n"),
        );
        assert_problems(&text, &[expected.trim_start()]);
    }
}

#[test]
fn no_array_of_tables() {
    assert_problems(
        "bond = 5",
        &["1: bond 5 is an integer: write [[bond]] before the keys of each bond"],
    );
    assert_problems(
        "[bond]\nname = \"nb0\"",
        &["1: bond [bond] is a table: write [[bond]] before the keys of each bond"],
    );
    assert_problems(
        "[[bond]]\nname = \"nb0\"",
        &["1: bond \"nb0\": path is missing: add [[bond.path]] before the keys of each path"],
    );
    assert_problems(
        "[[bond]]\nname = \"nb0\"\npath = []",
        &["3: bond \"nb0\": path [] is empty: write [[bond.path]] before the keys of each path"],
    );
    assert_problems(
        "[[bond]]\nname = \"nb0\"\n[bond.path]\nname = \"p\"",
        &[
            "3: bond \"nb0\": path [bond.path] is a table: write [[bond.path]] before the keys of \
           each path",
        ],
    );
    assert_problems(
        "[[bond]]\nname = \"nb0\"\npath = [\n{ name = \"p\", local = \"10.0.0.1\", remote = \"10.0.0.2\" },\n1]",
        &[
            "5: bond \"nb0\": path 1 is an integer: write [[bond.path]] before the keys of each path",
        ],
    );
}

/// [`GOOD`], and behind it a bond from line 13 on.
fn with_bond(name: &str, keys: &str, path: (&str, &str, &str)) -> String {
    let (path, local, remote) = path;
    format!(
        "{GOOD}[[bond]]\nname = \"{name}\"\n{keys}\n[[bond.path]]\nname = \"{path}\"\n\
         local = \"{local}\"\nremote = \"{remote}\"\n"
    )
}

#[test]
fn clashing_bonds() {
    let good = ("p", "10.65.0.18", "10.65.0.22");
    assert_problems(&with_bond("nb1", "", good), &[]);
    assert_problems(
        &with_bond("nb0", "", good),
        &[
            "14: bond \"nb0\": name \"nb0\" is taken by the bond named on line 2, for itself or the \
             other end of its veth pair: choose another",
        ],
    );
    assert_problems(
        &with_bond("nb0x", "", good),
        &[
            "14: bond \"nb0x\": name \"nb0x\" is taken by the bond named on line 2, for itself or \
             the other end of its veth pair: choose another",
        ],
    );
    assert_problems(
        &with(
            1,
            "[[bond]]\nname = \"nb0x\"\npath = [{ name = \"p\", local = \"10.0.0.1\", remote = \"10.0.0.2\" }]\n[[bond]]",
        ),
        &[
            "5: bond \"nb0\": name \"nb0\" needs the device name \"nb0x\" for the other end of its \
             veth pair, which line 2 has taken: choose another",
        ],
    );
    assert_problems(
        &with_bond("nb1", "address = [\"fd67::1/64\", \"10.67.0.1/24\"]", good),
        &[
            "15: bond \"nb1\": address \"10.67.0.1/24\" is used on line 3 already: remove one, or \
             choose another",
        ],
    );
    assert_problems(
        &with_bond("nb1", "", ("via-m2", "10.65.0.18", "10.65.0.22")),
        &["17: path \"via-m2\": name \"via-m2\" is used on line 10 already: choose another"],
    );
}

#[test]
fn clashing_tunnels() {
    let same = ("p", "10.65.0.14", "10.65.0.10");
    assert_problems(&with_bond("nb1", "", same), &[]);
    assert_problems(&with_bond("nb1", "key = 8", same), &[]);
    assert_problems(
        &with_bond("nb1", "key = 7", same),
        &[
            "16: path \"p\": local \"10.65.0.14\", remote \"10.65.0.10\" and key 7 are those of the \
             path on line 9, so what arrives could be of either: change an address, or the key \
             where the bonds differ",
        ],
    );
    // Whose key is not known is no duplicate of anybody.
    assert_problems(
        &with_bond("nb1", "key = 7.0", same),
        &["15: bond \"nb1\": key 7.0 is a float: write an integer from 0 to 4294967295"],
    );
    let text = GOOD
        .replace("key = 7\n", "")
        .replace("10.65.0.14", "10.65.0.2")
        .replace("10.65.0.10", "10.65.0.6");
    assert_problems(
        &text,
        &[
            "8: path \"via-m2\": local \"10.65.0.2\", remote \"10.65.0.6\" and no key are those of \
             the path on line 4, so what arrives could be of either: change an address, or the key \
             where the bonds differ",
        ],
    );
}

#[test]
fn limits() {
    let paths = |bond: usize, count: usize| -> String {
        let path = |i: usize| {
            format!(
                "[[bond.path]]\nname = \"p{bond}.{i}\"\nlocal = \"10.{}.{}.{i}\"\nremote = \"10.255.0.1\"\n",
                bond / 256,
                bond % 256
            )
        };
        (1..=count).map(path).collect()
    };
    let bonds = |count: usize, paths_each: usize| -> String {
        let bond = |i: usize| format!("[[bond]]\nname = \"nb{i}\"\n{}", paths(i, paths_each));
        (1..=count).map(bond).collect()
    };
    let (max_bonds, max_paths) = (MAX_BONDS as usize, MAX_BOND_PATHS as usize);
    assert_problems(&bonds(1, max_paths), &[]);
    assert_problems(
        &bonds(1, max_paths + 2),
        &["67: bond \"nb1\": there are 18 paths: keep at most 16"],
    );
    assert_problems(&bonds(max_bonds, 1), &[]);
    assert_problems(
        &bonds(max_bonds + 1, 1),
        &["6145: there are 1025 bonds: keep at most 1024"],
    );
}

#[test]
fn many_at_once() {
    let text = r#"route_protocol = ["bird"]
route_protocols = ["birb", 12, true]
[bird]
socket = "bird.ctl"
port = 5
[[bond]]
name = "a-name-that-is-too-long"
address = ["10.67.0.1/24", "10.67.0.0/24", "10.67.0.1/24"]
encap = "GRETAP"
mode = "failover"
key = -1
mtu = 68
ttl = "inherited"
detour = 1
peer = "10.65.2.1/30"
wieght = 3
[[bond.path]]
local = "10.65.0.2"
remote = "10.65.0.2"
[[bond.path]]
name = "p"
name = "q"
local = "fe80::1"
weight = 1.5
[[bond]]
"#;
    assert_problems(
        text,
        &[
            "1: unknown key \"route_protocol\": did you mean \"route_protocols\"?",
            "2: route_protocols \"birb\" is no known protocol: write \"bird\", if that is meant, or a number",
            "2: route_protocols true is a boolean: write names of routing protocols or their numbers, 0 to 255, such as [\"bird\", 188]",
            "4: bird: socket \"bird.ctl\" is not a full path: write the full path of BIRD's control socket, such as \"/run/bird/bird.ctl\"",
            "5: bird: unknown key \"port\": the keys here are socket",
            "7: bond \"a-name-that-is-too-long\": name \"a-name-that-is-too-long\" has 23 bytes: write a device name of at most 14 bytes such as \"nb0\"",
            "8: bond \"a-name-that-is-too-long\": address \"10.67.0.0/24\" is the address of the network, not of a host in it: write addresses with their prefix lengths such as [\"10.67.0.1/24\"]",
            "8: bond \"a-name-that-is-too-long\": address \"10.67.0.1/24\" is used on line 8 already: remove one, or choose another",
            "9: bond \"a-name-that-is-too-long\": encap \"GRETAP\" does not exist: write \"gre\" or \"gretap\"",
            "10: bond \"a-name-that-is-too-long\": mode \"failover\" does not exist: write \"round-robin\", \"weighted\", \"flow\", \"flowlet\", \"active-backup\", \"adaptive\" or \"duplicate\"",
            "11: bond \"a-name-that-is-too-long\": key -1 is out of range: write an integer from 0 to 4294967295",
            "12: bond \"a-name-that-is-too-long\": mtu 68 is out of range: write an integer from 1280 to 65535, bytes",
            "13: bond \"a-name-that-is-too-long\": ttl \"inherited\" does not exist: write \"inherit\" or an integer from 1 to 255",
            "14: bond \"a-name-that-is-too-long\": detour 1 is an integer: write \"avoid\" or \"use\"",
            "15: bond \"a-name-that-is-too-long\": peer \"10.65.2.1/30\" has host bits set: write \"10.65.2.0/30\"",
            "16: bond \"a-name-that-is-too-long\": unknown key \"wieght\": the keys here are name, address, encap, mode, class, in_order, in_order_hold, key, mtu, path_mtu, mss_clamp, ttl, detour, probe_interval, probe_misses, probe_return, bfd, bfd_interval, bfd_misses, hold_down, hold_down_max, lossy, slow, lossy_above, slow_above, slow_factor, peer, weights, flowlet_gap, copies, path",
            "17: path: name is missing: add a name of at most 31 letters, digits, \"_\", \".\" or \"-\", such as \"via-m1\"",
            "19: path: remote \"10.65.0.2\" is local too: write the far router's address",
            "20: path \"p\": remote is missing: add an IP address such as \"10.65.0.6\"",
            "22: duplicate key name: the same table has it above, remove one",
            "23: path \"p\": local \"fe80::1\" is a link-local address, which means nothing beyond its link and has no route of OSPF's: write an IP address such as \"10.65.0.2\"",
            "24: path \"p\": weight 1.5 is a float: write an integer from 1 to 64",
            "25: bond: name is missing: add a device name of at most 14 bytes such as \"nb0\"",
            "25: bond: path is missing: add [[bond.path]] before the keys of each path",
        ],
    );
}

/// Where the text is no TOML, only that is reported: a key on an unreadable line is not missing.
#[test]
fn several_syntax_errors() {
    assert_problems(
        "[[bond]]\nname = nb0\nmtu = 1_\nkey = 5\nkey = 6\nlocal = 10.65.0.2\n[[bond.path]\n",
        &[
            "2: not TOML: invalid float, expected `nan` (text needs quotes): name = nb0",
            "3: not TOML: `_` may only go between digits, expected nothing: mtu = 1_",
            "5: duplicate key key: the same table has it above, remove one",
            "6: not TOML: invalid float, expected nothing (text needs quotes): local = 10.65.0.2",
            "7: not TOML: unclosed array table, expected `]`: [[bond.path]",
        ],
    );
    let unclosed = format!("route_protocols = [\n{GOOD}");
    assert_eq!(problems(&unclosed).len(), 5);
}

#[test]
fn displayed_with_the_file_name() {
    let text = parse("a = 1\nb = 2").unwrap_err();
    assert_eq!(
        text,
        "f:1: unknown key \"a\": the keys here are route_protocols, bird, frr, metrics, lan, bond\n\
         f:2: unknown key \"b\": the keys here are route_protocols, bird, frr, metrics, lan, bond"
    );
}

#[test]
fn loads() {
    let directory = std::env::temp_dir().join(format!("netbond-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("netbond.toml");
    let load = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        Config::load(&file)
    };
    let good = load(EXAMPLE.as_bytes()).unwrap();
    let wrong = load(b"a = 1").unwrap_err();
    let binary = load(b"\n\xff").unwrap_err();
    std::fs::remove_dir_all(&directory).unwrap();
    let absent = Config::load(&file).unwrap_err();

    assert_eq!(Ok(good), parse(EXAMPLE));
    let name = file.display().to_string();
    let wrong: Problems = wrong.downcast().unwrap();
    assert_eq!((wrong.file, wrong.list[0].line), (name.clone(), 1));
    assert_eq!(
        binary.to_string(),
        format!("{name}:2: byte 0xff is not UTF-8: save the file as UTF-8")
    );
    assert_eq!(
        format!("{absent:#}"),
        format!(
            "cannot read the configuration file {name}: No such file or directory (os error 2)"
        )
    );
}

/// What holds for every text: no panic; problems are single lines of the file, in order.
fn check(text: &str) -> Result<(), TestCaseError> {
    match Config::parse(text, "f") {
        Ok(config) => {
            let mut names = HashSet::new();
            for bond in &config.bonds {
                prop_assert!(names.insert(bond.name.clone()) && names.insert(bond.peer_device()));
                prop_assert!(bond.peer_device().len() <= 15 && !bond.paths.is_empty());
            }
        }
        Err(problems) => {
            prop_assert!(!problems.list.is_empty());
            prop_assert!(problems.list.is_sorted_by_key(|problem| problem.line));
            let lines = text.lines().count().max(1);
            for Problem { line, message } in problems.list {
                prop_assert!((1..=lines).contains(&line), "line {} of {}", line, lines);
                prop_assert!(!message.contains(char::is_control), "{:?}", message);
            }
        }
    }
    Ok(())
}

/// Pieces that make texts almost TOML, and almost a configuration.
fn piece() -> impl Strategy<Value = String> {
    let known = [
        "[[bond]]\n",
        "[[bond.path]]\n",
        "[bond]\n",
        "[bird]\n",
        "[frr]\n",
        "[metrics]\n",
        "[[lan]]\n",
        "[bond.path.x]\n",
        "route_protocols",
        "bird",
        "frr",
        "bond",
        "path",
        "socket",
        "vtysh",
        "listen",
        "name",
        "address",
        "encap",
        "mode",
        "key",
        "mtu",
        "path_mtu",
        "mss_clamp",
        "ttl",
        "detour",
        "probe_interval",
        "bfd",
        "bfd_interval",
        "bfd_misses",
        "hold_down",
        "hold_down_max",
        "lossy",
        "lossy_above",
        "slow",
        "slow_above",
        "slow_factor",
        "peer",
        "local",
        "remote",
        "device",
        "weight",
        "=",
        "=",
        "=",
        ".",
        ",",
        "[",
        "]",
        "{",
        "}",
        "\n",
        "\n",
        "\n",
        "\r\n",
        "\r",
        " ",
        "#",
        "\"",
        "'",
        "\"\"\"",
        "'''",
        "\\",
        "\"nb0\"",
        "\"gre\"",
        "\"inherit\"",
        "\"multi-hop\"",
        "\"10.65.0.2\"",
        "\"10.65.0.6/30\"",
        "\"fd67::1/64\"",
        "0",
        "7",
        "-1",
        "1e9",
        "0xffff_ffff",
        "99999999999999999999",
        "true",
        "nan",
        "1979-05-27T07:32:00Z",
        "\u{feff}",
        "\u{e9}",
        "\0",
    ];
    prop_oneof![
        20 => proptest::sample::select(known.map(str::to_owned).to_vec()),
        1 => any::<String>(),
    ]
}

proptest! {
    #[test]
    fn any_text(text in "(?s).{0,200}") {
        check(&text)?;
    }

    #[test]
    fn any_bytes(bytes: Vec<u8>) {
        if let Err(problem) = reader::utf8(&bytes) {
            let lines = bytes.split_inclusive(|&byte| byte == b'\n').count();
            prop_assert!((1..=lines).contains(&problem.line));
        }
    }

    #[test]
    fn any_pieces(pieces in proptest::collection::vec(piece(), 0..60)) {
        check(&pieces.concat())?;
    }

    /// The example with stretches of it replaced, dropped or moved.
    #[test]
    fn mutated_example(
        edits in proptest::collection::vec((any::<u16>(), 0..40_usize, any::<bool>(), piece()), 1..8)
    ) {
        let mut chars: Vec<char> = EXAMPLE.chars().collect();
        for (start, length, keep, piece) in edits {
            let start = usize::from(start) % chars.len();
            let end = (start + length).min(chars.len());
            let cut: Vec<char> = chars.splice(start..end, piece.chars()).collect();
            if keep {
                chars.extend(cut);
            }
            chars.push('\n');
        }
        check(&chars.into_iter().collect::<String>())?;
    }

    /// The example with the lines that say something dropped, repeated and exchanged.
    #[test]
    fn shuffled_example(picks in proptest::collection::vec(any::<proptest::sample::Index>(), 0..60)) {
        let lines: Vec<&str> =
            EXAMPLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        let text: Vec<&str> = picks.iter().map(|pick| *pick.get(&lines)).collect();
        check(&text.join("\n"))?;
    }
}
