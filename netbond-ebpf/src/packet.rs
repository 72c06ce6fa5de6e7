//! The packet at hand: the only place with pointers into it and with helpers that change it.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_GRE,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_INGRESS,
        BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::generated::{
        bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_redirect,
        bpf_redirect_neigh, bpf_skb_change_head,
    },
    programs::TcContext,
};
use netbond_common::{gre, inner};
use network_types::eth::EthHdr;

/// A helper of the kernel refused.
pub(crate) struct Refused;

/// A packet on its way through a tc hook. Offsets are in bytes from the start of the frame.
pub(crate) struct Packet {
    ctx: TcContext,
}

impl Packet {
    #[inline(always)]
    pub(crate) fn new(ctx: TcContext) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    fn skb(&self) -> &__sk_buff {
        // SAFETY: the context of a tc program is a valid `__sk_buff` while it runs.
        unsafe { &*self.ctx.as_ptr().cast() }
    }

    /// Bytes of the frame.
    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        self.skb().len
    }

    /// ifindex of the device whose hook this is.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        self.skb().ifindex
    }

    /// EtherType as the kernel knows it, big-endian.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> [u8; 2] {
        (self.skb().protocol as u16).to_ne_bytes()
    }

    /// Whether a VLAN tag travels beside the frame.
    #[inline(always)]
    pub(crate) fn has_vlan(&self) -> bool {
        self.skb().vlan_present != 0
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

    /// Copies a header out of the frame; `None` where the frame is too short.
    #[inline(always)]
    pub(crate) fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        let start = self.ctx.data() + offset;
        if start + size_of::<T>() <= self.ctx.data_end() {
            // SAFETY: the bytes lie within the frame, and every T read here is plain bytes.
            return Some(unsafe { core::ptr::read_unaligned(start as *const T) });
        }
        // Beyond the linear part of the buffer, or of the frame.
        self.ctx.load(offset).ok()
    }

    /// Overwrites bytes whose change the packet's checksum does not see: those of a header that sums
    /// to zero, or of one outside of it.
    #[inline(always)]
    pub(crate) fn write<T>(&self, offset: usize, value: &T) -> Result<(), Refused> {
        self.ctx.store(offset, value, 0).map_err(|_| Refused)
    }

    /// Overwrites bytes that the packet's checksum covers.
    #[inline(always)]
    pub(crate) fn rewrite<T>(&self, offset: usize, value: &T) -> Result<(), Refused> {
        self.ctx
            .store(offset, value, u64::from(BPF_F_RECOMPUTE_CSUM))
            .map_err(|_| Refused)
    }

    /// Makes room for outer headers behind the Ethernet header, and writes them.
    #[inline(always)]
    pub(crate) fn encapsulate<T>(&self, headers: &T) -> Result<(), Refused> {
        // Segments keep their size: the bond's MTU leaves room for what is added (FIXED_GSO), and
        // without it UDP segments are refused.
        const PLAIN: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) as u64;
        const TUNNEL: u64 =
            PLAIN | (BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_GRE) as u64;
        let len = size_of::<T>() as i32;
        if self.ctx.adjust_room(len, BPF_ADJ_ROOM_MAC, TUNNEL).is_err() {
            // A packet of a tunnel over the bond is one inside another already (EALREADY). With
            // nothing to segment, only its EtherType needs the flags, where that changes.
            if self.skb().gso_size != 0 || self.protocol() != gre::IPV4 {
                return Err(Refused);
            }
            self.ctx
                .adjust_room(len, BPF_ADJ_ROOM_MAC, PLAIN)
                .map_err(|_| Refused)?;
        }
        self.write(EthHdr::LEN, headers)
    }

    /// Removes `len` bytes of outer headers from where the IP header starts.
    #[inline(always)]
    pub(crate) fn decapsulate(&self, len: usize) -> Result<(), Refused> {
        // GRE without a checksum takes nothing from what the device verified (NO_CSUM_RESET).
        const FLAGS: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) as u64;
        self.ctx
            .adjust_room(-(len as i32), BPF_ADJ_ROOM_MAC, FLAGS)
            .map_err(|_| Refused)
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

/// Sends the packet out of a device; its Ethernet header is removed where the device has none.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> i32 {
    // SAFETY: a plain helper call.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Sends the packet out of an Ethernet device to the next hop of its destination address.
#[inline(always)]
pub(crate) fn redirect_to_neighbour(ifindex: u32) -> i32 {
    // SAFETY: a plain helper call; a null pointer with length 0 asks for the route's next hop.
    unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
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
