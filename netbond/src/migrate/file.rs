//! The configuration file for a bond made by hand, with the commands of the switch as comments.

use std::net::IpAddr;

use super::found::{Address, Hop, Kind, Route};
use super::notes;
use super::setup::{FarEnds, Setup, Source};
use crate::config::text::{Text, quoted};
use crate::config::{Prefix, ROUTE_PROTOCOLS};

/// rtm_protocol of routes that an administrator made: boot and static.
const BY_HAND: [u8; 2] = [3, 4];
/// RT_TABLE_MAIN.
const MAIN_TABLE: u32 = 254;

/// This end's file; `name` is what the commands call it.
pub(super) fn of_this_end(setup: &Setup<'_>, name: &str) -> String {
    let mut text = Text::default();
    let from = from(setup);
    text.comment(format!(
        "Written by `netbond init --from-bond {from}`: in place of"
    ));
    text.comment(format!("{}.", notes::described(setup)));
    text.comment("How to switch stands at the end; netbond.example.toml explains every key.");
    text.line("");
    protocols(&mut text, setup);
    text.line("[[bond]]");
    text.line(format!("name = {}", quoted(setup.name)));
    let own: Vec<Prefix> = setup.addresses.iter().map(|address| address.own).collect();
    if own.is_empty() {
        text.comment("Without an address, as now.");
    } else {
        text.list("address", &own);
    }
    settings(&mut text, setup);
    for path in &setup.paths {
        text.line("");
        text.line("[[bond.path]]");
        text.line(format!("name = {}", quoted(&path.name)));
        text.line(format!("local = \"{}\"", path.local));
        text.line(format!("remote = \"{}\"", path.gre.remote));
        match path.device {
            Some(device) => text.line(format!("device = {}", quoted(&device.name))),
            None => text.comment(
                "No device has the local address now, and no route leads there: fill one in.",
            ),
        }
    }
    text.line("");
    steps(&mut text, setup, name);
    text.0
}

/// The other end's file, as far as it can be told from here.
pub(super) fn of_peer(setup: &Setup<'_>) -> String {
    let mut text = Text::default();
    text.comment(format!(
        "Written by `netbond init --peer --from-bond {}` at the other end, from what that end \
         knows:",
        from(setup)
    ));
    text.comment("check it. `netbond init` at this end knows more, and tells how to switch.");
    text.line("");
    protocols(&mut text, setup);
    text.line("[[bond]]");
    text.line(format!("name = {}", quoted(setup.name)));
    far_addresses(&mut text, setup);
    settings(&mut text, setup);
    text.line("");
    text.comment(
        "The devices here are not known to the other end. Without `device`, a path leaves by",
    );
    text.comment("the one that has its local address; name it where that is another.");
    for (i, path) in setup.paths.iter().enumerate() {
        if i != 0 {
            text.line("");
        }
        text.line("[[bond.path]]");
        text.line(format!("name = {}", quoted(&path.name)));
        text.line(format!("local = \"{}\"", path.gre.remote));
        text.line(format!("remote = \"{}\"", path.local));
    }
    text.0
}

/// The names as the command line had them.
fn from(setup: &Setup<'_>) -> String {
    let names: Vec<&str> = setup.tops().iter().map(|top| top.name.as_str()).collect();
    names.join(",")
}

/// Whose routes count, and whom to ask for neighbours.
fn protocols(text: &mut Text, setup: &Setup<'_>) {
    let found = setup.protocols();
    let others: Vec<u8> = found
        .iter()
        .copied()
        .filter(|&protocol| !Setup::is_ospf(protocol))
        .collect();
    if !others.is_empty() {
        text.comment(
            "A path is used while a route of one of these protocols leads to its remote address.",
        );
        text.comment(
            "Now there are such that are not OSPF's: they do not vanish when a path dies.",
        );
        let mut names: Vec<String> = ["bird", "ospf", "zebra"].map(quoted).into();
        names.extend(others.iter().map(|&protocol| named(protocol)));
        text.line(format!("route_protocols = [{}]", names.join(", ")));
        text.line("");
    }
    if found.contains(&12) {
        text.comment("Asks BIRD for OSPF neighbours, to show them.");
        text.line("[bird]");
        text.line("");
    }
    if found.contains(&188) || found.contains(&11) {
        text.comment("Asks FRR for OSPF neighbours, to show them.");
        text.line("[frr]");
        text.line("");
    }
}

/// A protocol's name, or its number where it has none.
fn named(protocol: u8) -> String {
    ROUTE_PROTOCOLS
        .iter()
        .find(|(_, number)| *number == protocol)
        .map_or_else(|| protocol.to_string(), |(name, _)| quoted(name))
}

/// The other end's addresses, as far as the local network tells them.
fn far_addresses(text: &mut Text, setup: &Setup<'_>) {
    let mut known = Vec::new();
    let mut guesses: Vec<(&Address, Vec<IpAddr>)> = Vec::new();
    let mut heard = Vec::new();
    for &address in &setup.addresses {
        let prefix = |far| Prefix {
            address: far,
            ..address.own
        };
        match setup.far_ends(address) {
            FarEnds::Known(far) => known.push(prefix(far)),
            FarEnds::Heard(found) => match found[..] {
                [only] => {
                    heard.push(only.to_string());
                    known.push(prefix(only));
                }
                _ => guesses.push((address, found)),
            },
        }
    }
    for (address, found) in &guesses {
        let found: Vec<String> = found
            .iter()
            .map(|far| format!("{far}/{}", address.own.length))
            .collect();
        text.comment(if found.is_empty() {
            format!(
                "Which address this end has in the network of the other end's {} is not known: \
                 fill it in.",
                address.own
            )
        } else {
            format!(
                "In the network of the other end's {} it hears {}: fill in this end's.",
                address.own,
                found.join(", ")
            )
        });
    }
    match (&known[..], setup.addresses.first()) {
        ([], None) => {
            text.comment("The other end's bond has no address: fill in this one's, if it has any.")
        }
        ([], Some(address)) => {
            let network = address.own.network();
            text.comment(format!("address = [\"...\"]   # in {network}"));
        }
        (known, _) => {
            if !heard.is_empty() {
                text.comment(format!(
                    "Check {}: it is the other end's only neighbour in that network.",
                    heard.join(", ")
                ));
            }
            text.list("address", known);
        }
    }
}

/// What both ends have in common.
fn settings(text: &mut Text, setup: &Setup<'_>) {
    text.line("");
    if setup.is_ethernet() {
        text.comment("As the other end speaks now.");
        if setup.needs_ethernet() {
            text.comment(
                "Both ends may change to \"gre\" once both run netbond, but not with a bridge or \
                 VLANs on top.",
            );
        } else {
            text.comment(
                "Once both ends run netbond, \"gre\" leaves 14 bytes more to each packet: \
                 change it at",
            );
            text.comment("both ends at once.");
        }
    }
    text.line(format!("encap = \"{}\"", setup.encap.label()));
    if let Some(key) = setup.key {
        text.line(format!("key = {key}"));
    }
    if let Some(cap) = setup.cap() {
        text.comment(
            "What the bond has now. Without it, as much as the paths take: remove it at both ends.",
        );
        text.line(format!("mtu = {cap}"));
    }
    match setup.ttl {
        Some(ttl) => text.line(format!("ttl = {ttl}")),
        None => {
            text.comment(
                "As the tunnels. Without it 64, and what has TTL 1 (OSPF, MLD) reaches the other end.",
            );
            text.line("ttl = \"inherit\"");
        }
    }
    text.line("");
    text.comment(
        "The other end answers no probes before it runs netbond too. Until then a path that dies",
    );
    text.comment(
        "silently is found by its route alone, as OSPF does. Once both ends run netbond, remove \
         this",
    );
    text.comment("at both: it is found within a tenth of a second.");
    text.line("probe_interval = 0");
    text.line("");
    text.comment(
        "A prefix of the other end that OSPF knows, such as that of its router id: fill it in.",
    );
    text.comment("peer = \"192.0.2.1/32\"");
}

/// The commands of the switch, in order.
fn steps(text: &mut Text, setup: &Setup<'_>, file: &str) {
    let new = setup.name;
    let tops = setup.tops();
    // The name is free only once its bearer is gone.
    let renamed = tops.iter().any(|top| top.name == new);
    text.comment(
        "The switch, at this end alone. The other end stays as it is. Traffic stands still from \
         2 to 4.",
    );
    text.comment("");
    text.comment(format!(" 1. netbond check -c {file}"));
    let mut number = " 2.";
    let command = |text: &mut Text, number: &mut &str, command: String| {
        text.comment(format!("{number:>3} {command}"));
        *number = "";
    };
    for top in &tops {
        if setup.bridge.is_some() {
            command(
                text,
                &mut number,
                format!("ip link set dev {} nomaster", top.name),
            );
        }
        if renamed {
            command(text, &mut number, format!("ip link del dev {}", top.name));
        } else {
            command(
                text,
                &mut number,
                format!("ip address flush dev {}", top.name),
            );
            command(
                text,
                &mut number,
                format!("ip link set dev {} down", top.name),
            );
        }
    }
    text.comment(format!(
        " 3. netbond run -c {file}   # as a service, or in a terminal of its own"
    ));
    number = " 4.";
    if let Some(bridge) = setup.bridge {
        command(
            text,
            &mut number,
            format!("ip link set dev {new} master {}", bridge.name),
        );
    }
    for upper in &setup.uppers {
        let made = match &upper.kind {
            Kind::Vlan { id } => format!(
                "ip link add link {new} name {} type vlan id {id}",
                if renamed {
                    upper.name.clone()
                } else {
                    format!("{new}.{id}")
                }
            ),
            Kind::Bond(_) | Kind::Team | Kind::Gre(_) | Kind::Other(_) => {
                format!("make {} again, on {new}", upper.name)
            }
        };
        command(
            text,
            &mut number,
            format!("{made}   # in place of {}, with its addresses", upper.name),
        );
    }
    for address in &setup.addresses {
        if let Some(far) = address.far {
            let length = if far.is_ipv4() { 32 } else { 128 };
            command(
                text,
                &mut number,
                format!("{} {far}/{length} dev {new}", route_command(far)),
            );
        }
    }
    let mut daemons = Vec::new();
    for route in &setup.routes {
        if BY_HAND.contains(&route.protocol) {
            command(text, &mut number, moved(setup, route));
        } else if !daemons.contains(&route.protocol) {
            daemons.push(route.protocol);
        }
    }
    for protocol in daemons {
        command(
            text,
            &mut number,
            format!(
                "tell the daemon of the routes with protocol {} that the link is {new} now",
                named(protocol).trim_matches('"')
            ),
        );
    }
    if !number.is_empty() {
        command(
            text,
            &mut number,
            "(no route, bridge or VLAN has to be moved)".to_owned(),
        );
    }
    let far = setup
        .addresses
        .iter()
        .find_map(|&address| match setup.far_ends(address) {
            FarEnds::Known(far) => Some(far),
            FarEnds::Heard(found) => found.first().copied(),
        });
    let target = far.map_or("THE OTHER END".to_owned(), |far| far.to_string());
    if setup.is_ethernet() {
        text.comment(format!(
            " 5. ping -c 3 {target}   # tells the other end the new MAC address, too"
        ));
    } else {
        text.comment(format!(" 5. ping -c 3 {target}"));
    }
    text.comment(" 6. netbond status");
    text.comment("");
    back(text, setup, renamed);
    text.comment("");
    text.comment("When all is well, take these out of what makes them at boot, and:");
    if let Source::Bond(device, _) | Source::Team(device) = setup.source
        && !renamed
    {
        text.comment(format!("    ip link del dev {}", device.name));
    }
    for path in &setup.paths {
        if !(renamed && matches!(setup.source, Source::Routes)) {
            text.comment(format!("    ip link del dev {}", path.tunnel.name));
        }
    }
    text.comment(format!(
        "and name {new} where the firewall, sysctls or daemons name {}.",
        from(setup)
    ));
}

/// The way back.
fn back(text: &mut Text, setup: &Setup<'_>, renamed: bool) {
    text.comment("Back: end netbond, then");
    text.comment("    netbond detach");
    if renamed {
        text.comment(format!(
            "    make {} again as it was made before",
            from(setup)
        ));
        return;
    }
    for top in setup.tops() {
        text.comment(format!("    ip link set dev {} up", top.name));
        if let Some(bridge) = setup.bridge {
            text.comment(format!(
                "    ip link set dev {} master {}",
                top.name, bridge.name
            ));
        }
        for address in setup.host.addresses.iter().filter(|address| {
            address.ifindex == top.ifindex && !super::setup::is_link_local(address.own.address)
        }) {
            let own = address.own;
            text.comment(match address.far {
                Some(far) => format!(
                    "    ip address add {} peer {far}/{} dev {}",
                    own.address, own.length, top.name
                ),
                None => format!("    ip address add {own} dev {}", top.name),
            });
        }
    }
    if setup
        .routes
        .iter()
        .any(|route| BY_HAND.contains(&route.protocol))
    {
        text.comment("    and the routes as they were:");
        for route in &setup.routes {
            if BY_HAND.contains(&route.protocol) {
                text.comment(format!("    {}", restored(setup, route)));
            }
        }
    }
}

fn route_command(to: IpAddr) -> &'static str {
    if to.is_ipv4() {
        "ip route replace"
    } else {
        "ip -6 route replace"
    }
}

/// The command that makes a route over netbond's bond device.
fn moved(setup: &Setup<'_>, route: &Route) -> String {
    let tops = setup.tops();
    let ours = |hop: &&Hop| tops.iter().any(|top| top.ifindex == hop.ifindex);
    let to = target(route);
    if !route.hops.iter().all(|hop| ours(&hop)) {
        return format!("change the route to {to}, which leads elsewhere too, by hand");
    }
    let mut command = format!("{} {to}", route_command(route.to.address));
    // A bond that carries IP packets has one neighbour and needs no gateway.
    if setup.is_ethernet()
        && let Some(gateway) = route.hops.iter().find_map(|hop| hop.gateway)
    {
        command += &via(route, gateway);
    }
    command + &format!(" dev {}", setup.name) + &attributes(route)
}

/// The command that makes a route as it is now.
fn restored(setup: &Setup<'_>, route: &Route) -> String {
    let mut command = format!("{} {}", route_command(route.to.address), target(route));
    let hop = |hop: &Hop| {
        let via = hop
            .gateway
            .map_or_else(String::new, |gateway| via(route, gateway));
        format!("{via} dev {}", setup.host.name_of(hop.ifindex))
    };
    match &route.hops[..] {
        [only] => command = command + &hop(only) + &attributes(route),
        several => {
            command += &attributes(route);
            for each in several {
                command = command + " nexthop" + &hop(each);
            }
        }
    }
    command
}

fn target(route: &Route) -> String {
    if route.to.length == 0 {
        "default".to_owned()
    } else {
        route.to.to_string()
    }
}

fn via(route: &Route, gateway: IpAddr) -> String {
    if route.to.address.is_ipv4() && gateway.is_ipv6() {
        format!(" via inet6 {gateway}")
    } else {
        format!(" via {gateway}")
    }
}

/// What of a route is no destination and no next hop.
fn attributes(route: &Route) -> String {
    let mut text = String::new();
    if let Some(source) = route.source {
        text += &format!(" src {source}");
    }
    if route.metric != 0 {
        text += &format!(" metric {}", route.metric);
    }
    if route.table != MAIN_TABLE {
        text += &format!(" table {}", route.table);
    }
    if route.protocol == 4 {
        text += " proto static";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_without_a_name_are_numbers() {
        assert_eq!(named(4), "\"static\"");
        assert_eq!(named(77), "77");
    }
}
