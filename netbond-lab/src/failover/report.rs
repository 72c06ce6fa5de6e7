//! The benchmark's results: a table for people, JSON for programs.

use std::fmt;
use std::fs;
use std::time::Duration;

use serde::Serialize;

use super::case::{Failure, System};
use super::measure::Sample;
use crate::machine::Machine;
use crate::wireguard::WireGuard;

/// What a reader must know, whatever was measured.
const NOTES: [&str; 6] = [
    "ms: from just before the first command that makes the failure to the last lost packet of a UDP \
     stream A -> B -> A, one each 2 ms, beside a TCP stream of 20 Mbit/s; until all of the failure was \
     made it took MADE MS (`applied_ms`) at the most",
    "discarded: outages that the lab took more than 50 ms to make are left out and repeated",
    "lost: packets lost in a run, on average; window_lost_share: of those sent, there and back, until \
     the last lost one (loss30: in 15 s)",
    "goodput_share: one TCP stream in the second after the failure, relative to the same over the \
     surviving path alone",
    "return_ms: from just before the repair (killed: of the router being switched on) until both \
     ends use the path again, where they had stopped; both: from the repair of one path until \
     nothing is lost",
    "hold_down = 0, lest repeated outages measure the damping of flaps; loss30 and flapping: with the \
     default hold-down, each run without a past",
];

/// Everything found, and where.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it was measured.
    #[serde(flatten)]
    pub machine: Machine,
    /// Who encrypted.
    pub wireguard: Option<WireGuard>,
    /// Processes that wanted to run when it began, other than ours (1 minute's average).
    pub load: Option<f64>,
    /// What the figures mean.
    pub notes: Vec<String>,
    /// One for each system and failure.
    pub results: Vec<Row>,
}

/// How a system took a failure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Who was to notice.
    pub system: System,
    /// What happened.
    pub failure: Failure,
    /// Outages measured.
    pub runs: usize,
    /// From the failure to the last lost packet, over the runs in which losses ended.
    pub ms: Option<Spread>,
    /// Packets lost in a run, on average.
    pub lost: f64,
    /// Share of the packets sent until the last lost one, there and back, that were lost.
    pub window_lost_share: Option<f64>,
    /// TCP in the second after the failure, relative to the surviving path alone.
    pub goodput_share: Option<f64>,
    /// From the repair to the path's use.
    pub return_ms: Option<Spread>,
    /// Runs in which losses went on until the repair.
    pub not_ended: usize,
    /// Runs in which either end stopped using the path.
    pub taken_out: usize,
    /// Longest time the lab took to make the failure happen.
    pub applied_ms: Option<f64>,
    /// Further outages that the lab took too long to make.
    pub discarded: u32,
    /// TCP streams measured.
    pub tcp_runs: usize,
}

/// Figures of several runs, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// Half of the runs took no longer.
    pub median: f64,
    /// 99 of 100 runs took no longer (the longest, where there were fewer).
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Report {
    pub(super) fn new() -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            machine: Machine::this(),
            wireguard: None,
            load: load.split(' ').next().and_then(|load| load.parse().ok()),
            notes: NOTES.map(str::to_owned).to_vec(),
            results: Vec::new(),
        }
    }
}

impl Row {
    pub(super) fn new(
        system: System,
        failure: Failure,
        samples: &[Sample],
        discarded: u32,
        goodput_shares: &[f64],
    ) -> Self {
        let ended = samples.iter().filter(|sample| sample.ended);
        let last: Vec<_> = ended.map(|sample| sample.last).collect();
        let returned: Vec<_> = samples
            .iter()
            .filter_map(|sample| sample.returned)
            .collect();
        let lost: u64 = samples.iter().map(|sample| sample.window.lost).sum();
        let sent: u64 = samples.iter().map(|sample| sample.window.sent).sum();
        let applied = samples.iter().filter_map(|sample| sample.applied).max();
        Self {
            system,
            failure,
            runs: samples.len(),
            // Of both paths only the return of one tells something, and random loss has no end.
            ms: (failure.ends() && failure != Failure::Both)
                .then(|| Spread::of(&last))
                .flatten(),
            lost: round(mean(lost as f64, samples.len()).unwrap_or(0.0), 10.0),
            window_lost_share: (failure != Failure::Both && sent > 0)
                .then(|| round(lost as f64 / sent as f64, 1000.0)),
            goodput_share: mean(goodput_shares.iter().sum(), goodput_shares.len())
                .map(|share| round(share, 1000.0)),
            return_ms: Spread::of(&returned),
            not_ended: if failure.ends() {
                samples.len() - last.len()
            } else {
                0
            },
            taken_out: samples.iter().filter(|sample| sample.taken_out).count(),
            applied_ms: applied.map(ms),
            discarded,
            tcp_runs: goodput_shares.len(),
        }
    }
}

impl Spread {
    /// `None` of nothing.
    fn of(times: &[Duration]) -> Option<Self> {
        let mut times = times.to_vec();
        times.sort();
        // The nearest rank.
        let rank = |percent: usize| -> Option<f64> {
            let rank = (times.len() * percent).div_ceil(100).max(1);
            times.get(rank - 1).copied().map(ms)
        };
        Some(Self {
            min: rank(0)?,
            median: rank(50)?,
            p99: rank(99)?,
            max: rank(100)?,
        })
    }
}

fn ms(time: Duration) -> f64 {
    round(time.as_secs_f64() * 1000.0, 10.0)
}

fn round(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

fn mean(sum: f64, count: usize) -> Option<f64> {
    (count > 0).then(|| sum / count as f64)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { kernel, cpu, cores } = &self.machine;
        writeln!(f, "Linux {kernel}, {cpu}, {cores} cores")?;
        writeln!(
            f,
            "{:<9} {:<10} {:>4} {:>9} {:>9} {:>9} {:>9} {:>8} {:>6} {:>8} {:>8} {:>8} {:>7}",
            "SYSTEM",
            "FAILURE",
            "RUNS",
            "MS MIN",
            "MEDIAN",
            "P99",
            "MAX",
            "LOST",
            "SHARE",
            "GOODPUT",
            "BACK MS",
            "MAX",
            "MADE MS"
        )?;
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        for row in &self.results {
            let spread =
                |part: fn(Spread) -> f64| or_dash(row.ms.map(|ms| format!("{:.0}", part(ms))));
            let back = |part: fn(Spread) -> f64| {
                or_dash(row.return_ms.map(|ms| format!("{:.0}", part(ms))))
            };
            let percent =
                |share: Option<f64>| or_dash(share.map(|s| format!("{:.0} %", s * 100.0)));
            write!(
                f,
                "{:<9} {:<10} {:>4} {:>9} {:>9} {:>9} {:>9} {:>8.1} {:>6} {:>8} {:>8} {:>8} {:>7}",
                name(&row.system),
                name(&row.failure),
                row.runs,
                spread(|ms| ms.min),
                spread(|ms| ms.median),
                spread(|ms| ms.p99),
                spread(|ms| ms.max),
                row.lost,
                percent(row.window_lost_share),
                percent(row.goodput_share),
                back(|ms| ms.median),
                back(|ms| ms.max),
                or_dash(row.applied_ms.map(|ms| format!("{ms:.0}"))),
            )?;
            if row.taken_out < row.runs {
                write!(f, "  path left in use in {}", row.runs - row.taken_out)?;
            }
            if row.not_ended > 0 {
                write!(f, "  losses without end in {}", row.not_ended)?;
            }
            writeln!(f)?;
        }
        writeln!(f)?;
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

/// As on the command line.
pub(super) fn name<T: clap::ValueEnum>(value: &T) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Counts;

    fn sample(last: u64, ended: bool) -> Sample {
        Sample {
            last: Duration::from_millis(last),
            ended,
            window: Counts { sent: 40, lost: 30 },
            taken_out: ended,
            returned: None,
            applied: Some(Duration::from_millis(12)),
        }
    }

    #[test]
    fn ranks_are_those_of_the_runs() {
        let times: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        let spread = Spread {
            min: 1.0,
            median: 100.0,
            p99: 198.0,
            max: 200.0,
        };
        assert_eq!(Spread::of(&times), Some(spread));
        let one = Spread::of(&times[..1]).unwrap();
        assert_eq!((one.min, one.p99), (200.0, 200.0));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn runs_without_an_end_are_no_times() {
        let samples = [sample(80, true), sample(900, false)];
        let row = Row::new(System::Netbond, Failure::Silent, &samples, 0, &[]);
        assert_eq!(row.ms.unwrap().max, 80.0);
        assert_eq!((row.not_ended, row.taken_out), (1, 1));
    }

    #[test]
    fn the_json_report_has_the_documented_shape() {
        let row = Row::new(
            System::OspfBfd,
            Failure::Both,
            &[sample(80, true)],
            2,
            &[0.5],
        );
        assert_eq!(
            serde_json::to_string(&row).unwrap(),
            r#"{"system":"ospf-bfd","failure":"both","runs":1,"ms":null,"lost":30.0,"window_lost_share":null,"goodput_share":0.5,"return_ms":null,"not_ended":0,"taken_out":1,"applied_ms":12.0,"discarded":2,"tcp_runs":1}"#
        );
    }
}
