//! The lab itself: it comes up, fails as told, and leaves nothing behind.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use netbond_lab::{Lab, Life, Options, Topology, WireGuard, traffic, wait_for};

/// Long enough for OSPF with the lab's timers on a busy machine.
const SOON: Duration = netbond_lab::PATIENCE;

/// What the kernel puts into every network namespace once its tunnels and bonding are in use anywhere.
const OF_THE_KERNEL: [&str; 4] = ["bonding_masters", "erspan0", "gre0", "gretap0"];

/// OSPF only: netbond has tests of its own.
fn up(name: &str) -> Lab {
    up_topology(name, &Topology::reference())
}

fn up_topology(name: &str, topology: &Topology) -> Lab {
    let options = Options {
        netbond: false,
        ..Options::default()
    };
    Lab::up_with(name, topology, options).unwrap()
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_netbond-lab"))
}

fn ping_from(lab: &Lab, router: &str, source: &str, target: &str) -> anyhow::Result<String> {
    lab.router(router).run(&[
        "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-I", source, target,
    ])
}

/// Everything on this machine that mentions the lab: namespaces, mounts, processes, files.
fn traces(name: &str) -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    let mark = netbond_lab::netns_name(name, "");
    for entry in fs::read_dir("/run/netns").into_iter().flatten() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        if file.starts_with(&mark) {
            traces.insert(format!("namespace {file}"));
        }
    }
    let state = format!("/run/netbond-lab/{name}");
    for line in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
        if line.contains(&mark) || line.contains(&state) {
            traces.insert(format!("mount {line}"));
        }
    }
    for entry in fs::read_dir("/proc").unwrap() {
        let Ok(command) = fs::read_to_string(entry.unwrap().path().join("cmdline")) else {
            continue;
        };
        if command.contains(&mark) || command.contains(&format!("{state}/")) {
            traces.insert(format!("process {}", command.replace('\0', " ")));
        }
    }
    for path in [state, format!("/run/netbond-lab/.{name}.lock")] {
        if Path::new(&path).exists() {
            traces.insert(format!("file {path}"));
        }
    }
    traces
}

/// Devices of the namespace the test runs in, and how much is mounted in it.
fn host() -> (BTreeSet<String>, usize) {
    let devices = fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    // Without the names of other tests' namespaces, which come and go, and their common directory.
    let mounts = fs::read_to_string("/proc/self/mounts")
        .unwrap()
        .lines()
        .filter(|line| !line.contains("/run/netns"))
        .count();
    (devices, mounts)
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_lab_comes_up_and_a_reaches_b_over_each_path() {
    let lab = up("t-up");
    for (router, source, target) in [
        ("A", "10.65.0.2", "10.65.0.6"),
        ("A", "10.65.0.14", "10.65.0.10"),
        ("B", "10.65.0.6", "10.65.0.2"),
        ("A", "10.65.2.2", "10.65.2.1"),
    ] {
        ping_from(&lab, router, source, target).unwrap();
    }
    // Each path by its own middle router.
    let a = lab.router("A");
    a.wait_route("10.65.0.6", Some("wg-a-m1"), SOON).unwrap();
    a.wait_route("10.65.0.10", Some("wg-a-m2"), SOON).unwrap();
    // Programs find what is theirs at default paths, and only that.
    assert!(a.birdc("show ospf neighbors").unwrap().contains("Full"));
    assert_eq!(
        a.run(&["wg", "show", "interfaces"])
            .unwrap()
            .split_whitespace()
            .count(),
        2
    );
    let devices = a.run(&["ls", "/sys/class/net"]).unwrap();
    let own: Vec<&str> = devices
        .lines()
        .filter(|name| !OF_THE_KERNEL.contains(name))
        .collect();
    assert_eq!(own, ["lo", "u-a-m1", "u-a-m2", "wg-a-m1", "wg-a-m2"]);
    let pins = fs::read_dir(a.host_path("/sys/fs/bpf")).unwrap();
    assert!(
        pins.count() <= 2,
        "a fresh bpffs holds at most the kernel's own two files"
    );
    let config = a.run(&["cat", "/run/netbond/netbond.toml"]).unwrap();
    assert!(config.contains("remote = \"10.65.0.6\""), "{config}");
    assert_eq!(
        a.run(&["cat", "/proc/sys/net/ipv4/conf/wg-a-m1/rp_filter"])
            .unwrap(),
        "0\n"
    );
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn two_labs_side_by_side_do_not_meet() {
    let one = up("t-side-1");
    let other = up("t-side-2");
    one.fail_router("M1").unwrap();
    assert!(ping_from(&one, "A", "10.65.0.2", "10.65.0.1").is_err());
    ping_from(&other, "A", "10.65.0.2", "10.65.0.1").unwrap();
    drop(one);
    ping_from(&other, "A", "10.65.0.2", "10.65.0.6").unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_name_in_use_is_refused() {
    let _lab = up("t-name");
    let options = Options {
        bird: false,
        netbond: false,
        ..Options::default()
    };
    let error = Lab::up_with("t-name", &Topology::reference(), options).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error:#}");
    assert!(netbond_lab::down("t-name").is_err());
    ping_from(&_lab, "A", "10.65.0.2", "10.65.0.6").unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn three_paths_and_bare_links_are_possible() {
    let lab = up_topology("t-three", &Topology::parallel(3));
    ping_from(&lab, "A", "10.65.0.18", "10.65.0.22").unwrap();
    drop(lab);

    let options = Options {
        bird: false,
        netbond: false,
        ..Options::default()
    };
    let lab = Lab::up_with("t-three", &Topology::parallel(1), options).unwrap();
    ping_from(&lab, "A", "10.65.0.2", "10.65.0.1").unwrap();
    assert!(lab.router("A").birdc("show status").is_err());
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_silent_black_hole_moves_the_route_and_healing_brings_it_back() {
    let lab = up("t-hole");
    let a = lab.router("A");
    lab.blackhole("A", "M1").unwrap();
    lab.blackhole("M1", "A").unwrap();
    a.wait_route("10.65.0.6", Some("wg-a-m2"), SOON).unwrap();
    let link = a.run(&["ip", "link", "show", "wg-a-m1"]).unwrap();
    assert!(link.contains("UP,LOWER_UP"), "no carrier change: {link}");
    lab.heal("A", "M1").unwrap();
    lab.heal("M1", "A").unwrap();
    a.wait_route("10.65.0.6", Some("wg-a-m1"), SOON).unwrap();
    // Healing what is whole is no error.
    lab.heal("A", "M1").unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_black_hole_has_one_direction() {
    let lab = up("t-oneway");
    let received = |router: &str, device: &str| -> u64 {
        let path = format!("/sys/class/net/{device}/statistics/rx_packets");
        lab.router(router)
            .run(&["cat", &path])
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    lab.blackhole("A", "M1").unwrap();
    let (at_a, at_m1) = (received("A", "wg-a-m1"), received("M1", "wg-m1-a"));
    let _ = ping_from(&lab, "A", "10.65.0.2", "10.65.0.1");
    let _ = ping_from(&lab, "M1", "10.65.0.1", "10.65.0.2");
    assert_eq!(received("M1", "wg-m1-a"), at_m1, "A's packets are lost");
    assert!(received("A", "wg-a-m1") > at_a, "M1's packets arrive");
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_device_can_be_deleted_and_made_again() {
    let lab = up("t-device");
    let a = lab.router("A");
    a.delete_device("wg-a-m1").unwrap();
    assert!(a.run(&["ip", "link", "show", "wg-a-m1"]).is_err());
    assert_eq!(
        a.run(&["wg", "show", "interfaces"]).unwrap().trim(),
        "wg-a-m2"
    );
    assert!(a.delete_device("wg-a-m9").is_err());
    a.wait_route("10.65.0.6", Some("wg-a-m2"), SOON).unwrap();
    a.create_device("wg-a-m1").unwrap();
    a.wait_route("10.65.0.6", Some("wg-a-m1"), SOON).unwrap();
    a.wait_handshake("wg-a-m1", SOON).unwrap();
    ping_from(&lab, "A", "10.65.0.2", "10.65.0.6").unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_frozen_router_is_silent_until_it_thaws() {
    let lab = up("t-freeze");
    let a = lab.router("A");
    lab.router("M1").freeze().unwrap();
    assert!(ping_from(&lab, "A", "10.65.0.2", "10.65.0.1").is_err());
    a.wait_route("10.65.0.6", Some("wg-a-m2"), SOON).unwrap();
    lab.router("M1").thaw().unwrap();
    a.wait_route("10.65.0.6", Some("wg-a-m1"), SOON).unwrap();

    lab.delete_devices("M1").unwrap();
    a.wait_route("10.65.0.6", Some("wg-a-m2"), SOON).unwrap();
    lab.restore_devices("M1").unwrap();
    a.wait_route("10.65.0.6", Some("wg-a-m1"), SOON).unwrap();

    // A frozen router can be taken down, too.
    lab.router("M2").freeze().unwrap();
    lab.down().unwrap();
    assert_eq!(traces("t-freeze"), BTreeSet::new());
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn bird_can_be_stopped_killed_and_started() {
    let lab = up("t-bird");
    let (a, m1) = (lab.router("A"), lab.router("M1"));
    m1.bird_stop().unwrap();
    a.wait_route("10.65.0.6", Some("wg-a-m2"), SOON).unwrap();
    m1.bird_start().unwrap();
    a.wait_route("10.65.0.6", Some("wg-a-m1"), SOON).unwrap();
    a.bird_kill().unwrap();
    a.wait_route("10.65.0.6", Some("wg-a-m1"), SOON).unwrap();
    a.bird_start().unwrap();
    lab.wait_converged(SOON).unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn traffic_is_measured() {
    let lab = up("t-traffic");
    let (a, m1) = (lab.router("A"), lab.router("M1"));
    let counts = traffic::ping(a, "10.65.0.1", 20, Duration::from_millis(10)).unwrap();
    assert_eq!((counts.sent, counts.lost), (20, 0));
    let tcp = traffic::tcp(a, m1, "10.65.0.1", Duration::from_secs(1)).unwrap();
    assert!(tcp.mbit_per_s > 1.0, "{tcp:?}");
    println!(
        "one TCP stream over one WireGuard link: {:.0} Mbit/s",
        tcp.mbit_per_s
    );

    let ping = traffic::Ping::start(a, "10.65.0.1", Duration::from_millis(10)).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let failed = std::time::SystemTime::now();
    lab.blackhole("A", "M1").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    lab.heal("A", "M1").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let log = ping.stop().unwrap();
    let lost = log.counts_since(failed).lost;
    assert!((45..=80).contains(&lost), "{lost} of about 50 lost");
    let recovery = log.recovery_after(failed).unwrap();
    assert!((400..=1000).contains(&recovery.as_millis()), "{recovery:?}");
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn nothing_stays_behind() {
    let before = host();
    let lab = up("t-clean");
    assert_ne!(traces("t-clean"), BTreeSet::new());
    assert_eq!(host(), before, "a running lab shows on the host");
    // A process that the lab knows nothing of.
    let mut stray = lab
        .router("B")
        .command("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    lab.down().unwrap();
    assert!(!stray.wait().unwrap().success());
    assert_eq!(traces("t-clean"), BTreeSet::new());
    assert_eq!(host(), before);
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn nothing_stays_behind_after_a_panic() {
    let before = host();
    let panicked = std::panic::catch_unwind(|| {
        let _lab = up("t-panic");
        panic!("on purpose");
    });
    assert!(panicked.is_err());
    assert_eq!(traces("t-panic"), BTreeSet::new());
    assert_eq!(host(), before);
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn nothing_stays_behind_if_the_lab_cannot_be_built() {
    let mut topology = Topology::reference();
    // Less than the kernel lets a veth device have; the routers already run by then.
    topology.links[0].underlay_mtu = 20;
    let options = Options {
        netbond: false,
        ..Options::default()
    };
    assert!(Lab::up_with("t-broken", &topology, options).is_err());
    assert_eq!(traces("t-broken"), BTreeSet::new());
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn the_lab_of_a_killed_owner_is_removed_later() {
    // It waits for OSPF long enough to be killed meanwhile: only then would it let go of the lab.
    let mut owner = program()
        .args(["up", "--name", "t-killed", "--no-netbond", "--field-timers"])
        .spawn()
        .unwrap();
    wait_for("lab of the owner", SOON, || {
        Ok(Lab::attach("t-killed")?
            .router("A")
            .birdc("show status")
            .ok())
    })
    .unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    // The routers notice by themselves; their names and files remain.
    wait_for("end of the lab's processes", SOON, || {
        Ok((!traces("t-killed")
            .iter()
            .any(|trace| trace.starts_with("process")))
        .then_some(()))
    })
    .unwrap();
    let life = |name: &str| {
        let labs = netbond_lab::list().unwrap();
        labs.into_iter()
            .find(|lab| lab.name == name)
            .map(|lab| lab.life)
    };
    assert_eq!(life("t-killed"), Some(Life::Dead));
    // The next of that name removes it; a plain `down` would, too.
    let options = Options {
        bird: false,
        netbond: false,
        ..Options::default()
    };
    let lab = Lab::up_with("t-killed", &Topology::reference(), options).unwrap();
    assert_eq!(life("t-killed"), Some(Life::Owned));
    drop(lab);
    assert_eq!(life("t-killed"), None);
    assert_eq!(traces("t-killed"), BTreeSet::new());
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn the_program_builds_enters_and_removes_a_lab() {
    let name = ["--name", "t-cli"];
    let start = Instant::now();
    let status = program()
        .arg("up")
        .args(name)
        .arg("--no-netbond")
        .status()
        .unwrap();
    assert!(status.success());
    println!("up after {:.1} s", start.elapsed().as_secs_f64());

    let output = program()
        .arg("exec")
        .args(name)
        .args(["A", "--", "sh", "-c", "exit 42"])
        .output();
    assert_eq!(output.unwrap().status.code(), Some(42));
    let output = program()
        .arg("exec")
        .args(name)
        .args(["M7", "--", "true"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("A, B, M1, M2"), "{text}");

    let output = program().arg("list").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.lines()
            .any(|line| line.contains("t-cli") && line.contains(" up ")),
        "{text}"
    );

    // Other processes use it, too, and it outlives them.
    let lab = Lab::attach("t-cli").unwrap();
    ping_from(&lab, "A", "10.65.0.2", "10.65.0.6").unwrap();
    lab.router("M1").bird_stop().unwrap();
    drop(lab);
    let status = program()
        .arg("exec")
        .args(name)
        .args(["A", "--", "true"])
        .status()
        .unwrap();
    assert!(status.success());

    let output = program()
        .arg("up")
        .args(name)
        .arg("--no-netbond")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("down --name t-cli"),
        "{text}"
    );

    assert!(program().arg("down").args(name).status().unwrap().success());
    assert_eq!(traces("t-cli"), BTreeSet::new());
    assert!(!program().arg("down").args(name).status().unwrap().success());
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn an_interrupted_command_takes_its_lab_down() {
    // Timers of the field: OSPF takes long enough to be interrupted.
    let mut child = program()
        .args([
            "up",
            "--name",
            "t-interrupt",
            "--no-netbond",
            "--field-timers",
        ])
        .spawn()
        .unwrap();
    wait_for("half-built lab", SOON, || {
        Ok(Lab::attach("t-interrupt")?
            .router("M2")
            .birdc("show status")
            .ok())
    })
    .unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, netbond_lab::Signal::SIGINT).unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(traces("t-interrupt"), BTreeSet::new());
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn the_embedded_wireguard_can_be_asked_for() {
    let options = Options {
        wireguard: Some(WireGuard::Embedded),
        bird: false,
        netbond: false,
    };
    let lab = Lab::up_with("t-embedded", &Topology::reference(), options).unwrap();
    assert_eq!(lab.wireguard(), WireGuard::Embedded);
    lab.router("A").wait_handshake("wg-a-m2", SOON).unwrap();
}
