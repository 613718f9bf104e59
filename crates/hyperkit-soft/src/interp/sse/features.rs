//! Which extensions the host has, and so the guest may be offered.

use std::sync::OnceLock;

use iced_x86::{CpuidFeature, Instruction};

/// Extensions beyond SSE2, which (with MMX and x87) every x86-64 host has. Each is what its CPUID bit says.
#[expect(missing_docs, reason = "the names are the SDM's")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimdFeatures {
    pub x87_to_sse2: bool,
    pub sse3: bool,
    pub ssse3: bool,
    pub sse4_1: bool,
    pub sse4_2: bool,
    pub aes: bool,
    pub pclmulqdq: bool,
    pub sha: bool,
}

/// What the host has, found out once. On a host that is not an x86-64: nothing.
pub fn offers() -> SimdFeatures {
    static FEATURES: OnceLock<SimdFeatures> = OnceLock::new();
    *FEATURES.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> SimdFeatures {
    let sse3 = is_x86_feature_detected!("sse3");
    let ssse3 = sse3 && is_x86_feature_detected!("ssse3");
    let sse4_1 = ssse3 && is_x86_feature_detected!("sse4.1");
    let sse4_2 = sse4_1 && is_x86_feature_detected!("sse4.2");
    SimdFeatures {
        x87_to_sse2: true,
        sse3,
        ssse3,
        sse4_1,
        sse4_2,
        aes: sse4_1 && is_x86_feature_detected!("aes"),
        pclmulqdq: sse4_1 && is_x86_feature_detected!("pclmulqdq"),
        sha: sse4_1 && is_x86_feature_detected!("sha"),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> SimdFeatures {
    SimdFeatures::default()
}

/// Whether every extension that the instruction needs is offered, as far as this family is concerned.
pub fn offered(instruction: &Instruction) -> bool {
    let have = offers();
    instruction.cpuid_features().iter().all(|feature| match feature {
        CpuidFeature::SSE3 => have.sse3,
        CpuidFeature::SSSE3 => have.ssse3,
        CpuidFeature::SSE4_1 => have.sse4_1,
        CpuidFeature::SSE4_2 => have.sse4_2,
        CpuidFeature::AES => have.aes,
        CpuidFeature::PCLMULQDQ => have.pclmulqdq,
        CpuidFeature::SHA => have.sha,
        _ => have.x87_to_sse2,
    })
}
