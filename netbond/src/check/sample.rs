//! Facts for tests: router A of the reference topology, where all is well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use netbond_common::names::{PathState, StateReason, program};

use super::Finding;
use super::facts::{Controller, Facts, Family, Hook, Interface, Interfaces, Program, Settings};
use crate::{
    config::Config,
    control::event::{NextHop, OspfInterface, OspfNeighbour, Route},
    migrate::{self, Address, Device, Hop, Host, Kind},
    netlink::filter::Side,
    status,
    wireguard::{self, Peer},
};

pub(super) const CONFIG: &str = r#"[bird]
[[bond]]
name = "nb0"
address = ["10.67.0.1/24", "fd67::1/64"]
peer = "10.65.2.1/32"
[[bond.path]]
name = "via-m1"
local = "10.65.0.2"
remote = "10.65.0.6"
device = "wg-a-m1"
[[bond.path]]
name = "via-m2"
local = "10.65.0.14"
remote = "10.65.0.10"
device = "wg-a-m2"
"#;

pub(super) fn config() -> Config {
    Config::parse(CONFIG, "f").expect("a good file")
}

/// What a judgement finds once what is healthy was changed.
pub(super) fn found(
    judge: impl Fn(&Config, &Facts) -> Vec<Finding>,
    change: impl FnOnce(&mut Facts),
) -> Vec<Finding> {
    let mut facts = facts();
    change(&mut facts);
    judge(&config(), &facts)
}

/// The finding, where there is one only.
pub(super) fn only(findings: &[Finding]) -> Finding {
    let [one] = findings else {
        panic!("{findings:#?}");
    };
    one.clone()
}

/// A route over one device in the main table or another.
pub(super) fn route(
    to: &str,
    table: u32,
    protocol: u8,
    ifindex: u32,
    gateway: Option<[u8; 4]>,
) -> migrate::Route {
    migrate::Route {
        to: to.parse().unwrap(),
        table,
        protocol,
        metric: 0,
        source: None,
        hops: vec![Hop {
            ifindex,
            gateway: gateway.map(IpAddr::from),
        }],
    }
}

const BIRD: u8 = 12;
const KERNEL: u8 = 2;

/// Devices: 2 nb0, 3 wg-a-m1, 4 wg-a-m2, 5 u-a-m1, 6 u-a-m2.
pub(super) fn facts() -> Facts {
    let way = |prefix: ([u8; 4], u8), protocol, ifindex, gateway: Option<[u8; 4]>| {
        Some(Route {
            prefix: (prefix.0.into(), prefix.1),
            protocol,
            metric: 32,
            usable: true,
            next_hops: vec![NextHop {
                ifindex,
                gateway: gateway.map(IpAddr::from),
            }],
        })
    };
    let (m1, m2) = ([10, 65, 0, 1], [10, 65, 0, 13]);
    let ways = [
        ([10, 65, 0, 6], way(([10, 65, 0, 4], 30), BIRD, 3, Some(m1))),
        (
            [10, 65, 0, 10],
            way(([10, 65, 0, 8], 30), BIRD, 4, Some(m2)),
        ),
        ([10, 65, 2, 1], way(([10, 65, 2, 1], 32), BIRD, 3, Some(m1))),
        ([192, 0, 2, 2], way(([192, 0, 2, 0], 30), KERNEL, 5, None)),
        ([192, 0, 2, 14], way(([192, 0, 2, 12], 30), KERNEL, 6, None)),
    ];
    let now = UNIX_EPOCH + Duration::from_secs(100_000);
    let wireguard = |number: u8, endpoint: [u8; 4]| wireguard::Device {
        mark: 0,
        peers: vec![Peer {
            endpoint: Some((endpoint, 51820).into()),
            keepalive: Some(10),
            last_handshake: Some(now - Duration::from_secs(60)),
            allowed: ["0.0.0.0/0", "::/0"].map(|all| all.parse().unwrap()).into(),
            ..Peer::new([number; 32])
        }],
    };
    let ospf = |device: &str, id: u8, address: [u8; 4]| OspfInterface {
        device: device.to_owned(),
        cost: Some(10),
        neighbours: vec![OspfNeighbour {
            router_id: [10, 65, 1, id].into(),
            address: address.into(),
            state: "Full".to_owned(),
        }],
    };
    let names = ["nb0", "wg-a-m1", "wg-a-m2"].map(str::to_owned);
    let forwarding = names.iter().flat_map(|name| {
        let families = Family::ALL.into_iter();
        families.map(|family| ((family, name.clone()), true))
    });
    let status = status();
    Facts {
        now,
        interfaces: interfaces(),
        path_devices: [("via-m1", "wg-a-m1"), ("via-m2", "wg-a-m2")]
            .map(|(path, device)| (path.to_owned(), device.to_owned()))
            .into(),
        host: host(),
        wireguard: [
            ("wg-a-m1".to_owned(), wireguard(1, [192, 0, 2, 2])),
            ("wg-a-m2".to_owned(), wireguard(2, [192, 0, 2, 14])),
        ]
        .into(),
        ways: ways
            .map(|(to, way)| ((IpAddr::from(to), 0), way))
            .into_iter()
            .collect(),
        rules: Vec::new(),
        settings: Settings {
            forwarding: forwarding.collect(),
            rp_filter: names.iter().map(|name| (name.clone(), 2)).collect(),
            rp_filter_drops: 0,
        },
        ospf: Some(vec![ospf("wg-a-m1", 1, m1), ospf("wg-a-m2", 2, m2)]),
        ospf_silent: Vec::new(),
        hooks: hooks(),
        controller: Controller::Runs(Box::new((status.clone(), status))),
        strays: BTreeSet::new(),
        abilities: Vec::new(),
        unchecked: Vec::new(),
    }
}

fn interfaces() -> Interfaces {
    let all = [
        ("lo", [127, 0, 0, 1]),
        ("nb0", [10, 67, 0, 1]),
        ("nb0x", [0; 4]),
        ("wg-a-m1", [10, 65, 0, 2]),
        ("wg-a-m2", [10, 65, 0, 14]),
        ("u-a-m1", [192, 0, 2, 1]),
        ("u-a-m2", [192, 0, 2, 13]),
    ];
    let interface = |(name, address): (&str, [u8; 4])| Interface {
        name: name.to_owned(),
        up: true,
        address: Some(address.into()).filter(|_| address != [0; 4]),
    };
    Interfaces(all.map(interface).into())
}

fn host() -> Host {
    let devices = [
        (2, "nb0", 1396, "veth"),
        (3, "wg-a-m1", 1420, "wireguard"),
        (4, "wg-a-m2", 1420, "wireguard"),
        (5, "u-a-m1", 1500, "veth"),
        (6, "u-a-m2", 1500, "veth"),
    ];
    let device = |(ifindex, name, mtu, kind): (u32, &str, u32, &str)| Device {
        ifindex,
        name: name.to_owned(),
        mtu,
        kind: Kind::Other(kind.to_owned()),
        master: None,
        lower: None,
        down_in_bond: false,
    };
    let address = |(ifindex, own): (u32, &str)| Address {
        ifindex,
        own: own.parse().unwrap(),
        far: None,
    };
    Host {
        devices: devices.map(device).into(),
        addresses: [(3, "10.65.0.2/30"), (4, "10.65.0.14/30")]
            .map(address)
            .into(),
        routes: vec![
            route("10.65.0.4/30", 254, BIRD, 3, Some([10, 65, 0, 1])),
            route("10.65.2.1/32", 254, BIRD, 3, Some([10, 65, 0, 1])),
            route("10.65.0.8/30", 254, BIRD, 4, Some([10, 65, 0, 13])),
        ],
        ..Host::default()
    }
}

fn hooks() -> Vec<Hook> {
    let all = [
        ("nb0", Side::Egress, program::EGRESS),
        ("wg-a-m1", Side::Ingress, program::INGRESS_L3),
        ("wg-a-m2", Side::Ingress, program::INGRESS_L3),
    ];
    let hook = |(device, side, name): (&str, Side, &str)| Hook {
        bond: "nb0".to_owned(),
        device: device.to_owned(),
        side,
        programs: vec![Program {
            name: name.to_owned(),
            place: "tcx",
        }],
    };
    all.map(hook).into()
}

/// Both paths up.
fn status() -> status::Status {
    let mut status = status::sample::status();
    let path = |name, device: &str, local: [u8; 4], remote: [u8; 4]| status::Path {
        device: device.to_owned(),
        local: local.into(),
        remote: remote.into(),
        ..status::sample::path(name, PathState::Up, StateReason::Route)
    };
    status.bonds[0].paths = vec![
        path("via-m1", "wg-a-m1", [10, 65, 0, 2], [10, 65, 0, 6]),
        path("via-m2", "wg-a-m2", [10, 65, 0, 14], [10, 65, 0, 10]),
    ];
    status.bonds[0].fates = BTreeMap::new();
    status
}
