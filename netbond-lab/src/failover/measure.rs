//! One outage, measured.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::case::{Failure, HOLD_DOWN, PATH, RECEIVER, SENDER, System};
use super::{pause, pause_until};
use crate::daemon::PathStatus;
use crate::goodput;
use crate::lab::Lab;
use crate::traffic::{Counts, Numbered};
use crate::wait::wait_for;

/// The TCP stream beside the packets, Mbit/s.
const COMPANY_MBIT: u32 = 20;

/// Between two packets.
const INTERVAL: Duration = Duration::from_millis(2);

/// Undisturbed traffic before a failure.
const BEFORE: Duration = Duration::from_millis(500);

/// Traffic without a loss that counts as whole.
const QUIET: Duration = Duration::from_millis(300);

/// How long both paths stay dead once that is known.
const ALL_DEAD: Duration = Duration::from_secs(2);

/// Between two looks at the status, each of which costs processor time.
const LOOK: Duration = Duration::from_millis(150);

/// A TCP stream's start, and how long it is measured.
const SLOW_START: Duration = Duration::from_secs(1);
const TCP: Duration = Duration::from_secs(1);
const TCP_BASELINE: Duration = Duration::from_secs(3);

/// How long netbond and OSPF may take until both paths are in use.
const READY: Duration = Duration::from_secs(150);

/// What one outage did to a stream of packets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// From the failure to the last lost packet.
    pub(super) last: Duration,
    /// Whether losses had an end before the repair.
    pub(super) ended: bool,
    /// Packets sent until the last lost one.
    pub(super) window: Counts,
    /// Whether either end stopped using the path.
    pub(super) taken_out: bool,
    /// From the beginning of the repair until both ends used the path; if they had stopped. Where
    /// both paths failed: until traffic was whole.
    pub(super) returned: Option<Duration>,
    /// How long the lab took to make the failure happen; not of one that is a sequence.
    pub(super) applied: Option<Duration>,
}

/// netbond at both ends with the settings for a failure, its memory fresh, and all paths in use.
pub(super) fn prepare(lab: &Lab, failure: Failure) -> Result<()> {
    for router in [SENDER, RECEIVER].map(|name| lab.router(name)) {
        let mut config = router.default_config().context("no bond")?;
        if failure.is_damped() {
            config = config.replace(&format!("{HOLD_DOWN}\n"), "");
        }
        router.write_config(&config)?;
        router.kill_netbond(Signal::SIGTERM)?;
        router.start_netbond()?;
    }
    wait_ready(lab)
}

/// Puts a stream of packets through a failure and its repair.
pub(super) fn outage(lab: &mut Lab, system: System, failure: Failure, turn: u32) -> Result<Sample> {
    let (from, to) = (lab.router(SENDER), lab.router(RECEIVER));
    let target = target(lab)?;
    let company = goodput::Stream::start(from, to, &target, Some(COMPANY_MBIT))?;
    let stream = Numbered::start(from, to, &target, INTERVAL)?;
    pause(BEFORE)?;

    // Before the first of the commands that make the failure: where there are several, the time
    // between them counts against the system.
    let failed = SystemTime::now();
    let healed_itself = failure.begin(lab, turn)?;
    let applied = match healed_itself {
        Some(_) => None,
        None => failed.elapsed().ok(),
    };
    match failure.watch() {
        Some(time) => pause(time)?,
        None => {
            wait_noticed(lab, system, failure)?;
            pause(if failure == Failure::Both {
                ALL_DEAD
            } else {
                system.aftermath()
            })?;
        }
    }
    let watched = SystemTime::now();
    company.stop()?;
    let healed = healed_itself.unwrap_or(watched);
    let taken_out = changes(lab)?.iter().any(|&change| change > failed);
    failure.end(lab, turn)?;

    // With both paths dead everything is lost: what counts is the time since one is back.
    let (since, log, returned) = if failure == Failure::Both {
        wait_for_paths(lab, |path| path.state == "up")?;
        pause(system.aftermath())?;
        let log = stream.stop_after(SystemTime::now())?;
        failure.clean_up(lab)?;
        wait_ready(lab)?;
        let returned = log.recovery_after(healed);
        (healed, log, returned)
    } else {
        let log = stream.stop_after(watched)?;
        wait_ready(lab)?;
        let back = changes(lab)?.into_iter().max();
        // It may have come back by itself.
        let returned = back.and_then(|back| back.duration_since(healed).ok());
        (failed, log, returned)
    };
    let outage = log.outage_after(since);
    Ok(Sample {
        last: outage.map_or(Duration::ZERO, |outage| outage.last),
        ended: outage.is_none_or(|outage| outage.quiet >= QUIET),
        window: match outage {
            Some(outage) if failure.ends() => outage.window,
            Some(_) | None => log.counts_since(since),
        },
        taken_out,
        returned,
        applied,
    })
}

/// TCP over the path that survives, alone, Mbit/s.
pub(super) fn baseline(lab: &Lab) -> Result<f64> {
    let ends = [SENDER, RECEIVER].map(|name| lab.router(name));
    for router in ends {
        router.run(&["netbond", "path", "down", PATH])?;
    }
    wait_for_paths(lab, |path| path.state != "up")?;
    let stream = goodput::Stream::start(ends[0], ends[1], &target(lab)?, None)?;
    pause(SLOW_START)?;
    let start = SystemTime::now();
    pause(TCP_BASELINE)?;
    let rate = stream.stop()?.mbit_per_s(start, start + TCP_BASELINE);
    for router in ends {
        router.run(&["netbond", "path", "up", PATH])?;
    }
    wait_ready(lab)?;
    Ok(rate)
}

/// TCP over the bond in the second after a failure, Mbit/s. Repairs it.
pub(super) fn goodput(lab: &mut Lab, failure: Failure, turn: u32) -> Result<f64> {
    let (from, to) = (lab.router(SENDER), lab.router(RECEIVER));
    let stream = goodput::Stream::start(from, to, &target(lab)?, None)?;
    pause(SLOW_START)?;
    let failed = SystemTime::now();
    let end = Instant::now() + TCP;
    failure.begin(lab, turn)?;
    // The report on its last part is still to come.
    pause_until(end + LOOK)?;
    let rate = stream.stop()?.mbit_per_s(failed, failed + TCP);
    failure.end(lab, turn)?;
    failure.clean_up(lab)?;
    wait_ready(lab)?;
    Ok(rate)
}

/// Waits until OSPF and netbond use both paths, and go on doing so: a middle router that was off
/// first ends what its neighbours still knew of it.
pub(super) fn wait_ready(lab: &Lab) -> Result<()> {
    lab.wait_netbond(READY)?;
    lab.wait_converged(READY)?;
    lab.wait_netbond(READY)?;
    wait_hellos(lab)
}

/// Waits until every neighbour has been heard in the last hello interval: OSPF would add the hellos
/// lost in one outage to those lost in the next.
fn wait_hellos(lab: &Lab) -> Result<()> {
    let ospf = &lab.topology().ospf;
    // A hello may be late.
    let least = f64::from(ospf.dead - ospf.hello) - 1.0;
    wait_for("hello of every OSPF neighbour", READY, || {
        for router in lab.routers() {
            let neighbours = router.birdc("show ospf neighbors")?;
            let lowest = dead_times(&neighbours).fold(f64::INFINITY, f64::min);
            ensure!(lowest >= least, "{}: {neighbours}", router.name());
        }
        Ok(Some(()))
    })
}

/// Seconds until each neighbour in BIRD's list would be dead.
fn dead_times(neighbours: &str) -> impl Iterator<Item = f64> {
    // 10.65.1.1   1   Full/PtP   33.456   wg-a-m1   10.65.0.1
    neighbours
        .lines()
        .filter(|line| line.contains('/'))
        .filter_map(|line| line.split_whitespace().nth(3)?.parse().ok())
}

/// Waits until neither end uses the path, or any path if all failed. That it does not come to that
/// is no error: some systems never notice some failures.
fn wait_noticed(lab: &Lab, system: System, failure: Failure) -> Result<()> {
    let end = Instant::now() + system.patience();
    while Instant::now() < end {
        pause(LOOK)?;
        let watched = if failure == Failure::Both {
            statuses(lab)?
        } else {
            paths(lab)?
        };
        if watched.iter().all(|path| path.state != "up") {
            break;
        }
    }
    Ok(())
}

/// Waits until the path that fails is as wanted at both ends.
fn wait_for_paths(lab: &Lab, wanted: impl Fn(&PathStatus) -> bool) -> Result<()> {
    wait_for(&format!("change of {PATH}"), READY, || {
        let paths = paths(lab)?;
        Ok(paths.iter().all(&wanted).then_some(()))
    })
}

/// The bond's address at the receiver.
fn target(lab: &Lab) -> Result<String> {
    let address = lab.topology().bond_address(RECEIVER, false);
    Ok(address.context("the receiver has no address")?.to_string())
}

/// Every path at both ends.
fn statuses(lab: &Lab) -> Result<Vec<PathStatus>> {
    let mut paths = Vec::new();
    for router in [SENDER, RECEIVER] {
        let status = lab.router(router).netbond_status()?;
        paths.extend(status.bonds.into_iter().flat_map(|bond| bond.paths));
    }
    Ok(paths)
}

/// The path that fails, at both ends.
fn paths(lab: &Lab) -> Result<Vec<PathStatus>> {
    let mut paths = statuses(lab)?;
    paths.retain(|path| path.name == PATH);
    Ok(paths)
}

/// When the state of the path that fails last changed, at each end.
fn changes(lab: &Lab) -> Result<Vec<SystemTime>> {
    let paths = paths(lab)?.into_iter();
    Ok(paths
        .map(|path| UNIX_EPOCH + Duration::from_secs_f64(path.changed))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_times_are_read() {
        let text = "BIRD 2.0.12 ready.\nlab:\n\
            Router ID   \tPri\t     State     \tDTime\tInterface  Router IP\n\
            10.65.1.1\t  1\tFull/PtP  \t33.456\twg-a-m1    10.65.0.1\n\
            10.65.1.2\t  1\tFull/PtP  \t39.001\twg-a-m2    10.65.0.13\n";
        assert_eq!(dead_times(text).collect::<Vec<_>>(), [33.456, 39.001]);
    }
}
