//! Many bonds, many routes, storms of changes: nothing is missed. The figures are `cargo xtask bench scale`'s.

use std::time::Duration;

use netbond_lab::scale::{self, Plan};

/// Hundreds of times as long as it takes: here only what is missed is a failure.
const LONG_MS: f64 = 5_000.0;

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn no_change_is_missed_in_a_storm() {
    let report = scale::run(
        "scale-test",
        &Plan {
            bonds: vec![1, 40],
            routes: 5_000,
            per_second: 4_000,
            storm: Duration::from_secs(5),
            idle: Duration::ZERO,
        },
    )
    .unwrap();
    println!("{report}");
    // First, again, and beside other routes.
    assert_eq!(report.starts.len(), 6);
    let (storm, overruns) = (&report.storm, &report.overruns);
    assert!(storm.per_second > 1_000.0, "no storm: {storm:?}");
    assert!(storm.reactions_ms.len() > 10, "{storm:?}");
    assert!(
        storm.reactions_ms.iter().all(|&ms| ms < LONG_MS),
        "{storm:?}"
    );
    assert!(
        overruns.reactions_ms.iter().all(|&ms| ms < LONG_MS),
        "{overruns:?}"
    );
}
