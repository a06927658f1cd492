//! Whether this process may use the tiles: the processor has them, the kernel saves them, and it was asked.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// What keeps this process from using the tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// No x86-64 processor, so no tiles.
    #[error(
        "AMX exists on x86-64 processors only, this is {}",
        std::env::consts::ARCH
    )]
    Architecture,
    /// Another system than Linux, whose way of granting tiles is not known here.
    #[error(
        "permission for AMX is asked of Linux only, this is {}",
        std::env::consts::OS
    )]
    System,
    /// CPUID leaf 7 lacks a bit.
    #[error("this CPU has no AMX (CPUID leaf 7: amx-tile {tile}, amx-bf16 {bf16})")]
    Processor {
        /// EDX bit 24.
        tile: bool,
        /// EDX bit 22.
        bf16: bool,
    },
    /// The kernel does not save tiles.
    #[error("the kernel does not keep AMX state (XCR0 {xcr0:#x} lacks bit 17 or 18)")]
    State {
        /// The register.
        xcr0: u64,
    },
    /// The kernel refused permission.
    #[error("the kernel refused AMX to this process (arch_prctl 0x1023, 18: error {errno})")]
    Refused {
        /// Its error number.
        errno: i32,
    },
}

/// Asks once per process; all its threads share the answer.
pub fn permission() -> Result<(), Missing> {
    static ANSWER: OnceLock<Result<(), Missing>> = OnceLock::new();
    *ANSWER.get_or_init(ask)
}

#[cfg(not(target_arch = "x86_64"))]
fn ask() -> Result<(), Missing> {
    Err(Missing::Architecture)
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn ask() -> Result<(), Missing> {
    Err(Missing::System)
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn ask() -> Result<(), Missing> {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    /// XTILECFG and XTILEDATA in XCR0.
    const TILES: u64 = 1 << 17 | 1 << 18;
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XTILEDATA: libc::c_ulong = 18;

    let leaves = __cpuid(0).eax;
    let features = if leaves >= 7 {
        __cpuid_count(7, 0).edx
    } else {
        0
    };
    let (bf16, tile) = (features >> 22 & 1 == 1, features >> 24 & 1 == 1);
    if !(bf16 && tile) {
        return Err(Missing::Processor { tile, bf16 });
    }
    // XGETBV itself exists only where the system has enabled XSAVE.
    if __cpuid(1).ecx >> 27 & 1 == 0 {
        return Err(Missing::State { xcr0: 0 });
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE was just seen; the instruction reads a register.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    }
    let xcr0 = u64::from(high) << 32 | u64::from(low);
    if xcr0 & TILES != TILES {
        return Err(Missing::State { xcr0 });
    }
    // SAFETY: a system call that takes two numbers and touches no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) };
    if answer == 0 {
        Ok(())
    } else {
        let errno = std::io::Error::last_os_error().raw_os_error();
        Err(Missing::Refused {
            errno: errno.unwrap_or(0),
        })
    }
}
