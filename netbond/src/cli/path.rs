//! `netbond path`.

use std::io::Write as _;

use anyhow::Result;
use netbond_common::abi::ADMIN_DOWN;

use super::table::Table;
use crate::{
    pins::Pins,
    tables::{Tables, text},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the paths and whether they are taken out
    List,
    /// Take a path back in
    Up { name: String },
    /// Take a path out: no packet is sent on it any more
    Down { name: String },
}

pub(super) fn run(command: &Command, pins: &Pins) -> Result<()> {
    let mut tables = Tables::open(pins)?;
    match command {
        Command::List => list(&tables),
        Command::Up { name } => tables.take_out(name, false),
        Command::Down { name } => tables.take_out(name, true),
    }
}

fn list(tables: &Tables) -> Result<()> {
    let mut table = Table::new(&["BOND", "PATH", "ADMIN"]);
    for bond in tables.bond_ids() {
        let bond_name = tables
            .bond_info(bond)
            .map_or_else(String::new, |info| text(&info.name));
        for id in tables.path_ids(bond) {
            let Some(info) = tables.path_info(id) else {
                continue;
            };
            let down = matches!(tables.admin.get(&id, 0), Ok(ADMIN_DOWN));
            let admin = if down { "down" } else { "up" };
            table.row([bond_name.clone(), text(&info.name), admin.to_owned()]);
        }
    }
    write!(std::io::stdout().lock(), "{table}")?;
    Ok(())
}
