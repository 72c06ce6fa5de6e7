//! Settings of the kernel's IP stack (Documentation/networking/ip-sysctl.rst), and what it dropped for
//! them.

use std::collections::BTreeMap;
use std::fs;

/// Settings by device. A device that is not there has those that new ones get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::check) struct Settings {
    /// Whether packets that come in on a device are forwarded, by family. IPv6 has one switch for all
    /// devices (ip6_forward in net/ipv6/ip6_output.c).
    pub(in crate::check) forwarding: BTreeMap<(Family, String), bool>,
    /// rp_filter as it holds: the greater of the device's own and that of `all`. 0: off, 1: strict,
    /// 2: loose.
    pub(in crate::check) rp_filter: BTreeMap<String, u8>,
    /// Packets that strict or loose rp_filter dropped, on any device (IPReversePathFilter).
    pub(in crate::check) rp_filter_drops: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::check) enum Family {
    V4,
    V6,
}

impl Family {
    pub(in crate::check) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Its directory below `/proc/sys/net`.
    pub(in crate::check) const fn directory(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

impl Settings {
    /// Reads those of the given devices; rp_filter of every device, as drops are counted for all.
    pub(in crate::check) fn read(devices: &[String]) -> Self {
        let mut settings = Self {
            rp_filter_drops: fs::read_to_string("/proc/self/net/netstat")
                .ok()
                .and_then(|text| counter(&text, "IPReversePathFilter"))
                .unwrap_or(0),
            ..Self::default()
        };
        for device in devices {
            for family in Family::ALL {
                let value = match family {
                    Family::V4 => of_device(family, device, "forwarding"),
                    Family::V6 => setting(family, "all", "forwarding"),
                };
                if let Some(value) = value {
                    let key = (family, device.clone());
                    settings.forwarding.insert(key, value != 0);
                }
            }
        }
        let all = setting(Family::V4, "all", "rp_filter").unwrap_or(0);
        let existing = fs::read_dir("/proc/sys/net/ipv4/conf")
            .into_iter()
            .flatten();
        let existing = existing.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let named = devices.iter().cloned();
        for device in existing.chain(named) {
            if ["all", "default", "lo"].contains(&device.as_str()) {
                continue;
            }
            if let Some(own) = of_device(Family::V4, &device, "rp_filter") {
                settings.rp_filter.insert(device, own.max(all));
            }
        }
        settings
    }
}

fn of_device(family: Family, device: &str, name: &str) -> Option<u8> {
    setting(family, device, name).or_else(|| setting(family, "default", name))
}

fn setting(family: Family, device: &str, name: &str) -> Option<u8> {
    let family = family.directory();
    let path = format!("/proc/sys/net/{family}/conf/{device}/{name}");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A counter of /proc/net/netstat: lines in pairs, the first of which has the names.
fn counter(text: &str, name: &str) -> Option<u64> {
    let lines: Vec<&str> = text.lines().collect();
    lines.chunks_exact(2).find_map(|pair| {
        let at = pair[0].split_whitespace().position(|word| word == name)?;
        pair[1].split_whitespace().nth(at)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_its_name() {
        let text = "TcpExt: SyncookiesSent IPReversePathFilter PAWSActive\nTcpExt: 1 77 3\n\
                    IpExt: InNoRoutes InTruncatedPkts\nIpExt: 5 6\n";
        assert_eq!(counter(text, "IPReversePathFilter"), Some(77));
        assert_eq!(counter(text, "InTruncatedPkts"), Some(6));
        assert_eq!(counter(text, "None"), None);
        assert_eq!(counter("TcpExt: A B\nTcpExt: 1\n", "B"), None);
    }
}
