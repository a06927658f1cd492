//! The machine that this runs on, for records, `ptsbench doctor` and the memory budget.

use std::path::{Path, PathBuf};

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

/// Bytes of memory that this process may use, where the system tells: the machine's, or less where a control group (a
/// container, a batch system's job) has a limit.
pub fn memory() -> Option<u64> {
    memory_below(Path::new("/"))
}

fn memory_below(root: &Path) -> Option<u64> {
    let read = |path: PathBuf| file::read_text(&path, 1 << 20).ok();
    let machine = read(root.join("proc/meminfo"))?
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok())?
        .saturating_mul(1024);
    let groups = read(root.join("proc/self/cgroup")).unwrap_or_default();
    // Lines are `number:controllers:path`; version 2 names no controllers. A limit of any group above holds as well.
    let limits = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let (folder, name) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            _ => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        };
        let counts = controllers.is_empty() || controllers.split(',').any(|c| c == "memory");
        let above = Path::new(path.trim_start_matches('/')).ancestors();
        let files: Vec<PathBuf> = above
            .filter(|_| counts)
            .map(|group| root.join(folder).join(group).join(name))
            .collect();
        files
    });
    // "max" is none.
    let limits = limits.filter_map(|file| read(file)?.trim().parse::<u64>().ok());
    Some(limits.fold(machine, u64::min))
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn memory_is_the_machines_or_the_least_that_a_group_leaves() {
        let machine = |files: &[(&str, &str)]| {
            let root = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            memory_below(root.path())
        };
        let total = ("proc/meminfo", "MemFree: 5 kB\nMemTotal:       1000 kB\n");
        assert_eq!(machine(&[]), None);
        assert_eq!(machine(&[total]), Some(1_024_000));
        let (mine, of) = (("proc/self/cgroup", "0::/jobs/7\n"), "sys/fs/cgroup/");
        let (job, jobs) = (
            format!("{of}jobs/7/memory.max"),
            format!("{of}jobs/memory.max"),
        );
        let unlimited = (job.as_str(), "max\n");
        assert_eq!(machine(&[total, mine, unlimited]), Some(1_024_000));
        assert_eq!(machine(&[total, mine, (&job, "300\n")]), Some(300));
        assert_eq!(
            machine(&[total, mine, unlimited, (&jobs, "200\n")]),
            Some(200)
        );
        let older = (
            "proc/self/cgroup",
            "5:cpu:/elsewhere\n4:memory,hugetlb:/jobs\n",
        );
        let limit = ("sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "100\n");
        let other = (
            "sys/fs/cgroup/memory/elsewhere/memory.limit_in_bytes",
            "50\n",
        );
        assert_eq!(machine(&[total, older, limit, other]), Some(100));
        assert!(memory().is_none_or(|bytes| bytes > 1 << 20));
    }
}
