//! Driving traffic through a lab and telling what became of it.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::binary;
use crate::namespace::iproute2;
use crate::router::Router;
use crate::stream::{LATE, PORT};
use crate::wait::{PATIENCE, wait_for};

/// How many packets were sent and how many never answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Packets sent.
    pub sent: u64,
    /// Packets without an answer.
    pub lost: u64,
}

/// A stream of echo requests that runs until it is stopped.
#[derive(Debug)]
pub struct Ping {
    running: Running<String>,
}

impl Ping {
    /// Starts sending requests from `router` to `address`, one every `interval`, whether or not
    /// answers return.
    pub fn start(router: &Router, address: &str, interval: Duration) -> Result<Self> {
        let mut command = router.command(binary::lab()?);
        command.args(["stream", address, &interval.as_micros().to_string()]);
        Ok(Self {
            running: Running::start(&mut command)?,
        })
    }

    /// Waits for late answers, stops, and returns what happened to every request until now.
    pub fn stop(self) -> Result<PingLog> {
        let end = SystemTime::now();
        thread::sleep(LATE);
        self.running.signal(Signal::SIGKILL)?;
        PingLog::read(&self.running.finish(PATIENCE)?.1, end)
    }
}

/// A stream of numbered UDP packets that are noted and sent back at the far end.
#[derive(Debug)]
pub struct Numbered {
    sender: Running<String>,
    reflector: Running<String>,
}

impl Numbered {
    /// Starts it from a router to another, which has the `address`.
    pub fn start(from: &Router, to: &Router, address: &str, interval: Duration) -> Result<Self> {
        let mut reflector = to.command(binary::lab()?);
        reflector.args(["reflect", address]);
        let reflector = Running::start(&mut reflector)?;
        wait_for(
            &format!("reflector in router {}", to.name()),
            PATIENCE,
            || {
                let sockets = to.run(&["ss", "-Hlun", &format!("sport = :{PORT}")])?;
                Ok(sockets.contains(address).then_some(()))
            },
        )?;
        let mut sender = from.command(binary::lab()?);
        let interval = interval.as_micros().to_string();
        sender.args(["stream", "--udp", address, &interval]);
        Ok(Self {
            sender: Running::start(&mut sender)?,
            reflector,
        })
    }

    /// Waits until whatever was sent before `end` is back or late, stops, and returns what happened to
    /// every packet until `end`.
    pub fn stop_after(self, end: SystemTime) -> Result<PingLog> {
        let late = (end + LATE).duration_since(SystemTime::now());
        thread::sleep(late.unwrap_or_default());
        let mut text = String::new();
        for program in [self.sender, self.reflector] {
            program.signal(Signal::SIGKILL)?;
            text += &program.finish(PATIENCE)?.1;
        }
        PingLog::read(&text, end)
    }
}

/// What became of each packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PingLog {
    /// One entry per packet in the order of sending.
    requests: Vec<Request>,
    /// Whether it is known which arrived: then both ways count, and a packet that was sent back is two.
    each_way: bool,
    /// How often a packet arrived, or came back, that had done so before.
    repeated: u64,
}

/// A time in which requests were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// From its beginning until the last lost request was sent.
    pub last: Duration,
    /// The requests sent until then, that one included.
    pub window: Counts,
    /// From then until the end of the log, without a loss.
    pub quiet: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    sent: SystemTime,
    arrived: bool,
    answered: bool,
}

impl PingLog {
    /// What the programs printed, up to packets sent at `end`; there must be one.
    fn read(text: &str, end: SystemTime) -> Result<Self> {
        let log = Self::parse(text, end);
        ensure!(!log.requests.is_empty(), "no packet was sent in time");
        Ok(log)
    }

    fn parse(text: &str, end: SystemTime) -> Self {
        let mut requests = Vec::new();
        let (mut arrivals, mut answers) = (BTreeSet::new(), BTreeSet::new());
        let mut repeated = 0;
        let mut enter = |seen: &mut BTreeSet<u64>, number: &str| {
            if let Ok(number) = number.parse() {
                repeated += u64::from(!seen.insert(number));
            }
        };
        // The sender was killed: its last line may be cut short.
        for line in text
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'))
        {
            let words: Vec<_> = line.split(' ').collect();
            match words.as_slice() {
                ["sent", number, time] => {
                    let (Ok(number), Ok(time)) = (number.parse::<u64>(), time.parse()) else {
                        continue;
                    };
                    requests.push((number, UNIX_EPOCH + Duration::from_micros(time)));
                }
                ["here", number] => enter(&mut arrivals, number),
                ["back", number] => enter(&mut answers, number),
                _ => {}
            }
        }
        let requests = requests
            .into_iter()
            .filter(|(_, sent)| *sent <= end)
            .map(|(number, sent)| Request {
                sent,
                arrived: arrivals.contains(&number) || answers.contains(&number),
                answered: answers.contains(&number),
            })
            .collect();
        Self {
            requests,
            each_way: !arrivals.is_empty(),
            repeated,
        }
    }

    /// How often a packet was delivered once more, in either direction.
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// All requests.
    pub fn counts(&self) -> Counts {
        self.count(&self.requests)
    }

    /// The requests sent at or after `time`.
    pub fn counts_since(&self, time: SystemTime) -> Counts {
        self.count(self.since(time))
    }

    /// From `time` until requests were answered without exception again; zero if none was lost
    /// after `time`, `None` if that did not happen.
    pub fn recovery_after(&self, time: SystemTime) -> Option<Duration> {
        let requests = self.since(time);
        let Some(last_lost) = requests.iter().rposition(|request| !request.answered) else {
            return Some(Duration::ZERO);
        };
        let back = requests.get(last_lost + 1)?;
        Some(back.sent.duration_since(time).unwrap_or_default())
    }

    /// What was lost from `time` on; `None` if nothing was.
    pub fn outage_after(&self, time: SystemTime) -> Option<Outage> {
        let requests = self.since(time);
        let last_lost = requests.iter().rposition(|request| !request.answered)?;
        let after = |request: &Request| request.sent.duration_since(time).unwrap_or_default();
        let last = after(&requests[last_lost]);
        Some(Outage {
            last,
            window: self.count(&requests[..=last_lost]),
            quiet: after(&requests[requests.len() - 1]) - last,
        })
    }

    /// How many requests were sent.
    pub fn requests(&self) -> u64 {
        self.requests.len() as u64
    }

    /// When the lost requests were sent.
    pub fn lost_at(&self) -> Vec<SystemTime> {
        let lost = self.requests.iter().filter(|request| !request.answered);
        lost.map(|request| request.sent).collect()
    }

    /// How many of them arrived at the far end, where that is known.
    pub fn arrivals(&self) -> u64 {
        let arrived = self.requests.iter().filter(|request| request.arrived);
        arrived.count() as u64
    }

    /// The longest time between two answered requests sent one after the other, the later of them at
    /// or after `time`.
    pub fn longest_gap_after(&self, time: SystemTime) -> Duration {
        let answered = self.requests.iter().filter(|request| request.answered);
        let times: Vec<_> = answered.map(|request| request.sent).collect();
        let gaps = times.windows(2).filter(|pair| pair[1] >= time);
        let length = |pair: &[SystemTime]| pair[1].duration_since(pair[0]).unwrap_or_default();
        gaps.map(length).max().unwrap_or_default()
    }

    /// Times from `time` on in which every request was lost: the beginning of each, and how long after it the
    /// last one was sent.
    pub fn silences_after(
        &self,
        time: SystemTime,
    ) -> impl Iterator<Item = (SystemTime, Duration)> + '_ {
        let runs = self.since(time).chunk_by(|a, b| a.answered == b.answered);
        runs.filter_map(|run| {
            let (first, last) = (run.first()?, run.last()?);
            let length = last.sent.duration_since(first.sent).unwrap_or_default();
            (!first.answered).then_some((first.sent, length))
        })
    }

    /// The same without the requests sent at or after `time`.
    #[must_use]
    pub fn until(&self, time: SystemTime) -> Self {
        let mut log = self.clone();
        log.requests.retain(|request| request.sent < time);
        log
    }

    fn since(&self, time: SystemTime) -> &[Request] {
        let start = self.requests.partition_point(|request| request.sent < time);
        &self.requests[start..]
    }

    fn count(&self, requests: &[Request]) -> Counts {
        let lost = requests.iter().filter(|request| !request.answered).count();
        let sent_back = requests.iter().filter(|request| request.arrived).count();
        Counts {
            sent: (requests.len() + if self.each_way { sent_back } else { 0 }) as u64,
            lost: lost as u64,
        }
    }
}

/// Sends `count` echo requests from `router` to `address`, one every `interval`. Answers may be seconds late, of which
/// `ping` itself leaves no more than twice the longest round trip to the last ones.
pub fn ping(router: &Router, address: &str, count: u32, interval: Duration) -> Result<Counts> {
    let mut command = router.command(binary::lab()?);
    let interval_us = interval.as_micros().to_string();
    command.args(["stream", address, &interval_us]);
    command.args(["--count", &count.to_string()]);
    let sender = Running::start(&mut command)?;
    let text = sender.finish(interval * count + PATIENCE)?.1;
    Ok(PingLog::read(&text, SystemTime::now())?.counts())
}

/// What TCP achieved, all streams together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TcpResult {
    /// Received payload, Mbit/s.
    pub mbit_per_s: f64,
    /// Segments sent again.
    pub retransmits: u64,
}

/// Measures one TCP stream `from` -> `to` (at its `address`) for `duration` with iperf3.
pub fn tcp(from: &Router, to: &Router, address: &str, duration: Duration) -> Result<TcpResult> {
    tcp_streams(from, to, address, 1, duration)
}

/// Measures `streams` TCP streams side by side, otherwise like [`tcp`].
pub fn tcp_streams(
    from: &Router,
    to: &Router,
    address: &str,
    streams: u8,
    duration: Duration,
) -> Result<TcpResult> {
    let seconds = duration.as_secs().max(1).to_string();
    iperf3(from, to, address, streams, ["--time", &seconds], duration)
}

/// Measures `streams` TCP streams that carry a megabyte together: enough to see that they pass, without
/// saturating for a second what is slow.
pub fn tcp_megabyte(from: &Router, to: &Router, address: &str, streams: u8) -> Result<TcpResult> {
    let longest = Duration::from_secs(30);
    iperf3(from, to, address, streams, ["--bytes", "1M"], longest)
}

fn iperf3(
    from: &Router,
    to: &Router,
    address: &str,
    streams: u8,
    amount: [&str; 2],
    deadline: Duration,
) -> Result<TcpResult> {
    #[derive(Deserialize)]
    struct Output {
        end: End,
    }
    #[derive(Deserialize)]
    struct End {
        sum_sent: Sum,
        sum_received: Sum,
    }
    #[derive(Deserialize)]
    struct Sum {
        bits_per_second: f64,
        #[serde(default)]
        retransmits: u64,
    }

    let mut server = to.command("iperf3");
    server.args(["--server", "--one-off", "--bind", address]);
    let server = Running::start(&mut server)?;
    wait_iperf3(to.netns(), address)?;
    let mut client = from.command("iperf3");
    client.args(["--client", address, "--json", "--connect-timeout", "5000"]);
    client.args(["--parallel", &streams.to_string()]);
    client.args(amount);
    let (success, text) = Running::start(&mut client)?.finish(deadline + PATIENCE)?;
    ensure!(
        success,
        "iperf3 from {} to {address} in {} failed: {}",
        from.name(),
        to.name(),
        text.trim()
    );
    drop(server);
    let end = serde_json::from_str::<Output>(&text)
        .with_context(|| format!("cannot read iperf3's report: {text}"))?
        .end;
    Ok(TcpResult {
        mbit_per_s: end.sum_received.bits_per_second / 1e6,
        retransmits: end.sum_sent.retransmits,
    })
}

/// Waits until an iperf3 server in a network namespace can be connected to.
pub(crate) fn wait_iperf3(netns: &str, address: &str) -> Result<()> {
    wait_for(&format!("iperf3 server in {netns}"), PATIENCE, || {
        let sockets = iproute2("ss", &["-N", netns, "-Hltn", "sport = :5201"])?;
        Ok(sockets.contains(address).then_some(()))
    })
}

/// A program whose output is read while it runs; killed when dropped.
#[derive(Debug)]
pub(crate) struct Running<T> {
    child: Child,
    output: Option<JoinHandle<io::Result<T>>>,
}

impl Running<String> {
    /// Starts a program and collects what it prints.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        Self::start_reading(command, |mut stdout| {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text)
        })
    }
}

impl<T: Send + 'static> Running<T> {
    /// Starts a program; `read` reads what it prints as it comes (a full pipe would stop it).
    pub(crate) fn start_reading(
        command: &mut Command,
        read: impl FnOnce(ChildStdout) -> io::Result<T> + Send + 'static,
    ) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let output = child.stdout.take();
        Ok(Self {
            output: output.map(|stdout| thread::spawn(move || read(stdout))),
            child,
        })
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?;
        Ok(())
    }

    /// Waits for the program's end; whether it succeeded, and what was read.
    pub(crate) fn finish(mut self, deadline: Duration) -> Result<(bool, T)> {
        let status = wait_for("end of the traffic program", deadline, || {
            Ok(self.child.try_wait()?)
        })?;
        let output = self.output.take().context("the output was taken twice")?;
        let output = output
            .join()
            .map_err(|_| anyhow::anyhow!("reading the output failed"))??;
        Ok((status.success(), output))
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        // No effect once it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten requests 100 ms apart from second 1000; numbers 4 to 6 are lost.
    fn log() -> PingLog {
        let mut text = String::new();
        for number in 1..=10 {
            text += &format!("sent {number} {}\n", 1_000_000_000 + (number - 1) * 100_000);
            if !(4..=6).contains(&number) {
                text += &format!("back {number}\n");
            }
        }
        // Too late, and cut short.
        text += "sent 11 5000000000\nsent 12 50";
        PingLog::parse(&text, at(2000.0))
    }

    fn at(seconds: f64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn lost_requests_are_counted_from_a_given_time() {
        assert_eq!(log().counts(), Counts { sent: 10, lost: 3 });
        assert_eq!(log().counts_since(at(1000.35)), Counts { sent: 6, lost: 2 });
    }

    #[test]
    fn recovery_is_the_first_answer_after_the_last_loss() {
        let recovery = log().recovery_after(at(1000.25)).unwrap();
        assert!((recovery.as_secs_f64() - 0.35).abs() < 1e-6, "{recovery:?}");
        assert_eq!(log().recovery_after(at(1000.65)), Some(Duration::ZERO));
    }

    #[test]
    fn the_longest_gap_is_between_answers() {
        let gap = log().longest_gap_after(at(1000.35));
        assert!((gap.as_secs_f64() - 0.4).abs() < 1e-6, "{gap:?}");
        let gap = log().longest_gap_after(at(1000.65));
        assert!((gap.as_secs_f64() - 0.1).abs() < 1e-6, "{gap:?}");
        assert_eq!(log().until(at(1000.45)).counts().lost, 2);
    }

    /// Four packets: one back, one lost on the way back, two on the way there.
    #[test]
    fn each_way_counts_where_it_is_known() {
        let text = "sent 1 1000\nsent 2 2000\nsent 3 3000\nsent 4 4000\nback 1\nhere 1\nhere 2\n";
        let log = PingLog::parse(text, at(1.0));
        assert_eq!(log.counts(), Counts { sent: 6, lost: 3 });
        assert_eq!(log.repeated(), 0);
        let text = format!("{text}here 2\nback 1\nback 1\n");
        let log = PingLog::parse(&text, at(1.0));
        assert_eq!(log.counts(), Counts { sent: 6, lost: 3 });
        assert_eq!(log.repeated(), 3);
    }

    #[test]
    fn an_outage_ends_with_the_last_loss() {
        let outage = log().outage_after(at(1000.25)).unwrap();
        assert!((outage.last.as_secs_f64() - 0.25).abs() < 1e-6);
        assert_eq!(outage.window, Counts { sent: 3, lost: 3 });
        assert!((outage.quiet.as_secs_f64() - 0.4).abs() < 1e-6);
        assert_eq!(log().outage_after(at(1000.55)), None);
    }

    #[test]
    fn without_an_answer_at_the_end_there_is_no_recovery() {
        let mut log = log();
        log.requests.truncate(6);
        assert_eq!(log.recovery_after(at(1000.25)), None);
    }
}
