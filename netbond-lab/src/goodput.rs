//! What a TCP stream achieves from one moment to the next.

use std::io::{BufRead as _, BufReader};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::router::Router;
use crate::traffic::{Running, wait_iperf3};
use crate::wait::PATIENCE;

/// Longer than anybody measures, in seconds.
const ENDLESS: &str = "3600";

/// A TCP stream that runs until it is stopped (iperf3).
///
/// The receiver reports every 0.1 s. Its reports are stamped as they come: iperf3's JSON, written
/// at the end, does not tell the time closer than to the second, and a stream that stalls for good
/// has no end.
#[derive(Debug)]
pub(crate) struct Stream {
    server: Running<()>,
    client: Running<String>,
    intervals: Receiver<Interval>,
}

/// Bytes that arrived in some time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Interval {
    end: SystemTime,
    length: Duration,
    kbit: f64,
}

impl Stream {
    /// Starts a stream `from` -> `to` (at its `address`), as fast as it can or at so many Mbit/s, and
    /// waits until bytes arrive.
    pub(crate) fn start(
        from: &Router,
        to: &Router,
        address: &str,
        mbit_per_s: Option<u32>,
    ) -> Result<Self> {
        Self::start_by(&["iperf3"], address, from, to, address, mbit_per_s)
    }

    /// Like [`Stream::start`], with the words that iperf3 is called by, and the address where its
    /// server listens.
    pub(crate) fn start_by(
        iperf3: &[&str],
        listen: &str,
        from: &Router,
        to: &Router,
        address: &str,
        mbit_per_s: Option<u32>,
    ) -> Result<Self> {
        let (program, words) = iperf3.split_first().context("no command given")?;
        let mut server = to.command(program);
        server
            .args(words)
            .args(["--server", "--one-off", "--bind", listen]);
        server.args(["--interval", "0.1", "--format", "k", "--forceflush"]);
        let (sender, intervals) = channel();
        let server = Running::start_reading(&mut server, move |stdout| {
            for line in BufReader::new(stdout).lines() {
                let line = line?;
                if let Some((length, kbit)) = parse(&line) {
                    let end = SystemTime::now();
                    // Nobody listens any more once the stream was stopped.
                    let _ = sender.send(Interval { end, length, kbit });
                }
            }
            Ok(())
        })?;
        wait_iperf3(to.netns(), listen)?;
        let mut client = from.command(program);
        client
            .args(words)
            .args(["--client", address, "--time", ENDLESS]);
        client.args(["--connect-timeout", "5000"]);
        if let Some(rate) = mbit_per_s {
            client.args(["--bitrate", &format!("{rate}M")]);
        }
        let client = Running::start(&mut client)?;
        let first = intervals.recv_timeout(PATIENCE);
        first.with_context(|| format!("no TCP stream from {} to {address}", from.name()))?;
        Ok(Self {
            server,
            client,
            intervals,
        })
    }

    /// Ends the stream.
    pub(crate) fn stop(self) -> Result<Log> {
        self.client.signal(Signal::SIGKILL)?;
        self.server.signal(Signal::SIGKILL)?;
        self.client.finish(PATIENCE)?;
        self.server.finish(PATIENCE)?;
        Ok(Log(self.intervals.try_iter().collect()))
    }
}

/// What arrived, and when.
#[derive(Debug)]
pub(crate) struct Log(Vec<Interval>);

impl Log {
    /// Payload received between two moments, Mbit/s.
    pub(crate) fn mbit_per_s(&self, from: SystemTime, to: SystemTime) -> f64 {
        let between = to.duration_since(from).unwrap_or_default().as_secs_f64();
        let kbit: f64 = self
            .0
            .iter()
            .map(|interval| {
                let start = (interval.end - interval.length).max(from);
                let end = interval.end.min(to);
                let part = end.duration_since(start).unwrap_or_default();
                interval.kbit * part.as_secs_f64() / interval.length.as_secs_f64()
            })
            .sum();
        kbit / between / 1000.0
    }

    /// When the first second begins, from `from` on, in which at least `enough` Mbit/s of payload were
    /// received, and in the next one too, which ends by `to`; looked at in steps of 0.1 s. A single one
    /// may only hand out what had waited for a lost segment.
    pub(crate) fn first_good(
        &self,
        from: SystemTime,
        to: SystemTime,
        enough: f64,
    ) -> Option<SystemTime> {
        const SECOND: Duration = Duration::from_secs(1);
        const STEP: Duration = Duration::from_millis(100);
        let starts = std::iter::successors(Some(from), |start| Some(*start + STEP));
        starts
            .take_while(|start| *start + 2 * SECOND <= to)
            .find(|start| {
                let next = *start + SECOND;
                self.mbit_per_s(*start, next) >= enough
                    && self.mbit_per_s(next, next + SECOND) >= enough
            })
    }
}

/// Length and kbit of a report of the receiver's; `None` for its other lines.
fn parse(line: &str) -> Option<(Duration, f64)> {
    // [  5]   0.10-0.20   sec  5.50 MBytes  461373 Kbits/sec
    let words: Vec<_> = line.split_once(']')?.1.split_whitespace().collect();
    let [span, "sec", _, _, rate, "Kbits/sec"] = words.as_slice() else {
        return None;
    };
    let (start, end) = span.split_once('-')?;
    let length = end.parse::<f64>().ok()? - start.parse::<f64>().ok()?;
    let rate: f64 = rate.parse().ok()?;
    // The last one may be empty.
    (length > 0.0).then(|| (Duration::from_secs_f64(length), rate * length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_told_from_other_lines() {
        let (length, kbit) =
            parse("[  5]   0.10-0.20   sec  5.50 MBytes  461373 Kbits/sec                  ")
                .unwrap();
        assert!((length.as_secs_f64() - 0.1).abs() < 1e-9);
        assert!((kbit - 46137.3).abs() < 0.1);
        for line in [
            "[  5]   0.00-1.00   sec  5.50 MBytes  461373 Kbits/sec                  receiver",
            "[ ID] Interval           Transfer     Bitrate",
            "[  5] local 10.67.0.2 port 5201 connected to 10.67.0.1 port 39000",
            "Server listening on 5201 (test #1)",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn an_interval_counts_by_its_part() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let interval = |end| Interval {
            end: at(end),
            length: Duration::from_millis(100),
            kbit: 1000.0,
        };
        let log = Log(vec![interval(100), interval(200), interval(400)]);
        // Half of the first, all of the second, nothing, a tenth of the last.
        let rate = log.mbit_per_s(at(50), at(310));
        assert!((rate - 1600.0 / 0.26 / 1000.0).abs() < 1e-6, "{rate}");
    }

    #[test]
    fn the_first_good_seconds_are_found() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        // 10 Mbit/s for two seconds, 2 Mbit/s for one, 10 Mbit/s for one, 2 again, and 10 to the end.
        let log = Log((1..=80)
            .map(|number| Interval {
                end: at(number * 100),
                length: Duration::from_millis(100),
                kbit: match number {
                    21..=30 | 41..=50 => 200.0,
                    _ => 1000.0,
                },
            })
            .collect());
        let first = |from, to, enough| log.first_good(at(from), at(to), enough);
        assert_eq!(first(0, 8000, 9.0), Some(at(0)));
        assert_eq!(
            first(1000, 8000, 9.0),
            Some(at(4900)),
            "one second is not enough"
        );
        assert_eq!(first(1000, 6800, 9.0), None, "not in time");
        assert_eq!(first(2000, 8000, 1.9), Some(at(2000)));
    }
}
