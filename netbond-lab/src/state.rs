//! What is known of a lab outside the process that owns it: one directory per lab, and a lock.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::topology::Topology;
use crate::wireguard::WireGuard;

/// Directory of all labs. Only root reads it: it holds the keys.
const ROOT: &str = "/run/netbond-lab";

/// The longest lab name: paths of sockets in the state directory are limited to 108 bytes.
const MAX_NAME: usize = 32;

/// The exclusive right to build, use or remove the lab of one name.
///
/// It is a file lock, so it ends with the process that holds it, however that dies.
#[derive(Debug)]
pub(crate) struct Claim {
    name: String,
    _lock: File,
}

impl Claim {
    /// Takes the name, or says that another process has it.
    pub(crate) fn take(name: &str) -> Result<Self> {
        match Self::try_take(name)? {
            Some(claim) => Ok(claim),
            None => bail!("lab {name} is in use by another process: choose another name"),
        }
    }

    /// Takes the name; `None` if another process has it.
    pub(crate) fn try_take(name: &str) -> Result<Option<Self>> {
        ensure!(
            (1..=MAX_NAME).contains(&name.len())
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
                && !name.starts_with('-'),
            "lab name {name:?}: use 1 to {MAX_NAME} ASCII letters, digits, '-' and '_'"
        );
        let path = lock_path(name);
        loop {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(ROOT)
                .with_context(|| format!("cannot create {ROOT}; root is needed"))?;
            let lock = match File::options().create(true).append(true).open(&path) {
                // The directory was just removed together with its last lab.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                result => result.with_context(|| format!("cannot open {}", path.display()))?,
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
            // The holder before us may have removed the file: then the lock is worth nothing.
            let current = fs::metadata(&path).map(|meta| meta.ino()).ok();
            if current == Some(lock.metadata()?.ino()) {
                return Ok(Some(Self {
                    name: name.to_owned(),
                    _lock: lock,
                }));
            }
        }
    }

    /// The lab's state directory.
    pub(crate) fn dir(&self) -> PathBuf {
        state_dir(&self.name)
    }

    /// Creates the empty state directory.
    pub(crate) fn create_dir(&self) -> Result<PathBuf> {
        let dir = self.dir();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    /// Removes everything stored under the name, and gives the name back.
    pub(crate) fn remove(self) -> Result<()> {
        let dir = self.dir();
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.with_context(|| format!("cannot remove {}", dir.display()))?,
        }
        let _ = fs::remove_file(lock_path(&self.name));
        // Fails while other labs exist, as it should.
        let _ = fs::remove_dir(ROOT);
        Ok(())
    }
}

/// The stored description of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Whether the lab outlives the process that built it.
    pub(crate) detached: bool,
    pub(crate) wireguard: WireGuard,
    pub(crate) topology: Topology,
    /// Router name to the process id of its anchor.
    pub(crate) anchors: BTreeMap<String, i32>,
}

impl Record {
    /// Reads the record of a lab; `None` if there is none (yet).
    pub(crate) fn load(name: &str) -> Result<Option<Self>> {
        let path = record_path(&state_dir(name));
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            result => result.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let record = serde_json::from_str(&text).with_context(|| {
            format!("{} is not from this version of netbond-lab", path.display())
        })?;
        Ok(Some(record))
    }

    /// Stores the record; a reader sees the old or the new one, never a part.
    pub(crate) fn store(&self, dir: &Path) -> Result<()> {
        let path = record_path(dir);
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Names of all labs that have a state directory.
pub(crate) fn names() -> Result<Vec<String>> {
    let entries = match fs::read_dir(ROOT) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.with_context(|| format!("cannot read {ROOT}"))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        // Locks start with a dot.
        if let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The state directory of the lab called `name`.
pub(crate) fn state_dir(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

fn record_path(dir: &Path) -> PathBuf {
    dir.join("lab.json")
}

fn lock_path(name: &str) -> PathBuf {
    Path::new(ROOT).join(format!(".{name}.lock"))
}
