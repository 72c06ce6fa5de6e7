//! The maps, behind functions: nothing else in the crate names one.
//!
//! The controller writes while packets pass. Array entries are overwritten in place, so a packet may
//! see a mix of an old and a new entry of its own bond or path for a moment; any mix steers it over a
//! path of that bond. Counters and tickets are per CPU and programs do not migrate: no atomics.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_RB_NO_WAKEUP, xdp_action::XDP_DROP},
    helpers::generated::bpf_map_lookup_percpu_elem,
    macros::map,
    maps::{Array, DevMap, DevMapHash, HashMap, PerCpuArray, RingBuf},
};
use netbond_common::{
    abi::{
        ADMIN_DOWN, BOND_SHARES, Bond, BondInfo, BondStats, Class, ClassInfo, ClassStats, Driver,
        EVENTS_KEPT, EventRecord, FLOW_BUCKETS, Flowlet, LanInfo, Lane, Live, MAX_BOND_CLASSES,
        MAX_BOND_PATHS, MAX_BONDS, MAX_CLASSES, MAX_LANES, MAX_LANS, MAX_PATHS, MAX_PORTS,
        MAX_SHARES, Meta, NO_BOND, PATH_LAPSED, PATH_SPARE, PATH_STALE, PATH_USABLE, Path,
        PathInfo, PathStats, ProbeInfo, SAMPLES_LEN, Sample, Shares, Ticket, TunnelKey, Turns,
    },
    fate::Fate,
    notes::Notes,
    route::{self, Answer, Hop},
    sequence::{STRANDS as BOND_STRANDS, Skew, Stamp, Strand},
    siphash::Key,
};

use crate::{atomic, packet::monotonic_coarse};

// Without preallocation an element is freed, not handed out again, while a program still reads it.
#[map]
static BOND_BY_IFINDEX: HashMap<u32, u32> = HashMap::with_max_entries(MAX_BONDS, BPF_F_NO_PREALLOC);
#[map]
static TUNNELS: HashMap<TunnelKey, u32> = HashMap::with_max_entries(MAX_PATHS, BPF_F_NO_PREALLOC);
#[map]
static DRIVERS: HashMap<u32, Driver> = HashMap::with_max_entries(MAX_PATHS, BPF_F_NO_PREALLOC);
// Devices whose egress is the ingress of a bond device: the other ends of the veth pairs.
#[map]
static BOND_PEERS: DevMap = DevMap::with_max_entries(MAX_BONDS, 0);
// By the last byte of a neighbour's address: when a packet to it was last left to the kernel.
#[map]
static LEFT: PerCpuArray<u64> = PerCpuArray::with_max_entries(256, 0);
#[map]
static HOPS: PerCpuArray<Hop> = PerCpuArray::with_max_entries(route::HOPS, 0);
#[map]
static ANSWERS: PerCpuArray<Answer> = PerCpuArray::with_max_entries(route::ANSWERS, 0);
// Devices whose drivers send what others received, by ifindex.
#[map]
static PORTS: DevMapHash = DevMapHash::with_max_entries(MAX_PORTS, 0);
#[map]
static BONDS: Array<Bond> = Array::with_max_entries(MAX_BONDS, 0);
#[map]
static PATHS: Array<Path> = Array::with_max_entries(MAX_PATHS, 0);
#[map]
static LANES: Array<Lane> = Array::with_max_entries(MAX_LANES, 0);
#[map]
static CLASSES: Array<Class> = Array::with_max_entries(MAX_CLASSES, 0);
#[map]
static FLOW_TABLE: Array<u64> = Array::with_max_entries(MAX_BONDS * FLOW_BUCKETS, 0);
#[map]
static FLOWLETS: Array<Flowlet> = Array::with_max_entries(MAX_BONDS * FLOW_BUCKETS, 0);
#[map]
static GAPS: Array<u64> = Array::with_max_entries(MAX_BONDS, 0);
#[map]
static ADMIN: Array<u32> = Array::with_max_entries(MAX_PATHS, 0);
#[map]
static LIMITS: Array<u64> = Array::with_max_entries(MAX_PATHS, 0);
#[map]
static LIVE: Array<Live> = Array::with_max_entries(MAX_PATHS, 0);
#[map]
static SAMPLES: RingBuf = RingBuf::with_byte_size(SAMPLES_LEN, 0);
#[map]
static SECRET: Array<Key> = Array::with_max_entries(1, 0);
#[map]
static TICKETS: PerCpuArray<Ticket> = PerCpuArray::with_max_entries(MAX_BONDS, 0);
#[map]
static SHARES: Array<Shares> = Array::with_max_entries(MAX_SHARES, 0);
#[map]
static TURNS: PerCpuArray<Turns> = PerCpuArray::with_max_entries(MAX_SHARES, 0);
#[map]
static NOTES: PerCpuArray<Notes> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SEQUENCES: Array<u64> = Array::with_max_entries(MAX_BONDS * BOND_STRANDS, 0);
// One is large: there are those only of bonds that need them.
#[map]
static STRANDS: HashMap<u32, Strand> =
    HashMap::with_max_entries(MAX_BONDS * BOND_STRANDS, BPF_F_NO_PREALLOC);
#[map]
static SKEWS: Array<Skew> = Array::with_max_entries(MAX_BONDS, 0);
#[map]
static PATH_STATS: PerCpuArray<PathStats> = PerCpuArray::with_max_entries(MAX_PATHS, 0);
#[map]
static BOND_STATS: PerCpuArray<BondStats> = PerCpuArray::with_max_entries(NO_BOND + 1, 0);
#[map]
static CLASS_STATS: PerCpuArray<ClassStats> = PerCpuArray::with_max_entries(MAX_CLASSES, 0);

// Of the controller and the CLI alone; defined here so that the object holds the whole layout.
#[map]
static META: Array<Meta> = Array::with_max_entries(1, 0);
#[map]
static BOND_INFO: Array<BondInfo> = Array::with_max_entries(MAX_BONDS, 0);
#[map]
static CLASS_INFO: Array<ClassInfo> = Array::with_max_entries(MAX_CLASSES, 0);
#[map]
static PATH_INFO: Array<PathInfo> = Array::with_max_entries(MAX_PATHS, 0);
#[map]
static LAN_INFO: Array<LanInfo> = Array::with_max_entries(MAX_LANS, 0);
#[map]
static PROBE_INFO: Array<ProbeInfo> = Array::with_max_entries(MAX_PATHS, 0);
#[map]
static EVENTS: Array<EventRecord> = Array::with_max_entries(EVENTS_KEPT, 0);

/// The id of the bond whose device has this ifindex.
#[inline(always)]
pub(crate) fn bond_id(ifindex: u32) -> Option<u32> {
    let id = BOND_BY_IFINDEX.get_ptr(ifindex)?;
    // SAFETY: the map hands out live elements, kept until this program ends (no preallocation).
    Some(unsafe { *id })
}

/// The id of the path on which such a packet comes.
#[inline(always)]
pub(crate) fn path_id(key: &TunnelKey) -> Option<u32> {
    let id = TUNNELS.get_ptr(key)?;
    // SAFETY: as in `bond_id`.
    Some(unsafe { *id })
}

/// A device whose driver hands packets to a program.
#[inline(always)]
pub(crate) fn driver(ifindex: u32) -> Option<&'static Driver> {
    let driver = DRIVERS.get_ptr(ifindex)?;
    // SAFETY: as in `bond_id`.
    Some(unsafe { &*driver })
}

/// Has the kernel hand the frame that a driver received to a bond's device, as if that had received it;
/// returns the driver's action.
#[inline(always)]
pub(crate) fn redirect_to_bond(id: u32) -> u32 {
    match BOND_PEERS.redirect(id, u64::from(XDP_DROP)) {
        Ok(action) | Err(action) => action,
    }
}

/// The next hop of a path, as this CPU last found it, if it did.
#[inline(always)]
pub(crate) fn hop(path: u32) -> Option<&'static mut Hop> {
    let hop = HOPS.get_ptr_mut(path % route::HOPS)?;
    // SAFETY: per CPU, and this program is the only one on this CPU that touches it.
    Some(unsafe { &mut *hop })
}

/// Where packets go on, as the kernel last told this CPU of a question with this place.
#[inline(always)]
pub(crate) fn answer(place: u32) -> Option<&'static mut Answer> {
    let answer = ANSWERS.get_ptr_mut(place)?;
    // SAFETY: per CPU, and this program is the only one on this CPU that touches it.
    Some(unsafe { &mut *answer })
}

/// Whether the driver of a device sends frames that another one received.
#[inline(always)]
pub(crate) fn is_port(ifindex: u32) -> bool {
    PORTS.get_ifindex(ifindex).is_some()
}

/// Has the driver of a device send the frame that another one received; returns that one's action.
#[inline(always)]
pub(crate) fn redirect_to_port(ifindex: u32) -> u32 {
    match PORTS.redirect(ifindex, u64::from(XDP_DROP)) {
        Ok(action) | Err(action) => action,
    }
}

/// How often a packet to a neighbour is left to the kernel that could be forwarded in a driver, ns.
const KERNELS_TURN: u64 = 1_000_000_000;

/// Whether it is the kernel's turn to send a packet to a neighbour, by the last byte of its address. The kernel
/// finds out, by those that it sends itself, whether a neighbour is still where it was.
#[inline(always)]
pub(crate) fn is_kernels_turn(neighbour: u8) -> bool {
    let Some(left) = LEFT.get_ptr_mut(u32::from(neighbour)) else {
        return true;
    };
    // SAFETY: per CPU, and this program is the only one on this CPU that touches it.
    let left = unsafe { &mut *left };
    let now = monotonic_coarse();
    let due = now.saturating_sub(*left) >= KERNELS_TURN;
    if due {
        *left = now;
    }
    due
}

/// A bond by id.
#[inline(always)]
pub(crate) fn bond(id: u32) -> Option<&'static Bond> {
    BONDS.get(id)
}

/// The id of a bond's path.
#[inline(always)]
pub(crate) const fn path_of(bond: u32, path: u32) -> u32 {
    bond * MAX_BOND_PATHS + path
}

/// The id of a path's bond.
#[inline(always)]
pub(crate) const fn bond_of(path: u32) -> u32 {
    path / MAX_BOND_PATHS
}

/// A path by id.
#[inline(always)]
pub(crate) fn path(id: u32) -> Option<&'static Path> {
    PATHS.get(id)
}

/// A path's `PATH_*` flags: 0 where the user took it out, stale (and lapsed, where it was usable) and not usable where its last proof
/// of life is older than its limit. Where there is no limit, nothing is read or compared.
#[inline(always)]
pub(crate) fn path_flags(id: u32) -> u32 {
    let (Some(&admin), Some(path)) = (ADMIN.get(id), PATHS.get(id)) else {
        return 0;
    };
    if admin == ADMIN_DOWN {
        return 0;
    }
    let Some(&limit) = LIMITS.get(id).filter(|limit| **limit != 0) else {
        // Nor is anything known of a return.
        return path.flags & !PATH_SPARE;
    };
    match LIVE.get(id) {
        // The clock of the proof may be a tick ahead of this one.
        Some(live) if monotonic_coarse().saturating_sub(live.proof_ns) > limit => {
            let lapsed = (path.flags & PATH_USABLE) * (PATH_LAPSED / PATH_USABLE);
            path.flags & !PATH_USABLE | PATH_STALE | lapsed
        }
        Some(_) | None => path.flags,
    }
}

/// What is known of a path's liveness. Two probes of one path on two CPUs at once may mix up their
/// notes: the worst is a probe that proves nothing.
#[inline(always)]
pub(crate) fn live(path: u32) -> Option<&'static mut Live> {
    let live = LIVE.get_ptr_mut(path)?;
    // SAFETY: plain integers, which any mix of writes leaves valid.
    Some(unsafe { &mut *live })
}

/// The key of this host's cookies and nonces.
#[inline(always)]
pub(crate) fn secret() -> Key {
    SECRET.get(0).copied().unwrap_or_default()
}

/// Tells the controller of an answer; lost where it does not read.
#[inline(always)]
pub(crate) fn report(sample: Sample) {
    // The controller looks by itself: a wake-up for each answer would cost more than the probe.
    let _ = SAMPLES.output::<Sample>(sample, u64::from(BPF_RB_NO_WAKEUP));
}

/// The id of the lane of a class, by its place in its bond.
#[inline(always)]
pub(crate) const fn lane_of(bond: u32, class: u32) -> u32 {
    MAX_BONDS + bond * MAX_BOND_CLASSES + class
}

/// A lane by id.
#[inline(always)]
pub(crate) fn lane(id: u32) -> Option<&'static Lane> {
    LANES.get(id)
}

/// A class by its place in its bond.
#[inline(always)]
pub(crate) fn class(bond: u32, class: u32) -> Option<&'static Class> {
    CLASSES.get(bond * MAX_BOND_CLASSES + class)
}

/// The order in which a flow of this hash prefers the paths of a bond.
#[inline(always)]
pub(crate) fn flow_order(bond: u32, hash: u32) -> Option<u64> {
    FLOW_TABLE.get(bucket(bond, hash)).copied()
}

/// Where flows of this hash went last. Two packets on two CPUs at once may mix up their notes: the
/// worst is that one flow moves without a pause.
#[inline(always)]
pub(crate) fn flowlet(bond: u32, hash: u32) -> Option<&'static mut Flowlet> {
    let flowlet = FLOWLETS.get_ptr_mut(bucket(bond, hash))?;
    // SAFETY: plain integers, which any mix of writes leaves valid.
    Some(unsafe { &mut *flowlet })
}

#[inline(always)]
const fn bucket(bond: u32, hash: u32) -> u32 {
    bond * FLOW_BUCKETS + hash % FLOW_BUCKETS
}

/// The pause after which a flow of a bond may move, ns.
#[inline(always)]
pub(crate) fn gap(bond: u32) -> u64 {
    GAPS.get(bond).copied().unwrap_or_default()
}

/// This CPU's place on the wheel of a bond.
#[inline(always)]
pub(crate) fn ticket(bond: u32) -> Option<&'static mut Ticket> {
    let ticket = TICKETS.get_ptr_mut(bond)?;
    // SAFETY: per CPU, and this program is the only one on this CPU that touches it.
    Some(unsafe { &mut *ticket })
}

/// Shares of a bond, by `SHARES_*`, and how far this CPU is in their turns.
#[inline(always)]
pub(crate) fn turns(bond: u32, shares: u32) -> Option<(&'static Shares, &'static mut Turns)> {
    let index = bond * BOND_SHARES + shares;
    let turns = TURNS.get_ptr_mut(index)?;
    // SAFETY: per CPU, and this program is the only one on this CPU that touches it.
    Some((SHARES.get(index)?, unsafe { &mut *turns }))
}

/// This CPU's notes.
#[inline(always)]
pub(crate) fn notes() -> Option<&'static mut Notes> {
    let notes = NOTES.get_ptr_mut(0)?;
    // SAFETY: per CPU, and this program is the only one on this CPU that touches it.
    Some(unsafe { &mut *notes })
}

/// The stamp of the bond's next packet in this strand, which stands for so many on the wire.
#[inline(always)]
pub(crate) fn stamp(bond: u32, strand: u32, packets: u32) -> Option<Stamp> {
    let strand = strand & (BOND_STRANDS - 1);
    let count = SEQUENCES.get_ptr_mut(bond * BOND_STRANDS + strand)?;
    // SAFETY: a live element; programs change it by atomic additions alone.
    let count = unsafe { atomic::fetch_add(count, u64::from(packets)) };
    Some(Stamp::new(strand, count, packets))
}

/// How often a strand's lock is tried: whoever has it works for less than a microsecond, and is never
/// interrupted by another of these programs. But an interrupt may take tens of microseconds, which are
/// waited for; and a hypervisor may take the processor away for milliseconds, which are not.
const TRIES: u32 = 1024;

/// A bond's strand, locked until [`unlock`]; `None` where there is no such strand or no getting at it.
#[inline(always)]
pub(crate) fn lock_strand(
    bond: u32,
    strand: u32,
) -> Option<(&'static mut Strand, &'static mut Skew)> {
    let strand = STRANDS.get_ptr_mut(bond * BOND_STRANDS + strand)?;
    let skew = SKEWS.get_ptr_mut(bond)?;
    // The lock is the first field.
    let lock = strand.cast::<u64>();
    let mut tries = 0;
    // SAFETY: a live element, and nothing else is done to its lock.
    while !unsafe { atomic::try_lock(lock) } {
        tries += 1;
        if tries == TRIES {
            return None;
        }
    }
    // SAFETY: a live element (no preallocation), ours alone by the lock.
    let strand = unsafe { &mut *strand };
    // SAFETY: plain integers, which any mix of writes leaves valid.
    Some((strand, unsafe { &mut *skew }))
}

/// Lets others at the strand.
#[inline(always)]
pub(crate) fn unlock(strand: &mut Strand) {
    // SAFETY: a live element whose lock is ours.
    unsafe { atomic::unlock(&raw mut strand.lock) };
}

/// This CPU's counters of a path.
#[inline(always)]
pub(crate) fn path_stats(path: u32) -> Option<&'static mut PathStats> {
    let stats = PATH_STATS.get_ptr_mut(path)?;
    // SAFETY: per CPU, and this program is the only one on this CPU that touches it.
    Some(unsafe { &mut *stats })
}

/// CPUs whose counters are summed up at the most: each is a turn that the verifier takes.
const MAX_CPUS: u32 = 256;

/// What all CPUs sent on a path: packets, bytes.
#[inline(always)]
pub(crate) fn sent(path: u32) -> (u64, u64) {
    sum(path, |stats| (stats.tx_packets, stats.tx_bytes))
}

/// What all CPUs received on a path: packets, bytes.
#[inline(always)]
pub(crate) fn received(path: u32) -> (u64, u64) {
    sum(path, |stats| (stats.rx_packets, stats.rx_bytes))
}

#[inline(always)]
fn sum(path: u32, of: impl Fn(&PathStats) -> (u64, u64)) -> (u64, u64) {
    let mut total = (0_u64, 0_u64);
    for cpu in 0..MAX_CPUS {
        let (map, key) = (
            (&raw const PATH_STATS).cast_mut().cast(),
            (&raw const path).cast(),
        );
        // SAFETY: a plain helper call: its map is the symbol itself (the definition is the map's only
        // field), and its key is on the stack.
        let stats = unsafe { bpf_map_lookup_percpu_elem(map, key, cpu) };
        // SAFETY: a live element, or null beyond the last CPU. Others count on meanwhile: each counter is
        // a word, read whole.
        let Some(stats) = (unsafe { stats.cast::<PathStats>().as_ref() }) else {
            break;
        };
        let (packets, bytes) = of(stats);
        total.0 = total.0.wrapping_add(packets);
        total.1 = total.1.wrapping_add(bytes);
    }
    total
}

/// Counts packets of a class that took a path, in all of the inner packets `bytes` long.
#[inline(always)]
pub(crate) fn count_class(counter: u32, packets: u64, bytes: u64) {
    if let Some(stats) = CLASS_STATS.get_ptr_mut(counter) {
        // SAFETY: per CPU, and this program is the only one on this CPU that touches it.
        let stats = unsafe { &mut *stats };
        stats.tx_packets += packets;
        stats.tx_bytes += bytes;
    }
}

/// Counts packets that took no path.
#[inline(always)]
pub(crate) fn count_fate(bond: u32, fate: Fate, packets: u32) {
    let Some(stats) = BOND_STATS.get_ptr_mut(bond) else {
        return;
    };
    // SAFETY: per CPU, and this program is the only one on this CPU that touches it.
    let stats = unsafe { &mut *stats };
    if let Some(counter) = stats.fates.get_mut(fate as usize) {
        *counter += u64::from(packets);
    }
}
