//! What a program notes of the packet at hand, in a map: the stack is short, and of what stands in a map
//! the verifier knows nothing. It need not walk through all that follows once for each way in which a
//! value may have come about.

use crate::{class::Subject, select::Copies, turns::Keys};

/// A CPU's notes: the one entry of `NOTES`. Nobody else reads them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Notes {
    pub subject: Subject,
    pub keys: Keys,
    /// Hash of the packet's flow, where some feature needs one.
    pub flow: u32,
    /// Where packets of its class are counted.
    pub class: u32,
    /// The lane that it takes.
    pub lane: u32,
    /// Packets on the wire that it stands for.
    pub packets: u32,
    /// Where it is to be sent, if on several paths.
    pub copies: Copies,
    /// Bytes of it, without any encapsulation.
    pub len: u32,
    /// Of a received packet: what is to be known of its outer headers to take them away.
    pub cover: u32,
    /// 1 where it has a sequence field, and what that is.
    pub stamped: u32,
    pub field: u32,
    pub identification: u32,
    /// Of a packet that is of no path: the kernel's action.
    pub action: i32,
}
