//! What a BFD peer sends: a UDP payload.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netbond::bfd::packet::{LENGTH, Packet, State};

/// Where the length is that the sender gives.
const LENGTH_AT: usize = 3;

fuzz_target!(|payload: &[u8]| {
    let Ok(packet) = Packet::decode(payload) else {
        return;
    };
    let given = usize::from(payload[LENGTH_AT]);
    assert!((LENGTH..=payload.len()).contains(&given));
    assert!(packet.multiplier != 0 && packet.my_discriminator != 0);
    assert!(
        packet.your_discriminator != 0 || matches!(packet.state, State::Down | State::AdminDown)
    );
    let mut sent = packet.encode();
    assert_eq!(Packet::decode(&sent), Ok(packet));
    // Nothing else is lost.
    sent[LENGTH_AT] = payload[LENGTH_AT];
    assert_eq!(sent, payload[..LENGTH]);
});
