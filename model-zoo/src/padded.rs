//! Images of several sizes in one batch: padded to one size, with what is no padding known.

use burn::tensor::{Device, Tensor};

use crate::catalog::Spec;
use crate::modality::Blank;
use crate::unit::{Bundle, TensorMap, TensorZip};

/// Images padded at the right and below to one size. Networks compute padding like any place; whoever decodes, measures or
/// compares knows what to leave out.
#[derive(Debug, Clone)]
pub struct Padded {
    /// [N, C, H, W].
    pub images: Tensor<4>,
    /// Height and width of each image before. A batch of fewer images uses the first ones.
    pub sizes: Vec<[usize; 2]>,
}

impl Bundle for Padded {
    fn shapes(&self) -> Vec<Vec<usize>> {
        self.images.shapes()
    }

    fn map(self, f: &mut impl TensorMap) -> Self {
        Self {
            images: f.map(self.images),
            ..self
        }
    }

    fn zip(self, other: Self, f: &mut impl TensorZip) {
        f.zip(self.images, other.images);
    }

    fn join(parts: Vec<Self>) -> Self {
        let side = |d: usize| parts.iter().map(|part| part.images.dims()[d]).max();
        let [height, width] = [2, 3].map(|d| side(d).unwrap_or(0));
        let images = parts.iter().map(|part| {
            let [_, _, rows, columns] = part.images.dims();
            let below = (0, width - columns, 0, height - rows);
            part.images.clone().pad(below, 0.0)
        });
        Self {
            images: Tensor::cat(images.collect(), 0),
            sizes: parts.iter().flat_map(|part| part.sizes.clone()).collect(),
        }
    }

    fn extents(&self) -> Option<Extents> {
        let [_, _, height, width] = self.images.dims();
        Some(Extents {
            padded: [height, width],
            sizes: self.sizes.clone(),
        })
    }
}

impl Blank for Padded {
    fn blank(spec: &Spec, batch: usize, device: &Device) -> Self {
        let [_, height, width] = spec.input;
        Self {
            images: Tensor::blank(spec, batch, device),
            sizes: vec![[height, width]; batch],
        }
    }
}

/// Which part of each image of a batch is no padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extents {
    padded: [usize; 2],
    sizes: Vec<[usize; 2]>,
}

impl Extents {
    /// Rows and columns of each image's part of a map of this size that covers the padded image: a place belongs to the
    /// image in which its first pixel lies.
    pub fn on(&self, size: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
        self.sizes.iter().map(move |own| {
            [0, 1].map(|d| (own[d].min(self.padded[d]) * size[d]).div_ceil(self.padded[d].max(1)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_belongs_to_the_image_of_its_first_pixel() {
        let images = Tensor::<4>::zeros([3, 1, 64, 96], &Device::flex());
        let sizes = vec![[64, 96], [33, 64], [1, 65]];
        let extents = Padded { images, sizes }.extents().unwrap();
        let on = |size| extents.on(size).collect::<Vec<_>>();
        assert_eq!(on([64, 96]), [[64, 96], [33, 64], [1, 65]]);
        assert_eq!(on([8, 12]), [[8, 12], [5, 8], [1, 9]]);
        assert_eq!(on([1, 1]), [[1, 1], [1, 1], [1, 1]]);
    }

    #[test]
    fn joined_images_are_padded_to_the_largest() {
        let device = Device::flex();
        let part = |height: usize, width: usize| Padded {
            images: Tensor::ones([1, 1, height, width], &device),
            sizes: vec![[height, width]],
        };
        let joined = Padded::join(vec![part(2, 3), part(3, 1)]);
        assert_eq!(joined.sizes, [[2, 3], [3, 1]]);
        assert_eq!(joined.images.dims(), [2, 1, 3, 3]);
        let values: Vec<f32> = joined.images.into_data().iter().collect();
        let first = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0];
        let second = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0];
        assert_eq!(values, [first, second].concat());
        // Other bundles join part by part.
        let pair = |by: f32| {
            (
                Tensor::<2>::full([1, 2], by, &device),
                vec![Some(part(1, 1))],
            )
        };
        let (first, rest) = Bundle::join(vec![pair(1.0), pair(2.0)]);
        let first: Vec<f32> = first.into_data().iter().collect();
        assert_eq!(first, [1.0, 1.0, 2.0, 2.0]);
        assert_eq!(rest[0].as_ref().unwrap().sizes, [[1, 1], [1, 1]]);
    }
}
