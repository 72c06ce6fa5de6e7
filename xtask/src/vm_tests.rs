//! `cargo xtask test vm`: the lab's tests on Debian's kernels.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::build;
use crate::command::{root, shown};
use crate::lab;
use crate::test::{ONLY_IN_VM, integration_tests, passed_in, tests};
use crate::vm::{Job, Kernel, Pace, Vm};

/// How long the tests may take with three kernels side by side on two cores: several times what they
/// do take.
const DEADLINE: Duration = Duration::from_secs(25 * 60);
/// The same with `--full`.
const FULL_DEADLINE: Duration = Duration::from_secs(90 * 60);

/// Runs the tests that need such a kernel, or the `full` lot, on each of `kernels` (on all where there
/// is none), and tells how many passed. Only those whose names contain `only`, where it is given.
pub(crate) fn run(kernels: &[Kernel], full: bool, only: Option<&str>) -> Result<u32> {
    build::programs_for_tests()?;
    let tests = test_programs(full)?;
    let mut programs = lab::programs()?;
    programs.extend(tests.iter().cloned());
    let script = script(&tests, only);

    let kernels = if kernels.is_empty() {
        &Kernel::ALL
    } else {
        kernels
    };
    let deadline = if full { FULL_DEADLINE } else { DEADLINE };
    let mut vms = Vec::new();
    for &kernel in kernels {
        vms.push((kernel, Vm::prepare(kernel)?));
    }
    // Side by side: an emulated processor uses one of the machine's.
    let outcomes = thread::scope(|scope| {
        let running: Vec<_> = vms
            .iter()
            .map(|(kernel, vm)| scope.spawn(|| on(*kernel, vm, &programs, &script, deadline)))
            .collect();
        let outcomes = running.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("its thread panicked")))
        });
        outcomes.collect::<Vec<_>>()
    });
    let mut passed = 0;
    let mut failed = Vec::new();
    for ((kernel, _), outcome) in vms.iter().zip(outcomes) {
        match outcome {
            Ok(count) => passed += count,
            Err(error) => {
                eprintln!("error: kernel {}: {error:#}", kernel.name());
                failed.push(kernel.name());
            }
        }
    }
    ensure!(failed.is_empty(), "failed on kernel {}", failed.join(", "));
    Ok(passed)
}

/// Runs the tests on one kernel and tells how many passed.
fn on(
    kernel: Kernel,
    vm: &Vm,
    programs: &[PathBuf],
    script: &str,
    deadline: Duration,
) -> Result<u32> {
    eprintln!("vm: kernel {}", vm.release());
    let job = Job {
        programs,
        script,
        // A guest whose clock stands still while this machine does something else finds no path
        // dead on that account.
        pace: Pace::Counted,
        deadline,
    };
    let mut passed = 0;
    let code = vm.run(&job, &mut |line| {
        println!("{}: {line}", kernel.name());
        passed += passed_in(line).unwrap_or(0);
        Ok(())
    })?;
    ensure!(code == 0, "tests failed");
    ensure!(passed > 0, "no test was run");
    Ok(passed)
}

/// Runs each test program, going on to the next after one that failed.
fn script(tests: &[PathBuf], only: Option<&str>) -> String {
    let only = only.map(lab::quoted).unwrap_or_default();
    let mut script = "code=0\n".to_owned();
    for test in tests {
        let test = lab::quoted(&test.display().to_string());
        script.push_str(&format!(
            "{test} --ignored --test-threads=1 {only} || code=1\n"
        ));
    }
    script.push_str("exit $code\n");
    script
}

/// Compiles the lab's tests and tells where the programs lie.
fn test_programs(full: bool) -> Result<Vec<PathBuf>> {
    let mut cargo: Command = tests()?;
    for name in integration_tests(&root().join("netbond-lab/tests"))? {
        if full || name.starts_with(ONLY_IN_VM) {
            cargo.args(["--test", &name]);
        }
    }
    cargo.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run `{}`", shown(&cargo)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", shown(&cargo), output.status);
    }
    let programs: Vec<PathBuf> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(program)
        .collect();
    ensure!(!programs.is_empty(), "cargo built no test");
    Ok(programs)
}

/// The test program that a message of cargo's tells of.
fn program(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_test = message["profile"]["test"].as_bool()?;
    is_test
        .then(|| message["executable"].as_str().map(PathBuf::from))
        .flatten()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn test_programs_are_told_from_the_rest() {
        let message = |test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","profile":{{"test":{test}}},"executable":"/t/deps/a"}}"#
            )
        };
        assert_eq!(program(&message(true)), Some("/t/deps/a".into()));
        assert_eq!(program(&message(false)), None);
        assert_eq!(program(r#"{"reason":"build-finished"}"#), None);
        assert_eq!(program("no JSON"), None);
    }

    #[test]
    fn one_failed_program_fails_the_script_which_runs_them_all() {
        let script = script(&["/bin/false".into(), "/bin/true".into()], Some("x"));
        let script = script.replace("--ignored", "");
        let status = Command::new("bash").args(["-c", &script]).status();
        assert_eq!(status.expect("bash runs").code(), Some(1));
    }
}
