//! One instruction on the host's own processor.
//!
//! An `int3` of ours enters the signal handler, which replaces the whole interrupted context (general registers,
//! flags, x87 and SSE state) by the test's and returns into the code under test. The code ends in `int3` wherever
//! it may go; that, or the fault it raises, enters the handler again, which keeps the context as the result and
//! puts ours back.

use std::arch::asm;
use std::ptr::{self, addr_of_mut};

use crate::state::{FX_BYTES, Outcome, State, UPPER_BYTES};
use crate::{BASE, BYTES};

/// Offset of `XSTATE_BV` in a signal frame's extended state.
const XSTATE_BV: usize = 512;
/// Offset of the upper halves of the YMM registers there, if the host has them, and their bit in `XSTATE_BV`.
const UPPER: usize = 576;
const AVX: u8 = 4;
/// Positions of RAX … R15, by encoding, among the saved registers.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Idle,
    Entering,
    Running,
}

struct Run {
    phase: Phase,
    state: State,
    saved_gregs: [i64; 23],
    saved_fx: [u8; UPPER + UPPER_BYTES],
    has_avx: bool,
}

static mut RUN: Run = Run {
    phase: Phase::Idle,
    state: State::zero(),
    saved_gregs: [0; 23],
    saved_fx: [0; UPPER + UPPER_BYTES],
    has_avx: false,
};

/// The host's processor, with memory at [`BASE`]. One at a time, on the thread that made it.
pub struct Native {
    _one: std::sync::MutexGuard<'static, ()>,
}

static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

impl Native {
    /// Maps the memory and takes over the signals of faults.
    pub fn new() -> Native {
        let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: maps fresh memory where nothing is mapped (NOREPLACE), an alternate stack of its own, and
        // installs a handler that is sound for every context that it may meet.
        unsafe {
            let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            static MAPPED: std::sync::Once = std::sync::Once::new();
            MAPPED.call_once(|| {
                let at = libc::mmap(BASE as *mut _, BYTES, prot, flags, -1, 0);
                assert_eq!(at as u64, BASE, "the test's memory must be mappable at {BASE:#x}");
            });
            let stack_bytes = 1 << 16;
            let stack = libc::stack_t {
                ss_sp: Box::leak(vec![0u8; stack_bytes].into_boxed_slice()).as_mut_ptr().cast(),
                ss_flags: 0,
                ss_size: stack_bytes,
            };
            assert_eq!(libc::sigaltstack(&stack, ptr::null_mut()), 0);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for signal in [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL] {
                assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
            }
        }
        Native { _one }
    }

    /// The memory.
    pub fn memory(&mut self) -> &mut [u8] {
        // SAFETY: mapped in `new`, for ever, and only reached through `self`.
        unsafe { std::slice::from_raw_parts_mut(BASE as *mut u8, BYTES) }
    }

    /// Runs from `state` until an `int3` or a fault.
    pub fn run(&mut self, state: &State) -> State {
        // SAFETY: `self` is the only one to touch RUN, but for the handler, which runs inside the `int3`; the
        // handler gives every register back as it was.
        unsafe {
            let run = addr_of_mut!(RUN);
            (*run).has_avx = is_x86_feature_detected!("avx");
            (*run).state = *state;
            (*run).phase = Phase::Entering;
            asm!("int3");
            (*run).state
        }
    }
}

extern "C" fn on_signal(signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the interrupted context, which lies on the alternate stack and is ours to change;
    // RUN is only touched here while `run` waits in its `int3`.
    unsafe {
        let run = &mut *addr_of_mut!(RUN);
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let fx = machine.fpregs.cast::<u8>();
        match run.phase {
            Phase::Entering => {
                run.saved_gregs = machine.gregs;
                ptr::copy_nonoverlapping(fx, run.saved_fx.as_mut_ptr(), frame_bytes(run.has_avx));
                enter(&mut machine.gregs, fx, &run.state, run.has_avx);
                run.phase = Phase::Running;
            }
            Phase::Running => {
                leave(&machine.gregs, fx, &mut run.state, run.has_avx);
                machine.gregs = run.saved_gregs;
                ptr::copy_nonoverlapping(run.saved_fx.as_ptr(), fx, FX_BYTES);
                if run.has_avx {
                    let upper = run.saved_fx.as_ptr().add(UPPER);
                    ptr::copy_nonoverlapping(upper, fx.add(UPPER), UPPER_BYTES);
                    *fx.add(XSTATE_BV) = run.saved_fx[XSTATE_BV];
                }
                run.phase = Phase::Idle;
            }
            Phase::Idle => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// Bytes of a signal frame's extended state that are used here.
fn frame_bytes(has_avx: bool) -> usize {
    if has_avx { UPPER + UPPER_BYTES } else { FX_BYTES }
}

/// # Safety
/// `fx` is the extended state of a signal frame.
unsafe fn enter(gregs: &mut [i64; 23], fx: *mut u8, state: &State, has_avx: bool) {
    for (register, position) in state.gpr.iter().zip(GREGS) {
        gregs[position as usize] = *register as i64;
    }
    gregs[libc::REG_RIP as usize] = state.rip as i64;
    gregs[libc::REG_EFL as usize] = state.rflags as i64;
    // SAFETY: the caller's promise; the frame of every x86-64 with XSAVE is longer than its header.
    unsafe {
        ptr::copy_nonoverlapping(state.fx.as_ptr(), fx, FX_BYTES);
        *fx.add(XSTATE_BV) |= 3;
        if has_avx {
            ptr::copy_nonoverlapping(state.upper.as_ptr(), fx.add(UPPER), UPPER_BYTES);
            *fx.add(XSTATE_BV) |= AVX;
        }
    }
}

/// # Safety
/// As [`enter`].
unsafe fn leave(gregs: &[i64; 23], fx: *const u8, state: &mut State, has_avx: bool) {
    for (register, position) in state.gpr.iter_mut().zip(GREGS) {
        *register = gregs[position as usize] as u64;
    }
    let vector = gregs[libc::REG_TRAPNO as usize] as u8;
    let breakpoint = vector == 3;
    state.rip = gregs[libc::REG_RIP as usize] as u64 - u64::from(breakpoint);
    state.rflags = gregs[libc::REG_EFL as usize] as u64;
    state.outcome = if breakpoint {
        Outcome::Done
    } else {
        Outcome::Fault { vector, error: gregs[libc::REG_ERR as usize] as u16 }
    };
    // SAFETY: the caller's promise.
    unsafe { ptr::copy_nonoverlapping(fx, state.fx.as_mut_ptr(), FX_BYTES) };
    state.upper.fill(0);
    // SAFETY: as above.
    if has_avx && unsafe { *fx.add(XSTATE_BV) } & AVX != 0 {
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(fx.add(UPPER), state.upper.as_mut_ptr(), UPPER_BYTES) };
    }
}
