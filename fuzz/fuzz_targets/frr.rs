//! What vtysh prints: two JSON documents, of ospfd or of ospf6d.

#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use netbond::ospf::frr;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for interfaces in [frr::parse(&text), frr::six::parse(&text)]
        .into_iter()
        .flatten()
    {
        let devices: BTreeSet<&str> = interfaces.iter().map(|one| one.device.as_str()).collect();
        assert_eq!(devices.len(), interfaces.len(), "each device once");
        let states = interfaces.iter().flat_map(|one| &one.neighbours);
        assert!(
            states
                .clone()
                .all(|neighbour| !neighbour.state.contains('/'))
        );
        // Each is named at least by an address and by the three fields of its own.
        assert!(states.count() <= text.len() / 40);
    }
});
