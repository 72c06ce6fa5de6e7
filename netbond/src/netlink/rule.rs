//! The policy rules that choose a routing table (ip-rule(8)): struct fib_rule_hdr (linux/fib_rules.h).

use std::io;

use super::socket::{RequestSocket, attributes, u32_at};

/// Bytes of struct fib_rule_hdr: family, destination length, source length, TOS, table, reserved (2),
/// action (1 each), flags (4).
const FIB_RULE_HDR: usize = 12;

const FR_ACT_TO_TBL: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FLOW: u16 = 11;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;

/// A rule that sends packets to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// AF_INET or AF_INET6.
    pub family: u8,
    /// Rules are asked in this order.
    pub priority: u32,
    /// The firewall mark that it looks at.
    pub mark: Option<u32>,
    /// Whether it takes what does not match (`not`).
    pub inverted: bool,
    /// Whether it looks at more than the mark, such as addresses, devices or users, or at some of the mark's
    /// bits only.
    pub selective: bool,
    pub table: u32,
}

/// All rules of both families, in the order in which each family's are asked.
///
/// # Errors
/// The kernel refuses a socket or a dump.
pub fn rules() -> io::Result<Vec<Rule>> {
    let mut socket = RequestSocket::open()?;
    let mut rules = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut fixed = [0; FIB_RULE_HDR];
        fixed[0] = family as u8;
        let bodies = match socket.dump(libc::RTM_GETRULE, &fixed) {
            // A kernel without policy routing, or without this family, has one table.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
                ) =>
            {
                continue;
            }
            bodies => bodies?,
        };
        rules.extend(bodies.iter().filter_map(|body| decode(body)));
    }
    Ok(rules)
}

/// Reads an RTM_NEWRULE; `None` where it sends packets to no table.
#[must_use]
pub fn decode(body: &[u8]) -> Option<Rule> {
    if *body.get(7)? != FR_ACT_TO_TBL {
        return None;
    }
    let mut rule = Rule {
        family: *body.first()?,
        priority: 0,
        mark: None,
        inverted: u32_at(body, 8)? & FIB_RULE_INVERT != 0,
        // Prefix lengths of destination and source, TOS.
        selective: body.get(1..4)?.iter().any(|&value| value != 0),
        table: u32::from(*body.get(4)?),
    };
    for (attribute, value) in attributes(body.get(FIB_RULE_HDR..)?) {
        match attribute {
            FRA_PRIORITY => rule.priority = u32_at(value, 0)?,
            FRA_FWMARK => rule.mark = u32_at(value, 0),
            FRA_TABLE => rule.table = u32_at(value, 0)?,
            FRA_FWMASK => rule.selective |= u32_at(value, 0)? != u32::MAX,
            // They say what becomes of a packet, and who made the rule.
            FRA_GOTO
            | FRA_FLOW
            | FRA_SUPPRESS_IFGROUP
            | FRA_SUPPRESS_PREFIXLEN
            | FRA_PAD
            | FRA_PROTOCOL => {}
            // The kernel sends the others only where they select, and newer ones may come.
            _ => rule.selective = true,
        }
    }
    Some(rule)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;
    use crate::netlink::link::tests::body;
    use crate::netlink::netns::{in_netns, ip};

    /// `32765: not from all fwmark 0xca6c lookup 51820`, as wg-quick makes it.
    fn wg_quick() -> Vec<u8> {
        let mut fixed = vec![libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL];
        fixed.extend(FIB_RULE_INVERT.to_ne_bytes());
        body(
            &fixed,
            &[
                (FRA_TABLE, &51820_u32.to_ne_bytes()),
                (FRA_PRIORITY, &32765_u32.to_ne_bytes()),
                (FRA_FWMARK, &51820_u32.to_ne_bytes()),
                (FRA_FWMASK, &u32::MAX.to_ne_bytes()),
                (FRA_SUPPRESS_PREFIXLEN, &u32::MAX.to_ne_bytes()),
                (FRA_PROTOCOL, &[3]),
            ],
        )
    }

    fn expected() -> Rule {
        Rule {
            family: libc::AF_INET as u8,
            priority: 32765,
            mark: Some(51820),
            inverted: true,
            selective: false,
            table: 51820,
        }
    }

    #[test]
    fn what_else_a_rule_looks_at_is_seen() {
        const FRA_IIFNAME: u16 = 3;
        const FRA_UID_RANGE: u16 = 20;
        let selective = |fixed: [u8; FIB_RULE_HDR], attributes: &[(u16, &[u8])]| {
            decode(&body(&fixed, attributes)).unwrap().selective
        };
        let mut fixed = [0; FIB_RULE_HDR];
        fixed[7] = FR_ACT_TO_TBL;
        assert!(!selective(fixed, &[(FRA_FWMASK, &u32::MAX.to_ne_bytes())]));
        let others: [(u16, &[u8]); 3] = [
            (FRA_IIFNAME, &b"eth0\0"[..]),
            (FRA_UID_RANGE, &[0; 8]),
            (FRA_FWMASK, &0xff_u32.to_ne_bytes()),
        ];
        for attribute in others {
            assert!(selective(fixed, &[attribute]), "{attribute:?}");
        }
        fixed[2] = 24;
        assert!(selective(fixed, &[]));
    }

    #[test]
    fn a_rule_is_read() {
        assert_eq!(decode(&wg_quick()), Some(expected()));
        let mut blackhole = wg_quick();
        blackhole[7] = 6;
        assert_eq!(decode(&blackhole), None);
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn the_kernels_rules_are_read() {
        in_netns(async || {
            ip("rule add not fwmark 51820 table 51820");
            ip("rule add not from 10.0.0.0/8 fwmark 7 table 7");
            ip("rule add not iif lo fwmark 8 table 8");
            ip("rule add not fwmark 9/0xff table 9");
            let rules = rules().unwrap();
            assert!(rules.contains(&expected()), "{rules:#?}");
            let main = |rule: &&Rule| rule.table == u32::from(libc::RT_TABLE_MAIN);
            assert_eq!(rules.iter().filter(main).count(), 2, "{rules:#?}");
            assert!(rules.iter().filter(main).all(|rule| !rule.selective));
            for table in [7, 8, 9] {
                let rule = rules.iter().find(|rule| rule.table == table).unwrap();
                assert!(rule.selective, "{rule:#?}");
            }
        });
    }

    proptest! {
        #[test]
        fn mutated_messages_never_panic(bytes in mutated::bytes(wg_quick())) {
            let _ = decode(&bytes);
        }
    }
}
