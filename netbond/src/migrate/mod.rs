//! From a bond made by hand (a kernel bond over `gretap` tunnels, or routes over `gre` ones) to
//! netbond's configuration, one end at a time: the other end may stay as it is.
//!
//! Pure: [`Host`] is what the kernel told, a [`Migration`] the file to write and what to tell people.

mod file;
mod found;
mod notes;
mod setup;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::config::Config;

pub use found::{
    Address, Device, Gre, GreOptions, Hop, Host, KernelBond, Kind, Neighbour, Route, Way,
};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The names of the bond, or of the `gre` tunnels that routes spread packets over.
    pub from: &'a [String],
    /// What netbond's bond device shall be called.
    pub name: &'a str,
    /// Write the other end's file.
    pub peer: bool,
    /// The file's name in the commands it holds.
    pub file: &'a str,
}

/// What comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// The configuration file.
    pub file: String,
    /// What changes, for people.
    pub notes: String,
}

/// Why there is no file: everything that is in the way, each with what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacles(pub Vec<String>);

impl fmt::Display for Obstacles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, obstacle) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{obstacle}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Obstacles {}

/// Writes the configuration for what was found.
///
/// # Errors
/// Everything that keeps netbond from taking over.
pub fn migrate(host: &Host, request: Request<'_>) -> Result<Migration, Obstacles> {
    let setup = setup::interpret(host, request).map_err(Obstacles)?;
    let file = if request.peer {
        file::of_peer(&setup)
    } else {
        file::of_this_end(&setup, request.file)
    };
    // What the kernel allows and netbond does not: an odd name, a loopback address.
    Config::parse(&file, request.file).map_err(|problems| {
        let refused = |problem: crate::config::Problem| {
            format!("netbond does not take what was found: {}", problem.message)
        };
        Obstacles(problems.list.into_iter().map(refused).collect())
    })?;
    let notes = notes::of(&setup, request.peer);
    Ok(Migration { file, notes })
}
