//! What tests of netbond ask of a lab: addresses, status, waiting.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod doctor;
pub(crate) mod ethernet;
pub(crate) mod lan;
pub(crate) mod terminal;

use std::fs::File;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netbond_lab::daemon::Event;
use netbond_lab::{Router, Signal, traffic, wait_for};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

/// Long enough for OSPF with the lab's timers on a busy machine.
pub(crate) const SOON: Duration = netbond_lab::PATIENCE;

/// Within this a dead path is noticed. The goal is 120 ms, and OSPF alone takes 40 s; a test machine stands still now
/// and then.
pub(crate) const LATEST: Duration = Duration::from_secs(2);

/// The bond's addresses in A and B.
pub(crate) const A: &str = "10.67.0.1";
pub(crate) const B: &str = "10.67.0.2";

/// Runs a closure on a thread of its own inside a router's network namespace.
pub(crate) fn inside<T: Send + 'static>(
    router: &Router,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let namespace = File::open(format!("/run/netns/{}", router.netns())).unwrap();
    std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

/// What `netbond status --json` says.
pub(crate) fn status(router: &Router) -> Value {
    serde_json::from_str(&router.run(&["netbond", "status", "--json"]).unwrap()).unwrap()
}

/// A path of the first bond.
pub(crate) fn path(router: &Router, name: &str) -> Value {
    let status = status(router);
    let paths = status["bonds"][0]["paths"].as_array().unwrap();
    paths
        .iter()
        .find(|path| path["name"] == name)
        .unwrap()
        .clone()
}

/// A counter of both paths of the first bond.
pub(crate) fn counters(router: &Router, counter: &str) -> [u64; 2] {
    ["via-m1", "via-m2"].map(|name| path(router, name)[counter].as_u64().unwrap())
}

/// No packet of a stream was lost; when those were sent that were, to be held beside the controllers' logs.
pub(crate) fn assert_no_loss(log: &traffic::PingLog) {
    let at = |time| jiff::Timestamp::try_from(time).unwrap().to_string();
    let lost: Vec<String> = log.lost_at().into_iter().map(at).collect();
    assert!(
        lost.is_empty(),
        "of {} were lost: {lost:#?}",
        log.counts().sent
    );
}

/// Packets that were not compared with their copies, in these routers: where a hypervisor takes a processor
/// away that compares a packet, the other one does not wait for it.
pub(crate) fn contended(routers: [&Router; 2]) -> u64 {
    let contended = routers.map(|router| counters(router, "rx_contended"));
    contended.iter().flatten().sum()
}

/// No packet of a stream was delivered again, but for those that were not compared, which are few.
pub(crate) fn assert_told_apart(log: &traffic::PingLog, contended: u64) {
    let (sent, repeated) = (log.counts().sent, log.repeated());
    assert!(
        repeated <= contended && contended < 20,
        "{repeated} of {sent} delivered twice, {contended} not compared"
    );
}

/// Ends long streams, of which every packet has to have come, once.
pub(crate) fn assert_exact(streams: impl IntoIterator<Item = traffic::Numbered>) {
    let end = SystemTime::now();
    for stream in streams {
        let log = stream.stop_after(end).unwrap();
        let counts = log.counts();
        assert!(counts.sent > 1000, "{counts:?}");
        assert_no_loss(&log);
        assert_eq!(log.repeated(), 0, "of {}", counts.sent);
    }
}

/// Twenty packets to an address, none of which may be lost.
pub(crate) fn ping(router: &Router, address: &str) {
    let counts = traffic::ping(router, address, 20, Duration::from_millis(10)).unwrap();
    assert_eq!(
        (counts.sent, counts.lost),
        (20, 0),
        "{} -> {address}",
        router.name()
    );
}

/// Leaves no packets in the bond but ours: without IPv6 the kernel sends none of its own.
pub(crate) fn silence(router: &Router) {
    router
        .run(&["sysctl", "-qw", "net.ipv6.conf.nb0.disable_ipv6=1"])
        .unwrap();
}

/// The first bond's twin, nb1, with a key and addresses of its own.
pub(crate) fn second_bond(config: &str) -> String {
    config[config.find("[[bond]]").unwrap()..]
        .replace("\"nb0\"", "\"nb1\"\nkey = 4294967295")
        .replace("10.67.0.", "10.68.0.")
        .replace("fd67::", "fd68::")
        .replace("\"via-", "\"keyed-")
}

/// Writes a configuration and waits until it is taken over.
pub(crate) fn reconfigure(router: &Router, config: &str) {
    reload(router, config, "INFO reloaded");
}

/// Writes a configuration and waits for a word of the log on it. Where a lab's paths are received in drivers, those
/// of bonds whose packets are copied are not: to insist is refused.
pub(crate) fn reload(router: &Router, config: &str, word: &str) {
    let copied = config.contains("mode = \"duplicate\"");
    let underlay = std::env::var("NETBOND_LAB_UNDERLAY").unwrap_or_default();
    let insists = copied && !underlay.is_empty();
    let config = if insists {
        &config.replace("xdp = \"native\"", "xdp = \"auto\"")
    } else {
        config
    };
    let said = || router.netbond_log().matches(word).count();
    let before = said();
    router.write_config(config).unwrap();
    nix::sys::signal::kill(router.netbond_pid().unwrap(), Signal::SIGHUP).unwrap();
    wait_for(word, SOON, || Ok((said() > before).then_some(()))).unwrap();
}

/// What the journal tells of a path.
pub(crate) fn events(router: &Router, path: &str) -> Vec<Event> {
    let mut events = router.netbond_events().unwrap();
    events.retain(|event| event.path.as_deref() == Some(path));
    events
}

/// When a path's state last changed.
pub(crate) fn changed(path: &Value) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs_f64(path["changed"].as_f64().unwrap())
}

/// Waits for a path to come into a state.
pub(crate) fn wait_state(router: &Router, name: &str, state: &str) -> Value {
    wait_path(router, name, "state", state)
}

/// Waits for a path to be as it is for a reason.
pub(crate) fn wait_reason(router: &Router, name: &str, reason: &str) -> Value {
    wait_path(router, name, "reason", reason)
}

/// Waits until a probe of each path has come back: from then on, and not before, a path whose probes
/// stop is dead.
pub(crate) fn wait_proven(router: &Router) {
    wait_for(&format!("proofs in {}", router.name()), SOON, || {
        let status = status(router);
        let paths = status["bonds"][0]["paths"].as_array().unwrap();
        Ok(paths
            .iter()
            .all(|path| path["proof"]["fresh"] == true)
            .then_some(()))
    })
    .unwrap();
}

/// Waits until a path is out of use by its state: on a busy machine one is for a moment because a probe is late.
pub(crate) fn wait_unused(router: &Router, name: &str) -> Value {
    let what = format!("{name} out of use in {}", router.name());
    wait_for(&what, SOON, || {
        let path = path(router, name);
        anyhow::ensure!(
            path["in_use"] == false && path["state"] != "up",
            "it is {path}"
        );
        Ok(Some(path))
    })
    .unwrap()
}

fn wait_path(router: &Router, name: &str, key: &str, value: &str) -> Value {
    let what = format!("{name}: {key} {value} in {}", router.name());
    wait_for(&what, SOON, || {
        let path = path(router, name);
        anyhow::ensure!(path[key] == value, "it is {path}");
        Ok(Some(path))
    })
    .unwrap()
}
