//! How good the state of a bond or a path is: the same for every view, each with its own colours.

use netbond_common::names::PathState;

use crate::status::{Bond, Path};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Merit {
    Good,
    /// Neither, such as what waits in reserve.
    Plain,
    Doubtful,
    Bad,
}

/// A bond's state as people read it, and its merit.
pub(super) fn of_bond(bond: &Bond) -> (&'static str, Merit) {
    match bond.state {
        "up" => ("up", Merit::Good),
        "last resort" => ("LAST RESORT", Merit::Bad),
        _ => ("DOWN", Merit::Bad),
    }
}

/// The same of a path.
pub(super) fn of_path(path: &Path) -> (&'static str, Merit) {
    if path.standby {
        return ("standby", Merit::Plain);
    }
    let bad = [PathState::Down, PathState::Dead].map(PathState::label);
    let merit = if path.state == PathState::Up.label() {
        Merit::Good
    } else if bad.contains(&path.state) {
        Merit::Bad
    } else {
        Merit::Doubtful
    };
    (path.state, merit)
}
