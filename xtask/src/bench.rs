//! `cargo xtask bench`: the benchmarks, each a program of its own.

use anyhow::Result;
use clap::ValueEnum;

use crate::command::{built, cargo_on_workspace, check, exec};
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
    /// What a path's failure costs, in the lab, beside OSPF alone and OSPF with BFD (root)
    Failover,
}

pub(crate) fn run(args: Args) -> Result<()> {
    match args.name {
        Name::Datapath => {
            let example = "bench_datapath";
            check(cargo_on_workspace("build")?.args(["--example", example]))?;
            match exec(built(&format!("examples/{example}"))?.args(args.args))? {}
        }
        Name::Failover => {
            setup::ensure(&[Need::Tools])?;
            build::programs()?;
            match exec(built("netbond-lab")?.arg("failover").args(args.args))? {}
        }
    }
}
