//! Devices and addresses of the host.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::migrate::Host;

/// Every device with its addresses: once for each, and once for itself.
#[derive(Clone, Debug, Default)]
pub(in crate::check) struct Interfaces(pub(in crate::check) Vec<Interface>);

/// A device, and one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::check) struct Interface {
    pub(in crate::check) name: String,
    /// IFF_UP.
    pub(in crate::check) up: bool,
    pub(in crate::check) address: Option<IpAddr>,
}

impl Interfaces {
    /// Those of a host.
    ///
    /// # Errors
    ///
    /// Where the kernel does not tell which are up.
    pub(in crate::check) fn read(host: &Host) -> Result<Self> {
        let flags = getifaddrs().context("reading the host's devices")?;
        let up = flags.filter(|one| one.flags.contains(InterfaceFlags::IFF_UP));
        let up: BTreeSet<String> = up.map(|one| one.interface_name).collect();
        Ok(Self::of(host, |name| up.contains(name)))
    }

    /// An address is its device's by the number: getifaddrs(3) tells a label, such as `eth0:1`.
    fn of(host: &Host, is_up: impl Fn(&str) -> bool) -> Self {
        let mut all = Vec::new();
        for device in &host.devices {
            let addresses = host.addresses.iter();
            let own = addresses.filter(|address| address.ifindex == device.ifindex);
            let own = own.map(|address| Some(address.own.address));
            all.extend(own.chain([None]).map(|address| Interface {
                name: device.name.clone(),
                up: is_up(&device.name),
                address,
            }));
        }
        Self(all)
    }

    /// The device that has an address.
    pub(in crate::check) fn with(&self, address: IpAddr) -> Option<&str> {
        let mut all = self.0.iter();
        let found = all.find(|interface| interface.address == Some(address))?;
        Some(&found.name)
    }

    /// Whether a device is set up; `None` where there is none of this name.
    pub(in crate::check) fn is_up(&self, name: &str) -> Option<bool> {
        let mut all = self.0.iter();
        Some(all.find(|interface| interface.name == name)?.up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::sample;
    use crate::netlink::inventory;
    use crate::netlink::netns::{in_netns, ip};

    #[test]
    fn addresses_are_of_devices() {
        let host = sample::facts().host;
        let interfaces = Interfaces::of(&host, |name| name == "wg-a-m1");
        assert_eq!(interfaces.with([10, 65, 0, 14].into()), Some("wg-a-m2"));
        assert_eq!(interfaces.with([10, 65, 0, 15].into()), None);
        assert_eq!(interfaces.is_up("wg-a-m1"), Some(true));
        // Without an address.
        assert_eq!(interfaces.is_up("u-a-m1"), Some(false));
        assert_eq!(interfaces.is_up("missing"), None);
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn a_labelled_address_is_its_devices() {
        in_netns(async || {
            ip("link add b0 type veth peer name b1");
            ip("address add 10.67.0.1/24 dev b0 label b0:1");
            ip("link set b0 up");
            let host = inventory::devices_and_addresses().unwrap();
            let interfaces = Interfaces::read(&host).unwrap();
            assert_eq!(interfaces.with([10, 67, 0, 1].into()), Some("b0"));
            assert_eq!(interfaces.is_up("b0"), Some(true));
            assert_eq!(interfaces.is_up("b1"), Some(false));
            assert_eq!(interfaces.is_up("b0:1"), None);
        });
    }
}
