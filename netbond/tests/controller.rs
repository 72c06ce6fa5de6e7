//! The state machine on the reference topology: what each kind of event makes of the paths.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

use std::collections::BTreeSet;
use std::net::IpAddr;

use netbond::{
    config::Config,
    control::{
        event::{Event, Link, NextHop, OspfInterface, OspfNeighbour, Route},
        liveness::Verdict,
        plan::{BondPlan, Standing, Weighing},
        quality::Shortcoming,
        state::{Controller, Ids, Note, Transition},
    },
};
use netbond_common::names::{PathState, StateReason};
use proptest::prelude::*;

const CONFIG: &str = r#"
[[bond]]
name = "nb0"
address = ["10.67.0.1/24"]
peer = "10.65.2.1/32"
[[bond.path]]
name = "via-m1"
local = "10.65.0.2"
remote = "10.65.0.6"
device = "wg-a-m1"
[[bond.path]]
name = "via-m2"
local = "10.65.0.14"
remote = "10.65.0.10"
device = "wg-a-m2"
"#;

const M1: u32 = 11;
const M2: u32 = 12;
const BIRD: u8 = 12;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(ifindex: u32, up: bool) -> Event {
    let name = if ifindex == M1 { "wg-a-m1" } else { "wg-a-m2" };
    Event::Link(Link {
        ifindex,
        name: name.to_owned(),
        up,
        mtu: 1420,
        mac: None,
    })
}

fn route(to: &str, protocol: u8, devices: &[u32]) -> Event {
    let next_hop = |&ifindex: &u32| {
        let gateway = if ifindex == M1 {
            "10.65.0.1"
        } else {
            "10.65.0.13"
        };
        NextHop {
            ifindex,
            gateway: Some(ip(gateway)),
        }
    };
    let route = Route {
        prefix: (ip(to), if to == "10.65.2.1" { 32 } else { 30 }),
        protocol,
        metric: 32,
        usable: true,
        next_hops: devices.iter().map(next_hop).collect(),
    };
    Event::Route {
        to: ip(to),
        route: Some(route),
    }
}

fn no_route(to: &str) -> Event {
    Event::Route {
        to: ip(to),
        route: None,
    }
}

/// A controller and the last plan it made.
struct Bench {
    controller: Controller,
    plan: Option<BondPlan>,
}

impl Bench {
    /// Router A of the reference topology; all is well unless the configuration says otherwise.
    fn with(config: &str) -> Self {
        let mut bench = Self {
            controller: Controller::default(),
            plan: None,
        };
        bench.configure(config);
        let addresses =
            [(M1, "10.65.0.2"), (M2, "10.65.0.14")].map(|(ifindex, address)| Event::Address {
                ifindex,
                address: ip(address),
            });
        let routes = [
            route("10.65.0.6", BIRD, &[M1]),
            route("10.65.0.10", BIRD, &[M2]),
            route("10.65.2.1", BIRD, &[M1, M2]),
        ];
        for event in [link(M1, true), link(M2, true)]
            .into_iter()
            .chain(addresses)
            .chain(routes)
        {
            bench.feed(event);
        }
        bench
    }

    fn new() -> Self {
        Self::with(CONFIG)
    }

    fn configure(&mut self, config: &str) {
        let config = Config::parse(config, "test.toml").unwrap();
        let paths = (0..config.bonds[0].paths.len() as u32).collect();
        let outcomes = self
            .controller
            .configure(&config, &[Ids { bond: 0, paths }]);
        for outcome in outcomes {
            self.plan = Some(outcome.plan);
        }
    }

    fn feed(&mut self, event: Event) -> Vec<Transition> {
        self.hear(event).0
    }

    fn hear(&mut self, event: Event) -> (Vec<Transition>, Vec<Note>) {
        let mut transitions = Vec::new();
        let handled = self.controller.handle(event);
        for outcome in handled.outcomes {
            self.plan = Some(outcome.plan);
            transitions.extend(outcome.transitions);
        }
        (transitions, handled.notes)
    }

    /// State, reason and standing of each path.
    fn paths(&self) -> Vec<(PathState, StateReason, Standing)> {
        let plan = self.plan.as_ref().expect("a plan");
        plan.paths
            .iter()
            .map(|path| (path.state, path.reason, path.standing))
            .collect()
    }
}

const UP: (PathState, StateReason, Standing) =
    (PathState::Up, StateReason::Route, Standing::Usable);

const fn down(reason: StateReason) -> (PathState, StateReason, Standing) {
    (PathState::Down, reason, Standing::Out)
}

/// Headers over IPv6 are longer, and a bond's MTU is what its paths all carry.
#[test]
fn the_mtu_follows_the_longest_headers() {
    let mtu = |change: fn(String) -> String| {
        let bench = Bench::with(&change(CONFIG.to_owned()));
        bench.plan.unwrap().mtu.unwrap()
    };
    let over_ipv6 = |text: String| {
        let text = text.replace("10.65.0.14", "fd65::14");
        text.replace("10.65.0.10", "fd65:1::10")
    };
    assert_eq!(mtu(|text| text), 1420 - 24);
    // Not all is known of it yet, but its device.
    let mut bench = Bench::with(&over_ipv6(CONFIG.to_owned()));
    let to = ip("fd65:1::10");
    let found = Route {
        prefix: (to, 128),
        protocol: BIRD,
        metric: 32,
        usable: true,
        next_hops: vec![NextHop {
            ifindex: M2,
            gateway: Some(ip("fe80::13")),
        }],
    };
    bench.feed(Event::Address {
        ifindex: M2,
        address: ip("fd65::14"),
    });
    bench.feed(Event::Route {
        to,
        route: Some(found),
    });
    let plan = bench.plan.as_ref().unwrap();
    assert_eq!(plan.mtu, Some(1420 - 44));
    assert!(
        plan.paths.iter().all(|path| path.state == PathState::Up),
        "{plan:?}"
    );
}

/// OSPF of both versions on a device: each path has the one that made its route.
#[test]
fn each_family_has_its_own_ospf() {
    let text = CONFIG.replace("10.65.0.14", "fd65::14");
    let text = text
        .replace("10.65.0.10", "fd65:1::10")
        .replace("wg-a-m2", "wg-a-m1");
    let mut bench = Bench::with(&text);
    let interface = |cost, address: &str| OspfInterface {
        device: "wg-a-m1".to_owned(),
        cost: Some(cost),
        neighbours: vec![OspfNeighbour {
            router_id: [10, 65, 1, 1].into(),
            address: ip(address),
            state: "Full".to_owned(),
        }],
    };
    bench.feed(Event::Route {
        to: ip("fd65:1::10"),
        route: None,
    });
    bench.feed(Event::Ospf(vec![
        interface(10, "10.65.0.1"),
        interface(40, "fe80::1"),
    ]));
    let paths = &bench.plan.as_ref().unwrap().paths;
    let costs = [0, 1].map(|path: usize| paths[path].ospf.as_ref().unwrap().cost);
    assert_eq!(costs, [Some(10), Some(40)]);
}

#[test]
fn nothing_is_decided_before_every_route_is_known() {
    let mut controller = Controller::default();
    let config = Config::parse(CONFIG, "test.toml").unwrap();
    assert!(
        controller
            .configure(
                &config,
                &[Ids {
                    bond: 0,
                    paths: vec![0, 1]
                }]
            )
            .is_empty()
    );
    let early = [
        link(M1, true),
        link(M2, true),
        route("10.65.0.6", BIRD, &[M1]),
        no_route("10.65.0.10"),
    ];
    for event in early {
        assert!(
            controller.handle(event).outcomes.is_empty(),
            "a restart must not take paths out"
        );
    }
    assert_eq!(controller.handle(no_route("10.65.2.1")).outcomes.len(), 1);
}

#[test]
fn healthy() {
    let bench = Bench::new();
    assert_eq!(bench.paths(), [UP, UP]);
    let plan = bench.plan.unwrap();
    assert_eq!(plan.mtu, Some(1396));
    assert_eq!(plan.peer_reachable, Some(true));
}

/// The header of a frame takes its part of the MTU, and so does a key.
#[test]
fn frames_leave_less_room() {
    let encap = "name = \"nb0\"\nencap = \"gretap\"";
    for (lines, mtu) in [
        (encap.to_owned(), 1420 - 24 - 14),
        (format!("{encap}\nkey = 0"), 1420 - 28 - 14),
    ] {
        let bench = Bench::with(&CONFIG.replace("name = \"nb0\"", &lines));
        assert_eq!(bench.plan.unwrap().mtu, Some(mtu));
    }
}

#[test]
fn withdrawn_route() {
    let mut bench = Bench::new();
    let transitions = bench.feed(no_route("10.65.0.6"));
    assert_eq!(bench.paths(), [down(StateReason::NoRoute), UP]);
    assert_eq!(transitions.len(), 1);
    assert_eq!(
        (transitions[0].path.as_str(), transitions[0].cause.as_str()),
        ("via-m1", "route to 10.65.0.6 withdrawn by bird")
    );
    assert!(
        bench.feed(no_route("10.65.0.6")).is_empty(),
        "the same again is no news"
    );
    bench.feed(route("10.65.0.6", BIRD, &[M1]));
    assert_eq!(bench.paths(), [UP, UP]);
}

/// OSPF is restarted, here or on the way: what probes find alive carries the packets as long as there is nothing
/// better.
#[test]
fn without_a_route_probes_keep_a_path_as_a_last_resort() {
    let mut bench = Bench::new();
    let no_route_but = |standing| (PathState::Down, StateReason::NoRoute, standing);
    for path in [0, 1] {
        bench.feed(Event::Liveness {
            path,
            verdict: Verdict::Alive,
        });
    }
    bench.feed(no_route("10.65.0.6"));
    assert_eq!(
        bench.paths(),
        [no_route_but(Standing::LastResort), UP],
        "the other one has a route"
    );
    bench.feed(no_route("10.65.0.10"));
    assert_eq!(bench.paths(), [no_route_but(Standing::Usable); 2]);
    bench.feed(Event::Liveness {
        path: 0,
        verdict: Verdict::Dead { missed: 3 },
    });
    assert_eq!(
        bench.paths(),
        [down(StateReason::NoRoute), no_route_but(Standing::Usable)]
    );
    // The default route matches where OSPF's is gone.
    bench.feed(route("10.65.0.10", 4, &[M1]));
    assert_eq!(
        bench.paths()[1],
        (PathState::Down, StateReason::NotOspf, Standing::Usable)
    );
    bench.feed(Event::Liveness {
        path: 1,
        verdict: Verdict::HeldDown { flaps: 1, ms: 900 },
    });
    assert_eq!(
        bench.paths()[1],
        (PathState::Down, StateReason::NotOspf, Standing::Usable)
    );
    bench.feed(Event::Liveness {
        path: 1,
        verdict: Verdict::Unwatched,
    });
    assert_eq!(
        bench.paths(),
        [down(StateReason::NoRoute), down(StateReason::NotOspf)],
        "without probes the route alone counts"
    );
}

/// On Ethernet packets need a next hop: the last that OSPF told stays while there is none, as long as probes find
/// the path alive; of the same device, to the same address, and whoever the controller is.
#[test]
fn on_ethernet_the_next_hop_outlives_its_route() {
    let ethernet = |ifindex| {
        let Event::Link(link) = link(ifindex, true) else {
            panic!("a device");
        };
        let mac = Some([2; 6]);
        Event::Link(Link { mac, ..link })
    };
    let next_hops = |bench: &Bench| {
        let paths = &bench.plan.as_ref().unwrap().paths;
        [paths[0].next_hop, paths[1].next_hop].map(|hop| hop.map(|hop| hop.address.to_string()))
    };
    let told = |[one, other]: [&str; 2]| [Some(one.to_owned()), Some(other.to_owned())];
    let alive = |path| Event::Liveness {
        path,
        verdict: Verdict::Alive,
    };
    let mut bench = Bench::new();
    assert_eq!(next_hops(&bench), [None, None], "tunnels have none");
    let gateways = ["10.65.0.1", "10.65.0.13"];
    for event in [ethernet(M1), ethernet(M2), alive(0), alive(1)] {
        bench.feed(event);
    }
    assert_eq!(next_hops(&bench), told(gateways));

    bench.feed(no_route("10.65.0.6"));
    bench.feed(route("10.65.0.10", 4, &[M2]));
    assert_eq!(next_hops(&bench), told(gateways));
    let down = |reason, standing| (PathState::Down, reason, standing);
    let paths = [StateReason::NoRoute, StateReason::NotOspf];
    assert_eq!(
        bench.paths(),
        paths.map(|reason| down(reason, Standing::Usable))
    );
    // Nor is a detour any different from one of WireGuard's.
    bench.feed(route("10.65.0.10", BIRD, &[M2]));
    bench.feed(route("10.65.0.6", BIRD, &[M2]));
    assert_eq!(next_hops(&bench), told(gateways));
    assert!(bench.plan.as_ref().unwrap().paths[0].is_spare());
    // The address on the link itself has no gateway.
    let Event::Route {
        to,
        route: Some(mut direct),
    } = route("10.65.0.6", BIRD, &[M1])
    else {
        panic!("a route");
    };
    direct.next_hops[0].gateway = None;
    bench.feed(Event::Route {
        to,
        route: Some(direct),
    });
    assert_eq!(next_hops(&bench), told(["10.65.0.6", gateways[1]]));

    // Another device is another link.
    bench.feed(Event::LinkGone { ifindex: M1 });
    bench.feed(no_route("10.65.0.6"));
    let again = Link {
        ifindex: 40,
        name: "wg-a-m1".to_owned(),
        up: true,
        mtu: 1420,
        mac: Some([2; 6]),
    };
    bench.feed(Event::Link(again));
    assert_eq!(next_hops(&bench)[0], None);

    // What an earlier controller knew counts, where it is of this link, until a route tells.
    let mut bench = Bench::new();
    bench.feed(no_route("10.65.0.6"));
    bench.feed(no_route("10.65.0.10"));
    let known = |path, ifindex, remote| Event::Neighbour {
        path,
        ifindex,
        remote: ip(remote),
        address: ip("10.65.0.99"),
    };
    for event in [
        known(0, M1, "10.65.0.6"),
        known(1, M1, "10.65.0.10"),
        ethernet(M1),
        ethernet(M2),
    ] {
        bench.feed(event);
    }
    assert_eq!(next_hops(&bench), [Some("10.65.0.99".to_owned()), None]);
    bench.feed(route("10.65.0.6", BIRD, &[M1]));
    assert_eq!(next_hops(&bench)[0], Some(gateways[0].to_owned()));
}

/// What OSPF lost or leads round, and what probes took out, may have copies; what a policy avoids may not.
#[test]
fn spare_paths() {
    let policy = "name = \"nb0\"\nlossy = \"avoid\"";
    let mut bench = Bench::with(&CONFIG.replace("name = \"nb0\"", policy));
    let alive = |path| Event::Liveness {
        path,
        verdict: Verdict::Alive,
    };
    bench.feed(alive(0));
    bench.feed(alive(1));
    let spare = |bench: &Bench| {
        let paths = &bench.plan.as_ref().unwrap().paths;
        [paths[0].is_spare(), paths[1].is_spare()]
    };
    assert_eq!(spare(&bench), [false; 2], "both are up");
    bench.feed(no_route("10.65.0.6"));
    assert_eq!(spare(&bench), [true, false], "no route");
    bench.feed(route("10.65.0.6", BIRD, &[M2]));
    assert_eq!(spare(&bench), [true, false], "over the other device");
    bench.feed(route("10.65.0.6", BIRD, &[M1]));
    let say = |verdict| Event::Liveness { path: 0, verdict };
    bench.feed(say(Verdict::Dead { missed: 3 }));
    assert_eq!(spare(&bench), [true, false], "silent, perhaps not for long");
    bench.feed(say(Verdict::Short(Shortcoming::Lossy {
        there: 30,
        back: 0,
    })));
    assert_eq!(spare(&bench), [false; 2], "avoided by policy");
    bench.feed(say(Verdict::Mtu { bytes: 1396 }));
    assert_eq!(spare(&bench), [false; 2], "large packets vanish");
    bench.feed(say(Verdict::Dead { missed: 3 }));
    bench.feed(no_route("10.65.0.6"));
    assert_eq!(spare(&bench), [false; 2], "no route, and nothing passes");
}

#[test]
fn detour_is_avoided_while_a_path_is_up() {
    let detour = |standing| (PathState::Detour, StateReason::Elsewhere, standing);
    let mut bench = Bench::new();
    bench.feed(route("10.65.0.6", BIRD, &[M2]));
    assert_eq!(bench.paths(), [detour(Standing::LastResort), UP]);
    let device = bench.plan.as_ref().unwrap().paths[0]
        .device
        .as_ref()
        .unwrap();
    assert_eq!(device.ifindex, M1, "egress stays on the path's own device");
    bench.feed(no_route("10.65.0.10"));
    assert_eq!(
        bench.paths(),
        [detour(Standing::Usable), down(StateReason::NoRoute)]
    );
}

#[test]
fn detour_is_used_where_the_user_says_so() {
    let mut bench =
        Bench::with(&CONFIG.replace("name = \"nb0\"", "name = \"nb0\"\ndetour = \"use\""));
    bench.feed(route("10.65.0.6", BIRD, &[M2]));
    assert_eq!(
        bench.paths(),
        [
            (PathState::Detour, StateReason::Elsewhere, Standing::Usable),
            UP
        ]
    );
}

/// A multipath route that has the path's own device among others is no detour.
#[test]
fn multipath_over_the_own_device() {
    let mut bench = Bench::new();
    bench.feed(route("10.65.0.6", BIRD, &[M2, M1]));
    assert_eq!(bench.paths(), [UP, UP]);
    assert_eq!(
        bench.plan.unwrap().paths[0].route.as_ref().unwrap().ifindex,
        M1
    );
}

/// Beyond the first hop: the path's own route never changes, but the peer is no longer reached over
/// its device.
#[test]
fn peer_lost_over_one_device() {
    let mut bench = Bench::new();
    bench.feed(route("10.65.2.1", BIRD, &[M2]));
    let suspect = (
        PathState::Suspect,
        StateReason::PeerElsewhere,
        Standing::LastResort,
    );
    assert_eq!(bench.paths(), [suspect, UP]);
    bench.feed(route("10.65.2.1", BIRD, &[M1, M2]));
    assert_eq!(bench.paths(), [UP, UP]);
    bench.feed(no_route("10.65.2.1"));
    assert_eq!(
        bench.paths(),
        [UP, UP],
        "no route to the peer at all says nothing of one path"
    );
    assert_eq!(bench.plan.as_ref().unwrap().peer_reachable, Some(false));
}

/// A verdict on its way while a reload ends the probes: from then on the routes alone decide.
#[test]
fn a_verdict_after_the_last_probe_counts_for_nothing() {
    let mut bench = Bench::new();
    bench.configure(&CONFIG.replacen("peer =", "probe_interval = 0\npeer =", 1));
    let (_, notes) = bench.hear(Event::Liveness {
        path: 0,
        verdict: Verdict::Alive,
    });
    assert!(notes.is_empty());
    bench.feed(route("10.65.2.1", BIRD, &[M2]));
    assert_eq!(bench.paths()[0].0, PathState::Suspect);
}

/// With unequal costs the peer is only ever reached over the better device: that is no fault.
#[test]
fn peer_never_seen_over_a_device_is_no_suspicion() {
    let mut bench = Bench {
        controller: Controller::default(),
        plan: None,
    };
    bench.configure(CONFIG);
    for event in [
        link(M1, true),
        link(M2, true),
        Event::Address {
            ifindex: M1,
            address: ip("10.65.0.2"),
        },
        Event::Address {
            ifindex: M2,
            address: ip("10.65.0.14"),
        },
        route("10.65.0.6", BIRD, &[M1]),
        route("10.65.0.10", BIRD, &[M2]),
        route("10.65.2.1", BIRD, &[M2]),
    ] {
        bench.feed(event);
    }
    assert_eq!(bench.paths(), [UP, UP]);
}

/// With unequal costs a failure of the better device moves the peer to the other one, and its end
/// moves it back: the other one is no worse for it.
#[test]
fn peer_away_and_back_is_no_suspicion() {
    let mut bench = Bench::new();
    for device in [M2, M1, M2] {
        bench.feed(route("10.65.2.1", BIRD, &[device]));
    }
    assert_eq!(bench.paths(), [UP, UP]);
}

/// A default route to the peer says nothing of it.
#[test]
fn a_covering_route_does_not_reach_the_peer() {
    let mut bench = Bench::new();
    let Event::Route {
        to,
        route: Some(mut covering),
    } = route("10.65.2.1", BIRD, &[M1, M2])
    else {
        unreachable!()
    };
    covering.prefix = (ip("0.0.0.0"), 0);
    bench.feed(Event::Route {
        to,
        route: Some(covering),
    });
    assert_eq!(bench.plan.unwrap().peer_reachable, Some(false));
}

#[test]
fn probes_have_the_last_word() {
    let dead = |reason, standing| (PathState::Dead, reason, standing);
    let mut bench = Bench::new();
    let verdict = |path, verdict| Event::Liveness { path, verdict };
    let dead_for_probes = || Verdict::Dead { missed: 3 };
    let transitions = bench.feed(verdict(0, dead_for_probes()));
    assert_eq!(
        bench.paths(),
        [dead(StateReason::Silent, Standing::LastResort), UP]
    );
    assert_eq!(transitions[0].cause, "probe: 3 missed");
    bench.feed(verdict(0, Verdict::HeldDown { flaps: 1, ms: 900 }));
    assert_eq!(
        bench.paths(),
        [dead(StateReason::HeldDown, Standing::LastResort), UP]
    );
    bench.feed(verdict(1, dead_for_probes()));
    assert_eq!(
        bench.paths(),
        [
            dead(StateReason::HeldDown, Standing::Usable),
            dead(StateReason::Silent, Standing::LastResort)
        ],
        "one that is held down is better than none"
    );
    bench.feed(verdict(0, dead_for_probes()));
    assert_eq!(
        bench.paths(),
        [dead(StateReason::Silent, Standing::Usable); 2],
        "fail open"
    );
    bench.feed(verdict(0, Verdict::Alive));
    bench.feed(verdict(1, Verdict::Alive));
    assert_eq!(bench.paths(), [UP, UP]);
    // What passes both ways is no matter of suspicion, and a detour that lives is one still.
    bench.feed(route("10.65.2.1", BIRD, &[M2]));
    assert_eq!(bench.paths(), [UP, UP]);
    bench.feed(route("10.65.0.6", BIRD, &[M2]));
    assert_eq!(bench.paths()[0].0, PathState::Detour);
}

/// The faster sign acts, the slower ones confirm it, and each says what it is.
#[test]
fn later_signs_confirm_the_first() {
    let neighbour = |state: &str| OspfNeighbour {
        router_id: "10.65.1.1".parse().unwrap(),
        address: ip("10.65.0.1"),
        state: state.to_owned(),
    };
    let ospf = |neighbours: Vec<OspfNeighbour>| {
        Event::Ospf(vec![OspfInterface {
            device: "wg-a-m1".to_owned(),
            cost: Some(10),
            neighbours,
        }])
    };
    let note = |text: &str, confirms| Note {
        bond: "nb0".to_owned(),
        path: Some("via-m1".to_owned()),
        text: text.to_owned(),
        confirms,
    };
    let mut bench = Bench::new();
    let (changed, notes) = bench.hear(ospf(vec![neighbour("Full")]));
    assert!(changed.is_empty());
    assert_eq!(
        notes,
        [note("neighbour 10.65.1.1 on wg-a-m1 is Full", false)]
    );

    let dead = Verdict::Dead { missed: 3 };
    let (changed, notes) = bench.hear(Event::Liveness {
        path: 0,
        verdict: dead,
    });
    assert_eq!((changed.len(), notes.len()), (1, 0), "it acts itself");
    let (changed, notes) = bench.hear(ospf(Vec::new()));
    assert!(changed.is_empty());
    assert_eq!(notes, [note("neighbour 10.65.1.1 on wg-a-m1 lost", true)]);
    let (changed, notes) = bench.hear(route("10.65.0.6", BIRD, &[M2]));
    assert!(changed.is_empty());
    let text = "route to 10.65.0.6 over wg-a-m2 by bird, was over wg-a-m1";
    assert_eq!(notes, [note(text, true)]);

    // Alive again while OSPF still leads elsewhere: a detour.
    let alive = Event::Liveness {
        path: 0,
        verdict: Verdict::Alive,
    };
    let (changed, _) = bench.hear(alive);
    assert_eq!(changed[0].to, (PathState::Detour, StateReason::Elsewhere));
    assert_eq!(changed[0].cause, "probe: answered, all is well");
    let (changed, notes) = bench.hear(ospf(vec![neighbour("Init")]));
    assert!(changed.is_empty());
    assert_eq!(
        notes,
        [note("neighbour 10.65.1.1 on wg-a-m1 is Init", false)]
    );
}

/// A device that goes down acts; the probes that then go unanswered confirm it.
#[test]
fn probes_confirm_what_the_kernel_saw_first() {
    let mut bench = Bench::new();
    let (changed, _) = bench.hear(link(M1, false));
    assert_eq!(changed[0].cause, "device wg-a-m1 down");
    let dead = Verdict::Dead { missed: 3 };
    let (changed, notes) = bench.hear(Event::Liveness {
        path: 0,
        verdict: dead,
    });
    assert!(changed.is_empty());
    assert!(
        notes[0].confirms && notes[0].text == "probe: 3 missed",
        "{notes:?}"
    );
}

#[test]
fn policies_for_paths_that_live_but_not_well() {
    let policy = |keys: &str| {
        let bond = format!("name = \"nb0\"\n{keys}");
        Bench::with(&CONFIG.replace("name = \"nb0\"", &bond))
    };
    let lossy = |path| Event::Liveness {
        path,
        verdict: Verdict::Short(Shortcoming::Lossy { there: 31, back: 0 }),
    };
    let degraded = |standing| (PathState::Degraded, StateReason::Lossy, standing);
    let quarters = |bench: &Bench| {
        let paths = &bench.plan.as_ref().unwrap().paths;
        [paths[0].quarters, paths[1].quarters]
    };

    let mut bench = policy("lossy = \"avoid\"");
    let changed = bench.feed(lossy(0));
    assert_eq!(changed[0].cause, "probe: 31 % lost there, 0 % back");
    assert_eq!(bench.paths(), [degraded(Standing::LastResort), UP]);
    bench.feed(Event::Liveness {
        path: 1,
        verdict: Verdict::Dead { missed: 3 },
    });
    assert_eq!(
        bench.paths()[0],
        degraded(Standing::Usable),
        "better than a dead one"
    );
    assert_eq!(bench.paths()[1].2, Standing::LastResort);

    let mut bench = policy("lossy = \"less\"");
    assert_eq!(quarters(&bench), [4, 4]);
    bench.feed(lossy(0));
    assert_eq!(bench.paths(), [degraded(Standing::Usable), UP]);
    assert_eq!(quarters(&bench), [1, 4]);
}

#[test]
fn bfd_stands_in_for_probes() {
    let keys = "name = \"nb0\"\nprobe_interval = 0\nbfd = \"multi-hop\"";
    let mut bench = Bench::with(&CONFIG.replace("name = \"nb0\"", keys));
    let sessions = bench.controller.bfd_sessions();
    assert_eq!(sessions.len(), 2);
    assert_eq!(
        (sessions[0].id, sessions[0].remote),
        (0, ip("10.65.0.6")),
        "each path has its own"
    );
    let verdict = |verdict| Event::Liveness { path: 0, verdict };
    let diagnostic = "control detection time expired".to_owned();
    let changed = bench.feed(verdict(Verdict::BfdDown { diagnostic }));
    assert_eq!(changed[0].to, (PathState::Dead, StateReason::Bfd));
    assert_eq!(
        changed[0].cause,
        "bfd: session down (control detection time expired)"
    );
    // The peer's administrator ended the session: that says nothing of the path.
    bench.feed(verdict(Verdict::Unwatched));
    assert_eq!(bench.paths(), [UP, UP]);
}

/// Any event that may come to router A.
fn any_event() -> impl Strategy<Value = Event> {
    let path = 0..2_u32;
    let devices = prop::sample::select(vec![vec![], vec![M1], vec![M2], vec![M1, M2]]);
    let to = prop::sample::select(vec!["10.65.0.6", "10.65.0.10", "10.65.2.1"]);
    let protocol = prop::sample::select(vec![BIRD, BIRD, BIRD, 4]);
    let verdict = prop_oneof![
        Just(Verdict::Alive),
        Just(Verdict::Dead { missed: 3 }),
        Just(Verdict::HeldDown { flaps: 1, ms: 900 }),
        Just(Verdict::Mtu { bytes: 1396 }),
        Just(Verdict::Short(Shortcoming::Lossy { there: 30, back: 0 })),
        Just(Verdict::Unwatched),
    ];
    let path_mtu = prop::option::of(1304..1600_u32);
    let device = prop::sample::select(vec![M1, M2]);
    prop_oneof![
        (device.clone(), any::<bool>()).prop_map(|(device, up)| link(device, up)),
        device.prop_map(|ifindex| Event::LinkGone { ifindex }),
        (to.clone(), protocol, devices)
            .prop_map(|(to, protocol, devices)| route(to, protocol, &devices)),
        to.prop_map(no_route),
        (path.clone(), verdict).prop_map(|(path, verdict)| Event::Liveness { path, verdict }),
        (path.clone(), path_mtu).prop_map(|(path, bytes)| Event::PathMtu { path, bytes }),
        (path, any::<bool>()).prop_map(|(path, up)| Event::Admin { path, up }),
    ]
}

proptest! {
    /// Whatever happens, in whatever order: a path without a route of OSPF is out unless packets pass it, one
    /// that is dead or has no route is used only where none is better, and as long as one has a route or
    /// passes, one is used.
    #[test]
    fn no_sequence_of_events_stops_what_could_flow(
        events in prop::collection::vec(any_event(), 1..60),
        policy in prop::sample::select(vec!["lossy = \"avoid\"", "lossy = \"less\"", "detour = \"use\""]),
    ) {
        let keys = format!("name = \"nb0\"\n{policy}");
        let mut bench = Bench::with(&CONFIG.replace("name = \"nb0\"", &keys));
        for event in events {
            let news = format!("{event:?}");
            bench.feed(event);
            let paths = bench.paths();
            let used = |standing| paths.iter().any(|path| path.2 == standing);
            let plans = bench.plan.iter().flat_map(|plan| &plan.paths);
            let passes: Vec<bool> = plans.map(|path| path.passes).collect();
            let carries = |path: usize| paths[path].0 != PathState::Down || passes[path];
            let any = (0..paths.len()).any(carries);
            prop_assert_eq!(any, used(Standing::Usable), "{}: {:?}", news, &paths);
            for (path, (state, reason, standing)) in paths.iter().enumerate() {
                prop_assert_eq!(carries(path), *standing != Standing::Out);
                let lives = paths.iter().any(|path| path.0 == PathState::Up);
                let worse = matches!(state, PathState::Dead | PathState::Down);
                prop_assert!(!(worse && lives) || *standing != Standing::Usable, "{:?}", reason);
            }
        }
    }
}

/// Devices and addresses as well, `lo` among them, and a device that takes another's name.
fn any_event_of_devices() -> impl Strategy<Value = Event> {
    let address = prop::sample::select(vec!["10.65.0.2", "10.65.0.14", "10.65.2.2"]).prop_map(ip);
    let name = prop::sample::select(vec!["wg-a-m1", "wg-a-m2", "lo", "nb7"]);
    let ifindex = prop::sample::select(vec![1, M1, M2]);
    prop_oneof![
        any_event(),
        (ifindex.clone(), name, any::<bool>(), any::<bool>()).prop_map(
            |(ifindex, name, up, ethernet)| Event::Link(Link {
                ifindex,
                name: name.to_owned(),
                up,
                mtu: 1420,
                mac: ethernet.then_some([2; 6]),
            })
        ),
        (ifindex.clone(), address.clone())
            .prop_map(|(ifindex, address)| Event::Address { ifindex, address }),
        (ifindex, address).prop_map(|(ifindex, address)| Event::AddressGone { ifindex, address }),
    ]
}

proptest! {
    /// Only the bonds that an event may concern are looked at: none that it does concern is missed.
    #[test]
    fn what_all_is_known_says_nothing_else_than_event_after_event(
        events in prop::collection::vec(any_event_of_devices(), 1..40),
        without_devices in any::<bool>(),
    ) {
        let lines = CONFIG.lines();
        let kept = lines.filter(|line| !(without_devices && line.starts_with("device = ")));
        let config = kept.collect::<Vec<_>>().join("\n");
        let mut bench = Bench::with(&config);
        for event in events {
            let news = format!("{event:?}");
            bench.feed(event);
            let plan = bench.plan.take();
            // All bonds are planned anew.
            bench.configure(&config);
            if plan.is_some() {
                prop_assert_eq!(&plan, &bench.plan, "{}", news);
            }
        }
    }
}

#[test]
fn device_goes_and_comes_back_with_another_ifindex() {
    let mut bench = Bench::new();
    bench.feed(link(M1, false));
    assert_eq!(bench.paths(), [down(StateReason::DeviceDown), UP]);
    bench.feed(Event::LinkGone { ifindex: M1 });
    assert_eq!(bench.paths(), [down(StateReason::NoDevice), UP]);
    let again = Link {
        ifindex: 40,
        name: "wg-a-m1".to_owned(),
        up: true,
        mtu: 1380,
        mac: None,
    };
    bench.feed(Event::Link(again));
    bench.feed(Event::Address {
        ifindex: 40,
        address: ip("10.65.0.2"),
    });
    bench.feed(route("10.65.0.6", BIRD, &[40]));
    bench.feed(route("10.65.2.1", BIRD, &[40, M2]));
    assert_eq!(bench.paths(), [UP, UP]);
    let plan = bench.plan.unwrap();
    assert_eq!(plan.paths[0].device.as_ref().unwrap().ifindex, 40);
    assert_eq!(
        plan.mtu,
        Some(1356),
        "the smallest device less the overhead"
    );
}

#[test]
fn routes_that_are_not_ospf_do_not_count() {
    let mut bench = Bench::new();
    bench.feed(route("10.65.0.6", 4, &[M1]));
    assert_eq!(bench.paths(), [down(StateReason::NotOspf), UP]);
    let mut bench = Bench::with(&format!(
        "route_protocols = [\"static\", \"bird\"]\n{CONFIG}"
    ));
    bench.feed(route("10.65.0.6", 4, &[M1]));
    assert_eq!(bench.paths(), [UP, UP]);
}

#[test]
fn blackhole_route() {
    let mut bench = Bench::new();
    let Event::Route {
        to,
        route: Some(mut blackhole),
    } = route("10.65.0.6", BIRD, &[])
    else {
        unreachable!()
    };
    blackhole.usable = false;
    bench.feed(Event::Route {
        to,
        route: Some(blackhole),
    });
    assert_eq!(bench.paths(), [down(StateReason::Unreachable), UP]);
}

#[test]
fn the_user_takes_a_path_out() {
    let mut bench = Bench::new();
    let transitions = bench.feed(Event::Admin { path: 1, up: false });
    assert_eq!(bench.paths(), [UP, down(StateReason::Admin)]);
    assert_eq!(transitions[0].cause, "admin: taken out");
    bench.feed(no_route("10.65.0.10"));
    assert_eq!(bench.paths(), [UP, down(StateReason::Admin)]);
    bench.feed(route("10.65.0.10", BIRD, &[M2]));
    bench.feed(Event::Admin { path: 1, up: true });
    assert_eq!(bench.paths(), [UP, UP]);
}

/// The bond's MTU is what the narrowest path carries, and is raised when no path is in the way.
#[test]
fn the_mtu_follows_the_narrowest_path() {
    let mut bench = Bench::new();
    let mtu = |bench: &Bench| bench.plan.as_ref().unwrap().mtu.unwrap();
    let mut say = |path, bytes| {
        let (transitions, notes) = bench.hear(Event::PathMtu { path, bytes });
        assert_eq!(transitions, [], "no path is out of use for it");
        assert_eq!(bench.paths(), [UP, UP]);
        let texts: Vec<String> = notes.into_iter().map(|note| note.text).collect();
        (mtu(&bench), texts.join("\n"))
    };
    for path in [0, 1] {
        assert_eq!(say(path, Some(1420)), (1396, String::new()), "as expected");
    }
    let lower = "longer probes are not answered, smaller ones are";
    let of = |bytes, was| format!("path MTU {bytes}, was {was}: {lower}");
    assert_eq!(say(0, Some(1340)), (1316, of(1340, 1420)));
    assert_eq!(say(1, Some(1330)), (1306, of(1330, 1420)));
    let higher = |was| format!("path MTU 1420, was {was}: probes of that size are answered");
    assert_eq!(say(0, Some(1420)), (1306, higher(1340)), "the other one");
    assert_eq!(say(1, Some(1420)), (1396, higher(1330)));
    assert_eq!(say(1, Some(1330)).0, 1306);
    // A path that is of no use is out of use, and in nobody's way.
    assert_eq!(
        say(1, None),
        (
            1396,
            "path MTU less than the bond needs, was 1330".to_owned()
        )
    );
    assert_eq!(
        say(1, Some(1310)),
        (1286, format!("path MTU 1310: {lower}"))
    );
}

/// The device takes more: that is proven first. It takes less: that is believed.
#[test]
fn a_device_s_larger_mtu_is_proven_before_it_counts() {
    let mut bench = Bench::new();
    for path in [0, 1] {
        bench.feed(Event::PathMtu {
            path,
            bytes: Some(1420),
        });
    }
    let device = |ifindex, mtu| {
        let Event::Link(link) = link(ifindex, true) else {
            unreachable!()
        };
        Event::Link(Link { mtu, ..link })
    };
    let mut look = BTreeSet::new();
    for ifindex in [M1, M2] {
        look.extend(bench.controller.handle(device(ifindex, 9000)).look_at_mtu);
    }
    assert_eq!(look, BTreeSet::from([0, 1]), "at once");
    bench.feed(Event::PathMtu {
        path: 0,
        bytes: Some(9000),
    });
    let plan = bench.plan.as_ref().unwrap();
    assert_eq!((plan.mtu, plan.mtu_ceiling), (Some(1396), Some(8976)));
    bench.feed(Event::PathMtu {
        path: 1,
        bytes: Some(9000),
    });
    assert_eq!(bench.plan.as_ref().unwrap().mtu, Some(8976));
    bench.feed(device(M1, 1400));
    assert_eq!(bench.plan.as_ref().unwrap().mtu, Some(1376));
}

/// Sizes are looked at again where a way changes, and where a device below may have.
#[test]
fn what_changes_below_a_path_has_its_mtu_looked_at() {
    let mut bench = Bench::new();
    let mut look = |event| {
        let handled = bench.controller.handle(event);
        handled.look_at_mtu.into_iter().collect::<Vec<u32>>()
    };
    let other = |name: &str, mtu| {
        Event::Link(Link {
            ifindex: 30,
            name: name.to_owned(),
            up: true,
            mtu,
            mac: Some([2; 6]),
        })
    };
    assert_eq!(look(other("eth0", 1500)), [0; 0], "it is there");
    assert_eq!(look(other("eth0", 1400)), [0, 1], "any path may be over it");
    assert_eq!(look(other("eth0", 1400)), [0; 0]);
    assert_eq!(look(route("10.65.0.6", BIRD, &[M2])), [0]);
    assert_eq!(look(route("10.65.0.6", BIRD, &[M2])), [0; 0]);
    assert_eq!(look(no_route("10.65.2.1")), [0; 0], "no path's");
    assert_eq!(look(other("nb0", 1400)), [0; 0], "its own follow");
    assert_eq!(look(other("nb0", 1300)), [0; 0]);
}

#[test]
fn a_fixed_mtu_is_what_devices_and_the_file_say() {
    let keys = "name = \"nb0\"\npath_mtu = \"fixed\"";
    let mut bench = Bench::with(&CONFIG.replace("name = \"nb0\"", keys));
    bench.feed(Event::PathMtu {
        path: 0,
        bytes: Some(1340),
    });
    assert_eq!(bench.plan.unwrap().mtu, Some(1396));
}

#[test]
fn mtu_is_capped_and_leaves_room_for_the_key() {
    let bench = Bench::with(&CONFIG.replace("name = \"nb0\"", "name = \"nb0\"\nkey = 1"));
    assert_eq!(bench.plan.unwrap().mtu, Some(1392));
    let bench = Bench::with(&CONFIG.replace("name = \"nb0\"", "name = \"nb0\"\nmtu = 1300"));
    assert_eq!(bench.plan.unwrap().mtu, Some(1300));
}

/// What was learnt of the peer survives a reload; a path that goes is forgotten.
#[test]
fn reload() {
    let mut bench = Bench::new();
    bench.feed(route("10.65.2.1", BIRD, &[M2]));
    bench.configure(&CONFIG.replace("[\"10.67.0.1/24\"]", "[\"10.67.0.9/24\"]"));
    assert_eq!(bench.paths()[0].0, PathState::Suspect);
    let one_path = CONFIG
        .split("[[bond.path]]")
        .take(2)
        .collect::<Vec<_>>()
        .join("[[bond.path]]");
    bench.configure(&one_path);
    assert_eq!(bench.paths().len(), 1);
    assert_eq!(
        bench.controller.targets(),
        [ip("10.65.0.6"), ip("10.65.2.1")]
    );
}

/// What a controller on router A really saw (`netbond run --record FILE`): M1 died silently and came
/// back, the user took via-m2 out and back, its device went down and up. Every decision it leads to
/// is in the file beside it; NETBOND_BLESS=1 writes that anew.
#[test]
fn recorded_events() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/events");
    let recorded = std::fs::read_to_string(format!("{directory}/failures.jsonl")).unwrap();
    let mut bench = Bench {
        controller: Controller::default(),
        plan: None,
    };
    bench.configure(CONFIG);
    let mut story = String::new();
    for (number, line) in recorded.lines().enumerate() {
        let event: Event = serde_json::from_str(line).unwrap();
        for transition in bench.feed(event) {
            let Transition {
                path,
                to: (state, reason),
                cause,
                ..
            } = transition;
            story += &format!(
                "event {}: {path} {} ({}): {cause}\n",
                number + 1,
                state.label(),
                reason.label()
            );
            for path in &bench.plan.as_ref().unwrap().paths {
                story += &format!("  {} {:?}\n", path.name, path.standing);
            }
        }
    }
    let expected = format!("{directory}/failures.txt");
    if std::env::var_os("NETBOND_BLESS").is_some() {
        std::fs::write(&expected, &story).unwrap();
    }
    assert_eq!(story, std::fs::read_to_string(expected).unwrap());
}

/// Whatever happens in whatever order, a path without an OSPF route or device takes no packets, and
/// where some path has one over its own device, one is usable.
#[test]
fn invariants_hold_after_any_events() {
    use proptest::prelude::*;
    let to = prop::sample::select(vec!["10.65.0.6", "10.65.0.10", "10.65.2.1"]);
    let devices = prop::sample::select(vec![vec![M1], vec![M2], vec![M1, M2], vec![77]]);
    let event = prop_oneof![
        (to.clone(), prop::sample::select(vec![BIRD, 4]), devices)
            .prop_map(|(to, protocol, devices)| route(to, protocol, &devices)),
        to.prop_map(no_route),
        (M1..=M2, any::<bool>()).prop_map(|(ifindex, up)| link(ifindex, up)),
        (M1..=M2).prop_map(|ifindex| Event::LinkGone { ifindex }),
        (0..2_u32, any::<bool>()).prop_map(|(path, up)| Event::Admin { path, up }),
        Just(Event::Address {
            ifindex: M1,
            address: ip("10.65.0.2")
        }),
        Just(Event::AddressGone {
            ifindex: M1,
            address: ip("10.65.0.2")
        }),
    ];
    proptest!(|(events in prop::collection::vec(event, 0..60))| {
        let mut bench = Bench::new();
        for event in events {
            bench.feed(event);
            let plan = bench.plan.as_ref().unwrap();
            for path in &plan.paths {
                prop_assert_eq!(path.standing == Standing::Out, path.state == PathState::Down);
                prop_assert!(path.state == PathState::Down || path.device.is_some() && path.route.is_some());
                let protocol = path.route.as_ref().map(|route| route.protocol);
                prop_assert!(path.state == PathState::Down || protocol == Some(BIRD));
            }
            let any = |f: fn(&netbond::control::plan::PathPlan) -> bool| plan.paths.iter().any(f);
            prop_assert_eq!(
                any(|path| path.standing == Standing::Usable),
                any(|path| path.state != PathState::Down)
            );
        }
    });
}

/// What OSPF says of the costs of both devices.
fn costs(costs: [Option<u32>; 2]) -> Event {
    let interface = |(device, cost): (&str, Option<u32>)| OspfInterface {
        device: device.to_owned(),
        cost,
        neighbours: Vec::new(),
    };
    let devices = ["wg-a-m1", "wg-a-m2"];
    Event::Ospf(devices.into_iter().zip(costs).map(interface).collect())
}

/// Weights, in quarters, and where they come from.
fn weighed(bench: &Bench) -> (Vec<u32>, Weighing) {
    let plan = bench.plan.as_ref().unwrap();
    let quarters = plan.paths.iter().map(|path| path.quarters).collect();
    (quarters, plan.weighing.clone())
}

#[test]
fn weights_follow_ospf_costs() {
    let config = CONFIG
        .replace(
            "[[bond]]",
            "[bird]\n[[bond]]\nmode = \"weighted\"\nweights = \"ospf\"",
        )
        .replace("device = \"wg-a-m2\"", "device = \"wg-a-m2\"\nweight = 5");
    let mut bench = Bench::with(&config);
    let unknown = |path: &str| Weighing::NoCost(path.to_owned());
    assert_eq!(weighed(&bench), (vec![4, 20], unknown("via-m1")));
    bench.feed(costs([Some(10), None]));
    assert_eq!(weighed(&bench), (vec![4, 20], unknown("via-m2")));
    bench.feed(costs([Some(10), Some(30)]));
    assert_eq!(weighed(&bench), (vec![12, 4], Weighing::Ospf));
    bench.feed(costs([Some(20), Some(30)]));
    assert_eq!(weighed(&bench), (vec![12, 8], Weighing::Ospf));
    bench.feed(costs([Some(65_521), Some(65_519)]));
    let (quarters, weighing) = weighed(&bench);
    assert_eq!(weighing, Weighing::Ospf);
    assert!(
        quarters[0].abs_diff(quarters[1]) < quarters[0] / 1000,
        "{quarters:?}"
    );
    // A path that takes no packets need not have a cost.
    bench.feed(link(M2, false));
    bench.feed(costs([Some(10), None]));
    assert_eq!(weighed(&bench).1, Weighing::Ospf);
    bench.feed(costs([None, None]));
    assert_eq!(weighed(&bench).1, unknown("via-m1"));
}

#[test]
fn a_change_of_an_ospf_cost_is_told() {
    let mut bench = Bench::new();
    bench.feed(costs([Some(10), Some(10)]));
    let (_, notes) = bench.hear(costs([Some(25), Some(10)]));
    let texts: Vec<&str> = notes.iter().map(|note| note.text.as_str()).collect();
    assert_eq!(texts, ["OSPF cost of wg-a-m1 is 25, was 10"]);
}

#[test]
fn without_weights_all_paths_have_the_same() {
    let mut bench = Bench::new();
    bench.feed(costs([Some(10), Some(30)]));
    assert_eq!(weighed(&bench), (vec![4, 4], Weighing::Static));
}

proptest! {
    /// Whatever the costs, each path has a weight, and a cheaper one no less than a dearer:
    /// costs that differ by less than a weight's steps give the same.
    #[test]
    fn any_costs_give_weights(a in 1..=65_535_u32, b in 1..=65_535_u32) {
        let config = CONFIG.replace(
            "[[bond]]",
            "[bird]\n[[bond]]\nmode = \"weighted\"\nweights = \"ospf\"",
        );
        let mut bench = Bench::with(&config);
        bench.feed(costs([Some(a), Some(b)]));
        let (quarters, _) = weighed(&bench);
        prop_assert!(quarters.iter().all(|&quarters| quarters > 0));
        let order = quarters[1].cmp(&quarters[0]);
        prop_assert!(order == a.cmp(&b) || order.is_eq() && a.abs_diff(b) * 100 < a.max(b));
        let ratio = f64::from(quarters[0]) / f64::from(quarters[1]);
        let due = f64::from(b) / f64::from(a);
        prop_assert!((ratio / due - 1.0).abs() < 0.01, "{} for {}", ratio, due);
    }
}
