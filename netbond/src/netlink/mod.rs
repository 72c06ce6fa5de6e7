//! What the kernel says and is told over rtnetlink (rtnetlink(7)): the bond's veth pair, and what
//! becomes of a packet to each path's far end; and over generic netlink, what WireGuard devices are
//! set to.
//!
//! Changes go through the `rtnetlink` crate. Whatever is read goes through a raw socket
//! ([`socket`]): the crate hides ENOBUFS, does not know nexthop objects, and leaves a request
//! unanswered for ever when it cannot parse some attribute of the answer. Here only the attributes
//! that netbond uses are looked at.

pub mod device;
mod driver;
mod ethtool;
pub mod filter;
pub mod inventory;
mod link;
pub mod monitor;
#[cfg(test)]
pub(crate) mod netns;
mod release;
pub mod route;
pub mod rule;
mod socket;
pub mod wireguard;

pub use device::{BondDevice, BondSpec, Netlink};
pub use driver::Routed;
pub use monitor::{Monitor, MonitorOptions};
pub use route::RouteQuery;
