//! Which metrics there are: their names, what they mean, and where their values come from.

use std::collections::BTreeMap;

use netbond_common::{
    fate::Fate,
    names::{FullSize, PathState},
};

use crate::status::{Bond, Class, Lan, Numbered, Order, Path, Probe, Proof, Status};

/// What a metric is (OpenMetrics, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows, as long as the maps are there.
    Counter,
    Gauge,
    /// Always 1; what it tells is in its labels.
    Info,
}

/// A metric that each thing of a kind has: each path, say.
pub(super) struct Metric<T> {
    /// Without prefix, unit, and what its kind adds (`_total`, `_info`).
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// Stands behind the name.
    pub(super) unit: Option<&'static str>,
    pub(super) help: &'static str,
    /// Of one thing; none where it is not known.
    pub(super) samples: fn(&T) -> Vec<Sample>,
}

/// A value, and the labels that it has beyond those that name the thing.
pub(super) struct Sample {
    pub(super) labels: Vec<(&'static str, String)>,
    pub(super) value: Value,
}

#[derive(Clone, Copy)]
pub(super) enum Value {
    Count(u64),
    Number(f64),
    Info,
}

const fn metric<T>(
    name: &'static str,
    kind: Kind,
    unit: Option<&'static str>,
    help: &'static str,
    samples: fn(&T) -> Vec<Sample>,
) -> Metric<T> {
    Metric {
        name,
        kind,
        unit,
        help,
        samples,
    }
}

const fn counter<T>(
    name: &'static str,
    unit: Option<&'static str>,
    help: &'static str,
    samples: fn(&T) -> Vec<Sample>,
) -> Metric<T> {
    metric(name, Kind::Counter, unit, help, samples)
}

const fn gauge<T>(
    name: &'static str,
    unit: Option<&'static str>,
    help: &'static str,
    samples: fn(&T) -> Vec<Sample>,
) -> Metric<T> {
    metric(name, Kind::Gauge, unit, help, samples)
}

const fn info<T>(
    name: &'static str,
    help: &'static str,
    samples: fn(&T) -> Vec<Sample>,
) -> Metric<T> {
    metric(name, Kind::Info, NONE, help, samples)
}

const NONE: Option<&str> = None;
const SECONDS: Option<&str> = Some("seconds");
const BYTES: Option<&str> = Some("bytes");
const RATIO: Option<&str> = Some("ratio");
const BYTES_PER_SECOND: Option<&str> = Some("bytes_per_second");

/// Of the whole instance.
pub(super) const INSTANCE: &[Metric<Status>] = &[
    info("build", "This netbond's version.", |_| {
        labels([("version", env!("CARGO_PKG_VERSION").to_owned())])
    }),
    counter(
        "outside_fate_packets",
        NONE,
        "Packets on devices with netbond's programs that were of no bond, by what became of them.",
        |status| fates(&status.outside),
    ),
];

/// Of each LAN.
pub(super) const LANS: &[Metric<Lan>] = &[info(
    "lan_xdp",
    "Whether packets of the LAN are forwarded by XDP, in its device's driver, or why by the kernel.",
    |lan| labels([("xdp", lan.xdp.to_owned())]),
)];

/// Of each bond.
pub(super) const BONDS: &[Metric<Bond>] = &[
    info("bond", "How a bond is configured.", |bond| {
        let always = [
            ("mode", bond.mode),
            ("encap", bond.encap),
            ("weights", bond.weights),
        ];
        let always = always.map(|(name, value)| (name, value.to_owned()));
        let key = bond.key.map(|key| ("key", key.to_string()));
        let peer = bond.peer.as_ref().map(|peer| ("peer", peer.prefix.clone()));
        labels(always.into_iter().chain(key).chain(peer))
    }),
    gauge("bond_mtu", BYTES, "MTU of the bond device.", |bond| {
        number(Some(bond.mtu))
    }),
    gauge(
        "bond_mtu_ceiling",
        BYTES,
        "What that would be if all paths carried what their devices take.",
        |bond| number(bond.mtu_ceiling),
    ),
    info(
        "bond_xdp_send",
        "Whether packets of LANs are encapsulated by XDP, in the drivers there, or why by tc.",
        |bond| labels([("xdp", bond.xdp_send.to_owned())]),
    ),
    gauge(
        "bond_peer_reachable",
        NONE,
        "Whether a route leads to the peer's own prefix, where that is configured.",
        |bond| number(bond.peer.as_ref().map(|peer| peer.reachable)),
    ),
    gauge(
        "bond_disagreements",
        NONE,
        "Settings that must be alike at both ends, and are not.",
        |bond| number(u32::try_from(bond.disagreements.len()).ok()),
    ),
    gauge(
        "bond_flowlet_gap",
        SECONDS,
        "Pause after which a flow may move, in mode flowlet.",
        |bond| seconds(bond.flowlet_gap_ms),
    ),
    gauge(
        "bond_flows_settled",
        NONE,
        "Whether each flow keeps its path, as a processor is the limit, in mode adaptive.",
        |bond| number(bond.settled),
    ),
    counter(
        "bond_fate_packets",
        NONE,
        "Packets of the bond that took no path, by what became of them.",
        |bond| fates(&bond.fates),
    ),
    counter(
        "bond_numbered_receive_packets",
        NONE,
        "Packets received of those that the peer numbered, each once.",
        |bond| numbered(bond, |numbered| numbered.received),
    ),
    counter(
        "bond_numbered_expected_packets",
        NONE,
        "Packets that the peer numbered; those of them not received are lost on every path, or under way.",
        |bond| numbered(bond, |numbered| numbered.received + numbered.lost),
    ),
    counter(
        "bond_numbered_copy_packets",
        NONE,
        "Numbered packets that came once more, and were dropped.",
        |bond| numbered(bond, |numbered| numbered.copies),
    ),
    counter(
        "bond_numbered_restarts",
        NONE,
        "Times that the peer's numbers began anew.",
        |bond| numbered(bond, |numbered| numbered.begun),
    ),
    gauge(
        "bond_in_order_hold",
        SECONDS,
        "For how long received packets are held now to be put in order.",
        |bond| in_order(bond, |order| seconds(Some(order.hold_ms))),
    ),
    gauge(
        "bond_in_order_longest_hold",
        SECONDS,
        "For how long they are held at the most.",
        |bond| in_order(bond, |order| seconds(Some(order.longest_hold_ms))),
    ),
    counter(
        "bond_in_order_held_packets",
        NONE,
        "Packets that were held, as an earlier one was under way.",
        |bond| in_order(bond, |order| count(order.held)),
    ),
    counter(
        "bond_in_order_late_packets",
        NONE,
        "Packets that came after later ones had left: out of order all the same.",
        |bond| in_order(bond, |order| count(order.late)),
    ),
];

/// Of each path.
pub(super) const PATHS: &[Metric<Path>] = &[
    info("path", "Where a path leads.", |path| {
        labels([
            ("device", path.device.clone()),
            ("local", path.local.to_string()),
            ("remote", path.remote.to_string()),
            ("watch", path.watch.to_owned()),
        ])
    }),
    gauge(
        "path_state",
        NONE,
        "1 for the state that the path is in, 0 for the others.",
        |path| {
            let states = PathState::ALL.iter().map(|state| state.label());
            one_of("state", states, path.state)
        },
    ),
    info("path_reason", "Why the path is in its state.", |path| {
        labels([("reason", path.reason.to_owned())])
    }),
    info(
        "path_xdp",
        "Whether the path is received by XDP, in its device's driver, or why by tc alone.",
        |path| labels([("xdp", path.xdp.to_owned())]),
    ),
    gauge(
        "path_in_use",
        NONE,
        "Whether packets are sent on the path now.",
        |path| number(Some(path.in_use)),
    ),
    gauge(
        "path_standby",
        NONE,
        "Whether the path only waits for a better one to fail.",
        |path| number(Some(path.standby)),
    ),
    gauge(
        "path_last_change_timestamp",
        SECONDS,
        "When state or reason last changed, since 1970.",
        |path| number(Some(path.changed)),
    ),
    counter(
        "path_transmit_packets",
        NONE,
        "Packets sent on the path, segments of super-packets each.",
        |path| count(path.tx_packets),
    ),
    counter(
        "path_transmit",
        BYTES,
        "Bytes of the packets sent on the path, without any encapsulation.",
        |path| count(path.tx_bytes),
    ),
    counter(
        "path_receive_packets",
        NONE,
        "Packets received on the path.",
        |path| count(path.rx_packets),
    ),
    counter(
        "path_receive",
        BYTES,
        "Bytes of the packets received on the path, without any encapsulation.",
        |path| count(path.rx_bytes),
    ),
    counter(
        "path_transmit_stand_in_packets",
        NONE,
        "Of the packets sent: in place of another path that was out of use.",
        |path| count(path.tx_stand_in),
    ),
    counter(
        "path_transmit_last_resort_packets",
        NONE,
        "Of the packets sent: as a last resort, while it was not in use.",
        |path| count(path.tx_last_resort),
    ),
    counter(
        "path_transmit_copy_packets",
        NONE,
        "Of the packets sent: copies of what another path was sent first.",
        |path| count(path.tx_copies),
    ),
    counter(
        "path_receive_copy_packets",
        NONE,
        "Of the packets received: copies of what was here already, which were dropped.",
        |path| count(path.rx_copies),
    ),
    counter(
        "path_receive_contended_packets",
        NONE,
        "Of the packets received: released at once, unordered and perhaps a copy, as another processor was at work on \
         their strand.",
        |path| count(path.rx_contended),
    ),
    counter(
        "path_transmit_onward_packets",
        NONE,
        "Of the packets sent: taken from a LAN's driver, past the kernel (XDP).",
        |path| count(path.tx_onward),
    ),
    counter(
        "path_receive_onward_packets",
        NONE,
        "Of the packets received: given to a LAN's driver, past the kernel (XDP).",
        |path| count(path.rx_onward),
    ),
    gauge("path_weight", NONE, "Weight as configured.", |path| {
        number(Some(path.weight))
    }),
    gauge(
        "path_effective_weight",
        NONE,
        "Weight that counts in modes that go by weight, relative to the bond's other paths.",
        |path| number(Some(path.effective_weight)),
    ),
    gauge(
        "path_priority",
        NONE,
        "Priority: the path with the lowest is the best, in modes that go by it.",
        |path| number(Some(path.priority)),
    ),
    gauge(
        "path_hold_down",
        SECONDS,
        "For how long yet the path is held down after it flapped; 0 where it is not.",
        |path| seconds(Some(path.hold_down_ms.unwrap_or(0.0))),
    ),
    gauge(
        "path_flaps",
        NONE,
        "How often the path failed soon after its return, in a row.",
        |path| number(Some(path.flaps)),
    ),
    info(
        "path_route",
        "The route to the path's remote address.",
        |path| {
            path.route.as_ref().map_or_else(Vec::new, |route| {
                let via = route.via.map(|via| ("via", via.to_string()));
                let always = [
                    ("prefix", &route.prefix),
                    ("protocol", &route.protocol),
                    ("device", &route.device),
                ];
                let always = always.map(|(name, value)| (name, value.clone()));
                labels(always.into_iter().chain(via))
            })
        },
    ),
    gauge("path_route_metric", NONE, "Metric of that route.", |path| {
        number(path.route.as_ref().map(|route| route.metric))
    }),
    gauge(
        "path_ospf_cost",
        NONE,
        "OSPF cost of the path's device, where a daemon is asked.",
        |path| number(path.ospf_cost),
    ),
    info(
        "path_neighbour",
        "The OSPF neighbour on the path's device, where a daemon is asked.",
        |path| {
            path.neighbour.as_ref().map_or_else(Vec::new, |neighbour| {
                labels([
                    ("router_id", neighbour.router_id.to_string()),
                    ("state", neighbour.state.clone()),
                ])
            })
        },
    ),
    gauge(
        "path_proof_age",
        SECONDS,
        "Age of the last proof that packets pass both ways.",
        |path| proof(path, |proof| seconds(proof.age_ms)),
    ),
    gauge(
        "path_proof_limit",
        SECONDS,
        "How old that proof may be.",
        |path| proof(path, |proof| seconds(Some(proof.limit_ms))),
    ),
    gauge(
        "path_proof_fresh",
        NONE,
        "Whether it is no older than that.",
        |path| proof(path, |proof| number(Some(proof.fresh))),
    ),
    gauge(
        "path_rtt",
        SECONDS,
        "Round trip of probes, smoothed.",
        |path| probe(path, |probe| seconds(Some(probe.rtt_ms))),
    ),
    gauge(
        "path_rtt_deviation",
        SECONDS,
        "Mean deviation of the round trip.",
        |path| probe(path, |probe| seconds(Some(probe.deviation_ms))),
    ),
    gauge(
        "path_rtt_least",
        SECONDS,
        "Shortest round trip so far.",
        |path| probe(path, |probe| seconds(Some(probe.least_ms))),
    ),
    gauge(
        "path_rtt_jitter",
        SECONDS,
        "How much one round trip differs from the next, smoothed.",
        |path| probe(path, |probe| seconds(Some(probe.jitter_ms))),
    ),
    gauge(
        "path_probe_loss",
        RATIO,
        "Of the last ten seconds' probes, lost on the way there, and on the way back.",
        |path| {
            probe(path, |probe| {
                let ways = [("there", probe.loss_there), ("back", probe.loss_back)];
                let sample = |(way, loss): (&str, f64)| Sample {
                    labels: vec![("direction", way.to_owned())],
                    value: Value::Number(loss),
                };
                ways.map(sample).into()
            })
        },
    ),
    gauge(
        "path_data_loss",
        RATIO,
        "Of the packets sent on the path in the last ten seconds, lost on the way there.",
        |path| probe(path, |probe| number(probe.data_loss)),
    ),
    gauge(
        "path_offered",
        BYTES_PER_SECOND,
        "Bytes sent on the path in the last second.",
        |path| {
            probe(path, |probe| {
                number(Some(probe.offered_bytes_per_second as f64))
            })
        },
    ),
    gauge(
        "path_delivered",
        BYTES_PER_SECOND,
        "Bytes received by the peer on the path in the last second.",
        |path| {
            probe(path, |probe| {
                number(Some(probe.delivered_bytes_per_second as f64))
            })
        },
    ),
    gauge(
        "path_queue",
        SECONDS,
        "How long the queues on the way there hold a packet, smoothed.",
        |path| probe(path, |probe| seconds(Some(probe.queue_ms))),
    ),
    gauge(
        "path_behind",
        SECONDS,
        "How much longer the way there is than the bond's fastest.",
        |path| probe(path, |probe| seconds(probe.behind_ms)),
    ),
    gauge(
        "path_probes_missed",
        NONE,
        "Requests since the last answer.",
        |path| probe(path, |probe| number(Some(probe.missed))),
    ),
    counter(
        "path_probes_reordered",
        NONE,
        "Answers that came later than that to a later request, since the controller started.",
        |path| probe(path, |probe| count(probe.reordered.into())),
    ),
    gauge(
        "path_mtu",
        BYTES,
        "Longest packet that the path carries, outer headers included.",
        |path| probe(path, |probe| number(probe.path_mtu)),
    ),
    gauge(
        "path_full_size",
        BYTES,
        "Length of the bond's longest packet that the path is to carry, as probed.",
        |path| probe(path, |probe| number(Some(probe.full_size))),
    ),
    gauge(
        "path_full_size_result",
        NONE,
        "1 for what became of probes of that length, 0 for the others.",
        |path| {
            probe(path, |probe| {
                let results = FullSize::ALL.iter().map(|result| result.label());
                one_of("result", results, probe.full_size_result)
            })
        },
    ),
];

/// Of each class.
pub(super) const CLASSES: &[Metric<Class>] = &[
    info("class", "A class of traffic.", |class| {
        labels([
            ("mode", class.mode.to_owned()),
            ("rule", class.rule.clone()),
        ])
    }),
    counter(
        "class_transmit_packets",
        NONE,
        "Packets of the class that a path carried, counted there too.",
        |class| count(class.tx_packets),
    ),
    counter(
        "class_transmit",
        BYTES,
        "Bytes of those packets.",
        |class| count(class.tx_bytes),
    ),
];

fn plain(value: Value) -> Vec<Sample> {
    let labels = Vec::new();
    vec![Sample { labels, value }]
}

fn labels(labels: impl IntoIterator<Item = (&'static str, String)>) -> Vec<Sample> {
    vec![Sample {
        labels: labels.into_iter().collect(),
        value: Value::Info,
    }]
}

fn count(count: u64) -> Vec<Sample> {
    plain(Value::Count(count))
}

fn number(number: Option<impl Into<Gauge>>) -> Vec<Sample> {
    number.map_or_else(Vec::new, |number| plain(Value::Number(number.into().0)))
}

/// A gauge's value: whether something holds is 1 or 0.
struct Gauge(f64);

impl From<bool> for Gauge {
    fn from(holds: bool) -> Self {
        Self(f64::from(u8::from(holds)))
    }
}

impl From<u32> for Gauge {
    fn from(number: u32) -> Self {
        Self(number.into())
    }
}

impl From<f64> for Gauge {
    fn from(number: f64) -> Self {
        Self(number)
    }
}

fn seconds(ms: Option<f64>) -> Vec<Sample> {
    number(ms.map(|ms| ms / 1000.0))
}

/// 1 for the one that it is, 0 for the others.
fn one_of(
    label: &'static str,
    all: impl Iterator<Item = &'static str>,
    is: &'static str,
) -> Vec<Sample> {
    let sample = |one: &'static str| Sample {
        labels: vec![(label, one.to_owned())],
        value: Value::Number(Gauge::from(one == is).0),
    };
    all.map(sample).collect()
}

/// Every fate, those too that never came about: a counter is to be there before it counts.
fn fates(counts: &BTreeMap<&'static str, u64>) -> Vec<Sample> {
    let sample = |fate: &Fate| Sample {
        labels: vec![("reason", fate.label().to_owned())],
        value: Value::Count(counts.get(fate.label()).copied().unwrap_or(0)),
    };
    Fate::ALL.iter().map(sample).collect()
}

fn numbered(bond: &Bond, value: fn(&Numbered) -> u64) -> Vec<Sample> {
    let numbered = bond.numbered.as_ref();
    numbered.map_or_else(Vec::new, |numbered| count(value(numbered)))
}

fn in_order(bond: &Bond, samples: fn(&Order) -> Vec<Sample>) -> Vec<Sample> {
    bond.in_order.as_ref().map_or_else(Vec::new, samples)
}

fn proof(path: &Path, samples: fn(&Proof) -> Vec<Sample>) -> Vec<Sample> {
    path.proof.as_ref().map_or_else(Vec::new, samples)
}

fn probe(path: &Path, samples: fn(&Probe) -> Vec<Sample>) -> Vec<Sample> {
    path.probe.as_ref().map_or_else(Vec::new, samples)
}
