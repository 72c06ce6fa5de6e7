//! What the OSPF daemons know and the kernel does not: neighbours and costs.
//!
//! Hints only: what becomes of a packet is asked of the kernel ([`crate::netlink`]).

pub mod bird;
pub mod frr;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

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
    /// FRR by this command, which must take vtysh's `-c`: `["vtysh"]`, `["vtysh", "-N", "a"]`, ...
    Frr { vtysh: Vec<String> },
}

impl Daemon {
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
            }
        };
        match timeout(ANSWER, answer).await {
            Ok(answer) => answer,
            Err(_) => anyhow::bail!("no complete answer within {ANSWER:?}"),
        }
    }

    /// What to do when it does not answer.
    fn advice(&self) -> &'static str {
        match self {
            Self::Bird { .. } => {
                "is bird running, and is this its control socket (bird -s), readable for netbond?"
            }
            Self::Frr { .. } => {
                "are zebra and ospfd running, and does this command work when typed by netbond's \
                 user (group frrvty)?"
            }
        }
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bird { socket } => write!(f, "BIRD at {}", socket.display()),
            Self::Frr { vtysh } => write!(f, "FRR by '{}'", vtysh.join(" ")),
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
        Self { task: tokio::spawn(run(daemons, period, events)) }
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
        interface.neighbours.sort_by_key(|neighbour| (neighbour.router_id, neighbour.address));
    }
    interfaces.sort_by(|a, b| a.device.cmp(&b.device));
}

/// The interface of that name, added where it is new.
fn entry<'a>(interfaces: &'a mut Vec<OspfInterface>, device: &str) -> &'a mut OspfInterface {
    let index = interfaces.iter().position(|interface| interface.device == device);
    let index = index.unwrap_or_else(|| {
        let device = device.to_owned();
        interfaces.push(OspfInterface { device, cost: None, neighbours: Vec::new() });
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::control::event::OspfNeighbour;

    fn interface(device: &str, ids: &[u8]) -> OspfInterface {
        let neighbours = ids
            .iter()
            .map(|&id| OspfNeighbour {
                router_id: [10, 0, 0, id].into(),
                address: [10, 1, 0, id].into(),
                state: "Full".into(),
            })
            .collect();
        OspfInterface { device: device.into(), cost: Some(10), neighbours }
    }

    #[test]
    fn order_does_not_count() {
        let mut first = [interface("b", &[2, 1]), interface("a", &[])];
        let mut second = [interface("a", &[]), interface("b", &[1, 2])];
        sort(&mut first);
        sort(&mut second);
        assert_eq!(first, second);
    }

    #[test]
    fn the_role_is_no_part_of_the_state() {
        assert_eq!(state("Full/PtP"), "Full");
        assert_eq!(state("2-Way/DROther"), "2-Way");
        assert_eq!(state("Init"), "Init");
        assert_eq!(state(""), "");
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
        let script = directory.path().join("vtysh");
        std::fs::write(&script, format!("#!/bin/sh\nexec cat {}\n", reply.display())).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let daemons = vec![Daemon::Frr { vtysh: vec![script.display().to_string()] }];

        let (sender, mut events) = mpsc::channel(4);
        answer_with("frr-full.txt");
        let _poller = Poller::spawn(daemons, Duration::from_millis(10), sender);
        let mut next = async || {
            let event = timeout(Duration::from_secs(10), events.recv()).await.unwrap().unwrap();
            let Event::Ospf(interfaces) = event else { panic!("{event:?}") };
            interfaces
        };
        let neighbours = |interfaces: &[OspfInterface]| -> Vec<usize> {
            interfaces.iter().map(|interface| interface.neighbours.len()).collect()
        };
        assert_eq!(neighbours(&next().await), [0, 1, 1]);
        answer_with("frr-one-lost.txt");
        assert_eq!(neighbours(&next().await), [0, 1, 0]);
        std::fs::remove_file(&reply).unwrap();
        assert_eq!(next().await, []);
        answer_with("frr-full.txt");
        assert_eq!(neighbours(&next().await), [0, 1, 1]);
    }
}
