//! The machine: what it is called, what it can do, how fast it multiplies and adds at best.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::gpu::Accelerator;

/// Goes into every result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// `avx512`, `avx2` or `portable`: the widest path the peak was measured on.
    pub isa: String,
    /// Whether bf16 tiles exist.
    pub amx: bool,
    /// Processors that this program may use.
    pub cores: usize,
    /// Threads of the run.
    pub threads: usize,
    /// Measured f32 multiply-adds of all threads, in GFLOP/s.
    pub peak_gflops: f64,
    /// Second-level cache of one core, in bytes.
    pub l2_bytes: usize,
    /// The GPU that the products ran on, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
}

impl Machine {
    /// Looks around and measures the peak on the current pool, for about 0.2 s.
    pub fn probe() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = info.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let isa = Isa::detect();
        Self {
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            isa: isa.name().to_owned(),
            amx: field("flags").is_some_and(|flags| flags.split(' ').any(|f| f == "amx_tile")),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            peak_gflops: peak(isa),
            l2_bytes: l2_bytes().unwrap_or(1 << 20),
            accelerator: None,
        }
    }

    /// With a GPU, whose peak is not measured and whose second-level cache is taken as 64 MiB, more than any has.
    pub fn with(self, accelerator: Accelerator) -> Self {
        Self {
            peak_gflops: 0.0,
            l2_bytes: 64 << 20,
            accelerator: Some(accelerator),
            ..self
        }
    }

    /// Machines of one class are worth comparing: architecture, path and threads.
    pub fn class(&self) -> String {
        if let Some(gpu) = &self.accelerator {
            return format!("{}-{}", std::env::consts::ARCH, gpu.route);
        }
        format!("{}-{}-{}t", std::env::consts::ARCH, self.isa, self.threads)
    }
}

/// Processor time: of this thread alone, or of the whole program.
#[derive(Debug, Clone, Copy)]
pub enum CpuClock {
    /// Exact; for rows of one thread.
    Thread,
    /// Other running threads' time is added at the scheduler's ticks only, so rows below ~10 ms are approximate.
    Process,
}

impl CpuClock {
    /// Seconds so far.
    pub fn seconds(self) -> f64 {
        let clock = match self {
            Self::Thread => libc::CLOCK_THREAD_CPUTIME_ID,
            Self::Process => libc::CLOCK_PROCESS_CPUTIME_ID,
        };
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `time` is a valid, exclusively borrowed timespec; both clocks exist on every system we build for.
        let status = unsafe { libc::clock_gettime(clock, &mut time) };
        assert_eq!(status, 0, "the system has no processor clock");
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    }
}

/// Tells how much of the machine others used since it was made.
pub struct Neighbours {
    start: Instant,
    own: f64,
    everyone: Option<f64>,
}

impl Neighbours {
    /// From now on.
    pub fn watch() -> Self {
        Self {
            start: Instant::now(),
            own: CpuClock::Process.seconds(),
            everyone: everyone(),
        }
    }

    /// Part of all processors' time that did not go to this program; 0 where the system does not tell, or before enough
    /// of its ticks of 10 ms have passed.
    pub fn share(&self) -> f64 {
        let (Some(before), Some(now)) = (self.everyone, everyone()) else {
            return 0.0;
        };
        let wall = self.start.elapsed().as_secs_f64();
        if wall < 0.1 {
            return 0.0;
        }
        let own = CpuClock::Process.seconds() - self.own;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        ((now - before - own) / (wall * cores as f64)).clamp(0.0, 1.0)
    }
}

/// Processor seconds that all programs, the system and the host have used since the start.
fn everyone() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks = text.lines().next()?.split_whitespace().skip(1);
    let ticks: Vec<f64> = ticks.map_while(|tick| tick.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let used = ticks.get(..8)?.iter().sum::<f64>() - ticks[3] - ticks[4];
    // SAFETY: asks for a constant of the system.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Some(used / per_second as f64)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Isa {
    Avx512,
    Avx2,
    Portable,
}

impl Isa {
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// Runs `rounds` multiply-adds on each lane of a register block; returns the flops done.
    fn burn(self, rounds: usize) -> f64 {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                // SAFETY: `detect` found avx512f.
                unsafe { x86::avx512(rounds) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                // SAFETY: `detect` found avx2 and fma.
                unsafe { x86::avx2(rounds) }
            }
            _ => portable(rounds),
        }
    }
}

/// Best of several bursts on all threads at once, per second of processor time: what others run meanwhile does not count.
fn peak(isa: Isa) -> f64 {
    let burst = || {
        let (start, used, mut flops) = (Instant::now(), CpuClock::Thread.seconds(), 0.0);
        while start.elapsed() < Duration::from_millis(20) {
            flops += isa.burn(10_000);
        }
        flops / (CpuClock::Thread.seconds() - used) / 1e9
    };
    (0..10)
        .map(|_| rayon::broadcast(|_| burst()).iter().sum())
        .fold(0.0, f64::max)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    // Twelve independent sums hide the latency of two multiply-adds a cycle.
    #[target_feature(enable = "avx512f")]
    pub fn avx512(rounds: usize) -> f64 {
        let (a, b) = (_mm512_set1_ps(1e-3), _mm512_set1_ps(0.999));
        let mut sums = [a; 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, b, a);
            }
        }
        std::hint::black_box(sums);
        (rounds * 12 * 16 * 2) as f64
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(rounds: usize) -> f64 {
        let (a, b) = (_mm256_set1_ps(1e-3), _mm256_set1_ps(0.999));
        let mut sums = [a; 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, b, a);
            }
        }
        std::hint::black_box(sums);
        (rounds * 12 * 8 * 2) as f64
    }
}

/// What the compiler makes of a plain loop on this architecture.
fn portable(rounds: usize) -> f64 {
    let mut sums = [[1e-3f32; 4]; 12];
    for _ in 0..rounds {
        for sum in sums.iter_mut().flatten() {
            *sum = *sum * 0.999 + 1e-3;
        }
    }
    std::hint::black_box(sums);
    (rounds * 12 * 4 * 2) as f64
}

fn l2_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size").ok()?;
    let kib: usize = text.trim().strip_suffix('K')?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_time_does_not_count_sleep() {
        let before = CpuClock::Thread.seconds();
        std::thread::sleep(Duration::from_millis(30));
        assert!(CpuClock::Thread.seconds() - before < 0.02);
    }

    #[test]
    fn the_probe_counts_what_it_did() {
        assert_eq!(portable(10), 960.0);
        let isa = Isa::detect();
        assert!(isa.burn(10) >= 960.0, "{isa:?}");
    }
}
