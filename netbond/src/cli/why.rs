//! `netbond why`: why a path is as it is, in sentences.

use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use netbond_common::names::{EventKind, FullSize, Mode, PathState, StateReason, Watch, Weights};
use serde_json::json;

use super::{
    events::{line, to_json},
    format::{clock, span},
};
use crate::{
    control::plan::LEAST_MTU,
    journal::{Entry, Reader},
    pins::Pins,
    status::{self, Bond, Path, Proof},
    tables::Tables,
};

/// Entries of the journal that are shown below.
const RECENT: usize = 8;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of the path
    path: String,
    /// Print JSON: the sentences, the path's status, its events
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, pins: &Pins) -> Result<()> {
    let status = status::collect(&Tables::open(pins)?, pins)?;
    let Some((bond, path)) = status.path(&args.path) else {
        let paths = status.bonds.iter().flat_map(|bond| &bond.paths);
        let known: Vec<&str> = paths.map(|path| path.name.as_str()).collect();
        bail!("no path \"{}\"; there are: {}", args.path, known.join(", "));
    };
    let mut entries = Reader::open(pins)?.read();
    entries.retain(|entry| entry.path == path.name);
    let mut sentences = explain(bond, path, &entries, SystemTime::now());
    if !status.controller.running {
        sentences.push(
            "No controller runs: state and reason are the last one's word, the proof of life is the \
             data plane's own and of now."
                .to_owned(),
        );
    }
    let recent = &entries[entries.len().saturating_sub(RECENT)..];
    let mut out = std::io::stdout().lock();
    if args.json {
        let recent: Vec<_> = recent.iter().map(to_json).collect();
        let all = json!({"sentences": sentences, "path": path, "events": recent});
        serde_json::to_writer_pretty(&mut out, &all)?;
        writeln!(out)?;
        return Ok(());
    }
    for sentence in sentences {
        writeln!(out, "{sentence}")?;
    }
    if !recent.is_empty() {
        writeln!(out, "\nLately:")?;
    }
    for entry in recent {
        writeln!(out, "  {}", line(entry))?;
    }
    Ok(())
}

/// All that there is to say. `entries` are the path's own.
fn explain(bond: &Bond, path: &Path, entries: &[Entry], now: SystemTime) -> Vec<String> {
    let changed = UNIX_EPOCH + Duration::from_secs_f64(path.changed.max(0.0));
    let ago = now.duration_since(changed).unwrap_or_default();
    let mut sentences = vec![format!(
        "{} of {} is {} for {}, since {}: {}.",
        path.name,
        bond.name,
        path.state,
        span(ago),
        clock(changed),
        path.reason
    )];
    let is_change = |entry: &&Entry| entry.kind == Some(EventKind::Changed);
    // Not where the user's flag is obeyed already and the controller has not told yet.
    let tells = |entry: &&Entry| {
        let change = entry.change;
        change.is_some_and(|change| change.reason.label() == path.reason)
    };
    if let Some(entry) = entries.iter().rfind(is_change).filter(tells) {
        sentences.push(format!("What happened then: {}.", entry.text));
        let confirmed = entries.iter().rfind(|later| {
            later.kind == Some(EventKind::Confirmed) && later.sequence > entry.sequence
        });
        sentences
            .extend(confirmed.map(|later| format!("Since then, confirming it: {}.", later.text)));
    }
    sentences.push(traffic(bond, path));
    sentences.extend(path.proof.as_ref().map(proof));
    sentences.extend(probes(path));
    sentences.extend(mtu(bond, path));
    sentences.push(route(path));
    sentences.extend(next_hop(path));
    sentences.extend(path.neighbour.as_ref().map(|neighbour| {
        format!(
            "OSPF's neighbour {} on {} is {}.",
            neighbour.router_id, path.device, neighbour.state
        )
    }));
    sentences.extend(way_back(path));
    sentences
}

fn traffic(bond: &Bond, path: &Path) -> String {
    if path.in_use {
        if bond.mode == Mode::ActiveBackup.label() {
            return format!(
                "Packets are sent on it, in mode {}: it is the best, with priority {}.",
                bond.mode, path.priority
            );
        }
        let weight = path.effective_weight;
        let source = if bond.weights == Weights::Measured.label() {
            " as measured".to_owned()
        } else if bond.weights == Weights::Static.label() && weight < f64::from(path.weight) {
            format!(" of {}, as the policy says", path.weight)
        } else {
            String::new()
        };
        let mode = if bond.mode == Mode::RoundRobin.label() {
            String::new()
        } else {
            format!(", in mode {}", bond.mode)
        };
        return format!("Packets are sent on it{mode}, by weight {weight}{source}.");
    }
    let others: Vec<&str> = bond
        .paths
        .iter()
        .filter(|other| other.in_use)
        .map(|other| other.name.as_str())
        .collect();
    if !others.is_empty() {
        let verb = if others.len() == 1 {
            "carries"
        } else {
            "carry"
        };
        format!(
            "No packets are sent on it: {} {verb} them.",
            others.join(", ")
        )
    } else if path.state == PathState::Down.label() {
        "No packets are sent on it, and no other path of the bond is in use.".to_owned()
    } else {
        "No path of the bond is in use: packets are sent on each that has a route, or had answers to \
         probes, this one too, as a last resort."
            .to_owned()
    }
}

fn proof(proof: &Proof) -> String {
    let limit = proof.limit_ms;
    match proof.age_ms {
        None => format!(
            "There was no proof yet that packets pass both ways; one not older than {limit:.0} ms is \
             needed."
        ),
        Some(age) => format!(
            "The last proof that packets pass both ways is {} old; it may be {limit:.0} ms.",
            if age < 10_000.0 {
                format!("{age:.0} ms")
            } else {
                span(Duration::from_secs_f64(age / 1000.0))
            }
        ),
    }
}

/// What probes found of round trips, losses and sizes.
fn probes(path: &Path) -> Vec<String> {
    let silent =
        path.state == PathState::Dead.label() && path.reason == StateReason::Silent.label();
    let Some(probe) = &path.probe else {
        let text = if path.watch == Watch::Probes.label() {
            "None of its probes has been answered yet."
        } else if path.watch == Watch::Bfd.label() {
            "It is not probed, but watched by BFD."
        } else {
            "It is not probed: its routes are all there is to go by."
        };
        return vec![text.to_owned()];
    };
    let percent = |share: f64| share * 100.0;
    let mut sentences = Vec::new();
    if silent {
        sentences.push(format!(
            "The last {} probes found no answer; before that:",
            probe.missed
        ));
    }
    sentences.push(format!(
        "Round trip {:.2} ms (least {:.2}, jitter {:.2}); of ten seconds' probes {:.1} % were lost on \
         the way there and {:.1} % on the way back; {} came out of order.",
        probe.rtt_ms,
        probe.least_ms,
        probe.jitter_ms,
        percent(probe.loss_there),
        percent(probe.loss_back),
        probe.reordered
    ));
    sentences
}

/// What probes found of sizes.
fn mtu(bond: &Bond, path: &Path) -> Option<String> {
    let probe = path.probe.as_ref()?;
    let bytes = probe.full_size;
    if probe.full_size_result == FullSize::BlackHole.label() {
        return Some(format!(
            "Packets of {bytes} bytes vanish on the way, while small ones pass: what lies below takes less than \
             its devices say. A path that carries none of {LEAST_MTU} bytes is of no use."
        ));
    }
    let path_mtu = probe.path_mtu?;
    let passes = format!(
        "The path MTU is {path_mtu} bytes by probes: packets of the bond of {bytes} bytes pass"
    );
    Some(match bond.narrowed_by(probe) {
        Some((_, ceiling)) => format!(
            "{passes}, and no longer ones, though its device takes those of {ceiling}. Larger ones are tried every ten \
             minutes, and when a device or a route changes."
        ),
        None => format!("{passes}."),
    })
}

fn route(path: &Path) -> String {
    let remote = path.remote;
    let Some(route) = &path.route else {
        return format!("No route leads to {remote}.");
    };
    let via = route
        .via
        .map(|via| format!(" via {via}"))
        .unwrap_or_default();
    let own = if route.device == path.device {
        ", its own device".to_owned()
    } else {
        format!(
            ", not its own device {}: packets leave by that all the same",
            path.device
        )
    };
    format!(
        "The route to {remote} ({}) is {}'s, over {}{via}{own}.",
        route.prefix, route.protocol, route.device
    )
}

/// To whom packets are sent over Ethernet, where the route does not say so.
fn next_hop(path: &Path) -> Option<String> {
    let (next_hop, device) = (path.next_hop?, &path.device);
    let route = path.route.as_ref();
    let route = route.filter(|route| route.device == *device);
    let named = route.is_some_and(|route| route.via.unwrap_or(path.remote) == next_hop);
    let why = match route {
        Some(_) => "by the kernel's rules",
        None => "as an earlier route said",
    };
    (!named).then(|| format!("Packets go to {next_hop} on {device}, {why}."))
}

/// What must happen for the path to be used as any other.
fn way_back(path: &Path) -> Option<String> {
    let reason = StateReason::ALL
        .iter()
        .find(|reason| reason.label() == path.reason)?;
    let (remote, device) = (path.remote, &path.device);
    let way = match reason {
        StateReason::Route | StateReason::Starting => return None,
        StateReason::NoRoute | StateReason::Unreachable => {
            format!("an OSPF route leads to {remote} over {device} again")
        }
        StateReason::NotOspf => format!(
            "an OSPF route to {remote} takes the place of this one; or name its protocol in \
             route_protocols, where it is meant to count"
        ),
        StateReason::Elsewhere if path.in_use => {
            format!("OSPF reaches {remote} over {device} again")
        }
        StateReason::Elsewhere => format!(
            "OSPF reaches {remote} over {device} again; or set detour = \"use\" to use it as it is"
        ),
        StateReason::PeerElsewhere => format!("OSPF reaches the peer over {device} again"),
        StateReason::NoDevice => "its device exists".to_owned(),
        StateReason::DeviceDown => format!("{device} is up"),
        StateReason::NoAddress => format!("a device has the address {}", path.local),
        StateReason::Admin => format!("you take it back in: netbond path up {}", path.name),
        StateReason::Silent => "several probes in a row are answered".to_owned(),
        StateReason::Mtu => {
            format!("probes of {LEAST_MTU} bytes and more are answered again and again")
        }
        StateReason::HeldDown => {
            let left = path.hold_down_ms.unwrap_or(0.0) / 1000.0;
            let times = match path.flaps {
                1 => "once".to_owned(),
                flaps => format!("{flaps} times in a row"),
            };
            format!(
                "it has been well for another {left:.1} s: it failed soon after its return, {times}"
            )
        }
        StateReason::Lossy => {
            "it has lost less than three quarters of the limit for ten seconds".to_owned()
        }
        StateReason::Slow => {
            "its round trip has been below three quarters of the limit for ten seconds".to_owned()
        }
        StateReason::Bfd => "the BFD session with the peer is up".to_owned(),
    };
    let what = if path.in_use {
        "It is as any other again"
    } else {
        "It comes back"
    };
    Some(format!("{what} when {way}."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Change;
    use crate::status::sample::{self, path};

    fn story(path: Path) -> String {
        let other = sample::path("via-m2", PathState::Up, StateReason::Route);
        let entry = |sequence, kind, text: &str| Entry {
            sequence,
            at: UNIX_EPOCH + Duration::from_secs(1000),
            kind: Some(kind),
            bond: "nb0".to_owned(),
            path: "via-m1".to_owned(),
            change: (kind == EventKind::Changed).then_some(Change {
                from: Some(PathState::Up),
                to: PathState::Dead,
                reason: StateReason::Silent,
            }),
            text: text.to_owned(),
        };
        let entries = [
            entry(1, EventKind::Changed, "probe: 3 missed"),
            entry(
                2,
                EventKind::Confirmed,
                "neighbour 10.65.1.1 on wg-a-m1 lost",
            ),
        ];
        let mut bond = sample::bond();
        bond.paths = vec![path, other];
        let now = UNIX_EPOCH + Duration::from_secs(1012);
        explain(&bond, &bond.paths[0], &entries, now).join("\n")
    }

    #[test]
    fn a_dead_path() {
        let story = story(path("via-m1", PathState::Dead, StateReason::Silent));
        for part in [
            "via-m1 of nb0 is dead for 12s, since ",
            ": probes unanswered.",
            "What happened then: probe: 3 missed.",
            "Since then, confirming it: neighbour 10.65.1.1 on wg-a-m1 lost.",
            "No packets are sent on it: via-m2 carries them.",
            "is 12s old; it may be 90 ms.",
            "The last 100 probes found no answer; before that:",
            "50.0 % were lost on the way there",
            "The route to 10.65.0.6 (10.65.0.4/30) is bird's, over wg-a-m1, its own device.",
            "It comes back when several probes in a row are answered.",
        ] {
            assert!(story.contains(part), "{part} is missing in:\n{story}");
        }
    }

    #[test]
    fn a_path_mtu() {
        let of = |full_size, path_mtu, result: FullSize| {
            let mut path = path("via-m1", PathState::Up, StateReason::Route);
            let probe = path.probe.as_mut().unwrap();
            (probe.full_size, probe.path_mtu) = (full_size, path_mtu);
            probe.full_size_result = result.label();
            story(path)
        };
        for (story, part) in [
            (
                of(1396, Some(1420), FullSize::Passes),
                "The path MTU is 1420 bytes by probes: packets of the bond of 1396 bytes pass.\n",
            ),
            (
                of(1316, Some(1340), FullSize::Passes),
                "1316 bytes pass, and no longer ones, though its device takes those of 1396.",
            ),
            (
                of(1396, None, FullSize::BlackHole),
                "Packets of 1396 bytes vanish on the way, while small ones pass",
            ),
        ] {
            assert!(story.contains(part), "{part} is missing in:\n{story}");
        }
        let unknown = of(0, None, FullSize::Unknown);
        assert!(!unknown.contains("MTU"), "{unknown}");
    }

    /// It is told apart from what the route says, and only then.
    #[test]
    fn a_next_hop_that_outlives_its_route() {
        let of = |next_hop: [u8; 4], via: Option<[u8; 4]>| {
            let mut path = path("via-m1", PathState::Up, StateReason::Route);
            path.next_hop = Some(next_hop.into());
            path.route.as_mut().unwrap().via = via.map(Into::into);
            path
        };
        let (gateway, other) = ([10, 65, 0, 1], [10, 65, 0, 9]);
        for (path, told) in [
            (of(gateway, Some(gateway)), None),
            (of([10, 65, 0, 6], None), None),
            (
                of(gateway, Some(other)),
                Some("Packets go to 10.65.0.1 on wg-a-m1, by the kernel's rules."),
            ),
            (
                Path {
                    route: None,
                    ..of(gateway, None)
                },
                Some("Packets go to 10.65.0.1 on wg-a-m1, as an earlier route said."),
            ),
        ] {
            assert_eq!(next_hop(&path).as_deref(), told);
        }
    }

    #[test]
    fn a_path_that_is_held_down() {
        let mut held = path("via-m1", PathState::Dead, StateReason::HeldDown);
        held.hold_down_ms = Some(3_250.0);
        held.flaps = 3;
        let story = story(held);
        let part = "another 3.2 s: it failed soon after its return, 3 times in a row.";
        assert!(story.contains(part), "{story}");
    }

    /// Taken out by the user, and no controller to tell: what happened before is another matter.
    #[test]
    fn a_cause_is_told_only_of_the_state_it_led_to() {
        let story = story(path("via-m1", PathState::Down, StateReason::Admin));
        assert!(!story.contains("What happened then"), "{story}");
        let part = "It comes back when you take it back in: netbond path up via-m1.";
        assert!(story.contains(part), "{story}");
    }

    #[test]
    fn a_weight_below_the_configured_one_has_a_reason() {
        let mut bond = sample::bond();
        let light = Path {
            weight: 4,
            effective_weight: 1.0,
            in_use: true,
            ..path("via-m1", PathState::Up, StateReason::Route)
        };
        assert!(traffic(&bond, &light).contains("by weight 1 of 4, as the policy says."));
        bond.weights = Weights::Measured.label();
        assert!(traffic(&bond, &light).contains("by weight 1 as measured."));
    }

    /// Every reason is told by its own label, and says what brings the path back.
    #[test]
    fn every_reason_has_a_way_back() {
        for &reason in StateReason::ALL {
            let way = way_back(&path("via-m1", PathState::Down, reason));
            let well = matches!(reason, StateReason::Route | StateReason::Starting);
            assert_eq!(way.is_none(), well, "{reason:?}");
        }
    }
}
