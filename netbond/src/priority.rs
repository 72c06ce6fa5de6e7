//! Threads that have to be in time.

use tracing::warn;

/// The scheduler's favour.
const NICE: i32 = -15;

/// Puts the calling thread ahead of others; without the right to it all goes on as well. `what`: is late then.
pub(crate) fn favour(what: &str) {
    // SAFETY: a plain system call on this thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    if result != 0 {
        warn!("{what} may be late on a busy machine: no right to priority (CAP_SYS_NICE)");
    }
}
