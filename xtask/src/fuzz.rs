//! `cargo xtask fuzz`: what others write, mutated, for the parsers that read it (libFuzzer).
//!
//! The targets are in `fuzz/`, laid out as cargo-fuzz wants it; what that does besides is done here, so that
//! nothing has to be installed but a C++ compiler. It takes no nightly compiler: instrumentation for
//! coverage is to be had from the stable one, and a sanitizer would find little, as all unsafe code of the
//! parsers is in libraries.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::{env, thread};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{cargo, check, output, root, shown, target_dir};
use crate::setup::{self, Need};
use crate::test::integration_tests;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Targets to run; all where none is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long each of them runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Run one target once on this file, as one that was left by a failure
    #[arg(long, value_name = "FILE", conflicts_with = "seconds")]
    input: Option<PathBuf>,
}

/// How long each target runs in the layer of tests, s.
const IN_TESTS: u32 = 4;

/// What cargo-fuzz gives the compiler, without a sanitizer.
const INSTRUMENTED: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// libFuzzer's options: what takes 10 s or 1 GiB is a failure, too.
const LIMITS: [&str; 4] = [
    "-timeout=10",
    "-rss_limit_mb=1024",
    "-max_len=16384",
    "-print_final_stats=1",
];

/// Lines of what a target printed that are shown where it failed.
const SHOWN: usize = 40;

pub(crate) fn run(args: Args) -> Result<()> {
    let all = targets()?;
    if let Some(unknown) = args.targets.iter().find(|name| !all.contains(name)) {
        bail!("no target \"{unknown}\"; there are: {}", all.join(", "));
    }
    setup::ensure(&[Need::Fuzz])?;
    let built = build()?;
    if let Some(input) = args.input {
        let [target] = args.targets.as_slice() else {
            bail!("name the target that is to run on {}", input.display());
        };
        let input = env::current_dir()?.join(input);
        return check(Command::new(built.join(target)).arg(input));
    }
    let chosen = if args.targets.is_empty() {
        all
    } else {
        args.targets
    };
    fuzz(&built, &chosen, args.seconds)
}

/// Runs every target for a short time; returns how many there are.
pub(crate) fn briefly() -> Result<u32> {
    let all = targets()?;
    fuzz(&build()?, &all, IN_TESTS)?;
    Ok(all.len() as u32)
}

fn targets() -> Result<Vec<String>> {
    integration_tests(&root().join("fuzz/fuzz_targets"))
}

/// Builds all targets; returns where they lie.
fn build() -> Result<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let verbose = output(Command::new(rustc).arg("-vV"))?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("`rustc -vV` names no host")?;
    let target_dir = target_dir()?.join("fuzz");
    let mut build = cargo();
    build
        .args(["build", "--release", "--bins", "--manifest-path"])
        .arg(root().join("fuzz/Cargo.toml"))
        // Named, so that what runs while it is built is not instrumented.
        .args(["--target", host, "--target-dir"])
        .arg(&target_dir)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", INSTRUMENTED);
    check(&mut build)?;
    Ok(target_dir.join(host).join("release"))
}

/// Runs targets side by side, as many as there are processors.
fn fuzz(built: &Path, targets: &[String], seconds: u32) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let processors = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..processors.min(targets.len()) {
            scope.spawn(|| {
                while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match fuzz_one(built, target, seconds) {
                        Ok(runs) => eprintln!("fuzz: {target:<10} {runs:>12} runs"),
                        Err(error) => {
                            eprintln!("error: {target}: {error:#}");
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            failed.push(target.as_str());
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Runs a target, and tells how often. What it finds to be new goes into the target directory; it starts
/// with that, and with the committed seeds.
fn fuzz_one(built: &Path, target: &str, seconds: u32) -> Result<u64> {
    let kept = target_dir()?.join("fuzz");
    let (corpus, failures) = (kept.join("corpus").join(target), kept.join("failures"));
    for dir in [&corpus, &failures] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let log = kept.join(format!("{target}.log"));
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(built.join(target));
    command
        .arg(&corpus)
        .arg(root().join("fuzz/seeds").join(target))
        .args(LIMITS)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/{target}-", failures.display()))
        .stderr(file);
    let status = command
        .status()
        .with_context(|| format!("cannot run `{}`", shown(&command)))?;
    let printed = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let printed = String::from_utf8_lossy(&printed);
    if !status.success() {
        let lines: Vec<&str> = printed.lines().collect();
        let tail = &lines[lines.len().saturating_sub(SHOWN)..];
        bail!(
            "{status}; repeat it with `cargo xtask fuzz {target} --input FILE`, the file being the one \
             named below\n{}",
            tail.join("\n")
        );
    }
    runs(&printed).with_context(|| format!("{} does not say how often it ran", log.display()))
}

/// The number in libFuzzer's `stat::number_of_executed_units: 12`.
fn runs(printed: &str) -> Option<u64> {
    let number = printed
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    number.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_read() {
        let printed = "Done 12 runs in 4 second(s)\nstat::number_of_executed_units: 12\n";
        assert_eq!(runs(printed), Some(12));
        assert_eq!(runs("Done\n"), None);
    }

    /// A target that is no program, or has no seeds, would never run.
    #[test]
    fn every_target_is_a_program_with_seeds() {
        let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).expect("a manifest");
        for target in targets().expect("targets") {
            assert!(
                manifest.contains(&format!("name = \"{target}\"")),
                "{target}"
            );
            let seeds = fs::read_dir(root().join("fuzz/seeds").join(&target));
            assert!(seeds.expect("seeds").count() > 0, "{target}");
        }
    }
}
