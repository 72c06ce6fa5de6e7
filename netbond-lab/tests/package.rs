//! What `cargo xtask package` makes, on a fresh Debian 12 with systemd, and elsewhere.
//!
//! The machine is a container of its own: root directory, processes, network. Its kernel is this one's.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netbond_lab::container::{Container, output};
use netbond_lab::wait_for;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(90);

const CONFIG: &str = r#"
route_protocols = ["kernel"]

[[bond]]
name = "nb0"
address = ["10.67.0.1/24"]
probe_interval = 0

[[bond.path]]
name = "one"
local = "10.65.0.1"
remote = "10.65.0.2"
device = "p1"
"#;

/// What the command that runs these tests says of something that it built.
fn built(what: &str) -> PathBuf {
    let name = format!("NETBOND_{what}");
    let value = std::env::var_os(&name);
    PathBuf::from(value.unwrap_or_else(|| panic!("{name} is not set: cargo xtask test package")))
}

/// A running Debian with the package installed.
struct Machine {
    container: Container,
    root: tempfile::TempDir,
}

impl Machine {
    /// Makes a fresh one with a package installed, and boots it.
    fn boot(deb: &Path) -> Result<Self> {
        let root = tempfile::tempdir_in(deb.parent().context("the package is in no directory")?)?;
        output(
            Command::new("mmdebstrap")
                .args(["--quiet", "--variant=minbase"])
                .arg("--include=systemd-sysv,dbus,iproute2")
                .arg("bookworm")
                .arg(root.path()),
        )?;
        fs::copy(deb, root.path().join("root/netbond.deb"))?;
        output(Command::new("chroot").arg(root.path()).args([
            "dpkg",
            "--install",
            "/root/netbond.deb",
        ]))?;
        let container = Container::boot(root.path(), "router")?;
        Ok(Self { container, root })
    }

    fn run<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<String> {
        self.container.run(words)
    }

    /// A property of the service.
    fn service(&self, property: &str) -> String {
        let words = [
            "systemctl",
            "show",
            "--value",
            "--property",
            property,
            "netbond",
        ];
        self.run(&words).unwrap().trim().to_owned()
    }

    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.run(&["netbond", "status", "--json"])?,
        )?)
    }

    fn configure(&self, text: &str) {
        fs::write(self.root.path().join("etc/netbond/netbond.toml"), text).unwrap();
    }

    /// Waits until the service manager started the controller once more, after it ended so often.
    fn wait_restarted(&self, times: &str) {
        wait_for("another start", SOON, || {
            let seen = (self.service("NRestarts"), self.service("ActiveState"));
            ensure!(seen == (times.to_owned(), "active".to_owned()), "{seen:?}");
            Ok(Some(()))
        })
        .unwrap();
    }
}

#[test]
#[ignore = "needs root and a package: cargo xtask test package"]
fn the_service_lives_as_its_manager_expects() {
    let machine = Machine::boot(&built("DEB")).unwrap();
    machine
        .run(&["systemd-analyze", "verify", "--man=no", "netbond.service"])
        .unwrap();

    // Without a configuration it is no failure.
    assert_eq!(machine.service("UnitFileState"), "enabled");
    assert_eq!(machine.service("ActiveState"), "inactive");
    assert_eq!(machine.service("ConditionResult"), "no");

    for words in [
        "ip link add p1 type veth peer name p2",
        "ip link set p1 up",
        "ip link set p2 up",
        "ip address add 10.65.0.1/30 dev p1",
    ] {
        machine.run(&words.split(' ').collect::<Vec<_>>()).unwrap();
    }
    machine.configure(CONFIG);
    // It returns when the bonds are there: nothing is waited for.
    machine.run(&["systemctl", "start", "netbond"]).unwrap();
    let status = machine.status().unwrap();
    assert_eq!(status["controller"]["running"], true);
    assert_eq!(machine.service("StatusText"), "bonds: 1");
    wait_for("the path", SOON, || {
        let path = &machine.status()?["bonds"][0]["paths"][0];
        ensure!(path["in_use"] == true, "{path}");
        Ok(Some(()))
    })
    .unwrap();

    // A reload ends with its outcome.
    machine.configure(&CONFIG.replace("name = \"one\"", "name = \"two\""));
    machine.run(&["systemctl", "reload", "netbond"]).unwrap();
    assert_eq!(
        machine.status().unwrap()["bonds"][0]["paths"][0]["name"],
        "two"
    );
    machine.configure(&CONFIG.replace("10.65.0.2", "10.65.0.1"));
    let refused = machine.run(&["systemctl", "reload", "netbond"]);
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(machine.service("ActiveState"), "active");
    let text = machine.service("StatusText");
    assert!(
        text.starts_with("not reloaded: /etc/netbond/netbond.toml:"),
        "{text}"
    );
    machine.configure(CONFIG);
    machine.run(&["systemctl", "reload", "netbond"]).unwrap();
    assert_eq!(machine.service("StatusText"), "bonds: 1");

    // Killed or hung, it is started again, and finds its bond.
    let index = machine.status().unwrap()["bonds"][0]["ifindex"].clone();
    for (times, signal) in [("1", "KILL"), ("2", "STOP")] {
        machine
            .run(&[
                "systemctl",
                "kill",
                "--kill-who=main",
                "--signal",
                signal,
                "netbond",
            ])
            .unwrap();
        machine.wait_restarted(times);
    }
    assert_eq!(machine.status().unwrap()["bonds"][0]["ifindex"], index);

    // What it pins is nobody else's.
    let mode = machine
        .run(&["stat", "--format", "%a", "/sys/fs/bpf/netbond"])
        .unwrap();
    assert_eq!(mode.trim(), "700");

    // Stopped, packets pass on; removed, the bonds are gone.
    machine.run(&["systemctl", "stop", "netbond"]).unwrap();
    machine.run(&["ip", "link", "show", "nb0"]).unwrap();
    machine.run(&["dpkg", "--purge", "netbond"]).unwrap();
    let gone = machine.run(&["ip", "link", "show", "nb0"]);
    assert!(gone.is_err(), "{gone:?}");
    assert!(!machine.root.path().join("usr/bin/netbond").exists());
}

/// Linked to nothing, it runs where there is nothing else.
#[test]
#[ignore = "needs root and archives: cargo xtask test package"]
fn the_static_program_needs_nothing() {
    needs_nothing("X86_64", None);
}

/// The same in an emulator. A whole run leaves it out, as this program takes minutes to compile.
#[test]
#[ignore = "needs root and archives: cargo xtask test package"]
fn the_static_program_for_aarch64_needs_nothing() {
    needs_nothing("AARCH64", Some("qemu-aarch64-static"));
}

fn needs_nothing(archive: &str, emulator: Option<&str>) {
    let archive = built(archive);
    let dir = tempfile::tempdir().unwrap();
    output(
        Command::new("tar")
            .args(["--extract", "--strip-components=1", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(dir.path()),
    )
    .unwrap();
    for file in [
        "netbond.service",
        "netbond.example.toml",
        "netbond.8",
        "netbond.bash",
    ] {
        assert!(
            dir.path().join(file).is_file(),
            "{file} in {}",
            archive.display()
        );
    }
    let bare = tempfile::tempdir().unwrap();
    fs::copy(dir.path().join("netbond"), bare.path().join("netbond")).unwrap();
    let mut words = vec!["/netbond"];
    if let Some(emulator) = emulator {
        let found = output(Command::new("sh").args(["-c", &format!("command -v {emulator}")]));
        fs::copy(found.unwrap().trim(), bare.path().join("emulator")).unwrap();
        words.insert(0, "/emulator");
    }
    let inside = |arguments: &[&str]| {
        output(
            Command::new("chroot")
                .arg(bare.path())
                .args(&words)
                .args(arguments),
        )
        .unwrap()
    };
    let version = inside(&["--version"]);
    assert_eq!(
        version.trim(),
        concat!("netbond ", env!("CARGO_PKG_VERSION"))
    );
    inside(&["generate", "/pages"]);
    let made = fs::read_to_string(bare.path().join("pages/netbond-status.8")).unwrap();
    let shipped = fs::read_to_string(dir.path().join("netbond-status.8")).unwrap();
    assert_eq!(made, shipped, "whatever it was compiled for");
}
