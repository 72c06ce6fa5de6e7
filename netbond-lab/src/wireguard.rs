//! The WireGuard devices of a router, by the kernel or in user space.

use std::env;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use gotatun::x25519::{PublicKey, StaticSecret};
use serde::{Deserialize, Serialize};

use crate::anchor;
use crate::namespace::{ip, ip_batch};
use crate::router::Router;
use crate::topology::{LinkKind, LocalEnd, Topology, link_device};
use crate::wait::wait_for;

/// Seconds between keepalives: the handshake starts without traffic, and both ends learn of it.
const KEEPALIVE: u16 = 10;

/// Who encrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WireGuard {
    /// The kernel's own WireGuard.
    Kernel,
    /// WireGuard in user space, inside the router's process.
    Embedded,
}

impl WireGuard {
    /// What `NETBOND_LAB_WIREGUARD` (`kernel` or `embedded`) asks for, if it is set.
    pub fn from_environment() -> Result<Option<Self>> {
        match env::var("NETBOND_LAB_WIREGUARD").ok().as_deref() {
            None | Some("") => Ok(None),
            Some("kernel") => Ok(Some(Self::Kernel)),
            Some("embedded") => Ok(Some(Self::Embedded)),
            Some(other) => {
                bail!("NETBOND_LAB_WIREGUARD is {other:?}: use \"kernel\" or \"embedded\"")
            }
        }
    }

    /// The kernel's WireGuard if it has one (tried in namespace `netns`), else the embedded one.
    pub(crate) fn detect(netns: &str) -> Self {
        const TRIAL: &str = "wg-trial";
        let trial = format!("link add {TRIAL} type wireguard\nlink del {TRIAL}\n");
        if ip_batch(netns, &trial).is_ok() {
            Self::Kernel
        } else {
            Self::Embedded
        }
    }
}

/// Writes the configuration of every WireGuard device of the lab, with fresh keys, to its state
/// directory.
pub(crate) fn write_configs(state: &Path, topology: &Topology) -> Result<()> {
    let tunnels = topology.links.iter();
    for link in tunnels.filter(|link| link.kind == LinkKind::WireGuard) {
        let keys = [new_key()?, new_key()?];
        let [one, other] = &link.ends;
        for (own, peer, key, peer_key) in [
            (one, other, &keys[0], &keys[1]),
            (other, one, &keys[1], &keys[0]),
        ] {
            let device = link_device(&own.router, &peer.router);
            let Some(end) = topology
                .ends_of(&own.router)
                .find(|end| end.device == device)
            else {
                continue;
            };
            let text = format!(
                "[Interface]\n\
                 PrivateKey = {}\n\
                 ListenPort = {port}\n\
                 \n\
                 [Peer]\n\
                 PublicKey = {}\n\
                 Endpoint = {}\n\
                 AllowedIPs = 0.0.0.0/0, ::/0\n\
                 PersistentKeepalive = {KEEPALIVE}\n",
                BASE64_STANDARD.encode(key.to_bytes()),
                BASE64_STANDARD.encode(PublicKey::from(peer_key).as_bytes()),
                SocketAddr::new(end.peer_underlay, end.port),
                port = end.port,
            );
            write_private(&config_path(state, &device), &text)?;
        }
    }
    Ok(())
}

/// Writes a file that only its owner may read: it holds a key.
fn write_private(path: &Path, text: &str) -> Result<()> {
    File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn new_key() -> Result<StaticSecret> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(StaticSecret::from(bytes))
}

fn config_path(state: &Path, device: &str) -> PathBuf {
    state.join(format!("{device}.conf"))
}

impl Router {
    /// Creates WireGuard devices, with keys, peer, address and MTU, and sets them up.
    pub(crate) fn create_tunnels(&self, ends: &[LocalEnd]) -> Result<()> {
        let (mut add, mut up) = (String::new(), String::new());
        for end in ends {
            let LocalEnd {
                device,
                mtu,
                overlay,
                ..
            } = end;
            match self.wireguard() {
                WireGuard::Kernel => add += &format!("link add {device} type wireguard\n"),
                WireGuard::Embedded => {
                    anchor::request(self.socket(), &format!("create {device} {mtu}"))?;
                }
            }
            add += &format!("link set {device} mtu {mtu}\naddr add {overlay}/30 dev {device}\n");
            up += &format!("link set {device} up\n");
            up += &end.addresses_v6();
        }
        self.ip(&add)?;
        for LocalEnd { device, .. } in ends {
            // Not `setconf`: that would also set what the file leaves out.
            let config = config_path(self.state(), device);
            let config = config
                .to_str()
                .context("the state directory's path is not UTF-8")?;
            self.run(&["wg", "addconf", device, config])?;
        }
        self.ip(&up)
    }

    /// Deletes a WireGuard device.
    pub(crate) fn delete_tunnel(&self, device: &str) -> Result<()> {
        match self.wireguard() {
            WireGuard::Kernel => ip(&["-n", self.netns(), "link", "del", device]),
            WireGuard::Embedded => anchor::request(self.socket(), &format!("delete {device}")),
        }
    }

    /// Removes the peer of one of the router's WireGuard devices, its key included.
    pub(crate) fn remove_peer(&self, device: &str) -> Result<()> {
        self.tunnel(device)?;
        let peers = self.run(&["wg", "show", device, "peers"])?;
        for peer in peers.split_whitespace() {
            self.run(&["wg", "set", device, "peer", peer, "remove"])?;
        }
        Ok(())
    }

    /// Gives a device the peer of its configuration.
    pub(crate) fn restore_peer(&self, device: &str) -> Result<()> {
        self.tunnel(device)?;
        let path = config_path(self.state(), device);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let (_, peer) = text
            .split_once("[Peer]")
            .with_context(|| format!("{} has no peer", path.display()))?;
        // The interface's own part would make a running device start anew.
        let path = path.with_extension("peer.conf");
        write_private(&path, &format!("[Peer]{peer}"))?;
        let path = path
            .to_str()
            .context("the state directory's path is not UTF-8")?;
        self.run(&["wg", "addconf", device, path]).map(drop)
    }

    /// Waits until the WireGuard handshake of `device` is done.
    pub fn wait_handshake(&self, device: &str, deadline: Duration) -> Result<()> {
        let what = format!("WireGuard handshake on {device} in router {}", self.name());
        wait_for(&what, deadline, || {
            let output = self.run(&["wg", "show", device, "latest-handshakes"])?;
            let time = output.split_whitespace().next_back().unwrap_or("0");
            Ok((time != "0").then_some(()))
        })
    }

    /// Fails where a device is not WireGuard's.
    fn tunnel(&self, device: &str) -> Result<()> {
        let end = self.end(device)?;
        ensure!(
            end.kind == LinkKind::WireGuard,
            "{device} in router {} is Ethernet: it has no keys",
            self.name()
        );
        Ok(())
    }
}
