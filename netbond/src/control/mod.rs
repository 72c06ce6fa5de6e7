//! The controller: keeps the maps true.
//!
//! [`event`] is what happens, [`state`] decides (no clock, no I/O), [`apply`] writes what was decided,
//! [`daemon`] runs them. [`prober`] asks the paths whether they live, [`liveness`] concludes.

pub mod apply;
pub mod daemon;
pub mod event;
pub mod liveness;
pub mod plan;
pub mod prober;
pub mod state;
