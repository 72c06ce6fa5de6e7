//! Hosts on LANs behind routers whose drivers forward (XDP): packets pass as by the kernel, though it sees none of
//! them, and nothing that happens to program, controller or path costs one.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::time::Duration;

use common::ethernet::{PACE, config};
use common::lan::{
    HOSTS, NATIVE, NUMBERED, in_all, onward, up_native, up_native_with, up_with_lans, wait_lan,
    wait_send, with_lan,
};
use common::{
    SOON, assert_exact, ping, reconfigure, reload, status, wait_proven, wait_state, wait_unused,
};
use netbond_lab::{Lab, Signal, traffic, wait_for};

/// Packets from host to host, and their answers, pass the kernel by, but for those by which it finds out where its
/// neighbours are: of 400 at least so many are sent so.
fn assert_past_the_kernel(lab: &Lab, least: u64) {
    let [a, b, near] = ["A", "B", "M1"].map(|name| lab.router(name));
    let before = [in_all(a), in_all(b)];
    for address in HOSTS[1] {
        let counts = traffic::ping(near, address, 200, Duration::from_millis(2)).unwrap();
        assert_eq!((counts.sent, counts.lost), (200, 0), "{address}");
    }
    for (router, before) in [a, b].into_iter().zip(before) {
        let [sent, received] = in_all(router);
        let (sent, received) = (sent - before[0], received - before[1]);
        assert!(sent >= least, "{}: {sent} sent", router.name());
        assert!(received >= 300, "{}: {received} received", router.name());
    }
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn lans_are_forwarded_past_the_kernel() {
    let lab = up_native("lan-native");
    let [a, near, far] = ["A", "M1", "M2"].map(|name| lab.router(name));
    // The first ones have the kernel find the neighbours.
    for address in HOSTS[1] {
        ping(near, address);
    }
    assert_past_the_kernel(&lab, 390);
    // Two hops on the way; and the end of the last one is the kernel's to tell.
    let once = |options: &[&str]| {
        let words = [&["ping", "-c", "1", "-W", "2"], options, &[HOSTS[1][0]]].concat();
        near.run(&words)
    };
    let answered = once(&[]).unwrap();
    assert!(answered.contains("ttl=62"), "{answered}");
    let exceeded = once(&["-t", "1"]).unwrap_err().to_string();
    assert!(
        exceeded.contains("From 10.70.1.254") && exceeded.contains("Time to live exceeded"),
        "{exceeded}"
    );
    // So is what is too long for the bond.
    let mtu = status(a)["bonds"][0]["mtu"].as_u64().unwrap();
    once(&["-M", "do", "-s", &(mtu - 28).to_string()]).unwrap();
    let too_long = once(&["-M", "do", "-s", &(mtu - 27).to_string()]).unwrap_err();
    let told = format!("(mtu = {mtu})");
    assert!(too_long.to_string().contains(&told), "{too_long}");
    for (from, to, address) in [(near, far, HOSTS[1][0]), (far, near, HOSTS[0][1])] {
        let tcp = traffic::tcp(from, to, address, Duration::from_secs(1)).unwrap();
        println!("{} -> {address}: {} Mbit/s", from.name(), tcp.mbit_per_s);
        assert!(tcp.mbit_per_s > 10.0, "{tcp:?}");
    }
    let text = a.run(&["netbond", "status"]).unwrap();
    for line in [
        "LAN l0: forwarded past the kernel (XDP)",
        "via-m1: past the kernel, ",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert_eq!(status(a)["bonds"][0]["xdp_send"], "native");
}

/// Controllers stopped, killed, reloaded, LANs and paths handed to the kernel and back, other modes, under exact
/// streams from host to host.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn no_switch_costs_a_packet() {
    let lab = up_native("lan-switch");
    let [a, b, near, far] = ["A", "B", "M1", "M2"].map(|name| lab.router(name));
    for address in HOSTS[1] {
        ping(near, address);
    }
    let streams = [
        traffic::Numbered::start(near, far, HOSTS[1][0], PACE).unwrap(),
        traffic::Numbered::start(far, near, HOSTS[0][1], PACE).unwrap(),
    ];
    for router in [a, b] {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            router.kill_netbond(signal).unwrap();
            // Packets go on past the kernel with no controller.
            let before = in_all(router);
            wait_for("packets past the kernel", SOON, || {
                let now = in_all(router);
                Ok((0..2).all(|way| now[way] > before[way] + 20).then_some(()))
            })
            .unwrap();
            router.start_netbond().unwrap();
            router.wait_netbond(SOON).unwrap();
            wait_lan(router, "native");
        }
        for (bond, path, lan, word) in [
            ("", NATIVE, "xdp = \"off\"", "off"),
            ("", NATIVE, NATIVE, "native"),
            ("mode = \"flow\"", NATIVE, NATIVE, "native"),
            (NUMBERED, NATIVE, NATIVE, "native"),
            ("", "", NATIVE, "native"),
            ("", NATIVE, NATIVE, "native"),
        ] {
            reconfigure(router, &with_lan(router, bond, path, lan));
            wait_lan(router, word);
        }
        reconfigure(router, &config(router, "", NATIVE));
        reconfigure(router, &with_lan(router, "", NATIVE, NATIVE));
        wait_lan(router, "native");
    }
    assert_exact(streams);
    let events = a.run(&["netbond", "events"]).unwrap();
    for told in [
        "in the driver of l0 from now on (XDP), as [[lan]] l0 asks for it",
        "packets of LAN l0 forwarded past the kernel (XDP)",
        "packets of LAN l0 forwarded by the kernel, as configured",
        "no longer in the driver of l0: nobody asks for it",
    ] {
        assert!(events.contains(told), "{told}: {events}");
    }
}

/// What drivers send obeys the states of paths as all else.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_dead_path_is_left_out() {
    let lab = up_native("lan-dead");
    let [a, b, near] = ["A", "B", "M1"].map(|name| lab.router(name));
    ping(near, HOSTS[1][0]);
    b.ip("link set e0 down\n").unwrap();
    for router in [a, b] {
        wait_unused(router, "via-m1");
    }
    let before = onward(a);
    ping(near, HOSTS[1][0]);
    let after = onward(a);
    assert_eq!(after[0], before[0], "nothing on the dead path");
    assert!(after[1][0] >= before[1][0] + 15, "{after:?}");
    b.ip("link set e0 up\n").unwrap();
    for router in [a, b] {
        wait_state(router, "via-m1", "up");
    }
    let before = onward(a);
    ping(near, HOSTS[1][0]);
    assert!(onward(a)[0][0] > before[0][0], "and again when it is back");
}

/// Whoever sets the bond device down wants no packets from it.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_bond_that_is_down_forwards_nothing() {
    let lab = up_native("lan-down");
    let [a, near, far] = ["A", "M1", "M2"].map(|name| lab.router(name));
    ping(near, HOSTS[1][0]);
    a.ip("link set nb0 down\n").unwrap();
    let received = || in_all(a)[1];
    // Five packets, of which none is waited for longer than this.
    let unanswered = || {
        let ping = ["ping", "-c", "5", "-i", "0.02", "-W", "1", HOSTS[0][0]];
        far.run(&ping).is_err()
    };
    wait_for("nothing past the kernel", SOON, || {
        let before = received();
        Ok((unanswered() && received() == before).then_some(()))
    })
    .unwrap();
    // The routes over it went with it.
    a.ip("link set nb0 up\nroute add 10.70.2.0/24 dev nb0\n")
        .unwrap();
    let before = received();
    wait_for("packets past the kernel again", SOON, || {
        Ok((!unanswered() && received() > before).then_some(()))
    })
    .unwrap();
    wait_proven(a);
    ping(far, HOSTS[0][0]);
}

/// Whatever chooses the path, a driver does it as well as the kernel's program.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn every_mode_sends_past_the_kernel() {
    let lab = up_native("lan-modes");
    let (a, near) = (lab.router("A"), lab.router("M1"));
    for bond in [
        "mode = \"flow\"",
        "mode = \"flowlet\"",
        "mode = \"active-backup\"",
        "mode = \"adaptive\"\nin_order = false",
        "mss_clamp = true",
        NUMBERED,
        "mode = \"weighted\"\n[[bond.class]]\nname = \"voice\"\ndscp = \"ef\"\nmode = \"flow\"",
    ] {
        reconfigure(a, &with_lan(a, bond, NATIVE, NATIVE));
        wait_send(a, "native");
        wait_proven(a);
        let before = in_all(a);
        for address in HOSTS[1] {
            ping(near, address);
        }
        let [sent, _] = in_all(a);
        // But for what is the kernel's turn, once a second.
        assert!(sent >= before[0] + 20, "{bond}: {sent}, {before:?}");
    }
}

/// A bond that carries frames sends and receives those of its own address past the kernel, with TCP clamped or not;
/// what a bridge has to do with is the bridge's.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn frames_are_forwarded_past_the_kernel() {
    let frames = "encap = \"gretap\"\nmss_clamp = true";
    let lab = up_native_with("lan-frames", frames);
    let [a, b, near, far] = ["A", "B", "M1", "M2"].map(|name| lab.router(name));
    for router in [a, b] {
        wait_send(router, "native");
    }
    for address in HOSTS[1] {
        ping(near, address);
    }
    assert_past_the_kernel(&lab, 300);
    let tcp = traffic::tcp(far, near, HOSTS[0][0], Duration::from_secs(1)).unwrap();
    assert!(tcp.mbit_per_s > 10.0, "{tcp:?}");
    // Bridged, its address is the bridge's matter.
    a.ip("link add br0 type bridge\nlink set br0 up\nlink set nb0 master br0\n")
        .unwrap();
    wait_send(a, "device is a port of another one");
    let before = in_all(a);
    a.ip("addr flush dev nb0\naddr add 10.67.0.1/24 dev br0\n\
          route replace 10.70.2.0/24 via 10.67.0.2 dev br0\n")
        .unwrap();
    b.ip("neigh flush dev nb0\n").unwrap();
    ping(near, HOSTS[1][0]);
    assert_eq!(in_all(a), before, "by the bridge");
    a.ip("link del br0\n").unwrap();
    wait_send(a, "native");
}

/// A configuration that is refused leaves no program of its own in the drivers.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_refused_reload_leaves_drivers_their_program() {
    let lab = up_native_with("lan-refused", NUMBERED);
    let [a, near] = ["A", "M1"].map(|name| lab.router(name));
    let programs = || {
        ["l0", "e0", "e1"].map(|device| {
            let shown = a.run(&["ip", "-j", "link", "show", "dev", device]).unwrap();
            let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
            shown[0]["xdp"]["prog"]["id"].as_u64().unwrap()
        })
    };
    let before = programs();
    let other = with_lan(a, "", NATIVE, NATIVE) + "[[lan]]\nname = \"lo\"\nxdp = \"native\"\n";
    reload(a, &other, "[[lan]] \"lo\" has xdp = \"native\"");
    assert_eq!(programs(), before);
    ping(near, HOSTS[1][0]);
}

/// What stays with the kernel says why, and works.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn what_stays_with_the_kernel_says_why() {
    let lab = up_with_lans("lan-why", "");
    let [a, b, near] = ["A", "B", "M1"].map(|name| lab.router(name));
    let reach = || {
        for address in HOSTS[1] {
            ping(near, address);
        }
    };
    // A veth is for those who know what its other end does.
    reconfigure(a, &with_lan(a, "", NATIVE, ""));
    wait_lan(a, "veth leaves out checksums");
    assert_eq!(
        status(a)["bonds"][0]["xdp_send"],
        "no LAN is forwarded by XDP"
    );
    reach();
    // To insist is refused where the driver sends nothing, and changes nothing.
    near.run(&["ethtool", "-K", "l0", "gro", "off"]).unwrap();
    let native = with_lan(a, "", NATIVE, NATIVE);
    reload(a, &native, "driver does not send for XDP");
    wait_lan(a, "veth leaves out checksums");
    reach();
    near.run(&["ethtool", "-K", "l0", "gro", "on"]).unwrap();
    reconfigure(a, &native);
    wait_lan(a, "native");
    reach();
    // Somebody has the driver send no more.
    near.run(&["ethtool", "-K", "l0", "gro", "off"]).unwrap();
    wait_lan(a, "driver does not send for XDP");
    reach();
    let check = a.run(&[
        "sh",
        "-c",
        "netbond check -c /run/netbond/netbond.toml || true",
    ]);
    let check = check.unwrap();
    assert!(
        check.contains("packets of this LAN are forwarded by the kernel, not by XDP: driver does not send for XDP"),
        "{check}"
    );
    near.run(&["ethtool", "-K", "l0", "gro", "on"]).unwrap();
    wait_lan(a, "native");
    // The device goes, and comes back.
    a.ip("link del l0\n").unwrap();
    wait_lan(a, "device does not exist");
    a.ip(&format!(
        "link add l0 type veth peer name l0 netns {}\nlink set l0 up\n",
        near.netns()
    ))
    .unwrap();
    near.ip("link set l0 up\n").unwrap();
    near.run(&["ethtool", "-K", "l0", "gro", "on"]).unwrap();
    wait_lan(a, "native");
    // Bonds that drivers cannot send into say so.
    for (bond, word) in [
        (
            "[[bond.class]]\nname = \"marked\"\nmark = 1\nmode = \"flow\"",
            "classes by mark need tc",
        ),
        ("mode = \"duplicate\"", "copies need tc"),
    ] {
        let auto = "xdp = \"auto\"";
        let paths = if bond.contains("duplicate") {
            auto
        } else {
            NATIVE
        };
        reconfigure(b, &with_lan(b, bond, paths, NATIVE));
        wait_send(b, word);
    }
    reconfigure(b, &with_lan(b, "", NATIVE, NATIVE));
    wait_proven(b);
}
