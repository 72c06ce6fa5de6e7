//! The packet at hand: the only place with pointers into it and with helpers that change it.
//!
//! What is read of a packet is the same at each kind of hook ([`Context`]); how it is changed is not.

use core::{
    mem::MaybeUninit,
    sync::atomic::{Ordering, compiler_fence},
};

use aya_ebpf::{
    EbpfContext,
    bindings::{
        __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        BPF_F_ADJ_ROOM_ENCAP_L4_GRE, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
        BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, xdp_md,
    },
    helpers::generated::{
        bpf_clone_redirect, bpf_fib_lookup, bpf_get_prandom_u32, bpf_ktime_get_coarse_ns,
        bpf_ktime_get_ns, bpf_redirect, bpf_redirect_neigh, bpf_set_hash_invalid,
        bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_set_tstamp,
        bpf_skb_set_tunnel_key, bpf_skb_vlan_pop, bpf_skb_vlan_push, bpf_xdp_adjust_head,
        bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
    },
    programs::{TcContext, XdpContext},
};
use netbond_common::{
    abi::{NextHop, Path},
    frame::{self, Tag},
    gre, inner,
    ipv4::{self, Outward},
    ipv6,
    names::feature,
    route::Route,
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::features::{Features as _, Modes};

/// A helper of the kernel refused.
pub(crate) struct Refused;

/// Segments keep their size: the bond's MTU leaves room for what is added or removed (FIXED_GSO), and
/// without it UDP segments are refused. GRE without a checksum changes nothing of what is known of
/// the packet's checksums (NO_CSUM_RESET).
const PLAIN: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) as u64;
/// What is added is GRE over IPv4: so super-packets stay whole down to the path's device.
const TUNNEL: u64 = PLAIN | (BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_GRE) as u64;
/// The same over IPv6.
const TUNNEL_V6: u64 = PLAIN | (BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_ENCAP_L4_GRE) as u64;
/// What is left is IPv4. Linux 6.3 and later know this.
const LEAVES_IPV4: u64 = PLAIN | BPF_F_ADJ_ROOM_DECAP_L3_IPV4 as u64;

/// BPF_SKB_TSTAMP_DELIVERY_MONO of linux/bpf.h: a time stamp is one of CLOCK_MONOTONIC, of departure.
const DELIVERY_MONO: u32 = 1;

/// Bytes of space that WireGuard wants in front of a packet (`DATA_PACKET_HEAD_ROOM`).
const HEADROOM: i32 = 128;

/// The least MTU that a bond device has, bytes.
const LEAST_MTU: u32 = 1280;

/// The VLAN tags of a frame, the outermost first. Those that are not there are zeros: the compiler may
/// copy what an `enum` does not hold, and the verifier refuses that.
pub(crate) struct Tags {
    /// At most 2.
    pub(crate) count: usize,
    pub(crate) tags: [Tag; 2],
}

impl Tags {
    const fn new(count: usize, first: Tag, second: Tag) -> Self {
        Self {
            count,
            tags: [first, second],
        }
    }
}

/// One header behind another.
#[repr(C)]
struct Stacked<T, U> {
    first: T,
    then: U,
}

impl<T, U> Stacked<T, U> {
    const UNPADDED: () = assert!(size_of::<Self>() == size_of::<T>() + size_of::<U>());

    #[inline(always)]
    const fn new(first: T, then: U) -> Self {
        const { Self::UNPADDED };
        Self { first, then }
    }
}

/// Bytes of a GRE header by its number of optional fields.
const PLAIN_GRE: usize = gre::BASE_LEN;
const ONE_FIELD: usize = PLAIN_GRE + gre::FIELD_LEN;
const TWO_FIELDS: usize = ONE_FIELD + gre::FIELD_LEN;

/// An outer IPv4 header with the GRE header behind it.
type Outer<const N: usize> = Stacked<[u8; ipv4::HEADER_LEN], [u8; N]>;

/// What a kind of hook has of a packet.
pub(crate) trait Context {
    /// Bytes of the frame.
    fn len(&self) -> u32;

    /// EtherType of what follows the Ethernet header, big-endian.
    fn protocol(&self) -> [u8; 2];

    /// Where the part of the frame begins that lies in one piece, and where it ends.
    fn bounds(&self) -> (usize, usize);

    /// Copies a header out of the frame from wherever it lies; false and no matter what where the frame
    /// is too short.
    fn load<T: Copy>(&self, offset: usize) -> (bool, T);

    /// The same for what does not lie in that one piece.
    fn load_beyond<T: Copy>(&self, offset: usize) -> (bool, T);

    /// Overwrites bytes; `recompute` where a checksum that the kernel has of the packet covers them.
    fn store_bytes<T>(&self, offset: usize, value: &T, recompute: bool) -> Result<(), Refused>;
}

impl Context for TcContext {
    #[inline(always)]
    fn len(&self) -> u32 {
        skb(self).len
    }

    #[inline(always)]
    fn protocol(&self) -> [u8; 2] {
        (skb(self).protocol as u16).to_ne_bytes()
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> (bool, T) {
        let mut value = MaybeUninit::<T>::uninit();
        let (skb, to) = (self.as_ptr().cast(), value.as_mut_ptr().cast());
        // SAFETY: a plain helper call on this program's own context, with as much room as it is told.
        let result = unsafe { bpf_skb_load_bytes(skb, offset as u32, to, size_of::<T>() as u32) };
        // SAFETY: it is written in any case, with zeros where the frame is too short.
        (result == 0, unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn load_beyond<T: Copy>(&self, offset: usize) -> (bool, T) {
        Context::load(self, offset)
    }

    #[inline(always)]
    fn store_bytes<T>(&self, offset: usize, value: &T, recompute: bool) -> Result<(), Refused> {
        let flags = if recompute { BPF_F_RECOMPUTE_CSUM } else { 0 };
        self.store(offset, value, u64::from(flags))
            .map_err(|_| Refused)
    }
}

#[inline(always)]
fn skb(context: &TcContext) -> &__sk_buff {
    // SAFETY: the context of a tc program is a valid `__sk_buff` while it runs.
    unsafe { &*context.as_ptr().cast() }
}

impl Context for XdpContext {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: a plain helper call on this program's own context.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as u32 }
    }

    /// A frame that is too short for one has none that anybody knows.
    #[inline(always)]
    fn protocol(&self) -> [u8; 2] {
        let (start, end) = self.bounds();
        if start + EthHdr::LEN > end {
            return [0; 2];
        }
        // SAFETY: the bytes lie within the frame.
        unsafe { core::ptr::read_unaligned((start + frame::TYPE_AT) as *const [u8; 2]) }
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> (bool, T) {
        let mut value = MaybeUninit::<T>::zeroed();
        let (to, len) = (value.as_mut_ptr().cast(), size_of::<T>() as u32);
        // SAFETY: a plain helper call on this program's own context, with as much room as it is told.
        let result = unsafe { bpf_xdp_load_bytes(self.ctx, offset as u32, to, len) };
        // SAFETY: every T read here is plain bytes, zeros where the frame is too short.
        (result == 0, unsafe { value.assume_init() })
    }

    /// There is nothing: frames in several pieces are left to the kernel before they are read.
    #[inline(always)]
    fn load_beyond<T: Copy>(&self, _: usize) -> (bool, T) {
        // SAFETY: every T read here is plain bytes.
        (false, unsafe { MaybeUninit::<T>::zeroed().assume_init() })
    }

    /// The kernel has no checksum of a packet yet.
    #[inline(always)]
    fn store_bytes<T>(&self, offset: usize, value: &T, _: bool) -> Result<(), Refused> {
        let (start, end) = self.bounds();
        let at = start + offset;
        if at + size_of::<T>() > end {
            return Err(Refused);
        }
        // SAFETY: the bytes lie within the frame, which is this program's own, and every T written here is
        // plain bytes.
        unsafe { core::ptr::copy_nonoverlapping(value, at as *mut T, 1) };
        Ok(())
    }
}

/// A packet on its way through a hook. Offsets are in bytes from the start of the frame.
pub(crate) struct Packet<C = TcContext> {
    ctx: C,
}

impl<C: Context> Packet<C> {
    #[inline(always)]
    pub(crate) fn new(ctx: C) -> Self {
        Self { ctx }
    }

    /// Bytes of the frame.
    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        self.ctx.len()
    }

    /// EtherType as the kernel knows it, big-endian.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> [u8; 2] {
        self.ctx.protocol()
    }

    /// Copies a header out of the frame; `None` where the frame is too short.
    #[inline(always)]
    pub(crate) fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        let (there, value) = self.try_read(offset);
        there.then_some(value)
    }

    /// The same, and false and no matter what where the frame is too short. For headers that are looked
    /// at in several places: the compiler may do so before it knows that there is one, and the verifier
    /// refuses what an `Option` does not hold.
    #[inline(always)]
    pub(crate) fn try_read<T: Copy>(&self, offset: usize) -> (bool, T) {
        let (start, end) = self.ctx.bounds();
        let start = start + offset;
        if start + size_of::<T>() <= end {
            // SAFETY: the bytes lie within the frame, and every T read here is plain bytes.
            return (true, unsafe {
                core::ptr::read_unaligned(start as *const T)
            });
        }
        // Beyond the linear part of the buffer, or of the frame.
        self.ctx.load_beyond(offset)
    }

    /// The same where the verifier cannot follow where the offset comes from.
    #[inline(always)]
    pub(crate) fn load<T: Copy>(&self, offset: usize) -> (bool, T) {
        self.ctx.load(offset)
    }

    /// Overwrites bytes whose change the packet's checksum does not see: those of a header that sums
    /// to zero, or of one outside of it.
    #[inline(always)]
    pub(crate) fn write<T>(&self, offset: usize, value: &T) -> Result<(), Refused> {
        self.ctx.store_bytes(offset, value, false)
    }

    /// Overwrites bytes that the packet's checksum covers.
    #[inline(always)]
    pub(crate) fn rewrite<T>(&self, offset: usize, value: &T) -> Result<(), Refused> {
        self.ctx.store_bytes(offset, value, true)
    }

    /// Writes outer headers over those that are there.
    #[inline(always)]
    pub(crate) fn overwrite(
        &self,
        at: usize,
        outward: &Outward<'_>,
        gre: gre::Header,
    ) -> Result<(), Refused> {
        match gre {
            gre::Header::Plain(gre) => self.write(at, &outer::<PLAIN_GRE>(outward, gre)),
            gre::Header::One(gre) => self.write(at, &outer::<ONE_FIELD>(outward, gre)),
            gre::Header::Two(gre) => self.write(at, &outer::<TWO_FIELDS>(outward, gre)),
        }
    }

    /// Writes an outer IPv6 header behind the Ethernet header, and the GRE header behind it. The
    /// addresses come from the map itself: to copy them would take more than to write once more.
    #[inline(always)]
    pub(crate) fn write_v6(
        &self,
        outward: &ipv6::Outward,
        path: &Path,
        gre: gre::Header,
    ) -> Result<(), Refused> {
        const GRE_AT: usize = EthHdr::LEN + ipv6::HEADER_LEN;
        self.write_v6_header(EthHdr::LEN, &outward.head(gre.len()), path)?;
        match gre {
            gre::Header::Plain(gre) => {
                self.write::<[u8; PLAIN_GRE]>(GRE_AT, &gre::Header::bytes(gre))
            }
            gre::Header::One(gre) => {
                self.write::<[u8; ONE_FIELD]>(GRE_AT, &gre::Header::bytes(gre))
            }
            gre::Header::Two(gre) => {
                self.write::<[u8; TWO_FIELDS]>(GRE_AT, &gre::Header::bytes(gre))
            }
        }
    }

    /// Writes a path's outer IPv6 header that begins so.
    #[inline(always)]
    pub(crate) fn write_v6_header(
        &self,
        at: usize,
        head: &[u8; ipv6::HEAD_LEN],
        path: &Path,
    ) -> Result<(), Refused> {
        self.write(at, head)?;
        self.write(at + ipv6::HEAD_LEN, path.addresses())
    }
}

/// Bytes that a frame of `len` bytes takes on a path, about: each segment of a super-packet has headers.
#[inline(always)]
pub(crate) const fn wire_len(len: u32, packets: u32) -> u32 {
    // What GRE, WireGuard and TCP have over IPv4; the same for all, as it is to be compared.
    const HEADERS: u32 = 24 + 60 + 52;
    len + packets * HEADERS
}

impl Packet<XdpContext> {
    #[inline(always)]
    pub(crate) fn raw(&self) -> *mut xdp_md {
        self.ctx.ctx
    }

    /// ifindex of the device that the packet came in on.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }

    /// Whether the whole frame, of so many bytes, lies in one piece.
    #[inline(always)]
    pub(crate) fn is_linear(&self, len: u32) -> bool {
        // No packet is longer; and the verifier adds nothing greater to a pointer.
        const LONGEST: usize = 0xffff;
        let (start, end) = self.ctx.bounds();
        start + (len as usize & LONGEST) <= end
    }

    /// Removes so many bytes from the start of the frame.
    #[inline(always)]
    pub(crate) fn cut(&self, len: usize) -> Result<(), Refused> {
        self.move_head(len as i32)
    }

    /// Makes room for so many bytes at the start of the frame.
    #[inline(always)]
    pub(crate) fn make_room(&self, len: usize) -> Result<(), Refused> {
        self.move_head(-(len as i32))
    }

    #[inline(always)]
    fn move_head(&self, by: i32) -> Result<(), Refused> {
        // SAFETY: a plain helper call on this program's own context.
        let result = unsafe { bpf_xdp_adjust_head(self.ctx.ctx, by) };
        if result == 0 { Ok(()) } else { Err(Refused) }
    }

    /// Removes so many bytes from the end of the frame.
    #[inline(always)]
    pub(crate) fn trim(&self, len: u32) -> Result<(), Refused> {
        if len == 0 {
            return Ok(());
        }
        // SAFETY: a plain helper call on this program's own context.
        let result = unsafe { bpf_xdp_adjust_tail(self.ctx.ctx, -(len as i32)) };
        if result == 0 { Ok(()) } else { Err(Refused) }
    }

    /// Asks the kernel for a route: see `bpf_fib_lookup` of linux/bpf.h. Returns `BPF_FIB_LKUP_RET_*`, or a negative
    /// number.
    #[inline(always)]
    pub(crate) fn find_route<T>(&self, lookup: &mut T, flags: u32) -> i64 {
        let (context, lookup) = (self.ctx.ctx.cast(), (&raw mut *lookup).cast());
        // SAFETY: a plain helper call on this program's own context, with as much room as it is told.
        unsafe { bpf_fib_lookup(context, lookup, size_of::<T>() as i32, flags) }
    }
}

impl Packet {
    #[inline(always)]
    fn skb(&self) -> &__sk_buff {
        skb(&self.ctx)
    }

    #[inline(always)]
    pub(crate) fn raw(&self) -> *mut __sk_buff {
        self.ctx.as_ptr().cast()
    }

    /// ifindex of the device whose hook this is.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        self.skb().ifindex
    }

    /// skb->mark.
    #[inline(always)]
    pub(crate) fn mark(&self) -> u32 {
        self.skb().mark
    }

    /// Whether a VLAN tag travels beside the frame.
    #[inline(always)]
    pub(crate) fn has_vlan(&self) -> bool {
        self.skb().vlan_present != 0
    }

    /// The VLAN tag that travels beside the frame.
    #[inline(always)]
    fn vlan(&self) -> Tag {
        let skb = self.skb();
        let ([a, b], [c, d]) = (
            (skb.vlan_proto as u16).to_ne_bytes(),
            (skb.vlan_tci as u16).to_be_bytes(),
        );
        [a, b, c, d]
    }

    /// Takes the VLAN tags off, wherever they are; refused where there are more than two.
    #[inline(always)]
    pub(crate) fn take_tags(&self) -> Result<Tags, Refused> {
        const NONE: Tag = [0; frame::TAG_LEN];
        let first = if self.has_vlan() {
            self.vlan()
        } else if frame::is_tag(self.protocol()) {
            self.read(frame::TYPE_AT).ok_or(Refused)?
        } else {
            return Ok(Tags::new(0, NONE, NONE));
        };
        // What is next in the frame takes the place beside it.
        self.pop_tag()?;
        if !self.has_vlan() {
            return Ok(Tags::new(1, first, NONE));
        }
        let second = self.vlan();
        self.pop_tag()?;
        if self.has_vlan() {
            return Err(Refused);
        }
        Ok(Tags::new(2, first, second))
    }

    #[inline(always)]
    fn pop_tag(&self) -> Result<(), Refused> {
        // SAFETY: a plain helper call on this program's own context.
        let result = unsafe { bpf_skb_vlan_pop(self.ctx.as_ptr().cast()) };
        if result == 0 { Ok(()) } else { Err(Refused) }
    }

    #[inline(always)]
    fn push_tag(&self) -> Result<(), Refused> {
        // SAFETY: a plain helper call on this program's own context; 0 asks for 802.1Q.
        let result = unsafe { bpf_skb_vlan_push(self.ctx.as_ptr().cast(), 0, 1) };
        if result == 0 { Ok(()) } else { Err(Refused) }
    }

    /// Makes the kernel take a frame for one of this EtherType, whatever is in it: it makes room in none
    /// but those of IP, and WireGuard sends no other. The frame's own EtherType is lost.
    #[inline(always)]
    fn pass_off_as(&self, protocol: [u8; 2]) -> Result<(), Refused> {
        self.write(frame::TYPE_AT, &protocol)?;
        // The first tag goes beside the frame, the second moves it in; and when that is taken out
        // again the kernel reads the EtherType anew.
        self.push_tag()?;
        self.push_tag()?;
        self.pop_tag()?;
        self.pop_tag()
    }

    /// Takes from the packet the route that led it into the bond.
    ///
    /// WireGuard pads a packet by its route's MTU (`calculate_skb_padding`). The bond's is less than
    /// the device's: a packet as long as the device takes would be padded beyond it, and what is sent
    /// fragmented. A tunnel's metadata replaces the route, and counts for none (`skb_valid_dst`).
    #[inline(always)]
    pub(crate) fn forget_route(&self) {
        // No bond's MTU is less: what is shorter is padded alike.
        if self.len() <= LEAST_MTU {
            return;
        }
        // Tunnel id and remote address, the shortest key that the kernel takes: each byte of a longer one
        // would be set to zero by itself.
        let mut nobody = 0_u64;
        let (skb, key) = (self.ctx.as_ptr().cast(), (&raw mut nobody).cast());
        // SAFETY: a plain helper call on this program's own context, and a key on its stack. It refuses
        // keys of other lengths and flags only.
        let _ = unsafe { bpf_skb_set_tunnel_key(skb, key, size_of::<u64>() as u32, 0) };
    }

    /// Whether the frame is for this host (PACKET_HOST) and not only overheard.
    #[inline(always)]
    pub(crate) fn is_for_us(&self) -> bool {
        self.skb().pkt_type == 0
    }

    /// Whether this host made the packet: it came in on no device.
    #[inline(always)]
    pub(crate) fn is_ours(&self) -> bool {
        self.skb().ingress_ifindex == 0
    }

    /// Packets on the wire: a super-packet counts its segments.
    #[inline(always)]
    pub(crate) fn wire_packets(&self) -> u32 {
        let skb = self.skb();
        inner::wire_packets(skb.gso_segs, skb.gso_size, skb.len)
    }

    /// Replaces two bytes that the checksum of a transport header, at `check`, covers; `odd` where they lie in two
    /// of its words.
    #[inline(always)]
    pub(crate) fn replace(
        &self,
        at: usize,
        old: [u8; 2],
        new: [u8; 2],
        check: usize,
        odd: bool,
    ) -> Result<(), Refused> {
        let (old_word, new_word) = (u16::from_ne_bytes(old), u16::from_ne_bytes(new));
        let (from, to) = if odd {
            (old_word.swap_bytes(), new_word.swap_bytes())
        } else {
            (old_word, new_word)
        };
        // The kernel knows whether there is a whole checksum yet, or what a device is to complete.
        self.ctx
            .l4_csum_replace(check, from.into(), to.into(), size_of::<u16>() as u64)
            .map_err(|_| Refused)?;
        self.write(at, &new)
    }

    /// Makes room for outer headers behind the Ethernet header, and writes them.
    #[inline(always)]
    pub(crate) fn encapsulate(
        &self,
        outward: &Outward<'_>,
        gre: gre::Header,
    ) -> Result<(), Refused> {
        self.make_headroom((ipv4::HEADER_LEN + gre.len()) as i32)?;
        match gre {
            gre::Header::Plain(gre) => self.put_before(&outer::<PLAIN_GRE>(outward, gre)),
            gre::Header::One(gre) => self.put_before(&outer::<ONE_FIELD>(outward, gre)),
            gre::Header::Two(gre) => self.put_before(&outer::<TWO_FIELDS>(outward, gre)),
        }
    }

    /// The same over IPv6.
    #[inline(always)]
    pub(crate) fn encapsulate_v6(
        &self,
        outward: &ipv6::Outward,
        path: &Path,
        gre: gre::Header,
    ) -> Result<(), Refused> {
        let len = (ipv6::HEADER_LEN + gre.len()) as i32;
        self.make_headroom(len)?;
        self.make_room(len, TUNNEL_V6, gre::IPV6)?;
        self.write_v6(outward, path, gre)
    }

    /// Makes of the outer IPv4 header one of IPv6, or the other way round, as far as its length goes:
    /// what it says is left to the caller.
    #[inline(always)]
    pub(crate) fn change_outer(&self, to_ipv6: bool) -> Result<(), Refused> {
        const MORE: i32 = (ipv6::HEADER_LEN - ipv4::HEADER_LEN) as i32;
        let (more, protocol) = if to_ipv6 {
            (MORE, gre::IPV6)
        } else {
            (-MORE, gre::IPV4)
        };
        self.ctx
            .adjust_room(more, BPF_ADJ_ROOM_MAC, PLAIN)
            .map_err(|_| Refused)?;
        self.pass_off_as(protocol)
    }

    #[inline(always)]
    fn put_before<T>(&self, headers: &T) -> Result<(), Refused> {
        self.make_room(size_of::<T>() as i32, TUNNEL, gre::IPV4)?;
        self.write(EthHdr::LEN, headers)
    }

    /// Makes room for so many bytes of outer headers of this EtherType, which the flags describe.
    #[inline(always)]
    fn make_room(&self, len: i32, flags: u64, protocol: [u8; 2]) -> Result<(), Refused> {
        if self.ctx.adjust_room(len, BPF_ADJ_ROOM_MAC, flags).is_err() {
            self.make_plain_room(len, protocol)?;
        }
        Ok(())
    }

    /// Puts outer headers before the whole frame, whose tags were taken off, and makes room for its own
    /// header of `frame` bytes with them, which is left to the caller. What is left in front is an
    /// Ethernet header for the kernel to remove.
    #[inline(always)]
    pub(crate) fn encapsulate_frame(
        &self,
        outward: &Outward<'_>,
        gre: gre::Header,
        frame: usize,
    ) -> Result<(), Refused> {
        let len = (ipv4::HEADER_LEN + gre.len() + frame) as i32;
        self.make_headroom(len)?;
        self.make_room(len, TUNNEL | with_frame(frame), gre::IPV4)?;
        self.overwrite(EthHdr::LEN, outward, gre)
    }

    /// The same over IPv6.
    #[inline(always)]
    pub(crate) fn encapsulate_frame_v6(
        &self,
        outward: &ipv6::Outward,
        path: &Path,
        gre: gre::Header,
        frame: usize,
    ) -> Result<(), Refused> {
        let len = (ipv6::HEADER_LEN + gre.len() + frame) as i32;
        self.make_headroom(len)?;
        self.make_room(len, TUNNEL_V6 | with_frame(frame), gre::IPV6)?;
        self.write_v6(outward, path, gre)
    }

    /// Sees to it that there is space in memory for `len` bytes of outer headers and for those that
    /// WireGuard adds, by making all of that room and giving it back.
    ///
    /// A packet from a veth or a socket has little space in front of it: with room for the outer headers
    /// alone the kernel would copy it here, and WireGuard once more.
    #[inline(always)]
    fn make_headroom(&self, len: i32) -> Result<(), Refused> {
        // This host's TCP leaves space enough. Its packets are shared with the queue for retransmission:
        // giving room back would copy them.
        if self.is_ours() && self.is_tcp() {
            return Ok(());
        }
        // Giving room back has to leave an IP header, as far as the kernel can tell.
        if (self.len() as usize) < EthHdr::LEN + Ipv6Hdr::LEN {
            return Ok(());
        }
        let len = len + HEADROOM;
        if self.ctx.adjust_room(len, BPF_ADJ_ROOM_MAC, PLAIN).is_err() {
            // No IP packet, or too long a one: it passes all the same.
            return Ok(());
        }
        self.ctx
            .adjust_room(-len, BPF_ADJ_ROOM_MAC, PLAIN)
            .map_err(|_| Refused)
    }

    /// Makes room for outer headers around what is no IP packet, or inside a tunnel already, for which
    /// the kernel refuses to note another one (ENOTSUPP, EALREADY in `bpf_skb_net_grow`).
    ///
    /// Without that note the kernel takes the packet for one of the family that it was of, and not of
    /// the outer headers' (EtherType `protocol`). And a super-packet must not be cut: but for TCP, which says so only because it came
    /// out of a tunnel, merged by its receive offload (`gre_gro_complete`). There the kernel still
    /// knows where the packet inside begins, and it begins there again.
    #[inline(always)]
    fn make_plain_room(&self, len: i32, protocol: [u8; 2]) -> Result<(), Refused> {
        if self.skb().gso_size != 0 && !self.is_tcp() {
            return Err(Refused);
        }
        if self.protocol() != protocol {
            self.pass_off_as(protocol)?;
        }
        self.ctx
            .adjust_room(len, BPF_ADJ_ROOM_MAC, PLAIN)
            .map_err(|_| Refused)
    }

    /// Whether TCP follows the IP header at once.
    #[inline(always)]
    fn is_tcp(&self) -> bool {
        // Of IPv4 and of IPv6.
        let protocol: Option<u8> = match self.protocol() {
            gre::IPV4 => self.read(EthHdr::LEN + 9),
            gre::IPV6 => self.read(EthHdr::LEN + 6),
            _ => None,
        };
        protocol == Some(inner::TCP)
    }

    /// Removes `len` bytes of outer headers from where the IP header starts.
    ///
    /// `inner` is the EtherType of what is left.
    ///
    /// Where the outer header is IPv6 the kernel goes on to take the packet for IPv6, unless it is told
    /// otherwise, and leaves no less than an IPv6 header, though an IPv4 packet may be shorter. From Linux 6.3
    /// on it takes our word that IPv4 is what is left; before, the outer header is made one of IPv4 first.
    #[inline(always)]
    pub(crate) fn decapsulate(&self, len: usize, inner: [u8; 2]) -> Result<(), Refused> {
        let remove = |len: usize, flags| {
            let removed = self.ctx.adjust_room(-(len as i32), BPF_ADJ_ROOM_MAC, flags);
            removed.map_err(|_| Refused)
        };
        if Modes::has(feature::IPV6) && self.protocol() == gre::IPV6 && inner != gre::IPV6 {
            if remove(len, LEAVES_IPV4).is_ok() {
                return Ok(());
            }
            // A super-packet of TCP would be one of TCP over IPv4 then, which one in a tagged frame need not be;
            // it is long enough as it is.
            if inner == gre::IPV4 || self.skb().gso_size == 0 {
                let to = u16::from_ne_bytes(gre::IPV4);
                self.ctx.change_proto(to, 0).map_err(|_| Refused)?;
                return remove(len - (Ipv6Hdr::LEN - Ipv4Hdr::LEN), PLAIN);
            }
        }
        remove(len, PLAIN)
    }

    /// Lengthens a frame that is shorter than `len` bytes, with zeros.
    #[inline(always)]
    pub(crate) fn pad(&self, len: usize) -> Result<(), Refused> {
        if self.len() as usize >= len {
            return Ok(());
        }
        // SAFETY: a plain helper call on this program's own context.
        let result = unsafe { bpf_skb_change_tail(self.ctx.as_ptr().cast(), len as u32, 0) };
        if result == 0 { Ok(()) } else { Err(Refused) }
    }

    /// Sends a copy of the packet out of a device, as [`redirect`] does with the packet itself. That device
    /// may be another bond's: what this CPU noted of the packet is lost.
    #[inline(always)]
    pub(crate) fn send_copy(&self, ifindex: u32) {
        // SAFETY: a plain helper call on this program's own context. What it refuses is lost, as what a
        // device refuses to which packets are redirected.
        let _ = unsafe { bpf_clone_redirect(self.raw(), ifindex, 0) };
    }

    /// Whether the address of an Ethernet path's next hop is known; `route` has it then.
    #[inline(always)]
    pub(crate) fn knows_neighbour(&self, path: &Path, over_ipv6: bool, route: &mut Route) -> bool {
        route.ask_neighbour(path, over_ipv6);
        let (skb, at) = (self.ctx.as_ptr().cast(), (&raw mut *route).cast());
        let len = size_of::<Route>() as i32;
        // SAFETY: a plain helper call on this program's own context, with as much room as it is told.
        let found = unsafe { bpf_fib_lookup(skb, at, len, BPF_FIB_LOOKUP_OUTPUT) };
        found == i64::from(BPF_FIB_LKUP_RET_SUCCESS) && route.is_of(path)
    }

    /// Addresses the frame to it, with the outer headers that it has, so that it may be sent as it is.
    #[inline(always)]
    pub(crate) fn address(
        &self,
        path: &Path,
        over_ipv6: bool,
        route: &mut Route,
    ) -> Result<(), Refused> {
        if !self.knows_neighbour(path, over_ipv6, route) {
            return Err(Refused);
        }
        let protocol = if over_ipv6 { gre::IPV6 } else { gre::IPV4 };
        self.write(0, &route.way().header(protocol))
    }

    /// Addresses the frame to no group: the kernel finds the next hop of no other, though it replaces
    /// the address.
    #[inline(always)]
    pub(crate) fn to_one(&self) -> Result<(), Refused> {
        self.write(0, &0_u8)
    }

    /// Has the program on the other end of the bond's veth pair release the packet at this time, ns.
    #[inline(always)]
    pub(crate) fn hold_until(&self, time: u64, now: u64) {
        // SAFETY: the context of a tc program is a valid `__sk_buff` while it runs, and this field one
        // that such a program may write. 0 says: at once.
        unsafe { (*self.raw()).mark = if time > now { time as u32 | 1 } else { 0 } };
        // The queue there tells flows by it, and it may be that of the outer header.
        // SAFETY: a plain helper call on this program's own context.
        unsafe { bpf_set_hash_invalid(self.raw()) };
    }

    /// Sets the time of departure that [`Self::hold_until`] asks for.
    #[inline(always)]
    pub(crate) fn release(&self) {
        let time = self.skb().mark;
        if time == 0 {
            return;
        }
        // SAFETY: as in `hold_until`.
        unsafe { (*self.raw()).mark = 0 };
        let now = monotonic();
        // 32 bits of it: the past is as far away as the future.
        let wait = time.wrapping_sub(now as u32) as i32;
        if wait > 0 {
            let (time, clock) = (now + wait as u64, DELIVERY_MONO);
            // SAFETY: a plain helper call on this program's own context.
            let _ = unsafe { bpf_skb_set_tstamp(self.raw(), time, clock) };
        }
    }

    /// Makes room for an Ethernet header before a frame that has none.
    #[inline(always)]
    pub(crate) fn prepend_ethernet(&self) -> Result<(), Refused> {
        // SAFETY: a plain helper call on this program's own context.
        let result =
            unsafe { bpf_skb_change_head(self.ctx.as_ptr().cast(), EthHdr::LEN as u32, 0) };
        if result == 0 { Ok(()) } else { Err(Refused) }
    }
}

/// What the flags for room say of a frame's header of so many bytes behind the outer headers.
#[inline(always)]
const fn with_frame(len: usize) -> u64 {
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64 | (len as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT
}

/// Of the GRE header the first `N` bytes.
#[inline(always)]
fn outer<const N: usize>(outward: &Outward<'_>, gre: [u32; TWO_FIELDS / 4]) -> Outer<N> {
    Stacked::new(outward.header(N), gre::Header::bytes(gre))
}

/// Sends the packet out of a device; its Ethernet header is removed where the device has none.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> i32 {
    // SAFETY: a plain helper call.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Sends the packet out of a path's Ethernet device to its next hop.
#[inline(always)]
pub(crate) fn redirect_to_neighbour(path: &Path) -> i32 {
    let next_hop = &path.next_hop;
    if next_hop.family == 0 {
        // SAFETY: a plain helper call; a null pointer with length 0 asks for the route's next hop.
        let action = unsafe { bpf_redirect_neigh(path.ifindex, core::ptr::null_mut(), 0, 0) };
        // Two calls are to stay two: before Linux 6.2 the verifier does not follow that an address and a length that
        // are chosen by one question fit together.
        compiler_fence(Ordering::SeqCst);
        return action as i32;
    }
    let (at, len) = (
        (&raw const *next_hop).cast_mut(),
        size_of::<NextHop>() as i32,
    );
    // SAFETY: a plain helper call, with as much in the map as it is told; it does not write there.
    unsafe { bpf_redirect_neigh(path.ifindex, at.cast(), len, 0) as i32 }
}

/// Hands the packet to a device as if received on it.
#[inline(always)]
pub(crate) fn redirect_inward(ifindex: u32) -> i32 {
    // SAFETY: a plain helper call.
    unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 }
}

/// CLOCK_MONOTONIC, ns.
#[inline(always)]
pub(crate) fn monotonic() -> u64 {
    // SAFETY: a plain helper call.
    unsafe { bpf_ktime_get_ns() }
}

/// The same as of the last tick: a few milliseconds old, and much cheaper.
#[inline(always)]
pub(crate) fn monotonic_coarse() -> u64 {
    // SAFETY: a plain helper call.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// A random number.
#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: a plain helper call.
    unsafe { bpf_get_prandom_u32() }
}
