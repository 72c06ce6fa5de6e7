//! `cargo xtask lint`: formatting and clippy, warnings being errors.

use anyhow::Result;

use crate::command::{cargo, cargo_on_workspace, check};
use crate::setup::{self, Need};

pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Need::Lint])?;
    check(cargo().args(["fmt", "--all", "--check"]))?;
    check(cargo().args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))?;
    check(cargo_on_workspace("clippy")?.args(["--all-targets", "--", "-D", "warnings"]))?;
    // No member by default, and linted as it compiles on the host.
    check(cargo_on_workspace("clippy")?.args(["--package", "netbond-ebpf", "--", "-D", "warnings"]))
}
