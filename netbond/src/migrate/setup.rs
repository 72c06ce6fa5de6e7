//! What was found, understood: one bond, its paths, and what is built on it.

use std::net::{IpAddr, Ipv4Addr};

use netbond_common::abi::MAX_BOND_PATHS;

use super::Request;
use super::found::{Address, Device, Gre, Host, KernelBond, Kind, Route};
use crate::config::{Encap, Prefix, default_route_protocols, text::unique};
use crate::control::plan::overhead;

/// Least `mtu` of netbond's configuration, bytes.
const LEAST_MTU: u32 = 1280;

/// A bond made by hand.
#[derive(Debug)]
pub(super) struct Setup<'h> {
    pub(super) host: &'h Host,
    pub(super) source: Source<'h>,
    pub(super) encap: Encap,
    /// Name of netbond's bond device.
    pub(super) name: &'h str,
    pub(super) key: Option<u32>,
    /// `None`: that of the inner packet.
    pub(super) ttl: Option<u8>,
    /// MTU now, bytes.
    pub(super) mtu: u32,
    pub(super) addresses: Vec<&'h Address>,
    pub(super) paths: Vec<Path<'h>>,
    pub(super) bridge: Option<&'h Device>,
    /// VLANs and whatever else sits on the bond.
    pub(super) uppers: Vec<&'h Device>,
    pub(super) routes: Vec<&'h Route>,
}

/// What the bond is now.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'h> {
    Bond(&'h Device, &'h KernelBond),
    Team(&'h Device),
    /// Routes over several tunnels.
    Routes,
}

/// One tunnel.
#[derive(Debug)]
pub(super) struct Path<'h> {
    pub(super) name: String,
    pub(super) tunnel: &'h Device,
    pub(super) gre: &'h Gre,
    pub(super) local: IpAddr,
    /// The device that it leaves by, where that is known.
    pub(super) device: Option<&'h Device>,
    /// rtm_protocol of the route to the far end.
    pub(super) protocol: Option<u8>,
}

impl<'h> Setup<'h> {
    /// The devices that hold the addresses and that routes lead to.
    pub(super) fn tops(&self) -> Vec<&'h Device> {
        match self.source {
            Source::Bond(device, _) | Source::Team(device) => vec![device],
            Source::Routes => self.paths.iter().map(|path| path.tunnel).collect(),
        }
    }

    /// Whether frames travel, not IP packets.
    pub(super) fn is_ethernet(&self) -> bool {
        self.encap == Encap::Gretap
    }

    /// Bytes that outer headers add to an IP packet, at the most.
    pub(super) fn overhead(&self, encap: Encap) -> u32 {
        let paths = self.paths.iter();
        let most = paths.map(|path| self.headers(encap, path)).max();
        most.unwrap_or(0)
    }

    fn headers(&self, encap: Encap, path: &Path<'_>) -> u32 {
        overhead(encap, self.key, false, path.gre.remote)
    }

    /// What netbond makes of the MTUs of the paths' devices, bytes.
    pub(super) fn netbond_mtu(&self, encap: Encap) -> Option<u32> {
        let fits = self.paths.iter().filter_map(|path| {
            let headers = self.headers(encap, path);
            Some(path.device?.mtu.saturating_sub(headers))
        });
        fits.min()
    }

    /// The MTU to keep where netbond would choose a larger one than both ends have now.
    pub(super) fn cap(&self) -> Option<u32> {
        let larger = self.netbond_mtu(self.encap)? > self.mtu;
        (larger && self.mtu >= LEAST_MTU).then_some(self.mtu)
    }

    /// Protocols of routes to far ends, each once, in the order of paths.
    pub(super) fn protocols(&self) -> Vec<u8> {
        let mut protocols = Vec::new();
        for protocol in self.paths.iter().filter_map(|path| path.protocol) {
            if !protocols.contains(&protocol) {
                protocols.push(protocol);
            }
        }
        protocols
    }

    /// Whether routes of that protocol are OSPF's unless the file says otherwise.
    pub(super) fn is_ospf(protocol: u8) -> bool {
        default_route_protocols().any(|number| number == protocol)
    }

    /// Whether only frames will do: a bridge, or devices on top.
    pub(super) fn needs_ethernet(&self) -> bool {
        self.bridge.is_some() || !self.uppers.is_empty()
    }

    /// What the other end's address in the network of `address` may be.
    pub(super) fn far_ends(&self, address: &Address) -> FarEnds {
        if let Some(far) = address.far {
            return FarEnds::Known(far);
        }
        if let Some(other) = other_of_two(address.own) {
            return FarEnds::Known(other);
        }
        let network = address.own.network();
        let mut heard: Vec<IpAddr> = self
            .host
            .neighbours
            .iter()
            .filter(|neighbour| neighbour.ifindex == address.ifindex)
            .map(|neighbour| neighbour.address)
            .filter(|&found| {
                found != address.own.address
                    && found.is_ipv4() == address.own.address.is_ipv4()
                    && Prefix {
                        address: found,
                        ..address.own
                    }
                    .network()
                        == network
            })
            .collect();
        heard.sort();
        heard.dedup();
        FarEnds::Heard(heard)
    }
}

/// Where the other end may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FarEnds {
    /// There can be no other.
    Known(IpAddr),
    /// Neighbours in the same network.
    Heard(Vec<IpAddr>),
}

/// The other host of a network that has room for two: /30, /31 and /127.
fn other_of_two(own: Prefix) -> Option<IpAddr> {
    match own.address {
        IpAddr::V4(address) if own.length == 31 => {
            Some(Ipv4Addr::from_bits(address.to_bits() ^ 1).into())
        }
        // Host numbers 1 and 2 of 0 to 3.
        IpAddr::V4(address) if own.length == 30 && [1, 2].contains(&(address.to_bits() & 3)) => {
            Some(Ipv4Addr::from_bits(address.to_bits() ^ 3).into())
        }
        IpAddr::V6(address) if own.length == 127 => {
            Some(std::net::Ipv6Addr::from_bits(address.to_bits() ^ 1).into())
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Understands what was found, or tells all that is in the way.
pub(super) fn interpret<'h>(
    host: &'h Host,
    request: Request<'h>,
) -> Result<Setup<'h>, Vec<String>> {
    let mut obstacles = Vec::new();
    let (source, tunnels) = find(host, request.from).map_err(|obstacle| vec![obstacle])?;
    check_name(host, request, &mut obstacles);
    let tunnels = tunnels_of(&tunnels, source, &mut obstacles);
    let paths = paths(host, &tunnels, &mut obstacles);
    let encap = one_kind(&tunnels, &mut obstacles);
    let key = one_key(&tunnels, &mut obstacles);
    check_pairs(&paths, &mut obstacles);
    if paths.len() > MAX_BOND_PATHS as usize {
        obstacles.push(format!(
            "there are {} tunnels, and a bond of netbond has {MAX_BOND_PATHS} paths at the most: \
             take some out first",
            paths.len()
        ));
    }
    if !obstacles.is_empty() {
        return Err(obstacles);
    }
    let mut setup = Setup {
        host,
        source,
        encap,
        name: request.name,
        key,
        // The largest of several: a packet that lives too long does no harm here.
        ttl: if tunnels.iter().any(|(_, gre)| gre.ttl == 0) {
            None
        } else {
            tunnels.iter().map(|(_, gre)| gre.ttl).max()
        },
        mtu: 0,
        addresses: Vec::new(),
        paths,
        bridge: None,
        uppers: Vec::new(),
        routes: host.routes.iter().collect(),
    };
    let tops = setup.tops();
    let on_top = |ifindex: u32| tops.iter().any(|top| top.ifindex == ifindex);
    setup.mtu = tops.iter().map(|top| top.mtu).min().unwrap_or(0);
    for address in &host.addresses {
        // The same one on several tunnels (unnumbered) becomes one. The kernel makes link-local ones.
        let known = setup
            .addresses
            .iter()
            .any(|known| known.own.address == address.own.address);
        if on_top(address.ifindex) && !is_link_local(address.own.address) && !known {
            setup.addresses.push(address);
        }
    }
    setup.bridge = tops
        .iter()
        .filter_map(|top| host.by_index(top.master?))
        .next();
    setup.uppers = host
        .devices
        .iter()
        .filter(|device| device.lower.is_some_and(on_top))
        .collect();
    Ok(setup)
}

pub(super) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// The bond that was named and its ports, or the tunnels.
fn find<'h>(host: &'h Host, names: &[String]) -> Result<(Source<'h>, Vec<&'h Device>), String> {
    let mut devices: Vec<&Device> = Vec::new();
    let mut missing = Vec::new();
    for name in names {
        match host.by_name(name) {
            Some(device) if devices.contains(&device) => {}
            Some(device) => devices.push(device),
            None => missing.push(name.as_str()),
        }
    }
    if !missing.is_empty() {
        let bonds: Vec<&str> = host
            .devices
            .iter()
            .filter(|device| matches!(device.kind, Kind::Bond(_) | Kind::Team))
            .map(|device| device.name.as_str())
            .collect();
        let there = if bonds.is_empty() {
            "this network namespace has no bond or team".to_owned()
        } else {
            format!("bonds here are {}", bonds.join(", "))
        };
        return Err(format!(
            "device {} does not exist: {there}; name one, or two or more gre tunnels",
            missing.join(", ")
        ));
    }
    let (Some(first), 1) = (devices.first(), devices.len()) else {
        return Ok((Source::Routes, devices));
    };
    let source = match &first.kind {
        Kind::Bond(bond) => Source::Bond(first, bond),
        Kind::Team => Source::Team(first),
        Kind::Gre(_) => {
            let master = first.master.and_then(|master| host.by_index(master));
            let advice = match master {
                Some(master) => format!("name its bond, {}", master.name),
                None => "name two or more, with commas between".to_owned(),
            };
            return Err(format!("{} alone is no bond: {advice}", first.name));
        }
        Kind::Vlan { .. } | Kind::Other(_) => {
            return Err(format!(
                "{} is no bond ({}): name a bond or team, or two or more gre tunnels",
                first.name,
                described(first)
            ));
        }
    };
    let ports: Vec<&Device> = host
        .devices
        .iter()
        .filter(|device| device.master == Some(first.ifindex))
        .collect();
    if ports.is_empty() {
        return Err(format!(
            "{} has no tunnels: add them with `ip link set dev TUNNEL master {}`, then ask again",
            first.name, first.name
        ));
    }
    Ok((source, ports))
}

/// What a device is, for people.
fn described(device: &Device) -> String {
    match &device.kind {
        Kind::Bond(_) => "a kernel bond".to_owned(),
        Kind::Team => "a team".to_owned(),
        Kind::Gre(gre) => format!("a {} tunnel", kind(gre)),
        Kind::Vlan { .. } => "a VLAN".to_owned(),
        Kind::Other(kind) if kind.is_empty() => "hardware or loopback".to_owned(),
        Kind::Other(kind) => format!("of kind {kind}"),
    }
}

/// The name may be the bond's own: the steps delete that one first.
fn check_name(host: &Host, request: Request<'_>, obstacles: &mut Vec<String>) {
    let second = format!("{}x", request.name);
    for name in [request.name, &second] {
        let Some(device) = host.by_name(name) else {
            continue;
        };
        let replaced = request.from.iter().any(|from| from == name);
        // netbond's own from before: it takes it over.
        let ours = matches!(&device.kind, Kind::Other(kind) if kind == "veth");
        if !replaced && !ours {
            obstacles.push(format!(
                "netbond needs the name {name} for its bond device, and {name} exists ({}): \
                 choose another with --name",
                described(device)
            ));
        }
    }
}

/// The tunnels that netbond can take over; what is wrong with the others is told.
fn tunnels_of<'h>(
    devices: &[&'h Device],
    source: Source<'h>,
    obstacles: &mut Vec<String>,
) -> Vec<(&'h Device, &'h Gre)> {
    let mut tunnels = Vec::new();
    for device in devices {
        let name = &device.name;
        match &device.kind {
            Kind::Gre(gre) if gre.ethernet && matches!(source, Source::Routes) => {
                obstacles.push(format!(
                    "{name} is a {} tunnel in no bond that was named: name its bond; of \
                     tunnels by themselves only gre ones are taken over",
                    kind(gre)
                ));
            }
            Kind::Gre(gre) => {
                check_tunnel(name, gre, obstacles);
                tunnels.push((*device, gre));
            }
            Kind::Bond(_) | Kind::Team | Kind::Vlan { .. } | Kind::Other(_) => {
                obstacles.push(format!(
                    "{name} is no GRE tunnel ({}): netbond bonds gretap and gre tunnels; take it \
                     out, or name others",
                    described(device)
                ));
            }
        }
    }
    tunnels
}

/// What of a single tunnel netbond cannot do, or its peer would not take.
fn check_tunnel(name: &str, gre: &Gre, obstacles: &mut Vec<String>) {
    if gre.external {
        obstacles.push(format!(
            "{name} is external (addresses come with each packet): make a tunnel with fixed ones"
        ));
        return;
    }
    if gre.wrapped {
        obstacles.push(format!(
            "{name} wraps GRE into UDP (encap fou or gue), which netbond does not: change both \
             ends to `encap none` first"
        ));
    }
    if gre.remote.is_unspecified() || gre.remote.is_multicast() {
        obstacles.push(format!(
            "{name} has no single far end (remote {}): give it one at both ends first",
            gre.remote
        ));
    }
    if let Some(address) = [gre.remote, gre.local]
        .into_iter()
        .find(|&it| is_link_local(it))
    {
        obstacles.push(format!(
            "{name} has a link-local outer address ({address}), which means nothing beyond its link: give it \
             others at both ends first"
        ));
    }
    if gre.encap_limit {
        obstacles.push(format!(
            "{name} puts a tunnel encapsulation limit before GRE (encaplimit), an extension header which \
             netbond neither sends nor takes: change both ends first, `ip link change dev {name} type {} \
             ... encaplimit none`",
            kind(gre)
        ));
    }
    // ip_tunnel_rcv drops what has a checksum and should have none, and the other way round.
    if gre.input.checksum || gre.output.checksum {
        obstacles.push(format!(
            "{name} has GRE checksums (csum), which netbond neither sends nor takes, and a \
             kernel tunnel with csum drops packets without: change both ends first, `ip link \
             change dev {name} type {} ... nocsum`",
            kind(gre)
        ));
    }
    // ... and with iseq what has no sequence number. Whether the far end has that cannot be seen.
    if gre.output.sequence {
        obstacles.push(format!(
            "{name} sends sequence numbers (oseq), netbond does not, and a far end with iseq \
             drops packets without: change both ends first, `ip link change dev {name} type {} \
             ... noseq`",
            kind(gre)
        ));
    }
    if gre.input.key != gre.output.key {
        let shown = |key: Option<u32>| key.map_or("none".to_owned(), |key| key.to_string());
        obstacles.push(format!(
            "{name} has another key in (ikey {}) than out (okey {}), and netbond has one for \
             both: give both ends the same first, `ip link change dev {name} type {} ... key \
             NUMBER`",
            shown(gre.input.key),
            shown(gre.output.key),
            kind(gre)
        ));
    }
}

/// What iproute2 calls this type of tunnel.
pub(super) fn kind(gre: &Gre) -> &'static str {
    match (gre.remote, gre.ethernet) {
        (IpAddr::V4(_), false) => "gre",
        (IpAddr::V4(_), true) => "gretap",
        (IpAddr::V6(_), false) => "ip6gre",
        (IpAddr::V6(_), true) => "ip6gretap",
    }
}

fn paths<'h>(
    host: &'h Host,
    tunnels: &[(&'h Device, &'h Gre)],
    obstacles: &mut Vec<String>,
) -> Vec<Path<'h>> {
    let mut paths: Vec<Path<'_>> = Vec::new();
    for &(tunnel, gre) in tunnels {
        let way = host.way_to(gre.remote);
        let local = if gre.local.is_unspecified() {
            way.and_then(|way| way.source)
        } else {
            Some(gre.local)
        };
        let Some(local) = local else {
            // Of one without a far end that is told already, and that it has none.
            if !gre.external && !gre.remote.is_unspecified() {
                obstacles.push(format!(
                    "{} has no local address (any), and no route tells which it takes: give it \
                     one, `ip link change dev {} type {} ... local ADDRESS`",
                    tunnel.name,
                    tunnel.name,
                    kind(gre)
                ));
            }
            continue;
        };
        let holder = host
            .addresses
            .iter()
            .find(|address| address.own.address == local)
            .and_then(|address| host.by_index(address.ifindex));
        let by_route = || {
            let way = way?;
            host.by_index(*way.devices.first()?)
        };
        // An address of the loopback device or of a dummy tells nothing of the way out.
        let holder = holder.filter(|device| !is_local_only(device));
        let device = gre
            .link
            .and_then(|link| host.by_index(link))
            .or(holder)
            .or_else(by_route);
        let taken: Vec<&str> = paths.iter().map(|path| path.name.as_str()).collect();
        paths.push(Path {
            name: path_name(&tunnel.name, &taken),
            tunnel,
            gre,
            local,
            device,
            protocol: way.map(|way| way.protocol),
        });
    }
    paths
}

fn is_local_only(device: &Device) -> bool {
    match &device.kind {
        Kind::Other(kind) => device.name == "lo" || kind == "dummy",
        Kind::Bond(_) | Kind::Team | Kind::Gre(_) | Kind::Vlan { .. } => false,
    }
}

/// A name that netbond takes, made of a device's.
fn path_name(device: &str, taken: &[&str]) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let name: String = device
        .chars()
        .map(|c| if allowed(c) { c } else { '_' })
        .collect();
    unique(name, taken)
}

/// What the tunnels carry; all must carry the same.
fn one_kind(tunnels: &[(&Device, &Gre)], obstacles: &mut Vec<String>) -> Encap {
    let named = |ethernet: bool| -> Vec<&str> {
        tunnels
            .iter()
            .filter(|(_, gre)| gre.ethernet == ethernet)
            .map(|(device, _)| device.name.as_str())
            .collect()
    };
    let (taps, others) = (named(true), named(false));
    if !taps.is_empty() && !others.is_empty() {
        obstacles.push(format!(
            "some tunnels carry frames (gretap: {}), others IP packets (gre: {}): make them \
             alike at both ends first",
            taps.join(", "),
            others.join(", ")
        ));
    }
    if taps.is_empty() {
        Encap::Gre
    } else {
        Encap::Gretap
    }
}

/// The key of all tunnels.
fn one_key(tunnels: &[(&Device, &Gre)], obstacles: &mut Vec<String>) -> Option<u32> {
    let key = tunnels.first().and_then(|(_, gre)| gre.output.key);
    if tunnels.iter().any(|(_, gre)| gre.output.key != key) {
        let shown: Vec<String> = tunnels
            .iter()
            .map(|(device, gre)| match gre.output.key {
                Some(key) => format!("{} {key}", device.name),
                None => format!("{} none", device.name),
            })
            .collect();
        obstacles.push(format!(
            "the tunnels have different keys ({}), and netbond has one for all paths of a bond: \
             give all the same at both ends first (or none: their addresses tell them apart)",
            shown.join(", ")
        ));
    }
    key
}

/// Two tunnels between the same addresses are one path.
fn check_pairs(paths: &[Path<'_>], obstacles: &mut Vec<String>) {
    for (i, path) in paths.iter().enumerate() {
        let pair = |path: &Path<'_>| (path.local, path.gre.remote);
        if let Some(first) = paths[..i].iter().find(|first| pair(first) == pair(path)) {
            obstacles.push(format!(
                "{} and {} have the same addresses ({} to {}): netbond takes a pair of addresses \
                 for one path; take one of them out, or give it other addresses at both ends",
                first.tunnel.name, path.tunnel.name, path.local, path.gre.remote
            ));
        }
    }
}
