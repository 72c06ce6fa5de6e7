//! What the endpoint says, beside the status that it is made of, the documentation, and what is shipped to
//! read it: dashboard and alert rules.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netbond::metrics::{Format, render};
use netbond::status::{
    Bond, Class, Controller, Lan, Neighbour, Numbered, Order, Path, Peer, Probe, Proof, Route,
    Status,
};
use netbond_common::{
    fate::Fate,
    names::{FullSize, PathState},
};
use serde_json::Value;

const DOCUMENTATION: &str = include_str!("../../docs/metrics.md");
const DASHBOARD: &str = include_str!("../../contrib/grafana/netbond.json");
const RULES: &str = include_str!("../../contrib/prometheus/netbond.rules.yml");

/// A bond that has everything, each number another one.
fn status() -> Status {
    let probe = Probe {
        rtt_ms: 1101.0,
        deviation_ms: 1102.0,
        least_ms: 1103.0,
        jitter_ms: 1104.0,
        loss_there: 0.1105,
        loss_back: 0.1106,
        data_loss: Some(0.1107),
        offered_bytes_per_second: 1108,
        delivered_bytes_per_second: 1109,
        queue_ms: 1110.0,
        behind_ms: Some(1111.0),
        reordered: 1112,
        missed: 1113,
        path_mtu: Some(1115),
        full_size: 1114,
        full_size_result: FullSize::BlackHole.label(),
    };
    let path = Path {
        name: "via-m1".to_owned(),
        state: PathState::Dead.label(),
        reason: "probes unanswered",
        in_use: true,
        standby: false,
        device: "wg-a-m1".to_owned(),
        xdp: "off",
        local: "10.65.0.2".parse().unwrap(),
        remote: "10.65.0.6".parse().unwrap(),
        weight: 1001,
        effective_weight: 1002.25,
        priority: 1003,
        due_share: Some(0.5),
        rate: None,
        tx_share: Some(0.25),
        rx_share: Some(0.75),
        tx_packets: 1004,
        tx_bytes: 1005,
        rx_packets: 1006,
        rx_bytes: 1007,
        tx_stand_in: 1008,
        tx_last_resort: 1009,
        tx_copies: 1010,
        rx_copies: 1011,
        rx_contended: 1020,
        tx_onward: 1021,
        rx_onward: 1022,
        route: Some(Route {
            prefix: "10.65.0.4/30".to_owned(),
            protocol: "bird".to_owned(),
            metric: 1012,
            device: "wg-a-m2".to_owned(),
            via: Some("10.65.0.1".parse().unwrap()),
        }),
        next_hop: None,
        ospf_cost: Some(1013),
        neighbour: Some(Neighbour {
            router_id: "10.65.1.1".parse().unwrap(),
            state: "Full".to_owned(),
        }),
        changed: 1014.5,
        watch: "probes",
        hold_down_ms: Some(1015.0),
        flaps: 1016,
        proof: Some(Proof {
            age_ms: Some(1017.0),
            limit_ms: 1018.0,
            fresh: true,
        }),
        probe: Some(probe),
    };
    let bond = Bond {
        name: "nb0".to_owned(),
        state: "up",
        device_up: true,
        ifindex: 7,
        mtu: 2001,
        mtu_ceiling: Some(2012),
        encap: "gretap",
        mode: "adaptive",
        weights: "measured",
        flowlet_gap_ms: Some(2002.0),
        settled: Some(false),
        key: Some(2003),
        peer: Some(Peer {
            prefix: "10.65.2.1/32".to_owned(),
            reachable: true,
        }),
        disagreements: vec!["one", "another"],
        numbered: Some(Numbered {
            received: 2004,
            lost: 2005,
            copies: 2006,
            begun: 2007,
        }),
        in_order: Some(Order {
            hold_ms: 2008.0,
            longest_hold_ms: 2009.0,
            held: 2010,
            late: 2011,
            lost: 2005,
            copies: 2006,
            begun: 2007,
        }),
        xdp_send: "native",
        paths: vec![path],
        classes: vec![Class {
            name: "voice".to_owned(),
            mode: "duplicate",
            rule: "dscp \"ef\"".to_owned(),
            tx_packets: 3001,
            tx_bytes: 3002,
        }],
        fates: BTreeMap::from([(Fate::TxNoPath.label(), 4001)]),
    };
    Status {
        version: 1,
        at: 0.0,
        read_ns: 0,
        rates_over_s: None,
        controller: Controller {
            running: true,
            pid: 42,
        },
        bonds: vec![bond],
        lans: vec![Lan {
            name: "eth1".to_owned(),
            xdp: "native",
        }],
        outside: BTreeMap::from([(Fate::RxForeign.label(), 4002)]),
    }
}

fn text(status: Status, format: Format) -> String {
    render(Arc::new(status), format).unwrap()
}

fn full() -> String {
    text(status(), Format::OpenMetrics)
}

/// What is said of a metric, as far as the text says it.
#[derive(Debug, PartialEq, Eq)]
struct Family {
    kind: String,
    unit: String,
    labels: BTreeSet<String>,
    help: String,
}

/// The metrics of a text in OpenMetrics, by the name that their samples have.
fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let (mut help, mut unit) = (BTreeMap::new(), BTreeMap::new());
    let mut samples: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut kinds = BTreeMap::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name, rest) = (words.next().unwrap(), words.next(), words.next());
            match (what, name, rest) {
                ("HELP", Some(name), Some(rest)) => drop(help.insert(name, rest)),
                ("TYPE", Some(name), Some(rest)) => drop(kinds.insert(name, rest)),
                ("UNIT", Some(name), Some(rest)) => drop(unit.insert(name, rest)),
                ("EOF", None, None) => {}
                other => panic!("{other:?}"),
            }
            continue;
        }
        let end = line.find(['{', ' ']).unwrap();
        let labels = samples.entry(&line[..end]).or_default();
        if let Some(list) = line[end..].strip_prefix('{') {
            for pair in list[..list.find("} ").unwrap()].split("\",") {
                labels.insert(pair.split_once('=').unwrap().0.to_owned());
            }
        }
    }
    for (name, kind) in kinds {
        let sampled = match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        };
        let family = Family {
            kind: kind.to_owned(),
            unit: unit.remove(name).unwrap_or_default().to_owned(),
            labels: samples.remove(sampled.as_str()).unwrap_or_default(),
            help: help.remove(name).unwrap().to_owned(),
        };
        families.insert(sampled, family);
    }
    assert!(samples.is_empty(), "of no metric: {samples:?}");
    families
}

/// The values of a text's samples, by name and labels as written.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect()
}

#[test]
fn the_text_is_openmetrics() {
    let text = full();
    assert!(text.ends_with("\n# EOF\n"));
    for (name, family) in families(&text) {
        assert!(name.starts_with("netbond_"), "{name}");
        assert!(family.help.ends_with('.'), "{name}: {}", family.help);
        let base = name.trim_end_matches("_total");
        assert!(base.ends_with(&family.unit), "{name}: {}", family.unit);
        // Base units only.
        for unit in ["ms", "milliseconds", "percent", "bits", "kilobytes"] {
            assert!(!base.ends_with(&format!("_{unit}")), "{name}");
        }
        assert_eq!(name.ends_with("_total"), family.kind == "counter", "{name}");
        assert_eq!(name.ends_with("_info"), family.kind == "info", "{name}");
        let labels = family.labels.len();
        assert!(labels != 0 || name == "netbond_build_info", "{name}");
    }
}

/// Whatever `netbond status --json` shows is in some metric: a field that is new there fails this until
/// there is one for it, or it is named here.
#[test]
fn nothing_of_the_status_is_missing() {
    const LEFT_OUT: &[&str] = &[
        // Of the JSON format, of the process: Prometheus knows by itself whether it answers.
        "version",
        "controller.running",
        "controller.pid",
        // Means nothing outside the host.
        "bonds.ifindex",
        // Follow from the paths' packets, and from their weights.
        "rates_over_s",
        "bonds.paths.rate",
        "bonds.paths.due_share",
        "bonds.paths.tx_share",
        "bonds.paths.rx_share",
        // Which of its neighbours a host sends to: for people.
        "bonds.paths.next_hop",
        // Sentences; their number is told.
        "bonds.disagreements",
        // In the number of packets expected.
        "bonds.numbered.lost",
        "bonds.in_order.lost",
    ];
    let text = full();
    let samples = samples(&text);
    let mut missing = Vec::new();
    let mut look = |field: &str, leaf: &Value| {
        let found = match leaf {
            Value::Number(number) => {
                let number = number.as_f64().unwrap();
                let number = if field.ends_with("_ms") {
                    number / 1000.0
                } else {
                    number
                };
                let quoted = format!("\"{number}\"");
                samples.values().any(|value| *value == number) || text.contains(&quoted)
            }
            Value::String(string) => {
                let quoted = format!("\"{}\"", string.replace('"', "\\\""));
                text.contains(&quoted)
            }
            // Looked at below.
            Value::Bool(_) => true,
            Value::Null | Value::Array(_) | Value::Object(_) => false,
        };
        if !found && !LEFT_OUT.contains(&field) {
            missing.push(format!("{field}: {leaf}"));
        }
    };
    walk("", &serde_json::to_value(status()).unwrap(), &mut look);
    assert!(missing.is_empty(), "{missing:?}");

    type Change = fn(&mut Status);
    let truths: [(&str, Change); 5] = [
        ("netbond_bond_flows_settled", |status| {
            status.bonds[0].settled = Some(true);
        }),
        ("netbond_path_in_use", |status| {
            status.bonds[0].paths[0].in_use ^= true;
        }),
        ("netbond_path_standby", |status| {
            status.bonds[0].paths[0].standby ^= true;
        }),
        ("netbond_path_proof_fresh", |status| {
            status.bonds[0].paths[0].proof.as_mut().unwrap().fresh ^= true;
        }),
        ("netbond_bond_peer_reachable", |status| {
            status.bonds[0].peer.as_mut().unwrap().reachable ^= true;
        }),
    ];
    for (name, change) in truths {
        let mut changed = status();
        change(&mut changed);
        let changed = self::text(changed, Format::OpenMetrics);
        let now = self::samples(&changed);
        let differ: Vec<&str> = samples
            .iter()
            .filter(|(key, value)| now[**key] != **value)
            .map(|(key, _)| key.split('{').next().unwrap())
            .collect();
        assert_eq!(differ, [name]);
    }
}

/// Calls `look` with every leaf and the names that lead to it.
fn walk(field: &str, value: &Value, look: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let separator = if field.is_empty() { "" } else { "." };
                walk(&format!("{field}{separator}{name}"), value, look);
            }
        }
        Value::Array(elements) => {
            for element in elements {
                walk(field, element, look);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => look(field, value),
    }
}

#[test]
fn values_stand_where_they_belong() {
    let text = full();
    let samples = samples(&text);
    for (sample, value) in [
        (
            r#"netbond_path_transmit_bytes_total{bond="nb0",path="via-m1"}"#,
            1005.0,
        ),
        (
            r#"netbond_path_rtt_seconds{bond="nb0",path="via-m1"}"#,
            1.101,
        ),
        (
            r#"netbond_path_probe_loss_ratio{bond="nb0",path="via-m1",direction="back"}"#,
            0.1106,
        ),
        (
            r#"netbond_path_state{bond="nb0",path="via-m1",state="dead"}"#,
            1.0,
        ),
        (
            r#"netbond_path_state{bond="nb0",path="via-m1",state="up"}"#,
            0.0,
        ),
        (
            r#"netbond_path_reason_info{bond="nb0",path="via-m1",reason="probes unanswered"}"#,
            1.0,
        ),
        (
            r#"netbond_path_full_size_result{bond="nb0",path="via-m1",result="black hole"}"#,
            1.0,
        ),
        (r#"netbond_lan_xdp_info{lan="eth1",xdp="native"}"#, 1.0),
        (r#"netbond_bond_disagreements{bond="nb0"}"#, 2.0),
        (
            r#"netbond_bond_numbered_expected_packets_total{bond="nb0"}"#,
            4009.0,
        ),
        (
            r#"netbond_bond_fate_packets_total{bond="nb0",reason="tx_no_path"}"#,
            4001.0,
        ),
        (
            r#"netbond_outside_fate_packets_total{reason="rx_foreign"}"#,
            4002.0,
        ),
        (
            r#"netbond_class_info{bond="nb0",class="voice",mode="duplicate",rule="dscp \"ef\""}"#,
            1.0,
        ),
    ] {
        assert_eq!(samples.get(sample), Some(&value), "{sample}\n{text}");
    }
    // Also those that never came about, or nobody could tell their rate.
    for fate in Fate::ALL {
        let reason = format!("reason=\"{}\"", fate.label());
        let of = |name: &str| {
            samples
                .keys()
                .any(|key| key.starts_with(name) && key.contains(&reason))
        };
        assert!(
            of("netbond_bond_fate_") && of("netbond_outside_fate_"),
            "{reason}"
        );
    }
}

/// What is not known has no sample, and 0 is not said in its place.
#[test]
fn what_is_not_known_is_not_told() {
    let mut status = status();
    let bond = &mut status.bonds[0];
    (bond.peer, bond.key, bond.numbered, bond.in_order) = (None, None, None, None);
    (bond.flowlet_gap_ms, bond.settled) = (None, None);
    let path = &mut bond.paths[0];
    (path.route, path.neighbour, path.ospf_cost) = (None, None, None);
    (path.proof, path.probe) = (None, None);
    let text = text(status, Format::OpenMetrics);
    for sample in samples(&text).keys() {
        for absent in [
            "peer", "key", "numbered", "in_order", "gap", "settled", "route", "ospf", "proof",
            "rtt",
        ] {
            let name = sample.split(['"', ' ']).next().unwrap();
            assert!(!name.contains(absent), "{sample}");
        }
    }
}

#[test]
fn both_formats_say_the_same() {
    let (open, plain) = (full(), text(status(), Format::Prometheus));
    assert_eq!(samples(&open), samples(&plain));
    assert!(!plain.contains("# EOF") && !plain.contains("# UNIT"));
}

#[test]
fn a_client_gets_the_format_that_it_asks_for() {
    for (accept, format) in [
        ("", Format::Prometheus),
        ("*/*", Format::Prometheus),
        ("text/plain;version=0.0.4", Format::Prometheus),
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            Format::OpenMetrics,
        ),
    ] {
        assert_eq!(Format::accepted(accept), format, "{accept}");
    }
}

/// The lines of the documentation's tables: name, type, unit, labels, meaning.
fn documented() -> BTreeMap<String, Family> {
    let lines = DOCUMENTATION.lines().filter_map(|line| {
        let cells = line.strip_prefix("| `netbond_")?;
        let cells: Vec<&str> = cells
            .trim_end_matches('|')
            .split('|')
            .map(str::trim)
            .collect();
        let [name, kind, unit, labels, help] = cells[..] else {
            panic!("five cells: {line}");
        };
        let labels = labels.split(", ").filter(|label| !label.is_empty());
        let family = Family {
            kind: kind.to_owned(),
            unit: unit.to_owned(),
            labels: labels
                .map(|label| label.trim_matches('`').to_owned())
                .collect(),
            help: help.to_owned(),
        };
        Some((format!("netbond_{}", name.trim_end_matches('`')), family))
    });
    lines.collect()
}

#[test]
fn the_documentation_lists_what_there_is() {
    let (documented, families) = (documented(), families(&full()));
    for (name, family) in &families {
        assert_eq!(
            documented.get(name),
            Some(family),
            "{name} in docs/metrics.md"
        );
    }
    for name in documented.keys() {
        assert!(families.contains_key(name), "{name} is documented only");
    }
    for fate in Fate::ALL {
        let line = format!("| `{}` | {} |", fate.label(), fate.description());
        assert!(
            DOCUMENTATION.contains(&line),
            "docs/metrics.md lacks: {line}"
        );
    }
}

/// The metrics that a text names.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !word(c));
    let metrics = words.filter(|word| word.starts_with("netbond_"));
    metrics.map(str::to_owned).collect()
}

#[test]
fn dashboard_and_rules_name_metrics_and_labels_that_exist() {
    let families = families(&full());
    for (file, text) in [("dashboard", DASHBOARD), ("rules", RULES)] {
        let named = metrics_in(text);
        assert!(named.len() > 5, "{file}: {named:?}");
        for name in named {
            assert!(families.contains_key(&name), "{file}: {name}");
        }
        // netbond_x{label="value", ...}
        for (at, _) in text.match_indices("netbond_") {
            let Some((name, rest)) = text[at..].split_once(['{', ' ', '\n', ')', '"', '.', '['])
            else {
                continue;
            };
            if text.as_bytes()[at + name.len()] != b'{' {
                continue;
            }
            let selectors = rest[..rest.find('}').unwrap()].replace("\\\"", "\"");
            for selector in selectors.split(',') {
                let label = selector.split(['=', '!']).next().unwrap().trim();
                let known = families[name].labels.contains(label);
                assert!(
                    known || label == "instance",
                    "{file}: {name}{{{selectors}}}"
                );
            }
        }
    }
}

/// What is shown of a bond needs no metric that nobody would think of: all are on the dashboard but for
/// those named here.
#[test]
fn the_dashboard_shows_every_counter() {
    let shown = metrics_in(DASHBOARD);
    let counters = families(&full());
    let counters = counters
        .iter()
        .filter(|(_, family)| family.kind == "counter");
    let missing: Vec<&String> = counters
        .map(|(name, _)| name)
        .filter(|name| !shown.contains(*name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    assert_eq!(dashboard["title"], "netbond");
    assert!(dashboard["uid"].is_string() && dashboard["schemaVersion"].is_u64());
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: id");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{title}: too far right");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(cells.insert((x, y)), "{title} covers another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title} shows nothing");
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            assert!(
                expression.contains("instance=~\"$instance\""),
                "{title}: {expression}"
            );
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables
        .iter()
        .filter_map(|variable| variable["name"].as_str())
        .collect();
    assert_eq!(names, ["datasource", "instance", "bond"]);
}
