//! Bonds in `gretap` encap on the reference topology: what an Ethernet link carries, they carry.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use common::{A, B, SOON, counters, path, ping, reconfigure, reload, silence, status};
use netbond_lab::topology::LinkKind;
use netbond_lab::{Lab, Router, Signal, Topology, traffic, wait_for};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::Value;

const A6: &str = "fd67::1";
const B6: &str = "fd67::2";
/// What WireGuard's 1420 leave.
const MTU: u64 = 1420 - 38;
/// EtherType of the tests' own frames: the second of those for local experiments.
const OURS: [u8; 2] = [0x88, 0xb6];
/// A station that nobody is.
const UNKNOWN: [u8; 6] = [2, 0xde, 0xad, 0, 0, 1];

fn up(name: &str) -> Lab {
    Lab::up(name, &Topology::reference().with_encap("gretap")).unwrap()
}

fn sum(router: &Router, counter: &str) -> u64 {
    counters(router, counter).iter().sum()
}

fn fate(router: &Router, name: &str) -> u64 {
    status(router)["bonds"][0]["fates"][name]
        .as_u64()
        .unwrap_or(0)
}

/// What a router counts of packets that took no path, but for probes.
fn refused(router: &Router) -> Value {
    let mut fates = status(router)["bonds"][0]["fates"].clone();
    let counts = fates.as_object_mut().unwrap();
    counts.retain(|fate, _| !fate.starts_with("rx_probe"));
    fates
}

/// Waits until a router uses its addresses: IPv6 looks for duplicates first.
fn settle(router: &Router) {
    wait_for("addresses in use", SOON, || {
        let shown = router.run(&["ip", "-6", "address", "show", "dev", "nb0"])?;
        Ok((shown.contains("fe80::") && !shown.contains("tentative")).then_some(()))
    })
    .unwrap();
}

fn mac(router: &Router, device: &str) -> [u8; 6] {
    let shown = router
        .run(&["cat", &format!("/sys/class/net/{device}/address")])
        .unwrap();
    let bytes: Vec<u8> = shown
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn an_ethernet_link_in_everything_that_ip_asks_of_one() {
    let lab = up("gretap");
    let (a, b) = (lab.router("A"), lab.router("B"));
    for router in [a, b] {
        settle(router);
        let bond = &status(router)["bonds"][0];
        assert_eq!(
            (&bond["encap"], &bond["mtu"]),
            (&"gretap".into(), &MTU.into())
        );
    }
    // The kernel's own first packets found no path in use yet.
    let before = [a, b].map(refused);
    let text = a.run(&["netbond", "status"]).unwrap();
    assert!(
        text.contains("paths in use, mtu 1382, gretap, peer"),
        "{text}"
    );
    for (from, address) in [(a, B), (b, A), (a, B6), (b, A6)] {
        ping(from, address);
        let there = from
            .run(&["ip", "neigh", "show", "to", address, "dev", "nb0"])
            .unwrap();
        let other = if from.name() == "A" { b } else { a };
        let lladdr = other.run(&["cat", "/sys/class/net/nb0/address"]).unwrap();
        assert!(there.contains(lladdr.trim()), "resolved: {there}");
    }
    // The link-local address of the other, whose multicast group is asked for it.
    let shown = b
        .run(&["ip", "-6", "-br", "address", "show", "dev", "nb0"])
        .unwrap();
    let local = shown
        .split_whitespace()
        .find_map(|word| {
            word.strip_suffix("/64")
                .filter(|word| word.starts_with("fe80"))
        })
        .unwrap();
    ping(a, &format!("{local}%nb0"));

    for (from, to, address) in [(a, b, B), (b, a, A), (a, b, B6), (b, a, A6)] {
        let before = (counters(from, "tx_packets"), counters(to, "rx_packets"));
        let tcp = traffic::tcp(from, to, address, Duration::from_secs(1)).unwrap();
        assert!(
            tcp.mbit_per_s > 1.0,
            "{} -> {address}: {tcp:?}",
            from.name()
        );
        println!("{} -> {address}: {} Mbit/s", from.name(), tcp.mbit_per_s);
        let (sent, received) = (counters(from, "tx_packets"), counters(to, "rx_packets"));
        for [first, second] in [
            [sent[0] - before.0[0], sent[1] - before.0[1]],
            [received[0] - before.1[0], received[1] - before.1[1]],
        ] {
            let share = first as f64 / (first + second) as f64;
            assert!((0.45..0.55).contains(&share), "{first} and {second}");
        }
    }
    assert_eq!([a, b].map(refused), before, "nothing was refused");
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn the_mtu_leaves_room_for_frames() {
    let lab = up("gretap-mtu");
    let a = lab.router("A");
    let ping = |size: u64| {
        let size = size.to_string();
        a.run(&[
            "ping", "-c", "2", "-i", "0.1", "-W", "2", "-M", "do", "-s", &size, B,
        ])
    };
    ping(MTU - 28).unwrap();
    assert!(ping(MTU - 27).is_err());
    // Probes of full size are as long as the longest frame in its outer packet.
    for name in ["via-m1", "via-m2"] {
        wait_for("a probe of full size", SOON, || {
            let probe = &path(a, name)["probe"];
            Ok((probe["full_size"] == MTU && probe["full_size_result"] == "passes").then_some(()))
        })
        .unwrap();
    }
    let limit = a.topology().ends_of("A").last().unwrap().mtu - 1;
    let limit = limit.to_string();
    a.run(&["ip", "link", "set", "wg-a-m2", "mtu", &limit])
        .unwrap();
    wait_for("the bond's MTU to follow", SOON, || {
        Ok((status(a)["bonds"][0]["mtu"] == MTU - 1).then_some(()))
    })
    .unwrap();
}

/// A socket for frames of our EtherType on a device of a network namespace.
fn frames_on(namespace: PathBuf, device: &'static str) -> (OwnedFd, LinkAddr) {
    std::thread::spawn(move || {
        setns(File::open(namespace).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        let address = nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter(|interface| interface.interface_name == device)
            .find_map(|interface| interface.address?.as_link_addr().copied())
            .unwrap();
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .unwrap();
        bind(socket.as_raw_fd(), &address).unwrap();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 500_000)).unwrap();
        setsockopt(&socket, sockopt::RcvBuf, &(8 << 20)).unwrap();
        (socket, address)
    })
    .join()
    .unwrap()
}

fn namespace(router: &Router) -> PathBuf {
    format!("/run/netns/{}", router.netns()).into()
}

fn send(socket: &(OwnedFd, LinkAddr), frame: &[u8], count: usize) {
    for _ in 0..count {
        let parts = [IoSlice::new(frame)];
        let (socket, address) = (socket.0.as_raw_fd(), Some(&socket.1));
        // A frame that the program drops is reported as ENOBUFS: it was sent all the same.
        let sent = sendmsg(socket, &parts, &[], MsgFlags::empty(), address);
        assert!(matches!(sent, Ok(_) | Err(Errno::ENOBUFS)), "{sent:?}");
    }
}

/// The frames received with our EtherType, tagged or not, until none comes for half a second. (The
/// kernel takes a tag out of the frame, and tells it in other ways.)
fn received(socket: &(OwnedFd, LinkAddr)) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut buffer = [0; 2048];
    while let Ok(len) = recv(socket.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
        let frame = &buffer[..len];
        if frame[12..14] == OURS || frame.get(16..18) == Some(&OURS) {
            frames.push(frame.to_vec());
        }
    }
    frames
}

fn frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &OURS, payload].concat()
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn every_frame_is_carried_and_accounted_for() {
    let lab = up("gretap-frames");
    let (a, b) = (lab.router("A"), lab.router("B"));
    for router in [a, b] {
        silence(router);
    }
    let (out, inward) = (
        frames_on(namespace(a), "nb0"),
        frames_on(namespace(b), "nb0"),
    );
    let (from, to) = (mac(a, "nb0"), mac(b, "nb0"));
    let tag = [0x81, 0, 0, 5];
    let plain = frame(to, from, &[7; 80]);
    let tagged = |tags: &[[u8; 4]]| [&plain[..12], tags.concat().as_slice(), &plain[12..]].concat();
    let typed = |ethertype: [u8; 2], payload: &[u8]| [&to[..], &from, &ethertype, payload].concat();
    for (what, sent, whole) in [
        ("plain", plain.clone(), true),
        ("broadcast", frame([0xff; 6], from, &[8; 80]), true),
        (
            "a group",
            frame([1, 0x80, 0xc2, 0, 0, 0x0e], from, &[9; 80]),
            true,
        ),
        ("short", frame(to, from, &[1, 2, 3]), true),
        ("empty", frame(to, from, &[]), true),
        ("tagged", tagged(&[tag]), false),
        ("tagged twice", tagged(&[[0x88, 0xa8, 0, 9], tag]), false),
        ("short IPv4", typed([0x08, 0], &[0x45; 19]), false),
        ("short IPv6", typed([0x86, 0xdd], &[0x60; 39]), false),
        ("IPv4 of version 15", typed([0x08, 0], &[0xf0; 60]), false),
    ] {
        let before = (sum(a, "tx_packets"), sum(b, "rx_packets"));
        let bytes = (sum(a, "tx_bytes"), sum(b, "rx_bytes"));
        let refused = fate(b, "rx_no_decap");
        send(&out, &sent, 20);
        let got = received(&inward);
        let after = (sum(a, "tx_packets"), sum(b, "rx_packets"));
        // The kernel does not lengthen what carries the sender's note of a tunnel, as over a veth pair: no IP
        // header is so short.
        let refused = fate(b, "rx_no_decap") - refused;
        let mut links = lab.topology().links.iter();
        let over_veth = links.any(|link| link.kind == LinkKind::Ethernet);
        let may_be = over_veth && what.starts_with("short IP");
        assert!(refused == 0 || may_be, "{what}");
        let taken = 20 - refused;
        assert_eq!(
            (after.0 - before.0, after.1 - before.1),
            (20, taken),
            "{what}"
        );
        let octets = sent.len() as u64;
        let counted = (sum(a, "tx_bytes") - bytes.0, sum(b, "rx_bytes") - bytes.1);
        assert_eq!(counted, (20 * octets, taken * octets), "{what}");
        if whole {
            assert_eq!(got.len(), 20, "{what}");
            assert!(
                got.iter().all(|frame| frame.starts_with(&sent)),
                "{what}: {got:?}"
            );
        }
    }
    let before = sum(a, "tx_packets");
    send(&out, &tagged(&[tag; 3]), 20);
    assert_eq!((fate(a, "tx_tags"), sum(a, "tx_packets")), (20, before));
}

/// A host of a LAN, in a network namespace of its own, on a port of the router's bridge.
struct Host {
    process: Child,
}

impl Host {
    /// Bridges the bond with it.
    fn behind(router: &Router, address: &str) -> Self {
        let process = router
            .command("unshare")
            .args(["--net", "sleep", "600"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let host = Self { process };
        let outside = fs::read_link("/proc/self/ns/net").unwrap();
        let routers = fs::metadata(namespace(router)).unwrap();
        wait_for("the host's namespace", SOON, || {
            use std::os::unix::fs::MetadataExt as _;
            let (own, link) = (
                fs::metadata(host.namespace())?,
                fs::read_link(host.namespace())?,
            );
            Ok((link != outside && own.ino() != routers.ino()).then_some(()))
        })
        .unwrap();
        let pid = host.process.id().to_string();
        for line in [
            "link add br0 type bridge".to_owned(),
            format!("link add lan type veth peer name eth0 netns {pid}"),
            "link set lan master br0 up".to_owned(),
            "link set nb0 master br0".to_owned(),
            "link set br0 up".to_owned(),
        ] {
            let words: Vec<&str> = ["ip"].into_iter().chain(line.split(' ')).collect();
            router.run(&words).unwrap();
        }
        // The veth would take longer frames than the bond.
        for line in [
            format!("ip link set eth0 mtu {MTU} up"),
            format!("ip address add {address}/24 dev eth0"),
        ] {
            host.run(router, &line);
        }
        host
    }

    fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.process.id()).into()
    }

    fn run(&self, router: &Router, line: &str) -> String {
        let net = format!("--net={}", self.namespace().display());
        let words: Vec<&str> = ["nsenter", &net]
            .into_iter()
            .chain(line.split(' '))
            .collect();
        router.run(&words).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_bond_is_a_port_of_a_bridge() {
    let lab = up("gretap-bridge");
    let (a, b) = (lab.router("A"), lab.router("B"));
    let host = Host::behind(b, "10.67.0.9");
    wait_for("the bridge to forward", SOON, || {
        let counts = traffic::ping(a, "10.67.0.9", 1, Duration::from_millis(10))?;
        Ok((counts.lost == 0).then_some(()))
    })
    .unwrap();
    ping(a, "10.67.0.9");
    host.run(b, &format!("ping -q -c 5 -i 0.05 -W 2 {A}"));
    let size = MTU - 28;
    host.run(b, &format!("ping -q -c 2 -i 0.05 -W 2 -M do -s {size} {A}"));

    // The LAN's own super-packets, both ways.
    std::thread::scope(|scope| {
        let server = scope.spawn(|| a.run(&["iperf3", "-s", "-1", "-B", A]));
        wait_for("iperf3's socket", SOON, || {
            let listening = a.run(&["ss", "-Hltn", "sport = :5201"])?;
            Ok(listening.contains(A).then_some(()))
        })
        .unwrap();
        let report = host.run(b, &format!("iperf3 -c {A} -t 1 --bidir --json"));
        server.join().unwrap().unwrap();
        let report: Value = serde_json::from_str(&report).unwrap();
        let rate = |sum: &str| report["end"][sum]["bits_per_second"].as_f64().unwrap();
        println!(
            "{} and {}",
            rate("sum_received"),
            rate("sum_received_bidir_reverse")
        );
        assert!(rate("sum_received") > 1e6 && rate("sum_received_bidir_reverse") > 1e6);
    });

    // From here on all is silent but for ours: what comes in at B goes to the LAN, and never back.
    for router in [a, b] {
        silence(router);
    }
    host.run(b, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let (out, lan) = (
        frames_on(namespace(a), "nb0"),
        frames_on(host.namespace(), "eth0"),
    );
    let from = mac(a, "nb0");
    let quiet = || {
        let counts = (
            sum(b, "tx_packets"),
            sum(a, "rx_packets"),
            sum(b, "rx_packets"),
        );
        std::thread::sleep(Duration::from_millis(300));
        let later = (
            sum(b, "tx_packets"),
            sum(a, "rx_packets"),
            sum(b, "rx_packets"),
        );
        Ok((counts == later).then_some(later))
    };
    let before = wait_for("silence", SOON, quiet).unwrap();
    for to in [[0xff; 6], [0x33, 0x33, 0, 0, 0, 1], UNKNOWN] {
        send(&out, &frame(to, from, &[1; 60]), 100);
        assert_eq!(received(&lan).len(), 100);
    }
    let after = wait_for("silence", SOON, quiet).unwrap();
    assert_eq!(
        (after.0 - before.0, after.1 - before.1),
        (0, 0),
        "sent back"
    );
    assert_eq!(after.2 - before.2, 300);

    // What the host tags comes to the bond with the tag beside the frame.
    let (out, inward) = (
        frames_on(host.namespace(), "eth0"),
        frames_on(namespace(a), "nb0"),
    );
    let plain = frame(from, [2, 0xbb, 0, 0, 0, 9], &[2; 60]);
    let tags = [[0x88, 0xa8, 0, 9], [0x81, 0, 0, 5]];
    for count in 1..=2 {
        let tagged = [
            &plain[..12],
            tags[..count].concat().as_slice(),
            &plain[12..],
        ]
        .concat();
        let bytes = (sum(b, "tx_bytes"), sum(a, "rx_bytes"));
        send(&out, &tagged, 20);
        // The first tag is taken out again.
        let want = [
            &plain[..12],
            tags[1..count].concat().as_slice(),
            &plain[12..],
        ]
        .concat();
        assert_eq!(received(&inward), vec![want; 20]);
        let counted = (sum(b, "tx_bytes") - bytes.0, sum(a, "rx_bytes") - bytes.1);
        assert_eq!(
            counted,
            (20 * tagged.len() as u64, 20 * tagged.len() as u64)
        );
    }
    ping(a, "10.67.0.9");
}

/// A bond in use becomes one of frames and back, with its device; all or nothing.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_reload_changes_the_encap() {
    let lab = Lab::up("gretap-reload", &Topology::reference()).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    let index = status(a)["bonds"][0]["ifindex"].clone();
    let device = |router: &Router| {
        let link = router.run(&["ip", "-d", "link", "show", "nb0"]).unwrap();
        let addresses = router
            .run(&["ip", "-6", "address", "show", "dev", "nb0"])
            .unwrap();
        (link.contains("NOARP"), addresses.contains("fe80::"))
    };
    assert_eq!(device(a), (true, false));

    // Refused for another bond's sake: nothing changes.
    let good = a.default_config().unwrap();
    let gretap = good.replace("\"gre\"", "\"gretap\"");
    let other = [
        "link", "add", "name", "nb1", "type", "veth", "peer", "name", "other",
    ];
    let words: Vec<&str> = ["ip"].into_iter().chain(other).collect();
    a.run(&words).unwrap();
    let second = "[[bond]]\nname = \"nb1\"\n[[bond.path]]\nname = \"p\"\nlocal = \"10.65.2.2\"\n\
                  remote = \"10.65.2.1\"\n";
    reload(a, &format!("{gretap}\n{second}"), "not reloaded");
    assert_eq!(device(a), (true, false));
    assert_eq!(status(a)["bonds"][0]["encap"], "gre");
    ping(a, B);

    for (encap, mtu, device_is) in [
        ("gretap", MTU, (false, true)),
        ("gre", 1420 - 24, (true, false)),
    ] {
        for router in [a, b] {
            let config = router.default_config().unwrap();
            let config = config.replace("\"gre\"", &format!("{encap:?}"));
            reconfigure(router, &config);
        }
        for router in [a, b] {
            router.wait_netbond(SOON).unwrap();
            wait_for("the MTU", SOON, || {
                Ok((status(router)["bonds"][0]["mtu"] == mtu).then_some(()))
            })
            .unwrap();
            assert_eq!(device(router), device_is, "{encap}");
        }
        for (from, address) in [(a, B), (b, A), (a, B6), (b, A6)] {
            ping(from, address);
        }
        assert_eq!(status(a)["bonds"][0]["ifindex"], index, "the same device");
    }
}

/// A controller that is started again finds the device as it left it, address and all.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn without_probes_and_with_a_new_controller() {
    let topology = Topology::reference().with_encap("gretap");
    let topology = topology.with_bond_line("probe_interval = 0\nkey = 5");
    let lab = Lab::up("gretap-plain", &topology).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    // Without probes nothing else says that both ends receive.
    for router in [a, b] {
        wait_for("programs on both paths' devices", SOON, || {
            let receiving = router.netbond_log().matches("receiving on device").count();
            Ok((receiving == 2).then_some(()))
        })
        .unwrap();
    }
    let before = mac(a, "nb0");
    ping(a, B);
    assert_eq!(path(a, "via-m1")["watch"], "none");
    a.kill_netbond(Signal::SIGKILL).unwrap();
    ping(a, B);
    a.start_netbond().unwrap();
    a.wait_netbond(SOON).unwrap();
    assert_eq!(mac(a, "nb0"), before);
    for (from, address) in [(a, B), (b, A), (a, B6)] {
        ping(from, address);
    }
    assert_eq!(status(a)["bonds"][0]["mtu"], MTU - 4);
}
