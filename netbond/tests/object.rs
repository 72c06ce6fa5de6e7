//! The committed object, without privilege: what is in it, and that it fits the layouts of this
//! build.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

use std::collections::{BTreeMap, BTreeSet};

use aya_obj::{EbpfSectionKind, Object};
use netbond::loader::{MAPS, OBJECT, PROGRAMS};
use netbond_common::{
    abi::{
        Bond, BondInfo, BondStats, Class, ClassInfo, ClassStats, Driver, EVENTS_KEPT, EventRecord,
        FLOW_BUCKETS, Flowlet, LanInfo, Lane, Live, MAX_BONDS, MAX_CLASSES, MAX_LANES, MAX_LANS,
        MAX_PATHS, MAX_PORTS, MAX_SHARES, Meta, Path, PathInfo, PathStats, ProbeInfo, SAMPLES_LEN,
        Shares, Ticket, TunnelKey, Turns,
    },
    names::{map, program},
    notes::Notes,
    route::{ANSWERS, Answer, HOPS, Hop},
    sequence::{STRANDS, Skew, Strand},
    siphash::Key,
};

/// Longest name the kernel keeps (BPF_OBJ_NAME_LEN less the NUL).
const NAME_LEN: usize = 15;

fn object() -> Object {
    Object::parse(OBJECT).unwrap()
}

#[test]
fn programs_and_maps_are_those_of_the_loader() {
    let object = object();
    let programs: BTreeSet<&str> = object.programs.keys().map(String::as_str).collect();
    assert_eq!(programs, PROGRAMS.into());
    let maps: BTreeSet<&str> = object
        .maps
        .iter()
        .filter(|(_, map)| map.section_kind() == EbpfSectionKind::Maps)
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(maps, MAPS.into());
    for name in programs.iter().chain(&maps) {
        assert!(name.len() <= NAME_LEN, "{name} is cut short by the kernel");
    }
    assert!(
        object.btf.is_some(),
        "without BTF `bpftool map dump` shows bytes only"
    );
}

/// What the compiler leaves to `memset` and its like is done byte by byte, six instructions each.
#[test]
fn bytes_are_not_set_in_loops() {
    /// Opcode of a call, and the source register of one within the object (`BPF_PSEUDO_CALL`).
    const CALL: (u8, u8) = (0x85, 1);
    let object = object();
    // The programs of the plain mode; in the others what is rare may be slow.
    let plain = [program::EGRESS, program::INGRESS_L3, program::INGRESS_L2];
    for name in plain {
        let instructions: Vec<_> = object
            .functions
            .values()
            .filter(|function| function.name == name)
            .flat_map(|function| &function.instructions)
            .collect();
        assert!(!instructions.is_empty(), "{name} is not there");
        let calls = instructions
            .iter()
            .filter(|instruction| (instruction.code, instruction.src_reg()) == CALL)
            .count();
        // A hook may be a call by itself.
        assert!(calls <= 1, "{name}: {calls}");
    }
}

#[test]
fn maps_have_the_layouts_of_this_build() {
    let sizes: BTreeMap<&str, (usize, usize, u32)> = [
        (map::META, (4, size_of::<Meta>(), 1)),
        (map::BOND_BY_IFINDEX, (4, 4, MAX_BONDS)),
        (map::BONDS, (4, size_of::<Bond>(), MAX_BONDS)),
        (map::PATHS, (4, size_of::<Path>(), MAX_PATHS)),
        (map::TUNNELS, (size_of::<TunnelKey>(), 4, MAX_PATHS)),
        (map::LANES, (4, size_of::<Lane>(), MAX_LANES)),
        (map::CLASSES, (4, size_of::<Class>(), MAX_CLASSES)),
        (map::FLOW_TABLE, (4, 8, MAX_BONDS * FLOW_BUCKETS)),
        (
            map::FLOWLETS,
            (4, size_of::<Flowlet>(), MAX_BONDS * FLOW_BUCKETS),
        ),
        (map::GAPS, (4, 8, MAX_BONDS)),
        (map::CLASS_STATS, (4, size_of::<ClassStats>(), MAX_CLASSES)),
        (map::CLASS_INFO, (4, size_of::<ClassInfo>(), MAX_CLASSES)),
        (map::ADMIN, (4, 4, MAX_PATHS)),
        (map::LIMITS, (4, 8, MAX_PATHS)),
        (map::LIVE, (4, size_of::<Live>(), MAX_PATHS)),
        (map::SAMPLES, (0, 0, SAMPLES_LEN)),
        (map::SECRET, (4, size_of::<Key>(), 1)),
        (map::TICKETS, (4, size_of::<Ticket>(), MAX_BONDS)),
        (map::SHARES, (4, size_of::<Shares>(), MAX_SHARES)),
        (map::TURNS, (4, size_of::<Turns>(), MAX_SHARES)),
        (map::NOTES, (4, size_of::<Notes>(), 1)),
        (map::PATH_STATS, (4, size_of::<PathStats>(), MAX_PATHS)),
        (map::BOND_STATS, (4, size_of::<BondStats>(), MAX_BONDS + 1)),
        (map::BOND_INFO, (4, size_of::<BondInfo>(), MAX_BONDS)),
        (map::PATH_INFO, (4, size_of::<PathInfo>(), MAX_PATHS)),
        (map::PROBE_INFO, (4, size_of::<ProbeInfo>(), MAX_PATHS)),
        (map::EVENTS, (4, size_of::<EventRecord>(), EVENTS_KEPT)),
        (map::SEQUENCES, (4, 8, MAX_BONDS * STRANDS)),
        (map::STRANDS, (4, size_of::<Strand>(), MAX_BONDS * STRANDS)),
        (map::SKEWS, (4, size_of::<Skew>(), MAX_BONDS)),
        (map::DRIVERS, (4, size_of::<Driver>(), MAX_PATHS)),
        // struct bpf_devmap_val of linux/bpf.h.
        (map::BOND_PEERS, (4, 8, MAX_BONDS)),
        (map::PORTS, (4, 8, MAX_PORTS)),
        (map::HOPS, (4, size_of::<Hop>(), HOPS)),
        (map::ANSWERS, (4, size_of::<Answer>(), ANSWERS)),
        (map::LEFT, (4, 8, 256)),
        (map::LAN_INFO, (4, size_of::<LanInfo>(), MAX_LANS)),
    ]
    .into();
    for (name, map) in object()
        .maps
        .iter()
        .filter(|(_, map)| map.section_kind() == EbpfSectionKind::Maps)
    {
        let found = (
            map.key_size() as usize,
            map.value_size() as usize,
            map.max_entries(),
        );
        assert_eq!(found, sizes[name.as_str()], "{name}");
    }
}

#[test]
fn license_lets_it_use_the_helpers() {
    assert_eq!(object().license.to_bytes(), b"Dual MIT/GPL");
}
