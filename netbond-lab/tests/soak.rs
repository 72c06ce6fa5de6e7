//! A minute of random faults. `cargo xtask soak` runs as long as is wanted.

use std::time::Duration;

use netbond_lab::soak;

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn what_must_hold_holds_through_faults() {
    let report = soak::run("soak-test", Duration::from_secs(60), None).unwrap();
    assert!(report.sent > 1000 && !report.faults.is_empty(), "{report}");
    assert!(report.violations.is_empty(), "{report}");
}
