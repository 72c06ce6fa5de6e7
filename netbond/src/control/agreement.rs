//! What both ends of a bond must have alike, and what to say where they have not.

use netbond_common::{
    abi::{BOND_AGREED, BOND_ETHERNET, BOND_IN_ORDER, BOND_NUMBERED},
    names::Encap,
};

use crate::config::Bond;

/// A bond's `BOND_*` flags: those of [`BOND_AGREED`], and what is this end's own matter.
#[must_use]
pub fn options(bond: &Bond) -> u8 {
    let encap = match bond.encap {
        Encap::Gre => 0,
        Encap::Gretap => BOND_ETHERNET,
    };
    let numbered = if bond.is_numbered() { BOND_NUMBERED } else { 0 };
    encap | numbered | bond.in_order.map_or(0, |_| BOND_IN_ORDER)
}

/// Those in which the peer differs. What this build does not know is not its matter.
#[must_use]
pub fn difference(here: u8, peer: u32) -> u8 {
    (u32::from(here) ^ peer) as u8 & BOND_AGREED
}

/// What is wrong, and what to do: a sentence for each difference of a peer with these options.
#[must_use]
pub fn complaints(difference: u8, peer: u32) -> Vec<&'static str> {
    let all = [
        (
            BOND_ETHERNET,
            "the peer's encap is gretap: set the same at both ends",
            "the peer's encap is gre: set the same at both ends",
        ),
        (
            BOND_NUMBERED,
            "the peer numbers its packets: set the same mode, or in_order = true, at both ends",
            "the peer does not number its packets: set the same mode, or in_order = true, at both ends",
        ),
    ];
    all.into_iter()
        .filter(|(option, ..)| difference & option != 0)
        .map(|(option, with, without)| {
            if peer & u32::from(option) != 0 {
                with
            } else {
                without
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_difference_has_its_complaint() {
        let say = |here: u8, peer: u32| complaints(difference(here, peer), peer);
        assert!(say(0, 0).is_empty());
        assert!(say(BOND_AGREED, BOND_AGREED.into()).is_empty());
        let order = "the peer does not number its packets: set the same mode, or in_order = true, at both ends";
        assert_eq!(say(BOND_NUMBERED, 0), [order]);
        // What an end makes of numbers is its own matter.
        assert!(say(BOND_NUMBERED | BOND_IN_ORDER, BOND_NUMBERED.into()).is_empty());
        let both = say(BOND_NUMBERED, BOND_ETHERNET.into());
        assert_eq!(both.len(), 2);
        assert!(both[0].contains("gretap") && both[1] == order);
        assert!(say(0, BOND_NUMBERED.into())[0].contains("numbers its packets"));
        // A later version's.
        assert!(say(0, 1 << 31 | 1 << 8).is_empty());
    }

    #[test]
    fn every_option_has_a_complaint() {
        assert_eq!(
            complaints(BOND_AGREED, 0).len() as u32,
            BOND_AGREED.count_ones()
        );
    }
}
