//! How far values are from what they should be (section 3.4 of the specification).

use burn::tensor::{Tensor, TensorData};
use model_zoo::{Bundle, Extents, TensorZip};

/// Images are [N, C, H, W]; everything else has its channels last.
pub(crate) const fn channel_axis(rank: usize) -> usize {
    if rank == 4 { 1 } else { rank - 1 }
}

/// Mean over batch and positions of the squared differences summed over channels, added up over the tensors of a bundle:
/// channels are axis 1 of images and the last axis of tokens and rows.
pub fn summed_square_error<B: Bundle>(value: B, target: B) -> Tensor<1> {
    error_within(value, target, None)
}

/// The same, where padding of images counts neither as an error nor as a position. Everything else than images counts whole.
pub fn error_within<B: Bundle>(value: B, target: B, extents: Option<&Extents>) -> Tensor<1> {
    let mut errors = Errors { extents, sum: None };
    value.zip(target, &mut errors);
    errors.sum.expect("a unit gives at least one tensor")
}

struct Errors<'a> {
    extents: Option<&'a Extents>,
    sum: Option<Tensor<1>>,
}

impl TensorZip for Errors<'_> {
    fn zip<const D: usize>(&mut self, value: Tensor<D>, target: Tensor<D>) {
        let dims = value.dims();
        let mut places = dims.iter().product::<usize>() / dims[channel_axis(D)].max(1);
        let mut difference = value - target;
        if let (Some(extents), &[images, _, height, width]) = (self.extents, dims.as_slice()) {
            let (inside, count) = inside(extents, [images, height, width]);
            difference = difference.clone() * Tensor::from_data(inside, &difference.device());
            places = count;
        }
        // Over the batch first: a sum over millions of values at once would depend on how threads share it.
        let error = (difference.clone() * difference)
            .sum_dim(0)
            .sum()
            .div_scalar(places.max(1) as f32);
        self.sum = Some(match self.sum.take() {
            Some(sum) => sum + error,
            None => error,
        });
    }
}

/// One for each place of an image and zero for its padding, `[images, 1, height, width]`; and how many ones.
fn inside(extents: &Extents, [images, height, width]: [usize; 3]) -> (TensorData, usize) {
    let mut inside = vec![0f32; images * height * width];
    let mut count = 0;
    let maps = inside.chunks_mut((height * width).max(1));
    for (map, [rows, columns]) in maps.zip(extents.on([height, width])) {
        for row in map.chunks_mut(width).take(rows) {
            row[..columns].fill(1.0);
        }
        count += rows * columns;
    }
    (TensorData::new(inside, [images, 1, height, width]), count)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use model_zoo::{Fixed, Padded};

    use super::*;

    fn error<B: Bundle>(value: B, target: B) -> f32 {
        summed_square_error(value, target).into_scalar()
    }

    #[test]
    fn channels_are_summed_and_everything_else_is_averaged() {
        let device = Device::flex();
        let ones = |dims: [usize; 4]| Tensor::<4>::ones(dims, &device);
        // 5 channels of images; the last axis of tokens.
        let image = ones([2, 5, 3, 4]);
        assert_eq!(error(image.clone(), image.clone() * 3.0), 20.0);
        let tokens = Tensor::<3>::ones([2, 7, 6], &device);
        assert_eq!(error(tokens.clone(), tokens.clone() * 2.0), 6.0);
        // Levels of a pyramid weigh the same whatever their size; what is fixed counts nothing.
        let levels = |by: f32| {
            vec![
                (ones([1, 2, 8, 8]) * by, ones([1, 3, 8, 8])),
                (ones([1, 2, 1, 1]) * by, ones([1, 3, 1, 1])),
            ]
        };
        assert_eq!(error(levels(1.0), levels(2.0)), 4.0);
        let carried =
            |by: f32, step: usize| (image.clone() * by, Fixed(step), Some(tokens.clone() * by));
        assert_eq!(error(carried(1.0, 1), carried(2.0, 7)), 5.0 + 6.0);
    }

    #[test]
    fn padding_counts_neither_as_an_error_nor_as_a_position() {
        let device = Device::flex();
        // Two images of a batch: one fills it, the other is half as high and a quarter as wide.
        let extents = Padded {
            images: Tensor::zeros([2, 3, 16, 16], &device),
            sizes: vec![[16, 16], [8, 4]],
        }
        .extents();
        let maps = |[own, padding]: [f32; 2]| {
            let second = |row: usize, column: usize| match row < 2 && column < 1 {
                true => own,
                false => padding,
            };
            let places = (0..16).map(|place| (place / 4, place % 4));
            let image = places.map(|(row, column)| second(row, column));
            let values = [vec![own; 16], image.collect()].concat();
            Tensor::<4>::from_data(TensorData::new(values, [2, 1, 4, 4]), &device)
        };
        let (target, value) = (maps([1.0, 1.0]), maps([3.0, 100.0]));
        let error = |extents: Option<&Extents>| -> f32 {
            error_within(value.clone(), target.clone(), extents).into_scalar()
        };
        assert_eq!(error(extents.as_ref()), 4.0);
        assert!(error(None) > 1000.0);
        // What is no image has no padding.
        let tokens = Tensor::<3>::ones([2, 7, 6], &device);
        let whole: f32 = error_within(tokens.clone(), tokens * 2.0, extents.as_ref()).into_scalar();
        assert_eq!(whole, 6.0);
    }
}
