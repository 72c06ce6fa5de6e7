//! What the service manager is told (sd_notify(3)): that the bonds are there, that the controller lives.
//! Nothing where none asked for it.

use std::time::{Duration, Instant};

use sd_notify::NotifyState::{self, Ready, Reloading, Status, Stopping, Watchdog};
use tracing::warn;

/// The service that this process is.
pub(super) struct Service {
    /// How often to say that it lives; `None` where nobody watches.
    interval: Option<Duration>,
    said: Instant,
}

impl Service {
    pub(super) fn new() -> Self {
        Self {
            // As sd_watchdog_enabled(3) has it: half the time after which it would be killed.
            interval: sd_notify::watchdog_enabled().map(|limit| limit / 2),
            said: Instant::now(),
        }
    }

    /// The bonds carry packets, under this configuration.
    pub(super) fn is_ready(&self, bonds: usize) {
        notify(&[Ready, Status(&format!("bonds: {bonds}"))]);
    }

    /// A reload begins; [`Service::is_ready`] or [`Service::stays`] ends it.
    pub(super) fn reloads(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[Reloading, now]),
            Err(_) => notify(&[Reloading]),
        }
    }

    /// A reload was refused.
    pub(super) fn stays(&self, why: &str) {
        notify(&[Ready, Status(&format!("not reloaded: {why}"))]);
    }

    pub(super) fn stops(&self) {
        notify(&[Stopping]);
    }

    /// All that the controller waits for is still being handled.
    pub(super) fn lives(&mut self) {
        if self
            .interval
            .is_some_and(|interval| self.said.elapsed() >= interval)
        {
            self.said = Instant::now();
            notify(&[Watchdog]);
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("the service manager cannot be told: {error}");
    }
}
