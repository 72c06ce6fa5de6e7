//! Pinned links of programs, and how they end.

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::{fs, io};

use anyhow::{Context as _, Result};

/// Commands of bpf(2), `enum bpf_cmd` of linux/bpf.h.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

/// What BPF_OBJ_GET reads of `union bpf_attr`.
#[repr(C)]
struct Get {
    pathname: u64,
    fd: u32,
    flags: u32,
}

/// What BPF_LINK_DETACH reads of `union bpf_attr`.
#[repr(C)]
struct Detach {
    fd: u32,
}

/// Takes a pinned link's program off its device and removes the pin; tells whether it was there. Without its pin alone
/// a link lives on until a work queue of the kernel has ended it (`bpf_link_put`, and before it a grace period of RCU):
/// whoever attaches meanwhile finds a driver taken, or a hook with two programs.
///
/// # Errors
///
/// Where the kernel refuses, or the pin cannot be removed.
pub(crate) fn remove(pin: &Path) -> Result<bool> {
    let removed = detach(pin).and_then(|()| fs::remove_file(pin));
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing {}", pin.display())),
    }
}

/// That of a device that is gone is as good as detached: no error.
fn detach(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let get = Get {
        pathname: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    let fd = bpf(BPF_OBJ_GET, &get)?;
    // SAFETY: a new descriptor, which nobody else has.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let fd = link.as_raw_fd() as u32;
    bpf(BPF_LINK_DETACH, &Detach { fd }).map(|_| ())
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the attributes are those of the command, and what they point to lives on.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as RawFd)
}

#[cfg(test)]
mod tests {
    use nix::mount::{MsFlags, mount};
    use nix::net::if_::if_nametoindex;
    use nix::sched::{CloneFlags, unshare};

    use crate::loader::{Hook, Programs, on_tcx};
    use crate::netlink::netns::{in_netns, ip, ip_show};
    use crate::pins::Pins;

    /// Mounts a bpffs of this thread's own; the others' stay in sight of others only.
    fn mount_bpffs(place: &std::path::Path) {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        mount(
            Some("bpf"),
            place,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
    }

    #[test]
    #[ignore = "needs root: cargo xtask test netns"]
    fn what_is_taken_off_is_gone_at_once() {
        in_netns(async || {
            let directory = tempfile::tempdir().unwrap();
            mount_bpffs(directory.path());
            let pins = Pins::new(directory.path().join("netbond"));
            ip("link add v0 type veth peer name v1");
            let ifindex = if_nametoindex("v0").unwrap();
            let mut programs = Programs::load(&pins, 0).unwrap();
            let hook = Hook::Path { ethernet: true };
            for _ in 0..50 {
                let new = programs.attach_xdp("v0", ifindex).map_err(|no| no.error);
                assert!(new.unwrap());
                assert!(programs.attach("v0", ifindex, hook).unwrap());
                programs.detach_xdp(ifindex).unwrap();
                programs.detach("v0", ifindex, hook).unwrap();
                assert!(!ip_show("link show dev v0").contains("xdp"));
                assert_eq!(on_tcx("v0", true).unwrap(), Vec::<String>::new());
            }
        });
    }
}
