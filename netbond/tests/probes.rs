//! Probes in the kernel: two ends, joined by hand.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use aya::maps::PerCpuValues;
use common::{BOND, Kernel, TC_ACT_REDIRECT, TC_ACT_SHOT, Wrap, ipv4_frame, path_id};
use etherparse::Ipv4HeaderSlice;
use netbond::tables::Raw;
use netbond_common::{
    abi::{BOND_NUMBERED, Bond, Live, PathStats, Sample},
    fate::Fate,
    probe::{LEN, STRANGER_LIMIT, TRIGGER},
};

/// The GRE payload type of a probe.
const PROBE: u16 = 0x88b5;

fn live(kernel: &Kernel, slot: u32) -> Live {
    kernel.tables.live.get(&path_id(slot), 0).unwrap().0
}

/// The controller's frame of `len` bytes that asks for a probe as long on a slot.
fn trigger(slot: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00, TRIGGER | slot]);
    frame.resize(14 + len, 0);
    frame
}

/// What one end sent, as the other receives it: its paths have the addresses the other way round.
fn crossed(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (source, destination) = (frame[26..30].to_vec(), frame[30..34].to_vec());
    frame[26..30].copy_from_slice(&destination);
    frame[30..34].copy_from_slice(&source);
    frame[..6].fill(0);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame
}

/// A probe is as long as it is asked for: much longer than the frame that asks, and than a buffer of one
/// page. One that the kernel cannot make is counted.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_probe_has_the_length_that_is_asked_for() {
    let (mut here, mut there) = (
        Kernel::with_bond(&[1, 1], None),
        Kernel::with_bond(&[1, 1], None),
    );
    for (asked, len) in [
        (0, LEN),
        (LEN - 1, LEN),
        (LEN + 1, LEN + 1),
        (1316, 1316),
        (9216, 9216),
    ] {
        let mut frame = trigger(1, LEN);
        frame[15..17].copy_from_slice(&(asked as u16).to_be_bytes());
        let request = here.egress(&frame);
        assert_eq!(request.action, TC_ACT_REDIRECT);
        assert_eq!(request.frame.len(), 14 + 24 + len);
        let header = Ipv4HeaderSlice::from_slice(&request.frame[14..]).unwrap();
        assert_eq!(usize::from(header.total_len()), 24 + len);
        assert!(request.frame[14 + 24 + LEN..].iter().all(|&byte| byte == 0));
        // A test run takes no more than a page.
        if len > 3000 {
            continue;
        }
        let answer = there.ingress(&crossed(&request.frame));
        assert_eq!(answer.frame.len(), request.frame.len(), "no amplification");
        assert_eq!(here.ingress(&crossed(&answer.frame)).action, TC_ACT_SHOT);
        let item = here.tables.samples.next().unwrap().to_vec();
        let sample: Sample = bytemuck::pod_read_unaligned(&item);
        assert_eq!(sample.len as usize, 24 + len);
    }
    let mut frame = trigger(1, LEN);
    frame[15..17].fill(0xff);
    assert_eq!(here.egress(&frame).action, TC_ACT_SHOT);
    assert_eq!(count(&here, Fate::TxNoRoom), 1);
}

/// A request of one end on a slot.
fn ask(kernel: &mut Kernel, slot: u8) -> Vec<u8> {
    let ran = kernel.egress(&trigger(slot, LEN));
    assert_eq!(ran.action, TC_ACT_REDIRECT);
    ran.frame
}

fn count(kernel: &Kernel, fate: Fate) -> u64 {
    let fates = kernel.fates();
    fates
        .iter()
        .find(|(bond, found, _)| (*bond, *found) == (BOND, fate))
        .map_or(0, |found| found.2)
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_probe_goes_there_and_back_and_proves_the_path_to_both() {
    for key in [None, Some(9)] {
        let (mut here, mut there) = (
            Kernel::with_bond(&[1, 1], key),
            Kernel::with_bond(&[1, 1], key),
        );
        for turn in 1..=3_u32 {
            let request = ask(&mut here, 1);
            let answer = there.ingress(&crossed(&request));
            assert_eq!(answer.action, TC_ACT_REDIRECT);
            assert_eq!(answer.frame.len(), request.len(), "no amplification");
            let header = Ipv4HeaderSlice::from_slice(&answer.frame[14..]).unwrap();
            assert_eq!(
                header.header_checksum(),
                header.to_header().calc_header_checksum()
            );
            assert_eq!((header.ttl(), header.dont_fragment()), (64, true));
            let accepted = here.ingress(&crossed(&answer.frame));
            assert_eq!(accepted.action, TC_ACT_SHOT, "taken in, and gone");
            assert_eq!(live(&here, 1).answers_seen, turn);
            assert!(live(&here, 1).proof_ns != 0);
            assert_eq!(
                live(&there, 1).proof_ns != 0,
                turn > 1,
                "by the nonce that came back"
            );
            let item = here.tables.samples.next().unwrap().to_vec();
            let sample: Sample = bytemuck::pod_read_unaligned(&item);
            assert_eq!((sample.path, sample.sequence), (path_id(1), turn));
            assert_eq!(
                sample.requests_seen,
                turn - 1,
                "the first could be anybody's"
            );
            assert!(
                sample.rtt_ns > 0 && sample.rtt_ns < 5_000_000_000,
                "{sample:?}"
            );
        }
        assert_eq!(
            live(&here, 0).proof_ns,
            0,
            "of the other path nothing is known"
        );
        assert_eq!(count(&here, Fate::RxProbe), 3);
        let strangers = count(&there, Fate::RxProbeStranger);
        assert_eq!((strangers, count(&there, Fate::RxProbe)), (1, 2));
        assert_eq!(here.sent(2), [0, 0], "probes are no traffic");
    }
}

/// Packets on two paths, some of which are lost; and what other CPUs counted of them.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn an_answer_tells_what_was_sent_and_what_of_it_came() {
    let (mut here, mut there) = (
        Kernel::with_bond(&[1, 1], None),
        Kernel::with_bond(&[1, 1], None),
    );
    there.set_bond(&Bond {
        flags: BOND_NUMBERED,
        ..there.bond()
    });
    for number in 0..20 {
        let sent = here.egress(&ipv4_frame(100 + number)).frame;
        // Of the second path's, those of 101, 107, 113 and 119 bytes are lost.
        if number % 6 != 1 {
            assert_eq!(there.ingress(&crossed(&sent)).action, TC_ACT_REDIRECT);
        }
    }
    let probe = |here: &mut Kernel, there: &mut Kernel| -> Sample {
        let answer = there.ingress(&crossed(&ask(here, 1))).frame;
        here.ingress(&crossed(&answer));
        let item = here.tables.samples.next().unwrap().to_vec();
        bytemuck::pod_read_unaligned(&item)
    };
    let sample = probe(&mut here, &mut there);
    let bytes = (0..10).map(|number| 101 + 2 * number).sum::<u64>();
    assert_eq!((sample.sent_packets, sample.sent_bytes), (10, bytes));
    let lost = 101 + 107 + 113 + 119;
    let received = (sample.received_packets, sample.received_bytes);
    assert_eq!(received, (6, bytes - lost));
    assert_eq!(sample.peer_options, u32::from(BOND_NUMBERED));
    // Both clocks are this host's.
    let asked = sample.at_ns - sample.rtt_ns;
    assert!(
        (asked..sample.at_ns).contains(&sample.peer_ns),
        "{sample:?}"
    );

    let cpus = u64::try_from(aya::util::nr_cpus().unwrap()).unwrap();
    let stats = |cpu: u64| {
        Raw(PathStats {
            tx_packets: cpu + 1,
            tx_bytes: 1000 * (cpu + 1),
            rx_packets: 3 * (cpu + 1),
            rx_bytes: u64::MAX / 1000 * (cpu + 1),
            ..PathStats::default()
        })
    };
    for kernel in [&mut here, &mut there] {
        let all = PerCpuValues::try_from((0..cpus).map(stats).collect::<Vec<_>>()).unwrap();
        kernel.tables.path_stats.set(path_id(1), all, 0).unwrap();
    }
    let sample = probe(&mut here, &mut there);
    let turns = cpus * (cpus + 1) / 2;
    assert_eq!(
        (sample.sent_packets, sample.sent_bytes),
        (turns, 1000 * turns)
    );
    assert_eq!(sample.received_packets, 3 * turns);
    assert_eq!(sample.received_bytes, (u64::MAX / 1000).wrapping_mul(turns));
    assert_eq!(
        here.tables.path_stats(path_id(1)).unwrap().tx_packets,
        turns
    );
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn replayed_forged_and_malformed_probes_prove_nothing() {
    let (mut here, mut there) = (Kernel::with_bond(&[1], None), Kernel::with_bond(&[1], None));
    let request = crossed(&ask(&mut here, 0));
    let answer = crossed(&there.ingress(&request).frame);
    let mut forged = answer.clone();
    forged[14 + 24 + 8] ^= 1;
    here.ingress(&forged);
    assert_eq!(live(&here, 0).proof_ns, 0);
    here.ingress(&answer);
    let proven = live(&here, 0).proof_ns;
    assert!(proven != 0);
    here.ingress(&answer);
    assert_eq!(
        (live(&here, 0).proof_ns, live(&here, 0).answers_seen),
        (proven, 1)
    );
    assert_eq!(count(&here, Fate::RxProbeCookie), 1);
    assert_eq!(count(&here, Fate::RxProbeReplayed), 1);

    // A request of the peer's that comes a second time.
    let second = crossed(&ask(&mut here, 0));
    assert_eq!(there.ingress(&second).action, TC_ACT_REDIRECT);
    let before = live(&there, 0);
    assert_eq!(there.ingress(&second).action, TC_ACT_SHOT);
    assert_eq!(live(&there, 0), before, "it changes nothing");
    assert_eq!(count(&there, Fate::RxProbeReplayed), 1);

    // Our own request, reflected.
    let before = live(&here, 0);
    assert_eq!(here.ingress(&second).action, TC_ACT_SHOT);
    assert_eq!(live(&here, 0), before, "it changes nothing");
    assert_eq!(count(&here, Fate::RxProbeReflected), 1);

    let mut other_version = request.clone();
    other_version[14 + 24 + 2] = 9;
    let mut other_kind = request.clone();
    other_kind[14 + 24 + 3] = 7;
    let short = request[..request.len() - 1].to_vec();
    let with_sequence = Wrap {
        gre_flags: 0x1000,
        gre_fields: vec![0; 4],
        gre_protocol: PROBE,
        ..Wrap::on(0)
    };
    let mut ethernet = vec![0; 14];
    ethernet.extend(&request[38..]);
    let cases = [
        other_version,
        other_kind,
        short,
        with_sequence.frame(&ethernet),
    ];
    for (number, frame) in cases.iter().enumerate() {
        assert_eq!(there.ingress(frame).action, TC_ACT_SHOT);
        assert_eq!(
            count(&there, Fate::RxProbeMalformed),
            number as u64 + 1,
            "case {number}"
        );
    }
    assert_eq!(live(&there, 0).requests_seen, 1, "the second, once");
}

/// Whoever can send in the peer's name gets few answers, and takes none from the peer.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_flood_of_strangers_takes_nothing_from_the_peer() {
    let (mut here, mut there) = (Kernel::with_bond(&[1], None), Kernel::with_bond(&[1], None));
    let first = crossed(&ask(&mut here, 0));
    here.ingress(&crossed(&there.ingress(&first).frame));
    let mut strangers = 0;
    for turn in 0..20 {
        for _ in 0..500 {
            // It returns no nonce of anybody's.
            let mut forged = first.clone();
            forged[14 + 24 + 8] = turn;
            strangers += u32::from(there.ingress(&forged).action == TC_ACT_REDIRECT);
        }
        let request = crossed(&ask(&mut here, 0));
        let before = live(&there, 0).proof_ns;
        let answer = there.ingress(&request);
        assert_eq!(answer.action, TC_ACT_REDIRECT);
        assert!(live(&there, 0).proof_ns > before, "it proves the path");
        here.ingress(&crossed(&answer.frame));
    }
    // The peer itself was a stranger once.
    assert!(strangers >= STRANGER_LIMIT - 1, "{strangers} answered");
    let (unanswered, seen) = (
        count(&there, Fate::RxProbeRate),
        live(&there, 0).requests_seen,
    );
    assert_eq!(u64::from(strangers) + unanswered, 10_000);
    assert!(unanswered > 0, "all were answered");
    assert_eq!(seen, 20, "only the peer's count");
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn answers_are_bounded() {
    let (mut here, mut there) = (Kernel::with_bond(&[1], None), Kernel::with_bond(&[1], None));
    let request = crossed(&ask(&mut here, 0));
    let mut answered = 0;
    // Far more than fit into one span, and so few that they take few of them.
    for _ in 0..2_000 {
        answered += u32::from(there.ingress(&request).action == TC_ACT_REDIRECT);
    }
    let refused = count(&there, Fate::RxProbeRate);
    assert_eq!(u64::from(answered) + refused, 2_000);
    assert!(
        answered >= STRANGER_LIMIT && refused > 0,
        "{answered} answered, {refused} refused"
    );
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn only_a_whole_trigger_of_a_path_that_exists_makes_a_probe() {
    let mut kernel = Kernel::with_bond(&[1], None);
    assert_eq!(kernel.egress(&trigger(0, LEN - 1)).action, TC_ACT_SHOT);
    assert_eq!(count(&kernel, Fate::TxMalformed), 1);
    assert_eq!(kernel.egress(&trigger(7, LEN)).action, TC_ACT_SHOT);
    assert_eq!(count(&kernel, Fate::TxNoPath), 1);
    assert_eq!(kernel.egress(&trigger(0, 1300)).frame.len(), 14 + 24 + 1300);
}

/// The data plane itself leaves a path out whose proof is older than its limit, and uses all when
/// there is no fresh one.
#[test]
#[ignore = "needs CAP_BPF: cargo xtask test test-run"]
fn a_path_without_a_fresh_proof_is_skipped() {
    const LONG: u64 = 3_600_000_000_000;
    let (mut here, mut there) = (
        Kernel::with_bond(&[1, 1], None),
        Kernel::with_bond(&[1, 1], None),
    );
    let frame = ipv4_frame(100);
    for slot in 0..2 {
        // No proof yet: older than any limit.
        here.tables.limits.set(path_id(slot), 1_000_000, 0).unwrap();
    }
    for _ in 0..10 {
        assert_eq!(here.egress(&frame).action, TC_ACT_REDIRECT, "fails open");
    }
    let last_resort = |kernel: &Kernel, slot| {
        kernel
            .tables
            .path_stats(path_id(slot))
            .unwrap()
            .tx_last_resort
    };
    assert_eq!((last_resort(&here, 0), last_resort(&here, 1)), (5, 5));

    let answer = crossed(&there.ingress(&crossed(&ask(&mut here, 1))).frame);
    here.ingress(&answer);
    here.tables.limits.set(path_id(1), LONG, 0).unwrap();
    let before = here.sent(2);
    for _ in 0..10 {
        here.egress(&frame);
    }
    let after = here.sent(2);
    assert_eq!(
        (after[0] - before[0], after[1] - before[1]),
        (0, 10),
        "the proven path alone"
    );
    here.tables.limits.set(path_id(0), 0, 0).unwrap();
    for _ in 0..10 {
        here.egress(&frame);
    }
    assert_eq!(
        here.sent(2)[0] - after[0],
        5,
        "no limit: not probed, and trusted"
    );
}
