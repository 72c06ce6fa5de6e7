//! `cargo xtask test vm`: the lab's tests on Debian's kernels.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::build;
use crate::command::{check, root, shown};
use crate::lab;
use crate::test::{
    NOT_IN_VM, ON_EVERY_UNDERLAY, ONLY_IN_VM, Underlay, integration_tests, passed_in, tests,
};
use crate::vm::{Job, Kernel, Pace, Vm};

/// How long the tests may take with three kernels side by side on two cores, while this machine does
/// other things as well: several times what they do take.
const DEADLINE: Duration = Duration::from_secs(4 * 60 * 60);

/// Which of the tests to run.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    /// Of these, or of all kernels where there is none.
    pub(crate) kernels: Vec<Kernel>,
    /// Only those that need what this machine's own kernel may lack.
    pub(crate) full: bool,
    /// Only those whose names contain one of these, where there is one, or whose file has one of them for a name.
    pub(crate) only: Vec<String>,
    /// Only those that hold on every underlay, over this one.
    pub(crate) underlay: Option<Underlay>,
    /// Those that take longest on one kernel each.
    pub(crate) divided: bool,
}

/// The tests under way, at the lowest priority: beside the lab on this machine they use the time in
/// which it waits, and to a guest whose clock counts its instructions it is all one.
pub(crate) struct Running {
    thread: JoinHandle<Result<u32>>,
    output: Arc<Output>,
}

impl Running {
    /// Makes everything ready and starts the tests. What they print is kept until they are waited for.
    pub(crate) fn start(choice: &Choice) -> Result<Self> {
        build::programs_for_tests()?;
        let tests = test_programs(choice)?;
        let mut programs = lab::programs()?;
        programs.extend(tests.iter().cloned());
        let kernels = if choice.kernels.is_empty() {
            &Kernel::ALL[..]
        } else {
            &choice.kernels
        };
        let mut guests = Vec::new();
        for &kernel in kernels {
            let vm = Vm::prepare(kernel)?;
            eprintln!("vm: kernel {}", vm.release());
            let script = script(&tests, choice, kernel);
            guests.push(Guest { kernel, vm, script });
        }
        let output = Arc::new(Output(Mutex::new(Some(Vec::new()))));
        let thread = thread::spawn({
            let output = Arc::clone(&output);
            move || {
                give_way()?;
                on_all(&guests, &programs, &output)
            }
        });
        Ok(Self { thread, output })
    }

    /// Shows what the tests printed, and go on to print, and tells how many passed.
    pub(crate) fn finish(self) -> Result<u32> {
        self.output.show();
        self.thread
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the thread of the VMs panicked")))
    }
}

/// What the VMs print: kept while another layer prints.
struct Output(Mutex<Option<Vec<String>>>);

impl Output {
    fn line(&self, line: String) {
        match self.lock().as_mut() {
            Some(kept) => kept.push(line),
            None => println!("{line}"),
        }
    }

    fn show(&self) {
        for line in self.lock().take().unwrap_or_default() {
            println!("{line}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From now on this thread, and what it starts, runs when nothing else wants to (SCHED_IDLE).
fn give_way() -> Result<()> {
    let own = fs::read_link("/proc/thread-self").context("cannot tell this thread's id")?;
    let id = own.file_name().context("this thread has no id")?;
    check(Command::new("chrt").args(["--idle", "--pid", "0"]).arg(id))
}

/// Runs the tests on each kernel and tells how many passed.
fn on_all(guests: &[Guest], programs: &[PathBuf], output: &Output) -> Result<u32> {
    // Side by side: an emulated processor uses one of the machine's.
    let outcomes = thread::scope(|scope| {
        let running: Vec<_> = guests
            .iter()
            .map(|guest| scope.spawn(|| guest.run(programs, output)))
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
    for (Guest { kernel, .. }, outcome) in guests.iter().zip(outcomes) {
        match outcome {
            Ok(count) => passed += count,
            Err(error) => {
                output.line(format!("error: kernel {}: {error:#}", kernel.name()));
                failed.push(kernel.name());
            }
        }
    }
    ensure!(failed.is_empty(), "failed on kernel {}", failed.join(", "));
    Ok(passed)
}

/// A kernel with what is to run on it.
struct Guest {
    kernel: Kernel,
    vm: Vm,
    script: String,
}

impl Guest {
    /// Runs its tests and tells how many passed.
    fn run(&self, programs: &[PathBuf], output: &Output) -> Result<u32> {
        let job = Job {
            programs,
            archives: &[],
            script: &self.script,
            // A guest whose clock stands still while this machine does something else finds no path
            // dead on that account.
            pace: Pace::Counted,
            deadline: DEADLINE,
        };
        let mut passed = 0;
        let code = self.vm.run(&job, &mut |line| {
            output.line(format!("{}: {line}", self.kernel.name()));
            passed += passed_in(line).unwrap_or(0);
            Ok(())
        })?;
        ensure!(code == 0, "tests failed");
        ensure!(passed > 0, "no test was run");
        Ok(passed)
    }
}

const UNTOLD: &str = "it does not tell what drivers send (Linux 6.3)";

/// Test programs that say what a kernel has not, and why.
fn beyond(kernel: Kernel) -> &'static [(&'static str, &'static str)] {
    match kernel {
        Kernel::V6_1 => &[("kernel_lan", UNTOLD), ("lan", UNTOLD)],
        Kernel::V6_12 | Kernel::Newest => &[],
    }
}

/// The test programs that take longest, each with the kernel that has it where they are divided: so both are done at
/// about the same time.
const LONGEST: [(&str, Kernel); 2] = [
    ("kernel_bench", Kernel::V6_1),
    ("kernel_mtu", Kernel::Newest),
];

/// Why a test program is left out on a kernel, if it is.
fn why_not(test: &Path, kernel: Kernel, choice: &Choice) -> Option<String> {
    let beyond = beyond(kernel).iter().find(|(name, _)| is_of(test, name));
    if let Some((name, why)) = beyond {
        return Some(format!("{name}: left out on this kernel, as {why}"));
    }
    let (name, other) = LONGEST.iter().find(|(name, _)| is_of(test, name))?;
    (choice.divided && *other != kernel)
        .then(|| format!("{name}: left to kernel {} in a whole run", other.name()))
}

/// Runs each test program on a kernel, going on to the next after one that failed.
fn script(tests: &[PathBuf], choice: &Choice, kernel: Kernel) -> String {
    let only: Vec<String> = choice.only.iter().map(|text| lab::quoted(text)).collect();
    let only = only.join(" ");
    let left_out = choice
        .underlay
        .into_iter()
        .flat_map(Underlay::needs_a_tunnel);
    let skip: String = left_out.map(|name| format!(" --skip {name}")).collect();
    // Errors among the rest, in their place.
    let mut script = "exec 2>&1\ncode=0\n".to_owned();
    if let Some(underlay) = choice.underlay {
        script.push_str(&format!(
            "export {}={}\n",
            Underlay::VARIABLE,
            underlay.name()
        ));
    }
    for test in tests {
        if let Some(why) = why_not(test, kernel, choice) {
            script.push_str(&format!("echo {}\n", lab::quoted(&why)));
            continue;
        }
        let only = if choice.only.iter().any(|name| is_of(test, name)) {
            ""
        } else {
            &only
        };
        let test = lab::quoted(&test.display().to_string());
        script.push_str(&format!(
            "{test} --ignored --test-threads=1{skip} {only} || code=1\n"
        ));
    }
    script.push_str("exit $code\n");
    script
}

/// Whether a test program, whose file cargo gave a hash, is that of `tests/NAME.rs`.
fn is_of(program: &Path, name: &str) -> bool {
    let file = program.file_name().and_then(OsStr::to_str);
    file.and_then(|file| file.rsplit_once('-'))
        .is_some_and(|(stem, _)| stem == name)
}

/// Compiles the lab's tests and tells where the programs lie.
fn test_programs(choice: &Choice) -> Result<Vec<PathBuf>> {
    let mut names = integration_tests(&root().join("netbond-lab/tests"))?;
    names.retain(|name| match choice.underlay {
        Some(_) => ON_EVERY_UNDERLAY.contains(&name.as_str()),
        None => name.starts_with(ONLY_IN_VM) || choice.full && !NOT_IN_VM.contains(&name.as_str()),
    });
    compiled(&names)
}

/// Compiles integration tests and tells where the programs lie.
pub(crate) fn compiled<S: AsRef<str>>(names: &[S]) -> Result<Vec<PathBuf>> {
    let mut cargo: Command = tests()?;
    for name in names {
        cargo.args(["--test", name.as_ref()]);
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
    fn tests_are_chosen_by_their_name_or_their_file() {
        let choice = Choice {
            kernels: Vec::new(),
            full: true,
            only: vec!["lan".to_owned(), "a_bond".to_owned()],
            underlay: None,
            divided: false,
        };
        let tests = ["/t/lan-0a1b".into(), "/t/modes-2c3d".into()];
        let on_oldest = script(&tests, &choice, Kernel::V6_1);
        assert!(
            !on_oldest.contains("/t/lan") && on_oldest.contains("/t/modes"),
            "{on_oldest}"
        );
        assert!(on_oldest.contains("left out on this kernel"), "{on_oldest}");
        let script = script(&tests, &choice, Kernel::Newest);
        let mut lines = script.lines().filter(|line| line.contains("/t/"));
        let mut next = || lines.next().expect("a line for each program");
        let [lan, modes] = [next(), next()];
        assert!(lan.contains("lan-0a1b") && !lan.contains("a_bond"), "{lan}");
        assert!(
            modes.contains("modes-2c3d") && modes.contains("a_bond"),
            "{modes}"
        );
    }

    #[test]
    fn the_longest_are_on_one_kernel_of_a_whole_run() {
        let tests = ["/t/kernel_bench-0a".into(), "/t/kernel_mtu-1b".into()];
        let runs = |kernel, divided| {
            let choice = Choice {
                kernels: Vec::new(),
                full: false,
                only: Vec::new(),
                underlay: None,
                divided,
            };
            let script = script(&tests, &choice, kernel);
            ["/t/kernel_bench", "/t/kernel_mtu"].map(|name| script.contains(name))
        };
        assert_eq!(runs(Kernel::V6_1, true), [true, false]);
        assert_eq!(runs(Kernel::Newest, true), [false, true]);
        assert_eq!(runs(Kernel::Newest, false), [true, true]);
    }

    #[test]
    fn one_failed_program_fails_the_script_which_runs_them_all() {
        let choice = Choice {
            kernels: Vec::new(),
            full: false,
            only: vec!["x".to_owned()],
            underlay: Some(Underlay::Ethernet),
            divided: false,
        };
        let tests = ["/bin/false".into(), "/bin/true".into()];
        let script = script(&tests, &choice, Kernel::Newest);
        assert!(script.contains("--skip an_mtu_black_hole"), "{script}");
        let script = script.replace("--ignored", "");
        let status = Command::new("bash").args(["-c", &script]).status();
        assert_eq!(status.expect("bash runs").code(), Some(1));
    }
}
