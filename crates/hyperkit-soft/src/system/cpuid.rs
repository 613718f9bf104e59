//! CPUID: what the guest is told. What is offered here works; see the table at the top.

use crate::cpu::Cpu;
use crate::interp::vex::{self, WideFeatures};
use crate::mmu::walk::PHYS_BITS;
use crate::op::{Flow, Op};
use crate::system::cr4;
use crate::system::interrupts::timer_shift;
use crate::trap::Trap;

/// The bits whose numbers are given.
const fn bits(numbers: &[u32]) -> u32 {
    let mut mask = 0;
    let mut n = 0;
    while n < numbers.len() {
        mask |= 1 << numbers[n];
        n += 1;
    }
    mask
}

/// Leaf 1 EDX: FPU, DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP, PGE, CMOV, PAT, PSE-36, CLFSH, MMX, FXSR, SSE, SSE2.
const LEAF_1_EDX: u32 = bits(&[0, 2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26]);
/// Leaf 1 EDX: HTT, set with more than one vCPU.
const HTT: u32 = 1 << 28;
/// Leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, CMPXCHG16B, PCID, SSE4.1, SSE4.2, x2APIC, MOVBE, POPCNT, TSC-deadline, AES,
/// RDRAND, hypervisor.
const LEAF_1_ECX: u32 = bits(&[0, 1, 9, 13, 17, 19, 20, 21, 22, 23, 24, 25, 30, 31]);
/// Leaf 7 EBX: FSGSBASE, BMI1, SMEP, BMI2, ERMS, INVPCID, RDSEED, ADX, SMAP, SHA.
const LEAF_7_EBX: u32 = bits(&[0, 3, 7, 8, 9, 10, 18, 19, 20, 29]);
/// Leaf 7 ECX: RDPID.
const LEAF_7_ECX: u32 = bits(&[22]);
/// Leaf 7 EDX: fast short REP MOV, ARCH_CAPABILITIES.
const LEAF_7_EDX: u32 = bits(&[4, 29]);
/// Leaf 0x80000001 EDX: SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
const EXTENDED_EDX: u32 = bits(&[11, 20, 26, 27, 29]);
/// Leaf 0x80000001 ECX: LAHF, LZCNT, PREFETCHW.
const EXTENDED_ECX: u32 = bits(&[0, 5, 8]);
/// Leaf 0x40000001 EAX: no I/O delay needed, clock source 2, stable clock source.
const KVM_FEATURES: u32 = bits(&[1, 3, 24]);

/// Family 6, model 0x36, stepping 1: an in-order processor that does not speculate, so that kernels leave out
/// their defences against speculation. This one does not speculate either.
const SIGNATURE: u32 = 0x0003_0661;
const VENDOR: &[u8; 12] = b"GenuineIntel";
const HYPERVISOR: &[u8; 12] = b"KVMKVMKVM\0\0\0";
const BRAND: &[u8; 48] =
    b"Coracle soft\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

const HIGHEST: u32 = 0x16;
const HIGHEST_EXTENDED: u32 = 0x8000_0008;
const HIGHEST_HYPERVISOR: u32 = 0x4000_0001;
const LINEAR_BITS: u32 = 48;

/// Leaf 1 ECX: the operating system has set CR4.OSXSAVE.
const OSXSAVE: u32 = 1 << 27;

/// The bits of leaf 1 ECX (FMA, XSAVE, AVX, F16C), leaf 7 EBX (AVX2) and leaf 7 ECX (VAES, VPCLMULQDQ) for what there is.
fn wide_bits(wide: WideFeatures) -> [u32; 3] {
    let bit = |has: bool, number: u32| u32::from(has) << number;
    [
        bit(wide.fma, 12) | bit(wide.avx, 26) | bit(wide.avx, 28) | bit(wide.f16c, 29),
        bit(wide.avx2, 5),
        bit(wide.vaes, 9) | bit(wide.vpclmulqdq, 10),
    ]
}

/// The bits of leaf 1 ECX and leaf 7 EBX that stand for vector instructions which the host lacks.
fn lacking() -> (u32, u32) {
    let host = crate::interp::sse::offers();
    let bit = |has: bool, number: u32| u32::from(!has) << number;
    let leaf_1 = bit(host.sse3, 0)
        | bit(host.pclmulqdq, 1)
        | bit(host.ssse3, 9)
        | bit(host.sse4_1, 19)
        | bit(host.sse4_2, 20)
        | bit(host.aes, 25);
    (leaf_1, bit(host.sha, 29))
}

/// EAX, EBX, ECX, EDX.
type Leaf = [u32; 4];

fn word(bytes: &[u8], number: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[number * 4..number * 4 + 4]);
    u32::from_le_bytes(word)
}

impl Cpu {
    /// A leaf of CPUID.
    pub fn cpuid_leaf(&self, leaf: u32, subleaf: u32) -> Leaf {
        match leaf {
            0x4000_0000 => {
                [HIGHEST_HYPERVISOR, word(HYPERVISOR, 0), word(HYPERVISOR, 1), word(HYPERVISOR, 2)]
            }
            0x4000_0001 => [KVM_FEATURES, 0, 0, 0],
            0x4000_0002..=0x4fff_ffff => [0; 4],
            0x8000_0000.. => self.extended_leaf(leaf),
            _ => self.basic_leaf(leaf.min(HIGHEST), subleaf),
        }
    }

    fn basic_leaf(&self, leaf: u32, subleaf: u32) -> Leaf {
        let shared = self.interrupts.shared();
        let vcpus = shared.model.vcpus.max(1);
        let id = self.interrupts.id;
        let wide = wide_bits(self.offers_wide());
        match leaf {
            0 => [HIGHEST, word(VENDOR, 0), word(VENDOR, 2), word(VENDOR, 1)],
            1 => {
                let htt = if vcpus > 1 { HTT } else { 0 };
                let saves = if self.cr4 & cr4::OSXSAVE != 0 { OSXSAVE } else { 0 };
                [
                    SIGNATURE,
                    id << 24 | vcpus.min(255) << 16 | 8 << 8,
                    LEAF_1_ECX & !lacking().0 | wide[0] | saves,
                    LEAF_1_EDX | htt,
                ]
            }
            4 => cache(subleaf, vcpus),
            6 => [1 << 2, 0, 0, 0], // the APIC timer runs always
            7 if subleaf == 0 => [0, LEAF_7_EBX & !lacking().1 | wide[1], LEAF_7_ECX | wide[2], LEAF_7_EDX],
            0xd if self.offers_wide().avx => self.extended_state(subleaf),
            0xb => topology(subleaf, vcpus, id),
            0x15 => {
                let shift = timer_shift(shared.tsc());
                let clock = (u64::from(shared.tsc().khz) * 1000) >> shift;
                [1, 1 << shift, clock as u32, 0]
            }
            0x16 => {
                let mhz = (shared.tsc().khz / 1000).min(0xffff);
                [mhz, mhz, 100, 0]
            }
            _ => [0; 4],
        }
    }

    /// What of AVX and its kin this machine offers.
    pub fn offers_wide(&self) -> WideFeatures {
        if self.interrupts.shared().wide { vex::offers() } else { WideFeatures::default() }
    }

    /// Leaf 0xd (SDM vol. 1 §13.2).
    fn extended_state(&self, subleaf: u32) -> Leaf {
        match subleaf {
            0 => [vex::component::ALL as u32, self.area_bytes(), vex::AREA_BYTES as u32, 0],
            1 => [1, 0, 0, 0], // XSAVEOPT
            2 => [(vex::AREA_BYTES - vex::AVX_AT) as u32, vex::AVX_AT as u32, 0, 0],
            _ => [0; 4],
        }
    }

    fn extended_leaf(&self, leaf: u32) -> Leaf {
        match leaf {
            0x8000_0000 => [HIGHEST_EXTENDED, 0, 0, 0],
            0x8000_0001 => [0, 0, EXTENDED_ECX, EXTENDED_EDX],
            0x8000_0002..=0x8000_0004 => {
                let first = (leaf - 0x8000_0002) as usize * 4;
                [word(BRAND, first), word(BRAND, first + 1), word(BRAND, first + 2), word(BRAND, first + 3)]
            }
            0x8000_0006 => [0, 0, 1024 << 16 | 8 << 12 | 64, 0],
            0x8000_0007 => [0, 0, 0, 1 << 8], // the time-stamp counter is invariant
            0x8000_0008 => [LINEAR_BITS << 8 | PHYS_BITS, 0, 0, 0],
            _ => [0; 4],
        }
    }
}

/// Leaf 4: the caches of the host matter little to the guest; these are ordinary ones.
fn cache(subleaf: u32, vcpus: u32) -> Leaf {
    let (kind, level, ways, sets) = match subleaf {
        0 => (1, 1, 8, 64),
        1 => (2, 1, 8, 64),
        2 => (3, 2, 16, 1024),
        _ => return [0; 4],
    };
    let cores = vcpus.next_power_of_two().min(64) - 1;
    [cores << 26 | 1 << 8 | level << 5 | kind, (ways - 1) << 22 | 63, sets - 1, 0]
}

/// Leaf 0xb: one thread per core, all cores in one package.
fn topology(subleaf: u32, vcpus: u32, id: u32) -> Leaf {
    match subleaf {
        0 => [0, 1, 1 << 8, id],
        1 => [vcpus.next_power_of_two().trailing_zeros(), vcpus, 2 << 8 | 1, id],
        _ => [0, 0, subleaf & 0xff, id],
    }
}

/// `cpuid`
pub fn cpuid(cpu: &mut Cpu, _op: &Op) -> Result<Flow, Trap> {
    let [eax, ebx, ecx, edx] = cpu.cpuid_leaf(cpu.regs[0] as u32, cpu.regs[1] as u32);
    cpu.regs[0] = u64::from(eax);
    cpu.regs[3] = u64::from(ebx);
    cpu.regs[1] = u64::from(ecx);
    cpu.regs[2] = u64::from(edx);
    Ok(Flow::Next)
}
