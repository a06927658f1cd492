//! Instructions that CubeCL does not offer, or offers only with a barrier: a thin function for each.
//!
//! Operand layouts are those of the PTX ISA ("Warp-level matrix instructions", "Asynchronous copies"). Shared memory is
//! addressed by 32-bit numbers, as the instructions want it: one conversion per kernel instead of one per access.
//! Whatever touches memory says so to the compiler (`readonly`, or by default reading and writing everything), so that
//! nothing moves across it. Operands that may be variables come by reference and are read here: an instruction takes
//! values.

// Pointers are taken from slices without a bound check: the caller's slice begins where it may be read.
#![allow(unsafe_code)]

use cubecl::prelude::*;

/// Two registers.
pub type Two = Const<2>;
/// Four registers.
pub type Four = Const<4>;

/// Number of the first byte of `slice`, which lies in shared memory, in the shared window.
#[cube]
pub fn shared_address<T: CubePrimitive>(slice: &[T]) -> u32 {
    // SAFETY: a slice of shared memory begins inside of it; nothing is read here.
    let pointer = unsafe { slice.as_ptr_unchecked() };
    let address: u32;
    gpu_asm!(
        "{{ .reg .u64 window; cvta.to.shared.u64 window, {pointer}; cvt.u32.u64 {address}, window; }}",
        address = out(_) address, pointer = in(_) pointer, options(nomem),
    );
    address
}

/// Starts a copy of 16 bytes from `source` to shared memory; with `bytes` 0 it writes zeros and reads nothing.
#[cube]
pub fn copy_16<T: CubePrimitive>(source: &[T], address: u32, bytes: u32) {
    // SAFETY: the slice's first element is in its buffer, and nothing is read where `bytes` is 0.
    let pointer = unsafe { source.as_ptr_unchecked() };
    gpu_asm!(
        "cp.async.cg.shared.global [{address}], [{pointer}], 16, {bytes};",
        address = in(_) address, pointer = in(_) pointer, bytes = in(_) bytes,
    );
}

/// Starts a copy of 4 bytes from `source` to shared memory; with `bytes` 0 it writes zeros and reads nothing.
#[cube]
pub fn copy_4<T: CubePrimitive>(source: &[T], address: u32, bytes: u32) {
    // SAFETY: the slice's first element is in its buffer, and nothing is read where `bytes` is 0.
    let pointer = unsafe { source.as_ptr_unchecked() };
    gpu_asm!(
        "cp.async.ca.shared.global [{address}], [{pointer}], 4, {bytes};",
        address = in(_) address, pointer = in(_) pointer, bytes = in(_) bytes,
    );
}

/// Closes the group of copies started since the last call; an empty group counts too.
#[cube]
pub fn commit_copies() {
    gpu_asm!("cp.async.commit_group;");
}

/// Waits until at most `pending` of this unit's latest groups are under way.
#[cube]
pub fn wait_copies(#[comptime] pending: u32) {
    gpu_asm!("cp.async.wait_group {pending};", pending = const pending);
}

/// Four 8x8 matrices of 16-bit elements: lanes 8 i to 8 i + 7 pass the addresses of matrix i's rows, 16 bytes each. Lane
/// l receives elements 2 (l % 4) and the next of row l / 4 of each; with `transpose`, of column l / 4.
#[cube]
pub fn load_matrices(address: u32, #[comptime] transpose: bool) -> Vector<u32, Four> {
    let kind = comptime!(if transpose { ".trans" } else { "" });
    let out: Vector<u32, Four>;
    gpu_asm!(
        "ldmatrix.sync.aligned.m8n8.x4{kind}.shared.b16 {out}, [{address}];",
        kind = const kind, out = out(_) out, address = in(_) address, options(readonly),
    );
    out
}

/// One word of shared memory.
#[cube]
pub fn load_word(address: u32) -> u32 {
    let out: u32;
    gpu_asm!("ld.shared.u32 {out}, [{address}];", out = out(_) out, address = in(_) address, options(readonly));
    out
}

/// One half-word of shared memory.
#[cube]
pub fn load_half(address: u32) -> u32 {
    let out: u32;
    gpu_asm!(
        "{{ .reg .u16 half; ld.shared.u16 half, [{address}]; cvt.u32.u16 {out}, half; }}",
        out = out(_) out, address = in(_) address, options(readonly),
    );
    out
}

/// Four words of shared memory; the address is a multiple of 16.
#[cube]
pub fn load_words(address: u32) -> Vector<u32, Four> {
    let out: Vector<u32, Four>;
    gpu_asm!("ld.shared.v4.u32 {out}, [{address}];", out = out(_) out, address = in(_) address, options(readonly));
    out
}

/// The nearest number with 10 bits of mantissa, which is all that a tf32 product reads.
#[cube]
pub fn round_tf32(bits: u32) -> u32 {
    let out: u32;
    gpu_asm!("cvt.rna.tf32.f32 {out}, {bits};", out = out(_) out, bits = in(_) bits, options(pure, nomem));
    out
}

/// `A B + C` on one warp: A `[16, K]`, B `[K, 8]` of `kind` (`bf16`, `f16`: K = 16; `tf32`: K = 8), C `[16, 8]` in f32.
#[cube]
pub fn mma(
    a: &Vector<u32, Four>,
    b: &Vector<u32, Two>,
    c: &Vector<f32, Four>,
    #[comptime] kind: &'static str,
) -> Vector<f32, Four> {
    let (a, b, c) = (*a, *b, *c);
    let k = comptime!(if kind == "tf32" { 8 } else { 16 });
    let out: Vector<f32, Four>;
    gpu_asm!(
        "mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32 {out}, {a}, {b}, {c};",
        k = const k, kind = const kind,
        out = out(_) out, a = in(_) a, b = in(_) b, c = in(_) c, options(pure, nomem),
    );
    out
}

/// `A B + C` on one warp with A `[16, 32]` two of four, compressed as in [`crate::Nm24Hw`], B `[32, 8]`, C `[16, 8]`.
#[cube]
pub fn mma_sparse(
    a: &Vector<u32, Four>,
    b: &Vector<u32, Four>,
    c: &Vector<f32, Four>,
    metadata: &u32,
    #[comptime] selector: u32,
    #[comptime] kind: &'static str,
) -> Vector<f32, Four> {
    let (a, b, c, metadata) = (*a, *b, *c, *metadata);
    let out: Vector<f32, Four>;
    gpu_asm!(
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.{kind}.{kind}.f32 ",
        "{out}, {a}, {b}, {c}, {metadata}, {selector};",
        selector = const selector, kind = const kind,
        out = out(_) out, a = in(_) a, b = in(_) b, c = in(_) c, metadata = in(_) metadata, options(pure, nomem),
    );
    out
}
