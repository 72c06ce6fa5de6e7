//! Where the log goes: to the journal with its fields where stderr leads there, else as text to stderr.

use std::env;
use std::fmt;
use std::io;
use std::os::fd::AsFd as _;

use nix::sys::stat::fstat;
use tracing::{field::Field, warn};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::{
    EnvFilter, fmt::format, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// What is said, by default.
const LEVEL: &str = "info";

/// Takes in everything that is said from now on; `NETBOND_LOG` filters it.
///
/// # Panics
///
/// The second time.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_env("NETBOND_LOG").unwrap_or_else(|_| EnvFilter::new(LEVEL));
    let text = || {
        tracing_subscriber::fmt::layer()
            .fmt_fields(format::debug_fn(write_field))
            .with_writer(io::stderr)
            .with_target(false)
            .with_ansi(false)
    };
    let log = tracing_subscriber::registry().with(filter);
    if !leads_to_journal() {
        return log.with(text()).init();
    }
    match tracing_journald::layer() {
        // The fields are ours alone: BOND, PATH, REASON. Syslog knows no level between notice and debug
        // but info, which is what we call it.
        Ok(journal) => log
            .with(
                journal
                    .with_field_prefix(None)
                    .with_priority_mappings(PriorityMappings {
                        info: Priority::Informational,
                        debug: Priority::Debug,
                        ..PriorityMappings::new()
                    }),
            )
            .init(),
        Err(error) => {
            log.with(text()).init();
            warn!("the journal takes no fields, only text: {error}");
        }
    }
}

/// The message, and the fields but for those of which it tells anyway.
fn write_field(
    writer: &mut format::Writer<'_>,
    field: &Field,
    value: &dyn fmt::Debug,
) -> fmt::Result {
    match field.name() {
        "message" => write!(writer, "{value:?}"),
        "bond" | "path" | "from" | "to" | "reason" | "cause" => Ok(()),
        name => write!(writer, " {name}={value:?}"),
    }
}

/// Whether stderr is what systemd says leads to the journal: a user may have turned it elsewhere since
/// (systemd.exec(5), JOURNAL_STREAM).
fn leads_to_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    fstat(io::stderr().as_fd())
        .is_ok_and(|stderr| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}
