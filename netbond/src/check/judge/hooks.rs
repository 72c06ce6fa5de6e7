//! Other programs where netbond's are, and netbond's where it is not.

use super::some;
use crate::check::{
    Finding, Kind,
    facts::{Controller, Facts},
};
use crate::config::Config;
use crate::loader::PROGRAMS;
use crate::netlink::filter::Side;

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let runs = matches!(facts.controller, Controller::Runs(_));
    let mut findings = Vec::new();
    for hook in &facts.hooks {
        let Some(bond) = config.bonds.iter().find(|bond| bond.name == hook.bond) else {
            continue;
        };
        let device = &hook.device;
        let side = match hook.side {
            Side::Ingress => "ingress",
            Side::Egress => "egress",
        };
        let is_own = |name: &str| PROGRAMS.contains(&name);
        let own = hook
            .programs
            .iter()
            .position(|program| is_own(&program.name));
        if own.is_none() && runs && facts.readings(bond).is_some() {
            let finding = Finding::problem(
                Kind::ProgramMissing,
                format!("netbond's program is not on {side} of {device}: somebody took it off"),
                "`systemctl restart netbond` puts it back; find out what removes tc or tcx programs (another \
                 daemon, a script that deletes the clsact queueing discipline)",
            );
            findings.push(finding.of_bond(bond).of_device(device));
        }
        let others = hook.programs.iter().enumerate();
        let others: Vec<String> = others
            .filter(|(_, program)| !is_own(&program.name))
            .map(|(at, program)| {
                let order = match own {
                    Some(own) if at < own => "before netbond's",
                    Some(_) => "after netbond's",
                    None => "alone",
                };
                format!("{} ({}, {order})", program.name, program.place)
            })
            .collect();
        if !others.is_empty() {
            let finding = Finding::warning(
                Kind::OtherProgram,
                format!(
                    "other programs are on {side} of {device}: {}; one before netbond's may drop or redirect \
                     the bond's packets, one after it does not see them",
                    some(&others)
                ),
                format!(
                    "make sure that it lets GRE of the paths pass (`bpftool net show dev {device}`, `tc filter \
                     show dev {device} {side}`)"
                ),
            );
            findings.push(finding.of_bond(bond).of_device(device));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{facts::Program, sample};

    fn only(change: impl FnOnce(&mut Facts)) -> Finding {
        sample::only(&sample::found(judge, change))
    }

    #[test]
    fn others_on_the_hooks() {
        let other = |place| Program {
            name: "cil_from_netdev".to_owned(),
            place,
        };
        let after = only(|facts| facts.hooks[0].programs.push(other("tc filter")));
        assert_eq!(after.kind, Kind::OtherProgram);
        for part in [
            "cil_from_netdev (tc filter, after netbond's)",
            "egress of nb0",
        ] {
            assert!(after.what.contains(part), "{after:#?}");
        }
        let before = only(|facts| facts.hooks[1].programs.insert(0, other("tcx")));
        for part in ["(tcx, before netbond's)", "ingress of wg-a-m1"] {
            assert!(before.what.contains(part), "{before:#?}");
        }
    }

    #[test]
    fn our_own_is_gone() {
        let gone = only(|facts| facts.hooks[1].programs.clear());
        assert_eq!(gone.kind, Kind::ProgramMissing);
        assert_eq!(gone.device.as_deref(), Some("wg-a-m1"));
        let mut facts = sample::facts();
        facts.controller = Controller::None;
        for hook in &mut facts.hooks {
            hook.programs.clear();
        }
        assert_eq!(judge(&sample::config(), &facts), []);
    }
}
