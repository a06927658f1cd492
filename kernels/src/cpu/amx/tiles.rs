//! Eight tile registers of 16 rows x 64 bytes: the processor's, and the same in plain Rust.
//!
//! Reference: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, "TDPBF16PS" and "LDTILECFG".
//!
//! A factor's tile holds pairs of bf16 that are neighbours in the sum. The left one, A: row m, 16 pairs along k. The right one, B
//! ("VNNI order"): row k / 2, for each of 16 columns the pair (k, k + 1). A sum's tile: 16 x 16 f32.
#![allow(unsafe_code)]

/// Rows of a tile, and 32-bit words of a row.
pub const SIDE: usize = 16;
/// 32-bit words of a tile.
pub const TILE: usize = SIDE * SIDE;

/// The operations that products are made of, on tiles named by number.
pub trait Tiles: Sized {
    /// All eight registers as full tiles, zero; given back on drop.
    ///
    /// # Safety
    /// The process has permission to use them, if they are the processor's; one value at a time on a thread.
    unsafe fn configure() -> Self;

    /// Tile `T` becomes 0.
    fn zero<const T: usize>(&mut self);

    /// Tile `T` from 16 rows of 16 words, `pitch` words apart.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load<const T: usize>(&mut self, from: *const u32, pitch: usize);

    /// Tile `T` to 16 rows of 16 sums, `pitch` floats apart.
    ///
    /// # Safety
    /// They can be written.
    unsafe fn store<const T: usize>(&mut self, to: *mut f32, pitch: usize);

    /// Tile `C` += tile `A` times tile `B`.
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self);
}

/// The definition of the instructions, in plain Rust.
///
/// For each entry of the result: two chains of fused multiply-adds, over the even and over the odd k, both from 0; then
/// their sum; then that added to what the tile held. Denormal inputs are read as 0, denormal results become 0 (one that
/// rounds up to the smallest normal number stays), and the rounding mode is to nearest, ties to even.
pub struct Emulated([[u32; TILE]; 8]);

/// A denormal number as the instruction sees it: 0 of its sign.
#[inline(always)]
fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE {
        0f32.copysign(x)
    } else {
        x
    }
}

#[inline(always)]
fn multiply(c: &mut [u32; TILE], a: &[u32; TILE], b: &[u32; TILE]) {
    let even = |pair: u32| flush(f32::from_bits(pair << 16));
    let odd = |pair: u32| flush(f32::from_bits(pair & 0xffff_0000));
    for m in 0..SIDE {
        let mut sums = [[0f32; SIDE]; 2];
        for k in 0..SIDE {
            let left = a[m * SIDE + k];
            let right = &b[k * SIDE..][..SIDE];
            for n in 0..SIDE {
                sums[0][n] = flush(even(left).mul_add(even(right[n]), sums[0][n]));
                sums[1][n] = flush(odd(left).mul_add(odd(right[n]), sums[1][n]));
            }
        }
        for n in 0..SIDE {
            let sum = flush(sums[0][n] + sums[1][n]);
            let c = &mut c[m * SIDE + n];
            *c = flush(flush(f32::from_bits(*c)) + sum).to_bits();
        }
    }
}

/// The same with the processor's multiply-add: the same bits without a library call for each.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_fma(c: &mut [u32; TILE], a: &[u32; TILE], b: &[u32; TILE]) {
    multiply(c, a, b);
}

impl Tiles for Emulated {
    unsafe fn configure() -> Self {
        Self([[0; TILE]; 8])
    }

    fn zero<const T: usize>(&mut self) {
        self.0[T].fill(0);
    }

    unsafe fn load<const T: usize>(&mut self, from: *const u32, pitch: usize) {
        for (row, line) in self.0[T].chunks_exact_mut(SIDE).enumerate() {
            // SAFETY: the caller's.
            unsafe {
                line.as_mut_ptr()
                    .copy_from_nonoverlapping(from.add(row * pitch), SIDE);
            }
        }
    }

    unsafe fn store<const T: usize>(&mut self, to: *mut f32, pitch: usize) {
        for (row, line) in self.0[T].chunks_exact(SIDE).enumerate() {
            // SAFETY: the caller's.
            unsafe {
                to.add(row * pitch)
                    .copy_from_nonoverlapping(line.as_ptr().cast(), SIDE);
            }
        }
    }

    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {
        let (a, b) = (self.0[A], self.0[B]);
        let c = &mut self.0[C];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: both were just seen.
            unsafe { multiply_fma(c, &a, &b) };
            return;
        }
        multiply(c, &a, &b);
    }
}

/// The processor's tiles.
///
/// Registers keep their values from one block of assembly to the next. The compiler has none of its own there: it uses no
/// tile register unless a function enables AMX, and none of this crate does; the kernel saves them with the thread.
#[cfg(target_arch = "x86_64")]
pub struct Hardware {
    /// Not to be sent: registers belong to a thread.
    _thread: std::marker::PhantomData<*mut ()>,
}

#[cfg(target_arch = "x86_64")]
mod hardware {
    use super::{Hardware, SIDE, Tiles};
    use std::arch::asm;
    use std::marker::PhantomData;

    /// The operand of LDTILECFG.
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    const FULL: Configuration = {
        let mut full = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        let mut tile = 0;
        while tile < 8 {
            full.row_bytes[tile] = 4 * SIDE as u16;
            full.rows[tile] = SIDE as u8;
            tile += 1;
        }
        full
    };

    /// `asm!` that may write any tile.
    macro_rules! tiles {
        ($($argument:tt)*) => {
            asm!($($argument)*,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _)
        };
    }

    impl Tiles for Hardware {
        unsafe fn configure() -> Self {
            // SAFETY: the caller has permission, and the operand is what palette 1 allows.
            unsafe {
                tiles!("ldtilecfg [{0}]", in(reg) &FULL, options(nostack, preserves_flags, readonly));
            }
            Self {
                _thread: PhantomData,
            }
        }

        #[inline(always)]
        fn zero<const T: usize>(&mut self) {
            // SAFETY: tiles are configured while `self` lives.
            unsafe {
                tiles!("tilezero tmm{t}", t = const T, options(nostack, preserves_flags, nomem));
            }
        }

        #[inline(always)]
        unsafe fn load<const T: usize>(&mut self, from: *const u32, pitch: usize) {
            // SAFETY: as above, and the caller gives 16 rows to read.
            unsafe {
                tiles!("tileloadd tmm{t}, [{from} + {pitch}]", t = const T, from = in(reg) from,
                    pitch = in(reg) 4 * pitch, options(nostack, preserves_flags, readonly));
            }
        }

        #[inline(always)]
        unsafe fn store<const T: usize>(&mut self, to: *mut f32, pitch: usize) {
            // SAFETY: as above, and the caller gives 16 rows to write.
            unsafe {
                tiles!("tilestored [{to} + {pitch}], tmm{t}", t = const T, to = in(reg) to,
                    pitch = in(reg) 4 * pitch, options(nostack, preserves_flags));
            }
        }

        #[inline(always)]
        fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {
            // SAFETY: as for `zero`; the three are different tiles, as the instruction asks.
            unsafe {
                const { assert!(C != A && C != B && A != B && C < 8 && A < 8 && B < 8) };
                tiles!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                    options(nostack, preserves_flags, nomem));
            }
        }
    }

    impl Drop for Hardware {
        fn drop(&mut self) {
            // SAFETY: no tile is in use any more.
            unsafe { tiles!("tilerelease", options(nostack, preserves_flags, nomem)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One entry by hand: even and odd chains, then both, then the sum that was there.
    #[test]
    fn chains_are_summed_in_the_defined_order() {
        // SAFETY: the emulator needs no permission, and all pointers are to whole tiles.
        unsafe {
            let mut tiles = Emulated::configure();
            let pair = |even: f32, odd: f32| even.to_bits() >> 16 | odd.to_bits() & 0xffff_0000;
            let mut a = [0u32; TILE];
            let mut b = [0u32; TILE];
            // Row 3, column 5: evens 2^12 * 2^12 then 1 (lost in the chain), odds 1 then 1 (kept until the chains meet).
            a[3 * SIDE] = pair(4096.0, 1.0);
            a[3 * SIDE + 1] = pair(1.0, 1.0);
            b[5] = pair(4096.0, 1.0);
            b[SIDE + 5] = pair(1.0, 1.0);
            tiles.load::<4>(a.as_ptr(), SIDE);
            tiles.load::<6>(b.as_ptr(), SIDE);
            let mut c = [0f32; TILE];
            c[3 * SIDE + 5] = 0.5;
            tiles.load::<0>(c.as_ptr().cast(), SIDE);
            tiles.multiply::<0, 4, 6>();
            tiles.store::<0>(c.as_mut_ptr(), SIDE);
            // 2^24 + 1 rounds to 2^24; 2^24 + 2 is exact; 2^24 + 2 + 0.5 rounds back to it.
            assert_eq!(c[3 * SIDE + 5], 16777218.0);
            assert!(
                c.iter()
                    .enumerate()
                    .all(|(i, &c)| i == 3 * SIDE + 5 || c == 0.0)
            );
        }
    }

    #[test]
    fn denormals_are_zero() {
        // SAFETY: as above.
        unsafe {
            let mut tiles = Emulated::configure();
            let tiny = 2f32.powi(-127);
            let fill = |value: f32| [value.to_bits() >> 16; TILE];
            let product = |tiles: &mut Emulated, a: f32, b: f32, c: f32| {
                tiles.load::<4>(fill(a).as_ptr(), SIDE);
                tiles.load::<6>(fill(b).as_ptr(), SIDE);
                tiles.load::<0>([c.to_bits(); TILE].as_ptr(), SIDE);
                tiles.multiply::<0, 4, 6>();
                let mut c = [0f32; TILE];
                tiles.store::<0>(c.as_mut_ptr(), SIDE);
                c[0]
            };
            assert_eq!(product(&mut tiles, tiny, 2f32.powi(100), 0.0), 0.0);
            assert_eq!(
                product(&mut tiles, 2f32.powi(-100), 2f32.powi(-40), 0.0),
                0.0
            );
            assert_eq!(product(&mut tiles, 0.0, 0.0, tiny), 0.0);
            assert_eq!(
                product(&mut tiles, 1.0, 2f32.powi(-126), 0.0),
                2f32.powi(-122)
            );
            assert!(product(&mut tiles, f32::INFINITY, 0.0, 0.0).is_nan());
        }
    }
}
