//! What is compared, and what goes wrong.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use crate::impair::Impairment;
use crate::lab::Lab;
use crate::topology::{Ospf, Topology};

/// Who sends, the middle router whose path fails, and that of the other path.
pub(super) const SENDER: &str = "A";
pub(super) const RECEIVER: &str = "B";
pub(super) const VICTIM: &str = "M1";
const OTHER: &str = "M2";

/// The path over the victim.
pub(super) const PATH: &str = "via-m1";

/// Without it a path that dies again and again is held down, longer each time, which is its purpose:
/// repeated outages would measure that.
pub(super) const HOLD_DOWN: &str = "hold_down = 0";

/// A flapping path is dead and alive for as long each.
const FLAP: Duration = Duration::from_millis(200);
const FLAPS: u32 = 25;

/// A system that is to notice failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// netbond with its probes, OSPF with the timers of the field
    Netbond,
    /// The same bond without probes: routes alone steer it
    Ospf,
    /// ... and BFD watches OSPF's neighbours, 3 x 50 ms
    OspfBfd,
}

impl System {
    pub(super) fn topology(self) -> Topology {
        let topology = Topology::reference().with_bond_line(HOLD_DOWN);
        let (bfd, probes) = match self {
            Self::Netbond => (false, true),
            Self::Ospf => (false, false),
            Self::OspfBfd => (true, false),
        };
        let ospf = Ospf {
            bfd,
            ..Ospf::field()
        };
        let topology = topology.with_ospf(ospf);
        if probes {
            topology
        } else {
            topology.with_bond_line("probe_interval = 0")
        }
    }

    /// How long it may take to notice that a path is dead.
    pub(super) fn patience(self) -> Duration {
        match self {
            Self::Netbond | Self::OspfBfd => Duration::from_secs(15),
            // The dead interval, and that of routers further away.
            Self::Ospf => Duration::from_secs(90),
        }
    }

    /// How long traffic is watched once the path was found dead: the time to find something better, and
    /// a while without losses.
    pub(super) fn aftermath(self) -> Duration {
        match self {
            Self::Netbond => Duration::from_millis(600),
            // Routes change in steps: at one end, at the other, and once more.
            Self::Ospf | Self::OspfBfd => Duration::from_secs(3),
        }
    }

    /// How many outages are measured unless the user says otherwise.
    pub(super) fn runs(self, failure: Failure) -> u32 {
        match (self, failure) {
            (Self::Netbond, Failure::Silent) => 100,
            (Self::Netbond, Failure::Oneway) => 20,
            (Self::OspfBfd, Failure::Silent | Failure::Oneway) => 10,
            (_, Failure::Flapping | Failure::Loss30) => 3,
            (Self::Netbond, _) => 10,
            (Self::OspfBfd, _) => 5,
            // Each costs the dead interval.
            (Self::Ospf, Failure::Oneway) => 4,
            (Self::Ospf, _) => 3,
        }
    }
}

/// A way for a path to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// Everything to and from the middle router is lost, no device changes its state
    Silent,
    /// Only one direction between A and the middle router is lost, each in turn
    Oneway,
    /// The middle router is switched off
    Killed,
    /// 30 % random loss between A and the middle router, in both directions
    Loss30,
    /// 200 ms longer round trip between A and the middle router
    Latency200,
    /// Silently dead and alive again every 200 ms, for 10 s
    Flapping,
    /// Both paths die silently, then one comes back
    Both,
    /// WireGuard at the middle router forgets A's key
    Key,
}

impl Failure {
    /// Whether the path's history counts: these are measured with the hold-down of the defaults and
    /// without a past.
    pub(super) fn is_damped(self) -> bool {
        matches!(self, Self::Loss30 | Self::Flapping)
    }

    /// How long traffic is watched where the path need not be found dead.
    pub(super) fn watch(self) -> Option<Duration> {
        match self {
            Self::Silent | Self::Oneway | Self::Killed | Self::Both | Self::Key => None,
            Self::Loss30 => Some(Duration::from_secs(15)),
            Self::Latency200 => Some(Duration::from_secs(5)),
            Self::Flapping => Some(Duration::from_secs(1)),
        }
    }

    /// Whether packets go on being lost for as long as the path is in use.
    pub(super) fn ends(self) -> bool {
        self != Self::Loss30
    }

    /// Whether it is complete as soon as the commands that make it are through.
    pub(super) fn is_sudden(self) -> bool {
        // That a router's namespace is removed takes longer than its processes live.
        !matches!(self, Self::Killed | Self::Flapping)
    }

    /// Makes it happen, and says when it was over already.
    pub(super) fn begin(self, lab: &Lab, turn: u32) -> Result<Option<SystemTime>> {
        match self {
            Self::Silent => lab.fail_router(VICTIM)?,
            Self::Oneway => {
                let (from, to) = direction(turn);
                lab.blackhole(from, to)?;
            }
            Self::Killed => lab.kill_router(VICTIM)?,
            Self::Loss30 => impair(
                lab,
                Impairment {
                    loss: 0.3,
                    ..Impairment::default()
                },
            )?,
            Self::Latency200 => impair(
                lab,
                Impairment {
                    // Once each way.
                    delay: Duration::from_millis(100),
                    ..Impairment::default()
                },
            )?,
            Self::Flapping => return flap(lab).map(Some),
            Self::Both => {
                lab.fail_router(VICTIM)?;
                lab.fail_router(OTHER)?;
            }
            Self::Key => lab.remove_key(VICTIM, SENDER)?,
        }
        Ok(None)
    }

    /// Mends it; of two paths, that of the victim.
    pub(super) fn end(self, lab: &mut Lab, turn: u32) -> Result<()> {
        match self {
            Self::Silent | Self::Both => lab.restore_router(VICTIM),
            Self::Oneway => {
                let (from, to) = direction(turn);
                lab.heal(from, to)
            }
            Self::Killed => lab.revive_router(VICTIM),
            Self::Loss30 | Self::Latency200 => impair(lab, Impairment::default()),
            Self::Flapping => Ok(()),
            Self::Key => lab.restore_key(VICTIM, SENDER),
        }
    }

    /// Mends what [`Failure::end`] leaves.
    pub(super) fn clean_up(self, lab: &Lab) -> Result<()> {
        if self == Self::Both {
            lab.restore_router(OTHER)?;
        }
        Ok(())
    }
}

fn direction(turn: u32) -> (&'static str, &'static str) {
    if turn.is_multiple_of(2) {
        (SENDER, VICTIM)
    } else {
        (VICTIM, SENDER)
    }
}

fn impair(lab: &Lab, impairment: Impairment) -> Result<()> {
    lab.impair(SENDER, VICTIM, impairment)?;
    lab.impair(VICTIM, SENDER, impairment)
}

/// Kills and heals the path at a fixed pace; returns when it was healed last.
fn flap(lab: &Lab) -> Result<SystemTime> {
    let start = std::time::Instant::now();
    let mut healed = SystemTime::now();
    for flap in 0..FLAPS {
        let due = start + 2 * flap * FLAP;
        super::pause_until(due)?;
        lab.fail_router(VICTIM)?;
        super::pause_until(due + FLAP)?;
        healed = SystemTime::now();
        lab.restore_router(VICTIM)?;
    }
    Ok(healed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_differ_in_what_notices() {
        for &system in System::value_variants() {
            let topology = system.topology();
            topology.validate().unwrap();
            assert_eq!((topology.ospf.hello, topology.ospf.dead), (10, 40));
            assert_eq!(topology.ospf.bfd, system == System::OspfBfd);
            let silent = topology.bonds[1]
                .lines
                .iter()
                .any(|line| line == "probe_interval = 0");
            assert_eq!(silent, system != System::Netbond);
        }
    }

    #[test]
    fn names_are_the_same_on_the_command_line_and_in_the_report() {
        for failure in Failure::value_variants() {
            let value = failure.to_possible_value().expect("no failure is hidden");
            let json = serde_json::to_string(failure).unwrap();
            assert_eq!(json, format!("{:?}", value.get_name()));
        }
    }
}
