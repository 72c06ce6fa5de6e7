//! `cargo xtask bench`: the benchmarks, each a program of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::command::{built, cargo_on_workspace, check, exec, output, shown, target_dir};
use crate::lab::{programs, quoted, search_path};
use crate::setup::Need;
use crate::vm::{Job, Kernel, Pace, Vm};
use crate::{build, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(default_value = "compare")]
    name: Name,
    /// Kernel of the VM (compare, datapath)
    #[arg(long, value_name = "KERNEL", default_value = "6.12")]
    kernel: Kernel,
    /// On this machine's kernel instead of in a VM (compare)
    #[arg(long)]
    host: bool,
    /// In a VM whose clock counts instructions, as compare always is (datapath)
    #[arg(long)]
    counted: bool,
    /// Arguments of the benchmark
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// netbond beside kernel bonding, team, ECMP and MPTCP, in a VM whose clock counts instructions
    Compare,
    /// Nanoseconds a packet, in the kernel, without a network (CAP_BPF); or instructions (--counted)
    Datapath,
    /// What the controller costs, by the number of paths it probes (root)
    Cost,
    /// How the controller bears many bonds, many routes, and storms of route changes (root)
    Scale,
    /// Paths taken for dead in a saturated lab in which nothing fails (root, an hour)
    Calm,
    /// What a path's failure costs, in the lab, beside OSPF alone and OSPF with BFD (root)
    Failover,
}

/// Longer than several runs of the whole comparison take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(72 * 3600);

pub(crate) fn run(args: Args) -> Result<()> {
    match args.name {
        Name::Compare if args.host => compare_on_host(&args.args),
        Name::Compare => compare_in_vm(args.kernel, &args.args),
        Name::Datapath if args.counted => example_in_vm("bench_datapath", args.kernel, &args.args),
        Name::Datapath => example("bench_datapath", &args.args),
        Name::Cost => in_lab("cost", &args.args),
        Name::Scale => in_lab("scale", &args.args),
        Name::Calm => in_lab("calm", &args.args),
        Name::Failover => in_lab("failover", &args.args),
    }
}

fn compare_on_host(args: &[String]) -> Result<()> {
    setup::ensure(&[Need::Tools])?;
    build::programs()?;
    let figures = figures()?;
    let measured = check(
        built("netbond-lab")?
            .args(["bench", "--save"])
            .arg(&figures)
            .args(args),
    );
    // What there is when something failed is shown as well.
    let shown = figures
        .exists()
        .then(|| show(&figures, "this machine's kernel", args));
    measured.and(shown.unwrap_or(Ok(())))
}

fn compare_in_vm(kernel: Kernel, args: &[String]) -> Result<()> {
    setup::ensure(&[Need::Tools, Need::Vm])?;
    build::programs()?;
    let vm = Vm::prepare(kernel)?;
    let figures = figures()?;
    let words: Vec<String> = args.iter().map(|arg| quoted(arg)).collect();
    let job = Job {
        programs: &programs()?,
        archives: &[],
        script: &format!(
            "{}exec netbond-lab bench --counted --follow {}\n",
            search_path()?,
            words.join(" ")
        ),
        pace: Pace::Counted,
        deadline: DEADLINE,
    };
    // Each line is all there is so far: what was measured stays when the rest fails.
    let measured = vm
        .run(&job, &mut |line| {
            fs::write(&figures, format!("{line}\n"))
                .with_context(|| format!("cannot write {}", figures.display()))
        })
        .and_then(|code| {
            ensure!(code == 0, "netbond-lab bench failed in the VM");
            Ok(())
        });
    let machine = format!("Linux {} in an emulated VM, one CPU", vm.release());
    let shown = figures.exists().then(|| show(&figures, &machine, args));
    measured.and(shown.unwrap_or(Ok(())))
}

/// The file of the comparison's figures, which is not there yet.
fn figures() -> Result<PathBuf> {
    let dir = target_dir()?.join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let figures = dir.join("compare.json");
    match fs::remove_file(&figures) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", figures.display()))
        }
        Ok(()) | Err(_) => Ok(figures),
    }
}

/// Prints the figures, and writes them as a page beside their file.
fn show(figures: &Path, machine: &str, args: &[String]) -> Result<()> {
    let page = figures.with_extension("html");
    let commit = output(Command::new("git").args(["describe", "--always", "--dirty"]));
    let title = format!(
        "{machine}; netbond {}; cargo xtask bench compare {}",
        commit.unwrap_or_default().trim(),
        args.join(" ")
    );
    let mut lab = built("netbond-lab")?;
    lab.arg("bench-report")
        .arg(figures)
        .arg("--html")
        .arg(&page);
    let status = lab
        .args(["--title", &title])
        .status()
        .with_context(|| format!("cannot run `{}`", shown(&lab)))?;
    ensure!(status.success(), "`{}` failed ({status})", shown(&lab));
    eprintln!("figures: {}, {}", figures.display(), page.display());
    Ok(())
}

fn example(name: &str, args: &[String]) -> Result<()> {
    check(cargo_on_workspace("build")?.args(["--example", name]))?;
    match exec(built(&format!("examples/{name}"))?.args(args))? {}
}

/// Runs an example, which is told `--counted`, in a VM.
fn example_in_vm(name: &str, kernel: Kernel, args: &[String]) -> Result<()> {
    setup::ensure(&[Need::Vm])?;
    check(cargo_on_workspace("build")?.args(["--example", name]))?;
    let program = target_dir()?.join("release/examples").join(name);
    let words: Vec<String> = args.iter().map(|arg| quoted(arg)).collect();
    let path = quoted(&program.display().to_string());
    let job = Job {
        programs: &[program],
        archives: &[],
        script: &format!("exec {path} --counted {}\n", words.join(" ")),
        pace: Pace::Counted,
        deadline: DEADLINE,
    };
    let code = Vm::prepare(kernel)?.run(&job, &mut |line| {
        println!("{line}");
        Ok(())
    })?;
    ensure!(code == 0, "{name} failed in the VM");
    Ok(())
}

/// Runs a command of netbond-lab; its figures are also kept below `target/bench`.
pub(crate) fn in_lab(name: &str, args: &[String]) -> Result<()> {
    setup::ensure(&[Need::Tools])?;
    build::programs()?;
    let figures = target_dir()?.join("bench").join(format!("{name}.json"));
    let mut lab = built("netbond-lab")?;
    match exec(lab.arg(name).arg("--save").arg(figures).args(args))? {}
}
