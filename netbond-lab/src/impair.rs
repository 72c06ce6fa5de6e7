//! A bad line: random loss and delay on what a WireGuard device sends.
//!
//! For the embedded WireGuard, which asks here before each send; the kernel's has netem. Packets are
//! lost and held back encrypted, one datagram at a time, as on a real line.

use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gotatun::packet::Packet;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Packets that may be held back at a time; further ones are lost, as in a full queue.
const HELD: usize = 100_000;

/// What one direction of a link does to packets. The default: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    /// Share of the packets that are lost at random, 0 to 1.
    pub loss: f64,
    /// Time by which every packet comes later.
    pub delay: Duration,
}

impl Impairment {
    /// As the words of a request to a router's process.
    pub(crate) fn words(&self) -> String {
        format!("{} {}", self.loss, self.delay.as_micros())
    }

    /// Reads [`Impairment::words`].
    pub(crate) fn parse(loss: &str, delay: &str) -> Result<Self> {
        let loss = loss
            .parse()
            .with_context(|| format!("bad share of losses {loss:?}"))?;
        ensure!(
            (0.0..=1.0).contains(&loss),
            "share of losses {loss} is not between 0 and 1"
        );
        let delay = delay
            .parse()
            .with_context(|| format!("bad delay {delay:?}"))?;
        Ok(Self {
            loss,
            delay: Duration::from_micros(delay),
        })
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Sent,
    Lost,
    Held(Duration),
}

/// The impairment of a device as its senders see it; may be changed at any time.
#[derive(Debug)]
pub(crate) struct Line {
    /// All that a device without impairment looks at.
    impaired: AtomicBool,
    /// A packet is lost if a random number is below.
    loss: AtomicU64,
    delay_us: AtomicU64,
    random: AtomicU64,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self {
            impaired: AtomicBool::new(false),
            loss: AtomicU64::new(0),
            delay_us: AtomicU64::new(0),
            random: AtomicU64::new(RandomState::new().hash_one(0)),
        }
    }

    pub(crate) fn set(&self, impairment: Impairment) {
        let loss = (impairment.loss * u64::MAX as f64) as u64;
        let delay = u64::try_from(impairment.delay.as_micros()).unwrap_or(u64::MAX);
        self.loss.store(loss, Ordering::Relaxed);
        self.delay_us.store(delay, Ordering::Relaxed);
        self.impaired
            .store(impairment != Impairment::default(), Ordering::Relaxed);
    }

    pub(crate) fn is_impaired(&self) -> bool {
        self.impaired.load(Ordering::Relaxed)
    }

    /// Decides about the next packet.
    pub(crate) fn fate(&self) -> Fate {
        if self.random() < self.loss.load(Ordering::Relaxed) {
            return Fate::Lost;
        }
        match self.delay_us.load(Ordering::Relaxed) {
            0 => Fate::Sent,
            delay => Fate::Held(Duration::from_micros(delay)),
        }
    }

    /// SplitMix64: the state is a mere counter, so senders share it without a lock.
    fn random(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.random.fetch_add(STEP, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Datagrams and where they are to go.
pub(crate) type Datagrams = Vec<(Packet, SocketAddr)>;

/// The way of one socket's packets over a [`Line`]: loses them, or holds them back.
#[derive(Clone)]
pub(crate) struct Way {
    line: Arc<Line>,
    held: mpsc::Sender<(Instant, (Packet, SocketAddr))>,
}

impl Way {
    /// Also returns what comes out at the end of a line with a delay.
    pub(crate) fn new(line: Arc<Line>) -> (Self, Held) {
        let (held, queue) = mpsc::channel(HELD);
        (Self { line, held }, Held { queue, next: None })
    }

    pub(crate) fn is_impaired(&self) -> bool {
        self.line.is_impaired()
    }

    /// Leaves in `packets` what is to be sent now.
    pub(crate) fn pass(&self, packets: &mut Datagrams) {
        let now = Instant::now();
        for (packet, to) in std::mem::take(packets) {
            match self.line.fate() {
                Fate::Sent => packets.push((packet, to)),
                Fate::Lost => {}
                Fate::Held(delay) => {
                    // A full queue loses it.
                    let _ = self.held.try_send((now + delay, (packet, to)));
                }
            }
        }
    }
}

/// Packets held back, in the order they were sent in.
pub(crate) struct Held {
    queue: mpsc::Receiver<(Instant, (Packet, SocketAddr))>,
    next: Option<(Instant, (Packet, SocketAddr))>,
}

impl Held {
    /// Waits for packets whose time has come, at most `limit` of them. `None`: there are no senders
    /// any more.
    pub(crate) async fn due(&mut self, limit: usize) -> Option<Datagrams> {
        let (due, first) = match self.next.take() {
            Some(next) => next,
            None => self.queue.recv().await?,
        };
        sleep_until(due).await;
        let now = Instant::now();
        let mut packets = vec![first];
        while packets.len() < limit {
            match self.queue.try_recv() {
                Ok((due, packet)) if due <= now => packets.push(packet),
                Ok(later) => {
                    self.next = Some(later);
                    break;
                }
                Err(_) => break,
            }
        }
        Some(packets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_lost_is_the_one_asked_for() {
        let line = Line::new();
        assert!(!line.is_impaired());
        line.set(Impairment {
            loss: 0.3,
            ..Impairment::default()
        });
        assert!(line.is_impaired());
        let lost = (0..10_000).filter(|_| line.fate() == Fate::Lost).count();
        assert!((2_700..3_300).contains(&lost), "{lost} of 10000");
        line.set(Impairment::default());
        assert!(!line.is_impaired());
        assert!((0..10_000).all(|_| line.fate() == Fate::Sent));
    }

    #[test]
    fn a_request_carries_what_was_asked_for() {
        let impairment = Impairment {
            loss: 0.3,
            delay: Duration::from_millis(200),
        };
        let words = impairment.words();
        let (loss, delay) = words.split_once(' ').unwrap();
        assert_eq!(Impairment::parse(loss, delay).unwrap(), impairment);
        assert!(Impairment::parse("1.5", "0").is_err());
        assert!(Impairment::parse("0", "soon").is_err());
    }

    #[tokio::test]
    async fn held_packets_come_out_in_order_and_not_early() {
        let line = Arc::new(Line::new());
        let (way, mut held) = Way::new(Arc::clone(&line));
        let to: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let packet = |number: u8| (Packet::copy_from(&[number][..]), to);
        let start = Instant::now();
        let delay = Duration::from_millis(30);
        line.set(Impairment { loss: 0.0, delay });
        let mut packets = vec![packet(1), packet(2), packet(3)];
        way.pass(&mut packets);
        assert!(packets.is_empty());
        let mut numbers: Vec<u8> = Vec::new();
        for limit in [2, 2] {
            let due = held.due(limit).await.unwrap();
            numbers.extend(due.iter().map(|(packet, _)| packet[0]));
        }
        assert_eq!(numbers, [1, 2, 3]);
        assert!(start.elapsed() >= delay);
        drop(way);
        assert!(held.due(2).await.is_none());
    }
}
