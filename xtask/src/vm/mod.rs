//! A virtual machine for the lab: a Debian kernel, with this machine's programs, under QEMU.
//!
//! Kernels and QEMU are Debian's packages, unpacked below `target/vm` and kept there; the machine's
//! own system stays as it is.

mod debian;
mod kernel;
mod qemu;
mod root;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use self::kernel::Image;
use self::qemu::{Accelerator, Guest, Qemu};
use crate::command::target_dir;
use crate::files::write;

pub(crate) use self::debian::DIR as DEBIAN;
pub(crate) use self::kernel::Kernel;
pub(crate) use self::qemu::Pace;

/// How long a kernel may take from its start to its first process where KVM works.
const TRIAL: Duration = Duration::from_secs(15);

/// Where the guest mounts something of its own (init.sh): what lies there here cannot be seen in it.
const COVERED: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];

/// A VM with everything that does not change between its boots.
pub(crate) struct Vm {
    dir: PathBuf,
    qemu: Qemu,
    image: Image,
    accelerator: Accelerator,
}

/// What is run in a VM, and how.
pub(crate) struct Job<'a> {
    /// Programs that are not of a package; each lies in the VM where it lies here.
    pub(crate) programs: &'a [PathBuf],
    /// cpio archives of what else is to lie in the VM.
    pub(crate) archives: &'a [PathBuf],
    /// For bash.
    pub(crate) script: &'a str,
    pub(crate) pace: Pace,
    pub(crate) deadline: Duration,
}

impl Vm {
    /// Makes a VM ready, downloading what is not kept yet.
    pub(crate) fn prepare(kernel: Kernel) -> Result<Self> {
        let target = target_dir()?;
        check_visible(&target)?;
        let dir = target.join("vm");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let qemu = Qemu::prepare(&dir)?;
        let kept = dir.join(format!("kernel-{}", kernel.name()));
        let image = match Image::find(&kept) {
            Some(image) => image,
            None => Image::fetch(kernel, &dir.join("apt-kernel"), &kept)?,
        };
        root::system(&dir, &dir.join("system.cpio"))?;
        let mut vm = Self {
            dir,
            qemu,
            image,
            accelerator: Accelerator::Emulation,
        };
        vm.accelerator = vm.choose_accelerator()?;
        Ok(vm)
    }

    /// The kernel's release.
    pub(crate) fn release(&self) -> &str {
        &self.image.release
    }

    /// An archive with a Debian of its own below [`DEBIAN`], to run in containers; downloaded where it is
    /// not kept yet. Needs root.
    pub(crate) fn debian(&self) -> Result<PathBuf> {
        let archive = self.dir.join("debian.cpio");
        debian::prepare(&self.dir, &archive)?;
        Ok(archive)
    }

    /// An archive with one more file in the VM; `to` is absolute.
    pub(crate) fn file(&self, from: &Path, to: &Path) -> Result<PathBuf> {
        let stage = self.dir.join("stage");
        let archive = self.dir.join("file.cpio");
        root::file(&stage, from, to, &archive)?;
        Ok(archive)
    }

    /// Runs a job to its end; `line` gets each line of its standard output. Returns its exit code.
    pub(crate) fn run(
        &self,
        job: &Job<'_>,
        line: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<u8> {
        self.boot(job, self.accelerator, false, line)
    }

    /// Runs a job whose terminal is this one. Returns its exit code.
    pub(crate) fn run_in_terminal(&self, job: &Job<'_>) -> Result<u8> {
        self.boot(job, self.accelerator, true, &mut |_| Ok(()))
    }

    fn boot(
        &self,
        job: &Job<'_>,
        accelerator: Accelerator,
        interactive: bool,
        line: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<u8> {
        // Two runs beside each other do not share their files.
        let dir = self
            .dir
            .join(format!("run-{}-{}", std::process::id(), self.image.release));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = Scratch(dir);
        let payload = dir.0.join("payload.cpio");
        root::payload(&dir.0, job.programs, job.script, &payload)?;
        let system = self.dir.join("system.cpio");
        let mut archives = vec![system.as_path(), &self.image.modules, &payload];
        archives.extend(job.archives.iter().map(PathBuf::as_path));
        let guest = Guest {
            image: &self.image,
            archives: &archives,
            pace: job.pace,
            accelerator,
            interactive,
            deadline: job.deadline,
            dir: &dir.0,
        };
        self.qemu.boot(&guest, line)
    }

    /// KVM, if this machine can boot the kernel by it. Having the device is not enough: where this
    /// machine is a virtual one itself, kernels have been seen to hang.
    fn choose_accelerator(&self) -> Result<Accelerator> {
        if !Path::new("/dev/kvm").exists() {
            return Ok(Accelerator::Emulation);
        }
        // The answer holds until this machine boots anew.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("cannot read the boot id")?;
        let kept = self.dir.join(format!("kvm-{}", self.image.release));
        if let Ok(text) = fs::read_to_string(&kept)
            && let Some(answer) = text.strip_prefix(&boot)
        {
            return Ok(match answer {
                "yes" => Accelerator::Kvm,
                _ => Accelerator::Emulation,
            });
        }
        eprintln!("vm: trying KVM");
        let job = Job {
            programs: &[],
            archives: &[],
            script: "true",
            pace: Pace::Fast,
            deadline: TRIAL,
        };
        let works = self
            .boot(&job, Accelerator::Kvm, false, &mut |_| Ok(()))
            .is_ok_and(|code| code == 0);
        write(
            &kept,
            &format!("{boot}{}", if works { "yes" } else { "no" }),
        )?;
        if works {
            return Ok(Accelerator::Kvm);
        }
        eprintln!("vm: KVM does not boot this kernel here: going on in emulation");
        Ok(Accelerator::Emulation)
    }
}

/// Fails where the guest would not see what is built into `target`: each program lies in the VM where
/// it lies here.
fn check_visible(target: &Path) -> Result<()> {
    let covered = COVERED.iter().find(|covered| target.starts_with(covered));
    if let Some(covered) = covered {
        bail!(
            "the VM cannot see {}, as it mounts a {covered} of its own: use a checkout elsewhere",
            target.display()
        );
    }
    Ok(())
}

/// A directory that goes away with this.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("warning: cannot remove {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkout_that_the_guest_would_not_see_is_refused() {
        let error = check_visible(Path::new("/tmp/netbond/target")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the VM cannot see /tmp/netbond/target, as it mounts a /tmp of its own: use a checkout \
             elsewhere"
        );
        for seen in ["/home/u/tmp/netbond/target", "/tmpfs/target"] {
            check_visible(Path::new(seen)).unwrap();
        }
    }

    #[test]
    fn every_directory_that_the_guest_covers_is_known() {
        let init = include_str!("init.sh");
        let mounts = init.lines().filter_map(|line| {
            let words = line.strip_prefix("mount ")?;
            words.split(' ').next_back()
        });
        for target in mounts {
            let known = COVERED
                .iter()
                .any(|covered| Path::new(target).starts_with(covered));
            assert!(known, "{target}");
        }
    }
}
