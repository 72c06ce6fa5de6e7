//! A status for tests: two paths, one of them dead.

use std::collections::BTreeMap;

use netbond_common::names::{FullSize, PathState, StateReason, Watch};

use super::{Bond, Controller, Neighbour, Path, Peer, Probe, Proof, Rate, Route, Status, VERSION};

/// A controller that runs, and one bond.
pub(crate) fn status() -> Status {
    Status {
        version: VERSION,
        at: 1000.0,
        read_ns: 1_000_000_000,
        rates_over_s: None,
        controller: Controller {
            running: true,
            pid: 25865,
        },
        bonds: vec![bond()],
        lans: Vec::new(),
        outside: BTreeMap::new(),
    }
}

/// `via-m1`, dead, and `via-m2`, up.
pub(crate) fn bond() -> Bond {
    Bond {
        name: "nb0".to_owned(),
        state: "up",
        device_up: true,
        ifindex: 7,
        mtu: 1396,
        mtu_ceiling: Some(1396),
        encap: "gre",
        mode: "round-robin",
        weights: "static",
        flowlet_gap_ms: None,
        settled: None,
        key: None,
        peer: Some(Peer {
            prefix: "10.65.2.1/32".to_owned(),
            reachable: true,
        }),
        disagreements: Vec::new(),
        numbered: None,
        in_order: None,
        xdp_send: "off",
        paths: vec![
            path("via-m1", PathState::Dead, StateReason::Silent),
            path("via-m2", PathState::Up, StateReason::Route),
        ],
        classes: Vec::new(),
        fates: BTreeMap::new(),
    }
}

/// A path that is probed.
pub(crate) fn path(name: &str, state: PathState, reason: StateReason) -> Path {
    let up = state == PathState::Up;
    Path {
        name: name.to_owned(),
        state: state.label(),
        reason: reason.label(),
        in_use: up,
        standby: false,
        device: "wg-a-m1".to_owned(),
        xdp: "off",
        local: [10, 65, 0, 2].into(),
        remote: [10, 65, 0, 6].into(),
        weight: 1,
        effective_weight: 1.0,
        priority: 0,
        due_share: Some(if up { 1.0 } else { 0.0 }),
        rate: None,
        tx_share: Some(0.5),
        rx_share: Some(0.5),
        tx_packets: 1_348_700,
        tx_bytes: 1_324_075_134,
        rx_packets: 1_245_463,
        rx_bytes: 1_056_246_346,
        tx_stand_in: 0,
        tx_last_resort: 0,
        tx_copies: 0,
        rx_copies: 0,
        rx_contended: 0,
        tx_onward: 0,
        rx_onward: 0,
        route: Some(Route {
            prefix: "10.65.0.4/30".to_owned(),
            protocol: "bird".to_owned(),
            metric: 32,
            device: "wg-a-m1".to_owned(),
            via: None,
        }),
        next_hop: None,
        ospf_cost: Some(10),
        neighbour: Some(Neighbour {
            router_id: [10, 65, 1, 1].into(),
            state: "Full".to_owned(),
        }),
        changed: 1000.0,
        watch: Watch::Probes.label(),
        hold_down_ms: None,
        flaps: 0,
        proof: Some(Proof {
            age_ms: Some(if up { 12.0 } else { 12_000.0 }),
            limit_ms: 90.0,
            fresh: up,
        }),
        probe: Some(Probe {
            rtt_ms: 1.5,
            deviation_ms: 0.1,
            least_ms: 1.0,
            jitter_ms: 0.2,
            loss_there: 0.5,
            loss_back: 0.0,
            data_loss: Some(0.25),
            offered_bytes_per_second: 0,
            delivered_bytes_per_second: 0,
            queue_ms: 0.0,
            behind_ms: Some(0.0),
            reordered: 3,
            missed: 100,
            path_mtu: Some(1420),
            full_size: 1396,
            full_size_result: FullSize::Passes.label(),
        }),
    }
}

/// A rate of so many Mbit/s each way.
pub(crate) fn rate(mbit: u64, share: f64) -> Rate {
    Rate {
        tx_packets_per_second: mbit * 100,
        tx_bytes_per_second: mbit * 125_000,
        rx_packets_per_second: mbit * 50,
        rx_bytes_per_second: mbit * 62_500,
        tx_share: Some(share),
        rx_share: Some(share),
    }
}
