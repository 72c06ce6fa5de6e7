//! Messages of rtnetlink, as a dump brings them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netbond::migrate::Kind;
use netbond::netlink::inventory::decode;

/// Bytes of struct nlmsghdr.
const HEADER: usize = 16;

fuzz_target!(|datagram: &[u8]| {
    let host = decode(datagram);
    let (devices, routes) = (host.devices.len(), host.routes.len());
    let all = devices + routes + host.addresses.len() + host.neighbours.len();
    assert!(
        all <= datagram.len() / HEADER,
        "no message tells of two things"
    );
    for device in &host.devices {
        assert!(!device.name.contains('\0'));
        if let Kind::Bond(bond) = &device.kind {
            assert!(bond.arp_targets.len() <= datagram.len() / 8);
        }
    }
    for route in &host.routes {
        let bits = if route.to.address.is_ipv4() { 32 } else { 128 };
        assert!(route.to.length <= bits);
        assert!(route.hops.len() <= datagram.len() / 8);
        // They are shown, and compared as networks.
        let network = route.to.network();
        assert_eq!(network, network.network());
    }
    for address in &host.addresses {
        let network = address.own.network();
        assert_eq!(network, network.network());
        assert!(!address.own.to_string().is_empty());
    }
    assert!(host.ways.is_empty());
});
