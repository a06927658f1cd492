//! From a kernel to the CUDA text that NVRTC would get on a device.

use std::sync::Arc;

use crate::catalog::Entry;
use cubecl::Compiler;
use cubecl::ir::features::Features;
use cubecl::ir::{
    ContiguousElements, DeviceIdentity, DeviceProperties, HardwareProperties,
    MemoryDeviceProperties, MmaProperties, TargetProperties, VectorSize,
};
use cubecl::prelude::*;
use cubecl_cpp::cuda::mma::manual::contiguous_elements_cuda;
use cubecl_cpp::shared::{CompilationOptions, CppCompiler, CppSupportedFeatures};
use cubecl_cpp::target::Cuda;

/// A kernel as CUDA text.
pub struct Text {
    /// The program.
    pub source: String,
    /// Bytes of shared memory that its launch asks for.
    pub shared: usize,
}

/// What the runtime says of a device of compute capability 9.0, as far as kernels ask.
pub fn device() -> (Arc<DeviceProperties>, Arc<TargetProperties>) {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 1024,
        max_shared_memory_size: 227 * 1024,
        max_cube_count: (i32::MAX as u32, 65535, 65535),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(132),
        num_cpu_cores: None,
        last_level_cache_size: None,
        num_tensor_cores: Some(4),
        min_tensor_cores_dim: Some(8),
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    let mut properties = DeviceProperties::new(
        Features::default(),
        MemoryDeviceProperties::new(1 << 35, 512),
        hardware,
        cubecl::profile::TimingMethod::Device,
        DeviceIdentity {
            name: "lowering".into(),
            fingerprint: "ptx_sm90".into(),
            physical: None,
        },
    );
    cubecl_cpp::register_supported_types(&mut properties);
    let target = TargetProperties {
        mma: MmaProperties {
            register_size_bits: 32,
            const_plane_size: 32,
            register_layout_a: cmma::MatrixLayout::RowMajor,
            register_layout_b: cmma::MatrixLayout::ColMajor,
            register_layout_acc: cmma::MatrixLayout::RowMajor,
            register_duplication_a: 1,
            register_duplication_b: 1,
            register_duplication_acc: 1,
            contiguous_elements: ContiguousElements::new(contiguous_elements_cuda),
        },
    };
    (Arc::new(properties), Arc::new(target))
}

/// The text of a kernel, or the compiler's complaint.
pub fn lower(entry: &Entry) -> Result<Text, String> {
    let complaint = |error: String| format!("{}: {error}", entry.name);
    let definition = cubecl::define_kernel(&*entry.kernel);
    let mut definition = definition.map_err(|error| complaint(error.to_string()))?;
    // As the launchers launch; bound checks cost registers.
    definition.settings.execution_mode = if entry.checked {
        ExecutionMode::Checked
    } else {
        ExecutionMode::Unchecked
    };
    let options = CompilationOptions {
        supports_features: CppSupportedFeatures {
            grid_constants: true,
            clusters: true,
            fast_math: true,
            elect_sync: true,
            dp4a: true,
            ..Default::default()
        },
        ..Default::default()
    };
    let compiled = Compiler::compile(&mut CppCompiler::<Cuda>::default(), definition, &options)
        .map_err(|error| complaint(error.to_string()))?;
    Ok(Text {
        source: compiled.source,
        shared: compiled.shared_memory_size,
    })
}
