//! netbond's data plane: the hooks.
//!
//! Each program is one line of work and one exhaustive answer. The crate compiles on the host too, so
//! that the usual lints see it; it runs only in the kernel.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics),
    expect(internal_features, reason = "atomic operations, see `atomic`")
)]

mod atomic;
mod clamp;
mod egress;
mod end;
mod features;
mod ingress;
mod maps;
mod packet;
mod probe;
mod xdp;

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_action::XDP_PASS},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use network_types::eth::EthHdr;

use crate::packet::Packet;

/// Egress of a bond device: a packet enters the bond.
#[classifier]
#[inline(always)]
fn netbond_egress(ctx: TcContext) -> i32 {
    let packet = Packet::new(ctx);
    egress::send(&packet).unwrap_or_else(|end| end.settle(&packet))
}

/// The same for bonds that do not all do with a wheel. A program of its own: the other one is none the
/// slower.
#[classifier]
#[inline(always)]
fn netbond_modes(ctx: TcContext) -> i32 {
    let packet = Packet::new(ctx);
    egress::send_by_mode(&packet).unwrap_or_else(|end| end.settle(&packet))
}

/// Ingress of a path's device whose frames start with IP: a packet may leave the bond.
#[classifier]
#[inline(always)]
fn netbond_in_l3(ctx: TcContext) -> i32 {
    let packet = Packet::new(ctx);
    ingress::receive::<0>(&packet).unwrap_or_else(|end| end.settle(&packet))
}

/// Ingress of a path's device whose frames start with Ethernet: a packet may leave the bond.
#[classifier]
#[inline(always)]
fn netbond_in_l2(ctx: TcContext) -> i32 {
    let packet = Packet::new(ctx);
    ingress::receive::<{ EthHdr::LEN }>(&packet).unwrap_or_else(|end| end.settle(&packet))
}

/// As `netbond_in_l3`, for bonds that number their packets.
#[classifier]
#[inline(always)]
fn netbond_ord_l3(ctx: TcContext) -> i32 {
    let packet = Packet::new(ctx);
    ingress::receive_numbered::<0>(&packet).unwrap_or_else(|end| end.settle(&packet))
}

/// As `netbond_in_l2`, for bonds that number their packets.
#[classifier]
#[inline(always)]
fn netbond_ord_l2(ctx: TcContext) -> i32 {
    let packet = Packet::new(ctx);
    ingress::receive_numbered::<{ EthHdr::LEN }>(&packet).unwrap_or_else(|end| end.settle(&packet))
}

/// Egress of the other end of a bond device's veth pair: a received packet waits for its turn in the
/// queue behind this hook, and appears on the bond.
#[classifier]
#[inline(always)]
fn netbond_release(ctx: TcContext) -> i32 {
    Packet::new(ctx).release();
    TC_ACT_UNSPEC
}

/// The driver of an Ethernet device: a packet may leave the bond or enter it before the kernel has made
/// anything of it. All that takes more than that goes on to the kernel, and so to the programs above.
#[xdp(frags)]
#[inline(always)]
fn netbond_xdp(ctx: XdpContext) -> u32 {
    xdp::take_up(&Packet::new(ctx)).unwrap_or(XDP_PASS)
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: nothing here panics; the verifier refuses the program where this is reachable.
    unsafe { core::hint::unreachable_unchecked() }
}

/// The helpers used are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
