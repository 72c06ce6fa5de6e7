//! OSPF's database, which every router of an area writes to, from what BIRD or FRR tell of it to the paths
//! that `netbond discover` proposes. The first byte says whose answer it is.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use libfuzzer_sys::fuzz_target;
use netbond::config::Prefix;
use netbond::discover::{Found, Host, KernelRoute, KernelRoutes, View};
use netbond::ospf::{Daemon, bird, frr};

/// Routers looked at of one database: the time grows with their number.
const PEERS: usize = 4;

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(data);
    let parsed = if which % 2 == 0 {
        bird::state::parse(&text)
    } else {
        frr::database::parse(&text)
    };
    let Ok(Some(database)) = parsed else {
        return;
    };
    let host = host();
    let daemon = Daemon::Frr { vtysh: Vec::new() };
    for view in View::all(&daemon, vec![database], &host) {
        for router in view.routers().into_iter().take(PEERS) {
            let Some(Found::Router(peer)) = view.find(router.id) else {
                // Two routers may claim the same id.
                continue;
            };
            // A kernel that sends all of it over the first device.
            let route = |address| {
                (
                    address,
                    KernelRoute {
                        devices: vec!["wg-a-u".to_owned()],
                        of_ospf: true,
                    },
                )
            };
            let kernel: KernelRoutes = view.addresses_of(peer).into_iter().map(route).collect();
            let proposal = view.propose(peer, &own(&host), &kernel);
            assert!(
                proposal.paths.len() <= proposal.possible,
                "no more than are disjoint"
            );
            let mut names: Vec<&str> = proposal
                .paths
                .iter()
                .map(|path| path.name.as_str())
                .collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), proposal.paths.len(), "each name once");
            for path in &proposal.paths {
                assert!(
                    own(&host).contains(&path.local),
                    "a local address is one of ours"
                );
            }
        }
    }
});

/// Router A of the seeds.
fn host() -> Host {
    let address = |(device, octets, length): (&str, [u8; 4], u8)| {
        let address = IpAddr::V4(octets.into());
        (device.to_owned(), Prefix { address, length })
    };
    Host {
        addresses: [
            ("lo", [10, 65, 2, 2], 32),
            ("wg-a-u", [10, 65, 0, 1], 30),
            ("wg-a-v", [10, 65, 0, 13], 30),
            ("wg-a-w", [10, 65, 8, 1], 32),
        ]
        .map(address)
        .into(),
        ..Host::default()
    }
}

fn own(host: &Host) -> Vec<Ipv4Addr> {
    let addresses = host.addresses.iter().map(|(_, prefix)| prefix.address);
    let v4 = addresses.filter_map(|address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    v4.collect()
}
