//! Offloads and queues of devices (linux/ethtool.h).

use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Of linux/sockios.h.
const SIOCETHTOOL: u32 = 0x8946;
// Commands of linux/ethtool.h.
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
/// Of the flags: tags are taken out of received frames.
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// What a device, or the kernel for it, does with packets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Offload {
    /// Super-packets are handed to it.
    Tso,
    /// Packets received on it are merged.
    Gro,
}

/// struct ethtool_value.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// struct ethtool_channels.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// Switches an offload of a device.
pub(super) fn switch(device: &str, offload: Offload, on: bool) -> io::Result<()> {
    let command = match offload {
        Offload::Tso => ETHTOOL_STSO,
        Offload::Gro => ETHTOOL_SGRO,
    };
    let data = u32::from(on);
    request(device, &mut Value { command, data })
}

/// Whether packets received on a device are merged (GRO).
pub(super) fn has_gro(device: &str) -> io::Result<bool> {
    get(device, ETHTOOL_GGRO).map(|on| on != 0)
}

/// Whether VLAN tags are taken out of frames that a device receives.
pub(super) fn takes_tags(device: &str) -> io::Result<bool> {
    get(device, ETHTOOL_GFLAGS).map(|flags| flags & ETH_FLAG_RXVLAN != 0)
}

/// Gives a device as many queues for what it receives as there may be, up to `most`; never fewer than it has.
pub(super) fn add_queues(device: &str, most: u32) -> io::Result<()> {
    let mut channels = Channels {
        command: ETHTOOL_GCHANNELS,
        ..Channels::default()
    };
    request(device, &mut channels)?;
    let wanted = channels.max_rx.min(most);
    if channels.rx >= wanted {
        return Ok(());
    }
    channels.command = ETHTOOL_SCHANNELS;
    channels.rx = wanted;
    request(device, &mut channels)
}

fn get(device: &str, command: u32) -> io::Result<u32> {
    let mut value = Value { command, data: 0 };
    request(device, &mut value)?;
    Ok(value.data)
}

/// A structure that begins with its command.
trait Command {}
impl Command for Value {}
impl Command for Channels {}

fn request<T: Command>(device: &str, command: &mut T) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: plain integers and a pointer, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(command).cast();
    // SAFETY: the request names a device and points to a structure of the command's type; both live on.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
