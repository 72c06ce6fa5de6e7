//! What must hold of counters, and of what netbond uses.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{ENDS, STREAMS};
use crate::daemon::{BondStatus, PathStatus, Status};
use crate::lab::Lab;
use crate::router::Router;

/// More files than before are no leak yet: a question to BIRD may be under way.
const FILES: usize = 8;
/// Nor is so much more memory, KiB: a reload for other modes loads the programs anew, which takes 18 MiB that the
/// allocator keeps; and the journal fills up.
const MEMORY: usize = 24 * 1024;

/// Counters as they were last seen: they never decrease, whatever becomes of controllers.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Packets that each bond took before the streams began: see [`taken`].
    first: BTreeMap<(&'static str, String), u64>,
    /// By end and path.
    last: BTreeMap<(&'static str, String), [u64; 2]>,
}

impl Ledger {
    pub(super) fn open(lab: &Lab) -> Result<Self> {
        let mut first = BTreeMap::new();
        for end in ENDS {
            for bond in lab.router(end).netbond_status()?.bonds {
                first.insert((end, bond.name.clone()), taken(&bond));
            }
        }
        Ok(Self {
            first,
            last: BTreeMap::new(),
        })
    }

    /// What does not hold: a counter that decreased, and a path on which more was received than the other end
    /// sent there, such as packets of another bond.
    pub(super) fn check(&mut self, lab: &Lab) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let [a, b] = ENDS.map(|end| lab.router(end));
        // What was received is read before what was sent.
        let (first, there, back) = (
            a.netbond_status()?,
            b.netbond_status()?,
            a.netbond_status()?,
        );
        for (end, received, sent) in [("A", &first, &there), ("B", &there, &back)] {
            let sent = counters(sent);
            for (name, path) in counters(received) {
                let others = sent.get(&name).map_or(0, |other| other.tx_packets);
                if path.rx_packets > others {
                    wrong.push(format!(
                        "{end}, {name}: {} packets received of {others} sent",
                        path.rx_packets
                    ));
                }
                let now = [path.tx_packets, path.rx_packets];
                let before = self
                    .last
                    .insert((end, name.clone()), now)
                    .unwrap_or_default();
                if now[0] < before[0] || now[1] < before[1] {
                    wrong.push(format!("{end}, {name}: counters {before:?}, then {now:?}"));
                }
            }
        }
        Ok(wrong)
    }

    /// Bonds that did not account for each packet of the streams, of which so many were sent.
    pub(super) fn unaccounted(&self, lab: &Lab, sent: &[u64]) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        for (stream, sent) in STREAMS.iter().zip(sent) {
            let bonds = lab.router(stream.from).netbond_status()?.bonds;
            let bond = bonds.iter().find(|bond| bond.name == stream.bond);
            let now = bond.map_or(0, taken);
            let before = self.first.get(&(stream.from, stream.bond.to_owned()));
            let counted = now.saturating_sub(before.copied().unwrap_or_default());
            if counted < *sent {
                wrong.push(format!(
                    "{stream}: {sent} packets sent, {counted} accounted for"
                ));
            }
        }
        Ok(wrong)
    }

    /// Packets that went out without being compared with others.
    pub(super) fn contended(&self, lab: &Lab) -> Result<u64> {
        let mut contended = 0;
        for end in ENDS {
            let status = lab.router(end).netbond_status()?;
            contended += counters(&status)
                .values()
                .map(|path| path.rx_contended)
                .sum::<u64>();
        }
        Ok(contended)
    }
}

/// Each path by its name.
fn counters(status: &Status) -> BTreeMap<String, PathStatus> {
    let paths = status.bonds.iter().flat_map(|bond| &bond.paths);
    paths
        .map(|path| (path.name.clone(), path.clone()))
        .collect()
}

/// Packets that were sent into a bond: on a path, or what else became of them.
fn taken(bond: &BondStatus) -> u64 {
    let sent: u64 = bond
        .paths
        .iter()
        .map(|path| path.tx_packets - path.tx_copies)
        .sum();
    let fates = bond.fates.iter();
    sent + fates
        .filter(|(fate, _)| fate.starts_with("tx_"))
        .map(|(_, count)| count)
        .sum::<u64>()
}

/// What the controller of a router uses.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Usage {
    /// File descriptors.
    pub files: usize,
    /// Resident memory, KiB.
    pub resident_kib: usize,
    /// Maps, programs and links pinned: those that are neither pinned nor open are gone.
    pub pins: usize,
}

impl Usage {
    pub(super) fn of(router: &Router) -> Result<Self> {
        let pid = router.netbond_pid().context("netbond was not started")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|rest| rest.trim().split(' ').next()?.parse().ok());
        Ok(Self {
            files: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            resident_kib: resident.context("the kernel does not tell a process's memory")?,
            pins: files_below(&router.host_path("/sys/fs/bpf"))?,
        })
    }

    /// What is more than before, and than it may be.
    pub(super) fn beyond(&self, before: &Self) -> impl Iterator<Item = String> + use<> {
        [
            ("open files", self.files, before.files, FILES),
            (
                "KiB of memory",
                self.resident_kib,
                before.resident_kib,
                MEMORY,
            ),
            ("pins", self.pins, before.pins, 0),
        ]
        .into_iter()
        .filter(|(_, now, before, room)| *now > before + room)
        .map(|(what, now, before, _)| format!("{before} {what} before, {now} after"))
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            files,
            resident_kib,
            pins,
        } = self;
        write!(f, "{files} files, {resident_kib} KiB, {pins} pins")
    }
}

fn files_below(dir: &Path) -> Result<usize> {
    let mut count = 0;
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() {
            files_below(&entry.path())?
        } else {
            1
        };
    }
    Ok(count)
}
