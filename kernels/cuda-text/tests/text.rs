//! Every kernel becomes CUDA text with the instructions that it is about, and machine code without spills.

use cuda_text::catalog::{self, Entry};
use cuda_text::lower::{device, lower};
use cuda_text::nvrtc::Nvrtc;
use cuda_text::portable;

/// The tensor-core kernels, then the portable ones.
fn entries() -> Vec<Entry> {
    let (device, target) = device();
    let mut entries = catalog::entries(&device, &target);
    entries.extend(portable::entries(&device, &target));
    entries
}

#[test]
fn instructions() {
    let entries = entries();
    for entry in &entries {
        let text = lower(entry).unwrap_or_else(|e| panic!("{e}"));
        for instruction in &entry.instructions {
            assert!(
                text.source.contains(instruction),
                "{} lacks {instruction}",
                entry.name
            );
        }
        // What a device of 8.6 or 8.9 allows; the warpgroups' devices allow 227 KiB.
        let limit = if entry.architectures == ["sm_90a"] {
            227
        } else {
            99
        } * 1024;
        assert!(
            text.shared <= limit,
            "{} needs {} bytes of shared memory",
            entry.name,
            text.shared
        );
    }
    println!("{} kernels lowered to CUDA text", entries.len());
}

/// The tensor-core kernels keep everything in registers. Of the portable ones NVRTC puts a few registers of a few forms into
/// memory, although more would be left, to have more cubes at a time: no more than this.
const PORTABLE_SPILL: u32 = 256;

#[test]
fn machine_code() {
    let nvrtc = match Nvrtc::open() {
        Ok(nvrtc) => nvrtc,
        Err(why) => return println!("skipped: nvrtc: {why}"),
    };
    let (device, target) = device();
    let (major, minor) = nvrtc.version;
    for (kind, entries, most) in [
        ("tensor-core", catalog::entries(&device, &target), 0),
        (
            "portable",
            portable::entries(&device, &target),
            PORTABLE_SPILL,
        ),
    ] {
        let (mut compiled, mut spilling, mut worst) = (0, 0, 0);
        for entry in &entries {
            let text = lower(entry).unwrap_or_else(|e| panic!("{e}"));
            for architecture in entry.architectures {
                let usage = nvrtc
                    .compile(&text.source, architecture)
                    .unwrap_or_else(|e| panic!("{} for {architecture}: {e}", entry.name));
                println!(
                    "{} | {architecture} | {} registers | {} bytes spilled | {} bytes shared",
                    entry.name, usage.registers, usage.spilled, text.shared
                );
                assert!(
                    usage.spilled <= most,
                    "{} spills on {architecture}",
                    entry.name
                );
                // Register files have 65,536: a cube that needs more cannot be launched.
                assert!(
                    usage.registers * entry.units <= 65_536,
                    "{} does not fit",
                    entry.name
                );
                assert!(usage.code > 0);
                compiled += 1;
                spilling += u32::from(usage.spilled > 0);
                worst = worst.max(usage.spilled);
            }
        }
        println!(
            "{compiled} {kind} kernels compiled by NVRTC {major}.{minor}, {spilling} with spills, at most {worst} bytes"
        );
    }
}

#[test]
fn spills_and_errors_are_seen() {
    let nvrtc = match Nvrtc::open() {
        Ok(nvrtc) => nvrtc,
        Err(why) => return println!("skipped: nvrtc: {why}"),
    };
    let spilling = "extern \"C\" __global__ void __launch_bounds__(1024) k(float* x, int n) {
        float v[200];
        #pragma unroll
        for (int i = 0; i < 200; i++) v[i] = x[i * 1024 + threadIdx.x];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 200; i++) x[(199 - i) * 1024 + threadIdx.x + n] = v[i] * v[(i * 7 + 3) % 200];
    }";
    assert!(nvrtc.compile(spilling, "sm_80").unwrap().spilled > 0);
    let wrong = "extern \"C\" __global__ void k() { asm volatile(\"wgmma.fence.sync.aligned;\"); }";
    assert!(
        nvrtc.compile(wrong, "sm_80").is_err(),
        "sm_80 has no warpgroup instruction"
    );
    assert!(nvrtc.compile("nonsense", "sm_80").is_err());
}
