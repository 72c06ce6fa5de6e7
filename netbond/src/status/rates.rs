//! What paths carry now: the difference of two readings of their counters.

use super::{Path, Rate, Status};

/// Puts into `now` what its paths carried since `before`. A path that is new, or whose counters began
/// anew, has no rate.
pub fn rates(before: &Status, now: &mut Status) {
    let seconds = now.read_ns.saturating_sub(before.read_ns) as f64 / 1e9;
    if seconds <= 0.0 {
        return;
    }
    now.rates_over_s = Some(seconds);
    for bond in &mut now.bonds {
        let Some(old) = before.bonds.iter().find(|old| old.name == bond.name) else {
            continue;
        };
        let grown: Vec<Option<Counters>> = bond
            .paths
            .iter()
            .map(|path| {
                let old = old.paths.iter().find(|old| old.name == path.name)?;
                Counters::of(path).since(&Counters::of(old))
            })
            .collect();
        let sum = |of: fn(&Counters) -> u64| grown.iter().flatten().map(of).sum::<u64>();
        let (tx_total, rx_total) = (sum(|one| one.tx_bytes), sum(|one| one.rx_bytes));
        let share = |part: u64, total: u64| (total != 0).then(|| part as f64 / total as f64);
        let rate = |count: u64| (count as f64 / seconds).round() as u64;
        for (path, grown) in bond.paths.iter_mut().zip(&grown) {
            path.rate = grown.as_ref().map(|grown| Rate {
                tx_packets_per_second: rate(grown.tx_packets),
                tx_bytes_per_second: rate(grown.tx_bytes),
                rx_packets_per_second: rate(grown.rx_packets),
                rx_bytes_per_second: rate(grown.rx_bytes),
                tx_share: share(grown.tx_bytes, tx_total),
                rx_share: share(grown.rx_bytes, rx_total),
            });
        }
    }
}

struct Counters {
    tx_packets: u64,
    tx_bytes: u64,
    rx_packets: u64,
    rx_bytes: u64,
}

impl Counters {
    const fn of(path: &Path) -> Self {
        Self {
            tx_packets: path.tx_packets,
            tx_bytes: path.tx_bytes,
            rx_packets: path.rx_packets,
            rx_bytes: path.rx_bytes,
        }
    }

    /// `None` where a counter went back.
    fn since(&self, before: &Self) -> Option<Self> {
        Some(Self {
            tx_packets: self.tx_packets.checked_sub(before.tx_packets)?,
            tx_bytes: self.tx_bytes.checked_sub(before.tx_bytes)?,
            rx_packets: self.rx_packets.checked_sub(before.rx_packets)?,
            rx_bytes: self.rx_bytes.checked_sub(before.rx_bytes)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    #[test]
    fn rates_are_what_the_counters_grew_by() {
        let before = sample::status();
        let mut now = sample::status();
        now.read_ns = before.read_ns + 2_000_000_000;
        for (path, bytes) in now.bonds[0].paths.iter_mut().zip([3_000_000, 1_000_000]) {
            path.tx_packets += bytes / 1000;
            path.tx_bytes += bytes;
        }
        rates(&before, &mut now);
        assert_eq!(now.rates_over_s, Some(2.0));
        assert_eq!(
            now.bonds[0].paths[0].rate,
            Some(Rate {
                tx_packets_per_second: 1500,
                tx_bytes_per_second: 1_500_000,
                rx_packets_per_second: 0,
                rx_bytes_per_second: 0,
                tx_share: Some(0.75),
                rx_share: None,
            })
        );
    }

    /// `netbond detach` and a new start in between, or a path that is new.
    #[test]
    fn counters_that_began_anew_give_no_rate() {
        let mut before = sample::status();
        let mut now = sample::status();
        now.read_ns = before.read_ns + 1_000_000_000;
        before.bonds[0].paths[0].rx_bytes = now.bonds[0].paths[0].rx_bytes + 1;
        before.bonds[0].paths[1].name = "another".to_owned();
        rates(&before, &mut now);
        assert!(now.bonds[0].paths.iter().all(|path| path.rate.is_none()));
    }
}
