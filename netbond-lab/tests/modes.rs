//! Modes and classes, between routers: which path packets take, what becomes of them where that fails,
//! and that changing a mode costs none.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::time::{Duration, SystemTime};

use aya::programs::{SchedClassifier, TcAttachType};
use common::{
    A, B, SOON, assert_no_loss, assert_told_apart, contended, counters, inside, path, reconfigure,
    reload, second_bond, status, wait_proven, wait_state,
};
use netbond_lab::{Lab, Router, Topology, traffic, wait_for};

const PACE: Duration = Duration::from_millis(2);

/// The lab with both bonds in a mode.
fn up(name: &str, mode: &str) -> Lab {
    let mut topology = Topology::reference();
    for bond in &mut topology.bonds {
        bond.mode = mode.to_owned();
    }
    Lab::up(name, &topology).unwrap()
}

/// A router's configuration with these keys in its bond and its two paths, and what follows them.
fn config(router: &Router, bond: &str, paths: [&str; 2], rest: &str) -> String {
    let text = router.default_config().unwrap();
    let text = text.replacen("mode = \"round-robin\"\n", &format!("{bond}\n"), 1);
    let [first, second] = paths;
    let text = text.replacen(
        "name = \"via-m1\"\n",
        &format!("name = \"via-m1\"\n{first}\n"),
        1,
    );
    let text = text.replacen(
        "name = \"via-m2\"\n",
        &format!("name = \"via-m2\"\n{second}\n"),
        1,
    );
    format!("{text}{rest}")
}

/// Every mode into the next, with the programs swapped again and again: no packet of an exact stream
/// is lost in either direction, and no path is without a verdict.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_change_of_mode_loses_no_packet() {
    let lab = up("mode-change", "round-robin");
    let (a, b) = (lab.router("A"), lab.router("B"));
    wait_proven(a);
    let streams = [
        traffic::Numbered::start(a, b, B, PACE).unwrap(),
        traffic::Numbered::start(b, a, A, PACE).unwrap(),
    ];
    let voice = "[[bond.class]]\nname = \"voice\"\nmode = \"active-backup\"\nprotocol = \"udp\"\n";
    let web = "[[bond.class]]\nname = \"web\"\nmode = \"flow\"\nprotocol = \"tcp\"\n";
    let both = format!("{voice}{web}");
    let none = ["", ""];
    let steps = [
        ("mode = \"weighted\"", ["weight = 3", "weight = 1"], ""),
        ("mode = \"weighted\"", ["weight = 1", "weight = 5"], ""),
        ("mode = \"flow\"", none, ""),
        ("mode = \"flow\"", ["weight = 9", ""], ""),
        ("mode = \"flowlet\"", none, ""),
        ("mode = \"active-backup\"", ["priority = 1", ""], ""),
        ("mode = \"active-backup\"", ["", "priority = 1"], ""),
        ("mode = \"weighted\"\nweights = \"ospf\"", none, ""),
        ("mode = \"weighted\"\nweights = \"measured\"", none, ""),
        ("mode = \"adaptive\"\nin_order = false", none, ""),
        ("mode = \"round-robin\"", ["priority = 1", ""], voice),
        ("mode = \"flow\"", ["priority = 1", ""], voice),
        // All that there is.
        ("mode = \"flowlet\"", ["priority = 1", ""], &both),
        ("mode = \"duplicate\"", none, ""),
        ("mode = \"duplicate\"\ncopies = 2", ["priority = 1", ""], ""),
        ("mode = \"round-robin\"", none, ""),
    ];
    for (bond, paths, rest) in steps {
        for router in [a, b] {
            reconfigure(router, &config(router, bond, paths, rest));
            let mode = bond.split('"').nth(1).unwrap();
            assert_eq!(status(router)["bonds"][0]["mode"], mode);
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    let end = SystemTime::now();
    for stream in streams {
        let counts = stream.stop_after(end).unwrap().counts();
        assert!(counts.sent > 1000, "{counts:?}");
        assert_eq!(counts.lost, 0, "of {}", counts.sent);
    }
}

/// The program at a bond's egress.
fn program(router: &Router, bond: &'static str) -> String {
    let on_tcx = inside(router, || {
        SchedClassifier::query_tcx(bond, TcAttachType::Egress)
    });
    // Linux 6.1 has filters instead.
    let Ok((_, programs)) = on_tcx.join().unwrap() else {
        return router
            .run(&["tc", "filter", "show", "dev", bond, "egress"])
            .unwrap();
    };
    let names = programs.iter().map(|program| program.name_as_str());
    names.map(|name| name.unwrap()).collect()
}

/// What one bond asks for costs no other anything: each has the program that it needs itself, before and after
/// reloads, refused ones too.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn each_bond_has_the_program_that_it_needs() {
    let lab = up("mode-each", "round-robin");
    let (a, b) = (lab.router("A"), lab.router("B"));
    wait_proven(a);
    let first = a.default_config().unwrap();
    let second = |mode: &str| second_bond(&first).replace("mode = \"round-robin\"", mode);
    let both = |modes: [&str; 2]| {
        let [one, other] = modes.map(|mode| format!("mode = \"{mode}\""));
        let first = first.replace("mode = \"round-robin\"", &one);
        format!("{first}\n{}", second(&other))
    };
    let assert_programs = |wanted: [&str; 2]| {
        for (bond, wanted) in ["nb0", "nb1"].into_iter().zip(wanted) {
            let program = program(a, bond);
            assert!(program.contains(wanted), "{bond}: {program}");
        }
    };
    let stream = traffic::Numbered::start(a, b, B, PACE).unwrap();
    reconfigure(a, &both(["round-robin", "flow"]));
    assert_programs(["netbond_egress", "netbond_modes"]);
    reconfigure(a, &both(["flow", "round-robin"]));
    assert_programs(["netbond_modes", "netbond_egress"]);
    // Refused once both bonds had their other programs.
    let foreign = "link add name nb2 type veth peer name other";
    a.ip(foreign).unwrap();
    let third = second("mode = \"flow\"").replace("nb1", "nb2");
    let third = third.replace("4294967295", "7").replace("68", "69");
    let third = third.replace("keyed-", "third-");
    let refused = format!("{}\n{third}", both(["round-robin", "flow"]));
    reload(a, &refused, "device 'nb2' exists");
    assert_programs(["netbond_modes", "netbond_egress"]);
    reconfigure(a, &both(["round-robin", "round-robin"]));
    assert_programs(["netbond_egress", "netbond_egress"]);
    let events = a.run(&["netbond", "events"]).unwrap();
    for told in [
        "nb0: sent by netbond_modes from now on, as its modes and paths ask",
        "nb1: sent by netbond_egress from now on, as its modes and paths ask",
    ] {
        assert!(events.contains(told), "{told}: {events}");
    }
    let counts = stream.stop_after(SystemTime::now()).unwrap().counts();
    assert!(counts.sent > 100, "{counts:?}");
    assert_eq!(counts.lost, 0, "of {}", counts.sent);
}

/// What both paths carried while something went on.
fn carried(router: &Router, counter: &str, during: impl FnOnce()) -> [u64; 2] {
    let before = counters(router, counter);
    during();
    let after = counters(router, counter);
    [after[0] - before[0], after[1] - before[1]]
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_flow_keeps_its_path_while_that_lives() {
    let mut topology = Topology::reference().with_bond_line("hold_down = 0");
    for bond in &mut topology.bonds {
        bond.mode = "flow".to_owned();
    }
    let lab = Lab::up("flow", &topology).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    wait_proven(a);
    // One stream has nearly all of the packets; the test's own connection has the rest. Where a probe is late,
    // as on a busy machine, the other path stands in for a moment: those are counted apart.
    let mut stood_in = [0; 2];
    let packets = carried(a, "tx_packets", || {
        stood_in = carried(a, "tx_stand_in", || {
            traffic::tcp(a, b, B, Duration::from_secs(2)).unwrap();
        });
    });
    let kept: Vec<u64> = (0..2).map(|at| packets[at] - stood_in[at]).collect();
    let (most, all) = (*kept.iter().max().unwrap(), kept.iter().sum::<u64>());
    assert!(most as f64 > 0.99 * all as f64, "{packets:?}, {stood_in:?}");
    assert!(stood_in.iter().sum::<u64>() < all / 10, "{stood_in:?}");

    let stream = traffic::Numbered::start(a, b, B, PACE).unwrap();
    let second = || std::thread::sleep(Duration::from_secs(1));
    let home = |packets: [u64; 2]| usize::from(packets[1] > packets[0]);
    let before = carried(a, "tx_packets", second);
    let (path, router) = [("via-m1", "M1"), ("via-m2", "M2")][home(before)];
    assert!(before[1 - home(before)] < 20, "{before:?}");
    let failed = SystemTime::now();
    lab.fail_router(router).unwrap();
    wait_state(a, path, "dead");
    let during = carried(a, "tx_packets", second);
    assert_ne!(home(during), home(before), "{during:?}");
    lab.restore_router(router).unwrap();
    wait_state(a, path, "up");
    wait_state(b, path, "up");
    let after = carried(a, "tx_packets", second);
    assert_eq!(home(after), home(before), "it comes back: {after:?}");
    let log = stream.stop_after(SystemTime::now()).unwrap();
    let lost = log.counts_since(failed).lost;
    assert!(lost < 400, "{lost} lost of a stream of 500 a second");
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn active_backup_fails_over_and_back() {
    let lab = up("backup", "active-backup");
    let (a, b) = (lab.router("A"), lab.router("B"));
    for router in [a, b] {
        let text = router.default_config().unwrap();
        let text = text.replacen(
            "name = \"via-m1\"\n",
            "name = \"via-m1\"\npriority = 1\n",
            1,
        );
        reconfigure(router, &text);
    }
    wait_proven(a);
    wait_proven(b);
    let used = || {
        ["via-m1", "via-m2"].map(|name| {
            let path = path(a, name);
            (path["in_use"] == true, path["standby"] == true)
        })
    };
    assert_eq!(used(), [(false, true), (true, false)]);
    let stream = traffic::Numbered::start(a, b, B, PACE).unwrap();
    let second = || std::thread::sleep(Duration::from_secs(1));
    let packets = carried(a, "tx_packets", second);
    assert!(packets[1] > 300 && packets[0] < 20, "{packets:?}");
    lab.fail_router("M2").unwrap();
    let failed = SystemTime::now();
    wait_state(a, "via-m2", "dead");
    let packets = carried(a, "tx_packets", second);
    assert!(packets[0] > 300 && packets[1] == 0, "{packets:?}");
    wait_for("the other path in use", SOON, || {
        let used = used();
        anyhow::ensure!(used == [(true, false), (false, false)], "{used:?}");
        Ok(Some(()))
    })
    .unwrap();
    lab.restore_router("M2").unwrap();
    wait_state(a, "via-m2", "up");
    wait_state(b, "via-m2", "up");
    let packets = carried(a, "tx_packets", second);
    assert!(packets[1] > 300 && packets[0] < 20, "{packets:?}");
    let log = stream.stop_after(SystemTime::now()).unwrap();
    let lost = log.counts_since(failed).lost;
    assert!(lost < 400, "{lost} lost of a stream of 500 a second");
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_class_by_dscp_takes_another_mode() {
    let lab = up("class", "round-robin");
    let a = lab.router("A");
    let voice = "[[bond.class]]\nname = \"voice\"\nmode = \"active-backup\"\ndscp = \"ef\"\n";
    reconfigure(
        a,
        &config(a, "mode = \"round-robin\"", ["priority = 1", ""], voice),
    );
    wait_proven(a);
    // So large that few packets of other traffic (a host's own multicast) are not taken for one.
    let ping = |tos: &str| {
        let count = ["-c", "40", "-i", "0.01", "-s", "1200"];
        let words = [&["ping", "-n", "-q", "-Q", tos][..], &count, &[B]].concat();
        a.run(&words).unwrap();
    };
    let class = || status(a)["bonds"][0]["classes"][0].clone();
    let before = class()["tx_packets"].as_u64().unwrap();
    // 0xb8 is the DSCP 46 in the place of the TOS byte.
    // Where a probe is late, the first path stands in.
    let mut stood_in = [0; 2];
    let bytes = carried(a, "tx_bytes", || {
        stood_in = carried(a, "tx_stand_in", || ping("0xb8"));
    });
    let [moved, _] = stood_in;
    assert!(
        moved < 20 && bytes[0] < (moved + 1) * 1200 && bytes[1] >= (40 - moved) * 1200,
        "none of the class takes the first path: {bytes:?}, {stood_in:?}"
    );
    let class = class();
    assert_eq!(
        class["tx_packets"].as_u64().unwrap() - before,
        40,
        "{class}"
    );
    assert_eq!(
        (&class["name"], &class["mode"]),
        (&"voice".into(), &"active-backup".into())
    );
    let packets = carried(a, "tx_packets", || ping("0"));
    assert!(packets[0] >= 15 && packets[1] >= 15, "{packets:?}");
    let table = a.run(&["netbond", "status"]).unwrap();
    assert!(table.contains("voice  active-backup"), "{table}");
    wait_for("the class gone", SOON, || {
        reconfigure(a, &a.default_config().unwrap());
        let classes = status(a)["bonds"][0]["classes"].as_array().unwrap().len();
        Ok((classes == 0).then_some(()))
    })
    .unwrap();
}

/// Paths fail and return one after the other, silently, so that one of them always lives: nothing is lost,
/// nothing is delivered twice, and no end takes the copies that it sent for lost.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn copies_lose_nothing_while_a_path_lives() {
    const FAILURES: usize = 12;
    let mut topology = Topology::reference().with_bond_line("hold_down = 0");
    for bond in &mut topology.bonds {
        bond.mode = "duplicate".to_owned();
    }
    let lab = Lab::up("duplicate", &topology).unwrap();
    let routers @ [a, b] = ["A", "B"].map(|name| lab.router(name));
    for router in routers {
        wait_proven(router);
        assert_eq!(status(router)["bonds"][0]["mtu"], 1392);
    }
    let streams = [
        traffic::Numbered::start(a, b, B, PACE).unwrap(),
        traffic::Numbered::start(b, a, A, PACE).unwrap(),
    ];
    let both = carried(a, "tx_packets", || {
        std::thread::sleep(Duration::from_secs(3));
    });
    assert!(both.iter().all(|&packets| packets > 1000), "{both:?}");
    for name in ["via-m1", "via-m2"] {
        let probe = path(a, name)["probe"].clone();
        // But for what was sent before the other end was there.
        assert!(probe["data_loss"].as_f64() < Some(0.01), "{name}: {probe}");
    }
    for failure in 0..FAILURES {
        let (router, failing) = [("M1", "via-m1"), ("M2", "via-m2")][failure % 2];
        lab.fail_router(router).unwrap();
        std::thread::sleep(Duration::from_millis(400));
        lab.restore_router(router).unwrap();
        for end in routers {
            wait_for(&format!("{failing} in {}", end.name()), SOON, || {
                let path = path(end, failing);
                Ok((path["state"] == "up" && path["in_use"] == true).then_some(()))
            })
            .unwrap();
        }
    }
    let end = SystemTime::now();
    let logs = streams.map(|stream| stream.stop_after(end).unwrap());
    let contended = contended(routers);
    for log in logs {
        let counts = log.counts();
        assert!(counts.sent > 1000, "{counts:?}");
        assert_no_loss(&log);
        assert_told_apart(&log, contended);
    }
    for router in routers {
        // Read at once: what is sent to a group may come in at any time.
        let bond = status(router)["bonds"][0].clone();
        let numbered = &bond["numbered"];
        let lost = numbered["lost"].as_u64().unwrap();
        assert!(
            lost <= contended,
            "{lost} for lost, {contended} not compared"
        );
        assert_eq!(numbered["begun"], 0);
        assert!(numbered["copies"].as_u64() > Some(1000), "{numbered}");
        let paths = bond["paths"].as_array().unwrap();
        let copies = paths.iter().map(|path| path["rx_copies"].as_u64().unwrap());
        assert_eq!(numbered["copies"], copies.sum::<u64>());
        let table = router.run(&["netbond", "status"]).unwrap();
        assert!(
            table.contains("RX COPIES") && table.contains("copies dropped"),
            "{table}"
        );
        for name in ["via-m1", "via-m2"] {
            let to_dead = router
                .netbond_events()
                .unwrap()
                .into_iter()
                .filter(|event| {
                    event.path.as_deref() == Some(name) && event.to.as_deref() == Some("dead")
                });
            assert!(to_dead.count() >= FAILURES / 2, "{name} failed each time");
        }
    }
}
