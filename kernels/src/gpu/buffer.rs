//! Memory of a device, and how launches are sized.
//!
//! The one-off kernels (selection, masks, statistics, sums) work on these buffers rather than on Burn's tensors, so that
//! they can be tested and timed without Burn. Elements are 32 bits wide: WGSL has no narrower storage.
#![allow(unsafe_code)]

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::KernelError;
use crate::error::expect_len;

/// Units of a cube; every device takes as many.
pub(crate) const UNITS: usize = 256;
/// Cubes along one axis of a launch; more than WebGPU promises nowhere.
const AXIS: usize = 65_535;

/// A run of f32 or u32 on a device.
#[derive(Clone)]
pub struct Buffer {
    client: Client,
    handle: Handle,
    len: usize,
}

impl Buffer {
    /// The first `len` elements of memory that is there already.
    pub fn new(client: Client, handle: Handle, len: usize) -> Result<Self, KernelError> {
        let room = usize::try_from(handle.size_in_used()).unwrap_or(usize::MAX) / WIDTH;
        if room < len {
            expect_len("a device buffer", len, room)?;
        }
        check_len(len)?;
        Ok(Self {
            client,
            handle,
            len,
        })
    }

    /// A copy of `values`.
    pub fn of_f32(client: &Client, values: &[f32]) -> Result<Self, KernelError> {
        Self::of_bytes(client, f32::as_bytes(values), values.len())
    }

    /// A copy of `values`.
    pub fn of_u32(client: &Client, values: &[u32]) -> Result<Self, KernelError> {
        Self::of_bytes(client, u32::as_bytes(values), values.len())
    }

    fn of_bytes(client: &Client, bytes: &[u8], len: usize) -> Result<Self, KernelError> {
        check_len(len)?;
        // No device has memory of no bytes.
        let handle = match bytes {
            [] => client.empty(WIDTH),
            bytes => client.create_from_slice(bytes),
        };
        Ok(Self {
            client: client.clone(),
            handle,
            len,
        })
    }

    /// Memory that holds anything.
    pub fn uninit(client: &Client, len: usize) -> Result<Self, KernelError> {
        check_len(len)?;
        Ok(Self {
            client: client.clone(),
            handle: client.empty(WIDTH * len.max(1)),
            len,
        })
    }

    /// Zeros.
    pub fn zeros(client: &Client, len: usize) -> Result<Self, KernelError> {
        let zeros = Self::uninit(client, len)?;
        zeros.fill(0);
        Ok(zeros)
    }

    /// Sets every element to these bits.
    pub fn fill(&self, bits: u32) {
        if self.len > 0 {
            let cubes = folded(self.len.div_ceil(UNITS));
            fill::launch(&self.client, cubes, units(), self.arg(), bits);
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device's client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The memory itself.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits for all work before, and copies the elements to the host.
    pub fn read_f32(&self) -> Result<Vec<f32>, KernelError> {
        Ok(self.read_u32()?.into_iter().map(f32::from_bits).collect())
    }

    /// Waits for all work before, and copies the elements to the host.
    pub fn read_u32(&self) -> Result<Vec<u32>, KernelError> {
        if self.len == 0 {
            return Ok(Vec::new());
        }
        let bytes = self.client.read_one(self.handle.clone());
        let bytes = bytes.map_err(|error| KernelError::Device {
            why: format!("{error:?}"),
        })?;
        Ok(u32::from_bytes(&bytes)[..self.len].to_vec())
    }

    /// As a kernel's argument; kernels that ask for other 32-bit elements than were written see the same bits.
    pub(super) fn arg(&self) -> BufferArg {
        // SAFETY: every constructor allots or checks room for `len` elements of 32 bits, and no element type of this
        // crate's kernels is wider.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.len) }
    }
}

/// Bytes of an element.
const WIDTH: usize = size_of::<u32>();

/// Kernels index with 32 bits, and no binding of WebGPU is larger than 4 GiB.
fn check_len(len: usize) -> Result<(), KernelError> {
    if len <= (u32::MAX / WIDTH as u32) as usize {
        return Ok(());
    }
    Err(KernelError::Device {
        why: format!("a buffer of {len} elements of 4 bytes is over 4 GiB; split the layer"),
    })
}

/// At least `cubes` cubes, no axis longer than a device takes; kernels stop at the end of their data.
pub(super) fn folded(cubes: usize) -> CubeCount {
    let rows = cubes.div_ceil(AXIS).max(1);
    CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1)
}

/// The shape of every cube here: [`UNITS`] in a line.
pub(super) fn units() -> CubeDim {
    CubeDim::new_1d(UNITS as u32)
}

#[cube(launch, create_dummy_kernel)]
pub(crate) fn fill(out: &mut [u32], bits: u32) {
    if ABSOLUTE_POS < out.len() {
        out[ABSOLUTE_POS] = bits;
    }
}
