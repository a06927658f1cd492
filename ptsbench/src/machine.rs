//! The machine that this runs on, for records and `ptsbench doctor`.

use std::path::Path;

use model_zoo::file;

/// The processor's name, where the system tells, and the instruction sets that decide how fast the CPU path is.
pub fn processor() -> String {
    let cpuinfo = file::read_text(Path::new("/proc/cpuinfo"), 1 << 24).unwrap_or_default();
    let name = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unnamed", |(_, name)| name.trim());
    format!("{name} ({})", instruction_sets())
}

fn instruction_sets() -> String {
    #[cfg(target_arch = "x86_64")]
    let sets = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        (
            "avx512vnni",
            std::arch::is_x86_feature_detected!("avx512vnni"),
        ),
    ];
    #[cfg(target_arch = "aarch64")]
    let sets = [("neon", std::arch::is_aarch64_feature_detected!("neon"))];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let sets: [(&str, bool); 0] = [];
    match present(&sets) {
        none if none.is_empty() => "no vector instructions known here".into(),
        some => some,
    }
}

/// The names of what is there, with commas.
pub fn present(flags: &[(&str, bool)]) -> String {
    let present: Vec<&str> = flags
        .iter()
        .filter(|(_, present)| *present)
        .map(|(name, _)| *name)
        .collect();
    present.join(", ")
}
