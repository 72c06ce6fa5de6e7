//! What the host says of a configuration, and whether it can run netbond at all.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use netbond_common::names::feature;
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    net::if_::if_nametoindex,
    sys::{statfs, utsname::uname},
};

use crate::{
    config::{Config, Metrics, Problem},
    loader::{OBJECT, load_programs, loader},
    pins::Pins,
};

/// One thing that netbond needs of the host.
pub struct Ability {
    pub name: &'static str,
    /// What was found, or what is missing and what to do.
    pub result: Result<String, String>,
}

/// What a configuration names that is not on this host now. A controller starts all the same, as
/// devices may come later.
///
/// # Errors
///
/// Where the host's addresses cannot be read.
pub fn host(config: &Config) -> Result<Vec<Problem>> {
    let addresses: Vec<IpAddr> = getifaddrs()
        .context("reading the host's addresses")?
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address
                .as_sockaddr_in()
                .map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| {
                address
                    .as_sockaddr_in6()
                    .map(|address| IpAddr::V6(address.ip()))
            })
        })
        .collect();
    let mut problems = Vec::new();
    if let Some(Metrics { listen, line }) = config.metrics
        && !listen.ip().is_unspecified()
        && !addresses.contains(&listen.ip())
    {
        problems.push(Problem {
            line,
            message: format!(
                "metrics: {} is on no interface, so that nobody reaches it; add it with `ip address \
                 add`, or correct it",
                listen.ip()
            ),
        });
    }
    for path in config.bonds.iter().flat_map(|bond| &bond.paths) {
        if let Some(device) = &path.device
            && if_nametoindex(device.as_str()) == Err(Errno::ENODEV)
        {
            problems.push(Problem {
                line: path.line,
                message: format!(
                    "path \"{}\": device {device} does not exist; create it, or name another one",
                    path.name
                ),
            });
        }
        if !addresses.contains(&path.local) {
            problems.push(Problem {
                line: path.line,
                message: format!(
                    "path \"{}\": local {} is on no interface; add it with `ip address add`, or \
                     correct it",
                    path.name, path.local
                ),
            });
        }
    }
    Ok(problems)
}

/// What is allowed, and should be known all the same.
#[must_use]
pub fn warnings(config: &Config) -> Vec<Problem> {
    let exposed = |metrics: &Metrics| !metrics.listen.ip().to_canonical().is_loopback();
    let exposed = config.metrics.filter(exposed);
    let warning = |Metrics { listen, line }| Problem {
        line,
        message: format!(
            "metrics: whoever reaches {listen} may read them, without a password: let a firewall pass \
             only Prometheus, or listen on a loopback address"
        ),
    };
    exposed.map(warning).into_iter().collect()
}

/// What netbond needs of the host, found or missing.
#[must_use]
pub fn abilities(pins: &Pins) -> Vec<Ability> {
    vec![
        Ability {
            name: "kernel",
            result: kernel(),
        },
        Ability {
            name: "capabilities",
            result: capabilities(),
        },
        Ability {
            name: "bpffs",
            result: bpffs(pins),
        },
        Ability {
            name: "programs",
            result: programs(),
        },
    ]
}

fn kernel() -> Result<String, String> {
    let name = uname().map_err(|errno| errno.to_string())?;
    let release = name.release().to_string_lossy().into_owned();
    let mut parts = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version < (6, 1) {
        return Err(format!(
            "Linux {release}: netbond is tested from 6.1 on; use a newer kernel"
        ));
    }
    let hook = if version < (6, 6) {
        "clsact filters"
    } else {
        "tcx links"
    };
    Ok(format!("Linux {release}: {hook}"))
}

fn capabilities() -> Result<String, String> {
    const WANTED: [(&str, u32); 4] = [
        ("CAP_NET_ADMIN", 12),
        ("CAP_NET_RAW", 13),
        ("CAP_PERFMON", 38),
        ("CAP_BPF", 39),
    ];
    /// Implies those of the last two (capabilities(7)).
    const SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .ok_or("no CapEff in /proc/self/status")?;
    let has = |bit: u32| effective & 1 << bit != 0;
    let missing: Vec<&str> = WANTED
        .iter()
        .filter(|(_, bit)| !(has(*bit) || *bit > SYS_ADMIN && has(SYS_ADMIN)))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        Ok(WANTED.map(|(name, _)| name).join(", "))
    } else {
        Err(format!("{} missing: run as root", missing.join(", ")))
    }
}

fn bpffs(pins: &Pins) -> Result<String, String> {
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
        Some(_) | None => Err(format!(
            "no bpffs on {place}: mount it with `mount -t bpf bpf {place}`"
        )),
    }
}

/// Loads the programs, those of every mode, attaches none, and lets them go again.
fn programs() -> Result<String, String> {
    for features in [0, feature::ALL] {
        let mut ebpf = loader(&features)
            .load(OBJECT)
            .map_err(|error| format!("maps refused: {error}"))?;
        load_programs(&mut ebpf, features).map_err(|error| format!("{error:#}"))?;
    }
    Ok("accepted by the kernel's verifier".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str) -> Config {
        Config::parse(&format!("[metrics]\nlisten = {listen}\n"), "f").expect("a good file")
    }

    #[test]
    fn metrics_for_everybody_are_warned_of() {
        let warned = |listen: &str| !warnings(&config(listen)).is_empty();
        for loopback in [
            "9469",
            "'127.0.0.9:1'",
            "'[::1]:1'",
            "'[::ffff:127.0.0.1]:1'",
        ] {
            assert!(!warned(loopback), "{loopback}");
        }
        for exposed in ["'0.0.0.0:1'", "'[::]:1'", "'10.0.0.1:1'", "'[fd00::1]:1'"] {
            assert!(warned(exposed), "{exposed}");
        }
        assert!(warnings(&Config::parse("", "f").expect("a good file")).is_empty());
        let [warning] = &warnings(&config("'0.0.0.0:9469'"))[..] else {
            panic!("one warning");
        };
        assert_eq!(warning.line, 2);
        assert!(
            warning.message.contains("0.0.0.0:9469"),
            "{}",
            warning.message
        );
    }

    #[test]
    fn an_address_of_no_interface_is_found() {
        let found = |listen: &str| host(&config(listen)).expect("the host's addresses").len();
        assert_eq!(found("'192.0.2.1:9469'"), 1);
        assert_eq!(found("'0.0.0.0:9469'") + found("9469"), 0);
    }
}
