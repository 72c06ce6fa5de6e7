//! `docs/status.md` against what is printed.

use std::collections::BTreeMap;

use netbond_common::{
    fate::Fate,
    names::{Encap, FullSize, Mode, PathState, StateReason, Watch, Weights, Xdp},
};

use super::{Class, Lan, Numbered, Order, Status, VERSION, sample};
use crate::documented::{documented, printed};

const DOCUMENT: &str = include_str!("../../../docs/status.md");

/// Every field with a value.
fn full() -> Status {
    let mut status = sample::status();
    status.rates_over_s = Some(1.0);
    status.outside = BTreeMap::from([("rx_foreign", 1)]);
    status.lans = vec![Lan {
        name: "eth1".to_owned(),
        xdp: "native",
    }];
    let bond = &mut status.bonds[0];
    bond.flowlet_gap_ms = Some(1.0);
    bond.settled = Some(true);
    bond.key = Some(7);
    bond.disagreements = vec!["the peer's encap is gretap"];
    bond.numbered = Some(Numbered {
        received: 1,
        lost: 1,
        copies: 1,
        begun: 1,
    });
    bond.in_order = Some(Order {
        hold_ms: 1.0,
        longest_hold_ms: 100.0,
        held: 1,
        late: 1,
        lost: 1,
        copies: 1,
        begun: 1,
    });
    bond.classes = vec![Class {
        name: "voice".to_owned(),
        mode: "active-backup",
        rule: "dscp ef".to_owned(),
        tx_packets: 1,
        tx_bytes: 1,
    }];
    bond.fates = BTreeMap::from([("tx_no_path", 1)]);
    let path = &mut bond.paths[0];
    path.rate = Some(sample::rate(1, 1.0));
    path.hold_down_ms = Some(1.0);
    path.route.as_mut().unwrap().via = Some([10, 65, 0, 1].into());
    path.next_hop = Some([10, 65, 0, 1].into());
    bond.paths.truncate(1);
    status
}

/// No field with a value that may have none.
fn empty() -> Status {
    let mut status = full();
    status.rates_over_s = None;
    let bond = &mut status.bonds[0];
    (bond.flowlet_gap_ms, bond.settled) = (None, None);
    bond.mtu_ceiling = None;
    (bond.key, bond.peer) = (None, None);
    (bond.numbered, bond.in_order) = (None, None);
    let path = &mut bond.paths[0];
    (path.due_share, path.tx_share, path.rx_share) = (None, None, None);
    (path.rate, path.route, path.ospf_cost) = (None, None, None);
    (path.neighbour, path.next_hop, path.hold_down_ms) = (None, None, None);
    (path.proof, path.probe) = (None, None);
    status
}

/// Nothing within what may have none.
fn hollow() -> Status {
    let mut status = full();
    let path = &mut status.bonds[0].paths[0];
    let rate = path.rate.as_mut().unwrap();
    (rate.tx_share, rate.rx_share) = (None, None);
    path.route.as_mut().unwrap().via = None;
    path.proof.as_mut().unwrap().age_ms = None;
    let probe = path.probe.as_mut().unwrap();
    (probe.data_loss, probe.behind_ms) = (None, None);
    probe.path_mtu = None;
    status
}

#[test]
fn every_field_is_documented_as_it_is_printed() {
    // Keys of these are data.
    let is_map = |at: &str| (at.ends_with("fates") || at == "outside").then_some("FATE");
    assert_eq!(
        documented(DOCUMENT, "## Fields"),
        printed(&full(), &[empty(), hollow()], is_map)
    );
}

#[test]
fn the_documented_version_is_this_one() {
    let text = format!("This is version {VERSION}.");
    assert!(DOCUMENT.contains(&text), "{text}");
}

/// Every word that a field may say stands in the table of its field, or in that of the fates.
#[test]
fn every_word_is_documented() {
    let words = |field: &str, labels: Vec<&str>| {
        let row = format!("| `{field}` |");
        let line = DOCUMENT.lines().find(|line| line.starts_with(&row));
        let line = line.unwrap_or_else(|| panic!("no {row}"));
        for label in labels {
            assert!(line.contains(&format!("`{label}`")), "{label} in {line}");
        }
    };
    let path = |field: &str| format!("bonds[].paths[].{field}");
    words(
        "bonds[].encap",
        Encap::ALL.iter().map(|e| e.label()).collect(),
    );
    words(
        "bonds[].mode",
        Mode::ALL.iter().map(|m| m.label()).collect(),
    );
    words(
        "bonds[].weights",
        Weights::ALL.iter().map(|w| w.label()).collect(),
    );
    words("bonds[].state", vec!["up", "last resort", "down"]);
    words(
        &path("state"),
        PathState::ALL.iter().map(|s| s.label()).collect(),
    );
    words(
        &path("reason"),
        StateReason::ALL.iter().map(|r| r.label()).collect(),
    );
    words(
        &path("watch"),
        Watch::ALL.iter().map(|w| w.label()).collect(),
    );
    // Every word, though some are only for one of them.
    for field in ["lans[].xdp", "bonds[].xdp_send", &path("xdp")] {
        let row = format!("| `{field}` |");
        assert!(DOCUMENT.contains(&row), "{row}");
    }
    for xdp in Xdp::ALL {
        let row = format!("| `{}` |", xdp.label());
        assert!(DOCUMENT.contains(&row), "{row}");
    }
    let full_size = FullSize::ALL.iter().map(|result| result.label());
    words(&path("probe.full_size_result"), full_size.collect());
    for fate in Fate::ALL {
        let row = format!("| `{}` | {} |", fate.label(), fate.description());
        assert!(DOCUMENT.contains(&row), "{row}");
    }
}
