//! `netbond-lab bench`: netbond beside kernel bonding and what else joins several paths.

mod cost;
mod counters;
mod failures;
mod figures;
mod frame;
mod hosts;
mod outage;
mod rate_drop;
mod report;
mod scenario;
mod system;
mod traffic;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;
use nix::sched::CloneFlags;

pub use figures::Row;
pub use report::Report;
pub use scenario::Scenario;
pub use system::System;

use crate::lab::{self, Lab};
use crate::machine::save;
use crate::namespace;
use crate::wait::check_interrupt;
use crate::wireguard::WireGuard;
use cost::Way;
use figures::{Clock, Figures, Measure, quantile};
use hosts::Hosts;
use scenario::{Line, Work};
use traffic::{Ends, Kind};

/// UDP is sent at this share of what the paths can carry.
const UDP_LOAD: f64 = 0.9;

/// Paths without limits need something to be compared with.
const QUICK_SYSTEMS: [System; 3] = [System::Path, System::BalanceRr, System::Netbond];
const QUICK_SCENARIOS: [Scenario; 2] = [Scenario::Equal2, Scenario::CpuSmall];

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's name.
    pub name: String,
    /// Only these systems; those that a scenario concerns where none is named.
    pub systems: Vec<System>,
    /// Only these scenarios; all but `thin2` where none is named.
    pub scenarios: Vec<Scenario>,
    /// How often each is measured.
    pub runs: u32,
    /// Few systems and scenarios, short runs.
    pub quick: bool,
    /// The clock counts instructions.
    pub counted: bool,
    /// Where to keep what there is so far, as JSON.
    pub save: Option<PathBuf>,
}

impl Options {
    fn scenarios(&self) -> Vec<Scenario> {
        match (self.scenarios.as_slice(), self.quick) {
            ([], true) => QUICK_SCENARIOS.to_vec(),
            ([], false) => {
                let all = Scenario::value_variants().iter().copied();
                all.filter(|scenario| scenario.is_default()).collect()
            }
            (chosen, _) => chosen.to_vec(),
        }
    }

    fn systems(&self, scenario: Scenario) -> Vec<System> {
        match (self.systems.as_slice(), self.quick) {
            ([], true) => QUICK_SYSTEMS.to_vec(),
            ([], false) => {
                let all = System::value_variants().iter().copied();
                all.filter(|system| scenario.concerns(*system)).collect()
            }
            (chosen, _) => chosen.to_vec(),
        }
    }

    /// How long each kind of traffic is measured.
    fn traffic(&self) -> Duration {
        Duration::from_secs(if self.quick { 5 } else { 10 })
    }

    fn kinds(&self) -> &'static [Kind] {
        if self.quick {
            &[Kind::Cubic]
        } else {
            &Kind::ALL
        }
    }

    /// How long a path is dead.
    fn outage(&self) -> Duration {
        Duration::from_secs(if self.quick { 10 } else { 60 })
    }

    /// How often a path dies.
    fn failures(&self) -> u32 {
        if self.quick { 20 } else { 100 }
    }

    /// How long a stream is watched after a path became slower.
    fn drop(&self) -> Duration {
        Duration::from_secs(if self.quick { 10 } else { 20 })
    }

    /// Packets for each figure of cost.
    fn packets(&self) -> usize {
        if self.quick { 10_000 } else { 30_000 }
    }
}

/// Measures everything, and `progress` gets the figures after each step. Says on standard error how
/// it goes. Returns the figures, and what could not be measured.
pub fn run(
    options: &Options,
    progress: &mut dyn FnMut(&[Row]) -> Result<()>,
) -> Result<(Report, Vec<String>)> {
    check_kernel()?;
    let clock = if options.counted {
        Clock::Counted
    } else {
        Clock::Real
    };
    let mut bench = Bench {
        options,
        figures: Figures::new(clock),
        lab: None,
    };
    let mut problems = Vec::new();
    for run in 1..=options.runs {
        for scenario in options.scenarios() {
            for system in options.systems(scenario) {
                check_interrupt()?;
                let start = Instant::now();
                eprintln!("run {run}, {}, {} ...", scenario.name(), system.name());
                if let Err(error) = bench.measure(scenario, system) {
                    check_interrupt()?;
                    let problem = format!("{}, {}: {error:#}", scenario.name(), system.name());
                    eprintln!("{problem}");
                    problems.push(problem);
                    // Whatever is left of it is no ground for the next one.
                    bench.lab = None;
                }
                let rows = bench.figures.rows();
                save(&rows, options.save.as_deref())?;
                progress(&rows)?;
                eprintln!(
                    "  {:.0} s by this machine's clock",
                    start.elapsed().as_secs_f64()
                );
            }
        }
    }
    if let Some(lab) = bench.lab.take() {
        lab.down()?;
    }
    Ok((Report(bench.figures.rows()), problems))
}

struct Bench<'a> {
    options: &'a Options,
    figures: Figures,
    lab: Option<Lab>,
}

impl Bench<'_> {
    fn measure(&mut self, scenario: Scenario, system: System) -> Result<()> {
        let lab = match self.lab.take() {
            Some(lab) if lab.topology().bonds[0].paths.len() == usize::from(scenario.paths()) => {
                lab
            }
            other => {
                drop(other);
                eprintln!("  building a lab with {} paths", scenario.paths());
                let options = lab::Options {
                    wireguard: Some(WireGuard::Kernel),
                    bird: true,
                    netbond: false,
                };
                Lab::up_with(
                    &self.options.name,
                    &Scenario::topology(scenario.paths()),
                    options,
                )?
            }
        };
        let lab = self.lab.insert(lab);
        scenario.shape(lab)?;
        let work = Task {
            options: self.options,
            lab,
            scenario,
            system,
            figures: &mut self.figures,
        };
        match scenario.work() {
            Work::Traffic => work.traffic(),
            Work::Outage => work.outage(),
            Work::Failures => work.failures(),
            Work::Drop => work.drop(),
            Work::Cost { payload } => work.cost(payload),
        }
    }
}

/// One system in one scenario.
struct Task<'a> {
    options: &'a Options,
    lab: &'a Lab,
    scenario: Scenario,
    system: System,
    figures: &'a mut Figures,
}

impl Task<'_> {
    fn at(&self) -> (Scenario, System) {
        (self.scenario, self.system)
    }

    /// Payload that TCP can have of paths like these, Mbit/s.
    fn tcp_ideal(&self, lines: &[Line]) -> f64 {
        self.system.mbit(lines) * self.system.tcp_share()
    }

    fn traffic(mut self) -> Result<()> {
        let hosts = if self.scenario.has_hosts() {
            if !self.system.forwards() {
                return Ok(());
            }
            Some(Hosts::up(self.lab)?)
        } else {
            None
        };
        let running = self.system.up(self.lab, &self.scenario.lines())?;
        let outcome = self.traffic_over(&running);
        running.down()?;
        drop(hosts);
        outcome
    }

    fn traffic_over(&mut self, running: &system::Running<'_>) -> Result<()> {
        let ends = if self.scenario.has_hosts() {
            hosts::lead(running)?;
            hosts::ends(self.lab)
        } else {
            Ends::of(self.lab, self.system)?
        };
        self.tcp(&ends)?;
        if self.scenario.lines().is_empty() {
            // There is no load of which a share could arrive.
            return Ok(());
        }
        self.udp(&ends)
    }

    fn tcp(&mut self, ends: &Ends) -> Result<()> {
        let idle = traffic::idle_round_trips(ends)?;
        let idle = quantile(&idle, 0.5).context("no ping was answered")?;
        let ideal = self.tcp_ideal(&self.scenario.lines());
        for &kind in self.options.kinds() {
            let tcp = traffic::tcp(ends, self.system, kind, self.options.traffic())?;
            let at = self.at();
            let (name, measure) = (kind.name(), Measure::Goodput(kind));
            if ideal > 0.0 {
                eprintln!("  TCP {name}: {:.2} of {ideal:.2} Mbit/s", tcp.mbit);
                self.figures.add_of(at, measure, tcp.mbit, ideal);
            } else {
                eprintln!("  TCP {name}: {:.2} Mbit/s", tcp.mbit);
                self.figures.add(at, measure, tcp.mbit);
            }
            let retransmits = tcp.retransmits as f64;
            self.figures
                .add(at, Measure::Retransmits(kind), retransmits);
            let out_of_order = tcp.out_of_order as f64;
            self.figures
                .add(at, Measure::OutOfOrder(kind), out_of_order);
            let fragments = tcp.fragments as f64;
            self.figures.add(at, Measure::Fragments(kind), fragments);
            if kind == Kind::Cubic {
                for (measure, share) in [(Measure::PingMedian, 0.5), (Measure::PingP99, 0.99)] {
                    let time = quantile(&tcp.round_trips, share).context("no ping was answered")?;
                    self.figures.add(at, measure, time - idle);
                }
            }
        }
        Ok(())
    }

    fn udp(&mut self, ends: &Ends) -> Result<()> {
        if self.system.is_mptcp() {
            return Ok(());
        }
        let lines = self.scenario.lines();
        let ideal = self.system.mbit(&lines) * self.system.encap().udp_share();
        let load = ideal * UDP_LOAD;
        let udp = traffic::udp(ends, self.system, load, self.options.traffic())?;
        eprintln!("  UDP: {:.2} of {ideal:.2} Mbit/s", udp.mbit);
        let at = self.at();
        self.figures
            .add_of(at, Measure::UdpGoodput, udp.mbit, ideal);
        self.figures.add(at, Measure::UdpLost, udp.lost * 100.0);
        self.figures.add(at, Measure::UdpLate, udp.late * 100.0);
        Ok(())
    }

    fn outage(self) -> Result<()> {
        let running = self.system.up(self.lab, &self.scenario.lines())?;
        let outcome = outage::run(self.lab, self.system, self.options.outage());
        // Routes and neighbours are as before when the next system comes.
        let healed = self.lab.wait_converged(Duration::from_secs(150));
        running.down()?;
        healed?;
        let outage = outcome?;
        let at = self.at();
        self.figures.add(at, Measure::OutageGoodput, outage.tcp);
        if let Some(packets) = outage.packets {
            self.figures.add(at, Measure::Lost, packets.lost * 100.0);
            self.figures.add(at, Measure::Recovery, ms(packets.last));
            self.figures.add(at, Measure::Gap, ms(packets.gap));
            let lost_after = packets.lost_after as f64;
            self.figures.add(at, Measure::LostAfter, lost_after);
        }
        Ok(())
    }

    fn failures(self) -> Result<()> {
        let running = self.system.up(self.lab, &self.scenario.lines())?;
        let count = self.options.failures();
        let outcome = failures::run(self.lab, self.system, self.scenario, count);
        running.down()?;
        let failures = outcome?;
        let at = self.at();
        self.figures.add(at, Measure::FailuresGoodput, failures.tcp);
        if let Some(packets) = failures.packets {
            eprintln!("  {} packets lost over {count} failures", packets.lost);
            self.figures
                .add(at, Measure::FailuresLost, packets.lost as f64);
            self.figures.add(at, Measure::FailuresGap, ms(packets.gap));
        }
        Ok(())
    }

    fn drop(self) -> Result<()> {
        let lines = self.scenario.lines();
        let before = self.tcp_ideal(&lines);
        let running = self.system.up(self.lab, &lines)?;
        let after = self.tcp_ideal(&rate_drop::lines_after(lines));
        let time = self.options.drop();
        let outcome = rate_drop::run(self.lab, self.system, self.scenario, time, after);
        running.down()?;
        let drop = outcome?;
        eprintln!(
            "  TCP: {:.2} of {before:.2}, then {:.2} of {after:.2} Mbit/s",
            drop.before, drop.after
        );
        let at = self.at();
        self.figures
            .add_of(at, Measure::DropBefore, drop.before, before);
        self.figures
            .add_of(at, Measure::DropAfter, drop.after, after);
        self.figures.add(at, Measure::DropRecovery, ms(drop.back));
        Ok(())
    }

    fn cost(mut self, payload: u32) -> Result<()> {
        if self.system.is_mptcp() {
            // It carries TCP only, and forwards nothing.
            return Ok(());
        }
        let hosts = Hosts::up(self.lab)?;
        let at = self.at();
        // Each system has its own of the plain paths, measured beside it.
        let quiet = cost::background(BACKGROUND)?;
        let mut plain = Vec::new();
        for way in Way::ALL {
            let payload = match way {
                Way::Forward | Way::Udp => payload,
                // The kernel makes no segments as small as that.
                Way::Tcp if payload < frame::SEGMENT => continue,
                // Its header is longer.
                Way::Tcp => frame::SEGMENT,
            };
            let extra = self.system.encap().bytes();
            let packets = self.options.packets();
            let sample = cost::plain(self.lab, way, payload, extra, packets)?;
            plain.push((way, payload, sample.packet));
        }
        if self.system == System::Path {
            self.figures.add(at, Measure::Background, quiet * 100.0);
            for (way, _, packet) in plain {
                self.figures.add(at, Measure::Packet(way), packet);
            }
        } else {
            let running = self.system.up(self.lab, &self.scenario.lines())?;
            let outcome = self.cost_over(&running, &plain, quiet);
            running.down()?;
            outcome?;
        }
        drop(hosts);
        Ok(())
    }

    fn cost_over(
        &mut self,
        running: &system::Running<'_>,
        plain: &[(Way, u32, f64)],
        quiet: f64,
    ) -> Result<()> {
        let background = cost::background(BACKGROUND)?;
        let at = self.at();
        self.figures
            .add(at, Measure::Background, background * 100.0);
        for &(way, payload, plain) in plain {
            let packets = self.options.packets();
            let cost::Sample { packet, fragments } =
                cost::over(self.lab, running, self.system, way, payload, packets)?;
            self.figures
                .add(at, Measure::PacketFragments(way), fragments);
            // Probes and other work by the clock is no packet's.
            let cost = packet * (1.0 - background) - plain * (1.0 - quiet);
            eprintln!(
                "  {}: {packet:.0} a packet, {plain:.0} plain, cost {cost:.0}",
                way.name()
            );
            self.figures.add(at, Measure::Packet(way), packet);
            self.figures.add(at, Measure::Cost(way), cost);
        }
        Ok(())
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// How long the processor is watched without traffic.
const BACKGROUND: Duration = Duration::from_secs(2);

/// Fails where this kernel lacks what the benchmark is made of, and says what that is.
fn check_kernel() -> Result<()> {
    const PARTS: [(&str, &[&str]); 6] = [
        ("wireguard", &["ip", "link", "add", "type", "wireguard"]),
        (
            "ip_gre",
            &[
                "ip",
                "link",
                "add",
                "type",
                "gretap",
                "local",
                "192.0.2.1",
                "remote",
                "192.0.2.2",
            ],
        ),
        ("bonding", &["ip", "link", "add", "type", "bond"]),
        ("team", &["ip", "link", "add", "type", "team"]),
        (
            "sch_netem",
            &[
                "tc", "qdisc", "add", "dev", "lo", "root", "netem", "limit", "10",
            ],
        ),
        ("mptcp", &["ip", "mptcp", "limits"]),
    ];
    // In a namespace that nobody else has, and that ends with its thread.
    let missing = std::thread::spawn(|| -> Result<Vec<&str>> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET)
            .context("cannot make a network namespace: the benchmark needs root")?;
        let lacks =
            |words: &&(&str, &[&str])| namespace::iproute2(words.1[0], &words.1[1..]).is_err();
        Ok(PARTS.iter().filter(lacks).map(|part| part.0).collect())
    });
    let missing = missing
        .join()
        .map_err(|_| anyhow::anyhow!("the look at the kernel failed"))??;
    if !missing.is_empty() {
        bail!(
            "this kernel lacks {}: run `cargo xtask bench`, which uses one in a VM",
            missing.join(", ")
        );
    }
    Ok(())
}
