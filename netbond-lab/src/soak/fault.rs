//! What fails in a soak, and how it ends.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use fastrand::Rng;

use crate::impair::Impairment;
use crate::lab::Lab;
use crate::topology::link_device;

/// The routers that have bonds.
pub(crate) const ENDS: [&str; 2] = ["A", "B"];

/// Of a path through a middle router: it alone suffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    kind: Kind,
    /// The middle router.
    middle: String,
    /// The end on whose side it is, where it is on one.
    end: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The middle router drops everything.
    Silent,
    /// What the end sends to the middle router is dropped.
    OneWay,
    /// The other way round.
    OneWayBack,
    /// The middle router's processes stand still.
    Hang,
    /// It is switched off.
    Off,
    /// Its WireGuard devices are gone.
    WireGuard,
    /// The end's WireGuard does not know it any more.
    Key,
    /// A third of the packets are lost, and the others come later.
    Lossy,
    /// Its BIRD dies.
    Bird,
    /// The end's device is set down.
    Device,
    /// The operator takes the path out at the end.
    TakenOut,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Silent,
        Self::OneWay,
        Self::OneWayBack,
        Self::Hang,
        Self::Off,
        Self::WireGuard,
        Self::Key,
        Self::Lossy,
        Self::Bird,
        Self::Device,
        Self::TakenOut,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::OneWay => "one way",
            Self::OneWayBack => "one way back",
            Self::Hang => "hang",
            Self::Off => "off",
            Self::WireGuard => "wireguard gone",
            Self::Key => "key gone",
            Self::Lossy => "lossy",
            Self::Bird => "bird killed",
            Self::Device => "device down",
            Self::TakenOut => "taken out",
        }
    }
}

impl Fault {
    /// Any of the path through this router.
    pub(crate) fn of(middle: String, random: &mut Rng) -> Self {
        Self {
            kind: Kind::ALL[random.usize(..Kind::ALL.len())],
            middle,
            end: ENDS[random.usize(..ENDS.len())],
        }
    }

    /// What happens, without where.
    pub(crate) const fn label(&self) -> &'static str {
        self.kind.label()
    }

    pub(crate) fn begin(&self, lab: &Lab) -> Result<()> {
        let (end, middle) = (self.end, &*self.middle);
        match self.kind {
            Kind::Silent => lab.fail_router(middle),
            Kind::OneWay => lab.blackhole(end, middle),
            Kind::OneWayBack => lab.blackhole(middle, end),
            Kind::Hang => lab.router(middle).freeze(),
            Kind::Off => lab.kill_router(middle),
            Kind::WireGuard => lab.delete_devices(middle),
            Kind::Key => lab.remove_key(end, middle),
            Kind::Lossy => lab.impair(
                end,
                middle,
                Impairment {
                    loss: 0.3,
                    delay: Duration::from_millis(20),
                },
            ),
            Kind::Bird => lab.router(middle).bird_kill(),
            Kind::Device => self.set_device(lab, "down"),
            Kind::TakenOut => self.take(lab, "down"),
        }
    }

    /// Ends it; what it left behind takes its time to come back.
    pub(crate) fn end(&self, lab: &mut Lab) -> Result<()> {
        let (end, middle) = (self.end, &*self.middle);
        match self.kind {
            Kind::Silent => lab.restore_router(middle),
            Kind::OneWay => lab.heal(end, middle),
            Kind::OneWayBack => lab.heal(middle, end),
            Kind::Hang => lab.router(middle).thaw(),
            Kind::Off => lab.revive_router(middle),
            Kind::WireGuard => lab.restore_devices(middle),
            Kind::Key => lab.restore_key(end, middle),
            Kind::Lossy => lab.impair(end, middle, Impairment::default()),
            Kind::Bird => lab.router(middle).bird_start(),
            Kind::Device => self.set_device(lab, "up"),
            Kind::TakenOut => self.take(lab, "up"),
        }
    }

    fn set_device(&self, lab: &Lab, state: &str) -> Result<()> {
        let device = link_device(self.end, &self.middle);
        lab.router(self.end)
            .ip(&format!("link set {device} {state}\n"))
    }

    /// By the operator's command, in each bond.
    fn take(&self, lab: &Lab, state: &str) -> Result<()> {
        let router = lab.router(self.end);
        for bond in lab
            .topology()
            .bonds
            .iter()
            .filter(|bond| bond.router == self.end)
        {
            let device = link_device(self.end, &self.middle);
            let Some(path) = bond.paths.iter().find(|path| path.device == device) else {
                bail!("{} has no path over {device}", bond.name);
            };
            router.run(&["netbond", "path", state, &path.name])?;
        }
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, middle, end } = self;
        match kind {
            Kind::Silent | Kind::Hang | Kind::Off | Kind::WireGuard | Kind::Bird => {
                write!(f, "{}: {middle}", kind.label())
            }
            Kind::OneWay
            | Kind::OneWayBack
            | Kind::Key
            | Kind::Lossy
            | Kind::Device
            | Kind::TakenOut => write!(f, "{}: {end} and {middle}", kind.label()),
        }
    }
}
