//! One instruction on the processor under test.

use std::sync::Arc;

use hyperkit_mem::{GuestAddr, GuestRam};
use hyperkit_soft::cpu::{CodeSize, Cpu};
use hyperkit_soft::decode::{Context, lower};
use hyperkit_soft::jit::Tiers;
use hyperkit_soft::op::{BLOCK, Flow, Op};
use iced_x86::{Decoder, DecoderOptions};

use crate::state::{FX_BYTES, Outcome, State};
use crate::{BASE, BYTES, CODE};

/// How often an instruction may ask to be run again: more than any repeat count that the tests use.
const REPEATS: u32 = 1000;

/// The processor under test, with memory at [`BASE`].
pub struct Guest {
    cpu: Box<Cpu>,
    ram: Arc<GuestRam>,
    memory: *mut u8,
    tiers: Tiers,
}

impl Guest {
    /// One in which these tiers run.
    pub fn new(tiers: Tiers) -> Guest {
        let ram = Arc::new(GuestRam::new(BASE + BYTES as u64).expect("a few dozen MiB of RAM"));
        let memory = ram.span(GuestAddr(BASE), BYTES as u64).expect("inside the RAM").as_ptr();
        let mut cpu = Cpu::for_tests(Arc::clone(&ram));
        cpu.cpl = 3;
        if cpu.offers_wide().avx {
            cpu.cr4 |= hyperkit_soft::system::cr4::OSXSAVE;
            cpu.xcr0 = hyperkit_soft::interp::vex::component::ALL;
            cpu.refresh_gate();
        }
        cpu.refresh_privilege();
        cpu.set_tiers(tiers);
        Guest { cpu, ram, memory, tiers }
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
        if self.tiers != Tiers::INTERPRETER {
            return self.run_as_program(state, code);
        }
        self.enter(state);
        let cpu = &mut self.cpu;
        cpu.regs[usize::from(BLOCK)] = CODE;
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
        self.leave(after)
    }

    /// The same through blocks and the run loop.
    fn run_as_program(&mut self, state: &State, code: &[u8]) -> State {
        let at = (CODE - BASE) as usize;
        self.memory()[at..at + code.len()].copy_from_slice(code);
        self.ram.mark_written(GuestAddr(BASE), BYTES as u64);
        let after = self.run_program(state);
        self.memory()[at..at + code.len()].fill(0xcc);
        assert_host_is_clean(code);
        after
    }

    fn enter(&mut self, state: &State) {
        let cpu = &mut self.cpu;
        cpu.regs[..16].copy_from_slice(&state.gpr);
        cpu.flags.set_rflags(state.rflags);
        cpu.rip = state.rip;
        cpu.fx.0[..FX_BYTES].copy_from_slice(&state.fx);
        cpu.upper.0 = state.upper;
        cpu.fault = None;
    }

    fn leave(&self, mut after: State) -> State {
        after.gpr.copy_from_slice(&self.cpu.regs[..16]);
        after.rflags = self.cpu.flags.rflags();
        after.fx.copy_from_slice(&self.cpu.fx.0[..FX_BYTES]);
        after.upper = self.cpu.upper.0;
        after
    }

    /// Puts a program at [`CODE`].
    pub fn load_program(&mut self, bytes: &[u8]) {
        let at = (CODE - BASE) as usize;
        self.memory()[at..at + 0x100].fill(0xcc);
        self.memory()[at..at + bytes.len()].copy_from_slice(bytes);
        self.ram.mark_written(GuestAddr(CODE), 0x100);
    }

    /// Runs the program to a breakpoint or a fault, as the processor runs any code.
    pub fn run_program(&mut self, state: &State) -> State {
        self.enter(state);
        let (rip, fault) = self.cpu.run_to_fault(1000).expect("the program ends in a breakpoint");
        let mut after = *state;
        after.rip = rip;
        // The breakpoint comes as what it finds in the empty interrupt table.
        if (fault.vector, fault.error) != (13, Some(3 << 3 | 2)) {
            after.outcome = Outcome::Fault { vector: fault.vector, error: fault.error.unwrap_or(0) };
        }
        self.leave(after)
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
