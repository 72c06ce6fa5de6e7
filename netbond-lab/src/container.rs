//! A Debian with systemd in a container: root directory, processes and network of its own, and this
//! machine's kernel.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_for;

/// How long it may take to boot on a busy machine.
const BOOT: Duration = Duration::from_secs(90);

/// A running container. Dropping it ends every process in it.
#[derive(Debug)]
pub struct Container {
    nspawn: Child,
    /// Of the container, seen from here.
    init: Option<Pid>,
}

impl Container {
    /// Boots what lies in `root`, as the host `name`, and waits until all its services are up. Its
    /// network has a loopback device only. Needs root, and systemd-nspawn.
    ///
    /// # Errors
    ///
    /// Where it does not come up, or a service of it failed.
    pub fn boot(root: &Path, name: &str) -> Result<Self> {
        let nspawn = Command::new("systemd-nspawn")
            .arg("--directory")
            .arg(root)
            .args(["--machine", name])
            .args([
                "--boot",
                "--private-network",
                "--console=passive",
                "--quiet",
            ])
            // This machine may have no systemd that could be told.
            .args(["--register=no", "--keep-unit"])
            .args(["--capability=all", "--system-call-filter=bpf"])
            // For bpffs, which systemd mounts on a machine of its own.
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "yes")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run systemd-nspawn")?;
        let mut container = Self { nspawn, init: None };
        let id = container.nspawn.id();
        let init = wait_for("the container's first process", BOOT, || {
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
            let mut pids = children.split_whitespace();
            Ok(pids.find_map(|pid| first_of_its_namespace(pid).ok().flatten()))
        })?;
        container.init = Some(init);
        wait_for(&format!("the start of {name}"), BOOT, || {
            // Where a service failed, the error names it.
            let script =
                "systemctl is-system-running || { systemctl --failed --no-legend; exit 1; }";
            container.run(&["sh", "-c", script]).map(Some)
        })?;
        container.run(&["mkdir", "--parents", "/sys/fs/bpf"])?;
        container.run(&["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"])?;
        Ok(container)
    }

    /// The process id of its first process, seen from here.
    #[must_use]
    pub fn init(&self) -> Pid {
        self.init.unwrap_or(Pid::from_raw(0))
    }

    /// A command in it.
    pub fn command<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init().to_string()])
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--"])
            .args(words);
        command
    }

    /// Runs a command in it and returns what that prints.
    ///
    /// # Errors
    ///
    /// Where the command fails; the error has what it printed.
    pub fn run<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<String> {
        output(&mut self.command(words))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Its first process takes all others with it, and ends with systemd-nspawn.
        if let Some(init) = self.init {
            let _ = kill(init, Signal::SIGKILL);
        }
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
    }
}

/// The process, if it is number 1 of a pid namespace: systemd-nspawn starts others on the way to it.
fn first_of_its_namespace(pid: &str) -> Result<Option<Pid>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut numbers = status
        .lines()
        .filter_map(|line| line.strip_prefix("NSpid:"));
    let first = numbers
        .next()
        .is_some_and(|numbers| numbers.split_whitespace().next_back() == Some("1"));
    Ok(if first {
        Some(Pid::from_raw(pid.parse()?))
    } else {
        None
    })
}

/// What a command prints; fails where the command does.
///
/// # Errors
///
/// Where it cannot be run or fails; the error has what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let (out, err) = (
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr),
    );
    ensure!(status.success(), "{command:?}: {status}: {out}{err}");
    Ok(out.into_owned())
}
