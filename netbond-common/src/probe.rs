//! Probes: how the two ends of a path prove to each other that it carries packets both ways.
//!
//! A request goes down the path; the far end's program turns it round in the kernel. The answer bears
//! the request's random cookie, which proves to the asker that its packets arrive and that the
//! peer's do. It also bears a nonce of the peer's, which the asker's next request returns: that
//! proves the same to the peer, without a request of its own.
//!
//! ```text
//! asker                                                       peer
//!   |-- request 7, cookie c7, returns n6 ---------------------->|  n6 is one it gave away: proof
//!   |<------------------- answer 7, cookie c7, nonce n7 --------|  c7 is one it sent: proof
//!   |-- request 8, cookie c8, returns n7 ---------------------->|
//! ```
//!
//! Each cookie and nonce counts once, so that a replayed probe proves nothing. An answer is as long
//! as its request, so that nobody gains by asking.
//!
//! Whoever can send to a path can ask, and cannot return a nonce that went to somebody else. So
//! requests that return one have a budget, a table of nonces and a count of their own, which no flood
//! of others can use up; the others are answered, few at a time, as a peer that has just started is
//! one of them.

use bytemuck::{Pod, Zeroable};

use crate::{
    abi::{Live, PROBES_IN_FLIGHT, STRANGERS_IN_FLIGHT, Sent},
    fate::Fate,
};

/// GRE payload type of a probe, big-endian: the first of the two EtherTypes for local experiments
/// (IEEE 802, 9.2.3).
pub const PROTOCOL: [u8; 2] = 0x88b5_u16.to_be_bytes();

/// Bytes of a probe; longer ones are filled up with zeros.
pub const LEN: usize = size_of::<Probe>();

/// How the controller asks for a probe: a frame into the bond device, of IPv4's EtherType (the kernel
/// makes room in no other) and IP version 15, with the path's slot in the low half of that byte. The
/// program overwrites it with the probe.
pub const TRIGGER: u8 = 0xf0;

/// TOS of a probe: class selector 6, network control (RFC 4594, 3.1).
pub const TOS: u8 = 48 << 2;
/// TTL of a probe.
pub const TTL: u8 = 64;

/// Span in which the answers of a path are counted, ns.
pub const RATE_WINDOW_NS: u64 = 100_000_000;
/// Answers that a path gives in that span to requests that return a nonce.
pub const RATE_LIMIT: u32 = 64;
/// Answers that it gives to others. Half as many as nonces are kept for them: each lives for two
/// spans at least.
pub const STRANGER_LIMIT: u32 = STRANGERS_IN_FLIGHT as u32 / 2;

const MAGIC: [u8; 2] = *b"nb";
const VERSION: u8 = 2;
const REQUEST: u8 = 1;
const ANSWER: u8 = 2;

/// In the number of a nonce: it was given to a request that returned none.
const STRANGER: u32 = 1 << 31;
/// Requests that [`Live::seen`] remembers.
const REMEMBERED: u32 = u64::BITS;

/// A probe on the wire. Integers are big-endian; cookies and nonces are opaque.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Probe {
    magic: [u8; 2],
    version: u8,
    kind: u8,
    /// Of the request.
    sequence: [u8; 4],
    /// Of the request.
    cookie: [u8; 8],
    /// In an answer: requests of the asker received on this path so far. In a request: 0.
    count: [u8; 4],
    /// The number of `nonce` with whoever gave it.
    grant: [u8; 4],
    /// In an answer: a new one. In a request: that of the last answer, 0 where there was none.
    nonce: [u8; 8],
}
const _: () = assert!(size_of::<Probe>() == 32);

/// What a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Answer,
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Whoever got our earlier answers.
    Peer,
    /// A peer that has just started, or somebody else.
    Stranger,
}

impl Probe {
    /// What it is, `None` where it is no probe of this version.
    #[inline(always)]
    #[must_use]
    pub const fn kind(&self) -> Option<Kind> {
        if self.magic[0] != MAGIC[0] || self.magic[1] != MAGIC[1] || self.version != VERSION {
            return None;
        }
        match self.kind {
            REQUEST => Some(Kind::Request),
            ANSWER => Some(Kind::Answer),
            _ => None,
        }
    }

    /// Of the request.
    #[inline(always)]
    #[must_use]
    pub const fn sequence(&self) -> u32 {
        u32::from_be_bytes(self.sequence)
    }

    /// In an answer: requests that the peer received on this path so far.
    #[inline(always)]
    #[must_use]
    pub const fn requests_seen(&self) -> u32 {
        u32::from_be_bytes(self.count)
    }
}

#[inline(always)]
const fn slot(number: u32) -> usize {
    number as usize & (PROBES_IN_FLIGHT - 1)
}

#[inline(always)]
const fn stranger_slot(number: u32) -> usize {
    number as usize & (STRANGERS_IN_FLIGHT - 1)
}

/// The next request of a path, sent at `now` (ns) with a random cookie that is not 0.
#[inline(always)]
pub fn request(live: &mut Live, now: u64, cookie: u64) -> Probe {
    let sequence = live.sequence.wrapping_add(1);
    live.sequence = sequence;
    live.sent[slot(sequence)] = Sent { cookie, at_ns: now };
    Probe {
        magic: MAGIC,
        version: VERSION,
        kind: REQUEST,
        sequence: sequence.to_be_bytes(),
        cookie: cookie.to_ne_bytes(),
        count: [0; 4],
        grant: live.echo_grant.to_be_bytes(),
        nonce: live.echo.to_ne_bytes(),
    }
}

/// Answers a request received at `now` (ns), with a random nonce that is not 0. What the request
/// proves is noted.
///
/// # Errors
///
/// Why it gets no answer: it is one of our own, was here before, or exceeds what a path answers.
#[inline(always)]
pub fn answer(
    live: &mut Live,
    request: &Probe,
    now: u64,
    nonce: u64,
) -> Result<(Probe, Asker), Fate> {
    let sequence = request.sequence();
    let own = live.sent[slot(sequence)].cookie;
    if own != 0 && own == u64::from_ne_bytes(request.cookie) {
        return Err(Fate::RxProbeReflected);
    }
    let asker = recognise(live, request, now)?;
    if now.wrapping_sub(live.window_ns) >= RATE_WINDOW_NS {
        live.window_ns = now;
        live.answered = 0;
        live.strangers = 0;
    }
    let grant = match asker {
        Asker::Peer => {
            live.requests_seen = live.requests_seen.wrapping_add(1);
            if live.answered >= RATE_LIMIT {
                return Err(Fate::RxProbeRate);
            }
            live.answered += 1;
            let grant = live.grants.wrapping_add(1) & !STRANGER;
            live.grants = grant;
            live.nonces[slot(grant)] = nonce;
            grant
        }
        Asker::Stranger => {
            if live.strangers >= STRANGER_LIMIT {
                return Err(Fate::RxProbeRate);
            }
            live.strangers += 1;
            let grant = live.stranger_grants.wrapping_add(1);
            live.stranger_grants = grant;
            live.stranger_nonces[stranger_slot(grant)] = nonce;
            grant | STRANGER
        }
    };
    let answer = Probe {
        kind: ANSWER,
        count: live.requests_seen.to_be_bytes(),
        grant: grant.to_be_bytes(),
        nonce: nonce.to_ne_bytes(),
        ..*request
    };
    Ok((answer, asker))
}

/// Whose request it is, by the nonce that it returns; notes the proof where it does so for the first
/// time.
#[inline(always)]
fn recognise(live: &mut Live, request: &Probe, now: u64) -> Result<Asker, Fate> {
    let nonce = u64::from_ne_bytes(request.nonce);
    if nonce == 0 {
        return Ok(Asker::Stranger);
    }
    let sequence = request.sequence();
    let grant = u32::from_be_bytes(request.grant);
    let given = if grant & STRANGER == 0 {
        &mut live.nonces[slot(grant)]
    } else {
        &mut live.stranger_nonces[stranger_slot(grant)]
    };
    if *given == nonce {
        *given = 0;
        if grant & STRANGER != 0 {
            // A peer that started anew counts its requests anew.
            (live.newest, live.seen) = (sequence, 0);
        }
        note_request(live, sequence)?;
        live.returned = nonce;
        live.proof_ns = now;
        return Ok(Asker::Peer);
    }
    if live.returned != nonce {
        return Ok(Asker::Stranger);
    }
    note_request(live, sequence)?;
    Ok(Asker::Peer)
}

/// Notes a request, unless it was here before or is too old to tell.
#[inline(always)]
fn note_request(live: &mut Live, sequence: u32) -> Result<(), Fate> {
    let ahead = sequence.wrapping_sub(live.newest);
    if ahead != 0 && ahead < 1 << 31 {
        live.seen = if ahead < REMEMBERED {
            live.seen << ahead
        } else {
            0
        };
        live.newest = sequence;
    }
    let behind = live.newest.wrapping_sub(sequence);
    if behind >= REMEMBERED {
        return Err(Fate::RxProbeReplayed);
    }
    let bit = 1 << behind;
    if live.seen & bit != 0 {
        return Err(Fate::RxProbeReplayed);
    }
    live.seen |= bit;
    Ok(())
}

/// Takes in an answer received at `now` (ns); returns the round trip's time in ns.
///
/// # Errors
///
/// Why it proves nothing: it was here before, or its cookie is not that of a request still waiting.
#[inline(always)]
pub fn accept(live: &mut Live, answer: &Probe, now: u64) -> Result<u64, Fate> {
    let cookie = u64::from_ne_bytes(answer.cookie);
    let sent = &mut live.sent[slot(answer.sequence())];
    if cookie == 0 || sent.cookie != cookie {
        return Err(Fate::RxProbeCookie);
    }
    if sent.at_ns == 0 {
        return Err(Fate::RxProbeReplayed);
    }
    let round_trip = now.wrapping_sub(sent.at_ns);
    sent.at_ns = 0;
    live.proof_ns = now;
    live.answers_seen = live.answers_seen.wrapping_add(1);
    live.echo_grant = u32::from_be_bytes(answer.grant);
    live.echo = u64::from_ne_bytes(answer.nonce);
    Ok(round_trip)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Asks once, and lets the answer return where `back` says so.
    fn turn(asker: &mut Live, peer: &mut Live, now: u64, back: bool) -> (Probe, Asker) {
        let request = request(asker, now, 1000 + now);
        let (answer, who) = answer(peer, &request, now + 10, 2000 + now).unwrap();
        if back {
            assert_eq!(accept(asker, &answer, now + 25), Ok(25));
        }
        (request, who)
    }

    #[test]
    fn one_asker_proves_the_path_to_both() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        for number in 1..=40_u64 {
            let now = number * 1000;
            let (_, who) = turn(&mut asker, &mut peer, now, true);
            assert_eq!(asker.proof_ns, now + 25);
            // The peer's first proof comes with the second request: the first could be anybody's.
            let (proof, expected) = match number {
                1 => (0, Asker::Stranger),
                _ => (now + 10, Asker::Peer),
            };
            assert_eq!((peer.proof_ns, who), (proof, expected));
        }
        assert_eq!(peer.requests_seen, 39);
    }

    /// Requests that arrive while no answer does prove nothing, however often they come; they are
    /// known to be the peer's all the same.
    #[test]
    fn one_way_is_no_proof() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        turn(&mut asker, &mut peer, 1000, true);
        turn(&mut asker, &mut peer, 2000, true);
        let proof = (asker.proof_ns, peer.proof_ns);
        for number in 0..200 {
            let now = 3000 + number * RATE_WINDOW_NS / 10;
            let (_, who) = turn(&mut asker, &mut peer, now, false);
            assert_eq!(who, Asker::Peer);
            // That of the last answer before the failure returns once.
            let last = if number == 0 { now + 10 } else { peer.proof_ns };
            assert_eq!((asker.proof_ns, peer.proof_ns), (proof.0, last));
        }
        assert_eq!(peer.proof_ns, 3010);
        assert_eq!(peer.requests_seen, 201);
    }

    #[test]
    fn a_request_counts_once() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        turn(&mut asker, &mut peer, 1000, true);
        let (old, _) = turn(&mut asker, &mut peer, 2000, true);
        let proof = peer.proof_ns;
        assert_eq!(answer(&mut peer, &old, 2500, 9), Err(Fate::RxProbeReplayed));
        for now in 3..200 {
            turn(&mut asker, &mut peer, now * RATE_WINDOW_NS, true);
        }
        let proofs = (proof, peer.proof_ns);
        let (_, who) = answer(&mut peer, &old, u64::MAX / 2, 9).unwrap();
        assert_eq!(who, Asker::Stranger, "its nonce is long gone");
        assert_eq!(peer.proof_ns, proofs.1);
        assert!(proofs.0 < proofs.1);
    }

    #[test]
    fn a_peer_that_starts_anew_is_known_again_at_once() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        for number in 1..100 {
            turn(&mut asker, &mut peer, number * RATE_WINDOW_NS, true);
        }
        asker = Live::zeroed();
        let at = 100 * RATE_WINDOW_NS;
        assert_eq!(turn(&mut asker, &mut peer, at, true).1, Asker::Stranger);
        for later in 1..100 {
            let (_, who) = turn(&mut asker, &mut peer, at + later * RATE_WINDOW_NS, true);
            assert_eq!(who, Asker::Peer);
        }
    }

    #[test]
    fn reordered_requests_all_count() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        turn(&mut asker, &mut peer, 1000, true);
        turn(&mut asker, &mut peer, 2000, true);
        let early = request(&mut asker, 3000, 3);
        let late = request(&mut asker, 3001, 4);
        for request in [late, early] {
            let (_, who) = answer(&mut peer, &request, 4000, 5).unwrap();
            assert_eq!(who, Asker::Peer);
        }
        assert_eq!(peer.requests_seen, 3);
    }

    #[test]
    fn answers_count_once_and_only_with_the_cookie() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        let sent = request(&mut asker, 10, 77);
        let (good, _) = answer(&mut peer, &sent, 11, 5).unwrap();
        let forged = Probe {
            cookie: 78_u64.to_ne_bytes(),
            ..good
        };
        let zero = Probe {
            cookie: [0; 8],
            ..good
        };
        let elsewhere = Probe {
            sequence: 2_u32.to_be_bytes(),
            ..good
        };
        for wrong in [forged, zero, elsewhere] {
            assert_eq!(accept(&mut asker, &wrong, 12), Err(Fate::RxProbeCookie));
            assert_eq!(asker.proof_ns, 0);
        }
        assert_eq!(accept(&mut asker, &good, 13), Ok(3));
        assert_eq!(accept(&mut asker, &good, 14), Err(Fate::RxProbeReplayed));
        assert_eq!(asker.proof_ns, 13);
    }

    #[test]
    fn our_own_request_is_not_answered() {
        let mut live = Live::zeroed();
        let own = request(&mut live, 10, 77);
        let before = live;
        assert_eq!(answer(&mut live, &own, 11, 5), Err(Fate::RxProbeReflected));
        assert_eq!(live, before);
    }

    #[test]
    fn answers_are_bounded() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        turn(&mut asker, &mut peer, 1, true);
        let mut answered = 0;
        for now in 0..1000_u64 {
            let request = request(&mut asker, now, 1 + now);
            let at = RATE_WINDOW_NS + now * RATE_WINDOW_NS / 500;
            answered += u32::from(answer(&mut peer, &request, at, 1).is_ok());
        }
        assert_eq!(answered, 2 * RATE_LIMIT);
    }

    /// A flood of requests from others takes nothing from the peer.
    #[test]
    fn strangers_have_a_budget_of_their_own() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        let mut stranger = Live::zeroed();
        let step = RATE_WINDOW_NS / 1000;
        turn(&mut asker, &mut peer, 1, true);
        let (mut answered, mut known) = (0, 0);
        for number in 1..5000_u64 {
            let now = number * step;
            let request = request(&mut stranger, now, number);
            answered += u32::from(answer(&mut peer, &request, now, 6).is_ok());
            if number % 300 == 0 {
                let (_, who) = turn(&mut asker, &mut peer, now, true);
                known += u32::from(who == Asker::Peer);
                assert_eq!(peer.proof_ns, now + 10);
            }
        }
        // The peer itself was a stranger once.
        assert_eq!((answered + 1, known), (5 * STRANGER_LIMIT, 16));
        assert_eq!(peer.requests_seen, 16);
    }

    proptest! {
        /// No bytes make an end believe in a path.
        #[test]
        fn strangers_prove_nothing(bytes in prop::collection::vec(any::<[u8; 32]>(), 0..50)) {
            let mut live = Live::zeroed();
            for cookie in 1..40 {
                request(&mut live, cookie, cookie << 32 | 0xabcd_ef01);
            }
            for (now, bytes) in bytes.into_iter().enumerate() {
                let mut probe: Probe = bytemuck::cast(bytes);
                probe.magic = MAGIC;
                probe.version = VERSION;
                let now = now as u64 + 1000;
                prop_assert_eq!(accept(&mut live, &probe, now), Err(Fate::RxProbeCookie));
                let _ = answer(&mut live, &probe, now, u64::MAX - now);
                prop_assert_eq!((live.proof_ns, live.requests_seen), (0, 0));
            }
        }

        /// Whatever is lost, doubled or reordered, each request counts once at the most, and an end
        /// has a proof only where both ways worked.
        #[test]
        fn each_request_counts_once(
            turns in prop::collection::vec((any::<bool>(), any::<bool>(), 1..4_usize), 1..200),
        ) {
            let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
            let mut arrived = 0;
            for (number, (there, back, copies)) in turns.into_iter().enumerate() {
                let now = (number as u64 + 1) * RATE_WINDOW_NS;
                let request = request(&mut asker, now, now);
                if !there {
                    continue;
                }
                arrived += 1;
                for copy in 0..copies {
                    let answered = answer(&mut peer, &request, now + 1, now + copy as u64);
                    if let (true, Ok((answer, _))) = (back, answered) {
                        let _ = accept(&mut asker, &answer, now + 2);
                    }
                }
                prop_assert!(peer.requests_seen <= arrived);
                prop_assert!(asker.answers_seen <= arrived);
                prop_assert!(back || asker.proof_ns < now);
            }
        }
    }
}
