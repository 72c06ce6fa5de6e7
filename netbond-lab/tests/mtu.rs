//! Path MTU: paths that carry less than their devices take, and say nothing of it.
//!
//! ```text
//!   H --- A ---e1--- M1 ---e1--- B --- K
//!         A ---e2--- M2 ---e2--- B
//! ```
//!
//! Plain Ethernet, so that it is known to the byte what passes. M1 and M2 send no ICMP.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use common::doctor::wait_finding;
use common::{A, B, SOON, events, inside, path, reconfigure, status, wait_proven, wait_state};
use netbond_lab::topology::RouterSpec;
use netbond_lab::{Lab, Options, Ospf, Router, Signal, Topology, traffic, wait_for};

const A6: &str = "fd67::1";
const B6: &str = "fd67::2";
/// The host behind B.
const K: &str = "10.74.0.2";
/// IPv4 and GRE.
const HEADERS: u64 = 24;
/// Until a path that shrank in silence is known to have, with all that a busy machine may add.
const LATER: Duration = Duration::from_secs(60);

/// The configuration of one end; `lines` are of its bond.
fn config(near: bool, lines: &str) -> String {
    let (own, local, remote) = if near { (1, 1, 6) } else { (2, 6, 1) };
    let mut text = format!(
        "route_protocols = [\"static\"]\n[[bond]]\nname = \"nb0\"\n\
         address = [\"10.67.0.{own}/24\", \"fd67::{own}/64\"]\n{lines}"
    );
    for link in 1..=2 {
        text += &format!(
            "[[bond.path]]\nname = \"via-m{link}\"\nlocal = \"10.72.{link}.{local}\"\n\
             remote = \"10.72.{link}.{remote}\"\ndevice = \"e{link}\"\n"
        );
    }
    text
}

/// The lab, with netbond at both ends and all well.
fn up(name: &str, lines: &str) -> Lab {
    let router =
        |(place, name): (u8, &&str)| RouterSpec::new(name, Ipv4Addr::new(10, 65, 2, place + 1));
    let topology = Topology {
        routers: (0..)
            .zip(&["A", "B", "M1", "M2", "H", "K"])
            .map(router)
            .collect(),
        links: Vec::new(),
        bonds: Vec::new(),
        ospf: Ospf::default(),
    };
    let options = Options {
        bird: false,
        netbond: false,
        ..Options::default()
    };
    let lab = Lab::up_with(name, &topology, options).unwrap();
    let [a, b, h, k] = ["A", "B", "H", "K"].map(|name| lab.router(name));
    let (mut near, mut far) = (String::new(), String::new());
    for link in 1..=2 {
        let middle = lab.router(&format!("M{link}"));
        let (near_peer, far_peer) = (a.netns(), b.netns());
        middle
            .ip(&format!(
                "link add to-a type veth peer name e{link} netns {near_peer}\n\
                 link add to-b type veth peer name e{link} netns {far_peer}\n\
                 addr add 10.72.{link}.2/30 dev to-a\naddr add 10.72.{link}.5/30 dev to-b\n\
                 link set to-a up\nlink set to-b up\nrule add iif lo ipproto icmp blackhole"
            ))
            .unwrap();
        near += &format!(
            "addr add 10.72.{link}.1/30 dev e{link}\nlink set e{link} up\n\
             route add 10.72.{link}.4/30 via 10.72.{link}.2 proto static\n"
        );
        far += &format!(
            "addr add 10.72.{link}.6/30 dev e{link}\nlink set e{link} up\n\
             route add 10.72.{link}.0/30 via 10.72.{link}.5 proto static\n"
        );
    }
    a.ip(&near).unwrap();
    b.ip(&far).unwrap();
    // The hosts, each behind its router.
    for (router, host, net) in [(a, h, 73), (b, k, 74)] {
        let peer = host.netns();
        router
            .ip(&format!(
                "link add lan type veth peer name lan netns {peer}\naddr add 10.{net}.0.1/24 dev lan\n\
                 addr add fd{net}::1/64 dev lan nodad\nlink set lan up"
            ))
            .unwrap();
        host.ip(&format!(
            "addr add 10.{net}.0.2/24 dev lan\nlink set lan up\naddr add fd{net}::2/64 dev lan nodad\n\
             route add default via 10.{net}.0.1\nroute add default via fd{net}::1"
        ))
        .unwrap();
    }
    for (router, near) in [(a, true), (b, false)] {
        router.write_config(&config(near, lines)).unwrap();
        router.start_netbond().unwrap();
    }
    for router in [a, b] {
        router.wait_netbond(SOON).unwrap();
        wait_proven(router);
    }
    a.ip("route add 10.74.0.0/24 via 10.67.0.2\nroute add fd74::/64 via fd67::2")
        .unwrap();
    b.ip("route add 10.73.0.0/24 via 10.67.0.1\nroute add fd73::/64 via fd67::1")
        .unwrap();
    for router in [a, b] {
        wait_mtu(router, 1500 - HEADERS);
        for name in ["via-m1", "via-m2"] {
            wait_path_mtu(router, name, 1500);
        }
    }
    lab
}

/// Lets a middle router carry packets of so many bytes, either way, and no longer ones.
fn carries(lab: &Lab, middle: &str, mtu: u64) {
    let commands = format!("link set to-a mtu {mtu}\nlink set to-b mtu {mtu}");
    lab.router(middle).ip(&commands).unwrap();
}

fn reload(lab: &Lab) {
    for router in ["A", "B"] {
        lab.router(router).run(&["netbond", "reload"]).unwrap();
    }
}

fn mtu(router: &Router) -> u64 {
    status(router)["bonds"][0]["mtu"].as_u64().unwrap()
}

fn wait_mtu(router: &Router, wanted: u64) {
    wait_for(&format!("MTU {wanted} of {}", router.name()), LATER, || {
        let found = mtu(router);
        anyhow::ensure!(
            found == wanted,
            "it is {found}: {:#}",
            status(router)["bonds"][0]
        );
        Ok(Some(()))
    })
    .unwrap();
    // Both ends of the pair.
    for device in ["nb0", "nb0x"] {
        let file = format!("/sys/class/net/{device}/mtu");
        let found = router.run(&["cat", &file]).unwrap();
        assert_eq!(found.trim(), wanted.to_string(), "{device}");
    }
}

fn wait_path_mtu(router: &Router, name: &str, wanted: u64) {
    wait_for(&format!("path MTU {wanted} of {name}"), LATER, || {
        let probe = &path(router, name)["probe"];
        let found = (&probe["path_mtu"], &probe["full_size_result"]);
        anyhow::ensure!(
            found == (&wanted.into(), &"passes".into()),
            "it is {found:?}"
        );
        Ok(Some(()))
    })
    .unwrap();
}

/// What ping says of packets of just `size` bytes that must not be fragmented, and whether all came back.
fn ping(from: &Router, to: &str, size: u64) -> (bool, String) {
    let headers = if to.contains(':') { 48 } else { 28 };
    let payload = (size - headers).to_string();
    let ping = format!("ping -n -M do -c 3 -i 0.05 -W 2 -s {payload} {to} 2>&1; true");
    let text = from.run(&["sh", "-c", &ping]).unwrap();
    (text.contains(" 0% packet loss"), text)
}

/// Datagrams that fill packets of `mtu` bytes come back from the far end.
fn udp_comes_back(lab: &Lab, address: &'static str, own: &'static str, mtu: u64) {
    let headers = if address.contains(':') { 48 } else { 28 };
    let size = (mtu - headers) as usize;
    let reflector = inside(lab.router("B"), move || {
        let socket = UdpSocket::bind((address, 7100)).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let mut buffer = vec![0; 16_000];
        for _ in 0..5 {
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..len], from).unwrap();
        }
    });
    let listens = || {
        let sockets = lab.router("B").run(&["ss", "-Hlun", "sport = :7100"])?;
        Ok(sockets.contains(address).then_some(()))
    };
    wait_for("the reflector", SOON, listens).unwrap();
    let sender = inside(lab.router("A"), move || {
        let socket = UdpSocket::bind((own, 0)).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.connect((address, 7100)).unwrap();
        let (packet, mut buffer) = (vec![0x5a; size], vec![0; 16_000]);
        for _ in 0..5 {
            socket.send(&packet).unwrap();
            assert_eq!(socket.recv(&mut buffer).unwrap(), size);
        }
    });
    sender.join().unwrap();
    reflector.join().unwrap();
}

/// Packets of full size of every kind pass, both ways; longer ones the kernel refuses, and says why.
fn assert_carries(lab: &Lab, mtu: u64) {
    let (a, b) = (lab.router("A"), lab.router("B"));
    for (from, to, address) in [(a, b, B), (b, a, A), (a, b, B6), (b, a, A6)] {
        let (came, text) = ping(from, address, mtu);
        assert!(came, "{mtu}: {text}");
        let (came, text) = ping(from, address, mtu + 1);
        assert!(!came && text.contains("too long"), "{mtu}: {text}");
        let tcp = traffic::tcp_megabyte(from, to, address, 1).unwrap();
        assert!(tcp.mbit_per_s > 1.0, "{mtu}, {address}: {tcp:?}");
    }
    for (address, own) in [(B, A), (B6, A6)] {
        udp_comes_back(lab, address, own, mtu);
    }
    for router in [a, b] {
        for name in ["via-m1", "via-m2"] {
            let path = path(router, name);
            assert_eq!(
                (&path["state"], &path["in_use"]),
                (&"up".into(), &true.into())
            );
        }
    }
}

/// Bytes that a router received over the bond.
fn received(router: &Router) -> u64 {
    let path = |name| path(router, name)["rx_bytes"].as_u64().unwrap();
    path("via-m1") + path("via-m2")
}

/// Both paths shrink in silence under TCP streams, of the router itself and of a host behind it: the bond follows
/// by itself, the streams go on, and when the paths are wide again the bond is too.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn tcp_goes_on_when_paths_shrink_in_silence() {
    let lab = up("pmtu-tcp", "");
    let [a, b, h] = ["A", "B", "H"].map(|name| lab.router(name));
    std::thread::scope(|scope| {
        let time = Duration::from_secs(60);
        let own = scope.spawn(move || traffic::tcp(a, b, B, time).unwrap());
        let forwarded = scope.spawn(move || traffic::tcp(h, b, B6, time).unwrap());
        let flows = |what: &str| {
            let before = received(b);
            wait_for(what, LATER, || {
                Ok((received(b) > before + 1_000_000).then_some(()))
            })
            .unwrap();
        };
        flows("a megabyte at full size");
        for middle in ["M1", "M2"] {
            carries(&lab, middle, 1400);
        }
        for router in [a, b] {
            wait_mtu(router, 1400 - HEADERS);
            for name in ["via-m1", "via-m2"] {
                wait_path_mtu(router, name, 1400);
                wait_state(router, name, "up");
            }
        }
        flows("a megabyte at the smaller size");
        for middle in ["M1", "M2"] {
            carries(&lab, middle, 1500);
        }
        reload(&lab);
        for router in [a, b] {
            wait_mtu(router, 1500 - HEADERS);
        }
        flows("a megabyte at full size again");
        for stream in [own, forwarded] {
            let tcp = stream.join().unwrap();
            assert!(tcp.mbit_per_s > 1.0, "{tcp:?}");
        }
    });
    for router in [a, b] {
        let texts: Vec<String> = events(router, "via-m1")
            .into_iter()
            .map(|event| event.text)
            .collect();
        let told = |text: &str| texts.iter().any(|told| told == text);
        let (lower, higher) = (
            "path MTU 1400, was 1500: longer probes are not answered, smaller ones are",
            "path MTU 1500, was 1400: probes of that size are answered",
        );
        assert!(told(lower) && told(higher), "{texts:#?}");
        let all = router.netbond_events().unwrap();
        let bond = all.iter().filter(|event| event.path.is_none());
        let changes: Vec<&str> = bond
            .map(|event| event.text.as_str())
            .filter(|text| text.starts_with("MTU "))
            .collect();
        assert!(
            changes
                .iter()
                .any(|text| text.starts_with("MTU 1376, by the path MTU of via-m")),
            "{changes:#?}"
        );
        assert!(
            changes.len() <= 4,
            "each change once, not to and fro: {changes:#?}"
        );
    }
}

/// To the byte, from the least to jumbo frames; the user's word is looked at at once.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn packets_of_full_size_pass_at_every_mtu() {
    let lab = up("pmtu-sweep", "");
    let (a, b) = (lab.router("A"), lab.router("B"));
    let least = 1280 + HEADERS;
    for size in [1400, least, least + 1, 1477, 1499, 1500] {
        carries(&lab, "M1", size);
        reload(&lab);
        for router in [a, b] {
            wait_mtu(router, size - HEADERS);
            wait_path_mtu(router, "via-m1", size);
        }
        assert_carries(&lab, size - HEADERS);
    }
    // Nobody has to say so where the devices change.
    for middle in ["M1", "M2"] {
        carries(&lab, middle, 9000 + HEADERS);
    }
    for router in [a, b] {
        for link in 1..=2 {
            let device = format!("link set e{link} mtu {}", 9000 + HEADERS);
            router.ip(&device).unwrap();
        }
    }
    for router in [a, b] {
        wait_mtu(router, 9000);
    }
    assert_carries(&lab, 9000);
}

/// Whoever sends what is too long for the bond hears what fits, also when that became less.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn senders_hear_what_fits() {
    let lab = up("pmtu-icmp", "");
    let [a, b, h, k] = ["A", "B", "H", "K"].map(|name| lab.router(name));
    for size in [1500, 1400] {
        carries(&lab, "M2", size);
        reload(&lab);
        let fits = size - HEADERS;
        for router in [a, b] {
            wait_mtu(router, fits);
        }
        for (to, say) in [
            (K, format!("Frag needed and DF set (mtu = {fits})")),
            ("fd74::2", format!("Packet too big: mtu={fits}")),
        ] {
            // Asked anew: what a host heard before holds for minutes.
            h.run(&["ip", "route", "flush", "cache"]).unwrap();
            h.run(&["ip", "-6", "route", "flush", "cache"]).unwrap();
            let (came, text) = ping(h, to, 1500);
            assert!(!came && text.contains(&say), "{say} is missing in: {text}");
            let (came, text) = ping(h, to, fits);
            assert!(came, "{text}");
            let (_, text) = ping(a, to, fits + 1);
            assert!(
                text.contains(&format!("mtu={fits}")) || text.contains(&format!("mtu: {fits}")),
                "{text}"
            );
        }
        for to in [K, "fd74::2"] {
            let tcp = traffic::tcp_megabyte(h, k, to, 1).unwrap();
            assert!(tcp.mbit_per_s > 1.0, "{tcp:?}");
        }
    }
}

/// A path that carries less than a bond must is out, and the other carries all; where the user wants a fixed MTU each
/// that carries less is.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_path_that_is_too_small_is_out() {
    let lab = up("pmtu-small", "");
    let (a, b) = (lab.router("A"), lab.router("B"));
    carries(&lab, "M1", 1280 + HEADERS - 1);
    reload(&lab);
    for router in [a, b] {
        let path = common::wait_reason(router, "via-m1", "mtu");
        assert_eq!(path["in_use"], false);
        wait_finding(router, "problem", "black-hole", Some("via-m1"));
        assert_eq!(
            mtu(router),
            1500 - HEADERS,
            "the other path carries as much"
        );
    }
    let (came, text) = ping(a, B, 1500 - HEADERS);
    assert!(came, "{text}");
    carries(&lab, "M1", 1400);
    for router in [a, b] {
        wait_state(router, "via-m1", "up");
        wait_mtu(router, 1400 - HEADERS);
        wait_finding(router, "warning", "path-mtu", Some("via-m1"));
    }
    for (router, near) in [(a, true), (b, false)] {
        reconfigure(router, &config(near, "path_mtu = \"fixed\"\n"));
    }
    for router in [a, b] {
        wait_mtu(router, 1500 - HEADERS);
        common::wait_reason(router, "via-m1", "mtu");
    }
}

/// What one controller found its successor goes by: no packet is sent that is too long, not even at first.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn another_controller_raises_nothing_unproven() {
    let lab = up("pmtu-again", "");
    let (a, b) = (lab.router("A"), lab.router("B"));
    carries(&lab, "M1", 1400);
    reload(&lab);
    for router in [a, b] {
        wait_mtu(router, 1400 - HEADERS);
    }
    let before = a.netbond_events().unwrap().len();
    a.kill_netbond(Signal::SIGKILL).unwrap();
    a.start_netbond().unwrap();
    wait_for("the successor", SOON, || {
        let events = a.netbond_events()?;
        let started =
            |event: &netbond_lab::daemon::Event| event.text.starts_with("controller started");
        Ok(events[before..].iter().any(started).then_some(()))
    })
    .unwrap();
    wait_path_mtu(a, "via-m1", 1400);
    wait_path_mtu(a, "via-m2", 1500);
    let events = a.netbond_events().unwrap();
    let changes: Vec<&str> = events[before..]
        .iter()
        .map(|event| event.text.as_str())
        .filter(|text| text.starts_with("MTU "))
        .collect();
    assert_eq!(changes, [""; 0]);
    assert_eq!(mtu(a), 1400 - HEADERS);
    carries(&lab, "M1", 1500);
    reload(&lab);
    for router in [a, b] {
        wait_mtu(router, 1500 - HEADERS);
    }
}

/// Hosts that never hear what fits: with the segments clamped TCP passes all the same, both ways, though only one
/// end clamps.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn clamped_segments_pass_without_icmp() {
    let lab = up("pmtu-mss", "");
    let [a, b, h, k] = ["A", "B", "H", "K"].map(|name| lab.router(name));
    for router in [a, b] {
        router.ip("rule add iif lo ipproto icmp blackhole").unwrap();
    }
    reconfigure(a, &config(true, "mss_clamp = true\n"));
    carries(&lab, "M1", 1400);
    reload(&lab);
    for router in [a, b] {
        wait_mtu(router, 1400 - HEADERS);
    }
    for (from, to, address) in [(h, k, K), (k, h, "10.73.0.2")] {
        let (came, text) = ping(from, address, 1401 - HEADERS);
        assert!(
            !came && !text.contains("Frag needed"),
            "nobody says so: {text}"
        );
        let tcp = traffic::tcp_megabyte(from, to, address, 1).unwrap();
        assert!(tcp.mbit_per_s > 1.0, "{tcp:?}");
    }
}
