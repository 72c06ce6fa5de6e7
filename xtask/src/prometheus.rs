//! Prometheus, for the tests: Debian's package, unpacked below `target`, never installed.

use std::path::PathBuf;

use anyhow::Result;

use crate::apt::Apt;
use crate::command::{find_program, target_dir};
use crate::files::{recreate, write};

const SUITE: &str = "bookworm";
const PACKAGE: &str = "prometheus";
/// What the tests run (netbond-lab/tests/prometheus.rs finds them here, or in PATH).
const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// Where the program is, downloaded where it is not here yet.
pub(crate) fn prepare() -> Result<PathBuf> {
    let found: Vec<PathBuf> = PROGRAMS.into_iter().filter_map(find_program).collect();
    if let [prometheus, _] = &found[..] {
        return Ok(prometheus.clone());
    }
    let target = target_dir()?;
    let dir = target.join(PACKAGE);
    // Written last.
    let complete = dir.join("complete");
    if !complete.exists() {
        eprintln!("setup: downloading Prometheus");
        let apt = Apt::open(&target.join("apt-prometheus"), &[SUITE])?;
        recreate(&dir)?;
        apt.unpack(&[PACKAGE.to_owned()], &dir)?;
        write(&complete, "")?;
    }
    Ok(dir.join("usr/bin").join(PACKAGE))
}
