//! A dead path costs milliseconds: each kind of silent failure, with OSPF none the wiser.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::time::{Duration, SystemTime};

use common::{B, LATEST, SOON, changed, path, status, wait_proven, wait_state};
use netbond_lab::{Lab, Ospf, Signal, Topology, traffic, wait_for};
use serde_json::Value;

/// OSPF's defaults: within these tests it notices nothing (dead interval 40 s).
fn up(name: &str) -> Lab {
    let lab = Lab::up(name, &Topology::reference().with_ospf(Ospf::field())).unwrap();
    for router in ["A", "B"] {
        wait_proven(lab.router(router));
    }
    lab
}

/// From a failure to the verdict at both ends, for `fail`; `stream` counts what was lost meanwhile.
fn outage(lab: &Lab, fail: impl Fn(&Lab), heal: impl Fn(&Lab)) -> Duration {
    let (a, b) = (lab.router("A"), lab.router("B"));
    let stream = traffic::Ping::start(a, B, Duration::from_millis(2)).unwrap();
    let failed = SystemTime::now();
    fail(lab);
    let noticed = [a, b].map(|router| {
        changed(&wait_state(router, "via-m1", "dead"))
            .duration_since(failed)
            .unwrap()
    });
    let slowest = noticed[0].max(noticed[1]);
    assert!(
        path(a, "via-m1")["route"] != Value::Null,
        "OSPF has not noticed"
    );
    // A second of traffic after it.
    wait_for("traffic on one path", SOON, || {
        Ok((SystemTime::now() > failed + LATEST + Duration::from_secs(1)).then_some(()))
    })
    .unwrap();
    let log = stream.stop().unwrap();
    let recovered = log.recovery_after(failed).expect("traffic goes on");
    assert!(slowest < LATEST, "noticed after {slowest:?}");
    assert!(recovered < LATEST, "whole again after {recovered:?}");
    eprintln!("noticed after {slowest:?}, whole again after {recovered:?}");
    heal(lab);
    for router in [a, b] {
        wait_state(router, "via-m1", "up");
    }
    recovered
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_silent_death_is_noticed_at_both_ends() {
    let lab = up("silent");
    outage(
        &lab,
        |lab| lab.fail_router("M1").unwrap(),
        |lab| lab.restore_router("M1").unwrap(),
    );
}

/// Each direction, near and far: routes and bonding never see these at one of the ends.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_failure_of_one_direction_is_noticed_at_both_ends() {
    let lab = up("oneway");
    for (from, to) in [("A", "M1"), ("M1", "A"), ("M1", "B"), ("B", "M1")] {
        outage(
            &lab,
            |lab| lab.blackhole(from, to).unwrap(),
            |lab| lab.heal(from, to).unwrap(),
        );
    }
}

/// With the controller of one end dead, the data plane of that end still stops using a dead path:
/// the other end's probes prove the living ones to it.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn detection_works_with_one_controller_dead() {
    let lab = up("onedead");
    let (a, b) = (lab.router("A"), lab.router("B"));
    a.kill_netbond(Signal::SIGKILL).unwrap();
    lab.fail_router("M1").unwrap();
    wait_state(b, "via-m1", "dead");
    let sent = || path(a, "via-m1")["tx_packets"].as_u64().unwrap();
    let before = sent();
    let counts = traffic::ping(a, B, 50, Duration::from_millis(5)).unwrap();
    assert_eq!(
        (counts.lost, sent() - before),
        (0, 0),
        "A uses the living path alone: {}, {}",
        status(a)["bonds"][0],
        status(b)["bonds"][0]
    );
}

/// With both controllers dead nothing proves anything: all paths are used, and counted as such.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn without_controllers_it_fails_open() {
    let lab = up("bothdead");
    let (a, b) = (lab.router("A"), lab.router("B"));
    a.kill_netbond(Signal::SIGKILL).unwrap();
    b.kill_netbond(Signal::SIGKILL).unwrap();
    let last_resort =
        || ["via-m1", "via-m2"].map(|name| path(a, name)["tx_last_resort"].as_u64().unwrap());
    let counts = wait_for("the proofs to grow old", SOON, || {
        let before = last_resort();
        let counts = traffic::ping(a, B, 20, Duration::from_millis(5))?;
        let after = last_resort();
        anyhow::ensure!(
            after[0] > before[0] && after[1] > before[1],
            "as a last resort: {before:?}, then {after:?}; {}",
            status(a)["bonds"][0]
        );
        Ok(Some(counts))
    })
    .unwrap();
    assert_eq!(counts.lost, 0);
}
