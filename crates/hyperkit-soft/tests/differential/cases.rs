//! The state that an instance starts from: random, but for what the instruction would run away with.

use iced_x86::{Mnemonic, OpKind};

use crate::forms::Instance;
use crate::random::Random;
use crate::state::{FX_BYTES, Outcome, State};
use crate::{BASE, CODE, STACK};

/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = 0x8d5;
const DF: u64 = 1 << 10;
const RSP: usize = 4;
const RBP: usize = 5;

/// Where to put bytes in memory before the instruction, on both sides.
pub type Pokes = Vec<(u64, Vec<u8>)>;

/// A starting state for an instance, and what memory holds.
pub fn starting_state(built: &mut Instance, random: &mut Random) -> (State, Pokes) {
    let mut state = State { gpr: std::array::from_fn(|_| random.value()), ..State::zero() };
    state.rip = CODE;
    state.rflags = 0x202 | (random.next() & ARITHMETIC) | if random.once_in(4) { DF } else { 0 };
    state.fx = registers(random);
    state.upper = upper(random);
    use Mnemonic as M;
    if matches!(built.instruction.mnemonic(), M::Dpps | M::Dppd | M::Vdpps | M::Vdppd) {
        state.fx[24] |= 0x80; // they raise exceptions in several steps, unseen: unmasked ones are not exact
        state.fx[25] |= 0x1f;
    }
    state.outcome = Outcome::Done;
    state.gpr[RSP] = STACK + random.below(0x200);
    special_registers(built, &mut state, random);
    gather_registers(&built.instruction, &mut state, random);
    for (register, value) in &built.fixed {
        state.gpr[register.number()] = *value;
    }
    let mut pokes = Pokes::new();
    if built.instruction.mnemonic() == Mnemonic::Popfq || built.instruction.mnemonic() == Mnemonic::Popf {
        // Without TF, which would trap; AC, which the host honours while our handler runs; NT and ID, which its
        // return does not restore.
        pokes.push((state.gpr[RSP], (random.next() & !0x24_4100).to_le_bytes().to_vec()));
    } else if matches!(built.instruction.mnemonic(), Mnemonic::Ret) {
        pokes.push((state.gpr[RSP], target(random).to_le_bytes().to_vec()));
    } else if !built.instruction.is_stack_instruction() || random.once_in(2) {
        pokes.push((state.gpr[RSP] & !7, random.value().to_le_bytes().to_vec()));
    }
    if let Some(address) = built.address {
        let operand = operand_bytes(built, &state, random);
        pokes.push((address, operand));
    }
    pokes.retain(|(at, bytes)| {
        *at >= BASE
            && at.checked_add(bytes.len() as u64).is_some_and(|end| end <= BASE + crate::BREAKPOINTS as u64)
    });
    (state, pokes)
}

/// A starting state for a program: with every SSE exception masked, as its flags are not exact otherwise.
pub fn program_state(random: &mut Random) -> State {
    let mut state = State { gpr: std::array::from_fn(|_| random.value()), ..State::zero() };
    state.rip = CODE;
    state.rflags = 0x202 | (random.next() & ARITHMETIC);
    state.fx = registers(random);
    state.upper = upper(random);
    state.fx[24] |= 0x80;
    state.fx[25] |= 0x1f;
    state.gpr[RSP] = STACK;
    state
}

/// Somewhere to jump to: breakpoints all over.
fn target(random: &mut Random) -> u64 {
    CODE + 0x40 + random.below(0x400)
}

/// Registers that an instruction uses in a way that needs care.
fn special_registers(built: &Instance, state: &mut State, random: &mut Random) {
    let instruction = &built.instruction;
    let uses_register = |n: u32| instruction.op_kind(n) == OpKind::Register;
    match instruction.mnemonic() {
        Mnemonic::Div | Mnemonic::Idiv if !random.once_in(4) => {
            state.gpr[2] = random.pick(&[0, 0, 1, 50, 99, u64::MAX]);
            if random.once_in(3) {
                state.gpr[0] = random.next() >> random.below(64);
            }
        }
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
            if built.address.is_some() && uses_register(1) =>
        {
            let offset = random.below(0x4000) as i64 - 0x2000;
            state.gpr[instruction.op1_register().number()] = offset as u64;
        }
        Mnemonic::Enter | Mnemonic::Leave => state.gpr[RBP] = STACK + 0x300 + random.below(0x100),
        Mnemonic::Jmp | Mnemonic::Call if uses_register(0) => {
            state.gpr[instruction.op0_register().number()] = target(random);
        }
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => {
            state.gpr[1] = random.pick(&[0, 1, 2, 1 << 32, u64::MAX]);
        }
        Mnemonic::Jrcxz | Mnemonic::Jecxz => state.gpr[1] = random.pick(&[0, 1, 1 << 32, u64::MAX]),
        _ => {}
    }
    if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
        state.gpr[1] = random.below(24);
    }
}

/// The bytes at the memory operand.
fn operand_bytes(built: &Instance, state: &State, random: &mut Random) -> Vec<u8> {
    let instruction = &built.instruction;
    match instruction.mnemonic() {
        Mnemonic::Jmp | Mnemonic::Call => return target(random).to_le_bytes().to_vec(),
        Mnemonic::Cmpxchg if random.once_in(2) => return state.gpr[0].to_le_bytes().to_vec(),
        Mnemonic::Cmpxchg8b if random.once_in(2) => {
            return [&state.gpr[0].to_le_bytes()[..4], &state.gpr[2].to_le_bytes()[..4]].concat();
        }
        Mnemonic::Cmpxchg16b if random.once_in(2) => {
            return [state.gpr[0].to_le_bytes(), state.gpr[2].to_le_bytes()].concat();
        }
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
            let mut image = vec![0; 512];
            image[..FX_BYTES].copy_from_slice(&registers(random));
            if random.once_in(8) {
                image[26] = 1; // a reserved bit of MXCSR
            }
            return image;
        }
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => return area(random),
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => {
            return (mxcsr(random) | u32::from(random.once_in(8)) << 16).to_le_bytes().to_vec();
        }
        Mnemonic::Fld | Mnemonic::Fbld if instruction.memory_size().size() == 10 => {
            return extended_or_decimal(built, random);
        }
        Mnemonic::Fldenv | Mnemonic::Frstor => return environment(instruction.memory_size().size(), random),
        _ => {}
    }
    if instruction.op_kind(0) == OpKind::MemoryESRDI || instruction.op_kind(1) == OpKind::MemoryESRDI {
        // Long equal runs, for the comparing string instructions.
        return vec![random.below(3) as u8 | (state.gpr[0] as u8) & 0xfe; 64];
    }
    (0..8).flat_map(|_| random.value().to_le_bytes()).collect()
}

/// An XSAVE area: mostly a good one.
fn area(random: &mut Random) -> Vec<u8> {
    let mut area = vec![0; 832];
    area[..FX_BYTES].copy_from_slice(&registers(random));
    area[576..].copy_from_slice(&upper(random));
    area[512] = random.below(8) as u8;
    if random.once_in(16) {
        area[26] = 1; // a reserved bit of MXCSR
    }
    if random.once_in(16) {
        area[512 + random.below(24) as usize] |= 1 << random.below(7);
    }
    area
}

fn extended_or_decimal(built: &Instance, random: &mut Random) -> Vec<u8> {
    if built.instruction.mnemonic() == Mnemonic::Fld {
        return random.extended().to_vec();
    }
    let mut digits: Vec<u8> = (0..9).map(|_| (random.below(10) | random.below(10) << 4) as u8).collect();
    digits.push(random.pick(&[0, 0x80]));
    digits
}

/// An x87 environment, then registers.
fn environment(bytes: usize, random: &mut Random) -> Vec<u8> {
    let image = registers(random);
    let tags = random.next().to_le_bytes();
    let width = if bytes == 14 || bytes == 94 { 2 } else { 4 };
    let mut environment = vec![0; 7 * width];
    environment[..2].copy_from_slice(&image[..2]);
    environment[width..width + 2].copy_from_slice(&image[2..4]);
    environment[2 * width..2 * width + 2].copy_from_slice(&tags[..2]);
    (0..8).for_each(|_| environment.extend(random.extended()));
    environment.truncate(bytes.max(7 * width));
    environment
}

/// MXCSR: at its default most often, otherwise any rounding, FTZ, DAZ, and now and then unmasked exceptions.
fn mxcsr(random: &mut Random) -> u32 {
    let flags = random.next() as u32 & if random.once_in(2) { 0x3f } else { 0x20 };
    match random.below(8) {
        0..4 => 0x1f80 | flags,
        4..6 => 0x1f80 | (random.next() as u32 & 0xe040) | flags,
        6 => (random.next() as u32 & 0xffc0) | flags,
        _ => (random.next() as u32 & 0xffc0 & !(1 << (7 + random.below(6)))) | flags,
    }
}

/// Upper halves of the YMM registers, some of them 0.
fn upper(random: &mut Random) -> [u8; 256] {
    let mut upper = [0; 256];
    if is_x86_feature_detected!("avx") && !random.once_in(8) {
        upper.as_chunks_mut::<16>().0.iter_mut().for_each(|half| *half = random.vector());
    }
    upper
}

/// x87 and SSE registers.
fn registers(random: &mut Random) -> [u8; FX_BYTES] {
    let mut fx = [0; FX_BYTES];
    let fcw: u16 = match random.below(4) {
        0 | 1 => 0x37f,
        2 => 0x7f | (random.pick(&[0, 2, 3]) << 8) | (random.below(4) as u16) << 10,
        _ => {
            0x40 | (random.next() as u16 & 0x3f)
                | (random.pick(&[0, 2, 3]) << 8)
                | (random.below(4) as u16) << 10
        }
    };
    let mut flags = random.next() as u16 & if random.once_in(2) { 0x7f } else { 0 };
    if !random.once_in(16) {
        flags &= fcw | 0x40;
    }
    let mut fsw = flags | (random.next() as u16 & 0x7f00);
    if fsw & !fcw & 0x3f != 0 {
        fsw |= 0x8080;
    }
    fx[..2].copy_from_slice(&fcw.to_le_bytes());
    fx[2..4].copy_from_slice(&fsw.to_le_bytes());
    fx[4] = match random.below(4) {
        0 => 0,
        1 => 0xff,
        _ => random.next() as u8 | random.next() as u8,
    };
    fx[24..28].copy_from_slice(&mxcsr(random).to_le_bytes());
    for n in 0..8 {
        fx[32 + 16 * n..42 + 16 * n].copy_from_slice(&random.extended());
    }
    for n in 0..16 {
        fx[160 + 16 * n..176 + 16 * n].copy_from_slice(&random.vector());
    }
    fx
}

/// Small indices for a gather: what lies far away is memory for one processor and none for the other.
fn gather_registers(instruction: &iced_x86::Instruction, state: &mut State, random: &mut Random) {
    let index = instruction.memory_index();
    if !index.is_xmm() && !index.is_ymm() {
        return;
    }
    let bytes = if format!("{:?}", instruction.code()).contains("vm32") { 4 } else { 8 };
    let n = index.number();
    for at in (0..16).step_by(bytes) {
        for half in [&mut state.fx[160 + 16 * n..], &mut state.upper[16 * n..]] {
            let small = random.below(256) as i64 - 128;
            half[at..at + bytes].copy_from_slice(&small.to_le_bytes()[..bytes]);
        }
    }
}
