//! Two routers joined by plain Ethernet links, for measuring a controller alone: WireGuard in user space
//! would be most of what is measured.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::Result;

use crate::namespace;
use crate::router::Router;
use crate::topology::{Ospf, RouterSpec, Topology};

/// Routers A and B, without a link so far.
pub(crate) fn topology() -> Topology {
    Topology {
        routers: vec![
            RouterSpec::new("A", Ipv4Addr::new(10, 65, 2, 2)),
            RouterSpec::new("B", Ipv4Addr::new(10, 65, 2, 1)),
        ],
        links: Vec::new(),
        bonds: Vec::new(),
        ospf: Ospf::default(),
    }
}

/// The outer address of a path's end.
pub(crate) fn address(path: u16, far: bool) -> Ipv4Addr {
    let [high, low] = path.to_be_bytes();
    Ipv4Addr::new(10, 70 + u8::from(far), high, low)
}

/// What `ip route` calls a path's own route, seen from A or (`far`) from B: the paths of a bond of so many
/// take different links.
pub(crate) fn route(path: u16, size: u16, far: bool) -> String {
    let (link, peer) = (path % size, if far { 1 } else { 2 });
    format!(
        "{}/32 via 10.72.{link}.{peer} dev u{link} proto static",
        address(path, !far)
    )
}

/// Links u0, u1 and so on, one for each path of a bond of `size` paths, at the most; the paths' addresses,
/// and a route for each.
pub(crate) fn lay_links(a: &Router, b: &Router, paths: u16, size: u16) -> Result<()> {
    let links = paths.min(size);
    let mut near = String::new();
    for link in 0..links {
        // Writing to a string cannot fail.
        let _ = writeln!(
            near,
            "link add u{link} type veth peer name u{link} netns {}",
            b.netns()
        );
    }
    namespace::ip_batch(a.netns(), &near)?;
    for (router, far) in [(a, false), (b, true)] {
        let mut commands = String::new();
        let own = if far { 2 } else { 1 };
        for link in 0..links {
            let _ = writeln!(
                commands,
                "addr add 10.72.{link}.{own}/30 dev u{link}\nlink set u{link} up"
            );
        }
        for path in 0..paths {
            let _ = writeln!(
                commands,
                "addr add {}/32 dev lo\nroute add {}",
                address(path, far),
                route(path, size, far)
            );
        }
        namespace::ip_batch(router.netns(), &commands)?;
    }
    Ok(())
}

/// netbond's configuration for bonds nb0, nb1 and so on of `size` paths p0, p1 and so on each; with the
/// defaults wherever `lines` says nothing else of the bonds.
pub(crate) fn config(paths: u16, size: u16, far: bool, lines: &str) -> String {
    let mut text = "route_protocols = [\"static\"]\n".to_owned();
    for path in 0..paths {
        if path % size == 0 {
            let _ = write!(text, "\n[[bond]]\nname = \"nb{}\"\n{lines}", path / size);
        }
        let _ = write!(
            text,
            "\n[[bond.path]]\nname = \"p{path}\"\nlocal = \"{}\"\nremote = \"{}\"\ndevice = \"u{}\"\n",
            address(path, far),
            address(path, !far),
            path % size,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_configurations_name_each_path_once_with_its_addresses_exchanged() {
        let (near, far) = (config(1024, 16, false, ""), config(1024, 16, true, ""));
        assert_eq!(near.matches("[[bond]]").count(), 64);
        assert_eq!(near.matches("[[bond.path]]").count(), 1024);
        let last = "name = \"p1023\"\nlocal = \"10.70.3.255\"\nremote = \"10.71.3.255\"\n\
                    device = \"u15\"\n";
        assert!(near.ends_with(last), "{near}");
        assert!(far.contains("local = \"10.71.3.255\"\nremote = \"10.70.3.255\""));
        let few = config(2, 16, false, "mode = \"flow\"\n");
        assert!(few.contains("name = \"nb0\"\nmode = \"flow\"\n"), "{few}");
        assert!(few.contains("device = \"u1\""));
    }

    #[test]
    fn a_route_leads_to_the_other_end() {
        assert_eq!(
            route(9, 8, false),
            "10.71.0.9/32 via 10.72.1.2 dev u1 proto static"
        );
        assert_eq!(
            route(9, 8, true),
            "10.70.0.9/32 via 10.72.1.1 dev u1 proto static"
        );
    }

    #[test]
    fn the_lab_can_be_built() {
        topology().validate().unwrap();
    }
}
