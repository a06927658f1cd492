//! Products on AMX tiles: factors rounded to bf16, or split into two bf16 terms each, sums in f32.
//!
//! [`Tiles`](tiles::Tiles) names the few tile operations; everything else (packing, blocks, the split) is written on them
//! once, and runs on the processor's tiles or on an emulation of the instructions' definition. Tiles are always full: edges
//! are zeros in packed factors.
//!
//! Opt-in, by [`Precision`]: nothing here is chosen for a caller who asked for f32. Speed has not been measured; the
//! processors at hand had no AMX, so the tests there prove all but the instructions themselves.
//!
//! Non-finite factors make non-finite results, if not always the same ones as in f32: an infinity split in two is a NaN, and
//! so is an infinity times one of the zeros that fill a tile or stand for masked weights. Masked weights are absent
//! whatever they hold.

mod block;
mod conv;
mod detect;
mod linear;
mod tiles;
mod weight_grad;

use block::Terms;
use linear::{Kept, Matrix};
use tiles::Emulated;

use super::{Isa, Mask};
use crate::{ConvShape, KernelError, LinearShape, Precision};

pub use detect::{Missing, permission};

/// Channels of a group, and rows, below which most of a tile is padding.
const FEW: usize = 8;
/// Positions of an image below which most of a weight gradient's tile is padding.
const SMALL: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    #[cfg(target_arch = "x86_64")]
    Hardware,
    Emulated,
}

/// Tiles, and what factors are rounded to. Having one is proof of the permission to use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amx {
    engine: Engine,
    terms: Terms,
}

/// Runs a product on the tiles of an [`Amx`].
macro_rules! on {
    ($amx:expr, $product:expr, $($argument:expr),*) => {
        match $amx.engine {
            #[cfg(target_arch = "x86_64")]
            Engine::Hardware => $product.run::<tiles::Hardware>($($argument),*),
            Engine::Emulated => $product.run::<Emulated>($($argument),*),
        }
    };
}

impl Amx {
    /// The processor's tiles; none for f32, an error where there are none.
    pub fn new(precision: Precision) -> Result<Option<Self>, KernelError> {
        precision.check()?;
        #[cfg(target_arch = "x86_64")]
        let engine = Engine::Hardware;
        // Not reached with a precision that needs tiles.
        #[cfg(not(target_arch = "x86_64"))]
        let engine = Engine::Emulated;
        Ok(Self::with(engine, precision))
    }

    /// Emulated tiles, to prove what is built on them on any processor; none for f32. Thousands of times slower.
    pub fn emulated(precision: Precision) -> Option<Self> {
        Self::with(Engine::Emulated, precision)
    }

    fn with(engine: Engine, precision: Precision) -> Option<Self> {
        let terms = match precision {
            Precision::F32 => return None,
            Precision::Bf16x3 => Terms::Two,
            Precision::Bf16 => Terms::One,
        };
        Some(Self { engine, terms })
    }

    /// Why a convolution's output and input gradient are better computed in f32; they are right on tiles all the same.
    pub fn declines(shape: &ConvShape) -> Option<&'static str> {
        let [rows, channels] = [shape.outputs, shape.inputs].map(|n| n / shape.groups);
        (rows < FEW || channels < FEW)
            .then_some("fewer than 8 channels of a group leave tiles empty")
    }

    /// The same for the weight gradient.
    pub fn declines_weight_grad(shape: &ConvShape) -> Option<&'static str> {
        let small = shape.out_size().iter().product::<usize>() < SMALL;
        Self::declines(shape)
            .or(small.then_some("fewer than 16 positions of an image leave tiles empty"))
    }

    /// The same for a linear layer's products.
    pub fn declines_linear(shape: LinearShape) -> Option<&'static str> {
        let least = shape.positions.min(shape.rows).min(shape.cols);
        (least < FEW).then_some("fewer than 8 positions, rows or columns leave tiles empty")
    }

    /// The output of a convolution: `x` NCHW, `w` OIHW, both as `shape` says.
    pub fn conv_forward(
        self,
        isa: Isa,
        shape: &ConvShape,
        x: &[f32],
        w: &[f32],
        mask: Option<Mask>,
        bias: Option<&[f32]>,
    ) -> Vec<f32> {
        super::conv::check(shape, x.len(), shape.input_len(), w.len(), mask);
        check_bias(bias, shape.outputs);
        let product = conv::Product {
            kernels: isa.kernels(),
            terms: self.terms,
            shape,
            grad: false,
            mask,
            bias,
        };
        on!(self, product, x, w)
    }

    /// The gradient of a convolution's input from that of its output, `g`.
    pub fn conv_input_grad(
        self,
        isa: Isa,
        shape: &ConvShape,
        g: &[f32],
        w: &[f32],
        mask: Option<Mask>,
    ) -> Vec<f32> {
        super::conv::check(shape, g.len(), shape.output_len(), w.len(), mask);
        let product = conv::Product {
            kernels: isa.kernels(),
            terms: self.terms,
            shape,
            grad: true,
            mask,
            bias: None,
        };
        on!(self, product, g, w)
    }

    /// The gradient of a convolution's weight from its input and its output's gradient; zero outside the mask.
    pub fn conv_weight_grad(
        self,
        isa: Isa,
        shape: &ConvShape,
        x: &[f32],
        g: &[f32],
        mask: Option<Mask>,
    ) -> Vec<f32> {
        assert_eq!(g.len(), shape.output_len(), "output gradients of {shape:?}");
        super::conv::check(shape, x.len(), shape.input_len(), shape.weight_len(), mask);
        let product = weight_grad::Product {
            kernels: isa.kernels(),
            terms: self.terms,
            shape,
            mask,
        };
        on!(self, product, x, g)
    }

    /// `y[p, r] = b[r] + sum over kept c of w[c, r] x[p, c]`.
    ///
    /// # Shapes
    /// `x [P, C]`, `w [C, R]`, mask `[R, C]`, bias `[R]`; result `[P, R]`.
    pub fn linear_forward(
        self,
        isa: Isa,
        shape: LinearShape,
        x: &[f32],
        w: &[f32],
        mask: Option<Mask>,
        bias: Option<&[f32]>,
    ) -> Vec<f32> {
        let LinearShape {
            positions,
            rows,
            cols,
        } = shape;
        check_linear(
            shape,
            [
                ("x", x.len(), positions * cols),
                ("w", w.len(), rows * cols),
            ],
            mask,
        );
        check_bias(bias, rows);
        let product = linear::Product {
            kernels: isa.kernels(),
            terms: self.terms,
            size: [positions, cols, rows],
            a: Matrix::rows_of(x, cols),
            b: Matrix::rows_of(w, rows),
            kept: mask.map_or(Kept::All, Kept::Across),
            bias,
            result_mask: None,
        };
        on!(self, product,)
    }

    /// `dx[p, c] = sum over r with (r, c) kept of w[c, r] g[p, r]`.
    ///
    /// # Shapes
    /// `g [P, R]`, `w [C, R]`, mask `[R, C]`; result `[P, C]`.
    pub fn linear_input_grad(
        self,
        isa: Isa,
        shape: LinearShape,
        g: &[f32],
        w: &[f32],
        mask: Option<Mask>,
    ) -> Vec<f32> {
        let LinearShape {
            positions,
            rows,
            cols,
        } = shape;
        check_linear(
            shape,
            [
                ("g", g.len(), positions * rows),
                ("w", w.len(), rows * cols),
            ],
            mask,
        );
        let product = linear::Product {
            kernels: isa.kernels(),
            terms: self.terms,
            size: [positions, rows, cols],
            a: Matrix::rows_of(g, rows),
            b: Matrix::rows_of(w, rows).transposed(),
            kept: mask.map_or(Kept::All, Kept::Along),
            bias: None,
            result_mask: None,
        };
        on!(self, product,)
    }

    /// `dw[c, r] = sum over p of x[p, c] g[p, r]`, exactly 0 where the mask prunes.
    ///
    /// # Shapes
    /// `x [P, C]`, `g [P, R]`, mask `[R, C]`; result `[C, R]`.
    pub fn linear_weight_grad(
        self,
        isa: Isa,
        shape: LinearShape,
        x: &[f32],
        g: &[f32],
        mask: Option<Mask>,
    ) -> Vec<f32> {
        let LinearShape {
            positions,
            rows,
            cols,
        } = shape;
        check_linear(
            shape,
            [
                ("x", x.len(), positions * cols),
                ("g", g.len(), positions * rows),
            ],
            mask,
        );
        let product = linear::Product {
            kernels: isa.kernels(),
            terms: self.terms,
            size: [cols, positions, rows],
            a: Matrix::rows_of(x, cols).transposed(),
            b: Matrix::rows_of(g, rows),
            kept: Kept::All,
            bias: None,
            result_mask: mask,
        };
        on!(self, product,)
    }
}

/// The kernels trust their lengths: a wrong one is a bug of the caller, never a reason to read past an end.
fn check_linear(shape: LinearShape, slices: [(&str, usize, usize); 2], mask: Option<Mask>) {
    for (what, found, expected) in slices {
        assert_eq!(found, expected, "{what}: elements found, elements needed");
    }
    if let Some(mask) = mask {
        mask.check(shape.rows, shape.cols);
    }
}

fn check_bias(bias: Option<&[f32]>, rows: usize) {
    if let Some(bias) = bias {
        assert_eq!(bias.len(), rows, "one bias per output channel");
    }
}
