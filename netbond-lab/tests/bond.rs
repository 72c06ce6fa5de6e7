//! netbond on the reference topology: what its users rely on, in real namespaces, over real WireGuard
//! and OSPF.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::io::{IoSlice, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, SystemTime};

use common::{
    A, B, SOON, assert_no_loss, counters, events, inside, path, ping, reconfigure, reload,
    second_bond, silence, status, wait_proven, wait_state, wait_unused,
};
use netbond_lab::{Lab, Router, Signal, Topology, traffic, wait_for};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sendmsg, socket,
};

const PACE: Duration = Duration::from_millis(2);

const A6: &str = "fd67::1";
const B6: &str = "fd67::2";

fn up(name: &str) -> Lab {
    Lab::up(name, &Topology::reference()).unwrap()
}

/// What the first bond counted of packets that took no path on the way out.
fn tx_fates(router: &Router) -> u64 {
    let status = status(router);
    let fates = status["bonds"][0]["fates"].as_object().unwrap();
    let tx = fates.iter().filter(|(fate, _)| fate.starts_with("tx_"));
    tx.map(|(_, count)| count.as_u64().unwrap()).sum()
}

/// The byte at an offset of the test's data: no two blocks alike.
fn byte(offset: usize) -> u8 {
    (offset as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_be_bytes()[0]
}

/// Sends `len` bytes from one router to the other over TCP; fails unless they arrive as they were.
/// `during` runs once half of them have arrived.
fn transfer(from: &Router, to: &Router, address: &str, len: usize, during: impl FnOnce()) {
    let address: SocketAddr = format!("{address}:7000").parse().unwrap();
    let listener = inside(to, move || TcpListener::bind(address).unwrap())
        .join()
        .unwrap();
    let (half, reached) = std::sync::mpsc::channel();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut buffer = vec![0; 1 << 16];
        let mut received = 0;
        loop {
            let read = stream.read(&mut buffer).unwrap();
            if read == 0 {
                return received;
            }
            for (at, &got) in buffer[..read].iter().enumerate() {
                assert_eq!(got, byte(received + at), "at byte {}", received + at);
            }
            if received < len / 2 && received + read >= len / 2 {
                half.send(()).unwrap();
            }
            received += read;
        }
    });
    let sender = inside(from, move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut sent = 0;
        while sent < len {
            let end = len.min(sent + (1 << 16));
            let block: Vec<u8> = (sent..end).map(byte).collect();
            stream.write_all(&block).unwrap();
            sent = end;
        }
    });
    reached.recv_timeout(3 * SOON).expect("half of the bytes");
    during();
    sender.join().unwrap();
    assert_eq!(receiver.join().unwrap(), len);
}

/// Sends UDP packets of 100 bytes to a port where nobody listens.
fn send_udp(router: &Router, address: &'static str, packets: usize) {
    inside(router, move || {
        let any = if address.contains(':') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let socket = UdpSocket::bind(any).unwrap();
        let to: SocketAddr = (address.parse::<std::net::IpAddr>().unwrap(), 9).into();
        for _ in 0..packets {
            // An earlier packet's "port unreachable" is reported here, and nothing is sent.
            while socket.send_to(&[0; 72], to).is_err() {}
        }
    })
    .join()
    .unwrap();
}

/// Received packets are for the bond device's Ethernet address, which is netbond's own: udev leaves those alone that a
/// program gave (NET_ADDR_SET). Whoever gives it another one is followed.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_bond_device_may_have_another_address() {
    let lab = up("bond-address");
    let (a, b) = (lab.router("A"), lab.router("B"));
    let kind = b.run(&["cat", "/sys/class/net/nb0/addr_assign_type"]);
    assert_eq!(kind.unwrap().trim(), "3");
    b.ip("link set nb0 address 02:00:00:00:00:99\n").unwrap();
    let told = "another Ethernet address: 02:00:00:00:00:99";
    wait_for(told, SOON, || {
        Ok(b.netbond_log().contains(told).then_some(()))
    })
    .unwrap();
    for address in [B, B6] {
        ping(a, address);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn the_first_packet_of_either_side_arrives() {
    for (from, address) in [("B", A), ("A", B)] {
        let lab = up(&format!("first-{}", from.to_lowercase()));
        let counts =
            traffic::ping(lab.router(from), address, 1, Duration::from_millis(10)).unwrap();
        assert_eq!((counts.sent, counts.lost), (1, 0), "from {from}");
    }
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn carries_ipv4_and_ipv6_tcp_and_udp_both_ways() {
    let lab = up("carries");
    let (a, b) = (lab.router("A"), lab.router("B"));
    for (from, to, address) in [(a, b, B), (b, a, A), (a, b, B6), (b, a, A6)] {
        ping(from, address);
        let tcp = traffic::tcp_megabyte(from, to, address, 1).unwrap();
        assert!(
            tcp.mbit_per_s > 1.0,
            "{} -> {address}: {tcp:?}",
            from.name()
        );
        let before: u64 = counters(to, "rx_packets").iter().sum();
        // Not iperf3's UDP: it takes the end of its control stream for the end of the data, and a packet
        // that comes on the other path in the same moment for lost.
        let stream = traffic::Numbered::start(from, to, address, PACE).unwrap();
        wait_for("1,000 UDP packets", SOON, || {
            let arrived: u64 = counters(to, "rx_packets").iter().sum();
            Ok((arrived >= before + 1_000).then_some(()))
        })
        .unwrap();
        assert_no_loss(&stream.stop_after(SystemTime::now()).unwrap());
    }
}

/// What is meant for one link only (OSPF, MLD: TTL 1) reaches the other end, however many routers are
/// between.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_bond_is_one_hop() {
    let lab = up("one-hop");
    let (a, b) = (lab.router("A"), lab.router("B"));
    for (from, address) in [(a, B), (b, A), (a, B6), (b, A6)] {
        let before = counters(from, "tx_packets");
        let words = ["ping", "-n", "-c", "8", "-i", "0.02", "-t", "1", address];
        let text = from.run(&words).unwrap();
        assert!(
            text.contains(" 8 received"),
            "{} -> {address}: {text}",
            from.name()
        );
        let after = counters(from, "tx_packets");
        assert!(
            after[0] > before[0] && after[1] > before[1],
            "on both paths"
        );
    }
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn single_packets_are_shared_evenly() {
    let lab = up("shares");
    let (a, b) = (lab.router("A"), lab.router("B"));
    // A machine so busy that probes are late would have other paths stand in.
    let config = a.default_config().unwrap();
    reconfigure(
        a,
        &config.replacen("peer =", "probe_interval = 0\npeer =", 1),
    );
    silence(a);
    let before = (counters(a, "tx_packets"), counters(b, "rx_packets"));
    let sent = || [0, 1].map(|i| counters(a, "tx_packets")[i] - before.0[i]);
    // In lots that a tunnel's queue holds.
    for _ in 0..25 {
        send_udp(a, B, 200);
        // The other end has them all, each on the path it was sent on.
        wait_for("all packets at B", SOON, || {
            let received = [0, 1].map(|i| counters(b, "rx_packets")[i] - before.1[i]);
            Ok((received == sent()).then_some(()))
        })
        .unwrap();
    }
    let all: u64 = sent().iter().sum();
    assert!(all >= 5_000, "{all}");
    for path in sent() {
        let share = path as f64 / all as f64;
        assert!((share - 0.5).abs() < 0.01, "{:?}", sent());
    }
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn many_megabytes_arrive_as_they_were() {
    let lab = up("bytes");
    transfer(lab.router("A"), lab.router("B"), B, 30_000_000, || ());
}

/// `kill -9` of both controllers in mid-transfer: packets pass on, and the next controller takes over
/// counters and all.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn killed_controllers_lose_nothing() {
    let lab = up("killed");
    let (a, b) = (lab.router("A"), lab.router("B"));
    transfer(a, b, B, 20_000_000, || {
        a.kill_netbond(Signal::SIGKILL).unwrap();
        b.kill_netbond(Signal::SIGKILL).unwrap();
        assert_eq!(status(a)["controller"]["running"], false);
    });
    let stream = traffic::Ping::start(a, B, Duration::from_millis(2)).unwrap();
    let before = counters(a, "tx_packets");
    ping(b, A);
    for router in [a, b] {
        router.start_netbond().unwrap();
        wait_for("the new controller", SOON, || {
            Ok((status(router)["controller"]["running"] == true).then_some(()))
        })
        .unwrap();
        router.wait_netbond(SOON).unwrap();
    }
    a.kill_netbond(Signal::SIGKILL).unwrap();
    a.start_netbond().unwrap();
    wait_for("a log of the take-over", SOON, || {
        let taken_over = a.netbond_log().contains("controller started: ");
        Ok(taken_over.then_some(()))
    })
    .unwrap();
    ping(b, A);
    let counts = stream.stop().unwrap().counts();
    assert_eq!(counts.lost, 0, "of {}", counts.sent);
    let after = counters(a, "tx_packets");
    assert!(
        after[0] > before[0] && after[1] > before[1],
        "counters went on: {before:?} {after:?}"
    );
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_withdrawn_route_takes_the_path_out() {
    let lab = up("withdrawn");
    let (a, b) = (lab.router("A"), lab.router("B"));
    // M1 stops speaking OSPF without a word: its neighbours wait for the dead interval.
    lab.router("M1").bird_stop().unwrap();
    for (router, reason) in [(a, "no route"), (b, "no route")] {
        let gone = wait_unused(router, "via-m1");
        assert!(
            gone["state"] == "detour" || gone["state"] == "down" && gone["reason"] == reason,
            "{gone}"
        );
    }
    let before = counters(a, "tx_packets");
    ping(a, B);
    ping(b, A);
    let after = counters(a, "tx_packets");
    assert_eq!(
        after[0], before[0],
        "nothing goes down the path without a route"
    );
    assert!(after[1] >= before[1] + 40);
    let log = a.netbond_log();
    let cause = format!("route to {}", a.paths().unwrap()[0].remote);
    assert!(log.contains(&cause), "the cause is in the log: {log}");
    lab.router("M1").bird_start().unwrap();
    for router in [a, b] {
        wait_state(router, "via-m1", "up");
    }
    ping(a, B);
}

/// OSPF goes away in good order, and with it all its routes: what probes find alive carries on. The default route
/// matches then, as on most routers.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_restart_of_ospf_costs_no_packet() {
    let lab = up("ospf-restart");
    let (a, b) = (lab.router("A"), lab.router("B"));
    for router in [a, b] {
        wait_proven(router);
    }
    let streams = [
        traffic::Numbered::start(a, b, B, PACE).unwrap(),
        traffic::Numbered::start(b, a, A, PACE).unwrap(),
    ];
    for family in ["-4", "-6"] {
        let words = "route add default dev wg-a-m1 proto static".split(' ');
        let words: Vec<&str> = ["ip", family].into_iter().chain(words).collect();
        a.run(&words).unwrap();
    }
    a.bird_stop().unwrap();
    for path in ["via-m1", "via-m2"] {
        let gone = wait_state(a, path, "down");
        assert_eq!(gone["reason"], "route is not from OSPF");
    }
    // A new controller goes by what was proven before it.
    a.kill_netbond(Signal::SIGTERM).unwrap();
    let before = a.netbond_log().len();
    a.start_netbond().unwrap();
    let mut metric = 10_000;
    wait_for("the new controller's plan", SOON, || {
        // It tells of a better route once it has a plan. BIRD's are better than all of these.
        metric -= 1;
        let route = "route replace 10.65.2.1/32 dev wg-a-m1 proto static metric";
        a.ip(&format!("{route} {metric}\n"))?;
        let log = a.netbond_log();
        let planned = log[before..].contains("nb0: route to 10.65.2.1 over wg-a-m1 by static");
        Ok(planned.then_some(()))
    })
    .unwrap();
    a.bird_start().unwrap();
    for router in [a, b] {
        router.wait_netbond(SOON).unwrap();
    }
    let end = SystemTime::now();
    for stream in streams {
        assert_no_loss(&stream.stop_after(end).unwrap());
    }
}

/// The controller acts on a route change at once: measured by its own stamp in the map.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_route_change_is_in_the_maps_within_milliseconds() {
    let lab = up("reaction");
    let a = lab.router("A");
    // BIRD looks through the kernel's table now and then, and would put the route back at once: before
    // anybody could ask for it. Its routes outlive it.
    a.bird_kill().unwrap();
    let prefix = path(a, "via-m1")["route"]["prefix"].clone();
    let prefix = prefix.as_str().unwrap();
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    let route = a
        .run(&["ip", family, "-o", "route", "show", prefix, "proto", "bird"])
        .unwrap();
    let words: Vec<&str> = route.split_whitespace().collect();
    let mut took = [Duration::ZERO; 5];
    for took in &mut took {
        let known = events(a, "via-m1").last().map(|event| event.sequence);
        let before = SystemTime::now();
        a.run(&["ip", family, "route", "del", prefix, "proto", "bird"])
            .unwrap();
        let down = wait_for("via-m1 down", SOON, || {
            let mut events = events(a, "via-m1").into_iter();
            Ok(events
                .find(|event| Some(event.sequence) > known && event.to.as_deref() == Some("down")))
        })
        .unwrap();
        let at: jiff::Timestamp = down.at.parse().unwrap();
        *took = SystemTime::from(at).duration_since(before).unwrap();
        let restore = [
            &["ip", family, "route", "replace"],
            words.as_slice(),
            &["proto", "bird"],
        ]
        .concat();
        a.run(&restore).unwrap();
        wait_state(a, "via-m1", "up");
    }
    // The goal is 10 ms; a busy machine takes its time to start `ip`, too, now and then a second.
    took.sort_unstable();
    eprintln!("reactions, with the start of `ip`: {took:?}");
    assert!(took[2] < Duration::from_millis(200), "{took:?}");
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_device_made_anew_brings_its_path_back() {
    let lab = up("anew");
    let (a, b) = (lab.router("A"), lab.router("B"));
    let index = |device: &str| {
        let text = a
            .run(&["cat", &format!("/sys/class/net/{device}/ifindex")])
            .unwrap();
        text.trim().parse::<u64>().unwrap()
    };
    let old = index("wg-a-m1");
    a.delete_device("wg-a-m1").unwrap();
    let gone = wait_state(a, "via-m1", "down");
    assert_eq!(gone["in_use"], false);
    // B hears of it by OSPF, after the dead interval.
    wait_unused(b, "via-m1");
    ping(a, B);
    a.create_device("wg-a-m1").unwrap();
    assert_ne!(index("wg-a-m1"), old);
    wait_state(a, "via-m1", "up");
    wait_state(b, "via-m1", "up");
    let before = (counters(a, "tx_packets"), counters(a, "rx_packets"));
    ping(a, B);
    let after = (counters(a, "tx_packets"), counters(a, "rx_packets"));
    // Each CPU turns a wheel of its own: about half, not exactly.
    assert!(
        after.0[0] >= before.0[0] + 5,
        "sent on the new device: {before:?} {after:?}"
    );
    assert!(
        after.1[0] >= before.1[0] + 5,
        "received on the new device: {before:?} {after:?}"
    );
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_bond_device_deleted_by_mistake_is_made_again() {
    let lab = up("mistake");
    let a = lab.router("A");
    a.run(&["ip", "link", "del", "nb0"]).unwrap();
    wait_for("the bond again", SOON, || {
        let counts = traffic::ping(a, B, 1, Duration::from_millis(10))?;
        Ok((counts.lost == 0).then_some(()))
    })
    .unwrap();
    ping(lab.router("B"), A);
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_bad_configuration_changes_nothing() {
    let lab = up("reload");
    let a = lab.router("A");
    let good = a.default_config().unwrap();
    let stream = traffic::Ping::start(a, B, Duration::from_millis(2)).unwrap();
    let maps = || a.run(&["netbond", "maps", "dump", "PATHS"]).unwrap();
    let before = maps();
    let remote = a.paths().unwrap()[0].remote;
    let bad = good
        .replace(&format!("\"{remote}\""), "\"10.65.0.666\"")
        .replace("weight = 1", "weight = 1000");
    let bad = format!("{bad}\n[[bond.path]]\nname = \"via-m3\"\n");
    reload(a, &bad, "not reloaded");
    let log = a.netbond_log();
    assert!(
        log.contains("10.65.0.666") && log.contains("via-m3"),
        "all problems at once: {log}"
    );
    assert_eq!(maps(), before);
    let error = a
        .run(&["netbond", "check", "-c", "/run/netbond/netbond.toml"])
        .unwrap_err();
    assert!(error.to_string().contains("10.65.0.666"), "{error}");

    // A good one is taken over without a lost packet: another address, and one path less, which the
    // other end no longer uses.
    let b = lab.router("B");
    b.run(&["netbond", "path", "down", "via-m2"]).unwrap();
    let cut = good.rfind("[[bond.path]]").unwrap();
    let changed = good[..cut].replace("10.67.0.1/24", "10.67.0.3/24\", \"10.67.0.1/24");
    reconfigure(a, &changed);
    wait_paths(a, 1);
    a.run(&["netbond", "check", "-c", "/run/netbond/netbond.toml"])
        .unwrap();
    ping(b, "10.67.0.3");
    reconfigure(a, &good);
    wait_paths(a, 2);
    wait_state(a, "via-m2", "up");
    let addresses = a
        .run(&["ip", "-o", "address", "show", "dev", "nb0"])
        .unwrap();
    assert!(!addresses.contains("10.67.0.3"), "{addresses}");
    let counts = stream.stop().unwrap().counts();
    assert_eq!(counts.lost, 0, "of {}", counts.sent);
}

fn wait_paths(router: &Router, count: usize) {
    wait_for(&format!("{count} paths"), SOON, || {
        let paths = status(router)["bonds"][0]["paths"]
            .as_array()
            .unwrap()
            .len();
        Ok((paths == count).then_some(()))
    })
    .unwrap();
}

/// Every packet that goes into the bond is in exactly one counter.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn every_packet_is_accounted_for() {
    let lab = up("accounts");
    let a = lab.router("A");
    silence(a);
    let total = || counters(a, "tx_packets").iter().sum::<u64>() + tx_fates(a);
    let frame = |ethertype: u16, len: usize, first: u8| {
        let mut frame = vec![0; 12];
        frame.extend(ethertype.to_be_bytes());
        frame.push(first);
        frame.resize(14 + len, 0);
        frame
    };
    let mut valid = frame(0x0800, 60, 0x45);
    valid[14 + 3] = 60;
    let frames = vec![
        (frame(0x0806, 28, 0), "tx_not_ip"),
        (frame(0x88cc, 40, 0), "tx_not_ip"),
        (frame(0x0800, 19, 0x45), "tx_malformed"),
        (frame(0x0800, 60, 0x65), "tx_malformed"),
        (frame(0x86dd, 39, 0x60), "tx_malformed"),
        (valid, ""),
    ];
    let fate = |name: &str| status(a)["bonds"][0]["fates"][name].as_u64().unwrap_or(0);
    for (frame, name) in frames {
        let before = (total(), fate(name));
        send_frames(a, frame, 100);
        let counted = (total() - before.0, fate(name) - before.1);
        assert_eq!(
            counted,
            (100, if name.is_empty() { 0 } else { 100 }),
            "{name}"
        );
    }
    let before = total();
    send_udp(a, B, 1000);
    assert_eq!(total() - before, 1000);
    // While one path is out, and while both are.
    a.run(&["netbond", "path", "down", "via-m1"]).unwrap();
    let before = (total(), counters(a, "tx_packets")[0]);
    send_udp(a, B, 1000);
    assert_eq!(
        (total() - before.0, counters(a, "tx_packets")[0]),
        (1000, before.1)
    );
    a.run(&["netbond", "path", "down", "via-m2"]).unwrap();
    let before = (total(), fate("tx_no_path"));
    send_udp(a, B, 1000);
    assert_eq!(
        (total() - before.0, fate("tx_no_path") - before.1),
        (1000, 1000)
    );
}

/// Sends raw frames into the bond device.
fn send_frames(router: &Router, frame: Vec<u8>, count: usize) {
    inside(router, move || {
        let interfaces = nix::ifaddrs::getifaddrs().unwrap();
        let address = interfaces
            .filter(|interface| interface.interface_name == "nb0")
            .find_map(|interface| interface.address?.as_link_addr().copied())
            .unwrap();
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None::<SockProtocol>,
        )
        .unwrap();
        for _ in 0..count {
            let parts = [IoSlice::new(&frame)];
            // A frame that the program drops is reported as ENOBUFS: it was sent all the same.
            let sent = sendmsg(
                socket.as_raw_fd(),
                &parts,
                &[],
                MsgFlags::empty(),
                Some(&address),
            );
            assert!(
                matches!(sent, Ok(_) | Err(nix::errno::Errno::ENOBUFS)),
                "{sent:?}"
            );
        }
    })
    .join()
    .unwrap();
}

/// A super-packet of TCP counts as its segments, at both ends alike.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn super_packets_are_counted_by_segments() {
    let lab = up("gso");
    let (a, b) = (lab.router("A"), lab.router("B"));
    // Else the kernel would not build any: this is what is tested.
    let features = a.run(&["ethtool", "-k", "nb0"]).unwrap();
    assert!(
        features.contains("tcp-segmentation-offload: on"),
        "{features}"
    );
    silence(a);
    let before = (counters(a, "tx_packets"), counters(b, "rx_packets"));
    transfer(a, b, B, 1_000_000, || ());
    let sent = || counters(a, "tx_packets").iter().sum::<u64>() - before.0.iter().sum::<u64>();
    assert!(sent() >= 1_000_000 / 1396, "{}", sent());
    wait_for("as many packets at B as A sent", SOON, || {
        let received: u64 = counters(b, "rx_packets").iter().sum();
        Ok((received - before.1.iter().sum::<u64>() == sent()).then_some(()))
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn the_mtu_leaves_room_for_the_headers() {
    let lab = up("mtu");
    let a = lab.router("A");
    assert_eq!(status(a)["bonds"][0]["mtu"], 1420 - 24);
    let ping = |size: &str| {
        a.run(&[
            "ping", "-c", "2", "-i", "0.1", "-W", "2", "-M", "do", "-s", size, B,
        ])
    };
    ping("1368").unwrap();
    assert!(ping("1369").is_err());
    let ping6 = |size: &str| {
        a.run(&[
            "ping", "-6", "-c", "2", "-i", "0.1", "-W", "2", "-M", "do", "-s", size, B6,
        ])
    };
    ping6("1348").unwrap();
    // Without "don't fragment" larger ones go in pieces.
    a.run(&["ping", "-c", "2", "-i", "0.1", "-W", "2", "-s", "5000", B])
        .unwrap();
    let mtu = a.topology().ends_of("A").last().unwrap().mtu - 20;
    let mtu = mtu.to_string();
    a.run(&["ip", "link", "set", "wg-a-m2", "mtu", &mtu])
        .unwrap();
    wait_for("the bond's MTU to follow", SOON, || {
        Ok((status(a)["bonds"][0]["mtu"] == 1376).then_some(()))
    })
    .unwrap();
}

/// Failures beyond the first hop, with routes alone: M1 loses B without a word. A's own route never
/// changes, but the peer's loopback is no longer reached over M1.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn the_peer_prefix_shows_failures_beyond_the_first_hop() {
    let lab = up("beyond");
    let (a, b) = (lab.router("A"), lab.router("B"));
    for router in [a, b] {
        let config = router.default_config().unwrap();
        reconfigure(
            router,
            &config.replacen("peer =", "probe_interval = 0\npeer =", 1),
        );
    }
    cut(&lab, "M1", "B");
    let path = wait_state(a, "via-m1", "suspect");
    assert_eq!(path["in_use"], false);
    assert_eq!(path["route"]["device"], "wg-a-m1");
    wait_unused(b, "via-m1");
    ping(a, B);
    ping(b, A);
    mend(&lab, "M1", "B");
    for router in [a, b] {
        wait_state(router, "via-m1", "up");
    }
    ping(a, B);
}

/// Silently drops everything between two routers, both ways.
fn cut(lab: &Lab, one: &str, other: &str) {
    lab.blackhole(one, other).unwrap();
    lab.blackhole(other, one).unwrap();
}

fn mend(lab: &Lab, one: &str, other: &str) {
    lab.heal(one, other).unwrap();
    lab.heal(other, one).unwrap();
}

/// A reload that changes the key, or the name of the bond, carries on as soon as both ends have it.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_reload_changes_key_and_name() {
    let lab = up("rename");
    let (a, b) = (lab.router("A"), lab.router("B"));
    for change in [
        ("peer =", "key = 5\npeer ="),
        ("peer =", "key = 6\npeer ="),
        ("\"nb0\"", "\"nb9\""),
    ] {
        for router in [a, b] {
            let config = router.default_config().unwrap();
            reconfigure(router, &config.replacen(change.0, change.1, 1));
        }
        for router in [a, b] {
            router.wait_netbond(SOON).unwrap();
        }
        ping(a, B);
        ping(b, A);
    }
    assert!(
        a.run(&["ip", "link", "show", "nb0"]).is_err(),
        "the old name is gone"
    );
    assert_eq!(status(a)["bonds"].as_array().unwrap().len(), 1);
}

/// What the kernel refuses in the middle of a reload leaves everything as it was.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_reload_that_the_kernel_refuses_changes_nothing() {
    let lab = up("refused");
    let a = lab.router("A");
    let good = a.default_config().unwrap();
    a.run(&[
        "ip", "link", "add", "name", "nb1", "type", "veth", "peer", "name", "other",
    ])
    .unwrap();
    let second = second_bond(&good);
    let stream = traffic::Ping::start(a, B, Duration::from_millis(2)).unwrap();
    let maps = || {
        ["BONDS", "PATHS", "TUNNELS", "BOND_BY_IFINDEX"]
            .map(|map| a.run(&["netbond", "maps", "dump", map]).unwrap())
    };
    let before = maps();
    let changed = good.replace("10.67.0.1/24", "10.67.0.7/24");
    reload(a, &format!("{changed}\n{second}"), "not reloaded");
    assert_eq!(maps(), before);
    let addresses = a
        .run(&["ip", "-o", "address", "show", "dev", "nb0"])
        .unwrap();
    assert!(
        addresses.contains("10.67.0.1/24") && !addresses.contains("10.67.0.7"),
        "{addresses}"
    );
    let sent = || counters(a, "tx_packets").iter().sum::<u64>();
    let so_far = sent();
    wait_for("a second of traffic", SOON, || {
        Ok((sent() > so_far + 500).then_some(()))
    })
    .unwrap();
    let counts = stream.stop().unwrap().counts();
    assert_eq!(counts.lost, 0, "of {}", counts.sent);
}

/// Somebody else's command takes programs off a bond and a path: no event tells of it, and they are back soon.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_program_that_somebody_took_off_comes_back() {
    let lab = up("taken-off");
    let (a, b) = (lab.router("A"), lab.router("B"));
    wait_proven(a);
    for (device, side) in [("wg-a-m1", "ingress"), ("nb0", "egress")] {
        let link = a
            .run(&["cat", &format!("/sys/class/net/{device}/ifindex")])
            .unwrap();
        let link = format!("/sys/fs/bpf/netbond/links/{}-{side}", link.trim());
        // Kernels before 6.6 have filters.
        let taken = if a.run(&["test", "-e", &link]).is_ok() {
            a.run(&["bpftool", "link", "detach", "pinned", &link])
        } else {
            a.run(&["tc", "qdisc", "del", "dev", device, "clsact"])
        };
        taken.unwrap();
        let told = format!("somebody took netbond's program off {device} ({side}): it is back");
        wait_for(&told, SOON, || {
            Ok(a.netbond_log().contains(&told).then_some(()))
        })
        .unwrap();
        wait_state(a, "via-m1", "up");
        ping(a, B);
        ping(b, A);
    }
}

/// What is not of its paths goes on to the next program on the device: here that of another netbond.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn foreign_packets_go_on_to_the_next_program() {
    let lab = up("chain");
    let (a, b) = (lab.router("A"), lab.router("B"));
    let second = |router: &Router| second_bond(&router.default_config().unwrap());
    reconfigure(
        b,
        &format!("{}\n{}", b.default_config().unwrap(), second(b)),
    );
    // One program fits in a driver: it leaves to tc what is not the first one's.
    let by_tc = second(a).replace("xdp = \"native\"", "xdp = \"off\"");
    std::fs::write(a.host_path("/run/netbond/second.toml"), by_tc).unwrap();
    let other = ["--pin-root", "/sys/fs/bpf/other"];
    let mut child = a
        .command("netbond")
        .args(other)
        .args(["run", "-c", "/run/netbond/second.toml"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("an answer through the second instance", SOON, || {
        let counts = traffic::ping(a, "10.68.0.2", 1, Duration::from_millis(10))?;
        Ok((counts.lost == 0).then_some(()))
    })
    .unwrap();
    ping(a, "10.68.0.2");
    ping(a, B);
    child.kill().unwrap();
    child.wait().unwrap();
    a.run(&["netbond", other[0], other[1], "detach"]).unwrap();
    assert!(a.run(&["ip", "link", "show", "nb1"]).is_err());
    ping(a, B);
}

/// Two bonds between the same addresses, told apart by their keys.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn keys_tell_bonds_apart() {
    let lab = up("keys");
    for (name, host) in [("A", 1), ("B", 2)] {
        let router = lab.router(name);
        let first = router.default_config().unwrap();
        let second = second_bond(&first);
        reconfigure(router, &format!("{first}\n{second}"));
        router.wait_netbond(SOON).unwrap();
        assert_eq!(status(router)["bonds"][1]["mtu"], 1420 - 28);
        assert!(
            router
                .run(&["ip", "address", "show", "dev", "nb1"])
                .unwrap()
                .contains(&format!("10.68.0.{host}"))
        );
    }
    let (a, b) = (lab.router("A"), lab.router("B"));
    let of = |router: &Router, bond: usize| -> u64 {
        let status = status(router);
        let paths = status["bonds"][bond]["paths"].as_array().unwrap().clone();
        paths
            .iter()
            .map(|path| path["rx_packets"].as_u64().unwrap())
            .sum()
    };
    let before = (of(b, 0), of(b, 1));
    ping(a, "10.68.0.2");
    assert!(of(b, 1) >= before.1 + 20);
    ping(a, B);
    assert!(of(b, 0) >= before.0 + 20);
    ping(b, "10.68.0.1");
}

/// The user's word counts at once and with no controller, and survives one.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_path_is_taken_out_with_the_controller_dead() {
    let lab = up("admin");
    let a = lab.router("A");
    a.kill_netbond(Signal::SIGKILL).unwrap();
    a.run(&["netbond", "path", "down", "via-m1"]).unwrap();
    let before = counters(a, "tx_packets");
    ping(a, B);
    assert_eq!(counters(a, "tx_packets")[0], before[0]);
    assert!(
        a.run(&["netbond", "path", "list"])
            .unwrap()
            .contains("down")
    );
    let taken_out = path(a, "via-m1");
    assert_eq!(
        (&taken_out["state"], &taken_out["in_use"]),
        (&"down".into(), &false.into())
    );
    a.start_netbond().unwrap();
    wait_for("the take-over", SOON, || {
        Ok((status(a)["controller"]["running"] == true).then_some(()))
    })
    .unwrap();
    wait_for("the wheel without the path", SOON, || {
        let bonds = a.run(&["netbond", "maps", "dump", "BONDS"])?;
        Ok(bonds.contains("\"wheel\":[1]").then_some(()))
    })
    .unwrap();
    a.run(&["netbond", "path", "up", "via-m1"]).unwrap();
    a.wait_netbond(SOON).unwrap();
    let error = a
        .run(&["netbond", "path", "down", "via-m9"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("there are: via-m1, via-m2"), "{error}");
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_second_controller_refuses_and_detach_removes_everything() {
    let lab = up("detach");
    let a = lab.router("A");
    let second = a
        .run(&["netbond", "run", "-c", "/run/netbond/netbond.toml"])
        .unwrap_err();
    assert!(second.to_string().contains("another netbond"), "{second}");
    let refused = a.run(&["netbond", "detach"]).unwrap_err();
    assert!(refused.to_string().contains("another netbond"), "{refused}");
    ping(a, B);
    a.kill_netbond(Signal::SIGTERM).unwrap();
    ping(a, B);
    a.run(&["netbond", "detach"]).unwrap();
    assert!(a.run(&["ip", "link", "show", "nb0"]).is_err());
    assert!(a.run(&["ip", "link", "show", "nb0x"]).is_err());
    assert!(a.run(&["ls", "/sys/fs/bpf/netbond"]).is_err());
    let gone = a.run(&["netbond", "status"]).unwrap_err().to_string();
    assert!(gone.contains("no netbond here"), "{gone}");
    // The paths themselves are as they were.
    a.run(&[
        "ping",
        "-c",
        "2",
        "-i",
        "0.1",
        "-I",
        "10.65.0.2",
        "10.65.0.6",
    ])
    .unwrap();
    a.start_netbond().unwrap();
    a.wait_netbond(SOON).unwrap();
    ping(a, B);
}
