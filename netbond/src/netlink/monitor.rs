//! Follows the kernel's links, addresses and the routes to tracked addresses.
//!
//! Routes are not mirrored: a message only says which targets may be concerned (`dirty`), and for
//! those the kernel is asked what it does now. So policy rules, multipath, nexthop objects and
//! routes that vanish without a message (those over a device that went down) need no rules of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::Context;
use netlink_sys::Socket;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::link::{self, DeviceAddress, LinkDetails};
use super::route::{self, RTM_DELNEXTHOP, RTM_NEWNEXTHOP, RouteQuery, Scope};
use super::socket::{Message, RequestSocket, datagram_buffer, messages, open, receive};
use crate::control::event::{Event, Link, Route};

/// What is subscribed to.
const GROUPS: [u32; 8] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
];

/// Datagrams read before the targets found dirty are asked about: a storm of changes must not keep
/// them waiting. About 1 ms.
const DATAGRAMS: usize = 1024;

/// After a device changed, the routes are asked for once more: the kernel announces that it is going
/// down before it takes its routes away, and says nothing of those.
const SETTLE: Duration = Duration::from_millis(50);

/// Until what the kernel could not tell is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// How to listen.
#[derive(Clone, Debug)]
pub struct MonitorOptions {
    /// Bytes of messages the kernel may hold for us; it counts about 1 KB for one route change.
    pub receive_buffer: usize,
}

impl Default for MonitorOptions {
    fn default() -> Self {
        Self {
            receive_buffer: 8 << 20,
        }
    }
}

/// A running monitor; it ends when this is dropped.
pub struct Monitor {
    targets: watch::Sender<Vec<IpAddr>>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Monitor {
    /// Starts to follow the calling thread's network namespace: sends all links and addresses, the
    /// route of each target, and then whatever changes.
    ///
    /// A receiver that is slow loses nothing: messages that the kernel could not keep meanwhile are
    /// made up for by reading everything again.
    ///
    /// # Errors
    /// The kernel refuses a socket or a subscription.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn(
        options: &MonitorOptions,
        targets: Vec<IpAddr>,
        events: mpsc::Sender<Event>,
    ) -> anyhow::Result<Self> {
        let subscription =
            subscribe(options).context("cannot subscribe to the kernel's route changes")?;
        let (targets, wanted) = watch::channel(targets);
        let task = Task {
            subscription,
            buffer: datagram_buffer(),
            dumps: RequestSocket::open().context("cannot open a netlink socket")?,
            routes: RouteQuery::open().context("cannot open a netlink socket")?,
            wanted,
            view: View::default(),
            retry: None,
            settled: None,
            events,
        };
        Ok(Self {
            targets,
            task: tokio::spawn(task.run()),
        })
    }

    /// Replaces the addresses whose routes are followed. New ones are answered for at once; nothing
    /// is sent for those that stay, nor for those that go.
    pub fn set_targets(&self, targets: Vec<IpAddr>) {
        self.targets.send_replace(targets);
    }

    /// Waits until the task ends: it fails, or nobody receives events any more.
    ///
    /// # Errors
    /// The subscription cannot be read.
    pub async fn finished(&mut self) -> anyhow::Result<()> {
        (&mut self.task).await.context("the netlink monitor died")?
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn subscribe(options: &MonitorOptions) -> io::Result<AsyncFd<Socket>> {
    let socket = open(options.receive_buffer)?;
    for group in GROUPS {
        match socket.add_membership(group) {
            Ok(()) => {}
            // Nexthop objects came with Linux 5.3; a kernel without the group has none.
            Err(error) if group == libc::RTNLGRP_NEXTHOP => {
                info!("the kernel announces no nexthop objects: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    // SAFETY: the socket owns its descriptor, which nothing replaces or closes before it is dropped.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// The receiver of events or the owner of the task is gone.
struct Gone;

struct Task {
    subscription: AsyncFd<Socket>,
    buffer: Vec<u8>,
    dumps: RequestSocket,
    routes: RouteQuery,
    wanted: watch::Receiver<Vec<IpAddr>>,
    view: View,
    /// When to ask again what could not be told.
    retry: Option<Instant>,
    /// When to ask for all again after a device changed.
    settled: Option<Instant>,
    events: mpsc::Sender<Event>,
}

impl Task {
    async fn run(mut self) -> anyhow::Result<()> {
        self.view.set_targets(&self.wanted.borrow_and_update());
        loop {
            // Device events go first: a route must not name a device the receiver never heard of.
            if self.read_links().await.is_err() || self.ask_routes().await.is_err() {
                return Ok(());
            }
            if std::mem::take(&mut self.view.devices_changed) {
                self.settled = Some(Instant::now() + SETTLE);
            }
            let again = self.retry.into_iter().chain(self.settled).min();
            tokio::select! {
                ready = self.subscription.readable() => {
                    let mut ready = ready.context("cannot wait for the kernel's route changes")?;
                    let socket = ready.get_inner();
                    let read = read(socket, &mut self.buffer, &mut self.view);
                    match read.context("cannot read the kernel's route changes")? {
                        Read::All => ready.clear_ready(),
                        Read::More => {}
                    }
                }
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.view.set_targets(&self.wanted.borrow_and_update());
                }
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)),
                    if again.is_some() =>
                {
                    if self.settled.take_if(|settled| *settled <= Instant::now()).is_some() {
                        self.view.mark_all();
                    }
                }
            }
        }
    }

    /// Reads links and addresses anew where messages were lost, and sends what changed.
    async fn read_links(&mut self) -> Result<(), Gone> {
        self.retry = None;
        if self.view.stale {
            // The subscription came first, so what changes during the dumps is still to be read.
            let dumps = link::dump(&mut self.dumps)
                .and_then(|links| Ok((links, link::dump_addresses(&mut self.dumps)?)));
            match dumps {
                Ok((links, addresses)) => self.view.replace(links, &addresses),
                Err(error) => {
                    warn!("cannot list links and addresses ({error}); asking again in {RETRY:?}");
                    self.retry = Some(Instant::now() + RETRY);
                }
            }
        }
        for event in std::mem::take(&mut self.view.events) {
            self.events.send(event).await.map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// Asks for the routes to all dirty targets, each once, and sends those that changed.
    async fn ask_routes(&mut self) -> Result<(), Gone> {
        for batch in self.view.take_dirty().chunks(route::BATCH) {
            let answers = match self.routes.lookup(batch) {
                Ok(answers) => answers,
                Err(error) => {
                    let lost = |_: &IpAddr| Err(io::Error::from(error.kind()));
                    batch.iter().map(lost).collect()
                }
            };
            for (&target, answer) in batch.iter().zip(answers) {
                let event = match answer {
                    Ok(route) => self.view.answer(target, route),
                    Err(error) => {
                        // What was said of it last stands until the kernel can tell.
                        debug!(%target, %error, "no answer to RTM_GETROUTE; asking again");
                        self.view.mark(target);
                        self.retry = Some(Instant::now() + RETRY);
                        None
                    }
                };
                if let Some(event) = event {
                    self.events.send(event).await.map_err(|_| Gone)?;
                }
            }
            // Thousands of targets take tens of milliseconds: others must run, too.
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

/// How far [`read`] came.
enum Read {
    All,
    More,
}

/// Reads the messages there are, at most [`DATAGRAMS`].
fn read(socket: &Socket, buffer: &mut Vec<u8>, view: &mut View) -> io::Result<Read> {
    let mut datagrams = 0;
    // Once messages were lost the queue is emptied whatever it holds: until then the kernel drops
    // all that comes, and what is left there would be taken for newer than the dumps.
    while view.stale || datagrams < DATAGRAMS {
        datagrams += 1;
        match receive(socket, buffer) {
            Ok(()) if view.stale => {}
            Ok(()) => messages(buffer).for_each(|message| view.message(&message)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Read::All),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                if !view.stale {
                    info!("the kernel dropped route changes (ENOBUFS): reading everything again");
                }
                view.stale = true;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Read::More)
}

/// What was said to the receiver, and what must be asked. No I/O.
#[derive(Debug)]
struct View {
    /// Links and addresses must be read anew.
    stale: bool,
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<DeviceAddress>,
    targets: BTreeMap<IpAddr, Target>,
    /// Whether some target may be dirty.
    any_dirty: bool,
    /// Whether all are, whatever they say themselves: each of thousands of devices makes them so.
    all_dirty: bool,
    /// Whether a device or its addresses changed since this was last looked at.
    devices_changed: bool,
    /// To be sent.
    events: Vec<Event>,
}

#[derive(Debug)]
struct Target {
    /// Its route may have changed.
    dirty: bool,
    said: Said,
}

/// The last [`Event::Route`] for a target.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Route(Option<Route>),
}

impl Default for View {
    fn default() -> Self {
        Self {
            stale: true,
            links: BTreeMap::new(),
            addresses: BTreeSet::new(),
            targets: BTreeMap::new(),
            any_dirty: false,
            all_dirty: false,
            devices_changed: false,
            events: Vec::new(),
        }
    }
}

impl View {
    fn set_targets(&mut self, targets: &[IpAddr]) {
        let wanted: BTreeSet<IpAddr> = targets.iter().copied().collect();
        self.targets.retain(|target, _| wanted.contains(target));
        for target in wanted {
            self.targets.entry(target).or_insert_with(|| {
                self.any_dirty = true;
                Target {
                    dirty: true,
                    said: Said::Nothing,
                }
            });
        }
    }

    fn message(&mut self, message: &Message<'_>) {
        let body = message.body;
        match message.kind {
            libc::RTM_NEWLINK => {
                if let Some(LinkDetails { link, .. }) = link::decode(body) {
                    self.link(link);
                }
            }
            libc::RTM_DELLINK => {
                if let Some(ifindex) = link::ifindex(body) {
                    self.link_gone(ifindex);
                }
            }
            libc::RTM_NEWADDR => {
                if let Some(address) = link::decode_address(body) {
                    self.address(address);
                }
            }
            libc::RTM_DELADDR => {
                if let Some(address) = link::decode_address(body) {
                    self.address_gone(address);
                }
            }
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => self.mark_scope(route::scope(body)),
            RTM_NEWNEXTHOP | RTM_DELNEXTHOP | libc::RTM_NEWRULE | libc::RTM_DELRULE => {
                self.mark_all();
            }
            _ => {}
        }
    }

    /// Takes over dumps; what they lack is gone. Every target is dirty.
    fn replace(&mut self, links: Vec<LinkDetails>, addresses: &[DeviceAddress]) {
        let there: BTreeSet<DeviceAddress> = addresses.iter().copied().collect();
        for gone in self
            .addresses
            .difference(&there)
            .copied()
            .collect::<Vec<_>>()
        {
            self.address_gone(gone);
        }
        let indices: BTreeSet<u32> = links.iter().map(|details| details.link.ifindex).collect();
        let known: Vec<u32> = self.links.keys().copied().collect();
        for gone in known
            .into_iter()
            .filter(|ifindex| !indices.contains(ifindex))
        {
            self.link_gone(gone);
        }
        for details in links {
            self.link(details.link);
        }
        for address in there {
            self.address(address);
        }
        self.mark_all();
        self.stale = false;
    }

    fn link(&mut self, link: Link) {
        // The kernel also announces wireless events, statistics and the like.
        if self.links.get(&link.ifindex) == Some(&link) {
            return;
        }
        self.links.insert(link.ifindex, link.clone());
        self.events.push(Event::Link(link));
        // When a device goes down, its IPv4 routes go without RTM_DELROUTE.
        self.devices_changed = true;
        self.mark_all();
    }

    fn link_gone(&mut self, ifindex: u32) {
        if self.links.remove(&ifindex).is_none() {
            return;
        }
        let orphans = self
            .addresses
            .iter()
            .filter(|address| address.ifindex == ifindex);
        for orphan in orphans.copied().collect::<Vec<_>>() {
            self.address_gone(orphan);
        }
        self.events.push(Event::LinkGone { ifindex });
        self.devices_changed = true;
        self.mark_all();
    }

    fn address(&mut self, address: DeviceAddress) {
        let known = self.has_address(address);
        if !self.addresses.insert(address) {
            return;
        }
        if !known {
            let DeviceAddress {
                ifindex, address, ..
            } = address;
            self.events.push(Event::Address { ifindex, address });
        }
        self.devices_changed = true;
        self.mark_all();
    }

    fn address_gone(&mut self, address: DeviceAddress) {
        if !self.addresses.remove(&address) {
            return;
        }
        // A device may have an address twice, with different prefixes.
        if !self.has_address(address) {
            let DeviceAddress {
                ifindex, address, ..
            } = address;
            self.events.push(Event::AddressGone { ifindex, address });
        }
        self.devices_changed = true;
        self.mark_all();
    }

    /// Whether the device has the address, with whatever prefix.
    fn has_address(&self, address: DeviceAddress) -> bool {
        let first = DeviceAddress {
            prefix: 0,
            ..address
        };
        let last = DeviceAddress {
            prefix: u8::MAX,
            ..address
        };
        self.addresses.range(first..=last).next().is_some()
    }

    const fn mark_all(&mut self) {
        (self.any_dirty, self.all_dirty) = (true, true);
    }

    fn mark(&mut self, target: IpAddr) {
        if let Some(target) = self.targets.get_mut(&target) {
            target.dirty = true;
            self.any_dirty = true;
        }
    }

    fn mark_scope(&mut self, scope: Scope) {
        match scope {
            Scope::Nothing => {}
            Scope::Prefix(address, length) => {
                let (first, last) = bounds(address, length);
                for (_, target) in self.targets.range_mut(first..=last) {
                    target.dirty = true;
                    self.any_dirty = true;
                }
            }
            Scope::Everything => {
                debug!("a route message cannot be read: every route is asked for again");
                self.mark_all();
            }
        }
    }

    /// The targets to ask about; they count as asked.
    fn take_dirty(&mut self) -> Vec<IpAddr> {
        if !std::mem::take(&mut self.any_dirty) {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.all_dirty);
        let targets = self.targets.iter_mut();
        let dirty = targets.filter(|(_, target)| all || target.dirty);
        dirty
            .map(|(&address, target)| {
                target.dirty = false;
                address
            })
            .collect()
    }

    /// Takes the kernel's answer; an event where it is not what was said last.
    fn answer(&mut self, to: IpAddr, route: Option<Route>) -> Option<Event> {
        let target = self.targets.get_mut(&to)?;
        let said = Said::Route(route.clone());
        if target.said == said {
            return None;
        }
        target.said = said;
        Some(Event::Route { to, route })
    }
}

/// The first and last address of a prefix; `length` is at most the address's bits.
fn bounds(address: IpAddr, length: u8) -> (IpAddr, IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
            let (first, last) = (v4.to_bits() & !host, v4.to_bits() | host);
            (
                Ipv4Addr::from_bits(first).into(),
                Ipv4Addr::from_bits(last).into(),
            )
        }
        IpAddr::V6(v6) => {
            let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
            let (first, last) = (v6.to_bits() & !host, v6.to_bits() | host);
            (
                Ipv6Addr::from_bits(first).into(),
                Ipv6Addr::from_bits(last).into(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::control::event::NextHop;
    use crate::netlink::link::tests::link_body;
    use crate::netlink::netns::{Process, await_event, in_netns, ip, sysctl};
    use crate::netlink::socket::Answer;

    fn v4(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(ifindex: u32, up: bool) -> Link {
        Link {
            ifindex,
            name: format!("if{ifindex}"),
            up,
            mtu: 1500,
            mac: None,
        }
    }

    fn details(link: Link) -> LinkDetails {
        LinkDetails {
            link,
            kind: String::new(),
            port_of: String::new(),
            peer: None,
            arp: true,
        }
    }

    fn on(ifindex: u32, address: &str, prefix: u8) -> DeviceAddress {
        DeviceAddress {
            ifindex,
            address: v4(address),
            prefix,
        }
    }

    /// A view that said everything there is to say of `targets`.
    fn settled(targets: &[&str]) -> View {
        let mut view = View::default();
        let targets: Vec<_> = targets.iter().map(|text| v4(text)).collect();
        view.set_targets(&targets);
        view.replace(vec![details(link(2, true))], &[on(2, "10.0.0.1", 24)]);
        view.events.clear();
        for target in view.take_dirty() {
            assert!(view.answer(target, None).is_some());
        }
        view
    }

    #[test]
    fn only_targets_inside_a_changed_prefix_are_dirty() {
        let mut view = settled(&[
            "10.65.0.5",
            "10.65.0.6",
            "10.65.0.8",
            "fd00::1",
            "fd00:0:0:1::1",
        ]);
        view.mark_scope(Scope::Prefix(v4("10.65.0.4"), 30));
        assert_eq!(view.take_dirty(), [v4("10.65.0.5"), v4("10.65.0.6")]);
        assert_eq!(view.take_dirty(), Vec::<IpAddr>::new());
        view.mark_scope(Scope::Prefix(v4("10.65.0.8"), 32));
        assert_eq!(view.take_dirty(), [v4("10.65.0.8")]);
        view.mark_scope(Scope::Prefix(v4("fd00::"), 64));
        assert_eq!(view.take_dirty(), [v4("fd00::1")]);
        view.mark_scope(Scope::Prefix(v4("0.0.0.0"), 0));
        assert_eq!(view.take_dirty().len(), 3);
        view.mark_scope(Scope::Prefix(v4("::"), 0));
        assert_eq!(view.take_dirty().len(), 2);
        view.mark_scope(Scope::Nothing);
        assert_eq!(view.take_dirty().len(), 0);
        view.mark_scope(Scope::Everything);
        assert_eq!(view.take_dirty().len(), 5);
    }

    #[test]
    fn an_answer_is_said_once() {
        let target = v4("10.65.0.6");
        let mut view = settled(&["10.65.0.6"]);
        assert_eq!(view.answer(target, None), None);
        let route = Route {
            prefix: (v4("10.65.0.4"), 30),
            protocol: 12,
            metric: 32,
            usable: true,
            next_hops: vec![NextHop {
                ifindex: 2,
                gateway: None,
            }],
        };
        let event = Event::Route {
            to: target,
            route: Some(route.clone()),
        };
        assert_eq!(view.answer(target, Some(route.clone())), Some(event));
        assert_eq!(view.answer(target, Some(route)), None);
        // No longer tracked.
        assert_eq!(view.answer(v4("10.65.0.7"), None), None);
    }

    #[test]
    fn new_targets_are_dirty_and_old_ones_are_not() {
        let mut view = settled(&["10.0.0.5", "10.0.0.6"]);
        view.set_targets(&[v4("10.0.0.6"), v4("10.0.0.7"), v4("10.0.0.7")]);
        assert_eq!(view.take_dirty(), [v4("10.0.0.7")]);
        // Back again: it was forgotten, so its route is said again.
        view.set_targets(&[v4("10.0.0.5")]);
        assert_eq!(view.take_dirty(), [v4("10.0.0.5")]);
        assert!(view.answer(v4("10.0.0.5"), None).is_some());
    }

    #[test]
    fn a_link_message_without_news_is_passed_over() {
        let mut view = settled(&["10.0.0.5"]);
        view.link(link(2, true));
        assert_eq!((view.events.len(), view.any_dirty), (0, false));
        view.link(link(2, false));
        assert_eq!(view.events, [Event::Link(link(2, false))]);
        assert_eq!(view.take_dirty().len(), 1);
    }

    #[test]
    fn a_link_takes_its_addresses_along() {
        let mut view = settled(&[]);
        view.link_gone(2);
        let address = v4("10.0.0.1");
        let gone = [
            Event::AddressGone {
                ifindex: 2,
                address,
            },
            Event::LinkGone { ifindex: 2 },
        ];
        assert_eq!(view.events, gone);
        view.link_gone(2);
        assert_eq!(view.events.len(), 2);
    }

    #[test]
    fn a_port_that_leaves_a_bridge_is_not_gone() {
        let mut view = settled(&[]);
        let body = link_body(libc::AF_BRIDGE as u8, 2, "if2", libc::IFF_UP);
        view.message(&Message {
            kind: libc::RTM_DELLINK,
            flags: 0,
            sequence: 0,
            body: &body,
        });
        assert_eq!(view.events, []);
        let body = link_body(libc::AF_UNSPEC as u8, 2, "if2", 0);
        view.message(&Message {
            kind: libc::RTM_DELLINK,
            flags: 0,
            sequence: 0,
            body: &body,
        });
        assert_eq!(view.events.last(), Some(&Event::LinkGone { ifindex: 2 }));
    }

    #[test]
    fn an_address_with_two_prefixes_goes_with_the_last() {
        let mut view = settled(&[]);
        view.address(on(2, "10.0.0.1", 32));
        view.address_gone(on(2, "10.0.0.1", 24));
        assert_eq!(view.events, []);
        view.address_gone(on(2, "10.0.0.1", 32));
        let address = v4("10.0.0.1");
        assert_eq!(
            view.events,
            [Event::AddressGone {
                ifindex: 2,
                address
            }]
        );
    }

    #[test]
    fn after_lost_messages_the_difference_is_said() {
        let mut view = settled(&["10.0.0.5"]);
        view.link(link(3, true));
        view.events.clear();
        view.stale = true;
        view.replace(vec![details(link(3, false)), details(link(4, true))], &[]);
        let address = v4("10.0.0.1");
        let expected = [
            Event::AddressGone {
                ifindex: 2,
                address,
            },
            Event::LinkGone { ifindex: 2 },
            Event::Link(link(3, false)),
            Event::Link(link(4, true)),
        ];
        assert_eq!(view.events, expected);
        assert_eq!(view.take_dirty().len(), 1);
        assert!(!view.stale);
    }

    #[test]
    fn nexthops_rules_and_unreadable_routes_make_every_target_dirty() {
        let mut view = settled(&["10.0.0.5", "fd00::1"]);
        let kinds = [
            RTM_NEWNEXTHOP,
            RTM_DELNEXTHOP,
            libc::RTM_NEWRULE,
            libc::RTM_DELRULE,
        ];
        for kind in kinds
            .into_iter()
            .chain([libc::RTM_NEWROUTE, libc::RTM_DELROUTE])
        {
            view.message(&Message {
                kind,
                flags: 0,
                sequence: 0,
                body: &[],
            });
            assert_eq!(view.take_dirty().len(), 2);
        }
    }

    #[test]
    fn bounds_of_prefixes() {
        assert_eq!(
            bounds(v4("10.65.0.6"), 30),
            (v4("10.65.0.4"), v4("10.65.0.7"))
        );
        assert_eq!(
            bounds(v4("10.65.0.6"), 32),
            (v4("10.65.0.6"), v4("10.65.0.6"))
        );
        assert_eq!(
            bounds(v4("10.65.0.6"), 0),
            (v4("0.0.0.0"), v4("255.255.255.255"))
        );
        assert_eq!(bounds(v4("fd00::1"), 128), (v4("fd00::1"), v4("fd00::1")));
        assert_eq!(bounds(v4("fd00::1"), 127), (v4("fd00::"), v4("fd00::1")));
    }

    proptest! {
        #[test]
        fn any_message_is_survived(
            kind in prop::sample::select(vec![16_u16, 17, 20, 21, 24, 25, 32, 33, 104, 105]),
            body in prop::collection::vec(any::<u8>(), 0..256),
        ) {
            let mut view = settled(&["10.0.0.5", "fd00::1"]);
            view.message(&Message { kind, flags: 0, sequence: 0, body: &body });
        }
    }

    // What follows is asked of a real kernel.

    /// Two veth pairs, `va` and `vb`, with 10.0.1.1/24 and 10.0.2.1/24; the far ends have no address.
    fn two_links() {
        for (name, number) in [("va", 1), ("vb", 2)] {
            ip(&format!("link add {name} type veth peer name {name}x"));
            ip(&format!("addr add 10.0.{number}.1/24 dev {name}"));
            ip(&format!("addr add fd00:{number}::1/64 dev {name} nodad"));
            ip(&format!("link set {name}x up"));
            ip(&format!("link set {name} up"));
        }
    }

    fn ifindex(name: &str) -> u32 {
        let mut socket = RequestSocket::open().unwrap();
        link::by_name(&mut socket, name)
            .unwrap()
            .unwrap()
            .link
            .ifindex
    }

    fn start(targets: &[&str], options: &MonitorOptions) -> (Monitor, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(16);
        let targets = targets.iter().map(|text| v4(text)).collect();
        (Monitor::spawn(options, targets, sender).unwrap(), receiver)
    }

    /// The next answer for `target`.
    async fn route_to(events: &mut mpsc::Receiver<Event>, target: &str) -> Option<Route> {
        let target = v4(target);
        await_event(events, &format!("route to {target}"), |event| {
            let Event::Route { to, route } = event else {
                return None;
            };
            (*to == target).then(|| route.clone())
        })
        .await
    }

    fn hop(name: &str, gateway: &str) -> NextHop {
        NextHop {
            ifindex: ifindex(name),
            gateway: Some(v4(gateway)),
        }
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn routes_are_followed() {
        in_netns(async || {
            two_links();
            let (monitor, mut events) = start(&["10.9.0.6"], &MonitorOptions::default());
            // Everything there is comes first. The kernel's word that a new device has a carrier
            // may take its time.
            let index = ifindex("vb");
            let address = v4("10.0.2.1");
            let (mut known, mut up, mut addressed, mut routed) = (false, false, false, false);
            await_event(&mut events, "device, address and route", |event| {
                if let Event::Link(link) = event {
                    known |= link.name == "vb";
                    up |= link.name == "vb" && link.up;
                }
                addressed |= *event
                    == Event::Address {
                        ifindex: index,
                        address,
                    };
                if let Event::Route { route, .. } = event {
                    assert!(known, "a route before the devices");
                    assert_eq!(*route, None);
                    routed = true;
                }
                (up && addressed && routed).then_some(())
            })
            .await;

            ip("route add 10.9.0.4/30 via 10.0.1.2 proto bird metric 32");
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            let expected = Route {
                prefix: (v4("10.9.0.4"), 30),
                protocol: 12,
                metric: 32,
                usable: true,
                next_hops: vec![hop("va", "10.0.1.2")],
            };
            assert_eq!(route, expected);

            // OSPF moves it in one step; a less specific route does not matter.
            ip("route add default via 10.0.1.2");
            ip("route replace 10.9.0.4/30 via 10.0.2.2 proto bird metric 32");
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!(route.next_hops, [hop("vb", "10.0.2.2")]);

            ip("route replace 10.9.0.4/30 proto 188 metric 32 \
                nexthop via 10.0.1.2 nexthop via 10.0.2.2");
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!((route.protocol, route.next_hops.len()), (188, 2));

            // Gone: the default route takes over.
            ip("route del 10.9.0.4/30");
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!(route.prefix, (v4("0.0.0.0"), 0));

            // A new target, known and unknown to the kernel.
            monitor.set_targets(vec![v4("10.0.2.7"), v4("fd00:2::7"), v4("fd99::1")]);
            let route = route_to(&mut events, "10.0.2.7").await.unwrap();
            assert_eq!((route.protocol, route.next_hops[0].gateway), (2, None));
            let route = route_to(&mut events, "fd00:2::7").await.unwrap();
            assert_eq!(route.prefix, (v4("fd00:2::"), 64));
            assert_eq!(route_to(&mut events, "fd99::1").await, None);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn routes_that_vanish_without_a_message_are_noticed() {
        in_netns(async || {
            two_links();
            ip("route add 10.9.0.4/30 via 10.0.1.2 metric 10");
            ip("route add 10.9.0.4/30 via 10.0.2.2 metric 20");
            let (_monitor, mut events) = start(&["10.9.0.6"], &MonitorOptions::default());
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!(route.next_hops, [hop("va", "10.0.1.2")]);

            // Administratively down: the kernel flushes the route and sends no RTM_DELROUTE.
            ip("link set va down");
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!(route.next_hops, [hop("vb", "10.0.2.2")]);

            // Carrier lost: the route stays, its next hop is none.
            ip("link set vbx down");
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!((route.usable, route.next_hops.len()), (true, 0));

            let index = ifindex("vb");
            ip("link del vb");
            await_event(&mut events, "vb gone", |event| {
                (*event == Event::LinkGone { ifindex: index }).then_some(())
            })
            .await;
            assert_eq!(route_to(&mut events, "10.9.0.6").await, None);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn a_dead_member_of_a_multipath_route_is_left_out() {
        in_netns(async || {
            two_links();
            ip("route add 10.9.0.4/30 nexthop via 10.0.1.2 nexthop via 10.0.2.2");
            let (_monitor, mut events) = start(&["10.9.0.6"], &MonitorOptions::default());
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!(
                route.next_hops,
                [hop("va", "10.0.1.2"), hop("vb", "10.0.2.2")]
            );
            ip("link set va down");
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!(route.next_hops, [hop("vb", "10.0.2.2")]);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn routes_that_drop_are_no_routes() {
        in_netns(async || {
            two_links();
            let (_monitor, mut events) =
                start(&["10.9.0.6", "fd09::6"], &MonitorOptions::default());
            assert_eq!(route_to(&mut events, "10.9.0.6").await, None);
            assert_eq!(route_to(&mut events, "fd09::6").await, None);
            ip("route add default via 10.0.1.2");
            assert!(route_to(&mut events, "10.9.0.6").await.is_some());
            for kind in ["blackhole", "unreachable", "prohibit"] {
                ip(&format!("route add {kind} 10.9.0.4/30"));
                assert_eq!(route_to(&mut events, "10.9.0.6").await, None, "{kind}");
                ip(&format!("route del {kind} 10.9.0.4/30"));
                assert!(route_to(&mut events, "10.9.0.6").await.is_some());
            }
            // A throw route only leaves the table: the lookup fails or goes on.
            ip("route add throw 10.9.0.4/30");
            assert_eq!(route_to(&mut events, "10.9.0.6").await, None);
            ip("-6 route add default via fd00:1::2");
            assert!(route_to(&mut events, "fd09::6").await.is_some());
            ip("-6 route add blackhole fd09::/64");
            assert_eq!(route_to(&mut events, "fd09::6").await, None);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn rules_and_other_tables_are_followed() {
        in_netns(async || {
            two_links();
            ip("route add 10.9.0.4/30 via 10.0.1.2");
            ip("route add 10.9.0.4/30 via 10.0.2.2 table 77");
            let (_monitor, mut events) = start(&["10.9.0.6"], &MonitorOptions::default());
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!(route.next_hops, [hop("va", "10.0.1.2")]);
            ip("rule add to 10.9.0.0/16 lookup 77");
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!(route.next_hops, [hop("vb", "10.0.2.2")]);
            ip("rule del to 10.9.0.0/16 lookup 77");
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!(route.next_hops, [hop("va", "10.0.1.2")]);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn gateways_of_the_other_family_are_read() {
        in_netns(async || {
            two_links();
            ip("route add 10.9.0.4/30 via inet6 fd00:1::2 dev va");
            let (_monitor, mut events) =
                start(&["10.9.0.6", "fd09::6"], &MonitorOptions::default());
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!(route.next_hops, [hop("va", "fd00:1::2")]);
            ip("route replace 10.9.0.4/30 nexthop via inet6 fd00:1::2 dev va nexthop via 10.0.2.2");
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!(
                route.next_hops,
                [hop("va", "fd00:1::2"), hop("vb", "10.0.2.2")]
            );
            // IPv6 multipath, as OSPFv3 makes it. The kernel begins with the one that its hash of the
            // addresses takes, whose key is another after each boot.
            ip("-6 route add fd09::/64 nexthop via fd00:1::2 nexthop via fd00:2::2");
            let hops = [hop("va", "fd00:1::2"), hop("vb", "fd00:2::2")];
            await_event(&mut events, "both IPv6 next hops", |event| {
                let Event::Route {
                    route: Some(route), ..
                } = event
                else {
                    return None;
                };
                let all = hops.iter().all(|hop| route.next_hops.contains(hop));
                (all && route.next_hops.len() == hops.len()).then_some(())
            })
            .await;
        });
    }

    /// Single nexthop objects, groups, their change and their end.
    async fn nexthop_objects() {
        two_links();
        let targets = ["10.9.0.6", "10.9.1.6", "fd09::6"];
        let (_monitor, mut events) = start(&targets, &MonitorOptions::default());
        for target in targets {
            assert_eq!(route_to(&mut events, target).await, None);
        }
        ip("nexthop add id 1 via 10.0.1.2 dev va");
        ip("nexthop add id 2 via 10.0.2.2 dev vb");
        ip("nexthop add id 12 group 1/2,3");
        ip("route add 10.9.0.4/30 nhid 1 proto 188 metric 20");
        let route = route_to(&mut events, "10.9.0.6").await.unwrap();
        assert_eq!(route.next_hops, [hop("va", "10.0.1.2")]);
        assert_eq!(
            (route.protocol, route.metric, route.usable),
            (188, 20, true)
        );

        ip("route add 10.9.1.4/30 nhid 12 proto 188");
        let route = route_to(&mut events, "10.9.1.6").await.unwrap();
        assert_eq!(
            route.next_hops,
            [hop("va", "10.0.1.2"), hop("vb", "10.0.2.2")]
        );

        ip("nexthop add id 3 via fd00:1::2 dev va");
        ip("nexthop add id 4 via fd00:2::2 dev vb");
        ip("nexthop add id 34 group 3/4");
        ip("-6 route add fd09::/64 nhid 34");
        let route = route_to(&mut events, "fd09::6").await.unwrap();
        assert_eq!(
            route.next_hops,
            [hop("va", "fd00:1::2"), hop("vb", "fd00:2::2")]
        );

        // The object changes under the route: no route message, only RTM_NEWNEXTHOP.
        ip("nexthop replace id 1 via 10.0.1.3 dev va");
        let route = route_to(&mut events, "10.9.0.6").await.unwrap();
        assert_eq!(route.next_hops, [hop("va", "10.0.1.3")]);
        let route = route_to(&mut events, "10.9.1.6").await.unwrap();
        assert_eq!(
            route.next_hops,
            [hop("va", "10.0.1.3"), hop("vb", "10.0.2.2")]
        );

        // A member leaves the group with its device.
        ip("link set va down");
        assert_eq!(route_to(&mut events, "10.9.0.6").await, None);
        let route = route_to(&mut events, "10.9.1.6").await.unwrap();
        assert_eq!(route.next_hops, [hop("vb", "10.0.2.2")]);
        ip("nexthop del id 12");
        assert_eq!(route_to(&mut events, "10.9.1.6").await, None);
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn nexthop_objects_with_compatible_messages() {
        in_netns(async || {
            sysctl("net/ipv4/nexthop_compat_mode", "1");
            nexthop_objects().await;
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn nexthop_objects_with_only_an_id_in_routes() {
        in_netns(async || {
            sysctl("net/ipv4/nexthop_compat_mode", "0");
            nexthop_objects().await;
        });
    }

    /// Adds `count` routes 11.0.0.0/24, 11.0.1.0/24, ... by one `ip -batch`.
    fn burst(count: u32) {
        let mut batch = String::new();
        for n in 0..count {
            let prefix = Ipv4Addr::from_bits(0x0b00_0000 + (n << 8));
            writeln!(batch, "route replace {prefix}/24 via 10.0.2.2").unwrap();
        }
        let mut child = std::process::Command::new("ip")
            .args(["-batch", "-"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        io::Write::write_all(&mut child.stdin.take().unwrap(), batch.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn after_an_overrun_the_final_state_is_right() {
        in_netns(async || {
            two_links();
            ip("link add doomed type veth peer name doomedx");
            ip("route add 10.9.0.4/30 via 10.0.1.2");
            let options = MonitorOptions {
                receive_buffer: 4096,
            };
            let (monitor, mut events) = start(&["10.9.0.6", "10.9.9.9"], &options);
            assert!(route_to(&mut events, "10.9.0.6").await.is_some());
            assert_eq!(route_to(&mut events, "10.9.9.9").await, None);
            let doomed = ifindex("doomed");

            // The runtime has one thread: during these the monitor reads nothing.
            burst(500);
            ip("route replace 10.9.0.4/30 via 10.0.2.2");
            ip("route add 10.9.9.0/24 via 10.0.2.3");
            ip("link del doomed");
            ip("link set va down");
            ip("addr add 10.0.3.1/24 dev vb");

            await_event(&mut events, "doomed gone", |event| {
                (*event == Event::LinkGone { ifindex: doomed }).then_some(())
            })
            .await;
            await_event(&mut events, "va down", |event| {
                matches!(event, Event::Link(link) if link.name == "va" && !link.up).then_some(())
            })
            .await;
            let address = v4("10.0.3.1");
            await_event(&mut events, "a new address", |event| {
                (*event
                    == Event::Address {
                        ifindex: ifindex("vb"),
                        address,
                    })
                .then_some(())
            })
            .await;
            let route = route_to(&mut events, "10.9.0.6").await.unwrap();
            assert_eq!(route.next_hops, [hop("vb", "10.0.2.2")]);
            let route = route_to(&mut events, "10.9.9.9").await.unwrap();
            assert_eq!(route.next_hops, [hop("vb", "10.0.2.3")]);

            // And it goes on as before.
            monitor.set_targets(vec![v4("10.9.9.9")]);
            ip("route replace 10.9.9.0/24 via 10.0.2.4");
            let route = route_to(&mut events, "10.9.9.9").await.unwrap();
            assert_eq!(route.next_hops, [hop("vb", "10.0.2.4")]);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn a_slow_receiver_is_waited_for() {
        in_netns(async || {
            two_links();
            let targets: Vec<_> = (1..200).map(|n| v4(&format!("10.9.0.{n}"))).collect();
            // Room for one event: the monitor waits for the receiver nearly all the time.
            let (sender, mut events) = mpsc::channel(1);
            let monitor = Monitor::spawn(
                &MonitorOptions {
                    receive_buffer: 4096,
                },
                targets,
                sender,
            )
            .unwrap();
            for gateway in ["10.0.1.2", "10.0.2.2", "10.0.1.3"] {
                ip(&format!("route replace 10.9.0.0/24 via {gateway}"));
                burst(50);
                tokio::task::yield_now().await;
            }
            let last = [hop("va", "10.0.1.3")];
            let mut left: BTreeSet<u8> = (1..200).collect();
            await_event(&mut events, "the last route of all targets", |event| {
                if let Event::Route {
                    to: IpAddr::V4(to),
                    route: Some(route),
                } = event
                    && route.next_hops == last
                {
                    left.remove(&to.octets()[3]);
                }
                left.is_empty().then_some(())
            })
            .await;
            drop(monitor);
            assert_eq!(events.recv().await, None);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn a_device_that_leaves_the_namespace_is_gone() {
        in_netns(async || {
            two_links();
            let (_monitor, mut events) = start(&[], &MonitorOptions::default());
            let index = ifindex("va");
            await_event(&mut events, "va", |event| {
                matches!(event, Event::Link(link) if link.ifindex == index).then_some(())
            })
            .await;
            let other = Process::in_other_netns("true");
            ip(&format!("link set va netns {}", other.id()));
            await_event(&mut events, "va gone", |event| {
                (*event == Event::LinkGone { ifindex: index }).then_some(())
            })
            .await;
        });
    }

    /// Adds or replaces `prefix`/24 over device `oif` without the cost of a process.
    fn replace_route(socket: &mut RequestSocket, prefix: Ipv4Addr, gateway: Ipv4Addr) {
        let rtmsg = [
            libc::AF_INET as u8,
            24,
            0,
            0,
            254,
            4,
            0,
            libc::RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let (prefix, gateway) = (prefix.octets(), gateway.octets());
        let attributes = [
            (libc::RTA_DST, &prefix[..]),
            (libc::RTA_GATEWAY, &gateway[..]),
        ];
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let answer = socket
            .ask(libc::RTM_NEWROUTE, flags, &rtmsg, &attributes)
            .unwrap();
        assert!(matches!(answer, Answer::Errno(0)), "{answer:?}");
    }

    /// Measures; `cargo test --release -- --ignored --nocapture measure` prints.
    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn measure_reaction_and_cost() {
        in_netns(async || {
            two_links();
            let mut writer = RequestSocket::open().unwrap();
            let tracked = Ipv4Addr::new(10, 9, 0, 0);
            let gateways = [Ipv4Addr::new(10, 0, 1, 2), Ipv4Addr::new(10, 0, 2, 2)];
            replace_route(&mut writer, tracked, gateways[0]);

            let mut query = RouteQuery::open().unwrap();
            let targets: Vec<IpAddr> = (0..8000)
                .map(|n| Ipv4Addr::from_bits(0x0a09_0000 + n).into())
                .collect();
            let begin = std::time::Instant::now();
            let answers = query.lookup(&targets).unwrap();
            let each = begin.elapsed() / 8000;
            assert!(answers[6].as_ref().unwrap().is_some());
            println!("one lookup: {each:?}");

            let (sender, mut events) = mpsc::channel(16);
            let _monitor = Monitor::spawn(&MonitorOptions::default(), targets, sender).unwrap();
            let last = "10.9.31.63";
            route_to(&mut events, last).await;

            let mut reactions = Vec::new();
            for n in 1..=200 {
                let begin = std::time::Instant::now();
                // 10.9.0.0/24 holds 256 of the targets: the reaction is that for the last of them.
                replace_route(&mut writer, tracked, gateways[n % 2]);
                route_to(&mut events, "10.9.0.0").await;
                let first = begin.elapsed();
                route_to(&mut events, "10.9.0.255").await;
                reactions.push((first, begin.elapsed()));
            }
            reactions.sort();
            let (median, worst) = (reactions[100], reactions[199]);
            println!("first and 256th target: median {median:?}, worst {worst:?}");
            assert!(median.0 < Duration::from_millis(10), "{median:?}");

            // 10,000 changes elsewhere beside 8,000 targets.
            let (mut writing, mut reading) = (Duration::ZERO, Duration::ZERO);
            for n in 0..100 {
                let begin = std::time::Instant::now();
                for m in 0..100 {
                    let prefix = Ipv4Addr::from_bits(0x0b00_0000 + ((n * 100 + m) << 8));
                    replace_route(&mut writer, prefix, gateways[1]);
                }
                writing += begin.elapsed();
                let begin = std::time::Instant::now();
                tokio::time::sleep(Duration::ZERO).await;
                reading += begin.elapsed();
            }
            println!("10,000 changes elsewhere: written in {writing:?}, read in {reading:?}");
            assert!(
                events.try_recv().is_err(),
                "an unrelated change caused an event"
            );
        });
    }
}
