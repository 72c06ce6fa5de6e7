//! netbond in the routers that have a bond.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::binary;
use crate::process::Process;
use crate::router::Router;
use crate::topology::BondSpec;
use crate::wait::wait_for;

/// netbond's configuration file, inside the router.
pub const CONFIG: &str = "/run/netbond/netbond.toml";

/// BIRD's control socket, inside the router.
const BIRD_SOCKET: &str = "/run/bird/bird.ctl";

/// What `netbond status --json` tells, as far as the lab needs it.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// Every bond of the router.
    pub bonds: Vec<BondStatus>,
}

/// A bond in [`Status`].
#[derive(Clone, Debug, Deserialize)]
pub struct BondStatus {
    /// Name of the bond device.
    pub name: String,
    /// Every path of the bond.
    pub paths: Vec<PathStatus>,
    /// Packets that took no path, by what became of them.
    #[serde(default)]
    pub fates: BTreeMap<String, u64>,
}

/// A path in [`BondStatus`].
#[derive(Clone, Debug, Deserialize)]
pub struct PathStatus {
    /// Name of the path.
    pub name: String,
    /// `up` if it carries traffic.
    pub state: String,
    /// Packets sent down the path since it exists.
    #[serde(default)]
    pub tx_packets: u64,
    /// Of these, copies of what another path was sent.
    #[serde(default)]
    pub tx_copies: u64,
    /// Packets received on it.
    #[serde(default)]
    pub rx_packets: u64,
    /// Of these, not told from copies.
    #[serde(default)]
    pub rx_contended: u64,
    /// When the state or its reason last changed, seconds since 1970.
    #[serde(default)]
    pub changed: f64,
    /// What probes measured, where they did.
    #[serde(default)]
    pub probe: Option<ProbeStatus>,
}

/// What probes measured, in [`PathStatus`].
#[derive(Clone, Debug, Deserialize)]
pub struct ProbeStatus {
    /// Smoothed round trip, ms.
    pub rtt_ms: f64,
    /// Of ten seconds' probes, 0 to 1, lost on the way there.
    pub loss_there: f64,
    /// The same, lost on the way back.
    pub loss_back: f64,
}

/// A line of `netbond events --json`, as far as the lab needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counted from 1.
    pub sequence: u64,
    /// RFC 3339.
    pub at: String,
    /// `changed` where a path changed its state or the reason for it.
    pub kind: String,
    /// Name of the path, if it is about one.
    pub path: Option<String>,
    /// States before and after, and the reason.
    pub from: Option<String>,
    /// See `from`.
    pub to: Option<String>,
    /// See `from`.
    pub reason: Option<String>,
    /// What happened.
    pub text: String,
}

impl Router {
    /// Writes netbond's configuration file (inside the router, [`CONFIG`]).
    pub fn write_config(&self, text: &str) -> Result<()> {
        let path = self.host_path(CONFIG);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The configuration that the topology gives this router; `None` if it has no bond.
    pub fn default_config(&self) -> Option<String> {
        let topology = self.topology();
        let bonds: Vec<_> = topology
            .bonds
            .iter()
            .filter(|bond| bond.router == self.name())
            .collect();
        (!bonds.is_empty()).then(|| render(&bonds))
    }

    /// Starts netbond. Does not wait until it is ready: see [`Router::wait_netbond`].
    pub fn start_netbond(&self) -> Result<()> {
        let mut processes = self.processes();
        if processes.netbond.as_mut().is_some_and(Process::is_running) {
            bail!("netbond runs already in router {}", self.name());
        }
        let program = binary::netbond()?;
        let program = program
            .to_str()
            .context("the path of netbond is not UTF-8")?;
        let mut command = self.daemon_command(program);
        command.args(["run", "-c", CONFIG]);
        let process = Process::start(
            &mut command,
            self.netns(),
            &self.state_file("netbond.log"),
            &self.state_file("netbond.pid"),
        )
        .with_context(|| format!("cannot start netbond in router {}", self.name()))?;
        processes.netbond = Some(process);
        Ok(())
    }

    /// Sends netbond a signal that ends it, and waits for its end.
    pub fn kill_netbond(&self, signal: Signal) -> Result<()> {
        match self.processes().netbond.take() {
            Some(process) => process
                .end(signal)
                .with_context(|| format!("cannot end netbond in router {}", self.name())),
            None => bail!("netbond was not started in router {}", self.name()),
        }
    }

    /// netbond's process id, if it was started (it may have ended by itself).
    pub fn netbond_pid(&self) -> Option<Pid> {
        self.processes().netbond.as_ref().map(Process::pid)
    }

    /// What netbond has printed so far.
    pub fn netbond_log(&self) -> String {
        fs::read_to_string(self.state_file("netbond.log")).unwrap_or_default()
    }

    /// What `netbond status --json` says.
    pub fn netbond_status(&self) -> Result<Status> {
        let text = self.run(&["netbond", "status", "--json"])?;
        serde_json::from_str(&text)
            .with_context(|| format!("cannot read the status of router {}: {text}", self.name()))
    }

    /// What `netbond events --json` says.
    pub fn netbond_events(&self) -> Result<Vec<Event>> {
        let text = self.run(&["netbond", "events", "--json"])?;
        let events = text.lines().map(serde_json::from_str).collect();
        let events: serde_json::Result<_> = events;
        events.with_context(|| format!("cannot read the events of router {}", self.name()))
    }

    /// Waits until netbond has started and every path of every bond is up.
    pub fn wait_netbond(&self, deadline: Duration) -> Result<()> {
        self.wait_paths(deadline, &["up"])
    }

    /// The same for paths in any of these states.
    pub(crate) fn wait_paths(&self, deadline: Duration, states: &[&str]) -> Result<()> {
        wait_for(
            &format!("ready netbond in router {}", self.name()),
            deadline,
            || {
                if let Some(process) = &mut self.processes().netbond {
                    ensure!(process.is_running(), "it ended");
                    // The maps say what the one before knew until it is.
                    let started = format!(", pid {}, bonds: ", process.pid());
                    ensure!(self.netbond_log().contains(&started), "it is only starting");
                }
                let status = self.netbond_status()?;
                ensure!(!status.bonds.is_empty(), "it has no bond");
                let down: Vec<_> = status
                    .bonds
                    .iter()
                    .flat_map(|bond| &bond.paths)
                    .filter(|path| !states.contains(&path.state.as_str()))
                    .map(|path| format!("{} is {}", path.name, path.state))
                    .collect();
                ensure!(down.is_empty(), "path {}", down.join(", path "));
                Ok(Some(()))
            },
        )
        .with_context(|| {
            let log = self.netbond_log();
            match log.trim() {
                "" => "netbond is not ready and has printed nothing".to_owned(),
                log => format!(
                    "netbond is not ready; its log ends:\n{}\n",
                    last_lines(log, 20)
                ),
            }
        })
    }
}

/// The last `count` lines of `text`.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn render(bonds: &[&BondSpec]) -> String {
    let mut text = format!("[bird]\nsocket = {BIRD_SOCKET:?}\n");
    for bond in bonds {
        // Writing to a string cannot fail. Debug format quotes these plain ASCII values as TOML does.
        let _ = write!(
            text,
            "\n[[bond]]\nname = {:?}\naddress = {:?}\nencap = {:?}\nmode = {:?}\npeer = {:?}\n",
            bond.name, bond.addresses, bond.encap, bond.mode, bond.peer
        );
        for line in &bond.lines {
            let _ = writeln!(text, "{line}");
        }
        for path in &bond.paths {
            let _ = write!(
                text,
                "\n[[bond.path]]\nname = {:?}\nlocal = \"{}\"\nremote = \"{}\"\ndevice = {:?}\n",
                path.name, path.local, path.remote, path.device
            );
            for line in &path.lines {
                let _ = writeln!(text, "{line}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;

    #[test]
    fn the_configuration_is_what_netbond_reads() {
        let topology = Topology::parallel(1).with_bond_line("probe_interval = 0");
        let text = render(&[&topology.bonds[0]]);
        assert_eq!(
            text,
            "[bird]\nsocket = \"/run/bird/bird.ctl\"\n\n\
             [[bond]]\nname = \"nb0\"\naddress = [\"10.67.0.1/24\", \"fd67::1/64\"]\n\
             encap = \"gre\"\nmode = \"round-robin\"\npeer = \"10.65.2.1/32\"\n\
             probe_interval = 0\n\n\
             [[bond.path]]\nname = \"via-m1\"\nlocal = \"10.65.0.2\"\nremote = \"10.65.0.6\"\n\
             device = \"wg-a-m1\"\n"
        );
    }

    #[test]
    fn last_lines_of_a_short_text_are_all() {
        assert_eq!(last_lines("a\nb", 20), "a\nb");
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
    }
}
