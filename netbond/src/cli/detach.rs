//! `netbond detach`.

use std::error::Error;
use std::io::Write as _;
use std::{fs, io};

use anyhow::{Context as _, Result};
use nix::net::if_::if_indextoname;

use crate::{
    control::apply::delete_bond_device,
    link,
    loader::{Hook, detach},
    lock::Lock,
    netlink::Netlink,
    pins::Pins,
    tables::{Tables, text},
};

pub(super) fn run(pins: &Pins) -> Result<()> {
    let mut out = io::stdout().lock();
    if !pins.root().exists() {
        writeln!(out, "nothing is pinned below {}", pins.root().display())?;
        return Ok(());
    }
    // Held to the end: no controller starts in the middle.
    let lock = Lock::take(pins)?;
    // Devices first: their programs go with them, and no packet meets half a bond.
    let tables = tables(pins)?;
    if tables.is_none() && pins.exist() {
        writeln!(
            out,
            "not all maps are there, as a start or a detach was cut short: if a bond device is left, \
             start netbond and detach again"
        )?;
    }
    if let Some(tables) = tables {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        for id in tables.bond_ids() {
            let Some(info) = tables.bond_info(id) else {
                continue;
            };
            let name = text(&info.name);
            let deleted = runtime.block_on(async {
                delete_bond_device(&mut Netlink::open()?, &name, info.ifindex).await
            })?;
            let outcome = if deleted {
                "removed"
            } else {
                "was gone already"
            };
            writeln!(out, "{name}: {outcome}")?;
        }
    }
    for pin in fs::read_dir(pins.links()).into_iter().flatten() {
        let pin = pin?;
        let name = pin.file_name();
        let ifindex = name
            .to_str()
            .and_then(|name| name.split('-').next()?.parse().ok());
        if let Some(ifindex) = ifindex
            && let Ok(device) = if_indextoname(ifindex)
        {
            writeln!(out, "{}: program removed", device.to_string_lossy())?;
        }
        link::remove(&pin.path())?;
    }
    detach_filters(pins)?;
    fs::remove_dir_all(pins.root())
        .with_context(|| format!("removing {}", pins.root().display()))?;
    drop(lock);
    Ok(())
}

/// The maps, where there are all of them. Where some are missing a start or a detach was cut short, while there
/// were no bonds yet, or no more.
fn tables(pins: &Pins) -> Result<Option<Tables>> {
    let missing = |cause: &(dyn Error + 'static)| {
        let error = cause.downcast_ref::<io::Error>();
        error.is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    if !pins.exist() {
        return Ok(None);
    }
    match Tables::open(pins) {
        Ok(tables) => Ok(Some(tables)),
        Err(error) if error.chain().any(missing) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the kernel has no tcx links, the ingress filters of the paths' devices are left.
fn detach_filters(pins: &Pins) -> Result<()> {
    for interface in nix::net::if_::if_nameindex()?.iter() {
        let name = interface.name().to_string_lossy();
        detach(
            pins,
            &name,
            interface.index(),
            Hook::Path { ethernet: false },
        )?;
    }
    Ok(())
}
