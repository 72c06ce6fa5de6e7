//! Classes of traffic: which packets a rule takes.

use bytemuck::{Pod, Zeroable};

use crate::{
    abi::MAX_BOND_CLASSES,
    flow::{Flow, NO_PORT},
};

/// A bit for every DSCP.
const ALL_DSCPS: u64 = u64::MAX;

/// What rules look at: a packet in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    pub flow: Flow,
    /// Bit n for the DSCP n; all bits where there is none.
    dscp: u64,
    /// skb->mark.
    mark: u32,
}

impl Subject {
    /// `tos` is that of the packet; of no meaning where there is no IP packet.
    #[inline(always)]
    #[must_use]
    pub const fn new(flow: Flow, tos: u8, mark: u32) -> Self {
        let dscp = if flow.version == 0 {
            ALL_DSCPS
        } else {
            1 << (tos >> 2)
        };
        Self { flow, dscp, mark }
    }
}

/// Which packets a class takes: all of what it says must hold. What [`Rule::ANY`] has, says nothing.
///
/// Everything is compared, and only the result is branched on: with sixteen rules, the verifier would
/// walk through far more ways otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Rule {
    /// Source address and the bits of it that count, as in [`Flow::source`].
    pub source: [u64; 2],
    pub source_mask: [u64; 2],
    pub destination: [u64; 2],
    pub destination_mask: [u64; 2],
    /// The DSCPs that do *not* match, a bit for each.
    pub other_dscps: u64,
    /// Mark and the bits of it that count.
    pub mark: u32,
    pub mark_mask: u32,
    /// IP version times 256 plus protocol, and the bits that count.
    pub kind: u32,
    pub kind_mask: u32,
    /// First and last of the ports.
    pub source_ports: [u32; 2],
    pub destination_ports: [u32; 2],
}
const _: () = assert!(size_of::<Rule>() == 104);

impl Rule {
    /// Takes every packet.
    pub const ANY: Self = Self {
        source: [0; 2],
        source_mask: [0; 2],
        destination: [0; 2],
        destination_mask: [0; 2],
        other_dscps: 0,
        mark: 0,
        mark_mask: 0,
        kind: 0,
        kind_mask: 0,
        source_ports: [0, NO_PORT],
        destination_ports: [0, NO_PORT],
    };

    /// Whether it takes a packet.
    #[inline(always)]
    #[must_use]
    pub const fn takes(&self, packet: &Subject) -> bool {
        let flow = &packet.flow;
        let kind = (flow.version as u32) << 8 | flow.protocol as u32;
        let differs = differs(flow.source, self.source, self.source_mask)
            | differs(flow.destination, self.destination, self.destination_mask)
            | packet.dscp & self.other_dscps
            | ((packet.mark & self.mark_mask) ^ self.mark) as u64
            | ((kind & self.kind_mask) ^ self.kind) as u64
            | outside(flow.source_port, self.source_ports)
            | outside(flow.destination_port, self.destination_ports);
        differs == 0
    }
}

/// Not 0 where an address differs in bits that count.
#[inline(always)]
const fn differs(address: [u64; 2], wanted: [u64; 2], mask: [u64; 2]) -> u64 {
    ((address[0] & mask[0]) ^ wanted[0]) | ((address[1] & mask[1]) ^ wanted[1])
}

/// Not 0 where a port is outside of a range: then one of the differences is below 0.
#[inline(always)]
const fn outside(port: u32, [first, last]: [u32; 2]) -> u64 {
    ((port as u64).wrapping_sub(first as u64) | (last as u64).wrapping_sub(port as u64)) >> 63
}

/// The number of the first of a bond's `classes` whose rule takes a packet; `rule` gives each, none
/// behind the last.
#[inline(always)]
pub fn classify<'a>(
    packet: &Subject,
    classes: u32,
    mut rule: impl FnMut(u32) -> Option<&'a Rule>,
) -> Option<u32> {
    for class in 0..MAX_BOND_CLASSES {
        if class >= classes {
            return None;
        }
        if rule(class)?.takes(packet) {
            return Some(class);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::flow::words;

    /// A rule as people think of it.
    #[derive(Clone, Debug, Default)]
    struct Model {
        source: Option<(Ipv6Addr, u8)>,
        destination: Option<(Ipv6Addr, u8)>,
        dscps: Option<Vec<u8>>,
        mark: Option<(u32, u32)>,
        version: Option<u8>,
        protocol: Option<u8>,
        source_ports: Option<(u16, u16)>,
        destination_ports: Option<(u16, u16)>,
    }

    /// A packet as people think of it.
    #[derive(Clone, Debug)]
    struct Packet {
        source: Ipv6Addr,
        destination: Ipv6Addr,
        version: u8,
        protocol: u8,
        ports: Option<(u16, u16)>,
        tos: u8,
        mark: u32,
    }

    impl Packet {
        fn subject(&self) -> Subject {
            let flow = Flow {
                source: words(self.source.octets()),
                destination: words(self.destination.octets()),
                source_port: self.ports.map_or(NO_PORT, |(port, _)| port.into()),
                destination_port: self.ports.map_or(NO_PORT, |(_, port)| port.into()),
                version: self.version,
                protocol: self.protocol,
            };
            Subject::new(flow, self.tos, self.mark)
        }
    }

    impl Model {
        fn takes(&self, packet: &Packet) -> bool {
            let within = |prefix: Option<(Ipv6Addr, u8)>, address: Ipv6Addr| {
                prefix.is_none_or(|(prefix, length)| {
                    (0..length).all(|bit| {
                        let bit = |address: Ipv6Addr| address.to_bits() >> (127 - bit) & 1;
                        bit(prefix) == bit(address)
                    })
                })
            };
            let ports = |range: Option<(u16, u16)>, port: Option<u16>| {
                range.is_none_or(|(first, last)| {
                    port.is_some_and(|port| (first..=last).contains(&port))
                })
            };
            within(self.source, packet.source)
                && within(self.destination, packet.destination)
                && self
                    .dscps
                    .as_ref()
                    .is_none_or(|dscps| packet.version != 0 && dscps.contains(&(packet.tos >> 2)))
                && self
                    .mark
                    .is_none_or(|(mark, mask)| packet.mark & mask == mark & mask)
                && self.version.is_none_or(|version| version == packet.version)
                && self
                    .protocol
                    .is_none_or(|protocol| protocol == packet.protocol)
                && ports(self.source_ports, packet.ports.map(|(port, _)| port))
                && ports(self.destination_ports, packet.ports.map(|(_, port)| port))
        }

        fn rule(&self) -> Rule {
            let mut rule = Rule::ANY;
            let prefix = |(address, length): (Ipv6Addr, u8)| {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                let of = |bits: u128| words(Ipv6Addr::from_bits(bits).octets());
                (of(address.to_bits() & mask), of(mask))
            };
            if let Some(source) = self.source {
                (rule.source, rule.source_mask) = prefix(source);
            }
            if let Some(destination) = self.destination {
                (rule.destination, rule.destination_mask) = prefix(destination);
            }
            if let Some(dscps) = &self.dscps {
                rule.other_dscps = !dscps.iter().fold(0, |bits, dscp| bits | 1 << dscp);
            }
            if let Some((mark, mask)) = self.mark {
                (rule.mark, rule.mark_mask) = (mark & mask, mask);
            }
            if let Some(version) = self.version {
                rule.kind |= u32::from(version) << 8;
                rule.kind_mask |= 0xff00;
            }
            if let Some(protocol) = self.protocol {
                rule.kind |= u32::from(protocol);
                rule.kind_mask |= 0xff;
            }
            if let Some((first, last)) = self.source_ports {
                rule.source_ports = [first.into(), last.into()];
            }
            if let Some((first, last)) = self.destination_ports {
                rule.destination_ports = [first.into(), last.into()];
            }
            rule
        }
    }

    /// Few values, so that rules and packets meet.
    fn address() -> impl Strategy<Value = Ipv6Addr> {
        (0..3_u128, 0..3_u128, 0..4_u128)
            .prop_map(|(high, middle, low)| Ipv6Addr::from_bits(high << 120 | middle << 64 | low))
    }

    fn port() -> impl Strategy<Value = u16> {
        prop_oneof![Just(0), Just(u16::MAX), 5000..5004_u16]
    }

    fn ports() -> impl Strategy<Value = (u16, u16)> {
        (port(), port()).prop_map(|(a, b)| (a.min(b), a.max(b)))
    }

    prop_compose! {
        fn packet()(
            source in address(),
            destination in address(),
            version in proptest::sample::select(&[0, 4, 6][..]),
            protocol in 5..8_u8,
            ports in proptest::option::of((port(), port())),
            tos: u8,
            mark in 0..8_u32,
        ) -> Packet {
            Packet { source, destination, version, protocol, ports, tos, mark }
        }
    }

    prop_compose! {
        fn model()(
            source in proptest::option::weighted(0.3, (address(), 0..=128_u8)),
            destination in proptest::option::weighted(0.3, (address(), 0..=128_u8)),
            dscps in proptest::option::weighted(0.3, proptest::collection::vec(0..64_u8, 1..40)),
            mark in proptest::option::weighted(0.3, (0..8_u32, 0..8_u32)),
            version in proptest::option::weighted(0.3, proptest::sample::select(&[4, 6][..])),
            protocol in proptest::option::weighted(0.3, 5..8_u8),
            source_ports in proptest::option::weighted(0.3, ports()),
            destination_ports in proptest::option::weighted(0.3, ports()),
        ) -> Model {
            Model {
                source, destination, dscps, mark, version, protocol, source_ports, destination_ports,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_first_rule_that_matches(
            models in proptest::collection::vec(model(), 0..=16),
            packet in packet(),
        ) {
            let rules: Vec<Rule> = models.iter().map(Model::rule).collect();
            let want = models.iter().position(|model| model.takes(&packet));
            let got = classify(&packet.subject(), rules.len() as u32, |class| {
                rules.get(class as usize)
            });
            prop_assert_eq!(got, want.map(|class| class as u32));
        }

        #[test]
        fn any_takes_all(packet in packet()) {
            prop_assert!(Rule::ANY.takes(&packet.subject()));
            prop_assert!(Model::default().rule() == Rule::ANY);
        }
    }
}
