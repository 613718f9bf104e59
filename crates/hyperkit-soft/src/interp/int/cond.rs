//! Conditions of Jcc, SETcc and CMOVcc (SDM vol. 1, appendix B).

use iced_x86::{ConditionCode, Instruction};

use crate::flags::Flags;

/// Whether condition `C`, by its encoding (O 0, NO 1, B 2 … G 15), holds.
#[inline(always)]
pub fn holds<const C: u8>(flags: &Flags) -> bool {
    let less = ((flags.sign ^ flags.carries ^ (flags.carries << 1)) as i64) < 0;
    let positive = match C >> 1 {
        0 => flags.of(),
        1 => flags.cf(),
        2 => flags.zf(),
        3 => flags.cf() | flags.zf(),
        4 => flags.sf(),
        5 => flags.pf(),
        6 => less,
        _ => less | flags.zf(),
    };
    positive ^ (C & 1 != 0)
}

/// The encoding of an instruction's condition.
pub fn encoding(instruction: &Instruction) -> usize {
    match instruction.condition_code() {
        ConditionCode::None => 0,
        code => code as usize - 1,
    }
}

/// The instance of a handler, generic in the condition and then other parameters, for a condition.
macro_rules! by_cond {
    ($cond:expr, $handler:ident $(, $param:ty)*) => {
        [
            $handler::<0 $(, $param)*> as $crate::op::Handler,
            $handler::<1 $(, $param)*>,
            $handler::<2 $(, $param)*>,
            $handler::<3 $(, $param)*>,
            $handler::<4 $(, $param)*>,
            $handler::<5 $(, $param)*>,
            $handler::<6 $(, $param)*>,
            $handler::<7 $(, $param)*>,
            $handler::<8 $(, $param)*>,
            $handler::<9 $(, $param)*>,
            $handler::<10 $(, $param)*>,
            $handler::<11 $(, $param)*>,
            $handler::<12 $(, $param)*>,
            $handler::<13 $(, $param)*>,
            $handler::<14 $(, $param)*>,
            $handler::<15 $(, $param)*>,
        ][$cond & 15]
    };
}

pub(crate) use by_cond;
