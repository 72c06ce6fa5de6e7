//! Tests that need the kernel run in a network namespace of their own.

use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::control::event::Event;

/// What a whole test may take.
const TEST: Duration = Duration::from_secs(60);
/// What may pass until an awaited event.
const EVENT: Duration = Duration::from_secs(5);

/// Runs `test` on a thread of its own in a new network namespace, which vanishes with the thread:
/// the host's devices and routes are out of reach, and nothing is left to clean up.
pub(crate) fn in_netns<Test: Future<Output = ()>>(test: impl FnOnce() -> Test + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace needs CAP_SYS_ADMIN");
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(TEST, test()).await.expect("the test takes too long") });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs iproute2's `ip` in this thread's namespace; the runtime stands still meanwhile.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What `ip` prints.
pub(crate) fn ip_show(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Writes a sysctl (`net/ipv4/...`) of this thread's namespace.
pub(crate) fn sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/{name}"), value).unwrap();
}

/// Waits for the first event of which `pick` makes something; others are passed over.
pub(crate) async fn await_event<T>(
    events: &mut mpsc::Receiver<Event>,
    what: &str,
    mut pick: impl FnMut(&Event) -> Option<T>,
) -> T {
    let mut seen = Vec::new();
    let found = timeout(EVENT, async {
        loop {
            let event = events.recv().await.expect("the task ended");
            if let Some(found) = pick(&event) {
                return found;
            }
            seen.push(event);
        }
    });
    match found.await {
        Ok(found) => found,
        Err(_) => panic!("no {what}; seen: {seen:#?}"),
    }
}
