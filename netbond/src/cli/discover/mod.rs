//! `netbond discover`.

mod text;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use futures::future::join_all;
use serde::Serialize;

use super::ConfigFile;
use super::output::Output;
use crate::config::{Config, Prefix};
use crate::discover::{
    Family, Found, Host, KernelRoutes, OwnBond, Proposal, Request, RouterSummary, View, host,
    of_peer, of_this_end, trace,
};
use crate::ospf::Daemon;
use crate::pins::Pins;
use crate::tables::{Tables, text as name_in};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The peer's OSPF router id, or an address of its; where it is left out, the routers that could be peers
    /// are listed
    #[arg(value_name = "PEER")]
    to: Option<IpAddr>,
    /// Only what goes over IPv4 [default: of the areas in which the peer is, that with the most paths]
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Only what goes over IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Write the other end's file, as far as it can be told from here
    #[arg(long, requires = "to")]
    peer: bool,
    /// Name of the bond device; where it is left out, that of the bond to this peer that is there already, else
    /// the first of nb0, nb1, ... that is free
    #[arg(long)]
    name: Option<String>,
    /// Address of this end's bond device, with its prefix length; may be repeated
    #[arg(long, value_name = "PREFIX")]
    address: Vec<Prefix>,
    /// Address of the other end's bond device
    #[arg(long, value_name = "PREFIX")]
    peer_address: Vec<Prefix>,
    #[command(flatten)]
    output: Output,
    /// Print all that was found as JSON, with the files of both ends (docs/discover.md tells of each field)
    #[arg(long)]
    json: bool,
    /// Send no packets to see whether they take the paths
    #[arg(long)]
    passive: bool,
    /// How to ask BIRD or FRR; where the usual file does not exist, or says nothing of them, both are tried
    #[command(flatten)]
    config: ConfigFile,
}

impl Args {
    fn family(&self) -> Option<Family> {
        match (self.ipv4, self.ipv6) {
            (false, false) => None,
            (true, _) => Some(Family::Ipv4),
            (false, true) => Some(Family::Ipv6),
        }
    }
}

/// A configuration that asks both daemons where they usually are.
const BOTH: &str = "[bird]\n[frr]\n";

/// The version of the JSON. Fields are added to it; where one is removed, is renamed, or comes to mean
/// something else, the version is another. `docs/discover.md` tells of each.
const VERSION: u32 = 1;

/// What `--json` prints of a peer.
#[derive(Serialize)]
struct Report<'a> {
    /// [`VERSION`].
    version: u32,
    daemon: String,
    #[serde(flatten)]
    proposal: &'a Proposal,
    config: Option<&'a str>,
    peer_config: Option<&'a str>,
}

/// What `--json` prints where no peer is named.
#[derive(Serialize)]
struct Listings {
    /// [`VERSION`].
    version: u32,
    areas: Vec<Listing>,
}

#[derive(Serialize)]
struct Listing {
    daemon: String,
    area: Ipv4Addr,
    family: Family,
    routers: Vec<RouterSummary>,
}

pub(super) fn run(args: &Args, pins: &Pins) -> Result<()> {
    let config = config(&args.config.path)?;
    let (daemons, protocols) = (Daemon::all(&config), &config.route_protocols);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let host = Host {
        bonds: bonds(&config, pins),
        ..host::read()?
    };
    let mut views = runtime.block_on(views(&daemons, &host))?;
    if let Some(family) = args.family() {
        views.retain(|view| view.family == family);
        ensure!(
            !views.is_empty(),
            "nobody tells of an OSPF area over {family}"
        );
    }
    let Some(to) = args.to else {
        return list(&views, args.json);
    };
    let own: Vec<IpAddr> = host
        .addresses
        .iter()
        .filter(|(device, _)| host.bonds.iter().all(|bond| bond.name != *device))
        .map(|(_, own)| own.address)
        .collect();
    let mut best: Option<(View, usize, KernelRoutes, Proposal)> = None;
    for view in views {
        let Some(peer) = peer_in(&view, to)? else {
            continue;
        };
        let kernel = host::routes(&view.addresses_of(peer), protocols)?;
        let proposal = view.propose(peer, &own, &kernel);
        let worth = |proposal: &Proposal| (proposal.paths.len(), proposal.possible);
        if best
            .as_ref()
            .is_none_or(|(.., other)| worth(&proposal) > worth(other))
        {
            best = Some((view, peer, kernel, proposal));
        }
    }
    let (mut view, peer, kernel, mut proposal) = best.with_context(|| {
        format!(
            "no router in the areas of this one has {to} as its id or address, as far as OSPF tells: `netbond \
             discover` lists those that could be peers"
        )
    })?;
    if !args.passive {
        let mut known = Vec::new();
        loop {
            let mut questions = View::questions(&proposal);
            questions.retain(|question| known.iter().all(|(known, _)| known != question));
            let answers = runtime.block_on(trace::ask(questions));
            known.extend(answers.context(
                "cannot send packets to see whether they take the paths (--passive sends none)",
            )?);
            if !view.learn(&mut proposal, &known) {
                break;
            }
            proposal = view.propose(peer, &own, &kernel);
        }
    }
    let name = args.name.clone().unwrap_or_else(|| view.bond_name(peer));
    report(args, &name, &view.daemon, &proposal)
}

/// The configuration, with both daemons where it names none.
fn config(file: &Path) -> Result<Config> {
    let usual = file == Path::new(super::CONFIG_FILE) && !file.exists();
    let mut config = if usual {
        Config::parse(BOTH, "")?
    } else {
        Config::load(file)?
    };
    if config.bird.is_none() && config.frr.is_none() {
        let both = Config::parse(BOTH, "")?;
        (config.bird, config.frr) = (both.bird, both.frr);
    }
    Ok(config)
}

/// The file's bonds, and those that a controller left here.
fn bonds(config: &Config, pins: &Pins) -> Vec<OwnBond> {
    let of_file = config.bonds.iter().map(|bond| OwnBond {
        name: bond.name.clone(),
        paths: bond
            .paths
            .iter()
            .map(|path| (path.name.clone(), path.remote))
            .collect(),
    });
    let mut bonds: Vec<OwnBond> = of_file.collect();
    // Where none ran, or this user may not look, the file is all there is.
    if let Ok(tables) = Tables::open(pins) {
        for info in tables.bond_ids().filter_map(|id| tables.bond_info(id)) {
            let name = name_in(&info.name);
            if bonds.iter().all(|bond| bond.name != name) {
                bonds.push(OwnBond {
                    name,
                    paths: Vec::new(),
                });
            }
        }
    }
    bonds
}

/// The areas that the daemons know, over IPv4 first; those that do not answer are told where none does.
async fn views(daemons: &[Daemon], host: &Host) -> Result<Vec<View>> {
    let mut views = Vec::new();
    let mut silent = Vec::new();
    let answers = join_all(daemons.iter().map(Daemon::instances)).await;
    for (daemon, answer) in daemons.iter().zip(answers) {
        match answer {
            Ok(instances) => {
                let known = View::all(daemon, instances, host);
                if known.is_empty() {
                    silent.push(format!("{daemon} has no OSPF area"));
                }
                views.extend(known);
            }
            Err(error) => silent.push(format!("{daemon}: {error:#}; {}", daemon.advice())),
        }
    }
    if views.is_empty() {
        bail!("nobody tells of OSPF:\n{}", silent.join("\n"));
    }
    // Of sets as large the first is proposed.
    views.sort_by_key(|view| view.family);
    Ok(views)
}

fn peer_in(view: &View, to: IpAddr) -> Result<Option<usize>> {
    match view.find(to) {
        Some(Found::Router(peer)) => Ok(Some(peer)),
        Some(Found::Own) => Err(anyhow!("{to} is this router itself: name the other end")),
        Some(Found::OneOf([one, other])) => Err(anyhow!(
            "{to} is on a link of {one} and {other}, and which of them has it OSPF does not tell: give the \
             router id"
        )),
        None => Ok(None),
    }
}

fn list(views: &[View], json: bool) -> Result<()> {
    let listings = views.iter().map(|view| Listing {
        daemon: view.daemon.to_string(),
        area: view.area,
        family: view.family,
        routers: view.routers(),
    });
    let listings = Listings {
        version: VERSION,
        areas: listings.collect(),
    };
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &listings)?;
        writeln!(out)?;
    } else {
        for (i, listing) in listings.areas.iter().enumerate() {
            if i > 0 {
                writeln!(out)?;
            }
            write!(out, "{}", text::routers(listing))?;
        }
    }
    Ok(())
}

fn report(args: &Args, name: &str, daemon: &Daemon, proposal: &Proposal) -> Result<()> {
    let request = |addresses| Request { name, addresses };
    let found = !proposal.paths.is_empty();
    let own = (found && (!args.peer || args.json))
        .then(|| of_this_end(proposal, request(&args.address), daemon))
        .transpose()?;
    let peer = (found && (args.peer || args.json))
        .then(|| of_peer(proposal, request(&args.peer_address)))
        .transpose()?;
    if let Some(file) = if args.peer { &peer } else { &own }
        && (!args.json || args.output.is_file())
    {
        args.output.write(file)?;
    }
    if args.json {
        let report = Report {
            version: VERSION,
            daemon: daemon.to_string(),
            proposal,
            config: own.as_deref(),
            peer_config: peer.as_deref(),
        };
        let mut out = std::io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        let explanation = text::explanation(proposal, daemon);
        std::io::stderr().lock().write_all(explanation.as_bytes())?;
    }
    if !found {
        bail!("no path has addresses between which OSPF leads packets over it: nothing is written");
    }
    Ok(())
}
