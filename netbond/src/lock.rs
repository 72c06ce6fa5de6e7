//! One controller for one pin root: a lock on its directory, which ends with the process.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::pins::Pins;

/// How often, and how long apart, the lock is tried.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);

/// The right to write what is pinned.
pub struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl Lock {
    /// Takes the lock.
    ///
    /// # Errors
    ///
    /// Where another controller has it.
    pub fn take(pins: &Pins) -> Result<Self> {
        std::fs::create_dir_all(pins.root()).with_context(|| {
            format!(
                "creating {}: is bpffs mounted on /sys/fs/bpf, and are you root?",
                pins.root().display()
            )
        })?;
        // A look by `is_taken` lasts microseconds: another controller stays.
        for _ in 0..ATTEMPTS {
            if let Some(lock) = try_lock(pins)? {
                return Ok(Self(lock));
            }
            std::thread::sleep(PAUSE);
        }
        bail!(
            "another netbond controls {}: stop it first, or give this one a --pin-root of its own",
            pins.root().display()
        )
    }

    /// Whether a controller has it now.
    #[must_use]
    pub fn is_taken(pins: &Pins) -> bool {
        pins.root().exists() && matches!(try_lock(pins), Ok(None))
    }
}

fn try_lock(pins: &Pins) -> Result<Option<Flock<File>>> {
    let directory =
        File::open(pins.root()).with_context(|| format!("opening {}", pins.root().display()))?;
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).with_context(|| format!("locking {}", pins.root().display())),
    }
}
