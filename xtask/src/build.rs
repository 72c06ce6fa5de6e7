//! `cargo xtask build`: the eBPF object, then the programs.

use anyhow::Result;
use clap::ValueEnum;

use crate::command::{cargo_on_workspace, check};
use crate::{ebpf, setup};

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Build only this
    part: Option<Part>,
    /// Make the fresh eBPF object the committed one
    #[arg(long)]
    bless: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// The eBPF object
    Ebpf,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let toolchain = setup::toolchain()?;
    let object = ebpf::build(&toolchain)?;
    if args.bless {
        ebpf::bless(&toolchain, &object)?;
    } else if let Err(error) = ebpf::compare(&toolchain, &object) {
        // In the middle of a change this is no error; `cargo xtask test object` makes it one.
        eprintln!("warning: {error:#}");
    }
    match args.part {
        Some(Part::Ebpf) => Ok(()),
        None => programs(),
    }
}

/// Builds the workspace's programs, with the committed object in them.
pub(crate) fn programs() -> Result<()> {
    check(&mut cargo_on_workspace("build")?)
}

/// Builds the programs with the dependencies' features that tests have, so that those dependencies
/// are not compiled twice.
pub(crate) fn programs_for_tests() -> Result<()> {
    check(cargo_on_workspace("build")?.args(["--bins", "--tests"]))
}
