//! Debian packages that are only unpacked, never installed: a private view of the machine's mirror.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{check, output};
use crate::files::{recreate, write};

/// Package lists and downloads of our own, beside those of the machine. Needs no root.
pub(crate) struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Sets up lists of these suites and a cache below `dir`, from the mirror that the machine's own
    /// configuration names.
    pub(crate) fn open(dir: &Path, suites: &[&str]) -> Result<Self> {
        let apt = Self {
            dir: dir.to_owned(),
        };
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let (mirror, keys) = mirror()?;
        let sources: String = suites
            .iter()
            .map(|suite| format!("deb [signed-by={keys}] {mirror} {suite} main\n"))
            .collect();
        write(&dir.join("sources.list"), &sources)?;
        let dir = dir.display();
        write(
            &apt.config(),
            &format!(
                "Dir::Etc::sourcelist \"{dir}/sources.list\";\n\
                 Dir::Etc::sourceparts \"-\";\n\
                 Dir::State::lists \"{dir}/lists\";\n\
                 Dir::Cache \"{dir}/cache\";\n\
                 APT::Sandbox::User \"\";\n\
                 Debug::NoLocking \"true\";\n\
                 Acquire::Languages \"none\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
            ),
        )?;
        eprintln!("apt: reading the mirror's package lists");
        check(
            apt.command("apt-get")
                .args(["--quiet", "--quiet", "update"]),
        )?;
        Ok(apt)
    }

    fn config(&self) -> PathBuf {
        self.dir.join("apt.conf")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.config());
        command
    }

    /// The versions of a package on the mirror, each with its suite's index line.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        let listed = output(self.command("apt-cache").args(["madison", package]))?;
        Ok(listed
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(|version| version.trim().to_owned())
            .collect())
    }

    /// What one version of a package depends on, by name.
    pub(crate) fn dependencies(&self, package: &str, version: &str) -> Result<Vec<String>> {
        let shown = output(
            self.command("apt-cache")
                .args(["show", "--no-all-versions"])
                .arg(format!("{package}={version}")),
        )?;
        Ok(shown
            .lines()
            .filter_map(|line| line.strip_prefix("Depends: "))
            .flat_map(|list| list.split(", "))
            .filter_map(|entry| entry.split_whitespace().next())
            .map(str::to_owned)
            .collect())
    }

    /// Unpacks packages, named `NAME` or `NAME=VERSION`, into `into`.
    pub(crate) fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let debs = self.dir.join("debs");
        recreate(&debs)?;
        check(
            self.command("apt-get")
                .current_dir(&debs)
                .args(["--quiet", "download"])
                .args(packages),
        )?;
        unpack_all(&debs, into)
    }

    /// Unpacks a package of a suite, and of what it depends on all that the machine lacks.
    pub(crate) fn unpack_with_dependencies(
        &self,
        package: &str,
        suite: &str,
        into: &Path,
    ) -> Result<()> {
        check(self.command("apt-get").args([
            "--quiet",
            "--yes",
            "--download-only",
            "--reinstall",
            "--no-install-recommends",
            "--target-release",
            suite,
            "install",
            package,
        ]))?;
        unpack_all(&self.dir.join("cache/archives"), into)
    }
}

/// The mirror of Debian that apt uses, and the keys its lists are signed with.
fn mirror() -> Result<(String, String)> {
    const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(CREATED_BY)|$(REPO_URI)|$(CODENAME)|$(LABEL)",
    ]))?;
    let mirror = targets
        .lines()
        .filter_map(|line| line.strip_prefix("Packages|"))
        .find_map(|line| line.strip_suffix("|bookworm|Debian"))
        .context(
            "apt knows no mirror of Debian 12 (bookworm), where packages would be taken from: add one \
             to its sources and run `apt-get update`",
        )?;
    ensure!(Path::new(KEYS).is_file(), "{KEYS} is missing");
    Ok((mirror.to_owned(), KEYS.to_owned()))
}

fn unpack_all(debs: &Path, into: &Path) -> Result<()> {
    let mut any = false;
    for entry in fs::read_dir(debs).with_context(|| format!("cannot list {}", debs.display()))? {
        let deb = entry?.path();
        if deb.extension().is_some_and(|extension| extension == "deb") {
            check(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(&deb)
                    .arg(into),
            )?;
            fs::remove_file(&deb).with_context(|| format!("cannot remove {}", deb.display()))?;
            any = true;
        }
    }
    ensure!(any, "apt downloaded nothing into {}", debs.display());
    Ok(())
}
