//! What a GPU needs besides itself, whether it is there, and what its absence costs: driver, compiler, headers, loader.

use std::path::{Path, PathBuf};

use model_zoo::file;

/// Lines of name and finding.
pub fn lines() -> Vec<(String, String)> {
    let needs = [
        ("NVIDIA driver", driver(), "no --device cuda"),
        (
            "NVRTC",
            library("libnvrtc.so"),
            "--device cuda cannot compile its kernels; install it from the CUDA toolkit, or add its folder to LD_LIBRARY_PATH",
        ),
        (
            "CUDA headers",
            headers(),
            "--device cuda cannot compile its kernels; set CUDA_PATH to the toolkit, whose include folder has cuda_fp16.h",
        ),
        (
            "Vulkan loader",
            library("libvulkan.so"),
            "no --device wgpu; install it (Debian: libvulkan1)",
        ),
        (
            "Vulkan drivers",
            vulkan_drivers(),
            "no --device wgpu; install the GPU's driver, or mesa-vulkan-drivers for a software adapter",
        ),
    ];
    let mut lines: Vec<(String, String)> = needs
        .into_iter()
        .map(|(name, found, cost)| {
            let finding = found.unwrap_or_else(|| format!("not found: {cost}"));
            (name.to_owned(), finding)
        })
        .collect();
    for (name, built, cost) in [
        (
            "feature cuda",
            cfg!(feature = "cuda"),
            "NVIDIA's tensor cores are not used; build with `--features cuda`",
        ),
        (
            "feature wgpu",
            cfg!(feature = "wgpu"),
            "other vendors' GPUs cannot be used; build with `--features wgpu`",
        ),
        (
            "feature autotune",
            cfg!(feature = "autotune"),
            "Burn's own products on a GPU are not tuned; build with `--features autotune`",
        ),
    ] {
        let finding = if built {
            "built in".to_owned()
        } else {
            format!("not built in: {cost}")
        };
        lines.push((name.to_owned(), finding));
    }
    lines.extend(adapters());
    lines
}

/// The devices as the kernels see them.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn adapters() -> Vec<(String, String)> {
    use kernels::gpu::client::{Route, describe};
    let routes = [
        (Route::Cuda, cfg!(feature = "cuda")),
        (Route::Wgpu, cfg!(feature = "wgpu")),
    ];
    let built = routes.into_iter().filter(|&(_, built)| built);
    built
        .map(|(route, _)| {
            let finding = match route.client() {
                Ok(client) => describe(&client),
                Err(why) => why,
            };
            (format!("adapter {}", route.name()), finding)
        })
        .collect()
}

#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
fn adapters() -> Vec<(String, String)> {
    Vec::new()
}

fn driver() -> Option<String> {
    let text = file::read_text(Path::new("/proc/driver/nvidia/version"), 1 << 16).ok()?;
    Some(text.lines().next()?.trim().to_owned())
}

/// The first folder with the toolkit's headers, in the order in which the CUDA route looks.
fn headers() -> Option<String> {
    let asked = std::env::var_os("CUDA_PATH").map(PathBuf::from);
    let folders = match asked {
        Some(folder) => vec![folder],
        None => vec!["/usr/local/cuda".into(), "/opt/cuda".into()],
    };
    let has_headers = |folder: &PathBuf| folder.join("include/cuda_fp16.h").is_file();
    let found = folders.into_iter().find(has_headers)?;
    Some(found.join("include").display().to_string())
}

/// A shared library's file, in the folders that the system's loader and a toolkit use.
fn library(name: &str) -> Option<String> {
    let listed = |variable: &str| {
        let value = std::env::var_os(variable).unwrap_or_default();
        std::env::split_paths(&value).collect::<Vec<_>>()
    };
    let mut folders = listed("LD_LIBRARY_PATH");
    let toolkit = std::env::var_os("CUDA_PATH").map_or("/usr/local/cuda".into(), PathBuf::from);
    folders.extend(["lib64", "lib"].map(|sub| toolkit.join(sub)));
    let arch = std::env::consts::ARCH;
    for root in ["/usr/lib", "/lib", "/usr/local/lib"] {
        folders.push(format!("{root}/{arch}-linux-gnu").into());
        folders.push(root.into());
    }
    folders.push("/usr/lib64".into());
    let found = folders
        .iter()
        .find_map(|folder| first_named(folder, name))?;
    Some(found.display().to_string())
}

/// The first file of a folder, by name, that begins so.
fn first_named(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let named = paths.filter(|path| {
        let file = path.file_name().unwrap_or_default();
        file.to_string_lossy().starts_with(name)
    });
    named.min()
}

/// Names of the drivers that the loader would find.
fn vulkan_drivers() -> Option<String> {
    for variable in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
        if let Ok(files) = std::env::var(variable) {
            return Some(format!("{files} ({variable})"));
        }
    }
    let mut names = Vec::new();
    for folder in ["/etc/vulkan/icd.d", "/usr/share/vulkan/icd.d"] {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        let files = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.extend(files.filter(|file| file.ends_with(".json")));
    }
    names.sort();
    names.dedup();
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_says_what_it_costs() {
        for (name, finding) in lines() {
            let missing = finding
                .split_once("not found: ")
                .or(finding.split_once("not built in: "));
            assert!(!finding.is_empty(), "{name}");
            if let Some((_, cost)) = missing {
                assert!(!cost.is_empty(), "{name}");
            }
        }
        assert!(lines().iter().any(|(name, _)| name == "NVRTC"));
    }

    #[test]
    fn the_first_library_by_name_is_found() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libnvrtc.so.12", "libnvrtc.so", "other"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = first_named(folder.path(), "libnvrtc.so").unwrap();
        assert_eq!(found.file_name().unwrap(), "libnvrtc.so");
        assert_eq!(first_named(folder.path(), "libvulkan.so"), None);
    }
}
