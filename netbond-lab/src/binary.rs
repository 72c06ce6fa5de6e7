//! Finding the programs of this project.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The netbond program: `NETBOND_BIN`, or beside the lab's own.
pub fn netbond() -> Result<PathBuf> {
    find("netbond", "NETBOND_BIN")
}

/// The lab's own program, which routers are made of: `NETBOND_LAB_BIN`, or this program, or the one
/// beside the running test.
pub fn lab() -> Result<PathBuf> {
    find("netbond-lab", "NETBOND_LAB_BIN")
}

fn find(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        let path = PathBuf::from(path);
        // Also used from other working directories.
        return path
            .canonicalize()
            .with_context(|| format!("{variable} names {}, which cannot be used", path.display()));
    }
    let own = env::current_exe().context("cannot tell the path of this program")?;
    // Test programs are one directory further down (target/PROFILE/deps).
    for directory in own.ancestors().skip(1).take(2) {
        let candidate = directory.join(name);
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!(
        "no program {name} in {} or above: build it with `cargo xtask build`, or set {variable}",
        own.parent().unwrap_or(Path::new("/")).display()
    )
}
