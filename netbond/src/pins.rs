//! Where maps and links are pinned.

use std::io;
use std::path::{Path, PathBuf};

use netbond_common::names::PIN_ROOT;

/// The directory tree below one pin root.
///
/// `maps/NAME` are the maps, `links/IFINDEX-egress` and `links/IFINDEX-ingress` the tcx links,
/// `links/IFINDEX-xdp` those of programs in drivers: by ifindex, as bpffs refuses names with dots (`bpf_lookup` in kernel/bpf/inode.c) and devices have
/// them.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The tree below `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The tree's root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The pin of a map.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// The pins of links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Whether a netbond left its maps here, as far as this user may see.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.try_exist().unwrap_or(false)
    }

    /// Whether a netbond left its maps here.
    ///
    /// # Errors
    ///
    /// Where this user may not look (EACCES): bpffs is root's (0700).
    pub fn try_exist(&self) -> io::Result<bool> {
        self.map(netbond_common::names::map::META).try_exists()
    }
}

impl Default for Pins {
    fn default() -> Self {
        Self::new(PIN_ROOT)
    }
}
