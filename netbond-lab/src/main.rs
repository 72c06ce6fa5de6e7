//! The `netbond-lab` program. What it does is in the library; here is only what the user types.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use netbond_lab::failover::{self, Failure, System};
use netbond_lab::{
    Lab, Life, Options, Topology, WireGuard, bench, calm, cost, machine, run, scale, soak,
};
use serde::Serialize;

/// A laboratory for netbond: the reference topology in network namespaces.
///
/// Two routers, A and B, are joined through two middle routers, M1 and M2, by WireGuard links with
/// OSPF (BIRD). Nothing of it is visible in the host's own network. Needs root.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build a lab and leave it running
    Up {
        #[command(flatten)]
        name: Name,
        /// Do not start netbond (its configuration is written all the same)
        #[arg(long)]
        no_netbond: bool,
        /// Number of middle routers, and so of paths
        #[arg(long, value_name = "N", default_value_t = 2,
              value_parser = clap::value_parser!(u8).range(1..=31))]
        paths: u8,
        /// OSPF timers of the field (hello 10 s, dead 40 s) instead of 1 s and 4 s
        #[arg(long)]
        field_timers: bool,
        /// Who encrypts the links [default: the kernel if it can]
        #[arg(long, value_name = "WHO", value_parser = ["kernel", "embedded"])]
        wireguard: Option<String>,
    },
    /// Take a lab down, also one whose owner died
    Down {
        #[command(flatten)]
        name: Name,
        /// Every lab that no living process owns
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Run a command inside a router
    #[command(
        after_help = "Examples:\n  netbond-lab exec A -- birdc show ospf neighbors\n  \
                            netbond-lab exec A -- wg show\n  netbond-lab exec A -- netbond status"
    )]
    Exec {
        #[command(flatten)]
        name: Name,
        /// The router, such as A or M1
        router: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Show the labs of this machine
    List,
    /// Build a lab, drive traffic, fail a path and restore it, report, take the lab down
    Run {
        /// The lab's name
        #[arg(long, default_value = "run")]
        name: String,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Measure what the controller costs, by the number of paths it probes
    Cost {
        /// The lab's name
        #[arg(long, default_value = "cost")]
        name: String,
        /// Numbers of paths
        #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [2, 64, 1024],
              value_parser = clap::value_parser!(u16).range(1..=16384))]
        paths: Vec<u16>,
        /// How long to measure each number of paths
        #[arg(long, value_name = "SECONDS", default_value_t = 10,
              value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
        #[command(flatten)]
        output: Output,
    },
    /// Measure how a controller bears many bonds, many routes, and storms of route changes
    Scale {
        /// The lab's name
        #[arg(long, default_value = "scale")]
        name: String,
        /// Numbers of bonds, of eight paths each; the storms are made with the last one
        #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 100, 1000],
              value_parser = clap::value_parser!(u16).range(1..=1024))]
        bonds: Vec<u16>,
        /// Routes in the kernel that are no path's
        #[arg(long, value_name = "N", default_value_t = 100_000,
              value_parser = clap::value_parser!(u32).range(..=16_000_000))]
        routes: u32,
        /// How many routes come or go a second in the storm
        #[arg(long, value_name = "N", default_value_t = 10_000,
              value_parser = clap::value_parser!(u32).range(200..=1_000_000))]
        per_second: u32,
        /// How long the storm lasts
        #[arg(long, value_name = "SECONDS", default_value_t = 60,
              value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
        #[command(flatten)]
        output: Output,
    },
    /// Saturate a lab in which nothing fails, and count the paths that are taken for dead
    #[command(
        after_help = "Prints a summary on standard error and a line of JSON on standard output.\n\
                            The exit code is 1 where a path left the state up."
    )]
    Calm {
        /// The lab's name
        #[arg(long, default_value = "calm")]
        name: String,
        /// How long
        #[arg(long, value_name = "N", default_value_t = 60,
              value_parser = clap::value_parser!(u64).range(1..))]
        minutes: u64,
        /// Write the JSON to this file, too
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
    },
    /// Let random faults happen under traffic, and check what must hold
    #[command(
        after_help = "Prints what happens and a summary on standard error, and a line of JSON on standard output.\n\
                            The exit code is 1 where something did not hold."
    )]
    Soak {
        /// The lab's name
        #[arg(long, default_value = "soak")]
        name: String,
        /// How long
        #[arg(long, value_name = "N", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(1..))]
        minutes: u64,
        /// Make the faults of an earlier run [default: others each time]
        #[arg(long, value_name = "N")]
        seed: Option<u64>,
        /// Write the JSON to this file, too
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
    },
    /// Measure how long failures of a path hurt, for netbond and for what is there without it
    #[command(after_help = "All of it takes about an hour and a half.")]
    Failover {
        /// The lab's name
        #[arg(long, default_value = "failover")]
        name: String,
        /// Only this system (may be repeated)
        #[arg(long, value_name = "NAME")]
        system: Vec<System>,
        /// Only this failure (may be repeated)
        #[arg(long, value_name = "NAME")]
        failure: Vec<Failure>,
        /// Outages for each system and failure [default: 1 to 100, as they take time]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        runs: Option<u32>,
        /// A few minutes: netbond alone, few outages
        #[arg(long)]
        quick: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Compare netbond with kernel bonding and other ways to join paths
    #[command(
        after_help = "`cargo xtask bench` runs it in a VM whose clock counts instructions, which makes \
                      its figures independent of this machine."
    )]
    Bench {
        /// The lab's name
        #[arg(long, default_value = "bench")]
        name: String,
        /// Only this system (may be repeated) [default: those that the scenario tells something of]
        #[arg(long, value_name = "NAME")]
        system: Vec<bench::System>,
        /// Only this scenario (may be repeated)
        #[arg(long, value_name = "NAME")]
        scenario: Vec<bench::Scenario>,
        /// How often each is measured
        #[arg(long, value_name = "N", default_value_t = 1,
              value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
        /// A few minutes: few systems and scenarios, short runs
        #[arg(long)]
        quick: bool,
        /// This kernel's clock counts instructions
        #[arg(long, hide = true)]
        counted: bool,
        /// Print the JSON so far after each measurement, a line each
        #[arg(long, hide = true)]
        follow: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Show the figures of `bench`
    BenchReport {
        /// Its JSON
        figures: PathBuf,
        /// What the page says of where the figures come from
        #[arg(long, default_value = "")]
        title: String,
        /// Write a page with plots to this file, too
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
    /// Hold a router (started by the lab itself)
    #[command(hide = true)]
    Router {
        netns: String,
        router: String,
        state: PathBuf,
    },
    /// Send numbered packets (started by the lab itself)
    #[command(hide = true)]
    Stream {
        address: String,
        interval_us: u64,
        #[arg(long)]
        udp: bool,
        #[arg(long, conflicts_with = "udp")]
        count: Option<u64>,
    },
    /// Send them back (started by the lab itself)
    #[command(hide = true)]
    Reflect { address: IpAddr },
}

#[derive(clap::Args)]
struct Name {
    /// The lab's name
    #[arg(long, default_value = "lab")]
    name: String,
}

/// How a benchmark reports.
#[derive(clap::Args)]
struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write the JSON to this file, too
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

impl Output {
    fn put(&self, report: &(impl Serialize + Display)) -> Result<()> {
        let json = machine::save(report, self.save.as_deref())?;
        if self.json {
            println!("{json}");
        } else {
            print!("{report}");
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netbond-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up {
            name: Name { name },
            no_netbond,
            paths,
            field_timers,
            wireguard,
        } => {
            netbond_lab::catch_interrupts()?;
            let mut topology = Topology::parallel(paths);
            if field_timers {
                topology = topology.with_ospf(netbond_lab::Ospf::field());
            }
            let options = Options {
                wireguard: wireguard.map(|who| match who.as_str() {
                    "kernel" => WireGuard::Kernel,
                    _ => WireGuard::Embedded,
                }),
                netbond: !no_netbond,
                ..Options::default()
            };
            Lab::up_with(&name, &topology, options)?.detach()?;
            eprintln!("lab {name} is up; try `netbond-lab exec --name {name} A -- ip route`");
        }
        Command::Down { all: true, .. } => {
            for lab in netbond_lab::list()? {
                if lab.life == Life::Owned {
                    eprintln!("lab {} is left alone: a living process owns it", lab.name);
                } else {
                    netbond_lab::down(&lab.name)?;
                    eprintln!("lab {} is down", lab.name);
                }
            }
        }
        Command::Down {
            name: Name { name },
            all: false,
        } => {
            if !netbond_lab::down(&name)? {
                bail!("there is no lab {name}");
            }
            eprintln!("lab {name} is down");
        }
        Command::Exec {
            name: Name { name },
            router,
            command,
        } => {
            let lab = Lab::attach(&name)?;
            let Some(router) = lab.routers().find(|candidate| candidate.name() == router) else {
                let known: Vec<_> = lab.routers().map(netbond_lab::Router::name).collect();
                bail!(
                    "lab {name} has no router {router}; it has {}",
                    known.join(", ")
                );
            };
            let [program, arguments @ ..] = command.as_slice() else {
                bail!("no command given");
            };
            let mut command = router.command(program);
            // Becomes the command: its exit code and signals are the user's.
            let error = command.args(arguments).exec();
            eprintln!("netbond-lab: cannot run {}: {error}", program.display());
            // As shells have it.
            let found = error.kind() != ErrorKind::NotFound;
            return Ok(ExitCode::from(if found { 126 } else { 127 }));
        }
        Command::List => {
            for lab in netbond_lab::list()? {
                let life = match lab.life {
                    Life::Detached => "up",
                    Life::Owned => "in use",
                    Life::Dead => "dead (netbond-lab down --all)",
                };
                println!("{:<16} {:<8} {}", lab.name, life, lab.routers.join(" "));
            }
        }
        Command::Run { name, json } => {
            netbond_lab::catch_interrupts()?;
            let report = run::run(&name)?;
            if json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                print!("{report}");
            }
        }
        Command::Cost {
            name,
            paths,
            seconds,
            output,
        } => {
            netbond_lab::catch_interrupts()?;
            output.put(&cost::run(&name, &paths, Duration::from_secs(seconds))?)?;
        }
        Command::Scale {
            name,
            bonds,
            routes,
            per_second,
            seconds,
            output,
        } => {
            netbond_lab::catch_interrupts()?;
            let plan = scale::Plan {
                bonds,
                routes,
                per_second,
                storm: Duration::from_secs(seconds),
                idle: Duration::from_secs(5),
            };
            output.put(&scale::run(&name, &plan)?)?;
        }
        Command::Calm {
            name,
            minutes,
            save: file,
        } => {
            netbond_lab::catch_interrupts()?;
            let report = calm::run(&name, Duration::from_secs(60 * minutes))?;
            // The summary is for people, who see both; the line is for programs.
            eprint!("{report}");
            println!("{}", machine::save(&report, file.as_deref())?);
            if !report.is_calm() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Soak {
            name,
            minutes,
            seed,
            save: file,
        } => {
            netbond_lab::catch_interrupts()?;
            let report = soak::run(&name, Duration::from_secs(60 * minutes), seed)?;
            eprint!("{report}");
            println!("{}", machine::save(&report, file.as_deref())?);
            if !report.violations.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Failover {
            name,
            system,
            failure,
            runs,
            quick,
            output,
        } => {
            netbond_lab::catch_interrupts()?;
            let (report, problems) = failover::run(&failover::Options {
                name,
                systems: system,
                failures: failure,
                runs,
                quick,
                save: output.save,
            })?;
            if output.json {
                println!("{}", serde_json::to_string(&report.results)?);
            } else {
                print!("{report}");
            }
            if !problems.is_empty() {
                bail!("{} of the measurements failed", problems.len());
            }
        }
        Command::Bench {
            name,
            system,
            scenario,
            runs,
            quick,
            counted,
            follow,
            output,
        } => {
            netbond_lab::catch_interrupts()?;
            let options = bench::Options {
                name,
                systems: system,
                scenarios: scenario,
                runs,
                quick,
                counted,
                save: output.save,
            };
            let mut progress = |rows: &[bench::Row]| {
                if follow {
                    println!("{}", serde_json::to_string(rows)?);
                }
                Ok(())
            };
            let (report, problems) = bench::run(&options, &mut progress)?;
            if output.json {
                println!("{}", serde_json::to_string(&report.0)?);
            } else if !follow {
                print!("{report}");
            }
            if !problems.is_empty() {
                bail!("not measured:\n  {}", problems.join("\n  "));
            }
        }
        Command::BenchReport {
            figures,
            title,
            html,
        } => {
            let text = std::fs::read_to_string(&figures)
                .with_context(|| format!("cannot read {}", figures.display()))?;
            let rows = serde_json::from_str(&text)
                .with_context(|| format!("{} holds no figures", figures.display()))?;
            let report = bench::Report(rows);
            if let Some(html) = html {
                std::fs::write(&html, report.html(&title))
                    .with_context(|| format!("cannot write {}", html.display()))?;
            }
            print!("{report}");
        }
        Command::Router {
            netns,
            router,
            state,
        } => {
            netbond_lab::serve_router(&netns, &router, &state)?;
        }
        Command::Stream {
            address,
            interval_us,
            udp,
            count,
        } => {
            let interval = Duration::from_micros(interval_us);
            if udp {
                netbond_lab::stream::send_udp(address.parse()?, interval)?;
            } else {
                netbond_lab::stream::send(&address, interval, count)?;
            }
        }
        Command::Reflect { address } => netbond_lab::stream::reflect(address)?,
    }
    Ok(ExitCode::SUCCESS)
}
