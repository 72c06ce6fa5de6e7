//! The lab's own demonstration: traffic over the bond, a failure of one path, and a report.

use std::fmt;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::daemon::Status;
use crate::lab::Lab;
use crate::topology::Topology;
use crate::traffic::{self, Counts, Ping};
use crate::wait::{check_interrupt, wait_for};

/// Who sends, who answers, and who fails.
const SENDER: &str = "A";
const RECEIVER: &str = "B";
const VICTIM: &str = "M1";

const PING_COUNT: u32 = 200;
const PING_INTERVAL: Duration = Duration::from_millis(10);
const TCP_TIME: Duration = Duration::from_secs(5);

/// Undisturbed traffic before the failure.
const BASELINE: Duration = Duration::from_secs(1);

/// Traffic that is still watched once OSPF must have noticed the failure.
const AFTERMATH: Duration = Duration::from_secs(4);

/// How long the paths may take to come back, beyond OSPF's own time.
const RETURN: Duration = Duration::from_secs(30);

/// What the demonstration found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Echo requests over the bond, nothing failing.
    pub ping: Counts,
    /// One TCP stream over the bond.
    pub tcp: Tcp,
    /// How the sender's packets were spread over the paths meanwhile.
    pub paths: Vec<PathShare>,
    /// Echo requests over the bond from the moment a middle router silently died.
    pub failure: Failure,
}

/// Result of the TCP measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Tcp {
    /// Received payload, Mbit/s.
    pub mbit_per_s: f64,
}

/// A path's part in the traffic.
#[derive(Clone, Debug, Serialize)]
pub struct PathShare {
    /// The path's name.
    pub name: String,
    /// From 0 to 1; all paths together give 1.
    pub share: f64,
}

/// What the failure did to the traffic.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Requests sent since the failure.
    pub sent: u64,
    /// Requests without answer.
    pub lost: u64,
    /// Milliseconds from the failure until nothing was lost any more; `None` if that never came.
    pub recovered_ms: Option<u64>,
}

/// Builds the reference topology as lab `name`, puts it through the demonstration, and takes it
/// down. Says on standard error what it is doing.
pub fn run(name: &str) -> Result<Report> {
    let topology = Topology::reference();
    let target = topology
        .bond_address(RECEIVER, false)
        .context("the receiver has no IPv4 bond address")?
        .to_string();
    eprintln!("building lab {name}: routers, WireGuard, OSPF, netbond ...");
    let lab = Lab::up(name, &topology)?;
    let (sender, receiver) = (lab.router(SENDER), lab.router(RECEIVER));

    let before = sender.netbond_status()?;
    eprintln!("pinging {target} over the bond, {PING_COUNT} times ...");
    let ping = traffic::ping(sender, &target, PING_COUNT, PING_INTERVAL)?;
    eprintln!(
        "one TCP stream over the bond for {} s ...",
        TCP_TIME.as_secs()
    );
    let tcp = traffic::tcp(sender, receiver, &target, TCP_TIME)?;
    let paths = shares(&before, &sender.netbond_status()?)?;

    let failure = fail(&lab, &target)?;
    eprintln!("restoring {VICTIM} and waiting for both paths ...");
    lab.restore_router(VICTIM)?;
    wait_for_return(&lab, &target)?;
    eprintln!("taking the lab down ...");
    lab.down()?;
    Ok(Report {
        ping,
        tcp: Tcp {
            mbit_per_s: tcp.mbit_per_s,
        },
        paths,
        failure,
    })
}

/// Black-holes the victim under running traffic.
fn fail(lab: &Lab, target: &str) -> Result<Failure> {
    let watch = Duration::from_secs(u64::from(lab.topology().ospf.dead)) * 2 + AFTERMATH;
    eprintln!(
        "{VICTIM} dies silently; watching the traffic for {} s ...",
        watch.as_secs()
    );
    let ping = Ping::start(lab.router(SENDER), target, PING_INTERVAL)?;
    pause(BASELINE)?;
    let time = SystemTime::now();
    lab.fail_router(VICTIM)?;
    pause(watch)?;
    let log = ping.stop()?;
    let Counts { sent, lost } = log.counts_since(time);
    let recovered_ms = log
        .recovery_after(time)
        .map(|recovery| u64::try_from(recovery.as_millis()).unwrap_or(u64::MAX));
    Ok(Failure {
        sent,
        lost,
        recovered_ms,
    })
}

/// Waits until every path of the sender is up again and carries packets.
fn wait_for_return(lab: &Lab, target: &str) -> Result<()> {
    let ospf = Duration::from_secs(u64::from(lab.topology().ospf.dead));
    lab.wait_netbond(RETURN + 2 * ospf)?;
    let sender = lab.router(SENDER);
    wait_for("traffic on every path after the repair", RETURN, || {
        let before = sender.netbond_status()?;
        traffic::ping(sender, target, 20, PING_INTERVAL)?;
        let shares = shares(&before, &sender.netbond_status()?)?;
        let idle: Vec<_> = shares
            .iter()
            .filter(|path| path.share == 0.0)
            .map(|path| path.name.as_str())
            .collect();
        ensure!(idle.is_empty(), "unused: {}", idle.join(", "));
        Ok(Some(()))
    })
}

/// Lets time pass while traffic runs.
fn pause(time: Duration) -> Result<()> {
    let end = SystemTime::now() + time;
    while SystemTime::now() < end {
        check_interrupt()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Each path's share of the packets sent between two readings.
fn shares(before: &Status, after: &Status) -> Result<Vec<PathShare>> {
    let readings = |status: &Status| -> Vec<(String, u64)> {
        let paths = status.bonds.iter().flat_map(|bond| &bond.paths);
        paths
            .map(|path| (path.name.clone(), path.tx_packets))
            .collect()
    };
    let earlier = readings(before);
    let sent: Vec<(String, u64)> = readings(after)
        .into_iter()
        .map(|(name, packets)| {
            let base = earlier
                .iter()
                .find(|(known, _)| *known == name)
                .map_or(0, |(_, p)| *p);
            (name, packets.saturating_sub(base))
        })
        .collect();
    let total: u64 = sent.iter().map(|(_, packets)| packets).sum();
    ensure!(total > 0, "netbond counted no packet on any path");
    Ok(sent
        .into_iter()
        .map(|(name, packets)| PathShare {
            name,
            share: packets as f64 / total as f64,
        })
        .collect())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |what: &str, value: String| writeln!(f, "{what:<38} {value}");
        row(
            "Ping over the bond",
            format!("{} sent, {} lost", self.ping.sent, self.ping.lost),
        )?;
        row(
            "TCP over the bond",
            format!("{:.0} Mbit/s", self.tcp.mbit_per_s),
        )?;
        for path in &self.paths {
            row(
                &format!("Packets by path {}", path.name),
                format!("{:.1} %", path.share * 100.0),
            )?;
        }
        let Failure {
            sent,
            lost,
            recovered_ms,
        } = &self.failure;
        row(
            &format!("While {VICTIM} was silently dead"),
            format!("{sent} sent, {lost} lost"),
        )?;
        row(
            "Traffic whole again after",
            match recovered_ms {
                Some(time) => format!("{time} ms"),
                None => "never".to_owned(),
            },
        )?;
        row(
            &format!("After the repair of {VICTIM}"),
            "every path in use".to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(packets: [u64; 2]) -> Status {
        let text = format!(
            r#"{{"bonds":[{{"name":"nb0","paths":[
                {{"name":"via-m1","state":"up","tx_packets":{}}},
                {{"name":"via-m2","state":"up","tx_packets":{},"rtt_us":7}}]}}]}}"#,
            packets[0], packets[1]
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn shares_are_those_of_the_packets_in_between() {
        let shares = shares(&status([100, 100]), &status([130, 110])).unwrap();
        assert_eq!(shares[0].name, "via-m1");
        assert!((shares[0].share - 0.75).abs() < 1e-9);
        assert!((shares[1].share - 0.25).abs() < 1e-9);
    }

    #[test]
    fn no_packets_is_an_error_not_a_division_by_zero() {
        assert!(shares(&status([5, 5]), &status([5, 5])).is_err());
    }

    #[test]
    fn the_json_report_has_the_documented_shape() {
        let report = Report {
            ping: Counts { sent: 2, lost: 1 },
            tcp: Tcp { mbit_per_s: 1.5 },
            paths: vec![PathShare {
                name: "via-m1".to_owned(),
                share: 1.0,
            }],
            failure: Failure {
                sent: 3,
                lost: 0,
                recovered_ms: None,
            },
        };
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"ping":{"sent":2,"lost":1},"tcp":{"mbit_per_s":1.5},"paths":[{"name":"via-m1","share":1.0}],"failure":{"sent":3,"lost":0,"recovered_ms":null}}"#
        );
    }
}
