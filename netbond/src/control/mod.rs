//! The controller: keeps the maps true.
//!
//! [`event`] is what happens, [`state`] decides (no clock, no I/O), [`apply`] writes what was decided,
//! [`daemon`] runs them.

pub mod apply;
pub mod daemon;
pub mod event;
pub mod plan;
pub mod state;
