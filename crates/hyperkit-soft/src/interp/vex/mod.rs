//! AVX, AVX2, FMA, F16C, and the VEX forms of AES and PCLMULQDQ.
//!
//! Nearly all of them are done by the host's own instruction, in a stub that is generated for its shape (`stubs`): with
//! operands in fixed registers and in a [`stubs::Frame`], so that a few thousand stubs serve every instruction and no
//! guest address ever reaches the host's instruction. Those that access memory element by element, and those on the
//! whole register file, are done here. Hosts without them, or where no memory may be executed, offer none.
//!
//! The lower halves of the YMM registers are the XMM registers in [`Cpu::fx`], the upper ones are in [`Cpu::upper`]:
//! instructions of the SSE family leave those alone, 128-bit ones of this family clear them (SDM vol. 1 §14.2.3). XSAVE
//! and its kind, which CR4.OSXSAVE turns on, are in `xsave`.
//!
//! Spec: SDM vol. 1 ch. 13 and 14, vol. 2 §2.3 and §2.4.

#[cfg(target_arch = "x86_64")]
mod elements;
#[cfg(target_arch = "x86_64")]
mod lower;
#[cfg(target_arch = "x86_64")]
mod run;
#[cfg(target_arch = "x86_64")]
mod stubs;
#[cfg(target_arch = "x86_64")]
mod xsave;

use iced_x86::Instruction;

use crate::cpu::Cpu;
use crate::decode::Context;
use crate::op::Op;

/// What of this family the host has, each as its CPUID bit says; all false where no code can be generated.
#[expect(missing_docs, reason = "the names are the SDM's")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WideFeatures {
    pub avx: bool,
    pub avx2: bool,
    pub fma: bool,
    pub f16c: bool,
    pub vaes: bool,
    pub vpclmulqdq: bool,
}

/// What the host has, found out once.
pub fn offers() -> WideFeatures {
    static FEATURES: std::sync::OnceLock<WideFeatures> = std::sync::OnceLock::new();
    *FEATURES.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> WideFeatures {
    let avx = stubs::available() && is_x86_feature_detected!("avx") && is_x86_feature_detected!("xsave");
    let avx2 = avx && is_x86_feature_detected!("avx2");
    WideFeatures {
        avx,
        avx2,
        fma: avx && is_x86_feature_detected!("fma"),
        f16c: avx && is_x86_feature_detected!("f16c"),
        vaes: avx2 && is_x86_feature_detected!("vaes"),
        vpclmulqdq: avx2 && is_x86_feature_detected!("vpclmulqdq"),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> WideFeatures {
    WideFeatures::default()
}

/// The op of an instruction of this family; `None` for any other.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    #[cfg(target_arch = "x86_64")]
    return lower::lower(instruction, context).or_else(|| xsave::lower(instruction, context));
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Components of the extended state: bits of XCR0 (SDM vol. 1 §13.1).
pub mod component {
    /// x87 registers.
    pub const X87: u64 = 1 << 0;
    /// XMM registers and MXCSR.
    pub const SSE: u64 = 1 << 1;
    /// Upper halves of the YMM registers.
    pub const AVX: u64 = 1 << 2;
    /// Those that there are.
    pub const ALL: u64 = X87 | SSE | AVX;
}

/// Where the upper halves are in an XSAVE area of the standard format.
pub const AVX_AT: usize = 576;
/// Bytes of an area with all components.
pub const AREA_BYTES: usize = 832;

impl Cpu {
    /// Bytes of an XSAVE area with the components that are enabled.
    pub fn area_bytes(&self) -> u32 {
        if self.xcr0 & component::AVX != 0 { AREA_BYTES as u32 } else { AVX_AT as u32 }
    }

    /// YMM register `n`, which is below 16.
    #[inline]
    pub fn ymm(&self, n: u8) -> [u8; 32] {
        let n = usize::from(n & 15);
        let mut value = [0; 32];
        value[..16].copy_from_slice(&self.fx.0[160 + 16 * n..176 + 16 * n]);
        value[16..].copy_from_slice(&self.upper.0[16 * n..16 * n + 16]);
        value
    }

    /// Sets YMM register `n`, which is below 16.
    #[inline]
    pub fn set_ymm(&mut self, n: u8, value: &[u8; 32]) {
        let n = usize::from(n & 15);
        self.fx.0[160 + 16 * n..176 + 16 * n].copy_from_slice(&value[..16]);
        self.upper.0[16 * n..16 * n + 16].copy_from_slice(&value[16..]);
    }
}
