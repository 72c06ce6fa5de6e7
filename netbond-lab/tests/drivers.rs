//! Paths straight over Ethernet, whose packets are received in the devices' drivers (XDP): they come out of the
//! bond as by tc, and nothing that happens to program or controller costs one.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::time::Duration;

use common::ethernet::{DEVICES, PACE, config, has_program, up, wait_program, wait_xdp};
use common::lan::NUMBERED;
use common::{A, B, SOON, assert_exact, ping, reconfigure, reload, status, wait_proven};
use netbond_lab::{Router, Signal, traffic, wait_for};
use serde_json::Value;

/// Frames that the bond's veth pair carried: packets that tc redirects to the bond do not cross it, those of
/// drivers do.
fn crossed(router: &Router) -> u64 {
    let shown = router.run(&["ethtool", "-S", "nb0x"]).unwrap();
    let count = |line: &str| {
        let (name, count) = line.split_once(':')?;
        name.trim()
            .ends_with("xdp_xmit")
            .then(|| count.trim().parse::<u64>().ok())?
    };
    shown.lines().filter_map(count).sum()
}

fn received(router: &Router) -> u64 {
    let bond: Value = status(router)["bonds"][0].clone();
    let paths = bond["paths"].as_array().unwrap();
    paths
        .iter()
        .map(|path| path["rx_packets"].as_u64().unwrap())
        .sum()
}

/// [`crossed`] and [`received`] of one moment: the kernel's own packets (MLD, neighbours) come at any time.
fn counted(router: &Router) -> (u64, u64) {
    wait_for("a moment without packets", SOON, || {
        let before = received(router);
        let crossed = crossed(router);
        Ok((received(router) == before).then_some((crossed, before)))
    })
    .unwrap()
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn packets_come_out_of_the_driver_as_by_tc() {
    for (encap, name) in [("gre", "xdp-gre"), ("gretap", "xdp-gretap")] {
        let lab = up(name, &format!("encap = \"{encap}\""), "xdp = \"native\"");
        let (a, b) = (lab.router("A"), lab.router("B"));
        for router in [a, b] {
            wait_xdp(router, "native");
            wait_program(router, true);
        }
        let before = counted(b);
        for address in [B, "fd67::2"] {
            ping(a, address);
        }
        let after = counted(b);
        let (crossed, received) = (after.0 - before.0, after.1 - before.1);
        assert!(received >= 40, "{encap}: {received}");
        assert_eq!(crossed, received, "{encap}: all of them by the driver");
        // Full size, without fragments; longer ones are not for the bond.
        let mtu = status(a)["bonds"][0]["mtu"].as_u64().unwrap();
        let size = (mtu - 28).to_string();
        a.run(&[
            "ping", "-c", "4", "-i", "0.1", "-W", "2", "-M", "do", "-s", &size, B,
        ])
        .unwrap();
        for (from, to, address) in [(a, b, B), (b, a, A)] {
            let tcp = traffic::tcp(from, to, address, Duration::from_secs(1)).unwrap();
            assert!(tcp.mbit_per_s > 10.0, "{encap}: {tcp:?}");
            println!(
                "{encap} {} -> {address}: {} Mbit/s",
                from.name(),
                tcp.mbit_per_s
            );
        }
        let text = a.run(&["netbond", "status"]).unwrap();
        assert!(
            text.contains("via-m1: received in the device's driver (XDP)"),
            "{text}"
        );
        a.kill_netbond(Signal::SIGTERM).unwrap();
        a.run(&["netbond", "detach"]).unwrap();
        wait_program(a, false);
    }
}

/// Controllers stopped, killed, reloaded, XDP switched off and on, under exact streams in both directions.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn neither_a_switch_nor_a_controllers_end_costs_a_packet() {
    let lab = up("xdp-switch", "", "xdp = \"native\"");
    let (a, b) = (lab.router("A"), lab.router("B"));
    for router in [a, b] {
        wait_xdp(router, "native");
    }
    let streams = [
        traffic::Numbered::start(a, b, B, PACE).unwrap(),
        traffic::Numbered::start(b, a, A, PACE).unwrap(),
    ];
    for router in [a, b] {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            router.kill_netbond(signal).unwrap();
            // Packets go on through the driver with no controller.
            let before = crossed(router);
            wait_for("packets from the driver", SOON, || {
                Ok((crossed(router) > before + 20).then_some(()))
            })
            .unwrap();
            router.start_netbond().unwrap();
            router.wait_netbond(SOON).unwrap();
            wait_xdp(router, "native");
        }
        for (line, word) in [("xdp = \"off\"", "off"), ("xdp = \"native\"", "native")] {
            reconfigure(router, &config(router, "", line));
            wait_xdp(router, word);
            wait_program(router, word == "native");
            // And with the programs of other modes.
            reconfigure(router, &config(router, "mode = \"flow\"", line));
            wait_xdp(router, word);
        }
        reconfigure(router, &config(router, "", "xdp = \"native\""));
    }
    assert_exact(streams);
    let events = a.run(&["netbond", "events"]).unwrap();
    for told in [
        "in the driver of e0 from now on (XDP), as path via-m1 asks for it",
        "no longer in the driver of e1: nobody asks for it",
    ] {
        assert!(events.contains(told), "{told}: {events}");
    }
}

/// What stays with tc says why, and works.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn what_stays_with_tc_says_why() {
    let lab = up("xdp-why", "", "xdp = \"auto\"");
    let (a, b) = (lab.router("A"), lab.router("B"));
    // A veth is for those who know what its other end does.
    wait_xdp(b, "veth leaves out checksums");
    wait_program(b, false);
    let native = config(b, "", "xdp = \"native\"");
    reconfigure(b, &native);
    wait_xdp(b, "native");
    // Somebody switches off what the bond device needs.
    b.run(&["ethtool", "-K", "nb0", "gro", "off"]).unwrap();
    wait_xdp(b, "GRO is off on the bond device");
    ping(a, B);
    reconfigure(b, &native);
    wait_xdp(b, "native");
    let before = crossed(b);
    ping(a, B);
    assert!(crossed(b) >= before + 20, "by the driver again");
    // Or deletes the bond device: the new one takes frames, too.
    b.run(&["ip", "link", "del", "nb0"]).unwrap();
    wait_for("packets from the driver on the new device", SOON, || {
        let _ = traffic::ping(a, B, 5, Duration::from_millis(10))?;
        let shown = b.run(&["ip", "link", "show", "nb0x"]);
        Ok((shown.is_ok() && crossed(b) >= 5).then_some(()))
    })
    .unwrap();
    wait_xdp(b, "native");
    wait_proven(b);
    ping(a, B);
    // Or takes the program out: it comes back, and tc stands in until then.
    let link = b.run(&["cat", "/sys/class/net/e0/ifindex"]).unwrap();
    let link = format!("/sys/fs/bpf/netbond/links/{}-xdp", link.trim());
    b.run(&["bpftool", "link", "detach", "pinned", &link])
        .unwrap();
    ping(a, B);
    let told = "somebody took netbond's program out of the driver of e0: it is back";
    wait_for(told, SOON, || {
        Ok(b.netbond_log().contains(told).then_some(()))
    })
    .unwrap();
    wait_program(b, true);
    // Of a bond whose packets are numbered they are left to tc one by one, where somebody insists.
    for router in [a, b] {
        reconfigure(router, &config(router, NUMBERED, "xdp = \"native\""));
    }
    for router in [a, b] {
        wait_xdp(router, "native");
        wait_proven(router);
    }
    ping(a, B);
    // Where nobody insists and no LAN asks, nothing would come of that.
    for router in [a, b] {
        reconfigure(router, &config(router, NUMBERED, "xdp = \"auto\""));
        wait_xdp(router, "bond numbers its packets");
        wait_program(router, false);
    }
    ping(a, B);
    // A bond whose packets are copied. To insist is refused, and changes nothing.
    let copied = "mode = \"duplicate\"";
    for router in [a, b] {
        reconfigure(router, &config(router, copied, "xdp = \"auto\""));
    }
    for router in [a, b] {
        wait_xdp(router, "copies need tc");
        wait_proven(router);
    }
    ping(a, B);
    let insisting = config(b, copied, "xdp = \"native\"");
    reload(b, &insisting, "is not for a bond of mode \"duplicate\"");
    for router in [a, b] {
        reconfigure(router, &config(router, "", "xdp = \"off\""));
        wait_xdp(router, "off");
        wait_program(router, false);
    }
}

/// Somebody else's program stays where it is: to insist is refused, and with "auto" tc goes on.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn another_program_stays() {
    let lab = up("xdp-taken", "", "xdp = \"native\"");
    let (a, b) = (lab.router("A"), lab.router("B"));
    wait_xdp(b, "native");
    // A link that is no longer where netbond keeps its own is anybody's.
    b.run(&[
        "sh",
        "-c",
        "cd /sys/fs/bpf; mkdir other; mv netbond/links/*-xdp other",
    ])
    .unwrap();
    reconfigure(b, &config(b, "", "xdp = \"off\""));
    for device in DEVICES {
        assert!(has_program(b, device), "not netbond's to take away");
    }
    reload(
        b,
        &config(b, "", "xdp = \"native\""),
        "e0 has another XDP program: it stays",
    );
    ping(a, B);
    b.run(&["sh", "-c", "rm -r /sys/fs/bpf/other"]).unwrap();
    wait_program(b, false);
    reconfigure(b, &config(b, "", "xdp = \"native\""));
    wait_xdp(b, "native");
    ping(a, B);
}
