//! The whole way from what was found to the file and the notes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::config::{Encap, Prefix, Ttl};

const WIREGUARD_MTU: u32 = 1440;

fn device(ifindex: u32, name: &str, mtu: u32, kind: Kind) -> Device {
    Device {
        ifindex,
        name: name.to_owned(),
        mtu,
        kind,
        master: None,
        lower: None,
        down_in_bond: false,
    }
}

fn tunnel(ethernet: bool, local: [u8; 4], remote: [u8; 4]) -> Gre {
    Gre {
        ethernet,
        local: IpAddr::from(local),
        remote: IpAddr::from(remote),
        input: GreOptions::default(),
        output: GreOptions::default(),
        link: None,
        ttl: 0,
        tos: 1,
        pmtudisc: false,
        external: false,
        wrapped: false,
        fwmark: 0,
        encap_limit: false,
    }
}

/// The same over IPv6.
fn tunnel_v6(ethernet: bool, subnet: u16, local: u16, remote: u16) -> Gre {
    let address = |last| Ipv6Addr::new(0xfd65, 0, 0, subnet, 0, 0, 0, last);
    Gre {
        local: address(local).into(),
        remote: address(remote).into(),
        ttl: 64,
        tos: 0,
        ..tunnel(ethernet, [0; 4], [0; 4])
    }
}

fn address(ifindex: u32, own: &str) -> Address {
    Address {
        ifindex,
        own: own.parse().unwrap(),
        far: None,
    }
}

fn way(remote: [u8; 4], device: u32) -> Way {
    Way {
        remote: IpAddr::from(remote),
        source: None,
        devices: vec![device],
        protocol: 12,
    }
}

/// Router A of the reference topology, without anything on top of its tunnels.
fn underlay() -> Host {
    let other = |kind: &str| Kind::Other(kind.to_owned());
    Host {
        devices: vec![
            device(1, "lo", 65536, other("")),
            device(2, "wg-a-m1", WIREGUARD_MTU, other("wireguard")),
            device(3, "wg-a-m2", WIREGUARD_MTU, other("wireguard")),
        ],
        addresses: vec![
            address(1, "10.65.2.2/32"),
            address(2, "10.65.0.2/30"),
            address(3, "10.65.0.14/30"),
        ],
        neighbours: Vec::new(),
        routes: Vec::new(),
        ways: vec![way([10, 65, 0, 6], 2), way([10, 65, 0, 10], 3)],
    }
}

/// The known recipe: balance-rr with miimon over two gretaps.
fn recipe() -> Host {
    let mut host = underlay();
    let tap = |ifindex: u32, name: &str, gre: Gre| Device {
        master: Some(9),
        ..device(ifindex, name, 1402, Kind::Gre(gre))
    };
    let bond = KernelBond {
        miimon: 100,
        ..KernelBond::default()
    };
    host.devices.extend([
        tap(4, "gt1", tunnel(true, [10, 65, 0, 2], [10, 65, 0, 6])),
        tap(5, "gt2", tunnel(true, [10, 65, 0, 14], [10, 65, 0, 10])),
        device(9, "bond0", 1402, Kind::Bond(bond)),
    ]);
    host.addresses.extend([
        address(9, "10.67.0.1/24"),
        address(9, "fd67::1/64"),
        address(9, "fe80::1/64"),
    ]);
    host.neighbours.push(Neighbour {
        ifindex: 9,
        address: Ipv4Addr::new(10, 67, 0, 2).into(),
    });
    host.routes.push(Route {
        to: "10.70.0.0/16".parse().unwrap(),
        table: 254,
        protocol: 4,
        metric: 7,
        source: None,
        hops: vec![Hop {
            ifindex: 9,
            gateway: Some(Ipv4Addr::new(10, 67, 0, 2).into()),
        }],
    });
    host
}

/// Two gre tunnels with a network of two hosts each, and a route over both.
fn spread() -> Host {
    let mut host = underlay();
    host.devices.extend([
        device(
            4,
            "gre1",
            1416,
            Kind::Gre(tunnel(false, [10, 65, 0, 2], [10, 65, 0, 6])),
        ),
        device(
            5,
            "gre2",
            1416,
            Kind::Gre(tunnel(false, [10, 65, 0, 14], [10, 65, 0, 10])),
        ),
    ]);
    host.addresses
        .extend([address(4, "10.66.1.1/30"), address(5, "10.66.2.0/31")]);
    let hop = |ifindex, gateway: [u8; 4]| Hop {
        ifindex,
        gateway: Some(Ipv4Addr::from(gateway).into()),
    };
    host.routes.push(Route {
        to: "0.0.0.0/0".parse().unwrap(),
        table: 100,
        protocol: 3,
        metric: 0,
        source: Some(Ipv4Addr::new(10, 65, 2, 2).into()),
        hops: vec![hop(4, [10, 66, 1, 2]), hop(5, [10, 66, 2, 1])],
    });
    host
}

fn ask(host: &Host, from: &[&str], peer: bool) -> Result<Migration, Vec<String>> {
    ask_named(host, from, peer, "nb0")
}

fn ask_named(host: &Host, from: &[&str], peer: bool, name: &str) -> Result<Migration, Vec<String>> {
    let from: Vec<String> = from.iter().map(|&name| name.to_owned()).collect();
    let file = "netbond.toml";
    migrate(
        host,
        Request {
            from: &from,
            name,
            peer,
            file,
        },
    )
    .map_err(|obstacles| obstacles.0)
}

fn parsed(migration: &Migration) -> Config {
    Config::parse(&migration.file, "test").unwrap()
}

/// The tunnel called `name`.
fn gre<'h>(host: &'h mut Host, name: &str) -> &'h mut Gre {
    let device = host.devices.iter_mut().find(|device| device.name == name);
    match &mut device.unwrap().kind {
        Kind::Gre(gre) => gre,
        kind @ (Kind::Bond(_) | Kind::Team | Kind::Vlan { .. } | Kind::Other(_)) => {
            panic!("{name} is {kind:?}")
        }
    }
}

/// Compares with a file below `golden/`, or writes it where NETBOND_BLESS is set.
fn golden(name: &str, text: &str) {
    let path = format!("{}/src/migrate/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("NETBOND_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, wanted, "{path}: NETBOND_BLESS=1 takes the new text");
}

#[test]
fn the_known_recipe() {
    let migration = ask(&recipe(), &["bond0"], false).unwrap();
    golden("recipe.toml", &migration.file);
    golden("recipe.txt", &migration.notes);
    let config = parsed(&migration);
    let bond = &config.bonds[0];
    assert_eq!((bond.probing, bond.mtu, bond.key), (None, None, None));
    assert_eq!(bond.ttl, Ttl::Inherit);
    assert!(config.bird.is_some() && config.frr.is_none());
    let peer = ask(&recipe(), &["bond0"], true).unwrap();
    golden("recipe-peer.toml", &peer.file);
    parsed(&peer);
}

#[test]
fn routes_over_plain_tunnels() {
    let migration = ask(&spread(), &["gre1", "gre2"], false).unwrap();
    golden("spread.toml", &migration.file);
    golden("spread.txt", &migration.notes);
    assert_eq!(parsed(&migration).bonds[0].encap, Encap::Gre);
    let peer = ask(&spread(), &["gre1", "gre2"], true).unwrap();
    golden("spread-peer.toml", &peer.file);
    let addresses: Vec<String> = parsed(&peer).bonds[0]
        .addresses
        .iter()
        .map(Prefix::to_string)
        .collect();
    assert_eq!(addresses, ["10.66.1.2/30", "10.66.2.1/31"]);
}

/// All that a set-up may have besides.
#[test]
fn a_set_up_with_everything() {
    let mut host = recipe();
    for name in ["gt1", "gt2"] {
        let gre = gre(&mut host, name);
        for options in [&mut gre.input, &mut gre.output] {
            options.key = Some(7);
        }
        (gre.tos, gre.pmtudisc, gre.fwmark) = (0, true, 5);
        gre.input.sequence = true;
    }
    let second = gre(&mut host, "gt2");
    second.ttl = 64;
    gre(&mut host, "gt1").ttl = 32;
    gre(&mut host, "gt1").local = Ipv4Addr::UNSPECIFIED.into();
    host.devices[1].mtu = 1420;
    // wg-a-m2's path leaves by the other device, by a route that is not OSPF's.
    host.ways[1] = Way {
        protocol: 4,
        ..way([10, 65, 0, 10], 2)
    };
    host.ways[0].source = Some(Ipv4Addr::new(10, 65, 0, 2).into());
    host.devices.extend([
        device(20, "br0", 1300, Kind::Other("bridge".to_owned())),
        Device {
            lower: Some(9),
            ..device(21, "bond0.10", 1300, Kind::Vlan { id: 10 })
        },
    ]);
    for device in &mut host.devices {
        if device.name == "bond0" {
            device.mtu = 1300;
            device.master = Some(20);
            device.kind = Kind::Bond(KernelBond {
                mode: 1,
                arp_interval: 250,
                arp_targets: vec![Ipv4Addr::new(10, 67, 0, 2).into()],
                active: Some(4),
                ..KernelBond::default()
            });
        }
        if device.name == "gt2" {
            device.down_in_bond = true;
        }
    }
    let migration = ask(&host, &["bond0"], false).unwrap();
    golden("everything.toml", &migration.file);
    golden("everything.txt", &migration.notes);
    let config = parsed(&migration);
    let bond = &config.bonds[0];
    assert_eq!((bond.key, bond.mtu), (Some(7), Some(1300)));
    assert_eq!(bond.ttl, Ttl::Fixed(64));
    assert_eq!(config.route_protocols, [12, 188, 11, 4]);
    assert_eq!(bond.paths[0].local, Ipv4Addr::new(10, 65, 0, 2));
}

/// Every mode has its word, and only two of them say nothing of the other end.
#[test]
fn modes_are_told() {
    for (mode, word) in [
        (0, "balance-rr"),
        (1, "all_slaves_active"),
        (2, "overtake"),
        (3, "every path"),
        (4, "LACP"),
        (5, "all_slaves_active"),
        (6, "MAC address"),
        (9, "not known"),
    ] {
        let mut host = recipe();
        let bond = host.devices.iter_mut().find(|found| found.name == "bond0");
        bond.unwrap().kind = Kind::Bond(KernelBond {
            mode,
            ..KernelBond::default()
        });
        let notes = ask(&host, &["bond0"], false).unwrap().notes;
        assert!(notes.contains(word), "{mode}: {notes}");
        assert!(notes.contains("Neither miimon nor arp_interval"), "{notes}");
    }
}

#[test]
fn a_team_is_taken_over() {
    let mut host = recipe();
    let team = host.devices.iter_mut().find(|found| found.name == "bond0");
    team.unwrap().kind = Kind::Team;
    let migration = ask(&host, &["bond0"], false).unwrap();
    assert!(migration.notes.contains("teamdctl bond0 state"));
    assert_eq!(parsed(&migration).bonds[0].paths.len(), 2);
}

/// The bond's own name is free once the steps have deleted it.
#[test]
fn netbond_may_take_the_name_over() {
    let migration = ask_named(&recipe(), &["bond0"], false, "bond0").unwrap();
    assert!(migration.file.contains("ip link del dev bond0"));
    assert!(!migration.file.contains("ip link set dev bond0 down"));
    assert_eq!(parsed(&migration).bonds[0].name, "bond0");
}

/// One tunnel over IPv6, one over IPv4: the file has both, and the MTU that the longer headers leave.
#[test]
fn tunnels_over_ipv6_become_paths() {
    let mut host = recipe();
    *gre(&mut host, "gt2") = tunnel_v6(true, 3, 2, 1);
    host.addresses.push(address(3, "fd65:0:0:3::2/64"));
    let remote: IpAddr = "fd65:0:0:3::1".parse().unwrap();
    host.ways[1].remote = remote;
    let migration = ask(&host, &["bond0"], false).unwrap();
    let config = parsed(&migration);
    let [first, second] = &config.bonds[0].paths[..] else {
        panic!("{config:?}");
    };
    assert!(first.remote.is_ipv4());
    assert_eq!(second.local, "fd65:0:0:3::2".parse::<IpAddr>().unwrap());
    assert_eq!(
        (second.remote, second.device.as_deref()),
        (remote, Some("wg-a-m2"))
    );
    // 1440 less 40, 4 and 14.
    let notes = &migration.notes;
    assert!(notes.contains("1382"), "{notes}");
    let peer = parsed(&ask(&host, &["bond0"], true).unwrap());
    assert_eq!(peer.bonds[0].paths[1].local, remote);
}

/// Everything that is in the way, at once.
#[test]
fn obstacles_are_told_together() {
    let mut host = recipe();
    let first = gre(&mut host, "gt1");
    first.input = GreOptions {
        key: Some(1),
        checksum: true,
        sequence: false,
    };
    first.output = GreOptions {
        key: Some(2),
        checksum: false,
        sequence: true,
    };
    first.wrapped = true;
    first.remote = Ipv4Addr::UNSPECIFIED.into();
    host.devices.extend([
        Device {
            master: Some(9),
            ..device(6, "eth1", 1500, Kind::Other(String::new()))
        },
        Device {
            master: Some(9),
            ..device(
                7,
                "six",
                1400,
                Kind::Gre(Gre {
                    local: "fe80::1".parse().unwrap(),
                    remote: "fe80::2".parse().unwrap(),
                    encap_limit: true,
                    ..tunnel(true, [0; 4], [0; 4])
                }),
            )
        },
        Device {
            master: Some(9),
            ..device(
                8,
                "gre1",
                1400,
                Kind::Gre(tunnel(false, [10, 65, 0, 14], [10, 65, 0, 10])),
            )
        },
        device(20, "nb0x", 1500, Kind::Other("bridge".to_owned())),
    ]);
    let obstacles = ask(&host, &["bond0"], false).unwrap_err();
    for word in [
        "nb0x exists (of kind bridge)",
        "gt1 wraps GRE into UDP",
        "gt1 has no single far end",
        "gt1 has GRE checksums (csum)",
        "gt1 sends sequence numbers (oseq)",
        "ikey 1",
        "eth1 is no GRE tunnel (hardware or loopback)",
        "six has a link-local outer address (fe80::2)",
        "type ip6gretap ... encaplimit none",
        "gretap: gt1, gt2, six",
        "different keys (gt1 2, gt2 none, six none, gre1 none)",
        "gt2 and gre1 have the same addresses",
    ] {
        assert_eq!(
            obstacles
                .iter()
                .filter(|found| found.contains(word))
                .count(),
            1,
            "{word}: {obstacles:#?}"
        );
    }
    assert_eq!(obstacles.len(), 12, "{obstacles:#?}");
}

#[test]
fn what_is_no_bond_is_refused_with_a_hint() {
    let mut host = recipe();
    host.devices
        .push(device(30, "bond1", 1500, Kind::Bond(KernelBond::default())));
    for (from, word) in [
        (&["bond7"][..], "bonds here are bond0, bond1"),
        (&["bond1"], "bond1 has no tunnels"),
        (&["gt1"], "name its bond, bond0"),
        (&["wg-a-m1"], "wg-a-m1 is no bond (of kind wireguard)"),
        (&["gt1", "gt2"], "gt1 is a gretap tunnel"),
        (
            &["bond0", "wg-a-m1"],
            "bond0 is no GRE tunnel (a kernel bond)",
        ),
    ] {
        let obstacles = ask(&host, from, false).unwrap_err();
        assert!(obstacles[0].contains(word), "{obstacles:?}");
    }
    let lone = ask(&spread(), &["gre1", "gre1"], false).unwrap_err();
    assert!(lone[0].contains("name two or more"), "{lone:?}");
    let none = ask(&Host::default(), &["bond0"], false).unwrap_err();
    assert!(none[0].contains("has no bond or team"), "{none:?}");
}

/// What only the configuration's parser knows.
#[test]
fn what_netbond_refuses_is_told() {
    let mut host = recipe();
    host.addresses.push(address(9, "10.68.0.0/24"));
    let obstacles = ask_named(&host, &["bond0"], false, "much-too-long-a-name").unwrap_err();
    assert_eq!(obstacles.len(), 2, "{obstacles:?}");
    assert!(obstacles[0].contains("much-too-long-a-name"));
    assert!(obstacles[1].contains("10.68.0.0/24"));
}

#[test]
fn the_other_ends_address_is_guessed_only_where_it_is_clear() {
    let mut host = recipe();
    let peer = |host: &Host| ask(host, &["bond0"], true).unwrap().file;
    assert!(peer(&host).contains("\naddress = [\"10.67.0.2/24\"]"));
    // Two of them; one in another network and one of another device do not count.
    for (ifindex, last) in [
        (9, [10, 67, 0, 3]),
        (9, [10, 99, 0, 3]),
        (2, [10, 67, 0, 4]),
    ] {
        host.neighbours.push(Neighbour {
            ifindex,
            address: Ipv4Addr::from(last).into(),
        });
    }
    let file = peer(&host);
    assert!(
        file.contains("it hears 10.67.0.2/24, 10.67.0.3/24: fill in"),
        "{file}"
    );
    assert!(
        file.contains("\n# address = [\"...\"]   # in 10.67.0.0/24"),
        "{file}"
    );
    host.neighbours.clear();
    assert!(peer(&host).contains("10.67.0.1/24 is not known: fill it in"));
    host.addresses.retain(|address| address.ifindex != 9);
    assert!(peer(&host).contains("bond has no address"));
    host.addresses.push(Address {
        far: Some(Ipv4Addr::new(10, 68, 0, 2).into()),
        ..address(9, "10.68.0.1/32")
    });
    assert!(peer(&host).contains("\naddress = [\"10.68.0.2/32\"]"));
    let own = ask(&host, &["bond0"], false).unwrap().file;
    assert!(
        own.contains("ip route replace 10.68.0.2/32 dev nb0"),
        "{own}"
    );
}

prop_compose! {
    fn options()(key in prop::option::of(any::<u32>())) -> GreOptions {
        GreOptions { key, checksum: false, sequence: false }
    }
}

prop_compose! {
    /// A set-up that netbond can take over, of any size.
    fn sound()(
        ethernet: bool,
        count in 2..=16_u8,
        options in options(),
        ttl: u8,
        tos: u8,
        mode in 0..9_u8,
        mtu in 68..9000_u32,
        underlay_mtu in 576..9000_u32,
        protocols in prop::collection::vec(any::<u8>(), 16),
        bound in prop::collection::vec(any::<bool>(), 16),
        lengths in prop::collection::btree_map(1..200_u8, 20..=32_u8, 0..4),
        on_top in 0..4_u8,
    ) -> (Host, Vec<String>) {
        let mut host = Host::default();
        let mut names = Vec::new();
        for n in 0..count {
            let (wg, index) = (100 + u32::from(n), 10 + u32::from(n));
            let other = Kind::Other("wireguard".to_owned());
            host.devices.push(device(wg, &format!("wg{n}"), underlay_mtu + u32::from(n), other));
            host.addresses.push(address(wg, &format!("10.65.{n}.1/30")));
            let gre = Gre {
                input: options,
                output: options,
                ttl,
                tos,
                link: bound[usize::from(n)].then_some(wg),
                ..tunnel(ethernet, [10, 65, n, 1], [10, 65, n, 2])
            };
            let name = format!("t{n}");
            let master = ethernet.then_some(9);
            host.devices.push(Device { master, ..device(index, &name, mtu, Kind::Gre(gre)) });
            names.push(name);
            host.ways.push(Way {
                protocol: protocols[usize::from(n)],
                ..way([10, 65, n, 2], wg)
            });
        }
        let top = if ethernet { 9 } else { 10 };
        if ethernet {
            let bond = KernelBond { mode, ..KernelBond::default() };
            let master = (on_top & 1 != 0).then_some(20);
            host.devices.push(Device { master, ..device(9, "bond0", mtu, Kind::Bond(bond)) });
            host.devices.push(device(20, "br0", mtu, Kind::Other("bridge".to_owned())));
            names = vec!["bond0".to_owned()];
        }
        if on_top & 2 != 0 {
            let vlan = device(21, "v10", mtu, Kind::Vlan { id: 10 });
            host.devices.push(Device { lower: Some(top), ..vlan });
        }
        for (subnet, length) in lengths {
            host.addresses.push(address(top, &format!("10.70.{subnet}.1/{length}")));
        }
        (host, names)
    }
}

proptest! {
    /// Whatever is sound becomes a file that netbond reads, and reads as it was.
    #[test]
    fn every_file_parses((host, from) in sound(), peer: bool) {
        let names: Vec<&str> = from.iter().map(String::as_str).collect();
        let migration = ask(&host, &names, peer);
        prop_assert!(migration.is_ok(), "{migration:?}");
        let config = parsed(&migration.unwrap());
        prop_assert_eq!(config.bonds.len(), 1);
        let bond = &config.bonds[0];
        let tunnels: Vec<&Gre> = host
            .devices
            .iter()
            .filter_map(|device| match &device.kind {
                Kind::Gre(gre) => Some(gre),
                Kind::Bond(_) | Kind::Team | Kind::Vlan { .. } | Kind::Other(_) => None,
            })
            .collect();
        prop_assert_eq!(bond.key, tunnels[0].output.key);
        prop_assert_eq!(bond.probing, None);
        let ttl = match tunnels[0].ttl {
            0 => Ttl::Inherit,
            ttl => Ttl::Fixed(ttl),
        };
        prop_assert_eq!(bond.ttl, ttl);
        for way in &host.ways {
            prop_assert!(config.route_protocols.contains(&way.protocol));
        }
        let found: BTreeSet<_> = tunnels
            .iter()
            .map(|gre| (gre.local, gre.remote))
            .collect();
        let written: BTreeSet<_> = bond
            .paths
            .iter()
            .map(|path| if peer { (path.remote, path.local) } else { (path.local, path.remote) })
            .collect();
        prop_assert_eq!(found, written);
        for path in &bond.paths {
            prop_assert_eq!(path.device.is_none(), peer);
        }
        if !peer {
            let own: Vec<Prefix> = host
                .addresses
                .iter()
                .filter(|address| address.ifindex < 100)
                .map(|address| address.own)
                .collect();
            prop_assert_eq!(&bond.addresses, &own);
        }
    }

    /// Both ends' files fit: what one sends, the other awaits.
    #[test]
    fn the_other_ends_file_mirrors_this_ends((host, from) in sound()) {
        let names: Vec<&str> = from.iter().map(String::as_str).collect();
        let [own, peer] = [false, true].map(|peer| parsed(&ask(&host, &names, peer).unwrap()));
        let (own, peer) = (&own.bonds[0], &peer.bonds[0]);
        prop_assert_eq!((own.key, own.encap, own.mtu), (peer.key, peer.encap, peer.mtu));
        for (here, there) in own.paths.iter().zip(&peer.paths) {
            prop_assert_eq!((here.local, here.remote), (there.remote, there.local));
        }
    }
}
