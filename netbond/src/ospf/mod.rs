//! What the OSPF daemons know and the kernel does not: neighbours and costs, and the link-state database.
//!
//! Hints only: what becomes of a packet is asked of the kernel ([`crate::netlink`]).

pub mod bird;
pub mod frr;
pub mod lsdb;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use crate::config::Config;
use crate::control::event::{Event, OspfInterface};

/// What a daemon may take to tell everything.
const ANSWER: Duration = Duration::from_secs(3);

/// Bytes of a reply that are accepted: thousands of neighbours.
const REPLY_LIMIT: usize = 4 << 20;

/// A daemon to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// BIRD 2 or later at its control socket.
    Bird { socket: PathBuf },
    /// FRR's ospfd by this command, which must take vtysh's `-c`: `["vtysh"]`, `["vtysh", "-N", "a"]`, ...
    Frr { vtysh: Vec<String> },
    /// FRR's ospf6d, likewise.
    Frr6 { vtysh: Vec<String> },
}

impl Daemon {
    /// Those that may know of the neighbours on the paths of a configuration. BIRD is one for both
    /// families, FRR has a daemon for each.
    #[must_use]
    pub fn of(config: &Config) -> Vec<Self> {
        let paths = || config.bonds.iter().flat_map(|bond| &bond.paths);
        let over_ipv6 = paths().any(|path| path.remote.is_ipv6());
        let over_ipv4 = paths().any(|path| path.remote.is_ipv4()) || !over_ipv6;
        let mut daemons = Self::all(config);
        daemons.retain(|daemon| match daemon {
            Self::Bird { .. } => true,
            Self::Frr { .. } => over_ipv4,
            Self::Frr6 { .. } => over_ipv6,
        });
        daemons
    }

    /// Those that a configuration names.
    #[must_use]
    pub fn all(config: &Config) -> Vec<Self> {
        let bird = config.bird.iter().map(|bird| Self::Bird {
            socket: bird.socket.clone(),
        });
        let frr = config.frr.iter().flat_map(|frr| {
            let vtysh = frr.vtysh.clone();
            [
                Self::Frr { vtysh },
                Self::Frr6 {
                    vtysh: frr.vtysh.clone(),
                },
            ]
        });
        bird.chain(frr).collect()
    }

    /// What the daemon's OSPF instances say; fails where it does not answer in time or not
    /// understandably.
    ///
    /// # Errors
    /// No connection, a time-out, an error of the daemon, or a reply that cannot be read.
    pub async fn interfaces(&self) -> anyhow::Result<Vec<OspfInterface>> {
        let answer = async {
            match self {
                Self::Bird { socket } => bird::interfaces(socket).await,
                Self::Frr { vtysh } => frr::interfaces(vtysh).await,
                Self::Frr6 { vtysh } => frr::six::interfaces(vtysh).await,
            }
        };
        in_time(answer).await
    }

    /// Its OSPF instances with their link-state databases.
    ///
    /// # Errors
    /// No connection, a time-out, an error of the daemon, or a reply that cannot be read.
    pub async fn instances(&self) -> anyhow::Result<Vec<lsdb::Instance>> {
        in_time(async {
            match self {
                Self::Bird { socket } => bird::instances(socket).await,
                Self::Frr { vtysh } => Ok(frr::instance(vtysh).await?.into_iter().collect()),
                Self::Frr6 { vtysh } => Ok(frr::six::instance(vtysh).await?.into_iter().collect()),
            }
        })
        .await
    }

    /// What to do when it does not answer.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Bird { .. } => {
                "is bird running, and is this its control socket (bird -s), readable for netbond?"
            }
            Self::Frr { .. } => {
                "are zebra and ospfd running, and does this command work when typed by netbond's \
                 user (group frrvty)?"
            }
            Self::Frr6 { .. } => {
                "are zebra and ospf6d running, and does this command work when typed by netbond's \
                 user (group frrvty)?"
            }
        }
    }
}

async fn in_time<T>(answer: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    match timeout(ANSWER, answer).await {
        Ok(answer) => answer,
        Err(_) => anyhow::bail!("no complete answer within {ANSWER:?}"),
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bird { socket } => write!(f, "BIRD at {}", socket.display()),
            Self::Frr { vtysh } => write!(f, "FRR by '{}'", vtysh.join(" ")),
            Self::Frr6 { vtysh } => write!(f, "FRR's ospf6d by '{}'", vtysh.join(" ")),
        }
    }
}

/// A task that asks the daemons again and again; it ends when this is dropped.
pub struct Poller {
    task: JoinHandle<()>,
}

impl Poller {
    /// Asks all `daemons` every `period`. Sends [`Event::Ospf`] with what they say together, sorted
    /// by device, at first and when it changes; a daemon that does not answer adds nothing.
    ///
    /// # Panics
    /// Outside a tokio runtime, or if `period` is zero.
    #[must_use]
    pub fn spawn(daemons: Vec<Daemon>, period: Duration, events: mpsc::Sender<Event>) -> Self {
        Self {
            task: tokio::spawn(run(daemons, period, events)),
        }
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether a daemon answered last time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Unknown,
    Answers,
    Fails,
}

async fn run(daemons: Vec<Daemon>, period: Duration, events: mpsc::Sender<Event>) {
    let mut ticks = interval(period);
    // A daemon that was slow is not asked more often afterwards.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut conditions = vec![Condition::Unknown; daemons.len()];
    let mut said = None;
    loop {
        ticks.tick().await;
        let answers = join_all(daemons.iter().map(Daemon::interfaces)).await;
        let mut interfaces = Vec::new();
        for ((daemon, condition), answer) in daemons.iter().zip(&mut conditions).zip(answers) {
            match answer {
                Ok(answer) => {
                    if *condition == Condition::Fails {
                        info!("{daemon} answers again");
                    }
                    *condition = Condition::Answers;
                    interfaces.extend(answer);
                }
                Err(error) => {
                    // Once, not every second.
                    if *condition != Condition::Fails {
                        let advice = daemon.advice();
                        warn!("{daemon} does not tell its OSPF neighbours: {error:#}; {advice}");
                    }
                    *condition = Condition::Fails;
                }
            }
        }
        sort(&mut interfaces);
        if said.as_ref() != Some(&interfaces) {
            said = Some(interfaces.clone());
            if events.send(Event::Ospf(interfaces)).await.is_err() {
                return;
            }
        }
    }
}

/// The daemons' own order may change without a reason.
fn sort(interfaces: &mut [OspfInterface]) {
    for interface in &mut *interfaces {
        interface
            .neighbours
            .sort_by_key(|neighbour| (neighbour.router_id, neighbour.address));
    }
    interfaces.sort_by(|a, b| a.device.cmp(&b.device));
}

/// The interface of that name, added where it is new.
fn entry<'a>(interfaces: &'a mut Vec<OspfInterface>, device: &str) -> &'a mut OspfInterface {
    let index = interfaces
        .iter()
        .position(|interface| interface.device == device);
    let index = index.unwrap_or_else(|| {
        let device = device.to_owned();
        interfaces.push(OspfInterface {
            device,
            cost: None,
            neighbours: Vec::new(),
        });
        interfaces.len() - 1
    });
    &mut interfaces[index]
}

/// The state without the neighbour's role: `Full` of `Full/PtP`, `Full/-`, `2-Way/DROther`.
fn state(text: &str) -> String {
    text.split('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::control::event::OspfNeighbour;
    use crate::netlink::netns::{Process, await_event, in_netns, ip};

    fn interface(device: &str, ids: &[u8]) -> OspfInterface {
        let neighbours = ids
            .iter()
            .map(|&id| OspfNeighbour {
                router_id: [10, 0, 0, id].into(),
                address: [10, 1, 0, id].into(),
                state: "Full".into(),
            })
            .collect();
        OspfInterface {
            device: device.into(),
            cost: Some(10),
            neighbours,
        }
    }

    #[test]
    fn order_does_not_count() {
        let mut first = [interface("b", &[2, 1]), interface("a", &[])];
        let mut second = [interface("a", &[]), interface("b", &[1, 2])];
        sort(&mut first);
        sort(&mut second);
        assert_eq!(first, second);
    }

    /// FRR's two daemons are asked for the families that there are.
    #[test]
    fn each_family_has_its_daemon() {
        let of = |remotes: &[&str]| -> Vec<String> {
            let mut text = "[frr]\n[[bond]]\nname = \"nb0\"\n".to_owned();
            for (n, remote) in remotes.iter().enumerate() {
                let local = remote.replace('6', "5");
                text += &format!(
                    "[[bond.path]]\nname = \"p{n}\"\nlocal = \"{local}\"\nremote = \"{remote}\"\n"
                );
            }
            let config = Config::parse(&text, "f").unwrap();
            Daemon::of(&config)
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        let (two, three) = ("FRR by 'vtysh'", "FRR's ospf6d by 'vtysh'");
        assert_eq!(of(&["10.0.0.6"]), [two]);
        assert_eq!(of(&["fd00::6"]), [three]);
        assert_eq!(of(&["fd00::6", "10.0.0.6"]), [two, three]);
    }

    #[test]
    fn the_role_is_no_part_of_the_state() {
        assert_eq!(state("Full/PtP"), "Full");
        assert_eq!(state("2-Way/DROther"), "2-Way");
        assert_eq!(state("Init"), "Init");
        assert_eq!(state(""), "");
    }

    #[tokio::test]
    async fn a_daemon_that_is_silent_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bird.ctl");
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let vtysh = ["sh", "-c", "exec sleep 60"].map(str::to_owned).to_vec();
        let six = Daemon::Frr6 {
            vtysh: vtysh.clone(),
        };
        let daemons = [Daemon::Bird { socket }, Daemon::Frr { vtysh }, six];
        for answer in join_all(daemons.iter().map(Daemon::interfaces)).await {
            let error = answer.unwrap_err().to_string();
            assert!(error.contains("within 3s"), "{error}");
        }
    }

    /// A daemon that answers, fails, and answers otherwise: one event for each change.
    #[tokio::test]
    async fn changes_are_sent_once() {
        let directory = tempfile::tempdir().unwrap();
        let reply = directory.path().join("reply");
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/ospf/");
        let answer_with = |name: &str| {
            // At once, or half of it might be read.
            let next = directory.path().join("next");
            std::fs::copy(format!("{fixtures}{name}"), &next).unwrap();
            std::fs::rename(&next, &reply).unwrap();
        };
        let script = format!("exec cat {}", reply.display());
        let daemons = vec![Daemon::Frr {
            vtysh: vec!["sh".into(), "-c".into(), script],
        }];

        let (sender, mut events) = mpsc::channel(4);
        answer_with("frr-full.txt");
        let _poller = Poller::spawn(daemons, Duration::from_millis(10), sender);
        let mut next = async || {
            let event = timeout(Duration::from_secs(10), events.recv())
                .await
                .unwrap()
                .unwrap();
            let Event::Ospf(interfaces) = event else {
                panic!("{event:?}")
            };
            interfaces
        };
        let neighbours = |interfaces: &[OspfInterface]| -> Vec<usize> {
            interfaces
                .iter()
                .map(|interface| interface.neighbours.len())
                .collect()
        };
        assert_eq!(neighbours(&next().await), [0, 1, 1]);
        answer_with("frr-one-lost.txt");
        assert_eq!(neighbours(&next().await), [0, 1, 0]);
        std::fs::remove_file(&reply).unwrap();
        assert_eq!(next().await, []);
        answer_with("frr-full.txt");
        assert_eq!(neighbours(&next().await), [0, 1, 1]);
    }

    /// Starts BIRD with OSPF on one device; without routes of its own, so that all may run beside
    /// each other.
    fn bird(directory: &Path, name: &str, router_id: &str, device: &str) -> (PathBuf, String) {
        let config = format!(
            "router id {router_id};
             protocol device {{}}
             protocol ospf v2 seed {{
               tick 1;
               area 0 {{ interface \"{device}\" {{ type ptp; cost 10; hello 1; dead 4; }}; }};
             }}"
        );
        let (socket, file) = (
            directory.join(format!("{name}.ctl")),
            directory.join(format!("{name}.conf")),
        );
        std::fs::write(&file, config).unwrap();
        let command = format!("bird -f -c {} -s {}", file.display(), socket.display());
        (socket, command)
    }

    /// Starts FRR's zebra and ospfd with OSPF on one device.
    fn frr(directory: &Path, router_id: &str, device: &str) -> (Vec<String>, Vec<Process>) {
        let config = format!(
            "interface {device}
              ip ospf area 0
              ip ospf network point-to-point
              ip ospf cost 10
              ip ospf hello-interval 1
              ip ospf dead-interval 4
             exit
             router ospf
              ospf router-id {router_id}
             exit
             "
        );
        let file = directory.join("ospfd.conf");
        std::fs::write(&file, config).unwrap();
        let owner = Command::new("chown")
            .args(["-R", "frr:frr"])
            .arg(directory)
            .status()
            .unwrap();
        assert!(owner.success());
        let place = directory.display();
        let daemons = [
            ("zebra", "/dev/null".to_owned()),
            ("ospfd", file.display().to_string()),
        ];
        let daemons = daemons.map(|(daemon, config)| {
            let arguments = format!(
                "-A 127.0.0.1 -P 0 -z {place}/zserv.api --vty_socket {place} -i {place}/{daemon}.pid \
                 -f {config}"
            );
            let mut command = Command::new(format!("/usr/lib/frr/{daemon}"));
            Process::spawn(command.args(arguments.split_whitespace()))
        });
        let vtysh = vec!["vtysh".into(), "--vty_socket".into(), place.to_string()];
        (vtysh, daemons.into())
    }

    /// Follows a real adjacency with a BIRD in another namespace until that freezes, and then the
    /// death of the daemon itself.
    async fn adjacency(directory: &Path, start: impl FnOnce() -> (Daemon, Vec<Process>)) {
        let (_, command) = bird(directory, "peer", "10.65.1.1", "wg-m1-a");
        let mut peer = Process::in_other_netns(&command);
        ip(&format!(
            "link add wg-a-m1 type veth peer name wg-m1-a netns {}",
            peer.id()
        ));
        ip("addr add 10.65.0.2/30 dev wg-a-m1");
        ip("link set wg-a-m1 up");
        peer.ip("addr add 10.65.0.1/30 dev wg-m1-a");
        peer.ip("link set wg-m1-a up");
        peer.proceed();
        let (daemon, processes) = start();

        let (sender, mut events) = mpsc::channel(4);
        let _poller = Poller::spawn(vec![daemon], Duration::from_millis(100), sender);
        let neighbours = |event: &Event| {
            let Event::Ospf(interfaces) = event else {
                return None;
            };
            let interface = interfaces
                .iter()
                .find(|interface| interface.device == "wg-a-m1")?;
            assert_eq!(interface.cost, Some(10));
            Some(interface.neighbours.clone())
        };
        let full = OspfNeighbour {
            router_id: [10, 65, 1, 1].into(),
            address: [10, 65, 0, 1].into(),
            state: "Full".into(),
        };
        await_event(&mut events, "full adjacency", |event| {
            (neighbours(event)? == [full.clone()]).then_some(())
        })
        .await;
        // Until the dead interval of 4 s has passed.
        peer.freeze();
        await_event(&mut events, "end of the adjacency", |event| {
            neighbours(event)?.is_empty().then_some(())
        })
        .await;
        drop(processes);
        await_event(&mut events, "end of the daemon", |event| {
            (*event == Event::Ospf(Vec::new())).then_some(())
        })
        .await;
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn bird_tells_of_a_real_adjacency() {
        in_netns(async || {
            let directory = tempfile::tempdir().unwrap();
            adjacency(directory.path(), || {
                let (socket, command) = bird(directory.path(), "a", "10.65.2.2", "wg-a-m1");
                let mut words = command.split_whitespace();
                let mut command = Command::new(words.next().unwrap());
                (
                    Daemon::Bird { socket },
                    vec![Process::spawn(command.args(words))],
                )
            })
            .await;
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn frr_tells_of_a_real_adjacency() {
        in_netns(async || {
            // zebra and ospfd run as user frr.
            let directory = tempfile::tempdir().unwrap();
            adjacency(directory.path(), || {
                let (vtysh, processes) = frr(directory.path(), "10.65.2.2", "wg-a-m1");
                (Daemon::Frr { vtysh }, processes)
            })
            .await;
        });
    }
}
