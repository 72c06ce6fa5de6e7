//! A long-running program inside a router: BIRD, netbond.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::namespace;
use crate::wait::{PATIENCE, wait_for_end};

/// A program that was started in a router, by this process or an earlier one.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    netns: String,
    pid_file: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Starts `command` with its output appended to `log`, and notes its process id in `pid_file`.
    pub(crate) fn start(
        command: &mut Command,
        netns: &str,
        log: &Path,
        pid_file: &Path,
    ) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        fs::write(pid_file, pid.to_string())
            .with_context(|| format!("cannot write {}", pid_file.display()))?;
        Ok(Self {
            pid,
            netns: netns.to_owned(),
            pid_file: pid_file.to_owned(),
            child: Some(child),
        })
    }

    /// The program that an earlier process noted in `pid_file`, if it still runs in `netns`.
    pub(crate) fn find(netns: &str, pid_file: &Path) -> Option<Self> {
        let pid = Pid::from_raw(fs::read_to_string(pid_file).ok()?.trim().parse().ok()?);
        namespace::contains(netns, pid).then(|| Self {
            pid,
            netns: netns.to_owned(),
            pid_file: pid_file.to_owned(),
            child: None,
        })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it still runs; collects its exit status if not.
    pub(crate) fn is_running(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => namespace::contains(&self.netns, self.pid),
        }
    }

    /// Sends `signal` and waits until the program has ended.
    pub(crate) fn end(mut self, signal: Signal) -> Result<()> {
        if self.is_running() {
            kill(self.pid, signal).with_context(|| format!("cannot send {signal}"))?;
            wait_for_end(
                &format!("end of process {} on {signal}", self.pid),
                PATIENCE,
                || Ok((!self.is_running()).then_some(())),
            )?;
        }
        let _ = fs::remove_file(&self.pid_file);
        Ok(())
    }
}
