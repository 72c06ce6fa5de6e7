//! `netbond events`.

use std::io::Write as _;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use netbond_common::names::{EventKind, PathState};
use serde_json::{Value, json};

use super::format::{clock, rfc3339};
use crate::{
    journal::{About, Entry, Reader},
    pins::Pins,
};

/// How often the journal is looked at: it cannot wake its readers.
const INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
    /// Only the last N
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// Only those of this path, and of nothing in particular
    #[arg(long)]
    path: Option<String>,
}

pub(super) fn run(args: &Args, pins: &Pins) -> Result<()> {
    let mut reader = Reader::open(pins)?;
    let wanted = |entry: &Entry| {
        let path = args.path.as_ref();
        path.is_none_or(|path| entry.path == *path || entry.path.is_empty())
    };
    let mut entries = reader.read();
    entries.retain(wanted);
    let skipped = args
        .last
        .map_or(0, |last| entries.len().saturating_sub(last));
    entries.drain(..skipped);
    let mut out = std::io::stdout().lock();
    loop {
        for entry in &entries {
            if args.json {
                writeln!(out, "{}", to_json(entry))?;
            } else {
                writeln!(out, "{}", line(entry))?;
            }
        }
        out.flush()?;
        if !args.follow {
            return Ok(());
        }
        thread::sleep(INTERVAL);
        entries = reader.read();
        entries.retain(wanted);
    }
}

/// An entry as a line for people.
pub(super) fn line(entry: &Entry) -> String {
    let about = About::path(&entry.bond, &entry.path);
    let what = match (entry.kind, entry.change) {
        (Some(EventKind::Changed), Some(change)) => format!("{change}: {}", entry.text),
        (Some(EventKind::Confirmed), _) => format!("confirmed: {}", entry.text),
        (Some(EventKind::Failed), _) => format!("FAILED: {}", entry.text),
        (Some(EventKind::Saw | EventKind::Did | EventKind::Changed) | None, _) => {
            entry.text.clone()
        }
    };
    format!("{}  {about}{what}", clock(entry.at))
}

pub(super) fn to_json(entry: &Entry) -> Value {
    let name = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    json!({
        "sequence": entry.sequence,
        "at": rfc3339(entry.at),
        "kind": entry.kind.map_or("unknown", EventKind::label),
        "bond": name(&entry.bond),
        "path": name(&entry.path),
        "from": entry.change.and_then(|change| change.from).map(PathState::label),
        "to": entry.change.map(|change| change.to.label()),
        "reason": entry.change.map(|change| change.reason.label()),
        "text": entry.text,
    })
}
