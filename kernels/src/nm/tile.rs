//! The best of the 90 transposable 2:4 patterns of a 4 x 4 tile, eight tiles at a time.
#![allow(unsafe_code)]

/// Tiles scored side by side.
pub(super) const TILES: usize = 8;

/// The ways to keep two of four, in the order of ties.
const PAIRS: [u8; 6] = [0b0011, 0b0101, 0b1001, 0b0110, 0b1010, 0b1100];

/// The 90 ways to keep 2 in every row and column of a 4 x 4 tile, as indices into [`PAIRS`] row by row.
const PATTERNS: [[u8; 4]; 90] = {
    let mut patterns = [[0; 4]; 90];
    let mut count = 0;
    let mut code = 0;
    while code < 6 * 6 * 6 * 6 {
        let rows = [code / 216, code / 36 % 6, code / 6 % 6, code % 6];
        let mut fits = true;
        let mut col = 0;
        while col < 4 {
            let kept = (PAIRS[rows[0]] >> col & 1)
                + (PAIRS[rows[1]] >> col & 1)
                + (PAIRS[rows[2]] >> col & 1)
                + (PAIRS[rows[3]] >> col & 1);
            fits &= kept == 2;
            col += 1;
        }
        if fits {
            patterns[count] = [rows[0] as u8, rows[1] as u8, rows[2] as u8, rows[3] as u8];
            count += 1;
        }
        code += 1;
    }
    patterns
};

/// The best pattern of each tile, bit `4 * row + col` = keep; of equal sums the first in the order of [`PATTERNS`].
///
/// A sum is that of its rows' pairs, added two and two.
pub(super) fn best_patterns(scores: &[[f64; TILES]; 16]) -> [u16; TILES] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature.
        return unsafe { best_patterns_avx2(scores) };
    }
    best_patterns_here(scores)
}

/// The same code, compiled for AVX2: no operation is fused or reordered, so the sums are the same.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn best_patterns_avx2(scores: &[[f64; TILES]; 16]) -> [u16; TILES] {
    best_patterns_here(scores)
}

#[inline(always)]
fn best_patterns_here(scores: &[[f64; TILES]; 16]) -> [u16; TILES] {
    // Sums of a pair of one row, then of two pairs of the upper and of the lower two rows.
    let mut pairs = [[[0.0; TILES]; 6]; 4];
    for (row, pairs) in pairs.iter_mut().enumerate() {
        for (sum, pair) in pairs.iter_mut().zip(PAIRS) {
            let (low, high) = (pair.trailing_zeros(), 7 - pair.leading_zeros());
            *sum = add(
                &scores[4 * row + low as usize],
                &scores[4 * row + high as usize],
            );
        }
    }
    let mut halves = [[[0.0; TILES]; 36]; 2];
    for (half, sums) in halves.iter_mut().enumerate() {
        for (code, sum) in sums.iter_mut().enumerate() {
            *sum = add(&pairs[2 * half][code / 6], &pairs[2 * half + 1][code % 6]);
        }
    }
    let mut best = [0u64; TILES];
    let mut most = [0.0; TILES];
    for (index, &[a, b, c, d]) in PATTERNS.iter().enumerate() {
        let upper = &halves[0][6 * a as usize + b as usize];
        let lower = &halves[1][6 * c as usize + d as usize];
        let sums = add(upper, lower);
        for l in 0..TILES {
            let better = index == 0 || sums[l] > most[l];
            most[l] = if better { sums[l] } else { most[l] };
            best[l] = if better { index as u64 } else { best[l] };
        }
    }
    best.map(|index| {
        let [a, b, c, d] = PATTERNS[index as usize].map(|pair| u16::from(PAIRS[pair as usize]));
        a | b << 4 | c << 8 | d << 12
    })
}

#[inline(always)]
fn add(a: &[f64; TILES], b: &[f64; TILES]) -> [f64; TILES] {
    let mut sum = *a;
    for l in 0..TILES {
        sum[l] += b[l];
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_ninety_patterns() {
        assert_eq!(PATTERNS[0], [0, 0, 5, 5]);
        let distinct: std::collections::BTreeSet<_> = PATTERNS.iter().collect();
        assert_eq!(distinct.len(), 90);
    }
}
