//! The format of the configuration file: its tables, their keys, and what each may say.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use netbond_common::abi::{MAX_BOND_PATHS, MAX_BONDS, MAX_LANS, NAME_LEN};
use toml::de::DeTable;

use super::reader::{Document, Reported, Section, TextOrInteger, Wrong, closest, printable};
use super::{
    Bfd, Bird, Bond, Class, Config, DetourPolicy, Encap, Frr, HoldDown, Hops, InOrder, Lan, Lossy,
    Metrics, Mode, ParsePrefixError, Path, PathMtu, Policies, Prefix, Probing, Problem,
    ROUTE_PROTOCOLS, Remedy, Slow, Ttl, Weights, XdpMode, class, peer_device, protocols,
};

const DEFAULT_ROUTE_PROTOCOLS: [&str; 3] = ["bird", "ospf", "zebra"];
const DEFAULT_BIRD_SOCKET: &str = "/run/bird/bird.ctl";
const DEFAULT_VTYSH: &str = "vtysh";
const DEFAULT_METRICS_PORT: u16 = 9469;

/// The kernel's IFNAMSIZ, without the zero at the end.
const MAX_DEVICE_NAME: usize = 15;
/// One byte is left for what [`peer_device`] adds.
const MAX_BOND_NAME: usize = MAX_DEVICE_NAME - 1;
const MAX_PATH_NAME: usize = NAME_LEN - 1;
const MAX_WEIGHT: u32 = 64;
/// ms.
const MAX_HOLD: u32 = (netbond_common::sequence::LONGEST_HOLD / 1_000_000) as u32;
/// The longest hold in mode adaptive where none is configured, ms: a full queue of a slow path, for as long
/// as its share is still too large.
const ADAPTIVE_HOLD: u32 = 250;
const MAX_PRIORITY: u32 = 255;
/// Probes further apart than this do not measure what a path carries, ms.
const MAX_MEASURING: u32 = 100;
/// Mbit/s.
const MAX_RATE_CAP: u32 = 1_000_000;
/// IPv6's minimum: below it, the kernel takes IPv6 off the device.
const MIN_MTU: u32 = 1280;
const MAX_MTU: u32 = 65535;
/// Shorter ones would ask for more answers than a path gives (`netbond_common::probe::RATE_LIMIT`).
const MIN_INTERVAL: u32 = 5;
/// What is lost, percent, before a path is lossy, unless the user says otherwise.
const LOSSY_ABOVE: u32 = 20;

/// The toml crate's word for a key that a table has twice.
const DUPLICATE_KEY: &str = "duplicate key";

/// Lines reported as no TOML at the most, one error each: what follows a bracket or quote that is
/// never closed is misread line by line.
const MAX_UNREADABLE: usize = 5;

/// Reads the text of a whole file.
pub(super) fn config(text: &str) -> Result<Config, Vec<Problem>> {
    let document = Document::new(text);
    let (root, mut errors) = DeTable::parse_recoverable(text);
    errors.sort_by_key(|error| error.span().map(|span| span.start));
    let mut unreadable = Vec::new();
    for error in &errors {
        let span = error.span().unwrap_or_default();
        let line = document.line(span.start);
        if error.message() == DUPLICATE_KEY {
            let key = document.source(span);
            document.report(
                line,
                format!("duplicate key {key}: the same table has it above, remove one"),
            );
        } else if unreadable.last() != Some(&line) && unreadable.len() < MAX_UNREADABLE {
            unreadable.push(line);
            document.report(line, not_toml(error.message(), document.line_text(line)));
        }
    }
    let config = if unreadable.is_empty() {
        Some(root_table(Section::root(&document, root.get_ref())))
    } else {
        None
    };
    let problems = document.into_problems();
    config.filter(|_| problems.is_empty()).ok_or(problems)
}

fn not_toml(message: &str, line: &str) -> String {
    // What the parser takes an unquoted word for depends on its first letter.
    let unquoted = [
        "invalid float",
        "invalid boolean",
        "invalid integer",
        "invalid date-time",
    ]
    .iter()
    .any(|guess| message.starts_with(guess));
    let hint = if unquoted { " (text needs quotes)" } else { "" };
    format!("not TOML: {message}{hint}: {}", printable(line.trim()))
}

/// What must be unique, each with the line of its first use.
#[derive(Default)]
struct Seen {
    /// Bond devices and the other ends of their veth pairs.
    devices: HashMap<String, usize>,
    /// With the bond's line where other bonds may have the same address.
    addresses: HashMap<(Option<usize>, IpAddr), usize>,
    paths: HashMap<String, usize>,
    tunnels: HashMap<(IpAddr, IpAddr, Option<u32>), usize>,
    /// Between which addresses there are BFD sessions.
    bfd: HashMap<(IpAddr, IpAddr), usize>,
}

/// Enters `key`; where it is there already, returns the line of its first use.
pub(super) fn first_use<K: Eq + Hash>(
    seen: &mut HashMap<K, usize>,
    key: K,
    line: usize,
) -> Option<usize> {
    match seen.entry(key) {
        Entry::Occupied(first) => Some(*first.get()),
        Entry::Vacant(vacant) => {
            vacant.insert(line);
            None
        }
    }
}

fn root_table(mut root: Section<'_>) -> Config {
    let route_protocols = route_protocols(&mut root);
    let bird = optional_table(&mut root, "bird", "a [bird] table");
    let frr = optional_table(&mut root, "frr", "a [frr] table");
    let asks_ospf = bird.is_some() || frr.is_some();
    let bird = bird.and_then(|table| bird_table(table).ok());
    let frr = frr.map(frr_table);
    let metrics = optional_table(&mut root, "metrics", "a [metrics] table");
    let metrics = metrics.and_then(|table| metrics_table(table).ok());
    let lans = lans(&mut root);
    let bonds = bonds(&mut root, asks_ospf);
    root.finish();
    Config {
        route_protocols,
        bird,
        frr,
        metrics,
        lans,
        bonds,
    }
}

fn optional_table<'v>(
    root: &mut Section<'v>,
    key: &'static str,
    expected: &str,
) -> Option<Section<'v>> {
    let table: &DeTable<'_> = root.optional(key, expected, Ok).ok().flatten()?;
    Some(root.inner(key, root.line_of(key), table))
}

/// rtm_protocols whose routes count as OSPF's unless the file says otherwise.
pub(crate) fn default_route_protocols() -> impl Iterator<Item = u8> {
    DEFAULT_ROUTE_PROTOCOLS
        .into_iter()
        .filter_map(protocols::number)
}

fn route_protocols(root: &mut Section<'_>) -> Vec<u8> {
    let listed = root.filled_list(
        "route_protocols",
        "names of routing protocols or their numbers, 0 to 255, such as [\"bird\", 188]",
        route_protocol,
    );
    let numbers: Vec<u8> = match listed {
        Some(listed) => listed.into_iter().map(|(_, number)| number).collect(),
        None => default_route_protocols().collect(),
    };
    // Twice the same does no harm: a name and its number, say.
    let mut once = Vec::new();
    for number in numbers {
        if !once.contains(&number) {
            once.push(number);
        }
    }
    once
}

fn route_protocol(value: TextOrInteger<'_>) -> Result<u8, Wrong> {
    match value {
        TextOrInteger::Integer(number) => {
            u8::try_from(number).map_err(|_| Wrong::new("is out of range"))
        }
        TextOrInteger::Text(name) => protocols::number(name).ok_or_else(|| {
            let wrong = Wrong::new("is no known protocol");
            match closest(name, ROUTE_PROTOCOLS.iter().map(|(known, _)| *known)) {
                Some(known) => wrong.write(format!("\"{known}\", if that is meant, or a number")),
                None => wrong,
            }
        }),
    }
}

fn bird_table(mut bird: Section<'_>) -> Result<Bird, Reported> {
    let expected =
        format!("the full path of BIRD's control socket, such as \"{DEFAULT_BIRD_SOCKET}\"");
    let socket = bird.optional("socket", &expected, |path: &str| {
        let path = PathBuf::from(path);
        if path.is_absolute() {
            Ok(path)
        } else {
            Err(Wrong::new("is not a full path"))
        }
    });
    bird.finish();
    let socket = socket?.unwrap_or_else(|| PathBuf::from(DEFAULT_BIRD_SOCKET));
    Ok(Bird { socket })
}

fn frr_table(mut frr: Section<'_>) -> Frr {
    let expected = "a command and its arguments such as [\"vtysh\"]";
    let vtysh = frr.filled_list("vtysh", expected, |word: &str| {
        if word.is_empty() {
            Err(Wrong::new("is empty"))
        } else {
            Ok(word.to_owned())
        }
    });
    frr.finish();
    let vtysh = match vtysh {
        Some(words) => words.into_iter().map(|(_, word)| word).collect(),
        None => vec![DEFAULT_VTYSH.to_owned()],
    };
    Frr { vtysh }
}

fn metrics_table(mut metrics: Section<'_>) -> Result<Metrics, Reported> {
    let line = metrics.line_of("listen");
    let expected = format!(
        "a port, 1 to 65535, which is one of the loopback address, or an address with a port such as \
         \"127.0.0.1:{DEFAULT_METRICS_PORT}\""
    );
    let listen = metrics.optional("listen", &expected, listen);
    metrics.finish();
    let default = || SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_METRICS_PORT));
    Ok(Metrics {
        listen: listen?.unwrap_or_else(default),
        line,
    })
}

fn listen(value: TextOrInteger<'_>) -> Result<SocketAddr, Wrong> {
    let address = match value {
        TextOrInteger::Integer(port) => {
            let port = u16::try_from(port).map_err(|_| Wrong::new("is out of range"))?;
            SocketAddr::from((Ipv4Addr::LOCALHOST, port))
        }
        TextOrInteger::Text(text) => text
            .parse()
            .map_err(|_| Wrong::new("is no address with a port"))?,
    };
    if address.port() == 0 {
        return Err(Wrong::new("has no port"));
    }
    Ok(address)
}

fn lans(root: &mut Section<'_>) -> Vec<Lan> {
    let tables: Vec<(usize, &DeTable<'_>)> = root
        .list("lan", "[[lan]] before the keys of each LAN's device", Ok)
        .unwrap_or_default();
    if let Some((line, _)) = tables.get(MAX_LANS as usize) {
        let count = tables.len();
        root.report(
            *line,
            format_args!("there are {count} LANs: keep at most {MAX_LANS}"),
        );
    }
    let mut seen = HashMap::new();
    let mut read = |line, table| lan_table(root.inner("lan", line, table), &mut seen).ok();
    let tables = tables.into_iter();
    tables
        .filter_map(|(line, table)| read(line, table))
        .collect()
}

fn lan_table(mut lan: Section<'_>, seen: &mut HashMap<String, usize>) -> Result<Lan, Reported> {
    let line = lan.line();
    let expected = format!("a device name of at most {MAX_DEVICE_NAME} bytes such as \"eth1\"");
    let name = lan.required("name", &expected, |name| device_name(name, MAX_DEVICE_NAME));
    let xdp = xdp(&mut lan);
    if let Ok(name) = &name {
        let line = lan.line_of("name");
        if let Some(first) = first_use(seen, name.clone(), line) {
            lan.report(
                line,
                format_args!(
                    "name \"{name}\" is that of the LAN on line {first} already: remove one"
                ),
            );
        }
    }
    lan.finish();
    Ok(Lan {
        name: name?,
        xdp: xdp?.unwrap_or(XdpMode::Auto),
        line,
    })
}

fn xdp(section: &mut Section<'_>) -> Result<Option<XdpMode>, Reported> {
    section.optional("xdp", "\"off\", \"auto\" or \"native\"", |xdp| match xdp {
        "off" => Ok(XdpMode::Off),
        "auto" => Ok(XdpMode::Auto),
        "native" => Ok(XdpMode::Native),
        _ => Err(Wrong::new("does not exist")),
    })
}

/// `asks_ospf`: whether the costs of OSPF will be known.
fn bonds(root: &mut Section<'_>, asks_ospf: bool) -> Vec<Bond> {
    let tables: Vec<(usize, &DeTable<'_>)> = root
        .list("bond", "[[bond]] before the keys of each bond", Ok)
        .unwrap_or_default();
    if let Some((line, _)) = tables.get(MAX_BONDS as usize) {
        let count = tables.len();
        root.report(
            *line,
            format_args!("there are {count} bonds: keep at most {MAX_BONDS}"),
        );
    }
    let mut seen = Seen::default();
    let mut read = |line, table| {
        let bond = root.inner("bond", line, table);
        bond_table(bond, asks_ospf, &mut seen).ok()
    };
    let tables = tables.into_iter();
    tables
        .filter_map(|(line, table)| read(line, table))
        .collect()
}

fn bond_table(mut bond: Section<'_>, asks_ospf: bool, seen: &mut Seen) -> Result<Bond, Reported> {
    let line = bond.line();
    let expected = format!("a device name of at most {MAX_BOND_NAME} bytes such as \"nb0\"");
    let name = bond.required("name", &expected, |name| device_name(name, MAX_BOND_NAME));
    if let Ok(name) = &name {
        unique_devices(&bond, name, seen);
    }

    let expected = "addresses with their prefix lengths such as [\"10.67.0.1/24\"]";
    let addresses = bond.list("address", expected, address).unwrap_or_default();
    for (at, prefix) in &addresses {
        unique_address(&bond, *at, prefix, seen);
    }

    let encap = bond.optional("encap", "\"gre\" or \"gretap\"", |encap: &str| {
        let known = Encap::ALL.iter().find(|known| known.label() == encap);
        known.copied().ok_or_else(|| Wrong::new("does not exist"))
    });
    let mode = bond.optional("mode", &class::modes(), class::mode);
    let classes = class::classes(&mut bond);
    let in_order = in_order(&mut bond, mode);
    let expected = format!("an integer from 0 to {}", u32::MAX);
    let key = bond.optional("key", &expected, |key| integer(key, 0, u32::MAX));
    let expected = format!("an integer from {MIN_MTU} to {MAX_MTU}, bytes");
    let mtu = bond.optional("mtu", &expected, |mtu| integer(mtu, MIN_MTU, MAX_MTU));
    let path_mtu = bond.optional(
        "path_mtu",
        "\"probe\" or \"fixed\"",
        |path_mtu| match path_mtu {
            "probe" => Ok(PathMtu::Probe),
            "fixed" => Ok(PathMtu::Fixed),
            _ => Err(Wrong::new("does not exist")),
        },
    );
    let mss_clamp = bond.optional("mss_clamp", "true or false", Ok);
    let ttl = bond.optional("ttl", "\"inherit\" or an integer from 1 to 255", ttl);
    let detour = bond.optional("detour", "\"avoid\" or \"use\"", |detour| match detour {
        "avoid" => Ok(DetourPolicy::Avoid),
        "use" => Ok(DetourPolicy::Use),
        _ => Err(Wrong::new("does not exist")),
    });
    let probing = probing(&mut bond);
    if matches!((&path_mtu, &probing), (Ok(Some(PathMtu::Probe)), Ok(None))) {
        bond.report(
            bond.line_of("path_mtu"),
            "path_mtu \"probe\" needs probes: give probe_interval a value from 5 to 10000, or write path_mtu = \
             \"fixed\"",
        );
    }
    let bfd = bfd(&mut bond, probing);
    let hold_down = hold_down(&mut bond);
    let policies = policies(&mut bond, probing.as_ref().is_ok_and(Option::is_none));
    let peer = bond.optional(
        "peer",
        "a prefix of the peer such as \"10.65.2.1/32\"",
        peer,
    );
    let mut in_use = InUse::new(&bond, mode, &classes);
    let weights = weights(&mut bond, asks_ospf, probing, mode, &mut in_use);
    let flowlet_gap_ms = flowlet_gap(&mut bond, probing, &in_use);
    let copies = copies(&mut bond, &in_use);
    let paths = paths(&mut bond, key, &in_use, seen);
    if matches!(bfd, Ok(Some(_))) {
        unique_sessions(&bond, &paths, seen);
    }
    bond.finish();

    Ok(Bond {
        name: name?,
        addresses: addresses.into_iter().map(|(_, prefix)| prefix).collect(),
        encap: encap?.unwrap_or(Encap::Gre),
        mode: mode?.unwrap_or(Mode::RoundRobin),
        in_order: in_order?,
        copies: copies?,
        weights: weights?,
        flowlet_gap_ms: flowlet_gap_ms?,
        classes,
        key: key?,
        mtu: mtu?,
        path_mtu: path_mtu?.unwrap_or(PathMtu::Probe),
        mss_clamp: mss_clamp?.unwrap_or(false),
        ttl: ttl?.unwrap_or_default(),
        detour: detour?.unwrap_or(DetourPolicy::Avoid),
        probing: probing?,
        bfd: bfd?,
        hold_down: hold_down?,
        policies: policies?,
        peer: peer?,
        paths,
        line,
    })
}

/// An optional number and what it counts.
fn number(
    bond: &mut Section<'_>,
    key: &'static str,
    what: &str,
    min: u32,
    max: u32,
) -> Result<Option<u32>, Reported> {
    let expected = format!("an integer from {min} to {max}, {what}");
    bond.optional(key, &expected, |value| integer(value, min, max))
}

/// Whether and how received packets are put in order.
fn in_order(
    bond: &mut Section<'_>,
    mode: Result<Option<Mode>, Reported>,
) -> Result<Option<InOrder>, Reported> {
    let on = bond.optional("in_order", "true or false", Ok);
    let by_itself = matches!(mode, Ok(Some(Mode::Adaptive)));
    let on = on.map(|on| on.unwrap_or(by_itself));
    let longest = number(bond, "in_order_hold", "ms", 1, MAX_HOLD);
    if matches!(on, Ok(false)) && matches!(longest, Ok(Some(_))) {
        bond.report(
            bond.line_of("in_order_hold"),
            "in_order_hold is of no use without in_order: write in_order = true too, or remove it",
        );
    }
    let default = if by_itself {
        ADAPTIVE_HOLD
    } else {
        InOrder::default().longest_hold_ms
    };
    let in_order = InOrder {
        longest_hold_ms: longest?.unwrap_or(default),
    };
    Ok(on?.then_some(in_order))
}

/// Which settings mean something in the modes of a bond and its classes.
struct InUse {
    weights: bool,
    /// Paths take turns by weight.
    turns: bool,
    priorities: bool,
    flowlets: bool,
    measured: bool,
    copies: bool,
    /// All packets are copied.
    duplicates: bool,
}

impl InUse {
    /// All of them where not all modes are known: what is wrong with those is said already.
    fn new(bond: &Section<'_>, mode: Result<Option<Mode>, Reported>, classes: &[Class]) -> Self {
        let unknown = mode.is_err() || bond.tables("class") != classes.len();
        let own = mode.ok().flatten().unwrap_or(Mode::RoundRobin);
        let any =
            |of: fn(Mode) -> bool| unknown || of(own) || classes.iter().any(|class| of(class.mode));
        Self {
            weights: any(|mode| match mode {
                Mode::Weighted | Mode::Flow | Mode::Flowlet | Mode::Adaptive => true,
                Mode::RoundRobin | Mode::ActiveBackup | Mode::Duplicate => false,
            }),
            priorities: any(|mode| matches!(mode, Mode::ActiveBackup | Mode::Duplicate)),
            flowlets: any(|mode| matches!(mode, Mode::Flowlet | Mode::Adaptive)),
            turns: any(|mode| matches!(mode, Mode::Weighted | Mode::Flowlet | Mode::Adaptive)),
            measured: !unknown && any(|mode| mode == Mode::Adaptive),
            copies: any(|mode| mode == Mode::Duplicate),
            duplicates: !unknown && own == Mode::Duplicate,
        }
    }
}

/// Reports a key that no mode of the bond goes by.
fn of_no_use(section: &Section<'_>, key: &str, mode: Mode) {
    section.report(
        section.line_of(key),
        format_args!(
            "{key} is of no use: no mode of the bond goes by it. Write mode = \"{}\" in its [[bond]] \
             (the default is \"{}\"), or remove it",
            mode.label(),
            Mode::RoundRobin.label()
        ),
    );
}

/// Where the paths' weights come from.
fn weights(
    bond: &mut Section<'_>,
    asks_ospf: bool,
    probing: Result<Option<Probing>, Reported>,
    mode: Result<Option<Mode>, Reported>,
    in_use: &mut InUse,
) -> Result<Weights, Reported> {
    let expected = "\"static\", \"ospf\" or \"measured\"";
    let weights = bond.optional("weights", expected, |weights: &str| {
        let known = Weights::ALL.iter().find(|known| known.label() == weights);
        known.copied().ok_or_else(|| Wrong::new("does not exist"))
    })?;
    let adaptive = matches!(mode, Ok(Some(Mode::Adaptive)));
    let what = if in_use.measured {
        "mode \"adaptive\" goes"
    } else {
        "weights \"measured\" go"
    };
    in_use.measured |= weights == Some(Weights::Measured);
    let too_few = match probing {
        Ok(Some(probing)) => probing.interval_ms > MAX_MEASURING,
        Ok(None) => true,
        Err(_) => false,
    };
    if in_use.measured && too_few {
        bond.report(
            bond.line_of("probe_interval"),
            format_args!(
                "{what} by what probes measure: give probe_interval a value from 5 to {MAX_MEASURING}"
            ),
        );
    }
    if weights == Some(Weights::Measured) && in_use.weights && !in_use.turns {
        bond.report(
            bond.line_of("weights"),
            "flows keep their paths in mode \"flow\", whatever those carry: write mode = \"flowlet\" or \
             \"adaptive\", or other weights than \"measured\"",
        );
    }
    if let Some(weights) = weights
        && adaptive
        && weights != Weights::Measured
    {
        bond.report(
            bond.line_of("weights"),
            format_args!(
                "mode \"adaptive\" measures the weights: remove weights = \"{}\", or write mode = \"{}\"",
                weights.label(),
                Mode::Weighted.label()
            ),
        );
    } else if weights.is_some() && !in_use.weights {
        of_no_use(bond, "weights", Mode::Weighted);
    } else if weights == Some(Weights::Ospf) && !asks_ospf {
        bond.report(
            bond.line_of("weights"),
            "weights \"ospf\" needs a daemon to ask for costs: add a [bird] or [frr] table, or write \
             weights = \"static\"",
        );
    }
    let default = if adaptive {
        Weights::Measured
    } else {
        Weights::Static
    };
    Ok(weights.unwrap_or(default))
}

/// After what pause flows may move.
fn flowlet_gap(
    bond: &mut Section<'_>,
    probing: Result<Option<Probing>, Reported>,
    in_use: &InUse,
) -> Result<Option<u32>, Reported> {
    let gap = number(bond, "flowlet_gap", "ms", 1, 10_000)?;
    if gap.is_some() && !in_use.flowlets {
        of_no_use(bond, "flowlet_gap", Mode::Flowlet);
    } else if gap.is_none() && in_use.flowlets && matches!(probing, Ok(None)) {
        bond.report(
            bond.line_of("probe_interval"),
            "without probes nothing tells how the paths' latencies differ, which mode \"flowlet\" goes \
             by: write flowlet_gap (ms) too, or give probe_interval another value than 0",
        );
    }
    Ok(gap)
}

/// On how many paths at the most a packet is sent.
fn copies(bond: &mut Section<'_>, in_use: &InUse) -> Result<Option<u32>, Reported> {
    let copies = number(bond, "copies", "paths for each packet", 2, MAX_BOND_PATHS)?;
    if copies.is_some() && !in_use.copies {
        of_no_use(bond, "copies", Mode::Duplicate);
    }
    Ok(copies)
}

/// How the paths are probed; an interval of 0 turns it off.
fn probing(bond: &mut Section<'_>) -> Result<Option<Probing>, Reported> {
    let default = Probing::default();
    let expected =
        format!("0 for no probes, or an integer from {MIN_INTERVAL} to 10000, ms between probes");
    let interval = bond.optional("probe_interval", &expected, |value| match value {
        0 => Ok(0),
        value => integer(value, MIN_INTERVAL, 10_000),
    });
    let misses = number(bond, "probe_misses", "probes without an answer", 1, 100);
    let recover = number(bond, "probe_return", "answers in a row", 1, 1_000);
    let probing = Probing {
        interval_ms: interval?.unwrap_or(default.interval_ms),
        misses: misses?.unwrap_or(default.misses),
        recover: recover?.unwrap_or(default.recover),
    };
    Ok((probing.interval_ms != 0).then_some(probing))
}

/// BFD for the paths of a bond whose probing is `probing`.
fn bfd(
    bond: &mut Section<'_>,
    probing: Result<Option<Probing>, Reported>,
) -> Result<Option<Bfd>, Reported> {
    let expected = "\"off\", \"single-hop\" or \"multi-hop\"";
    let hops = bond.optional("bfd", expected, |hops| match hops {
        "off" => Ok(None),
        "single-hop" => Ok(Some(Hops::Single)),
        "multi-hop" => Ok(Some(Hops::Multi)),
        _ => Err(Wrong::new("does not exist")),
    });
    let interval = bond.optional(
        "bfd_interval",
        "an integer from 10 to 10000, ms between packets",
        |value| integer(value, 10, 10_000),
    );
    let misses = bond.optional(
        "bfd_misses",
        "an integer from 1 to 255, packets missed",
        |value: i64| match u8::try_from(value) {
            Ok(misses) if misses != 0 => Ok(misses),
            Ok(_) | Err(_) => Err(Wrong::new("is out of range")),
        },
    );
    let Some(hops) = hops?.flatten() else {
        for (key, set) in [
            ("bfd_interval", matches!(interval, Ok(Some(_)))),
            ("bfd_misses", matches!(misses, Ok(Some(_)))),
        ] {
            if set {
                bond.report(
                    bond.line_of(key),
                    format_args!(
                        "{key} is of no use while bfd is \"off\": write bfd = \"single-hop\" or \
                         \"multi-hop\" too, or remove it"
                    ),
                );
            }
        }
        return Ok(None);
    };
    if probing.is_ok_and(|probing| probing.is_some()) {
        bond.report(
            bond.line_of("bfd"),
            "bfd is for a peer that is no netbond, which answers no probes: write probe_interval = 0 \
             too, or bfd = \"off\"",
        );
    }
    Ok(Some(Bfd {
        hops,
        interval_ms: interval?.unwrap_or(Bfd::DEFAULT_INTERVAL_MS),
        misses: misses?.unwrap_or(Bfd::DEFAULT_MISSES),
    }))
}

/// How long a path that flaps stays out.
fn hold_down(bond: &mut Section<'_>) -> Result<HoldDown, Reported> {
    let default = HoldDown::default();
    let first = number(bond, "hold_down", "s, 0 for none", 0, 3600);
    let longest = number(bond, "hold_down_max", "s", 1, 86_400);
    let (first_s, longest_s) = (
        first?.unwrap_or(default.first_s),
        longest?.unwrap_or(default.longest_s),
    );
    if first_s > longest_s {
        let line = bond.line_of("hold_down");
        bond.report(
            line,
            format_args!(
                "hold_down = {first_s} is longer than hold_down_max, {longest_s}: raise the latter"
            ),
        );
    }
    Ok(HoldDown { first_s, longest_s })
}

/// What to do with paths that live, but not well: known only where they are probed.
fn policies(bond: &mut Section<'_>, unprobed: bool) -> Result<Policies, Reported> {
    let remedy = |bond: &mut Section<'_>, key| {
        let expected = "\"use\", \"less\" or \"avoid\"";
        bond.optional(key, expected, |remedy| match remedy {
            "use" => Ok(None),
            "less" => Ok(Some(Remedy::Less)),
            "avoid" => Ok(Some(Remedy::Avoid)),
            _ => Err(Wrong::new("does not exist")),
        })
    };
    let (lossy, slow) = (remedy(bond, "lossy"), remedy(bond, "slow"));
    let above = number(bond, "lossy_above", "percent of the probes", 1, 99);
    let above_ms = number(bond, "slow_above", "ms", 1, 60_000);
    let factor = number(bond, "slow_factor", "times the best path's", 2, 1000);
    let (lossy, slow) = (lossy?.flatten(), slow?.flatten());
    let (above_ms, factor) = (above_ms?, factor?);
    if slow.is_some() && above_ms.is_none() && factor.is_none() {
        let line = bond.line_of("slow");
        bond.report(
            line,
            format_args!(
                "slow needs a limit: write slow_above (ms), slow_factor (times the best path's round \
                 trip) or both"
            ),
        );
    }
    for key in [lossy.map(|_| "lossy"), slow.map(|_| "slow")]
        .into_iter()
        .flatten()
    {
        if unprobed {
            let line = bond.line_of(key);
            bond.report(
                line,
                format_args!(
                    "{key} needs probes: give probe_interval another value than 0, or write {key} = \
                     \"use\""
                ),
            );
        }
    }
    let above_percent = above?.unwrap_or(LOSSY_ABOVE);
    Ok(Policies {
        lossy: lossy.map(|remedy| Lossy {
            above_percent,
            remedy,
        }),
        slow: slow.map(|remedy| Slow {
            above_ms,
            factor,
            remedy,
        }),
    })
}

fn unique_devices(bond: &Section<'_>, name: &str, seen: &mut Seen) {
    let second = peer_device(name);
    let line = bond.line_of("name");
    if let Some(first) = first_use(&mut seen.devices, name.to_owned(), line) {
        bond.report(
            line,
            format_args!(
                "name \"{name}\" is taken by the bond named on line {first}, for itself or the \
                 other end of its veth pair: choose another"
            ),
        );
    } else if let Some(first) = first_use(&mut seen.devices, second.clone(), line) {
        bond.report(
            line,
            format_args!(
                "name \"{name}\" needs the device name \"{second}\" for the other end of its veth \
                 pair, which line {first} has taken: choose another"
            ),
        );
    }
}

/// Paths that differ in their key alone cannot have a session each: its packets bear none.
fn unique_sessions(bond: &Section<'_>, paths: &[Path], seen: &mut Seen) {
    for path in paths {
        let Path { local, remote, .. } = *path;
        if let Some(first) = first_use(&mut seen.bfd, (local, remote), path.line) {
            bond.report(
                bond.line_of("bfd"),
                format_args!(
                    "bfd: there is a session from {local} to {remote} already, for the path on line \
                     {first}: write bfd = \"off\" for one of the two bonds"
                ),
            );
        }
    }
}

fn unique_address(bond: &Section<'_>, line: usize, prefix: &Prefix, seen: &mut Seen) {
    // Links without a subnet of their own may share an address (unnumbered), and link-local ones
    // mean nothing beyond their link.
    let shareable = match prefix.address {
        IpAddr::V4(address) => prefix.length == 32 || address.is_link_local(),
        IpAddr::V6(address) => prefix.length == 128 || address.is_unicast_link_local(),
    };
    let scope = shareable.then_some(bond.line());
    if let Some(first) = first_use(&mut seen.addresses, (scope, prefix.address), line) {
        bond.report(
            line,
            format_args!(
                "address \"{prefix}\" is used on line {first} already: remove one, or choose another"
            ),
        );
    }
}

/// The paths of a bond whose key is `key`.
fn paths(
    bond: &mut Section<'_>,
    key: Result<Option<u32>, Reported>,
    in_use: &InUse,
    seen: &mut Seen,
) -> Vec<Path> {
    let expected = "[[bond.path]] before the keys of each path";
    let tables: Vec<(usize, &DeTable<'_>)> =
        bond.required_list("path", expected, Ok).unwrap_or_default();
    if let Some((line, _)) = tables.get(MAX_BOND_PATHS as usize) {
        let count = tables.len();
        bond.report(
            *line,
            format_args!("there are {count} paths: keep at most {MAX_BOND_PATHS}"),
        );
    }
    let mut read =
        |line, table| path_table(bond.inner("path", line, table), key, in_use, seen).ok();
    let tables = tables.into_iter();
    tables
        .filter_map(|(line, table)| read(line, table))
        .collect()
}

fn path_table(
    mut path: Section<'_>,
    key: Result<Option<u32>, Reported>,
    in_use: &InUse,
    seen: &mut Seen,
) -> Result<Path, Reported> {
    let line = path.line();
    let name = short_name(&mut path, "via-m1");
    let expected = "an IP address such as \"10.65.0.2\"";
    let local = path.required("local", expected, outer_address);
    let expected = "an IP address such as \"10.65.0.6\"";
    let remote = path.required("remote", expected, outer_address);
    let expected = format!("a device name of at most {MAX_DEVICE_NAME} bytes such as \"wg-a-m1\"");
    let device = path.optional("device", &expected, |name| {
        device_name(name, MAX_DEVICE_NAME)
    });
    let expected = format!("an integer from 1 to {MAX_WEIGHT}");
    let weight = path.optional("weight", &expected, |weight| integer(weight, 1, MAX_WEIGHT));
    let expected = format!("an integer from 1 to {MAX_RATE_CAP}, Mbit/s");
    let cap = path.optional("rate_cap", &expected, |cap| integer(cap, 1, MAX_RATE_CAP));
    let expected = format!("an integer from 0 to {MAX_PRIORITY}, the best path's the lowest");
    let priority = path.optional("priority", &expected, |priority| {
        integer(priority, 0, MAX_PRIORITY)
    });
    let xdp = xdp(&mut path);
    if matches!(xdp, Ok(Some(XdpMode::Native))) && in_use.duplicates {
        path.report(
            path.line_of("xdp"),
            "xdp \"native\" is not for a bond of mode \"duplicate\", whose copies are made and told apart by tc: \
             write xdp = \"auto\" or \"off\", or change the mode",
        );
    }
    if matches!(weight, Ok(Some(_))) && !in_use.weights {
        of_no_use(&path, "weight", Mode::Weighted);
    }
    if matches!(cap, Ok(Some(_))) && !in_use.measured {
        of_no_use(&path, "rate_cap", Mode::Adaptive);
    }
    if matches!(priority, Ok(Some(_))) && !in_use.priorities {
        of_no_use(&path, "priority", Mode::ActiveBackup);
    }

    if let Ok(name) = &name {
        let line = path.line_of("name");
        if let Some(first) = first_use(&mut seen.paths, name.clone(), line) {
            path.report(
                line,
                format_args!("name \"{name}\" is used on line {first} already: choose another"),
            );
        }
    }
    if let (Ok(local), Ok(remote)) = (local, remote) {
        if local == remote {
            path.report(
                path.line_of("remote"),
                format_args!("remote \"{remote}\" is local too: write the far router's address"),
            );
        } else if local.is_ipv4() != remote.is_ipv4() {
            let family = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
            path.report(
                path.line_of("remote"),
                format_args!(
                    "remote \"{remote}\" is {}, and local \"{local}\" is {}: both ends of a path have \
                     addresses of one family",
                    family(remote),
                    family(local)
                ),
            );
        } else if let Ok(key) = key
            && let Some(first) = first_use(&mut seen.tunnels, (local, remote, key), line)
        {
            let key = key.map_or("no key".to_owned(), |key| format!("key {key}"));
            path.report(
                line,
                format_args!(
                    "local \"{local}\", remote \"{remote}\" and {key} are those of the path on line \
                     {first}, so what arrives could be of either: change an address, or the key \
                     where the bonds differ"
                ),
            );
        }
    }
    path.finish();

    Ok(Path {
        name: name?,
        local: local?,
        remote: remote?,
        device: device?,
        weight: weight?.unwrap_or(1),
        rate_cap_mbit: cap?,
        priority: priority?.unwrap_or(0),
        xdp: xdp?.unwrap_or_default(),
        line,
    })
}

/// The name of a path or a class.
pub(super) fn short_name(section: &mut Section<'_>, example: &str) -> Result<String, Reported> {
    let expected = format!(
        "a name of at most {MAX_PATH_NAME} letters, digits, \"_\", \".\" or \"-\", such as \"{example}\""
    );
    section.required("name", &expected, path_name)
}

pub(super) fn integer(value: i64, min: u32, max: u32) -> Result<u32, Wrong> {
    let value = u32::try_from(value).ok();
    value
        .filter(|value| (min..=max).contains(value))
        .ok_or_else(|| Wrong::new("is out of range"))
}

fn ttl(value: TextOrInteger<'_>) -> Result<Ttl, Wrong> {
    match value {
        TextOrInteger::Text("inherit") => Ok(Ttl::Inherit),
        TextOrInteger::Text(_) => Err(Wrong::new("does not exist")),
        TextOrInteger::Integer(hops) => match u8::try_from(hops) {
            Ok(hops) if hops != 0 => Ok(Ttl::Fixed(hops)),
            Ok(_) | Err(_) => Err(Wrong::new("is out of range")),
        },
    }
}

/// The kernel's rules, and ASCII only: it counts bytes, and takes one that UTF-8 uses for a space.
fn device_name(name: &str, max: usize) -> Result<String, Wrong> {
    let bad = |&c: &char| !c.is_ascii_graphic() || matches!(c, '/' | ':' | '%');
    if name.is_empty() {
        Err(Wrong::new("is empty"))
    } else if name == "." || name == ".." {
        Err(Wrong::new("is reserved"))
    } else if let Some(c) = name.chars().find(bad) {
        Err(Wrong::new(format!(
            "has {c:?}, which netbond takes in no device name"
        )))
    } else if name.len() > max {
        Err(Wrong::new(format!("has {} bytes", name.len())))
    } else {
        Ok(name.to_owned())
    }
}

fn path_name(name: &str) -> Result<String, Wrong> {
    let bad = |c: &char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '.' | '-');
    if name.is_empty() {
        Err(Wrong::new("is empty"))
    } else if let Some(c) = name.chars().find(bad) {
        Err(Wrong::new(format!("has {c:?}")))
    } else if name.len() > MAX_PATH_NAME {
        Err(Wrong::new(format!("has {} characters", name.len())))
    } else {
        Ok(name.to_owned())
    }
}

/// An address of the packets on the wire.
fn outer_address(text: &str) -> Result<IpAddr, Wrong> {
    let address: IpAddr = text.parse().map_err(|_| match text.parse::<Prefix>() {
        Ok(_) => Wrong::new("has a prefix length"),
        Err(_) => Wrong::new("is no IP address"),
    })?;
    unicast(address)?;
    if let IpAddr::V6(v6) = address {
        if v6.is_unicast_link_local() {
            return Err(Wrong::new(
                "is a link-local address, which means nothing beyond its link and has no route of OSPF's",
            ));
        }
        if let Some(v4) = v6.to_ipv4_mapped() {
            return Err(
                Wrong::new("is an IPv4 address within an IPv6 one").write(format!("\"{v4}\""))
            );
        }
    }
    Ok(address)
}

/// An address of the bond device.
fn address(text: &str) -> Result<Prefix, Wrong> {
    let prefix = prefix(text)?;
    unicast(prefix.address)?;
    // Neither a /31 (RFC 3021) nor a /32 has a network address of its own. That of IPv6 (RFC 4291,
    // 2.6.1) is an address of routers, which this is.
    if prefix.address.is_ipv4() && prefix.length < 31 && prefix == prefix.network() {
        return Err(Wrong::new(
            "is the address of the network, not of a host in it",
        ));
    }
    if prefix
        .broadcast()
        .is_some_and(|broadcast| prefix.address == broadcast)
    {
        return Err(Wrong::new("is the broadcast address of its network"));
    }
    Ok(prefix)
}

fn peer(text: &str) -> Result<Prefix, Wrong> {
    let prefix = network(text)?;
    unicast(prefix.address)?;
    Ok(prefix)
}

/// A prefix without host bits.
pub(super) fn network(text: &str) -> Result<Prefix, Wrong> {
    let prefix = prefix(text)?;
    let network = prefix.network();
    if prefix != network {
        return Err(Wrong::new("has host bits set").write(format!("\"{network}\"")));
    }
    Ok(prefix)
}

fn prefix(text: &str) -> Result<Prefix, Wrong> {
    text.parse()
        .map_err(|error: ParsePrefixError| Wrong::new(format!("has {error}")))
}

fn unicast(address: IpAddr) -> Result<(), Wrong> {
    let kind = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(address) if address.is_broadcast() => "the broadcast address",
        IpAddr::V4(_) | IpAddr::V6(_) => return Ok(()),
    };
    Err(Wrong::new(format!("is {kind}")))
}
