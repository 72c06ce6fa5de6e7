//! `cargo xtask run`: the demonstration in the lab, or netbond on this machine.

use anyhow::Result;

use crate::command::{built, exec};
use crate::setup::Need;
use crate::{build, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print the demonstration's results as JSON
    #[arg(long, conflicts_with = "args")]
    json: bool,
    /// Arguments of `netbond run`, which is then run instead of the demonstration
    #[arg(last = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    if !args.args.is_empty() {
        build::programs()?;
        match exec(built("netbond")?.arg("run").args(args.args))? {}
    }
    setup::ensure(&[Need::Toolchain, Need::Tools])?;
    build::run(build::Args::default())?;
    let mut lab = built("netbond-lab")?;
    lab.arg("run");
    if args.json {
        lab.arg("--json");
    }
    match exec(&mut lab)? {}
}
