//! A pruned weight on a device, stored as a tensor-core kernel wants it.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::launch::{self, Product, Route};
use super::{Activations, Operand};
use crate::error::expect_len;
use crate::{BitMask, Bitmap, ColOrder, Half, KernelError, Nm24Hw};

/// A weight `[rows, cols]` for one route.
#[derive(Clone)]
pub struct Weight {
    route: Route,
    operand: Operand,
    rows: u32,
    cols: u32,
    stored: Stored,
}

/// What lies on the device.
#[derive(Clone)]
enum Stored {
    Masked(launch::Masked),
    Sparse24(launch::Sparse24),
    Bitmap(launch::Tiles),
}

impl Weight {
    /// A copy of what `mask` keeps of `values`, `[rows, cols]`, rounded to the operand's type.
    ///
    /// For the 2:4 routes the mask keeps at most two of every four weights of a row.
    pub fn upload(
        client: &Client,
        route: Route,
        operand: Operand,
        values: &[f32],
        mask: &BitMask,
    ) -> Result<Self, KernelError> {
        let (rows, cols) = (size(mask.rows())?, size(mask.cols())?);
        expect_len("weight", mask.len(), values.len())?;
        let half = || {
            operand.half().ok_or_else(|| KernelError::Route {
                route: route.name(),
                why: "it multiplies 16-bit floats, not tf32".into(),
            })
        };
        let words = |words: &[u32]| upload(client, u32::as_bytes(words));
        let stored = match route {
            Route::Masked | Route::MaskedWarpgroup => Stored::Masked(launch::Masked {
                weight: upload_operand(client, operand, values),
                mask: words(mask.words()),
            }),
            Route::Sparse24 | Route::Sparse24Warpgroup => {
                let packed = Nm24Hw::from_dense(values, mask, half()?, ColOrder::Oihw)?;
                Stored::Sparse24(launch::Sparse24 {
                    values: words(packed.values()),
                    metadata: words(packed.metadata()),
                })
            }
            Route::Bitmap => {
                let packed = Bitmap::from_dense(values, mask, half()?, ColOrder::Oihw)?;
                Stored::Bitmap(launch::Tiles {
                    masks: words(packed.masks()),
                    tile_ptr: words(packed.tile_ptr()),
                    values: words(packed.values()),
                })
            }
        };
        Ok(Self {
            route,
            operand,
            rows,
            cols,
            stored,
        })
    }

    /// Its product with these inputs, for [`launch::applies`].
    pub fn product(&self, points: u32, batch: u32, activations: Activations) -> Product {
        Product {
            rows: self.rows,
            cols: self.cols,
            points,
            batch,
            operand: self.operand,
            activations,
        }
    }

    /// `Y = W X` in f32, in the order of [`Activations`]. X is of the operand's type, see [`upload_operand`].
    pub fn multiply(
        &self,
        client: &Client,
        x: &Handle,
        points: u32,
        batch: u32,
        activations: Activations,
    ) -> Result<Handle, KernelError> {
        let (route, product) = (self.route, self.product(points, batch, activations));
        launch::applies(route, client.properties(), &product)?;
        let outputs = self.rows as usize * points as usize * batch as usize;
        let (x, y) = (x.clone(), client.empty(outputs * size_of::<f32>()));
        let into = y.clone();
        match self.stored.clone() {
            Stored::Masked(weight) => {
                launch::masked_product(client, route, &product, x, weight, into)
            }
            Stored::Sparse24(weight) => {
                launch::sparse_product(client, route, &product, x, weight, into)
            }
            Stored::Bitmap(weight) => {
                launch::bitmap_product(client, route, &product, x, weight, into)
            }
        }?;
        Ok(y)
    }
}

impl Operand {
    /// The 16-bit type in memory; None for tf32, which is f32 there.
    pub fn half(self) -> Option<Half> {
        match self {
            Self::Bf16 => Some(Half::Bf16),
            Self::F16 => Some(Half::F16),
            Self::Tf32 => None,
        }
    }
}

/// A copy of `values` on the device, rounded to the operand's type in memory.
pub fn upload_operand(client: &Client, operand: Operand, values: &[f32]) -> Handle {
    match operand.half() {
        None => upload(client, f32::as_bytes(values)),
        Some(half) => {
            let rounded: Vec<u16> = values.iter().map(|&value| half.encode(value)).collect();
            upload(client, u16::as_bytes(&rounded))
        }
    }
}

fn upload(client: &Client, bytes: &[u8]) -> Handle {
    match bytes {
        // No device has memory of no bytes; the kernels read none of these.
        [] => client.empty(16),
        bytes => client.create_from_slice(bytes),
    }
}

fn size(size: usize) -> Result<u32, KernelError> {
    u32::try_from(size).map_err(|_| KernelError::Device {
        why: format!("a weight with an axis of {size}; places are 32-bit numbers"),
    })
}
