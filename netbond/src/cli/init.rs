//! `netbond init`.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

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
    /// File to write, which must not exist; standard output where it is left out
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What commands call a file that was written to standard output.
const UNNAMED: &str = "netbond.toml";

pub(super) fn run(args: &Args) -> Result<()> {
    let host = inventory::read(&args.from_bond)?;
    let file = args
        .output
        .as_ref()
        .map_or_else(|| UNNAMED.to_owned(), |path| path.display().to_string());
    let migration = migrate(
        &host,
        Request {
            from: &args.from_bond,
            name: &args.name,
            peer: args.peer,
            file: &file,
        },
    )?;
    match &args.output {
        None => std::io::stdout()
            .lock()
            .write_all(migration.file.as_bytes())?,
        Some(path) => {
            let mut created = match OpenOptions::new().write(true).create_new(true).open(path) {
                Ok(created) => created,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
                    "{file} exists and is left as it is: move it away, or choose another file \
                     with -o"
                ),
                Err(error) => return Err(error).with_context(|| format!("cannot create {file}")),
            };
            created
                .write_all(migration.file.as_bytes())
                .with_context(|| format!("cannot write {file}"))?;
        }
    }
    std::io::stderr()
        .lock()
        .write_all(migration.notes.as_bytes())?;
    Ok(())
}
