//! The VM's root file system: this machine's own packages, and the programs under test, as initramfs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::command::{check, output};
use crate::files::{recreate, write};

/// What a router needs. Debian 12 has some of it always, setup sees to the rest.
const PACKAGES: [&str; 27] = [
    "bash",
    "bird2",
    "bpftool",
    "coreutils",
    "dash",
    "ethtool",
    "frr",
    "grep",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "kmod",
    // The locale C.UTF-8, which tmux needs.
    "libc-bin",
    "libmptcpwrap0",
    // FRR's vtysh asks it whether it may.
    "libpam-modules",
    "libteam-utils",
    "mawk",
    "mount",
    "mptcpize",
    "netbase",
    "procps",
    "sed",
    "tcpdump",
    "tmux",
    "util-linux",
    "wireguard-tools",
    "ncurses-base",
];

/// Directories that are links to those of the same name in `/usr`.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// What the guest does first.
const INIT: &str = include_str!("init.sh");

/// Packs the system below `dir` into `archive`, unless it is there with the same packages.
pub(super) fn system(dir: &Path, archive: &Path) -> Result<()> {
    // Written last.
    let packed = archive.with_extension("packages");
    let contents = format!("{}\n{INIT}", PACKAGES.join("\n"));
    if archive.exists() && fs::read_to_string(&packed).is_ok_and(|text| text == contents) {
        return Ok(());
    }
    let stage = dir.join("stage");
    skeleton(&stage)?;
    let mut files = BTreeSet::new();
    for package in PACKAGES {
        let list = output(Command::new("dpkg-query").args(["--listfiles", package]))?;
        files.extend(list.lines().filter(|path| wanted(path)).map(PathBuf::from));
    }
    add(&stage, files.iter().map(PathBuf::as_path))?;
    for file in ["/etc/passwd", "/etc/group"] {
        copy(Path::new(file), &stage)?;
    }
    write(
        &stage.join("etc/hosts"),
        "127.0.0.1 localhost\n::1 localhost\n",
    )?;
    write(
        &stage.join("etc/nsswitch.conf"),
        "passwd: files\ngroup: files\nhosts: files\n",
    )?;
    write(
        &stage.join("etc/pam.d/other"),
        "account sufficient pam_permit.so\n",
    )?;
    let init = stage.join("init");
    write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", init.display()))?;
    pack(&stage, archive)?;
    write(&packed, &contents)
}

/// Packs programs, each at the path it has here, with the libraries they need, and the script that is
/// to be run.
pub(super) fn payload(
    dir: &Path,
    programs: &[PathBuf],
    script: &str,
    archive: &Path,
) -> Result<()> {
    let stage = dir.join("payload");
    recreate(&stage)?;
    add(&stage, programs.iter().map(PathBuf::as_path))?;
    for program in programs {
        // Symbols would only fill the guest's memory.
        check(
            Command::new("strip")
                .arg("--strip-debug")
                .arg(inside(&stage, program)),
        )?;
    }
    write(&stage.join("script"), script)?;
    pack(&stage, archive)
}

/// Packs one file, to lie at `to`.
pub(super) fn file(stage: &Path, from: &Path, to: &Path, archive: &Path) -> Result<()> {
    recreate(stage)?;
    let staged = inside(stage, to);
    let context = || format!("cannot copy {} to {}", from.display(), staged.display());
    if let Some(parent) = staged.parent() {
        fs::create_dir_all(parent).with_context(context)?;
    }
    fs::copy(from, &staged).with_context(context)?;
    pack(stage, archive)
}

/// The directories that Debian 12 has, with `/bin` and its like merged into `/usr`.
fn skeleton(stage: &Path) -> Result<()> {
    const DIRS: [&str; 17] = [
        "dev",
        "etc",
        "mnt",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "usr/bin",
        "usr/lib",
        "usr/lib64",
        "usr/sbin",
        "usr/share",
        "var/lib",
        "var/log",
        "var/tmp",
        "run/netns",
    ];
    recreate(stage)?;
    for dir in DIRS {
        let dir = stage.join(dir);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    for dir in MERGED {
        symlink(format!("usr/{dir}"), stage.join(dir))
            .with_context(|| format!("cannot link {dir}"))?;
    }
    symlink("/run", stage.join("var/run")).context("cannot link var/run")
}

/// Whether a file of a package does something in a router.
fn wanted(path: &str) -> bool {
    const USELESS: [&str; 9] = [
        "/usr/share/doc/",
        "/usr/share/man/",
        "/usr/share/locale/",
        "/usr/share/lintian/",
        "/usr/share/info/",
        "/usr/share/bug/",
        "/usr/share/bash-completion/",
        "/usr/share/menu/",
        "/lib/systemd/",
    ];
    !USELESS.iter().any(|useless| path.starts_with(useless))
}

/// Copies files, and the libraries that the programs among them need.
fn add<'a>(stage: &Path, files: impl Iterator<Item = &'a Path>) -> Result<()> {
    let mut programs = Vec::new();
    for file in files {
        copy(file, stage)?;
        if is_elf(file) {
            programs.push(file);
        }
    }
    for library in libraries(&programs)? {
        copy(&library, stage)?;
    }
    Ok(())
}

fn is_elf(file: &Path) -> bool {
    use std::io::Read as _;
    let mut start = [0; 4];
    file.is_file()
        && File::open(file)
            .and_then(|mut file| file.read_exact(&mut start))
            .is_ok()
        && start == *b"\x7fELF"
}

/// The shared libraries of programs, the loader among them, where the loader looks for them.
fn libraries(programs: &[&Path]) -> Result<BTreeSet<PathBuf>> {
    if programs.is_empty() {
        return Ok(BTreeSet::new());
    }
    // It fails for a static program among others, having printed the rest.
    let listed = Command::new("ldd")
        .args(programs)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .context("cannot run ldd")?;
    Ok(String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter(|line| line.starts_with('\t'))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect())
}

/// Where a path of this machine lies below `stage`.
fn inside(stage: &Path, path: &Path) -> PathBuf {
    let path = path.strip_prefix("/").unwrap_or(path);
    // A directory of an archive would replace the link that an earlier archive made.
    if MERGED.iter().any(|dir| path.starts_with(dir)) {
        stage.join("usr").join(path)
    } else {
        stage.join(path)
    }
}

/// Copies a file, or a symbolic link as what it leads to; a directory is made.
fn copy(file: &Path, stage: &Path) -> Result<()> {
    let to = inside(stage, file);
    if to.exists() {
        return Ok(());
    }
    let context = || format!("cannot copy {} to {}", file.display(), to.display());
    if file.is_dir() {
        return fs::create_dir_all(&to).with_context(context);
    }
    if !file.exists() {
        // Of a package, but removed on this machine.
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(context)?;
    }
    fs::copy(file, &to).map(drop).with_context(context)
}

/// Packs a directory as the kernel unpacks it (Documentation/driver-api/early-userspace); root owns all of
/// it then.
pub(super) fn pack(stage: &Path, archive: &Path) -> Result<()> {
    pack_by(stage, archive, &["--owner=+0:+0"])
}

/// Likewise; who owns a file here owns it there.
pub(super) fn pack_with_owners(stage: &Path, archive: &Path) -> Result<()> {
    pack_by(stage, archive, &[])
}

fn pack_by(stage: &Path, archive: &Path, options: &[&str]) -> Result<()> {
    let list = output(Command::new("find").arg(".").current_dir(stage))?;
    let listed = archive.with_extension("list");
    write(&listed, &list)?;
    let open = File::open(&listed).with_context(|| format!("cannot read {}", listed.display()))?;
    let status = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet"])
        .args(options)
        .current_dir(stage)
        .stdin(open)
        .stdout(
            File::create(archive).with_context(|| format!("cannot write {}", archive.display()))?,
        )
        .status()
        .context("cannot run cpio")?;
    ensure!(status.success(), "cpio failed ({status})");
    fs::remove_file(&listed).with_context(|| format!("cannot remove {}", listed.display()))?;
    fs::remove_dir_all(stage).with_context(|| format!("cannot remove {}", stage.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documentation_stays_behind() {
        assert!(wanted("/usr/bin/wg"));
        assert!(wanted("/usr/share/yang/frr-zebra.yang"));
        assert!(!wanted("/usr/share/doc/wireguard-tools/copyright"));
    }

    #[test]
    fn what_is_merged_into_usr_lies_there() {
        let stage = Path::new("/stage");
        assert_eq!(
            inside(stage, Path::new("/lib/a.so")),
            stage.join("usr/lib/a.so")
        );
        assert_eq!(
            inside(stage, Path::new("/library/a")),
            stage.join("library/a")
        );
    }

    #[test]
    fn a_program_comes_with_its_libraries() {
        let libraries = libraries(&[Path::new("/bin/ls")]).expect("ldd runs");
        assert!(
            libraries
                .iter()
                .any(|path| path.to_string_lossy().contains("libc.so")),
            "{libraries:?}"
        );
    }
}
