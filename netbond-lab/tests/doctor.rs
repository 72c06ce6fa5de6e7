//! `netbond check` as a doctor: each fault is made, found, and mended, and what is healthy is said to be
//! so.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::doctor::{
    Finding, Report, allow, assert_healthy, check, check_file, wait_finding, wait_healthy,
};
use common::{SOON, inside, reconfigure, wait_proven, wait_reason, wait_state};
use netbond_lab::{Lab, Router, Signal, Topology, wait_for};
use nix::sys::signal::kill;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

const VIA_M1: Option<&str> = Some("via-m1");
const VIA_M2: Option<&str> = Some("via-m2");

/// Runs a line of shell in a router.
fn shell(router: &Router, line: &str) {
    router.run(&["sh", "-c", line]).unwrap();
}

#[track_caller]
fn expect(report: &Report, severity: &str, kind: &str, path: Option<&str>) -> Finding {
    let found = report.find(kind, path);
    let found = found.unwrap_or_else(|| panic!("no {kind} of {path:?} in {report:#?}"));
    assert_eq!(found.severity, severity, "{found:#?}");
    found
}

/// Everything is found that goes wrong on a router while its controller runs, and nothing else.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn what_goes_wrong_in_the_field_is_found() {
    let lab = Lab::up("doctor", &Topology::reference()).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    wait_proven(a);
    wait_proven(b);
    assert_healthy(a);
    assert_healthy(b);
    wireguard_and_what_wg_quick_makes(a);
    the_underlay(&lab);
    the_stack(a, b);
    the_peer(a, b);
    the_way(&lab);
    ospf(&lab);
    the_controller(a);
}

/// AllowedIPs that leave out what a path needs; the routes and rules that `Table = off` keeps away.
fn wireguard_and_what_wg_quick_makes(a: &Router) {
    allow(a, "wg-a-m1", "10.65.0.0/30,224.0.0.0/8");
    shell(a, "ip route add 10.65.0.10/32 dev wg-a-m2");
    let report = check(a);
    let left_out = expect(&report, "problem", "allowed-ips", VIA_M1);
    assert!(left_out.what.contains("10.65.0.6 ("), "{left_out:#?}");
    for admitted in ["10.65.0.1 ", "224.0.0.5"] {
        assert!(!left_out.what.contains(admitted), "{left_out:#?}");
    }
    assert!(
        left_out.remedy.contains("wg set wg-a-m1 peer "),
        "{left_out:#?}"
    );
    let routed = expect(&report, "warning", "allowed-ips", None);
    assert!(routed.what.contains("10.65.0.4/30"), "{routed:#?}");
    let shadow = expect(&report, "problem", "table-off", VIA_M2);
    assert!(shadow.what.contains("10.65.0.10/32"), "{shadow:#?}");
    assert_eq!(shadow.device.as_deref(), Some("wg-a-m2"));

    // What OSPF itself needs.
    allow(a, "wg-a-m1", "10.65.0.4/30");
    let left_out = expect(&check(a), "problem", "allowed-ips", VIA_M1);
    assert!(left_out.what.contains("10.65.0.1 "), "{left_out:#?}");
    // As soon as hellos are missed.
    wait_for("hellos that are missed", SOON, || {
        let left_out = check(a).find("allowed-ips", VIA_M1);
        let told = left_out.is_some_and(|one| one.what.contains("224.0.0.5"));
        Ok(told.then_some(()))
    })
    .unwrap();
    allow(a, "wg-a-m1", "0.0.0.0/0,::/0");
    shell(a, "ip route del 10.65.0.10/32 dev wg-a-m2");

    // As wg-quick does for AllowedIPs = 0.0.0.0/0.
    shell(
        a,
        "ip route add default dev wg-a-m2 table 51820 && \
         ip rule add pref 100 table main suppress_prefixlength 0 && \
         ip rule add pref 200 not fwmark 51820 table 51820 && ip route add 10.65.2.1/32 dev wg-a-m1",
    );
    let report = check(a);
    let rule = expect(&report, "problem", "table-off", None);
    assert!(rule.what.contains("0xca6c"), "{rule:#?}");
    for part in [
        "`ip rule del not fwmark 0xca6c table 51820`",
        "`ip route del 0.0.0.0/0 dev wg-a-m2 table 51820`",
    ] {
        assert!(rule.remedy.contains(part), "{rule:#?}");
    }
    let warned = report.findings.iter().any(|finding| {
        finding.severity == "warning" && finding.what.contains("10.65.2.1/32 dev wg-a-m1")
    });
    assert!(warned, "{report:#?}");
    shell(
        a,
        "ip route del 10.65.2.1/32 dev wg-a-m1 && ip rule del pref 200 && ip rule del pref 100 && \
         ip route flush table 51820",
    );
    wait_state(a, "via-m1", "up");
    wait_state(a, "via-m2", "up");
    wait_healthy(a);
}

/// Tunnels that share an uplink, an end or a router, or go into each other.
fn the_underlay(lab: &Lab) {
    let a = lab.router("A");
    let ends: Vec<_> = lab.topology().ends_of("A").collect();
    let [m1, m2] = &ends[..] else {
        panic!("two links");
    };
    let (to_m1, to_m2) = (m1.peer_underlay, m2.peer_underlay);
    shell(a, &format!("ip route add {to_m2}/32 via {to_m1}"));
    let shared = expect(&check(a), "note", "shared-underlay", None);
    assert!(shared.what.contains("u-a-m1"), "{shared:#?}");
    shell(a, &format!("ip route replace {to_m2}/32 dev wg-a-m1"));
    // The last handshake is recent, and WireGuard may be at home in another namespace.
    let nested = expect(&check(a), "warning", "endpoint-in-tunnel", VIA_M2);
    assert!(nested.what.contains("over wg-a-m1"), "{nested:#?}");
    shell(a, &format!("ip route del {to_m2}/32"));

    // While M2 is silent, or its packets would tell its address.
    lab.blackhole("M2", "A").unwrap();
    let endpoint = |address: IpAddr, port: u16| {
        let peer = a.run(&["wg", "show", "wg-a-m2", "peers"]).unwrap();
        let to = format!("{address}:{port}");
        let set = ["wg", "set", "wg-a-m2", "peer", peer.trim(), "endpoint", &to];
        a.run(&set).unwrap();
    };
    endpoint(to_m1, m1.port);
    expect(&check(a), "warning", "shared-endpoint", None);
    endpoint(to_m2, m2.port);
    lab.heal("M2", "A").unwrap();

    // Both paths over M1, as another file has it.
    let config = a.default_config().unwrap();
    let at = config.rfind("[[bond.path]]").unwrap();
    let second = "[[bond.path]]\nname = \"via-m2\"\nlocal = \"10.65.0.2\"\nremote = \"10.65.2.1\"\n\
                  device = \"wg-a-m1\"\n";
    let file = "/run/netbond/other.toml";
    std::fs::write(a.host_path(file), format!("{}{second}", &config[..at])).unwrap();
    let report = check_file(a, file);
    let shared = expect(&report, "warning", "shared-next-hop", None);
    assert!(shared.what.contains("10.65.1.1"), "{shared:#?}");
    expect(&report, "warning", "not-loaded", VIA_M2);
    wait_state(a, "via-m2", "up");
    wait_healthy(a);
}

/// Settings of the kernel, and programs on netbond's hooks.
fn the_stack(a: &Router, b: &Router) {
    shell(
        a,
        "sysctl -qw net.ipv4.conf.nb0.rp_filter=1 net.ipv4.conf.nb0.forwarding=0 \
         net.ipv6.conf.all.forwarding=0",
    );
    let report = check(a);
    expect(&report, "warning", "rp-filter", None);
    let forwarding = report
        .findings
        .iter()
        .filter(|one| one.kind == "forwarding");
    let severities = Vec::from_iter(forwarding.map(|one| one.severity.as_str()));
    assert_eq!(severities, ["note", "note"], "{report:#?}");
    // From an address that A does not route over the bond.
    let ping = [
        "ping",
        "-c",
        "2",
        "-i",
        "0.1",
        "-W",
        "1",
        "-I",
        "10.65.2.1",
        common::A,
    ];
    assert!(b.run(&ping).is_err(), "the packets are dropped");
    let dropping = expect(&check(a), "problem", "rp-filter", None);
    assert!(dropping.what.contains("packets so far"), "{dropping:#?}");
    shell(
        a,
        "sysctl -qw net.ipv4.conf.nb0.rp_filter=0 net.ipv4.conf.nb0.forwarding=1 \
         net.ipv6.conf.all.forwarding=1",
    );

    shell(
        a,
        "tc qdisc add dev wg-a-m2 clsact 2>/dev/null; \
         tc filter add dev wg-a-m2 ingress prio 1 protocol ip bpf bytecode '1,6 0 0 0,'",
    );
    // With links by removing the pin, else the filter. A controller that is awake puts it back within seconds.
    let controller = a.netbond_pid().unwrap();
    kill(controller, Signal::SIGSTOP).unwrap();
    shell(
        a,
        "rm -f /sys/fs/bpf/netbond/links/$(cat /sys/class/net/wg-a-m1/ifindex)-ingress; \
         tc filter del dev wg-a-m1 ingress 2>/dev/null; true",
    );
    let gone = wait_finding(a, "problem", "program-missing", None);
    assert_eq!(gone.device.as_deref(), Some("wg-a-m1"));
    kill(controller, Signal::SIGCONT).unwrap();
    let other = wait_finding(a, "warning", "other-program", None);
    assert!(other.what.contains("bpf (tc filter"), "{other:#?}");
    assert_eq!(other.device.as_deref(), Some("wg-a-m2"));
    shell(a, "tc filter del dev wg-a-m2 ingress prio 1");

    a.kill_netbond(Signal::SIGKILL).unwrap();
    let report = check(a);
    expect(&report, "warning", "controller", None);
    let skipped = |report: &Report| {
        let why = report.not_checked.iter().map(|one| one.why.clone());
        why.collect::<Vec<_>>()
    };
    assert_eq!(skipped(&report), ["no controller runs"]);
    assert!(report.not_checked[0].what.contains("black holes"));
    a.start_netbond().unwrap();
    a.wait_netbond(SOON).unwrap();
    wait_proven(a);
    wait_healthy(a);
}

/// A peer with other settings, and one of another version.
fn the_peer(a: &Router, b: &Router) {
    let good = b.default_config().unwrap();
    reconfigure(b, &good.replace("\"gre\"", "\"gretap\""));
    let encap = wait_finding(a, "problem", "disagreement", None);
    assert!(encap.what.contains("encap is gretap"), "{encap:#?}");

    reconfigure(b, &good.replace("[[bond]]", "[[bond]]\nkey = 7"));
    wait_reason(a, "via-m2", "probes unanswered");
    let key = wait_finding(a, "problem", "disagreement", VIA_M2);
    assert!(
        key.what.contains("has key 7, this end has no key"),
        "{key:#?}"
    );
    reconfigure(b, &good);
    wait_state(a, "via-m1", "up");
    wait_state(a, "via-m2", "up");

    let stop = Arc::new(AtomicBool::new(false));
    let sender = inside(b, {
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                send_future_probe();
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
    let report = check(a);
    stop.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    expect(&report, "problem", "version", None);
    wait_healthy(a);
}

/// From B to A on via-m1: a probe of a version that does not exist yet.
fn send_future_probe() {
    const GRE: u8 = 47;
    let (from, to) = (Ipv4Addr::new(10, 65, 0, 6), Ipv4Addr::new(10, 65, 0, 2));
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, GRE, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend([0, 0, 0x88, 0xb5]);
    let mut probe = [0; 80];
    probe[..4].copy_from_slice(&[b'n', b'b', 200, 1]);
    packet.extend(probe);
    let socket = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Raw,
    )
    .unwrap();
    let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
    sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
}

/// MTUs that are too small: of a path's device, below it, and on the way.
fn the_way(lab: &Lab) {
    let (a, b, m1) = (lab.router("A"), lab.router("B"), lab.router("M1"));
    // A veth device swallows what is longer than its MTU.
    shell(m1, "ip link set u-m1-a mtu 1300");
    shell(a, "ip link set u-a-m1 mtu 1400");
    let fragments = expect(&check(a), "warning", "fragments", VIA_M1);
    assert!(
        fragments.remedy.contains("wg-a-m1 mtu 1340"),
        "{fragments:#?}"
    );
    for router in [a, b] {
        let hole = wait_finding(router, "problem", "black-hole", VIA_M1);
        assert!(hole.what.contains("1396 bytes"), "{hole:#?}");
    }
    shell(m1, "ip link set u-m1-a mtu 1500");
    shell(a, "ip link set u-a-m1 mtu 1500");

    shell(a, "ip link set wg-a-m2 mtu 1200");
    let small = wait_finding(a, "problem", "mtu", VIA_M2);
    assert_eq!(small.device.as_deref(), Some("wg-a-m2"));
    shell(a, "ip link set wg-a-m2 mtu 1420");
    shell(a, "ip link set wg-a-m1 down");
    wait_finding(a, "problem", "device-down", VIA_M1);
    shell(a, "ip link set wg-a-m1 up");
    for router in [a, b] {
        wait_state(router, "via-m1", "up");
        wait_healthy(router);
    }
}

/// OSPF without a neighbour, with routes that it did not make, and gone.
fn ospf(lab: &Lab) {
    let (a, m2) = (lab.router("A"), lab.router("M2"));
    m2.bird_stop().unwrap();
    let alone = wait_finding(a, "problem", "ospf-neighbour", VIA_M2);
    assert!(alone.what.contains("wg-a-m2"), "{alone:#?}");
    wait_finding(a, "warning", "detour", VIA_M2);
    m2.bird_start().unwrap();
    lab.wait_converged(SOON).unwrap();

    shell(a, "ip route add 10.65.0.6/32 via 10.65.0.1 proto static");
    let foreign = expect(&check(a), "problem", "route-not-ospf", VIA_M1);
    assert!(foreign.what.contains("by static"), "{foreign:#?}");
    shell(a, "ip route del 10.65.0.6/32 via 10.65.0.1 proto static");

    a.bird_stop().unwrap();
    let report = check(a);
    expect(&report, "warning", "ospf-daemon", None);
    expect(&report, "problem", "no-route", VIA_M1);
    expect(&report, "problem", "no-route", VIA_M2);
    expect(&report, "problem", "peer-route", None);
    a.bird_start().unwrap();
    lab.wait_converged(SOON).unwrap();
    wait_state(a, "via-m1", "up");
    wait_state(a, "via-m2", "up");
    wait_healthy(a);
}

/// A path that the user took out, and no controller at all.
fn the_controller(a: &Router) {
    a.run(&["netbond", "path", "down", "via-m1"]).unwrap();
    let out = expect(&check(a), "note", "path-state", VIA_M1);
    assert!(out.remedy.contains("netbond path up via-m1"), "{out:#?}");
    a.run(&["netbond", "path", "up", "via-m1"]).unwrap();
    wait_state(a, "via-m1", "up");

    a.kill_netbond(Signal::SIGTERM).unwrap();
    a.run(&["netbond", "detach"]).unwrap();
    let report = check(a);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    let [skipped] = &report.not_checked[..] else {
        panic!("{:#?}", report.not_checked);
    };
    assert_eq!(skipped.why, "no controller runs");
    // For people.
    let text = a.run(&["netbond", "check", "-c", netbond_lab::daemon::CONFIG]);
    let text = text.unwrap();
    assert!(text.ends_with("1 bond, 2 paths: good\n"), "{text}");
}
