//! Paths die silently and return, again and again, one after the other: one of them always lives.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use super::outage::streams;
use super::scenario::Scenario;
use super::system::System;
use super::traffic::{WARM_UP, pause};
use crate::lab::Lab;
use crate::wait::check_interrupt;

/// Between two packets.
const INTERVAL: Duration = Duration::from_millis(5);

/// How long a path is dead, and how long all of them live before the next one dies.
///
/// So each of two paths dies every 1.25 s. Were it every second, the tries of what tries once a second
/// (ARP, OSPF's hellos) could all fall into its dead times: then the path stays without its neighbour's
/// address for seconds while it counts as alive.
const DEAD: Duration = Duration::from_millis(200);
const ALIVE: Duration = Duration::from_millis(425);

/// What the failures did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failures {
    /// What became of UDP packets that were sent there and back; MPTCP has none.
    pub(super) packets: Option<Packets>,
    /// Payload of a TCP stream of [`super::outage::COMPANY_MBIT`] received meanwhile, Mbit/s.
    pub(super) tcp: f64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Packets {
    /// Those lost, on their way there or back.
    pub(super) lost: u64,
    /// The longest time without one that came back.
    pub(super) gap: Duration,
}

/// Has paths fail `count` times, in turn. Everything that the path's middle router sends is lost then,
/// and no device changes its state.
pub(super) fn run(lab: &Lab, system: System, scenario: Scenario, count: u32) -> Result<Failures> {
    let (company, stream) = streams(lab, system, INTERVAL)?;
    pause(WARM_UP)?;
    let (begin, start) = (SystemTime::now(), Instant::now());
    let lines = scenario.lines();
    let paths = (1..=scenario.paths()).zip(&lines).cycle();
    for (number, (path, line)) in (0..count).zip(paths) {
        let until = |time: Duration| {
            thread::sleep(time.saturating_sub(start.elapsed()));
            check_interrupt()
        };
        let failed = (DEAD + ALIVE) * number;
        line.with_loss(1.0).replace_at(lab, path)?;
        until(failed + DEAD)?;
        line.replace_at(lab, path)?;
        until(failed + DEAD + ALIVE)?;
    }
    let end = SystemTime::now();
    let tcp = company.stop()?.mbit_per_s(begin, end);
    let packets = match stream {
        None => None,
        Some(stream) => {
            let log = stream.stop_after(end)?;
            Some(Packets {
                lost: log.counts_since(begin).lost,
                gap: log.longest_gap_after(begin),
            })
        }
    };
    Ok(Failures { packets, tcp })
}
