//! One boot of the VM under QEMU: output, exit code, deadline.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::kernel::Image;
use crate::apt::Apt;
use crate::files::{recreate, write};

/// How the guest's instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As fast as the machine can, on two CPUs: by KVM, or in emulation where there is none.
    Fast,
    /// In emulation, on one CPU whose clock advances by 1 ns with each instruction: what the guest
    /// measures does not depend on what else the machine does.
    Counted,
}

/// Who executes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Emulation,
}

/// QEMU as it was unpacked.
pub(super) struct Qemu {
    /// The root of its packages.
    dir: PathBuf,
}

/// What a guest is made of.
pub(super) struct Guest<'a> {
    pub(super) image: &'a Image,
    /// cpio archives, in the order in which the kernel unpacks them.
    pub(super) archives: &'a [&'a Path],
    pub(super) pace: Pace,
    pub(super) accelerator: Accelerator,
    /// The script's terminal is this one.
    pub(super) interactive: bool,
    /// When it has not ended by then it hangs.
    pub(super) deadline: Duration,
    /// For what this boot needs on the disk.
    pub(super) dir: &'a Path,
}

const MEMORY_MIB: u32 = 3072;

impl Qemu {
    /// QEMU from below `dir`, downloaded where it is not kept yet. Debian 12's own crashes newer
    /// kernels.
    pub(super) fn prepare(dir: &Path) -> Result<Self> {
        let qemu = Self {
            dir: dir.join("qemu"),
        };
        // Written last.
        let complete = qemu.dir.join("complete");
        if !complete.exists() {
            eprintln!("vm: downloading QEMU");
            // No further suites: the libraries have to be those of this machine's Debian.
            let apt = Apt::open(&dir.join("apt-qemu"), &["bookworm", "bookworm-backports"])?;
            recreate(&qemu.dir)?;
            apt.unpack_with_dependencies("qemu-system-x86", "bookworm-backports", &qemu.dir)?;
            write(&complete, "")?;
        }
        Ok(qemu)
    }

    /// Where nobody waits at its terminal it gives way to all else: in a session, and so a scheduling group
    /// (sched(7), autogroup), of its own with the least weight. Tests beside it have clocks that are real;
    /// within one group SCHED_IDLE would do, but what they start has groups of its own. It ends with us.
    fn command(&self, interactive: bool) -> Command {
        const GIVE_WAY: &str = "[ -w /proc/self/autogroup ] && echo 19 > /proc/self/autogroup\n\
             exec setpriv --pdeathsig KILL -- \"$0\" \"$@\"";
        let part = |path: &str| self.dir.join(path);
        let program = part("usr/bin/qemu-system-x86_64");
        let mut qemu = if interactive {
            Command::new(program)
        } else {
            let mut setsid = Command::new("setsid");
            setsid.args(["sh", "-c", GIVE_WAY]).arg(program);
            setsid
        };
        // Its libraries are unpacked beside it, as far as the machine lacks them.
        let libraries = [
            part("usr/lib/x86_64-linux-gnu"),
            part("lib/x86_64-linux-gnu"),
        ]
        .map(|dir| dir.display().to_string())
        .join(":");
        qemu.env("LD_LIBRARY_PATH", libraries);
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            qemu.arg("-L").arg(part(firmware));
        }
        qemu
    }

    /// Boots a guest and runs its script to the end; `line` gets each line of its standard output.
    /// Its standard error comes out on ours. Returns the script's exit code.
    ///
    /// # Errors
    ///
    /// Where the script told no exit code: the guest crashed or hung. The error shows the last of
    /// its console.
    pub(super) fn boot(
        &self,
        guest: &Guest<'_>,
        line: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<u8> {
        let initrd = guest.dir.join("initrd");
        concatenate(guest.archives, &initrd)?;
        let (console, code) = (guest.dir.join("console"), guest.dir.join("code"));
        for file in [&console, &code] {
            File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let mut qemu = self.command(guest.interactive);
        guest.arguments(&mut qemu, &initrd, &console, &code);
        let child = qemu
            .stdin(if guest.interactive {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .stdout(guest.output())
            .stderr(guest.output())
            .spawn()
            .context("cannot run QEMU")?;
        let mut running = Running { child };
        let outcome = running.follow(guest.deadline, line);
        // Killed where it hangs: what it wrote is complete.
        drop(running);
        let told = fs::read_to_string(&code).unwrap_or_default();
        let failed = match (outcome, told.trim().parse()) {
            (Ok(()), Ok(code)) => return Ok(code),
            (Ok(()), Err(_)) => anyhow::anyhow!("the VM ended without an exit code"),
            (Err(error), _) => error,
        };
        let console = fs::read(&console).unwrap_or_default();
        bail!(
            "{failed:#}; kernel {}, the last of its console:\n{}",
            guest.image.release,
            last_lines(&String::from_utf8_lossy(&console), 40)
        )
    }
}

impl Guest<'_> {
    /// Not our own: QEMU opens them anew, and where ours are a file it would write over what we wrote.
    fn output(&self) -> Stdio {
        if self.interactive {
            Stdio::inherit()
        } else {
            Stdio::piped()
        }
    }

    fn arguments(&self, qemu: &mut Command, initrd: &Path, console: &Path, code: &Path) {
        let (accelerator, cpu) = match (self.pace, self.accelerator) {
            (Pace::Fast, Accelerator::Kvm) => ("kvm", "host"),
            // The plainest model is the fastest: emulated vector instructions are slow.
            (Pace::Fast, Accelerator::Emulation) => ("tcg,thread=multi,tb-size=512", "qemu64"),
            (Pace::Counted, _) => ("tcg,thread=single,tb-size=512", "qemu64"),
        };
        let cpus = match self.pace {
            Pace::Fast => "2",
            Pace::Counted => {
                qemu.args(["-icount", "shift=0,sleep=off", "-rtc", "clock=vm"]);
                "1"
            }
        };
        let mut append = "console=ttyS0 panic=-1 quiet mitigations=off nokaslr".to_owned();
        qemu.args([
            "-accel",
            accelerator,
            "-machine",
            "q35",
            "-cpu",
            cpu,
            "-smp",
            cpus,
        ])
        .args(["-m", &MEMORY_MIB.to_string()])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-nic", "none", "-device", "virtio-rng-pci"])
        .args(cards())
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-device", "virtio-serial-pci"]);
        let mut port = |name: &str, backend: &str| {
            qemu.arg("-chardev")
                .arg(format!("{backend},id={name}"))
                .arg("-device")
                .arg(format!("virtserialport,chardev={name},name={name}"));
        };
        port("code", &format!("file,path={}", code.display()));
        if self.interactive {
            qemu.args(["-chardev", "stdio,id=terminal,signal=off"])
                .args(["-device", "virtconsole,chardev=terminal"]);
            append.push_str(" netbond.terminal");
        } else {
            port("out", "file,append=on,path=/dev/stdout");
            port("err", "file,append=on,path=/dev/stderr");
        }
        qemu.arg("-kernel")
            .arg(&self.image.vmlinux)
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", &append]);
    }
}

/// Two network cards on one wire that leads nowhere else, for tests of drivers.
fn cards() -> impl Iterator<Item = String> {
    (0..2).flat_map(|number| {
        [
            "-netdev".to_owned(),
            format!("hubport,id=port{number},hubid=0"),
            "-device".to_owned(),
            format!("virtio-net-pci,netdev=port{number},mac=52:54:00:00:00:0{number},romfile="),
        ]
    })
}

/// QEMU while it runs; killed when this is dropped.
struct Running {
    child: Child,
}

impl Running {
    /// Passes the guest's output on until QEMU ends.
    fn follow(
        &mut self,
        deadline: Duration,
        line: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let end = Instant::now() + deadline;
        let errors = self
            .child
            .stderr
            .take()
            .map(|mut errors| thread::spawn(move || io::copy(&mut errors, &mut io::stderr())));
        let (sender, lines) = mpsc::channel();
        if let Some(output) = self.child.stdout.take() {
            // A read cannot be given a deadline; this thread ends with QEMU's last byte.
            thread::spawn(move || {
                for text in BufReader::new(output).split(b'\n') {
                    if sender.send(text).is_err() {
                        break;
                    }
                }
            });
        } else {
            drop(sender);
        }
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(text) => line(&String::from_utf8_lossy(
                    &text.context("cannot read the VM's output")?,
                ))?,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the VM was not done after {} s", deadline.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = self.wait(end)?;
        let status = status
            .with_context(|| format!("the VM was not done after {} s", deadline.as_secs()))?;
        if let Some(errors) = errors {
            // Its end is near: the other end of the pipe is closed.
            let _ = errors.join();
        }
        ensure!(status.success(), "QEMU failed ({status})");
        Ok(())
    }

    fn wait(&mut self, end: Instant) -> Result<Option<std::process::ExitStatus>> {
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for QEMU")? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // No effect where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The kernel unpacks one archive after the other.
fn concatenate(archives: &[&Path], to: &Path) -> Result<()> {
    let context = |file: &Path| format!("cannot copy {} to {}", file.display(), to.display());
    let mut all = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    for archive in archives {
        let mut part = File::open(archive).with_context(|| context(archive))?;
        io::copy(&mut part.by_ref(), &mut all).with_context(|| context(archive))?;
    }
    Ok(())
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_shown() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a\n", 2), "a");
    }
}
