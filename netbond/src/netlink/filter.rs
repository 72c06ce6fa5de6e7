//! The filters on a device's clsact or ingress queueing discipline (tc(8)): struct tcmsg
//! (linux/rtnetlink.h) with attributes.

use std::io;

use super::socket::{RequestSocket, attributes, string, u32_at};

/// Bytes of struct tcmsg: family (1), padding (3), index (4), handle (4), parent (4), info (4).
const TCMSG: usize = 20;

// linux/pkt_sched.h: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS) and the same of egress.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Those with lower ones are asked first.
    pub priority: u16,
    /// `bpf`, `flower`, `u32`, ...
    pub kind: String,
    /// What a filter of kind `bpf` says that its program is.
    pub name: Option<String>,
}

/// Which way packets go where a filter sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Ingress,
    Egress,
}

/// The filters on one side of a device, in the order in which they are asked; of those with the same
/// priority and kind one.
///
/// # Errors
/// The kernel refuses a socket or a dump.
pub fn filters(ifindex: u32, side: Side) -> io::Result<Vec<Filter>> {
    let mut socket = RequestSocket::open()?;
    let parent = match side {
        Side::Ingress => INGRESS,
        Side::Egress => EGRESS,
    };
    let mut fixed = [0; TCMSG];
    fixed[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    fixed[12..16].copy_from_slice(&parent.to_ne_bytes());
    let bodies = match socket.dump(libc::RTM_GETTFILTER, &fixed) {
        // No such queueing discipline there.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
            return Ok(Vec::new());
        }
        bodies => bodies?,
    };
    let mut filters: Vec<Filter> = bodies.iter().filter_map(|body| decode(body)).collect();
    filters.sort_by_key(|filter| filter.priority);
    filters.dedup();
    Ok(filters)
}

/// Reads an RTM_NEWTFILTER; `None` where it only heads those of a kind and priority.
#[must_use]
pub fn decode(body: &[u8]) -> Option<Filter> {
    let (handle, info) = (u32_at(body, 8)?, u32_at(body, 16)?);
    if handle == 0 {
        return None;
    }
    let (mut kind, mut name) = (None, None);
    for (attribute, value) in attributes(body.get(TCMSG..)?) {
        match attribute {
            TCA_KIND => kind = Some(string(value)),
            TCA_OPTIONS => {
                name = attributes(value)
                    .find(|(attribute, _)| *attribute == TCA_BPF_NAME)
                    .map(|(_, value)| string(value));
            }
            _ => {}
        }
    }
    let kind = kind?;
    Some(Filter {
        priority: (info >> 16) as u16,
        // Other kinds number their options otherwise.
        name: name.filter(|_| kind == "bpf"),
        kind,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::mutated;
    use crate::netlink::link::tests::body;
    use crate::netlink::netns::{in_netns, ip};

    fn bpf(handle: u32) -> Vec<u8> {
        let mut fixed = vec![0; 8];
        for field in [handle, INGRESS, 0x6e62_0003] {
            fixed.extend(field.to_ne_bytes());
        }
        let options = body(&[], &[(TCA_BPF_NAME, b"netbond_in_l3\0")]);
        body(&fixed, &[(TCA_KIND, b"bpf\0"), (TCA_OPTIONS, &options)])
    }

    #[test]
    fn a_filter_is_read() {
        let expected = Filter {
            priority: 0x6e62,
            kind: "bpf".to_owned(),
            name: Some("netbond_in_l3".to_owned()),
        };
        assert_eq!(decode(&bpf(1)), Some(expected));
        assert_eq!(decode(&bpf(0)), None);
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn the_kernels_filters_are_read() {
        in_netns(async || {
            ip("link add d0 type veth peer name d1");
            let ifindex = nix::net::if_::if_nametoindex("d0").unwrap();
            assert_eq!(filters(ifindex, Side::Ingress).unwrap(), []);
            for words in [
                "qdisc add dev d0 clsact",
                "filter add dev d0 ingress prio 7 protocol ip u32 match u32 0 0",
            ] {
                let words = words.split_whitespace();
                assert!(Command::new("tc").args(words).status().unwrap().success());
            }
            let [filter] = &filters(ifindex, Side::Ingress).unwrap()[..] else {
                panic!("one filter");
            };
            assert_eq!((filter.priority, filter.kind.as_str()), (7, "u32"));
            assert_eq!(filters(ifindex, Side::Egress).unwrap(), []);
        });
    }

    proptest! {
        #[test]
        fn mutated_messages_never_panic(bytes in mutated::bytes(bpf(1))) {
            let _ = decode(&bytes);
        }
    }
}
