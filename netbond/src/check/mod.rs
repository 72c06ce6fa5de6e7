//! The doctor: what is wrong with a configuration, with this host and with its bonds, and how to mend
//! it. It only reads.
//!
//! [`facts`] gathers what is so, from each source as far as that answers; [`judge`] says what of it is
//! wrong, and does no I/O.

mod abilities;
mod facts;
mod finding;
mod judge;
#[cfg(test)]
mod sample;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

pub(crate) use self::finding::plural;
pub use self::finding::{Finding, Kind, Severity};
use crate::{
    config::{Config, Problems},
    netlink::inventory,
    pins::Pins,
};
use facts::{Facts, Interfaces};

/// The version of the JSON. Fields and kinds are added to it; where one is removed, is renamed, or comes
/// to mean something else, the version is another. `docs/check.md` tells of each.
pub const VERSION: u32 = 1;

/// All that a check found; in JSON as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// The configuration file.
    pub file: String,
    /// Names of the file's bonds.
    pub bonds: Vec<String>,
    /// How many paths they have.
    pub paths: usize,
    /// What netbond needs of the host, and is there.
    pub host: Vec<Found>,
    /// By bond, those of the host first; the worst first, and causes before what follows from them.
    pub findings: Vec<Finding>,
    /// What could not be looked at.
    pub not_checked: Vec<Unchecked>,
}

/// Something that is as it must be.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    pub kind: Kind,
    pub what: String,
}

/// What could not be looked at, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unchecked {
    pub what: String,
    pub why: String,
}

impl Report {
    /// How many findings are of this severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        let alike = |finding: &&Finding| finding.severity == severity;
        self.findings.iter().filter(alike).count()
    }
}

/// Checks a configuration file, the host, and the bonds that run there.
///
/// # Errors
///
/// Where the file, or the host's devices, cannot be read. What is wrong with the file is a finding.
pub fn examine(path: &Path, pins: &Pins) -> Result<Report> {
    let file = path.display().to_string();
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => return error.downcast::<Problems>().map(of_file),
    };
    let facts = Facts::gather(&config, pins)?;
    let found = facts.abilities.iter().filter_map(|ability| {
        let what = ability.result.as_ref().ok()?.clone();
        let kind = ability.kind;
        Some(Found { kind, what })
    });
    Ok(Report {
        version: VERSION,
        file,
        bonds: config.bonds.iter().map(|bond| bond.name.clone()).collect(),
        paths: config.bonds.iter().map(|bond| bond.paths.len()).sum(),
        host: found.collect(),
        findings: sorted(judge::all(&config, &facts), &config),
        not_checked: facts.unchecked,
    })
}

/// What to know of a configuration before a controller starts with it. It starts all the same, as
/// devices and addresses may come later.
///
/// # Errors
///
/// Where the host's devices cannot be read.
pub fn at_start(config: &Config) -> Result<Vec<Finding>> {
    let host = inventory::devices_and_addresses()?;
    Ok(judge::names(config, &Interfaces::read(&host)?))
}

/// The report on a file that is wrong.
fn of_file(problems: Problems) -> Report {
    let findings = problems.list.into_iter().map(|problem| {
        Finding::problem(Kind::Configuration, problem.message, "correct the file").at(problem.line)
    });
    Report {
        version: VERSION,
        file: problems.file,
        bonds: Vec::new(),
        paths: 0,
        host: Vec::new(),
        findings: findings.collect(),
        not_checked: vec![Unchecked {
            what: "everything else".to_owned(),
            why: "the file must be in order first".to_owned(),
        }],
    }
}

/// In the order of a report, and without what another finding explains.
fn sorted(mut findings: Vec<Finding>, config: &Config) -> Vec<Finding> {
    let explained: BTreeSet<Option<String>> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Problem)
        .filter(|finding| finding.kind != Kind::PathState)
        .map(|finding| finding.path.clone())
        .filter(Option::is_some)
        .collect();
    findings.retain(|finding| {
        finding.kind != Kind::PathState
            || finding.severity == Severity::Note
            || !explained.contains(&finding.path)
    });
    let place = |finding: &Finding| {
        let mut names = config.bonds.iter().map(|bond| Some(bond.name.as_str()));
        names.position(|name| name == finding.bond.as_deref())
    };
    // Stable: of a kind in the order of the file.
    findings.sort_by_key(|finding| (place(finding), finding.severity, finding.kind));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = include_str!("../../../docs/check.md");

    /// Document and code name the same kinds, in the same order.
    #[test]
    fn every_kind_is_documented() {
        let headings = DOCUMENT.lines().filter_map(|line| {
            let heading = line.strip_prefix("### `")?;
            heading.strip_suffix('`')
        });
        let headings: Vec<&str> = headings.collect();
        let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.label()).collect();
        assert_eq!(headings, kinds);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_a_finding() {
        let problems = Config::parse("[[bond]]\nname = 7\n", "f").unwrap_err();
        let report = of_file(problems);
        assert!(report.count(Severity::Problem) > 0);
        let last = report.findings.last().unwrap();
        assert_eq!(last.line, Some(2), "{report:#?}");
        assert!(
            last.sentence("f").starts_with("f:2: bond: name 7"),
            "{last:#?}"
        );
    }

    #[test]
    fn a_state_is_told_where_nothing_else_tells_why() {
        let config = sample::config();
        let bond = &config.bonds[0];
        let state = |path: usize| {
            Finding::problem(Kind::PathState, "dead", "wait").of_path(bond, &bond.paths[path])
        };
        let cause = Finding::problem(Kind::AllowedIps, "left out", "add it");
        let findings = vec![state(0), state(1), cause.of_path(bond, &bond.paths[1])];
        let kinds = |findings: Vec<Finding>| -> Vec<(Kind, Option<String>)> {
            let what = |finding: Finding| (finding.kind, finding.path);
            findings.into_iter().map(what).collect()
        };
        assert_eq!(
            kinds(sorted(findings, &config)),
            [
                (Kind::AllowedIps, Some("via-m2".to_owned())),
                (Kind::PathState, Some("via-m1".to_owned())),
            ]
        );
    }
}
