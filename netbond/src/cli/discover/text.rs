//! A proposal for people.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::Listing;
use crate::cli::format::DASH;
use crate::cli::table::Table;
use crate::discover::{HopName, LinkName, Proposal, ProposedPath, Seen};
use crate::ospf::Daemon;

/// The routers that could be peers.
pub(super) fn routers(listing: &Listing) -> String {
    let mut table = Table::new(&["ROUTER", "PATHS", "COST", "ADDRESSES"]);
    for router in &listing.routers {
        table.row([
            router.id.to_string(),
            router.paths.to_string(),
            router.cost.to_string(),
            joined(&router.addresses, ", "),
        ]);
    }
    format!(
        "area {} over {}, {}; PATHS are link-disjoint ones:\n{table}",
        listing.area, listing.family, listing.daemon
    )
}

/// What is proposed, why, and what to beware of.
pub(super) fn explanation(proposal: &Proposal, daemon: &Daemon) -> String {
    let Proposal {
        own,
        peer,
        area,
        family,
        possible,
        paths,
        missing,
        bottleneck,
        bridges,
        shared_routers,
        refuted,
        bonds,
        ..
    } = proposal;
    let s = if *possible == 1 { "" } else { "s" };
    let mut text = format!(
        "{own} to {peer}, area {area} over {family}, {daemon}: {possible} link-disjoint path{s}"
    );
    if paths.len() < *possible {
        // Writing to a string cannot fail.
        let _ = write!(text, ", {} with addresses", paths.len());
    }
    text.push('\n');
    if !paths.is_empty() {
        let mut table = Table::new(&[
            "PATH", "DEVICE", "LOCAL", "REMOTE", "COST", "BACK", "THROUGH",
        ]);
        for path in paths {
            let middle: Vec<Ipv4Addr> = path.middle().collect();
            table.row([
                path.name.clone(),
                path.device.clone(),
                path.local.to_string(),
                path.remote.to_string(),
                path.cost_there.to_string(),
                path.cost_back.to_string(),
                joined(&middle, " > "),
            ]);
        }
        let _ = write!(text, "\n{table}\n");
        for path in paths {
            let _ = writeln!(text, "{}: {}", path.name, why(path));
        }
    }
    if !bottleneck.is_empty() && *possible > 1 {
        let _ = writeln!(
            text,
            "One more would take one of the links {}.",
            joined(bottleneck, ", ")
        );
    }
    for path in paths {
        if let Some(other) = path.remote_or {
            let _ = writeln!(
                text,
                "warning: {}: whether {} or {other} is the peer's neither the daemon nor packets told: check it",
                path.name, path.remote
            );
        }
    }
    if paths.len() == 1 || *possible == 1 {
        let _ = writeln!(text, "warning: {}", alone(bridges));
    }
    for shared in shared_routers {
        let _ = writeln!(
            text,
            "warning: {} share router {}: when it fails, they all do",
            joined(&shared.paths, " and "),
            shared.router
        );
    }
    for path in refuted {
        let _ = writeln!(
            text,
            "warning: packets were seen not to take {}, though the database says so: a static route or a \
             filter on the way? (--passive proposes it all the same)",
            through(path)
        );
    }
    if !bonds.is_empty() {
        let _ = writeln!(
            text,
            "Left out: {}, as what a bond sends takes paths itself.",
            joined(bonds, ", ")
        );
    }
    for path in missing {
        let _ = writeln!(text, "no addresses for {}:", through(&path.hops));
        for reason in &path.reasons {
            let _ = writeln!(text, "  {reason}");
        }
    }
    text
}

/// Why these addresses.
fn why(path: &ProposedPath) -> String {
    let remote = if path.remote_on_link {
        "the peer's address on the path's last link"
    } else {
        "an address of the peer's own"
    };
    let local = if path.local_on_link {
        "ours on its first"
    } else {
        "one of our own"
    };
    let mut text = format!("to {remote}, and back to {local}, OSPF leads packets over it");
    let other_way = match (path.detour, path.peer_detour) {
        (false, false) => None,
        (true, false) => Some("our own route begins"),
        (false, true) => Some("the peer's own route begins"),
        (true, true) => Some("both ends' own routes begin"),
    };
    if let Some(other_way) = other_way {
        let _ = write!(
            text,
            " from the first hop on ({other_way} with another device: detour = \"use\")"
        );
    }
    match &path.seen {
        Seen::NotTried => {}
        Seen::Whole => text += "; packets were seen to take it",
        Seen::Except(silent) => {
            let _ = write!(
                text,
                "; of its routers {} did not answer, or from an address that OSPF does not know",
                joined(silent, ", ")
            );
        }
    }
    text + "."
}

/// What one path alone means.
fn alone(bridges: &[LinkName]) -> String {
    match bridges {
        [] => "one path is no bond: when it fails, nothing takes its place".to_owned(),
        [one] => format!("every path takes the link {one}: when it fails, all do"),
        several => format!(
            "every path takes the links {}: when one fails, all do",
            joined(several, ", ")
        ),
    }
}

fn through(path: &[HopName]) -> String {
    let routers: Vec<Ipv4Addr> = path.iter().map(|hop| hop.router).collect();
    match routers.split_last() {
        Some((_, middle)) if !middle.is_empty() => {
            format!("the path through {}", joined(middle, " > "))
        }
        _ => "the direct path".to_owned(),
    }
}

fn joined<T: ToString>(items: &[T], separator: &str) -> String {
    if items.is_empty() {
        return DASH.to_owned();
    }
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::{Family, MissingPath, RouterSummary, SharedRouter};

    fn hop(last: u8, prefix: &str) -> HopName {
        HopName {
            router: [10, 65, 1, last].into(),
            prefix: prefix.parse().ok(),
        }
    }

    fn path(number: u8) -> ProposedPath {
        ProposedPath {
            name: format!("via-{number}"),
            local: [10, 65, 0, number].into(),
            remote: [10, 65, 9, number].into(),
            remote_or: None,
            device: format!("wg{number}"),
            hops: vec![hop(number, "10.65.0.0/30"), hop(99, "10.65.9.0/30")],
            local_on_link: true,
            remote_on_link: true,
            cost_there: 20,
            cost_back: 25,
            detour: false,
            peer_detour: false,
            seen: Seen::Whole,
        }
    }

    fn proposal(paths: Vec<ProposedPath>) -> Proposal {
        Proposal {
            own: [10, 65, 1, 98].into(),
            peer: [10, 65, 1, 99].into(),
            area: Ipv4Addr::UNSPECIFIED,
            family: Family::Ipv4,
            own_prefix: None,
            peer_prefix: None,
            possible: paths.len(),
            paths,
            missing: Vec::new(),
            bottleneck: Vec::new(),
            bridges: Vec::new(),
            shared_routers: Vec::new(),
            refuted: Vec::new(),
            bonds: Vec::new(),
        }
    }

    fn shown(proposal: &Proposal) -> String {
        let vtysh = vec!["vtysh".to_owned()];
        explanation(proposal, &Daemon::Frr { vtysh })
    }

    fn link(prefix: &str) -> LinkName {
        LinkName {
            routers: vec![[10, 65, 1, 98].into(), [10, 65, 1, 1].into()],
            prefix: prefix.parse().ok(),
        }
    }

    #[test]
    fn paths_are_shown_and_why() {
        let mut found = proposal(vec![path(1), path(2)]);
        found.bottleneck = vec![link("10.65.0.0/30"), link("10.65.0.4/30")];
        assert_eq!(
            shown(&found),
            "\
10.65.1.98 to 10.65.1.99, area 0.0.0.0 over IPv4, FRR by 'vtysh': 2 link-disjoint paths

PATH   DEVICE  LOCAL      REMOTE     COST  BACK  THROUGH
via-1  wg1     10.65.0.1  10.65.9.1    20    25  10.65.1.1
via-2  wg2     10.65.0.2  10.65.9.2    20    25  10.65.1.2

via-1: to the peer's address on the path's last link, and back to ours on its first, OSPF leads packets over it; \
packets were seen to take it.
via-2: to the peer's address on the path's last link, and back to ours on its first, OSPF leads packets over it; \
packets were seen to take it.
One more would take one of the links 10.65.1.98 - 10.65.1.1 (10.65.0.0/30), 10.65.1.98 - 10.65.1.1 (10.65.0.4/30).
"
        );
    }

    #[test]
    fn what_is_to_be_known_is_told() {
        let mut odd = path(1);
        odd.remote_or = Some([10, 65, 9, 2].into());
        odd.detour = true;
        odd.remote_on_link = false;
        odd.seen = Seen::Except(vec![[10, 65, 1, 1].into()]);
        let mut found = proposal(vec![odd]);
        found.possible = 2;
        found.shared_routers = vec![SharedRouter {
            router: [10, 65, 1, 7].into(),
            paths: vec!["via-1".to_owned(), "via-2".to_owned()],
        }];
        found.refuted = vec![path(3).hops];
        found.bonds = vec!["nb0".to_owned(), "nb1".to_owned()];
        found.missing = vec![MissingPath {
            hops: path(2).hops,
            reasons: vec!["no way".to_owned()],
        }];
        let text = shown(&found);
        for part in [
            ": 2 link-disjoint paths, 1 with addresses\n",
            "via-1: to an address of the peer's own, and back to ours on its first,",
            "from the first hop on (our own route begins with another device: detour = \"use\")",
            "; of its routers 10.65.1.1 did not answer, or from an address that OSPF does not know.\n",
            "warning: via-1: whether 10.65.9.1 or 10.65.9.2 is the peer's",
            "warning: one path is no bond",
            "warning: via-1 and via-2 share router 10.65.1.7",
            "warning: packets were seen not to take the path through 10.65.1.3",
            "(--passive proposes it all the same)\n",
            "Left out: nb0, nb1, as",
            "no addresses for the path through 10.65.1.2:\n  no way\n",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        found.possible = 1;
        found.bridges = vec![link("10.65.0.0/30")];
        let wanted = "every path takes the link 10.65.1.98 - 10.65.1.1 (10.65.0.0/30): when it fails, all do";
        assert!(shown(&found).contains(wanted), "{}", shown(&found));
    }

    #[test]
    fn routers_are_listed() {
        let listing = Listing {
            daemon: "BIRD".to_owned(),
            area: Ipv4Addr::UNSPECIFIED,
            family: Family::Ipv4,
            routers: vec![RouterSummary {
                id: [10, 65, 1, 1].into(),
                cost: 20,
                paths: 2,
                addresses: Vec::new(),
            }],
        };
        assert_eq!(
            routers(&listing),
            "area 0.0.0.0 over IPv4, BIRD; PATHS are link-disjoint ones:\n\
             ROUTER     PATHS  COST  ADDRESSES\n\
             10.65.1.1      2    20          -\n"
        );
    }

    /// Whether `docs/discover.md` tells of each field of the JSON.
    mod document {
        use super::*;
        use crate::cli::discover::{Listing, Listings, Report, VERSION};
        use crate::documented::{documented, printed};

        const DOCUMENT: &str = include_str!("../../../../docs/discover.md");

        /// With everything, or with nothing that there need not be.
        fn report(proposal: &Proposal, all: bool) -> Report<'_> {
            let file = all.then_some("[[bond]]");
            Report {
                version: VERSION,
                daemon: "bird".to_owned(),
                proposal,
                config: file,
                peer_config: file,
            }
        }

        #[test]
        fn of_a_peer() {
            let mut bare = path(1);
            bare.hops.iter_mut().for_each(|hop| hop.prefix = None);
            let mut whole = path(1);
            whole.remote_or = Some([10, 65, 9, 2].into());
            whole.seen = Seen::Except(vec![[10, 65, 1, 1].into()]);
            let [empty, full] = [(bare, "none"), (whole, "10.65.0.0/30")].map(|(path, prefix)| {
                let hops = path.hops.clone();
                Proposal {
                    own_prefix: prefix.parse().ok(),
                    peer_prefix: prefix.parse().ok(),
                    missing: vec![MissingPath {
                        hops: hops.clone(),
                        reasons: vec!["no way".to_owned()],
                    }],
                    bottleneck: vec![link(prefix)],
                    bridges: vec![link(prefix)],
                    shared_routers: vec![SharedRouter {
                        router: [10, 65, 1, 7].into(),
                        paths: vec!["via-1".to_owned()],
                    }],
                    refuted: vec![hops],
                    ..proposal(vec![path])
                }
            });
            assert_eq!(
                documented(DOCUMENT, "### A peer"),
                printed(&report(&full, true), &[report(&empty, false)], |_| None)
            );
        }

        #[test]
        fn of_all_routers() {
            let listings = Listings {
                version: VERSION,
                areas: vec![Listing {
                    daemon: "bird".to_owned(),
                    area: Ipv4Addr::UNSPECIFIED,
                    family: Family::Ipv4,
                    routers: vec![RouterSummary {
                        id: [10, 65, 1, 1].into(),
                        cost: 10,
                        paths: 2,
                        addresses: vec![[10, 65, 1, 1].into()],
                    }],
                }],
            };
            assert_eq!(
                documented(DOCUMENT, "### No peer"),
                printed(&listings, &[], |_| None)
            );
        }

        #[test]
        fn the_version() {
            let text = format!("This is version {VERSION}.");
            assert!(DOCUMENT.contains(&text), "{text}");
        }
    }
}
