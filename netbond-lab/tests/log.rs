//! The log, in a real journal.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::process::{Child, Command};

use common::{SOON, wait_state};
use netbond_lab::daemon::CONFIG;
use netbond_lab::{Lab, Router, Signal, Topology, wait_for};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

const JOURNALD: &str = "/lib/systemd/systemd-journald";

/// A program in a router, told to end with its scope.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// systemd-journald with a journal of the router's own: its /run is.
fn start_journal(router: &Router) -> Running {
    let config = router.host_path("/run/systemd/journald.conf.d");
    std::fs::create_dir_all(&config).unwrap();
    let text = "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n";
    std::fs::write(config.join("test.conf"), text).unwrap();
    // It does not start without; the router's /sys is its own, too.
    router
        .run(&["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"])
        .unwrap();
    let journald = Running::start(&mut router.command(JOURNALD));
    wait_for("journald", SOON, || {
        let started = journal(router, &["SYSLOG_IDENTIFIER=systemd-journald"])?;
        Ok((!started.is_empty()).then_some(()))
    })
    .unwrap();
    journald
}

/// netbond as a service of systemd's: its output leads to the journal, and it is told so.
fn start_netbond(router: &Router, redirection: &str) -> Running {
    let told = "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) && export JOURNAL_STREAM";
    let script = format!("{told} && exec netbond run -c {CONFIG} {redirection}");
    let mut command = router.command("systemd-cat");
    Running::start(command.args(["sh", "-c", &script]))
}

/// What the journal has with these fields.
fn journal(router: &Router, fields: &[&str]) -> anyhow::Result<Vec<Value>> {
    let mut command = vec!["journalctl", "-D", "/run/log/journal", "-o", "json", "-q"];
    command.extend(fields);
    let text = router.run(&command)?;
    let entries = text.lines().map(serde_json::from_str);
    Ok(entries.collect::<serde_json::Result<_>>()?)
}

/// What the controllers in a router told of their start.
fn starts(router: &Router) -> anyhow::Result<Vec<Value>> {
    let mut entries = journal(router, &["SYSLOG_IDENTIFIER=netbond"])?;
    entries.retain(|entry| {
        let message = entry["MESSAGE"].as_str().unwrap_or_default();
        message.starts_with("controller started")
    });
    Ok(entries)
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn the_journal_has_fields_and_other_places_text() {
    let lab = Lab::up("log", &Topology::reference()).unwrap();
    let a = lab.router("A");
    let _journald = start_journal(a);
    a.kill_netbond(Signal::SIGTERM).unwrap();
    let netbond = start_netbond(a, "");
    let started = wait_for("its start in the journal", SOON, || Ok(starts(a)?.pop())).unwrap();
    // Of the whole instance: no empty fields.
    assert!(
        started.get("BOND").is_none() && started.get("PATH").is_none(),
        "{started}"
    );
    wait_state(a, "via-m1", "up");

    lab.fail_router("M1").unwrap();
    wait_state(a, "via-m1", "dead");
    let death = wait_for("its death in the journal", SOON, || {
        Ok(journal(a, &["PATH=via-m1", "TO=dead"])?.pop())
    })
    .unwrap();
    for (field, value) in [
        ("BOND", "nb0"),
        ("FROM", "up"),
        ("REASON", "probes unanswered"),
        ("PRIORITY", "6"),
        ("_TRANSPORT", "journal"),
    ] {
        assert_eq!(death[field], value, "{death}");
    }
    let cause = death["CAUSE"].as_str().unwrap();
    assert!(cause.starts_with("probe: "), "{death}");
    let message = format!("nb0 via-m1: up -> dead (probes unanswered): {cause}");
    assert_eq!(death["MESSAGE"], message);
    // Turned elsewhere: what systemd said of stderr holds no longer.
    drop(netbond);
    let _netbond = start_netbond(a, "2>/run/netbond/text");
    wait_for("its start in the file", SOON, || {
        let text = std::fs::read_to_string(a.host_path("/run/netbond/text")).unwrap_or_default();
        Ok(text.contains("INFO controller started").then_some(()))
    })
    .unwrap();
    assert_eq!(starts(a).unwrap().len(), 1, "the second one is not there");
}
