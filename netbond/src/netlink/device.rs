//! The bond device: a veth pair whose one end, the bond, the user routes into. Its peer only serves
//! to put received packets onto the bond.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, bail, ensure};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage,
};
use rtnetlink::{AddressMessageBuilder, Handle, LinkUnspec, LinkVeth};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::link::{self, LinkDetails};
use super::route::RouteQuery;
use super::socket::RequestSocket;
use crate::control::event::Link;
use crate::random;

/// Bytes of a device name without its NUL (IFNAMSIZ - 1).
const NAME: usize = 15;

/// What the bond device shall be.
#[derive(Clone, Copy, Debug)]
pub struct BondSpec<'a> {
    pub name: &'a str,
    /// The name of the other end.
    pub peer_name: &'a str,
    /// Whether neighbours are resolved by ARP and ND, which needs an IPv6 link-local address: for
    /// `gretap`; in `gre` encap there is one neighbour and frames have no use for addresses
    /// (IFF_NOARP).
    pub arp: bool,
}

/// The veth pair of a bond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BondDevice {
    pub ifindex: u32,
    pub peer_ifindex: u32,
    /// Of the bond end.
    pub mac: [u8; 6],
    /// False where the pair was there already and is adopted.
    pub created: bool,
    /// As it is now, see [`BondSpec::arp`].
    pub arp: bool,
}

/// Reads and changes links and addresses of one network namespace.
pub struct Netlink {
    pub(super) handle: Handle,
    pub(super) requests: RequestSocket,
    pub(super) routes: RouteQuery,
    connection: JoinHandle<()>,
}

/// An Ethernet address for a device: locally administered, and nobody else's. To a device whose address the kernel
/// made up udev gives another one a moment later (MACAddressPolicy of systemd.link), not to one with its user's.
fn own_address() -> io::Result<[u8; 6]> {
    let [first, rest @ ..] = random::bytes::<6>()?;
    let [b, c, d, e, f] = rest;
    Ok([first & !GROUP | LOCAL, b, c, d, e, f])
}

/// Bits of the first byte of an Ethernet address (IEEE 802, 8.4).
const GROUP: u8 = 1 << 0;
const LOCAL: u8 = 1 << 1;

impl Netlink {
    /// Opens its sockets in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel refuses a socket.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open() -> anyhow::Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("cannot open a netlink socket")?;
        let requests = RequestSocket::open().context("cannot open a netlink socket")?;
        let routes = RouteQuery::open().context("cannot open a netlink socket")?;
        Ok(Self {
            handle,
            requests,
            routes,
            connection: tokio::spawn(connection),
        })
    }

    /// The link of that name.
    ///
    /// # Errors
    /// The kernel cannot tell.
    pub fn link_by_name(&mut self, name: &str) -> anyhow::Result<Option<Link>> {
        Ok(self.details_by_name(name)?.map(|details| details.link))
    }

    /// The link with that index.
    ///
    /// # Errors
    /// The kernel cannot tell.
    pub fn link_by_index(&mut self, ifindex: u32) -> anyhow::Result<Option<Link>> {
        let details = link::by_index(&mut self.requests, ifindex)
            .with_context(|| format!("cannot look up the device with index {ifindex}"))?;
        Ok(details.map(|details| details.link))
    }

    /// Creates the veth pair, both ends down, or adopts the one that is there as it is, up or down.
    /// Nothing leaves the peer end by itself, and without ARP no link-local address or router
    /// solicitation arises on the bond end.
    ///
    /// # Errors
    /// A name is taken by another device, or the kernel refuses a change.
    pub async fn ensure_bond_device(&mut self, spec: BondSpec<'_>) -> anyhow::Result<BondDevice> {
        let BondSpec {
            name,
            peer_name,
            arp,
        } = spec;
        for name in [name, peer_name] {
            ensure!(
                (1..=NAME).contains(&name.len()),
                "device name '{name}' has {} bytes; choose one of 1 to {NAME}",
                name.len()
            );
        }
        let ends = (
            self.details_by_name(name)?,
            self.details_by_name(peer_name)?,
        );
        let created = match &ends {
            (None, None) => true,
            (Some(bond), peer) => {
                check_adoptable(bond, peer.as_ref(), peer_name)?;
                false
            }
            (None, Some(peer)) => bail!(
                "device '{peer_name}' ({}) exists, but bond device '{name}' needs that name for \
                 its other end: rename or delete '{peer_name}', or choose another bond name",
                describe(peer)
            ),
        };
        if created {
            let address = own_address().context("reading /dev/urandom")?;
            let pair = LinkVeth::new(name, peer_name).address(address.to_vec());
            self.handle
                .link()
                .add(pair.build())
                .execute()
                .await
                .map_err(explain)
                .with_context(|| format!("cannot create bond device '{name}' (a veth pair)"))?;
            info!(name, peer_name, "bond device created");
        }
        let (Some(bond), Some(peer)) = (
            self.details_by_name(name)?,
            self.details_by_name(peer_name)?,
        ) else {
            bail!("bond device '{name}' or its other end '{peer_name}' vanished; start again");
        };
        let Some(mac) = bond.link.mac else {
            bail!("bond device '{name}' has no Ethernet address; delete it and start again");
        };
        let device = BondDevice {
            ifindex: bond.link.ifindex,
            peer_ifindex: peer.link.ifindex,
            mac,
            created,
            arp: bond.arp,
        };
        self.set_arp(device, arp).await
    }

    /// Has the bond device resolve neighbours, or not; returns it as it is then.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn set_arp(&mut self, device: BondDevice, arp: bool) -> anyhow::Result<BondDevice> {
        let BondDevice {
            ifindex, created, ..
        } = device;
        let changes = arp != device.arp;
        self.change(LinkUnspec::new_with_index(ifindex).arp(arp).build())
            .await
            .context("cannot set ARP of the bond device")?;
        let device = BondDevice { arp, ..device };
        self.quieten(device).await?;
        // What a user changed since is left as it is.
        if arp && (created || changes) {
            self.set_address_mode(ifindex, In6AddrGenMode::Eui64)
                .await?;
        }
        // The kernel makes the address when a device comes up, and never takes it away. Where IPv6 is
        // switched off there is none.
        let link_local = (link_local(device.mac).into(), 64);
        if changes && !arp {
            let _ = self.remove_address(ifindex, link_local).await;
        } else if changes && !created {
            let _ = self.add_address(ifindex, link_local).await;
        }
        Ok(device)
    }

    /// Sets the MTU of both ends, bytes of network-layer packet.
    ///
    /// # Errors
    /// The kernel refuses, as it does for an MTU that is too small or too large.
    pub async fn set_mtu(&mut self, device: BondDevice, mtu: u32) -> anyhow::Result<()> {
        for ifindex in [device.peer_ifindex, device.ifindex] {
            self.change(LinkUnspec::new_with_index(ifindex).mtu(mtu).build())
                .await
                .with_context(|| format!("cannot set the bond device's MTU to {mtu}"))?;
        }
        // Below 1280 IPv6 leaves a device, and it comes back with its defaults.
        self.quieten(device).await
    }

    /// Sets both ends up; the peer first, so that the bond has a carrier when it comes up.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn set_up(&mut self, device: BondDevice) -> anyhow::Result<()> {
        for ifindex in [device.peer_ifindex, device.ifindex] {
            self.change(LinkUnspec::new_with_index(ifindex).up().build())
                .await
                .context("cannot set the bond device up")?;
        }
        Ok(())
    }

    /// Gives a device the `wanted` addresses (with prefix lengths), and takes those of `earlier`
    /// that are no longer wanted; addresses in neither list are left alone.
    ///
    /// # Errors
    /// The kernel refuses an address.
    pub async fn set_addresses(
        &mut self,
        ifindex: u32,
        wanted: &[(IpAddr, u8)],
        earlier: &[(IpAddr, u8)],
    ) -> anyhow::Result<()> {
        // The kernel lists the addresses of all devices: done only where it matters.
        let unwanted: Vec<(IpAddr, u8)> = earlier
            .iter()
            .copied()
            .filter(|address| !wanted.contains(address))
            .collect();
        // Removing goes first: with its primary address IPv4 removes all others of that prefix
        // (net.ipv4.conf.*.promote_secondaries=0).
        if !unwanted.is_empty() {
            let present =
                link::dump_addresses(&mut self.requests).context("cannot list addresses")?;
            for (address, prefix) in unwanted {
                let there = present.contains(&link::DeviceAddress {
                    ifindex,
                    address,
                    prefix,
                });
                if there {
                    self.remove_address(ifindex, (address, prefix)).await?;
                }
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let present = link::dump_addresses(&mut self.requests).context("cannot list addresses")?;
        for &(address, prefix) in wanted {
            let there = present.contains(&link::DeviceAddress {
                ifindex,
                address,
                prefix,
            });
            if there {
                continue;
            }
            self.add_address(ifindex, (address, prefix)).await?;
        }
        Ok(())
    }

    async fn add_address(
        &mut self,
        ifindex: u32,
        (address, prefix): (IpAddr, u8),
    ) -> anyhow::Result<()> {
        self.handle
            .address()
            .add(ifindex, address, prefix)
            .replace()
            .execute()
            .await
            .map_err(explain)
            .with_context(|| format!("cannot add address {address}/{prefix} to the bond"))
    }

    /// Deletes a device, and with an end of a veth pair the other one. Absent is fine.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn delete_device(&mut self, ifindex: u32) -> anyhow::Result<()> {
        match self.handle.link().del(ifindex).execute().await {
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(()),
            done => done
                .map_err(explain)
                .with_context(|| format!("cannot delete the device with index {ifindex}")),
        }
    }

    async fn remove_address(
        &mut self,
        ifindex: u32,
        (address, prefix): (IpAddr, u8),
    ) -> anyhow::Result<()> {
        let message = match address {
            IpAddr::V4(v4) => AddressMessageBuilder::<Ipv4Addr>::new()
                .index(ifindex)
                .address(v4, prefix)
                .build(),
            IpAddr::V6(v6) => AddressMessageBuilder::<Ipv6Addr>::new()
                .index(ifindex)
                .address(v6, prefix)
                .build(),
        };
        match self.handle.address().del(message).execute().await {
            // It went with its primary address, or somebody was faster.
            Err(error) if errno(&error) == Some(libc::EADDRNOTAVAIL) => Ok(()),
            done => done
                .map_err(explain)
                .with_context(|| format!("cannot remove address {address}/{prefix}")),
        }
    }

    /// Keeps IPv6 from speaking by itself: no link-local address on either end, hence no router
    /// solicitation, and no IPv6 at all on the peer, which as a router would report its multicast
    /// groups from the unspecified address (RFC 3810, MLDv2). A bond end that resolves neighbours may
    /// speak.
    async fn quieten(&mut self, device: BondDevice) -> anyhow::Result<()> {
        let bond = (!device.arp).then_some(device.ifindex);
        for ifindex in bond.into_iter().chain([device.peer_ifindex]) {
            self.set_address_mode(ifindex, In6AddrGenMode::None).await?;
        }
        if let Some(peer) = self.link_by_index(device.peer_ifindex)? {
            disable_ipv6(&peer.name);
        }
        Ok(())
    }

    /// Sets how a device comes to its IPv6 link-local address.
    async fn set_address_mode(&mut self, ifindex: u32, mode: In6AddrGenMode) -> anyhow::Result<()> {
        let mode = AfSpecInet6::AddrGenMode(mode);
        let spec = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Unspec;
        message.header.index = ifindex;
        message.attributes.push(spec);
        match self.handle.link().change(message).execute().await {
            // A kernel without IPv6, or an MTU below its minimum.
            Err(error) if errno(&error) == Some(libc::EAFNOSUPPORT) => Ok(()),
            done => done
                .map_err(explain)
                .context("cannot switch IPv6 link-local addresses of the bond device"),
        }
    }

    /// Changes an existing link.
    async fn change(&mut self, message: LinkMessage) -> anyhow::Result<()> {
        self.handle
            .link()
            .change(message)
            .execute()
            .await
            .map_err(explain)
    }

    fn details_by_name(&mut self, name: &str) -> anyhow::Result<Option<LinkDetails>> {
        link::by_name(&mut self.requests, name)
            .with_context(|| format!("cannot look up device '{name}'"))
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The IPv6 link-local address that goes with an Ethernet address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let pair = |high, low| u16::from_be_bytes([high, low]);
    let (first, second) = (pair(a ^ 0b10, b), pair(c, 0xff));
    Ipv6Addr::new(0xfe80, 0, 0, 0, first, second, pair(0xfe, d), pair(e, f))
}

/// An existing device serves as the bond if it is the pair that netbond would have made.
fn check_adoptable(
    bond: &LinkDetails,
    peer: Option<&LinkDetails>,
    peer_name: &str,
) -> anyhow::Result<()> {
    let name = &bond.link.name;
    ensure!(
        bond.kind == "veth",
        "device '{name}' exists and is no veth pair but {}: rename or delete it, or choose another \
         bond name",
        describe(bond)
    );
    let paired = peer.is_some_and(|peer| {
        peer.kind == "veth"
            && bond.peer == Some(peer.link.ifindex)
            && peer.peer == Some(bond.link.ifindex)
    });
    ensure!(
        paired,
        "veth device '{name}' exists, but its other end is not '{peer_name}' in this network \
         namespace: delete it (ip link del {name}) if nothing else uses it, or choose another bond \
         name"
    );
    Ok(())
}

fn describe(details: &LinkDetails) -> String {
    match details.kind.as_str() {
        "" => "a hardware or loopback device".to_owned(),
        kind => format!("a device of kind '{kind}'"),
    }
}

/// Writes the peer's disable_ipv6; a bond works without it, so failing is only told.
fn disable_ipv6(name: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match std::fs::write(&path, "1") {
        Ok(()) => {}
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => warn!(
            "cannot write {path} ({error}): multicast reports of this router's IPv6 may appear on the bond \
             as received; make /proc/sys writable for netbond"
        ),
    }
}

/// The positive errno of the kernel's answer.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only the kernel's answers have an errno"
    )]
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

/// The kernel's answer in the words of strerror(3), and what to do where that is known.
pub(super) fn explain(error: rtnetlink::Error) -> anyhow::Error {
    match errno(&error) {
        Some(libc::EPERM) => {
            anyhow::anyhow!("operation not permitted: run netbond as root or with CAP_NET_ADMIN")
        }
        Some(libc::EOPNOTSUPP) => {
            anyhow::anyhow!("not supported by this kernel: is the veth module missing?")
        }
        Some(errno) => io::Error::from_raw_os_error(errno).into(),
        None => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::netlink::netns::{in_netns, ip, ip_show, sysctl};

    const SPEC: BondSpec<'_> = BondSpec {
        name: "nb0",
        peer_name: "nb0x",
        arp: false,
    };

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn a_bond_device_is_created_and_adopted() {
        in_netns(async || {
            let mut netlink = Netlink::open().unwrap();
            assert_eq!(netlink.link_by_name("nb0").unwrap(), None);
            let device = netlink.ensure_bond_device(SPEC).await.unwrap();
            assert!(device.created);
            let link = netlink.link_by_name("nb0").unwrap().unwrap();
            assert_eq!(
                (link.ifindex, link.up, link.mac),
                (device.ifindex, false, Some(device.mac))
            );
            let peer = netlink.link_by_index(device.peer_ifindex).unwrap().unwrap();
            assert_eq!((peer.name.as_str(), peer.up), ("nb0x", false));
            let shown = ip_show("-d link show nb0");
            assert!(
                shown.contains("NOARP") && shown.contains("addrgenmode none"),
                "{shown}"
            );
            let shown = ip_show("-d link show nb0x");
            assert!(shown.contains("addrgenmode none"), "{shown}");

            netlink.set_mtu(device, 1396).await.unwrap();
            netlink.set_up(device).await.unwrap();
            // The kernel's link watch sets IFF_RUNNING a little later.
            let begin = Instant::now();
            for index in [device.ifindex, device.peer_ifindex] {
                let mut link = netlink.link_by_index(index).unwrap().unwrap();
                while !link.up && begin.elapsed() < Duration::from_secs(5) {
                    link = netlink.link_by_index(index).unwrap().unwrap();
                }
                assert_eq!((link.mtu, link.up), (1396, true));
            }

            // A restarted daemon takes over, without a moment of down; ARP may change.
            let again = BondSpec { arp: true, ..SPEC };
            let adopted = netlink.ensure_bond_device(again).await.unwrap();
            assert_eq!(
                adopted,
                BondDevice {
                    created: false,
                    arp: true,
                    ..device
                }
            );
            assert!(netlink.link_by_index(device.ifindex).unwrap().unwrap().up);
            assert!(!ip_show("link show nb0").contains("NOARP"));
            // ND needs a link-local address; it goes with ARP.
            assert!(ip_show("-6 addr show dev nb0").contains("fe80::"));
            assert!(ip_show("-d link show nb0").contains("addrgenmode eui64"));
            ip("link set nb0 addrgenmode none");
            netlink.ensure_bond_device(again).await.unwrap();
            let shown = ip_show("-d link show nb0");
            assert!(shown.contains("addrgenmode none"), "the user's: {shown}");
            netlink.ensure_bond_device(SPEC).await.unwrap();
            assert!(ip_show("link show nb0").contains("NOARP"));
            assert_eq!(ip_show("-6 addr show dev nb0"), "");

            netlink.delete_device(device.ifindex).await.unwrap();
            netlink.delete_device(device.ifindex).await.unwrap();
            assert_eq!(netlink.link_by_index(device.peer_ifindex).unwrap(), None);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn with_arp_it_has_the_link_local_address_of_its_own() {
        in_netns(async || {
            let mut netlink = Netlink::open().unwrap();
            let spec = BondSpec { arp: true, ..SPEC };
            let device = netlink.ensure_bond_device(spec).await.unwrap();
            netlink.set_mtu(device, 1402).await.unwrap();
            netlink.set_up(device).await.unwrap();
            let address = link_local(device.mac).to_string();
            let begin = Instant::now();
            while !ip_show("-6 addr show dev nb0").contains(&address) {
                assert!(begin.elapsed() < Duration::from_secs(5), "no {address}");
            }
            assert_eq!(ip_show("-6 addr show dev nb0x"), "");
        });
    }

    #[test]
    fn link_local_addresses_are_those_of_the_kernel() {
        let address = link_local([0x02, 0x6e, 0x62, 0x12, 0x34, 0x56]);
        assert_eq!(address.to_string(), "fe80::6e:62ff:fe12:3456");
    }

    /// The error of `ensure_bond_device` after `ip` made what is in the way.
    async fn refused(commands: &[&str]) -> String {
        for command in commands {
            ip(command);
        }
        let mut netlink = Netlink::open().unwrap();
        let error = netlink.ensure_bond_device(SPEC).await.unwrap_err();
        format!("{error:#}")
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn another_device_of_that_name_is_left_alone() {
        in_netns(async || {
            let error = refused(&["link add nb0 type bridge"]).await;
            assert!(
                error.contains("of kind 'bridge'") && error.contains("rename"),
                "{error}"
            );
            let error = refused(&["link del nb0", "link add nb0x type bridge"]).await;
            assert!(
                error.contains("needs that name for its other end"),
                "{error}"
            );
            let error = refused(&["link add nb0 type veth peer name other"]).await;
            assert!(error.contains("its other end is not 'nb0x'"), "{error}");
            // Two pairs, crosswise.
            let error = refused(&["link del nb0x", "link add nb0x type veth peer name o2"]).await;
            assert!(error.contains("its other end is not 'nb0x'"), "{error}");
            assert!(ip_show("link show nb0").contains("nb0@other"));

            let mut netlink = Netlink::open().unwrap();
            let long = BondSpec {
                name: "sixteen-letters-",
                ..SPEC
            };
            let error = netlink
                .ensure_bond_device(long)
                .await
                .unwrap_err()
                .to_string();
            assert!(error.contains("has 16 bytes"), "{error}");
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn addresses_come_and_go() {
        in_netns(async || {
            let mut netlink = Netlink::open().unwrap();
            let device = netlink.ensure_bond_device(SPEC).await.unwrap();
            netlink.set_up(device).await.unwrap();
            // Somebody else's stays.
            ip("addr add 192.0.2.1/32 dev nb0");
            let at = |text: &str, prefix| (text.parse::<IpAddr>().unwrap(), prefix);
            let first = [at("10.67.0.1", 24), at("10.67.0.9", 24), at("fd67::1", 64)];
            for _ in 0..2 {
                netlink
                    .set_addresses(device.ifindex, &first, &first)
                    .await
                    .unwrap();
                let shown = ip_show("-o addr show dev nb0");
                for text in ["192.0.2.1/32", "10.67.0.1/24", "10.67.0.9/24", "fd67::1/64"] {
                    assert!(shown.contains(text), "{shown}");
                }
            }
            // NOARP: no duplicate address detection (RFC 4862, 5.4), which would take a second; only
            // the kernel's worker must have run.
            let begin = Instant::now();
            while ip_show("-o addr show dev nb0").contains("tentative") {
                assert!(begin.elapsed() < Duration::from_millis(800));
            }
            // The primary goes; the secondary that goes with it is wanted and comes back.
            let second = [at("10.67.0.9", 24)];
            netlink
                .set_addresses(device.ifindex, &second, &first)
                .await
                .unwrap();
            let shown = ip_show("-o addr show dev nb0");
            assert!(
                shown.contains("10.67.0.9/24") && shown.contains("192.0.2.1/32"),
                "{shown}"
            );
            assert!(
                !shown.contains("10.67.0.1/") && !shown.contains("fd67"),
                "{shown}"
            );
            // Absent already.
            netlink
                .set_addresses(device.ifindex, &[], &first)
                .await
                .unwrap();
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn nothing_leaves_the_peer_by_itself() {
        in_netns(async || {
            // A router joins more groups and would report them.
            sysctl("net/ipv6/conf/all/forwarding", "1");
            sysctl("net/ipv6/conf/default/forwarding", "1");
            let mut netlink = Netlink::open().unwrap();
            let device = netlink.ensure_bond_device(SPEC).await.unwrap();
            netlink.set_mtu(device, 1396).await.unwrap();
            // An MTU without IPv6, and back.
            netlink.set_mtu(device, 1000).await.unwrap();
            netlink.set_mtu(device, 1396).await.unwrap();
            netlink.set_up(device).await.unwrap();
            // Reports and solicitations start within a second (RFC 3810 9.11, RFC 4861 10): there
            // is no event to await for a packet that does not come.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let sent = |name: &str| {
                // This thread's namespace is not that of the process.
                let counters = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
                let line = counters
                    .lines()
                    .find(|line| line.trim().starts_with(name))
                    .unwrap();
                // Eight counters of what was received; then what was sent: bytes, packets.
                let packets = line
                    .split_once(':')
                    .unwrap()
                    .1
                    .split_whitespace()
                    .nth(9)
                    .unwrap();
                packets.parse::<u64>().unwrap()
            };
            assert_eq!(sent("nb0x:"), 0);
            let shown = ip_show("-o -6 addr show");
            assert!(!shown.contains("nb0"), "{shown}");
        });
    }
}
