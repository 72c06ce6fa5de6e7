//! WireGuard in user space, inside the router's own process.
//!
//! For kernels without WireGuard. The protocol is gotatun's; around it are a tun device with
//! segmentation offload, batched UDP sends (`UDP_SEGMENT`) and large socket buffers, without which a
//! lab on two cores drops packets in bursts and every measurement shows the lab instead of netbond.
//! Keys and peers are set through the usual socket in `/var/run/wireguard`, so `wg` works.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::BytesMut;
use gotatun::device::uapi::{UapiClient, UapiServer};
use gotatun::device::{self, Device};
use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpSend, UdpTransportFactory, UdpTransportFactoryParams};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tun_rs::{
    AsyncDevice, DeviceBuilder, GROTable, IDEAL_BATCH_SIZE, VIRTIO_NET_HDR_LEN, VirtioNetHdr,
};

use crate::impair::{Datagrams, Held, Impairment, Line, Way};

/// Where `wg` looks for the sockets of devices in user space.
const SOCKET_DIR: &str = "/var/run/wireguard";

/// Socket buffers in bytes: a burst of a whole TCP window must fit while the process is not running.
const SOCKET_BUFFER: usize = 4_000_000;

/// Decrypted packets that wait for the tun device.
const TUN_QUEUE: usize = 512;

/// Packets handed to the UDP socket at once.
const UDP_BATCH: usize = 100;

/// Segments in one `UDP_SEGMENT` send; the kernel takes 64 at least.
const GSO_SEGMENTS: usize = 60;

/// Bytes in one `UDP_SEGMENT` send, below what one datagram may hold.
const GSO_BYTES: usize = 65_000;

/// Largest packet a tun device with offload hands over, in bytes.
const TUN_READ: usize = 65_535;

/// A WireGuard device of this process.
pub(crate) struct EmbeddedDevice {
    device: Device<(GsoSockets, TunWriter, TunReader)>,
    api: JoinHandle<()>,
    api_path: PathBuf,
    line: Arc<Line>,
}

impl EmbeddedDevice {
    /// Creates the tun device `name` and its configuration socket.
    pub(crate) async fn create(name: &str, mtu: u16) -> Result<Self> {
        let tun = DeviceBuilder::new()
            .name(name)
            .mtu(mtu)
            .offload(true)
            // The lab sets it up once it has its addresses.
            .enable(false)
            .build_async()
            .with_context(|| format!("cannot create tun device {name}; is /dev/net/tun there?"))?;
        let tun = Arc::new(tun);
        let api_path = PathBuf::from(format!("{SOCKET_DIR}/{name}.sock"));
        let _ = std::fs::remove_file(&api_path);
        let listener = UnixListener::bind(&api_path)
            .with_context(|| format!("cannot listen on {}", api_path.display()))?;
        let (client, server) = UapiServer::new();
        let line = Arc::new(Line::new());
        let sockets = GsoSockets {
            factory: UdpSocketFactory::default(),
            line: Arc::clone(&line),
        };
        let device = device::build()
            .with_uapi(server)
            .with_udp(sockets)
            .with_ip_pair(TunWriter::start(Arc::clone(&tun)), TunReader::new(tun, mtu))
            .build()
            .await
            .with_context(|| format!("cannot start WireGuard device {name}"))?;
        let api = tokio::spawn(serve_api(listener, client));
        Ok(Self {
            device,
            api,
            api_path,
            line,
        })
    }

    /// Makes the line worse, or good again, for what the device sends from now on.
    pub(crate) fn impair(&self, impairment: Impairment) {
        self.line.set(impairment);
    }

    /// Stops the device; its interface disappears.
    pub(crate) async fn delete(self) {
        self.api.abort();
        let _ = std::fs::remove_file(&self.api_path);
        self.device.stop().await;
    }
}

/// Hands every connection of the configuration socket to the device.
async fn serve_api(listener: UnixListener, client: UapiClient) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream.into_std(),
            Err(error) => Err(error),
        };
        // The library reads these connections in a thread each, so they must block.
        match stream.and_then(|stream| stream.set_nonblocking(false).map(|()| stream)) {
            Ok(stream) => client.clone().wrap_read_write(stream),
            Err(error) => eprintln!("WireGuard configuration socket: {error}"),
        }
    }
}

/// Packets that the kernel routed into the tun device.
struct TunReader {
    tun: Arc<AsyncDevice>,
    mtu: u16,
    raw: Vec<u8>,
    segments: Vec<Vec<u8>>,
    lengths: Vec<usize>,
    ready: VecDeque<Packet<Ip>>,
}

impl TunReader {
    fn new(tun: Arc<AsyncDevice>, mtu: u16) -> Self {
        Self {
            tun,
            mtu,
            raw: vec![0; TUN_READ + VIRTIO_NET_HDR_LEN],
            // One read may hold a single packet of any size (no offload used) as well as a full
            // batch of segments: the first buffer takes the former.
            segments: (0..IDEAL_BATCH_SIZE)
                .map(|i| {
                    vec![
                        0;
                        if i == 0 {
                            TUN_READ
                        } else {
                            4096.max(usize::from(mtu))
                        }
                    ]
                })
                .collect(),
            lengths: vec![0; IDEAL_BATCH_SIZE],
            ready: VecDeque::new(),
        }
    }
}

impl IpRecv for TunReader {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        let received = self
            .tun
            .recv_multiple(&mut self.raw, &mut self.segments, &mut self.lengths, 0)
            .await;
        let count = match received {
            Ok(count) => count,
            Err(error) => {
                // The caller tries again at once; a lasting error must not take a whole core.
                tokio::time::sleep(Duration::from_millis(10)).await;
                return Err(error);
            }
        };
        if let (1, Some(length)) = (count, self.lengths.first()) {
            mend_checksum(&self.raw, &mut self.segments[0][..*length]);
        }
        for (segment, length) in self.segments.iter().zip(&self.lengths).take(count) {
            let mut packet = pool.get();
            packet.buf_mut().clear();
            packet.buf_mut().extend_from_slice(&segment[..*length]);
            if let Ok(packet) = packet.try_into_ip() {
                self.ready.push_back(packet);
            }
        }
        Ok(self.ready.drain(..))
    }

    fn mtu(&self) -> MtuWatcher {
        MtuWatcher::new(self.mtu)
    }
}

/// Mends the checksum of a packet, behind this header of the tun device, where the kernel left it to us and it came
/// to 0. In UDP that says that there is none, and over IPv6 there has to be one (RFC 8200, 8.1): the library writes
/// 0 all the same, and the receiver would drop one packet in 65,536.
fn mend_checksum(header: &[u8], packet: &mut [u8]) {
    /// VIRTIO_NET_HDR_F_NEEDS_CSUM and VIRTIO_NET_HDR_GSO_NONE of linux/virtio_net.h.
    const NEEDS_CHECKSUM: u8 = 1;
    const SINGLE: u8 = 0;
    /// Where UDP has it.
    const UDP: u16 = 6;
    let Ok(header) = VirtioNetHdr::decode(header) else {
        return;
    };
    let left_to_us = header.flags & NEEDS_CHECKSUM != 0 && header.gso_type == SINGLE;
    if !left_to_us || header.csum_offset != UDP {
        return;
    }
    let at = usize::from(header.csum_start) + usize::from(header.csum_offset);
    if let Some(checksum) = packet.get_mut(at..at + 2)
        && *checksum == [0, 0]
    {
        checksum.fill(0xff);
    }
}

/// Decrypted packets on their way to the kernel, joined to large ones where they fit together.
struct TunWriter(mpsc::Sender<Packet<Ip>>);

impl TunWriter {
    fn start(tun: Arc<AsyncDevice>) -> Self {
        let (sender, mut queue) = mpsc::channel::<Packet<Ip>>(TUN_QUEUE);
        tokio::spawn(async move {
            let mut gro = GROTable::default();
            let mut batch = Vec::with_capacity(IDEAL_BATCH_SIZE);
            let mut buffers: Vec<BytesMut> = Vec::with_capacity(IDEAL_BATCH_SIZE);
            // Ends when the device drops its sender.
            loop {
                let count = queue.recv_many(&mut batch, IDEAL_BATCH_SIZE).await;
                if count == 0 {
                    return;
                }
                if buffers.len() < count {
                    // Joining appends to the first packet's buffer: it must hold them all.
                    buffers.resize_with(count, || BytesMut::with_capacity(TUN_READ + 1));
                }
                for (buffer, packet) in buffers.iter_mut().zip(batch.drain(..)) {
                    buffer.clear();
                    buffer.resize(VIRTIO_NET_HDR_LEN, 0);
                    buffer.extend_from_slice(&packet.into_bytes());
                }
                // Fails while the interface is down: the packets are lost, as they should be.
                let _ = tun
                    .send_multiple(&mut gro, &mut buffers[..count], VIRTIO_NET_HDR_LEN)
                    .await;
            }
        });
        Self(sender)
    }
}

impl IpSend for TunWriter {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        self.0
            .send(packet)
            .await
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Opens the UDP sockets of a device.
struct GsoSockets {
    factory: UdpSocketFactory,
    line: Arc<Line>,
}

impl UdpTransportFactory for GsoSockets {
    type Send = GsoSender;
    type Recv = UdpSocket;

    async fn bind(
        &mut self,
        params: &UdpTransportFactoryParams,
    ) -> io::Result<(GsoSender, UdpSocket)> {
        let (sender, receiver) = self.factory.bind(params).await?;
        // The "force" options are not held back by net.core.rmem_max.
        setsockopt(&sender.socket(), sockopt::RcvBufForce, &SOCKET_BUFFER)?;
        setsockopt(&sender.socket(), sockopt::SndBufForce, &SOCKET_BUFFER)?;
        let (way, held) = Way::new(Arc::clone(&self.line));
        tokio::spawn(send_held(sender.clone(), held));
        Ok((
            GsoSender {
                socket: sender,
                way,
            },
            receiver,
        ))
    }
}

/// Sends runs of equally long datagrams with one system call.
#[derive(Clone)]
struct GsoSender {
    socket: UdpSocket,
    way: Way,
}

impl UdpSend for GsoSender {
    type SendManyBuf = ();

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        if self.way.is_impaired() {
            let mut packets = vec![(packet, destination)];
            self.way.pass(&mut packets);
            return send_in_runs(&self.socket, &packets).await;
        }
        self.socket.send_to(packet, destination).await
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        UDP_BATCH
    }

    async fn send_many_to(&self, (): &mut (), packets: &mut Datagrams) -> io::Result<()> {
        if self.way.is_impaired() {
            self.way.pass(packets);
        }
        send_in_runs(&self.socket, packets).await?;
        packets.clear();
        Ok(())
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.socket.local_addr().map(Some)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        self.socket.set_fwmark(mark)
    }
}

/// Sends what was held back when its time comes, until the device is gone.
async fn send_held(socket: UdpSocket, mut held: Held) {
    while let Some(packets) = held.due(UDP_BATCH).await {
        // An unreachable peer: the packets are lost, as they should be.
        let _ = send_in_runs(&socket, &packets).await;
    }
}

/// Sends all packets, each run of equally long ones with one system call.
async fn send_in_runs(socket: &UdpSocket, packets: &[(Packet, SocketAddr)]) -> io::Result<()> {
    let socket = socket.socket();
    let mut rest = packets;
    while let Some((first, destination)) = rest.first() {
        let (run, after) = rest.split_at(run_length(rest));
        let segment = u16::try_from(first.len()).map_err(io::Error::other)?;
        let control = [ControlMessage::UdpGsoSegments(&segment)];
        let control = if run.len() > 1 { &control[..] } else { &[] };
        let slices: Vec<_> = run.iter().map(|(packet, _)| IoSlice::new(packet)).collect();
        let destination = SockaddrStorage::from(*destination);
        socket
            .async_io(tokio::io::Interest::WRITABLE, || {
                let flags = MsgFlags::MSG_DONTWAIT;
                sendmsg(
                    socket.as_raw_fd(),
                    &slices,
                    control,
                    flags,
                    Some(&destination),
                )
                .map_err(io::Error::from)
            })
            .await?;
        rest = after;
    }
    Ok(())
}

/// How many packets from the start of `packets` one send can carry: same destination, same
/// length, only the last one shorter.
fn run_length(packets: &[(Packet, SocketAddr)]) -> usize {
    let Some((first, destination)) = packets.first() else {
        return 0;
    };
    let segment = first.len();
    let mut bytes = 0;
    for (count, (packet, to)) in packets.iter().enumerate() {
        bytes += packet.len();
        let fits = to == destination && packet.len() <= segment && bytes <= GSO_BYTES;
        if count > 0 && !fits {
            return count;
        }
        if packet.len() < segment || count + 1 == GSO_SEGMENTS {
            return count + 1;
        }
    }
    packets.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of the tun device: flags, kind of super-packet, lengths, where the checksum is.
    fn header(flags: u8, kind: u8, start: u16, offset: u16) -> Vec<u8> {
        let mut header = vec![flags, kind, 0, 0, 0, 0];
        header.extend(start.to_ne_bytes());
        header.extend(offset.to_ne_bytes());
        header
    }

    #[test]
    fn no_udp_checksum_is_zero() {
        let mended = |header: &[u8], checksum: [u8; 2]| {
            let mut packet = [7; 16];
            packet[10..12].copy_from_slice(&checksum);
            mend_checksum(header, &mut packet);
            [packet[10], packet[11]]
        };
        let udp = header(1, 0, 4, 6);
        assert_eq!(mended(&udp, [0, 0]), [0xff, 0xff]);
        assert_eq!(mended(&udp, [0, 1]), [0, 1]);
        // TCP may have 0; and what the kernel did not leave to us is none of our business.
        for other in [
            header(1, 0, 0, 10),
            header(0, 0, 4, 6),
            header(1, 5, 4, 6),
            header(1, 0, 400, 6),
            vec![1],
        ] {
            assert_eq!(mended(&other, [0, 0]), [0, 0], "{other:?}");
        }
    }
}
