//! `netbond init`.

use std::io::Write as _;

use anyhow::Result;

use super::output::Output;
use crate::migrate::{Request, migrate};
use crate::netlink::inventory;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The bond or team over gretap tunnels, or two or more gre tunnels with commas between
    #[arg(
        long,
        value_name = "DEVICE",
        value_delimiter = ',',
        required = true,
        num_args = 1
    )]
    from_bond: Vec<String>,
    /// Write the other end's file, as far as it can be told from here
    #[arg(long)]
    peer: bool,
    /// Name of netbond's bond device
    #[arg(long, default_value = "nb0")]
    name: String,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let host = inventory::read(&args.from_bond)?;
    let migration = migrate(
        &host,
        Request {
            from: &args.from_bond,
            name: &args.name,
            peer: args.peer,
            file: &args.output.name(),
        },
    )?;
    args.output.write(&migration.file)?;
    std::io::stderr()
        .lock()
        .write_all(migration.notes.as_bytes())?;
    Ok(())
}
