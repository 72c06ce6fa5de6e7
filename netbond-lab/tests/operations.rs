//! docs/operations.md, run as it stands: each command of it, in its order, on four machines with systemd,
//! WireGuard and BIRD.
//!
//! The machines are containers: their kernel is this one's, which needs WireGuard, GRE, bonding and fq.
//! `cargo xtask test operations` boots one that has them, in a VM with a Debian for the containers.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use netbond_lab::container::{Container, output};
use netbond_lab::document::{Action, Step, not_run, parse, shows};
use netbond_lab::wait_for;

const DOCUMENT: &str = include_str!("../../docs/operations.md");

/// How long what a block shows may take to come about: OSPF with the timers of the field.
const SOON: Duration = Duration::from_secs(90);

/// Between two looks, besides what [`wait_for`] rests: in a VM that counts instructions a look is what takes
/// long.
const REST: Duration = Duration::from_secs(1);

/// The machines, their addresses of the internet, and of a LAN behind them.
const MACHINES: [(&str, &str, Option<&str>); 4] = [
    ("A", "192.0.2.1/24", Some("10.71.0.1/24")),
    ("B", "192.0.2.2/24", Some("10.72.0.1/24")),
    ("M1", "192.0.2.11/24", None),
    ("M2", "192.0.2.12/24", None),
];

#[test]
fn every_block_says_where_it_runs() {
    let steps = parse(DOCUMENT).unwrap();
    let left = not_run(DOCUMENT, &steps);
    assert!(left.is_empty(), "no block runs {left:#?}");
    let known = |name: &String| MACHINES.iter().any(|(machine, ..)| machine == name);
    for Step { line, action } in &steps {
        match action {
            Action::Run { machines, .. } | Action::Write { machines, .. } => {
                assert!(machines.iter().all(known), "line {line}: {machines:?}");
            }
            Action::Happen(what) => {
                assert!(HAPPENINGS.contains(&what.as_str()), "line {line}: {what}");
            }
        }
    }
}

#[test]
#[ignore = "needs root, a Debian, a package and kernel modules: cargo xtask test operations"]
fn it_does_what_it_says() {
    let steps = parse(DOCUMENT).unwrap();
    let network = Network::build().unwrap();
    for step in &steps {
        let start = Instant::now();
        network
            .take(&step.action)
            .with_context(|| format!("docs/operations.md:{}", step.line))
            .unwrap();
        println!(
            "docs/operations.md:{} {:.1} s",
            step.line,
            start.elapsed().as_secs_f64()
        );
    }
}

/// What the document may say that happens.
const HAPPENINGS: [&str; 9] = [
    "a packet every 10 ms from A's LAN to B's",
    "none of them was lost",
    "M1 falls silent",
    "M1 is heard again",
    "M1's underlay takes 1400 bytes",
    "M1's underlay takes 1500 bytes",
    "BIRD stops on A",
    "in_order is in B's file only",
    "a newer package",
];

struct Network {
    machines: BTreeMap<&'static str, Container>,
    internet: Internet,
    // Removed after all that runs in it.
    _roots: tempfile::TempDir,
}

impl Network {
    fn build() -> Result<Self> {
        let debian = std::env::var_os("NETBOND_DEBIAN")
            .context("NETBOND_DEBIAN is not set: cargo xtask test operations")?;
        let debian = PathBuf::from(debian);
        let parent = debian.parent().context("the Debian has no parent")?;
        let roots = tempfile::tempdir_in(parent)?;
        let internet = Internet::new()?;
        // Side by side: booting is waiting, too.
        let booted: Vec<Result<Container>> = thread::scope(|scope| {
            let boots = MACHINES.map(|(name, ..)| {
                let (debian, root) = (&debian, roots.path().join(name));
                scope.spawn(move || {
                    copy(debian, &root)?;
                    Container::boot(&root, &name.to_lowercase())
                })
            });
            boots.into_iter().map(|boot| boot.join().unwrap()).collect()
        });
        let mut machines = BTreeMap::new();
        for ((name, address, lan), machine) in MACHINES.into_iter().zip(booted) {
            let machine = machine.with_context(|| format!("machine {name}"))?;
            internet.join(name, &machine)?;
            let mut commands = format!("address add {address} dev eth0\nlink set eth0 up\n");
            if let Some(lan) = lan {
                commands += &format!(
                    "link add lan0 type bridge\naddress add {lan} dev lan0\nlink set lan0 up\n"
                );
            }
            write(&machine, "/run/internet", &commands)?;
            machine.run(&["ip", "-batch", "/run/internet"])?;
            machines.insert(name, machine);
        }
        println!("the machines run");
        Ok(Self {
            machines,
            internet,
            _roots: roots,
        })
    }

    fn machine(&self, name: &str) -> &Container {
        &self.machines[name]
    }

    fn take(&self, action: &Action) -> Result<()> {
        match action {
            Action::Run {
                machines,
                script,
                printed,
            } => {
                let mut names = machines.iter();
                if let (Some(shown), Some(first)) = (printed, machines.first()) {
                    names.next();
                    wait_for("such output", SOON, || {
                        let printed = self.bash(first, script)?;
                        let seen = shows(shown, &printed).map(Some);
                        if seen.is_err() {
                            thread::sleep(REST);
                        }
                        seen
                    })?;
                }
                for name in names {
                    self.bash(name, script)
                        .with_context(|| format!("on {name}"))?;
                }
                Ok(())
            }
            Action::Write {
                machines,
                path,
                text,
            } => {
                for name in machines {
                    write(self.machine(name), path, &self.with_keys(text)?)?;
                }
                Ok(())
            }
            Action::Happen(what) => self.happen(what),
        }
    }

    /// Runs commands as a user who gives up at the first that fails.
    fn bash(&self, machine: &str, script: &str) -> Result<String> {
        let script = format!("cd /root; exec 2>&1; {script}");
        self.machine(machine)
            .run(&["timeout", "120", "bash", "-euo", "pipefail", "-c", &script])
    }

    /// Fills in what every network has its own of: `PUBLIC-KEY-OF-A`.
    fn with_keys(&self, text: &str) -> Result<String> {
        let mut text = text.to_owned();
        for (name, machine) in &self.machines {
            let wanted = format!("PUBLIC-KEY-OF-{name}\n");
            if text.contains(&wanted) {
                let key = machine.run(&["cat", "/etc/wireguard/public.key"])?;
                text = text.replace(&wanted, &key);
            }
        }
        Ok(text)
    }

    fn happen(&self, what: &str) -> Result<()> {
        match what {
            "a packet every 10 ms from A's LAN to B's" => {
                let script = "ping -i 0.01 -I 10.71.0.1 10.72.0.1 >/run/pings 2>&1 &
                    echo $! >/run/pings.pid";
                self.bash("A", script).map(drop)
            }
            "none of them was lost" => {
                // Its last lines, which it writes at its end.
                let script = "pid=$(cat /run/pings.pid); kill -INT $pid
                    while kill -0 $pid 2>/dev/null; do sleep 0.05; done
                    tail -n 3 /run/pings";
                let told = self.bash("A", script)?;
                ensure!(told.contains(" received, 0% packet loss"), "{told}");
                Ok(())
            }
            "M1 falls silent" => self.internet.ip(&["link", "set", "to-m1", "nomaster"]),
            "M1 is heard again" => self
                .internet
                .ip(&["link", "set", "to-m1", "master", "internet"]),
            "M1's underlay takes 1400 bytes" => {
                self.internet.ip(&["link", "set", "to-m1", "mtu", "1400"])
            }
            "M1's underlay takes 1500 bytes" => {
                self.internet.ip(&["link", "set", "to-m1", "mtu", "1500"])
            }
            "BIRD stops on A" => self.bash("A", "systemctl stop bird").map(drop),
            "in_order is in B's file only" => {
                let file = "/etc/netbond/netbond.toml";
                let script = format!("grep ^in_order {file}; sed -i /^in_order/d {file}");
                self.bash("A", &format!("{script}; netbond reload"))
                    .map(drop)
            }
            "a newer package" => {
                let script = "dpkg-deb --raw-extract netbond_*.deb new; rm netbond_*.deb
                    sed -i 's/^Version: .*/&+1/' new/DEBIAN/control
                    dpkg-deb -Znone --build new .";
                for machine in ["A", "B"] {
                    self.bash(machine, script)?;
                }
                Ok(())
            }
            _ => bail!("nobody knows how to let this happen: {what}"),
        }
    }
}

/// Where the machines' underlay meets: a bridge in a network namespace.
struct Internet;

/// Of this process: nothing else may have one of that name.
const NAMESPACE: &str = "netbond-internet";

impl Internet {
    fn new() -> Result<Self> {
        output(Command::new("ip").args(["netns", "add", NAMESPACE]))?;
        let internet = Self;
        internet.ip(&["link", "add", "internet", "type", "bridge"])?;
        // Else it becomes the least of its ports'.
        internet.ip(&["link", "set", "internet", "mtu", "1500", "up"])?;
        Ok(internet)
    }

    fn ip(&self, words: &[&str]) -> Result<()> {
        output(Command::new("ip").args(["-netns", NAMESPACE]).args(words)).map(drop)
    }

    /// Gives a machine its `eth0`.
    fn join(&self, name: &str, machine: &Container) -> Result<()> {
        let port = format!("to-{}", name.to_lowercase());
        let init = machine.init().to_string();
        self.ip(&[
            "link", "add", &port, "type", "veth", "peer", "eth0", "netns", &init,
        ])?;
        self.ip(&["link", "set", &port, "master", "internet", "up"])
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        let _ = output(Command::new("ip").args(["netns", "delete", NAMESPACE]));
    }
}

/// A root directory of its own for a machine. What dpkg alone changes, by new files, is shared.
fn copy(debian: &Path, root: &Path) -> Result<()> {
    fs::create_dir(root)?;
    for entry in fs::read_dir(debian)? {
        let entry = entry?;
        let mut cp = Command::new("cp");
        cp.args(["--archive", "--no-target-directory"]);
        if entry.file_name() == "usr" {
            cp.arg("--link");
        }
        output(cp.arg(entry.path()).arg(root.join(entry.file_name())))?;
    }
    Ok(())
}

/// Writes a file as an editor does: who owns it goes on owning it.
fn write(machine: &Container, path: &str, text: &str) -> Result<()> {
    let mut tee = machine
        .command(&["tee", path])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    tee.stdin
        .take()
        .context("tee has no input")?
        .write_all(text.as_bytes())?;
    let status = tee.wait()?;
    ensure!(status.success(), "cannot write {path}");
    Ok(())
}
