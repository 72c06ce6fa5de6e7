//! A controller that dies anywhere in its start leaves either what was there before, or nothing that is in
//! the way of the next one. strace kills it as it enters a system call that changes something. `NETBOND_STEPS`
//! says at how many of these calls; by default at some, evenly spread.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use common::{A, B, SOON, assert_no_loss, ping, wait_proven};
use netbond_lab::daemon::CONFIG;
use netbond_lab::{Lab, Options, Router, Signal, Topology, traffic, wait_for};
use nix::sys::signal::kill;
use nix::unistd::Pid;

const PACE: Duration = Duration::from_millis(2);

/// System calls by which a start changes something.
const CALLS: [&str; 4] = ["bpf", "mkdir", "sendmsg", "sendto"];
/// Commands of bpf(2) that change nothing.
const READING: [&str; 7] = [
    "BPF_BTF_LOAD",
    "BPF_MAP_FREEZE",
    "BPF_MAP_GET_NEXT_KEY",
    "BPF_MAP_LOOKUP_ELEM",
    "BPF_OBJ_GET,",
    "BPF_OBJ_GET_INFO_BY_FD",
    "BPF_PROG_QUERY",
];

/// The n-th call of a system call, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    call: &'static str,
    number: usize,
}

/// Those that change something, of what strace wrote until the controller said that it has started.
fn steps(trace: &str) -> Vec<Step> {
    let mut numbers = BTreeMap::new();
    let start = trace
        .lines()
        .take_while(|line| !line.starts_with("write(") || !line.contains("controller started"));
    let changing = start.filter_map(|line| {
        let (name, rest) = line.split_once('(')?;
        let call = CALLS.into_iter().find(|call| *call == name)?;
        let number = numbers.entry(call).or_insert(0);
        *number += 1;
        let reads = READING.iter().any(|command| rest.starts_with(command));
        (!reads).then_some(Step {
            call,
            number: *number,
        })
    });
    changing.collect()
}

/// Starts a controller under strace with these options; returns how it ended, `None` where it came to live. Then
/// it is stopped.
fn start(router: &Router, options: &[&str]) -> Option<Option<i32>> {
    let output = tempfile::NamedTempFile::new().unwrap();
    let mut child = router
        .command("strace")
        .args(["-qq"])
        .args(options)
        .args(["netbond", "run", "-c", CONFIG])
        .stdin(Stdio::null())
        .stdout(output.reopen().unwrap())
        .stderr(output.reopen().unwrap())
        .spawn()
        .unwrap();
    let ended = wait_for("the end of a start", SOON, || {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(Some(status.code())));
        }
        let said = fs::read_to_string(output.path())?;
        Ok(said.contains("controller started: ").then_some(None))
    })
    .unwrap();
    if ended.is_none() {
        let strace = child.id();
        let traced = fs::read_to_string(format!("/proc/{strace}/task/{strace}/children")).unwrap();
        // None, where it was killed just then.
        if let Ok(traced) = traced.trim().parse() {
            let _ = kill(Pid::from_raw(traced), Signal::SIGTERM);
        }
        child.wait().unwrap();
    }
    ended
}

/// What a start does, step by step.
fn trace(router: &Router) -> Vec<Step> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let calls = format!("trace=write,{}", CALLS.join(","));
    let ended = start(router, &["-s", "200", "-e", &calls, "-o", path]);
    assert_eq!(ended, None, "a start that nothing kills");
    let steps = steps(&fs::read_to_string(path).unwrap());
    assert!(steps.len() > 50, "{steps:?}");
    let wanted: usize = std::env::var("NETBOND_STEPS").map_or(8, |steps| steps.parse().unwrap());
    let every = steps.len().div_ceil(wanted.max(1)).max(1);
    // Not always the same ones.
    let first = std::process::id() as usize % every;
    steps.into_iter().skip(first).step_by(every).collect()
}

/// Kills a start at a step; whether it came to that.
fn crash(router: &Router, step: Step) -> bool {
    let Step { call, number } = step;
    let inject = format!("inject={call}:signal=KILL:when={number}");
    let ended = start(router, &["-e", &inject, "-o", "/dev/null"]);
    if let Some(code) = ended {
        // strace ends as what it traced did.
        assert_eq!(code, None, "{step:?}: it ended by itself");
    }
    ended.is_some()
}

/// What is pinned.
fn pins(router: &Router) -> String {
    // The kernel has two files of its own there.
    router
        .run(&[
            "find",
            "/sys/fs/bpf",
            "-mindepth",
            "1",
            "!",
            "-name",
            "*.debug",
        ])
        .unwrap()
}

/// What netbond made and left: pins, devices, what hangs on devices.
fn left(router: &Router) -> String {
    let links = router
        .run(&["ip", "-o", "link", "show", "type", "veth"])
        .unwrap();
    let bonds: Vec<&str> = links
        .lines()
        .filter(|link| link.contains(": nb0"))
        .collect();
    let devices = router.run(&["ip", "-o", "link", "show"]).unwrap();
    let mut hooks = String::new();
    for device in ["wg-a-m1", "wg-a-m2"] {
        assert!(devices.contains(device));
        hooks += &router
            .run(&["tc", "filter", "show", "dev", device, "ingress"])
            .unwrap_or_default();
    }
    format!("{}{}{hooks}", pins(router), bonds.join("\n"))
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_first_start_that_crashes_is_in_nobodys_way() {
    let options = Options {
        netbond: false,
        ..Options::default()
    };
    let lab = Lab::up_with("crash-first", &Topology::reference(), options).unwrap();
    let [a, b] = ["A", "B"].map(|name| lab.router(name));
    lab.wait_converged(SOON).unwrap();
    b.start_netbond().unwrap();
    let steps = trace(a);
    a.run(&["netbond", "detach"]).unwrap();
    let (mut crashes, tried) = (0, steps.len());
    for step in steps {
        crashes += usize::from(crash(a, step));
        a.start_netbond().unwrap();
        a.wait_netbond(SOON).unwrap();
        ping(a, B);
        a.kill_netbond(Signal::SIGTERM).unwrap();
        // Of a start that crashed alone as well.
        crash(a, step);
        a.run(&["netbond", "detach"]).unwrap();
        assert_eq!(left(a), "", "{step:?}");
        // Nor does it stop a detach at once. That leaves a device that was just made to the next start.
        crash(a, step);
        a.run(&["netbond", "detach"]).unwrap();
        assert_eq!(pins(a), "", "{step:?}, from nothing");
    }
    assert!(2 * crashes > tried, "{crashes} of {tried}");
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_restart_that_crashes_leaves_what_was() {
    let lab = Lab::up("crash-again", &Topology::reference()).unwrap();
    let [a, b] = ["A", "B"].map(|name| lab.router(name));
    for router in [a, b] {
        wait_proven(router);
    }
    a.kill_netbond(Signal::SIGKILL).unwrap();
    let steps = trace(a);
    let streams = [
        traffic::Numbered::start(a, b, B, PACE).unwrap(),
        traffic::Numbered::start(b, a, A, PACE).unwrap(),
    ];
    let tried = steps.len();
    let crashes = steps.into_iter().filter(|step| crash(a, *step)).count();
    a.start_netbond().unwrap();
    a.wait_netbond(SOON).unwrap();
    let end = SystemTime::now();
    for stream in streams {
        let log = stream.stop_after(end).unwrap();
        assert_no_loss(&log);
        assert_eq!(log.repeated(), 0);
    }
    assert!(2 * crashes > tried, "{crashes} of {tried}");
}
