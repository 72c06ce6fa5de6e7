//! The journal: what the controller saw and did, and why, in the log and in a pinned map. In the log, what a
//! text says of a bond or a path is in fields as well.
//!
//! The map is a ring of [`EVENTS_KEPT`] entries that outlives the controller; the next one goes on
//! where it ended. Readers need no controller either.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use netbond_common::{
    abi::{EVENTS_KEPT, EventRecord, NO_STATE},
    names::{EventKind, PathState, StateReason},
};
use tracing::{info, warn};

use crate::{
    pins::Pins,
    tables::{Raw, Tables, Values, field, text, value},
};

/// What an entry is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About<'a> {
    /// Name of the bond; empty: of none.
    pub bond: &'a str,
    /// Name of the path; empty: of none.
    pub path: &'a str,
}

impl<'a> About<'a> {
    /// The whole instance.
    pub const ALL: Self = Self { bond: "", path: "" };

    /// A bond.
    #[must_use]
    pub const fn bond(bond: &'a str) -> Self {
        Self { bond, path: "" }
    }

    /// A path.
    #[must_use]
    pub const fn path(bond: &'a str, path: &'a str) -> Self {
        Self { bond, path }
    }
}

/// What it is about, before a text; nothing where that is the whole instance.
impl fmt::Display for About<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.bond, self.path) {
            ("", "") => Ok(()),
            (bond, "") => write!(f, "{bond}: "),
            (bond, path) => write!(f, "{bond} {path}: "),
        }
    }
}

/// A path's change of state, or of the reason for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// `None` for a path that is new.
    pub from: Option<PathState>,
    pub to: PathState,
    pub reason: StateReason,
}

/// In place of the state of a path before it was there.
const NEW: &str = "new";

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (to, reason) = (self.to.label(), self.reason.label());
        if self.from == Some(self.to) {
            write!(f, "{to} ({reason})")
        } else {
            let from = self.from.map_or(NEW, PathState::label);
            write!(f, "{from} -> {to} ({reason})")
        }
    }
}

/// Writes the journal: one controller at a time does.
pub struct Journal {
    events: Values<EventRecord>,
    /// Sequence number of the next entry.
    next: u64,
}

impl Journal {
    /// Goes on after what is there.
    ///
    /// # Errors
    ///
    /// Where the maps cannot be opened.
    pub fn open(pins: &Pins) -> Result<Self> {
        let events = Tables::open(pins)?.events;
        let newest = records(&events)
            .map(|record| record.sequence)
            .max()
            .unwrap_or(0);
        Ok(Self {
            events,
            next: newest + 1,
        })
    }

    /// Something was seen that changed no state.
    pub fn saw(&mut self, about: About<'_>, text: &str) {
        info!(
            bond = named(about.bond),
            path = named(about.path),
            "{about}{text}"
        );
        self.append(EventKind::Saw, about, None, text);
    }

    /// Another sign was seen of what took a path out before.
    pub fn confirmed(&mut self, about: About<'_>, text: &str) {
        info!(
            bond = named(about.bond),
            path = named(about.path),
            "{about}confirmed: {text}"
        );
        self.append(EventKind::Confirmed, about, None, text);
    }

    /// A path changed, and `cause` is why.
    pub fn changed(&mut self, about: About<'_>, change: Change, cause: &str) {
        info!(
            bond = named(about.bond),
            path = named(about.path),
            from = change.from.map_or(NEW, PathState::label),
            to = change.to.label(),
            reason = change.reason.label(),
            cause,
            "{about}{change}: {cause}"
        );
        self.append(EventKind::Changed, about, Some(change), cause);
    }

    /// The controller did something.
    pub fn did(&mut self, about: About<'_>, text: &str) {
        info!(
            bond = named(about.bond),
            path = named(about.path),
            "{about}{text}"
        );
        self.append(EventKind::Did, about, None, text);
    }

    /// Something that the controller tried did not work.
    pub fn failed(&mut self, about: About<'_>, text: &str) {
        warn!(
            bond = named(about.bond),
            path = named(about.path),
            "{about}{text}"
        );
        self.append(EventKind::Failed, about, None, text);
    }

    fn append(&mut self, kind: EventKind, about: About<'_>, change: Option<Change>, text: &str) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        let record = EventRecord {
            sequence: self.next,
            at_ns: at.map_or(0, |at| at.as_nanos() as u64),
            kind: kind as u32,
            from: change
                .and_then(|change| change.from)
                .map_or(NO_STATE, |state| state as u32),
            to: change.map_or(NO_STATE, |change| change.to as u32),
            reason: change.map_or(0, |change| change.reason as u32),
            bond: field(about.bond),
            path: field(about.path),
            text: field(cut(text, netbond_common::abi::EVENT_TEXT_LEN)),
            end: self.next,
        };
        // What cannot be remembered is in the log all the same.
        let _ = self.events.set(slot(self.next), Raw(record), 0);
        self.next += 1;
    }
}

/// A field of the log: none where there is no name.
fn named(name: &str) -> Option<&str> {
    (!name.is_empty()).then_some(name)
}

const fn slot(sequence: u64) -> u32 {
    (sequence % EVENTS_KEPT as u64) as u32
}

/// As much of the text as fits into so many bytes.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn records(events: &Values<EventRecord>) -> impl Iterator<Item = EventRecord> + '_ {
    (0..EVENTS_KEPT)
        .filter_map(|slot| value(events, slot))
        .filter(|record| record.sequence != 0 && record.sequence == record.end)
}

/// An entry as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub sequence: u64,
    pub at: SystemTime,
    /// `None` where this build does not know the kind.
    pub kind: Option<EventKind>,
    pub bond: String,
    pub path: String,
    pub change: Option<Change>,
    pub text: String,
}

/// Whatever the record says: another version's names are shown as far as they are text, and its numbers
/// left out where this build does not know them.
impl From<&EventRecord> for Entry {
    fn from(record: &EventRecord) -> Self {
        let to = PathState::from_number(record.to);
        Self {
            sequence: record.sequence,
            at: UNIX_EPOCH + std::time::Duration::from_nanos(record.at_ns),
            kind: EventKind::from_number(record.kind),
            bond: text(&record.bond),
            path: text(&record.path),
            change: to
                .zip(StateReason::from_number(record.reason))
                .map(|(to, reason)| Change {
                    from: PathState::from_number(record.from),
                    to,
                    reason,
                }),
            text: text(&record.text),
        }
    }
}

/// Reads the journal.
pub struct Reader {
    events: Values<EventRecord>,
    /// Sequence number of the next entry to be read.
    next: u64,
}

impl Reader {
    /// Starts with the oldest entry.
    ///
    /// # Errors
    ///
    /// Where the maps cannot be opened.
    pub fn open(pins: &Pins) -> Result<Self> {
        let events = Tables::open(pins).context("opening the journal")?.events;
        Ok(Self { events, next: 0 })
    }

    /// The entries written since the last call, oldest first.
    pub fn read(&mut self) -> Vec<Entry> {
        if self.next != 0 {
            // Nearly always nothing, or little: one look at the next slot tells.
            let newest = value(&self.events, slot(self.next));
            if newest.is_none_or(|record| record.sequence < self.next) {
                return Vec::new();
            }
        }
        let mut new: Vec<EventRecord> = records(&self.events)
            .filter(|record| record.sequence >= self.next)
            .collect();
        new.sort_by_key(|record| record.sequence);
        self.next = new
            .last()
            .map_or(self.next.max(1), |last| last.sequence + 1);
        new.iter().map(Entry::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("kurz", 168), "kurz");
        assert_eq!(cut("ab\u{e9}", 3), "ab");
    }
}
