//! What was measured, and its statistics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cost::Way;
use super::scenario::Scenario;
use super::system::System;
use super::traffic::Kind;

/// A quantity that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Measure {
    /// Payload received over TCP.
    Goodput(Kind),
    /// TCP segments sent again.
    Retransmits(Kind),
    /// TCP segments that came before an earlier one.
    OutOfOrder(Kind),
    /// Fragments that the sender's packets left in: none, where MTUs fit.
    Fragments(Kind),
    /// Payload received over UDP.
    UdpGoodput,
    UdpLost,
    /// Datagrams that came after a later one.
    UdpLate,
    /// Round trips beside a TCP stream, over the median without it.
    PingMedian,
    PingP99,
    /// Packets lost while a path is dead.
    Lost,
    /// From the failure to the last lost packet before the repair.
    Recovery,
    /// Packets lost after the repair.
    LostAfter,
    /// The longest time without a packet.
    Gap,
    /// TCP while a path is dead.
    OutageGoodput,
    /// Packets lost while paths die and return.
    FailuresLost,
    /// The longest time without a packet then.
    FailuresGap,
    /// TCP meanwhile.
    FailuresGoodput,
    /// TCP before a path becomes slower.
    DropBefore,
    /// TCP in the seconds after that.
    DropAfter,
    /// From then until it has its share of the rates that are left.
    DropRecovery,
    /// What a packet's whole way costs.
    Packet(Way),
    /// Of it, bonding and encapsulation.
    Cost(Way),
    /// The latter, as a multiple of balance-rr's.
    Ratio(Way),
    /// Fragments by packet.
    PacketFragments(Way),
    /// What the system uses of the processor without traffic.
    Background,
}

/// What the clock tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    /// Instructions of the one processor.
    Counted,
    /// Nanoseconds.
    Real,
}

impl Measure {
    pub(super) fn name(self) -> String {
        match self {
            Self::Goodput(kind) => format!("tcp-{}-goodput", kind.name()),
            Self::Retransmits(kind) => format!("tcp-{}-retransmits", kind.name()),
            Self::OutOfOrder(kind) => format!("tcp-{}-out-of-order", kind.name()),
            Self::Fragments(kind) => format!("tcp-{}-fragments", kind.name()),
            Self::PacketFragments(way) => format!("{}-fragments", way.name()),
            Self::UdpGoodput => "udp-goodput".to_owned(),
            Self::UdpLost => "udp-lost".to_owned(),
            Self::UdpLate => "udp-late".to_owned(),
            Self::PingMedian => "ping-median".to_owned(),
            Self::PingP99 => "ping-p99".to_owned(),
            Self::Lost => "outage-lost".to_owned(),
            Self::Recovery => "outage-recovery".to_owned(),
            Self::LostAfter => "return-lost".to_owned(),
            Self::Gap => "outage-gap".to_owned(),
            Self::OutageGoodput => "outage-goodput".to_owned(),
            Self::FailuresLost => "failures-lost".to_owned(),
            Self::FailuresGap => "failures-gap".to_owned(),
            Self::FailuresGoodput => "failures-goodput".to_owned(),
            Self::DropBefore => "drop-before".to_owned(),
            Self::DropAfter => "drop-after".to_owned(),
            Self::DropRecovery => "drop-recovery".to_owned(),
            Self::Packet(way) => format!("{}-packet", way.name()),
            Self::Cost(way) => format!("{}-cost", way.name()),
            Self::Ratio(way) => format!("{}-ratio", way.name()),
            Self::Background => "background".to_owned(),
        }
    }

    fn unit(self, clock: Clock) -> &'static str {
        match self {
            Self::Goodput(_)
            | Self::UdpGoodput
            | Self::OutageGoodput
            | Self::FailuresGoodput
            | Self::DropBefore
            | Self::DropAfter => "Mbit/s",
            Self::Retransmits(_) | Self::OutOfOrder(_) => "segments",
            Self::Fragments(_) => "fragments",
            Self::PacketFragments(_) => "by packet",
            Self::LostAfter | Self::FailuresLost => "packets",
            Self::UdpLost | Self::UdpLate | Self::Lost | Self::Background => "%",
            Self::PingMedian
            | Self::PingP99
            | Self::Recovery
            | Self::Gap
            | Self::FailuresGap
            | Self::DropRecovery => "ms",
            Self::Packet(_) | Self::Cost(_) => match clock {
                Clock::Counted => "instructions",
                Clock::Real => "ns",
            },
            Self::Ratio(_) => "of balance-rr",
        }
    }
}

/// One quantity of one system in one scenario: an element of the JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the system.
    pub system: String,
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the quantity.
    pub measure: String,
    /// Its unit.
    pub unit: String,
    /// How often it was measured.
    pub runs: usize,
    /// The least.
    pub min: f64,
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The most.
    pub max: f64,
    /// The median by what the paths carry; `None` where that has no meaning.
    pub ideal_share: Option<f64>,
}

/// The figures so far.
#[derive(Debug)]
pub(super) struct Figures {
    clock: Clock,
    values: BTreeMap<(Scenario, System, Measure), Values>,
}

/// A quantity as it came out in each run, and what it would be at best.
#[derive(Debug, Default)]
struct Values {
    runs: Vec<f64>,
    ideal: Option<f64>,
}

impl Figures {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            values: BTreeMap::new(),
        }
    }

    /// Adds the value of a run.
    pub(super) fn add(&mut self, at: (Scenario, System), measure: Measure, value: f64) {
        self.insert(at, measure, value, None);
    }

    /// Adds the value of a run, and what it would be at best.
    pub(super) fn add_of(
        &mut self,
        at: (Scenario, System),
        measure: Measure,
        value: f64,
        ideal: f64,
    ) {
        self.insert(at, measure, value, Some(ideal).filter(|ideal| *ideal > 0.0));
    }

    fn insert(&mut self, at: (Scenario, System), measure: Measure, value: f64, ideal: Option<f64>) {
        let entry = self.values.entry((at.0, at.1, measure)).or_default();
        entry.runs.push(value);
        entry.ideal = ideal;
    }

    /// The statistics, by scenario and system.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (&(scenario, system, measure), values) in &self.values {
            let row = |measure: Measure, values: &[f64], ideal: Option<f64>| {
                let (min, median, max) = spread(values);
                Row {
                    system: system.name().to_owned(),
                    scenario: scenario.name().to_owned(),
                    measure: measure.name(),
                    unit: measure.unit(self.clock).to_owned(),
                    runs: values.len(),
                    min,
                    median,
                    max,
                    ideal_share: ideal.map(|ideal| median / ideal),
                }
            };
            rows.push(row(measure, &values.runs, values.ideal));
            if let Measure::Cost(way) = measure
                && let Some(others) = self.values.get(&(scenario, System::BalanceRr, measure))
            {
                let (_, reference, _) = spread(&others.runs);
                let ratios: Vec<f64> = values.runs.iter().map(|value| value / reference).collect();
                rows.push(row(Measure::Ratio(way), &ratios, None));
            }
        }
        rows
    }
}

/// The least, the median and the most of at least one value.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    };
    (sorted[0], median, sorted[sorted.len() - 1])
}

/// A quantile of sorted values, by the nearest rank.
pub(super) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0]), (1.0, 2.5, 4.0));
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), Some(198.0));
        assert_eq!(quantile(&values[..1], 0.5), Some(1.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn the_json_is_as_documented() {
        let mut figures = Figures::new(Clock::Counted);
        let at = (Scenario::Equal2, System::Netbond);
        figures.add_of(at, Measure::Goodput(Kind::Cubic), 17.0, 20.0);
        figures.add_of(at, Measure::Goodput(Kind::Cubic), 19.0, 20.0);
        figures.add(at, Measure::UdpLost, 0.5);
        assert_eq!(
            serde_json::to_string(&figures.rows()).unwrap(),
            r#"[{"system":"netbond","scenario":"equal2","measure":"tcp-cubic-goodput","unit":"Mbit/s","runs":2,"min":17.0,"median":18.0,"max":19.0,"ideal_share":0.9},{"system":"netbond","scenario":"equal2","measure":"udp-lost","unit":"%","runs":1,"min":0.5,"median":0.5,"max":0.5,"ideal_share":null}]"#
        );
    }

    #[test]
    fn costs_are_held_against_the_recipe() {
        let mut figures = Figures::new(Clock::Real);
        let way = Measure::Cost(Way::Forward);
        for (system, cost) in [(System::BalanceRr, 2000.0), (System::Netbond, 1000.0)] {
            figures.add((Scenario::CpuSmall, system), way, cost);
        }
        let rows = figures.rows();
        let ratio = |system: &str| {
            let mut found = rows.iter().filter(|row| row.measure == "forward-ratio");
            found.find(|row| row.system == system).map(|row| row.median)
        };
        assert_eq!(
            (ratio("balance-rr"), ratio("netbond")),
            (Some(1.0), Some(0.5))
        );
        assert_eq!(rows[0].unit, "ns");
    }
}
