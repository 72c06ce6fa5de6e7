//! Modes, and classes of traffic with theirs: `[[bond.class]]`.

use netbond_common::{
    abi::MAX_BOND_CLASSES,
    class::Rule,
    flow::{has_ports, words},
    ipv4,
};
use std::collections::HashMap;
use std::net::IpAddr;

use toml::de::DeTable;

use super::parse::{first_use, integer, network, short_name};
use super::reader::{Reported, Section, TextOrInteger, Wrong, closest};
use super::{Class, Mode, Prefix};

/// Names of DSCPs as they are registered (RFC 2474, 2597, 3246, 5865, 8622).
const DSCPS: &[(&str, u8)] = &[
    ("cs0", 0),
    ("le", 1),
    ("cs1", 8),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("cs2", 16),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("cs3", 24),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("cs4", 32),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("cs5", 40),
    ("va", 44),
    ("ef", 46),
    ("cs6", 48),
    ("cs7", 56),
];

/// Names of IP protocols, as /etc/protocols has them; that file itself is not read, as with routing
/// protocols.
const PROTOCOLS: &[(&str, u8)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", 58),
    ("ospf", 89),
    ("vrrp", 112),
    ("sctp", 132),
    ("udplite", 136),
];

/// The keys of which a class must have one at least.
const CONDITIONS: &str =
    "dscp, mark, protocol, source, destination, source_port or destination_port";

/// What each mode is called, to be written.
pub(super) fn modes() -> String {
    let labels: Vec<String> = Mode::ALL
        .iter()
        .map(|mode| format!("\"{}\"", mode.label()))
        .collect();
    match labels.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// A mode by its name.
pub(super) fn mode(name: &str) -> Result<Mode, Wrong> {
    let known = Mode::ALL.iter().find(|known| known.label() == name);
    known.copied().ok_or_else(|| Wrong::new("does not exist"))
}

/// The classes of a bond.
pub(super) fn classes(bond: &mut Section<'_>) -> Vec<Class> {
    let tables: Vec<(usize, &DeTable<'_>)> = bond
        .list("class", "[[bond.class]] before the keys of each class", Ok)
        .unwrap_or_default();
    if let Some((line, _)) = tables.get(MAX_BOND_CLASSES as usize) {
        let count = tables.len();
        bond.report(
            *line,
            format_args!("there are {count} classes: keep at most {MAX_BOND_CLASSES}"),
        );
    }
    let mut names = HashMap::new();
    let mut classes: Vec<Class> = Vec::new();
    for (line, table) in tables {
        let section = bond.inner("class", line, table);
        if let Ok(class) = class_table(section, &mut names, &classes) {
            classes.push(class);
        }
    }
    classes
}

fn class_table(
    mut class: Section<'_>,
    names: &mut HashMap<String, usize>,
    before: &[Class],
) -> Result<Class, Reported> {
    let line = class.line();
    let name = short_name(&mut class, "voice");
    if let Ok(name) = &name {
        let line = class.line_of("name");
        if let Some(first) = first_use(names, name.clone(), line) {
            class.report(
                line,
                format_args!("name \"{name}\" is used on line {first} already: choose another"),
            );
        }
    }
    let mode = class.required("mode", &modes(), mode);
    let rule = rule(&mut class);
    if let Ok((rule, text)) = &rule {
        if text.is_empty() {
            class.report(
                line,
                format_args!("a class says which packets it takes: add {CONDITIONS}"),
            );
        } else if let Some(same) = before.iter().find(|class| class.rule == *rule) {
            class.report(
                line,
                format_args!(
                    "class \"{}\" on line {} takes the same packets, before this one does: remove one",
                    same.name, same.line
                ),
            );
        }
    }
    class.finish();
    let (rule, text) = rule?;
    Ok(Class {
        name: name?,
        mode: mode?,
        rule,
        text,
        line,
    })
}

/// Which packets a class takes, and the same in words.
fn rule(class: &mut Section<'_>) -> Result<(Rule, String), Reported> {
    let expected = "a number from 0 to 63 or a name such as \"ef\", or a list of them";
    let dscps = class.one_or_list("dscp", expected, dscp);
    let expected = "a number, or \"VALUE/MASK\" such as \"0x10/0xff\"";
    let mark = class.optional("mark", expected, mark);
    let expected = "\"tcp\", \"udp\", another name, or a number from 1 to 255";
    let protocol = class.optional("protocol", expected, protocol);
    let expected = "a prefix such as \"10.1.0.0/16\"";
    let source = class.optional("source", expected, network);
    let destination = class.optional("destination", expected, network);
    let expected = "a number from 0 to 65535, or \"FIRST-LAST\" such as \"5000-5999\"";
    let source_port = class.optional("source_port", expected, ports);
    let destination_port = class.optional("destination_port", expected, ports);

    let (dscps, mark, protocol) = (dscps?, mark?, protocol?);
    let (source, destination) = (source?, destination?);
    let (source_port, destination_port) = (source_port?, destination_port?);

    let mut rule = Rule::ANY;
    let mut text = Vec::new();
    if let Some(dscps) = dscps {
        rule.other_dscps = !dscps.iter().fold(0, |bits, dscp| bits | 1 << dscp);
        text.push(format!("dscp {}", dscp_names(&dscps)));
    }
    if let Some((mark, mask)) = mark {
        (rule.mark, rule.mark_mask) = (mark, mask);
        text.push(if mask == u32::MAX {
            format!("mark {mark:#x}")
        } else {
            format!("mark {mark:#x}/{mask:#x}")
        });
    }
    if let Some(protocol) = protocol {
        rule.kind |= u32::from(protocol);
        rule.kind_mask |= 0xff;
        text.push(protocol_name(protocol));
    }
    if let Some(prefix) = source {
        (rule.source, rule.source_mask) = wanted(prefix);
        text.push(format!("from {prefix}"));
    }
    if let Some(prefix) = destination {
        (rule.destination, rule.destination_mask) = wanted(prefix);
        text.push(format!("to {prefix}"));
    }
    if let Some(ports) = source_port {
        rule.source_ports = ports;
        text.push(format!("source port {}", port_text(ports)));
    }
    if let Some(ports) = destination_port {
        rule.destination_ports = ports;
        text.push(format!("destination port {}", port_text(ports)));
    }
    let family = |prefix: Prefix| if prefix.address.is_ipv4() { 4 } else { 6 };
    if let Some(version) = source.or(destination).map(family) {
        rule.kind |= version << 8;
        rule.kind_mask |= 0xff00;
    }
    if let (Some(source), Some(destination)) = (source, destination)
        && family(source) != family(destination)
    {
        class.report(
            class.line_of("destination"),
            format_args!(
                "source {source} and destination {destination} are of different families: no packet has \
                 both, so write two of one family"
            ),
        );
    }
    if let Some(protocol) = protocol.filter(|&protocol| !has_ports(protocol)) {
        for (key, given) in [
            ("source_port", source_port.is_some()),
            ("destination_port", destination_port.is_some()),
        ] {
            if given {
                class.report(
                    class.line_of(key),
                    format_args!(
                        "{key}: {} has no ports: remove it, or write protocol = \"tcp\" or \"udp\"",
                        protocol_name(protocol)
                    ),
                );
            }
        }
    }
    Ok((rule, text.join(", ")))
}

fn dscp(value: TextOrInteger<'_>) -> Result<u8, Wrong> {
    named(value, DSCPS, 0, 63, "is no known DSCP")
}

fn protocol(value: TextOrInteger<'_>) -> Result<u8, Wrong> {
    named(value, PROTOCOLS, 1, u8::MAX, "is no known protocol")
}

/// A number, or one by its name.
fn named(
    value: TextOrInteger<'_>,
    names: &[(&str, u8)],
    min: u8,
    max: u8,
    unknown: &str,
) -> Result<u8, Wrong> {
    match value {
        TextOrInteger::Integer(number) => u8::try_from(number)
            .ok()
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| Wrong::new("is out of range")),
        TextOrInteger::Text(name) => {
            let known = names.iter().find(|(known, _)| *known == name);
            known.map(|(_, number)| *number).ok_or_else(|| {
                let wrong = Wrong::new(unknown);
                match closest(name, names.iter().map(|(known, _)| *known)) {
                    Some(known) => {
                        wrong.write(format!("\"{known}\", if that is meant, or a number"))
                    }
                    None => wrong,
                }
            })
        }
    }
}

fn dscp_names(dscps: &[u8]) -> String {
    let name = |dscp: &u8| {
        let known = DSCPS.iter().find(|(_, number)| number == dscp);
        known.map_or_else(|| dscp.to_string(), |(name, _)| (*name).to_owned())
    };
    dscps.iter().map(name).collect::<Vec<_>>().join("/")
}

fn protocol_name(protocol: u8) -> String {
    let known = PROTOCOLS.iter().find(|(_, number)| *number == protocol);
    known.map_or_else(
        || format!("protocol {protocol}"),
        |(name, _)| (*name).to_owned(),
    )
}

/// A mark and the bits of it that count.
fn mark(value: TextOrInteger<'_>) -> Result<(u32, u32), Wrong> {
    let text = match value {
        TextOrInteger::Integer(mark) => return Ok((integer(mark, 0, u32::MAX)?, u32::MAX)),
        TextOrInteger::Text(text) => text,
    };
    let number = |text: &str| {
        let digits = text.strip_prefix("0x");
        let (digits, radix) = digits.map_or((text, 10), |digits| (digits, 16));
        // from_str_radix would take a plus sign.
        let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(digits)
            .filter(|_| plain)
            .and_then(|digits| u32::from_str_radix(digits, radix).ok())
            .ok_or_else(|| Wrong::new("is no mark of 32 bits"))
    };
    let (mark, mask) = match text.split_once('/') {
        Some((mark, mask)) => (number(mark)?, number(mask)?),
        None => (number(text)?, u32::MAX),
    };
    if mask == 0 {
        Err(Wrong::new("has a mask that leaves nothing"))
    } else if mark & !mask != 0 {
        let fixed = format!("\"{:#x}/{mask:#x}\"", mark & mask);
        Err(Wrong::new("has bits outside of its mask").write(fixed))
    } else {
        Ok((mark, mask))
    }
}

/// First and last of the ports.
fn ports(value: TextOrInteger<'_>) -> Result<[u32; 2], Wrong> {
    let max = u32::from(u16::MAX);
    let text = match value {
        TextOrInteger::Integer(port) => {
            let port = integer(port, 0, max)?;
            return Ok([port, port]);
        }
        TextOrInteger::Text(text) => text,
    };
    let number = |text: &str| {
        let plain = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = Some(text).filter(|_| plain)?.parse::<u32>().ok()?;
        Some(number).filter(|&number| number <= max)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok([first, last]),
        (Some(first), Some(last)) => {
            Err(Wrong::new("is the wrong way round").write(format!("\"{last}-{first}\"")))
        }
        _ => Err(Wrong::new("is no port and no range of ports")),
    }
}

fn port_text([first, last]: [u32; 2]) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    }
}

/// An address as rules have it, and the bits that count.
fn wanted(prefix: Prefix) -> ([u64; 2], [u64; 2]) {
    match prefix.address {
        IpAddr::V4(address) => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(prefix.length))
                .unwrap_or(0);
            let mut mask = ipv4::mapped(mask.to_be_bytes());
            mask[..12].fill(0xff);
            (words(ipv4::mapped(address.octets())), words(mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(prefix.length))
                .unwrap_or(0);
            (words(address.octets()), words(mask.to_be_bytes()))
        }
    }
}
