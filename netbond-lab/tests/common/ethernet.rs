//! Paths straight over Ethernet, without WireGuard.

use std::time::Duration;

use netbond_lab::{Lab, Options, Router, Topology, wait_for};

use super::{SOON, path, wait_proven};

pub(crate) const PATHS: [&str; 2] = ["via-m1", "via-m2"];
pub(crate) const DEVICES: [&str; 2] = ["e0", "e1"];
pub(crate) const PACE: Duration = Duration::from_millis(2);

/// netbond's configuration of A, or of B, with a further line for the bond and for each path.
pub(crate) fn config(router: &Router, bond: &str, path: &str) -> String {
    let (own, far) = if router.name() == "A" { (1, 2) } else { (2, 1) };
    let mut text = format!(
        "route_protocols = [\"kernel\"]\n[[bond]]\nname = \"nb0\"\n\
         address = [\"10.67.0.{own}/24\", \"fd67::{own}/64\"]\n{bond}\n"
    );
    // The second path is over IPv6.
    for (link, (own, far)) in [
        (format!("10.66.1.{own}"), format!("10.66.1.{far}")),
        (format!("fd66::{own}"), format!("fd66::{far}")),
    ]
    .into_iter()
    .enumerate()
    {
        text += &format!(
            "[[bond.path]]\nname = \"{}\"\nlocal = \"{own}\"\nremote = \"{far}\"\ndevice = \"{}\"\n{path}\n",
            PATHS[link], DEVICES[link]
        );
    }
    text
}

/// A and B, joined by two Ethernet links.
pub(crate) fn up(name: &str, bond: &str, path: &str) -> Lab {
    let options = Options {
        netbond: false,
        ..Default::default()
    };
    let lab = Lab::up_with(name, &Topology::reference(), options).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    let pair = |link| {
        format!(
            "link add e{link} type veth peer name e{link} netns {}\n",
            b.netns()
        )
    };
    a.ip(&(pair(0) + &pair(1))).unwrap();
    for (router, own) in [(a, 1), (b, 2)] {
        router
            .ip(&format!(
                "addr add 10.66.1.{own}/24 dev e0\naddr add fd66::{own}/64 dev e1 nodad\n\
                 link set e0 up\nlink set e1 up\n"
            ))
            .unwrap();
        for link in DEVICES {
            router.make_wire(link).unwrap();
        }
        router.write_config(&config(router, bond, path)).unwrap();
        router.start_netbond().unwrap();
    }
    for router in [a, b] {
        router.wait_netbond(SOON).unwrap();
        wait_proven(router);
    }
    lab
}

/// Waits until both paths are received as this word of the status says.
pub(crate) fn wait_xdp(router: &Router, word: &str) {
    let what = format!("xdp: {word} in {}", router.name());
    wait_for(&what, SOON, || {
        let now = PATHS.map(|name| path(router, name)["xdp"].clone());
        anyhow::ensure!(now.iter().all(|now| now == word), "{now:?}");
        Ok(Some(()))
    })
    .unwrap();
}

pub(crate) fn has_program(router: &Router, device: &str) -> bool {
    let shown = router.run(&["ip", "link", "show", "dev", device]);
    shown.unwrap().contains("xdp")
}

/// Waits until a program is in both drivers, or until there is none: the kernel lets go of a link in the
/// background.
pub(crate) fn wait_program(router: &Router, there: bool) {
    wait_for("the programs to come or go", SOON, || {
        let now = DEVICES.map(|device| has_program(router, device));
        Ok((now == [there; 2]).then_some(()))
    })
    .unwrap();
}
