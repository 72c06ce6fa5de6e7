//! The compiler and linker for eBPF.
//!
//! `core` has to be built for the BPF target, which takes library sources that match the compiler.
//! Debian packages such a pair; a rustup toolchain with the component rust-src is one too.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{cargo_home, find_program, output};

/// The version of bpf-linker that setup installs and the build takes.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// The LLVM that bpf-linker is built against.
pub(crate) const LLVM_MAJOR: u32 = 22;
/// Where Debian puts that LLVM.
pub(crate) const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// A compiler with the matching library sources.
#[derive(Debug)]
pub(crate) struct Compiler {
    pub(crate) rustc: PathBuf,
    /// The directory that holds `library/core`.
    pub(crate) sources: PathBuf,
    /// As `rustc --version` prints it.
    pub(crate) version: String,
}

/// Everything the eBPF object is built with.
#[derive(Debug)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: PathBuf,
    pub(crate) strip: PathBuf,
    pub(crate) llvm_version: String,
}

/// The parts of a [`Toolchain`] that were found.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) compiler: Option<Compiler>,
    pub(crate) linker: Option<PathBuf>,
    pub(crate) strip: Option<(PathBuf, String)>,
}

impl Toolchain {
    /// Looks for all parts; the error names those that were found.
    pub(crate) fn find() -> Result<Self, Box<Parts>> {
        let parts = Parts {
            compiler: find_compiler(),
            linker: find_linker(),
            strip: find_strip(),
        };
        match parts {
            Parts {
                compiler: Some(compiler),
                linker: Some(linker),
                strip: Some(strip),
            } => {
                let (strip, llvm_version) = strip;
                Ok(Self {
                    compiler,
                    linker,
                    strip,
                    llvm_version,
                })
            }
            parts => Err(Box::new(parts)),
        }
    }

    /// What the object's bytes depend on besides the sources; committed beside the object.
    pub(crate) fn record(&self) -> String {
        format!(
            "{}\nbpf-linker {LINKER_VERSION}\nllvm {}\n",
            self.compiler.version, self.llvm_version
        )
    }
}

/// Debian's compiler comes first: the committed object is built with it.
fn find_compiler() -> Option<Compiler> {
    compiler(Path::new("/usr/bin/rustc"))
        .or_else(|| compiler(&sysroot(&mut Command::new("rustc"))?.join("bin/rustc")))
        .or_else(|| {
            let installed = output(Command::new("rustup").args(["toolchain", "list"])).ok()?;
            installed
                .lines()
                .filter_map(|line| line.split_whitespace().next())
                .filter(|name| name.starts_with("nightly"))
                .find_map(|name| {
                    let mut rustc = Command::new("rustup");
                    rustc.args(["run", name, "rustc"]);
                    compiler(&sysroot(&mut rustc)?.join("bin/rustc"))
                })
        })
}

fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    let sysroot = output(rustc.args(["--print", "sysroot"])).ok()?;
    Some(PathBuf::from(sysroot.trim()))
}

fn compiler(rustc: &Path) -> Option<Compiler> {
    if !rustc.is_file() {
        return None;
    }
    let sources = sysroot(&mut Command::new(rustc))?.join("lib/rustlib/src/rust");
    if !sources.join("library/core/Cargo.toml").is_file() {
        return None;
    }
    let verbose = output(Command::new(rustc).arg("-vV")).ok()?;
    // An older LLVM cannot read the bitcode of a newer one.
    if llvm_major(&verbose)? > LLVM_MAJOR {
        return None;
    }
    let version = verbose.lines().next()?.to_owned();
    Some(Compiler {
        rustc: rustc.to_owned(),
        sources,
        version,
    })
}

fn llvm_major(rustc_verbose: &str) -> Option<u32> {
    let version = rustc_verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

fn find_linker() -> Option<PathBuf> {
    let installed = cargo_home().ok().map(|home| home.join("bin/bpf-linker"));
    installed
        .into_iter()
        .chain(find_program("bpf-linker"))
        .find(|linker| {
            // It has to run, too: the LLVM it is linked to may have gone.
            linker.is_file()
                && output(Command::new(linker).arg("--version"))
                    .is_ok_and(|version| version.trim() == format!("bpf-linker {LINKER_VERSION}"))
        })
}

fn find_strip() -> Option<(PathBuf, String)> {
    let prefixed = Path::new(LLVM_PREFIX).join("bin/llvm-strip");
    let named = [format!("llvm-strip-{LLVM_MAJOR}"), "llvm-strip".to_owned()];
    [prefixed]
        .into_iter()
        .chain(named.iter().filter_map(|name| find_program(name)))
        .find_map(|strip| {
            let printed = output(Command::new(&strip).arg("--version")).ok()?;
            let (_, rest) = printed.split_once("LLVM version ")?;
            Some((strip, rest.split_whitespace().next()?.to_owned()))
        })
}

/// The path, with the home directory shortened.
pub(crate) fn tilde(path: &Path) -> String {
    match env::home_dir().and_then(|home| path.strip_prefix(home).ok().map(Path::to_owned)) {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_major_of_a_verbose_version() {
        let printed = "rustc 1.96.0 (0123 2026-05-25)\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(printed), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }
}
