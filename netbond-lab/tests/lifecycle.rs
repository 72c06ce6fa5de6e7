//! The controller's life costs no packet: stopped, killed, started with other programs, reloaded, again and
//! again under exact streams in both directions. `NETBOND_TIMES` says how often each.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::process::Stdio;
use std::time::Duration;

use common::{A, B, SOON, assert_exact, status, wait_proven};
use netbond_lab::{Lab, Router, Signal, Topology, traffic, wait_for};
use nix::sys::signal::kill;

const PACE: Duration = Duration::from_millis(2);

/// Of programs: these modes have different ones.
const MODES: [&str; 2] = ["round-robin", "flowlet"];

/// What ends a controller's life.
#[derive(Clone, Copy, Debug)]
enum End {
    Stopped,
    Killed,
}

fn times() -> usize {
    let times = std::env::var("NETBOND_TIMES").ok();
    times.map_or(3, |times| times.parse().unwrap())
}

/// Writes a configuration with this mode, which may not be in use yet.
fn write_mode(router: &Router, mode: &str) {
    let plain = router.default_config().unwrap();
    let text = plain.replacen("round-robin", mode, 1);
    router.write_config(&text).unwrap();
}

fn lives(router: &Router, end: End, mode: &str) {
    write_mode(router, mode);
    router
        .kill_netbond(match end {
            End::Stopped => Signal::SIGTERM,
            End::Killed => Signal::SIGKILL,
        })
        .unwrap();
    router.start_netbond().unwrap();
    router.wait_netbond(SOON).unwrap();
    assert_eq!(status(router)["bonds"][0]["mode"], mode);
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn no_life_of_a_controller_costs_a_packet() {
    let lab = Lab::up("lifecycle", &Topology::reference()).unwrap();
    let routers @ [a, b] = ["A", "B"].map(|name| lab.router(name));
    for router in routers {
        wait_proven(router);
    }
    let streams = [
        traffic::Numbered::start(a, b, B, PACE).unwrap(),
        traffic::Numbered::start(b, a, A, PACE).unwrap(),
    ];
    for time in 0..times() {
        let router = routers[time % 2];
        for end in [End::Stopped, End::Killed] {
            // The same programs, then others.
            lives(router, end, MODES[0]);
            lives(router, end, MODES[1]);
            lives(router, end, MODES[0]);
        }
        for mode in [MODES[1], MODES[0]] {
            write_mode(router, mode);
            router.run(&["netbond", "reload"]).unwrap();
            assert_eq!(status(router)["bonds"][0]["mode"], mode);
        }
    }
    assert_exact(streams);
}

/// Whoever asks for a reload is told where the controller ends before it answers.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_reload_ends_with_its_controller() {
    let lab = Lab::up("reload-ends", &Topology::reference()).unwrap();
    let a = lab.router("A");
    let controller = a.netbond_pid().unwrap();
    kill(controller, Signal::SIGSTOP).unwrap();
    let asks = a
        .command("netbond")
        .arg("reload")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // SIGHUP is the first bit of those that wait for the process.
    wait_for("the reload's signal", SOON, || {
        let process = std::fs::read_to_string(format!("/proc/{controller}/status"))?;
        let pending = process
            .lines()
            .find_map(|line| line.strip_prefix("ShdPnd:"));
        let pending = u64::from_str_radix(pending.unwrap().trim(), 16)?;
        Ok((pending & 1 != 0).then_some(()))
    })
    .unwrap();
    a.kill_netbond(Signal::SIGKILL).unwrap();
    let output = asks.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && told.contains("the controller has ended meanwhile"),
        "{told}"
    );
}
