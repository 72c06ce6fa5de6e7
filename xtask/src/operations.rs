//! docs/operations.md, run as it stands: four routers with systemd, in containers in a VM whose kernel is
//! the one that Debian 12 has.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::command::find_program;
use crate::lab::quoted;
use crate::test::passed_in;
use crate::vm::{DEBIAN, Job, Kernel, Pace, Vm};
use crate::vm_tests::compiled;

/// The test program that runs the document.
pub(crate) const TEST: &str = "operations";

/// Several times what it takes on a machine that does other things as well.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// Runs the document with this package and tells how many tests passed.
pub(crate) fn run(deb: &Path) -> Result<u32> {
    let vm = Vm::prepare(Kernel::V6_1)?;
    let mut programs = compiled(&[TEST])?;
    let test = programs.first().context("cargo built no test")?;
    let script = script(test);
    programs.push(find_program("systemd-nspawn").context("systemd-nspawn is missing")?);
    let name = deb.file_name().context("the package has no name")?;
    let archives: [PathBuf; 2] = [
        vm.debian()?,
        vm.file(deb, &Path::new(DEBIAN).join("root").join(name))?,
    ];
    let job = Job {
        programs: &programs,
        archives: &archives,
        script: &script,
        // OSPF's timers cost nothing, and no path is late because this machine is busy.
        pace: Pace::Counted,
        deadline: DEADLINE,
    };
    let mut passed = 0;
    let code = vm.run(&job, &mut |line| {
        println!("{line}");
        passed += passed_in(line).unwrap_or(0);
        Ok(())
    })?;
    ensure!(code == 0, "docs/operations.md does not do what it says");
    ensure!(passed > 0, "no test was run");
    Ok(passed)
}

fn script(test: &Path) -> String {
    let test = quoted(&test.display().to_string());
    // systemd-nspawn wants to know what it runs on.
    format!(
        "exec 2>&1\n\
         cp {DEBIAN}/usr/lib/os-release /usr/lib/os-release\n\
         tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id\n\
         NETBOND_DEBIAN={DEBIAN} {test} --ignored --nocapture\n"
    )
}
