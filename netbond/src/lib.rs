//! netbond's controller and command line, as a library.
//!
//! [`config`] is what the user asks for, [`control`] decides and keeps the kernel's maps true,
//! [`netlink`], [`ospf`] and [`bfd`] tell it what happens, [`journal`] keeps what it made of that,
//! [`loader`] and [`tables`] are its side of the data plane, [`status`] reads it, [`metrics`] serves that to
//! Prometheus, [`running`] finds the controller from another process, [`migrate`] comes from what was there
//! before, [`discover`] from what OSPF knows, [`cli`] is what people type.

pub mod bfd;
pub mod check;
pub mod cli;
mod clock;
pub mod config;
pub mod control;
pub mod discover;
#[cfg(test)]
mod documented;
pub mod journal;
mod link;
pub mod loader;
pub mod lock;
mod log;
pub mod metrics;
pub mod migrate;
#[cfg(test)]
mod mutated;
pub mod netlink;
pub mod ospf;
pub mod pins;
mod priority;
mod random;
pub mod running;
pub mod status;
pub mod tables;
pub mod wireguard;
