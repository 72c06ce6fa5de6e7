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
    build::programs()?;
    if args.part != Some(Part::Static) {
        println!("{}", deb()?.display());
    }
    if args.part != Some(Part::Deb) {
        for archive in archives(&TARGETS)? {
            println!("{}", archive.display());
        }
    }
    Ok(())
}

fn dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("package"))
}

/// Version of the workspace, and of all that is packaged.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Makes the Debian package of the program that was built, and has lintian look at it.
pub(crate) fn deb() -> Result<PathBuf> {
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

/// Builds the static programs, and puts each with what belongs to it; in the order of the targets.
pub(crate) fn archives(targets: &[Target]) -> Result<Vec<PathBuf>> {
    let mut cargo = cargo_on_workspace("build")?;
    cargo.args(["--package", "netbond"]);
    for Target { triple, .. } in targets {
        let linker = format!(
            "CARGO_TARGET_{}_LINKER",
            triple.replace('-', "_").to_uppercase()
        );
        // The linker that comes with Rust links for all of them.
        cargo.args(["--target", triple]).env(linker, "rust-lld");
    }
    check(&mut cargo)?;
    targets.iter().map(archive).collect()
}

fn archive(target: &Target) -> Result<PathBuf> {
    let program = target_dir()?.join(target.triple).join("release/netbond");
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
