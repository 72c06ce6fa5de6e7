//! What the paths are like, and what is done to them.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use super::frame::{Encap, MTU};
use super::system::System;
use crate::lab::Lab;
use crate::namespace::iproute2;
use crate::topology::{Ospf, Topology, underlay_device};

/// What the paths are like, and what is done to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Scenario {
    /// Two paths of 10 Mbit/s and 10 ms
    #[value(name = "equal2")]
    Equal2,
    /// Two paths of 2 Mbit/s and 10 ms: for machines that carry no more, where the clock is real
    #[value(name = "thin2")]
    Thin2,
    /// Four paths of 5 Mbit/s and 10 ms
    #[value(name = "equal4")]
    Equal4,
    /// 16 and 4 Mbit/s, 10 ms
    #[value(name = "rates-4to1")]
    Rates4To1,
    /// ... between hosts behind the routers
    #[value(name = "rates-4to1-hosts")]
    Rates4To1Hosts,
    /// 10, 5 and 1 Mbit/s, 10 ms
    #[value(name = "rates-10-5-1")]
    Rates10To5To1,
    /// Two paths of 10 Mbit/s, 5 and 25 ms
    #[value(name = "latency-5-25")]
    Latency5To25,
    /// ... between hosts behind the routers
    #[value(name = "latency-5-25-hosts")]
    Latency5To25Hosts,
    /// 16 Mbit/s and 5 ms, 4 Mbit/s and 25 ms with 0.1 % random loss
    Unlike,
    /// As equal2, with 1 % random loss on the first path
    #[value(name = "loss-1")]
    Loss1,
    /// As equal2; the first middle router is silently dead for a minute
    Failure,
    /// As equal2; the first middle router is silently dead, then the second one, again and again
    Failures,
    /// As equal2; the first path drops to a quarter of its rate in the middle of a stream
    Drop,
    /// Two paths without limits: TCP as fast as the processor goes
    Unshaped,
    /// Two paths without limits, large packets: the processor is the bottleneck
    CpuLarge,
    /// Two paths without limits, small packets
    CpuSmall,
}

/// What is sent in a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// TCP and UDP through shaped paths.
    Traffic,
    /// A thin stream through an outage.
    Outage,
    /// A thin stream through many short ones.
    Failures,
    /// A TCP stream over a path that becomes slower.
    Drop,
    /// UDP datagrams with so many bytes of payload, counted by the instructions they take.
    Cost {
        /// Bytes.
        payload: u32,
    },
}

/// One path as netem makes it, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    /// Ethernet frames included, kbit/s.
    pub(super) kbit: u32,
    /// One way.
    pub(super) delay: Duration,
    /// Share of packets lost at random, 0 to 1.
    pub(super) loss: f64,
}

impl Line {
    const fn new(mbit: u32, delay_ms: u64) -> Self {
        Self {
            kbit: mbit * 1000,
            delay: Duration::from_millis(delay_ms),
            loss: 0.0,
        }
    }

    pub(super) const fn with_loss(mut self, loss: f64) -> Self {
        self.loss = loss;
        self
    }

    /// Its share of a bond's packets, as netbond's configuration has it: Mbit/s.
    pub(super) fn weight(self) -> u32 {
        (self.kbit / 1000).max(1)
    }

    /// From now on the path, counted from 1, is like this, in both directions. What waits in its queues
    /// leaves as it would have.
    pub(super) fn replace_at(self, lab: &Lab, path: u8) -> Result<()> {
        let middle = format!("M{path}");
        let netns = lab.router(&middle).netns();
        ["A", "B"].iter().try_for_each(|end| {
            let device = underlay_device(&middle, end);
            let words = format!("-n {netns} qdisc change dev {device} root {}", self.netem());
            iproute2("tc", &words.split_whitespace().collect::<Vec<_>>()).map(drop)
        })
    }

    /// Packets that netem may hold: twice the product of rate and round trip, in full frames, and not
    /// less than 100, as small queues of real devices. Those that only wait for their delay count.
    fn limit(self) -> u32 {
        let bytes = f64::from(self.kbit) * 1000.0 / 8.0 * 2.0 * self.delay.as_secs_f64();
        let full = f64::from(MTU) + 74.0;
        ((2.0 * bytes / full).ceil() as u32).max(100)
    }

    /// The words of tc-netem(8).
    fn netem(self) -> String {
        let mut words = format!(
            "netem limit {} delay {}us rate {}kbit",
            self.limit(),
            self.delay.as_micros(),
            self.kbit
        );
        if self.loss > 0.0 {
            words += &format!(" loss {}%", self.loss * 100.0);
        }
        words
    }
}

impl Scenario {
    /// Its name on the command line and in the figures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Equal2 => "equal2",
            Self::Thin2 => "thin2",
            Self::Equal4 => "equal4",
            Self::Rates4To1 => "rates-4to1",
            Self::Rates4To1Hosts => "rates-4to1-hosts",
            Self::Rates10To5To1 => "rates-10-5-1",
            Self::Latency5To25 => "latency-5-25",
            Self::Latency5To25Hosts => "latency-5-25-hosts",
            Self::Unlike => "unlike",
            Self::Loss1 => "loss-1",
            Self::Failure => "failure",
            Self::Failures => "failures",
            Self::Drop => "drop",
            Self::Unshaped => "unshaped",
            Self::CpuLarge => "cpu-large",
            Self::CpuSmall => "cpu-small",
        }
    }

    pub(super) fn paths(self) -> u8 {
        match self {
            Self::Equal4 => 4,
            Self::Rates10To5To1 => 3,
            Self::Equal2
            | Self::Thin2
            | Self::Rates4To1
            | Self::Rates4To1Hosts
            | Self::Latency5To25
            | Self::Latency5To25Hosts
            | Self::Unlike
            | Self::Loss1
            | Self::Failure
            | Self::Failures
            | Self::Drop
            | Self::Unshaped
            | Self::CpuLarge
            | Self::CpuSmall => 2,
        }
    }

    /// Its paths in their order; none are shaped where the processor is to be the bottleneck.
    ///
    /// They add up to 20 Mbit/s, or less: the emulated processor carries no more than twice that.
    pub(super) fn lines(self) -> Vec<Line> {
        match self {
            Self::Equal2 | Self::Failure | Self::Failures | Self::Drop => {
                vec![Line::new(10, 10); 2]
            }
            Self::Thin2 => vec![Line::new(2, 10); 2],
            Self::Equal4 => vec![Line::new(5, 10); 4],
            Self::Rates4To1 | Self::Rates4To1Hosts => vec![Line::new(16, 10), Line::new(4, 10)],
            Self::Rates10To5To1 => vec![Line::new(10, 10), Line::new(5, 10), Line::new(1, 10)],
            Self::Latency5To25 | Self::Latency5To25Hosts => {
                vec![Line::new(10, 5), Line::new(10, 25)]
            }
            Self::Unlike => vec![Line::new(16, 5), Line::new(4, 25).with_loss(0.001)],
            Self::Loss1 => vec![Line::new(10, 10).with_loss(0.01), Line::new(10, 10)],
            Self::Unshaped | Self::CpuLarge | Self::CpuSmall => Vec::new(),
        }
    }

    pub(super) fn work(self) -> Work {
        match self {
            Self::Equal2
            | Self::Thin2
            | Self::Equal4
            | Self::Rates4To1
            | Self::Rates4To1Hosts
            | Self::Rates10To5To1
            | Self::Latency5To25
            | Self::Latency5To25Hosts
            | Self::Unlike
            | Self::Loss1
            | Self::Unshaped => Work::Traffic,
            Self::Failure => Work::Outage,
            Self::Failures => Work::Failures,
            Self::Drop => Work::Drop,
            // The same for all, so the longest that fits the one with the least room.
            Self::CpuLarge => Work::Cost {
                payload: Encap::Gretap.datagram(),
            },
            Self::CpuSmall => Work::Cost { payload: 64 },
        }
    }

    /// Whether traffic goes between hosts behind the routers that bond.
    pub(super) fn has_hosts(self) -> bool {
        matches!(self, Self::Rates4To1Hosts | Self::Latency5To25Hosts)
    }

    /// Whether its paths' rates are known to differ.
    fn has_unlike_rates(self) -> bool {
        self.lines()
            .windows(2)
            .any(|pair| pair[0].kbit != pair[1].kbit)
    }

    /// Whether it is measured where the user names none.
    pub(super) fn is_default(self) -> bool {
        // It tells nothing that equal2 does not.
        self != Self::Thin2
    }

    /// Whether a system belongs to the scenario where the user names none.
    pub(super) fn concerns(self, system: System) -> bool {
        match system {
            System::BalanceRr
            | System::Netbond
            | System::NetbondOrder
            | System::NetbondAdaptive => true,
            System::Path | System::Mptcp => !self.has_hosts(),
            // One path, as it is under netbond.
            System::NetbondBackup => self == Self::Unshaped,
            // With equal ones it is netbond-order.
            System::NetbondWeighted => self.has_unlike_rates(),
            // It gives up a path's rate for that alone.
            System::NetbondDuplicate => self == Self::Failures,
            // It differs from netbond in what is around each packet.
            System::NetbondGretap => {
                matches!(self, Self::Equal2 | Self::CpuLarge | Self::CpuSmall)
            }
            // It differs from balance-rr in what it does about failures.
            System::BalanceRrArp => matches!(self, Self::Equal2 | Self::Failure | Self::Failures),
            // Flows to paths by hash: all equal paths tell the same.
            System::BalanceXor | System::Ecmp => !matches!(self, Self::Equal4),
            // It differs from balance-rr in its driver.
            System::TeamRr => matches!(
                self,
                Self::Equal2
                    | Self::Rates4To1
                    | Self::Loss1
                    | Self::Failure
                    | Self::CpuLarge
                    | Self::CpuSmall
            ),
        }
    }

    /// What a lab for scenarios with so many paths is built from: routers with the timers of the field.
    pub(super) fn topology(paths: u8) -> Topology {
        let mut topology = Topology::parallel(paths).with_ospf(Ospf::field());
        for link in &mut topology.links {
            link.mtu = MTU;
        }
        topology
    }

    /// Shapes every path, at its middle router and in both directions: the bottleneck lies beyond
    /// the routers that bond.
    pub(super) fn shape(self, lab: &Lab) -> Result<()> {
        (1..=self.paths()).try_for_each(|number| self.shape_path(lab, number))
    }

    /// Shapes one path, counted from 1. What waits in its queues is lost.
    pub(super) fn shape_path(self, lab: &Lab, number: u8) -> Result<()> {
        let middle = format!("M{number}");
        let lines = self.lines();
        let line = lines.get(usize::from(number) - 1);
        ["A", "B"]
            .iter()
            .try_for_each(|end| shape(lab, &middle, &underlay_device(&middle, end), line))
    }
}

/// Gives a device a line's queueing discipline, or its default again.
fn shape(lab: &Lab, router: &str, device: &str, line: Option<&Line>) -> Result<()> {
    let netns = lab.router(router).netns();
    let root = iproute2("tc", &["-n", netns, "qdisc", "show", "dev", device, "root"])?;
    // Deleted first, so that nothing of an earlier one stays.
    if root.starts_with("qdisc netem ") {
        iproute2("tc", &["-n", netns, "qdisc", "del", "dev", device, "root"])?;
    }
    if let Some(line) = line {
        let words = format!(
            "-n {netns} qdisc replace dev {device} root {}",
            line.netem()
        );
        iproute2("tc", &words.split_whitespace().collect::<Vec<_>>())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for scenario in Scenario::value_variants() {
            let value = scenario.to_possible_value().expect("no scenario is hidden");
            assert_eq!(value.get_name(), scenario.name());
        }
    }

    #[test]
    fn a_queue_holds_two_round_trips_or_a_hundred_packets() {
        assert_eq!(Line::new(10, 10).limit(), 100);
        // 100 Mbit/s, 50 ms each way: 1.25 MB on the way, 826 full frames.
        assert_eq!(Line::new(100, 50).limit(), 1652);
        assert_eq!(
            Line::new(10, 10).with_loss(0.01).netem(),
            "netem limit 100 delay 10000us rate 10000kbit loss 1%"
        );
        let unlike = Scenario::Unlike.lines()[1].netem();
        assert!(unlike.ends_with(" rate 4000kbit loss 0.1%"), "{unlike}");
        let dead = Line::new(10, 10).with_loss(1.0).netem();
        assert!(dead.ends_with(" loss 100%"), "{dead}");
    }

    #[test]
    fn every_shaped_path_has_its_line() {
        for &scenario in Scenario::value_variants() {
            let lines = scenario.lines();
            assert!(lines.is_empty() || lines.len() == usize::from(scenario.paths()));
            Scenario::topology(scenario.paths()).validate().unwrap();
        }
    }

    #[test]
    fn weights_are_wanted_where_rates_differ() {
        let weights = |scenario: Scenario| {
            let lines = scenario.lines();
            lines.into_iter().map(Line::weight).collect::<Vec<_>>()
        };
        assert_eq!(weights(Scenario::Rates10To5To1), [10, 5, 1]);
        assert_eq!(weights(Scenario::Unlike), [16, 4]);
        assert!(Scenario::Unlike.concerns(System::NetbondWeighted));
        for equal in [Scenario::Equal2, Scenario::Drop, Scenario::CpuSmall] {
            assert!(!equal.concerns(System::NetbondWeighted), "{equal:?}");
        }
    }
}
