//! Proposals on the recorded network (tests/fixtures/ospf/README.md), and the files made of them.

use super::fixtures::{self, A, B, Source, U, V};
use super::*;
use crate::config::{Config, DetourPolicy};

fn view(source: Source) -> View {
    view_with(source, Vec::new())
}

/// With bonds that are there already.
fn view_with(source: Source, bonds: Vec<OwnBond>) -> View {
    let host = Host {
        bonds,
        ..fixtures::host()
    };
    let daemon = Daemon::Bird {
        socket: "/run/bird/bird.ctl".into(),
    };
    let mut views = View::all(&daemon, vec![fixtures::instance(source)], &host);
    views.remove(0)
}

fn propose(view: &View, peer: Ipv4Addr) -> Proposal {
    let Some(Found::Router(peer)) = view.find(peer.into()) else {
        panic!("no router {peer}")
    };
    let kernel = fixtures::kernel(&view.network, peer);
    view.propose(peer, &fixtures::own_addresses(), &kernel)
}

fn no_addresses<'a>() -> Request<'a> {
    Request {
        name: "nb0",
        addresses: &[],
    }
}

/// That of a router's loopback device.
fn own_address(router: Ipv4Addr, v6: bool) -> IpAddr {
    let [.., third, fourth] = router.octets();
    if v6 {
        let last = u16::from(third << 4 | fourth);
        IpAddr::from([0xfd65, 0xffff, 0, 0, 0, 0, 0, last])
    } else {
        router.into()
    }
}

/// Its last byte.
fn last_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    }
}

/// What each path's routers answer when packets do what the database says; the peer has the higher address.
fn answers(proposal: &Proposal) -> Vec<(Question, Answer)> {
    let answer = |question: Question| {
        let path = |path: &&ProposedPath| path.device == question.device;
        let path = proposal.paths.iter().find(path).unwrap();
        let near = path
            .remote_or
            .is_some_and(|other| question.remote < other.max(path.remote));
        let reply = |(number, hop): (usize, &HopName)| {
            let arrived = number + 1 >= path.hops.len() - usize::from(near);
            let from = if arrived {
                question.remote
            } else {
                own_address(hop.router, question.remote.is_ipv6())
            };
            Some(Reply { from, arrived })
        };
        let replies = path.hops.iter().enumerate().map(reply).collect();
        (question, Answer(replies))
    };
    View::questions(proposal).into_iter().map(answer).collect()
}

#[test]
fn peers_are_listed_and_found() {
    for source in [Source::Bird, Source::Frr] {
        let view = view(source);
        let routers = view.routers();
        let shown: Vec<_> = routers.iter().map(|r| (r.id, r.paths, r.cost)).collect();
        // W's three links lead to B by the segment: the shortest way to B is by U and V all the same.
        assert_eq!(
            shown,
            [
                (U, 3, 10),
                (V, 3, 20),
                ([10, 65, 1, 3].into(), 3, 30),
                (B, 3, 30)
            ]
        );
        assert_eq!(routers[3].addresses, [B]);
        let find = |address: [u8; 4]| view.find(address.into());
        assert_eq!(find(A.octets()), Some(Found::Own));
        assert_eq!(find([10, 65, 0, 1]), Some(Found::Own));
        assert_eq!(find([10, 66, 0, 1]), None);
        let ends = find([10, 65, 0, 10]);
        if source == Source::Bird {
            assert_eq!(ends, Some(Found::OneOf([V, B])));
        } else {
            assert!(matches!(ends, Some(Found::Router(_))));
        }
    }
}

#[test]
fn frr_tells_all_that_a_bond_needs() {
    let view = view(Source::Frr);
    let proposal = propose(&view, B);
    assert_eq!((proposal.possible, proposal.paths.len()), (3, 2));
    let paths: Vec<_> = proposal
        .paths
        .iter()
        .map(|path| {
            (
                path.name.as_str(),
                last_of(path.local),
                last_of(path.remote),
            )
        })
        .collect();
    assert_eq!(paths, [("via-10.65.1.1", 1, 18), ("via-10.65.1.2", 13, 10)]);
    let [one, other] = &proposal.paths[..] else {
        panic!("two paths")
    };
    assert_eq!((one.detour, one.peer_detour), (false, true));
    assert_eq!((other.detour, other.peer_detour), (true, false));
    assert_eq!((one.cost_there, one.cost_back), (50, 50));
    // The third, by W: B's own way back is by V, and on a segment its own way counts.
    let [missing] = &proposal.missing[..] else {
        panic!("{:?}", proposal.missing)
    };
    let routers: Vec<Ipv4Addr> = missing.hops.iter().map(|hop| hop.router).collect();
    assert_eq!(routers, [[10, 65, 1, 3].into(), B]);
    let [reason] = &missing.reasons[..] else {
        panic!("{:?}", missing.reasons)
    };
    assert!(
        reason.starts_with("10.65.2.1 leads what is for 10.65.")
            && reason.contains(" by 10.65.1.2: make its way by 10.65.1.3 cheaper"),
        "{reason}"
    );
}

#[test]
fn packets_tell_what_bird_does_not() {
    let mut view = view(Source::Bird);
    let mut proposal = propose(&view, B);
    for path in &proposal.paths {
        assert!(path.remote_or.is_some(), "{path:?}");
    }
    let told = answers(&proposal);
    assert_eq!(told.len(), 4);
    assert!(view.learn(&mut proposal, &told));
    let mut proposal = propose(&view, B);
    let remotes: Vec<_> = proposal
        .paths
        .iter()
        .map(|path| (last_of(path.remote), path.remote_or))
        .collect();
    assert_eq!(remotes, [(18, None), (10, None)]);
    let told = answers(&proposal);
    assert!(!view.learn(&mut proposal, &told));
    assert!(proposal.paths.iter().all(|path| path.seen == Seen::Whole));
}

/// Which of a link's two addresses is whose OSPFv3 never tells; packets do. On a /64 the far end's is anybody's guess,
/// and a reply from there is the far router's all the same.
#[test]
fn ospf_v3_and_packets_tell_all_that_a_bond_needs() {
    for source in [Source::BirdSix, Source::FrrSix] {
        let mut view = view(source);
        assert_eq!(view.family, Family::Ipv6);
        let routers = view.routers();
        let of_b = routers.iter().find(|router| router.id == B).unwrap();
        assert_eq!((of_b.paths, of_b.cost), (3, 30));
        assert_eq!(of_b.addresses, [own_address(B, true)]);
        let find = |address: &str| view.find(address.parse().unwrap());
        assert_eq!(find("fd65:0:0:4::a"), Some(Found::Own));
        assert_eq!(find("fd65:0:0:3::2"), Some(Found::OneOf([V, B])));
        let router = |id| Some(Found::Router(view.network.number(id)));
        assert_eq!(find("fd65:0:0:4::b"), router(V));

        let mut proposal = propose(&view, B);
        assert_eq!(proposal.peer_prefix, "fd65:ffff::21/128".parse().ok());
        let told = answers(&proposal);
        assert_eq!(told.len(), 4);
        assert!(view.learn(&mut proposal, &told));
        let mut proposal = propose(&view, B);
        let mut told = answers(&proposal);
        let of_v = told
            .iter_mut()
            .find(|(question, _)| question.device == "wg-a-v");
        of_v.unwrap().1.0[0] = Some(Reply {
            from: "fd65:0:0:4::b".parse().unwrap(),
            arrived: false,
        });
        assert!(!view.learn(&mut proposal, &told));
        assert!(proposal.paths.iter().all(|path| path.seen == Seen::Whole));
        let paths = proposal.paths.iter().map(|path| {
            let addresses = [path.local, path.remote].map(|address| address.to_string());
            (path.device.as_str(), addresses, path.remote_or)
        });
        let path = |device, local: &str, remote: &str| {
            (device, [local.to_owned(), remote.to_owned()], None)
        };
        assert_eq!(
            paths.collect::<Vec<_>>(),
            [
                path("wg-a-u", "fd65:0:0:1::1", "fd65:0:0:5::1"),
                path("wg-a-v", "fd65:0:0:4::a", "fd65:0:0:3::2")
            ]
        );
        let own = of_this_end(&proposal, no_addresses(), &view.daemon).unwrap();
        let bond = Config::parse(&own, "f").unwrap().bonds.remove(0);
        assert!(bond.paths.iter().all(|path| path.remote.is_ipv6()));
        let [missing] = &proposal.missing[..] else {
            panic!("{:?}", proposal.missing)
        };
        assert!(missing.reasons[0].ends_with("for this address (/128)"));
    }
}

#[test]
fn routers_that_do_not_answer_are_named() {
    let mut view = view(Source::Frr);
    let mut proposal = propose(&view, B);
    let mut told = answers(&proposal);
    told[0].1.0[0] = None;
    assert!(!view.learn(&mut proposal, &told));
    assert_eq!(proposal.paths[0].seen, Seen::Except(vec![U]));
    assert_eq!(proposal.paths[1].seen, Seen::Whole);
}

#[test]
fn answers_that_tell_nothing_prove_nothing() {
    let unknown = Ipv4Addr::new(198, 51, 100, 1);
    for (hop, from, arrived, router) in [
        (0, unknown, false, U),
        (1, unknown, false, B),
        (1, B, false, B),
    ] {
        let mut view = view(Source::Frr);
        let mut proposal = propose(&view, B);
        let mut told = answers(&proposal);
        let from = from.into();
        told[0].1.0[hop] = Some(Reply { from, arrived });
        assert!(!view.learn(&mut proposal, &told));
        assert_eq!(proposal.paths[0].seen, Seen::Except(vec![router]));
    }
}

#[test]
fn a_path_on_which_packets_arrive_too_early_is_given_up() {
    let mut view = view(Source::Frr);
    let mut proposal = propose(&view, B);
    let mut told = answers(&proposal);
    told[0].1.0[0] = Some(Reply {
        from: proposal.paths[0].remote,
        arrived: true,
    });
    assert!(view.learn(&mut proposal, &told));
    assert_eq!(propose(&view, B).refuted.len(), 1);
}

#[test]
fn no_path_leads_over_a_bond() {
    let bond = OwnBond {
        name: "wg-a-u".to_owned(),
        paths: Vec::new(),
    };
    let view = view_with(Source::Frr, vec![bond]);
    let proposal = propose(&view, B);
    assert_eq!(proposal.possible, 2);
    assert_eq!(proposal.bonds, ["wg-a-u"]);
    assert!(!proposal.paths.is_empty());
    for path in &proposal.paths {
        assert_ne!(path.device, "wg-a-u");
        // Its address is within.
        assert_ne!(path.local, IpAddr::from([10, 65, 0, 1]));
    }
}

#[test]
fn names_that_are_taken_are_not_given_again() {
    let bond = |name: &str, remote: [u8; 4]| OwnBond {
        name: name.to_owned(),
        paths: vec![("via-10.65.1.1".to_owned(), remote.into())],
    };
    let named = |bonds| {
        let view = view_with(Source::Frr, bonds);
        let Some(Found::Router(peer)) = view.find(B.into()) else {
            panic!("no router {B}")
        };
        let name = propose(&view, B).paths.remove(0).name;
        (view.bond_name(peer), name)
    };
    let first = "via-10.65.1.1".to_owned();
    assert_eq!(named(Vec::new()), ("nb0".to_owned(), first.clone()));
    // To another peer.
    let other = bond("nb0", [10, 99, 0, 1]);
    assert_eq!(
        named(vec![other.clone()]),
        ("nb1".to_owned(), "via-10.65.1.1-2".to_owned())
    );
    // To this one: it is the same bond.
    let same = bond("nb7", [10, 65, 0, 18]);
    assert_eq!(
        named(vec![other, same]),
        ("nb7".to_owned(), "via-10.65.1.1-2".to_owned())
    );
    let same = bond("nb7", [10, 65, 0, 18]);
    assert_eq!(named(vec![same]), ("nb7".to_owned(), first));
}

#[test]
fn a_path_that_packets_do_not_take_is_given_up() {
    let mut view = view(Source::Frr);
    let mut proposal = propose(&view, B);
    let mut told = answers(&proposal);
    // The path by U: V answers.
    told[0].1.0[0] = Some(Reply {
        from: V.into(),
        arrived: false,
    });
    assert!(view.learn(&mut proposal, &told));
    let proposal = propose(&view, B);
    let left = |path: &ProposedPath| path.hops.len() == 2 && path.hops[0].router == U;
    assert!(!proposal.paths.iter().any(left), "{:?}", proposal.paths);
    assert_eq!(proposal.refuted.len(), 1);
}

#[test]
fn both_ends_files_are_configurations_that_agree() {
    let view = view(Source::Frr);
    let proposal = propose(&view, B);
    let addresses = ["10.67.0.1/24".parse().unwrap()];
    let request = Request {
        name: "nb7",
        addresses: &addresses,
    };
    let own = of_this_end(&proposal, request, &view.daemon).unwrap();
    let peer = of_peer(&proposal, no_addresses()).unwrap();
    let (own_bond, peer_bond) = (
        Config::parse(&own, "f").unwrap().bonds.remove(0),
        Config::parse(&peer, "f").unwrap().bonds.remove(0),
    );
    assert_eq!(
        (own_bond.name.as_str(), own_bond.addresses.len()),
        ("nb7", 1)
    );
    assert_eq!(peer_bond.addresses, []);
    for (near, far) in own_bond.paths.iter().zip(&peer_bond.paths) {
        assert_eq!((near.local, near.remote), (far.remote, far.local));
        assert_eq!(near.name, far.name);
        assert!(near.device.is_some() && far.device.is_none());
    }
    for (bond, prefix) in [(&own_bond, "10.65.2.1/32"), (&peer_bond, "10.65.2.2/32")] {
        assert_eq!(bond.peer, Some(prefix.parse().unwrap()));
        assert_eq!(bond.detour, DetourPolicy::Use);
    }
    assert!(
        own.contains("# 10.65.2.2 > 10.65.1.1 > 10.65.2.1: cost 50, back 50.\n"),
        "{own}"
    );
    assert!(
        peer.contains("# 10.65.2.1 > 10.65.1.2 > 10.65.2.2: cost 50, back 50.\n"),
        "{peer}"
    );
    assert!(own.lines().all(|line| line.len() <= 100), "{own}");
}

#[test]
fn what_nobody_told_is_to_be_checked() {
    let view = view(Source::Bird);
    let proposal = propose(&view, B);
    let own = of_this_end(&proposal, no_addresses(), &view.daemon).unwrap();
    assert_eq!(own.matches("# CHECK remote").count(), 2, "{own}");
    let peer = of_peer(&proposal, no_addresses()).unwrap();
    assert_eq!(peer.matches("# CHECK local").count(), 2, "{peer}");
}

#[test]
fn a_name_that_netbond_does_not_take_is_refused() {
    let view = view(Source::Frr);
    let request = Request {
        name: "a name that is too long",
        addresses: &[],
    };
    assert!(of_this_end(&propose(&view, B), request, &view.daemon).is_err());
}
