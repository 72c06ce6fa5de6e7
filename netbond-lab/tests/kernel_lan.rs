//! Hosts on LANs behind routers whose drivers send packets with numbers, which the other router has leave in order.

mod common;

use std::time::Duration;

use common::lan::{HOSTS, NATIVE, in_all, up_native, wait_send, with_lan};
use common::{ping, reconfigure, status, wait_proven};
use netbond_lab::traffic;

/// What a driver encapsulates in place of tc has the numbers that the other end goes by: it counts each packet once, and
/// none as lost or as a copy.
#[test]
#[ignore = "needs fq: cargo xtask test vm"]
fn drivers_number_what_the_other_end_puts_in_order() {
    let lab = up_native("lan-order");
    let [a, b, near, far] = ["A", "B", "M1", "M2"].map(|name| lab.router(name));
    for router in [a, b] {
        reconfigure(
            router,
            &with_lan(router, "mode = \"adaptive\"", NATIVE, NATIVE),
        );
    }
    for router in [a, b] {
        wait_send(router, "native");
        wait_proven(router);
    }
    for address in HOSTS[1] {
        ping(near, address);
    }
    let numbered = || {
        let numbered = status(b)["bonds"][0]["numbered"].clone();
        ["received", "lost", "copies"].map(|field| numbered[field].as_u64().unwrap())
    };
    let (before, sent) = (numbered(), in_all(a)[0]);
    let pace = Duration::from_millis(2);
    for address in HOSTS[1] {
        let counts = traffic::ping(near, address, 200, pace).unwrap();
        assert_eq!((counts.sent, counts.lost), (200, 0), "{address}");
    }
    let sent = in_all(a)[0] - sent;
    assert!(sent >= 390, "{sent} sent past the kernel");
    let after = numbered();
    assert!(after[0] >= before[0] + 390, "{before:?} {after:?}");
    assert_eq!(after[1..], before[1..], "lost and copies");
    for (from, to, address) in [(near, far, HOSTS[1][0]), (far, near, HOSTS[0][1])] {
        let tcp = traffic::tcp_megabyte(from, to, address, 1).unwrap();
        assert!(tcp.mbit_per_s > 0.0, "{tcp:?}");
    }
    assert_eq!(numbered()[2], before[2], "copies");
}
