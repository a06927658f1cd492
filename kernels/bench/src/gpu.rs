//! A GPU to measure on: Burn's device and the kernels' client for it, and the contestants that only it has.
//!
//! In a build without a GPU route the type has no value, so that the rest of the program need not know.

#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
pub use absent::*;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use present::*;

use serde::{Deserialize, Serialize};

/// Where the products run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Place {
    /// The CPU.
    #[default]
    Flex,
    /// Any GPU through WebGPU.
    Wgpu,
    /// NVIDIA.
    Cuda,
}

impl Place {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        }
    }
}

/// A GPU in a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accelerator {
    /// `wgpu` or `cuda`.
    pub route: String,
    /// The device and which kernels it gets.
    pub device: String,
    /// The driver, where the system tells.
    pub driver: Option<String>,
    /// Who compiles the kernels.
    pub compiler: String,
}

#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
mod absent {
    use anyhow::{Result, bail};
    use burn::tensor::Device;
    use kernels::BitMask;

    use super::{Accelerator, Place};
    use crate::check::Outcome;
    use crate::contest::Contestant;

    /// None.
    pub enum Gpu {}

    impl Gpu {
        /// Fails: there is none.
        pub fn open(place: Place) -> Result<Self> {
            bail!(
                "this program was built without {0}; build it with `--features kernels-bench/{0}`",
                place.name()
            )
        }

        pub fn facts(&self) -> Accelerator {
            match *self {}
        }

        pub fn device(&self) -> Device {
            match *self {}
        }

        pub fn waiter(&self) -> Box<dyn Fn()> {
            match *self {}
        }

        pub fn has_bf16(&self) -> bool {
            match *self {}
        }

        pub fn packed_linear(
            &self,
            _: [usize; 3],
            _: usize,
            _: &[(u32, BitMask)],
        ) -> Result<Vec<Contestant>> {
            match *self {}
        }

        pub fn select(&self, _: Vec<Vec<f32>>, _: u64) -> Result<Contestant> {
            match *self {}
        }

        pub fn nm_mask(
            &self,
            _: Vec<Vec<f32>>,
            _: [usize; 2],
            _: [usize; 2],
        ) -> Result<Contestant> {
            match *self {}
        }

        pub fn check(&self, _: &mut dyn FnMut(&Outcome)) -> Vec<Outcome> {
            match *self {}
        }
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod present {
    use std::hint::black_box;
    use std::panic::{self, AssertUnwindSafe};
    use std::time::Instant;

    use anyhow::{Result, anyhow, bail};
    use burn::tensor::{Device, DeviceKind};
    use kernels::format::{ColOrder, Nm};
    use kernels::gpu::bitmap::{self, BitmapTiles};
    use kernels::gpu::buffer::Buffer;
    use kernels::gpu::client::{self, Client, Route};
    use kernels::gpu::nm_product::{self, NmWeight};
    use kernels::gpu::select::{self, Layer};
    use kernels::gpu::{check, nm};
    use kernels::{BitMask, Stored, Ties};

    use super::{Accelerator, Place};
    use crate::check::Outcome;
    use crate::contest::{Contestant, contestant};
    use crate::products::{self, Tally};

    /// A GPU that answered.
    pub struct Gpu {
        route: Route,
        client: Client,
        device: Device,
    }

    impl Gpu {
        /// The first GPU of a route; one line where there is none.
        pub fn open(place: Place) -> Result<Self> {
            let route = match place {
                Place::Flex => bail!("the CPU is no GPU"),
                Place::Wgpu => Route::Wgpu,
                Place::Cuda => Route::Cuda,
            };
            let client = route
                .client()
                .map_err(|why| anyhow!("no {} device: {why}", place.name()))?;
            let device = burn_device(route)
                .ok_or_else(|| anyhow!("no {} device that Burn can use", place.name()))?;
            Ok(Self {
                route,
                client,
                device,
            })
        }

        /// For the result.
        pub fn facts(&self) -> Accelerator {
            let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
            let compiler = match self.route {
                Route::Cuda => "CUDA C++ through NVRTC",
                Route::Wgpu if cfg!(feature = "vulkan") => "SPIR-V by CubeCL",
                Route::Wgpu => "WGSL through wgpu",
            };
            Accelerator {
                route: self.route.name().to_owned(),
                device: client::describe(&self.client),
                driver: driver.and_then(|text| Some(text.lines().next()?.trim().to_owned())),
                compiler: compiler.to_owned(),
            }
        }

        /// Burn's.
        pub fn device(&self) -> Device {
            self.device.clone()
        }

        /// Returns when the device has done everything.
        pub fn waiter(&self) -> Box<dyn Fn()> {
            let (device, client) = (self.device.clone(), self.client.clone());
            Box::new(move || {
                device.sync().expect("the device still answers");
                client::wait(&client).expect("the device still answers");
            })
        }

        /// Whether Burn multiplies bf16 here.
        pub fn has_bf16(&self) -> bool {
            self.route == Route::Cuda
        }

        /// Packed weights' products: `[positions, rows, cols]`, a mask for each sparsity; 2:4 takes its own mask.
        pub fn packed_linear(
            &self,
            [positions, rows, cols]: [usize; 3],
            sets: usize,
            masks: &[(u32, BitMask)],
        ) -> Result<Vec<Contestant>> {
            let w = values(rows * cols);
            let x: Result<Vec<Buffer>, _> = (0..sets)
                .map(|_| Buffer::of_f32(&self.client, &values(positions * cols)))
                .collect();
            let x = x?;
            let mut contestants = Vec::new();
            for (sparsity, mask) in masks {
                let (client, x) = (self.client.clone(), x.clone());
                let weight = BitmapTiles::from_dense(&w, mask)?.upload(&client)?;
                let call = move |index: usize| {
                    let y = bitmap::linear(&client, &x[index], positions, &weight, None);
                    drop(black_box(y.expect("sizes agree")));
                };
                contestants.push(Contestant {
                    sparsity: *sparsity,
                    ..contestant("bitmap", call)
                });
            }
            if cols % 4 == 0 {
                let mask = two_of_four(&w, [rows, cols])?;
                let packed = Nm::from_dense(&w, &mask, [2, 4], ColOrder::Oihw)?;
                let weight = NmWeight::upload(&self.client, &packed)?;
                let client = self.client.clone();
                let call = move |index: usize| {
                    let y = nm_product::linear(&client, &x[index], positions, &weight, None);
                    drop(black_box(y.expect("sizes agree")));
                };
                contestants.push(Contestant {
                    sparsity: 50,
                    ..contestant("nm24", call)
                });
            }
            #[cfg(feature = "cuda")]
            contestants.extend(self.tensor_cores([positions, rows, cols], sets, &w, masks)?);
            Ok(contestants)
        }

        /// The tensor-core products of bf16 operands that this device and these sizes can have: the masked and the 2:4 one
        /// at 50 %, the bitmap's at every sparsity.
        #[cfg(feature = "cuda")]
        fn tensor_cores(
            &self,
            [positions, rows, cols]: [usize; 3],
            sets: usize,
            w: &[f32],
            masks: &[(u32, BitMask)],
        ) -> Result<Vec<Contestant>> {
            use kernels::gpu::cuda::launch::{Route, applies};
            use kernels::gpu::cuda::weight::{Weight, upload_operand};
            use kernels::gpu::cuda::{Activations, Operand};

            let operand = Operand::Bf16;
            let points = u32::try_from(positions)?;
            let x: Vec<_> = (0..sets)
                .map(|_| upload_operand(&self.client, operand, &values(positions * cols)))
                .collect();
            let half = masks.iter().filter(|(sparsity, _)| *sparsity == 50);
            let mut entries: Vec<(&str, Route, u32, BitMask)> = Vec::new();
            for (sparsity, mask) in half {
                for (name, route) in [
                    ("masked_bf16", Route::Masked),
                    ("masked_bf16_warpgroup", Route::MaskedWarpgroup),
                ] {
                    entries.push((name, route, *sparsity, mask.clone()));
                }
            }
            if cols % 4 == 0 {
                let mask = two_of_four(w, [rows, cols])?;
                for (name, route) in [
                    ("sparse24_bf16", Route::Sparse24),
                    ("sparse24_bf16_warpgroup", Route::Sparse24Warpgroup),
                ] {
                    entries.push((name, route, 50, mask.clone()));
                }
            }
            for (sparsity, mask) in masks {
                entries.push(("bitmap_bf16", Route::Bitmap, *sparsity, mask.clone()));
            }
            let mut contestants = Vec::new();
            for (name, route, sparsity, mask) in entries {
                let weight = Weight::upload(&self.client, route, operand, w, &mask)?;
                let product = weight.product(points, 1, Activations::Tokens);
                if let Err(why) = applies(route, self.client.properties(), &product) {
                    eprintln!("{name}: {why}");
                    continue;
                }
                let (client, x) = (self.client.clone(), x.clone());
                let call = move |index: usize| {
                    let y = weight.multiply(&client, &x[index], points, 1, Activations::Tokens);
                    drop(black_box(y.expect("the product applies")));
                };
                contestants.push(Contestant {
                    sparsity,
                    ..contestant(name, call)
                });
            }
            Ok(contestants)
        }

        /// The exact selection, its mask left on the device.
        pub fn select(&self, scores: Vec<Vec<f32>>, k: u64) -> Result<Contestant> {
            let client = self.client.clone();
            let layers: Result<Vec<Layer>, _> = scores
                .iter()
                .map(|scores| {
                    Ok::<_, kernels::KernelError>(Layer {
                        scores: Buffer::of_f32(&client, scores)?,
                        shape: [1, scores.len()],
                    })
                })
                .collect();
            let layers = layers?;
            Ok(contestant("ours", move |index| {
                let layer = std::slice::from_ref(&layers[index]);
                let ties = Ties::KeepLowestIndex;
                let words = select::select_smallest(&client, layer, false, k, ties);
                drop(black_box(words.expect("scores are finite")));
            }))
        }

        /// The N:M mask, left on the device.
        pub fn nm_mask(
            &self,
            scores: Vec<Vec<f32>>,
            shape: [usize; 2],
            [n, m]: [usize; 2],
        ) -> Result<Contestant> {
            let client = self.client.clone();
            let scores: Result<Vec<Buffer>, _> = scores
                .iter()
                .map(|scores| Buffer::of_f32(&client, scores))
                .collect();
            let scores = scores?;
            Ok(contestant("ours", move |index| {
                let words = nm::nm_mask(&client, &scores[index], &shape, n, m, false);
                drop(black_box(words.expect("scores are finite")));
            }))
        }

        /// Runs the test list, telling of each test as it ends.
        pub fn check(&self, tell: &mut dyn FnMut(&Outcome)) -> Vec<Outcome> {
            let mut outcomes = Vec::new();
            let mut run = |name: &str, test: &mut dyn FnMut() -> Result<(usize, f64), String>| {
                let start = Instant::now();
                // Burn's way to say that a device is lost or a kernel does not compile is a panic.
                let result = panic::catch_unwind(AssertUnwindSafe(test))
                    .unwrap_or_else(|_| Err("it panicked; see above".into()));
                let &(compared, worst) = result.as_ref().unwrap_or(&(0, 0.0));
                let outcome = Outcome {
                    test: name.to_owned(),
                    compared,
                    worst,
                    seconds: start.elapsed().as_secs_f64(),
                    failure: result.err(),
                };
                tell(&outcome);
                outcomes.push(outcome);
            };
            for (name, test) in check::tests(&self.client) {
                run(name, &mut || {
                    let passed = check::run(&self.client, test)?;
                    Ok((passed.cases, passed.worst))
                });
            }
            let through_burn: [(&str, fn(&Device) -> Result<Tally>); 2] = [
                ("masked convolutions", products::convolutions),
                ("masked linear layers", products::linear_layers),
            ];
            for (name, test) in through_burn {
                run(name, &mut || {
                    let tally = test(&self.device).map_err(|error| format!("{error:#}"))?;
                    Ok((tally.compared, tally.worst))
                });
            }
            outcomes
        }
    }

    /// Numbers in [-0.5, 0.5) without a pattern that matters.
    fn values(len: usize) -> Vec<f32> {
        (0..len)
            .map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 * 2f32.powi(-24) - 0.5)
            .collect()
    }

    /// The two of every four weights that are largest.
    fn two_of_four(w: &[f32], shape: [usize; 2]) -> Result<BitMask> {
        let scores = Stored {
            values: w,
            magnitude: true,
            divisor: 1.0,
        };
        Ok(kernels::nm_mask(&scores, &shape, 2, 4)?)
    }

    fn burn_device(route: Route) -> Option<Device> {
        let kinds = match route {
            Route::Cuda => return Some(cuda_device()),
            Route::Wgpu => [
                DeviceKind::DiscreteGpu(0),
                DeviceKind::IntegratedGpu(0),
                DeviceKind::VirtualGpu(0),
                DeviceKind::Cpu,
            ],
        };
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        // Burn panics where an adapter of the kind is missing.
        let found = kinds.into_iter().find_map(|kind| {
            std::panic::catch_unwind(|| {
                let device = wgpu_device(kind);
                device.sync().ok().map(|()| device)
            })
            .ok()
            .flatten()
        });
        std::panic::set_hook(hook);
        found
    }

    #[cfg(feature = "wgpu")]
    fn wgpu_device(kind: DeviceKind) -> Device {
        Device::wgpu(kind)
    }

    #[cfg(not(feature = "wgpu"))]
    fn wgpu_device(_: DeviceKind) -> Device {
        unreachable!("the route was refused before")
    }

    #[cfg(feature = "cuda")]
    fn cuda_device() -> Device {
        Device::cuda(0)
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_device() -> Device {
        unreachable!("the route was refused before")
    }
}
