//! What layers read: counts, means, squares and, on demand, Gram sums of every column of a weight, over calibration
//! batches, through shared calls and at any size.
//!
//! Columns are those of the weight's matrix view; a convolution's are its im2col view's, padding counted as zeros. So
//! the mean output of a layer is its weight times the mean column, and its squared output error follows from the Gram
//! sums, without running it.

use std::collections::HashSet;

use burn::tensor::Tensor;
use indexmap::IndexMap;
use kernels::{ColumnSums, ConvShape, GramState, KernelError, Precision};
use model_zoo::tap::Path;
use model_zoo::{Bundle, Extents, LayerInfo, LayerKind, Network, Tap, TensorMap, Unit};

use crate::batches::Batches;
use crate::cell::Calls;
use crate::interrupt::{self, Interrupted};
use crate::memory::size;
use crate::task::TaskError;

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
    /// The matrices are too large.
    #[error(
        "layer `{path}`: the products of its {cols} columns take {}, and the memory budget leaves {} for them; set PTSBENCH_MEMORY higher if the machine has more memory, keep the layer dense, or use a criterion that needs none", size(*bytes), size(*room)
    )]
    TooLarge {
        /// The layer.
        path: String,
        /// Columns.
        cols: usize,
        /// Bytes of its matrices.
        bytes: u64,
        /// Bytes that there are for them.
        room: u64,
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
    /// Nothing yet, for the layer at `path`; its sums of products may take `room` bytes.
    pub fn nothing(path: &str, info: &LayerInfo, need: Need, room: u64) -> Result<Self, SeenError> {
        let cols: usize = info.shape[1..].iter().product();
        let bytes = gram_bytes(info, need);
        if bytes > room {
            return Err(SeenError::TooLarge {
                path: path.to_owned(),
                cols,
                bytes,
                room,
            });
        }
        let gram = (need == Need::Gram).then(|| GramState::new(info.groups, cols));
        let gram = gram.transpose().map_err(|source| SeenError::Shape {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            sums: ColumnSums::new(info.groups, cols),
            gram,
        })
    }

    /// Adds what the layer reads in one call. Where a convolution gives padding of an image, what it reads there is none of
    /// the layer's.
    pub fn add<B: Bundle>(
        &mut self,
        info: &LayerInfo,
        input: &B,
        extents: Option<&Extents>,
    ) -> Result<(), KernelError> {
        for (dims, values) in read(input) {
            match info.kind {
                LayerKind::Conv => {
                    let shape = info.convolution([dims[0], dims[1], dims[2], dims[3]]);
                    match extents {
                        None => self.add_conv(&values, &shape)?,
                        Some(extents) => {
                            let images = values.chunks(shape.input_len() / shape.batch.max(1));
                            for (image, size) in images.zip(extents.on(shape.out_size())) {
                                let (image, shape) = corner(image, shape, size);
                                self.add_conv(&image, &shape)?;
                            }
                        }
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

    fn add_conv(&mut self, values: &[f32], shape: &ConvShape) -> Result<(), KernelError> {
        self.sums.add_conv(values, shape)?;
        match &mut self.gram {
            Some(gram) => gram.add_conv(values, shape),
            None => Ok(()),
        }
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

/// The part of an image from which a convolution makes the first `size` rows and columns of its output, and the
/// convolution that does.
fn corner(image: &[f32], shape: ConvShape, size: [usize; 2]) -> (Vec<f32>, ConvShape) {
    let [height, width] = shape.size;
    let mut cut = ConvShape { batch: 1, ..shape };
    for (d, &outputs) in size.iter().enumerate() {
        let reach = shape.dilation[d] * (shape.kernel[d] - 1) + 1;
        let read = (outputs.max(1) - 1) * shape.stride[d] + reach;
        let read = read.saturating_sub(shape.padding[d][0]);
        cut.size[d] = read.min(shape.size[d]);
        cut.padding[d][1] = read - cut.size[d];
    }
    let planes = image.chunks((height * width).max(1));
    let rows = planes.flat_map(|plane| plane.chunks(width.max(1)).take(cut.size[0]));
    let values = rows.flat_map(|row| &row[..cut.size[1]]).copied().collect();
    (values, cut)
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

/// Bytes of a layer's sums of products. The other sums are as small as a row of its weight, and no budget counts them.
fn gram_bytes(info: &LayerInfo, need: Need) -> u64 {
    let cols = info.shape[1..].iter().product::<usize>() as u64;
    match need {
        Need::Gram => (info.groups as u64)
            .saturating_mul(cols.saturating_mul(cols))
            .saturating_mul(size_of::<f64>() as u64),
        Need::Weights | Need::Moments => 0,
    }
}

/// Measures every prunable layer of `network` in all its calls, as [`look_at`] does.
pub fn look<N: Network, E>(
    network: &N,
    batches: &Batches<'_, N::Input>,
    need: Need,
    precision: Precision,
    room: u64,
    each: &mut dyn FnMut(String, Seen) -> Result<(), E>,
) -> Result<(), E>
where
    E: From<SeenError> + From<TaskError> + From<Interrupted>,
{
    look_at(network, Calls::All, batches, need, precision, room, each)
}

/// Measures every prunable layer of `network` over all batches, in passes of a precision, and hands `each` what it found, in
/// forward order, by the layer's path in the module. The sums of products take at most `room` bytes at a time: layers that
/// find no room wait for another pass.
pub fn look_at<N: Network, E>(
    network: &N,
    calls: Calls,
    batches: &Batches<'_, N::Input>,
    need: Need,
    precision: Precision,
    room: u64,
    each: &mut dyn FnMut(String, Seen) -> Result<(), E>,
) -> Result<(), E>
where
    E: From<SeenError> + From<TaskError> + From<Interrupted>,
{
    let mut done = HashSet::new();
    loop {
        let mut look = Look {
            need,
            calls,
            met: HashSet::new(),
            precision,
            room,
            path: Path::default(),
            done: &done,
            extents: None,
            found: IndexMap::new(),
            full: false,
            error: None,
        };
        for batch in batches.iter() {
            interrupt::check()?;
            let batch = batch?;
            look.extents = batch.extents();
            look.met.clear();
            network.run(batch, &mut look);
            if let Some(error) = look.error {
                return Err(error.into());
            }
        }
        let (found, full) = (look.found, look.full);
        for (path, seen) in found {
            each(path.clone(), seen)?;
            done.insert(path);
        }
        if !full {
            return Ok(());
        }
    }
}

/// Measures layers in the network that it runs through: from the first that is not done on, as many as there is room for.
struct Look<'a> {
    need: Need,
    /// Which calls of a layer count.
    calls: Calls,
    /// Layers that this batch has been to.
    met: HashSet<String>,
    precision: Precision,
    /// Bytes left.
    room: u64,
    path: Path,
    /// What is no padding in the batch that is looked at.
    extents: Option<Extents>,
    /// The layers of earlier passes.
    done: &'a HashSet<String>,
    /// By the layer's path in the module, in forward order.
    found: IndexMap<String, Seen>,
    /// A layer had no room, and nothing behind it is measured in this pass.
    full: bool,
    /// The first thing that went wrong.
    error: Option<SeenError>,
}

impl Look<'_> {
    fn meet<In: Bundle>(&mut self, info: &LayerInfo, input: &In) -> Result<(), SeenError> {
        let path = self.path.join();
        if self.done.contains(&path) {
            return Ok(());
        }
        if self.calls == Calls::First && !self.met.insert(path.clone()) {
            return Ok(());
        }
        if !self.found.contains_key(&path) {
            let bytes = gram_bytes(info, self.need);
            self.full |= bytes > self.room && !self.found.is_empty();
            if self.full {
                return Ok(());
            }
            let nothing = Seen::nothing(&path, info, self.need, self.room)?;
            self.room -= bytes;
            self.found.insert(path.clone(), nothing);
        }
        self.found[&path]
            .add(info, input, self.extents.as_ref())
            .map_err(|source| SeenError::Shape { path, source })
    }
}

impl Tap for Look<'_> {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        if let (Some(info), None) = (unit.layer(), &self.error)
            && let Err(error) = self.meet(&info, &input)
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
    use std::cell::Cell;

    use burn::module::Module;
    use burn::nn::conv::Conv2dConfig;
    use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
    use burn::tensor::{Device, Distribution};
    use model_zoo::Padded;
    use model_zoo::tap::Bare;

    use super::*;
    use crate::reconstruct::FitError;

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
            let mut seen = Seen::nothing("conv", &info, Need::Gram, u64::MAX).unwrap();
            let x = Tensor::<4>::random([3, 4, 8, 6], random, &device);
            // In two calls, as of a module that is shared.
            seen.add(&info, &x.clone().slice_dim(0, 0..1), None)
                .unwrap();
            seen.add(&info, &x.clone().slice_dim(0, 1..3), None)
                .unwrap();
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
        let mut seen = Seen::nothing("linear", &info, Need::Moments, 0).unwrap();
        let x = Tensor::<3>::random([2, 7, 5], random, &device);
        seen.add(&info, &x, None).unwrap();
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

    thread_local! {
        static RUNS: Cell<usize> = const { Cell::new(0) };
    }

    /// Three layers that read 6, 4 and 4 columns: their products take 288, 128 and 128 bytes.
    #[derive(Module, Debug)]
    struct Three {
        wide: Linear,
        narrow: Linear,
        last: Linear,
    }

    impl Network for Three {
        type Input = Tensor<2>;
        type Output = Tensor<2>;

        fn run<T: Tap>(&self, x: Tensor<2>, tap: &mut T) -> Tensor<2> {
            RUNS.set(RUNS.get() + 1);
            let x = tap.unit("wide", &self.wide, x);
            let x = tap.unit("narrow", &self.narrow, x);
            tap.unit("last", &self.last, x)
        }

        fn key(&self, path: &str) -> String {
            path.to_owned()
        }

        fn fold(self) -> Self {
            self
        }
    }

    #[test]
    fn layers_that_find_no_room_wait_for_another_pass_and_read_the_same() {
        let device = Device::flex();
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).init(&device);
        let network = Three {
            wide: linear(6, 4),
            narrow: linear(4, 4),
            last: linear(4, 1),
        };
        let input = |n| Tensor::<2>::random([n, 6], Distribution::Default, &device);
        let batches = Batches::from(vec![input(2), input(3)]);
        let looked = |need, room| {
            let mut found = Vec::new();
            let mut each = |path: String, seen: Seen| -> Result<(), FitError> {
                found.push((path, seen));
                Ok(())
            };
            look(&network, &batches, need, Precision::F32, room, &mut each).map(|()| found)
        };
        let names = |found: &[(String, Seen)]| -> Vec<String> {
            found.iter().map(|(path, _)| path.clone()).collect()
        };
        let at_once = looked(Need::Gram, u64::MAX).unwrap();
        assert_eq!(names(&at_once), ["wide", "narrow", "last"]);
        for (room, passes) in [(544, 1), (543, 2), (416, 2), (288, 2), (300, 2)] {
            RUNS.set(0);
            assert_eq!(looked(Need::Gram, room).unwrap(), at_once, "{room} bytes");
            assert_eq!(RUNS.get(), batches.len() * passes, "{room} bytes");
        }
        // Means need no room.
        assert_eq!(names(&looked(Need::Moments, 0).unwrap()), names(&at_once));
        let error = looked(Need::Gram, 287).unwrap_err().to_string();
        for said in [
            "`wide`",
            "6 columns",
            "288 bytes",
            "287 bytes",
            "PTSBENCH_MEMORY",
        ] {
            assert!(error.contains(said), "{error}");
        }
    }

    /// One layer on two levels.
    #[derive(Module, Debug)]
    struct Shared {
        head: Linear,
    }

    impl Network for Shared {
        type Input = Tensor<2>;
        type Output = Tensor<2>;

        fn run<T: Tap>(&self, x: Tensor<2>, tap: &mut T) -> Tensor<2> {
            let first = tap.unit("head", &self.head, x.clone());
            first + tap.unit("head", &self.head, x * 2.0)
        }

        fn key(&self, path: &str) -> String {
            path.to_owned()
        }

        fn fold(self) -> Self {
            self
        }
    }

    #[test]
    fn a_shared_layer_is_seen_in_all_calls_or_in_the_first_of_each_batch() {
        let device = Device::flex();
        let network = Shared {
            head: LinearConfig::new(1, 1).init(&device),
        };
        let batch =
            |values: [f32; 2]| Tensor::<2>::from_floats([[values[0]], [values[1]]], &device);
        let batches = Batches::from(vec![batch([1.0, 2.0]), batch([3.0, 6.0])]);
        for (calls, mean) in [(Calls::All, 4.5), (Calls::First, 3.0)] {
            let mut found = Vec::new();
            let mut each = |_: String, seen: Seen| -> Result<(), FitError> {
                found.push(seen.sums.means());
                Ok(())
            };
            look_at(
                &network,
                calls,
                &batches,
                Need::Moments,
                Precision::F32,
                0,
                &mut each,
            )
            .unwrap();
            assert_eq!(found, [vec![mean]], "{calls:?}");
        }
    }

    #[test]
    fn what_gives_padding_is_not_read() {
        let device = Device::flex();
        for padding in [
            PaddingConfig2d::Explicit(1, 1, 1, 1),
            PaddingConfig2d::Same,
            PaddingConfig2d::Valid,
        ] {
            let conv = Conv2dConfig::new([4, 6], [3, 3])
                .with_stride([2, 1])
                .with_padding(padding)
                .with_bias(false)
                .init(&device);
            let info = Unit::<Tensor<4>>::layer(&conv).unwrap();
            let sizes = vec![[16, 16], [5, 12], [1, 1]];
            let batch = Padded {
                images: Tensor::zeros([3, 3, 16, 16], &device),
                sizes: sizes.clone(),
            };
            // Behind other layers, padding is no longer zero, and maps are smaller than images.
            let x = Tensor::<4>::random([3, 4, 8, 8], Distribution::Uniform(-1.0, 2.0), &device);
            let mut seen = Seen::nothing("conv", &info, Need::Gram, u64::MAX).unwrap();
            let extents = batch.extents().unwrap();
            seen.add(&info, &x, Some(&extents)).unwrap();
            let output = conv.run(x, &mut Bare::default());
            let [_, channels, height, width] = output.dims();
            let (mut sums, mut places) = (vec![0.0; channels], 0);
            for (image, [rows, columns]) in extents.on([height, width]).enumerate() {
                let part =
                    output
                        .clone()
                        .slice([image..image + 1, 0..channels, 0..rows, 0..columns]);
                for (sum, mean) in sums.iter_mut().zip(ran(part, 1)) {
                    *sum += mean * (rows * columns) as f64;
                }
                places += rows * columns;
            }
            let means: Vec<f64> = sums.iter().map(|sum| sum / places as f64).collect();
            let weight: Vec<f32> = conv.weight.val().into_data().try_into_vec().unwrap();
            near(&seen.mean_outputs(&weight), &means);
            let gram = seen.gram.unwrap();
            for (product, square) in gram.diagonal(0).iter().zip(seen.sums.squares()) {
                assert!((product - square).abs() < 1e-3 * square.max(1.0));
            }
        }
    }
}
