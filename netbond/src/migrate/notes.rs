//! What changes, in words.

use super::found::{Device, KernelBond, Kind};
use super::setup::{Setup, Source, kind};
use crate::config::Encap;

// BOND_MODE_* of linux/if_bonding.h.
const BALANCE_RR: u8 = 0;
const ACTIVE_BACKUP: u8 = 1;
const BALANCE_XOR: u8 = 2;
const BROADCAST: u8 = 3;
const LACP: u8 = 4;
const BALANCE_TLB: u8 = 5;
const BALANCE_ALB: u8 = 6;

/// What is there now, in half a sentence.
pub(super) fn described(setup: &Setup<'_>) -> String {
    let tunnels = listed(setup.paths.iter().map(|path| path.tunnel.name.as_str()));
    let kind = setup.paths.first().map_or("gre", |path| kind(path.gre));
    match setup.source {
        Source::Bond(device, bond) => format!(
            "{} ({} over {tunnels}, {kind})",
            device.name,
            mode_name(bond.mode)
        ),
        Source::Team(device) => format!("{} (a team over {tunnels}, {kind})", device.name),
        Source::Routes => format!("{tunnels} ({kind}, packets spread by routes)"),
    }
}

/// `a, b and c`.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

fn mode_name(mode: u8) -> &'static str {
    match mode {
        BALANCE_RR => "balance-rr",
        ACTIVE_BACKUP => "active-backup",
        BALANCE_XOR => "balance-xor",
        BROADCAST => "broadcast",
        LACP => "802.3ad",
        BALANCE_TLB => "balance-tlb",
        BALANCE_ALB => "balance-alb",
        _ => "an unknown mode",
    }
}

/// Everything there is to tell.
pub(super) fn of(setup: &Setup<'_>, peer: bool) -> String {
    let mut text = format!("Now: {}.\n\n", described(setup));
    text += &figures(setup);
    text.push('\n');
    let mut notes = Vec::new();
    monitoring(setup, &mut notes);
    notes.push(
        "While the other end is no netbond, probes are off and a path that dies silently is left \
         only when its route goes: when OSPF's dead interval is over, or at once where BFD \
         watches. Switch the other end too, then remove probe_interval = 0 at both."
            .to_owned(),
    );
    mode(setup, &mut notes);
    on_top(setup, &mut notes);
    headers(setup, &mut notes);
    underlay(setup, &mut notes);
    if peer {
        notes.push(
            "This is the other end's file: its devices are not known here, nor its MTUs. \
             `netbond init` there knows them."
                .to_owned(),
        );
    }
    for note in notes {
        text += &format!("- {note}\n");
    }
    text
}

/// MTU and bytes a packet, now and then.
fn figures(setup: &Setup<'_>) -> String {
    /// Heading, MTU, bytes of headers, what the other end has to be.
    type Column = [String; 4];
    let column = |heading: &str, mtu: Option<u32>, encap: Encap, other_end: &str| -> Column {
        [
            heading.to_owned(),
            mtu.map_or("?".to_owned(), |mtu| mtu.to_string()),
            setup.overhead(encap).to_string(),
            other_end.to_owned(),
        ]
    };
    let capped = setup
        .netbond_mtu(setup.encap)
        .map(|mtu| mtu.min(setup.cap().unwrap_or(u32::MAX)));
    let heading = format!("netbond, {}", setup.encap.label());
    let mut columns = vec![
        column("now", Some(setup.mtu), setup.encap, ""),
        column(&heading, capped, setup.encap, "as it is"),
    ];
    if setup.is_ethernet() && !setup.needs_ethernet() {
        let heading = format!("netbond, {}", Encap::Gre.label());
        let mtu = setup.netbond_mtu(Encap::Gre);
        columns.push(column(&heading, mtu, Encap::Gre, "netbond too"));
    }
    let labels = ["", "MTU, bytes", "headers a packet, bytes", "the other end"];
    let mut text = String::new();
    for (row, label) in labels.iter().enumerate() {
        let mut line = format!("{label:<24}");
        for column in &columns {
            line += &format!("{:>17}", column[row]);
        }
        text = text + line.trim_end() + "\n";
    }
    text
}

/// What watches the paths now.
fn monitoring(setup: &Setup<'_>, notes: &mut Vec<String>) {
    let bond = match setup.source {
        Source::Bond(_, bond) => bond,
        Source::Team(device) => {
            notes.push(format!(
                "What watches {}'s ports teamd knows (`teamdctl {} state`), the kernel does not. \
                 Its ethtool watcher looks at the carrier, which a tunnel never loses.",
                device.name, device.name
            ));
            return;
        }
        Source::Routes => {
            notes.push(
                "Nothing but routes watches the tunnels: one that dies silently goes on getting \
                 its share."
                    .to_owned(),
            );
            return;
        }
    };
    if bond.miimon == 0 && bond.arp_interval == 0 {
        notes.push(
            "Neither miimon nor arp_interval is set: nothing watches the paths, and a dead one \
             goes on getting its share."
                .to_owned(),
        );
    }
    if bond.miimon != 0 {
        notes.push(format!(
            "miimon {} ms is set. It looks at the carrier, and a tunnel never loses that: it \
             sees no dead path, which goes on getting its share.",
            bond.miimon
        ));
    }
    if bond.arp_interval != 0 {
        let targets: Vec<String> = bond.arp_targets.iter().map(ToString::to_string).collect();
        notes.push(format!(
            "arp_interval {} ms is set (targets {}). It sees dead paths in part: it goes by what \
             comes in, so that one whose way out alone is dead looks well for as long as the \
             other end sends on it. An ARP monitor at the other end goes on working: netbond's \
             packets come over all paths.",
            bond.arp_interval,
            if targets.is_empty() {
                "none".to_owned()
            } else {
                targets.join(", ")
            }
        ));
    }
    let down: Vec<&Device> = setup
        .paths
        .iter()
        .map(|path| path.tunnel)
        .filter(|tunnel| tunnel.down_in_bond)
        .collect();
    if !down.is_empty() {
        notes.push(format!(
            "The bond has {} out of use now, found down by its monitor; netbond uses it as soon \
             as it has a route.",
            listed(down.iter().map(|device| device.name.as_str()))
        ));
    }
}

/// What differs from the bond's mode.
fn mode(setup: &Setup<'_>, notes: &mut Vec<String>) {
    let (device, bond) = match setup.source {
        Source::Bond(device, bond) => (device, bond),
        Source::Team(device) => {
            notes.push(format!(
                "netbond sends one packet after the other over all paths (round robin). What \
                 runner {} has cannot be read here; with activebackup or lacp at the other end, \
                 that end drops what comes in on ports out of use: set its runner to roundrobin \
                 first.",
                device.name
            ));
            return;
        }
        Source::Routes => {
            notes.push(
                "netbond sends one packet after the other over all paths, where routes keep each \
                 flow on one: one flow gets more than a path's share, and packets of it may \
                 overtake each other. Strict rp_filter at the other end may drop what comes in on \
                 another tunnel than its route names: set net.ipv4.conf.*.rp_filter to 2 on its \
                 tunnels."
                    .to_owned(),
            );
            return;
        }
    };
    let active = bond.active.map_or_else(String::new, |active| {
        format!(" ({} now)", setup.host.name_of(active))
    });
    // bond_should_deliver_exact_match: what comes in on an inactive port is dropped.
    let deaf = |bond: &KernelBond| {
        let known = if bond.all_slaves_active {
            "as is set here"
        } else {
            "which is not set here"
        };
        format!(
            "The other end, in the same mode, drops what comes in on ports out of use: before \
             the switch, there: `ip link set dev {} type bond all_slaves_active 1` ({known}), or \
             its mode to balance-rr.",
            device.name
        )
    };
    match bond.mode {
        BALANCE_RR => {}
        ACTIVE_BACKUP => notes.push(format!(
            "active-backup uses one path{active}, netbond all of them, one packet after the \
             other. {}",
            deaf(bond)
        )),
        BALANCE_XOR => notes.push(
            "balance-xor keeps each flow on one path, netbond sends one packet after the other \
             over all: one flow gets more than a path's share, and packets of it may overtake \
             each other."
                .to_owned(),
        ),
        BROADCAST => notes.push(
            "broadcast sends each packet on every path, netbond each on one. Until the other end \
             is switched, its packets arrive here as often as there are paths, as they do now."
                .to_owned(),
        ),
        LACP => notes.push(format!(
            "802.3ad agrees on its ports by LACP, which netbond does not speak: a bond at the \
             other end that stays in that mode falls back to one port and drops what comes in on \
             others. Set both ends to balance-rr first, or switch both at once. `ip link set dev \
             {} type bond mode balance-rr` needs the bond down and without ports.",
            device.name
        )),
        BALANCE_TLB | BALANCE_ALB => notes.push(format!(
            "{} moves flows and MAC addresses between ports{active}, netbond sends one packet \
             after the other over all paths, from one MAC address. {}",
            mode_name(bond.mode),
            deaf(bond)
        )),
        mode => notes.push(format!(
            "Mode {mode} is not known here: what the other end does with packets on all paths is \
             for you to find out."
        )),
    }
}

/// What is built on the bond.
fn on_top(setup: &Setup<'_>, notes: &mut Vec<String>) {
    let name = setup.name;
    if let Some(bridge) = setup.bridge {
        notes.push(format!(
            "It is a port of {}: {name} takes its place there, in encap gretap alone. In gre it \
             carries no frames, so that the 14 bytes stay.",
            bridge.name
        ));
    }
    if !setup.uppers.is_empty() {
        let uppers: Vec<String> = setup
            .uppers
            .iter()
            .map(|upper| match &upper.kind {
                Kind::Vlan { id } => format!("{} (VLAN {id})", upper.name),
                Kind::Bond(_) | Kind::Team | Kind::Gre(_) | Kind::Other(_) => upper.name.clone(),
            })
            .collect();
        notes.push(format!(
            "On top of it: {}. They have to be made again on {name}, with their addresses and \
             routes; in encap gretap alone. Try first whether tagged frames pass.",
            uppers.join(", ")
        ));
    }
    if setup.is_ethernet()
        && setup
            .addresses
            .iter()
            .any(|address| address.own.address.is_ipv6())
    {
        notes.push(format!(
            "Its IPv6 link-local address is not carried over: where a daemon needs one (OSPFv3), \
             add an \"fe80::.../64\" of your choice to address of {name}."
        ));
    }
}

/// What differs in the outer headers.
fn headers(setup: &Setup<'_>, notes: &mut Vec<String>) {
    let tunnels = || setup.paths.iter().map(|path| (path.tunnel, path.gre));
    let names = |which: &dyn Fn(&super::found::Gre) -> bool| {
        let names: Vec<&str> = tunnels()
            .filter(|(_, gre)| which(gre))
            .map(|(device, _)| device.name.as_str())
            .collect();
        (!names.is_empty()).then(|| listed(names.into_iter()))
    };
    let mut ttls: Vec<u8> = tunnels().map(|(_, gre)| gre.ttl).collect();
    ttls.sort_unstable();
    ttls.dedup();
    if ttls.len() > 1 {
        let shown = setup
            .ttl
            .map_or("that of the inner packet".to_owned(), |ttl| ttl.to_string());
        notes.push(format!(
            "The tunnels have different TTLs, netbond has one for all: {shown}."
        ));
    }
    if let Some(names) = names(&|gre| gre.tos != 1) {
        notes.push(format!(
            "The outer TOS is a fixed value on {names} (0 unless given); netbond takes the inner \
             packet's."
        ));
    }
    if let Some(names) = names(&|gre| gre.pmtudisc) {
        notes.push(format!(
            "DF is set on every outer packet of {names} (pmtudisc); netbond sets it where the \
             inner packet has it, and around IPv6."
        ));
    }
    if let Some(names) = names(&|gre| gre.input.sequence) {
        notes.push(format!(
            "Sequence numbers are checked on {names} (iseq); netbond takes packets with such and \
             does not look at them: late ones are no longer dropped."
        ));
    }
    if let Some(names) = names(&|gre| gre.fwmark != 0) {
        notes.push(format!(
            "Outer packets of {names} get a firewall mark, netbond's none: rules that route by \
             it do not see its packets."
        ));
    }
}

/// What is below the tunnels.
fn underlay(setup: &Setup<'_>, notes: &mut Vec<String>) {
    let host = setup.host;
    if let Some(fits) = setup.netbond_mtu(setup.encap)
        && setup.mtu > fits
    {
        notes.push(format!(
            "MTU {} is more than fits into the paths now ({fits} does): longer packets are \
             fragmented or refused underway. netbond's device has {fits}; the other end's MTU had \
             better be no larger.",
            setup.mtu
        ));
    }
    if setup.cap().is_some() {
        notes.push(format!(
            "MTU {} is kept for now, as the other end may have no more; {} bytes fit.",
            setup.mtu,
            setup.netbond_mtu(setup.encap).unwrap_or(0)
        ));
    }
    unequal(
        notes,
        "The tunnels",
        setup.paths.iter().map(|path| path.tunnel),
    );
    unequal(
        notes,
        "The devices below the tunnels",
        setup.paths.iter().filter_map(|path| path.device),
    );
    for path in &setup.paths {
        let (tunnel, remote) = (&path.tunnel.name, path.gre.remote);
        if path.gre.local.is_unspecified() {
            notes.push(format!(
                "{tunnel} has no local address of its own (any): {} is what the kernel takes now.",
                path.local
            ));
        }
        let Some(way) = host.way_to(remote) else {
            notes.push(format!(
                "{tunnel}: no route leads to {remote} now; netbond uses the path once one does."
            ));
            continue;
        };
        if let Some(device) = path.device
            && !way.devices.contains(&device.ifindex)
        {
            notes.push(format!(
                "{tunnel}: packets to {remote} leave by {} now, not by {}, which has the local \
                 address: netbond calls that a detour and leaves the path out while another is up \
                 (detour = \"use\" to use it all the same).",
                listed(
                    way.devices
                        .iter()
                        .map(|&i| host.name_of(i))
                        .collect::<Vec<_>>()
                        .iter()
                        .map(String::as_str)
                ),
                device.name
            ));
        }
        if !Setup::is_ospf(way.protocol) {
            notes.push(format!(
                "{tunnel}: the route to {remote} is not OSPF's (protocol {}), so it says nothing \
                 of the path's health. The file counts such routes all the same (route_protocols).",
                way.protocol
            ));
        }
    }
}

/// Says so where devices have different MTUs.
fn unequal<'a>(notes: &mut Vec<String>, what: &str, devices: impl Iterator<Item = &'a Device>) {
    let devices: Vec<&Device> = devices.collect();
    let least = devices.iter().map(|device| device.mtu).min();
    if devices.iter().any(|device| Some(device.mtu) != least) {
        let shown: Vec<String> = devices
            .iter()
            .map(|device| format!("{} {}", device.name, device.mtu))
            .collect();
        notes.push(format!(
            "{what} have different MTUs ({}): the smallest counts for the whole bond, in netbond \
             too.",
            shown.join(", ")
        ));
    }
}

const _: () = assert!(
    Encap::Gretap.header_len() == 14,
    "the notes and the file say 14"
);
