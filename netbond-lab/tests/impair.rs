//! Bad lines: random loss and delay are what they are said to be.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

use std::time::Duration;

use netbond_lab::{Impairment, Lab, Options, Topology, traffic};

/// The far end of the link between A and M1.
const M1: &str = "10.65.0.1";

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_line_loses_and_delays_as_told() {
    let options = Options {
        wireguard: None,
        bird: false,
        netbond: false,
    };
    let lab = Lab::up_with("t-impair", &Topology::reference(), options).unwrap();
    let a = lab.router("A");
    let stream = || {
        let stream = traffic::Ping::start(a, M1, Duration::from_millis(2)).unwrap();
        std::thread::sleep(Duration::from_secs(2));
        stream.stop().unwrap().counts()
    };
    // The handshake is done, nothing is lost.
    a.wait_handshake("wg-a-m1", Duration::from_secs(10))
        .unwrap();
    assert_eq!(stream().lost, 0);

    let loss = Impairment {
        loss: 0.3,
        ..Impairment::default()
    };
    lab.impair("A", "M1", loss).unwrap();
    let counts = stream();
    let share = counts.lost as f64 / counts.sent as f64;
    assert!((0.15..0.45).contains(&share), "{counts:?}");

    let delay = Duration::from_millis(100);
    let late = Impairment { loss: 0.0, delay };
    lab.impair("A", "M1", late).unwrap();
    let report = a.run(&["ping", "-n", "-c", "5", "-i", "0.2", M1]).unwrap();
    assert!(least_ms(&report) >= 100.0, "{report}");
    assert_eq!(stream().lost, 0, "late is not lost");

    lab.impair("A", "M1", Impairment::default()).unwrap();
    assert_eq!(stream().lost, 0);
    let report = a.run(&["ping", "-n", "-c", "5", "-i", "0.2", M1]).unwrap();
    assert!(least_ms(&report) < 50.0, "{report}");

    let error = lab.impair("A", "B", loss).unwrap_err();
    assert!(format!("{error:#}").contains("wg-a-b"), "{error:#}");
}

/// The least round trip in the summary of `ping`.
fn least_ms(report: &str) -> f64 {
    let (_, times) = report.split_once("min/avg/max/mdev = ").unwrap();
    times.split('/').next().unwrap().parse().unwrap()
}
