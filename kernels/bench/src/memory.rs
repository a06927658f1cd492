//! Counts the bytes that are allocated, so that a row can show what a product needs beyond its operands.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The system's allocator with a count in front.
pub struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let now = NOW.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: every method hands its arguments to `System` unchanged and returns what it returns; the counters are atomics
// and allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's contract is `System::alloc`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's contract is `System::alloc_zeroed`'s.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `pointer` came from `System` through this allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks may be alive while the contents move.
        grow(size);
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as `dealloc`; the new size's contract is the caller's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// There is one peak, so one caller at a time.
static IN_USE: Mutex<()> = Mutex::new(());

/// The most bytes that were allocated at once during `run`, beyond those allocated before it.
pub fn peak_of(run: impl FnOnce()) -> usize {
    let _one = IN_USE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    run();
    PEAK.load(Relaxed).saturating_sub(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_a_buffer_that_is_gone_at_the_end() {
        let peak = peak_of(|| {
            drop(std::hint::black_box(vec![1u8; 64 << 20]));
            drop(std::hint::black_box(vec![1u8; 32 << 20]));
        });
        // Other tests allocate at the same time, but nothing of this size.
        assert!(((64 << 20)..(80 << 20)).contains(&peak), "{peak}");
    }
}
