//! Probes between two ends of a path, with somebody between them who drops, repeats and forges.

#![no_main]

use std::collections::BTreeSet;

use arbitrary::Arbitrary;
use bytemuck::Zeroable as _;
use libfuzzer_sys::fuzz_target;
use netbond_common::{
    abi::{Live, PROBES_IN_FLIGHT},
    fate::Fate,
    probe::{
        Account, Accounts, Asker, Kind, Probe, RATE_LIMIT, STRANGER_LIMIT, accept, answer, request,
        sample,
    },
    siphash::Key,
};

const PATH: u32 = 5;
const ASKER: Key = [1, 2];
const PEER: Key = [3, 4];

#[derive(Arbitrary, Debug)]
enum Step {
    /// Time passes, ns.
    Wait(u32),
    Ask,
    /// A request reaches the peer; which of all that were sent.
    Answer(u8),
    /// An answer reaches the asker; which of all that were given.
    Accept(u8),
    /// The asker gets a request of its own back.
    Reflect(u8),
    /// The asker or the peer gets these bytes.
    Forge(bool, [u8; 32]),
    /// The asker gets an answer with a byte changed.
    Change(u8, u8, u8),
}

fuzz_target!(|steps: Vec<Step>| {
    let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
    let (mut requests, mut answers): (Vec<Probe>, Vec<Probe>) = (Vec::new(), Vec::new());
    let mut accepted = BTreeSet::new();
    let mut forged = false;
    let mut now = 1_000_000_000_u64;
    for step in steps {
        match step {
            Step::Wait(ns) => now += u64::from(ns),
            Step::Ask => {
                let probe = request(&mut asker, PATH, now, ASKER);
                assert_eq!(probe.kind(), Some(Kind::Request));
                requests.push(probe);
            }
            Step::Answer(which) => {
                let Some(asked) = requests.get(usize::from(which)) else {
                    continue;
                };
                if let Ok((given, who)) = answer(&mut peer, PATH, asked, now, PEER) {
                    assert_eq!(given.kind(), Some(Kind::Answer));
                    assert_eq!(given.sequence(), asked.sequence());
                    if who == Asker::Peer && !forged {
                        assert!(!accepted.is_empty(), "a nonce came back that nobody had");
                        assert!(peer.proof_ns != 0);
                    }
                    answers.push(given);
                }
            }
            Step::Accept(which) => {
                let Some(given) = answers.get(usize::from(which)) else {
                    continue;
                };
                if accept(&mut asker, given, now).is_ok() {
                    let first = accepted.insert(given.sequence());
                    assert!(first, "an answer counted twice");
                    assert_eq!(asker.proof_ns, now);
                    let behind = asker.sequence.wrapping_sub(given.sequence());
                    assert!((behind as usize) < PROBES_IN_FLIGHT);
                }
            }
            Step::Reflect(which) => {
                let Some(own) = requests.get(usize::from(which)) else {
                    continue;
                };
                let before = asker.proof_ns;
                let outcome = answer(&mut asker, PATH, own, now, ASKER);
                let behind = asker.sequence.wrapping_sub(own.sequence()) as usize;
                if behind < PROBES_IN_FLIGHT {
                    assert_eq!(outcome, Err(Fate::RxProbeReflected));
                    assert_eq!(asker.proof_ns, before);
                }
            }
            Step::Forge(to_peer, bytes) => {
                forged = true;
                let probe: Probe = bytemuck::pod_read_unaligned(&bytes);
                let (live, key) = if to_peer {
                    (&mut peer, PEER)
                } else {
                    (&mut asker, ASKER)
                };
                let _ = match probe.kind() {
                    Some(Kind::Request) => answer(live, PATH, &probe, now, key).err(),
                    Some(Kind::Answer) => {
                        let round_trip = accept(live, &probe, now);
                        if round_trip.is_ok() {
                            accepted.insert(probe.sequence());
                        }
                        round_trip.err()
                    }
                    None => None,
                };
                let accounts = Accounts {
                    asker: Account::new(bytes[0], now, now),
                    peer: Account::new(bytes[1], now, now),
                    clock: now.to_be_bytes(),
                };
                let told = sample(PATH, &probe, &accounts, now, 1, 100);
                assert_eq!((told.peer_ns, told.sent_bytes), (now, now));
            }
            Step::Change(which, at, bit) => {
                let Some(given) = answers.get(usize::from(which)) else {
                    continue;
                };
                let mut bytes: [u8; 32] = bytemuck::cast(*given);
                // Of what is compared: the number and the cookie.
                bytes[4 + usize::from(at) % 12] ^= 1 << (bit % 8);
                let changed: Probe = bytemuck::cast(bytes);
                let before = asker;
                assert!(accept(&mut asker, &changed, now).is_err());
                assert_eq!(asker, before, "it changes nothing");
            }
        }
        for live in [&asker, &peer] {
            assert!(live.answered <= RATE_LIMIT && live.strangers <= STRANGER_LIMIT);
            assert!(live.proof_ns <= now);
        }
    }
    if !forged {
        assert_eq!(asker.answers_seen as usize, accepted.len());
    }
});
