//! One router of a running lab.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::process::Process;
use crate::topology::{LinkKind, LocalEnd, PathSpec, Topology};
use crate::wireguard::WireGuard;
use crate::{anchor, enter, namespace};

/// A router: a network namespace and a private mount namespace, held by a process of their own.
///
/// Inside, default paths belong to the router alone: `/run/bird/bird.ctl`, `/var/run/wireguard`,
/// `/sys/fs/bpf`, `/run/netbond`, `/sys/class/net`.
#[derive(Debug)]
pub struct Router {
    lab: String,
    name: String,
    netns: String,
    state: PathBuf,
    socket: PathBuf,
    anchor: i32,
    wireguard: WireGuard,
    topology: Arc<Topology>,
    processes: Mutex<Processes>,
}

/// What runs in a router on the lab's behalf.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    pub(crate) anchor: Option<Child>,
    pub(crate) bird: Option<Process>,
    /// zebra, ospfd and ospf6d, where they were started.
    pub(crate) frr: Vec<Process>,
    pub(crate) netbond: Option<Process>,
}

impl Router {
    /// Takes hold of a router of a lab whose anchor runs. `child` is that anchor if this process started it.
    pub(crate) fn new(
        (lab, name): (&str, &str),
        state: &Path,
        anchor: (i32, Option<Child>),
        wireguard: WireGuard,
        topology: Arc<Topology>,
    ) -> Result<Self> {
        let (anchor, child) = anchor;
        let mut router = Self {
            lab: lab.to_owned(),
            name: name.to_owned(),
            socket: anchor::socket_path(state, name),
            netns: namespace::netns_name(lab, name),
            state: state.to_owned(),
            anchor,
            wireguard,
            topology,
            processes: Mutex::default(),
        };
        let processes = Processes {
            anchor: child,
            bird: Process::find(&router.netns, &router.state_file("bird.pid")),
            frr: ["zebra.pid", "ospfd.pid", "ospf6d.pid"]
                .iter()
                .filter_map(|file| Process::find(&router.netns, &router.state_file(file)))
                .collect(),
            netbond: Process::find(&router.netns, &router.state_file("netbond.pid")),
        };
        router.processes = Mutex::new(processes);
        Ok(router)
    }

    /// The router's name, such as `A`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its network namespace, as `ip -n` takes it.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Who encrypts its WireGuard links.
    pub fn wireguard(&self) -> WireGuard {
        self.wireguard
    }

    /// The topology of the lab it belongs to.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The paths of its first bond.
    pub fn paths(&self) -> Result<&[PathSpec]> {
        let mut bonds = self.topology.bonds.iter();
        let bond = bonds.find(|bond| bond.router == self.name);
        let bond = bond.with_context(|| format!("router {} has no bond", self.name))?;
        Ok(&bond.paths)
    }

    /// A command that runs `program` inside the router, in the caller's working directory and with
    /// the project's programs first in its search path. Its process id is that of `program`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        enter::command(self.anchor, false, program.as_ref())
    }

    /// Like [`Router::command`], but in a session of its own: the terminal's signals do not reach it.
    pub(crate) fn daemon_command(&self, program: &str) -> Command {
        enter::command(self.anchor, true, program.as_ref())
    }

    /// Runs a program inside the router to its end and returns its standard output. If it fails,
    /// the error holds what it printed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().context("no command given")?;
        let output = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {program} in router {}", self.name))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "`{}` in router {} ended with {}: {}{}",
            words.join(" "),
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            if text.trim().is_empty() {
                String::new()
            } else {
                format!("\n{}", text.trim())
            },
        );
        Ok(text)
    }

    /// Runs commands of ip(8), one a line, in the router's network namespace.
    pub fn ip(&self, commands: &str) -> Result<()> {
        namespace::ip_batch(&self.netns, commands)
    }

    /// The path under which the host sees the router's file `path`, such as `/run/netbond/x`.
    pub fn host_path(&self, path: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.anchor.to_string())
            .join("root")
            .join(path.trim_start_matches('/'))
    }

    /// Stops every process in the router where it stands, as if the machine hung: nothing is sent
    /// or received any more, no device changes its state.
    ///
    /// The kernel's WireGuard and Ethernet run without processes: such links are cut on its side, too.
    pub fn freeze(&self) -> Result<()> {
        for end in self.of_the_kernel() {
            crate::failure::cut(&self.netns, &end.underlay_device)?;
        }
        self.signal_all(Signal::SIGSTOP)
    }

    /// Lets a frozen router go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal_all(Signal::SIGCONT)?;
        self.of_the_kernel()
            .try_for_each(|end| crate::failure::mend(&self.netns, &end.underlay_device))
    }

    /// The links that run without a process of the router.
    fn of_the_kernel(&self) -> impl Iterator<Item = LocalEnd> + '_ {
        let ends = self.topology.ends_of(&self.name);
        ends.filter(|end| match end.kind {
            LinkKind::WireGuard => self.wireguard == WireGuard::Kernel,
            LinkKind::Ethernet => true,
        })
    }

    fn signal_all(&self, signal: Signal) -> Result<()> {
        for pid in namespace::processes(&self.netns)? {
            // It may have ended since.
            let _ = nix::sys::signal::kill(pid, signal);
        }
        Ok(())
    }

    /// The name of its lab.
    pub(crate) fn lab(&self) -> &str {
        &self.lab
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// A file of this router in the lab's state directory.
    pub(crate) fn state_file(&self, what: &str) -> PathBuf {
        self.state.join(format!("{}.{what}", self.name))
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn anchor_pid(&self) -> i32 {
        self.anchor
    }

    pub(crate) fn processes(&self) -> MutexGuard<'_, Processes> {
        // A panic elsewhere does not make the list of processes wrong.
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Collects the exit status of everything this process started in the router.
    pub(crate) fn reap(&self) {
        let mut processes = self.processes();
        if let Some(mut anchor) = processes.anchor.take() {
            // No effect if the namespace's removal already ended it.
            let _ = anchor.kill();
            let _ = anchor.wait();
        }
        let frr = std::mem::take(&mut processes.frr);
        for process in [processes.bird.take(), processes.netbond.take()]
            .into_iter()
            .flatten()
            .chain(frr)
        {
            let _ = process.end(Signal::SIGKILL);
        }
    }
}
