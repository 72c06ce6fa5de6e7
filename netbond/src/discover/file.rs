//! The configuration files of a proposal, for both ends.

use std::net::{IpAddr, Ipv4Addr};

use super::{Proposal, ProposedPath};
use crate::config::text::{Text, quoted};
use crate::config::{Config, Prefix, Problems};
use crate::ospf::Daemon;

/// What is wanted besides the paths.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Of the bond device.
    pub name: &'a str,
    /// Of the bond device at the end whose file it is; none: to be filled in.
    pub addresses: &'a [Prefix],
}

/// This router's file.
///
/// # Errors
/// What netbond would not take of it, such as a name or an address.
pub fn of_this_end(
    proposal: &Proposal,
    request: Request<'_>,
    daemon: &Daemon,
) -> Result<String, Problems> {
    let mut text = Text::default();
    text.wrapped(&format!(
        "Written by `netbond discover {}`: link-disjoint paths from router {} to {}, as OSPF knew them.",
        proposal.peer, proposal.own, proposal.peer
    ));
    text.comment("netbond.example.toml explains every key.");
    text.line("");
    match daemon {
        Daemon::Bird { socket } => {
            text.comment("Asks BIRD for OSPF neighbours and costs, to show them.");
            text.line("[bird]");
            text.line(format!(
                "socket = {}",
                quoted(&socket.display().to_string())
            ));
        }
        Daemon::Frr { vtysh } | Daemon::Frr6 { vtysh } => {
            text.comment("Asks FRR for OSPF neighbours and costs, to show them.");
            text.line("[frr]");
            text.list("vtysh", vtysh);
        }
    }
    text.line("");
    let detours = proposal.paths.iter().filter(|path| path.detour).collect();
    bond(&mut text, request, proposal.peer_prefix, detours);
    for path in &proposal.paths {
        text.line("");
        text.wrapped(&way(path, proposal.own));
        if let Some(other) = path.remote_or {
            text.wrapped(&format!(
                "CHECK remote: whether it is {} or {other} neither the daemon nor packets told.",
                path.remote
            ));
        }
        addresses(&mut text, path, [path.local, path.remote]);
        text.line(format!("device = {}", quoted(&path.device)));
    }
    checked(text)
}

/// The peer's file, as far as it can be told from here.
///
/// # Errors
/// As [`of_this_end`].
pub fn of_peer(proposal: &Proposal, request: Request<'_>) -> Result<String, Problems> {
    let mut text = Text::default();
    text.wrapped(&format!(
        "Written by `netbond discover {} --peer` at router {}, for router {}: the same paths from this end.",
        proposal.peer, proposal.own, proposal.peer
    ));
    text.wrapped(&format!(
        "`netbond discover {}` at this end sees whether packets take them.",
        proposal.own
    ));
    text.line("");
    text.comment(
        "Asks the daemon here for OSPF neighbours and costs, to show them: [bird] or [frr].",
    );
    text.comment("[bird]");
    text.line("");
    let detours = proposal
        .paths
        .iter()
        .filter(|path| path.peer_detour)
        .collect();
    bond(&mut text, request, proposal.own_prefix, detours);
    for path in &proposal.paths {
        text.line("");
        text.wrapped(&way_back(path, proposal));
        if let Some(other) = path.remote_or {
            text.wrapped(&format!("CHECK local: it is {} or {other}.", path.remote));
        }
        addresses(&mut text, path, [path.remote, path.local]);
        // Without `device`, a path leaves by the one that has its local address.
        if !path.remote_on_link {
            let next = path.middle().last().unwrap_or(proposal.own);
            text.comment(format!(
                "device = \"...\"   # that to router {next}: fill it in"
            ));
        }
    }
    checked(text)
}

/// What is said once.
fn bond(text: &mut Text, request: Request<'_>, peer: Option<Prefix>, detours: Vec<&ProposedPath>) {
    text.line("[[bond]]");
    text.line(format!("name = {}", quoted(request.name)));
    if request.addresses.is_empty() {
        text.comment("Addresses of the bond device, in a network of its own: fill them in.");
        text.comment("address = [\"192.0.2.1/30\"]");
    } else {
        text.list("address", request.addresses);
    }
    match peer {
        Some(prefix) => text.line(format!("peer = \"{prefix}\"")),
        None => {
            text.comment("A prefix of the peer's own that OSPF knows; it announces none now.");
            text.comment("peer = \"192.0.2.1/32\"");
        }
    }
    if !detours.is_empty() {
        let names: Vec<&str> = detours.iter().map(|path| path.name.as_str()).collect();
        text.wrapped(&format!(
            "OSPF's cheapest way to the remote address of {} begins with another device. netbond sends by the \
             path's own, and what follows is OSPF's way from there. Probes find it dead when it is.",
            names.join(", ")
        ));
        text.line("detour = \"use\"");
    }
}

fn addresses(text: &mut Text, path: &ProposedPath, [local, remote]: [IpAddr; 2]) {
    text.line("[[bond.path]]");
    text.line(format!("name = {}", quoted(&path.name)));
    text.line(format!("local = \"{local}\""));
    text.line(format!("remote = \"{remote}\""));
}

/// The path's routers, and what it costs.
fn way(path: &ProposedPath, own: Ipv4Addr) -> String {
    let routers = path.hops.iter().map(|hop| hop.router.to_string());
    let all: Vec<String> = std::iter::once(own.to_string()).chain(routers).collect();
    format!(
        "{}: cost {}, back {}.",
        all.join(" > "),
        path.cost_there,
        path.cost_back
    )
}

fn way_back(path: &ProposedPath, proposal: &Proposal) -> String {
    let routers = std::iter::once(proposal.own).chain(path.hops.iter().map(|hop| hop.router));
    let mut all: Vec<String> = routers.map(|router| router.to_string()).collect();
    all.reverse();
    format!(
        "{}: cost {}, back {}.",
        all.join(" > "),
        path.cost_back,
        path.cost_there
    )
}

fn checked(text: Text) -> Result<String, Problems> {
    Config::parse(&text.0, "the file that would be written")?;
    Ok(text.0)
}
