//! What every driver needs: threads, scratch memory that is kept between calls, and outputs shared between threads.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

/// Below this many multiply-adds a second thread costs more than it brings.
pub const SERIAL_MACS: u64 = 250_000;

/// Runs `work` for each index below `items`, on several threads if that pays.
pub fn parallel(items: usize, macs: u64, work: impl Fn(usize) + Sync + Send) {
    if items <= 1 || macs < SERIAL_MACS || rayon::current_num_threads() == 1 {
        (0..items).for_each(work);
    } else {
        // One item at a time: items are large and few.
        (0..items).into_par_iter().with_max_len(1).for_each(work);
    }
}

/// `n` cut into the fewest ranges of at most `most`, as even as they can be.
pub fn split(n: usize, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let parts = n.div_ceil(most).max(1);
    (0..parts)
        .map(move |i| i * n / parts..(i + 1) * n / parts)
        .filter(|range| !range.is_empty())
}

/// A short copy without a call: rows are a few vectors long.
///
/// # Safety
/// `n` floats on both sides, which do not overlap.
#[inline(always)]
pub unsafe fn copy(from: *const f32, to: *mut f32, n: usize) {
    // SAFETY: the caller's; pieces end inside `n`, the last overlaps the one before.
    unsafe {
        if n >= 8 {
            let mut i = 0;
            while i + 8 <= n {
                to.add(i).copy_from_nonoverlapping(from.add(i), 8);
                i += 8;
            }
            if i < n {
                to.add(n - 8).copy_from_nonoverlapping(from.add(n - 8), 8);
            }
        } else if n >= 4 {
            to.copy_from_nonoverlapping(from, 4);
            to.add(n - 4).copy_from_nonoverlapping(from.add(n - 4), 4);
        } else {
            for i in 0..n {
                *to.add(i) = *from.add(i);
            }
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A block of scratch memory of this thread, taken for a while; its contents are whatever an earlier use left, which
/// is always initialized.
pub struct Scratch(Vec<f32>);

impl Scratch {
    /// At least `n` floats. The block comes back to the thread when it is dropped.
    pub fn take(n: usize) -> Self {
        let mut block = SCRATCH.with_borrow_mut(|kept| {
            // The smallest that is large enough, else the largest: blocks of several sizes are in use side by side.
            let fit = (0..kept.len())
                .filter(|&i| kept[i].len() >= n)
                .min_by_key(|&i| kept[i].len())
                .or_else(|| (0..kept.len()).max_by_key(|&i| kept[i].len()));
            fit.map_or_else(Vec::new, |i| kept.swap_remove(i))
        });
        if block.len() < n {
            block = vec![0.0; n];
        }
        Self(block)
    }

    /// Pointer to the block.
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr()
    }
}

impl std::ops::Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl std::ops::DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let block = std::mem::take(&mut self.0);
        // A thread that is ending has no place to keep it.
        let _ = SCRATCH.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < 8 {
                kept.push(block);
            }
        });
    }
}

/// An output that threads write in disjoint places.
#[derive(Clone, Copy)]
pub struct Shared(*mut f32);

// SAFETY: the drivers give every element to one thread alone.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Begins at `first`.
    pub fn new(first: *mut f32) -> Self {
        Self(first)
    }

    /// The address of element `at`. Reaching it is safe only in places that belong to the calling thread.
    pub fn at(self, at: usize) -> *mut f32 {
        self.0.wrapping_add(at)
    }
}

/// A result that is written in pieces, every one before it is read.
pub struct Output {
    data: Vec<f32>,
    len: usize,
}

/// Room for `len` results.
pub fn output(len: usize) -> Output {
    Output {
        data: Vec::with_capacity(len),
        len,
    }
}

impl Output {
    /// Pointer to the first.
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.data.as_mut_ptr()
    }

    /// The results.
    ///
    /// # Safety
    /// Every one of them has been written.
    pub unsafe fn written(mut self) -> Vec<f32> {
        // SAFETY: the caller's, and there is room for `len`.
        unsafe { self.data.set_len(self.len) };
        self.data
    }
}

/// Asks for the cache line at `p` ahead of its use, for reading or for writing. Any address will do.
#[inline(always)]
pub fn prefetch<const WRITE: bool>(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not fault, wherever it points; every x86-64 processor knows it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        if WRITE {
            _mm_prefetch::<_MM_HINT_ET0>(p.cast());
        } else {
            _mm_prefetch::<_MM_HINT_T0>(p.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}
