//! What the kernel counts in a namespace.

use std::fs;

use anyhow::{Context as _, Result};

use crate::namespace;

/// What was counted since the namespace exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counters {
    /// Fragments that IP packets were sent in, WireGuard's own among them.
    pub(super) fragments: u64,
    /// Segments sent again.
    pub(super) retransmits: u64,
    /// Segments that came before an earlier one and were kept.
    pub(super) out_of_order: u64,
}

impl Counters {
    pub(super) fn of(netns: &str) -> Result<Self> {
        // By a thread that is in there.
        let read = |file: &str| -> Result<String> {
            let path = format!("/proc/thread-self/net/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let (snmp, netstat) = namespace::within(netns, || Ok((read("snmp")?, read("netstat")?)))?;
        let counter = |text: &str, group: &str, name: &str| -> Result<u64> {
            parse(text, group, name)
                .with_context(|| format!("the kernel counts no {group}: {name} in {netns}"))
        };
        Ok(Self {
            fragments: counter(&snmp, "Ip", "FragCreates")?,
            retransmits: counter(&snmp, "Tcp", "RetransSegs")?,
            out_of_order: counter(&netstat, "TcpExt", "TCPOFOQueue")?,
        })
    }
}

/// A counter of `/proc/net/snmp` or `netstat`: a line of names for each group, and one of values.
fn parse(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| {
        let (found, rest) = line.split_once(": ")?;
        (found == group).then_some(rest)
    });
    let (names, values) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|found| found == name)?;
    values.split_whitespace().nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_group_and_name() {
        let text = "Ip: Forwarding InReceives\nIp: 1 77\nTcp: MaxConn RetransSegs InErrs\n\
                    Tcp: -1 12 3\n";
        assert_eq!(parse(text, "Tcp", "RetransSegs"), Some(12));
        assert_eq!(parse(text, "Ip", "InReceives"), Some(77));
        assert_eq!(parse(text, "Ip", "RetransSegs"), None);
        assert_eq!(parse(text, "Tcp", "MaxConn"), None, "it is no count");
        assert_eq!(parse("Tcp: A B\n", "Tcp", "A"), None);
    }
}
