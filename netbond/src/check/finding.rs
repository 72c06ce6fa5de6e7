//! Findings: what is wrong, where, and what to do.

use std::fmt::Display;

use serde::{Serialize, Serializer};

use crate::config::{Bond, Path};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Packets are lost, or a bond or path is of no use.
    Problem,
    /// It works, but worse than it could, or not for long.
    Warning,
    /// Perhaps meant to be so.
    Note,
}

impl Severity {
    /// Its name in JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Problem => "problem",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $label:literal;)*) => {
        /// What a finding is about: causes first, what follows from them last.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $variant),* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its name in the output, and its heading in docs/check.md.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),* }
            }
        }
    };
}

kinds! {
    /// The file itself.
    Configuration = "configuration";
    Kernel = "kernel";
    Capabilities = "capabilities";
    Bpffs = "bpffs";
    Programs = "programs";
    MetricsAddress = "metrics-address";
    MetricsExposed = "metrics-exposed";
    DeviceMissing = "device-missing";
    DeviceDown = "device-down";
    AddressMissing = "address-missing";
    AllowedIps = "allowed-ips";
    TableOff = "table-off";
    EndpointInTunnel = "endpoint-in-tunnel";
    Handshake = "handshake";
    OspfDaemon = "ospf-daemon";
    OspfNeighbour = "ospf-neighbour";
    NoRoute = "no-route";
    RouteNotOspf = "route-not-ospf";
    Detour = "detour";
    PeerRoute = "peer-route";
    Mtu = "mtu";
    BlackHole = "black-hole";
    PathMtu = "path-mtu";
    Fragments = "fragments";
    RpFilter = "rp-filter";
    Forwarding = "forwarding";
    Controller = "controller";
    NotLoaded = "not-loaded";
    BondDown = "bond-down";
    ProgramMissing = "program-missing";
    OtherProgram = "other-program";
    Disagreement = "disagreement";
    Version = "version";
    SharedNextHop = "shared-next-hop";
    SharedEndpoint = "shared-endpoint";
    SharedUnderlay = "shared-underlay";
    Xdp = "xdp";
    /// How a path stands, where nothing else tells why.
    PathState = "path-state";
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.label())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub kind: Kind,
    /// The bond that it is about; `None` where it is about the host or the file.
    pub bond: Option<String>,
    pub path: Option<String>,
    /// The network device that it is about, where it is about one.
    pub device: Option<String>,
    /// The line of the file that names what it is about, counted from 1.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Finding {
    pub(super) fn new(
        kind: Kind,
        severity: Severity,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            kind,
            bond: None,
            path: None,
            device: None,
            line: None,
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    pub(super) fn problem(kind: Kind, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(kind, Severity::Problem, what, remedy)
    }

    pub(super) fn warning(kind: Kind, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(kind, Severity::Warning, what, remedy)
    }

    pub(super) fn note(kind: Kind, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(kind, Severity::Note, what, remedy)
    }

    pub(super) fn of_bond(self, bond: &Bond) -> Self {
        Self {
            bond: Some(bond.name.clone()),
            line: Some(bond.line),
            ..self
        }
    }

    pub(super) fn of_path(self, bond: &Bond, path: &Path) -> Self {
        Self {
            path: Some(path.name.clone()),
            line: Some(path.line),
            ..self.of_bond(bond)
        }
    }

    pub(super) fn of_device(self, device: &str) -> Self {
        Self {
            device: Some(device.to_owned()),
            ..self
        }
    }

    pub(super) fn at(self, line: usize) -> Self {
        Self {
            line: Some(line),
            ..self
        }
    }

    /// Where and what: `FILE:LINE: path "NAME": ...`, as far as it has a line and a path.
    #[must_use]
    pub fn sentence(&self, file: &str) -> String {
        let mut text = String::new();
        if let Some(line) = self.line {
            text += &format!("{file}:{line}: ");
        }
        match (&self.path, &self.bond) {
            (Some(path), _) => text += &format!("path \"{path}\": "),
            (None, Some(bond)) => text += &format!("bond \"{bond}\": "),
            (None, None) => {}
        }
        text + &self.what
    }
}

/// `3 seconds`, `1 second`.
pub(crate) fn plural<N: Display + PartialEq + From<u8>>(count: N, word: &str) -> String {
    let ending = if count == N::from(1) { "" } else { "s" };
    format!("{count} {word}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        let packets = |count| plural(count, "packet");
        assert_eq!(
            [packets(0), packets(1), packets(2)],
            ["0 packets", "1 packet", "2 packets"]
        );
    }
}
