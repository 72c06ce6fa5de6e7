//! Loads the programs and puts them on devices: the only file that knows the object.
//!
//! Maps and links are pinned, so that packets pass whether or not a controller runs. A new controller
//! takes over the pinned maps, loads its own programs on them and swaps those into the links: each
//! packet meets the old or the new program, never none.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    Ebpf, EbpfLoader,
    programs::{
        LinkOrder, Program, ProgramError, ProgramInfo, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
        xdp::XdpLink,
    },
    sys::SyscallError,
    util::KernelVersion,
};
use netbond_common::{
    names::{self, PIN_ROOT, feature, map, program},
    siphash,
};
use nix::net::if_::{if_indextoname, if_nametoindex};

use crate::{link, pins::Pins, tables::check_abi};

/// The object: committed, so that a router needs no eBPF toolchain. NETBOND_OBJECT names another one
/// to build in.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("NETBOND_OBJECT"));

/// Every map of the object.
pub const MAPS: [&str; 37] = [
    map::META,
    map::BOND_BY_IFINDEX,
    map::BONDS,
    map::PATHS,
    map::TUNNELS,
    map::LANES,
    map::CLASSES,
    map::FLOW_TABLE,
    map::FLOWLETS,
    map::GAPS,
    map::ADMIN,
    map::LIMITS,
    map::LIVE,
    map::SAMPLES,
    map::SECRET,
    map::TICKETS,
    map::SHARES,
    map::TURNS,
    map::NOTES,
    map::PATH_STATS,
    map::BOND_STATS,
    map::CLASS_STATS,
    map::BOND_INFO,
    map::CLASS_INFO,
    map::PATH_INFO,
    map::LAN_INFO,
    map::PROBE_INFO,
    map::EVENTS,
    map::SEQUENCES,
    map::STRANDS,
    map::SKEWS,
    map::DRIVERS,
    map::BOND_PEERS,
    map::PORTS,
    map::HOPS,
    map::ANSWERS,
    map::LEFT,
];

/// Every program of the object.
pub const PROGRAMS: [&str; 8] = [
    program::EGRESS,
    program::EGRESS_MODES,
    program::INGRESS_L3,
    program::INGRESS_L2,
    program::INGRESS_L3_ORDER,
    program::INGRESS_L2_ORDER,
    program::RELEASE,
    program::XDP,
];

/// The constant of the object that says what the configuration asks for.
const FEATURES: &str = "FEATURES";

/// Where on a device a program goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Egress of a bond device; `features` is what this bond asks for.
    Bond { features: u32 },
    /// Egress of the other end of its veth pair.
    Release,
    /// Ingress of a path's device; `ethernet` where its frames start with an Ethernet header.
    Path { ethernet: bool },
}

/// The program at the egress of a bond that asks for these `feature` bits, whatever others ask for.
#[must_use]
pub const fn egress_program(features: u32) -> &'static str {
    if features == 0 {
        program::EGRESS
    } else {
        program::EGRESS_MODES
    }
}

/// The program at the ingress of a path's device for these `feature` bits.
#[must_use]
pub const fn ingress_program(features: u32, ethernet: bool) -> &'static str {
    // As one piece it has no room on the stack for more.
    let in_pieces = features & (feature::NUMBERED | feature::MSS_CLAMP) != 0;
    match (in_pieces, ethernet) {
        (false, false) => program::INGRESS_L3,
        (false, true) => program::INGRESS_L2,
        (true, false) => program::INGRESS_L3_ORDER,
        (true, true) => program::INGRESS_L2_ORDER,
    }
}

const INGRESS: &str = "ingress";
/// What the name of the pinned link of a program in a driver ends with.
const DRIVER: &str = "xdp";

impl Hook {
    /// The program for a configuration that asks for these `feature` bits.
    const fn program(self, features: u32) -> &'static str {
        match self {
            Self::Bond { features } => egress_program(features),
            Self::Release => program::RELEASE,
            Self::Path { ethernet } => ingress_program(features, ethernet),
        }
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Bond { .. } | Self::Release => TcAttachType::Egress,
            Self::Path { .. } => TcAttachType::Ingress,
        }
    }

    /// Which side of the device it is.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Bond { .. } | Self::Release => "egress",
            Self::Path { .. } => INGRESS,
        }
    }
}

/// The priority of netbond's filters where the kernel has no tcx; what is there with the same handle is replaced.
const PRIORITY: u16 = 0x6e62;

/// The loaded programs.
pub struct Programs {
    loaded: Loaded,
    pins: Pins,
    tcx: bool,
}

/// The object in the kernel, with what a configuration asks for.
pub struct Loaded {
    ebpf: Ebpf,
    features: u32,
}

impl Programs {
    /// Loads the object on the maps pinned below `pins`, creating and pinning those that are not
    /// there; with what `features` (`feature` bits) ask for.
    ///
    /// # Errors
    ///
    /// Where bpffs is not there, the pinned maps are of another ABI, or the kernel refuses.
    pub fn load(pins: &Pins, features: u32) -> Result<Self> {
        let maps = pins.map("");
        for directory in [&maps, &pins.links()] {
            fs::create_dir_all(directory).with_context(|| {
                format!(
                    "creating {}: is bpffs mounted on /sys/fs/bpf, and are you root?",
                    directory.display()
                )
            })?;
        }
        if pins.exist() {
            check_abi(pins)?;
        }
        Ok(Self {
            loaded: Loaded::new(pins, features)?,
            pins: pins.clone(),
            tcx: has_tcx(),
        })
    }

    /// Loads the object anew where other `feature` bits are asked for; returns what was loaded before.
    /// What is on devices stays there: attaching swaps the new programs in.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses: nothing has changed.
    pub fn switch(&mut self, features: u32) -> Result<Option<Loaded>> {
        if self.loaded.features == features {
            return Ok(None);
        }
        let loaded = Loaded::new(&self.pins, features)?;
        Ok(Some(std::mem::replace(&mut self.loaded, loaded)))
    }

    /// What is loaded, `feature` bits.
    #[must_use]
    pub const fn features(&self) -> u32 {
        self.loaded.features
    }

    /// Takes back what [`Self::switch`] did.
    pub fn restore(&mut self, loaded: Loaded) {
        self.loaded = loaded;
    }

    /// Devices of paths on which an earlier controller left a link, with the hook it left unknown to
    /// be that of this build: attaching swaps this build's program in. Links whose device is gone are
    /// removed.
    ///
    /// # Errors
    ///
    /// Where the pins cannot be read.
    pub fn left_behind(pins: &Pins) -> Result<BTreeMap<u32, (String, Hook)>> {
        let mut left = BTreeMap::new();
        for pin in fs::read_dir(pins.links()).context("reading the pinned links")? {
            let pin = pin?;
            let name = pin.file_name().to_string_lossy().into_owned();
            let Some((ifindex, hook)) = name.split_once('-') else {
                continue;
            };
            let Ok(ifindex) = ifindex.parse() else {
                continue;
            };
            match if_indextoname(ifindex) {
                Ok(_) if hook == INGRESS => {
                    // No device has an empty name: it is attached anew where it is a path's.
                    left.insert(ifindex, (String::new(), Hook::Path { ethernet: false }));
                }
                Ok(_) => {}
                Err(_) => {
                    link::remove(&pin.path())?;
                }
            }
        }
        Ok(left)
    }

    /// Devices in whose driver an earlier controller left the program: attaching swaps this build's in.
    ///
    /// # Errors
    ///
    /// Where the pins cannot be read.
    pub fn left_in_drivers(pins: &Pins) -> Result<BTreeSet<u32>> {
        let mut left = BTreeSet::new();
        for pin in fs::read_dir(pins.links()).context("reading the pinned links")? {
            let name = pin?.file_name().to_string_lossy().into_owned();
            if let Some((ifindex, DRIVER)) = name.split_once('-') {
                left.extend(ifindex.parse::<u32>());
            }
        }
        Ok(left)
    }

    /// Puts the program on the device's hook, or swaps it into the hook that is there already. For a new
    /// tcx link the kernel waits until no CPU is where it was before (`tcx_entry_sync`), some ms. Tells whether none
    /// was there; one that is there as it should be costs little.
    ///
    /// # Errors
    ///
    /// Where the device is gone or the kernel refuses.
    pub fn attach(&mut self, device: &str, ifindex: u32, hook: Hook) -> Result<bool> {
        // aya takes names: one that went to another device meanwhile would lead astray.
        ensure!(
            if_nametoindex(device) == Ok(ifindex),
            "device {device} is no longer the one with index {ifindex}"
        );
        let attached = if self.tcx {
            self.attach_tcx(device, ifindex, hook)
        } else {
            self.attach_clsact(device, hook)
        };
        attached.with_context(|| format!("attaching to {device} {}", hook.label()))
    }

    /// Puts the program into the driver of an Ethernet device, or swaps it in where it is already. Never in the
    /// place of another program, nor in the kernel's stead of a driver that has no XDP (generic XDP). Tells whether
    /// none was there.
    ///
    /// # Errors
    ///
    /// Why not, and the kernel's words.
    pub fn attach_xdp(&mut self, device: &str, ifindex: u32) -> Result<bool, NoXdp> {
        let refused = |error: anyhow::Error| NoXdp {
            reason: names::Xdp::Refused,
            error,
        };
        if self.swap_xdp(ifindex).map_err(refused)? {
            return Ok(false);
        }
        let pin = xdp_pin(&self.pins, ifindex);
        // One that is there outlived its device, or what somebody else took off it.
        link::remove(&pin).map_err(refused)?;
        let program = self.loaded.xdp().map_err(refused)?;
        let id = program
            .attach_to_if_index(ifindex, XdpMode::Driver)
            .map_err(|error| NoXdp::new(error, device))?;
        let pinned = program.take_link(id).map_err(anyhow::Error::from);
        let pinned = pinned.and_then(|link| {
            let link: FdLink = link.try_into()?;
            link.pin(&pin)
                .with_context(|| format!("pinning {}", pin.display()))
        });
        pinned.map(|_| true).map_err(refused)
    }

    /// Swaps the program into a driver that has one of netbond's; tells whether it has.
    ///
    /// # Errors
    ///
    /// Where the object has no such program.
    pub fn swap_xdp(&mut self, ifindex: u32) -> Result<bool> {
        let program = self.loaded.xdp()?;
        let Ok(pinned) = PinnedLink::from_pin(xdp_pin(&self.pins, ifindex)) else {
            return Ok(false);
        };
        let swapped = XdpLink::try_from(FdLink::from(pinned))
            .map_err(anyhow::Error::from)
            .and_then(|link| {
                let id = program.attach_to_link(link)?;
                // The pin holds the link; our own descriptor of it may go.
                let _: FdLink = program.take_link(id)?.try_into()?;
                Ok(())
            });
        Ok(swapped.is_ok())
    }

    /// Takes the program out of a driver; fine where the device or the program is gone.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses, or a pin cannot be removed.
    pub fn detach_xdp(&mut self, ifindex: u32) -> Result<()> {
        link::remove(&xdp_pin(&self.pins, ifindex)).map(|_| ())
    }

    /// Takes the program off the device's hook; fine where the device or the program is gone.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses, or a pin cannot be removed.
    pub fn detach(&mut self, device: &str, ifindex: u32, hook: Hook) -> Result<()> {
        detach(&self.pins, device, ifindex, hook)
    }

    fn attach_tcx(&mut self, device: &str, ifindex: u32, hook: Hook) -> Result<bool> {
        let pin = link_pin(&self.pins, ifindex, hook);
        let program = self.loaded.program(hook)?;
        if let Ok(pinned) = PinnedLink::from_pin(&pin) {
            let link = SchedClassifierLink::try_from(FdLink::from(pinned))?;
            match program.attach_to_link(link) {
                Ok(id) => {
                    // The pin holds the link; our own descriptor of it may go.
                    let _: FdLink = program.take_link(id)?.try_into()?;
                    return Ok(false);
                }
                // The pin outlived its device (an ifindex is used again after a wrap), or what somebody else took
                // off it.
                Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
                    if io_error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => return Err(error.into()),
            }
            link::remove(&pin)?;
        }
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program.attach_with_options(device, hook.attach_type(), order)?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        link.pin(&pin)
            .with_context(|| format!("pinning {}", pin.display()))?;
        Ok(true)
    }

    fn attach_clsact(&mut self, device: &str, hook: Hook) -> Result<bool> {
        // Fails where it is there already; where it fails otherwise, so does what follows.
        let _ = qdisc_add_clsact(device);
        let program = self.loaded.program(hook)?;
        let options = NlOptions {
            priority: PRIORITY,
            handle: handle(&self.pins),
            classid: None,
        };
        let options = TcAttachOptions::Netlink(options);
        let attached = program.attach_with_options(device, hook.attach_type(), options);
        let was_gone = attached.is_ok();
        let id = match attached {
            Ok(id) => id,
            Err(_) => program.attach_to_link(filter(&self.pins, device, hook)?)?,
        };
        // The filter holds the program; the link value would take it off when it goes.
        std::mem::forget(program.take_link(id)?);
        Ok(was_gone)
    }
}

impl Loaded {
    fn new(pins: &Pins, features: u32) -> Result<Self> {
        let mut loader = loader(&features);
        for name in MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader
            .load(OBJECT)
            .context("loading netbond's maps into the kernel")?;
        load_programs(&mut ebpf, features, [])?;
        Ok(Self { ebpf, features })
    }

    /// The program of a hook. Bonds need one of two, which take the verifier longest: loaded the first time that one
    /// takes it.
    fn program(&mut self, hook: Hook) -> Result<&mut SchedClassifier> {
        loaded(&mut self.ebpf, hook.program(self.features))
    }

    /// The program for drivers, loaded the first time that one takes it.
    fn xdp(&mut self) -> Result<&mut Xdp> {
        let program = xdp(&mut self.ebpf)?;
        if program.fd().is_err() {
            load_xdp(program)?;
        }
        Ok(program)
    }
}

/// Why a device has no program in its driver.
#[derive(Debug)]
pub struct NoXdp {
    pub reason: names::Xdp,
    pub error: anyhow::Error,
}

impl NoXdp {
    fn new(error: ProgramError, device: &str) -> Self {
        let errno = if let ProgramError::SyscallError(SyscallError { io_error, .. }) = &error {
            io_error.raw_os_error()
        } else {
            None
        };
        // dev_xdp_attach() of net/core/dev.c.
        let (reason, what) = match errno {
            Some(libc::EOPNOTSUPP) => (
                names::Xdp::NoDriver,
                format!("the driver of {device} has no XDP, or not as the device is set up"),
            ),
            Some(libc::EBUSY | libc::EEXIST) => (
                names::Xdp::Taken,
                format!(
                    "{device} has another XDP program: it stays; `ip link show dev {device}` and `bpftool \
                     net` name it"
                ),
            ),
            _ => (
                names::Xdp::Refused,
                format!(
                    "the driver of {device} refused the XDP program: most want an MTU that is not too \
                     large, queues to spare and no LRO; the kernel's log may say more"
                ),
            ),
        };
        Self {
            reason,
            error: anyhow::Error::from(error).context(what),
        }
    }
}

/// Loads the object with these `feature` bits.
#[must_use]
pub fn loader(features: &u32) -> EbpfLoader<'_> {
    let mut loader = EbpfLoader::new();
    loader.override_global(FEATURES, features, true);
    loader
}

/// Takes netbond's program off a device's hook without loading anything; fine where the device or the
/// program is gone.
///
/// # Errors
///
/// Where the kernel refuses, or a pin cannot be removed.
pub fn detach(pins: &Pins, device: &str, ifindex: u32, hook: Hook) -> Result<()> {
    let was_there = link::remove(&link_pin(pins, ifindex, hook))?;
    if !was_there && !has_tcx() {
        // Gone with its device, or never there: nothing to do in either case.
        let _ = filter(pins, device, hook).map(aya::programs::Link::detach);
    }
    Ok(())
}

/// The programs on a device's tcx hook, by name, in the order in which they run; none where the kernel
/// has no tcx.
///
/// # Errors
///
/// Where the device is gone or the kernel does not tell: it gives out programs by their ids
/// (BPF_PROG_GET_FD_BY_ID) with CAP_SYS_ADMIN only.
pub fn on_tcx(device: &str, ingress: bool) -> Result<Vec<String>> {
    if !has_tcx() {
        return Ok(Vec::new());
    }
    let hook = if ingress {
        TcAttachType::Ingress
    } else {
        TcAttachType::Egress
    };
    let (_, programs) = SchedClassifier::query_tcx(device, hook)?;
    let name = |program: &ProgramInfo| program.name_as_str().unwrap_or("?").to_owned();
    Ok(programs.iter().map(name).collect())
}

/// Whether the kernel has tcx links (6.6); older ones have clsact filters.
fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

fn filter(pins: &Pins, device: &str, hook: Hook) -> Result<SchedClassifierLink> {
    Ok(SchedClassifierLink::attached(
        device,
        hook.attach_type(),
        PRIORITY,
        handle(pins),
        None,
    )?)
}

/// The handle of the filters whose maps are pinned there. Those of another tree have another: what one netbond
/// leaves goes on to the next (`cls_bpf_classify`), and neither replaces the other.
fn handle(pins: &Pins) -> TcHandle {
    if pins.root() == Path::new(PIN_ROOT) {
        return TcHandle::new(0, 1);
    }
    let bytes = pins.root().as_os_str().as_bytes();
    let hash = bytes.iter().fold(0, |hash, &byte| {
        siphash::hash([0; 2], [hash, u64::from(byte), 0])
    });
    // Never the one above, which has a major number of 0.
    TcHandle::new((hash >> 16) as u16 | 1, hash as u16)
}

fn xdp_pin(pins: &Pins, ifindex: u32) -> PathBuf {
    pins.links().join(format!("{ifindex}-{DRIVER}"))
}

fn link_pin(pins: &Pins, ifindex: u32, hook: Hook) -> PathBuf {
    pins.links().join(format!("{ifindex}-{}", hook.label()))
}

/// Loads programs of an object whose maps are loaded: those of the devices of paths for these `feature` bits, and for
/// `bonds`, each of which asks for such bits of its own, those at their egress.
///
/// # Errors
///
/// With the verifier's own words where it refuses.
pub fn load_programs(
    ebpf: &mut Ebpf,
    features: u32,
    bonds: impl IntoIterator<Item = u32>,
) -> Result<()> {
    let paths = [false, true].map(|ethernet| ingress_program(features, ethernet));
    let names = paths.into_iter().chain([program::RELEASE]);
    for name in names.chain(bonds.into_iter().map(egress_program)) {
        loaded(ebpf, name)?;
    }
    Ok(())
}

/// A program, loaded unless it is already.
fn loaded<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier> {
    let program = classifier(ebpf, name)?;
    if program.fd().is_err() {
        again_if_disturbed(|| program.load())
            .with_context(|| format!("the kernel refused the program {name}"))?;
    }
    Ok(program)
}

/// How many instructions the kernel's verifier walked through for the one of the loaded programs of tc that took it
/// most; it refuses more than a million (`BPF_COMPLEXITY_LIMIT_INSNS`). `None` where it does not tell.
///
/// # Errors
///
/// Where the kernel does not tell of a program.
pub fn verified_instructions(ebpf: &Ebpf) -> Result<Option<u32>> {
    let mut most = None;
    for (_, program) in ebpf.programs() {
        if let Program::SchedClassifier(program) = program
            && program.fd().is_ok()
        {
            most = most.max(program.info()?.verified_instruction_count());
        }
    }
    Ok(most)
}

/// A program by its name.
///
/// # Errors
///
/// Where the object has none of this name.
pub fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| anyhow!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// The program for drivers.
///
/// # Errors
///
/// Where the object has none.
pub fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program = ebpf
        .program_mut(program::XDP)
        .ok_or_else(|| anyhow!("the object has no program {}", program::XDP))?;
    Ok(program.try_into()?)
}

/// Loads the program for drivers, of an object whose maps are loaded.
///
/// # Errors
///
/// With the verifier's own words where it refuses.
pub fn load_xdp(program: &mut Xdp) -> Result<()> {
    again_if_disturbed(|| program.load())
        .with_context(|| format!("the kernel refused the program {}", program::XDP))
}

/// Loads a program. A signal that comes while the verifier is at work ends that (EAGAIN, `do_check` in
/// kernel/bpf/verifier.c), be it a `systemctl reload` or the freezer: then it is done again.
fn again_if_disturbed(
    mut load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    const TRIES: u32 = 10;
    for _ in 1..TRIES {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
    load()
}
