//! What is on the hooks that netbond's programs are on.

use std::io;

use anyhow::Result;
use nix::net::if_::if_nametoindex;

use crate::{
    loader::on_tcx,
    netlink::filter::{Side, filters},
};

/// One side of a device that a program of netbond's belongs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::check) struct Hook {
    /// The bond whose traffic passes it.
    pub(in crate::check) bond: String,
    pub(in crate::check) device: String,
    pub(in crate::check) side: Side,
    /// In the order in which they see a packet.
    pub(in crate::check) programs: Vec<Program>,
}

/// A program or filter on a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::check) struct Program {
    /// Of a program its name, of another filter its kind, such as `flower`.
    pub(in crate::check) name: String,
    /// `tcx` or `tc filter`.
    pub(in crate::check) place: &'static str,
}

impl Hook {
    /// # Errors
    ///
    /// Where the device is gone, or the kernel does not tell.
    pub(in crate::check) fn read(bond: &str, device: &str, side: Side) -> Result<Self> {
        let ifindex = if_nametoindex(device).map_err(io::Error::from)?;
        let program = |place| move |name| Program { name, place };
        let tcx = on_tcx(device, side == Side::Ingress)?;
        let clsact = filters(ifindex, side)?.into_iter();
        let clsact = clsact.map(|filter| filter.name.unwrap_or(filter.kind));
        Ok(Self {
            bond: bond.to_owned(),
            device: device.to_owned(),
            side,
            programs: tcx
                .into_iter()
                .map(program("tcx"))
                .chain(clsact.map(program("tc filter")))
                .collect(),
        })
    }
}
