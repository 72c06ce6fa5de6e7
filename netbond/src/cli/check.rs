//! `netbond check`.

use std::fmt::Write as _;
use std::io::Write as _;

use anstyle::{AnsiColor, Style};
use anyhow::{Result, bail};

use super::ConfigFile;
use crate::{
    check::{self, Finding, Report, Severity, plural},
    pins::Pins,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// Print JSON (docs/check.md tells of each field)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, pins: &Pins) -> Result<()> {
    let report = check::examine(&args.config.path, pins)?;
    let mut out = anstream::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", render(&report))?;
    }
    match report.count(Severity::Problem) {
        0 => Ok(()),
        problems => bail!("{} found", plural(problems, "problem")),
    }
}

const fn style(severity: Severity) -> Style {
    match severity {
        Severity::Problem => AnsiColor::Red.on_default().bold(),
        Severity::Warning => AnsiColor::Yellow.on_default(),
        Severity::Note => Style::new(),
    }
}

/// For people: what the host has, then what is wrong, bond by bond.
fn render(report: &Report) -> String {
    let mut text = String::new();
    let width = report.host.iter().map(|found| found.kind.label().len());
    let width = width.max().unwrap_or(0);
    for found in &report.host {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:width$}  {}", found.kind.label(), found.what);
    }
    let mut place = None;
    for finding in &report.findings {
        if place != Some(&finding.bond) {
            place = Some(&finding.bond);
            text += &heading(report, finding.bond.as_deref());
        }
        text += &told(report, finding);
    }
    if !report.not_checked.is_empty() {
        text += "\nnot checked\n";
    }
    for unchecked in &report.not_checked {
        let _ = writeln!(text, "  {}: {}", unchecked.what, unchecked.why);
    }
    text + "\n" + &summary(report) + "\n"
}

/// A bond's heading, or the host's.
fn heading(report: &Report, bond: Option<&str>) -> String {
    let of = |severity| {
        let findings = report.findings.iter();
        let count = findings
            .filter(|finding| finding.severity == severity && finding.bond.as_deref() == bond)
            .count();
        (count != 0).then(|| plural(count, severity.label()))
    };
    let counts = [Severity::Problem, Severity::Warning, Severity::Note].map(of);
    let counts: Vec<String> = counts.into_iter().flatten().collect();
    format!("\n{}: {}\n", bond.unwrap_or("this host"), counts.join(", "))
}

fn told(report: &Report, finding: &Finding) -> String {
    let style = style(finding.severity);
    let severity = match finding.severity {
        Severity::Problem => "PROBLEM",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    format!(
        "  {style}{severity}{style:#}{:fill$}  {} [{}]\n           to do: {}\n",
        "",
        finding.sentence(&report.file),
        finding.kind.label(),
        finding.remedy,
        fill = "PROBLEM".len() - severity.len(),
    )
}

fn summary(report: &Report) -> String {
    let counts = [Severity::Problem, Severity::Warning, Severity::Note];
    let counts = counts.map(|severity| (report.count(severity), severity.label()));
    let counts = counts.into_iter().filter(|(count, _)| *count != 0);
    let counts: Vec<String> = counts.map(|(count, word)| plural(count, word)).collect();
    let verdict = if counts.is_empty() {
        "good".to_owned()
    } else {
        format!(
            "{}; docs/check.md tells more of each [kind]",
            counts.join(", ")
        )
    };
    if report.bonds.is_empty() && report.count(Severity::Problem) != 0 {
        return format!("{}: {verdict}", report.file);
    }
    format!(
        "{}: {}, {}: {verdict}",
        report.file,
        plural(report.bonds.len(), "bond"),
        plural(report.paths, "path")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Found, Kind, Unchecked};
    use crate::documented::{documented, printed};

    fn report() -> Report {
        Report {
            version: check::VERSION,
            file: "netbond.toml".to_owned(),
            bonds: vec!["nb0".to_owned()],
            paths: 2,
            host: [(Kind::Kernel, "Linux 6.12"), (Kind::Capabilities, "all")]
                .map(|(kind, what)| Found {
                    kind,
                    what: what.to_owned(),
                })
                .into(),
            findings: Vec::new(),
            not_checked: Vec::new(),
        }
    }

    fn finding(severity: Severity) -> Finding {
        Finding {
            severity,
            kind: Kind::AllowedIps,
            bond: Some("nb0".to_owned()),
            path: Some("via-m1".to_owned()),
            device: Some("wg-a-m1".to_owned()),
            line: Some(12),
            what: "AllowedIPs leave out 10.65.0.6".to_owned(),
            remedy: "add it".to_owned(),
        }
    }

    fn plain(report: &Report) -> String {
        anstream::adapter::strip_str(&render(report)).to_string()
    }

    #[test]
    fn all_is_well() {
        assert_eq!(
            plain(&report()),
            "kernel        Linux 6.12\ncapabilities  all\n\nnetbond.toml: 1 bond, 2 paths: good\n"
        );
    }

    #[test]
    fn findings_stand_below_their_bond() {
        let mut report = report();
        report.host.clear();
        report.findings = vec![finding(Severity::Problem), finding(Severity::Note)];
        report.not_checked = vec![Unchecked {
            what: "black holes".to_owned(),
            why: "no controller runs".to_owned(),
        }];
        assert_eq!(
            plain(&report),
            "\nnb0: 1 problem, 1 note\n\
             \x20 PROBLEM  netbond.toml:12: path \"via-m1\": AllowedIPs leave out 10.65.0.6 [allowed-ips]\n\
             \x20          to do: add it\n\
             \x20 note     netbond.toml:12: path \"via-m1\": AllowedIPs leave out 10.65.0.6 [allowed-ips]\n\
             \x20          to do: add it\n\
             \nnot checked\n\
             \x20 black holes: no controller runs\n\
             \nnetbond.toml: 1 bond, 2 paths: 1 problem, 1 note; docs/check.md tells more of each [kind]\n"
        );
    }

    #[test]
    fn every_field_is_documented_as_it_is_printed() {
        let (mut full, mut without) = (report(), report());
        let mut bare = finding(Severity::Problem);
        (bare.bond, bare.path, bare.device, bare.line) = (None, None, None, None);
        full.findings = vec![finding(Severity::Problem)];
        without.findings = vec![bare];
        full.not_checked = vec![Unchecked {
            what: "black holes".to_owned(),
            why: "no controller runs".to_owned(),
        }];
        let document = include_str!("../../../docs/check.md");
        assert_eq!(
            documented(document, "## JSON"),
            printed(&full, &[without], |_| None)
        );
    }
}
