//! Operands of integer instructions: widths, registers, addresses, and read-modify-write of memory.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst};

use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::mem::Width;
use crate::op::{FLAT, Flow, Op, ZERO};
use crate::trap::Trap;

/// What a handler returns.
pub type Done = Result<Flow, Trap>;

/// The op is done, the next one follows.
pub const NEXT: Done = Ok(Flow::Next);

/// The op has set [`Cpu::rip`].
pub const LEAVE: Done = Ok(Flow::Leave);

/// An operand width of integer instructions: `u8`, `u16`, `u32` or `u64`.
pub trait Int: Width + Eq + Ord + std::fmt::Debug {
    /// Width in bits.
    const BITS: u32;

    /// The low bits of a value.
    fn cut(value: u64) -> Self;

    /// Zero-extended.
    fn zx(self) -> u64;

    /// Sign-extended.
    fn sx(self) -> u64;

    /// A general register, by the number that the op has for this width.
    fn get(cpu: &Cpu, register: u8) -> Self;

    /// Writes a general register: 32-bit writes clear the upper half, narrower ones keep the rest.
    fn set(cpu: &mut Cpu, register: u8, value: Self);

    /// Atomic compare and swap on host memory: `Ok(old)` if it was `old`, else what it was.
    ///
    /// # Safety
    /// `host` is a valid address of guest RAM, aligned to the width.
    unsafe fn swap_if(host: *mut u8, old: Self, new: Self) -> Result<Self, Self>;

    /// Atomic swap on host memory.
    ///
    /// # Safety
    /// As for `swap_if`.
    unsafe fn swap(host: *mut u8, new: Self) -> Self;
}

macro_rules! common {
    ($int:ty, $signed:ty, $atomic:ty) => {
        const BITS: u32 = <$int>::BITS;

        #[inline(always)]
        fn cut(value: u64) -> Self {
            value as $int
        }

        #[inline(always)]
        fn zx(self) -> u64 {
            u64::from(self)
        }

        #[inline(always)]
        fn sx(self) -> u64 {
            self as $signed as i64 as u64
        }

        #[inline(always)]
        unsafe fn swap_if(host: *mut u8, old: Self, new: Self) -> Result<Self, Self> {
            // SAFETY: valid and aligned, says the caller; atomics may be shared with other vCPUs.
            unsafe { <$atomic>::from_ptr(host.cast()) }.compare_exchange(old, new, SeqCst, SeqCst)
        }

        #[inline(always)]
        unsafe fn swap(host: *mut u8, new: Self) -> Self {
            // SAFETY: as in `swap_if`.
            unsafe { <$atomic>::from_ptr(host.cast()) }.swap(new, SeqCst)
        }
    };
}

impl Int for u8 {
    common!(u8, i8, AtomicU8);

    #[inline(always)]
    fn get(cpu: &Cpu, register: u8) -> Self {
        (cpu.reg(register >> 3) >> ((register & 7) * 8)) as u8
    }

    #[inline(always)]
    fn set(cpu: &mut Cpu, register: u8, value: Self) {
        // The whole register is written, so that the next read of it does not wait for a partial store.
        let shift = (register & 7) * 8;
        let rest = cpu.reg(register >> 3) & !(0xff << shift);
        cpu.set_reg(register >> 3, rest | u64::from(value) << shift);
    }
}

impl Int for u16 {
    common!(u16, i16, AtomicU16);

    #[inline(always)]
    fn get(cpu: &Cpu, register: u8) -> Self {
        cpu.reg(register) as u16
    }

    #[inline(always)]
    fn set(cpu: &mut Cpu, register: u8, value: Self) {
        cpu.set_reg(register, cpu.reg(register) & !0xffff | u64::from(value));
    }
}

impl Int for u32 {
    common!(u32, i32, AtomicU32);

    #[inline(always)]
    fn get(cpu: &Cpu, register: u8) -> Self {
        cpu.reg(register) as u32
    }

    #[inline(always)]
    fn set(cpu: &mut Cpu, register: u8, value: Self) {
        cpu.set_reg(register, u64::from(value));
    }
}

impl Int for u64 {
    common!(u64, i64, AtomicU64);

    #[inline(always)]
    fn get(cpu: &Cpu, register: u8) -> Self {
        cpu.reg(register)
    }

    #[inline(always)]
    fn set(cpu: &mut Cpu, register: u8, value: Self) {
        cpu.set_reg(register, value);
    }
}

impl Cpu {
    /// A general or pseudo-register, by a number from an [`Op`].
    #[inline(always)]
    pub fn reg(&self, number: u8) -> u64 {
        debug_assert!(usize::from(number) < self.regs.len());
        // SAFETY: ops are made by `decode::operand` only, whose register numbers are 0 to 17 and whose byte
        // offsets are below 128.
        unsafe { *self.regs.get_unchecked(usize::from(number)) }
    }

    /// Writes a general register, by a number from an [`Op`].
    #[inline(always)]
    pub fn set_reg(&mut self, number: u8, value: u64) {
        debug_assert!(usize::from(number) < 16);
        // SAFETY: as in `reg`.
        unsafe { *self.regs.get_unchecked_mut(usize::from(number)) = value };
    }
}

/// How the address of a memory operand is computed.
pub trait Addr {
    /// The linear address.
    fn linear(cpu: &Cpu, op: &Op) -> u64;
}

/// 64-bit, no segment base, no index.
pub struct Based;

/// 64-bit, no segment base.
pub struct Indexed;

/// Any.
pub struct General;

impl Addr for Based {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: &Op) -> u64 {
        cpu.reg(op.base).wrapping_add(op.disp as i64 as u64)
    }
}

impl Addr for Indexed {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: &Op) -> u64 {
        Based::linear(cpu, op).wrapping_add(cpu.reg(op.index) << (op.scale & 3))
    }
}

impl Addr for General {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: &Op) -> u64 {
        cpu.address(op)
    }
}

/// Which of the [`Addr`]s fits an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddrKind {
    /// [`Based`].
    Based,
    /// [`Indexed`].
    Indexed,
    /// [`General`].
    General,
}

/// The cheapest way to the address of an op's memory operand.
pub fn addr_kind(op: &Op) -> AddrKind {
    match (op.seg, op.addr_bits, op.index) {
        (FLAT, 64, ZERO) => AddrKind::Based,
        (FLAT, 64, _) => AddrKind::Indexed,
        _ => AddrKind::General,
    }
}

/// The instance of a generic handler for a width in bytes.
macro_rules! by_width {
    ($bytes:expr, $handler:ident $(, $param:ty)*) => {
        match $bytes {
            1 => $handler::<$($param,)* u8> as $crate::op::Handler,
            2 => $handler::<$($param,)* u16>,
            4 => $handler::<$($param,)* u32>,
            _ => $handler::<$($param,)* u64>,
        }
    };
}

/// The instance of a generic handler for the address of `op` and a width in bytes.
macro_rules! by_addr {
    ($op:expr, $bytes:expr, $handler:ident $(, $param:ty)*) => {
        match $crate::interp::int::width::addr_kind($op) {
            $crate::interp::int::width::AddrKind::Based => {
                $crate::interp::int::width::by_width!($bytes, $handler $(, $param)*, $crate::interp::int::width::Based)
            }
            $crate::interp::int::width::AddrKind::Indexed => {
                $crate::interp::int::width::by_width!($bytes, $handler $(, $param)*, $crate::interp::int::width::Indexed)
            }
            $crate::interp::int::width::AddrKind::General => {
                $crate::interp::int::width::by_width!($bytes, $handler $(, $param)*, $crate::interp::int::width::General)
            }
        }
    };
}

pub(crate) use {by_addr, by_width};

/// Replaces a value in memory by what `change` makes of it. When it faults, memory and flags are as before, and
/// the fault is that of a write (SDM vol. 3A §4.7: the access of a read-modify-write is a write).
#[inline(always)]
pub fn modify<T: Int>(
    cpu: &mut Cpu,
    linear: u64,
    mut change: impl FnMut(&mut Cpu, T) -> T,
) -> Result<(), Trap> {
    if modify_fast(cpu, linear, &mut change) { Ok(()) } else { modify_slow(cpu, linear, change) }
}

/// [`modify`] if the TLB has the page for writing; otherwise false, and nothing is done.
#[inline(always)]
pub fn modify_fast<T: Int>(cpu: &mut Cpu, linear: u64, change: impl FnOnce(&mut Cpu, T) -> T) -> bool {
    let Some(host) = cpu.writable(linear, T::BYTES) else { return false };
    // SAFETY: `writable` gave `BYTES` bytes of RAM.
    let old = unsafe { host.cast::<T>().read_unaligned() };
    let new = change(cpu, old);
    // SAFETY: as above; `change` computes on registers only.
    unsafe { host.cast::<T>().write_unaligned(new) };
    true
}

#[cold]
#[inline(never)]
fn modify_slow<T: Int>(
    cpu: &mut Cpu,
    linear: u64,
    change: impl FnOnce(&mut Cpu, T) -> T,
) -> Result<(), Trap> {
    cpu.probe_write(linear, T::BYTES)?;
    let old = cpu.load::<T>(linear)?;
    let flags: Flags = cpu.flags;
    let new = change(cpu, old);
    cpu.store(linear, new).inspect_err(|_| cpu.flags = flags)
}

/// [`modify`] with a LOCK prefix: atomic among all vCPUs wherever the operand is in RAM.
#[inline(always)]
pub fn modify_locked<T: Int>(
    cpu: &mut Cpu,
    linear: u64,
    mut change: impl FnMut(&mut Cpu, T) -> T,
) -> Result<(), Trap> {
    let fast = if linear.is_multiple_of(T::BYTES) { cpu.writable(linear, T::BYTES) } else { None };
    let Some(host) = fast else { return modify_locked_slow(cpu, linear, change) };
    // SAFETY: `writable` gave `BYTES` bytes of RAM; pages of RAM are aligned like pages of the guest.
    let mut old = unsafe { host.cast::<T>().read_volatile() };
    let flags = cpu.flags;
    loop {
        let new = change(cpu, old);
        // SAFETY: as above, and `linear` was checked for alignment.
        match unsafe { T::swap_if(host, old, new) } {
            Ok(_) => return Ok(()),
            Err(now) => old = now,
        }
        cpu.flags = flags;
    }
}

/// The rest of [`modify_locked`]: where the TLB does not have the page for writing, and for operands that are not
/// aligned. Those inside 8 aligned bytes are exchanged together with their surroundings; for others every processor but
/// this one stops.
#[cold]
#[inline(never)]
fn modify_locked_slow<T: Int>(
    cpu: &mut Cpu,
    linear: u64,
    mut change: impl FnMut(&mut Cpu, T) -> T,
) -> Result<(), Trap> {
    let within = linear & 7;
    let place = cpu.place_to_write(linear, T::BYTES)?.filter(|_| within + T::BYTES <= 8);
    let Some(place) = place else { return cpu.stop_others(|cpu| modify_slow(cpu, linear, change)) };
    let shift = within as u32 * 8;
    let mask = (u64::MAX >> (64 - T::BITS)) << shift;
    // SAFETY: a page of RAM is aligned, so the 8 aligned bytes around the operand are in it.
    let cell = unsafe { AtomicU64::from_ptr(place.host.wrapping_sub(within as usize).cast()) };
    let flags = cpu.flags;
    let mut old = cell.load(SeqCst);
    loop {
        let new = change(cpu, T::cut((old & mask) >> shift));
        let whole = old & !mask | new.zx() << shift;
        match cell.compare_exchange(old, whole, SeqCst, SeqCst) {
            Ok(_) => break,
            Err(now) => old = now,
        }
        cpu.flags = flags;
    }
    cpu.has_written(place.phys, T::BYTES);
    Ok(())
}
