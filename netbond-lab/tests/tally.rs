//! What becomes of data, counted by both ends; and what both must have alike.

mod common;

use std::time::{Duration, SystemTime};

use common::{B, SOON, counters, path, reconfigure, silence, status, wait_proven};
use netbond_lab::{Impairment, Lab, Router, Topology, traffic, wait_for};
use serde_json::Value;

const PACE: Duration = Duration::from_millis(2);

/// What probes measured of a path.
fn probe(router: &Router, name: &str) -> Value {
    path(router, name)["probe"].clone()
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn losses_of_data_are_counted_to_the_packet() {
    let lab = Lab::up("tally", &Topology::reference()).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    wait_proven(a);
    let lossy = Impairment {
        loss: 0.1,
        ..Impairment::default()
    };
    lab.impair("A", "M1", lossy).unwrap();
    // A packet of the kernel's own between what is told and what is counted would be in one of them alone.
    for router in [a, b] {
        silence(router);
    }
    wait_for("nothing sent for a while", SOON, || {
        let quiet = |name: &&str| probe(a, name)["data_loss"].is_null();
        Ok(["via-m1", "via-m2"].iter().all(quiet).then_some(()))
    })
    .unwrap();
    let count = || (counters(a, "tx_packets"), counters(b, "rx_packets"));
    let before = count();
    let stream = traffic::Numbered::start(a, b, B, PACE).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let rate = probe(a, "via-m2")["delivered_bytes_per_second"].as_u64();
    assert!(rate > Some(1000), "{rate:?}");
    stream.stop_after(SystemTime::now()).unwrap();
    // As exact as long as all of it is in the ten seconds that are told of.
    wait_for("the losses", SOON, || {
        let after = count();
        for (at, name) in ["via-m1", "via-m2"].into_iter().enumerate() {
            let sent = after.0[at] - before.0[at];
            let lost = sent - (after.1[at] - before.1[at]);
            let exact = lost as f64 / sent as f64;
            let probe = probe(a, name);
            let told = probe["data_loss"].as_f64();
            anyhow::ensure!(
                (lost != 0) == (at == 0) && told.is_some_and(|told| (told - exact).abs() < 2e-6),
                "{lost} of {sent} lost on {name}: {probe}"
            );
        }
        Ok(Some(()))
    })
    .unwrap();
    let table = a.run(&["netbond", "status"]).unwrap();
    assert!(table.contains("DATA LOST %"), "{table}");

    let late = Impairment {
        delay: Duration::from_millis(40),
        ..Impairment::default()
    };
    lab.impair("A", "M1", late).unwrap();
    wait_for("the longer way", SOON, || {
        let behind = |router, name| probe(router, name)["behind_ms"].as_f64();
        let (there, back) = (behind(a, "via-m1"), behind(b, "via-m1"));
        anyhow::ensure!(
            there.is_some_and(|ms| (35.0..60.0).contains(&ms))
                && behind(a, "via-m2") == Some(0.0)
                && back.is_some_and(|ms| ms < 15.0),
            "there {there:?}, back {back:?}"
        );
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn settings_that_differ_are_told_until_they_agree() {
    let lab = Lab::up("agree", &Topology::reference()).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    wait_proven(a);
    wait_proven(b);
    let disagreements = |router: &Router| status(router)["bonds"][0]["disagreements"].clone();
    let told = |router: &Router, complaints: &[&str]| {
        wait_for("the peer's settings", SOON, || {
            let said = disagreements(router);
            anyhow::ensure!(said == Value::from(complaints.to_vec()), "said: {said}");
            Ok(Some(()))
        })
        .unwrap();
    };
    let times = |router: &Router, text: &str| {
        let events = router.netbond_events().unwrap();
        events.iter().filter(|event| event.text == text).count()
    };
    told(a, &[]);
    let good = a.default_config().unwrap();
    reconfigure(a, &good.replace("\"gre\"", "\"gretap\""));
    let complaint = |encap| format!("the peer's encap is {encap}: set the same at both ends");
    for (router, encap) in [(a, "gre"), (b, "gretap")] {
        let complaint = complaint(encap);
        told(router, &[&complaint]);
        let table = router.run(&["netbond", "status"]).unwrap();
        assert!(table.contains(&complaint), "{table}");
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(times(router, &complaint), 1);
    }
    reconfigure(a, &good);
    for router in [a, b] {
        told(router, &[]);
        // The status knows it from the probes, the journal from the controller.
        wait_for("an entry of the journal", SOON, || {
            let times = times(router, "the peer's settings agree again");
            anyhow::ensure!(times == 1, "{times} of them");
            Ok(Some(()))
        })
        .unwrap();
    }
}
