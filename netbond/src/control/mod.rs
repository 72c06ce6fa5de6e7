//! The controller: keeps the maps true.
//!
//! [`event`] is what happens, [`state`] decides (no clock, no I/O), [`apply`] writes what was decided,
//! [`daemon`] runs them. [`prober`] asks the paths whether they live; [`liveness`] concludes, from
//! what [`measure`], [`full_size`] and [`quality`] find, with [`damper`] keeping it calm; from the same
//! comes the [`gap`] of flowlets. [`tally`] is what becomes of data, by both ends' counters;
//! [`agreement`] what both ends must have alike. [`service`] speaks to the service manager.

pub mod agreement;
pub mod apply;
pub mod daemon;
pub mod damper;
pub mod event;
pub mod full_size;
pub mod gap;
pub mod liveness;
pub mod measure;
pub mod plan;
pub mod prober;
pub mod quality;
pub mod rates;
mod service;
pub mod state;
pub mod tally;
