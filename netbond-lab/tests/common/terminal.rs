//! A real terminal in a router, for programs that people look at: tmux, whose server lives in the
//! router's namespace and ends with it.

use std::sync::atomic::{AtomicU32, Ordering};

use netbond_lab::{Router, wait_for};

use super::SOON;

/// What stands on the screen before a program's exit code. The shell waits for it: tmux, which may miss the signal of
/// its end (3.3a did on Linux 7.3), would not say.
const ENDED: &str = "exit code: ";

/// A terminal of 80x24 in which one program runs.
pub(crate) struct Terminal<'r> {
    router: &'r Router,
    /// The server's, in the router's own `/run`. Each has one of its own, as the last server may still be
    /// about to end.
    socket: String,
}

impl<'r> Terminal<'r> {
    /// Runs a command of the shell in it.
    pub(crate) fn run(router: &'r Router, command: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let socket = format!("/run/netbond/tmux.{count}");
        let terminal = Self { router, socket };
        let command = format!("{command}; echo \"{ENDED}$?\"; exec sleep infinity");
        terminal.tmux(&["new-session", "-d", "-x", "80", "-y", "24", &command]);
        terminal
    }

    fn tmux(&self, words: &[&str]) -> String {
        let start = ["tmux", "-u", "-f", "/dev/null", "-S", &self.socket];
        self.router.run(&[&start, words].concat()).unwrap()
    }

    /// What stands on the screen.
    pub(crate) fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same with the escape sequences of its colours.
    pub(crate) fn coloured(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// Presses keys, by tmux's names.
    pub(crate) fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Waits until the screen is as it should be.
    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        wait_for(what, SOON, || {
            let screen = self.screen();
            anyhow::ensure!(is_so(&screen), "the screen is:\n{screen}");
            Ok(Some(screen))
        })
        .unwrap()
    }

    /// Waits until the screen shows a text.
    pub(crate) fn wait_text(&self, text: &str) -> String {
        self.wait(&format!("\"{text}\""), |screen| screen.contains(text))
    }

    /// Waits for the program's end, and tells its exit code.
    pub(crate) fn ended(&self) -> i32 {
        let screen = self.wait("the end of the program", |screen| screen.contains(ENDED));
        let code = screen.lines().find_map(|line| line.strip_prefix(ENDED));
        code.unwrap().trim().parse().unwrap()
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        // Not `tmux`: a test that fails already is not to fail twice.
        let words = ["tmux", "-S", &self.socket, "kill-server"];
        let _ = self.router.run(&words);
    }
}
