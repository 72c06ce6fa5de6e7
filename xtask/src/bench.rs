//! `cargo xtask bench`: the benchmarks, each a program of its own.

use anyhow::Result;
use clap::ValueEnum;

use crate::command::{built, cargo_on_workspace, check, exec};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(default_value = "datapath")]
    name: Name,
    /// Arguments of the benchmark
    #[arg(last = true)]
    args: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Nanoseconds a packet, in the kernel, without a network (CAP_BPF)
    Datapath,
}

impl Name {
    fn example(self) -> &'static str {
        match self {
            Self::Datapath => "bench_datapath",
        }
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    let example = args.name.example();
    check(cargo_on_workspace("build")?.args(["--example", example]))?;
    match exec(built(&format!("examples/{example}"))?.args(args.args))? {}
}
