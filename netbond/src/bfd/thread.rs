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
        let (stop, stopped) = oneshot::channel();
        let (sender, made) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("bfd".to_owned())
            .spawn(move || {
                // Here, as another runtime's thread must not drop one.
                let runtime = match Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        let _ = sender.send(Err(error));
                        return;
                    }
                };
                priority::favour("BFD");
                let _ = sender.send(Ok(runtime.handle().clone()));
                // Never a value: the sender is dropped.
                let _: Result<Infallible, _> = runtime.block_on(stopped);
            })?;
        let handle = made.recv().map_err(io::Error::other)??;
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
