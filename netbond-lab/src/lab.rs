//! Building a lab, and taking it down whatever happened to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::daemon::last_lines;
use crate::router::Router;
use crate::state::{self, Claim, Record};
use crate::topology::{LinkKind, LinkSpec, RouterSpec, Topology, link_prefix, underlay_device};
use crate::underlay::Underlay;
use crate::wait::{PATIENCE, wait_for};
use crate::wireguard::{self, WireGuard};
use crate::{anchor, binary, namespace};

/// What is left to choose when a lab is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Who encrypts; `None`: what `NETBOND_LAB_WIREGUARD` says, else the kernel if it can.
    pub wireguard: Option<WireGuard>,
    /// Start BIRD in every router and wait until OSPF has converged.
    pub bird: bool,
    /// Start netbond in every router that has a bond and wait until all its paths are up. Needs
    /// `bird`.
    pub netbond: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            wireguard: None,
            bird: true,
            netbond: true,
        }
    }
}

/// A running lab. Dropping it takes everything down, unless it was [detached](Lab::detach).
#[derive(Debug)]
pub struct Lab {
    name: String,
    state: PathBuf,
    topology: Arc<Topology>,
    routers: BTreeMap<String, Router>,
    wireguard: WireGuard,
    /// Held while this process owns the lab; `None` for a detached one.
    claim: Option<Claim>,
}

impl Lab {
    /// Builds a lab and waits until it is usable: OSPF has converged and every path of every bond
    /// is up.
    ///
    /// What is left of a dead lab of the same name is removed first. Needs root.
    pub fn up(name: &str, topology: &Topology) -> Result<Self> {
        Self::up_with(name, topology, Options::default())
    }

    /// Like [`Lab::up`], with a choice of what is started.
    pub fn up_with(name: &str, topology: &Topology, options: Options) -> Result<Self> {
        topology
            .validate()
            .context("this topology cannot be built")?;
        let mut topology = topology.clone();
        if let Some(underlay) = Underlay::from_environment()? {
            topology = underlay.apply(topology);
        }
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a lab needs root (network namespaces, mounts)"
        );
        // Before anything is built: a missing program is the commonest mistake.
        binary::lab()?;
        if options.netbond && !topology.bonds.is_empty() {
            binary::netbond()?;
        }
        let claim = Claim::take(name)?;
        if Record::load(name).is_ok_and(|record| record.is_some_and(|record| record.detached)) {
            bail!("lab {name} is up already: end it with `netbond-lab down --name {name}`");
        }
        remove_leftovers(name, &claim)?;
        let state = claim.create_dir()?;
        // From here on, dropping `lab` removes whatever exists.
        let mut lab = Self {
            name: name.to_owned(),
            state,
            topology: Arc::new(topology),
            routers: BTreeMap::new(),
            wireguard: WireGuard::Embedded,
            claim: Some(claim),
        };
        lab.build(options)
            .with_context(|| format!("lab {name} did not come up"))?;
        Ok(lab)
    }

    /// Takes hold of a lab that was built by another process and [detached](Lab::detach). Dropping
    /// the result leaves the lab as it is.
    pub fn attach(name: &str) -> Result<Self> {
        let record = Record::load(name)?
            .with_context(|| format!("there is no lab {name}: `netbond-lab up --name {name}`"))?;
        let state = state::state_dir(name);
        let topology = Arc::new(record.topology);
        let mut routers = BTreeMap::new();
        for (router, anchor) in record.anchors {
            let netns = namespace::netns_name(name, &router);
            ensure!(
                namespace::contains(&netns, nix::unistd::Pid::from_raw(anchor)),
                "router {router} of lab {name} is dead: `netbond-lab down --name {name}`"
            );
            let held = Router::new(
                (name, &router),
                &state,
                (anchor, None),
                record.wireguard,
                Arc::clone(&topology),
            )?;
            routers.insert(router, held);
        }
        Ok(Self {
            name: name.to_owned(),
            state,
            topology,
            routers,
            wireguard: record.wireguard,
            claim: None,
        })
    }

    /// Lets the lab outlive this process. `netbond-lab down` ends it.
    pub fn detach(mut self) -> Result<()> {
        for router in self.routers.values() {
            anchor::request(router.socket(), "detach")?;
        }
        self.store_record(true)?;
        self.claim = None;
        Ok(())
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the lab was built from.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Who encrypts the links.
    pub fn wireguard(&self) -> WireGuard {
        self.wireguard
    }

    /// A router of the lab.
    ///
    /// # Panics
    ///
    /// If there is none of this name: a mistake in the test. [`Lab::routers`] lists them.
    pub fn router(&self, name: &str) -> &Router {
        match self.routers.get(name) {
            Some(router) => router,
            None => panic!(
                "no router {name} in lab {}: it has {}",
                self.name,
                self.routers
                    .keys()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        }
    }

    /// Every router, by name.
    pub fn routers(&self) -> impl Iterator<Item = &Router> {
        self.routers.values()
    }

    /// Waits until OSPF has converged: every router has a route to every other router's loopback,
    /// and to the far end of each of its bonds' paths by that path's own device.
    pub fn wait_converged(&self, deadline: Duration) -> Result<()> {
        for router in self.routers.values() {
            let others = self
                .topology
                .routers
                .iter()
                .filter(|spec| spec.name != router.name());
            let bonds = self
                .topology
                .bonds
                .iter()
                .filter(|bond| bond.router == router.name());
            let wanted = others.map(|spec| (spec.router_id.into(), None)).chain(
                bonds
                    .flat_map(|bond| &bond.paths)
                    .map(|path| (path.remote, Some(path.device.as_str()))),
            );
            for (address, device) in wanted {
                router.wait_route(&address.to_string(), device, deadline)?;
            }
        }
        Ok(())
    }

    /// Waits until netbond is ready in every router that has a bond.
    pub fn wait_netbond(&self, deadline: Duration) -> Result<()> {
        self.bonded()
            .try_for_each(|router| router.wait_netbond(deadline))
    }

    /// Takes the lab down and says what went wrong with that. Dropping does the same, silently.
    pub fn down(mut self) -> Result<()> {
        self.remove()
    }

    fn bonded(&self) -> impl Iterator<Item = &Router> {
        self.routers
            .values()
            .filter(|router| router.default_config().is_some())
    }

    fn build(&mut self, options: Options) -> Result<()> {
        self.start_routers(options)?;
        self.lay_underlay()?;
        wireguard::write_configs(&self.state, &self.topology)?;
        for router in self.routers.values() {
            router.create_devices(self.topology.ends_of(router.name()).collect())?;
        }
        for router in self.bonded() {
            if let Some(config) = router.default_config() {
                router.write_config(&config)?;
            }
        }
        if options.bird {
            for router in self.routers.values() {
                router.bird_spawn()?;
            }
            self.wait_converged(self.convergence_time())?;
        }
        if options.bird && options.netbond {
            for router in self.bonded() {
                router.start_netbond()?;
            }
            self.wait_netbond(PATIENCE)?;
        }
        Ok(())
    }

    /// How long OSPF may take from its start: hellos both ways, database exchange and a lost packet
    /// or two.
    fn convergence_time(&self) -> Duration {
        PATIENCE + 2 * Duration::from_secs(self.topology.ospf.dead.into())
    }

    /// Creates the namespaces and starts the process that holds each.
    fn start_routers(&mut self, options: Options) -> Result<()> {
        let topology = Arc::clone(&self.topology);
        let mut started = Vec::new();
        for spec in &topology.routers {
            let netns = namespace::netns_name(&self.name, &spec.name);
            namespace::create(&netns)?;
            started.push((spec, self.start_anchor(&spec.name, &netns)?, netns));
        }
        let wanted = match options.wireguard {
            Some(wireguard) => Some(wireguard),
            None => WireGuard::from_environment()?,
        };
        if let Some((_, _, netns)) = started.first() {
            self.wireguard = wanted.unwrap_or_else(|| WireGuard::detect(netns));
        }
        // All have been started: now each is waited for.
        for (spec, child, netns) in started {
            self.hold_router(spec, child, netns)?;
        }
        self.store_record(false)
    }

    /// Waits for a router's process and takes hold of the router.
    fn hold_router(&mut self, spec: &RouterSpec, mut child: Child, netns: String) -> Result<()> {
        let result = wait_ready(&mut child);
        let pid = i32::try_from(child.id())?;
        let router = Router::new(
            (&self.name, &spec.name),
            &self.state,
            (pid, Some(child)),
            self.wireguard,
            Arc::clone(&self.topology),
        )?;
        let log = router.state_file("router.log");
        self.routers.insert(spec.name.clone(), router);
        result.with_context(|| {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            format!(
                "router {} did not start: {}",
                spec.name,
                last_lines(&text, 5)
            )
        })?;
        let mut commands = format!("link set lo up\naddr add {}/32 dev lo\n", spec.router_id);
        if self.topology.has_ipv6() {
            commands += &format!("addr add {}/128 dev lo nodad\n", spec.loopback_v6());
        }
        namespace::ip_batch(&netns, &commands)
    }

    /// Kills every process of a router and removes its namespace, and with it its ends of the
    /// underlay: it is off.
    pub(crate) fn switch_off(&self, name: &str) -> Result<()> {
        let router = self.router(name);
        namespace::remove(router.netns()).with_context(|| format!("cannot switch {name} off"))?;
        router.reap();
        Ok(())
    }

    /// Ends [`Lab::switch_off`]: the router has its devices again. BIRD and netbond are not started.
    pub(crate) fn switch_on(&mut self, name: &str) -> Result<()> {
        let topology = Arc::clone(&self.topology);
        let spec = topology.routers.iter().find(|spec| spec.name == name);
        let spec = spec.with_context(|| format!("there is no router {name}"))?;
        for end in topology.ends_of(name) {
            // The kernel removes a namespace's devices in its own time, and their peers with them.
            let peer = self.router(&end.peer);
            let mut far = topology.ends_of(&end.peer).filter(|far| far.peer == name);
            let device = far.next().context("a link has one end")?.underlay_device;
            wait_for(&format!("end of {device}"), PATIENCE, || {
                let path = format!("/sys/class/net/{device}");
                Ok((!peer.host_path(&path).exists()).then_some(()))
            })?;
        }
        // The dead process's socket would be in its successor's way.
        let _ = std::fs::remove_file(anchor::socket_path(&self.state, name));
        let netns = namespace::netns_name(&self.name, name);
        namespace::create(&netns)?;
        let child = self.start_anchor(name, &netns)?;
        self.hold_router(spec, child, netns)?;
        self.store_record(false)?;
        for link in &topology.links {
            if link.ends.iter().any(|end| end.router == name) {
                self.lay_link(link)?;
            }
        }
        let router = self.router(name);
        topology
            .ends_of(name)
            .try_for_each(|end| router.create_device(&end.device))
    }

    fn start_anchor(&self, router: &str, netns: &str) -> Result<Child> {
        let log = self.state.join(format!("{router}.router.log"));
        let log = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        Command::new(binary::lab()?)
            .args(["router", netns, router])
            .arg(&self.state)
            // Its lifeline: closes when this process ends, however it does.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // The terminal's signals are for the owner, who then takes the lab down.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start the process of router {router}"))
    }

    /// Lays the veth pairs below WireGuard, made inside the namespaces: the host never sees them.
    fn lay_underlay(&self) -> Result<()> {
        let mut links = self.topology.links.iter();
        links.try_for_each(|link| self.lay_link(link))
    }

    fn lay_link(&self, link: &LinkSpec) -> Result<()> {
        match link.kind {
            LinkKind::WireGuard => {}
            // Its devices are the wire.
            LinkKind::Ethernet => return Ok(()),
        }
        let [a, b] = &link.ends;
        let (in_a, in_b) = (
            underlay_device(&a.router, &b.router),
            underlay_device(&b.router, &a.router),
        );
        let (netns_a, netns_b) = (
            self.router(&a.router).netns(),
            self.router(&b.router).netns(),
        );
        let (mtu, length) = (link.underlay_mtu, link_prefix(a.underlay));
        namespace::ip_batch(
            netns_a,
            &format!(
                "link add {in_a} mtu {mtu} type veth peer name {in_b} mtu {mtu} netns {netns_b}\n\
                     addr add {}/{length} dev {in_a}\n\
                     link set {in_a} up\n",
                a.underlay
            ),
        )?;
        namespace::ip_batch(
            netns_b,
            &format!(
                "addr add {}/{length} dev {in_b}\nlink set {in_b} up\n",
                b.underlay
            ),
        )
    }

    fn store_record(&self, detached: bool) -> Result<()> {
        Record {
            detached,
            wireguard: self.wireguard,
            topology: (*self.topology).clone(),
            anchors: self
                .routers
                .iter()
                .map(|(name, router)| (name.clone(), router.anchor_pid()))
                .collect(),
        }
        .store(&self.state)
    }

    fn remove(&mut self) -> Result<()> {
        let Some(claim) = self.claim.take() else {
            return Ok(());
        };
        let result = remove_leftovers(&self.name, &claim);
        for router in self.routers.values() {
            router.reap();
        }
        result?;
        claim.remove()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.claim.is_some() && std::thread::panicking() {
            // The logs go with the lab, and somebody will want to know why.
            for router in self.bonded() {
                let log = router.netbond_log();
                if !log.is_empty() {
                    eprintln!(
                        "netbond in router {}:\n{}",
                        router.name(),
                        last_lines(&log, 20)
                    );
                }
            }
            for router in self.routers() {
                let losses = router.losses();
                if !losses.is_empty() {
                    let name = router.name();
                    eprintln!("dropped in router {name}: {}", losses.join(", "));
                }
            }
        }
        if let Err(error) = self.remove() {
            eprintln!("cannot take lab {} down: {error:#}", self.name);
        }
    }
}

impl Router {
    /// Waits until the router's route to `address` leaves by `device` (`None`: by any device).
    pub fn wait_route(
        &self,
        address: &str,
        device: Option<&str>,
        deadline: Duration,
    ) -> Result<()> {
        let what = match device {
            Some(device) => format!("route to {address} by {device} in router {}", self.name()),
            None => format!("route to {address} in router {}", self.name()),
        };
        let remote: IpAddr = address.parse().context("no address")?;
        let wanted = self.topology().ends_of(self.name());
        let wanted = wanted
            .filter_map(|end| {
                let own = match remote {
                    IpAddr::V4(_) => Some(end.overlay.into()),
                    IpAddr::V6(_) => end.overlay_v6.map(IpAddr::from),
                };
                Some((end.device, own?))
            })
            .find(|(name, _)| Some(name.as_str()) == device);
        let any: IpAddr = match remote {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        ensure!(device.is_none() || wanted.is_some(), "no such device");
        wait_for(&what, deadline, || {
            // The kernel's own decision: each device has an address of its own. Asking it so costs
            // nothing beside a run of `ip`, and much is waited for here.
            let source = namespace::within(self.netns(), || {
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect((remote, 9))?;
                Ok(socket.local_addr()?.ip())
            })?;
            match &wanted {
                Some((_, own)) if source != *own => {
                    bail!("it leaves from {source}, not from {own}")
                }
                Some(_) | None => Ok(Some(())),
            }
        })
        .with_context(|| {
            let neighbours = self.birdc("show ospf neighbors");
            format!(
                "OSPF has not converged; BIRD in router {} says: {}",
                self.name(),
                neighbours
                    .unwrap_or_else(|error| format!("{error:#}"))
                    .trim()
            )
        })
    }
}

/// Waits for the line by which an anchor says that it can be talked to.
fn wait_ready(child: &mut Child) -> Result<()> {
    let stdout = child.stdout.take().context("its output is not captured")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line.trim() == anchor::READY, "it ended");
    Ok(())
}

/// What a lab of some name is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabInfo {
    /// The lab's name.
    pub name: String,
    /// Its routers.
    pub routers: Vec<String>,
    /// Whether it lives, and for whom.
    pub life: Life,
}

/// Why a lab exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Left running; until `netbond-lab down`.
    Detached,
    /// A process owns it and will take it down.
    Owned,
    /// Its owner died without taking it down.
    Dead,
}

/// Every lab on this machine, dead ones included.
pub fn list() -> Result<Vec<LabInfo>> {
    let mut labs: BTreeMap<String, Vec<String>> = state::names()?
        .into_iter()
        .map(|name| (name, Vec::new()))
        .collect();
    for (lab, router) in namespace::all()? {
        labs.entry(lab).or_default().push(router);
    }
    let mut infos = Vec::new();
    for (name, mut routers) in labs {
        routers.sort();
        // A lab that nobody holds is either detached or dead.
        let life = match Claim::try_take(&name)? {
            None => Life::Owned,
            Some(claim) => {
                let record = Record::load(&name).ok().flatten();
                let exists = claim.dir().exists();
                let life = match record {
                    Some(record) if record.detached => Life::Detached,
                    Some(_) | None => Life::Dead,
                };
                if !exists {
                    claim.remove()?;
                }
                life
            }
        };
        infos.push(LabInfo {
            name,
            routers,
            life,
        });
    }
    Ok(infos)
}

/// Takes a detached or dead lab down. Fails if a living process owns it. Whether there was one.
pub fn down(name: &str) -> Result<bool> {
    let claim = Claim::take(name)?;
    let existed = remove_leftovers(name, &claim)?;
    claim.remove()?;
    Ok(existed)
}

/// Ends every process of the lab and removes its namespaces and files; whether there was anything.
fn remove_leftovers(name: &str, claim: &Claim) -> Result<bool> {
    let mut existed = false;
    for (lab, router) in namespace::all()? {
        if lab == name {
            existed = true;
            namespace::remove(&namespace::netns_name(&lab, &router))
                .with_context(|| format!("cannot remove router {router} of lab {name}"))?;
        }
    }
    let dir: &Path = &claim.dir();
    if dir.exists() {
        existed = true;
        std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(existed)
}
