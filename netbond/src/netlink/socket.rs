//! A request/answer socket and the framing of netlink messages (netlink(7), RFC 3549).
//!
//! Integers are in host byte order, addresses in network byte order.

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use tracing::debug;

/// Bytes of the largest datagram the kernel builds for us: 32 KiB in a dump (netlink_dump), less in
/// a notification.
const DATAGRAM: usize = 64 * 1024;

/// struct nlmsghdr: length (4), type (2), flags (2), sequence (4), port (4).
const HEADER: usize = 16;

/// Bytes of struct genlmsghdr: command (1), version (1), reserved (2).
pub(super) const GENLMSGHDR: usize = 4;

// linux/genetlink.h.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// A dump that another writer disturbed is started again this often.
const DUMP_ATTEMPTS: usize = 5;

/// Bytes of answers a request socket holds; one batch of requests needs less.
const ANSWER_BUFFER: usize = 1 << 20;

/// One netlink message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// `RTM_*` or `NLMSG_*`.
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// What follows struct nlmsghdr: a fixed struct and attributes.
    pub(super) body: &'a [u8],
}

/// The messages of a datagram; ends early at one whose length does not fit.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let message = Message {
            kind: u16_at(datagram, 4)?,
            flags: u16_at(datagram, 6)?,
            sequence: u32_at(datagram, 8)?,
            body: datagram.get(HEADER..length)?,
        };
        datagram = datagram.get(align(length)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes` (struct rtattr: length (2), type (2)) as type and value; ends early at
/// one whose length does not fit.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// NLA_F_NESTED and NLA_F_NET_BYTEORDER are no part of the type (linux/netlink.h).
    const TYPE_MASK: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// NLMSG_ALIGN, RTA_ALIGN, RTNH_ALIGN: up to a multiple of 4.
pub(super) fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes
        .get(offset..)?
        .first_chunk()
        .copied()
        .map(u16::from_ne_bytes)
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..)?
        .first_chunk()
        .copied()
        .map(u32::from_ne_bytes)
}

/// An address in network byte order: 4 bytes are IPv4, 16 are IPv6.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// A NUL-terminated string.
pub(super) fn string(bytes: &[u8]) -> String {
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// AF_INET or AF_INET6 and the bytes of `ip`, as messages carry them.
pub(super) fn family_and_bytes(ip: IpAddr) -> (u8, Vec<u8>) {
    match ip {
        IpAddr::V4(v4) => (libc::AF_INET as u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6 as u8, v6.octets().to_vec()),
    }
}

/// Appends a request: `fixed` is the struct that follows nlmsghdr.
pub(super) fn push_request(
    out: &mut Vec<u8>,
    kind: u16,
    flags: i32,
    sequence: u32,
    fixed: &[u8],
    attributes: &[(u16, &[u8])],
) {
    let start = out.len();
    out.extend([0; 4]);
    out.extend(kind.to_ne_bytes());
    out.extend((flags as u16).to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend(fixed);
    for (kind, value) in attributes {
        out.resize(start + align(out.len() - start), 0);
        out.extend((4 + value.len() as u16).to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(*value);
    }
    let length = (out.len() - start) as u32;
    out.resize(start + align(out.len() - start), 0);
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Opens a non-blocking NETLINK_ROUTE socket in the calling thread's network namespace that holds
/// about `receive_buffer` bytes of messages not yet read.
pub(super) fn open(receive_buffer: usize) -> io::Result<Socket> {
    open_for(NETLINK_ROUTE, receive_buffer)
}

fn open_for(protocol: isize, receive_buffer: usize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    // Beyond net.core.rmem_max needs CAP_NET_ADMIN in the first user namespace.
    if let Err(error) = setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer) {
        debug!(%error, "SO_RCVBUFFORCE refused: the buffer ends at net.core.rmem_max");
        setsockopt(&socket, sockopt::RcvBuf, &receive_buffer)?;
    }
    Ok(socket)
}

/// A buffer for [`receive`].
pub(super) fn datagram_buffer() -> Vec<u8> {
    Vec::with_capacity(DATAGRAM)
}

/// Reads the next datagram of the kernel into `buffer`.
///
/// # Errors
/// `WouldBlock` when there is none; ENOBUFS once after the kernel had to drop some.
pub(super) fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        buffer.clear();
        let (length, from) = socket.recv_from(buffer, libc::MSG_DONTWAIT | libc::MSG_TRUNC)?;
        if from.port_number() != 0 {
            // Only the kernel (port 0) is believed.
            continue;
        }
        if length > buffer.len() {
            debug!(
                length,
                "netlink datagram longer than the buffer: its end is lost"
            );
        }
        return Ok(());
    }
}

/// What came of one request.
#[derive(Debug)]
pub(super) enum Answer {
    /// The body of the answering message.
    Body(Vec<u8>),
    /// NLMSG_ERROR: an errno, positive; 0 is an acknowledgement.
    Errno(i32),
    /// The kernel could not queue the answer.
    Lost,
}

impl Answer {
    /// What was asked for; an error where the kernel gave none.
    pub(super) fn into_body(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Body(body) => Ok(body),
            Self::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
            Self::Lost => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
        }
    }
}

/// A socket for requests that the kernel answers before `send` returns: answers are only fetched,
/// never waited for. Where a handler takes the RTNL lock, `send` may wait for its holder.
pub(super) struct RequestSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl RequestSocket {
    /// Opens it in the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        Self::open_for(NETLINK_ROUTE)
    }

    /// The same for generic netlink, whose message types are ids of families.
    pub(super) fn open_generic() -> io::Result<Self> {
        Self::open_for(NETLINK_GENERIC)
    }

    fn open_for(protocol: isize) -> io::Result<Self> {
        let socket = open_for(protocol, ANSWER_BUFFER)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: datagram_buffer(),
        })
    }

    /// Sends `count` requests at once and returns their answers in the same order; `push` appends
    /// request number `n` (from 0) with the given sequence number to the buffer.
    pub(super) fn ask_all(
        &mut self,
        count: usize,
        mut push: impl FnMut(&mut Vec<u8>, usize, u32),
    ) -> io::Result<Vec<Answer>> {
        let first = self.sequence;
        let mut requests = Vec::new();
        for n in 0..count {
            push(&mut requests, n, self.sequence);
            self.sequence = self.sequence.wrapping_add(1);
        }
        self.socket.send(&requests, 0)?;

        let mut answers: Vec<Answer> = std::iter::repeat_with(|| Answer::Lost)
            .take(count)
            .collect();
        let mut missing = count;
        while missing > 0 {
            match receive(&self.socket, &mut self.buffer) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Some answer was dropped: the others are still there.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => continue,
                Err(error) => return Err(error),
            }
            for message in messages(&self.buffer) {
                let number = message.sequence.wrapping_sub(first) as usize;
                let Some(answer) = answers.get_mut(number) else {
                    continue;
                };
                if matches!(answer, Answer::Lost) {
                    missing -= 1;
                }
                *answer = match errno(&message) {
                    Some(errno) => Answer::Errno(errno),
                    None => Answer::Body(message.body.to_vec()),
                };
            }
        }
        Ok(answers)
    }

    /// Sends one request and returns its answer.
    pub(super) fn ask(
        &mut self,
        kind: u16,
        flags: i32,
        fixed: &[u8],
        attributes: &[(u16, &[u8])],
    ) -> io::Result<Answer> {
        let answers = self.ask_all(1, |out, _, sequence| {
            push_request(
                out,
                kind,
                libc::NLM_F_REQUEST | flags,
                sequence,
                fixed,
                attributes,
            );
        })?;
        Ok(answers.into_iter().next().unwrap_or(Answer::Lost))
    }

    /// The id of a family of generic netlink, which the kernel gives out as the family comes up.
    ///
    /// # Errors
    /// The kernel has no such family (`NotFound`), or refuses.
    pub(super) fn family(&mut self, name: &str) -> io::Result<u16> {
        let name = [name.as_bytes(), &[0]].concat();
        let name = [(CTRL_ATTR_FAMILY_NAME, &name[..])];
        let answer = self.ask(GENL_ID_CTRL, 0, &[CTRL_CMD_GETFAMILY, 1, 0, 0], &name)?;
        let body = answer.into_body()?;
        attributes(body.get(GENLMSGHDR..).unwrap_or_default())
            .find(|(attribute, _)| *attribute == CTRL_ATTR_FAMILY_ID)
            .and_then(|(_, value)| u16_at(value, 0))
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// All objects of a kind: the bodies of a dump's messages.
    pub(super) fn dump(&mut self, kind: u16, fixed: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.dump_matching(kind, fixed, &[])
    }

    /// Lets the kernel pick by the attributes of a dump's request, which it else passes over
    /// (NETLINK_GET_STRICT_CHK, Linux 4.20).
    pub(super) fn check_strictly(&mut self) -> io::Result<()> {
        self.socket.set_netlink_get_strict_chk(true)
    }

    /// Like [`RequestSocket::dump`], with attributes that pick some of the objects.
    pub(super) fn dump_matching(
        &mut self,
        kind: u16,
        fixed: &[u8],
        attributes: &[(u16, &[u8])],
    ) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(bodies) = self.dump_once(kind, fixed, attributes)? {
                return Ok(bodies);
            }
        }
        Err(io::Error::other(
            "the kernel's tables changed during every dump",
        ))
    }

    /// `None` when a change made the dump inconsistent (NLM_F_DUMP_INTR).
    fn dump_once(
        &mut self,
        kind: u16,
        fixed: &[u8],
        attributes: &[(u16, &[u8])],
    ) -> io::Result<Option<Vec<Vec<u8>>>> {
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        push_request(&mut request, kind, flags, sequence, fixed, attributes);
        self.socket.send(&request, 0)?;

        let mut bodies = Vec::new();
        let mut interrupted = false;
        loop {
            receive(&self.socket, &mut self.buffer)?;
            for message in messages(&self.buffer) {
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= i32::from(message.flags) & libc::NLM_F_DUMP_INTR != 0;
                if i32::from(message.kind) == libc::NLMSG_DONE {
                    return Ok((!interrupted).then_some(bodies));
                }
                if let Some(errno) = errno(&message) {
                    return Err(io::Error::from_raw_os_error(errno));
                }
                bodies.push(message.body.to_vec());
            }
        }
    }
}

/// The positive errno of an NLMSG_ERROR message.
fn errno(message: &Message<'_>) -> Option<i32> {
    if i32::from(message.kind) != libc::NLMSG_ERROR {
        return None;
    }
    // struct nlmsgerr starts with the negative errno.
    Some(u32_at(message.body, 0).map_or(libc::EIO, |error| (error as i32).wrapping_neg()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_framed_as_the_kernel_reads_it() {
        let mut out = Vec::new();
        push_request(
            &mut out,
            26,
            1,
            7,
            &[2, 32, 0, 0],
            &[(1, &[10, 0, 0, 1]), (9, &[1])],
        );
        push_request(&mut out, 18, 1, 8, &[], &[]);
        let framed: Vec<_> = messages(&out).collect();
        assert_eq!(framed.len(), 2);
        assert_eq!(
            (framed[0].kind, framed[0].flags, framed[0].sequence),
            (26, 1, 7)
        );
        assert_eq!(framed[0].body[..4], [2, 32, 0, 0]);
        let read: Vec<_> = attributes(&framed[0].body[4..]).collect();
        assert_eq!(read, [(1, &[10, 0, 0, 1][..]), (9, &[1][..])]);
        assert_eq!(
            (framed[1].kind, framed[1].sequence, framed[1].body.len()),
            (18, 8, 0)
        );
        assert_eq!(out.len() % 4, 0);
    }

    #[test]
    fn a_length_that_does_not_fit_ends_the_walk() {
        let mut out = Vec::new();
        push_request(&mut out, 26, 1, 7, &[0; 12], &[]);
        out[0] = 200;
        assert_eq!(messages(&out).count(), 0);
        // Shorter than its own header: would loop for ever.
        out[0] = 0;
        assert_eq!(messages(&out).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[9, 0, 1, 0, 1, 2]).count(), 0);
    }

    proptest! {
        #[test]
        fn walking_any_bytes_ends_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let framed = messages(&bytes).count();
            prop_assert!(framed <= bytes.len() / HEADER);
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4);
        }
    }
}
