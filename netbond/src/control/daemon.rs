//! `netbond run`: the tasks around the state machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::ops::RangeFrom;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tracing::{error, warn};

use super::{
    apply::Applier,
    event::Event,
    liveness::{self, Verdict},
    prober::Prober,
    service::Service,
    state::Controller,
};
use crate::{
    bfd, check,
    config::{self, Config},
    journal::About,
    lock::Lock,
    metrics::{self, Endpoint},
    netlink::{Monitor, MonitorOptions},
    ospf,
    pins::Pins,
};

/// How often the user's flags are looked at. The data plane obeys them at once; this only brings the
/// wheel in line.
const ADMIN_INTERVAL: Duration = Duration::from_millis(200);
/// How often the OSPF daemons are asked.
const OSPF_INTERVAL: Duration = Duration::from_secs(1);
/// Events that may wait to be handled.
const QUEUE: usize = 1024;

/// How the journal begins to tell what came of a reload.
pub const RELOADED: &str = "reloaded ";
pub const NOT_RELOADED: &str = "not reloaded, all stays as it was: ";

/// How to run.
pub struct Options {
    pub config: PathBuf,
    pub pins: Pins,
    /// Where to write every event as a line of JSON, to be replayed later.
    pub record: Option<PathBuf>,
}

/// Runs the controller until SIGTERM or SIGINT. Packets pass on after it ends.
///
/// # Errors
///
/// Where it cannot start, or the kernel's events can no longer be followed.
pub async fn run(options: Options) -> Result<()> {
    let (config, text) = Config::load_with_text(&options.config)?;
    warn_about_host(&options.config, &config)?;
    let lock = Lock::take(&options.pins)?;
    let mut signals = Signals::catch()?;
    let mut daemon = Daemon::start(options, config, text).await?;
    let ended = daemon.serve(&mut signals).await;
    daemon.service.stops();
    let journal = daemon.applier.journal();
    match &ended {
        Ok(()) => journal.did(
            About::ALL,
            "controller stopped; packets pass on, `netbond detach` ends that",
        ),
        Err(error) => journal.failed(About::ALL, &format!("controller ends: {error:#}")),
    }
    drop(lock);
    ended
}

/// What the host lacks is no reason not to start: devices and addresses may come later.
fn warn_about_host(file: &Path, config: &Config) -> Result<()> {
    let file = file.display().to_string();
    for finding in check::at_start(config)? {
        warn!("{}; {}", finding.sentence(&file), finding.remedy);
    }
    Ok(())
}

/// The signals that mean something, caught before anything else is done.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn catch() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// What a reload took over.
struct Reloaded {
    bonds: usize,
    /// What the file says otherwise than before, a line each.
    differences: Vec<String>,
}

struct Daemon {
    options: Options,
    /// What the configuration file said when it was taken over.
    text: String,
    controller: Controller,
    applier: Applier,
    monitor: Monitor,
    /// Held: its task ends when it is dropped.
    ospf: Option<ospf::Poller>,
    prober: Prober,
    bfd: Bfd,
    metrics: Endpoint,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    admin_down: BTreeSet<u32>,
    record: Option<File>,
    service: Service,
}

impl Daemon {
    async fn start(options: Options, config: Config, text: String) -> Result<Self> {
        let record = match &options.record {
            None => None,
            Some(path) => {
                Some(File::create(path).with_context(|| format!("creating {}", path.display()))?)
            }
        };
        let metrics = Endpoint::new(options.pins.clone());
        let prepared = metrics.prepare(&config, &options.config)?;
        let mut applier = Applier::start(&options.pins, &config)?;
        let mut controller = Controller::default();
        let ids = applier.configure(&config, &mut || ()).await?;
        controller.configure(&config, &ids);
        let failed = applier.failed_by_bfd(controller.path_ids());
        let proven = applier.proven(controller.path_ids());
        // A bond's MTU is not raised before larger packets are known to pass.
        let path_mtus = applier.path_mtus(controller.path_ids());
        let neighbours = applier.neighbours(controller.path_ids());
        let (sender, events) = mpsc::channel(QUEUE);
        let monitor = Monitor::spawn(
            &MonitorOptions::default(),
            controller.targets(),
            sender.clone(),
        )?;
        let prober = Prober::spawn(&options.pins, sender.clone())?;
        prober.watch(controller.watched(), failed, controller.gaps());
        let mut daemon = Self {
            options,
            text,
            controller,
            applier,
            monitor,
            ospf: None,
            prober,
            bfd: Bfd::new(),
            metrics,
            sender,
            events,
            admin_down: BTreeSet::new(),
            record,
            service: Service::new(),
        };
        // What an earlier controller knew, or the peer's one finds out meanwhile: without a route of OSPF
        // nothing else keeps a path.
        for neighbour in neighbours {
            daemon.handle(neighbour).await?;
        }
        for path in proven {
            let verdict = Verdict::Alive;
            daemon.handle(Event::Liveness { path, verdict }).await?;
        }
        for (path, bytes) in path_mtus {
            let bytes = Some(bytes);
            daemon.handle(Event::PathMtu { path, bytes }).await?;
        }
        daemon.poll_ospf(&config);
        daemon.bfd.speak(daemon.controller.bfd_sessions())?;
        daemon.look_at_admin().await?;
        let text = format!(
            "controller started: netbond {}, pid {}, bonds: {}",
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            config.bonds.len()
        );
        daemon.applier.journal().did(About::ALL, &text);
        daemon.serve_metrics(prepared);
        daemon.service.is_ready(config.bonds.len());
        Ok(daemon)
    }

    async fn serve(&mut self, signals: &mut Signals) -> Result<()> {
        let mut admin = interval(ADMIN_INTERVAL);
        admin.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                Some(event) = self.events.recv() => self.handle(event).await?,
                Some(report) = self.bfd.heard() => {
                    let session = match report {
                        bfd::Report { up: true, .. } => liveness::Bfd::Up,
                        bfd::Report { ended: true, .. } => liveness::Bfd::Ended,
                        bfd::Report { diag, .. } => liveness::Bfd::Down(diag.to_string()),
                    };
                    self.prober.bfd(report.id, session);
                }
                ended = self.monitor.finished() => {
                    return ended.context("the kernel's events can no longer be followed");
                }
                _ = admin.tick() => {
                    self.look_at_admin().await?;
                    self.applier.mend().await?;
                    self.applier.heartbeat()?;
                    ensure!(!self.prober.has_ended(), "the thread that probes the paths ended");
                    self.service.lives();
                }
                _ = signals.hangup.recv() => self.reload().await,
                _ = signals.terminate.recv() => return Ok(()),
                _ = signals.interrupt.recv() => return Ok(()),
            }
        }
    }

    async fn handle(&mut self, event: Event) -> Result<()> {
        if let Some(record) = &mut self.record {
            let line = serde_json::to_string(&event)?;
            if let Err(error) = writeln!(record, "{line}") {
                warn!("no longer recording: {error}");
                self.record = None;
            }
        }
        let (gone, changed) = match &event {
            Event::LinkGone { ifindex } => (Some(*ifindex), None),
            Event::Link(link) => (None, Some(link.clone())),
            Event::Address { .. }
            | Event::AddressGone { .. }
            | Event::Route { .. }
            | Event::Ospf(_)
            | Event::Liveness { .. }
            | Event::PathMtu { .. }
            | Event::Neighbour { .. }
            | Event::Options { .. }
            | Event::Share { .. }
            | Event::Settled { .. }
            | Event::Admin { .. } => (None, None),
        };
        let handled = self.controller.handle(event);
        if !handled.look_at_mtu.is_empty() {
            self.prober.look_at_mtu(handled.look_at_mtu);
        }
        for outcome in handled.outcomes {
            self.applier.apply(outcome).await?;
        }
        for note in &handled.notes {
            let path = note.path.as_deref().unwrap_or_default();
            let about = About::path(&note.bond, path);
            if note.confirms {
                self.applier.journal().confirmed(about, &note.text);
            } else {
                self.applier.journal().saw(about, &note.text);
            }
        }
        if let Some(link) = changed {
            self.applier.readdress(&link)?;
        }
        if let Some(ifindex) = gone {
            self.applier.link_gone(ifindex);
            self.applier.mend().await?;
        }
        Ok(())
    }

    /// Sends what the user changed in the map through the state machine.
    async fn look_at_admin(&mut self) -> Result<()> {
        let now = self.applier.admin_down(self.controller.path_ids());
        let changed: Vec<u32> = now
            .symmetric_difference(&self.admin_down)
            .copied()
            .collect();
        for path in changed {
            self.handle(Event::Admin {
                path,
                up: !now.contains(&path),
            })
            .await?;
        }
        self.admin_down = now;
        Ok(())
    }

    /// Takes over the file as it is now, or nothing of it.
    async fn reload(&mut self) {
        let file = self.options.config.display().to_string();
        self.service.reloads();
        match self.try_reload().await {
            Ok(Reloaded { bonds, differences }) => {
                let journal = self.applier.journal();
                for line in &differences {
                    journal.did(About::ALL, line);
                }
                let none = if differences.is_empty() {
                    ", which says what it said before"
                } else {
                    ""
                };
                journal.did(About::ALL, &format!("{RELOADED}{file}{none}"));
                self.service.is_ready(bonds);
            }
            Err(error) => {
                // All of it to the log; the journal has room for the first problem.
                let problems = format!("{error:#}");
                error!("{file} not reloaded, all stays as it was:\n{problems}");
                let first = problems.lines().next().unwrap_or_default();
                self.service.stays(first);
                let text = format!("{NOT_RELOADED}{first}");
                self.applier.journal().failed(About::ALL, &text);
            }
        }
    }

    async fn try_reload(&mut self) -> Result<Reloaded> {
        let (config, text) = Config::load_with_text(&self.options.config)?;
        warn_about_host(&self.options.config, &config)?;
        let prepared = self.metrics.prepare(&config, &self.options.config)?;
        let service = &mut self.service;
        let ids = self
            .applier
            .configure(&config, &mut || service.lives())
            .await?;
        self.serve_metrics(prepared);
        for outcome in self.controller.configure(&config, &ids) {
            self.applier.apply(outcome).await?;
        }
        self.monitor.set_targets(self.controller.targets());
        self.prober.watch(
            self.controller.watched(),
            BTreeSet::new(),
            self.controller.gaps(),
        );
        for path in self.bfd.speak(self.controller.bfd_sessions())? {
            // Until it is up again nothing is known.
            self.prober.bfd(path, liveness::Bfd::Ended);
        }
        self.poll_ospf(&config);
        let before = std::mem::replace(&mut self.text, text);
        Ok(Reloaded {
            bonds: config.bonds.len(),
            differences: config::difference(&before, &self.text),
        })
    }

    fn serve_metrics(&mut self, prepared: metrics::Prepared) {
        if let Some(text) = self.metrics.switch(prepared) {
            self.applier.journal().did(About::ALL, &text);
        }
    }

    fn poll_ospf(&mut self, config: &Config) {
        let daemons = ospf::Daemon::of(config);
        let poller = ospf::Poller::spawn(daemons, OSPF_INTERVAL, self.sender.clone());
        self.ospf = Some(poller);
    }
}

/// The BFD sessions, and what they report.
struct Bfd {
    /// One speaker for the sessions of each local address, as they share its port.
    speakers: BTreeMap<IpAddr, Speaking>,
    /// By the number that a speaker has for a session, its path. What is still to be read of a session that was
    /// begun anew is not this one's: numbers are given once.
    paths: BTreeMap<u32, u32>,
    numbers: RangeFrom<u32>,
    /// What they run on, since the first began.
    thread: Option<bfd::Thread>,
    sender: mpsc::Sender<bfd::Report>,
    reports: mpsc::Receiver<bfd::Report>,
}

/// Sessions of a local address, by their paths' ids.
struct Speaking {
    sessions: Vec<bfd::SessionConfig>,
    /// Held: they end when it is dropped.
    _speaker: bfd::Speaker,
}

impl Bfd {
    fn new() -> Self {
        let (sender, reports) = mpsc::channel(QUEUE);
        Self {
            speakers: BTreeMap::new(),
            paths: BTreeMap::new(),
            numbers: 0..,
            thread: None,
            sender,
            reports,
        }
    }

    /// Keeps these sessions; those of a local address where none changes go on as they are. Returns
    /// the ids of those that begin anew.
    fn speak(&mut self, sessions: Vec<bfd::SessionConfig>) -> Result<Vec<u32>> {
        let mut wanted: BTreeMap<IpAddr, Vec<bfd::SessionConfig>> = BTreeMap::new();
        for session in sessions {
            wanted.entry(session.local).or_default().push(session);
        }
        // The old ones go first: the ports are theirs.
        self.speakers
            .retain(|local, speaking| wanted.get(local) == Some(&speaking.sessions));
        let speaking = self.speakers.values();
        let kept: BTreeSet<u32> = speaking
            .flat_map(|speaking| speaking.sessions.iter().map(|session| session.id))
            .collect();
        self.paths.retain(|_, path| kept.contains(path));
        let mut begun = Vec::new();
        for (local, sessions) in wanted {
            if self.speakers.contains_key(&local) {
                continue;
            }
            let thread = match self.thread.take() {
                Some(thread) => thread,
                None => bfd::Thread::start().context("cannot start a thread for BFD")?,
            };
            let _on_it = self.thread.insert(thread).enter();
            begun.extend(sessions.iter().map(|session| session.id));
            let mut numbered = sessions.clone();
            for (session, number) in numbered.iter_mut().zip(&mut self.numbers) {
                self.paths.insert(number, session.id);
                session.id = number;
            }
            let speaking = Speaking {
                sessions,
                _speaker: bfd::Speaker::spawn(numbered, self.sender.clone())?,
            };
            self.speakers.insert(local, speaking);
        }
        Ok(begun)
    }

    /// The next report of a session that is kept, by its path's id. Never `None`: a sender is kept.
    async fn heard(&mut self) -> Option<bfd::Report> {
        loop {
            let report = self.reports.recv().await?;
            if let Some(&id) = self.paths.get(&report.id) {
                return Some(bfd::Report { id, ..report });
            }
        }
    }
}
