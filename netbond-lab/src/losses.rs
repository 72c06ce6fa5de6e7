//! What the kernel counted of packets that it dropped in a router: for the report of a test that failed.

use std::fs;

use crate::router::Router;

/// Counters of `/proc/net/snmp` and `snmp6` whose packets are gone.
const DROPPED: [&str; 12] = [
    "InErrors",
    "InDiscards",
    "InNoRoutes",
    "InAddrErrors",
    "OutDiscards",
    "OutNoRoutes",
    "ReasmFails",
    "FragFails",
    "RcvbufErrors",
    "SndbufErrors",
    "MemErrors",
    "InCsumErrors",
];

impl Router {
    /// What it dropped since it exists, in words; none where it dropped nothing.
    pub(crate) fn losses(&self) -> Vec<String> {
        let read = |file: &str| {
            let path = format!("/proc/{}/net/{file}", self.anchor_pid());
            // It may have ended, or have no IPv6.
            fs::read_to_string(path).unwrap_or_default()
        };
        let mut losses = of_protocols(&read("snmp"));
        losses.extend(of_protocols6(&read("snmp6")));
        losses.extend(of_devices(&read("dev")));
        losses
    }
}

/// Those in `/proc/net/snmp`: a line of names and a line of values for each protocol.
fn of_protocols(text: &str) -> Vec<String> {
    let mut losses = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.chunks_exact(2) {
        let (mut names, values) = (pair[0].split(' '), pair[1].split(' ').skip(1));
        let protocol = names.next().unwrap_or_default();
        let dropped = names
            .zip(values)
            .filter(|(name, value)| is_loss(name, value));
        losses.extend(dropped.map(|(name, value)| format!("{protocol} {name} {value}")));
    }
    losses
}

/// Those in `/proc/net/snmp6`: a name with its protocol before it, and a value on each line.
fn of_protocols6(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::split_whitespace);
    let pairs = lines.filter_map(|mut words| Some((words.next()?, words.next()?)));
    let dropped = pairs.filter(|(name, value)| {
        let name = name.split_once('6').map_or(*name, |(_, name)| name);
        is_loss(name, value)
    });
    dropped
        .map(|(name, value)| format!("{name} {value}"))
        .collect()
}

/// Errors and drops of devices in `/proc/net/dev`.
fn of_devices(text: &str) -> Vec<String> {
    // Bytes, packets, errors and drops, first received ones; eight columns each.
    const COLUMNS: [(&str, usize); 4] = [
        ("rx errors", 2),
        ("rx dropped", 3),
        ("tx errors", 10),
        ("tx dropped", 11),
    ];
    let mut losses = Vec::new();
    for line in text.lines() {
        let Some((device, values)) = line.split_once(':') else {
            continue;
        };
        let values: Vec<&str> = values.split_whitespace().collect();
        let counted = COLUMNS.iter().filter_map(|&(what, at)| {
            let value = *values.get(at)?;
            (value != "0").then(|| format!("{} {what} {value}", device.trim()))
        });
        losses.extend(counted);
    }
    losses
}

fn is_loss(name: &str, value: &str) -> bool {
    DROPPED.contains(&name) && value != "0"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dropped_is_told_and_nothing_else() {
        let snmp = "Ip: Forwarding InReceives OutNoRoutes\nIp: 1 77 3\n\
                    Udp: InDatagrams RcvbufErrors SndbufErrors\nUdp: 5 9 0\n";
        assert_eq!(
            of_protocols(snmp),
            ["Ip: OutNoRoutes 3", "Udp: RcvbufErrors 9"]
        );
        let snmp6 = "Ip6InReceives    \t10\nIp6InDiscards  \t2\nUdp6RcvbufErrors \t0\n";
        assert_eq!(of_protocols6(snmp6), ["Ip6InDiscards 2"]);
        let dev = "Inter-|   Receive |  Transmit\n face |bytes packets errs drop\n\
                   lo: 1 2 0 0 0 0 0 0 1 2 0 0 0 0 0 0\n\
                   nb0: 1 2 0 4 0 0 0 0 1 2 0 5 0 0 0 0\n";
        assert_eq!(of_devices(dev), ["nb0 rx dropped 4", "nb0 tx dropped 5"]);
    }
}
