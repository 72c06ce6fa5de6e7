//! Running a program inside a router: the hidden command `netbond-lab enter`.

use std::env;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::unistd::{Pid, setsid};

use crate::{binary, namespace};

/// Exit code for a program that does not exist, as shells use it.
pub const NOT_FOUND: u8 = 127;

/// Becomes `command`, inside the namespaces of the anchor process `pid`.
///
/// With `session`, in a session of its own: signals of the caller's terminal do not reach it.
/// Returns only if that fails, with the exit code to end with. Must be called before the process
/// has any thread.
pub fn exec(pid: i32, session: bool, command: &[OsString]) -> Result<u8> {
    let (program, arguments) = command.split_first().context("no command given")?;
    let directory = env::current_dir().ok();
    let path = search_path();
    namespace::enter_of(Pid::from_raw(pid))?;
    // Entering a mount namespace leads to its root directory. A directory that exists only outside
    // (below /run) cannot be kept.
    if let Some(directory) = directory {
        let _ = env::set_current_dir(directory);
    }
    if session {
        setsid().context("cannot start a session")?;
    }
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let error = command.exec();
    eprintln!("netbond-lab: cannot run {}: {error}", program.display());
    Ok(if error.kind() == ErrorKind::NotFound {
        NOT_FOUND
    } else {
        126
    })
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
