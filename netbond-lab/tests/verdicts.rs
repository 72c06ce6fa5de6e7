//! What netbond makes of paths that are worse than dead or alive, and how it tells.

mod common;

use std::net::Ipv4Addr;
use std::time::Duration;

use common::{B, SOON, events, path, wait_reason, wait_state};
use netbond_lab::daemon::Event;
use netbond_lab::topology::{LinkEnd, LinkSpec, PathSpec, RouterSpec};
use netbond_lab::{Impairment, Lab, Ospf, Router, Signal, Topology, traffic, wait_for};
use serde_json::Value;

/// How often a path came into a state.
fn entered(router: &Router, name: &str, state: &str) -> usize {
    let is = |which: &Option<String>| which.as_deref() == Some(state);
    events(router, name)
        .iter()
        .filter(|event| event.kind == "changed" && is(&event.to) && !is(&event.from))
        .count()
}

/// Small packets pass, large ones vanish without a word, and with them all that a bond has to carry: found by both
/// ends, and named.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn an_mtu_black_hole_is_named_at_both_ends() {
    let lab = Lab::up("mtu", &Topology::reference()).unwrap();
    let (a, b, m1) = (lab.router("A"), lab.router("B"), lab.router("M1"));
    // A veth device swallows what is longer than its MTU.
    m1.run(&["ip", "link", "set", "u-m1-a", "mtu", "1300"])
        .unwrap();
    for router in [a, b] {
        let path = wait_reason(router, "via-m1", "mtu");
        assert_eq!(path["state"], "dead");
        assert_eq!(path["probe"]["full_size"], 1396);
        assert_eq!(path["probe"]["full_size_result"], "black hole");
    }
    let counts = traffic::ping(a, B, 30, Duration::from_millis(10)).unwrap();
    assert_eq!(counts.lost, 0);
    let full = a.run(&[
        "ping", "-c", "10", "-i", "0.05", "-M", "do", "-s", "1368", B,
    ]);
    assert!(full.unwrap().contains(" 0% packet loss"));
    let why = a.run(&["netbond", "why", "via-m1"]).unwrap();
    let sentence = "Packets of 1396 bytes vanish on the way";
    assert!(why.contains(sentence), "{why}");

    m1.run(&["ip", "link", "set", "u-m1-a", "mtu", "1500"])
        .unwrap();
    for router in [a, b] {
        wait_state(router, "via-m1", "up");
    }
}

/// A third of the packets lost on one path: where the policy says so, it is avoided, by both ends, and
/// comes back when it has been well for a while. (Three lost probes in a row are likely meanwhile.)
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_lossy_path_is_avoided_where_the_policy_says_so() {
    let topology = Topology::reference()
        .with_bond_line("lossy = \"avoid\"")
        .with_bond_line("lossy_above = 5")
        .with_bond_line("hold_down = 0");
    let lab = Lab::up("lossy", &topology).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    let loss = Impairment {
        loss: 0.15,
        ..Impairment::default()
    };
    lab.impair("A", "M1", loss).unwrap();
    for router in [a, b] {
        let path = wait_reason(router, "via-m1", "lossy");
        assert_eq!(
            (path["state"].as_str(), path["in_use"].as_bool()),
            (Some("degraded"), Some(false))
        );
    }
    let counts = traffic::ping(a, B, 50, Duration::from_millis(5)).unwrap();
    assert_eq!(counts.lost, 0, "the other path carries all");
    lab.impair("A", "M1", Impairment::default()).unwrap();
    for router in [a, b] {
        wait_state(router, "via-m1", "up");
    }
}

/// A path that comes and goes all 200 ms stays out as long as it does, and is held down after.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_flapping_path_is_held_down() {
    let lab = Lab::up("flaps", &Topology::reference()).unwrap();
    let a = lab.router("A");
    let before = entered(a, "via-m1", "up");
    for _ in 0..20 {
        lab.blackhole("A", "M1").unwrap();
        std::thread::sleep(Duration::from_millis(200));
        lab.heal("A", "M1").unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    let held = wait_reason(a, "via-m1", "held down after flapping");
    assert!(held["hold_down_ms"].as_f64().unwrap() > 0.0, "{held}");
    assert!(held["flaps"].as_u64().unwrap() >= 1, "{held}");
    let why = a.run(&["netbond", "why", "via-m1"]).unwrap();
    assert!(
        why.contains("It comes back when it has been well for another"),
        "{why}"
    );
    wait_state(a, "via-m1", "up");
    // The first return, before it was known to flap, perhaps one more, and the last.
    let returns = entered(a, "via-m1", "up") - before;
    assert!((1..=3).contains(&returns), "{:#?}", events(a, "via-m1"));
}

/// A and B with two routers on each way, joined crosswise: where a middle link dies, OSPF leads round
/// it.
fn ladder() -> Topology {
    let end = |router: &str, overlay: u8, underlay: u8| LinkEnd {
        router: router.to_owned(),
        overlay: Ipv4Addr::new(10, 65, 0, overlay),
        underlay: Ipv4Addr::new(192, 0, 2, underlay).into(),
    };
    let link = |block: u8, one: &str, other: &str| {
        LinkSpec::new(
            end(one, block + 2, block + 1),
            end(other, block + 1, block + 2),
        )
    };
    let mut topology = Topology::reference();
    for (number, name) in ["N1", "N2"].into_iter().enumerate() {
        let id = Ipv4Addr::new(10, 65, 3, number as u8 + 1);
        topology.routers.push(RouterSpec::new(name, id));
    }
    topology.links = vec![
        link(0, "A", "M1"),
        link(4, "B", "N1"),
        link(12, "A", "M2"),
        link(8, "B", "N2"),
        link(16, "M1", "N1"),
        link(20, "M2", "N2"),
        link(24, "M1", "M2"),
        link(28, "N1", "N2"),
    ];
    for bond in &mut topology.bonds {
        if bond.router == "B" {
            bond.paths[0].device = "wg-b-n1".to_owned();
            bond.paths[1].device = "wg-b-n2".to_owned();
        }
    }
    topology
}

/// The link in the middle of a path dies: probes notice, OSPF leads round it, and probes revive the
/// path as the detour that it is.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_path_that_ospf_leads_round_a_failure_revives_as_a_detour() {
    let lab = Lab::up("ladder", &ladder()).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    lab.blackhole("M1", "N1").unwrap();
    lab.blackhole("N1", "M1").unwrap();
    wait_reason(a, "via-m1", "probes unanswered");
    for router in [a, b] {
        let path = wait_state(router, "via-m1", "detour");
        assert_eq!(path["proof"]["fresh"], true, "{path}");
    }
    let story = events(a, "via-m1");
    let missed = |event: &Event| event.kind == "changed" && event.text.ends_with(" missed");
    assert!(story.iter().any(missed), "{story:#?}");
    lab.heal("M1", "N1").unwrap();
    lab.heal("N1", "M1").unwrap();
    for router in [a, b] {
        wait_state(router, "via-m1", "up");
    }
}

/// The peer is no netbond, but its BIRD speaks BFD: sessions over the middle routers stand in for
/// probes.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn bfd_with_a_peer_that_is_no_netbond() {
    let mut topology = Topology::reference()
        .with_ospf(Ospf::field())
        .with_bond_line("probe_interval = 0")
        .with_bond_line("bfd = \"multi-hop\"");
    topology.bonds.retain(|bond| bond.router == "A");
    let lab = Lab::up("bfd", &topology).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    // Beside the BIRD that speaks OSPF, one for BFD alone; it ends with the lab.
    let config = b.host_path("/run/bfd.conf");
    let neighbour = |path: &PathSpec| {
        let (remote, local) = (path.local, path.remote);
        format!("  neighbor {remote} local {local} multihop yes;\n")
    };
    let neighbours: String = a.paths().unwrap().iter().map(neighbour).collect();
    let text = format!(
        "router id 10.65.2.1;\nprotocol device {{ }}\nprotocol bfd {{\n  multihop {{ interval 50 ms; \
         multiplier 3; }};\n{neighbours}}}\n"
    );
    std::fs::write(config, text).unwrap();
    let mut bird = b.command("bird");
    bird.args(["-f", "-c", "/run/bfd.conf", "-s", "/run/bfd.ctl"]);
    let mut bird = bird.spawn().unwrap();

    let up = |event: &Event| event.text == "bfd: session up";
    wait_for("the sessions", SOON, || {
        let both = ["via-m1", "via-m2"].map(|path| events(a, path).iter().any(up));
        Ok((both == [true; 2]).then_some(()))
    })
    .unwrap();
    assert_eq!(path(a, "via-m1")["watch"], "bfd");
    // Other programs are loaded, which takes longer than the peer waits for a packet.
    let config = a.default_config().unwrap();
    for mode in ["flow", "round-robin", "active-backup"] {
        let text = config.replace("mode = \"round-robin\"", &format!("mode = \"{mode}\""));
        a.write_config(&text).unwrap();
        a.run(&["netbond", "reload"]).unwrap();
    }
    for path in ["via-m1", "via-m2"] {
        let mut events = events(a, path).into_iter();
        let down = events.find(|event| event.text.starts_with("bfd: session down"));
        assert!(down.is_none(), "{path}: {down:?}");
    }
    lab.blackhole("M1", "B").unwrap();
    let dead = wait_reason(a, "via-m1", "bfd session down");
    assert_eq!(dead["in_use"], false, "{dead}");
    assert_eq!(path(a, "via-m2")["state"], "up");
    assert!(dead["route"] != Value::Null, "OSPF has not noticed");
    lab.heal("M1", "B").unwrap();
    wait_state(a, "via-m1", "up");
    bird.kill().unwrap();
    bird.wait().unwrap();
}

/// Killed and started again, the controller goes on in the same journal; meanwhile it can be read, and
/// `why` says that nobody keeps it.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn the_journal_outlives_the_controller() {
    let lab = Lab::up("journal", &Topology::reference()).unwrap();
    let a = lab.router("A");
    let followed = tempfile::NamedTempFile::new().unwrap();
    let mut follow = a.command("netbond");
    follow.args(["events", "--follow", "--json"]);
    follow.stdout(followed.reopen().unwrap());
    let mut follow = follow.spawn().unwrap();
    lab.fail_router("M1").unwrap();
    wait_reason(a, "via-m1", "probes unanswered");
    wait_for("the event in the one that follows", SOON, || {
        let text = std::fs::read_to_string(followed.path())?;
        let mut lines = text.lines().map(serde_json::from_str::<Value>);
        Ok(lines
            .any(|event| event.is_ok_and(|event| event["to"] == "dead"))
            .then_some(()))
    })
    .unwrap();
    follow.kill().unwrap();
    follow.wait().unwrap();
    // OSPF sees it as well, some time later.
    let confirmed = wait_for("another sign of it", SOON, || {
        let events = events(a, "via-m1");
        Ok(events.into_iter().find(|event| event.kind == "confirmed"))
    })
    .unwrap();
    let before = events(a, "via-m1");
    let of_the_other = a.run(&["netbond", "events", "--path", "via-m2"]).unwrap();
    assert!(
        of_the_other.contains("via-m2: ") && !of_the_other.contains("via-m1: "),
        "{of_the_other}"
    );
    let why = a.run(&["netbond", "why", "via-m1"]).unwrap();
    assert!(
        why.contains("Since then, confirming it: ") && !confirmed.text.is_empty(),
        "{why}"
    );

    a.kill_netbond(Signal::SIGKILL).unwrap();
    assert_eq!(events(a, "via-m1")[..before.len()], before);
    let why = a.run(&["netbond", "why", "via-m1"]).unwrap();
    assert!(why.contains("No controller runs"), "{why}");

    a.start_netbond().unwrap();
    lab.restore_router("M1").unwrap();
    wait_state(a, "via-m1", "up");
    let after = events(a, "via-m1");
    assert_eq!(after[..before.len()], before);
    assert!(
        after.is_sorted_by(|a, b| a.sequence < b.sequence),
        "{after:#?}"
    );
}
