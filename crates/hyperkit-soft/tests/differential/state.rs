//! What an instruction starts from and what it leaves, and what of it is compared.

use std::fmt::Write;

/// Bytes of an FXSAVE image that hold registers.
pub const FX_BYTES: usize = 416;

/// Bytes of the upper halves of the YMM registers.
pub const UPPER_BYTES: usize = 256;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It ran.
    Done,
    /// It raised an exception.
    Fault { vector: u8, error: u16 },
}

/// All that an unprivileged instruction sees of a processor, but memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// In the layout of FXSAVE64.
    pub fx: [u8; FX_BYTES],
    /// The upper halves of the YMM registers.
    pub upper: [u8; UPPER_BYTES],
    pub outcome: Outcome,
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// RF: set in the image that a fault pushes, and nowhere else.
const RF: u64 = 1 << 16;

/// What the SDM leaves undefined after an instruction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Undefined {
    /// Bits of RFLAGS.
    pub rflags: u64,
    /// General registers, as a mask.
    pub gpr: u16,
    /// Bits of MXCSR.
    pub mxcsr: u32,
    /// Bits of the x87 status word.
    pub fsw: u16,
}

impl State {
    pub const fn zero() -> State {
        State {
            gpr: [0; 16],
            rip: 0,
            rflags: 2,
            fx: [0; FX_BYTES],
            upper: [0; UPPER_BYTES],
            outcome: Outcome::Done,
        }
    }

    pub fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.fx[at], self.fx[at + 1]])
    }

    pub fn mxcsr(&self) -> u32 {
        u32::from(self.word(24)) | u32::from(self.word(26)) << 16
    }

    /// Whether there is no difference that counts.
    pub fn agrees(&self, ours: &State, undefined: Undefined) -> bool {
        let gpr = (0..16).all(|n| undefined.gpr >> n & 1 != 0 || self.gpr[n] == ours.gpr[n]);
        let fsw = (self.word(2) ^ ours.word(2)) & !undefined.fsw == 0;
        let control = fsw
            && self.word(0) == ours.word(0)
            && self.fx[4] == ours.fx[4]
            && (self.mxcsr() ^ ours.mxcsr()) & !undefined.mxcsr == 0;
        let st = (0..8).all(|n| self.fx[32 + 16 * n..42 + 16 * n] == ours.fx[32 + 16 * n..42 + 16 * n]);
        let rflags = (self.rflags ^ ours.rflags) & !RF & !undefined.rflags == 0;
        gpr && control
            && st
            && rflags
            && (self.rip, self.outcome) == (ours.rip, ours.outcome)
            && self.fx[160..] == ours.fx[160..]
            && self.upper == ours.upper
    }

    /// The differences between what the host (`self`) and we left, one a line; empty if there is none that counts.
    pub fn differences(&self, ours: &State, undefined: Undefined) -> String {
        let mut text = String::new();
        if self.agrees(ours, undefined) {
            return text;
        }
        let mut line = |name: &str, host: String, ours: String| {
            if host != ours {
                let _ = writeln!(text, "    {name:6} host {host}\n           ours {ours}");
            }
        };
        line("end", format!("{:?}", self.outcome), format!("{:?}", ours.outcome));
        line("rip", format!("{:#x}", self.rip), format!("{:#x}", ours.rip));
        let flags = |state: &State| format!("{:#x}", state.rflags & !RF & !undefined.rflags);
        line("rflags", flags(self), flags(ours));
        for (n, name) in NAMES.iter().enumerate().filter(|(n, _)| undefined.gpr >> n & 1 == 0) {
            line(name, format!("{:#018x}", self.gpr[n]), format!("{:#018x}", ours.gpr[n]));
        }
        line("fcw", format!("{:#06x}", self.word(0)), format!("{:#06x}", ours.word(0)));
        let fsw = |state: &State| format!("{:#06x}", state.word(2) & !undefined.fsw);
        line("fsw", fsw(self), fsw(ours));
        line("ftw", format!("{:#04x}", self.fx[4]), format!("{:#04x}", ours.fx[4]));
        let mxcsr = |state: &State| format!("{:#06x}", state.mxcsr() & !undefined.mxcsr);
        line("mxcsr", mxcsr(self), mxcsr(ours));
        let hex =
            |bytes: &[u8]| bytes.iter().rev().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        for n in 0..8 {
            let at = 32 + 16 * n..42 + 16 * n;
            line(&format!("st{n}"), hex(&self.fx[at.clone()]), hex(&ours.fx[at]));
        }
        for n in 0..16 {
            let at = 160 + 16 * n..176 + 16 * n;
            line(&format!("xmm{n}"), hex(&self.fx[at.clone()]), hex(&ours.fx[at]));
            let at = 16 * n..16 * n + 16;
            line(&format!("above{n}"), hex(&self.upper[at.clone()]), hex(&ours.upper[at]));
        }
        text
    }
}
