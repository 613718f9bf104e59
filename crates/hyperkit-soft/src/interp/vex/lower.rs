//! From an instruction of this family to its op.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic as M, OpKind};

use super::run::{Place, Shape, Tiny};
use super::{elements, offers, run, stubs};
use crate::decode::{Context, operand};
use crate::op::{Handler, Op};

/// The op of an instruction of this family; `None` for any other, and for those that the host lacks.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    if instruction.code().encoding() != EncodingKind::VEX || !offered(instruction) {
        return None;
    }
    let plain = |run: Handler| Some(operand::op(run, instruction, context));
    match instruction.mnemonic() {
        M::Vzeroupper => return plain(run::zero_upper),
        M::Vzeroall => return plain(run::zero_all),
        M::Vldmxcsr => return plain(run::load_mxcsr),
        M::Vstmxcsr => return plain(run::store_mxcsr),
        M::Vmaskmovdqu => {
            let mut op = operand::op(run::store_bytes, instruction, context);
            op.dst = operand::register(instruction.op1_register());
            op.src = operand::register(instruction.op2_register());
            return Some(op);
        }
        _ => {}
    }
    if let Some(place) = run::STRINGS.iter().position(|(vex, _)| *vex == instruction.code()) {
        let mut op = operand::op(run::compare_strings, instruction, context);
        let memory = instruction.op1_kind() == OpKind::Memory;
        op.dst = operand::register(instruction.op0_register());
        op.src = operand::register(instruction.op1_register());
        op.aux = place as u8 | if memory { run::IN_MEMORY } else { 0 };
        op.imm = instruction.immediate8().into();
        return Some(op);
    }
    if let Some(op) = elements::lower(instruction, context) {
        return Some(op);
    }
    let shape = shape(instruction)?;
    let mut op = operand::op(run::run, instruction, context);
    let number = |n: u32| {
        let register = n < instruction.op_count() && instruction.op_kind(n) == OpKind::Register;
        if register { operand::register(instruction.op_register(n)) } else { 0 }
    };
    op.dst = number(0);
    op.src = number(1) | number(2) << 4;
    op.aux = number(3);
    op.imm = std::ptr::from_ref(shape) as u64;
    Some(op)
}

/// Whether every extension that the instruction needs is offered.
fn offered(instruction: &Instruction) -> bool {
    let (have, sse) = (offers(), crate::interp::sse::offers());
    have.avx
        && instruction.cpuid_features().iter().all(|feature| match feature {
            CpuidFeature::AVX => true,
            CpuidFeature::AVX2 => have.avx2,
            CpuidFeature::FMA => have.fma,
            CpuidFeature::F16C => have.f16c,
            CpuidFeature::VAES => have.vaes,
            CpuidFeature::VPCLMULQDQ => have.vpclmulqdq,
            CpuidFeature::AES => sse.aes,
            CpuidFeature::PCLMULQDQ => sse.pclmulqdq,
            _ => false,
        })
}

/// What is the same for all instructions of a shape. Shapes are as few as stubs, and kept as long.
fn shape(instruction: &Instruction) -> Option<&'static Shape> {
    type Known = BTreeMap<(Code, bool, u8), Option<&'static Shape>>;
    static KNOWN: Mutex<Known> = Mutex::new(Known::new());
    // Registers are replaced in a stub, and memory is in its frame: nothing else is left of an instruction.
    let kinds = || (0..instruction.op_count()).map(|n| instruction.op_kind(n));
    let constant = if kinds().any(|kind| kind == OpKind::Immediate8) { instruction.immediate8() } else { 0 };
    let key = (instruction.code(), kinds().any(|kind| kind == OpKind::Memory), constant);
    if let Some(known) = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return *known;
    }
    let made = make_shape(instruction);
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(key, made);
    made
}

fn make_shape(instruction: &Instruction) -> Option<&'static Shape> {
    let kind = |n: u32| instruction.op_kind(n);
    let flags = matches!(
        instruction.mnemonic(),
        M::Vptest | M::Vtestps | M::Vtestpd | M::Vcomiss | M::Vcomisd | M::Vucomiss | M::Vucomisd
    );
    let result = match kind(0) {
        _ if flags => stubs::Result::Flags,
        OpKind::Memory => stubs::Result::Memory,
        OpKind::Register if instruction.op0_register().is_gpr() => stubs::Result::General,
        OpKind::Register => stubs::Result::Vector,
        _ => return None,
    };
    let stub = stubs::stub(instruction, result)?;
    let place = |n: u32| match n {
        _ if n >= instruction.op_count() => Place::Nowhere,
        _ if kind(n) != OpKind::Register => Place::Nowhere,
        _ if instruction.op_register(n).is_gpr() => Place::General,
        _ => Place::Vector,
    };
    let in_memory = (0..instruction.op_count()).any(|n| kind(n) == OpKind::Memory);
    let bytes = if in_memory { instruction.memory_size().size() } else { 0 };
    if bytes > 32 {
        return None;
    }
    let tiny = if instruction.op_count() > 1 { tiny(instruction) } else { Tiny::Never };
    let shape = Shape {
        stub,
        result,
        places: [place(0), place(1), place(2), place(3)],
        bytes: bytes as u8,
        aligned: is_aligned(instruction.mnemonic()),
        tiny,
    };
    Some(kept(shape))
}

/// The one copy of a shape that ops point to.
fn kept(shape: Shape) -> &'static Shape {
    static SHAPES: Mutex<BTreeMap<(usize, u8), &'static Shape>> = Mutex::new(BTreeMap::new());
    let mut shapes = SHAPES.lock().unwrap_or_else(PoisonError::into_inner);
    // The stub stands for the instruction but for what the stub does not encode: nothing, as its bytes are the key.
    shapes.entry((shape.stub as usize, shape.bytes)).or_insert_with(|| Box::leak(Box::new(shape)))
}

fn is_aligned(mnemonic: M) -> bool {
    matches!(
        mnemonic,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa
    )
}

/// Which numbers of the result can be too small.
fn tiny(instruction: &Instruction) -> Tiny {
    let name = format!("{:?}", instruction.mnemonic());
    let computes =
        ["Vadd", "Vsub", "Vmul", "Vdiv", "Vfm", "Vfnm", "Vhadd", "Vhsub", "Vdp", "Vcvtpd2ps", "Vcvtsd2ss"];
    if instruction.mnemonic() == M::Vcvtps2ph {
        return Tiny::Halves(if instruction.op1_register().is_ymm() { 8 } else { 4 });
    }
    if !computes.iter().any(|prefix| name.starts_with(prefix)) {
        return Tiny::Never;
    }
    let wide = instruction.op0_register().is_ymm();
    match () {
        () if name.ends_with("ps") => Tiny::Singles(if wide { 8 } else { 4 }),
        () if name.ends_with("pd") => Tiny::Doubles(if wide { 4 } else { 2 }),
        () if name.ends_with("ss") => Tiny::Singles(1),
        () if name.ends_with("sd") => Tiny::Doubles(1),
        () => Tiny::Never,
    }
}
