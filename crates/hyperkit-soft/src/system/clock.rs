//! The guest's time-stamp counter and the paravirtual clock on top of it.
//!
//! The counter is the host's plus an offset, or follows what was executed ([`Source`]). The clock's page is written once,
//! when the guest asks for it: time is a fixed function of the counter. Spec: the Linux kernel's `Documentation/virt/kvm/x86/msr.rst`.

use std::sync::atomic::{AtomicU64, Ordering};

use hyperkit_hv::Tsc;

use crate::cpu::Cpu;
use crate::op::{Flow, Op};
use crate::system::operand::privileged;
use crate::system::{cr0, cr4};
use crate::trap::Trap;

/// The host's counter, at the rate that [`Tsc::of_host`] measures.
pub fn host_ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // Not read ahead of what comes before it, as RDTSC alone may be: guests order it by what LFENCE, RDTSCP or a lock
        // mean on the processor that we are for them, and find clocks that differ where it runs early.
        // SAFETY: every x86-64 has LFENCE and RDTSC, and the hosts that we run on let user code execute it.
        unsafe {
            std::arch::x86_64::_mm_lfence();
            std::arch::x86_64::_rdtsc()
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        START.get_or_init(std::time::Instant::now).elapsed().as_nanos() as u64
    }
}

/// Where the guest's counter comes from.
#[derive(Debug)]
pub enum Source {
    /// The host's counter: guest time is the host's.
    Host,
    /// A nanosecond for each instruction that the only processor has executed, and the host's time while it sleeps: for an
    /// engine so slow that a guest which goes by the host's clock would do nothing but serve its timer.
    Executed {
        /// Ticks that went by in sleep.
        slept: AtomicU64,
    },
}

impl Source {
    /// The second kind, of a processor that has not slept yet.
    pub fn executed() -> Source {
        Source::Executed { slept: AtomicU64::new(0) }
    }

    /// The counter before any offset, when the first processor has retired so many instructions.
    #[inline]
    pub fn ticks(&self, tsc: Tsc, retired: u64) -> u64 {
        match self {
            Source::Host => host_ticks(),
            Source::Executed { slept } => {
                let ran = u128::from(retired) * u128::from(tsc.khz) / 1_000_000;
                (ran as u64).wrapping_add(slept.load(Ordering::Relaxed))
            }
        }
    }

    /// Runs `sleep`, whose time counts.
    pub fn asleep(&self, sleep: impl FnOnce()) {
        match self {
            Source::Host => sleep(),
            Source::Executed { slept } => {
                let from = host_ticks();
                sleep();
                slept.fetch_add(host_ticks().wrapping_sub(from), Ordering::Relaxed);
            }
        }
    }
}

/// Counter ticks as host time.
pub fn duration(ticks: u64, tsc: Tsc) -> std::time::Duration {
    std::time::Duration::from_nanos(nanos(ticks, tsc))
}

fn nanos(ticks: u64, tsc: Tsc) -> u64 {
    let nanos = u128::from(ticks) * 1_000_000 / u128::from(tsc.khz.max(1));
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

/// The factor and shift that make nanoseconds of ticks: `(ticks << shift) * factor >> 32`, a negative shift to the
/// right.
pub fn scale(tsc: Tsc) -> (u32, i8) {
    let mut shift = 0i8;
    let mut rate = u64::from(tsc.khz.max(1)) * 1000;
    while rate > 2_000_000_000 {
        rate >>= 1;
        shift -= 1;
    }
    while rate <= 1_000_000_000 {
        rate <<= 1;
        shift += 1;
    }
    // rate is in (1e9, 2e9] now, so the factor fits 32 bits; the shift is applied to the exact frequency.
    let hertz = u128::from(tsc.khz.max(1)) * 1000;
    let numerator = 1_000_000_000u128 << 32;
    let factor = if shift < 0 { (numerator << -shift) / hertz } else { numerator / (hertz << shift) };
    (factor.min(u128::from(u32::MAX)) as u32, shift)
}

/// pvclock flag: the clocks of all processors agree.
const TSC_STABLE: u8 = 1;

impl Cpu {
    /// The guest's time-stamp counter.
    #[inline]
    pub fn tsc(&self) -> u64 {
        self.interrupts.shared().ticks_at(self.retired).wrapping_add(self.msr.tsc_adjust)
    }

    /// Takes a write to the system time MSR: publishes the clock of this processor at the address in it.
    pub fn publish_clock(&mut self, value: u64) {
        self.msr.system_time = value;
        if value & 1 == 0 {
            return;
        }
        let (factor, shift) = scale(self.interrupts.shared().tsc());
        let mut page = [0; 32];
        page[0..4].copy_from_slice(&2u32.to_le_bytes()); // version: even, complete
        page[8..16].copy_from_slice(&self.msr.tsc_adjust.to_le_bytes()); // the counter when time was 0
        page[24..28].copy_from_slice(&factor.to_le_bytes());
        page[28] = shift as u8;
        page[29] = TSC_STABLE;
        self.write_physical(value & !1, &page);
    }

    /// Takes a write to the wall clock MSR: stores when the system time was 0, as Unix time.
    pub fn publish_wall_clock(&mut self, at: u64) {
        self.msr.wall_clock = at;
        let up = std::time::Duration::from_nanos(nanos(self.tsc(), self.interrupts.shared().tsc()));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let began = now.saturating_sub(up);
        let mut bytes = [0; 12];
        bytes[0..4].copy_from_slice(&2u32.to_le_bytes());
        bytes[4..8].copy_from_slice(&(began.as_secs() as u32).to_le_bytes());
        bytes[8..12].copy_from_slice(&began.subsec_nanos().to_le_bytes());
        self.write_physical(at, &bytes);
    }

    /// Writes RAM as a device does; what is not RAM is left alone.
    fn write_physical(&mut self, at: u64, bytes: &[u8]) {
        let _outside = self.ram.write(hyperkit_mem::GuestAddr(at), bytes);
    }
}

fn put_ticks(cpu: &mut Cpu) -> Result<(), Trap> {
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 && cpu.cr0 & cr0::PE != 0 {
        return Err(cpu.protection(0));
    }
    let ticks = cpu.tsc();
    cpu.regs[0] = ticks & 0xffff_ffff;
    cpu.regs[2] = ticks >> 32;
    Ok(())
}

/// `rdtsc`
pub fn rdtsc(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    put_ticks(cpu)?;
    Ok(Flow::Next)
}

/// `rdtscp`
pub fn rdtscp(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    put_ticks(cpu)?;
    cpu.regs[1] = cpu.msr.tsc_aux & 0xffff_ffff;
    Ok(Flow::Next)
}

/// `rdpid`
pub fn rdpid(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    crate::system::operand::put(cpu, op, cpu.msr.tsc_aux & 0xffff_ffff)?;
    Ok(Flow::Next)
}

/// `rdpmc`: there are no counters.
pub fn rdpmc(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    privileged(cpu)?;
    Err(cpu.protection(0))
}
