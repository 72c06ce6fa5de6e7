//! The thread that keeps the sessions' time, whatever else the process is busy with: a peer waits for no program
//! to be loaded.

use std::convert::Infallible;
use std::io;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, EnterGuard, Handle};
use tokio::sync::oneshot;

use crate::priority;

/// A runtime with a thread of its own. When this is dropped what is spawned on it ends, before the drop returns.
pub struct Thread {
    handle: Handle,
    /// Held: the thread ends when it is dropped.
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    /// Starts it, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel has no thread or no epoll descriptor left.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("bfd".to_owned())
            .spawn(move || {
                priority::favour("BFD");
                // Never a value: the sender is dropped.
                let _: Result<Infallible, _> = runtime.block_on(stopped);
            })?;
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// As long as the guard lives tokio spawns on this thread.
    pub fn enter(&self) -> EnterGuard<'_> {
        self.handle.enter()
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It only fails if the thread panicked, which was told then.
            let _ = thread.join();
        }
    }
}
