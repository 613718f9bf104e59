//! What a stretch of unprivileged code can change of a processor, to put it back and to compare it.

use std::fmt::Write;

use crate::cpu::{Cpu, FxArea, UpperHalves};
use crate::flags::Flags;
use crate::trap::Fault;

/// Bytes of the FXSAVE image that are compared: the registers; the rest is reserved.
const FX_BYTES: usize = 416;

/// Bytes of it that need not agree: FOP, FIP and FDP (SDM vol. 1 §8.1.8).
const FX_POINTERS: std::ops::Range<usize> = 6..24;

const NAMES: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
    "R15",
];

/// See the module.
#[derive(Debug, Clone)]
pub struct Snapshot {
    regs: [u64; 18],
    flags: Flags,
    /// Of the next instruction.
    pub rip: u64,
    fx: FxArea,
    upper: UpperHalves,
    shadow: bool,
    cr2: u64,
    /// What was raised.
    pub fault: Option<Fault>,
    tlb_index: usize,
    countdown: u32,
    deferred: bool,
    retired: u64,
}

impl Snapshot {
    /// Of a processor between two instructions.
    pub fn take(cpu: &Cpu) -> Snapshot {
        Snapshot {
            regs: cpu.regs,
            flags: cpu.flags,
            rip: cpu.rip,
            fx: cpu.fx,
            upper: cpu.upper,
            shadow: cpu.shadow,
            cr2: cpu.cr2,
            fault: cpu.fault,
            tlb_index: cpu.tlb_index,
            countdown: cpu.blocks.countdown,
            deferred: cpu.interrupts.deferred,
            retired: cpu.retired,
        }
    }

    /// Takes another one in its place.
    pub fn retake(&mut self, cpu: &Cpu) {
        *self = Snapshot::take(cpu);
    }

    /// Whether the processor is surely as this says, in all that [`Snapshot::differences`] looks at. Quick.
    pub fn is_left_by(&self, cpu: &Cpu) -> bool {
        let pointers = FX_POINTERS;
        self.regs[..16] == cpu.regs[..16]
            && self.rip == cpu.rip
            && self.retired == cpu.retired
            && self.rflags() == cpu.flags.rflags()
            && (self.shadow, self.cr2, self.fault) == (cpu.shadow, cpu.cr2, cpu.fault)
            && self.fx.0[..pointers.start] == cpu.fx.0[..pointers.start]
            && self.fx.0[pointers.end..FX_BYTES] == cpu.fx.0[pointers.end..FX_BYTES]
            && self.upper.0 == cpu.upper.0
    }

    /// Puts everything back.
    pub fn restore(&self, cpu: &mut Cpu) {
        cpu.regs = self.regs;
        cpu.flags = self.flags;
        cpu.rip = self.rip;
        cpu.fx = self.fx;
        cpu.upper = self.upper;
        cpu.shadow = self.shadow;
        cpu.cr2 = self.cr2;
        cpu.fault = self.fault;
        cpu.blocks.countdown = self.countdown;
        cpu.interrupts.deferred = self.deferred;
        cpu.retired = self.retired;
        if cpu.tlb_index != self.tlb_index {
            cpu.use_tlb(self.tlb_index);
        }
    }

    /// RFLAGS.
    pub fn rflags(&self) -> u64 {
        self.flags.rflags()
    }

    /// Whether the rights of loads and stores are the processor's.
    pub fn same_rights(&self, cpu: &Cpu) -> bool {
        self.tlb_index == cpu.tlb_index
    }

    /// Instructions that the processor has retired since.
    pub fn retired_since(&self, cpu: &Cpu) -> u64 {
        cpu.retired.wrapping_sub(self.retired)
    }

    /// What the translation left otherwise than the interpreter, whose state this is, a line each; empty if nothing.
    /// Of RFLAGS the bits in `flags` count.
    pub fn differences(&self, translated: &Snapshot, flags: u64) -> String {
        let mut text = String::new();
        let mut line = |name: &str, interpreted: u64, translated: u64| {
            if interpreted != translated {
                let _ = writeln!(text, "{name}: interpreted {interpreted:#x}, translated {translated:#x}");
            }
        };
        for (n, name) in NAMES.iter().enumerate() {
            line(name, self.regs[n], translated.regs[n]);
        }
        line("RFLAGS", self.flags.rflags() & flags, translated.flags.rflags() & flags);
        line("interrupt shadow", u64::from(self.shadow), u64::from(translated.shadow));
        line("CR2", self.cr2, translated.cr2);
        line("instructions", self.retired, translated.retired);
        if self.fault.is_none() && translated.fault.is_none() {
            line("RIP", self.rip, translated.rip);
        }
        if self.fault != translated.fault {
            let _ = writeln!(text, "fault: interpreted {:?}, translated {:?}", self.fault, translated.fault);
        }
        self.vectors(translated, &mut text);
        text
    }

    fn vectors(&self, translated: &Snapshot, text: &mut String) {
        let bytes = |snapshot: &Snapshot| {
            let mut bytes = snapshot.fx.0;
            bytes[FX_POINTERS].fill(0);
            bytes[24..28].copy_from_slice(&snapshot.fx.0[24..28]);
            bytes
        };
        let (ours, theirs) = (bytes(self), bytes(translated));
        for at in (0..FX_BYTES).step_by(16).filter(|at| ours[*at..*at + 16] != theirs[*at..*at + 16]) {
            let name = match at {
                0 | 16 => "x87 control, MXCSR".to_owned(),
                32..160 => format!("ST({})", (at - 32) / 16),
                _ => format!("XMM{}", (at - 160) / 16),
            };
            let (a, b) = (&ours[at..at + 16], &theirs[at..at + 16]);
            let _ = writeln!(text, "{name}: interpreted {a:02x?}, translated {b:02x?}");
        }
        if self.upper.0 != translated.upper.0 {
            let at = (0..256).find(|at| self.upper.0[*at] != translated.upper.0[*at]).unwrap_or(0);
            let _ = writeln!(text, "upper half of YMM{} differs", at / 16);
        }
    }
}
