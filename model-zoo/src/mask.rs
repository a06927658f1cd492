//! Masks as reparameterizations: attached to a parameter, never written into it.
//!
//! `Param::val()` of a masked weight is the weight with its pruned entries exactly zero; `Param::base()` is what is
//! stored and trained. A mask is attached to a clone of the dense network and folded in once by
//! `Module::materialize`. Masks do not stack: attaching replaces.

use std::collections::HashMap;

use burn::module::{Module, Param, ParamId, Reparameterization, Reparameterizer};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use kernels::BitMask;

/// Keeps the weights whose bit is 1. Bits are those of [`BitMask`]: one row per output channel, columns in the
/// checkpoint's order.
#[derive(Module, Debug)]
pub struct Mask {
    /// Words [rows, ceil(columns / 32)], least significant bit first.
    keep: Param<Tensor<2, Int>>,
}

impl Mask {
    /// On `device`.
    pub fn new(mask: &BitMask, device: &Device) -> Self {
        let words_per_row = mask.cols().div_ceil(32);
        let words = TensorData::new(mask.words().to_vec(), [mask.rows(), words_per_row]);
        Self {
            keep: Param::initialized(
                ParamId::new(),
                Tensor::from_data(words, (device, DType::U32)),
            ),
        }
    }

    /// The words, [rows, ceil(columns / 32)].
    pub fn words(&self) -> Tensor<2, Int> {
        self.keep.val()
    }
}

impl Reparameterization for Mask {
    const NAME: &'static str = "mask";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        kernels::keep(base, &self.words())
    }
}

/// A weight as the kernels take it: what is stored, and the mask's words if it has one.
///
/// Any other reparameterization has its say first.
pub(crate) fn stored<const D: usize>(
    weight: &Param<Tensor<D>>,
) -> (Tensor<D>, Option<Tensor<2, Int>>) {
    match weight.reparameterization::<Mask>() {
        Some(mask) => (weight.base(), Some(mask.words())),
        None => (weight.val(), None),
    }
}

/// Attaches masks to a network's weights by their paths in the module (`layer1.0.conv1.conv.weight`).
pub struct Attach<'a> {
    masks: HashMap<String, &'a BitMask>,
    device: &'a Device,
}

impl<'a> Attach<'a> {
    /// `masks` by parameter path.
    pub fn new(masks: impl IntoIterator<Item = (String, &'a BitMask)>, device: &'a Device) -> Self {
        Self {
            masks: masks.into_iter().collect(),
            device,
        }
    }
}

impl Reparameterizer for Attach<'_> {
    type Reparam = Mask;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Mask>) {
        let mask = self.masks.remove(path).map(|mask| {
            assert_eq!(
                param.lazy_shape().num_elements(),
                mask.rows() * mask.cols(),
                "the mask of {path} has the size of its weight"
            );
            Mask::new(mask, self.device)
        });
        (param, mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::conv::Conv2dConfig;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Distribution;

    fn mask_of(keep: &[bool], rows: usize) -> BitMask {
        BitMask::from_keep(rows, keep.len() / rows, keep).expect("sizes agree")
    }

    #[test]
    fn masked_weights_are_zero_and_get_no_gradient() {
        let device = Device::flex();
        let conv = Conv2dConfig::new([5, 3], [3, 3]).init(&device);
        let keep: Vec<bool> = (0..3 * 45).map(|i| i % 3 != 1).collect();
        let mask = mask_of(&keep, 3);
        let masked = conv
            .clone()
            .apply_reparameterization(Attach::new([("weight".to_owned(), &mask)], &device));
        let check = |values: Vec<f32>| {
            let zeros = values.iter().zip(&keep).all(|(w, k)| *k || *w == 0.0);
            let kept = values.iter().zip(&keep).any(|(w, k)| *k && *w != 0.0);
            assert!(zeros && kept);
        };
        check(masked.weight.val().into_data().try_into_vec().unwrap());
        assert_eq!(
            masked.weight.base().into_data(),
            conv.weight.val().into_data()
        );

        let training = masked.clone().train();
        let x = Tensor::<4>::random([2, 5, 6, 6], Distribution::Default, &device).autodiff();
        let grads = training.forward(x).sum().backward();
        let grad = training
            .weight
            .base()
            .grad(&grads)
            .expect("the base is trained");
        check(grad.into_data().try_into_vec().unwrap());

        let folded = masked.materialize();
        assert!(folded.weight.reparameterization::<Mask>().is_none());
        check(folded.weight.val().into_data().try_into_vec().unwrap());
    }

    #[test]
    fn linear_masks_have_a_row_per_output() {
        let device = Device::flex();
        let linear: Linear = LinearConfig::new(40, 3).init(&device);
        let keep: Vec<bool> = (0..3 * 40).map(|i| i / 40 != 1).collect();
        let mask = mask_of(&keep, 3);
        let masked =
            linear.apply_reparameterization(Attach::new([("weight".to_owned(), &mask)], &device));
        let values: Vec<f32> = masked.weight.val().into_data().try_into_vec().unwrap();
        for (i, w) in values.iter().enumerate() {
            assert_eq!(*w == 0.0, i % 3 == 1, "[in, out] place {i}");
        }
    }

    #[test]
    fn infinite_pruned_weights_do_not_leak() {
        let device = Device::flex();
        let linear = LinearConfig::new(2, 1).init(&device);
        let mask = mask_of(&[true, false], 1);
        let linear = Linear {
            weight: linear
                .weight
                .map(|_| Tensor::from_floats([[2.0], [f32::NAN]], &device)),
            bias: None,
        };
        let masked =
            linear.apply_reparameterization(Attach::new([("weight".to_owned(), &mask)], &device));
        let y = masked.forward(Tensor::<2>::from_floats([[3.0, f32::MAX]], &device));
        assert_eq!(y.into_scalar::<f32>(), 6.0);
    }
}
