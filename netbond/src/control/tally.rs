//! What both ends of a path counted, from one answer to the next: losses of data, rates, and how long
//! the way there is.
//!
//! A request says what had been sent before it, its answer what of that had come. Both went through the
//! same queues, so what is missing is lost. The one way that cannot be measured alone is the offset of
//! the peer's clock: but it is the same on all paths of a bond, and does not change while a queue fills.
//! So differences are exact where absolute times are not.
//!
//! Nothing here trusts the figures: they are the peer's. Counters may start anew, answers may overtake
//! each other, and clocks run apart.

use std::collections::VecDeque;

use netbond_common::abi::Sample;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// Seconds over which losses are counted.
const LOSS_SECONDS: u64 = 10;
/// Answers closer to each other than this, ns by either clock, are taken together: a rate over less
/// would be noise.
const LEAST_SPAN: u64 = 5 * MS;
/// The one-way delay does not change by so much, ns: it is another clock, or another peer.
const ANOTHER_CLOCK: u64 = 10 * SECOND;
/// The least delay is that of the last so many spans of [`DELAY_SPAN`] ns. Long enough that a queue runs
/// empty in between, short enough that clocks which run 100 ppm apart err by 3 ms.
const DELAY_SPANS: usize = 15;
const DELAY_SPAN: u64 = 2 * SECOND;
/// What is missing may turn up: packets overtake a probe where they wait to be merged, and the other way
/// round on other processors. It is lost when it is more than was missing in the last so many spans of
/// [`MISSING_SPAN`] ns.
const MISSING_SPANS: usize = 4;
const MISSING_SPAN: u64 = SECOND / 2;

/// What an answer tells of a path that the last one did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// When the answer came, CLOCK_MONOTONIC, ns.
    pub at_ns: u64,
    /// What the peer received of inner packets, bytes, and in how long by its clock, ns; never 0.
    pub delivered_bytes: u64,
    pub delivered_span_ns: u64,
    /// What this end sent, bytes and packets, and in how long, ns; never 0.
    pub offered_bytes: u64,
    pub sent_packets: u64,
    pub offered_span_ns: u64,
    /// How many more packets are missing; `sent_packets` at the most.
    pub lost_packets: u64,
    /// How long the queues on the way there held the request, ns.
    pub queue_ns: u64,
}

impl Observation {
    /// Bytes/s that arrived.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        per_second(self.delivered_bytes, self.delivered_span_ns)
    }

    /// Bytes/s that were sent.
    #[must_use]
    pub fn offered(&self) -> u64 {
        per_second(self.offered_bytes, self.offered_span_ns)
    }

    /// Share of the packets that were lost, 0 to 1; 0 where none was sent.
    #[must_use]
    pub fn loss(&self) -> f64 {
        if self.sent_packets == 0 {
            return 0.0;
        }
        self.lost_packets as f64 / self.sent_packets as f64
    }
}

/// How both ends stood when a request was answered.
#[derive(Clone, Copy, Debug)]
struct Counts {
    sequence: u32,
    /// When the answer came.
    at_ns: u64,
    asked_ns: u64,
    /// By the peer's clock.
    peer_ns: u64,
    sent_packets: u64,
    sent_bytes: u64,
    received_packets: u64,
    received_bytes: u64,
}

impl Counts {
    const fn of(sample: &Sample) -> Self {
        Self {
            sequence: sample.sequence,
            at_ns: sample.at_ns,
            asked_ns: sample.at_ns.saturating_sub(sample.rtt_ns),
            peer_ns: sample.peer_ns,
            sent_packets: sample.sent_packets,
            sent_bytes: sample.sent_bytes,
            received_packets: sample.received_packets,
            received_bytes: sample.received_bytes,
        }
    }

    /// The way there, ns, give or take the offset of the clocks.
    const fn delay(&self) -> i64 {
        self.peer_ns.wrapping_sub(self.asked_ns) as i64
    }

    /// Packets sent and not received, give or take where the counters started.
    const fn missing(&self) -> i64 {
        self.sent_packets.wrapping_sub(self.received_packets) as i64
    }

    /// Whether an end counts anew, or its clock is another.
    fn is_anew(&self, before: &Self) -> bool {
        self.sent_packets < before.sent_packets
            || self.sent_bytes < before.sent_bytes
            || self.delay().wrapping_sub(before.delay()).unsigned_abs() > ANOTHER_CLOCK
            || (self.peer_ns > before.peer_ns
                && (self.received_packets < before.received_packets
                    || self.received_bytes < before.received_bytes))
    }
}

/// The least of the last values, span by span.
#[derive(Clone, Debug)]
struct Least<const SPANS: usize> {
    span_ns: u64,
    /// The oldest first: the number of a span, and the least in it.
    spans: VecDeque<(u64, i64)>,
}

impl<const SPANS: usize> Least<SPANS> {
    const fn new(span_ns: u64) -> Self {
        Self {
            span_ns,
            spans: VecDeque::new(),
        }
    }

    fn take(&mut self, now: u64, value: i64) {
        let number = now / self.span_ns;
        match self.spans.back_mut() {
            Some((last, least)) if *last >= number => *least = value.min(*least),
            Some(_) | None => self.spans.push_back((number, value)),
        }
        let oldest = number.saturating_sub(SPANS as u64 - 1);
        while self.spans.len() > 1 && self.spans.front().is_some_and(|(span, _)| *span < oldest) {
            self.spans.pop_front();
        }
    }

    fn get(&self) -> Option<i64> {
        self.spans.iter().map(|(_, least)| *least).min()
    }
}

/// A path's tally. Times are CLOCK_MONOTONIC, ns, unless they are the peer's.
#[derive(Clone, Debug)]
pub struct Tally {
    last: Option<Counts>,
    /// One a second, the oldest first.
    marks: VecDeque<Counts>,
    /// Of the one-way delay, and of the round trip in the same time.
    least_delay: Least<DELAY_SPANS>,
    least_rtt: Least<DELAY_SPANS>,
    /// Of what was received and not sent: the most that was missing, turned round.
    least_surplus: Least<MISSING_SPANS>,
    /// Smoothed, as round trips are (RFC 6298, 2).
    delay: i64,
    queue: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            last: None,
            marks: VecDeque::new(),
            least_delay: Least::new(DELAY_SPAN),
            least_rtt: Least::new(DELAY_SPAN),
            least_surplus: Least::new(MISSING_SPAN),
            delay: 0,
            queue: 0,
        }
    }
}

impl Tally {
    /// Takes in an answer. `None` where it tells nothing yet: it is the first, the first since an end
    /// started anew, was overtaken by a later one, or is one with the last.
    pub fn take(&mut self, sample: &Sample) -> Option<Observation> {
        let now = Counts::of(sample);
        let Some(last) = self.last else {
            self.start(now, sample.rtt_ns);
            return None;
        };
        // Sequence numbers wrap: later is what is less than half the range ahead.
        let ahead = now.sequence.wrapping_sub(last.sequence);
        if ahead == 0 || ahead > u32::MAX / 2 {
            return None;
        }
        if now.is_anew(&last) {
            *self = Self::default();
            self.start(now, sample.rtt_ns);
            return None;
        }
        let queue_ns = self.measure(&now, sample.rtt_ns);
        let delivered_span_ns = now.peer_ns.saturating_sub(last.peer_ns);
        let offered_span_ns = now.asked_ns.saturating_sub(last.asked_ns);
        if delivered_span_ns < LEAST_SPAN || offered_span_ns < LEAST_SPAN {
            return None;
        }
        let sent_packets = now.sent_packets.saturating_sub(last.sent_packets);
        let surplus = now.missing().wrapping_neg();
        let lost = self
            .least_surplus
            .get()
            .map_or(0, |least| least.saturating_sub(surplus).max(0) as u64);
        self.least_surplus.take(now.at_ns, surplus);
        self.last = Some(now);
        self.mark(now);
        Some(Observation {
            at_ns: now.at_ns,
            delivered_bytes: now.received_bytes.saturating_sub(last.received_bytes),
            delivered_span_ns,
            offered_bytes: now.sent_bytes.saturating_sub(last.sent_bytes),
            sent_packets,
            offered_span_ns,
            lost_packets: lost.min(sent_packets),
            queue_ns,
        })
    }

    fn start(&mut self, now: Counts, rtt: u64) {
        self.delay = now.delay();
        self.measure(&now, rtt);
        let surplus = now.missing().wrapping_neg();
        self.least_surplus.take(now.at_ns, surplus);
        self.last = Some(now);
        self.mark(now);
    }

    /// Takes in the one-way delay; returns what of it is waiting in queues.
    ///
    /// Clocks that run apart look like a queue that grows. But no queue there is longer than what the
    /// round trip has grown by, which is one clock's alone.
    fn measure(&mut self, now: &Counts, rtt: u64) -> u64 {
        let (delay, rtt) = (now.delay(), i64::try_from(rtt).unwrap_or(i64::MAX));
        self.least_delay.take(now.at_ns, delay);
        self.least_rtt.take(now.at_ns, rtt);
        let above = |value: i64, least: Option<i64>| {
            value.saturating_sub(least.unwrap_or(value)).unsigned_abs()
        };
        let queue = above(delay, self.least_delay.get()).min(above(rtt, self.least_rtt.get()));
        self.delay = self
            .delay
            .saturating_add(delay.saturating_sub(self.delay) / 8);
        self.queue = self.queue - self.queue / 8 + queue / 8;
        queue
    }

    fn mark(&mut self, now: Counts) {
        let age = |mark: &Counts| now.at_ns.saturating_sub(mark.at_ns);
        if self.marks.back().is_none_or(|mark| age(mark) >= SECOND) {
            self.marks.push_back(now);
        }
        // One is older, or there would be nothing to count from.
        while self.marks.len() > 2
            && self
                .marks
                .get(1)
                .is_some_and(|mark| age(mark) >= LOSS_SECONDS * SECOND)
        {
            self.marks.pop_front();
        }
    }

    /// Of the packets that were sent in the last ten seconds, or since the first answer, lost on the way
    /// there, in millionths; `None` where none was sent.
    #[must_use]
    pub fn loss(&self) -> Option<u32> {
        let (now, then) = (self.last.as_ref()?, self.marks.front()?);
        let sent = now.sent_packets.saturating_sub(then.sent_packets);
        // Less is missing where packets that had overtaken the mark came in after it.
        let lost = now.missing().wrapping_sub(then.missing()).max(0) as u64;
        let millionths = u128::from(lost.min(sent)) * 1_000_000;
        millionths
            .checked_div(u128::from(sent))
            .map(|share| share as u32)
    }

    /// Bytes/s that this end sent in the last second or two, at `now`, and that the peer received; 0 where
    /// no answer has come since.
    #[must_use]
    pub fn rates(&self, now: u64) -> (u64, u64) {
        let Some((last, then)) = self.last.as_ref().zip(self.base()) else {
            return (0, 0);
        };
        let span = last.at_ns.saturating_sub(then.at_ns);
        if now.saturating_sub(last.at_ns) > span.saturating_add(SECOND) {
            return (0, 0);
        }
        (
            per_second(
                last.sent_bytes.saturating_sub(then.sent_bytes),
                last.asked_ns.saturating_sub(then.asked_ns),
            ),
            per_second(
                last.received_bytes.saturating_sub(then.received_bytes),
                last.peer_ns.saturating_sub(then.peer_ns),
            ),
        )
    }

    /// The mark from which the rates count: the last but one, so that it is a second old.
    fn base(&self) -> Option<&Counts> {
        self.marks.iter().rev().nth(1).or(self.marks.front())
    }

    /// How long the queues on the way there hold a packet, ns, smoothed.
    #[must_use]
    pub const fn queue_ns(&self) -> u64 {
        self.queue
    }

    /// The way there, ns, smoothed; only differences between paths to the same peer mean anything.
    /// `None` before the first answer.
    #[must_use]
    pub fn delay_ns(&self) -> Option<i64> {
        self.last.as_ref().map(|_| self.delay)
    }

    /// The same without what waiting in queues took: the shortest in the last half minute.
    #[must_use]
    pub fn least_delay_ns(&self) -> Option<i64> {
        self.least_delay.get()
    }
}

/// How much longer a way is than the fastest, ns, both by [`Tally::delay_ns`]; `None` where one of them
/// is not known.
#[must_use]
pub fn behind(delay: Option<i64>, fastest: Option<i64>) -> Option<u64> {
    let longer = delay?.saturating_sub(fastest?);
    Some(longer.max(0).unsigned_abs())
}

fn per_second(bytes: u64, ns: u64) -> u64 {
    let scaled = u128::from(bytes) * u128::from(SECOND);
    scaled
        .checked_div(u128::from(ns))
        .map_or(0, |rate| u64::try_from(rate).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use proptest::prelude::*;

    use super::*;

    const RTT: u64 = 20 * MS;
    /// The peer's clock is ahead by this, ns.
    const OFFSET: u64 = 77 * SECOND;

    /// A path with traffic, asked every 30 ms.
    struct Bench {
        tally: Tally,
        now: u64,
        sample: Sample,
        /// By how much the peer's clock is faster, ppm.
        drift: u64,
        seen: Vec<Observation>,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                tally: Tally::default(),
                now: SECOND,
                sample: Sample {
                    sent_packets: 1000,
                    received_packets: 400_000,
                    received_bytes: 3,
                    ..Sample::zeroed()
                },
                drift: 0,
                seen: Vec::new(),
            }
        }

        /// So many probes, before each of which packets of 1000 bytes are sent, and some are lost; queues
        /// hold each for so long on the way there and back.
        fn run(&mut self, probes: u64, sent: u64, lost: u64, queues: (u64, u64)) {
            for _ in 0..probes {
                self.now += 30 * MS;
                let sample = &mut self.sample;
                sample.sequence = sample.sequence.wrapping_add(1);
                sample.sent_packets += sent;
                sample.sent_bytes += sent * 1000;
                sample.received_packets += sent - lost;
                sample.received_bytes += (sent - lost) * 1000;
                sample.rtt_ns = RTT + queues.0 + queues.1;
                sample.at_ns = self.now + sample.rtt_ns;
                let arrived = self.now + RTT / 2 + queues.0;
                sample.peer_ns = OFFSET + arrived + arrived / 1_000_000 * self.drift;
                self.seen.extend(self.tally.take(&self.sample));
            }
        }

        fn last(&self) -> Observation {
            *self.seen.last().unwrap()
        }
    }

    #[test]
    fn what_is_sent_and_does_not_come_is_lost() {
        let mut bench = Bench::new();
        bench.run(1, 0, 0, (0, 0));
        assert_eq!((bench.tally.loss(), bench.seen.len()), (None, 0));
        bench.run(100, 8, 1, (0, 0));
        assert_eq!(bench.tally.loss(), Some(125_000));
        let seen = bench.last();
        assert_eq!((seen.sent_packets, seen.lost_packets), (8, 1));
        assert_eq!((seen.offered_bytes, seen.delivered_bytes), (8000, 7000));
        assert_eq!(seen.offered(), 8000 * SECOND / (30 * MS));
        assert_eq!(seen.delivered(), 7000 * SECOND / (30 * MS));
        assert!((seen.loss() - 0.125).abs() < 1e-9);
        let (offered, delivered) = bench.tally.rates(bench.now);
        assert_eq!((offered, delivered), (seen.offered(), seen.delivered()));
        assert_eq!(bench.tally.rates(bench.now + 4 * SECOND), (0, 0));
        // All that was lost is told once.
        let lost: u64 = bench.seen.iter().map(|seen| seen.lost_packets).sum();
        assert_eq!(lost, 100);
        // Ten seconds later it is forgotten.
        bench.run(400, 8, 0, (0, 0));
        assert_eq!(bench.tally.loss(), Some(0));
        bench.run(400, 0, 0, (0, 0));
        assert_eq!(bench.tally.loss(), None);
        assert_eq!(bench.last().loss(), 0.0);
    }

    /// Packets that wait to be merged are counted after a probe that came later, and are not lost.
    #[test]
    fn what_is_late_is_lost_once_at_the_most() {
        let mut bench = Bench::new();
        bench.run(40, 10, 0, (0, 0));
        for _ in 0..60 {
            bench.sample.received_packets -= 5;
            bench.run(1, 10, 0, (0, 0));
            bench.sample.received_packets += 5;
            bench.run(1, 10, 0, (0, 0));
        }
        let lost: u64 = bench.seen.iter().map(|seen| seen.lost_packets).sum();
        assert_eq!((lost, bench.tally.loss()), (5, Some(0)));
        // A copy that a network made hides losses for a moment only.
        bench.sample.received_packets += 50;
        bench.run(200, 10, 0, (0, 0));
        bench.seen.clear();
        bench.run(10, 10, 2, (0, 0));
        let lost: u64 = bench.seen.iter().map(|seen| seen.lost_packets).sum();
        assert_eq!(lost, 20);
    }

    #[test]
    fn a_queue_is_what_the_way_there_grew_by() {
        let mut bench = Bench::new();
        bench.run(100, 1, 0, (0, 0));
        assert_eq!(bench.last().queue_ns, 0);
        bench.run(200, 1, 0, (40 * MS, 0));
        assert_eq!(bench.last().queue_ns, 40 * MS);
        assert!(bench.tally.queue_ns().abs_diff(40 * MS) < MS);
        bench.run(100, 1, 0, (0, 90 * MS));
        assert_eq!(bench.last().queue_ns, 0, "that is the way back");
    }

    /// In an hour at 100 ppm the clocks are 360 ms apart.
    #[test]
    fn clocks_that_run_apart_are_no_queue() {
        for drift in [0, 100] {
            let mut bench = Bench::new();
            bench.drift = drift;
            bench.run(120_000, 1, 0, (0, 0));
            assert_eq!(bench.last().queue_ns, 0, "{drift}");
            bench.run(100, 1, 0, (50 * MS, 0));
            let queue = bench.last().queue_ns;
            assert!(queue.abs_diff(50 * MS) < 4 * MS, "{queue} at {drift}");
        }
    }

    #[test]
    fn the_ways_of_a_bond_compare() {
        let (mut near, mut far) = (Bench::new(), Bench::new());
        near.run(100, 1, 0, (0, 0));
        far.run(100, 1, 0, (15 * MS, 3 * MS));
        let (near, far) = (near.tally.delay_ns(), far.tally.delay_ns());
        assert_eq!(behind(far, near), Some(15 * MS));
        assert_eq!(behind(near, near), Some(0));
        assert_eq!(behind(None, near), None);
    }

    #[test]
    fn counters_and_clocks_that_start_anew_are_no_loss() {
        let mut bench = Bench::new();
        bench.run(100, 10, 1, (0, 0));
        bench.seen.clear();
        // The peer was detached and runs again.
        (bench.sample.received_packets, bench.sample.received_bytes) = (0, 0);
        bench.run(1, 0, 0, (0, 0));
        assert_eq!((bench.tally.loss(), bench.seen.len()), (None, 0));
        bench.run(10, 10, 0, (0, 0));
        assert_eq!(bench.tally.loss(), Some(0));
        // It starts anew as a machine: its clock, too.
        bench.seen.clear();
        let mut rebooted = bench.sample;
        rebooted.sequence += 1;
        (rebooted.received_packets, rebooted.peer_ns) = (u64::MAX, SECOND);
        assert_eq!(bench.tally.take(&rebooted), None);
        assert_eq!(bench.tally.queue_ns(), 0);
        assert_eq!(bench.tally.loss(), None);
    }

    #[test]
    fn answers_that_are_overtaken_change_nothing() {
        let mut bench = Bench::new();
        bench.run(50, 10, 0, (0, 0));
        let early = bench.sample;
        bench.run(10, 10, 0, (0, 0));
        let loss = bench.tally.loss();
        assert_eq!(bench.tally.take(&early), None);
        assert_eq!(bench.tally.take(&bench.sample), None, "twice");
        // Its request was overtaken on the way there: the later answer was made first.
        let mut late = bench.sample;
        late.sequence += 1;
        late.peer_ns -= 10 * MS;
        late.received_packets -= 3;
        assert_eq!(bench.tally.take(&late), None);
        assert_eq!(bench.tally.loss(), loss);
        bench.run(2, 10, 0, (0, 0));
        assert_eq!((bench.tally.loss(), bench.last().sent_packets), (loss, 10));
    }

    fn wild() -> impl Strategy<Value = u64> {
        prop_oneof![
            Just(0),
            Just(1),
            Just(u64::MAX),
            Just(i64::MAX as u64),
            Just(1 << 63),
            0..200 * SECOND,
            any::<u64>(),
        ]
    }

    proptest! {
        /// Whatever an answer says: no panic, no division by zero, and a loss between none and all.
        #[test]
        fn nothing_that_a_peer_says_does_harm(
            samples in prop::collection::vec(
                (any::<u32>(), prop::array::uniform7(wild()), any::<bool>()),
                1..100,
            ),
        ) {
            let mut tally = Tally::default();
            let mut sequence = 0_u32;
            for (number, values, in_turn) in samples {
                sequence = if in_turn { sequence.wrapping_add(1) } else { number };
                let sample = Sample {
                    sequence,
                    at_ns: values[0],
                    rtt_ns: values[1],
                    sent_packets: values[2],
                    sent_bytes: values[3],
                    received_packets: values[4],
                    received_bytes: values[5],
                    peer_ns: values[6],
                    ..Sample::zeroed()
                };
                if let Some(seen) = tally.take(&sample) {
                    prop_assert!((0.0..=1.0).contains(&seen.loss()), "{seen:?}");
                    prop_assert!(seen.lost_packets <= seen.sent_packets);
                    prop_assert!(seen.delivered_span_ns != 0 && seen.offered_span_ns != 0);
                    let _ = (seen.delivered(), seen.offered());
                }
                prop_assert!(tally.loss().is_none_or(|loss| loss <= 1_000_000));
                let _ = (tally.rates(values[0]), tally.rates(values[6]));
                let _ = behind(tally.delay_ns(), Some(values[1] as i64));
                prop_assert!(tally.marks.len() < 20);
            }
        }

        /// The sum of what observations lose is what is missing in the end, whatever answers are lost.
        #[test]
        fn losses_add_up(
            steps in prop::collection::vec((0..50_u64, 0..=100_u64, any::<bool>()), 1..300),
        ) {
            let mut bench = Bench::new();
            bench.run(1, 0, 0, (0, 0));
            let mut missing = 0;
            let mut unheard = 0;
            for (sent, percent, heard) in steps {
                let lost = sent * percent / 100;
                unheard += lost;
                if heard {
                    bench.run(1, sent, lost, (0, 0));
                    missing += std::mem::take(&mut unheard);
                } else {
                    let kept = bench.tally.clone();
                    let seen = bench.seen.len();
                    bench.run(1, sent, lost, (0, 0));
                    bench.tally = kept;
                    bench.seen.truncate(seen);
                }
            }
            let lost: u64 = bench.seen.iter().map(|seen| seen.lost_packets).sum();
            prop_assert_eq!(lost, missing);
        }
    }
}
