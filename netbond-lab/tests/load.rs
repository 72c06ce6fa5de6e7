//! Load is no failure. In a file of its own, so that no other lab runs beside it.

mod common;

use std::time::Duration;

use common::B;
use netbond_lab::{Lab, Topology, traffic};

/// A loaded, healthy lab: no path is taken out.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn load_is_no_failure() {
    let lab = Lab::up("loaded", &Topology::reference()).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    for _ in 0..2 {
        traffic::tcp(a, b, B, Duration::from_secs(5)).unwrap();
    }
    for router in [a, b] {
        let log = router.netbond_log();
        assert!(!log.contains("to=\"dead\""), "{}: {log}", router.name());
    }
}
