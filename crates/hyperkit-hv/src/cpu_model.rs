//! What a guest is told about its processor, the same on every engine.

/// The host's time-stamp counter, which the guest sees with an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tsc {
    /// Ticks per millisecond.
    pub khz: u32,
}

impl Tsc {
    /// Measures the host's counter against its monotonic clock, for about 20 ms, once per process.
    pub fn of_host() -> Tsc {
        static TSC: std::sync::OnceLock<Tsc> = std::sync::OnceLock::new();
        *TSC.get_or_init(measure)
    }
}

/// What the guest's CPUID says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuModel {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Frequency of the guest's time-stamp counter.
    pub tsc: Tsc,
}

#[cfg(target_arch = "x86_64")]
fn measure() -> Tsc {
    let read = || {
        // SAFETY: RDTSC exists on every x86-64 and user code may execute it on the hosts that we support.
        let ticks = unsafe { std::arch::x86_64::_rdtsc() };
        (std::time::Instant::now(), ticks)
    };
    let (began, first) = read();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let (ended, last) = read();
    let micros = ended.duration_since(began).as_nanos() as f64 / 1e3;
    Tsc { khz: (last.wrapping_sub(first) as f64 * 1e3 / micros) as u32 }
}

#[cfg(not(target_arch = "x86_64"))]
fn measure() -> Tsc {
    Tsc { khz: 1_000_000 } // nanoseconds since start stand in for the counter
}
