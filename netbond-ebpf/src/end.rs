//! How the work on a packet ends when it takes no path.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use netbond_common::{
    abi::NO_BOND,
    fate::{Fate, Verdict},
};

use crate::{maps, packet::Packet};

/// A packet's end: what became of it, and in which bond.
pub(crate) struct End {
    bond: u32,
    fate: Fate,
}

impl End {
    /// An end in a known bond.
    #[inline(always)]
    pub(crate) const fn new(bond: u32, fate: Fate) -> Self {
        Self { bond, fate }
    }

    /// An end before a bond was found.
    #[inline(always)]
    pub(crate) const fn outside(fate: Fate) -> Self {
        Self {
            bond: NO_BOND,
            fate,
        }
    }

    /// Counts the packet and returns the kernel's action.
    #[inline(always)]
    pub(crate) fn settle(self, packet: &Packet) -> i32 {
        maps::count_fate(self.bond, self.fate, packet.wire_packets());
        match self.fate.verdict() {
            // Not TC_ACT_OK, which would end the chain of programs and filters on this device.
            Verdict::Pass => TC_ACT_UNSPEC,
            Verdict::Drop => TC_ACT_SHOT,
        }
    }
}
