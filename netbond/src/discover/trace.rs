//! Sees where packets go: UDP datagrams with a small TTL, by a path's own device, which routers answer with ICMP
//! (RFC 792, RFC 4443). As tracepath(8) does, which needs no privilege.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use futures::future::join_all;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket as AsyncSocket;
use tokio::time::timeout;

/// To which nobody should listen: where traceroute begins.
const PORT: u16 = 33434;
/// How long a router may take. Linux sends one address no more than one such answer a second, after the first
/// six.
const PATIENCE: Duration = Duration::from_millis(1100);
const ATTEMPTS: u32 = 2;

// linux/errqueue.h, linux/icmp.h, linux/icmpv6.h.
const SO_EE_ORIGIN_ICMP: u8 = 2;
const SO_EE_ORIGIN_ICMP6: u8 = 3;
const ICMP_DEST_UNREACH: u8 = 3;
const ICMP_PORT_UNREACH: u8 = 3;
const ICMP_TIME_EXCEEDED: u8 = 11;
const ICMPV6_DEST_UNREACH: u8 = 1;
const ICMPV6_TIME_EXCEED: u8 = 3;
const ICMPV6_PORT_UNREACH: u8 = 4;

/// The way of which packets is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub local: IpAddr,
    pub remote: IpAddr,
    pub device: String,
    /// How many to ask of.
    pub hops: usize,
}

/// By hop, who answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer(pub Vec<Option<Reply>>);

/// An answer of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    pub from: IpAddr,
    /// Whether the packet was at its destination.
    pub arrived: bool,
}

/// Of a link's two addresses, asked about by the same way: whether the first is the far router's. `None` where
/// the answers do not tell, or contradict each other.
pub(super) fn is_far(one: &Answer, other: &Answer) -> Option<bool> {
    let arrived_after = |answer: &Answer| {
        let arrived = |reply: &Option<Reply>| reply.is_some_and(|reply| reply.arrived);
        answer.0.iter().position(arrived).map(|hop| hop + 1)
    };
    let hops = one.0.len();
    // The last router but one either is there, or passes the packet on.
    let passed_on = |answer: &Answer| {
        let before = hops.checked_sub(2).and_then(|hop| *answer.0.get(hop)?);
        before.is_some_and(|reply| !reply.arrived)
    };
    let is_far = |answer: &Answer| arrived_after(answer).map(|after| after == hops);
    match (is_far(one), is_far(other)) {
        (Some(first), Some(second)) => (first != second).then_some(first),
        (Some(first), None) => Some(first),
        (None, Some(second)) => Some(!second),
        (None, None) => (passed_on(one) != passed_on(other)).then(|| passed_on(one)),
    }
}

/// Asks all at once.
///
/// # Errors
/// A socket cannot be made, bound to the address or the device.
///
/// # Panics
/// Outside a tokio runtime.
pub async fn ask(questions: Vec<Question>) -> io::Result<Vec<(Question, Answer)>> {
    let answers = questions.iter().map(async |question| {
        let ttls = (1..=question.hops).map(|ttl| reply(question, ttl));
        let replies: io::Result<Vec<_>> = join_all(ttls).await.into_iter().collect();
        replies.map(Answer)
    });
    let answers: io::Result<Vec<Answer>> = join_all(answers).await.into_iter().collect();
    Ok(questions.iter().cloned().zip(answers?).collect())
}

/// Who answers a packet that may make so many hops.
async fn reply(question: &Question, ttl: usize) -> io::Result<Option<Reply>> {
    let socket = UdpSocket::bind((question.local, 0))?;
    setsockopt(
        &socket,
        sockopt::BindToDevice,
        &question.device.clone().into(),
    )?;
    let ttl = u8::try_from(ttl).unwrap_or(u8::MAX);
    match question.remote {
        IpAddr::V4(_) => {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            setsockopt(&socket, sockopt::Ipv4Ttl, &ttl.into())?;
        }
        IpAddr::V6(_) => {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
            setsockopt(&socket, sockopt::Ipv6Ttl, &ttl.into())?;
        }
    }
    socket.set_nonblocking(true)?;
    let socket = AsyncSocket::from_std(socket)?;
    let to = SocketAddr::new(question.remote, PORT);
    for _ in 0..ATTEMPTS {
        // An answer to the one before may come as this one's error.
        let _ = socket.send_to(&[0; 32], to).await;
        let answer = socket.async_io(Interest::ERROR, || next_error(&socket, question.remote));
        if let Ok(answer) = timeout(PATIENCE, answer).await {
            return answer;
        }
    }
    Ok(None)
}

/// What an error says of a packet to `remote`; `None` where it is no ICMP message, or says nothing of its way.
fn reply_of(error: &libc::sock_extended_err, from: IpAddr, remote: IpAddr) -> Option<Reply> {
    let arrived = match (error.ee_origin, error.ee_type, error.ee_code) {
        // A firewall on the way may send the same (iptables' REJECT).
        (SO_EE_ORIGIN_ICMP, ICMP_DEST_UNREACH, ICMP_PORT_UNREACH)
        | (SO_EE_ORIGIN_ICMP6, ICMPV6_DEST_UNREACH, ICMPV6_PORT_UNREACH)
            if from == remote =>
        {
            true
        }
        (SO_EE_ORIGIN_ICMP, ICMP_TIME_EXCEEDED, _)
        | (SO_EE_ORIGIN_ICMP6, ICMPV6_TIME_EXCEED, _) => false,
        _ => return None,
    };
    Some(Reply { from, arrived })
}

/// Reads the socket's error queue (ip(7), IP_RECVERR; ipv6(7), IPV6_RECVERR); `None` for what is no answer of a
/// router.
fn next_error(socket: &AsyncSocket, remote: IpAddr) -> io::Result<Option<Reply>> {
    let mut data = [0; 64];
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let mut buffers = [IoSliceMut::new(&mut data)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut control),
        MsgFlags::MSG_ERRQUEUE,
    )?;
    for item in message.cmsgs()? {
        let (error, from) = if let ControlMessageOwned::Ipv4RecvErr(error, Some(offender)) = item {
            let from = Ipv4Addr::from_bits(u32::from_be(offender.sin_addr.s_addr));
            (error, IpAddr::V4(from))
        } else if let ControlMessageOwned::Ipv6RecvErr(error, Some(offender)) = item {
            (error, IpAddr::V6(offender.sin6_addr.s6_addr.into()))
        } else {
            continue;
        };
        if let Some(reply) = reply_of(&error, from, remote) {
            return Ok(Some(reply));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(replies: &[Option<bool>]) -> Answer {
        let reply = |arrived: bool| Reply {
            from: Ipv4Addr::LOCALHOST.into(),
            arrived,
        };
        Answer(replies.iter().map(|arrived| arrived.map(reply)).collect())
    }

    #[test]
    fn the_far_address_is_a_hop_farther() {
        let (far, near) = ([Some(false), Some(true)], [Some(true), Some(true)]);
        let silent = [None, None];
        for (one, other, wanted) in [
            (far, near, Some(true)),
            (near, far, Some(false)),
            // One of them is enough, and of the far one that the router before passes it on.
            (far, silent, Some(true)),
            (silent, far, Some(false)),
            (near, silent, Some(false)),
            (silent, near, Some(true)),
            ([Some(false), None], silent, Some(true)),
            (silent, silent, None),
            ([None, Some(true)], silent, Some(true)),
            // Both the same.
            (far, far, None),
            (near, near, None),
        ] {
            let found = is_far(&answer(&one), &answer(&other));
            assert_eq!(found, wanted, "{one:?} {other:?}");
        }
    }

    #[test]
    fn only_the_destination_tells_that_a_packet_arrived() {
        let [remote, middle, remote_v6, middle_v6] = ["10.0.0.6", "10.0.0.2", "fd00::6", "fd00::2"]
            .map(|address| address.parse::<IpAddr>().unwrap());
        let reply = |from, arrived| Some(Reply { from, arrived });
        for (origin, kind, code, from, wanted) in [
            (2, 3, 3, remote, reply(remote, true)),
            (2, 11, 0, middle, reply(middle, false)),
            (3, 1, 4, remote_v6, reply(remote_v6, true)),
            (3, 3, 0, middle_v6, reply(middle_v6, false)),
            // REJECT of a firewall, with and without an option.
            (2, 3, 3, middle, None),
            (2, 3, 13, middle, None),
            (2, 3, 1, remote, None),
            (3, 1, 4, middle_v6, None),
            (3, 1, 1, remote_v6, None),
            // A packet too big; and what this host itself says.
            (3, 2, 0, middle_v6, None),
            (1, 3, 3, remote, None),
        ] {
            let error = libc::sock_extended_err {
                ee_errno: 0,
                ee_origin: origin,
                ee_type: kind,
                ee_code: code,
                ee_pad: 0,
                ee_info: 0,
                ee_data: 0,
            };
            let to = if from.is_ipv6() { remote_v6 } else { remote };
            assert_eq!(reply_of(&error, from, to), wanted, "{origin} {kind} {code}");
        }
    }

    /// A router between, two hops away the destination; and a device that leads nowhere.
    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn routers_answer_by_the_device_that_is_asked() {
        use crate::netlink::netns::{Process, in_netns, ip, sysctl};
        in_netns(async || {
            let (middle, far) = (
                Process::in_other_netns("sleep 1000"),
                Process::in_other_netns("sleep 1000"),
            );
            sysctl("net/ipv4/conf/all/rp_filter", "0");
            ip(&format!(
                "link add e0 type veth peer name e1 netns {}",
                middle.id()
            ));
            ip("addr add 10.0.0.1/30 dev e0");
            ip("addr add fd00:0:0:1::1/64 dev e0 nodad");
            ip("link set e0 up");
            ip("link add nowhere type veth peer name nowhere-else");
            ip("link set nowhere up");
            middle.ip("addr add 10.0.0.2/30 dev e1");
            middle.ip("addr add fd00:0:0:1::2/64 dev e1 nodad");
            middle.ip("link set e1 up");
            middle.ip(&format!(
                "link add e2 type veth peer name e3 netns {}",
                far.id()
            ));
            middle.ip("addr add 10.0.0.5/30 dev e2");
            middle.ip("addr add fd00:0:0:2::1/64 dev e2 nodad");
            middle.ip("link set e2 up");
            middle.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
            far.ip("addr add 10.0.0.6/30 dev e3");
            far.ip("addr add fd00:0:0:2::2/64 dev e3 nodad");
            far.ip("link set e3 up");
            far.ip("route add default via 10.0.0.5");
            far.ip("route add default via fd00:0:0:2::1");
            ip("route add 10.0.0.4/30 via 10.0.0.2");
            ip("route add fd00:0:0:2::/64 via fd00:0:0:1::2");
            for [own, middle, near, far] in [
                ["10.0.0.1", "10.0.0.2", "10.0.0.5", "10.0.0.6"],
                [
                    "fd00:0:0:1::1",
                    "fd00:0:0:1::2",
                    "fd00:0:0:2::1",
                    "fd00:0:0:2::2",
                ],
            ] {
                let question = |remote: &str, device: &str| Question {
                    local: own.parse().unwrap(),
                    remote: remote.parse().unwrap(),
                    device: device.to_owned(),
                    hops: 2,
                };
                let questions = vec![
                    question(far, "e0"),
                    question(near, "e0"),
                    question(far, "nowhere"),
                ];
                let answers = ask(questions).await.unwrap();
                let reply = |from: &str, arrived| {
                    let from = from.parse().unwrap();
                    Some(Reply { from, arrived })
                };
                let passed_on = reply(middle, false);
                assert_eq!(answers[0].1.0, [passed_on, reply(far, true)]);
                assert_eq!(answers[1].1.0, [reply(near, true), reply(near, true)]);
                assert_eq!(answers[2].1.0, [None, None]);
                assert_eq!(is_far(&answers[0].1, &answers[1].1), Some(true));
                assert!(ask(vec![question(far, "missing")]).await.is_err());
            }
        });
    }
}
