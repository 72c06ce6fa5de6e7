//! `netbond run`.

use std::path::PathBuf;

use anyhow::Result;

use super::ConfigFile;
use crate::{
    control::daemon::{self, Options},
    log,
    pins::Pins,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) config: ConfigFile,
    /// Write every event the controller sees to this file, as lines of JSON
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

pub(super) fn run(args: Args, pins: Pins) -> Result<()> {
    log::start();
    let options = Options {
        config: args.config.path,
        pins,
        record: args.record,
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(daemon::run(options))
}
