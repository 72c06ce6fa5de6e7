//! The controller: keeps the maps true.
//!
//! [`event`] is what happens, [`state`] decides (no clock, no I/O), [`apply`] writes what was decided,
//! [`daemon`] runs them. `world` is what is known of the system, [`plan`] what follows from it for a bond,
//! `concern` which bonds an event may concern. [`prober`] asks the paths whether they live; [`liveness`] concludes, from
//! what [`measure`], [`path_mtu`] and [`quality`] find, with [`damper`] keeping it calm; from the same
//! comes the [`gap`] of flowlets. [`tally`] is what becomes of data, by both ends' counters; from that
//! [`rates`] learns what paths carry, and [`settle`] when flows need not be striped. [`agreement`] is what
//! both ends must have alike. [`service`] speaks to the service manager.

pub mod agreement;
pub mod apply;
mod concern;
pub mod daemon;
pub mod damper;
pub mod event;
pub mod gap;
pub mod liveness;
pub mod measure;
pub mod path_mtu;
pub mod plan;
pub mod prober;
mod processors;
pub mod quality;
pub mod rates;
mod service;
pub mod settle;
pub mod state;
pub mod tally;
mod world;
