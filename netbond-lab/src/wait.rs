//! Waiting for a condition, with a deadline and an error that says what was missing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long to wait for what takes next to no time on an idle machine, and a second or two where OSPF has to agree: on
/// a busy one the kernel alone may take ten times as long, and what never comes fails all the same.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait between two looks at a condition, at least.
const POLL: Duration = Duration::from_millis(50);

/// How many times longer to wait than a look takes, up to [`LONGEST_POLL`]: on a slow machine, looking
/// must not be the load that makes it slow.
const REST: u32 = 10;
const LONGEST_POLL: Duration = Duration::from_millis(300);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Polls `condition` until it yields a value, and returns that value.
///
/// `Ok(None)` and `Err` both mean "not yet"; the last error is part of the message when the time is
/// up, so a condition says by an error what it still misses. Also ends when the process was
/// interrupted (see [`catch_interrupts`]).
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    wait_until(what, deadline, || {
        check_interrupt().map_err(Verdict::Final)?;
        condition().map_err(Verdict::NotYet)
    })
}

/// Like [`wait_for`], but an interrupt does not end it: for what must be done before the end.
pub(crate) fn wait_for_end<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    wait_until(what, deadline, || condition().map_err(Verdict::NotYet))
}

/// Why a condition is not met.
enum Verdict {
    NotYet(anyhow::Error),
    Final(anyhow::Error),
}

fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>, Verdict>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        let start = Instant::now();
        let error = match condition() {
            Ok(Some(value)) => return Ok(value),
            Err(Verdict::Final(error)) => return Err(error),
            Err(Verdict::NotYet(error)) => Some(error),
            Ok(None) => None,
        };
        if Instant::now() >= end {
            let message = format!("no {what} after {:.1} s", deadline.as_secs_f64());
            return match error {
                Some(error) => Err(error.context(message)),
                None => bail!(message),
            };
        }
        thread::sleep((REST * start.elapsed()).clamp(POLL, LONGEST_POLL));
    }
}

/// Fails if the process was told to stop.
pub fn check_interrupt() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Turns SIGINT and SIGTERM into an error of the next [`wait_for`], so that whatever is under way
/// unwinds and takes its lab down.
pub fn catch_interrupts() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the signal watcher")?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    INTERRUPTED.store(true, Ordering::Relaxed);
                }
            });
        })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_says_what_was_missing_and_why() {
        let error =
            wait_for::<()>("route", Duration::from_millis(1), || bail!("no bird")).unwrap_err();
        assert_eq!(format!("{error:#}"), "no route after 0.0 s: no bird");
    }

    #[test]
    fn a_value_ends_the_wait() {
        let mut looks = 0;
        let value = wait_for("third look", Duration::from_secs(5), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(value.unwrap(), 3);
    }
}
