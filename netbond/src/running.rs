//! The controller that runs, as another process finds it and has it read its configuration anew.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use netbond_common::names::EventKind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;

use crate::{
    config::{Config, Setting},
    control::daemon::{NOT_RELOADED, RELOADED},
    journal::Entry,
    lock::Lock,
    pins::Pins,
    tables::{Tables, value},
};

/// How long a reload may take until nothing more is expected of it: a thousand bonds more take the kernel 16 s and longer
/// (see [`Programs::attach`](crate::loader::Programs::attach)).
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What tells the configuration file from the words of a command line; `None` where they do not run a
/// controller.
pub type ConfigOf = fn(Vec<OsString>) -> Option<PathBuf>;

/// A controller that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pid: Pid,
    /// The configuration file that it was started with, a full path.
    file: PathBuf,
}

impl Running {
    /// The one that runs for these pins.
    ///
    /// # Errors
    ///
    /// Where none runs.
    pub fn find(pins: &Pins, tables: &Tables, config_of: ConfigOf) -> Result<Self> {
        ensure!(
            Lock::is_taken(pins),
            "no controller runs, and only one that runs reads its configuration"
        );
        let pid = value(&tables.meta, 0).map_or(0, |meta| meta.pid);
        let process = Path::new("/proc").join(pid.to_string());
        ensure!(
            process.exists(),
            "process {pid}, which the maps name as the controller, is not seen from here: the next one is only \
             starting (try again), or it runs in another process namespace"
        );
        let of_it = |name: &str| process.join(name);
        let words = fs::read(of_it("cmdline")).unwrap_or_default();
        let words = words
            .strip_suffix(b"\0")
            .unwrap_or(&words)
            .split(|&byte| byte == 0)
            .map(|word| OsString::from_vec(word.to_vec()));
        // A number of another process namespace is someone else's here.
        let Some(file) = config_of(words.collect()) else {
            bail!("process {pid}, which the maps name, is no controller as seen from here");
        };
        let directory = fs::read_link(of_it("cwd"))
            .with_context(|| format!("cannot tell where process {pid} was started"))?;
        Ok(Self {
            pid: Pid::from_raw(i32::try_from(pid)?),
            file: directory.join(file),
        })
    }

    /// The same, if its configuration file is the one of that name here, too.
    ///
    /// # Errors
    ///
    /// Where it sees other files than this process.
    pub fn with_our_files(self) -> Result<Self> {
        let inode = |file: &Path| fs::metadata(file).map(|found| (found.dev(), found.ino()));
        let name = self.file.strip_prefix("/").unwrap_or(&self.file);
        let root = Path::new("/proc").join(self.pid.to_string()).join("root");
        ensure!(
            inode(&root.join(name)).ok() == inode(&self.file).ok(),
            "the controller sees other file systems than this process: its configuration file is not \
             the one of that name here"
        );
        Ok(self)
    }

    /// Has it read its configuration file.
    ///
    /// # Errors
    ///
    /// Where it is gone, or not ours to tell.
    pub fn reload(&self) -> Result<()> {
        kill(self.pid, Signal::SIGHUP).context("cannot tell the controller to reload")
    }

    /// Its configuration file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Writes a setting into its configuration file and has it read that. The file changes as a whole
    /// or not at all, and only where what it says then is in order.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read or written, or where something would be wrong with it.
    pub fn change(&self, setting: &Setting) -> Result<Reload> {
        // Another name for it stays one.
        let file = fs::canonicalize(&self.file)
            .with_context(|| format!("cannot find {}", self.file.display()))?;
        let before =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let after = setting
            .write_into(&before)
            .with_context(|| format!("cannot set {} in {}", setting.text(), file.display()))?;
        Config::parse(&after, &self.file.display().to_string())
            .with_context(|| format!("{} is not in order, nothing was written", setting.text()))?;
        replace(&file, &after)?;
        let reload = Reload {
            file,
            before,
            after,
        };
        if let Err(error) = self.reload() {
            reload.undo()?;
            return Err(error.context("the file is as it was"));
        }
        Ok(reload)
    }
}

/// A change of the file whose outcome is awaited.
#[derive(Debug)]
pub struct Reload {
    file: PathBuf,
    before: String,
    after: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    TakenOver,
    /// The controller's word on why.
    Refused(String),
}

impl Reload {
    /// What an entry of the journal, written after the change, says of it: `None` where it is about
    /// something else.
    #[must_use]
    pub fn outcome(entry: &Entry) -> Option<Outcome> {
        match entry.kind? {
            EventKind::Did if entry.text.starts_with(RELOADED) => Some(Outcome::TakenOver),
            EventKind::Failed => {
                let why = entry.text.strip_prefix(NOT_RELOADED)?;
                Some(Outcome::Refused(why.to_owned()))
            }
            EventKind::Saw | EventKind::Changed | EventKind::Confirmed | EventKind::Did => None,
        }
    }

    /// Gives the file back what it said before, unless someone else has changed it since: then it
    /// stays, and `false` is returned.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read or written.
    pub fn undo(&self) -> Result<bool> {
        let now = fs::read_to_string(&self.file)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        if now != self.after {
            return Ok(false);
        }
        replace(&self.file, &self.before).map(|()| true)
    }
}

/// Puts a new file in the place of an old one, with the same owner and rights.
fn replace(file: &Path, text: &str) -> Result<()> {
    let written = || -> Result<()> {
        let old = fs::metadata(file)?;
        let directory = file.parent().unwrap_or(Path::new("/"));
        let mut new = NamedTempFile::new_in(directory)?;
        new.write_all(text.as_bytes())?;
        fchown(new.as_file(), Some(old.uid()), Some(old.gid()))?;
        // After the owner, which takes set-id bits away.
        new.as_file().set_permissions(old.permissions())?;
        new.as_file().sync_all()?;
        new.persist(file)?;
        Ok(())
    };
    written().with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::time::SystemTime;

    use netbond_common::names::Mode;

    use super::*;

    const CONFIG: &str = "# kept\n[[bond]]\nname = \"nb0\" # this too\nprobe_interval = 30\n\n\
                          [[bond.path]]\nname = \"a\"\nlocal = \"10.0.0.1\"\nremote = \"10.0.0.2\"\n";

    fn mode(mode: Mode) -> Setting {
        Setting::Mode {
            bond: "nb0".to_owned(),
            mode,
        }
    }

    /// A process that a SIGHUP ends, so that one sees whether it came.
    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn start() -> Self {
            // Who runs the tests may have it ignored.
            let mut command = std::process::Command::new("env");
            command.args(["--default-signal=HUP", "sleep", "1000"]);
            let sleeper = Self(command.spawn().unwrap());
            let comm = format!("/proc/{}/comm", sleeper.0.id());
            while fs::read_to_string(&comm).unwrap() != "sleep\n" {
                std::thread::yield_now();
            }
            sleeper
        }

        fn running(&self, file: &Path) -> Running {
            Running {
                pid: Pid::from_raw(self.0.id().cast_signed()),
                file: file.to_owned(),
            }
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn the_file_changes_as_a_whole_and_back() {
        use std::os::unix::process::ExitStatusExt as _;

        let directory = tempfile::tempdir().unwrap();
        let [real, link] = ["real.toml", "netbond.toml"].map(|name| directory.path().join(name));
        fs::write(&real, CONFIG).unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&real, &link).unwrap();
        let mut sleeper = Sleeper::start();
        let reload = sleeper.running(&link).change(&mode(Mode::Flow)).unwrap();
        let after = fs::read_to_string(&real).unwrap();
        assert_eq!(after, CONFIG.replace("= 30\n", "= 30\nmode = \"flow\"\n"));
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let ended = sleeper.0.wait().unwrap();
        assert_eq!(ended.signal(), Some(Signal::SIGHUP as i32));
        assert!(reload.undo().unwrap());
        assert_eq!(fs::read_to_string(&real).unwrap(), CONFIG);
        fs::write(&real, "mine").unwrap();
        assert!(!reload.undo().unwrap());
        assert_eq!(fs::read_to_string(&real).unwrap(), "mine");
    }

    #[test]
    fn what_would_be_wrong_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("netbond.toml");
        fs::write(&file, CONFIG).unwrap();
        let mut sleeper = Sleeper::start();
        let setting = Setting::Weight {
            path: "a".to_owned(),
            weight: 2,
        };
        let error = sleeper.running(&file).change(&setting).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("weight is of no use"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), CONFIG);
        assert!(sleeper.0.try_wait().unwrap().is_none(), "and none was told");
    }

    #[test]
    fn outcomes_are_those_of_reloads() {
        let entry = |kind, text: &str| Entry {
            sequence: 1,
            at: SystemTime::now(),
            kind: Some(kind),
            bond: String::new(),
            path: String::new(),
            change: None,
            text: text.to_owned(),
        };
        let outcome = |kind, text: &str| Reload::outcome(&entry(kind, text));
        let taken = format!("{RELOADED}/etc/netbond.toml");
        assert_eq!(outcome(EventKind::Did, &taken), Some(Outcome::TakenOver));
        let refused = format!("{NOT_RELOADED}no room");
        let why = Outcome::Refused("no room".to_owned());
        assert_eq!(outcome(EventKind::Failed, &refused), Some(why));
        assert_eq!(outcome(EventKind::Did, "controller started"), None);
        assert_eq!(outcome(EventKind::Failed, "cannot ask BIRD"), None);
    }
}
