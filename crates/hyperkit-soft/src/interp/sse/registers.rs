//! XMM, MMX and MXCSR in the FXSAVE image, and where the second operand of an op comes from.

use std::arch::x86_64::__m128i;

use crate::cpu::Cpu;
use crate::op::Op;
use crate::trap::{Trap, vector};

/// Offset of the abridged x87 tag word in the image.
const FTW: usize = 4;
/// Offset of MXCSR.
const MXCSR: usize = 24;
/// Offset of ST0; MM0 is there too while TOP is 0.
const ST: usize = 32;
/// Offset of XMM0.
const XMM: usize = 160;

/// Where an operand is: the argument of [`source`].
pub mod from {
    /// XMM register [`crate::op::Op::src`].
    pub const REGISTER: u8 = 0;
    /// 16 bytes of memory; #GP(0) unless aligned.
    pub const M16: u8 = 16;
    /// 16 bytes of memory, aligned or not.
    pub const M16_UNALIGNED: u8 = 17;
    /// 8 bytes of memory; zeros above.
    pub const M8: u8 = 8;
    /// 4 bytes of memory; zeros above.
    pub const M4: u8 = 4;
    /// 2 bytes of memory; zeros above.
    pub const M2: u8 = 2;
}

/// The register's value as an integer.
#[inline(always)]
pub fn bits(vector: __m128i) -> u128 {
    // SAFETY: both are 16 bytes in which every pattern is a value.
    unsafe { std::mem::transmute(vector) }
}

/// The register's value from an integer.
#[inline(always)]
pub fn vector_of(bits: u128) -> __m128i {
    // SAFETY: both are 16 bytes in which every pattern is a value.
    unsafe { std::mem::transmute(bits) }
}

/// Reads the second operand of an op from where `FROM` (see [`from`]) says.
#[inline(always)]
pub fn source<const FROM: u8>(cpu: &mut Cpu, op: &Op) -> Result<__m128i, Trap> {
    match FROM {
        from::REGISTER => Ok(cpu.xmm(op.src)),
        from::M16 => cpu.load_aligned(op).map(vector_of),
        from::M16_UNALIGNED => cpu.load::<u128>(cpu.address(op)).map(vector_of),
        from::M8 => cpu.load::<u64>(cpu.address(op)).map(|low| vector_of(low.into())),
        from::M4 => cpu.load::<u32>(cpu.address(op)).map(|low| vector_of(low.into())),
        _ => cpu.load::<u16>(cpu.address(op)).map(|low| vector_of(low.into())),
    }
}

impl Cpu {
    /// XMM register `n`, which is below 16.
    #[inline(always)]
    pub fn xmm(&self, n: u8) -> __m128i {
        let offset = XMM + 16 * usize::from(n & 15);
        // SAFETY: 16 bytes at 160 + 16 * (0..16) lie in the 512 of the image, whose alignment is 64.
        unsafe { self.fx.0.as_ptr().add(offset).cast::<__m128i>().read() }
    }

    /// Sets XMM register `n`, which is below 16.
    #[inline(always)]
    pub fn set_xmm(&mut self, n: u8, value: __m128i) {
        let offset = XMM + 16 * usize::from(n & 15);
        // SAFETY: as in `xmm`.
        unsafe { self.fx.0.as_mut_ptr().add(offset).cast::<__m128i>().write(value) }
    }

    /// MXCSR. Its reserved bits are 0, or the host's LDMXCSR would fault.
    #[inline(always)]
    pub fn mxcsr(&mut self) -> &mut u32 {
        // SAFETY: 4 bytes at 24 lie in the image, which is aligned.
        unsafe { &mut *self.fx.0.as_mut_ptr().add(MXCSR).cast::<u32>() }
    }

    /// MMX register `n`, once [`Cpu::enter_mmx`] has put it there.
    #[inline(always)]
    pub fn mm(&self, n: u8) -> u64 {
        let offset = ST + 16 * usize::from(n & 7);
        // SAFETY: 8 bytes at 32 + 16 * (0..8) lie in the image, which is aligned.
        unsafe { self.fx.0.as_ptr().add(offset).cast::<u64>().read() }
    }

    /// Sets MMX register `n`; the exponent of the x87 register that it is part of becomes all ones.
    #[inline(always)]
    pub fn set_mm(&mut self, n: u8, value: u64) {
        let offset = ST + 16 * usize::from(n & 7);
        self.fx.0[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        self.fx.0[offset + 8..offset + 10].fill(0xff);
    }

    /// The x87 status word.
    #[inline(always)]
    pub fn fsw(&self) -> u16 {
        u16::from_le_bytes([self.fx.0[2], self.fx.0[3]])
    }

    /// Raises what keeps an MMX instruction from running: #UD, #NM, or #MF for a pending x87 exception.
    #[inline(always)]
    pub fn pass_mmx(&mut self) -> Result<(), Trap> {
        self.pass(self.gate.mmx)?;
        if self.fsw() & 0x80 != 0 { Err(self.plain_fault(vector::MF)) } else { Ok(()) }
    }

    /// What every MMX instruction does to the x87 state (EMMS then empties the tags): TOP becomes 0 and all tags valid (SDM vol. 1
    /// §9.5.1).
    #[inline]
    pub fn enter_mmx(&mut self) {
        let top = usize::from(self.fsw() >> 11 & 7);
        if top != 0 {
            // The image has the registers by their distance from TOP; register 0 was at 8 - TOP.
            self.fx.0[ST..XMM].rotate_left(16 * (8 - top));
            self.fx.0[3] &= !0x38;
        }
        self.fx.0[FTW] = 0xff;
    }

    /// Loads 16 bytes; #GP(0) unless they are aligned.
    #[inline(always)]
    pub fn load_aligned(&mut self, op: &Op) -> Result<u128, Trap> {
        let linear = self.address(op);
        if linear & 15 != 0 {
            return Err(self.protection(0));
        }
        self.load(linear)
    }

    /// Stores 16 bytes; #GP(0) unless they are aligned.
    #[inline(always)]
    pub fn store_aligned(&mut self, op: &Op, value: u128) -> Result<(), Trap> {
        let linear = self.address(op);
        if linear & 15 != 0 {
            return Err(self.protection(0));
        }
        self.store(linear, value)
    }
}
