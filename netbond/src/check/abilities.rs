//! Whether the host can run netbond at all.

use nix::sys::{statfs, utsname::uname};

use super::Kind;
use crate::{
    config::{Bond, Config},
    loader::{OBJECT, load_programs, load_xdp, loader, verified_instructions, xdp},
    pins::Pins,
};

/// One thing that netbond needs of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ability {
    /// [`Kind::Kernel`], [`Kind::Capabilities`], [`Kind::Bpffs`] or [`Kind::Programs`].
    pub(super) kind: Kind,
    /// What was found, or what is missing.
    pub(super) result: Result<String, Missing>,
}

/// What the host lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) what: String,
    pub(super) remedy: String,
}

impl Missing {
    fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}

/// What netbond needs of the host, found or missing, for this configuration. Where capabilities are missing,
/// nothing is said of the programs.
pub(super) fn abilities(pins: &Pins, config: &Config) -> Vec<Ability> {
    let ability = |kind, result| Ability { kind, result };
    let capabilities = capabilities();
    // Without them the kernel refuses any program, and that would tell nothing of it.
    let programs = capabilities.is_ok().then(|| programs(config));
    let mut abilities = vec![
        ability(Kind::Kernel, kernel()),
        ability(Kind::Capabilities, capabilities),
        ability(Kind::Bpffs, bpffs(pins)),
    ];
    abilities.extend(programs.map(|programs| ability(Kind::Programs, programs)));
    abilities
}

fn kernel() -> Result<String, Missing> {
    let name = uname().map_err(|errno| {
        Missing::new(
            format!("uname(2) does not tell the kernel: {errno}"),
            "use Linux",
        )
    })?;
    let release = name.release().to_string_lossy().into_owned();
    let mut parts = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version < (6, 1) {
        return Err(Missing::new(
            format!("Linux {release} is older than those that netbond is tested on"),
            "use 6.1 or newer",
        ));
    }
    let hook = if version < (6, 6) {
        "clsact filters"
    } else {
        "tcx links"
    };
    Ok(format!("Linux {release}: {hook}"))
}

fn capabilities() -> Result<String, Missing> {
    const WANTED: [(&str, u32); 4] = [
        ("CAP_NET_ADMIN", 12),
        ("CAP_NET_RAW", 13),
        ("CAP_PERFMON", 38),
        ("CAP_BPF", 39),
    ];
    /// Implies those of the last two (capabilities(7)).
    const SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .ok_or_else(|| Missing::new("/proc/self/status tells no CapEff", "mount proc on /proc"))?;
    let has = |bit: u32| effective & 1 << bit != 0;
    let missing: Vec<&str> = WANTED
        .iter()
        .filter(|(_, bit)| !(has(*bit) || *bit > SYS_ADMIN && has(SYS_ADMIN)))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        Ok(WANTED.map(|(name, _)| name).join(", "))
    } else {
        Err(Missing::new(
            format!("{} missing", missing.join(", ")),
            "run as root",
        ))
    }
}

fn bpffs(pins: &Pins) -> Result<String, Missing> {
    /// BPF_FS_MAGIC of linux/magic.h.
    const MAGIC: statfs::FsType = statfs::FsType(0xcafe_4a11);
    let place = pins.root().parent().unwrap_or(pins.root()).display();
    let found = pins
        .root()
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .map(statfs::statfs);
    match found {
        Some(Ok(found)) if found.filesystem_type() == MAGIC => Ok(format!("mounted on {place}")),
        Some(_) | None => Err(Missing::new(
            format!("no bpffs on {place}"),
            format!("mount it: `mount -t bpf bpf {place}`"),
        )),
    }
}

/// Loads the programs, attaches none, and lets them go again.
fn programs(config: &Config) -> Result<String, Missing> {
    let features = config.features();
    let refused = |error: String| {
        Missing::new(
            format!("the kernel refuses the programs: {error}"),
            "with the capabilities it should take them: a kernel with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF \
             and CONFIG_NET_CLS_ACT, as distributions build it",
        )
    };
    let mut ebpf = loader(&features)
        .load(OBJECT)
        .map_err(|error| refused(error.to_string()))?;
    let mut load = || {
        let bonds = config.bonds.iter().map(Bond::features);
        load_programs(&mut ebpf, features, bonds)?;
        if config.bonds.iter().any(Bond::asks_for_xdp) {
            load_xdp(xdp(&mut ebpf)?)?;
        }
        Ok(())
    };
    load().map_err(|error: anyhow::Error| refused(format!("{error:#}")))?;
    let walked = match verified_instructions(&ebpf) {
        Ok(Some(instructions)) => format!(", which walked {instructions} instructions at the most"),
        // It is good to know, but no more.
        Ok(None) | Err(_) => String::new(),
    };
    Ok(format!("accepted by the kernel's verifier{walked}"))
}
