//! What becomes of a packet that takes no path: one list for verdict, counter and label.

/// What the kernel is told to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Left to the next program or filter and the kernel, untouched (TC_ACT_UNSPEC).
    Pass,
    /// Ended here (TC_ACT_SHOT).
    Drop,
}

macro_rules! fates {
    ($($(#[$doc:meta])* $variant:ident = $label:literal, $verdict:ident, $text:literal;)*) => {
        /// Why a packet was not carried. Every packet is counted once: by its path where it was
        /// carried, else under one of these.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Fate { $($(#[$doc])* $variant),* }

        impl Fate {
            /// Every fate, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// What becomes of the packet.
            #[inline(always)]
            #[must_use]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict),* }
            }

            /// Its name in tables, JSON and metrics.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),* }
            }

            /// What it means, for people.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

fates! {
    /// Neither IPv4 nor IPv6: `gre` carries nothing else.
    TxNotIp = "tx_not_ip", Drop, "sent into the bond, but neither IPv4 nor IPv6";
    /// Shorter than its IP header, or of another version than its EtherType says.
    TxMalformed = "tx_malformed", Drop, "sent into the bond, but not a well-formed IP packet";
    /// More VLAN tags than a frame in `gretap` may have.
    TxTags = "tx_tags", Drop, "sent into the bond with more than two VLAN tags";
    /// No path has a route and is not taken out.
    TxNoPath = "tx_no_path", Drop, "sent into the bond while no path was up";
    /// The kernel refused to make room for the outer headers.
    TxNoRoom = "tx_no_room", Drop, "sent into the bond, but too large, or a super-packet of another tunnel or of no IP, to encapsulate; or no driver took it";
    /// The device runs the program and is no bond.
    TxNoBond = "tx_no_bond", Drop, "sent into a device that is a bond no longer";
    /// Not GRE, or behind IPv6 extension headers, or not between the addresses of a path, or with
    /// another key.
    RxForeign = "rx_foreign", Pass, "received on a path's device, but on no path: left to the kernel";
    /// A fragment of a GRE packet: only the kernel can put it together.
    RxFragment = "rx_fragment", Pass, "fragments of GRE packets: left to the kernel";
    /// GRE with a checksum, routing, or a version other than 0.
    RxGreFlags = "rx_gre_flags", Pass, "GRE with flags that netbond does not speak: left to the kernel";
    /// On a path, but GRE carries something else than the bond does.
    RxProtocol = "rx_protocol", Pass, "on a path, but not of the bond's encap: left to the kernel";
    /// On a path, but the inner packet is cut short or not what the GRE header says.
    RxMalformed = "rx_malformed", Drop, "on a path, but the inner IP packet is malformed, or the frame cut short";
    /// Congestion marked on a packet whose transport does not understand it (RFC 6040, 4.2).
    RxEcn = "rx_ecn", Drop, "on a path, marked CE outside and not ECN-capable inside (RFC 6040)";
    /// A probe: it did its work.
    RxProbe = "rx_probe", Drop, "probes received, and answered or taken in";
    /// A request that returned no nonce of ours: of a peer that has just started, or of a stranger.
    RxProbeStranger = "rx_probe_stranger", Drop, "probes of a peer that just started, or of a stranger: answered, few at a time, and proving nothing";
    /// Not a probe that this version understands.
    RxProbeMalformed = "rx_probe_malformed", Drop, "on a path, of a probe's type, but malformed or of another version";
    /// An answer to no request that waits for one: late or forged.
    RxProbeCookie = "rx_probe_cookie", Drop, "answers to probes that were not sent, or long ago";
    /// A probe that was here before.
    RxProbeReplayed = "rx_probe_replay", Drop, "probes received a second time: doubled or replayed";
    /// A request of our own that came back.
    RxProbeReflected = "rx_probe_mirror", Drop, "our own probes, reflected to us";
    /// More requests than a path answers.
    RxProbeRate = "rx_probe_rate", Drop, "probes left without an answer: more than a path answers";
    /// The kernel refused to remove the outer headers.
    RxNoDecap = "rx_no_decap", Drop, "on a path, but the kernel refused to decapsulate it, or no device took it";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_distinct_and_counters_in_order() {
        for (i, a) in Fate::ALL.iter().enumerate() {
            assert_eq!(*a as usize, i);
            for b in &Fate::ALL[i + 1..] {
                assert_ne!(a.label(), b.label());
            }
        }
    }
}
