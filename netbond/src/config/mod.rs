//! The configuration file: what the user wrote, checked as far as the file alone tells.
//!
//! [`Config::parse`] reports every problem of a file at once, each with its line. What only the host
//! can tell (does the device exist, is the address on an interface) is checked later; such checks
//! report a [`Problem`] too, at the line that each [`Bond`] and [`Path`] carries.

mod class;
mod difference;
mod edit;
mod parse;
mod prefix;
mod protocols;
mod reader;
#[cfg(test)]
mod tests;
pub(crate) mod text;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;

use netbond_common::{class::Rule, names::feature};

pub use netbond_common::names::{Encap, Mode, Weights};

pub use crate::bfd::Hops;

pub use self::difference::difference;
pub use self::edit::Setting;
pub(crate) use self::parse::default_route_protocols;
pub use self::prefix::{ParsePrefixError, Prefix};
pub use self::protocols::ROUTE_PROTOCOLS;

/// A whole configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Protocols (rtm_protocol) whose routes count as OSPF's; each once.
    pub route_protocols: Vec<u8>,
    /// How to ask BIRD for neighbours and costs, `None` where the user does not want it.
    pub bird: Option<Bird>,
    /// How to ask FRR for the same.
    pub frr: Option<Frr>,
    /// Where metrics are served, `None` where they are not.
    pub metrics: Option<Metrics>,
    /// Devices of LANs whose packets are forwarded to and from the bonds past the kernel; at most
    /// [`netbond_common::abi::MAX_LANS`], mostly none.
    pub lans: Vec<Lan>,
    /// At most [`netbond_common::abi::MAX_BONDS`]; may be empty.
    pub bonds: Vec<Bond>,
}

/// A device of a LAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lan {
    /// Name of the device.
    pub name: String,
    /// Whether its driver forwards.
    pub xdp: XdpMode,
    /// Line of its `[[lan]]`, counted from 1.
    pub line: usize,
}

/// How to reach BIRD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bird {
    /// Its control socket, an absolute path.
    pub socket: PathBuf,
}

/// How to reach FRR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frr {
    /// The command that runs vtysh and its first arguments; never empty.
    pub vtysh: Vec<String>,
}

/// How metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Where connections are taken; the port is never 0.
    pub listen: SocketAddr,
    /// Line of what says so, counted from 1.
    pub line: usize,
}

/// A bond: a virtual link to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bond {
    /// Name of the bond device; short enough that the other end of its veth pair, named
    /// [`Bond::peer_device`], fits too.
    pub name: String,
    /// Addresses of the bond device.
    pub addresses: Vec<Prefix>,
    pub encap: Encap,
    /// How the path of a packet is chosen that is of no class.
    pub mode: Mode,
    /// How received packets are put in order; `None`: not at all.
    pub in_order: Option<InOrder>,
    /// On how many paths at the most a packet is sent in mode duplicate, 2 to
    /// [`netbond_common::abi::MAX_BOND_PATHS`]; `None`: on all that are usable.
    pub copies: Option<u32>,
    /// Where the paths' weights come from, in modes that go by weight.
    pub weights: Weights,
    /// After what pause a flow may move in mode flowlet, ms; `None`: as long as the measured latencies
    /// of the paths differ.
    pub flowlet_gap_ms: Option<u32>,
    /// The first whose rule takes a packet counts; at most
    /// [`netbond_common::abi::MAX_BOND_CLASSES`].
    pub classes: Vec<Class>,
    /// GRE key (RFC 2890) of all paths; `None` sends none, which is not key 0.
    pub key: Option<u32>,
    /// Cap on the MTU of the bond device, bytes, 1280 to 65535.
    pub mtu: Option<u32>,
    pub path_mtu: PathMtu,
    /// Whether the maximum segment size that TCP announces through the bond is clamped to its MTU.
    pub mss_clamp: bool,
    pub ttl: Ttl,
    pub detour: DetourPolicy,
    /// How the paths are probed; `None`: not at all.
    pub probing: Option<Probing>,
    /// BFD with the other end of each path, which is no netbond; `None`: not at all. Never together
    /// with probing.
    pub bfd: Option<Bfd>,
    pub hold_down: HoldDown,
    /// What to do with paths that live, but not well.
    pub policies: Policies,
    /// The peer's own prefix: a path over which it is no longer reached is suspect.
    pub peer: Option<Prefix>,
    /// 1 to [`netbond_common::abi::MAX_BOND_PATHS`].
    pub paths: Vec<Path>,
    /// Line of its `[[bond]]`, counted from 1.
    pub line: usize,
}

impl Bond {
    /// Name of the other end of the veth pair whose one end is the bond device.
    #[must_use]
    pub fn peer_device(&self) -> String {
        peer_device(&self.name)
    }

    /// Whether packets go by what the paths are measured to carry.
    #[must_use]
    pub fn measures(&self) -> bool {
        self.weights == Weights::Measured || self.modes().any(|mode| mode == Mode::Adaptive)
    }

    /// Whether its packets carry numbers, and of those received each is released once.
    #[must_use]
    pub fn is_numbered(&self) -> bool {
        self.in_order.is_some() || self.modes().any(|mode| mode == Mode::Duplicate)
    }

    /// Whether packets of some of its paths are to be received in drivers.
    #[must_use]
    pub fn asks_for_xdp(&self) -> bool {
        self.paths.iter().any(|path| path.xdp != XdpMode::Off)
    }

    /// Whether some of its paths have IPv6 outer addresses.
    #[must_use]
    pub fn is_over_ipv6(&self) -> bool {
        self.paths.iter().any(|path| path.remote.is_ipv6())
    }

    /// What it asks of the programs: `feature` bits.
    #[must_use]
    pub fn features(&self) -> u32 {
        let modes = self.modes().map(feature::of);
        let more = [
            (!self.classes.is_empty(), feature::CLASSES),
            (self.is_numbered(), feature::NUMBERED),
            (self.measures(), feature::MEASURED),
            (self.is_over_ipv6(), feature::IPV6),
            (self.mss_clamp, feature::MSS_CLAMP),
        ];
        let more = more
            .into_iter()
            .filter_map(|(asked, feature)| asked.then_some(feature));
        modes.chain(more).fold(0, |all, feature| all | feature)
    }

    /// Its own mode, and those of its classes.
    pub fn modes(&self) -> impl Iterator<Item = Mode> + '_ {
        let classes = self.classes.iter().map(|class| class.mode);
        std::iter::once(self.mode).chain(classes)
    }
}

/// A class of traffic: packets of a bond that go by a mode of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// As a path's name, unique within the bond.
    pub name: String,
    pub mode: Mode,
    /// Which packets it takes.
    pub rule: Rule,
    /// The same as the user wrote it.
    pub text: String,
    /// Line of its `[[bond.class]]`, counted from 1.
    pub line: usize,
}

fn peer_device(bond: &str) -> String {
    format!("{bond}x")
}

/// A path: one pair of GRE outer addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// At most 31 bytes of `[A-Za-z0-9_.-]`, unique over the whole file.
    pub name: String,
    /// Outer source of what is sent. Never IPv4 mapped into IPv6, nor link-local IPv6.
    pub local: IpAddr,
    /// Outer destination of what is sent; of the same family as `local`.
    pub remote: IpAddr,
    /// The device that the path is to leave by, `None` to take the one that has `local`.
    pub device: Option<String>,
    /// Share of the bond's packets, relative to the other paths, in modes that go by weight: 1 to 64.
    pub weight: u32,
    /// Where rates are measured, the path counts for no more than this, Mbit/s; `None`: for what it
    /// carries.
    pub rate_cap_mbit: Option<u32>,
    /// In mode active-backup, the path with the lowest is the best; of several the first.
    pub priority: u32,
    /// Whether the program in its device's driver receives its packets.
    pub xdp: XdpMode,
    /// Line of its `[[bond.path]]`, counted from 1.
    pub line: usize,
}

/// Whether packets are handled in a device's driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum XdpMode {
    /// No program is put there: some drivers reset their device for it.
    #[default]
    Off,
    /// Where that can be.
    Auto,
    /// A configuration is refused where that cannot be.
    Native,
}

/// How received packets are put in order: what is sent carries sequence numbers, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InOrder {
    /// For how long a packet is held at the most, ms.
    pub longest_hold_ms: u32,
}

impl Default for InOrder {
    fn default() -> Self {
        Self {
            longest_hold_ms: 100,
        }
    }
}

/// How the liveness of a bond's paths is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probing {
    /// Between two requests on a path, ms.
    pub interval_ms: u32,
    /// Requests without an answer after which a path is dead.
    pub misses: u32,
    /// Answers in a row after which a dead path is alive again.
    pub recover: u32,
}

impl Default for Probing {
    fn default() -> Self {
        Self {
            interval_ms: 30,
            misses: 3,
            recover: 5,
        }
    }
}

/// A BFD session on each path of a bond, for a peer that answers no probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bfd {
    pub hops: Hops,
    /// Between two packets, sent and taken, ms; the peer may want more.
    pub interval_ms: u32,
    /// Packets that may be missed before a path is dead; never 0.
    pub misses: u8,
}

impl Bfd {
    const DEFAULT_INTERVAL_MS: u32 = 50;
    const DEFAULT_MISSES: u8 = 3;
}

/// How long a path that fails soon after its return stays out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldDown {
    /// The first time, s; 0: not at all. Each further time twice as long.
    pub first_s: u32,
    /// At the most, s.
    pub longest_s: u32,
}

impl Default for HoldDown {
    fn default() -> Self {
        Self {
            first_s: 1,
            longest_s: 60,
        }
    }
}

/// What to do with paths that live, but lose or delay too much; `None`: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    pub lossy: Option<Lossy>,
    pub slow: Option<Slow>,
}

/// When a path loses too much, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lossy {
    /// Percent lost of what is sent, or of what returns.
    pub above_percent: u32,
    pub remedy: Remedy,
}

/// When a path's round trip is too long, and what follows: one of the two limits at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// ms.
    pub above_ms: Option<u32>,
    /// Times that of the bond's best path.
    pub factor: Option<u32>,
    pub remedy: Remedy,
}

/// What to do with a path that is not good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Leave it out of the rotation while any path is up.
    Avoid,
    /// Give it a quarter of its weight.
    Less,
}

#[cfg(test)]
impl Policies {
    /// Paths that lose more than so many percent, or take more than so many times the best one's
    /// round trip, are avoided.
    pub(crate) fn test(above_percent: Option<u32>, factor: Option<u32>) -> Self {
        let remedy = Remedy::Avoid;
        Self {
            lossy: above_percent.map(|above_percent| Lossy {
                above_percent,
                remedy,
            }),
            slow: factor.map(|factor| Slow {
                above_ms: None,
                factor: Some(factor),
                remedy,
            }),
        }
    }
}

/// What a bond's MTU goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathMtu {
    /// What the paths carry, by probes.
    Probe,
    /// What their devices take: a path that carries less is out of use.
    Fixed,
}

/// TTL (hop limit) of the outer packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// That of the inner packet: what is meant for the link only dies at the first middle router.
    Inherit,
    /// Hops, never 0.
    Fixed(u8),
}

impl Default for Ttl {
    /// As many hops as IP's own default (RFC 1700), so that a bond is one hop whatever its paths are.
    fn default() -> Self {
        Self::Fixed(64)
    }
}

/// What to do with a path whose remote address OSPF reaches over another device than its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetourPolicy {
    /// Leave it out of the rotation while any path is up.
    Avoid,
    /// Use it as if it were up.
    Use,
}

/// Something wrong with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong, where, the wrong value, and what to do; a single line of text.
    pub message: String,
}

/// All that is wrong with a configuration file: one line each when displayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// Name of the file, for people.
    pub file: String,
    /// In the order of lines.
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Problem { line, message }) in self.list.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{}:{line}: {message}", self.file)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl Config {
    /// What it asks of the programs: `feature` bits.
    #[must_use]
    pub fn features(&self) -> u32 {
        let bonds = self.bonds.iter();
        bonds.fold(0, |features, bond| features | bond.features())
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read; where something is wrong with what it says, the error is a
    /// [`Problems`].
    pub fn load(path: &std::path::Path) -> anyhow::Result<Self> {
        Self::load_with_text(path).map(|(config, _)| config)
    }

    /// The same, with what the file says.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn load_with_text(path: &std::path::Path) -> anyhow::Result<(Self, String)> {
        let file = path.display().to_string();
        let bytes = std::fs::read(path)
            .with_context(|| format!("cannot read the configuration file {file}"))?;
        let text = reader::utf8(&bytes).map_err(|problem| Problems {
            file: file.clone(),
            list: vec![problem],
        })?;
        Ok((Self::parse(text, &file)?, text.to_owned()))
    }

    /// Parses the text of a configuration file; `file` is what its problems name.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, in the order of lines. Where the text is not even TOML, only
    /// that: what could not be read would be reported again, as missing.
    pub fn parse(text: &str, file: &str) -> Result<Self, Problems> {
        parse::config(text).map_err(|list| Problems {
            file: file.to_owned(),
            list,
        })
    }
}
