//! BIRD in every router: OSPF version 2 over the WireGuard links, and version 3 over those with IPv6.

use std::fs;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use crate::process::Process;
use crate::router::Router;
use crate::topology::{LocalEnd, RouterSpec, Topology};
use crate::wait::{PATIENCE, wait_for};

/// How many equal routes are used side by side.
const ECMP_LIMIT: u8 = 8;

/// BFD as fast as is usual between routers.
const BFD: &str =
    "protocol bfd {\n  interface \"wg-*\" {\n    interval 50 ms;\n    multiplier 3;\n  };\n}\n";

impl Router {
    /// Starts BIRD with the topology's OSPF settings and waits until it answers.
    pub fn bird_start(&self) -> Result<()> {
        self.bird_spawn()?;
        wait_for(
            &format!("answer from BIRD in router {}", self.name()),
            PATIENCE,
            || {
                if !self
                    .processes()
                    .bird
                    .as_mut()
                    .is_some_and(Process::is_running)
                {
                    bail!("it ended; its log says: {}", self.bird_log());
                }
                self.birdc("show status").map(Some)
            },
        )?;
        Ok(())
    }

    /// Starts BIRD; what waits for its routes need not wait for its first answer.
    pub(crate) fn bird_spawn(&self) -> Result<()> {
        let mut processes = self.processes();
        if processes.bird.as_mut().is_some_and(Process::is_running) {
            bail!("BIRD runs already in router {}", self.name());
        }
        let config = self.state_file("bird.conf");
        let text = config_text(self)?;
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = self.daemon_command("bird");
        // In the foreground: then the process started is the process to end.
        command
            .args(["-f", "-s", "/run/bird/bird.ctl", "-c"])
            .arg(&config);
        processes.bird = Some(Process::start(
            &mut command,
            self.netns(),
            &self.state_file("bird.log"),
            &self.state_file("bird.pid"),
        )?);
        Ok(())
    }

    /// Ends BIRD in good order: it takes its routes away and tells its neighbours.
    pub fn bird_stop(&self) -> Result<()> {
        self.bird_end(Signal::SIGTERM)
    }

    /// Kills BIRD: its routes stay, its neighbours learn nothing.
    pub fn bird_kill(&self) -> Result<()> {
        self.bird_end(Signal::SIGKILL)
    }

    fn bird_end(&self, signal: Signal) -> Result<()> {
        match self.processes().bird.take() {
            Some(process) => process
                .end(signal)
                .with_context(|| format!("cannot end BIRD in router {}", self.name())),
            None => bail!("BIRD does not run in router {}", self.name()),
        }
    }

    /// Gives BIRD a command, such as `show ospf neighbors`, and returns its answer.
    pub fn birdc(&self, command: &str) -> Result<String> {
        let words: Vec<_> = ["birdc"]
            .into_iter()
            .chain(command.split_whitespace())
            .collect();
        self.run(&words)
    }

    /// What BIRD has logged so far.
    pub fn bird_log(&self) -> String {
        fs::read_to_string(self.state_file("bird.log")).unwrap_or_default()
    }
}

/// BIRD's configuration of one router.
fn config_text(router: &Router) -> Result<String> {
    let topology = router.topology();
    let spec = topology
        .routers
        .iter()
        .find(|spec| spec.name == router.name());
    let spec = spec.context("the router is not in its own topology")?;
    Ok(render(topology, spec))
}

fn render(topology: &Topology, router: &RouterSpec) -> String {
    let ospf = &topology.ospf;
    let (name, id) = (&router.name, router.router_id);
    let ecmp = if ospf.ecmp {
        format!("yes limit {ECMP_LIMIT}")
    } else {
        "no".to_owned()
    };
    let (watch, watched) = if ospf.bfd {
        (BFD, "      bfd yes;\n")
    } else {
        ("", "")
    };
    let interface = |end: &LocalEnd| {
        format!(
            "    interface \"{}\" {{\n\
             \x20     type ptp;\n\
             \x20     cost {};\n\
             \x20     hello {};\n\
             \x20     dead {};\n\
             \x20     check link yes;\n\
             {watched}\
             \x20   }};\n",
            end.device, end.cost, ospf.hello, ospf.dead
        )
    };
    // A route that went with its device BIRD installs again when it next scans the kernel: 60 s later,
    // unless told otherwise.
    let version = |version: u8, name: &str, channel: &str, loopback: &str, interfaces: String| {
        format!(
            "protocol kernel {{\n\
             \x20 {channel} {{ import none; export all; }};\n\
             \x20 merge paths {ecmp};\n\
             \x20 metric 32;\n\
             \x20 scan time 2;\n\
             }}\n\
             protocol ospf v{version} {name} {{\n\
             \x20 tick 1;\n\
             \x20 ecmp {ecmp};\n\
             \x20 {channel} {{ import all; export none; }};\n\
             \x20 area 0 {{\n\
             \x20   {loopback}\n\
             {interfaces}\
             \x20 }};\n\
             }}\n"
        )
    };
    let ends = || topology.ends_of(name);
    let mut text = format!(
        "log stderr all;\n\
         router id {id};\n\
         timeformat log iso long ms;\n\
         protocol device {{ }}\n\
         {watch}"
    );
    let all = ends().map(|end| interface(&end)).collect();
    text += &version(2, "lab", "ipv4", "interface \"lo\" { stub yes; };", all);
    if topology.has_ipv6() {
        let some = ends().filter(|end| end.overlay_v6.is_some());
        // OSPFv3 runs on no device without a link-local address.
        let loopback = format!("stubnet {}/128;", router.loopback_v6());
        let some = some.map(|end| interface(&end)).collect();
        text += &version(3, "lab6", "ipv6", &loopback, some);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Ospf;

    fn render_of(topology: &Topology, router: &str) -> String {
        let mut routers = topology.routers.iter();
        render(topology, routers.find(|spec| spec.name == router).unwrap())
    }

    #[test]
    fn timers_and_devices_come_from_the_topology() {
        let topology = Topology::reference().with_ospf(Ospf {
            ecmp: false,
            ..Ospf::field()
        });
        let text = render_of(&topology, "M2");
        for part in [
            "router id 10.65.1.2;",
            "interface \"wg-m2-a\" {",
            "interface \"wg-m2-b\" {",
            "hello 10;",
            "dead 40;",
            "ecmp no;",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        assert!(!text.contains("bfd"), "nobody asked for it:\n{text}");
    }

    #[test]
    fn version_3_runs_where_links_have_ipv6() {
        let topology = Topology::reference().over_ipv6(&[1]);
        let text = render_of(&topology, "A");
        let (two, three) = text.split_once("protocol ospf v3 lab6 {").unwrap();
        assert!(two.contains("wg-a-m1") && two.contains("wg-a-m2"), "{two}");
        assert!(
            !three.contains("wg-a-m1") && three.contains("wg-a-m2"),
            "{three}"
        );
        assert!(three.contains("stubnet fd65:2::a41:202/128;"), "{three}");
        assert!(!render_of(&Topology::reference(), "A").contains("v3"));
    }

    #[test]
    fn bfd_watches_every_neighbour() {
        let ospf = Ospf {
            bfd: true,
            ..Ospf::field()
        };
        let text = render_of(&Topology::reference().with_ospf(ospf), "A");
        assert!(text.contains("protocol bfd {"), "{text}");
        assert_eq!(text.matches("      bfd yes;\n").count(), 2, "{text}");
    }
}
