//! Batches made ahead of the network: while it computes one, the next are read, decoded and resized on all cores.

use std::sync::mpsc::sync_channel;

use rayon::prelude::*;

/// Batches that wait at most: enough that the network never does, few enough for the memory.
const AHEAD: usize = 2;

/// Loads items `0..count` in batches and hands each batch, in order, to `take` with the place of its first item.
///
/// The first failure of either ends it; of several items that fail in a batch, which one is reported is not defined.
pub fn batches<T: Send, E: Send>(
    count: usize,
    batch: usize,
    load: impl Fn(usize) -> Result<T, E> + Sync,
    mut take: impl FnMut(usize, Vec<T>) -> Result<(), E>,
) -> Result<(), E> {
    assert!(batch > 0, "a batch holds at least one item");
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(AHEAD);
        let load = &load;
        scope.spawn(move || {
            for start in (0..count).step_by(batch) {
                let items = start..count.min(start + batch);
                let items: Result<Vec<T>, E> = items.into_par_iter().map(load).collect();
                let failed = items.is_err();
                // The receiver is gone where `take` failed.
                if send.send((start, items)).is_err() || failed {
                    return;
                }
            }
        });
        for (start, items) in receive {
            take(start, items?)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn batches_arrive_whole_and_in_order() {
        let mut seen = Vec::new();
        let result: Result<(), ()> = batches(10, 4, Ok, |start, items| {
            assert_eq!(start, seen.len());
            seen.extend(items);
            Ok(())
        });
        assert_eq!((result, seen), (Ok(()), (0..10).collect()));
        assert_eq!(batches::<usize, ()>(0, 4, Ok, |_, _| Err(())), Ok(()));
    }

    #[test]
    fn failures_on_either_side_end_it() {
        let mut taken = 0;
        let load = |index| if index == 9 { Err("load") } else { Ok(index) };
        let result = batches(100, 4, load, |_, items| {
            taken += items.len();
            Ok(())
        });
        assert_eq!((result, taken), (Err("load"), 8));
        let loaded = AtomicUsize::new(0);
        let load = |index| {
            loaded.fetch_add(1, Ordering::Relaxed);
            Ok(index)
        };
        assert_eq!(batches(1_000_000, 4, load, |_, _| Err("take")), Err("take"));
        // Not much more than what was waiting has been loaded.
        assert!(loaded.load(Ordering::Relaxed) <= 4 * (AHEAD + 3));
    }
}
