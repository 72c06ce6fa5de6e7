//! Probes: how the two ends of a path prove to each other that it carries packets both ways.
//!
//! A request goes down the path; the far end's program turns it round in the kernel. The answer bears
//! the request's random cookie, which proves to the asker that its packets arrive and that the
//! peer's do. It also bears a nonce of the peer's, which the asker's next request returns: that
//! proves the same to the peer, without a request of its own.
//!
//! ```text
//! asker                                                       peer
//!   |-- request 7, cookie c7, echoes (6, n6) ------------------>|  n6 is one it gave away: proof
//!   |<------------------- answer 7, cookie c7, nonce n7 --------|  c7 is one it sent: proof
//!   |-- request 8, cookie c8, echoes (7, n7) ------------------>|
//! ```
//!
//! Each cookie and nonce counts once, so that a replayed probe proves nothing. An answer is as long
//! as its request, so that nobody gains by asking.

use bytemuck::{Pod, Zeroable};

use crate::abi::{Live, PROBES_IN_FLIGHT, Sent};

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
/// Answers that a path gives in that span.
pub const RATE_LIMIT: u32 = 64;

const MAGIC: [u8; 2] = *b"nb";
const VERSION: u8 = 1;
const REQUEST: u8 = 1;
const ANSWER: u8 = 2;

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
    /// In a request: the earlier one whose answer bore `nonce`. In an answer: requests received on
    /// this path so far.
    number: [u8; 4],
    reserved: [u8; 4],
    nonce: [u8; 8],
}
const _: () = assert!(size_of::<Probe>() == 32);

/// What a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Answer,
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
        u32::from_be_bytes(self.number)
    }
}

#[inline(always)]
const fn slot(sequence: u32) -> usize {
    sequence as usize & (PROBES_IN_FLIGHT - 1)
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
        number: live.echo_sequence.to_be_bytes(),
        reserved: [0; 4],
        nonce: live.echo.to_ne_bytes(),
    }
}

/// Answers a request received at `now` (ns), with a random nonce that is not 0; `None` where the
/// path has answered as many as it may for now. What the request proves is noted.
#[inline(always)]
pub fn answer(live: &mut Live, request: &Probe, now: u64, nonce: u64) -> Option<Probe> {
    if now.wrapping_sub(live.window_ns) >= RATE_WINDOW_NS {
        live.window_ns = now;
        live.answered = 0;
    }
    if live.answered >= RATE_LIMIT {
        return None;
    }
    live.answered += 1;
    live.requests_seen = live.requests_seen.wrapping_add(1);
    let echoed = u64::from_ne_bytes(request.nonce);
    let given = &mut live.nonces[slot(u32::from_be_bytes(request.number))];
    if echoed != 0 && *given == echoed {
        *given = 0;
        live.proof_ns = now;
    }
    live.nonces[slot(request.sequence())] = nonce;
    Some(Probe {
        kind: ANSWER,
        number: live.requests_seen.to_be_bytes(),
        nonce: nonce.to_ne_bytes(),
        ..*request
    })
}

/// Takes in an answer received at `now` (ns); returns the round trip's time in ns, or `None` where
/// its cookie is not that of a request still waiting: late, replayed, or forged.
#[inline(always)]
pub fn accept(live: &mut Live, answer: &Probe, now: u64) -> Option<u64> {
    let sequence = answer.sequence();
    let cookie = u64::from_ne_bytes(answer.cookie);
    let sent = &mut live.sent[slot(sequence)];
    if cookie == 0 || sent.cookie != cookie {
        return None;
    }
    sent.cookie = 0;
    let round_trip = now.wrapping_sub(sent.at_ns);
    live.proof_ns = now;
    live.answers_seen = live.answers_seen.wrapping_add(1);
    live.echo_sequence = sequence;
    live.echo = u64::from_ne_bytes(answer.nonce);
    Some(round_trip)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_asker_proves_the_path_to_both() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        for turn in 1..=40_u64 {
            let now = turn * 1000;
            let request = request(&mut asker, now, 100 + turn);
            assert_eq!(request.kind(), Some(Kind::Request));
            let answer = answer(&mut peer, &request, now + 10, 200 + turn).unwrap();
            assert_eq!(answer.kind(), Some(Kind::Answer));
            assert_eq!(u64::from(answer.requests_seen()), turn);
            assert_eq!(accept(&mut asker, &answer, now + 25), Some(25));
            assert_eq!(asker.proof_ns, now + 25);
            // The peer's first proof comes with the second request.
            assert_eq!(peer.proof_ns, if turn == 1 { 0 } else { now + 10 });
        }
    }

    /// Requests that arrive while no answer does prove nothing, however often they come.
    #[test]
    fn one_way_is_no_proof() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        let first = request(&mut asker, 1, 1);
        let lost = answer(&mut peer, &first, 2, 2).unwrap();
        for now in 3..20 {
            let request = request(&mut asker, now, now);
            assert!(answer(&mut peer, &request, now, now).is_some());
        }
        assert_eq!((asker.proof_ns, peer.proof_ns), (0, 0));
        // Once one does, and its nonce returns, replaying that request proves nothing again.
        assert!(accept(&mut asker, &lost, 30).is_some());
        let echo = request(&mut asker, 31, 31);
        answer(&mut peer, &echo, 32, 32).unwrap();
        assert_eq!(peer.proof_ns, 32);
        answer(&mut peer, &echo, 40, 40).unwrap();
        assert_eq!(peer.proof_ns, 32);
    }

    #[test]
    fn answers_count_once_and_only_with_the_cookie() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        let sent = request(&mut asker, 10, 77);
        let good = answer(&mut peer, &sent, 11, 5).unwrap();
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
            assert_eq!(accept(&mut asker, &wrong, 12), None);
            assert_eq!(asker.proof_ns, 0);
        }
        assert_eq!(accept(&mut asker, &good, 13), Some(3));
        assert_eq!(accept(&mut asker, &good, 14), None, "replayed");
        assert_eq!(
            accept(&mut asker, &zero, 15),
            None,
            "a cookie that was used up is none"
        );
        assert_eq!(asker.proof_ns, 13);
    }

    #[test]
    fn answers_are_bounded() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        let mut answered = 0;
        for now in 0..1000_u64 {
            let request = request(&mut asker, now, 1 + now);
            let at = RATE_WINDOW_NS + now * RATE_WINDOW_NS / 500;
            answered += u32::from(answer(&mut peer, &request, at, 1).is_some());
        }
        assert_eq!(answered, 2 * RATE_LIMIT);
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
                prop_assert_eq!(accept(&mut live, &probe, now), None);
                answer(&mut live, &probe, now, u64::MAX - now);
                prop_assert_eq!(live.proof_ns, 0);
            }
        }
    }
}
