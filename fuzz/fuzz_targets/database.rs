//! OSPF's database, which every router of an area writes to, from what BIRD or FRR tell of it to the paths
//! that `netbond discover` proposes. The first byte says whose answer it is.

#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use netbond::config::Prefix;
use netbond::discover::{Found, Host, KernelRoute, KernelRoutes, View};
use netbond::ospf::lsdb::Instance;
use netbond::ospf::{Daemon, bird, frr};

/// Routers looked at of one database: the time grows with their number.
const PEERS: usize = 4;

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(data);
    let parsed = match which % 3 {
        0 => bird::state::parse(&text),
        1 => frr::database::parse(&text),
        _ => frr::six::database::parse(&text),
    };
    let Ok(Some(database)) = parsed else {
        return;
    };
    let host = host();
    let daemon = Daemon::Frr { vtysh: Vec::new() };
    let instance = Instance {
        database,
        interfaces: Vec::new(),
    };
    for view in View::all(&daemon, vec![instance], &host) {
        for router in view.routers().into_iter().take(PEERS) {
            let Some(Found::Router(peer)) = view.find(router.id.into()) else {
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
    let address = |(device, address, length): (&str, &str, u8)| {
        let address = address.parse().expect("an address");
        (device.to_owned(), Prefix { address, length })
    };
    Host {
        addresses: [
            ("lo", "10.65.2.2", 32),
            ("lo", "fd65:ffff::22", 128),
            ("wg-a-u", "10.65.0.1", 30),
            ("wg-a-u", "fd65:0:0:1::1", 126),
            ("wg-a-v", "10.65.0.13", 30),
            ("wg-a-v", "fd65:0:0:4::a", 64),
            ("wg-a-w", "10.65.8.1", 32),
        ]
        .map(address)
        .into(),
        ..Host::default()
    }
}

fn own(host: &Host) -> Vec<IpAddr> {
    let addresses = host.addresses.iter();
    addresses.map(|(_, prefix)| prefix.address).collect()
}
