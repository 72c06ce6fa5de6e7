//! What of the facts is wrong. No I/O.

mod controller;
mod hooks;
mod mtu;
mod names;
mod ospf;
mod routes;
mod settings;
mod sharing;
mod tunnels;

pub(super) use self::names::names;
use super::{Finding, facts::Facts};
use crate::config::Config;

/// Everything that is wrong, in no order.
pub(super) fn all(config: &Config, facts: &Facts) -> Vec<Finding> {
    let host = facts.abilities.iter().filter_map(|ability| {
        let missing = ability.result.as_ref().err()?;
        let (what, remedy) = (missing.what.as_str(), missing.remedy.as_str());
        Some(Finding::problem(ability.kind, what, remedy))
    });
    let mut findings: Vec<Finding> = host.collect();
    findings.extend(names(config, &facts.interfaces));
    for judge in [
        tunnels::judge,
        routes::judge,
        ospf::judge,
        mtu::judge,
        settings::judge,
        controller::judge,
        hooks::judge,
        sharing::judge,
    ] {
        findings.extend(judge(config, facts));
    }
    findings
}

/// The first few of a list that may be long.
fn some(list: &[String]) -> String {
    const FEW: usize = 4;
    match list.len().checked_sub(FEW) {
        None | Some(0) => list.join(", "),
        Some(more) => format!("{} and {more} more", list[..FEW].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::sample;

    #[test]
    fn nothing_is_wrong_with_what_is_healthy() {
        assert_eq!(all(&sample::config(), &sample::facts()), []);
    }

    #[test]
    fn long_lists_are_cut() {
        let list: Vec<String> = (1..=6).map(|number| number.to_string()).collect();
        assert_eq!(some(&list[..4]), "1, 2, 3, 4");
        assert_eq!(some(&list), "1, 2, 3, 4 and 2 more");
    }
}
