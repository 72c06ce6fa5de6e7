//! The eBPF object: built, compared with the committed one, committed anew.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::{cargo, cargo_home, check, root, target_dir};
use crate::toolchain::Toolchain;

const TARGET: &str = "bpfel-unknown-none";
const COMMITTED: &str = "netbond/bpf/netbond.bpf.o";
const RECORD: &str = "netbond/bpf/TOOLCHAIN";

/// Builds the object from the sources, to `target/netbond.bpf.o`.
pub(crate) fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    // A directory of its own: another compiler in the common one would rebuild what that holds.
    let target = target_dir()?;
    let ebpf_target = target.join("ebpf");
    check(
        cargo()
            .args(["build", "--package", "netbond-ebpf", "--release"])
            .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
            .arg(&ebpf_target)
            .env("RUSTC", &toolchain.compiler.rustc)
            // Opens -Z options in a stable toolchain.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags(toolchain, &target)?)
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
            // The bindings' build script would take the host's: nothing here depends on it but the
            // file names in the debug information.
            .env("AYA_BPF_TARGET_ARCH", "x86_64")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER"),
    )
    .context("cannot build the eBPF object")?;

    // BTF is made from the debug information, and the kernel and aya use nothing else of it.
    let linked = ebpf_target.join(TARGET).join("release/netbond-ebpf");
    let object = target.join("netbond.bpf.o");
    check(
        std::process::Command::new(&toolchain.strip)
            .arg("--strip-debug")
            .arg("-o")
            .arg(&object)
            .arg(&linked),
    )?;
    let size = fs::metadata(&object)
        .context("the eBPF object was not written")?
        .len();
    eprintln!("ebpf: {} ({size} bytes)", object.display());
    Ok(object)
}

/// The flags of the BPF target, separated as cargo wants them.
fn rustflags(toolchain: &Toolchain, target: &Path) -> Result<String> {
    let mut flags = vec![
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Before v3 there is no atomic instruction that returns the old value.
        "-Ctarget-cpu=v3".to_owned(),
    ];
    // File names get into BTF; the same object has to come out of any directory and home.
    // Where several of these fit a path, the compiler takes the last.
    let home = cargo_home()?;
    let mut remap = |from: &Path, to: &str| -> Result<()> {
        for from in [Some(from.to_owned()), from.canonicalize().ok()]
            .into_iter()
            .flatten()
        {
            let from = from
                .to_str()
                .with_context(|| format!("{} is not UTF-8: move it", from.display()))?;
            flags.push(format!("--remap-path-prefix={from}={to}"));
        }
        Ok(())
    };
    remap(&root(), "/netbond")?;
    remap(target, "/target")?;
    remap(&home, "/cargo")?;
    // Each registry has a directory named after its address, which a mirror changes.
    if let Ok(registries) = fs::read_dir(home.join("registry/src")) {
        for registry in registries {
            remap(
                &registry.context("cannot list cargo's registries")?.path(),
                "/registry",
            )?;
        }
    }
    remap(&toolchain.compiler.sources, "/rust")?;
    Ok(flags.join("\x1f"))
}

/// Makes the object the committed one and records what it was built with.
pub(crate) fn bless(toolchain: &Toolchain, object: &Path) -> Result<()> {
    let (committed, record) = (root().join(COMMITTED), root().join(RECORD));
    if let Some(dir) = committed.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::copy(object, &committed).with_context(|| format!("cannot write {COMMITTED}"))?;
    fs::write(&record, toolchain.record()).with_context(|| format!("cannot write {RECORD}"))?;
    eprintln!("ebpf: {COMMITTED} and {RECORD} written: commit both");
    Ok(())
}

/// Fails where the committed object is not what the sources give.
///
/// Another toolchain gives another object, which says nothing about the sources: then nothing is
/// compared, and a line says so.
pub(crate) fn compare(toolchain: &Toolchain, object: &Path) -> Result<()> {
    let read = |file: &Path| {
        fs::read(file).with_context(|| {
            format!(
                "cannot read {}: run `cargo xtask build --bless` and commit",
                file.display()
            )
        })
    };
    let recorded = String::from_utf8(read(&root().join(RECORD))?)
        .with_context(|| format!("{RECORD} is not text"))?;
    let line = verdict(
        &recorded,
        &toolchain.record(),
        &read(&root().join(COMMITTED))?,
        &read(object)?,
    )?;
    eprintln!("ebpf: {line}");
    Ok(())
}

fn verdict(recorded: &str, here: &str, committed: &[u8], fresh: &[u8]) -> Result<String> {
    let one_line = |record: &str| record.trim().replace('\n', ", ");
    if committed == fresh {
        return Ok(format!("{COMMITTED} is what the sources give"));
    }
    if recorded.trim() != here.trim() {
        return Ok(format!(
            "{COMMITTED} was not compared with the sources: it was built with {}, and here is {}",
            one_line(recorded),
            one_line(here)
        ));
    }
    bail!(
        "{COMMITTED} ({} bytes) is not what the sources give ({} bytes): run `cargo xtask build \
         --bless` and commit",
        committed.len(),
        fresh.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "rustc 1.96.0\nbpf-linker 0.13.0\nllvm 22.1.8\n";

    #[test]
    fn equal_objects_pass_whatever_built_them() {
        assert!(verdict(HERE, HERE, b"a", b"a").is_ok());
        assert!(verdict("rustc 1.95.0\n", HERE, b"a", b"a").is_ok());
    }

    #[test]
    fn another_object_of_the_same_toolchain_fails() {
        let error = verdict(HERE, HERE, b"a", b"b")
            .expect_err("they differ")
            .to_string();
        assert!(error.contains("cargo xtask build --bless"), "{error}");
    }

    #[test]
    fn another_toolchain_is_said_in_one_line() {
        let line = verdict("rustc 1.95.0\nllvm 22\n", HERE, b"a", b"b").expect("not compared");
        assert!(line.contains("not compared"), "{line}");
        assert_eq!(line.lines().count(), 1);
    }
}
