//! What `netbond check` finds in a router.

use netbond_lab::daemon::CONFIG;
use netbond_lab::{Router, wait_for};
use serde::Deserialize;

use super::SOON;

#[derive(Debug, Deserialize)]
pub(crate) struct Report {
    pub(crate) host: Vec<Ability>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) not_checked: Vec<Unchecked>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Ability {
    pub(crate) kind: String,
    pub(crate) what: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Finding {
    pub(crate) severity: String,
    pub(crate) kind: String,
    pub(crate) path: Option<String>,
    pub(crate) device: Option<String>,
    pub(crate) what: String,
    pub(crate) remedy: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Unchecked {
    pub(crate) what: String,
    pub(crate) why: String,
}

impl Report {
    /// The finding of this kind that is about a path, or about none.
    pub(crate) fn find(&self, kind: &str, path: Option<&str>) -> Option<Finding> {
        let is = |finding: &&Finding| finding.kind == kind && finding.path.as_deref() == path;
        self.findings.iter().find(is).cloned()
    }
}

/// What it finds with the router's own file.
pub(crate) fn check(router: &Router) -> Report {
    check_file(router, CONFIG)
}

/// The same with another file. Its exit code goes by problems alone.
pub(crate) fn check_file(router: &Router, file: &str) -> Report {
    let output = router
        .command("netbond")
        .args(["check", "--json", "-c", file])
        .output()
        .unwrap();
    let report: Report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let problem = report.findings.iter().any(|one| one.severity == "problem");
    assert_eq!(
        output.status.code(),
        Some(i32::from(problem)),
        "{report:#?}"
    );
    report
}

/// Waits until there is a finding of this severity and kind about a path, or about none.
pub(crate) fn wait_finding(
    router: &Router,
    severity: &str,
    kind: &str,
    path: Option<&str>,
) -> Finding {
    let what = format!("finding {kind} of {path:?} in {}", router.name());
    wait_for(&what, SOON, || {
        let report = check(router);
        let found = report.find(kind, path);
        let found = found.filter(|finding| finding.severity == severity);
        anyhow::ensure!(found.is_some(), "there are {:#?}", report.findings);
        Ok(found)
    })
    .unwrap()
}

/// Waits until nothing is wrong.
pub(crate) fn wait_healthy(router: &Router) {
    wait_for(&format!("health of {}", router.name()), SOON, || {
        let report = check(router);
        anyhow::ensure!(report.findings.is_empty(), "{:#?}", report.findings);
        Ok(Some(()))
    })
    .unwrap();
}

/// Nothing is wrong, and all was looked at.
pub(crate) fn assert_healthy(router: &Router) {
    let report = check(router);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert!(report.not_checked.is_empty(), "{:#?}", report.not_checked);
}

/// Lets a WireGuard device's only peer have these AllowedIPs alone.
pub(crate) fn allow(router: &Router, device: &str, allowed: &str) {
    let peer = router.run(&["wg", "show", device, "peers"]).unwrap();
    let set = [
        "wg",
        "set",
        device,
        "peer",
        peer.trim(),
        "allowed-ips",
        allowed,
    ];
    router.run(&set).unwrap();
}
