//! What netbond's programs in the kernel and its controller share.
//!
//! Everything here is pure and `no_std`: the eBPF programs compile the same functions that the tests
//! run on the host.

#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod class;
pub mod ecn;
pub mod fate;
pub mod flow;
pub mod frame;
pub mod gre;
pub mod inner;
pub mod ipv4;
pub mod ipv6;
pub mod mss;
pub mod names;
pub mod notes;
pub mod onward;
pub mod order;
pub mod probe;
pub mod route;
pub mod select;
pub mod sequence;
pub mod siphash;
pub mod turns;
pub mod wheel;
