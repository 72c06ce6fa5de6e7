//! A path becomes slower in the middle of a transfer.

use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::scenario::{Line, Scenario};
use super::system::{RECEIVER, SENDER, System};
use super::traffic::{WARM_UP, listen, pause, words};
use crate::goodput::Stream;
use crate::lab::Lab;

/// The path that becomes slower, counted from 1.
const VICTIM: u8 = 1;

/// What is left of its rate: one part of so many.
const PART: u32 = 4;

/// Measured before the drop.
const BEFORE: Duration = Duration::from_secs(5);

/// After the drop, the seconds in which a stream is measured that had time to find its new rate.
const AFTER: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(8)];

/// What waits at the drop still leaves at the old rate: a hundred packets take 121 ms.
const QUEUE: Duration = Duration::from_millis(200);

/// A stream that has so much of the ideal is back.
const BACK: f64 = 0.9;

/// What a stream achieved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    /// Payload received before it, Mbit/s.
    pub(super) before: f64,
    /// Payload received from the 2nd to the 8th second after it, Mbit/s.
    pub(super) after: f64,
    /// From the drop until the first two seconds begin that have nine tenths of the new ideal each; all
    /// the time that was watched if there were none.
    pub(super) back: Duration,
}

/// The paths after the drop.
pub(super) fn lines_after(mut lines: Vec<Line>) -> Vec<Line> {
    for line in lines.iter_mut().take(usize::from(VICTIM)) {
        line.kbit /= PART;
    }
    lines
}

/// Watches a stream for `time` after the drop; `ideal` is its best rate then, Mbit/s.
pub(super) fn run(
    lab: &Lab,
    system: System,
    scenario: Scenario,
    time: Duration,
    ideal: f64,
) -> Result<Transfer> {
    let (from, to) = (lab.router(SENDER), lab.router(RECEIVER));
    let target = system.target(lab)?;
    let iperf3 = words(system, &["iperf3"]);
    let listen = listen(system, &target);
    let stream = Stream::start_by(&iperf3, listen, from, to, &target, None)?;
    pause(WARM_UP + BEFORE)?;
    let dropped = SystemTime::now();
    let line = lines_after(scenario.lines())[usize::from(VICTIM) - 1];
    line.replace_at(lab, VICTIM)?;
    pause(time)?;
    let end = SystemTime::now();
    let log = stream.stop()?;
    let back = log.first_good(dropped + QUEUE, end, ideal * BACK);
    Ok(Transfer {
        before: log.mbit_per_s(dropped - BEFORE, dropped),
        after: log.mbit_per_s(dropped + AFTER[0], dropped + AFTER[1]),
        back: back
            .and_then(|back| back.duration_since(dropped).ok())
            .unwrap_or(time),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_drops_to_a_quarter() {
        let kbit = |lines: &[Line]| lines.iter().map(|line| line.kbit).collect::<Vec<_>>();
        let lines = Scenario::Drop.lines();
        assert_eq!(kbit(&lines), [10_000, 10_000]);
        assert_eq!(kbit(&lines_after(lines)), [2500, 10_000]);
    }
}
