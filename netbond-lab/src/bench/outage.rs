//! A middle router dies silently under traffic, and comes back.

use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::scenario::Scenario;
use super::system::{RECEIVER, SENDER, System};
use super::traffic::{listen, pause, words};
use crate::goodput::Stream;
use crate::lab::Lab;
use crate::traffic::Numbered;

/// The middle router that dies.
const VICTIM: &str = "M1";
const VICTIM_PATH: u8 = 1;

/// Between two packets.
const INTERVAL: Duration = Duration::from_millis(10);

/// The TCP stream beside them, Mbit/s: far below what the path that is left carries.
pub(super) const COMPANY_MBIT: u32 = 1;

/// Undisturbed traffic before the failure and after the repair.
const CALM: Duration = Duration::from_secs(5);

/// What an outage did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    /// What became of UDP packets that were sent there and back; MPTCP has none.
    pub(super) packets: Option<Packets>,
    /// Payload of a TCP stream of [`COMPANY_MBIT`] received while the router was dead, Mbit/s.
    pub(super) tcp: f64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Packets {
    /// Share lost while the router was dead, 0 to 1. Each way counts.
    pub(super) lost: f64,
    /// From the failure until the last one that was lost before the repair was sent.
    pub(super) last: Duration,
    /// Those lost after the repair.
    pub(super) lost_after: u64,
    /// The longest time without one that came back.
    pub(super) gap: Duration,
}

/// Starts a TCP stream of [`COMPANY_MBIT`], and UDP packets that are sent there and back, one each
/// `interval`; MPTCP has none of these.
pub(super) fn streams(
    lab: &Lab,
    system: System,
    interval: Duration,
) -> Result<(Stream, Option<Numbered>)> {
    let (from, to) = (lab.router(SENDER), lab.router(RECEIVER));
    let target = system.target(lab)?;
    let iperf3 = words(system, &["iperf3"]);
    let listen = listen(system, &target);
    let company = Stream::start_by(&iperf3, listen, from, to, &target, Some(COMPANY_MBIT))?;
    let packets = if system.is_mptcp() {
        None
    } else {
        Some(Numbered::start(from, to, &target, interval)?)
    };
    Ok((company, packets))
}

/// Fails the first path for `time`.
pub(super) fn run(lab: &Lab, system: System, time: Duration) -> Result<Outage> {
    let (company, stream) = streams(lab, system, INTERVAL)?;
    pause(CALM)?;
    let failed = SystemTime::now();
    let dead = lab.fail_router(VICTIM).and_then(|()| pause(time));
    let repaired = SystemTime::now();
    // The router's own devices get their queues back instead of what swallows packets there.
    Scenario::Failure.shape_path(lab, VICTIM_PATH)?;
    lab.restore_router(VICTIM)?;
    dead?;
    pause(CALM)?;
    let tcp = company.stop()?.mbit_per_s(failed, repaired);
    let packets = match stream {
        None => None,
        Some(stream) => {
            let log = stream.stop_after(SystemTime::now())?;
            let dead = log.until(repaired);
            let counts = dead.counts_since(failed);
            Some(Packets {
                lost: counts.lost as f64 / counts.sent.max(1) as f64,
                last: dead
                    .outage_after(failed)
                    .map_or(Duration::ZERO, |outage| outage.last),
                lost_after: log.counts_since(repaired).lost,
                gap: log.longest_gap_after(failed),
            })
        }
    };
    Ok(Outage { packets, tcp })
}
