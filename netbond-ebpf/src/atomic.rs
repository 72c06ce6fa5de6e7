//! Atomic operations on map values that several CPUs share.
//!
//! `core` has none for this target (it is said to have no compare-and-swap, as before version 3 of the
//! instruction set), but the compiler does. Weaker orderings than SeqCst would compile to an addition
//! that does not tell what was before.

/// Adds to the number and returns what it was before.
///
/// # Safety
///
/// It points to a live, aligned number that nothing changes but atomically.
#[inline(always)]
pub(crate) unsafe fn fetch_add(number: *mut u64, by: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        core::intrinsics::atomic_xadd::<_, _, { core::intrinsics::AtomicOrdering::SeqCst }>(
            number, by,
        )
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        host(number).fetch_add(by, core::sync::atomic::Ordering::SeqCst)
    }
}

/// Takes a lock that is 0 while it is free; false where it is taken.
///
/// # Safety
///
/// As for [`fetch_add`].
#[inline(always)]
pub(crate) unsafe fn try_lock(lock: *mut u64) -> bool {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        use core::intrinsics::AtomicOrdering::SeqCst;
        core::intrinsics::atomic_cxchg::<_, { SeqCst }, { SeqCst }>(lock, 0, 1).1
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::Ordering::SeqCst;
        host(lock).compare_exchange(0, 1, SeqCst, SeqCst).is_ok()
    }
}

/// Lets go of a lock that was taken.
///
/// # Safety
///
/// As for [`fetch_add`].
#[inline(always)]
pub(crate) unsafe fn unlock(lock: *mut u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise. An exchange, as it orders what was written before on every
    // processor; a plain store would not.
    unsafe {
        core::intrinsics::atomic_xchg::<_, { core::intrinsics::AtomicOrdering::SeqCst }>(lock, 0);
    }
    #[cfg(not(target_arch = "bpf"))]
    host(lock).swap(0, core::sync::atomic::Ordering::SeqCst);
}

#[cfg(not(target_arch = "bpf"))]
fn host<'a>(number: *mut u64) -> &'a core::sync::atomic::AtomicU64 {
    // SAFETY: the promise of this module's callers.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(number) }
}
