//! What a running controller knows: how paths stand, whether both ends agree, whether it goes by this
//! file.

use netbond_common::{
    fate::Fate,
    names::{Encap, PathState, StateReason, Xdp},
};

use super::routes;
use crate::check::{
    Finding, Kind,
    facts::{Controller, Facts, Stray, paths},
    plural,
};
use crate::config::{Bond, Config, DetourPolicy, Lan, Path, XdpMode};
use crate::status;

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let (status, mut findings) = match &facts.controller {
        Controller::None | Controller::Unknown => return Vec::new(),
        Controller::Ended => {
            return vec![Finding::warning(
                Kind::Controller,
                "no controller runs: packets pass by the last word of the last one, and no change of routes \
                 is followed",
                "`systemctl start netbond`; `netbond detach` removes the bonds where that is meant",
            )];
        }
        Controller::Runs(readings) => (&readings.1, Vec::new()),
    };
    findings.extend(config.lans.iter().filter_map(|lan| {
        let known = status.lans.iter().find(|known| known.name == lan.name);
        by_kernel(lan, known?)
    }));
    for bond in &config.bonds {
        let Some((before, now)) = facts.readings(bond) else {
            findings.push(not_loaded(format!("{} is in the file", bond.name)).of_bond(bond));
            continue;
        };
        if !now.device_up {
            let (name, remedy) = (&bond.name, format!("`ip link set {} up`", bond.name));
            let what = format!("the bond device {name} is down, or gone");
            let finding = Finding::problem(Kind::BondDown, what, remedy);
            findings.push(finding.of_bond(bond).of_device(name));
        }
        for disagreement in &now.disagreements {
            let (what, remedy) = disagreement.split_once(": ").unwrap_or((disagreement, ""));
            findings.push(Finding::problem(Kind::Disagreement, what, remedy).of_bond(bond));
        }
        findings.extend(version(before, now).map(|finding| finding.of_bond(bond)));
        for path in &bond.paths {
            let mut known = now.paths.iter();
            let finding = match known.find(|known| known.name == path.name) {
                Some(known) if (known.local, known.remote) == (path.local, path.remote) => {
                    heard(config, facts, bond, path, known)
                        .or_else(|| state(known).filter(|_| !is_told(facts, bond, path, known)))
                }
                Some(_) => Some(not_loaded("it has other addresses in the file".to_owned())),
                None => Some(not_loaded("it is in the file".to_owned())),
            };
            findings.extend(finding.map(|finding| finding.of_path(bond, path)));
            let known = now.paths.iter().find(|known| known.name == path.name);
            findings.extend(known.and_then(|known| by_tc(bond, path, known)));
        }
    }
    for known in &status.bonds {
        if config.bonds.iter().all(|bond| bond.name != known.name) {
            findings.push(not_loaded(format!("{} is not in the file", known.name)));
        }
    }
    findings
}

fn not_loaded(what: String) -> Finding {
    Finding::warning(
        Kind::NotLoaded,
        format!("{what}, but the running controller knows otherwise"),
        "`netbond reload`, if this is the controller's file",
    )
}

/// Whether a path is received by tc that is to be received by XDP.
fn by_tc(bond: &Bond, path: &Path, known: &status::Path) -> Option<Finding> {
    let what = "packets of this path are received by tc, not by XDP";
    let finding = no_xdp(path.xdp, known.xdp, what)?;
    Some(finding.of_path(bond, path).of_device(&known.device))
}

/// Whether a LAN is forwarded by the kernel that is to be forwarded by XDP.
fn by_kernel(lan: &Lan, known: &status::Lan) -> Option<Finding> {
    let what = "packets of this LAN are forwarded by the kernel, not by XDP";
    Some(no_xdp(lan.xdp, known.xdp, what)?.of_device(&lan.name))
}

fn no_xdp(wanted: XdpMode, state: &str, what: &str) -> Option<Finding> {
    let make = match wanted {
        // One that runs with another file is told of elsewhere.
        _ if state == Xdp::Native.label() || state == Xdp::Off.label() => return None,
        XdpMode::Off => return None,
        XdpMode::Auto => Finding::note,
        XdpMode::Native => Finding::warning,
    };
    Some(make(
        Kind::Xdp,
        format!("{what}: {state}"),
        "`netbond events` has the kernel's words; docs/architecture.md, XDP, says what XDP needs; xdp = \
         \"off\" does without",
    ))
}

/// Whether the peer sends probes that this build does not understand.
fn version(before: &status::Bond, now: &status::Bond) -> Option<Finding> {
    let count = |bond: &status::Bond| {
        let counted = bond.fates.get(Fate::RxProbeMalformed.label());
        counted.copied().unwrap_or(0)
    };
    let grown = count(now)
        .checked_sub(count(before))
        .filter(|&grown| grown != 0)?;
    Some(Finding::problem(
        Kind::Version,
        format!(
            "the peer sends probes that this netbond does not understand ({} just now): it is of another \
             version",
            plural(grown, "probe")
        ),
        format!(
            "install the same netbond at both ends; here it is {}",
            env!("CARGO_PKG_VERSION")
        ),
    ))
}

/// What of the peer's packets tells why a silent path is so.
fn heard(
    config: &Config,
    facts: &Facts,
    bond: &Bond,
    path: &Path,
    known: &status::Path,
) -> Option<Finding> {
    if known.reason != StateReason::Silent.label() {
        return None;
    }
    let (local, remote) = (path.local, path.remote);
    let mut strays = facts.strays.iter().filter(|stray| stray.to == local);
    // Another bond's may have the same addresses and its own key.
    let keys =
        paths(config).filter(|(_, other)| (other.local, other.remote) == (path.local, path.remote));
    let keys: Vec<Option<u32>> = keys.map(|(bond, _)| bond.key).collect();
    let ethernet = bond.encap == Encap::Gretap;
    let problem =
        |what: String, remedy: &str| Some(Finding::problem(Kind::Disagreement, what, remedy));
    if let Some(stray) = strays.clone().find(|stray| stray.from == remote) {
        let Stray { key, odd, .. } = *stray;
        if !keys.contains(&key) {
            let named =
                |key: Option<u32>| key.map_or("no key".to_owned(), |key| format!("key {key}"));
            let what = format!(
                "GRE from {remote} has {}, this end has {}",
                named(key),
                named(bond.key)
            );
            return problem(what, "set the same `key` at both ends");
        }
        if odd {
            let what = format!(
                "GRE from {remote} has a checksum or other flags that netbond does not speak"
            );
            return problem(what, "create the peer's tunnel without csum and seq");
        }
        if stray.is_ethernet() != ethernet {
            let what = format!(
                "GRE from {remote} carries {}, this end's encap is {}",
                if ethernet {
                    "IP packets"
                } else {
                    "Ethernet frames"
                },
                bond.encap.label()
            );
            return problem(what, "set the same `encap` at both ends");
        }
    }
    let known = |from| paths(config).any(|(_, path)| path.remote == from);
    let stranger = strays.find(|stray| !known(stray.from))?.from;
    problem(
        format!(
            "nothing is heard from remote {remote}, and GRE arrives from {stranger}: if that is the peer, the two ends name other addresses"
        ),
        "`local` and `remote` of a path are exchanged at the other end: correct the one that is wrong",
    )
}

/// Whether a detour is meant, or the routes tell of it.
fn is_told(facts: &Facts, bond: &Bond, path: &Path, known: &status::Path) -> bool {
    known.state == PathState::Detour.label()
        && (bond.detour == DetourPolicy::Use || routes::off_route(facts, path).is_some())
}

/// How a path stands that is not up.
fn state(path: &status::Path) -> Option<Finding> {
    let (state, reason) = (path.state, path.reason);
    let what = format!("{state}: {reason}");
    let why = format!("`netbond why {}` tells more", path.name);
    let is = |other: PathState| state == other.label();
    if reason == StateReason::Admin.label() {
        let remedy = format!("`netbond path up {}` takes it back", path.name);
        return Some(Finding::note(Kind::PathState, what, remedy));
    }
    if reason == StateReason::Silent.label() {
        let remedy = format!(
            "does netbond run at the peer, with this path in its file and no probe_interval = 0? Does what is \
             between pass GRE? {why}"
        );
        return Some(Finding::problem(Kind::PathState, what, remedy));
    }
    if is(PathState::Up) {
        None
    } else if is(PathState::Dead) && reason != StateReason::HeldDown.label() || is(PathState::Down)
    {
        Some(Finding::problem(Kind::PathState, what, why))
    } else {
        Some(Finding::warning(Kind::PathState, what, why))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::check::{Severity, sample};
    use crate::status::Status;

    fn found(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        sample::found(judge, change)
    }

    fn only(change: impl FnOnce(&mut Facts)) -> Finding {
        sample::only(&found(change))
    }

    fn now(facts: &mut Facts) -> &mut Status {
        match &mut facts.controller {
            Controller::Runs(readings) => &mut readings.1,
            Controller::None | Controller::Unknown | Controller::Ended => panic!("it runs"),
        }
    }

    /// via-m1 in this state, while these strays are heard.
    fn with(state: PathState, reason: StateReason, strays: &[Stray]) -> Finding {
        only(|facts| {
            let path = &mut now(facts).bonds[0].paths[0];
            (path.state, path.reason) = (state.label(), reason.label());
            facts.strays.extend(strays);
        })
    }

    #[test]
    fn how_paths_stand() {
        for (state, reason, severity) in [
            (PathState::Dead, StateReason::Silent, Severity::Problem),
            (PathState::Down, StateReason::NoDevice, Severity::Problem),
            (PathState::Dead, StateReason::HeldDown, Severity::Warning),
            (PathState::Degraded, StateReason::Lossy, Severity::Warning),
            (PathState::Down, StateReason::Admin, Severity::Note),
        ] {
            let finding = with(state, reason, &[]);
            assert_eq!(
                (finding.kind, finding.severity),
                (Kind::PathState, severity),
                "{reason:?}"
            );
            assert_eq!(finding.path.as_deref(), Some("via-m1"));
        }
    }

    #[test]
    fn a_detour_is_told_once() {
        let detour = |facts: &mut Facts| {
            let path = &mut now(facts).bonds[0].paths[0];
            path.state = PathState::Detour.label();
            path.reason = StateReason::Elsewhere.label();
        };
        // The route has changed since.
        assert_eq!(only(detour).kind, Kind::PathState);
        let told = found(|facts| {
            detour(facts);
            let remote = sample::config().bonds[0].paths[0].remote;
            let way = facts.ways.get_mut(&(remote, 0)).unwrap();
            way.as_mut().unwrap().next_hops[0].ifindex = 4;
        });
        assert_eq!(told, []);
        let text = sample::CONFIG.replace("peer =", "detour = \"use\"\npeer =");
        let config = Config::parse(&text, "f").unwrap();
        let mut facts = sample::facts();
        detour(&mut facts);
        assert_eq!(judge(&config, &facts), []);
    }

    #[test]
    fn why_a_path_is_silent() {
        let stray = Stray {
            from: IpAddr::from([10, 65, 0, 6]),
            to: IpAddr::from([10, 65, 0, 2]),
            key: None,
            odd: false,
            protocol: 0x0800,
        };
        let silent = |stray| with(PathState::Dead, StateReason::Silent, &[stray]);
        for (stray, said) in [
            (
                Stray {
                    key: Some(7),
                    ..stray
                },
                "has key 7, this end has no key",
            ),
            (Stray { odd: true, ..stray }, "checksum"),
            (
                Stray {
                    protocol: 0x6558,
                    ..stray
                },
                "Ethernet frames",
            ),
            (
                Stray {
                    from: IpAddr::from([10, 65, 0, 7]),
                    ..stray
                },
                "10.65.0.7",
            ),
        ] {
            let finding = silent(stray);
            assert_eq!(finding.kind, Kind::Disagreement);
            assert!(finding.what.contains(said), "{finding:#?}");
        }
        // The other path's, and a bystander's.
        for stray in [
            Stray {
                from: IpAddr::from([10, 65, 0, 10]),
                ..stray
            },
            Stray {
                to: IpAddr::from([10, 65, 0, 14]),
                from: IpAddr::from([10, 9, 9, 9]),
                ..stray
            },
        ] {
            assert_eq!(silent(stray).kind, Kind::PathState);
        }
    }

    #[test]
    fn what_the_ends_do_not_agree_on() {
        let one = only(|facts| {
            now(facts).bonds[0].disagreements = vec!["the peer's encap is gretap: set the same"];
        });
        assert_eq!(
            (one.kind, one.remedy.as_str()),
            (Kind::Disagreement, "set the same")
        );
        let malformed = Fate::RxProbeMalformed.label();
        let one = only(|facts| {
            now(facts).bonds[0].fates.insert(malformed, 3);
        });
        assert_eq!(one.kind, Kind::Version);
        assert!(one.what.contains("3 probes"), "{one:#?}");
        // Those of long ago.
        let old = found(|facts| {
            let Controller::Runs(readings) = &mut facts.controller else {
                panic!("it runs");
            };
            readings.0.bonds[0].fates.insert(malformed, 3);
            readings.1.bonds[0].fates.insert(malformed, 3);
        });
        assert_eq!(old, []);
    }

    #[test]
    fn a_path_that_is_received_by_tc_all_the_same() {
        for (mode, severity) in [
            (XdpMode::Off, None),
            (XdpMode::Auto, Some(Severity::Note)),
            (XdpMode::Native, Some(Severity::Warning)),
        ] {
            let mut config = sample::config();
            config.bonds[0].paths[0].xdp = mode;
            let mut facts = sample::facts();
            for (state, expected) in [(Xdp::Native, None), (Xdp::NoDriver, severity)] {
                now(&mut facts).bonds[0].paths[0].xdp = state.label();
                let findings = judge(&config, &facts);
                let found = findings.first().map(|finding| finding.severity);
                assert_eq!(found, expected, "{mode:?}, {state:?}: {findings:#?}");
                for finding in findings {
                    assert_eq!(finding.kind, Kind::Xdp);
                    assert!(finding.what.contains("driver has no XDP"), "{finding:#?}");
                }
            }
        }
    }

    #[test]
    fn a_controller_with_another_file() {
        let kind = |change: fn(&mut Status)| {
            let one = only(|facts| change(now(facts)));
            (one.kind, one.path)
        };
        let path = || Some("via-m1".to_owned());
        let gone = kind(|status| {
            status.bonds[0].paths.remove(0);
        });
        assert_eq!(gone, (Kind::NotLoaded, path()));
        let moved = kind(|status| status.bonds[0].paths[0].remote = [10, 9, 9, 9].into());
        assert_eq!(moved, (Kind::NotLoaded, path()));
        let more = kind(|status| {
            let mut other = status.bonds[0].clone();
            other.name = "nb1".to_owned();
            status.bonds.push(other);
        });
        assert_eq!(more, (Kind::NotLoaded, None));
        let down = kind(|status| status.bonds[0].device_up = false);
        assert_eq!(down, (Kind::BondDown, None));
    }

    #[test]
    fn no_controller() {
        let ended = only(|facts| facts.controller = Controller::Ended);
        assert_eq!(
            (ended.kind, ended.severity),
            (Kind::Controller, Severity::Warning)
        );
        assert_eq!(found(|facts| facts.controller = Controller::None), []);
    }
}
