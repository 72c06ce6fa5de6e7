//! A Debian for containers in the VM: what a router has before anybody has touched it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::root;
use crate::command::check;
use crate::files::write;

/// Where it lies in the VM.
pub(crate) const DIR: &str = "/debian";

/// What is installed besides Debian's required packages.
const PACKAGES: [&str; 9] = [
    "bird2",
    "dbus",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "procps",
    "systemd-sysv",
    "tcpdump",
    "wireguard-tools",
];

/// What nobody reads in the VM would only fill its memory.
const LEFT_OUT: [&str; 3] = [
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
];

/// What systemctl changes there: services that fail. BIRD knows no router id yet; and in a container that starts
/// slowly the record of its start finds that another one is being written.
const SERVICES: [&str; 2] = ["disable bird", "mask systemd-update-utmp-runlevel.service"];

/// Packs it into `archive`, unless it is there with the same packages. Debian 12, by this machine's apt.
pub(super) fn prepare(dir: &Path, archive: &Path) -> Result<()> {
    // Written last.
    let packed = archive.with_extension("packages");
    let packages = PACKAGES.join(",");
    let contents = format!("{packages}\n{}\n", SERVICES.join("\n"));
    if archive.exists() && fs::read_to_string(&packed).is_ok_and(|text| text == contents) {
        return Ok(());
    }
    eprintln!("vm: downloading Debian 12");
    let stage = dir.join("stage");
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("cannot empty {}", stage.display()))?;
    }
    let system = stage.join(DIR.trim_start_matches('/'));
    fs::create_dir_all(&system).with_context(|| format!("cannot make {}", system.display()))?;
    check(
        Command::new("mmdebstrap")
            .args(["--quiet", "--variant=minbase"])
            .arg(format!("--include={packages}"))
            .args(LEFT_OUT.map(|option| format!("--dpkgopt={option}")))
            .args(
                SERVICES.map(|change| format!("--customize-hook=chroot \"$1\" systemctl {change}")),
            )
            .arg("bookworm")
            .arg(&system),
    )?;
    root::pack_with_owners(&stage, archive)?;
    write(&packed, &contents)
}
