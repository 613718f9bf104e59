//! One instruction on the processor under test.

use std::sync::Arc;

use hyperkit_mem::{GuestAddr, GuestRam};
use hyperkit_soft::cpu::{CodeSize, Cpu};
use hyperkit_soft::decode::{Context, lower};
use hyperkit_soft::op::{BLOCK, Flow, Op};
use iced_x86::{Decoder, DecoderOptions};

use crate::state::{FX_BYTES, Outcome, State};
use crate::{BASE, BYTES, CODE};

/// How often an instruction may ask to be run again: more than any repeat count that the tests use.
const REPEATS: u32 = 1000;

/// The processor under test, with memory at [`BASE`].
pub struct Guest {
    cpu: Box<Cpu>,
    memory: *mut u8,
}

impl Guest {
    pub fn new() -> Guest {
        let ram = Arc::new(GuestRam::new(BASE + BYTES as u64).expect("a few dozen MiB of RAM"));
        let memory = ram.span(GuestAddr(BASE), BYTES as u64).expect("inside the RAM").as_ptr();
        let mut cpu = Cpu::for_tests(ram);
        cpu.cpl = 3;
        cpu.refresh_privilege();
        Guest { cpu, memory }
    }

    /// The memory.
    pub fn memory(&mut self) -> &mut [u8] {
        // SAFETY: RAM of the processor, which only runs inside `run`.
        unsafe { std::slice::from_raw_parts_mut(self.memory, BYTES) }
    }

    /// Whether the processor offers the instruction at [`CODE`].
    pub fn offers(&self, code: &[u8]) -> bool {
        let op = op(code);
        op.run as *const () != hyperkit_soft::system::undefined as *const ()
    }

    /// Runs the one instruction at [`CODE`].
    pub fn run(&mut self, state: &State, code: &[u8]) -> State {
        let cpu = &mut self.cpu;
        cpu.regs[..16].copy_from_slice(&state.gpr);
        cpu.flags.set_rflags(state.rflags);
        cpu.rip = state.rip;
        cpu.regs[usize::from(BLOCK)] = CODE;
        cpu.fx.0[..FX_BYTES].copy_from_slice(&state.fx);
        cpu.fault = None;
        let op = op(code);
        let mut after = *state;
        for _ in 0..REPEATS {
            match (op.run)(cpu, &op) {
                Ok(Flow::Next) => after.rip = CODE + u64::from(op.len),
                Ok(Flow::Leave) => after.rip = cpu.rip,
                Err(_) => {
                    let fault = cpu.fault.take().expect("a trap comes with its fault");
                    after.outcome = Outcome::Fault { vector: fault.vector, error: fault.error.unwrap_or(0) };
                }
            }
            if after.rip != CODE || after.outcome != Outcome::Done {
                break;
            }
        }
        assert_host_is_clean(code);
        after.gpr.copy_from_slice(&cpu.regs[..16]);
        after.rflags = cpu.flags.rflags();
        after.fx.copy_from_slice(&cpu.fx.0[..FX_BYTES]);
        after
    }
}

/// What Rust code relies on: an empty x87 stack with nothing pending, and the control words at their default.
fn assert_host_is_clean(code: &[u8]) {
    #[repr(align(16))]
    struct Image([u8; 512]);
    let mut image = Image([0; 512]);
    // SAFETY: writes 512 aligned bytes and changes no register.
    unsafe {
        std::arch::asm!("fxsave64 [{}]", in(reg) image.0.as_mut_ptr(), options(nostack, preserves_flags))
    };
    let word = |at: usize| u16::from_le_bytes([image.0[at], image.0[at + 1]]);
    assert_eq!(word(0), 0x37f, "x87 control word after {code:02x?}");
    assert_eq!(word(2) & 0x3f, 0, "x87 exceptions after {code:02x?}");
    assert_eq!(image.0[4], 0, "x87 tags after {code:02x?}");
    assert_eq!(word(24) & 0xffc0, 0x1f80, "MXCSR after {code:02x?}");
}

fn op(code: &[u8]) -> Op {
    let instruction = Decoder::with_ip(64, code, CODE, DecoderOptions::NONE).decode();
    lower(&instruction, &Context { block_rip: CODE, code_size: CodeSize::Bits64 })
}
