//! How far values are from what they should be (section 3.4 of the specification).

use burn::tensor::Tensor;
use model_zoo::{Bundle, TensorZip};

/// Images are [N, C, H, W]; everything else has its channels last.
pub(crate) const fn channel_axis(rank: usize) -> usize {
    if rank == 4 { 1 } else { rank - 1 }
}

/// Mean over batch and positions of the squared differences summed over channels, added up over the tensors of a bundle:
/// channels are axis 1 of images and the last axis of tokens and rows.
pub fn summed_square_error<B: Bundle>(value: B, target: B) -> Tensor<1> {
    let mut errors = Errors(None);
    value.zip(target, &mut errors);
    errors.0.expect("a unit gives at least one tensor")
}

struct Errors(Option<Tensor<1>>);

impl TensorZip for Errors {
    fn zip<const D: usize>(&mut self, value: Tensor<D>, target: Tensor<D>) {
        let dims = value.dims();
        let places = dims.iter().product::<usize>() / dims[channel_axis(D)].max(1);
        let difference = value - target;
        // Over the batch first: a sum over millions of values at once would depend on how threads share it.
        let error = (difference.clone() * difference)
            .sum_dim(0)
            .sum()
            .div_scalar(places.max(1) as f32);
        self.0 = Some(match self.0.take() {
            Some(sum) => sum + error,
            None => error,
        });
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use model_zoo::Fixed;

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
}
