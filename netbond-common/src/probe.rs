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
//! Behind what proves, each end gives an [`Account`]: the asker of what it had sent on the path, which
//! goes back as it came, the peer of what of it had come. Probes and packets share one queue, so the
//! difference is what was lost, and the peer's clock shows how the way there changes.
//!
//! ```text
//! | Probe: 32 bytes | the asker's Account | the peer's | when that was by its clock, ns | zeros |
//! ```
//!
//! A request has zeros in place of what is the peer's. Whoever answers keeps nothing of the asker's account, so that a stranger's does no harm; and its own
//! goes to the peer, whoever asked. The asker believes what comes with its cookie. These are figures
//! and never a proof: a lie in them makes a path look better or worse, not alive.
//!
//! Whoever can send to a path can ask, and cannot return a nonce that went to somebody else. So
//! requests that return one have a budget and a count of their own, which no flood of others can use
//! up. The others are answered too, as a peer that has just started is one of them, but not noted:
//! their nonces are a keyed hash of the time, and are known again by that.

use bytemuck::{Pod, Zeroable};

use crate::{
    abi::{BOND_AGREED, Live, PROBES_IN_FLIGHT, Sample, Sent},
    fate::Fate,
    siphash::{self, Key},
};

/// GRE payload type of a probe, big-endian: the first of the two EtherTypes for local experiments
/// (IEEE 802, 9.2.3).
pub const PROTOCOL: [u8; 2] = 0x88b5_u16.to_be_bytes();

/// Where the asker's account is in a probe.
pub const ASKER_AT: usize = size_of::<Probe>();
/// Where the peer's is.
pub const PEER_AT: usize = ASKER_AT + size_of::<Account>();
/// Where the peer's clock is: CLOCK_MONOTONIC, ns, big-endian.
pub const CLOCK_AT: usize = PEER_AT + size_of::<Account>();
/// Bytes of a probe; longer ones are filled up with zeros.
pub const LEN: usize = CLOCK_AT + size_of::<u64>();

/// How the controller asks for a probe: a frame into the bond device, of IPv4's EtherType (the kernel
/// makes room in no other) and IP version 15, with the path's slot in the low half of that byte, from
/// and to the Ethernet address 0, which is nobody's. The program overwrites it with the probe.
///
/// The two bytes behind that one say how long the probe is to be, big-endian; where that is no more than the
/// frame has, it is as long as the frame. So a probe may be longer than the kernel takes from a socket.
pub const TRIGGER: u8 = 0xf0;

/// TOS of a probe: class selector 6, network control (RFC 4594, 3.1).
pub const TOS: u8 = 48 << 2;
/// TTL of a probe.
pub const TTL: u8 = 64;

/// Span in which the answers of a path are counted, ns.
pub const RATE_WINDOW_NS: u64 = 100_000_000;
/// Answers that a path gives in that span to requests that return a nonce.
pub const RATE_LIMIT: u32 = 64;
/// Answers that it gives to others. In a flood of them, the more there are the sooner a peer that has
/// just started gets one.
pub const STRANGER_LIMIT: u32 = 256;
/// How old a nonce may be that was given to others, ms.
const STRANGER_AGE_MS: u32 = 4_000;

const MAGIC: [u8; 2] = *b"nb";
const VERSION: u8 = 3;
const REQUEST: u8 = 1;
const ANSWER: u8 = 2;

/// In the number of a nonce: it was given to a request that returned none, and the rest of the number
/// is the time, ms.
const STRANGER: u32 = 1 << 31;
/// Requests that [`Live::seen`] remembers.
const REMEMBERED: u32 = u64::BITS;

/// What proves, on the wire. Integers are big-endian; cookies and nonces are opaque.
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

/// What an end says of itself, on the wire. Integers are big-endian.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Account {
    /// Its `BOND_*` of [`BOND_AGREED`].
    options: [u8; 4],
    /// What it had sent (asker), or received (peer), on the path, as in [`crate::abi::PathStats`].
    packets: [u8; 8],
    bytes: [u8; 8],
}
const _: () = assert!(size_of::<Account>() == 20 && LEN == 80);

impl Account {
    /// Of an end whose bond has these `BOND_*` flags.
    #[inline(always)]
    #[must_use]
    pub const fn new(flags: u8, packets: u64, bytes: u64) -> Self {
        Self {
            options: ((flags & BOND_AGREED) as u32).to_be_bytes(),
            packets: packets.to_be_bytes(),
            bytes: bytes.to_be_bytes(),
        }
    }
}

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

/// What a number that is hard to guess is for, so that none serves for something else.
#[derive(Clone, Copy)]
enum Use {
    Cookie = 1,
    Nonce,
    StrangerNonce,
}

/// A number that is hard to guess, and not 0.
#[inline(always)]
fn secret_number(key: Key, path: u32, usage: Use, number: u32, now: u64) -> u64 {
    let what = (usage as u64) << 32 | u64::from(path);
    siphash::hash(key, [what, u64::from(number), now]) | 1
}

/// The next request of a path, sent at `now` (ns). `key` is secret.
#[inline(always)]
pub fn request(live: &mut Live, path: u32, now: u64, key: Key) -> Probe {
    let sequence = live.sequence.wrapping_add(1);
    live.sequence = sequence;
    let cookie = secret_number(key, path, Use::Cookie, sequence, now);
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

/// Answers a request received at `now` (ns) on a path. What the request proves is noted. `key` is
/// secret.
///
/// # Errors
///
/// Why it gets no answer: it is one of our own, was here before, or exceeds what a path answers.
#[inline(always)]
pub fn answer(
    live: &mut Live,
    path: u32,
    request: &Probe,
    now: u64,
    key: Key,
) -> Result<(Probe, Asker), Fate> {
    let sequence = request.sequence();
    let own = live.sent[slot(sequence)].cookie;
    if own != 0 && own == u64::from_ne_bytes(request.cookie) {
        return Err(Fate::RxProbeReflected);
    }
    let asker = recognise(live, path, request, now, key)?;
    // Another processor's clock may be ahead.
    if now.saturating_sub(live.window_ns) >= RATE_WINDOW_NS {
        live.window_ns = now;
        live.answered = 0;
        live.strangers = 0;
    }
    let (grant, nonce) = match asker {
        Asker::Peer => {
            live.requests_seen = live.requests_seen.wrapping_add(1);
            if live.answered >= RATE_LIMIT {
                return Err(Fate::RxProbeRate);
            }
            live.answered += 1;
            let grant = live.grants.wrapping_add(1) & !STRANGER;
            live.grants = grant;
            let nonce = secret_number(key, path, Use::Nonce, grant, now);
            live.nonces[slot(grant)] = nonce;
            (grant, nonce)
        }
        Asker::Stranger => {
            if live.strangers >= STRANGER_LIMIT {
                return Err(Fate::RxProbeRate);
            }
            live.strangers += 1;
            let grant = milliseconds(now) | STRANGER;
            (
                grant,
                secret_number(key, path, Use::StrangerNonce, grant, 0),
            )
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

/// A time, 31 bits of ms.
#[inline(always)]
const fn milliseconds(now: u64) -> u32 {
    (now / 1_000_000) as u32 & !STRANGER
}

/// Whose request it is, by the nonce that it returns; notes the proof where it does so for the first
/// time.
#[inline(always)]
fn recognise(
    live: &mut Live,
    path: u32,
    request: &Probe,
    now: u64,
    key: Key,
) -> Result<Asker, Fate> {
    let nonce = u64::from_ne_bytes(request.nonce);
    if nonce == 0 {
        return Ok(Asker::Stranger);
    }
    let sequence = request.sequence();
    let grant = u32::from_be_bytes(request.grant);
    if live.returned == nonce {
        note_request(live, sequence)?;
        return Ok(Asker::Peer);
    }
    if grant & STRANGER == 0 {
        let given = &mut live.nonces[slot(grant)];
        if *given != nonce {
            return Ok(Asker::Stranger);
        }
        *given = 0;
    } else {
        // Not too old, nor given before the last that counted: so each counts once.
        let age = milliseconds(now).wrapping_sub(grant) & !STRANGER;
        let behind = live.stranger_grant.wrapping_sub(grant) & !STRANGER;
        let replayed = live.stranger_grant != 0 && behind <= STRANGER_AGE_MS;
        let ours = secret_number(key, path, Use::StrangerNonce, grant, 0);
        if age > STRANGER_AGE_MS || replayed || ours != nonce {
            return Ok(Asker::Stranger);
        }
        live.stranger_grant = grant;
        // A peer that started anew counts its requests anew.
        (live.newest, live.seen) = (sequence, 0);
    }
    note_request(live, sequence)?;
    if sequence == live.newest {
        live.returned = nonce;
    }
    live.proof_ns = now;
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

/// What is behind an answer's [`Probe`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Accounts {
    pub asker: Account,
    pub peer: Account,
    /// CLOCK_MONOTONIC of the peer, ns, big-endian.
    pub clock: [u8; 8],
}
const _: () = assert!(ASKER_AT + size_of::<Accounts>() == LEN);

/// The record of an answer: it came at `now` (ns), `rtt_ns` after its request, in an outer packet of
/// `len` bytes.
#[inline(always)]
#[must_use]
pub const fn sample(
    path: u32,
    answer: &Probe,
    accounts: &Accounts,
    now: u64,
    rtt_ns: u64,
    len: u32,
) -> Sample {
    let Accounts { asker, peer, clock } = accounts;
    Sample {
        path,
        sequence: answer.sequence(),
        at_ns: now,
        rtt_ns,
        requests_seen: answer.requests_seen(),
        len,
        sent_packets: u64::from_be_bytes(asker.packets),
        sent_bytes: u64::from_be_bytes(asker.bytes),
        received_packets: u64::from_be_bytes(peer.packets),
        received_bytes: u64::from_be_bytes(peer.bytes),
        peer_ns: u64::from_be_bytes(*clock),
        peer_options: u32::from_be_bytes(peer.options),
        reserved: 0,
    }
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

    const ASKER: Key = [1, 2];
    const PEER: Key = [3, 4];
    const PATH: u32 = 5;

    fn request(live: &mut Live, now: u64) -> Probe {
        super::request(live, PATH, now, ASKER)
    }

    fn answer(live: &mut Live, request: &Probe, now: u64) -> Result<(Probe, Asker), Fate> {
        super::answer(live, PATH, request, now, PEER)
    }

    /// Asks once, and lets the answer return where `back` says so.
    fn turn(asker: &mut Live, peer: &mut Live, now: u64, back: bool) -> (Probe, Asker) {
        let request = request(asker, now);
        let (answer, who) = answer(peer, &request, now + 10).unwrap();
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
        assert_eq!(answer(&mut peer, &old, 2500), Err(Fate::RxProbeReplayed));
        for now in 3..200 {
            turn(&mut asker, &mut peer, now * RATE_WINDOW_NS, true);
        }
        let proofs = (proof, peer.proof_ns);
        let (_, who) = answer(&mut peer, &old, u64::MAX / 2).unwrap();
        assert_eq!(who, Asker::Stranger, "its nonce is long gone");
        assert_eq!(peer.proof_ns, proofs.1);
        assert!(proofs.0 < proofs.1);
    }

    /// Whenever that is: the time in a nonce's number wraps after 24 days.
    #[test]
    fn a_peer_that_starts_anew_is_known_again_at_once() {
        const DAY: u64 = 86_400_000_000_000;
        let mut peer = Live::zeroed();
        for days in [0, 1, 13, 20, 25, 50, 90] {
            let mut asker = Live::zeroed();
            let at = days * DAY + RATE_WINDOW_NS;
            assert_eq!(turn(&mut asker, &mut peer, at, true).1, Asker::Stranger);
            for later in 1..100 {
                let (_, who) = turn(&mut asker, &mut peer, at + later * RATE_WINDOW_NS, true);
                assert_eq!(who, Asker::Peer, "{days} days, {later}");
            }
        }
    }

    /// What was recorded while a peer started proves nothing when it is sent again.
    #[test]
    fn a_start_cannot_be_replayed() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        turn(&mut asker, &mut peer, RATE_WINDOW_NS, true);
        let (first, who) = turn(&mut asker, &mut peer, 2 * RATE_WINDOW_NS, true);
        assert_eq!(who, Asker::Peer);
        turn(&mut asker, &mut peer, 3 * RATE_WINDOW_NS, true);
        let proof = peer.proof_ns;
        let again = answer(&mut peer, &first, 4 * RATE_WINDOW_NS).unwrap();
        assert_eq!((again.1, peer.proof_ns), (Asker::Stranger, proof));
    }

    #[test]
    fn reordered_requests_all_count() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        turn(&mut asker, &mut peer, 1000, true);
        turn(&mut asker, &mut peer, 2000, true);
        let early = request(&mut asker, 3000);
        let late = request(&mut asker, 3001);
        for request in [late, early] {
            let (_, who) = answer(&mut peer, &request, 4000).unwrap();
            assert_eq!(who, Asker::Peer);
        }
        assert_eq!(peer.requests_seen, 3);
    }

    #[test]
    fn answers_count_once_and_only_with_the_cookie() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        let sent = request(&mut asker, 10);
        let (good, _) = answer(&mut peer, &sent, 11).unwrap();
        let forged = Probe {
            cookie: [78; 8],
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

    /// Whoever knows the time, and so the number of a stranger's nonce, knows no nonce by that.
    #[test]
    fn a_nonce_cannot_be_made_up() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        let now = 50 * RATE_WINDOW_NS;
        let forged = Probe {
            grant: (milliseconds(now) | STRANGER).to_be_bytes(),
            nonce: [7; 8],
            ..request(&mut asker, now)
        };
        let (_, who) = answer(&mut peer, &forged, now + 1).unwrap();
        assert_eq!((who, peer.proof_ns), (Asker::Stranger, 0));
        // Nor one that is another path's, or too old.
        let (first, _) = answer(&mut peer, &request(&mut asker, now), now).unwrap();
        let elsewhere = super::answer(&mut Live::zeroed(), PATH + 1, &first, now, PEER);
        assert_eq!(elsewhere.unwrap().1, Asker::Stranger);
        let late = now + u64::from(STRANGER_AGE_MS + 1) * 1_000_000;
        let (_, who) = answer(&mut peer, &first, late).unwrap();
        assert_eq!((who, peer.proof_ns), (Asker::Stranger, 0));
    }

    #[test]
    fn an_answer_tells_what_both_ends_counted() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        let asked = request(&mut asker, 1000);
        let (answered, _) = answer(&mut peer, &asked, 1010).unwrap();
        let accounts = Accounts {
            asker: Account::new(0, u64::MAX, 5),
            peer: Account::new(BOND_AGREED, 8, u64::MAX - 1),
            clock: 77_u64.to_be_bytes(),
        };
        let expected = Sample {
            path: PATH,
            sequence: 1,
            at_ns: 1025,
            rtt_ns: 25,
            requests_seen: 0,
            len: 112,
            sent_packets: u64::MAX,
            sent_bytes: 5,
            received_packets: 8,
            received_bytes: u64::MAX - 1,
            peer_ns: 77,
            peer_options: BOND_AGREED.into(),
            reserved: 0,
        };
        assert_eq!(sample(PATH, &answered, &accounts, 1025, 25, 112), expected);
    }

    #[test]
    fn integers_are_big_endian() {
        let asked = request(&mut Live::zeroed(), 1000);
        assert_eq!(bytemuck::bytes_of(&asked)[..8], *b"nb\x03\x01\0\0\0\x01");
        let account = Account::new(0xff, 0x1122_3344_5566_7788, 7);
        let bytes = bytemuck::bytes_of(&account);
        assert_eq!(bytes[..4], [0, 0, 0, BOND_AGREED], "nothing else is told");
        let packets = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
        assert_eq!(bytes[4..12], packets);
        assert_eq!(bytes[12..20], [0, 0, 0, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn our_own_request_is_not_answered() {
        let mut live = Live::zeroed();
        let own = request(&mut live, 10);
        let before = live;
        assert_eq!(answer(&mut live, &own, 11), Err(Fate::RxProbeReflected));
        assert_eq!(live, before);
    }

    #[test]
    fn answers_are_bounded() {
        let (mut asker, mut peer) = (Live::zeroed(), Live::zeroed());
        turn(&mut asker, &mut peer, 1, true);
        let mut answered = 0;
        for now in 0..1000_u64 {
            let request = request(&mut asker, now);
            let at = RATE_WINDOW_NS + now * RATE_WINDOW_NS / 500;
            answered += u32::from(answer(&mut peer, &request, at).is_ok());
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
            let request = request(&mut stranger, now);
            answered += u32::from(answer(&mut peer, &request, now).is_ok());
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
                request(&mut live, cookie);
            }
            for (now, bytes) in bytes.into_iter().enumerate() {
                let mut probe: Probe = bytemuck::cast(bytes);
                probe.magic = MAGIC;
                probe.version = VERSION;
                let now = now as u64 + 1000;
                prop_assert_eq!(accept(&mut live, &probe, now), Err(Fate::RxProbeCookie));
                let _ = answer(&mut live, &probe, now);
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
                let request = request(&mut asker, now);
                if !there {
                    continue;
                }
                arrived += 1;
                for _ in 0..copies {
                    let answered = answer(&mut peer, &request, now + 1);
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
