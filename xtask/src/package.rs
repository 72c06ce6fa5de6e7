//! `cargo xtask package`: the Debian package for this machine, and archives with a static program for any
//! Linux router, in `target/package`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::build;
use crate::command::{built, cargo_on_workspace, check, output, root, target_dir};
use crate::files::{recreate, write};
use crate::setup::{self, Need};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build only this
    part: Option<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The Debian package
    Deb,
    /// The archives with a static program, for x86_64 and aarch64
    Static,
}

/// What a static program is compiled for.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) triple: &'static str,
    pub(crate) arch: &'static str,
}

pub(crate) const TARGETS: [Target; 2] = [
    Target {
        triple: "x86_64-unknown-linux-musl",
        arch: "x86_64",
    },
    Target {
        triple: "aarch64-unknown-linux-musl",
        arch: "aarch64",
    },
];

pub(crate) fn run(args: Args) -> Result<()> {
    setup::ensure(&[Need::Package])?;
    if args.part != Some(Part::Static) {
        println!("{}", deb()?.display());
    }
    if args.part != Some(Part::Deb) {
        build::programs()?;
        for target in TARGETS {
            println!("{}", archive(target)?.display());
        }
    }
    Ok(())
}

fn dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("package"))
}

/// Version of the workspace, and of all that is packaged.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Builds the Debian package, and has lintian look at it.
pub(crate) fn deb() -> Result<PathBuf> {
    build::programs()?;
    let dir = dir()?;
    let source = dir.join(format!("netbond-{VERSION}"));
    stage(&target_dir()?.join("release/netbond"), &source)?;
    copy(&root().join("packaging/debian"), &source)?;
    write(&source.join("debian/changelog"), &changelog()?)?;
    check(
        Command::new("dpkg-buildpackage")
            .args([
                "--build=binary",
                "--unsigned-changes",
                "--no-check-builddeps",
            ])
            .env("DEB_BUILD_OPTIONS", "noautodbgsym")
            .current_dir(&source),
    )?;
    let arch = output(Command::new("dpkg").arg("--print-architecture"))?;
    let deb = dir.join(format!("netbond_{VERSION}_{}.deb", arch.trim()));
    check(
        Command::new("lintian")
            .args(["--fail-on", "error", "--no-tag-display-limit"])
            .arg(&deb),
    )?;
    Ok(deb)
}

/// Builds a static program and what belongs to it.
pub(crate) fn archive(target: Target) -> Result<PathBuf> {
    let program = static_program(target)?;
    let dir = dir()?;
    let name = format!("netbond-{VERSION}-{}", target.arch);
    let tree = dir.join(&name);
    stage(&program, &tree)?;
    copy(&root().join("packaging/debian/netbond.service"), &tree)?;
    let archive = dir.join(format!("{name}.tar.xz"));
    check(
        Command::new("tar")
            .args(["--create", "--xz", "--owner=0", "--group=0", "--file"])
            .arg(&archive)
            .arg("--directory")
            .args([&dir, Path::new(&name)]),
    )?;
    Ok(archive)
}

/// Builds the program for a target; the linker that comes with Rust links for all of them.
fn static_program(target: Target) -> Result<PathBuf> {
    let linker = format!(
        "CARGO_TARGET_{}_LINKER",
        target.triple.replace('-', "_").to_uppercase()
    );
    check(
        cargo_on_workspace("build")?
            .args(["--package", "netbond", "--target", target.triple])
            .env(linker, "rust-lld"),
    )?;
    Ok(target_dir()?.join(target.triple).join("release/netbond"))
}

/// Puts a program into an empty directory, with all that goes where it goes.
fn stage(program: &Path, into: &Path) -> Result<()> {
    recreate(into)?;
    // The same whatever the program is compiled for.
    check(built("netbond")?.arg("generate").arg(into))?;
    for part in [
        "README.md",
        "docs",
        "netbond.example.toml",
        "contrib",
        "LICENSE-MIT",
        "LICENSE-APACHE",
    ] {
        copy(&root().join(part), into)?;
    }
    let staged = into.join("netbond");
    fs::copy(program, &staged).with_context(|| format!("cannot copy {}", program.display()))?;
    // llvm-strip knows every target; this is of the toolchain that eBPF is built with.
    check(Command::new(setup::toolchain()?.strip).arg(&staged))
}

fn copy(from: &Path, into: &Path) -> Result<()> {
    check(Command::new("cp").arg("--recursive").args([from, into]))
}

/// One entry: the history is in the repository.
fn changelog() -> Result<String> {
    let seconds = output(
        Command::new("git")
            .args(["log", "-1", "--format=%ct"])
            .current_dir(root()),
    )
    .unwrap_or_default();
    let epoch = env::var("SOURCE_DATE_EPOCH").unwrap_or(seconds);
    let date = output(Command::new("date").args([
        "--utc",
        "--rfc-email",
        &format!("--date=@{}", epoch.trim()),
    ]))?;
    Ok(format!(
        "netbond ({VERSION}) unstable; urgency=medium\n\n  * Release {VERSION}.\n\n \
         -- The netbond developers <netbond@localhost.invalid>  {}\n",
        date.trim()
    ))
}
