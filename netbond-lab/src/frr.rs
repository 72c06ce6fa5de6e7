//! FRR in place of BIRD in a router: zebra, ospfd and where links have IPv6 ospf6d, with the topology's
//! OSPF settings.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::chown;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::User;

use crate::process::Process;
use crate::router::Router;
use crate::topology::Topology;
use crate::wait::{PATIENCE, wait_for};

/// Where FRR keeps its sockets, inside the router.
const PLACE: &str = "/run/frr";
/// The user as whom Debian's FRR runs.
const USER: &str = "frr";
impl Router {
    /// Starts zebra and the OSPF daemons, and waits until they know their interfaces.
    pub fn frr_start(&self) -> Result<()> {
        let user = User::from_name(USER)?.context("there is no user frr: is FRR installed?")?;
        let place = self.host_path(PLACE);
        fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        chown(&place, Some(user.uid.into()), Some(user.gid.into()))?;
        let mut daemons = vec![("zebra", "/dev/null"), ("ospfd", "/run/frr/ospfd.conf")];
        if self.topology().has_ipv6() {
            daemons.push(("ospf6d", "/run/frr/ospf6d.conf"));
        }
        for &(daemon, _) in &daemons[1..] {
            let config = place.join(format!("{daemon}.conf"));
            let version = if daemon == "ospfd" { V2 } else { V3 };
            let text = version.render(self.topology(), self.name());
            fs::write(&config, text)
                .with_context(|| format!("cannot write {}", config.display()))?;
            chown(&config, Some(user.uid.into()), Some(user.gid.into()))?;
        }
        for (daemon, config) in daemons {
            let mut command = self.daemon_command(&format!("/usr/lib/frr/{daemon}"));
            command.args(["-A", "127.0.0.1", "-P", "0", "-f", config]);
            let process = Process::start(
                &mut command,
                self.netns(),
                &self.state_file(&format!("{daemon}.log")),
                &self.state_file(&format!("{daemon}.pid")),
            )?;
            self.processes().frr.push(process);
            // ospfd that finds no zebra tries again after ten seconds.
            wait_for(&format!("answer from {daemon}"), PATIENCE, || {
                self.run(&["vtysh", "-d", daemon, "-c", "show version"])
                    .map(Some)
            })?;
        }
        wait_for(
            &format!("answer from FRR in router {}", self.name()),
            PATIENCE,
            || {
                let answer = self.run(&["vtysh", "-c", "show ip ospf interface json"])?;
                ensure!(answer.contains("ospfEnabled"), "it says: {answer}");
                Ok(Some(()))
            },
        )
    }
}

/// How a version of OSPF is configured.
struct Version {
    /// What begins an interface's commands.
    interface: &'static str,
    /// The router's process.
    process: &'static str,
    /// Whether it runs only where a link has IPv6.
    ipv6: bool,
}

/// Of ospfd.
const V2: Version = Version {
    interface: "ip ospf",
    process: "ospf",
    ipv6: false,
};

/// Of ospf6d.
const V3: Version = Version {
    interface: "ipv6 ospf6",
    process: "ospf6",
    ipv6: true,
};

impl Version {
    /// The daemon's configuration of one router.
    fn render(&self, topology: &Topology, router: &str) -> String {
        let Self {
            interface, process, ..
        } = self;
        let mut text = format!("interface lo\n {interface} area 0.0.0.0\nexit\n");
        for end in topology.ends_of(router) {
            if self.ipv6 && end.overlay_v6.is_none() {
                continue;
            }
            let (hello, dead) = (topology.ospf.hello, topology.ospf.dead);
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "interface {}\n {interface} area 0.0.0.0\n {interface} network point-to-point\n \
                 {interface} cost {}\n {interface} hello-interval {hello}\n {interface} dead-interval {dead}\nexit\n",
                end.device, end.cost
            );
        }
        let spec = topology.routers.iter().find(|spec| spec.name == router);
        if let Some(spec) = spec {
            let id = spec.router_id;
            let _ = write!(text, "router {process}\n {process} router-id {id}\nexit\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_and_devices_come_from_the_topology() {
        let text = V2.render(&Topology::reference(), "M2");
        for part in [
            "interface wg-m2-a\n",
            "interface wg-m2-b\n",
            " ip ospf hello-interval 1\n",
            " ospf router-id 10.65.1.2\n",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }
}
