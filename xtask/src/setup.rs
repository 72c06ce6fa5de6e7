//! `cargo xtask setup`: finds, or installs on Debian 12, what building and testing need.
//!
//! Nothing else in the project installs anything.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::{env, fs, io, process};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{cargo, check, find_program, output};
use crate::package::TARGETS;
use crate::prometheus;
use crate::toolchain::{LINKER_VERSION, LLVM_MAJOR, LLVM_PREFIX, Parts, Toolchain, tilde};

/// What a command of this program needs on the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Compiler and linker for eBPF.
    Toolchain,
    /// The programs that the lab runs.
    Tools,
    /// Prometheus, which tests let read the metrics.
    Prometheus,
    /// What makes and runs a virtual machine.
    Vm,
    /// What packages are made with.
    Package,
    /// What packages are tried with.
    PackageTest,
    /// rustfmt and clippy.
    Lint,
    /// What libFuzzer is compiled with.
    Fuzz,
}

/// The packages of [`Need::Tools`], each with files that only it brings: a program's name, or a path.
const TOOLS: &[(&str, &[&str])] = &[
    ("bird2", &["bird", "birdc"]),
    (
        "frr",
        &["/usr/lib/frr/zebra", "/usr/lib/frr/ospfd", "vtysh"],
    ),
    ("wireguard-tools", &["wg"]),
    ("bpftool", &["bpftool"]),
    ("iperf3", &["iperf3"]),
    ("iproute2", &["ip", "tc"]),
    ("iputils-ping", &["ping"]),
    ("tcpdump", &["tcpdump"]),
    ("util-linux", &["nsenter", "unshare"]),
    ("ethtool", &["ethtool"]),
    ("procps", &["sysctl"]),
    ("strace", &["strace"]),
    (
        "systemd",
        &["/lib/systemd/systemd-journald", "journalctl", "systemd-cat"],
    ),
    ("tmux", &["tmux"]),
    ("gcc", &["cc"]),
];

/// The packages of [`Need::Vm`], likewise. QEMU and the kernels are not among them, nor is Prometheus: they
/// are unpacked, never installed.
const VM: &[(&str, &[&str])] = &[
    ("binutils", &["strip"]),
    ("cpio", &["cpio"]),
    ("kmod", &["depmod"]),
    ("libteam-utils", &["teamd"]),
    ("lz4", &["lz4"]),
    ("mawk", &["mawk"]),
    ("mptcpize", &["mptcpize"]),
    ("xz-utils", &["xz"]),
    ("zstd", &["zstd"]),
];

/// The packages of [`Need::Package`], likewise.
const PACKAGE: &[(&str, &[&str])] = &[
    ("debhelper", &["dh_installsystemd"]),
    ("dpkg-dev", &["dpkg-buildpackage"]),
    ("lintian", &["lintian"]),
    ("xz-utils", &["xz"]),
];

/// The packages of [`Need::PackageTest`], likewise.
const PACKAGE_TEST: &[(&str, &[&str])] = &[
    ("mmdebstrap", &["mmdebstrap"]),
    ("qemu-user-static", &["qemu-aarch64-static"]),
    ("systemd-container", &["systemd-nspawn"]),
];

/// The packages of [`Need::Fuzz`], likewise.
const FUZZ: &[(&str, &[&str])] = &[("g++", &["c++"])];

/// The packages that bring the compiler, and the source of its library.
const COMPILER: &[&str] = &["rustc-web", "rust-web-src"];
/// The packages that bpf-linker is built with.
const LINKER: &[&str] = &["llvm-22-dev", "libc6-dev", "gcc"];
/// The package that brings llvm-strip.
const STRIP: &[&str] = &["llvm-22"];

/// The services that the packages would start at the next boot.
const SERVICES: &[(&str, &str)] = &[("bird2", "bird"), ("frr", "frr")];

pub(crate) fn run() -> Result<()> {
    ensure(&[
        Need::Toolchain,
        Need::Tools,
        Need::Prometheus,
        Need::Vm,
        Need::Package,
        Need::PackageTest,
        Need::Lint,
        Need::Fuzz,
    ])?;
    eprintln!("setup: everything is here");
    Ok(())
}

/// The eBPF toolchain, installed where it is missing.
pub(crate) fn toolchain() -> Result<Toolchain> {
    ensure(&[Need::Toolchain])?;
    Toolchain::find().map_err(|parts| {
        anyhow::anyhow!("the eBPF toolchain is not complete after its set-up: {parts:?}")
    })
}

/// Sees to it that everything needed is there, and says what it finds and does.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let mut packages = Vec::new();
    if needs.contains(&Need::Toolchain) {
        packages.extend(missing_for_toolchain()?);
    }
    if needs.contains(&Need::Tools) {
        packages.extend(missing(TOOLS));
    }
    if needs.contains(&Need::Vm) {
        packages.extend(missing(VM));
    }
    if needs.contains(&Need::Package) {
        packages.extend(missing(PACKAGE));
    }
    if needs.contains(&Need::PackageTest) {
        packages.extend(missing(PACKAGE_TEST));
    }
    if needs.contains(&Need::Fuzz) {
        packages.extend(missing(FUZZ));
    }
    packages.sort_unstable();
    packages.dedup();
    if !packages.is_empty() {
        install(&packages)?;
    }
    if needs.contains(&Need::Toolchain) {
        install_linker()?;
    }
    if needs.contains(&Need::Prometheus) {
        say("prometheus", &tilde(&prometheus::prepare()?));
    }
    if needs.contains(&Need::Lint) {
        lint_tools()?;
    }
    if needs.contains(&Need::Package) {
        rust_targets()?;
    }
    Ok(())
}

/// Prints what was found of one thing, once: several parts of a command may need it.
fn say(what: &str, found: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let line = format!("setup: {what:<16} {found}");
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !said.contains(&line) {
        eprintln!("{line}");
        said.insert(line);
    }
}

fn missing_for_toolchain() -> Result<Vec<&'static str>> {
    let parts = match Toolchain::find() {
        Ok(toolchain) => {
            say(
                "rustc for eBPF",
                &describe(&toolchain.compiler.rustc, &toolchain.compiler.version),
            );
            say("bpf-linker", &describe(&toolchain.linker, LINKER_VERSION));
            say(
                "llvm-strip",
                &describe(&toolchain.strip, &toolchain.llvm_version),
            );
            return Ok(Vec::new());
        }
        Err(parts) => parts,
    };
    let Parts {
        compiler,
        linker,
        strip,
    } = *parts;
    let mut packages = Vec::new();
    match compiler {
        Some(compiler) => say(
            "rustc for eBPF",
            &describe(&compiler.rustc, &compiler.version),
        ),
        None => {
            say("rustc for eBPF", "missing");
            packages.extend(COMPILER);
        }
    }
    match linker {
        Some(linker) => say("bpf-linker", &describe(&linker, LINKER_VERSION)),
        None => {
            say("bpf-linker", "missing");
            packages.extend(LINKER.iter().filter(|package| !is_installed(package)));
        }
    }
    match strip {
        Some((strip, version)) => say("llvm-strip", &describe(&strip, &version)),
        None => {
            say("llvm-strip", "missing");
            packages.extend(STRIP);
        }
    }
    Ok(packages)
}

fn describe(file: &Path, version: &str) -> String {
    format!("{} ({version})", tilde(file))
}

fn missing(wanted: &[(&'static str, &[&str])]) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for &(package, files) in wanted {
        let found: Option<Vec<PathBuf>> = files
            .iter()
            .map(|file| {
                if file.starts_with('/') {
                    Some(PathBuf::from(file)).filter(|path| path.is_file())
                } else {
                    find_program(file)
                }
            })
            .collect();
        match found.as_deref() {
            Some([first, ..]) => say(package, &tilde(first)),
            _ => {
                say(package, "missing");
                packages.push(package);
            }
        }
    }
    packages
}

/// Whether dpkg has this package installed; no where there is no dpkg.
fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// Installs Debian packages, without starting a service.
fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let system = operating_system();
    ensure!(
        system.is_debian_12,
        "cannot install what is missing: this is {}, and setup knows only Debian 12, where the \
         packages needed are: {list}",
        system.name
    );
    ensure!(
        is_root()?,
        "cannot install what is missing without root: run `cargo xtask setup` as root, or install \
         these packages: {list}"
    );
    let fresh_services: Vec<&str> = SERVICES
        .iter()
        .filter(|(package, _)| packages.contains(package) && !is_installed(package))
        .map(|&(_, service)| service)
        .collect();

    eprintln!("setup: installing {list}");
    let guard = NoServices::new()?;
    apt(&["update"])?;
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(packages);
    apt(&args)?;
    drop(guard);

    for service in fresh_services {
        // Installing also enables; the lab starts its own daemons, in its own namespaces.
        match check(Command::new("update-rc.d").args([service, "disable"])) {
            Ok(()) => {
                eprintln!("setup: service {service} is installed, neither started nor enabled")
            }
            Err(error) => eprintln!("warning: service {service} will start at boot: {error:#}"),
        }
    }
    Ok(())
}

fn apt(args: &[&str]) -> Result<()> {
    check(
        Command::new("apt-get")
            .args(["--quiet", "--option", "DPkg::Lock::Timeout=300"])
            // A configuration file that the user changed stays.
            .args(["--option", "Dpkg::Options::=--force-confold"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// Keeps Debian's packages from starting their services, as long as it lives.
///
/// Both invoke-rc.d and deb-systemd-invoke ask this one file.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_MARK: &str = "# Written by netbond's `cargo xtask setup` for the time of one apt-get.";

impl NoServices {
    fn new() -> Result<Self> {
        let old = match fs::read_to_string(POLICY) {
            Ok(old) => old,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {POLICY}")),
        };
        if !old.is_empty() && !old.contains(POLICY_MARK) {
            let refuses = |service: &str| {
                Command::new(POLICY)
                    .args([service, "start"])
                    .status()
                    .is_ok_and(|status| status.code() == Some(101))
            };
            ensure!(
                SERVICES.iter().all(|(_, service)| refuses(service)),
                "{POLICY} exists and lets packages start services: move it away for the set-up"
            );
            return Ok(Self { ours: false });
        }
        // Should this process be killed, what is left behind forbids nothing.
        let script = format!(
            "#!/bin/sh\n{POLICY_MARK}\nkill -0 {} 2>/dev/null && exit 101\nexit 0\n",
            process::id()
        );
        fs::write(POLICY, script).with_context(|| format!("cannot write {POLICY}"))?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {POLICY} executable"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("warning: cannot remove {POLICY}: {error}");
        }
    }
}

fn install_linker() -> Result<()> {
    let parts = match Toolchain::find() {
        Ok(_) => return Ok(()),
        Err(parts) => parts,
    };
    if parts.linker.is_some() {
        bail!(
            "the eBPF toolchain is not complete: no {} after installing Debian's packages",
            if parts.compiler.is_none() {
                format!("rustc with its library's source and LLVM {LLVM_MAJOR} or older")
            } else {
                "llvm-strip".to_owned()
            }
        );
    }
    eprintln!("setup: installing bpf-linker {LINKER_VERSION} with cargo (some minutes)");
    check(
        cargo()
            .args([
                "install",
                "bpf-linker",
                "--locked",
                "--version",
                LINKER_VERSION,
            ])
            .arg("--no-default-features")
            .arg(format!("--features=llvm-{LLVM_MAJOR}"))
            .env("LLVM_PREFIX", LLVM_PREFIX)
            // Its build needs not stay.
            .env_remove("CARGO_TARGET_DIR"),
    )
}

fn lint_tools() -> Result<()> {
    let mut missing = Vec::new();
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        match output(cargo().args([subcommand, "--version"])) {
            Ok(version) => say(component, version.trim()),
            Err(_) => {
                say(component, "missing");
                missing.push(component);
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    check(
        Command::new("rustup")
            .args(["component", "add"])
            .args(&missing),
    )
    .with_context(|| {
        format!(
            "cannot install {}: add them to your Rust toolchain",
            missing.join(" and ")
        )
    })
}

/// The libraries of Rust for the targets that are packaged.
fn rust_targets() -> Result<()> {
    let mut missing = Vec::new();
    for target in TARGETS {
        let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        let dir = output(rustc.args(["--print", "target-libdir", "--target", target.triple]))?;
        if Path::new(dir.trim()).is_dir() {
            say(target.triple, &tilde(Path::new(dir.trim())));
        } else {
            say(target.triple, "missing");
            missing.push(target.triple);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    check(
        Command::new("rustup")
            .args(["target", "add"])
            .args(&missing),
    )
    .with_context(|| {
        format!(
            "cannot install {}: add them to your Rust toolchain",
            missing.join(" and ")
        )
    })
}

struct OperatingSystem {
    name: String,
    is_debian_12: bool,
}

fn operating_system() -> OperatingSystem {
    parse_os_release(&fs::read_to_string("/etc/os-release").unwrap_or_default())
}

fn parse_os_release(text: &str) -> OperatingSystem {
    let value = |key: &str| {
        text.lines()
            .filter_map(|line| line.split_once('='))
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value.trim_matches('"'))
    };
    OperatingSystem {
        name: value("PRETTY_NAME")
            .unwrap_or("an unknown system")
            .to_owned(),
        is_debian_12: value("ID") == Some("debian") && value("VERSION_ID") == Some("12"),
    }
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> Result<bool> {
    Ok(proc_status("Uid")?.split_whitespace().nth(1) == Some("0"))
}

/// Whether this process may use a capability, by its number.
pub(crate) fn has_capability(number: u32) -> Result<bool> {
    let effective = proc_status("CapEff")?;
    let bits = u64::from_str_radix(effective.trim(), 16)
        .with_context(|| format!("/proc/self/status has CapEff {effective:?}"))?;
    Ok(bits >> number & 1 == 1)
}

fn proc_status(key: &str) -> Result<String> {
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value.trim().to_owned())
        .with_context(|| format!("/proc/self/status has no {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_12_is_told_from_others() {
        let debian = |version: &str| {
            parse_os_release(&format!(
                "PRETTY_NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"{version}\"\nID=debian\n"
            ))
        };
        assert!(debian("12").is_debian_12);
        assert!(!debian("13").is_debian_12);
        assert!(!parse_os_release("ID=ubuntu\nVERSION_ID=\"12\"\n").is_debian_12);
        assert_eq!(parse_os_release("").name, "an unknown system");
    }

    #[test]
    fn every_service_belongs_to_a_package_we_install() {
        for (package, _) in SERVICES {
            assert!(TOOLS.iter().any(|(tool, _)| tool == package), "{package}");
        }
    }
}
