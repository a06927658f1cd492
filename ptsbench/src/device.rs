//! The device that computes: chosen by name, probed before it is touched.
//!
//! Burn's CUDA device panics on first use where there is no driver, so the driver's library is looked for first. Nothing
//! falls back silently: `auto` says what it took and why. What a GPU cannot go on from, a full memory or a lost device,
//! reaches Burn's callers as a panic; [`Chosen::guard`] makes one line of it.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Device;
#[cfg(feature = "cuda")]
use burn::tensor::Tensor;

/// What `--device` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Choice {
    /// CUDA if there is a driver, then a real GPU, then the CPU.
    #[default]
    Auto,
    /// The CPU.
    Flex,
    /// Any GPU through WebGPU.
    Wgpu,
    /// NVIDIA.
    Cuda,
}

/// A device, what it is called in records, and why it was taken.
#[derive(Clone)]
pub struct Chosen {
    /// The device.
    pub device: Device,
    /// `flex`, `wgpu` or `cuda`.
    pub name: &'static str,
    /// Why it was taken.
    pub why: String,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}: {}", self.name, self.why)
    }
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The program was built without it.
    #[error(
        "this program was built without {name}; build it with `--features {feature}`, or use `--device flex`"
    )]
    NotBuilt {
        /// The device.
        name: &'static str,
        /// The cargo feature.
        feature: &'static str,
    },
    /// The machine does not offer it.
    #[error(
        "no {name} device: {reason}; `ptsbench doctor` shows what there is, `--device flex` uses the CPU"
    )]
    Missing {
        /// The device.
        name: &'static str,
        /// What is not there.
        reason: String,
    },
    /// Its memory does not hold what a measurement needs.
    #[error(
        "{name} ran out of memory ({reason}); use a smaller batch (`--set calibration.batch=...`) or `--device flex`"
    )]
    OutOfMemory {
        /// The device.
        name: &'static str,
        /// What it said.
        reason: String,
    },
    /// It stopped answering, or refused a kernel.
    #[error("{name} failed ({reason}); finished cells are kept: run again, or use `--device flex`")]
    Lost {
        /// The device.
        name: &'static str,
        /// What it said.
        reason: String,
    },
}

/// The device that `choice` names.
pub fn choose(choice: Choice) -> Result<Chosen, DeviceError> {
    match choice {
        Choice::Flex => Ok(flex("asked for".to_owned())),
        Choice::Cuda => cuda().map(|found| found.because("asked for")),
        Choice::Wgpu => wgpu(Adapters::Any).map(|found| found.because("asked for")),
        Choice::Auto => {
            let no_cuda = match cuda() {
                Ok(found) => return Ok(found),
                Err(error) => short(&error),
            };
            let no_gpu = match wgpu(Adapters::Hardware) {
                Ok(found) => return Ok(found),
                Err(error) => short(&error),
            };
            Ok(flex(format!(
                "CUDA {no_cuda}; wgpu {no_gpu}; so the CPU, {} threads",
                rayon::current_num_threads()
            )))
        }
    }
}

/// What the machine and the program offer, line by line, for `ptsbench doctor`.
pub fn describe() -> Vec<(String, String)> {
    let line = |name: &str, result: Result<Chosen, DeviceError>| {
        let text = match result {
            Ok(found) => found.why,
            Err(error) => short(&error),
        };
        (name.to_owned(), text)
    };
    vec![
        line("device cuda", cuda()),
        line("device wgpu", wgpu(Adapters::Any)),
        line("device flex", Ok(flex("the CPU, always there".to_owned()))),
    ]
}

impl Chosen {
    /// Runs `work`; on a GPU, its panics become errors. The CPU's are bugs, and stay what they are.
    pub fn guard<T>(&self, work: impl FnOnce() -> T) -> Result<T, DeviceError> {
        if self.name == "flex" {
            return Ok(work());
        }
        caught(work).map_err(|text| self.failure(&text))
    }

    fn failure(&self, text: &str) -> DeviceError {
        let lower = text.to_lowercase();
        let full = [
            "out of memory",
            "outofmemory",
            "buffertoobig",
            "too large",
            "alloc",
        ];
        let (name, reason) = (self.name, one_line(text));
        if full.iter().any(|word| lower.contains(word)) {
            DeviceError::OutOfMemory { name, reason }
        } else {
            DeviceError::Lost { name, reason }
        }
    }

    fn because(mut self, reason: &str) -> Self {
        self.why = format!("{reason}; {}", self.why);
        self
    }
}

/// What `work` gives, or the text of the first panic: threads of the device may panic as well, and the first says why.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let first = Arc::new(Mutex::new(None));
    let told = Arc::clone(&first);
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let text = info
            .payload()
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| info.payload().downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        let mut first = told.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| text.to_owned());
    }));
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    panic::set_hook(before);
    result.map_err(|_| {
        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
        first.take().unwrap_or_default()
    })
}

/// The beginning of what a device said, without line breaks.
fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

fn short(error: &DeviceError) -> String {
    match error {
        DeviceError::NotBuilt { .. } => "is not built in".to_owned(),
        DeviceError::Missing { reason, .. }
        | DeviceError::OutOfMemory { reason, .. }
        | DeviceError::Lost { reason, .. } => reason.clone(),
    }
}

fn flex(why: String) -> Chosen {
    Chosen {
        device: Device::flex(),
        name: "flex",
        why,
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Chosen, DeviceError> {
    Err(DeviceError::NotBuilt {
        name: "CUDA",
        feature: "cuda",
    })
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Chosen, DeviceError> {
    let missing = |reason: String| DeviceError::Missing {
        name: "CUDA",
        reason,
    };
    // The driver's module makes this file; without it no driver can answer, whatever libraries lie around.
    let version =
        model_zoo::file::read_text(std::path::Path::new("/proc/driver/nvidia/version"), 1 << 16)
            .map_err(|_| missing("has no NVIDIA driver on this machine".to_owned()))?;
    if Device::enumerate(burn::tensor::DeviceType::Cuda)
        .into_vec()
        .is_empty()
    {
        return Err(missing("finds a driver but no device".to_owned()));
    }
    let line = version.lines().next().unwrap_or_default().trim().to_owned();
    let device = Device::cuda(0);
    // A kernel is compiled on this machine: without NVRTC, the toolkit's headers or a driver as new as they are, the first
    // one fails.
    let sum = caught(|| {
        let ones = Tensor::<1>::ones([4], &device);
        (ones.clone() + ones).into_data().iter::<f32>().sum::<f32>()
    });
    match sum {
        Ok(sum) if sum == 8.0 => Ok(Chosen {
            device,
            name: "cuda",
            why: line,
        }),
        Ok(sum) => Err(missing(format!(
            "finds {line}, but it adds eight ones to {sum}"
        ))),
        Err(text) => Err(missing(format!(
            "finds {line}, but cannot run a kernel ({}); it needs NVRTC, the toolkit's headers (CUDA_PATH) and a driver no older than they are",
            one_line(&text)
        ))),
    }
}

/// Which adapters may serve.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Adapters {
    /// Real GPUs: a software adapter is slower than Flex.
    Hardware,
    /// Software too, where the build's shaders are right on it.
    Any,
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(_: Adapters) -> Result<Chosen, DeviceError> {
    Err(DeviceError::NotBuilt {
        name: "wgpu",
        feature: "wgpu",
    })
}

#[cfg(feature = "wgpu")]
fn wgpu(adapters: Adapters) -> Result<Chosen, DeviceError> {
    use burn::tensor::DeviceKind;
    let mut kinds = vec![
        (DeviceKind::DiscreteGpu(0), "a discrete GPU"),
        (DeviceKind::IntegratedGpu(0), "an integrated GPU"),
        (DeviceKind::VirtualGpu(0), "a virtual GPU"),
    ];
    // Software adapters crash or compute wrong numbers on the SPIR-V that a Vulkan build gives them.
    if adapters == Adapters::Any && !cfg!(feature = "vulkan") {
        kinds.push((
            DeviceKind::Cpu,
            "a software adapter, slower than --device flex",
        ));
    }
    for (kind, what) in kinds {
        // The adapter is asked for on first use, and Burn panics where it is missing.
        let found = caught(|| {
            let device = Device::wgpu(kind);
            let name = device.identity().map(|identity| identity.name);
            device.sync().map(|()| (device, name))
        });
        if let Ok(Ok((device, name))) = found {
            let name = name.unwrap_or_else(|| "without a name".to_owned());
            return Ok(Chosen {
                device,
                name: "wgpu",
                why: format!("{what}: {name}"),
            });
        }
    }
    let reason = match adapters {
        _ if cfg!(feature = "vulkan") => {
            "finds no GPU adapter, and a build with the feature `vulkan` refuses software adapters, which get its shaders wrong"
        }
        Adapters::Hardware => "finds no GPU adapter",
        Adapters::Any => "finds no adapter, neither a GPU nor a software one",
    };
    Err(DeviceError::Missing {
        name: "wgpu",
        reason: reason.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_says_what_it_took_and_why() {
        let chosen = choose(Choice::Auto).expect("the CPU is always there");
        let text = chosen.to_string();
        assert!(text.starts_with("device "), "{text}");
        assert!(text.len() > "device flex: ".len(), "{text}");
        assert_eq!(choose(Choice::Flex).unwrap().name, "flex");
    }

    #[test]
    fn what_a_gpu_cannot_go_on_from_becomes_one_line() {
        let gpu = Chosen {
            name: "wgpu",
            ..flex(String::new())
        };
        assert_eq!(gpu.guard(|| 3), Ok(3));
        let failed = |text: &'static str| {
            let error = gpu.guard(|| panic!("{text}")).unwrap_err();
            let text = error.to_string();
            assert_eq!(text.lines().count(), 1, "{text}");
            error
        };
        let full = failed("Buffer of 17 GB:\nOutOfMemory");
        assert!(matches!(full, DeviceError::OutOfMemory { .. }), "{full}");
        assert!(full.to_string().contains("17 GB: OutOfMemory"), "{full}");
        let lost = failed("the parent device is lost");
        assert!(matches!(lost, DeviceError::Lost { .. }), "{lost}");
        assert!(lost.to_string().contains("--device flex"), "{lost}");
    }

    #[cfg(not(feature = "wgpu"))]
    #[test]
    fn a_gpu_that_is_not_built_in_is_no_silent_cpu() {
        let error = choose(Choice::Wgpu).map(drop).unwrap_err().to_string();
        assert!(error.contains("--features wgpu"), "{error}");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_is_not_built_in_says_how_to_get_it() {
        let Err(error) = choose(Choice::Cuda) else {
            panic!("built without CUDA")
        };
        assert!(error.to_string().contains("--features cuda"), "{error}");
    }
}
