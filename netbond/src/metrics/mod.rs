//! Metrics for Prometheus: what `netbond status` tells, as numbers.
//!
//! [`families`] says which there are, [`exposition`] writes them, [`server`] answers HTTP.

mod exposition;
mod families;
mod server;

pub use self::exposition::{Format, render};
pub use self::server::{Endpoint, Prepared};
