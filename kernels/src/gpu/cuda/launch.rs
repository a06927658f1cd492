//! Checked ways in: what a device and a shape must be for each kernel, and its launch.
//!
//! A kernel that does not apply is an error with the reason, not a panic and not a wrong result, so that a caller can
//! take another path and count it. Weights, inputs and outputs are buffers in row-major order without gaps.

// Launches without bound checks, each with its argument.
#![allow(unsafe_code)]

use cubecl::client::Client;
use cubecl::ir::DeviceProperties;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::{Activations, Operand, bitmap, masked, sparse24, warpgroup};
use crate::KernelError;

/// A kernel of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// [`masked_product`].
    Masked,
    /// [`masked_product`] on warpgroups.
    MaskedWarpgroup,
    /// [`sparse_product`].
    Sparse24,
    /// [`sparse_product`] on warpgroups.
    Sparse24Warpgroup,
    /// [`bitmap_product`].
    Bitmap,
}

/// Sizes of `Y = W X` and how its operands lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Product {
    /// Output channels.
    pub rows: u32,
    /// Weights per output channel, pruned ones counted.
    pub cols: u32,
    /// Positions: tokens, or pixels of one image.
    pub points: u32,
    /// Images; 1 for tokens.
    pub batch: u32,
    /// Type of W and X.
    pub operand: Operand,
    /// Order of X and Y.
    pub activations: Activations,
}

impl Product {
    /// Elements of X.
    fn inputs(&self) -> u64 {
        u64::from(self.batch) * u64::from(self.cols) * u64::from(self.points)
    }

    /// Elements of Y.
    fn outputs(&self) -> u64 {
        u64::from(self.batch) * u64::from(self.rows) * u64::from(self.points)
    }

    /// Elements that may be read at once, of rows of `len` from a buffer: a whole chunk where every row begins with one.
    fn width(&self, len: u32, buffer: &Handle) -> usize {
        let chunk = 16 / self.operand.bytes();
        let begins = buffer.offset_start.unwrap_or(0).is_multiple_of(16);
        if len.is_multiple_of(chunk) && begins {
            chunk as usize
        } else {
            1
        }
    }

    /// Length of X's rows.
    fn input_row(&self) -> u32 {
        match self.activations {
            Activations::Tokens => self.cols,
            Activations::Planes => self.points,
        }
    }
}

/// Compute capability as two digits, 80 for 8.0; None for what is no CUDA device.
pub fn compute_capability(device: &DeviceProperties) -> Option<u32> {
    device
        .identity
        .fingerprint
        .strip_prefix("ptx_sm")?
        .parse()
        .ok()
}

/// Whether a kernel can have this product on this device; the error says what is in the way.
pub fn applies(
    route: Route,
    device: &DeviceProperties,
    product: &Product,
) -> Result<(), KernelError> {
    let refuse = |why: String| {
        Err(KernelError::Route {
            route: route.name(),
            why,
        })
    };
    let capability = compute_capability(device).unwrap_or(0);
    // The warpgroup instruction exists on 9.0 alone; the others' binaries are for 8.0 and whatever follows it.
    let capable = if route.warpgroup() {
        capability == 90
    } else {
        capability >= 80
    };
    if !capable {
        let needed = if route.warpgroup() {
            "9.0 exactly"
        } else {
            "8.0 or later"
        };
        return refuse(format!(
            "it needs CUDA compute capability {needed}, the device is {}",
            device.identity.fingerprint
        ));
    }
    let shared = device.hardware.max_shared_memory_size;
    if shared < route.shared_bytes(product) {
        return refuse(format!(
            "it needs {} bytes of shared memory, the device has {shared}",
            route.shared_bytes(product)
        ));
    }
    let Product {
        rows,
        cols,
        points,
        batch,
        operand,
        activations,
    } = *product;
    if rows == 0 || cols == 0 || points == 0 || batch == 0 {
        return refuse(format!(
            "nothing to multiply in {rows} x {cols} x {points}, batch {batch}"
        ));
    }
    if activations == Activations::Tokens && batch != 1 {
        return refuse(format!("tokens come in one batch, not {batch}"));
    }
    if operand == Operand::Tf32 && route != Route::Masked {
        return refuse("it multiplies 16-bit floats, not tf32".into());
    }
    if route.warpgroup() && activations != Activations::Tokens {
        return refuse("it takes [positions, channels], not planes".into());
    }
    if matches!(route, Route::Sparse24 | Route::Sparse24Warpgroup) && !cols.is_multiple_of(4) {
        return refuse(format!("{cols} columns are no multiple of 4"));
    }
    if route == Route::Bitmap && batch != 1 {
        return refuse(format!("it takes one image, not {batch}"));
    }
    // Places are 32-bit numbers; a tile may reach beyond the last row and column before it is cut off.
    let most = product
        .inputs()
        .max(product.outputs())
        .max(u64::from(rows) * u64::from(cols));
    if most + 256 * u64::from(rows.max(cols).max(points)) > u64::from(u32::MAX) {
        return refuse(format!(
            "{most} elements in one operand; places must stay below 2^32"
        ));
    }
    let (x, y, z) = route.cubes(product);
    let limit = device.hardware.max_cube_count;
    if x > limit.0 || y > limit.1 || z > limit.2 {
        return refuse(format!(
            "{x} x {y} x {z} cubes, the device allows {limit:?}"
        ));
    }
    Ok(())
}

impl Route {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Masked => "masked tensor-core product",
            Self::MaskedWarpgroup => "masked warpgroup product",
            Self::Sparse24 => "2:4 product",
            Self::Sparse24Warpgroup => "2:4 warpgroup product",
            Self::Bitmap => "bitmap product",
        }
    }

    fn warpgroup(self) -> bool {
        matches!(self, Self::MaskedWarpgroup | Self::Sparse24Warpgroup)
    }

    /// Shared memory of a cube, an upper bound by less than a kilobyte.
    pub fn shared_bytes(self, product: &Product) -> usize {
        match (self, product.operand) {
            (Self::Masked, Operand::Tf32) => 99 * 1024,
            (Self::Masked, _) => 66 * 1024,
            (Self::MaskedWarpgroup, _) => 132 * 1024,
            (Self::Sparse24, _) => 75 * 1024,
            (Self::Sparse24Warpgroup, _) => 100 * 1024,
            (Self::Bitmap, _) => 50 * 1024,
        }
    }

    /// Cubes along x, y and z; the bitmap's parts along z are the caller's choice.
    fn cubes(self, product: &Product) -> (u32, u32, u32) {
        let tile = match self {
            Self::Bitmap => bitmap::TILE,
            _ => masked::TILE,
        };
        (
            product.points.div_ceil(tile),
            product.rows.div_ceil(tile),
            product.batch,
        )
    }
}

/// A weight `[rows, cols]`, and its mask `[rows, ceil(cols / 32)]` in words as [`crate::BitMask`] has them.
#[derive(Clone)]
pub struct Masked {
    /// All weights.
    pub weight: Handle,
    /// Which of them exist.
    pub mask: Handle,
}

/// The arrays of [`crate::Nm24Hw`], of the operand's type.
#[derive(Clone)]
pub struct Sparse24 {
    /// Two of four.
    pub values: Handle,
    /// Which two.
    pub metadata: Handle,
}

/// The arrays of [`crate::Bitmap`], of the operand's type.
#[derive(Clone)]
pub struct Tiles {
    /// A bit per weight.
    pub masks: Handle,
    /// Where the values of each tile begin.
    pub tile_ptr: Handle,
    /// Kept weights.
    pub values: Handle,
}

/// `Y = (W ⊙ M) X`. The route is [`Route::Masked`] or [`Route::MaskedWarpgroup`].
///
/// # Shapes
/// `x` and `y`: see [`Activations`]; `y` is f32.
pub fn masked_product(
    client: &Client,
    route: Route,
    product: &Product,
    x: Handle,
    Masked { weight, mask }: Masked,
    y: Handle,
) -> Result<(), KernelError> {
    applies(route, client.properties(), product)?;
    let Product {
        rows,
        cols,
        points,
        operand,
        activations,
        ..
    } = *product;
    let size = u64::from(operand.bytes());
    expect_bytes("weight", &weight, u64::from(rows) * u64::from(cols) * size)?;
    expect_bytes(
        "mask",
        &mask,
        u64::from(rows) * u64::from(cols.div_ceil(32)) * 4,
    )?;
    expect_bytes("input", &x, product.inputs() * size)?;
    expect_bytes("output", &y, product.outputs() * 4)?;
    let (cx, cy, cz) = route.cubes(product);
    let count = CubeCount::Static(cx, cy, cz);
    let w_width = product.width(cols, &weight);
    let x_width = product.width(product.input_row(), &x);
    let w_len = (rows as usize * cols as usize) / w_width;
    let x_len = product.inputs() as usize / x_width;
    let mask_len = rows as usize * cols.div_ceil(32) as usize;
    let y_len = product.outputs() as usize;
    // SAFETY: the buffers are as long as the kernels take them to be, checked above; the kernels guard the last rows and
    // columns themselves, and their loops run over the steps of `cols`.
    unsafe {
        match route {
            Route::MaskedWarpgroup => {
                let width = w_width.min(x_width);
                warpgroup::masked_warpgroup::launch_unchecked::<u16>(
                    client,
                    count,
                    CubeDim::new_1d(warpgroup::UNITS),
                    width,
                    BufferArg::from_raw_parts(weight, w_len * w_width / width),
                    BufferArg::from_raw_parts(mask, mask_len),
                    BufferArg::from_raw_parts(x, x_len * x_width / width),
                    BufferArg::from_raw_parts(y, y_len),
                    rows,
                    cols,
                    points,
                    operand,
                );
            }
            Route::Masked => {
                let launch = match operand {
                    Operand::Tf32 => masked::masked_product::launch_unchecked::<u32>,
                    _ => masked::masked_product::launch_unchecked::<u16>,
                };
                launch(
                    client,
                    count,
                    CubeDim::new_1d(masked::UNITS),
                    w_width,
                    x_width,
                    BufferArg::from_raw_parts(weight, w_len),
                    BufferArg::from_raw_parts(mask, mask_len),
                    BufferArg::from_raw_parts(x, x_len),
                    BufferArg::from_raw_parts(y, y_len),
                    rows,
                    cols,
                    points,
                    operand,
                    activations,
                );
            }
            _ => return Err(wrong(route)),
        }
    }
    Ok(())
}

/// `Y = W X` with W two of four. The route is [`Route::Sparse24`] or [`Route::Sparse24Warpgroup`].
///
/// # Shapes
/// As [`masked_product`].
pub fn sparse_product(
    client: &Client,
    route: Route,
    product: &Product,
    x: Handle,
    Sparse24 { values, metadata }: Sparse24,
    y: Handle,
) -> Result<(), KernelError> {
    applies(route, client.properties(), product)?;
    let Product {
        rows,
        cols,
        points,
        operand,
        activations,
        ..
    } = *product;
    let pairs = u64::from(rows.div_ceil(16)) * u64::from(cols.div_ceil(64));
    expect_bytes("values", &values, pairs * 1024)?;
    expect_bytes("metadata", &metadata, pairs * 128)?;
    expect_aligned(route, "values", &values)?;
    expect_aligned(route, "metadata", &metadata)?;
    expect_bytes("input", &x, product.inputs() * 2)?;
    expect_bytes("output", &y, product.outputs() * 4)?;
    let (cx, cy, cz) = route.cubes(product);
    let count = CubeCount::Static(cx, cy, cz);
    let width = product.width(product.input_row(), &x);
    let x_len = product.inputs() as usize / width;
    let pairs = pairs as usize;
    // SAFETY: as in `masked_product`; the padding of `Nm24Hw` makes its tiles whole, and the kernels stop at its last one.
    unsafe {
        let values = BufferArg::from_raw_parts(values, pairs * 64);
        let metadata = BufferArg::from_raw_parts(metadata, pairs * 8);
        let x = BufferArg::from_raw_parts(x, x_len);
        let y = BufferArg::from_raw_parts(y, product.outputs() as usize);
        match route {
            Route::Sparse24Warpgroup => warpgroup::sparse_warpgroup::launch_unchecked::<u16>(
                client,
                count,
                CubeDim::new_1d(warpgroup::UNITS),
                width,
                values,
                metadata,
                x,
                y,
                rows,
                cols,
                points,
                operand,
            ),
            Route::Sparse24 => sparse24::sparse_product::launch_unchecked::<u16>(
                client,
                count,
                CubeDim::new_1d(sparse24::UNITS),
                width,
                values,
                metadata,
                x,
                y,
                rows,
                cols,
                points,
                operand,
                activations,
            ),
            _ => return Err(wrong(route)),
        }
    }
    Ok(())
}

/// `Y = W X` with W as a [`crate::Bitmap`], its depth divided into [`bitmap_parts`] parts. The route is [`Route::Bitmap`].
///
/// # Shapes
/// As [`masked_product`]. Device memory for the parts' sums is taken from the client.
pub fn bitmap_product(
    client: &Client,
    route: Route,
    product: &Product,
    x: Handle,
    weight: Tiles,
    y: Handle,
) -> Result<(), KernelError> {
    let Tiles {
        masks,
        tile_ptr,
        values,
    } = weight;
    if route != Route::Bitmap {
        return Err(wrong(route));
    }
    applies(route, client.properties(), product)?;
    let Product {
        rows,
        cols,
        points,
        operand,
        activations,
        ..
    } = *product;
    let across = cols.div_ceil(bitmap::TILE);
    let tiles = u64::from(rows.div_ceil(bitmap::TILE)) * u64::from(across);
    expect_bytes("masks", &masks, tiles * 512)?;
    expect_bytes("places of tiles", &tile_ptr, (tiles + 1) * 4)?;
    expect_aligned(route, "masks", &masks)?;
    expect_aligned(route, "values", &values)?;
    expect_bytes("input", &x, product.inputs() * 2)?;
    expect_bytes("output", &y, product.outputs() * 4)?;
    let steps_per_part = across.div_ceil(bitmap_parts(client.properties(), product));
    let parts = across.div_ceil(steps_per_part);
    let (cx, cy, _) = route.cubes(product);
    let outputs = product.outputs() as usize;
    let sums = if parts == 1 {
        y.clone()
    } else {
        client.empty(outputs * parts as usize * 4)
    };
    let width = product.width(product.input_row(), &x);
    let tiles = tiles as usize;
    let values_len = values.size_in_used() as usize / 16;
    // SAFETY: as in `masked_product`; `Bitmap` keeps places of values within its values.
    unsafe {
        bitmap::bitmap_product::launch_unchecked::<u16>(
            client,
            CubeCount::Static(cx, cy, parts),
            CubeDim::new_1d(bitmap::UNITS),
            width,
            BufferArg::from_raw_parts(masks, tiles * 32),
            BufferArg::from_raw_parts(tile_ptr, tiles + 1),
            BufferArg::from_raw_parts(values, values_len),
            BufferArg::from_raw_parts(x, product.inputs() as usize / width),
            BufferArg::from_raw_parts(sums.clone(), outputs * parts as usize),
            rows,
            cols,
            points,
            steps_per_part,
            operand,
            activations,
        );
        if parts > 1 {
            bitmap::add_parts::launch_unchecked(
                client,
                CubeCount::Static((outputs as u32).div_ceil(256), 1, 1),
                CubeDim::new_1d(256),
                BufferArg::from_raw_parts(sums, outputs * parts as usize),
                BufferArg::from_raw_parts(y, outputs),
                outputs as u32,
                parts,
            );
        }
    }
    Ok(())
}

/// Parts of the depth that give every multiprocessor two cubes, where the depth has as many steps and the parts' sums do
/// not outweigh the weight: at most 16.
pub fn bitmap_parts(device: &DeviceProperties, product: &Product) -> u32 {
    let (x, y, _) = Route::Bitmap.cubes(product);
    let wanted = 2 * device.hardware.num_streaming_multiprocessors.unwrap_or(64);
    let steps = product.cols.div_ceil(bitmap::TILE);
    wanted
        .div_ceil(x.saturating_mul(y).max(1))
        .clamp(1, steps.clamp(1, 16))
}

fn wrong(route: Route) -> KernelError {
    KernelError::Route {
        route: route.name(),
        why: "it takes a weight of another format".into(),
    }
}

fn expect_bytes(what: &'static str, buffer: &Handle, needed: u64) -> Result<(), KernelError> {
    let found = buffer.size_in_used();
    if found >= needed {
        Ok(())
    } else {
        Err(KernelError::Buffer {
            what,
            needed,
            found,
        })
    }
}

fn expect_aligned(route: Route, what: &str, buffer: &Handle) -> Result<(), KernelError> {
    match buffer.offset_start.unwrap_or(0) % 16 {
        0 => Ok(()),
        off => Err(KernelError::Route {
            route: route.name(),
            why: format!("the buffer of {what} begins {off} bytes behind a multiple of 16"),
        }),
    }
}
