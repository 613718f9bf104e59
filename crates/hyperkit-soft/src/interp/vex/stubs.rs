//! One-instruction functions of the host, generated when an instruction of their shape is first decoded.
//!
//! A stub loads its vector operands from a [`Frame`], executes the instruction under the frame's MXCSR, and stores the
//! result. All stubs there can be fit the buffer, so none is ever freed.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use iced_x86::{Encoder, Instruction, OpKind, Register};

use crate::jit::buffer::CodeBuffer;

/// Room for stubs. About 60,000 shapes exist, nearly all of them by their immediate; a stub takes 64 to 112 bytes.
const BYTES: usize = 16 << 20;

/// Stubs begin at multiples of this, so that no processor has fetched the line before.
const ALIGNMENT: usize = 64;

/// What a stub works on.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub struct Frame {
    /// The vector operands, each at its place in the list of operands.
    pub vectors: [[u8; 32]; 4],
    /// The memory operand.
    pub memory: [u8; 64],
    /// The operand in a general register.
    pub general: u64,
    /// RFLAGS afterwards.
    pub flags: u64,
    /// Before and afterwards. Has no reserved bit set, and masks every exception.
    pub mxcsr: u32,
}

const MEMORY: u8 = 128;
const GENERAL: u32 = 192;
const FLAGS: u32 = 200;
const MXCSR: u32 = 208;

const _: () = assert!(
    std::mem::offset_of!(Frame, memory) == MEMORY as usize
        && std::mem::offset_of!(Frame, general) == GENERAL as usize
        && std::mem::offset_of!(Frame, flags) == FLAGS as usize
        && std::mem::offset_of!(Frame, mxcsr) == MXCSR as usize
);

/// A stub. Leaves the host's MXCSR as `Frame::mxcsr` says.
pub type Stub = unsafe extern "sysv64" fn(*mut Frame);

struct Stubs {
    buffer: CodeBuffer,
    by_code: HashMap<Vec<u8>, Stub>,
}

fn stubs() -> Option<&'static Mutex<Stubs>> {
    static STUBS: OnceLock<Option<Mutex<Stubs>>> = OnceLock::new();
    STUBS
        .get_or_init(|| {
            let buffer = CodeBuffer::new(BYTES).ok()?;
            Some(Mutex::new(Stubs { buffer, by_code: HashMap::new() }))
        })
        .as_ref()
}

/// Whether this host lets stubs be made.
pub fn available() -> bool {
    stubs().is_some()
}

/// What becomes of a stub's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Result {
    /// Nothing but flags.
    Flags,
    /// The first operand, a vector register.
    Vector,
    /// The first operand, a general register.
    General,
    /// The first operand, in memory.
    Memory,
}

/// The stub of an instruction, made if there is none yet; `None` if it cannot be encoded.
pub fn stub(instruction: &Instruction, result: Result) -> Option<Stub> {
    let code = generate(instruction, result)?;
    let mut stubs = stubs()?.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(stub) = stubs.by_code.get(&code) {
        return Some(*stub);
    }
    let mut padded = code.clone();
    padded.resize(code.len().next_multiple_of(ALIGNMENT), 0xcc);
    let at = stubs.buffer.put(&padded)?;
    debug_assert!((at as usize).is_multiple_of(ALIGNMENT));
    // SAFETY: `generate` makes functions of this type, and the buffer is never emptied.
    let stub = unsafe { std::mem::transmute::<*const u8, Stub>(at) };
    stubs.by_code.insert(code, stub);
    Some(stub)
}

fn generate(instruction: &Instruction, result: Result) -> Option<Vec<u8>> {
    let mut code = Vec::with_capacity(112);
    for n in 0..instruction.op_count().min(4) {
        if instruction.op_kind(n) == OpKind::Register {
            if instruction.op_register(n).is_gpr() {
                code.extend([0x48, 0x8b, 0x87]); // mov rax, [rdi + GENERAL]
                code.extend(GENERAL.to_le_bytes());
            } else {
                code.extend([0xc5, 0xfe, 0x6f, 0x47 | (n as u8) << 3, (n as u8) << 5]); // vmovdqu ymm(n), [rdi + 32 * n]
            }
        }
    }
    code.extend([0x0f, 0xae, 0x97]); // ldmxcsr [rdi + MXCSR]
    code.extend(MXCSR.to_le_bytes());
    code.extend(reshape(instruction)?);
    if result == Result::Flags {
        code.extend([0x9c, 0x59, 0x48, 0x89, 0x8f]); // pushfq; pop rcx; mov [rdi + FLAGS], rcx
        code.extend(FLAGS.to_le_bytes());
    }
    code.extend([0x0f, 0xae, 0x9f]); // stmxcsr [rdi + MXCSR]
    code.extend(MXCSR.to_le_bytes());
    match result {
        Result::Vector => code.extend([0xc5, 0xfe, 0x7f, 0x07]), // vmovdqu [rdi], ymm0
        Result::General => {
            code.extend([0x48, 0x89, 0x87]); // mov [rdi + GENERAL], rax
            code.extend(GENERAL.to_le_bytes());
        }
        Result::Memory | Result::Flags => {}
    }
    code.extend([0xc5, 0xf8, 0x77, 0xc3]); // vzeroupper; ret
    Some(code)
}

/// The instruction with its vector operands in YMM0 to YMM3, a general one in RAX, and memory in the frame at RDI.
fn reshape(instruction: &Instruction) -> Option<Vec<u8>> {
    let mut fixed = *instruction;
    for n in 0..instruction.op_count() {
        match instruction.op_kind(n) {
            OpKind::Register => {
                let register = instruction.op_register(n);
                let first = match () {
                    () if register.is_xmm() => Register::XMM0 + n,
                    () if register.is_ymm() => Register::YMM0 + n,
                    () if register.is_gpr32() => Register::EAX,
                    () if register.is_gpr64() => Register::RAX,
                    () => return None,
                };
                fixed.set_op_register(n, first);
            }
            OpKind::Memory => {
                fixed.set_memory_base(Register::RDI);
                fixed.set_memory_index(Register::None);
                fixed.set_memory_index_scale(1);
                fixed.set_memory_displacement64(u64::from(MEMORY));
                fixed.set_memory_displ_size(8);
                fixed.set_segment_prefix(Register::None);
            }
            OpKind::Immediate8 => {}
            _ => return None,
        }
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&fixed, 0).ok()?;
    Some(encoder.take_buffer())
}
