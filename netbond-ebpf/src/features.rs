//! What a program has in it: fixed when it is compiled, and again when it is loaded.

use netbond_common::{
    abi::{PATH_IPV6, Path},
    names::feature,
};

/// The `feature` bits that the configuration asks for. The loader writes them into the object: to the
/// verifier this is a constant, and what it rules out is removed.
#[unsafe(no_mangle)]
static FEATURES: u32 = feature::ALL;

/// Whether a program has what a `feature` bit stands for.
pub(crate) trait Features {
    fn has(feature: u32) -> bool;
}

/// Nothing but the wheel, and not even a test for more.
pub(crate) struct Plain;

impl Features for Plain {
    #[inline(always)]
    fn has(_: u32) -> bool {
        false
    }
}

/// What [`FEATURES`] says.
pub(crate) struct Modes;

impl Features for Modes {
    #[inline(always)]
    fn has(feature: u32) -> bool {
        // SAFETY: a plain read; volatile, as the compiler must not take the value for the final one.
        unsafe { core::ptr::read_volatile(&raw const FEATURES) & feature != 0 }
    }
}

/// Whether the path's outer addresses are IPv6.
#[inline(always)]
pub(crate) fn is_over_ipv6<F: Features>(path: &Path) -> bool {
    F::has(feature::IPV6) && path.flags & PATH_IPV6 != 0
}
