//! Small XDP programs, of the kernel's own instructions, and bpf(2) for them.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::{io, mem};

/// Of linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
const BPF_FUNC_REDIRECT: i32 = 23;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
/// Of linux/if_link.h.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// The first fields of union bpf_attr for BPF_PROG_LOAD.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// The fields for BPF_LINK_CREATE.
#[repr(C)]
struct Link {
    program: RawFd,
    ifindex: u32,
    kind: u32,
    flags: u32,
}

/// The fields for BPF_PROG_TEST_RUN.
#[repr(C)]
struct Run {
    program: RawFd,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    reserved: u32,
}

/// struct bpf_insn.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    code as u64
        | ((to | from << 4) as u64) << 8
        | (offset as u16 as u64) << 16
        | (value as u32 as u64) << 32
}

// Opcodes of linux/bpf.h.
const fn load_word(to: u8, from: u8, offset: i16) -> u64 {
    instruction(0x61, to, from, offset, 0)
}
const fn copy(to: u8, from: u8) -> u64 {
    instruction(0xbf, to, from, 0, 0)
}
const fn set(to: u8, value: i32) -> u64 {
    instruction(0xb7, to, 0, 0, value)
}
const fn add(to: u8, value: i32) -> u64 {
    instruction(0x07, to, 0, 0, value)
}
const fn jump_if_greater(a: u8, b: u8, over: i16) -> u64 {
    instruction(0x2d, a, b, over, 0)
}
const fn store_word(to: u8, offset: i16, value: i32) -> u64 {
    instruction(0x62, to, 0, offset, value)
}
const fn call(function: i32) -> u64 {
    instruction(0x85, 0, 0, 0, function)
}
const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);

/// A loaded program.
pub(crate) struct Program(OwnedFd);

impl Program {
    /// Passes each packet to the kernel.
    pub(crate) fn passing() -> io::Result<Self> {
        Self::load(&[set(0, XDP_PASS), EXIT])
    }

    /// Sends each packet out of a device.
    pub(crate) fn redirecting(ifindex: u32) -> io::Result<Self> {
        Self::load(&Self::redirect(ifindex))
    }

    /// The same, and first makes its start this again, of whole words: the kernel hands memory out again as it
    /// came back.
    pub(crate) fn generating(start: &[u8], ifindex: u32) -> io::Result<Self> {
        let words = start.len() / 4;
        // Start and end of the packet.
        let mut program = vec![load_word(2, 1, 0), load_word(3, 1, 4), copy(4, 2)];
        program.push(add(4, (4 * words) as i32));
        let redirect = Self::redirect(ifindex);
        program.push(jump_if_greater(4, 3, (words + redirect.len()) as i16));
        for (at, word) in start.chunks_exact(4).enumerate() {
            let word = i32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
            program.push(store_word(2, 4 * at as i16, word));
        }
        program.extend(redirect);
        program.extend([set(0, XDP_DROP), EXIT]);
        Self::load(&program)
    }

    const fn redirect(ifindex: u32) -> [u64; 4] {
        [
            set(1, ifindex as i32),
            set(2, 0),
            call(BPF_FUNC_REDIRECT),
            EXIT,
        ]
    }

    fn load(instructions: &[u64]) -> io::Result<Self> {
        let license = c"GPL";
        let mut load = Load {
            kind: BPF_PROG_TYPE_XDP,
            count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
        };
        bpf(BPF_PROG_LOAD, &mut load).map(Self)
    }

    /// Puts it into the driver of a device, as long as what is returned lives.
    pub(crate) fn attach(&self, ifindex: u32) -> io::Result<OwnedFd> {
        let mut link = Link {
            program: self.0.as_raw_fd(),
            ifindex,
            kind: BPF_XDP,
            flags: XDP_FLAGS_DRV_MODE,
        };
        bpf(BPF_LINK_CREATE, &mut link)
    }

    /// As `Kernel::run_live` of the tests' helpers.
    pub(crate) fn run_live(&self, frame: &[u8], context: &[u8], count: u32) -> io::Result<u64> {
        // SAFETY: plain integers, for which all zeros is a value.
        let mut run: Run = unsafe { mem::zeroed() };
        run.program = self.0.as_raw_fd();
        (run.data_in, run.data_size_in) = (frame.as_ptr() as u64, frame.len() as u32);
        (run.context_in, run.context_size_in) = (context.as_ptr() as u64, context.len() as u32);
        (run.repeat, run.batch) = (count, 64);
        run.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
        // It returns 0, which is no descriptor.
        call_bpf(BPF_PROG_TEST_RUN, &mut run)?;
        Ok(u64::from(run.duration) * u64::from(count))
    }
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = call_bpf(command, attributes)?;
    // SAFETY: a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call_bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    let (attributes, size) = (std::ptr::from_mut(attributes), size_of::<T>());
    // SAFETY: the attributes are those of the command, and what they point to lives on.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as RawFd)
}
