//! Names: of maps, programs and pins, and of what the controller tells in the maps.

use crate::frame;

/// Where everything is pinned, unless the user says otherwise.
pub const PIN_ROOT: &str = "/sys/fs/bpf/netbond";

/// The maps, by their names in the object and below `PIN_ROOT/maps`. The kernel cuts names at 15
/// characters.
pub mod map {
    pub const META: &str = "META";
    pub const BOND_BY_IFINDEX: &str = "BOND_BY_IFINDEX";
    pub const BONDS: &str = "BONDS";
    pub const PATHS: &str = "PATHS";
    pub const TUNNELS: &str = "TUNNELS";
    pub const LANES: &str = "LANES";
    pub const CLASSES: &str = "CLASSES";
    pub const FLOW_TABLE: &str = "FLOW_TABLE";
    pub const FLOWLETS: &str = "FLOWLETS";
    pub const GAPS: &str = "GAPS";
    pub const ADMIN: &str = "ADMIN";
    pub const LIMITS: &str = "LIMITS";
    pub const LIVE: &str = "LIVE";
    pub const SAMPLES: &str = "SAMPLES";
    pub const SECRET: &str = "SECRET";
    pub const TICKETS: &str = "TICKETS";
    pub const SHARES: &str = "SHARES";
    pub const TURNS: &str = "TURNS";
    pub const NOTES: &str = "NOTES";
    pub const PATH_STATS: &str = "PATH_STATS";
    pub const BOND_STATS: &str = "BOND_STATS";
    pub const CLASS_STATS: &str = "CLASS_STATS";
    pub const BOND_INFO: &str = "BOND_INFO";
    pub const CLASS_INFO: &str = "CLASS_INFO";
    pub const PATH_INFO: &str = "PATH_INFO";
    pub const PROBE_INFO: &str = "PROBE_INFO";
    pub const EVENTS: &str = "EVENTS";
    pub const SEQUENCES: &str = "SEQUENCES";
    pub const STRANDS: &str = "STRANDS";
    pub const SKEWS: &str = "SKEWS";
    pub const DRIVERS: &str = "DRIVERS";
    pub const BOND_PEERS: &str = "BOND_PEERS";
    pub const PORTS: &str = "PORTS";
    pub const HOPS: &str = "HOPS";
    pub const ANSWERS: &str = "ANSWERS";
    pub const LEFT: &str = "LEFT";
    pub const LAN_INFO: &str = "LAN_INFO";
}

/// The programs, by their names in the object and below `PIN_ROOT/programs`.
pub mod program {
    /// Egress of a bond device, where all bonds do with a wheel.
    pub const EGRESS: &str = "netbond_egress";
    /// The same with all other modes and classes, as far as [`super::feature`] bits ask for them.
    pub const EGRESS_MODES: &str = "netbond_modes";
    /// Ingress of a path's device whose frames start with IP, such as WireGuard.
    pub const INGRESS_L3: &str = "netbond_in_l3";
    /// Ingress of a path's device whose frames start with Ethernet.
    pub const INGRESS_L2: &str = "netbond_in_l2";
    /// The same two where some bond numbers its packets.
    pub const INGRESS_L3_ORDER: &str = "netbond_ord_l3";
    pub const INGRESS_L2_ORDER: &str = "netbond_ord_l2";
    /// Egress of the other end of a bond device's veth pair.
    pub const RELEASE: &str = "netbond_release";
    /// The driver of an Ethernet device, a path's before its ingress, or a LAN's.
    pub const XDP: &str = "netbond_xdp";
}

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal, $label:literal;)* }) => {
        $(#[$doc])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant = $number),* }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The value behind a number in a map, `None` where this build does not know it.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// Its name in tables and JSON.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),* }
            }
        }
    };
}

named! {
    /// What the outer packets of a bond carry.
    Encap {
        /// IP packets in GRE (EtherType 0x0800 and 0x86DD).
        Gre = 0, "gre";
        /// Ethernet frames in GRE (0x6558), as the kernel's gretap devices send and take them.
        Gretap = 1, "gretap";
    }
}

impl Encap {
    /// Bytes that it puts before an IP packet within GRE.
    #[must_use]
    pub const fn header_len(self) -> u32 {
        match self {
            Self::Gre => 0,
            Self::Gretap => frame::HEADER_LEN as u32,
        }
    }
}

named! {
    /// How the path of a packet is chosen.
    Mode {
        /// One packet after the other, the same number on each path.
        RoundRobin = 0, "round-robin";
        /// One packet after the other, each path by its weight.
        Weighted = 1, "weighted";
        /// All packets of a flow on one path, which it leaves only where that is lost.
        Flow = 2, "flow";
        /// Likewise, but after a pause a flow may go on by another path.
        Flowlet = 3, "flowlet";
        /// All packets on the best path.
        ActiveBackup = 4, "active-backup";
        /// One packet after the other, each path by what it is measured to carry; flow by flow, as in
        /// flowlet, where packets are not put in order.
        Adaptive = 5, "adaptive";
        /// Each packet on several paths at once, of which the receiver takes the first that comes.
        Duplicate = 6, "duplicate";
    }
}

named! {
    /// Where the weights of a bond's paths come from.
    Weights {
        /// The configuration.
        Static = 0, "static";
        /// The OSPF cost of each path's device: the inverse of it.
        Ospf = 1, "ospf";
        /// What each path is measured to carry.
        Measured = 2, "measured";
    }
}

/// What a configuration asks of the programs beyond the wheel: the bits of the constant `FEATURES` in
/// the object, set when it is loaded. The kernel removes what none asks for.
pub mod feature {
    use super::Mode;

    /// Some bond has classes.
    pub const CLASSES: u32 = 1 << 0;
    /// Some bond or class keeps flows on their paths.
    pub const FLOW: u32 = 1 << 1;
    /// Some bond or class lets flows move after a pause.
    pub const FLOWLET: u32 = 1 << 2;
    /// Some bond or class prefers paths to others.
    pub const ACTIVE_BACKUP: u32 = 1 << 3;
    /// Some bond numbers its packets.
    pub const NUMBERED: u32 = 1 << 4;
    /// Some bond goes by what its paths are measured to carry.
    pub const MEASURED: u32 = 1 << 5;
    /// Some bond or class sends packets on several paths.
    pub const DUPLICATE: u32 = 1 << 6;
    /// Some path has IPv6 outer addresses.
    pub const IPV6: u32 = 1 << 7;
    /// Some bond clamps what TCP announces as the maximum segment size.
    pub const MSS_CLAMP: u32 = 1 << 8;
    /// All of them.
    pub const ALL: u32 = CLASSES
        | FLOW
        | FLOWLET
        | ACTIVE_BACKUP
        | NUMBERED
        | MEASURED
        | DUPLICATE
        | IPV6
        | MSS_CLAMP;

    /// What a mode needs.
    #[must_use]
    pub const fn of(mode: Mode) -> u32 {
        match mode {
            Mode::RoundRobin | Mode::Weighted => 0,
            Mode::Flow => FLOW,
            Mode::Flowlet => FLOWLET,
            Mode::ActiveBackup => ACTIVE_BACKUP,
            // Without order; with it this much is not used.
            Mode::Adaptive => MEASURED | FLOWLET,
            Mode::Duplicate => DUPLICATE | NUMBERED,
        }
    }
}

named! {
    /// How a path stands.
    PathState {
        /// Out of use.
        Down = 0, "down";
        /// In the rotation.
        Up = 1, "up";
        /// OSPF leads to its remote address over another device: used as the policy says.
        Detour = 2, "detour";
        /// It has a route, but the peer's own prefix is no longer reached over it: used only where no
        /// path is up.
        Suspect = 3, "suspect";
        /// It has a route, but packets do not pass it both ways, or not for long enough yet: used
        /// only where no path is up.
        Dead = 4, "dead";
        /// Packets pass it both ways, but not well enough: used as the policy says.
        Degraded = 5, "degraded";
    }
}

named! {
    /// Why a path stands as it does.
    StateReason {
        /// The controller has not seen enough of the system yet.
        Starting = 0, "starting";
        /// An OSPF route leads to the remote address over the path's own device.
        Route = 1, "ospf route";
        /// No route leads to the remote address.
        NoRoute = 2, "no route";
        /// A route leads there, but OSPF did not make it.
        NotOspf = 3, "route is not from OSPF";
        /// The route is a blackhole, unreachable or prohibit one.
        Unreachable = 4, "unreachable route";
        /// The route leads over another device.
        Elsewhere = 5, "route leads over another device";
        /// The peer's prefix was reached over the path's device, and is no longer.
        PeerElsewhere = 6, "peer no longer reached over this device";
        /// The path's device does not exist.
        NoDevice = 7, "device does not exist";
        /// The path's device is down.
        DeviceDown = 8, "device is down";
        /// The user took the path out.
        Admin = 9, "taken out by the user";
        /// The local address is on no device.
        NoAddress = 10, "local address is on no device";
        /// Too many probes in a row found no answer.
        Silent = 11, "probes unanswered";
        /// It works again, after it failed too often: it must be good for a while.
        HeldDown = 12, "held down after flapping";
        /// Small probes are answered, those of full size are not: an MTU black hole.
        Mtu = 13, "mtu";
        /// It loses more than the policy allows.
        Lossy = 14, "lossy";
        /// Its round trip is longer than the policy allows.
        Slow = 15, "slow";
        /// The BFD session is down.
        Bfd = 16, "bfd session down";
    }
}

named! {
    /// How a path's liveness is watched.
    Watch {
        /// Not at all: its routes are all there is.
        None = 0, "none";
        /// By probes.
        Probes = 1, "probes";
        /// By a BFD session.
        Bfd = 2, "bfd";
    }
}

named! {
    /// Whether packets are handled by XDP, in a device's driver, or why by the kernel and tc alone: those that a
    /// path receives, those forwarded to and from a LAN, those that a bond sends.
    Xdp {
        /// Nobody asks for it.
        Off = 0, "off";
        /// In the driver.
        Native = 1, "native";
        /// The device does not exist.
        NoDevice = 2, "device does not exist";
        /// Its frames have no Ethernet header, as those of WireGuard.
        NotEthernet = 3, "device is not Ethernet";
        /// The device's driver has no XDP.
        NoDriver = 4, "driver has no XDP";
        /// The device has a program already that is not netbond's.
        Taken = 5, "another XDP program is on the device";
        /// The driver has XDP, and does not take the program as the device is set up.
        Refused = 6, "driver refused the program";
        /// The driver would hide the tags of frames that are for VLAN devices.
        Vlans = 7, "VLAN devices and rx-vlan-offload";
        /// All packets of the bond are numbered, and no LAN has its driver send some.
        Numbered = 8, "bond numbers its packets";
        /// The bond device takes frames from a driver only with GRO on.
        NoGro = 9, "GRO is off on the bond device";
        /// A veth, whose other end leaves checksums to others, unless the user insists.
        Veth = 10, "veth leaves out checksums";
        /// The driver receives for XDP, and sends nothing for it as the device is set up.
        NoSend = 12, "driver does not send for XDP";
        /// The kernel does not tell whether a driver does (before Linux 6.3).
        Untold = 13, "kernel does not tell what the driver sends";
        /// A class of it goes by marks, which no frame in a driver has.
        ByMark = 15, "classes by mark need tc";
        /// No path leaves by a device whose driver sends.
        NoPort = 16, "no path's device sends for XDP";
        /// No LAN is forwarded in its driver.
        NoLan = 17, "no LAN is forwarded by XDP";
        /// What a device receives is another one's, a bridge's say.
        Port = 18, "device is a port of another one";
        /// Packets of the bond are copied, by tc alone.
        Copies = 19, "copies need tc";
    }
}

named! {
    /// What came of probes of full size.
    FullSize {
        /// None was sent, or it is still awaited.
        Unknown = 0, "unknown";
        /// They are answered.
        Passes = 1, "passes";
        /// They are not, though small ones are.
        BlackHole = 2, "black hole";
    }
}

named! {
    /// What kind of event the controller tells of.
    EventKind {
        /// It saw something that concerns a path, a bond or all, and that changed no path.
        Saw = 0, "saw";
        /// A path changed its state or the reason for it.
        Changed = 1, "changed";
        /// It saw another sign of what took a path out before.
        Confirmed = 2, "confirmed";
        /// It did something: devices, programs, configuration.
        Did = 3, "did";
        /// Something that it tried did not work.
        Failed = 4, "failed";
    }
}
