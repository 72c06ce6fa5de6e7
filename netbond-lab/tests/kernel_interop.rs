//! netbond at one end, the kernel's own tunnels at the other, unchanged: the known recipe (a gretap for
//! each path under kernel bonding), and plain gre devices with a route over all of them. The same with
//! ip6gretap and ip6gre, which must not have a tunnel encapsulation limit.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::time::Duration;

use common::{A, B, SOON, counters, status};
use netbond_lab::tunnels::{self, BOND};
use netbond_lab::{Lab, Options, Router, Topology, traffic, wait_for};

const A6: &str = "fd67::1";
const B6: &str = "fd67::2";

/// What speaks at an end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Netbond,
    Kernel,
}

/// Whether tunnels of this kind have IPv6 outer addresses.
fn is_over_ipv6(kind: &str) -> bool {
    kind.starts_with("ip6")
}

/// Whether they carry frames.
fn carries_frames(kind: &str) -> bool {
    kind.ends_with("gretap")
}

/// What an IP packet may have on WireGuard's 1420 bytes.
fn mtu(kind: &str) -> u32 {
    let outer = if is_over_ipv6(kind) { 40 } else { 20 };
    1420 - outer - 4 - if carries_frames(kind) { 14 } else { 0 }
}

/// A lab without netbond, but with its configuration for a peer that answers no probes; `kind` is that of
/// the kernel's tunnels.
fn up(name: &str, kind: &str) -> Lab {
    let options = Options {
        netbond: false,
        ..Options::default()
    };
    let mut topology = Topology::reference()
        .with_encap(kind.trim_start_matches("ip6"))
        .with_bond_line("probe_interval = 0");
    if is_over_ipv6(kind) {
        topology = topology.over_ipv6(&[0, 1]);
    }
    Lab::up_with(name, &topology, options).unwrap()
}

/// The two addresses of a router's end, IPv4 and IPv6.
fn addresses(router: &Router) -> [&'static str; 2] {
    if router.name() == "A" {
        [A, A6]
    } else {
        [B, B6]
    }
}

/// Sets up the kernel's end.
fn start_kernel(router: &Router, kind: &str, options: &str) {
    let [own, own6] = addresses(router);
    let paths = router.paths().unwrap();
    let mtu = mtu(kind);
    let tunnel_options = if is_over_ipv6(kind) {
        "ttl 64 encaplimit none"
    } else {
        "ttl 64"
    };
    let commands = if carries_frames(kind) {
        format!(
            "{}{}addr add {own}/24 dev {BOND}\naddr add {own6}/64 dev {BOND} nodad\n",
            tunnels::tunnels(paths, kind, mtu, tunnel_options),
            tunnels::bonding(paths, mtu, options)
        )
    } else {
        let [peer, peer6] = if own == A { [B, B6] } else { [A, A6] };
        let first = tunnels::device(1);
        format!(
            "{}{}addr add {own}/32 dev {first}\naddr add {own6}/128 dev {first} nodad\n\
             route add {peer}/32 src {own}{}\n\
             route add {peer6}/128 dev {first}\n",
            tunnels::tunnels(paths, kind, mtu, tunnel_options),
            tunnels::up(paths),
            tunnels::nexthops(paths)
        )
    };
    router.ip(&commands).unwrap();
}

fn start(router: &Router, end: End, kind: &str, options: &str) {
    match end {
        End::Kernel => start_kernel(router, kind, options),
        End::Netbond => {
            router.start_netbond().unwrap();
            router.wait_netbond(SOON).unwrap();
        }
    }
}

/// Both ends are started, `first` before the other, and talk; the first packet is `first`'s.
fn talk(lab: &Lab, kind: &str, options: &str, first: &str, netbond: &str) {
    let second = if first == "A" { "B" } else { "A" };
    let (first, second) = (lab.router(first), lab.router(second));
    for router in [first, second] {
        let end = if router.name() == netbond {
            End::Netbond
        } else {
            End::Kernel
        };
        start(router, end, kind, options);
    }
    for (from, to) in [(first, second), (second, first)] {
        for address in addresses(to) {
            let what = format!("{} -> {address}", from.name());
            // An IPv6 address is looked up before it is used.
            wait_for(&what, SOON, || {
                let counts = traffic::ping(from, address, 1, Duration::from_millis(10))?;
                Ok((counts.lost == 0).then_some(()))
            })
            .unwrap();
            let counts = traffic::ping(from, address, 20, Duration::from_millis(10)).unwrap();
            assert_eq!((counts.sent, counts.lost), (20, 0), "{what}");
            let payload = mtu(kind) - if address.contains(':') { 48 } else { 28 };
            let payload = payload.to_string();
            let ping = [
                "ping", "-q", "-M", "do", "-c", "3", "-i", "0.1", "-s", &payload, address,
            ];
            from.run(&ping).unwrap();
            let tcp = traffic::tcp_megabyte(from, to, address, 8).unwrap();
            assert!(tcp.mbit_per_s > 1.0, "{what}: {tcp:?}");
        }
    }
    let end = lab.router(netbond);
    let (sent, received) = (counters(end, "tx_packets"), counters(end, "rx_packets"));
    assert!(sent.iter().all(|packets| *packets > 50), "{sent:?}");
    // A route chooses by hash, and streams may happen to share a path.
    if carries_frames(kind) {
        assert!(received.iter().all(|packets| *packets > 50), "{received:?}");
    } else {
        assert!(received.iter().sum::<u64>() > 100, "{received:?}");
    }
    let status = status(end);
    let fates = &status["bonds"][0]["fates"];
    for fate in ["tx_no_room", "rx_no_decap", "rx_malformed", "rx_protocol"] {
        assert_eq!(fates.get(fate), None, "{fates}");
    }
}

const MIIMON: &str = "mode balance-rr miimon 100";

#[test]
#[ignore = "needs gretap and bonding: cargo xtask test vm"]
fn the_recipe_first_then_netbond_in_a() {
    let lab = up("rec-ba", "gretap");
    talk(&lab, "gretap", MIIMON, "B", "A");
}

#[test]
#[ignore = "needs gretap and bonding: cargo xtask test vm"]
fn netbond_in_a_first_then_the_recipe() {
    let lab = up("rec-ab", "gretap");
    talk(&lab, "gretap", MIIMON, "A", "A");
}

#[test]
#[ignore = "needs gretap and bonding: cargo xtask test vm"]
fn the_recipe_first_then_netbond_in_b() {
    let lab = up("rec-ab-b", "gretap");
    talk(&lab, "gretap", MIIMON, "A", "B");
}

/// Its ARP monitor asks over each slave, and takes a slave that hears nothing for dead.
#[test]
#[ignore = "needs gretap and bonding: cargo xtask test vm"]
fn netbond_in_b_first_then_the_recipe_with_arp_monitoring() {
    let lab = up("rec-arp", "gretap");
    let options = format!("mode balance-rr arp_interval 100 arp_ip_target {B}");
    talk(&lab, "gretap", &options, "B", "B");
    let bond = lab
        .router("A")
        .run(&["cat", "/proc/net/bonding/bond0"])
        .unwrap();
    assert_eq!(bond.matches("MII Status: up").count(), 3, "{bond}");
}

#[test]
#[ignore = "needs gre: cargo xtask test vm"]
fn routes_over_gre_first_then_netbond_in_a() {
    let lab = up("gre-ba", "gre");
    talk(&lab, "gre", "", "B", "A");
}

#[test]
#[ignore = "needs gre: cargo xtask test vm"]
fn netbond_in_b_first_then_routes_over_gre() {
    let lab = up("gre-bb", "gre");
    talk(&lab, "gre", "", "B", "B");
}

#[test]
#[ignore = "needs ip6gretap and bonding: cargo xtask test vm"]
fn the_recipe_over_ipv6_first_then_netbond_in_a() {
    let lab = up("rec6-ba", "ip6gretap");
    talk(&lab, "ip6gretap", MIIMON, "B", "A");
}

#[test]
#[ignore = "needs ip6gre: cargo xtask test vm"]
fn netbond_in_b_first_then_routes_over_ip6gre() {
    let lab = up("gre6-bb", "ip6gre");
    talk(&lab, "ip6gre", "", "B", "B");
}

/// A LAN at each end, bridged: netbond's bond here, the recipe's there. Broadcast and stations that
/// nobody knows cross it once and do not come back.
#[test]
#[ignore = "needs gretap and bonding: cargo xtask test vm"]
fn bridged_lans_at_both_ends() {
    let lab = up("rec-lan", "gretap");
    let (a, b) = (lab.router("A"), lab.router("B"));
    start(a, End::Netbond, "gretap", "");
    start(b, End::Kernel, "gretap", MIIMON);
    for (router, port, host) in [(a, "nb0", "10.71.0.1"), (b, "bond0", "10.71.0.2")] {
        let bridge = format!(
            "ip link add br0 type bridge && ip link set br0 mtu 1382 up && \
             ip link set {port} master br0 && ip netns add lan && \
             ip link add lan0 type veth peer name e netns lan && ip link set lan0 mtu 1382 master br0 up && \
             ip -n lan link set e mtu 1382 up && ip -n lan addr add {host}/24 dev e"
        );
        router.run(&["bash", "-c", &bridge]).unwrap();
    }
    let in_lan = |router: &Router, words: &[&str]| {
        router.run(&[&["ip", "netns", "exec", "lan"], words].concat())
    };
    for (from, to) in [(a, "10.71.0.2"), (b, "10.71.0.1")] {
        wait_for(&format!("{to} over the bridges"), SOON, || {
            in_lan(from, &["ping", "-q", "-c", "1", "-W", "1", to]).map(Some)
        })
        .unwrap();
        in_lan(
            from,
            &[
                "ping", "-q", "-M", "do", "-s", "1354", "-c", "3", "-i", "0.1", to,
            ],
        )
        .unwrap();
    }
    // Of the far LAN's broadcasts, nothing that A sends back is one.
    let sent = || counters(a, "tx_packets");
    let received = || counters(a, "rx_packets");
    in_lan(
        a,
        &[
            "sysctl",
            "-q",
            "-w",
            "net.ipv4.icmp_echo_ignore_broadcasts=1",
        ],
    )
    .unwrap();
    let before = (sent(), received());
    let broadcast = [
        "ping",
        "-b",
        "-q",
        "-c",
        "50",
        "-i",
        "0.01",
        "-W",
        "1",
        "10.71.0.255",
    ];
    // It fails, as nobody answers.
    let _ = in_lan(b, &broadcast);
    let new = |now: [u64; 2], then: [u64; 2]| now[0] + now[1] - then[0] - then[1];
    assert!(new(received(), before.1) >= 50, "they crossed");
    assert!(new(sent(), before.0) < 25, "and did not come back");
}
