//! Names of routing protocols.

/// Names of rtm_protocol numbers, as iproute2 has them in its rt_protos. That file itself is not
/// read: a router may lack it, and its editor may not know that netbond's meaning hangs on it.
pub const ROUTE_PROTOCOLS: &[(&str, u8)] = &[
    ("unspec", 0),
    ("redirect", 1),
    ("kernel", 2),
    ("boot", 3),
    ("static", 4),
    ("gated", 8),
    ("ra", 9),
    ("mrt", 10),
    ("zebra", 11),
    ("bird", 12),
    ("dnrouted", 13),
    ("xorp", 14),
    ("ntk", 15),
    ("dhcp", 16),
    ("keepalived", 18),
    ("babel", 42),
    ("openr", 99),
    ("bgp", 186),
    ("isis", 187),
    ("ospf", 188),
    ("rip", 189),
    ("eigrp", 192),
];

/// The number behind a name.
pub(super) fn number(name: &str) -> Option<u8> {
    let (_, number) = ROUTE_PROTOCOLS.iter().find(|(known, _)| *known == name)?;
    Some(*number)
}
