//! `cargo xtask test`: the layers of tests, from the one that needs nothing to the one that needs root.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs, io};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::command::{cargo_on_workspace, check, root, shown};
use crate::setup::{self, Need};
use crate::vm::Kernel;
use crate::{build, ebpf, fuzz, lint, operations, package, vm_tests};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Layers to run; all but `fuzz` and `operations` where none is named
    #[arg(value_name = "NAME")]
    layers: Vec<Layer>,
    /// Kernels of the layer `vm` (may be repeated) [default: all; without layers the oldest and the newest]
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<Kernel>,
    /// In the layer `vm` all of the lab's tests, not only those that need what this machine's own kernel
    /// may lack (more than an hour)
    #[arg(long)]
    full: bool,
    /// Run only tests of the layer `vm` whose names contain this, or that are in the file of this name (may be
    /// repeated)
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// In the layers `lab` and `vm` run only the tests that hold on every underlay, over this one [default:
    /// all tests, over WireGuard and IPv4 unless they choose another]
    #[arg(long, value_name = "UNDERLAY")]
    underlay: Option<Underlay>,
}

/// What the lab's paths run over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Underlay {
    /// WireGuard, with IPv6 inside and outside of its tunnels
    WireguardIpv6,
    /// Ethernet
    Ethernet,
    /// Ethernet, whose packets are received in the devices' drivers (XDP)
    EthernetXdp,
    /// One path over WireGuard and IPv4, the others over Ethernet and IPv6, received in the driver
    Mixed,
}

impl Underlay {
    /// What the lab reads.
    pub(crate) const VARIABLE: &str = "NETBOND_LAB_UNDERLAY";

    /// Tests that make a path lose packets, which WireGuard in user space does by itself.
    fn not_on_this_machine(self) -> &'static [&'static str] {
        match self {
            Self::Ethernet | Self::EthernetXdp => &[
                "losses_of_data_are_counted_to_the_packet",
                "a_lossy_path_is_avoided_where_the_policy_says_so",
            ],
            Self::WireguardIpv6 | Self::Mixed => &[],
        }
    }

    /// Tests in which something happens below a path's device.
    pub(crate) fn needs_a_tunnel(self) -> &'static [&'static str] {
        match self {
            Self::Ethernet | Self::EthernetXdp => &["an_mtu_black_hole_is_named_at_both_ends"],
            Self::WireguardIpv6 | Self::Mixed => &[],
        }
    }

    /// As the lab and the command line have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WireguardIpv6 => "wireguard-ipv6",
            Self::Ethernet => "ethernet",
            Self::EthernetXdp => "ethernet-xdp",
            Self::Mixed => "mixed",
        }
    }
}

/// In the order they are run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layer {
    /// Formatting and clippy
    Lint,
    /// Tests without privilege, and the eBPF crate compiled on the host
    Pure,
    /// The committed eBPF object against the sources; without privilege
    Object,
    /// Every target of `fuzz/` for a few seconds; only where it is named, as the dependencies are compiled
    /// once more for it (minutes)
    Fuzz,
    /// The eBPF programs on packets, in the kernel (CAP_BPF)
    TestRun,
    /// netbond's own parts against the kernel, BIRD and FRR in network namespaces (root)
    Netns,
    /// Routers in network namespaces (root)
    Lab,
    /// The packages, on a fresh Debian in a container and where there is nothing else (root)
    Package,
    /// docs/operations.md as it stands, on four routers in a virtual machine (root); only where it is named,
    /// as it takes minutes
    Operations,
    /// The lab's tests on Debian's kernels in virtual machines, and more of them beside those
    /// kernels' own tunnels and bonding; starts with the layer `lab`, where that is run as well
    Vm,
}

/// How many of the lab's tests run side by side: each starts routers and tunnels of its own.
const LAB_THREADS: u32 = 2;

/// Seed of the inputs that properties are tried on. The same in each run, so that one fails for what was
/// changed; to search for inputs that break a property is `PROPTEST_CASES=100000 cargo test --release`.
const PROPERTIES_SEED: &str = "PROPTEST_RNG_SEED";

/// What a program with maps, classifiers and helpers takes to load, with its number.
const CAPABILITIES: [(&str, u32); 3] =
    [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

impl Layer {
    fn name(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Pure => "pure",
            Self::Object => "object",
            Self::Fuzz => "fuzz",
            Self::TestRun => "test-run",
            Self::Netns => "netns",
            Self::Lab => "lab",
            Self::Package => "package",
            Self::Operations => "operations",
            Self::Vm => "vm",
        }
    }

    fn needs(self) -> &'static [Need] {
        match self {
            Self::Lint => &[Need::Lint],
            Self::Pure | Self::TestRun => &[],
            Self::Object => &[Need::Toolchain],
            Self::Fuzz => &[Need::Fuzz],
            Self::Netns => &[Need::Tools],
            Self::Lab => &[Need::Tools, Need::Prometheus],
            Self::Package => &[Need::Toolchain, Need::Package, Need::PackageTest],
            Self::Operations => &[
                Need::Toolchain,
                Need::Package,
                Need::PackageTest,
                Need::Tools,
                Need::Vm,
            ],
            Self::Vm => &[Need::Tools, Need::Vm],
        }
    }

    /// Runs the layer and tells how many tests passed, for a layer that has tests. `vms` are those that
    /// were started already.
    fn run(self, args: &Args, vms: Option<vm_tests::Running>) -> Result<Option<u32>> {
        match self {
            Self::Lint => lint::run().map(|()| None),
            Self::Pure => pure().map(Some),
            Self::Object => object().map(Some),
            Self::Fuzz => fuzz::briefly().map(Some),
            Self::TestRun => test_run().map(Some),
            Self::Netns => netns().map(Some),
            Self::Lab => match args.underlay {
                Some(underlay) => over(underlay).map(Some),
                None => lab().map(Some),
            },
            Self::Package => packages(!args.layers.is_empty()).map(Some),
            Self::Operations => operate().map(Some),
            Self::Vm => match vms {
                Some(running) => running.finish().map(Some),
                None => start_vms(args)?.finish().map(Some),
            },
        }
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    let layers: Vec<Layer> = Layer::value_variants()
        .iter()
        .copied()
        .filter(|layer| match &args.layers[..] {
            [] => !matches!(layer, Layer::Fuzz | Layer::Operations),
            named => named.contains(layer),
        })
        .collect();

    // Everything at once: one installation instead of one for each layer.
    let needs: Vec<Need> = layers
        .iter()
        .flat_map(|layer| layer.needs())
        .copied()
        .collect();
    let prepared = setup::ensure(&needs);
    if let Err(error) = &prepared {
        eprintln!("error: {error:#}");
    }

    let mut summary = Vec::new();
    let mut vms = None;
    for &layer in &layers {
        eprintln!("\ntest: {}", layer.name());
        let start = Instant::now();
        // The lab's tests mostly wait.
        if layer == Layer::Lab && layers.contains(&Layer::Vm) && prepared.is_ok() {
            // Where it fails, it is tried and told in its turn.
            vms = start_vms(&args).ok();
        }
        let ready = match &prepared {
            // Perhaps this layer needs nothing of what is missing.
            Err(_) => setup::ensure(layer.needs()),
            Ok(()) => Ok(()),
        };
        let started = if layer == Layer::Vm { vms.take() } else { None };
        let outcome = ready.and_then(|()| layer.run(&args, started));
        if let Err(error) = &outcome {
            eprintln!("error: {error:#}");
        }
        summary.push((layer, outcome, start.elapsed()));
    }

    let mut failed = Vec::new();
    println!();
    for (layer, outcome, took) in &summary {
        let (result, detail) = match outcome {
            Ok(None) => ("passed", String::new()),
            Ok(Some(tests)) => ("passed", format!("{tests} tests")),
            Err(error) => {
                failed.push(layer.name());
                ("FAILED", format!("{error:#}"))
            }
        };
        println!(
            "{:<9} {result} {:>5} s  {detail}",
            layer.name(),
            took.as_secs()
        );
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Kernels of a whole run, whose time is limited: the oldest and the newest.
const OUTERMOST: [Kernel; 2] = [Kernel::V6_1, Kernel::Newest];

fn start_vms(args: &Args) -> Result<vm_tests::Running> {
    let kernels = match (&args.kernel[..], &args.layers[..]) {
        ([], []) => OUTERMOST.to_vec(),
        (chosen, _) => chosen.to_vec(),
    };
    vm_tests::Running::start(&vm_tests::Choice {
        kernels,
        full: args.full,
        only: args.only.clone(),
        underlay: args.underlay,
        divided: args.layers.is_empty() && args.kernel.is_empty() && !args.full,
    })
}

fn pure() -> Result<u32> {
    // No member by default, so the tests leave it out.
    let compiled = check(cargo_on_workspace("check")?.args(["--package", "netbond-ebpf"]));
    let mut test = tests()?;
    if env::var_os(PROPERTIES_SEED).is_none() {
        test.env(PROPERTIES_SEED, "1");
    }
    let passed = cargo_test(&mut test)?;
    compiled.context("the eBPF crate does not compile on the host")?;
    Ok(passed)
}

fn object() -> Result<u32> {
    let toolchain = setup::toolchain()?;
    let fresh = ebpf::build(&toolchain)?;
    let compared = ebpf::compare(&toolchain, &fresh);
    let passed = cargo_test(tests()?.args(["--test", "object"]))?;
    compared.map(|()| passed)
}

fn test_run() -> Result<u32> {
    for (name, number) in CAPABILITIES {
        ensure!(
            setup::has_capability(number)?,
            "these tests load eBPF programs and need {name}: run them as root"
        );
    }
    let mut test = tests()?;
    for name in integration_tests(&root().join("netbond/tests"))? {
        test.args(["--test", &name]);
    }
    cargo_test(test.args(["--", "--ignored"]))
}

fn netns() -> Result<u32> {
    ensure_root()?;
    // Of all members, though only netbond has such tests: a choice would have dependencies compiled anew, with
    // the features that it asks for.
    cargo_test(tests()?.args(["--lib", "--", "--ignored"]))
}

fn ensure_root() -> Result<()> {
    ensure!(
        setup::is_root()?,
        "these tests make network namespaces and need root: run them as root"
    );
    Ok(())
}

fn lab() -> Result<u32> {
    let names = lab_tests()?;
    run_in_lab(&names, |_| ())
}

/// Of the lab's tests those that hold on every underlay, over this one.
fn over(underlay: Underlay) -> Result<u32> {
    run_in_lab(&ON_EVERY_UNDERLAY, |test| {
        test.env(Underlay::VARIABLE, underlay.name());
        let netem = underlay.not_on_this_machine().iter();
        let netem = netem.map(|name| (name, "this kernel may lack netem"));
        let below = underlay.needs_a_tunnel().iter();
        let below = below.map(|name| (name, "nothing is below the paths"));
        for (name, why) in netem.chain(below) {
            eprintln!("left out, as {why}: {name}");
            test.args(["--skip", name]);
        }
    })
}

/// Runs test programs of the lab; `adjust` may add to their arguments.
fn run_in_lab<S: AsRef<str>>(names: &[S], adjust: impl FnOnce(&mut Command)) -> Result<u32> {
    ensure_root()?;
    // The tests run the programs; cargo builds those only of the package it tests.
    build::programs_for_tests()?;
    let mut test = tests()?;
    for name in names {
        test.args(["--test", name.as_ref()]);
    }
    test.args(["--", "--ignored"])
        .arg(format!("--test-threads={LAB_THREADS}"));
    adjust(&mut test);
    cargo_test(&mut test)
}

/// `all`: with the archive for the other architecture, which takes minutes to compile.
fn packages(all: bool) -> Result<u32> {
    ensure_root()?;
    build::programs_for_tests()?;
    let mut test = tests()?;
    test.args(["--test", PACKAGE_TEST]);
    test.env("NETBOND_DEB", package::deb()?);
    let targets = if all {
        &package::TARGETS[..]
    } else {
        &package::TARGETS[..1]
    };
    for (target, archive) in targets.iter().zip(package::archives(targets)?) {
        test.env(format!("NETBOND_{}", target.arch.to_uppercase()), archive);
    }
    test.args(["--", "--ignored"]);
    for target in &package::TARGETS[targets.len()..] {
        test.args(["--skip", target.arch]);
    }
    cargo_test(&mut test)
}

fn operate() -> Result<u32> {
    ensure_root()?;
    build::programs_for_tests()?;
    operations::run(&package::deb()?)
}

/// The test program that wants packages.
const PACKAGE_TEST: &str = "package";

/// How the names of test programs start that need kernel modules which not every machine has.
pub(crate) const ONLY_IN_VM: &str = "kernel_";

/// The lab's test programs that say nothing of a kernel, and run what is not in a VM, or want packages.
pub(crate) const NOT_IN_VM: [&str; 5] =
    ["crash", "log", operations::TEST, PACKAGE_TEST, "prometheus"];

/// The lab's test programs that say what holds whatever the paths run over.
pub(crate) const ON_EVERY_UNDERLAY: [&str; 10] = [
    "bond",
    "gretap",
    "lifecycle",
    "liveness",
    "load",
    "modes",
    "mtu",
    "operator",
    "tally",
    "verdicts",
];

/// The lab's test programs that run on this machine's kernel.
fn lab_tests() -> Result<Vec<String>> {
    let mut names = integration_tests(&root().join("netbond-lab/tests"))?;
    let others = [PACKAGE_TEST, operations::TEST];
    names.retain(|name| !name.starts_with(ONLY_IN_VM) && !others.contains(&name.as_str()));
    Ok(names)
}

/// `cargo test`, going on to the next program after one that failed.
pub(crate) fn tests() -> Result<Command> {
    let mut test = cargo_on_workspace("test")?;
    test.arg("--no-fail-fast");
    Ok(test)
}

/// The names of a package's integration tests.
pub(crate) fn integration_tests(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot list {}", dir.display()))?
            .path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }
    ensure!(!names.is_empty(), "{} holds no tests", dir.display());
    names.sort();
    Ok(names)
}

/// Runs `cargo test`, showing what it prints, and counts the tests that passed.
///
/// A run without any test is an error: a name that no longer fits would pass for ever.
fn cargo_test(command: &mut Command) -> Result<u32> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", shown(command)))?;
    let printed = child
        .stdout
        .take()
        .context("cargo's output is not to be had")?;
    let mut passed = 0;
    for line in BufReader::new(printed).split(b'\n') {
        let line = line.context("cannot read cargo's output")?;
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(&line)
            .and_then(|()| stdout.write_all(b"\n"))?;
        passed += passed_in(&String::from_utf8_lossy(&line)).unwrap_or(0);
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    ensure!(passed > 0, "`{}` ran no test", shown(command));
    Ok(passed)
}

/// The number in `test result: ok. 12 passed; ..`.
pub(crate) fn passed_in(line: &str) -> Option<u32> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    rest.split_once(" passed")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_tests_are_counted() {
        let line = "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out";
        assert_eq!(passed_in(line), Some(12));
        assert_eq!(
            passed_in("test result: FAILED. 2 passed; 1 failed"),
            Some(2)
        );
        assert_eq!(passed_in("test tests::a ... ok"), None);
    }

    #[test]
    fn the_tests_for_every_underlay_exist() {
        let names = integration_tests(&root().join("netbond-lab/tests")).expect("there are tests");
        for name in ON_EVERY_UNDERLAY {
            assert!(names.iter().any(|known| known == name), "{name}");
        }
    }

    #[test]
    fn underlays_are_named_as_the_command_line_names_them() {
        for underlay in Underlay::value_variants() {
            let value = underlay.to_possible_value().expect("none is hidden");
            assert_eq!(value.get_name(), underlay.name());
        }
    }

    #[test]
    fn layers_are_named_as_the_command_line_names_them() {
        for layer in Layer::value_variants() {
            let value = layer.to_possible_value().expect("no layer is hidden");
            assert_eq!(value.get_name(), layer.name());
        }
    }
}
