//! A laboratory for netbond: routers in network namespaces, joined by WireGuard or Ethernet, with OSPF on top.
//!
//! ```no_run
//! use netbond_lab::{Lab, Topology};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::up("example", &Topology::reference())?;
//! lab.router("A").run(&["ping", "-c", "3", "10.67.0.2"])?;
//! lab.blackhole("A", "M1")?;
//! # Ok(())
//! # }
//! ```
//!
//! Everything happens inside the namespaces; the host's own network is not touched. A lab ends with
//! its [`Lab`] value, also after a panic. If its process is killed, what remains is removed by the
//! next lab of the same name or by `netbond-lab down`.

mod anchor;
pub mod bench;
pub mod binary;
mod bird;
pub mod calm;
pub mod container;
pub mod cost;
pub mod daemon;
pub mod document;
mod embedded;
mod enter;
pub mod failover;
mod failure;
mod frr;
mod goodput;
mod impair;
mod lab;
mod link;
mod losses;
pub mod machine;
mod namespace;
mod plain;
mod process;
mod router;
pub mod run;
pub mod scale;
pub mod soak;
mod state;
pub mod stream;
pub mod topology;
pub mod traffic;
pub mod tunnels;
mod underlay;
mod wait;
mod wireguard;

pub use anchor::serve as serve_router;
pub use impair::Impairment;
pub use lab::{Lab, LabInfo, Life, Options, down, list};
pub use namespace::netns_name;
pub use nix::sys::signal::Signal;
pub use router::Router;
pub use topology::{Ospf, Topology};
pub use wait::{PATIENCE, catch_interrupts, check_interrupt, wait_for};
pub use wireguard::WireGuard;
