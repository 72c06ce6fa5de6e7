//! What BIRD answers: one reply, or two with a NUL between them.

#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use netbond::ospf::bird::{parse_instance, parse_protocols};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (first, second) = text.split_once('\0').unwrap_or((&text, &text));
    if let Ok(names) = parse_protocols(first) {
        assert!(names.len() <= first.lines().count());
        // They are put between quotes in the next command.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
        assert!(
            names
                .iter()
                .all(|name| !name.is_empty() && name.bytes().all(plain))
        );
    }
    if let Ok(interfaces) = parse_instance(first, second) {
        let devices: BTreeSet<&str> = interfaces.iter().map(|one| one.device.as_str()).collect();
        assert_eq!(devices.len(), interfaces.len(), "each device once");
        assert!(
            devices
                .iter()
                .all(|device| device.split_whitespace().count() == 1)
        );
        let neighbours = interfaces.iter().map(|one| one.neighbours.len());
        assert!(neighbours.sum::<usize>() <= second.lines().count());
    }
});
