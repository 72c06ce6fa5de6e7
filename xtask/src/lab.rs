//! `cargo xtask lab`: netbond-lab, freshly built.

use anyhow::Result;

use crate::command::{built, exec};
use crate::setup::Need;
use crate::{build, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments of netbond-lab
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    setup::ensure(&[Need::Tools])?;
    build::programs()?;
    match exec(built("netbond-lab")?.args(args.args))? {}
}
