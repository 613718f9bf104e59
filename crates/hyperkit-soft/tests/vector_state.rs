//! x87, MMX and SSE where the differential test cannot go: control registers, other modes, exceptions that wait.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;

use hyperkit_mem::GuestRam;
use hyperkit_soft::cpu::{CodeSize, Cpu};
use hyperkit_soft::decode::{Context, lower};
use hyperkit_soft::trap::vector::{GP, MF, NM, UD, XM};
use iced_x86::{Decoder, DecoderOptions};

const CR0_PE: u64 = 1;
const CR0_MP: u64 = 2;
const CR0_EM: u64 = 4;
const CR0_TS: u64 = 8;
const CR4_OSFXSR: u64 = 0x200;
const CR4_OSXMMEXCPT: u64 = 0x400;

const ADDSD: &[u8] = &[0xf2, 0x0f, 0x58, 0xc1]; // addsd xmm0, xmm1
const DIVSD: &[u8] = &[0xf2, 0x0f, 0x5e, 0xc1]; // divsd xmm0, xmm1
const MOVAPS: &[u8] = &[0x0f, 0x28, 0x00]; // movaps xmm0, [rax]
const MOVNTI: &[u8] = &[0x0f, 0xc3, 0x08]; // movnti [rax], ecx
const PADDB_MMX: &[u8] = &[0x0f, 0xfc, 0xc1]; // paddb mm0, mm1
const FADD: &[u8] = &[0xd8, 0xc1]; // fadd st, st(1)
const FDIVP: &[u8] = &[0xde, 0xf9]; // fdivp st(1), st
const FLD1: &[u8] = &[0xd9, 0xe8];
const FLDZ: &[u8] = &[0xd9, 0xee];
const FLDPI: &[u8] = &[0xd9, 0xeb];
const FNINIT: &[u8] = &[0xdb, 0xe3];
const FNCLEX: &[u8] = &[0xdb, 0xe2];
const FNSTSW_AX: &[u8] = &[0xdf, 0xe0];
const FLDCW: &[u8] = &[0xd9, 0x28]; // fldcw [rax]
const FSTP_DOUBLE: &[u8] = &[0xdd, 0x18]; // fstp qword [rax]
const FNSAVE: &[u8] = &[0xdd, 0x30]; // fnsave [rax], 108 bytes
const FRSTOR: &[u8] = &[0xdd, 0x20]; // frstor [rax]
const WAIT: &[u8] = &[0x9b];
const FXSAVE: &[u8] = &[0x0f, 0xae, 0x00]; // fxsave [rax]
const FXRSTOR: &[u8] = &[0x0f, 0xae, 0x08]; // fxrstor [rax]
const LDMXCSR: &[u8] = &[0x0f, 0xae, 0x10]; // ldmxcsr [rax]

/// A processor with RAX at 0x1000.
fn cpu() -> Box<Cpu> {
    let mut cpu = Cpu::for_tests(Arc::new(GuestRam::new(1 << 20).unwrap()));
    cpu.regs[0] = 0x1000;
    run(&mut cpu, FNINIT).unwrap();
    cpu
}

/// Runs one instruction in the processor's mode; the vector of its exception, if it raises one.
fn run(cpu: &mut Cpu, bytes: &[u8]) -> Result<(), u8> {
    let bits = match cpu.code_size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    let instruction = Decoder::with_ip(bits, bytes, 0x100, DecoderOptions::NONE).decode();
    let op = lower(&instruction, &Context { block_rip: 0x100, code_size: cpu.code_size });
    cpu.regs[17] = 0x100;
    match (op.run)(cpu, &op) {
        Ok(_) => Ok(()),
        Err(_) => Err(cpu.fault.take().unwrap().vector),
    }
}

fn with_control(cr0: u64, cr4: u64) -> Box<Cpu> {
    let mut cpu = cpu();
    (cpu.cr0, cpu.cr4) = (CR0_PE | cr0, cr4);
    cpu.refresh();
    cpu.code_size = CodeSize::Bits64;
    cpu
}

#[test]
fn task_switched_makes_every_family_unavailable_but_movnti() {
    let mut cpu = with_control(CR0_TS, CR4_OSFXSR);
    for bytes in [ADDSD, MOVAPS, PADDB_MMX, FADD, FNINIT, FXSAVE, FXRSTOR, LDMXCSR] {
        assert_eq!(run(&mut cpu, bytes), Err(NM), "{bytes:02x?}");
    }
    assert_eq!(run(&mut cpu, WAIT), Ok(()), "WAIT needs MP too");
    assert_eq!(run(&mut cpu, MOVNTI), Ok(()));
    assert_eq!(run(&mut with_control(CR0_TS | CR0_MP, CR4_OSFXSR), WAIT), Err(NM));
}

#[test]
fn emulation_makes_x87_unavailable_and_the_rest_undefined() {
    let mut cpu = with_control(CR0_EM, CR4_OSFXSR);
    for (bytes, vector) in [(ADDSD, UD), (PADDB_MMX, UD), (FADD, NM), (FXSAVE, NM)] {
        assert_eq!(run(&mut cpu, bytes), Err(vector), "{bytes:02x?}");
    }
}

#[test]
fn sse_is_undefined_until_the_system_says_that_it_saves_it() {
    let mut cpu = with_control(0, 0);
    for bytes in [ADDSD, MOVAPS, LDMXCSR] {
        assert_eq!(run(&mut cpu, bytes), Err(UD), "{bytes:02x?}");
    }
    for bytes in [PADDB_MMX, FLD1, FXSAVE] {
        assert_eq!(run(&mut cpu, bytes), Ok(()), "{bytes:02x?}");
    }
}

/// 1.0 / 0.0 with the exception unmasked.
fn divide_by_zero(cr4: u64) -> (Box<Cpu>, Result<(), u8>) {
    let mut cpu = with_control(0, cr4);
    cpu.fx.0[160..168].copy_from_slice(&1f64.to_bits().to_le_bytes());
    cpu.fx.0[24..28].copy_from_slice(&(0x1f80u32 & !0x200).to_le_bytes());
    let end = run(&mut cpu, DIVSD);
    (cpu, end)
}

#[test]
fn an_unmasked_sse_exception_leaves_the_destination_and_sets_the_flag() {
    let (cpu, end) = divide_by_zero(CR4_OSFXSR | CR4_OSXMMEXCPT);
    assert_eq!(end, Err(XM));
    assert_eq!(cpu.fx.0[160..168], 1f64.to_bits().to_le_bytes());
    assert_eq!(cpu.fx.0[24] & 0x3f, 4, "ZE");
    assert_eq!(divide_by_zero(CR4_OSFXSR).1, Err(UD), "the system does not expect #XM");
}

#[test]
fn an_unmasked_x87_exception_waits_for_the_next_waiting_instruction() {
    let mut cpu = cpu();
    cpu.store(0x1000, 0x37b_u16).unwrap(); // zero divide unmasked
    for bytes in [FLDCW, FLD1, FLDZ, FDIVP, FNSTSW_AX] {
        assert_eq!(run(&mut cpu, bytes), Ok(()), "{bytes:02x?}");
    }
    assert_eq!(cpu.regs[0] & 0x8084, 0x8084, "B, ES, ZE");
    cpu.regs[0] = 0x1000;
    for bytes in [FLD1, WAIT, PADDB_MMX, FSTP_DOUBLE] {
        assert_eq!(run(&mut cpu, bytes), Err(MF), "{bytes:02x?}");
    }
    assert_eq!(run(&mut cpu, FNCLEX), Ok(()));
    assert_eq!(run(&mut cpu, FSTP_DOUBLE), Ok(()));
    assert_eq!(cpu.load::<u64>(0x1000), Ok(0), "the divisor: nothing was popped");
}

#[test]
fn unmasking_a_flag_that_is_set_raises_it_at_the_next_waiting_instruction() {
    let mut cpu = cpu();
    for bytes in [FLD1, FLDZ, FDIVP] {
        run(&mut cpu, bytes).unwrap();
    }
    cpu.store(0x1000, 0x37b_u16).unwrap();
    assert_eq!(run(&mut cpu, FLDCW), Ok(()));
    assert_eq!(run(&mut cpu, WAIT), Err(MF));
}

#[test]
fn fxsave_outside_64_bit_mode_leaves_the_upper_registers_alone() {
    let mut cpu = cpu();
    cpu.fx.0[160..416].fill(0x55);
    cpu.code_size = CodeSize::Bits32;
    cpu.store(0x1000 + 288, 0x77u64).unwrap();
    assert_eq!(run(&mut cpu, FXSAVE), Ok(()));
    assert_eq!(cpu.load::<u64>(0x1000 + 280), Ok(0x5555_5555_5555_5555), "XMM7");
    assert_eq!(cpu.load::<u64>(0x1000 + 288), Ok(0x77), "where XMM8 would be");
    assert_eq!(run(&mut cpu, FXRSTOR), Ok(()));
    assert_eq!(cpu.fx.0[288..296], [0x55; 8], "XMM8 keeps its value");
}

#[test]
fn bad_state_is_refused_without_a_trace() {
    let mut cpu = cpu();
    cpu.store(0x1000 + 24, 0x1_0000_u32).unwrap(); // a reserved bit of MXCSR
    let before = cpu.fx.0;
    assert_eq!(run(&mut cpu, FXRSTOR), Err(GP));
    cpu.store(0x1000, 0x1_0000_u32).unwrap();
    assert_eq!(run(&mut cpu, LDMXCSR), Err(GP));
    cpu.regs[0] = 0x1008;
    for bytes in [FXSAVE, FXRSTOR, MOVAPS] {
        assert_eq!(run(&mut cpu, bytes), Err(GP), "{bytes:02x?} of an unaligned address");
    }
    assert_eq!(cpu.fx.0, before);
}

/// FNSAVE in `mode`, after which the unit is empty, and FRSTOR, after which it is as before.
fn save_and_restore(mode: CodeSize, size: usize) {
    let mut cpu = cpu();
    for bytes in [FLDPI, FLD1, FLDZ] {
        run(&mut cpu, bytes).unwrap();
    }
    (cpu.code_size, cpu.regs[3], cpu.regs[6]) = (mode, 0x1000, 0);
    // With 16-bit addresses the same bytes mean [bx+si].
    cpu.store(0x1000 + size as u64, 0x99u8).unwrap();
    let before = cpu.fx.0;
    run(&mut cpu, FNSAVE).unwrap();
    assert_eq!((cpu.fx.0[4], cpu.fx.0[0], cpu.fx.0[1]), (0, 0x7f, 3), "as after FNINIT");
    assert_eq!(cpu.load::<u8>(0x1000 + size as u64), Ok(0x99), "no more than {size} bytes");
    assert_eq!(cpu.load::<u8>(0x1000 + size as u64 - 80 + 29), Ok(0x40), "exponent of pi");
    run(&mut cpu, FRSTOR).unwrap();
    assert_eq!(cpu.fx.0[..8], before[..8]);
    assert_eq!(cpu.fx.0[32..160], before[32..160]);
    let fip = |image: &[u8]| u32::from_le_bytes([image[8], image[9], image[10], image[11]]) & 0xffff;
    assert_eq!(fip(&cpu.fx.0), fip(&before), "the last instruction was at 0x100");
}

#[test]
fn the_whole_x87_state_survives_fnsave_and_frstor_in_every_layout() {
    save_and_restore(CodeSize::Bits64, 108);
    save_and_restore(CodeSize::Bits32, 108);
    save_and_restore(CodeSize::Bits16, 94);
}

const CR4_OSXSAVE: u64 = 1 << 18;

const VADDPS: &[u8] = &[0xc5, 0xf4, 0x58, 0xc2]; // vaddps ymm0, ymm1, ymm2
const VMOVAPS: &[u8] = &[0xc5, 0xfc, 0x28, 0x00]; // vmovaps ymm0, [rax]
const VZEROUPPER: &[u8] = &[0xc5, 0xf8, 0x77];
const VPGATHERDD: &[u8] = &[0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x88]; // vpgatherdd ymm0, [rax + 4 * ymm1], ymm2
const XGETBV: &[u8] = &[0x0f, 0x01, 0xd0];
const XSETBV: &[u8] = &[0x0f, 0x01, 0xd1];
const XSAVE: &[u8] = &[0x48, 0x0f, 0xae, 0x27]; // xsave64 [rdi]
const XSAVEOPT: &[u8] = &[0x48, 0x0f, 0xae, 0x37]; // xsaveopt64 [rdi]
const XRSTOR: &[u8] = &[0x48, 0x0f, 0xae, 0x2f]; // xrstor64 [rdi]
const EVERYTHING: u64 = 7;

/// A processor with AVX enabled and an XSAVE area at RDI; `None` on a host without.
fn wide() -> Option<Box<Cpu>> {
    let mut cpu = with_control(0, CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE);
    if !cpu.offers_wide().avx {
        #[expect(clippy::print_stdout, reason = "says why nothing is tested")]
        {
            println!("SKIP: this host has no AVX, or lets no memory be executed");
        }
        return None;
    }
    (cpu.regs[0], cpu.regs[1], cpu.regs[2], cpu.regs[7]) = (7, 0, 0, 0x2000);
    run(&mut cpu, XSETBV).unwrap();
    cpu.code_size = CodeSize::Bits64;
    cpu.regs[0] = 0x1000;
    Some(cpu)
}

#[test]
fn avx_runs_only_where_the_system_saves_it() {
    let Some(mut cpu) = wide() else { return };
    assert_eq!(run(&mut cpu, VADDPS), Ok(()));
    cpu.cr0 |= CR0_TS;
    cpu.refresh_gate();
    assert_eq!(run(&mut cpu, VADDPS), Err(NM));
    for change in
        [|cpu: &mut Cpu| cpu.xcr0 = 3, |cpu: &mut Cpu| cpu.cr4 &= !CR4_OSXSAVE, |cpu: &mut Cpu| cpu.cr0 &= !1]
    {
        let Some(mut cpu) = wide() else { return };
        change(&mut cpu);
        cpu.refresh_gate();
        assert_eq!(run(&mut cpu, VADDPS), Err(UD));
        assert_eq!(run(&mut cpu, VZEROUPPER), Err(UD));
        assert_eq!(run(&mut cpu, ADDSD), Ok(()), "SSE is not concerned");
    }
}

#[test]
fn only_aligned_moves_ask_for_alignment() {
    let Some(mut cpu) = wide() else { return };
    assert_eq!(run(&mut cpu, VMOVAPS), Ok(()));
    cpu.regs[0] = 0x1010;
    assert_eq!(run(&mut cpu, VMOVAPS), Err(GP), "16 is not enough for 32 bytes");
}

#[test]
fn xcr0_takes_what_there_is() {
    let Some(mut cpu) = wide() else { return };
    for (value, expected) in [(6, Err(GP)), (5, Err(GP)), (15, Err(GP)), (3, Ok(())), (7, Ok(()))] {
        cpu.regs[0] = value;
        assert_eq!(run(&mut cpu, XSETBV), expected, "{value}");
    }
    run(&mut cpu, XGETBV).unwrap();
    assert_eq!((cpu.regs[0], cpu.regs[2]), (7, 0));
    cpu.regs[1] = 2;
    assert_eq!(run(&mut cpu, XGETBV), Err(GP), "no such register");
    cpu.regs[1] = 0;
    cpu.cpl = 3;
    assert_eq!(run(&mut cpu, XSETBV), Err(GP), "privileged");
}

#[test]
fn the_extended_state_survives_xsave_and_xrstor() {
    let Some(mut cpu) = wide() else { return };
    run(&mut cpu, FLDPI).unwrap();
    cpu.fx.0[160..416].fill(0x11);
    cpu.upper.0.fill(0x22);
    let (fx, upper) = (cpu.fx.0, cpu.upper.0);
    cpu.regs[0] = EVERYTHING;
    run(&mut cpu, XSAVE).unwrap();
    assert_eq!(cpu.load::<u64>(0x2000 + 512), Ok(7));
    assert_eq!(cpu.load::<u64>(0x2000 + 576 + 248), Ok(0x2222_2222_2222_2222));
    cpu.fx.0[160..416].fill(0);
    cpu.upper.0.fill(0);
    run(&mut cpu, FNINIT).unwrap();
    run(&mut cpu, XRSTOR).unwrap();
    assert_eq!(
        (cpu.fx.0[..8] == fx[..8], cpu.fx.0[24..416] == fx[24..416], cpu.upper.0 == upper),
        (true, true, true)
    );
    cpu.store(0x2000 + 512, 2u64).unwrap();
    run(&mut cpu, XRSTOR).unwrap();
    assert_eq!(cpu.upper.0, [0; 256], "not in the area: initial");
    assert_eq!((cpu.fx.0[0], cpu.fx.0[1], cpu.fx.0[4]), (0x7f, 3, 0), "likewise");
    assert_eq!(cpu.fx.0[160..416], fx[160..416]);
}

#[test]
fn xsaveopt_leaves_out_what_is_not_in_use() {
    let Some(mut cpu) = wide() else { return };
    cpu.regs[0] = EVERYTHING;
    cpu.store(0x2000 + 576, 0x77u64).unwrap();
    run(&mut cpu, XSAVEOPT).unwrap();
    assert_eq!((cpu.load::<u64>(0x2000 + 512), cpu.load::<u64>(0x2000 + 576)), (Ok(3), Ok(0x77)));
    run(&mut cpu, XSAVE).unwrap();
    assert_eq!((cpu.load::<u64>(0x2000 + 512), cpu.load::<u64>(0x2000 + 576)), (Ok(3), Ok(0)));
}

#[test]
fn a_bad_area_is_refused_without_a_trace() {
    let Some(mut cpu) = wide() else { return };
    cpu.regs[0] = EVERYTHING;
    let before = (cpu.fx.0, cpu.upper.0);
    let cases: [(u64, u64); 4] = [(512, 8), (520, 1 << 63), (528, 1), (24, 1 << 16)];
    for (at, value) in cases {
        for n in 0..104 {
            cpu.store(0x2000 + 8 * n, 0u64).unwrap();
        }
        cpu.store(0x2000 + at, value).unwrap();
        assert_eq!(run(&mut cpu, XRSTOR), Err(GP), "{at}");
    }
    cpu.regs[7] = 0x2020;
    for bytes in [XSAVE, XRSTOR, XSAVEOPT] {
        assert_eq!(run(&mut cpu, bytes), Err(GP), "not aligned to 64");
    }
    assert!(before == (cpu.fx.0, cpu.upper.0));
    cpu.cr4 &= !CR4_OSXSAVE;
    assert_eq!(run(&mut cpu, XSAVE), Err(UD));
}

#[test]
fn a_gather_takes_only_what_its_mask_names() {
    let Some(mut cpu) = wide() else { return };
    for n in 0..8u32 {
        cpu.store(0x1000 + u64::from(n) * 4, 100 + n).unwrap();
    }
    let element = |n: u32| (7 - n).to_le_bytes();
    cpu.set_ymm(1, &std::array::from_fn(|at| element(at as u32 / 4)[at % 4]));
    cpu.set_ymm(2, &std::array::from_fn(|at| if at / 4 % 2 == 0 { 0xff } else { 0x7f }));
    cpu.set_ymm(0, &[9; 32]);
    run(&mut cpu, VPGATHERDD).unwrap();
    let words = |value: [u8; 32]| {
        value.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect::<Vec<_>>()
    };
    let kept = 0x0909_0909;
    assert_eq!(words(cpu.ymm(0)), [107, kept, 105, kept, 103, kept, 101, kept]);
    assert_eq!(cpu.ymm(2), [0; 32], "the mask is used up");
}
