//! Hosts behind the two ends of a system.

use anyhow::{Context as _, Result};

use super::system::{RECEIVER, Running, SENDER};
use super::traffic::Ends;
use crate::lab::Lab;
use crate::namespace::{self, ip_batch, iproute2, netns_name};

/// Hosts behind the two ends: name, router, the router's address and their own.
pub(super) const HOSTS: [(&str, &str, &str, &str); 2] = [
    ("HA", SENDER, "10.70.1.1", "10.70.1.2"),
    ("HB", RECEIVER, "10.70.2.1", "10.70.2.2"),
];
const NETWORKS: [&str; 2] = ["10.70.1.0/24", "10.70.2.0/24"];

/// The hosts as the two ends of traffic.
pub(super) fn ends(lab: &Lab) -> Ends {
    let [from, to] = HOSTS.map(|(host, ..)| netns_name(lab.name(), host));
    Ends {
        from,
        to,
        target: HOSTS[1].3.to_owned(),
    }
}

/// Has the two ends lead what is for the hosts over the system.
pub(super) fn lead(running: &Running<'_>) -> Result<()> {
    let [there, back] = [NETWORKS[1], NETWORKS[0]];
    running.lead(there, back)
}

/// A router's device that leads to its host.
fn device_to(host: &str) -> String {
    format!("to-{}", host.to_lowercase())
}

/// The receiving host's address that is reached over one path only.
pub(super) fn address_by(path: usize) -> String {
    format!("10.70.2.{}", 10 + path)
}

/// Hosts behind A and B, and routes to them that take one path each; all of it goes with this.
pub(super) struct Hosts<'a> {
    lab: &'a Lab,
    /// Namespace, and the route as ip-route(8) has it.
    routes: Vec<(String, String)>,
}

impl<'a> Hosts<'a> {
    pub(super) fn up(lab: &'a Lab) -> Result<Self> {
        let mut hosts = Self {
            lab,
            routes: Vec::new(),
        };
        for (host, router, gateway, own) in HOSTS {
            let netns = netns_name(lab.name(), host);
            namespace::remove(&netns)?;
            namespace::create(&netns)?;
            let device = device_to(host);
            ip_batch(
                lab.router(router).netns(),
                &format!(
                    "link add {device} type veth peer name eth0 netns {netns}\n\
                     addr add {gateway}/24 dev {device}\nlink set {device} up\n"
                ),
            )?;
            ip_batch(
                &netns,
                &format!(
                    "link set lo up\naddr add {own}/24 dev eth0\nlink set eth0 up\n\
                     route add default via {gateway}\n"
                ),
            )?;
            // What comes by a wire comes in packets.
            let words = format!("netns exec {netns} ethtool -K eth0 tso off");
            iproute2("ip", &words.split(' ').collect::<Vec<_>>())?;
        }
        // One address for each path: where there is no bond, the sender takes the paths in turn.
        let receiver = netns_name(lab.name(), HOSTS[1].0);
        for (number, path) in lab.router(SENDER).paths()?.iter().enumerate() {
            let address = address_by(number);
            ip_batch(&receiver, &format!("addr add {address}/32 dev eth0\n"))?;
            let topology = lab.topology();
            let first = topology
                .ends_of(SENDER)
                .find(|end| end.device == path.device)
                .with_context(|| format!("there is no device {}", path.device))?;
            let second = topology
                .ends_of(&first.peer)
                .find(|end| end.peer == RECEIVER)
                .with_context(|| format!("{} leads nowhere", first.peer))?;
            for (router, device) in [(SENDER, &first.device), (&first.peer, &second.device)] {
                let netns = lab.router(router).netns();
                let route = format!("{address}/32 dev {device}");
                ip_batch(netns, &format!("route add {route}\n"))?;
                hosts.routes.push((netns.to_owned(), route));
            }
        }
        Ok(hosts)
    }
}

impl Drop for Hosts<'_> {
    fn drop(&mut self) {
        let routes = self
            .routes
            .iter()
            .map(|(netns, route)| ip_batch(netns, &format!("route del {route}\n")));
        let hosts = HOSTS.iter().map(|(host, router, ..)| {
            // At once: a namespace's own end takes its devices away some time later.
            let netns = self.lab.router(router).netns();
            ip_batch(netns, &format!("link del {}\n", device_to(host)))?;
            namespace::remove(&netns_name(self.lab.name(), host))
        });
        for error in routes.chain(hosts).filter_map(Result::err) {
            eprintln!("cannot take the hosts away: {error:#}");
        }
    }
}
