//! Gram sums `H += X X^T` on a device (K13 of the specification); see [`crate::gram`] for what they are.
//!
//! A cube sums a 64 x 64 tile of the upper triangle in f32 over [`CHUNK`] positions, gathered from the activations 16 at a
//! time, and adds the tile to the running sums, which are two f32 each: number and what its additions lost. They stay on
//! the device between batches.

use cubecl::client::Client;
use cubecl::prelude::*;

use super::buffer::{Buffer, UNITS, folded, units};
use super::compensated::{lost, opaque};
use super::dense_tile::{ACROSS, DEPTH, REACH, SIDE, multiply, zeros};
use crate::error::expect_len;
use crate::{ConvShape, GramState, KernelError};

/// Positions per f32 sum.
const CHUNK: usize = 256;

/// The running sums of one layer.
pub struct GramSums {
    client: Client,
    groups: usize,
    cols: usize,
    positions: u64,
    /// `[groups, cols, cols]` each, right on and above the diagonal's tiles.
    high: Buffer,
    low: Buffer,
}

impl GramSums {
    /// Zero sums for a weight with `cols` columns in each of `groups` groups; 1 group for a linear layer.
    ///
    /// A group takes `8 cols^2` bytes of the device.
    pub fn new(client: &Client, groups: usize, cols: usize) -> Result<Self, KernelError> {
        let len = cols.saturating_mul(cols).saturating_mul(groups);
        Ok(Self {
            client: client.clone(),
            groups,
            cols,
            positions: 0,
            high: Buffer::zeros(client, len)?,
            low: Buffer::zeros(client, len)?,
        })
    }

    /// Adds a batch of a linear layer's inputs.
    ///
    /// # Shapes
    /// `x`: f32 `[positions, cols]`.
    pub fn add_linear(&mut self, x: &Buffer, positions: usize) -> Result<(), KernelError> {
        expect_len("groups of the linear Gram sums", 1, self.groups)?;
        // As a 1x1 convolution of one pixel per image.
        let shape = ConvShape::new(positions, [self.cols, 1], [1; 2], [1; 2]);
        self.add(x, &shape)
    }

    /// Adds a batch of a convolution's inputs; padding counts as zeros.
    ///
    /// # Shapes
    /// `x`: f32, NCHW.
    pub fn add_conv(&mut self, x: &Buffer, shape: &ConvShape) -> Result<(), KernelError> {
        shape.validate()?;
        expect_len("groups of the convolution", self.groups, shape.groups)?;
        expect_len(
            "weight columns of the convolution",
            self.cols,
            shape.weight_cols(),
        )?;
        self.add(x, shape)
    }

    fn add(&mut self, x: &Buffer, shape: &ConvShape) -> Result<(), KernelError> {
        expect_len("x", shape.input_len(), x.len())?;
        let [height, width] = shape.out_size();
        let positions = shape.batch * height * width;
        self.positions += positions as u64;
        if positions == 0 || self.high.is_empty() {
            return Ok(());
        }
        let geometry = [
            positions,
            shape.inputs,
            shape.groups,
            shape.size[0],
            shape.size[1],
            height,
            width,
            shape.kernel[0],
            shape.kernel[1],
            shape.stride[0],
            shape.stride[1],
            shape.padding[0][0],
            shape.padding[1][0],
            shape.dilation[0],
            shape.dilation[1],
        ];
        let geometry = Buffer::of_u32(&self.client, &geometry.map(|size| size as u32))?;
        let across = self.cols.div_ceil(SIDE);
        add_tiles::launch(
            &self.client,
            folded(self.groups * across * across),
            units(),
            x.arg(),
            geometry.arg(),
            self.high.arg(),
            self.low.arg(),
            self.cols as u32,
            0u32,
        );
        Ok(())
    }

    /// The sums so far, on the host.
    pub fn read(&self) -> Result<GramState, KernelError> {
        let (high, low) = (self.high.read_f32()?, self.low.read_f32()?);
        let sums = high.iter().zip(&low).map(|(&high, &low)| {
            let sum = f64::from(high) + f64::from(low);
            // What an infinite sum lost is NaN.
            if low.is_nan() { f64::from(high) } else { sum }
        });
        Ok(GramState::of_upper(
            self.groups,
            self.cols,
            self.positions,
            sums.collect(),
        ))
    }
}

/// One activation of the im2col view; 0 in the padding. `geometry` as [`GramSums::add`] lists it.
#[cube]
fn activation(x: &[f32], geometry: &[u32], group: u32, position: u32, col: u32) -> f32 {
    let channels = geometry[1];
    let height = geometry[3];
    let width = geometry[4];
    let out_height = geometry[5];
    let out_width = geometry[6];
    let taps = geometry[7] * geometry[8];
    let image = position / (out_height * out_width);
    let channel = group * (channels / geometry[2]) + col / taps;
    // Unsigned: a place before the input wraps round to one far beyond it.
    let y = position / out_width % out_height * geometry[9]
        + col % taps / geometry[8] * geometry[13]
        - geometry[11];
    let at = position % out_width * geometry[10] + col % taps % geometry[8] * geometry[14]
        - geometry[12];
    let mut value = 0.0f32;
    if y < height && at < width {
        value = x[(((image * channels + channel) * height + y) * width + at) as usize];
    }
    value
}

/// Gathers [`DEPTH`] positions of a tile's columns into shared memory, zeros beyond its borders: `[DEPTH, SIDE]`.
#[cube]
fn gather(
    x: &[f32],
    geometry: &[u32],
    out: &mut Shared<[f32]>,
    group: usize,
    first_position: usize,
    first_col: usize,
    cols: usize,
) {
    #[unroll]
    for step in 0..comptime!(DEPTH * SIDE / UNITS) {
        let at = step * UNITS + UNIT_POS as usize;
        let position = first_position + at / SIDE;
        let col = first_col + at % SIDE;
        let mut value = 0.0f32;
        if position < geometry[0] as usize && col < cols {
            value = activation(
                x,
                geometry,
                u32::cast_from(group),
                u32::cast_from(position),
                u32::cast_from(col),
            );
        }
        out[at] = value;
    }
}

#[cube(launch, create_dummy_kernel)]
pub(crate) fn add_tiles(
    x: &[f32],
    geometry: &[u32],
    high: &mut [f32],
    low: &mut [f32],
    cols: u32,
    zero: u32,
) {
    let cols = cols as usize;
    let positions = geometry[0] as usize;
    let groups = geometry[2] as usize;
    let mut left = Shared::<[f32]>::new_slice(DEPTH * SIDE);
    let mut right = Shared::<[f32]>::new_slice(DEPTH * SIDE);
    let across = cols.div_ceil(SIDE);
    let group = CUBE_POS / (across * across);
    let tile_row = CUBE_POS / across % across;
    let tile_col = CUBE_POS % across;
    // Below the diagonal there is nothing to sum; a whole cube leaves the loop, so that barriers stay uniform.
    let wanted = group < groups && tile_row <= tile_col;
    let chunks = select(wanted, positions.div_ceil(CHUNK), 0);
    for chunk in 0..chunks {
        let mut sums = zeros();
        for part in 0..CHUNK / DEPTH {
            let first = chunk * CHUNK + part * DEPTH;
            gather(x, geometry, &mut left, group, first, tile_col * SIDE, cols);
            gather(x, geometry, &mut right, group, first, tile_row * SIDE, cols);
            sync_cube();
            multiply(&mut sums, &left, 0, &right);
            sync_cube();
        }
        #[unroll]
        for i in 0..REACH {
            #[unroll]
            for j in 0..REACH {
                let row = tile_row * SIDE + UNIT_POS as usize / ACROSS * REACH + i;
                let col = tile_col * SIDE + UNIT_POS as usize % ACROSS * REACH + j;
                if row < cols && col < cols {
                    let at = (group * cols + row) * cols + col;
                    let before = high[at];
                    let sum = opaque(before + sums[i * REACH + j], zero);
                    low[at] += lost(before, sums[i * REACH + j], sum, zero);
                    high[at] = sum;
                }
            }
        }
    }
}
