//! `cargo xtask lab`: netbond-lab, freshly built; on this machine's kernel or in a VM.

use std::convert::Infallible;
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use anyhow::Result;

use crate::command::{built, exec, target_dir};
use crate::setup::Need;
use crate::vm::{Job, Kernel, Pace, Vm};
use crate::{build, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// In a VM, with a kernel of Debian's
    #[arg(
        long,
        value_name = "KERNEL",
        num_args = 0..=1,
        default_missing_value = "6.12"
    )]
    vm: Option<Kernel>,
    /// The VM's clock counts instructions, so that figures do not depend on this machine's load
    #[arg(long, requires = "vm")]
    counted: bool,
    /// Arguments of netbond-lab; in a VM, none give a shell beside a running lab
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Long enough for any benchmark, and no VM stays for ever.
const DEADLINE: Duration = Duration::from_secs(6 * 3600);

/// What the user is told in the VM.
const WELCOME: &str = "\
echo 'The lab runs: `netbond-lab exec A -- netbond status`, `netbond-lab exec A -- bash`, `exit` to end.'
bash -i
";

pub(crate) fn run(args: Args) -> Result<()> {
    match args.vm {
        None => {
            setup::ensure(&[Need::Tools])?;
            build::programs()?;
            match exec(built("netbond-lab")?.args(args.args))? {}
        }
        Some(kernel) => {
            let pace = if args.counted {
                Pace::Counted
            } else {
                Pace::Fast
            };
            match in_vm(kernel, pace, &args.args)? {}
        }
    }
}

/// Runs netbond-lab in a VM and ends as it ended.
fn in_vm(kernel: Kernel, pace: Pace, args: &[String]) -> Result<Infallible> {
    setup::ensure(&[Need::Tools, Need::Vm])?;
    build::programs()?;
    let vm = Vm::prepare(kernel)?;
    let programs = programs()?;
    let path = search_path()?;
    let job = |script: String| -> Result<u8> {
        let job = Job {
            programs: &programs,
            archives: &[],
            script: &script,
            pace,
            deadline: DEADLINE,
        };
        if args.is_empty() {
            vm.run_in_terminal(&job)
        } else {
            vm.run(&job, &mut |line| {
                println!("{line}");
                Ok(())
            })
        }
    };
    let code = if args.is_empty() {
        eprintln!("vm: kernel {}, and a lab in it ...", vm.release());
        job(format!("{path}netbond-lab up\n{WELCOME}"))?
    } else {
        let words: Vec<String> = args.iter().map(|arg| quoted(arg)).collect();
        job(format!("{path}exec netbond-lab {}\n", words.join(" ")))?
    };
    process::exit(code.into())
}

/// The project's programs, as they lie on the disk.
pub(crate) fn programs() -> Result<Vec<PathBuf>> {
    let dir = target_dir()?.join("release");
    Ok(vec![dir.join("netbond"), dir.join("netbond-lab")])
}

/// The line of a script that has the project's programs found.
pub(crate) fn search_path() -> Result<String> {
    let dir = target_dir()?.join("release");
    Ok(format!(
        "export PATH={}:$PATH\n",
        quoted(&dir.display().to_string())
    ))
}

/// A word as the shell takes it for one.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
