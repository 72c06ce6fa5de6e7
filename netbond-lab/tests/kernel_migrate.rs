//! From the known recipe to netbond, one end at a time: kernel `gretap` and bonding in A and B, then
//! netbond in A alone, with the file that `netbond init` wrote.
//!
//! Needs a kernel with `ip_gre` and `bonding`: for `cargo xtask test vm`, which boots one.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::time::Duration;

use common::{A, B, SOON, status};
use netbond_lab::daemon::CONFIG;
use netbond_lab::tunnels::{self, BOND};
use netbond_lab::{Lab, Options, Router, Signal, Topology, traffic, wait_for};
use serde_json::Value;

/// The reference topology with OSPF and without netbond.
fn plain(name: &str) -> Lab {
    let options = Options {
        netbond: false,
        ..Options::default()
    };
    Lab::up_with(name, &Topology::reference(), options).unwrap()
}

/// The recipe in one router; `options` are further ones of each tunnel.
fn recipe(router: &Router, address: &str, options: &str) {
    // What WireGuard's 1420 leaves.
    let mtu = 1420 - 38 - if options.contains("key") { 4 } else { 0 };
    let paths = router.paths().unwrap();
    let commands = tunnels::tunnels(paths, "gretap", mtu, options)
        + &tunnels::bonding(paths, mtu, "mode balance-rr miimon 100")
        + &format!("addr add {address}/24 dev {BOND}\n");
    router.ip(&commands).unwrap();
}

/// What `netbond init` writes in a router, and what it says.
fn init(router: &Router, arguments: &[&str]) -> (bool, String, String) {
    let output = router
        .command("netbond")
        .arg("init")
        .args(arguments)
        .output()
        .unwrap();
    (
        output.status.success(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn lossless(router: &Router, address: &str) {
    wait_for(&format!("answers from {address}"), SOON, || {
        let counts = traffic::ping(router, address, 3, Duration::from_millis(50))?;
        Ok((counts.lost == 0).then_some(()))
    })
    .unwrap();
    let counts = traffic::ping(router, address, 100, Duration::from_millis(10)).unwrap();
    assert_eq!(counts.lost, 0, "{} -> {address}", router.name());
}

/// The commands in the comments of a generated file, from number `from` to before number `to`.
fn commands(file: &str, from: u32, to: u32) -> Vec<String> {
    file.lines()
        .skip_while(|line| !line.starts_with(&format!("#  {from}. ")))
        .take_while(|line| !line.starts_with(&format!("#  {to}. ")))
        .map(|line| line[5..].trim().to_owned())
        .collect()
}

/// Runs those of the commands that are of ip(8).
fn run_ip(router: &Router, commands: &[String]) {
    let arguments = commands.iter().filter_map(|line| line.strip_prefix("ip "));
    let lines: Vec<&str> = arguments.collect();
    router.ip(&lines.join("\n")).unwrap();
}

/// Takes the bond of a router down and starts netbond there, as the file says.
fn switch(router: &Router, file: &str) {
    router.write_config(file).unwrap();
    let down = commands(file, 2, 3);
    assert!(down.iter().all(|command| command.starts_with("ip ")));
    run_ip(router, &down);
    router.start_netbond().unwrap();
    router.wait_netbond(SOON).unwrap();
    run_ip(router, &commands(file, 4, 5));
    // The last one tells the other end the new MAC address.
    for command in commands(file, 5, 6) {
        if command.starts_with("ping ") {
            router.run(&["bash", "-c", &command]).unwrap();
        }
    }
}

fn sent(router: &Router) -> Vec<u64> {
    let status = status(router);
    let paths = status["bonds"][0]["paths"].as_array().unwrap();
    let count = |path: &Value| path["tx_packets"].as_u64().unwrap();
    paths.iter().map(count).collect()
}

#[test]
#[ignore = "needs root, ip_gre and bonding: cargo xtask test vm"]
fn one_end_of_the_known_recipe_is_taken_over() {
    let lab = plain("migrate");
    let (a, b) = (lab.router("A"), lab.router("B"));
    recipe(a, A, "key 7");
    recipe(b, B, "key 7");
    a.ip("route add 10.70.0.0/24 via 10.67.0.2 dev bond0 proto static")
        .unwrap();
    b.ip("address add 10.70.0.1/32 dev lo").unwrap();
    lossless(a, B);

    let (good, file, notes) = init(a, &["--from-bond", "bond0"]);
    assert!(good, "{notes}");
    for wanted in [
        "name = \"nb0\"",
        "address = [\"10.67.0.1/24\"]",
        "encap = \"gretap\"",
        "key = 7",
        "ttl = \"inherit\"",
        "probe_interval = 0",
        "local = \"10.65.0.2\"\nremote = \"10.65.0.6\"\ndevice = \"wg-a-m1\"",
        "local = \"10.65.0.14\"\nremote = \"10.65.0.10\"\ndevice = \"wg-a-m2\"",
        "ip route replace 10.70.0.0/24 via 10.67.0.2 dev nb0 proto static",
    ] {
        assert!(file.contains(wanted), "{wanted} is missing:\n{file}");
    }
    assert!(notes.contains("balance-rr over path1 and path2"), "{notes}");
    assert!(notes.contains("miimon 100 ms"), "{notes}");

    // The other end's, as this end sees it, against what that end says itself.
    let (good, guessed, notes) = init(a, &["--from-bond", "bond0", "--peer"]);
    assert!(good, "{notes}");
    let (good, known, notes) = init(b, &["--from-bond", "bond0"]);
    assert!(good, "{notes}");
    for key in ["address = ", "key = ", "local = ", "remote = ", "encap = "] {
        let lines = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| line.starts_with(key));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(lines(&guessed), lines(&known), "{guessed}");
    }

    switch(a, &file);
    // B is still the recipe.
    lossless(a, B);
    lossless(a, "10.70.0.1");
    lossless(b, A);
    let before = sent(a);
    lossless(a, B);
    for (before, after) in before.iter().zip(sent(a)) {
        assert!(after >= before + 40, "both paths carry packets");
    }
    // Packets of full size, both ways.
    let mtu = router_mtu(a, "nb0").min(router_mtu(b, "bond0"));
    let size = (mtu - 28).to_string();
    for (router, address) in [(a, B), (b, A)] {
        router
            .run(&["ping", "-c", "3", "-M", "do", "-s", &size, address])
            .unwrap();
    }
}

fn router_mtu(router: &Router, device: &str) -> u32 {
    let path = format!("/sys/class/net/{device}/mtu");
    router.run(&["cat", &path]).unwrap().trim().parse().unwrap()
}

/// The end of the way: the other end as well, and plain GRE with probes.
#[test]
#[ignore = "needs root, ip_gre and bonding: cargo xtask test vm"]
fn both_ends_are_taken_over_one_after_the_other() {
    let lab = plain("migrate2");
    let (a, b) = (lab.router("A"), lab.router("B"));
    recipe(a, A, "");
    recipe(b, B, "");
    lossless(a, B);
    for router in [a, b] {
        let (good, file, notes) = init(router, &["--from-bond", "bond0"]);
        assert!(good, "{notes}");
        switch(router, &file);
        lossless(a, B);
        lossless(b, A);
    }
    for router in [a, b] {
        let file = std::fs::read_to_string(router.host_path(CONFIG)).unwrap();
        let file = file
            .replace("encap = \"gretap\"", "encap = \"gre\"")
            .replace("probe_interval = 0\n", "");
        router.write_config(&file).unwrap();
        router.kill_netbond(Signal::SIGTERM).unwrap();
        router.run(&["netbond", "detach"]).unwrap();
        router.start_netbond().unwrap();
    }
    for router in [a, b] {
        router.wait_netbond(SOON).unwrap();
    }
    lossless(a, B);
    assert!(router_mtu(a, "nb0") > router_mtu(a, "bond0"));
}

#[test]
#[ignore = "needs root, ip_gre and bonding: cargo xtask test vm"]
fn plain_tunnels_with_routes_over_them_are_taken_over() {
    let lab = plain("migrate3");
    let (a, b) = (lab.router("A"), lab.router("B"));
    for (router, host) in [(a, 1), (b, 2)] {
        let paths = router.paths().unwrap();
        let mut commands = tunnels::tunnels(paths, "gre", 1420 - 24, "ttl 64");
        for (i, device) in tunnels::devices(paths).enumerate() {
            commands += &format!("address add 10.66.{i}.{host}/30 dev {device}\n");
        }
        router.ip(&(commands + &tunnels::up(paths))).unwrap();
    }
    b.ip("address add 10.70.0.1/32 dev lo").unwrap();
    a.ip("route add 10.70.0.0/24 nexthop via 10.66.0.2 dev path1 nexthop via 10.66.1.2 dev path2")
        .unwrap();
    lossless(a, "10.70.0.1");
    let (good, file, notes) = init(a, &["--from-bond", "path1,path2"]);
    assert!(good, "{notes}");
    for wanted in [
        "address = [\"10.66.0.1/30\", \"10.66.1.1/30\"]",
        "encap = \"gre\"",
        "ttl = 64",
        "ip route replace 10.70.0.0/24 dev nb0",
    ] {
        assert!(file.contains(wanted), "{wanted} is missing:\n{file}");
    }
    switch(a, &file);
    for address in ["10.66.0.2", "10.66.1.2", "10.70.0.1"] {
        lossless(a, address);
    }
}

/// All that is in the way is told at once, and nothing is written.
#[test]
#[ignore = "needs root, ip_gre and bonding: cargo xtask test vm"]
fn what_the_other_end_would_drop_is_refused() {
    let lab = plain("migrate4");
    let a = lab.router("A");
    recipe(a, A, "csum seq");
    a.ip("link add w0 type veth peer name w1\nlink set w0 master bond0")
        .unwrap();
    let (good, file, problems) = init(a, &["--from-bond", "bond0", "-o", "/run/netbond/new"]);
    assert!(!good && file.is_empty());
    for wanted in [
        "path1 has GRE checksums",
        "path2 has GRE checksums",
        "path1 sends sequence numbers",
        "w0 is no GRE tunnel (of kind veth)",
    ] {
        assert!(problems.contains(wanted), "{wanted} is missing: {problems}");
    }
    assert!(!a.host_path("/run/netbond/new").exists());
}
