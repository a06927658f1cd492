//! The process's allocator.
#![allow(unsafe_code)]

/// Lets the C library keep what is freed for the next tensor instead of giving it back to the system.
///
/// Networks allocate and free the same sizes in every step. By default each large block comes from the system anew, and
/// its pages are cleared and mapped again one fault at a time, which takes longer than many of the operations on it. A
/// program that does such work calls this first, before it starts threads; memory then stays at its highest use until
/// the end. Threads share one heap: in one of its own, no block is larger than 64 MiB, and what is larger would come
/// from the system after all. Does nothing where the C library is not glibc.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the options are glibc's own, and it checks their values.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
