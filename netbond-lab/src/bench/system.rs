//! What is compared: each is set up in A and B on top of a running lab, and taken down without trace.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use nix::sys::signal::Signal;

use super::frame::{Encap, mptcp_share};
use super::scenario::Line;
use crate::lab::Lab;
use crate::process::Process;
use crate::router::Router;
use crate::topology::PathSpec;
use crate::tunnels::{self, BOND, devices};
use crate::wait::wait_for;

/// The routers with the two ends.
pub(super) const SENDER: &str = "A";
pub(super) const RECEIVER: &str = "B";

/// The two ends' addresses on whatever bonds them.
const ADDRESSES: [(&str, &str); 2] = [(SENDER, "10.67.0.1"), (RECEIVER, "10.67.0.2")];

/// What the tunnels' outer packets start with.
const TTL: &str = "ttl 64";

/// How long a system may take until it carries packets on every path.
const READY: Duration = Duration::from_secs(60);

/// A system that carries traffic from A to B.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum System {
    /// One WireGuard path alone
    Path,
    /// A gretap for each path, and kernel bonding balance-rr with miimon 100
    BalanceRr,
    /// ... with ARP monitoring, every 100 ms at both ends
    BalanceRrArp,
    /// ... with balance-xor, by layers 3 and 4
    BalanceXor,
    /// A gretap for each path, and a team with the runner roundrobin
    TeamRr,
    /// A gre device for each path, and one route over all of them, by layers 3 and 4
    Ecmp,
    /// Multipath TCP over the paths, without encapsulation
    Mptcp,
    /// netbond as it comes: gre, round-robin
    Netbond,
    /// ... with mode active-backup: one path at a time
    NetbondBackup,
    /// ... with in_order: received packets are put in order
    NetbondOrder,
    /// ... with in_order and mode weighted, the weights being the paths' rates in Mbit/s
    NetbondWeighted,
    /// ... with mode adaptive
    NetbondAdaptive,
    /// ... with mode duplicate
    NetbondDuplicate,
    /// ... with encap gretap: whole Ethernet frames
    NetbondGretap,
}

/// A configuration of netbond.
struct Settings {
    encap: Encap,
    mode: Mode,
}

/// A mode of netbond.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    RoundRobin,
    ActiveBackup,
    Weighted,
    Adaptive,
    Duplicate,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::ActiveBackup => "active-backup",
            Self::Weighted => "weighted",
            Self::Adaptive => "adaptive",
            Self::Duplicate => "duplicate",
        }
    }
}

impl Settings {
    /// The lab's configuration of a router, changed to this.
    fn config(&self, default: &str, paths: &[PathSpec], lines: &[Line]) -> String {
        let in_order = match (self.encap, self.mode) {
            (Encap::GreInOrder, Mode::RoundRobin | Mode::ActiveBackup | Mode::Weighted) => {
                "in_order = true\n"
            }
            // They number packets anyway.
            (Encap::GreInOrder, Mode::Adaptive | Mode::Duplicate) => "",
            (Encap::None | Encap::Gre | Encap::Gretap, _) => "",
        };
        let encap = format!("{in_order}encap = {:?}", self.encap.name());
        let mut config = default.replace("encap = \"gre\"", &encap).replace(
            "mode = \"round-robin\"",
            &format!("mode = {:?}", self.mode.name()),
        );
        if self.mode == Mode::Weighted {
            for (path, line) in paths.iter().zip(lines) {
                let name = format!("name = {:?}\n", path.name);
                let weight = format!("{name}weight = {}\n", line.weight());
                config = config.replacen(&name, &weight, 1);
            }
        }
        config
    }
}

/// How a system is made.
enum Kind {
    Plain,
    /// Kernel bonding with the options of ip-link(8), the peer's address standing for `PEER`.
    Bonding(&'static str),
    Team,
    Ecmp,
    Mptcp,
    Netbond(Settings),
}

impl System {
    /// Its name on the command line and in the figures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::BalanceRr => "balance-rr",
            Self::BalanceRrArp => "balance-rr-arp",
            Self::BalanceXor => "balance-xor",
            Self::TeamRr => "team-rr",
            Self::Ecmp => "ecmp",
            Self::Mptcp => "mptcp",
            Self::Netbond => "netbond",
            Self::NetbondBackup => "netbond-backup",
            Self::NetbondOrder => "netbond-order",
            Self::NetbondWeighted => "netbond-weighted",
            Self::NetbondAdaptive => "netbond-adaptive",
            Self::NetbondDuplicate => "netbond-duplicate",
            Self::NetbondGretap => "netbond-gretap",
        }
    }

    fn kind(self) -> Kind {
        let netbond = |encap, mode| Kind::Netbond(Settings { encap, mode });
        match self {
            Self::Path => Kind::Plain,
            Self::BalanceRr => Kind::Bonding("mode balance-rr miimon 100"),
            Self::BalanceRrArp => {
                Kind::Bonding("mode balance-rr arp_interval 100 arp_ip_target PEER")
            }
            Self::BalanceXor => {
                Kind::Bonding("mode balance-xor miimon 100 xmit_hash_policy layer3+4")
            }
            Self::TeamRr => Kind::Team,
            Self::Ecmp => Kind::Ecmp,
            Self::Mptcp => Kind::Mptcp,
            Self::Netbond => netbond(Encap::Gre, Mode::RoundRobin),
            Self::NetbondBackup => netbond(Encap::Gre, Mode::ActiveBackup),
            Self::NetbondOrder => netbond(Encap::GreInOrder, Mode::RoundRobin),
            Self::NetbondWeighted => netbond(Encap::GreInOrder, Mode::Weighted),
            Self::NetbondAdaptive => netbond(Encap::GreInOrder, Mode::Adaptive),
            Self::NetbondDuplicate => netbond(Encap::GreInOrder, Mode::Duplicate),
            Self::NetbondGretap => netbond(Encap::Gretap, Mode::RoundRobin),
        }
    }

    /// What it puts around each packet.
    pub(super) fn encap(self) -> Encap {
        match self.kind() {
            Kind::Plain | Kind::Mptcp => Encap::None,
            Kind::Bonding(_) | Kind::Team => Encap::Gretap,
            Kind::Ecmp => Encap::Gre,
            Kind::Netbond(settings) => settings.encap,
        }
    }

    /// Share of the paths' rates that TCP can have as payload.
    pub(super) fn tcp_share(self) -> f64 {
        if self.is_mptcp() {
            mptcp_share()
        } else {
            self.encap().tcp_share()
        }
    }

    /// Frames that it can get through paths at best, Mbit/s: the sum of their rates, but where a packet
    /// takes each path the highest of them.
    pub(super) fn mbit(self, lines: &[Line]) -> f64 {
        let rates = lines.iter().map(|line| line.kbit);
        let kbit = match self.kind() {
            Kind::Netbond(Settings {
                mode: Mode::ActiveBackup | Mode::Duplicate,
                ..
            }) => rates.max().unwrap_or(0),
            Kind::Netbond(Settings {
                mode: Mode::RoundRobin | Mode::Weighted | Mode::Adaptive,
                ..
            })
            | Kind::Plain
            | Kind::Bonding(_)
            | Kind::Team
            | Kind::Ecmp
            | Kind::Mptcp => rates.sum(),
        };
        f64::from(kbit) / 1000.0
    }

    /// Whether it carries what other hosts send.
    pub(super) fn forwards(self) -> bool {
        match self.kind() {
            Kind::Plain | Kind::Mptcp => false,
            Kind::Bonding(_) | Kind::Team | Kind::Ecmp | Kind::Netbond(_) => true,
        }
    }

    /// Whether it carries TCP alone, of programs that ask for it.
    pub(super) fn is_mptcp(self) -> bool {
        self == Self::Mptcp
    }

    /// The receiver's address by which traffic takes this system.
    pub(super) fn target(self, lab: &Lab) -> Result<String> {
        match self.kind() {
            Kind::Plain | Kind::Mptcp => {
                let first = lab.router(SENDER).paths()?.first();
                Ok(first.context("there is no path")?.remote.to_string())
            }
            Kind::Bonding(_) | Kind::Team | Kind::Ecmp | Kind::Netbond(_) => {
                Ok(ADDRESSES[1].1.to_owned())
            }
        }
    }

    /// Sets it up over paths like these, and waits until it carries packets on every path.
    pub(super) fn up<'a>(self, lab: &'a Lab, lines: &[Line]) -> Result<Running<'a>> {
        let mut running = Running {
            lab,
            system: self,
            teams: Vec::new(),
        };
        let up = running.build(lines).and_then(|()| running.wait_ready());
        if let Err(error) = up {
            // What there is of it would be in the way of the next one.
            let _ = running.take_down();
            return Err(error.context(format!("{} did not come up", self.name())));
        }
        Ok(running)
    }
}

/// A system that is set up.
pub(super) struct Running<'a> {
    lab: &'a Lab,
    system: System,
    teams: Vec<Process>,
}

/// One end of a system.
struct End<'a> {
    router: &'a Router,
    own: &'static str,
    peer: &'static str,
    paths: &'a [PathSpec],
}

impl Running<'_> {
    fn ends(&self) -> Result<[End<'_>; 2]> {
        let end = |this: usize, other: usize| -> Result<End<'_>> {
            let (name, own) = ADDRESSES[this];
            let router = self.lab.router(name);
            Ok(End {
                router,
                own,
                peer: ADDRESSES[other].1,
                paths: router.paths()?,
            })
        };
        Ok([end(0, 1)?, end(1, 0)?])
    }

    fn build(&mut self, lines: &[Line]) -> Result<()> {
        let mtu = self.system.encap().mtu();
        let mut teams = Vec::new();
        for end in self.ends()? {
            let End {
                router,
                own,
                peer,
                paths,
            } = end;
            match self.system.kind() {
                Kind::Plain => {}
                Kind::Bonding(options) => {
                    let options = options.replace("PEER", peer);
                    let mut commands = tunnels::tunnels(paths, "gretap", mtu, TTL);
                    commands += &tunnels::bonding(paths, mtu, &options);
                    commands += &format!("addr add {own}/24 dev {BOND}\n");
                    router.ip(&commands)?;
                }
                Kind::Team => {
                    router.ip(&tunnels::tunnels(paths, "gretap", mtu, TTL))?;
                    teams.push(start_team(router, paths)?);
                    router.ip(&format!(
                        "link set {BOND} mtu {mtu} up\naddr add {own}/24 dev {BOND}\n"
                    ))?;
                }
                Kind::Ecmp => {
                    let mut commands = tunnels::tunnels(paths, "gre", mtu, TTL);
                    commands += &tunnels::up(paths);
                    commands += &format!("addr add {own}/32 dev {}\n", tunnels::device(1));
                    let nexthops = tunnels::nexthops(paths);
                    commands += &format!("route add {peer}/32 src {own}{nexthops}\n");
                    router.ip(&commands)?;
                }
                Kind::Mptcp => {
                    let mut commands = mptcp_limits(paths.len(), paths.len());
                    // The first path's is the one that is connected to. Each of the others the sender
                    // reaches over its own path, so that it alone needs no endpoints.
                    if router.name() == RECEIVER {
                        for PathSpec { local, device, .. } in &paths[1..] {
                            commands +=
                                &format!("mptcp endpoint add {local} dev {device} signal\n");
                        }
                    }
                    router.ip(&commands)?;
                }
                Kind::Netbond(settings) => {
                    let config = router.default_config().context("no bond")?;
                    router.write_config(&settings.config(&config, paths, lines))?;
                    router.start_netbond()?;
                }
            }
        }
        self.teams = teams;
        Ok(())
    }

    /// Waits until every path is used and nothing is lost.
    fn wait_ready(&self) -> Result<()> {
        for End { router, paths, .. } in self.ends()? {
            match self.system.kind() {
                Kind::Plain | Kind::Ecmp | Kind::Mptcp | Kind::Team => {}
                Kind::Bonding(_) => {
                    // By the router's process: `/proc/net` is that of who reads it.
                    let file = format!("/proc/{}/net/bonding/{BOND}", router.anchor_pid());
                    wait_for("bond over every path", READY, || {
                        let text = fs::read_to_string(&file)
                            .with_context(|| format!("cannot read {file}"))?;
                        let up = text.matches("MII Status: up").count();
                        ensure!(up == 1 + paths.len(), "it says:\n{text}");
                        Ok(Some(()))
                    })?;
                }
                Kind::Netbond(_) => router.wait_netbond(READY)?,
            }
        }
        let target = self.system.target(self.lab)?;
        let sender = self.lab.router(SENDER);
        // More than once over each path.
        let ping = [
            "ping", "-n", "-q", "-c", "12", "-i", "0.05", "-W", "1", &target,
        ];
        wait_for("pings without a loss", READY, || {
            let text = sender.run(&ping)?;
            ensure!(text.contains(" 0% packet loss"), "{}", text.trim());
            Ok(Some(()))
        })
    }

    /// Has A lead what is for `there` over the system, and B what is for `back`.
    pub(super) fn lead(&self, there: &str, back: &str) -> Result<()> {
        for (end, network) in self.ends()?.into_iter().zip([there, back]) {
            let way = match self.system.kind() {
                Kind::Plain | Kind::Mptcp => bail!("{} leads nowhere", self.system.name()),
                Kind::Bonding(_) | Kind::Team | Kind::Netbond(_) => format!("via {}", end.peer),
                Kind::Ecmp => tunnels::nexthops(end.paths),
            };
            end.router.ip(&format!("route replace {network} {way}\n"))?;
        }
        Ok(())
    }

    /// Removes it, and with its devices the routes over them.
    pub(super) fn down(mut self) -> Result<()> {
        self.take_down()
            .with_context(|| format!("cannot take {} down", self.system.name()))
    }

    fn take_down(&mut self) -> Result<()> {
        for team in self.teams.drain(..) {
            team.end(Signal::SIGTERM)?;
        }
        for End { router, paths, .. } in self.ends()? {
            match self.system.kind() {
                Kind::Plain => {}
                Kind::Bonding(_) | Kind::Team | Kind::Ecmp => {
                    for device in devices(paths).chain([BOND.to_owned()]) {
                        // teamd takes its device with it; what was not made yet is not there.
                        let path = format!("/sys/class/net/{device}");
                        if router.host_path(&path).exists() {
                            router.ip(&format!("link del {device}\n"))?;
                        }
                    }
                }
                Kind::Mptcp => {
                    // The limits as the kernel has them at first.
                    let limits = mptcp_limits(2, 0);
                    router.ip(&format!("mptcp endpoint flush\n{limits}"))?;
                }
                Kind::Netbond(_) => {
                    if router.netbond_pid().is_some() {
                        router.kill_netbond(Signal::SIGTERM)?;
                    }
                    router.run(&["netbond", "detach"])?;
                }
            }
        }
        Ok(())
    }
}

/// How many further paths a connection may use, and take from what the peer tells of itself.
fn mptcp_limits(subflows: usize, accepted: usize) -> String {
    format!("mptcp limits set subflow {subflows} add_addr_accepted {accepted}\n")
}

/// Starts teamd, which makes the team and takes the tunnels into it.
fn start_team(router: &Router, paths: &[PathSpec]) -> Result<Process> {
    let ports: Vec<_> = devices(paths)
        .map(|device| format!("{device:?}: {{}}"))
        .collect();
    let config = format!(
        "{{\"runner\": {{\"name\": \"roundrobin\"}}, \"link_watch\": {{\"name\": \"ethtool\"}}, \
         \"ports\": {{{}}}}}",
        ports.join(", ")
    );
    let log = router.state_file("teamd.log");
    let process = Process::start(
        router
            .daemon_command("teamd")
            .args(["-t", BOND, "-c", &config]),
        router.netns(),
        &log,
        &router.state_file("teamd.pid"),
    )?;
    let outcome = wait_for("team with every tunnel", READY, || {
        for device in devices(paths) {
            let path = router.host_path(&format!("/sys/class/net/{device}/master"));
            ensure!(
                path.exists(),
                "{device} is not in it: {}",
                fs::read_to_string(&log).unwrap_or_default().trim()
            );
        }
        Ok(Some(()))
    });
    if let Err(error) = outcome {
        let _ = process.end(Signal::SIGKILL);
        return Err(error);
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::super::scenario::Scenario;
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for system in System::value_variants() {
            let value = system.to_possible_value().expect("no system is hidden");
            assert_eq!(value.get_name(), system.name());
        }
    }

    #[test]
    fn the_ideal_is_the_sum_or_the_best_path() {
        let lines = Scenario::Rates10To5To1.lines();
        let best: Vec<f64> = [
            System::BalanceRr,
            System::NetbondAdaptive,
            System::NetbondDuplicate,
        ]
        .map(|system| system.mbit(&lines))
        .to_vec();
        assert_eq!(best, [16.0, 16.0, 10.0]);
        for system in System::value_variants() {
            assert_eq!(system.mbit(&[]), 0.0, "{system:?}");
        }
        assert_eq!(System::NetbondDuplicate.encap().bytes(), 28);
    }

    #[test]
    fn weights_are_the_rates() {
        let topology = Scenario::topology(3);
        let bond = &topology.bonds[0];
        let default = "encap = \"gre\"\nmode = \"round-robin\"\n\
                       name = \"via-m1\"\nname = \"via-m2\"\nname = \"via-m3\"\n";
        let config = |system: System| match system.kind() {
            Kind::Netbond(settings) => {
                settings.config(default, &bond.paths, &Scenario::Rates10To5To1.lines())
            }
            Kind::Plain | Kind::Bonding(_) | Kind::Team | Kind::Ecmp | Kind::Mptcp => {
                panic!("{system:?} is not netbond")
            }
        };
        assert_eq!(config(System::Netbond), default);
        assert_eq!(
            config(System::NetbondWeighted),
            "in_order = true\nencap = \"gre\"\nmode = \"weighted\"\n\
             name = \"via-m1\"\nweight = 10\nname = \"via-m2\"\nweight = 5\n\
             name = \"via-m3\"\nweight = 1\n"
        );
        assert_eq!(
            config(System::NetbondDuplicate),
            default.replace("round-robin", "duplicate")
        );
    }
}
