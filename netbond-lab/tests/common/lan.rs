//! Hosts on LANs behind routers whose drivers may forward (XDP).

use netbond_lab::{Lab, Router, wait_for};

use super::ethernet::{PATHS, config, up};
use super::{SOON, path, reconfigure, status};

pub(crate) const NATIVE: &str = "xdp = \"native\"";
/// Voice is copied, and so each packet of the bond has a number.
pub(crate) const NUMBERED: &str =
    "[[bond.class]]\nname = \"voice\"\ndscp = \"ef\"\nmode = \"duplicate\"";
/// Addresses of the hosts, behind A and behind B.
pub(crate) const HOSTS: [[&str; 2]; 2] = [["10.70.1.1", "fd70:1::1"], ["10.70.2.1", "fd70:2::1"]];

/// A router's configuration with a line for the bond, one for each path, and one for its LAN.
pub(crate) fn with_lan(router: &Router, bond: &str, path: &str, lan: &str) -> String {
    format!(
        "{}[[lan]]\nname = \"l0\"\n{lan}\n",
        config(router, bond, path)
    )
}

/// A and B with a LAN each, and a host on it: the middle routers of the topology, which have nothing else to do.
pub(crate) fn up_with_lans(name: &str, bond: &str) -> Lab {
    let lab = up(name, bond, NATIVE);
    for (router, host, own, far) in [("A", "M1", 1, 2), ("B", "M2", 2, 1)] {
        let (router, host) = (lab.router(router), lab.router(host));
        router
            .ip(&format!(
                "link add l0 type veth peer name l0 netns {}\n\
                 addr add 10.70.{own}.254/24 dev l0\naddr add fd70:{own}::254/64 dev l0 nodad\n\
                 link set l0 up\n\
                 route add 10.70.{far}.0/24 via 10.67.0.{far} dev nb0\n\
                 route add fd70:{far}::/64 via fd67::{far} dev nb0\n",
                host.netns()
            ))
            .unwrap();
        host.ip(&format!(
            "addr add 10.70.{own}.1/24 dev l0\naddr add fd70:{own}::1/64 dev l0 nodad\n\
             link set l0 up\n\
             route add 10.70.{far}.0/24 via 10.70.{own}.254\n\
             route add fd70:{far}::/64 via fd70:{own}::254\n"
        ))
        .unwrap();
        for end in [router, host] {
            end.make_wire("l0").unwrap();
        }
    }
    lab
}

/// The same, forwarded by drivers.
pub(crate) fn up_native(name: &str) -> Lab {
    up_native_with(name, "")
}

/// The same with a line for the bond.
pub(crate) fn up_native_with(name: &str, bond: &str) -> Lab {
    let lab = up_with_lans(name, bond);
    for router in [lab.router("A"), lab.router("B")] {
        reconfigure(router, &with_lan(router, bond, NATIVE, NATIVE));
        wait_lan(router, "native");
    }
    lab
}

/// Waits until the LAN is forwarded as this word of the status says.
pub(crate) fn wait_lan(router: &Router, word: &str) {
    wait_for(&format!("lan: {word} in {}", router.name()), SOON, || {
        let now = status(router)["lans"][0]["xdp"].clone();
        anyhow::ensure!(now == word, "{now}");
        Ok(Some(()))
    })
    .unwrap();
}

/// Waits until what LANs send into the bond is encapsulated as this word of the status says.
pub(crate) fn wait_send(router: &Router, word: &str) {
    wait_for(&format!("sends: {word} in {}", router.name()), SOON, || {
        let now = status(router)["bonds"][0]["xdp_send"].clone();
        anyhow::ensure!(now == word, "{now}");
        Ok(Some(()))
    })
    .unwrap();
}

/// Packets of each path that the kernel saw nothing of: sent, received.
pub(crate) fn onward(router: &Router) -> [[u64; 2]; 2] {
    PATHS.map(|name| {
        let path = path(router, name);
        ["tx_onward", "rx_onward"].map(|field| path[field].as_u64().unwrap())
    })
}

/// Sums of both paths: sent, received.
pub(crate) fn in_all(router: &Router) -> [u64; 2] {
    let [a, b] = onward(router);
    [a[0] + b[0], a[1] + b[1]]
}
