//! `cargo xtask bench`: the benchmarks, each a program of its own.

use anyhow::Result;
use clap::ValueEnum;

use crate::command::{built, cargo_on_workspace, check, exec, target_dir};
use crate::setup::Need;
use crate::{build, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(default_value = "datapath")]
    name: Name,
    /// Arguments of the benchmark
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Nanoseconds a packet, in the kernel, without a network (CAP_BPF)
    Datapath,
    /// What the controller costs, by the number of paths it probes (root)
    Cost,
    /// Paths taken for dead in a saturated lab in which nothing fails (root, an hour)
    Calm,
    /// What a path's failure costs, in the lab, beside OSPF alone and OSPF with BFD (root)
    Failover,
}

pub(crate) fn run(args: Args) -> Result<()> {
    match args.name {
        Name::Datapath => example("bench_datapath", &args.args),
        Name::Cost => in_lab("cost", &args.args),
        Name::Calm => in_lab("calm", &args.args),
        Name::Failover => in_lab("failover", &args.args),
    }
}

fn example(name: &str, args: &[String]) -> Result<()> {
    check(cargo_on_workspace("build")?.args(["--example", name]))?;
    match exec(built(&format!("examples/{name}"))?.args(args))? {}
}

/// Runs a command of netbond-lab; its figures are also kept below `target/bench`.
fn in_lab(name: &str, args: &[String]) -> Result<()> {
    setup::ensure(&[Need::Tools])?;
    build::programs()?;
    let figures = target_dir()?.join("bench").join(format!("{name}.json"));
    let mut lab = built("netbond-lab")?;
    match exec(lab.arg(name).arg("--save").arg(figures).args(args))? {}
}
