//! What `netbond check` reads of the host: WireGuard's settings, from the kernel or from a program that does
//! without it, policy rules and tc filters. The first byte says which.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netbond::netlink;
use netbond::wireguard::{self, Device};

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else {
        return;
    };
    match which % 4 {
        0 => {
            if let Ok(device) = wireguard::parse(&String::from_utf8_lossy(data)) {
                look_at(&device);
            }
        }
        1 => {
            // A long list comes in several messages.
            let (first, second) = data.split_at(data.len() / 2);
            let mut device = Device::default();
            netlink::wireguard::decode(first, &mut device);
            netlink::wireguard::decode(second, &mut device);
            look_at(&device);
        }
        2 => {
            if let Some(rule) = netlink::rule::decode(data) {
                assert_eq!(rule.family, data[0]);
            }
        }
        _ => {
            if let Some(filter) = netlink::filter::decode(data) {
                assert!(!filter.kind.contains('\0'));
            }
        }
    }
});

/// What is asked of a device's settings.
fn look_at(device: &Device) {
    for peer in &device.peers {
        assert_eq!(peer.key().len(), 44, "32 bytes in base 64");
        for &prefix in &peer.allowed {
            let bits = if prefix.address.is_ipv4() { 32 } else { 128 };
            assert!(prefix.length <= bits);
            assert!(device.admits(prefix), "what a peer is allowed is admitted");
            assert!(device.peer_for(prefix.address).is_some());
        }
    }
}
