//! A sequence of batches that can be gone through again and again, and is never in memory as a whole unless it fits.

use std::cell::{Cell, OnceCell};

use model_zoo::Bundle;

use crate::memory::bytes_of;
use crate::task::TaskError;

/// Batches by their place. Each is made when it is asked for, the same every time; the first ones stay in memory as far as
/// there is room.
pub struct Batches<'a, B> {
    make: Box<dyn Fn(usize) -> Result<B, TaskError> + 'a>,
    kept: Vec<OnceCell<B>>,
    /// Bytes that may still be kept.
    room: Cell<u64>,
}

impl<'a, B: Bundle> Batches<'a, B> {
    /// `count` batches; of those that `make` gives, `room` bytes are kept.
    pub fn new(count: usize, room: u64, make: impl Fn(usize) -> Result<B, TaskError> + 'a) -> Self {
        Self {
            make: Box::new(make),
            kept: (0..count).map(|_| OnceCell::new()).collect(),
            room: Cell::new(room),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The batch at a place below [`Self::len`].
    pub fn get(&self, at: usize) -> Result<B, TaskError> {
        let kept = &self.kept[at];
        if let Some(batch) = kept.get() {
            return Ok(batch.clone());
        }
        let batch = (self.make)(at)?;
        if let Some(left) = self.room.get().checked_sub(bytes_of(&batch)) {
            self.room.set(left);
            // Tensors are handles: the copy shares its values.
            let _ = kept.set(batch.clone());
        }
        Ok(batch)
    }

    /// All of them in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<B, TaskError>> {
        (0..self.len()).map(|at| self.get(at))
    }
}

impl<B: Bundle> From<Vec<B>> for Batches<'_, B> {
    /// Batches that are in memory already.
    fn from(batches: Vec<B>) -> Self {
        Self {
            make: Box::new(|at| unreachable!("batch {at} is in memory")),
            kept: batches.into_iter().map(OnceCell::from).collect(),
            room: Cell::new(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;
    use crate::interrupt::Interrupted;

    fn batch(at: usize) -> Tensor<2> {
        Tensor::full([2, 5], at as f32, &Device::flex())
    }

    fn first(batch: Tensor<2>) -> f32 {
        batch.into_data().iter().next().unwrap()
    }

    #[test]
    fn what_has_room_is_made_once_and_the_rest_each_time() {
        const ONE: u64 = 2 * 5 * 4;
        for (room, again) in [(0, 4), (ONE - 1, 4), (2 * ONE, 2), (4 * ONE, 0)] {
            let made = Cell::new(0);
            let batches = Batches::new(4, room, |at| {
                made.set(made.get() + 1);
                Ok(batch(at))
            });
            let pass = || -> Vec<f32> { batches.iter().map(|b| first(b.unwrap())).collect() };
            assert_eq!(pass(), [0.0, 1.0, 2.0, 3.0]);
            assert_eq!(made.get(), 4);
            assert_eq!(pass(), [0.0, 1.0, 2.0, 3.0]);
            assert_eq!(made.get(), 4 + again, "room for {room} bytes");
        }
    }

    #[test]
    fn one_that_cannot_be_made_is_an_error_and_the_others_are_not() {
        let batches = Batches::new(3, 1000, |at| match at {
            1 => Err(Interrupted.into()),
            _ => Ok(batch(at)),
        });
        let made: Vec<bool> = batches.iter().map(|batch| batch.is_ok()).collect();
        assert_eq!(made, [true, false, true]);
        let held = Batches::from(vec![batch(7), batch(8)]);
        assert_eq!((held.len(), held.is_empty()), (2, false));
        assert_eq!(first(held.get(1).unwrap()), 8.0);
    }
}
