//! Short programs: random instructions in a row, through decoded blocks and the run loop, so that what single
//! instructions do not show (flags computed late, fused pairs, links between blocks) is compared too.

use iced_x86::{Encoder, FlowControl, Instruction, Mnemonic, OpKind};

use crate::forms::{self, Form, Instance};
use crate::random::Random;
use crate::{CODE, exempt};

/// Longest program in bytes; the breakpoints that branches lead to lie behind.
const BYTES_MAX: usize = 0x60;

/// A program, and the flags that are undefined wherever it may end: at a jump, a fault or its end.
pub struct Program {
    pub bytes: Vec<u8>,
    pub undefined_rflags: u64,
    pub text: String,
}

/// Forms that can stand anywhere in a program: without effects on RIP, RSP or state that is not compared whole.
pub fn usable(form: Form) -> bool {
    use Mnemonic as M;
    let mnemonic = form.code.mnemonic();
    let jumps = form.code.is_jcc_short_or_near();
    let excluded = matches!(
        mnemonic,
        M::Bsf
            | M::Bsr
            | M::Shld
            | M::Shrd
            | M::Fcomi
            | M::Fcomip
            | M::Fucomi
            | M::Fucomip
            | M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Fnsave
            | M::Fnstenv
            | M::Frstor
            | M::Fldenv
            | M::Ldmxcsr
            | M::Fldcw
            | M::Push
            | M::Pop
            | M::Pushfq
            | M::Pushf
            | M::Popf
            | M::Popfq
            | M::Enter
            | M::Leave
            | M::Std
            | M::Xlatb
            | M::Maskmovq
            | M::Maskmovdqu
    );
    !excluded && exempt::skipped(form).is_none() && (jumps || !exempt::intentionally_absent(form.code))
}

/// A program of a few instructions from `forms`; every other one is a conditional jump after something that sets
/// flags, as compilers have it.
pub fn random(forms: &[Form], jumps: &[Form], random: &mut Random) -> Program {
    let mut program = Program { bytes: Vec::new(), undefined_rflags: 0, text: String::new() };
    let mut undefined = 0;
    let count = 2 + random.below(8);
    for n in 0..count {
        let last = n + 1 == count;
        let pool = if last || random.once_in(3) { jumps } else { forms };
        let found = (0..200).find_map(|_| {
            let built = forms::instance(random.pick(pool), random)?;
            acceptable(&built, undefined).then_some(built)
        });
        let Some(mut built) = found else { continue };
        if built.instruction.op_kind(0) == OpKind::NearBranch64 {
            built.instruction.set_near_branch64(CODE + BYTES_MAX as u64 + 2 + random.below(0x18));
        }
        let mut encoder = Encoder::new(64);
        let ip = CODE + program.bytes.len() as u64;
        if encoder.encode(&built.instruction, ip).is_err() {
            continue;
        }
        let bytes = encoder.take_buffer();
        if program.bytes.len() + bytes.len() > BYTES_MAX {
            break;
        }
        program.bytes.extend(bytes);
        undefined = exempt::undefined_after(&built.instruction, undefined);
        program.undefined_rflags |= undefined;
        program.text += &format!("{:?} ", built.instruction.code());
    }
    program
}

/// Whether an instance can follow when `undefined` flags are unknown.
fn acceptable(built: &Instance, undefined: u64) -> bool {
    let instruction = &built.instruction;
    let addressed = built.fixed.is_empty();
    let flow = matches!(instruction.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
    let bit_offset =
        is_bit_test(instruction) && built.address.is_some() && instruction.op_kind(1) == OpKind::Register;
    let reads_unknown = exempt::rflags(instruction.rflags_read()) & undefined != 0;
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    addressed && flow && !bit_offset && !reads_unknown && !repeats && !instruction.is_string_instruction()
}

fn is_bit_test(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
}
