//! What layers read: counts, means, squares and, on demand, Gram sums of every column of a weight, over calibration
//! batches, through shared calls and at any size.
//!
//! Columns are those of the weight's matrix view; a convolution's are its im2col view's, padding counted as zeros. So
//! the mean output of a layer is its weight times the mean column, and its squared output error follows from the Gram
//! sums, without running it.

use burn::tensor::Tensor;
use indexmap::IndexMap;
use kernels::{ColumnSums, GramState, KernelError, Precision};
use model_zoo::tap::Path;
use model_zoo::{Bundle, LayerInfo, LayerKind, Tap, TensorMap, Unit};

/// The largest Gram matrices of one layer.
const GRAM_BYTES: usize = 6 << 30;

/// What a criterion or a solver looks at beside the weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Nothing.
    Weights,
    /// Means and squares of the columns.
    Moments,
    /// And their products.
    Gram,
}

impl Need {
    /// In a list of choices.
    pub fn about(self) -> &'static str {
        match self {
            Need::Weights => "weights",
            Need::Moments => "inputs",
            Need::Gram => "inputs, their products",
        }
    }
}

/// A layer's inputs cannot be measured.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SeenError {
    /// The matrix is too large.
    #[error(
        "layer `{path}`: the products of its {cols} columns take {gib} GiB; keep the layer dense, or use a criterion that needs none"
    )]
    TooLarge {
        /// The layer.
        path: String,
        /// Columns.
        cols: usize,
        /// Size.
        gib: usize,
    },
    /// Shapes that do not fit.
    #[error("layer `{path}`: {source}")]
    Shape {
        /// The layer.
        path: String,
        /// What the kernel says.
        source: KernelError,
    },
}

/// What one layer read.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Counts, sums and squares.
    pub sums: ColumnSums,
    /// Sums of products, where they were asked for.
    pub gram: Option<GramState>,
}

impl Seen {
    /// Nothing yet, for the layer at `path`.
    pub fn nothing(path: &str, info: &LayerInfo, need: Need) -> Result<Self, SeenError> {
        let cols: usize = info.shape[1..].iter().product();
        let gram = match need {
            Need::Gram => {
                let bytes = info.groups.saturating_mul(cols * cols * size_of::<f64>());
                if bytes > GRAM_BYTES {
                    return Err(SeenError::TooLarge {
                        path: path.to_owned(),
                        cols,
                        gib: bytes.div_ceil(1 << 30),
                    });
                }
                Some(
                    GramState::new(info.groups, cols).map_err(|source| SeenError::Shape {
                        path: path.to_owned(),
                        source,
                    })?,
                )
            }
            _ => None,
        };
        Ok(Self {
            sums: ColumnSums::new(info.groups, cols),
            gram,
        })
    }

    /// Adds what the layer reads in one call.
    pub fn add<B: Bundle>(&mut self, info: &LayerInfo, input: &B) -> Result<(), KernelError> {
        for (dims, values) in read(input) {
            match info.kind {
                LayerKind::Conv => {
                    let shape = info.convolution([dims[0], dims[1], dims[2], dims[3]]);
                    self.sums.add_conv(&values, &shape)?;
                    if let Some(gram) = &mut self.gram {
                        gram.add_conv(&values, &shape)?;
                    }
                }
                LayerKind::Linear => {
                    let positions = dims[..dims.len() - 1].iter().product();
                    self.sums.add_linear(&values, positions)?;
                    if let Some(gram) = &mut self.gram {
                        gram.add_linear(&values, positions)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Mean output of each channel with this weight (`[rows, columns]`), without a bias.
    pub fn mean_outputs(&self, weight: &[f32]) -> Vec<f64> {
        let (means, cols) = (self.sums.means(), self.sums.cols().max(1));
        let rows = weight.len() / cols;
        let per_group = (rows / self.sums.groups().max(1)).max(1);
        let dot = |(row, weight): (usize, &[f32])| {
            let means = &means[row / per_group * cols..];
            weight
                .iter()
                .zip(means)
                .map(|(&w, m)| f64::from(w) * m)
                .sum()
        };
        weight.chunks(cols).enumerate().map(dot).collect()
    }
}

/// Every tensor of a bundle: dimensions and values.
fn read<B: Bundle>(input: &B) -> Vec<(Vec<usize>, Vec<f32>)> {
    struct Read(Vec<(Vec<usize>, Vec<f32>)>);
    impl TensorMap for Read {
        fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
            let values = tensor.to_data().try_into_vec();
            let values = values.expect("networks compute in f32");
            self.0.push((tensor.dims().to_vec(), values));
            tensor
        }
    }
    let mut read = Read(Vec::new());
    input.clone().map(&mut read);
    read.0
}

/// Measures every prunable layer in the network that it runs through.
pub struct Look {
    need: Need,
    precision: Precision,
    path: Path,
    /// By the layer's path in the module, in forward order.
    pub found: IndexMap<String, Seen>,
    /// The first thing that went wrong.
    pub error: Option<SeenError>,
}

impl Look {
    /// For this need, in a pass of this precision.
    pub fn for_need(need: Need, precision: Precision) -> Self {
        Self {
            need,
            precision,
            path: Path::default(),
            found: IndexMap::new(),
            error: None,
        }
    }

    fn look<In: Bundle>(&mut self, info: &LayerInfo, input: &In) -> Result<(), SeenError> {
        let path = self.path.join();
        if !self.found.contains_key(&path) {
            let nothing = Seen::nothing(&path, info, self.need)?;
            self.found.insert(path.clone(), nothing);
        }
        self.found[&path]
            .add(info, input)
            .map_err(|source| SeenError::Shape { path, source })
    }

    /// What was found, or what went wrong.
    pub fn finish(self) -> Result<IndexMap<String, Seen>, SeenError> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.found),
        }
    }
}

impl Tap for Look {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        if let (Some(info), None) = (unit.layer(), &self.error)
            && let Err(error) = self.look(&info, &input)
        {
            self.error = Some(error);
        }
        let output = unit.run(input, self);
        self.path.pop();
        output
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::conv::Conv2dConfig;
    use burn::nn::{LinearConfig, PaddingConfig2d};
    use burn::tensor::{Device, Distribution};
    use model_zoo::tap::Bare;

    use super::*;

    /// The mean output of a layer without a bias, as running it gives it.
    fn ran<const D: usize>(output: Tensor<D>, axis: usize) -> Vec<f64> {
        let mut mean = output;
        for d in (0..D).filter(|d| *d != axis) {
            mean = mean.mean_dim(d);
        }
        mean.into_data().iter::<f32>().map(f64::from).collect()
    }

    fn near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
        }
    }

    #[test]
    fn mean_outputs_are_those_of_running_the_layer() {
        let device = Device::flex();
        let random = Distribution::Uniform(-1.0, 2.0);
        for (groups, padding) in [
            (1, PaddingConfig2d::Explicit(1, 1, 1, 1)),
            (2, PaddingConfig2d::Same),
            (4, PaddingConfig2d::Valid),
        ] {
            let conv = Conv2dConfig::new([4, 8], [3, 3])
                .with_stride([2, 2])
                .with_groups(groups)
                .with_padding(padding)
                .with_bias(false)
                .init(&device);
            let info = Unit::<Tensor<4>>::layer(&conv).unwrap();
            let mut seen = Seen::nothing("conv", &info, Need::Gram).unwrap();
            let x = Tensor::<4>::random([3, 4, 8, 6], random, &device);
            // In two calls, as of a module that is shared.
            seen.add(&info, &x.clone().slice_dim(0, 0..1)).unwrap();
            seen.add(&info, &x.clone().slice_dim(0, 1..3)).unwrap();
            let weight: Vec<f32> = conv.weight.val().into_data().try_into_vec().unwrap();
            near(
                &seen.mean_outputs(&weight),
                &ran(conv.run(x, &mut Bare::default()), 1),
            );
            let gram = seen.gram.unwrap();
            let diagonal: Vec<f64> = (0..groups).flat_map(|g| gram.diagonal(g)).collect();
            for (product, square) in diagonal.iter().zip(seen.sums.squares()) {
                assert!((product - square).abs() < 1e-3 * square.max(1.0));
            }
        }
        let linear = LinearConfig::new(5, 3).with_bias(false).init(&device);
        let info = Unit::<Tensor<3>>::layer(&linear).unwrap();
        let mut seen = Seen::nothing("linear", &info, Need::Moments).unwrap();
        let x = Tensor::<3>::random([2, 7, 5], random, &device);
        seen.add(&info, &x).unwrap();
        let weight: Vec<f32> = linear
            .weight
            .val()
            .transpose()
            .into_data()
            .try_into_vec()
            .unwrap();
        near(
            &seen.mean_outputs(&weight),
            &ran(linear.run(x, &mut Bare::default()), 2),
        );
        assert_eq!(seen.gram, None);
    }

    #[test]
    fn a_matrix_that_fits_no_memory_is_refused_by_name() {
        let linear = LinearConfig::new(40_000, 1).init(&Device::flex());
        let info = Unit::<Tensor<2>>::layer(&linear).unwrap();
        let error = Seen::nothing("fc", &info, Need::Gram)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`fc`") && error.contains("12 GiB"),
            "{error}"
        );
    }
}
