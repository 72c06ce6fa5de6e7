//! Tests that need the kernel run in a network namespace of their own.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::control::event::Event;

/// What a whole test may take.
const TEST: Duration = Duration::from_secs(120);
/// What may pass until an awaited event: an OSPF adjacency takes the longest.
const EVENT: Duration = Duration::from_secs(40);

/// Runs `test` on a thread of its own in a new network namespace, which vanishes with the thread:
/// the host's devices and routes are out of reach, and nothing is left to clean up.
pub(crate) fn in_netns<Test: Future<Output = ()>>(test: impl FnOnce() -> Test + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace needs CAP_SYS_ADMIN");
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            timeout(TEST, test())
                .await
                .expect("the test takes too long")
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs iproute2's `ip` in this thread's namespace; the runtime stands still meanwhile.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What `ip` prints.
pub(crate) fn ip_show(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A process that is killed at the end of its scope.
pub(crate) struct Process(Child);

impl Process {
    /// Starts it in this thread's namespace.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self(
            command
                .spawn()
                .unwrap_or_else(|error| panic!("{command:?}: {error}")),
        )
    }

    /// Starts a shell in yet another network namespace that waits for a line and then becomes
    /// `command`.
    pub(crate) fn in_other_netns(command: &str) -> Self {
        let mut shell = Command::new("unshare");
        shell.args([
            "--net",
            "sh",
            "-c",
            &format!("echo; read line; exec {command}"),
        ]);
        let mut process = Self::spawn(shell.stdin(Stdio::piped()).stdout(Stdio::piped()));
        // Its namespace is there once it speaks.
        process
            .0
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut [0])
            .unwrap();
        process
    }

    /// Lets a shell become its command.
    pub(crate) fn proceed(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// Stops it without its noticing (SIGSTOP): its namespace and devices stay.
    pub(crate) fn freeze(&self) {
        let status = Command::new("kill")
            .args(["-STOP", &self.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Runs iproute2's `ip` in the process's namespace.
    pub(crate) fn ip(&self, arguments: &str) {
        self.run(&format!("ip {arguments}"));
    }

    /// Runs a command in the process's namespace.
    pub(crate) fn run(&self, command: &str) {
        let enter = format!("-t {} -n {command}", self.id());
        let status = Command::new("nsenter")
            .args(enter.split_whitespace())
            .status()
            .unwrap();
        assert!(status.success(), "{command}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
