//! Kernels for the VM: Debian's packages, unpacked and made ready to boot.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use super::root;
use crate::apt::Apt;
use crate::command::{check, find_program, output, shown};
use crate::files::{recreate, write};

/// The package that depends on the current kernel of its suite, of the flavour for virtual machines.
const METAPACKAGE: &str = "linux-image-cloud-amd64";

/// The suites that have kernels.
const SUITES: [&str; 4] = ["bookworm", "bookworm-backports", "trixie-backports", "sid"];

/// Which kernel a VM boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 12's own: clsact, no tcx
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's, from the backports to Debian 12
    #[value(name = "6.12")]
    V6_12,
    /// The highest version on the mirror
    #[value(name = "newest")]
    Newest,
}

impl Kernel {
    pub(crate) const ALL: [Self; 3] = [Self::V6_1, Self::V6_12, Self::Newest];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    /// The metapackage's version, of those on the mirror.
    fn choose(self, versions: &[String]) -> Option<&String> {
        let of_series = |series: &'static str| {
            versions
                .iter()
                .filter(move |version| version.starts_with(series))
                .min_by_key(|version| Reverse(numbers(version)))
        };
        match self {
            Self::V6_1 => of_series("6.1."),
            Self::V6_12 => of_series("6.12."),
            Self::Newest => of_series(""),
        }
    }
}

/// The numbers of an upstream version, to compare it by: `6.12.95-1~bpo12+1` is 6, 12, 95.
fn numbers(version: &str) -> Vec<u32> {
    version
        .split(['-', '~', '+'])
        .next()
        .unwrap_or_default()
        .split('.')
        .map_while(|number| number.parse().ok())
        .collect()
}

/// A kernel ready to boot.
pub(crate) struct Image {
    /// Such as `6.12.95+deb12-cloud-amd64`.
    pub(crate) release: String,
    /// Not compressed: it boots by PVH, without the seconds that decompression takes in emulation.
    pub(super) vmlinux: PathBuf,
    /// A cpio archive of the modules.
    pub(super) modules: PathBuf,
}

impl Image {
    fn at(dir: &Path, release: &str) -> Self {
        Self {
            release: release.to_owned(),
            vmlinux: dir.join("vmlinux"),
            modules: dir.join("modules.cpio"),
        }
    }

    /// The kernel kept in `dir`.
    pub(super) fn find(dir: &Path) -> Option<Self> {
        // Written last.
        let release = fs::read_to_string(dir.join("release")).ok()?;
        Some(Self::at(dir, release.trim()))
    }

    /// Downloads a kernel by way of package lists below `lists`, and makes it ready in `dir`.
    pub(super) fn fetch(kernel: Kernel, lists: &Path, dir: &Path) -> Result<Self> {
        let apt = Apt::open(lists, &SUITES)?;
        let versions = apt.versions(METAPACKAGE)?;
        let version = kernel.choose(&versions).with_context(|| {
            format!(
                "the mirror has no kernel {} ({METAPACKAGE}): it has {}",
                kernel.name(),
                versions.join(", ")
            )
        })?;
        let (release, packages) = packages(&apt, version)?;
        eprintln!("vm: downloading kernel {release}");
        recreate(dir)?;
        let unpacked = dir.join("unpacked");
        apt.unpack(&packages, &unpacked)?;

        let image = Self::at(dir, &release);
        // Newer packages keep it beside the modules.
        let compressed = [
            format!("boot/vmlinuz-{release}"),
            format!("usr/lib/modules/{release}/vmlinuz"),
        ]
        .map(|path| unpacked.join(path))
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("the packages of kernel {release} have no vmlinuz"))?;
        extract(&compressed, &image.vmlinux)?;
        modules(&unpacked, &release, &image.modules)?;
        fs::remove_dir_all(&unpacked)
            .with_context(|| format!("cannot remove {}", unpacked.display()))?;
        write(&dir.join("release"), &release)?;
        Ok(image)
    }
}

/// The kernel's release, and the packages it comes in, as `NAME=VERSION`.
fn packages(apt: &Apt, version: &str) -> Result<(String, Vec<String>)> {
    let first = apt
        .dependencies(METAPACKAGE, version)?
        .into_iter()
        .find(|name| {
            name.strip_prefix("linux-image-")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .with_context(|| format!("{METAPACKAGE} {version} depends on no kernel"))?;
    let release = first.trim_start_matches("linux-image-").to_owned();
    // Newer kernels come in parts: binary, modules, base.
    let mut found = BTreeSet::from([first.clone()]);
    let mut open = vec![first];
    while let Some(package) = open.pop() {
        for name in apt.dependencies(&package, version)? {
            if name.ends_with(&release) && found.insert(name.clone()) {
                open.push(name);
            }
        }
    }
    let packages = found
        .into_iter()
        .map(|name| format!("{name}={version}"))
        .collect();
    Ok((release, packages))
}

/// Takes the kernel proper out of a bzImage (Documentation/arch/x86/boot.rst, payload_offset).
fn extract(image: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let payload = payload(&bytes)
        .with_context(|| format!("{} is not a compressed x86 kernel", image.display()))?;
    let program: &[&str] = match payload {
        // Followed by its size, which xz would take for damage.
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            &["xz", "--decompress", "--stdout", "--single-stream"]
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => &["zstd", "--decompress", "--stdout", "--quiet"],
        // The legacy frame, also followed by its size.
        [0x02, 0x21, 0x4c, 0x18, ..] => &["lz4", "--decompress", "--stdout", "--quiet"],
        [0x1f, 0x8b, ..] => &["gzip", "--decompress", "--stdout"],
        _ => bail!("{} is compressed in an unknown way", image.display()),
    };
    let compressed = to.with_extension("compressed");
    fs::write(&compressed, payload)
        .with_context(|| format!("cannot write {}", compressed.display()))?;
    let open =
        |file: &Path| File::open(file).with_context(|| format!("cannot read {}", file.display()));
    // It complains of what follows the payload, after having written all: the result is looked at.
    let _ = Command::new(program[0])
        .args(&program[1..])
        .stdin(open(&compressed)?)
        .stdout(File::create(to).with_context(|| format!("cannot write {}", to.display()))?)
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", program[0]))?;
    fs::remove_file(&compressed)
        .with_context(|| format!("cannot remove {}", compressed.display()))?;
    let kernel = fs::read(to).with_context(|| format!("cannot read {}", to.display()))?;
    ensure!(
        kernel.starts_with(b"\x7fELF"),
        "no kernel came out of {}",
        image.display()
    );
    Ok(())
}

/// The compressed kernel within a bzImage.
fn payload(image: &[u8]) -> Option<&[u8]> {
    const SECTOR: usize = 512;
    let u32_at = |offset: usize| {
        let bytes = image.get(offset..offset + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * SECTOR + u32_at(0x248)?;
    image.get(start..start + u32_at(0x24c)?)
}

/// Packs the modules, not compressed: the guest's modprobe loads them when the kernel asks for them.
fn modules(unpacked: &Path, release: &str, archive: &Path) -> Result<()> {
    // What a router of the lab may use.
    const PARTS: [&str; 10] = [
        "kernel/arch/x86/crypto",
        "kernel/crypto",
        "kernel/drivers/char",
        "kernel/drivers/net",
        "kernel/drivers/ptp",
        "kernel/drivers/virtio",
        "kernel/fs/fuse",
        "kernel/lib",
        "kernel/net",
        "kernel/virt/lib",
    ];
    const LISTS: [&str; 3] = [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ];
    let tree = ["lib/modules", "usr/lib/modules"]
        .map(|dir| unpacked.join(dir).join(release))
        .into_iter()
        .find(|tree| tree.is_dir())
        .with_context(|| format!("the packages of kernel {release} have no modules"))?;
    let stage = unpacked.join("stage");
    let to = stage.join("usr/lib/modules").join(release);
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    for list in LISTS {
        fs::copy(tree.join(list), to.join(list))
            .with_context(|| format!("cannot copy {list} of kernel {release}"))?;
    }
    for part in PARTS.iter().filter(|part| tree.join(part).is_dir()) {
        let parent = to.join(part);
        let parent = parent.parent().unwrap_or(&to);
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        check(
            Command::new("cp")
                .args(["--recursive"])
                .arg(tree.join(part))
                .arg(parent),
        )?;
    }
    let stage_text = stage.display().to_string();
    for (suffix, program) in [("xz", "unxz"), ("zst", "zstd")] {
        let files =
            output(Command::new("find").args([&stage_text, "-name", &format!("*.ko.{suffix}")]))?;
        if files.is_empty() {
            continue;
        }
        let mut decompress = Command::new(program);
        if program == "zstd" {
            decompress.args(["--decompress", "--quiet", "--rm"]);
        }
        check(decompress.args(files.lines()))?;
    }
    let depmod = find_program("depmod").context("depmod is missing")?;
    let mut depmod = Command::new(depmod);
    // It warns of modules left out.
    depmod
        .args(["--basedir"])
        .arg(stage.join("usr"))
        .arg(release)
        .stderr(Stdio::null());
    ensure!(
        depmod.status().context("cannot run depmod")?.success(),
        "`{}` failed",
        shown(&depmod)
    );
    root::pack(&stage, archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_chosen_by_series_and_by_number() {
        let versions = [
            "6.12.95-1~bpo12+1",
            "6.1.176-1",
            "7.3.4-1~bpo13+1",
            "7.2.13-1",
            "6.1.9-1",
        ]
        .map(str::to_owned);
        let chosen = |kernel: Kernel| kernel.choose(&versions).map(String::as_str);
        assert_eq!(chosen(Kernel::V6_1), Some("6.1.176-1"));
        assert_eq!(chosen(Kernel::V6_12), Some("6.12.95-1~bpo12+1"));
        assert_eq!(chosen(Kernel::Newest), Some("7.3.4-1~bpo13+1"));
        assert_eq!(Kernel::V6_1.choose(&versions[..1]), None);
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        let mut image = vec![0; 4096];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&4_u32.to_le_bytes());
        image[3 * 512 + 16..3 * 512 + 20].copy_from_slice(b"core");
        assert_eq!(payload(&image), Some(&b"core"[..]));
        image[0x202] = b'x';
        assert_eq!(payload(&image), None);
        assert_eq!(payload(&image[..100]), None);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for kernel in Kernel::ALL {
            let value = kernel.to_possible_value().expect("no kernel is hidden");
            assert_eq!(value.get_name(), kernel.name());
        }
    }
}
