//! The programs under BPF_PROG_TEST_RUN: real ones, in the kernel, on packets of ours. Nothing is
//! attached and nothing is sent; a redirect is only a verdict.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod random;

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicUsize, Ordering},
};

use aya::{
    Ebpf,
    maps::PerCpuArray,
    programs::{
        ProgramInfo, SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs, TestRunOptions,
        XdpMode, tc::qdisc_add_clsact,
    },
};
use bytemuck::Zeroable as _;
use etherparse::PacketBuilder;
use netbond::{
    loader::{
        OBJECT, classifier, egress_program, load_programs, load_xdp, loader, verified_instructions,
        xdp,
    },
    tables::{Raw, Tables},
};
use netbond_common::{
    abi::{
        BOND_NUMBERED, BOND_SHARES, Bond, DRIVER_UNDERLAY, Driver, Lane, MAX_BOND_PATHS, NO_BOND,
        NextHop, PATH_IPV6, PATH_KEY, PATH_LAST_RESORT, PATH_USABLE, Path, SHARES_EQUAL, Shares,
        Ticket, TunnelKey, Turns,
    },
    fate::Fate,
    ipv4,
    names::{Mode, map, program},
    route::{Answer, Hop},
    sequence::Strand,
    turns, wheel,
};

/// -1: on to the next program or filter.
pub(crate) const TC_ACT_UNSPEC: u32 = u32::MAX;
pub(crate) const TC_ACT_SHOT: u32 = 2;
pub(crate) const TC_ACT_REDIRECT: u32 = 7;
pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_REDIRECT: u32 = 4;

/// The hardware address of the bond device.
pub(crate) const MAC: [u8; 6] = [2, 0x6e, 0x62, 0, 0, 1];
/// The device that test runs take place on: the namespace's loopback device.
pub(crate) const IFINDEX: u32 = 1;
/// The bond under test.
pub(crate) const BOND: u32 = 3;

/// Outer addresses of a path: ours, the peer's.
#[must_use]
pub(crate) fn outer(path: u32) -> (Ipv4Addr, Ipv4Addr) {
    let n = u8::try_from(path).unwrap();
    (Ipv4Addr::new(10, 65, n, 2), Ipv4Addr::new(10, 65, n, 6))
}

/// The same of a path over IPv6. The far end of one for the programs of devices without an Ethernet
/// header: a test run takes bytes 12 and 13 for an EtherType all the same, which are of the source.
#[must_use]
pub(crate) fn outer_v6(path: u32) -> (Ipv6Addr, Ipv6Addr) {
    let n = u16::try_from(path).unwrap();
    (
        Ipv6Addr::new(0xfd65, 0, n, 0, 0, 0, 0, 2),
        Ipv6Addr::new(0xfd65, 0, 0x86dd, n, 0, 0, 0, 6),
    )
}

/// What a run left behind.
pub(crate) struct Ran {
    pub(crate) action: u32,
    pub(crate) frame: Vec<u8>,
    pub(crate) ns: u64,
}

/// The loaded programs and their maps, with one bond.
pub(crate) struct Kernel {
    ebpf: Ebpf,
    features: u32,
    /// skb->mark of the packets that are run.
    pub(crate) mark: u32,
    pub(crate) tables: Tables,
}

impl Kernel {
    /// Loads the object and sets up a bond with as many paths as there are weights.
    #[must_use]
    pub(crate) fn with_bond(weights: &[u32], key: Option<u32>) -> Self {
        Self::with_features(weights, key, 0)
    }

    /// The same with the programs that some `feature` bits ask for.
    #[must_use]
    pub(crate) fn with_features(weights: &[u32], key: Option<u32>, features: u32) -> Self {
        // Tickets are per CPU: a test that moved would see two wheels.
        pin(0);
        let mut ebpf = loader(&features)
            .load(OBJECT)
            .expect("loading the object (root or CAP_BPF needed)");
        load_programs(&mut ebpf, features, [features]).unwrap();
        let tables = Tables::new(|name| {
            ebpf.take_map(name)
                .ok_or_else(|| anyhow::anyhow!("no map {name}"))
        })
        .unwrap();
        let mut kernel = Self {
            ebpf,
            features,
            mark: 0,
            tables,
        };
        let mut bond = Bond {
            paths: weights.len() as u32,
            ifindex: IFINDEX,
            mac: MAC,
            ..Bond::zeroed()
        };
        let mut all = [0; MAX_BOND_PATHS as usize];
        all[..weights.len()].copy_from_slice(weights);
        bond.wheel_len = wheel::build(&all, &mut bond.wheel) as u32;
        kernel.set_bond(&bond);
        kernel
            .tables
            .bond_by_ifindex
            .insert(IFINDEX, BOND, 0)
            .unwrap();
        for slot in 0..weights.len() as u32 {
            let (local, remote) = outer(slot);
            let path = Path {
                flags: PATH_USABLE | PATH_LAST_RESORT | if key.is_some() { PATH_KEY } else { 0 },
                ifindex: IFINDEX,
                sum: ipv4::constant_sum(local.octets(), remote.octets()),
                key: key.unwrap_or(0).to_be_bytes(),
                next_hop: NextHop::zeroed(),
                local: ipv4::mapped(local.octets()),
                remote: ipv4::mapped(remote.octets()),
            };
            kernel.set_path(slot, &path);
            let tunnel = TunnelKey {
                source: path.remote,
                destination: path.local,
                key: path.key,
                has_key: u32::from(key.is_some()),
            };
            kernel
                .tables
                .tunnels
                .insert(Raw(tunnel), path_id(slot), 0)
                .unwrap();
        }
        kernel
    }

    /// Sets up as many other bonds like it, with eight paths each, that no packet takes.
    pub(crate) fn add_bonds(&mut self, count: u32) {
        let Raw(path) = self.tables.paths.get(&path_id(0), 0).unwrap();
        let bond = self.bond();
        for id in (0..=count).filter(|&id| id != BOND) {
            self.tables.bonds.set(id, Raw(bond), 0).unwrap();
            let by_ifindex = &mut self.tables.bond_by_ifindex;
            by_ifindex.insert(IFINDEX + 1 + id, id, 0).unwrap();
            for slot in 0..8 {
                let path_id = id * MAX_BOND_PATHS + slot;
                self.tables.paths.set(path_id, Raw(path), 0).unwrap();
                let tunnel = TunnelKey {
                    source: ipv4::mapped(path_id.to_be_bytes()),
                    destination: path.local,
                    key: [0; 4],
                    has_key: 0,
                };
                self.tables.tunnels.insert(Raw(tunnel), path_id, 0).unwrap();
            }
        }
    }

    pub(crate) fn set_bond(&mut self, bond: &Bond) {
        self.tables.bonds.set(BOND, Raw(*bond), 0).unwrap();
    }

    #[must_use]
    pub(crate) fn bond(&self) -> Bond {
        self.tables.bonds.get(&BOND, 0).unwrap().0
    }

    /// Gives the bond these flags, and its paths turns of the same length.
    pub(crate) fn set_order(&mut self, flags: u8, paths: u32) {
        let bond = self.bond();
        self.set_bond(&Bond {
            flags,
            release_ifindex: bond.ifindex,
            longest_hold_ns: 100_000_000,
            ..bond
        });
        let lane = Lane {
            mode: Mode::RoundRobin as u32,
            shares: SHARES_EQUAL,
            ..Lane::zeroed()
        };
        self.tables.lanes.set(BOND, Raw(lane), 0).unwrap();
        self.set_equal_shares(paths, 0);
        if flags & BOND_NUMBERED != 0 {
            self.begin_strands();
        }
    }

    pub(crate) fn set_equal_shares(&mut self, paths: u32, settled_until: u32) {
        let mut weights = [0; MAX_BOND_PATHS as usize];
        weights[..paths as usize].fill(1);
        let shares = Shares {
            settled_until,
            ..turns::shares(&weights)
        };
        let index = BOND * BOND_SHARES + SHARES_EQUAL;
        self.tables.shares.set(index, Raw(shares), 0).unwrap();
    }

    /// What the controller does for a bond that numbers its packets.
    pub(crate) fn begin_strands(&mut self) {
        for strand in Tables::strand_ids(BOND) {
            let empty = Raw(Strand::zeroed());
            self.tables.strands.insert(strand, empty, 0).unwrap();
        }
    }

    pub(crate) fn set_path(&mut self, slot: u32, path: &Path) {
        self.tables.paths.set(path_id(slot), Raw(*path), 0).unwrap();
    }

    /// Gives a path IPv6 outer addresses; it still receives between those it had.
    pub(crate) fn over_ipv6(&mut self, slot: u32) {
        let Raw(path) = self.tables.paths.get(&path_id(slot), 0).unwrap();
        let (local, remote) = outer_v6(slot);
        let path = Path {
            flags: path.flags | PATH_IPV6,
            sum: 0,
            local: local.octets(),
            remote: remote.octets(),
            ..path
        };
        self.set_path(slot, &path);
        let tunnel = TunnelKey {
            source: path.remote,
            destination: path.local,
            key: path.key,
            has_key: u32::from(path.flags & PATH_KEY != 0),
        };
        let tunnels = &mut self.tables.tunnels;
        tunnels.insert(Raw(tunnel), path_id(slot), 0).unwrap();
    }

    pub(crate) fn set_flags(&mut self, slot: u32, flags: u32) {
        let Raw(path) = self.tables.paths.get(&path_id(slot), 0).unwrap();
        self.set_path(slot, &Path { flags, ..path });
    }

    pub(crate) fn egress(&mut self, frame: &[u8]) -> Ran {
        self.run(egress_program(self.features), frame, None)
    }

    pub(crate) fn ingress(&mut self, frame: &[u8]) -> Ran {
        self.run(program::INGRESS_L2, frame, None)
    }

    /// Runs a program once; `gso` is (segments, size) of a super-packet.
    pub(crate) fn run(&mut self, name: &str, frame: &[u8], gso: Option<(u32, u32)>) -> Ran {
        // A probe may be much longer than what asks for it.
        let mut out = vec![0; frame.len().max(9216) + 256];
        // struct __sk_buff of linux/bpf.h: mark at byte 8, gso_segs at byte 164, gso_size at byte 176.
        let mut context = [0_u8; 192];
        context[8..12].copy_from_slice(&self.mark.to_ne_bytes());
        if let Some((segments, size)) = gso {
            context[164..168].copy_from_slice(&segments.to_ne_bytes());
            context[176..180].copy_from_slice(&size.to_ne_bytes());
        }
        let result = classifier(&mut self.ebpf, name)
            .unwrap()
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: (gso.is_some() || self.mark != 0).then_some(context.as_slice()),
                ..TestRunOptions::default()
            })
            .unwrap_or_else(|error| panic!("BPF_PROG_TEST_RUN on {frame:02x?}: {error}"));
        out.truncate(result.data_size_out as usize);
        Ran {
            action: result.return_value,
            frame: out,
            ns: result.duration.as_nanos() as u64,
        }
    }

    /// Loads the program for drivers too, and has it receive on the device of test runs, whose address is 0:
    /// packets of up to this many bytes.
    pub(crate) fn with_xdp(mut self, mtu: u32) -> Self {
        load_xdp(xdp(&mut self.ebpf).unwrap()).unwrap();
        let driver = Driver {
            address: [0; 6],
            roles: DRIVER_UNDERLAY,
        };
        let drivers = &mut self.tables.drivers;
        drivers.insert(IFINDEX, Raw(driver), 0).unwrap();
        self.tables.bond_peers.set(BOND, IFINDEX, None, 0).unwrap();
        let bond = self.bond();
        self.set_bond(&Bond {
            xdp_mtu: mtu,
            ..bond
        });
        self
    }

    /// Runs the program for drivers once.
    pub(crate) fn xdp(&mut self, frame: &[u8]) -> Ran {
        self.xdp_on(frame, IFINDEX)
    }

    /// The same on a frame that came in on the device with this ifindex.
    pub(crate) fn xdp_on(&mut self, frame: &[u8], device: u32) -> Ran {
        let mut out = vec![0; frame.len() + 64];
        let context = live_context(frame, device);
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (device != IFINDEX).then_some(context.as_slice()),
            ..TestRunOptions::default()
        };
        let result = xdp(&mut self.ebpf)
            .unwrap()
            .test_run(options)
            .unwrap_or_else(|error| panic!("BPF_PROG_TEST_RUN on {frame:02x?}: {error}"));
        out.truncate(result.data_size_out as usize);
        Ran {
            action: result.return_value,
            frame: out,
            ns: result.duration.as_nanos() as u64,
        }
    }

    /// Has the program for drivers forward all that it can itself.
    pub(crate) fn never_the_kernels_turn(&mut self) {
        self.set_left(u64::MAX);
    }

    /// Has it leave the next packet to the kernel.
    pub(crate) fn at_the_kernels_turn(&mut self) {
        self.set_left(0);
    }

    /// Has it ask the kernel for each way again, as it does 5 ms later by itself.
    pub(crate) fn forget_ways(&mut self) {
        self.clear::<Hop>(map::HOPS);
        self.clear::<Answer>(map::ANSWERS);
    }

    /// Has it believe what the kernel told so far for ever.
    pub(crate) fn believe_ways(&mut self) {
        let map = self.ebpf.map_mut(map::ANSWERS).unwrap();
        let mut answers: PerCpuArray<_, Raw<Answer>> = PerCpuArray::try_from(map).unwrap();
        for index in 0..answers.len() {
            let mut all = answers.get(&index, 0).unwrap().to_vec();
            for Raw(answer) in &mut all {
                // The first field is the time until which it holds.
                let (until_ns, _) = bytemuck::bytes_of_mut(answer)
                    .split_first_chunk_mut()
                    .unwrap();
                if *until_ns != [0; 8] {
                    *until_ns = u64::MAX.to_ne_bytes();
                }
            }
            answers.set(index, all.try_into().unwrap(), 0).unwrap();
        }
    }

    fn clear<V: bytemuck::Pod>(&mut self, name: &str) {
        let map = self.ebpf.map_mut(name).unwrap();
        let mut entries: PerCpuArray<_, Raw<V>> = PerCpuArray::try_from(map).unwrap();
        for index in 0..entries.len() {
            let count = entries.get(&index, 0).unwrap().len();
            let all = vec![Raw(V::zeroed()); count].try_into().unwrap();
            entries.set(index, all, 0).unwrap();
        }
    }

    /// When packets were last left to the kernel, ns.
    fn set_left(&mut self, at_ns: u64) {
        let map = self.ebpf.map_mut("LEFT").unwrap();
        let mut left: PerCpuArray<_, u64> = PerCpuArray::try_from(map).unwrap();
        for neighbour in 0..left.len() {
            let count = left.get(&neighbour, 0).unwrap().len();
            let all = vec![at_ns; count].try_into().unwrap();
            left.set(neighbour, all, 0).unwrap();
        }
    }

    /// The first CPU's place on the bond's wheel.
    #[must_use]
    pub(crate) fn ticket(&self) -> Ticket {
        self.tables.tickets.get(&BOND, 0).unwrap()[0].0
    }

    /// How far the first CPU is in the turns of equal shares.
    #[must_use]
    pub(crate) fn turns(&self) -> Turns {
        let index = BOND * BOND_SHARES + SHARES_EQUAL;
        self.tables.turns.get(&index, 0).unwrap()[0].0
    }

    /// Puts all CPUs at this place.
    pub(crate) fn set_ticket(&mut self, ticket: Ticket) {
        let count = self.tables.tickets.get(&BOND, 0).unwrap().len();
        let all = vec![Raw(ticket); count].try_into().unwrap();
        self.tables.tickets.set(BOND, all, 0).unwrap();
    }

    /// Puts the program for Ethernet at the ingress of a device, until this value is gone.
    pub(crate) fn attach_ingress(&mut self, device: &str) {
        // For kernels without tcx.
        let _ = qdisc_add_clsact(device);
        let program = classifier(&mut self.ebpf, program::INGRESS_L2).unwrap();
        program.attach(device, TcAttachType::Ingress).unwrap();
    }

    /// Puts the program of bond devices at the egress of a device, until this value is gone.
    pub(crate) fn attach_egress(&mut self, device: &str) {
        let _ = qdisc_add_clsact(device);
        let program = classifier(&mut self.ebpf, egress_program(self.features)).unwrap();
        program.attach(device, TcAttachType::Egress).unwrap();
    }

    /// Puts the program for drivers into that of a device, until this value is gone.
    pub(crate) fn attach_xdp(&mut self, device: u32) {
        let program = xdp(&mut self.ebpf).unwrap();
        program.attach_to_if_index(device, XdpMode::Driver).unwrap();
    }

    /// Has the program for drivers receive a frame so often as a driver would, which the kernel then does to
    /// each what the program says (BPF_F_TEST_XDP_LIVE_FRAMES); returns how long all of them took, ns. `device`
    /// is the ifindex of that on which they are received.
    pub(crate) fn run_live(&mut self, frame: &[u8], device: u32, count: u32) -> u64 {
        let context = live_context(frame, device);
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(64),
            ..TestRunOptions::default()
        };
        let result = xdp(&mut self.ebpf).unwrap().test_run(options).unwrap();
        result.duration.as_nanos() as u64 * u64::from(count)
    }

    /// Runs a program on each of two CPUs, on both frames of a pair at the same time; returns the actions.
    pub(crate) fn run_pairs(&mut self, name: &str, pairs: &[[Vec<u8>; 2]]) -> Vec<[u32; 2]> {
        let program: &SchedClassifier = classifier(&mut self.ebpf, name).unwrap();
        // Where there is no second CPU it fails here, and not while one side waits for the other.
        pin(1);
        pin(0);
        let ready = [const { AtomicUsize::new(0) }; 2];
        let side = |at: usize| {
            pin(at);
            let mut actions = Vec::with_capacity(pairs.len());
            for (turn, pair) in (1..).zip(pairs) {
                ready[at].store(turn, Ordering::Release);
                while ready[1 - at].load(Ordering::Acquire) < turn {
                    std::hint::spin_loop();
                }
                let options = TestRunOptions {
                    data_in: Some(&pair[at]),
                    ..TestRunOptions::default()
                };
                actions.push(program.test_run(options).unwrap().return_value);
            }
            actions
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| side(1));
            let first = side(0);
            let other = other.join().unwrap();
            first.into_iter().zip(other).map(|(a, b)| [a, b]).collect()
        })
    }

    /// How many instructions the verifier walked through for the program that took it most.
    pub(crate) fn verified(&self) -> u32 {
        verified_instructions(&self.ebpf)
            .unwrap()
            .expect("kernels from 5.16 on tell")
    }

    /// The same for the program for drivers.
    pub(crate) fn verified_xdp(&mut self) -> u32 {
        let info = self.info(program::XDP).unwrap();
        info.verified_instruction_count()
            .expect("kernels from 5.16 on tell")
    }

    /// What the kernel says of a loaded program.
    pub(crate) fn info(&mut self, name: &str) -> anyhow::Result<ProgramInfo> {
        if name == program::XDP {
            return Ok(xdp(&mut self.ebpf)?.info()?);
        }
        Ok(classifier(&mut self.ebpf, name)?.info()?)
    }

    /// Packets that each path sent.
    #[must_use]
    pub(crate) fn sent(&self, paths: u32) -> Vec<u64> {
        (0..paths)
            .map(|slot| self.tables.path_stats(path_id(slot)).unwrap().tx_packets)
            .collect()
    }

    /// Every fate counted so far, in this bond and outside of any.
    #[must_use]
    pub(crate) fn fates(&self) -> Vec<(u32, Fate, u64)> {
        let of = |bond| {
            let stats = self.tables.bond_stats(bond).unwrap();
            Fate::ALL
                .iter()
                .map(move |&fate| (bond, fate, stats.fates[fate as usize]))
        };
        of(BOND)
            .chain(of(NO_BOND))
            .filter(|&(_, _, count)| count != 0)
            .collect()
    }
}

/// struct xdp_md of linux/bpf.h for a frame that comes in on a device: data_end at byte 4, ingress_ifindex at
/// byte 12.
#[must_use]
pub(crate) fn live_context(frame: &[u8], device: u32) -> [u8; 24] {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&device.to_ne_bytes());
    context
}

/// Keeps this thread on a CPU.
fn pin(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
}

/// The id of a path of the bond under test.
#[must_use]
pub(crate) const fn path_id(slot: u32) -> u32 {
    BOND * MAX_BOND_PATHS + slot
}

/// An IPv4 UDP frame, `len` bytes of IP in all.
#[must_use]
pub(crate) fn ipv4_frame(len: usize) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [0; 6])
        .ipv4([192, 0, 2, 1], [198, 51, 100, 1], 61)
        .udp(4000, 5000);
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![0xa5; len - 28]).unwrap();
    frame
}

/// An IPv6 UDP frame, `len` bytes of IP in all.
#[must_use]
pub(crate) fn ipv6_frame(len: usize) -> Vec<u8> {
    let mut header = etherparse::Ipv6Header {
        hop_limit: 33,
        traffic_class: 0x2a << 2 | 0b10,
        ..Default::default()
    };
    header.source = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets();
    header.destination = "2001:db8::2".parse::<Ipv6Addr>().unwrap().octets();
    let builder = PacketBuilder::ethernet2([2; 6], [0; 6])
        .ip(etherparse::IpHeaders::Ipv6(
            header,
            etherparse::Ipv6Extensions::default(),
        ))
        .udp(4000, 5000);
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![0x5a; len - 48]).unwrap();
    frame
}

/// What the peer sends over IPv6 on a path: `next` is what the outer header says follows it, and `content` all
/// that does.
pub(crate) fn frame_over_ipv6(path: u32, tos: u8, next: u8, content: &[u8]) -> Vec<u8> {
    let (local, remote) = outer_v6(path);
    let mut frame = vec![0; 12];
    frame.extend([0x86, 0xdd, 0x60 | tos >> 4, tos << 4, 0, 0]);
    frame.extend((content.len() as u16).to_be_bytes());
    frame.extend([next, 64]);
    frame.extend(remote.octets());
    frame.extend(local.octets());
    frame.extend(content);
    frame
}

/// What the peer sends: a frame whose Ethernet payload is wrapped in GRE on a path.
pub(crate) struct Wrap {
    pub(crate) path: u32,
    pub(crate) tos: u8,
    /// Between the path's addresses of IPv6.
    pub(crate) ipv6: bool,
    /// Bytes of IP options, a multiple of 4; of IPv6 8 in a header of their own where there are any.
    pub(crate) options: usize,
    /// Flags and fragment offset of IPv4.
    pub(crate) frags: u16,
    pub(crate) gre_flags: u16,
    /// What follows the GRE base header: key, sequence number.
    pub(crate) gre_fields: Vec<u8>,
    pub(crate) gre_protocol: u16,
}

impl Wrap {
    #[must_use]
    pub(crate) fn on(path: u32) -> Self {
        Self {
            path,
            tos: 0,
            ipv6: false,
            options: 0,
            frags: 0,
            gre_flags: 0,
            gre_fields: Vec::new(),
            gre_protocol: 0x0800,
        }
    }

    /// The received frame around an inner one.
    #[must_use]
    pub(crate) fn frame(&self, inner: &[u8]) -> Vec<u8> {
        let mut gre = self.gre_flags.to_be_bytes().to_vec();
        gre.extend(self.gre_protocol.to_be_bytes());
        gre.extend(&self.gre_fields);
        gre.extend(&inner[14..]);
        if !self.ipv6 {
            let mut frame = vec![0; 12];
            frame.extend([0x08, 0x00]);
            frame.extend(self.ipv4_header(gre.len()));
            frame.extend(gre);
            return frame;
        }
        if self.options == 0 {
            return frame_over_ipv6(self.path, self.tos, 47, &gre);
        }
        // Destination options: how many times 8 bytes more, and six bytes of padding.
        let options = [47, 0, 1, 4, 0, 0, 0, 0];
        frame_over_ipv6(
            self.path,
            self.tos,
            60,
            &[&options, gre.as_slice()].concat(),
        )
    }

    /// The outer header before so many bytes of GRE.
    fn ipv4_header(&self, len: usize) -> Vec<u8> {
        let (local, remote) = outer(self.path);
        let header_len = 20 + self.options;
        let mut ip = vec![0x40 | (header_len / 4) as u8, self.tos];
        ip.extend(((header_len + len) as u16).to_be_bytes());
        ip.extend([0, 0]);
        ip.extend(self.frags.to_be_bytes());
        ip.extend([64, 47, 0, 0]);
        ip.extend(remote.octets());
        ip.extend(local.octets());
        ip.resize(header_len, 1);
        let check = etherparse::checksum::Sum16BitWords::new()
            .add_slice(&ip)
            .ones_complement();
        ip[10..12].copy_from_slice(&check.to_ne_bytes());
        ip
    }
}
