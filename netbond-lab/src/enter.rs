//! Running a program inside a router.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use nix::unistd::setsid;

use crate::binary;

/// A command that runs `program` in the namespaces of the router's process `anchor`, in the caller's
/// working directory and with the project's own programs first in its search path.
///
/// With `session`, in a session of its own: signals of the caller's terminal do not reach it.
pub(crate) fn command(anchor: i32, session: bool, program: &OsStr) -> Command {
    let [net, mnt] = ["net", "mnt"].map(|kind| format!("/proc/{anchor}/ns/{kind}"));
    let directory = env::current_dir().ok();
    let enter = move || -> io::Result<()> {
        // Both before entering: the second path leads elsewhere once the mounts have changed.
        let (net, mnt) = (File::open(&net)?, File::open(&mnt)?);
        setns(net, CloneFlags::CLONE_NEWNET)?;
        setns(mnt, CloneFlags::CLONE_NEWNS)?;
        // Entering a mount namespace leads to its root directory. A directory that exists only
        // outside (below /run) cannot be kept.
        if let Some(directory) = &directory {
            let _ = env::set_current_dir(directory);
        }
        if session {
            setsid()?;
        }
        Ok(())
    };
    let mut command = Command::new(program);
    if let Some(path) = search_path() {
        command.env("PATH", path);
    }
    // SAFETY: between fork and exec it makes system calls alone; short paths are not allocated anew.
    unsafe { command.pre_exec(enter) };
    command
}

/// The search path with the project's own programs first.
fn search_path() -> Option<OsString> {
    let own = [binary::netbond(), binary::lab()];
    let own = own
        .into_iter()
        .flatten()
        .filter_map(|path| Some(path.parent()?.to_owned()));
    let inherited = env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let mut directories: Vec<_> = own.chain(env::split_paths(&inherited)).collect();
    directories.dedup();
    env::join_paths(directories).ok()
}
