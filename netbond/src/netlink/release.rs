//! In-order release: the queue on the other end of a bond's veth pair, from which received packets come
//! onto the bond at the time that the program there gives them.

use anyhow::{Context as _, anyhow};
use futures::StreamExt as _;
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::device::{BondDevice, Netlink, errno, explain};
use super::ethtool::{self, Offload};

/// TCA_FQ_* of linux/pkt_sched.h.
const PACKETS: u16 = 1;
const PACKETS_OF_FLOW: u16 = 2;
const PACING: u16 = 5;

/// Packets that may wait: of 10 Gbit/s for 100 ms.
const MOST: u32 = 100_000;

impl Netlink {
    /// Has packets that are sent into the other end of the pair come onto the bond at their time, or
    /// no longer. fq sorts the packets of a flow by time of departure.
    ///
    /// # Errors
    ///
    /// Where the kernel has no fq, or refuses.
    pub async fn set_release(&mut self, device: BondDevice, on: bool) -> anyhow::Result<()> {
        if !on {
            let mut request = self.handle.qdisc().del(device.peer_ifindex as i32);
            request.message_mut().header.parent = TcHandle::ROOT;
            return match request.execute().await {
                // There was none.
                Err(error) if matches!(errno(&error), Some(libc::ENOENT | libc::EINVAL)) => Ok(()),
                done => done
                    .map_err(explain)
                    .context("cannot remove the queue for in-order release"),
            };
        }
        let name = self
            .link_by_index(device.peer_ifindex)?
            .ok_or_else(|| anyhow!("the bond device's other end is gone"))?
            .name;
        let bond = self
            .link_by_index(device.ifindex)?
            .ok_or_else(|| anyhow!("the bond device is gone"))?
            .name;
        // What comes out in order is merged again before the stack sees it: packets with sequence
        // numbers are not while they are in GRE. veth does so only for what a device without TSO sends.
        ethtool::switch(&name, Offload::Tso, false)
            .and_then(|()| ethtool::switch(&bond, Offload::Gro, true))
            .with_context(|| format!("cannot set the offloads of {bond} and {name}"))?;

        let number =
            |kind, value: u32| TcOption::Other(DefaultNla::new(kind, value.to_ne_bytes().to_vec()));
        let mut message = TcMessage::with_index(device.peer_ifindex as i32);
        message.header.parent = TcHandle::ROOT;
        message.attributes = vec![
            TcAttribute::Kind("fq".to_owned()),
            TcAttribute::Options(vec![
                number(PACKETS, MOST),
                number(PACKETS_OF_FLOW, MOST),
                number(PACING, 0),
            ]),
        ];
        match self.replace_qdisc(message).await {
            Err(error) if errno(&error) == Some(libc::ENOENT) => Err(anyhow!(
                "in_order needs the fq queueing discipline, which this kernel lacks (CONFIG_NET_SCH_FQ, \
                 module sch_fq): load it, or remove in_order"
            )),
            done => done
                .map_err(explain)
                .context("cannot make the queue for in-order release"),
        }
    }

    /// rtnetlink's own request takes no options.
    async fn replace_qdisc(&mut self, message: TcMessage) -> Result<(), rtnetlink::Error> {
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let mut answers = self.handle.request(request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }
}
