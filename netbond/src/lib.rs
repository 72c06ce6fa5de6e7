//! netbond's controller and command line, as a library.
//!
//! [`config`] is what the user asks for, [`control`] decides and keeps the kernel's maps true,
//! [`netlink`] and [`ospf`] tell it what happens ([`bfd`] will, for peers that are no netbond), [`loader`] and [`tables`] are its side of the data
//! plane, [`cli`] is what people type.

pub mod bfd;
pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod loader;
pub mod lock;
pub mod netlink;
pub mod ospf;
pub mod pins;
pub mod tables;
